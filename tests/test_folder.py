"""A user's own folder: layouts, values, geometry, number types, faults, folds; several modalities down to the batch."""

import gzip
import json
import struct
from collections import Counter
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # reads NIfTI by its own code
import torch

from attenscribble.basics.errors import DataError
from attenscribble.data.batches import SliceStore, draw_augmentation
from attenscribble.data.check import check
from attenscribble.data.datasets import open_dataset
from attenscribble.data.folder import (
    IGNORE,
    drawn_slices,
    folder,
    group_modalities,
    low_contrast,
    make_folds,
    meaning_of,
    read_scan,
)
from attenscribble.data.grid import PLANES, Grid
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import Case, Dataset, acdc, already_cut, scale_intensities
from attenscribble.entry.commands import main

HEARTS = [case for case in phantom(patients=3, side=48, slices=4).cases() if case.frame == "frame01"]
BODY = np.diag([-1.5, -1.5, 10.0, 1])  # x to the left, y to the back, as scanners store
NAMED = {"labels": {"background": 4, "RV": 1, "Myo": 2, "LV": 3}, "ignore": 0}
VALUES = np.array([4, 1, 2, 3, 0], np.uint8)  # the phantom's 0 … 4 as ITK-SNAP has them


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s, 7], [0, 1, 0, -30], [-s, 0, c, 12], [0, 0, 0, 1]]) @ BODY


def write(path: Path, volume: np.ndarray, affine=BODY, ornt=None, shape=None) -> Path:
    "[Z,Y,X] as a file, its axes exchanged and reversed by an orientation, reshaped at the end."
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = nib.Nifti1Image(np.ascontiguousarray(volume.T), affine)
    scan = scan if ornt is None else scan.as_reoriented(np.array(ornt))
    if shape:
        scan = nib.Nifti1Image(np.asarray(scan.dataobj).reshape(shape), scan.affine)
    scan.header.set_xyzt_units("mm")
    nib.save(scan, path)
    return path


def make(root: Path, *, ignore=0, content=None, labels=0, scale=1000, dtype=np.int16, values=VALUES, **how) -> Path:
    "The three hearts as a user's folder; the first `labels` of them with a dense label."
    for number, heart in enumerate(HEARTS):
        write(root / "images" / f"{heart.patient}.nii.gz", (scale * heart.image).astype(dtype), **how)
        drawn = values[heart.scribble]
        write(root / "scribbles" / f"{heart.patient}.nii.gz", drawn, **how)
        if number < labels:
            write(root / "labels" / f"{heart.patient}.nii.gz", heart.label, **how)
    if content is not None:
        (root / "dataset.json").write_text(json.dumps(content))
    return root


def marks(heart: Case) -> np.ndarray:
    return np.where(heart.scribble == 4, IGNORE, heart.scribble)


def same_hearts(dataset: Dataset, tolerance=2e-3) -> None:
    for case, heart in zip(dataset.cases(), HEARTS, strict=True):
        assert case.name == heart.patient and case.spacing_mm == pytest.approx((10, 1.5, 1.5))
        np.testing.assert_array_equal(case.scribble, marks(heart))
        if case.label is not None:
            np.testing.assert_array_equal(case.label, heart.label)
        low = np.quantile(heart.image, 0.01, method="lower")  # the bright end was cut before, and is not cut again
        np.testing.assert_allclose(case.image, ((heart.image - low) / (1 - low)).clip(0, 1), atol=tolerance)


# ---------------------------------------------------------------- layouts
def test_the_documented_layout(tmp_path):
    dataset = folder(make(tmp_path / "mine", content=NAMED, labels=1))
    same_hearts(dataset)
    assert dataset.class_names == ("background", "RV", "Myo", "LV") and dataset.values == (0, 1, 2, 3)
    assert dataset.name == "mine" and dataset.ignore == IGNORE and dataset.channels == 1
    assert dataset.augmentation == "chaos", "no flips unless asked for"


def test_nnunets_layout_with_its_ignore_label(tmp_path):
    content = {"labels": {"background": 0, "RV": 1, "Myo": 2, "LV": 3, "ignore": 4}, "channel_names": {"0": "MR"},
            "numTraining": 3, "file_ending": ".nii.gz"}
    for heart in HEARTS:
        write(tmp_path / "imagesTr" / f"{heart.patient}_0000.nii.gz", (1000 * heart.image).astype(np.int16))
        write(tmp_path / "labelsTr" / f"{heart.patient}.nii.gz", heart.scribble)
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = folder(tmp_path)
    same_hearts(dataset)
    assert not dataset.scored and dataset.values == (0, 1, 2, 3)


