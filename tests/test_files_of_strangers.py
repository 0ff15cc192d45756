"""Files that somebody else made: units, contradictions, contrast, claims of size, odd but valid forms, bounds.

NIfTI is written here byte by byte, so that no library stands on both sides of a comparison.
"""

import gzip
import json
import shutil
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
from PIL import Image

from attenscribble.basics.errors import DataError
from attenscribble.basics.files import read_json
from attenscribble.data import scans
from attenscribble.data.chaos import _read_gray, chaos, read_series, write_slice
from attenscribble.data.check import check
from attenscribble.data.datasets import open_dataset
from attenscribble.data.folder import folder, low_contrast, open_folder, patients_of, read_scan, scale_robust
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import acdc, read_nifti, scale_intensities, wsl4mis
from attenscribble.entry.commands import main
from attenscribble.runs.inference import find_scans, load_mask, save_mask
from attenscribble.runs.metrics import hd95

UNITS = {"unknown": 0, "metre": 1, "mm": 2, "micron": 3}
IN_UNIT = {"unknown": 1, "metre": 1e-3, "mm": 1, "micron": 1e3}
TYPES = {"u1": (2, 8), "i2": (4, 16), "f4": (16, 32)}


def heart(z=4, h=48, w=48, seed=0):
    "Image int16 of a disc (1) in a ring (2), label, scribble with 255 where nothing is drawn."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    r = np.hypot(y - h / 2, x - w / 2)
    label = np.repeat(np.where(r < 8, 1, np.where(r < 14, 2, 0))[None], z, 0).astype(np.uint8)
    image = (np.choose(label, [100, 600, 350]) + rng.normal(0, 25, label.shape)).clip(0).astype(np.int16)
    scribble = np.full(label.shape, 255, np.uint8)
    scribble[:, h // 2, w // 2 - 4:w // 2 + 4] = 1
    scribble[:, (abs(r - 11) < 0.8) & (x > w // 2)] = 2
    scribble[:, 3:5, 5:-5] = 0
    return image, label, scribble


IMAGE, LABEL, SCRIBBLE = heart()


def nifti(volume, mm=(1, 1, 5), unit="mm", codes=(1, 1), **fields) -> bytes:
    "[Z,Y,X] (or more axes) as the bytes of a NIfTI file; mm is (x,y,z); fields as struct formats and values by offset."
    kind = volume.dtype.newbyteorder("<").str[1:]
    head, sizes = bytearray(352), [float(size) * IN_UNIT[unit] for size in mm]
    shape = volume.shape[::-1]
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", head, 70, *TYPES[kind])
    struct.pack_into("<8f", head, 76, 1, *sizes, *[1] * 4)
    struct.pack_into("<3f", head, 108, 352, 0, 0)
    head[123] = UNITS[unit]
    struct.pack_into("<2h", head, 252, *codes)
    for row in range(3):  # further axes have no place
        struct.pack_into("<4f", head, 280 + 16 * row, *np.eye(4)[row] * [*sizes, 1])
    head[344:348] = b"n+1\0"
    for place, (form, *values) in fields.items():
        struct.pack_into(f"<{form}", head, int(place[1:]), *values)
    return bytes(head) + np.ascontiguousarray(volume).tobytes()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def make(root: Path, scans=(IMAGE,), labels=False, **how) -> Path:
    for number, image in enumerate(scans):
        extra = (image.shape[1] - LABEL.shape[1]) // 2
        frame = ((0, 0), (extra, extra), (extra, extra))
        put(root / f"images/s{number}.nii.gz", nifti(image, **how))
        put(root / f"scribbles/s{number}.nii.gz", nifti(np.pad(SCRIBBLE, frame, constant_values=255), **how))
        if labels:
            put(root / f"labels/s{number}.nii.gz", nifti(np.pad(LABEL, frame), **how))
    return root


# ---------------------------------------------------------------- units of length
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (1, 1), (0, 0)])
def test_lengths_are_millimetres_whatever_the_header_counts_in(tmp_path, unit, codes):
    path = put(tmp_path / "a.nii.gz", nifti(LABEL, (1, 1.5, 5), unit, codes))
    case = read_scan([path], axis="stored")
    assert case.spacing_mm == pytest.approx((5, 1.5, 1))
    np.testing.assert_allclose(np.linalg.norm(case.affine[:3, :3], axis=0), (1, 1.5, 5), rtol=1e-6)
    moved = np.roll(LABEL, 3, 2) == 1
    assert hd95(moved, LABEL == 1, case.spacing_mm) == pytest.approx(hd95(moved, LABEL == 1, (5, 1.5, 1)))
    written = save_mask(LABEL, case, tmp_path / "mask.nii.gz")
    ours, theirs = (gzip.decompress(p.read_bytes()) for p in (written, path))
    assert ours[252:328] == theirs[252:328] and ours[123] == theirs[123] and ours[76:92] == theirs[76:92], "it overlays"


@pytest.mark.parametrize("one, other", [("micron", "mm"), ("mm", "metre"), ("metre", "unknown")])
def test_a_mask_may_count_in_another_unit_than_its_scan(tmp_path, one, other):
    make(tmp_path, (IMAGE, IMAGE), labels=True, unit=one)
    put(tmp_path / "scribbles/s0.nii.gz", nifti(SCRIBBLE, unit=other))
    case = next(folder(tmp_path, axis="stored").cases())
    np.testing.assert_array_equal(case.scribble, SCRIBBLE)
    np.testing.assert_array_equal(case.label, LABEL)
    assert not [line for line in check(tmp_path).problems if "moves voxels" in line]
    put(tmp_path / "scribbles/s0.nii.gz", nifti(SCRIBBLE, (1, 1, 5.5), other))
    with pytest.raises(DataError, match=r"moves voxels by 1\.5 mm"):
        list(folder(tmp_path).cases())


@pytest.mark.parametrize("unit", ["micron", "metre"])
def test_acdc_in_another_unit(tmp_path, unit):
    stem = tmp_path / "patient001/patient001_frame01"
    put(Path(f"{stem}.nii.gz"), nifti(IMAGE, (1.5, 1.25, 10), unit))
    put(Path(f"{stem}_gt.nii.gz"), nifti(LABEL, (1.5, 1.25, 10), "mm"))
    (case,) = acdc(tmp_path).cases()
    assert case.spacing_mm == pytest.approx((10, 1.25, 1.5))
    np.testing.assert_allclose(case.affine, np.diag([1.5, 1.25, 10, 1]), rtol=1e-6)


def test_an_unnamed_unit_is_said_and_an_unknown_one_is_refused(tmp_path, capsys):
    report = check(make(tmp_path, (IMAGE, IMAGE), unit="unknown"))
    assert [line for line in report.remarks if "s0.nii.gz, s1.nii.gz: the header names no unit" in line]
    assert not [line for line in check(make(tmp_path, (IMAGE, IMAGE))).remarks if "unit" in line]
    put(tmp_path / "images/s0.nii.gz", nifti(IMAGE, _123=("b", 5)))
    with pytest.raises(DataError, match=r"s0.nii.gz: xyzt_units: found the code 5 for lengths, expected 1 \(metre\)"):
        list(folder(tmp_path).cases())


# ---------------------------------------------------------------- spacing and affine
@pytest.mark.parametrize("fields, words", [
    ({"_88": ("f", 4.5)}, r"pixdim\[3\]: found 4.5 mm, and 5 mm in srow_x, srow_y, srow_z"),
    ({"_84": ("f", 1e-30)}, r"pixdim\[2\]: found a voxel size of 1e-30 mm"),
    ({"_80": ("f", 0)}, r"pixdim\[1\]: found a voxel size of 0 mm"),
    ({"_80": ("f", -1)}, r"pixdim\[1\]: found a voxel size of -1 mm"),
    ({"_80": ("f", np.inf)}, "voxel size of inf mm"), ({"_80": ("f", np.nan)}, "voxel size of nan mm"),
    ({"_280": ("4f", np.nan, 0, 0, 0)}, "srow_x, srow_y, srow_z: found"),
    ({"_292": ("f", 1e30)}, "srow_x, srow_y, srow_z: found"),
    ({"_280": ("4f", 0, 0, 0, 0)}, "srow_x, srow_y, srow_z: found"),
    ({"_280": ("4f", 0, 1, 0, 0)}, "srow_x, srow_y, srow_z: found"),
    ({"_254": ("h", 77)}, "sform_code: found 77, expected a code from 0 to 5"),
    ({"_252": ("h", -3)}, "qform_code: found -3"),
    ({"_252": ("2h", 1, 0), "_256": ("3f", 9, 9, 9)}, "quatern_b … qoffset_z: found"),
    ({"_112": ("f", np.inf)}, "scl_slope: found inf"), ({"_116": ("f", -np.inf)}, "scl_inter: found -inf"),
    ({"_108": ("f", np.nan)}, "vox_offset: found nan"), ({"_108": ("f", -8)}, "vox_offset: found -8"),
])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_contradicts_itself_is_refused_by_field(tmp_path, fields, words, ending):
    path = put(tmp_path / f"a{ending}", nifti(IMAGE, **fields))
    with pytest.raises(DataError, match=words) as raised:
        read_nifti(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_the_affine_counts_and_rounding_is_no_contradiction(tmp_path):
    case = read_scan([put(tmp_path / "a.nii", nifti(IMAGE, _88=("f", 5.04)))], axis="stored")
    assert case.spacing_mm == (5, 1, 1)
    with pytest.raises(DataError, match=r"5\.06 mm, and 5 mm"):
        read_nifti(put(tmp_path / "a.nii", nifti(IMAGE, _88=("f", 5.06))))
    lone = put(tmp_path / "a.nii", nifti(IMAGE[:1], _88=("f", 0)))
    assert read_scan([lone], axis="stored").spacing_mm[0] == 1, "a lone slice has no thickness to contradict"


# ---------------------------------------------------------------- intensities
N = np.arange(IMAGE.size).reshape(IMAGE.shape)
FRAME = ((0, 0), (240, 240), (240, 240))
ROI = np.where(LABEL > 0, IMAGE, 0)
ODD = {
    "int16": IMAGE, "float32": IMAGE.astype(np.float32),
    "a region in 99.8 % zeros": np.pad(ROI.astype(np.float32), FRAME), "the same as int16": np.pad(ROI, FRAME),
    "zeros in the middle": np.pad(np.where(LABEL > 0, (IMAGE - 400) / 100, 0).astype(np.float32), FRAME),
    "one voxel of 1e9": np.where(N == 77, 1e9, IMAGE).astype(np.float32),
    "one of 3e38 and one of −3e38": np.where(N < 2, (2 * N - 1) * 3e38, IMAGE).astype(np.float32),
    "0.04 % of 1e6": np.where(N % 2304 == 77, 1e6, IMAGE).astype(np.float32),
    "1 % of −3.4e38": np.where(N % 100 == 7, -3.4e38, IMAGE).astype(np.float32),
    "half of 1e20": np.where(N % 2, 1e20, IMAGE).astype(np.float32),
    "a tenth of −32768": np.where(N % 10 == 7, -32768, IMAGE).astype(np.int16),
    "two thirds of 32767": np.where(N % 3, 32767, IMAGE).astype(np.int16),
    "two fills": np.where(N % 10 == 7, -32768, np.where(N % 10 == 3, -9999, IMAGE)).astype(np.int16),
    "fills at both ends": np.where(N % 10 == 7, -32768, np.where(N % 10 == 3, 32767, IMAGE)).astype(np.int16),
}


@pytest.mark.parametrize("name", ODD)
def test_organs_keep_their_contrast(tmp_path, name):
    volume = ODD[name]
    label = LABEL if volume.shape == LABEL.shape else np.pad(LABEL, FRAME)
    real = np.isin(volume, IMAGE) if "middle" not in name else label > 0
    make(tmp_path, (volume,))
    (case,) = folder(tmp_path, axis="stored").cases()
    one, two = (case.image[(label == c) & real] for c in (1, 2))
    assert abs(one.mean() - two.mean()) > 0.3 and abs(one.mean() - two.mean()) > 5 * max(one.std(), two.std())
    assert one.std() > 0.01 and two.std() > 0.01, "no organ is one gray"
    assert case.image.min() == 0 and case.image.max() == 1
    assert not [line for line in check(tmp_path).remarks if "nine tenths" in line] or "middle" in name


@pytest.mark.parametrize("values", [[0, 1], [0, 350, 600], [0, 500, 600], [0, 100, 350, 600], list(range(10))])
def test_images_of_few_values_keep_all_of_them(values):
    shares = np.arange(len(values), 0, -1)
    image = np.random.default_rng(0).choice(values, (4, 30, 30), p=shares / shares.sum())
    scaled = scale_robust(image, fills=True)
    kept = [np.unique(scaled[image == value]) for value in values]
    assert all(len(one) == 1 for one in kept) and (np.diff(np.concatenate(kept)) > 0.02).all()


def test_what_was_scaled_before_is_only_stretched():
    once = scale_intensities(np.random.default_rng(0).gamma(2, 100, (8, 96, 96)).astype(np.float32))
    low = np.quantile(once, 0.01, method="lower")
    np.testing.assert_allclose(scale_robust(once, fills=True), ((once - low) / (1 - low)).clip(0, 1), atol=1e-6)


def test_runs_of_before_scale_as_before(tmp_path):
    volume = ODD["one voxel of 1e9"]
    path = put(tmp_path / "a.nii", nifti(volume))
    old = {"axis": "stored", "clip": 0.99, "check_affine": True}
    np.testing.assert_array_equal(read_scan([path], **old, robust=False).image, scale_intensities(volume))
    low, high = np.quantile(volume, (0.01, 0.99))
    both = ((volume.clip(low, high) - low) / (high - low)).astype(np.float32)
    np.testing.assert_array_equal(read_scan([path], **old, robust=True).image, both)
    assert folder(make(tmp_path / "mine")).reading["robust"] == "auto"


def test_nan_is_refused_by_count(tmp_path):
    image = IMAGE.astype(np.float32)
    image[:, :3] = np.nan
    with pytest.raises(DataError, match=r"s0.nii.gz: image: found NaN or infinity in 576 of 9216 voxels"):
        list(folder(make(tmp_path, (image,))).cases())


def test_train_and_predict_say_what_check_says(tmp_path, capsys):
    root = make(tmp_path / "mine", (ODD["one voxel of 1e9"], IMAGE), unit="unknown")
    said = [line for line in check(root, robust=False).remarks if "images/" in line]
    assert len(said) == 2 and "s0.nii.gz: nine tenths" in said[0] and "robust=auto" in said[0]
    words = ["size=32", "iterations=2", "batch=4", "method=pce", "device=cpu", "precision=float32", "hd95=false"]
    assert main(["train", str(root), "data_robust=false", f"output={tmp_path / 'runs'}", *words]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "remark" in line] == [f"remark: {line}" for line in said], "once each"
    (run,) = (tmp_path / "runs").iterdir()
    assert main(["predict", "--checkpoint", str(run), str(root / "images/s0.nii.gz"), str(tmp_path / "m.nii.gz")]) == 0
    told = capsys.readouterr().err
    assert f"remark: {said[0]}" in told and "names no unit" in told


# ---------------------------------------------------------------- claims
BIG = ("8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_claims_what_the_file_cannot_hold(tmp_path, ending):
    path = put(tmp_path / f"a{ending}", nifti(IMAGE, _40=BIG))
    with pytest.raises(DataError, match=r"a.nii.*: found 64 TiB of voxels by its header, expected at most \d+ [KM]iB, "
                                        r"which a file of \d+ (B|KiB) can hold"):
        read_nifti(path)


def test_compressed_data_that_goes_on_is_stopped(tmp_path):
    path = put(tmp_path / "a.nii.gz", nifti(IMAGE) + bytes(2**25))
    with pytest.raises(DataError, match=r"found compressed data beyond \d+ MiB, expected 18,784 bytes, the size that"):
        read_nifti(path)
    put(path, nifti(IMAGE) + bytes(1000))  # a little padding is no fault
    np.testing.assert_array_equal(read_nifti(path)[0], IMAGE)


def test_voxels_that_do_not_fit_into_memory(tmp_path, monkeypatch):
    paths = put(tmp_path / "a.nii", nifti(IMAGE)), put(tmp_path / "a.nii.gz", nifti(IMAGE))
    monkeypatch.setattr(scans, "free_memory", lambda: 40_000)
    for path in paths:
        with pytest.raises(DataError, match="found 18 KiB of voxels by its header, expected at most a third of"):
            read_nifti(path)


def test_sparse_hdf5_and_what_is_no_array(tmp_path):
    path = tmp_path / "patient001_frame01.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("image", (100_000, 100_000, 100), np.float32, chunks=(100, 100, 1))
    with pytest.raises(DataError, match=r"frame01.h5: found 4 TiB of voxels by its header, expected at most"):
        list(wsl4mis(tmp_path).cases())
    for content in ("text", np.array([b"a"]), np.zeros(3, [("a", int)]), None):
        with h5py.File(path, "w") as file:
            file.create_group("image") if content is None else file.create_dataset("image", data=content)
        with pytest.raises(DataError, match=r"frame01.h5: image: found .*expected an array of numbers"):
            list(wsl4mis(tmp_path).cases())


def stack(root: Path, slices=4, ending=".dcm", **fields) -> Path:
    for k in range(slices):
        path = write_slice(root / f"IMG-{k + 1:04d}.dcm", IMAGE[k % 4], (0, 0, 8 * k), **{"EchoTime": 4.6} | fields)
        path.rename(path.with_suffix(ending))
    return root


def change(root: Path, **fields) -> Path:
    "Set fields of the third slice, whatever they are worth."
    path = sorted(root.iterdir())[2]
    header = pydicom.dcmread(path)
    for name, value in fields.items():
        setattr(header, name, value)
    header.save_as(path)
    return root


@pytest.mark.parametrize("fields, words", [
    ({"Rows": 60_000, "Columns": 60_000}, "found 7 GiB of voxels by its header"),
    ({"NumberOfFrames": 30_000}, "NumberOfFrames: found 30000, expected one slice"),
    ({"PixelSpacing": [0, 1]}, "PixelSpacing: found .*greater than 0"), ({"RescaleSlope": 0}, "RescaleSlope: found"),
    ({"PixelSpacing": [1e-30, 1e-30]}, "PixelSpacing"), ({"ImagePositionPatient": [0, 0]}, "ImagePositionPatient"),
    ({"ImageOrientationPatient": [1, 0, 0]}, "ImageOrientationPatient: found .*expected 6 finite numbers"),
])
def test_dicom_fields_that_nobody_should_believe(tmp_path, fields, words):
    with pytest.raises(DataError, match=rf"IMG-0003.dcm.*{words}"):
        read_series(change(stack(tmp_path), **fields))


def test_a_zip_and_a_picture_that_claim_too_much(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**22))
    monkeypatch.setattr(scans, "free_memory", lambda: 2**20)
    with pytest.raises(DataError, match=r"a.png: found 4 MiB of voxels by its header"):
        _read_gray(zipfile.Path(tmp_path / "a.zip", "a.png"), (4, 4))
    Image.new("L", (9000, 9000)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b.png: found shape \(9000, 9000\), expected that of the slices, \(4, 4\)"):
        _read_gray(tmp_path / "b.png", (4, 4))


# ---------------------------------------------------------------- valid, though unusual
def test_slices_may_be_numbered_from_1(tmp_path):
    for k, slice_ in enumerate(IMAGE / 1000, 1):
        with h5py.File(tmp_path / f"patient001_frame01_slice_{k}.h5", "w") as file:
            file["image"] = slice_.astype(np.float32)
    (case,) = wsl4mis(tmp_path).cases()
    np.testing.assert_array_equal(case.image, (IMAGE / 1000).astype(np.float32))
    (tmp_path / "patient001_frame01_slice_3.h5").unlink()
    with pytest.raises(DataError, match="without slice 3, expected all slices from 1 to 4"):
        list(wsl4mis(tmp_path).cases())


def acdc_folder(root: Path, numbers, scribbles=True) -> Path:
    for number in numbers:
        stem = root / f"patient{number:03d}/patient{number:03d}_frame01"
        put(Path(f"{stem}.nii.gz"), nifti(IMAGE))
        put(Path(f"{stem}_gt.nii.gz"), nifti(LABEL))
        if scribbles:
            put(Path(f"{stem}_scribble.nii.gz"), nifti(np.where(SCRIBBLE == 255, 4, SCRIBBLE).astype(np.uint8)))
    return root


def test_acdcs_testing_set_is_scored_and_never_trained_on(tmp_path, capsys):
    acdc_folder(tmp_path / "database/training", (1, 21))
    acdc_folder(tmp_path / "database/testing", (101, 150), scribbles=False)
    for root in (tmp_path, tmp_path / "database/training"):
        plain, tested = acdc(root), acdc(root, testing=True)
        assert plain.patients == ("patient001", "patient021") and sorted(plain.folds) == [1, 2]
        assert tested.split(1) == (plain.patients, ("patient101", "patient150")) and tested.options == {"testing": True}
    shutil.copytree(tmp_path / "database/training", tmp_path / "all")
    acdc_folder(tmp_path / "all", (101,), scribbles=False)
    mixed = acdc(tmp_path / "all")
    assert "patient101" not in str(mixed.patients) + str(mixed.split(1)), "one folder for all: still not trained on"
    assert acdc(tmp_path / "all", testing=True).split(1) == (("patient001", "patient021"), ("patient101",))
    with pytest.raises(DataError, match=r"the testing set alone, patient101 to patient150, .*data_testing=true"):
        acdc(tmp_path / "database/testing")
    alone = acdc(tmp_path / "database/testing", testing=True)
    assert alone.tested(1) == ("patient101", "patient150")
    with pytest.raises(DataError, match="found 0 patients to train and 2 to test on"):
        alone.split(1)
    with pytest.raises(DataError, match="found no patient above 100"):
        acdc(acdc_folder(tmp_path / "few", (1,)), testing=True)
    for name in alone.patients:
        put(tmp_path / f"masks/{name}_frame01.nii.gz", nifti(LABEL))
    words = [str(tmp_path / "masks"), f"root={tmp_path / 'database/testing'}", "data_testing=true"]
    assert main(["score", "acdc", *words, f"output={tmp_path / 'runs'}", "--method", "theirs"]) == 0
    assert "2 test volumes" in capsys.readouterr().out


def test_a_fourth_axis_of_one_frame(tmp_path):
    stem = tmp_path / "patient001/patient001_frame01"
    put(Path(f"{stem}.nii.gz"), nifti(IMAGE[None]))
    put(Path(f"{stem}_gt.nii.gz"), nifti(LABEL))
    (case,) = acdc(tmp_path).cases()
    np.testing.assert_array_equal(case.image, scale_intensities(IMAGE))
    np.testing.assert_array_equal(case.label, LABEL)


@pytest.mark.parametrize("ending", [".dcm", ".DCM", "", ".4711"])
def test_dicom_with_an_empty_slope_and_without_an_ending(tmp_path, ending):
    stack(tmp_path / "a", ending=ending, RescaleSlope="", RescaleIntercept="")
    (tmp_path / "a/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "a/notes.txt").write_text("not a slice")
    series = read_series(tmp_path / "a")
    np.testing.assert_array_equal(series.volume, IMAGE)
    assert series.spacing_mm == (8, 1, 1)


def test_json_with_a_mark_in_front(tmp_path):
    content = {"labels": {"background": 0, "a": 1, "b": 2}, "ignore": 255, "name": "Müller"}
    make(tmp_path)
    for encoding in ("utf-8-sig", "utf-8", "utf-16"):
        (tmp_path / "dataset.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
        assert folder(tmp_path).class_names == ("background", "a", "b") and folder(tmp_path).source == "Müller"
    with h5py.File(tmp_path / "patient001_frame01.h5", "w") as file:
        file["image"] = (IMAGE / 1000).astype(np.float32)
    table = tmp_path / "spacing.json"
    table.write_text('{"patient001": [1, 1, 5]}', encoding="utf-8-sig")
    assert next(wsl4mis(tmp_path, table).cases()).spacing_mm == (5, 1, 1)


def test_a_series_without_its_last_slice_beside_a_longer_one(tmp_path):
    scans_, label = tmp_path / "MR/1/T1DUAL/DICOM_anon", tmp_path / "MR/1/T1DUAL/Ground"
    stack(scans_ / "InPhase")
    stack(scans_ / "OutPhase", EchoTime=2.3)
    label.mkdir()
    for k in range(4):
        Image.fromarray(63 * LABEL[k]).save(label / f"IMG-{k + 1:04d}.png")
    assert len(chaos(tmp_path, scribbles="none").read("chaos01")[0].image) == 4
    (scans_ / "InPhase/IMG-0004.dcm").unlink()
    (label / "IMG-0004.png").unlink()
    with pytest.raises(DataError, match="InPhase: found 3 slices beside 4 in OutPhase, expected as many in both"):
        list(chaos(tmp_path, scribbles="none").cases())
    shutil.rmtree(scans_ / "OutPhase")  # nobody needs it
    assert len(chaos(tmp_path, scribbles="none").read("chaos01")[0].image) == 3


# ---------------------------------------------------------------- damage
def mutants(content: bytes, count: int, first: int = 10**9):
    "Copies with 1 to 8 bytes changed, or an end cut off."
    rng = np.random.default_rng(0)
    for number in range(count):
        spoilt = bytearray(content)
        for at in rng.integers(0, min(len(spoilt), first), rng.integers(1, 9)):
            spoilt[at] = rng.integers(256)
        yield bytes(spoilt[:rng.integers(len(spoilt))] if number % 10 == 0 else spoilt)


def outcome(read) -> object:
    "What is read, or the refusal; anything else escapes."
    try:
        return read()
    except DataError as error:
        assert "\n" not in str(error).strip() and len(str(error)) < 2000
        return error


@pytest.mark.filterwarnings("ignore")
def test_changed_bytes_give_voxels_or_our_own_error(tmp_path):
    for content in mutants(nifti(IMAGE[:, :8, :8]), 300, first=352):
        outcome(lambda content=content: read_scan([put(tmp_path / "a.nii", content)], axis="auto"))
    path = tmp_path / "h5/patient001_frame01.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["image"] = (IMAGE / 1000).astype(np.float32)[:, :8, :8]
        file.create_dataset("label", data=LABEL[:, :8, :8], compression="gzip")
    for content in mutants(path.read_bytes(), 300):
        path.write_bytes(content)
        outcome(lambda: list(wsl4mis(path.parent).cases()))
    stack(tmp_path / "dicom")
    third = tmp_path / "dicom/IMG-0003.dcm"
    for content in mutants(third.read_bytes(), 300, first=900):
        third.write_bytes(content)
        outcome(lambda: read_series(third.parent))


def test_deep_and_doubled_json_is_refused(tmp_path):
    make(tmp_path)
    for content, words in (("[" * 100_000, "no JSON"), ('{"a": ' * 99 + "1" + "}" * 99, "64 brackets"),
                           ('{"ignore": 255, "ignore": 0}', "'ignore' twice"), ('["labels"]', "another form")):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=rf"dataset.json: found .*({words})"):
            folder(tmp_path)
    with pytest.raises(DataError, match=r"none.json: found an unreadable file"):
        read_json(tmp_path / "none.json")
    for spacing in ('{"patient001": ["a", 1, 1]}', '{"patient001": [NaN, 1, 1]}', '{"patient001": [null, 1, 1]}',
                    '{"patient001": [1e-30, 1, 1]}', '{"patient001": [1e999, 1, 1]}', "7"):
        (tmp_path / "table.json").write_text(spacing)
        (tmp_path / "patient001_frame01.h5").touch()
        with pytest.raises(DataError, match=r"table.json: patient001_frame01: found"):
            list(wsl4mis(tmp_path, tmp_path / "table.json").cases())


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    make(tmp_path / "mine")
    acdc_folder(tmp_path / "acdc", (1,))
    locked = {"scribbles", "patient001"}
    real = Path.iterdir

    def iterdir(self):
        if self.name in locked:
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(DataError, match=r"scribbles: found a folder that cannot be read \(Permission denied\)"):
        folder(tmp_path / "mine")
    with pytest.raises(DataError, match="patient001: found a folder that cannot be read"):
        acdc(tmp_path / "acdc")


# ---------------------------------------------------------------- bounds
@pytest.mark.parametrize("pattern, fine", [
    (r"[^_]+", True), (r"s\d+", True), (r"(?:s|t)\d{1,3}", True), (r"[a-z]+\d*", True), (r"([a-z]+)(\d+)", True),
    (r"(?:s|0)+", True), (r"(?:s0|t)+", False), (r"s(?=\d)\d", False), (r"(?:s\d?){1,99}", False),
])
def test_a_pattern_that_could_take_for_ever_is_not_tried(tmp_path, pattern, fine):
    make(tmp_path)
    if fine:
        assert patients_of(open_folder(tmp_path, patient=pattern)) == {"s0": ["s0"]}
    else:
        for path in tmp_path.glob("*/s0.nii.gz"):
            path.rename(path.with_name(f"s0_{40 * 'a'}.nii.gz"))
        opened = open_folder(tmp_path, patient=pattern)
        with pytest.raises(DataError, match=r"patient: found the expression .*no repetition inside a repetition"):
            patients_of(opened)
        assert not check(tmp_path, patient=pattern).fine


@pytest.mark.parametrize("options", [{"patients": 10**9}, {"patients": 10_001}, {"side": 10**6}, {"slices": 10**9},
                                     {"patients": 10_000, "side": 224}])
def test_an_absurd_number_of_phantoms_is_refused_at_once(options):
    with pytest.raises(ValueError, match=r"patients, slices, side: found .*expected at most 10,000 patients"):
        phantom(**options)


def test_low_contrast_is_still_noticed():
    assert low_contrast(scale_intensities(ODD["one voxel of 1e9"]))


# ---------------------------------------------------------------- no contrast
def test_a_volume_of_one_number_is_no_scan(tmp_path):
    with h5py.File(tmp_path / "patient001_frame01.h5", "w") as file:
        file["image"] = np.full((3, 8, 8), 0.5, np.float32)
    with pytest.raises(DataError, match=r"frame01.h5: image: found nothing but 0.5, expected a scan with contrast"):
        list(wsl4mis(tmp_path).cases())


# ---------------------------------------------------------------- endings in capitals
def test_endings_in_capitals_are_endings_too(tmp_path, capsys):
    root = make(tmp_path / "mine", (IMAGE,) * 3, labels=True)
    for path in sorted(root.rglob("s1.nii.gz")):
        path.rename(path.with_name("s1.NII.GZ"))
    (root / "images/s2.Nii").write_bytes(gzip.decompress((root / "images/s2.nii.gz").read_bytes()))
    (root / "images/s2.nii.gz").unlink()
    assert [case.name for case in folder(root).cases()] == ["s0", "s1", "s2"]
    assert open_dataset("folder", root).name == "mine"
    outside = shutil.copy(root / "images/s1.NII.GZ", tmp_path / "S.NII.GZ")
    assert list(find_scans(outside, 1)) == ["S"] and list(find_scans(root / "images", 1)) == ["s0", "s1", "s2"]
    case = next(folder(root).cases())
    written = save_mask(LABEL, case, tmp_path / "M.NII.GZ")
    assert written.read_bytes()[:2] == b"\x1f\x8b"
    np.testing.assert_array_equal(load_mask(written, case), LABEL)
    patient = tmp_path / "acdc/patient001"
    for kind, volume in (("", IMAGE), ("_gt", LABEL)):
        put(patient / f"patient001_frame01{kind}.nii.gz", nifti(volume)).rename(
            patient / f"patient001_frame01{kind}.NII.GZ")
    assert open_dataset("acdc", tmp_path / "acdc").patients == ("patient001",)


# ---------------------------------------------------------------- ACDC, WSL4MIS, CHAOS: read, or refused by name
def nii(root: Path, numbers=(1, 21), **how) -> Path:
    "ACDC of one frame a patient; headers as `nifti` writes them."
    for number in numbers:
        stem = f"patient{number:03d}/patient{number:03d}_frame01"
        for kind, volume in (("", IMAGE), ("_gt", LABEL), ("_scribble", np.where(SCRIBBLE == 255, 4, SCRIBBLE))):
            put(root / f"{stem}{kind}.nii", nifti(volume.astype(np.int16 if kind == "" else np.uint8), **how))
    return root


def h5(path: Path, volume=IMAGE, **masks) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in {"image": volume / 1000, **masks}.items():
            file[key] = array
    return path


@pytest.mark.parametrize("dense", [np.where(SCRIBBLE == 255, 0, SCRIBBLE).astype(np.uint8), LABEL])
def test_a_scribble_that_leaves_nothing_out_is_refused(tmp_path, dense):
    words = r"found no voxel that is not drawn \(4\), expected a scribble; a dense mask is a label"
    put(nii(tmp_path / "a") / "patient021/patient021_frame01_scribble.nii", nifti(dense))
    with pytest.raises(DataError, match=f"patient021_frame01_scribble.nii: {words}"):
        list(acdc(tmp_path / "a").cases())
    h5(tmp_path / "b/patient001_frame01.h5", scribble=dense)
    with pytest.raises(DataError, match=f"patient001_frame01.h5: scribble: {words}"):
        list(wsl4mis(tmp_path / "b").cases())
    part = np.where(SCRIBBLE == 255, 4, SCRIBBLE)
    part[1] = 0  # one slice drawn on everywhere is none of this
    for z in range(len(IMAGE)):
        h5(tmp_path / f"c/patient001_frame01_slice_{z}.h5", IMAGE[z], scribble=part[z])
    assert (next(wsl4mis(tmp_path / "c").cases()).scribble == part).all()


def srow(letters: str) -> dict[str, tuple]:
    "The affine's rows, for 1×1×5 mm, of axes that run to these."
    rows = np.zeros((3, 4))
    for column, letter in enumerate(letters):
        row = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        rows[row, column] = (1, 1, 5)[column] * (1 if letter in "RAS" else -1)
    return {f"_{280 + 16 * row}": ("4f", *rows[row]) for row in range(3)}


@pytest.mark.parametrize("order", ["RAS", "LPS"])
def test_acdc_is_read_as_stored_and_says_in_which_order(tmp_path, order):
    dataset = acdc(nii(tmp_path / "a", **srow(order)))
    image, path = next(dataset.cases()).image, tmp_path / "a/patient001/patient001_frame01.nii"
    np.testing.assert_array_equal(image, scale_intensities(IMAGE))
    again = read_scan([path], **dataset.reading)  # as prediction reads a scan
    np.testing.assert_array_equal(again.image, image)
    nii(tmp_path / "a", (41,), codes=(0, 0))  # a header that does not say is taken as it is
    assert len(list(acdc(tmp_path / "a").cases())) == 3


@pytest.mark.parametrize("found", ["LPS", "ASR", "LAS", "RAI"])
def test_a_scan_of_acdc_in_another_order_is_refused(tmp_path, found):
    nii(nii(tmp_path / "a", (1,)), (21,), **srow(found))
    with pytest.raises(DataError, match=rf"021_frame01.nii: found axes that run to {found}, expected RAS \(ACDC: "
                                        r"all RAS or all LPS\); turn it and its masks, or use dataset=folder"):
        list(acdc(tmp_path / "a").cases())
    if found != "LPS":
        with pytest.raises(DataError, match=f"found axes that run to {found}, expected RAS"):
            list(acdc(nii(tmp_path / "b", **srow(found))).cases())


@pytest.mark.parametrize("ending", [".H5", ".hdf5", ".HDF5"])
def test_hdf5_by_any_of_its_endings(tmp_path, ending):
    h5(tmp_path / f"patient001_frame01{ending}")
    h5(tmp_path / f"patient021_frame01_slice_0{ending}", IMAGE[0])
    assert open_dataset("wsl4mis", tmp_path).patients == ("patient001", "patient021")
    assert [len(case.image) for case in wsl4mis(tmp_path).cases()] == [len(IMAGE), 1]


@pytest.mark.parametrize("first, second, what", [
    ("patient001_frame01_slice_1.h5", "patient001_frame01_slice_01.h5", "slice 1"),
    ("patient001_frame01.h5", "ACDC_training_volumes/patient001_frame01.h5", "volume"),
    ("patient001_frame01.h5", "patient001_frame01.hdf5", "volume")])
def test_two_files_of_one_volume_or_slice_are_refused(tmp_path, first, second, what):
    for name in (first, second):
        h5(tmp_path / name)
    with pytest.raises(DataError, match=f"found a second {what} of patient001_frame01, expected only ") as raised:
        wsl4mis(tmp_path)
    assert str(tmp_path / first) in str(raised.value) and str(tmp_path / second) in str(raised.value)


@pytest.mark.parametrize("first, second, words", [
    ("label_01.nii.gz", "label_01.nii", "label of patient 1"), ("image_02.nii", "image_2.nii", "image of patient 2")])
def test_two_files_of_one_patient_of_chaos_are_refused(tmp_path, first, second, words):
    for name in ("image_01.nii", "label_01.nii", first, second):
        put(tmp_path / name, nifti(IMAGE))
    if "01" in first:
        (tmp_path / "label_01.nii").replace(tmp_path / second)
    with pytest.raises(DataError, match=f"found a second {words}, expected only ") as raised:
        chaos(tmp_path)
    assert first in str(raised.value) and second in str(raised.value)


def test_two_folders_of_one_patient_of_chaos_are_refused(tmp_path):
    for name in ("2", "02", "3"):
        (tmp_path / f"Train_Sets/MR/{name}/T1DUAL").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "CHAOS_Train_Sets.zip", "w") as archive:
        for name in ("2", "02", "3"):
            archive.writestr(f"Train_Sets/MR/{name}/T1DUAL/notes.txt", "")
    for root in (tmp_path, tmp_path / "CHAOS_Train_Sets.zip"):
        with pytest.raises(DataError, match=r"found a second folder of patient 2, expected only .*MR/0?2"):
            chaos(root)


@pytest.mark.parametrize("name, right", [
    ("Patient021", "patient021"), ("patient021 (1)", "patient021"), ("patient021 - Copy", "patient021"),
    ("patient021_copy", "patient021"), ("patient001/patient001_Frame12.nii", "patient001_frame12"),
    ("patient001/patient001_frame01_scribbles.nii", "patient001_frame01_scribble"),
    ("patient001/patient001_frame12_GT.nii.gz", "patient001_frame12_gt"),
    ("patient001/patient001_frame12 (1).nii.gz", "patient001_frame12")])
def test_a_name_that_is_almost_acdcs_is_refused(tmp_path, name, right):
    nii(tmp_path)
    put(tmp_path / name, nifti(IMAGE)) if ".nii" in name else (tmp_path / "patient021").rename(tmp_path / name)
    with pytest.raises(DataError, match=f"found a name that is almost right, expected {right}, or a name ") as raised:
        acdc(tmp_path)
    assert str(raised.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["patient021_Frame01.h5", "Patient021_frame01_slice_0.h5",
                                  "patient021_frame01 (1).h5"])
def test_a_name_that_is_almost_wsl4mis_is_refused(tmp_path, name):
    h5(tmp_path / "patient001_frame01.h5")
    h5(tmp_path / name)
    with pytest.raises(DataError, match="found a name that is almost right, expected patient021_frame01"):
        wsl4mis(tmp_path)


def test_other_files_and_folders_of_acdc_are_left_alone(tmp_path):
    nii(tmp_path)
    for name in ("patient001_4d.nii.gz", "Info.cfg", "MANDATORY_CITATION.md", ".DS_Store", "._patient001_frame01.nii",
                 "patient001_frame01_prediction.nii.gz"):
        put(tmp_path / "patient001" / name, b"of no interest")
    for name in ("patient_list", "patients", "notes", "patient", ".patient022"):
        (tmp_path / name).mkdir()
    (tmp_path / "patient021 (1).zip").write_bytes(b"")
    assert [case.name for case in acdc(tmp_path).cases()] == ["patient001_frame01", "patient021_frame01"]


# ---------------------------------------------------------------- an sform without sizes, as ACDC's release has it
@pytest.mark.parametrize("codes", [(0, 1), (1, 1), (0, 2), (2, 1)])
def test_an_sform_of_directions_alone_takes_its_sizes_from_pixdim(tmp_path, codes):
    sform = {"_280": ("12f", -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0), "_256": ("3f", 0, 0, 1)}  # the qform: half a turn
    for end, volume in (("", IMAGE), ("_gt", LABEL), ("_scribble", np.where(SCRIBBLE == 255, 4, SCRIBBLE))):
        put(tmp_path / f"patient001/patient001_frame01{end}.nii.gz",
            nifti(volume.astype(volume.dtype if not end else np.uint8), (1.5, 1.25, 10), "mm", codes, **sform))
    (case,) = acdc(tmp_path).cases()
    assert case.spacing_mm == pytest.approx((10, 1.25, 1.5))
    np.testing.assert_allclose(case.affine, np.diag([-1.5, -1.25, 10, 1]), rtol=1e-6)
    (scan,) = (read_scan([path]) for path in tmp_path.rglob("*frame01.nii.gz"))
    assert scan.spacing_mm == pytest.approx((10, 1.25, 1.5)) and not [r for r in scan.remarks if "qform" in r]
    written = read_scan([save_mask(LABEL + 1, case, tmp_path / "mask.nii.gz")])
    np.testing.assert_allclose(written.affine, scan.affine, rtol=1e-6, err_msg="it overlays")


def test_another_sform_that_contradicts_pixdim_is_still_refused(tmp_path):
    path = put(tmp_path / "a.nii.gz", nifti(IMAGE, (1.5, 1.25, 10), _280=("12f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)))
    with pytest.raises(DataError, match=r"pixdim\[1\]: found 1.5 mm, and 1 mm in srow_x"):
        read_nifti(path)


# ---------------------------------------------------------------- what is no header is said so
@pytest.mark.parametrize(("content", "words"), [
    (b"", r"an unreadable file \(0 bytes\)"), (nifti(IMAGE)[:300], r"an unreadable file \(300 bytes\)"),
    (gzip.compress(nifti(IMAGE)), "a file that is compressed twice"),
    (b"NRRD0004\n" + bytes(1000), "no NIfTI header at its start"),
    (nifti(IMAGE, _40=("h", 9)), r"dim\[0\]: found 9 axes, expected 1 to 7"),
    (nifti(IMAGE, _40=("h", -3)), r"dim\[0\]: found -3 axes"),
])
def test_what_does_not_begin_as_nifti_is_said_so(tmp_path, content, words):
    for name in ("a.nii.gz", "a.nii")[:1 + (content[:2] != b"\x1f\x8b")]:
        with pytest.raises(DataError, match=f"{name}.*{words}"):
            read_nifti(put(tmp_path / name, content))
