"""Simulated scribbles: right wherever they say something, something for each class, the same whoever asks and when."""

import time

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import binary_dilation, distance_transform_edt, generate_binary_structure, label
from skimage.morphology import convex_hull_image, disk, skeletonize

from attenscribble.data.scans import acdc
from attenscribble.data.scribbles import annotated_share
from attenscribble.data.simulation import (
    PROCEDURES,
    LabelSlice,
    _arc,
    _rows_and_columns,
    by_border,
    by_paper,
    by_walk,
    dilated_hull,
    guess_dsc,
    shorten,
    simulate,
    skeleton,
    thicken,
)

IGNORE = 9
HANDS = sorted(PROCEDURES)
RANDOM = ["border", "hand", "walk"]
CORNERS = np.ones((3, 3))


def checked(ids, how, classes=4, ignore=IGNORE, **options):
    "A scribble: right everywhere, and something for each class of each slice."
    scribble = simulate(ids, how, classes=classes, ignore=ignore, **options)
    assert scribble.dtype == np.uint8 and scribble.shape == ids.shape
    marked = scribble != ignore
    np.testing.assert_array_equal(scribble[marked], ids[marked])
    for drawn, truth in zip(*(a.reshape(-1, *a.shape[-2:]) if a.size else [] for a in (scribble, ids)), strict=True):
        assert set(np.unique(drawn)) - {ignore} == set(np.unique(truth)) - {ignore}, how
    return scribble


def abdomen(side=96):
    "Three organs in five slices that differ: empty, one organ, all, two, empty."
    y, x = np.mgrid[:side, :side] / side - 0.5
    organs = [np.hypot(y / 1.2, x + 0.2) < 0.17, np.hypot(y - 0.25, x - 0.1) < 0.06, np.hypot(y, x - 0.3) < 0.08]
    stack = np.zeros((5, side, side), np.uint8)
    for z, present in enumerate([(), (1,), (1, 2, 3), (2, 3), ()]):
        for class_id in present:
            stack[z][organs[class_id - 1]] = class_id
    return stack


def label_slice(ids, seed=0):
    "A slice of a volume that holds nothing else."
    return LabelSlice(ids, 4, IGNORE, (ids != 0) & (ids != IGNORE), np.random.default_rng(seed))


def topology(mask):
    "Parts of a mask (corners connect) and of what is around it (corners do not)."
    return label(mask, CORNERS)[1], label(np.pad(~mask, 1, constant_values=True))[1]


masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.booleans())
labels = st.integers(2, 3).flatmap(lambda dims: arrays(
    np.uint8, array_shapes(min_dims=dims, max_dims=dims, max_side=14 if dims == 2 else 7),
    elements=st.sampled_from([0, 0, 1, 1, 2, 3, IGNORE])))
SETTINGS = [("paper", {}), ("paper", {"bg_scribble": "clipped"}), ("paper", {"bg_scribble": "outline", "margin_px": 0}),
            ("paper", {"hull": "volume", "dilation": "square"}), ("skeleton", {}),
            ("walk", {}), ("walk", {"stretch": 0, "turn": 3.0}), ("border", {}),
            ("border", {"gap_px": (0.1, 9), "arc": (1, 1)}), ("hand", {}),
            ("hand", {"drawn_share": (0.1, 1), "wobble": 2.0})]


@settings(max_examples=300, deadline=None)
@given(labels, st.sampled_from(SETTINGS), st.integers(0, 99), st.integers(1, 5), st.floats(0.01, 1))
def test_no_label_makes_it_wrong_or_silent(ids, setting, seed, thickness, length):
    how, options = setting
    checked(ids, how, seed=seed, thickness_px=thickness, length=length, **options)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 50), (64, 40)])
@pytest.mark.parametrize("class_id", [0, 1])
@pytest.mark.parametrize("how", HANDS)
def test_one_class_fills_the_slice(how, class_id, shape):
    checked(np.full(shape, class_id), how)


