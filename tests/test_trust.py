"""`make trust` in its short form, and that the harness itself sees what it is there to see."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from attenscribble.basics.errors import DataError
from tools.trust import children
from tools.trust.kills import LONG, broken_files, config_of, kills, orphans
from tools.trust.mutations import judged, mutations
from tools.trust.oracles import Refuse, differ, need
from tools.trust.page import page
from tools.trust.places import places
from tools.trust.readers import READERS, Reader
from tools.trust.soak import slope, soak, unsteady

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


# ---- the short form


def listed(faults: list[dict]) -> str:
    return "\n".join(json.dumps(fault, ensure_ascii=False)[:400] for fault in faults)


def test_killed_runs_go_on_to_the_same_weights_masks_and_scores():
    found = kills(count=4, seed=1, kinds=("teacher", "pseudo labels"))
    assert sum(row["kills"] for row in found["kinds"].values()) == 4
    assert not found["faults"], listed(found["faults"])


def test_no_mutant_is_read_wrongly_or_refused_in_another_librarys_words():
    found = mutations(count=150, seed=1)
    tally = sum((Counter(kinds) for kinds in found["readers"].values()), Counter())
    assert tally.total() == 150 and tally["refused"] and tally["equal"] and not tally["unmade"]
    assert not found["faults"], listed(found["faults"])


def test_a_full_disk_and_a_deleted_folder_lose_nothing_and_are_named():
    faults = [row for row in places(short=True)["rows"] if row["faults"]]
    assert not faults, listed(faults)


# ---- the harness


def test_the_oldest_versions_are_the_lower_bounds(root):
    printed = subprocess.run([sys.executable, root / "tools/oldest.py"], capture_output=True, text=True, check=True)
    assert "torch==2.11" in printed.stdout.split() and all("==" in line for line in printed.stdout.splitlines())


@pytest.mark.parametrize(("load", "compare", "kind"), [
    (lambda home: 1, lambda loaded, home: None, "equal"),
    (lambda home: 1, lambda loaded, home: differ(loaded != 2, "2"), "wrong"),
    (lambda home: 1, lambda loaded, home: need(False, "no"), "wrong"),
    (lambda home: (_ for _ in ()).throw(DataError(home / "a.txt", "x", "y")), None, "refused"),
    (lambda home: (_ for _ in ()).throw(DataError("somewhere", "x", "y")), None, "raw"),
    (lambda home: (_ for _ in ()).throw(ValueError("could not broadcast")), None, "raw"),
    (lambda home: {}["step"], None, "raw"),
    (lambda home: open(home / "none"), None, "raw"),
])
def test_what_becomes_of_a_mutant(tmp_path, load, compare, kind):
    (tmp_path / "a.txt").write_text("x")
    assert judged(Reader("any", lambda home: None, (), load, compare), tmp_path)[0] == kind


@pytest.mark.parametrize("name", ["folder", "acdc", "chaos", "h5"])
def test_an_oracle_sees_what_is_wrong(tmp_path, name):
    "Voxels or classes that are a little other than in the files."
    reader = READERS[name]
    reader.make(tmp_path)
    for field in ("image", "label"):
        loaded = reader.load(tmp_path)
        cases = loaded[1] if name == "folder" else loaded
        spoilt = getattr(cases[0], field)
        spoilt[...] = spoilt[:, ::-1].copy()
        with pytest.raises((AssertionError, Refuse)):
            reader.compare(loaded, tmp_path)
    reader.compare(reader.load(tmp_path), tmp_path)


def test_children_that_hang_die_or_are_killed():
    worker = children.Worker(lambda request: {"sleep": lambda: time.sleep(60), "die": lambda: os.abort(),
                                              "eat": lambda: len(bytes(16 << 30)), "add": lambda: 2}[request]())
    assert worker("add", 30) == 2 and worker("sleep", 0.5) == "hang" and worker("add", 30) == 2
    assert worker("die", 30).startswith("crash") and worker("add", 30) == 2
    worker.close()
    ended = children.run(lambda: time.sleep(60), kill_s=0.3)
    assert ended.signal == signal.SIGKILL and ended.seconds < 30
    assert children.run(lambda: 1 / 0).error == "builtins.ZeroDivisionError: division by zero"
    assert children.run(lambda: [1, 2]).answer == [1, 2]


def test_half_a_file_under_a_final_name_and_a_left_over_are_seen(tmp_path):
    (tmp_path / "result.json").write_text('{"a": 1')
    (tmp_path / "log.csv").write_text("a,b\n1,2\n3")
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    (tmp_path / "prediction.png").write_bytes(b"\x89PNG")
    (tmp_path / ".123-45-result.json").write_text("")
    assert len(broken_files(tmp_path)) == 4 and len(orphans(tmp_path)) == 1


def test_the_slope_does_not_follow_outliers():
    x = np.linspace(0, 1, 200)
    y = 3 * x + (np.arange(200) % 50 == 0) * 100
    assert abs(slope(x, y) - 3) < 1e-9 and slope(np.zeros(3), np.ones(3)) == 0


def test_the_page_has_no_date_and_shows_faults():
    common = {"command": "c", "machine": "m", "software": {"python": "3"}}
    figures = {"mutations": common | {"seed": 0, "readers": {"h5": {"equal": 3, "raw": 1}}, "faults": [
        {"reader": "h5", "number": 7, "kind": "raw", "done": "a|b", "said": "c\nd"}]}}
    text = page(figures)
    assert "| h5 | 3 | 0 | 0 | 1 | 0 | 0 |" in text and "h5 · 7 · raw" in text and text == page(figures)


def test_a_short_soak_is_measured_and_only_a_long_one_judged():
    found = soak(minutes=0.1)
    assert found["steps"] > 10 and found["step, CPU ms"] > 0 and not found["faults"]
    rising = found | {"memory, MiB an hour": 31.0, "step, share an hour": 0.2, "handles": [5, 9]}
    assert unsteady(rising, 5) == ["handles: [5, 9]"]
    assert unsteady(rising, 60)[1:] == ["memory grows by 31.0 MiB an hour", "steps slow down by 20% an hour"]
    assert not unsteady(rising | {"memory, MiB an hour": 5.0, "step, share an hour": 0.01, "handles": [5, 5]}, 60)


def test_every_kind_of_run_that_is_killed_can_be_had(tmp_path):
    assert len({config_of(kind, tmp_path).run_id for kind in LONG}) == len(LONG) == 7
