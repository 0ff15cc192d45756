"""Predict goes on after a bad scan and runs no code that a checkpoint names; score takes the masks that it wrote."""

import gc
import json
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from attenscribble.basics.errors import DataError
from attenscribble.data.phantom import phantom
from attenscribble.entry import front_door
from attenscribble.entry.commands import main
from attenscribble.reporting.nnunet import read_predictions, score_predictions
from attenscribble.runs import inference
from attenscribble.runs.config import Config
from attenscribble.runs.inference import ScansFailed, predict_files, save_mask
from attenscribble.runs.run import run_experiment
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import Training, read_checkpoint, start_training, train

pytestmark = pytest.mark.usefixtures("own_cache")

HEARTS = [case for case in phantom(patients=4, side=48, slices=3).cases() if case.frame == "frame01"]
TINY = {"iterations": 4, "batch": 4, "size": 48, "log_every": 2, "method": "pce", "precision": "float32"}
SMALL = {"data_patients": 5, "data_side": 48, "data_slices": 3}


def write(path: Path, volume: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(volume.T), np.diag([1.5, 1.5, 10, 1])), path)
    return path


def checkpoint(folder: Path, dataset=None, **settings) -> Path:
    folder.mkdir(parents=True)
    train(resolve(Config(**TINY | SMALL | settings), dataset), folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    "A checkpoint of the phantom."
    return checkpoint(tmp_path_factory.mktemp("goes-on") / "run")


def scans(folder: Path, bad: bool = True) -> Path:
    "Three good scans, and between them all that a scan can be spoilt by."
    for name, heart in zip("aeh", HEARTS, strict=False):
        write(folder / f"{name}.nii.gz", heart.image)
    if bad:
        write(folder / "b_blank.nii.gz", np.zeros((3, 48, 48), np.int16))
        write(folder / "c_nan.nii.gz", np.where(HEARTS[0].image > 0.5, np.nan, 1).astype(np.float32))
        write(folder / "d_film.nii.gz", np.ones((5, 3, 48, 48), np.float32))
        (folder / "f_text.nii.gz").write_bytes(b"no image")
        whole = write(folder / "g_cut.nii.gz", HEARTS[1].image)
        whole.write_bytes(whole.read_bytes()[:4000])
    return folder


BAD = ("b_blank", "c_nan", "d_film", "f_text", "g_cut")


# ---------------------------------------------------------------- a bad scan does not stop the others
def test_good_masks_are_written_and_each_failure_is_named_with_its_reason(run, tmp_path, capsys):
    folder = scans(tmp_path / "new")
    assert main(["predict", "--checkpoint", str(run), str(folder), str(tmp_path / "masks"), "--uncertainty"]) == 1
    said = capsys.readouterr()
    assert said.out == f"3 masks in {tmp_path / 'masks'}\n"
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == sorted(
        f"{name}{end}.nii.gz" for name in "aeh" for end in ("", "_uncertainty"))
    lines = [line for line in said.err.replace("\r", "\n").splitlines()
             if line and not line.startswith(("scans:", "remark:"))]
    assert lines[0] == "attenscribble: 5 of 8 scans got no mask; the same command goes on with them"
    for name, line in zip(BAD, lines[1:], strict=True):
        assert line.startswith(f"  {folder / name}.nii.gz: "), line
    words = ("contrast", "NaN", "a file of its own", "unreadable", "unreadable")
    assert all(word in line for word, line in zip(words, lines[1:], strict=True)), lines


def test_python_raises_what_the_command_prints_and_says_which_masks_there_are(run, tmp_path, capsys):
    folder = scans(tmp_path / "new")
    with pytest.raises(ScansFailed) as failed:
        front_door.predict(run, folder, tmp_path / "masks")
    assert [path.name for path in failed.value.masks] == ["a.nii.gz", "e.nii.gz", "h.nii.gz"]
    assert [Path(file).name.split(".")[0] for file in failed.value.failures] == [*BAD]
    assert main(["predict", "--checkpoint", str(run), str(folder), str(tmp_path / "masks")]) == 1
    said = capsys.readouterr()
    assert f"attenscribble: {failed.value}\n" in said.err and "3 of them from before" in said.out


def test_a_lone_bad_scan_is_one_line(run, tmp_path):
    path = write(tmp_path / "blank.nii.gz", np.zeros((3, 48, 48), np.int16))
    with pytest.raises(DataError, match=r"blank\.nii\.gz: image: found the value 0") as refused:
        predict_files(run, path, tmp_path / "mask.nii.gz")
    assert "\n" not in str(refused.value) and not (tmp_path / "mask.nii.gz").exists()


def test_a_scan_without_all_modalities_is_named_and_the_others_are_segmented(run, tmp_path, monkeypatch):
    for name, numbers in (("a", (0, 1)), ("b", (0,)), ("c", (0, 1))):
        for number in numbers:
            write(tmp_path / f"new/{name}_{number:04d}.nii.gz", HEARTS[0].image)
    write(tmp_path / "new/stray.nii.gz", HEARTS[0].image)
    found, failures = inference._scans_in(tmp_path / "new", 2)
    assert [*found] == ["a", "c"] and [Path(file).name for file in failures] == ["b_0000.nii.gz", "stray.nii.gz"]
    assert all("a file a modality" in why or "one file a modality" in why for why in failures.values())


def test_a_full_disk_stops_at_once(run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", "masks/a.nii.gz")

    monkeypatch.setattr(inference, "save_mask", full)
    with pytest.raises(OSError, match="No space left"):
        predict_files(run, scans(tmp_path / "new"), tmp_path / "masks")


# ---------------------------------------------------------------- the same command goes on
def test_the_same_command_goes_on_and_never_takes_a_mask_for_another(run, tmp_path):
    folder, masks = scans(tmp_path / "new", bad=False), tmp_path / "masks"
    first = predict_files(run, folder / "a.nii.gz", masks)
    before = first[0].stat().st_mtime_ns
    assert predict_files(run, folder, masks) == [masks / f"{name}.nii.gz" for name in "aeh"]
    assert first[0].stat().st_mtime_ns == before, "it was there"
    assert (predict_files(run, folder, masks, probabilities=True), first[0].stat().st_mtime_ns)[1] == before
    assert (masks / "a_probabilities.nii.gz").is_file(), "what is missing is added"
    write(folder / "a.nii.gz", HEARTS[3].image)  # the scan has changed since
    said = r"a.nii.gz: found a file that is there already, not made by this network of this scan, expected .*--skip"
    with pytest.raises(DataError, match=said):
        predict_files(run, folder, masks)
    predict_files(run, folder, masks, skip_existing=True)
    assert first[0].stat().st_mtime_ns == before
    predict_files(run, folder, masks, overwrite=True)
    assert first[0].stat().st_mtime_ns != before and predict_files(run, folder, masks)


@pytest.mark.parametrize("kind", ["scribbles", "labelsTr", "labelsTs", "images"])
def test_strokes_labels_and_other_scans_are_never_overwritten(run, tmp_path, kind):
    scan = write(tmp_path / "d/images/a.nii.gz", HEARTS[0].image)
    mine = write(tmp_path / "d" / kind / "b.nii.gz", HEARTS[0].label)
    before = mine.read_bytes()
    (tmp_path / "link").symlink_to(mine.parent)
    for target in (mine, tmp_path / "link/b.nii.gz"):
        with pytest.raises(DataError, match=r"b.nii.gz: found a file of a dataset, not written by predict"):
            predict_files(run, scan, target, overwrite=True)
    assert mine.read_bytes() == before
    mine.unlink()
    for _ in range(2):  # what predict wrote there may be replaced
        predict_files(run, scan, mine, overwrite=True)


def test_a_flat_dataset_is_not_overwritten_either(run, tmp_path):
    flat = tmp_path / "flat"
    for name, volume in (("a", HEARTS[0].image), ("a_scribble", HEARTS[0].label), ("b", HEARTS[1].image)):
        write(flat / f"{name}.nii.gz", volume)
    kept = {path.name: path.read_bytes() for path in flat.iterdir()}
    for target in (flat / "a_scribble.nii.gz", flat / "b.nii.gz"):
        with pytest.raises(DataError, match="found a file of a dataset, not written by predict"):
            predict_files(run, write(tmp_path / "new/x.nii.gz", HEARTS[0].image), target, overwrite=True)
    assert kept == {path.name: path.read_bytes() for path in flat.iterdir()}


def test_another_network_s_masks_are_not_kept_unasked(run, tmp_path):
    folder, masks = scans(tmp_path / "new", bad=False), tmp_path / "masks"
    predict_files(run, folder, masks)
    other = checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match="not made by this network"):
        predict_files(other, folder, masks)
    with pytest.raises(DataError, match="not made by this network"):
        predict_files(run, folder, masks, flips=True)
    assert main(["predict", "--checkpoint", str(other), str(folder), str(masks), "--skip-existing"]) == 0


def test_memory_does_not_grow_with_the_number_of_scans(run, tmp_path, monkeypatch):
    for number in range(8):
        write(tmp_path / f"new/{number}.nii.gz", HEARTS[0].image)
    alive, most, read = [], [], inference.read_scan

    def watched(*args, **options):
        gc.collect()
        most.append(sum(image() is not None for image in alive))
        case = read(*args, **options)
        alive.append(weakref.ref(case.image))
        return case

    monkeypatch.setattr(inference, "read_scan", watched)
    predict_files(run, tmp_path / "new", tmp_path / "masks")
    assert len(most) == 8 and max(most) <= 1


# ---------------------------------------------------------------- a checkpoint never decides what is run
FLAG = '''
import pathlib
pathlib.Path({flag!r}).touch()
from attenscribble.method.objective import METHODS
from attenscribble.method.network import UNet2d as Net
from dataclasses import replace
mine = replace(METHODS["pce"], name="mine")
'''


@pytest.fixture
def planted(tmp_path, monkeypatch):
    "A module in the current folder that leaves a trace when it is run; its name is never used twice."
    monkeypatch.chdir(tmp_path)
    name = f"planted_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(FLAG.format(flag=str(tmp_path / "it-ran")))
    return name


def doctored(run: Path, folder: Path, **settings) -> Path:
    "A checkpoint with other settings."
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["config"] |= settings
    del state["seal"]
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "checkpoint.pt")
    return folder


