"""The annotator without a browser: where a stroke ends up, what is saved, what is reported, what is learnt."""

import json
import shutil
import sys
import threading
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pytest
import torch
from notebook_client import Client

from attenscribble.annotation.annotator import (
    _FRAME,
    Annotator,
    bitmap_of,
    canvas_bytes,
    canvas_grid,
    scribble_of,
    to_canvas,
)
from attenscribble.annotation.session import correct, keeps_strokes, learn, open_session, save_session
from attenscribble.basics.drawing import CLASS_COLOURS
from attenscribble.basics.errors import DataError
from attenscribble.data.check import check
from attenscribble.data.datasets import open_dataset
from attenscribble.data.folder import IGNORE, folder
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import Case
from attenscribble.runs.inference import predict_files
from attenscribble.runs.metrics import dice

NAMES = ("background", "RV", "Myo", "LV")
FAST = {"size": 32, "iterations": 6, "batch": 2, "log_every": 2}


@pytest.fixture(scope="module")
def heart() -> Case:
    return next(phantom(patients=1, seed=1, side=64, slices=6).cases())


def store(path: Path, volume: np.ndarray, spacing=(1.5, 1.5, 8.0), ornt=((0, 1), (1, 1), (2, 1)), degrees=0.0) -> Path:
    "[Z,Y,X] as a NIfTI file, seen from below as scanners store it, tilted about the patient's y axis, axes exchanged."
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    tilt = np.array([[c, 0, s, 12], [0, 1, 0, -3], [-s, 0, c, 40], [0, 0, 0, 1]])
    scan = nib.Nifti1Image(np.ascontiguousarray(volume.T), tilt @ np.diag([-spacing[0], -spacing[1], spacing[2], 1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(scan.as_reoriented(np.array(ornt)), path)
    return path


def marks(shape, **values: int) -> np.ndarray:
    "A scribble: c0=5 draws five voxels of class 0 in slice 1, and so on."
    drawn = np.full(shape, IGNORE, np.uint8)
    for row, (name, count) in enumerate(values.items()):
        drawn[1, 3 * row + 2, 2:2 + count] = int(name[1:])
    return drawn


# ---- where a stroke ends up


@pytest.mark.parametrize("spacing", [(1.5, 1.2, 8), (1.5, 8, 1.2), (8, 1.5, 1.2), (2, 2, 2)],
                         ids=["axial", "coronal", "sagittal", "isotropic"])
def test_what_is_under_the_pen_is_marked_in_the_file(tmp_path, spacing):
    block = np.random.default_rng(0).permutation(120).reshape(4, 5, 6).astype(np.uint8)
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        path = store(tmp_path / "a.nii.gz", block, spacing, tuple(zip(order, signs, strict=True)), degrees=20)
        session = open_session(path, NAMES[:2], tmp_path / "out")
        grid = canvas_grid(session.case)
        picture = canvas_bytes(np.rint(session.case.image * 117 + 1).astype(np.uint8), grid)  # the file's own values
        drawing = np.zeros_like(picture)
        drawing[picture == 77], drawing[picture == 33] = 2, 1
        scan, saved = nib.load(path), nib.load(save_session(session, scribble_of(drawing, grid)))
        assert saved.shape == scan.shape and np.array_equal(saved.affine, scan.affine)
        values, stored = np.asarray(saved.dataobj), np.asarray(scan.dataobj)
        assert stored[values == 1] == [77] and stored[values == 0] == [33] and (values == IGNORE).sum() == 118
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("spacing", [(1.5, 1.2, 8), (1.5, 8, 1.2), (8, 1.5, 1.2)], ids=["axial", "coronal", "sagittal"])
def test_the_canvas_is_upright(tmp_path, spacing):
    "NiiVue shows an axial slice with the left of the patient at the right, and so on: as the case's rows and columns."
    block = np.arange(120, dtype=np.uint8).reshape(4, 5, 6)
    session = open_session(store(tmp_path / "a.nii.gz", block, spacing), NAMES)
    file = to_canvas(np.rint(255 * session.case.image).astype(np.uint8), canvas_grid(session.case))
    assert nib.aff2axcodes(file.header.get_best_affine()) == ("R", "A", "S")
    assert sorted(file.header.get_zooms()) == pytest.approx(sorted(spacing), abs=1e-5)
    voxels, plane = np.asarray(file.dataobj), session.case.grid.plane
    screen = {"axial": lambda: voxels[::-1, ::-1, 1].T, "coronal": lambda: voxels[::-1, 1, ::-1].T,
              "sagittal": lambda: voxels[1, ::-1, ::-1].T}[plane]()
    np.testing.assert_array_equal(screen[_FRAME:-_FRAME, _FRAME:-_FRAME], np.rint(255 * session.case.image[1]))


def test_what_is_drawn_on_the_frame_is_dropped(heart):
    grid = canvas_grid(heart)
    bitmap = np.full(np.prod(grid.shape), 3, np.uint8)
    inside = scribble_of(bitmap, grid)
    assert inside.shape == heart.image.shape and (inside == 2).all()
    edge = bitmap_of(inside, grid).reshape(grid.shape, order="F")
    assert (edge == 0).sum() == edge.size - inside.size


# ---- the folder


def test_saved_folder_is_a_dataset(tmp_path, heart):
    path = store(tmp_path / "heart.nii.gz", (1000 * heart.image).astype(np.int16), ornt=((1, -1), (2, 1), (0, 1)))
    session = open_session(path, NAMES)
    drawn = marks(heart.image.shape, c0=9, c1=4, c2=5, c3=6)
    assert save_session(session, drawn) == tmp_path / "annotated/scribbles/heart.nii.gz"
    assert json.loads((tmp_path / "annotated/dataset.json").read_text()) == {
        "labels": {"background": 0, "RV": 1, "Myo": 2, "LV": 3}, "ignore": 255}
    assert check(tmp_path / "annotated").fine
    data = open_dataset("folder", tmp_path / "annotated")
    (case,) = data.cases()
    np.testing.assert_array_equal(case.scribble, drawn)
    np.testing.assert_array_equal(case.image, session.case.image)
    assert data.class_names == NAMES and (tmp_path / "annotated/images/heart.nii.gz").read_bytes() == path.read_bytes()


def test_opened_again_the_strokes_are_there(tmp_path, heart):
    path = store(tmp_path / "images/heart.nii", heart.image, ornt=((2, 1), (0, -1), (1, 1)))
    drawn = marks(heart.image.shape, c0=3, c1=3)
    save_session(open_session(path, NAMES), drawn)
    again = open_session(path)
    assert again.labels.names == NAMES and again.root == tmp_path.resolve()
    np.testing.assert_array_equal(again.case.scribble, drawn)
    save_session(again, again.case.scribble)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["dataset.json", "heart.nii", "heart.nii.gz"]


def test_a_folder_keeps_its_values_and_options(tmp_path, heart):
    "Strokes made elsewhere: 0 not drawn, 9 background, 5 an organ; slices taken across the file's own axis."
    path = store(tmp_path / "images/a.nii.gz", heart.image)
    content = {"labels": {"background": 9, "liver": 5}, "ignore": 0, "axis": "sagittal", "reference": "us"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    session = open_session(path)
    assert session.case.grid.plane == "sagittal" and session.labels.names == ("background", "liver")
    save_session(session, marks(session.case.image.shape, c0=4, c1=2))
    values = np.unique(nib.load(tmp_path / "scribbles/a.nii.gz").dataobj, return_counts=True)
    assert dict(zip(*map(np.ndarray.tolist, values), strict=True)) == {0: heart.image.size - 6, 5: 2, 9: 4}
    assert json.loads((tmp_path / "dataset.json").read_text()) == content and check(tmp_path).fine


def test_missing_names_are_added_to_a_folders_dataset_json(tmp_path, heart):
    path = store(tmp_path / "images/a.nii.gz", heart.image)
    (tmp_path / "dataset.json").write_text('{"axis": "axial"}')
    save_session(open_session(path, NAMES[:2]), marks(heart.image.shape, c0=4, c1=2))
    assert json.loads((tmp_path / "dataset.json").read_text()) == {
        "axis": "axial", "labels": {"background": 0, "RV": 1}, "ignore": 255}


def test_modalities_together(tmp_path, heart):
    files = [store(tmp_path / f"in/t{n}.nii.gz", (heart.image * (1, -1)[n] + n) * 100) for n in (0, 1)]
    work = Annotator(files, NAMES[:2], tmp_path / "out", **FAST)
    assert work.session.case.image.shape[1] == 2
    work.record(marks(heart.image.shape, c0=9, c1=9))
    work.train()
    work.save()
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == ["t0_0000.nii.gz", "t0_0001.nii.gz"]
    data = folder(tmp_path / "out")
    assert data.channels == 2 and check(tmp_path / "out").fine
    np.testing.assert_array_equal(next(data.cases()).scribble, work.scribble)
    assert open_session(tmp_path / "out/images/t0_0001.nii.gz").case.image.shape[1] == 2


def test_a_case_from_memory(tmp_path, heart):
    session, drawn = open_session(heart, NAMES, tmp_path), marks(heart.image.shape, c0=4, c3=2)
    assert (session.case.scribble == IGNORE).all() and session.case.label is None
    save_session(session, drawn)
    np.testing.assert_array_equal(open_session(heart, NAMES, tmp_path).case.scribble, drawn)
    (problem,) = check(tmp_path).problems
    assert "no scribble of the class 'RV' (value 1), 'Myo' (value 2) on the 1 patient trained on" in problem
    scan, scribble = (nib.load(tmp_path / f"{kind}/{heart.name}.nii.gz") for kind in ("images", "scribbles"))
    assert np.array_equal(scan.affine, scribble.affine) and scan.shape == scribble.shape == heart.image.shape[::-1]


# ---- faults


def make_4d(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), np.eye(4)), folder / "film.nii")
    return folder / "film.nii"


def make_broken(folder: Path) -> Path:
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8bnot really")
    return folder / "broken.nii.gz"


@pytest.mark.parametrize(("make", "classes", "words"), [
    (lambda tmp: tmp / "none.nii.gz", NAMES, "none.nii.gz"),
    (make_broken, NAMES, "unreadable"),
    (make_4d, NAMES, "one number per voxel in 3D; of a film"),
    (lambda tmp: store(tmp / "a.nii.gz", np.arange(24.0).reshape(2, 3, 4)), None, "classes: found []"),
    (lambda tmp: store(tmp / "a.nii.gz", np.arange(24.0).reshape(2, 3, 4)), ["liver", "spleen"], "the background and"),
    (lambda tmp: store(tmp / "a.nii.gz", np.arange(24.0).reshape(2, 3, 4)), ["background", "a", "a"], "classes"),
    (lambda tmp: store(tmp / "a_gt.nii.gz", np.arange(24.0).reshape(2, 3, 4)), NAMES, "ends like a mask's"),
])
def test_faults_of_the_scan_are_reported(tmp_path, make, classes, words, capsys):
    path = make(tmp_path)
    work = Annotator(path, classes)
    work._ipython_display_()
    assert words in str(work.error)
    with pytest.raises((DataError, OSError)) as caught:
        work.train()
    assert caught.value is work.error


def test_no_scan_at_all():
    with pytest.raises(DataError, match="scan: found no file, expected a NIfTI file"):
        open_session([], NAMES)


def test_a_wrong_setting_is_refused_before_anything_is_drawn(tmp_path, heart):
    with pytest.raises(ValueError, match="iteratons: "):
        Annotator(heart, NAMES, tmp_path, iteratons=5)


def test_other_names_than_the_folders(tmp_path, heart):
    save_session(open_session(heart, NAMES, tmp_path), marks(heart.image.shape, c0=1))
    with pytest.raises(DataError, match=r"classes: found \['background', 'liver'\], expected those of .*'RV'"):
        open_session(heart, ["background", "liver"], tmp_path)


def test_names_without_a_scan(tmp_path, heart):
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 4, "liver": 1}}')
    with pytest.raises(DataError, match=r"dataset.json: found no scan beside it, expected the scan in .*images"):
        open_session(heart, ["background", "liver"], tmp_path)


