"""Two processes against one, each on one thread: what is left of twice the speed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch

from attenscribble.basics.files import write_json
from attenscribble.data.phantom import phantom
from attenscribble.runs.config import Config
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import start_training, train_in_processes
from benchmarks.measure import Row, Taken


def seconds(count: int, device: str) -> float:
    "Of an iteration, the median after the first few, in `count` processes."
    config = Config(profile="mini", dataset="phantom", iterations=24, log_every=1, devices=count, device=device)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        write_json(config.model_dump(), Path(folder) / "config.json")
        log = train_in_processes(start_training(resolve(config, phantom())), Path(folder)).log
    return float(np.median(np.diff([row["seconds"] for row in log])[5:]))


def rows(device: str) -> Iterator[Row]:
    if device == "cuda" and torch.cuda.device_count() < 2:
        return
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        one, two = seconds(1, device), seconds(2, device)
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if threads:
            os.environ["OMP_NUM_THREADS"] = threads
    yield Row(f"two processes of one thread, batch 8 (efficiency {one / two / 2:.0%})", device, Taken(one, 1.0, 1.0),
              Taken(two, 1.0, 1.0), "shown", "half of one process's time", None, "one process of one thread")
