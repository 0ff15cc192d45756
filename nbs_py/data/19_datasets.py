# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Datasets by name
#
# > One call from a name to a dataset, wherever it lies; and if it is not there, how to get it.
#
# How can one command open the same dataset on every machine? A run should work on a laptop without data, on a
# colleague's computer and on a cluster, although the files lie somewhere else on each. This chapter looks a name such
# as `"acdc"` up in the usual folders, calls the right loader, and says how to get the data where it is missing.

# %%
#| default_exp data.datasets

# %%
#| export
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from platformdirs import user_data_dir

from attenscribble.basics.errors import DataError, one_of
from attenscribble.data.chaos import ARCHIVE, chaos
from attenscribble.data.folder import folder
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import Dataset, acdc, in_folder, wsl4mis

# %%
import tempfile
from itertools import pairwise, product
from unittest.mock import patch

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.basics.drawing import class_legend, draw, panels

# %% [markdown]
# ## The answer, as a picture
#
# A name leads to a folder, a folder to a loader, and every loader gives a `Dataset`. To the right of it, no line of
# this book knows where an image came from. Orange: this chapter. Blue: the other chapters, by number.

# %%
FLOW = (["open_dataset\n(19)"],
        ["phantom (13, drawn)", "acdc (11, NIfTI)", "wsl4mis (11, HDF5)", "chaos (16, DICOM)", "folder (17, yours)"],
        ["Dataset\n→ Case (11)"], ["slices,\nbatches (20)"], ["network,\nlosses (30–37)"],
        ["masks (53),\nDSC, HD95 (54)"])

def box(axis, x, y, text, colour):
    style = {"boxstyle": "round,pad=0.4", "facecolor": colour, "edgecolor": "gray"}
    return axis.text(x, y, text, ha="center", va="center", fontsize=9, bbox=style)

def arrow(axis, start, end):
    patches = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
    axis.annotate("", end.get_position(), start.get_position(), arrowprops={"arrowstyle": "->", **patches})


# %%
def plot_flow():
    "The way of the data through the book, left to right."
    axis = plt.figure(figsize=(10, 2.8), layout="constrained").add_subplot(xlim=(-0.5, 5.5), ylim=(-2, 2))
    axis.set_axis_off()
    colours = ["#E69F00"] + ["#D6ECFA"] * 5
    boxes = [[box(axis, x, 0.8 * ((len(names) - 1) / 2 - row), name, colours[x]) for row, name in enumerate(names)]
             for x, names in enumerate(FLOW)]
    for here, there in pairwise(boxes):
        for start, end in product(here, there):
            arrow(axis, start, end)
    arrow(axis, box(axis, 0, -1.3, "root, or\n$ATTENSCRIBBLE_DATA,\nor the user's folder", "white"), boxes[0][0])

plot_flow()


# %% [markdown]
# ## The obvious way, and how it fails
#
# | what | variable | form |
# |---|---|---|
# | the name | `name` | "phantom", "acdc", "wsl4mis", "chaos", "folder" |
# | where the data is | `root` | a folder; the dataset's own, or one that holds several |
# | what the loader takes besides | `options` | keywords, such as `patients=5` |

# %%
def open_naive(name, root="data"):
    "A branch per dataset, a path per branch."
    if name == "acdc":
        return acdc(Path(root) / "acdc" / "training")
    if name == "wsl4mis":
        return wsl4mis(Path(root) / "wsl4mis")

assert open_naive("acdcs") is None  # a typo is no error here, but a puzzle two files later


# %% [markdown]
# This has three faults. A typo gives None. A folder one level too high or too low gives an error about patients, not
# about folders. And nothing tells a newcomer where to get the data, and under which licence.

# %% [markdown]
# ## One entry per dataset
#
# An entry says below which folders a dataset may lie, by which files it is recognised, who reads it and who made it. A
# new dataset is a new entry, without new code.

# %%
#| export
@dataclass(frozen=True)
class Source:
    "Where a dataset comes from: how it is found, read, obtained and credited."

    name: str  # "acdc"
    about: str  # one line
    build: Callable[..., Dataset]  # takes the folder found (nothing if `folders` is empty), then the options
    folders: tuple[str, ...] = ()  # where to look below the data folder, best first; "." is the folder itself
    patterns: tuple[str, ...] = ()  # glob patterns: a folder in which one matches, or a zip that does, is the dataset
    obtain: str = ""  # how to get it
    licence: str = ""  # of images, labels, scribbles


# %% [markdown]
# **The phantom** needs no files. **ACDC** is read as its authors publish it, with scribbles from another source.