def test_another_scan_of_the_same_name(tmp_path, heart):
    first, second = (store(tmp_path / f"{n}/a.nii.gz", heart.image + n) for n in (1, 2))
    drawn = marks(heart.image.shape, c0=1)
    save_session(open_session(first, NAMES, tmp_path / "out"), drawn)
    with pytest.raises(DataError, match="another scan of this name"):
        save_session(open_session(second, NAMES, tmp_path / "out"), drawn)


@pytest.mark.parametrize(("drawn", "words"), [({}, "nothing drawn"), ({"c1": 3, "c2": 2}, "only RV and Myo drawn"),
                                              ({"c0": 3}, "only background drawn")])
def test_too_little_to_learn_from(tmp_path, heart, drawn, words):
    work = Annotator(heart, NAMES, tmp_path, **FAST)
    work.record(marks(heart.image.shape, **drawn))
    work.controls.train.click()
    assert words in work.controls.status.value and not work.controls.train.disabled
    with pytest.raises(DataError, match=words):
        work.train()
    assert not work.controls.train.disabled


def test_a_fault_on_saving_is_reported(tmp_path, heart):
    work = Annotator(heart, NAMES, tmp_path / "out")
    work.controls.save.click()
    assert "nothing drawn" in work.controls.status.value
    work.record(marks(heart.image.shape, c0=3))
    (tmp_path / "out").write_text("a file where a folder should be")
    work.controls.save.click()
    assert "jp-error" in work.controls.status.value


