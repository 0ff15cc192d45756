"""A run of a day is safe: faults are named first, what is kept is whole and finite, what is damaged is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch

from attenscribble.basics.errors import DataError
from attenscribble.data.phantom import phantom
from attenscribble.method.objective import METHODS, Method, Term, register, scribble_term
from attenscribble.runs.config import Config
from attenscribble.runs.inference import load_network
from attenscribble.runs.run import run_experiment
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import not_finite, read_checkpoint, start_training, train

pytestmark = pytest.mark.usefixtures("own_cache")


def tiny(**given) -> Config:
    "Settings of a run that takes seconds."
    defaults = {"iterations": 8, "batch": 4, "size": 32, "log_every": 4, "eval_every": 4, "method": "pce",
                "precision": "float32"}
    hearts = {"data_patients": 5, "data_side": 48, "data_slices": 4} if "dataset" not in given else {}
    return Config(**defaults | hearts | given)


@pytest.fixture(scope="module")
def hearts():
    return phantom(patients=5, side=48, slices=4)


# ---- what is in the way is said before anything is touched


def test_a_folder_in_a_checkpoints_place_is_refused_before_masks_go(tmp_path):
    config = tiny(iterations=1, output=str(tmp_path))
    folder = run_experiment(config).folder
    (folder / "checkpoint.pt").unlink()
    (folder / "checkpoint.pt").mkdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"}
    for again in (config, config.model_copy(update={"resume": False})):
        with pytest.raises(DataError, match=r"checkpoint.pt: found no file, expected a checkpoint, or nothing there"):
            run_experiment(again)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"} == before


# ---- never keep what is not finite


@pytest.fixture
def poisoned():
    "A method whose loss is NaN from an iteration on."
    METHODS.pop("poisoned", None)
    since = {"step": 10**9}

    def loss(context):
        return scribble_term(context) * (float("nan") if context.step + 1 >= since["step"] else 1.0)

    register(Method("poisoned", "NaN", "this test", (Term("seg", loss),)))
    yield since
    METHODS.pop("poisoned")


@pytest.mark.parametrize("since", [6, 7, 9])  # between two rows of the log, and between two checkpoints
def test_the_first_loss_that_is_no_number_is_named_and_nothing_of_it_is_kept(poisoned, hearts, tmp_path, since):
    poisoned["step"] = since
    config = tiny(method="poisoned", iterations=12, log_every=100, eval_every=5)
    with pytest.raises(FloatingPointError, match=rf"iteration {since}: the loss is nan on patient\d+_frame\d+_slice_"):
        train(resolve(config, hearts), tmp_path)
    kept = read_checkpoint(tmp_path / "checkpoint.pt")
    assert kept["step"] == 5 and not not_finite(kept)
    poisoned["step"] = 10**9
    assert train(resolve(config, hearts), tmp_path).step == 12  # it goes on from there


@pytest.mark.parametrize("part", ["model", "optimiser", "teacher", "average", "best", "pseudo"])
def test_nothing_that_is_not_finite_is_saved(hearts, tmp_path, part):
    state = start_training(resolve(tiny(method="ustm", ema=0.9), hearts))
    state.save(tmp_path / "checkpoint.pt")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    state.best = {"step": 1, "loss": 0.1, "model": {"weight": torch.ones(3)}}
    state.pseudo = type("Guesses", (), {"mean": torch.ones(3), "state_dict": lambda self: {"mean": self.mean}})()
    spoilt = {"model": lambda: next(state.model.parameters()), "teacher": lambda: next(state.teacher.parameters()),
              "average": lambda: next(state.average.parameters()), "best": lambda: state.best["model"]["weight"],
              "optimiser": lambda: next(iter(state.optimiser.state.values()))["momentum_buffer"],
              "pseudo": lambda: state.pseudo.mean}[part]()
    with torch.no_grad():
        spoilt.view(-1)[-1] = float("inf")
    with pytest.raises(FloatingPointError, match=f"found NaN or infinity in {part}: .*expected numbers"):
        state.save(tmp_path / "checkpoint.pt")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_weights_that_a_finite_loss_blows_up_are_noticed_at_the_end(hearts):
    with pytest.raises(FloatingPointError, match=r"iteration 1: found NaN or infinity in model: .*slice_\d, expected"):
        train(resolve(tiny(iterations=1, lr=1e38, momentum=0, weight_decay=1e30), hearts))


def test_a_validation_loss_that_is_no_number_is_never_the_best(hearts, monkeypatch):
    monkeypatch.setattr("attenscribble.runs.training.validation_loss", lambda *_: float("nan"))
    with pytest.raises(FloatingPointError, match="the validation loss is nan"):
        train(resolve(tiny(checkpoint="best_val", validation=0.3), hearts))


# ---- a checkpoint is whole, or it is no checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory, hearts):
    "A small run's folder and its settings."
    folder = tmp_path_factory.mktemp("finished")
    config = tiny(net_channels=(4, 4, 4, 4, 4)) if "net_channels" in Config.model_fields else tiny()
    train(resolve(config, hearts), folder)
    return folder, config


def answers(path: Path, config: Config, hearts) -> list[str]:
    "What predict and resume say to a checkpoint."
    said = []
    for call in (lambda: load_network(path, "cpu"), lambda: start_training(resolve(config, hearts)).load(path)):
        with pytest.raises(DataError) as error:
            call()
        said.append(str(error.value))
    return said


def same_weights(path: Path, config: Config, hearts, good: dict) -> bool:
    "Whether predict and resume take the same numbers as from the good file, or refuse; False for other numbers."
    state = start_training(resolve(config, hearts))
    try:
        model = load_network(path, "cpu").model
        state.load(path)
    except DataError:
        return True
    kept = {"model": state.model.state_dict(), "optimiser": state.optimiser.state_dict()}
    return (all(torch.equal(value, good["model"][name]) for name, value in model.state_dict().items())
            and all(torch.equal(value, good["model"][name]) for name, value in kept["model"].items())
            and all(torch.equal(entry["momentum_buffer"], kept["optimiser"]["state"][number]["momentum_buffer"])
                    for number, entry in good["optimiser"]["state"].items()) and state.step == good["step"])


def test_no_flipped_bit_is_trained_on_or_predicted_with(finished, hearts, tmp_path):
    folder, config = finished
    content, path = (folder / "checkpoint.pt").read_bytes(), tmp_path / "checkpoint.pt"
    good = torch.load(folder / "checkpoint.pt", weights_only=True)
    chance, size, noticed = np.random.default_rng(0), len(content), 0
    places = [*chance.integers(0, size, 40), *(size - 1 - chance.integers(0, 4000, 14)), *range(6)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(chance.integers(8))
        path.write_bytes(damaged)
        assert same_weights(path, config, hearts, good), place
        try:
            read_checkpoint(path)
        except DataError:
            noticed += 1
    assert noticed > 45  # a zip's dates and such are not read by anybody


def other(change):
    "A change of what a checkpoint holds."
    def write(path, content):
        content["config"] = dict(content["config"])
        change(content)
        content.pop("seal", None)  # as an older version wrote it
        torch.save(content, path)
    return write


class Code:
    "A pickle that would run a command."

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("write", [
    pytest.param(lambda path, _: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]), id="torn"),
    pytest.param(lambda path, _: path.write_bytes(b""), id="empty"),
    pytest.param(lambda path, _: path.write_bytes(b"PK\x03\x04" + bytes(500)), id="start of a zip"),
    pytest.param(lambda path, _: torch.save(torch.nn.Conv2d(1, 1, 1).state_dict(), path), id="plain weights"),
    pytest.param(lambda path, _: torch.save([1, 2], path), id="list"),
    pytest.param(lambda path, _: torch.save({"config": {}, "model": Code()}, path), id="code"),
    pytest.param(lambda path, c: torch.save(c, path, _use_new_zipfile_serialization=False), id="no zip"),
    pytest.param(other(lambda c: c["config"].update(new_option=1)), id="a setting of another version"),
    pytest.param(other(lambda c: c["config"].update(size="big")), id="an impossible setting"),
    pytest.param(other(lambda c: c.update(model={"a": 1})), id="numbers for weights"),
    pytest.param(other(lambda c: c.update(best={"loss": 1.0})), id="a best without weights"),
    pytest.param(other(lambda c: c["model"].popitem()), id="a weight less"),
    pytest.param(other(lambda c: c["model"].update({"head.weight": torch.ones(2)})), id="a weight of another shape"),
    pytest.param(other(lambda c: c["model"]["head.weight"].fill_(float("nan"))), id="NaN"),
])
def test_predict_and_resume_refuse_what_is_no_checkpoint_in_one_line(finished, hearts, tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    folder, config = finished
    path = tmp_path / "checkpoint.pt"
    shutil.copyfile(folder / "checkpoint.pt", path)
    write(path, torch.load(folder / "checkpoint.pt", weights_only=True))
    for said in answers(path, config, hearts):
        assert said.startswith(f"{path}: found ") and "expected " in said and "\n" not in said and len(said) < 500, said
        assert "resume=false" in said, said
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("missing", ["optimiser", "step", "log", "random"])
def test_resume_names_a_checkpoint_that_lacks_a_part(finished, hearts, tmp_path, missing):
    folder, config = finished
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    del content[missing], content["seal"]
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match=rf"checkpoint\.pt: found no checkpoint of this method .*{missing}"):
        start_training(resolve(config, hearts)).load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("part", ["model", "optimiser"])
def test_a_run_that_saved_nan_says_so_with_the_way_out(finished, hearts, tmp_path, part):
    folder, config = finished
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    entry = content["model"] if part == "model" else content["optimiser"]["state"][0]
    next(iter(entry.values())).view(-1)[0] = float("nan")
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match=rf"found NaN or infinity in {part}: .*lower lr.*resume=false"):
        train(resolve(config, hearts), tmp_path)


# ---- a batch of one


def test_a_lone_slice_that_batch_norm_cannot_take_is_refused_before_the_first_step(hearts):
    seen = []
    for size, batch, error in ((16, 31, True), (32, 31, False), (16, 30, False), (16, 1, True)):
        config = tiny(size=size, batch=batch, iterations=12)
        if error:
            with pytest.raises(ValueError, match=rf"batch: found 1 of 32 slices .* size {size}, .* expected another"):
                train(resolve(config, hearts), watch=seen.append)
        else:
            train(resolve(config.model_copy(update={"iterations": 1}), hearts))
    assert not seen


def test_the_trial_leaves_no_trace(hearts):
    "The lone slice is asked for beforehand: neither chance nor statistics are moved by it."
    from attenscribble.runs import training

    config = tiny(batch=31, iterations=3)
    tried = train(resolve(config, hearts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "check_lone_slices", lambda *_: None)
        plain = train(resolve(config, hearts))
    assert all(torch.equal(value, plain.model.state_dict()[name]) for name, value in tried.model.state_dict().items())


# ---- all files of a fold are looked at before the first step


def volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1.5, 1.5, 8, 1])), path)


@pytest.fixture
def patients(tmp_path) -> Path:
    "ACDC in small: patients 1 and 2 are tested in fold 1, patients 21 and 22 are trained on."
    rng = np.random.default_rng(0)
    label = np.zeros((48, 48, 3), np.uint8)
    label[10:30, 10:30], label[15:25, 15:25], label[18:22, 18:22] = 1, 2, 3
    scribble = np.full_like(label, 4)
    scribble[2, 2:40], scribble[12, 12:28], scribble[16, 16:24], scribble[20, 18:22] = 0, 1, 2, 3
    for name in (f"patient{number:03}_frame{frame}" for number in (1, 2, 21, 22) for frame in ("01", "12")):
        place = tmp_path / "acdc" / name[:10] / name
        volume(place.with_name(f"{name}.nii.gz"), (100 * label + rng.normal(200, 20, label.shape)).astype(np.int16))
        volume(place.with_name(f"{name}_gt.nii.gz"), label)
        volume(place.with_name(f"{name}_scribble.nii.gz"), scribble)
    return tmp_path / "acdc"


def acdc_config(patients: Path, **given) -> Config:
    return tiny(dataset="acdc", root=str(patients), output=str(patients.parent / "runs"), **given).model_copy(
        update={"data": {}})


def spoil(path: Path, how: str) -> None:
    "A fault in a file."
    image = nib.load(path)
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-300])
    elif how == "shape":
        volume(path, np.asarray(image.dataobj).copy()[:-2])
    elif how == "values":
        volume(path, np.asarray(image.dataobj).copy() + np.uint8(7))


@pytest.mark.parametrize(("name", "how", "said"), [
    ("patient002_frame12_gt", "gone", "patient002_frame12: a test volume needs a dense label"),
    ("patient002_frame12", "cut", "patient002_frame12.nii.gz: found an unreadable file"),
    ("patient002_frame01_gt", "shape", "patient002_frame01_gt.nii.gz: found shape"),
    ("patient001_frame12_gt", "values", "patient001_frame12_gt.nii.gz: found the values 7"),
])
def test_a_fault_of_a_test_volume_is_found_before_anything_is_done(patients, name, how, said):
    spoil(patients / name[:10] / f"{name}.nii.gz", how)
    with pytest.raises(DataError, match=said):
        run_experiment(acdc_config(patients))
    assert not (patients.parent / "runs").exists()


def test_all_faults_of_a_fold_are_told_at_once(patients):
    faults = {"patient001_frame12_gt": "gone", "patient002_frame01": "cut", "patient021_frame01_scribble": "values",
              "patient022_frame12": "cut"}
    for name, how in faults.items():
        spoil(patients / name[:10] / f"{name}.nii.gz", how)
    with pytest.raises(DataError) as error:
        run_experiment(acdc_config(patients))
    assert str(error.value).startswith("4 faults in the data:\n")
    assert all(name.removesuffix("_gt") in str(error.value) for name in faults)
    assert not (patients.parent / "runs").exists()


def test_all_faults_of_the_training_files_are_told_at_once(patients):
    for name in ("patient021_frame01", "patient022_frame12_scribble"):
        spoil(patients / name[:10] / f"{name}.nii.gz", "cut")
    with pytest.raises(DataError, match=r"2 faults in the data:\n.*patient021_frame01\.nii(.|\n)*022_frame12_scribble"):
        run_experiment(acdc_config(patients))


@pytest.mark.parametrize("ending", ["nii.gz", "nii"])
@pytest.mark.parametrize("how", ["cut", "shape"])
def test_of_large_folders_headers_and_sizes_are_enough(patients, tmp_path, monkeypatch, ending, how):
    own = tmp_path / "own"
    for source in sorted(patients.rglob("*frame01*")):
        kind = "labels" if "_gt" in source.name else "scribbles" if "_scr" in source.name else "images"
        image = nib.load(source)
        volume(own / kind / f"{source.name[:10]}.{ending}", np.asarray(image.dataobj).copy())
    (own / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2, "c": 3}, "ignore": 4}))
    config = tiny(dataset="folder", root=str(own), output=str(tmp_path / "runs")).model_copy(update={"data": {}})
    monkeypatch.setattr("attenscribble.runs.run._PATIENCE_S", -1.0)
    (tested,) = resolve(config).dataset.split(1)[1]
    broken = own / "labels" / f"{tested}.{ending}"
    spoil(broken, how)
    with pytest.raises(DataError, match=re.escape(str(broken))):
        run_experiment(config)
    assert not (tmp_path / "runs").exists()


# ---- the result first, pictures last


NAMES = ["$_$", "_hidden", "half \udcff", "a|b", "<script>", "$\\frac{1}$", "two\nlines", "`x`", "\\$x$"]


@pytest.mark.parametrize("names", [NAMES[:3], NAMES[3:6], NAMES[6:]], ids=repr)
def test_no_name_costs_a_result_or_a_picture(hearts, tmp_path, monkeypatch, names):
    import dataclasses

    named = dataclasses.replace(hearts, class_names=("background", *names), read=lambda patient: [
        dataclasses.replace(case, frame="".join(names)) for case in hearts.read(patient)[:1]])
    monkeypatch.setattr("attenscribble.runs.setup.open_dataset", lambda *_, **__: named)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = run_experiment(tiny(output=str(tmp_path), method="ours", asl_radius=1, asl_sigma_xy=1.0))
    assert {"result.json", "report.md", "prediction.png", "attention.png"} <= {p.name for p in outcome.folder.iterdir()}
    assert {row["class"] for row in json.loads((outcome.folder / "result.json").read_text())["cases"]} == {*names}
    report = (outcome.folder / "report.md").read_text(encoding="utf-8")
    assert all(line.startswith("    ") or not line for line in report.splitlines())  # Markdown shows it as it is
    outcome.report().encode("utf-8")


def test_a_picture_that_fails_costs_a_warning(hearts, tmp_path, monkeypatch):
    def fail(_):
        raise KeyError("no such font")

    monkeypatch.setattr("attenscribble.runs.run.plot_predictions", fail)
    with pytest.warns(UserWarning, match=r"prediction\.png: not drawn \(KeyError: .*the result is written"):
        outcome = run_experiment(tiny(output=str(tmp_path), archive=str(tmp_path / "archive")))
    assert json.loads((outcome.folder / "result.json").read_text())["cases"]
    assert len(list((tmp_path / "archive").iterdir())) == 1


def test_a_table_cell_is_one_cell():
    from attenscribble.reporting.tables import _markdown

    for name in NAMES:
        (line,) = _markdown([[name, "1"]]).splitlines()
        assert len(re.findall(r"(?<!\\)\|", line)) == 3 and "<" not in line


# ---- what a killed process leaves behind


@pytest.mark.parametrize("name", [".4194305-4194305-{}", ".4194305-4194306-at0123abcd-{}"])
def test_tables_pass_over_what_a_killed_process_left_and_the_next_writer_removes_it(tmp_path, name):
    from attenscribble.basics.files import write_json
    from attenscribble.reporting.tables import read_results

    outcome = run_experiment(tiny(output=str(tmp_path / "runs"), archive=str(tmp_path / "archive"), iterations=1))
    orphan = tmp_path / "archive" / name.format(f"{outcome.config.run_id}.json")
    orphan.write_text('{"run": ')
    assert len(read_results(tmp_path / "archive")) == 1
    day_before = time.time() - 100_000
    if "-at" in name:  # of another machine: nobody here knows whether it runs
        write_json({}, tmp_path / "archive" / "other.txt")
        assert orphan.exists()
        os.utime(orphan, (day_before, day_before))
        time.sleep(0.2)
    write_json({}, tmp_path / "archive" / "other.txt")
    assert not orphan.exists()


@pytest.mark.parametrize("name", [".2024-10-15-notes.json", ".5-05-x", ".hidden", "4194305-4194305-x",
                                  ".PID-PID-x"])
def test_a_users_own_hidden_file_is_never_removed(tmp_path, name):
    from attenscribble.basics.files import write_json

    name = name.replace("PID", str(os.getpid()))
    (tmp_path / name).write_text("mine")
    os.utime(tmp_path / name, (1e9, 1e9)) if str(os.getpid()) not in name else None
    write_json({}, tmp_path / "result.json")
    assert (tmp_path / name).read_text() == "mine"


# ---- folders that cannot be written to


@pytest.mark.parametrize("setting", ["output", "archive"])
def test_a_folder_that_cannot_be_written_to_is_named_before_training(tmp_path, monkeypatch, setting):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("attenscribble.runs.run.continue_training", None)
    given = {"output": str(tmp_path / "runs"), setting: str(tmp_path / "file" / "below")}
    with pytest.raises(DataError, match=r"below.*: found the file file in its path, expected a folder") as error:
        run_experiment(tiny(**given))
    assert "\n" not in str(error.value)


def test_a_disk_without_room_is_named_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * 2**20))
    with pytest.raises(DataError, match=r"phantom-pce.*: found 5 MiB free on its disk, expected at least \d+ MiB"):
        run_experiment(tiny(output=str(tmp_path)))


def test_a_disk_that_fills_up_keeps_the_checkpoint_before(hearts, tmp_path):
    code = ("import resource, signal, sys, pathlib; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "from attenscribble.data.phantom import phantom; from attenscribble.runs.config import Config\n"
            "from attenscribble.runs.setup import resolve; from attenscribble.runs.training import start_training\n"
            "config = Config(method='pce', size=32, data_patients=5, data_side=48, data_slices=4)\n"
            "state = start_training(resolve(config, phantom(patients=5, side=48, slices=4)))\n"
            "path = pathlib.Path(sys.argv[1]); state.save(path)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
            "try: state.save(path)\nexcept OSError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "checkpoint.pt"], capture_output=True, text=True)
    assert "not written (" in done.stdout and "checkpoint.pt" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert read_checkpoint(tmp_path / "checkpoint.pt")["step"] == 0


# ---- the cache of guessed labels


def walk(tmp_path, cases):
    "The guesses for two slices."
    from functools import partial

    from attenscribble.rivals.pseudo import _cached, walker_labels

    make = partial(walker_labels, classes=4, ignore=4, beta=100.0, mode="bf")
    return [_cached((case.image[1], case.scribble[1]), make, tmp_path) for case in cases]


def test_a_damaged_cache_is_made_anew_and_never_used(hearts, tmp_path):
    cases = hearts.read("patient001")[:1]
    (right,) = walk(tmp_path, cases)
    (path,) = tmp_path.iterdir()
    content, chance = path.read_bytes(), np.random.default_rng(0)
    damages = [content[:cut] for cut in range(0, len(content), max(1, len(content) // 40))]
    for place in chance.integers(0, len(content), 40):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(chance.integers(8))
        damages.append(bytes(flipped))
    for damage in damages:
        path.write_bytes(damage)
        assert np.array_equal(walk(tmp_path, cases)[0], right)
    for labels in (right[:-1], right.astype(np.int64), np.full_like(right, 9), np.array(["x"])):
        np.savez_compressed(path, labels=labels)
        assert np.array_equal(walk(tmp_path, cases)[0], right)
    assert np.array_equal(np.load(path)["labels"], right)


def test_a_cache_that_cannot_be_written_stops_no_training(hearts, tmp_path):
    (tmp_path / "file").write_text("")
    assert walk(tmp_path / "file", hearts.read("patient001")[:1])[0].ndim == 2


# ---- no process without the one that started it


def gone(numbers: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(n) and psutil.Process(n).status() != "zombie" for n in numbers):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killing_the_parent_of_two_processes_ends_them_at_once_and_the_run_goes_on(tmp_path):
    words = ["train", "phantom", "method=pce", "devices=2", "size=32", "batch=4", "eval_every=5", "log_every=5",
             "precision=float32", "device=cpu", "data_patients=5", "data_side=48", "data_slices=4",
             f"output={tmp_path}"]
    command = [sys.executable, "-c", "import sys; from attenscribble.entry.commands import main; sys.exit(main())"]
    parent = subprocess.Popen([*command, *words, "iterations=100000"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    children = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    parent.wait()
    assert len(children) >= 3 and gone(children, 3.0)
    (checkpoint,) = tmp_path.glob("*/checkpoint.pt")
    assert read_checkpoint(checkpoint)["step"] % 5 == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("platform", [sys.platform, "elsewhere"])
def test_a_child_ends_with_its_parent_on_any_system(platform):
    child = ("import os, psutil, sys, time\nfrom attenscribble.basics.files import end_with_parent\n"
             f"sys.platform = {platform!r}\n"
             "end_with_parent(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)")
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    number = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert gone([number], 3.0)


def test_a_checkpoint_that_was_edited_and_packed_again_is_refused(finished, hearts, tmp_path):
    folder, config = finished
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    changes = {"step": 3, "seconds": 0.0, "learnt": {}, "dataset": content["dataset"] | {"channels": 2}}
    for name, value in changes.items():
        torch.save(content | {name: value}, tmp_path / "checkpoint.pt")
        for use in (lambda: load_network(tmp_path, "cpu"), lambda: train(resolve(config, hearts), tmp_path)):
            with pytest.raises(DataError, match=r"checkpoint\.pt: found parts that do not belong together"):
                use()
