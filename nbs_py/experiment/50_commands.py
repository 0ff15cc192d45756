# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Commands
#
# > What there is, what is wrong with it, and masks for new scans: asked from a terminal.
#
# **The question.** Which names may stand behind `-p method`, `-p dataset` and `-p profile`, and whom do they credit?
# And what if somebody has a folder of scans and does not write code?
#
# ```bash
# attenscribble methods                    # every method: name, title, source
# attenscribble datasets                   # every dataset: what it is, where it lies on this machine, how to get it
# attenscribble profiles                   # how much each profile computes
# attenscribble download chaos             # get a dataset, or go on with it, and verify it
#
# attenscribble check my-scans             # what is wrong with my scans and scribbles?
# attenscribble train dataset=folder root=my-scans           # learn from them, as train.ipynb does
# attenscribble predict --checkpoint runs/RUN scans masks    # a mask for every new scan
#
# attenscribble export-nnunet acdc $nnUNet_raw fold=1        # the same patients and strokes for nnU-Net
# attenscribble score acdc masks fold=1 archive=results      # its masks as a row of our tables
# ```

# %%
#| default_exp experiment.commands

# %%
#| export
import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from attenscribble.data.datasets import SOURCES, datasets
from attenscribble.data.download import DOWNLOADS, download
from attenscribble.data.scans import DataError
from attenscribble.experiment.check import check
from attenscribble.experiment.config import PROFILES, Config
from attenscribble.experiment.inference import predict_files
from attenscribble.experiment.nnunet import export_nnunet, result_report, score_predictions
from attenscribble.experiment.runs import run_experiment, settle, write_json
from attenscribble.method.objective import METHODS

# %%
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import nibabel as nib
import numpy as np

from attenscribble.book import exercise
from attenscribble.data.phantom import phantom


# %% [markdown]
# ## Lists that cannot be out of date
#
# All lists are read off the registries that training itself uses.

# %%
#| export
def columns(
    rows: Sequence[Sequence[str]],
) -> str:  # one line a row, columns aligned
    "Rows of text as a table for the terminal."
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def list_methods() -> str:
    "Every registered method: name, title in the tables, loss terms, source."
    return columns([(m.name, m.title, " + ".join(t.name for t in m.terms), m.source) for m in METHODS.values()])


def list_datasets() -> str:
    "Every dataset: name, what it is, and its folder on this machine or how to get it."
    return columns([(row["name"], row["about"], row["folder"] or f"not here; {row['obtain']}") for row in datasets()])


# %%
print(list_methods())


# %%
#| export
def list_profiles() -> str:
    "Every profile: name and the settings it fills in."
    return columns([(name, ", ".join(f"{k}={v}" for k, v in fills.items())) for name, fills in PROFILES.items()])


LISTS = {"methods": list_methods, "datasets": list_datasets, "profiles": list_profiles}

# %% [markdown]
# ## Commands that work
#
# Each is a function that adds its own arguments to a parser and gives back what to run. What data or settings lack ends
# with status 1 and one line on the error stream; a word that is no command or argument, with status 2 and the choices.

# %%
#| export
Run = Callable[[argparse.Namespace], int | None]  # exit status; None is 0


def pairs(words: Sequence[str]) -> dict[str, str]:
    "NAME=VALUE words. Raises ValueError for a word without an equals sign."
    if bare := [word for word in words if "=" not in word]:
        raise ValueError(f"found {bare[0]!r}, expected NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def count(text: str) -> int:
    "A whole number, at least 1."
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, at least 1")
    return int(text)


def add_train(parser: argparse.ArgumentParser) -> Run:
    "one run without a notebook; under torchrun, all its processes train together"
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="a parameter of train.ipynb, such as seed=1")

    def run(given: argparse.Namespace) -> None:
        if outcome := run_experiment(Config.from_flat(**pairs(given.settings))):
            print(f"{outcome.report()}\n{outcome.files()}")

    return run


