"""The rivals: every loss against a slow form, every gradient finite, every method trains, repeats and beats chance."""

import dataclasses
import math
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from attenscribble.basics.checking import assert_same
from attenscribble.basics.distributed import mean_of
from attenscribble.data.batches import Batch, Draw, SliceStore
from attenscribble.data.phantom import phantom
from attenscribble.entry.commands import main
from attenscribble.method.objective import (
    METHODS,
    SEGMENTATION,
    LossContext,
    Method,
    Objective,
    Term,
    after,
    dense_loss,
    dice_loss,
    register,
    rise,
)
from attenscribble.method.switches import MethodSwitches, Switches
from attenscribble.rivals.branches import (
    DualBranchUNet,
    hard_label_term,
    mixed_probs,
    second_logits,
    soft_label_term,
)
from attenscribble.rivals.pseudo import (
    LabelSwitches,
    RandomWalker,
    RunningMean,
    WalkerSwitches,
    walker_labels,
)
from attenscribble.rivals.regularisers import (
    contour_length,
    entropy_loss,
    mumford_shah_loss,
    perimeter_loss,
)
from attenscribble.rivals.teachers import (
    CompetitionSwitches,
    Ema,
    UstmSwitches,
    competition_term,
    consistency_term,
    firm_labels,
    uncertainty,
)
from attenscribble.runs.config import Config
from attenscribble.runs.inference import predict_volume
from attenscribble.runs.metrics import dice
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import train

pytestmark = pytest.mark.usefixtures("own_cache")

PAPER = ("fully", "pce", "random-walker", "ustm", "scribble2label", "mumford-shah", "entropy-minimisation", "gated-crf",
         "contour", "dual-branch", "ours-without-asl", "ours")
BEYOND = ("dmsps", "scribblevs", "contour-walker")


def tiny(**given):
    "Settings of a run that takes seconds."
    defaults = {"iterations": 60, "batch": 4, "size": 48, "log_every": 5, "asl_radius": 1, "asl_sigma_xy": 1.1,
                "data_patients": 5, "data_side": 48, "data_slices": 4, "precision": "float32"}
    if given.get("method") == "scribble2label":
        defaults["method_every"] = 3
    return Config(**(defaults | given))


def draws(*given):
    "(turns, flip, angle) of each slice."
    turns, flip, angle = (torch.tensor(column) for column in zip(*given, strict=True))
    return Draw(turns, flip, angle.double())


@pytest.fixture(scope="module")
def hearts():
    return phantom(patients=5, side=48, slices=4)


def context_of(method, kind, pseudo=True):
    "A batch of one kind, seen by a small network of a method; with everything that any term may ask for."
    torch.manual_seed(0)
    target = torch.full((3, 16, 16), 4)
    if kind == "one class":
        target[:, 4:8, 4:8] = 0
    elif kind == "two classes":
        target[:, 4, 4:8], target[:, 9, 4:8] = 1, 2
    batch = Batch(torch.rand(3, 1, 16, 16), target, torch.tensor([True] * 3), torch.arange(3), 4,
                  target.clone() if pseudo else None)
    if METHODS[method].target == "label":
        batch = dataclasses.replace(batch, target=target.where(target != 4, 0))
    model = METHODS[method].network(1, 4, MethodSwitches())
    options = METHODS[method].options()
    teacher = METHODS[method].teacher(model, options) if METHODS[method].teacher else None
    logits = model(batch.image)
    if kind == "saturated":
        logits = logits * 1e4
    return LossContext(logits, batch, Config(asl_radius=1), model, teacher, step=1, iterations=2), model


# ---- entries


def test_all_rows_of_the_paper_are_registered_and_some_more():
    assert set(PAPER) | set(BEYOND) <= set(METHODS)
    assert all(method.source and method.title for method in METHODS.values())
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("kind", ["nothing", "one class", "two classes", "saturated"])
@pytest.mark.parametrize("name", [*PAPER, *BEYOND])
def test_every_loss_and_gradient_is_finite(name, kind):
    context, model = context_of(name, kind)
    loss, logged = Objective(METHODS[name])(context)
    loss.backward()
    assert loss.isfinite() and all(value.isfinite() for value in logged.values())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", [n for n in [*PAPER, *BEYOND] if METHODS[n].options.released])
