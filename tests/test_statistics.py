"""Which differences are real, on hand-made results with known answers."""

import json
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare, wilcoxon
from test_train_notebook import output_text, papermill

from attenscribble.basics.errors import DataError
from attenscribble.reporting.statistics import (
    CriticalDifference,
    bootstrap_interval,
    by_setting,
    comparable,
    critical_difference,
    describe_statistics,
    find_reference,
    holm,
    named,
    p_text,
    paired_scores,
    paired_tests,
    patient_of,
    plot_critical_difference,
    plot_intervals,
    power_note,
    rank_settings,
    seed_note,
    seed_table,
    signed_rank,
    statistics_table,
    statistics_text,
    volume_scores,
    write_statistics,
)

CLASSES = ("RV", "Myo", "LV")


def result(method="ours", scores=(0.8, 0.6), *, seed=1, fold=1, hd95=True, first=1, **changes):
    "A result of two frames a patient: patient i scores scores[i] ± .01 in each class, HD95 100 (1 − DSC)."
    rows = [{"case": f"patient{i:03d}_frame{frame:02d}", "class": name, "policy": "standard", "dsc": score + shift,
             "hd95_mm": 100 * (1 - score - shift) if hd95 else None} for i, score in enumerate(scores, first)
            for frame, shift in ((1, 0.01), (2, -0.01)) for name in CLASSES]
    facts = {"dataset": "acdc", "method": method, "title": method, "fold": fold, "seed": seed, "profile": "mini",
             "preset": "paper", "checkpoint": "last", "train_seconds": 1.0, "settings": {}, "cases": rows,
             "test_volumes": 2 * len(scores)} | changes
    facts["run"] = "-".join(str(facts[name]) for name in ("method", "preset", "profile", "fold", "seed"))
    return facts | {"run": changes.get("run", facts["run"])}


def without(result, **row):
    "The result without the rows that hold these values."
    return {**result, "cases": [r for r in result["cases"] if any(r[name] != value for name, value in row.items())]}


def of(frame, setting, metric=None):
    (row,) = frame[(frame["setting"] == setting) & ((frame["metric"] == metric) if metric else True)].to_dict("records")
    return row


# ---- from result files to scores


def test_a_volume_scores_the_mean_of_its_classes():
    one = result(scores=(0.5,))
    for row, dsc in zip(one["cases"][:3], (0.9, 0.6, 0.3), strict=True):
        row["dsc"] = dsc
    frame = volume_scores([one], "dsc")
    assert list(frame.columns) == ["setting", "dataset", "fold", "seed", "case", "patient", "score"]
    assert frame["score"].tolist() == pytest.approx([0.6, 0.49])
    assert frame[["setting", "dataset", "fold", "seed", "case", "patient"]].iloc[0].tolist() == [
        "Ours", "acdc", 1, 1, "patient001_frame01", "patient001"]
    assert volume_scores([one], "hd95_mm")["score"].iloc[1] == pytest.approx(51)


def test_a_class_that_no_mask_holds_is_left_out_of_the_mean():
    one = result(scores=(0.5,))
    one["cases"][0]["dsc"] = None
    one["cases"][1]["dsc"] = 0.9
    assert volume_scores([one], "dsc")["score"].iloc[0] == pytest.approx((0.9 + 0.51) / 2)
    for row in one["cases"][:3]:
        row["dsc"] = None
    assert volume_scores([one], "dsc")["score"].isna().tolist() == [True, False]


def test_a_missing_class_is_named_with_run_and_case():
    broken = without(result("pce"), case="patient002_frame01", **{"class": "Myo"})
    with pytest.raises(DataError, match="pce-paper-mini-1-1: patient002_frame01: Myo: found 0 rows"):
        volume_scores([result(), broken], "dsc")
    nowhere = without(result("pce"), **{"class": "LV"})  # the other runs of the dataset have it
    with pytest.raises(DataError, match="pce-paper-mini-1-1: patient001_frame01: LV: found 0 rows"):
        volume_scores([result(), nowhere], "dsc")
    assert len(volume_scores([nowhere], "dsc")) == 4
    twice = result()
    twice["cases"] += twice["cases"][:1]
    with pytest.raises(DataError, match="patient001_frame01: RV: found 2 rows"):
        volume_scores([twice], "dsc")


