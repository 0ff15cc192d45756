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
# > What there is and where to get it, asked from a terminal.
#
# **The question.** Which names may stand behind `-p method`, `-p dataset` and `-p profile`, and whom do they credit?
#
# ```bash
# attenscribble methods          # every method: name, title, source
# attenscribble datasets         # every dataset: what it is, where it was found on this machine, how to get it
# attenscribble profiles         # how much each profile computes
# attenscribble download chaos   # get a dataset, or go on with it, and verify it
# ```

# %%
#| default_exp experiment.commands

# %%
#| export
import argparse
import sys
from collections.abc import Sequence

from attenscribble.data.datasets import SOURCES, datasets
from attenscribble.data.download import DOWNLOADS, download
from attenscribble.data.scans import DataError
from attenscribble.experiment.config import PROFILES, Config
from attenscribble.experiment.runs import run_experiment
from attenscribble.method.objective import METHODS

# %%
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from attenscribble.book import exercise


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


def train(settings: Sequence[str]) -> str:
    "One run without a notebook: settings as NAME=VALUE. Under `torchrun`, all its processes train together."
    pairs = dict(setting.partition("=")[::2] for setting in settings)
    outcome = run_experiment(Config.from_flat(**pairs))
    return f"{outcome.report()}\n{outcome.files()}" if outcome else ""


COMMANDS = {"methods": list_methods, "datasets": list_datasets, "profiles": list_profiles}


def get(
    name: str,  # one of `DOWNLOADS` or `SOURCES`
    to: str | None = None,  # data folder; the user's unless told
) -> str:  # what to say
    "Get a dataset, verified: where it lies now, its licence and the next command. Raises what `download` raises."
    if name in SOURCES and not SOURCES[name].folders:
        return f"{name}: {SOURCES[name].obtain}"
    place, entry = download(name, to), DOWNLOADS[name]
    return f"{place}\nLicence: {entry.licence}\nNext, in the folder nbs: {entry.then.format(folder=place)}"


def main(
    arguments: Sequence[str] | None = None,  # of the command line; None: the program's own
) -> int:  # exit status
    "The command `attenscribble`. A wrong name ends with status 2 and the choices, what cannot be had with status 1."
    parser = argparse.ArgumentParser(prog="attenscribble", description="Scribble-supervised segmentation: what exists.",
                                     epilog="To train in a notebook: papermill train.ipynb -p dataset acdc.")
    parts = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        part = parts.add_parser(name, help=function.__doc__.split(":")[0].lower())
        part.set_defaults(run=lambda asked, function=function: function())
    trainer = parts.add_parser("train", help=train.__doc__)
    trainer.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    trainer.set_defaults(run=lambda asked: train(asked.settings))
    loader = parts.add_parser("download", help="get a dataset and verify it; a download that was cut goes on")
    loader.add_argument("name", metavar="NAME", choices=sorted({*DOWNLOADS, *SOURCES}),
                        help=f"{', '.join(DOWNLOADS)}; for the others it says where to get them")
    loader.add_argument("--to", metavar="FOLDER", help="data folder; the user data folder unless told")
    loader.set_defaults(run=lambda asked: get(asked.name, asked.to))
    asked = parser.parse_args(arguments)
    try:
        said = asked.run(asked)
    except (DataError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if said:
        print(said)
    return 0


# %%
with redirect_stdout(StringIO()) as said:
    assert main(["methods"]) == 0
lines = said.getvalue().splitlines()
assert len(lines) == len(METHODS) and lines[0].startswith("fully")

# %% [markdown]
# What only its owners give out is not pretended to be had: the way to it goes to the error stream, and the status says no.

# %%
with redirect_stderr(StringIO()) as complained:
    assert main(["download", "acdc"]) == 1
assert "register at" in complained.getvalue()
print(complained.getvalue())


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
# [chapter 19](../data/19_download.ipynb).
