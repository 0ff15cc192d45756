# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scans
#
# > From files to cases: what one training image is, how its intensities are scaled, and what is refused.
#
# What do the numbers in a scan's file mean: which of them are the right ventricle, how many millimetres lie between two
# of them, and what was done to them before? A loader that answers wrongly does not crash; it silently trains a worse
# model. So this chapter reads two file formats, checks all that can be checked, and names every fault with its file.

# %%
#| default_exp data.scans

# %%
#| export
import gzip
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

# %%
#| export
import h5py
import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image

from attenscribble.basics.errors import DataError
from attenscribble.basics.files import read_json
from attenscribble.data.grid import Grid, affine_mm, check_geometry, placed, three_axes, zooms_mm

# %%
import os
import tempfile

import matplotlib.pyplot as plt
from ipywidgets import interact
from skimage.exposure import cumulative_distribution

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.errors import refused
from attenscribble.basics.drawing import class_legend, draw, panels

# %% [markdown]
# ## The answer, as a picture
#
# A toy heart stands in for a patient: a stack of eight thick slices, with the numbers a scanner might store. A few
# spots of fat are far brighter than anything of interest.

# %%
SPACING_MM = (10.0, 1.5, 1.5)  # (z,y,x), typical of ACDC

def toy_label(slices=8, side=96):
    "The label [Z,Y,X] of a heart that tapers to its apex: two cavities and the muscle around the left one."
    z, y, x = np.mgrid[:slices, :side, :side]
    taper = np.sqrt(1 - (z / (slices + 1)) ** 2)
    left, right = np.hypot(y - 48, x - 54) / taper, np.hypot(y - 46, x - 34) / taper
    return np.select([left < 12, left < 17, right < 14], [3, 2, 1]).astype(np.uint8)


# %%
def toy_scribble(label):
    "A few strokes per slice; 4 marks an unannotated pixel."
    scribble = np.full_like(label, 4)
    scribble[:, 47:49, 50:58], scribble[:, 40:50, 28:30], scribble[:, 76:78, 20:76] = 3, 1, 0
    arc = np.abs(np.hypot(*np.mgrid[-48:48, -54:42]) - 14) < 1
    scribble[(label == 2) & arc & (np.arange(96)[:, None] > 48)] = 2
    return scribble

def toy_raw(label, seed=0):
    "Scanner intensities, int16: blood bright, muscle dark, noise everywhere, and some very bright fat."
    random = np.random.default_rng(seed)
    raw = np.array([180, 420, 240, 440])[label] + random.normal(0, 30, label.shape)
    for y, x in ((12, 20), (9, 60), (40, 86), (84, 70)):  # 48 of 9,216 pixels: half a percent
        raw[:, y:y + 3, x:x + 4] = random.normal(1500, 100, (len(label), 3, 4))
    return raw.clip(0).astype(np.int16)


# %%
label, raw = toy_label(), toy_raw(toy_label())
scribble = toy_scribble(label)
gray = np.minimum(raw, 600) / 600
figure, axes = panels(4, size=2.6)
draw(axes[0], gray[1], spacing_mm=SPACING_MM[1:], title="image, slice 1, across the heart")
draw(axes[1], gray[1], scribble=scribble[1], ignore=4, title="scribble: a few pixels")
draw(axes[2], gray[1], outline=label[1], title="label: every pixel")
draw(axes[3], gray[:, 48], outline=label[:, 48], spacing_mm=SPACING_MM[1:], title="row 48, along the heart")
axes[3].set_aspect(SPACING_MM[0] / SPACING_MM[2])
class_legend(figure, ["background", "RV", "Myo", "LV"], background=True)


# %% [markdown]
# The last panel is the reason for two decisions. A voxel is 10 mm long and 1.5 mm wide, so networks here see one slice
# at a time. And a distance counted in voxels means little, so each image carries its voxel size; where that is not
# known, no distance is given.

# %% [markdown]
# ## What is what
#
# | symbol | variable | shape | unit, range |
# |---|---|---|---|
# | $I$ | `image` | [Z,Y,X] or, with K channels, [Z,K,Y,X] float32 | scaled intensity, [0, 1] |
# | $Y_s$ | `scribble` | [Z,Y,X] uint8 | class id, or `ignore` |
# | $Y$ | `label` | [Z,Y,X] uint8 | class id |
# | $\Omega_L$ | `scribble != ignore` | | annotated pixels |
# | $\Omega_U$ | `scribble == ignore` | | the others |
# | | `spacing_mm` | (z,y,x) | mm |
# | | `affine` | 4×4 | voxel (x,y,z) → mm |

# %% [markdown]
# Files store (x,y,z) with x running fastest; arrays here are [Z,Y,X]. That is a transposition, and no copy. Everything
# that can go wrong with data in this book raises a [`DataError`](../basics/01_errors.ipynb): where, what was found, what
# was expected.

# %% [markdown]
# ## A case
#
# One image with what is known about it. A wrong shape, type or range raises an error here, so that later code need not
# check again. `spacing_mm` may be None: some files do not hold the voxel size, and a guess would give wrong distances.

# %%
#| export
def _check_array(
    where: str, array: np.ndarray, dtype: type, shape: tuple[int, ...] | None = None, channels: bool = False
) -> None:
    "Raise DataError unless this is a non-empty array [Z,Y,X] (or [Z,K,Y,X]) of that dtype (and shape)."
    axes = (3, 4) if channels else (3,)
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim not in axes or array.size == 0:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(where, found, f"a non-empty {np.dtype(dtype)} array [Z,Y,X]{' or [Z,K,Y,X]' * channels}")
    if shape is not None and array.shape != shape:
        raise DataError(where, f"shape {array.shape}", f"the image's shape {shape}")


# %%
#| export
def _check_arrays(case: "Case", where: str) -> None:
    "Raise DataError unless image and masks have the right types, shapes and range."
    _check_array(f"{where}: image", case.image, np.float32, channels=True)
    low, high = case.image.min(), case.image.max()
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise DataError(f"{where}: image", f"values from {low} to {high}", "values in [0, 1]")
    for mask in ("scribble", "label"):
        if getattr(case, mask) is not None:
            _check_array(f"{where}: {mask}", getattr(case, mask), np.uint8, case.shape)


# %%
#| export
def _check_place(case: "Case", where: str) -> None:
    "Raise DataError unless voxel size and affine are usable, or absent."
    spacing = case.spacing_mm
    if spacing is not None and not (len(spacing) == 3 and all(0 < mm < np.inf for mm in spacing)):
        raise DataError(f"{where}: spacing_mm", spacing, "three positive numbers (z,y,x), or None")
    if case.affine is not None and (np.shape(case.affine) != (4, 4) or not np.isfinite(case.affine).all()):
        raise DataError(f"{where}: affine", case.affine, "a finite 4×4 matrix, or None")


# %%
#| export
@dataclass(frozen=True, eq=False)
class Case:
    "One 3D image with what is known about it. Raises DataError, naming case and field, for a wrong shape or range."

    patient: str  # "patient001"
    frame: str  # "frame01"
    image: np.ndarray  # [Z,Y,X] or, with several channels, [Z,K,Y,X]; float32 in [0,1]
    spacing_mm: tuple[float, float, float] | None  # voxel size (z,y,x); None when the source does not hold it
    affine: np.ndarray | None = None  # 4×4, voxel (x,y,z) → mm of the scanner; for writing masks back
    scribble: np.ndarray | None = None  # [Z,Y,X] uint8 class ids, the dataset's ignore value where unannotated
    label: np.ndarray | None = None  # [Z,Y,X] uint8 class ids
    source: str = ""  # the file it came from
    grid: Grid | None = None  # how the file stores it; None: transposed, placed by `affine`
    remarks: tuple[str, ...] = ()  # what is worth a look about its files, such as little contrast; FILE: sentence

    @property
    def name(self) -> str:
        "Patient and frame, unique in a dataset."
        return f"{self.patient}_{self.frame}" if self.frame else self.patient

    @property
    def shape(self) -> tuple[int, int, int]:
        "(Z,Y,X), the grid of image and masks."
        return self.image.shape[0], *self.image.shape[-2:]

    @property
    def channels(self) -> int:
        "K: images of the same place, such as two echoes of one scan."
        return 1 if self.image.ndim == 3 else self.image.shape[1]

    @property
    def gray(self) -> np.ndarray:
        "[Z,Y,X]: the first channel, for pictures."
        return self.image if self.image.ndim == 3 else self.image[:, 0]

    def __post_init__(self) -> None:
        where = f"{self.name} ({self.source})" if self.source else self.name
        _check_arrays(self, where)
        _check_place(self, where)