def test_without_ipyniivue_it_says_what_to_install(tmp_path, heart, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(ImportError, match=r"pip install 'attenscribble\[book\]'"):
        Annotator(heart, NAMES, tmp_path)


def test_unknown_voxel_size_is_reported_on_saving(tmp_path, heart):
    work = Annotator(replace(heart, spacing_mm=None, affine=None), NAMES, tmp_path)
    work.record(marks(heart.image.shape, c0=3, c1=3))
    work.controls.save.click()
    assert "neither affine nor spacing_mm" in work.controls.status.value
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ---- the widget


def test_pens_and_their_colours(tmp_path, heart):
    work = Annotator(heart, NAMES, tmp_path)
    pens = work.controls.pens
    assert [pen.style.button_color for pen in pens[:4]] == ["#FFFFFF", *CLASS_COLOURS[:3]]
    for number, value in ((0, 1), (3, 4), (4, 0)):
        pens[number].click()
        assert work.canvas.view.opts.pen_value == value
        assert [pen.description.startswith("✎") for pen in pens].index(True) == number
    lut = np.array(work.canvas.view.draw_lut.lut).reshape(-1, 4)
    assert [f"#{r:02X}{g:02X}{b:02X}" for r, g, b, _ in lut[1:5]] == ["#FFFFFF", *CLASS_COLOURS[:3]] and lut[0, 3] == 0
    mask = np.array(work.canvas.mask.colormap_label.lut).reshape(-1, 4)
    assert [f"#{r:02X}{g:02X}{b:02X}" for r, g, b, _ in mask[1:4]] == list(CLASS_COLOURS[:3]) and mask[0, 3] == 0


def test_a_drawing_arrives_and_undo_takes_it_back(tmp_path, heart):
    work = Annotator(heart, NAMES, tmp_path)
    sent = []
    work.canvas.view.send = lambda content, buffers=(): sent.append((content["type"], *map(bytes, buffers)))
    work.canvas.shown = True
    first, second = marks(heart.image.shape, c1=4), marks(heart.image.shape, c1=4, c0=5)
    work.canvas.request_drawing()
    work.canvas.view.draw_bitmap = bitmap_of(first, work.canvas.grid)
    work.canvas.request_drawing()
    work.controls.undo.click()  # the second stroke is still on its way
    work.canvas.view.draw_bitmap = bitmap_of(second, work.canvas.grid)
    assert {kind for kind, *_ in sent} == {"set_drawing_enabled"}, "the canvas's own drawing came back to it"
    assert "Not yet: Myo, LV" in work.controls.status.value and "on slices 1." in work.controls.status.value
    assert [pen.description for pen in work.controls.pens[:2]] == ["background · 5", "✎ RV · 4"]
    assert np.array_equal(work.scribble, second), "undo has to wait for strokes that are on their way"
    work.canvas.view.draw_bitmap = bitmap_of(second, work.canvas.grid)
    np.testing.assert_array_equal(work.scribble, first)
    assert sent[-1] == ("buffer_change", bitmap_of(first, work.canvas.grid).tobytes())
    assert work.controls.save.button_style == "warning"


def test_a_pen_that_is_not_there(tmp_path, heart):
    work = Annotator(heart, NAMES, tmp_path)
    for pen in (-1, 5):
        with pytest.raises(ValueError, match=f"pen: found {pen}, expected a class id below 4, or 4, the eraser"):
            work.choose(pen)
    assert work.canvas.view.opts.pen_value == 2, "the first organ's pen is still held"


def test_strokes_from_python_are_copied_and_shown(tmp_path, heart):
    work = Annotator(heart, NAMES, tmp_path)
    sent = []
    work.canvas.view.send = lambda content, buffers=(): sent.append(bytes(buffers[0]))
    first, second = marks(heart.image.shape, c1=4), marks(heart.image.shape, c1=4, c0=5)
    given = np.asfortranarray(second.astype(np.int64))  # other layouts and types than the canvas sends
    work.record(first)
    work.record(given)
    assert sent == [bitmap_of(drawn, work.canvas.grid).tobytes() for drawn in (first, second)]
    work.undo()
    np.testing.assert_array_equal(work.scribble, first)
    np.testing.assert_array_equal(given, second)
    assert work.scribble.dtype == np.uint8 and sent[2] == sent[0]


@pytest.mark.parametrize(("change", "words"), [
    (lambda drawn: drawn[1:], r"scribble: found shape \(5, 64, 58\), expected \(6, 64, 58\)"),
    (lambda drawn: np.where(drawn == 1, 4, drawn), "scribble: found the values 4, expected class ids below 4, and 255"),
    (lambda drawn: np.where(drawn == 1, 256, drawn.astype(int)), "scribble: found the values 256, expected"),
])
def test_strokes_from_python_that_do_not_fit(tmp_path, heart, change, words):
    work = Annotator(heart, NAMES, tmp_path)
    with pytest.raises(ValueError, match=words):
        work.record(change(marks(heart.image.shape, c1=4)))
    assert (work.scribble == IGNORE).all()


def test_the_example_in_its_help_opens_a_scan(tmp_path, heart, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store(tmp_path / "scan.nii.gz", heart.image)
    lines = [line.strip() for line in Annotator.__doc__.splitlines() if line.startswith(" " * 8)]
    assert len(lines) == 2
    namespace = {}
    exec(lines[0], namespace)
    work = eval(lines[1], namespace)
    assert work.session.labels.names == ("background", "liver") and work.session.root == tmp_path / "annotated"


def test_a_canvas_that_is_shown_again_gets_the_drawing(tmp_path, heart):
    work = Annotator(heart, NAMES, tmp_path)
    drawn = marks(heart.image.shape, c1=4)
    work.record(drawn)
    sent = []
    work.canvas.view.send = lambda content, buffers=(): sent.append(bytes(buffers[0]) if buffers else content["type"])
    work.canvas.shown = True
    work.canvas.on_shown()
    work.canvas.view.draw_bitmap = np.zeros(np.prod(work.canvas.grid.shape), np.uint8)  # a fresh canvas has none
    np.testing.assert_array_equal(work.scribble, drawn)
    assert sent == ["set_drawing_enabled", bitmap_of(drawn, work.canvas.grid).tobytes()]


def test_slider_and_wheel_keep_step(tmp_path, heart):
    work = Annotator(heart, NAMES, tmp_path)

    def now_at(z):
        work.canvas.view._handle_custom_msg({"event": "location_change", "data": {"vox": [0, 0, z]}}, [])

    sent = []
    work.canvas.view.send = lambda content, buffers=(): sent.append(content["data"])
    work.canvas.shown = True
    work.controls.slice.value = 5
    assert sent == [[0, 0, 2]]
    now_at(5)  # the canvas's answer
    now_at(1)  # the wheel
    assert work.controls.slice.value == 1 and len(sent) == 1
    work.controls.slice.value, work.controls.slice.value = 2, 4
    now_at(2)
    assert work.controls.slice.value == 4, "an answer that came late pulled the slider back"
    now_at(4)
    assert work.controls.slice.value == 4 and sent[1:] == [[0, 0, 1], [0, 0, 2]]


# ---- learning


def test_learn_finds_the_heart(tmp_path, heart):
    drawn = np.where(heart.scribble == 4, IGNORE, heart.scribble).astype(np.uint8)
    drawn[::2] = IGNORE
    shown = []
    mask, _ = learn(open_session(heart, NAMES, tmp_path), drawn, lambda state, mask: shown.append((state.step, mask)),
                    size=48, iterations=60)
    assert mask.shape == heart.image.shape and mask.dtype == np.uint8
    assert np.mean([dice(mask == c, heart.label == c) for c in (1, 2, 3)]) > 0.4
    assert [step for step, _ in shown] == [*range(10, 61, 10)] and shown[0][1] is not None


def test_learning_never_sees_a_label(tmp_path, heart):
    drawn = marks(heart.image.shape, c0=9, c1=9)
    masks = [learn(open_session(replace(heart, label=label, scribble=label), NAMES, tmp_path), drawn, **FAST)[0]
             for label in (heart.label, 3 - heart.label)]
    np.testing.assert_array_equal(*masks)  # nor does a second training remember the first


def test_stop_keeps_what_was_learnt(tmp_path, heart):
    stop, drawn = threading.Event(), marks(heart.image.shape, c0=9, c1=9)
    mask, state = learn(open_session(heart, NAMES, tmp_path), drawn,
                        lambda state, mask: stop.set() if state.step == 4 else None, stop, **FAST | {"iterations": 20})
    assert state.step == 6 and mask.shape == heart.image.shape


def test_train_in_the_background_then_save_and_predict(tmp_path, heart):
    path = store(tmp_path / "heart.nii.gz", (1000 * heart.image).astype(np.int16), ornt=((1, -1), (2, 1), (0, 1)))
    work = Annotator(path, NAMES, tmp_path / "out", **FAST)
    work.record(marks(heart.image.shape, c0=9, c1=9))
    work.controls.train.click()
    assert work.controls.train.disabled and not work.controls.stop.disabled
    work.thread.join(60)
    assert "Done after 6 iterations" in work.controls.status.value and not work.controls.train.disabled
    work.controls.save.click()
    mask, scan = nib.load(tmp_path / "out/masks/heart.nii.gz"), nib.load(path)
    assert mask.shape == scan.shape and np.array_equal(mask.affine, scan.affine)
    predict_files(tmp_path / "out/models/heart.pt", path, tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "again.nii.gz").dataobj, mask.dataobj)


def test_the_notebook_for_users_runs(tmp_path, heart, root):
    "annotate.ipynb: first as it is, then with a scan of one's own."
    settings = {"scan": str(store(tmp_path / "a.nii.gz", heart.image)), "classes": "background, liver ,spleen",
                "folder": str(tmp_path / "out")}
    cells = nbformat.read(root / "nbs/annotate.ipynb", as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    save = ("annotator.record(0 * annotator.scribble + 255)\nannotator.scribble[0, 0, 0] = 1\n"
            "print(annotator.save(), annotator.session.labels.names)")
    given = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, (*code, save, given, code[1], save))])
    home = tmp_path / "clone/nbs"
    home.mkdir(parents=True)
    Client(notebook, kernel_name="python3", timeout=60, resources={"metadata": {"path": str(home)}}).execute()
    assert "jupyter.widget-view" in str(notebook.cells[1].outputs)
    first, second = (notebook.cells[k].outputs[0].text.strip() for k in (2, 5))
    assert first.endswith("runs/annotated/scribbles/patient001_frame01.nii.gz ('background', 'RV', 'Myo', 'LV')")
    assert second.endswith("out/scribbles/a.nii.gz ('background', 'liver', 'spleen')")


