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
# > The paper's three figures, each drawn from what it shows: the network from its modules, the masks from run folders,
# > the circles from the errors.
#
# **Question.** Where does each method go wrong? The paper circles false positives and missing areas by hand. By hand one
# finds what one looks for; a rule finds the rest too.

# %%
#| default_exp experiment.figures

# %%
#| export
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle as Ring
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.pyplot import subplots
from scipy import ndimage
from torch import nn

from attenscribble.book import class_legend, draw, panels, project_root
from attenscribble.data.datasets import open_dataset
from attenscribble.data.scans import Case, DataError, Dataset
from attenscribble.experiment.inference import evaluating, load_mask
from attenscribble.experiment.metrics import POLICIES
from attenscribble.experiment.runs import median_case
from attenscribble.experiment.tables import place, read_result
from attenscribble.method.ssa import AttendedLayer

# %%
import os
import tempfile
from itertools import pairwise

import matplotlib.pyplot as plt
from ipywidgets import interact

from attenscribble.book import exercise, save_figure
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import acdc
from attenscribble.experiment.config import Config
from attenscribble.experiment.figures import circles, draw_circles
from attenscribble.experiment.inference import save_mask
from attenscribble.experiment.metrics import score_case
from attenscribble.experiment.runs import write_json
from attenscribble.method.network import UNet2d
from attenscribble.method.objective import method_named
from attenscribble.method.ssa import attach

# %% [markdown]
# ## The answer first
#
# A phantom slice and three ways to be wrong: too large, too small, and a second heart. What is claimed and is not there gets
# a solid circle, what is there and was missed a dashed one. A rim of two pixels, as on the left, gets none.

# %%
dataset = phantom(patients=5)
case = next(dataset.cases())
z = len(case.image) // 2
label = case.label[z]


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
# Along every border a pixel or two differ, and nobody would circle them. So each set is opened first: kept is what some 3×3
# square inside the set covers. A circle stands around every connected region $R$ that remains:
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

def opened_naive(error):
    kept = np.zeros_like(error)
    for y in range(error.shape[0] - 2):
        for x in range(error.shape[1] - 2):
            if error[y:y + 3, x:x + 3].all():
                kept[y:y + 3, x:x + 3] = True
    return kept


# %% [markdown]
# **By hand.** A 3×3 block at rows 1–3 and columns 2–4 has its centre at (2, 3); its corners lie $\sqrt2$ away. A line
# of one pixel vanishes. What breaks: on a 1,000² image the walk visits a million pixels one by one.

# %%
block = np.zeros((8, 8), bool)
block[1:4, 2:5] = block[6, :] = True
(region,) = regions_naive(opened_naive(block))
assert len(region) == 9 and np.allclose(np.mean(list(region), axis=0), (2, 3))

# %%
#| export
KINDS = {"false positive": ("#CC79A7", "-"), "false negative": ("#009E73", "--")}  # colour and line; none is a class's
MARGIN_PX = 2.0  # between a region and its circle