def test_a_flat_folder_and_suffixes(tmp_path):
    for heart in HEARTS:
        write(tmp_path / f"{heart.patient}.nii.gz", (1000 * heart.image).astype(np.int16))
        write(tmp_path / f"{heart.patient}_scribble.nii.gz", VALUES[heart.scribble])
        write(tmp_path / f"{heart.patient}_gt.nii", heart.label)
        write(tmp_path / f"._{heart.patient}.nii.gz", heart.label)  # what macOS leaves
    dataset = folder(tmp_path, background=4)
    same_hearts(dataset)
    assert dataset.scored and sorted(sum(dataset.folds.values(), ())) == sorted(dataset.patients)
    write(tmp_path / "patient009_seg.nii.gz", HEARTS[0].label)
    with pytest.raises(DataError, match=r"patient009_seg.nii.gz: found a mask that may be a scribble or a dense label"):
        folder(tmp_path, background=4)


@pytest.mark.parametrize("name, words", [
    ("scribbles/patient04.nii.gz", "scribbles/patient04.nii.gz: found no image of that name.*did you mean 'patient00"),
    ("labels/nobody.nii.gz", "labels/nobody.nii.gz: found no image of that name, expected one of 3 images"),
    ("images/patient001.nii", "found a second image patient001, expected only .*patient001.nii"),
])
def test_partners_that_are_missing_or_there_twice(tmp_path, name, words):
    write(make(tmp_path, content=NAMED) / name, HEARTS[0].label)
    with pytest.raises(DataError, match=words):
        folder(tmp_path)