# %%
good = Case("patient001", "frame01", gray.astype(np.float32), SPACING_MM, scribble=scribble, label=label)
assert good.name == "patient001_frame01"
both = Case("p", "f", np.stack([good.image, 1 - good.image], 1), SPACING_MM, label=label)
assert both.channels == 2 and both.shape == good.shape == label.shape and (both.gray == good.image).all()
print(refused(lambda: Case("p", "f", raw, None), "p_f: image", "int16", "float32"))
print(refused(lambda: Case("p", "f", good.image * 2, None), "[0, 1]"))
print(refused(lambda: Case("p", "f", good.image, None, label=label[1:]), "label", "(7, 96, 96)", "(8, 96, 96)"))


# %% [markdown]
# ## A dataset
#
# Cases that share class names, the value of an unannotated pixel, and folds to train and test on. A fold divides
# **patients**: two frames of one heart look alike, and with one on each side a test would measure memory. Nothing is
# read from disk before it is asked for, and then one patient at a time.

# %%
#| export
def _check_dataset(data: "Dataset") -> None:
    "Raise DataError for facts of a dataset that contradict each other."
    if data.ignore in range(data.classes):
        raise DataError(f"{data.name}: ignore", data.ignore, f"no class id (0 to {data.classes - 1})")
    if data.augmentation not in ("acdc", "chaos", "none"):
        raise DataError(f"{data.name}: augmentation", repr(data.augmentation), "'acdc', 'chaos' or 'none'")
    if not data.patients or len(set(data.patients)) < len(data.patients):
        raise DataError(f"{data.name}: patients", data.patients, "at least one, each once")
    sides = (*data.folds.values(), *data.trains.values())
    if strangers := sorted({patient for side in sides for patient in side} - set(data.patients)):
        raise DataError(f"{data.name}: folds", ", ".join(strangers), "only patients of the dataset")


# %%
#| export
_FACTS = ("name", "class_names", "channels", "augmentation", "values", "reading", "version")  # for a checkpoint


def _some_patients(data: "Dataset") -> str:
    "A dataset's patients in a few words, for messages."
    return ", ".join(data.patients[:6]) + (f" … {data.patients[-1]}" if len(data.patients) > 6 else "")


def _read_cases(data: "Dataset", patients: Iterable[str]) -> Iterator[Case]:
    "The cases of some patients, one patient at a time. Raises DataError for a patient that is not in the dataset."
    for patient in patients:
        if patient not in data.patients:
            raise DataError(f"{data.name}: patient", repr(patient), f"one of {_some_patients(data)}")
        yield from data.read(patient)


