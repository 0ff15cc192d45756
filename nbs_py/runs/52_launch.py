# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many processes
#
# > One network, several devices: fresh processes that agree after every step, and what they must tell each other.
#
# Can eight devices train the network that one would have trained, only sooner? They can if every step is the one that a
# single device would take with the same batch. This chapter starts the processes, makes them one group, and lets batch
# norm see the whole batch.

# %%
#| default_exp runs.launch

# %%
#| export
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

# %%
#| export
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from attenscribble.basics.distributed import all_reduce, world_size

# %%
import json

import matplotlib.pyplot as plt

from attenscribble.basics.checking import exercise


# %% [markdown]
# ## What they must agree on
#
# Each process holds the whole network and takes its part of every batch. It computes the gradients of that part; the
# gradients of all processes are added up, and all take the same step. That is the step of one process only if
# everything that depends on the *whole batch* still does:
#
# | depends on the whole batch | how |
# |---|---|
# | denominators of the losses: annotated pixels, images, Dice | [`all_reduce`](../basics/05_distributed.ipynb) |
# | dropout and other noise | [`sharded_noise`](../basics/05_distributed.ipynb) |
# | mean and variance of batch norm | here |
# | order of the slices, augmentation | drawn from seed and iteration, the same everywhere |

# %% [markdown]
# ## Batch norm over all parts
#
# **By hand.** One channel, two processes with the values (1, 3) and (5, 7). Alone they would find the means 2 and 6,
# and both would normalise to (−1, 1). Together the mean is 4, the variance 5, and the four values become
# $(-3, -1, 1, 3)/\sqrt 5$. PyTorch's `SyncBatchNorm` does that on GPUs only. On a CPU three sums over all processes
# are enough: of the values, of their squares, and how many there are.

# %%
#| export
def _batch_statistics(
    values: Tensor, weight: Tensor, bias: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    "Mean and variance of each channel over all processes, [C] each, and the number of values per channel, [1]."
    _, mean, inverse_std = torch.native_batch_norm(values, weight, bias, None, None, True, 0.0, eps)  # of this part
    count = mean.new_tensor([values[:, 0].numel()])
    squares = inverse_std.pow(-2) - eps + mean.square()
    sums = all_reduce(torch.cat((mean * count, squares * count, count)))
    first, second, total = sums.split((len(mean), len(mean), 1))
    mean = first / total
    return mean, (second / total - mean.square()).clamp(min=0), total


# %% [markdown]
# In the gradient, mean and variance depend on every value of every process. So the backward pass adds up two sums over
# all processes, and takes what flows through mean and variance off the gradient of the values.

# %%
#| export
def _batch_norm_gradients(
    gradient: Tensor, values: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, total: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    "The gradients of values, weight and bias from that of the normalised values."
    to_values, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
        gradient, values, weight, mean, variance, None, None, False, eps, [True, True, True])
    by_weight, by_bias = all_reduce(torch.cat((to_weight, to_bias))).chunk(2)
    scale = (variance + eps).rsqrt()
    factor = weight * scale.square() * by_weight / total
    shift = weight * scale * by_bias / total - factor * mean
    column = lambda x: x.view(1, -1, 1, 1).to(values.dtype)
    return to_values.sub_(torch.addcmul(column(shift), values, column(factor))), to_weight, to_bias


# %%
#| export
class _DistributedNorm(torch.autograd.Function):
    "Normalise by mean and variance over all processes; the gradient passes through both."

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        ctx.eps, (mean, variance, total) = eps, _batch_statistics(values, weight, bias, eps)
        ctx.save_for_backward(values, weight, mean, variance, total)
        ctx.mark_non_differentiable(mean, variance, total)
        return torch.native_batch_norm(values, weight, bias, mean, variance, False, 0.0, eps)[0], mean, variance, total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, mean, variance, total = ctx.saved_tensors
        return *_batch_norm_gradients(gradient, values, weight, mean, variance, total, ctx.eps), None


# %%
#| export
class DistributedBatchNorm(nn.BatchNorm2d):
    "Batch norm with the statistics of the whole batch, on a CPU; PyTorch's own where there is only one process."

    def forward(
        self,
        features: Tensor,  # [N,C,H,W] float: this process's part of the batch
    ) -> Tensor:  # the same shape, normalised
        "Normalise; in training the running statistics move towards those of the whole batch."
        if not self.training or world_size() == 1:
            return super().forward(features)
        normed, mean, variance, total = _DistributedNorm.apply(features, self.weight, self.bias, self.eps)
        _update_running(self, mean, variance * total / (total - 1))
        return normed


# %%
#| export
@torch.no_grad()
def _update_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    "Move a layer's running statistics by its momentum, as PyTorch does; the variance is the unbiased one."
    if norm.num_batches_tracked is None or norm.running_mean is None or norm.running_var is None:
        return  # a layer that keeps none
    norm.num_batches_tracked += 1
    share = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # None: mean of all batches
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)


