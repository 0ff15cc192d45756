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
# A run has fifty knobs. How do you change one, and know for certain that the others are what you think they are? You name what you
# change, a profile and a preset fill in the rest, and whatever the object does not know it refuses.

# %%
#| default_exp runs.config

# %%
#| export
import hashlib
import inspect
import json
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal

# %%
#| export
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic import create_model, field_validator, model_validator

# %%
#| export
from attenscribble.basics.errors import DataError, did_you_mean, one_of, unknown_setting
from attenscribble.basics.notebook import notebook_settings, settings_in
from attenscribble.data.datasets import SOURCES
from attenscribble.data.folder import FolderOptions
from attenscribble.method.objective import Method, Objective, method_named
from attenscribble.method.switches import RELEASED, MethodSwitches, Switches
from attenscribble.method.other_networks import check_network
from attenscribble.rivals import branches, pseudo, regularisers, teachers

# %%
from attenscribble.basics.checking import exercise

# %% [markdown]
# ## The answer first
#
# `differences` says what sets a run apart from the defaults.
#
# ```python
# config = Config(dataset="acdc", profile="mini", lam_mcrf="0.3")
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
    "smoke": {"size": 96, "batch": 8, "iterations": 400, "lr": 0.03, "asl_radius": 2, "asl_sigma_xy": 2.25,
              "data_patients": 10, "eval_every": 100, "log_every": 10},
    # real data, at most ten minutes on two CPU cores
    "mini": {"size": 128, "batch": 8, "iterations": 1500, "lr": 0.03, "asl_radius": 2, "asl_sigma_xy": 3.0},
    # real data at the paper's size, minutes on one GPU
    "fast": {"size": 256, "batch": 12, "iterations": 12_000},
    # the released schedule
    "paper": {"size": 256, "batch": 12, "iterations": 60_000},
}

# %%
#| export
PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "released": RELEASED}
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
# | a value out of range, infinity, NaN | anywhere | refused, with the field and the choices |
# | two values for one setting | in a dictionary and alone | refused, with both |
#
# All that is wrong is said at once, a line for each.

# %%
#| export
def _of_known_home(name: str) -> str:
    "A folder's name. Raises ValueError for the home of somebody whom this machine does not know."
    try:
        Path(name).expanduser()
    except RuntimeError:
        raise ValueError(f"no user of this machine is called {Path(name).parts[0][1:]!r}; a folder of "
                         "that name needs its whole path") from None
    return name


_Place = Annotated[str, AfterValidator(_of_known_home)]


# %%
#| export
class WhatSettings(Switches):
    "What is trained on what."

    dataset: str = Field("phantom", description="which data: phantom, acdc, wsl4mis, chaos, folder")
    method: str = Field("ours", description="a registered method; `attenscribble methods` lists them")
    fold: int = Field(1, ge=1, description="test fold, counted from 1")
    hold_out: str = Field("", description="training patients tested instead of the test fold: a, b or a..b")
    seed: int = Field(2022, ge=0, lt=2**32, description="of weights, batches, augmentation, dropout (2022: released)")
    profile: Literal["smoke", "mini", "fast", "paper"] = Field("smoke", description="how much to compute")
    preset: Literal["paper", "released"] = Field("paper", description="the paper's text, or its released code")
    root: _Place = Field("", description="folder of the data; empty: $ATTENSCRIBBLE_DATA, then the user data folder")

    @field_validator("dataset")
    @classmethod
    def known_dataset(cls, name: str) -> str:
        return one_of("dataset", name, SOURCES)