def test_what_is_no_folder_of_scans(tmp_path):
    with pytest.raises(DataError, match=r"mistyped: found no such folder, expected images/NAME.nii.gz"):
        folder(tmp_path / "mistyped")
    (tmp_path / "a.nrrd").touch()
    with pytest.raises(DataError, match=r"1 files .nrrd, no NIfTI image"):
        folder(tmp_path)
    write(tmp_path / "images" / "a.nii.gz", HEARTS[0].label)
    with pytest.raises(DataError, match="found no scribble and no label, expected scribbles/NAME"):
        folder(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset.json: found no JSON"):
        folder(tmp_path)


# ---------------------------------------------------------------- modalities
def test_modalities_become_channels(tmp_path):
    for number, heart in enumerate(HEARTS):
        for channel, image in enumerate((heart.image, 1 - heart.image, heart.image**2)):
            ornt = ((2, -1), (0, 1), (1, -1)) if number == channel == 1 else None  # one of them stored another way
            path = tmp_path / "images" / f"{heart.patient}_{channel:04d}.nii.gz"
            write(path, (1000 * image).astype(np.int16), ornt=ornt)
        write(tmp_path / "scribbles" / f"{heart.patient}.nii.gz", VALUES[heart.scribble])
    (tmp_path / "dataset.json").write_text(json.dumps(NAMED))
    dataset = folder(tmp_path, robust=False)
    assert dataset.channels == 3
    for case, heart in zip(dataset.cases(), HEARTS, strict=True):
        assert case.image.shape == (4, 3, *heart.image.shape[1:]) and case.gray.shape == heart.image.shape
        for channel, image in enumerate((heart.image, 1 - heart.image, heart.image**2)):
            stored = (1000 * image).astype(np.int16)
            expected = scale_intensities(stored, 1 if already_cut(stored) else 0.99)
            np.testing.assert_allclose(case.image[:, channel], expected, atol=1e-6)
        np.testing.assert_array_equal(case.scribble, marks(heart))
    (tmp_path / "images" / "patient002_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"patient002: found patient002_0000.nii.gz, patient002_0002.nii.gz, expected "
                                        r"patient002_0000 to patient002_0002"):
        folder(tmp_path)


def test_a_modality_on_another_grid_is_refused(tmp_path):
    make(tmp_path, content=NAMED)
    first = tmp_path / "images" / "patient001.nii.gz"
    other = write(tmp_path / "other.nii.gz", HEARTS[0].image, affine=turned(3))
    with pytest.raises(DataError, match=r"other.nii.gz: found an affine that moves voxels by"):
        read_scan([first, other])
    smaller = write(tmp_path / "smaller.nii.gz", HEARTS[0].image[1:])
    with pytest.raises(DataError, match=r"smaller.nii.gz: found \(z,y,x\) of \(3, .*, expected the image's \(4, "):
        read_scan([first, smaller])


@pytest.mark.parametrize("names, masks, channels, expected", [
    (["a_0000", "a_0001", "b_0000", "b_0001"], (), None, {"a": 2, "b": 2}),
    (["a_0000", "b_0000"], (), None, {"a": 1, "b": 1}),
    (["scan_0001", "scan_0002"], ("scan_0001",), None, {"scan_0001": 1, "scan_0002": 1}),
    (["scan_0000", "scan_0001"], (), 1, {"scan_0000": 1, "scan_0001": 1}),
    (["a_0000", "b_0000"], (), 1, {"a": 1, "b": 1}),
    (["a_0000", "b"], (), None, {"a_0000": 1, "b": 1}),
])
def test_four_digits_count_modalities_only_if_all_names_have_them(names, masks, channels, expected):
    groups = group_modalities({name: Path(name) for name in names}, masks, channels)
    assert {name: len(paths) for name, paths in groups.items()} == expected


def test_modalities_pass_through_store_and_batch(tmp_path):
    rng = np.random.default_rng(0)
    cases = [Case(name, "", rng.random((3, 2, y, x), np.float32), None,
                  scribble=rng.integers(0, 3, (3, y, x), np.uint8)) for name, y, x in (("a", 20, 31), ("b", 17, 16))]
    draws = draw_augmentation(6, "acdc", torch.Generator().manual_seed(3))
    both = SliceStore(cases, classes=2, ignore=2, channels=2)
    batch = both.batch(torch.arange(6), 24, draws)
    for channel in (0, 1):
        alone = SliceStore([Case(c.patient, "", np.ascontiguousarray(c.image[:, channel]), None, scribble=c.scribble)
                            for c in cases], classes=2, ignore=2)
        one = alone.batch(torch.arange(6), 24, draws)
        assert torch.equal(batch.image[:, channel], one.image[:, 0]) and torch.equal(batch.target, one.target)
    assert both.native(4)[0].shape == (2, 17, 16) and both.nbytes == 9 * sum(c.scribble.size for c in cases)
    with pytest.raises(DataError, match="c: image: found 1 channels, expected 2, as the dataset says"):
        SliceStore([cases[0], Case("c", "", cases[1].gray.copy(), None, scribble=cases[1].scribble)], classes=2,
                   ignore=2, channels=2)


# ---------------------------------------------------------------- values
@pytest.mark.parametrize("values, options, drawn", [
    ([4, 1, 2, 3, 0], {"background": 4}, (4, 1, 2, 3)),  # ITK-SNAP
    ([0, 1, 2, 3, 255], {}, (0, 1, 2, 3)),
    ([0, 1, 2, 3, 4], {"ignore": 4}, (0, 1, 2, 3)),  # ACDC
    ([9, 200, 30, 7, 0], {"background": 9}, (9, 7, 30, 200)),
])
def test_what_is_not_drawn(tmp_path, values, options, drawn):
    dataset = folder(make(tmp_path, values=np.array(values, np.uint8)), **options)
    background = 0 if drawn[0] in (4, 9) else drawn[0]
    assert dataset.values == (background, *drawn[1:])
    for case, heart in zip(dataset.cases(), HEARTS, strict=True):
        stored = np.array(values)[heart.scribble]
        back = np.array([*drawn, *[0] * 256])[np.where(case.scribble == IGNORE, 4, case.scribble)]
        np.testing.assert_array_equal(np.where(case.scribble == IGNORE, values[4], back), stored)


@pytest.mark.parametrize("key", ["ignore", "Unlabelled", "unannotated"])
def test_a_named_value_is_not_drawn(tmp_path, key):
    content = {"labels": {"background": 0, "RV": 1, "Myo": 2, "LV": 3, key: 4}}
    same_hearts(folder(make(tmp_path, values=np.arange(5, dtype=np.uint8), content=content)))


def test_nothing_is_guessed(tmp_path):
    four = np.arange(5, dtype=np.uint8)
    with pytest.raises(DataError, match=r'value 4 \(no name\) in 9\d.\d%, 0 .*"ignore": 4 if it is this one'):
        folder(make(tmp_path / "acdc", values=four))
    with pytest.raises(DataError, match=r'value 0 \(no name\) in 9.*"ignore": 0 if it is .*"background": 4'):
        folder(make(tmp_path / "snap"))
    with pytest.raises(DataError, match=r'drawn values \[1, 2, 3, 4\] and none of them said to be the background'):
        folder(make(tmp_path / "half"), ignore=0)
    content = {"labels": {"background": 0, "RV": 1, "Myo": 2, "LV": 3}}
    with pytest.raises(DataError, match=r'dataset.json: found the value 0 \(background\) in 9\d.\d%, .*"ignore": 0'):
        folder(make(tmp_path / "named", content=content, values=np.array([0, 1, 2, 3, 0], np.uint8)))
    with pytest.raises(DataError, match="background 4, not drawn 4"):
        folder(make(tmp_path / "both"), ignore=4, background=4)
    with pytest.raises(DataError, match="each name and each value once"):
        folder(make(tmp_path / "twice", content={"labels": {"background": 0, "RV": 1, "LV": 1}}))
    with pytest.raises(DataError, match="name → whole number"):
        folder(make(tmp_path / "regions", content={"labels": {"background": 0, "heart": [1, 2, 3]}}))


def test_a_dense_label_does_not_tell_which_value_is_the_background(tmp_path):
    make(tmp_path, labels=3)
    with pytest.raises(DataError, match=r'"ignore": 0 if it is this one \("labels": \{"background": 4'):
        folder(tmp_path)
    dataset = folder(tmp_path, background=4)
    assert dataset.class_names == ("background", "label 1", "label 2", "label 3") and dataset.scored
    same_hearts(dataset)


def test_values_without_a_name_and_masks_that_leave_nothing_open(tmp_path):
    make(tmp_path, content=NAMED, labels=1)
    drawn = VALUES[HEARTS[1].scribble]
    write(tmp_path / "scribbles" / "patient002.nii.gz", np.where(drawn == 3, 7, drawn))
    with pytest.raises(DataError, match=r"patient002.nii.gz: found the values 7 \(\d+×\), expected only 0 not drawn"):
        list(folder(tmp_path).cases())
    full = np.where(drawn == 0, 4, drawn)
    write(tmp_path / "scribbles" / "patient002.nii.gz", full)
    with pytest.raises(DataError, match=r"found no voxel that is not drawn \(0\), expected a scribble"):
        list(folder(tmp_path).cases())
    write(tmp_path / "scribbles" / "patient002.nii.gz", drawn + np.float32(0.5))
    with pytest.raises(DataError, match=r"the values 0.5 \(\d+×\), 1.5"):
        list(folder(tmp_path).cases())


def test_values_that_one_byte_cannot_hold():
    with pytest.raises(DataError, match=r"class values \[1000\], expected values from 0 to 255"):
        meaning_of({"background": 0, "liver": 1000}, Counter(), ())
    labels = meaning_of({"background": 0, "liver": 1}, Counter(), (), ignore=-1)
    np.testing.assert_array_equal(labels.read(np.array([-1, 0, 1], np.int16), "a"), [IGNORE, 0, 1])
    assert meaning_of({"0": "background", "1": "liver"}, Counter(), ()).names == ("background", "liver")


# ---------------------------------------------------------------- number types, scale factors, intensities
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64])
def test_every_number_type(tmp_path, dtype):
    make(tmp_path, content=NAMED, dtype=dtype, scale=100, values=VALUES.astype(dtype))
    same_hearts(folder(tmp_path), tolerance=0.02)


