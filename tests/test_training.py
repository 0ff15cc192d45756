"""The training loop and the run around it: what it may look at, what it leaves behind, how it fails."""

import dataclasses
import errno
import io
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from attenscribble.basics.errors import DataError
from attenscribble.basics.files import write_atomic
from attenscribble.data.batches import SliceStore
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import Dataset, acdc, wsl4mis
from attenscribble.method.objective import METHODS, Method, Term, register, scribble_term
from attenscribble.runs import training
from attenscribble.runs.config import Config
from attenscribble.runs.inference import load_network
from attenscribble.runs.run import run_experiment
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import LogFile, start_training, train, training_patients, write_log

pytestmark = pytest.mark.usefixtures("own_cache")

BUILT_IN = ("fully", "pce", "ours-without-asl", "ours")  # the rivals have tests of their own


def tiny(**given):
    "Settings of a run that takes seconds."
    defaults = {"iterations": 12, "batch": 4, "size": 48, "log_every": 4, "asl_radius": 1, "asl_sigma_xy": 1.1,
                "data_patients": 5, "data_side": 48, "data_slices": 4, "precision": "float32"}
    return Config(**(defaults | given))


@pytest.fixture(scope="module")
def hearts() -> Dataset:
    return phantom(patients=5, side=48, slices=4)


def with_cases(dataset: Dataset, change) -> Dataset:
    "The dataset with every case changed."
    return dataclasses.replace(dataset, read=lambda patient: [change(case) for case in dataset.read(patient)])


def weights(state) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].target == "scribble"])
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_dense_labels_cannot_reach_a_scribble_method(hearts, method, preset):
    rng = np.random.default_rng(0)

    def poison(case):
        return dataclasses.replace(case, label=rng.integers(0, 4, case.image.shape).astype(np.uint8))

    config = tiny(method=method, preset=preset)
    honest, poisoned = train(resolve(config, hearts)), train(resolve(config, with_cases(hearts, poison)))
    without = train(resolve(config, with_cases(hearts, lambda case: dataclasses.replace(case, label=None))))
    assert torch.equal(weights(honest), weights(poisoned)) and torch.equal(weights(honest), weights(without))


def test_poison_reaches_the_dense_method(hearts):
    blank = with_cases(hearts, lambda case: dataclasses.replace(case, label=np.zeros_like(case.label)))
    config = tiny(method="fully")
    assert not torch.equal(weights(train(resolve(config, hearts))), weights(train(resolve(config, blank))))


@pytest.mark.parametrize("checkpoint", ["last", "best_val"])
def test_training_never_reads_a_test_patient(hearts, checkpoint):
    seen = set()
    spy = dataclasses.replace(hearts, read=lambda patient: seen.add(patient) or hearts.read(patient))
    config = tiny(checkpoint=checkpoint, validation=0.3, eval_every=4)
    train(resolve(config, spy))
    fit, held = training_patients(hearts, config)
    assert seen == set(fit) | set(held) and not seen & set(hearts.folds[1])
    assert not set(fit) & set(held) and bool(held) == (checkpoint == "best_val")


def test_best_val_keeps_the_lowest_validation_loss(hearts, tmp_path):
    state = train(resolve(tiny(checkpoint="best_val", validation=0.3, eval_every=4), hearts), tmp_path)
    losses = {row["step"]: row["validation"] for row in state.log}
    assert len(losses) == 3 and state.best["step"] == min(losses, key=losses.get)
    model = load_network(tmp_path / "checkpoint.pt", "cpu").model
    assert torch.equal(model.head.weight, state.best["model"]["head.weight"])


