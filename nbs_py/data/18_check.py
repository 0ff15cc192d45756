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
# > Every fault of a folder in one report, before anything is trained on it.
#
# What is wrong with your scans and scribbles? [The loader](17_folder.ipynb) stops at the first fault it meets, but
# after hours of drawing you want to know all of them at once, and also those that stop nothing, such as a class that is
# missing or a scan whose contrast is lost to one bright voxel. This chapter reads every file of a folder once and
# reports each fault with the name of its file.

# %%
#| default_exp data.check

# %%
#| export
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attenscribble.basics.errors import DataError
from attenscribble.data.folder import (
    Folder, Labels, ScanFiles, complete_patients, count_values, grouped, low_contrast, make_folds, matching_grid,
    open_folder, patients_of, scale_file, scan_remarks)
from attenscribble.data.grid import Grid, three_axes
from attenscribble.data.scans import read_nifti

# %%
import os
import tempfile

import nibabel as nib
from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.phantom import phantom

# %%
HEARTS = [case for case in phantom(patients=6, seed=2, side=72, slices=6).cases() if case.frame == "frame01"]
NAMES = {"background": 4, "RV": 1, "Myo": 2, "LV": 3}
AFFINE = np.diag([-1.5, -1.5, 10, 1])
my_scans = Path(tempfile.mkdtemp()) / "my-scans"

def put(kind, name, volume, affine=AFFINE):
    "Write [Z,Y,X] into the folder."
    (my_scans / kind).mkdir(parents=True, exist_ok=True)
    scan = nib.Nifti1Image(np.ascontiguousarray(volume.T), affine)
    scan.header.set_xyzt_units("mm")
    nib.save(scan, my_scans / kind / f"{name}.nii.gz")

def as_drawn(heart):
    "Values as ITK-SNAP has them: 0 not drawn, background drawn as 4."
    return np.array([4, 1, 2, 3, 0], np.uint8)[heart.scribble]


# %% [markdown]
# ## The answer, as a picture
#
# Six hearts, five of them spoilt in ways that happen: the scribble is saved on a shifted grid; one stroke has a value
# without a name; one voxel has the value ten million; nothing is drawn; a name is misspelt. The report finds each.
# (`robust=False` scales as chapter 11 does; the default takes no notice of a single voxel.)
# (`check` comes from the finished module; the chapter builds it.)

# %%
from attenscribble.data.check import check

for heart in HEARTS:
    put("images", heart.patient, (1000 * heart.image).astype(np.float32))
    put("scribbles", heart.patient, as_drawn(heart))
(my_scans / "dataset.json").write_text(json.dumps({"labels": NAMES, "ignore": 0}))
sound = check(my_scans)

# %%
shifted = AFFINE.copy()
shifted[0, 3] = 12
put("scribbles", "patient002", as_drawn(HEARTS[1]), shifted)
put("scribbles", "patient003", np.where(as_drawn(HEARTS[2]) == 3, 7, as_drawn(HEARTS[2])))
bright = (1000 * HEARTS[3].image).astype(np.float32)
bright[0, 0, 0] = 1e7
put("images", "patient004", bright)
put("scribbles", "patient005", 0 * as_drawn(HEARTS[4]))
(my_scans / "scribbles" / "patient006.nii.gz").rename(my_scans / "scribbles" / "patient06.nii.gz")
report = check(my_scans, robust=False)
print(str(report).replace(str(my_scans), "my-scans"))
assert sound.fine and len(report.problems) == 4 and len(report.remarks) == 2

# %%
figure, axes = panels(4, size=2.4)
titles = ("sound", "shifted by 12 mm", "a value without a name", "one voxel of 10,000,000")
for axis, heart, title in zip(axes, HEARTS, titles, strict=False):
    path = my_scans / "images" / f"{heart.patient}.nii.gz"
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
# | a file that is broken, 4D, or no number per voxel | outliers that leave the rest little contrast |
# | a header that contradicts itself, or claims more than the file holds | a header without coordinates, or unit of length |
# | NaN, infinity, a constant image | |
# | a mask, or a modality, on another grid; a missing partner | scans sliced in different planes |
# | a value without a name; values that need naming | names that look like several scans of one patient |
# | a scribble of one value, or without an unannotated voxel | scans without any mask |
# | a class that is drawn on no scan | |

# %% [markdown]
# ## Low contrast
#
# A few outliers can take most of the range [0, 1], so that all other voxels look alike. With $q_p$ the $p$-quantile of
# the scaled intensities above the lowest one, a scan is suspicious if nine tenths of them share a twentieth of the
# range:
#
# $$q_{0.95}-q_{0.05}<\tfrac1{20}$$

