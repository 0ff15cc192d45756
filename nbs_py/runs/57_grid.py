# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Grids
#
# > One small file for many runs: what is done, what is missing, how long it takes, and no run twice.
#
# Four methods, five folds and three seeds are sixty runs, and on the second night the machine is switched off. Which of them are done, which was
# cut, and what is to be typed so that nothing is lost and nothing runs twice? A file says which runs there are to be, a result file says that one
# of them is done, and a lock says that somebody is at work on it.

# %% [markdown]
# ## The answer first
#
# ```toml
# profile = "smoke"           # a value: the same for all
# archive = "results"         # folder for the result files; as all folders, seen from this file
# method = ["pce", "ours"]    # a list: each of them, with each of every other list
# seed = [1, 2]
# ```
#
# In a clone of the project such a file is there:
#
# ```bash
# attenscribble grid workflow/phantom.toml                 # which runs, which are done, how long the others take
# attenscribble grid workflow/phantom.toml --run           # run what is missing, one after the other
# attenscribble grid workflow/phantom.toml --run --jobs 2  # two at a time, each with half of the threads
# ```
#
# The format is TOML, as in `pyproject.toml`: an error has a line number, and what is a number or a text is plain to see. YAML takes `off` for false
# and `1e-4` for text.

# %%
#| default_exp runs.grid

# %%
#| export
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec

# %%
#| export
from itertools import product
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

import pandas as pd
import tomli
import torch

# %%
#| export
from attenscribble.basics.errors import DataError, did_you_mean, one_of
from attenscribble.basics.files import project_root, without_parts, write_json
from attenscribble.data.scans import content_id
from attenscribble.method.other_networks import build_network
from attenscribble.runs.config import OPEN, Config
from attenscribble.runs.launch import _end
from attenscribble.runs.run import check_result, check_scorable, machine_kind, run_folder
from attenscribble.runs.setup import Setup, choose_device, resolve
from attenscribble.runs.training import training_patients

# %%
import tempfile

import matplotlib.pyplot as plt

from attenscribble.basics.checking import exercise
from attenscribble.runs.run import run_experiment


# %% [markdown]
# ## One run of many
#
# A job is what the file says of one run, and the configuration that comes of it. Its [`run_id`](50_config.ipynb) is its name, and the file of
# that name in the archive is its target: where it is, the job is done.

# %%
#| export
@dataclass(frozen=True)
class Job:
    "One run of a grid."

    row: str  # its row in the file; "" where there are none
    given: dict[str, Any]  # what the file says, by flat names
    config: Config  # all settings; folders do not depend on where the command is called

    @property
    def folder(self) -> Path:
        "The run's folder, with the executed notebook."
        return run_folder(self.config)

    @property
    def target(self) -> Path:
        "The result file in the archive."
        return Path(self.config.archive) / f"{self.config.run_id}.json"


# %%
#| export
@dataclass(frozen=True)
class Grid:
    "The runs that a file asks for."

    file: Path
    jobs: tuple[Job, ...]  # each run once, in the order of the file
    twice: int = 0  # jobs left out because another one has the same settings
    excluded: int = 0  # jobs left out because the file says so


# %%
#| export
def job_named(
    grid: Grid,  # of `read_grid`
    run_id: str,  # of one of its jobs
) -> Job:  # that one
    "A job by the name of its run. Raises ValueError with the nearest name."
    jobs = {job.config.run_id: job for job in grid.jobs}
    if run_id not in jobs:
        raise ValueError(f"{grid.file}: found no run {run_id!r}, expected one of its {len(jobs)}"
                         + did_you_mean(run_id, jobs))
    return jobs[run_id]


# %% [markdown]
# ## Reading the file
#
# Below the settings that all jobs share there may be two kinds of tables. Not every comparison is a full product, so a *row* is a name with
# settings of its own; where there are rows, every job belongs to one. And what a product has too much of is *excluded*.
#
# ```toml
# dataset = ["acdc", "chaos"]
# seed = [1, 2, 3]
# profile = "mini"
# archive = "results"
#
# [rows.plain]
# method = ["pce", "gated-crf", "ours"]
#
# [rows.residual]             # ours alone, with a residual around its attention
# method = "ours"
# ssa_block = "residual"
#
# [[exclude]]                 # no gated CRF on CHAOS
# dataset = "chaos"
# method = "gated-crf"
# ```

