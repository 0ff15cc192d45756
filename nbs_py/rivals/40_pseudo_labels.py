# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Guessed labels
#
# > Two rivals guess a class for the pixels that nobody annotated: one from the image, one from the network's answers.
#
# A scribble gives the class of few pixels and leaves the rest open. If the rest can be guessed well, a network can
# learn from many more pixels; if it is guessed badly, the network learns the errors too. This chapter builds two ways
# to guess: once from the images before training, and again and again from the network while it trains.

# %%
#| default_exp rivals.pseudo

# %%
#| export
import hashlib
import json
import multiprocessing
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

# %%
#| export
import numpy as np
import torch
from pydantic import Field
from skimage.segmentation import random_walker
from torch import nn
from tqdm.auto import tqdm

from attenscribble.basics.distributed import BatchMean, ratio
from attenscribble.basics.files import cache_folder, end_with_parent, write_atomic
from attenscribble.data.batches import SliceStore, resize_image
from attenscribble.method.objective import SEGMENTATION, LossContext, Method, Term, after, dense_loss, register
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.method.switches import Switches

# %%
from types import SimpleNamespace

import matplotlib.pyplot as plt
from ipywidgets import interact
from scipy.ndimage import distance_transform_edt

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom
from attenscribble.method.network import UNet2d
from attenscribble.runs.metrics import dice

# %% [markdown]
# ## Can labels be guessed before training?
#
# A slice, its scribble, and a guess made from the image alone: a random walk that starts at a pixel and rarely crosses
# an edge, which stroke does it meet first? (The function comes from the finished module; the chapter builds it.)

# %%
data = phantom(patients=5)
case, z = data.read("patient002")[0], 3
NAMES, IGNORE = data.class_names, data.ignore
image, scribble, label = case.image[z], case.scribble[z], case.label[z]


def overlap(found, label):
    "Mean DSC of the organs."
    return np.nanmean([dice(found == c, label == c) for c in range(1, len(NAMES))])


# %%
from attenscribble.rivals.pseudo import walker_labels

walked = walker_labels(image, scribble, classes=4, ignore=IGNORE)
figure, axes = panels(3)
draw(axes[0], image, scribble=scribble, ignore=IGNORE, title="image and strokes")
draw(axes[1], image, label=walked, outline=label, title=f"random walker: DSC {overlap(walked, label):.2f}")
draw(axes[2], image, label=label, title="truth")
class_legend(figure, NAMES)


# %% [markdown]
# ## One store for all guesses
#
# Guessed labels lie beside the scribbles in the [slice store](../data/20_batches.ipynb), are turned and flipped with
# them, and reach the loss as `batch.pseudo`. The object that makes them is asked before each training step to
# `refresh` them. It also says what a checkpoint must hold, so that an interrupted run goes on with the same guesses.

# %%
#| export
class PseudoLabels:
    "Guessed labels for all slices of a store. A subclass fills them in, once or again and again."

    def __init__(
        self,
        store: SliceStore,  # of scribbles; it takes the guesses
    ) -> None:
        self.store = store

    def refresh(
        self,
        model: nn.Module,  # the network in training
        step: int,  # iterations done
        precision: torch.dtype | None,  # autocast type of a forward pass; None: float32
    ) -> None:
        "Called before each step."

    def state_dict(self) -> dict[str, Any]:
        "What a checkpoint must hold of it."
        return {}

    def load_state_dict(
        self,
        state: Mapping[str, Any],  # of `state_dict`
    ) -> None:
        "Go on from a checkpoint."


# %% [markdown]
# ## Random walker
#
# Grady (2006). Let $w_{pq}$ say how easily a walk steps between neighbours $p$ and $q$, and let $x^c_p$ be the
# probability that a walk from $p$ first reaches a stroke of class $c$. It is the average of the neighbours'
# probabilities, weighted by $w$:
#
# $$w_{pq}=\exp\Big(-\beta\,\frac{(I_p-I_q)^2}{10\,\mathrm{std}(I)}\Big)+10^{-10},\qquad
# x^c_p=\frac{\sum_q w_{pq}\,x^c_q}{\sum_q w_{pq}}\ \ (p\in\Omega_U),\qquad x^c_p=[Y_s[p]=c]\ \ (p\in\Omega_L)$$
#
# This is a linear system for each class. The label is the class that is most probably met first. As in WSL4MIS, β = 100
# and the intensities are mapped from [−0.35, 1.35] to [−1, 1].

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $\beta$ | `beta` | scalar | – |
# | $I$ | `image` | [H,W] | intensity, mapped as above |
# | $x^c$ | inside `random_walker` | [H,W] a class | probability |
#
# By hand: a row of four pixels, all alike, with strokes 0 and 1 at its ends. A walk from the second pixel ends at the
# left with probability ⅔, so its class is 0; the third pixel's is 1. The naive way is to walk.

