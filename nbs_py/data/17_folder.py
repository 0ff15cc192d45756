# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A folder of your own
#
# > Scans from any scanner, scribbles from any viewer: which files belong together, and what each value in them means.
#
# How does a folder of your own scans and scribbles become a dataset? One scan is stored from left to right and the
# next from the feet up, and 0 means "background" in one program and "not drawn" in another: all of it opens without an
# error, and all of it can be learnt wrongly. This chapter pairs the files, places their voxels and finds out what each
# value means, and it stops wherever it would have to guess.

# %%
#| default_exp data.folder

# %%
#| export
import hashlib
import json
import math
import random
import re
import sys

# %%
#| export
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, cast

# %%
#| export
import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from attenscribble.basics.errors import DataError, did_you_mean
from attenscribble.basics.files import read_json
from attenscribble.data.grid import Grid, affine_mm, mm_per_unit, placed, three_axes
from attenscribble.data.scans import (
    SHIFT_MM, Case, Dataset, already_cut, file_hashes, in_folder, is_nifti, read_header,
    read_nifti, scale_intensities, stem)

# %%
import os
import tempfile

import matplotlib.pyplot as plt
from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.basics.drawing import class_legend, class_rgba, draw, panels
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import acdc

# %%
HEARTS = [case for case in phantom(patients=4, seed=2, side=72, slices=6).cases() if case.frame == "frame01"]
STORED = {"as scanned": {}, "axes exchanged": {"ornt": ((2, 1), (0, -1), (1, -1))}, "tilted": {"degrees": 20}}
work = Path(tempfile.mkdtemp())

