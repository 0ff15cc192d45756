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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# %%
#| export
import numpy as np
import pandas as pd

from attenscribble.basics.errors import DataError, named_place
from attenscribble.data.folder import (
    Folder, Labels, ScanFiles, axis_along, class_without_strokes, complete_patients, dataset_of, grouped,
    learnt_patients, look_at, mapped, matching_grid, open_folder, patients_of, scale_file, scan_remarks, slicing_of)
from attenscribble.data.grid import Grid, three_axes
from attenscribble.data.scans import Case, Dataset, read_nifti
from attenscribble.data.scribbles import count_strokes

# %%
import os
import tempfile

import nibabel as nib
from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.folder import low_contrast
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
assert sound.fine and len(report.problems) == 3 and len(report.remarks) == 3

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
# | NaN, infinity, a constant image | a scan that is not cut across its largest spacing |
# | a mask, or a modality, on another grid; a missing partner | two affines in one header that disagree |
# | a value without a name; values that need naming | names that look like several scans of one patient |
# | a scribble without an unannotated voxel; a mask that is not read | scans without any mask; labels that are not used |
# | a fold without patients to train on | a fold that trains on one patient |
# | a class that nobody drew where a fold trains | an empty scribble or label; files that are not read |

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
# Every file is read by the loader's own functions, and each error they raise becomes a line of the report; the rules for
# folds and classes are the loader's too. So a folder that passes the check is a folder that trains. Masks are looked at
# first, because what is drawn can only be told once it is known which value is "not drawn".

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
    labels: Labels | None = None  # what values mean, if that is known
    axes: dict[str, str] = field(default_factory=dict)  # scan → axis of its file across which it is cut
    normal: Sequence[float] | None = None  # across the slices of the other scans
    counts: dict[Path, Counter] = field(default_factory=dict)  # mask → voxels of each value
    drawn: dict[Path, tuple[int, int]] = field(default_factory=dict)  # scribble → strokes, slices with some
    spacings: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # scan → (z,y,x) mm
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # scan → what the table says of it


# %%
#| export
def _check_scan(name: str, files: ScanFiles, opened: Folder, found: _Findings) -> None:
    "Add what is wrong with one scan's files; nothing is raised for bad data."
    grid, row = _check_images(name, files, opened, found), found.rows.setdefault(name, {})
    if grid:
        sizes = three_axes(grid.shape)
        row |= {"z×y×x": "×".join(str(sizes[a]) for a in grid.axes), "across": grid.plane,
                "mm": "×".join(f"{mm:.3g}" for mm in grid.spacing_mm)}
        found.spacings[name] = grid.spacing_mm
    for kind, path in (("scribble", files.scribble), ("label", files.label)):
        row[kind] = "yes" if path else ""
        try:
            if path and path in found.counts:  # else it could not be read
                _check_mask(path, kind, grid, opened, found, row)
        except DataError as error:
            found.problems.append(str(error))


# %%
#| export
def _check_images(name: str, files: ScanFiles, opened: Folder, found: _Findings) -> Grid | None:
    "Look at one scan's images; their grid, unless none can be read."
    grid, axis = None, found.axes.get(name, opened.options.axis)
    for path in files.images:
        try:
            volume, scan = read_nifti(path, flat=True)
            grid = grid or Grid.of(scan, axis_along(scan, found.normal) if axis == "auto" else axis)
            place = matching_grid(path, scan, grid, opened.options.check_affine)
            scaled = scale_file(path, volume, opened.options.clip, opened.options.robust)
            Case(name, "", np.ascontiguousarray(place.take(scaled.T)), grid.spacing_mm, grid.affine, source=str(path))
            found.remarks += scan_remarks(path, scan, scaled, opened.options.robust)
        except DataError as error:
            found.problems.append(str(error))
    return grid


# %%
#| export
def _check_mask(path: Path, kind: str, grid: Grid | None, opened: Folder, found: _Findings,
                row: dict[str, Any]) -> None:
    "Look at one mask. Raises DataError for a fault."
    values = found.counts[path]
    if found.labels and [*values] == [found.labels.ignore if kind == "scribble" else found.labels.values[0]]:
        found.remarks.append(f"{path}: nothing is {'drawn' if kind == 'scribble' else 'labelled'}")
    if not grid:
        return
    volume, scan = read_nifti(path, flat=True)
    place = matching_grid(path, scan, grid, opened.options.check_affine)
    if kind == "scribble" and found.labels:
        stored = place.take(mapped(volume.T, opened.options.map))
        drawn = stored != found.labels.ignore
        slices = drawn.any(axis=(1, 2))
        numbered = np.unique(stored, return_inverse=True)[1].reshape(stored.shape)  # any numbers, also NaN
        strokes = count_strokes(np.where(drawn, numbered, -1), -1)
        found.drawn[path] = (strokes, int(slices.sum()))
        row |= {"slices drawn on": f"{slices.sum()} of {len(slices)}", "strokes": str(strokes)}


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
    "Add values without a name, and scribbles without an unannotated voxel."
    for kind, known in (("scribble", {*labels.drawn, labels.ignore}), ("label", {labels.values[0], *labels.drawn})):
        for name, path in opened.masks(kind).items():
            values = found.counts.get(path, Counter())
            if strange := {value: n for value, n in values.items() if value not in known}:
                listed = ", ".join(f"{value:g} ({n}×)" for value, n in list(strange.items())[:5])
                found.problems.append(str(DataError(path, f"the values {listed}", f"only {sorted(known)}; name others "
                                                    "in dataset.json")))
            if kind == "scribble" and values:
                _check_unannotated(name, path, values, labels.ignore, found)


