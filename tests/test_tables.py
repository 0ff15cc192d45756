"""From result files to the paper's tables, on hand-made files with known means."""

import csv
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from test_train_notebook import output_text, papermill

from attenscribble.basics.errors import DataError
from attenscribble.method.objective import METHODS, Method
from attenscribble.reporting.tables import (
    FLAGS,
    TITLES,
    _latex_text,
    blocks,
    compare,
    describe,
    group_seeds,
    notebook_parameters,
    order_agreement,
    published,
    read_results,
    results_table,
    write_table,
)

CLASSES = ("RV", "Myo", "LV")


def write_result(folder, method, dsc=(0.8, 0.6), *, seed=1, hd95=(4.0, 6.0), **changes):
    "A result file of two volumes; all classes of a volume score alike, `legacy` scores half the DSC."
    rows = [{"case": f"patient{i}", "class": name, "dsc": d / (1 + (policy == "legacy")), "hd95_mm": h,
             "policy": policy} for i, (d, h) in enumerate(zip(dsc, hd95, strict=True)) for name in CLASSES
            for policy in ("standard", "legacy")]
    result = {"dataset": "acdc", "method": method, "title": TITLES.get(method, method), "fold": 1, "seed": seed,
              "profile": "paper", "preset": "paper", "checkpoint": "last", "train_seconds": 60.0, "cases": rows,
              "settings": {}} | changes
    result.setdefault("test_volumes", len({r["case"] for r in result["cases"]}))
    result["settings"] = {"seed": result["seed"]} | result["settings"]
    facts = [result[name] for name in ("dataset", "method", "profile", "preset", "fold", "seed")]
    result.setdefault("run", "-".join(map(str, [*facts, *result["settings"].values()])))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result['run']}.json").write_text(json.dumps(result))
    return folder


def row(frame, method, preset="paper"):
    method_of, preset_of = (frame.index.get_level_values(name) for name in ("method", "preset"))
    return frame[(method_of == method) & (preset_of == preset)]


# ---- the paper's numbers


def test_published_numbers():
    one, two = (published(table).set_index(["method", "class"]) for table in (1, 2))
    assert one.loc[("ours", "RV")].tolist() == [0.87, 0.079, 10.72, 19.34]
    assert one.loc[("pce", "Avg")].tolist() == [0.62, 0.10, 173.44, 18.56]
    assert one.loc[("ours-without-asl", "LV")].tolist() == [0.94, 0.027, 4.16, 6.38]
    assert two.loc[("gated-crf", "SPL")].tolist() == [0.85, 0.062, 11.13, 7.37]
    assert two.loc[("random-walker", "RK")].tolist() == [0.634, 0.101, 44.57, 19.93]
    for frame, classes in ((one, (*CLASSES, "Avg")), (two, ("LIV", "RK", "LK", "SPL", "Avg"))):
        assert list(frame.index) == [(method, name) for method in TITLES for name in classes]
    with pytest.raises(ValueError, match="table: found '3', expected one of 1, 2"):
        published(3)


@pytest.mark.parametrize("table", [1, 2])
def test_averages_are_means_of_classes_except_the_flagged(table):
    flagged = {(method, name) for number, method, name in FLAGS if number == table}
    for method, rows in published(table).groupby("method"):
        means = rows[rows["class"] != "Avg"][["dsc_mean", "hd95_mean"]].mean()
        average = rows[rows["class"] == "Avg"].iloc[0]
        off = [abs(means[name] - average[name]) > 0.0101 / (1 + (name == "dsc_mean")) for name in means.index]
        assert any(off) == ((method, "Avg") in flagged), method


def test_the_only_impossible_deviation_is_flagged():
    for table in (1, 2):
        rows = published(table)
        wrong = rows[rows.dsc_std > np.sqrt(rows.dsc_mean * (1 - rows.dsc_mean))]
        assert [(table, *key) for key in wrong[["method", "class"]].values.tolist()] == [
            key for key in FLAGS if key[1] == "entropy-minimisation" and key[0] == table]


# ---- reading


