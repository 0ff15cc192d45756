# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Checking a folder
#
# > Every fault of a folder on one page, before an evening of drawing is trained on.
#
# **The question.** What is wrong with my scans and scribbles? [The loader](../data/15_folder.ipynb) stops at the first
# fault it meets, as it should. Whoever drew for an evening wants all of them at once, with the file's name, and wants
# to hear of the quiet ones too: the class nobody drew, the scan whose contrast one bright voxel has eaten.

# %%
#| default_exp experiment.check

# %%
#| export
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attenscribble.data.folder import (
    Folder,
    Labels,
    ScanFiles,
    count_values,
    deal,
    matching_grid,
    open_folder,
    patients_of,
    scale_file,
)
from attenscribble.data.grid import Grid, placed, three_axes
from attenscribble.data.scans import DataError, read_nifti

# %%
import os
import tempfile

import nibabel as nib
from ipywidgets import interact

from attenscribble.book import class_legend, draw, exercise, panels
from attenscribble.data.phantom import phantom

# %%
HEARTS = [case for case in phantom(patients=6, seed=2, side=72, slices=6).cases() if case.frame == "frame01"]
NAMES = {"background": 4, "RV": 1, "Myo": 2, "LV": 3}
AFFINE = np.diag([-1.5, -1.5, 10, 1])
own = Path(tempfile.mkdtemp()) / "my-scans"

def put(kind, name, volume, affine=AFFINE):
    "Write [Z,Y,X] into the folder."
    (own / kind).mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(volume.T), affine), own / kind / f"{name}.nii.gz")

def as_drawn(heart):
    "Values as ITK-SNAP has them: 0 not drawn, background drawn as 4."
    return np.array([4, 1, 2, 3, 0], np.uint8)[heart.scribble]


# %% [markdown]
# ## The answer, as a picture
#
# Six hearts, five of them spoilt in ways that happen: the scribble saved on a shifted grid; one stroke with a value
# that has no name; a voxel as bright as ten thousand; nothing drawn; the name misspelt. The report finds each. (`check`
# comes from the finished module; the chapter builds it.)

# %%
from attenscribble.experiment.check import check

for heart in HEARTS:
    put("images", heart.patient, (1000 * heart.image).astype(np.float32))
    put("scribbles", heart.patient, as_drawn(heart))
(own / "dataset.json").write_text(json.dumps({"labels": NAMES, "ignore": 0}))
sound = check(own)

shifted = AFFINE.copy()
shifted[0, 3] = 12
put("scribbles", "patient002", as_drawn(HEARTS[1]), shifted)
put("scribbles", "patient003", np.where(as_drawn(HEARTS[2]) == 3, 7, as_drawn(HEARTS[2])))
bright = (1000 * HEARTS[3].image).astype(np.float32)
bright[0, 0, 0] = 1e7
put("images", "patient004", bright)
put("scribbles", "patient005", 0 * as_drawn(HEARTS[4]))
(own / "scribbles" / "patient006.nii.gz").rename(own / "scribbles" / "patient06.nii.gz")
report = check(own)
print(str(report).replace(str(own), "my-scans"))
assert sound.fine and len(report.problems) == 4 and len(report.remarks) == 2

# %%
figure, axes = panels(4, size=2.4)
titles = ("sound", "shifted by 12 mm", "a value without a name", "one voxel of 10,000,000")
for axis, heart, title in zip(axes, HEARTS, titles, strict=False):
    path = own / "images" / f"{heart.patient}.nii.gz"
    image = scale_file(path, read_nifti(path)[0], 0.99, False)
    marks = np.where(heart.scribble[3] == 4, 255, heart.scribble[3])
    marks = np.roll(marks, 8, 1) if "mm" in title else np.where(marks == 3, 4, marks) if "name" in title else marks
    draw(axis, image[3], scribble=marks, ignore=255, title=title)
class_legend(figure, ["background", "RV", "Myo", "LV", "value 7"], background=True)


# %% [markdown]
# ## What is looked for
#
# | a **problem** stops or spoils training | a **remark** is worth a look |
# |---|---|
# | a file that is broken, 4D, or no number per voxel | outliers that squeeze the contrast |
# | NaN, infinity, a constant image | a header without coordinates |
# | a mask, or a modality, on another grid; a missing partner | scans sliced in different planes |
# | a value without a name; values that need naming | names that look like several scans of one patient |
# | a scribble of one value; nothing left open | scans without any mask |
# | a class that nobody drew | |

# %% [markdown]
# ## Squeezed contrast
#
# With $q_p$ the $p$-quantile of the scaled intensities above the lowest one, a scan is suspicious if nine tenths of
# them share a twentieth of the range:
#
# $$q_{0.95}-q_{0.05}<\tfrac1{20}$$