@pytest.mark.parametrize("slope, inter", [(0.5, 0), (0.25, -1024), (1 / 255, 0)])
def test_scale_factors_are_applied(tmp_path, slope, inter):
    make(tmp_path, content=NAMED)
    for kind, heart in product(("images", "scribbles"), HEARTS):
        path = tmp_path / kind / f"{heart.patient}.nii.gz"
        true = np.asarray(nib.load(path).dataobj).astype(np.float64)
        raw = bytearray(nib.Nifti1Image(np.rint((true - inter) / slope).astype(np.int32), BODY).to_bytes())
        raw[112:120] = struct.pack("<2f", slope, inter)  # nibabel itself writes none with integers
        path.write_bytes(gzip.compress(raw))
        np.testing.assert_allclose(nib.load(path).get_fdata(), true, atol=abs(slope) + 1e-4)
    same_hearts(folder(tmp_path), tolerance=5e-3)


def test_intensities_that_cannot_be_used(tmp_path):
    make(tmp_path, content=NAMED, dtype=np.float32)
    path = tmp_path / "images" / "patient002.nii.gz"
    for spoil, words in ((np.nan, "NaN or infinity in 1 of"), (np.inf, "NaN or infinity in 1 of")):
        image = HEARTS[1].image.copy()
        image[0, 0, 0] = spoil
        write(path, image)
        for robust in (False, True):
            with pytest.raises(DataError, match=rf"patient002.nii.gz: image: found {words}"):
                list(folder(tmp_path, robust=robust).cases())
    write(path, np.full_like(HEARTS[1].image, 7))
    for robust in (False, True):
        with pytest.raises(DataError, match=r"patient002.nii.gz: image: found the value 7"):
            list(folder(tmp_path, robust=robust).cases())


def test_robust_scaling_survives_outliers_at_both_ends(tmp_path):
    image = HEARTS[0].image.copy()
    image[0, 0, :2] = -1e6, 1e6
    path = write(tmp_path / "a.nii.gz", image)
    default, robust = (read_scan([path], robust=way).image for way in (False, True))
    assert low_contrast(default) and not low_contrast(robust)
    low, high = np.quantile(image, (0.01, 0.99))
    np.testing.assert_allclose(robust, ((image - low) / (high - low)).clip(0, 1), atol=1e-6)