def add_download(parser: argparse.ArgumentParser) -> Run:
    "get a dataset and verify it; a download that was cut goes on"
    parser.add_argument("name", metavar="NAME", choices=sorted({*DOWNLOADS, *SOURCES}),
                        help=f"{', '.join(DOWNLOADS)}; for the others it says where to get them")
    parser.add_argument("--to", metavar="FOLDER", help="data folder; the user data folder unless told")

    def run(given: argparse.Namespace) -> None:
        if given.name in SOURCES and not SOURCES[given.name].folders:
            print(f"{given.name}: {SOURCES[given.name].obtain}")
            return
        place, entry = download(given.name, given.to), DOWNLOADS[given.name]
        print(f"{place}\nLicence: {entry.licence}\nNext, in the folder nbs: {entry.then.format(folder=place)}")

    return run


def add_check(parser: argparse.ArgumentParser) -> Run:
    "look for everything that is wrong with a folder of scans and scribbles"
    parser.add_argument("folder", metavar="FOLDER", help="with images/, scribbles/, perhaps labels/ and dataset.json")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE",
                        help="an option of the folder, such as ignore=255 or axis=coronal")

    def run(given: argparse.Namespace) -> int:
        report = check(given.folder, **pairs(given.options))
        print(report)
        return 0 if report.fine else 1

    return run


def add_predict(parser: argparse.ArgumentParser) -> Run:
    "segment scans with a trained network"
    parser.add_argument("source", metavar="IN", help="a NIfTI file, or a folder of them")
    parser.add_argument("target", metavar="OUT", help="the mask's file for a single scan, or a folder")
    parser.add_argument("--checkpoint", required=True, metavar="C", help="checkpoint.pt, or a run folder that holds it")
    parser.add_argument("--batch", type=count, default=16, metavar="N", help="slices at a time (16)")
    for name, text in (("probabilities", "also write a probability map a class"),
                       ("uncertainty", "also write the entropy of the classes, 0 to 1"),
                       ("flips", "average over mirror images, where the training used them"),
                       ("overwrite", "replace masks that are there already")):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")

    def run(given: argparse.Namespace) -> int:
        masks = predict_files(given.checkpoint, given.source, given.target, batch_size=given.batch, device=given.device,
                              probabilities=given.probabilities, uncertainty=given.uncertainty, flips=given.flips,
                              overwrite=given.overwrite)
        print(f"{len(masks)} masks in {masks[0].parent}" if len(masks) > 1 else masks[0])
        return 0

    return run


SETTINGS = {"nargs": "*", "metavar": "NAME=VALUE", "help": "fold, root or an option of the dataset, as for train"}


def add_export(parser: argparse.ArgumentParser) -> Run:
    "write a fold of a dataset in nnU-Net's raw format, with its ignore label"
    parser.add_argument("dataset", metavar="DATASET", help="one of those that the command datasets lists")
    parser.add_argument("folder", metavar="OUT", help="nnU-Net's folder nnUNet_raw")
    parser.add_argument("settings", **SETTINGS)
    parser.add_argument("--number", type=count, default=501, metavar="N", help="nnU-Net's dataset ID (501)")
    parser.add_argument("--target", default="scribble", help="scribble, or label: dense, as an upper bound")

    def run(given: argparse.Namespace) -> None:
        config, dataset = settle(Config.from_flat(**{**pairs(given.settings), "dataset": given.dataset}))
        print(export_nnunet(dataset, given.folder, fold=config.fold, number=given.number, target=given.target))

    return run


def add_score(parser: argparse.ArgumentParser) -> Run:
    "score masks that were made elsewhere, and write a result as a training does"
    parser.add_argument("dataset", metavar="DATASET", help="whose test cases these are")
    parser.add_argument("folder", metavar="MASKS", help="with CASE.nii.gz for every test case of the fold")
    parser.add_argument("settings", **SETTINGS)
    parser.add_argument("--method", default="nnU-Net", metavar="NAME", help="of the row in the tables (nnU-Net)")

    def run(given: argparse.Namespace) -> None:
        config, dataset = settle(Config.from_flat(**{**pairs(given.settings), "dataset": given.dataset}))
        result = score_predictions(given.folder, dataset, config, given.method)
        folder = Path(config.archive or given.folder)
        print(f"{result_report(result)}\n{write_json(result, folder / (result['run'] + '.json'))}")

    return run


ACTIONS = {"train": add_train, "download": add_download, "check": add_check, "predict": add_predict,
           "export-nnunet": add_export, "score": add_score}


