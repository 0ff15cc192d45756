# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures
#
# > The paper's three figures, drawn from what they show: the network's modules, the masks of runs, and their errors.
#
# Where does each method go wrong? The paper circles false positives and missing areas by hand, and by hand one finds
# mainly what one looks for. This chapter draws the paper's three figures by programs: the network as it runs, and the
# masks of every method with circles that a rule places.

# %%
#| default_exp reporting.figures

# %%
#| export
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor, nn

# %%
#| export
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Circle as Ring
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.pyplot import subplots

# %%
#| export
from attenscribble.basics.drawing import class_legend, draw, for_figure, panels
from attenscribble.basics.errors import DataError
from attenscribble.basics.files import project_root, read_json
from attenscribble.data.datasets import open_dataset
from attenscribble.data.scans import Case, Dataset
from attenscribble.method.ssa import AttendedLayer
from attenscribble.reporting.tables import place, read_result
from attenscribble.runs.inference import evaluating, load_mask
from attenscribble.runs.metrics import POLICIES
from attenscribble.runs.run import _truth, median_case

# %%
import os
import tempfile
from itertools import pairwise

import matplotlib.pyplot as plt
from ipywidgets import interact

# %%
from attenscribble.basics.checking import exercise
from attenscribble.basics.drawing import save_figure
from attenscribble.basics.files import write_json
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import acdc
from attenscribble.method.network import UNet2d
from attenscribble.method.objective import method_named
from attenscribble.method.ssa import attach
from attenscribble.reporting.figures import circles, draw_circles
from attenscribble.runs.config import Config
from attenscribble.runs.inference import save_mask
from attenscribble.runs.metrics import score_case

# %% [markdown]
# ## The answer first
#
# A phantom slice and three ways to be wrong: too large, too small, and a second heart. What is predicted and is not
# there gets a solid circle, what is there and was missed a dashed one. A rim of two pixels, as on the left, gets none.

# %%
dataset = phantom(patients=5)
case = next(dataset.cases())
z = len(case.image) // 2
label = case.label[z]


# %%
def grow(mask, size=5):
    "Every structure spreads into the background."
    return np.where(mask == 0, ndimage.grey_dilation(mask, size=(1,) * (mask.ndim - 2) + (size, size)), mask)

def shrink(mask, size=9):
    keep = ndimage.binary_erosion(mask > 0, np.ones((1,) * (mask.ndim - 2) + (size, size)))
    return np.where(keep, mask, 0).astype(mask.dtype)

def second(mask):
    "The heart once more, smaller, in a corner."
    small = np.roll(shrink(mask, 5), (-26, 24), axis=(-2, -1))
    return np.where(mask == 0, small, mask)


# %%
figure, axes = panels(3)
for axis, wrong in zip(axes, (grow, shrink, second), strict=True):
    draw(axis, case.image[z], label=wrong(label), outline=label, title=wrong.__name__)
    draw_circles(axis, circles(wrong(label), label))


# %% [markdown]
# ## Equation: what is circled
#
# With predicted class $m_p$ and true class $y_p$ (0: background),
#
# $$E^+=\{p: m_p\neq 0,\; m_p\neq y_p\}\qquad E^-=\{p: y_p\neq 0,\; m_p=0\}$$
#
# Along every border a pixel or two differ, and nobody would circle them. So a morphological opening comes first: of each
# set it keeps what some 3×3 square inside the set covers. A circle is drawn around every connected region $R$ that
# remains:
#
# $$c=\frac1{|R|}\sum_{p\in R}p\qquad \rho=\max_{p\in R}\|p-c\|+\text{margin}$$
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $m$, $y$ | `mask`, `label` | [Y,X] | class id |
# | $c$ | `y`, `x` | scalars | px |
# | $\rho$ | `radius` | scalar | px |

# %% [markdown]
# ## Naive code
#
# Regions by walking from neighbour to neighbour, also across corners.

# %%
def regions_naive(error):
    left, found = set(map(tuple, np.argwhere(error).tolist())), []
    while left:
        region, edge = set(), {left.pop()}
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge |= near
        found.append(region)
    return found


# %%
def opened_naive(error):
    kept = np.zeros_like(error)
    for y in range(error.shape[0] - 2):
        for x in range(error.shape[1] - 2):
            if error[y:y + 3, x:x + 3].all():
                kept[y:y + 3, x:x + 3] = True
    return kept