# %%
def one_walk(image, scribble, ignore, beta, start, rng):
    "The class of the stroke that one walk meets first."
    y, x = start
    while scribble[y, x] == ignore:
        steps = [(v, u) for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
                 if 0 <= v < image.shape[0] and 0 <= u < image.shape[1]]
        ease = [np.exp(-beta * (image[p] - image[y, x]) ** 2 / (10 * image.std() or 1)) + 1e-10 for p in steps]
        y, x = steps[rng.choice(len(steps), p=np.array(ease) / np.sum(ease))]
    return scribble[y, x]


# %%
def walk_naive(image, scribble, ignore, beta=100.0, walks=200, seed=0):
    "The fraction of the walks from each pixel that end at each class, [H,W,C]: by walking."
    rng, classes = np.random.default_rng(seed), int(scribble[scribble != ignore].max()) + 1
    fractions = np.zeros((*image.shape, classes))
    for start in np.ndindex(*image.shape):
        for _ in range(walks):
            fractions[(*start, one_walk(image, scribble, ignore, beta, start, rng))] += 1 / walks
    return fractions


row = np.array([[0, 4, 4, 1]])
fractions = walk_naive(np.zeros((1, 4)), row, 4)
assert abs(fractions[0, 1, 0] - 2 / 3) < 0.1 and abs(fractions[0, 2, 1] - 2 / 3) < 0.1


# %% [markdown]
# The solver is scikit-image's. Four cases need care, or the labels are wrong:
#
# - classes with gaps in their numbers are renumbered without a word, so that {0, 2, 3} come back as {0, 1, 2}, which
#   happens in the released preparation code: we number them ourselves;
# - with one class its answer is meaningless: the whole slice gets that class;
# - a blank image leads to 0/0 in the weights: it has no edges;
# - a pixel that no stroke reaches is −1: it stays unannotated.

