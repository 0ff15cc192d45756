# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training
#
# > One visible loop: batches in, losses down, checkpoints out.
#
# **Question.** What happens between "here are some scribbles" and "here is a network that draws hearts"?

# %%
#| default_exp experiment.training

# %%
#| export
import json
import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from attenscribble.data.batches import Batch, SliceStore, batches, draw_augmentation
from attenscribble.data.datasets import open_dataset
from attenscribble.data.folder import drawn_slices
from attenscribble.data.scans import DataError, Dataset
from attenscribble.experiment.config import Config
from attenscribble.experiment.processes import joined, launched, share_statistics
from attenscribble.machine import processes, rank, split, whole, write_whole
from attenscribble.method.objective import Evidence, Objective, attention_of, method_named
from attenscribble.method.other_networks import build_network
from attenscribble.method.pce import partial_cross_entropy

# %%
import tempfile

from ipywidgets import interact

from attenscribble.book import exercise
from attenscribble.data.phantom import phantom


# %% [markdown]
# ## Device and precision
#
# bfloat16 keeps float32's range and gives up digits; convolutions run in it, losses are summed in float32. It pays
# where the processor has instructions for it.

# %%
#| export
def choose_device(
    name: str = "auto",
) -> torch.device:  # `auto`: the first CUDA device, else the CPU
    "The device to train on."
    if name == "auto":
        name = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_precision(
    name: str,  # auto, float32, bfloat16
    device: torch.device,
) -> torch.dtype | None:  # the autocast type; None = plain float32
    "`auto`: bfloat16 where the hardware multiplies it natively, else float32."
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and native) else None


# %% [markdown]
# ## The schedule
#
# SGD with polynomial decay: $\eta_t = \eta_0 (1 - t/T)^{0.9}$ in iteration $t$ of $T$. The released code sets the rate
# after the step with the old counter and so lags one step behind; a switch reproduces it.

# %%
#| export
def poly_lr(
    step: int,  # iterations done so far
    config: Config,
) -> float:  # factor on the first learning rate
    "Polynomial decay."
    lag = max(step - 1, 0) if config.lr_off_by_one else step
    return (1 - lag / config.iterations) ** config.power


def make_optimiser(model: nn.Module, config: Config) -> torch.optim.SGD:
    """SGD over two groups: the attention has a learning rate of its own. `initial_lr` keeps each group's start.

    Fused: one pass over each parameter where PyTorch's loop makes three."""
    lr = config.lr
    attention = attention_of(model)
    inside = {id(p) for p in attention.parameters()} if attention else set()
    groups = [{"params": [p for p in model.parameters() if id(p) not in inside], "initial_lr": lr}]
    if attention:
        groups.append({"params": list(attention.parameters()), "initial_lr": config.attention_lr or lr})
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    optimiser = torch.optim.SGD(groups, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused)
    for parameter in model.parameters() if config.momentum else ():  # some get their first gradient later than others,
        optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)  # which the fused form refuses
    return optimiser


# %%
example = Config.from_flat(iterations=100)
assert poly_lr(0, example) == 1 and abs(poly_lr(50, example) - 0.5**0.9) < 1e-12
late = Config.from_flat(iterations=100, lr_off_by_one=True)
assert poly_lr(0, late) == poly_lr(1, late) == 1 and poly_lr(50, late) == poly_lr(49, example)


# %%
def plot_schedule(power=0.9):
    "The factor on the learning rate over a run, for a few powers and for the one chosen."
    _, axis = plt.subplots(figsize=(4, 2.4), layout="constrained")
    for one in sorted({0.5, 0.9, 2.0, power}):
        config = Config.from_flat(iterations=100, power=one)
        factors = [poly_lr(step, config) for step in range(100)]
        axis.plot(factors, label=f"power {one:g}", linewidth=2 if one == power else 1)
    axis.set(xlabel="iterations done, % of all", ylabel="factor on the first rate", ylim=(0, 1.02))
    axis.legend(fontsize=8)


plot_schedule()

# %%
interact(plot_schedule, power=(0.1, 3.0, 0.1));


# %% [markdown]
# ## A state that can be put down and picked up
#
# What must a checkpoint hold so that a run that was cut in two gives the same weights as one that was not? The
# weights, the optimiser's momentum, the iteration, and every source of chance. Batches and augmentation are drawn from
# generators that the seed and the iteration determine, so only dropout's state has to be stored.

