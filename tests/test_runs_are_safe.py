"""A run of a day is safe: faults are named first, what is kept is whole and finite, what is damaged is refused."""

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
from attenscribble.runs.training import Validation, not_finite, read_checkpoint, start_training, train

pytestmark = pytest.mark.usefixtures("own_cache")


def tiny(**given) -> Config:
    "Settings of a run that takes seconds."
    defaults = {"iterations": 8, "batch": 4, "size": 32, "log_every": 4, "eval_every": 4, "method": "pce",
                "data_patients": 5, "data_side": 48, "data_slices": 4, "precision": "float32"}
    return Config(**defaults | given)


@pytest.fixture(scope="module")
def hearts():
    return phantom(patients=5, side=48, slices=4)


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
    with pytest.raises(FloatingPointError, match=rf"iteration {since}: the loss is nan on patient\d+_frame\d+_slice_\d"):
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
    assert Validation


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
    del content[missing]
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