def test_results_come_in_the_papers_order_and_filtered(tmp_path):
    for method in ("ours", "new-loss", "pce", "fully"):
        write_result(tmp_path, method)
    write_result(tmp_path, "ours", profile="mini")
    assert [r["method"] for r in read_results(tmp_path, profile="paper")] == ["fully", "pce", "ours", "new-loss"]
    assert len(read_results(tmp_path, profile="", preset=None)) == 5 and read_results(tmp_path, seed=7) == []
    with pytest.raises(ValueError, match=r"filter: found 'profil'.*did you mean 'profile'"):
        read_results(tmp_path, profil="paper")
    with pytest.raises(DataError, match="found no result file, expected at least one"):
        read_results(tmp_path / "nowhere")


def without(name):
    return lambda result: result.pop(name)


@pytest.mark.parametrize(("spoil", "expected"), [
    (without("fold"), "fold: found 'nothing', expected int"),
    (lambda r: r.update(seed="1"), "seed: found '1', expected int"),
    (lambda r: r.update(cases=[]), "cases: found none"),
    (lambda r: r["cases"][3].update(dsc=1.2), r"cases\[3\]: dsc: found 1.2, expected 0 to 1"),
    (lambda r: r["cases"][0].update(hd95_mm=-1), r"cases\[0\]: hd95_mm: found -1"),
    (lambda r: r["cases"][0].update(hd95_mm=math.inf), r"cases\[0\]: hd95_mm: found inf, expected mm, or null"),
    (lambda r: r.update(fold=True), "fold: found True, expected int"),
    (lambda r: r.update(test_volumes="2"), "test_volumes: found '2', expected int"),
    (lambda r: r.update(test_volumes=-1), "cases: found 2 volumes, expected -1, as test_volumes says"),
    (lambda r: r["cases"][1].pop("policy"), r"cases\[1\]: policy: found 'nothing', expected str"),
])
def test_a_broken_file_is_named(tmp_path, spoil, expected):
    write_result(tmp_path, "ours")
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    spoil(result)
    path.write_text(json.dumps(result))
    with pytest.raises(DataError, match=f"{re.escape(path.name)}: {expected}"):
        read_results(tmp_path)


def test_half_a_file_and_a_double_run_are_named(tmp_path):
    write_result(tmp_path, "ours")
    (path,) = tmp_path.glob("*.json")
    (tmp_path / "z.json").write_text(path.read_text())
    with pytest.raises(DataError, match=r"z\.json: run: found acdc-ours-.* a second time"):
        read_results(tmp_path)
    (tmp_path / "z.json").write_text('{"run": "a')
    with pytest.raises(DataError, match=r"z\.json: found no JSON"):
        read_results(tmp_path)
    (tmp_path / "z.json").write_text("[1]")
    with pytest.raises(DataError, match=r"z\.json: found list, expected an object"):
        read_results(tmp_path)


def test_the_readme_table_has_a_row_a_run(tmp_path):
    write_result(write_result(tmp_path, "ours", seed=2), "ours", seed=1, dsc=(0.5, 0.5))
    lines = results_table(tmp_path).splitlines()
    assert lines[2:] == ["| Ours | paper | 0.500 | 0.500 | 0.500 | 0.500 | 5.0 |",
                         "| Ours | paper | 0.700 | 0.700 | 0.700 | 0.700 | 5.0 |"]
    with pytest.raises(ValueError, match="policy: found 'lax'"):
        results_table(tmp_path, "lax")


def test_the_readme_table_says_what_sets_a_run_apart(tmp_path):
    folder = write_result(tmp_path, "ours")
    path = next(folder.glob("*.json"))
    other = json.loads(path.read_text())
    other["run"], other["settings"]["ssa_block"] = "another", "residual"
    (folder / "another.json").write_text(json.dumps(other))
    presets = [line.split(" | ")[1] for line in results_table(folder).splitlines()[2:]]
    assert sorted(presets) == ["paper, ssa_block paper", "paper, ssa_block residual"]


# ---- the comparison


