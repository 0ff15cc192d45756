# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # nnU-Net
#
# > Out: any dataset as nnU-Net's raw format, scribbles with its ignore label. Back: its masks, scored like our own.
#
# How good is our method beside nnU-Net, the tool that everybody would try first? It learns from scribbles too, so a fair
# comparison gives it the same patients, strokes and test volumes, and scores its masks in the same way. This chapter
# writes a dataset in nnU-Net's format and turns the masks it predicts into a row of our tables.

# %%
#| default_exp reporting.nnunet

# %%
#| export
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel import Nifti1Image

# %%
#| export
from attenscribble.basics.errors import DataError, named_place, one_of
from attenscribble.basics.files import read_json, without_parts, write_atomic, write_json
from attenscribble.data.datasets import SOURCES
from attenscribble.data.folder import _check_same_place, _check_same_size, class_without_strokes, mapped
from attenscribble.data.grid import Grid, placed, three_axes
from attenscribble.data.scans import Case, Dataset, _check_same_grid, in_folder, is_nifti, read_nifti, stem
from attenscribble.method.objective import METHODS
from attenscribble.reporting.tables import summary_of
from attenscribble.runs.config import Config
from attenscribble.runs.inference import OURS, as_picture, read_note, save_mask, save_volume
from attenscribble.runs.metrics import POLICIES, format_table
from attenscribble.runs.run import headline, score, software

# %%
import importlib.util
import subprocess
import sys
import tempfile

import pandas as pd
from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.phantom import phantom
from attenscribble.reporting.nnunet import export_nnunet  # the finished function, for a first look
from attenscribble.reporting.tables import compare, read_results

# %% [markdown]
# ## The picture: one scribble, two conventions
#
# A phantom whose unannotated pixels are 255, exported, and the files read back with nothing but nibabel. In nnU-Net
# the ignore label has to be the number that follows the last class.

# %%
hearts = phantom(patients=5, seed=3)


def with_ignore(case, ignore):
    scribble = np.where(case.scribble == hearts.ignore, ignore, case.scribble).astype(np.uint8)
    return type(case)(**{**vars(case), "scribble": scribble})


strange = type(hearts)(**{**vars(hearts), "ignore": 255,
                          "read": lambda patient: [with_ignore(case, 255) for case in hearts.read(patient)]})

