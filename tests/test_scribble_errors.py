"""The annotator who errs: at rate 0 never, at rate 1 always, and in between the same strokes whatever else is asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from attenscribble.data.scans import acdc
from attenscribble.data.scribble_errors import strokes, with_errors, wrong_share
from attenscribble.data.simulation import PROCEDURES, simulate

IGNORE = 9
HOW = {"classes": 4, "ignore": IGNORE}
KINDS = ["class", "shift"]


@pytest.fixture(scope="module")
def case():
    "A dense label [Z,Y,X] with an empty slice at its end, and a scribble of it with many strokes."
    y, x = np.mgrid[:96, :80] / 96 - np.array([0.5, 0.4])[:, None, None]
    left, right = np.hypot(y, x - 0.07), np.hypot(y, x + 0.13)
    hearts = [np.select([left < 0.13 * s, left < 0.2 * s, right < 0.16], [3, 2, 1], 0) for s in (1, 0.8, 0.5)]
    label = np.stack([*hearts, np.zeros_like(hearts[0])]).astype(np.uint8)
    return simulate(label, "border", **HOW), label


def changed(before, after):
    "For each stroke of a volume, in order: whether anything of it changed."
    return [(a[mark] != class_id).any() for b, a in zip(before, after, strict=True)
            for class_id, mark in strokes(b, IGNORE)]


labels = st.integers(2, 3).flatmap(lambda dims: arrays(
    np.uint8, array_shapes(min_dims=dims, max_dims=dims, max_side=12 if dims == 2 else 6),
    elements=st.sampled_from([0, 0, 1, 1, 2, 3, IGNORE])))


@settings(max_examples=120, deadline=None)
@given(labels, st.sampled_from(sorted(PROCEDURES)), st.sampled_from(KINDS), st.integers(0, 99), st.floats(0, 1))
def test_none_some_all(ids, how, kind, seed, rate):
    right = simulate(ids, how, **HOW)
    stack = right.reshape(-1, *right.shape[-2:])
    none, some, every = (with_errors(right, ids, rate=e, kind=kind, seed=seed, **HOW) for e in (0, rate, 1))
    np.testing.assert_array_equal(none, right)
    assert all(one.dtype == np.uint8 and one.shape == ids.shape for one in (none, some, every))
    assert all(changed(stack, every.reshape(stack.shape)))
    if kind == "class":
        marked = (right != IGNORE) & (ids != IGNORE)
        np.testing.assert_array_equal(every != IGNORE, right != IGNORE)
        assert (every[marked] != ids[marked]).all()
        np.testing.assert_array_equal(some[some != right], every[some != right])  # the errors of a lower rate stay


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_rate_spoils_more_and_both_kinds_spoil_the_same_strokes(case, kind):
    right, label = case
    spoiled = {rate: np.array(changed(right, with_errors(right, label, rate=rate, kind=kind, **HOW)))
               for rate in (0.2, 0.5, 0.8)}
    assert 0 < spoiled[0.2].sum() < spoiled[0.5].sum() < spoiled[0.8].sum() < len(spoiled[0.8])
    assert not (spoiled[0.2] & ~spoiled[0.5]).any() and not (spoiled[0.5] & ~spoiled[0.8]).any()
    other = with_errors(right, label, rate=0.5, kind=KINDS[kind == "class"], **HOW)
    assert changed(right, other) == spoiled[0.5].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_is_a_probability(case, kind):
    right, label = case[0][:1], case[1][:1]
    share = np.mean([changed(right, with_errors(right, label, rate=0.3, kind=kind, seed=seed, **HOW))
                     for seed in range(100)])
    assert abs(share - 0.3) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_alone_or_in_the_stack_and_nothing_is_changed_in_place(case, kind):
    right, label = (a.copy() for a in case)
    options = {"rate": 0.6, "kind": kind, "seed": 4, "case": "patient001", **HOW}
    stack = with_errors(right, label, **options)
    for z in (2, 0, 3):
        np.testing.assert_array_equal(with_errors(right[z], label[z], z=z, **options), stack[z])
    np.testing.assert_array_equal(right, case[0])
    for key, other in (("seed", 5), ("case", "patient002"), ("z", 1)):
        assert (with_errors(right, label, **(options | {key: other})) != stack).any()


def test_swapped_colours_are_those_of_the_slice(case):
    two = np.minimum(case[1], 1)  # only classes 0 and 1
    right, label = np.concatenate([case[0], simulate(two, "border", **HOW)]), np.concatenate([case[1], two])
    for before, after, ids in zip(right, with_errors(right, label, rate=1, **HOW), label, strict=True):
        for class_id, mark in strokes(before, IGNORE):
            (other,) = np.unique(after[mark])
            assert other != class_id and (other in ids or (ids == 0).all())


def test_a_displaced_stroke_keeps_shape_and_class_and_leaves_its_region():
    ids = np.zeros((60, 60), np.uint8)
    ids[20:40, 20:40] = 1
    right = np.full_like(ids, IGNORE)
    right[30, 24:36] = 1
    for seed in range(20):
        moved = with_errors(right, ids, rate=1, kind="shift", seed=seed, **HOW) == 1
        at, step = np.argwhere(moved), np.argwhere(moved)[0] - (30, 24)
        np.testing.assert_array_equal(at, np.argwhere(right == 1) + step)
        assert np.hypot(*step) >= 7.4 and (ids[moved] != 1).any()  # 8, rounded to pixels
        assert np.hypot(*step) < 17  # no further than needed
    far = with_errors(right, ids, rate=1, kind="shift", shift_px=20, **HOW) == 1
    assert abs(np.hypot(*(np.argwhere(far).mean(0) - (30, 29.5))) - 20) < 1


def test_a_stroke_far_from_any_border_slips_further():
    ids = np.where(np.hypot(*(np.mgrid[:160, :160] - 80)) < 25, 1, 0).astype(np.uint8)
    right = np.full_like(ids, IGNORE)
    right[79:82, 79:82] = 1
    moved = np.argwhere(with_errors(right, ids, rate=1, kind="shift", **HOW) == 1)
    assert len(moved) == 9 and abs(np.hypot(*(moved.mean(0) - 80)) - 32) < 1  # 8 and 16 are not enough


def test_half_of_a_displaced_stroke_stays_in_view():
    ids = np.zeros((60, 60), np.uint8)
    ids[:13, 28:33] = 1
    right = np.full_like(ids, IGNORE)
    right[:12, 30] = 1  # at the upper border of the image
    for seed in range(40):
        assert (with_errors(right, ids, rate=1, kind="shift", seed=seed, **HOW) == 1).sum() >= 6


def test_right_strokes_are_not_drawn_over(case):
    right, label = case
    for seed in range(10):
        after = with_errors(right, label, rate=0.5, kind="shift", seed=seed, shift_px=3, **HOW)
        kept = with_errors(right, label, rate=0.5, kind="class", seed=seed, **HOW) == right
        np.testing.assert_array_equal(after[kept & (right != IGNORE)], right[kept & (right != IGNORE)])


def test_where_no_place_is_wrong_the_stroke_moves_all_the_same():
    ids = np.zeros((40, 30), np.uint8)
    right = simulate(ids, "hand", **HOW)
    moved = with_errors(right, ids, rate=1, kind="shift", **HOW)
    assert (moved != right).any() and wrong_share(moved, ids, IGNORE) == 0
    swapped = with_errors(right, ids, rate=1, kind="class", **HOW)
    assert wrong_share(swapped, ids, IGNORE) == 1


def test_where_there_is_no_room_it_changes_class():
    ids = np.full((1, 1), 2, np.uint8)
    assert with_errors(ids, ids, rate=1, kind="shift", **HOW)[0, 0] in (0, 1, 3)


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.sampled_from([0, 1, IGNORE])))
def test_strokes_are_a_partition_into_connected_parts(ids):
    found = strokes(ids, IGNORE)
    count = np.zeros(ids.shape, int)
    for class_id, mark in found:
        assert (ids[mark] == class_id).all() and mark.any()
        count += mark
        reached = np.zeros_like(mark)
        reached[tuple(np.argwhere(mark)[0])] = True
        for _ in range(ids.size):  # flood it, corners included
            padded = np.pad(reached, 1)
            reached = mark & np.any([padded[1 + dy:padded.shape[0] - 1 + dy, 1 + dx:padded.shape[1] - 1 + dx]
                                     for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)
        assert (reached == mark).all()
    np.testing.assert_array_equal(count, ids != IGNORE)
    assert [class_id for class_id, _ in found] == sorted(class_id for class_id, _ in found)


def test_strokes_by_hand():
    marks = np.array([[0, 9, 0], [9, 0, 9], [1, 9, 1]])
    assert [(class_id, mark.sum()) for class_id, mark in strokes(marks, 9)] == [(0, 3), (1, 1), (1, 1)]
    assert strokes(np.full((2, 2), 9), 9) == []


def test_wrong_share_by_hand():
    assert wrong_share(np.array([[0, 1], [4, 1]]), np.array([[0, 0], [1, 1]]), 4) == 1 / 3
    assert wrong_share(np.array([[0, 1], [4, 1]]), np.array([[0, 4], [1, 0]]), 4) == 1 / 2  # where the label knows
    assert wrong_share(np.full((2, 2), 4), np.zeros((2, 2)), 4) == 0


@pytest.mark.parametrize(("arguments", "message"), [
    ({"rate": 1.2}, r"rate: found 1.2, expected a share in \[0, 1\]"),
    ({"rate": -0.1}, r"rate: found -0.1, expected a number, at least 0"),
    ({"rate": "0.1"}, r"rate: found '0.1'"),
    ({"kind": "shifted"}, r"kind: found 'shifted', expected one of class, shift; did you mean 'shift'"),
    ({"shift_px": 0.5}, r"shift_px: found 0.5, expected a number, at least 1"),
    ({"classes": 1}, r"classes: found 1, expected a whole number, at least 2"),
    ({"ignore": 3}, r"ignore: found 3, expected 4"),
    ({"seed": -1}, r"seed: found -1"),
    ({"scribble": np.full((4, 4), 7)}, r"scribble: found the values \[7\], expected 0 to 3, or 9"),
    ({"scribble": np.zeros((4, 4))}, r"scribble: found float64"),
    ({"label": np.full((4, 4), 7)}, r"label: found the values \[7\]"),
    ({"scribble": np.zeros((4, 5), int)}, r"scribble: found shape \(4, 5\), expected the label's \(4, 4\)"),
    ({"scribble": np.zeros((1, 4, 4), int)}, r"scribble: found shape \(1, 4, 4\)"),
])
def test_wrong_arguments_are_named(arguments, message):
    given_all = {"scribble": np.zeros((4, 4), int), "label": np.zeros((4, 4), int), "rate": 0.5, **HOW} | arguments
    with pytest.raises(ValueError, match=message):
        with_errors(**given_all)


def test_experts_of_acdc_are_nearly_never_wrong_and_can_be_spoiled(data_root):
    case = acdc(data_root / "acdc").read("patient001")[0]
    assert wrong_share(case.scribble, case.label, 4) < 1e-3
    spoiled = with_errors(case.scribble, case.label, rate=0.3, classes=4, ignore=4, case=case.name)
    assert 0.1 < wrong_share(spoiled, case.label, 4) < 0.5
