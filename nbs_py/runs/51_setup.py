# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Setup
#
# > A configuration, resolved once into what a run needs.
#
# Settings are words and numbers, and a run needs things: the data, the method's losses, a device, a number format. If every function looked
# them up again, two of them could find different things. So they are looked up once, here, and handed on together.

# %%
#| default_exp runs.setup

# %%
#| export
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from attenscribble.basics.errors import DataError, one_of
from attenscribble.data.datasets import SOURCES, open_dataset
from attenscribble.data.scans import Content, Dataset, content_of
from attenscribble.method.objective import Method, Objective
from attenscribble.runs.config import Config, method_and_terms, usable_device

# %%
from attenscribble.basics.checking import exercise
from attenscribble.data.phantom import phantom


# %% [markdown]
# ## Device and precision
#
# bfloat16 keeps float32's range and gives up digits; convolutions run in it, losses are summed in float32. It pays where the processor
# has instructions for it.

# %%
#| export
def choose_device(
    name: str = "auto",  # auto, cpu, cuda, cuda:1, …
) -> torch.device:  # `auto`: the first CUDA device, else the CPU
    "The device to compute on. Raises ValueError for a name of none, and for one that this machine lacks."
    usable_device(name)
    if name == "auto":
        name = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


# %%
#| export
def choose_precision(
    name: str,  # auto, float32, bfloat16
    device: torch.device,  # where the convolutions run
) -> torch.dtype | None:  # the autocast type; None = plain float32
    "`auto`: bfloat16 where the hardware multiplies it natively, else float32."
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and native) else None


# %%
cpu = choose_device("cpu")
assert choose_precision("float32", cpu) is None and choose_precision("bfloat16", cpu) is torch.bfloat16
print(f"auto means {choose_device()}, {choose_precision('auto', choose_device()) or torch.float32} here")


# %% [markdown]
# ## All of it
#
# A loader may choose by itself what was left open, such as the sequence of CHAOS that is at hand. What it chose belongs to the settings that
# the run is named by; what was given stays.

# %%
#| export
@dataclass(frozen=True, eq=False)
class Setup:
    "What a run needs, looked up once."

    config: Config  # the loader's own choices filled in
    dataset: Dataset
    method: Method
    objective: Objective  # the method's terms with the run's weights and starts
    device: torch.device
    precision: torch.dtype | None  # autocast type of the network; None: plain float32

    @cached_property
    def content(self) -> Content:
        "What the fold trains on and tests, as hashes, when it was first asked for."
        return content_of(self.dataset, self.config.fold)


# %% [markdown]
# To choose between settings by the scores of the test fold would be to learn from it. `hold_out` names patients of the training side that are tested
# in its place: `"patient021..patient040"` or `"chaos33, chaos34"`. The fold's own test patients are not opened then.

# %%
#| export
def with_held_out(
    dataset: Dataset,  # with the fold
    fold: int,  # whose training side is divided
    named: str,  # patients, separated by commas; a..b: from a to b
) -> Dataset:  # the same, but for what this fold trains and tests on
    "Put some training patients in the place of the test fold. Raises ValueError for names that are not among them."
    train = dataset.split(fold)[0]
    held: list[str] = []
    for part in re.split(r"[,\s]+", named.strip(", ")):
        first, _, last = part.partition("..")
        ends = [train.index(one_of("hold_out", name, train)) for name in (first, last or first)]
        held += train[ends[0]:ends[1] + 1]
    rest = tuple(patient for patient in train if patient not in held)
    if not rest or not held:
        raise ValueError(f"hold_out: found {named!r}, {len(held)} of {len(train)} training patients, expected some "
                         "of them, and others left to train on")
    return replace(dataset, folds=dataset.folds | {fold: tuple(dict.fromkeys(held))},
                   trains=dataset.trains | {fold: rest})


# %%
hearts = with_held_out(phantom(patients=5), 1, "patient003..patient004")
assert hearts.split(1) == (("patient002", "patient005"), ("patient003", "patient004"))
try:
    with_held_out(phantom(patients=5), 1, "patient001")
    raise RuntimeError("a test patient was taken for a training patient")
except ValueError as error:
    print(error)


# %%
#| export
def _opened(config: Config) -> Dataset:
    "The data that the settings name. Raises what `open_dataset` raises, of an option by the name that it has there."
    try:
        return open_dataset(config.dataset, config.root or None, **config.data)
    except ValueError as error:
        if (text := str(error)).partition(":")[0] not in config.data:
            raise
        raise (DataError if isinstance(error, DataError) else ValueError)(f"data_{text}") from None


# %%
#| export
def resolve(
    config: Config,  # the settings of the run
    dataset: Dataset | None = None,  # data that is at hand; None: those that the settings name are opened
) -> Setup:  # with the configuration that the run is named by
    "Look up what a configuration names. Raises what `open_dataset` raises, ValueError for a root that nothing reads."
    if dataset is None:
        if config.root and not SOURCES[config.dataset].folders and not Path(config.root).is_file():  # a pack is a file
            raise ValueError(f"root: found {config.root!r}, expected none for the {config.dataset}; "
                             "dataset=folder reads it")
        dataset = _opened(config)
    if config.hold_out:
        dataset = with_held_out(dataset, config.fold, config.hold_out)
    config = config.model_copy(update={"data": dataset.options | config.data})
    method, objective = method_and_terms(config)
    device = choose_device(config.device)
    return Setup(config, dataset, method, objective, device, choose_precision(config.precision, device))


# %%
setup = resolve(Config(method="gated-crf", lam_crf=0.2, data_patients=5))
assert setup.dataset.patients == phantom(patients=5).patients and setup.method.name == "gated-crf"
assert [(term.name, term.weight) for term in setup.objective.terms] == [("seg", 1.0), ("crf", 0.2)]
print(setup.config.run_id, setup.device, setup.precision)
try:
    resolve(Config(root="my-scans"))  # or somebody would take the phantom's table for that of their own scans
    raise RuntimeError("a folder was ignored")
except ValueError as error:
    assert str(error) == "root: found 'my-scans', expected none for the phantom; dataset=folder reads it"


# %% [markdown]
# ## Exercise
#
# **Predict.** Data may be given, and then none is opened. Which dataset does the setup below hold, and which does its configuration name?

# %%
def check_names(answer):
    given = resolve(Config(dataset="acdc"), phantom(patients=5))
    assert answer() == (given.dataset.name, given.config.dataset)

def my_names():
    ...  # ("…", "…")

exercise(check_names, my_names, solution=lambda: ("phantom", "acdc"))

# %% [markdown]
# ## Recap
#
# `resolve` makes a `Setup` of a `Config`; training, testing and prediction take it from there. [Next](52_launch.ipynb): several processes for
# one run.