# %%
raw = Path(tempfile.mkdtemp())
place = export_nnunet(strange, raw, fold=1)
name = "patient002_frame01"
image, mask = (np.asarray(nib.load(place / part).dataobj).T for part in
               (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"))
case = strange.read("patient002")[0]
assert (image == case.image).all() and sorted(np.unique(mask)) == [0, 1, 2, 3, 4]

# %%
figure, axes = panels(4, size=2.5)
draw(axes[0], case.image[3], scribble=case.scribble[3], ignore=255, title="ours: unannotated is 255")
draw(axes[1], image[3], title="imagesTr/…_0000.nii.gz")
shown = axes[2].imshow(mask[3], cmap="viridis", vmin=0, vmax=4, interpolation="nearest")
axes[2].set_title("labelsTr/….nii.gz: ignore is 4", fontsize=9)
figure.colorbar(shown, ax=axes[2], ticks=range(5), shrink=0.7)
draw(axes[3], image[3], scribble=mask[3], ignore=4, title="the same strokes")
class_legend(figure, hearts.class_names, background=True)

# %% [markdown]
# ## What goes where
#
# $$y' = \begin{cases} C & y=\text{ignore}\\ y & \text{else}\end{cases}\qquad C=\text{number of classes, background included}$$
#
# | in `Dataset501_Name/` | what | ours |
# |---|---|---|
# | `imagesTr/CASE_0000.nii.gz`, `_0001`, … | an image a channel, float32 | `image` of the training side of the fold |
# | `labelsTr/CASE.nii.gz` | strokes, $y'$ | `scribble` of the same cases |
# | `imagesTs/CASE_0000.nii.gz` | what to predict | `image` of the test side |
# | `dataset.json` | channels, labels, how many | class names, citation, licence |
# | `splits_final.json` | nnU-Net's inner folds | by patient, see below |
#
# Pixels with the ignore label do not count in nnU-Net's loss (Gotkowski et al. 2024).

# %% [markdown]
# **No dense labels.** They stay in the dataset: a test label beside the training data could be trained on by mistake.
# For scoring, the dataset is opened again.
#
# **Inner folds.** Without this file nnU-Net divides *cases* into folds, so that one frame of a heart may be used for
# training and the other for validation. The file divides patients. Trained as `all`, nnU-Net uses every case in
# `imagesTr`, which is what our runs train on.

# %% [markdown]
# ## Scaled or raw?
#
# A `Case` holds intensities with the brightest 1 % cut, stretched to [0, 1]; these are exported. nnU-Net subtracts each
# image's mean and divides by its deviation. $(av+b-\overline{av+b})/\mathrm{std}(av+b)=(v-\bar v)/\mathrm{std}(v)$ for $a>0$, so the stretch
# is undone; what remains of our scaling is the cut. Only a channel named `CT` is treated otherwise.

# %%
volume = np.random.default_rng(0).gamma(2, 100, (4, 20, 20))
standard = lambda v: (v - v.mean()) / v.std()
np.testing.assert_allclose(standard(volume), standard(0.002 * volume - 0.3))


# %% [markdown]
# ## Export
#
# Everything is checked while it is written to a hidden folder; the folder gets its name when all is complete. A class
# without a single stroke on the training side is refused, of a user's own folder in the words of `check` and `train`:
# nnU-Net would learn never to predict it.

# %%
#| export
def export_nnunet(
    dataset: Dataset,  # what to export
    folder: Path | str,  # nnU-Net's nnUNet_raw
    *,
    fold: int = 1,  # its training side becomes imagesTr, its test side imagesTs
    number: int = 501,  # nnU-Net's dataset ID, 1 to 999
    name: str = "",  # letters and digits; from the dataset's unless told
    target: str = "scribble",  # or "label": dense, without ignore label, as an upper bound
    channels: Sequence[str] = (),  # a name a channel; "CT" makes nnU-Net normalise with the training set's percentiles
) -> Path:  # folder/Dataset501_Name
    """Write a fold in nnU-Net's raw format (v2), on the grid of every scan, complete or not at all.

    Raises DataError for a case without target or place in space, a class that no target shows, names that nnU-Net
    cannot take, and a folder that is there already; ValueError for a wrong number, name or target."""
    one_of("target", target, ("scribble", "label"))
    named_place("OUT", folder)
    place = _free_place(Path(folder), number, name or re.sub(r"[^A-Za-z0-9]", "", dataset.name.title()))
    dataset.split(fold)  # an unknown fold is refused before any folder is made
    content = _describe_dataset(dataset, target, channels)
    write_atomic(place, lambda new: _write_fold(new, dataset, fold, target, content))
    return place


# %%
#| export
def _free_place(folder: Path, number: int, name: str) -> Path:
    "The folder to write, once number and name fit and no dataset has the number."
    if not (1 <= number <= 999 and re.fullmatch(r"[A-Za-z0-9]+", name)):
        raise ValueError(f"number, name: found {number}, {name!r}, expected 1 to 999, letters and digits")
    if taken := sorted(folder.glob(f"Dataset{number:03d}_*")):
        raise DataError(taken[0], "a dataset with this number", "another number, or none there")
    return folder / f"Dataset{number:03d}_{name}"


# %%
#| export
def _write_fold(new: Path, dataset: Dataset, fold: int, target: str, content: dict[str, Any]) -> None:
    "Images and masks of both sides of a fold, the description and the inner folds."
    (train, test), seen = dataset.split(fold), set[int]()
    cases: dict[str, list[str]] = {}
    for case in dataset.cases(train):
        if dataset.version and getattr(case, target) is None:
            continue  # in a user's own folder a patient may have scans without strokes
        cases.setdefault(case.patient, []).append(case.name)
        _write_images(case, new / "imagesTr")
        seen |= _write_target(case, dataset, target, new / "labelsTr")
    if dataset.version and (fault := class_without_strokes(dataset, fold, target, seen)):
        raise fault
    if absent := [name for class_id, name in enumerate(dataset.class_names) if class_id not in seen]:
        raise DataError(f"{dataset.name}: fold {fold}: {target}", f"no pixel of {', '.join(absent)}",
                        "every class in some training case: nnU-Net would never predict it")
    for case in dataset.cases(test):
        _write_images(case, new / "imagesTs")
    write_json(content | {"numTraining": sum(map(len, cases.values()))}, new / "dataset.json")
    write_json(patient_splits(cases), new / "splits_final.json")


# %% [markdown]
# Every image and mask is written on the grid of its scan's file; unannotated pixels get the number after the last class.

# %%
#| export
def _write_images(case: Case, folder: Path) -> None:
    "One file a channel, CASE_0000.nii.gz and so on."
    if case.affine is None and case.spacing_mm is None:
        raise DataError(f"{case.name}: spacing_mm", None, "the voxel size: nnU-Net plans with it")
    if (folder / f"{case.name}_0000.nii.gz").exists():
        raise DataError(f"{case.name}", "a second case of this name", "each name once")
    for channel, image in enumerate(case.image[None] if case.image.ndim == 3 else case.image.swapaxes(0, 1)):
        save_volume(image, case, folder / f"{case.name}_{channel:04d}.nii.gz")


# %%
#| export
def _write_target(case: Case, dataset: Dataset, target: str, folder: Path) -> set[int]:
    "The mask with ignore as the highest value; the class ids in it."
    mask = getattr(case, target)
    if mask is None:
        raise DataError(f"{case.name}: {target}", "none", "one in every training case")
    if target == "scribble":
        mask = np.where(mask == dataset.ignore, np.uint8(dataset.classes), mask)
    save_mask(mask, case, folder / f"{case.name}.nii.gz")
    return set(np.unique(mask).tolist())


# %% [markdown]
# The description names channels and classes, and whom to credit.

# %%
#| export
def _describe_dataset(dataset: Dataset, target: str, channels: Sequence[str]) -> dict[str, Any]:
    "All of dataset.json but numTraining. Raises DataError for names that nnU-Net reserves or that do not fit."
    channels = list(channels) or [f"channel {k}" for k in range(dataset.channels)]
    labels = _label_numbers(dataset, target)
    if len(channels) != dataset.channels:
        raise DataError(f"{dataset.name}: channels", channels, f"a name for each of {dataset.channels}")
    licence = SOURCES[dataset.name].licence if dataset.name in SOURCES else dataset.source
    return {"channel_names": {str(k): name for k, name in enumerate(channels)}, "labels": labels,
            "file_ending": ".nii.gz", "name": dataset.name, "reference": dataset.source, "licence": licence,
            "description": f"{target}s, intensities cut and scaled to [0, 1]"}


# %%
#| export
def _label_numbers(dataset: Dataset, target: str) -> dict[str, int]:
    "Class name → number in the masks, and ignore as the highest for scribbles."
    names = ["background", *dataset.class_names[1:]]  # nnU-Net wants class 0 to have this name
    if len({*names, "ignore"}) < len(names) + 1:
        raise DataError(f"{dataset.name}: class_names", names[1:], "each once, none called background or ignore")
    labels = {name: class_id for class_id, name in enumerate(names)}
    return labels | {"ignore": dataset.classes} if target == "scribble" else labels


# %%
#| export
_INNER_FOLDS = 5  # as many as nnU-Net makes


def patient_splits(
    cases: dict[str, list[str]],  # patient → names of its cases
) -> list[dict[str, list[str]]]:  # for each inner fold the cases to train on and to validate on
    "Inner folds that keep a patient's cases together: every fifth patient; a lone patient validates itself."
    patients = list(cases)
    count = min(_INNER_FOLDS, len(patients))
    parts = [patients[k::count] for k in range(count)]
    return [{"train": [name for p in patients if p not in part or count == 1 for name in cases[p]],
             "val": [name for p in part for name in cases[p]]} for part in parts]


# %% [markdown]
# **By hand.** Three patients, two frames each: three inner folds, each validates on both frames of one patient.

# %%
splits = patient_splits({"a": ["a1", "a2"], "b": ["b1", "b2"], "c": ["c1", "c2"]})
assert splits[0] == {"train": ["b1", "b2", "c1", "c2"], "val": ["a1", "a2"]} and len(splits) == 3
for path in sorted(place.rglob("*"))[:9]:
    print(path.relative_to(raw))
print((place / "dataset.json").read_text())


# %% [markdown]
# ## What nnU-Net asks of a folder
#
# nnU-Net's documentation says it in words, and its own check can only run where it is installed. The following function
# checks the same on any machine.

# %%
#| export
def check_nnunet(
    place: Path | str,  # Dataset501_Name
) -> int:  # training cases
    """Whether a folder is what nnU-Net v2's documentation asks for. Raises DataError for the first thing that is not.

    Names, `dataset.json` with consecutive labels and ignore above them all, as many images a case as channels, masks
    of the images' grid with declared values only, finite intensities, inner folds over cases that exist."""
    place = Path(place)
    content = read_json(place / "dataset.json")
    _check_description(place, content)
    masks = {path.name.removesuffix(".nii.gz"): path for path in sorted((place / "labelsTr").iterdir())}
    _check_images(place, content, masks)
    for split in read_json(place / "splits_final.json"):
        if not split["train"] or not split["val"] or not {*split["train"], *split["val"]} <= set(masks):
            raise DataError(place / "splits_final.json", split, "cases of labelsTr on both sides")
    return len(masks)


# %%
#| export
def _check_description(place: Path, content: dict[str, Any]) -> None:
    "The folder's name and the labels."
    if not re.fullmatch(r"Dataset\d{3}_\w+", place.name):
        raise DataError(place, "another name", "Dataset, three digits, _Name")
    labels = content["labels"]
    if list(labels.values()) != list(range(len(labels))) or labels.get("background") != 0:
        raise DataError(f"{place}: labels", labels, "background 0, then consecutive numbers")
    if "ignore" in labels and labels["ignore"] != max(labels.values()):
        raise DataError(f"{place}: labels: ignore", labels["ignore"], f"the highest, {max(labels.values())}")


# %%
#| export
def _check_images(place: Path, content: dict[str, Any], masks: dict[str, Path]) -> None:
    "As many images as channels for every mask, and each pair fits."
    channels = [f"{int(k):04d}" for k in content["channel_names"]]
    images = sorted(path.name for path in (place / "imagesTr").iterdir())
    wanted = sorted(f"{name}_{channel}.nii.gz" for name in masks for channel in channels)
    if images != wanted or len(masks) != content["numTraining"]:
        raise DataError(place / "imagesTr", f"{len(images)} files", f"{len(wanted)} of {content['numTraining']} cases")
    for name, path in masks.items():
        paths = {channel: place / "imagesTr" / f"{name}_{channel}.nii.gz" for channel in channels}
        _check_case(path, paths, set(content["labels"].values()))


# %%
#| export
def _check_case(path: Path, images: dict[str, Path], values: set[int]) -> None:
    "A mask with declared values only, on the grid of its images, which are finite."
    mask, header = read_nifti(path, flat=True)
    if strange := set(np.unique(mask).tolist()) - values:
        raise DataError(path, f"the values {sorted(strange)}", f"only {sorted(values)}")
    for channel, image_path in images.items():
        image, scan = read_nifti(image_path, flat=True)
        _check_same_grid(path, header, scan, True)
        if not np.isfinite(image).all():
            raise DataError(f"{path.name.removesuffix('.nii.gz')}: channel {int(channel)}", "NaN or infinity",
                            "finite intensities")


# %%
assert check_nnunet(place) == 8
(place / "imagesTr" / f"{name}_0000.nii.gz").rename(raw / "away.nii.gz")
try:
    check_nnunet(place)
    raise RuntimeError("a missing image passed")
except DataError as error:
    print(str(error).replace(str(raw), "…"))
(raw / "away.nii.gz").rename(place / "imagesTr" / f"{name}_0000.nii.gz");

# %% [markdown]
# Where nnU-Net is installed, its own check runs too:

# %%
VERIFY = """import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
if __name__ == "__main__":
    verify_dataset_integrity(sys.argv[1], 1)
"""
if importlib.util.find_spec("nnunetv2"):
    (raw / "verify.py").write_text(VERIFY)  # a file, because its worker processes import it
    done = subprocess.run([sys.executable, raw / "verify.py", place], capture_output=True, text=True, check=False)
    print(done.stdout[-300:] if done.returncode == 0 else f"skipped: nnunetv2 does not start\n{done.stderr[-300:]}")
else:
    print("skipped: nnunetv2 is not installed")

# %% [markdown]
# ## Train there
#
# Three commands of nnU-Net, in an environment of its own, between two of ours:
#
# ```bash
# attenscribble export-nnunet acdc $nnUNet_raw fold=1
# nnUNetv2_plan_and_preprocess -d 501 -c 2d --verify_dataset_integrity
# nnUNetv2_train 501 2d all
# nnUNetv2_predict -d 501 -c 2d -f all -i $nnUNet_raw/Dataset501_Acdc/imagesTs -o masks
# attenscribble score acdc masks fold=1 archive=results --method nnU-Net
# ```

# %% [markdown]
# ## Back
#
# Before a folder of masks is scored, it is checked. Is there a mask for every test case? Does each lie on its scan's grid? Do they hold numbers with a
# meaning? Maps that `predict --probabilities` wrote beside its masks, and masks of the fold's training patients, are left out by name; a mask of
# anybody else is refused.
#
# A user's own folder may have values of its own, such as 10 and 20: masks of our runs hold these, masks of nnU-Net hold class ids. Where a folder of
# masks could be read either way, with another meaning, it is refused until that is said.

# %%
#| export
MEANINGS = ("own", "ids")  # what the numbers in masks may be: values of the dataset's labels, class ids


# %%
#| export
def read_predictions(
    folder: Path | str,  # CASE.nii.gz, as nnU-Net or `predict` writes them
    dataset: Dataset,  # whose test cases they are
    fold: int = 1,  # of the dataset
    values: str = "",  # one of `MEANINGS`; empty: whichever all numbers fit, or our own masks' headers tell
) -> dict[str, tuple[Case, np.ndarray]]:  # name → case and mask [Z,Y,X] uint8 class ids, for every test case
    """Masks of a fold's test cases. Raises DataError for a missing or further one, another grid, an unknown value, and
    for numbers that could be values as well as class ids."""
    return _read_predictions(folder, dataset, fold, values)[0]


# %%
#| export
def _read_predictions(
    folder: Path | str, dataset: Dataset, fold: int, values: str
) -> tuple[dict[str, tuple[Case, np.ndarray]], list[str]]:
    "The masks, and the names of what was left out."
    if values:
        one_of("values", values, MEANINGS)
    if not Path(named_place("MASKS", folder)).is_dir():
        raise DataError(folder, "no such folder", f"one with a mask of each test case of fold {fold}")
    cases = {case.name: case for case in dataset.cases(dataset.tested(fold))}
    files, left_out = _prediction_files(Path(folder), dataset, fold, [*cases])
    stored = {name: _read_prediction(files[name], case, dataset) for name, case in cases.items()}
    table = _meaning(Path(folder), {files[name]: mask for name, mask in stored.items()}, dataset, values)
    ids = np.zeros(1 + max(table), np.uint8)
    ids[list(table)] = range(len(table))
    return {name: (case, ids[stored[name]]) for name, case in cases.items()}, left_out


# %%
#| export
def _prediction_files(
    folder: Path, dataset: Dataset, fold: int, cases: Sequence[str]
) -> tuple[dict[str, Path], list[str]]:
    "A file for every test case, and names of what is no mask of one. Raises DataError for a missing or further one."
    files: dict[str, Path] = {}
    for path in without_parts(filter(is_nifti, in_folder(folder))):
        name = stem(path)
        if files.setdefault(name, path) != path:
            raise DataError(path, f"a second mask of {name}", f"only {files[name]}")
    maps = {name for name in files if name not in cases and re.sub("_(probabilities|uncertainty)$", "", name) in (
        files.keys() - {name})}
    others = [patient for patient in dataset.patients if patient not in dataset.tested(fold)]
    trained = {name for name in files if name not in cases and any(f"{name}_".startswith(f"{p}_") for p in others)}
    left_out = sorted(maps | trained)
    for what, names in (("no mask of", {*cases} - files.keys()), ("a mask of", files.keys() - {*cases, *left_out})):
        if names:
            raise DataError(folder, f"{what} {', '.join(sorted(names)[:5])}",
                            f"one of each of the {len(cases)} test cases of fold {fold}")
    return files, left_out


# %% [markdown]
# A mask is read as the labels are: compared with its scan in millimetres, so its axes may be stored in another order, and
# with numbers next to whole ones rounded. `data_check_affine=false`, where a folder's own masks need it, holds here too.

# %%
#| export
def _read_prediction(path: Path, case: Case, dataset: Dataset) -> np.ndarray:
    "One mask as it is stored, in the book's order. Raises DataError for another grid, or a number without meaning."
    volume, scan = read_nifti(path, flat=True)
    place = _place_of(path, scan, case.grid or _grid_of(case), dataset)
    mask = mapped(np.ascontiguousarray(place.take(volume.T)), {})
    ids = range(dataset.classes)
    if strange := sorted(set(np.unique(mask).tolist()) - {*ids, *dataset.values}):
        own = f", or the labels' values {', '.join(map(str, dataset.values))}" if dataset.values else ""
        raise DataError(path, f"the values {strange[:5]}", f"class ids, 0 to {dataset.classes - 1}{own}")
    return mask.astype(np.int64)


# %%
#| export
def _grid_of(case: Case) -> Grid:
    "The grid of a case that knows its place alone, by the letters of its axes: as a reader of its mask would see it."
    written = cast(Nifti1Image, as_picture(np.zeros(case.shape, np.uint8), case))
    scan = type(written).from_bytes(written.to_bytes())
    return Grid.of(scan, "".join(nib.aff2axcodes(scan.affine)))


# %%
#| export
def _place_of(path: Path, scan: Nifti1Image, grid: Grid, dataset: Dataset) -> Grid:
    "`matching_grid` for a mask that was predicted, with what can be done about another place here."
    check = dataset.reading.get("check_affine", True)
    other, located = Grid.of(scan, grid.plane), check and placed(scan.header) and placed(grid.header)
    if not located:
        other = replace(grid, header=scan.header, shape=scan.shape)
    same = dataset.version and located and three_axes(scan.shape) == three_axes(grid.shape)
    cure = "; data_check_affine=false takes all masks voxel by voxel, if they are known to match" if same else ""
    _check_same_size(path, grid, other, cure)
    if check:
        _check_same_place(path, grid, other, located, cure or "'s file")
    return other


# %%
#| export
def _meaning(folder: Path, masks: dict[Path, np.ndarray], dataset: Dataset, values: str) -> tuple[int, ...]:
    "Index = class id: the number that stands for it in these masks. Raises DataError where it cannot be known."
    ids = tuple(range(dataset.classes))
    choices = {"own": tuple(dataset.values) or ids, "ids": ids}
    found = {path: {*np.unique(mask).tolist()} for path, mask in masks.items()}
    everything = set().union(*found.values())
    fits = {name: table for name, table in choices.items() if everything <= {*table} and values in ("", name)}
    if len(fits) == 2 and all(fits["own"].index(number) == number for number in everything):
        return ids  # the same either way
    if len(fits) == 2 and all(read_note(path).startswith(OURS) for path in masks):
        return choices["own"]
    if len(fits) != 1:
        raise DataError(folder, f"the values {sorted(everything)[:9]}", "masks that hold either " + " or ".join(
            f"{' '.join(map(str, table))} (--values {name})" for name, table in choices.items()))
    return next(iter(fits.values()))


# %%
#| export
def score_predictions(
    folder: Path | str,  # CASE.nii.gz for every test case
    dataset: Dataset,  # whose test cases they are
    config: Config,  # which fold, seed, and whether HD95
    method: str = "nnU-Net",  # its name in the tables
    values: str = "",  # what the numbers in the masks are, as for `read_predictions`
) -> dict[str, Any]:  # a result, as a training's
    """Score masks from elsewhere like those of a run. Raises what `read_predictions` raises, DataError for a dataset
    without labels or spacing, ValueError for the name of a method of ours."""
    if method in METHODS or not method.strip():
        raise ValueError(f"method: found {method!r}, expected a name that no method of this package has")
    if not dataset.scored:
        raise DataError(dataset.name, "no dense labels", "a dataset that can be scored")
    cases, left_out = _read_predictions(folder, dataset, config.fold, values)
    rows = [row for case, mask in cases.values() for row in _score_case(case, mask, dataset, config)]
    return _as_result(method, rows, len(cases), dataset, config) | {"left_out": left_out}


# %%
#| export
def _score_case(case: Case, mask: np.ndarray, dataset: Dataset, config: Config) -> list[dict[str, Any]]:
    "The rows of one volume; raise DataError where it cannot be scored."
    if case.label is None or (config.hd95 and case.spacing_mm is None):
        raise DataError(f"{case.name}", "no label" if case.label is None else "no voxel spacing",
                        "both, to be scored (hd95=false scores DSC alone)")
    return score(mask, case, dataset, config)


# %%
#| export
def _as_result(method: str, rows: list[dict[str, Any]], volumes: int, dataset: Dataset,
               config: Config) -> dict[str, Any]:
    "Scores in the form of a run's result file; the run's name holds a digest of the scores."
    named = {"dataset": config.dataset, "method": method, "fold": config.fold, "seed": config.seed}
    digest = hashlib.sha256(json.dumps([named, rows], sort_keys=True).encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")
    settings = named | {"hd95": config.hd95} | {f"data_{key}": value for key, value in config.data.items()}
    settings |= {"folder": config.decisive["folder"]} if "folder" in config.decisive else {}
    data = re.sub(r"[^\w.-]+", "_", str(settings.get("folder", ""))) or config.dataset
    return {"run": f"{data}-{slug}-fold{config.fold}-seed{config.seed}-elsewhere-{digest}", **named,
            "title": method, "profile": "elsewhere", "preset": "–", "checkpoint": "elsewhere",
            "test_volumes": volumes, "machine": "trained elsewhere", "train_seconds": 0, "differences": settings,
            "settings": settings, "data_source": dataset.source, "software": software(), "scored": True,
            "label_values": list(dataset.values), "cases": rows}


# %%
#| export
def result_report(
    result: dict[str, Any],  # of `score_predictions`
) -> str:  # several lines
    "The table of a result, under every policy for empty masks."
    tables = [format_table(summary_of(result, policy)).to_string() for policy in POLICIES]
    return "\n".join([result["run"], headline(result), "", *(f"{table}\n" for table in tables)])


# %% [markdown]
# **Check.** Two stand-ins for nnU-Net's masks: the truth itself scores 1, the truth moved by a pixel scores less. The
# result becomes a row beside our methods.

# %%
config = Config(fold=1, data_patients=5, data_seed=3)
masks = raw / "masks"
for case in hearts.cases(hearts.split(1)[1]):
    masks.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(case.label.T, case.affine), masks / f"{case.name}.nii.gz")
perfect = score_predictions(masks, hearts, config)
assert {row["dsc"] for row in perfect["cases"]} == {1.0} and len(perfect["cases"]) == 2 * 3 * len(POLICIES)


# %%
def moved(pixels):
    "The result of masks moved to the right."
    for case in hearts.cases(hearts.split(1)[1]):
        picture = nib.Nifti1Image(np.roll(case.label, pixels, 2).T, case.affine)
        nib.save(picture, masks / f"{case.name}.nii.gz")
    return score_predictions(masks, hearts, config, "nnU-Net (stand-in)")


result = moved(1)
write_json(result, raw / "results.json")
table = compare(read_results(raw), 1, dataset="phantom")
assert table.xs("nnU-Net (stand-in)").iloc[0][("dsc", "Avg", "ours_mean")] < 1
print(result_report(result))


# %% [markdown]
# ## Slide the mistake
#
# How far can masks move before the score shows it? A pixel of this phantom is 1.4 mm. Filled: the moved mask; outlined:
# the truth.

# %%
def plot_moved(axis, pixels):
    scores = pd.DataFrame(moved(pixels)["cases"]).query("policy == 'standard'").groupby("class").dsc.mean()
    case = next(hearts.cases(hearts.split(1)[1]))
    text = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
    draw(axis, case.image[3], label=np.roll(case.label, pixels, 2)[3], outline=case.label[3],
         title=f"moved by {pixels} px\n{text}")

interact(lambda pixels=2: plot_moved(panels(1, size=2.8)[1][0], pixels), pixels=(0, 12));

# %%
for axis, pixels in zip(panels(4, size=2.5)[1], (0, 1, 4, 8), strict=True):
    plot_moved(axis, pixels)


# %% [markdown]
# ## Exercises
#
# **1. Predict.** CHAOS has five classes, its unannotated pixels are 5 in this book. Which number do they get in
# `labelsTr`? And those of ACDC, with four classes and 4?

# %%
def check_numbers(answer):
    assert answer() == (5, 4)

def attempt_numbers():
    ...  # your code here

exercise(check_numbers, attempt_numbers, solution=lambda: (len(("bg", "liver", "right", "left", "spleen")), 4))


# %% [markdown]
# **2. Implement.** Every n-th *case* in file order is held out, the first included. How many patients (the first letter
# of a name) are then on both sides?

# %%
def check_leak(f):
    assert f(["a1", "a2", "b1", "b2", "c1"], 5) == 1 and f(["a1", "b1", "c1", "d1"], 2) == 0

def attempt_leak(names, every):
    ...  # your code here

def solve_leak(names, every):
    held = names[::every]
    return len({name[0] for name in held} & {name[0] for name in names if name not in held})

exercise(check_leak, attempt_leak, solve_leak)


# %% [markdown]
# **3. Break.** Make a folder of masks that has the right names and the right shapes, and yet is refused.

# %%
def check_refused(spoil):
    moved(0)
    spoil(masks)
    try:
        score_predictions(masks, hearts, config)
    except DataError:
        return
    raise AssertionError("it was scored")


# %%
def attempt_refused(folder):
    ...  # your code here

def solve_refused(folder):
    path = next(folder.glob("*.nii.gz"))
    picture = nib.load(path)
    nib.save(nib.Nifti1Image(np.full(picture.shape, 4, np.uint8), picture.affine), path)

exercise(check_refused, attempt_refused, solve_refused)

# %% [markdown]
# ## Recap
#
# `export_nnunet` writes a fold for nnU-Net, `check_nnunet` checks a folder against its rules, `score_predictions` gives
# masks from anywhere the form of a result, so that [the tables](60_tables.ipynb) show them. Surprising: of our intensity
# scaling, all but the cut disappears in nnU-Net's normalisation. [Next](63_statistics.ipynb): which differences between rows are real.
