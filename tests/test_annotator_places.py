"Where the annotator finds strokes and where it writes: links, relative paths, flat folders, modalities, rights."

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from attenscribble.annotation.annotator import Annotator, _title
from attenscribble.annotation.session import open_session, save_session
from attenscribble.basics.errors import DataError
from attenscribble.data.folder import IGNORE, folder
from attenscribble.data.phantom import phantom

NAMES = ("background", "liver")
SHAPE = (4, 24, 20)  # z, y, x
MEANING = {"labels": {"background": 0, "liver": 1}, "ignore": 255}


def store(path: Path, seed: int = 0, values: np.ndarray | None = None) -> Path:
    "A scan, or the mask that is given, [Z,Y,X], as a NIfTI file."
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(values.T, np.diag([-1.5, -1.5, 8, 1])), path)
    return path


def strokes(count: int = 5, slice_: int = 1) -> np.ndarray:
    drawn = np.full(SHAPE, IGNORE, np.uint8)
    drawn[slice_, 3, 2:2 + count], drawn[slice_, 8, 2:2 + count] = 0, 1
    return drawn


def tell(root: Path, **more) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(MEANING | more))


def state_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def saved(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).T


@pytest.fixture
def linked(tmp_path) -> tuple[Path, Path]:
    "mine/ with a link to a scan of store/, strokes and dataset.json of its own."
    there, mine = tmp_path / "store", tmp_path / "mine"
    store(there / "images/a.nii.gz")
    tell(mine)
    store(mine / "scribbles/a.nii.gz", values=strokes())
    (mine / "images").mkdir()
    (mine / "images/a.nii.gz").symlink_to(there / "images/a.nii.gz")
    return mine, there


# ---- links


def test_a_linked_scan_keeps_names_and_strokes_and_the_store_stays_as_it_is(linked):
    mine, there = linked
    before = state_of(there)
    session = open_session(mine / "images/a.nii.gz")
    assert session.root == mine and session.labels.names == NAMES
    np.testing.assert_array_equal(session.case.scribble, strokes())
    assert save_session(session, strokes(7)) == mine / "scribbles/a.nii.gz"
    np.testing.assert_array_equal(saved(mine / "scribbles/a.nii.gz"), strokes(7))
    assert state_of(there) == before and (mine / "images/a.nii.gz").is_symlink()


def test_a_link_of_another_name_is_called_as_the_user_calls_it(tmp_path):
    there = store(tmp_path / "store/objects/7f3a.nii.gz")
    tell(tmp_path / "mine")
    for name in ("a", "b"):
        (tmp_path / "mine/images").mkdir(exist_ok=True)
        (tmp_path / f"mine/images/{name}.nii.gz").symlink_to(there)
    save_session(open_session(tmp_path / "mine/images/b.nii.gz"), strokes())
    assert [path.name for path in (tmp_path / "mine/scribbles").iterdir()] == ["b.nii.gz"]
    with pytest.raises(DataError, match="a, b"):  # the same scan twice: which one is meant?
        open_session(there, NAMES, tmp_path / "mine")


def test_links_of_links_relative_links_and_links_of_folders(tmp_path):
    there = store(tmp_path / "store/images/a.nii.gz").parent
    tell(tmp_path / "one")
    (tmp_path / "one/images").symlink_to("../store/images")
    (tmp_path / "two").symlink_to("one")
    before = state_of(there.parent)
    session = open_session(tmp_path / "two/images/a.nii.gz")
    save_session(session, strokes())
    assert (tmp_path / "one/scribbles/a.nii.gz").is_file() and state_of(there.parent) == before
    assert session.root == tmp_path / "two"
    assert f"two, which is {tmp_path / 'one'}" in _title(session)


def test_dots_go_up_where_the_operating_system_goes(tmp_path):
    store(tmp_path / "real/deep/images/a.nii.gz")
    store(tmp_path / "images/a.nii.gz", seed=1)
    (tmp_path / "link").symlink_to(tmp_path / "real/deep/images")
    tell(tmp_path / "real/deep")
    assert open_session(tmp_path / "link/../images/a.nii.gz").root == tmp_path / "real/deep"


