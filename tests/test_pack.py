"""A dataset in one file: what goes in comes out, and whatever is not whole is refused."""

import base64
import dataclasses
import hashlib
import io
import json
import math
import os
import random
import zipfile

import nibabel as nib
import numpy as np
import pytest

from attenscribble.basics.errors import DataError
from attenscribble.data.datasets import open_dataset
from attenscribble.data.folder import folder
from attenscribble.data.pack import _seal, pack, write_pack
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import Dataset, content_changes, content_of
from attenscribble.entry.commands import main
from attenscribble.runs.config import Config
from attenscribble.runs.inference import load_mask, save_mask
from attenscribble.runs.run import run_experiment
from attenscribble.runs.setup import resolve


def small(**options) -> Dataset:
    return phantom(**{"patients": 5, "side": 48, "slices": 3} | options)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    "The file of a small phantom."
    return write_pack(small(), tmp_path_factory.mktemp("pack") / "phantom.pack.zip")


def assert_same_cases(dataset: Dataset, again: Dataset, levels: int = 255) -> None:
    for case, back in zip(dataset.cases(again.patients), again.cases(), strict=True):
        assert (case.patient, case.frame, case.spacing_mm) == (back.patient, back.frame, back.spacing_mm)
        assert back.image.dtype == np.float32 and back.image.shape == case.image.shape
        assert np.abs(case.image - back.image).max() <= 0.5 / levels + 1e-6
        for name in ("scribble", "label", "affine"):
            np.testing.assert_array_equal(getattr(case, name), getattr(back, name))
        assert (case.grid is None) == (back.grid is None)


def assert_same_facts(dataset: Dataset, again: Dataset) -> None:
    for field in dataclasses.fields(Dataset):
        if field.name not in ("read", "version", "source", "content"):
            assert getattr(again, field.name) == getattr(dataset, field.name), field.name
    assert again.source == f"{dataset.source} (packed at 8 bits)"
    assert len(again.version) == 16 and set(again.version) <= set("0123456789abcdef")


# ---- there and back


def test_the_phantom_comes_back(packed):
    assert_same_cases(small(), pack(packed))
    assert_same_facts(small(), pack(packed))


@pytest.mark.parametrize("levels", [1, 63, 100, 254])
def test_fewer_levels_are_smaller_and_no_further_off_than_promised(packed, tmp_path, levels):
    file = write_pack(small(), tmp_path / "a.zip", levels=levels)
    assert_same_cases(small(), pack(file), levels)
    assert file.stat().st_size < packed.stat().st_size and pack(file).source.endswith(f"(packed at {levels} levels)")


@pytest.mark.parametrize("levels", [0, 256])
def test_other_levels_are_refused(tmp_path, levels):
    with pytest.raises(ValueError, match=f"levels: found {levels}, expected 1 to 255"):
        write_pack(small(), tmp_path / "a.zip", levels=levels)
    assert not list(tmp_path.iterdir())


