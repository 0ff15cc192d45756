"""DSC and HD95 against MedPy and brute force; empty masks by policy; mean and standard deviation by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from medpy.metric import binary
from scipy import ndimage
from scipy.spatial.distance import cdist

from attenscribble.data.scans import acdc
from attenscribble.runs import metrics
from attenscribble.runs.metrics import (
    POLICIES,
    _bounding_box,
    diagonal_mm,
    dice,
    format_table,
    hd95,
    score_case,
    summarise,
    surface,
    transform_distances,
    tree_distances,
)

SHAPE, SPACING = (10, 216, 256), (10.0, 1.5625, 1.5625)  # an ACDC scan
NAMES = ("background", "RV", "Myo", "LV")


def blob(shape=SHAPE, spacing=SPACING, centre=(0.5, 0.5, 0.5), radius_mm=30.0):
    "A ball in mm."
    grid = np.meshgrid(*[np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)], indexing="ij")
    middle = [c * n * mm for c, n, mm in zip(centre, shape, spacing, strict=True)]
    return sum((g - m) ** 2 for g, m in zip(grid, middle, strict=True)) < radius_mm**2


@st.composite
def mask_pairs(draw):
    shape = draw(array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7))
    spacing = draw(st.lists(st.floats(0.3, 12), min_size=len(shape), max_size=len(shape)))
    return draw(arrays(bool, shape)), draw(arrays(bool, shape)), tuple(spacing)


# --- against independent implementations --------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(mask_pairs())
@example((np.ones((1, 1), bool), np.ones((1, 1), bool), (2.0, 3.0)))
def test_random_masks_score_as_in_medpy(pair):
    prediction, reference, spacing = pair
    assume(prediction.any() and reference.any())
    assert dice(prediction, reference) == pytest.approx(binary.dc(prediction, reference), abs=1e-12)
    expected = binary.hd95(prediction, reference, voxelspacing=spacing)
    assert hd95(prediction, reference, spacing) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert hd95(reference, prediction, spacing) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def hard_pairs():
    "Shapes of a real scan: shifted, scattered, touching the border, one voxel, one slice, full."
    rng = np.random.default_rng(0)
    ball, single = blob(), np.zeros(SHAPE, bool)
    single[4, 100, 120] = True
    scattered = ball | (rng.random(SHAPE) < 2e-3)
    corner = blob(centre=(0.0, 0.0, 0.0), radius_mm=40)
    one_slice = np.zeros(SHAPE, bool)
    one_slice[0] = ball[5]
    checkers = np.indices(SHAPE).sum(0) % 2 == 0
    return {
        "same": (ball, ball), "shifted": (np.roll(ball, (1, 3, -2), (0, 1, 2)), ball), "scattered": (scattered, ball),
        "border": (corner, ball), "both at the border": (corner, np.flip(corner, 2)), "one voxel": (single, ball),
        "two voxels": (single, np.roll(single, 50, 2)), "first slice": (one_slice, ball), "checkers": (checkers, ball),
        "full": (np.ones(SHAPE, bool), ball), "both full": (np.ones(SHAPE, bool), np.ones(SHAPE, bool)),
        "not contiguous": (ball[:, ::-1], ball.copy(order="F")),
    }


@pytest.mark.parametrize("kind", hard_pairs())
def test_hard_masks_score_as_in_medpy(kind):
    prediction, reference = hard_pairs()[kind]
    assert hd95(prediction, reference, SPACING) == pytest.approx(binary.hd95(prediction, reference, SPACING), rel=1e-12)
    assert dice(prediction, reference) == pytest.approx(binary.dc(prediction, reference), abs=1e-12)


def test_120_real_pairs_score_as_in_medpy(data_root):
    scans, rng, pairs = acdc(data_root / "acdc"), np.random.default_rng(0), 0
    for case in (scans.read(patient)[0] for patient in scans.patients[::5]):
        for class_id in (1, 2, 3):
            middle = np.s_[2:5, 40:170, 50:200]  # a block, so that MedPy is fast enough; hearts touch its border
            reference = case.label[middle] == class_id
            smooth = ndimage.gaussian_filter(reference.astype(float), (0, 2, 2)) > rng.uniform(0.3, 0.6)
            for prediction in (smooth, smooth | (rng.random(reference.shape) < rng.choice([1e-4, 1e-3, 1e-2]))):
                if prediction.any() and reference.any():
                    expected = binary.hd95(prediction, reference, case.spacing_mm)
                    assert hd95(prediction, reference, case.spacing_mm) == pytest.approx(expected, rel=1e-6)
                    assert dice(prediction, reference) == pytest.approx(binary.dc(prediction, reference))
                pairs += 1
    assert pairs == 120


@settings(max_examples=50, deadline=None)
@given(mask_pairs())
def test_tree_and_transform_agree_with_all_pairs_of_voxels(pair):
    prediction, reference, spacing = pair
    assume(prediction.any() and reference.any())
    ours, theirs = surface(prediction), surface(reference)
    table = cdist(np.argwhere(ours) * spacing, np.argwhere(theirs) * spacing)
    for way in (tree_distances, transform_distances):
        there, back = way(ours, theirs, np.array(spacing))
        np.testing.assert_allclose(there, table.min(1), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(back, table.min(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "way"), [("scattered", "tree_distances"), ("checkers", "transform_distances")])
def test_the_cheaper_way_is_taken(kind, way, monkeypatch):
    used = []

    def spy(name, call):
        return lambda *arguments: used.append(name) or call(*arguments)

    for name in ("tree_distances", "transform_distances"):
        monkeypatch.setattr(metrics, name, spy(name, getattr(metrics, name)))
    hd95(*hard_pairs()[kind], SPACING)
    assert used == [way]


# --- properties ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(mask_pairs(), st.integers(0, 3), st.floats(0.5, 4))
def test_hd95_ignores_padding_and_scales_with_the_spacing(pair, margin, factor):
    prediction, reference, spacing = pair
    assume(prediction.any() and reference.any())
    distance = hd95(prediction, reference, spacing)
    padded = [np.pad(mask, margin) for mask in (prediction, reference)]
    assert hd95(*padded, spacing) == pytest.approx(distance)
    assert hd95(prediction, reference, np.multiply(spacing, factor)) == pytest.approx(factor * distance)
    assert 0 <= distance < diagonal_mm(prediction.shape, spacing)
    assert hd95(prediction, prediction, spacing) == 0


def test_each_axis_has_its_own_spacing():
    prediction = np.zeros((4, 4, 4), bool)
    prediction[0, 0, 0] = True
    for axis in range(3):
        there = np.zeros((4, 4, 4), bool)
        there[tuple(3 * (a == axis) for a in range(3))] = True
        assert hd95(prediction, there, (10.0, 2.0, 1.0)) == 3 * (10.0, 2.0, 1.0)[axis]


def test_the_surface_counts_the_array_border_as_outside():
    full = np.ones((4, 5), bool)
    assert surface(full).sum() == 2 * 4 + 2 * 5 - 4
    assert _bounding_box(np.pad(full, ((1, 2), (3, 0)))) == (slice(1, 5), slice(3, 8))


# --- empty masks --------------------------------------------------------------------------------------------------


def test_dice_of_empty_masks():
    nothing, something = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert dice(nothing, something) == dice(something, nothing) == 0
    assert np.isnan(dice(nothing, nothing))


@pytest.mark.parametrize(("prediction", "reference", "name"), [(0, 1, "prediction"), (1, 0, "reference"),
                                                              (0, 0, "prediction")])
def test_hd95_refuses_empty_masks(prediction, reference, name):
    with pytest.raises(ValueError, match=f"{name}: found an empty mask, expected at least one voxel"):
        hd95(np.full((3, 4), bool(prediction)), np.full((3, 4), bool(reference)), (1, 1))


NAN, DIAGONAL = float("nan"), 13.0  # 3 × 4 pixels of 5/3 × 3 mm are 5 × 12 mm, and 5² + 12² = 13²


@pytest.mark.parametrize(("policy", "both", "one"), [("standard", (NAN, NAN), (0.0, DIAGONAL)),
                                                    ("legacy", (0.0, 0.0), (0.0, 0.0))])
def test_policies_for_empty_masks(policy, both, one):
    reference, prediction = np.zeros((2, 3, 4), np.uint8)
    prediction[0, 0], reference[1, 1] = 1, 2
    reference[2, 3] = prediction[2, 3] = 3
    names = ("background", "predicted only", "labelled only", "both", "neither")
    rows = score_case(prediction, reference, (5 / 3, 3.0), names, policy=policy, case="p1")
    assert [row["class"] for row in rows] == list(names[1:])
    assert {(row["case"], row["policy"]) for row in rows} == {("p1", policy)}
    scores = [(row["dsc"], row["hd95_mm"]) for row in rows]
    np.testing.assert_allclose(scores, [one, one, (1.0, 0.0), both])


@pytest.mark.parametrize("policy", POLICIES)
def test_without_spacing_only_dsc(policy):
    label = np.array([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"patient007_frame01: spacing_mm: found None, .*with_hd95=False"):
        score_case(label, label, None, NAMES, case="patient007_frame01", policy=policy)
    rows = score_case(label, label, None, NAMES, policy=policy, with_hd95=False)
    assert rows[0]["dsc"] == 1 and all(np.isnan(row["hd95_mm"]) for row in rows)
    summary = summarise(rows)
    assert summary["hd95_mm_n"].tolist() == [0, 0, 0, 0] and summary.loc["RV", "dsc_n"] == 1
    assert format_table(summary)["HD95 (mm)"].tolist() == ["–"] * 4


def test_score_case_scores_each_class_on_its_own():
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 4, (2, 3, 20, 20), dtype=np.uint8)
    rows = score_case(prediction, reference, SPACING, NAMES)
    for class_id, row in enumerate(rows, start=1):
        assert row["dsc"] == binary.dc(prediction == class_id, reference == class_id)
        assert row["hd95_mm"] == pytest.approx(binary.hd95(prediction == class_id, reference == class_id, SPACING))


# --- wrong input --------------------------------------------------------------------------------------------------

YES = np.ones((2, 3, 4), bool)


@pytest.mark.parametrize("metric", [dice, lambda p, r: hd95(p, r, (1, 1, 1))])
@pytest.mark.parametrize(("prediction", "reference", "error", "message"), [
    (YES.astype(np.uint8), YES, TypeError, "prediction: found uint8, expected a boolean array, such as .* == 1"),
    (YES, YES.astype(float), TypeError, "reference: found float64, expected a boolean array"),
    ([True], YES, TypeError, "prediction: found list, expected a boolean array"),
    (YES[:1], YES, ValueError, r"prediction: found shape \(1, 3, 4\), expected the reference's \(2, 3, 4\)"),
])
def test_masks_are_checked(metric, prediction, reference, error, message):
    with pytest.raises(error, match=message):
        metric(prediction, reference)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 1, 1), 1.0, (1, 0, 1), (1, -1, 1), (1, np.nan, 1), (1, np.inf, 1)])
def test_spacing_is_checked(spacing):
    with pytest.raises(ValueError, match=r"spacing_mm: found .*, expected 3 positive numbers, one per axis"):
        hd95(YES, YES, spacing)
    with pytest.raises(ValueError, match=r"spacing_mm: found .*, expected 3 positive numbers, one per axis"):
        score_case(YES.astype(int), YES.astype(int), spacing, NAMES)


def test_score_case_checks_its_input():
    label = np.zeros((2, 3, 4), np.uint8)
    scribble = label.copy()
    scribble[0, 0, :2] = 4
    with pytest.raises(ValueError, match=r"p1: reference: found the class ids \[4\], expected 0 … 3"):
        score_case(label, scribble, SPACING, NAMES, case="p1")
    with pytest.raises(ValueError, match=r"p1: prediction: found the class ids \[-1\], expected 0 … 3"):
        score_case(label.astype(int) - 1, label, SPACING, NAMES, case="p1")
    with pytest.raises(TypeError, match="p1: prediction: found float64, expected an integer array of class ids"):
        score_case(label.astype(float), label, SPACING, NAMES, case="p1")
    with pytest.raises(TypeError, match="p1: prediction: found bool, expected an integer array"):
        score_case(label == 1, label, SPACING, NAMES, case="p1")
    with pytest.raises(ValueError, match=r"p1: prediction: found shape \(1, 3, 4\), expected .* \(2, 3, 4\)"):
        score_case(label[:1], label, SPACING, NAMES, case="p1")
    with pytest.raises(ValueError, match="policy: found 'legasy', expected one of standard, legacy; did you mean"):
        score_case(label, label, SPACING, NAMES, policy="legasy")


# --- tables -------------------------------------------------------------------------------------------------------


def rows_of(table, policy="standard"):
    "Rows from {case: {class: (dsc, hd95)}}."
    return [{"case": case, "class": name, "dsc": dsc, "hd95_mm": mm, "policy": policy}
            for case, classes in table.items() for name, (dsc, mm) in classes.items()]


def test_summary_by_hand():
    rows = rows_of({"a": {"RV": (0.9, 2.0), "LV": (0.7, 8.0)}, "b": {"RV": (0.5, 4.0), "LV": (0.9, 2.0)}})
    summary = summarise(rows)
    assert summary.index.tolist() == ["RV", "LV", "Avg"]
    # means .7 and .8, Avg .75; deviations .2 and .1; the volumes' means are .8 and .7, so Avg deviates by .05, not .15
    np.testing.assert_allclose(summary["dsc_mean"], [0.7, 0.8, 0.75])
    np.testing.assert_allclose(summary["dsc_std"], [0.2, 0.1, 0.05])
    np.testing.assert_allclose(summary["hd95_mm_mean"], [3.0, 5.0, 4.0])
    np.testing.assert_allclose(summary["hd95_mm_std"], [1.0, 3.0, 1.0])
    assert summary["dsc_n"].tolist() == summary["hd95_mm_n"].tolist() == [2, 2, 2]
    assert summary["policy"].unique().tolist() == ["standard"]


def test_excluded_volumes_are_counted():
    rows = rows_of({"a": {"RV": (NAN, NAN), "LV": (0.7, 8.0)}, "b": {"RV": (0.5, 4.0), "LV": (0.9, 2.0)},
                    "c": {"RV": (NAN, NAN), "LV": (NAN, NAN)}})
    summary = summarise(rows)
    assert summary["dsc_n"].tolist() == [1, 2, 2]
    np.testing.assert_allclose(summary["dsc_mean"], [0.5, 0.8, 0.65])
    np.testing.assert_allclose(summary["dsc_std"], [0.0, 0.1, 0.0], atol=1e-12)  # the volumes' means: .7 and .7
    nothing = summarise(rows_of({"a": {"RV": (NAN, NAN)}}))
    assert nothing["dsc_n"].tolist() == [0, 0] and nothing["dsc_mean"].isna().all()


def test_rows_survive_a_round_trip_through_json():
    rows = rows_of({"a": {"RV": (None, None)}, "b": {"RV": (0.5, 4.0)}})
    frame = pd.DataFrame(json.loads(json.dumps(rows)))
    summary = summarise(frame)
    assert summary.loc["RV", ["dsc_mean", "hd95_mm_mean", "dsc_n"]].tolist() == [0.5, 4.0, 1]
    assert frame["dsc"].isna().sum() == 1, "the caller's rows stay as they are"
    without = summarise(pd.DataFrame(json.loads(json.dumps(rows_of({"a": {"RV": (0.5, None)}})))))  # a column of None
    assert np.isnan(without.loc["RV", "hd95_mm_mean"]) and without.loc["RV", "hd95_mm_n"] == 0
    assert format_table(without)["HD95 (mm)"].tolist() == ["–", "–"]
    assert without["hd95_mm_mean"].dtype == without["hd95_mm_std"].dtype == np.float64


def test_order_of_rows_changes_only_the_order_of_classes():
    rng = np.random.default_rng(0)
    rows = rows_of({f"p{i}": {name: tuple(rng.random(2)) for name in NAMES[1:]} for i in range(10)})
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    pd.testing.assert_frame_equal(summarise(rows), summarise(shuffled).loc[["RV", "Myo", "LV", "Avg"]])


def test_avg_is_numpys():
    values = np.random.default_rng(0).random((7, 3))
    rows = rows_of({f"p{i}": {n: (v, 10 * v) for n, v in zip(NAMES[1:], row, strict=True)}
                    for i, row in enumerate(values)})
    summary = summarise(rows)
    np.testing.assert_allclose(summary.loc["Avg", ["dsc_mean", "dsc_std"]].astype(float),
                               [values.mean(0).mean(), values.mean(1).std()])
    np.testing.assert_allclose(summary["hd95_mm_std"].iloc[:3], 10 * values.std(0))


def test_summary_refuses_mixed_rows():
    rows = rows_of({"a": {"RV": (0.9, 2.0)}})
    with pytest.raises(ValueError, match=r"found the policies \['legacy', 'standard'\], expected .* exactly one"):
        summarise(rows + rows_of({"b": {"RV": (0.0, 0.0)}}, policy="legacy"))
    with pytest.raises(ValueError, match="found RV of a twice, expected each class of a case once"):
        summarise(rows + rows)
    with pytest.raises(ValueError, match="found no column policy, hd95_mm, expected rows of score_case"):
        summarise(pd.DataFrame(rows).drop(columns=["policy", "hd95_mm"]))
    with pytest.raises(ValueError, match="expected rows of score_case"):
        summarise([])
    with pytest.raises(ValueError, match=r"found the policies \[\], expected"):
        summarise(pd.DataFrame(rows).iloc[:0])


@pytest.mark.parametrize(("mean", "std", "metric", "text"), [
    (0.87, 0.079, "dsc", "0.87(0.079)"), (0.58, 0.164, "dsc", "0.58(0.16)"), (0.96, 0.009, "dsc", "0.96(0.009)"),
    (0.9, 0.0997, "dsc", "0.90(0.10)"), (10.72, 19.34, "hd95_mm", "10.72(19.34)"), (2.0, 0.05, "hd95_mm", "2.00(0.05)"),
    (NAN, NAN, "dsc", "–"),
])
def test_cells_as_the_paper_prints_them(mean, std, metric, text):
    other = {"dsc": "hd95_mm", "hd95_mm": "dsc"}[metric]
    summary = pd.DataFrame({f"{metric}_mean": [mean], f"{metric}_std": [std], f"{other}_mean": [0.5],
                            f"{other}_std": [0.2], "dsc_n": [40], "policy": ["legacy"]}, index=["RV"])
    table = format_table(summary)
    assert table.loc["RV", {"dsc": "DSC", "hd95_mm": "HD95 (mm)"}[metric]] == text
    assert table.columns.tolist() == ["DSC", "HD95 (mm)", "n"] and table.columns.name == "policy: legacy"
