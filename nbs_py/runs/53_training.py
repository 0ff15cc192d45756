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
# What happens between "here are some scribbles" and "here is a network that draws hearts"? A loop draws batches, asks for the loss and moves the
# weights; the rest of this chapter makes that loop repeatable, watchable and safe to interrupt. Everything it needs comes from one
# [setup](51_setup.ipynb).

# %%
#| default_exp runs.training

# %%
#| export
import json
import math
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

# %%
#| export
import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.distributed as dist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

# %%
#| export
from attenscribble.basics.distributed import all_reduce, rank, shard, world_size
from attenscribble.basics.errors import DataError
from attenscribble.basics.files import write_atomic
from attenscribble.basics.notebook import terminal_bar
from attenscribble.data.batches import Batch, SliceStore, batches, draw_augmentation
from attenscribble.data.folder import drawn_slices, said
from attenscribble.data.scans import Dataset
from attenscribble.method.objective import LossContext, attention_of
from attenscribble.method.other_networks import build_network
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.runs.config import Config, current_names
from attenscribble.runs.launch import launch, process_group, synchronise_batch_norm
from attenscribble.rivals.teachers import Ema
from attenscribble.runs.setup import Setup, resolve

# %%
import tempfile

from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.data.phantom import phantom


# %% [markdown]
# ## The schedule
#
# SGD with polynomial decay: $\eta_t = \eta_0 (1 - t/T)^{0.9}$ in iteration $t$ of $T$. The released code sets the rate
# after the step with the old counter and so lags one step behind; a switch reproduces it.

# %%
#| export
def poly_lr(
    step: int,  # iterations done so far
    config: Config,  # iterations, power, lr_off_by_one
) -> float:  # factor on the first learning rate
    "Polynomial decay."
    lag = max(step - 1, 0) if config.lr_off_by_one else step
    return (1 - lag / config.iterations) ** config.power


# %% [markdown]
# Two more choices, which the paper does not make: the rate may rise evenly before it falls, and fall as half a cosine.

# %%
#| export
def learning_rate(
    step: int,  # iterations done so far
    config: Config,  # schedule, warmup, and what `poly_lr` reads
) -> float:  # factor on the first learning rate
    "The schedule of a run."
    rise = min((step + 1) / (config.warmup * config.iterations), 1.0) if config.warmup else 1.0
    if config.schedule == "poly":
        return rise * poly_lr(step, config)
    return rise * (1 + math.cos(math.pi * step / config.iterations)) / 2


# %%
#| export
def make_optimiser(
    model: nn.Module,  # on its device
    config: Config,  # rates, momentum, weight decay
) -> torch.optim.Optimizer:  # each group keeps its first rate as `initial_lr`
    "SGD or AdamW over two groups: the attention has a learning rate of its own. Fused: one pass over each parameter."
    attention = attention_of(model)
    inside = {id(p) for p in attention.parameters()} if attention else set()
    groups = [{"params": [p for p in model.parameters() if id(p) not in inside], "initial_lr": config.lr}]
    if attention:
        groups.append({"params": list(attention.parameters()), "initial_lr": config.attention_lr or config.lr})
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay,
                              "fused": all(p.device.type in ("cpu", "cuda") for p in model.parameters())}
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, **shared)
    nesterov = config.optimiser == "nesterov" and config.momentum > 0
    optimiser = torch.optim.SGD(groups, momentum=config.momentum, nesterov=nesterov, **shared)
    for parameter in model.parameters() if config.momentum else ():  # some get their first gradient later than others,
        optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)  # which the fused form refuses
    return optimiser


# %%
example = Config(iterations=100)
assert poly_lr(0, example) == 1 and abs(poly_lr(50, example) - 0.5**0.9) < 1e-12
late = Config(iterations=100, lr_off_by_one=True)
assert poly_lr(0, late) == poly_lr(1, late) == 1 and poly_lr(50, late) == poly_lr(49, example)