# %%
#| export
_PHANTOM = Source("phantom", "hearts drawn by a formula, with labels and scribbles: no download, no patient", phantom,
                  obtain="nothing to get", licence="that of this package")
_ACDC = Source(
    "acdc", "cardiac cine MR, 100 patients, two frames each, NIfTI", acdc,
    ("acdc/training", "acdc", "acdc/database/training", "training", "database/training", "."),
    ("patient*/patient*_frame*.nii*",),
    "images and labels: register at https://www.creatis.insa-lyon.fr/Challenge/acdc, download the training set "
    "(data_testing=true tests the testing set, unpacked beside it); "
    "scribbles: attenscribble download acdc-scribbles, or DATA/acdc_scribbles.zip of "
    "https://github.com/gvalvano/multiscale-adversarial-attention-gates, unpacked beside the images or given as "
    "scribbles=…",
    "images and labels CC BY-NC-SA 4.0 (Bernard et al., IEEE TMI 2018); "
    "scribbles Apache-2.0 (Valvano et al., IEEE TMI 2021)")


# %% [markdown]
# **WSL4MIS** holds the same hearts as HDF5 files, which lack the voxel size. If a table `spacing_mm.json` lies beside
# them, or in a neighbouring `acdc` folder, it is used without asking; an explicit `spacing` wins.

# %%
#| export
def _wsl4mis(folder: Path, spacing: Path | str | None = None) -> Dataset:
    "The HDF5 loader, with the table of voxel sizes if one lies near."
    tables = [near / table for near in (folder, *folder.resolve().parents[:3])
              for table in ("spacing_mm.json", "acdc/spacing_mm.json")]
    return wsl4mis(folder, spacing or next((table for table in tables if table.is_file()), None))


_WSL4MIS = Source(
    "wsl4mis", "ACDC with scribbles as prepared by the WSL4MIS benchmark, HDF5", _wsl4mis,
    ("wsl4mis_h5", "wsl4mis", "wsl4mis/data/ACDC", "WSL4MIS/data/ACDC", "data/ACDC", "."),
    ("patient*_frame*.h5", "ACDC_training_*/patient*_frame*.h5"),
    "clone https://github.com/HiLab-git/WSL4MIS; the files are in data/ACDC",
    "code MIT (Luo et al., MICCAI 2022); the images and scribbles inside keep the licences of ACDC")

# %% [markdown]
# **CHAOS** and **your own folder**, each with the layouts that chapters 16 and 17 read.

# %%
#| export
_CHAOS = Source(
    "chaos", "abdominal MR, 20 patients, T1-DUAL in and out of phase and T2-SPIR, DICOM; no scribbles", chaos,
    ("chaos", "CHAOS", ".", "chaos_t2spir"),
    (ARCHIVE, "Train_Sets/MR", "CHAOS_Train_Sets/Train_Sets/MR", "MR/*/T1DUAL", "*/T1DUAL", "*/T2SPIR",
     "image_[0-9]*.nii*"),
    "attenscribble download chaos, or CHAOS_Train_Sets.zip of https://zenodo.org/records/3431873, zipped or not",
    "CC BY-NC-SA 4.0 (Kavur et al., Medical Image Analysis 2021)")
_FOLDER = Source(
    "folder", "your own NIfTI scans and scribbles, any modalities and labels; give it as root", folder, (".",),
    ("images/*.nii*", "imagesTr/*.nii*", "*[_-]scribble*.nii*", "*[_-]label*.nii*",
     "*[_-]gt.nii*"),
    "draw scribbles in ITK-SNAP (https://www.itksnap.org), 3D Slicer or MITK and save them as NIfTI: "
    "images/NAME.nii.gz and scribbles/NAME.nii.gz, as chapter 17 says", "yours")
SOURCES = {source.name: source for source in (_PHANTOM, _ACDC, _WSL4MIS, _CHAOS, _FOLDER)}


# %% [markdown]
# ## Looking for it
#
# With `root` given, only there: a mistyped folder must not silently become another copy of the data. Otherwise first in
# `$ATTENSCRIBBLE_DATA`, then in the user's data folder of the operating system.

# %%
#| export
def user_folder() -> Path:
    "The user's data folder of the operating system: where downloads go, and the last place that is searched."
    return Path(user_data_dir("attenscribble"))


def _places(source: Source, root: Path | str | None) -> list[Path]:
    "Where a dataset may lie, in the order of the search."
    bases = [root] if root else [base for base in (os.environ.get("ATTENSCRIBBLE_DATA"), user_folder()) if base]
    return [Path(base).expanduser() / below for base in bases for below in source.folders]


