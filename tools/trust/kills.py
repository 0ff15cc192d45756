"""A training is killed at a random moment; what lies in its folder must be whole, and going on must change nothing."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from attenscribble.runs.config import Config
from attenscribble.runs.run import run_experiment, run_folder
from attenscribble.runs.training import read_checkpoint
from tools.trust import children

TINY = {"profile": "smoke", "size": 32, "batch": 2, "iterations": 12, "eval_every": 3, "log_every": 2,
        "data_patients": 5, "data_side": 32, "data_slices": 3, "device": "cpu", "precision": "float32",
        "net_options": {"channels": [4, 4, 8, 8, 8]}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"method": "ours"},
    "teacher": {"method": "ustm"},
    "pseudo labels": {"method": "scribble2label"},
    "two branches": {"method": "dmsps", "net_options": {}},  # its network has no such option
    "averaged weights": {"method": "pce", "ema": 0.9, "checkpoint": "best_val"},
    "random walker": {"method": "random-walker"},
    "two processes": {"method": "pce", "devices": 2, "batch": 4},
}
LONG = tuple(KINDS)
SHORT = ("plain", "teacher", "pseudo labels", "two branches")


@dataclass
class Killed:
    "What came of one kill."

    kind: str
    number: int
    moment: str  # when it was killed
    faults: list[str] = field(default_factory=list)
    reached: str = ""  # how far the run was


def config_of(kind: str, folder: Path) -> Config:
    "The settings of a kind's run in a folder."
    return Config(**TINY | KINDS[kind] | {"output": str(folder / "runs"), "archive": str(folder / "archive")})


def train(config: Config, kill_at: int = 0) -> None:
    "A whole run, pictures too; `kill_at`: this process ends at so many events of the file system."
    if kill_at:
        sys.addaudithook(_Fuse(kill_at))
    run_experiment(config)


class _Fuse:
    "Ends the process at the n-th event of the file system inside a run's folders."

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.mkdir", "os.remove") and self._ours(arguments):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _ours(arguments: tuple) -> bool:
        return isinstance(arguments[0], (str, bytes)) and "trust-" in os.fsdecode(arguments[0])


def events_of(config: Config) -> int:
    "How many such events a whole run has."
    fuse = _Fuse(0)
    sys.addaudithook(fuse)
    run_experiment(config)
    return -fuse.left


def outcome_of(config: Config) -> dict[str, Any]:
    "Weights, scores and masks of a finished run, as digests."
    folder = run_folder(config)
    content = read_checkpoint(folder / "checkpoint.pt")
    weights = hashlib.sha256()
    for group in ("model", "optimiser", "teacher", "average"):
        _digest(content.get(group, {}), weights)
    masks = {path.name: hashlib.sha256(np.asarray(nib.load(path).dataobj).tobytes()).hexdigest()
             for path in sorted((folder / "masks").iterdir())}
    result, archived = (json.loads(path.read_text()) for path in (
        folder / "result.json", Path(config.archive) / f"{config.run_id}.json"))
    return {"weights": weights.hexdigest(), "cases": result["cases"], "archive": archived["cases"], "masks": masks,
            "step": content["step"]}


def _digest(part: Any, digest: Any) -> None:
    "All tensors of nested dictionaries and lists, in order."
    if hasattr(part, "numpy"):
        digest.update(part.detach().contiguous().numpy().tobytes())
    elif isinstance(part, dict):
        for name in sorted(part, key=str):
            _digest(part[name], digest)
    elif isinstance(part, (list, tuple)):
        for entry in part:
            _digest(entry, digest)


def broken_files(folder: Path) -> list[str]:
    "Files under a final name that cannot be read to their end."
    faults = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and (read := _READERS.get(path.suffix)):
            try:
                read(path)
            except Exception as error:
                faults.append(f"{path.name} is broken ({type(error).__name__})")
    return faults


def _load_nifti(path: Path) -> None:
    np.asarray(nib.load(path).dataobj)


def _load_png(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


def _load_csv(path: Path) -> None:
    rows = list(csv.reader(path.open()))
    if len({len(row) for row in rows}) != 1:
        raise ValueError("rows of several lengths")


_READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()), ".pt": read_checkpoint, ".gz": _load_nifti, ".png": _load_png,
    ".csv": _load_csv, ".md": lambda path: path.read_text() or 1 / 0}


def orphans(folder: Path) -> list[str]:
    "Temporary files that nobody removed."
    return [f"{path.name} was left over" for path in sorted(folder.rglob(".*")) if path.is_file()]


def one(kind: str, number: int, seed: int, reference: dict[str, Any], events: int, seconds: float) -> Killed:
    "Kill a run once, look, go on, and compare. Every other kill is at an event of the file system, else by the clock."
    chance = random.Random(f"{seed}-{kind}-{number}")
    folder = Path(tempfile.mkdtemp(prefix="trust-"))
    try:
        config = config_of(kind, folder)
        at = chance.randint(1, events) if number % 2 == 0 and config.devices == 1 else 0
        after = None if at else chance.uniform(0, 1.05 * seconds)
        found = Killed(kind, number, f"event {at} of {events}" if at else f"{after / seconds:.0%} of its time")
        ended = children.run(lambda: train(config, at), kill_s=after)
        _look(found, ended, folder, config)
        _go_on(found, folder, config, reference)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _look(found: Killed, ended: children.Ended, folder: Path, config: Config) -> None:
    "What a kill has left behind."
    if ended.error:
        found.faults.append(f"failed before the kill: {ended.error[:300]}")
    found.faults += [f"{len(ended.left)} processes outlived it"] * bool(ended.left)
    found.faults += broken_files(folder)
    checkpoint = run_folder(config) / "checkpoint.pt"
    if checkpoint.is_file() and not found.faults:
        found.reached = f"iteration {read_checkpoint(checkpoint)['step']}"


def _go_on(found: Killed, folder: Path, config: Config, reference: dict[str, Any]) -> None:
    "Resume to the end, and compare with a run that nobody killed."
    ended = children.run(lambda: train(config))
    if ended.error or ended.signal:
        found.faults.append(f"cannot go on: {ended.error[:300] or ended.signal}")
        return
    now = outcome_of(config)
    found.faults += [f"other {name} than undisturbed" for name, value in reference.items() if now[name] != value]
    found.faults += broken_files(folder) + orphans(folder)


def kills(count: int = 200, seed: int = 0, kinds: tuple[str, ...] = LONG) -> dict[str, Any]:  # figures
    "So many kills over all kinds of method."
    rows: dict[str, dict[str, int]] = {}
    faults: list[dict[str, Any]] = []
    for place, kind in enumerate(kinds):
        numbers = range(place, count, len(kinds))
        if not numbers:
            continue
        reference, events, seconds = undisturbed(kind)
        done = [one(kind, number, seed, reference, events, seconds) for number in numbers]
        rows[kind] = {"kills": len(done), "with a checkpoint": sum(bool(k.reached) for k in done),
                      "bit-equal": sum(not k.faults for k in done)}
        faults += [{"kind": kind, "number": k.number, "moment": k.moment, "faults": k.faults} for k in done if k.faults]
        print(f"kills: {kind}: {rows[kind]}", flush=True)
    return {"count": count, "seed": seed, "kinds": rows, "faults": faults}


def undisturbed(kind: str) -> tuple[dict[str, Any], int, float]:
    "Outcome, number of file events and duration of a run that nobody kills."
    folder = Path(tempfile.mkdtemp(prefix="trust-"))
    try:
        config = config_of(kind, folder)
        ended = children.run(lambda: events_of(config))
        if ended.error:
            raise RuntimeError(f"{kind}: the undisturbed run failed: {ended.error}\n{ended.trace}")
        return outcome_of(config), ended.answer, ended.seconds
    finally:
        shutil.rmtree(folder, ignore_errors=True)