def test_a_released_switch_changes_the_run(name):
    ours, theirs = tiny(method=name), tiny(method=name, preset="released")
    assert not ours.method_options.keys() & METHODS[name].options.released.keys()
    assert METHODS[name].options.released.items() <= theirs.method_options.items() and ours.run_id != theirs.run_id


def test_an_unknown_switch_of_a_method_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"method_swaped: unknown setting; did you mean 'method_swapped'\?"):
        tiny(method="mumford-shah", method_swaped=True)
    with pytest.raises(ValueError, match="method_swapped: unknown setting"):
        tiny(method="pce", method_swapped=True)
    with pytest.raises(ValueError, match=r"method_threshold: found '2'"):
        tiny(method="scribble2label", method_threshold="2")
    assert tiny(method="mumford-shah", method_swapped="true").method_options == {"swapped": True}
    assert tiny(method="mumford-shah", method_swapped="false") == tiny(method="mumford-shah")


def test_the_commands_list_what_is_registered(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(method.source in line for line, method in zip(lines, METHODS.values(), strict=True))
    assert main(["profiles"]) == 0 and "mini" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["method"])
    assert stopped.value.code == 2 and "methods" in capsys.readouterr().err


def test_a_method_of_ones_own_trains(hearts):
    class Size(Switches):
        largest: float = 0.2

    def size_term(context):
        return mean_of(((1 - context.probs[:, 0]).mean((1, 2)) - context.options.largest).clamp(min=0).square())

    try:
        register(Method("size", "Size", "this test", (SEGMENTATION, Term("size", size_term, 10.0, ramp=rise(0.5))),
                        options=Size, settings={"lr": 0.02, "momentum": 0.8}))
        config = tiny(method="size", iterations=12, method_largest=0.05)
        assert config.lr == 0.03 and config.momentum == 0.8  # profile over method over defaults
        row = train(resolve(config, hearts)).log[-1]
        assert {"seg", "size"} <= set(row) and row["size"] > 0
        with pytest.raises(ValueError, match="'size' is registered already: this test"):
            register(Method("size", "Other", "elsewhere", (SEGMENTATION,)))
    finally:
        METHODS.pop("size")


# ---- training


def chance(found: np.ndarray, label: np.ndarray, rng) -> float:
    "Mean DSC of the organs when the found classes are dealt out to random pixels."
    return mean_dsc(rng.permutation(found.ravel()).reshape(found.shape), label)


def mean_dsc(found: np.ndarray, label: np.ndarray) -> float:
    return float(np.nanmean([dice(found == c, label == c) for c in (1, 2, 3)]))


