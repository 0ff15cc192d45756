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
# > Training, masks for new scans, checks, lists and notebooks, asked for in a terminal.
#
# What if somebody has a folder of scans and does not write code? Then every step has to be one line in a terminal, and every mistake has to be
# answered in one line too. This chapter makes the command `attenscribble` of the functions of the earlier chapters.

# %% [markdown]
# ## The answer first
#
# ```bash
# attenscribble check my-scans                               # what is wrong with my scans and scribbles?
# attenscribble train my-scans                               # learn from them; NAME=VALUE after it changes a setting
# attenscribble predict --checkpoint runs/RUN scans masks    # a mask for every new scan
#
# attenscribble methods                    # every method: name, title, loss terms, source
# attenscribble datasets                   # every dataset: what it is, where it lies on this machine, how to get it
# attenscribble profiles                   # how much each profile computes
# attenscribble settings                   # every setting of a run: its default and what it means
# attenscribble download chaos             # get a dataset, or go on with it, and verify it
# attenscribble notebook train             # the notebook of a run, to work with in this folder
# attenscribble pack acdc.pack.zip dataset=acdc    # a dataset in one file, which root= opens elsewhere
# attenscribble grid workflow/phantom.toml # many runs: which are done, which are missing, how long they take
#
# attenscribble export-nnunet acdc $nnUNet_raw fold=1        # the same patients and strokes for nnU-Net
# attenscribble score acdc masks fold=1 archive=results      # its masks as a row of our tables
# ```

# %%
#| default_exp entry.commands

# %%
#| export
import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# %%
#| export
from attenscribble import __version__
from attenscribble.basics.errors import DataError, named_place, one_of
from attenscribble.basics.files import project_root, write_atomic, write_json

if TYPE_CHECKING:
    from attenscribble.runs.setup import Setup

# %%
import json
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import nibabel as nib
import numpy as np

from attenscribble.basics.checking import exercise
from attenscribble.data.phantom import phantom
from attenscribble.method.objective import METHODS


# %% [markdown]
# ## Lists that cannot be out of date
#
# All lists are read off the registries that training itself uses. To import PyTorch takes seconds, and whoever asks for `--help` should not wait
# for it: each function of this chapter imports what it needs when it runs.

# %%
#| export
def _columns(rows: Sequence[Sequence[str]]) -> str:
    "Rows of text as a table for the terminal, columns aligned."
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


# %%
#| export
def list_methods() -> str:
    "Every registered method: name, title in the tables, loss terms, source."
    from attenscribble.method.objective import METHODS

    import_module("attenscribble.runs.config")  # with it come the rivals
    return _columns([(m.name, m.title, " + ".join(t.name for t in m.terms), m.source) for m in METHODS.values()])


# %%
#| export
def list_datasets() -> str:
    "Every dataset: name, what it is, and its folder on this machine or how to get it."
    from attenscribble.data.datasets import datasets

    return _columns([(row["name"], row["about"], row["folder"] or f"not here; {row['obtain']}") for row in datasets()])


# %%
#| export
def list_profiles() -> str:
    "Every profile: name and the settings it fills in."
    from attenscribble.runs.config import PROFILES

    return _columns([(name, ", ".join(f"{k}={v}" for k, v in fills.items())) for name, fills in PROFILES.items()])


# %%
#| export
def list_settings() -> str:
    "Every setting of a run: name, default, meaning. Method, profile and preset bring defaults of their own."
    from attenscribble.runs.config import OPEN, Config

    fields, groups = Config.model_fields, {group: f"{start}_NAME" for start, group in OPEN.items()}
    by_class = (name for part in Config.__mro__ for name in vars(part).get("__annotations__", {}) if name in fields)
    return _columns([(groups.get(name, name), "" if name in groups else str(fields[name].default),
                      fields[name].description or "") for name in dict.fromkeys(by_class)])


# %%
print(list_methods())
print("\n".join(list_settings().splitlines()[:8]))


# %% [markdown]
# ## Words of the command line
#
# A setting is a word `NAME=VALUE`. [The configuration](../runs/50_config.ipynb) makes numbers of text and knows the nearest name of a misspelt one.