def test_seeds_with_other_volumes_are_refused_by_name():
    short = without(without(result(seed=2), case="patient001_frame02"), case="patient002_frame01")
    expected = ("acdc, Ours, fold 1: seed 1 has 4 volumes, seed 2 has 2: missing patient001_frame02, "
                "patient002_frame01 in seed 2")
    with pytest.raises(DataError, match=re.escape(expected)):
        volume_scores([result(), short], "dsc")
    other = without(result(seed=2, first=2), case="patient003_frame02")
    with pytest.raises(DataError, match=r"has 4 volumes, seed 2 has 3: missing .* in seed 1; .* in seed 2"):
        volume_scores([result(), other], "dsc")
    assert len(volume_scores([result(), result(fold=2, first=3)], "dsc")) == 8  # folds have volumes of their own


def test_a_seed_and_fold_that_is_there_twice_is_refused():
    with pytest.raises(DataError, match="acdc, Ours, fold 1, seed 1: found the runs ours-paper-mini-1-1, again"):
        volume_scores([result(), result(run="again")], "dsc")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="metric: found 'hd95', expected one of dsc, hd95_mm"):
        volume_scores([result()], "hd95")
    with pytest.raises(ValueError, match="policy: found 'lax'"):
        volume_scores([result()], "dsc", "lax")
    with pytest.raises(DataError, match="no row under the policy 'legacy'"):
        volume_scores([result()], "dsc", "legacy")


def test_folds_and_seeds_are_one_setting_and_anything_else_is_not():
    runs = [result(), result(seed=2), result(fold=2, first=3), result(preset="released"),
            result(settings={"asl_radius": 3}, run="radius"), result(dataset="phantom", run="other")]
    groups = by_setting(runs)
    assert {key: len(found) for key, found in groups.items()} == {
        ("acdc", "Ours (asl_radius 5)"): 3, ("acdc", "Ours, released"): 1, ("acdc", "Ours (asl_radius 3)"): 1,
        ("phantom", "Ours"): 1}
    assert groups["phantom", "Ours"] == [runs[-1]]
    assert set(by_setting(runs[:2], lambda run: f"seed {run['seed']}")) == {("acdc", "seed 1"), ("acdc", "seed 2")}


@pytest.mark.parametrize(("case", "settings", "patient"), [
    ("patient001_frame12", {}, "patient001"), ("chaos05_t2spir", {}, "chaos05"), ("chaos05_t1in", {}, "chaos05"),
    ("case_001", {}, "case_001"), ("case", {}, "case"), ("ann_ED", {"data_patient": "[^_]+"}, "ann"),
    ("ann_ED", {"data_patient": ""}, "ann_ED")])
def test_the_patient_of_a_volume(case, settings, patient):
    assert patient_of({"settings": settings}, case) == patient


# ---- seeds


@pytest.mark.parametrize("pattern", ["(", 5])
def test_a_pattern_of_patients_that_is_none_is_named(pattern):
    said = re.escape(f"ours-paper-mini-1-1: data_patient: found {pattern!r}, expected a regular expression")
    with pytest.raises(DataError, match=said):
        volume_scores([result(settings={"data_patient": pattern})], "dsc")


def test_the_spread_over_seeds_by_hand():
    # seeds .7, .8, .6: mean .7, deviation sqrt((0 + .01 + .01) / 2) = .1
    runs = [result(scores=(0.8, 0.6)), result(scores=(0.9, 0.7), seed=2), result(scores=(0.6, 0.6), seed=3)]
    (row,) = seed_table(runs).to_dict("records")
    assert (row["dataset"], row["setting"], row["seeds"], row["folds"], row["volumes"]) == ("acdc", "Ours", 3, 1, 4)
    assert [row[f"dsc_{name}"] for name in ("mean", "std", "min", "max")] == pytest.approx([0.7, 0.1, 0.6, 0.8])
    assert [row[f"hd95_mm_{name}"] for name in ("mean", "std")] == pytest.approx([30, 10]) and row["missing"] == ""


def test_folds_are_pooled_volume_by_volume_and_a_gap_is_not_filled():
    runs = [result(scores=(0.9,)), result(scores=(0.6, 0.6), fold=2, first=2), result(scores=(0.1,), seed=2)]
    (row,) = seed_table(runs).to_dict("records")
    assert row["seeds"] == 1 and row["missing"] == "seed 2: fold 2" and row["volumes"] == 6
    assert row["dsc_mean"] == pytest.approx((0.9 + 0.6 + 0.6) / 3) and np.isnan(row["dsc_std"])
    (row,) = seed_table([runs[1], runs[2]]).to_dict("records")  # no seed has both folds
    assert row["seeds"] == 0 and np.isnan(row["dsc_mean"])


