# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The configuration
#
# > One validated object behind notebook parameters, checkpoints and result files.
#
# **Question.** A run has fifty knobs. How do you change one, and know for certain that the forty-nine others are what
# you think they are?

# %%
#| default_exp experiment.config

# %%
#| export
import hashlib
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from attenscribble.book import one_of
from attenscribble.data.datasets import SOURCES
from attenscribble.method.objective import RELEASED, MethodSwitches, Objective, method_named
from attenscribble.method.other_networks import check_network
from attenscribble.rivals import branches, pseudo, regularisers, teachers

# %%
from attenscribble.book import exercise

# %% [markdown]
# ## The answer first
#
# You name what you change. A profile and a preset fill in the rest, the object refuses what it does not know, and
# `differences` prints what sets a run apart from the defaults.
#
# ```python
# config = Config.from_flat(dataset="acdc", profile="mini", lam_mcrf="0.3")
# config.differences()
# ```
#
# ## Profiles and presets are lists of differences
#
# A profile says how much to compute, a preset says whose method. Both are flat dictionaries, so that they can be read,
# compared, and printed beside a result.
#
# The paper's $r$ and $\sigma$ of the attentive loss count cells of a 64² grid (256² input, third encoder layer). On a
# smaller grid the same numbers would cover a larger part of the heart, so small profiles scale them.

# %%
#| export
PROFILES: dict[str, dict[str, Any]] = {
    # phantom hearts, minutes on two CPU cores
    "smoke": {"size": 96, "batch": 8, "iterations": 400, "lr": 0.03, "asl_radius": 2, "asl_sigma": 2.25,
              "data_patients": 10, "eval_every": 100, "log_every": 10},
    # real data, at most ten minutes on two CPU cores
    "mini": {"size": 128, "batch": 8, "iterations": 1500, "lr": 0.03, "asl_radius": 2, "asl_sigma": 3.0},
    # real data at the paper's size, minutes on one GPU
    "fast": {"size": 256, "batch": 12, "iterations": 12_000},
    # the released schedule
    "paper": {"size": 256, "batch": 12, "iterations": 60_000},
}
PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "released": RELEASED}
GROUPS = ("net", "pce", "crf", "ssa", "asl", "lam", "start", "own", "data")  # `crf_mask` is the field `mask` of `crf`
RIVALS = (pseudo, teachers, branches, regularisers)  # to import them is to register their methods
# what a run computes does not depend on these
PLACES = ("root", "output", "archive", "device", "devices", "compile", "resume", "log_every")


# %% [markdown]
# ## The object
#
# | value | where it stands | what happens |
# |---|---|---|
# | `"1e-4"`, `"false"`, `"12"` | from a command line | become number, truth value, number |
# | `None` | left as it was in the parameters cell | profile, preset or default decides |
# | a name nobody knows | anywhere | refused, with the nearest name |
# | a value out of range | anywhere | refused, with the field and the choices |

# %%
#| export
def _typed(value: Any) -> Any:
    "Text as JSON reads it where that is a number or a truth value; everything else as it is."
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return found if isinstance(found, (bool, int, float)) else value