# %% [markdown]
# **By hand.** A 3×3 block at rows 1–3 and columns 2–4 has its centre at (2, 3); its corners lie $\sqrt2$ away. A line
# of one pixel vanishes.
#
# **What breaks.** On a 1,000² image the walk visits a million pixels one by one.

# %%
block = np.zeros((8, 8), bool)
block[1:4, 2:5] = block[6, :] = True
(region,) = regions_naive(opened_naive(block))
assert len(region) == 9 and np.allclose(np.mean(list(region), axis=0), (2, 3))

# %%
#| export
_KINDS: dict[str, tuple[str, Literal["-", "--"]]] = {  # colour and line; none is a class's
    "false positive": ("#CC79A7", "-"), "false negative": ("#009E73", "--")}
_MARGIN_PX = 2.0  # between a region and its circle


@dataclass(frozen=True)
class Circle:
    "One region of error."

    kind: str  # "false positive" or "false negative"
    y: float  # centre, px
    x: float
    radius: float  # px, margin included
    pixels: int  # of the region


# %%
#| export
def circles(
    mask: np.ndarray,  # [Y,X] predicted class ids
    label: np.ndarray,  # [Y,X] true ones
    min_px: int = 20,  # a smaller region is left out
    most: int = 6,  # of each kind, the largest
) -> list[Circle]:  # false positives first, then by size
    """Connected regions of error, rims thinner than 3 px aside.

    A class predicted where the truth has none or another is a false positive, a structure left out a false negative.
    Raises ValueError unless both are 2D and of one shape."""
    if mask.ndim != 2 or mask.shape != label.shape:
        raise ValueError(f"mask: found shape {mask.shape}, expected [Y,X] as the label's {label.shape}")
    errors = {"false positive": (mask > 0) & (mask != label), "false negative": (label > 0) & (mask == 0)}
    return [_circle_around(region, kind) for kind, error in errors.items() for region in _regions(error, min_px, most)]


# %%
#| export
def _regions(error: np.ndarray, min_px: int, most: int) -> list[np.ndarray]:
    "The largest connected regions of an opened error, each [pixels,2] as (y,x)."
    kept = ndimage.binary_opening(error, np.ones((3, 3)))
    numbers, count = ndimage.label(kept, np.ones((3, 3)))
    regions = [np.argwhere(numbers == number) for number in range(1, count + 1)]
    return sorted((region for region in regions if len(region) >= min_px), key=len, reverse=True)[:most]


def _circle_around(region: np.ndarray, kind: str) -> Circle:
    "The circle around a region's centre of mass that holds all its pixels."
    y, x = region.mean(axis=0)
    radius = np.hypot(*(region - (y, x)).T).max() + _MARGIN_PX
    return Circle(kind, float(y), float(x), float(radius), len(region))


# %%
#| export
def draw_circles(
    axis: Axes,  # with the slice drawn on it
    found: Sequence[Circle],  # of `circles`
) -> None:
    "Circle the errors: solid what is predicted and not there, dashed what was missed."
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    limits = axis.axis()  # a circle may extend past the border, the panel stays as it is
    for circle in found:
        colour, line = _KINDS[circle.kind]
        axis.add_patch(Ring((circle.x, circle.y), circle.radius, fill=False, edgecolor=colour, linestyle=line,
                            linewidth=1.7, path_effects=halo if line == "-" else None))
    axis.axis(limits)


# %%
rng = np.random.default_rng(0)
for _ in range(5):
    error = ndimage.uniform_filter(rng.random((24, 24)), 5) > 0.5
    regions = regions_naive(opened_naive(error))
    found = circles(error.astype(int), np.zeros((24, 24), int), min_px=1, most=99)
    assert sorted(map(len, regions)) == sorted(circle.pixels for circle in found)

# %% [markdown]
# ## Slide the smallest size
#
# How small may an error be to count? At 1 px every speck is circled, at 60 px only what nobody overlooks.

# %%
specks = ndimage.gaussian_filter(rng.random(label.shape), 1.6)
noisy = np.where(specks > np.quantile(specks, 0.94), 1, second(label))


