# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inference
#
# > How do slices become a scan's mask? In at the network's size, out on the scan's own grid, down to a file.
#
# What is lost between a scan and its mask? A network draws squares of one size, and a scan is a stack of rectangles with a place in the patient:
# slices are stretched, classified, shrunk back and written. Each of these steps can cost accuracy that no training wins back, so this chapter
# measures them.

# %%
#| default_exp runs.inference

# %%
#| export
import hashlib
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

# %%
#| export
import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import SpatialImage
from scipy.special import entr
from torch import Tensor, nn
from tqdm.auto import tqdm

# %%
#| export
from attenscribble import __version__
from attenscribble.basics.errors import DataError, named_place
from attenscribble.basics.files import write_atomic
from attenscribble.data.batches import resize_image, resize_labels
from attenscribble.data.folder import _FOREIGN, _instead, _kind_and_name, _nifti_files
from attenscribble.data.folder import group_modalities, read_scan, said
from attenscribble.data.scans import Case, _some, in_folder, is_nifti, read_nifti, stem
from attenscribble.method.objective import method_named
from attenscribble.method.other_networks import build_network
from attenscribble.runs.config import Config
from attenscribble.runs.setup import choose_device, choose_precision
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import Training, fill, read_checkpoint

# %%
import tempfile

import matplotlib.pyplot as plt
import torch.nn.functional as F
from ipywidgets import interact
from torch.distributions import MultivariateNormal

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import class_legend, draw, panels, scale_bar
from attenscribble.data.batches import SliceStore
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom
from attenscribble.runs.config import Config
from attenscribble.runs.metrics import dice
from attenscribble.runs.training import train

# %%
heart = phantom(patients=1, seed=0, side=160)
NAMES, IGNORE = heart.class_names, heart.ignore
diastole, systole = heart.cases()


def as_text(scores, digits=2):
    return ", ".join(f"{name} {score:.{digits}f}" for name, score in zip(NAMES[1:], scores, strict=True))


# %% [markdown]
# ## A stand-in for a network
#
# It knows four things of a pixel: intensity, mean intensity around it, row and column; and for each class the normal
# distribution of these four under its scribbles. No training, a second to fit, and it makes honest mistakes.

# %%
class StandIn(nn.Module):
    def __init__(self, case, size):
        super().__init__()
        batch = SliceStore([case], classes=len(NAMES), ignore=IGNORE).batch(torch.arange(len(case.image)), size)
        known = [self.features(batch.image)[batch.target == c] for c in range(len(NAMES))]  # [pixels,4] each
        self.classes = [MultivariateNormal(k.mean(0), k.T.cov() + 1e-3 * torch.eye(4)) for k in known]

    def features(self, image):
        rows, columns = (torch.linspace(-3, 3, n) for n in image.shape[-2:])
        y_x = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(image), -1, -1, -1)
        around = F.avg_pool2d(image, 5, stride=1, padding=2, count_include_pad=False)
        return torch.cat((image, around, y_x), 1).movedim(1, -1)  # [N,H,W,4]

    def forward(self, image):
        return torch.stack([c.log_prob(self.features(image)) for c in self.classes], 1)  # [N,C,H,W]


# %% [markdown]
# ## The picture: a scan, segmented
#
# Fitted on the scribbles of one frame, shown on the other: truth filled, prediction outlined. (`predict_volume` is what
# this chapter builds, DSC what the next one does.)

# %%
from attenscribble.runs.inference import predict_volume# the finished function, for a first look


def draw_near(axis, z, label, outline, margin, title):
    draw(axis, systole.image[z], label=label, outline=outline, title=title)
    rows, columns = np.nonzero(systole.label[z])
    half = max(np.ptp(rows), np.ptp(columns)) / 2 + margin
    (y, x) = ((k.min() + k.max()) / 2 for k in (rows, columns))
    axis.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
    scale_bar(axis, systole.spacing_mm[2])


# %%
model = StandIn(diastole, size=128)
mask = predict_volume(model, systole.image, size=128)
scores = [dice(mask == c, systole.label == c) for c in (1, 2, 3)]
figure, axes = panels(4, size=2.4)
for axis, z in zip(axes, (1, 3, 4, 6), strict=True):
    draw_near(axis, z, systole.label[z], mask[z], 16, f"slice {z}")
figure.suptitle(f"phantom, stand-in for a network: DSC {as_text(scores)}", fontsize=9)
class_legend(figure, NAMES)
assert min(scores) > 0.3


# %% [markdown]
# ## The route
#
# A slice $I$ of $Y\times X$ pixels, a network $f$ that wants $S\times S$. Pixel $i$ of $n$ has its centre at
# $i+\frac12$, so
#
# $$\tilde I(i,j)=I\big(\tfrac{(i+1/2)\,Y}{S}-\tfrac12,\ \tfrac{(j+1/2)\,X}{S}-\tfrac12\big)\quad\text{bilinear}$$
#
# $$\hat c(i,j)=\arg\max_c f_c(\tilde I)(i,j)\qquad
# M(y,x)=\hat c\big(\lfloor\tfrac{(y+1/2)\,S}{Y}\rfloor,\ \lfloor\tfrac{(x+1/2)\,S}{X}\rfloor\big)$$
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $I$ | `image` | [Z,Y,X] | [0, 1] |
# | $S$ | `size` | one number | pixels |
# | $f_c(\tilde I)$ | `logits` | [N,C,S,S] | – |
# | $\hat c$ | `classes` | [N,S,S] | class id |
# | $M$ | `mask` | [Z,Y,X] uint8 | class id |

# %% [markdown]
# ## Naive code
#
# A slice, pixel by pixel, both ways.

# %%
def bilinear_naive(plane, i, j, size):
    value = 0.0
    y, x = ((k + 0.5) * n / size - 0.5 for k, n in zip((i, j), plane.shape, strict=True))
    for row in (np.floor(y), np.floor(y) + 1):
        for column in (np.floor(x), np.floor(x) + 1):
            near = [int(np.clip(k, 0, n - 1)) for k, n in zip((row, column), plane.shape, strict=True)]
            value += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[tuple(near)]
    return value