# %%
#| export
class ScheduleSettings(Switches):
    "How much is computed, and how fast the network learns."

    size: int = Field(256, ge=16, description="side of the network's input in px")
    batch: int = Field(12, ge=1, description="slices an iteration")
    iterations: int = Field(60_000, ge=1, description="optimiser steps")
    lr: float = Field(0.01, gt=0, description="start of the schedule (released)")
    attention_lr: float | None = Field(None, gt=0, description="the same for the attention; None: as lr")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD (released)")
    weight_decay: float = Field(1e-4, ge=0, description="on all parameters (released)")
    power: float = Field(0.9, ge=0, description="of the polynomial decay (released)")
    schedule: Literal["poly", "cosine"] = Field("poly", description="how the rate falls (released: poly)")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the run in which the rate rises first")
    optimiser: Literal["sgd", "nesterov", "adamw"] = Field("sgd", description="SGD (released), Nesterov's, or AdamW")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights that are tested; 0: the last ones")
    lr_off_by_one: bool = Field(False, description="the released code's schedule lags one step behind")
    augmentation: Literal["dataset", "acdc", "chaos", "none"] = Field("dataset", description="what slices go through")
    augment_zoom: float = Field(0.0, ge=0, lt=1, description="half of the slices grow or shrink by up to this share")
    augment_look: float = Field(0.0, ge=0, le=1, description="strength of random gamma, contrast, brightness")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the network's forward pass")

    @field_validator("size")
    @classmethod
    def divisible(cls, size: int) -> int:
        if size % 16:
            raise ValueError(f"the network halves its input four times: {size} is not a multiple of 16")
        return size


# %%
#| export
class TestSettings(Switches):
    "Which weights are tested, and how."

    checkpoint: Literal["last", "best_val"] = Field("last", description="which weights are tested")
    validation: float = Field(0.1, gt=0, lt=1, description="share of training patients that best_val holds out")
    eval_every: int = Field(200, ge=1, description="iterations between checkpoints and validations")
    eval_resize: Literal["nearest-exact", "nearest"] = Field(
        "nearest-exact", description="masks back to the scan's grid; nearest (released) shifts them by half a pixel")
    eval_flips: bool = Field(False, description="average over mirror images, where training saw them")
    hd95: bool = Field(True, description="score HD95 in mm; false where the voxel spacing is unknown")


# %%
#| export
def usable_device(
    name: str,  # as it was given
) -> str:  # the same
    "A device that this machine has. Raises ValueError for another, with the nearest name."
    named = re.fullmatch(r"cuda(?::(\d+))?", name)
    count = torch.cuda.device_count() if named and torch.cuda.is_available() else 0
    if name in ("auto", "cpu") or (name == "mps" and torch.backends.mps.is_available()):
        return name
    if named and int(named[1] or 0) < count:
        return name
    there = f"cuda:0 to cuda:{count - 1}, as many as there are" if count else (
        "auto or cpu: no CUDA device is available" if named else "auto, cpu, cuda or cuda:1" + did_you_mean(
            "cuda" if "gpu" in name.lower() else name.lower(), ("auto", "cpu", "cuda")))
    raise ValueError(f"device: found {name!r}, expected {there}")


# %%
#| export
class PlaceSettings(Switches):
    "Where a run computes, and where it writes."

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    devices: int = Field(1, ge=1, description="processes that train together, each on a GPU or a part of the CPU")
    compile: Literal["auto", "on", "off"] = Field("auto", description="the network by torch.compile; auto: on a GPU")
    output: _Place = Field("", description="folder for run folders; empty: runs/ of the clone, else of the current one")
    archive: _Place = Field("", description="folder that also gets the result's JSON, such as ../results")
    resume: bool = Field(True, description="go on from the run folder's checkpoint if there is one")
    log_every: int = Field(20, ge=1, description="iterations between rows of the log")

    @field_validator("device")
    @classmethod
    def known_device(cls, name: str) -> str:
        return usable_device(name)


# %% [markdown]
# Four groups have names that depend on the method or on the dataset, such as the weight of a term. Each is one dictionary, and
# `lam_mcrf=0.3` is its entry `mcrf`.

# %%
#| export
def _typed(value: Any) -> Any:
    "Text as JSON reads it where that is a number or a truth value; everything else as it is."
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return found if isinstance(found, (bool, int, float)) else value


# %%
#| export
_Weight = Annotated[float, Field(ge=0)]
_Step = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