def test_a_correction_is_one_true_stroke_in_each_wrong_slice(heart):
    mask = heart.label.copy()
    mask[1:3] = 0
    mask[3, :3, :3] = 1  # nine pixels are not worth a stroke
    drawn = np.full(heart.label.shape, IGNORE, np.uint8)
    drawn[0, 0, 0] = 0
    better = correct(heart.label, drawn, mask)
    new = (better != IGNORE) & (drawn == IGNORE)
    assert set(np.flatnonzero(new.any((1, 2)))) == {1, 2} and better[0, 0, 0] == 0
    assert np.array_equal(better[new], heart.label[new]) and (mask[new] != heart.label[new]).all()
    assert all(len(set(better[z][new[z]])) == 1 for z in (1, 2)), "a stroke has one class"
    assert (drawn != IGNORE).sum() == 1, "what was given stays as it was"
    assert np.array_equal(correct(heart.label, drawn, mask), better)
    assert np.array_equal(correct(heart.label, better, heart.label), better), "nothing is wrong any more"


def test_training_goes_on_unless_a_stroke_was_taken_back(heart, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("attenscribble.annotation.annotator.learn",
                        lambda session, drawn, show, stop, before, **more: seen.append(before) or learn(
                            session, drawn, show, stop, before, **more))
    work, shape = Annotator(heart, NAMES, tmp_path, **FAST), heart.image.shape
    work.record(marks(shape, c0=9, c1=9))
    work.train()
    first = work.training
    work.record(marks(shape, c0=9, c1=9, c2=9))  # one more
    work.train()
    second = work.training
    work.record(marks(shape, c0=9, c1=8, c2=9))  # one voxel erased
    work.train()
    assert seen == [None, first, None]
    work.record(marks(shape, c0=9, c2=9))  # drawn over
    monkeypatch.setattr("attenscribble.annotation.session.train", lambda *_, **__: 1 / 0)
    before = work.training
    with pytest.raises(ZeroDivisionError):
        work.train()
    assert work.training is before is not second
    assert keeps_strokes(work.trained_on, marks(shape, c0=9, c1=8, c2=9, c3=1))


def test_a_training_that_fails_leaves_the_mask_of_the_one_before(heart, tmp_path, monkeypatch):
    "The canvas has shown a mask of the failed one; what is saved belongs together."
    work = Annotator(heart, NAMES, tmp_path, **FAST)
    work.record(marks(heart.image.shape, c0=9, c1=9))
    mask, training = work.train(), work.training

    def fail(session, drawn, show, *_, **__):
        show(training, np.full_like(mask, 3))
        raise RuntimeError("out of memory")

    monkeypatch.setattr("attenscribble.annotation.annotator.learn", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        work.train()
    assert work.mask is mask and work.training is training and (work.preview == 3).all()
    work.save()
    saved = nib.load(tmp_path / f"masks/{heart.name}.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj).T, mask)


def test_learning_goes_on_from_the_weights_and_leaves_them(heart, tmp_path):
    session, drawn = open_session(heart, NAMES, tmp_path), marks(heart.image.shape, c0=9, c1=9)
    mask, state = learn(session, drawn, **FAST)
    kept = {name: value.clone() for name, value in state.model.state_dict().items()}
    again, further = learn(session, drawn, before=state, **FAST | {"lr": 1e-12})
    assert state.model is not further.model
    for name, weight in state.model.state_dict().items():
        assert torch.equal(weight, kept[name])
        if name.endswith("weight"):  # the running statistics move on
            torch.testing.assert_close(weight, further.model.state_dict()[name])
    assert further.log[0]["loss"] < state.log[0]["loss"] and again.shape == mask.shape


def test_quick_training_drops_nothing(heart, tmp_path):
    _, state = learn(open_session(heart, NAMES, tmp_path), marks(heart.image.shape, c0=9, c1=9), **FAST)
    assert not any(isinstance(part, torch.nn.Dropout) for part in state.model.modules())
