"""Datasets by name: where they are looked for, and what is said if they are not there."""

import json
import os
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from attenscribble.basics.errors import DataError
from attenscribble.data import datasets as module
from attenscribble.data.datasets import SOURCES, Source, datasets, find_dataset, open_dataset
from attenscribble.data.phantom import phantom


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    "An empty user data folder and no ATTENSCRIBBLE_DATA, whatever this machine has."
    monkeypatch.delenv("ATTENSCRIBBLE_DATA", raising=False)
    monkeypatch.setattr(module, "user_data_dir", lambda name: str(tmp_path / "user" / name))
    return tmp_path / "user" / "attenscribble"


def put_acdc(folder: Path, patient="patient001") -> Path:
    (folder / patient).mkdir(parents=True)
    image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(image, np.diag([1.5, 1.5, 10, 1])), folder / patient / f"{patient}_frame01.nii.gz")
    return folder


def put_h5(folder: Path, name="patient001_frame01.h5") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / name, "w") as file:
        file["image"] = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    return folder


@pytest.mark.parametrize("below", ["acdc/training", "acdc", "acdc/database/training", "training", "database/training",
                                   "."])
def test_acdc_is_found_in_every_usual_place(tmp_path, below):
    put_acdc(tmp_path / "data" / below)
    assert open_dataset("acdc", tmp_path / "data").patients == ("patient001",)
    assert open_dataset("acdc", str(tmp_path / "data")).name == "acdc"


@pytest.mark.parametrize("below", ["wsl4mis_h5", "wsl4mis", "WSL4MIS/data/ACDC/ACDC_training_volumes", "data/ACDC", ".",
                                   "ACDC_training_volumes"])
def test_wsl4mis_is_found_in_every_usual_place(tmp_path, below):
    put_h5(tmp_path / "data" / below)
    (case,) = open_dataset("wsl4mis", tmp_path / "data").cases()
    assert case.image.shape == (2, 3, 4) and case.spacing_mm is None


def test_root_wins_over_environment_and_that_over_the_user_folder(tmp_path, monkeypatch, user_folder):
    in_user = put_acdc(user_folder / "acdc", "patient003")
    assert find_dataset("acdc") == in_user
    in_environment = put_acdc(tmp_path / "env" / "acdc", "patient002")
    monkeypatch.setenv("ATTENSCRIBBLE_DATA", str(tmp_path / "env"))
    assert find_dataset("acdc") == in_environment
    in_root = put_acdc(tmp_path / "root" / "acdc", "patient001")
    assert find_dataset("acdc", tmp_path / "root") == in_root
    monkeypatch.setenv("ATTENSCRIBBLE_DATA", str(tmp_path / "empty"))
    assert find_dataset("acdc") == in_user


def test_a_given_root_is_the_only_place(tmp_path, monkeypatch):
    put_acdc(tmp_path / "env" / "acdc")
    monkeypatch.setenv("ATTENSCRIBBLE_DATA", str(tmp_path / "env"))
    with pytest.raises(DataError, match="mistyped") as raised:
        open_dataset("acdc", tmp_path / "mistyped")
    assert str(tmp_path / "env") not in str(raised.value)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "phantom"])
def test_not_found_names_every_place_and_the_way_to_the_data(tmp_path, monkeypatch, user_folder, name):
    monkeypatch.setenv("ATTENSCRIBBLE_DATA", str(tmp_path / "env"))
    with pytest.raises(DataError) as raised:
        open_dataset(name)
    lines = str(raised.value).splitlines()
    source = SOURCES[name]
    for base in (tmp_path / "env", user_folder):
        for folder in source.folders:
            assert f"  {base / folder}" in lines
    assert f"To get it: {source.obtain}." in lines and f"Licence: {source.licence}." in lines
    assert "https://" in source.obtain


@pytest.mark.parametrize("name, near", [("acdcs", "acdc"), ("ACDC", "acdc"), ("wsl4mi", "wsl4mis"),
                                        ("fantom", "phantom")])
def test_a_misspelt_name_brings_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"found '{name}', expected one of phantom, .*; did you mean '{near}'"):
        open_dataset(name)