# %%
#| export
_TABLES = ("rows", "exclude")
_GROUPS = {*OPEN, *(name.split("_")[0] for name in Config.model_fields if "_" in name)}


def _read_toml(file: Path) -> dict[str, Any]:
    "The content of a grid's file. Raises DataError where there is none, or no TOML in it."
    if not file.is_file():
        raise DataError(file, "no such file", "a grid of runs")
    try:
        return tomli.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # bytes that are no text, too
        raise DataError(file, f"no TOML ({error})", 'lines such as method = ["pce", "ours"]') from None


# %% [markdown]
# Settings of a group may stand in a table of their own: `[crf]` with `mask = "p"` is `crf_mask`.

# %%
#| export
def _flat(where: str, settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Flat name → values.

    Raises DataError for a table that is no group, a list without a value, and what stands in a table and alone."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        alone = not isinstance(value, dict) or name == "net_options"
        if not (alone or name in _GROUPS):
            raise DataError(f"{where}: {name}", "a table", "rows, exclude, or a group of settings such as crf"
                            + did_you_mean(name, [*_TABLES, *_GROUPS]))
        _add(where, found, {name: value} if alone else {f"{name}_{key}": entry for key, entry in value.items()})
    if empty := [name for name, value in found.items() if value == []]:
        raise DataError(f"{where}: {empty[0]}", "an empty list", "at least one value")
    return {name: value if isinstance(value, list) else [value] for name, value in found.items()}


# %%
#| export
def _add(where: str, found: dict[str, Any], more: Mapping[str, Any]) -> None:
    "Add settings under flat names. Raises DataError for one that has another value already."
    for name, value in more.items():
        if found.setdefault(name, value) != value:
            raise DataError(f"{where}: {name}", f"{found[name]!r} and {value!r}", "one of the two")


# %%
#| export
def _blocks(file: Path, content: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    "Row → its settings, over those that all share; one nameless row where the file has none."
    shared = _flat(str(file), {name: value for name, value in content.items() if name not in _TABLES})
    rows = content.get("rows", {"": {}})
    if not (isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values())):
        raise DataError(f"{file}: rows", repr(rows), "a table for each row, such as [rows.residual]")
    return {name: shared | (_flat(f"{file}: rows.{name}", row) if name else {}) for name, row in rows.items()}


# %%
#| export
@dataclass(frozen=True)
class _Wanted:
    "A job before it is checked."

    row: str
    given: dict[str, Any]
    label: str  # what sets it apart from others


# %%
#| export
def _product(row: str, settings: Mapping[str, list[Any]]) -> Iterator[_Wanted]:
    "Each value of every list with each of all others; the last list varies fastest."
    for values in product(*settings.values()):
        given = dict(zip(settings, values, strict=True))
        apart = [f"{name}={value}" for name, value in given.items() if len(settings[name]) > 1]
        yield _Wanted(row, given, " ".join([*([f"row {row}:"] if row else []), *apart]) or "the only job")


# %% [markdown]
# An exclusion that excludes nothing is a misspelt one.

# %%
#| export
def _without_excluded(file: Path, content: Mapping[str, Any], wanted: list[_Wanted]) -> list[_Wanted]:
    "The jobs that no exclusion names. Raises DataError for one that names none."
    rules = content.get("exclude", [])
    if not (isinstance(rules, list) and all(isinstance(rule, dict) and rule for rule in rules)):
        raise DataError(f"{file}: exclude", repr(rules), "tables with settings, each below its own [[exclude]]")
    out = [one for number, rule in enumerate(rules, 1) for one in _named(f"{file}: exclude {number}", rule, wanted)]
    if not (kept := [one for one in wanted if one not in out]):
        raise DataError(f"{file}: exclude", f"all {len(wanted)} jobs", "at least one that is left")
    return kept


# %%
#| export
def _named(where: str, rule: Mapping[str, Any], wanted: list[_Wanted]) -> list[_Wanted]:
    "The jobs that an exclusion names: each of its settings is given there, with one of its values."
    known = sorted({name for one in wanted for name in one.given})
    values = {one_of(where, name, known): value for name, value in _flat(where, rule).items()}
    found = [one for one in wanted if all(name in one.given and one.given[name] in value
                                          for name, value in values.items())]
    if not found:
        raise DataError(where, f"no job with {rule}", "a job that the lists make")
    return found


# %% [markdown]
# ## All that is wrong, at once
#
# Nobody wants to learn on the second night that job 50 was misspelt. So every job becomes a [`Config`](50_config.ipynb) first, its dataset is
# found, the test volumes of its fold are read and its network is built, once for all jobs that share them.
#
# A job has to be the same run wherever it is started, or the machine that lists the jobs and the one that runs them would give them different
# names. So folders in the file are seen from the file, and a profile that depends on the machine is refused.

# %%
#| export
def _placed(file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    "Settings with absolute folders. Raises ValueError where the archive is missing, or a profile."
    base, placed = file.resolve().parent, dict(given)
    placed.setdefault("output", str((project_root(base) or base) / "runs"))
    if not placed.get("archive"):
        raise ValueError('archive: found nothing, expected the folder for the results, such as "results"')
    if given.get("dataset", "phantom") != "phantom" and given.get("profile", "auto") == "auto":
        raise ValueError("profile: found none, expected mini, fast or paper: without one the machine decides")
    for name in ("archive", "output", "root"):
        if isinstance(placed.get(name), str) and placed[name]:
            placed[name] = os.path.abspath(base / Path(placed[name]).expanduser())
    return placed


# %%
#| export
@dataclass(frozen=True)
class _Checks:
    "What was found for earlier jobs, by what was looked for."

    look: bool  # into the data, and at the network
    known: dict[str, Any] = field(default_factory=dict)

    def once(self, check: Callable[[], Any], *key: object) -> Any:
        "A check's result, from an earlier job if that was the same. Raises what the check raises."
        text = json.dumps(key, default=str)
        if text not in self.known:
            self.known[text] = _outcome(check)
        if isinstance(self.known[text], Exception):
            raise self.known[text]
        return self.known[text]


# %%
#| export
def _outcome(check: Callable[[], Any]) -> Any:
    "What a check returns, or the error that it raises."
    try:
        return check()
    except (ValueError, TypeError, OSError) as error:
        return error


# %%
#| export
def _checked(file: Path, one: _Wanted, checks: _Checks) -> Job:
    "A job whose settings fit its data. Raises ValueError, TypeError or OSError for others."
    given = _placed(file, one.given)
    config = Config(**given)
    data = (config.dataset, config.root, config.data)
    setup = resolve(config, checks.once(lambda: resolve(config), *data).dataset)
    if checks.look:
        checks.once(lambda: check_scorable(setup), *data, "fold", config.fold, config.hd95)
        checks.once(lambda: _build(setup), *data, "network", config.model_dump(exclude={"fold", "seed"}))
        training_patients(setup.dataset, setup.config)
    job = Job(one.row, given, setup.config)
    if checks.look:
        _check_same_data(job, lambda: checks.once(
            lambda: content_id(setup.content), *data, "content", config.fold, config.hold_out))
    return job


# %% [markdown]
# Whether a run came to its end is asked of its folder, not of the one who started it. papermill calls a cell completed even when the kernel has died
# in it; what tells is the kernel's answer.

# %%
#| export
LOCK, EXECUTED, LOG = "grid.lock", "train.ipynb", "train.log"  # in a run folder


# %%
#| export
def _executed(folder: Path) -> dict[str, Any]:
    "The executed notebook of a run folder; without cells where there is none, or half of one."
    try:
        return dict(json.loads((folder / EXECUTED).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {"cells": [], "metadata": {}}


# %%
#| export
def _finished(folder: Path) -> bool:
    "Whether the run has written its result, and its kernel has answered every cell, none of them with an error."
    notebook = _executed(folder)
    said = notebook["metadata"].get("papermill", {})
    answers = [cell["metadata"].get("execution", {}).get("shell.execute_reply")
               for cell in notebook["cells"] if cell["cell_type"] == "code"]
    whole = all(answers) and bool(answers) and bool(said.get("end_time")) and not said.get("exception")
    return whole and (folder / "result.json").is_file()


# %% [markdown]
# A result says by a hash which data it is of. Where the data was changed since, the job is neither done nor may its result count beside new ones:
# it is refused as `train` refuses it.

# %%
#| export
def _check_same_data(job: Job, now: Callable[[], str]) -> None:
    "Raise DataError where a result of a job, in the archive or in its run folder, is one of other data."
    check_result(job.target, now, "archive")
    if not job.target.is_file() and _finished(job.folder):  # else it is never taken from there
        check_result(job.folder / "result.json", now, "output")


# %%
#| export
def _build(setup: Setup) -> None:
    "Build a network as the run will. Raises what that raises."
    build_network(setup.method, setup.dataset.channels, setup.dataset.classes, setup.config)


# %%
#| export
def read_grid(
    file: Path | str,  # TOML, as above
    *,
    look: bool = True,  # into the data, too, and at the networks; False: settings alone
) -> Grid:  # each run once
    """The jobs of a grid, each checked; nothing runs.

    Raises DataError for a file of another form, and ValueError with a line for each wrong setting and its jobs."""
    file = Path(file).expanduser()
    content = _read_toml(file)
    wanted = [one for row, settings in _blocks(file, content).items() for one in _product(row, settings)]
    kept = _without_excluded(file, content, wanted)
    jobs = {job.config.run_id: job for job in reversed(_all_checked(file, kept, _Checks(look)))}  # the first of equals
    return Grid(file, tuple(reversed(jobs.values())), len(kept) - len(jobs), len(wanted) - len(kept))


# %%
#| export
def _all_checked(file: Path, wanted: list[_Wanted], checks: _Checks) -> list[Job]:
    "A job for each. Raises ValueError with a line for all that is wrong, and the jobs that it is wrong in."
    jobs, wrong = list[Job](), dict[str, list[str]]()
    for one in wanted:
        try:
            jobs.append(_checked(file, one, checks))
        except (ValueError, TypeError, OSError) as error:
            for line in [str(error)] if isinstance(error, DataError) else str(error).splitlines():
                wrong.setdefault(line, []).append(one.label)
    if wrong:
        raise ValueError("\n".join(f"{file}: {line} ({_which(labels, len(wanted))})" for line, labels in wrong.items()))
    return jobs


# %%
#| export
def _which(labels: list[str], total: int) -> str:
    "The jobs that something is wrong with."
    if len(labels) == total > 1:
        return f"all {total} jobs"
    return "; ".join(labels[:3]) + (f"; {len(labels) - 3} more" if len(labels) > 3 else "")


# %% [markdown]
# A grid of two methods and two seeds, on a phantom that is small enough for this page.

# %%
place = tempfile.TemporaryDirectory()
home = Path(place.name)
SMALL = """
archive = "results"
iterations = 5
size = 48
batch = 4
data = {patients = 5, side = 48, slices = 2}
"""
(home / "phantom.toml").write_text(SMALL + """
method = ["pce", "gated-crf"]
seed = [1, 2]
""")
grid = read_grid(home / "phantom.toml")
[job.config.run_id for job in grid.jobs]


# %% [markdown]
# And files with something wrong in them.

# %%
def refusal(text):
    "What is said of a grid."
    (home / "wrong.toml").write_text(text)
    try:
        return f"nothing was refused: {read_grid(home / 'wrong.toml')}"
    except ValueError as error:
        return str(error).replace(f"{home}{os.sep}", "")


print(refusal(SMALL + 'method = ["pce", "our"]\nsize_px = 48\nfold = [1, 9]'))
print(refusal('dataset = "acdc"\narchive = ["results", "elsewhere"]'))
print(refusal(SMALL + 'lam_atn = [0.1, 0.2]\nmethod = ["pce", "ours"]'))
print(refusal(SMALL + 'seed = [1, 2]\n[[exclude]]\nsede = 2'))

# %%
assert refusal(SMALL + "fold = [1, 9]").startswith("wrong.toml: phantom: fold: found 9, expected one of [1, 2")
assert "at line 1" in refusal("method = pce\n") and "expected at least one" in refusal("seed = []")
assert refusal(SMALL + "[row.a]\nseed = 1").endswith("did you mean 'rows'?")


# %% [markdown]
# ## How long will it take?
#
# Result files say how long their runs took and on which kind of machine. Of those with the job's profile on this kind of machine the nearest
# are taken: same method and dataset, else same method, else same dataset, else any. Their training time is stretched by iterations × batch × side²,
# as a convolution's is, their test time is kept, and the median is the estimate. What it rests on is said beside it.

# %%
#| export
@dataclass(frozen=True)
class Estimate:
    "How long a job may take."

    seconds: float | None  # of training and testing; None: unknown
    basis: str  # what that rests on


_NEAREST = {("method", "dataset"): "{method} on {dataset}", ("method",): "{method} on other data",
            ("dataset",): "other methods on {dataset}", (): "other methods on other data"}


# %%
#| export
def estimate(
    job: Job,  # that is to run
    results: Iterable[Mapping[str, Any]],  # contents of result files
    threads: int | None = None,  # of the job; None: all
) -> Estimate:  # with the results that it rests on
    "How long a job may take on this machine, from results of its profile on this kind of machine."
    config, kind = job.config, _kind(job.config.device, threads)
    like = [result for result in results if "train_seconds" in result and (kind, config.profile, config.devices) == (
        result.get("machine"), result.get("profile"), result.get("processes", 1))]
    for names, words in _NEAREST.items():
        near = [result for result in like if all(result.get(name) == getattr(config, name) for name in names)]
        if near:
            basis = f"{len(near)} × {words.format(method=config.method, dataset=config.dataset)}"
            return Estimate(median(_seconds(result, config) for result in near), basis)
    return Estimate(None, f"unknown: no {config.profile} on {kind}")


# %%
#| export
def _kind(device: str, threads: int | None) -> str:
    "The machine as results name it, when so many threads are used."
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        return machine_kind(choose_device(device))
    finally:
        torch.set_num_threads(before)


# %%
#| export
def _seconds(result: Mapping[str, Any], config: Config) -> float:
    "A result's time, stretched to the work of another configuration."
    stretch = 1.0
    for name in ("iterations", "batch", "size", "size"):
        stretch *= getattr(config, name) / result.get("settings", {}).get(name, getattr(config, name))
    return float(result["train_seconds"]) * stretch + float(result.get("test_seconds", 0))


# %% [markdown]
# ## One at a time
#
# Two people may call the same grid, or one person twice. What makes the second wait is a lock on a file in the run folder. It belongs to the open
# file, and a process that is started meanwhile can inherit that: then the lock lasts until the last of them is gone. The dead leave nothing locked.

# %%
#| export
@contextmanager
def _alone(path: Path, stop: Event, busy: Callable[[], object]) -> Iterator[int]:
    "Hold a lock as long as this process, or one that inherits its open file, lives; yields the file's number."
    with path.open("a") as file:
        while not _taken(file.fileno()):
            busy()
            busy = lambda: None  # said once
            _pause(stop, 0.5)
        yield file.fileno()


# %%
#| export
def _taken(file: int) -> bool:
    "Take the lock on an open file; whether it was free."
    import fcntl  # Windows has none

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# %%
#| export
def _is_held(path: Path) -> bool:
    "Whether some process holds the lock."
    if not path.is_file():
        return False
    with path.open("a") as file:
        return not _taken(file.fileno())


# %%
#| export
def _pause(stop: Event, seconds: float) -> None:
    "Wait. Raises KeyboardInterrupt when the grid is stopped."
    if stop.wait(seconds):
        raise KeyboardInterrupt


# %% [markdown]
# ## The dry run
#
# One row a job: its name, what else sets it apart, whether it is done, and how long it may take.

# %%
#| export
def state_of(
    job: Job,  # of a grid
) -> str:  # done, running, begun, to do
    "Whether a job is done, some process is at work on it, or it was: then there is a checkpoint."
    if job.target.is_file():
        return "done"
    if _is_held(job.folder / LOCK):
        return "running"
    return "begun" if (job.folder / "checkpoint.pt").is_file() else "to do"


# %%
#| export
def read_archive(
    folder: Path | str,  # with result files; it need not be there
) -> dict[Path, dict[str, Any]]:  # by file
    "What lies in an archive. Raises DataError for a file that is no result."
    found = {}
    for path in without_parts(Path(folder).glob("*.json")):
        try:
            found[path] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(path, f"no JSON ({error})", "a result file, as a run writes it") from None
        if not (isinstance(found[path], dict) and isinstance(found[path].get("run"), str)):
            raise DataError(f"{path}: run", "nothing", "the name of a run: only result files belong here")
    return found


# %%
#| export
def plan(
    grid: Grid,  # of `read_grid`
    jobs: int = 1,  # at a time
) -> pd.DataFrame:  # a row a job: run, what sets it apart, state, seconds (NaN: unknown), rests on
    "What a grid would run. Raises DataError for a file in the archive that is no result, or that of another run."
    results = {path: result for folder in {job.target.parent for job in grid.jobs}
               for path, result in read_archive(folder).items()}
    rows = [_planned(grid, job, results, threads_each(jobs)) for job in grid.jobs]
    return pd.DataFrame(rows).astype({"seconds": float})


# %%
#| export
def _planned(grid: Grid, job: Job, results: Mapping[Path, dict[str, Any]], threads: int | None) -> dict[str, Any]:
    "A job's row."
    name, state = job.config.run_id, state_of(job)
    if job.target in results and (found := results[job.target]["run"]) != name:
        raise DataError(f"{job.target}: run", repr(found), repr(name))
    guess = Estimate(0.0, "") if state == "done" else estimate(job, results.values(), threads)
    return {"run": name, **_apart(grid, job), "state": state, "seconds": guess.seconds, "rests on": guess.basis}


# %%
#| export
def _apart(grid: Grid, job: Job) -> dict[str, str]:
    "Row and settings in which the jobs of a grid differ and that the name of a run does not say."
    said = ("dataset", "method", "fold", "seed", "profile")
    names = dict.fromkeys(name for one in grid.jobs for name in one.given if name not in said)
    differ = [name for name in names if len({str(one.given.get(name)) for one in grid.jobs}) > 1]
    row = {"row": job.row} if any(one.row for one in grid.jobs) else {}
    return row | {name: str(job.given.get(name, "")) for name in differ}


# %%
#| export
def threads_each(
    jobs: int,  # at a time
) -> int | None:  # None: one job has all there are
    "The threads of one job."
    return None if jobs == 1 else max(1, torch.get_num_threads() // jobs)


# %%
#| export
def duration(
    seconds: float,  # not negative
) -> str:  # "12 s", "3.4 min", "2.1 h"
    "A time in words."
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


# %%
#| export
def summary(
    grid: Grid,  # of `read_grid`
    frame: pd.DataFrame,  # of `plan`
    jobs: int = 1,  # at a time
) -> str:  # one line
    "How many jobs there are, how many are done, and how long the others may take."
    counts, waits = frame.state.value_counts(), frame[frame.state != "done"]
    parts = [f"{counts[state]} {state}" for state in ("done", "running", "begun", "to do") if state in counts]
    unknown = int(waits.seconds.isna().sum())
    parts += [f"about {duration(waits.seconds.sum() / jobs)}"] if unknown < len(waits) else []
    parts += [f"the time of {unknown} unknown"] if unknown else []
    parts += [f"{grid.twice} with the settings of another left out"] if grid.twice else []
    parts += [f"{grid.excluded} excluded"] if grid.excluded else []
    return f"{len(frame)} job{'s' if len(frame) > 1 else ''}: {', '.join(parts)}"


# %%
#| export
def dry_run(
    grid: Grid,  # of `read_grid`
    jobs: int = 1,  # at a time
) -> tuple[list[list[str]], str]:  # cells of a table, the names of its columns first; the line below it
    "What a grid would run, for a terminal. Raises as `plan` does."
    frame = plan(grid, jobs)
    times = [duration(seconds) if seconds else "" for seconds in frame.seconds.fillna(0)]
    shown = frame.rename(columns={"seconds": "time"}).assign(time=times)
    return [list(shown.columns), *shown.astype(str).values.tolist()], summary(grid, frame, jobs)


# %% [markdown]
# Nothing has run, so nothing is known of the time. After one run, here without papermill, it is.

# %%
print(summary(grid, plan(grid)))
run_experiment(grid.jobs[0].config)
plt.close("all")  # its pictures lie in the run folder
frame = plan(grid)
print(summary(grid, frame))
assert list(frame.state) == ["done"] + ["to do"] * 3
frame

# %%
assert list(frame["rests on"]) == ["", "1 × pce on phantom"] + ["1 × other methods on phantom"] * 2
twice = grid.jobs[1].config.model_copy(update={"iterations": 10})
assert _seconds({"train_seconds": 3, "test_seconds": 1, "settings": {"iterations": 5}}, twice) == 7


# %% [markdown]
# ## One job, once
#
# A job runs as a person would run it: papermill executes [`train.ipynb`](../train.ipynb) and keeps what it executed in the run folder, with what it
# printed in `train.log` beside it. The target is written last. So a target means that everything is there, whoever is killed when:
#
# | who dies | what happens |
# |---|---|
# | the command that started papermill | papermill goes on; who asks again waits for it, and finds its result |
# | papermill | its kernel ends itself within a second; who asks again goes on from the checkpoint |
# | the machine | the same |

# %%
#| export
def run_job(
    job: Job,  # of `read_grid`
    notebook: Path,  # train.ipynb
    *,
    threads: int | None = None,  # None: as many as there are
    stop: Event | None = None,  # once it is set, the job ends with KeyboardInterrupt
    say: Callable[[str], object] = print,  # gets a line when the job starts or waits
) -> Path:  # its result file in the archive
    """Run a job unless it is done, or wait for the process that is at work on it.

    A job that was cut goes on from its checkpoint. Raises RuntimeError with the job's own error in one line, DataError
    for a finished run of other data."""
    stop, name = stop or Event(), job.config.run_id
    job.folder.mkdir(parents=True, exist_ok=True)
    with _alone(job.folder / LOCK, stop, lambda: say(f"{name}: another process is at work on it, waiting")) as lock:
        if not job.target.is_file():
            if not _finished(job.folder):
                say(f"{name}: started, see {os.path.relpath(job.folder / LOG)}")
                _papermill(job, notebook, lock, threads, stop)
            _check_same_data(job, lambda: content_id(resolve(job.config).content))
            write_json(json.loads((job.folder / "result.json").read_text(encoding="utf-8")), job.target)
    return job.target


# %% [markdown]
# papermill gets what the file says: texts as they are, numbers as numbers, and all that is not among the notebook's own parameters in `extra`.

# %%
#| export
def _parameters(given: Mapping[str, Any]) -> list[str]:
    "Settings as words of papermill's command line; the archive is written by the job, not by the notebook."
    words, rest = [], {}
    for name, value in given.items():
        if name not in Config.model_fields or not isinstance(value, (str, int, float)):
            rest[name] = value
        elif name != "archive":
            words += ["-r" if isinstance(value, str) else "-p", name, str(value)]
    return words + (["-r", "extra", json.dumps(rest)] if rest else [])


# %%
assert _parameters({"method": "pce", "seed": 1, "lr": 1e-05, "archive": "results", "hd95": False}) == [
    "-r", "method", "pce", "-p", "seed", "1", "-p", "lr", "1e-05", "-p", "hd95", "False"]
assert _parameters({"lam_mcrf": 1e-05, "data_side": 48}) == ["-r", "extra", '{"lam_mcrf": 1e-05, "data_side": 48}']


# %%
#| export
def _papermill(job: Job, notebook: Path, lock: int, threads: int | None, stop: Event) -> None:
    "Run the notebook, a second time if its kernel had no port. Raises RuntimeError where it does not come to its end."
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook), str(job.folder / EXECUTED),
               *_parameters(job.given)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    for _ in range(2):
        (job.folder / EXECUTED).unlink(missing_ok=True)
        status, said = _logged(command, job.folder / LOG, lock, environment, stop)
        if _finished(job.folder):
            return
        if "Address already in use" not in said:  # two kernels that started at once drew the same port
            break
    raise RuntimeError(_why(job.folder, status, said))


# %%
#| export
def _logged(
    command: list[str], path: Path, lock: int, environment: Mapping[str, str], stop: Event
) -> tuple[int, str]:
    "Exit status of a command, and what it said to the log; it inherits the lock, and is not reached by a Ctrl-C here."
    with path.open("a+b", buffering=0) as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
        before = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                   pass_fds=[lock], start_new_session=True)
        try:
            while process.poll() is None:
                _pause(stop, 0.1)
        finally:
            _end(process)
        log.seek(before)
        return process.returncode, log.read().decode(errors="replace")


# %%
#| export
def _why(folder: Path, status: int, said: str) -> str:
    "Why a run did not come to its end, in one line: its error, else a signal, else the last line of the log."
    errors = [f"{output['ename']}: {output['evalue']}" for cell in _executed(folder)["cells"]
              for output in cell.get("outputs", []) if output["output_type"] == "error"]
    if errors:
        text = "; ".join(line.strip() for line in errors[0].splitlines() if line.strip())
    elif status < 0:
        text = f"papermill was ended by {signal.Signals(-status).name}"
    else:
        text = next((line for line in reversed(said.splitlines()) if line.strip()), f"papermill ended with {status}")
    return f"{text} (see {os.path.relpath(folder / LOG)})"


# %% [markdown]
# ## All of them
#
# A job that fails does not keep the others from running. Ctrl-C ends those that run; who calls again goes on with what is missing.

# %%
#| export
def run_grid(
    grid: Grid,  # of `read_grid`
    notebook: Path,  # train.ipynb
    *,
    jobs: int = 1,  # at a time, each with its part of the threads
    say: Callable[[str], object] = print,  # gets a line for each job that starts or ends
) -> dict[str, str]:  # run → its error in one line, for those that failed
    "Run what is missing. Raises RuntimeError where papermill is not installed, KeyboardInterrupt when it is stopped."
    if not (find_spec("papermill") and find_spec("ipykernel")):
        raise RuntimeError("papermill: found none; pip install 'attenscribble[notebook]'")
    missing, stop = [job for job in grid.jobs if state_of(job) != "done"], Event()
    run = partial(run_job, notebook=notebook, threads=threads_each(jobs), stop=stop, say=say)
    left = iter(range(len(missing) - 1, -1, -1))
    with ThreadPoolExecutor(jobs) as pool:
        ended = {job.config.run_id: pool.submit(_attempt, job, run, left, say) for job in missing}
        try:
            return {name: why for name, future in ended.items() if (why := future.result())}
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# %%
#| export
def _attempt(job: Job, run: Callable[[Job], object], left: Iterator[int], say: Callable[[str], object]) -> str:
    "Run a job and say how it ended; its error in one line, or nothing."
    started, name = time.perf_counter(), job.config.run_id
    try:
        run(job)
    except Exception as error:
        say(f"{name}: failed, {next(left)} to go")
        return " ".join(str(error).split()) or type(error).__name__
    say(f"{name}: done in {duration(time.perf_counter() - started)}, {next(left)} to go")
    return ""


# %% [markdown]
# papermill and a kernel take seconds to start, so this page runs none; `tests/test_grid.py` does, kills the command in the middle, calls it again,
# and compares results and tables byte by byte with those of a grid that nobody disturbed.
#
# ## On a cluster
#
# `attenscribble grid FILE --job RUN` runs one job. That is all that a scheduler needs: `workflow/Snakefile` has a job for each target, and
# hands them to the cores of this machine or to SLURM.
#
# ```bash
# pip install -c constraints.txt -e ".[grid]"
# snakemake -s workflow/Snakefile -c2 --config grid=workflow/phantom.toml
# snakemake -s workflow/Snakefile --profile workflow/profiles/slurm --config grid=workflow/phantom.toml
# ```
#
# All machines must see the same folders. Locks hold between machines where the file system keeps them (NFS does, Lustre when it is mounted with
# `flock`). To run a job again, remove its target and its run folder.

# %% [markdown]
# ## Exercise
#
# **Predict.** How many jobs has this grid? Return three numbers: jobs, excluded ones, and those left out because another has the same settings.

# %%
PUZZLE = SMALL + """
seed = [1, 2, 3]
[rows.plain]
method = ["pce", "ours"]
[rows.again]
method = "pce"
lr = 0.03
[[exclude]]
seed = 3
method = "ours"
"""


# %%
def check_counts(answer):
    (home / "puzzle.toml").write_text(PUZZLE)
    found = read_grid(home / "puzzle.toml", look=False)
    assert answer() == (len(found.jobs), found.excluded, found.twice)

def my_counts():
    ...  # jobs, excluded, twice

exercise(check_counts, my_counts, solution=lambda: (5, 1, 3))

# %%
place.cleanup()

# %% [markdown]
# ## Recap
#
# `read_grid` makes jobs of a file, `plan` says what is done and what the rest costs, `run_job` runs one and `run_grid` what is missing. Surprise: a
# learning rate that is written out may be the one that the profile has anyway, and then two jobs are one run. [The next
# chapter](../reporting/60_tables.ipynb) makes tables of the result files.