# %%
#| export
def _solve(image: np.ndarray, seeds: np.ndarray, beta: float, mode: str) -> np.ndarray:
    "[H,W] the seed that is most probably met first, −1 where none is reached; seeds from 1, without gaps, 0 elsewhere."
    mapped = (image.astype(np.float64) + 0.35) / 1.7 * 2 - 1
    if mapped.std() == 0:  # 0/0 in β/std: a blank image has no edges
        beta, mapped = 0.0, np.arange(mapped.size, dtype=np.float64).reshape(mapped.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(scikit-umfpack|UMFPACK|The probability range).*")
        return random_walker(mapped, seeds, beta=beta, mode=mode, channel_axis=0 if image.ndim == 3 else None)


# %%
#| export
def _first_met(
    image: np.ndarray, scribble: np.ndarray, present: np.ndarray, ignore: int, beta: float, mode: str
) -> np.ndarray:
    "[H,W] uint8: which of the classes `present` is most probably met first, `ignore` where none is reached."
    number = np.zeros(256, np.int64)
    number[present] = np.arange(1, present.size + 1)  # no gaps: 0 is unannotated
    class_of = np.full(present.size + 2, ignore, np.uint8)  # −1, unreached, is the last entry
    class_of[1:-1] = present
    return class_of[_solve(image, number[scribble], beta, mode)]


# %%
#| export
def walker_labels(
    image: np.ndarray,  # [H,W] or, with several channels, [K,H,W]; in [0,1]
    scribble: np.ndarray,  # [H,W] class ids, `ignore` where unannotated
    *,
    classes: int,  # number of classes, the background included
    ignore: int,  # value of unannotated pixels
    beta: float = 100.0,  # how much an edge hinders (WSL4MIS)
    mode: str = "bf",  # scikit-image's solver: "bf" is exact and the fastest for slices of this size
) -> np.ndarray:  # [H,W] uint8: the class first met, most probably; `ignore` where no stroke can be reached
    "The random walker's guess for one slice (Grady, PAMI 2006; β and mapping of WSL4MIS)."
    present = np.unique(scribble[scribble != ignore])
    if present.size > 1:
        return _first_met(image, scribble, present, ignore, beta, mode)
    return np.full_like(scribble, present[0] if present.size else ignore, dtype=np.uint8)


# %% [markdown]
# The released code has one more rule: where the scribble lacks any of the organs, the whole slice becomes background.

# %%
#| export
def released_walker_labels(
    image: np.ndarray,  # [H,W] or [K,H,W]; in [0,1]
    scribble: np.ndarray,  # [H,W] class ids, `ignore` where unannotated
    *,
    classes: int,  # number of classes, the background included
    ignore: int,  # value of unannotated pixels
    beta: float = 100.0,  # how much an edge hinders
    mode: str = "bf",  # scikit-image's solver
) -> np.ndarray:  # [H,W] uint8, as of `walker_labels`
    "As WSL4MIS does it: a slice whose scribble lacks any organ becomes background throughout."
    if not all((scribble == class_id).any() for class_id in range(1, classes)):
        return np.zeros_like(scribble, dtype=np.uint8)
    return walker_labels(image, scribble, classes=classes, ignore=ignore, beta=beta, mode=mode)


# %%
assert walker_labels(np.zeros((1, 4)), row.astype(np.uint8), classes=2, ignore=4).tolist() == [[0, 0, 1, 1]]
gap = np.array([[0, 4, 4, 3]], np.uint8)
assert set(np.unique(walker_labels(np.zeros((1, 4)), gap, classes=4, ignore=4))) == {0, 3}
lone = np.array([[4, 2, 4]], np.uint8)
assert (walker_labels(np.zeros((1, 3)), lone, classes=4, ignore=4) == 2).all()

rng = np.random.default_rng(1)
patch, marks = rng.random((4, 4)), np.full((4, 4), 2, np.uint8)
marks[0, :2], marks[3, 2:] = 0, 1
fractions = walk_naive((patch + 0.35) / 1.7 * 2 - 1, marks, 2, beta=20.0, walks=100)
clear = np.abs(fractions[..., 0] - 0.5) > 0.15
assert clear.sum() > 8
assert (walker_labels(patch, marks, classes=2, ignore=2, beta=20.0) == fractions.argmax(-1))[clear].all()
print("one slice:", cost(lambda: walker_labels(image, scribble, classes=4, ignore=IGNORE)))


# %% [markdown]
# A training fold has 1,500 slices, a fifth of a second each. The work is divided among the processors, and each guess
# is kept on disk, under a key made from the image, the scribble and the options. What is found there is used only if its
# checksum, shape and values are right.

# %%
#| export
class WalkerSwitches(Switches):
    "The switches of the method `random-walker`."

    beta: float = Field(100.0, gt=0, description="how much an edge hinders the walk (WSL4MIS)")
    mode: str = Field("bf", description="scikit-image's solver: bf, cg, cg_j, cg_mg")
    partial: bool = Field(True, description="also slices whose scribble lacks a class; false: they become background")
    released: ClassVar[dict[str, Any]] = {"partial": False}


# %%
#| export
def _cached(job: tuple[np.ndarray, np.ndarray], make: partial, folder: Path) -> np.ndarray:
    "The guess for one slice, from the cache if it is there; a broken file is made anew."
    image, scribble = job
    recipe = json.dumps([make.func.__name__, make.keywords, image.shape], sort_keys=True).encode()
    path = folder / f"{hashlib.sha256(recipe + image.tobytes() + scribble.tobytes()).hexdigest()[:32]}.npz"
    known = [*range(make.keywords["classes"]), make.keywords["ignore"]]
    if (found := _kept(path, scribble.shape, known)) is not None:
        return found
    labels = make(image, scribble)
    with suppress(OSError):  # a cache that cannot be written costs time, no training
        write_atomic(path, partial(np.savez_compressed, labels=labels))
    return labels


# %%
#| export
def _kept(path: Path, shape: tuple[int, ...], known: Sequence[int]) -> np.ndarray | None:
    "A guess from the cache, its checksum verified; None for what is not there, damaged, or no guess for such a slice."
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        with np.load(path) as file:
            labels = file["labels"]  # of a damaged list of files it may be bytes
        fits = whole and labels.dtype == np.uint8 and labels.shape == shape and np.isin(labels, known).all()
    except Exception:  # numpy, zip and zlib raise many kinds for damaged bytes
        return None
    return labels if fits else None


# %%
#| export
def _guess_all(store: SliceStore, make: partial, workers: int | None) -> list[np.ndarray]:
    "The guesses for all slices of a store, [H,W] uint8 each."
    jobs = [tuple(plane.cpu().numpy() for plane in store.native(n)) for n in range(len(store))]
    work = partial(_cached, make=make, folder=cache_folder() / "random-walker")
    workers = workers or (1 if len(jobs) < 200 else os.cpu_count() or 1)
    bar = partial(tqdm, total=len(jobs), desc="random walker", mininterval=1.0)
    if workers == 1:
        return list(bar(map(work, jobs)))
    fresh = multiprocessing.get_context("spawn")  # a fork of a process that runs torch's threads may hang
    with ProcessPoolExecutor(workers, fresh, end_with_parent, (os.getpid(),)) as pool:
        return list(bar(pool.map(work, jobs, chunksize=8)))


# %%
#| export
class RandomWalker(PseudoLabels):
    "Labels guessed from the images, once, before training."

    def __init__(
        self,
        store: SliceStore,  # of scribbles
        options: WalkerSwitches,  # β, solver and rule
        size: int,  # of the network's input; not needed
        workers: int | None = None,  # processes; None: one a processor, or this one alone for fewer than 200 slices
    ) -> None:
        super().__init__(store)
        function = walker_labels if options.partial else released_walker_labels
        make = partial(function, classes=store.classes, ignore=store.ignore, beta=options.beta, mode=options.mode)
        labels = np.concatenate([guess.ravel() for guess in _guess_all(store, make, workers)])
        store.set_pseudo(torch.from_numpy(labels))


# %%
#| export
def pseudo_dense_term(
    context: LossContext,  # of a batch with guessed labels
) -> BatchMean:  # of a loss ≥ 0
    "Half cross-entropy, half Dice on guessed labels, as if they were true."
    return dense_loss.of_batch(context.logits, context.guessed, ignore=context.batch.ignore)


register(Method("random-walker", "RW", "Grady 2006; WSL4MIS, pseudo labels before training",
                (Term("dense", pseudo_dense_term),), options=WalkerSwitches, pseudo=RandomWalker))


# %% [markdown]
# ### What the released rule costs
#
# Near the apex most scribbles lack one of the organs. There the released labels are all background, and the heart is
# gone.

# %%
def plot_walker_rules(case, slices):
    "Scribble, our guess, and the released one, for a few slices of a case."
    rules = {"ours": walker_labels, "released": released_walker_labels}
    figure, axes = panels(3 * len(slices), columns=len(slices), size=2.1)
    for z, column in zip(slices, axes.reshape(3, -1).T, strict=True):
        image, scribble = case.image[z], case.scribble[z]
        draw(column[0], image, scribble=scribble, ignore=IGNORE, title=f"slice {z}")
        for axis, name in zip(column[1:], rules, strict=True):
            found = rules[name](image, scribble, classes=4, ignore=IGNORE)
            draw(axis, image, label=found, outline=case.label[z], title=name)
    class_legend(figure, NAMES)


lacking = [z for z in range(len(case.image)) if len(np.unique(case.scribble[z])) in (3, 4)][:2]
plot_walker_rules(case, [z, *lacking])


# %% [markdown]
# ## Scribble2Label
#
# Lee and Jeong (2020). Train with the partial cross-entropy alone for a while. Then, every few steps, let the network
# predict all training slices and keep a running mean $m$ of its probabilities $P$. A class with a mean above 0.8 is
# taken for a label:
#
# $$m_t = (1-\alpha)\,m_{t-1} + \alpha\, P_t,\qquad
# \hat Y[p] = c\ \text{ if } m_t^c[p] > \tau \text{ and } p\in\Omega_U,\ \text{else unknown}$$
#
# $$l = l_{seg}(P, Y_s) + \tfrac12\, l_{seg}(P, \hat Y),\qquad m_0=0,\ \alpha=0.2,\ \tau=0.8$$
#
# By hand: a network that is certain from the first update on gives $m = 0.2, 0.36, 0.488, \dots = 1-0.8^n$, which is
# above 0.8 after **eight** updates. Because the mean starts at 0, no single prediction becomes a label.

# %%
#| export
class LabelSwitches(Switches):
    "The switches of the method `scribble2label`."

    every: int = Field(100, ge=1, description="iterations between two updates of the running mean (WSL4MIS)")
    alpha: float = Field(0.2, gt=0, le=1, description="weight of the newest answer (WSL4MIS)")
    threshold: float = Field(0.8, gt=0, lt=1, description="mean above which a class is taken for a label (WSL4MIS)")
    eval_mode: bool = Field(True, description="ask the network in eval mode; false: dropout and batch statistics on")
    margin: bool = Field(True, description="margins of a rotation stay unannotated; false: they become background")
    released: ClassVar[dict[str, Any]] = {"eval_mode": False, "margin": False}


# %%
#| export
def _move_mean(guesses: "RunningMean", model: nn.Module, numbers: list[int]) -> None:
    "Move the mean of some slices towards what the network predicts now."
    store, options, size = guesses.store, guesses.options, guesses.size
    images = [resize_image(store.native(n)[0], size) for n in numbers]
    predicted = model(torch.stack(images).view(len(numbers), -1, size, size)).float().softmax(1)
    for n, probs in zip(numbers, predicted, strict=True):
        place, shape = store.span(n)
        mean = guesses.mean[:, place]
        mean += options.alpha * (resize_image(probs, shape).flatten(1) - mean)
        best = mean.max(0)
        guesses.labels[place] = torch.where(best.values > options.threshold, best.indices, store.ignore).byte()


# %%
#| export
@torch.no_grad()
def _update(guesses: "RunningMean", model: nn.Module, precision: torch.dtype | None) -> None:
    "Move the mean of all slices; the network's mode stays what it was."
    store, training = guesses.store, model.training
    model.train(not guesses.options.eval_mode)
    with torch.autocast(store.device.type, precision, enabled=precision is not None):
        for numbers in torch.arange(len(store)).split(guesses.batch):
            _move_mean(guesses, model, numbers.tolist())
    model.train(training)
    guesses.updates += 1


# %%
#| export
def _publish(guesses: "RunningMean") -> None:
    "Lay the labels beside the scribbles, except where somebody drew."
    store = guesses.store
    store.set_pseudo(guesses.labels.masked_fill(store.drawn(), store.ignore),
                     fill=None if guesses.options.margin else 0)


# %%
#| export
class RunningMean(PseudoLabels):
    "Labels that the network has given firmly and repeatedly."

    def __init__(
        self,
        store: SliceStore,  # of scribbles
        options: LabelSwitches,  # how often, how fast, from which mean on
        size: int,  # side of the network's input in pixels
        batch: int = 16,  # slices at a time
    ) -> None:
        super().__init__(store)
        self.options, self.size = options, size
        self.batch = batch if options.eval_mode else 1  # as released: batch norm sees one slice
        self.mean = torch.zeros(store.classes, store.pixels, dtype=torch.float16, device=store.device)
        self.labels = torch.full((store.pixels,), store.ignore, dtype=torch.uint8, device=store.device)
        self.updates = 0
        _publish(self)

    def refresh(
        self,
        model: nn.Module,  # the network in training
        step: int,  # iterations done
        precision: torch.dtype | None,  # autocast type of a forward pass; None: float32
    ) -> None:
        "Every `every` steps: predict all slices, move the mean, take what is above the threshold."
        if step and step % self.options.every == 0:
            _update(self, model, precision)
            _publish(self)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "labels": self.labels, "updates": self.updates}

    def load_state_dict(
        self,
        state: Mapping[str, Any],  # of `state_dict`
    ) -> None:
        self.mean, self.labels, self.updates = (state[name] for name in ("mean", "labels", "updates"))
        _publish(self)