# ---------------------------------------------------------------- geometry
@pytest.mark.parametrize("degrees", [0, 20, -35])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_however_it_is_stored_the_case_is_the_same_and_so_is_the_way_back(tmp_path, order, degrees):
    for signs in product((1, -1), repeat=3):
        ornt = tuple(zip(order, signs, strict=True))
        path = write(tmp_path / "a.nii.gz", HEARTS[0].label, turned(degrees), ornt)
        case, scan = read_scan([path], axis="auto"), nib.load(path)
        np.testing.assert_array_equal(case.grid.take(np.asarray(scan.dataobj)), HEARTS[0].label)
        np.testing.assert_allclose(case.affine, turned(degrees), atol=1e-4)
        back = nib.Nifti1Image.from_bytes(case.grid.picture(HEARTS[0].label).to_bytes())
        np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(scan.dataobj))
        np.testing.assert_array_equal(back.affine, scan.affine)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (4, 2), (1, 1)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_codes_and_both_forms_come_back(tmp_path, kind, codes):
    scan = kind(np.ascontiguousarray(HEARTS[0].label.T), np.eye(4))
    scan.set_sform(turned(30), codes[0])
    scan.set_qform(turned(-10), codes[1])
    scan.header.set_xyzt_units("mm", "sec")
    scan.header["descrip"] = b"name of a patient"
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of a patient"))
    nib.save(scan, tmp_path / "a.nii.gz")
    scan = nib.load(tmp_path / "a.nii.gz")
    back = kind.from_bytes(Grid.of(scan).picture(Grid.of(scan).take(HEARTS[0].label.T)).to_bytes())
    np.testing.assert_array_equal(np.asarray(back.dataobj), HEARTS[0].label.T)
    for name in ("sform_code", "qform_code", "pixdim", "srow_x", "quatern_b", "qoffset_x", "xyzt_units", "dim"):
        np.testing.assert_array_equal(back.header[name], scan.header[name], err_msg=name)
    assert not back.header.extensions and not back.header["descrip"].item(), "only geometry is taken over"


def test_an_independent_reader_agrees_on_the_place(tmp_path):
    path = write(tmp_path / "a.nii.gz", HEARTS[0].label, turned(20), ((1, -1), (2, 1), (0, -1)))
    case, theirs = read_scan([path], axis="auto"), sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(theirs)  # [z,y,x] of the file
    for z, y, x in np.random.default_rng(0).integers(0, case.image.shape, (30, 3)):
        mm = (case.affine @ [x, y, z, 1])[:3] * [-1, -1, 1]  # theirs points to the left and the back
        k = theirs.TransformPhysicalPointToIndex(mm.tolist())
        assert values[k[2], k[1], k[0]] == HEARTS[0].label[z, y, x]


@pytest.mark.parametrize("spacing, plane", [((0.5, 3, 0.5), "coronal"), ((3, 0.5, 0.5), "sagittal"),
                                            ((1, 1, 1), "axial"), ((1.001, 1, 1), "axial"), ((0.5, 0.5, 5), "axial")])
def test_slices_lie_across_the_largest_spacing(spacing, plane):
    scan = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([*np.multiply(spacing, (-1, -1, 1)), 1]))
    grid = Grid.of(scan)
    assert grid.plane == plane and grid.spacing_mm[0] == pytest.approx(spacing[PLANES.index(plane)])
    for axis, shape in (("sagittal", (4, 6, 5)), ("coronal", (5, 6, 4)), ("axial", (6, 5, 4)), ("0", (4, 6, 5)),
                        ("stored", (6, 5, 4))):
        assert Grid.of(scan, axis).take(np.zeros((4, 5, 6))).shape == shape


def test_a_mask_in_another_order_fits_and_one_elsewhere_does_not(tmp_path):
    make(tmp_path, content=NAMED, affine=turned(20))
    path = tmp_path / "scribbles" / "patient001.nii.gz"
    write(path, VALUES[HEARTS[0].scribble], turned(20), ((2, 1), (0, -1), (1, 1)))
    same_hearts(folder(tmp_path))
    write(path, VALUES[HEARTS[0].scribble], turned(22))
    with pytest.raises(DataError, match=r"scribbles/patient001.nii.gz: found an affine that moves voxels by \d+.\d mm"):
        list(folder(tmp_path).cases())
    same_hearts(folder(tmp_path, check_affine=False))
    write(path, VALUES[HEARTS[0].scribble][:, 1:], turned(20))
    with pytest.raises(DataError, match=r"scribbles/patient001.nii.gz: found \(z,y,x\) of"):
        list(folder(tmp_path).cases())


def test_headers_without_coordinates_are_taken_as_they_lie(tmp_path):
    make(tmp_path, content=NAMED)
    for path in tmp_path.glob("*/*.nii.gz"):
        scan = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), None)
        scan.header.set_zooms((1.5, 1.5, 10))
        scan.header["sform_code"] = scan.header["qform_code"] = 0
        nib.save(scan, path)
    same_hearts(folder(tmp_path))
    assert any("no coordinates" in line for line in check(tmp_path).remarks)
    path = tmp_path / "scribbles" / "patient001.nii.gz"
    scan = nib.load(path)
    scan.header.set_zooms((1.5, 1.5, 8))
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), None, scan.header), path)
    with pytest.raises(DataError, match=r"moves voxels by 6.0 mm"):
        list(folder(tmp_path).cases())


def test_a_mask_without_coordinates_lies_as_its_image_does(tmp_path):
    make(tmp_path, content=NAMED, ornt=((2, -1), (0, 1), (1, 1)))
    for path in (tmp_path / "scribbles").iterdir():
        scan = nib.load(path)
        scan.set_sform(None, 0)
        scan.set_qform(None, 0)
        nib.save(scan, path)
    same_hearts(folder(tmp_path))