def test_ours_beside_the_papers(tmp_path):
    frame = compare(read_results(write_result(tmp_path, "pce")), 1)
    assert list(frame.index.get_level_values("method")) == list(TITLES)
    (found,) = row(frame, "pce").to_dict("records")
    expected = {"ours_mean": 0.7, "ours_std": 0.1, "paper_mean": 0.48, "paper_std": 0.12, "difference": 0.22}
    assert {q: found["dsc", "Myo", q] for q in expected} == pytest.approx(expected)
    assert found["hd95_mm", "Avg", "difference"] == pytest.approx(5 - 173.44)
    missing = row(frame, "ours", "").iloc[0]
    assert missing["dsc"].unstack()["ours_mean"].isna().all() and missing["dsc", "Avg", "paper_mean"] == 0.88
    assert row(frame, "pce").index[0] == ("pce", "paper", "", 1, 2)


def test_legacy_scores_and_an_unknown_policy(tmp_path):
    results = read_results(write_result(tmp_path, "pce"))
    assert row(compare(results, 1, "legacy"), "pce")["dsc", "RV", "ours_mean"].item() == pytest.approx(0.35)
    with pytest.raises(ValueError, match=r"policy: found 'legasy'.*did you mean 'legacy'"):
        compare(results, 1, "legasy")
    results[0]["cases"] = [r for r in results[0]["cases"] if r["policy"] == "standard"]
    with pytest.raises(DataError, match="no row under the policy 'legacy'"):
        compare(results, 1, "legacy")


def test_seeds_are_averaged_and_counted(tmp_path):
    write_result(write_result(tmp_path, "ours", seed=1), "ours", seed=2, dsc=(0.9, 0.5))
    frame = compare(read_results(tmp_path), 1)
    assert row(frame, "ours").index[0] == ("ours", "paper", "", 2, 2)
    cells = row(frame, "ours")["dsc"]["LV"].iloc[0]
    assert cells["ours_mean"] == pytest.approx(0.7) and cells["ours_std"] == pytest.approx((0.1 + 0.2) / 2)


def test_what_differs_in_more_than_the_seed_is_never_averaged(tmp_path):
    write_result(tmp_path, "ours")
    write_result(tmp_path, "ours", preset="released")
    write_result(tmp_path, "ours", settings={"asl_radius": 3})
    write_result(tmp_path, "ours", profile="mini")
    groups = group_seeds(read_results(tmp_path))
    assert {key[1:] for key in groups} == {("released", ""), ("paper", "profile mini"),
                                           ("paper", "profile paper, asl_radius 5"),
                                           ("paper", "profile paper, asl_radius 3")}
    assert all(len(runs) == 1 for runs in groups.values())
    assert "rows differ in profile" in describe(read_results(tmp_path), 1)


def test_another_network_is_said_of_a_lone_row_too(tmp_path):
    write_result(tmp_path, "ours", settings={"net_name": "monai.networks.nets:BasicUNet"})
    frame = compare(read_results(tmp_path), 1)
    assert "Ours (net_name monai.networks.nets:BasicUNet)" in [*blocks(frame)["DSC"]["method"]]
    assert "paper, net_name monai.networks.nets:BasicUNet" in results_table(tmp_path)


def test_a_folder_or_a_setting_that_older_files_lack_separates_nothing(tmp_path):
    write_result(tmp_path, "ours", settings={"output": "a", "asl_radius": 5})
    write_result(tmp_path, "ours", seed=2, settings={"output": "b"})
    assert [len(runs) for runs in group_seeds(read_results(tmp_path)).values()] == [2]


def test_a_method_that_the_paper_lacks_comes_last(tmp_path):
    frame = compare(read_results(write_result(tmp_path, "new-loss")), 1)
    assert len(frame) == 13 and frame.index[-1][0] == "new-loss"
    assert np.isnan(frame.iloc[-1]["dsc", "Avg", "paper_mean"]) and frame.iloc[-1]["dsc", "Avg", "ours_mean"] > 0
    assert blocks(frame)["DSC"].iloc[-1][["method", "Avg paper", "Avg Δ"]].tolist() == ["new-loss", "–", "–"]