# %%
def squeezed_naive(scaled):
    "Sort, cut a twentieth off either end, look at what is left."
    inside = sorted(v for v in scaled if v > min(scaled))
    cut = len(inside) // 20
    return inside[-1 - cut] - inside[cut] < 1 / 20


# %% [markdown]
# **By hand.** 100 voxels between 0.50 and 0.51 and one at 1: 0.01 is left, suspicious. 0.00 to 1.00 in steps of 0.01:
# 0.9. A black surround does not count, since the lowest value is left out. **What breaks**: `min` inside the loop makes
# it quadratic.

# %%
assert squeezed_naive([0, 1] + [0.5 + k / 10_000 for k in range(100)])
assert not squeezed_naive([k / 100 for k in range(101)])


# %%
#| export
def squeezed(
    scaled: np.ndarray,  # [...] in [0,1]
) -> bool:  # False for what holds one value
    "Whether nine tenths of the voxels above the lowest value share a twentieth of the range: outliers beside them."
    inside = scaled[scaled > scaled.min()]
    low, high = np.quantile(inside, (0.05, 0.95)) if inside.size else (0.0, 1.0)
    return bool(high - low < 0.05)


# %%
random = np.random.default_rng(0)
for power in (1, 2, 40):
    values = random.random(400) ** power
    assert squeezed(values) == squeezed_naive(values.tolist())


# %%
def plot_strengths(strengths):
    "One voxel, so many times as bright as the brightest: what is left of the rest."
    _, axes = panels(len(strengths), size=2.2)
    for axis, strength in zip(axes, strengths, strict=True):
        spoilt = HEARTS[0].image.copy()
        spoilt[0, 0, 0] = strength
        scaled = scale_file(own, spoilt, 0.99, False)
        draw(axis, scaled[3], title=f"×{strength:g}" + (": squeezed" if squeezed(scaled) else ""))

plot_strengths((1, 100, 1000, 10_000))

# %%
interact(lambda strength=100: plot_strengths((strength,)), strength=(1, 10_000));


# %% [markdown]
# ## Collecting instead of stopping
#
# Every file is read once, by the loader's own functions; what they raise becomes a line. So a folder that passes is a
# folder that loads.

# %%
#| export
@dataclass(eq=False)
class Findings:
    "What has come up so far."

    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    counts: dict[Path, Counter] = field(default_factory=dict)  # mask → voxels of each value
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # scan → what the table says of it


def check_scan(
    name: str,
    files: ScanFiles,
    held: Folder,
    found: Findings,  # is added to
) -> None:
    "Look at one scan's files; nothing is raised for bad data."
    options, grid = held.options, None
    for path in files.images:
        try:
            volume, scan = read_nifti(path, flat=True)
            grid = grid or Grid.of(scan, options.axis)
            matching_grid(path, scan, grid, options.check_affine)
            if squeezed(scale_file(path, volume, options.clip, options.robust)):
                found.remarks.append(f"{path}: nine tenths of the voxels share a twentieth of the range; robust=true "
                                     "cuts outliers at both ends")
            if not placed(scan.header):
                found.remarks.append(f"{path}: the header has no coordinates; the scan is taken as it lies")
        except DataError as error:
            found.problems.append(str(error))
    row = found.rows.setdefault(name, {})
    if grid:
        sizes = three_axes(grid.shape)
        row |= {"z×y×x": "×".join(str(sizes[a]) for a in grid.axes), "across": grid.plane,
                "mm": "×".join(f"{mm:.3g}" for mm in grid.spacing_mm)}
    for kind, path in (("scribble", files.scribble), ("label", files.label)):
        row[kind] = "yes" if path else ""
        try:
            if path:
                _check_mask(path, kind, grid, held, found, row)
        except DataError as error:
            found.problems.append(str(error))


def _check_mask(path: Path, kind: str, grid: Grid | None, held: Folder, found: Findings, row: dict[str, Any]) -> None:
    "Look at one mask. Raises DataError for a fault."
    volume, scan = read_nifti(path, flat=True)
    values = found.counts[path] = count_values(volume)
    if len(values) == 1:
        raise DataError(path, f"the value {next(iter(values)):g} in all voxels", "something drawn")
    if grid:
        place = matching_grid(path, scan, grid, held.options.check_affine)
        if kind == "scribble":
            drawn = (place.take(volume.T) != values.most_common(1)[0][0]).any(axis=(1, 2))
            row["slices drawn on"] = f"{drawn.sum()} of {len(drawn)}"


# %% [markdown]
# ## Classes
#
# How much of each class was drawn, and on how many scans. What has no meaning yet is listed by its value: that is the
# list to write `dataset.json` from.