@pytest.mark.parametrize("how", ["physical", "logical"])
def test_relative_paths(linked, tmp_path, monkeypatch, how):
    mine, there = linked
    (tmp_path / "here").symlink_to(mine)
    before = state_of(there)
    monkeypatch.chdir(tmp_path / "here/images")
    monkeypatch.setenv("PWD", str(tmp_path / "here/images") if how == "logical" else "/")
    session = open_session("a.nii.gz")
    assert session.root == (tmp_path / "here" if how == "logical" else mine)
    monkeypatch.chdir("/")  # a path is that of the moment at which the scan was opened
    save_session(session, strokes(9))
    np.testing.assert_array_equal(saved(mine / "scribbles/a.nii.gz"), strokes(9))
    assert state_of(there) == before


def test_linked_strokes_are_read_and_replaced_here_not_there(linked):
    mine, there = linked
    shutil.move(mine / "scribbles/a.nii.gz", there / "drawn.nii.gz")
    (mine / "scribbles/a.nii.gz").symlink_to(there / "drawn.nii.gz")
    before = state_of(there)
    work = Annotator(mine / "images/a.nii.gz")
    assert "a link" in work.controls.status.value and np.array_equal(work.scribble, strokes())
    work.record(strokes(8))
    work.save()
    assert state_of(there) == before and not (mine / "scribbles/a.nii.gz").is_symlink()


@pytest.mark.parametrize("kind", ["scribbles", "masks", "models"])
def test_a_linked_folder_of_results_needs_the_users_word(linked, kind):
    mine, there = linked
    (there / kind).mkdir()
    if kind == "scribbles":
        shutil.move(mine / "scribbles/a.nii.gz", there / "scribbles/a.nii.gz")
        (mine / "scribbles").rmdir()
    (mine / kind).symlink_to(there / kind)
    with pytest.raises(DataError, match=f"{kind}: found a link to .*{kind}, where Save would write, .*folder="):
        open_session(mine / "images/a.nii.gz")
    save_session(open_session(mine / "images/a.nii.gz", folder=mine), strokes(6))  # the word


@pytest.mark.parametrize("what", ["images/a.nii.gz", "scribbles/a.nii.gz", "dataset.json"])
def test_a_link_to_nothing_is_named(linked, what):
    mine, _ = linked
    (mine / what).unlink()
    (mine / what).symlink_to("../gone/a.nii.gz")
    with pytest.raises(DataError, match=f"{what}: found a link to .*gone/a.nii.gz, which is not there"):
        open_session(mine / "images/a.nii.gz", NAMES)


def test_strokes_that_an_earlier_version_left_behind_the_link_are_named(linked):
    mine, there = linked
    (mine / "scribbles/a.nii.gz").rename(there / "kept.nii.gz")
    tell(there)
    store(there / "scribbles/a.nii.gz", values=strokes())
    work = Annotator(mine / "images/a.nii.gz")
    assert "No strokes yet" in work.controls.status.value
    assert str(there / "scribbles/a.nii.gz") in work.controls.status.value


# ---- flat folders


@pytest.mark.parametrize("mark", ["dataset.json", "strokes", "strokes of another", "scribbles/"])
def test_a_flat_folder_is_the_folder(tmp_path, mark):
    path = store(tmp_path / "a.nii.gz")
    store(tmp_path / "b.nii.gz", seed=1)
    expected = tmp_path / "a_scribble.nii.gz"
    tell(tmp_path)
    if mark == "strokes":
        store(expected, values=strokes())
    if mark == "strokes of another":
        store(tmp_path / "b-scribbles.nii", values=strokes())
        expected = tmp_path / "a-scribbles.nii"
    if mark == "scribbles/":
        expected = store(tmp_path / "scribbles/a.nii.gz", values=strokes())
    session = open_session(path)
    assert session.root == tmp_path and session.scribble_file == expected
    if mark in ("strokes", "scribbles/"):
        np.testing.assert_array_equal(session.case.scribble, strokes())
    save_session(session, strokes(6))
    (case,) = [case for case in folder(tmp_path).cases() if case.patient == "a"]
    np.testing.assert_array_equal(case.scribble, strokes(6))
    assert not (tmp_path / "images").exists() and not (tmp_path / "annotated").exists()


def test_a_flat_folder_named_by_the_user_gets_no_second_layout(tmp_path):
    store(tmp_path / "flat/b.nii.gz", seed=1)
    tell(tmp_path / "flat")
    save_session(open_session(store(tmp_path / "else/a.nii.gz"), folder=tmp_path / "flat"), strokes())
    assert sorted(state_of(tmp_path / "flat")) == ["a.nii.gz", "a_scribble.nii.gz", "b.nii.gz", "dataset.json"]