# %%
#| export
class OpenSettings(Switches):
    "Settings whose names depend on the method and the dataset: one dictionary each."

    lam: dict[str, _Weight] = Field({}, description="term → weight in place of the method's: `lam_mcrf`, …")
    start: dict[str, _Step] = Field({}, description="term → first iteration in place of the method's: `start_atn`, …")
    ramp: dict[str, _Share] = Field({}, description="term → share of the run over which its weight rises: `ramp_mcrf`")
    method_options: dict[str, Any] = Field({}, description="the method's own switches: `method_passes`, …")
    data: dict[str, Any] = Field({}, description="options of the dataset: `data_patients`, `data_sequence`, …")

    @field_validator("data")
    @classmethod
    def as_typed(cls, data: dict[str, Any]) -> dict[str, Any]:
        "A loader's options have no declared types: text that is a number or true, false, as a terminal gives it."
        return {name: _typed(value) for name, value in data.items()}


# %% [markdown]
# All of it together, and the checks that need more than one setting.

# %%
#| export
class Config(WhatSettings, ScheduleSettings, TestSettings, PlaceSettings, OpenSettings, MethodSwitches):
    """Everything that decides a run, under flat names: `Config(dataset="acdc", lam_mcrf=0.3)`.

    The method's settings, the profile and the preset fill in what is not given; None is not given. It never changes
    afterwards. Raises ValueError with a line for each wrong setting."""

    def __init__(
        self,
        **given: Any,  # settings by name
    ) -> None:
        faults: list[str] = []
        try:
            super().__init__(**_filled(_gathered(given, faults), faults))
        except ValidationError as error:
            faults += [_explained(e) for e in error.errors()]
        if faults:
            raise ValueError("\n".join(dict.fromkeys(faults)))

    @model_validator(mode="after")
    def fits_together(self) -> "Config":
        faults: list[str] = []
        if self.devices > 1 and ":" in self.device:
            faults.append(f"devices: {self.devices} processes choose a GPU each; device: found {self.device!r}, "
                          "expected auto, cpu or cuda")
        if self.devices > self.batch:
            faults.append(f"devices: found {self.devices}, expected at most {self.batch}, the slices of a batch")
        faults += _never_started(self)
        _noted(faults, lambda: check_network(method_named(self.method), self))
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def flat(self) -> dict[str, Any]:
        "All settings under flat names."
        values = self.model_dump()
        opened = {f"{start}_{name}": value for start, group in OPEN.items()
                  for name, value in values.pop(group).items()}
        return values | opened

    def differences(self) -> dict[str, Any]:
        "What differs from the fields' own defaults, under flat names."
        defaults = default_settings()
        return {name: value for name, value in self.flat().items() if name not in defaults or defaults[name] != value}

    @property
    def decisive(self) -> dict[str, Any]:
        "The settings that change the outcome, under flat names: all but folders, device and what is only shown."
        settings = {name: value for name, value in self.flat().items() if name not in PLACES}
        return settings | ({"folder": Path(self.root).resolve().name} if self.dataset == "folder" else {})

    @property
    def run_id(self) -> str:
        "A readable name with a short hash of every setting that changes the outcome and is not at its default."
        return _name_of(self)


# %%
#| export
def _never_started(config: Config) -> list[str]:
    "A line for each term that was given a start which the run does not reach; what a preset says passes."
    preset, terms = PRESETS[config.preset], {term.name: term for term in method_named(config.method).terms}
    return [f"start_{name}: found {first}, expected below {config.iterations}, the iterations of the run, or the "
            f"term is never trained with; lam_{name}=0 leaves it out" for name, first in config.start.items()
            if first >= config.iterations and first != preset.get(f"start_{name}")
            and config.lam.get(name, terms[name].weight)]


# %%
#| export
OPEN = {"lam": "lam", "start": "start", "ramp": "ramp", "method": "method_options", "data": "data"}  # lam_… in lam


# %%
#| export
def default_settings() -> dict[str, Any]:
    "The fields' own defaults, before method, profile and preset have their say."
    return {name: info.default for name, info in Config.model_fields.items() if name not in OPEN.values()}