@pytest.mark.parametrize("how", HANDS)
def test_single_pixels_keep_their_pixel(how):
    ids = np.zeros((32, 40), int)
    places = {1: (0, 0), 2: (31, 15), 3: (16, 16)}  # corner, border, middle
    for class_id, place in places.items():
        ids[place] = class_id
    scribble = checked(ids, how)
    assert all(scribble[place] == class_id for class_id, place in places.items())


@pytest.mark.parametrize("how", HANDS)
def test_nothing_known_nothing_drawn(how):
    assert (checked(np.full((5, 6), IGNORE), how) == IGNORE).all()
    assert checked(np.zeros((0, 5), int), how).size == checked(np.zeros((0, 4, 5), int), how).size == 0


@pytest.mark.parametrize("how", HANDS)
def test_touching_organs_and_holes(how):
    y, x = np.mgrid[:60, :50] - np.array([30, 25])[:, None, None]
    ring, inner = np.hypot(y, x) < 20, np.hypot(y, x) < 10
    touching = np.select([inner, ring & (x < 0), ring], [3, 1, 2], 0)  # no background between any two
    hollow = np.select([inner, ring], [0, 1], 0)  # background outside and in the hole
    for ids in (touching, hollow, hollow[10:50, 5:45]):
        checked(ids, how, thickness_px=3)


@pytest.mark.parametrize("how", HANDS)
def test_dtype_layout_and_ignore_do_not_matter(how):
    ids = abdomen()
    expected = simulate(ids, how, classes=4, ignore=IGNORE)
    for same in (np.asfortranarray(ids), ids.astype(np.int64), np.repeat(ids, 2, axis=2)[..., ::2]):
        np.testing.assert_array_equal(simulate(same, how, classes=4, ignore=IGNORE), expected)
    np.testing.assert_array_equal(simulate(ids, how, classes=4, ignore=255) == 255, expected == IGNORE)
    two = (ids > 0).astype(bool)
    checked(two, how, classes=2)


# ---- who asks, and when


@pytest.mark.parametrize("how", HANDS)
def test_a_slice_is_the_same_alone_and_in_any_order(how):
    ids, options = abdomen(), {"classes": 4, "ignore": IGNORE, "seed": 5, "case": "patient007", "length": 0.5}
    volume = simulate(ids, how, **options)
    np.testing.assert_array_equal(simulate(ids, how, **options), volume)
    for z in (3, 1, 4, 2):
        np.testing.assert_array_equal(simulate(ids[z], how, z=z, **options), volume[z])
    np.testing.assert_array_equal(simulate(ids[2:], how, z=2, **options), volume[2:])


@pytest.mark.parametrize("how", RANDOM)
def test_seed_case_and_slice_number_each_change_the_strokes(how):
    ids = abdomen()[2]
    drawn = [simulate(ids, how, classes=4, ignore=IGNORE, seed=seed, case=case, z=z)
             for seed, case, z in ((0, "", 0), (1, "", 0), (0, "a", 0), (0, "b", 0), (0, "", 1))]
    assert len({one.tobytes() for one in drawn}) == 5


