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
# **How good is our method beside the tool that everybody would try first?** nnU-Net learns from scribbles too: pixels
# marked "ignore" do not count in its loss (Gotkowski et al. 2024). A fair answer needs the same patients, the same
# strokes, the same test volumes and the same ruler. This chapter writes the first three down and brings the masks to the
# fourth.

# %%
#| default_exp experiment.nnunet

# %%
#| export
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attenscribble.book import one_of
from attenscribble.data.datasets import SOURCES
from attenscribble.data.scans import Case, DataError, Dataset, _check_same_grid, read_nifti
from attenscribble.experiment.config import Config
from attenscribble.experiment.inference import as_picture, save_mask, save_volume
from attenscribble.experiment.metrics import POLICIES, format_table
from attenscribble.experiment.runs import headline, score, software, write_json
from attenscribble.experiment.tables import summary_of
from attenscribble.machine import write_whole
from attenscribble.method.objective import METHODS

# %%
import importlib.util
import subprocess
import sys
import tempfile

import nibabel as nib
import pandas as pd
from ipywidgets import interact

from attenscribble.book import class_legend, draw, exercise, panels
from attenscribble.data.phantom import phantom
from attenscribble.experiment.tables import compare, read_results
from attenscribble.experiment.nnunet import export_nnunet  # the finished function, for a first look

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
raw = Path(tempfile.mkdtemp())
place = export_nnunet(strange, raw, fold=1)
name = "patient002_frame01"
image, mask = (np.asarray(nib.load(place / part).dataobj).T for part in
               (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"))
case = strange.read("patient002")[0]
figure, axes = panels(4, size=2.5)
draw(axes[0], case.image[3], scribble=case.scribble[3], ignore=255, title="ours: unannotated is 255")
draw(axes[1], image[3], title="imagesTr/…_0000.nii.gz")
shown = axes[2].imshow(mask[3], cmap="viridis", vmin=0, vmax=4, interpolation="nearest")
axes[2].set_title("labelsTr/….nii.gz: ignore is 4", fontsize=9)
figure.colorbar(shown, ax=axes[2], ticks=range(5), shrink=0.7)
draw(axes[3], image[3], scribble=mask[3], ignore=4, title="the same strokes")
class_legend(figure, hearts.class_names, background=True)
assert (image == case.image).all() and sorted(np.unique(mask)) == [0, 1, 2, 3, 4]

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

# %% [markdown]
# **What is not there.** No dense label leaves the dataset: a test label that lies beside the training data is a
# mistake waiting to happen. To score, the dataset is opened again.
#
# **Inner folds.** Left alone, nnU-Net splits *cases*, and puts two frames of one heart on two sides of its validation.
# The file splits patients. Trained as `all`, nnU-Net uses every case in `imagesTr`, which is what our runs train on.

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
# Everything is checked while it is written to a hidden folder; the folder gets its name when all is well. A class without
# a single stroke on the training side is refused: nnU-Net would learn never to say it.

# %%
#| export
SPLITS = 5  # nnU-Net's own number of inner folds


def export_nnunet(
    dataset: Dataset,
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
    name = name or re.sub(r"[^A-Za-z0-9]", "", dataset.name.title())
    if not (1 <= number <= 999 and re.fullmatch(r"[A-Za-z0-9]+", name)):
        raise ValueError(f"number, name: found {number}, {name!r}, expected 1 to 999, letters and digits")
    place = Path(folder) / f"Dataset{number:03d}_{name}"
    if taken := sorted(Path(folder).glob(f"Dataset{number:03d}_*")):
        raise DataError(taken[0], "a dataset with this number", "another number, or none there")
    train, test = dataset.split(fold)
    content = describe_dataset(dataset, target, channels)

    def write(new: Path) -> None:
        seen, cases = Counter(), {}
        for case in dataset.cases(train):
            cases.setdefault(case.patient, []).append(case.name)
            _write_images(case, new / "imagesTr")
            seen.update(_write_target(case, dataset, target, new / "labelsTr"))
        if absent := [dataset.class_names[k] for k in range(dataset.classes) if not seen[k]]:
            raise DataError(f"{dataset.name}: fold {fold}: {target}", f"no pixel of {', '.join(absent)}",
                            "every class in some training case: nnU-Net would never predict it")
        for case in dataset.cases(test):
            _write_images(case, new / "imagesTs")
        write_json(content | {"numTraining": sum(map(len, cases.values()))}, new / "dataset.json")
        write_json(patient_splits(cases), new / "splits_final.json")

    write_whole(place, write)
    return place


def _write_images(case: Case, folder: Path) -> None:
    "One file a channel, CASE_0000.nii.gz and so on."
    if case.affine is None and case.spacing_mm is None:
        raise DataError(f"{case.name}: spacing_mm", None, "the voxel size: nnU-Net plans with it")
    if (folder / f"{case.name}_0000.nii.gz").exists():
        raise DataError(f"{case.name}", "a second case of this name", "each name once")
    for channel, image in enumerate(case.image[None] if case.image.ndim == 3 else case.image.swapaxes(0, 1)):
        save_volume(image, case, folder / f"{case.name}_{channel:04d}.nii.gz")


def _write_target(case: Case, dataset: Dataset, target: str, folder: Path) -> set[int]:
    "The mask with ignore as the highest value; the class ids in it."
    mask = getattr(case, target)
    if mask is None:
        raise DataError(f"{case.name}: {target}", "none", "one in every training case")
    if target == "scribble":
        mask = np.where(mask == dataset.ignore, np.uint8(dataset.classes), mask)
    save_mask(mask, case, folder / f"{case.name}.nii.gz")
    return set(np.unique(mask).tolist())


def describe_dataset(
    dataset: Dataset,
    target: str = "scribble",
    channels: Sequence[str] = (),
) -> dict[str, Any]:  # all of dataset.json but numTraining
    "What nnU-Net has to know, and whom to credit. Raises DataError for names that it reserves or that do not fit."
    names = ["background", *dataset.class_names[1:]]  # nnU-Net wants class 0 to have this name
    if len({*names, "ignore"}) < len(names) + 1:
        raise DataError(f"{dataset.name}: class_names", names[1:], "each once, none called background or ignore")
    labels = {name: class_id for class_id, name in enumerate(names)}
    if target == "scribble":
        labels["ignore"] = dataset.classes
    channels = list(channels) or [f"channel {k}" for k in range(dataset.channels)]
    if len(channels) != dataset.channels:
        raise DataError(f"{dataset.name}: channels", channels, f"a name for each of {dataset.channels}")
    licence = SOURCES[dataset.name].licence if dataset.name in SOURCES else dataset.source
    return {"channel_names": {str(k): name for k, name in enumerate(channels)}, "labels": labels,
            "file_ending": ".nii.gz", "name": dataset.name, "reference": dataset.source, "licence": licence,
            "description": f"{target}s, intensities cut at the scan's 99th percentile and scaled to [0, 1]"}


def patient_splits(
    cases: dict[str, list[str]],  # patient → names of its cases
) -> list[dict[str, list[str]]]:  # for each inner fold the cases to train on and to validate on
    "Inner folds that keep a patient's cases together: every fifth patient; a lone patient validates itself."
    patients = list(cases)
    count = min(SPLITS, len(patients))
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
# Its documentation says it in prose, its verifier in code. Here are the same demands as a function, so that a
# folder can be checked where nnU-Net is not installed.

# %%
#| export
def check_nnunet(
    place: Path | str,  # Dataset501_Name
) -> int:  # training cases
    """Whether a folder is what nnU-Net v2's documentation asks for. Raises DataError for the first thing that is not.

    Names, `dataset.json` with consecutive labels and ignore above them all, as many images a case as channels, masks
    of the images' grid with declared values only, finite intensities, inner folds over cases that exist."""
    place = Path(place)
    content = json.loads((place / "dataset.json").read_text())
    if not re.fullmatch(r"Dataset\d{3}_\w+", place.name):
        raise DataError(place, "another name", "Dataset, three digits, _Name")
    labels, channels = content["labels"], content["channel_names"]
    if list(labels.values()) != list(range(len(labels))) or labels.get("background") != 0:
        raise DataError(f"{place}: labels", labels, "background 0, then consecutive numbers")
    if "ignore" in labels and labels["ignore"] != max(labels.values()):
        raise DataError(f"{place}: labels: ignore", labels["ignore"], f"the highest, {max(labels.values())}")
    masks = {path.name.removesuffix(".nii.gz"): path for path in sorted((place / "labelsTr").iterdir())}
    images = sorted(path.name for path in (place / "imagesTr").iterdir())
    wanted = sorted(f"{name}_{int(k):04d}.nii.gz" for name in masks for k in channels)
    if images != wanted or len(masks) != content["numTraining"]:
        raise DataError(place / "imagesTr", f"{len(images)} files", f"{len(wanted)} of {content['numTraining']} cases")
    for name, path in masks.items():
        mask, header = read_nifti(path, flat=True)
        if strange := set(np.unique(mask).tolist()) - set(labels.values()):
            raise DataError(path, f"the values {sorted(strange)}", f"only {sorted(labels.values())}")
        for k in channels:
            image, scan = read_nifti(place / "imagesTr" / f"{name}_{int(k):04d}.nii.gz", flat=True)
            _check_same_grid(path, header, scan, True)
            if not np.isfinite(image).all():
                raise DataError(f"{name}: channel {k}", "NaN or infinity", "finite intensities")
    for split in json.loads((place / "splits_final.json").read_text()):
        if not split["train"] or not split["val"] or not {*split["train"], *split["val"]} <= set(masks):
            raise DataError(place / "splits_final.json", split, "cases of labelsTr on both sides")
    return len(masks)


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
# And the real verifier, where there is one:

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
# Three commands, in an environment of nnU-Net's own:
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
# A folder of masks is somebody's claim. Before a number is made of it: is every test case there, and no other? Does each mask lie on
# its scan's grid? Does it hold class ids only?

# %%
#| export
def read_predictions(
    folder: Path | str,  # CASE.nii.gz, as nnU-Net writes them
    dataset: Dataset,
    fold: int = 1,
) -> dict[str, tuple[Case, np.ndarray]]:  # name → case and mask [Z,Y,X] uint8 class ids, for every test case
    "Masks of a fold's test cases. Raises DataError for a missing or further one, another grid, or an unknown value."
    files = {path.name.removesuffix(".nii.gz"): path for path in sorted(Path(folder).glob("*.nii.gz"))}
    cases = {case.name: case for case in dataset.cases(dataset.split(fold)[1])}
    for what, names in (("no mask of", cases.keys() - files.keys()), ("a mask of", files.keys() - cases.keys())):
        if names:
            raise DataError(folder, f"{what} {', '.join(sorted(names)[:5])}",
                            f"one of each of the {len(cases)} test cases of fold {fold}")
    return {name: (case, _read_prediction(files[name], case, dataset.classes)) for name, case in cases.items()}


def _read_prediction(path: Path, case: Case, classes: int) -> np.ndarray:
    "One mask, in the book's order."
    volume, scan = read_nifti(path, flat=True)
    expected = as_picture(np.zeros(case.shape, np.uint8), case)
    expected = type(expected).from_bytes(expected.to_bytes())  # as a reader of it would see the grid
    if len(expected.shape) == len(scan.shape):
        _check_same_grid(path, scan, expected, True)
    mask = case.grid.take(volume.T) if case.grid else volume
    if mask.shape != case.shape:
        raise DataError(path, f"shape {mask.shape}", f"the scan's {case.shape}")
    if strange := sorted(set(np.unique(mask).tolist()) - set(range(classes))):
        raise DataError(path, f"the values {strange[:5]}", f"class ids, 0 to {classes - 1}")
    return mask.astype(np.uint8)


def score_predictions(
    folder: Path | str,  # CASE.nii.gz for every test case
    dataset: Dataset,
    config: Config,  # which fold, seed, and whether HD95
    method: str = "nnU-Net",  # its name in the tables
) -> dict[str, Any]:  # a result, as a training's
    """Score somebody's masks like a run's own. Raises what `read_predictions` raises, DataError for a dataset without
    labels or spacing, ValueError for the name of a method of ours."""
    if method in METHODS or not method.strip():
        raise ValueError(f"method: found {method!r}, expected a name that no method of this package has")
    if not dataset.scored:
        raise DataError(dataset.name, "no dense labels", "a dataset that can be scored")
    rows, cases = [], read_predictions(folder, dataset, config.fold)
    for case, mask in cases.values():
        if case.label is None or (config.hd95 and case.spacing_mm is None):
            raise DataError(f"{case.name}", "no label" if case.label is None else "no voxel spacing",
                            "both, to be scored (hd95=false scores DSC alone)")
        rows += score(mask, case, dataset, config)
    named = {"dataset": config.dataset, "method": method, "fold": config.fold, "seed": config.seed}
    digest = hashlib.sha256(json.dumps([named, rows], sort_keys=True).encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")
    settings = named | {"hd95": config.hd95} | {f"data_{key}": value for key, value in config.data.items()}
    return {"run": f"{config.dataset}-{slug}-fold{config.fold}-seed{config.seed}-elsewhere-{digest}", **named,
            "title": method, "profile": "elsewhere", "preset": "–", "checkpoint": "elsewhere",
            "test_volumes": len(cases), "machine": "trained elsewhere", "train_seconds": 0, "differences": settings,
            "settings": settings, "data_source": dataset.source, "software": software(), "scored": True,
            "label_values": list(dataset.values), "cases": rows}


def result_report(
    result: dict[str, Any],  # of `score_predictions`
) -> str:
    "The table of a result, under every policy for empty masks."
    tables = [format_table(summary_of(result, policy)).to_string() for policy in POLICIES]
    return "\n".join([result["run"], headline(result), "", *(f"{table}\n" for table in tables)])


# %% [markdown]
# **Check.** Stand-ins for nnU-Net, since it is a guest here: the truth itself scores 1, the truth moved by a pixel less. The result
# becomes a row beside our own methods.

# %%
config = Config.from_flat(fold=1, data_patients=5, data_seed=3)
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
# How far may masks move before the score tells? A pixel of this phantom is 1.4 mm. Filled: the moved mask; outlined: the truth.

# %%
def plot_moved(axis, pixels):
    scores = pd.DataFrame(moved(pixels)["cases"]).query("policy == 'standard'").groupby("class").dsc.mean()
    case = next(hearts.cases(hearts.split(1)[1]))
    said = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
    draw(axis, case.image[3], label=np.roll(case.label, pixels, 2)[3], outline=case.label[3],
         title=f"moved by {pixels} px\n{said}")

interact(lambda pixels=2: plot_moved(panels(1, size=2.8)[1][0], pixels), pixels=(0, 12));

# %%
for axis, pixels in zip(panels(4, size=2.5)[1], (0, 1, 4, 8), strict=True):
    plot_moved(axis, pixels)


# %% [markdown]
# ## Exercises
#
# **1. Predict.** CHAOS has five classes, its unannotated pixels are 5 in this book. Which number do they get in `labelsTr`? And ACDC's
# four classes with 4?

# %%
def check_numbers(answer):
    assert answer() == (5, 4)

def attempt_numbers():
    ...  # your code here

exercise(check_numbers, attempt_numbers, solution=lambda: (len(("bg", "liver", "right", "left", "spleen")), 4))


# %% [markdown]
# **2. Implement.** Somebody holds out every n-th *case* in file order, the first included. How many patients (the first letter of
# a name) lie on both sides?

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
# `export_nnunet` writes a fold for nnU-Net, `check_nnunet` holds a folder to its rules, `score_predictions` gives masks
# from anywhere the form of a result, so that [the tables](45_tables.ipynb) show them. Surprising: of our intensity scaling, all
# but the cut disappears in nnU-Net's own.
