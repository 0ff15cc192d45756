# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Switches
#
# > What the paper says, what its code does, and a name for each difference.
#
# Does the released code do what the paper says? Not everywhere, and some choices the paper leaves open, so a comparison is fair only if each choice
# is known and can be changed alone. This chapter gives each of them a name, a default and a range: a switch, checked when it is set.

# %%
#| default_exp method.switches

# %%
#| export
import json
import os
import sys
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from attenscribble.basics.notebook import each_once

# %%
from attenscribble.basics.checking import exercise

# %% [markdown]
# ## The answer: where paper and code differ
#
# The defaults follow the paper's text, and the released code where the text gives no value. Eleven settings are all it takes to run what the code does
# instead of the text. Three of them belong to the run ([chapter 50](../runs/50_config.ipynb)), the others to the method. (They come from the finished
# module; the rest of the chapter builds it.)

# %%
from attenscribble.method.switches import RELEASED, MethodSwitches

for name, value in RELEASED.items():
    switch = MethodSwitches.model_fields.get(name)
    paper, text = (switch.default, switch.description) if switch else ("", "a setting of the run")
    print(f"{name:25} paper {paper!s:9} code {value!s:15} {text}")


# %% [markdown]
# ## A switch
#
# A switch is a field with a type, a default, a range and a line that says what it is. Unknown names and values out of range are refused. The names
# are flat: `crf_radius` is the radius of the masked CRF on a command line, in a notebook and in this chapter.

# %%
#| export
class Switches(BaseModel):
    "Some switches: unknown names and values out of range are refused."

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    released: ClassVar[dict[str, Any]] = {}  # of a method's own switches: what its published code does otherwise


# %% [markdown]
# ## The switches of each part
#
# All windows are given in pixels or cells of the paper's 256² input. `reach="input"` keeps their share of the input when it has another side: at 128²
# they become half as wide. With `"px"` the numbers are taken as they are.

# %%
#| export
class _ReachSwitches(Switches):
    "What the unit of windows and distance decays is."

    reach: Literal["px", "input"] = Field("px", description="radii, sigmas: as given, or of a 256² input and scaled")


# %% [markdown]
# The partial cross-entropy ([chapter 31](31_pce.ipynb)) and the masked CRF ([chapter 32](32_mcrf.ipynb)).

# %%
#| export
class _PceSwitches(Switches):
    "Switches of the partial cross-entropy (eq. 1)."

    pce_reduction: Literal["batch", "image", "class"] = Field("batch", description="mean over the strokes of what")


# %%
#| export
class _CrfSwitches(Switches):
    "Switches of the masked CRF (eqs. 4, 5)."

    crf_radius: int = Field(5, ge=1, description="window radius in px; the paper leaves it open, 5 is released")
    crf_window: Literal["inclusive", "strict"] = Field("inclusive", description="offsets up to radius, or below it")
    crf_sigma_xy: float = Field(6.0, gt=0, description="spatial kernel width in px (released)")
    crf_sigma_i: float = Field(0.1, gt=0, description="intensity kernel width (released)")
    crf_kernel_weight: float = Field(1.0, ge=0, description="w of eq. 5 (released)")
    crf_mask: Literal["pq", "p", "none"] = Field(
        "pq", description="who is in the unlabelled set: both, only p, no mask")
    crf_denominator: Literal["image", "batch"] = Field(
        "image", description="1/|Omega_U| of each image, or of the batch")
    crf_count_padding: bool = Field(False, description="add the released code's out-of-image pairs (value only)")


# %% [markdown]
# The attention ([chapter 33](33_ssa.ipynb)) and the loss that compares with it ([chapter 34](34_asl.ipynb)).

# %%
#| export
class _SsaSwitches(Switches):
    "Switches of the spatial self-attention."

    ssa_layer: str = Field("encoder.2", description="the layer it is attached to: the third of the encoder")
    ssa_heads: int = Field(1, ge=1, description="attention heads n")
    ssa_layers: int = Field(1, ge=1, description="attention layers L")
    ssa_block: Literal["paper", "prenorm_mixffn", "residual"] = Field(
        "paper", description="the text's block or the code's")
    ssa_to_skip: bool = Field(True, description="attended features also go to the decoder skip")
    ssa_separate: bool = Field(False, description="side branch: features pass unchanged, only the loss sees attention")


