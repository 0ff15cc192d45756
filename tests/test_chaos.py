"""CHAOS: DICOM slices in any order and with any fault, label pictures, the release, its zip, the NIfTI conversion."""

import itertools
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image, features
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless, generate_uid

from attenscribble.basics.errors import DataError
from attenscribble.data.chaos import (
    CHAOS_CLASSES,
    CHAOS_FOLDS,
    CHAOS_IGNORE,
    chaos,
    read_series,
    write_slice,
)
from attenscribble.data.datasets import find_dataset, open_dataset
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import scale_intensities
from attenscribble.runs.config import Config
from attenscribble.runs.inference import save_mask
from attenscribble.runs.run import run_experiment
from attenscribble.runs.setup import resolve

AXIAL = (1, 0, 0, 0, 1, 0)
GAP, SPACING = 7.7, (1.25, 1.5)  # mm from slice to slice; (y,x)
GRAY = np.array([0, 63, 126, 189, 252], np.uint8)


@pytest.fixture(scope="module")
def heart():
    "Intensities (6,46,44) uint16 as a scanner stores them, and label with all five classes, of a phantom patient."
    case = phantom(patients=1, side=48, slices=6).read("patient001")[0]
    label = case.label.copy()
    label[:, 2:6, 2:8] = 4
    noise = np.random.default_rng(0).integers(0, 99, label.shape, np.uint16)
    return (1000 * case.image).astype(np.uint16) + noise, label


def positions(count, orientation=AXIAL, gap=GAP, first=(-30.0, -20.0, 10.0)):
    "Places of slices along the normal."
    normal = np.cross(orientation[:3], orientation[3:])
    return [np.add(first, k * gap * normal) for k in range(count)]


def write_stack(folder: Path, volume, names=None, orientation=AXIAL, **fields):
    "A slice a file; each of `fields` is a value for all, or a function of the slice's number."
    for k, (plane, place) in enumerate(zip(volume, positions(len(volume), orientation), strict=True)):
        values = {name: value(k) if callable(value) else value for name, value in fields.items()}
        name = names[k] if names else f"IMG-0002-{k + 1:05d}"
        write_slice(folder / f"{name}.dcm", plane, place, orientation=orientation, spacing_mm=SPACING,
                    **{"SliceThickness": 5.0, **values})
    return folder


def write_ground(folder: Path, label, names):
    folder.mkdir(parents=True, exist_ok=True)
    for plane, name in zip(GRAY[label], names, strict=True):
        Image.fromarray(plane).save(folder / f"{name}.png")


def write_patient(folder: Path, volume, label):
    "One patient as in the release: names run from top to bottom, and T1-DUAL counts through both echoes."
    down = range(len(volume) - 1, -1, -1)
    dual = {phase: [f"IMG-0004-{2 * k + n:05d}" for k in down] for n, phase in enumerate(("OutPhase", "InPhase"), 1)}
    scans = folder / "T1DUAL" / "DICOM_anon"
    uid = generate_uid()
    write_stack(scans / "InPhase", volume, dual["InPhase"], EchoTime=4.6, SeriesInstanceUID=uid)
    write_stack(scans / "OutPhase", volume // 2 + 7, dual["OutPhase"], EchoTime=2.3, SeriesInstanceUID=uid)
    write_ground(folder / "T1DUAL" / "Ground", label, dual["InPhase"])
    spir = [f"IMG-0007-{k + 1:05d}" for k in down]
    write_stack(folder / "T2SPIR" / "DICOM_anon", volume[:, ::-1], spir, EchoTime=70.0)
    write_ground(folder / "T2SPIR" / "Ground", label[:, ::-1], spir)
    return folder


@pytest.fixture
def release(tmp_path, heart):
    "Two patients of different folds, below Train_Sets/MR."
    for number in (1, 15):
        write_patient(tmp_path / "CHAOS" / "Train_Sets" / "MR" / str(number), *heart)
    return tmp_path / "CHAOS"


def patient_folder(release, number=1) -> Path:
    return release / "Train_Sets" / "MR" / str(number)


def read_one(root, **options):
    dataset = chaos(root, **options)
    return dataset.read(dataset.patients[0])[0]


# ---------------------------------------------------------------- order, distance, place
@pytest.mark.parametrize("seed", range(3))
def test_shuffled_names_and_numbers_do_not_matter(tmp_path, heart, seed):
    order = np.random.default_rng(seed).permutation(len(heart[0]))
    names = [f"{n:03d}" for n in order]
    write_stack(tmp_path, heart[0], names, InstanceNumber=lambda k: 99 - k, SliceLocation=lambda k: -k)
    series = read_series(tmp_path)
    np.testing.assert_array_equal(series.volume, heart[0])
    assert series.names == tuple(f"{name}.dcm" for name in names)


def test_the_distance_comes_from_positions_not_from_thickness(tmp_path, heart):
    series = read_series(write_stack(tmp_path, heart[0], SliceThickness=5.0, SpacingBetweenSlices=6.0))
    assert series.spacing_mm == pytest.approx((GAP, *SPACING))


ORIENTATIONS = {"axial": AXIAL, "upside down": (1, 0, 0, 0, -1, 0), "coronal": (1, 0, 0, 0, 0, -1),
                "sagittal": (0, 1, 0, 0, 0, -1), "mirrored": (-1, 0, 0, 0, 1, 0),
                "oblique": (0.8, 0.6, 0, -0.36, 0.48, 0.8)}


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_voxel_lies_where_simpleitk_puts_it(tmp_path, heart, orientation):
    sitk = pytest.importorskip("SimpleITK")
    order = np.random.default_rng(1).permutation(len(heart[0]))
    series = read_series(write_stack(tmp_path, heart[0], [str(n) for n in order], orientation))
    scan = sitk.ReadImage([str(tmp_path / name) for name in series.names])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(scan), series.volume)
    assert scan.GetSpacing()[::-1] == pytest.approx(series.spacing_mm, abs=1e-5)
    for voxel in itertools.product((0, 5), (0, 7), (0, 1, 5)):
        left, back, up = scan.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose((series.affine @ [*voxel, 1])[:3], [-left, -back, up], atol=1e-4)