# %%
#| export
def class_table(
    held: Folder,
    labels: Labels | None,  # None: what values mean is not known
    found: Findings,
) -> pd.DataFrame:  # a row per class, or per value: value, voxels, share of what is annotated or of all, scans
    "What the scribbles hold; labels, where there are no scribbles."
    kind = "scribble" if held.masks("scribble") else "label"
    masks = [found.counts[path] for path in held.masks(kind).values() if path in found.counts]
    total = sum(masks, Counter())
    meaning = labels and dict(zip(labels.drawn if kind == "scribble" else labels.values, labels.names, strict=True))
    rows = [(meaning[value] if meaning else f"value {value:g}", value) for value in (meaning or sorted(total))]
    annotated = sum(total[value] for _, value in rows)
    table = [(name, value, total[value], f"{total[value] / max(annotated, 1):.2%}",
              sum(value in mask for mask in masks)) for name, value in rows]
    share = "share of annotated" if meaning else "share"
    return pd.DataFrame(table, columns=["", "value", "voxels", share, "scans"]).set_index("")


def check_values(
    held: Folder,
    labels: Labels,
    found: Findings,  # is added to
) -> None:
    "Values without a name, scribbles that leave nothing open, classes that nobody drew; the share annotated."
    for kind, known in (("scribble", {*labels.drawn, labels.ignore}), ("label", {labels.values[0], *labels.drawn})):
        for name, path in held.masks(kind).items():
            values = found.counts.get(path, Counter())
            if len(values) > 1 and (strange := {value: n for value, n in values.items() if value not in known}):
                listed = ", ".join(f"{value:g} ({n}×)" for value, n in list(strange.items())[:5])
                found.problems.append(str(DataError(path, f"the values {listed}", f"only {sorted(known)}; name others "
                                                    "in dataset.json")))
            if kind == "scribble" and values:
                found.rows[name]["annotated"] = f"{1 - values[labels.ignore] / values.total():.2%}"
                if len(values) > 1 and not values[labels.ignore]:
                    found.problems.append(str(DataError(path, f"no voxel that is not drawn ({labels.ignore})",
                                                        "a scribble; a dense mask belongs into labels/")))
    table = class_table(held, labels, found)
    for name in table.index[table.scans == 0]:
        found.problems.append(f"class {name!r} (value {table.value[name]}): nobody drew it on any scan")


# %% [markdown]
# ## The report

# %%
#| export
@dataclass(frozen=True, eq=False)
class Report:
    "What was found in a folder."

    root: Path
    scans: pd.DataFrame  # a row per scan: voxels, mm, plane, masks, slices drawn on, annotated share
    classes: pd.DataFrame  # of `class_table`
    problems: list[str]
    remarks: list[str]
    plan: str = ""  # what a training would do

    @property
    def fine(self) -> bool:
        "Whether it can be trained on as it is."
        return not self.problems

    def __str__(self) -> str:
        parts = [str(self.root)] + [table.to_string() for table in (self.scans, self.classes) if len(table)]
        for title, lines in (("problem", self.problems), ("remark", self.remarks)):
            count = f"{len(lines) or 'no'} {title}{'s' * (len(lines) != 1)}"
            parts.append("\n".join([count, *(f"- {line}" for line in lines)]))
        return "\n\n".join(part for part in (*parts, self.plan) if part)


def check(
    path: Path | str,
    **options: Any,  # of `FolderOptions`
) -> Report:
    "Read every file of a folder once and say what is wrong with it; bad data is in the report, nothing is raised."
    empty = pd.DataFrame()
    try:
        held = open_folder(path, **options)
        patients = patients_of(held)
    except DataError as error:
        return Report(Path(path), empty, empty, [str(error)], [])
    found, labels = Findings([str(fault) for fault in held.faults]), None
    for name, files in held.scans.items():
        check_scan(name, files, held, found)
    drawn, dense = (sum((found.counts[mask] for mask in held.masks(kind).values() if mask in found.counts), Counter())
                    for kind in ("scribble", "label"))
    try:
        labels = held.labels(drawn, dense)
        check_values(held, labels, found)
    except DataError as error:
        found.problems.append(str(error))
    _compare(held, patients, labels, found)
    table = pd.DataFrame.from_dict(found.rows, orient="index").fillna("")
    return Report(held.root, table, class_table(held, labels, found), found.problems, found.remarks,
                  _plan(held, patients))