@pytest.mark.parametrize("field, ending", [("method", ":mine"), ("net_name", ":Net"), ("net_name", "")])
def test_what_a_checkpoint_names_is_not_run_unasked(run, planted, tmp_path, capsys, field, ending):
    given = doctored(run, tmp_path / "from-somebody", **{field: planted + ending})
    write(tmp_path / "scan.nii.gz", HEARTS[0].image)
    words = ["predict", "--checkpoint", str(given), "scan.nii.gz", "mask.nii.gz"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert f"{field}: found '{planted}{ending}', which runs {tmp_path / planted}.py, expected" in said, said
    assert f"--trust {planted}" in said and said.count("\n") == 1
    for trust in ("another", f"{planted}x", ""):
        with pytest.raises(DataError, match=f"trust='{planted}'"):
            front_door.predict(given, "scan.nii.gz", "mask.nii.gz", trust=trust)
    state = start_training(resolve(Config(**TINY | SMALL)))
    with pytest.raises(DataError, match="which runs"):
        state.load(given / "checkpoint.pt")
    with pytest.raises(DataError, match="which runs"):
        read_checkpoint(given / "checkpoint.pt")
    assert not (tmp_path / "it-ran").exists() and not (tmp_path / "mask.nii.gz").exists()


@pytest.mark.parametrize("field, ending", [("method", ":mine"), ("net_name", ":Net")])
def test_the_user_may_give_their_word(run, planted, tmp_path, field, ending):
    if field == "net_name":  # a network of that kind has other names for its weights
        given = checkpoint(tmp_path / "run", net_name=planted + ending)
    else:
        given = doctored(run, tmp_path / "run", **{field: planted + ending})
    write(tmp_path / "scan.nii.gz", HEARTS[0].image)
    assert main(["predict", "--checkpoint", str(given), "scan.nii.gz", "m.nii.gz", "--trust", planted]) == 0
    assert (tmp_path / "it-ran").exists() and (tmp_path / "m.nii.gz").is_file()


def test_resuming_one_s_own_idea_needs_no_further_word(planted, tmp_path):
    config = Config(**TINY | SMALL | {"method": f"{planted}:mine"})
    run = checkpoint(tmp_path / "run", method=f"{planted}:mine")
    state: Training = start_training(resolve(config))
    state.load(run / "checkpoint.pt")
    assert state.step == 4


def test_a_known_name_in_the_current_folder_is_not_the_known_network(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("open('it-ran', 'w')")
    given = doctored(run, tmp_path / "run", net_name="torchvision.models:Net")
    with pytest.raises(DataError, match=r"which runs .*torchvision"):
        read_checkpoint(given / "checkpoint.pt")
    assert not (tmp_path / "it-ran").exists()


def test_a_known_network_may_not_fetch_either(run, tmp_path):
    for options in ({"pretrained_url": "http://somewhere/x.pth"}, {"weights": "DEFAULT"}, {"x": "https://a"}):
        given = doctored(run, tmp_path / "run", net_name="monai.networks.nets:HoVerNet", net_options=options)
        with pytest.raises(DataError, match="which runs"):
            read_checkpoint(given / "checkpoint.pt")


# ---------------------------------------------------------------- score takes what predict and the run wrote
VALUES = {"background": 4, "RV": 1, "Myo": 20, "LV": 3}


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    "A folder whose background is 4, as in the README, and whose labels are all there."
    root = tmp_path_factory.mktemp("score") / "my-hearts"
    drawn, dense = np.array([4, 1, 20, 3, 0], np.uint8), np.array([4, 1, 20, 3], np.uint8)
    for heart in HEARTS:
        write(root / f"images/{heart.patient}.nii.gz", (1000 * heart.image).astype(np.int16))
        write(root / f"scribbles/{heart.patient}.nii.gz", drawn[heart.scribble])
        write(root / f"labels/{heart.patient}.nii.gz", dense[heart.label])
    (root / "dataset.json").write_text(json.dumps({"labels": VALUES, "ignore": 0}))
    return root


@pytest.fixture(scope="module")
def outcome(mine):
    return run_experiment(Config(**TINY, profile="mini", dataset="folder", root=str(mine), data_folds=2,
                                 output=str(mine.parent / "runs")))


def test_the_run_s_own_masks_score_as_the_run_did(outcome, mine, tmp_path, capsys):
    words = ["score", "folder", str(outcome.folder / "masks"), f"root={mine}", "data_folds=2"]
    assert main([*words, f"archive={tmp_path}", "--method", "again"]) == 0
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["cases"] == outcome.result["cases"] and result["left_out"] == []
    assert path.name.startswith("my-hearts-again-fold1-") and result["settings"]["folder"] == "my-hearts"
    assert "my-hearts-again-fold1" in capsys.readouterr().out


def test_predict_s_masks_of_the_whole_folder_score_with_maps_beside_them(outcome, mine, tmp_path, capsys):
    masks = tmp_path / "masks"
    predict_files(outcome.folder, mine, masks, probabilities=True, uncertainty=True)
    words = ["score", "folder", str(masks), f"root={mine}", "data_folds=2", f"archive={tmp_path / 'r'}"]
    assert main(words) == 0
    left = capsys.readouterr().err
    result = json.loads(next((tmp_path / "r").glob("*.json")).read_text())
    assert result["cases"] == outcome.result["cases"]
    tested = {row["case"] for row in result["cases"]}
    for heart in HEARTS:
        assert f"{heart.patient}_probabilities" in left and f"{heart.patient}_uncertainty" in left
        assert (f"{heart.patient}," in left + ",") == (heart.patient not in tested)
    write(masks / "stranger.nii.gz", HEARTS[0].label)
    assert main(words) == 1 and "a mask of stranger, expected one of each" in capsys.readouterr().err


def test_class_ids_are_taken_too(outcome, mine, tmp_path):
    dataset = outcome.dataset
    truth = {case.name: case.label for case in dataset.cases(dataset.split(1)[1])}
    for case in dataset.cases(dataset.split(1)[1]):
        save_mask(case.label, case, tmp_path / f"{case.name}.nii.gz")  # 0, 1, 2, 3, where the folder has 0, 1, 3, 20
    found = read_predictions(tmp_path, dataset)
    assert dataset.values == (0, 1, 3, 20) and found.keys() == truth.keys()
    assert all(np.array_equal(mask, truth[name]) for name, (_, mask) in found.items())


def test_numbers_that_may_mean_either_are_refused_until_it_is_said(outcome, tmp_path, capsys):
    dataset = outcome.dataset
    swapped = replace(dataset, values=(0, 2, 1, 3))
    cases = [*dataset.cases(dataset.split(1)[1])]
    for case in cases:
        save_mask(np.ones(case.shape, np.uint8), case, tmp_path / f"{case.name}.nii.gz")
    with pytest.raises(DataError, match=r"found the values \[1\], .*0 2 1 3 \(--values own\) or 0 1 2 3 \(--values"):
        score_predictions(tmp_path, swapped, outcome.config)
    for said, class_id in (("own", 2), ("ids", 1)):
        assert all((mask == class_id).all() for _, mask in read_predictions(tmp_path, swapped, 1, said).values())
    for case in cases:  # as predict and the run write them: the header tells
        save_mask(np.full(case.shape, 2, np.uint8), case, tmp_path / f"{case.name}.nii.gz", swapped.values)
    assert all((mask == 2).all() for _, mask in read_predictions(tmp_path, swapped).values())
    with pytest.raises(ValueError, match="values: found 'idds', expected one of own, ids; did you mean 'ids'"):
        read_predictions(tmp_path, swapped, 1, "idds")


def test_a_folder_of_both_kinds_is_refused(outcome, tmp_path):
    cases = [*outcome.dataset.cases(outcome.dataset.split(1)[1])]
    for case, number in zip(cases, (2, 20), strict=True):
        save_mask(np.full(case.shape, number, np.uint8), case, tmp_path / f"{case.name}.nii.gz")
    with pytest.raises(DataError, match=r"found the values \[2, 20\], expected masks that hold either"):
        read_predictions(tmp_path, outcome.dataset)