def predict_naive(model, plane, size):
    small = [[bilinear_naive(plane, i, j, size) for j in range(size)] for i in range(size)]
    logits = model(torch.tensor(small, dtype=torch.float64)[None, None])[0]
    classes, (height, width) = logits.argmax(0), plane.shape
    return [[int(classes[int((y + 0.5) * size / height), int((x + 0.5) * size / width)]) for x in range(width)]
            for y in range(height)]


# %% [markdown]
# **By hand.** Two pixels 0 and 1, stretched to four: the new centres lie at −¼, ¼, ¾ and 1¼ of the old pixels, so the
# values are 0, ¼, ¾, 1. Back from four to two: $\lfloor\frac12\cdot2\rfloor=1$ and $\lfloor\frac32\cdot2\rfloor=3$.
#
# **What breaks.** Loops are slow. Worse: bilinear on *class ids*. Half-way between background (0) and left
# ventricle (3) lies 1.5: a rim of myocardium that nobody saw. Ids are names; they are picked, never averaged.

# %%
assert [bilinear_naive(np.array([[0.0, 1.0]]), 0, j, 4) for j in range(4)] == [0, 0.25, 0.75, 1]
assert [int((y + 0.5) * 4 / 2) for y in range(2)] == [1, 3]
ids = torch.tensor([[[0.0, 3.0]]])
assert resize_image(ids, (1, 6)).round().unique().tolist() == [0, 1, 2, 3]
assert resize_labels(ids, (1, 6)).unique().tolist() == [0, 3]


# %% [markdown]
# ## Fast: all slices at once
#
# `evaluating` switches dropout off and batch statistics to the stored ones, turns gradients off, and puts every part of
# the model back into its own mode, even if something fails in between. The released evaluation keeps gradients on and
# feeds a whole volume as one batch; here memory is bounded by `batch_size`.

# %%
#| export
@contextmanager
def evaluating(
    model: nn.Module,  # any network
) -> Iterator[nn.Module]:  # the same model
    "Evaluation mode without gradients; afterwards every part is back in the mode it had, also after an error."
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for part in training:
            part.training = True


# %%
#| export
def predict_volume(
    model: nn.Module,  # [N,K,size,size] → logits [N,C,size,size], C ≤ 256
    image: np.ndarray | Tensor,  # [Z,Y,X] or, with K channels, [Z,K,Y,X]; floating point in [0,1]
    *,
    size: int,  # side of the network's input in pixels
    batch_size: int = 16,  # slices at a time: bounds the memory, does not change the result
    device: torch.device | str | None = None,  # where the network is; that of its weights unless told
    autocast: torch.dtype | None = None,  # type of the convolutions, such as torch.bfloat16; None: that of the weights
    back: str = "nearest-exact",  # mode of `resize_labels`; "nearest" as released, half a pixel off
    flips: bool = False,  # average over the four mirror images of each slice
    probabilities: bool = False,  # give them too; the mask does not depend on it
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:  # [Z,Y,X] uint8 class ids; if asked for, [C,Z,Y,X] float32 in [0,1]
    """Segment a scan slice by slice: bilinear to size², the most probable class, nearest neighbour back.

    The route of the released evaluation of AttenScribble, but with pixel centres aligned on the way back too.
    Probabilities come back bilinearly and sum to 1. The model runs in eval mode without gradients and gets its own
    modes back. Raises TypeError for an integer image, ValueError for a wrong shape of image or logits,
    FloatingPointError if the logits hold NaN."""
    slices, home = _as_slices(image), next(model.parameters(), torch.empty(0))
    shape, device = (slices.shape[-2], slices.shape[-1]), torch.device(home.device if device is None else device)
    masks, shares = [], []
    with evaluating(model), torch.autocast(device.type, autocast, enabled=autocast is not None):
        for batch in slices.split(batch_size):
            small = resize_image(batch.to(device, home.dtype), size)
            scores = _mean_over_flips(model, small) if flips else _checked(model(small), small)
            masks.append(resize_labels(scores.argmax(1).to(torch.uint8), shape, back).cpu())
            if probabilities:
                shares.append(resize_image(scores if flips else scores.float().softmax(1), shape).cpu())
    mask = torch.cat(masks).numpy()
    return (mask, torch.cat(shares).movedim(1, 0).contiguous().numpy()) if probabilities else mask


# %%
#| export
def _mean_over_flips(model: nn.Module, image: Tensor) -> Tensor:
    "Mean probabilities over a batch and its mirror images, each turned back."
    mirrors = ((), (2,), (3,), (2, 3))
    answers = (_checked(model(image.flip(axes)), image).float().softmax(1).flip(axes) for axes in mirrors)
    return cast(Tensor, sum(answers)) / len(mirrors)


# %%
#| export
def _as_slices(image: np.ndarray | Tensor) -> Tensor:
    "The scan as [Z,K,Y,X]."
    slices = image if isinstance(image, Tensor) else torch.as_tensor(np.array(image, order="C"))  # any strides
    if not slices.is_floating_point():
        raise TypeError(f"image: found {slices.dtype}, expected floating point in [0, 1]")
    if slices.ndim not in (3, 4) or slices.numel() == 0:
        raise ValueError(f"image: found shape {tuple(slices.shape)}, expected [Z,Y,X] or [Z,K,Y,X], not empty")
    return slices[:, None] if slices.ndim == 3 else slices


# %%
#| export
def _checked(logits: Tensor, image: Tensor) -> Tensor:
    "The logits, once there is one for every class and pixel and none is NaN."
    shape, expected = tuple(logits.shape), (len(image), *image.shape[2:])
    if len(shape) != 4 or (shape[0], *shape[2:]) != expected:
        raise ValueError(f"model: found an output of shape {shape}, expected [N,C,H,W] with N,H,W = {expected}")
    if logits.isnan().any():
        raise FloatingPointError("model: found NaN in its logits, expected numbers: the training has diverged")
    return logits


# %% [markdown]
# ## Equal, and what it costs
#
# A model of four thresholds in float64, three sizes; then the batch size, which must change nothing but memory.

# %%
class Thresholds(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64))

    def forward(self, image):
        return -(image - self.centres[:, None, None]).abs()