# %%
#| export
def pseudo_term(
    context: LossContext,  # of a batch with guessed labels
) -> BatchMean:  # of a loss ≥ 0
    "Cross-entropy on guessed labels, where there are any; notes on which fraction of the pixels there are."
    pseudo, ignore = context.guessed, context.batch.ignore
    context.notes["guessed"] = ratio((pseudo != ignore).sum(), pseudo.numel())
    return partial_cross_entropy.of_batch(context.logits, pseudo, ignore=ignore)


register(Method("scribble2label", "S2L", "Lee and Jeong 2020; WSL4MIS, train_s2l",
                (SEGMENTATION, Term("pseudo", pseudo_term, weight=0.5, ramp=after(0.1))),
                options=LabelSwitches, pseudo=RunningMean))


# %% [markdown]
# ### Check
#
# A network that is certain of class 1 everywhere: after eight updates, and not before, every pixel outside the stroke
# has a label. The stroke is left to the partial cross-entropy.

# %%
class Certain(nn.Module):
    "Predicts class 1 everywhere."

    def forward(self, image):
        return torch.stack([torch.zeros_like(image[:, 0]), torch.full_like(image[:, 0], 50.0)], 1)


def small_store():
    "One slice of 8×8 with a stroke of class 0, two classes."
    marks = np.full((1, 8, 8), 2, np.uint8)
    marks[0, 2, 2:6] = 0
    plane = SimpleNamespace(name="square", image=np.zeros((1, 8, 8), np.float32), scribble=marks)
    return SliceStore([plane], classes=2, ignore=2)