def test_a_mask_of_unknown_kind_beside_the_scan_is_asked_about(tmp_path):
    path = store(tmp_path / "a.nii.gz")
    store(tmp_path / "a_seg.nii.gz", values=strokes())
    with pytest.raises(DataError, match=r"a_seg.nii.gz: found a mask that may be .*folder="):
        open_session(path, NAMES)
    assert (open_session(path, NAMES, tmp_path / "new").case.scribble == IGNORE).all()


def test_strokes_in_two_places_are_asked_about(tmp_path):
    path = store(tmp_path / "a.nii.gz")
    save_session(open_session(path, NAMES), strokes())
    assert (tmp_path / "annotated/scribbles/a.nii.gz").is_file()
    tell(tmp_path)
    with pytest.raises(DataError, match=r"annotated/scribbles/a.nii.gz: found .*expected .*folder="):
        open_session(path)
    np.testing.assert_array_equal(open_session(path, folder=tmp_path / "annotated").case.scribble, strokes())
    assert (open_session(path, folder=tmp_path).case.scribble == IGNORE).all()


def test_dataset_json_beside_scans_in_a_folder_called_images(tmp_path):
    path = store(tmp_path / "images/a.nii.gz")
    tell(tmp_path / "images")
    assert open_session(path).root == tmp_path / "images"
    tell(tmp_path)
    with pytest.raises(DataError, match=r"dataset.json: found .*second"):
        open_session(path)


def test_a_bare_folder_gets_annotated_beside_the_scan(tmp_path):
    work = Annotator(store(tmp_path / "a.nii.gz"), NAMES)
    assert work.session.root == tmp_path / "annotated" and "No strokes yet" in work.controls.status.value


# ---- several modalities


def test_new_strokes_lie_where_the_others_lie(tmp_path):
    "nnU-Net's layout with an ignore label: a folder scribbles/ would turn labelsTr/ into dense truth."
    for name in "ab":
        for modality in (0, 1):
            store(tmp_path / f"imagesTr/{name}_{modality:04d}.nii.gz", seed=modality)
    drawn = strokes()
    drawn[drawn == IGNORE] = 2
    store(tmp_path / "labelsTr/b.nii.gz", values=drawn)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "ignore": 2}}')
    session = open_session(tmp_path / "imagesTr/a_0001.nii.gz")
    assert session.case.channels == 2 and save_session(session, strokes()) == tmp_path / "labelsTr/a.nii.gz"
    assert {case.patient for case in folder(tmp_path).cases() if (case.scribble == 1).any()} == {"a", "b"}


def test_linked_modalities(tmp_path):
    tell(tmp_path / "mine")
    (tmp_path / "mine/images").mkdir()
    for modality in (0, 1):
        there = store(tmp_path / f"store/x{modality}/series.nii.gz", seed=modality)
        (tmp_path / f"mine/images/a_{modality:04d}.nii.gz").symlink_to(there)
    session = open_session(tmp_path / "mine/images/a_0001.nii.gz")
    assert session.name == "a" and session.case.channels == 2
    session = open_session([tmp_path / f"mine/images/a_{modality:04d}.nii.gz" for modality in (1, 0)])
    assert session.name == "a" and session.case.channels == 2
    save_session(session, strokes())
    assert folder(tmp_path / "mine").channels == 2


def test_two_scans_of_a_folder_are_not_two_modalities(tmp_path):
    tell(tmp_path)
    files = [store(tmp_path / f"images/{name}.nii.gz", seed=n) for n, name in enumerate(("t1", "t2"))]
    with pytest.raises(DataError, match="t1, t2"):
        open_session(files)


def test_a_scan_of_other_modalities_does_not_spoil_a_folder(tmp_path):
    tell(tmp_path / "one")
    store(tmp_path / "one/images/b.nii.gz")
    files = [store(tmp_path / f"in/a_{n:04d}.nii.gz", seed=n) for n in (0, 1)]
    with pytest.raises(DataError, match="2 modalities, expected 1"):
        open_session(files, folder=tmp_path / "one")
    tell(tmp_path / "numbered")
    store(tmp_path / "numbered/images/b_0000.nii.gz")
    save_session(open_session(files[0], folder=tmp_path / "numbered"), strokes())
    assert {case.patient for case in folder(tmp_path / "numbered").cases()} == {"a", "b"}