tiny = np.random.default_rng(0).random((3, 8, 7))
for size in (5, 8, 16):
    expected = [predict_naive(Thresholds(), plane, size) for plane in tiny]
    np.testing.assert_array_equal(predict_volume(Thresholds(), tiny, size=size), expected)

# %%
for batch_size in (1, 8):
    np.testing.assert_array_equal(predict_volume(model, systole.image, size=128, batch_size=batch_size), mask)
    spent = cost(lambda: predict_volume(model, systole.image, size=128, batch_size=batch_size))
    print(f"batch of {batch_size}: {spent}")

# %% [markdown]
# A model in training, with dropout: two predictions agree, and afterwards it trains on. A part that was frozen stays
# so.

# %%
training = nn.Sequential(Thresholds(), nn.Dropout(0.5), nn.BatchNorm2d(4).double())
training[2].eval()
first, second = (predict_volume(training, tiny, size=8) for _ in range(2))
np.testing.assert_array_equal(first, second)
assert [part.training for part in training] == [True, True, False]


# %% [markdown]
# ## What the way back costs
#
# Say the network is right: it returns the true label, read at $S\times S$. The DSC of what comes back is a **ceiling**
# for every method on this route. Solid: pixel centres aligned. Dashed: `back="nearest"`, as in the released evaluation,
# which reads $\lfloor yS/Y\rfloor$ ([Batches](../data/20_batches.ipynb) shows the shift).

# %%
def returned(label, size, mode="nearest-exact"):
    truth = torch.as_tensor(label)
    return resize_labels(resize_labels(truth, size), tuple(truth.shape[-2:]), mode).numpy()

def ceiling(label, size, mode="nearest-exact"):
    mask = returned(label, size, mode)
    return [dice(mask == c, label == c) for c in (1, 2, 3)]


# %%
sizes = [32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256]
figure, axis = plt.subplots(figsize=(5.2, 3), layout="constrained")
for mode, style, colour in (("nearest-exact", "-", "#0072B2"), ("nearest", "--", "#D55E00")):
    axis.plot(sizes, [np.mean(ceiling(systole.label, size, mode)) for size in sizes], style, color=colour, label=mode)
axis.axvline(max(systole.label.shape[1:]), color="0.6", linewidth=0.8)
axis.set(xlabel="size S (pixels)", ylabel="DSC, mean of RV, Myo, LV", ylim=(0.6, 1.01),
         title=f"phantom, slices of {systole.label.shape[1]} × {systole.label.shape[2]} pixels")
axis.legend(fontsize=8, frameon=False, title="way back", title_fontsize=8)
assert ceiling(systole.label, 160) == [1, 1, 1] and max(ceiling(systole.label, 64)) < 0.98
assert np.mean(ceiling(systole.label, 256, "nearest")) < 0.97


# %% [markdown]
# From the slice's own size on (gray line) nothing is lost; below it the loss grows. The floor rule never gets there: it
# moves the mask by about half a pixel at any size.
#
# ## Slide the size
#
# The returned truth, filled, under the outline of the truth itself. DSC is the whole volume's.

# %%
def plot_returned(axis, size, z=3):
    scores = as_text(ceiling(systole.label, size)).replace(", ", "\n")
    draw_near(axis, z, returned(systole.label[z], size), systole.label[z], 5, f"S = {size}, DSC\n{scores}")

def slide_size(size=48):
    plot_returned(panels(1, size=3)[1][0], size)
    plt.show()

interact(slide_size, size=(24, 256, 8));

# %%
figure, axes = panels(4, size=2.4)
for axis, size in zip(axes, (32, 64, 96, 160), strict=True):
    plot_returned(axis, size)
class_legend(figure, NAMES)

# %% [markdown]
# ## Trained on one resize, tested on another
#
# The training loader resizes by nearest neighbour, corners aligned, the evaluation bilinearly, centres aligned. So the
# network is tested on smoother pictures than it was trained on. Does it matter? The stand-in was fitted on nearest;
# give it both.

# %%
batches = {"nearest, as in training": SliceStore([systole], classes=len(NAMES), ignore=IGNORE).batch(
               torch.arange(len(systole.image)), 128).image,
           "bilinear, as in testing": resize_image(torch.tensor(systole.image)[:, None], 128)}
with evaluating(model):
    for name, batch in batches.items():
        found = resize_labels(model(batch).argmax(1), systole.label.shape[1:]).numpy()
        step = batch.diff().std()
        print(f"{name}: neighbours differ by {step:.3f}, DSC "
              f"{as_text([dice(found == c, systole.label == c) for c in (1, 2, 3)], 3)}")
assert batches["bilinear, as in testing"].diff().std() < batches["nearest, as in training"].diff().std()

# %% [markdown]
# For a model that averages over five pixels, hardly. A network that reads texture may care more; whether it does is a
# question for an experiment. The released route stays the default.
#
# ## A file on the scan's own grid
#
# Viewers place voxels by the affine, (x,y,z) → mm. The released evaluation writes masks with the spacing alone: they
# open without complaint, somewhere else.

# %%
#| export
OURS = "attenscribble"  # how the description in a file's header begins if it was written here


# %%
#| export
def save_mask(
    mask: np.ndarray,  # [Z,Y,X] uint8 class ids
    case: Case,  # whose scan it is: gives the shape and the place in space
    path: Path | str,  # *.nii.gz or *.nii
    values: Sequence[int] = (),  # index = class id: what is written for it; () writes the ids
    note: str = "",  # goes into the header; none given, masks with values say that they are ours
) -> Path:  # the file written
    """Write a mask as NIfTI on its scan's grid, so that any viewer lays one over the other.

    Raises TypeError unless the mask is uint8, and what `save_volume` raises."""
    if mask.dtype != np.uint8:
        raise TypeError(f"{case.name}: mask: found {mask.dtype}, expected uint8")
    note = note or (OURS if values else "")
    return save_volume(np.array(values, np.uint8)[mask] if values else mask, case, path, note)