def test_a_name_like_nothing_brings_no_guess():
    with pytest.raises(ValueError, match=r"expected one of phantom, acdc, wsl4mis, chaos, folder$"):
        open_dataset("xyz")


def test_the_phantom_needs_no_root_and_takes_its_options(tmp_path):
    for root in (None, tmp_path / "nowhere"):
        opened = open_dataset("phantom", root, patients=3, seed=4, side=48, slices=2)
        expected = phantom(patients=3, seed=4, side=48, slices=2)
        assert opened.patients == expected.patients
        np.testing.assert_array_equal(next(opened.cases()).image, next(expected.cases()).image)
    with pytest.raises(TypeError, match="patience"):
        open_dataset("phantom", patience=3)


def test_options_reach_the_loader(tmp_path):
    root = put_acdc(tmp_path / "acdc")
    scribble = nib.Nifti1Image(np.full((2, 3, 4), 4, np.uint8), np.diag([-1.5, 1.5, 10, 1]))
    (tmp_path / "drawn").mkdir()
    nib.save(scribble, tmp_path / "drawn" / "patient001_frame01_scribble.nii.gz")
    assert next(open_dataset("acdc", root).cases()).scribble is None
    with pytest.raises(DataError, match="moves voxels"):
        next(open_dataset("acdc", root, scribbles=tmp_path / "drawn").cases())
    case = next(open_dataset("acdc", root, scribbles=tmp_path / "drawn", check_affine=False).cases())
    assert (case.scribble == 4).all()


@pytest.mark.parametrize("table", ["wsl4mis/spacing_mm.json", "spacing_mm.json", "acdc/spacing_mm.json"])
@pytest.mark.parametrize("root", [".", "wsl4mis"])
def test_a_table_of_voxel_sizes_near_the_h5_files_is_used(tmp_path, table, root, monkeypatch):
    put_h5(tmp_path / "wsl4mis")
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text(json.dumps({"patient001": [1.5, 1.25, 8]}))
    assert next(open_dataset("wsl4mis", tmp_path / root).cases()).spacing_mm == (8, 1.25, 1.5)
    monkeypatch.chdir(tmp_path / root)
    assert next(open_dataset("wsl4mis", ".").cases()).spacing_mm == (8, 1.25, 1.5)
    (tmp_path / "mine.json").write_text(json.dumps({"patient001": [1, 2, 3]}))
    assert next(open_dataset("wsl4mis", ".", spacing=tmp_path / "mine.json").cases()).spacing_mm == (3, 2, 1)


def test_a_broken_dataset_is_found_and_then_named(tmp_path):
    folder = put_acdc(tmp_path / "acdc")
    (folder / "patient002").mkdir()
    with pytest.raises(DataError, match="patient002: found no frame"):
        open_dataset("acdc", tmp_path)


def test_a_new_dataset_is_one_entry(monkeypatch):
    monkeypatch.setitem(SOURCES, "three", Source("three", "three patients", lambda: phantom(patients=3)))
    assert len(open_dataset("three").patients) == 3
    with pytest.raises(ValueError, match="did you mean 'three'"):
        open_dataset("tree")


def test_the_listing_says_what_is_here_and_how_to_get_the_rest(tmp_path):
    put_acdc(tmp_path / "acdc" / "training")
    rows = {row["name"]: row for row in datasets(tmp_path)}
    assert list(rows) == list(SOURCES)
    assert rows["phantom"]["folder"] == "generated"
    assert rows["acdc"]["folder"] == os.fspath(tmp_path / "acdc" / "training")
    assert rows["wsl4mis"]["folder"] == ""
    assert all(row["about"] and row["obtain"] and row["licence"] for row in rows.values())


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    put_acdc(tmp_path / "home" / "acdc")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert find_dataset("acdc", "~") == tmp_path / "home" / "acdc"


def test_the_real_data_is_found(data_root):
    nifti, h5 = open_dataset("acdc", data_root), open_dataset("wsl4mis", data_root)
    assert len(nifti.patients) == 100 and len(h5.patients) == 2
    assert next(h5.cases()).spacing_mm == next(nifti.cases()).spacing_mm