def test_results_with_other_classes_are_refused(tmp_path):
    results = read_results(write_result(tmp_path, "ours", dataset="chaos"))
    with pytest.raises(DataError, match="found the classes RV, Myo, LV, expected LIV, RK, LK, SPL"):
        compare(results, 2)
    assert row(compare(results, 1), "ours").empty  # another table's dataset is left out
    with pytest.raises(ValueError, match="dataset of table 2: found 'acdc'"):
        compare(results, 2, dataset="acdc")


def test_registered_methods_carry_their_registered_title(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "new-loss", Method("new-loss", "New loss", "a test", ()))
    frame = compare(read_results(write_result(tmp_path, "new-loss")), 1)
    assert blocks(frame)["DSC"]["method"].iloc[-1] == "New loss"
    shown = blocks(compare([], 1))["DSC"]["method"]
    assert len(METHODS) >= 4
    assert [METHODS[m].title if m in METHODS else title for m, title in TITLES.items()] == shown.tolist()


def test_the_caption_says_what_was_run_and_warns(tmp_path):
    results = read_results(write_result(write_result(tmp_path, "ours", seed=1), "pce", seed=3))
    text = describe(results, 1, "legacy")
    for part in ("dataset acdc, profile paper, preset paper, fold 1, seed 3 and 1, checkpoint last, n 2",
                 "Policy legacy", "S2L Avg"):
        assert part in text, text
    assert "Warning" not in text and "\n" not in text
    results[0]["profile"] = results[1]["profile"] = "mini"
    results[0]["fold"] = 2
    assert re.search("Warning: rows differ in fold; the profile is not the paper's", describe(results, 1))
    assert "None of ours was run on chaos" in describe(results, 2)


def test_the_caption_of_chaos_says_which_images(tmp_path):
    t2 = read_results(write_result(tmp_path, "ours", dataset="chaos", settings={"data_sequence": "t2spir"}))
    assert "n 2, images t2spir. " in describe(t2, 2)
    assert "Warning: other images than the paper's, which are T1-DUAL in phase" in describe(t2, 2)
    t1 = [{**t2[0], "settings": {"data_sequence": "t1dual", "data_phase": "in"}}]
    assert "images t1dual in. " in describe(t1, 2) and "Warning" not in describe(t1, 2)
    assert "images t2spir and t1dual in. " in describe(t2 + t1, 2) and "other images" in describe(t2 + t1, 2)
    assert "images" not in describe(read_results(write_result(tmp_path / "acdc", "ours")), 1)


# ---- agreement of orders


def test_kendalls_tau_by_hand(tmp_path):
    # the paper: Fully .91 > GCRF .88 > USTM .75; here: GCRF > Fully > USTM. One pair of three swaps: tau = (2 − 1) / 3
    for method, dsc in (("fully", 0.8), ("gated-crf", 0.9), ("ustm", 0.4)):
        write_result(tmp_path, method, (dsc, dsc), hd95=(1.0, 1.0) if method == "ustm" else (2 * dsc, 2 * dsc))
    found = order_agreement(compare(read_results(tmp_path), 1))
    assert found["dsc"].methods == ("gated-crf", "fully", "ustm") and found["dsc"].tau == pytest.approx(1 / 3)
    assert found["dsc"].swaps == (("gated-crf", "fully"),)
    # HD95 here: USTM 1.0 < Fully 1.6 < GCRF 1.8; the paper: Fully 5.0 < GCRF 13.7 < USTM 140. Two pairs swap.
    assert found["hd95_mm"].methods == ("ustm", "fully", "gated-crf")
    assert found["hd95_mm"].tau == pytest.approx(-1 / 3)
    assert found["hd95_mm"].swaps == (("ustm", "fully"), ("ustm", "gated-crf"))  # gaps .6 + 135, .8 + 126.3
    assert "unlike in the paper: USTM over Fully, USTM over GCRF" in str(found["hd95_mm"])


def test_what_ties_in_the_paper_does_not_swap(tmp_path):
    write_result(write_result(tmp_path, "ours"), "gated-crf", (0.9, 0.9))  # both .88 in the paper
    assert order_agreement(compare(read_results(tmp_path), 1))["dsc"].swaps == ()