# %%
store = small_store()
guesses, firm = RunningMean(store, LabelSwitches(every=1), size=16), []
for step in range(1, 10):
    guesses.refresh(Certain(), step, None)
    firm.append(int((store.batch(torch.tensor([0]), 8).pseudo != 2).sum()))
assert firm == [0] * 7 + [60] * 2  # 64 pixels less the stroke's 4


# %% [markdown]
# ### What it looks like
#
# A small network on one phantom slice: 40 steps on the strokes alone, then an update every 10 steps. Once a pixel has a
# label, the network learns it as if it were true, right or wrong.

# %%
def learn(model, optimiser, store, side, steps):
    "Some steps on the strokes and the guessed labels of the first slice."
    for _ in range(steps):
        batch = store.batch(torch.tensor([0]), side)
        logits = model(batch.image)
        loss = (partial_cross_entropy(logits, batch.target, ignore=IGNORE)
                + 0.5 * partial_cross_entropy(logits, batch.pseudo, ignore=IGNORE))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


# %%
def grow_labels(case, z, rounds=(8, 12, 20), side=64, **options):
    "Labels after some updates of a network that trains on one slice: [(updates, [H,W])]."
    torch.manual_seed(0)
    one = SimpleNamespace(name=case.name, image=case.image[z:z + 1], scribble=case.scribble[z:z + 1])
    store = SliceStore([one], classes=4, ignore=IGNORE)
    guesses = RunningMean(store, LabelSwitches(every=1, **options), side)
    model = UNet2d(1, 4, channels=(16, 32, 64), dropout=(0.05, 0.1, 0.2))
    optimiser, shown = torch.optim.Adam(model.parameters(), lr=0.01), []
    for turn in range(max(rounds) + 1):
        learn(model, optimiser, store, side, steps=10 if turn else 40)
        if turn in rounds:
            shown.append((turn, guesses.labels.view(case.image[z].shape).numpy().copy()))
        guesses.refresh(model, turn + 1, None)
    return shown