def test_what_was_not_run_or_not_scored_stays_empty():
    table = seed_table([result(hd95=False), result("pce"), result("pce", dataset="phantom", run="p")])
    assert len(table) == 4 and np.isnan(of(table[table["dataset"] == "acdc"], "Ours")["hd95_mm_mean"])
    missing = of(table[table["dataset"] == "phantom"], "Ours")
    assert missing["missing"] == "not run" and missing["seeds"] == 0 and np.isnan(missing["dsc_mean"])


# ---- the test


def test_signed_ranks_by_hand():
    # ranks 1 2 3 4 5, the fourth negative: 11 against 4; 7 of 32 ways have at most 4 on one side
    p, effect = signed_rank([1, 2, 3, -4, 5])
    assert p == pytest.approx(14 / 32) and effect == pytest.approx((11 - 4) / 15)
    assert signed_rank([-1, -2, -3, 4, -5]) == (pytest.approx(14 / 32), pytest.approx(-7 / 15))
    assert signed_rank([0.1, 0.2, 0.3]) == (pytest.approx(2 / 8), 1)


def test_signed_ranks_against_scipy_with_ties_and_zeros():
    values = np.random.default_rng(0).normal(0.2, 1, 30)
    assert signed_rank(values)[0] == wilcoxon(values, zero_method="wilcox").pvalue
    tied = np.array([1, 1, -1, 2, 2, 3, 0, 0.0])
    assert signed_rank(tied)[0] == wilcoxon(tied[tied != 0]).pvalue
    assert signed_rank(tied)[1] == pytest.approx((21 - 2 - 2) / 21)  # three ones share rank 2; one is negative
    assert signed_rank([0, 0]) == (1, 0)
    with pytest.raises(ValueError, match="differences: found 1 NaN"):
        signed_rank([np.nan, 1])


def test_rounding_does_not_untie():
    exact = signed_rank([1, -1, 1, 1, 2])
    assert signed_rank([0.8 - 0.7, 0.7 - 0.8, 0.9 - 0.8, 0.3 - 0.2, 0.2]) == exact
    assert signed_rank([0.1 + 0.2 - 0.3]) == (1, 0)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.04, 0.005, 0.6, 0.02]), [0.08, 0.02, 0.6, 0.06])  # 2·.04, 4·.005, .6, 3·.02
    np.testing.assert_allclose(holm([0.9, 0.5]), [1, 1])
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match=r"p: found \[nan\]"):
        holm([np.nan])


def test_holm_keeps_the_order_and_lies_below_bonferroni():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(9) ** 4
        adjusted = holm(p)
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all() and (adjusted >= p).all()
        assert (adjusted <= np.minimum(1, 9 * p) + 1e-12).all()
        shuffled = rng.permutation(9)
        np.testing.assert_array_equal(holm(p[shuffled]), adjusted[shuffled])


def test_the_bootstrap_is_deterministic_and_draws_patients():
    values, patients = np.arange(20.0), np.repeat(np.arange(10), 2)
    one = bootstrap_interval(values, patients)
    assert one == bootstrap_interval(values, patients) != bootstrap_interval(values, patients, seed=1)
    # both volumes of a patient alike: forty volumes say no more than twenty patients
    doubled = bootstrap_interval(np.repeat(values, 2), np.repeat(np.arange(20), 2))
    np.testing.assert_allclose(doubled, bootstrap_interval(values, range(20)))
    naive = bootstrap_interval(np.repeat(values, 2), range(40))
    assert naive[1] - naive[0] < 0.8 * (doubled[1] - doubled[0])
    assert one[0] < values.mean() < one[1] and bootstrap_interval([2.0, 2.0], "ab") == (2, 2)
    assert np.isnan(bootstrap_interval([1.0, 2.0], "aa")).all()


