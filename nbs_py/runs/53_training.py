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
import copy
import errno
import hashlib
import json
import math
import os
import random
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

# %%
#| export
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field
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
from attenscribble.data.folder import class_without_strokes, drawn_slices, said
from attenscribble.data.scans import Case, Dataset, content_changes
from attenscribble.data.scribbles import count_strokes

# %%
#| export
from attenscribble.method.objective import LossContext, attention_of
from attenscribble.method.other_networks import build_network
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.runs.config import Config, check_trust, current_names
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
    learnt: dict[str, int] = field(default_factory=dict)  # patients, scans, slices and strokes that are trained on
    lines: list[str] = field(default_factory=list, repr=False)  # the rows of the log as text, as far as they were saved

    @property
    def config(self) -> Config:
        "The settings of the run."
        return self.setup.config

    def save(
        self,
        path: Path,  # of the checkpoint
    ) -> None:
        """Write a checkpoint; the old one stays whole until the new one is.

        Raises FloatingPointError, and writes nothing, for what is not finite; OSError where there is no room."""
        content = _content(self)
        if fault := not_finite(content):
            raise FloatingPointError(f"iteration {self.step}: found NaN or infinity in {fault}, expected numbers: "
                                     f"{_DIVERGED}; no checkpoint is written, an earlier one stays")
        _write(content, path)

    def load(
        self,
        path: Path,  # of the checkpoint
    ) -> None:
        """Go on from a checkpoint. Raises ValueError when it belongs to other settings, DataError for what is none, is
        damaged, or holds what is not finite."""
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
               "seconds": state.seconds, "best": state.best, "log": _log_text(state), "learnt": state.learnt,
               "content": state.setup.content,
               "random": {"torch": torch.get_rng_state(), "cuda": cuda}}
    content |= {name: part.state_dict() for name, part in _companions(state).items()}
    return content | {"seal": _seal(content)}


# %% [markdown]
# zip's checksums find what a disk has changed. A seal over all that is no tensor finds what was edited and packed again, such as another number of
# iterations.

# %%
#| export
def _log_text(state: Training) -> str:
    "The log as JSON, a line a row. Saving turns new rows into text, and the last, which validation may have added to."
    del state.lines[max(0, min(len(state.lines), len(state.log)) - 1):]
    state.lines += [json.dumps(row) for row in state.log[len(state.lines):]]
    return "\n".join(state.lines)


def _log_rows(text: str | list[dict[str, float]]) -> list[dict[str, float]]:
    "The rows of a log as a checkpoint has it; before 0.2 it had the rows themselves."
    return [json.loads(line) for line in text.splitlines()] if isinstance(text, str) else text


# %%
#| export
def _seal(content: Mapping[str, Any]) -> str:
    "A hash of everything in a checkpoint but the numbers in its tensors; of those their shapes and types."
    def plain(part: Any) -> Any:
        if isinstance(part, Tensor):
            return [str(part.dtype), list(part.shape)]
        if isinstance(part, Mapping):
            return [[str(name), plain(value)] for name, value in part.items()]
        return [plain(value) for value in part] if isinstance(part, (list, tuple)) else repr(part)

    inside = {name: plain(part) for name, part in content.items() if name != "seal"}
    return hashlib.sha256(json.dumps(inside, sort_keys=True).encode()).hexdigest()[:16]


# %%
#| export
_DIVERGED = "the training has diverged; a lower lr or precision=float32 may help"


def _write(content: dict[str, Any], path: Path) -> None:
    "A checkpoint's file. Raises OSError, naming file and room, where it cannot be written."
    try:
        write_atomic(path, partial(torch.save, content))
    except (OSError, RuntimeError) as error:  # RuntimeError: PyTorch's own writer
        why = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0
        raise OSError(getattr(error, "errno", None) or errno.EIO, f"not written ({why}; {free:,.0f} MiB free); an "
                      "earlier checkpoint stays, the same command goes on from it", str(path)) from error


# %%
#| export
def checkpoint_bytes(
    state: Training,  # at any iteration
) -> int:  # without guessed labels that are not there yet
    "How large its checkpoint is, in about."
    return sum(tensor.nbytes for _, tensor in _tensors(_content(state)))