# %%
def low_contrast_naive(scaled):
    "Sort, cut a twentieth off either end, look at what is left."
    inside = sorted(v for v in scaled if v > min(scaled))
    cut = len(inside) // 20
    return inside[-1 - cut] - inside[cut] < 1 / 20


# %% [markdown]
# **By hand.** 100 voxels between 0.50 and 0.51 and one at 1: a range of 0.01 is left, suspicious. 0.00 to 1.00 in steps
# of 0.01: 0.9. Black surroundings do not count, since the lowest value is left out. **What breaks**: `min` inside the
# loop makes it quadratic.

# %%
assert low_contrast_naive([0, 1] + [0.5 + k / 10_000 for k in range(100)])
assert not low_contrast_naive([k / 100 for k in range(101)])

# %%
random = np.random.default_rng(0)
for power in (1, 2, 40):
    values = random.random(400) ** power
    assert low_contrast(values) == low_contrast_naive(values.tolist())


# %%
def plot_strengths(strengths):
    "A heart in which one voxel is so many times as bright as the brightest: how much contrast is left for the rest."
    _, axes = panels(len(strengths), size=2.2)
    for axis, strength in zip(axes, strengths, strict=True):
        spoilt = HEARTS[0].image.copy()
        spoilt[0, 0, 0] = strength
        scaled = scale_file(my_scans, spoilt, 0.99, False)
        draw(axis, scaled[3], title=f"×{strength:g}" + (": low contrast" if low_contrast(scaled) else ""))

plot_strengths((1, 100, 1000, 10_000))

# %%
interact(lambda strength=100: plot_strengths((strength,)), strength=(1, 10_000));

# %% [markdown]
# ## Collecting instead of stopping
#
# Every file is read once, by the loader's own functions, and each error they raise becomes a line of the report. So a
# folder that passes the check is a folder that loads.

# %%
#| export
_ONE_PATIENT = ("if that is a patient, say so, or one patient may be trained on and tested on; patient='[^_]+' takes "
                "what stands before the first _")


# %%
#| export
@dataclass(eq=False)
class _Findings:
    "What was found so far."

    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    counts: dict[Path, Counter] = field(default_factory=dict)  # mask → voxels of each value
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # scan → what the table says of it


# %%
#| export
def _check_scan(name: str, files: ScanFiles, opened: Folder, found: _Findings) -> None:
    "Add what is wrong with one scan's files; nothing is raised for bad data."
    grid, row = _check_images(files, opened, found), found.rows.setdefault(name, {})
    if grid:
        sizes = three_axes(grid.shape)
        row |= {"z×y×x": "×".join(str(sizes[a]) for a in grid.axes), "across": grid.plane,
                "mm": "×".join(f"{mm:.3g}" for mm in grid.spacing_mm)}
    for kind, path in (("scribble", files.scribble), ("label", files.label)):
        row[kind] = "yes" if path else ""
        try:
            if path:
                _check_mask(path, kind, grid, opened, found, row)
        except DataError as error:
            found.problems.append(str(error))


# %%
#| export
def _check_images(files: ScanFiles, opened: Folder, found: _Findings) -> Grid | None:
    "Look at one scan's images; their grid, unless none can be read."
    grid = None
    for path in files.images:
        try:
            volume, scan = read_nifti(path, flat=True)
            grid = grid or Grid.of(scan, opened.options.axis)
            matching_grid(path, scan, grid, opened.options.check_affine)
            scaled = scale_file(path, volume, opened.options.clip, opened.options.robust)
            found.remarks += scan_remarks(path, scan, scaled, opened.options.robust)
        except DataError as error:
            found.problems.append(str(error))
    return grid


# %%
#| export
def _check_mask(path: Path, kind: str, grid: Grid | None, opened: Folder, found: _Findings,
                row: dict[str, Any]) -> None:
    "Look at one mask. Raises DataError for a fault."
    volume, scan = read_nifti(path, flat=True)
    values = found.counts[path] = count_values(volume)
    if len(values) == 1:
        raise DataError(path, f"the value {next(iter(values)):g} in all voxels", "something drawn")
    if grid:
        place = matching_grid(path, scan, grid, opened.options.check_affine)
        if kind == "scribble":
            drawn = (place.take(volume.T) != values.most_common(1)[0][0]).any(axis=(1, 2))
            row["slices drawn on"] = f"{drawn.sum()} of {len(drawn)}"


# %% [markdown]
# ## Classes
#
# How much of each class is drawn, and on how many scans. As long as the meaning of the values is not known, they are
# listed as values: from this list `dataset.json` can be written.