@pytest.mark.parametrize("name", sorted({*PAPER, *BEYOND} - {"fully", "pce", "ours", "ours-without-asl"}))
def test_it_learns_repeats_and_beats_chance(hearts, name):
    config = tiny(method=name)
    first, again = train(resolve(config, hearts)), train(resolve(config, hearts))
    for (key, a), b in zip(first.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    leading = [row[METHODS[name].terms[0].name] for row in first.log]
    assert sum(leading[-4:]) < 0.8 * sum(leading[:4])
    case = hearts.read(hearts.split(1)[1][0])[0]
    found = predict_volume(first.model, case.image, size=48)
    assert mean_dsc(found, case.label) > 2 * chance(found, case.label, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["ustm", "scribble2label", "dual-branch"])
def test_an_interrupted_rival_ends_as_an_uninterrupted_one(hearts, tmp_path, name):
    config = tiny(method=name, iterations=12, eval_every=4, log_every=4)

    def interrupt(state):
        if state.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(resolve(config, hearts), tmp_path, interrupt)
    resumed, uncut = train(resolve(config, hearts), tmp_path), train(resolve(config, hearts))
    for (key, a), b in zip(resumed.model.state_dict().items(), uncut.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


# ---- labels for all pixels


def test_dense_loss_without_unknown_pixels_is_the_half_sum_and_ignores_unknown_ones():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 5, 4), torch.randint(3, (2, 5, 4))

    def slow(z):
        p, onehot = z.softmax(1), nn.functional.one_hot(target, 3).movedim(-1, 1)
        dice = [1 - (2 * (p[:, c] * onehot[:, c]).sum() + 1e-5) / ((p[:, c] ** 2).sum() + onehot[:, c].sum() + 1e-5)
                for c in range(3)]
        return (nn.functional.cross_entropy(z, target) + sum(dice) / 3) / 2

    assert_same(lambda z: dense_loss(z, target, ignore=9), slow, logits)
    hole = target.clone()
    hole[:, 2] = 9
    leaf = logits.clone().requires_grad_()
    dense_loss(leaf, hole, ignore=9).backward()
    assert leaf.grad[:, :, 2].abs().max() == 0 < leaf.grad.abs().max()
    rows = [0, 1, 3, 4]
    torch.testing.assert_close(dice_loss(logits.softmax(1), hole, ignore=9),
                               dice_loss(logits.softmax(1)[:, :, rows], target[:, rows], ignore=9))


def one_slice(scribble, image=None):
    "A store of one slice, four classes."
    scribble = np.asarray(scribble, np.uint8)[None]
    image = np.zeros(scribble.shape, np.float32) if image is None else np.asarray(image, np.float32)[None]
    return SliceStore([SimpleNamespace(name="s", image=image, scribble=scribble)], classes=4, ignore=4)


def test_pseudo_labels_go_through_the_augmentation_of_the_scribble():
    store = one_slice(np.arange(30).reshape(5, 6) % 5)
    store.set_pseudo(torch.from_numpy((np.arange(30) % 5).astype(np.uint8)))
    for draw in ((3, 0, 0), (0, -1, 13), (1, 1, 0)):
        batch = store.batch(torch.tensor([0]), 9, draws(draw))
        assert torch.equal(batch.pseudo, batch.target)
    store.set_pseudo(torch.zeros(30, dtype=torch.uint8))  # nothing unknown: a margin is background, as for dense labels
    assert (store.batch(torch.tensor([0]), 9, draws((0, -1, 13))).pseudo == 0).all()
    store.set_pseudo(torch.zeros(30, dtype=torch.uint8), fill=4)
    assert (store.batch(torch.tensor([0]), 9, draws((0, -1, 19))).pseudo == 4).any()
    with pytest.raises(ValueError, match=r"labels: found torch.uint8 \(3,\), expected uint8 \(30,\)"):
        store.set_pseudo(torch.zeros(3, dtype=torch.uint8))


def test_a_store_knows_where_each_slice_lies():
    rng = np.random.default_rng(0)
    cases = [SimpleNamespace(name=str(side), image=rng.random((2, side, 5), np.float32),
                             scribble=rng.integers(0, 5, (2, side, 5)).astype(np.uint8)) for side in (4, 7)]
    store = SliceStore(cases, classes=4, ignore=4)
    for number, (case, z) in enumerate((case, z) for case in cases for z in range(2)):
        image, target = store.native(number)
        assert np.array_equal(image, case.image[z]) and np.array_equal(target, case.scribble[z])
    assert store.pixels == store.drawn().numel() == 2 * 5 * (4 + 7)


def test_the_walker_solves_its_equations():
    "Each free pixel's probability is its neighbours' weighted mean: solved densely and compared."
    rng = np.random.default_rng(0)
    image, scribble = rng.random((5, 6)), np.full((5, 6), 4, np.uint8)
    scribble[0, 0], scribble[4, 5], scribble[2, 3] = 0, 3, 1
    mapped = (image + 0.35) / 1.7 * 2 - 1
    cells = list(np.ndindex(5, 6))
    weight = np.zeros((30, 30))
    for i, (y, x) in enumerate(cells):
        for j, (v, u) in enumerate(cells):
            if abs(y - v) + abs(x - u) == 1:
                weight[i, j] = np.exp(-100 * (mapped[y, x] - mapped[v, u]) ** 2 / (10 * mapped.std())) + 1e-10
    free = scribble.ravel() == 4
    laplacian = np.diag(weight.sum(1)) - weight
    ends = (scribble.ravel()[~free][:, None] == [0, 1, 3]).astype(float)
    probs = np.linalg.solve(laplacian[np.ix_(free, free)], weight[np.ix_(free, ~free)] @ ends)
    expected = scribble.ravel().copy()
    expected[free] = np.array([0, 1, 3])[probs.argmax(1)]
    found = walker_labels(image, scribble, classes=4, ignore=4)
    sure = np.ones(30, bool)
    sure[free] = np.sort(probs, 1)[:, -1] - np.sort(probs, 1)[:, -2] > 1e-3
    assert np.array_equal(found.ravel()[sure], expected[sure]) and sure.sum() > 25


def test_a_channel_twice_says_no_more_than_once():
    rng = np.random.default_rng(1)
    image, scribble = rng.random((9, 8)), np.full((9, 8), 4, np.uint8)
    scribble[0, 0], scribble[8, 7], scribble[4, 3] = 0, 3, 1
    once = walker_labels(image, scribble, classes=4, ignore=4)
    assert np.array_equal(walker_labels(np.stack([image, image]), scribble, classes=4, ignore=4), once)
    other = walker_labels(np.stack([image, rng.random((9, 8))]), scribble, classes=4, ignore=4)
    assert not np.array_equal(other, once)
    probs, scan = torch.rand(2, 3, 5, 4).softmax(1), torch.rand(2, 2, 5, 4)
    for swapped in (False, True):
        apart = [mumford_shah_loss(probs, scan[:, k:k + 1], swapped=swapped) for k in range(2)]
        torch.testing.assert_close(mumford_shah_loss(probs, scan, swapped=swapped), sum(apart) / 2)


@pytest.mark.parametrize(("marks", "expected"), [
    ([[4, 4], [4, 4]], [[4, 4], [4, 4]]),  # nobody drew: nothing is known
    ([[4, 2], [4, 4]], [[2, 2], [2, 2]]),  # one class: all of it
    ([[0, 4], [4, 3]], None),  # a gap in the numbers: only 0 and 3 come back
])
def test_the_walker_on_poor_scribbles(marks, expected):
    found = walker_labels(np.array([[0.1, 0.2], [0.9, 0.8]]), np.array(marks, np.uint8), classes=4, ignore=4)
    assert found.dtype == np.uint8
    assert found.tolist() == expected if expected else set(np.unique(found)) <= {0, 3}


def test_walks_are_cached_by_content(tmp_path, monkeypatch):
    from attenscribble.rivals import pseudo

    marks = np.full((6, 6), 4)
    marks[0], marks[5] = 0, 1
    calls = []
    monkeypatch.setattr(pseudo, "random_walker", lambda *a, **k: calls.append(k) or np.ones((6, 6), int))
    RandomWalker(one_slice(marks, np.eye(6)), WalkerSwitches(), 16)
    RandomWalker(one_slice(marks, np.eye(6)), WalkerSwitches(), 16)
    assert len(calls) == 1
    RandomWalker(one_slice(marks, np.eye(6)), WalkerSwitches(beta=7), 16)
    RandomWalker(one_slice(marks, np.eye(6) / 2), WalkerSwitches(), 16)
    assert len(calls) == 3 and calls[1]["beta"] == 7
    (kept, *_) = sorted((tmp_path / "cache").rglob("*.npz"))
    kept.write_bytes(b"half a file")
    for beta in (100, 7):
        RandomWalker(one_slice(marks, np.eye(6)), WalkerSwitches(beta=beta), 16)
    RandomWalker(one_slice(marks, np.eye(6) / 2), WalkerSwitches(), 16)
    assert len(calls) == 4  # the broken file is made anew, the others are read
    with zipfile.ZipFile(kept, "w") as archive:
        archive.writestr("labels", b"whole, and no array")  # numpy returns bytes for it
    for beta in (100, 7):
        RandomWalker(one_slice(marks, np.eye(6)), WalkerSwitches(beta=beta), 16)
    RandomWalker(one_slice(marks, np.eye(6) / 2), WalkerSwitches(), 16)
    assert len(calls) == 5


def test_many_slices_are_walked_in_processes():
    marks = np.full((4, 4), 4, np.uint8)
    marks[0], marks[3] = 0, 2
    case = SimpleNamespace(name="c", image=np.zeros((6, 4, 4), np.float32), scribble=np.stack([marks] * 6))
    stores = [SliceStore([case], classes=4, ignore=4) for _ in range(2)]
    for store, workers in zip(stores, (1, 2), strict=True):
        RandomWalker(store, WalkerSwitches(beta=workers), 16, workers=workers)
    found = [store.batch(torch.arange(6), 4).pseudo for store in stores]
    assert torch.equal(*found) and found[0][0, 1, 0] == 0 and found[0][0, 2, 0] == 2


def test_without_all_organs_the_released_walker_says_background():
    marks = np.full((6, 6), 4)
    marks[0], marks[5] = 0, 1
    stores = [one_slice(marks, np.eye(6)) for _ in range(2)]
    for store, partial in zip(stores, (True, False), strict=True):
        RandomWalker(store, WalkerSwitches(partial=partial), 16)
    ours, theirs = (store.batch(torch.tensor([0]), 6).pseudo for store in stores)
    assert (ours == 1).any() and (theirs == 0).all()


class Constant(nn.Module):
    "Gives every pixel the same logits, and remembers its mode."

    def __init__(self, *logits):
        super().__init__()
        self.logits, self.modes = torch.tensor(logits), set()

    def forward(self, image):
        self.modes.add((self.training, len(image)))
        return self.logits.view(1, -1, 1, 1).expand(len(image), -1, *image.shape[2:])


def test_the_running_mean_believes_after_eight_updates_and_leaves_strokes_alone():
    marks = np.full((8, 8), 4)
    marks[2, 2:6] = 3
    store = one_slice(marks)
    guesses, model = RunningMean(store, LabelSwitches(every=5), 16), Constant(0.0, 40.0, 0.0, 0.0)
    for step in range(0, 41):
        guesses.refresh(model, step, None)
        known = store.batch(torch.tensor([0]), 8).pseudo != 4
        assert known.sum() == (60 if step >= 40 else 0) and guesses.updates == step // 5
    assert not known[0, 2, 2:6].any() and model.training and model.modes == {(False, 1)}
    np.testing.assert_allclose(guesses.mean[1, 0], 1 - 0.8**8, atol=2e-3)


def test_the_released_running_mean_asks_one_slice_at_a_time_in_training_mode():
    marks = np.full((1, 8, 8), 4, np.uint8)
    marks[0, 0] = 0
    case = SimpleNamespace(name="c", image=np.zeros((3, 8, 8), np.float32), scribble=np.repeat(marks, 3, 0))
    store, model = SliceStore([case], classes=4, ignore=4), Constant(40.0, 0.0, 0.0, 0.0)
    guesses = RunningMean(store, LabelSwitches(every=1, eval_mode=False, margin=False), 16)
    guesses.refresh(model.eval(), 1, None)
    assert model.modes == {(True, 1)} and not model.training
    assert (store.batch(torch.arange(3), 8, draws(*[(0, -1, 19)] * 3)).pseudo == 0).any()  # margins: background


# ---- teachers


def test_the_teacher_is_the_mean_of_the_first_networks_then_forgets():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    teacher, seen = Ema(model, 0.9), []
    for step, value in enumerate(np.random.default_rng(0).normal(size=30)):
        nn.init.constant_(model[0].weight, value)
        model[1].running_mean.fill_(value)
        seen.append(value)
        teacher.follow(model, step)
        if step < 9:
            assert math.isclose(teacher.network[0].weight.item(), np.mean(seen), abs_tol=1e-5)
    weights = 0.1 * 0.9 ** np.arange(len(seen) - 9)[::-1]
    expected = np.dot(weights, seen[9:]) + 0.9 ** (len(seen) - 9) * np.mean(seen[:9])
    assert math.isclose(teacher.network[0].weight.item(), expected, abs_tol=1e-4)
    assert teacher.network[1].running_mean.item() == pytest.approx(seen[-1])
    assert not any(p.requires_grad for p in teacher.parameters())
    alone = Ema(model, 0.9, buffers=False)
    model[1].running_mean.fill_(99)
    alone.follow(model, 5)
    assert alone.network[1].running_mean.item() != 99


def test_consistency_is_the_slow_sum_over_sure_pixels():
    "A teacher that does not mind noise and dropout: every quantity can be written down."
    torch.manual_seed(3)
    logits = torch.randn(2, 4, 6, 6, requires_grad=True)
    batch = Batch(torch.rand(2, 1, 6, 6), torch.full((2, 6, 6), 4), torch.tensor([True] * 2), torch.arange(2), 4)
    taught = torch.randn(2, 4, 6, 6) * 2
    context = LossContext(logits, batch, MethodSwitches(), teacher=lambda image: taught, step=1, iterations=2,
                          options=UstmSwitches())
    state = torch.get_rng_state()
    loss = consistency_term(context).mean()
    torch.set_rng_state(state)
    turned, probs = logits.softmax(1).rot90(int(torch.randint(4, ())), (2, 3)), taught.softmax(1)
    bound, total, sure = (0.75 + 0.25 * math.exp(-5 * 0.25)) * math.log(4), 0, 0
    for n, y, x in np.ndindex(2, 6, 6):
        p = probs[n, :, y, x]
        if -(p * (p + 1e-6).log()).sum() < bound:
            total, sure = total + ((turned[n, :, y, x] - p) ** 2).sum(), sure + 1
    assert 0 < sure < 72
    torch.testing.assert_close(loss, total / (2 * sure))
    context.options = UstmSwitches(two_classes=True)
    before = context.notes["sure"].mean()
    consistency_term(context)
    assert context.notes["sure"].mean() < before


def test_uncertainty_is_entropy():
    torch.testing.assert_close(uncertainty(torch.full((1, 4, 1, 1), 0.25)).item(), math.log(4), atol=1e-4, rtol=0)
    assert abs(uncertainty(torch.eye(4).view(4, 4, 1, 1)).max()) < 1e-4


def test_the_better_reader_of_the_strokes_gives_the_labels():
    good, bad = torch.tensor([3.0, 0, 0, 0]).view(1, 4, 1, 1), torch.tensor([0.0, 3, 0, 0]).view(1, 4, 1, 1)
    target = torch.full((1, 4, 4), 4)
    target[0, 0] = 0
    batch = Batch(torch.zeros(1, 1, 4, 4), target, torch.tensor([True]), torch.arange(1), 4)
    for ours, theirs, wins in ((bad, good, 1), (good, bad, 0)):
        context = LossContext(ours.expand(1, 4, 4, 4).clone().requires_grad_(), batch, MethodSwitches(),
                              teacher=lambda image, logits=theirs: logits.expand(1, 4, 4, 4),
                              options=CompetitionSwitches())
        loss = competition_term(context).mean()
        torch.testing.assert_close(loss, dense_loss(context.logits, torch.zeros(1, 4, 4, dtype=torch.long), ignore=4))
        assert context.notes["teacher_wins"].mean() == wins
    unsure = torch.zeros(1, 4, 4, 4)
    assert (firm_labels(unsure.softmax(1), 0.5, 4) == 4).all()


def test_ramps():
    assert [after(0.5)(t) for t in (0, 0.49, 0.5, 1)] == [0, 0, 1, 1]
    assert rise()(0) == pytest.approx(math.exp(-5)) and rise()(1) == 1 and rise(0.2)(0.3) == 1
    assert rise(0.5)(0.25) == pytest.approx(math.exp(-5 / 4))


# ---- branches


def test_the_second_branch_leaves_the_first_alone_and_needs_training_mode():
    torch.manual_seed(0)
    model = DualBranchUNet(1, 4, channels=(4, 8, 16), dropout=(0, 0, 0))
    image = torch.rand(2, 1, 16, 16)
    quiet = model.eval()(image)
    assert quiet.shape == (2, 4, 16, 16)
    batch = Batch(image, torch.full((2, 16, 16), 4), torch.tensor([True] * 2), torch.arange(2), 4)
    context = LossContext(quiet, batch, MethodSwitches(), model)
    with pytest.raises(ValueError, match="model: found a DualBranchUNet without logits of a second branch, expected"):
        second_logits(context)
    model.train()(image)
    assert second_logits(context).shape == (2, 4, 16, 16)
    second_logits(context).sum().backward()
    assert all(p.grad is None for p in model.decoder.parameters()) and model.encoder[0][0].weight.grad is not None


def test_hard_and_soft_labels_against_slow_forms():
    torch.manual_seed(1)
    logits, second = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    batch = Batch(torch.rand(2, 1, 4, 5), torch.full((2, 4, 5), 9), torch.tensor([True] * 2), torch.arange(2), 9)
    context = LossContext(logits, batch, MethodSwitches(), SimpleNamespace(auxiliary=second),
                          options=METHODS["dmsps"].options())
    state = torch.get_rng_state()
    weight = torch.rand(())
    probs = logits.softmax(1), second.softmax(1)
    mixture = mixed_probs(*probs, weight)
    assert not mixture.requires_grad
    torch.set_rng_state(state)
    by_hand = sum(dice_loss(p, mixture.argmax(1), ignore=9) for p in probs) / 2
    torch.testing.assert_close(hard_label_term(context).mean(), by_hand)
    torch.set_rng_state(state)
    soft = [-(mixture * z.log_softmax(1)).sum(1).mean() for z in (logits, second)]
    torch.testing.assert_close(soft_label_term(context).mean(), sum(soft) / 2)
    context.options = METHODS["dmsps"].options(double_softmax=True)
    torch.set_rng_state(state)
    twice = [-(mixture * p.log_softmax(1)).sum(1).mean() for p in probs]
    torch.testing.assert_close(soft_label_term(context).mean(), sum(twice) / 2)


# ---- regularisers


@pytest.mark.parametrize("loss", [
    entropy_loss, contour_length, lambda p: mumford_shah_loss(p, torch.linspace(0, 1, 20).view(1, 1, 4, 5).double()),
    lambda p: perimeter_loss(p, torch.eye(4, 5).long()[None], ignore=9)])
def test_regularisers_have_the_right_gradient(loss):
    torch.manual_seed(0)
    z = torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(z.softmax(1)), z)