@pytest.mark.parametrize("trail", [(), (1,), (1, 1)])
def test_single_slices(tmp_path, trail):
    for heart in HEARTS:
        shape = (*heart.image.shape[:0:-1], *trail)
        write(tmp_path / "images" / f"{heart.patient}.nii.gz", heart.image[2:3], shape=shape)
        write(tmp_path / "scribbles" / f"{heart.patient}.nii.gz", VALUES[heart.scribble[2:3]], shape=shape)
    dataset = folder(tmp_path, background=4)
    for case, heart in zip(dataset.cases(), HEARTS, strict=True):
        np.testing.assert_array_equal(case.scribble, marks(heart)[2:3])
        assert case.image.shape == (1, *heart.image.shape[1:])
        assert case.grid.picture(case.scribble).shape == (*heart.image.shape[:0:-1], *trail)


def test_films_are_refused_with_advice(tmp_path):
    make(tmp_path, content=NAMED)
    film = np.stack([HEARTS[0].image.T] * 3, -1)
    nib.save(nib.Nifti1Image(film, BODY), tmp_path / "images" / "patient001.nii.gz")
    with pytest.raises(DataError, match=r"patient001.nii.gz: found .* \(\d+, \d+, 4, 3\).*each volume a file"):
        list(folder(tmp_path).cases())
    nib.save(nib.Nifti1Image(film[..., :1], BODY), tmp_path / "images" / "patient001.nii.gz")
    assert next(folder(tmp_path).cases()).image.shape == HEARTS[0].image.shape


def test_colours_and_broken_files_are_refused(tmp_path):
    make(tmp_path, content=NAMED)
    path = tmp_path / "images" / "patient001.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"patient001.nii.gz: found an unreadable file"):
        list(folder(tmp_path).cases())
    colour = np.zeros((4, 4, 2), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(colour, BODY), path)
    with pytest.raises(DataError, match="one number per voxel"):
        list(folder(tmp_path).cases())


# ---------------------------------------------------------------- folds and training slices
def test_folds():
    people = [f"p{n}" for n in range(7)]
    tests, trains = make_folds(people[:5], people[3:], people)
    assert tests == {1: ("p5", "p6")} and trains == {1: tuple(people[:5])}, "labelled and not drawn on: the test set"
    tests, trains = make_folds(people, people[:6], people, seed=1)
    assert sorted(sum(tests.values(), ())) == people[:6] and len(tests) == 5
    assert all(sorted((*tests[k], *trains[k])) == people for k in tests), "an unlabelled patient always trains"
    again, other = (make_folds(people, people[:6], people, seed=seed)[0] for seed in (1, 2))
    assert again == tests != other
    assert make_folds(people, people, people, folds=2)[0].keys() == {1, 2}
    assert make_folds(people[:5], people[3:], people, folds=2)[0].keys() == {1, 2}, "if asked, the held-out in folds"


def test_without_labels_all_are_segmented_and_nothing_is_scored(tmp_path):
    dataset = folder(make(tmp_path, content=NAMED))
    assert not dataset.scored and dataset.split(1) == (dataset.patients, dataset.patients)
    write(tmp_path / "images" / "z.nii.gz", HEARTS[0].image)
    dataset = folder(tmp_path)
    assert dataset.split(1) == (tuple(h.patient for h in HEARTS), (*(h.patient for h in HEARTS), "z"))
    assert next(dataset.cases(["z"])).scribble is None


def test_labels_are_left_alone_with_no_folds(tmp_path):
    dataset = folder(make(tmp_path, content=NAMED, labels=3), folds=0)
    assert not dataset.scored and len(dataset.split(1)[0]) == 3 and all(c.label is None for c in dataset.cases())


def test_frames_of_one_patient_stay_together(tmp_path):
    for patient, frame, heart in (("a", "ed", HEARTS[0]), ("a", "es", HEARTS[1]), ("b-2", "ed", HEARTS[2])):
        for kind, volume in (("images", heart.image), ("scribbles", VALUES[heart.scribble]), ("labels", heart.label)):
            write(tmp_path / kind / f"{patient}_{frame}.nii.gz", volume)
    dataset = folder(tmp_path, patient="[^_]+", background=4)
    assert dataset.patients == ("a", "b-2") and [c.name for c in dataset.cases()] == ["a_ed", "a_es", "b-2_ed"]
    assert folder(tmp_path, background=4).patients == ("a_ed", "a_es", "b-2_ed")
    with pytest.raises(DataError, match=r"b-2_ed: found no patient by the expression '\[a-z\]\+'"):
        folder(tmp_path, patient="[a-z]+", background=4)
    assert any("several scans begin with 'a'" in line for line in check(tmp_path).remarks)