class Config(MethodSwitches):
    "Everything that decides a run. Build it with `Config.from_flat`; it never changes afterwards."

    dataset: str = Field("phantom", description="which data: phantom, acdc, wsl4mis, chaos, folder")
    method: str = Field("ours", description="a registered method; `attenscribble methods` lists them")
    fold: int = Field(1, ge=1, description="test fold, counted from 1")
    seed: int = Field(2022, ge=0, description="of weights, batches, augmentation and dropout (2022: released)")
    profile: Literal["smoke", "mini", "fast", "paper"] = Field("smoke", description="how much to compute")
    preset: Literal["paper", "released"] = Field("paper", description="the paper's text, or its released code")
    root: str = Field("", description="folder of the data; empty: $ATTENSCRIBBLE_DATA, then the user data folder")
    data: dict[str, Any] = Field({}, description="options of the dataset: patients of the phantom, sequence of chaos")

    size: int = Field(256, ge=16, description="side of the network's input in px")
    batch: int = Field(12, ge=1, description="slices an iteration")
    iterations: int = Field(60_000, ge=1, description="optimiser steps")
    lr: float = Field(0.01, gt=0, description="start of the schedule (released)")
    attention_lr: float | None = Field(None, gt=0, description="the same for the attention; None: as lr")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD (released)")
    weight_decay: float = Field(1e-4, ge=0, description="on all parameters (released)")
    power: float = Field(0.9, ge=0, description="of the polynomial decay (released)")
    lr_off_by_one: bool = Field(False, description="the released code's schedule lags one step behind")
    augmentation: Literal["dataset", "acdc", "chaos", "none"] = Field("dataset", description="what slices go through")
    lam: dict[str, float] = Field({}, description="term → weight in place of the method's")
    start: dict[str, int] = Field({}, description="term → first iteration in place of the method's")
    own: dict[str, Any] = Field({}, description="the method's own switches, those that differ from their defaults")

    checkpoint: Literal["last", "best_val"] = Field("last", description="which weights are tested")
    validation: float = Field(0.1, gt=0, lt=1, description="share of training patients that best_val holds out")
    eval_every: int = Field(200, ge=1, description="iterations between checkpoints and validations")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the network's forward pass")
    eval_resize: Literal["nearest-exact", "nearest"] = Field(
        "nearest-exact", description="masks back to the scan's grid; nearest (released) shifts them by half a pixel")
    hd95: bool = Field(True, description="score HD95 in mm; false where the voxel spacing is unknown")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    devices: int = Field(1, ge=1, description="processes that train together, each on a GPU or a part of the CPU")
    compile: Literal["auto", "on", "off"] = Field("auto", description="the network by torch.compile; auto: on a GPU")

    output: str = Field("", description="folder for run folders; empty: runs/ of the clone, else of the current folder")
    archive: str = Field("", description="folder that also gets the result's JSON, such as ../results")
    resume: bool = Field(True, description="go on from the run folder's checkpoint if there is one")
    log_every: int = Field(20, ge=1, description="iterations between rows of the log")

    @field_validator("dataset")
    @classmethod
    def known_dataset(cls, name: str) -> str:
        return one_of("dataset", name, SOURCES)

    @field_validator("data")
    @classmethod
    def as_typed(cls, data: dict[str, Any]) -> dict[str, Any]:
        "A loader's options have no declared types: text that is a number or true, false, as a terminal gives it."
        return {name: _typed(value) for name, value in data.items()}

    @field_validator("size")
    @classmethod
    def divisible(cls, size: int) -> int:
        if size % 16:
            raise ValueError(f"the network halves its input four times: {size} is not a multiple of 16")
        return size

    @field_validator("own")
    @classmethod
    def plain(cls, own: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        "The method's switches as their own types; those at their defaults are left out."
        switches = method_named(info.data.get("method", "ours")).switches
        return switches(**own).model_dump(exclude_defaults=True)

    @field_validator("device")
    @classmethod
    def known_device(cls, name: str) -> str:
        if name != "auto":
            kind = torch.device(name).type
            if kind == "cuda" and not torch.cuda.is_available():
                raise ValueError("no CUDA device is available: use device=auto or cpu")
        return name

    @model_validator(mode="after")
    def one_device_each(self) -> "Config":
        if self.devices > 1 and ":" in self.device:
            raise ValueError(f"devices: {self.devices} processes choose a GPU each; device: found {self.device!r}, "
                             "expected auto, cpu or cuda")
        return self

    @model_validator(mode="after")
    def terms_exist(self) -> "Config":
        self.objective()  # raises on a term the method lacks
        check_network(method_named(self.method), self)
        return self

    def objective(self) -> Objective:
        "The method's terms with this run's weights, starts and switches."
        return Objective(method_named(self.method), self.lam, self.start, self.own)

    @classmethod
    def from_flat(
        cls,
        **given: Any,  # flat names; None = not given
    ) -> "Config":
        """Defaults, then the method's settings, the profile, the preset, and what is given.

        Raises ValueError naming every wrong field.
        """
        given = {name: value for name, value in given.items() if value is not None}
        method = method_named(given.get("method", "ours"))
        known = flat_names() + [f"own_{name}" for name in method.switches.model_fields]
        for name in given:
            if name not in known and not name.startswith(("lam_", "start_", "data_")):
                near = get_close_matches(name, known, n=1)
                raise ValueError(f"{name}: unknown setting" + (f"; did you mean {near[0]!r}?" if near else ""))
        profile = choose_profile(given)
        preset = one_of("preset", given.get("preset", "paper"), PRESETS)
        own = {f"own_{name}": value for name, value in method.switches.released.items()} if preset == "released" else {}
        terms = {term.name for term in method.terms}
        fills = {name: value for name, value in (method.settings | PROFILES[profile] | PRESETS[preset] | own).items()
                 if name.partition("_")[0] != "start" or name.partition("_")[2] in terms}
        if given.get("dataset", "phantom") != "phantom":  # the options a profile fills in are the phantom's
            fills = {name: value for name, value in fills.items() if not name.startswith("data_")}
        try:
            return cls(**nest(fills | given | {"profile": profile, "preset": preset}))
        except ValidationError as error:
            raise ValueError("\n".join(explain(e) for e in error.errors())) from None

    def flat(self) -> dict[str, Any]:
        "All settings under flat names."
        values = self.model_dump()
        groups = {f"{g}_{name}": value for g in GROUPS for name, value in values[g].items()}
        return {name: value for name, value in values.items() if name not in GROUPS} | groups

    def differences(self) -> dict[str, Any]:
        "What differs from the defaults, under flat names."
        defaults = Config().flat()
        return {name: value for name, value in self.flat().items() if name not in defaults or defaults[name] != value}

    @property
    def decisive(self) -> dict[str, Any]:
        "The settings that change the outcome, under flat names: all but folders, device and what is only shown."
        settings = {name: value for name, value in self.flat().items() if name not in PLACES}
        own = self.dataset == "folder"  # such data is told apart by its folder's name
        return settings | ({"folder": Path(self.root).resolve().name} if own else {})

    @property
    def run_id(self) -> str:
        "A readable name with a short hash of every setting that changes the outcome and is not at its default."
        differences = self.differences()
        changed = {name: value for name, value in self.decisive.items() if name in differences or name == "folder"}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        data = re.sub(r"[^\w.-]+", "_", self.decisive.get("folder", "")) or self.dataset
        return f"{data}-{self.method}-fold{self.fold}-seed{self.seed}-{self.profile}-{digest}"


# %%
#| export
def flat_names() -> list[str]:
    "Every flat name with a fixed spelling."
    names = [name for name in Config.model_fields if name not in GROUPS]
    switches = MethodSwitches.model_fields
    return names + [f"{group}_{name}" for group, info in switches.items() for name in info.annotation.model_fields]


def choose_profile(given: Mapping[str, Any]) -> str:
    "The profile asked for; `auto`: smoke for the phantom, else fast on a CUDA device and mini on a CPU."
    profile = given.get("profile", "auto")
    if profile == "auto" and given.get("dataset", "phantom") == "phantom":
        return "smoke"
    if profile == "auto":
        device = given.get("device", "auto")
        return "fast" if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()) else "mini"
    return one_of("profile", profile, PROFILES)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    "Flat names to the nested form: `{'crf_mask': 'p'}` → `{'crf': {'mask': 'p'}}`."
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, rest = name.partition("_")
        if group in GROUPS and rest:
            nested.setdefault(group, {})[rest] = value
        else:
            nested[name] = value
    return nested


