# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Files that are there or not
#
# > A file is written beside its place and then renamed, so that nobody ever reads half of one.
#
# Another process may read a file while it is being written, and the power may fail before the writing ends. A reader must then find the old content
# or the new one, never a mixture. Everything that this package writes goes through one function that makes sure of that.

# %%
#| default_exp basics.files

# %%
#| export
import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache

# %%
#| export
from pathlib import Path
from threading import Thread, get_native_id
from typing import Any

# %%
#| export
from platformdirs import user_cache_dir

from attenscribble.basics.errors import DataError

# %%
import tempfile

from attenscribble.basics.errors import refused


# %% [markdown]
# ## Where things are kept
#
# Results that are worth keeping between runs, such as compiled code or pseudo-labels, lie in the user's cache folder. In a clone of the project,
# runs and figures have folders of their own.

# %%
#| export
def cache_folder() -> Path:
    "Where results are kept between runs: $ATTENSCRIBBLE_CACHE, else the user's cache folder."
    return Path(os.environ.get("ATTENSCRIBBLE_CACHE") or user_cache_dir("attenscribble"))


# %%
#| export
def project_root(
    start: Path | str | None = None,  # where to look from; the current folder unless told
) -> Path | None:  # the clone's top folder, or None outside of one
    "The folder of the clone that holds `start`: the nearest one with this project's settings.ini."
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        settings = folder / "settings.ini"
        if settings.is_file() and "lib_name = attenscribble" in settings.read_text():
            return folder
    return None


# %% [markdown]
# ## Atomic writes
#
# The content goes to a new file in the same folder, under another name. It is then forced to the disk (`fsync`): the rename could otherwise
# reach the disk before the content does, and a power cut between the two would leave an empty file under the right name. Last comes the
# rename, which the operating system does in one step: it is *atomic*. After an error the old content is still there.

# %%
#| export
def write_atomic(
    path: Path,  # a file, or a folder that is not there yet or empty; its parent is made if it is not there
    write: Callable[[Path], object],  # writes to the path it is given: in the same folder, with the same ending
) -> None:
    "Write beside the place and rename: readers find the old content or the new one, even after an error or power cut."
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_orphans(path.parent)
    part = path.with_name(f".{os.getpid()}-{get_native_id()}-at{_machine()}-{path.name}")  # nobody else writes there
    try:
        write(part)
        for written in [part, *part.rglob("*")]:
            _to_disk(written)
        os.replace(part, path)
        _to_disk(path.parent)
    finally:
        _remove(part)


# %% [markdown]
# A folder is forced to the disk as well: it holds the names of its files. The last call makes the rename itself permanent.

# %%
#| export
def _to_disk(path: Path) -> None:
    "Wait until a file's content, or a folder's list of names, is on the disk and not only in memory."
    if path.is_dir() and os.name == "nt":  # Windows opens no folders, and needs no such call for them
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# %%
#| export
def _remove(path: Path) -> None:
    "Remove a file or a folder, if it is there."
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# %% [markdown]
# ## What a killed process leaves behind
#
# A process that is killed while it writes leaves its new file under that other name, which holds the number of the process, of its thread, and a code
# for the machine. Who lists a folder passes over such names. The next one who writes there removes them, once their process is gone or they are
# older than a day: of a process on another machine nobody here knows whether it still runs. Older versions left out the machine.

# %%
#| export
_PART = re.compile(r"\.([1-9]\d*)-([1-9]\d*)-(?:at([0-9a-f]{8})-)?.+", re.DOTALL)
_DAY_S = 24 * 3600.0


@cache
def _machine() -> str:
    "A code for this machine, eight digits; in a container for the container, whose processes have their own numbers."
    apart = Path("/proc/self/ns/pid")
    with suppress(OSError):
        return hashlib.sha256(f"{platform.node()} {os.readlink(apart)}".encode()).hexdigest()[:8]
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