def test_the_same_dataset_gives_the_same_file_and_a_pack_of_a_pack_is_the_pack(packed, tmp_path):
    for dataset in (small(), pack(packed)):
        assert write_pack(dataset, tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    assert pack(write_pack(small(seed=1), tmp_path / "other.zip")).version != pack(packed).version


def test_channels_missing_masks_and_no_place_come_back(tmp_path):
    def read(patient):
        case, *_ = small().read(patient)
        two = np.ascontiguousarray(np.stack([case.image, 1 - case.image], 1))
        return [dataclasses.replace(case, image=two, scribble=None, spacing_mm=None, affine=None, frame="")]

    dataset = dataclasses.replace(small(), read=read, channels=2, scored=False, trains={1: ("patient002",)},
                                  options={"phase": "both", "seed": 3}, values=(0, 85, 170, 255),
                                  folds={1: ("patient001",), 2: ()})
    again = pack(write_pack(dataset, tmp_path / "a.zip"))
    assert_same_cases(dataset, again)
    assert again.options == dataset.options and again.values == dataset.values and again.channels == 2
    assert again.trains == dataset.trains and again.folds == dataset.folds and not again.scored
    alone = pack(write_pack(dataset, tmp_path / "a.zip", patients=["patient001"]))
    assert alone.folds == {1: ("patient001",)} and alone.trains == {1: ()}, "a fold that tests nobody is gone"


def test_content_tells_which_kind_of_data_changed(packed, tmp_path):
    def packed_with(name, levels=255, **changes):
        def read(patient):
            return [dataclasses.replace(case, **{kind: change(getattr(case, kind)) for kind, change in changes.items()})
                    if patient == "patient002" else case for case in small().read(patient)]
        return pack(write_pack(dataclasses.replace(small(), read=read), tmp_path / name, levels=levels))

    before = content_of(pack(packed), 1)
    assert all(set(kinds) == {"images", "scribbles", "labels"} for side in before.values() for kinds in side.values())
    assert content_of(packed_with("same.zip"), 1) == before
    for name, changes in (("images", {"image": lambda image: image / 2}), ("labels", {"label": np.zeros_like}),
                          ("scribbles", {"scribble": np.zeros_like})):
        now = content_of(packed_with(f"{name}.zip", **changes), 1)
        assert content_changes(before, now) == f"the {name} of patient002"
    unlabelled = packed_with("none.zip", label=lambda label: None)
    assert set(unlabelled.content("patient002")) == {"images", "scribbles"}
    coarse = content_changes(before, content_of(packed_with("coarse.zip", levels=100), 1))
    assert coarse.startswith("the images of patient001") and "labels" not in coarse


def test_some_patients(tmp_path):
    again = pack(write_pack(small(), tmp_path / "a.zip", patients=["patient003", "patient001"]))
    assert again.patients == ("patient003", "patient001")
    assert_same_cases(small(), again)
    kept = {fold: tuple(p for p in test if p in again.patients) for fold, test in small().folds.items()}
    assert again.folds == {fold: test for fold, test in kept.items() if test} and len(again.folds) == 2
    with pytest.raises(DataError, match="phantom: patient: found 'patient9', expected one of"):
        write_pack(small(), tmp_path / "b.zip", patients=["patient9"])
    with pytest.raises(DataError, match=r"patients: found \(\), expected at least one"):
        write_pack(small(), tmp_path / "b.zip", patients=[])
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.fixture
def scans(tmp_path):
    "A folder of scans that are stored otherwise than they are shown."
    for case in small(patients=2).cases():
        for kind, volume in (("images", case.image), ("scribbles", case.scribble), ("labels", case.label)):
            stored = nib.Nifti1Image(np.ascontiguousarray(volume.T), np.diag([-1.5, -1.5, 10, 1]))
            stored.header["descrip"] = b"Jane Doe"
            (tmp_path / "scans" / kind).mkdir(parents=True, exist_ok=True)
            turned = stored.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
            nib.save(turned, tmp_path / "scans" / kind / f"{case.name}.nii.gz")
    (tmp_path / "scans/dataset.json").write_text('{"ignore": 4, "patient": "patient[0-9]+"}')
    return tmp_path / "scans"


def test_masks_from_a_pack_open_at_the_same_place(scans, tmp_path):
    dataset = folder(scans)
    file = write_pack(dataset, tmp_path / "scans.pack.zip")
    again = pack(file)
    assert_same_cases(dataset, again)
    assert_same_facts(dataset, again)
    for case, back in zip(dataset.cases(), again.cases(), strict=True):
        assert (case.grid.shape, case.grid.axes, case.grid.flips, case.grid.plane) == (
            back.grid.shape, back.grid.axes, back.grid.flips, back.grid.plane)
        for which, one in (("a", case), ("b", back)):
            save_mask(case.label, one, tmp_path / f"{which}.nii.gz", dataset.values)
        first, second = (nib.load(tmp_path / f"{which}.nii.gz") for which in "ab")
        assert first.header.binaryblock == second.header.binaryblock
        np.testing.assert_array_equal(first.dataobj, second.dataobj)
        np.testing.assert_array_equal(load_mask(tmp_path / "b.nii.gz", back, dataset.values), case.label)
    with zipfile.ZipFile(file) as archive:
        text = archive.read("dataset.json").decode()
    headers = [base64.b64decode(scan["grid"]["header"]) for scan in json.loads(text)["scans"]]
    assert len(headers) == 4 and not any(b"Jane" in header for header in headers) and str(tmp_path) not in text


def test_numpy_alone_reads_it(packed):
    with np.load(packed, allow_pickle=False) as opened:
        assert len(opened.files) == 10 * 3 + 1
        np.testing.assert_array_equal(opened["patient001_frame01/label"], next(small().cases()).label)


# ---- what is not whole


def test_a_damaged_byte_anywhere_is_found(packed, tmp_path):
    content, chance = packed.read_bytes(), random.Random(0)
    ends = [0, 10, 25, len(content) - 1, len(content) - 64, len(content) - 65, len(content) - 66, len(content) - 80]
    for place in ends + chance.sample(range(len(content)), 60):
        flipped = content[place] ^ chance.choice([1, 0x40, 0xFF])
        (tmp_path / "bad.zip").write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        with pytest.raises(DataError, match=r"bad\.zip: found "):
            pack(tmp_path / "bad.zip")


@pytest.mark.parametrize("left", [0, 1, 63, 64, 65, 100, 5_000, -64, -1])
def test_a_file_that_broke_off_is_found(packed, tmp_path, left):
    (tmp_path / "bad.zip").write_bytes(packed.read_bytes()[:left])
    with pytest.raises(DataError, match=r"bad\.zip: found no checksum at its end, expected a pack"):
        pack(tmp_path / "bad.zip")


def test_another_zip_no_zip_a_folder_and_no_file(tmp_path):
    np.savez(tmp_path / "other.zip.npz", a=np.zeros(3))
    (tmp_path / "text.zip").write_text("hello" * 100)
    for name, found in (("other.zip.npz", "no checksum"), ("text.zip", "no checksum"), (".", "a folder"),
                        ("none.zip", "no such file")):
        with pytest.raises(DataError, match=f"{name}: found {found}"):
            pack(tmp_path / name)
    (tmp_path / "sealed.zip").write_bytes(b"x" * 500)
    _seal(tmp_path / "sealed.zip")
    with pytest.raises(DataError, match=r"sealed\.zip: found something unreadable \(BadZipFile"):
        pack(tmp_path / "sealed.zip")


def rewritten(packed, path, change=lambda content: None, drop=(), **members):
    "A sealed copy of a pack with dataset.json changed, and members left out or exchanged."
    with zipfile.ZipFile(packed) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(parts["dataset.json"])
    change(content)
    parts["dataset.json"] = json.dumps(content).encode()
    parts |= {name.replace("__", "/") + ".npy": data for name, data in members.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            if name not in drop:
                archive.writestr(name, data)
        archive.comment = b"0" * 64
    _seal(path)
    return path


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def first_label(content) -> dict:
    return content["scans"][0]["members"]["label"]


def fitting(data: bytes):
    "A change that makes dataset.json expect these bytes."
    return lambda content: first_label(content).update(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_a_rewritten_pack_opens(packed, tmp_path):
    assert_same_cases(small(), pack(rewritten(packed, tmp_path / "a.zip")))


@pytest.mark.parametrize("data, found", [
    (npy(np.zeros((3, 46, 44), np.uint16)), r"label\.npy: found uint16 \(3, 46, 44\), expected uint8 \(3, 46, 44\)"),
    (npy(np.zeros((3, 46, 43), np.uint8)), r"label\.npy: found uint8 \(3, 46, 43\), expected uint8 \(3, 46, 44\)"),
    (npy(np.zeros((3, 46, 44), np.uint8, order="F")), "expected uint8 .*, row by row"),
    (npy(np.zeros((3, 46, 44), np.uint8))[:-1], r"label\.npy: found uint8"),
    (npy(np.array([{}] * 3, object)), r"label\.npy: found object \(3,\), expected uint8"),
    (npy(np.zeros((3, 46, 44), np.uint8)).replace(b"(3, 46, 44)", b"(9999999999"), "something unreadable"),
    (b"", "found 0 bytes|size"),
    (b"no array", r"label\.npy: found something unreadable \(ValueError"),
])
def test_another_type_or_shape_is_refused(packed, tmp_path, data, found):
    path = rewritten(packed, tmp_path / "bad.zip", fitting(data), patient001_frame01__label=data)
    with pytest.raises(DataError, match=rf"bad\.zip: .*{found}" if data else r"bad\.zip: dataset\.json: scans\.0\.mem"):
        list(pack(path).cases())


def test_another_checksum_a_missing_member_and_a_wrong_size_name_the_member(packed, tmp_path):
    other = npy(np.zeros((3, 46, 44), np.uint8))
    with pytest.raises(DataError, match=r"bad\.zip: patient001_frame01/label\.npy: found SHA-256 \w+, expected \w+"):
        list(pack(rewritten(packed, tmp_path / "bad.zip", patient001_frame01__label=other)).cases())
    dropped = rewritten(packed, tmp_path / "bad.zip", drop=["patient002_frame10/image.npy"])
    list(pack(dropped).cases(["patient001"]))  # the others are whole
    with pytest.raises(DataError, match=r"bad\.zip: patient002_frame10/image\.npy: found no such member"):
        list(pack(dropped).cases(["patient002"]))
    with pytest.raises(DataError, match=r"bad\.zip: dataset\.json: found no such member"):
        pack(rewritten(packed, tmp_path / "bad.zip", drop=["dataset.json"]))


def test_a_claim_beyond_dataset_json_is_not_unpacked(packed, tmp_path):
    bomb = bytes(2**27)
    path = rewritten(packed, tmp_path / "bad.zip", patient001_frame01__label=bomb)
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match=r"label\.npy: found 134,217,728 bytes claimed, expected 6,200, as dat"):
        list(pack(path).cases())
    with pytest.raises(DataError, match=r"label\.npy: found 134,217,728 bytes in dataset\.json, expected at most "):
        list(pack(rewritten(packed, path, lambda content: first_label(content).update(size=2**27))).cases())

    def huge(content):
        first_label(content).update(size=2**40, shape=[2**20, 2**10, 2**10])

    with pytest.raises(DataError, match=r"label\.npy: found 1,099,511,627,776 bytes in dataset\.json"):
        list(pack(rewritten(packed, path, huge)).cases())


@pytest.mark.parametrize("change, found", [
    (lambda c: c.update(pack=2), r"pack: found 2, expected 1, the format"),
    (lambda c: c.pop("pack"), r"pack: found None, expected 1, the format"),
    (lambda c: c.update(levels=300), r"levels: found 300, expected Input should be less"),
    (lambda c: c["dataset"].pop("folds"), r"dataset\.folds: found .*Field required"),
    (lambda c: c["dataset"].update(more=1), r"dataset\.more: found 1, expected Extra inputs"),
    (lambda c: c["scans"][0].update(affine="x"), r"scans\.0\.affine: found 'x'"),
])
def test_another_format_or_field_is_named(packed, tmp_path, change, found):
    with pytest.raises(DataError, match=rf"bad\.zip: dataset\.json: {found}"):
        pack(rewritten(packed, tmp_path / "bad.zip", change))


@pytest.mark.parametrize("change, found", [
    (lambda c: c["scans"][0].update(grid={"header": "AAAA", "shape": [48, 48, 3], "axes": [2, 1, 0], "plane": "axial",
                                          "flips": [False] * 3}), "patient001_frame01: grid: found something unread"),
    (lambda c: c["scans"][0]["members"].pop("image"), "patient001_frame01: members: found scribble, label, expected"),
    (lambda c: c.update(levels=9), "patient001_frame01.*: image: found values from 0.0 to 28"),
    (lambda c: c["scans"][0].update(spacing_mm=[1, 0, 1]), "spacing_mm: found"),
])
def test_a_contradiction_is_found_on_reading(packed, tmp_path, change, found):
    with pytest.raises(DataError, match=found):
        list(pack(rewritten(packed, tmp_path / "bad.zip", change)).cases())


def test_two_cases_of_one_name_and_a_failing_loader_leave_no_file(tmp_path):
    twice = dataclasses.replace(small(), read=lambda patient: small().read("patient001"))
    with pytest.raises(DataError, match="patient001_frame01: found two cases of this name"):
        write_pack(twice, tmp_path / "a.zip")
    (tmp_path / "a.zip").write_text("old")

    def broken(patient):
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        write_pack(dataclasses.replace(small(), read=broken), tmp_path / "a.zip")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


# ---- in the place of the folder


def test_a_pack_is_opened_by_name(packed, scans, tmp_path):
    assert_same_facts(small(), open_dataset("phantom", packed))
    assert open_dataset("phantom", str(packed)).version == pack(packed).version
    with pytest.raises(DataError, match=r"phantom\.pack\.zip: found a pack of the dataset 'phantom', expected one of"):
        open_dataset("acdc", packed)
    with pytest.raises(DataError, match="found a pack of the dataset 'phantom', expected one of 'folder'"):
        open_dataset("folder", packed)
    mine = write_pack(folder(scans), tmp_path / "mine.zip")
    assert open_dataset("folder", mine).name == "scans"
    assert open_dataset("folder", mine, axis="auto").name == "scans"
    with pytest.raises(DataError, match=r"mine\.zip: option folds: found 3, expected none, as when it was packed"):
        open_dataset("folder", mine, folds=3)


def test_options_have_to_be_those_of_the_pack(tmp_path):
    file = write_pack(dataclasses.replace(small(), options={"sequence": "t2spir"}), tmp_path / "a.zip")
    assert open_dataset("phantom", file, sequence="t2spir").options == {"sequence": "t2spir"}
    with pytest.raises(DataError, match=r"a\.zip: option sequence: found 't1dual', expected 't2spir', as when"):
        open_dataset("phantom", file, sequence="t1dual")
    with pytest.raises(DataError, match="option phase: found 'in', expected none, as when"):
        open_dataset("phantom", file, phase="in")


def test_a_damaged_pack_is_named_and_no_other_place_searched(packed, tmp_path):
    (tmp_path / "bad").write_bytes(packed.read_bytes()[:-5])
    with pytest.raises(DataError, match="bad: found no checksum at its end"):
        open_dataset("acdc", tmp_path / "bad")


def test_training_from_a_pack(packed, tmp_path, own_cache):
    file = write_pack(dataclasses.replace(small(), name="acdc"), tmp_path / "a.pack.zip")
    config = Config(dataset="acdc", root=str(file), method="pce", iterations=3, log_every=1, size=48, batch=4,
                    output=str(tmp_path), device="cpu")
    outcome = run_experiment(config)
    assert len(outcome.log) == 3 and all(math.isfinite(row["loss"]) for row in outcome.log)
    assert outcome.result["data_source"].endswith("(packed at 8 bits)")
    with pytest.raises(DataError, match="option patients: found 10, expected none, as when it was packed"):
        resolve(Config(root=str(packed)))  # settings of a phantom say what to draw; its pack is given as a dataset
    assert resolve(Config(), pack(packed)).dataset.patients == small().patients
    with pytest.raises(ValueError, match="root: found"):
        resolve(Config(root=str(tmp_path)))  # a folder


def test_the_command(tmp_path, capsys):
    words = ["pack", str(tmp_path / "a.zip"), "data_patients=3", "data_side=48", "data_slices=3"]
    assert main([*words, "patient002", "--levels", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "a.zip") and "2 scans, 6 slices" in lines[1] and "100 levels" in lines[2]
    assert pack(tmp_path / "a.zip").patients == ("patient002",)
    assert main(words) == 1 and "expected another name, or --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0 and len(pack(tmp_path / "a.zip").patients) == 3
    for more, said in (("patient9", "patient: found 'patient9'"), ("dataset=acdcs", "did you mean 'acdc'?")):
        assert main([*words, more, "--overwrite"]) == 1 and said in capsys.readouterr().err
    assert main([*words, "--overwrite", "--levels", "256"]) == 1 and "levels: found 256" in capsys.readouterr().err


def test_three_patients_of_acdc(data_root, tmp_path):
    dataset = open_dataset("acdc", data_root)
    file = write_pack(dataset, tmp_path / "acdc.pack.zip", patients=dataset.patients[:3])
    again = open_dataset("acdc", file)
    assert_same_cases(dataset, again)
    assert again.folds == {1: dataset.patients[:3]} and again.augmentation == "acdc" and again.ignore == 4
    voxels = sum(case.image.size for case in again.cases())
    assert file.stat().st_size < 0.75 * voxels
    assert os.fspath(data_root) not in file.read_bytes().decode("latin-1")
