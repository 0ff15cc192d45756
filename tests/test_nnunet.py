"""Out to nnU-Net's raw format and back: every pixel, every grid, every name, and what is refused."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from attenscribble.basics.errors import DataError
from attenscribble.basics.files import write_json
from attenscribble.data.grid import Grid
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import Case, Dataset
from attenscribble.entry.commands import main
from attenscribble.reporting.nnunet import (
    _describe_dataset,
    check_nnunet,
    export_nnunet,
    patient_splits,
    read_predictions,
    result_report,
    score_predictions,
)
from attenscribble.reporting.tables import blocks, compare, read_results
from attenscribble.runs.config import Config
from attenscribble.runs.metrics import score_case
from attenscribble.runs.setup import resolve

CLASSES, IGNORE = ("nothing", "liver", "spleen"), 9
CONFIG = Config(fold=1)


def scan(seed):
    "A header whose slices are sagittal, stored backwards and tilted, with sizes that no two axes share."
    turn = np.deg2rad(20 + seed)
    affine = np.diag([-1.5, 1.2, 7.0, 1.0])
    affine[:2, :2] = affine[:2, :2] @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, 3] = [30, -20, 5 + seed]
    return nib.Nifti1Image(np.zeros((10, 12, 4), np.float32), affine[:, [1, 0, 2, 3]])


def make(patient, seed, channels=2):
    "A case [Z,K,Y,X] on the grid of `scan`."
    random, grid = np.random.default_rng(seed), Grid.of(scan(seed), "0")
    z, y, x = shape = grid.take(np.zeros(grid.shape)).shape
    image = random.random((z, channels, y, x)).astype(np.float32)
    label = random.integers(0, 3, shape).astype(np.uint8)
    scribble = np.where(random.random(shape) < 0.2, label, IGNORE).astype(np.uint8)
    image = image if channels > 1 else image[:, 0].copy()
    return Case(patient, f"f{seed}", image, grid.spacing_mm, grid.affine, scribble, label, grid=grid)


def dataset_of(cases, **changes):
    "Fold 1 tests the first patient."
    patients = tuple(dict.fromkeys(case.patient for case in cases))
    read = lambda patient: [case for case in cases if case.patient == patient]
    given = {"name": "two organs", "class_names": CLASSES, "ignore": IGNORE, "patients": patients, "read": read,
             "folds": {1: patients[:1]}, "augmentation": "none", "source": "made here, CC0", "channels": 2}
    return Dataset(**{**given, **changes})


@pytest.fixture
def cases():
    return [make(patient, seed) for seed, patient in enumerate(("a", "a", "b", "b", "c", "d"))]


@pytest.fixture
def dataset(cases):
    return dataset_of(cases)


def files(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*.*"))


def test_every_pixel_and_the_files_own_grid_come_back(dataset, cases, tmp_path):
    place = export_nnunet(dataset, tmp_path)
    assert place.name == "Dataset501_TwoOrgans"
    for case in cases:
        side = "Ts" if case.patient == "a" else "Tr"
        seed = int(case.frame[1:])
        for channel in (0, 1):
            written = nib.load(place / f"images{side}" / f"{case.name}_{channel:04d}.nii.gz")
            assert written.shape == (10, 12, 4) and written.get_data_dtype() == np.float32
            np.testing.assert_array_equal(written.affine, scan(seed).header.get_best_affine())
            np.testing.assert_array_equal(case.grid.take(np.asarray(written.dataobj)), case.image[:, channel])
    case = cases[2]
    mask = nib.load(place / "labelsTr" / f"{case.name}.nii.gz")
    found = case.grid.take(np.asarray(mask.dataobj))
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, scan(2).header.get_best_affine())
    np.testing.assert_array_equal(found == 3, case.scribble == IGNORE)  # the number after the last class
    np.testing.assert_array_equal(found[found != 3], case.scribble[case.scribble != IGNORE])


def test_names_and_description(dataset, tmp_path):
    place = export_nnunet(dataset, tmp_path, number=7, name="Organs", channels=("T1", "T2"))
    images = [f"imagesTr/{case}_000{k}.nii.gz" for case in ("b_f2", "b_f3", "c_f4", "d_f5") for k in (0, 1)]
    tests = [f"imagesTs/a_f{k}_000{channel}.nii.gz" for k in (0, 1) for channel in (0, 1)]
    masks = [f"labelsTr/{case}.nii.gz" for case in ("b_f2", "b_f3", "c_f4", "d_f5")]
    assert place.name == "Dataset007_Organs"
    assert files(place) == sorted([*images, *tests, *masks, "dataset.json", "splits_final.json"])
    content = json.loads((place / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "T1", "1": "T2"} and content["file_ending"] == ".nii.gz"
    assert list(content["labels"].items()) == [("background", 0), ("liver", 1), ("spleen", 2), ("ignore", 3)]
    assert content["numTraining"] == 4 and content["reference"] == content["licence"] == "made here, CC0"
    assert check_nnunet(place) == 4


def test_a_known_dataset_names_its_licence():
    assert _describe_dataset(phantom(patients=1), "scribble", ())["licence"] == "that of this package"


def test_inner_folds_keep_patients_together(dataset, tmp_path):
    splits = json.loads((export_nnunet(dataset, tmp_path) / "splits_final.json").read_text())
    assert [split["val"] for split in splits] == [["b_f2", "b_f3"], ["c_f4"], ["d_f5"]]
    assert splits[0]["train"] == ["c_f4", "d_f5"]
    many = patient_splits({f"p{k}": [f"p{k}a", f"p{k}b"] for k in range(12)})
    assert len(many) == 5 and sorted(name for split in many for name in split["val"]) == sorted(
        f"p{k}{frame}" for k in range(12) for frame in "ab")
    assert all(not {n[:-1] for n in split["train"]} & {n[:-1] for n in split["val"]} for split in many)
    assert patient_splits({"p": ["x"]}) == [{"train": ["x"], "val": ["x"]}]


def test_scribbles_are_exported_without_a_look_at_labels(cases, tmp_path):
    blind = export_nnunet(dataset_of([replace(case, label=None) for case in cases]), tmp_path / "blind")
    seeing = export_nnunet(dataset_of(cases), tmp_path / "seeing")
    assert files(blind) == files(seeing)
    for path in seeing.glob("labelsTr/*"):
        np.testing.assert_array_equal(nib.load(path).dataobj, nib.load(blind / "labelsTr" / path.name).dataobj)


def test_dense_labels_are_an_upper_bound_without_ignore(dataset, cases, tmp_path):
    place = export_nnunet(dataset, tmp_path, target="label")
    assert "ignore" not in json.loads((place / "dataset.json").read_text())["labels"]
    mask = np.asarray(nib.load(place / "labelsTr" / "b_f2.nii.gz").dataobj)
    np.testing.assert_array_equal(cases[2].grid.take(mask), cases[2].label)


def without(case, class_id):
    return replace(case, scribble=np.where(case.scribble == class_id, np.uint8(IGNORE), case.scribble))


def test_a_class_may_be_missing_in_a_case_but_not_everywhere(cases, tmp_path):
    place = export_nnunet(dataset_of([*cases[:2], without(cases[2], 1), *cases[3:]]), tmp_path)
    assert check_nnunet(place) == 4
    with pytest.raises(DataError, match=r"fold 1: scribble: found no pixel of liver, expected every class"):
        export_nnunet(dataset_of([*cases[:2], *(without(case, 1) for case in cases[2:])]), tmp_path, number=2)
    with pytest.raises(DataError, match="no pixel of nothing"):
        export_nnunet(dataset_of([*cases[:2], *(without(case, 0) for case in cases[2:])]), tmp_path, number=2)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


@pytest.mark.parametrize("spoil,message", [
    (lambda case: replace(case, scribble=None), "c_f4: scribble: found none"),
    (lambda case: replace(case, spacing_mm=None, affine=None, grid=None), "c_f4: spacing_mm: found None"),
    (lambda case: replace(case, frame="f5", patient="d"), "d_f5: found a second case of this name"),
])
def test_a_faulty_case_leaves_nothing_behind(cases, tmp_path, spoil, message):
    cases[4] = spoil(cases[4])
    with pytest.raises(DataError, match=message):
        export_nnunet(dataset_of(cases), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("options,message", [
    ({"number": 0}, "found 0"), ({"number": 1000}, "found 1000"), ({"name": "two organs"}, "'two organs'"),
    ({"target": "labels"}, "did you mean 'label'"), ({"channels": ["T1"]}, "a name for each of 2"),
    ({"fold": 2}, "fold"),
])
def test_wrong_wishes(dataset, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_nnunet(dataset, tmp_path / "raw", **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("names", [("bg", "liver", "ignore"), ("bg", "background", "liver"), ("bg", "a", "a")])
def test_reserved_names(cases, names):
    with pytest.raises(DataError, match="none called background or ignore"):
        _describe_dataset(dataset_of(cases, class_names=names), "scribble", ())


def test_a_number_is_taken_once(dataset, tmp_path):
    (tmp_path / "Dataset501_Other").mkdir()
    with pytest.raises(DataError, match=r"Dataset501_Other: found a dataset with this number"):
        export_nnunet(dataset, tmp_path)
    assert not any((tmp_path / "Dataset501_Other").iterdir())


def rewrite(path, change):
    picture = nib.load(path)
    nib.save(nib.Nifti1Image(*change(np.asarray(picture.dataobj), picture.affine.copy())), path)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


FAULTS = {
    "an image is missing": (lambda p: (p / "imagesTr/b_f2_0001.nii.gz").unlink(), "found 7 files, expected 8"),
    "a mask is missing": (lambda p: (p / "labelsTr/b_f2.nii.gz").unlink(), "found 8 files, expected 6"),
    "a value": (lambda p: rewrite(p / "labelsTr/b_f2.nii.gz", lambda v, a: (v + 1, a)), r"found the values \[4\]"),
    "a shape": (lambda p: rewrite(p / "labelsTr/b_f2.nii.gz", lambda v, a: (v[:, :, :-1], a)), "found shape"),
    "a place": (lambda p: rewrite(p / "labelsTr/b_f2.nii.gz", lambda v, a: (v, a @ np.diag([-1, 1, 1, 1]))), "affine"),
    "no number": (lambda p: rewrite(p / "imagesTr/b_f2_0000.nii.gz", lambda v, a: (v * np.nan, a)), "finite"),
    "ignore below": (lambda p: edit_json(p / "dataset.json", labels={"background": 0, "ignore": 1, "liver": 2,
                                                                     "spleen": 3}), "labels: ignore: found 1"),
    "a gap": (lambda p: edit_json(p / "dataset.json", labels={"background": 0, "liver": 2}), "consecutive"),
    "a count": (lambda p: edit_json(p / "dataset.json", numTraining=5), "of 5 cases"),
    "a split": (lambda p: (p / "splits_final.json").write_text('[{"train": ["x"], "val": ["b_f2"]}]'), "labelsTr"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_finds_it(dataset, tmp_path, fault):
    place = export_nnunet(dataset, tmp_path)
    spoil, message = FAULTS[fault]
    spoil(place)
    with pytest.raises(DataError, match=message):
        check_nnunet(place)


@pytest.fixture
def masks(cases, tmp_path):
    "Predictions for the two test cases: class ids, the truth with a quarter of its voxels wrong."
    folder = tmp_path / "masks"
    folder.mkdir()
    for case in cases[:2]:
        wrong = np.random.default_rng(1).random(case.label.shape) < 0.25
        mask = np.where(wrong, (case.label + 1) % 3, case.label).astype(np.uint8)
        nib.save(case.grid.picture(mask), folder / f"{case.name}.nii.gz")
    (folder / "plans.json").write_text("{}")  # nnU-Net leaves such files beside its masks
    return folder


def test_masks_are_scored_like_a_runs_own(dataset, cases, masks, tmp_path):
    result = score_predictions(masks, dataset, CONFIG, "nnU-Net 2d")
    read = read_predictions(masks, dataset)
    assert list(read) == ["a_f0", "a_f1"]
    for case, mask in read.values():
        assert 0.7 < (mask == case.label).mean() < 0.8
        expected = score_case(mask, case.label, case.spacing_mm, CLASSES, case=case.name)
        assert [row for row in result["cases"] if row["case"] == case.name and row["policy"] == "standard"] == expected
    assert result["test_volumes"] == 2 and result["scored"] and result["method"] == "nnU-Net 2d"
    assert "nnu-net-2d-fold1" in result["run"] and "n" in result_report(result)
    again = score_predictions(masks, dataset, CONFIG, "nnU-Net 2d")
    assert again["run"] == result["run"] != score_predictions(masks, dataset, CONFIG, "other")["run"]


def test_a_result_becomes_a_row_of_the_tables(tmp_path):
    hearts = phantom(patients=5, side=48, slices=4)
    masks = tmp_path / "masks"
    masks.mkdir()
    for case in hearts.cases(hearts.split(1)[1]):
        nib.save(nib.Nifti1Image(case.label.T, case.affine), masks / f"{case.name}.nii.gz")
    write_json(score_predictions(masks, hearts, CONFIG), tmp_path / "a.json")
    frame = compare(read_results(tmp_path), 1, dataset="phantom")
    row = frame.xs("nnU-Net")
    assert row.iloc[0][("dsc", "Avg", "ours_mean")] == 1 and row.iloc[0][("hd95_mm", "Avg", "ours_mean")] == 0
    lines = blocks(frame)["DSC"]
    assert list(lines.method)[-1] == "nnU-Net" and list(lines["Avg ours"])[-1].startswith("1.00")


@pytest.mark.parametrize("spoil,message", [
    (lambda folder: (folder / "a_f0.nii.gz").unlink(), "found no mask of a_f0, expected one of each of the 2"),
    (lambda folder: (folder / "a_f0.nii.gz").rename(folder / "b_f2.nii.gz"), "found no mask of a_f0"),
    (lambda folder: (folder / "z_f2.nii.gz").write_bytes((folder / "a_f0.nii.gz").read_bytes()), "a mask of z_f2"),
    (lambda folder: rewrite(folder / "a_f0.nii.gz", lambda v, a: (v[:-1], a)), r"\(9, 4, 12\) voxels"),
    (lambda folder: rewrite(folder / "a_f0.nii.gz", lambda v, a: (v, a @ np.diag([1, 1, -1, 1]))), "affine that moves"),
    (lambda folder: rewrite(folder / "a_f0.nii.gz", lambda v, a: (v, np.diag([2, 2, 2, 1.0]))), "voxels, expected"),
    (lambda folder: rewrite(folder / "a_f0.nii.gz", lambda v, a: (v + (v == 2), a)), r"values \[3\].*ids, 0 to 2"),
    (lambda folder: rewrite(folder / "a_f0.nii.gz", lambda v, a: (v * 0.5, a)), r"values \[0\.5\]"),
    (lambda folder: (folder / "a_f0.nii.gz").write_bytes(b"no scan"), "unreadable"),
])
def test_masks_that_are_not_taken(dataset, masks, spoil, message):
    spoil(masks)
    with pytest.raises(DataError, match=message):
        score_predictions(masks, dataset, CONFIG)


def test_masks_of_training_patients_are_left_out_by_name(dataset, masks):
    before = score_predictions(masks, dataset, CONFIG)
    (masks / "b_f2.nii.gz").write_bytes((masks / "a_f0.nii.gz").read_bytes())
    assert score_predictions(masks, dataset, CONFIG) == before | {"left_out": ["b_f2"]}


def test_what_cannot_be_scored(dataset, cases, masks):
    for name in ("ours", "pce", " "):
        with pytest.raises(ValueError, match="method: found"):
            score_predictions(masks, dataset, CONFIG, name)
    with pytest.raises(DataError, match="no dense labels"):
        score_predictions(masks, replace(dataset, scored=False), CONFIG)
    with pytest.raises(DataError, match="a_f0: found no label"):
        score_predictions(masks, dataset_of([replace(case, label=None) for case in cases]), CONFIG)
    blind = [replace(case, spacing_mm=None) for case in cases]
    with pytest.raises(DataError, match="no voxel spacing"):
        score_predictions(masks, dataset_of(blind), CONFIG)
    flat = score_predictions(masks, dataset_of(blind), Config(hd95=False))
    assert all(row["hd95_mm"] is None and row["dsc"] > 0.5 for row in flat["cases"])


def test_numbers_stored_as_floats_are_class_ids(dataset, masks):
    before = score_predictions(masks, dataset, CONFIG)["cases"]
    for path in masks.glob("*.nii.gz"):
        rewrite(path, lambda v, a: (v.astype(np.float64), a))
    assert score_predictions(masks, dataset, CONFIG)["cases"] == before
    for path in masks.glob("*.nii.gz"):
        rewrite(path, lambda v, a: ((v * 1.0000001).astype(np.float32), a))
    assert score_predictions(masks, dataset, CONFIG)["cases"] == before, "rounded as labels are"


@pytest.mark.parametrize("known", ["grid", "affine"])
def test_a_mask_is_compared_in_millimetres_whatever_the_order_of_its_axes(cases, masks, known):
    cases = cases if known == "grid" else [replace(case, grid=None) for case in cases]
    for case in cases[:2] if known == "affine" else ():
        nib.save(nib.Nifti1Image(case.label.T, case.affine), masks / f"{case.name}.nii.gz")
    before = score_predictions(masks, dataset_of(cases), CONFIG)["cases"]
    assert known == "grid" or {row["dsc"] for row in before} == {1}
    for path in masks.glob("*.nii.gz"):
        nib.save(nib.load(path).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), path)
    assert score_predictions(masks, dataset_of(cases), CONFIG)["cases"] == before


def test_a_mask_elsewhere_is_refused_with_a_setting_that_helps_or_with_none(dataset, cases, masks):
    before = score_predictions(masks, dataset, CONFIG)["cases"]
    for path in masks.glob("*.nii.gz"):
        rewrite(path, lambda v, a: (v, a @ np.diag([1, 1, -1, 1])))
    with pytest.raises(DataError, match=r"a_f0.nii.gz: found an affine .*, expected that of the image's file$"):
        score_predictions(masks, dataset, CONFIG)
    own = replace(dataset, version="1", reading={"check_affine": True})
    with pytest.raises(DataError, match=r"expected that of the image; data_check_affine=false takes all masks"):
        score_predictions(masks, own, CONFIG)
    free = replace(own, reading={"check_affine": False})
    assert score_predictions(masks, free, CONFIG)["cases"] == before


VERIFY = """import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
if __name__ == "__main__":
    for folder in sys.argv[1:]:
        verify_dataset_integrity(folder, 1)
