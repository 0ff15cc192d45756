"""What to do when a GPU is at hand for minutes: check, time, and train many runs at once.

    python -m benchmarks.gpu check                                    the kernels and a step, in half a minute
    python -m benchmarks.gpu runs workflow/tune.toml --to out --pack acdc.pack.zip --pack chaos.pack.zip \
        --at-once 14 --seconds 240                                    the grid's missing runs, the first rows first

Datasets travel as packs (`attenscribble pack`). All runs share what is read once; masks are scored, not
kept. A run whose result lies in the folder is done, so the same line goes on after a break.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
STARTED = time.time()


def say(*words: object) -> None:
    "A line with the seconds since the start."
    print(f"[{time.time() - STARTED:.0f}s]", *words, flush=True)


# --- check


def check_crf() -> None:
    "The one launch against the walk, and both times."
    import torch

    from attenscribble.method.mcrf import Affinity, _walk, _walk_in_triton

    for count, channels, side, radius, both in ((8, 1, 128, 3, True), (12, 1, 256, 5, True), (12, 2, 256, 5, False)):
        probs = torch.randn(count, 4, side, side, device="cuda").softmax(1).to(memory_format=torch.channels_last)
        image, free = (torch.rand(count, k, side, side, device="cuda") for k in (channels, 1))
        arguments = probs, image, free > 0.1, Affinity(radius, 6.0, 0.1, both), True
        pairs = zip(_walk_in_triton(*arguments) or (), _walk(*arguments), strict=False)
        gaps = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
        say(f"masked CRF {count}×{side}², r {radius}: gaps {gaps}, ms", {
            form.__name__: milliseconds(partial(form, *arguments)) for form in (_walk, _walk_in_triton)})


def milliseconds(call: Any, repeats: int = 20) -> float:
    "Median time of a call on the device."
    import torch

    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return round(sorted(times)[repeats // 2], 3)


def check_steps() -> None:
    "Milliseconds a step, by method and size, and what still waits for the device."
    import torch

    from attenscribble.runs.config import Config
    from attenscribble.runs.setup import resolve
    from attenscribble.runs.training import train

    for settings in ({"method": "pce"}, {"method": "gated-crf"}, {"method": "ours", "ssa_block": "residual"}):
        for size, batch in ((128, 8), (256, 12)):
            sizes = {"size": size, "batch": batch, "iterations": 60, "log_every": 20}
            log = train(resolve(Config(**settings, **sizes, profile="smoke", compile="off"))).log
            say(settings, f"{size}²×{batch}", f"{1000 * (log[-1]['seconds'] - log[0]['seconds']) / 40:.1f} ms a step")
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(resolve(Config(profile="smoke", size=128, batch=8, iterations=20, log_every=20, compile="off")))
    torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    say("waits in 20 steps:", {place: places.count(place) for place in dict.fromkeys(places)})


# --- runs


def one_run(job: Any, data: dict, folder: Path) -> dict[str, Any]:
    "Train, segment and score one run of a grid; its result file is written last."
    from attenscribble.basics.files import write_json
    from attenscribble.runs import run
    from attenscribble.runs.inference import TrainedNetwork
    from attenscribble.runs.setup import resolve
    from attenscribble.runs.training import train

    run.save_mask = lambda *_: None
    setup = resolve(job.config.model_copy(update={"device": "cuda", "compile": "off"}), data[job.config.dataset])
    state = train(setup)
    network, started = TrainedNetwork.of(state), time.perf_counter()
    network.model.eval()
    masks, rows = run.segment_fold(network, setup, folder)
    result = run._result(state, rows, len(masks), time.perf_counter() - started)
    write_json(result, folder / f"{result['run']}.json")
    return result


def work(jobs: Any, results: Any, data: dict, folder: Path, until: float) -> None:
    "A process of the pool."
    import torch

    torch.set_num_threads(1)
    while time.time() < until and (job := jobs.get()) is not None:
        try:
            results.put((job.row, one_run(job, data, folder)))
        except Exception:
            results.put((job.row, traceback.format_exc()[-2000:]))
    results.put(None)


def read_packs(paths: list[str]) -> dict:
    "Dataset name → dataset whose cases are all in memory."
    from attenscribble.data.pack import pack

    found = {}
    for path in paths:
        dataset = pack(path)
        cases = {patient: list(dataset.read(patient)) for patient in dataset.patients}
        found[dataset.name] = replace(dataset, read=cases.__getitem__)
        say(f"{path}: {dataset.name}, {len(cases)} patients")
    return found


def runs(given: argparse.Namespace) -> None:
    "The missing runs of a grid, several at once."
    from attenscribble.runs.grid import read_grid

    folder = Path(given.to)
    folder.mkdir(parents=True, exist_ok=True)
    data = read_packs(given.pack)
    todo = [job for job in read_grid(Path(given.grid)).jobs if not (folder / f"{job.config.run_id}.json").is_file()]
    context = multiprocessing.get_context("fork")  # before anything has touched the card
    jobs, results = context.Queue(), context.Queue()
    for job in [*todo, *[None] * given.at_once]:
        jobs.put(job)
    until = STARTED + given.seconds
    pool = [context.Process(target=work, args=(jobs, results, data, folder, until), daemon=True)
            for _ in range(given.at_once)]
    for process in pool:
        process.start()
    say(f"{len(todo)} runs to do, {given.at_once} at once")
    listen(results, given.at_once, until + given.grace)
    os._exit(0)  # what still trains then is not waited for


def listen(results: Any, processes: int, end: float) -> None:
    "Print what comes, until all have gone or the time is over."
    from attenscribble.reporting.tables import summary_of

    while processes and time.time() < end:
        try:
            found = results.get(timeout=max(0.1, end - time.time()))
        except Exception:
            return say("the time is over")
        if found is None:
            processes -= 1
            continue
        row, result = found
        if isinstance(result, str):
            say(row, "failed:", result.splitlines()[-1])
            print(result, file=sys.stderr, flush=True)
            continue
        means, last = summary_of(result, "standard").loc["Avg"], result["last_log"]
        terms = {name: round(value, 3) for name, value in last.items() if name not in ("step", "lr", "seconds")}
        say(row, result["run"], f"DSC {means.dsc_mean:.3f}, HD95 {means.hd95_mm_mean:.1f} mm,",
            f"{result['train_seconds']} s", json.dumps(terms))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("check", help="kernels, steps, waits")
    more = parts.add_parser("runs", help="the missing runs of a grid")
    more.add_argument("grid", help="a grid's file")
    more.add_argument("--to", required=True, help="folder of result files")
    more.add_argument("--pack", action="append", required=True, help="a dataset's pack")
    more.add_argument("--at-once", type=int, default=14, help="processes")
    more.add_argument("--seconds", type=float, default=240, help="no run starts after this many seconds")
    more.add_argument("--grace", type=float, default=30, help="and none is waited for longer than this after")
    given = parser.parse_args()
    if given.part == "runs":
        return runs(given)
    check_crf()
    return check_steps()


if __name__ == "__main__":
    main()
