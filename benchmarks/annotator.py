"""How much does a training on one scan's strokes depend on its seed? annotator.json, and the README's table.

    python -m benchmarks.annotator       a quarter of an hour on two cores; needs ACDC

Four scans that were not used to choose any setting. A simulated annotator draws on every second slice, then twice puts
a stroke into the largest wrong region of each slice; the network is trained after each time. One thread a process:
the number of threads changes what is learnt, as a seed does.
"""

import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from attenscribble.annotation.session import QUICK, WARM_START, correct, learn, open_session
from attenscribble.basics.files import write_json
from attenscribble.data.datasets import open_dataset
from attenscribble.data.folder import IGNORE
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import Case
from attenscribble.data.simulation import simulate
from attenscribble.runs.metrics import dice
from attenscribble.runs.run import machine_kind, software
from benchmarks.pictures import write_table

PLACE = Path(__file__).parent / "annotator.json"
MARKS = "<!-- annotator -->\n", "<!-- end of annotator -->"
SCANS = ("phantom 6", "phantom 7", "patient041", "patient096")
SEEDS = (1, 2, 3)
ROUNDS = 3
# settings over QUICK, and whether a training goes on from the last one's weights, as the annotator's does
KINDS = {"dropout, fresh weights": ({"net_options": {}}, False), "fresh weights": ({}, False),
         "the annotator": ({}, True)}


def scan_named(name: str) -> tuple[Case, tuple[str, ...]]:
    "A scan with dense labels and strokes on every second slice; the classes' names."
    if name.startswith("phantom"):
        data = phantom(patients=1, seed=int(name.split()[1]), side=96)
        case = next(data.cases())
        drawn = simulate(case.label, "hand", classes=data.classes, ignore=IGNORE, case=case.name, length=0.5)
    else:
        data = open_dataset("acdc")
        case = next(data.cases([name]))
        drawn = np.where(case.scribble == data.ignore, IGNORE, case.scribble).astype(np.uint8)
    drawn[1::2] = IGNORE
    return replace(case, scribble=drawn), data.class_names


def quiet_and_single_threaded() -> None:
    "Begin a process: one thread, and no progress bar, since several processes would write theirs over one another."
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")


def draw_and_train(name: str, kind: str, seed: int) -> dict:
    "Three rounds on one scan: after each, DSC of each class and the share of its strokes that the mask agrees with."
    case, names = scan_named(name)
    drawn, rounds, classes, state = case.scribble, [], range(1, len(names)), None
    settings, warm_start = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            mask, state = learn(open_session(case, names, folder), drawn, before=state if warm_start else None,
                                seed=seed, **settings)
            rounds.append({"dsc": [round(dice(mask == c, case.label == c), 4) for c in classes],
                           "kept": [round(float((mask[drawn == c] == c).mean()), 4) for c in classes],
                           "drawn": round(float((drawn != IGNORE).mean()), 4), "seconds": round(state.seconds, 1)})
            drawn = correct(case.label, drawn, mask)
    return {"scan": name, "kind": kind, "seed": seed, "rounds": rounds}


def markdown(rows: list[dict]) -> str:
    "The README's table: mean DSC over the classes after each training."
    each = len(rows) // len(KINDS)
    lines = [f"| mean DSC of {each} sittings: least, median, greatest | first strokes | corrected once | twice |",
             "|---|---|---|---|"]
    for kind in KINDS:
        scores = np.array([[np.mean(done["dsc"]) for done in row["rounds"]] for row in rows if row["kind"] == kind])
        cells = (" ".join(f"{v:.2f}" for v in np.quantile(column, (0, 0.5, 1))) for column in scores.T)
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    for name in SCANS:
        scan_named(name)  # a scan that is not there stops this now, not in ten minutes
    jobs = list(product(SCANS, KINDS, SEEDS))
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), quiet_and_single_threaded) as pool:
        rows = []
        for row in pool.map(draw_and_train, *zip(*jobs, strict=True)):
            rows.append(row)
            print(json.dumps(row), flush=True)
    settings = {"quick": QUICK, "warm_start": WARM_START}
    place = {"machine": machine_kind(torch.device("cpu")), "software": software()}
    write_json(settings | place | {"rows": rows}, PLACE)
    write_table(markdown(rows), PLACE.parents[1] / "README.md", MARKS)
    print(markdown(rows))


if __name__ == "__main__":
    main()