# %%
def plot_growth(case, z):
    "Strokes, then the labels after some updates over the true outline; dotted: the border of what is labelled."
    shown = grow_labels(case, z)
    figure, axes = panels(1 + len(shown))
    draw(axes[0], case.image[z], scribble=case.scribble[z], ignore=IGNORE, title="strokes")
    for axis, (turn, found) in zip(axes[1:], shown, strict=True):
        known = found != IGNORE
        draw(axis, case.image[z], label=found, outline=case.label[z], ignore=IGNORE,
             title=f"{turn} updates: {known.mean():.0%} labelled,\n"
                   f"{(found == case.label[z])[known].mean():.0%} of them right")
        axis.contour(known, [0.5], colors="white", linewidths=1, linestyles="dotted")
    class_legend(figure, NAMES)


plot_growth(case, z)

# %% [markdown]
# Dotted: the border of what is labelled. (Background labels are drawn transparent.)
#
# The released code predicts in *training* mode: dropout is on, and batch norm takes the statistics of one slice. The
# same network, in both modes, after eight updates:

# %%
for name, options in (("eval mode", {}), ("training mode, as released", {"eval_mode": False})):
    ((_, found),) = grow_labels(case, z, rounds=(8,), **options)
    known = found != IGNORE
    print(f"{name:27} {known.mean():.0%} labelled, {(found == label)[known].mean():.1%} of them right")


# %% [markdown]
# ## Real data: how good are the walker's guesses?
#
# Every tenth ACDC patient's first frame, three slices each. What this does not show: whether a network that is trained
# on the guesses repeats their errors.