# %%
#| export
@dataclass
class Training:
    "A run in progress: what the loop changes."

    config: Config
    model: nn.Module
    optimiser: torch.optim.Optimizer
    device: torch.device
    teacher: nn.Module | None = None  # of a method that has one
    pseudo: Any = None  # guessed labels of a method that has them
    step: int = 0  # iterations done
    seconds: float = 0.0  # time spent in the loop, over all sittings
    best: dict[str, Any] = field(default_factory=dict)  # step, loss and weights of the best validation
    log: list[dict[str, float]] = field(default_factory=list)  # one row every `log_every` iterations
    facts: dict[str, Any] = field(default_factory=dict)  # of the dataset, for whoever segments with the weights

    def save(self, path: Path) -> None:
        "Write a checkpoint; the old one stays whole until the new one is."
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        state = {"config": self.config.model_dump(), "dataset": self.facts, "model": self.model.state_dict(),
                 "optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds,
                 "best": self.best, "log": self.log, "random": {"torch": torch.get_rng_state(), "cuda": cuda}}
        state |= {name: part.state_dict() for name, part in self.companions().items()}
        write_whole(path, partial(torch.save, state))

    def companions(self) -> dict[str, Any]:
        "Teacher and guessed labels, where the method has them: what changes during a run besides the network."
        return {name: part for name, part in (("teacher", self.teacher), ("pseudo", self.pseudo)) if part is not None}

    def load(self, path: Path) -> None:
        "Go on from a checkpoint. Raises ValueError when it belongs to other settings."
        state = torch.load(path, map_location=self.device, weights_only=True)
        if (found := Config(**state["config"]).run_id) != self.config.run_id:
            raise ValueError(f"{path}: checkpoint of {found}, expected {self.config.run_id}")
        if state.get("dataset", {}).get("version", "") != self.facts.get("version", ""):
            raise ValueError(f"{path}: the data has changed since this checkpoint; resume=false trains anew")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name, part in self.companions().items():
            part.load_state_dict(state[name])
        self.step, self.seconds, self.best, self.log = (state[k] for k in ("step", "seconds", "best", "log"))
        torch.set_rng_state(state["random"]["torch"].cpu())
        if state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"].cpu(), self.device)


def start_training(
    config: Config,
    dataset: Dataset,
    weights: Mapping[str, Tensor] | None = None,  # of such a network; None: drawn by the seed
) -> Training:
    "A fresh state: weights on the device, in channels-last layout; a teacher starts as the network's copy."
    device, method = choose_device(config.device), method_named(config.method)
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    model = build_network(method, dataset.channels, dataset.classes, config)
    if weights is not None:
        model.load_state_dict(weights)
    model = model.to(device, memory_format=torch.channels_last)
    if processes() > 1:
        model = share_statistics(model)
    teacher = method.teacher(model, config.objective().own) if method.teacher else None
    return Training(config, model, make_optimiser(model, config), device, teacher, facts=dataset.facts())


def load_model(
    path: Path | str,  # a checkpoint
    classes: int | None = None,  # None: as the checkpoint says
    device: str = "auto",
) -> tuple[nn.Module, Config]:  # in eval mode
    "The network of a checkpoint, ready to predict: the validated best if that was the rule, else the last."
    target = choose_device(device)
    facts, state = read_checkpoint(path, target)
    if not facts and classes is None:
        raise DataError(path, "no word on its dataset", "a checkpoint of this version: train again with resume=false")
    config = Config(**(state["config"] | {"device": "auto"}))
    channels, classes = facts.get("channels", 1), classes or len(facts["class_names"])
    model = build_network(method_named(config.method), channels, classes, config)
    model.load_state_dict(state["best"]["model"] if state["best"] else state["model"])
    return model.to(target, memory_format=torch.channels_last).eval(), config