# %%
#| export
def synchronise_batch_norm(
    model: nn.Module,  # on the device it is trained on; changed in place on a CPU
) -> nn.Module:  # the same network: names and weights stay
    "Let the batch norm layers of a network see the whole batch, on a CPU or on GPUs."
    if next(model.parameters()).device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = DistributedBatchNorm
    return model


# %% [markdown]
# ## One group
#
# `torchrun` starts the processes, restarts none, and tells each its number in the environment. A process that was
# started in another way works alone.

# %%
#| export
@contextmanager
def process_group(
    device: str = "auto",  # "cpu": not on the GPUs, even if there are some
) -> Iterator[None]:  # for a `with` block
    "While it is open, the processes that `torchrun` started are one group, each on a device of its own."
    if "RANK" not in os.environ or world_size() > 1:
        yield
        return
    _check_environment()
    dist.init_process_group(_backend(device))
    try:
        yield
    finally:
        dist.destroy_process_group()


# %%
#| export
_TOLD = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun puts into the environment beside RANK


def _check_environment() -> None:
    "Raise ValueError where the environment holds half of what `torchrun` puts there."
    if lacking := [name for name in _TOLD if name not in os.environ]:
        raise ValueError(f"environment: found RANK without {', '.join(lacking)}, expected all of them, as torchrun "
                         "gives them, or no RANK: unset RANK")


# %%
#| export
def _backend(device: str) -> str:
    "What carries the numbers between processes; with GPUs, this process takes its own."
    if device == "cpu" or not torch.cuda.is_available():
        return "gloo"
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return "nccl"


# %% [markdown]
# ## Launching
#
# A notebook cannot itself become two processes: its kernel has threads running, and a copy of it may hang. `launch`
# starts fresh ones and hands on what they print. If one fails, the others are ended, and its traceback becomes the
# error of the cell. Interrupting the cell ends them all, and so does killing its process.

# %%
#| export
# text and line end in one piece, or lines of two processes run into each other on the pipe that they share: flushed
# at each line end, and never "unbuffered", which in Python writes the line end by itself
_LINE_BUFFERED = "import sys; sys.stdout.reconfigure(line_buffering=True, write_through=False)\n"
_MORTAL = ("import os\nfrom attenscribble.basics.files import end_with_parent\n"
           "end_with_parent(int(os.environ['ATTENSCRIBBLE_PARENT']))\n")  # of torchrun this one, of the others torchrun
_TORCHRUN = _MORTAL + ("os.environ['ATTENSCRIBBLE_PARENT'] = str(os.getpid())\n"
                       "from torch.distributed.run import main\nmain()")


# %%
#| export
def _torchrun(count: int, code: str, arguments: Sequence[str]) -> subprocess.Popen:
    "Start `torchrun` with code for each process; all they print comes out of one pipe."
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    command = [sys.executable, "-c", _TORCHRUN, "--standalone", "--nproc-per-node", str(count),
               "--no-python", sys.executable, "-c", _LINE_BUFFERED + _MORTAL + code, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR",
                   "ATTENSCRIBBLE_PARENT": str(os.getpid())}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
                            start_new_session=True)


# %%
#| export
def launch(
    count: int,  # processes on this machine
    code: str,  # Python, run in each of them
    *arguments: str,  # its sys.argv[1:]
) -> Iterator[str]:  # the lines they print, as they come
    """Run code in fresh processes under `torchrun`.

    Each gets an equal part of the processor's cores, unless OMP_NUM_THREADS says otherwise. Raises RuntimeError with
    the first traceback when one fails. When the iterator is closed or interrupted, all of them are ended."""
    process = _torchrun(count, code, arguments)
    last: deque[str] = deque(maxlen=10)
    held: list[str] = []
    try:
        for line in process.stdout or ():
            if held or _TRACEBACK in line:  # it becomes the error, and is not shown twice
                held.append(line)
            else:
                last.append(line)
                yield line.rstrip("\n")
        if process.wait():
            raise RuntimeError(f"one of {count} processes failed:\n{_first_traceback([*last, *held])}")
        yield from (line.rstrip("\n") for line in held)  # somebody only printed it
    finally:
        _end(process)


# %%
#| export
_TRACEBACK = "Traceback (most recent call last)"


def _first_traceback(lines: Sequence[str]) -> str:
    "The first traceback among some lines, else the last ten. In a group PyTorch begins each line with [rank0]: or so."
    start = next((i for i, line in enumerate(lines) if _TRACEBACK in line), None)
    if start is None:
        return "".join(lines[-10:])
    found = re.match(r"\[rank\d+\]: ", lines[start])
    rank = found[0] if found else ""
    lines = [line.removeprefix(rank) for line in lines[start:] if line.startswith(rank)]
    stop = next((i for i, line in enumerate(lines) if i and not line.startswith(" ")), len(lines))
    return "".join(lines[:stop + 1])


# %%
#| export
def _end(process: subprocess.Popen) -> None:
    "End a process and all that it started: SIGTERM first, after ten seconds SIGKILL."
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for ending in (signal.SIGTERM, signal.SIGKILL):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(ending)
        _, family = psutil.wait_procs(family, timeout=10)
    process.wait()


# %% [markdown]
# **Check.** Two processes get the values of the example above, and each prints what it has made of them.

