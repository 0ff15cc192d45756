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
# **Question.** Can eight devices train the network that one would have trained, only sooner?

# %%
#| default_exp experiment.processes

# %%
#| export
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from attenscribble.machine import processes, whole

# %%
import json

import matplotlib.pyplot as plt

from attenscribble.book import exercise


# %% [markdown]
# ## What they must agree on
#
# Each process holds the network, takes its part of every batch, and computes gradients; then gradients are added up and all take the same
# step. That is exact only if each part of a step that looks at the *whole batch* still does:
#
# | looks at the whole batch | how |
# |---|---|
# | normalisers of the losses: annotated pixels, images, the two sums of Dice | [`share_of`, `whole`](../01_machine.ipynb) |
# | dropout and other noise | [`own_rows`](../01_machine.ipynb) |
# | mean and variance of batch norm | here |
# | order of the slices, augmentation | drawn from seed and iteration, the same everywhere |
#
# ## Batch norm over all parts
#
# By hand: one channel, two processes with the values (1, 3) and (5, 7). Alone they would call their means 2 and 6, and both normalise to (−1, 1).
# Together the mean is 4, the variance 5, and the four values become $(-3, -1, 1, 3)/\sqrt 5$. PyTorch's `SyncBatchNorm` does that on GPUs only; on a CPU
# three sums over all processes do.