# %%
#| export
def _train_and_test(data: "Dataset", fold: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    "The patients on the two sides of a fold. Raises DataError if there is no such fold or if either side is empty."
    test = _tested(data, fold)
    train = data.trains.get(fold, tuple(patient for patient in data.patients if patient not in test))
    if not train or not test:
        raise DataError(f"{data.name}: fold {fold}", f"{len(train)} patients to train and {len(test)} to test on",
                        f"at least one each; the data holds {_some_patients(data)}")
    return train, test


# %%
#| export
def _tested(data: "Dataset", fold: int) -> tuple[str, ...]:
    "The patients that a fold tests. Raises DataError if there is no such fold, or nobody in it."
    if fold not in data.folds:
        raise DataError(f"{data.name}: fold", repr(fold),
                        f"one of {sorted(data.folds)}; the data holds {_some_patients(data)}")
    return data.folds[fold]


# %%
#| export
@dataclass(frozen=True, eq=False)
class Dataset:
    "Cases with what they share. Nothing is read before it is asked for. Raises DataError on a contradiction."

    name: str  # "acdc"
    class_names: tuple[str, ...]  # index = class id; the background first
    ignore: int  # value of an unannotated pixel; never a class id
    patients: tuple[str, ...]  # all of them, in order
    read: Callable[[str], list[Case]]  # patient → its cases, read from disk at each call
    folds: dict[int, tuple[str, ...]]  # fold → the patients it tests
    augmentation: str  # "acdc": quarter turns, flips, small rotations; "chaos": small rotations only; "none"
    source: str = ""  # citation and licence, one line
    channels: int = 1  # K of every case's image
    options: dict[str, object] = field(default_factory=dict)  # what the loader itself chose, for a run's settings
    trains: dict[int, tuple[str, ...]] = field(default_factory=dict)  # fold → patients to train on; else all others
    scored: bool = True  # False: nobody labelled the test patients; they are segmented and not scored
    values: tuple[int, ...] = ()  # index = class id: its value in mask files; () stands for the ids themselves
    reading: dict[str, Any] = field(default_factory=dict)  # options with which `read_scan` reads one more scan alike
    version: str = ""  # changes with the files of a user's folder; "" for a published dataset
    content: Callable[[str], dict[str, str]] | None = None  # patient → kind of data → hash; None: of what is read

    def __post_init__(self) -> None:
        _check_dataset(self)

    @property
    def classes(self) -> int:
        "Number of classes, the background included."
        return len(self.class_names)

    def cases(self, patients: Iterable[str] | None = None) -> Iterator[Case]:  # of these, in this order; None: of all
        "The cases of some patients, read one patient at a time. Raises DataError for a patient that is not there."
        return _read_cases(self, self.patients if patients is None else patients)

    def split(self, fold: int) -> tuple[tuple[str, ...], tuple[str, ...]]:  # key of `folds` → to train, to test on
        "The patients on the two sides of a fold. Raises DataError if there is no such fold or if a side is empty."
        return _train_and_test(self, fold)

    def tested(self, fold: int) -> tuple[str, ...]:  # key of `folds` → to test on
        "The patients that a fold tests, for masks that were made elsewhere. Raises DataError if there is no such fold."
        return _tested(self, fold)

    def facts(self) -> dict[str, Any]:
        "What a checkpoint has to know to segment further scans, in plain types."
        return {name: getattr(self, name) for name in _FACTS}


# %%
toy = Dataset("toy", ("background", "RV", "Myo", "LV"), 4, ("a", "b"), lambda patient: [good, good],
              {1: ("a",), 2: ()}, "acdc")
assert toy.split(1) == (("b",), ("a",)) and toy.classes == 4 and len(list(toy.cases())) == 4
print(refused(lambda: toy.split(3), "toy: fold", "[1, 2]"))
print(refused(lambda: toy.split(2), "2 patients to train and 0 to test on"))
print(refused(lambda: Dataset("toy", ("background", "liver", "right kidney", "left kidney", "spleen"), 4, ("a",),
                              toy.read, {}, "chaos"), "ignore", "found 4"))


# %% [markdown]
# ## Which data was it?
#
# A run that is taken up again, or a result that is filed beside others, has to know whether its data is still the same.
# Names, sizes and times do not tell: files can be exchanged by others of equal size. So what a fold trains on and tests
# is hashed, a hash for each patient and kind of data, and two of these tables say what has changed. Loaders hash the
# bytes of their files. That costs little beside reading them: all of ACDC is 96 MB in 600 files, 0.36 s of SHA-256
# where loading took 7.8 s on the same core.

# %%
#| export
def file_hashes(
    files: Mapping[str, Iterable[Path]],  # kind of data ("images", "scribbles", "labels") → files
) -> dict[str, str]:  # kind → hash of names and bytes; a kind without a file is left out
    "Hashes of a patient's files. Raises DataError for one that cannot be read."
    found = {}
    for kind, paths in files.items():
        digest, empty = hashlib.sha256(), True
        for path in paths:
            digest.update(f"{path.name}:{_bytes_hash(path)};".encode())
            empty = False
        if not empty:
            found[kind] = digest.hexdigest()[:16]
    return found


# %%
#| export
def _bytes_hash(path: Path) -> str:
    "The hash of a file's bytes."
    try:
        if not path.is_file():  # to read a pipe is to wait for ever
            raise OSError(0, "no regular file")
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(path, f"an unreadable file ({error.strerror})", "one that can be read") from None


# %%
#| export
def _case_hashes(cases: Iterable[Case]) -> dict[str, str]:
    "Kind of data → hash of what was read: for a dataset that does not hash its files."
    digests = {kind: hashlib.sha256() for kind in ("images", "scribbles", "labels")}
    for case in cases:
        for kind, array in (("images", case.image), ("scribbles", case.scribble), ("labels", case.label)):
            what = "none" if array is None else f"{array.dtype}{array.shape}{case.spacing_mm}"
            digests[kind].update(f"{case.name}:{what}".encode())
            digests[kind].update(b"" if array is None else np.ascontiguousarray(array).data)
    return {kind: digest.hexdigest()[:16] for kind, digest in digests.items()}


# %%
#| export
Content = dict[str, dict[str, dict[str, str]]]  # "trained on", "tested" → patient → kind of data → hash


def content_of(
    data: Dataset,  # what is asked about
    fold: int,  # of the dataset
) -> Content:  # of all patients of the fold, in plain types
    "What a fold trains on and tests, as hashes. Raises DataError for an unknown fold or a file that cannot be read."
    def of(patient: str) -> dict[str, str]:
        return data.content(patient) if data.content else _case_hashes(data.read(patient))

    sides = dict(zip(("trained on", "tested"), data.split(fold), strict=True))
    known = {patient: of(patient) for patient in dict.fromkeys(p for side in sides.values() for p in side)}
    return {side: {patient: known[patient] for patient in patients} for side, patients in sides.items()}


# %%
#| export
def content_id(
    content: Content,  # of `content_of`
) -> str:  # 16 hexadecimal digits
    "One hash of all of it."
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _some(names: Iterable[str]) -> str:
    "The first five names, in order."
    listed = sorted(names)
    return ", ".join(listed[:5]) + f" and {len(listed) - 5} more" * (len(listed) > 5)


# %%
#| export
def content_changes(
    before: Content,  # of `content_of`, earlier
    now: Content,  # of `content_of`
) -> str:  # such as "the scribbles of patient001; patient007 is no longer tested"; "" if nothing has changed
    "What differs between two contents, in words."
    parts, changed = [], dict[str, set[str]]()
    for side in ("trained on", "tested"):
        old, new = before.get(side, {}), now.get(side, {})
        for names, words in ((old.keys() - new.keys(), "no longer"), (new.keys() - old.keys(), "newly")):
            parts += [f"{words} {side}: {_some(names)}"] if names else []
        for patient in old.keys() & new.keys():
            for kind in (old[patient].items() ^ new[patient].items()):
                changed.setdefault(kind[0], set()).add(patient)
    return "; ".join([*(f"the {kind} of {_some(changed[kind])}" for kind in sorted(changed)), *parts])


# %%
first = {"trained on": {"b": {"images": "1", "scribbles": "2"}}, "tested": {"a": {"images": "3", "labels": "4"}}}
then = {"trained on": {"b": {"images": "1", "scribbles": "9"}}, "tested": {"c": {"images": "3", "labels": "4"}}}
assert content_changes(first, first) == "" and content_id(first) != content_id(then)
assert content_changes(first, then) == "the scribbles of b; no longer tested: a; newly tested: c"
bright = Dataset("toy", toy.class_names, 4, ("a", "b"), lambda patient: [good], {1: ("a",)}, "acdc")
dark = Dataset("toy", toy.class_names, 4, ("a", "b"), lambda patient: [
    Case("patient001", "frame01", good.image / 2, SPACING_MM, scribble=scribble, label=label)], {1: ("a",)}, "acdc")
assert content_changes(content_of(bright, 1), content_of(dark, 1)) == "the images of a, b"


# %% [markdown]
# One fault of a dataset is common. In ACDC, 4 marks an unannotated pixel. In CHAOS, 4 is the spleen. Code with a
# literal 4 in it works on the first and leaves an organ out on the second.

# %% [markdown]
# ## Intensities
#
# MR intensities have no unit: one heart is 400 on one scanner and 90 on another. WSL4MIS, from which the paper's
# code descends, cuts the brightest voxels and stretches the rest. With $F$ the cumulative distribution of the $n$
# voxels $v$ of one scan,
#
# $$t=\min\{v: F(v)\ge 0.99\},\qquad I=\frac{\min(v,t)-v_{\min}}{t-v_{\min}}$$

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $v$ | `volume` | [Z,Y,X] integer or float | the scanner's own |
# | 0.99 | `clip` | | share of the voxels |
# | $t$ | `limit` | | the scanner's own |

# %%
def scale_naive(volume, clip):
    "Voxel by voxel, as the equation says."
    voxels = [float(v) for v in volume.ravel()]
    limit = min(v for v in voxels if sum(w <= v for w in voxels) / len(voxels) >= clip)
    low = min(voxels)
    return np.array([(min(v, limit) - low) / (limit - low) for v in voxels]).reshape(volume.shape)


# %% [markdown]
# **By hand.** Voxels 0, 1, 2 and 10 with `clip` 0.75: $F(0)=\frac14$, $F(1)=\frac24$, $F(2)=\frac34$, so $t=2$. The 10
# becomes 2, and division by 2 gives 0, ½, 1, 1.
#
# **Where it breaks.** Its $n^2$ comparisons are 64² = 4,096 on 8×8 pixels, and 3·10¹¹ on a scan of 553,000 voxels. Worse,
# one NaN among the voxels ends up in the result, and no error is raised.

# %%
assert scale_naive(np.array([[0, 1], [2, 10]]), 0.75).tolist() == [[0, 0.5], [1, 1]]
poisoned = np.array([[0, 1], [2, np.nan]])
assert np.isnan(scale_naive(poisoned, 0.75)).any()


# %% [markdown]
# **Fast.** For integers, $t$ is an order statistic: the $\lceil 0.99\,n\rceil$-th smallest voxel, found without sorting
# and without a histogram. For floats, the released code uses 256 bins and their centres; so do we.

# %%
#| export
def _upper_limit(volume: np.ndarray, clip: float) -> float:
    "The first histogram centre with CDF ≥ clip; for integers that is an order statistic, so no histogram is built."
    if volume.dtype.kind in "iu":
        rank = ceil(round(clip * volume.size, 6)) - 1  # rounded, because 0.99 is not a binary fraction
        return float(np.partition(volume, rank, axis=None)[rank])
    counts, edges = np.histogram(volume, bins=256)
    first = np.argmax(np.cumsum(counts) / volume.size >= clip)
    return float(edges[first] + edges[first + 1]) / 2


# %%
#| export
def _finite_range(volume: np.ndarray) -> tuple[np.number, np.number]:
    "Lowest and highest value. Raises DataError for an empty volume and for voxels that are not finite."
    if volume.size == 0:
        raise DataError("image", f"shape {volume.shape}", "at least one voxel")
    low, high = volume.min(), volume.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = np.count_nonzero(~np.isfinite(volume))
        raise DataError("image", f"NaN or infinity in {bad} of {volume.size} voxels", "finite intensities")
    return low, high


# %%
#| export
def _stretch(volume: np.ndarray, low: np.number, limit: float) -> np.ndarray:
    "(min(v, limit) − low) / (limit − low) as float32; computed in float64 where float32 would merge integers."
    exact = volume.dtype == np.float32 or (volume.dtype.kind in "iu" and volume.dtype.itemsize <= 2)
    scaled: np.ndarray = volume.astype(np.float32 if exact else np.float64)
    np.minimum(scaled, limit, out=scaled)
    scaled -= low
    scaled /= limit - float(low)
    return scaled.astype(np.float32, copy=False)


# %%
#| export
def scale_intensities(
    volume: np.ndarray,  # [...] integer or float intensities of one scan, any range
    clip: float = 0.99,  # the limit is the first histogram centre with CDF ≥ clip, in (0,1]; 1 cuts nothing
) -> np.ndarray:  # [...] float32 in [0,1], 0 and 1 included
    """Cut the brightest voxels, stretch the rest to [0, 1]: as WSL4MIS and the released AttenScribble code do it.

    Raises DataError for an empty volume, voxels that are not finite, or no contrast; ValueError for a wrong `clip`."""
    if not 0 < clip <= 1:
        raise ValueError(f"clip: found {clip}, expected a share in (0, 1]")
    low, high = _finite_range(volume)
    limit = _upper_limit(volume, clip) if clip < 1 else float(high)
    if limit <= low:
        raise DataError("image", f"the value {low} in {np.mean(volume == low):.1%} of the voxels", "some contrast")
    return _stretch(volume, low, limit)


# %% [markdown]
# **Equal** to the naive form on integers, and to the released recipe (scikit-image's cumulative distribution) bit for
# bit on integers and floats. What it costs: one pass for the limit, one for the result.

# %%
def scale_released(volume, clip=0.99):
    "The released recipe, on scikit-image."
    cdf, centres = cumulative_distribution(volume)
    cut = np.minimum(volume, centres[np.argmax(cdf >= clip)])
    return ((cut - cut.min()) / (cut.max() - cut.min())).astype(np.float32)


# %%
random = np.random.default_rng(0)
small = random.integers(0, 40, (8, 8))
np.testing.assert_allclose(scale_intensities(small, 0.9), scale_naive(small, 0.9), rtol=1e-7)
for volume in (raw, raw.astype(np.int32), random.normal(size=(8, 96, 96)), random.normal(size=(10, 10, 10)) ** 2):
    np.testing.assert_array_equal(scale_intensities(volume), scale_released(volume))
scan_sized = np.tile(raw, (1, 3, 3))  # 663,552 voxels
print("ours    ", cost(lambda: scale_intensities(scan_sized)))
print("released", cost(lambda: scale_released(scan_sized)))


# %% [markdown]
# ## Has the cut been made already?
#
# A folder may hold the scanner's integers, or a copy that was cut, scaled and stored. **On integers a second
# pass changes nothing**: fewer than 99 % of the voxels lie below $t$, so after the cut more than 1 % sit exactly at the
# maximum, and the maximum is the new $t$.

# %% [markdown]
# On floats the limit is a bin's *centre*, fewer than 1 % may end at the maximum, and a second pass cuts once more. In a
# scaled copy of ACDC, 35 of 200 volumes hold only 0.91 % to 1.00 % there; a second pass would shift them by up to 0.4
# %.

# %% [markdown]
# Many voxels at the maximum show that a volume has been cut. In a scanner's volume the maximum is a voxel or two; a cut
# leaves about 1 % there. The line is drawn at half of that: with as many, a volume is only stretched. A scanner that
# saturates in so many voxels has made the cut itself.

# %%
#| export
def already_cut(
    volume: np.ndarray,  # [...] intensities of one scan
    clip: float = 0.99,  # the share that the cut would have kept
) -> bool:  # then scale it with clip=1
    "Whether the highest value is found in at least half as many voxels as a cut would set to it (share 1 − clip)."
    plateau = np.count_nonzero(volume == volume.max())
    return bool(plateau > 1 and 2 * plateau >= round((1 - clip) * volume.size, 6))


# %%
once = scale_intensities(raw)
stored = np.round(once * 511).astype(np.int16)  # how a scaled volume may come back from disk
np.testing.assert_array_equal(scale_intensities(stored), (stored / 511).astype(np.float32))

smooth = random.gamma(2, 100, (8, 96, 96)).astype(np.float32)
once = scale_intensities(smooth)
assert 0 < np.abs(scale_intensities(once) - once).max() < 1 / 256
assert already_cut(once) and not already_cut(smooth) and not already_cut(raw)
np.testing.assert_array_equal(scale_intensities(once, clip=1), once)
print(refused(lambda: scale_intensities(poisoned), "NaN or infinity in 1 of 4 voxels"))
print(refused(lambda: scale_intensities(np.zeros((2, 2), np.int16)), "the value 0 in 100.0% of the voxels"))


# %% [markdown]
# ## Move the cut yourself
#
# Above: how many voxels have which intensity, and the limit. Below: the resulting picture. Without a cut, a few spots
# of fat use up the range, and heart muscle and blood become two similar dark grays.

# %%
def plot_scaling(clips, volume=raw, z=1):
    "For each share: the histogram with its limit, and the scaled slice below."
    size = {"figsize": (2.6 * len(clips), 4.4), "height_ratios": (1, 2), "layout": "constrained"}
    _, axes = plt.subplots(2, len(clips), squeeze=False, sharey="row", **size)
    for (above, below), clip in zip(axes.T, clips, strict=True):
        limit = volume[(scaled := scale_intensities(volume, clip)) == 1].min()
        above.hist(volume.ravel(), bins=80, color="gray", log=True)
        above.axvline(limit, color="#D55E00")
        above.set_xlabel("intensity in the file", fontsize=8)
        mm = SPACING_MM[1:] if clip == clips[-1] else None
        draw(below, scaled[z], spacing_mm=mm, title=f"clip {clip:g}: limit {limit}")
        below.set_axis_off()
    axes[0, 0].set_ylabel("voxels", fontsize=8)

plot_scaling([0.9, 0.99, 0.999, 1.0])

# %%
interact(lambda clip=0.99: plot_scaling([clip]), clip=(0.5, 1.0, 0.005));

# %% [markdown]
# ## Reading NIfTI, and trusting it
#
# Compressed files are unpacked completely before a voxel is read. Libraries usually read them piece by piece and stop
# before the checksum at the end, and a download that was damaged in the middle passes for an image.
#
# A header of 348 bytes may claim 70 terabytes, and a compressed file of a megabyte may unpack to a gigabyte. So the
# header is read first, and what it claims is compared with the file's size and with the memory that is free, before
# anything is allocated. Deflate, the compression of gzip, PNG and HDF5, makes nothing smaller than by the factor 1032.

# %%
#| export
_PACKED = 1032  # how much smaller deflate makes a file at most
_SLACK = 2**20  # bytes that may follow the voxels, or be a file's overhead
_CLAIM = "the size that its header claims"


# %%
#| export
def _in_words(size: int) -> str:
    "A number of bytes, for people."
    unit = max(0, min(5, (size.bit_length() - 1) // 10))
    return f"{size / 1024**unit:,.0f} {'B KiB MiB GiB TiB PiB'.split()[unit]}"


def free_memory() -> int:  # in bytes
    "Memory that can be had without swapping."
    import psutil  # only here: who needs the losses alone should not wait for it

    return int(psutil.virtual_memory().available)


# %%
#| export
def check_memory(
    where: object,  # file or folder, for messages
    claim: int,  # bytes of voxels
) -> None:
    "Raises DataError for voxels that do not fit into memory: as they are stored, as numbers, and scaled."
    if 3 * claim > (free := free_memory()):
        raise DataError(where, f"{_in_words(claim)} of voxels by its header",
                        f"at most a third of the {_in_words(free)} of memory that are free")


# %%
#| export
def check_claim(
    where: object,  # file, for messages
    claim: int,  # bytes of voxels that a header promises
    stored: int,  # bytes of the file, or of what it stores for them
    packed: bool = True,  # it may be compressed
) -> None:
    "Raises DataError, with both sizes, for voxels that the file cannot hold, or that do not fit into memory."
    most = stored * (_PACKED if packed else 1) + _SLACK
    if claim > most:
        raise DataError(where, f"{_in_words(claim)} of voxels by its header",
                        f"at most {_in_words(most)}, which a file of {_in_words(stored)} can hold")
    check_memory(where, claim)


# %% [markdown]
# Then the voxels are read, and no more of the file than its header claims.

# %%
#| export
_NIFTI2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))  # the header's size, at the start of the file
_HEADER = 540  # bytes of the larger of the two kinds of header


def _unpack_nifti(path: Path) -> Nifti1Image:
    "A NIfTI file, uncompressed in memory. Raises DataError for its header, or anything of a library's."
    stored = path.stat().st_size
    if not path.is_file():
        raise OSError("no regular file")
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        return _read_image(path, cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if packed else plain, stored, packed)


# %%
#| export
def _check_start(path: Path, start: bytes, size: int) -> None:
    "Raise DataError unless a file begins as a NIfTI header does: with its size, and one to seven axes."
    if len(start) < size:
        raise DataError(path, f"an unreadable file ({len(start)} bytes)", f"complete NIfTI, whose header has {size}")
    if start[:2] == b"\x1f\x8b":
        raise DataError(path, "a file that is compressed twice", "NIfTI, compressed once or not at all")
    order: Literal["little", "big"] = "little" if start[:1] == size.to_bytes(2, "little")[:1] else "big"
    if int.from_bytes(start[:4], order) != size:
        raise DataError(path, "no NIfTI header at its start", f"complete NIfTI, which begins with its size, {size}")
    place, width = (40, 2) if size < _HEADER else (16, 8)
    if not 1 <= (axes := int.from_bytes(start[place:place + width], order, signed=True)) <= 7:
        raise DataError(f"{path}: dim[0]", f"{axes} axes", "1 to 7")


# %%
#| export
def _claimed(path: Path, start: bytes, stored: int, packed: bool) -> tuple[type[Nifti1Image], int]:
    "The kind of image by the start of a file, and where its voxels end. Raises DataError for a header not to believe."
    kind = nib.Nifti2Image if start[:4] in _NIFTI2 else Nifti1Image
    _check_start(path, start, kind.header_class.sizeof_hdr)
    header = kind.header_class(start[:kind.header_class.sizeof_hdr], check=False)
    _check_header(path, header)
    end = int(header["vox_offset"]) + prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    check_claim(path, end, stored, packed)
    return kind, end


# %%
#| export
def _read_image(path: Path, file: BinaryIO, stored: int, packed: bool) -> Nifti1Image:
    "An image from an opened file, its header looked at first."
    kind, end = _claimed(path, file.read(_HEADER), stored, packed)
    file.seek(0)
    data = file.read(max(_HEADER, end + _SLACK + 1))  # to its end, or a checksum is not looked at
    if packed and len(data) > end + _SLACK:
        raise DataError(path, f"compressed data beyond {_in_words(end + _SLACK)}", f"{end:,} bytes, {_CLAIM}")
    if len(data) < end:
        raise DataError(path, f"an unreadable file ({len(data):,} bytes)", f"complete NIfTI, {end:,} bytes, {_CLAIM}")
    return kind.from_bytes(data)


# %%
#| export
def _check_header(path: Path, header: Nifti1Header) -> None:
    "Raise DataError, naming file and field, for a header that nobody should believe."
    try:
        check_geometry(header)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    for name in ("scl_slope", "scl_inter"):
        if np.isinf(header[name]):
            raise DataError(f"{path}: {name}", float(header[name]), "a finite number; 0 stands for none")
    if not 0 <= float(header["vox_offset"]) < 2**31:
        raise DataError(f"{path}: vox_offset", float(header["vox_offset"]), "where the voxels begin")


# %%
#| export
_ONE_EACH = "; of a film or a stack of modalities give each volume a file of its own"  # advice for further axes


def read_nifti(
    path: Path,  # *.nii or *.nii.gz
    flat: bool = False,  # take a single slice [x,y] too
) -> tuple[np.ndarray, Nifti1Image]:  # [Z,Y,X] in the type it is stored in; header and affine
    """A 3D NIfTI file; further axes may have the length 1. Raises DataError for one that is broken, empty, larger than
    it can be, whose header contradicts itself, or that has more axes or numbers than one per voxel."""
    try:
        scan = _unpack_nifti(path)
        shape = three_axes(scan.shape) if flat or len(scan.shape) > 2 else scan.shape
        volume = np.asanyarray(scan.dataobj).reshape(shape) if len(shape) == 3 else None
    except DataError:
        raise
    except Exception as error:  # whatever a library says of a file that it does not understand
        raise DataError(path, f"an unreadable file ({type(error).__name__}: {error})", "complete NIfTI") from error
    if volume is None or volume.dtype.kind not in "iuf" or volume.size == 0:
        expected = f"one number per voxel in 3D{_ONE_EACH * (len(shape) > 3)}"
        raise DataError(path, f"{scan.get_data_dtype()} data of shape {scan.shape}", expected)
    return volume.T, scan


# %% [markdown]
# Where a day's run is about to begin, the headers of many files are looked at without their voxels. Whether a file is whole can be told from its size:
# gzip ends with the size of what is in it.

# %%
#| export
def read_header(
    path: Path,  # *.nii or *.nii.gz
) -> Nifti1Image:  # its voxels are not read
    "A NIfTI file by its header, once its size fits. Raises DataError as `read_nifti` does."
    try:
        if not path.is_file():
            raise OSError("no regular file")
        with path.open("rb") as file:
            packed, stored = file.read(2) == b"\x1f\x8b", path.stat().st_size
            file.seek(-4, 2)
            kept = int.from_bytes(file.read(4), "little") if packed else stored
        with (gzip.open if packed else open)(path, "rb") as file:
            _, end = _claimed(path, file.read(_HEADER), stored, packed)
        if kept >= end % 2**32 if packed else kept >= end:
            return cast(Nifti1Image, nib.load(path))
    except Exception:  # whatever it is, `read_nifti` names it
        pass
    return read_nifti(path, flat=True)[1]  # says what is wrong, or reads what only looked so


# %% [markdown]
# A mask holds class ids and nothing else. A scribble leaves most voxels out: one that leaves out none is a dense mask,
# or its 0 meant "nothing drawn" and would be learnt as background.
#
# A mask belongs to its image if shapes agree **and** the headers put their voxels at the same place. The second check
# finds mirrored exports, which agree in shape and are wrong everywhere. The two affines may differ by rounding: what
# counts is how far the farthest voxel moves. A header without a coordinate system says nothing about place; then the
# voxel sizes must agree.

# %%
#| export
ACDC_CLASSES = ("background", "RV", "Myo", "LV")
ACDC_IGNORE = 4  # of an unannotated pixel


def _as_mask(volume: np.ndarray, where: object, ignore: int | None = None) -> np.ndarray:
    "Class ids of ACDC as uint8; raise DataError for any other value, and for a scribble that leaves nothing out."
    allowed = [*range(len(ACDC_CLASSES))] + ([] if ignore is None else [ignore])
    with np.errstate(invalid="ignore"):  # NaN becomes some number, and is not equal to it
        ids = volume.astype(np.uint8)
    right = (ids == volume) & (ids < len(allowed))  # `ignore` follows the class ids
    if not right.all():
        values, counts = np.unique(volume[~right], return_counts=True)
        found = ", ".join(f"{value} ({count}×)" for value, count in zip(values[:5], counts[:5], strict=True))
        raise DataError(where, f"the values {found}", f"only {allowed}")
    if ignore is not None and not (ids == ignore).any():
        raise DataError(where, f"no voxel that is not drawn ({ignore})",
                        "a scribble; a dense mask is a label (_gt, in HDF5 'label')")
    return ids


# %%
#| export
SHIFT_MM = 0.1  # two grids agree if no voxel moves further: above float32 rounding, far below a voxel


def _check_same_grid(path: Path, mask: Nifti1Image, image: Nifti1Image, check_affine: bool) -> None:
    "Raise DataError unless a mask's voxels are those of its image."
    if three_axes(mask.shape) != three_axes(image.shape):
        raise DataError(path, f"shape {mask.shape}", f"the image's shape {image.shape}")
    far = np.array(three_axes(image.shape)) - 1  # the last voxel moves farthest
    if placed(mask.header) and placed(image.header):
        shift_mm = np.abs(affine_mm(mask.header) - affine_mm(image.header))[:3] @ [*far, 1]
    else:
        ours, theirs = (zooms_mm(one.header, one.shape) for one in (mask, image))
        shift_mm = np.abs(np.subtract(ours, theirs)) * far
    if check_affine and shift_mm.max() > SHIFT_MM:
        raise DataError(path, f"an affine that moves voxels by {shift_mm.max():.1f} mm", "that of the image "
                        "(check_affine=False if the arrays are known to match voxel by voxel)")


# %% [markdown]
# ## ACDC
#
# The Automated Cardiac Diagnosis Challenge: 100 patients, each with a film of the beating heart, of which two frames
# carry labels: the heart filled and the heart emptied. The scribbles were drawn later by others and are a separate
# download. Fold $k$ tests patients 20($k$−1)+1 to 20$k$, as in the released code.
#
# The challenge's testing set, patients 101 to 150, has labels by now and no scribbles. It takes part in no fold and is
# never trained on. With `testing=True`, in a run `data_testing=true`, there is one fold instead: trained on 1 to 100,
# tested on the testing set, which lies in the folder `testing` beside `training`.
#
# First the files are listed by their names; none is opened yet. Some systems write endings in capitals. Other files may
# lie among them and are left alone, but a name that is almost right, such as `Patient021` or `patient021 (1)`, is
# refused: nobody would miss that patient.

# %%
#| export
_ENDING = re.compile(r"\.nii(?:\.gz)?$", re.IGNORECASE)


def is_nifti(
    path: Path,  # of which the name alone is looked at
) -> bool:  # whether it ends in .nii or .nii.gz, in small letters or capitals
    "Whether a file is NIfTI by its name."
    return bool(_ENDING.search(path.name))


def stem(
    path: Path,  # of a NIfTI file
) -> str:  # its name without .nii or .nii.gz
    "A scan's or mask's name, by its file."
    return _ENDING.sub("", path.name)


# %%
#| export
_PATIENT = re.compile(r"patient\d+", re.ASCII)
_NIFTI_NAME = re.compile(r"(patient\d+_frame\d+)(?:_(gt|scribble))?", re.ASCII)
_EXACT = "patient021, patient021_frame01, patient021_frame01_scribble or the like"
_TAIL = r"(?:s|[ (~].*|[_.-]?copy.*)?"  # a plural, and what systems append to the name of a copy


def _match(kind: re.Pattern[str], name: str, path: Path) -> re.Match[str] | None:
    "How a name matches, None for one unlike it. Raises DataError for what differs by capitals or a copy's tail only."
    match = kind.fullmatch(name)
    joined = re.fullmatch(kind.pattern.replace("_", ""), re.sub("(?<!^)[_ .-]", "", name), re.IGNORECASE | re.ASCII)
    if not match and (joined or re.fullmatch(f"(?:{kind.pattern}){_TAIL}", name, re.IGNORECASE | re.ASCII)):
        right = kind.match(name.lower())
        raise DataError(path, "a name that is almost right", f"{right[0] if right else _EXACT}, or a name unlike it")
    return match


# %%
#| export
def _below(folder: Path) -> Iterator[Path]:
    "What lies in a folder, at any depth."
    for path in in_folder(folder):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


# %%
#| export
def _nifti_files(folder: Path) -> dict[str, dict[str, Path]]:
    "Case name → {image, gt, scribble} → file, at any depth below the folder."
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in _below(folder):
        if is_nifti(path) and path.is_file() and (match := _match(_NIFTI_NAME, stem(path), path)):
            name, kind = match[1], match[2] or "image"
            if kind in found[name]:
                raise DataError(path, f"a second {kind} of {name}", f"only {found[name][kind]}")
            found[name][kind] = path
    return dict(found)


# %%
#| export
_TESTING = 100  # patients with a higher number are the challenge's testing set


def _number(patient: str) -> int:
    "The number in a patient's name."
    return int(patient.removeprefix("patient"))


# %%
#| export
def _patient_folders(root: Path, testing: bool) -> list[Path]:
    "The patientXXX folders of a download; `testing`: with those of the testing set. Raises DataError if there is none."
    for folder in (root, root / "training", root / "database" / "training"):
        if patients := _numbered_folders(folder):
            beside = _numbered_folders(folder.absolute().parent / "testing") if testing else []
            found = sorted({path.name: path for path in (*beside, *patients)}.values(), key=lambda path: path.name)
            return [path for path in found if testing or _number(path.name) <= _TESTING] or _no_training(root, found)
    raise DataError(root, "no patientXXX folder" if root.is_dir() else "no such folder",
                    "patientXXX/patientXXX_frameYY.nii.gz in it, or in its training folder")


# %%
#| export
def _numbered_folders(folder: Path) -> list[Path]:
    "The patientXXX folders in a folder. Raises DataError for a folder that cannot be read, or of almost that name."
    return sorted(path for path in in_folder(folder) if path.is_dir() and _match(_PATIENT, path.name, path))


def _no_training(root: Path, found: list[Path]) -> list[Path]:
    "Raise DataError for the testing set alone."
    raise DataError(root, f"the testing set alone, {found[0].name} to {found[-1].name}",
                    "patients up to 100 to train on, or data_testing=true (testing=True) to score the testing set")


# %%
#| export
def in_folder(
    folder: Path,  # that may be there or not
) -> list[Path]:  # what lies in it, in the order of the names; empty where there is no such folder
    "The entries of a folder. Raises DataError for one that cannot be read, which a search by pattern takes for empty."
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise DataError(folder, f"a folder that cannot be read ({error.strerror})", "one that you may read") from None


# %%
#| export
def _frame_files(patient: Path) -> dict[str, dict[str, Path]]:
    "`_nifti_files` of one patient. Raises DataError without a frame, and for masks without their image."
    frames = _nifti_files(patient)
    for name, kinds in frames.items():
        if "image" not in kinds or not name.startswith(f"{patient.name}_"):
            raise DataError(patient, ", ".join(path.name for path in kinds.values()),
                            f"an image {patient.name}_frameYY.nii.gz with its masks")
    if not frames:
        raise DataError(patient, "no frame", f"{patient.name}_frameYY.nii.gz")
    return frames


# %%
#| export
def _replace_scribbles(frames: dict[str, dict[str, Path]], scribbles: Path | str) -> None:
    "Give each case its scribble from another folder, where there is one. Raises DataError if that holds for none."
    found = {name: kinds["scribble"] for name, kinds in _nifti_files(Path(scribbles)).items()
             if name in frames and "scribble" in kinds}
    if not found:
        raise DataError(scribbles, "no scribble for these images", "patientXXX_frameYY_scribble.nii.gz")
    for name, path in found.items():
        frames[name]["scribble"] = path


# %% [markdown]
# Then a frame is read: its image is scaled, and each mask is checked against it. The voxels stay in the order in which
# they are stored, as in the HDF5 form and the released code. So all scans must be stored alike, and what is predicted
# later is turned to that order, which the header of the first scan tells. Copies of ACDC claim one of two: RAS, or LPS,
# half a turn apart in the plane of the slices. In any other, slices would be cut in another plane, or mirrored.

# %%
#| export
def _spacing_mm(scan: Nifti1Image) -> tuple[float, float, float]:
    "Voxel size (z,y,x) from a header."
    x, y, z = zooms_mm(scan.header, scan.shape)
    return z, y, x


def _scaled(volume: np.ndarray, path: Path) -> np.ndarray:
    "Intensities in [0, 1], cut unless they have been. Raises DataError with the file's name."
    try:
        return scale_intensities(volume, 1 if already_cut(volume) else 0.99)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


# %%
#| export
_ORDERS = ("RAS", "LPS")  # all 600 headers of the copy measured; the headers that users of the release quote


def _order(scan: Nifti1Image) -> str:
    "Where a file's axes run to by its header, such as RAS; empty if that does not say."
    return "".join(map(str, nib.aff2axcodes(scan.affine))) if placed(scan.header) else ""


def _first_order(path: Path) -> str:
    "The order in which a copy of ACDC is stored, by one scan's header; RAS where that does not say."
    try:
        found = _order(read_header(path))
    except DataError:  # is raised again, and by name, when the scan is read
        found = ""
    return found if found in _ORDERS else _ORDERS[0]


# %%
#| export
def _check_order(path: Path, scan: Nifti1Image, order: str) -> None:
    "Raise DataError for a scan whose header claims another order of axes than the first."
    if (found := _order(scan)) not in ("", order):
        raise DataError(path, f"axes that run to {found}", f"{order} (ACDC: all {' or all '.join(_ORDERS)}); "
                        "turn it and its masks, or use dataset=folder, which turns scans")


# %%
#| export
def _acdc_case(name: str, files: dict[str, Path], check_affine: bool, order: str) -> Case:
    "Read one frame."
    volume, scan = read_nifti(files["image"])
    _check_order(files["image"], scan, order)
    image, masks = _scaled(volume, files["image"]), {}
    for kind, ignore in (("scribble", ACDC_IGNORE), ("gt", None)):
        if kind in files:
            mask, mask_scan = read_nifti(files[kind])
            _check_same_grid(files[kind], mask_scan, scan, check_affine)
            masks[kind] = _as_mask(mask, files[kind], ignore)
    patient, frame = name.split("_")
    return Case(patient, frame, image, _spacing_mm(scan), affine_mm(scan.header), masks.get("scribble"),
                masks.get("gt"), str(files["image"]))


# %%
#| export
def _acdc_folds(patients: tuple[str, ...], testing: bool) -> dict[int, tuple[str, ...]]:
    "Fold k tests those of patients 20(k−1)+1 … 20k that are present; `testing`: fold 1 tests all above 100."
    if testing:
        return {1: tuple(patient for patient in patients if _number(patient) > _TESTING)}
    block = {patient: (_number(patient) - 1) // 20 + 1 for patient in patients}
    return {fold: tuple(p for p in patients if block[p] == fold) for fold in range(1, 6) if fold in block.values()}


# %%
#| export
_ACDC_SOURCE = ("ACDC: Bernard et al., IEEE TMI 2018, CC BY-NC-SA 4.0; "
                "scribbles: Valvano et al., IEEE TMI 2021, Apache-2.0")


def _acdc_dataset(name: str, patients: tuple[str, ...], read: Callable[[str], list[Case]], source: str,
                  content: Callable[[str], dict[str, str]], testing: bool = False, order: str = _ORDERS[0]) -> Dataset:
    "What both forms of ACDC have in common; further scans are turned to the order of these."
    return Dataset(name, ACDC_CLASSES, ACDC_IGNORE, patients, read, _acdc_folds(patients, testing), "acdc", source,
                   options={"testing": True} if testing else {}, reading={"axis": order, "robust": False},
                   content=content)


# %%
#| export
def _acdc_hashes(frames: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    "The hashes of a patient's frames."
    kinds = {"images": "image", "scribbles": "scribble", "labels": "gt"}
    return file_hashes({name: [files[kind] for files in frames.values() if kind in files]
                        for name, kind in kinds.items()})


# %%
#| export
def acdc(
    root: Path | str,  # folder with patientXXX/, or one whose training/ has them
    scribbles: Path | str | None = None,  # where *_scribble.nii.gz lie, at any depth; beside the images unless told
    *,
    check_affine: bool = True,  # refuse masks whose header places them elsewhere than the image
    testing: bool = False,  # fold 1 trains on patients 1 to 100 and tests the testing set, 101 to 150, and no other
) -> Dataset:  # "acdc": 4 classes, ignore 4, 5 folds; a mask that is not there is None, the 4D films are left alone
    "The ACDC challenge folder, raw or scaled already. Raises DataError without a patient or a frame, and on reading."
    files = {patient.name: _frame_files(patient) for patient in _patient_folders(Path(root), testing)}
    if testing and not any(_number(patient) > _TESTING for patient in files):
        raise DataError(root, f"no patient above {_TESTING}", "the testing set in the folder testing beside training")
    if scribbles is not None:
        _replace_scribbles({name: kinds for frames in files.values() for name, kinds in frames.items()}, scribbles)

    order = _first_order(next(kinds["image"] for frames in files.values() for kinds in frames.values()))

    def read(patient: str) -> list[Case]:
        return [_acdc_case(name, kinds, check_affine, order) for name, kinds in files[patient].items()]

    return _acdc_dataset("acdc", tuple(files), read, _ACDC_SOURCE, lambda patient: _acdc_hashes(files[patient]),
                         testing, order)


# %% [markdown]
# We write the toy heart in that layout, the film included, and read it back. Then we damage the copy, one file at a
# time: a mask that its header mirrors, a label from another dataset, an incomplete download.

# %%
folder = Path(tempfile.mkdtemp()) / "patient007"
folder.mkdir()

def save(name, volume, affine=(1.5, 1.5, 10, 1)):
    nib.save(nib.Nifti1Image(volume.T, np.diag(affine)), folder / f"patient007_{name}.nii.gz")

save("frame01", raw), save("frame01_gt", label), save("frame01_scribble", scribble), save("4d", np.stack([raw, raw]))
(case,) = acdc(folder.parent).cases()
np.testing.assert_array_equal(case.image, scale_intensities(raw))
np.testing.assert_array_equal(case.scribble, scribble)
assert case.name == "patient007_frame01" and case.spacing_mm == SPACING_MM


# %%
def read_toy():
    return list(acdc(folder.parent).cases())

save("frame01_gt", label, affine=(-1.5, 1.5, 10, 1))
print(refused(read_toy, "patient007_frame01_gt.nii.gz", "moves voxels by 285.0 mm"))
save("frame01_gt", label * 85)
print(refused(read_toy, "255", "only [0, 1, 2, 3]"))
save("frame01_gt", label)
image = folder / "patient007_frame01.nii.gz"
image.write_bytes(image.read_bytes()[:20_000])
print(refused(read_toy, "patient007_frame01.nii.gz", "EOFError"))

# %% [markdown]
# ## The HDF5 form
#
# The WSL4MIS benchmark ships ACDC as HDF5: volumes for testing, single slices for training. Two things can go wrong:
# sorted as text, slice 10 comes before slice 2, and the files do not hold the voxel size. It comes from a table or from
# the NIfTI headers; without either, `spacing_mm` is None and no distance in mm can be computed.

# %%
#| export
_H5_NAME = re.compile(r"(patient\d+)_(frame\d+)(?:_slice_(\d+))?", re.ASCII)
_H5_ENDINGS = (".h5", ".hdf5")  # in small letters or capitals
_VOLUME = -1  # stands for a slice number where a file holds the volume


# %%
#| export
def _h5_files(root: Path) -> dict[str, dict[str, dict[int, Path]]]:
    "Patient → frame → slice → file, but for the testing set. Raises DataError if there is none, or two of one."
    files: dict[str, dict[str, dict[int, Path]]] = defaultdict(lambda: defaultdict(dict))
    for folder in (root, root / "ACDC_training_volumes", root / "ACDC_training_slices"):
        for path in in_folder(folder):
            match = path.suffix.lower() in _H5_ENDINGS and _match(_H5_NAME, path.stem, path)
            if match and _number(match[1]) <= _TESTING:
                parts, number = files[match[1]][match[2]], int(match[3] or _VOLUME)
                if parts.setdefault(number, path) != path:
                    raise DataError(path, f"a second {'volume' if number == _VOLUME else f'slice {number}'} of "
                                    f"{match[1]}_{match[2]}", f"only {parts[number]}")
    if not files:
        raise DataError(root, "no HDF5 file" if root.is_dir() else "no such folder",
                        "patientXXX_frameYY.h5 or patientXXX_frameYY_slice_i.h5, in it or in ACDC_training_volumes/")
    return files


# %%
#| export
def _read_h5(path: Path, dimensions: int) -> dict[str, np.ndarray]:
    "The arrays image, and scribble and label where they are there."
    try:
        with h5py.File(path) as file:
            found = {key: file[key] for key in ("image", "scribble", "label") if key in file}
            _check_h5(path, found, dimensions)
            return {key: np.asarray(array[()]) for key, array in found.items()}
    except DataError:
        raise
    except Exception as error:  # whatever the library says of a file that it does not understand
        raise DataError(path, f"an unreadable file ({type(error).__name__}: {error})", "complete HDF5") from error


# %%
#| export
def _check_h5(path: Path, found: dict[str, Any], dimensions: int) -> None:
    "Raise DataError for what is no array of numbers of the right shape, before any of it is read."
    for key, array in found.items():
        if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "biuf":
            raise DataError(f"{path}: {key}", getattr(array, "dtype", type(array).__name__), "an array of numbers")
    shapes = {key: array.shape for key, array in found.items()}
    if "image" not in found or any(shape != shapes["image"] or len(shape) != dimensions for shape in shapes.values()):
        raise DataError(path, shapes or "no array", f"{dimensions}D arrays of one shape, 'image' among them")
    if not prod(shapes["image"]):
        raise DataError(path, f"shape {shapes['image']}", "at least one voxel")
    check_claim(path, sum(prod(array.shape) * array.dtype.itemsize for array in found.values()), path.stat().st_size)


# %% [markdown]
# A missing slice is found by its number. The first is 0, or 1 where no frame of the folder has a slice 0. A set whose
# last slices are missing cannot be told from a shorter scan.

# %%
#| export
def _stack_h5(name: str, parts: dict[int, Path], first: int) -> dict[str, np.ndarray]:
    "The arrays of a volume from its slices. Raises DataError if a slice is missing or unlike the others."
    folder = parts[min(parts)].parent
    if missing := sorted(set(range(first, max(parts) + 1)) - set(parts)):
        raise DataError(folder, f"{name} without slice {', '.join(map(str, missing))}",
                        f"all slices from {first} to {max(parts)}")
    slices = [_read_h5(parts[number], 2) for number in sorted(parts)]
    if len(kinds := {(*arrays, arrays["image"].shape) for arrays in slices}) > 1:
        raise DataError(folder, f"slices of {name} that differ: {kinds}", "same keys, same shape")
    return {key: np.stack([arrays[key] for arrays in slices]) for key in slices[0]}


# %%
#| export
def _first_slice(files: dict[str, dict[str, dict[int, Path]]]) -> int:
    "The number of a volume's first slice: 0, or 1 if there is no slice 0 in the whole folder but two frames or all."
    numbers = [min(parts) for frames in files.values() for parts in frames.values() if _VOLUME not in parts]
    return 1 if numbers and min(numbers) == 1 else 0


# %%
#| export
def _h5_case(patient: str, frame: str, parts: dict[int, Path], spacing_mm: tuple | None, first: int) -> Case:
    "Read one frame from the file of its volume, or from those of its slices."
    path = parts[min(parts)]
    arrays = _read_h5(path, 3) if _VOLUME in parts else _stack_h5(f"{patient}_{frame}", parts, first)
    for key, ignore in (("scribble", ACDC_IGNORE), ("label", None)):
        if key in arrays:
            arrays[key] = _as_mask(arrays[key], f"{path}: {key}", ignore)
    image = arrays.pop("image").astype(np.float32, copy=False)
    if image.min() == image.max():
        raise DataError(f"{path}: image", f"nothing but {image.min():g}", "a scan with contrast")
    return Case(patient, frame, image, spacing_mm, scribble=arrays.get("scribble"), label=arrays.get("label"),
                source=str(path))


# %% [markdown]
# The voxel size, from wherever it is known:

# %%
#| export
def _spacing_table(spacing: Path | str | None) -> Any:
    "Case name → NIfTI file, from a folder; or what a JSON file holds. Raises DataError if that cannot be read."
    if spacing is None:
        return None
    if Path(spacing).is_dir():
        return {name: kinds["image"] for name, kinds in _nifti_files(Path(spacing)).items() if "image" in kinds}
    return read_json(spacing, "JSON {patient: [x,y,z] in mm}")


# %%
#| export
def _spacing_of(name: str, table: Any, spacing: Path | str | None) -> tuple[float, float, float] | None:
    "A case's voxel size (z,y,x) from a table, under its name or its patient's. Raises DataError if it is not there."
    if spacing is None:
        return None
    entry = table.get(name, table.get(name.split("_")[0])) if isinstance(table, dict) else None
    if isinstance(entry, Path):
        return _spacing_mm(read_nifti(entry)[1])
    if not (isinstance(entry, list) and len(entry) == 3 and all(type(mm) in (int, float) for mm in entry)):
        raise DataError(f"{spacing}: {name}", entry, "[x,y,z] in mm, or a NIfTI file of that name")
    if not all(1e-6 <= mm <= 1e4 for mm in entry):
        raise DataError(f"{spacing}: {name}", entry, "three positive numbers, [x,y,z] in mm")
    z, y, x = (float(mm) for mm in reversed(entry))
    return z, y, x


# %%
#| export
def _h5_hashes(patient: str, frames: Mapping[str, dict[int, Path]], table: Any) -> dict[str, str]:
    "The hashes of a patient's files, and of their voxel sizes where a table holds them."
    paths = [parts[number] for _, parts in sorted(frames.items()) for number in sorted(parts)]
    if not isinstance(table, dict):
        return file_hashes({"files": paths})
    sizes = [table.get(f"{patient}_{frame}", table.get(patient)) for frame in sorted(frames)]
    scans = [size for size in sizes if isinstance(size, Path)]
    written = {} if scans else {"voxel sizes": hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]}
    return file_hashes({"files": paths, "voxel sizes": scans}) | written


# %%
#| export
def wsl4mis(
    root: Path | str,  # folder with *.h5, or with ACDC_training_volumes/ and ACDC_training_slices/
    spacing: Path | str | None = None,  # JSON {patient: [x,y,z] in mm}, or a folder with the NIfTI files; else None
) -> Dataset:  # "wsl4mis": classes, ignore and folds of ACDC; intensities as they are
    "ACDC as WSL4MIS ships it, from volumes, else from slices. Raises DataError without a file, and on reading."
    files, table = _h5_files(Path(root)), _spacing_table(spacing)
    first = _first_slice(files)

    def read(patient: str) -> list[Case]:
        return [_h5_case(patient, frame, parts, _spacing_of(f"{patient}_{frame}", table, spacing), first)
                for frame, parts in sorted(files[patient].items())]

    def hashes(patient: str) -> dict[str, str]:
        return _h5_hashes(patient, files[patient], table)

    source = f"{_ACDC_SOURCE}; HDF5: Luo et al., MICCAI 2022, MIT"
    return _acdc_dataset("wsl4mis", tuple(sorted(files)), read, source, hashes)


# %%
folder = Path(tempfile.mkdtemp())
tall = np.repeat(np.linspace(0, 1, 12, dtype=np.float32)[:, None, None], 4, 1).repeat(4, 2)  # 12 slices of 4×4
for number, slice_ in enumerate(tall):
    with h5py.File(folder / f"patient001_frame01_slice_{number}.h5", "w") as file:
        file["image"], file["scribble"] = slice_, np.full((4, 4), 4, np.uint16)
(case,) = wsl4mis(folder).cases()
np.testing.assert_array_equal(case.image, tall)
assert case.spacing_mm is None and case.scribble.dtype == np.uint8 and case.label is None
(folder / "patient001_frame01_slice_5.h5").unlink()
print(refused(lambda: list(wsl4mis(folder).cases()), "without slice 5", "0 to 11"))

# %% [markdown]
# ## Real data: one patient
#
# The first patient of ACDC, from NIfTI. About 1 % of the pixels are annotated. If the HDF5 form is there too, the two
# loaders must agree to the last bit. One patient shows that the files are understood; it says nothing about how hearts
# differ.

# %%
data = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set"))
if (data / "acdc").is_dir():
    case, other = acdc(data / "acdc").read("patient001")
    share = np.mean(case.scribble != ACDC_IGNORE)
    print(f"{case.name}: {case.image.shape}, {case.spacing_mm} mm, {share:.2%} of the pixels annotated")
    assert case.image.shape == (10, 256, 216) and 0.005 < share < 0.03
    if (data / "wsl4mis_h5").is_dir():
        for a, b in zip((case, other), wsl4mis(data / "wsl4mis_h5").read("patient001"), strict=True):
            for field in ("image", "scribble", "label"):
                np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")

# %%
if (data / "acdc").is_dir():
    z = int(np.argmax((case.label > 0).sum((1, 2))))
    rows, columns = (slice(max(0, int(i.mean()) - 50), int(i.mean()) + 50) for i in np.nonzero(case.label[z]))
    image, scribble_, label_ = (a[z, rows, columns] for a in (case.image, case.scribble, case.label))
    figure, axes = panels(3, size=3.2)
    draw(axes[0], image, spacing_mm=case.spacing_mm[1:], title=f"{case.name}, slice {z}, around the heart")
    draw(axes[1], image, scribble=scribble_, ignore=ACDC_IGNORE, title="scribble")
    draw(axes[2], image, outline=label_, title="label")
    class_legend(figure, ACDC_CLASSES, background=True)


# %% [markdown]
# ## Exercises
#
# **1.** What share of the pixels is annotated? The ignore value is a parameter, never a literal.

# %%
def check_share(share):
    assert share(np.array([[4, 4], [0, 3]]), ignore=4) == 0.5
    assert share(np.array([[5, 5], [5, 4]]), ignore=5) == 0.25

def my_share(scribble, ignore):
    ...  # your code here

exercise(check_share, my_share, solution=lambda scribble, ignore: np.mean(scribble != ignore))


# %% [markdown]
# **2.** Cardiologists report volumes in millilitres. Compute that of one class; 1 ml is 1,000 mm³.

# %%
def check_volume(volume_ml):
    assert np.isclose(volume_ml(label, 3, SPACING_MM), (label == 3).sum() * 22.5 / 1000)
    assert volume_ml(label, 3, (5.0, 1.5, 1.5)) < volume_ml(label, 3, SPACING_MM)

def my_volume_ml(label, class_id, spacing_mm):
    ...  # your code here

exercise(check_volume, my_volume_ml,
         solution=lambda label, class_id, spacing_mm: np.sum(label == class_id) * np.prod(spacing_mm) / 1000)


# %% [markdown]
# **3.** Put the files of slices in the order in which the slices lie in the body.

# %%
def check_order(in_order):
    names = [f"patient001_frame01_slice_{number}.h5" for number in range(12)]
    assert in_order(sorted(names)) == names

def my_order(names):
    return sorted(names)  # improve this

exercise(check_order, my_order, solution=lambda names: sorted(names, key=lambda name: int(name[:-3].split("_")[-1])))


# %% [markdown]
# **4. Break** it: find a float volume that a second pass of `scale_intensities` changes by more than 0.1 %.

# %%
def check_second_pass(make):
    once = scale_intensities(make())
    assert np.abs(scale_intensities(once) - once).max() > 0.001

def my_volume():
    return np.zeros((10, 10)) + np.eye(10)  # improve this

exercise(check_second_pass, my_volume, solution=lambda: np.linspace(0, 1, 1000))

# %% [markdown]
# ## Recap
#
# Exported: `Case` and `Dataset`, which refuse contradictions; `read_nifti`; `scale_intensities`, and `already_cut`, which
# tells raw volumes from scaled ones; the loaders `acdc` and `wsl4mis`. What may surprise: scaling twice is harmless on
# integers and not on floats; a label can match its image in shape and still be mirrored.
# [The next chapter](12_scribbles.ipynb) draws scribbles where nobody did; [chapter 19](19_datasets.ipynb) finds a
# dataset by its name.