# %%
#| export
def _name_of(config: Config) -> str:
    "The name of a run."
    differences, decisive = config.differences(), config.decisive
    changed = {name: value for name, value in decisive.items() if name in differences or name == "folder"}
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
    data, method = (re.sub(r"[^\w.-]+", "_", name) for name in (decisive.get("folder", ""), config.method))
    return f"{data or config.dataset}-{method}-fold{config.fold}-seed{config.seed}-{config.profile}-{digest}"


# %%
#| export
def method_and_terms(
    config: Config,  # method, lam, start, method_options
) -> tuple[Method, Objective]:  # the entry, and eq. 7 for this run
    "The method, and its terms with a run's weights, starts and switches. Raises ValueError for a term it lacks."
    method = method_named(config.method)
    return method, Objective(method, config.lam, config.start, config.method_options, config.ramp)


# %% [markdown]
# ## From what is given to all settings
#
# First, entries of the open groups are gathered; a dictionary such as `crf={"mask": "p"}`, as papermill's YAML may have it, is the same as
# `crf_mask="p"`. Then names are looked at, and the rest is filled in: the method's own settings, the profile over them, the preset over both. What is
# wrong is noted and left out, so that the rest is looked at as well.

# %%
#| export
def _noted(
    faults: list[str],  # gets the message
    call: Callable[[], Any],
) -> Any:  # what the call returns; None where it raises
    "A call whose ValueError is noted."
    try:
        return call()
    except ValueError as error:
        faults.append(str(error))
        return None


# %%
#| export
def _flat(
    given: Mapping[str, Any],  # flat names, or dictionaries of groups
    faults: list[str],  # gets a line for a group that is none, and for a setting with two values
) -> dict[str, Any]:
    "Flat names; a dictionary of a group as its entries."
    starts, flat = {field: start for start, field in OPEN.items()}, dict[str, Any]()
    for name, value in given.items():
        entries = {name: value}
        if name in starts and value is not None:
            inside = _noted(faults, partial(settings_in, name, value)) or {}
            entries = {f"{starts[name]}_{key}": entry for key, entry in inside.items()}
        elif isinstance(value, dict) and name not in Config.model_fields and name.partition("_")[0] not in OPEN:
            of_a_group = any(field.startswith(f"{name}_") for field in Config.model_fields)
            entries = {f"{name}_{key}": entry for key, entry in value.items()} or ({} if of_a_group else entries)
        for key, entry in entries.items():
            if flat.get(key) is None:  # null says nothing, but its name has to be one
                flat[key] = entry
            elif entry is not None and str(flat[key]) != str(entry):
                faults.append(f"{key}: found {flat[key]!r} and {entry!r}, expected one of the two")
    return flat


# %%
#| export
def _gathered(
    given: Mapping[str, Any],  # flat names, or dictionaries of groups
    faults: list[str],  # gets a line for each that is none
) -> dict[str, Any]:  # fields of `Config`
    "Each entry of an open group inside its dictionary."
    found: dict[str, Any] = {}
    for name, value in _flat(given, faults).items():
        start, _, rest = name.partition("_")
        value = str(value) if isinstance(value, Path) else value
        if value is None and (name in Config.model_fields or (start in OPEN and rest)):
            continue
        if start in OPEN and rest and name not in Config.model_fields:
            found[OPEN[start]] = found.get(OPEN[start], {}) | {rest: value}
        else:
            found[name] = value
    return found