# %%
#| export
class _AslSwitches(Switches):
    "Switches of the attentive similarity loss (eq. 6)."

    asl_radius: int = Field(5, ge=1, description="window radius in cells of the feature grid (released)")
    asl_window: Literal["inclusive", "strict"] = Field("inclusive", description="offsets up to radius, or below it")
    asl_sigma_xy: float = Field(6.0, gt=0, description="distance decay in cells of the feature grid (released)")
    asl_logit_scale: Literal["sqrt_dk", "none"] = Field("sqrt_dk", description="divide QK by sqrt(d_k) before S")
    asl_similarity_scale: float | Literal["hw"] = Field(1.0, description="factor on the symmetrised attention")
    asl_mask: Literal["omega_u", "none"] = Field("omega_u", description="only unlabelled cells, or all")
    asl_denominator: Literal["omega_u", "grid"] = Field("omega_u", description="1/|Omega_U|, or 1/hw over all images")
    asl_exclude_single_class: bool = Field(False, description="drop slices whose scribble holds at most one class")
    asl_resize: Literal["bilinear", "area", "nearest"] = Field("bilinear", description="how P comes down to the grid")
    asl_grad_p: bool = Field(True, description="the loss moves the prediction")
    asl_grad_s: bool = Field(True, description="the loss moves the attention")


# %%
#| export
class _SelfSwitches(Switches):
    "Switches of self-training."

    self_threshold: float = Field(0.9, ge=0, lt=1, description="probability above which the average's answer counts")


# %% [markdown]
# The network, the book's U-Net or another one ([chapter 37](37_other_networks.ipynb)).

# %%
#| export
class NetSwitches(Switches):
    "Switches of the network."

    net_name: str = Field("", description="a network from elsewhere, as package.module:Name; empty: the U-Net")
    net_options: dict[str, Any] = Field({}, description="its keywords as JSON; without a name, the U-Net's")

    @field_validator("net_options", mode="before")
    @classmethod
    def from_text(cls, options: Any) -> Any:
        once = partial(each_once, "net_options: ")
        return json.loads(options, object_pairs_hook=once) if isinstance(options, str) else options


# %% [markdown]
# Together they are one object. A misspelt name is an error, not a setting without effect.

# %%
#| export
class MethodSwitches(
    NetSwitches, _ReachSwitches, _PceSwitches, _CrfSwitches, _SsaSwitches, _AslSwitches, _SelfSwitches
):
    "All switches that touch the method, under flat names."


# %%
assert MethodSwitches().asl_logit_scale == "sqrt_dk" and MethodSwitches(crf_mask="p").crf_mask == "p"
try:
    MethodSwitches(asl_radios=3)
    raise RuntimeError("an unknown switch was taken")
except ValueError as error:
    assert "asl_radios" in str(error)

# %% [markdown]
# ## The released code
#
# What it does otherwise, and nothing else.

# %%
#| export
RELEASED = {
    "crf_mask": "p",
    "crf_denominator": "batch",
    "crf_count_padding": True,
    "ssa_block": "prenorm_mixffn",
    "asl_logit_scale": "none",
    "asl_mask": "none",
    "asl_denominator": "grid",
    "asl_exclude_single_class": True,
    "start_atn": 1,
    "lr_off_by_one": True,
    "eval_resize": "nearest",
}

# %%
switches = RELEASED.keys() & MethodSwitches.model_fields.keys()
assert len(RELEASED) == 11 and len(switches) == 8
assert all(getattr(MethodSwitches(), name) != RELEASED[name] for name in switches)
released = MethodSwitches(**{name: RELEASED[name] for name in switches})
assert MethodSwitches(**released.model_dump()) == released != MethodSwitches()


# %% [markdown]
# ## Names of things that others wrote
#
# A network or a method from another file is named by its import path, `package.module:Name`. The file may be installed, or lie in the
# folder from which the command is run.

# %%
#| export
def import_named(
    field: str,  # the setting that holds the path, for the message
    path: str,  # "package.module:Name"
) -> Any:  # the object of that name
    "What an import path leads to; the module is run. Raises ValueError, naming the setting, where it leads nowhere."
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing installed is hidden
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{field}: found {path!r} ({error}), expected package.module:Name of something installed or "
                         "in the current folder") from error
    except Exception as error:
        stopped = f"{type(error).__name__}: {error}"
        raise ValueError(f"{field}: found {path!r}, whose module stops with {stopped}") from error


# %%
assert import_named("net_name", "json:dumps") is json.dumps
for path in ("json:dump_it", "no_such_file:Net"):
    try:
        import_named("net_name", path)
        raise RuntimeError("a path to nothing was taken")
    except ValueError as error:
        print(error)


# %% [markdown]
# ## Exercise
#
# **Predict.** The paper's window is strict: offsets below $r$ count. How many neighbours does a pixel have with `crf_radius=5` and
# `crf_window="strict"`, and how many with `"inclusive"`?

# %%
def check_neighbours(answer):
    assert answer() == (80, 120)

def my_neighbours():
    ...  # your numbers here

exercise(check_neighbours, my_neighbours, solution=lambda: (9**2 - 1, 11**2 - 1))

# %% [markdown]
# ## Recap
#
# `MethodSwitches` holds every choice that touches the method, `RELEASED` what the published code chooses, and `import_named` finds what others wrote.
# Surprising: published text and code differ in eleven places. [Next](36_objective.ipynb): the
# terms that read the switches, and the methods that are made of terms.