# %% [markdown]
# ### Never keep what is not finite
#
# One NaN among the weights makes every later answer NaN, and a run that has saved it cannot go on. So nothing is saved before all of it is known to be
# finite: weights, momentum, teacher, average, and the validated best.

# %%
#| export
def not_finite(
    content: Any,  # a tensor, or dictionaries and lists with tensors in them
) -> str:  # where it is, such as "model: head.weight"; empty where all is finite
    "The first tensor that holds NaN or infinity. Asks each device once."
    found = [(name, tensor) for name, tensor in _tensors(content) if tensor.is_floating_point() and tensor.numel()]
    for device in dict.fromkeys(tensor.device for _, tensor in found):
        here = [(name, tensor) for name, tensor in found if tensor.device == device]
        finite = torch.stack([tensor.detach().isfinite().all() for _, tensor in here]).tolist()
        if not all(finite):
            return here[finite.index(False)][0]
    return ""


# %%
#| export
def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    "The tensors in something, with the names that lead to them."
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}: {key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for key, value in enumerate(content):
            yield from _tensors(value, f"{name}: {key}")


# %%
kept = {"model": {"head.weight": torch.ones(2)}, "best": {"loss": 0.1, "model": [torch.tensor([1.0, float("inf")])]}}
assert not_finite(kept) == "best: model: 0" and not_finite(kept["model"]) == ""

# %% [markdown]
# ### What is read back
#
# A checkpoint is a zip with a checksum for each of its members. PyTorch does not look at them: a flipped bit would be trained on. Checking all of them
# takes a fraction of a second for a file of 20 MB.

# %%
#| export
_WHOLE = ("checkpoint.pt of a run folder, whole; put back a copy, or train anew with resume=false")


def _check_zip(path: Path | str) -> None:
    "Raise DataError for a zip with a member that is not what was written; another error for no zip."
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise DataError(path, f"damage in {damaged}: its checksum differs", _WHOLE)


# %% [markdown]
# What is not a tensor is looked at by its type: a checkpoint that somebody edited by hand is refused, not believed.

# %%
#| export
class _Plain(BaseModel):
    "What a checkpoint says of the run."

    model_config = ConfigDict(strict=True)
    step: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    log: list[dict[str, float]] = []


# %%
#| export
class _Facts(BaseModel):
    "What a checkpoint says of its dataset; nothing, if it knows none."

    model_config = ConfigDict(strict=True)
    name: str = ""
    class_names: list[str] | tuple[str, ...] = ()
    channels: int = Field(1, ge=1)
    augmentation: Literal["acdc", "chaos", "none"] = "none"
    values: list[int] | tuple[int, ...] = ()
    reading: dict[str, Any] = {}
    version: str = ""


# %%
#| export
def read_checkpoint(
    path: Path | str,  # of a checkpoint
    device: torch.device | str = "cpu",  # where its tensors go
    trust: str | Sequence[str] = (),  # modules that may be run if it names them, as `check_trust`
) -> dict[str, Any]:  # everything in it; "config" as a `Config`, "dataset" the dataset's facts, {} if it knows none
    """A checkpoint's content, its checksums verified.

    Raises DataError for what is no checkpoint, damaged, or unknown, and for one that names code nobody trusts."""
    try:
        _check_zip(path)
        content = torch.load(path, map_location=device, weights_only=True, mmap=True)  # tensors are read when used
        config, model = dict(content["config"]), dict(content["model"])
        facts, best = dict(content.get("dataset", {})), dict(content.get("best", {}))
        known = (model, best["model"] if best else {}, content.get("average", {}))
        if not all(isinstance(weight, Tensor) for part in known for weight in part.values()):
            raise TypeError("weights")
        seal = _seal(content)
        if "log" in content:
            content["log"] = _log_rows(content["log"])
        _Plain(**content)
        _Facts(**facts)
        if content.get("seal", seal) != seal:
            raise DataError(path, "parts that do not belong together: it was edited", _WHOLE)
    except DataError:
        raise
    except Exception as error:  # whatever zip, pickle and PyTorch raise for bytes that are no checkpoint
        raise DataError(path, f"no checkpoint ({type(error).__name__})", _WHOLE) from error
    check_trust(path, current_names(config), trust)
    return content | {"config": _settings_in(config, path), "dataset": facts, "best": best}


# %%
#| export
def _of_run(state: "Training", path: Path) -> dict[str, Any]:
    "The content of a run's own checkpoint: the modules that its user has named are known."
    return read_checkpoint(path, state.setup.device, [state.config.method, state.config.net_name])


# %%
#| export
def _settings_in(config: dict[str, Any], path: Path | str) -> Config:
    "The settings of a checkpoint. Raises DataError for those of another version."
    try:
        return Config(**current_names(config))
    except (ValueError, TypeError) as error:
        found = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise DataError(path, f"settings that this version does not take ({found})",
                        "a checkpoint of this version; train anew with resume=false") from error


# %%
#| export
def fill(
    module: nn.Module,  # a network; gets the weights
    weights: Mapping[str, Tensor],  # a `state_dict`
    path: Path | str,  # of the checkpoint they come from, for messages
) -> None:
    "Load weights. Raises DataError for those of another network, and for some that are not finite."
    if fault := not_finite(weights):
        raise DataError(path, f"NaN or infinity in {fault}", f"numbers: {_DIVERGED}: train anew with resume=false")
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise DataError(path, f"weights of another network ({' '.join(lines[1:3]) or lines[0]})", _WHOLE) from error


# %%
#| export
def _restore(state: Training, path: Path) -> None:
    "Go on from a checkpoint. Raises ValueError when it belongs to other settings or other data."
    content = _of_run(state, path)
    if (found := content["config"].run_id) != state.config.run_id:
        raise ValueError(f"{path}: found a checkpoint of {found}, expected {state.config.run_id}")
    _check_content(state, path, content)
    if fault := not_finite(content):
        raise DataError(path, f"NaN or infinity in {fault}", f"numbers: {_DIVERGED}, with resume=false it starts anew")
    try:
        _take(state, content, path)
    except DataError:
        raise
    except Exception as error:  # a part that is missing, or of another form
        raise DataError(path, f"no checkpoint of this method ({type(error).__name__}: {error})", _WHOLE) from error


# %%
#| export
def _take(state: Training, content: dict[str, Any], path: Path) -> None:
    "What a checkpoint holds becomes the state."
    device = state.setup.device
    fill(state.model, content["model"], path)
    state.optimiser.load_state_dict(content["optimiser"])
    for name, part in _companions(state).items():
        part.load_state_dict(content[name])
    state.step, state.seconds, state.best, state.log = (content[k] for k in ("step", "seconds", "best", "log"))
    state.learnt, state.lines = content.get("learnt", {}), []
    torch.set_rng_state(content["random"]["torch"].cpu())
    if content["random"]["cuda"] is not None:
        torch.cuda.set_rng_state(content["random"]["cuda"].cpu(), device)


# %% [markdown]
# A checkpoint knows the hashes of the data that it was trained on and that the run tests. Where these have changed, going
# on would mix two trainings; the refusal says what it is. (A folder of your own has its hash in the run's name, so there
# a change begins a new run.)

# %%
#| export
def check_same_data(
    state: Training,  # that is to go on
    path: Path,  # of its checkpoint
) -> None:
    "Raises ValueError, saying what has changed, for a checkpoint of other data, DataError for what is none."
    _check_content(state, path, _of_run(state, path))


# %%
#| export
def _check_content(state: Training, path: Path, content: Mapping[str, Any]) -> None:
    "Raise ValueError, saying what has changed, where a checkpoint belongs to other data; one of 0.1 knows none."
    if "content" in content:
        changes = content_changes(content["content"], state.setup.content)
    else:
        versions = {facts.get("version", "") for facts in (content["dataset"], state.setup.dataset.facts())}
        changes = "it" if len(versions) > 1 and content["dataset"] else ""
    if changes:
        raise ValueError(f"{path}: the data has changed since this checkpoint: {changes}; resume=false trains anew, "
                         "and output=… keeps this run beside the new one")


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
    learnt: "Learnt | None" = None,  # gets what is learnt from
) -> SliceStore:  # of the slices that somebody drew on
    """All slices of some patients on the device, with the target that the method learns from.

    In a user's own folder a scan of theirs may lack it, and is left out; elsewhere it is refused. Raises DataError
    where all lack it, with the method that learns from what is there instead."""
    dataset, target = setup.dataset, setup.method.target
    learnt = Learnt() if learnt is None else learnt

    def drawn() -> Iterator[Case]:
        cases = _all_readable(dataset, patients)
        for case in cases if rank() else said(cases):
            used = drawn_slices(case, target, dataset.ignore, may_lack=bool(dataset.version))
            learnt.add(used, target, dataset)
            learnt.other |= getattr(case, _OTHER[target]) is not None
            if used is not None:
                yield used
        if not learnt.scans:
            raise _nothing_to_learn(setup, learnt, len(patients))

    return SliceStore(drawn(), classes=dataset.classes, ignore=dataset.ignore, target=target,
                      channels=dataset.channels, device=setup.device)