# %%
#| export
def _pairs(words: Sequence[str]) -> dict[str, str]:
    "NAME=VALUE words. Raises ValueError, a line each, for a word of another form, and for a name that is there twice."
    faults, found = list[str](), dict[str, str]()
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            faults.append(f"settings: found {word!r}, expected NAME=VALUE")
        elif not value:
            faults.append(f"{name}: found no value, expected NAME=VALUE (an unset variable?)")
        elif name in found:
            faults.append(f"{name}: found {found[name]!r} and {value!r}, expected one of the two")
        found[name] = value
    if faults:
        raise ValueError("\n".join(faults))
    return found


# %%
#| export
def _count(text: str) -> int:
    "A whole number, at least 1."
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, at least 1")
    return int(text)


# %%
#| export
class _WrongWord(ValueError):
    "A word that is none of those that may stand there."


def _known(field: str, word: str, choices: Iterable[str]) -> str:
    "The word, if it is one of the choices. Raises _WrongWord."
    try:
        return one_of(field, word, choices)
    except ValueError as error:
        raise _WrongWord(str(error)) from None


# %% [markdown]
# ## Train
#
# A source as [the front door](80_front_door.ipynb) takes it, or none, then settings. The bar is written to the error stream, so that the table
# alone can be sent to a file.

# %%
#| export
def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="[SOURCE] NAME=VALUE",
                        help="a folder of scans or the name of a dataset, the phantom unless told; then settings, such "
                        "as method=pce seed=1; `attenscribble settings` lists them")


def _train(given: argparse.Namespace) -> None:
    from attenscribble.entry.front_door import configure
    from attenscribble.runs.run import run_experiment

    source = [word for word in given.words[:1] if "=" not in word]
    config = configure(*source, **_pairs(given.words[len(source):]))
    if outcome := run_experiment(config):
        print(f"{outcome.report()}\n{outcome.files()}\n{'run folder':16}{os.path.relpath(outcome.folder)}")


# %% [markdown]
# ## Check and predict

# %%
#| export
def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="with images/, scribbles/, perhaps labels/ and dataset.json")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE",
                        help="an option of the folder, such as ignore=255 or axis=coronal")


def _check(given: argparse.Namespace) -> int:
    options = _pairs(given.options)
    if not Path(given.folder).is_dir():
        raise DataError(given.folder, "no such folder", "one with images/ and scribbles/")
    from attenscribble.data.check import check

    report = check(given.folder, **options)
    print(report)
    return 0 if report.fine else 1


# %%
#| export
_SWITCHES = {"probabilities": "also write a probability map a class",
             "uncertainty": "also write the entropy of the classes, 0 to 1",
             "flips": "average over mirror images, where the training used them",
             "overwrite": "replace masks that are there already",
             "skip_existing": "keep masks that are there already, whoever made them"}


# %%
#| export
def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="a NIfTI file, or a folder of them")
    parser.add_argument("target", metavar="OUT", help="the mask's file for a single scan, or a folder")
    parser.add_argument("--checkpoint", required=True, metavar="C", help="checkpoint.pt, or a run folder that holds it")
    parser.add_argument("--batch", type=_count, default=16, metavar="N", help="slices at a time (16)")
    for name, text in _SWITCHES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    parser.add_argument("--trust", action="append", default=[], metavar="MODULE",
                        help="run the code of this module, which the checkpoint names")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


# %% [markdown]
# A bad scan does not stop the others. Their masks are counted on the output, the failures go to the error stream, and the status says that there were
# some.

# %%
#| export
def _predict(given: argparse.Namespace) -> None:
    from attenscribble.entry.front_door import predict
    from attenscribble.runs.inference import ScansFailed

    before = set() if given.overwrite else {*Path(given.target).parent.glob("*"), *Path(given.target).glob("*")}
    switches = {name: getattr(given, name) for name in _SWITCHES}
    try:
        masks = predict(given.checkpoint, given.source, given.target, batch_size=given.batch, device=given.device,
                        trust=given.trust, **switches)
    except ScansFailed as error:
        print(_masks_said(error.masks, before), end="")
        raise
    print(_masks_said(masks, before), end="")


