"""What it takes to import a part of the package, in seconds of CPU, beside the least that it cannot do without."""

import resource
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.measure import Row, Taken

REPEATS = 15


def cpu_seconds(*arguments: str) -> float:
    "CPU seconds of one run of Python."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def side_by_side(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[Taken, Taken]:
    "Both commands in turn, after one of each that fills the caches of the disk: the least of each."
    cpu_seconds(*one), cpu_seconds(*other)
    pairs = [(cpu_seconds(*one), cpu_seconds(*other)) for _ in range(REPEATS)]
    return tuple(Taken(min(times), max(times) / min(times), 1.0) for times in zip(*pairs, strict=True))


def rows(device: str) -> Iterator[Row]:
    if device != "cpu":
        return
    torch_, loss = side_by_side(("-c", "import torch"), ("-c", "import attenscribble.method.asl"))
    yield Row("import attenscribble.method.asl, CPU seconds", device, torch_, loss, "at most 1.15 × import torch", "",
              loss.seconds <= 1.15 * torch_.seconds, "import torch")
    bare, package = side_by_side(("-c", "pass"), ("-c", "import attenscribble"))
    yield Row("import attenscribble, CPU seconds", device, bare, package, "shown", "", None, "python -c pass")
    program = "from attenscribble.entry.commands import main; main(['--help'])"
    _, asked = side_by_side(("-c", "pass"), ("-c", f"try:\n    {program}\nexcept SystemExit: pass"))
    yield Row("attenscribble --help, CPU seconds", device, None, asked, "without torch, at most 0.5 s", "",
              asked.seconds <= 0.5)