@pytest.mark.parametrize("method", BUILT_IN)
def test_loss_falls_and_the_seed_decides(hearts, method):
    config = tiny(method=method, iterations=80)
    first, again = train(resolve(config, hearts)), train(resolve(config, hearts))
    other = train(resolve(tiny(method=method, iterations=80, seed=1), hearts))
    values = [row[METHODS[method].terms[0].name] for row in first.log]
    assert sum(values[-5:]) < 0.8 * sum(values[:5])  # a batch's loss jumps with the slices in it
    assert torch.equal(weights(first), weights(again)) and not torch.equal(weights(first), weights(other))


def test_a_training_begins_with_the_weights_it_is_given(hearts):
    given = start_training(resolve(tiny(method="ustm", seed=1), hearts)).model.state_dict()
    state = start_training(resolve(tiny(method="ustm"), hearts), given)
    for network in (state.model, state.teacher.network):
        assert all(torch.equal(weight, given[name]) for name, weight in network.state_dict().items())
    with pytest.raises(RuntimeError, match=r"(?s)UNet2d.*head\.weight"):
        train(resolve(tiny(method="pce"), hearts),
              weights={name: w for name, w in given.items() if name != "head.weight"})


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_written_is_there_whole_or_not_at_all(tmp_path, kind):
    def write(place, text, fails=False):
        if kind == "folder":
            place.mkdir()
            place = place / "inside"
        place.write_text(text)
        if fails:
            raise ValueError(text)

    path = tmp_path / "new" / "kept.csv"
    with pytest.raises(ValueError, match="half"):
        write_atomic(path, lambda place: write(place, "half", fails=True))
    assert list(path.parent.iterdir()) == []
    write_atomic(path, lambda place: write(place, "all"))
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="half"):
        write_atomic(path, lambda place: write(place, "half", fails=True))
    assert (path if kind == "file" else path / "inside").read_text() == "all"


def test_attention_notes_are_logged(hearts):
    row = train(resolve(tiny(), hearts)).log[-1]
    assert {"seg", "mcrf", "atn", "similarity_mean", "similarity_std", "weight", "bias"} <= set(row)
    assert 0 < row["similarity_mean"] < 1 and row["similarity_std"] >= 0


def double(case):
    "The case with a second channel."
    return dataclasses.replace(case, image=np.stack([case.image, case.image**2], 1))


@pytest.mark.parametrize("method", ["ours", "gated-crf", "mumford-shah", "random-walker", "scribble2label", "ustm"])
def test_methods_that_look_at_the_image_take_two_channels(hearts, method, tmp_path):
    config = tiny(method=method, iterations=3, **({"method_every": 2} if method == "scribble2label" else {}))
    two = dataclasses.replace(with_cases(hearts, double), channels=2)
    state = train(resolve(config, two), tmp_path)
    model = load_network(tmp_path / "checkpoint.pt", "cpu").model
    assert model(torch.zeros(1, 2, 48, 48)).shape == (1, 4, 48, 48)
    assert torch.equal(next(iter(model.parameters())), next(iter(state.model.parameters())))
    with pytest.raises(DataError, match="found 2 channels, expected 1"):
        train(resolve(config, with_cases(hearts, double)))


def test_a_run_with_two_channels_is_drawn_and_written(monkeypatch, hearts, tmp_path):
    two = dataclasses.replace(with_cases(hearts, double), channels=2, options={"echoes": 2, "patients": 99})
    monkeypatch.setattr("attenscribble.runs.setup.open_dataset", lambda *_, **__: two)
    config = tiny(output=str(tmp_path))
    outcome = run_experiment(config)
    assert {"prediction.png", "attention.png"} <= {path.name for path in outcome.folder.iterdir()}
    assert outcome.result["settings"]["data_echoes"] == 2 and outcome.result["settings"]["data_patients"] == 5
    assert outcome.result["run"] == outcome.folder.name != config.run_id


def test_an_interrupted_run_ends_as_an_uninterrupted_one(hearts, tmp_path):
    config = tiny(eval_every=4)

    def interrupt(state):
        if state.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(resolve(config, hearts), tmp_path, interrupt)
    resumed, whole = train(resolve(config, hearts), tmp_path), train(resolve(config, hearts))
    assert torch.equal(weights(resumed), weights(whole))
    assert [row["step"] for row in resumed.log] == [row["step"] for row in whole.log] == [4, 8, 12]


