"""How time and memory grow with the side of image and grid, the radius and the batch, and with which exponent."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from attenscribble.method.asl import attentive_similarity_loss
from attenscribble.method.mcrf import masked_crf_loss
from benchmarks import attentive_similarity, masked_crf
from benchmarks.measure import take


def mcrf(side: int = 192, radius: int = 5, count: int = 8) -> Callable[[], object]:
    probs, image, unlabelled = masked_crf.scene("cpu", count, side)
    return lambda: torch.autograd.grad(masked_crf_loss(probs, image, unlabelled=unlabelled, radius=radius), probs)


def asl(grid: int = 48, radius: int = 5, count: int = 4) -> Callable[[], object]:
    inputs = attentive_similarity.scene("cpu", grid, count)
    return lambda: torch.autograd.grad(attentive_similarity_loss(*inputs, radius=radius), inputs)


# loss, what grows, its values, the exponent of the time in theory, what the exponent is of
GROWTH = (
    ("masked CRF", mcrf, "side", (96, 128, 192, 256, 384, 512), 2, "pixels along a side"),
    ("masked CRF", mcrf, "radius", (3, 5, 7, 11, 15), 2, "radius + ½"),
    ("masked CRF", mcrf, "count", (4, 8, 16, 32), 1, "images"),
    ("attentive similarity", asl, "grid", (24, 32, 48, 64, 96), 4, "cells along a side"),
    ("attentive similarity", asl, "radius", (3, 5, 7, 11, 15), 2, "radius + ½"),
    ("attentive similarity", asl, "count", (2, 4, 8, 16), 1, "images"),
)


def curves() -> Iterator[dict[str, Any]]:
    "Seconds and MiB for each value, with fitted exponents."
    for loss, make, name, values, theory, unit in GROWTH:
        taken = [take(make(**{name: value}), least_s=0.3) for value in values]
        sizes = np.array(values, float) + (0.5 if name == "radius" else 0)
        yield {"loss": loss, "grows": name, "unit": unit, "values": list(values), "theory": theory,
               "seconds": [t.seconds for t in taken], "mib": [t.peak_mib for t in taken],
               "exponent": slope(sizes, [t.seconds for t in taken])}


def slope(sizes: np.ndarray, numbers: list[float]) -> float:
    "Exponent of a power law through some points."
    return float(np.polyfit(np.log(sizes), np.log(numbers), 1)[0])