# %%
#| export
_OTHER = {"scribble": "label", "label": "scribble"}
_CURE = {"scribble": "method=ours learns from scribbles", "label": "method=fully learns from labels"}


def _nothing_to_learn(setup: Setup, learnt: "Learnt", patients: int) -> DataError:
    "The fault of patients none of whom has the target of the method."
    target = setup.method.target
    there, cure = (f" but {_OTHER[target]}s", f"; {_CURE[_OTHER[target]]}") if learnt.other else ("", "")
    return DataError(f"{setup.dataset.name}: fold {setup.config.fold}", f"no {target}s{there} on the {patients} "
                     f"patient{'s' * (patients != 1)} trained on", f"{target}s, which method={setup.config.method} "
                     f"learns from{cure}")


# %%
#| export
@dataclass
class Learnt:
    "What a training learns from, counted while it is read."

    patients: set[str] = field(default_factory=set)
    classes: set[int] = field(default_factory=set)  # ids that the target shows
    found: int = 0  # scans of the patients that are trained on
    scans: int = 0  # of them those with a target
    slices: int = 0
    strokes: int = 0  # none where dense labels are learnt from
    other: bool = False  # whether some scan has the kind of mask that is not learnt from

    def add(
        self,
        case: Case | None,  # the slices of a scan that are learnt from, of `drawn_slices`
        target: str,  # "scribble" or "label"
        dataset: Dataset,  # whose case it is
    ) -> None:
        "Count a scan."
        self.found += 1
        mask = getattr(case, target, None)
        if case is None or mask is None:
            return
        self.patients.add(case.patient)
        self.classes |= set(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[:dataset.classes]).tolist())
        self.scans, self.slices = self.scans + 1, self.slices + len(mask)
        self.strokes += count_strokes(mask, dataset.ignore) if target == "scribble" else 0

    def numbers(self) -> dict[str, int]:
        "The counts, for a checkpoint and a result."
        return {"patients": len(self.patients), "scans": self.scans, "slices": self.slices, "strokes": self.strokes}