# %%
#| export
def save_volume(
    volume: np.ndarray,  # [Z,Y,X], or [C,Z,Y,X] for a fourth axis in the file
    case: Case,  # whose scan it is
    path: Path | str,  # *.nii.gz or *.nii
    note: str = "",  # at most 79 letters for the header
) -> Path:  # the file written
    """Write numbers as NIfTI on a scan's grid: shape, axes, affine and codes of its file where they are known.

    Written beside its place and renamed, so a reader never meets half a file. A case without an affine is placed by its
    spacing alone. Raises ValueError for another shape than the scan's, for a case that knows neither affine nor
    spacing, and for another ending."""
    path = Path(path)
    if not is_nifti(path):
        raise ValueError(f"path: found {path.name}, expected a name that ends in .nii or .nii.gz")
    picture = as_picture(volume, case)
    cast(Any, picture.header)["descrip"] = note.encode("ascii")
    write_atomic(path, lambda new: nib.save(picture, new))
    return path


# %%
#| export
def as_picture(
    volume: np.ndarray,  # [Z,Y,X], or [C,Z,Y,X] for a fourth axis in the file
    case: Case,  # whose scan it is
) -> SpatialImage:  # a NIfTI image
    "Numbers on a scan's grid, as `save_volume` writes them. Raises as it does."
    if volume.shape[-3:] != case.shape:
        raise ValueError(f"{case.name}: mask: found shape {volume.shape}, expected the scan's {case.shape}")
    if case.grid:
        return case.grid.picture(volume)
    picture = nib.Nifti1Image(np.ascontiguousarray(volume.T), _affine(case))
    picture.header.set_xyzt_units("mm")
    return picture


# %%
#| export
def load_mask(
    path: Path | str,  # written by `save_mask`
    case: Case,  # whose scan it is
    values: Sequence[int] = (),  # as it was written with
) -> np.ndarray:  # [Z,Y,X] uint8 class ids
    "Read a mask back onto its case. Raises DataError for a missing or broken file, another shape, a value unknown."
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "no such file", "the mask that the run wrote")
    stored = np.asanyarray(read_nifti(path, flat=True)[1].dataobj)
    expected = case.grid.shape if case.grid else case.shape[::-1]
    if stored.shape != expected:
        raise DataError(path, f"shape {stored.shape[::-1]}", f"the scan's {expected[::-1]}")
    return _as_ids(case.grid.take(stored) if case.grid else stored.T, path, values or range(256))


# %%
#| export
def _as_ids(mask: np.ndarray, path: Path, values: Sequence[int]) -> np.ndarray:
    "Class ids for the values that a mask holds. Raises DataError for a value unknown."
    if strange := set(np.unique(mask).tolist()) - set(values):
        expected = "whole numbers from 0 to 255" if len(values) == 256 else f"only {sorted(values)}"
        raise DataError(path, f"the values {sorted(strange)[:5]}", expected)
    back = np.zeros(256, np.uint8)
    back[list(values)] = range(len(values))
    return back[mask.astype(np.uint8)]


# %%
#| export
def _affine(case: Case) -> np.ndarray:
    "Voxel (x,y,z) → mm."
    if case.affine is not None:
        return case.affine
    if case.spacing_mm is None:
        raise ValueError(f"{case.name}: found neither affine nor spacing_mm, expected one of them to place the mask")
    return np.diag([*case.spacing_mm[::-1], 1.0])


# %%
tilt = np.deg2rad(30)
affine = np.eye(4)
affine[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
affine[:3, :3] *= systole.spacing_mm[::-1]
affine[:3, 3] = -60, 20, -35
placed = Case("patient001", "frame09", systole.image, systole.spacing_mm, affine, label=systole.label)

with tempfile.TemporaryDirectory() as folder:
    read = nib.load(save_mask(mask, placed, Path(folder) / "mask.nii.gz"))
    np.testing.assert_array_equal(np.asarray(read.dataobj).T, mask)
np.testing.assert_allclose(read.affine, affine, atol=1e-5)

# %%
centre = [*np.argwhere(mask == 3).mean(0)[::-1], 1]  # (x,y,z,1) of the left ventricle
by_affine, by_spacing = affine @ centre, np.diag([*systole.spacing_mm[::-1], 1]) @ centre
print(f"left ventricle by the affine: {by_affine[:3].round(0)} mm; by the spacing alone: {by_spacing[:3].round(0)} mm; "
      f"{np.linalg.norm(by_affine - by_spacing):.0f} mm apart")


# %% [markdown]
# ## How sure is it?
#
# A mask hides its doubts. Probabilities come back to the scan's grid bilinearly; their entropy over its largest value,
# $u=-\tfrac1{\ln C}\sum_c P^c\ln P^c$, is 0 where the network is certain and 1 where all classes are alike. By hand,
# two classes: $(1,0)$ gives 0, $(\frac12,\frac12)$ gives 1.

# %%
#| export
def normalised_entropy(
    probs: np.ndarray,  # [C,...] probabilities that sum to 1 over C
) -> np.ndarray:  # [...] float32 in [0,1]
    "The entropy of each voxel's class over its largest value, ln C."
    return (entr(probs).sum(0) / np.log(len(probs))).clip(0, 1).astype(np.float32)


# %%
np.testing.assert_array_equal(normalised_entropy(np.array([[1, 0.5], [0, 0.5]])), [0, 1])
same, probs = predict_volume(model, systole.image, size=128, probabilities=True)
np.testing.assert_array_equal(same, mask)
np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)
doubt = normalised_entropy(probs)
wrong = mask != systole.label
print(f"mean uncertainty where it is right {doubt[~wrong].mean():.2f}, where it is wrong {doubt[wrong].mean():.2f}")
assert doubt[wrong].mean() > 3 * doubt[~wrong].mean()