"""


@pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is None, reason="needs nnunetv2, an environment of its own")
def test_nnunets_own_verifier_takes_it_and_refuses_what_ours_refuses(dataset, tmp_path):
    good = [export_nnunet(dataset, tmp_path, name="Organs"),
            export_nnunet(phantom(patients=3, side=48, slices=3), tmp_path, number=502, fold=2)]
    script = tmp_path / "verify.py"
    script.write_text(VERIFY)

    def verify(*folders: Path) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, script, *folders], capture_output=True, text=True, check=False)

    done = verify(*good)
    if "operator torchvision::" in done.stderr:
        pytest.skip("nnunetv2 needs a torchvision that was built for this torch")
    assert done.returncode == 0 and done.stdout.count("verify_dataset_integrity Done") == 2, done.stderr
    assert not any(word in done.stdout for word in ("Error", "mismatch", "contain NaN")), done.stdout
    FAULTS["a value"][0](good[0])
    assert verify(good[0]).returncode != 0


def test_the_commands(tmp_path, capsys, monkeypatch):
    hearts = phantom(patients=5, side=48, slices=3)
    monkeypatch.setattr("attenscribble.runs.setup.resolve", lambda config: resolve(config, hearts))
    raw, masks = tmp_path / "raw", tmp_path / "masks"
    assert main(["export-nnunet", "phantom", str(raw), "fold=2", "--number", "12"]) == 0
    place = Path(capsys.readouterr().out.strip())
    assert place == raw / "Dataset012_Phantom" and check_nnunet(place) == 8
    masks.mkdir()
    for case in hearts.cases(hearts.split(2)[1]):
        nib.save(nib.Nifti1Image(case.label.T, case.affine), masks / f"{case.name}.nii.gz")
    words = ["score", "phantom", str(masks), "fold=2", "seed=3", f"archive={tmp_path / 'results'}", "--method", "Guest"]
    assert main(words) == 0
    (result,) = read_results(tmp_path / "results")
    assert (result["method"], result["fold"], result["seed"]) == ("Guest", 2, 3)
    assert result["run"] in capsys.readouterr().out
    assert main(["score", "phantom", str(masks), "fold=1"]) == 1
    assert main(["export-nnunet", "phantom", str(raw), "fold=2", "--number", "12"]) == 1
    assert "a dataset with this number" in capsys.readouterr().err