# %%
#| export
class _SharedNorm(torch.autograd.Function):
    "Normalise by mean and variance over all processes; both belong to the graph."

    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, mean, deviation = torch.native_batch_norm(values, weight, bias, None, None, True, 0.0, eps)  # of this part
        count = mean.new_tensor([values[:, 0].numel()])
        squares = deviation.pow(-2) - eps + mean.square()
        first, second, total = whole(torch.cat((mean * count, squares * count, count))).split((len(mean), len(mean), 1))
        mean, variance = first / total, (second / total - (first / total).square()).clamp(min=0)
        ctx.save_for_backward(values, weight, mean, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        return torch.native_batch_norm(values, weight, bias, mean, variance, False, 0.0, eps)[0], mean, variance, total

    @staticmethod
    def backward(ctx, slope: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, mean, variance, total = ctx.saved_tensors
        to_values, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            slope, values, weight, mean, variance, None, None, False, ctx.eps, [True, True, True])
        # the mean and the variance move with every value: what all processes sent back is taken off again
        by_weight, by_bias = whole(torch.cat((to_weight, to_bias))).chunk(2)
        scale = (variance + ctx.eps).rsqrt()
        factor = weight * scale.square() * by_weight / total
        shift = weight * scale * by_bias / total - factor * mean
        column = lambda x: x.view(1, -1, 1, 1).to(values.dtype)
        return to_values.sub_(torch.addcmul(column(shift), values, column(factor))), to_weight, to_bias, None


class SharedBatchNorm(nn.BatchNorm2d):
    "Batch norm with the statistics of the whole batch, on a CPU; a single process's own when there is only one."

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return super().forward(features)
        normed, mean, variance, total = _SharedNorm.apply(features, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        return normed


def share_statistics(model: nn.Module) -> nn.Module:
    "The same network; its batch norm layers, on whichever device, see the whole batch. Names and weights stay."
    if next(model.parameters()).device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SharedBatchNorm
    return model


# %% [markdown]
# ## Joining
#
# `torchrun` starts the processes, restarts none, and tells each its number in the environment. A process that was started otherwise is alone.

# %%
#| export
@contextmanager
def joined(
    device: str = "auto",  # "cpu": not on the GPUs, even if there are some
) -> Iterator[None]:
    "While it is open, the processes that `torchrun` started are one group, each on a device of its own."
    if "RANK" not in os.environ or processes() > 1:
        yield
        return
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


# %% [markdown]
# ## Launching
#
# A notebook cannot itself become two processes: its kernel has threads running, and a copy of it may hang. `launched` starts
# fresh ones and hands on what they print. If one fails, the others are ended and its last words become the error. An interrupt of the cell ends them all.

# %%
#| export
# text and line end in one piece, or lines of two processes run into each other on the pipe that they share: flushed
# at each line end, and never "unbuffered", which in Python writes the line end by itself
WHOLE_LINES = "import sys; sys.stdout.reconfigure(line_buffering=True, write_through=False)\n"


def launched(
    count: int,  # processes on this machine
    code: str,  # Python, run in each of them
    *arguments: str,  # its sys.argv[1:]
) -> Iterator[str]:  # the lines they print, as they come
    """Run code in fresh processes under `torchrun`.

    Each gets an equal part of the processor's cores, unless OMP_NUM_THREADS says otherwise. Raises RuntimeError with
    the first traceback when one fails. When the iterator is closed or interrupted, all of them are ended."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count),
               "--no-python", sys.executable, "-c", WHOLE_LINES + code, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
                               start_new_session=True)
    last: deque[str] = deque(maxlen=200)
    try:
        for line in process.stdout:
            last.append(line)
            yield line.rstrip("\n")
        if process.wait():
            raise RuntimeError(f"one of {count} processes failed:\n{first_words(last)}")
    finally:
        _end(process)


def first_words(lines: Sequence[str]) -> str:
    "The first traceback among some lines, else the last ten."
    lines = list(lines)
    start = next((i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line), None)
    if start is None:
        return "".join(lines[-10:])
    stop = next((i for i, line in enumerate(lines) if i > start and not line.startswith(" ")), len(lines))
    return "".join(lines[start:stop + 1])


def _end(process: subprocess.Popen) -> None:
    "End a process and all that it started: asked first, then made to."
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for ask in (signal.SIGTERM, signal.SIGKILL):
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(ask)
        _, family = psutil.wait_procs(family, timeout=10)
    process.wait()


# %% [markdown]
# Two processes, the values of the example above, and each says what it sees.

# %%
EXAMPLE = """
import json, torch
from attenscribble.experiment.processes import joined, share_statistics
from attenscribble.machine import rank

with joined():
    norm = share_statistics(torch.nn.Sequential(torch.nn.BatchNorm2d(1, eps=0)))
    own = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[rank()].view(2, 1, 1, 1)
    print(json.dumps([rank(), norm(own).flatten().tolist()]), flush=True)
"""
seen = dict(sorted(json.loads(line) for line in launched(2, EXAMPLE) if line.startswith("[")))
print(seen)
torch.testing.assert_close(torch.tensor([*seen[0], *seen[1]]), torch.tensor([-3.0, -1, 1, 3]) / 5**0.5)

# %% [markdown]
# And one that fails. The error of any process is the error of the cell.

# %%
try:
    list(launched(2, "import os; assert os.environ['RANK'] == '0', 'process 1 has no data'"))
    raise SystemError("nothing was raised")
except RuntimeError as error:
    print(error)
    assert "process 1 has no data" in str(error)


# %% [markdown]
# ## What it costs
#
# All processes wait for the slowest, then exchange as many numbers as the network has parameters. Moved in a ring, each number crosses the wire twice:
# $2\frac{W-1}{W}$ of the gradient's size leaves each of $W$ devices. The U-Net has 1.8 million parameters, 7 MB. Here is what that leaves of $W$ devices, for a step
# of 10 ms on one of them, over three kinds of wire.

# %%
def efficiency(devices, step_ms, wire_gb_s, megabytes=7.3, latency_ms=0.05):
    "Share of W-fold speed that is left when a batch is split and nothing overlaps."
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
# A model, not a measurement: `make bench` measures two processes on this machine's processor. A small network on fast devices is soon bound by the wire, and
# a larger batch helps.
#
# ## Several machines
#
# `papermill train.ipynb -p devices 8` starts eight processes on this machine. On more than one, start the command that the notebook stands for under `torchrun` on each,
# with a folder that all can see:
#
# ```bash
# torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --no-python \
#     attenscribble train dataset=acdc profile=paper output=/shared/runs
# ```
#
# ## Exercises
#
# **1. Predict.** Each of `devices` processes has `batch` images. Which learning rate factor would the "linear scaling rule" ask for, and which
# do we need if the *global* batch stays what it was?

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
# **3. Break.** For which numbers does that variance lose all its digits in float32? Return a tensor of four float32 values whose true variance is 1.25
# and whose computed one is off by more than 1.

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
# `launched` starts processes and streams what they say, `joined` makes them a group, `share_statistics` lets batch norm see the whole batch. With the shares of
# [the losses](../01_machine.ipynb), N processes take the step that one would. Next: [the configuration](40_config.ipynb).