def test_only_slices_that_somebody_drew_on_are_learnt_from():
    heart = HEARTS[0]
    scribble = marks(heart)
    scribble[[0, 2]] = IGNORE
    case = Case("a", "", heart.image, heart.spacing_mm, scribble=scribble, label=heart.label)
    kept = drawn_slices(case, "scribble", IGNORE)
    np.testing.assert_array_equal(kept.image, heart.image[[1, 3]])
    np.testing.assert_array_equal(kept.scribble, scribble[[1, 3]])
    assert kept.label is None and drawn_slices(case, "label", IGNORE) is case
    full = Case("a", "", heart.image, None, scribble=marks(heart))
    assert drawn_slices(full, "scribble", IGNORE) is full
    bare = Case("a", "", heart.image, None, scribble=np.full_like(scribble, IGNORE))
    assert drawn_slices(bare, "scribble", IGNORE) is None


# ---------------------------------------------------------------- options, names, versions
def test_options_of_the_file_and_of_the_call(tmp_path):
    make(tmp_path, content=NAMED | {"axis": "coronal", "augmentation": "acdc", "patient": "patient"[:0]})
    assert folder(tmp_path).reading["axis"] == "coronal" and folder(tmp_path).augmentation == "acdc"
    assert folder(tmp_path, axis=2).reading["axis"] == "2" and folder(tmp_path, robust="true").reading["robust"] is True
    with pytest.raises(DataError, match="option axis: found 'up'; Input should be 'auto', 'axial'"):
        folder(tmp_path, axis="up")
    with pytest.raises(DataError, match=r"option patient: found '\['; .*no regular expression: unterminated"):
        folder(tmp_path, patient="[")
    with pytest.raises(DataError, match=r"option axsi: found 1; Extra inputs .* \(options: ignore, background, axis"):
        folder(tmp_path, axsi=1)
    (tmp_path / "dataset.json").write_text(json.dumps(NAMED | {"augmentaton": "acdc"}))
    with pytest.raises(DataError, match="augmentaton: found an option nobody knows, expected 'augmentation', perhaps"):
        folder(tmp_path)


def test_masks_are_read_on_opening_only_to_learn_their_values(tmp_path):
    broken = make(tmp_path, content=NAMED) / "scribbles" / "patient001.nii.gz"
    broken.write_bytes(b"no NIfTI")
    assert folder(tmp_path).class_names == ("background", "RV", "Myo", "LV")
    with pytest.raises(DataError, match=r"patient001.nii.gz: found an unreadable file"):
        folder(tmp_path).read("patient001")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": NAMED["labels"]}))
    with pytest.raises(DataError, match=r"patient001.nii.gz: found an unreadable file"):
        folder(tmp_path)


def test_the_version_follows_the_masks(tmp_path):
    make(tmp_path, content=NAMED)
    before = folder(tmp_path).version
    assert before == folder(tmp_path).version != ""
    scribble = VALUES[HEARTS[0].scribble]
    scribble[0, 0, 0] = 1
    write(tmp_path / "scribbles" / "patient001.nii.gz", scribble)
    assert folder(tmp_path).version != before


def test_named_like_any_dataset(tmp_path):
    make(tmp_path / "mine", content=NAMED | {"reference": "me", "licence": "mine"})
    dataset = open_dataset("folder", tmp_path / "mine", augmentation="none")
    assert dataset.augmentation == "none" and dataset.source == "me; mine"
    with pytest.raises(DataError, match=r"(?s)found no images/.*nii.*To get it: draw scribbles"):
        open_dataset("folder", tmp_path)


def test_plain_loaders_are_unchanged_by_the_new_fields():
    dataset = phantom(patients=5)
    assert dataset.facts() == {"name": "phantom", "class_names": dataset.class_names, "channels": 1,
                               "augmentation": "acdc", "values": (), "reading": {}, "version": ""}
    assert dataset.scored and dataset.split(1) == (dataset.patients[1:], dataset.patients[:1])
    with pytest.raises(DataError, match="folds: found nobody"):
        Dataset("x", ("background", "a"), 2, ("p",), lambda p: [], {1: ("p",)}, "none", trains={1: ("nobody",)})


# ---------------------------------------------------------------- the report
def test_a_sound_folder_has_no_problems(tmp_path, capsys):
    report = check(make(tmp_path, content=NAMED, labels=1))
    assert report.fine and report.problems == [] and report.remarks == []
    assert report.classes.scans.tolist() == [3, 3, 3, 3] and report.classes.value.tolist() == [4, 1, 2, 3]
    voxels = [sum(int((VALUES[h.scribble] == value).sum()) for h in HEARTS) for value in (4, 1, 2, 3)]
    assert report.classes.voxels.tolist() == voxels
    share = np.mean(HEARTS[0].scribble != 4)
    assert report.scans.annotated["patient001"] == f"{share:.2%}"
    assert report.scans["z×y×x"]["patient001"] == "×".join(map(str, HEARTS[0].image.shape))
    assert main(["check", str(tmp_path)]) == 0
    assert "no problems" in capsys.readouterr().out


