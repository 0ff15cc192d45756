"""How a form of something is timed, and what a row of the table holds."""

import ctypes
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch


@dataclass(frozen=True)
class Taken:
    "What a call takes."

    seconds: float  # median of the repeats; of imports the least, as other work only adds
    spread: float  # slowest over fastest
    peak_mib: float  # above what was held before the call


@dataclass(frozen=True)
class Row:
    "One line of the table."

    item: str
    device: str  # "cpu" or "cuda"
    reference: Taken | None  # None: there is none, or it does not fit
    ours: Taken
    target: str  # what was asked for
    floor: str  # estimated least time, and how
    met: bool | None  # None: the target has no number here
    against: str = ""  # what the reference is
    error: float | None = None  # largest difference of the two, relative to the largest number

    @property
    def faster(self) -> float | None:
        "Times the reference's speed."
        return self.reference.seconds / self.ours.seconds if self.reference else None

    @property
    def leaner(self) -> float | None:
        "The reference's memory over ours."
        return self.reference.peak_mib / max(self.ours.peak_mib, 1) if self.reference else None

    def record(self) -> dict[str, Any]:
        "For JSON."
        return asdict(self) | {"faster": self.faster, "leaner": self.leaner}


class Peak:
    "Most memory held while it is open, above what was held before, in MiB."

    def __init__(self, device: str):
        self.device, self.mib = device, 0.0

    def __enter__(self) -> "Peak":
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return self
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # free memory goes back, so that growth is seen
        self.process, self.done = psutil.Process(), threading.Event()
        self.start = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *problem: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.mib = (torch.cuda.max_memory_allocated() - self.start) / 2**20
            return
        self.most = max(self.most, self.process.memory_info().rss)
        self.done.set()
        self.thread.join()
        self.mib = (self.most - self.start) / 2**20


def take(
    call: Callable[[], object],
    device: str = "cpu",
    least_s: float = 1.0,  # time it for as long as this, and at least three times unless a call takes longer than 5 s
) -> Taken:
    "Median seconds of a call after a first one, and the memory of one."
    with Peak(device) as peak:
        call()
    if device == "cpu":
        with Peak(device) as again:  # the first call also pays for what stays: libraries, caches
            call()
        peak = min(peak, again, key=lambda one: one.mib)
    times: list[float] = []
    while not times or ((sum(times) < least_s or len(times) < 3) and times[0] < 5):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return Taken(statistics.median(times), max(times) / min(times), peak.mib)


def difference(ours: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    "Largest difference of two lists of tensors, each relative to the reference's largest number."
    return max(float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30))
               for a, b in zip(ours, reference, strict=True))


def devices() -> list[str]:
    "Where to measure: the processor, and a GPU if there is one."
    return ["cpu"] + ["cuda"] * torch.cuda.is_available()