def explain(error: Mapping[str, Any]) -> str:
    "One line for one of pydantic's errors: flat field, what was found, what was expected."
    name = "_".join(str(part) for part in error["loc"] if part not in ("float", "literal['hw']")) or "settings"
    message = error["msg"].removeprefix("Value error, ")
    complete = error["loc"] == () or message.startswith(f"{name}: ")
    return message if complete else f"{name}: found {error['input']!r}; {message}"


# %% [markdown]
# ## From a notebook's parameters
#
# papermill writes what it was given into the notebook as plain assignments, and takes any name. So the notebook hands
# over everything it has assigned so far, and a misspelt parameter is refused here.

# %%
#| export
def notebook_settings(
    namespace: Mapping[str, Any],  # `globals()` of a notebook, right after its parameters
) -> dict[str, Any]:
    "The numbers, strings and None that a notebook's parameters cells assigned."
    return {name: value for name, value in namespace.items()
            if not name.startswith("_") and (value is None or isinstance(value, bool | int | float | str))}


# %%
assert notebook_settings({"fold": 2, "_i": "1", "In": [], "json": json, "lr": None}) == {"fold": 2, "lr": None}

# %% [markdown]
# ## Check by hand
#
# Strings become what they say; a group's field is reached by its flat name; the nearest name is offered.

