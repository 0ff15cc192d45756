"""What a user's data means: values, organs, bare scans, classes nobody drew, planes; one set of rules everywhere."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from attenscribble.basics.errors import DataError
from attenscribble.data.check import check
from attenscribble.data.folder import IGNORE, folder, read_scan
from attenscribble.data.scribbles import count_strokes
from attenscribble.reporting.nnunet import export_nnunet
from attenscribble.runs.config import Config
from attenscribble.runs.inference import predict_files
from attenscribble.runs.run import run_experiment
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import train

SMALL = {"method": "pce", "profile": "mini", "size": 32, "iterations": 2, "batch": 4, "eval_every": 2, "log_every": 2,
         "device": "cpu", "precision": "float32"}


def save(path: Path, zyx: np.ndarray, mm=(1, 1, 1), affine=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(zyx.T), np.diag([-mm[0], -mm[1], mm[2], 1.0])
                             if affine is None else affine), path)
    return path


def heart(seed=0, z=4, side=48):
    "A disc (1) in a ring (2): image, label, scribble with 0 background and 255 not drawn."
    y, x = np.mgrid[:side, :side]
    r = np.hypot(y - side / 2, x - side / 2)
    label = np.repeat(np.where(r < 8, 1, np.where(r < 14, 2, 0))[None], z, 0).astype(np.uint8)
    image = (np.choose(label, [100, 600, 350]) + np.random.default_rng(seed).normal(0, 25, label.shape)).clip(0)
    scribble = np.full(label.shape, 255, np.uint8)
    scribble[:, side // 2, 20:28], scribble[:, (abs(r - 11) < 0.8) & (x > side / 2)] = 1, 2
    scribble[:, 3:5, 5:-5] = 0
    return image.astype(np.int16), label, scribble


def make(root: Path, count=3, scribble=lambda s, k: s, label=None, content=None) -> Path:
    for k in range(count):
        image, dense, drawn = heart(k)
        save(root / f"images/s{k}.nii.gz", image)
        save(root / f"scribbles/s{k}.nii.gz", scribble(drawn, k))
        if label:
            save(root / f"labels/s{k}.nii.gz", label(dense, k))
    if content is not None:
        (root / "dataset.json").write_text(json.dumps(content))
    return root


def painted(drawn, k=0, share=0.5):
    "0 not drawn, 255 a background painted with a broad brush, up to a band around the organs."
    label = heart()[1]
    r = np.hypot(*(np.mgrid[:48, :48] - 24))
    out = np.where(r[None] > (19 if share > 0.6 else 23), 255, 0) * np.ones_like(label)
    out[(drawn == 1) | (drawn == 2)] = drawn[(drawn == 1) | (drawn == 2)]
    return out.astype(np.uint8)


# ---------------------------------------------------------------- values
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_painted_background_of_255_is_never_inverted(tmp_path, share):
    root = make(tmp_path, scribble=lambda s, k: painted(s, k, share))
    with pytest.raises(DataError, match=r'"ignore": 0 if it is this one \("labels": \{"background": 255'):
        folder(root)
    assert not check(root).fine
    for options in ({"background": 255}, {"background": 255, "ignore": 0}):
        case = next(folder(root, **options).cases())
        np.testing.assert_array_equal(case.scribble == 0, painted(heart()[2], 0, share) == 255)


def test_more_than_three_quarters_of_painted_255_are_told_by_what_lies_beside_the_strokes(tmp_path):
    r = np.hypot(*(np.mgrid[:48, :48] - 24))

    def much(s, k):
        out = np.where(r[None] > 13, 255, 0) * np.ones_like(s)
        out[(s == 1)] = 1
        return out.astype(np.uint8)

    assert (much(heart()[2], 0) == 255).mean() > 0.75
    with pytest.raises(DataError, match="0 is 100% of what lies beside the strokes"):
        folder(make(tmp_path, scribble=much))


def test_the_documented_values_need_no_word(tmp_path):
    dataset = folder(make(tmp_path))
    assert dataset.class_names == ("background", "label 1", "label 2")
    np.testing.assert_array_equal(next(dataset.cases()).scribble, heart()[2])


@pytest.mark.parametrize("scribble, label", [
    (lambda s, k: s, lambda d, k: np.where(d == 1, 3, d)),
    (lambda s, k: np.where(s == 2, 255, s).astype(np.uint8), lambda d, k: d)])
def test_an_organ_of_only_strokes_or_only_labels_is_never_background_silently(tmp_path, scribble, label):
    root = make(tmp_path, scribble=scribble, label=lambda d, k: label(d, k).astype(np.uint8))
    with pytest.raises(DataError, match=r"organs .* in the scribbles and .* in the dense labels.*labels.: .*map"):
        folder(root)
    assert any("in the dense labels" in line for line in check(root).problems)


def test_an_organ_that_only_labels_hold_can_be_left_out_by_word(tmp_path):
    root = make(tmp_path, scribble=lambda s, k: np.where(s == 2, 255, s).astype(np.uint8), label=lambda d, k: d,
                content={"map": {"2": 0}})
    dataset = folder(root)
    assert dataset.class_names == ("background", "label 1") and check(root).fine
    np.testing.assert_array_equal(next(dataset.cases()).label, heart()[1] == 1)


def test_an_extra_value_of_the_strokes_is_not_taken_for_the_background(tmp_path):
    swap = np.zeros(256, np.uint8)
    swap[[0, 1, 2]] = 3, 1, 2  # ITK-SNAP's habit: 0 not drawn, background drawn as 3; here 3 could be an organ, too
    root = make(tmp_path, scribble=lambda s, k: swap[s], label=lambda d, k: d)
    with pytest.raises(DataError, match='"ignore": 0 if it is this one'):
        folder(root)


def test_values_above_255_have_a_way_in(tmp_path):
    big = np.arange(256).astype(np.int16)
    big[2] = 300
    root = make(tmp_path, scribble=lambda s, k: big[s], label=lambda d, k: big[d])
    with pytest.raises(DataError, match=r'class values \[300\].*"map": \{"300": 2\} in dataset.json'):
        folder(root)
    (root / "dataset.json").write_text(json.dumps({"map": {"300": 2}}))
    dataset = folder(root)
    assert dataset.values == (0, 1, 2) and check(root).fine
    case = next(dataset.cases())
    np.testing.assert_array_equal(case.scribble, heart()[2])
    np.testing.assert_array_equal(case.label, heart()[1])
    (root / "dataset.json").unlink()
    assert folder(root, map='{"300": 2}').values == (0, 1, 2), "as a command line gives it"
    for wrong in ("300", '{"300": 256}', '{"x": 1}'):
        with pytest.raises(DataError, match="option map"):
            folder(root, map=wrong)


def test_nan_can_be_said_to_be_not_drawn(tmp_path):
    root = make(tmp_path, scribble=lambda s, k: np.where(s == 255, np.nan, s).astype(np.float32))
    with pytest.raises(DataError, match=r'NaN in \d+ .*"map": \{"nan": 255\}'):
        folder(root)
    np.testing.assert_array_equal(next(folder(root, map={"nan": 255}).cases()).scribble, heart()[2])


def test_a_named_organ_that_no_label_shows_is_remarked_on(tmp_path):
    root = make(tmp_path, label=lambda d, k: np.where(d == 2, 0, d).astype(np.uint8),
                content={"labels": {"background": 0, "one": 1, "two": 2}, "ignore": 255})
    assert any("strokes show two, and no dense label does" in line for line in check(root).remarks)


# ---------------------------------------------------------------- strokes of patients with bare scans
def frames(root: Path, bare=("p1_f1", "p2_f1"), labelled=()) -> Path:
    for p in range(3):
        for f in range(2):
            name, (image, label, scribble) = f"p{p}_f{f}", heart(10 * p + f)
            save(root / f"images/{name}.nii.gz", image)
            if name not in bare:
                save(root / f"scribbles/{name}.nii.gz", scribble)
            if name in labelled:
                save(root / f"labels/{name}.nii.gz", label)
    return root


def test_a_bare_scan_does_not_drop_its_patients_strokes(tmp_path, capsys):
    root = frames(tmp_path / "d")
    assert folder(root, patient="[^_]+").split(1)[0] == ("p0", "p1", "p2")
    strokes = 4 * count_strokes(heart()[2], 255)
    words = f"{strokes} strokes on 16 slices of 4 scans of 3 patients"
    assert words in check(root, patient="[^_]+").plan
    run = run_experiment(Config(dataset="folder", root=str(root), data_patient="[^_]+", output=str(tmp_path / "runs"),
                                **SMALL))
    said = capsys.readouterr().err
    assert words in said and "2 of these patients' 6 scans have no scribble" in said and len(run.masks) == 6


def test_labels_that_are_not_scored_against_are_named(tmp_path):
    report = check(frames(tmp_path, bare=(), labelled=("p0_f0", "p1_f0", "p2_f0")), patient="[^_]+")
    assert any("labels of p0, p1, p2 are not scored against" in line for line in report.remarks)


def test_a_bare_scan_is_not_exported(tmp_path):
    place = export_nnunet(folder(frames(tmp_path / "d"), patient="[^_]+"), tmp_path / "raw")
    assert [p.name for p in sorted((place / "labelsTr").iterdir())] == [
        f"{name}.nii.gz" for name in ("p0_f0", "p0_f1", "p1_f0", "p2_f0")]


# ---------------------------------------------------------------- one set of rules
NAMED = {"labels": {"background": 0, "one": 1, "two": 2, "tumour": 3}, "ignore": 255}


def with_tumour(k0):
    corner = (np.arange(48) > 40) & (np.arange(48)[:, None] > 40)
    return lambda s, k: np.where(corner & (k == k0), 3, s).astype(np.uint8)


def refused_by_all(root: Path, tmp_path: Path, fold=1, **options) -> str:
    "The words in which check, train and export refuse a fold."
    (problem,) = check(root, **options).problems
    settings = {f"data_{name}": value for name, value in options.items()}
    config = Config(dataset="folder", root=str(root), fold=fold, output=str(tmp_path / "runs"), **settings, **SMALL)
    with pytest.raises(DataError) as trained:
        run_experiment(config)
    with pytest.raises(DataError) as exported:
        export_nnunet(resolve(config).dataset, tmp_path / "raw", fold=fold)
    assert str(trained.value) == str(exported.value) == problem
    return problem


def test_a_class_that_nobody_drew_is_refused_in_the_same_words(tmp_path):
    root = make(tmp_path / "d", content=NAMED)
    assert "'tumour' (value 3)" in refused_by_all(root, tmp_path)
    (root / "dataset.json").write_text(json.dumps(NAMED | {"map": {"3": 0}, "labels": {
        name: value for name, value in NAMED["labels"].items() if value != 3}}))
    assert check(root).fine


def test_a_class_that_only_tested_patients_drew_is_refused_in_their_fold(tmp_path):
    root = make(tmp_path / "d", scribble=with_tumour(0), label=with_tumour(0), content=NAMED)
    dataset = folder(root)
    (fold,) = (k for k, test in dataset.folds.items() if "s0" in test)
    assert f"fold {fold}: found no scribble of the class 'tumour'" in refused_by_all(root, tmp_path, fold)
    other = next(k for k in dataset.folds if k != fold)
    config = Config(dataset="folder", root=str(root), fold=other, output=str(tmp_path / "runs"), **SMALL)
    assert run_experiment(config).result["trained_on"]["patients"] == 2


def test_a_background_that_nobody_drew_is_refused(tmp_path):
    root = make(tmp_path / "d", scribble=lambda s, k: np.where(s == 0, 255, s).astype(np.uint8))
    assert "no scribble of the class 'background' on" in refused_by_all(root, tmp_path)


@pytest.mark.parametrize("count, options", [(1, {}), (3, {"folds": 1})])
def test_a_fold_without_training_patients_is_refused_in_the_same_words(tmp_path, count, options):
    root = make(tmp_path, count, label=lambda d, k: d)
    with pytest.raises(DataError, match=r"none to train on.*folds=0") as refused:
        folder(root, **options)
    assert check(root, **options).problems == [str(refused.value)]
    assert folder(root, folds=0).split(1)[0] and check(root, folds=0).fine


def test_names_without_a_background_mean_the_same_for_check_and_train(tmp_path):
    for number, labels in enumerate(({"one": 1, "two": 2}, {"one": 0, "two": 1, "three": 2}, {"two": 2})):
        for ignore in ({}, {"ignore": 255}, {"ignore": 0}):
            root = make(tmp_path / f"{number}{len(ignore) and ignore['ignore']}", content={"labels": labels} | ignore)
            fine = check(root).fine
            try:
                train(resolve(Config(dataset="folder", root=str(root), **SMALL)), root / "run")
            except DataError:
                assert not fine, (labels, ignore)
            else:
                assert fine, (labels, ignore, check(root).problems)


def test_a_voxel_size_of_infinity_is_a_problem(tmp_path):
    root = make(tmp_path, 2)
    path = root / "images/s0.nii.gz"
    scan = nib.load(path)
    scan.header["pixdim"][3] = np.inf
    raw = scan.header.binaryblock + b"\0" * 4 + np.asfortranarray(scan.dataobj).tobytes("F")
    (root / "images/s0.nii").write_bytes(raw)
    path.unlink()
    fine = check(root).fine
    try:
        list(folder(root).cases())
    except DataError:
        assert not fine
    else:
        assert fine


# ---------------------------------------------------------------- planes
def thin(root: Path, name: str, mm, strokes=True) -> None:
    z, y, x = np.mgrid[:40, :48, :48]
    label = np.where(np.hypot(y - 24, x - 24) < 8, 1, 0)
    scribble = np.full(label.shape, 255, np.uint8)
    for k in (5, 20, 35):
        scribble[k, 24, 20:28], scribble[k, 4, 5:40] = 1, 0
    save(root / f"images/{name}.nii.gz", (100 + 500 * label).astype(np.int16) + z.astype(np.int16), mm)
    if strokes:
        save(root / f"scribbles/{name}.nii.gz", scribble, mm)


@pytest.mark.parametrize("mm", [(0.98, 0.98, 5), (0.98, 0.98, 0.7), (0.98, 0.98, 0.975), (1, 1.2, 1)])
def test_slices_lie_as_the_strokes_do(tmp_path, mm):
    thin(tmp_path, "s", mm)
    case = next(folder(tmp_path).cases())
    assert case.grid.plane == "axial" and (case.scribble != IGNORE).any((1, 2)).sum() == 3


def test_predict_keeps_the_plane_of_the_training(tmp_path):
    for name, mm in (("a", (0.98, 0.98, 5)), ("b", (0.98, 0.98, 5))):
        thin(tmp_path / "mine", name, mm)
    thin(tmp_path / "mine", "bare", (0.98, 0.98, 0.7), strokes=False)
    dataset = folder(tmp_path / "mine")
    assert [case.grid.plane for case in dataset.cases()] == ["axial"] * 3
    thin(tmp_path / "new", "thin", (0.98, 0.98, 0.7), strokes=False)
    images = [tmp_path / "new/images/thin.nii.gz"]
    assert read_scan(images, axis="auto").grid.plane == "coronal"
    assert read_scan(images, **dataset.facts()["reading"]).grid.plane == "axial"
    run = run_on(tmp_path / "mine", tmp_path, size=48)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attenscribble.runs.inference.read_scan",
                      lambda *a, **k: seen.append(read_scan(*a, **k)) or seen[-1])
        predict_files(run.folder, tmp_path / "new/images", tmp_path / "masks")
    assert [case.grid.plane for case in seen] == ["axial"]


def test_labels_keep_their_plane_too(tmp_path):
    for name in "ab":
        thin(tmp_path, name, (0.98, 0.98, 5), strokes=False)
        save(tmp_path / f"labels/{name}.nii.gz", heart(z=40)[1], (0.98, 0.98, 5))
    new = save(tmp_path / "new.nii.gz", heart(z=40)[0], (0.98, 0.98, 0.7))
    assert read_scan([new], **folder(tmp_path).reading).grid.plane == "axial"


def oblique(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]]) @ np.diag([-1.5, -1.5, 10, 1])


def test_short_axis_scans_near_45_degrees_are_cut_rightly_and_without_remark(tmp_path):
    for k, degrees in enumerate((41, 44, 47, 50)):
        image, _, scribble = heart(k)
        save(tmp_path / f"mine/images/s{k}.nii.gz", image, affine=oblique(degrees))
        save(tmp_path / f"mine/scribbles/s{k}.nii.gz", scribble, affine=oblique(degrees))
    dataset = folder(tmp_path / "mine")
    assert {case.grid.plane for case in dataset.cases()} == {"axial", "sagittal"}
    assert all(case.grid.spacing_mm[0] == pytest.approx(10) for case in dataset.cases())
    report = check(tmp_path / "mine")
    remarks = [line for line in report.remarks if "names no unit of length" not in line]
    assert report.fine and len(remarks) == 1 and "no names" in remarks[0]
    forced = check(tmp_path / "mine", axis="axial")
    assert sum("not across the largest spacing, because of axis=axial" in line for line in forced.remarks) == 2
    for degrees in (38, 44, 46, 53):
        new = save(tmp_path / "new.nii.gz", heart(9)[0], affine=oblique(degrees))
        assert read_scan([new], **dataset.reading).grid.spacing_mm[0] == pytest.approx(10), degrees


def test_a_mask_that_lost_its_place_is_refused_with_the_cure(tmp_path):
    root = make(tmp_path, 2)
    for k in range(2):
        save(root / f"scribbles/s{k}.nii.gz", heart(k)[2], affine=np.eye(4))
        save(root / f"images/s{k}.nii.gz", heart(k)[0], affine=np.diag([-1.5, 1.5, 10, 1]) @ np.eye(4)[[0, 2, 1, 3]])
    with pytest.raises(DataError, match=r"s0.nii.gz.*1 mm along each axis.*check_affine=false"):
        list(folder(root).cases())
    assert sum("check_affine=false" in line for line in check(root).problems) == 2
    np.testing.assert_array_equal(np.sort(next(folder(root, check_affine=False).cases()).scribble, None),
                                  np.sort(heart()[2], None))


# ---------------------------------------------------------------- a folder that contradicts itself, or holds more
NAMES = {"background": 0, "ring": 1, "disc": 2}


@pytest.mark.parametrize(("content", "words"), [
    ({"labels": NAMES, "ignore": 2}, "ignore: found 2, which labels calls 'disc', expected a value that no class has"),
    ({"labels": NAMES, "background": 1, "ignore": 255}, "background: found 1, and 0 in labels"),
    ({"labels": NAMES | {"ignore": 7}, "ignore": 255}, "ignore: found 255, and 7 in labels"),
    ({"labels": NAMES, "Axis": "sagittal"}, "Axis: found an option nobody knows, expected 'axis', perhaps"),
    ({"labels": NAMES, "axes": "sagittal"}, "axes: found an option nobody knows, expected 'axis', perhaps"),
    ({"label": NAMES}, "label: found an option nobody knows, expected 'labels', perhaps"),
    ({"labels": {"background": 0, "ring": 1, "Avg": 2}}, "labels: found a class called 'Avg', expected another name"),
    ({"labels": NAMES, "ignore_index": 255}, "ignore_index: found an option nobody knows, expected 'ignore', perhaps"),
    ({"labels": NAMES, "channel_names": {"0": "T1", "1": "T2"}},
     "channel_names: found 2 entries, expected 1, as each scan has one file"),
])
def test_a_dataset_json_that_contradicts_itself_is_refused(tmp_path, content, words):
    assert words in refused_by_all(make(tmp_path / "d", content=content), tmp_path)


def test_an_option_that_is_not_read_is_said(tmp_path, capsys):
    root = make(tmp_path / "d", content={"labels": NAMES, "ignore": 255, "mapping": {"2": 1}, "numTraining": 3})
    (line,) = [line for line in check(root).remarks if "mapping" in line]
    assert line.endswith("dataset.json: mapping is no option and was not read")
    train(resolve(Config(**SMALL, dataset="folder", root=str(root))))
    assert f"remark: {line}" in capsys.readouterr().err


@pytest.mark.parametrize("act", ["folder", "link", "capital"])
def test_a_dataset_json_that_cannot_count_is_refused(tmp_path, act):
    root = make(tmp_path / "d")
    if act == "folder":
        (root / "dataset.json").mkdir()
    elif act == "link":
        (root / "dataset.json").symlink_to(tmp_path / "nowhere.json")
    else:
        (root / "Dataset.json").write_text(json.dumps({"labels": NAMES}))
    words = refused_by_all(root, tmp_path)
    assert "dataset.json: found" in words and "expected one file of this name, in small letters" in words


def test_both_forms_of_nnunet_know_an_ignore_label(tmp_path):
    two = {"labels": NAMES | {"ignore": 255}}
    one = {"labels": {str(value): name for name, value in two["labels"].items()}}
    counts = []
    for name, content in (("one", one), ("two", two)):
        root = make(tmp_path / name, content=content)
        (root / "scribbles").rename(root / "labelsTr")
        (root / "images").rename(root / "imagesTr")
        counts.append([np.unique(case.scribble, return_counts=True)[1].tolist() for case in folder(root).cases()])
    assert counts[0] == counts[1] and len(counts[0][0]) == 4


@pytest.mark.parametrize("name", ["s1.nrrd", "s1.png", "s1.nii.gz.bak", "more/s1.nii.gz", "s1_scribble.mha"])
def test_strokes_in_a_form_that_is_not_read_are_named(tmp_path, name):
    root = make(tmp_path / "d", label=lambda d, k: d)
    away = root / "scribbles/s1.nii.gz"
    (root / "scribbles" / name).parent.mkdir(exist_ok=True)
    away.rename(root / "scribbles" / name)
    words = refused_by_all(root, tmp_path)
    assert f"scribbles/{name}: found a scribble of s1 that is not read, expected NIfTI in scribbles/ itself" in words
    (root / "scribbles" / name).rename(away)
    deep = root / "scribbles/one/two/s9.nii.gz"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(away.read_bytes())
    assert [line for line in check(root).remarks if "two/s9.nii.gz: not read" in line]
    shutil.rmtree(root / "scribbles/one")
    (root / "images/preview.png").write_bytes(b"\x89PNG")
    (root / "images/.hidden.png").write_bytes(b"")
    assert [line for line in check(root).remarks if "not read" in line] == [
        f"{root}/images/preview.png: not read, as it is no *.nii or *.nii.gz in the folder itself"]


def test_strokes_are_no_dense_truth_though_they_lie_in_labels(tmp_path):
    root = make(tmp_path / "d", label=lambda d, k: d)
    (root / "scribbles/s1.nii.gz").rename(root / "labels/s1_scribble.nii.gz")
    (root / "labels/s1.nii.gz").unlink()
    assert "labels/s1_scribble.nii.gz: found a scribble by its name, in a folder of labels" in refused_by_all(
        root, tmp_path)


@pytest.mark.parametrize("name", ["Scribbles", "scribble", "Labels", "label", "Images"])
def test_a_folder_whose_name_is_almost_right_is_refused(tmp_path, name):
    root = make(tmp_path / "d")
    (root / name).mkdir()
    right = next(kind for kind in ("images", "scribbles", "labels") if name.lower()[:5] == kind[:5])
    with pytest.raises(DataError, match=f"{name}: found a folder of this name, expected {right}/, or a name unlike it"):
        folder(root)


def test_strokes_beside_the_folders_are_named_and_scans_there_are_remarked(tmp_path):
    root = make(tmp_path / "d")
    shutil.copy(root / "images/s1.nii.gz", root / "further.nii.gz")
    assert [line for line in check(root).remarks if "/further.nii.gz: not read" in line]
    (root / "scribbles/s1.nii.gz").rename(root / "s1_scribble.nii.gz")
    assert "s1_scribble.nii.gz: found a scribble of s1 that is not read" in refused_by_all(root, tmp_path)
    (root / "s1_scribble.nii.gz").unlink()
    (root / "scribbles/s1").mkdir()
    shutil.copy(root / "scribbles/s0.nii.gz", root / "scribbles/s1/seg.nii.gz")
    assert "scribbles/s1/seg.nii.gz: found a scribble of s1 that is not read" in refused_by_all(root, tmp_path)


@pytest.mark.parametrize("said", [{"comment": "x"}, {"contact": "me"}, {"folder": "f"}])
def test_other_keys_are_no_misspelt_options(tmp_path, said):
    report = check(make(tmp_path / "d", content={"labels": NAMES, "ignore": 255} | said))
    assert report.fine and len([line for line in report.remarks if "is no option and was not read" in line]) == 1


@pytest.mark.parametrize("said", [{"ignore": True}, {"folds": True}, {"seed": False}, {"map": {"300": True}}])
def test_truth_values_in_dataset_json_are_no_numbers(tmp_path, said):
    root = make(tmp_path / "d", content={"labels": NAMES, "ignore": 255} | said)
    with pytest.raises(DataError, match="a truth value is no number"):
        folder(root)


def test_an_empty_label_is_a_healthy_patient(tmp_path):
    root = make(tmp_path / "d", label=lambda d, k: d * (k != 1))
    report = check(root)
    assert report.fine and [line for line in report.remarks if "labels/s1.nii.gz: nothing is labelled" in line]
    assert [case.label.any() for case in folder(root).cases()] == [True, False, True]


def test_a_plane_across_the_pixels_is_said_in_training_too(tmp_path, capsys):
    root = make(tmp_path / "d", 2)
    for path in [*root.glob("*/*.nii.gz")]:  # 6 mm between the columns, 1 mm between the slices with strokes
        volume = np.asarray(nib.load(path).dataobj).T
        save(path, volume, (6, 1, 1))
    train(resolve(Config(**SMALL, dataset="folder", root=str(root))))
    assert "slices are 1 mm apart with pixels of 1×6 mm, not across the largest" in capsys.readouterr().err
    assert any("not across the largest spacing, because its strokes lie so" in line for line in check(root).remarks)


def test_two_affines_that_disagree_are_said(tmp_path):
    root = make(tmp_path / "d")
    for path in (root / "images/s1.nii.gz", root / "scribbles/s1.nii.gz"):
        scan = nib.load(path)
        moved = scan.affine.copy()
        moved[:3, 3] += (0, 100, 0)
        scan.set_sform(scan.affine, 1)
        scan.set_qform(moved, 1)
        nib.save(scan, path)
    words = "images/s1.nii.gz: qform and sform place the scan differently, by more than 1 mm; the sform counts"
    assert [line for line in check(root).remarks if line.endswith(words)] and check(root).fine


def test_the_same_numbers_in_another_unit_are_a_matter_of_units(tmp_path):
    root = make(tmp_path / "d")
    scan = nib.load(root / "images/s1.nii.gz")
    scan.header.set_xyzt_units("micron")
    nib.save(scan, root / "images/s1.nii.gz")
    words = refused_by_all(root, tmp_path)
    assert "the headers count in micrometres and mm: set the right unit in both" in words
    assert "check_affine" not in words, "HD95 would be 1000 times too small"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("kind", ["images", "scribbles"])
def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path, kind):
    root = make(tmp_path / "d")
    (root / kind / "s1.nii.gz").unlink()
    os.mkfifo(root / kind / "s1.nii.gz")
    assert f"{kind}/s1.nii.gz: found an unreadable file" in "\n".join(check(root).problems)
    with pytest.raises(DataError, match=rf"{kind}/s1.nii.gz: found an unreadable file"):
        list(folder(root).cases())


def test_a_flat_folder_with_dense_masks_alone_is_found_and_needs_the_method_for_them(tmp_path):
    for k in range(3):
        image, dense, _ = heart(k)
        save(tmp_path / f"s{k}.nii.gz", image)
        save(tmp_path / f"s{k}_gt.nii.gz", dense)
    assert "as there are no strokes: method=fully" in check(tmp_path).plan
    settings = SMALL | {"method": "fully", "dataset": "folder", "root": str(tmp_path)}
    assert train(resolve(Config(**settings))).step == 2


# ---------------------------------------------------------------- strokes at the network's size
def vanishing(kept=()):
    "Class 2 as a line of one pixel that a resize from 48 to 32 skips, but on the slices `kept`; all else is broad."
    seen = {round(i * 47 / 31) for i in range(32)}
    skipped = next(row for row in range(30, 48) if row not in seen)

    def change(s, k):
        out = np.full_like(s, 255)
        out[:, 3:6, 5:-5], out[:, 23:27, 20:28] = 0, 1
        for z in range(len(out)):
            out[z, skipped:skipped + (3 if z in kept else 1), 10:40] = 2
        return out

    return change


def run_on(root: Path, tmp_path: Path, **settings):
    return run_experiment(Config(dataset="folder", root=str(root), output=str(tmp_path / "runs"), **SMALL | settings))


def test_a_class_that_the_resize_loses_is_refused_with_the_cure(tmp_path):
    root = make(tmp_path / "d", scribble=vanishing())
    with pytest.raises(DataError, match=r"scribbles of 'label 2' on 12 slices, at the network's size=32 on none of them"
                       r", expected a larger size \(size=48 loses nothing\), or strokes 2 pixels wide"):
        run_on(root, tmp_path)
    assert run_on(root, tmp_path, size=48).log, "at the size that the refusal names it trains"


def test_a_class_that_few_slices_keep_is_remarked_on(tmp_path, capsys):
    for kept, said in (((0,), True), ((0, 1), False)):
        run_on(make(tmp_path / f"{len(kept)}", scribble=vanishing(kept)), tmp_path)
        words = "remark: 1: fold 1: found scribbles of 'label 2' on 12 slices, at the network's size=32 on 3 of them"
        assert (words in capsys.readouterr().err) == said


def test_a_published_dataset_is_told_and_dense_labels_are_not_counted_slice_by_slice(tmp_path, capsys):
    opened = folder(make(tmp_path / "d", scribble=vanishing(), content={"labels": {"one": 1, "two": 2}}))
    cases = [replace(case, label=np.where(case.scribble == 255, 0, case.scribble)) for case in opened.cases()]
    public = replace(opened, version="", read=lambda patient: [c for c in cases if c.patient == patient])
    train(resolve(Config(**SMALL), public), tmp_path / "one")
    assert "remark: d: fold 1: found scribbles of 'two' on 12 slices" in capsys.readouterr().err
    for case in cases:
        case.label[0, 30:40] = 2
    train(resolve(Config(**SMALL | {"method": "fully"}), public), tmp_path / "two")
    assert "found labels" not in capsys.readouterr().err


def test_strokes_of_which_nothing_is_left_are_refused_by_every_training(tmp_path):
    def points(s, k):
        out = np.full_like(s, 255)
        for class_id, row in enumerate(row for row in range(48) if row not in {round(i * 47 / 31) for i in range(32)}):
            if class_id < 3:
                out[:, row, 20] = class_id
        return out

    opened = folder(make(tmp_path / "d", scribble=points), axis="axial")
    for dataset in (opened, replace(opened, version="")):
        with pytest.raises(DataError, match="all classes on 12 slices, at the network's size=32 on none of them"):
            train(resolve(Config(**SMALL), dataset))


@pytest.mark.parametrize("kind, method, cure", [("scribbles", "pce", "method=fully learns from labels"),
                                                ("labels", "fully", "method=ours learns from scribbles")])
def test_a_method_whose_target_nobody_has_is_refused_with_one_that_learns_from_what_is_there(tmp_path, kind, method,
                                                                                             cure):
    root = make(tmp_path / "d", label=lambda d, k: d)
    for path in (root / kind).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=rf"d: fold 1: found no {kind} but .*expected {kind}, .*{cure}") as refused:
        run_on(root, tmp_path, method=method)
    assert "\n" not in str(refused.value)


def test_masks_that_cannot_be_read_are_the_only_problem(tmp_path):
    root = make(tmp_path / "d", 1)
    colours = np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(colours, np.eye(4)), root / "scribbles/s0.nii.gz")
    (problem,) = check(root).problems
    assert "scribbles/s0.nii.gz: found [('R'" in problem and "expected one number per voxel" in problem
    assert "segments the one scan, scores nothing" in check(make(tmp_path / "e", 1)).plan
