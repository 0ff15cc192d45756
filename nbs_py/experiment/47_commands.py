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
# attenscribble check my-scans                                  # what is wrong with my scans and scribbles?
# papermill train.ipynb -p dataset folder -p root my-scans      # in the folder nbs: learn from them
# attenscribble predict --checkpoint ../runs/RUN new-scans masks  # a mask for every new scan
#
# attenscribble methods     # every method: name, title, source
# attenscribble datasets    # every dataset: what it is, where it was found on this machine, how to get it
# attenscribble profiles    # how much each profile computes
# ```

# %%
#| default_exp experiment.commands

# %%
#| export
import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from attenscribble.experiment.check import check
from attenscribble.data.datasets import datasets
from attenscribble.data.scans import DataError
from attenscribble.experiment.config import PROFILES
from attenscribble.experiment.inference import predict_files
from attenscribble.method.objective import METHODS

# %%
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

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


COMMANDS = {"methods": list_methods, "datasets": list_datasets, "profiles": list_profiles}


# %% [markdown]
# ## Commands that work
#
# Each is a function that adds its own arguments and says what to run. What can go wrong with data ends with status 1
# and one line on standard error; what can go wrong with typing, with status 2.

# %%
#| export
def setting(pair: Sequence[str]) -> tuple[str, Any]:
    "NAME VALUE as papermill takes them: numbers and true values become what they say, all else is text."
    name, text = pair
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def count(text: str) -> int:
    "A whole number, at least 1."
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, at least 1")
    return int(text)


def add_check(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    "look for everything that is wrong with a folder of scans and scribbles"
    parser.add_argument("folder", help="with images/, scribbles/, perhaps labels/ and dataset.json")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="options",
                        help="an option of the folder, such as -p ignore 255 or -p axis coronal")

    def run(given: argparse.Namespace) -> int:
        report = check(given.folder, **dict(map(setting, given.options)))
        print(report)
        return 0 if report.fine else 1

    return run


def add_predict(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
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


ACTIONS = {"check": add_check, "predict": add_predict}


def main(
    arguments: Sequence[str] | None = None,  # of the command line; None: the program's own
) -> int:  # exit status
    "The command `attenscribble`. Bad data ends with status 1, a wrong name or argument with status 2 and the choices."
    parser = argparse.ArgumentParser(prog="attenscribble", description="Scribble-supervised segmentation.",
                                     epilog="To train: papermill train.ipynb -p dataset acdc, in the folder nbs.")
    parts = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add in ACTIONS.items():
        part = parts.add_parser(name, help=add.__doc__, description=add.__doc__)
        part.set_defaults(run=add(part))
    for name, function in COMMANDS.items():
        part = parts.add_parser(name, help=function.__doc__.split(":")[0].lower())
        part.set_defaults(run=lambda given, function=function: print(function()) or 0)
    given = parser.parse_args(arguments)
    try:
        return given.run(given)
    except DataError as error:
        print(f"attenscribble: {error}", file=sys.stderr)
        return 1


# %%
with redirect_stdout(StringIO()) as said:
    assert main(["methods"]) == 0
lines = said.getvalue().splitlines()
assert len(lines) == len(METHODS) and lines[0].startswith("fully")


# %% [markdown]
# A folder with one heart, its scribble under another name: the check says so, with status 1.

# %%
def command(*words):
    "Status, standard output, standard error."
    with redirect_stdout(StringIO()) as said, redirect_stderr(StringIO()) as complained:
        status = main(list(words))
    return status, said.getvalue(), complained.getvalue()


with tempfile.TemporaryDirectory() as folder:
    heart = next(phantom(patients=1, side=48, slices=3).cases())
    for kind, name, volume in (("images", "a", heart.image), ("scribbles", "b", heart.scribble)):
        Path(folder, kind).mkdir()
        nib.save(nib.Nifti1Image(np.ascontiguousarray(volume.T), np.diag([1.5, 1.5, 10, 1])),
                 Path(folder, kind, f"{name}.nii.gz"))
    status, report, _ = command("check", folder, "-p", "ignore", "4")
    assert status == 1 and "b.nii.gz: found no image of that name" in report
    status, _, complaint = command("predict", "--checkpoint", folder, folder, f"{folder}/masks")
    assert status == 1 and "checkpoint.pt: found no checkpoint" in complaint and not Path(folder, "masks").exists()
print(complaint.replace(folder, "…"))


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
# `main` is the command `attenscribble`; its lists come from the registries, `check` from [chapter 39](39_check.ipynb),
# `predict` from [chapter 42](42_inference.ipynb).