def test_the_interval_has_the_width_of_a_t_interval_on_normal_differences():
    values = np.random.default_rng(0).standard_normal(30)
    low, high = bootstrap_interval(values, range(30), resamples=40_000)
    half = 2.0452 * values.std(ddof=1) / np.sqrt(30)  # t(.975, 29)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    narrow = bootstrap_interval(values, range(30), level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_a_paired_test_by_hand():
    reference, other = (0.8, 0.6, 0.7, 0.5, 0.4), (0.81, 0.62, 0.73, 0.46, 0.45)  # differences .01 .02 .03 −.04 .05
    (row,) = paired_tests([result(scores=reference), result("pce", other)], "ours", "dsc").to_dict("records")
    assert (row["setting"], row["reference"], row["unit"], row["units"], row["patients"]) == (
        "pCE", "Ours", "patient", 5, 5)
    assert row["p"] == row["p_holm"] == pytest.approx(14 / 32) and row["rank_biserial"] == pytest.approx(7 / 15)
    assert row["difference"] == pytest.approx(0.014) and row["low"] < 0.014 < row["high"]
    (distance,) = paired_tests([result(scores=reference), result("pce", other)], "ours", "hd95_mm").to_dict("records")
    assert distance["difference"] == pytest.approx(-1.4) and distance["rank_biserial"] == pytest.approx(-7 / 15)


def test_volumes_as_units_are_twice_as_many_and_the_interval_still_draws_patients():
    runs = [result(scores=(0.5,) * 6), result("pce", np.linspace(0.5, 0.75, 6))]
    patient, volume = (paired_tests(runs, "ours", "dsc", unit=unit).iloc[0] for unit in ("patient", "volume"))
    assert (patient["units"], volume["units"], volume["patients"]) == (6, 12, 6) and volume["p"] < patient["p"]
    assert (volume["low"], volume["high"]) == pytest.approx((patient["low"], patient["high"]))
    with pytest.raises(ValueError, match="unit: found 'slice', expected one of patient, volume"):
        paired_tests(runs, "ours", "dsc", unit="slice")


def test_seeds_are_averaged_before_pairing():
    runs = [result(scores=(0.5, 0.5)), result("pce", (0.6, 0.8)), result("pce", (0.8, 0.8), seed=2)]
    assert paired_scores(volume_scores(runs, "dsc"))["pCE"].tolist() == pytest.approx([0.7, 0.8])
    assert paired_tests(runs, "ours", "dsc")["seeds"].tolist() == [2]


def test_unpaired_volumes_are_refused_by_name():
    short = without(result("pce"), case="patient002_frame02")
    expected = "pCE: has 3 of 4 volumes, lacks patient002_frame02 (fold 1)"
    with pytest.raises(DataError, match=re.escape(expected)):
        paired_tests([result(), short], "ours", "dsc")
    with pytest.raises(DataError, match=r"Ours: has 2 of 4 volumes, lacks patient001_frame01 \(fold 2\)"):
        paired_tests([result(scores=(0.5,)), result("pce", (0.5,), fold=2)], "ours", "dsc")  # another fold is no pair
    with pytest.raises(DataError, match=r"pCE: no number for patient001_frame01 \(seed 1\)"):
        paired_tests([result(), result("pce", hd95=False)], "ours", "hd95_mm")
    with pytest.raises(ValueError, match="found the datasets acdc, phantom, expected exactly one"):
        paired_tests([result(), result("pce", dataset="phantom")], "ours", "dsc")


def test_holm_is_over_all_settings_but_the_reference():
    rng = np.random.default_rng(0)
    runs = [result(name, 0.5 + 0.02 * rng.standard_normal(8) + shift)
            for name, shift in (("ours", 0), ("pce", 0.05), ("ustm", 0.02), ("gated-crf", 0))]
    tests = paired_tests(runs, "ours", "dsc")
    assert tests["setting"].tolist() == ["pCE", "USTM", "GCRF"]
    np.testing.assert_array_equal(tests["p_holm"], holm(tests["p"]))


def test_the_reference_has_a_name():
    runs = [result(), result(preset="released"), result("pce", (0.9, 0.9)), result("fully", (0.99, 0.99)),
            result("nnU-Net", preset="–", profile="elsewhere")]
    found = [find_reference(runs, name) for name in ("ours", "ours:released", "Ours, released", "pce", "nnU-Net", "")]
    assert found == ["Ours", "Ours, released", "Ours, released", "pCE", "nnU-Net", "pCE"]
    assert find_reference([result("fully")]) == "Fully"
    with pytest.raises(ValueError, match=r"reference: found 'our', .*, ours:released, .*; did you mean 'ours'"):
        find_reference(runs, "our")
    with pytest.raises(ValueError, match=r"'ours' is 'Ours \(asl_radius 5\)' and 'Ours \(asl_radius 3\)'; name one"):
        find_reference([result(), result(settings={"asl_radius": 3}, run="b")], "ours")