def test_a_mask_is_written_where_the_scan_lies(release, tmp_path):
    case = read_one(release)
    written = nib.load(save_mask(case.label, case, tmp_path / "mask.nii.gz"))
    np.testing.assert_allclose(written.affine, case.affine, atol=1e-5)
    assert written.header.get_zooms() == pytest.approx((1.5, 1.25, 7.7))
    np.testing.assert_allclose(case.affine @ [0, 0, 1, 1], [30, 20, 17.7, 1])


def test_slope_and_intercept_of_each_slice_are_applied(tmp_path, heart):
    volume = heart[0]
    plain = read_series(write_stack(tmp_path / "plain", volume, RescaleSlope=1.0, RescaleIntercept=0.0)).volume
    assert plain.dtype == np.uint16
    scaled = read_series(write_stack(tmp_path / "scaled", volume, RescaleSlope=lambda k: 0.5 + k,
                                     RescaleIntercept=lambda k: -k)).volume
    expected = np.stack([(0.5 + k) * plane - k for k, plane in enumerate(volume)])
    assert scaled.dtype == np.float64
    np.testing.assert_allclose(scaled, expected)


def test_signed_and_twelve_bit_pixels(tmp_path):
    signed = np.array([[[-5, 7], [0, 2047]]] * 2, np.int16)
    series = read_series(write_stack(tmp_path / "signed", signed, PixelRepresentation=1))
    np.testing.assert_array_equal(series.volume, signed)
    twelve = read_series(write_stack(tmp_path / "twelve", np.full((2, 3, 3), 4095), BitsStored=12, HighBit=11))
    assert (twelve.volume == 4095).all()


def test_what_is_no_slice_is_left_alone(tmp_path, heart):
    write_stack(tmp_path, heart[0])
    (tmp_path / "IMG-0002-00001.dcm").rename(tmp_path / "IMG-0002-00001.DCM")
    (tmp_path / "._IMG-0002-00002.dcm").write_bytes(b"left by an archiver")
    (tmp_path / "notes.txt").write_text("axial")
    np.testing.assert_array_equal(read_series(tmp_path).volume, heart[0])


# ---------------------------------------------------------------- faults of a series
def rewrite(path: Path, **fields):
    "Change a written slice; None takes a field out."
    header = pydicom.dcmread(path)
    for name, value in fields.items():
        setattr(header, name, value)
        if value is None:
            delattr(header, name)
    header.save_as(path)