# %%
#| export
def _filled(
    given: Mapping[str, Any],  # of `_gathered`
    faults: list[str],  # gets a line for each name that nobody knows
) -> dict[str, Any]:
    "Method, profile and preset fill in what is not given."
    method, given = _method_of(given, faults)
    given = _known(given, method, faults)
    profile = _noted(faults, lambda: choose_profile(given)) or "smoke"
    preset = _noted(faults, lambda: one_of("preset", given.get("preset", "paper"), PRESETS)) or "paper"
    options = method.options.released if preset == "released" else {}
    fills = _gathered({**method.settings, **PROFILES[profile], **PRESETS[preset], "method_options": dict(options)}, [])
    terms = {term.name for term in method.terms}
    for group in ("lam", "start", "ramp"):
        fills[group] = {name: value for name, value in fills.get(group, {}).items() if name in terms}
    if given.get("dataset", "phantom") != "phantom":  # the options that a profile fills in are the phantom's
        fills.pop("data", None)
    merged = {name: fills.get(name, {}) | given.get(name, {}) for name in OPEN.values()}
    merged["method_options"] = _noted(faults, lambda: _own_options(method, merged["method_options"])) or {}
    return {**fills, **given, **merged, "profile": profile, "preset": preset}


# %%
#| export
def _method_of(given: Mapping[str, Any], faults: list[str]) -> tuple[Method, dict[str, Any]]:
    "The method, and what is given; of a method that nobody knows, without all that depends on it."
    name = given.get("method", "ours")
    if not isinstance(name, str):
        faults.append(f"method: found {name!r}, expected a name, such as 'ours'")
    method = _noted(faults, lambda: method_named(name)) if isinstance(name, str) else None
    if method is not None:
        return method, dict(given)
    dependent = ("method", "lam", "start", "ramp", "method_options", "net_name", "net_options")
    return method_named("ours"), {name: value for name, value in given.items() if name not in dependent}


# %%
#| export
def _own_options(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    "A method's own switches as their own types; those at their defaults are left out."
    try:
        return method.options(**options).model_dump(exclude_defaults=True)
    except ValidationError as error:
        raise ValueError("\n".join(_explained(e, "method_") for e in error.errors())) from None


# %% [markdown]
# Names first: those of settings, of a method's own switches, of its terms, of the options of a dataset. Then truth values: YAML's `yes` is one, and where
# a number belongs Python would count it as 1.

# %%
#| export
def _truth_faults(model: type[BaseModel], given: Mapping[str, Any], start: str = "") -> dict[str, str]:
    "Name → what is wrong with it, for truth values where a model has numbers; `start` comes before the name."
    kinds = {name: {*re.findall(r"\w+", str(info.annotation))} for name, info in model.model_fields.items()}
    return {name: _no_number(f"{start}{name}", value) for name, value in given.items() if isinstance(value, bool)
            and kinds.get(name, set()) & {"int", "float"} and "bool" not in kinds[name]}


def _no_number(name: str, value: bool) -> str:
    "What is said of a truth value where a number belongs."
    return f"{name}: found {value!r}; Input should be a number, not a truth value"


# %%
#| export
def _known(given: Mapping[str, Any], method: Method, faults: list[str]) -> dict[str, Any]:
    "What is given under names that somebody knows; a line for each of the others, with the nearest name."
    own = [f"method_{name}" for name in method.options.model_fields]
    known = [*(name for name in Config.model_fields if name not in OPEN.values()), *own]
    truths = _truth_faults(Config, given)
    kept = {name: value for name, value in given.items() if name in Config.model_fields}
    faults += [*(unknown_setting(name, known) for name in given if name not in kept), *truths.values()]
    options = kept.get("method_options", {})
    wrong = {"method_options": _truth_faults(method.options, options, "method_") | {
        name: unknown_setting(f"method_{name}", known) for name in options if name not in method.options.model_fields}}
    wrong |= {group: _term_faults(method, group, kept.get(group, {})) for group in ("lam", "start", "ramp")}
    wrong["data"] = _data_faults(kept.get("dataset", "phantom"), kept.get("data", {}))
    faults += [line for lines in wrong.values() for line in lines.values()]
    return {name: {key: entry for key, entry in value.items() if key not in wrong[name]} if name in wrong else value
            for name, value in kept.items() if name not in truths}


# %%
#| export
def _term_faults(method: Method, group: str, given: Mapping[str, Any]) -> dict[str, str]:
    "Term → what is wrong with it, for those that the method does not have, and for truth values."
    found: dict[str, list[str]] = {name: [] for name in given}
    for name, lines in found.items():
        _noted(lines, partial(Objective, method, **{group: {name: 1}}))
        lines += [_no_number(f"{group}_{name}", given[name])] if isinstance(given[name], bool) else []
    return {name: lines[0] for name, lines in found.items() if lines}


# %% [markdown]
# A dataset's options are the parameters of its loader: their names, and the types that these have there.

# %%
#| export
def _data_faults(dataset: Any, options: Mapping[str, Any]) -> dict[str, str]:
    "Option → what is wrong with it, for those that the dataset's loader does not know or cannot take."
    if not isinstance(dataset, str) or dataset not in SOURCES or not options:
        return {}
    model, typed = _loader_options(dataset), {name: _typed(value) for name, value in options.items()}
    truths = _truth_faults(model, typed, "data_")
    try:
        model(**typed)
        return truths
    except ValidationError as error:
        first = {str(e["loc"][0]): e for e in reversed(error.errors())}
        return {name: _no_option(dataset, name) if e["type"] == "extra_forbidden"
                else f"data_{name}: found {options[name]!r}; {e['msg']}" for name, e in first.items()} | truths


# %%
#| export
def _no_option(dataset: str, name: str) -> str:
    "What is said of an option that a dataset's loader does not know."
    asked = [*_loader_options(dataset).model_fields]
    unknown = unknown_setting(name, asked).replace("mean '", "mean 'data_")
    return f"data_{unknown} ({dataset} has {', '.join(f'data_{name}' for name in asked)})"


# %%
#| export
@cache
def _loader_options(dataset: str) -> type[BaseModel]:
    "The options of a dataset's loader, with their types."
    source = SOURCES[dataset]
    if dataset == "folder":
        return FolderOptions
    parameters = [*inspect.signature(source.build).parameters.values()][1 if source.folders else 0:]
    others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)  # which the loader looks at
    config = ConfigDict(extra="allow" if others else "forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    fields: dict[str, Any] = {one.name: (one.annotation, one.default) for one in parameters
                              if one.kind is not one.VAR_KEYWORD}
    return create_model(f"{dataset}_options", __config__=config, **fields)


