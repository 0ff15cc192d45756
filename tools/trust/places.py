"""Disk full, folder read-only, folder deleted: the message is the package's own, and earlier results stay whole."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attenscribble.runs.config import Config
from attenscribble.runs.run import run_experiment, run_folder
from tools.trust import children
from tools.trust.kills import TINY, broken_files


def _config(home: Path, **more: Any) -> Config:
    return Config(**TINY | {"method": "pce", "output": str(home / "runs"), "archive": str(home / "archive")} | more)


def _state(home: Path) -> dict[str, str]:
    "Digest of every file."
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(home.rglob("*")) if path.is_file() and path.name != "lock"}


@contextmanager
def mounted(options: str) -> Iterator[Path | None]:
    "A file system of its own in memory; None where this user may not mount one."
    home = Path(tempfile.mkdtemp(prefix="trust-"))
    made = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(home)], capture_output=True).returncode == 0
    try:
        yield home if made else None
    finally:
        if made:
            subprocess.run(["umount", str(home)], check=True)
        shutil.rmtree(home, ignore_errors=True)


def judged(ended: children.Ended, home: Path, before: dict[str, str]) -> list[str]:
    "Faults: a run that fails without a word of its own, a broken file, an earlier one that changed."
    after = _state(home)
    faults = [f"{name} changed" for name, digest in before.items() if after.get(name) != digest]
    faults += broken_files(home)
    kind, _, text = ended.error.partition(": ")
    if ended.signal:
        faults.append(f"ended by signal {ended.signal}")
    elif ended.error and not (kind.startswith("attenscribble.") or (str(home) in text and "expected" in text)):
        faults.append(f"not our message: {ended.error[:200]}")
    elif ended.error and str(home) not in text:
        faults.append(f"a message without the folder: {ended.error[:200]}")
    return faults


def full(share: float) -> dict[str, Any]:
    "A disk that has room for a share of what a run writes."
    with tempfile.TemporaryDirectory(prefix="trust-") as dry:
        children.run(lambda: run_experiment(_config(Path(dry))) and None)
        needed = sum(path.stat().st_size for path in Path(dry).rglob("*") if path.is_file())
    with mounted(f"size={int(3.2 * needed)}") as home:
        if home is None:
            return _limited(int(needed * share))
        children.run(lambda: run_experiment(_config(home, seed=1)) and None)
        before = _state(home)
        left = os.statvfs(home)
        room = int(left.f_bavail * left.f_frsize - share * needed)
        (home / "ballast").write_bytes(bytes(max(0, room)))
        ended = children.run(lambda: run_experiment(_config(home)) and None)
        return {"what": f"disk full after {share:.0%} of a run", "how": "a file system in memory",
                "said": ended.error[:300], "faults": judged(ended, home, before)}


def _limited(size: int) -> dict[str, Any]:
    "Without a file system of one's own: no file may grow beyond a size."
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    with tempfile.TemporaryDirectory(prefix="trust-") as home:
        children.run(lambda: run_experiment(_config(Path(home), seed=1)) and None)
        before = _state(Path(home))
        ended = children.run(lambda: run_experiment(_config(Path(home))) and None, before=limit)
        return {"what": f"no file may be larger than {size} bytes", "how": "a limit of the process",
                "said": ended.error[:300], "faults": judged(ended, Path(home), before)}


def read_only() -> dict[str, Any]:
    "A folder in which nothing can be written."
    with mounted("size=64m") as mount, tempfile.TemporaryDirectory(prefix="trust-") as plain:
        home = mount or Path(plain)
        children.run(lambda: run_experiment(_config(home, seed=1)) and None)
        before = _state(home)
        if mount:
            subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
        else:
            for folder in (home / "runs", home / "archive"):
                folder.chmod(0o555)
        ended = children.run(lambda: run_experiment(_config(home)) and None)
        for folder in () if mount else (home / "runs", home / "archive"):
            folder.chmod(0o755)
        faults = judged(ended, home, before)
        return {"what": "folder read-only", "how": "mounted so" if mount else "by its mode", "said": ended.error[:300],
                "faults": faults + ["it went unnoticed"] * (not ended.error)}


def deleted(what: Callable[[Config], Path], name: str) -> dict[str, Any]:
    "A folder that somebody deletes in the middle of a run."
    with tempfile.TemporaryDirectory(prefix="trust-") as temporary:
        home = Path(temporary)
        children.run(lambda: run_experiment(_config(home, seed=1)) and None)
        config = _config(home)
        gone = what(config)
        before = {path: digest for path, digest in _state(home).items() if not (home / path).is_relative_to(gone)}

        def delete(state: Any) -> None:
            if state.step == 6:
                shutil.rmtree(gone, ignore_errors=True)

        ended = children.run(lambda: run_experiment(config, delete) and None)
        faults = judged(ended, home, before)
        finished = (run_folder(config) / "result.json").is_file()
        return {"what": f"{name} deleted in the middle", "how": "by a watcher", "said": ended.error[:300],
                "faults": faults + ["neither a result nor a word"] * (not finished and not ended.error)}


def places(short: bool = False) -> dict[str, Any]:  # figures
    "All of it; short: a disk that is nearly full, and a deleted run folder."
    rows = [full(0.5)]
    if not short:
        rows += [full(0.05), full(0.9), full(1.2), read_only(),
                 deleted(lambda config: Path(config.output), "runs/")]
    rows.append(deleted(run_folder, "the run's folder"))
    for row in rows:
        print(f"places: {row['what']}: {row['faults'] or 'right'}", flush=True)
    return {"rows": rows}