@pytest.mark.parametrize("how", ["paper", "skeleton"])
def test_without_chance_the_seed_changes_nothing(how):
    one, other = (simulate(abdomen(), how, classes=4, ignore=IGNORE, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("how", HANDS)
def test_the_pen_changes_how_much_not_where(how):
    drawn = {(pen, length): checked(abdomen(), how, thickness_px=pen, length=length) != IGNORE
             for pen in (1, 3, 5) for length in (0.2, 0.6, 1)}
    for pen, length in drawn:
        for wider, longer in drawn:
            if wider >= pen and longer >= length:
                assert not (drawn[pen, length] & ~drawn[wider, longer]).any()
    assert drawn[1, 0.2].sum() < drawn[1, 0.6].sum() < drawn[1, 1].sum() < drawn[3, 1].sum()


# ---- the parts


@settings(max_examples=200, deadline=None)
@given(masks)
def test_a_skeleton_keeps_the_topology(mask):
    line = skeleton(mask)
    np.testing.assert_array_equal(line, skeletonize(mask))  # cropping changes nothing, at the image's border neither
    assert topology(line) == topology(mask) and not (line & ~mask).any()


@settings(max_examples=100, deadline=None)
@given(masks, st.integers(0, 4))
def test_the_dilated_hull_is_what_its_name_says(mask, margin):
    if not mask.any():
        assert not dilated_hull(mask, margin).any()
        return
    hull = convex_hull_image(mask)
    np.testing.assert_array_equal(dilated_hull(mask, margin), binary_dilation(hull, disk(margin)))
    square = binary_dilation(hull, CORNERS, iterations=margin) if margin else hull
    np.testing.assert_array_equal(dilated_hull(mask, margin, "square"), square)


@settings(max_examples=100, deadline=None)
@given(masks, st.floats(0.01, 1), st.integers(0, 9))
def test_a_shortened_line_keeps_a_connected_share_of_each_part(mask, length, seed):
    line = skeleton(mask)
    short, (numbers, count) = shorten(line, length, np.random.default_rng(seed)), label(line, CORNERS)
    assert not (short & ~line).any()
    for part in range(1, count + 1):
        kept = short & (numbers == part)
        assert kept.sum() == np.ceil(length * (numbers == part).sum() - 1e-9) and label(kept, CORNERS)[1] == 1


def test_the_pen_is_round():
    dot = np.zeros((9, 9), bool)
    dot[4, 4] = True
    assert [thicken(dot, pen).sum() for pen in range(1, 8)] == [1, 4, 9, 12, 21, 32, 37]
    for pen in (1, 3, 5, 7):
        tip = thicken(dot, pen)
        assert np.ptp(np.nonzero(tip)[0]) + 1 == pen and (tip == tip[::-1]).all() and (tip == tip.T).all()


@pytest.mark.parametrize("shape", [(30, 40), (256, 216), (3, 3)])
def test_rows_and_columns(shape):
    line = _rows_and_columns(shape)
    assert line.sum() == 2 * sum(shape) - 4
    assert np.flatnonzero(line.all(1)).tolist() == [shape[0] // 3, 2 * shape[0] // 3]
    assert np.flatnonzero(line.all(0)).tolist() == [shape[1] // 3, 2 * shape[1] // 3]
    for how in ("paper", "skeleton"):
        np.testing.assert_array_equal(checked(np.zeros(shape, int), how) == 0, line)


# ---- the paper's procedure


@pytest.mark.parametrize(("dilation", "grown"), [
    ("disk", lambda hull: binary_dilation(hull, disk(5))),
    ("square", lambda hull: binary_dilation(hull, generate_binary_structure(2, 2), iterations=5)),
])
def test_paper_step_by_step(dilation, grown):
    for ids in abdomen()[1:4]:
        expected = np.full(ids.shape, IGNORE)
        for class_id in range(1, 4):
            expected[skeletonize(ids == class_id)] = class_id
        expected[skeletonize(grown(convex_hull_image(ids > 0)) & (ids == 0))] = 0
        np.testing.assert_array_equal(checked(ids, "paper", dilation=dilation), expected)


def test_readings_of_the_paper():
    stack = abdomen()
    drawn = {bg: checked(stack, "paper", bg_scribble=bg)[3] for bg in ("region", "clipped", "outline")}
    background = {bg: one == 0 for bg, one in drawn.items()}
    inside = dilated_hull(stack[3] > 0)
    assert not any((line & ~inside).any() for line in background.values())
    np.testing.assert_array_equal(background["clipped"], skeletonize(stack[3] == 0) & inside)
    rim = background["outline"] & ~background["region"]
    assert rim.any() and not (background["region"] & ~background["outline"]).any()
    outside = distance_transform_edt(inside)
    assert outside[rim].max() < 2  # the outermost pixels of B
    for one in drawn.values():
        organs = (one != 0) & (one != IGNORE)
        np.testing.assert_array_equal(organs * one, organs * drawn["region"])


def test_the_hull_of_the_volume_reaches_further():
    stack = abdomen()
    near, far = (checked(stack, "paper", hull=hull) == 0 for hull in ("slice", "volume"))
    assert not dilated_hull(stack[1] > 0)[far[1]].all() and dilated_hull(stack[1] > 0)[near[1]].all()
    assert dilated_hull((stack > 0).any(0))[far[1]].all()
    np.testing.assert_array_equal(near[2], far[2])  # this slice has all organs
    np.testing.assert_array_equal(near[0], far[0])  # and this one none: rows and columns all the same


def test_margin_moves_the_background_outwards():
    distance = distance_transform_edt(~convex_hull_image(abdomen()[1] > 0))
    far = [distance[checked(abdomen()[1], "paper", margin_px=margin) == 0].mean() for margin in (2, 5, 15)]
    assert far[0] < far[1] < far[2]


def test_background_out_of_reach_of_the_hull_is_marked_all_the_same():
    ids = np.full((30, 60), IGNORE)
    ids[:, :10], ids[10:20, 40:50] = 0, 1  # between them nobody knows
    assert not (by_paper(label_slice(ids))[0] & (ids == 0)).any()
    checked(ids, "paper")


# ---- the others


def test_a_walk_stays_in_one_piece_and_grows_with_stretch():
    ids = np.zeros((80, 80), np.uint8)
    ids[10:40, 10:40], ids[50:56, 50:56], ids[70, 70] = 1, 1, 1  # large, small, a speck
    sizes = []
    for stretch in (0.5, 2, 8):
        line = by_walk(label_slice(ids), stretch=stretch)[1]
        assert line[10:40, 10:40].any() and line[50:56, 50:56].any() and not line[70, 70]
        assert label(line, CORNERS)[1] == 2
        sizes.append(line.sum())
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_straight_walk_is_straighter():
    ids = np.ones((100, 100), np.uint8)
    def spread(turn):
        walks = [by_walk(label_slice(ids, seed), stretch=0.6, turn=turn)[1] for seed in range(20)]
        return np.mean([np.hypot(*np.ptp(np.argwhere(line), axis=0)) for line in walks])
    assert spread(0.0) > 1.3 * spread(1.0)


def test_border_strokes_run_along_the_border_and_through_the_middle():
    ids = np.where(np.hypot(*(np.mgrid[:90, :90] - 45)) < 35, 1, 0)
    depth = distance_transform_edt(ids)
    drawn = [by_border(label_slice(ids, seed))[1] for seed in range(30)]
    assert np.mean([depth[line].max() for line in drawn]) > 15
    arcs = [_arc(ids == 1, np.random.default_rng(seed), (2, 3), (0.1, 0.1)) for seed in range(30)]
    at = np.concatenate([depth[line] for line in arcs])
    assert 1 <= at.min() and at.max() <= 5 and 2 < np.median(at) < 4.2
    length = 2 * np.pi * 32 * 0.1 * 4 / np.pi  # pixels that share edges
    assert 0.7 < np.mean([line.sum() for line in arcs]) / length < 1.3
    assert all(label(line, CORNERS)[1] == 1 for line in arcs)


def test_a_whole_contour_is_a_loop():
    ids = np.zeros((40, 40), np.uint8)
    ids[5:35, 10:30] = 1  # fills its bounding box
    for seed in range(10):
        line = by_border(label_slice(ids, seed), gap_px=(2, 2), arc=(1, 1))[1]
        assert topology(line)[1] > 1 and line[6:9].any() and line[:, 11:14].any()


def test_the_frame_of_the_image_is_no_border():
    half = np.zeros((50, 80), bool)
    half[:, :40] = True
    for seed in range(20):
        columns = np.nonzero(_arc(half, np.random.default_rng(seed), (1, 4), (0.5, 0.5)))[1]
        assert 34 <= columns.min() and columns.max() <= 39
    assert not _arc(np.ones((9, 9), bool), np.random.default_rng(0), (1, 4), (1, 1)).any()
    assert not _arc(half[:, 39:41], np.random.default_rng(0), (1, 4), (1, 1)).any()  # one pixel wide: too thin


def test_border_strokes_choose_one_part_by_its_size():
    ids = np.zeros((40, 80), np.uint8)
    ids[5:35, 5:35], ids[15:25, 60:70] = 1, 1  # 900 and 100 pixels
    drawn = [by_border(label_slice(ids, seed))[1] for seed in range(60)]
    large, small = (np.mean([line[:, part].any() for line in drawn]) for part in (slice(0, 40), slice(40, 80)))
    assert large + small == 1 and 0.75 < large < 0.99


def test_the_hand_listens():
    drawn = {(share, wobble): checked(abdomen(), "hand", drawn_share=share, wobble=wobble)
             for share in ((0.1, 0.1), (1, 1)) for wobble in (0.0, 0.5)}
    assert (drawn[(0.1, 0.1), 0.0] != IGNORE).sum() < 0.7 * (drawn[(1, 1), 0.0] != IGNORE).sum()
    assert (drawn[(1, 1), 0.0] != drawn[(1, 1), 0.5]).any()


def test_a_careless_procedure_does_no_harm(monkeypatch):
    def everywhere(one):
        return {0: np.ones(one.label.shape, bool), 1: one.label == 2}  # too much, in the wrong place, nothing

    monkeypatch.setitem(PROCEDURES, "everywhere", everywhere)
    ids = abdomen()
    drawn = checked(ids, "everywhere", length=0.5)
    np.testing.assert_array_equal(checked(ids, "everywhere") == 0, ids == 0)
    for class_id in (1, 2, 3):
        np.testing.assert_array_equal(checked(ids[2], "everywhere") == class_id, skeleton(ids[2] == class_id))
    assert (drawn == 0).sum() == sum(np.ceil((one == 0).sum() / 2) for one in ids)


# ---- what the strokes say


def test_guess_by_hand():
    row = np.array([[[1, IGNORE, IGNORE, 0]]])
    assert guess_dsc(row, np.array([[[1, 1, 1, 0]]]), IGNORE) == 2 * 2 / 5
    assert guess_dsc(row, np.array([[[1, 1, 0, 0]]]), IGNORE) == 1
    assert guess_dsc(row, np.array([[[2, 2, 1, 0]]]), IGNORE) == 0  # 2 is never guessed, 1 in a wrong place
    assert np.isnan(guess_dsc(row, np.zeros((1, 1, 4), int), IGNORE))
    two = np.concatenate([row, np.full_like(row, IGNORE)])  # the second slice is not annotated: background
    assert guess_dsc(two, np.array([[[1, 1, 0, 0]], [[1, 1, 0, 0]]]), IGNORE) == 2 * 2 / (2 + 4)


def test_guess_of_the_label_itself_is_perfect():
    assert guess_dsc(abdomen(), abdomen(), IGNORE) == 1


# ---- faults


@pytest.mark.parametrize(("arguments", "message"), [
    ({"label": np.zeros((2, 2))}, r"label: found float64 \(2, 2\), expected an integer array \[H,W\] or \[Z,Y,X\]"),
    ({"label": np.zeros(4, int)}, r"label: found int64 \(4,\)"),
    ({"label": [[0, 1]]}, r"label: found list"),
    ({"label": np.full((2, 2), 7)}, r"label: found the values \[7\], expected 0 to 3, or 9"),
    ({"ignore": 3}, r"ignore: found 3, expected 4 \(the number of classes\) to 255"),
    ({"ignore": 256}, r"ignore: found 256"),
    ({"how": "papers"}, r"how: found 'papers', expected one of paper, .*; did you mean 'paper'\?"),
    ({"margin": 3}, r"option of 'paper': found 'margin', expected one of .*did you mean 'margin_px'"),
    ({"how": "walk", "margin_px": 3}, r"option of 'walk': found 'margin_px', expected one of stretch, turn"),
    ({"seed": -1}, r"seed: found -1, expected a whole number, at least 0"),
    ({"seed": 1.5}, r"seed: found 1.5, expected a whole number"),
    ({"z": -1}, r"z: found -1, expected a whole number"),
    ({"thickness_px": 0}, r"thickness_px: found 0, expected a whole number, at least 1"),
    ({"thickness_px": 1.5}, r"thickness_px: found 1.5"),
    ({"length": 0}, r"length: found 0, expected a share in \(0, 1\]"),
    ({"length": 1.1}, r"length: found 1.1"),
    ({"length": "long"}, r"length: found 'long'"),
    ({"margin_px": -1}, r"margin_px: found -1, expected a number, at least 0"),
    ({"margin_px": float("nan")}, r"margin_px: found nan"),
    ({"bg_scribble": "rim"}, r"bg_scribble: found 'rim', expected one of region, clipped, outline"),
    ({"hull": "case"}, r"hull: found 'case', expected one of slice, volume"),
    ({"dilation": "cross"}, r"dilation: found 'cross', expected one of disk, square"),
    ({"how": "skeleton", "thickness": 3}, r"option of 'skeleton': found 'thickness', .*did you mean 'thickness_px'"),
    ({"how": "walk", "stretch": -2}, r"stretch: found -2"),
    ({"how": "walk", "turn": True}, r"turn: found True"),
    ({"how": "border", "gap_px": (0, 4)}, r"gap_px: found \(0, 4\), expected 0 < low ≤ high"),
    ({"how": "border", "gap_px": 3}, r"gap_px: found 3"),
    ({"how": "border", "arc": (0.5, 1.5)}, r"arc: found \(0.5, 1.5\), expected 0 < low ≤ high ≤ 1"),
    ({"how": "hand", "drawn_share": (0.9, 0.2)}, r"drawn_share: found \(0.9, 0.2\)"),
    ({"how": "hand", "wobble": -0.1}, r"wobble: found -0.1"),
])
def test_wrong_arguments_are_named(arguments, message):
    given_all = {"label": np.zeros((4, 4), int), "classes": 4, "ignore": IGNORE} | arguments
    with pytest.raises(ValueError, match=message):
        simulate(**given_all)


# ---- real data


def test_chaos_gets_scribbles_by_all_hands(data_root):
    files = sorted((data_root / "chaos_t2spir").glob("label_*.nii.gz"))
    if not files:
        pytest.skip("needs CHAOS T2-SPIR: no label_NN.nii.gz")
    ids = np.asanyarray(nib.load(files[0]).dataobj).T.astype(np.uint8)
    assert set(np.unique(ids)) == {0, 1, 2, 3, 4}
    for how in HANDS:
        began = time.process_time()
        share = annotated_share(checked(ids, how, classes=5, ignore=5), 5, 5).sum()
        assert 0.006 < share < 0.025, how
        assert how != "paper" or time.process_time() - began < 2


def test_acdc_gets_scribbles_by_all_hands(data_root):
    case = acdc(data_root / "acdc").read("patient008")[0]
    score = {how: guess_dsc(checked(case.label, how, ignore=4, case=case.name), case.label, 4) for how in HANDS}
    score["expert"] = guess_dsc(case.scribble, case.label, 4)
    assert min(score["expert"], score["paper"], score["hand"]) > 0.45 > max(score["walk"], score["border"])
