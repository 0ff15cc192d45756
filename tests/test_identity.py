"""Which data a run belongs to: exchanged files, another root, the archive, masks that are left, what is said of it."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from attenscribble.basics.errors import DataError
from attenscribble.data.datasets import open_dataset
from attenscribble.data.folder import folder
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import content_changes, content_id, content_of
from attenscribble.data.scribbles import count_strokes
from attenscribble.runs.config import Config
from attenscribble.runs.run import run_experiment
from attenscribble.runs.setup import resolve

HEARTS = [case for case in phantom(patients=3, side=48, slices=3).cases() if case.frame == "frame01"]
SMALL = {"method": "pce", "profile": "mini", "size": 32, "iterations": 4, "batch": 4, "eval_every": 2, "log_every": 2,
         "device": "cpu", "precision": "float32"}


def write(path: Path, volume: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(volume.T), np.diag([-1.5, -1.5, 10, 1])), path)


def exchange(path: Path, change) -> None:
    "Other voxels in a file of the same name, size and time."
    before, volume = path.stat(), np.asarray(nib.load(path).dataobj).T
    write(path, change(volume).astype(volume.dtype))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def acdc_folder(root: Path, patients=(1, 2, 21)) -> Path:
    for number, heart in zip(patients, HEARTS, strict=False):
        name = f"patient{number:03d}"
        for end, volume in (("", (1000 * heart.image).astype(np.int16)), ("_gt", heart.label), ("_scribble",
                                                                                           heart.scribble)):
            write(root / name / f"{name}_frame01{end}.nii", volume)
    return root


def own_folder(root: Path) -> Path:
    for heart in HEARTS:
        for kind, volume in (("images", (1000 * heart.image).astype(np.int16)), ("labels", heart.label),
                             ("scribbles", np.where(heart.scribble == 4, 255, heart.scribble).astype(np.uint8))):
            write(root / kind / f"{heart.patient}.nii", volume)
    return root


def acdc_run(root: Path, runs: Path, **settings):
    return run_experiment(Config(dataset="acdc", root=str(root), output=str(runs), **SMALL, **settings))


@pytest.mark.parametrize("end, kind, change", [
    ("", "images", lambda v: v.max() - v), ("_scribble", "scribbles", lambda v: np.array([0, 2, 1, 3, 4])[v]),
    ("_gt", "labels", lambda v: np.array([0, 2, 1, 3])[v])])
def test_a_run_is_not_taken_up_with_exchanged_files(tmp_path, end, kind, change):
    root = acdc_folder(tmp_path / "acdc")
    first = acdc_run(root, tmp_path / "runs")
    patient = "patient001" if kind == "labels" else "patient021"  # fold 1 tests 001 and 002
    exchange(root / patient / f"{patient}_frame01{end}.nii", change)
    kept = (first.folder / "result.json").read_bytes()
    with pytest.raises(ValueError, match=f"changed since this checkpoint: the {kind} of {patient}; resume=false"):
        acdc_run(root, tmp_path / "runs")
    assert (first.folder / "result.json").read_bytes() == kept
    again = acdc_run(root, tmp_path / "runs", resume=False)
    assert again.folder == first.folder and again.result["content"] != first.result["content"]


def test_another_root_with_the_same_content_is_the_same_run(tmp_path):
    first = acdc_run(acdc_folder(tmp_path / "here"), tmp_path / "runs")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    second = acdc_run(tmp_path / "there", tmp_path / "runs")
    assert second.folder == first.folder and second.result["content"] == first.result["content"]
    assert second.log == first.log, "nothing was trained again"


def test_a_refused_root_leaves_the_run_as_it_was(tmp_path):
    first = acdc_run(acdc_folder(tmp_path / "here"), tmp_path / "runs")
    other = acdc_folder(tmp_path / "there")
    exchange(other / "patient021/patient021_frame01.nii", lambda v: v.max() - v)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="the data has changed"):
        acdc_run(other, tmp_path / "runs")
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before


def test_masks_of_scans_that_are_gone_are_removed_and_no_other_file(tmp_path):
    root = acdc_folder(tmp_path / "acdc")
    first = acdc_run(root, tmp_path / "runs")
    mine = first.folder / "masks" / "corrected-by-hand.nii.gz"
    shutil.copy(first.folder / "masks" / "patient001_frame01.nii.gz", mine)
    shutil.rmtree(root / "patient002")
    with pytest.raises(ValueError, match="no longer tested: patient002"):
        acdc_run(root, tmp_path / "runs")
    acdc_run(root, tmp_path / "runs", resume=False)
    assert sorted(p.name for p in mine.parent.iterdir()) == ["corrected-by-hand.nii.gz", "patient001_frame01.nii.gz"]


def test_a_list_of_masks_cannot_name_a_file_elsewhere(tmp_path):
    first = acdc_run(acdc_folder(tmp_path / "acdc"), tmp_path / "runs")
    write(tmp_path / "runs" / "scan.nii.gz", HEARTS[0].label)
    (first.folder / "masks.json").write_text(json.dumps(["../../scan", 3, "patient001_frame01"]))
    acdc_run(tmp_path / "acdc", tmp_path / "runs", resume=False)
    assert (tmp_path / "runs" / "scan.nii.gz").is_file()


def test_the_archive_keeps_the_result_of_other_data(tmp_path):
    root, archive = acdc_folder(tmp_path / "here"), tmp_path / "results"
    first = acdc_run(root, tmp_path / "a", archive=str(archive))
    path = archive / f"{first.config.run_id}.json"
    kept = path.read_bytes()
    acdc_run(root, tmp_path / "b", archive=str(archive))  # the same data: the same result may be written again
    other = acdc_folder(tmp_path / "there")
    exchange(other / "patient021/patient021_frame01_scribble.nii", lambda v: np.array([0, 2, 1, 3, 4])[v])
    kept = path.read_bytes()
    with pytest.raises(DataError, match="a result of this name from other data"):
        acdc_run(other, tmp_path / "c", archive=str(archive))
    assert path.read_bytes() == kept and not (tmp_path / "c").exists(), "refused before anything was trained"


def test_names_of_runs_on_published_data_do_not_depend_on_the_content(tmp_path):
    root = acdc_folder(tmp_path / "acdc")
    assert resolve(Config(dataset="acdc", root=str(root))).config.run_id == Config(dataset="acdc").run_id
    assert resolve(Config(data_patients=5)).config.run_id == Config(data_patients=5).run_id


@pytest.mark.parametrize("kind", ["images", "scribbles", "labels"])
def test_a_changed_folder_is_another_run(tmp_path, kind):
    root = own_folder(tmp_path / "mine")
    before = resolve(Config(dataset="folder", root=str(root))).config
    exchange(root / kind / "patient001.nii", lambda v: np.where(v == 3, 2, v) if kind != "images" else v // 2)
    after = resolve(Config(dataset="folder", root=str(root))).config
    assert before.run_id != after.run_id and before.run_id.startswith("mine-")
    with pytest.raises(DataError, match=r"mine: content: found .* expected .* files were changed"):
        resolve(before)


def test_two_folders_of_one_name_are_two_runs_and_a_copy_is_the_same(tmp_path):
    one, copy, other = (own_folder(tmp_path / place / "mine") for place in "abc")
    exchange(other / "images/patient002.nii", lambda v: v // 2)
    ids = [resolve(Config(dataset="folder", root=str(root))).config.run_id for root in (one, copy, other)]
    assert ids[0] == ids[1] != ids[2]


def test_the_content_is_kept_with_the_run(tmp_path):
    root = str(own_folder(tmp_path / "mine"))
    run = run_experiment(Config(dataset="folder", root=root, output=str(tmp_path / "runs"), **SMALL))
    config = json.loads((run.folder / "config.json").read_text())
    content = torch.load(run.folder / "checkpoint.pt", weights_only=True)["content"]
    assert config["data"]["content"] == folder(tmp_path / "mine").version
    assert run.result["content"] == content_id(content) and set(content) == {"trained on", "tested"}
    assert all(set(kinds) == {"images", "scribbles", "labels"} for kinds in content["tested"].values())


def test_every_dataset_has_a_content(tmp_path, data_root):
    roots = {"phantom": None, "acdc": data_root / "acdc", "chaos": data_root / "chaos_t2spir"}
    for name, root in roots.items():
        if root is None or root.is_dir():
            dataset = open_dataset(name, root)
            fold = next(iter(dataset.folds))
            assert content_id(content_of(dataset, fold)) == content_id(content_of(open_dataset(name, root), fold))


def test_slices_as_files_have_a_content(tmp_path):
    import h5py

    from attenscribble.data.scans import wsl4mis

    for patient in ("patient001", "patient021"):
        with h5py.File(tmp_path / f"{patient}_frame01.h5", "w") as file:
            file["image"], file["label"] = HEARTS[0].image, HEARTS[0].label
    (tmp_path / "mm.json").write_text(json.dumps({"patient001": [1, 1, 8], "patient021": [1, 1, 8]}))
    before = content_of(wsl4mis(tmp_path, tmp_path / "mm.json"), 1)
    (tmp_path / "mm.json").write_text(json.dumps({"patient001": [1, 1, 9], "patient021": [1, 1, 8]}))
    assert content_changes(before, content_of(wsl4mis(tmp_path, tmp_path / "mm.json"), 1)) == (
        "the voxel sizes of patient001")


def test_the_run_says_what_it_learns_from(tmp_path, capsys):
    root = own_folder(tmp_path / "mine")
    (root / "scribbles/patient003.nii").unlink()
    run = run_experiment(Config(dataset="folder", root=str(root), output=str(tmp_path / "runs"), data_folds=0, **SMALL))
    strokes = sum(count_strokes(heart.scribble, 4) for heart in HEARTS[:2])
    assert run.result["trained_on"] == {"patients": 2, "scans": 2, "slices": 6, "strokes": strokes}
    words = f"{strokes} strokes on 6 slices of 2 scans of 2 patients"
    assert words in capsys.readouterr().err and words in run.report()


def test_one_patient_is_remarked_on(tmp_path, capsys):
    root = own_folder(tmp_path / "mine")
    for path in [*root.glob("*/patient002*"), *root.glob("*/patient003*")]:
        path.unlink()
    run_experiment(Config(dataset="folder", root=str(root), output=str(tmp_path / "runs"), data_folds=0, **SMALL))
    assert "remark: one patient only" in capsys.readouterr().err