# %%
#| export
def choose_profile(
    given: Mapping[str, Any],  # settings by name
) -> str:  # one of `PROFILES`
    "The profile asked for; `auto`: smoke for the phantom, else fast on a CUDA device and mini on a CPU."
    profile = given.get("profile", "auto")
    if profile != "auto":
        return one_of("profile", profile, PROFILES)
    if given.get("dataset", "phantom") == "phantom":
        return "smoke"
    device = str(given.get("device", "auto"))
    return "fast" if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()) else "mini"


# %%
#| export
def _explained(
    error: Mapping[str, Any],  # of pydantic
    start: str = "",  # of the names
) -> str:
    "One line for one of pydantic's errors: setting, what was found, what was expected."
    name = start + "_".join(str(part) for part in error["loc"] if part not in ("float", "literal['hw']")) or "settings"
    message = error["msg"].removeprefix("Value error, ")
    complete = error["loc"] == () or message.startswith(f"{name}: ")
    return message if complete else f"{name}: found {error['input']!r}; {message}"


# %% [markdown]
# Checkpoints and result files of version 0.1 hold two settings under the names of that time.

# %%
#| export
def current_names(
    settings: Mapping[str, Any],  # of a checkpoint or a result file, of any version
) -> dict[str, Any]:  # the same under the names of this version
    "Settings under today's names: `asl_sigma` is `asl_sigma_xy`, and a method's own `own_passes` is `method_passes`."
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "asl" and isinstance(value, dict):
            value = {"sigma_xy" if key == "sigma" else key: entry for key, entry in value.items()}
        new = {"asl_sigma": "asl_sigma_xy", "own": "method_options"}.get(name, name)
        found[re.sub("^own_", "method_", new)] = value
    return found


# %%
assert current_names({"asl_sigma": 3.0, "own_passes": 4}) == {"asl_sigma_xy": 3.0, "method_passes": 4}
assert Config(**current_names({"method": "ustm", "asl": {"sigma": 2.0}, "own": {"passes": 4}})) == Config(
    method="ustm", asl_sigma_xy=2.0, method_passes=4)

