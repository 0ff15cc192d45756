"""From files to masks: predict_files and its command, and a user's folder from check to training to prediction."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from attenscribble.basics.errors import DataError
from attenscribble.data.datasets import open_dataset
from attenscribble.data.folder import folder, read_scan
from attenscribble.data.grid import Grid
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import Case, Dataset
from attenscribble.entry.commands import main
from attenscribble.reporting.figures import find_runs
from attenscribble.reporting.tables import read_results
from attenscribble.runs.config import Config
from attenscribble.runs.inference import (
    find_scans,
    load_mask,
    load_network,
    normalised_entropy,
    predict_files,
    predict_volume,
    save_mask,
    save_volume,
)
from attenscribble.runs.metrics import hd95
from attenscribble.runs.run import plot_attention_rows, plot_predictions, run_experiment, score
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import read_checkpoint, train

pytestmark = pytest.mark.usefixtures("own_cache")

HEARTS = [case for case in phantom(patients=4, side=48, slices=4).cases() if case.frame == "frame01"]
BODY = np.diag([-1.5, -1.5, 10.0, 1])
ORNTS = (None, ((2, 1), (0, -1), (1, -1)), ((1, -1), (0, 1), (2, -1)), ((0, 1), (2, -1), (1, 1)))
VALUES = np.array([9, 10, 20, 30, 0], np.uint8)  # 0 not drawn, background drawn as 9


def tilted(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s, 7], [0, 1, 0, -30], [-s, 0, c, 12], [0, 0, 0, 1]]) @ BODY


def write(path: Path, volume: np.ndarray, affine=BODY, ornt=None, codes=(1, 1)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = nib.Nifti1Image(np.ascontiguousarray(volume.T), affine)
    scan = scan if ornt is None else scan.as_reoriented(np.array(ornt))
    scan.set_sform(scan.affine, codes[0])
    scan.set_qform(scan.affine, codes[1])
    nib.save(scan, path)
    return path


def user_folder(root: Path, channels=1, labels=0) -> Path:
    "Four hearts, each stored and tilted in its own way, drawn with values of the user's own."
    for number, (heart, ornt) in enumerate(zip(HEARTS, ORNTS, strict=True)):
        how = {"affine": tilted(10 * number), "ornt": ornt, "codes": ((1, 1), (4, 0), (2, 1), (1, 4))[number]}
        for channel, image in enumerate([heart.image, 1 - heart.image, heart.image**2][:channels]):
            tail = f"_{channel:04d}" if channels > 1 else ""
            write(root / "images" / f"{heart.patient}{tail}.nii.gz", (1000 * image).astype(np.int16), **how)
        write(root / "scribbles" / f"{heart.patient}.nii.gz", VALUES[heart.scribble], **how)
        if number < labels:
            write(root / "labels" / f"{heart.patient}.nii.gz", np.array([0, 10, 20, 30], np.uint8)[heart.label], **how)
    said = {"labels": {"background": 9, "RV": 10, "Myo": 20, "LV": 30}, "ignore": 0}
    (root / "dataset.json").write_text(json.dumps(said))
    return root


def tiny(**given) -> Config:
    defaults = {"iterations": 8, "batch": 4, "size": 48, "log_every": 4, "asl_radius": 1, "asl_sigma_xy": 1.1,
                "profile": "mini", "precision": "float32"}
    return Config(**(defaults | given))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def outcome(home):
    "A run on a user's folder without labels."
    return run_experiment(tiny(dataset="folder", root=str(user_folder(home / "my-scans")), output=str(home / "runs")))


@pytest.fixture(scope="module")
def hearts_run(home) -> Path:
    "A checkpoint of the phantom, whose augmentation flips."
    target = home / "phantom"
    target.mkdir()
    config = tiny(dataset="phantom", method="pce", data_patients=5, data_side=48, data_slices=4)
    train(resolve(config, phantom(patients=5, side=48, slices=4)), target)
    return target


# ---------------------------------------------------------------- from a dataset of one orientation to a user's file
def test_a_scan_is_turned_as_the_training_scans_lay(home):
    "A checkpoint of scans stored LPS segments one scan alike however its file is stored, and writes in its order."
    target = home / "lps"
    target.mkdir()
    dataset = replace(phantom(patients=5, side=48, slices=4), reading={"axis": "LPS"})
    state = train(resolve(tiny(method="pce", iterations=60, data_patients=5), dataset), target)
    heart = HEARTS[0]
    lies = write(target / "lps.nii.gz", heart.image, tilted(15))
    expected = predict_volume(state.model, read_scan([lies], robust=False).image, size=48)
    assert (expected != expected[:, ::-1]).any() and (expected != expected[:, :, ::-1]).any()
    for number, ornt in enumerate(ORNTS):
        scan = write(target / "scans" / f"{number}.nii.gz", heart.image, tilted(15), ornt)
        (written,) = predict_files(target, scan, target / f"{number}_mask.nii.gz")
        mask, stored = nib.load(written), nib.load(scan)
        assert mask.shape == stored.shape and np.array_equal(mask.affine, stored.affine)
        np.testing.assert_array_equal(Grid.of(mask, "LPS").take(np.asarray(mask.dataobj)), expected)


@pytest.mark.parametrize("name, axis", [("acdc", "RAS"), ("chaos", "LPS")])
def test_real_scans_are_segmented_as_they_were_trained_on(data_root, tmp_path, name, axis):
    "predict on a dataset's own file gives what the run gives: same slices, same order."
    dataset = open_dataset(name, data_root)
    case = dataset.read(dataset.patients[0])[0]
    read = read_scan([Path(case.source)], **dataset.reading)
    assert dataset.reading == {"axis": axis, "robust": False}
    np.testing.assert_array_equal(read.image, case.image)
    np.testing.assert_allclose(read.affine, case.affine, atol=1e-4)


# ---------------------------------------------------------------- a user's folder, end to end
def test_a_folder_without_labels_trains_and_segments_and_is_not_scored(outcome, home):
    assert main(["check", str(home / "my-scans")]) == 0
    result = json.loads((outcome.folder / "result.json").read_text())
    assert result["cases"] == [] and result["scored"] is False and result["test_volumes"] == 4
    assert result["label_values"] == [0, 10, 20, 30] and result["settings"]["folder"] == "my-scans"
    assert str(home) not in json.dumps(result), "no path of this machine in a result"
    report = (outcome.folder / "report.md").read_text()
    assert "Nothing was scored: no dense labels" in outcome.report() and "Nothing was scored" in report
    assert outcome.config.run_id.startswith("my-scans-ours-fold1-")
    for heart in HEARTS:
        scan = nib.load(home / "my-scans" / "images" / f"{heart.patient}.nii.gz")
        mask = nib.load(outcome.folder / "masks" / f"{heart.patient}.nii.gz")
        same_geometry(mask, scan)
        assert mask.get_data_dtype() == np.uint8 and set(np.unique(mask.dataobj)) <= {0, 10, 20, 30}
    figure = plot_predictions(outcome)
    assert len(figure.axes) == 3 and "not scored" in figure.axes[2].get_title()
    assert plot_attention_rows(outcome) is not None and (outcome.folder / "prediction.png").is_file()


def test_the_notebook_takes_a_folder(root, tmp_path):
    arguments = {"dataset": "folder", "root": user_folder(tmp_path / "mine"), "output": tmp_path / "runs",
                 "method": "pce", "profile": "mini", "iterations": 4, "size": 48, "batch": 4, "log_every": 2,
                 "data_augmentation": "acdc"}
    words = [word for name, value in arguments.items() for word in ("-p", name, str(value))]
    done = subprocess.run([sys.executable, "-m", "papermill", "train.ipynb", str(tmp_path / "out.ipynb"), *words],
                          cwd=root / "nbs", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder_,) = (tmp_path / "runs").iterdir()
    assert folder_.name.startswith("mine-pce-") and len(list((folder_ / "masks").iterdir())) == 4
    assert "Nothing was scored" in (tmp_path / "out.ipynb").read_text()
    assert read_checkpoint(folder_ / "checkpoint.pt")["dataset"]["augmentation"] == "acdc"


def same_geometry(ours, theirs):
    assert ours.shape == theirs.shape and (ours.affine == theirs.affine).all()
    for name in ("sform_code", "qform_code", "pixdim", *(f"srow_{k}" for k in "xyz"), *(f"quatern_{k}" for k in "bcd"),
                 *(f"qoffset_{k}" for k in "xyz")):
        np.testing.assert_array_equal(ours.header[name], theirs.header[name], err_msg=name)


def test_prediction_from_files_equals_the_runs_own_masks(outcome, home, capsys):
    places = home / "masks", outcome.folder / "masks"
    words = ["--checkpoint", str(outcome.folder), str(home / "my-scans"), str(places[0]), "--batch", "3"]
    assert main(["predict", *words]) == 0 and "4 masks in" in capsys.readouterr().out
    for heart in HEARTS:
        ours, theirs = (nib.load(place / f"{heart.patient}.nii.gz") for place in places)
        same_geometry(ours, theirs)
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        case = next(c for c in outcome.dataset.cases() if c.name == heart.patient)
        read = load_mask(home / "masks" / f"{heart.patient}.nii.gz", case, outcome.dataset.values)
        np.testing.assert_array_equal(read, outcome.masks[heart.patient])


def test_a_run_that_was_not_scored_does_not_stop_tables_and_figures(outcome, home, tmp_path):
    runs = outcome.folder.parent
    assert find_runs(runs, "folder") == [] and find_runs(runs, "phantom") == []
    (tmp_path / "a.json").write_text((outcome.folder / "result.json").read_text())
    assert read_results(tmp_path) == []
    result = json.loads((tmp_path / "a.json").read_text()) | {"scored": True}
    (tmp_path / "a.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match="cases: found none"):
        read_results(tmp_path)


def test_the_same_folder_resumes_and_a_changed_one_is_another_run(tmp_path):
    root = user_folder(tmp_path / "mine")
    config = tiny(dataset="folder", root=str(root), output=str(tmp_path / "runs"), method="pce")
    first, again = run_experiment(config), run_experiment(config)
    assert first.folder == again.folder and first.log[-1] == again.log[-1]
    drawn = VALUES[HEARTS[0].scribble]
    drawn[0, 0, 0] = 10
    write(root / "scribbles" / f"{HEARTS[0].patient}.nii.gz", drawn, tilted(0))
    other = run_experiment(config)
    assert other.folder != first.folder and (first.folder / "result.json").is_file()


def test_labels_make_folds_and_scores(tmp_path):
    root = user_folder(tmp_path / "labelled", labels=4)
    outcome = run_experiment(tiny(dataset="folder", root=str(root), output=str(tmp_path), fold=2, data_folds=2))
    assert outcome.result["scored"] and {row["class"] for row in outcome.result["cases"]} == {"RV", "Myo", "LV"}
    tested = {row["case"] for row in outcome.result["cases"]}
    assert tested == set(outcome.dataset.folds[2]) == set(outcome.masks) and len(tested) == 2
    (run,) = find_runs(tmp_path, "folder", fold=2)
    case = next(c for c in outcome.dataset.cases() if c.name in tested)
    np.testing.assert_array_equal(run.mask(case), outcome.masks[case.name])


def test_a_lone_slice_is_scored_in_its_plane():
    label, mask = np.zeros((2, 1, 40, 40), np.uint8)
    label[0, 10:30, 10:30] = mask[0, 10:30, 16:36] = 1
    case = Case("a", "", np.zeros(label.shape, np.float32), (1.0, 1.5, 1.5), label=label)
    dataset = Dataset("x", ("background", "square"), 2, ("a",), lambda patient: [case], {1: ("a",)}, "none")
    rows = score(mask, case, dataset, tiny())
    assert {row["hd95_mm"] for row in rows} == {9.0}
    assert hd95(mask[0] == 1, label[0] == 1, (1.5, 1.5)) == pytest.approx(9)
    assert hd95(mask == 1, label == 1, case.spacing_mm) < 9, "in 3D all pixels are surface"


def test_modalities_train_and_predict(tmp_path, capsys):
    root = user_folder(tmp_path / "two", channels=2)
    outcome = run_experiment(tiny(dataset="folder", root=str(root), output=str(tmp_path)))
    assert outcome.model.in_channels == 2 and plot_predictions(outcome) and plot_attention_rows(outcome)
    one = root / "images" / f"{HEARTS[1].patient}_0001.nii.gz"  # any of its files will do
    assert main(["predict", "--checkpoint", str(outcome.folder), str(one), str(tmp_path / "one.nii.gz")]) == 0
    expected = nib.load(outcome.folder / "masks" / f"{HEARTS[1].patient}.nii.gz")
    same_geometry(nib.load(tmp_path / "one.nii.gz"), expected)
    np.testing.assert_array_equal(nib.load(tmp_path / "one.nii.gz").dataobj, expected.dataobj)
    (root / "images" / f"{HEARTS[1].patient}_0000.nii.gz").unlink()
    for source in (one, root):
        assert main(["predict", "--checkpoint", str(outcome.folder), str(source), str(tmp_path / "new")]) == 1
        assert f"{HEARTS[1].patient}_0000 to {HEARTS[1].patient}_0001" in capsys.readouterr().err
        written = {path.name for path in (tmp_path / "new").glob("*")}
        assert written == (set() if source == one else {f"{HEARTS[k].patient}.nii.gz" for k in (0, 2, 3)})


@pytest.mark.parametrize("method", ["random-walker", "scribble2label", "mumford-shah", "ustm", "dual-branch"])
def test_every_family_of_methods_takes_modalities(tmp_path, method):
    root = user_folder(tmp_path / "two", channels=2)
    state = train(resolve(tiny(dataset="folder", root=str(root), method=method, iterations=3, log_every=1, **(
        {"method_every": 1} if method == "scribble2label" else {})), folder(root)))
    assert state.step == 3 and np.isfinite([row["loss"] for row in state.log]).all()


# ---------------------------------------------------------------- what else can be written
def test_probabilities_and_uncertainty(hearts_run, tmp_path):
    source = write(tmp_path / "a.nii.gz", HEARTS[0].image, tilted(15))
    (path,) = predict_files(hearts_run, source, tmp_path / "out", probabilities=True, uncertainty=True)
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["a.nii.gz", "a_probabilities.nii.gz", "a_uncertainty.nii.gz"]
    scan, mask = nib.load(source), nib.load(path)
    shares, doubt = (nib.load(path.with_name(f"a_{kind}.nii.gz")) for kind in ("probabilities", "uncertainty"))
    same_geometry(mask, scan)
    same_geometry(doubt, scan)
    assert shares.shape == (*scan.shape, 4) and (shares.affine == scan.affine).all()
    assert shares.get_data_dtype() == doubt.get_data_dtype() == np.float32
    probs = np.asarray(shares.dataobj)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    assert 0 <= probs.min() and doubt.get_fdata().min() >= 0 and doubt.get_fdata().max() <= 1
    np.testing.assert_allclose(doubt.get_fdata(), -(probs * np.log(probs + 1e-30)).sum(-1) / np.log(4), atol=1e-5)
    assert (probs.argmax(-1) == np.asarray(mask.dataobj)).mean() > 0.9, "they differ at rims only"
    network = load_network(hearts_run / "checkpoint.pt")
    assert network.config.method == "pce"
    expected = predict_volume(network.model, read_scan([source], robust=False).image, size=48)
    np.testing.assert_array_equal(np.asarray(mask.dataobj).T, expected)


def test_entropy_by_hand():
    probs = np.array([[1, 0.5, 0.25], [0, 0.5, 0.25], [0, 0, 0.25], [0, 0, 0.25]])
    np.testing.assert_allclose(normalised_entropy(probs), [0, 0.5, 1], atol=1e-7)
    assert normalised_entropy(probs).dtype == np.float32


class Bright(nn.Module):
    "Three classes by intensity, through a blur that is its own mirror image or, `skewed`, is not."

    def __init__(self, skewed=False):
        super().__init__()
        self.blur = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.blur.weight.data[0, 0] = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 0, 0]]) if skewed else kernel
        self.centres = nn.Parameter(torch.tensor([0.1, 0.5, 0.9]))

    def forward(self, image):
        return -20 * (self.blur(image) - self.centres[:, None, None]).square()


def test_flips_change_nothing_for_a_symmetric_network_and_something_for_another():
    image = np.random.default_rng(0).random((3, 21, 30), np.float32)
    plain, same = (predict_volume(Bright(), image, size=32, flips=way, probabilities=True) for way in (False, True))
    np.testing.assert_array_equal(plain[0], same[0])
    np.testing.assert_allclose(plain[1], same[1], atol=1e-6)
    skewed = Bright(skewed=True)
    plain, mean = (predict_volume(skewed, image, size=32, flips=way, probabilities=True)[1] for way in (False, True))
    assert np.abs(plain - mean).max() > 0.1
    backs = [np.flip(predict_volume(skewed, np.flip(image, there), size=32, probabilities=True)[1], back)
             for there, back in (((), ()), (1, 2), (2, 3), ((1, 2), (2, 3)))]
    np.testing.assert_allclose(mean, np.mean(backs, axis=0), atol=1e-5)


def test_probabilities_do_not_change_the_mask_nor_the_batch():
    image = np.random.default_rng(0).random((5, 2, 21, 30), np.float32)[:, :1]
    mask, probs = predict_volume(Bright(), image, size=32, probabilities=True)
    np.testing.assert_array_equal(mask, predict_volume(Bright(), image, size=32))
    again = predict_volume(Bright(), image, size=32, batch_size=2, probabilities=True)[1]
    assert probs.shape == (3, 5, 21, 30) and probs.dtype == np.float32
    np.testing.assert_allclose(probs, again, atol=1e-6)


def test_flips_only_where_training_flipped(hearts_run, outcome, home, tmp_path, capsys):
    source = write(tmp_path / "a.nii.gz", HEARTS[0].image)
    assert predict_files(hearts_run, source, tmp_path / "flipped", flips=True)[0].is_file()
    status = main(["predict", "--checkpoint", str(outcome.folder), str(source), str(tmp_path / "out"), "--flips"])
    assert status == 1 and "augmentation 'chaos', expected 'acdc', which flips" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- places, names, refusals
def test_names_of_inputs_and_outputs(hearts_run, tmp_path):
    for name in ("a", "scan_0001", "b_0000"):
        write(tmp_path / "in" / f"{name}.nii.gz", HEARTS[0].image)
    write(tmp_path / "in" / "a_gt.nii.gz", HEARTS[0].label)
    written = predict_files(hearts_run, tmp_path / "in", tmp_path / "deep" / "er")
    assert [p.name for p in written] == ["a.nii.gz", "b_0000.nii.gz", "scan_0001.nii.gz"], "a mask is no scan"
    single = predict_files(hearts_run / "checkpoint.pt", tmp_path / "in" / "a.nii.gz", tmp_path / "x.nii")
    assert single == [tmp_path / "x.nii"] and single[0].is_file()
    assert list(find_scans(tmp_path / "in" / "b_0000.nii.gz", 1)) == ["b"], "as nnU-Net names a single modality"
    with pytest.raises(DataError, match=r"x.nii: found one file for a folder of scans, expected a folder"):
        predict_files(hearts_run, tmp_path / "in", tmp_path / "x.nii")


def test_what_is_no_scan_is_named_and_an_open_name_stops_no_other_scan(hearts_run, tmp_path, capsys):
    for name in ("a", "k_gt", "s-scribble", "j_mask", "twice"):
        write(tmp_path / "in" / f"{name}.nii.gz", HEARTS[0].image)
    write(tmp_path / "in" / "twice.nii", HEARTS[1].image)
    for name in ("i.img", "i.hdr", "n.NRRD", "dataset.json"):
        (tmp_path / "in" / name).write_bytes(b"{}")
    words = ["predict", "--checkpoint", str(hearts_run), str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert ("not segmented: k_gt.nii.gz, s-scribble.nii.gz (masks by their names); "
            "i.hdr, i.img, n.NRRD (other formats)\n") in said
    assert "3 of 4 scans got no mask" in said and f"{tmp_path}/in/j_mask.nii.gz: found a mask by its name" in said
    assert said.count("found several scans called twice, expected one") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.nii.gz"]
    (alone,) = predict_files(hearts_run, tmp_path / "in" / "j_mask.nii.gz", tmp_path / "out")
    assert alone.name == "j_mask.nii.gz", "who names the file itself means it"
    for kind, name in (("images", "a"), ("labels", "a"), ("labels", "a_mask")):
        write(tmp_path / "mine" / kind / f"{name}.nii.gz", HEARTS[0].image)
    predict_files(hearts_run, tmp_path / "mine", tmp_path / "more")
    assert "not segmented" not in capsys.readouterr().err, "masks in a folder of their own are not spoken of"


@pytest.mark.parametrize("name", ["out.mha", "out.NRRD", "out.png", "out.hdr", "out.h5"])
def test_a_mask_in_a_format_that_is_not_written_is_refused(hearts_run, tmp_path, name):
    source = write(tmp_path / "a.nii.gz", HEARTS[0].image)
    with pytest.raises(DataError, match=rf"{name}: found a name of another format .* expected NAME.nii.gz or NAME.nii"):
        predict_files(hearts_run, source, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"], "and no folder of that name was made"


def test_nothing_is_overwritten_unasked_and_a_scan_never(hearts_run, tmp_path):
    source = write(tmp_path / "in" / "a.nii.gz", HEARTS[0].image)
    before = source.read_bytes()
    (path,) = predict_files(hearts_run, source, tmp_path / "out")
    path.write_bytes(b"drawn by hand")
    write(tmp_path / "in" / "b.nii.gz", HEARTS[1].image)
    with pytest.raises(DataError, match=r"a.nii.gz: found a file that is there already, .* or --overwrite"):
        predict_files(hearts_run, tmp_path / "in", tmp_path / "out")
    assert path.read_bytes() == b"drawn by hand" and not (tmp_path / "out" / "b.nii.gz").exists()
    predict_files(hearts_run, tmp_path / "in", tmp_path / "out", overwrite=True)
    assert nib.load(path).shape == nib.load(source).shape and (tmp_path / "out" / "b.nii.gz").is_file()
    for target in (tmp_path / "in", source):
        with pytest.raises(DataError, match=r"a.nii.gz: found a scan, expected another folder"):
            predict_files(hearts_run, source, target, overwrite=True)
    assert source.read_bytes() == before


def test_a_bad_input_is_named_and_has_no_mask(hearts_run, tmp_path):
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 5), np.float32), BODY), tmp_path / "in" / "film.nii.gz")
    with pytest.raises(DataError, match=r"film.nii.gz: found .*\(4, 4, 4, 5\).*a file of its own"):
        predict_files(hearts_run, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "film.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"film.nii.gz: found an unreadable file"):
        predict_files(hearts_run, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for source, words in ((tmp_path / "gone.nii.gz", "found no such file"), (tmp_path / "in" / "..", "no NIfTI image"),
                          (Path(__file__), "found another format")):
        with pytest.raises(DataError, match=words):
            predict_files(hearts_run, source, tmp_path / "out")


def test_a_damaged_scan_leaves_no_half_mask(hearts_run, tmp_path):
    write(tmp_path / "in" / "a.nii.gz", HEARTS[0].image)
    path = write(tmp_path / "in" / "b.nii.gz", HEARTS[1].image)
    path.write_bytes(path.read_bytes()[:4000])  # its header is whole
    with pytest.raises(DataError, match=r"b.nii.gz: found an unreadable file"):
        predict_files(hearts_run, tmp_path / "in", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.nii.gz"]


def test_what_is_no_checkpoint(hearts_run, tmp_path):
    source = write(tmp_path / "a.nii.gz", HEARTS[0].image)
    (tmp_path / "empty.pt").touch()
    torch.save({"a": 1}, tmp_path / "other.pt")
    for name in ("gone.pt", "empty.pt", "other.pt", "a.nii.gz"):
        with pytest.raises(DataError, match=rf"{name}: found no checkpoint \(\w+\), expected checkpoint.pt of a run"):
            predict_files(tmp_path / name, source, tmp_path / "out")
    state = torch.load(hearts_run / "checkpoint.pt", weights_only=True)
    facts = state["dataset"]
    assert facts["class_names"] == ("background", "RV", "Myo", "LV") and facts["channels"] == 1
    del state["dataset"], state["seal"]
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(DataError, match=r"old.pt: found no word on its dataset, expected a checkpoint of this version"):
        predict_files(tmp_path / "old.pt", source, tmp_path / "out")
    assert load_network(tmp_path / "old.pt", classes=4).model.classes == 4, "who knows the classes may still load it"


def test_class_values_are_written_and_read_back(tmp_path):
    case = Case("a", "", HEARTS[0].image, HEARTS[0].spacing_mm)
    path = save_mask(HEARTS[0].label, case, tmp_path / "a.nii.gz", (0, 10, 20, 30))
    assert set(np.unique(nib.load(path).dataobj)) == {0, 10, 20, 30}
    np.testing.assert_array_equal(load_mask(path, case, (0, 10, 20, 30)), HEARTS[0].label)
    with pytest.raises(DataError, match=r"a.nii.gz: found the values \[10\], expected only \[0, 20, 30\]"):
        load_mask(path, case, (0, 20, 30))
    with pytest.raises(DataError, match=r"b.nii.gz: found no such file, expected the mask that the run wrote"):
        load_mask(tmp_path / "b.nii.gz", case)
    save_volume(HEARTS[0].label.astype(np.float32) + 300, case, path)
    with pytest.raises(DataError, match=r"a.nii.gz: found the values \[300.0, .*\], expected whole numbers"):
        load_mask(path, case)  # a mask of 300 was taken for one of 44
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"a.nii.gz: found an unreadable file"):
        load_mask(path, case)
    save_volume(HEARTS[0].image[1:], Case("a", "", HEARTS[0].image[1:], (1, 1, 1)), path)
    with pytest.raises(DataError, match=r"a.nii.gz: found shape \(3, .*expected the scan's \(4, "):
        load_mask(path, case)


def test_wrong_usage_ends_with_status_two(capsys):
    for words in (["predict", "in", "out"], ["check"], ["chek", "x"], [], ["predict", "--checkpoint", "c", "a", "b",
                                                                          "--batch", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    assert "usage: attenscribble" in capsys.readouterr().err