def store(path, volume, ornt=((0, 1), (1, 1), (2, 1)), degrees=0):
    "Write [Z,Y,X] with its axes exchanged and reversed as `ornt` says, the patient tilted."
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]]) @ np.diag([-1.5, -1.5, 10, 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = nib.Nifti1Image(np.ascontiguousarray(volume.T), affine).as_reoriented(np.array(ornt))
    scan.header.set_xyzt_units("mm")
    nib.save(scan, path)


# %%
my_scans = work / "my-scans"
for how, heart in zip([*STORED.values(), {}], HEARTS, strict=True):
    drawn = np.array([4, 1, 2, 3, 0], np.uint8)[heart.scribble]  # as ITK-SNAP has it: 0 not drawn, background a label
    store(my_scans / "images" / f"{heart.patient}.nii.gz", (1000 * heart.image).astype(np.int16), **how)
    store(my_scans / "scribbles" / f"{heart.patient}.nii.gz", drawn, **how)
one, raw = HEARTS[0], (1000 * HEARTS[0].image).astype(np.int16)

# %% [markdown]
# ## The answer, as a picture
#
# Four hearts with scribbles: 0 is not drawn, background is drawn as 4. The second heart is stored with other axes than
# the first. Left, a slice as it lies in its file; middle, what a network would be told if 0 were taken for background
# (white); right, what was meant. (`folder` comes from the finished module; the chapter builds it.)

# %%
from attenscribble.data.folder import folder

case = list(folder(my_scans, background=4).cases())[1]
files = [np.asarray(nib.load(my_scans / kind / "patient002.nii.gz").dataobj) for kind in ("images", "scribbles")]
figure, axes = panels(3, size=2.6)
draw(axes[0], files[0][..., 36].T / 1000, scribble=files[1][..., 36].T, ignore=0, title="a slice of the file")
axes[0].set_aspect(10 / 1.5)
axes[1].imshow(class_rgba(np.where(case.scribble[3] == 255, 0, case.scribble[3]), background=True))
axes[1].add_patch(plt.Rectangle((-0.5, -0.5), *case.scribble[3].shape[::-1], fill=False, edgecolor="gray"))
axes[1].set_title("0 as background", fontsize=9)
draw(axes[2], case.image[3], scribble=case.scribble[3], ignore=255, spacing_mm=case.spacing_mm[1:],
     title="0 as not drawn")
class_legend(figure, ["background", "label 1", "label 2", "label 3"], background=True)


# %% [markdown]
# ## The layout
#
# ```
# my-scans/
#     images/NAME.nii.gz          a slice or a volume; of several modalities NAME_0000.nii.gz, NAME_0001.nii.gz, …
#     scribbles/NAME.nii.gz       on the same grid; scans without one are segmented, not learnt from
#     labels/NAME.nii.gz          dense, only if you have them: to score against
#     dataset.json                only if names or values have to be told
# ```
#
# Two other layouts are read as well: one flat folder, where a mask ends in `_scribble`, `_label` or `_gt`, and
# nnU-Net's `imagesTr` and `labelsTr`, where a label with an `ignore` value counts as a scribble.

# %% [markdown]
# ```json
# {"labels": {"background": 4, "liver": 1, "spleen": 2}, "ignore": 0, "channel_names": {"0": "T1", "1": "T2"}}
# ```
#
# This is nnU-Net's file; `ignore` is the value of a voxel that was not annotated. Any option of this chapter may stand
# in it too. ITK-SNAP, 3D Slicer and MITK save NIfTI on request; in 3D Slicer, export a segmentation with the scan as
# reference, else it is cropped.
#
# Nothing that you put there is passed over without a word. Strokes in another format or folder, a scribble among the
# labels, a value that is named twice and an option that nobody knows are refused by name. Other files that are not read
# are told as a remark, once.

# %% [markdown]
# ## What a value means
#
# | where | value | meaning |
# |---|---|---|
# | ITK-SNAP, 3D Slicer, MITK | 0 | not drawn; background is drawn too, as a label of its own |
# | many tools from Python | 255 | not drawn; 0 is drawn background |
# | ACDC's scribbles | 4 | not drawn |
# | nnU-Net | the label `ignore` | not drawn |
#
# Two of these are recognised without a word. **255** is "not drawn" and 0 the background if, in every scribble, 255 fills
# three quarters of the voxels at least and it is 255, not 0, that lies around the strokes of the other values. And if
# you say that the background is another value than 0, then **0** is "not drawn". Everything else has to be said in
# `dataset.json`, and the refusal shows the line. How often a value occurs never decides what it means: **a wrong guess
# would go unnoticed, and the network would learn it**. In dense labels, and in the masks that are written, every class
# keeps its value; only the background becomes 0 where scribbles use 0 for "not drawn".

# %%
def surrounded_naive(rows):
    "The rule, one pixel of a slice at a time: 255 fills three quarters, and nine tenths of what is beside strokes."
    pixels = {(y, x): value for y, row in enumerate(rows) for x, value in enumerate(row)}
    beside = [pixels.get((y + dy, x + dx)) for (y, x), value in pixels.items() if value not in (0, 255)
              for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    zero, free = beside.count(0), beside.count(255)
    return 4 * list(pixels.values()).count(255) >= 3 * len(pixels) and 10 * zero <= zero + free


# %% [markdown]
# **By hand.** A stroke of 1 in the middle of 255, and a stroke of 0 at the border: 255 lies around it. The same stroke
# of 1 with 0 around it and 255 beyond: somebody painted the background with 255, and 0 is what was left open.
#
# **Where it breaks.** It counts pixel by pixel; a scan has half a million of them. Whole arrays are shifted instead.

# %%
drawn = np.full((9, 9), 255, np.uint8)
drawn[4, 3:6], drawn[0, 1:8] = 1, 0
painted = np.full((9, 9), 255, np.uint8)
painted[3:6, 2:7] = 0
painted[4, 3:6] = 1
assert surrounded_naive(drawn.tolist()) and not surrounded_naive(painted.tolist())

# %%
#| export
_OPEN_SHARE, _ZERO_SHARE = 0.75, 0.1  # least share of 255 in a scribble; largest of 0 among its strokes' neighbours


def unlike_scribble(
    stored: np.ndarray,  # [...] a scribble as its file has it
) -> str:  # "" if it is one in which 255 is not drawn and 0 the background, else what speaks against it
    "Why 255 in a scribble cannot be taken for 'not drawn' unless somebody says so."
    free, zero = stored == 255, stored == 0
    if (share := free.mean()) < _OPEN_SHARE:
        return f"255 fills only {share:.1%}"
    strokes, beside = ~(free | zero), [0, 0]
    for axis in range(stored.ndim):
        for one, other in ((np.s_[:-1], np.s_[1:]), (np.s_[1:], np.s_[:-1])):
            here = np.moveaxis(strokes, axis, 0)[one]
            for k, what in enumerate((zero, free)):
                beside[k] += int(np.count_nonzero(here & np.moveaxis(what, axis, 0)[other]))
    share = beside[0] / max(sum(beside), 1)
    return f"0 is {share:.0%} of what lies beside the strokes" if share > _ZERO_SHARE else ""


# %%
random_marks = np.random.default_rng(0)
for _ in range(40):
    marks = random_marks.choice([0, 1, 255], (8, 8), p=[0.03, 0.07, 0.9]).astype(np.uint8)
    assert (unlike_scribble(marks) == "") == surrounded_naive(marks.tolist())

# %%
#| export
IGNORE = 255  # an unannotated voxel of a case read from a folder: never a class id
_NOT_DRAWN = ("ignore", "unannotated", "unlabelled", "unlabeled")


# %%
#| export
@dataclass(frozen=True)
class Labels:
    "What the values in mask files mean."

    names: tuple[str, ...]  # index = class id; the background first
    drawn: tuple[int, ...]  # index = class id: its value in scribbles
    ignore: int  # the value of a voxel that was not annotated in scribbles
    table: Mapping[float, int] = field(default_factory=dict)  # value in a file → the value it stands for

    @property
    def values(self) -> tuple[int, ...]:
        "Index = class id: its value in dense masks, where 0 is the background if scribbles use it for 'not drawn'."
        return (0 if self.ignore == 0 else self.drawn[0], *self.drawn[1:])

    def read(
        self,
        stored: np.ndarray,  # [...] any number type
        where: object,  # for messages
        dense: bool = False,  # a label; else a scribble
    ) -> np.ndarray:  # [...] uint8 class ids, in a scribble IGNORE where nothing is drawn
        "Class ids of a mask. Raises DataError for a value without meaning, and a scribble without any such voxel."
        return _class_ids(self, stored, where, dense)


# %%
#| export
def _class_ids(labels: Labels, stored: np.ndarray, where: object, dense: bool) -> np.ndarray:
    "Class ids of a mask, as `Labels.read` promises them."
    meaning = {value: class_id for class_id, value in enumerate(labels.drawn)}
    meaning = {labels.values[0]: 0} | meaning if dense else meaning | {labels.ignore: IGNORE}
    stored = mapped(stored, labels.table)
    ids, known = np.zeros(stored.shape, np.uint8), np.zeros(stored.shape, bool)
    for value, class_id in meaning.items():
        here = stored == value
        ids[here] = class_id
        known |= here
    if not known.all():
        raise DataError(where, f"the values {_listed(stored[~known])}", _known_values(labels, meaning))
    if not dense and not (ids == IGNORE).any():
        raise DataError(where, f"no voxel that is not drawn ({labels.ignore})",
                        "a scribble; a dense mask belongs into labels/")
    return ids


# %%
#| export
def _listed(values: np.ndarray) -> str:
    "The first five values and how often they occur."
    values, counts = np.unique(values, return_counts=True)
    return ", ".join(f"{value:g} ({count}×)" for value, count in zip(values[:5], counts[:5], strict=True))


def _known_values(labels: Labels, meaning: Mapping[int, int]) -> str:
    "The values that have a meaning, for a message."
    names = {class_id: name for class_id, name in enumerate(labels.names)} | {IGNORE: "not drawn"}
    known = ", ".join(f"{value} {names[class_id]}" for value, class_id in sorted(meaning.items()))
    return f"only {known}; name others in dataset.json"


# %%
#| export
def _rounded(stored: np.ndarray) -> np.ndarray:
    "Floats next to whole numbers, as a scale factor leaves them, are rounded; everything else stays."
    if stored.dtype.kind != "f":
        return stored
    near = np.rint(stored)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return near if np.nanmax(np.abs(stored - near), initial=0) < 1e-3 else stored


# %%
#| export
def mapped(
    stored: np.ndarray,  # [...] a mask as its file has it
    table: Mapping[float, int],  # value → the value it stands for; values that are not in it stay
) -> np.ndarray:  # [...] integers, or floats where the file holds some
    "A mask under the option `map`: a value such as 300, which no byte holds, becomes one that is wanted."
    stored = _rounded(stored)
    if not table:
        return stored
    found = stored.astype(np.float64 if stored.dtype.kind == "f" else np.int64)
    for value, new in table.items():
        found[np.isnan(stored) if value != value else stored == value] = new
    return found


# %%
#| export
def count_values(
    stored: np.ndarray,  # [...] a mask as its file has it, or of `mapped`
) -> Counter[int | float]:  # value → number of voxels
    "How many voxels hold each value."
    values, counts = np.unique(_rounded(stored), return_counts=True)
    known = (value if value == value else math.nan for value in values.tolist())  # one NaN, to be counted together
    return Counter(dict(zip(known, counts.tolist(), strict=True)))


# %% [markdown]
# ## From dataset.json, options and the masks to meanings
#
# What you write in `dataset.json` or give as an option counts. Everything else is concluded from the values in the
# files, by the rules above. Without names, strokes and dense labels have to hold the same organs: an organ that one of
# them lacks would silently be background in the other.

# %%
#| export
def meaning_of(
    named: Mapping[str, int],  # name → value, of dataset.json; may be empty
    drawn: Counter[int | float],  # voxels of each value over all scribbles; may be empty
    dense: Collection[int | float],  # values of all dense labels; may be empty
    *,
    ignore: int | None = None,  # value of a voxel that is not drawn, if it is known
    background: int | None = None,  # value of drawn background, if it is known
    doubt: str = "",  # why 255 cannot be taken for "not drawn", of `unlike_scribble`
    table: Mapping[float, int] | None = None,  # of the option `map`
    where: object = "dataset.json",  # for messages
) -> Labels:  # names and values of the classes
    "What the values mean. Raises DataError, with the line to write, where a guess would be needed."
    named, background = _named_values(named, background, ignore, where)
    ignore = _not_drawn(named, drawn, ignore, background, doubt, where)
    values = _class_values(named, drawn, dense, ignore, background, where)
    names = {values[0]: "background"} | {value: name for name, value in named.items()}
    if "Avg" in names.values():
        raise DataError(f"{where}: labels", "a class called 'Avg'", "another name: tables use it for the mean")
    return Labels(tuple(names.get(value, f"label {value}") for value in values), values, ignore, table or {})


# %%
#| export
def _named_values(named: Mapping[str, Any], background: int | None, ignore: int | None,
                  where: object) -> tuple[dict[str, int], int | None]:
    """Names and values, the ignore label left out, and the background's value. Raises DataError for another table, or
    one that contradicts what is said elsewhere."""
    flip = bool(named) and all(isinstance(name, str) for name in named.values())  # nnU-Net 1: value → name
    pairs = [(name, value) for value, name in named.items()] if flip else list(named.items())
    try:
        table = {str(name): int(str(value)) for name, value in pairs}
    except ValueError:
        expected = 'name → whole number, such as {"background": 4, "liver": 1}'
        raise DataError(f"{where}: labels", dict(named), expected) from None
    if len(set(table.values())) < len(pairs):
        raise DataError(f"{where}: labels", dict(named), "each name and each value once")
    own = next((value for name, value in table.items() if name.lower() == "background"), None)
    hidden = next((value for name, value in table.items() if name.lower() in _NOT_DRAWN), None)
    _check_said_once({"background": (None if own == ignore else own, background), "ignore": (hidden, ignore)}, where)
    table = {name: value for name, value in table.items() if name.lower() not in _NOT_DRAWN}
    if ignore is not None and ignore in table.values() and ignore != own:
        raise DataError(f"{where}: ignore", f"{ignore}, which labels calls {_name_of(table, ignore)!r}",
                        "a value that no class has")
    return table, own if background is None else background


# %%
#| export
def _check_said_once(said: Mapping[str, tuple[int | None, int | None]], where: object) -> None:
    "Raise DataError for a value that `labels` and an option of its own name differently."
    for name, (inside, option) in said.items():
        if inside is not None and option is not None and inside != option:
            raise DataError(f"{where}: {name}", f"{option}, and {inside} in labels", "one value in both")


# %%
#| export
def _not_drawn(named: Mapping[str, int], drawn: Counter[int | float], ignore: int | None, background: int | None,
               doubt: str, where: object) -> int:
    "The value of a voxel that is not drawn. Raises DataError where nothing says so."
    if ignore is not None or not drawn:
        return IGNORE if ignore is None else int(ignore)
    free = {0, 255} & drawn.keys() - {*named.values(), background}
    if free == {0} and background:  # the background is drawn as another value: 0 is what a viewer shows as empty
        return 0
    if not doubt and (free == {255} or (free == {0, 255} and background is None)):
        return 255
    if math.nan in drawn:
        raise DataError(where, f"NaN in {drawn[math.nan]} of the scribbles' voxels", 'numbers; "map": {"nan": 255} in '
                        "dataset.json reads them as 255, which is not drawn")
    most = drawn.most_common(1)[0][0]  # for the line that is proposed, not for what is done
    doubt = doubt if 255 in free else ""
    shares = ", ".join(f"{value:g} ({_name_of(named, value)}) in {n / drawn.total():.1%}"
                       for value, n in drawn.most_common(5))
    raise DataError(where, f"the value {shares} of the scribbles' voxels" + (f"; {doubt}" if doubt else ""),
                    f"to be told the value that is not drawn: {_proposed(named, drawn, most)}")


# %%
#| export
def _name_of(named: Mapping[str, int], value: int | float) -> str:
    "The name of a value, for messages."
    return next((name for name, known in named.items() if known == value), "no name")


# %%
#| export
def _proposed(named: Mapping[str, int], drawn: Collection[int | float], most: int | float) -> str:
    "The lines for dataset.json that would settle what values mean, the likelier first."
    whole = sorted(int(v) for v in drawn if float(v).is_integer())
    lines = []
    for ignore in dict.fromkeys((most, *(v for v in (0, 255) if v in whole))):
        others = [v for v in whole if v != ignore]
        back = 0 if 0 in others else max([v for v in others if v not in named.values()], default=max(whole) + 1)
        names = {name: value for name, value in named.items() if value != ignore}
        names = names or {f"label {v}": v for v in others if v != back}
        names = names if any(name.lower() == "background" for name in names) else {"background": back} | names
        lines.append(f'"ignore": {ignore:g} if it is this one ({json.dumps({"labels": dict(names)})[1:-1]})')
    return ", or ".join(lines) + " in dataset.json"


# %%
#| export
def _class_values(named: Mapping[str, int], drawn: Collection[int | float], dense: Collection[int | float],
                  ignore: int, background: int | None, where: object) -> tuple[int, ...]:
    "Values of the classes, the background's first. Raises DataError where the background is not known."
    strokes, truth = ({int(v) for v in found if float(v).is_integer()} for found in (drawn, dense))
    organs = (set(named.values()) or strokes | truth) - {ignore}
    if background is None and ignore != 0 and 0 not in named.values():
        background = 0
    if background is None:
        lines = "; ".join(f'"background": {v}' for v in sorted(organs)[:6])
        raise DataError(where, f"the drawn values {sorted(organs)} and none of them said to be the background",
                        f'its value in dataset.json, one of {lines}; it has to be drawn too, 0 means not drawn')
    if not named and strokes and truth:
        _check_same_organs(strokes - {ignore, background}, truth - {background, 0 if ignore == 0 else background},
                           ignore, background, where)
    _check_classes(background, organs - {background}, ignore, where)
    return background, *sorted(organs - {background})


# %%
#| export
def _check_same_organs(strokes: set[int], truth: set[int], ignore: int, background: int, where: object) -> None:
    "Raise DataError unless strokes and dense labels hold the same organs."
    if strokes == truth:
        return
    names = {"background": background} | {f"label {v}": v for v in sorted(strokes | truth)}
    lines = json.dumps({"labels": names, "ignore": ignore})[1:-1]
    other = json.dumps({"map": {str(min(strokes ^ truth)): background}})[1:-1]
    raise DataError(where, f"the organs {sorted(strokes)} in the scribbles and {sorted(truth)} in the dense labels",
                    f"the same in both, or dataset.json to name them: {lines}, and {other} for one that counts as "
                    "background")


# %%
#| export
def _check_classes(background: int, organs: set[int], ignore: int, where: object) -> None:
    "Raise DataError for values that cannot be those of at least two classes in a mask of one byte."
    if background == ignore or not organs:
        raise DataError(where, f"background {background}, not drawn {ignore}, other values {sorted(organs)}",
                        "two values for these two, and at least one class more")
    if wrong := [value for value in (background, *organs) if not 0 <= value <= 255]:
        free = iter(sorted({*range(1, 255)} - {background, ignore, *organs}))
        lines = json.dumps({"map": {str(value): next(free) for value in wrong}})[1:-1]
        raise DataError(where, f"the class values {wrong}", "values from 0 to 255, which masks of one byte can hold; "
                        f"{lines} in dataset.json reads them as such, and labels has to give the new ones")


# %%
def meaning(named=(), drawn=(), dense=(), **known):
    labels = meaning_of(dict(named), Counter(drawn), dense, **known)
    return dict(zip(labels.names, labels.drawn, strict=True)), labels.ignore, labels.values

assert meaning(drawn={255: 90, 0: 5, 1: 5}) == ({"background": 0, "label 1": 1}, 255, (0, 1))
assert meaning(drawn={0: 90, 1: 5, 4: 5}, background=4) == ({"background": 4, "label 1": 1}, 0, (0, 1))
assert meaning(drawn={0: 45, 1: 5, 255: 50}, background=255) == ({"background": 255, "label 1": 1}, 0, (0, 1))
assert meaning({"background": 0, "RV": 1}, {4: 90, 0: 5, 1: 5}, ignore=4) == ({"background": 0, "RV": 1}, 4, (0, 1))

# %%
for wrong in ({"drawn": {4: 90, 0: 5, 1: 5}}, {"drawn": {0: 90, 1: 5, 2: 5}},
              {"drawn": {0: 45, 1: 5, 255: 50}, "doubt": unlike_scribble(painted)},
              {"drawn": {0: 5, 1: 5, 255: 90}, "dense": {0, 1, 2}},
              {"named": {"background": 0, "liver": 1}, "drawn": {0: 99, 1: 1}}):
    try:
        meaning(**wrong)
        raise RuntimeError("guessed")
    except DataError as error:
        print(error)


# %% [markdown]
# ## Intensities
#
# Each modality of each scan is scaled for itself to [0, 1]. The rule of [chapter 11](11_scans.ipynb), which keeps ACDC and
# CHAOS as the paper has them, cuts at the bright end alone, and for floats only to a 256th of their range: one hot
# voxel, or a fill value of −32,768, leaves the organs one gray. Here both ends are cut, at the percentiles 1 − `clip` and
# `clip` of what was measured:
#
# - **A fill value is no measurement**: a value that a quarter of the voxels share, or one at an end that at least half as
#   many share as would be cut, farther from the rest than the rest is wide. Percentiles are those of the others.
# - What was cut before is not cut again: where so many voxels share an end's value, and it is no fill, it is the limit.
# - A fill value far away gets an eighth of the range, so that it differs from the darkest or brightest tissue.
#
# `robust=true` counts fill values as if they were measured, and `robust=false` is the rule of chapter 11.

# %%
def limits_naive(voxels, clip):
    "Both ends, on sorted numbers, without fill values that lie far away."
    inside = sorted(voxels)
    last = len(inside) - 1
    low, high = inside[int((1 - clip) * last)], inside[int(np.ceil(clip * last))]
    fills = [v for v in {inside[0], inside[-1]} if inside.count(v) > (1 - clip) / 2 * len(inside)]
    far = [v for v in fills if not 2 * low - high <= v <= 2 * high - low]
    return limits_naive([v for v in voxels if v not in far], clip) if far else (low, high)


# %% [markdown]
# **By hand.** Ten voxels of −32768 and 0, 1, … 99 at `clip` 0.9: the fill is farther from the 0 than the 0 from the 89, so
# it is left out, and the limits are 9 and 90. **What breaks**: with more of them the percentile itself is the fill, and
# nothing is far from it any more. So each value is measured by the others.

# %%
assert limits_naive([-32768] * 10 + list(range(100)), 0.9) == (9, 90)
assert limits_naive([-32768] * 50 + list(range(100)), 0.9)[0] == -32768  # too many to be seen


# %%
#| export
def _order(values: np.ndarray, clip: float) -> tuple[float, float]:
    "The percentiles 1 − clip and clip: values that are there, none between two of them."
    last = values.size - 1
    ranks = int((1 - clip) * last), int(np.ceil(clip * last))
    found = np.partition(values, ranks)
    return float(found[ranks[0]]), float(found[ranks[1]])


# %%
#| export
def _shares_end(values: np.ndarray, value: np.number, clip: float) -> bool:
    "Whether at least half as many voxels hold a value as would be cut at its end, and more than one."
    count = np.count_nonzero(values == value)
    return bool(count > 1 and 2 * count >= round((1 - clip) * values.size, 6))


def _is_far(value: float, others: np.ndarray, clip: float) -> bool:
    "Whether a value is farther from the others than they are wide; no value is where they are all alike."
    low, high = _order(others, clip)
    return high > low and not 2 * low - high <= value <= 2 * high - low


# %%
#| export
def _measured(values: np.ndarray, clip: float) -> tuple[np.ndarray, list[float]]:
    "What is left without fill values, and these."
    fills: list[float] = []
    common = _common(values)
    for end in ("common", *("least", "most") * 3):
        value = values.min() if end == "least" else values.max() if end == "most" or common is None else common
        if value != common and not _shares_end(values, value, clip):
            continue
        others = values[values != value]
        if 0 < others.size < values.size and others.min() < others.max() and (
                value == common or _is_far(float(value), others, clip)):
            values, fills = others, [*fills, float(value)]
    return values, fills


# %%
#| export
def _common(values: np.ndarray) -> np.number | None:
    "A value that a quarter of the voxels share; None if there is none. Such a value is one of the quartiles."
    part = values[::max(1, values.size // 10**5)]  # where it is to be looked for; it is counted in all of them
    counts = {value: np.count_nonzero(values == value) for value in np.unique(np.quantile(
        part, np.arange(1, 10) / 10, method="nearest"))}
    value = max(counts, key=lambda value: counts[value])
    return value if 4 * counts[value] >= values.size else None


# %%
#| export
def _limits(volume: np.ndarray, clip: float) -> tuple[float, float]:
    "What becomes 0 and what becomes 1."
    values, fills = _measured(volume.ravel(order="K"), clip)
    (low, high), least, most = _order(values, clip), values.min(), values.max()
    low = float(least) if low == high or _shares_end(values, least, clip) else low
    high = float(most) if low == high or _shares_end(values, most, clip) else high
    wide = high - low
    for value in fills:
        low = min(low, value if value > low - wide else low - wide / 8)
        high = max(high, value if value < high + wide else high + wide / 8)
    return low, high


# %%
#| export
def scale_robust(
    volume: np.ndarray,  # [...] integer or float intensities of one scan
    clip: float = 0.99,  # the percentiles are 1 − clip and clip, in (0.5, 1]
    fills: bool = False,  # fill values do not count as measured
) -> np.ndarray:  # [...] float32 in [0,1]
    """Stretch what lies between two percentiles to [0, 1] and cut the rest.

    Raises DataError for NaN, infinity, or an image without contrast, as `scale_intensities`."""
    if not np.isfinite(volume).all():
        raise DataError("image", f"NaN or infinity in {(~np.isfinite(volume)).sum()} of {volume.size} voxels",
                        "finite intensities")
    low, high = _limits(volume, clip) if fills else np.quantile(volume, (1 - clip, clip))
    if not high > low:
        raise DataError("image", f"the value {low:g} from the {1 - clip:.0%} to the {clip:.0%} percentile", "contrast")
    stretched = volume.astype(np.float64) if fills else volume  # float32 would overflow on the way
    return ((stretched.clip(low, high) - low) / (high - low)).astype(np.float32)


# %%
few, many = (np.array([-32768] * fills + list(range(100))) for fills in (10, 50))
assert _measured(few, 0.9)[1] == _measured(many, 0.9)[1] == [-32768]
assert _limits(few, 0.9) == _limits(many, 0.9) == (9 - 81 / 8, 90)
assert _limits(np.arange(100), 0.9) == limits_naive(range(100), 0.9) == (9, 90)


# %%
def plot_outlier(strengths, robust=(False, "auto")):
    "A slice in which one voxel is so many times as bright as the brightest, under both ways to scale."
    _, axes = panels(len(strengths) * len(robust), columns=len(strengths), size=2.1)
    for column, strength in enumerate(strengths):
        spoilt = raw.astype(np.float32)
        spoilt[0, 0, 0] = strength * spoilt.max()
        for axis, way in zip(axes[column::len(strengths)], robust, strict=True):
            scaled = scale_robust(spoilt, fills=True) if way else scale_intensities(spoilt)
            draw(axis, scaled[3], title=f"robust={str(way).lower()}, ×{strength:g}")

plot_outlier((1, 100, 1000, 10_000))

# %%
interact(lambda strength=100: plot_outlier((strength,)), strength=(1, 10_000));


# %% [markdown]
# ## In which plane?
#
# Slices lie across the largest spacing, unless the strokes say otherwise: in a CT of thin slices the spacing within a
# slice is the larger one. Who draws, draws all classes on one slice and then goes to another. So for each axis $a$ of
# the file, with $m_a$ the mean number of classes on a slice across $a$ that has strokes, $n_a$ the number of such
# slices, and $s_a$ the share of drawn voxels whose next voxel along $a$ has the same value, an axis $a$ is taken in
# place of the thickest one $t$ if
#
# $$m_a\ge1.25\,m_t\ \text{ and }\ s_a\le s_t+0.1,\qquad\text{or}\qquad
# s_a\le s_t-0.25\ \text{ and }\ 2\,n_a\le n_t.$$

# %%
def evidence_naive(volume, ignore, axis):
    "m, n and s of one axis, slice by slice and voxel by voxel."
    slices = [{*np.unique(part)} - {ignore} for part in np.moveaxis(volume, axis, 0)]
    classes = [len(values) for values in slices if values]
    inside = [place for place in np.ndindex(volume.shape) if volume[place] != ignore]
    following = [tuple(k + (a == axis) for a, k in enumerate(place)) for place in inside]
    same = sum(there[axis] < volume.shape[axis] and volume[here] == volume[there]
               for here, there in zip(inside, following, strict=True))
    return np.mean(classes), len(classes), same / len(inside)


# %%
#| export
_MOST_VALUES = 64  # a mask with more is none, and is not looked at in detail


@dataclass(frozen=True, eq=False)
class Marks:
    "What a mask's file holds, before its values have a meaning."

    counts: Counter[int | float]  # value → voxels
    doubt: str  # of `unlike_scribble`
    scan: Nifti1Image  # its header and place
    present: tuple[np.ndarray, ...]  # for each axis of the file: [slices, values] bool, values in the order of `counts`
    following: np.ndarray  # [3, values]: voxels whose next one along the axis has the same value

    def evidence(
        self,
        ignore: int,  # value of a voxel that is not drawn
    ) -> list[tuple[float, int, float]]:  # for each axis of the file
        "m, n and s: classes on a slice with strokes, number of these slices, share of voxels followed by their like."
        return _evidence(self, ignore)


# %%
#| export
def look_at(
    path: Path,  # of a mask
    table: Mapping[float, int] | None = None,  # of the option `map`
) -> Marks:  # what it holds
    "Read a mask without knowing what its values mean. Raises DataError for a broken file."
    volume, scan = read_nifti(path, flat=True)
    stored = mapped(volume.T, table or {})
    counts = count_values(stored)
    values = list(counts) if len(counts) <= _MOST_VALUES else []
    present, following = tuple(np.zeros((n, len(values)), bool) for n in stored.shape), np.zeros((3, len(values)), int)
    for column, value in enumerate(values):
        here = np.isnan(stored) if value != value else stored == value
        for axis in range(3):
            one = np.moveaxis(here, axis, 0)
            present[axis][:, column] = one.reshape(len(one), -1).any(1)
            following[axis, column] = np.count_nonzero(one[1:] & one[:-1])
    return Marks(counts, unlike_scribble(stored), scan, present, following)


# %%
#| export
def _evidence(marks: Marks, ignore: int) -> list[tuple[float, int, float]]:
    "`Marks.evidence`."
    drawn = [column for column, value in enumerate(marks.counts) if value != ignore][:marks.following.shape[1]]
    total = max(sum(n for value, n in marks.counts.items() if value != ignore), 1)
    found = []
    for axis in range(3):
        classes = marks.present[axis][:, drawn].sum(1)
        slices = int(np.count_nonzero(classes))
        found.append((float(classes.sum() / max(slices, 1)), slices, float(marks.following[axis, drawn].sum() / total)))
    return found


# %%
block = np.random.default_rng(1).choice([0, 1, 2, 255], (5, 6, 7), p=[0.05, 0.1, 0.05, 0.8]).astype(np.uint8)
nib.save(nib.Nifti1Image(block, np.eye(4)), work / "block.nii.gz")
for axis, found in enumerate(look_at(work / "block.nii.gz").evidence(255)):
    np.testing.assert_allclose(found, evidence_naive(block, 255, axis))


# %%
#| export
def axis_by_strokes(
    scan: Nifti1Image,  # the image
    marks: Marks,  # of its scribble
    ignore: int,  # value of a voxel that is not drawn
    check_affine: bool = True,  # False: the arrays match voxel by voxel, whatever the headers say
) -> int:  # axis of the image's file
    "Across which axis slices lie: the thickest one, unless the strokes clearly lie in another plane."
    thickest = Grid.of(scan, "auto").axes[0]
    if 1 in three_axes(scan.shape) or not any(slices for _, slices, _ in marks.evidence(ignore)):
        return thickest
    same = _same_axes(scan, marks.scan) if check_affine else {0: 0, 1: 1, 2: 2}
    evidence = {same[axis]: found for axis, found in enumerate(marks.evidence(ignore))}
    m, n, s = evidence[thickest]
    clear = [(other, axis) for axis, other in evidence.items() if axis != thickest and (
        (other[0] >= 1.25 * m and other[2] <= s + 0.1) or (other[2] <= s - 0.25 and 2 * other[1] <= n))]
    return max(clear, key=lambda found: (found[0][0], -found[0][1]))[1] if clear else thickest


# %%
#| export
def _same_axes(scan: Nifti1Image, mask: Nifti1Image) -> dict[int, int]:
    "Axis of a mask's file → the axis of its image's file that runs the same way."
    if not (placed(scan.header) and placed(mask.header)):
        return {0: 0, 1: 1, 2: 2}
    along = np.abs(_directions(mask).T @ _directions(scan))
    image = [int(along[axis].argmax()) for axis in range(3)]
    return dict(enumerate(image if sorted(image) == [0, 1, 2] else range(3)))


def _directions(scan: Nifti1Image) -> np.ndarray:
    "[3,3]: a column of length 1 for each axis of a file, in the patient's x, y, z."
    matrix = affine_mm(scan.header)[:3, :3]
    return matrix / np.maximum(np.linalg.norm(matrix, axis=0), 1e-12)


# %% [markdown]
# **A scan without strokes**, in the folder or years later in `predict`, is cut as those with strokes were. Not by the
# name of a plane: hearts are scanned along their own axis, near 45°, where "axial" turns into "sagittal" from one
# patient to the next. What is kept is the *direction* across the slices, in the patient's millimetres. A new scan whose
# slices are clearly thick, within 60° of that direction, is cut across them; any other scan across the axis that is
# nearest to it.

# %%
#| export
def common_normal(
    normals: Sequence[np.ndarray],  # (x,y,z) across the slices of each scan; the sign does not matter
) -> tuple[float, float, float] | None:  # None without any, or if one lies more than 60° off
    "The direction across the slices of several scans."
    if not normals:
        return None
    table = np.array(normals)
    mean = np.linalg.eigh(table.T @ table)[1][:, -1]
    x, y, z = (round(float(value), 4) for value in mean * (1 if mean.sum() >= 0 else -1))
    return (x, y, z) if np.abs(table @ mean).min() >= 0.5 else None


# %%
#| export
def axis_along(
    scan: Nifti1Image,  # without strokes
    normal: Sequence[float] | None,  # of `common_normal`
) -> str:  # for `Grid.of`
    "Across which axis of its file a scan is cut so that its slices lie as those of the training."
    if normal is None or not placed(scan.header) or 1 in three_axes(scan.shape):
        return "auto"
    thickest, along = Grid.of(scan, "auto").axes[0], np.abs(np.array(normal) @ _directions(scan))
    mm = np.linalg.norm(affine_mm(scan.header)[:3, :3], axis=0)
    thick = mm[thickest] >= 2 * np.delete(mm, thickest).max() and along[thickest] >= 0.5
    return str(thickest if thick else int(along.argmax()))


# %%
def thin(strokes_mm, mm=(0.98, 0.98, 0.7)):
    "A CT of thin slices, with strokes on three axial slices; where the plane is taken from."
    marks = np.full((40, 48, 48), 255, np.uint8)
    for z in (5, 20, 35):
        marks[z, 24, 20:28], marks[z, 4, 5:40] = 1, 0
    nib.save(nib.Nifti1Image(marks.T, np.diag([*mm, 1])), work / "thin.nii.gz")
    scan = nib.load(work / "thin.nii.gz")
    return axis_by_strokes(scan, look_at(work / "thin.nii.gz"), 255) if strokes_mm else Grid.of(scan, "auto").axes[0]

assert (thin(False), thin(True)) == (1, 2), "by spacing coronal, by strokes axial"
short_axis = [np.array([np.sin(a), 0, np.cos(a)]) for a in np.radians([40, 44, 47])]
near_45 = np.array([[1, 0, 7.3, 0], [0, 1.4, 0, 0], [-1, 0, 6.8, 0], [0, 0, 0, 1]])
near_45 = nib.Nifti1Image(np.zeros((9, 9, 3)), near_45)
assert axis_along(near_45, common_normal(short_axis)) == "2" and common_normal([*np.eye(3)]) is None


# %% [markdown]
# ## One scan
#
# A slice, a volume, or several modalities on one grid, in any number type NIfTI has, scale factors applied. A mask may
# be stored in another order than its scan, as long as its voxels lie at the same places, to a tenth of a millimetre.

# %%
#| export
def read_scan(
    images: Sequence[Path],  # one file a modality
    *,
    axis: str = "stored",  # across which slices are taken, as `Grid.of`
    normal: Sequence[float] | None = None,  # with axis "auto": across what the training's slices lay, (x,y,z)
    clip: float = 0.99,  # share of the voxels that keep their intensity
    robust: bool | str = "auto",  # as `FolderOptions`; False: as ACDC and CHAOS are scaled
    check_affine: bool = True,  # refuse files whose header places them elsewhere than the first modality
    patient: str = "",  # for the case's name; empty: that of the first file
    frame: str = "",  # for the case's name
) -> Case:  # without masks; image [Z,Y,X], of several modalities [Z,K,Y,X]
    """Read a scan as `folder` does, to train on or to segment. Raises DataError naming a file that is broken, 4D,
    blank, not finite, or not on the grid of the first."""
    image, grid, remarks = _read_modalities(images, axis, normal, clip, robust, check_affine)
    name = patient or stem(images[0])
    return Case(name, frame, image, grid.spacing_mm, grid.affine, source=str(images[0]), grid=grid, remarks=remarks)


# %%
#| export
def _read_modalities(
    images: Sequence[Path], axis: str, normal: Sequence[float] | None, clip: float, robust: bool | str,
    check_affine: bool
) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    "Image [Z,Y,X] or [Z,K,Y,X] in [0,1], the grid of the first file, and what is worth a look."
    grid, parts, remarks = None, [], []
    for path in images:
        volume, scan = read_nifti(path, flat=True)
        grid = grid or Grid.of(scan, axis_along(scan, normal) if axis == "auto" else axis)
        place = matching_grid(path, scan, grid, check_affine)
        parts.append(np.ascontiguousarray(place.take(scale_file(path, volume, clip, robust).T)))
        remarks += scan_remarks(path, scan, parts[-1], robust)
    image, grid = parts[0] if len(parts) == 1 else np.stack(parts, 1), cast(Grid, grid)  # every scan has a file
    if grid.spacing_mm[0] < 0.99 * max(grid.spacing_mm):
        z, y, x = grid.spacing_mm
        remarks.append(f"{images[0]}: slices are {z:.3g} mm apart with pixels of {y:.3g}×{x:.3g} mm, not across the "
                       "largest spacing")
    return image, grid, tuple(remarks)


# %%
#| export
def scale_file(
    path: Path,  # for messages
    volume: np.ndarray,  # [...] its intensities, integer or float
    clip: float,  # share of the voxels that keep their intensity
    robust: bool | str,  # cut both ends at exact percentiles; "auto": fill values do not count
) -> np.ndarray:  # [...] float32 in [0,1]
    "Intensities to [0,1] by one of the rules. Raises DataError naming the file."
    try:
        if robust:
            return scale_robust(volume, clip, robust == "auto")
        return scale_intensities(volume, 1 if already_cut(volume) else clip)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


# %% [markdown]
# What stops nothing and is worth a look is noted with the case: `check`, training and prediction all say it.

# %%
#| export
def low_contrast(
    scaled: np.ndarray,  # [...] in [0,1]
) -> bool:  # False for an image of one value
    "Whether nine tenths of the voxels above the lowest value share a twentieth of the range: outliers take the rest."
    inside = scaled[scaled > scaled.min()]
    low, high = np.quantile(inside, (0.05, 0.95)) if inside.size else (0.0, 1.0)
    return bool(high - low < 0.05)


# %%
#| export
def _forms_apart_mm(scan: Nifti1Image) -> float:
    "How far the two affines of a header place its voxels apart at most, in mm; 0 unless it has both."
    if not (scan.header["sform_code"] > 0 and scan.header["qform_code"] > 0):
        return 0.0
    try:
        shift = affine_mm(scan.header) - np.diag([*[mm_per_unit(scan.header)] * 3, 1.0]) @ scan.header.get_qform()
    except Exception:  # a quaternion that is none does not count beside an sform
        return 0.0
    corners = np.array([*product(*((0, n - 1) for n in three_axes(scan.shape)[:3]))])
    return float(np.abs(shift[:3] @ np.c_[corners, np.ones(len(corners))].T).max())


# %%
#| export
def scan_remarks(
    path: Path,  # of the file
    scan: Nifti1Image,  # its header
    scaled: np.ndarray,  # [...] its intensities in [0,1]
    robust: bool | str,  # as they were scaled
) -> list[str]:  # FILE: sentence
    "What is worth a look about an image: contrast lost to outliers, no coordinates, no unit of length."
    found = []
    if low_contrast(scaled):
        found.append("nine tenths of the voxels share a twentieth of the range; if organs look alike, " + (
            "a smaller clip cuts more outliers" if robust else "robust=auto cuts outliers at both ends"))
    if not placed(scan.header):
        found.append("the header has no coordinates; the scan is taken as it lies")
    if not int(scan.header["xyzt_units"]) & 7:
        found.append("the header names no unit of length; its numbers are taken for mm")
    if _forms_apart_mm(scan) > 1:
        found.append("qform and sform place the scan differently, by more than 1 mm; the sform counts")
    return [f"{path}: {remark}" for remark in found]


# %%
#| export
def grouped(
    remarks: Iterable[str],  # FILE: sentence
) -> list[str]:  # the same, a sentence that several files have once, with the first five of them
    "Remarks with one line a sentence."
    files: dict[str, list[str]] = {}
    for remark in remarks:
        path, _, sentence = remark.rpartition(": ")
        files.setdefault(sentence, []).append(path)
    return [f"{paths[0]}{''.join(f', {Path(path).name}' for path in paths[1:5])}"
            f"{f' and {len(paths) - 5} more' * (len(paths) > 5)}: {sentence}" for sentence, paths in files.items()]


# %%
#| export
def said(
    cases: Iterable[Case],  # as they are read
    but: Collection[str] = (),  # patients of whom it was said before
) -> Iterator[Case]:  # the same cases
    "Pass cases on, and print their remarks after the last, on the stream of errors: a table on the other stays alone."
    remarks: list[str] = []
    for case in cases:
        remarks += case.remarks if case.patient not in but else ()
        yield case
    for line in grouped(remarks):
        print(f"remark: {line}", file=sys.stderr)


# %%
#| export
def matching_grid(
    path: Path,  # for messages
    scan: Nifti1Image,  # a mask, or another modality
    grid: Grid,  # of the image
    check_affine: bool = True,  # refuse a header that places the voxels elsewhere
) -> Grid:  # with which to take the file's voxels
    "The grid of another file on the same voxels. Raises DataError if it has others, or places them elsewhere."
    other = Grid.of(scan, grid.plane)
    located = check_affine and placed(scan.header) and placed(grid.header)
    if not located:  # no place to compare: then the arrays have to agree as they are stored
        other = replace(grid, header=scan.header, shape=scan.shape)
    cure = _voxel_by_voxel(scan, grid) if located else ""
    _check_same_size(path, grid, other, cure)
    if check_affine:
        _check_same_place(path, grid, other, located, cure)
    return other


# %%
#| export
def _voxel_by_voxel(scan: Nifti1Image, grid: Grid) -> str:
    "What to do about a mask that lies elsewhere although its array has the scan's shape; empty for another shape."
    if three_axes(scan.shape) != three_axes(grid.shape):
        return ""
    plain = np.allclose(np.abs(scan.affine[:3, :3]), np.eye(3))
    kind = "an affine of 1 mm along each axis, as programs write that drop it" if plain else "another affine"
    return (f"; it has {kind}, and its array has the scan's shape {tuple(scan.shape)}: check_affine=false (in "
            'dataset.json "check_affine": false) takes the arrays voxel by voxel, if they are known to match')


# %%
#| export
def _check_same_size(path: Path, grid: Grid, other: Grid, cure: str) -> None:
    "Raise DataError for another number of voxels along an axis."
    size, found = (_sizes(one) for one in (grid, other))
    if found != size:
        raise DataError(path, f"(z,y,x) of {found} voxels", f"the image's {size}{cure}")


def _sizes(grid: Grid) -> tuple[int, ...]:
    "(z,y,x) number of voxels."
    return tuple(three_axes(grid.shape)[axis] for axis in grid.axes)


# %%
#| export
_UNIT_NAMES = {1.0: "mm", 1000.0: "metres", 0.001: "micrometres"}


def _check_same_place(path: Path, grid: Grid, other: Grid, located: bool, cure: str) -> None:
    "Raise DataError if voxels lie elsewhere, or, where the files do not say where, if they have another size."
    far = np.array([*np.subtract(_sizes(grid), 1)[::-1], 1])
    moved_mm = np.abs(np.subtract(other.affine, grid.affine))[:3] @ far
    if not located:
        moved_mm = np.abs(np.subtract(other.spacing_mm, grid.spacing_mm)) * far[2::-1]
    units = [mm_per_unit(one.header) for one in (grid, other)]
    if moved_mm.max() > SHIFT_MM and units[0] != units[1]:
        cure = f"; the headers count in {_UNIT_NAMES[units[0]]} and {_UNIT_NAMES[units[1]]}: set the right unit in both"
    if moved_mm.max() > SHIFT_MM:
        cure = cure or " (check_affine=False if the arrays are known to match voxel by voxel)"
        raise DataError(path, f"an affine that moves voxels by {moved_mm.max():.1f} mm", f"that of the image{cure}")


# %% [markdown]
# A scan is tilted by 20° and its scribble stored with other axes: the voxels are the same, and it is accepted. A
# scribble tilted by one degree more is refused.

# %%
store(work / "scan.nii.gz", raw, degrees=20)
store(work / "same.nii.gz", one.scribble, ((1, 1), (0, -1), (2, 1)), degrees=20)
store(work / "other.nii.gz", one.scribble, degrees=21)
case = read_scan([work / "scan.nii.gz"], axis="auto")
same, other = (nib.load(work / f"{name}.nii.gz") for name in ("same", "other"))
taken = matching_grid(work / "same.nii.gz", same, case.grid).take(np.asarray(same.dataobj))
np.testing.assert_array_equal(taken, one.scribble)
try:
    matching_grid(work / "other.nii.gz", other, case.grid)
    raise RuntimeError("a mask from elsewhere passed")
except DataError as error:
    print(str(error).replace(str(work), "…"))

# %% [markdown]
# ## Which files belong together
#
# Files belong together by name. A mask without its scan is refused: its name is probably mistyped, and its strokes
# would be lost. Four digits at the end of **every** image's name count modalities from 0000, as in nnU-Net, unless a
# mask has such a name itself.

# %%
#| export
_KINDS = ("image", "scribble", "label")
_FOREIGN = (".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".img", ".hdr", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp",
            ".h5", ".npy", ".npz", ".mgz", ".mgh", ".gipl", ".gz")  # endings of pictures that are not read here
_FOLDERS = {f"{kind}s{tail}": kind for kind in _KINDS for tail in ("", "Tr")}
_ENDS = {"scribble": "scribble", "scribbles": "scribble", "label": "label", "labels": "label", "gt": "label"}
_NIFTI = re.compile(r"([^.].*?)(?:[_-](scribbles?|labels?|gt|seg|segmentation|mask))?", re.DOTALL)
_CHANNEL = re.compile(r"(.+)_(\d{4})")


# %%
#| export
@dataclass(frozen=True)
class ScanFiles:
    "The files of one scan."

    images: tuple[Path, ...]  # one a modality
    scribble: Path | None = None  # its strokes
    label: Path | None = None  # its dense mask


# %%
#| export
def list_nifti(
    root: Path | str,  # with images/, scribbles/, labels/, or flat
) -> dict[str, dict[str, Path]]:  # "image", "scribble", "label" → name without endings → file
    "The NIfTI files of a folder by kind. Raises DataError for none, two of one name, and a mask of unknown kind."
    root = Path(root)
    found: dict[str, dict[str, Path]] = {kind: {} for kind in _KINDS}
    for path, folder_kind in _nifti_files(root):
        kind, name = _kind_and_name(path, folder_kind)
        if name in found[kind]:
            raise DataError(path, f"a second {kind} {name}", f"only {found[kind][name]}")
        found[kind][name] = path
    if not found["image"]:
        raise DataError(root, _instead(root), "images/NAME.nii.gz")
    return found


# %%
#| export
def _not_read(root: Path, scans: Mapping[str, ScanFiles]) -> tuple[list[DataError], list[str]]:
    "Files that look like scans or masks and are not read: a fault where a scan lacks that mask, else a remark."
    faults, remarks = [], []
    for path, kind in _other_files(root):
        match = cast(re.Match[str], _OTHER_NAME.fullmatch(path.name))
        kind = _ENDS.get(match[2], "image") if kind == "image" else kind
        name = match[1] if match[1] in scans else path.parent.name if path.parent.name in scans else None
        if kind != "image" and name and not getattr(scans[name], kind):
            faults.append(DataError(path, f"a {kind} of {name} that is not read",
                                    f"NIfTI in {kind}s/ itself, {name}.nii.gz"))
        else:
            remarks.append(f"{path}: not read, as it is no *.nii or *.nii.gz in the folder itself")
    return faults, remarks


# %%
#| export
_OTHER_NAME = re.compile(r"(.*?)(?:[_-](scribbles?|labels?|gt))?(?:[.].*)?", re.DOTALL)


def _other_files(root: Path) -> Iterator[tuple[Path, str]]:
    "Pictures of other formats, copies under other names, and NIfTI in folders below, with the kind of their folder."
    folders = _kind_folders(root)
    for folder_, kind in ({root: "image"} | folders).items():
        for path in (path for path in in_folder(folder_) if not path.name.startswith(".")):
            below = sorted(path.rglob("*")) if path.is_dir() and folder_ != root else []
            yield from ((inner, kind) for inner in below if is_nifti(inner) or _is_picture(inner))
            other = folder_ not in folders if is_nifti(path) else folder_ in folders and _is_picture(path)
            if other and path.is_file():
                yield path, kind


def _is_picture(path: Path) -> bool:
    "Whether a name is that of a picture in another format, or of a copy of NIfTI."
    return path.suffix.lower() in _FOREIGN or ".nii" in path.name.lower()


# %%
#| export
def _check_channels(path: Path, content: Mapping[str, Any], scans: Mapping[str, ScanFiles]) -> None:
    "Raise DataError where dataset.json names more or fewer modalities than each scan has files."
    for key in ("channel_names", "modality"):
        named, count = content.get(key), len(next(iter(scans.values())).images)
        if isinstance(named, dict | list) and named and len(named) != count:
            raise DataError(f"{path}: {key}", f"{len(named)} entries", f"{count}, as each scan has "
                            f"{'one file' if count == 1 else f'{count} files'}")


# %%
#| export
def _kind_folders(root: Path) -> dict[Path, str]:
    "The folders in which files lie, with what they hold; without images/ the folder itself is one of images."
    folders = {root / name: kind for name, kind in _FOLDERS.items() if (root / name).is_dir()}
    almost = {name.lower().removesuffix("s"): name for name in _FOLDERS}
    for path in in_folder(root):
        if path.is_dir() and path.name not in _FOLDERS and (right := almost.get(path.name.lower().removesuffix("s"))):
            raise DataError(path, "a folder of this name", f"{right}/, or a name unlike it")
    return folders if "image" in folders.values() else {root: "image"} | folders


# %%
#| export
def _nifti_files(root: Path) -> Iterator[tuple[Path, str]]:
    "NIfTI files, each with the kind of its folder; without images/ the folder itself is one of images."
    for folder_, kind in _kind_folders(root).items():
        for path in in_folder(folder_):
            if is_nifti(path) and _NIFTI.fullmatch(stem(path)):
                yield path, kind


# %%
#| export
def _kind_and_name(path: Path, folder_kind: str) -> tuple[str, str]:
    "What a file is, by its folder or by the end of its name, and its name without endings."
    name, end = cast(re.Match[str], _NIFTI.fullmatch(stem(path))).groups()  # only such names come here
    if folder_kind != "image":
        if _ENDS.get(end, folder_kind) != folder_kind:
            raise DataError(path, f"a {_ENDS[end]} by its name, in a folder of {folder_kind}s",
                            f"it in {_ENDS[end]}s/, or another name")
        return folder_kind, name
    if end in ("seg", "segmentation", "mask"):
        raise DataError(path, "a mask that may be a scribble or a dense label",
                        f"{name}_scribble or {name}_label, or the folder scribbles/ or labels/")
    return _ENDS.get(end, "image"), name


# %%
#| export
def _instead(root: Path) -> str:
    "What a folder without images holds, in a few words."
    if not root.is_dir():
        return "no such folder"
    others = Counter(path.suffix for path in root.rglob("*") if path.suffix in _FOREIGN)
    return ", ".join([*(f"{count} files {end}" for end, count in others.items()), "no NIfTI image"])


# %% [markdown]
# Then the modalities of one scan come together, and last the masks come to their scans.

# %%
#| export
def group_modalities(
    images: Mapping[str, Path],  # name → file
    masks: Collection[str] = (),  # names of masks, if there are any
    channels: int | None = None,  # how many there have to be, if that is known
) -> dict[str, tuple[Path, ...]]:  # name → one file a modality
    "Files of one scan together. Raises DataError, naming scan and file, for a modality that is missing."
    groups: dict[str, dict[int, Path]] = {}
    for name, (scan, number) in _scan_and_modality(images, masks, channels).items():
        groups.setdefault(scan, {})[number] = images[name]
    count = channels or 1 + max(max(group) for group in groups.values())
    for name, group in groups.items():
        _check_modalities(name, group, count)
    return {name: tuple(group[number] for number in range(count)) for name, group in sorted(groups.items())}


# %%
#| export
def _scan_and_modality(
    images: Collection[str], masks: Collection[str], channels: int | None
) -> dict[str, tuple[str, int]]:
    "Name of an image → name of its scan and number of its modality."
    parts = {name: _CHANNEL.fullmatch(name) for name in images}
    counted = all(parts.values()) and not set(images) & set(masks)
    if channels == 1:  # else these digits number scans
        counted = counted and all(match and match[2] == "0000" for match in parts.values())
    return {name: (match[1], int(match[2])) if counted and match else (name, 0) for name, match in parts.items()}


# %%
#| export
def _check_modalities(name: str, group: Mapping[int, Path], count: int) -> None:
    "Raise DataError unless a scan has one file for each modality."
    if set(group) != set(range(count)):
        found = ", ".join(path.name for path in group.values())
        files = f"{name}_0000 to {name}_{count - 1:04d}, one file a modality" if count > 1 else "one modality"
        raise DataError(f"{next(iter(group.values())).parent}: {name}", found, files)


# %%
#| export
def _group_scans(files: Mapping[str, Mapping[str, Path]]) -> tuple[dict[str, ScanFiles], list[DataError]]:
    "The files of `list_nifti` as scans by name, and a fault for each mask that belongs to none."
    groups = group_modalities(files["image"], {**files["scribble"], **files["label"]})
    faults = []
    for kind in ("scribble", "label"):
        for name in files[kind].keys() - groups.keys():
            faults.append(DataError(files[kind][name], "no image of that name",
                                    f"one of {len(groups)} images{did_you_mean(name, groups)}"))
    return {name: ScanFiles(images, files["scribble"].get(name), files["label"].get(name))
            for name, images in groups.items()}, sorted(faults, key=str)


# %%
def names_of(*names, **more):
    return {name: len(paths) for name, paths in group_modalities({n: Path(n) for n in names}, **more).items()}

assert names_of("a_0000", "a_0001", "b_0000", "b_0001") == {"a": 2, "b": 2}
assert names_of("scan_0007", "scan_0008", masks={"scan_0007"}) == {"scan_0007": 1, "scan_0008": 1}
assert names_of("scan_0000", "scan_0001", channels=1) == {"scan_0000": 1, "scan_0001": 1}
try:
    names_of("a_0000", "a_0001", "b_0000")
    raise RuntimeError("half a scan passed")
except DataError as error:
    print(error)


# %% [markdown]
# ## Options
#
# Each option may stand in `dataset.json`. A run takes it as `-p data_NAME VALUE`, and `attenscribble check FOLDER` as
# NAME=VALUE; both win over the file. Flips and quarter turns are off unless asked for, because only you know whether
# left and right may be exchanged in your scans.

# %%
#| export
def _expression(text: str) -> str:
    "A regular expression, once it is known to be one."
    try:
        return re.compile(text).pattern
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None


# %%
#| export
def _from_text(value: Any) -> Any:
    "JSON where an option is given as text, as a command line does."
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError('no JSON, such as {"300": 2}') from None


_Map = Annotated[dict[float, Annotated[int, Field(ge=0, le=255)]], BeforeValidator(_from_text)]
_Axis = Annotated[Literal["auto", "axial", "coronal", "sagittal", "0", "1", "2", "stored"], BeforeValidator(str)]
_Pattern = Annotated[str, AfterValidator(_expression)]


# %%
#| export
class FolderOptions(BaseModel):
    "How the files of a folder are read, and who is trained on."

    model_config = ConfigDict(extra="forbid", frozen=True)
    ignore: int | None = Field(None, description="value of a voxel in scribbles that is not drawn")
    background: int | None = Field(None, ge=0, le=255, description="value of drawn background")
    axis: _Axis = Field(
        "auto", description="slices lie across it; auto: as the strokes lie, else the largest spacing; a number: that "
        "axis of the file")
    clip: float = Field(0.99, gt=0.5, le=1, description="share of the voxels that keep their intensity")
    robust: bool | Literal["auto"] = Field(
        "auto", description="auto: cut both ends, fill values do not count; true: they do; false: the bright end alone")
    augmentation: Literal["none", "chaos", "acdc"] = Field("chaos", description="chaos: rotations; acdc: flips too")
    patient: _Pattern = Field("", description="regular expression: the start of a name that is the patient; empty: all")
    folds: int | None = Field(None, ge=0, description="number of folds of the labelled patients; 0: labels unused")
    seed: int = Field(0, ge=0, description="of the random folds")
    check_affine: bool = Field(True, description="refuse masks whose header places them elsewhere")
    map: _Map = Field({}, description='values of mask files to be read as others, 0 to 255: {"300": 2}')
    content: str = Field("", description="hash that the folder's files must have; a run writes it into its settings")

    @field_validator("ignore", "background", "clip", "folds", "seed", "map", mode="before")
    @classmethod
    def _no_truth(cls, value: Any) -> Any:
        "Numbers are no truth values, of which Python would make 1 and 0."
        if any(isinstance(part, bool) for part in (value.values() if isinstance(value, dict) else [value])):
            raise ValueError("a truth value is no number")
        return value


# %%
#| export
@dataclass(frozen=True, eq=False)
class Folder:
    "What lies in a folder and what its dataset.json says, before any image is read."

    root: Path
    content: dict[str, Any]  # of dataset.json; empty without one
    named: dict[str, Any]  # names of labels with their values, as dataset.json has them
    ignore: int | None  # the value that is not drawn, where option or dataset.json name it
    options: FolderOptions
    scans: dict[str, ScanFiles]  # by name
    faults: list[DataError]  # masks without a scan, or in a form that is not read
    remarks: list[str] = field(default_factory=list)  # FILE: what was not read

    def masks(self, kind: str) -> dict[str, Path]:  # "scribble" or "label"; name → file, of scans that have one
        "The masks of one kind."
        return {name: path for name, files in self.scans.items() if (path := getattr(files, kind))}

    @cached_property
    def marks(self) -> dict[Path, Marks]:
        "What each mask holds; one that cannot be read is left out."
        return {path: marks for kind in ("scribble", "label") for path in self.masks(kind).values()
                if (marks := _readable_marks(path, self.options.map))}

    @cached_property
    def hashes(self) -> dict[str, dict[str, str]]:
        "Scan → kind of data → hash of its files. Raises DataError for one that cannot be read."
        return {name: file_hashes({"images": files.images, "scribbles": filter(None, [files.scribble]),
                                   "labels": filter(None, [files.label])}) for name, files in self.scans.items()}

    def labels(
        self,
        drawn: Counter[int | float] | None = None,  # voxels of each value over all scribbles; None: they are read
        dense: Collection[int | float] | None = None,  # values of all dense labels; None: they are read
    ) -> Labels:  # names and values of the classes
        "What values mean. Raises DataError where a guess would be needed, and without any mask."
        return _labels_of(self, drawn, dense)


# %%
#| export
def _readable_marks(path: Path, table: Mapping[float, int]) -> Marks | None:
    "`look_at`, or None for a file that cannot be read: who reads it later says why."
    try:
        return look_at(path, table)
    except DataError:
        return None


# %%
#| export
def _labels_of(opened: Folder, drawn: Counter[int | float] | None, dense: Collection[int | float] | None) -> Labels:
    "What values mean; masks are read for it unless dataset.json says all or their values are given."
    if not opened.masks("scribble") and not opened.masks("label"):
        raise DataError(opened.root, "no scribble and no label", "scribbles/NAME.nii.gz")
    if drawn is None or dense is None:
        complete = opened.named and opened.ignore is not None
        drawn, dense = (Counter() if complete else _count_masks(opened, kind) for kind in ("scribble", "label"))
    doubt = doubt_of(opened) if opened.ignore is None else ""
    return meaning_of(opened.named, drawn, dense, ignore=opened.ignore, background=opened.options.background,
                      doubt=doubt, table=opened.options.map,
                      where=opened.root / "dataset.json" if opened.content else opened.root)


# %%
#| export
def _count_masks(opened: Folder, kind: str) -> Counter[int | float]:
    "Voxels of each value over all masks of one kind. Raises DataError for one that cannot be read."
    found: Counter[int | float] = Counter()
    for path in opened.masks(kind).values():
        found += (opened.marks.get(path) or look_at(path, opened.options.map)).counts
    return found


# %%
#| export
def doubt_of(
    opened: Folder,  # of `open_folder`
) -> str:  # with the name of a file; "" if there is no doubt
    "Why 255 cannot be taken for 'not drawn' in a folder: the first scribble that speaks against it."
    return next((f"in {path.name} {opened.marks[path].doubt}" for path in opened.masks("scribble").values()
                 if path in opened.marks and opened.marks[path].doubt), "")


# %%
#| export
def _version(opened: Folder) -> str:
    "Changes with any image, mask or name of a scan, with dataset.json, and with how intensities are scaled."
    content = json.dumps([opened.content, opened.options.robust, opened.hashes], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# %%
#| export
def slicing_of(
    opened: Folder,  # of `open_folder`
    ignore: int,  # value of a voxel that is not drawn
) -> tuple[dict[str, str], tuple[float, float, float] | None]:  # scan → axis of its file; what `common_normal` says
    "Across which axis each scan that is learnt from is cut, where the option `axis` leaves it open."
    axes, normals, strokes = {}, [], opened.masks("scribble")
    for name, path in (strokes or opened.masks("label")).items() if opened.options.axis == "auto" else ():
        marks, scan = opened.marks.get(path), _header(opened.scans[name].images[0])
        if marks and scan:
            axis = axis_by_strokes(scan, marks, ignore, opened.options.check_affine) if strokes else (
                Grid.of(scan, "auto").axes[0])
            axes[name] = str(axis)
            normals += [_directions(scan)[:, axis]] if placed(scan.header) and 1 not in three_axes(scan.shape) else []
    return axes, common_normal(normals)


# %%
#| export
def _header(path: Path) -> Nifti1Image | None:
    "A scan of which only the header is read; None if that is no header of a volume: who reads the voxels says why."
    try:
        scan = read_header(path)
        Grid.of(scan, "auto")
        return scan if len(three_axes(scan.shape)) == 3 and np.isfinite(scan.affine).all() else None
    except Exception:  # whatever is wrong with a file, the same is found when its voxels are read
        return None


# %% [markdown]
# **Opening** lists the files and reads `dataset.json`; no image is read.

# %%
#| export
def open_folder(
    root: Path | str,  # with images/, scribbles/ and perhaps labels/ and dataset.json
    **options: Any,  # of `FolderOptions`, over those of dataset.json
) -> Folder:  # what lies there
    "List a folder and read its dataset.json. Raises DataError naming option or file."
    root = Path(root).expanduser()
    content = _read_json(root / "dataset.json")
    chosen = _options(root, content, options)
    files, named = list_nifti(root), content.get("labels", {})
    hidden = _ignore_label(named)
    if hidden is not None and not files["scribble"]:
        files["scribble"], files["label"] = files["label"], {}  # nnU-Net: labels that leave voxels open are scribbles
    scans, faults = _group_scans(files)
    lost, remarks = _not_read(root, scans)
    _check_channels(root / "dataset.json", content, scans)
    remarks += [f"{root / 'dataset.json'}: {name} is no option and was not read"
                for name in sorted(content.keys() - {*FolderOptions.model_fields, *_OTHER_KEYS})]
    return Folder(root, content, named, hidden if chosen.ignore is None else chosen.ignore, chosen, scans,
                  [*faults, *lost], remarks)


# %%
#| export
def _read_json(path: Path) -> dict[str, Any]:
    "Content of a dataset.json; empty without one."
    written = [other for other in in_folder(path.parent) if other.name.lower() == path.name]
    if not written:
        return {}
    if written != [path] or not path.is_file():
        found = "no regular file" if written == [path] else f"{', '.join(other.name for other in written)}"
        raise DataError(path, found, "one file of this name, in small letters")
    content = read_json(path, 'JSON such as {"labels": {"background": 0, "liver": 1}}')
    if not isinstance(content, dict) or not isinstance(content.get("labels", {}), dict):
        raise DataError(path, "another form", 'such as {"labels": {"background": 0, "liver": 1}}')
    return content


# %%
#| export
_OTHER_KEYS = {  # of dataset.json, as nnU-Net and others write it: nothing that a training would have to know
    "labels", "channel_names", "name", "dataset_name", "description", "reference", "licence", "license", "release",
    "citation", "converted_by", "file_ending", "numTraining", "numTest", "training", "test", "modality", "dim",
    "tensorImageSize", "regions_class_order", "overwrite_image_reader_writer"}
_NEAR = {"ignore_index": ["ignore"], "ignore_label": ["ignore"], "modalities": ["channel_names"]}


# %%
#| export
def _options(root: Path, content: Mapping[str, Any], options: dict[str, Any]) -> FolderOptions:
    "The options of dataset.json and those given, which win. Raises DataError naming a wrong one."
    known = FolderOptions.model_fields
    for name in sorted(content.keys() - known.keys() - _OTHER_KEYS):
        if near := _NEAR.get(name, get_close_matches(name.lower(), [*known.keys() - {"content"}, "labels",
                                                                    "channel_names"], n=1, cutoff=0.75)):
            raise DataError(f"{root / 'dataset.json'}: {name}", "an option nobody knows", f"{near[0]!r}, perhaps")
    try:
        return FolderOptions(**{name: content[name] for name in known if name in content} | options)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: found {e['input']!r}; {e['msg']}" for e in error.errors())
        raise DataError(f"{root}: option {faults} (options: {', '.join(known)})") from None


# %%
#| export
def _ignore_label(named: Mapping[str, Any]) -> int | None:
    "The value of the label called ignore or the like, if there is one; nnU-Net 1 has value → name."
    pairs = [*named.items(), *((name, value) for value, name in named.items())]
    found = [str(value) for name, value in pairs if str(name).lower() in _NOT_DRAWN]
    return int(found[0]) if found and re.fullmatch(r"-?\d+", found[0]) else None


# %% [markdown]
# ## Who is trained on, who is tested
#
# | what there is | fold | trained on | tested |
# |---|---|---|---|
# | no label at all | 1 | everybody with scribbles | all scans: segmented, not scored |
# | labelled patients without scribbles | 1 | everybody with scribbles | those |
# | labels beside scribbles | 1 … 5 | everybody with scribbles, less the tested | a fifth of the labelled |
#
# Each name is one patient, unless the option `patient` says which part of the names is the patient's: with
# `patient\d+`, patient001_frame01 and patient001_frame12 are the same one. Of a volume on which a few slices were
# drawn, only those are learnt from; of a patient of whom some scans have scribbles, only these.

# %%
#| export
def make_folds(
    scribbled: Sequence[str],  # patients with a scan that carries what is learnt from
    labelled: Sequence[str],  # patients all of whose scans carry a dense label
    everybody: Sequence[str],  # all patients
    *,
    folds: int | None = None,  # how many; None: as the table says; 0: labels are not used
    seed: int = 0,  # of the order in which labelled patients go to the folds
) -> tuple[dict[int, tuple[str, ...]], dict[int, tuple[str, ...]]]:  # fold → patients tested, fold → trained on
    "The folds of a folder: as many as asked for, but no more than labelled patients."
    if folds == 0 or not labelled:
        return {1: tuple(everybody)}, {1: tuple(scribbled)}
    if folds is None and (apart := sorted(set(labelled) - set(scribbled))):
        return {1: tuple(apart)}, {1: tuple(scribbled)}
    tests = _random_parts(labelled, folds or 5, seed)
    return tests, {k: tuple(p for p in scribbled if p not in test) for k, test in tests.items()}


# %%
#| export
def _random_parts(patients: Collection[str], count: int, seed: int) -> dict[int, tuple[str, ...]]:
    "Patients in random parts of nearly equal size, numbered from 1; no part is empty."
    order = sorted(patients)
    random.Random(seed).shuffle(order)
    parts = min(count, len(order))
    return {k + 1: tuple(sorted(order[k::parts])) for k in range(parts)}


# %%
#| export
def drawn_slices(
    case: Case,  # with its scribble, if it has one
    target: str,  # "scribble", or "label": then all slices stay
    ignore: int,  # value of an unannotated pixel
    may_lack: bool = False,  # leave a case without this target out; else it stays, and `SliceStore` refuses it
) -> Case | None:  # None if nothing is drawn at all
    "The slices of a case that have strokes; nothing can be learnt from the others."
    if may_lack and getattr(case, target) is None:
        return None
    if target == "label" or case.scribble is None:
        return case
    drawn = (case.scribble != ignore).any(axis=(1, 2))
    if drawn.all():
        return case
    if not drawn.any():
        return None
    return replace(case, image=case.image[drawn], scribble=case.scribble[drawn], label=None, grid=None)


# %%
assert make_folds("ab", "", "abc") == ({1: ("a", "b", "c")}, {1: ("a", "b")})
assert make_folds("ab", "c", "abc") == ({1: ("c",)}, {1: ("a", "b")})
tests, trains = make_folds("abcdef", "abcdef", "abcdef", folds=3)
assert sorted(sum(tests.values(), ())) == list("abcdef") and all(not {*tests[k]} & {*trains[k]} for k in tests)
assert make_folds("ab", "ab", "ab", folds=0) == ({1: ("a", "b")}, {1: ("a", "b")})


# %% [markdown]
# ## The dataset
#
# Masks are read when the folder is opened: for what their values mean, unless `dataset.json` names every value, and for
# the plane of the strokes. All files are hashed, so that a run can tell whether they are still the same. Images are
# read when they are asked for.

# %%
#| export
def folder(
    path: Path | str,  # with images/, scribbles/ and perhaps labels/ and dataset.json, as the chapter says
    **options: Any,  # of `FolderOptions`
) -> Dataset:  # ignore 255; classes, modalities and folds as the folder has them
    """A folder of NIfTI scans and scribbles as a dataset.

    Intensities come out in [0, 1], slices across the largest spacing, everything turned to one orientation; `values`
    and each case's `grid` lead back to the files. Raises DataError for masks without scan, unknown options, values that
    need a name, nothing to learn from; on reading for a broken scan and for a mask that does not fit.
    """
    opened = open_folder(path, **options)
    if opened.faults:
        raise opened.faults[0]
    return dataset_of(opened, opened.labels(), patients_of(opened))


# %%
#| export
def dataset_of(
    opened: Folder,  # of `open_folder`
    labels: Labels,  # what values mean
    names: Mapping[str, Sequence[str]],  # of `patients_of`
) -> Dataset:  # as `folder` gives it
    "A folder, once it is known what lies there. Raises DataError for nothing to learn from, and for other content."
    chosen, version, (axes, normal) = opened.options, _version(opened), slicing_of(opened, labels.ignore)
    if chosen.content not in ("", version):
        raise DataError(f"{opened.root}: content", version, f"{chosen.content}, that of the run: files were changed")
    reading = chosen.model_dump(include={"axis", "clip", "robust", "check_affine"}) | {"normal": normal}
    tests, trains, scored = _folds(opened, names)
    read = partial(_read_patient, opened=opened, names=names, labels=labels, reading=reading, axes=axes)
    return Dataset(
        opened.root.resolve().name, labels.names, IGNORE, tuple(names), read, tests, chosen.augmentation,
        _credit(opened), len(next(iter(opened.scans.values())).images), trains=trains, scored=scored,
        values=labels.values, reading=reading, version=version, options={"content": version},
        content=lambda patient: _joined([opened.hashes[name] for name in names[patient]]))


# %%
#| export
def _joined(hashes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    "Kind of data → the hashes of several scans in one text."
    kinds = dict.fromkeys(kind for scan in hashes for kind in scan)
    return {kind: "-".join(scan.get(kind, "none") for scan in hashes) for kind in kinds}


# %%
#| export
_parse = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse").parse
_MOST_WAYS = 10**9  # of a pattern over all names


def _ways(nodes: Iterable[Any], length: int) -> float:
    "In how many ways a pattern could be laid over a name of this length, at most."
    total = 1.0
    for kind, value in nodes:
        if str(kind) in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = value
            within = _ways(inner, length)
            counts = max(1, min(int(most), length) - least + 1)
            total *= counts if within <= 1 else within ** min(int(most), length, 99)
        elif str(kind) == "BRANCH":
            total *= sum(_ways(branch, length) for branch in value[1])
        elif str(kind) == "SUBPATTERN":
            total *= _ways(value[-1], length)
        elif str(kind) in ("ASSERT", "ASSERT_NOT", "GROUPREF", "GROUPREF_EXISTS"):
            return float("inf")  # not needed for a name's start
    return total


# %%
#| export
def _check_effort(opened: Folder, pattern: str) -> None:
    "Raise DataError for a pattern that could take for ever: Python's matcher tries every way."
    ways = _ways(_parse(pattern), max(map(len, opened.scans))) * len(opened.scans)
    if ways > _MOST_WAYS:
        raise DataError(f"{opened.root}: patient", f"the expression {pattern!r}, which may match in {ways:.0g} ways",
                        f"at most {_MOST_WAYS:.0g}: no repetition inside a repetition, fewer * and +")


# %%
#| export
def patients_of(
    opened: Folder,  # of `open_folder`
) -> dict[str, list[str]]:  # patient → names of scans
    "The patients of a folder. Raises DataError for a name in which the option `patient` finds none."
    pattern = opened.options.patient
    _check_effort(opened, pattern)
    found: dict[str, list[str]] = {}
    for name in opened.scans:
        match = re.match(pattern, name) if pattern else None
        patient = match[0] if match else "" if pattern else name
        if not patient or name[len(patient):][:1] not in ("", "_"):
            raise DataError(f"{opened.root}: {name}", f"no patient by the expression {pattern!r}",
                            "one that matches the start of the name, up to its end or an underscore")
        found.setdefault(patient, []).append(name)
    return found


# %%
#| export
def complete_patients(
    opened: Folder,  # of `open_folder`
    patients: Mapping[str, Sequence[str]],  # patient → names of scans, of `patients_of`
    kind: str,  # "scribble" or "label"
) -> list[str]:  # patients all of whose scans have such a mask
    "The patients who can be scored."
    masks = opened.masks(kind)
    return [patient for patient, scans in patients.items() if all(scan in masks for scan in scans)]


# %%
#| export
def learnt_patients(
    opened: Folder,  # of `open_folder`
    patients: Mapping[str, Sequence[str]],  # patient → names of scans, of `patients_of`
) -> tuple[str, list[str]]:  # "scribble", or "label" where nobody drew; patients with such a mask of one scan at least
    "Whom there is something to learn from; of their other scans nothing is learnt."
    kind = "scribble" if opened.masks("scribble") else "label"
    masks = opened.masks(kind)
    return kind, [patient for patient, scans in patients.items() if any(scan in masks for scan in scans)]


# %%
#| export
def _folds(opened: Folder, patients: Mapping[str, Sequence[str]]) -> tuple[dict, dict, bool]:
    "Fold → patients tested, fold → trained on, and whether predictions are scored. Raises DataError for an empty side."
    (target, learnt), labelled = learnt_patients(opened, patients), complete_patients(opened, patients, "label")
    if not learnt:
        raise DataError(opened.root, f"no patient with a {target}", "one at least")
    options = opened.options
    tests, trains = make_folds(learnt, labelled, list(patients), folds=options.folds, seed=options.seed)
    for fold in tests:
        if not trains[fold]:
            raise DataError(f"{opened.root}: fold {fold}", f"all {len(learnt)} patients with a {target} among the "
                            f"{len(tests[fold])} tested, none to train on", "a patient on either side: more folds or "
                            "more patients; folds=0 (data_folds=0 of a run) trains on all and scores nothing")
    return tests, trains, bool(labelled) and options.folds != 0


# %% [markdown]
# **A class that nobody drew** in the training part of a fold cannot be learnt: it would be trained for nothing, and
# score 0. The check, a training and the export to nnU-Net ask the same function.

# %%
#| export
def class_without_strokes(
    dataset: Dataset,  # whose class it is
    fold: int,  # that is trained
    target: str,  # what is learnt from: "scribble" or "label"
    seen: Collection[int],  # class ids in it, over the training side
) -> DataError | None:  # None if every class is there
    "The fault of a fold in whose training part a class is drawn nowhere."
    values = dataset.values or range(dataset.classes)
    absent = {name: value for class_id, (name, value) in enumerate(zip(dataset.class_names, values, strict=True))
              if class_id not in seen}
    if not absent:
        return None
    organs = [*absent.values()]
    named = ", ".join(f"{name!r}" + f" (value {value})" * (value != values[0]) for name, value in absent.items())
    lines = json.dumps({"map": {str(value): values[0] for value in organs if value != values[0]}})[1:-1]
    if not dataset.version:
        cure = "or it is never predicted"
    elif organs == [values[0]]:
        cure = "draw it"
    else:
        cure = f"draw it, or take its name out of dataset.json and write {lines} there"
    count = len(dataset.split(fold)[0])
    return DataError(f"{dataset.name}: fold {fold}", f"no {target} of the class {named} on the {count} "
                     f"patient{'s' * (count != 1)} trained on", f"one of every class; {cure}")


# %%
#| export
def _credit(opened: Folder) -> str:
    "Name, reference and licence, as dataset.json has them."
    credit = [str(opened.content[key]) for key in ("name", "reference", "licence") if opened.content.get(key)]
    return "; ".join(credit) or "the user's own folder"


# %%
#| export
def _read_patient(patient: str, *, opened: Folder, names: Mapping[str, Sequence[str]], labels: Labels,
                  reading: Mapping[str, Any], axes: Mapping[str, str]) -> list[Case]:
    "The cases of a patient, with labels unless they are not used."
    dense = opened.options.folds != 0 or not opened.masks("scribble")
    cases = [_read_case(opened.scans[name], labels, patient, name[len(patient) + 1:],
                        {**reading, "axis": axes.get(name, reading["axis"])}, dense) for name in names[patient]]
    if opened.remarks and patient == next(iter(names)):  # those on the folder are said once
        cases[0] = replace(cases[0], remarks=(*opened.remarks, *cases[0].remarks))
    return cases


# %%
#| export
def _read_case(files: ScanFiles, labels: Labels, patient: str, frame: str, reading: Mapping[str, Any],
               dense: bool) -> Case:
    "A scan with its masks; `dense`: the label too."
    case, masks = read_scan(files.images, patient=patient, frame=frame, **reading), {}
    for kind, path in (("scribble", files.scribble), ("label", files.label if dense else None)):
        if path:
            volume, scan = read_nifti(path, flat=True)
            ids = labels.read(volume, path, dense=kind == "label")
            place = matching_grid(path, scan, cast(Grid, case.grid), reading["check_affine"])
            masks[kind] = np.ascontiguousarray(place.take(ids.T))
    return replace(case, scribble=masks.get("scribble"), label=masks.get("label"))


# %% [markdown]
# **The four hearts.** What comes out is what went in, whatever the file's axes and values were.

# %%
(my_scans / "dataset.json").write_text('{"labels": {"background": 4, "RV": 1, "Myo": 2, "LV": 3}, "ignore": 0}')
mine = folder(my_scans, robust=False)  # as the hearts were scaled
for case, heart in zip(mine.cases(), HEARTS, strict=True):
    np.testing.assert_array_equal(case.scribble, np.where(heart.scribble == 4, IGNORE, heart.scribble))
    assert np.abs(case.image - heart.image).max() < 0.002
print(f"{mine.class_names}, written as {mine.values}; fold 1 trains on {len(mine.split(1)[0])}, scored: {mine.scored}")

# %% [markdown]
# ## Real data: ACDC as if it were your own
#
# Two patients, copied into this layout under their own names; `ignore=4` has to be given. The loader of chapter 11 and
# this one must see the same hearts. It says nothing about scans from other scanners: for those there are the checks of
# the next chapter.

# %%
data = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set")) / "acdc"
if data.is_dir():
    theirs = [case for patient in ("patient001", "patient002") for case in acdc(data).read(patient)]
    for case in theirs:
        for kind, end in (("images", ""), ("scribbles", "_scribble"), ("labels", "_gt")):
            target = work / "acdc" / kind / f"{case.name}{end}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(case.source.replace(".nii", f"{end}.nii")).read_bytes())
    try:
        folder(work / "acdc")
    except DataError as error:
        print(str(error).replace(str(work), "…"))
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")

# %%
if data.is_dir():
    ours = folder(work / "acdc", ignore=4, patient=r"patient\d+", robust=False)
    for a, b in zip(theirs, ours.cases(), strict=True):
        shares = [np.bincount(label.ravel(), minlength=4) for label in (a.label, b.label)]
        assert np.array_equal(*shares) and np.array_equal(np.sort(a.image, None), np.sort(b.image, None))
        assert np.allclose(np.sort(np.abs(np.diag(a.affine)[:3])), np.sort(np.abs(b.affine[:3, :3]).sum(1)), atol=0.1)
    print(f"{ours.class_names}, folds {ours.folds}, slices across {b.grid.plane}, {b.spacing_mm} mm")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** Twelve patients have scribbles, and three others have labels only. How many does fold 1 test?

# %%
def check_tested(answer):
    scribbled, labelled = [f"s{n}" for n in range(12)], [f"l{n}" for n in range(3)]
    tests, _ = make_folds(scribbled, labelled, scribbled + labelled)
    assert answer() == len(tests[1])

def my_tested():
    ...  # your number here

exercise(check_tested, my_tested, solution=lambda: 3)


# %% [markdown]
# **2. Implement** the `patient` expression for names such as `anna-2_t1` and `anna-2_t2`: patient `anna-2`, of any name
# and number.

# %%
def check_expression(make):
    for name, patient in (("anna-2_t1", "anna-2"), ("jo-17_early", "jo-17"), ("mary-ann-3_t2", "mary-ann-3")):
        assert re.match(make(), name)[0] == patient

def my_expression():
    return "anna-2"  # improve this

exercise(check_expression, my_expression, solution=lambda: r"[^_]+")


# %% [markdown]
# **3. Break.** Return a scribble in which 255 is painted background and 0 was left open, and for which the rule says
# nothing.

# %%
def check_fooled(make):
    marks = make()
    assert unlike_scribble(marks) == "" and {*np.unique(marks)} == {0, 1, 255}

def my_fooled():
    return painted  # improve this

exercise(check_fooled, my_fooled, solution=lambda: np.where(np.eye(9, dtype=int) * np.arange(9) % 7 == 3, 1,
         np.where(np.arange(81).reshape(9, 9) < 2, 0, 255)))

# %% [markdown]
# ## Recap
#
# Exported: `folder`, and what it is made of: `Labels` and `meaning_of` for values, `read_scan` and `matching_grid` for
# voxels, `list_nifti` and `group_modalities` for names, `make_folds` for folds, `drawn_slices` for training. What may
# surprise: equal shapes prove nothing, and the value 0 means opposite things in two programs.
# [Chapter 18](18_check.ipynb) looks for everything that is wrong with a folder;
# [chapter 19](19_datasets.ipynb) finds datasets by name.