# %%
#| export
def _masks_said(masks: Sequence[Path], before: set[Path]) -> str:
    "Where the masks are, and how many of them were there before."
    if not masks:
        return ""
    kept = sum(mask in before for mask in masks)
    said = f"{len(masks)} masks in {masks[0].parent}" if len(masks) > 1 else str(masks[0])
    return f"{said}{f', {kept} of them from before' if kept else ''}\n"


# %% [markdown]
# ## Download

# %%
#| export
def _download_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="chaos, acdc-scribbles; for the others it says where to get them")
    parser.add_argument("--to", metavar="FOLDER", help="data folder; the user data folder unless told")


# %%
#| export
def _download(given: argparse.Namespace) -> None:
    from attenscribble.data.datasets import SOURCES
    from attenscribble.data.download import DOWNLOADS, download

    name = _known("NAME", given.name, sorted(DOWNLOADS | SOURCES))
    if name in SOURCES and not SOURCES[name].folders:
        print(f"{name}: {SOURCES[name].obtain}")
        return
    place = download(name, given.to)
    print(f"{place}\nLicence: {DOWNLOADS[name].licence}\nNext, beside the notebook that `attenscribble notebook train` "
          f"writes: {DOWNLOADS[name].then.format(folder=place)}")


# %% [markdown]
# ## Pack
#
# What was written is read again to the end before it is called written. A file that is there, which may be a scan, is not replaced unasked.

# %%
#| export
def _pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TO", help="the file, such as acdc.pack.zip")
    parser.add_argument("words", nargs="*", metavar="NAME=VALUE or PATIENT",
                        help="dataset, root or an option of the dataset, as for train; patients, all unless named")
    parser.add_argument("--levels", type=_count, default=255, metavar="N",
                        help="steps between black and white: fewer are smaller (255)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there already")


# %%
#| export
def _pack(given: argparse.Namespace) -> None:
    from attenscribble.data.pack import pack, write_pack
    from attenscribble.runs.config import Config
    from attenscribble.runs.setup import resolve

    if Path(given.target).expanduser().is_dir():
        raise DataError(given.target, "a folder", "the name of a file, such as acdc.pack.zip")
    if Path(given.target).expanduser().exists() and not given.overwrite:
        raise DataError(given.target, "a file that is there already", "another name, or --overwrite")
    patients = [word for word in given.words if "=" not in word]
    dataset = resolve(Config(**_pairs([word for word in given.words if "=" in word]))).dataset
    path = write_pack(dataset, given.target, patients=patients or None, levels=given.levels)
    slices = [len(case.image) for case in pack(path).cases()]
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    print(f"{path}\n{size}, {len(slices)} scans, {sum(slices)} slices; read again to its end\n{pack(path).source}")


# %% [markdown]
# ## Out to nnU-Net and back
#
# The functions of [chapter 62](../reporting/62_nnunet.ipynb).

# %%
#| export
def _fold_arguments(parser: argparse.ArgumentParser, folder: str, meaning: str) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="one of those that `attenscribble datasets` lists")
    parser.add_argument("folder", metavar=folder, help=meaning)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE",
                        help="fold, root or an option of the dataset, as for train")


# %%
#| export
def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _fold_arguments(parser, "OUT", "nnU-Net's folder nnUNet_raw")
    parser.add_argument("--number", type=_count, default=501, metavar="N", help="nnU-Net's dataset ID (501)")
    parser.add_argument("--target", default="scribble", help="scribble, or label: dense, as an upper bound")


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    _fold_arguments(parser, "MASKS", "with CASE.nii.gz for every test case of the fold")
    parser.add_argument("--method", default="nnU-Net", metavar="NAME", help="of the row in the tables (nnU-Net)")
    parser.add_argument("--values", default="", metavar="WHICH", help="what the numbers in the masks are: own, the "
                        "values of the folder's labels, or ids; told only where both could be meant")