def test_one_method_has_no_order_and_variants_are_refused(tmp_path):
    frame = compare(read_results(write_result(tmp_path, "ours")), 1)
    assert np.isnan(order_agreement(frame)["dsc"].tau) and order_agreement(frame, "released")["dsc"].methods == ()
    frame = compare(read_results(write_result(tmp_path, "ours", profile="mini")), 1)
    with pytest.raises(ValueError, match="ours: found several rows of the preset 'paper'"):
        order_agreement(frame)


# ---- writing


def test_all_three_files_agree_with_the_frame(tmp_path):
    results = read_results(write_result(tmp_path / "results", "pce"))
    frame, caption = compare(results, 1), describe(results, 1)
    paths = write_table(frame, caption, "table1", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["table1.csv", "table1.md", "table1.tex"]
    markdown, comma, latex = (path.read_text() for path in paths)
    parts = blocks(frame)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    assert rows[2:14] == parts["DSC"].values.tolist() and rows[16:] == parts["HD95 (mm)"].values.tolist()
    assert markdown.startswith(caption) and rows[0] == list(parts["DSC"].columns)
    table = {line["method"]: line for line in csv.DictReader(comma.splitlines())}
    assert float(table["pce"]["dsc_Myo_difference"]) == pytest.approx(0.22)
    assert table["ours"]["dsc_Avg_ours_mean"] == ""
    assert latex.count(r"\toprule") == 2 and latex.count(r"\end{tabular}") == 2
    line = next(line for line in latex.splitlines() if line.startswith("pCE"))
    assert line == " & ".join(map(_latex_text, parts["DSC"].values.tolist()[1])) + r" \\" and "$+0.22$" in line


def test_any_frame_can_be_written(tmp_path):
    frame = pd.DataFrame({"term": ["a_b", "50 %"], "value": [0.5, 1 / 3]})
    markdown, comma, latex = (p.read_text() for p in write_table(frame, "small & simple", "small", tmp_path))
    assert markdown == "small & simple\n\n| term | value |\n| --- | --- |\n| a_b | 0.500 |\n| 50 % | 0.333 |\n"
    assert comma.splitlines()[0] == "term,value" and "0.333333" in comma
    assert r"a\_b & 0.500 \\" in latex and r"50 \% & 0.333" in latex and r"\caption{small \& simple}" in latex


def test_missing_runs_are_written_as_not_run(tmp_path):
    part = blocks(compare([], 2))["HD95 (mm)"]
    assert (part["LIV ours"] == "not run").all() and (part["SPL Δ"] == "–").all() and (part["seeds"] == "0").all()
    assert part["Avg paper"].tolist()[-1] == "11.18(5.00)"


# ---- the notebook


def test_parameters_are_checked():
    assert notebook_parameters({"policy": "legacy", "_x": 1, "json": json}, policy=("legacy",)) == {"policy": "legacy"}
    with pytest.raises(ValueError, match=r"parameter: found 'polcy'.*did you mean 'policy'"):
        notebook_parameters({"polcy": "x"}, policy=None)
    with pytest.raises(ValueError, match="policy: found 'x', expected one of legacy"):
        notebook_parameters({"policy": "x"}, policy=("legacy",))


def test_the_notebook_writes_both_tables(root, tmp_path):
    done = papermill(root, "tables.ipynb", "-", "-p", "output", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    tables = [f"table{number}.{suffix}" for number in (1, 2) for suffix in ("csv", "md", "tex")]
    pictures = [f"{kind}-{name}.png" for kind in ("cd", "order") for name in ("acdc", "chaos")]
    pictures = [name.replace(".png", "-paper.png") if name.startswith("order") else name for name in pictures]
    tests = [f"statistics-{name}.{suffix}" for name in ("acdc", "chaos") for suffix in ("csv", "md", "tex")]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*pictures, *tests, *tables]
    assert "dsc: tau" in output_text(json.loads(done.stdout)) and "not run" in (tmp_path / "table2.md").read_text()


def test_the_notebook_refuses_a_misspelt_parameter(root, tmp_path):
    done = papermill(root, "tables.ipynb", "-", "-p", "polcy", "legacy", "-p", "output", str(tmp_path))
    assert done.returncode != 0 and "did you mean 'policy'?" in done.stderr and not any(tmp_path.iterdir())
