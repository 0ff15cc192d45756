"""A table is made of whole results, and averages only what was tested on the same volumes and classes."""

import json
import re

import numpy as np
import pytest
from test_tables import row, write_result

from attenscribble.basics.errors import DataError
from attenscribble.reporting.statistics import seed_table
from attenscribble.reporting.tables import (
    blocks,
    compare,
    describe,
    group_seeds,
    order_agreement,
    read_results,
    results_table,
)


def rewrite(folder, seed, spoil):
    "Change the result file of a seed."
    (path,) = (path for path in folder.glob("*.json") if json.loads(path.read_text())["seed"] == seed)
    result = json.loads(path.read_text())
    spoil(result)
    path.write_text(json.dumps(result))
    return path.name


def only(folder, seed, keep):
    "Leave of a seed's rows those that are wanted."
    def spoil(result):
        rows = [r for r in result["cases"] if keep(r)]
        result.update(cases=rows, test_volumes=len({r["case"] for r in rows}))
    return rewrite(folder, seed, spoil)


def nowhere(name):
    "Both masks of a class are empty in every volume: it has rows, but no number."
    return lambda result: [r.update(dsc=None, hd95_mm=None) for r in result["cases"] if r["class"] == name]


# ---- a file is whole


@pytest.mark.parametrize("policy", ["standard", "legacy"])
def test_a_lost_row_is_named_with_file_case_and_class(tmp_path, policy):
    write_result(tmp_path, "ours")
    name = only(tmp_path, 1, lambda r: (r["case"], r["class"], r["policy"]) != ("patient1", "RV", policy))
    with pytest.raises(DataError, match=rf"{name}: cases: found no row for RV of patient1 under the policy '{policy}'"):
        read_results(tmp_path)


def test_a_row_that_is_there_twice_is_named(tmp_path):
    write_result(tmp_path, "ours")
    name = rewrite(tmp_path, 1, lambda result: result["cases"].append(dict(result["cases"][0])))
    with pytest.raises(DataError, match=rf"{name}: cases: found RV of patient0 twice under the policy 'standard'"):
        read_results(tmp_path)


@pytest.mark.parametrize(("facts", "said"), [
    ({"test_volumes": 3}, "found 2 volumes, expected 3, as test_volumes says"),
    ({"label_values": [0, 1, 2, 3, 4]}, "found 3 classes, expected 4, as label_values says"),
])
def test_a_volume_or_class_that_is_gone_altogether_is_missed(tmp_path, facts, said):
    write_result(tmp_path, "ours", **facts)
    with pytest.raises(DataError, match=f"json: cases: {said}"):
        read_results(tmp_path)


def test_the_results_of_the_project_are_whole(root):
    for folder in {path.parent for path in (root / "results").rglob("*.json")}:
        read_results(folder)


def test_settings_that_only_look_alike_stay_two_rows(tmp_path):
    write_result(tmp_path, "ours", settings={"attention_lr": None}, run="a")
    write_result(tmp_path, "ours", settings={"attentiom_lr": None}, run="b")  # a name that the other does not have
    assert results_table(tmp_path).count("DSC RV") == 1 and results_table(tmp_path).count("| Ours |") == 2
    write_result(tmp_path, "ours", settings={"attention_lr": True}, run="a")
    write_result(tmp_path, "ours", settings={"attention_lr": 1}, run="b")  # 1 is equal to True
    assert len(group_seeds(read_results(tmp_path))) == 2
    write_result(tmp_path, "ours", settings={"attention_lr": "1"}, run="a")  # printed, these are one
    with pytest.raises(DataError, match="b: settings: found the row ours, paper, attention_lr 1 for other settings "
                                        "than those of a, expected settings that a table can tell apart"):
        results_table(tmp_path)


def test_half_written_files_of_a_stopped_run_are_no_results(tmp_path):
    write_result(tmp_path, "ours")
    (tmp_path / ".123-acdc-ours.json").write_text('{"run": "a')
    assert len(read_results(tmp_path)) == 1


# ---- what was tested on other volumes or classes is never averaged


@pytest.mark.parametrize(("other", "counts"), [((0.9, 0.9, 0.9), [2, 3]), ((0.9,), [1, 2])])
def test_seeds_of_other_volumes_have_rows_of_their_own(tmp_path, other, counts):
    write_result(write_result(tmp_path, "ours", seed=1), "ours", (0.7, 0.7), seed=3)
    write_result(tmp_path, "ours", other, seed=2, hd95=(4.0,) * len(other))
    found = row(compare(read_results(tmp_path), 1), "ours")
    assert sorted(found.index.get_level_values("n")) == counts
    seeds = dict(zip(found.index.get_level_values("n"), found.index.get_level_values("seeds"), strict=True))
    assert seeds == {2: 2, len(other): 1}
    means = found[("dsc", "Avg", "ours_mean")].droplevel(["method", "preset", "variant", "seeds"])
    assert means.to_dict() == pytest.approx({2: 0.7, len(other): 0.9})
    variants = [key[2] for key in found.index]
    assert all(f"volumes {n} (set " in variant for n, variant in zip(found.index.get_level_values("n"), variants,
                                                                     strict=True))
    assert "rows differ in n" in describe(read_results(tmp_path), 1)
    with pytest.raises(ValueError, match="ours: found several rows of the preset 'paper'"):
        order_agreement(compare(read_results(tmp_path), 1))