# %%
#| export
def _check_unannotated(name: str, path: Path, values: Counter, ignore: int, found: _Findings) -> None:
    "Note how much of a scan is annotated; all of it is a problem."
    found.rows[name]["annotated"] = f"{1 - values[ignore] / values.total():.2%}"
    if not values[ignore]:
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
    named_place("FOLDER", path)
    try:
        opened = open_folder(path, **options)
        patients = patients_of(opened)
    except DataError as error:
        return Report(Path(path), pd.DataFrame(), pd.DataFrame(), [str(error)], [])
    found = _Findings([str(fault) for fault in opened.faults])
    found.remarks += opened.remarks
    found.labels = labels = _find_labels(opened, found)
    if labels:
        found.axes, found.normal = slicing_of(opened, labels.ignore)
    for name, files in opened.scans.items():
        _check_scan(name, files, opened, found)
    found.remarks[:] = grouped(found.remarks)
    if labels:
        _check_values(opened, labels, found)
    plan = _plan(opened, patients, labels, found)
    _compare(opened, patients, labels, found)
    table = pd.DataFrame.from_dict(found.rows, orient="index").fillna("")
    return Report(opened.root, table, _class_table(opened, labels, found), found.problems, found.remarks, plan)


# %%
#| export
def _find_labels(opened: Folder, found: _Findings) -> Labels | None:
    "What the values mean; None, and the reason as a problem, if it is not known. Masks that cannot be read, too."
    sums = {}
    for kind in ("scribble", "label"):
        sums[kind] = Counter[int | float]()
        for path in opened.masks(kind).values():
            try:
                marks = opened.marks.get(path) or look_at(path, opened.options.map)
                found.counts[path] = marks.counts
                sums[kind] += marks.counts
            except DataError as error:
                found.problems.append(str(error))
    if found.problems and not (sums["scribble"] or sums["label"]):  # no mask can be read: nothing is known of values
        return None
    try:
        return opened.labels(sums["scribble"], sums["label"])
    except DataError as error:
        found.problems.append(str(error))
        return None


# %%
#| export
def _compare(opened: Folder, patients: dict[str, list[str]], labels: Labels | None, found: _Findings) -> None:
    "Add remarks on the folder as a whole."
    if labels and not opened.named:
        names = {"labels": dict(zip(labels.names, labels.drawn, strict=True)), "ignore": labels.ignore}
        found.remarks.append(f"no names: dataset.json may hold {json.dumps(names)}, with names of your own")
    _compare_planes(opened, found)
    bare = [name for name, files in opened.scans.items() if not (files.scribble or files.label)]
    if bare:
        found.remarks.append(f"no mask for {', '.join(bare[:5])}{' …' * (len(bare) > 5)}: segmented, not learnt from")
    complete, labelled = complete_patients(opened, patients, "label"), opened.masks("label")
    if unused := [p for p, scans in patients.items() if p not in complete and any(s in labelled for s in scans)]:
        found.remarks.append(f"labels of {', '.join(unused[:5])}{' …' * (len(unused) > 5)} are not scored against: "
                             "only some of the patient's scans have one")
    if labels and labelled and opened.masks("scribble"):
        drawn, dense = (sum((found.counts[p] for p in opened.masks(kind).values() if p in found.counts), Counter())
                        for kind in ("scribble", "label"))
        if lacking := [name for name, value in zip(labels.names, labels.drawn, strict=True)
                       if value != labels.drawn[0] and drawn[value] and not dense[value]]:
            found.remarks.append(f"strokes show {', '.join(lacking)}, and no dense label does: where it is right, "
                                 "it is scored as wrong, unless the labelled scans have none of it")
    starts = Counter(name.rpartition("_")[0] for name in opened.scans)
    if not opened.options.patient and len(starts) > 1 and max(starts.values()) > 1 and "" not in starts:
        found.remarks.append(f"several scans begin with {starts.most_common(1)[0][0]!r}: {_ONE_PATIENT}")