# ---- nothing is overwritten


def test_another_scan_of_the_name_is_refused_before_a_stroke_is_drawn(tmp_path):
    heart = next(phantom(patients=1, seed=1, side=32, slices=4).cases())
    tell(tmp_path)
    path = store(tmp_path / f"images/{heart.name}.nii.gz")
    before = path.read_bytes()
    with pytest.raises(DataError, match="another scan of this name"):
        open_session(heart, folder=tmp_path)
    with pytest.raises(DataError, match="another scan of this name"):
        open_session(store(tmp_path / f"else/{heart.name}.nii.gz", seed=2), folder=tmp_path)
    assert path.read_bytes() == before


def test_a_case_that_was_read_from_the_folder_does_not_replace_its_file(tmp_path):
    tell(tmp_path)
    path = store(tmp_path / "images/a.nii.gz")
    store(tmp_path / "scribbles/a.nii.gz", values=strokes())
    before = path.read_bytes()
    (case,) = folder(tmp_path).cases()
    save_session(open_session(case, folder=tmp_path), strokes(9))
    assert path.read_bytes() == before
    np.testing.assert_array_equal(saved(tmp_path / "scribbles/a.nii.gz"), strokes(9))


# ---- where nothing can be written


def test_a_folder_that_cannot_be_written_is_named_before_the_first_stroke(tmp_path):
    scan = store(tmp_path / "a.nii.gz")
    for place in ("/proc/annotated", scan / "inside"):  # refused to root as well
        work = Annotator(scan, NAMES, place)
        assert isinstance(work.error, DataError) and "folder=" in str(work.error) and str(place) in str(work.error)


@contextmanager
def no_rights() -> Iterator[None]:
    "As somebody who is not root, for whom no file is read-only."
    root = os.geteuid() == 0
    try:
        if root:
            os.setegid(65534)
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    "A temporary folder that others may enter: pytest's own may not."
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.parametrize("what", [".", "scribbles", "scribbles/a.nii.gz", "masks", "models"])
def test_read_only_folders_and_files(open_to_all, what):
    tell(open_to_all)
    scan = store(open_to_all / "images/a.nii.gz")
    store(open_to_all / "scribbles/a.nii.gz", values=strokes())
    for name in ("scribbles", "masks", "models"):
        (open_to_all / name).mkdir(exist_ok=True)
        (open_to_all / name).chmod(0o555 if what == "." else 0o777)
    (open_to_all / "scribbles/a.nii.gz").chmod(0o666)
    with no_rights():
        if what != ".":
            open_session(scan)
    (open_to_all / what).chmod(0o555)
    with no_rights():
        work = Annotator(scan)
    assert isinstance(work.error, DataError) and "folder=" in str(work.error)
    assert what.removeprefix(".") in str(work.error)


def test_opening_leaves_no_trace(linked):
    mine, _ = linked
    before = {path: path.stat().st_mtime_ns for path in (mine, *mine.rglob("*"))}
    open_session(mine / "images/a.nii.gz")
    assert {path: path.stat().st_mtime_ns for path in (mine, *mine.rglob("*"))} == before


def test_results_lie_beside_the_strokes(linked):
    mine, there = linked
    before = state_of(there)
    work = Annotator(mine / "images/a.nii.gz", size=32, iterations=2, batch=2, log_every=1)
    work.train()
    work.save()
    assert {"masks/a.nii.gz", "models/a.pt"} < state_of(mine).keys() and state_of(there) == before


# ---- what others saved


def test_strokes_that_others_saved_meanwhile_are_not_replaced(linked):
    mine, _ = linked
    ours, theirs = (open_session(mine / "images/a.nii.gz") for _ in range(2))
    save_session(theirs, strokes(6))
    before = state_of(mine)
    with pytest.raises(DataError, match=r"scribbles/a.nii.gz: found strokes that were saved elsewhere since"):
        save_session(ours, strokes(9))
    assert state_of(mine) == before
    save_session(theirs, strokes(7))  # its own it goes on with
    save_session(ours, strokes(9), overwrite=True)
    save_session(ours, strokes(10))
    assert (saved(mine / "scribbles/a.nii.gz") == MEANING["ignore"]).sum() == (strokes(10) == 255).sum()


