"""A run beyond the paper: other losses on strokes, averaged weights, other optimisers, more augmentation."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from project_files import ROOT

from attenscribble.data.batches import Draw, SliceStore, changed_look, draw_augmentation, index_map
from attenscribble.data.phantom import phantom
from attenscribble.method.objective import METHODS, LossContext, Objective, dice_loss, linear
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.rivals.teachers import Ema
from attenscribble.runs.config import Config
from attenscribble.runs.inference import TrainedNetwork, load_network
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import learning_rate, make_optimiser, start_training, train

TINY = {"iterations": 6, "batch": 4, "size": 32, "log_every": 1, "eval_every": 3, "asl_radius": 1, "asl_sigma_xy": 1.1,
        "precision": "float32"}


@pytest.fixture(scope="module")
def hearts():
    return phantom(patients=5, side=40, slices=3)


def context_of(logits, target, **more):
    from attenscribble.data.batches import Batch
    from attenscribble.method.switches import MethodSwitches

    batch = Batch(torch.rand(len(logits), 1, *logits.shape[2:]), target, torch.zeros(len(logits)) > 0,
                  torch.arange(len(logits)), 4)
    return LossContext(logits, batch, MethodSwitches(**more.pop("switches", {})), **more)


def test_each_class_counts_alike_in_the_class_mean():
    logits = torch.zeros(1, 3, 2, 3)
    logits[0, 1] = 2.0
    target = torch.tensor([[[0, 0, 0], [1, 4, 4]]])  # three strokes of class 0, one of class 1, none of class 2
    surprise = -logits[0, :, 0, 0].log_softmax(0)
    found = partial_cross_entropy(logits, target, ignore=4, reduction="class")
    torch.testing.assert_close(found, (surprise[0] + surprise[1]) / 2)
    nothing = partial_cross_entropy(logits, torch.full_like(target, 4), ignore=4, reduction="class")
    assert nothing == 0


def test_dice_on_strokes_sees_strokes_only():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.full((2, 4, 4), 4)
    target[0, 0, :2], target[1, 1, 1] = torch.tensor([1, 2]), 0
    term = next(term for term in METHODS["ours"].terms if term.name == "dice")
    value = term.loss(context_of(logits, target)).mean()
    torch.testing.assert_close(value, dice_loss(logits.softmax(1), target, ignore=4))
    slope = torch.autograd.grad(value, logits)[0]
    assert slope.abs().sum(1)[target == 4].eq(0).all() and slope.abs().sum(1)[target != 4].gt(0).all()


def test_self_training_takes_strokes_and_what_the_average_is_sure_of():
    logits, target = torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 4, 4, 4]]])
    sure = torch.tensor([[[[0.0, 9.0, 0.1, 0.0]], [[9.0, 0.0, 0.0, 9.0]]]])  # of class 1, 0, neither, 1
    term = next(term for term in METHODS["ours"].terms if term.name == "self")
    context = context_of(logits, target, average=lambda image: sure)
    from attenscribble.method.objective import dense_loss

    expected = dense_loss(logits, torch.tensor([[[0, 0, 4, 1]]]), ignore=4)  # the stroke wins over the average
    torch.testing.assert_close(term.loss(context).mean(), expected)
    assert context.notes["sure"].mean() == 0.75
    with pytest.raises(ValueError, match="ema: found 0, expected a decay"):
        term.loss(context_of(logits, target))


def test_terms_of_weight_0_are_not_computed(hearts):
    plain = train(resolve(Config(**TINY), hearts))
    assert {"dice", "self"}.isdisjoint(plain.log[-1]) and {"seg", "mcrf", "atn"} <= set(plain.log[-1])


@pytest.mark.parametrize(("size", "radius", "sigma"), [(256, 5, 6.0), (128, 2, 3.0), (96, 2, 2.25), (32, 1, 0.75)])
def test_reach_scales_windows_with_the_input(monkeypatch, size, radius, sigma):
    from attenscribble.method import objective

    seen = []
    monkeypatch.setattr(objective.masked_crf_loss, "of_batch", lambda *_, **options: seen.append(options))
    context = context_of(torch.zeros(1, 2, size, size), torch.full((1, size, size), 4), switches={"reach": "input"})
    objective.mcrf_term(context)
    assert (seen[0]["radius"], seen[0]["sigma_xy"]) == (radius, sigma)
    options = objective._similarity_options(context)
    assert (options["radius"], options["sigma_xy"]) == (radius, sigma)
    context.switches = context.switches.model_copy(update={"reach": "px"})
    objective.mcrf_term(context)
    assert (seen[1]["radius"], seen[1]["sigma_xy"]) == (5, 6.0)


def test_a_ramp_rises_evenly(hearts):
    assert [linear(0.5)(progress) for progress in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]
    objective = Objective(METHODS["gated-crf"], ramp={"crf": 0.5})
    weight = [term.weight * term.ramp(0.25) for term in objective.terms if term.ramp]
    assert weight == [0.05]
    with pytest.raises(ValueError, match="ramp_mcrf: method 'gated-crf' has the terms seg, crf"):
        Config(method="gated-crf", ramp_mcrf=0.5)


# --- averaged weights


def test_the_average_is_the_average():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    average, expected = Ema(network, 0.9, buffers="average", training=False), None
    for step in range(4):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 1
            network[1].running_mean += 1
            network[1].num_batches_tracked += 1
        average.follow(network, step)
        alpha = min(1 - 1 / (step + 1), 0.9)
        now = {name: value.clone() for name, value in network.state_dict().items()}
        expected = now if expected is None else {
            name: alpha * expected[name] + (1 - alpha) * value if value.is_floating_point() else value
            for name, value in now.items()}
    torch.testing.assert_close(average.network.state_dict(), expected)


def test_the_average_is_tested_saved_and_resumed(hearts, tmp_path):
    setup = resolve(Config(**TINY, ema=0.8), hearts)
    whole = train(setup, tmp_path / "whole" if (tmp_path / "whole").mkdir() is None else None)

    def cut(state):
        if state.step == 4:
            raise KeyboardInterrupt

    (tmp_path / "cut").mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(setup, tmp_path / "cut", watch=cut)
    resumed = train(setup, tmp_path / "cut")
    for one, other in zip(resumed.average.state_dict().values(), whole.average.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    tested = TrainedNetwork.of(whole).model
    assert tested is whole.average.network and not tested.training
    loaded = load_network(tmp_path / "whole", "cpu").model
    for name, value in tested.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    assert any((a != b).any() for a, b in zip(tested.parameters(), whole.model.parameters(), strict=True))


def test_the_best_validated_weights_are_those_of_the_average(hearts, tmp_path):
    setup = resolve(Config(**TINY, ema=0.8, checkpoint="best_val", validation=0.3), hearts)
    state = train(setup, tmp_path)
    best = state.best["model"]
    assert {name: value.shape for name, value in best.items()} == {
        name: value.shape for name, value in state.average.network.state_dict().items()}
    loaded = load_network(tmp_path, "cpu").model
    torch.testing.assert_close(dict(loaded.state_dict()), dict(best), rtol=0, atol=0)


# --- optimisers and schedules


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("nesterov", torch.optim.SGD),
                                            ("adamw", torch.optim.AdamW)])
def test_optimisers(hearts, name, kind):
    setup = resolve(Config(**TINY, optimiser=name, lr=0.01, attention_lr=0.001), hearts)
    optimiser = make_optimiser(start_training(setup).model, setup.config)
    assert type(optimiser) is kind and [g["initial_lr"] for g in optimiser.param_groups] == [0.01, 0.001]
    assert optimiser.defaults.get("nesterov", False) is (name == "nesterov")
    assert math.isfinite(train(setup).log[-1]["loss"])


def test_schedules():
    cosine = Config(iterations=100, schedule="cosine", warmup=0.1)
    assert learning_rate(0, cosine) == pytest.approx(0.1)
    assert learning_rate(4, cosine) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.04)) / 2)
    assert learning_rate(50, cosine) == pytest.approx(0.5)
    assert 0 < learning_rate(99, cosine) < 0.001
    assert learning_rate(50, Config(iterations=100)) == 0.5**0.9


# --- augmentation


def test_no_zoom_and_no_look_leave_draws_as_they_were():
    for kind in ("acdc", "chaos", "none"):
        plain, same = (draw_augmentation(8, kind, torch.Generator().manual_seed(3), zoom=zoom) for zoom in (0.0, 0))
        assert plain.zoom is None and plain.look is None
        assert torch.equal(plain.turns, same.turns) and torch.equal(plain.angle, same.angle)


def test_zoom_magnifies_about_the_middle():
    side, half = 9, torch.tensor([2.0], dtype=torch.float64)
    still = torch.zeros(1, dtype=torch.int64)
    position, inside = index_map(torch.tensor([side]), torch.tensor([side]), side,
                                 Draw(still, still - 1, still.double(), half))
    rows, columns = np.divmod(position[0].numpy(), side)
    expected = np.floor(4 + (np.arange(side) - 4) / 2 + 0.5)
    np.testing.assert_array_equal(rows[:, 0], expected)
    np.testing.assert_array_equal(columns[0], expected)
    assert inside.all()
    shrunk, inside = index_map(torch.tensor([side]), torch.tensor([side]), side,
                               Draw(still, still - 1, still.double(), 1 / half))
    assert inside[0].sum() == 25 and shrunk[0, 4, 4] == 40  # a margin came in, and the middle stays


def test_zoom_and_target_move_together_and_margins_are_unannotated(hearts):
    case = next(hearts.cases())
    store = SliceStore([replace(case, scribble=(case.gray * 3).astype(np.uint8))], classes=4, ignore=4)
    labelled = SliceStore([case], classes=4, ignore=4)
    draw = draw_augmentation(3, "acdc", torch.Generator().manual_seed(1), zoom=0.5)
    assert ((draw.zoom == 1) | (draw.zoom > 1 / 1.5) & (draw.zoom < 1.5)).all() and (draw.zoom != 1).any()
    batch, strokes = store.batch(torch.arange(3), 48, draw), labelled.batch(torch.arange(3), 48, draw)
    assert torch.equal(batch.target, (batch.image[:, 0] * 3).long())
    small = Draw(draw.turns * 0, draw.flip * 0 - 1, draw.angle * 0, torch.full((3,), 0.5, dtype=torch.float64))
    shrunk = labelled.batch(torch.arange(3), 48, small)
    assert (shrunk.target[:, :5] == 4).all() and (strokes.target != 4).any()


def test_the_network_sees_another_look_and_the_losses_do_not(hearts):
    store = SliceStore(list(hearts.cases())[:2], classes=4, ignore=4)
    index = torch.arange(4)
    plain = store.batch(index, 32, draw_augmentation(4, "none", torch.Generator().manual_seed(0)))
    looked = store.batch(index, 32, draw_augmentation(4, "none", torch.Generator().manual_seed(0), look=0.5))
    assert torch.equal(plain.image, looked.image) and plain.seen is plain.image
    assert not torch.equal(looked.seen, looked.image) and torch.isfinite(looked.seen).all()
    torch.testing.assert_close(changed_look(plain.image, torch.zeros(4, 3)), plain.image, atol=2e-6, rtol=1e-5)


def test_mirror_images_are_averaged_only_where_training_saw_them(hearts, monkeypatch):
    state = train(resolve(Config(**TINY, eval_flips=True, augmentation="acdc"), hearts))
    network = TrainedNetwork.of(state)
    assert network.saw_flips
    asked = []
    monkeypatch.setattr("attenscribble.runs.inference.predict_volume", lambda *_, **options: asked.append(options))
    network.segment(np.zeros((1, 32, 32), np.float32))
    replace(network, config=network.config.model_copy(update={"augmentation": "chaos"})).segment(
        np.zeros((1, 32, 32), np.float32))
    network.segment(np.zeros((1, 32, 32), np.float32), flips=False)
    assert [options["flips"] for options in asked] == [True, False, False]


# --- all together


def test_everything_at_once_trains_resumes_and_repeats(hearts, tmp_path):
    settings = TINY | {"ssa_block": "residual", "optimiser": "adamw", "lr": 1e-3, "schedule": "cosine", "ema": 0.9,
                       "warmup": 0.2, "augment_zoom": 0.2, "augment_look": 0.3, "pce_reduction": "class",
                       "lam_dice": 1.0, "lam_self": 0.5, "ramp_mcrf": 0.3, "reach": "input", "eval_flips": True}
    setup = resolve(Config(**settings), hearts)
    first, second = train(setup), train(setup, tmp_path)
    assert {"dice", "self", "sure"} <= set(first.log[-1]) and math.isfinite(first.log[-1]["loss"])
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_partial_loss_is_a_row():
    config = Config(method="partial-loss", profile="mini")
    assert (config.augment_zoom, config.augment_look, config.optimiser) == (0.25, 0.3, "nesterov")
    terms = [(term.name, term.weight) for term in METHODS["partial-loss"].terms]
    assert terms == [("seg", 1.0), ("dice", 1.0)]


# --- the masked CRF in one launch


def test_one_launch_equals_the_walk():
    pytest.importorskip("triton", reason="no Triton here: it comes with PyTorch for GPUs")
    code = """
