"""What the benchmarks compare is the same thing, and what they report is what was measured."""

import json
import time

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from attenscribble.method.asl import attentive_similarity_loss
from attenscribble.method.mcrf import masked_crf_loss
from attenscribble.runs.config import Config
from benchmarks import __main__ as table
from benchmarks import annotator, attentive_similarity, hd95, masked_crf, step
from benchmarks.growth import slope
from benchmarks.measure import Peak, Row, Taken, difference, take
from benchmarks.pictures import MARKS, amount, draw_growth, draw_ratios, markdown, write_table


def test_unfolded_tensors_are_the_masked_crf():
    probs, image, unlabelled = masked_crf.scene("cpu", 2, 24)
    fast, slow = masked_crf_loss(probs, image, unlabelled=unlabelled), masked_crf.unfolded(probs, image, unlabelled)
    assert_close(fast, slow)
    # 1 - sum of P·P and the sum over two different classes have slopes that differ by a constant over the classes
    slopes = [torch.autograd.grad(loss, probs)[0] for loss in (fast, slow)]
    ours, theirs = (slope - slope.mean(1, keepdim=True) for slope in slopes)
    assert difference([ours], [theirs]) < 1e-5


def test_dense_matrices_are_the_attentive_similarity():
    inputs = attentive_similarity.scene("cpu", 6, 2)
    fast, slow = attentive_similarity_loss(*inputs), attentive_similarity.dense(*inputs)
    assert_close(fast, slow)
    ours, theirs = (attentive_similarity.everything(loss, inputs) for loss in (fast, slow))
    assert difference(ours, theirs) < 1e-4


@pytest.mark.parametrize("make", [step.ours, step.released])
def test_both_loops_learn(make):
    config = Config(method="ours", profile="mini", dataset="phantom", size=64, batch=4, lr=0.01)
    once = make(config)
    losses = [float(once()) for _ in range(8)]
    assert all(np.isfinite(losses)) and min(losses[4:]) < losses[0]


def test_predictions_to_score_are_wrong_but_not_lost():
    label = np.zeros((4, 40, 40), np.uint8)
    label[1:3, 10:30, 12:26] = 2
    found = hd95.wrong(label, np.random.default_rng(0))
    assert (found != label).any() and 0.5 < (found == label).mean() and set(np.unique(found)) <= {0, 1, 2}


def test_time_and_memory_are_those_of_the_call():
    held = []
    with Peak("cpu") as peak:
        held.append(np.ones(40 * 2**17))
    assert 38 < peak.mib < 60
    taken = take(lambda: time.sleep(0.02), least_s=0.1)
    assert 0.02 <= taken.seconds < 0.2 and taken.spread >= 1


def test_exponents_are_those_of_a_power_law():
    sizes = np.array([2.0, 3, 7])
    assert abs(slope(sizes, list(5 * sizes**2.5)) - 2.5) < 1e-9


def test_pictures_and_lines_show_the_kept_numbers():
    row = Row("a thing", "cpu", Taken(2.0, 1.0, 100.0), Taken(0.1, 1.0, 10.0), "5× faster, 2× leaner", "1 ms", True)
    assert (row.faster, row.leaner) == (20, 10)
    printed = table.line(row.record())
    assert "20.0×" in printed and "2000.0" in printed and "100.0" in printed and "met" in printed
    figure = draw_ratios({"rows": {"thing": [row.record()]}})
    assert {"20×", "10×"} <= {text.get_text() for text in figure.axes[0].texts}
    curve = {"loss": "x", "grows": "side", "values": [1, 2], "theory": 2, "seconds": [1, 4], "mib": [1, 2],
             "exponent": 2.0}
    assert "exponent 2.00, theory 2" in draw_growth([curve] * 6).axes[0].get_title()


def test_the_readme_shows_the_kept_numbers(root, tmp_path):
    results = json.loads((root / "benchmarks" / "results.json").read_text())
    assert markdown(results) in (root / "README.md").read_text(), "run python -m benchmarks"
    (tmp_path / "README.md").write_text(f"a\n{MARKS[0]}old\n{MARKS[1]}\nb\n")
    write_table(markdown(results), tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == f"a\n{MARKS[0]}{markdown(results)}{MARKS[1]}\nb\n"
    assert (amount(0.01234), amount(2.3456)) == ("12.3 ms", "2.35 s")


def test_the_readme_shows_how_far_seeds_scatter(root):
    rows = json.loads(annotator.PLACE.read_text())["rows"]
    assert annotator.markdown(rows) in (root / "README.md").read_text(), "run python -m benchmarks.annotator"
    assert len(rows) == len(annotator.SCANS) * len(annotator.SEEDS) * len(annotator.KINDS)
    twins = [{"kind": kind, "rounds": [{"dsc": [seed / 10, 0.5]}] * 3} for kind in annotator.KINDS
             for seed in (1, 3, 9)]
    assert annotator.markdown(twins).splitlines()[2].endswith("| 0.30 0.40 0.70 | 0.30 0.40 0.70 | 0.30 0.40 0.70 |")


def test_items_are_kept_beside_the_new_ones(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"rows": {"other": [1], "hd95": [{"device": "cuda"}]}, "growth": []}))
    row = Row("fold", "cpu", None, Taken(1.0, 1.0, 1.0), "", "", True)
    monkeypatch.setattr(hd95, "rows", lambda device: iter([row] if device == "cpu" else []))
    monkeypatch.setattr(table, "line", lambda row: row["device"])
    monkeypatch.setattr(table, "devices", lambda: ["cpu"])
    kept = table.measured(["hd95"], path)
    assert kept["rows"]["other"] == [1] and [r["device"] for r in kept["rows"]["hd95"]] == ["cuda", "cpu"]
    assert kept["rows"]["hd95"][1]["machine"]


def test_an_unknown_item_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit):
        table.main()
    assert "item 'speed': expected one of masked_crf" in capsys.readouterr().err


def test_the_kept_results_are_of_all_items(root):
    results = json.loads((root / "benchmarks" / "results.json").read_text())
    assert set(results["rows"]) == set(table.ITEMS) and len(results["growth"]) == 6
    for rows in results["rows"].values():
        assert all(row["machine"] and row["software"]["torch"] for row in rows)