def read_checkpoint(
    path: Path | str,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any], dict[str, Any]]:  # the dataset's `facts`, and everything
    "A checkpoint's content; no facts in one of an older version. Raises DataError for what is no checkpoint."
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)  # tensors are read when used
        state["config"], state["model"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(path, f"no checkpoint ({type(error).__name__})", "checkpoint.pt of a run folder") from error
    return state.get("dataset", {}), state


# %% [markdown]
# ## Slices for training, slices for choosing
#
# The test fold is not opened here. With `checkpoint="best_val"` some of the training patients are set aside, and the
# checkpoint with the lowest partial cross-entropy on **their scribbles** is kept, whatever the method trains with.

# %%
#| export
def training_patients(
    dataset: Dataset,
    config: Config,
) -> tuple[tuple[str, ...], tuple[str, ...]]:  # to train on, to validate on (empty unless best_val)
    "Split the training side of the fold by patient, drawn by the seed."
    patients, _ = dataset.split(config.fold)
    if config.checkpoint == "last":
        return patients, ()
    count = max(1, round(config.validation * len(patients)))
    if count >= len(patients):
        raise ValueError(f"validation: {config.validation} of {len(patients)} training patients leaves none to train")
    held = set(random.Random(config.seed).sample(patients, count))
    return tuple(p for p in patients if p not in held), tuple(p for p in patients if p in held)


def make_store(dataset: Dataset, patients: tuple[str, ...], config: Config, device: torch.device) -> SliceStore:
    "All slices of some patients on the device, with the target that the method learns from; none nobody drew on."
    target = method_named(config.method).target
    drawn = (drawn_slices(case, target, dataset.ignore) for case in dataset.cases(patients))
    return SliceStore((case for case in drawn if case is not None), classes=dataset.classes, ignore=dataset.ignore,
                      target=target, channels=dataset.channels, device=device)


@torch.inference_mode()
def validation_loss(state: Training, store: SliceStore) -> float:
    "Partial cross-entropy on held-out training patients, in eval mode, averaged over slices."
    state.model.eval()
    total = torch.zeros((), device=store.device)
    for index in torch.arange(len(store)).split(state.config.batch):
        batch = store.batch(index, state.config.size)
        loss = partial_cross_entropy(state.model(batch.image), batch.target, ignore=batch.ignore)
        total += loss.detach() * len(index)
    state.model.train()
    return float(whole(total)) / len(store)  # every process asked about all slices, and `loss` is its share


# %% [markdown]
# ## A step
#
# Run the network, sum the terms. `torch.compile` may fuse the network's layers; that takes a while and pays on a GPU. Where it does not work, the
# layers run one by one. Under [many processes](39_processes.ipynb) `DistributedDataParallel` wraps this module, as the gradients of all that the loss
# touches have to be added up, the attention's similarity included.

# %%
#| export
class Step(nn.Module):
    "From a batch to the loss."

    def __init__(self, state: "Training", objective: Objective):
        super().__init__()
        config = state.config
        self.model, self.rest = state.model, (state.teacher, config, objective)
        self.precision = choose_precision(config.precision, state.device)
        wanted = config.compile == "on" or (config.compile == "auto" and state.device.type == "cuda")
        self.network = [torch.compile(state.model) if wanted else state.model]  # in a list: it is no second network

    def forward(
        self,
        batch: Batch,
        step: int,  # iterations done so far
    ) -> tuple[Tensor, dict[str, Tensor]]:  # this process's share of the loss, with its graph, and of what is logged
        teacher, config, objective = self.rest
        with torch.autocast(batch.image.device.type, self.precision, enabled=self.precision is not None):
            logits = self._ask(batch.image)
        return objective(Evidence(logits, batch, config, self.model, teacher, step, config.iterations, self.precision))

    def _ask(self, image: Tensor) -> Tensor:
        "The network's logits; the network as it is from then on, should its compiled form fail."
        if self.network[0] is self.model:
            return self.model(image)
        try:
            return self.network[0](image)
        except Exception as error:
            warnings.warn(f"torch.compile failed, the network runs uncompiled: {str(error)[:500]}", stacklevel=2)
            self.network[0] = self.model
            return self.model(image)


def side_by_side(step: Step, device: torch.device) -> nn.Module:
    "The step itself, or with others that run in other processes: gradients are then averaged over all."
    if processes() == 1:
        return step
    for known in ("find_unused_parameters=True was specified", "`broadcast_buffers` is deprecated"):
        warnings.filterwarnings("ignore", message=f".*{known}")
    return DistributedDataParallel(step, [device] if device.type == "cuda" else None, broadcast_buffers=False,
                                   find_unused_parameters=True, gradient_as_bucket_view=True)


# %% [markdown]
# ## The loop
#
# Six lines do the work: draw a batch, ask for its loss, clear, backpropagate, step. A method's guessed labels may refresh before, its teacher follows
# after. Everything else watches. Values are read from the device only when a row of the log is due, so the loop never waits for a print. Of several
# processes, number 0 writes.

# %%
#| export
def train(
    config: Config,
    dataset: Dataset,
    folder: Path | None = None,  # run folder for checkpoint and log; None: nothing is written
    watch: Callable[[Training], None] | None = None,  # called after each row of the log
    weights: Mapping[str, Tensor] | None = None,  # a network's `state_dict` to begin with; None: drawn by the seed
) -> Training:
    """Train a method on the training side of a fold.

    Raises FloatingPointError when the loss is no number, ValueError when a batch is too small for its processes,
    RuntimeError for another network's weights."""
    state, method = start_training(config, dataset, weights), method_named(config.method)
    fit, held = training_patients(dataset, config)
    store, objective = make_store(dataset, fit, config, state.device), config.objective()
    check_batches(len(store), config)
    if method.pseudo:
        with in_turn():
            state.pseudo = method.pseudo(store, objective.own, config.size)
    checkpoint = folder / "checkpoint.pt" if folder else None
    if checkpoint and config.resume and checkpoint.is_file():
        state.load(checkpoint)
    watchers = [w for w in (watch if rank() == 0 else None, Validation(state, dataset, held) if held else None) if w]
    kind = dataset.augmentation if config.augmentation == "dataset" else config.augmentation
    step_of = side_by_side(Step(state, objective), state.device)
    clock = time.perf_counter() - state.seconds
    with Progress(state) as progress:
        for step, index in numbered_batches(len(store), config, state.step):
            if state.pseudo is not None:
                state.pseudo.refresh(state.model, step, choose_precision(config.precision, state.device))
            chance = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            draw = draw_augmentation(len(index), kind, chance)
            for group in state.optimiser.param_groups:
                group["lr"] = group["initial_lr"] * poly_lr(step, config)
            with split(len(index)) as part:
                loss, terms = step_of(store.batch(index[part], config.size, draw[part]), step)
                state.optimiser.zero_grad(set_to_none=True)
                (loss * processes()).backward()  # gradients are averaged; shares are to be summed
            state.optimiser.step()
            if state.teacher is not None:
                state.teacher.follow(state.model, step)
            state.step = step + 1
            if state.step % config.log_every == 0 or state.step == config.iterations:
                state.seconds = time.perf_counter() - clock
                progress.row(terms)
                for watcher in watchers:
                    watcher(state)
            if folder and rank() == 0 and (state.step % config.eval_every == 0 or state.step == config.iterations):
                state.seconds = time.perf_counter() - clock
                state.save(checkpoint)
                write_log(state.log, folder / "log.csv")
    return state


@contextmanager
def in_turn() -> Iterator[None]:
    "Process 0 first, then the others: they find in the cache what it left there."
    if rank():
        dist.barrier()
    yield
    if rank() == 0 and processes() > 1:
        dist.barrier()


def check_batches(slices: int, config: Config) -> None:
    "Raises ValueError when the smallest batch leaves a process without a slice."
    smallest = min(slices, slices % config.batch or config.batch)
    if smallest < processes():
        raise ValueError(f"devices: {processes()} processes, but the last batch of an epoch has {smallest} of {slices} "
                         f"slices (batch: {config.batch}); choose another batch")


def numbered_batches(slices: int, config: Config, done: int) -> Iterator[tuple[int, Tensor]]:
    "Iteration number and slice indices from iteration `done` on: the same whether or not the run was cut."
    order = batches(slices, config.batch, torch.Generator().manual_seed(config.seed))
    return zip(range(done, config.iterations), islice(order, done, None), strict=False)


# %%
#| export
class Validation:
    "Keeps the weights with the lowest loss on held-out training patients' targets."

    def __init__(self, state: Training, dataset: Dataset, patients: tuple[str, ...]):
        self.store = make_store(dataset, patients, state.config, state.device)

    def __call__(self, state: Training) -> None:
        if state.step % state.config.eval_every and state.step != state.config.iterations:
            return
        loss = validation_loss(state, self.store)
        state.log[-1]["validation"] = loss
        if not state.best or loss < state.best["loss"]:
            weights = {name: value.detach().clone() for name, value in state.model.state_dict().items()}
            state.best = {"step": state.step, "loss": loss, "model": weights}


class Progress:
    "A bar with every loss term and the time left; rows of the log; the check that the loss is a number."

    def __init__(self, state: Training):
        self.state = state

    def __enter__(self) -> "Progress":
        config = self.state.config
        self.bar = tqdm(total=config.iterations, initial=self.state.step, desc=f"{config.method} on {config.dataset}",
                        mininterval=1.0, disable=processes() > 1)
        return self

    def row(self, terms: dict[str, Tensor]) -> None:
        "Read the terms from the device, in one transfer, and log them: the shares of all processes together."
        shares = whole(torch.stack([t.float() for t in terms.values()]))
        values, state = dict(zip(terms, shares.tolist(), strict=True)), self.state
        if values["loss"] != values["loss"] or abs(values["loss"]) == float("inf"):
            raise FloatingPointError(f"iteration {state.step}: the loss is {values['loss']}; terms: {values}")
        rate = state.optimiser.param_groups[0]["lr"]
        self.show({"step": state.step, "seconds": state.seconds, "lr": rate, **values})

    def show(self, row: dict[str, float]) -> None:
        "Append a row to the log and move the bar."
        self.state.log.append(row)
        shown = {name: f"{value:.3g}" for name, value in row.items() if name not in ("step", "seconds", "lr")}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(row["step"] - self.bar.n)

    def __exit__(self, *problem: object) -> None:
        self.bar.close()


def write_log(rows: list[dict[str, float]], path: Path) -> None:
    "The log as CSV, one row every `log_every` iterations; replaced whole."
    write_whole(path, partial(pd.DataFrame(rows).to_csv, index=False))


# %% [markdown]
# ## The loop on many devices
#
# The notebook that asks for `devices=8` starts eight processes and listens: rows of the log arrive as lines, all else is printed as it comes. What they leave
# behind is the checkpoint.

# %%
#| export
ROW = "row of the log: "


def say_row(state: Training) -> None:
    "Print the newest row of the log as a line."
    print(ROW + json.dumps(state.log[-1]), flush=True)


def train_part(
    folder: str,  # run folder with config.json
) -> None:
    "What each of several processes does: `train`, joined with the others."
    config = Config(**json.loads((Path(folder) / "config.json").read_text()))
    with joined(config.device):
        train(config, open_dataset(config.dataset, config.root or None, **config.data), Path(folder), say_row)


def train_in_processes(
    config: Config,
    dataset: Dataset,
    folder: Path,  # run folder; config.json is there
    watch: Callable[[Training], None] | None = None,  # called after each row of the log
) -> Training:
    """`train` in `config.devices` fresh processes on this machine.

    Raises ValueError for want of GPUs, RuntimeError when a process fails."""
    state = start_training(config, dataset)
    if state.device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise ValueError(f"devices: found {config.devices}, expected at most {torch.cuda.device_count()}, as there are "
                         "GPUs; device=cpu trains without them")
    code = f"import sys; from {train_part.__module__} import train_part; train_part(sys.argv[1])"
    with Progress(state) as progress:
        for line in launched(config.devices, code, str(folder)):
            if not line.startswith(ROW):
                print(line)
                continue
            row = json.loads(line.removeprefix(ROW))
            state.step, state.seconds = row["step"], row["seconds"]
            progress.show(row)
            if watch:
                watch(state)
    state.load(folder / "checkpoint.pt")
    return state


# %% [markdown]
# ## Watching it
#
# The curves are drawn from the log by one function, during training and after it.

# %%
#| export
PANELS = {"losses": ("loss", "seg", "dense", "mcrf", "atn", "validation"),
          "similarity S": ("similarity_mean", "similarity_std"), "1×1 convolution": ("weight", "bias"), "rate": ("lr",)}


def plot_curves(
    log: list[dict[str, float]],  # rows of a training's log
    figure: Figure | None = None,  # draw into this one
) -> Figure:
    "Learning curves: every term, the mean and spread of S with its weight and bias, the learning rate."
    table = pd.DataFrame(log).set_index("step")
    shown = {title: [name for name in names if name in table] for title, names in PANELS.items()}
    shown = {title: names for title, names in shown.items() if names}
    figure = figure or plt.figure(figsize=(3.1 * len(shown), 2.6), layout="constrained")
    figure.clear()
    for axis, (title, names) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for name in names:
            axis.plot(table[name].dropna(), label=name, linewidth=1, marker="o" if name == "validation" else None)
        axis.set(title=title, xlabel="iteration")
        if title == "losses" and (table[names].min() > 0).all():
            axis.set_yscale("log")
        axis.legend(fontsize=7)
    return figure


class LiveCurves:
    "Curves that redraw themselves in the notebook while training goes on."

    def __init__(self, every_s: float = 20.0):
        "`every_s`: least seconds between two drawings."
        self.every_s, self.drawn_at, self.handle, self.figure = every_s, 0.0, None, None

    def __call__(self, state: Training) -> None:
        from IPython.display import display

        if time.monotonic() - self.drawn_at < self.every_s and state.step < state.config.iterations:
            return
        self.figure = plot_curves(state.log, self.figure)
        if self.handle is None:
            self.handle = display(self.figure, display_id=True)
        elif self.handle:
            self.handle.update(self.figure)
        if state.step == state.config.iterations:
            plt.close(self.figure)  # the last drawing stays in the output
        self.drawn_at = time.monotonic()


# %% [markdown]
# ## Check: it learns, and it learns from scribbles
#
# A hundred iterations on four phantom patients, scribbles only. One batch's loss jumps with the slices that are in it,
# so the first and the last fifth are compared.

# %%
tiny = Config.from_flat(iterations=100, batch=4, size=48, log_every=5, asl_radius=1, asl_sigma=1.1, precision="float32")
dataset = phantom(patients=5, side=48, slices=4)
state = train(tiny, dataset)
seg = [row["seg"] for row in state.log]
assert sum(seg[-4:]) < 0.8 * sum(seg[:4])
plot_curves(state.log);


# %% [markdown]
# ## Check: cut in two is the same as whole
#
# A run is stopped after its checkpoint of iteration 60 and picked up. The weights must agree to the last bit.

# %%
def interrupt(state):
    "Stands for a power cut."
    if state.step == 70:
        raise KeyboardInterrupt


often = tiny.model_copy(update={"eval_every": 20})
with tempfile.TemporaryDirectory() as folder:
    try:
        train(often, dataset, Path(folder), watch=interrupt)
    except KeyboardInterrupt:
        resumed = train(often, dataset, Path(folder))
for name, value in state.model.state_dict().items():
    torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)