# %%
#| export
def is_part(
    path: Path,  # a file or a folder
) -> bool:  # by its name alone
    "Whether a name is one under which `write_atomic` writes, so that what it holds may be half of something."
    found = _PART.fullmatch(path.name)  # a date such as .2024-10-15-notes has no thread above its process
    return found is not None and (found[3] is not None or int(found[2]) >= int(found[1]))


# %%
#| export
def without_parts(
    paths: Iterable[Path],  # of a folder
) -> list[Path]:  # in the order of their names
    "The files that are whole: all but those that somebody is writing, or was when he was killed."
    return sorted(path for path in paths if not is_part(path))


# %%
#| export
def _runs(process: int) -> bool:
    "Whether there is a process of this number."
    import psutil  # only here: the losses and networks should not wait for it

    return bool(psutil.pid_exists(process))


# %%
#| export
def _is_orphan(path: Path) -> bool:
    "Whether a part is older than a day, or its process is known to be gone."
    found = _PART.fullmatch(path.name)
    if not is_part(path) or found is None:
        return False
    here = found[3] in (None, _machine())
    return (here and not _runs(int(found[1]))) or time.time() - path.stat().st_mtime > _DAY_S


# %% [markdown]
# A folder of thousands of files takes a while to list: it is listed again only after a hundred times as long.

# %%
#| export
_listed: dict[Path, tuple[float, float]] = {}  # folder → when it was listed last, and how long that took in s


def remove_orphans(
    folder: Path,  # whose own files are looked at, not those of its subfolders
) -> None:
    "Remove what killed processes have left in a folder. What cannot be removed stays."
    began, (last, took) = time.monotonic(), _listed.get(folder, (-1.0, 0.0))
    if last >= 0 and began - last < 100 * took:
        return
    with suppress(OSError):
        for path in [folder / entry.name for entry in os.scandir(folder) if entry.name[:1] == "."]:
            with suppress(OSError, OverflowError):
                if _is_orphan(path):
                    _remove(path)
    _listed[folder] = (time.monotonic(), time.monotonic() - began)


# %%
place = Path(tempfile.mkdtemp()) / "kept/log.csv"
write_atomic(place, lambda new: new.write_text("step,loss"))
try:
    write_atomic(place, lambda new: (new.write_text("st"), 1 / 0))
except ZeroDivisionError:
    assert place.read_text() == "step,loss" and list(place.parent.iterdir()) == [place]

# %%
orphan = place.with_name(f".{2**22 + 1}-{2**22 + 1}-result.json")  # of a process that cannot be
orphan.write_text("{")
assert without_parts(place.parent.iterdir()) == [place]
write_atomic(place, lambda new: new.write_text("step,loss"))
assert not orphan.exists()


# %% [markdown]
# ## No process without the one that started it
#
# A process that is killed cannot end those that it started, and they would go on computing and writing with nobody to listen. So each of them asks for
# its own end: Linux kills it together with its parent; elsewhere a thread looks twice a second whether the parent is still there.

# %%
#| export
def end_with_parent(
    parent: int,  # number of the process that started this one
) -> None:
    "From now on this process ends at once when its parent is gone, even a killed one."
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    "Wait for a parent's end, then end this process without another line of Python."
    while os.getppid() == parent and _runs(parent):  # Windows keeps the number of a parent that is gone
        time.sleep(0.5)
    os._exit(1)


# %% [markdown]
# ## Can it be written at all?
#
# A training of a day should not end with "no space left on device". Before it begins, its folder is made, a file is written there, and the room on
# the disk is looked at.

# %%
#| export
def writable_folder(
    folder: Path,  # made if it is not there
    room: int = 0,  # bytes that will be written
) -> Path:  # the same
    "A folder in which files can be written. Raises DataError, naming folder and reason, where that cannot be."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / ".writable", lambda new: new.write_bytes(bytes(4096)))
        (folder / ".writable").unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise DataError(folder, _reason(folder, error), "a folder that can be written to") from None
    if free < room:
        raise DataError(folder, f"{free / 2**20:,.0f} MiB free on its disk", f"at least {room / 2**20:,.0f} MiB")
    return folder