# %%
#| export
def _is_dataset(place: Path, patterns: tuple[str, ...]) -> bool:
    "Whether a place is a zip of such a name, or a folder that holds such a file."
    if place.is_file() and any(place.match(pattern) for pattern in patterns):
        return True
    any_case = (pattern.replace(".nii", ".[nN][iI][iI]").replace(".h5", ".[hH]*5") for pattern in patterns)  # and .hdf5
    return any(True for pattern in any_case for _ in place.glob(pattern))


# %%
#| export
def find_dataset(
    name: str,  # one of `SOURCES`
    root: Path | str | None = None,  # the dataset's folder, its zip, or one that holds several; else as above
) -> Path | None:  # its folder or zip; None for a dataset that needs no files
    """Where a dataset lies: in `root` if given, else in $ATTENSCRIBBLE_DATA or the user's data folder.

    Raises DataError naming all folders searched and how to get the data; ValueError for an unknown name."""
    source = SOURCES[one_of("dataset", name, SOURCES)]
    if not source.folders:
        return None
    places = _places(source, root)
    if root:
        in_folder(Path(root).expanduser())  # one that cannot be read is not an empty one
    if found := next((place for place in places if _is_dataset(place, source.patterns)), None):
        return found
    raise _missing(source, places)


# %%
#| export
def _missing(source: Source, places: list[Path]) -> DataError:
    "The error that names the folders searched and the way to the data."
    searched = "".join(f"\n  {place}" for place in places)
    return DataError(f"{source.name}: found no {' or '.join(source.patterns)} in any of{searched}\n"
                     f"To get it: {source.obtain}.\nLicence: {source.licence}.\n"
                     "Then give its folder as root, or set ATTENSCRIBBLE_DATA.")


# %%
#| export
def open_dataset(
    name: str,  # "phantom", "acdc", "wsl4mis", "chaos", "folder"
    root: Path | str | None = None,  # as in `find_dataset`, or a pack; the phantom needs none and ignores folders
    **options: object,  # of the loader: patients=… of the phantom, sequence=… of chaos, `FolderOptions` of folder
) -> Dataset:  # nothing of it is read yet
    "A dataset by its name. Raises what `find_dataset` and the loader raise; TypeError for an unknown option."
    if root and _is_pack(name, Path(root).expanduser()):
        return _open_pack(name, Path(root).expanduser(), options)
    place = find_dataset(name, root)
    build = SOURCES[name].build
    return build(**options) if place is None else build(place, **options)


# %% [markdown]
# **A pack** of [chapter 22](22_pack.ipynb) holds a whole dataset in one zip, and as a root it stands for the folder. It
# is the one place where a chapter reaches for a later one, by name, when a pack is opened: all others come to their data
# through here. What was decided when it was packed cannot be chosen again.

# %%
#| export
def _is_pack(name: str, path: Path) -> bool:
    "Whether a root is a zip, and not the one in which the dataset is published."
    source = SOURCES[one_of("dataset", name, SOURCES)]
    if not path.is_file() or any(path.match(pattern) for pattern in source.patterns):
        return False
    with path.open("rb") as file:
        return path.suffix == ".zip" or file.read(2) == b"PK"


# %%
#| export
def _open_pack(name: str, path: Path, options: dict[str, object]) -> Dataset:
    "A pack as the dataset of this name. Raises DataError if it holds another, or was packed with other options."
    dataset: Dataset = import_module("attenscribble.data.pack").pack(path)
    if name != dataset.name and (name != "folder" or dataset.name in SOURCES):
        raise DataError(path, f"a pack of the dataset {dataset.name!r}", f"one of {name!r}")
    packed = dataset.reading | dataset.options
    for option, value in options.items():
        if option not in packed or packed[option] != value:
            known = repr(packed[option]) if option in packed else "none"
            raise DataError(f"{path}: option {option}", repr(value), f"{known}, as when it was packed")
    return dataset


# %% [markdown]
# ## Check: a folder made by hand
#
# One case of 2×2×2 voxels, three levels down. Each of these roots must lead to it, and the error for a wrong name or a
# wrong folder must say what to do.

# %%
data = Path(tempfile.mkdtemp())
deep = data / "acdc" / "training" / "patient001"
deep.mkdir(parents=True)
nib.save(nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4)), deep / "patient001_frame01.nii.gz")

for root in (data, data / "acdc", data / "acdc" / "training"):
    assert find_dataset("acdc", root) == deep.parent
with patch.dict(os.environ, ATTENSCRIBBLE_DATA=str(data)):
    (case,) = open_dataset("acdc").cases()