# %% [markdown]
# ## How much is one step?
#
# The time of a step on this machine, by precision. What the numbers mean for you depends on your processor.

# %%
def step_seconds(precision, count=8):
    "Seconds a step of `ours` at 128², batch 8."
    config = Config.from_flat(iterations=count + 2, batch=8, size=128, log_every=1, precision=precision,
                              asl_radius=2, asl_sigma=3.0)
    rows = train(config, dataset).log
    return (rows[-1]["seconds"] - rows[1]["seconds"]) / count


{precision: round(step_seconds(precision), 3) for precision in ("float32", "bfloat16")}


# %% [markdown]
# ## Exercises
#
# **1. Predict.** At which share of the iterations has the learning rate halved?

# %%
def check_half(answer):
    assert abs(answer() - (1 - 0.5 ** (1 / 0.9))) < 1e-9

def attempt_half():
    ...

exercise(check_half, attempt_half, solution=lambda: 1 - 0.5 ** (1 / 0.9))


# %% [markdown]
# **2. Implement.** A watcher that stops a run when `seg` has fallen below a bound: raise `StopIteration`.

# %%
def check_stopper(make):
    try:
        train(tiny, dataset, watch=make(bound=1.2))
        raise AssertionError("it never stopped")
    except StopIteration:
        pass

def attempt_stopper(bound):
    return lambda state: None

def solve_stopper(bound):
    def watch(state):
        if state.log[-1]["seg"] < bound:
            raise StopIteration
    return watch

exercise(check_stopper, attempt_stopper, solve_stopper)


# %% [markdown]
# **3. Break.** Fill the labels of every case with rubbish and train `ours`. Which weights change?

# %%
def check_rubbish(answer):
    assert answer() == "none"

def attempt_rubbish():
    ...

exercise(check_rubbish, attempt_rubbish, solution=lambda: "none")

# %% [markdown]
# ## Recap
#
# Exported: `train`, `Training`, `load_model`, `plot_curves`, `LiveCurves`. The next chapter turns the network's slices
# back into [a scan's mask](42_inference.ipynb).
