"""Loaders: what they read, what they refuse, and the facts of the real data."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.exposure import cumulative_distribution

from attenscribble.basics.errors import DataError
from attenscribble.data.scans import (
    ACDC_IGNORE,
    Case,
    Dataset,
    acdc,
    already_cut,
    scale_intensities,
    wsl4mis,
)

SHAPE = (3, 8, 6)  # [Z,Y,X]


def volume(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def mask(values, seed=1, shape=SHAPE):
    return np.random.default_rng(seed).choice(values, shape).astype(np.uint8)


def write_nifti(path: Path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.T, np.diag([1.5, 1.25, 10, 1]) if affine is None else affine), path)


def write_case(folder: Path, patient="patient001", frame="frame01", scribble=True, label=True):
    stem = folder / patient / f"{patient}_{frame}"
    write_nifti(stem.with_suffix(".nii.gz"), volume())
    if label:
        write_nifti(Path(f"{stem}_gt.nii.gz"), mask([0, 1, 2, 3]))
    if scribble:
        write_nifti(Path(f"{stem}_scribble.nii.gz"), mask([0, 1, 2, 3, 4]))


def write_h5(path: Path, image, **masks):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"] = image
        for key, value in masks.items():
            file[key] = value


def read_all(dataset):
    return list(dataset.cases())


# ---------------------------------------------------------------- intensities
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_scaling_is_the_released_recipe(dtype):
    drawn = np.random.default_rng(2).gamma(2, 20, (4, 31, 17)) - (0 if np.dtype(dtype).kind == "u" else 30)
    raw = drawn.clip(-120, 120).astype(dtype)
    cdf, centres = cumulative_distribution(raw)
    cut = np.minimum(raw, centres[np.argmax(cdf >= 0.99)])
    expected = ((cut - cut.min()) / (cut.max() - cut.min())).astype(np.float32)
    np.testing.assert_array_equal(scale_intensities(raw), expected)


def test_large_integers_keep_their_differences():
    raw = 2**25 + np.arange(1000, dtype=np.int32)  # float32 would merge neighbours
    expected = (np.minimum(np.arange(1000), 989) / 989).astype(np.float32)
    np.testing.assert_array_equal(scale_intensities(raw), expected)


def test_the_rank_of_the_limit_is_not_off_by_rounding():
    assert 0.07 * 100 > 7
    assert np.count_nonzero(scale_intensities(np.arange(100), 0.07) == 1) == 94  # 6 is the limit: 7 % are at most 6


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=300), st.sampled_from([0.5, 0.9, 0.95, 0.99, 1.0]))
@settings(max_examples=200, deadline=None)
def test_limit_is_exact_and_a_second_pass_changes_nothing(values, clip):
    raw = np.array(values, np.int16)
    share = Fraction(str(clip))
    limit = min(v for v in values if Fraction(int(np.sum(raw <= v)), raw.size) >= share)
    if limit == min(values):
        with pytest.raises(DataError, match="some contrast"):
            scale_intensities(raw, clip)
        return
    once = scale_intensities(raw, clip)
    np.testing.assert_array_equal(once == 1, raw >= limit)
    cut = np.minimum(raw, limit).astype(np.int16)
    np.testing.assert_array_equal(scale_intensities(cut, clip), once)


def test_scaling_survives_the_whole_range_of_int16_and_strides_and_leaves_the_input_alone():
    raw = np.tile(np.array([-32768, 0, 32767], np.int16), 100).reshape(20, 15)
    before = raw.copy()
    scaled = scale_intensities(raw[::2, ::-1])
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    np.testing.assert_array_equal(raw, before)
    np.testing.assert_array_equal(scaled, scale_intensities(np.ascontiguousarray(raw[::2, ::-1])))


def test_a_second_pass_over_floats_cuts_again_unless_only_stretched():
    raw = np.random.default_rng(3).gamma(2, 20, (8, 50, 50))
    once = scale_intensities(raw)
    assert 0 < np.abs(scale_intensities(once) - once).max() < 1 / 256
    assert already_cut(once) and not already_cut(raw)
    np.testing.assert_array_equal(scale_intensities(once, clip=1), once)


@pytest.mark.parametrize("plateau, cut", [(1, False), (49, False), (50, True), (100, True)])
def test_a_plateau_of_half_the_cut_gives_a_cut_volume_away(plateau, cut):
    raw = np.arange(10_000)
    raw[-plateau:] = 20_000
    assert already_cut(raw) is cut


def test_a_single_brightest_voxel_is_no_plateau():
    assert not already_cut(np.arange(20))  # 5 % of the voxels, and yet only one
    assert not already_cut(np.array([0.0, np.nan, np.nan]))


@pytest.mark.parametrize("bad, words", [
    (np.full((2, 2), 7, np.int16), "the value 7 in 100.0% of the voxels"),
    (np.array([0] * 999 + [5], np.int16), "the value 0 in 99.9% of the voxels"),
    (np.array([0.0, np.nan, 1.0]), "NaN or infinity in 1 of 3 voxels"),
    (np.array([0.0, np.inf, -np.inf]), "NaN or infinity in 2 of 3 voxels"),
    (np.zeros((0, 4, 4)), r"shape \(0, 4, 4\)"),
])
def test_scaling_refuses(bad, words):
    with pytest.raises(DataError, match=words):
        scale_intensities(bad)


@pytest.mark.parametrize("clip", [0, -0.1, 1.5, float("nan")])
def test_scaling_refuses_a_wrong_share(clip):
    with pytest.raises(ValueError, match="clip"):
        scale_intensities(volume(), clip)


# ---------------------------------------------------------------- Case and Dataset
IMAGE = np.linspace(0, 1, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


@pytest.mark.parametrize("fields, words", [
    ({"image": IMAGE.astype(np.float64)}, "patient001_frame01: image: found float64"),
    ({"image": IMAGE[0]}, "image: found float32 .8, 6."),
    ({"image": IMAGE[:0]}, "non-empty"),
    ({"image": IMAGE - 0.5}, r"values from -0.5 to 0.5, expected values in \[0, 1\]"),
    ({"image": IMAGE * np.float32(np.nan)}, "values from nan"),
    ({"image": IMAGE.tolist()}, "found list"),
    ({"scribble": mask([0, 4]).astype(np.uint16)}, "scribble: found uint16"),
    ({"label": mask([0, 1], shape=(3, 6, 8))}, r"label: found shape \(3, 6, 8\), expected the image's shape \(3, 8"),
    ({"spacing_mm": (10.0, 0.0, 1.5)}, "spacing_mm"),
    ({"spacing_mm": (10.0, float("nan"), 1.5)}, "spacing_mm"),
    ({"spacing_mm": (float("inf"), 1.5, 1.5)}, "spacing_mm"),
    ({"spacing_mm": (1.5, 1.5)}, "three positive numbers"),
    ({"affine": np.eye(3)}, "4×4"),
])
def test_case_refuses(fields, words):
    with pytest.raises(DataError, match=words):
        Case(**{"patient": "patient001", "frame": "frame01", "image": IMAGE, "spacing_mm": None, **fields})


def test_a_case_may_have_several_channels():
    two = Case("p", "f", np.stack([IMAGE, 1 - IMAGE], 1), None, label=mask([0, 1]))
    assert (two.channels, two.shape) == (2, SHAPE) and two.gray.base is not None
    np.testing.assert_array_equal(two.gray, IMAGE)
    one = Case("p", "f", IMAGE, None)
    assert (one.channels, one.shape) == (1, SHAPE) and one.gray is IMAGE
    with pytest.raises(DataError, match=r"label: found shape \(3, 2, 6\), expected the image's shape \(3, 8, 6\)"):
        Case("p", "f", two.image, None, label=mask([0, 1], shape=(3, 2, 6)))
    with pytest.raises(DataError, match=r"label: found uint8 \(3, 2, 8, 6\), expected .* array \[Z,Y,X\]$"):
        Case("p", "f", two.image, None, label=mask([0, 1], shape=(3, 2, 8, 6)))


def dataset(**fields):
    return Dataset(**{"name": "d", "class_names": ("background", "a"), "ignore": 2, "patients": ("p", "q", "r"),
                      "read": lambda patient: [patient], "folds": {1: ("p",), 2: ("q", "r"), 3: ("p", "q", "r")},
                      "augmentation": "acdc", **fields})


def test_dataset_reads_only_what_is_asked_for():
    asked = []
    lazy = dataset(read=lambda patient: asked.append(patient) or [patient])
    assert asked == []
    cases = lazy.cases(["r", "p"])
    assert next(cases) == "r" and asked == ["r"]
    assert list(cases) == ["p"] and list(lazy.cases()) == ["p", "q", "r"]
    with pytest.raises(DataError, match="patient: found 'x', expected one of p, q, r"):
        list(lazy.cases(["x"]))


def test_split_has_no_patient_on_both_sides():
    for fold in (1, 2):
        train, test = dataset().split(fold)
        assert not set(train) & set(test) and set(train) | set(test) == {"p", "q", "r"}
    with pytest.raises(DataError, match=r"fold: found 7, expected one of \[1, 2, 3\]"):
        dataset().split(7)
    with pytest.raises(DataError, match="fold 3: found 0 patients to train and 3 to test on"):
        dataset().split(3)


@pytest.mark.parametrize("fields, words", [
    ({"ignore": 1}, "ignore: found 1"),
    ({"augmentation": "flip"}, "augmentation: found 'flip'"),
    ({"patients": ("p", "p", "q", "r")}, "each once"),
    ({"patients": (), "folds": {}}, "at least one"),
    ({"folds": {1: ("p", "z")}}, "folds: found z"),
])
def test_dataset_refuses(fields, words):
    with pytest.raises(DataError, match=words):
        dataset(**fields)


# ---------------------------------------------------------------- ACDC folder
def test_acdc_reads_what_sitk_reads(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    write_case(tmp_path)
    (case,) = acdc(tmp_path).cases()
    stem = tmp_path / "patient001" / "patient001_frame01"
    scan = sitk.ReadImage(f"{stem}.nii.gz")
    np.testing.assert_array_equal(case.image, scale_intensities(sitk.GetArrayFromImage(scan)))
    np.testing.assert_array_equal(case.label, sitk.GetArrayFromImage(sitk.ReadImage(f"{stem}_gt.nii.gz")))
    np.testing.assert_array_equal(case.scribble, sitk.GetArrayFromImage(sitk.ReadImage(f"{stem}_scribble.nii.gz")))
    assert case.spacing_mm == pytest.approx(scan.GetSpacing()[::-1]) == (10, 1.25, 1.5)
    np.testing.assert_array_equal(case.affine, np.diag([1.5, 1.25, 10, 1]))
    assert case.source == f"{stem}.nii.gz"


@pytest.mark.parametrize("below", ["", "training", "database/training"])
def test_acdc_takes_the_download_as_it_is(tmp_path, below):
    folder = tmp_path / below
    write_case(folder, frame="frame01")
    write_case(folder, frame="frame12", scribble=False, label=False)
    write_nifti(folder / "patient001" / "patient001_4d.nii.gz", np.zeros((2, *SHAPE), np.int16))
    (folder / "patient001" / "Info.cfg").write_text("ED: 1\nES: 12\n")
    (folder / "patient001" / "._patient001_frame01.nii.gz").write_bytes(b"left by an archiver")
    (folder / "patient_list").mkdir()
    first, second = acdc(tmp_path).cases()
    assert (first.name, second.name) == ("patient001_frame01", "patient001_frame12")
    assert first.label is not None and second.label is None and second.scribble is None


@pytest.mark.parametrize("layout", ["{name}_scribble.nii.gz", "patient001/{name}_scribble.nii.gz",
                                    "acdc_scribbles/{name}_scribble.nii"])
def test_scribbles_in_a_folder_of_their_own(tmp_path, layout):
    write_case(tmp_path / "images", scribble=False)
    write_case(tmp_path / "images", frame="frame12", scribble=False)
    drawn = mask([0, 4], seed=9)
    write_nifti(tmp_path / "drawn" / layout.format(name="patient001_frame12"), drawn)
    first, second = acdc(tmp_path / "images", tmp_path / "drawn").cases()
    assert first.scribble is None
    np.testing.assert_array_equal(second.scribble, drawn)


def test_scribbles_of_other_patients_are_left_alone(tmp_path):
    write_case(tmp_path / "images", scribble=False)
    for patient in ("patient001", "patient002"):
        write_nifti(tmp_path / "drawn" / f"{patient}_frame01_scribble.nii.gz", mask([0, 4]))
    opened = acdc(tmp_path / "images", tmp_path / "drawn")
    assert opened.patients == ("patient001",) and next(opened.cases()).scribble is not None


def test_files_unpacked_into_folders_of_the_same_name_are_found(tmp_path):
    folder = tmp_path / "patient001" / "patient001_frame01.nii"
    write_nifti(folder / "patient001_frame01.nii", volume())
    (case,) = acdc(tmp_path).cases()
    np.testing.assert_array_equal(case.image, scale_intensities(volume()))


def test_given_scribbles_replace_those_beside_the_images(tmp_path):
    write_case(tmp_path / "images")
    drawn = mask([0, 4], seed=9)
    write_nifti(tmp_path / "drawn" / "patient001_frame01_scribble.nii.gz", drawn)
    (case,) = acdc(tmp_path / "images", tmp_path / "drawn").cases()
    np.testing.assert_array_equal(case.scribble, drawn)
    with pytest.raises(DataError, match="nothing: found no scribble for these images"):
        acdc(tmp_path / "images", tmp_path / "nothing")
    write_nifti(tmp_path / "drawn" / "copy" / "patient001_frame01_scribble.nii.gz", drawn)
    with pytest.raises(DataError, match="found a second scribble of patient001_frame01, expected only"):
        acdc(tmp_path / "images", tmp_path / "drawn")


def test_folds_hold_the_patients_that_are_present(tmp_path):
    for number in (1, 20, 21, 100, 101):
        write_case(tmp_path, f"patient{number:03d}", scribble=False, label=False)
    opened = acdc(tmp_path)
    assert opened.folds == {1: ("patient001", "patient020"), 2: ("patient021",), 5: ("patient100",)}
    assert opened.split(5) == (("patient001", "patient020", "patient021"), ("patient100",))
    with pytest.raises(DataError, match=r"fold: found 3, expected one of \[1, 2, 5\]"):
        opened.split(3)


GT = "patient001/patient001_frame01_gt.nii.gz"
SCRIBBLE = "patient001/patient001_frame01_scribble.nii.gz"
SCAN = "patient001/patient001_frame01.nii.gz"


@pytest.mark.parametrize("name, array, affine, words", [
    (GT, mask([0, 1], shape=(3, 6, 8)), None, "shape"),
    (SCRIBBLE, mask([0, 4], shape=(2, 8, 6)), None, "shape"),
    (GT, mask([0, 4]), None, r"the values 4 \(\d+×\), expected only \[0, 1, 2, 3\]"),
    (SCRIBBLE, mask([0, 5]), None, r"only \[0, 1, 2, 3, 4\]"),
    (GT, mask([0, 1]) * np.float32(0.5), None, "the values 0.5"),
    (GT, mask([0, 1]) * np.float32(np.nan), None, "nan"),
    (GT, mask([0, 1]).astype(np.int16) * -1, None, "the values -1"),
    (GT, mask([0, 1]), np.diag([-1.5, 1.25, 10, 1]), "moves voxels by 15.0 mm, expected that of the image"),
    (SCRIBBLE, mask([0, 4]), np.diag([1.25, 1.5, 10, 1]), "moves voxels by 1.8 mm"),
    (SCAN, np.zeros((2, *SHAPE), np.int16), None, r"int16 data of shape \(6, 8, 3, 2\)"),
    (SCAN, np.full(SHAPE, 3, np.int16), None, "the value 3 in 100.0%"),
    (SCAN, np.where(volume() > 800, np.nan, volume()), None, "NaN or infinity"),
])
def test_a_file_that_does_not_fit_is_named(tmp_path, name, array, affine, words):
    write_case(tmp_path)
    write_nifti(tmp_path / name, array, affine)
    with pytest.raises(DataError, match=words) as raised:
        read_all(acdc(tmp_path))
    assert str(raised.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", [SCAN, GT, SCRIBBLE])
@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: b"not a scan",
                                    lambda data: data[:-20] + bytes(20)])
def test_a_broken_file_is_named(tmp_path, name, damage):
    write_case(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"an unreadable file .*expected complete NIfTI") as raised:
        read_all(acdc(tmp_path))
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("kind, damage", [
    ("EOFError", lambda data: data[:-500]),
    ("BadGzipFile", lambda data: data[:40_000] + b"\xff" * 900 + data[40_900:]),  # only the checksum tells
    ("error", lambda data: data[:12] + b"\xff" * 900 + data[912:])])
def test_every_way_to_break_compression_is_named(tmp_path, kind, damage):
    write_nifti(tmp_path / SCAN, np.random.default_rng(0).integers(0, 4000, (8, 96, 96)).astype(np.int16))
    path = tmp_path / SCAN
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"an unreadable file \({kind}: "):
        read_all(acdc(tmp_path))


def test_both_nifti_versions_and_both_byte_orders(tmp_path):
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for order in "<>":
            for suffix in (".nii", ".nii.gz"):
                folder = tmp_path / f"{kind.__name__}{ord(order)}{suffix}" / "patient001"
                folder.mkdir(parents=True)
                header = kind.header_class(endianness=order)
                header.set_data_dtype(np.dtype(np.int16).newbyteorder(order))
                nib.save(kind(volume().T, np.diag([1.5, 1.25, 10, 1]), header), folder / f"patient001_frame01{suffix}")
                (case,) = acdc(folder.parent).cases()
                np.testing.assert_array_equal(case.image, scale_intensities(volume()))
                assert case.spacing_mm == (10, 1.25, 1.5)


def test_a_file_without_voxels_is_named(tmp_path):
    write_nifti(tmp_path / SCAN, np.zeros((4, 4, 0), np.int16))
    with pytest.raises(DataError, match=r"data of shape \(0, 4, 4\), expected one number per voxel in 3D"):
        read_all(acdc(tmp_path))


def test_rounding_in_an_affine_is_no_fault_and_a_mirrored_header_can_be_overruled(tmp_path):
    write_case(tmp_path)
    near = np.diag([1.5, 1.25, 10, 1])
    near[0, 3] = 0.01
    write_nifti(tmp_path / GT, mask([0, 1]), near)
    assert len(read_all(acdc(tmp_path))) == 1
    write_nifti(tmp_path / GT, mask([0, 1]), np.diag([-1.5, 1.25, 10, 1]))
    (case,) = acdc(tmp_path, check_affine=False).cases()
    np.testing.assert_array_equal(case.label, mask([0, 1]))


def test_a_header_that_places_nothing_counts_by_its_spacing(tmp_path):
    write_case(tmp_path)
    scan = nib.Nifti1Image(volume().T, None)  # no coordinate system, only voxel sizes
    scan.header.set_zooms((1.5, 1.25, 10))
    nib.save(scan, tmp_path / SCAN)
    assert not np.allclose(nib.load(tmp_path / SCAN).affine, nib.load(tmp_path / GT).affine, atol=1)
    assert len(read_all(acdc(tmp_path))) == 1
    write_nifti(tmp_path / GT, mask([0, 1]), np.diag([1.5, 1.25, 8, 1]))
    with pytest.raises(DataError, match=r"moves voxels by 4\.0 mm"):
        read_all(acdc(tmp_path))


def test_folders_without_a_case_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: found no such folder"):
        acdc(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found no patientXXX folder"):
        acdc(tmp_path)
    write_case(tmp_path)
    (tmp_path / "patient002").mkdir()
    with pytest.raises(DataError, match=r"patient002: found no frame, expected patient002_frameYY.nii.gz"):
        acdc(tmp_path)
    (tmp_path / "patient002").rmdir()
    (tmp_path / SCAN).unlink()
    with pytest.raises(DataError, match=r"found patient001_frame01_gt.nii.gz, patient001_frame01_scribble.nii.gz, "
                                        r"expected an image patient001_frameYY.nii.gz"):
        acdc(tmp_path)


def test_a_file_in_another_patients_folder_is_refused(tmp_path):
    write_case(tmp_path)
    write_nifti(tmp_path / "patient001" / "patient002_frame01.nii.gz", volume())
    with pytest.raises(DataError, match=r"patient001: found patient002_frame01.nii.gz"):
        acdc(tmp_path)


# ---------------------------------------------------------------- HDF5
def test_slices_are_stacked_by_number(tmp_path):
    stack = np.linspace(0, 1, 12 * 4, dtype=np.float32).reshape(12, 2, 2)
    scribble = mask([0, 1, 4], shape=stack.shape).astype(np.uint16)
    for z in range(12):
        write_h5(tmp_path / "ACDC_training_slices" / f"patient021_frame01_slice_{z}.h5", stack[z], scribble=scribble[z],
                 label=scribble[z] % 4)
    opened = wsl4mis(tmp_path)
    (case,) = opened.cases()
    np.testing.assert_array_equal(case.image, stack)
    np.testing.assert_array_equal(case.scribble, scribble)
    np.testing.assert_array_equal(case.label, scribble % 4)
    assert case.scribble.dtype == case.label.dtype == np.uint8 and case.spacing_mm is None
    assert opened.folds == {2: ("patient021",)} and opened.ignore == ACDC_IGNORE


def test_a_volume_wins_over_its_slices(tmp_path):
    stack = np.linspace(0, 1, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    write_h5(tmp_path / "ACDC_training_volumes" / "patient001_frame01.h5", stack)
    write_h5(tmp_path / "ACDC_training_slices" / "patient001_frame01_slice_7.h5", stack[0])
    (case,) = wsl4mis(tmp_path).cases()
    np.testing.assert_array_equal(case.image, stack)
    assert case.scribble is None and case.label is None and case.source.endswith("patient001_frame01.h5")


def test_missing_and_unequal_slices_are_named(tmp_path):
    write_h5(tmp_path / "patient001_frame12_slice_0.h5", IMAGE[0])  # so slices are counted from 0
    for z in (1, 2, 4):
        write_h5(tmp_path / f"patient001_frame01_slice_{z}.h5", IMAGE[0])
    with pytest.raises(DataError, match="patient001_frame01 without slice 0, 3, expected all slices from 0 to 4"):
        read_all(wsl4mis(tmp_path))
    for z in (0, 3):
        write_h5(tmp_path / f"patient001_frame01_slice_{z}.h5", IMAGE[0].T)
    with pytest.raises(DataError, match="slices of patient001_frame01 that differ"):
        read_all(wsl4mis(tmp_path))


@pytest.mark.parametrize("arrays, words", [
    ({"image": volume()}, r"values from 2.0 to 897.0, expected values in \[0, 1\]"),
    ({"image": IMAGE * np.nan}, "values from nan"),
    ({"image": IMAGE[0]}, "3D arrays of one shape"),
    ({"image": IMAGE, "label": mask([0, 1], shape=(3, 6, 8))}, "one shape"),
    ({"image": IMAGE, "label": mask([0, 4])}, r"label: found the values 4"),
    ({"image": IMAGE, "scribble": mask([0, 255])}, r"scribble: found the values 255"),
])
def test_h5_content_that_does_not_fit_is_named(tmp_path, arrays, words):
    write_h5(tmp_path / "patient001_frame01.h5", **arrays)
    with pytest.raises(DataError, match=words) as raised:
        read_all(wsl4mis(tmp_path))
    assert "patient001_frame01.h5" in str(raised.value)


def test_broken_empty_and_absent_h5_are_named(tmp_path):
    with pytest.raises(DataError, match="found no such folder"):
        wsl4mis(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found no HDF5 file"):
        wsl4mis(tmp_path)
    path = tmp_path / "patient001_frame01.h5"
    write_h5(path, IMAGE)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"patient001_frame01\.h5: found an unreadable file"):
        read_all(wsl4mis(tmp_path))
    with h5py.File(path, "w"):
        pass
    with pytest.raises(DataError, match="found no array, expected 3D arrays of one shape, 'image' among them"):
        read_all(wsl4mis(tmp_path))


def test_h5_spacing_comes_from_a_table_or_from_nifti_headers(tmp_path):
    write_h5(tmp_path / "h5" / "patient001_frame01.h5", IMAGE)
    write_case(tmp_path / "nifti" / "training")
    table = tmp_path / "spacing_mm.json"
    table.write_text(json.dumps({"patient001": [1.5, 1.25, 10.0]}))
    for spacing in (table, tmp_path / "nifti"):
        (case,) = wsl4mis(tmp_path / "h5", spacing).cases()
        assert case.spacing_mm == (10.0, 1.25, 1.5)


@pytest.mark.parametrize("content, words", [
    ("{", "no JSON"), ("{}", "patient001_frame01: found None"), ("[1, 2, 3]", "found None"),
    ('{"patient001": [1.5, 10]}', r"found \[1.5, 10\]"), ('{"patient001": [1.5, 1.5, -10]}', "three positive numbers"),
])
def test_a_wrong_table_of_spacings_is_named(tmp_path, content, words):
    write_h5(tmp_path / "patient001_frame01.h5", IMAGE)
    table = tmp_path / "spacing.json"
    table.write_text(content)
    with pytest.raises(DataError, match=words):
        read_all(wsl4mis(tmp_path, table))


def test_a_missing_table_or_nifti_is_named(tmp_path):
    write_h5(tmp_path / "patient001_frame01.h5", IMAGE)
    with pytest.raises(DataError, match=r"none.json: found an unreadable file"):
        wsl4mis(tmp_path, tmp_path / "none.json")
    with pytest.raises(DataError, match="patient001_frame01: found None, expected"):
        read_all(wsl4mis(tmp_path, tmp_path))


# ---------------------------------------------------------------- the real data
def test_acdc_facts(data_root):
    """All 200 volumes: sizes, label sets, annotated shares, and that what is scaled already is only stretched.

    These files are scaled: 35 of them hold less than 1 % at the maximum, so a plain second pass would move those.
    """
    opened = acdc(data_root / "acdc")
    assert len(opened.patients) == 100 and [len(opened.folds[k]) for k in range(1, 6)] == [20] * 5
    assert opened.split(1)[1] == tuple(f"patient{k:03d}" for k in range(1, 21))
    sets, only_background, missed, shares = Counter(), 0, 0, []
    volumes = moved = 0
    for case in opened.cases():
        volumes += 1
        assert case.image.min() == 0 and case.image.max() == 1 and case.spacing_mm[1] == case.spacing_mm[2]
        stored = np.asanyarray(nib.load(case.source).dataobj).T
        np.testing.assert_array_equal(case.image, stored.astype(np.float32) / np.float32(stored.max()))
        moved += np.count_nonzero(stored == stored.max()) <= stored.size // 100
        assert set(np.flatnonzero(np.bincount(case.label.ravel()))) == {0, 1, 2, 3}
        for label, scribble in zip(case.label, case.scribble, strict=True):
            count = np.bincount(scribble.ravel(), minlength=5)
            present = frozenset(np.flatnonzero(np.bincount(label.ravel())).tolist())
            drawn = frozenset(np.flatnonzero(count[:4]).tolist())
            sets[present] += 1
            only_background += drawn == {0}
            missed += drawn != present
            shares.append(count / scribble.size)
    assert volumes == 200 and sets.total() == 1902 and moved == 35
    assert sets == {frozenset(key): value for key, value in {
        (0, 1, 2, 3): 1543, (0, 2, 3): 265, (0,): 61, (0, 2): 18, (0, 1): 13, (0, 1, 2): 2}.items()}
    assert only_background == 61 and missed == 3
    np.testing.assert_allclose(100 * np.mean(shares, 0), [0.655, 0.131, 0.186, 0.127, 98.90], atol=0.0051)


def test_h5_and_nifti_agree(data_root):
    spacing = data_root / "acdc" / "spacing_mm.json"
    for place in (spacing, data_root / "acdc"):
        h5, nifti = wsl4mis(data_root / "wsl4mis_h5", place), acdc(data_root / "acdc")
        assert h5.patients == ("patient001", "patient002")
        for a, b in zip(h5.cases(), nifti.cases(h5.patients), strict=True):
            assert a.name == b.name and a.spacing_mm == b.spacing_mm
            for field in ("image", "scribble", "label"):
                np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_real_slices_equal_their_volume(data_root, tmp_path):
    for path in (data_root / "wsl4mis_h5").glob("patient001_frame01_slice_*.h5"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (slices,) = wsl4mis(tmp_path).cases()
    stack = next(wsl4mis(data_root / "wsl4mis_h5").cases())
    np.testing.assert_array_equal(slices.image, stack.image[:3])
    np.testing.assert_array_equal(slices.scribble, stack.scribble[:3])