def test_as_many_volumes_that_are_others_are_told_apart(tmp_path):
    write_result(write_result(tmp_path, "ours", seed=1), "ours", seed=2)
    rewrite(tmp_path, 2, lambda result: [r.update(case=r["case"].replace("patient1", "patient7"))
                                         for r in result["cases"]])
    groups = group_seeds(read_results(tmp_path))
    assert [len(runs) for runs in groups.values()] == [1, 1] and all("volumes 2 (set" in key[2] for key in groups)
    assert "rows differ in volumes" in describe(read_results(tmp_path), 1)


def test_a_seed_without_a_class_has_a_row_of_its_own_and_no_average(tmp_path):
    write_result(write_result(tmp_path, "ours", seed=1), "ours", (0.5, 0.5), seed=2)
    rewrite(tmp_path, 2, nowhere("RV"))
    found = row(compare(read_results(tmp_path), 1), "ours")
    whole = found[[("classes RV, Myo, LV" in key[2]) for key in found.index]].iloc[0]
    part = found[[("classes Myo, LV" in key[2]) for key in found.index]].iloc[0]
    assert whole["dsc", "Avg", "ours_mean"] == pytest.approx(0.7) == whole["dsc", "RV", "ours_mean"]
    assert part["dsc", "Myo", "ours_mean"] == 0.5 and np.isnan(part["dsc", "RV", "ours_mean"])
    for metric in ("dsc", "hd95_mm"):
        assert part[metric, "RV", "ours_n"] == 0 and np.isnan(part[metric, "Avg", "ours_mean"])
    text = blocks(compare(read_results(tmp_path), 1))["DSC"]
    assert "–" in text["Avg ours"].tolist()
    lines = results_table(tmp_path).splitlines()[2:]
    assert any("| – | 0.500 | 0.500 | – | – |" in line for line in lines), lines


def test_a_fold_explains_other_volumes(tmp_path):
    write_result(write_result(tmp_path, "ours"), "ours", (0.5,), fold=2, hd95=(1.0,))
    assert {key[2] for key in group_seeds(read_results(tmp_path))} == {"fold 1", "fold 2"}


def test_seeds_of_changed_data_are_no_seeds_of_one_setting(tmp_path):
    for seed, content in ((1, "aaaa"), (2, "aaaa"), (3, "")):  # older results do not say
        write_result(tmp_path, "ours", seed=seed, content=content)
    write_result(tmp_path, "ours", fold=2, content="of fold 2")
    write_result(tmp_path, "pce", content="aaaa")
    assert sorted(len(runs) for runs in group_seeds(read_results(tmp_path)).values()) == [1, 1, 3]
    assert "differ in data" not in describe(read_results(tmp_path), 1)
    write_result(tmp_path, "pce", content="bbbb")
    assert "rows differ in data" in describe(read_results(tmp_path), 1), "methods are compared, not averaged"
    write_result(tmp_path, "ours", seed=4, content="bbbb")
    runs = "acdc-ours-paper-paper-1-{}-{}"
    said = f"{runs.format(4, 4)}: content: found bbbb, other data than that of {runs.format(1, 1)} (aaaa)"
    for use in (lambda found: compare(found, 1), lambda found: seed_table(found), lambda _: results_table(tmp_path)):
        with pytest.raises(DataError, match=re.escape(said)):
            use(read_results(tmp_path))


def test_masks_that_were_scored_twice_are_not_two_seeds(tmp_path):
    write_result(write_result(tmp_path, "ours", run="before"), "ours", (0.9, 0.9), run="after")
    said = "acdc, Ours, fold 1, seed 1: found the runs after, before, expected one result a setting, fold and seed"
    for use in (lambda found: compare(found, 1), lambda found: seed_table(found), lambda _: results_table(tmp_path)):
        with pytest.raises(DataError, match=said):
            use(read_results(tmp_path))


def test_a_hash_of_the_data_is_text(tmp_path):
    write_result(tmp_path, "ours", content=[5])
    with pytest.raises(DataError, match=r"content: found \[5\], expected str"):
        read_results(tmp_path)


# ---- how many volumes a cell stands for


def test_a_cell_that_counts_fewer_volumes_says_so(tmp_path):
    write_result(tmp_path, "ours")
    rewrite(tmp_path, 1, lambda result: [r.update(dsc=None, hd95_mm=None) for r in result["cases"] if (
        r["case"], r["class"], r["policy"]) == ("patient1", "RV", "standard")])
    results = read_results(tmp_path)
    frame = compare(results, 1)
    counts = row(frame, "ours")["dsc"].iloc[0].xs("ours_n", level="quantity")
    assert counts.to_dict() == {"RV": 1, "Myo": 2, "LV": 2, "Avg": 2}
    line = blocks(frame)["DSC"].set_index("method").loc["Ours"]
    assert line["RV ours"] == "0.80(0.000) [1]" and line["Myo ours"] == "0.70(0.10)"
    assert "[k]: only k volumes count" in describe(results, 1) and "[k]" not in describe(results, 1, "legacy")
    assert r"| 0.800 \[1\] | 0.700 |" in results_table(tmp_path), "brackets as Markdown has them"


def test_the_list_of_runs_has_their_volumes_where_they_differ(tmp_path):
    write_result(write_result(tmp_path, "ours"), "pce", (0.5,), hd95=(1.0,))
    lines = results_table(tmp_path).splitlines()
    assert lines[0].endswith("| HD95 mean (mm) | n |")
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["1 |", "2 |"]
    assert "rows differ in n" in describe(read_results(tmp_path), 1)