def main(
    arguments: Sequence[str] | None = None,  # of the command line; None: the program's own
) -> int:  # exit status
    "The command `attenscribble`. A wrong word ends with status 2 and the choices, what cannot be had with status 1."
    parser = argparse.ArgumentParser(prog="attenscribble", description="Scribble-supervised segmentation.",
                                     epilog="To train in a notebook: papermill train.ipynb -p dataset acdc.")
    parts = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function in LISTS.items():
        part = parts.add_parser(name, help=function.__doc__.split(":")[0].lower())
        part.set_defaults(run=lambda given, function=function: print(function()))
    for name, add in ACTIONS.items():
        part = parts.add_parser(name, help=add.__doc__, description=add.__doc__)
        part.set_defaults(run=add(part))
    given = parser.parse_args(arguments)
    try:
        return given.run(given) or 0
    except (DataError, ValueError) as error:
        print(f"attenscribble: {error}", file=sys.stderr)
        return 1


# %%
def command(*words):
    "Status, standard output, error stream."
    with redirect_stdout(StringIO()) as said, redirect_stderr(StringIO()) as complained:
        status = main(list(words))
    return status, said.getvalue(), complained.getvalue()


status, said, _ = command("methods")
assert status == 0 and len(said.splitlines()) == len(METHODS) and said.startswith("fully")

# %% [markdown]
# What only its owners give out is not pretended to be had: the way to it goes to the error stream, and the status says no.

# %%
status, _, complaint = command("download", "acdc")
assert status == 1 and "register at" in complaint
print(complaint)

# %% [markdown]
# A folder with one heart, its scribble under another name: the check says so, with status 1.

# %%
with tempfile.TemporaryDirectory() as folder:
    heart = next(phantom(patients=1, side=48, slices=3).cases())
    for kind, name, volume in (("images", "a", heart.image), ("scribbles", "b", heart.scribble)):
        Path(folder, kind).mkdir()
        nib.save(nib.Nifti1Image(np.ascontiguousarray(volume.T), np.diag([1.5, 1.5, 10, 1])),
                 Path(folder, kind, f"{name}.nii.gz"))
    status, report, _ = command("check", folder, "ignore=4")
    assert status == 1 and "b.nii.gz: found no image of that name" in report
    status, _, complaint = command("predict", "--checkpoint", folder, folder, f"{folder}/masks")
    assert status == 1 and "checkpoint.pt: found no checkpoint" in complaint and not Path(folder, "masks").exists()
print(complaint.replace(folder, "…"))

# %% [markdown]
# Out to nnU-Net and back, with masks that call everything background: a row of zeros, but a row.

# %%
with tempfile.TemporaryDirectory() as folder:
    status, place, _ = command("export-nnunet", "phantom", folder, "fold=1")
    Path(folder, "masks").mkdir()
    for path in Path(place.strip(), "imagesTs").iterdir():
        empty = nib.load(path)
        mask = nib.Nifti1Image(np.zeros(empty.shape, np.uint8), empty.affine)
        nib.save(mask, Path(folder, "masks", path.name.replace("_0000", "")))
    status, said, _ = command("score", "phantom", f"{folder}/masks", f"archive={folder}/results")
    assert status == 0 and len(list(Path(folder, "results").iterdir())) == 1
    status, _, complaint = command("score", "phantom", f"{folder}/masks", "fold=2")
    assert status == 1 and "no mask of patient003" in complaint
print(said.replace(folder, "…"))


# %% [markdown]
# ## Exercises
#
# **1. Implement** a list of those methods that need no second network and no guessed labels.

# %%
def check_simple(f):
    names = f()
    assert "pce" in names and "ours" in names and "ustm" not in names and "random-walker" not in names

def my_simple():
    return list(METHODS)  # improve this

exercise(check_simple, my_simple, solution=lambda: [m.name for m in METHODS.values() if not (m.teacher or m.pseudo)])

# %% [markdown]
# ## Recap
#
# `main` is the command `attenscribble`; its lists come from the registries, its downloads from
# [chapter 19](../data/19_download.ipynb), `check` from [chapter 38](38_check.ipynb), `predict` from
# [chapter 42](42_inference.ipynb), `export-nnunet` and `score` from [chapter 49](49_nnunet.ipynb).