# %%
#| export
def _reason(folder: Path, error: Exception) -> str:
    "Why a folder cannot be written to; a file that stands where a folder should be is named."
    blocking = next((place for place in (folder, *folder.parents) if place.is_file()), None) \
        if isinstance(error, FileExistsError | NotADirectoryError) else None
    if blocking is not None:
        return "a file" if blocking == folder else f"the file {blocking.name} in its path"
    return f"none that can be written to ({getattr(error, 'strerror', None) or error})"


# %%
try:
    writable_folder(place / "runs")
except DataError as error:
    assert "found the file log.csv in its path" in str(error)


# %% [markdown]
# ## JSON

# %%
#| export
def write_json(
    content: Any,  # what JSON can hold: no NaN, no infinity
    path: Path,  # the file; its folder is made if it is not there
) -> Path:  # the same path
    "Write JSON, completely or not at all. Raises ValueError for NaN and infinity, which JSON does not know."
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


# %%
write_json({"dsc": 0.87}, place.with_name("result.json"))
assert json.loads(place.with_name("result.json").read_text()) == {"dsc": 0.87}
try:
    write_json({"dsc": float("nan")}, place.with_name("result.json"))  # JSON has no such number
except ValueError:
    assert "0.87" in place.with_name("result.json").read_text()

# %% [markdown]
# ## JSON from elsewhere
#
# A JSON file that somebody wrote by hand may begin with a byte-order mark, as Windows' Notepad writes it, or name one thing twice; one that
# somebody wrote in anger may be a thousand brackets deep. The first is read, the others are refused.

# %%
#| export
_DEEPEST, _MOST_BYTES = 64, 2**28  # brackets inside brackets; bytes of a file: 268 MB


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    "The names and values of an object. Raises ValueError for a name that is there twice."
    names = [name for name, _ in pairs]
    if len(content := dict(pairs)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice")
    return content


# %%
#| export
def _check_depth(content: Any) -> None:
    "Raise ValueError for brackets that are nested too deep: what works on the content would fail later."
    level = [content]
    for _ in range(_DEEPEST):
        level = [inner for outer in level if isinstance(outer, (dict, list))
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return
    raise ValueError(f"more than {_DEEPEST} brackets inside each other")


# %%
#| export
def read_json(
    path: Path | str,  # a file in UTF-8, UTF-16 or UTF-32, with a byte-order mark or without
    expected: str = "JSON",  # what should be there, for the message
) -> Any:  # its content
    "Read JSON. Raises DataError naming the file, for all that is no JSON, too deep, too large, or cannot be read."
    try:
        if (size := Path(path).stat().st_size) > _MOST_BYTES:
            raise ValueError(f"{size:,} bytes of it")
        content = json.loads(Path(path).read_bytes(), object_pairs_hook=_each_once)
        _check_depth(content)
    except OSError as error:
        raise DataError(path, f"an unreadable file ({error})", expected) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataError(path, f"no JSON ({error})", expected) from None
    return content


# %%
hand = place.with_name("hand.json")
hand.write_bytes(b"\xef\xbb\xbf" + b'{"labels": {"liver": 1}}')
assert read_json(hand) == {"labels": {"liver": 1}}
for text, words in (("[" * 9999, "recursion"), ("[" * 99 + "]" * 99, "64 brackets"), ('{"a": 1, "a": 2}', "'a' twice")):
    hand.write_text(text)
    print(refused(lambda: read_json(hand), "hand.json", words, folder=hand.parent))

# %% [markdown]
# ## Recap
#
# `write_atomic` and `write_json` write files, `read_json` reads JSON of anybody, `without_parts` passes over what a killed process left,
# `writable_folder` asks before a long run, `cache_folder` and `project_root` give the folders. [The next chapter](03_drawing.ipynb) draws.