# %%
#| export
def _fold_setup(given: argparse.Namespace) -> "Setup":
    "The dataset and the fold that a command names."
    from attenscribble.runs.config import Config
    from attenscribble.runs.setup import resolve

    settings = _pairs(given.settings)
    if "dataset" in settings:
        raise ValueError(f"dataset: found {settings['dataset']!r} beside {given.dataset!r}, expected one of the two")
    return resolve(Config(**settings, dataset=given.dataset))


# %%
#| export
def _export(given: argparse.Namespace) -> None:
    from attenscribble.reporting.nnunet import export_nnunet

    setup = _fold_setup(given)
    print(export_nnunet(setup.dataset, given.folder, fold=setup.config.fold, number=given.number, target=given.target))


# %%
#| export
def _score(given: argparse.Namespace) -> None:
    from attenscribble.method.objective import METHODS
    from attenscribble.reporting.nnunet import result_report, score_predictions

    setup = _fold_setup(given)
    if given.method.strip().lower() in {name.lower() for m in METHODS.values() for name in (m.name, m.title)}:
        raise ValueError(f"method: found {given.method!r}, expected a name that no method of this package has")
    result = score_predictions(given.folder, setup.dataset, setup.config, given.method, given.values)
    folder = Path(setup.config.archive or given.folder).expanduser()
    if left := result["left_out"]:
        print(f"left out, as they are no masks of fold {setup.config.fold}: {', '.join(left)}", file=sys.stderr)
    print(f"{result_report(result)}\n{write_json(result, folder / (result['run'] + '.json'))}")


# %% [markdown]
# ## Notebooks
#
# Four notebooks take parameters. They come with the package, and `attenscribble notebook` writes one where its user works: work in an installed
# file would be lost with the next version. The originals read and write folders beside the clone's `nbs/`, a copy those below the folder it runs in.

# %%
#| export
NOTEBOOKS = {  # name → what it is for, and parameters to begin with
    "train": ("one run, with its curves, its table and its pictures", "-p dataset acdc"),
    "annotate": ("draw on a scan and train on the strokes", ""),
    "tables": ("the paper's tables, yours beside them", "-p results results"),
    "figures": ("the network, and the masks of finished runs", "-p dataset acdc"),
}


# %%
#| export
def _original(name: str) -> Path:
    "A notebook of the installed package, or of the clone. Raises DataError where there is none."
    package = Path(str(files("attenscribble")))
    clone = project_root(package)
    for place in (package / "notebooks", *([clone / "nbs"] if clone else [])):
        if (found := place / f"{name}.ipynb").is_file():
            return found
    raise DataError(f"{package}: notebooks", f"no {name}.ipynb", "the files of the package; install it again")


# %%
#| export
def _folder(name: Path | str) -> Path:
    "A folder, or a place for one. Raises DataError for a file."
    home = Path(name).expanduser()
    if home.exists() and not home.is_dir():
        raise DataError(home, "no folder", "one, or a name that is free")
    return home


# %%
#| export
def write_notebook(
    name: str,  # one of `NOTEBOOKS`
    folder: Path | str = ".",  # made if it is not there
    *,
    overwrite: bool = False,  # replace a notebook of this name
) -> Path:  # the notebook's file
    "Write a notebook of the package. Raises ValueError for an unknown name, DataError for a file that is in the way."
    original = _original(one_of("notebook", name, NOTEBOOKS))
    target = _folder(named_place("FOLDER", folder)) / f"{name}.ipynb"
    if target.resolve() == original.resolve():
        raise DataError(target, "the original", "another folder")
    if target.exists() and not overwrite:
        raise DataError(target, "a file that is there already", "another folder, or --overwrite")
    write_atomic(target, lambda new: new.write_text(_as_copy(original.read_text(encoding="utf-8")), encoding="utf-8"))
    return target


# %%
#| export
def _as_copy(
    text: str,  # of a notebook, as it is stored
) -> str:
    "The same with folders below the current one in place of those beside the clone's nbs/."
    text = re.sub(r"\.\./(?=(?:runs|results|figures)\b)", "", text)
    return text.replace("the folder `nbs`", "this folder")