# %%
#| export
def _class_table(opened: Folder, labels: Labels | None, found: _Findings) -> pd.DataFrame:
    "A row per class, or per value if `labels` is None: of the scribbles, or of the labels where there are none."
    kind = "scribble" if opened.masks("scribble") else "label"
    masks = [found.counts[path] for path in opened.masks(kind).values() if path in found.counts]
    total = sum(masks, Counter())
    values = labels and dict(zip(labels.drawn if kind == "scribble" else labels.values, labels.names, strict=True))
    names = values or {value: f"value {value:g}" for value in sorted(total)}
    annotated = max(sum(total[value] for value in names), 1)
    table = [(name, value, total[value], f"{total[value] / annotated:.2%}", sum(value in mask for mask in masks))
             for value, name in names.items()]
    share = "share of annotated" if labels else "share"
    return pd.DataFrame(table, columns=["", "value", "voxels", share, "scans"]).set_index("")


# %%
#| export
def _check_values(opened: Folder, labels: Labels, found: _Findings) -> None:
    "Add values without a name, scribbles without an unannotated voxel, and classes that are drawn nowhere."
    for kind, known in (("scribble", {*labels.drawn, labels.ignore}), ("label", {labels.values[0], *labels.drawn})):
        for name, path in opened.masks(kind).items():
            values = found.counts.get(path, Counter())
            if len(values) > 1 and (strange := {value: n for value, n in values.items() if value not in known}):
                listed = ", ".join(f"{value:g} ({n}×)" for value, n in list(strange.items())[:5])
                found.problems.append(str(DataError(path, f"the values {listed}", f"only {sorted(known)}; name others "
                                                    "in dataset.json")))
            if kind == "scribble" and values:
                _check_unannotated(name, path, values, labels.ignore, found)
    table = _class_table(opened, labels, found)
    for name in table.index[table.scans == 0]:
        found.problems.append(f"class {name!r} (value {table.value[name]}): nobody drew it on any scan")


# %%
#| export
def _check_unannotated(name: str, path: Path, values: Counter, ignore: int, found: _Findings) -> None:
    "Note how much of a scan is annotated; all of it is a problem."
    found.rows[name]["annotated"] = f"{1 - values[ignore] / values.total():.2%}"
    if len(values) > 1 and not values[ignore]:
        found.problems.append(str(DataError(path, f"no voxel that is not drawn ({ignore})",
                                            "a scribble; a dense mask belongs into labels/")))


# %% [markdown]
# ## The report
#
# Two tables, the problems, the remarks, and at the end which folds a training would have.

# %%
#| export
@dataclass(frozen=True, eq=False)
class Report:
    "What was found in a folder."

    root: Path  # of the folder
    scans: pd.DataFrame  # a row per scan: voxels, mm, plane, masks, slices drawn on, annotated share
    classes: pd.DataFrame  # a row per class, or per value: value, voxels, share of annotated or of all, scans
    problems: list[str]  # what stops or spoils training
    remarks: list[str]  # what is worth a look
    plan: str = ""  # what a training would do

    @property
    def fine(self) -> bool:
        "Whether it can be trained on as it is."
        return not self.problems

    def __str__(self) -> str:
        return _as_text(self)


# %%
#| export
def _as_text(report: Report) -> str:
    "The report as it is printed."
    parts = [str(report.root)] + [table.to_string() for table in (report.scans, report.classes) if len(table)]
    for title, lines in (("problem", report.problems), ("remark", report.remarks)):
        count = f"{len(lines) or 'no'} {title}{'s' * (len(lines) != 1)}"
        parts.append("\n".join([count, *(f"- {line}" for line in lines)]))
    return "\n\n".join(part for part in (*parts, report.plan) if part)


# %%
#| export
def check(
    path: Path | str,  # as for `folder`
    **options: Any,  # of `FolderOptions`
) -> Report:  # its `fine` is the verdict; printed, it is meant to be read
    "Read every file of a folder once and report what is wrong with it; nothing is raised for bad data."
    try:
        opened = open_folder(path, **options)
        patients = patients_of(opened)
    except DataError as error:
        return Report(Path(path), pd.DataFrame(), pd.DataFrame(), [str(error)], [])
    found = _Findings([str(fault) for fault in opened.faults])
    for name, files in opened.scans.items():
        _check_scan(name, files, opened, found)
    found.remarks[:] = grouped(found.remarks)
    labels = _find_labels(opened, found)
    _compare(opened, labels, found)
    table = pd.DataFrame.from_dict(found.rows, orient="index").fillna("")
    return Report(opened.root, table, _class_table(opened, labels, found), found.problems, found.remarks,
                  _plan(opened, patients))