def test_mumford_shah_by_hand_and_swapped():
    row = torch.tensor([0.0, 0, 1, 1]).view(1, 1, 1, 4)
    probs = torch.cat((1 - row, row), 1)
    assert mumford_shah_loss(probs, row).item() == 0.5
    assert mumford_shah_loss(probs, 1 - row).item() == 0.5  # a region's own intensity does not matter
    # swapped: Σ_c Σ (P_c − ν_c)² I with ν = mean of P where the image is bright: (0, 1), exactly P there
    assert mumford_shah_loss(probs, row, swapped=True).item() == 0.5
    comb = torch.tensor([0.0, 1, 0, 1]).view(1, 1, 1, 4)
    probs = torch.cat((1 - comb, comb), 1)  # of the bright pixels each class has ½: 2 × 2 × ¼ = 1, border 6
    assert mumford_shah_loss(probs, row, swapped=True).item() == pytest.approx((1 + 6) / 4)
    assert mumford_shah_loss(probs, row).item() == pytest.approx((4 * 0.25 + 6) / 4)


def test_perimeter_is_blind_to_place_and_contour_to_the_background():
    square = torch.zeros(1, 12, 12, dtype=torch.long)
    square[:, 2:7, 2:7] = 1
    onehot = nn.functional.one_hot(square, 2).movedim(-1, 1).float()
    assert perimeter_loss(onehot.roll(3, 3), square, ignore=9) == 0
    smaller = onehot.clone()
    smaller[:, 1, 2] = 0  # 5×5 → 4×5 pixels: the rim has 14 instead of 16
    assert perimeter_loss(smaller, square, ignore=9).item() == pytest.approx(4 / 144)
    assert contour_length(onehot).item() == pytest.approx(16 / 144)
    pair = torch.cat((onehot, onehot * 0 + torch.tensor([1.0, 0]).view(1, 2, 1, 1)))
    assert contour_length(pair).item() == pytest.approx(16 / 288) and contour_length(pair, drop_first=True) == 0