SECOND, THIRD = "IMG-0002-00002.dcm", "IMG-0002-00003.dcm"
BETWEEN = [-30, -20, 10 + 1.5 * GAP]
FAULTS = {
    "missing slice": (lambda f: (f / THIRD).unlink(),
                      r"15.40 mm from IMG-0002-00002.dcm to IMG-0002-00004.dcm, expected 7.70 mm.*slice missing"),
    "two at one place": (lambda f: shutil.copy(f / THIRD, f / "copy.dcm"),
                         r"IMG-0002-00003.dcm and copy.dcm at the same place, 25.4 mm|copy.dcm and IMG-0002-00003.dcm"),
    "a slice in between": (lambda f: rewrite(f / SECOND, ImagePositionPatient=BETWEEN), "mm from IMG-0002-0000"),
    "mixed echoes": (lambda f: rewrite(f / THIRD, EchoTime=2.3), r"EchoTime 4.6 in IMG-.*1.dcm and 2.3 in IMG-.*3.dcm"),
    "an echo without a time": (lambda f: rewrite(f / THIRD, EchoTime=None), "EchoTime 4.6 in .* and None in .*3.dcm"),
    "another orientation": (lambda f: rewrite(f / THIRD, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
                            r"ImageOrientationPatient \[1, 0, 0, 0, 1, 0\] in .*1.dcm and \[0.*, 1.*3.dcm, expected"),
    "another pixel size": (lambda f: rewrite(f / THIRD, PixelSpacing=[1, 1]), r"PixelSpacing \[1.25, 1.5\] in .*3.dcm"),
    "another matrix": (lambda f: write_slice(f / THIRD, np.zeros((8, 9)), positions(6)[2], spacing_mm=SPACING),
                       "Rows .* in IMG-0002-00001.dcm and 8 in IMG-0002-00003.dcm"),
    "two series": (lambda f: [rewrite(path, SeriesInstanceUID="1.2" if path.name < THIRD else "1.3")
                              for path in f.iterdir()], "2 values of SeriesInstanceUID in 6 files"),
    "shifted sideways": (lambda f: rewrite(f / SECOND, ImagePositionPatient=[-20, -20, 10 + GAP]),
                         r"IMG-0002-00002.dcm shifted sideways by 10.0 mm"),
    "no position": (lambda f: rewrite(f / THIRD, ImagePositionPatient=None), "3.dcm: found no ImagePositionPatient"),
    "no pixels": (lambda f: rewrite(f / THIRD, PixelData=None), "3.dcm: found no PixelData"),
    "skewed axes": (lambda f: [rewrite(path, ImageOrientationPatient=[1, 0, 0, 1, 1, 0]) for path in f.iterdir()],
                    "expected two directions of length 1 at a right angle"),
    "no DICOM": (lambda f: (f / THIRD).write_text("a letter"), "3.dcm: found an unreadable file .InvalidDicomError"),
    "cut off": (lambda f: (f / THIRD).write_bytes((f / THIRD).read_bytes()[:-200]), "3.dcm: found pixels stored as"),
    "empty file": (lambda f: (f / THIRD).write_bytes(b""), "3.dcm: found an unreadable file"),
    "colour": (lambda f: rewrite(f / THIRD, PhotometricInterpretation="MONOCHROME1"),
               "3.dcm: found MONOCHROME1 pixels of shape .*, expected one slice, MONOCHROME2"),
    "several frames": (lambda f: rewrite(f / THIRD, NumberOfFrames=2, PixelData=bytes(2 * 2 * 46 * 44)),
                       r"3.dcm: NumberOfFrames: found 2, expected one slice a file"),
    "one slice": (lambda f: [path.unlink() for path in f.iterdir() if path.name != THIRD], "found 1 .dcm files"),
    "no folder": (lambda f: shutil.rmtree(f), "found no such folder, expected at least two"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_series_is_named(tmp_path, heart, fault):
    spoil, message = FAULTS[fault]
    folder = write_stack(tmp_path / "scan", heart[0], EchoTime=4.6)
    np.testing.assert_array_equal(read_series(folder).volume, heart[0])
    spoil(folder)
    with pytest.raises(DataError, match=message) as raised:
        read_series(folder)
    assert str(folder) in str(raised.value)


def test_a_number_for_each_file_is_no_fault(tmp_path, heart):
    write_stack(tmp_path, heart[0], SeriesInstanceUID=lambda k: f"1.2.{k + 1}")
    np.testing.assert_array_equal(read_series(tmp_path).volume, heart[0])


def test_positions_may_be_rounded(tmp_path, heart):
    folder = write_stack(tmp_path, heart[0])
    rewrite(folder / THIRD, ImagePositionPatient=[-30.2, -20, 10 + 2.05 * GAP])
    assert read_series(folder).spacing_mm[0] == pytest.approx(GAP)


def compress(path: Path, syntax):
    header = pydicom.dcmread(path)
    if syntax == JPEG2000Lossless:
        picture = path.with_suffix(".j2k")
        Image.fromarray(header.pixel_array).save(picture, format="JPEG2000", irreversible=False, no_jp2=True)
        header.PixelData = encapsulate([picture.read_bytes()])
        header["PixelData"].VR = "OB"
        header.file_meta.TransferSyntaxUID = syntax
    else:
        header.compress(RLELossless)
        header.file_meta.TransferSyntaxUID = syntax
    header.save_as(path)


@pytest.mark.parametrize("syntax", [RLELossless, pytest.param(JPEG2000Lossless, marks=pytest.mark.skipif(
    not features.check("jpg_2000"), reason="this Pillow lacks JPEG 2000"))], ids=["RLE", "JPEG 2000"])
def test_compressed_slices_are_read_where_a_decoder_is_there(tmp_path, heart, syntax):
    folder = write_stack(tmp_path, heart[0])
    for path in sorted(folder.glob("*.dcm")):
        compress(path, syntax)
    np.testing.assert_array_equal(read_series(folder).volume, heart[0])


def test_a_compression_nothing_can_undo_is_named(tmp_path, heart):
    folder = write_stack(tmp_path, heart[0])
    compress(folder / THIRD, JPEGLosslessSV1)
    with pytest.raises(DataError, match=rf"{THIRD}: found pixels stored as JPEG Lossless") as raised:
        read_series(folder)
    if not __import__("importlib.util").util.find_spec("pylibjpeg"):
        assert str(JPEGLosslessSV1) in str(raised.value) and "pylibjpeg-libjpeg" in str(raised.value)


# ---------------------------------------------------------------- labels
def test_a_label_lies_on_its_slice_although_names_run_the_other_way(release, heart):
    case = read_one(release)
    np.testing.assert_array_equal(case.label, heart[1])
    np.testing.assert_array_equal(case.image, scale_intensities(heart[0]))
    assert set(np.unique(case.label)) == {0, 1, 2, 3, 4}


def test_labels_may_be_linked_by_their_running_number(release, heart):
    ground = patient_folder(release) / "T1DUAL" / "Ground"
    for path in list(ground.iterdir()):
        path.rename(ground / f"label-{int(path.stem[-5:])}.png")
    np.testing.assert_array_equal(read_one(release).label, heart[1])


@pytest.mark.parametrize("low_high, class_id", [((55, 70), 1), ((110, 135), 2), ((175, 200), 3), ((240, 255), 4)])
def test_grays_are_ranges(release, low_high, class_id):
    path = next((patient_folder(release) / "T1DUAL" / "Ground").iterdir())
    values = np.array(Image.open(path))
    for value in low_high:
        values[:] = value
        Image.fromarray(values).save(path)
        assert class_id in {int(plane[0, 0]) for plane in read_one(release).label if (plane == plane[0, 0]).all()}
    for value in (low_high[0] - 1, low_high[1] + 1):
        if value < 256:
            values[0, 0] = value
            Image.fromarray(values).save(path)
            with pytest.raises(DataError, match=rf"{path.name}: found the values {value} \(1×\), expected 0, 55–70"):
                read_one(release)


def test_gray_in_colour_is_gray(release, heart):
    for path in (patient_folder(release) / "T1DUAL" / "Ground").iterdir():
        Image.open(path).convert("RGB").save(path)
    np.testing.assert_array_equal(read_one(release).label, heart[1])


LABEL = "IMG-0004-00004"
GROUND_FAULTS = {
    "no folder": (shutil.rmtree, "Ground: found no such folder, expected the labels"),
    "empty": (lambda g: [path.unlink() for path in g.iterdir()], "Ground: found no PNG file"),
    "one too few": (lambda g: (g / f"{LABEL}.png").unlink(),
                    rf"Ground: found 5 PNG files for 6 slices; without a partner: {LABEL}.dcm, expected one a slice"),
    "one too many": (lambda g: shutil.copy(g / f"{LABEL}.png", g / "IMG-0004-00099.png"),
                     "found 7 PNG files for 6 slices; without a partner: IMG-0004-00099.png"),
    "other names": (lambda g: [path.rename(g / f"{n}.png") for n, path in enumerate(sorted(g.iterdir()))],
                    "6 PNG files for 6 slices; without a partner: 0.png, 1.png, 2.png, 3.png …"),
    "one number twice": (lambda g: [shutil.move(path, g / f"{name}{int(path.stem[-5:])}.png")
                                    for path, name in zip(sorted(g.iterdir()), "aabbbb", strict=True)]
                         + [shutil.copy(g / "a2.png", g / "c2.png")], "found 7 PNG files for 6 slices"),
    "another shape": (lambda g: Image.fromarray(np.zeros((5, 6), np.uint8)).save(g / f"{LABEL}.png"),
                      rf"{LABEL}.png: found shape \(5, 6\), expected that of the slices"),
    "cut off": (lambda g: (g / f"{LABEL}.png").write_bytes((g / f"{LABEL}.png").read_bytes()[:60]),
                rf"{LABEL}.png: found an unreadable file"),
    "no picture": (lambda g: (g / f"{LABEL}.png").write_text("a letter"), rf"{LABEL}.png: found an unreadable file"),
}


@pytest.mark.parametrize("fault", GROUND_FAULTS)
def test_a_fault_of_the_labels_is_named(release, fault):
    spoil, message = GROUND_FAULTS[fault]
    spoil(patient_folder(release) / "T1DUAL" / "Ground")
    with pytest.raises(DataError, match=message):
        read_one(release)


def test_a_slice_missing_at_the_end_leaves_a_label_over(release):
    scans = patient_folder(release) / "T1DUAL" / "DICOM_anon" / "InPhase"
    sorted(scans.iterdir())[0].unlink()
    with pytest.raises(DataError, match=r"6 PNG files for 5 slices; without a partner: IMG-0004-00002.png"):
        read_one(release)


# ---------------------------------------------------------------- the release
def test_sequences_and_phases(release, heart):
    volume, label = heart
    first = read_one(release)
    assert first.name == "chaos01_t1in" and first.spacing_mm == pytest.approx((GAP, *SPACING))
    out, both = read_one(release, phase="out"), read_one(release, phase="both")
    assert (out.name, both.name) == ("chaos01_t1out", "chaos01_t1both")
    np.testing.assert_array_equal(out.image, scale_intensities(volume // 2 + 7))
    np.testing.assert_array_equal(both.image, np.stack([first.image, out.image], 1))
    np.testing.assert_array_equal(out.label, label)
    spir = read_one(release, sequence="t2spir")
    assert spir.name == "chaos01_t2spir" and spir.channels == 1
    np.testing.assert_array_equal(spir.image, scale_intensities(volume[:, ::-1]))
    np.testing.assert_array_equal(spir.label, label[:, ::-1])


def test_the_dataset_says_what_it_is(release):
    dataset = chaos(release)
    assert dataset.name == "chaos" and dataset.augmentation == "chaos" and dataset.channels == 1
    assert dataset.class_names == CHAOS_CLASSES == ("background", "LIV", "RK", "LK", "SPL")
    assert dataset.ignore == CHAOS_IGNORE == 5 and dataset.patients == ("chaos01", "chaos15")
    assert dataset.folds == {1: ("chaos01",), 2: ("chaos15",)}
    assert dataset.options == {"sequence": "t1dual", "phase": "in", "scribbles": "paper", "seed": 0}
    assert "sequence t1dual, phase in, scribbles paper, seed 0" in dataset.source and "CC BY-NC-SA" in dataset.source
    spir = chaos(release, sequence="t2spir", scribbles="none", seed=3)
    assert spir.options == {"sequence": "t2spir", "scribbles": "none", "seed": 3}
    assert chaos(release, phase="both").channels == 2


def test_folds_are_the_released_codes():
    assert [len(test) for test in CHAOS_FOLDS.values()] == [7, 7, 6]
    assert CHAOS_FOLDS[1] == (1, 2, 3, 5, 8, 10, 13) and CHAOS_FOLDS[3] == (33, 34, 36, 37, 38, 39)
    assert len({n for test in CHAOS_FOLDS.values() for n in test}) == 20


def test_out_phase_on_another_grid_is_refused(release, heart):
    scans = patient_folder(release) / "T1DUAL" / "DICOM_anon" / "OutPhase"
    for path in scans.iterdir():
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        rewrite(path, ImagePositionPatient=[x, y, z + 2])
    assert read_one(release).name == "chaos01_t1in"  # nobody asked for it
    for phase in ("out", "both"):
        with pytest.raises(DataError, match=r"OutPhase: found .* mm, expected the grid of InPhase, \(6, "):
            read_one(release, phase=phase)


@pytest.mark.parametrize("below", ["", "Train_Sets", "Train_Sets/MR"])
def test_the_release_is_found_at_any_level(release, below):
    assert chaos(release / below).patients == ("chaos01", "chaos15")


@pytest.mark.parametrize("inside", ["", "CHAOS_Train_Sets/"])
def test_the_zip_holds_the_same(release, tmp_path, inside):
    target = tmp_path / "zipped"
    shutil.copytree(release / "Train_Sets", tmp_path / "tree" / inside / "Train_Sets")
    shutil.make_archive(str(target / "CHAOS_Train_Sets"), "zip", tmp_path / "tree")
    expected = read_one(release, phase="both")
    for root in (target, target / "CHAOS_Train_Sets.zip"):
        found = read_one(root, phase="both")
        for field in ("image", "label", "scribble", "affine"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        assert found.source.rstrip("/").endswith(f"CHAOS_Train_Sets.zip/{inside}Train_Sets/MR/1/T1DUAL")


def test_faults_inside_a_zip_are_named(release, tmp_path):
    ground = patient_folder(release) / "T1DUAL" / "Ground"
    Image.fromarray(np.full((4, 4), 90, np.uint8)).save(ground / f"{LABEL}.png")
    archive = Path(shutil.make_archive(str(tmp_path / "CHAOS_Train_Sets"), "zip", release))
    with pytest.raises(DataError, match=rf"Sets.zip/Train_Sets/MR/1/T1DUAL/Ground/{LABEL}.png: found shape \(4, 4\)"):
        read_one(archive)
    archive.write_bytes(archive.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"CHAOS_Train_Sets.zip: found an unreadable file .*, expected a complete zip"):
        chaos(archive)
    shutil.make_archive(str(tmp_path / "CHAOS_Train_Sets"), "zip", ground)
    with pytest.raises(DataError, match=r"CHAOS_Train_Sets.zip: found no patient"):
        chaos(archive)


def test_wrong_roots_patients_and_options_are_named(release, tmp_path):
    with pytest.raises(DataError, match="nowhere: found no such folder, expected Train_Sets/MR/1/T1DUAL and so on"):
        chaos(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: found no patient"):
        chaos(tmp_path / "empty")
    with pytest.raises(ValueError, match="sequence: found 'T1DUAL', expected one of t1dual, t2spir; did"):
        chaos(release, sequence="T1DUAL")
    with pytest.raises(ValueError, match="phase: found 'inphase', expected one of in, out, both"):
        chaos(release, phase="inphase")
    with pytest.raises(ValueError, match="phase: found 'out', expected 'in': T2-SPIR has one image"):
        chaos(release, sequence="t2spir", phase="out")
    shutil.copytree(patient_folder(release), patient_folder(release, 4))
    with pytest.raises(DataError, match="CHAOS: found patient 4, expected only those of the folds"):
        chaos(release)
    shutil.rmtree(patient_folder(release, 4))
    shutil.rmtree(patient_folder(release, 15) / "T1DUAL")
    with pytest.raises(DataError, match=r"MR/15: found T2SPIR, expected a folder T1DUAL"):
        chaos(release)
    assert chaos(release, sequence="t2spir").patients == ("chaos01", "chaos15")


# ---------------------------------------------------------------- scribbles
def test_scribbles_come_from_a_function_of_label_and_name(release, heart):
    asked = []

    def hand(label, name):
        asked.append(name)
        return np.where(label > 0, label, CHAOS_IGNORE).astype(np.uint8)

    dataset = chaos(release, scribbles=hand)
    cases = list(dataset.cases())
    assert asked == ["chaos01_t1in", "chaos15_t1in"] and "scribbles" not in dataset.options
    for case in cases:
        np.testing.assert_array_equal(case.scribble, np.where(heart[1] > 0, heart[1], 5))
    assert read_one(release, scribbles="none").scribble is None
    with pytest.raises(TypeError, match="found the options thickness, expected none"):
        chaos(release, scribbles="none", thickness=3)


def test_the_simulated_hand_is_seeded_and_never_wrong(release):
    first, again, other = read_one(release), read_one(release), read_one(release, seed=1)
    np.testing.assert_array_equal(first.scribble, again.scribble)
    assert first.scribble.dtype == np.uint8 and 0 < np.mean(first.scribble != CHAOS_IGNORE) < 0.5
    drawn = other.scribble != CHAOS_IGNORE
    np.testing.assert_array_equal(other.scribble[drawn], other.label[drawn])
    assert set(np.unique(other.scribble[drawn])) == set(range(5))


def test_a_wrong_hand_is_refused_at_once(release):
    with pytest.raises(ValueError, match="papier"):
        chaos(release, scribbles="papier")
    with pytest.raises((TypeError, ValueError), match="thikness"):
        chaos(release, thikness=3)


# ---------------------------------------------------------------- the NIfTI conversion
def write_conversion(folder: Path, volume, label, number="01", affine=None):
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.5, 1.25, GAP, 1]) if affine is None else affine
    nib.save(nib.Nifti1Image(volume.astype(np.int16).T, affine), folder / f"image_{number}.nii.gz")
    nib.save(nib.Nifti1Image(label.T, affine), folder / f"label_{number}.nii.gz")
    return folder


@pytest.mark.parametrize("numbers", [("01", "15"), ("1", "15")])
def test_the_conversion_is_t2spir_and_says_so(tmp_path, heart, numbers):
    for number in numbers:
        write_conversion(tmp_path, *heart, number)
    dataset = chaos(tmp_path)
    assert dataset.patients == ("chaos01", "chaos15") and dataset.folds == {1: ("chaos01",), 2: ("chaos15",)}
    assert dataset.options["sequence"] == "t2spir" and "phase" not in dataset.options
    assert "sequence t2spir" in dataset.source and "NIfTI conversion" in dataset.source
    case = dataset.read("chaos15")[0]
    assert case.name == "chaos15_t2spir" and case.spacing_mm == pytest.approx((GAP, 1.25, 1.5))
    np.testing.assert_array_equal(case.image, scale_intensities(heart[0][:, ::-1].astype(np.int16)))
    np.testing.assert_array_equal(case.label, heart[1][:, ::-1])
    np.testing.assert_allclose(case.affine, [[-1.5, 0, 0, 0], [0, -1.25, 0, 45 * 1.25], [0, 0, GAP, 0], [0, 0, 0, 1]])


def test_faults_of_the_conversion_are_named(tmp_path, heart):
    folder = write_conversion(tmp_path, *heart)
    with pytest.raises(DataError, match="found T2-SPIR only, expected the original release, for the sequence t1dual"):
        chaos(folder, sequence="t1dual")
    write_conversion(folder, heart[0], GRAY[heart[1]])
    with pytest.raises(DataError, match=r"label_01.nii.gz: found the values 63 \(.*expected 0, 1, 2, 3, 4"):
        read_one(folder)
    write_conversion(folder, *heart)
    nib.save(nib.Nifti1Image(heart[1].T, np.diag([1.5, 1.25, GAP, 1])), folder / "label_01.nii.gz")
    with pytest.raises(DataError, match=r"label_01.nii.gz: found an affine that moves voxels"):
        read_one(folder)
    (folder / "label_01.nii.gz").unlink()
    with pytest.raises(DataError, match=r"image_01.nii.gz: found no label of the same number"):
        read_one(folder)
    write_conversion(folder, *heart, "04")
    with pytest.raises(DataError, match="found patient 4"):
        chaos(folder)


@pytest.mark.parametrize("code", ["LAS", "RAS", "LPS", "PIR"])
def test_a_conversion_of_the_release_equals_the_release(release, heart, tmp_path, code):
    "Converters turn rows round and say so in the affine: voxels, places and scribbles are those of the release."
    slow = read_one(release, sequence="t2spir")
    folder = write_conversion(tmp_path / "nifti", heart[0][:, ::-1], heart[1][:, ::-1], affine=slow.affine)
    for path in folder.iterdir():
        scan = nib.load(path)
        turn = nib.orientations.ornt_transform(nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(code))
        nib.save(nib.Nifti1Image(np.asarray(scan.as_reoriented(turn).dataobj), scan.as_reoriented(turn).affine), path)
    assert nib.aff2axcodes(nib.load(folder / "image_01.nii.gz").affine) == tuple(code)
    fast = read_one(folder)
    for field in ("image", "label", "scribble"):
        np.testing.assert_array_equal(getattr(fast, field), getattr(slow, field))
    np.testing.assert_allclose(fast.affine, slow.affine, atol=1e-4)
    assert fast.spacing_mm == pytest.approx(slow.spacing_mm) and fast.name == slow.name


# ---------------------------------------------------------------- by name, from a configuration
@pytest.mark.parametrize("below", [".", "chaos", "CHAOS", "Train_Sets", "chaos/Train_Sets", "CHAOS/Train_Sets",
                                   "chaos/CHAOS_Train_Sets/Train_Sets"])
def test_chaos_is_found_by_name(release, tmp_path, below):
    data = tmp_path / "data"
    shutil.copytree(release / "Train_Sets" / "MR", data / below / "MR")
    assert open_dataset("chaos", data).patients == ("chaos01", "chaos15")


def test_the_zip_is_found_by_name_and_by_path(release, tmp_path, monkeypatch):
    archive = Path(shutil.make_archive(str(tmp_path / "data" / "chaos" / "CHAOS_Train_Sets"), "zip", release))
    for root in (tmp_path / "data", archive.parent, archive):
        assert open_dataset("chaos", root).options["sequence"] == "t1dual"
    monkeypatch.setenv("ATTENSCRIBBLE_DATA", str(tmp_path / "data"))
    assert find_dataset("chaos") == archive.parent


def test_the_release_is_preferred_to_the_conversion(release, tmp_path, heart):
    write_conversion(tmp_path / "chaos_t2spir", *heart)
    assert open_dataset("chaos", tmp_path / "chaos_t2spir").options["sequence"] == "t2spir"
    shutil.move(release, tmp_path / "chaos")
    assert open_dataset("chaos", tmp_path).options["sequence"] == "t1dual"


def test_options_from_the_command_line_reach_the_loader_and_the_name_of_the_run(release):
    given = {"dataset": "chaos", "profile": "mini", "root": str(release), "method": "pce"}
    plain = resolve(Config(**given)).config
    setup = resolve(Config(**given, data_sequence="t1dual", data_phase="in", data_seed=0))
    config, dataset = setup.config, setup.dataset
    assert plain == config and plain.run_id == config.run_id and plain.data["sequence"] == "t1dual"
    other = resolve(Config(**given, data_sequence="t2spir")).config
    assert other.run_id != plain.run_id and other.flat()["data_sequence"] == "t2spir"
    setup = resolve(Config(**given, data_phase="both"))
    both, dataset = setup.config, setup.dataset
    assert dataset.channels == 2 and both.run_id != plain.run_id


def test_a_run_on_chaos_says_which_images_it_used(release, tmp_path):
    config = Config(dataset="chaos", root=str(release), profile="mini", method="ours", size=48, batch=4,
                    iterations=2, log_every=1, asl_radius=1, output=str(tmp_path / "runs"), data_phase="both")
    outcome = run_experiment(config)
    result = json.loads((outcome.folder / "result.json").read_text())
    assert {row["case"] for row in result["cases"]} == {"chaos01_t1both"}
    assert result["settings"]["data_sequence"] == "t1dual" and "phase both" in result["data_source"]
    case = outcome.dataset.read("chaos01")[0]
    mask = nib.load(outcome.folder / "masks" / "chaos01_t1both.nii.gz")
    np.testing.assert_allclose(mask.affine, case.affine, atol=1e-4)
    assert mask.shape == case.shape[::-1]


# ---------------------------------------------------------------- the real thing
def test_the_real_conversion(data_root):
    folder = data_root / "chaos_t2spir"
    if not folder.is_dir():
        pytest.skip(f"needs chaos_t2spir/ in {data_root}")
    dataset = chaos(folder, scribbles="none")
    assert [len(test) for test in dataset.folds.values()] == [7, 7, 6] and len(dataset.patients) == 20
    for patient in dataset.patients[::5]:
        (case,) = dataset.read(patient)
        assert case.shape[1:] == (256, 256) and 31 <= case.shape[0] <= 46
        assert case.spacing_mm == pytest.approx((7.7, 1.25, 1.25), abs=0.01)
        assert set(np.unique(case.label)) == {0, 1, 2, 3, 4} and case.image.min() == 0 and case.image.max() == 1
        centre = [case.affine @ [*np.argwhere(case.label == c).mean(0)[::-1], 1] for c in range(5)]
        assert centre[2][0] > centre[3][0] + 80  # the right kidney lies to the right, in mm
        assert centre[1][0] > centre[4][0] + 80 and centre[1][2] > centre[2][2]  # liver right of the spleen, above