# %%
def plot_schedule(power=0.9):
    "The factor on the learning rate over a run, for a few powers and for the one chosen."
    _, axis = plt.subplots(figsize=(4, 2.4), layout="constrained")
    for one in sorted({0.5, 0.9, 2.0, power}):
        config = Config(iterations=100, power=one)
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
    "A run in progress: what the loop changes. `save` writes a checkpoint, `load` goes on from one."

    setup: Setup
    model: nn.Module
    optimiser: torch.optim.Optimizer
    teacher: nn.Module | None = None  # of a method that has one
    pseudo: Any = None  # guessed labels of a method that has them
    average: Ema | None = None  # of the network's weights, with ema above 0
    step: int = 0  # iterations done
    seconds: float = 0.0  # time spent in the loop, over all sittings
    best: dict[str, Any] = field(default_factory=dict)  # step, loss and weights of the best validation
    log: list[dict[str, float]] = field(default_factory=list)  # one row every `log_every` iterations

    @property
    def config(self) -> Config:
        "The settings of the run."
        return self.setup.config

    def save(
        self,
        path: Path,  # of the checkpoint
    ) -> None:
        "Write a checkpoint; the old one stays whole until the new one is."
        write_atomic(path, partial(torch.save, _content(self)))

    def load(
        self,
        path: Path,  # of the checkpoint
    ) -> None:
        "Go on from a checkpoint. Raises ValueError when it belongs to other settings, DataError for what is none."
        _restore(self, path)


# %%
#| export
def _companions(state: Training) -> dict[str, Any]:
    "Teacher, guessed labels and average, where there are any: what changes during a run besides the network."
    parts = {"teacher": state.teacher, "pseudo": state.pseudo, "average": state.average}
    return {name: part for name, part in parts.items() if part is not None}


# %%
#| export
def _content(state: Training) -> dict[str, Any]:
    "What a checkpoint holds."
    device = state.setup.device
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    content = {"config": state.config.model_dump(), "dataset": state.setup.dataset.facts(),
               "model": state.model.state_dict(), "optimiser": state.optimiser.state_dict(), "step": state.step,
               "seconds": state.seconds, "best": state.best, "log": state.log,
               "random": {"torch": torch.get_rng_state(), "cuda": cuda}}
    return content | {name: part.state_dict() for name, part in _companions(state).items()}