# %%
#| export
def _compare_planes(opened: Folder, found: _Findings) -> None:
    "Add a remark on the scans that are not cut across their largest spacing; across their own all are cut rightly."
    thin = {name: mm for name, mm in found.spacings.items() if mm[0] < 0.99 * max(mm)}
    for name, mm in thin.items():
        if opened.options.axis == "auto":
            why = "its strokes lie so" if name in found.axes else "the scans that are learnt from are cut so"
            reason, cure = f"because {why}", "axis=… takes another"
        else:
            reason, cure = f"because of axis={opened.options.axis}", "leave the option out to follow the strokes"
        found.remarks.append(f"{opened.scans[name].images[0]}: slices are {found.rows[name]['across']}, {mm[0]:.3g} mm "
                             f"apart with pixels of {mm[1]:.3g}×{mm[2]:.3g} mm, not across the largest spacing, "
                             f"{reason}; {cure}")


# %% [markdown]
# ## What a training would do
#
# The folds, as the loader has them, with what each of them learns from; and their faults, in the words in which a
# training would refuse them.

# %%
#| export
def _plan(opened: Folder, patients: dict[str, list[str]], labels: Labels | None, found: _Findings) -> str:
    "What a training would do, in words; what it would refuse is added to the problems."
    if labels is None:
        return ""
    try:
        dataset = dataset_of(opened, labels, patients)
    except DataError as error:
        if str(error) not in found.problems:
            found.problems.append(str(error))
        return ""
    kind, _ = learnt_patients(opened, patients)
    found.problems += _absent_classes(opened, dataset, patients, kind, labels, found)
    if lone := [fold for fold in dataset.folds if len(dataset.split(fold)[0]) == 1]:
        found.remarks.append(f"one patient only is trained on in fold {', '.join(map(str, lone))}")
    lines = []
    for fold in dataset.folds:
        train, test = dataset.split(fold)
        scans = "the one scan" if len(opened.scans) == 1 else f"all {len(opened.scans)} scans"
        tests = f"tests {len(test)}" if dataset.scored else f"segments {scans}, scores nothing"
        lines.append(f"fold {fold}: trains on {_learnt(opened, train, patients, kind, found)}, {tests}")
    return "\n".join(lines)


# %%
#| export
def _learnt(opened: Folder, train: Sequence[str], patients: dict[str, list[str]], kind: str, found: _Findings) -> str:
    "What a fold learns from, in words."
    masks = opened.masks(kind)
    used = [masks[scan] for patient in train for scan in patients[patient] if scan in masks]
    scans, people = ("" if len(many) == 1 else "s" for many in (used, train))
    whole = f"{len(used)} scan{scans} of {len(train)} patient{people}"
    if kind == "label":
        return f"the labels of {whole}, as there are no strokes: method=fully"
    strokes, slices = (sum(found.drawn.get(path, (0, 0))[k] for path in used) for k in (0, 1))
    return f"the {strokes} strokes on {slices} slices of {whole}"


# %%
#| export
def _absent_classes(opened: Folder, dataset: Dataset, patients: dict[str, list[str]], kind: str, labels: Labels,
                    found: _Findings) -> list[str]:
    "The folds that lack a class where they train, in the words of a training; the same lack in all folds only once."
    ids = {value: k for k, value in enumerate(labels.drawn if kind == "scribble" else labels.values)}
    faults, lacks = [], []
    for fold in dataset.folds:
        paths = [opened.masks(kind).get(scan) for patient in dataset.split(fold)[0] for scan in patients[patient]]
        seen = {ids[value] for path in paths if path in found.counts for value in found.counts[path] if value in ids}
        if fault := class_without_strokes(dataset, fold, kind, seen):
            faults.append(str(fault))
        lacks.append(tuple(sorted(seen)))
    return faults[:1] if len(set(lacks)) == 1 else faults


# %% [markdown]
# **Check.** The sound folder of the first picture: six scans, all classes. Without `dataset.json` the report says which
# value needs a name, and what to write.

# %%
print(str(sound).replace(str(my_scans), "my-scans"))
assert sound.classes.scans.tolist() == [6] * 4 and sound.scans.annotated.str.endswith("%").all()

# %%
(my_scans / "dataset.json").unlink()
unnamed = check(my_scans)
assert not unnamed.fine and any('"ignore": 0 if it is this one' in line for line in unnamed.problems)
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
    assert len(check(copied, ignore=4, patient="[^_]+").remarks) == 2  # of two patients, each fold trains on one
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** The spoilt folder had six scans. On how many could a training have begun, if only the misspelt name
# had been corrected?

# %%
def check_usable(answer):
    lines = [*report.problems, *(line for line in report.remarks if "nothing is drawn" in line)]
    bad = {name for name in ("patient002", "patient003", "patient005") if any(name in line for line in lines)}
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