# %%
#| export
def in_words(
    learnt: Mapping[str, int],  # patients, scans, slices, strokes
) -> str:  # such as "64 strokes on 18 slices of 5 scans of 4 patients"
    "What a training learns from."
    def some(count: int, name: str) -> str:
        return f"{count} {name}{'s' * (count != 1)}"

    begin = some(learnt["strokes"], "stroke") if learnt["strokes"] else "the dense labels"
    return f"{begin} on {' of '.join(some(learnt[f'{name}s'], name) for name in ('slice', 'scan', 'patient'))}"


assert in_words({"strokes": 64, "slices": 18, "scans": 5, "patients": 1}) == (
    "64 strokes on 18 slices of 5 scans of 1 patient")


# %% [markdown]
# A class that nobody drew where the run trains is refused in a folder of your own, by the rule that the check and the
# export to nnU-Net ask, too. The classes of a published dataset are fixed; who has a part of it is told.

# %%
#| export
def _check_learnt(state: Training, learnt: Learnt, fit: tuple[str, ...], say: bool) -> None:
    "Say what is learnt from, with remarks. Raises DataError for a class without strokes in a user's own folder."
    setup, target = state.setup, state.setup.method.target
    fault = class_without_strokes(setup.dataset, setup.config.fold, target, learnt.classes)
    if fault and setup.dataset.version:
        raise fault
    lines = [f"learns from {in_words(learnt.numbers())}"]
    if learnt.scans < learnt.found:
        lines.append(f"{learnt.found - learnt.scans} of these patients' {learnt.found} scans have no {target} and are "
                     "not learnt from")
    if len(fit) == 1:
        lines.append("remark: one patient only, so it may learn what is special about this one")
    if fault:
        lines.append(f"remark: {fault}")
    for line in lines if say else ():
        print(f"{setup.config.run_id}: {line}", file=sys.stderr, flush=True)


