"""Each mutant is refused by name, or loaded rightly; else it is a fault: raw, wrong, hung or crashed."""

import json
import shutil
import tempfile
import traceback
import zlib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from attenscribble.basics.errors import DataError
from tools.trust.children import Worker
from tools.trust.mutators import pick
from tools.trust.oracles import Refuse
from tools.trust.readers import READERS, Reader

FAULTS = ("raw", "wrong", "hang", "crash")
LIMIT_S = 60.0  # for one mutant; a reader takes well under a second


@cache
def _template(name: str) -> Path:
    "Files of a reader that are right."
    home = Path(tempfile.mkdtemp(prefix=f"trust-{zlib.crc32(name.encode())}-"))
    READERS[name].make(home)
    return home


def mutant(reader: Reader, home: Path, seed: int, number: int) -> str:
    "Change one file; what was done."
    chance = np.random.default_rng([seed, zlib.crc32(reader.name.encode()), number])
    pattern, ways = pick(chance, reader.files)
    path = pick(chance, sorted(home.glob(pattern)))
    return f"{path.relative_to(home)}: {pick(chance, ways)(path, chance)}"


def judged(reader: Reader, home: Path) -> tuple[str, str]:
    "What becomes of a folder: the class, and the message or the difference."
    try:
        loaded = reader.load(home)
    except Exception as error:
        return ("refused" if _ours(error, home) else "raw"), _said(error)
    try:
        reader.compare(loaded, home)
    except Refuse as why:
        return "wrong", f"accepted, though {why}"
    except AssertionError as what:
        return "wrong", str(what)
    except Exception as error:
        return "unjudged", _said(error)
    return "equal", ""


def _ours(error: Exception, home: Path) -> bool:
    "Whether an error is the package's own: of its type, and it says which file or setting."
    text = str(error)
    names = {home.name, *(path.name for path in home.rglob("*")), *(_stem(path) for path in home.rglob("*"))} - {""}
    if (home / "settings.json").is_file():
        return type(error) in (ValueError, DataError) and all(": " in line for line in text.splitlines())
    return type(error) in (ValueError, DataError) and any(name in text for name in names)


def _stem(path: Path) -> str:
    "A name without endings; empty for one so short that it occurs in any text."
    stem = path.name.split(".")[0]
    return stem if len(stem) > 4 else ""


def _said(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"


def answer(request: list) -> list[str]:
    "One mutant, made and judged: class, what was done, what was said."
    name, seed, number = request
    with tempfile.TemporaryDirectory(prefix="trust-") as temporary:
        home = Path(temporary) / "files"
        shutil.copytree(_template(name), home)
        try:
            done = mutant(READERS[name], home, seed, number) if number >= 0 else "nothing"
        except Exception as error:
            return ["unmade", "", _said(error)]
        return [*(found := judged(READERS[name], home))[:1], done, found[1]]


def mutations(count: int = 10_000, seed: int = 0, reader: str = "", only: int = -1) -> dict[str, Any]:  # figures
    "So many mutants, dealt to all readers in turn; the file of each is whole again for the next."
    names = [reader] if reader else list(READERS)
    for name in names:
        _template(name)
    worker, tally, faults = Worker(answer), {name: Counter() for name in names}, []
    try:
        for name in names:
            if (found := worker([name, seed, -1], LIMIT_S))[0] != "equal":
                raise RuntimeError(f"{name}: files that are right: {found}")
        numbers = [only] if only >= 0 else range(count)
        for number in numbers:
            name = names[number % len(names)]
            found = worker([name, seed, number], LIMIT_S)
            kind, done, said = found if isinstance(found, list) else (found.split(":")[0], "", found)
            tally[name][kind] += 1
            if kind in (*FAULTS, "unmade", "unjudged"):
                faults.append({"reader": name, "number": number, "kind": kind, "done": done, "said": said})
            if only >= 0:
                print(json.dumps([kind, done, said], indent=1, ensure_ascii=False))
    finally:
        worker.close()
        for name in names:
            shutil.rmtree(_template(name), ignore_errors=True)
        _template.cache_clear()
    table = {name: dict(sorted(kinds.items())) for name, kinds in tally.items()}
    return {"count": count, "seed": seed, "readers": table, "faults": faults}