def test_a_checkpoint_of_other_settings_is_refused(hearts, tmp_path):
    train(resolve(tiny(), hearts), tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: found a checkpoint of .*, expected .*"):
        start_training(resolve(tiny(lr=0.5), hearts)).load(tmp_path / "checkpoint.pt")


def test_a_loss_that_is_no_number_stops_the_run(hearts):
    method = Method("nan", "NaN", "this test", (Term("seg", lambda e: scribble_term(e) * float("nan")),))
    METHODS.pop("nan", None)
    register(method)
    try:
        with pytest.raises(FloatingPointError, match=r"iteration 1: the loss is nan on patient"):
            train(resolve(tiny(method="nan"), hearts))
    finally:
        METHODS.pop("nan")


def test_run_writes_a_result_that_says_everything(tmp_path):
    outcome = run_experiment(tiny(output=str(tmp_path), archive=str(tmp_path / "results")))
    result = json.loads((outcome.folder / "result.json").read_text())
    assert json.loads((tmp_path / "results" / f"{outcome.config.run_id}.json").read_text()) == result
    assert {row["policy"] for row in result["cases"]} == {"standard", "legacy"}
    assert len(result["cases"]) == 2 * 3 * result["test_volumes"] == 12  # policies × classes × (1 patient, 2 frames)
    assert Config(**json.loads((outcome.folder / "config.json").read_text())) == outcome.config
    assert result["software"]["torch"] == torch.__version__ and result["settings"]["seed"] == 2022
    assert result["precision"] == "float32" and str(tmp_path) not in json.dumps(result)
    assert (outcome.folder / "log.csv").read_text().startswith("step,seconds,lr,loss,seg,mcrf,atn")
    assert sorted(p.name for p in (outcome.folder / "masks").iterdir()) == sorted(f"{n}.nii.gz" for n in outcome.masks)


def test_two_processes_cannot_share_a_run_folder(tmp_path):
    from filelock import FileLock

    config = tiny(output=str(tmp_path))
    (tmp_path / config.run_id).mkdir()
    with FileLock(tmp_path / config.run_id / "lock"), pytest.raises(RuntimeError, match="another process"):
        run_experiment(config)


def test_without_spacing_hd95_is_refused_before_training(data_root, tmp_path):
    config = Config(dataset="wsl4mis", root=str(data_root), profile="mini", output=str(tmp_path))
    hearts = wsl4mis(data_root / "wsl4mis_h5")
    assert hearts.read("patient001")[0].spacing_mm is None
    from attenscribble.runs.run import check_scorable

    with pytest.raises(DataError, match=r"patient00\d_frame\d\d: HD95 in mm needs the voxel spacing"):
        check_scorable(resolve(config, dataclasses.replace(hearts, folds={1: ("patient001",)})))
    without = config.model_copy(update={"hd95": False})
    check_scorable(resolve(without, dataclasses.replace(hearts, folds={1: ("patient001",)})))


def test_h5_and_nifti_give_the_same_batches(data_root):
    stores = []
    for dataset in (acdc(data_root / "acdc"), wsl4mis(data_root / "wsl4mis_h5")):
        cases = {case.name: case for patient in ("patient001", "patient002") for case in dataset.read(patient)}
        names = ("patient001_frame01", "patient001_frame12", "patient002_frame01", "patient002_frame12")
        stores.append(SliceStore([cases[name] for name in names], classes=4, ignore=4))
    from attenscribble.data.batches import draw_augmentation

    draws = draw_augmentation(12, "acdc", torch.Generator().manual_seed(0))
    index = torch.randperm(len(stores[0]), generator=torch.Generator().manual_seed(1))[:12]
    nifti, h5 = (store.batch(index, 128, draws) for store in stores)
    assert len(stores[0]) == len(stores[1]) and torch.equal(nifti.target, h5.target)
    assert (nifti.image - h5.image).abs().max() < 1e-3  # half a step of 511 levels


def test_a_term_that_starts_late_moves_its_parameters_from_then_on(hearts):
    seen = []
    config = tiny(iterations=4, log_every=1, start_atn=2)
    train(resolve(config, hearts), watch=lambda state: seen.append(
        state.model.get_submodule("encoder.2").attention.similarity.weight.detach().clone()))
    moved = [bool((after != before).any()) for before, after in itertools.pairwise(seen)]
    assert moved == [False, True, True]


def test_a_compiled_network_takes_the_same_steps(hearts, monkeypatch):
    compiled = []
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or compile_(model, backend="aot_eager"))
    plain, fused = (train(resolve(tiny(iterations=2, log_every=1, lr=0.001, precision="float32", compile=how), hearts))
                    for how in ("off", "on"))
    assert len(compiled) == 1
    for before, after in zip(plain.log, fused.log, strict=True):
        assert abs(before["loss"] - after["loss"]) < 1e-4 * before["loss"]