# %%
figure, axes = panels(3, size=2.6)
draw_near(axes[0], 3, mask[3], systole.label[3], 16, "mask, true outline")
picture = axes[1].imshow(doubt[3], cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
axes[2].imshow(np.where(wrong[3], 0.0, 1.0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
for axis, title in zip(axes[1:], ("uncertainty u", "black: wrong"), strict=True):
    axis.set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    axis.set_title(title, fontsize=9)
figure.colorbar(picture, ax=axes[1], shrink=0.7)
class_legend(figure, NAMES)

# %% [markdown]
# Doubt follows the rims, and so do most errors; the errors it does not follow are those of a model that is surely
# wrong. A second opinion is free where the training used flips: predict the mirror images too and average
# (`flips=True`). A network that does not care about mirrors gains nothing.

# %%
np.testing.assert_array_equal(predict_volume(Thresholds(), tiny, size=8, flips=True),
                              predict_volume(Thresholds(), tiny, size=8))


# %% [markdown]
# ## A trained network
#
# Weights alone segment nothing: the size of the input, the number format and the way back to the scan's grid belong to them. A `TrainedNetwork`
# keeps these together. The run that scores a fold, `predict` and the annotator all ask it.

# %%
#| export
@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    "A network with all that it takes to segment a scan as in its training."

    model: nn.Module
    config: Config  # of the training
    facts: dict[str, Any]  # of its dataset: class names, channels, values, how scans are read
    precision: torch.dtype | None = None  # autocast type; None: plain float32

    @classmethod
    def of(
        cls,
        state: Training,  # in progress or finished
    ) -> "TrainedNetwork":  # shares the training's weights
        "The network of a training as it is now; of a finished one with its best validated weights, if it kept some."
        model = state.average.network if state.average else state.model
        if state.best and state.step == state.config.iterations:
            model.load_state_dict(state.best["model"])
        return cls(model, state.config, state.setup.dataset.facts(), state.setup.precision)

    def segment(
        self,
        image: np.ndarray | Tensor,  # [Z,Y,X] or, with K channels, [Z,K,Y,X]; floating point in [0,1]
        **options: Any,  # batch_size, flips, probabilities of `predict_volume`
    ) -> Any:  # [Z,Y,X] uint8 class ids; with probabilities, [C,Z,Y,X] float32 too
        "Segment a scan. Raises what `predict_volume` raises."
        options = {"flips": self.config.eval_flips and self.saw_flips} | options
        return predict_volume(self.model, image, size=self.config.size, autocast=self.precision,
                              back=self.config.eval_resize, **options)

    @property
    def saw_flips(self) -> bool:
        "Whether the training saw mirror images."
        return self.augmentation == "acdc"

    @property
    def augmentation(self) -> str:
        "What the training's slices went through."
        return self.facts["augmentation"] if self.config.augmentation == "dataset" else self.config.augmentation


# %%
#| export
def load_network(
    path: Path | str,  # a checkpoint, or the run folder that holds it
    device: str = "auto",  # where it goes: auto, cpu, cuda, cuda:1
    classes: int | None = None,  # for a checkpoint that does not know its dataset
    trust: str | Sequence[str] = (),  # modules that may be run if the checkpoint names them
) -> TrainedNetwork:  # in eval mode
    "The network of a checkpoint, ready to predict: the validated best if that was the rule, else the last."
    path = Path(path) / "checkpoint.pt" if Path(path).is_dir() else Path(path)
    target = choose_device(device)
    content = read_checkpoint(path, target, trust)
    config, facts = content["config"].model_copy(update={"device": "auto"}), content["dataset"]
    if not facts and classes is None:
        raise DataError(path, "no word on its dataset", "a checkpoint of this version: train again with resume=false")
    model = build_network(method_named(config.method), facts.get("channels", 1), classes or len(facts["class_names"]),
                          config)
    fill(model, _tested_weights(content), path)
    model = model.to(target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in its stub
    return TrainedNetwork(model, config, facts, choose_precision(config.precision, target))


# %% [markdown]
# ## Files in, files out
#
# A checkpoint knows its classes, modalities and how its scans were read. So a folder of new scans needs nothing more:
#
# ```bash
# attenscribble predict --checkpoint runs/RUN new-scans masks --uncertainty
# ```
#
# What concerns all scans is refused before the first: a checkpoint that is none or names code to run, a file in the way. What concerns one scan does
# not stop the others: a scan that is blank, damaged, 4D or lacks a modality is named at the end, with its reason. The same command then goes on. A mask
# that is there is kept if this very network made it of this very scan, which its header tells by a digest; one that was made otherwise is neither taken
# for it nor replaced unasked.
#
# What is no scan by its name or its format is not segmented, and that is said: `a_gt.nii.gz` is a mask, `b.nrrd` no NIfTI. A name that leaves it open is
# a fault of that scan: `c_mask.nii.gz`, or `d.nii` beside `d.nii.gz`.

# %%
#| export
def _tested_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    "Of a checkpoint's content: the validated best, else the averaged weights where the run kept some, else the last."
    if content["best"]:
        return content["best"]["model"]
    average = content.get("average", {})
    return {name.removeprefix("network."): value for name, value in average.items()} or content["model"]


# %%
#| export
class ScansFailed(DataError):
    "Some scans of a folder got no mask, each for a reason of its own."

    def __init__(
        self,
        failures: Mapping[str, str],  # file → reason
        masks: Sequence[Path],  # of the other scans
    ) -> None:
        count = len(failures) + len(masks)
        reasons = [reason if reason.startswith(file) else f"{file}: {reason}" for file, reason in failures.items()]
        super().__init__("\n".join([f"{len(failures)} of {count} scans got no mask; the same command goes on with them",
                                    *(f"  {reason}" for reason in reasons)]))
        self.failures, self.masks = dict(failures), [*masks]


# %%
#| export
def predict_files(
    checkpoint: Path | str,  # checkpoint.pt, or the run folder that holds it
    source: Path | str,  # a scan (of several modalities any one of its files), or a folder in the layout of chapter 17
    target: Path | str,  # the mask's file for a single scan, or a folder
    *,
    batch_size: int = 16,  # slices at a time
    probabilities: bool = False,  # also NAME_probabilities.nii.gz, float32, a fourth axis over the classes
    uncertainty: bool = False,  # also NAME_uncertainty.nii.gz, float32 in [0,1]
    flips: bool = False,  # average over mirror images; only where training used them
    overwrite: bool = False,  # replace files that are there
    skip_existing: bool = False,  # keep files that are there, whoever made them
    trust: str | Sequence[str] = (),  # modules that may be run if the checkpoint names them
    device: str = "auto",  # auto, cpu, cuda, cuda:1
) -> list[Path]:  # the masks
    """Segment scans with a trained network: a mask for each, uint8, with the geometry of the scan's file.

    A mask holds the values of the labels that were trained on where the dataset was the user's own, else class ids.
    Masks that this network made of these scans before are kept. Raises DataError, naming file or checkpoint, before
    anything is written; at the end `ScansFailed`, naming every scan of a folder that got no mask."""
    for field, place in (("checkpoint", checkpoint), ("IN", source), ("OUT", target)):
        named_place(field, place)
    _check_format(Path(target))
    network = load_network(checkpoint, device, trust=trust)
    if flips:
        _check_flips(network, checkpoint)
    scans, failures = _scans_in(Path(source), network.facts["channels"])
    files = {name: _outputs(name, Path(target), Path(source), probabilities, uncertainty) for name in scans}
    _check_files(scans, files)
    digest = _digest_of(network, flips)
    wanted = {name: _wanted(scans[name], files[name], digest, overwrite, skip_existing) for name in scans}
    more = {"flips": True} if flips else {}  # else as the run's own settings say
    for name, images in tqdm(scans.items(), desc="scans"):
        if wanted[name]:
            reason = _segment_scan(network, images, wanted[name], digest, batch_size=batch_size, **more)
            failures |= {str(images[0]): reason} if reason else {}
    masks = [files[name]["mask"] for name, images in scans.items() if str(images[0]) not in failures]
    return _all_or_named(Path(source), failures, masks)


# %% [markdown]
# A single scan's fault is raised as it is.

# %%
#| export
def _all_or_named(source: Path, failures: dict[str, str], masks: list[Path]) -> list[Path]:
    "The masks; raises DataError with the fault of a single scan, or all faults of a folder."
    if failures and source.is_dir():
        raise ScansFailed(failures, masks)
    for reason in failures.values():
        raise DataError(reason)
    return masks


# %%
#| export
def _other_format(path: Path) -> bool:
    "Whether a file is a picture by its name, and no NIfTI."
    return path.suffix.lower() in _FOREIGN and not is_nifti(path)


def _check_format(target: Path) -> None:
    "Raise DataError for a mask's file in a format that is not written; it would become a folder."
    if _other_format(target) and not target.is_dir():
        raise DataError(target, f"a name of another format ({target.suffix})",
                        "NAME.nii.gz or NAME.nii for the mask of one scan, or a folder")


# %%
#| export
def _images_in(source: Path) -> tuple[dict[str, Path], dict[str, str]]:
    "The scans of a folder by name, and file → fault where a name leaves open what it is; says what is no scan."
    kinds: dict[str, dict[Path, str]] = {"image": {}, "mask": {}, "": {}}
    for path in (path for path, kind in _nifti_files(source) if kind == "image"):
        kind, name = _named(path)
        kinds[kind][path] = name
    _say_left_out(kinds["mask"], {path.parent for part in kinds.values() for path in part})
    if not kinds["image"] and not kinds[""]:
        raise DataError(source, _instead(source), "images/NAME.nii.gz")
    twice = {name for name, count in Counter(kinds["image"].values()).items() if count > 1}
    failures = {str(path): "found a mask by its name, expected another name for a scan; given alone, it is segmented"
                for path in kinds[""]} | {str(path): f"found several scans called {name}, expected one"
                                          for path, name in kinds["image"].items() if name in twice}
    return {name: path for path, name in kinds["image"].items() if name not in twice}, failures


# %%
#| export
def _named(path: Path) -> tuple[str, str]:
    "What a file is by its name: image, mask or, where that is left open, nothing; and the name without endings."
    try:
        kind, name = _kind_and_name(path, "image")
    except DataError:
        return "", stem(path)
    return "image" if kind == "image" else "mask", name


# %%
#| export
def _say_left_out(masks: Collection[Path], folders: Collection[Path]) -> None:
    "Name what lies beside the scans and is not segmented, on the stream of errors."
    others = [path for one in folders for path in in_folder(one) if _other_format(path)]
    parts = [f"{_some(path.name for path in files)} ({why})"
             for files, why in ((masks, "masks by their names"), (others, "other formats")) if files]
    if parts:
        print(f"not segmented: {'; '.join(parts)}", file=sys.stderr, flush=True)


# %%
#| export
def _scans_in(source: Path, channels: int) -> tuple[dict[str, tuple[Path, ...]], dict[str, str]]:
    "The scans of a folder, and file → fault of those that are not told apart; of a single scan the fault is raised."
    if not source.is_dir():
        return _scan_of(source, channels), {}
    groups: dict[str, dict[str, Path]] = {}
    images, failures = _images_in(source)
    for name, path in images.items():
        groups.setdefault(re.sub(r"_\d{4}$", "", name) if channels > 1 else "", {})[name] = path
    scans: dict[str, tuple[Path, ...]] = {}
    for group in groups.values():
        try:
            scans |= group_modalities(group, channels=channels)
        except DataError as error:
            failures[str(next(iter(group.values())))] = str(error)
    return scans, failures


# %% [markdown]
# The digest covers the weights, all that decides how they are used, and the bytes of the scan.

# %%
#| export
def _digest_of(network: TrainedNetwork, flips: bool) -> Any:
    "A hash of a network's weights and of how they are used."
    config, facts = network.config, network.facts
    how = [__version__, config.size, config.eval_resize, flips or config.eval_flips, str(network.precision),
           facts["reading"], facts["values"]]
    found = hashlib.sha256(json.dumps(how, default=str, sort_keys=True).encode())
    for name, weights in network.model.state_dict().items():
        found.update(name.encode() + weights.detach().cpu().contiguous().float().numpy().tobytes())
    return found


# %%
#| export
def _note_of(digest: Any, images: Sequence[Path]) -> str:
    "What the header of a mask says: by which network, of which scan."
    found = digest.copy()
    for path in images:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                found.update(part)
    return f"{OURS} predict {found.hexdigest()[:32]}"


# %%
#| export
def read_note(
    path: Path | str,  # of a NIfTI file
) -> str:  # "" where there is none, and for what is no NIfTI
    "The description in a file's header."
    try:
        return bytes(cast(Any, nib.load(path)).header["descrip"].item()).decode("ascii", "replace")
    except (OSError, EOFError, ValueError, KeyError, zlib.error, ImageFileError):
        return ""


# %%
#| export
def _wanted(images: Sequence[Path], files: dict[str, Path], digest: Any, overwrite: bool,
            skip_existing: bool) -> dict[str, Path]:
    "Those of a scan's files that are to be written. Raises DataError for one in the way."
    there = {kind: path for kind, path in files.items() if path.exists() and not overwrite}
    if there and not skip_existing:
        try:
            note = _note_of(digest, images)
        except OSError:
            return files  # the scan itself cannot be read, and will be named
        for path in there.values():
            if read_note(path) != note:
                raise DataError(path, "a file that is there already, not made by this network of this scan",
                                "a new name, --skip-existing or --overwrite")
    return {kind: path for kind, path in files.items() if kind not in there}


# %%
#| export
def _check_flips(network: TrainedNetwork, checkpoint: Path | str) -> None:
    "Raise DataError where the training saw no mirror images."
    if not network.saw_flips:
        seen, name = network.augmentation, network.facts["name"]
        raise DataError(f"{checkpoint}: flips", f"training on {name!r} with augmentation {seen!r}",
                        "'acdc', which flips; else a mirror image is a patient the network never saw")


# %%
#| export
def _segment_scan(network: TrainedNetwork, images: Sequence[Path], files: dict[str, Path], digest: Any,
                  **options: Any) -> str:
    "Write a scan's mask, and its maps where they are asked for; the reason where the scan cannot be segmented."
    maps = "probabilities" in files or "uncertainty" in files
    try:
        reading = {"robust": False} | network.facts["reading"]  # a checkpoint that says nothing is older
        (case,), note = said([read_scan(images, **reading)]), _note_of(digest, images)
        found = network.segment(case.image, probabilities=maps, **options)
    except Exception as error:  # whatever it is, the other scans have done nothing wrong
        text = " ".join(str(error).split())
        return text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"
    if "probabilities" in files:
        save_volume(found[1], case, files["probabilities"], note)
    if "uncertainty" in files:
        save_volume(normalised_entropy(found[1]), case, files["uncertainty"], note)
    if "mask" in files:
        save_mask(found[0] if maps else found, case, files["mask"], network.facts["values"], note)
    return ""


# %%
#| export
def find_scans(
    source: Path | str,  # a file or a folder
    channels: int,  # modalities of each scan
) -> dict[str, tuple[Path, ...]]:  # name → one file a modality
    "The scans to segment. Raises DataError for what is no NIfTI, a missing modality, and a name that may be a mask's."
    scans, failures = _scans_in(Path(source), channels)
    _all_or_named(Path(source), failures, [])
    return scans


# %%
#| export
def _scan_of(source: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    "The scan that a file belongs to: name → one file a modality."
    if not source.is_file() or not is_nifti(source):
        raise DataError(source, "no such file" if not source.exists() else "another format", "NIfTI, or a folder of it")
    own = stem(source)
    start = own[:-4] if channels > 1 and own[-4:].isdigit() else own
    near = {stem(path): path for path in filter(is_nifti, in_folder(source.parent))} if start != own else {}
    siblings = {name: path for name, path in near.items() if name[:-4] == start and name[-4:].isdigit()}
    return group_modalities(siblings or {own: source}, channels=channels)


# %%
#| export
def _outputs(name: str, target: Path, source: Path, probabilities: bool, uncertainty: bool) -> dict[str, Path]:
    "What is written for one scan."
    alone = is_nifti(target)
    if alone and source.is_dir():
        raise DataError(target, "one file for a folder of scans", "a folder")
    if not alone and target.exists() and not target.is_dir():
        raise DataError(target, "no folder", "a folder for masks, or a name that ends in .nii.gz or .nii")
    mask = target if alone else target / f"{name}.nii.gz"
    more = [kind for kind, wanted in (("probabilities", probabilities), ("uncertainty", uncertainty)) if wanted]
    return {"mask": mask} | {kind: mask.with_name(f"{stem(mask)}_{kind}.nii.gz") for kind in more}


# %%
#| export
def _of_a_dataset(path: Path) -> bool:
    "Whether a file lies, links followed, where datasets keep scans, strokes or labels: in a folder of them, or flat."
    path = path.resolve()
    beside = [stem(other) for other in in_folder(path.parent) if is_nifti(other)]
    masks = [name for name in beside if re.search("[_-](scribbles?|labels?|gt)$", name)]
    return bool(masks) or re.fullmatch("(image|scribble|label)s(T[rs])?", path.parent.name) is not None


# %%
#| export
def _check_files(scans: dict[str, tuple[Path, ...]], files: dict[str, dict[str, Path]]) -> None:
    "Raise DataError for an output that would replace a scan, or another output."
    inputs = {path.resolve() for images in scans.values() for path in images}
    outputs: set[Path] = set()
    for path in (path for paths in files.values() for path in paths.values()):
        if path.resolve() in inputs:
            raise DataError(path, "a scan", "another folder for the masks")
        if path.exists() and not read_note(path).startswith(f"{OURS} predict") and _of_a_dataset(path):
            raise DataError(path, "a file of a dataset, not written by predict", "another folder for the masks")
        if path in outputs:
            raise DataError(path, "a name for two files, as a scan is called so", "another name for that scan")
        outputs.add(path)


# %% [markdown]
# **Check.** A network after forty steps, far from good, and two scans as files, one of them tilted: masks come back
# with the file's own affine, and equal to those of `predict_volume`.

# %%
with tempfile.TemporaryDirectory() as folder:
    small = Config(method="pce", iterations=40, batch=8, size=64, data_patients=5, data_side=64)
    state = train(resolve(small, phantom(patients=5, side=64)), Path(folder))
    for name, case in (("straight", systole), ("tilted", placed)):
        scan = Case(name, "", case.image, case.spacing_mm, case.affine)
        save_volume(scan.image, scan, Path(folder) / "new" / f"{name}.nii.gz")
    written = predict_files(folder, Path(folder) / "new", Path(folder) / "masks", uncertainty=True)
    masks = {path.name.split(".")[0]: nib.load(path) for path in written}
    expected = predict_volume(state.model, systole.image, size=64, autocast=state.setup.precision)
    for picture in masks.values():
        np.testing.assert_array_equal(np.asarray(picture.dataobj).T, expected)
    np.testing.assert_allclose(masks["tilted"].affine, placed.affine, atol=1e-5)
    assert len(list((Path(folder) / "masks").iterdir())) == 4
    save_volume(np.zeros(systole.shape), systole, Path(folder) / "new" / "blank.nii.gz")
    (written[0]).unlink()
    try:
        predict_files(folder, Path(folder) / "new", Path(folder) / "masks")
        raise RuntimeError("a blank scan has a mask")
    except ScansFailed as error:
        assert error.masks == written and all(path.is_file() for path in written)
        print(str(error).replace(folder, "…"))
    save_mask(mask, systole, written[0])  # by another hand
    try:
        predict_files(folder, Path(folder) / "new", Path(folder) / "masks")
        raise RuntimeError("a mask was overwritten")
    except DataError as error:
        print(str(error).replace(folder, "…"))

# %% [markdown]
# ## Real data: the ceiling on ACDC
#
# The experts' labels of one patient, sent to $S\times S$ and back, both frames. Then one label as a file: same voxels,
# same affine as the scan's.

# %%
try:
    frames = open_dataset("acdc").read("patient001")
    for size in (64, 128, 256):
        for mode in ("nearest-exact", "nearest"):
            best = np.mean([ceiling(frame.label, size, mode) for frame in frames], axis=0)
            print(f"{size}², {mode}: DSC at most {as_text(best, 3)}")
    with tempfile.TemporaryDirectory() as folder:
        read = nib.load(save_mask(frames[0].label, frames[0], Path(folder) / "label.nii.gz"))
        np.testing.assert_array_equal(np.asarray(read.dataobj).T, frames[0].label)
    np.testing.assert_array_equal(read.affine, nib.load(frames[0].source).affine)
except DataError as error:
    print(f"skipped: {error}")


# %% [markdown]
# At 256² nothing is lost, at 128² a few per cent: methods compared at 128² share that ceiling. What this does not show:
# how a network's own errors, softer than a label's, survive the trip; and one patient is no statistic.
#
# ## Exercises
#
# **1. Predict.** What is the smallest square from which every label of `rows` × `columns` pixels comes back unharmed?

# %%
def check_lossless(f):
    for rows, columns in ((5, 8), (12, 7), (9, 9)):
        numbers = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
        size = f(rows, columns)
        assert (returned(numbers, size) == numbers).all() and (returned(numbers, size - 1) != numbers).any()

def lossless(rows, columns):
    ...  # your code here

exercise(check_lossless, lossless, solution=max)


# %% [markdown]
# **2. Implement.** Another way back: resize the *logits* [N,C,S,S] bilinearly to `shape`, then take the most probable
# class. For small S it beats the ceiling above.

# %%
def check_soft_return(f):
    small = F.one_hot(resize_labels(torch.tensor(systole.label), 64).long()).movedim(-1, 1).float()
    soft = f(small, systole.label.shape[1:]).numpy()
    assert soft.shape == systole.label.shape
    assert np.mean([dice(soft == c, systole.label == c) for c in (1, 2, 3)]) > np.mean(ceiling(systole.label, 64))

def soft_return(logits, shape):
    ...  # your code here

exercise(check_soft_return, soft_return, solution=lambda logits, shape: resize_image(logits, shape).argmax(1))


# %% [markdown]
# **3. Break.** Batch size must not matter. Return a module for which it does, even in eval mode.

# %%
def check_mixed(f):
    one, all_three = (predict_volume(f(), tiny, size=8, batch_size=n) for n in (1, 3))
    assert (one != all_three).any()

def mixed():
    return Thresholds()  # your module here

def mixed_solution():  # without stored statistics a batch is normalised by its own, in eval mode too
    return nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False, dtype=torch.float64), Thresholds())

exercise(check_mixed, mixed, mixed_solution)


# %% [markdown]
# **4. Implement.** Where in mm does the centre of voxel `(z, y, x)` lie? The affine takes (x,y,z).

# %%
def check_place(f):
    np.testing.assert_allclose(f(affine, (0, 0, 0)), [-60, 20, -35])
    np.testing.assert_allclose(f(affine, (2, 1, 3)), nib.affines.apply_affine(affine, (3, 1, 2)))

def place_mm(affine, voxel):
    ...  # your code here

exercise(check_place, place_mm, solution=lambda affine, voxel: affine[:3, :3] @ voxel[::-1] + affine[:3, 3])

# %% [markdown]
# ## Recap
#
# `predict_volume` takes a scan through a network and back to its own grid; `evaluating` leaves the model as it was;
# `save_mask` writes the mask where the scan is, `load_mask` reads it; `predict_files` does all of it for a folder.
# Surprising: the size sets a ceiling on DSC before any training, and half a pixel on the way back costs points of it.
# [The next chapter](55_metrics.ipynb) measures masks.