# %%
#| export
def _notebook_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"{', '.join(NOTEBOOKS)}; left out: what each is for")
    parser.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help="where to; the current folder")
    parser.add_argument("--overwrite", action="store_true", help="replace a notebook of this name")


def _notebook(given: argparse.Namespace) -> None:
    if given.name is None:
        print(_columns([(name, about) for name, (about, _) in NOTEBOOKS.items()]))
        print("attenscribble notebook NAME writes one into the current folder")
        return
    name = _known("NAME", given.name.removesuffix(".ipynb"), NOTEBOOKS)
    path = write_notebook(name, given.folder, overwrite=given.overwrite)
    print(path, *_next_commands(name, path), sep="\n")


# %%
#| export
def _next_commands(name: str, path: Path) -> list[str]:
    "What to type after a notebook was written."
    lines = [f"Next: jupyter lab {shlex.quote(str(path))}"]
    if arguments := NOTEBOOKS[name][1]:
        done = path.with_name(f"{name}-done.ipynb")
        lines.append(f"  or: papermill {shlex.quote(str(path))} {shlex.quote(str(done))} {arguments}")
    if not (find_spec("jupyterlab") and find_spec("papermill")):
        lines.append("JupyterLab and papermill come with: pip install 'attenscribble[book]'")
    return lines


# %% [markdown]
# ## Many runs
#
# A [grid](../runs/57_grid.ipynb) is asked about before it runs. Each of its jobs is what `papermill train.ipynb` does, with the same notebook.

# %%
#| export
def _grid_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a grid of runs in TOML: lists of settings, as chapter 57 says")
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="so many at a time, sharing the cores (1)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--run", action="store_true", help="run what is missing; without it nothing runs")
    ways.add_argument("--job", metavar="RUN", help="run this one alone, as a scheduler does")


# %%
#| export
def _grid(given: argparse.Namespace) -> int:
    from attenscribble.runs.grid import dry_run, job_named, read_grid, run_grid, run_job, state_of

    grid = read_grid(given.file, look=not given.job)
    if given.job:
        print(run_job(job_named(grid, given.job), _original("train")))
        return 0
    rows, total = dry_run(grid, given.jobs)
    if given.run:
        print(total)
        failed = run_grid(grid, _original("train"), jobs=given.jobs)
        lines = [f"{len(failed)} of {len(grid.jobs)} jobs failed", *(f"{name}: {why}" for name, why in failed.items())]
        return _stop("\n".join(lines), 1) if failed else 0
    missing = any(state_of(job) != "done" for job in grid.jobs)
    print(_columns(rows), total, *([f"Next: attenscribble grid {shlex.quote(given.file)} --run"] * missing), sep="\n")
    return 0


# %% [markdown]
# ## All commands

# %%
#| export
@dataclass(frozen=True)
class _Command:
    "A word after `attenscribble`."

    about: str
    run: Callable[[argparse.Namespace], int | None]  # its result is the exit status; None is 0
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    stopped: str = "stopped"  # what Ctrl-C is answered with


def _list(text: Callable[[], str], about: str) -> _Command:
    "A command that prints a list."
    return _Command(about, lambda given: print(text()))


# %%
#| export
_COMMANDS = {
    "train": _Command("learn from scribbles, segment the test scans and score them", _train, _train_arguments,
                      "stopped; the same command goes on from the last checkpoint"),
    "predict": _Command("segment scans with a trained network", _predict, _predict_arguments,
                        "stopped; the same command goes on with the scans that have no mask"),
    "check": _Command("find everything that is wrong with a folder of scans and scribbles", _check, _check_arguments),
    "methods": _list(list_methods, "list the methods: name, title, loss terms, source"),
    "datasets": _list(list_datasets, "list the datasets: what each is, and where it lies or how to get it"),
    "profiles": _list(list_profiles, "list the profiles: how much each computes"),
    "settings": _list(list_settings, "list the settings of a run: default and meaning"),
    "download": _Command("get a dataset and verify it; a download that was cut goes on", _download, _download_arguments,
                         "stopped; the same command goes on from there"),
    "pack": _Command("write a dataset into one file, to be opened elsewhere", _pack, _pack_arguments),
    "notebook": _Command("write a notebook of the package into a folder", _notebook, _notebook_arguments),
    "grid": _Command("say which of many runs are missing, and run them", _grid, _grid_arguments,
                     "stopped; the same command goes on with what is missing"),
    "export-nnunet": _Command("write a fold of a dataset in nnU-Net's raw format", _export, _export_arguments),
    "score": _Command("score masks that were made elsewhere, as a training is scored", _score, _score_arguments),
}


