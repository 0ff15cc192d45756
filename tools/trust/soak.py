"""A long training: memory, open handles and the time of a step stay as they are."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from attenscribble.runs.config import Config
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import train
from tools.trust.kills import TINY

MEMORY_MIB_AN_HOUR, STEP_AN_HOUR, WARM_UP = 30.0, 0.10, 0.2  # bounds; share of the time that is not looked at


class _Over(Exception):
    "The time is up."


class _Meter:
    "Reads the process at each row of the log."

    def __init__(self, seconds: float) -> None:
        self.end, self.rows, self.process = time.monotonic() + seconds, [], psutil.Process()
        self.step, self.at = 0, time.process_time()

    def __call__(self, state: Any) -> None:
        now, used = time.monotonic(), time.process_time()  # other work on the machine does not slow a step down
        self.rows.append((now, self.process.memory_info().rss / 2**20, self.process.num_fds(),
                          self.process.num_threads(), (used - self.at) / max(1, state.step - self.step)))
        self.step, self.at = state.step, used
        if now > self.end:
            raise _Over


def soak(minutes: float = 60.0, method: str = "ours") -> dict[str, Any]:  # figures
    "Train for so long; slopes are those of robust lines (Theil and Sen) through all readings after the warm-up."
    torch.set_num_threads(1)
    config = Config(**TINY | {"method": method, "iterations": 10**8, "eval_every": 50, "log_every": 10})
    meter = _Meter(60 * minutes)
    with tempfile.TemporaryDirectory(prefix="trust-") as home:
        try:
            train(resolve(config), Path(home), meter)
        except _Over:
            pass
    table = np.array(meter.rows)
    table = table[table[:, 0] > table[0, 0] + WARM_UP * (table[-1, 0] - table[0, 0])]
    hours = (table[:, 0] - table[0, 0]) / 3600
    memory, step = slope(hours, table[:, 1]), slope(hours, table[:, 4]) / np.median(table[:, 4])
    found = {"minutes": minutes, "method": method, "steps": meter.step, "readings": len(table),
             "memory, MiB": round(float(np.median(table[:, 1])), 1), "memory, MiB an hour": round(memory, 2),
             "handles": [int(table[:, 2].min()), int(table[:, 2].max())],
             "threads": [int(table[:, 3].min()), int(table[:, 3].max())],
             "step, CPU ms": round(1000 * float(np.median(table[:, 4])), 2),
             "step, share an hour": round(float(step), 4)}
    return found | {"faults": unsteady(found, minutes)}


def unsteady(found: dict[str, Any], minutes: float) -> list[str]:
    "What is not flat. A slope from less than half an hour is shown and not judged."
    faults = [f"{name}: {found[name]}" for name in ("handles", "threads") if found[name][0] != found[name][1]]
    if minutes >= 30:
        if found["memory, MiB an hour"] > MEMORY_MIB_AN_HOUR:
            faults.append(f"memory grows by {found['memory, MiB an hour']} MiB an hour")
        if found["step, share an hour"] > STEP_AN_HOUR:
            faults.append(f"steps slow down by {found['step, share an hour']:.0%} an hour")
    return faults


def slope(x: np.ndarray, y: np.ndarray, most: int = 600) -> float:
    "The median of the slopes through all pairs of at most so many readings."
    chosen = np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(int)
    x, y = x[chosen], y[chosen]
    first, second = np.triu_indices(len(x), 1)
    run = x[second] - x[first]
    return float(np.median((y[second] - y[first])[run > 0] / run[run > 0])) if (run > 0).any() else 0.0