assert case.name == "patient001_frame01" and case.image.max() == 1 and case.scribble is None

# %%
for name, words in (("acdcs", "did you mean 'acdc'?"), ("wsl4mis", "To get it: clone")):
    try:
        open_dataset(name, data)
    except ValueError as error:  # DataError is one
        assert words in str(error)
        print(f"{error}\n")


# %% [markdown]
# ## What there is
#
# `datasets` lists the entries, and where each lies on this machine.

# %%
#| export
def datasets(
    root: Path | str | None = None,  # as in `find_dataset`
) -> list[dict[str, str]]:  # name, about, folder ("" if not found, "generated" if not needed), obtain, licence
    "All datasets, one row each, and where they were found. Never raises for a missing one."
    def where(name: str) -> str:
        try:
            return str(find_dataset(name, root) or "generated")
        except DataError:
            return ""

    return [{"name": name, "about": source.about, "folder": where(name), "obtain": source.obtain,
             "licence": source.licence} for name, source in SOURCES.items()]


# %%
table = pd.DataFrame(datasets(data)).set_index("name")
assert list(table.folder) == ["generated", str(deep.parent), "", "", ""]
table[["about", "licence"]]

# %% [markdown]
# ## Real data: what is on this machine
#
# The number of patients by dataset, and for the first case whether its voxel size is known. It says nothing about the
# content of the files, which are read and checked when they are asked for.

# %%
for row in datasets():
    if row["folder"]:
        dataset = open_dataset(row["name"])
        case = next(dataset.cases())
        print(f"{dataset.name}: {len(dataset.patients)} patients; {case.name} {case.image.shape}, {case.spacing_mm} mm")
    else:
        print(f"{row['name']}: skipped, not on this machine")


# %% [markdown]
# ## Options are passed on
#
# What `open_dataset` does not know it passes on to the loader. For the phantom that is a seed: another seed, another
# patient, and two readers look at the same heart without exchanging a file.

# %%
def plot_phantom(seeds):
    "One slice of the first phantom patient, for each seed."
    figure, axes = panels(len(seeds))
    for axis, seed in zip(axes, seeds, strict=True):
        dataset = open_dataset("phantom", patients=1, seed=seed)
        case = next(dataset.cases())
        z = len(case.image) // 2
        draw(axis, case.image[z], scribble=case.scribble[z], ignore=dataset.ignore, spacing_mm=case.spacing_mm[1:],
             title=f"seed {seed}")
    class_legend(figure, dataset.class_names, background=True)

plot_phantom([0, 1, 2, 3])

# %%
interact(lambda seed=0: plot_phantom([seed]), seed=(0, 20));


# %% [markdown]
# ## Exercises
#
# **1.** Find the first existing folder of a list, or None.

# %%
def check_first(first):
    assert first([data / "nowhere", data / "acdc", data]) == data / "acdc"
    assert first([data / "nowhere"]) is None

def my_first(folders):
    return folders[0]  # improve this

exercise(check_first, my_first, solution=lambda folders: next((f for f in folders if f.is_dir()), None))


# %% [markdown]
# **2.** Add a dataset: a `Source` named "two" that needs no files and gives a phantom of two patients.

# %%
def check_source(make):
    with patch.dict(SOURCES, two=make()):
        assert len(open_dataset("two").patients) == 2 and datasets()[-1]["name"] == "two"

def my_source():
    return Source("two", "two phantom patients", build=None)  # improve this

exercise(check_source, my_source, solution=lambda: Source("two", "two phantom patients", lambda: phantom(patients=2)))


# %% [markdown]
# **3.** Somebody split *cases* at random into train and test. List the patients that ended up on both sides.

# %%
def check_leaks(leaks):
    assert leaks(["p1_f01", "p2_f01"], ["p1_f12", "p3_f01"]) == {"p1"}
    assert leaks(["p1_f01"], ["p2_f01"]) == set()

def my_leaks(train, test):
    return set(train) & set(test)  # improve this

def solution_leaks(train, test):
    return {name.split("_")[0] for name in train} & {name.split("_")[0] for name in test}

exercise(check_leaks, my_leaks, solution_leaks)

# %% [markdown]
# ## Recap
#
# Exported: `open_dataset`, `find_dataset`, `datasets`, `user_folder`, and `SOURCES` with one `Source` per dataset. What
# may surprise: if a root is given, no other place is searched. [The next chapter](20_batches.ipynb) turns cases into
# batches, and [chapter 21](21_download.ipynb) fetches the data that is free.