# %% [markdown]
# The network sees slices of its own size, and a resize by nearest neighbour skips rows and columns: strokes of one pixel may be lost in it. So the
# classes are counted there, too. If nothing is left, or a class of your own folder is not, the run is refused; a class that is left on fewer than half
# of the slices on which it was drawn gets a remark.

# %%
#| export
def _check_at_size(state: Training, store: SliceStore, say: bool) -> None:
    """Say which classes the resize to the network's size loses. Raises DataError for all, or one of a user's own.

    Dense labels may lose a small organ on some slices."""
    dataset = state.setup.dataset
    before, after = store.shown, store.shown_at(state.config.size)
    if not after.any():
        raise _lost_at_size(state, store, "all classes", int(before.any(1).sum()), 0)
    counts = zip(dataset.class_names, before.sum(0).tolist(), after.sum(0).tolist(), strict=True)
    parts = [(_lost_at_size(state, store, repr(name), there, left), left) for name, there, left in counts
             if 2 * left < there]
    if dataset.version:
        raise_all([fault for fault, left in parts if not left])
    for line in [f"remark: {fault}" for fault, left in parts if store.target == "scribble" or not left] if say else ():
        print(f"{state.config.run_id}: {line}", file=sys.stderr, flush=True)


# %%
#| export
def _lost_at_size(state: Training, store: SliceStore, what: str, there: int, left: int) -> DataError:
    "What a resize leaves of so many slices, and at which size, or with which strokes, it would lose nothing."
    size = state.config.size
    wide, whole = math.ceil((store.side - 1) / (size - 1)), math.ceil(store.side / 16) * 16
    strokes = f", or strokes {wide} pixels wide" if store.target == "scribble" else ""
    return DataError(f"{state.setup.dataset.name}: fold {state.config.fold}",
                     f"{store.target}s of {what} on {there} slice{'s' * (there != 1)}, at the network's size={size} on "
                     f"{left or 'none'} of them", f"a larger size (size={whole} loses nothing){strokes}")


# %%
#| export
def _all_readable(dataset: Dataset, patients: Iterable[str]) -> Iterator[Case]:
    "The cases of some patients. Raises one DataError for all that cannot be read, once each was tried."
    faults: list[DataError] = []
    for patient in patients:
        try:
            cases = list(dataset.cases([patient]))
        except DataError as error:
            faults.append(error)
        else:
            yield from () if faults else cases
    raise_all(faults)