def plot_smallest(axis, min_px):
    found = circles(noisy, label, min_px=min_px, most=99)
    draw(axis, case.image[z], label=noisy, outline=label, title=f"from {min_px} px: {len(found)} circles")
    draw_circles(axis, found)
    return len(found)


# %%
def slide_smallest(min_px=20):
    plot_smallest(panels(1, size=3)[1][0], min_px)
    plt.show()

interact(slide_smallest, min_px=(1, 100));

# %%
figure, axes = panels(4, size=2.2)
counts = [plot_smallest(axis, min_px) for axis, min_px in zip(axes, (1, 15, 30, 60), strict=True)]
assert all(more >= less for more, less in pairwise(counts)) and counts[0] > counts[-1]


# %% [markdown]
# ## Figure 1: the network, drawn from its modules
#
# A drawing made by hand is wrong as soon as the code changes. This one is made by running the network once: what each of
# its stages returns is noted, and then drawn.

# %%
#| export
@dataclass(frozen=True)
class Anatomy:
    "What one forward pass shows of a U-Net with or without spatial self-attention."

    sizes: dict[str, tuple[int, ...]]  # stage → channels, height, width of what it returns
    encoder: tuple[str, ...]  # names of the stages, from fine to coarse
    decoder: tuple[str, ...]  # from coarse to fine
    attended: str = ""  # the stage with attention; empty without
    where: str = ""  # "output", "input" or "inside" of that stage
    separate: bool = False  # features pass unchanged
    query: tuple[int, ...] = ()  # heads × layers, positions, width of a query


# %%
#| export
def anatomy(
    model: nn.Module,  # with `encoder`, `decoder`, `head` and `in_channels`, such as `UNet2d`
    image_side: int,  # px
) -> Anatomy:  # its stages, their sizes, and where the attention stands
    "Run the network once and note what its stages return. Raises ValueError for another kind of network."
    if missing := [name for name in ("encoder", "decoder", "head", "in_channels") if not hasattr(model, name)]:
        raise ValueError(f"model: found {type(model).__name__} without {', '.join(missing)}, expected a network like "
                         "UNet2d")
    encoder, decoder = (tuple(f"{part}.{name}" for name, _ in getattr(model, part).named_children())
                        for part in ("encoder", "decoder"))
    stages = (*encoder, *decoder, "head")
    return Anatomy(_stage_sizes(model, stages, image_side), encoder, decoder, **_attention(model, stages))