def test_a_network_that_does_not_compile_runs_as_it_is(hearts, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no Triton here")

    monkeypatch.setattr(torch, "compile", lambda model: refuse)
    with pytest.warns(UserWarning, match="torch.compile failed, the network runs uncompiled: no Triton here"):
        state = train(resolve(tiny(iterations=2, compile="on"), hearts))
    assert state.step == 2


def test_a_log_that_is_added_to_is_the_log_that_is_written_whole(tmp_path):
    file, rows = LogFile(), [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.1 + 0.2, "validation": 0.25}]
    for more in ([], [{"step": 6, "loss": 1e-9}], [{"step": 8, "loss": 3.0, "dice": 0.5}],
                 [{"step": 10, "loss": 2.0, "validation": 0.1}]):
        rows += more
        file.write(rows, tmp_path / "log.csv")
        write_log(rows, tmp_path / "whole.csv")
        assert (tmp_path / "log.csv").read_text() == (tmp_path / "whole.csv").read_text()
    kept = os.stat(tmp_path / "log.csv").st_ino
    file.write([*rows, {"step": 12, "loss": 1.0}], tmp_path / "log.csv")
    assert os.stat(tmp_path / "log.csv").st_ino == kept, "added to"
    rows += [{"step": 12, "loss": 1.0, "validation": 0.05}]  # validated after it was written
    file.write(rows, tmp_path / "log.csv")
    write_log(rows, tmp_path / "whole.csv")
    assert (tmp_path / "log.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_a_failed_addition_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    file, rows = LogFile(), [{"step": 2, "loss": 0.5}]
    file.write(rows, tmp_path / "log.csv")
    before = (tmp_path / "log.csv").read_bytes()

    class Full(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, mode: Full(self, mode))
    with pytest.raises(OSError, match="No space left"):
        file.write([*rows, {"step": 4, "loss": 0.25}], tmp_path / "log.csv")
    assert (tmp_path / "log.csv").read_bytes() == before


def test_saving_does_not_slow_down_with_the_log(tmp_path):
    state = start_training(resolve(tiny()))
    state.log = [{"step": k, "loss": 1 / (k + 1)} for k in range(5)]
    state.save(tmp_path / "a.pt")
    encoded, dumps = [], json.dumps
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training.json, "dumps", lambda row, **how: encoded.append(row) or dumps(row, **how))
        state.log[-1]["validation"] = 0.5
        state.log.append({"step": 5, "loss": 0.1})
        state.save(tmp_path / "b.pt")
    assert [row for row in encoded if isinstance(row, dict) and "loss" in row] == state.log[-2:], "no others"
    again = start_training(resolve(tiny()))
    again.load(tmp_path / "b.pt")
    assert again.log == state.log