# %% [markdown]
# ## Every mistake is one line
#
# | what happens | status |
# |---|---|
# | done | 0 |
# | data, settings or the run itself are at fault: one line says which and where | 1 |
# | a word that is no command or argument: one line with the nearest that is | 2 |
# | Ctrl-C: one line says whether the command goes on when it is given again | 130 |
#
# Where a line is not enough, as with a loss of one's own, `attenscribble --traceback COMMAND …` shows where the error came from.

# %%
#| export
class _Parser(argparse.ArgumentParser):
    "A parser that answers a wrong word in one line."

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


# %%
#| export
def _parser() -> _Parser:
    "The parser of all commands."
    parser = _Parser(prog="attenscribble", description="Segment medical images from a few scribbles.")
    parser.add_argument("--version", action="version", version=f"attenscribble {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from, not one line")
    parts = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        command.arguments(parts.add_parser(name, help=command.about, description=f"{command.about.capitalize()}."))
    return parser


# %% [markdown]
# Where a shell variable is not set, its word is missing, and the words behind it move up. So no argument may be empty, and none that stands alone may look
# like NAME=VALUE. This holds for every command, whatever its arguments are called.

# %%
#| export
def _check_given(given: argparse.Namespace) -> None:
    "Raises DataError for an argument that is missing, as where a variable of the shell is not set."
    parser = argparse.ArgumentParser(add_help=False)
    _COMMANDS[given.command].arguments(parser)
    for action in parser._actions:
        word = getattr(given, action.dest)
        if action.option_strings and action.default != word == "":
            raise DataError(action.option_strings[-1], "no value", "one behind it (an unset variable?)")
        if not action.option_strings and isinstance(word, str):
            named_place(str(action.metavar), word)


# %%
#| export
def _in_one_line(error: Exception) -> str:
    "An error's message; of several wrong settings a line each."
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError):
        return text
    lines = [line.strip() for line in text.splitlines()]
    return f"{lines[0]} {lines[-1]}" if "Traceback (most recent call last):" in lines else " ".join(lines)


# %%
#| export
_FAULTS = (ValueError, TypeError, ArithmeticError, RuntimeError, OSError)


# %%
#| export
def _run(given: argparse.Namespace) -> int:
    "The exit status of a command."
    command = _COMMANDS[given.command]
    try:
        _check_given(given)
        status = command.run(given) or 0
        if sys.stdout is not None:  # as after `>&-`
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _stop(command.stopped, 130)
    except BrokenPipeError:  # `| head` has read enough; what is left goes nowhere, or Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _FAULTS as error:
        if given.traceback or isinstance(error, _WrongWord):
            raise
        return _stop(_in_one_line(error), 1)


# %%
#| export
def _stop(text: str, status: int) -> int:
    "Say why a command ends; the status."
    print(f"attenscribble: {text}", file=sys.stderr)
    return status


# %%
#| export
def main(
    arguments: Sequence[str] | None = None,  # of the command line; None: the program's own
) -> int:  # exit status: 0, 1 or 130
    "The command `attenscribble`. Raises SystemExit, with status 2 for a wrong word, and after --help and --version."
    words, parser = list(sys.argv[1:] if arguments is None else arguments), _parser()
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(2)
    try:
        if not words[0].startswith("-"):
            _known("COMMAND", words[0], _COMMANDS)
        return _run(parser.parse_args(words))
    except _WrongWord as error:
        parser.error(str(error))