import torch
from attenscribble.basics.gpu import walk_on_gpu
from attenscribble.method.mcrf import Affinity, _walk
draw = torch.Generator().manual_seed(0)
for modalities, classes, height, width, both, radius in ((1, 4, 17, 23, True, 3), (2, 5, 16, 20, False, 2)):
    probs = torch.randn(2, classes, height, width, generator=draw).softmax(1)
    image = torch.rand(2, modalities, height, width, generator=draw)
    free = torch.rand(2, 1, height, width, generator=draw) > 0.2
    kernel = Affinity(radius, 3.0, 0.1, both)
    found = walk_on_gpu(probs, image, free, radius, 1 / 18, 1 / (0.1 * 2**0.5), both)
    for one, other in zip(found, _walk(probs, image, free, kernel, True)):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
print("equal")
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr


# --- choosing settings without the test fold


def test_held_out_patients_are_tested_and_the_test_fold_is_not_opened(hearts, tmp_path, monkeypatch):
    from attenscribble.runs import run
    from attenscribble.runs.setup import resolve as resolved

    opened = []
    watched = replace(hearts, read=lambda patient: opened.append(patient) or hearts.read(patient))
    monkeypatch.setattr(run, "resolve", lambda config: resolved(config, watched))
    config = Config(**TINY, hold_out="patient004..patient005, patient003", output=str(tmp_path))
    outcome = run.run_experiment(config)
    assert {row["case"][:10] for row in outcome.result["cases"]} == {"patient003", "patient004", "patient005"}
    assert set(opened) == {"patient002", "patient003", "patient004", "patient005"}
    assert config.run_id != Config(**TINY).run_id and outcome.result["settings"]["hold_out"] == config.hold_out


@pytest.mark.parametrize(("named", "message"), [
    ("patient009", "hold_out: found 'patient009', expected one of patient002"), ("patient001", "expected one of"),
    ("patient005..patient002", "0 of 4 training patients"), ("patient002..patient005", "4 of 4 training patients")])
def test_other_names_are_refused(hearts, named, message):
    with pytest.raises(ValueError, match=message):
        resolve(Config(**TINY, hold_out=named), hearts)