# ---- ranks


@pytest.mark.parametrize(("k", "alpha", "q"), [  # Demšar 2006, table 5 (a)
    (3, 0.05, 2.343), (4, 0.05, 2.569), (5, 0.05, 2.728), (10, 0.05, 3.164), (4, 0.10, 2.291), (10, 0.10, 2.920)])
def test_critical_values_are_the_published_ones(k, alpha, q):
    found = critical_difference(pd.DataFrame(np.random.default_rng(0).random((14, k))), alpha=alpha)
    assert found.difference / np.sqrt(k * (k + 1) / (6 * 14)) == pytest.approx(q, abs=0.001)


def test_the_published_example():
    # Demšar 2006, section 3.2.2: four classifiers, 14 data sets; CD 1.25 at .05 and 1.12 at .10
    ranks = {"C4.5+m+cf": 1.964, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5": 3.143}
    table = pd.DataFrame(np.random.default_rng(0).random((14, 4)))
    five, ten = (critical_difference(table, alpha=alpha) for alpha in (0.05, 0.10))
    assert (round(five.difference, 2), round(ten.difference, 2)) == (1.25, 1.12)
    assert replace(five, ranks=ranks).cliques == (tuple(ranks),)
    assert replace(ten, ranks=ranks).cliques == (("C4.5+m+cf", "C4.5+m", "C4.5+cf"), ("C4.5+cf", "C4.5"))


def test_mean_ranks_by_hand():
    table = pd.DataFrame([[0.9, 0.8, 0.1], [0.9, 0.9, 0.2], [0.5, 0.4, 0.6]], columns=["a", "b", "c"])
    found = critical_difference(table)  # ranks 1 2 3; 1.5 1.5 3; 2 3 1
    assert found.ranks == {"a": 1.5, "b": pytest.approx(6.5 / 3), "c": pytest.approx(7 / 3)}
    assert list(critical_difference(table, larger_is_better=False).ranks) == ["c", "b", "a"]
    assert found.p == pytest.approx(friedmanchisquare(*table.to_numpy().T).pvalue) and found.units == 3
    assert np.isnan(critical_difference(pd.DataFrame(np.ones((3, 3)))).p)


@pytest.mark.parametrize("table", [np.ones((5, 2)), np.ones((1, 3)), np.full((5, 3), np.nan)])
def test_too_few_scores_have_no_ranks(table):
    with pytest.raises(ValueError, match="expected at least 2 units, 3 settings, no NaN"):
        critical_difference(pd.DataFrame(table))


def test_a_setting_apart_is_in_no_clique():
    found = CriticalDifference({"a": 1.0, "b": 3.0, "c": 3.5, "d": 9.0}, 1.0, 0.01, 20, "patient", 0.05)
    assert found.cliques == (("b", "c"),)
    assert replace(found, difference=0.5).cliques == ()  # exactly the critical difference apart: they differ
    assert replace(found, difference=99).cliques == (("a", "b", "c", "d"),)


# ---- pictures


def test_the_picture_of_ranks_names_every_setting_once_inside_the_figure():
    names = [f"A method with a long name {i}" for i in range(9)]
    scores = pd.DataFrame(np.random.default_rng(0).random((12, 9)) + np.arange(9) / 6, columns=names)
    found = critical_difference(scores.rename_axis("patient"))
    figure, axis = plt.subplots(figsize=(8.5, found.height), layout="constrained")
    plot_critical_difference(axis, found, "DSC")
    figure.draw_without_rendering()
    texts = [text for text in axis.texts if "method" in text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert sorted(re.sub(r"  ?\d\.\d\d|\d\.\d\d  ", "", text.get_text()) for text in texts) == names
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert "12 patients" in axis.get_title() and f"CD = {found.difference:.2f}" in axis.texts[-1].get_text()
    plt.close(figure)


def test_the_picture_of_intervals_says_what_is_better():
    runs = [result(scores=(0.5,) * 6), result("pce", np.linspace(0.6, 0.85, 6)), result("ustm", (0.5,) * 6)]
    for metric, side in (("dsc", "right"), ("hd95_mm", "left")):
        figure, axis = plt.subplots()
        plot_intervals(axis, paired_tests(runs, "ours", metric))
        assert f"to Ours ({side} of 0: better)" in axis.get_xlabel() and axis.yaxis_inverted()
        assert [label.get_text() for label in axis.get_yticklabels()] == ["pCE", "USTM"]
        assert [text.get_text() for text in axis.texts] == ["p = 0.062", "p = 1.000"]
        plt.close(figure)


@pytest.mark.parametrize(("p", "text"), [(0.0124, "p = 0.012"), (1e-6, "p < 0.001"), (float("nan"), "–")])
def test_p_in_print(p, text):
    assert p_text(p, "p ") == text and p_text(p) == text.removeprefix("p ").removeprefix("= ")


# ---- what is compared, and the table


def test_only_what_shares_profile_folds_classes_and_volumes_is_compared():
    runs = [result(), result("pce"), result("ustm", profile="smoke"), result("gated-crf", fold=2),
            without(result("contour"), case="patient001_frame01"), without(result("dual-branch"), **{"class": "LV"}),
            without(result("fully"), policy="standard")]
    kept, left_out = comparable(runs)
    assert kept == runs[:2] and left_out == {
        "USTM": "profile smoke, not mini", "GCRF": "fold 2, not 1",
        "Contour": "other volumes: lacks patient001_frame01", "DBr": "classes Myo, RV, not LV, Myo, RV",
        "Fully": "no row under the policy standard"}
    assert comparable(runs, "legacy")[0] == [] and comparable([]) == ([], {})
    more = comparable([result("pce"), result(scores=(0.5, 0.6, 0.7))])  # of two groups of one that with more volumes
    assert more[1] == {"pCE": "other volumes: lacks patient003_frame01, patient003_frame02"}


def test_the_table_joins_seeds_and_tests():
    runs = [result(scores=(0.8, 0.6)), result(scores=(0.9, 0.7), seed=2), result("pce", (0.5, 0.5)),
            result("ustm", (0.6, 0.6), hd95=False)]
    frame = statistics_table(runs, "ours")
    assert frame["metric"].tolist() == ["dsc"] * 3 + ["hd95_mm"] * 3
    pce = of(frame, "pCE", "dsc")
    assert pce["difference"] == pytest.approx(0.5 - 0.75) and pce["p"] == 0.5 and pce["seeds"] == 1
    assert of(frame, "Ours", "dsc")["std"] == pytest.approx(0.1 / np.sqrt(2))
    assert np.isnan(of(frame, "USTM", "hd95_mm")["p"]) and of(frame, "pCE", "hd95_mm")["p"] == 0.5
    text = statistics_text(frame)
    assert text.iloc[0][["setting", "std over seeds", "difference [95 %]", "p"]].tolist() == [
        "Ours", "0.071", "reference", "–"]
    assert text.iloc[1]["difference [95 %]"].startswith("−0.250 [−") and text.iloc[1]["r"] == "−1.00"
    assert text.iloc[5][["metric", "mean", "difference [95 %]", "r", "p (Holm)"]].tolist() == ["HD95 (mm)"] + ["–"] * 4


def test_variants_keep_their_names_where_some_have_no_distance():
    runs = [result(), result(settings={"asl_radius": 3}, hd95=False, run="b"), result("pce")]
    frame = statistics_table(runs, "pce")
    names = ["Ours (asl_radius 5)", "Ours (asl_radius 3)", "pCE"]
    assert frame[frame["metric"] == "hd95_mm"]["setting"].tolist() == names
    assert not np.isnan(of(frame, "Ours (asl_radius 5)", "hd95_mm")["p"])


def test_the_caption_says_what_the_test_cannot():
    runs = [result(), result("pce")]
    frame = statistics_table(runs, "ours")
    text = describe_statistics(frame, {"USTM": "profile smoke, not mini"}, "acdc")
    for part in ("every setting against Ours", "over 2 patients", "adjusted for 1 comparisons", "One seed each: p",
                 "With 2 patients and 1 comparisons no adjusted p is below 0.500",
                 "Left out: USTM: profile smoke, not mini."):
        assert part in text, text
    assert "Missing" not in text and "\n" not in text
    several = statistics_table([*runs, result(seed=2)], "ours")
    assert "One seed of pCE: p tells" in describe_statistics(several, {}, "acdc")
    assert seed_note(several[several["setting"] == "Ours"]) == ""
    assert power_note(20, 14) == "" and "0.078" in power_note(7, 5) and "1.000" in power_note(2, 9)
    gap = statistics_table([*runs, result(fold=2, first=3), result("pce", fold=2, first=3), result(seed=2)], "ours")
    assert "Missing: Ours: seed 2: fold 2. " in describe_statistics(gap, {}, "acdc") + " "


def test_ranks_need_three_settings_with_a_number():
    runs = [result(scores=(0.8, 0.7, 0.6)), result("pce", (0.5, 0.5, 0.5)),
            result("ustm", (0.6, 0.6, 0.65), hd95=False)]
    assert rank_settings(runs[:2]) == {} and rank_settings([result(m, (0.5,)) for m in ("ours", "pce", "ustm")]) == {}
    found = rank_settings(runs)
    assert list(found) == ["dsc"] and found["dsc"].ranks == {
        "Ours": pytest.approx(4 / 3), "USTM": pytest.approx(5 / 3), "pCE": 3} and found["dsc"].unit == "patient"
    both = rank_settings([result(m, (s, s)) for m, s in (("ours", 0.5), ("pce", 0.7), ("ustm", 0.6))])
    assert [*both["hd95_mm"].ranks] == [*both["dsc"].ranks] == ["pCE", "USTM", "Ours"]  # HD95 = 100 (1 − DSC)


def test_all_digits_are_in_the_csv(tmp_path):
    frame = statistics_table([result(), result("pce", (1 / 3, 1 / 3))], "ours")
    markdown, comma, latex = (path.read_text() for path in write_statistics(frame, "about", "s", tmp_path))
    assert markdown.startswith("about\n\n| metric | setting |") and "0.333" in markdown and "0.33333333" not in markdown
    assert "0.333333333" in comma and len(comma.splitlines()) == 5 and r"$-$0.367" in latex
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.md", "s.tex"]


def test_names_are_cut():
    assert named("cab") == "a, b, c" and named(range(8), 2) == "0, 1 and 6 more" and named([]) == ""


# ---- known truth


def test_a_null_gives_uniform_p_values_and_intervals_that_hold_it():
    rng = np.random.default_rng(1)
    found = pd.concat([paired_tests([result(m, 0.7 + 0.03 * rng.standard_normal(15)) for m in ("ours", "pce")], "ours",
                                    "dsc", resamples=299, label=lambda run: run["method"]) for _ in range(100)])
    assert 0.3 < (found["p"] < 0.5).mean() < 0.7 and (found["p"] < 0.05).mean() < 0.13
    assert ((found["low"] < 0) & (found["high"] > 0)).mean() > 0.85


# ---- the notebook


def write(folder, *results):
    folder.mkdir()
    for one in results:
        (folder / f"{one['run']}.json").write_text(json.dumps(one))
    return str(folder)


def test_the_notebook_tests_against_the_reference_that_is_named(root, tmp_path):
    scores = (0.8, 0.6, 0.7, 0.9)
    runs = [result(method, np.array(scores) - shift) for method, shift in (("ours", 0), ("pce", 0.3), ("ustm", 0.1))]
    folder = write(tmp_path / "results", *runs, result("contour", profile="smoke"))
    done = papermill(root, "tables.ipynb", "-", "-p", "results", folder, "-p", "output", str(tmp_path / "out"), "-p",
                     "dataset", "acdc", "-p", "reference", "ustm")
    assert done.returncode == 0, done.stderr[-3000:]
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made >= {"statistics-acdc.md", "statistics-acdc.csv", "statistics-acdc.tex", "cd-acdc.png"}
    text = (tmp_path / "out" / "statistics-acdc.md").read_text()
    assert "against USTM" in text and "One seed each" in text and "Left out: Contour: profile smoke, not mini." in text
    assert "cd-acdc.png" in output_text(json.loads(done.stdout))


def test_the_notebook_refuses_a_misspelt_reference(root, tmp_path):
    folder = write(tmp_path / "results", result(), result("pce"))
    done = papermill(root, "tables.ipynb", "-", "-p", "results", folder, "-p", "output", str(tmp_path / "out"), "-p",
                     "reference", "our")
    assert done.returncode != 0 and "did you mean 'ours'?" in done.stderr and not (tmp_path / "out").exists()


def test_the_notebook_says_that_one_setting_is_none_to_compare(root, tmp_path):
    folder = write(tmp_path / "results", result())
    done = papermill(root, "tables.ipynb", "-", "-p", "results", folder, "-p", "output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    text = output_text(json.loads(done.stdout))
    assert "acdc: nothing to compare" in text and "chaos: nothing to compare" in text