# %%
#| export
def _stage_sizes(model: nn.Module, stages: Sequence[str], image_side: int) -> dict[str, tuple[int, ...]]:
    "What each stage returns for one image: channels, height, width."
    sizes: dict[str, tuple[int, ...]] = {}
    hooks = [model.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output, name=name: sizes.update({name: tuple(output.shape[1:])})) for name in stages]
    weights, channels = next(model.parameters()), cast(int, model.in_channels)
    try:
        with evaluating(model):
            model(torch.zeros(1, channels, image_side, image_side, device=weights.device, dtype=weights.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


# %%
#| export
def _attention(model: nn.Module, stages: Sequence[str]) -> dict[str, Any]:
    "Where the attention stands and the shape of its queries, as fields of `Anatomy`; none without attention."
    for name, layer in model.named_modules():
        if isinstance(layer, AttendedLayer):
            stage = next(stage for stage in stages if f"{name}.".startswith(f"{stage}."))
            return {"attended": stage, "where": layer.where if name == stage else "inside",
                    "separate": layer.separate, "query": tuple(cast(Tensor, layer.attention.query).shape[1:])}
    return {}


# %%
model = UNet2d(1, 4)
attach(model, "decoder.1", heads=2)
found = anatomy(model, 64)
assert found.sizes["encoder.2"] == (64, 16, 16) and found.query == (2, 256, 32)
assert (found.attended, found.where) == ("decoder.1", "output") and not anatomy(UNet2d(1, 4), 64).attended

# %%
#| export
_INKS = {"network": "#D6EAF8", "attention": "#F5D5E5", "loss": "#D5F0E3", "data": "#FFFFFF"}
_STEP = (0.85, 1.2)  # between the levels of the U
_TOP = 9.2  # x of the finest decoder stage


@dataclass(frozen=True)
class _Sketch:
    "Boxes by name, and arrows between them."

    axis: Axes
    boxes: dict[str, FancyBboxPatch] = field(default_factory=dict)

    def middle(self, name: str) -> tuple[float, float]:
        box = self.boxes[name]
        return box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2


# %%
#| export
def _add_box(sketch: _Sketch, name: str, x: float, y: float, size: tuple[float, float], text: str, ink: str,
             label: str = "") -> None:
    "A box centred at (x, y); its label outside the U."
    width, height = size
    box = FancyBboxPatch((x - width / 2, y - height / 2), width, height, facecolor=_INKS[ink], zorder=2,
                         boxstyle="round,pad=0.02,rounding_size=0.06", edgecolor="0.25", linewidth=0.9)
    sketch.boxes[name] = box
    sketch.axis.add_patch(box)
    sketch.axis.text(x, y, text, ha="center", va="center", fontsize=8, linespacing=1.25, zorder=3)
    side = (1 if x > _TOP / 2 else -1) * (y != 0)  # beside the U, above its top row
    sketch.axis.text(x + side * (width / 2 + 0.08), y - 0.22 if side else y + height / 2 + 0.07, label, fontsize=7.5,
                     color="0.3", ha={-1: "right", 0: "center", 1: "left"}[side], va="center" if side else "bottom",
                     bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})


# %%
#| export
def _add_arrow(sketch: _Sketch, start: str, end: str, bend: str = "arc3", **style: Any) -> None:
    "An arrow between two boxes, from border to border."
    sketch.axis.add_patch(FancyArrowPatch(
        sketch.middle(start), sketch.middle(end), patchA=sketch.boxes[start], patchB=sketch.boxes[end], shrinkA=1,
        shrinkB=1, connectionstyle=bend, arrowstyle="-|>", mutation_scale=9,
        **{"color": "0.25", "linewidth": 1, **style}))


# %%
#| export
def plot_architecture(
    model: nn.Module,  # as `anatomy` takes it
    image_side: int = 256,  # px
) -> Figure:  # one drawing
    "Figure 1 of the paper for this very network: stages, attention where it stands, the losses and what they read."
    parts = anatomy(model, image_side)
    figure, axis = subplots(figsize=(11, 5.1), layout="constrained")
    sketch, deepest = _Sketch(axis), len(parts.encoder) - 1
    axis.set(xlim=(-1.7, 15.1), ylim=(-(deepest + 0.95) * _STEP[1], 1.75), aspect="equal")
    axis.set_axis_off()
    _draw_network(sketch, parts)
    _draw_attention(sketch, parts, deepest)
    _connect(sketch, parts)
    _draw_losses(sketch, parts, deepest)
    return figure


# %% [markdown]
# Four functions draw the parts: the network itself, the attention, the arrows along the path of the features, and the
# losses with what they read.

# %%
#| export
def _draw_network(sketch: _Sketch, parts: Anatomy) -> None:
    "Image, encoder, decoder, head, probabilities; boxes grow with the logarithms of channels and side."
    levels = {name: level for level, name in enumerate(parts.encoder)}
    levels |= {name: len(parts.decoder) - 1 - index for index, name in enumerate(parts.decoder)}
    for name, level in levels.items():
        channels, height, width = parts.sizes[name]
        x = level * _STEP[0] if name in parts.encoder else _TOP - level * _STEP[0]
        size = 0.28 + 0.05 * np.log2(channels), 0.2 + 0.07 * np.log2(height)
        _add_box(sketch, name, x, -level * _STEP[1], size, f"{channels}\n{_side(height, width)}", "network", name)
    channels, height, width = parts.sizes["head"]
    _add_box(sketch, "image", -1.2, 0, (0.8, 0.76), f"image\n{_side(height, width)}", "data")
    _add_box(sketch, "head", _TOP + 1.05, 0, (0.5, 0.76), f"{channels}\n{_side(height, width)}", "network", "head")
    _add_box(sketch, "P", _TOP + 2.5, 0, (0.8, 0.76), "P\nsoftmax", "data")


# %%
#| export
def _side(height: int, width: int) -> str:
    "A grid as text, short where it is square."
    return f"{height}²" if height == width else f"{height}×{width}"


# %%
#| export
def _draw_attention(sketch: _Sketch, parts: Anatomy, deepest: int) -> None:
    "The attention, if there is one, beside its stage; the similarity below the U."
    if not parts.attended:
        return
    (heads, positions, width), (x, y) = parts.query, _attention_place(parts, sketch.middle(parts.attended), deepest)
    text = f"Q, K: {f'{heads} × ' if heads > 1 else ''}{positions:,} × {width}"
    text = f"self-attention,\n{parts.where} of {parts.attended}\n{text}"
    sketch.axis.set_xlim(left=min(x - 1.1, sketch.axis.get_xlim()[0]))
    _add_box(sketch, "attention", x, y, (1.95, 0.8), text, "attention")
    text = f"similarity S, {positions:,} × {positions:,}\nconvolution of the symmetrised attention"
    _add_box(sketch, "S", 8.3, -(deepest + 0.62) * _STEP[1], (3.6, 0.6), text, "attention")
    bend = "angle,angleA=-90,angleB=180,rad=6" if x < 6 else "arc3,rad=-0.2"
    _add_arrow(sketch, "attention", "S", bend, color="#A0447A", linestyle="--")


# %%
#| export
def _attention_place(parts: Anatomy, stage: tuple[float, float], deepest: int) -> tuple[float, float]:
    "The middle of the attention's box, beside its stage and clear of the other lines."
    (x, y), in_encoder = stage, parts.attended in parts.encoder
    if parts.where == "input":
        return (x - 2.95, y + _STEP[1] / 2) if in_encoder else (x + 1.9, y - _STEP[1] / 2)
    if in_encoder:  # right of the deepest stage, so that the way down to S is free; lower where the skip passes by
        return max(x + 1.9, deepest * _STEP[0] + 1.1), y - 0.62 * (parts.separate or parts.where == "inside")
    return (x + 2.25, y) if y < 0 else (x + 0.5, y + 1.3)


# %%
#| export
def _connect(sketch: _Sketch, parts: Anatomy) -> None:
    "Arrows along the path of the features, through the attention where it changes them."
    path = ["image", *parts.encoder, *parts.decoder, "head", "P"]
    edges = [(path[i], path[i + 1]) for i in range(len(path) - 1)]
    edges += list(zip(parts.encoder[-2::-1], parts.decoder, strict=True))  # skips
    at, changes = parts.attended, parts.attended and parts.where != "inside" and not parts.separate
    for start, end in edges:
        if changes and parts.where == "output" and start == at:
            start = "attention"
        elif changes and parts.where == "input" and end == at and start == path[path.index(at) - 1]:
            _add_arrow(sketch, start, "attention", "angle,angleA=-90,angleB=0,rad=6" if at in parts.encoder else "arc3")
            start = "attention"
        _add_arrow(sketch, start, end)
    if at and not (changes and parts.where == "input"):
        _add_arrow(sketch, at, "attention", linestyle="-" if changes else ":")


# %%
#| export
def _draw_losses(sketch: _Sketch, parts: Anatomy, deepest: int) -> None:
    "The losses at the right, each with what it reads."
    grid = int(parts.query[1] ** 0.5) if parts.attended else 0
    losses = {"pCE": ("partial cross-entropy\neq. 1, annotated pixels", "scribble"),
              "CRF": ("masked CRF\neqs. 4, 5, the other pixels", "image ")}
    if parts.attended:
        losses["ASL"] = (f"attentive similarity\neq. 6, P on {grid}² cells", "S")
    for index, (name, (text, source)) in enumerate(losses.items()):
        y = -index * (deepest - 0.35) * _STEP[1] / 2
        _add_box(sketch, name, 13.8, y, (2.3, 0.62), text, "loss")
        if source != "S":
            _add_box(sketch, source, 13.8, y + 0.95, (0.9, 0.42), source, "data")
        _add_arrow(sketch, "P", name, "angle,angleA=-90,angleB=180,rad=6" if index else "arc3")
        _add_arrow(sketch, source, name, **({"color": "#A0447A", "linestyle": "--"} if source == "S" else {}))


# %%
ours = method_named("ours").network(1, 4, Config())
figure = plot_architecture(ours, 256)
save_figure(figure, "figure1");

# %% [markdown]
# Each box shows channels and grid. The dashed path is the side information: the attention between the cells of the third
# stage becomes the similarity that the last loss reads. When the module is attached elsewhere, it is drawn elsewhere.

# %%
for layer, where in (("encoder.3", "input"), ("decoder.2", "output")):
    model = UNet2d(1, 4)
    attach(model, layer, where=where, heads=2)
    plot_architecture(model, 128)


# %% [markdown]
# ## Figures 2 and 3: every method on one slice
#
# A run folder holds the masks, the settings and the scores; nothing else is needed. The slice is chosen by a rule, not
# by eye: the volume with the median score over the methods shown, the middle of its labelled slices. Each method has
# one run: of several seeds the lowest.

# %%
#| export
@dataclass(frozen=True)
class Run:
    "A finished run folder."

    folder: Path
    settings: dict[str, Any]  # of config.json
    result: dict[str, Any]  # of result.json

    def mask(
        self,
        case: Case,  # a volume that the run was tested on
    ) -> np.ndarray:  # [Z,Y,X] uint8 class ids
        "The mask of a volume. Raises DataError for a missing or broken file and for another shape than the scan's."
        return load_mask(self.folder / "masks" / f"{case.name}.nii.gz", case, self.result.get("label_values", ()))


# %%
#| export
def find_runs(
    folder: Path | str,  # of run folders, such as runs/ of the clone
    dataset: str,  # its name
    *,
    profile: str = "",  # empty: the one that most methods were run with
    preset: str = "",  # empty: all
    fold: int = 1,  # the runs tested on this one
) -> list[Run]:  # one a method and preset, methods in the paper's order; empty if there is none
    "The finished runs that can stand side by side. Raises DataError for a broken config.json or result.json."
    runs = [read_run(path.parent) for path in sorted(Path(folder).glob("*/result.json"))]
    return _one_per_method([
        run for run in runs if run.result["cases"]  # the others have no truth to be drawn
        and run.result["dataset"] == dataset and run.result["fold"] == fold
        and preset in ("", run.result["preset"]) and profile in ("", run.result["profile"])])


# %%
#| export
def _one_per_method(runs: Sequence[Run]) -> list[Run]:
    "Of the profile with most rows one run a method and preset, that of the lowest seed."
    by_profile: dict[str, dict[tuple, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.result["seed"], run.result["run"])):
        key = place(run.result["method"]), run.result["preset"]
        by_profile.setdefault(run.result["profile"], {}).setdefault(key, run)
    chosen = max(by_profile.values(), key=len, default={})
    return [chosen[key] for key in sorted(chosen)]


# %%
#| export
def read_run(
    folder: Path,  # with config.json and result.json
) -> Run:  # what both files say
    "One run folder. Raises DataError for a missing or broken file."
    path = folder / "config.json"
    settings = read_json(path, "the JSON a run starts with")
    if not isinstance(settings, dict) or not isinstance(settings.get("data"), dict):
        raise DataError(f"{path}: data", "nothing of the kind", "the options of the dataset")
    return Run(folder, settings, read_result(folder / "result.json"))


# %%
#| export
def dataset_of(
    run: Run,  # of `find_runs`
    root: str = "",  # folder of the data; empty: the one that the run used
) -> Dataset:  # with the run's options
    "The dataset that a run was tested on. Raises what `open_dataset` raises."
    return open_dataset(run.result["dataset"], root or run.settings.get("root") or None, **run.settings["data"])


# %%
#| export
def plot_methods(
    runs: Sequence[Run],  # of `find_runs`
    dataset: Dataset,  # of `dataset_of`
    *,
    policy: str = POLICIES[0],  # how empty masks count in the scores
    columns: int = 5,  # panels a row
    min_px: int = 20,  # smallest error that is circled
) -> Figure:  # with a caption and a legend
    """Image, scribble, truth, then each run's mask over the true outline, errors circled.

    Raises ValueError for no runs, DataError for a mask that does not fit."""
    if not runs:
        raise ValueError("runs: found none, expected at least one finished run")
    rows = pd.DataFrame([{**row, "run": index} for index, run in enumerate(runs) for row in run.result["cases"]
                         if row["policy"] == policy])
    case, z = median_case(dataset, runs[0].result["fold"], rows)
    figure, axes = panels(3 + len(runs), columns=min(columns, 3 + len(runs)), size=2.3)
    _draw_truth(axes, case, z, dataset.ignore)
    several = len({run.result["preset"] for run in runs}) > 1
    for index, (axis, run) in enumerate(zip(axes[3:], runs, strict=True)):
        name = run.result["title"] + (f", {run.result['preset']}" if several else "")
        title = _panel_title(name, rows[(rows.run == index) & (rows.case == case.name)])
        _draw_run(axis, run.mask(case)[z], case, z, title, min_px)
    _finish(figure, dataset, _caption(runs, case, z, policy, min_px))
    return figure


# %% [markdown]
# The first three panels show image, scribble and truth, the others a run each; the caption says how slice and volume were
# chosen.

# %%
#| export
def _draw_truth(axes: np.ndarray, case: Case, z: int, ignore: int) -> None:
    "The first three panels: image, scribble, truth."
    image, scribble = case.gray[z], None if case.scribble is None else case.scribble[z]
    draw(axes[0], image, spacing_mm=case.spacing_mm and case.spacing_mm[1:], title="image")
    draw(axes[1], image, title="no scribble" if scribble is None else "scribble (not used here)", scribble=scribble,
         ignore=ignore)
    draw(axes[2], image, label=_truth(case)[z], title="truth")


def _draw_run(axis: Axes, mask: np.ndarray, case: Case, z: int, title: str, min_px: int) -> None:
    "A run's mask over the true outline, its errors circled."
    draw(axis, case.gray[z], label=mask, outline=_truth(case)[z], title=title)
    draw_circles(axis, circles(mask, _truth(case)[z], min_px))


# %%
#| export
def _panel_title(name: str, scores: pd.DataFrame) -> str:
    "A run's name and its means over the classes of the volume."
    scores = scores.astype({"hd95_mm": float})
    distance = "" if scores.hd95_mm.isna().all() else f", HD95 {scores.hd95_mm.mean():.1f} mm"
    return f"{for_figure(name)}\nDSC {scores.dsc.mean():.2f}{distance}"


def _caption(runs: Sequence[Run], case: Case, z: int, policy: str, min_px: int) -> str:
    "Which volume and slice, how it was chosen, what the numbers and the lines mean."
    result = runs[0].result
    return (f"{result['dataset']}, {case.name}, slice {z + 1} of {len(case.image)}: the volume of fold "
            f"{result['fold']} with the median score over the methods shown, the middle labelled slice. Profile "
            f"{result['profile']}. DSC, HD95: means over the volume's classes, policy {policy}. Filled: prediction; "
            f"line: truth. Circled: errors of at least {min_px} px, 3 px thick.")


# %%
#| export
def _finish(figure: Figure, dataset: Dataset, caption: str) -> None:
    "Caption on top, a legend of classes and circles below."
    width, grid = figure.get_figwidth(), cast(GridSpec, figure.axes[-1].get_gridspec())
    figure.set_figheight(figure.get_figheight() + 0.2 * grid.nrows + 0.6)
    figure.suptitle("\n".join(textwrap.wrap(for_figure(caption), int(15.5 * width))), fontsize=8, x=0.01, ha="left")
    class_legend(figure, dataset.class_names)
    (classes,) = figure.legends
    lines = [Line2D([], [], color=colour, linestyle=line, linewidth=1.7, label=kind)
             for kind, (colour, line) in _KINDS.items()]
    handles = [*classes.legend_handles, *lines]  # one legend: two would meet on a narrow figure
    classes.remove()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


# %%
#| export
def picture_folder(
    dataset: str,  # its name
    output: Path | str,  # where pictures are wanted
    runs: Path | str,  # folder of the run folders
) -> tuple[Path, str]:  # where they may go, and why not to `output` (empty if there)
    "Pictures of patients stay out of the clone, but for its runs/, which git ignores."
    output, root = Path(output).resolve(), project_root()
    clone = root is not None and output.is_relative_to(root) and not output.is_relative_to(root / "runs")
    if dataset == "phantom" or not clone:
        return output, ""
    why = f"{output.name}/ belongs to the clone, and a picture of a patient ({dataset}) must not enter the repository"
    return Path(runs).resolve(), f"{why}: it goes beside the runs"


# %% [markdown]
# Three folders as a run leaves them, with the masks of the three wrong ways in place of a trained network's.

# %%
def pretend_run(folder, wrong, title):
    "A run folder whose masks are the truth, damaged."
    target, rows = Path(folder, title), []
    for case in dataset.cases(dataset.split(1)[1]):
        mask = wrong(case.label).astype(np.uint8)
        save_mask(mask, case, target / "masks" / f"{case.name}.nii.gz")
        rows += score_case(mask, case.label, case.spacing_mm, dataset.class_names, case=case.name)
    write_json({"dataset": "phantom", "root": "", "data": {"patients": 5}}, target / "config.json")
    facts = {"run": title, "dataset": "phantom", "method": title, "title": title, "fold": 1, "seed": 1,
            "profile": "smoke", "preset": "paper", "checkpoint": "last", "train_seconds": 0, "settings": {}}
    write_json({**facts, "cases": rows}, target / "result.json")


# %%
with tempfile.TemporaryDirectory() as folder:
    for title, wrong in {"too large": grow, "too small": shrink, "a second heart": second}.items():
        pretend_run(folder, wrong, title)
    runs = find_runs(folder, "phantom")
    figure = plot_methods(runs, dataset_of(runs[0]), columns=3)
assert len(runs) == 3 and len(figure.axes) == 6

# %% [markdown]
# A picture of a patient must not enter a repository, so the folder is checked before anything is written.

# %%
kept, why = picture_folder("acdc", project_root() / "figures", project_root() / "runs")
assert kept.name == "runs" and picture_folder("phantom", "figures", "runs")[1] == ""
print(why)

# %% [markdown]
# ## Real data: how many circles has a rim?
#
# A network at half the resolution errs by about a pixel all around a structure. Such an error gets no circle.

# %%
folder = Path(os.environ.get("ATTENSCRIBBLE_DATA", "data")) / "acdc"
if folder.is_dir():
    scan = acdc(folder).read("patient001")[0]
    counts = {size: sum(len(circles(grow(one, size), one)) for one in scan.label) for size in (3, 11)}
    print(f"{scan.name}, {len(scan.label)} slices: too large by 1 px: {counts[3]} circles; by 5 px: {counts[11]}")
    assert counts[3] < counts[11]
else:
    print(f"skipped: no ACDC folder at {folder}; set ATTENSCRIBBLE_DATA")


# %% [markdown]
# Circles show errors in one place, not a bias: a method that is a little too large everywhere has none; its DSC shows it.
#
# ## Exercises
#
# **1. Predict.** A class is confused: the mask says 1 where the truth says 2, on a 6×6 block. Which kinds of circle does
# it get?

# %%
def check_confused(f):
    mask, label = np.zeros((12, 12), int), np.zeros((12, 12), int)
    mask[3:9, 3:9], label[3:9, 3:9] = 1, 2
    assert sorted(f()) == sorted({circle.kind for circle in circles(mask, label)})

def attempt_confused():
    ...  # your code here

exercise(check_confused, attempt_confused, solution=lambda: ["false positive"])


# %% [markdown]
# **2. Implement.** The share of the erroneous pixels that lie in circled regions.

# %%
def check_share(f):
    wrong = second(label)
    share = f(wrong, label)
    assert 0 < share <= 1 and f(grow(label, 3), label) < 0.2 < share

def attempt_share(mask, label):
    ...  # your code here

exercise(check_share, attempt_share, solution=lambda mask, label: sum(
    c.pixels for c in circles(mask, label, 1, 99)) / (mask != label).sum())


# %% [markdown]
# **3. Break.** Find an error of at least 100 px that gets no circle.

# %%
def check_unseen(f):
    mask, label = f()
    assert (mask != label).sum() >= 100 and not circles(mask, label, min_px=1)

def attempt_unseen():
    ...  # your code here

exercise(check_unseen, attempt_unseen, solution=lambda: (np.indices((20, 20)).sum(0) % 2, np.zeros((20, 20), int)))

# %% [markdown]
# ## Recap
#
# `plot_architecture` draws a network, `circles` finds its errors, `find_runs` and `plot_methods` set runs side by side;
# [figures.ipynb](../figures.ipynb) runs them. Surprising: no rule for circles is neutral; this one shows no bias.
# [The next chapter](62_nnunet.ipynb) compares with nnU-Net.