# %%
#| export
def raise_all(
    faults: Sequence[DataError],  # of several files; may be none
) -> None:
    "Raise one DataError for several: a line for each of the first twenty."
    if len(faults) == 1:
        raise faults[0]
    if faults:
        more = [f"… and {len(faults) - 20} more"] if len(faults) > 20 else []
        lines = "\n  ".join([*map(str, faults[:20]), *more])
        raise DataError(f"{len(faults)} faults in the data:\n  {lines}")


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
# after. Everything else watches. Values are read from the device only when a row of the log or a checkpoint is due, so the loop never waits for a print;
# then all losses since the last time are looked at, and the first that is no number stops the run before anything is saved. Of several processes,
# number 0 writes.

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

    Raises FloatingPointError, naming iteration and slices, when the loss or a weight is no number; ValueError when a
    batch is too small for its processes or for the network's batch norm; DataError for all files that cannot be read.
    """
    setup, config = state.setup, state.config
    store, watchers = _prepared(state, folder, watch)
    written = LogFile()
    step_of, recent = side_by_side(Step(state), setup.device), Recent(store.names)
    clock = time.perf_counter() - state.seconds
    with Progress(state) as progress:
        for step, index in numbered_batches(len(store), config, state.step):
            if state.pseudo is not None:
                state.pseudo.refresh(state.model, step, setup.precision)
            terms = _optimise(state, step_of, store, step, index)
            if state.teacher is not None:
                state.teacher.follow(state.model, step)  # type: ignore[operator]  # a teacher's method
            state.step, last = step + 1, step + 1 == config.iterations
            recent.add(state.step, index, terms)
            due, saving = (last or state.step % every == 0 for every in (config.log_every, config.eval_every))
            if due or saving:
                values = recent.read()
                state.seconds = time.perf_counter() - clock
            if saving and (fault := not_finite(_learnt(state))):
                raise FloatingPointError(f"iteration {state.step}: found NaN or infinity in {fault} after a step on "
                                         f"{recent.names_of(index)}, expected numbers: {_DIVERGED}")
            if due:
                progress.row(values)
                for watcher in watchers:
                    watcher(state)
            if folder and rank() == 0 and saving:
                state.save(folder / "checkpoint.pt")
                written.write(state.log, folder / "log.csv")
    return state


# %%
#| export
def _learnt(state: Training) -> dict[str, Any]:
    "What a step may have changed."
    parts: dict[str, Any] = {"model": state.model, "optimiser": state.optimiser, **_companions(state)}
    return {name: part.state_dict() for name, part in parts.items()}


# %%
#| export
def _prepared(
    state: Training, folder: Path | None, watch: Watcher | None
) -> tuple[SliceStore, list[Watcher]]:
    "Slices to train on, guessed labels, the folder's checkpoint, and who watches."
    config, method = state.config, state.setup.method
    fit, held = training_patients(state.setup.dataset, config)
    if folder:
        _ = state.setup.content  # asked now: of the files as they are when they are read
    store = make_store(state.setup, fit, learnt := Learnt())
    if folder:
        _check_learnt(state, learnt, fit, rank() == 0)
    state.learnt = learnt.numbers()
    check_batches(len(store), config)
    if method.pseudo:
        with in_turn():
            state.pseudo = method.pseudo(store, state.setup.objective.options, config.size)
    _check_at_size(state, store, bool(folder) and rank() == 0)
    check_lone_slices(state, store)
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


# %% [markdown]
# Batch norm needs two values for each channel. A batch of one slice has them, unless the network shrinks it to a single cell: the U-Net does at a size
# of 16, networks with global pooling at any size. Then the run is refused before its first step. (Leaving the lone slice out would change what an epoch
# is without a word.)

# %%
#| export
def check_lone_slices(
    state: Training,  # at its start, with its guessed labels
    store: SliceStore,  # of all slices to train on
) -> None:
    "Raises ValueError when some batch is one slice and the network's batch norm cannot work on one."
    slices, config = len(store), state.config
    last = min(slices, slices % config.batch or config.batch)  # slices in the last batch of an epoch
    ends_with_one = last == 1 and (config.batch == 1 or config.iterations >= math.ceil(slices / config.batch))
    if not (ends_with_one or getattr(state.pseudo, "batch", 0) == 1) or world_size() > 1:
        return
    device, side = state.setup.device, config.size
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            copy.deepcopy(state.model).train()(torch.zeros(1, store.channels, side, side, device=device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        found = f"1 of {slices} slices in the last batch of an epoch" if ends_with_one else "1 for the guessed labels"
        raise ValueError(f"batch: found {found} at size {side}, where the network has maps of a single cell and batch "
                         "norm needs two values, expected another batch or a larger size") from None


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
        if not math.isfinite(loss):  # no later one would be below it
            raise FloatingPointError(f"iteration {state.step}: the validation loss is {loss}, expected a number: "
                                     f"{_DIVERGED}")
        state.log[-1]["validation"] = loss
        if not state.best or loss < state.best["loss"]:
            tested = state.average.network if state.average else state.model
            weights = {name: value.detach().clone() for name, value in tested.state_dict().items()}
            state.best = {"step": state.step, "loss": loss, "model": weights}


# %%
#| export
class Progress:
    "A bar with every loss term and the time left; rows of the log."

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
        values: dict[str, float],  # the loss terms, of `Recent.read`
    ) -> None:
        "Log the terms."
        state = self.state
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
class Recent:
    "The losses since they were last looked at, still on the device, and the slices of each batch."

    def __init__(
        self,
        names: Sequence[str],  # of the slices in the store
    ) -> None:
        self.names, self.terms = names, dict[str, Tensor]()
        self.kept: list[tuple[int, Tensor, Tensor]] = []  # iteration, slices, this process's share of the loss

    def add(
        self,
        step: int,  # number of the iteration
        index: Tensor,  # [N] int64, its slices
        terms: dict[str, Tensor],  # name → [] on the device: this process's share
    ) -> None:
        "Keep what an iteration gave; nothing is read."
        self.terms = terms
        self.kept.append((step, index, terms["loss"]))

    def names_of(
        self,
        index: Tensor,  # [N] int64, some slices
    ) -> str:  # their names
        "The slices of a batch, for a message."
        return ", ".join(self.names[number] for number in index.tolist())

    def read(self) -> dict[str, float]:  # the terms of the last batch, over all processes
        "One transfer from the device. Raises FloatingPointError, with its slices, at the first loss that is no number."
        return _read_recent(self)


# %%
#| export
def _read_recent(recent: Recent) -> dict[str, float]:
    "The terms of the last batch, once all losses are known to be numbers."
    kept, recent.kept = recent.kept, []
    shares = (all_reduce(torch.stack([t.float() for t in terms]))
              for terms in (recent.terms.values(), [loss for *_, loss in kept]))
    numbers = torch.cat(list(shares)).tolist()
    values, losses = dict(zip(recent.terms, numbers, strict=False)), numbers[len(recent.terms):]
    for (step, index, _), loss in zip(kept, losses, strict=True):
        if not math.isfinite(loss):
            terms = f"; terms: {values}" if step == kept[-1][0] else ""
            raise FloatingPointError(f"iteration {step}: the loss is {loss} on {recent.names_of(index)}, expected a "
                                     f"number: {_DIVERGED}{terms}")
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
# A long run has a long log. Written whole at each save it would slow the run down a little more each time, so only the new rows are added.

# %%
#| export
def _append(path: Path, text: str) -> None:
    "Add text to a file; where that fails, as on a full disk, the file is as before."
    before = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(text.encode())
    except OSError:
        os.truncate(path, before)
        raise


# %%
#| export
@dataclass
class LogFile:
    "A log on the disk, as far as this process has written it."

    rows: int = 0  # in the file
    columns: list[str] = field(default_factory=list)  # of the file
    last: dict[str, float] = field(default_factory=dict)  # its last row

    def write(
        self,
        rows: list[dict[str, float]],  # of the whole log
        path: Path,  # *.csv, the same each time
    ) -> None:
        "Bring the file up to the log: add its new rows, or write it whole where other rows or columns have changed."
        fresh = rows[self.rows:]
        columns = [*dict.fromkeys(chain(self.columns, *fresh))]
        if self.rows and columns == self.columns and rows[self.rows - 1] == self.last and path.is_file():
            _append(path, pd.DataFrame(fresh, columns=columns).to_csv(header=False, index=False))
        else:
            write_log(rows, path)
        self.rows, self.columns, self.last = len(rows), columns, dict(rows[-1]) if rows else {}


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
    if state.config.resume and (folder / "checkpoint.pt").is_file():
        state.load(folder / "checkpoint.pt")  # what cannot be gone on from is said here, before any process starts
    code = (f"import os, sys; from {train_part.__module__} import train_part; train_part(sys.argv[1])\n"
            "sys.stdout.flush(); sys.stderr.flush(); os._exit(0)")  # at an ordinary exit PyTorch's threads may abort
    with Progress(state) as progress:
        for line in launch(wanted, code, str(folder)):
            if not line.startswith(ROW):
                print(line, file=sys.stderr)
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
