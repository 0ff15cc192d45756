"""Training in several processes: the same losses and weights as in one, whoever has strokes; and how it ends."""

import os
import signal
import subprocess
import sys
import time
from itertools import chain, islice

import pandas as pd
import psutil
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attenscribble.basics.distributed import (
    all_reduce,
    rank,
    ratio,
    shard,
    sharded_noise,
    world_size,
)
from attenscribble.data.phantom import phantom
from attenscribble.runs.config import Config
from attenscribble.runs.launch import DistributedBatchNorm, _first_traceback, launch
from attenscribble.runs.run import run_experiment
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import check_batches, train

pytestmark = pytest.mark.usefixtures("own_cache")


def tiny(**settings) -> Config:
    given = {"data_patients": 5, "size": 48, "batch": 5, "iterations": 3, "log_every": 1, "precision": "float32",
             "lr": 0.001}  # small steps: rounding does not grow
    return Config(**given | settings)


@pytest.mark.parametrize("method", ["ours", "dmsps"])
def test_two_processes_take_the_steps_of_one(method, tmp_path):
    # of five slices a process takes three, the other two
    one = train(resolve(tiny(method=method), phantom(patients=5)))
    outcome = run_experiment(tiny(method=method, devices=2, output=str(tmp_path)))
    logs = [pd.DataFrame(log).drop(columns="seconds") for log in (one.log, outcome.log)]
    pd.testing.assert_frame_equal(*logs, rtol=2e-4, atol=1e-6)
    assert outcome.result["processes"] == 2 and outcome.result["run"] == tiny(method=method).run_id
    for name, weight in one.model.state_dict().items():
        assert_close(outcome.model.state_dict()[name], weight, rtol=2e-3, atol=5e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert {"masks", "result.json", "checkpoint.pt", "log.csv"} <= {p.name for p in outcome.folder.iterdir()}
    alone = run_experiment(tiny(method=method, output=str(tmp_path)))  # the same run: it is complete
    assert alone.log == outcome.log and alone.result["cases"] == outcome.result["cases"]


def test_an_error_of_any_process_is_shown(tmp_path):
    with pytest.raises(RuntimeError, match=r"of 3 processes failed(.|\n)*ValueError: rank 1 says no"):
        list(launch(3, "import os\nif os.environ['RANK'] == '1': raise ValueError('rank 1 says no')\n"
                         "import time; time.sleep(60)"))


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_lines_of_two_processes_stay_whole(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)  # with it, Python writes each line end by itself
    code = "import os\nfor i in range(2000): print(f'line {i} of {os.environ[\"RANK\"]} ends')"
    assert sorted(launch(2, code)) == sorted(f"line {i} of {rank} ends" for i in range(2000) for rank in range(2))


def test_closing_ends_all_processes():
    lines = launch(2, "import os, time; print(os.getpid(), flush=True); time.sleep(300)")
    numbers = [int(line) for line in islice((line for line in lines if line.isdigit()), 2)]
    assert all(psutil.pid_exists(number) for number in numbers)
    lines.close()
    deadline = time.monotonic() + 15
    while any(psutil.pid_exists(number) for number in numbers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(number) for number in numbers)


def test_an_interrupt_ends_all_processes():
    code = ("from attenscribble.runs.launch import launch\n"
            "for line in launch(2, 'import os, time; print(os.getpid(), flush=True); time.sleep(300)'):\n"
            "    print(line, flush=True)")
    caller = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True)
    numbers = [int(line) for line in islice((line for line in caller.stdout if line.strip().isdigit()), 2)]
    caller.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in caller.communicate(timeout=60)[1]
    assert not any(psutil.pid_exists(number) for number in numbers)


def test_batches_too_small_for_the_processes_are_refused(monkeypatch):
    monkeypatch.setattr("attenscribble.runs.training.world_size", lambda: 2)
    check_batches(12, tiny(batch=5))
    with pytest.raises(ValueError, match="last batch of an epoch has 1 of 11 slices"):
        check_batches(11, tiny(batch=5))


@pytest.mark.parametrize("settings, message", [
    ({"devices": 0}, "devices"),
    ({"devices": 3, "batch": 2}, "devices: found 3, expected at most 2, the slices of a batch"),
    ({"devices": 2, "device": "cpu:0"}, "device: found 'cpu:0', expected auto, cpu, cuda or cuda:1"),
], ids=str)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_alone_everything_is_as_usual():
    assert world_size() == 1 and rank() == 0 and "RANK" not in os.environ
    counted = torch.tensor(3.0)
    assert all_reduce(counted) is counted
    assert ratio(torch.tensor(6.0), 3).share() == 2 and ratio(torch.tensor(0.0), 0).share() == 0
    with shard(5) as part:
        assert part == slice(0, 5)
    assert torch.equal(sharded_noise(torch.ones, 4), torch.ones(4))
    torch.manual_seed(0)
    shared, plain = DistributedBatchNorm(3), nn.BatchNorm2d(3)
    features = torch.randn(4, 3, 5, 5)
    assert_close(shared(features), plain(features))


@pytest.mark.parametrize("count, total, expected", [(3, 8, [3, 3, 2]), (2, 5, [3, 2]), (4, 3, [1, 1, 1, 0])])
def test_parts_cover_a_batch_once(monkeypatch, count, total, expected):
    monkeypatch.setattr("attenscribble.basics.distributed.world_size", lambda: count)
    seen = []
    for number in range(count):
        monkeypatch.setattr("attenscribble.basics.distributed.rank", lambda number=number: number)
        with shard(total) as part:
            rows = list(range(total))[part]
            assert sharded_noise(torch.arange, len(rows)).tolist() == rows
            with pytest.raises(ValueError, match=f"found {len(rows) + 1} images, expected {len(rows)} of a batch of"):
                sharded_noise(torch.arange, len(rows) + 1)
            seen.append(rows)
    assert [len(rows) for rows in seen] == expected and list(chain(*seen)) == list(range(total))


def test_the_first_traceback_is_what_counts():
    noise = ["starting\n", "Traceback (most recent call last):\n", '  File "a.py"\n', "KeyError: 'x'\n",
             "Traceback (most recent call last):\n", "  more\n", "ChildFailedError\n"]
    assert _first_traceback(noise) == "".join(noise[1:4])
    assert _first_traceback(["a\n"] * 12) == "a\n" * 10