# %%
config = Config.from_flat(dataset="acdc", profile="mini", lam_mcrf="0.3", resume="false", asl_radius="3", lr="1e-2")
assert config.lam == {"mcrf": 0.3} and config.resume is False and config.asl.radius == 3 and config.lr == 0.01
config.differences()


# %%
def message(**given):
    "The text of the refusal."
    try:
        return Config.from_flat(**given).run_id
    except ValueError as error:
        return str(error)


assert "did you mean 'asl_radius'" in message(asl_radios=3)
assert "expected one of paper, released; did you mean 'released'?" in message(preset="relesed")
assert "crf_mask: found 'both'; Input should be 'pq', 'p' or 'none'" in message(crf_mask="both")
assert "multiple of 16" in message(size=100)
assert "lam_atn: method 'pce' has the terms seg" in message(method="pce", lam_atn=1)
message(method="our", dataset="acdc")

# %% [markdown]
# ## What a preset changes
#
# The released code differs from the paper's text in the following settings, and in no other.

# %%
paper, code = Config.from_flat().flat(), Config.from_flat(preset="released").flat()
{name: (paper.get(name), value) for name, value in code.items() if paper.get(name) != value}

# %% [markdown]
# ## Names for runs
#
# Two runs with the same settings have the same name, wherever they are stored; any setting that can change the
# outcome changes the hash.

# %%
assert Config.from_flat(output="a").run_id == Config.from_flat(output="b").run_id
assert Config.from_flat(seed=1).run_id != Config.from_flat(seed=2).run_id
assert Config.from_flat(asl_sigma=3.5).run_id != Config.from_flat().run_id
released = Config.from_flat(preset="released")
assert Config(**json.loads(released.model_dump_json())) == released
typed = Config.from_flat(data_patients="5", data_sequence="t2spir", data_robust="true").data
assert typed == {"patients": 5, "sequence": "t2spir", "robust": True}, "as a command line gives them"
ours, theirs = (Config.from_flat(dataset="folder", root=f"data/{name}") for name in ("liver", "spleen"))
assert ours.run_id != theirs.run_id and ours.run_id.startswith("liver-") and "root" not in ours.decisive
config.run_id


# %% [markdown]
# ## Exercises
#
# **1. Predict.** Which loss window, in pixels a side, does the profile `paper` use for the masked CRF when
# `crf_window` is `strict`?

# %%
def check_window(answer):
    assert answer() == 9

def attempt_window():
    ...

exercise(check_window, attempt_window, solution=lambda: 2 * (Config.from_flat(profile="paper").crf.radius - 1) + 1)


# %% [markdown]
# **2. Implement.** Turn a nested dictionary back into flat names.

# %%
def check_flatten(flatten):
    assert flatten({"crf": {"mask": "p"}, "seed": 1}) == {"crf_mask": "p", "seed": 1}

def attempt_flatten(nested):
    ...

def solve_flatten(nested):
    flat = {}
    for name, value in nested.items():
        flat |= {f"{name}_{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat

exercise(check_flatten, attempt_flatten, solve_flatten)


# %% [markdown]
# **3. Break.** Find a setting that `from_flat` takes and that makes no difference to `run_id`.

# %%
def check_silent(answer):
    assert answer and Config.from_flat(**answer).run_id == Config.from_flat().run_id

attempt_silent = {}

exercise(lambda f: check_silent(f()), lambda: attempt_silent, solution=lambda: {"log_every": 7})

# %% [markdown]
# ## Recap
#
# Exported: `Config`, `PROFILES`, `PRESETS`. Everything after this chapter takes a `Config`. Surprise: most of what
# separates "the paper" from "the paper's code" fits in ten lines.
