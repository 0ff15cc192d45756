"""HD95 of real volumes, and a whole test fold scored: against MedPy."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from medpy.metric.binary import hd95 as medpy_hd95

from attenscribble.basics.errors import DataError
from attenscribble.data.datasets import open_dataset
from attenscribble.runs.metrics import POLICIES, hd95, score_case
from benchmarks.measure import Row, take

Pair = tuple[np.ndarray, np.ndarray, tuple[float, ...]]


def wrong(label: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    "A prediction as networks make them: moved by a pixel or two, a few specks far away."
    moved = np.roll(label, draw.integers(-2, 3, 2), (1, 2))
    specks = draw.random(label.shape) < 2e-4
    return np.where(specks, draw.integers(1, label.max() + 1, label.shape), moved).astype(np.uint8)


def volumes(name: str, most: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple[float, ...]]]:
    "Case, prediction, label and spacing of the first test fold."
    try:
        dataset = open_dataset(name)
    except (DataError, ValueError):
        return
    draw = np.random.default_rng(0)
    for number, case in enumerate(dataset.cases(dataset.split(min(dataset.folds))[1])):
        if number == most:
            return
        yield case.name, wrong(case.label, draw), case.label, case.spacing_mm


def rows(device: str) -> Iterator[Row]:
    if device != "cpu":
        return
    for name in ("acdc", "chaos", "phantom"):
        pairs: list[Pair] = [(found == k, label == k, mm) for _, found, label, mm in volumes(name, 6)
                             for k in np.unique(label)[1:] if (found == k).any()]
        if not pairs or (name == "phantom" and open_anything()):
            continue
        ours, reference = (take(partial(every, f, pairs), least_s=0) for f in (hd95, medpy_hd95))
        error = float(max(abs(hd95(*pair) - medpy_hd95(*pair)) for pair in pairs))
        row = Row(f"HD95 of {len(pairs)} masks, {name}", "cpu", reference, ours, "5× faster, equal to 1e-6 mm", "",
                  None, "MedPy 0.5.2", error)
        yield Row(**vars(row) | {"met": bool(row.faster >= 5 and error < 1e-6)})
    cases = list(volumes("acdc", 40) if open_anything() else volumes("phantom", 40))
    names = ("background", "RV", "Myo", "LV")
    taken = take(lambda: [score_case(found, label, mm, names, policy=POLICIES, case=case)
                          for case, found, label, mm in cases], least_s=0)
    yield Row(f"a test fold scored, {len(cases)} volumes", "cpu", None, taken, "at most 10 s", "", taken.seconds <= 10)


def every(distance: Callable[..., float], pairs: list[Pair]) -> list[float]:
    "The distance of all pairs."
    return [distance(*pair) for pair in pairs]


def open_anything() -> bool:
    "Whether there is real data at all."
    return any(True for name in ("acdc", "chaos") for _ in volumes(name, 1))