def _compare(held: Folder, patients: dict[str, list[str]], labels: Labels | None, found: Findings) -> None:
    "Remarks on the folder as a whole."
    if labels and not held.named:
        said = {"labels": dict(zip(labels.names, labels.drawn, strict=True)), "ignore": labels.ignore}
        found.remarks.append(f"no names: dataset.json may hold {json.dumps(said)}, with names of your own")
    if len(planes := {row["across"] for row in found.rows.values() if "across" in row}) > 1:
        found.remarks.append(f"slices lie in different planes ({', '.join(sorted(planes))}); axis=… takes one for all")
    bare = [name for name, files in held.scans.items() if not (files.scribble or files.label)]
    if bare:
        found.remarks.append(f"no mask for {', '.join(bare[:5])}{' …' * (len(bare) > 5)}: segmented, not learnt from")
    starts = Counter(name.rpartition("_")[0] for name in held.scans)
    if not held.options.patient and len(starts) > 1 and max(starts.values()) > 1 and "" not in starts:
        first = starts.most_common(1)[0][0]
        found.remarks.append(f"several scans begin with {first!r}: if that is a patient, say so, or one patient may be "
                             "trained on and tested on; patient='[^_]+' takes what stands before the first _")


def _plan(held: Folder, patients: dict[str, list[str]]) -> str:
    "What a training would do, in words."
    kind = "scribble" if held.masks("scribble") else "label"
    whole = {k: [p for p, scans in patients.items() if all(s in held.masks(k) for s in scans)] for k in (kind, "label")}
    tests, trains = deal(whole[kind], whole["label"], list(patients), folds=held.options.folds, seed=held.options.seed)
    if not whole["label"] or held.options.folds == 0:
        return (f"fold 1: trains on the {kind}s of {len(trains[1])} patients, segments all {len(held.scans)} scans, "
                "scores nothing")
    return "\n".join(f"fold {k}: trains on the {kind}s of {len(trains[k])} patients, tests {len(test)}"
                     for k, test in tests.items())


# %% [markdown]
# **Check.** The sound folder of the first picture: six scans, all classes. Without `dataset.json` the report says which
# value needs a name, and what to write.

# %%
print(str(sound).replace(str(own), "my-scans"))
assert sound.classes.scans.tolist() == [6] * 4 and sound.scans.annotated.str.endswith("%").all()

# %%
(own / "dataset.json").unlink()
unnamed = check(own)
assert not unnamed.fine and any('such as "background"' in line for line in unnamed.problems)
unnamed.classes

# %% [markdown]
# In a terminal: `attenscribble check my-scans` prints the same, and ends with status 1 if there is a problem.
#
# ## Real data: ACDC, checked
#
# Two patients in this layout: nothing to complain of but missing names, and that frames of one patient look like
# patients. What a check cannot see is whether the strokes are *right*.

# %%
data = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set")) / "acdc/training"
if data.is_dir():
    for path in sorted(data.glob("patient00[12]/*_frame??*.nii.gz")):
        kind = "scribbles" if "_scribble" in path.name else "labels" if "_gt" in path.name else "images"
        target = own.parent / "acdc" / kind / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    real = check(own.parent / "acdc", ignore=4)
    print(str(real).replace(str(own.parent), "…"))
    assert real.fine and len(real.remarks) == 2
    assert len(check(own.parent / "acdc", ignore=4, patient="[^_]+").remarks) == 1
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** The spoilt folder had six scans. On how many could a training have begun, had the misspelt name been
# put right?

# %%
def check_usable(answer):
    bad = {name for name in ("patient002", "patient003", "patient005") if any(name in line for line in report.problems)}
    assert answer() == 6 - len(bad)

def my_usable():
    ...  # your number here

exercise(check_usable, my_usable, solution=lambda: 3)


# %% [markdown]
# **2. Implement** a check for two scans that hold the same voxels: a patient who is there twice.

# %%
def check_twins(twins):
    a, b = HEARTS[0].image, HEARTS[1].image
    assert twins({"a": a, "b": b, "c": a.copy()}) == [("a", "c")] and twins({"a": a, "b": b}) == []

def my_twins(images):
    return []  # improve this

def solve_twins(images):
    names = sorted(images)
    return [(x, y) for i, x in enumerate(names) for y in names[i + 1:] if np.array_equal(images[x], images[y])]

exercise(check_twins, my_twins, solve_twins)


# %% [markdown]
# **3. Break.** Return intensities in [0, 1] that are spoilt by outliers and that `squeezed` does not notice.

# %%
def check_unnoticed(make):
    values = make()
    assert values.min() == 0 and values.max() == 1 and not squeezed(values)
    assert np.ptp(np.quantile(values, (0.1, 0.9))) < 0.05

def my_unnoticed():
    return np.linspace(0, 1, 100)  # improve this

def solve_unnoticed():
    return np.concatenate([np.zeros(1), np.linspace(0.01, 0.5, 7), np.full(85, 0.5), np.linspace(0.5, 1, 8)])

exercise(check_unnoticed, my_unnoticed, solve_unnoticed)

# %% [markdown]
# ## Recap
#
# Exported: `check` and its `Report`; `squeezed`. What may surprise: of the five spoilt hearts only one would have
# looked wrong on a screen. [The next chapter](40_config.ipynb) says what else decides a run.