# %%
def score_guesses(dataset):
    "DSC of the guess on each slice with a heart, and on how many of them the released rule erases it."
    scores, erased = [], 0
    for patient in dataset.patients[::10]:
        real = dataset.read(patient)[0]
        for s in np.linspace(1, len(real.image) - 2, 3).round().astype(int):
            if real.label[s].any():
                given = real.image[s], real.scribble[s]
                found = released_walker_labels(*given, classes=4, ignore=4)
                if not found.any():  # only there do the two rules differ
                    erased, found = erased + 1, walker_labels(*given, classes=4, ignore=4)
                scores.append(overlap(found, real.label[s]))
    return scores, erased


# %%
try:
    heart = open_dataset("acdc")
    scores, erased = score_guesses(heart)
    print(f"{len(scores)} slices: mean DSC of the guessed labels {np.mean(scores):.3f}; "
          f"the released rule erases the heart on {erased}")
    real = heart.read(heart.patients[::10][-1])[0]
    plot_walker_rules(real, [len(real.image) // 2, len(real.image) - 2])
    plot_growth(real, len(real.image) // 2)
except (ValueError, OSError) as error:
    print(f"skipped, no ACDC here: {str(error).splitlines()[0]}")


# %% [markdown]
# ## How much may an edge hinder?

# %%
def plot_beta(axis, beta):
    "The walker's guess for one β."
    found = walker_labels(image, scribble, classes=4, ignore=IGNORE, beta=beta)
    draw(axis, image, label=found, outline=label, title=f"β = {beta:g}: DSC {overlap(found, label):.2f}")


figure, axes = panels(4)
for axis, beta in zip(axes, (1, 10, 100, 1000), strict=True):
    plot_beta(axis, beta)
class_legend(figure, NAMES)


# %%
def slide(log_beta=2.0):
    plot_beta(panels(1, size=3)[1][0], 10**log_beta)
    plt.show()

interact(slide, log_beta=(0.0, 4.0, 0.25));


# %% [markdown]
# With a small β only the distance counts, and each pixel gets the class of a stroke nearby. A larger β makes edges
# matter. The best value depends on the noise: on this phantom it is 1000 of these four; the rivals' papers use 100 for
# ACDC.
#
# ## Exercises
#
# **1. Predict.** After how many updates does a network that is certain from the start pass the threshold, for any α
# and τ?

# %%
def check_updates(f):
    assert f(0.2, 0.8) == 8 and f(0.5, 0.9) == 4 and f(1.0, 0.8) == 1

def my_updates(alpha, threshold):
    ...  # your code here

def updates(alpha, threshold):
    mean, count = 0.0, 0
    while mean <= threshold:
        mean, count = mean + alpha * (1 - mean), count + 1
    return count

exercise(check_updates, my_updates, updates)


# %% [markdown]
# **2. Implement** the cheapest guess of all: every pixel takes the class of the nearest annotated pixel.

# %%
def check_nearest(f):
    found = f(scribble, IGNORE)
    drawn = scribble != IGNORE
    assert (found != IGNORE).all() and (found == scribble)[drawn].all()
    small = np.array([[0, 4, 4, 4, 1]], np.uint8)
    assert f(small, 4)[0, [1, 3]].tolist() == [0, 1]

def my_nearest(scribble, ignore):
    return scribble  # your code here

def nearest(scribble, ignore):
    y, x = distance_transform_edt(scribble == ignore, return_distances=False, return_indices=True)
    return scribble[y, x]

exercise(check_nearest, my_nearest, nearest)


# %% [markdown]
# **3. Break.** Find a scribble with two classes on a blank image of 1×5 pixels for which `walker_labels` leaves a pixel
# unannotated, or return None if there is none.

# %%
def check_unreached(f):
    assert f() is None

def my_unreached():
    return np.array([[0, 4, 4, 4, 1]], np.uint8)  # your scribble here, or None

exercise(check_unreached, my_unreached, solution=lambda: None)

# %% [markdown]
# There is none: because of the $10^{-10}$ each step has a probability above zero, so every walk reaches a stroke in the
# end.
#
# ## Recap
#
# `PseudoLabels` says what both kinds of guesses have in common; `RandomWalker` and `RunningMean` make them for the
# methods `random-walker` and `scribble2label`. Surprising: a fifth of the slices lack a class, and the released rule
# calls all of them background. [Next](41_teachers.ipynb): guesses that are made anew in every step.
