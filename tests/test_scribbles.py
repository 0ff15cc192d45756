"""The simulated annotator: never wrong, never silent, human-like, whatever the label looks like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import binary_erosion, distance_transform_edt, label
from skimage.morphology import convex_hull_image, skeletonize

from attenscribble.data.scans import acdc
from attenscribble.data.scribbles import (
    _around_organs,
    _core,
    annotated_share,
    centre_line,
    depth_px,
    draw_path,
    largest_parts,
    simulate_scribble,
    stroke,
    walk,
)

IGNORE = 9
CROSS = ((0, 1, 0), (1, 1, 1), (0, 1, 0))


def scribble_of(ids, seed=0, classes=4, ignore=IGNORE, **options):
    "A scribble, checked: right everywhere, and something for each class that is there."
    scribble = simulate_scribble(ids, np.random.default_rng(seed), classes=classes, ignore=ignore, **options)
    assert scribble.dtype == np.uint8 and scribble.shape == ids.shape
    marked = scribble != ignore
    np.testing.assert_array_equal(scribble[marked], ids[marked])
    assert set(np.unique(scribble[marked])) == set(np.unique(ids)) - {ignore}
    return scribble


def heart(side=96):
    "A toy heart."
    y, x = np.mgrid[:side, :side] / side - 0.5
    left, right = np.hypot(y, x - 0.07), np.hypot(y / 1.3, x + 0.13)
    return np.select([left < 0.13, left < 0.2, right < 0.16], [3, 2, 1], 0)


@settings(max_examples=100, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=14),
              elements=st.sampled_from([0, 1, 2, 3, IGNORE])), st.integers(0, 99))
def test_any_label_is_annotated_rightly_and_completely(ids, seed):
    scribble_of(ids, seed)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 50)])
@pytest.mark.parametrize("class_id", [0, 1])
def test_one_class_in_any_shape(shape, class_id):
    scribble_of(np.full(shape, class_id))


def test_single_pixels_keep_their_pixel():
    ids = np.zeros((32, 32), int)
    places = {1: (0, 0), 2: (31, 15), 3: (16, 16)}  # corner, border, middle
    for class_id, place in places.items():
        ids[place] = class_id
    scribble = scribble_of(ids)
    assert all(scribble[place] == class_id for class_id, place in places.items())


def test_an_unknown_or_empty_label_gets_no_stroke():
    assert (scribble_of(np.full((5, 5), IGNORE)) == IGNORE).all()
    assert scribble_of(np.zeros((0, 5), int)).size == 0


def test_layout_dtype_and_ignore_value_do_not_matter():
    ids = heart()
    expected = scribble_of(ids, seed=4)
    for same in (np.asfortranarray(ids), ids.astype(np.uint16), np.repeat(ids, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(scribble_of(same, seed=4), expected)
    np.testing.assert_array_equal(scribble_of(ids, seed=4, ignore=255) == 255, expected == IGNORE)


def test_the_generator_decides():
    assert (scribble_of(heart(), seed=1) == scribble_of(heart(), seed=1)).all()
    assert (scribble_of(heart(), seed=1) != scribble_of(heart(), seed=2)).any()


def test_holes_are_not_crossed():
    ids = heart()
    ring = ids == 2
    drawn = scribble_of(ids, wobble=0.5) == 2
    assert drawn.any() and not (drawn & ~ring).any()


def test_further_parts_get_a_stroke_when_they_can_be_seen():
    ids = np.zeros((60, 60), int)
    ids[5:25, 5:25], ids[40:45, 40:45], ids[55, 5] = 1, 1, 1  # 400, 25 and 1 pixels
    drawn = scribble_of(ids) == 1
    assert drawn[5:25, 5:25].any() and drawn[40:45, 40:45].any() and not drawn[55, 5]


def test_the_background_stroke_runs_around_the_organs():
    ids = heart(128)
    hull = convex_hull_image(ids > 0)
    for seed in range(5):
        rows, columns = np.nonzero(scribble_of(ids, seed, drawn_share=(1, 1)) == 0)
        assert not hull[rows, columns].any()
        assert distance_transform_edt(~hull)[rows, columns].max() < 2 * 0.1 * 128
        angles = np.arctan2(rows - 64, columns - 60)
        assert np.diff(np.sort(angles)).max() < 0.6  # radian: no wide gap in the turn


def test_organs_that_leave_no_room_around_them():
    ids = np.ones((20, 20), int)
    ids[8:12, 8:12] = 0  # the only background lies inside the hull
    scribble_of(ids)
    np.testing.assert_array_equal(_around_organs(ids == 1, ids == 0, np.random.default_rng(0)), ids == 0)


@pytest.mark.parametrize("shape", [(256, 216), (96, 96), (40, 64)])
def test_an_empty_slice_gets_a_zigzag_not_a_skeleton(shape):
    for seed in range(5):
        drawn = scribble_of(np.zeros(shape, int), seed) == 0
        rows, columns = np.nonzero(drawn)
        assert np.ptp(rows) > 0.3 * shape[0] and np.ptp(columns) > 0.1 * shape[1]
        assert drawn.sum() > 3 * skeletonize(np.ones(shape, bool)).sum() and label(drawn, CROSS)[1] == 1


def test_depth_agrees_with_its_definition():
    region = np.random.default_rng(0).random((9, 11)) < 0.8
    padded = np.pad(region, 1)
    outside = np.argwhere(~padded)
    expected = np.zeros(padded.shape)
    for p in np.argwhere(padded):
        expected[tuple(p)] = np.sqrt(((outside - p) ** 2).sum(1).min())
    np.testing.assert_allclose(depth_px(region), expected[1:-1, 1:-1])


def test_only_fat_regions_have_a_core():
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) < 18
    assert _core(disc)[20, 20] and not (_core(disc) & ~binary_erosion(disc, iterations=8)).any()
    assert centre_line(disc).sum() > 50 and not centre_line(disc)[20, 20]
    bar = np.zeros((20, 60), bool)
    bar[8:13] = True
    assert not _core(bar).any() and not _core(np.zeros((0, 3), bool)).any()
    np.testing.assert_array_equal(centre_line(bar), skeletonize(bar))


def test_a_walk_is_one_movement():
    line = skeletonize(heart() == 2)
    path = walk(line, np.random.default_rng(0))
    assert np.abs(np.diff(path, axis=0)).max() == 1  # from neighbour to neighbour
    assert len(np.unique(path, axis=0)) == len(path) and line[tuple(path.T)].all()
    assert len(path) > 0.8 * line.sum()
    with pytest.raises(ValueError, match=r"line: found no pixel, expected at least one"):
        walk(np.zeros((3, 3), bool), np.random.default_rng(0))


def test_the_pen_leaves_no_gap_and_stays_thin():
    rng = np.random.default_rng(0)
    for _ in range(20):
        path = rng.uniform(5, 45, (6, 2))
        drawn = draw_path(path, (50, 50))
        assert label(drawn, CROSS)[1] == 1
        assert drawn[tuple(np.rint(path).astype(int).T)].all()
        begin, end = path[:2]
        length = np.abs(np.rint(end) - np.rint(begin)).sum() + 1  # of a line whose pixels share edges
        assert abs(draw_path(path[:2], (50, 50)).sum() - length) <= 1
    assert draw_path(np.array([[2.0, 3.0]]), (5, 5)).sum() == 1
    assert not draw_path(np.array([[-3.0, -3.0], [-3.0, 9.0]]), (5, 5)).any()


def test_strokes_keep_clear_of_the_border_and_keep_their_share():
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) < 18
    drawn = [stroke(disc, np.random.default_rng(seed), drawn_share=(1, 1)) for seed in range(10)]
    assert np.median(np.concatenate([depth_px(disc)[one] for one in drawn])) > 5
    short = [stroke(disc, np.random.default_rng(seed), drawn_share=(0.2, 0.2)) for seed in range(10)]
    assert 0.1 < np.sum(short) / np.sum(drawn) < 0.35
    with pytest.raises(ValueError, match=r"region: found no pixel"):
        stroke(np.zeros((3, 3), bool), np.random.default_rng(0))


def test_largest_parts():
    region = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0]], bool)
    sizes = [part.sum() for part in largest_parts(region, 1)]
    assert sorted(sizes) == [2, 4] and sum(1 for _ in largest_parts(region)) == 1
    assert not list(largest_parts(np.zeros((3, 3), bool)))


def test_shares_count_pixels():
    volume = np.array([[[0, 1], [4, 1]], [[4, 4], [4, 3]]])
    assert annotated_share(volume, 4, 4).tolist() == [0.125, 0.25, 0, 0.125]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"label": np.zeros((2, 2, 2), int)}, r"label: found int64 \(2, 2, 2\), expected an integer array \[H,W\]"),
    ({"label": np.zeros((2, 2))}, r"label: found float64"),
    ({"label": [[0, 1]]}, r"label: found list"),
    ({"label": np.full((2, 2), 7)}, r"label: found the values \[7\], expected 0 to 3, or 9"),
    ({"label": np.full((2, 2), -1)}, r"label: found the values \[-1\]"),
    ({"ignore": 3}, r"ignore: found 3, expected 4 \(the number of classes\) to 255"),
    ({"ignore": 256}, r"ignore: found 256"),
    ({"drawn_share": (0.5, 1.5)}, r"drawn_share: found \(0.5, 1.5\), expected 0 < low ≤ high ≤ 1"),
    ({"drawn_share": (0.0, 0.5)}, r"drawn_share: found \(0.0, 0.5\)"),
])
def test_wrong_arguments_are_named(arguments, message):
    given_all = {"label": heart(), "rng": np.random.default_rng(0), "classes": 4, "ignore": IGNORE} | arguments
    with pytest.raises(ValueError, match=message):
        simulate_scribble(**given_all)


@pytest.mark.parametrize(("scribble", "message"), [
    (np.zeros((0, 3), int), r"scribble: found shape \(0, 3\), expected at least one pixel"),
    (np.full((2, 2), 5), r"scribble: found the values \[5\], expected 0 to 3, or 4"),
])
def test_wrong_scribbles_have_no_share(scribble, message):
    with pytest.raises(ValueError, match=message):
        annotated_share(scribble, 4, 4)


def test_shares_resemble_the_experts(data_root):
    data, rng, expert, ours = acdc(data_root / "acdc"), np.random.default_rng(0), [], []
    for case in data.cases(data.patients[7::34]):
        expert.append(annotated_share(case.scribble, 4, 4))
        drawn = [simulate_scribble(ids, rng, classes=4, ignore=4) for ids in case.label]
        ours.append(annotated_share(np.stack(drawn), 4, 4))
    ratio = np.mean(ours, axis=0) / np.mean(expert, axis=0)
    assert (ratio > 0.6).all() and (ratio < 1.7).all(), ratio
    assert 0.7 < np.sum(ours) / np.sum(expert) < 1.3