# %%
EXAMPLE = """
import json, torch
from attenscribble.basics.distributed import rank
from attenscribble.runs.launch import process_group, synchronise_batch_norm

with process_group():
    norm = synchronise_batch_norm(torch.nn.Sequential(torch.nn.BatchNorm2d(1, eps=0)))
    part = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[rank()].view(2, 1, 1, 1)
    print(json.dumps([rank(), norm(part).flatten().tolist()]), flush=True)
"""
seen = dict(sorted(json.loads(line) for line in launch(2, EXAMPLE) if line.startswith("[")))
print(seen)
torch.testing.assert_close(torch.tensor([*seen[0], *seen[1]]), torch.tensor([-3.0, -1, 1, 3]) / 5**0.5)

# %% [markdown]
# The error of any process is the error of the cell.

# %%
try:
    list(launch(2, "import os; assert os.environ['RANK'] == '0', 'process 1 has no data'"))
    raise SystemError("nothing was raised")
except RuntimeError as error:
    print(error)
    assert "process 1 has no data" in str(error)


# %% [markdown]
# ## What it costs
#
# All processes wait for the slowest, then exchange as many numbers as the network has parameters. When the numbers are
# passed around in a ring, each crosses the wire twice: $2\frac{W-1}{W}$ of the gradient's size leaves each of $W$
# devices. The U-Net has 1.8 million parameters, 7 MB. The picture shows how much of a $W$-fold speed that leaves, for a
# step of 10 ms on one device, over three kinds of wire.

# %%
def efficiency(devices, step_ms, wire_gb_s, megabytes=7.3, latency_ms=0.05):
    "Share of W-fold speed that is left when a batch is divided and nothing overlaps."
    moved = 2 * (devices - 1) / devices * megabytes / wire_gb_s + (devices > 1) * latency_ms
    return step_ms / devices / (step_ms / devices + moved)


figure, axis = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
devices = range(1, 9)
for (name, wire), colour in zip({"NVLink, 300 GB/s": 300, "PCIe, 25 GB/s": 25, "Ethernet, 1.2 GB/s": 1.2}.items(),
                                ("#0072B2", "#009E73", "#D55E00"), strict=True):
    axis.plot(devices, [efficiency(count, 10, wire) for count in devices], "o-", color=colour, label=name)
axis.set(xlabel="devices", ylabel="efficiency (model)", ylim=(0, 1.05), title="10 ms a step on one device")
axis.legend(frameon=False, fontsize=8);


# %% [markdown]
# This is a model, not a measurement: `make bench` measures two processes on this machine's processor. A small network
# on fast devices is soon limited by the wire; a larger batch helps.
#
# ## Several machines
#
# `papermill train.ipynb ../runs/eight.ipynb -p devices 8` starts eight processes on this machine. On more than one machine, start the
# command that the notebook stands for under `torchrun` on each, with a folder that all can see:
#
# ```bash
# torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --no-python \
#     attenscribble train dataset=acdc profile=paper output=/shared/runs
# ```

# %% [markdown]
# ## Exercises
#
# **1. Predict.** Each of `devices` processes has `batch` images. By which factor would the "linear scaling rule" raise
# the learning rate, and by which do we need to if the *global* batch stays what it was?

# %%
def check_rates(f):
    assert f(4) == (4, 1)

def rates(devices):
    ...  # your code here

exercise(check_rates, rates, solution=lambda devices: (devices, 1))


# %% [markdown]
# **2. Implement.** Mean and variance of all values from each part's count, sum and sum of squares.

# %%
def check_moments(f):
    values = torch.arange(10.0).double() ** 2
    parts = [(len(v), v.sum().item(), v.square().sum().item()) for v in values.split((3, 1, 6))]
    mean, variance = f(parts)
    assert abs(mean - values.mean()) < 1e-9 and abs(variance - values.var(correction=0)) < 1e-6

def moments(parts):
    ...  # your code here

def moments_solution(parts):
    count, first, second = (sum(column) for column in zip(*parts, strict=True))
    return first / count, second / count - (first / count) ** 2

exercise(check_moments, moments, moments_solution)


# %% [markdown]
# **3. Break.** For which numbers does that variance lose all its digits in float32? Return a tensor of four float32
# values whose true variance is 1.25 and whose computed one is off by more than 1.

# %%
def check_cancellation(f):
    values = f()
    assert values.dtype == torch.float32 and len(values) == 4 and values.double().var(correction=0) == 1.25
    assert abs(values.square().sum() / 4 - (values.sum() / 4) ** 2 - 1.25) > 1

def cancellation():
    return torch.arange(4.0)  # your numbers here

exercise(check_cancellation, cancellation, solution=lambda: torch.arange(4.0) + 1e5)

# %% [markdown]
# ## Recap
#
# `launch` starts processes and streams what they print, `process_group` makes them one group, `synchronise_batch_norm`
# lets batch norm see the whole batch. Together with [sums over all processes](../basics/05_distributed.ipynb) in the
# losses, N processes take the step that one would. The next chapter is about [training](53_training.ipynb).