# %% [markdown]
# ## A file is not asked what to run
#
# A checkpoint may come from somebody else. Its settings may name a network or a method by an import path, and to import is to run a module. So such a name
# is looked up among known networks; for any other the user gives their word, by the module's name. A known network is one of an installed package,
# and fetches nothing.

# %%
#| export
KNOWN_NETWORKS = ("monai.networks.nets", "torchvision.models", "attenscribble")  # modules that a checkpoint may name
_FETCHING = re.compile("pretrain|weight|url|path|file")  # in the names of options that read from elsewhere


# %%
#| export
def check_trust(
    path: Path | str,  # of the file, for the message
    settings: Mapping[str, Any],  # that were read from it, under today's names
    trust: str | Sequence[str] = (),  # modules, or import paths, that the user gave their word for
) -> None:
    "Raises DataError, naming the module, where settings from a file would run code that nobody gave their word for."
    method, network = (str(settings.get(field, "")) for field in ("method", "net_name"))
    for field, name in (("method", method if ":" in method else ""), ("net_name", network)):
        module = name.partition(":")[0]
        known = _is_known(module) and not _fetches(settings.get("net_options", {}))
        if name and not known and not _trusted(name, [trust] if isinstance(trust, str) else trust):
            raise DataError(f"{path}: {field}", f"{name!r}, which runs {_where(module)}", "a network that is known "
                            f"here, or your word for it: --trust {module} (in Python trust={module!r})")


# %%
#| export
def _trusted(name: str, words: Sequence[str]) -> bool:
    "Whether the user gave their word for an import path, its module, or a package that this lies in."
    return any(word and (word == name or f"{name.partition(':')[0]}.".startswith(f"{word}.")) for word in words)


# %%
#| export
def _is_known(module: str) -> bool:
    "Whether a module is one of networks that are known, and of an installed package, not of a file in this folder."
    top = module.split(".")[0]
    if not any(f"{module}.".startswith(f"{known}.") for known in KNOWN_NETWORKS):
        return False
    places = [Path(sysconfig.get_paths()[kind]).resolve() for kind in ("purelib", "platlib")]
    file = Path(_where(module)).resolve()
    return top == "attenscribble" or any(place in file.parents for place in places)


# %%
#| export
def _fetches(options: Any) -> bool:
    "Whether a network's keywords may make it read from elsewhere."
    text = json.dumps(options, default=str)
    return "://" in text or any(value for name, value in dict(options).items() if _FETCHING.search(name))


# %%
#| export
def _where(module: str) -> str:
    "The file of a module's package, found without running it; its name where there is none."
    top = module.split(".")[0]
    found = getattr(sys.modules.get(top), "__spec__", None) or PathFinder.find_spec(top, [*sys.path, os.getcwd()])
    return found.origin if found is not None and found.origin else module


# %%
for field, name in (("method", "my_idea:size"), ("net_name", "my_net:Net"), ("net_name", "os")):
    try:
        check_trust("checkpoint.pt", {field: name}, trust="another_idea")
        raise RuntimeError("a checkpoint chose what is run")
    except DataError as error:
        print(str(error).replace(os.path.dirname(os.__file__), "…"))
check_trust("checkpoint.pt", {"method": "my_idea:size"}, "my_idea")
check_trust("checkpoint.pt", {"method": "ours", "net_name": "monai.networks.nets:BasicUNet"})

# %% [markdown]
# ## From a notebook's parameters
#
# [`notebook_settings`](../basics/06_notebook.ipynb) reads what papermill has written into a notebook; `train.ipynb` gives it to `Config`. YAML may hold
# a group as a dictionary, a text the settings that the parameters cell does not list.

# %%
cells = {"In": [], "json": json, "lr": None, "lam": {"mcrf": 0.9}, "data": {"patients": 4}, "extra": "start_atn=50"}
config = Config(**notebook_settings(cells, groups=tuple(OPEN)))
assert config == Config(lam_mcrf=0.9, data_patients=4, start_atn=50)