@dataclass(frozen=True)
class Circle:
    "One region of error."

    kind: str  # one of KINDS
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

    A class claimed where the truth has none or another is a false positive, a structure left out a false negative.
    Raises ValueError unless both are 2D and of one shape."""
    if mask.ndim != 2 or mask.shape != label.shape:
        raise ValueError(f"mask: found shape {mask.shape}, expected [Y,X] as the label's {label.shape}")
    errors = ((mask > 0) & (mask != label), (label > 0) & (mask == 0))
    found = []
    for kind, error in zip(KINDS, errors, strict=True):
        kept = ndimage.binary_opening(error, np.ones((3, 3)))
        numbers, count = ndimage.label(kept, np.ones((3, 3)))
        points = [np.argwhere(numbers == number) for number in range(1, count + 1)]
        points = sorted((p for p in points if len(p) >= min_px), key=len, reverse=True)[:most]
        for region in points:
            y, x = region.mean(axis=0)
            radius = np.hypot(*(region - (y, x)).T).max() + MARGIN_PX
            found.append(Circle(kind, float(y), float(x), float(radius), len(region)))
    return found


# %%
#| export
def draw_circles(axis: Axes, found: Sequence[Circle]) -> None:
    "Circle the errors: solid what is claimed and not there, dashed what was missed."
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    limits = axis.axis()  # a circle may reach over the rim, the panel stays as it is
    for circle in found:
        colour, line = KINDS[circle.kind]
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
# A drawing of a network ages: the code changes, the drawing does not. This one runs the network, listens at its stages, and
# draws what it heard.

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


def anatomy(
    model: nn.Module,  # with `encoder`, `decoder`, `head` and `in_channels`, such as `UNet2d`
    image_side: int,  # px
) -> Anatomy:
    "Run the network once and note what its stages return. Raises ValueError for another kind of network."
    if missing := [name for name in ("encoder", "decoder", "head", "in_channels") if not hasattr(model, name)]:
        raise ValueError(f"model: {type(model).__name__} has no {', '.join(missing)}, expected a network like UNet2d")
    encoder, decoder = ([f"{part}.{name}" for name, _ in getattr(model, part).named_children()]
                        for part in ("encoder", "decoder"))
    stages, sizes = [*encoder, *decoder, "head"], {}
    hooks = [model.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output, name=name: sizes.update({name: tuple(output.shape[1:])})) for name in stages]
    weights = next(model.parameters())
    try:
        with evaluating(model):
            model(torch.zeros(1, model.in_channels, image_side, image_side, device=weights.device, dtype=weights.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    holders = [(name, part) for name, part in model.named_modules() if isinstance(part, AttendedLayer)]
    for name, holder in holders:
        stage = next(stage for stage in stages if f"{name}.".startswith(f"{stage}."))
        return Anatomy(sizes, tuple(encoder), tuple(decoder), stage, holder.where if name == stage else "inside",
                       holder.separate, tuple(holder.attention.query.shape[1:]))
    return Anatomy(sizes, tuple(encoder), tuple(decoder))


# %%
model = UNet2d(1, 4)
attach(model, "decoder.1", heads=2)
found = anatomy(model, 64)
assert found.sizes["encoder.2"] == (64, 16, 16) and found.query == (2, 256, 32)
assert (found.attended, found.where) == ("decoder.1", "output") and not anatomy(UNet2d(1, 4), 64).attended

# %%
#| export
INKS = {"network": "#D6EAF8", "attention": "#F5D5E5", "loss": "#D5F0E3", "data": "#FFFFFF"}


class Sketch:
    "Boxes by name, and arrows between them."

    def __init__(self, axis: Axes) -> None:
        self.axis, self.boxes = axis, {}

    def box(self, name: str, x: float, y: float, size: tuple[float, float], text: str, ink: str,
            label: str = "") -> None:
        "A box centred at (x, y); its label outside the U."
        width, height = size
        self.boxes[name] = FancyBboxPatch((x - width / 2, y - height / 2), width, height, facecolor=INKS[ink], zorder=2,
                                          boxstyle="round,pad=0.02,rounding_size=0.06", edgecolor="0.25", linewidth=0.9)
        self.axis.add_patch(self.boxes[name])
        self.axis.text(x, y, text, ha="center", va="center", fontsize=8, linespacing=1.25, zorder=3)
        side = (1 if x > TOP / 2 else -1) * (y != 0)  # beside the U, above its rim
        self.axis.text(x + side * (width / 2 + 0.08), y - 0.22 if side else y + height / 2 + 0.07, label, fontsize=7.5,
                       color="0.3", ha={-1: "right", 0: "center", 1: "left"}[side], va="center" if side else "bottom",
                       bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})

    def arrow(self, start: str, end: str, bend: str = "arc3", **style: Any) -> None:
        "From border to border."
        self.axis.add_patch(FancyArrowPatch(
            self.middle(start), self.middle(end), patchA=self.boxes[start], patchB=self.boxes[end], shrinkA=1,
            shrinkB=1, connectionstyle=bend, arrowstyle="-|>", mutation_scale=9,
            **{"color": "0.25", "linewidth": 1, **style}))

    def middle(self, name: str) -> tuple[float, float]:
        box = self.boxes[name]
        return box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2


# %%
#| export
STEP = (0.85, 1.2)  # between the levels of the U
TOP = 9.2  # x of the finest decoder stage


def plot_architecture(
    model: nn.Module,  # as `anatomy` takes it
    image_side: int = 256,  # px
) -> Figure:
    "Figure 1 of the paper for this very network: stages, attention where it stands, the losses and what feeds them."
    parts = anatomy(model, image_side)
    deepest = len(parts.encoder) - 1
    figure, axis = subplots(figsize=(11, 5.1), layout="constrained")
    axis.set(xlim=(-1.7, 15.1), ylim=(-(deepest + 0.95) * STEP[1], 1.75), aspect="equal")
    axis.set_axis_off()
    sketch = Sketch(axis)
    _draw_network(sketch, parts)
    if parts.attended:
        _draw_attention(sketch, parts, deepest)
    _connect(sketch, parts)
    _draw_losses(sketch, parts, deepest)
    return figure


# %%
#| export
def _draw_network(sketch: Sketch, parts: Anatomy) -> None:
    "Image, encoder, decoder, head, probabilities; boxes grow with the logarithms of channels and side."
    levels = {name: level for level, name in enumerate(parts.encoder)}
    levels |= {name: len(parts.decoder) - 1 - index for index, name in enumerate(parts.decoder)}
    for name, level in levels.items():
        channels, height, width = parts.sizes[name]
        x = level * STEP[0] if name in parts.encoder else TOP - level * STEP[0]
        size = 0.28 + 0.05 * np.log2(channels), 0.2 + 0.07 * np.log2(height)
        sketch.box(name, x, -level * STEP[1], size, f"{channels}\n{_side(height, width)}", "network", name)
    channels, height, width = parts.sizes["head"]
    sketch.box("image", -1.2, 0, (0.8, 0.76), f"image\n{_side(height, width)}", "data")
    sketch.box("head", TOP + 1.05, 0, (0.5, 0.76), f"{channels}\n{_side(height, width)}", "network", "head")
    sketch.box("P", TOP + 2.5, 0, (0.8, 0.76), "P\nsoftmax", "data")


def _side(height: int, width: int) -> str:
    return f"{height}²" if height == width else f"{height}×{width}"


# %%
#| export
def _draw_attention(sketch: Sketch, parts: Anatomy, deepest: int) -> None:
    "The attention beside its stage, the similarity below the U."
    (heads, places, width), (x, y) = parts.query, sketch.middle(parts.attended)
    if parts.where == "input" and parts.attended in parts.encoder:
        x, y = x - 2.95, y + STEP[1] / 2
        sketch.axis.set_xlim(left=min(x - 1.1, sketch.axis.get_xlim()[0]))
    elif parts.where == "input":
        x, y = x + 1.9, y - STEP[1] / 2
    elif parts.attended in parts.encoder:  # right of the deepest stage, so that the way down to S is free
        x = max(x + 1.9, deepest * STEP[0] + 1.1)
        y -= 0.62 if parts.separate or parts.where == "inside" else 0  # the skip passes by
    elif y < 0:
        x += 2.25
    else:
        x, y = x + 0.5, y + 1.3
    text = f"Q, K: {f'{heads} × ' if heads > 1 else ''}{places:,} × {width}"
    text = f"self-attention,\n{parts.where} of {parts.attended}\n{text}"
    sketch.box("attention", x, y, (1.95, 0.8), text, "attention")
    text = f"similarity S, {places:,} × {places:,}\nconvolution of the symmetrised attention"
    sketch.box("S", 8.3, -(deepest + 0.62) * STEP[1], (3.6, 0.6), text, "attention")
    bend = "angle,angleA=-90,angleB=180,rad=6" if x < 6 else "arc3,rad=-0.2"
    sketch.arrow("attention", "S", bend, color="#A0447A", linestyle="--")


# %%
#| export
def _connect(sketch: Sketch, parts: Anatomy) -> None:
    "Arrows along the path of the features, through the attention where it changes them."
    path = ["image", *parts.encoder, *parts.decoder, "head", "P"]
    edges = [(path[i], path[i + 1]) for i in range(len(path) - 1)]
    edges += list(zip(parts.encoder[-2::-1], parts.decoder, strict=True))  # skips
    at, changes = parts.attended, parts.attended and parts.where != "inside" and not parts.separate
    for start, end in edges:
        if changes and parts.where == "output" and start == at:
            start = "attention"
        elif changes and parts.where == "input" and end == at and start == path[path.index(at) - 1]:
            sketch.arrow(start, "attention", "angle,angleA=-90,angleB=0,rad=6" if at in parts.encoder else "arc3")
            start = "attention"
        sketch.arrow(start, end)
    if at and not (changes and parts.where == "input"):
        sketch.arrow(at, "attention", linestyle="-" if changes else ":")


def _draw_losses(sketch: Sketch, parts: Anatomy, deepest: int) -> None:
    "The losses at the right, each with what it reads."
    grid = int(parts.query[1] ** 0.5) if parts.attended else 0
    losses = {"pCE": ("partial cross-entropy\neq. 1, annotated pixels", "scribble"),
              "CRF": ("masked CRF\neqs. 4, 5, the other pixels", "image ")}
    if parts.attended:
        losses["ASL"] = (f"attentive similarity\neq. 6, P on {grid}² cells", "S")
    for index, (name, (text, source)) in enumerate(losses.items()):
        y = -index * (deepest - 0.35) * STEP[1] / 2
        sketch.box(name, 13.8, y, (2.3, 0.62), text, "loss")
        if source != "S":
            sketch.box(source, 13.8, y + 0.95, (0.9, 0.42), source, "data")
        sketch.arrow("P", name, "angle,angleA=-90,angleB=180,rad=6" if index else "arc3")
        sketch.arrow(source, name, **({"color": "#A0447A", "linestyle": "--"} if source == "S" else {}))


# %%
ours = method_named("ours").network(1, 4, Config.from_flat())
figure = plot_architecture(ours, 256)
save_figure(figure, "figure1");

# %% [markdown]
# Boxes say channels and grid. The dashed path is the side information: how the third stage's cells look at each other becomes the
# similarity that the last loss reads. Attach the module elsewhere, and it moves.

# %%
for layer, where in (("encoder.3", "input"), ("decoder.2", "output")):
    model = UNet2d(1, 4)
    attach(model, layer, where=where, heads=2)
    plot_architecture(model, 128)


# %% [markdown]
# ## Figures 2 and 3: every method on one slice
#
# A run folder holds the masks, the settings and the scores; nothing else is needed. The slice is chosen by a rule, not by eye:
# the volume with the median score over the methods shown, the middle of its labelled slices. One run a method: of
# several seeds the lowest.

# %%
#| export
@dataclass(frozen=True)
class Run:
    "A finished run folder."

    folder: Path
    settings: dict[str, Any]  # of config.json
    result: dict[str, Any]  # of result.json

    def mask(self, case: Case) -> np.ndarray:  # [Z,Y,X] class ids
        "The mask of a volume. Raises DataError for a missing or broken file and for another shape than the scan's."
        return load_mask(self.folder / "masks" / f"{case.name}.nii.gz", case, self.result.get("label_values", ()))


def find_runs(
    folder: Path | str,  # of run folders, such as runs/ of the clone
    dataset: str,
    *,
    profile: str = "",  # empty: the one that most methods were run with
    preset: str = "",  # empty: all
    fold: int = 1,
) -> list[Run]:  # one a method and preset, methods in the paper's order; empty if there is none
    "The finished runs that can stand side by side. Raises DataError for a broken config.json or result.json."
    runs = [read_run(path.parent) for path in sorted(Path(folder).glob("*/result.json"))]
    runs = [run for run in runs if run.result["cases"]  # the others have no truth to be drawn
            and run.result["dataset"] == dataset and run.result["fold"] == fold
            and preset in ("", run.result["preset"]) and profile in ("", run.result["profile"])]
    by_profile: dict[str, dict[tuple, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.result["seed"], run.result["run"])):
        key = place(run.result["method"]), run.result["preset"]
        by_profile.setdefault(run.result["profile"], {}).setdefault(key, run)
    chosen = max(by_profile.values(), key=len, default={})
    return [chosen[key] for key in sorted(chosen)]


def read_run(folder: Path) -> Run:
    "One run folder."
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(path, f"no settings ({type(error).__name__})", "the JSON a run starts with") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("data"), dict):
        raise DataError(f"{path}: data", "nothing of the kind", "the options of the dataset")
    return Run(folder, settings, read_result(folder / "result.json"))


def dataset_of(
    run: Run,
    root: str = "",  # folder of the data; empty: the run's own
) -> Dataset:
    "The dataset that a run was tested on. Raises what `open_dataset` raises."
    return open_dataset(run.result["dataset"], root or run.settings.get("root") or None, **run.settings["data"])


# %%
#| export
def plot_methods(
    runs: Sequence[Run],  # of `find_runs`
    dataset: Dataset,
    *,
    policy: str = POLICIES[0],  # how empty masks count in the scores
    columns: int = 5,  # panels a row
    min_px: int = 20,  # smallest error that is circled
) -> Figure:
    """Image, scribble, truth, then each run's mask over the true outline, errors circled.

    Raises ValueError for no runs, DataError for a mask that does not fit."""
    if not runs:
        raise ValueError("runs: found none, expected at least one finished run")
    rows = pd.DataFrame([{**row, "run": index} for index, run in enumerate(runs) for row in run.result["cases"]
                         if row["policy"] == policy])
    case, z = median_case(dataset, runs[0].result["fold"], rows)
    figure, axes = panels(3 + len(runs), columns=min(columns, 3 + len(runs)), size=2.3)
    image, label = case.gray[z], case.label[z]
    draw(axes[0], image, spacing_mm=case.spacing_mm and case.spacing_mm[1:], title="image")
    draw(axes[1], image, title="no scribble" if case.scribble is None else "scribble (not used here)",
         scribble=None if case.scribble is None else case.scribble[z], ignore=dataset.ignore)
    draw(axes[2], image, label=label, title="truth")
    presets = len({run.result["preset"] for run in runs}) > 1
    for index, (axis, run) in enumerate(zip(axes[3:], runs, strict=True)):
        mask, own = run.mask(case)[z], rows[(rows.run == index) & (rows.case == case.name)].astype({"hd95_mm": float})
        name = run.result["title"] + (f", {run.result['preset']}" if presets else "")
        distance = "" if own.hd95_mm.isna().all() else f", HD95 {own.hd95_mm.mean():.1f} mm"
        draw(axis, image, label=mask, outline=label, title=f"{name}\nDSC {own.dsc.mean():.2f}{distance}")
        draw_circles(axis, circles(mask, label, min_px))
    _finish(figure, dataset, _caption(runs, case, z, policy, min_px))
    return figure


# %%
#| export
def _caption(runs: Sequence[Run], case: Case, z: int, policy: str, min_px: int) -> str:
    result = runs[0].result
    return (f"{result['dataset']}, {case.name}, slice {z + 1} of {len(case.image)}: the volume of fold "
            f"{result['fold']} with the median score over the methods shown, the middle labelled slice. Profile "
            f"{result['profile']}. DSC, HD95: means over the volume's classes, policy {policy}. Filled: prediction; "
            f"line: truth. Circled: errors of at least {min_px} px, 3 px thick.")


def _finish(figure: Figure, dataset: Dataset, caption: str) -> None:
    "Caption on top, a legend of classes and circles below."
    width = figure.get_figwidth()
    figure.set_figheight(figure.get_figheight() + 0.2 * figure.axes[-1].get_gridspec().nrows + 0.6)
    figure.suptitle("\n".join(textwrap.wrap(caption, int(15.5 * width))), fontsize=8, x=0.01, ha="left")
    class_legend(figure, dataset.class_names)
    (classes,) = figure.legends
    lines = [Line2D([], [], color=colour, linestyle=line, linewidth=1.7, label=kind)
             for kind, (colour, line) in KINDS.items()]
    handles = [*classes.legend_handles, *lines]  # one legend: two would meet on a narrow figure
    classes.remove()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


# %%
#| export
def picture_folder(
    dataset: str,
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
# Stand-ins for trained methods show the machinery: three folders as a run leaves them, with the masks of the three wrong ways.

# %%
def pretend_run(folder, wrong, title):
    "A run folder whose masks are the truth, damaged."
    target, rows = Path(folder, title), []
    for case in dataset.cases(dataset.split(1)[1]):
        mask = wrong(case.label).astype(np.uint8)
        save_mask(mask, case, target / "masks" / f"{case.name}.nii.gz")
        rows += score_case(mask, case.label, case.spacing_mm, dataset.class_names, case=case.name)
    write_json({"dataset": "phantom", "root": "", "data": {"patients": 5}}, target / "config.json")
    said = {"run": title, "dataset": "phantom", "method": title, "title": title, "fold": 1, "seed": 1,
            "profile": "smoke", "preset": "paper", "checkpoint": "last", "train_seconds": 0, "settings": {}}
    write_json({**said, "cases": rows}, target / "result.json")


# %%
with tempfile.TemporaryDirectory() as folder:
    for title, wrong in {"too large": grow, "too small": shrink, "a second heart": second}.items():
        pretend_run(folder, wrong, title)
    runs = find_runs(folder, "phantom")
    figure = plot_methods(runs, dataset_of(runs[0]), columns=3)
assert len(runs) == 3 and len(figure.axes) == 6

# %% [markdown]
# A picture of a patient belongs to nobody's repository, so the folder is checked before anything is written.

# %%
kept, why = picture_folder("acdc", project_root() / "figures", project_root() / "runs")
assert kept.name == "runs" and picture_folder("phantom", "figures", "runs")[1] == ""
print(why)

# %% [markdown]
# ## Real data: how many circles has a rim?
#
# A systematic error of one pixel all around is what a network at half the resolution makes. It is no circle.

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
# Circles show blobs, not bias: a method that is a little too large everywhere has none, and its DSC says so.
#
# ## Exercises
#
# **1. Predict.** A class is confused: the mask says 1 where the truth says 2, on a 6×6 block. Which kinds of circle does it get?

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
# `plot_architecture`, `circles`, `find_runs`, `plot_methods`; [figures.ipynb](../figures.ipynb) runs them. Surprising: no rule for
# circles is neutral; this one is blind to bias, and says so.