def test_every_fault_is_reported_at_once_and_by_name(tmp_path, capsys):
    root = make(tmp_path, content=NAMED)
    outlier, constant = HEARTS[0].image.copy(), np.full_like(HEARTS[0].image, 3)
    outlier[0, 0, 0] = 1e7
    bad = np.where(np.isfinite(HEARTS[0].image), HEARTS[0].image, 0)
    bad[0, 0, 0] = np.nan
    good = VALUES[HEARTS[0].scribble]
    spoilt = {
        "outlier": (outlier, good), "constant": (constant, good), "nan": (bad, good), "film": (None, good),
        "shape": (HEARTS[0].image, good[1:]), "place": (HEARTS[0].image, None), "empty": (HEARTS[0].image, 0 * good),
        "strange": (HEARTS[0].image, np.where(good == 3, 9, good)), "full": (HEARTS[0].image, np.where(good, good, 4)),
    }
    for name, (image, scribble) in spoilt.items():
        if image is not None:
            write(root / "images" / f"{name}.nii.gz", image)
        if scribble is not None:
            write(root / "scribbles" / f"{name}.nii.gz", scribble)
    nib.save(nib.Nifti1Image(np.stack([HEARTS[0].image.T] * 2, -1), BODY), root / "images" / "film.nii.gz")
    write(root / "scribbles" / "place.nii.gz", good, affine=turned(5))
    write(root / "scribbles" / "nobody.nii.gz", good)
    write(root / "images" / "bare.nii.gz", HEARTS[0].image)
    report = check(root, robust=False)
    words = {"constant": "the value 3", "nan": "NaN or infinity in 1", "film": "one number per voxel",
             "shape": "voxels, exp", "place": "moves voxels by",
             "strange": "the values 9", "full": "no voxel", "nobody": "no image of that name"}
    for name, text in words.items():
        assert sum(f"/{name}.nii.gz" in line and text in line for line in report.problems) == 1, (name, report.problems)
    assert len(report.problems) == len(words)
    assert len(report.remarks) == 3 and "/outlier.nii.gz" in report.remarks[1] and "bare" in report.remarks[2]
    assert "/empty.nii.gz: nothing is drawn" in report.remarks[0], "left out by a training too"
    assert main(["check", str(root), "robust=false"]) == 1 and "8 problems" in capsys.readouterr().out


def test_a_class_that_nobody_drew_and_values_without_meaning(tmp_path, capsys):
    report = check(make(tmp_path, content={"labels": NAMED["labels"] | {"aorta": 5}, "ignore": 0}))
    assert len(report.problems) == 1 and "no scribble of the class 'aorta' (value 5)" in report.problems[0]
    (tmp_path / "dataset.json").unlink()
    report = check(tmp_path)
    assert len(report.problems) == 1 and '"background": 4' in report.problems[0]
    assert report.classes.value.tolist() == [0, 1, 2, 3, 4]
    assert main(["check", str(tmp_path), "background=4"]) == 0
    assert '"labels": {"background": 4, "label 1": 1' in capsys.readouterr().out, "a dataset.json to start from"
    assert main(["check", str(tmp_path / "nowhere")]) == 1


def test_checking_agrees_with_loading(tmp_path):
    for number, (how, options) in enumerate([({"labels": 3}, {}), ({}, {}), ({"content": NAMED}, {"axis": "coronal"})]):
        root = make(tmp_path / str(number), **how)
        try:
            cases = list(folder(root, **options).cases())
        except DataError as error:
            assert str(error) in check(root, **options).problems
        else:
            assert check(root, **options).fine and len(cases) == 3


def test_real_scans_come_out_as_from_the_loader_of_acdc(data_root, tmp_path):
    theirs = [case for patient in ("patient001", "patient050") for case in acdc(data_root / "acdc").read(patient)]
    for case in theirs:
        for kind, end in (("images", ""), ("scribbles", "_scribble"), ("labels", "_gt")):
            (tmp_path / kind).mkdir(exist_ok=True)
            source = Path(case.source.replace(".nii", f"{end}.nii"))
            (tmp_path / kind / source.name).write_bytes(source.read_bytes())
    ours = folder(tmp_path, ignore=4, patient=r"patient\d+", axis="stored", robust=False)
    for a, b in zip(theirs, ours.cases(), strict=True):
        assert a.name == b.name and a.spacing_mm == b.spacing_mm
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.label, b.label)
        np.testing.assert_array_equal(np.where(a.scribble == 4, IGNORE, a.scribble), b.scribble)
    turned_ = list(folder(tmp_path, ignore=4, patient=r"patient\d+", robust=False).cases())
    assert all((np.sort(a.image, None) == np.sort(b.image, None)).all() for a, b in zip(theirs, turned_, strict=True))
    assert check(tmp_path, ignore=4, patient=r"patient\d+").fine