# %% [markdown]
# ## Check by hand
#
# Strings become what they say, groups may come as dictionaries, and the nearest name is offered.

# %%
config = Config(dataset="acdc", profile="mini", lam_mcrf="0.3", resume="false", asl_radius="3", lr="1e-2")
assert config.lam == {"mcrf": 0.3} and config.resume is False and config.asl_radius == 3 and config.lr == 0.01
config.differences()


# %%
def message(**given):
    "The text of the refusal."
    try:
        return Config(**given).run_id
    except ValueError as error:
        return str(error)


assert Config(crf={"mask": "p"}, lam={"mcrf": 0.3}) == Config(crf_mask="p", lam_mcrf=0.3)
assert Config(output=Path("runs")) == Config(output="runs")
assert "did you mean 'asl_radius'" in message(asl_radios=3)
assert "expected one of paper, released; did you mean 'released'?" in message(preset="relesed")
assert "crf_mask: found 'both'; Input should be 'pq', 'p' or 'none'" in message(crf_mask="both")
assert "multiple of 16" in message(size=100)
assert "lam_atn: method 'pce' has the terms seg" in message(method="pce", lam_atn=1)

# %%
assert "lam: found 5, expected NAME=VALUE" in message(lam=5) and "finite number" in message(lr="inf")
assert message(crf={"mask": "p"}, crf_mask="none") == "crf_mask: found 'p' and 'none', expected one of the two"
assert message(seed=True).startswith("seed: found True; Input should be a number") and Config(resume=True).resume
print(message(method="our", dataset="acdc", devise="cpu", device="gpu", lr=-1, data_patiens=3))

# %% [markdown]
# ## What a preset changes
#
# The released code differs from the paper's text in the following settings, and in no other.

# %%
paper, code = Config().flat(), Config(preset="released").flat()
{name: (paper.get(name), value) for name, value in code.items() if paper.get(name) != value}

# %% [markdown]
# ## Names for runs
#
# Two runs with the same settings have the same name, wherever they are stored; any setting that can change the
# outcome changes the hash.

# %%
assert Config(output="a").run_id == Config(output="b").run_id
assert Config(seed=1).run_id != Config(seed=2).run_id
assert Config(asl_sigma_xy=3.5).run_id != Config().run_id
released = Config(preset="released")
assert Config(**json.loads(released.model_dump_json())) == released
typed = Config(dataset="folder", data_folds="5", data_axis="coronal", data_robust="true").data
assert typed == {"folds": 5, "axis": "coronal", "robust": True}, "as a command line gives them"
ours, theirs = (Config(dataset="folder", root=f"data/{name}") for name in ("liver", "spleen"))
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

exercise(check_window, attempt_window, solution=lambda: 2 * (Config(profile="paper").crf_radius - 1) + 1)


# %% [markdown]
# **2. Implement.** Which settings does the preset `released` change for the method `pce`, leaving out those it has no use for? Return the names
# that differ between two configurations.

# %%
def check_changed(changed):
    assert changed(Config(seed=1, lr=0.1), Config(seed=2, lr=0.1)) == {"seed"}
    assert "crf_mask" in changed(Config(), Config(preset="released"))

def attempt_changed(one, other):
    ...

def solve_changed(one, other):
    one, other = one.flat(), other.flat()
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}

exercise(check_changed, attempt_changed, solve_changed)


# %% [markdown]
# **3. Break.** Find a setting that `Config` takes and that makes no difference to `run_id`.

# %%
def check_silent(answer):
    assert answer and Config(**answer).run_id == Config().run_id

attempt_silent = {}

exercise(lambda f: check_silent(f()), lambda: attempt_silent, solution=lambda: {"log_every": 7})

# %% [markdown]
# ## Recap
#
# Exported: `Config`, `PROFILES`, `PRESETS`. Everything after this chapter takes a `Config`. Surprise: most of what
# separates "the paper" from "the paper's code" fits in ten lines.