# %%
def command(*words):
    "Status, standard output, error stream."
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
        try:
            status = main(list(words))
        except SystemExit as ended:
            status = ended.code
    return status, output.getvalue(), errors.getvalue()


status, output, _ = command("methods")
assert status == 0 and len(output.splitlines()) == len(METHODS) and output.startswith("fully")

# %%
for words in ("chek my-scans", "train methd=pce", "train my-scan", "check nowhere", "notebook trian", "predict in out"):
    status, output, errors = command(*words.split())
    assert status == (2 if words.startswith(("chek", "notebook", "predict")) else 1) and not output
    assert errors.count("\n") == 1
    print(f"{words:16} {status}  {errors}", end="")

# %% [markdown]
# What only its owners give out is not pretended to be had: the way to it goes to the error stream, and the status says no.

# %%
status, _, errors = command("download", "acdc")
assert status == 1 and "register at" in errors
print(errors)

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
    status, _, errors = command("predict", "--checkpoint", folder, folder, f"{folder}/masks")
    assert status == 1 and "checkpoint.pt: found no checkpoint" in errors and not Path(folder, "masks").exists()
print(errors.replace(folder, "…"))

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
    status, output, _ = command("score", "phantom", f"{folder}/masks", f"archive={folder}/results")
    assert status == 0 and len(list(Path(folder, "results").iterdir())) == 1
    status, _, errors = command("score", "phantom", f"{folder}/masks", "fold=2")
    assert status == 1 and "no mask of patient003" in errors
print(output.replace(folder, "…"))

# %% [markdown]
# The phantom in one file, and one patient of it.

# %%
with tempfile.TemporaryDirectory() as folder:
    status, output, _ = command("pack", f"{folder}/toy.pack.zip", "data_patients=2", "data_side=48", "patient002")
    assert status == 0 and " 2 scans, " in output
    status, _, errors = command("pack", f"{folder}/toy.pack.zip", "data_patients=2")
    assert status == 1 and "a file that is there already" in errors
print(output.replace(folder, "…"))

# %% [markdown]
# A notebook of one's own. It is not replaced unasked.

# %%
with tempfile.TemporaryDirectory() as folder:
    status, output, _ = command("notebook", "tables", folder)
    written = json.loads(Path(folder, "tables.ipynb").read_text(encoding="utf-8"))
    assert status == 0 and "../" not in "".join(written["cells"][1]["source"])
    status, _, errors = command("notebook", "tables", folder)
    assert status == 1 and "a file that is there already" in errors
print(output.replace(folder, "…"))

# %% [markdown]
# A grid of one job with a misspelt method: nothing runs, and the message names the file, the job and the nearest name.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "wrong.toml")
    file.write_text('archive = "results"\nmethod = "our"\n', encoding="utf-8")
    status, _, errors = command("grid", str(file), "--run")
    assert status == 1 and "did you mean 'ours'?" in errors and len(list(Path(folder).iterdir())) == 1
print(errors.replace(f"{folder}{os.sep}", ""))


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
# **2. Predict.** Which status ends each of these commands: `train fold=0`, `predict --overwite`, `methods --help`?

# %%
def check_statuses(answer):
    asked = (["train", "fold=0"], ["predict", "--overwite"], ["methods", "--help"])
    assert tuple(answer()) == tuple(command(*words)[0] for words in asked)

def my_statuses():
    return 0, 0, 0

exercise(check_statuses, my_statuses, solution=lambda: (1, 2, 0))

# %% [markdown]
# ## Recap
#
# `main` is the command `attenscribble`. Its lists come from the registries, its downloads from [chapter 21](../data/21_download.ipynb), `pack` from
# [chapter 22](../data/22_pack.ipynb), `check` from
# [chapter 18](../data/18_check.ipynb), `train` and `predict` from [chapter 80](80_front_door.ipynb), `grid` from
# [chapter 57](../runs/57_grid.ipynb), `export-nnunet` and `score` from [chapter 62](../reporting/62_nnunet.ipynb). Surprise: to be quick, a command imports late.