# %%
#| export
def read_checkpoint(
    path: Path | str,  # of a checkpoint
    device: torch.device | str = "cpu",  # where its tensors go
) -> dict[str, Any]:  # everything in it; "config" as a `Config`, "dataset" the dataset's facts, {} if it knows none
    "A checkpoint's content. Raises DataError for what is no checkpoint."
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=True)  # tensors are read when used
        config, _ = content["config"], content["model"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(path, f"no checkpoint ({type(error).__name__})", "checkpoint.pt of a run folder") from error
    return content | {"config": Config(**current_names(config)), "dataset": content.get("dataset", {})}


# %%
#| export
def _restore(state: Training, path: Path) -> None:
    "Go on from a checkpoint. Raises ValueError when it belongs to other settings or other data."
    device = state.setup.device
    content = read_checkpoint(path, device)
    if (found := content["config"].run_id) != state.config.run_id:
        raise ValueError(f"{path}: found a checkpoint of {found}, expected {state.config.run_id}")
    if content["dataset"].get("version", "") != state.setup.dataset.facts().get("version", ""):
        raise ValueError(f"{path}: the data has changed since this checkpoint; resume=false trains anew")
    state.model.load_state_dict(content["model"])
    state.optimiser.load_state_dict(content["optimiser"])
    for name, part in _companions(state).items():
        part.load_state_dict(content[name])
    state.step, state.seconds, state.best, state.log = (content[k] for k in ("step", "seconds", "best", "log"))
    torch.set_rng_state(content["random"]["torch"].cpu())
    if content["random"]["cuda"] is not None:
        torch.cuda.set_rng_state(content["random"]["cuda"].cpu(), device)


# %% [markdown]
# A fresh state: everything that is drawn by chance is drawn after the seed is set, always in the same order.

# %%
#| export
def start_training(
    setup: Setup,  # of `resolve`
    weights: Mapping[str, Tensor] | None = None,  # of such a network; None: drawn by the seed
) -> Training:  # at iteration 0
    "A fresh state: weights on the device, in channels-last layout; a teacher starts as the network's copy."
    config, method = setup.config, setup.method
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    model = build_network(method, setup.dataset.channels, setup.dataset.classes, config)
    if weights is not None:
        model.load_state_dict(weights)
    model = model.to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    if world_size() > 1:
        model = synchronise_batch_norm(model)
    teacher = method.teacher(model, setup.objective.options) if method.teacher else None
    average = Ema(model, config.ema, buffers="average", training=False) if config.ema else None
    return Training(setup, model, make_optimiser(model, config), teacher, average=average)


# %% [markdown]
# ## Slices for training, slices for choosing
#
# The test fold is not opened here. With `checkpoint="best_val"` some of the training patients are set aside, and the
# checkpoint with the lowest partial cross-entropy on **their scribbles** is kept, whatever the method trains with.

# %%
#| export
def training_patients(
    dataset: Dataset,  # the patients and their folds
    config: Config,  # fold, checkpoint, validation, seed
) -> tuple[tuple[str, ...], tuple[str, ...]]:  # to train on, to validate on (empty unless best_val)
    "Divide the training side by patient, drawn by the seed. Raises ValueError if that leaves none to train."
    patients, _ = dataset.split(config.fold)
    if config.checkpoint == "last":
        return patients, ()
    count = max(1, round(config.validation * len(patients)))
    if count >= len(patients):
        raise ValueError(f"validation: {config.validation} of {len(patients)} training patients leaves none to train")
    held = set(random.Random(config.seed).sample(patients, count))
    return tuple(p for p in patients if p not in held), tuple(p for p in patients if p in held)


# %%
#| export
def make_store(
    setup: Setup,  # dataset, method and device
    patients: tuple[str, ...],  # whose slices
) -> SliceStore:  # of the slices that somebody drew on
    "All slices of some patients on the device, with the target that the method learns from."
    dataset, target = setup.dataset, setup.method.target
    cases = dataset.cases(patients)
    drawn = (drawn_slices(case, target, dataset.ignore) for case in (cases if rank() else said(cases)))
    return SliceStore((case for case in drawn if case is not None), classes=dataset.classes, ignore=dataset.ignore,
                      target=target, channels=dataset.channels, device=setup.device)


# %%
#| export
@torch.inference_mode()
def validation_loss(
    state: Training,  # its network is asked, in eval mode
    store: SliceStore,  # of held-out patients
) -> float:  # averaged over slices
    "Partial cross-entropy on held-out training patients; each process asks about all slices."
    state.model.eval()
    network, total = state.average or state.model, torch.zeros((), device=store.device)
    for index in torch.arange(len(store)).split(state.config.batch):
        batch = store.batch(index, state.config.size)
        total += partial_cross_entropy(network(batch.image), batch.target, ignore=batch.ignore) * len(index)
    state.model.train()
    return float(total) / len(store)


# %% [markdown]
# ## A step
#
# Run the network, sum the terms. `torch.compile` may fuse the network's layers; that takes a while and pays on a GPU. Where it does not work, the
# layers run one by one. Under [many processes](52_launch.ipynb) `DistributedDataParallel` wraps this module, as the gradients of all that the loss
# touches have to be added up, the attention's similarity included.

# %%
#| export
class Step(nn.Module):
    "From a batch to the loss."

    def __init__(
        self,
        state: Training,  # network, teacher and setup
    ) -> None:
        super().__init__()
        self.model, self.rest = state.model, (state.teacher, state.average, state.setup)  # no parts of this module
        how, device = state.config.compile, state.setup.device
        wanted = how == "on" or (how == "auto" and device.type == "cuda")
        self.network = [torch.compile(state.model) if wanted else state.model]  # in a list: it is no second network

    def forward(
        self,
        batch: Batch,  # of this process
        step: int,  # iterations done so far
    ) -> tuple[Tensor, dict[str, Tensor]]:  # this process's share of the loss, with its graph, and of what is logged
        "The loss of a batch."
        teacher, average, setup = self.rest
        with torch.autocast(batch.image.device.type, setup.precision, enabled=setup.precision is not None):
            logits = _asked(self, batch.seen)
        return setup.objective(LossContext(logits, batch, setup.config, self.model, teacher, average, step,
                                           setup.config.iterations, setup.precision))


# %%
#| export
def _asked(step: Step, image: Tensor) -> Tensor:
    "The network's logits; should its compiled form fail, those of the network as it is, from then on."
    if step.network[0] is step.model:
        return step.model(image)
    try:
        return step.network[0](image)
    except Exception as error:
        warnings.warn(f"torch.compile failed, the network runs uncompiled: {str(error)[:500]}", stacklevel=2)
        step.network[0] = step.model
        return step.model(image)


# %%
#| export
def side_by_side(
    step: Step,  # of this process
    device: torch.device,  # where its network is
) -> nn.Module:  # called as the step is
    "The step itself, or with others that run in other processes: gradients are then averaged over all."
    if world_size() == 1:
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
Watcher = Callable[[Training], object]


# %%
#| export
def _optimise(state: Training, step_of: nn.Module, store: SliceStore, step: int, index: Tensor) -> dict[str, Tensor]:
    "One iteration on the slices `index`; what is to be logged, still on the device."
    config, dataset = state.config, state.setup.dataset
    kind = dataset.augmentation if config.augmentation == "dataset" else config.augmentation
    chance = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    draw = draw_augmentation(len(index), kind, chance, zoom=config.augment_zoom, look=config.augment_look)
    for group in state.optimiser.param_groups:
        group["lr"] = group["initial_lr"] * learning_rate(step, config)
    with shard(len(index)) as part:
        loss, terms = step_of(store.batch(index[part], config.size, draw[part]), step)
        state.optimiser.zero_grad(set_to_none=True)
        (loss * world_size()).backward()  # gradients are averaged; shares are to be summed
    state.optimiser.step()
    if state.average is not None:
        state.average.follow(state.model, step)
    return terms


# %% [markdown]
# Around it: what the method refreshes before an iteration and what follows it after; then the log, and now and then a checkpoint.

# %%
#| export
def continue_training(
    state: Training,  # of `start_training`
    folder: Path | None = None,  # run folder for checkpoint and log; None: nothing is written
    watch: Watcher | None = None,  # called after each row of the log
) -> Training:  # the same, at the last iteration
    """Train a method on the training side of a fold, from the folder's checkpoint if there is one and `resume` says so.

    Raises FloatingPointError when the loss is no number, ValueError when a batch is too small for its processes."""
    setup, config = state.setup, state.config
    store, watchers = _prepared(state, folder, watch)
    step_of = side_by_side(Step(state), setup.device)
    clock = time.perf_counter() - state.seconds
    with Progress(state) as progress:
        for step, index in numbered_batches(len(store), config, state.step):
            if state.pseudo is not None:
                state.pseudo.refresh(state.model, step, setup.precision)
            terms = _optimise(state, step_of, store, step, index)
            if state.teacher is not None:
                state.teacher.follow(state.model, step)  # type: ignore[operator]  # a teacher's method
            state.step, last = step + 1, step + 1 == config.iterations
            if last or state.step % config.log_every == 0:
                state.seconds = time.perf_counter() - clock
                progress.row(terms)
                for watcher in watchers:
                    watcher(state)
            if folder and rank() == 0 and (last or state.step % config.eval_every == 0):
                state.seconds = time.perf_counter() - clock
                state.save(folder / "checkpoint.pt")
                write_log(state.log, folder / "log.csv")
    return state


# %%
#| export
def _prepared(
    state: Training, folder: Path | None, watch: Watcher | None
) -> tuple[SliceStore, list[Watcher]]:
    "Slices to train on, guessed labels, the folder's checkpoint, and who watches."
    config, method = state.config, state.setup.method
    fit, held = training_patients(state.setup.dataset, config)
    store = make_store(state.setup, fit)
    check_batches(len(store), config)
    if method.pseudo:
        with in_turn():
            state.pseudo = method.pseudo(store, state.setup.objective.options, config.size)
    if folder and config.resume and (folder / "checkpoint.pt").is_file():
        state.load(folder / "checkpoint.pt")
    watchers = [watch] if watch and rank() == 0 else []
    return store, watchers + ([Validation(make_store(state.setup, held))] if held else [])


# %%
#| export
def train(
    setup: Setup,  # of `resolve`
    folder: Path | None = None,  # run folder for checkpoint and log; None: nothing is written
    watch: Watcher | None = None,  # called after each row of the log
    weights: Mapping[str, Tensor] | None = None,  # a network's `state_dict` to begin with; None: drawn by the seed
) -> Training:  # at the last iteration
    "`continue_training` from a fresh state. Raises RuntimeError for another network's weights, too."
    return continue_training(start_training(setup, weights), folder, watch)


# %%
#| export
@contextmanager
def in_turn() -> Iterator[None]:
    "Process 0 first, then the others: they find in the cache what it left there."
    if rank():
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


# %%
#| export
def check_batches(
    slices: int,  # to train on
    config: Config,  # the size of a batch
) -> None:
    "Raises ValueError when the smallest batch leaves a process without a slice."
    smallest = min(slices, slices % config.batch or config.batch)
    if smallest < world_size():
        raise ValueError(f"devices: {world_size()} processes, but the last batch of an epoch has {smallest} of "
                         f"{slices} slices (batch: {config.batch}); choose another batch")


# %%
#| export
def numbered_batches(
    slices: int,  # to train on
    config: Config,  # batch, iterations and seed
    done: int,  # iterations that were done before
) -> Iterator[tuple[int, Tensor]]:  # number of the iteration, [batch] int64 slices
    "The batches from iteration `done` on: the same whether or not the run was cut."
    order = batches(slices, config.batch, torch.Generator().manual_seed(config.seed))
    return zip(range(done, config.iterations), islice(order, done, None), strict=False)


# %%
#| export
class Validation:
    "Keeps the weights with the lowest loss on held-out training patients' targets."

    def __init__(
        self,
        store: SliceStore,  # of the held-out patients
    ) -> None:
        self.store = store

    def __call__(self, state: Training) -> None:
        if state.step % state.config.eval_every and state.step != state.config.iterations:
            return
        loss = validation_loss(state, self.store)
        state.log[-1]["validation"] = loss
        if not state.best or loss < state.best["loss"]:
            tested = state.average.network if state.average else state.model
            weights = {name: value.detach().clone() for name, value in tested.state_dict().items()}
            state.best = {"step": state.step, "loss": loss, "model": weights}


# %%
#| export
class Progress:
    "A bar with every loss term and the time left; rows of the log; the check that the loss is a number."

    def __init__(
        self,
        state: Training,  # whose log gets the rows
    ) -> None:
        self.state = state

    def __enter__(self) -> "Progress":
        config = self.state.config
        shown = {"total": config.iterations, "initial": self.state.step, "desc": f"{config.method} on {config.dataset}"}
        self.bar = tqdm(**shown, mininterval=1.0, disable=world_size() > 1)
        self.terminal_bar = terminal_bar(**shown)
        return self

    def row(
        self,
        terms: dict[str, Tensor],  # name → [] on the device: this process's share
    ) -> None:
        "Log the terms: the shares of all processes together."
        values, state = _read_terms(terms, self.state.step), self.state
        rate = state.optimiser.param_groups[0]["lr"]
        self.show({"step": state.step, "seconds": state.seconds, "lr": rate, **values})

    def show(
        self,
        row: dict[str, float],  # step, seconds, lr and the terms
    ) -> None:
        "Append a row to the log and move the bar."
        self.state.log.append(row)
        shown = {name: f"{value:.3g}" for name, value in row.items() if name not in ("step", "seconds", "lr")}
        self.bar.set_postfix(shown, refresh=False)
        self.terminal_bar.set_postfix(loss=shown["loss"], refresh=False)
        for bar in (self.bar, self.terminal_bar):
            bar.update(row["step"] - bar.n)

    def __exit__(self, *problem: object) -> None:
        self.bar.close()
        self.terminal_bar.refresh()  # or a run of half a second would never show its loss
        self.terminal_bar.close()


# %%
#| export
def _read_terms(terms: dict[str, Tensor], step: int) -> dict[str, float]:
    "The terms of a batch, read from the device in one transfer. Raises FloatingPointError when the loss is no number."
    shares = all_reduce(torch.stack([t.float() for t in terms.values()]))
    values = dict(zip(terms, shares.tolist(), strict=True))
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(f"iteration {step}: the loss is {values['loss']}; terms: {values}")
    return values


# %%
#| export
def write_log(
    rows: list[dict[str, float]],  # one every `log_every` iterations
    path: Path,  # *.csv, replaced whole
) -> None:
    "The log as CSV."
    write_atomic(path, partial(pd.DataFrame(rows).to_csv, index=False))


# %% [markdown]
# ## The loop on many devices
#
# The notebook that asks for `devices=8` starts eight processes and listens: rows of the log arrive as lines, all else is printed as it comes. What they leave
# behind is the checkpoint.

# %%
#| export
ROW = "row of the log: "


def say_row(
    state: Training,  # with a row in its log
) -> None:
    "Print the newest row of the log as a line."
    print(ROW + json.dumps(state.log[-1]), flush=True)


# %%
#| export
def train_part(
    folder: str,  # run folder with config.json
) -> None:
    "What each of several processes does: `train`, as one of a group."
    config = Config(**json.loads((Path(folder) / "config.json").read_text()))
    with process_group(config.device):
        train(resolve(config), Path(folder), say_row)


# %%
#| export
def train_in_processes(
    state: Training,  # of `start_training`; gets what the processes have learnt
    folder: Path,  # run folder; config.json is there
    watch: Watcher | None = None,  # called after each row of the log
) -> Training:  # the same, at the last iteration
    """`train` in `config.devices` fresh processes on this machine.

    Raises ValueError for want of GPUs, RuntimeError when a process fails."""
    wanted, there = state.config.devices, torch.cuda.device_count()
    if state.setup.device.type == "cuda" and wanted > there:
        raise ValueError(f"devices: found {wanted}, expected at most {there}, as there are GPUs; device=cpu trains "
                         "without them")
    code = (f"import os, sys; from {train_part.__module__} import train_part; train_part(sys.argv[1])\n"
            "sys.stdout.flush(); sys.stderr.flush(); os._exit(0)")  # at an ordinary exit PyTorch's threads may abort
    with Progress(state) as progress:
        for line in launch(wanted, code, str(folder)):
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


# %%
#| export
def plot_curves(
    log: list[dict[str, float]],  # rows of a training's log
    figure: Figure | None = None,  # draw into this one
) -> Figure:  # a panel for each group of curves that the log has
    "Learning curves: every term, the mean and spread of S with its weight and bias, the learning rate."
    table = pd.DataFrame(log).set_index("step")
    shown = {title: [name for name in names if name in table] for title, names in PANELS.items()}
    shown = {title: names for title, names in shown.items() if names}
    figure = figure or plt.figure(figsize=(3.1 * len(shown), 2.6), layout="constrained")
    figure.clear()
    for axis, (title, names) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        _draw_curves(axis, table[names], title)
    return figure


# %%
#| export
def _draw_curves(axis: Axes, table: pd.DataFrame, title: str) -> None:
    "The columns of a table as curves over the iterations."
    for name, column in table.items():
        axis.plot(column.dropna(), label=name, linewidth=1, marker="o" if name == "validation" else None)
    axis.set(title=title, xlabel="iteration")
    if title == "losses" and (table.min() > 0).all():
        axis.set_yscale("log")
    axis.legend(fontsize=7)


# %%
#| export
class LiveCurves:
    "Curves that redraw themselves in the notebook while training goes on."

    def __init__(
        self,
        every_s: float = 20.0,  # least seconds between two drawings
    ) -> None:
        self.every_s, self.drawn_at = every_s, 0.0
        self.handle: Any = None
        self.figure: Figure | None = None

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
tiny = Config(iterations=100, batch=4, size=48, log_every=5, asl_radius=1, asl_sigma_xy=1.1, precision="float32")
dataset = phantom(patients=5, side=48, slices=4)
state = train(resolve(tiny, dataset))
seg = [row["seg"] for row in state.log]
assert sum(seg[-4:]) < 0.8 * sum(seg[:4])
plot_curves(state.log);


# %% [markdown]
# ## Check: an interrupted run gives the same weights
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
        train(resolve(often, dataset), Path(folder), watch=interrupt)
    except KeyboardInterrupt:
        resumed = train(resolve(often, dataset), Path(folder))
for name, value in state.model.state_dict().items():
    torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)


# %% [markdown]
# ## How much is one step?
#
# The time of a step on this machine, by precision. What the numbers mean for you depends on your processor.

# %%
def step_seconds(precision, count=8):
    "Seconds a step of `ours` at 128², batch 8."
    config = Config(iterations=count + 2, batch=8, size=128, log_every=1, precision=precision,
                              asl_radius=2, asl_sigma_xy=3.0)
    rows = train(resolve(config, dataset)).log
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
        train(resolve(tiny, dataset), watch=make(bound=1.2))
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
# Exported: `train`, `Training`, `read_checkpoint`, `plot_curves`, `LiveCurves`. The next chapter turns the network's slices
# back into [a scan's mask](54_inference.ipynb).
