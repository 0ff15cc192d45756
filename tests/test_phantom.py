"""The phantom: seeded, lazy, anatomically right, and hard in the way real scans are."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from attenscribble.basics.errors import DataError
from attenscribble.data.phantom import (
    _acquire,
    _draw_body,
    _draw_heart,
    _heart_label,
    blob_level,
    paint,
    phantom,
)

RV, MYO, LV = 1, 2, 3


@pytest.fixture(scope="module")
def cases():
    "Both frames of five patients, as they come."
    dataset = phantom()
    return list(dataset.cases(dataset.patients[:5]))


def small(**options):
    "A quick phantom."
    return phantom(**({"patients": 3, "side": 40, "slices": 3} | options))


def arrays(case):
    "What a case holds."
    return case.image, case.label, case.scribble


def test_the_dataset_is_described():
    dataset = phantom(patients=12, seed=3)
    assert (dataset.name, dataset.ignore, dataset.augmentation) == ("phantom", 4, "acdc")
    assert dataset.class_names == ("background", "RV", "Myo", "LV")
    assert dataset.patients[0] == "patient001" and len(dataset.patients) == 12
    assert sum(dataset.folds.values(), ()) == dataset.patients and len(dataset.folds) == 5  # a partition, in blocks
    assert {len(test) for test in dataset.folds.values()} == {2, 3}


def test_few_patients_leave_folds_out():
    assert sorted(len(test) for test in phantom(patients=2).folds.values()) == [1, 1]
    with pytest.raises(DataError, match="fold"):
        phantom(patients=2).split(1 if 1 not in phantom(patients=2).folds else 2)


def test_cases_are_whole(cases):
    assert [case.name for case in cases[:2]] == ["patient001_frame01", "patient001_frame09"]
    for case in cases:
        assert case.image.dtype == np.float32 and case.image.min() == 0 and case.image.max() == 1
        assert case.image.shape[0] == 8 and 80 <= min(case.image.shape[1:]) <= max(case.image.shape[1:]) <= 96
        assert set(np.unique(case.label)) == {0, RV, MYO, LV}
        z, y, x = case.spacing_mm
        assert 8 <= z <= 10 and 1.4 <= y == x <= 1.9
        np.testing.assert_allclose(case.affine, np.diag([x, y, z, 1]))
    assert len({case.image.shape for case in cases}) > 3 and any(c.image.shape[1] != c.image.shape[2] for c in cases)


def test_scribbles_are_right_and_complete(cases):
    for case in cases:
        marked = case.scribble != 4
        np.testing.assert_array_equal(case.scribble[marked], case.label[marked])
        for drawn, ids in zip(case.scribble, case.label, strict=True):
            assert set(np.unique(drawn)) - {4} == set(np.unique(ids))
        assert 0.01 < marked.mean() < 0.05


def test_a_patient_depends_on_seed_and_name_alone():
    dataset = small()
    backwards = {patient: dataset.read(patient) for patient in reversed(dataset.patients)}
    for patient in small(patients=7).patients[:3]:
        for one, other in zip(backwards[patient], small(patients=7).read(patient), strict=True):
            for first, second in zip(arrays(one), arrays(other), strict=True):
                np.testing.assert_array_equal(first, second)
    other = small(seed=1).read("patient001")[0]
    assert other.image.shape != backwards["patient001"][0].image.shape or (
        other.label != backwards["patient001"][0].label).any()


def test_contrast_and_noise_leave_the_anatomy_alone():
    plain = small().read("patient002")[0]
    for options in ({"noise": 0.0}, {"contrast": 0.3}):
        case = small(**options).read("patient002")[0]
        np.testing.assert_array_equal(case.label, plain.label)
        np.testing.assert_array_equal(case.scribble, plain.scribble)
        assert np.abs(case.image - plain.image).mean() > 0.01


def test_contrast_separates_blood_from_muscle():
    def gap(contrast):
        case = small(contrast=contrast, noise=0.0, side=64).read("patient001")[0]
        return np.median(case.image[case.label == LV]) - np.median(case.image[case.label == MYO])

    assert gap(1.0) > 1.5 * gap(0.2) > 0


def test_a_larger_side_shows_more_of_the_same_patient():
    near, far = (phantom(patients=1, side=side, slices=4).read("patient001")[0] for side in (96, 144))
    assert near.spacing_mm == far.spacing_mm and far.image.shape[1] > near.image.shape[1]
    cells = [np.bincount(case.label.ravel(), minlength=4)[1:] for case in (near, far)]
    np.testing.assert_allclose(cells[0], cells[1], rtol=0.03)  # the grids may differ by half a pixel


def test_below_full_view_the_pixels_grow():
    case = phantom(patients=1, side=48, slices=2).read("patient001")[0]
    assert 2.8 <= case.spacing_mm[1] <= 3.8


@pytest.mark.parametrize("options", [{"slices": 1}, {"side": 32}, {"patients": 1}, {"slices": 12}])
def test_odd_sizes_work(options):
    case = small(**options).read("patient001")[1]
    assert len(case.image) == options.get("slices", 3)


def test_whole_hearts_are_in_view(cases):
    for case in cases:
        organs = case.label > 0
        assert not (organs[:, [0, -1]].any() or organs[:, :, [0, -1]].any()), case.name


def test_the_wall_closes_around_the_cavity(cases):
    for case in cases:
        for ids in case.label:
            rim = binary_dilation(ids == LV) & (ids != LV)
            assert (ids[rim] == MYO).all(), case.name


def test_systole_is_smaller_inside_and_thicker(cases):
    for full, contracted in zip(cases[::2], cases[1::2], strict=True):
        assert (contracted.label == LV).sum() < 0.9 * (full.label == LV).sum()
        assert (contracted.label == RV).sum() < (full.label == RV).sum()
        share = [(case.label == MYO).sum() / np.isin(case.label, (MYO, LV)).sum() for case in (full, contracted)]
        assert share[1] > share[0]


def test_hearts_taper_and_end(cases):
    kinds = {tuple(np.unique(ids)) for case in cases for ids in case.label}
    assert {(0,), (0, MYO, LV), (0, RV, MYO, LV)} <= kinds
    for case in cases:
        area = [(ids > 0).sum() for ids in case.label]
        assert area[-1] < 0.5 * max(area)
        rv, lv = (np.flatnonzero((case.label == part).any((1, 2))).max() for part in (RV, LV))
        assert rv <= lv


def test_groups_differ():
    def sizes(group):
        hearts = [_draw_heart(group, np.random.default_rng(seed))[0] for seed in range(20)]
        return np.mean([[h.cavity, h.wall, h.rv_depth] for h in hearts], axis=0)

    normal, dilated, thick, right = map(sizes, ("normal", "dilated", "thick", "right"))
    assert dilated[0] > normal[0] and thick[1] > normal[1] and right[2] > normal[2]


def test_papillary_muscles_are_dark_and_belong_to_the_cavity():
    case = phantom(patients=1, noise=0.0).read("patient001")[0]
    image, ids = case.image[3], case.label[3]
    inside = image[binary_erosion(ids == LV, iterations=2)]
    assert inside.min() < 0.6 * np.median(inside) and np.mean(inside < 0.75 * np.median(inside)) < 0.3


def test_labels_lie_on_what_is_painted(cases):
    for case in cases:
        for image, ids in zip(case.image, case.label, strict=True):
            if (ids == LV).sum() > 60:
                wall, blood = (np.median(image[ids == part]) for part in (MYO, LV))
                heart = np.isin(ids, (MYO, LV))
                found = image[heart] > (wall + blood) / 2
                assert np.mean(found == (ids[heart] == LV)) > 0.8, case.name


def test_the_right_ventricle_lies_left_of_the_left_one(cases):
    for case in cases:
        columns = [np.nonzero(case.label == part)[2].mean() for part in (RV, LV)]
        assert columns[0] < columns[1] - 5


def test_brightness_alone_does_not_find_the_cavity(cases):
    for case in cases:
        cavity = case.label == LV
        scores = [2 * (found & cavity).sum() / (found.sum() + cavity.sum())
                  for found in (case.image > limit for limit in np.linspace(0.1, 0.95, 18))]
        assert max(scores) < 0.7, case.name


def test_blob_level_is_the_distance_to_a_circle():
    y, x = np.mgrid[-5:6.0, -5:6.0]
    np.testing.assert_allclose(blob_level(y, x, (1, -2), (3, 3)), np.hypot(y - 1, x + 2) - 3, atol=1e-12)
    along = blob_level(np.array([0.0, 4.0]), np.array([2.0, 0.0]), (0, 0), (4, 2), angle=np.pi / 2)
    np.testing.assert_allclose(along, 0, atol=1e-12)  # the long half-axis points down


def test_waves_move_the_rim():
    rim = blob_level(np.zeros(2), np.array([1.2, -0.8]), (0, 0), (1, 1), waves=((1, 0.2, 0.0),))
    np.testing.assert_allclose(rim, 0, atol=1e-12)


def test_paint_mixes_by_the_covered_share():
    image = np.full((1, 5), 0.2)
    paint(image, np.array([[-9.0, -1.0, 0.0, 0.5, 9.0]]), 1.0, edge_mm=2.0)
    np.testing.assert_allclose(image, [[1.0, 1.0, 0.6, 0.4, 0.2]])


def test_no_heart_beyond_its_ends():
    heart = _draw_heart("normal", np.random.default_rng(0))[0]
    y, x = np.mgrid[-50:50.0, -70:50.0]
    assert not _heart_label(heart, -0.01, y, x).any() and not _heart_label(heart, 1.13, y, x).any()
    apex = _heart_label(heart, 1.06, y, x)
    assert set(np.unique(apex)) == {0, MYO}  # the wall's tip, below the cavity


def test_the_air_is_rician():
    body, grid = _draw_body(np.random.default_rng(0)), tuple(np.mgrid[:200.0, :200.0])
    air = _acquire(np.zeros((200, 200)), body, grid, np.random.default_rng(1), noise=0.1)
    np.testing.assert_allclose([air.mean(), (air**2).mean()], [0.1 * np.sqrt(np.pi / 2), 2 * 0.01], rtol=0.02)


def test_a_stranger_is_refused():
    with pytest.raises(DataError, match=r"patient: found 'patient099', expected one of patient001 … patient003"):
        small().read("patient099")


@pytest.mark.parametrize(("options", "message"), [
    ({"patients": 0}, r"patients: found 0, expected a whole number, at least 1"),
    ({"patients": 2.0}, r"patients: found 2.0, expected a whole number"),
    ({"seed": -1}, r"seed: found -1, expected a whole number, at least 0"),
    ({"side": 16}, r"side: found 16, expected a whole number, at least 32"),
    ({"slices": 0}, r"slices: found 0"),
    ({"contrast": 0.0}, r"contrast: found 0.0, expected a positive number"),
    ({"contrast": float("nan")}, r"contrast: found nan"),
    ({"noise": -0.1}, r"noise: found -0.1, expected 0 or a positive number"),
])
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        phantom(**options)