def test_first_strokes_of_two_and_a_refused_button(tmp_path):
    path = store(tmp_path / "images/a.nii.gz")
    tell(tmp_path)
    work = Annotator(path)
    save_session(open_session(path), strokes(6))
    work.record(strokes(9))
    work.canvas.request_drawing = lambda then, keep=True: then()
    work.controls.save.click()
    assert "saved elsewhere" in work.controls.status.value and "overwrite=True" in work.controls.status.value
    assert np.array_equal(work.scribble, strokes(9)), "they stay in memory"
    with pytest.raises(DataError, match="saved elsewhere"):
        work.save()
    work.save(overwrite=True)
    (tmp_path / "scribbles/a.nii.gz").unlink()
    work.save()


def test_masks_and_models_of_others_are_not_replaced(linked):
    mine, _ = linked
    fast = {"size": 32, "iterations": 2, "batch": 2, "log_every": 1}

    def trained():
        work = Annotator(mine / "images/a.nii.gz", **fast)
        work.train()
        return work

    mask, model = mine / "masks/a.nii.gz", mine / "models/a.pt"
    model.parent.mkdir()
    model.write_bytes(b"my own")
    work = trained()
    with pytest.raises(DataError, match=r"models/a.pt: found a file that no annotator wrote.*The strokes are saved"):
        work.save()
    assert model.read_bytes() == b"my own" and not mask.exists()
    work.save(overwrite=True)
    work.save()
    trained().save()  # of an earlier session
    corrected = nib.load(mask)
    voxels = np.asarray(corrected.dataobj).copy()
    voxels[0, 0, 0] = 1 - voxels[0, 0, 0]
    nib.save(nib.Nifti1Image(voxels, corrected.affine, corrected.header), mask)  # its header still says that it is ours
    for other in (mask.read_bytes(), b"no scan"):
        mask.write_bytes(other)
        with pytest.raises(DataError, match=r"masks/a.nii.gz: found a file that no annotator wrote, or that was chang"):
            work.save()
        assert mask.read_bytes() == other


# ---- what others change meanwhile, besides the strokes


@pytest.mark.parametrize("change", ["names", "ignore", "scan"])
def test_save_refuses_where_names_or_the_scan_have_changed_since(tmp_path, change):
    heart = next(phantom(patients=2, side=48, slices=3).cases())
    root, marks = tmp_path / "d", heart.scribble
    for kind, volume in (("images", heart.image), ("scribbles", heart.scribble)):
        for name in "ab":
            (root / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(np.ascontiguousarray(volume.T), np.eye(4)), root / kind / f"{name}.nii.gz")
    said = {"labels": {"background": 0, "RV": 1, "Myo": 2, "LV": 3}, "ignore": 4}
    (root / "dataset.json").write_text(json.dumps(said))
    session = open_session(root / "images/a.nii.gz")
    ids = np.where(marks == 4, IGNORE, marks).astype(np.uint8)
    save_session(session, ids)
    save_session(session, ids)  # its own writing is no change
    if change == "scan":
        other = root / "images/a.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros((9, 9, 3), np.float32), np.eye(4)), other)
    else:
        other = root / "dataset.json"
        said |= {"labels": {"background": 0, "LV": 1, "Myo": 2, "RV": 3}} if change == "names" else {"ignore": 7}
        other.write_text(json.dumps(said))
    before = (root / "scribbles/a.nii.gz").read_bytes()
    with pytest.raises(DataError, match=f"{other.name}: found another content than when this scan was opened"):
        save_session(session, ids)
    assert (root / "scribbles/a.nii.gz").read_bytes() == before


def test_two_scans_of_a_new_folder_are_saved_one_after_the_other(tmp_path):
    cases = [case for case in phantom(patients=2, side=48, slices=3).cases() if case.frame == "frame01"]
    names = ["background", "RV", "Myo", "LV"]
    sessions = [open_session(case, names, tmp_path / "new") for case in cases]
    for session, case in zip(sessions, cases, strict=True):
        save_session(session, np.where(case.scribble == 4, IGNORE, case.scribble).astype(np.uint8))
    assert len(list((tmp_path / "new/scribbles").iterdir())) == 2