# %%
#| export
def _find_labels(opened: Folder, found: _Findings) -> Labels | None:
    "What the values mean, and the faults of all values; None, and the reason as a problem, if it is not known."
    drawn, dense = (sum((found.counts[mask] for mask in opened.masks(kind).values() if mask in found.counts), Counter())
                    for kind in ("scribble", "label"))
    try:
        labels = opened.labels(drawn, dense)
    except DataError as error:
        found.problems.append(str(error))
        return None
    _check_values(opened, labels, found)
    return labels


# %%
#| export
def _compare(opened: Folder, labels: Labels | None, found: _Findings) -> None:
    "Add remarks on the folder as a whole."
    if labels and not opened.named:
        names = {"labels": dict(zip(labels.names, labels.drawn, strict=True)), "ignore": labels.ignore}
        found.remarks.append(f"no names: dataset.json may hold {json.dumps(names)}, with names of your own")
    if len(planes := {row["across"] for row in found.rows.values() if "across" in row}) > 1:
        found.remarks.append(f"slices lie in different planes ({', '.join(sorted(planes))}); axis=… takes one for all")
    bare = [name for name, files in opened.scans.items() if not (files.scribble or files.label)]
    if bare:
        found.remarks.append(f"no mask for {', '.join(bare[:5])}{' …' * (len(bare) > 5)}: segmented, not learnt from")
    starts = Counter(name.rpartition("_")[0] for name in opened.scans)
    if not opened.options.patient and len(starts) > 1 and max(starts.values()) > 1 and "" not in starts:
        found.remarks.append(f"several scans begin with {starts.most_common(1)[0][0]!r}: {_ONE_PATIENT}")


# %%
#| export
def _plan(opened: Folder, patients: dict[str, list[str]]) -> str:
    "What a training would do, in words."
    kind, options = "scribble" if opened.masks("scribble") else "label", opened.options
    learnt, labelled = (complete_patients(opened, patients, k) for k in (kind, "label"))
    tests, trains = make_folds(learnt, labelled, list(patients), folds=options.folds, seed=options.seed)
    if not labelled or options.folds == 0:
        return (f"fold 1: trains on the {kind}s of {len(trains[1])} patients, segments all {len(opened.scans)} scans, "
                "scores nothing")
    return "\n".join(f"fold {k}: trains on the {kind}s of {len(trains[k])} patients, tests {len(test)}"
                     for k, test in tests.items())


# %% [markdown]
# **Check.** The sound folder of the first picture: six scans, all classes. Without `dataset.json` the report says which
# value needs a name, and what to write.

# %%
print(str(sound).replace(str(my_scans), "my-scans"))
assert sound.classes.scans.tolist() == [6] * 4 and sound.scans.annotated.str.endswith("%").all()

# %%
(my_scans / "dataset.json").unlink()
unnamed = check(my_scans)
assert not unnamed.fine and any('such as "background"' in line for line in unnamed.problems)
unnamed.classes

# %% [markdown]
# In a terminal, `attenscribble check my-scans` prints the same, and ends with status 1 if there is a problem.
#
# ## Real data: ACDC, checked
#
# Two patients in this layout: the only remarks are missing names, and that the frames of one patient look like several
# patients. What no check can see is whether the strokes are *right*.

# %%
data = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set")) / "acdc/training"
copied = my_scans.parent / "acdc"
if data.is_dir():
    for path in sorted(data.glob("patient00[12]/*_frame??*.nii.gz")):
        kind = "scribbles" if "_scribble" in path.name else "labels" if "_gt" in path.name else "images"
        (copied / kind).mkdir(parents=True, exist_ok=True)
        (copied / kind / path.name).write_bytes(path.read_bytes())
    real = check(copied, ignore=4)
    print(str(real).replace(str(copied.parent), "…"))
    assert real.fine and len(real.remarks) == 2
    assert len(check(copied, ignore=4, patient="[^_]+").remarks) == 1
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** The spoilt folder had six scans. On how many could a training have begun, if only the misspelt name
# had been corrected?

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
# **3. Break.** Return intensities in [0, 1] whose contrast outliers have spoilt, and for which `low_contrast` is False.

# %%
def check_unnoticed(make):
    values = make()
    assert values.min() == 0 and values.max() == 1 and not low_contrast(values)
    assert np.ptp(np.quantile(values, (0.1, 0.9))) < 0.05

def my_unnoticed():
    return np.linspace(0, 1, 100)  # improve this

def solve_unnoticed():
    return np.concatenate([np.zeros(1), np.linspace(0.01, 0.5, 7), np.full(85, 0.5), np.linspace(0.5, 1, 8)])

exercise(check_unnoticed, my_unnoticed, solve_unnoticed)

# %% [markdown]
# ## Recap
#
# Exported: `check` and its `Report`; `low_contrast`. What may surprise: of the five spoilt hearts only one would have
# looked wrong on a screen. [The next chapter](19_datasets.ipynb) opens every dataset by its name.
