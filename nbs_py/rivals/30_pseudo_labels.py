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
# > A scribble says little. Two rivals guess the rest before the loss is taken: one from the image, one from the network.

# %%
#| default_exp rivals.pseudo

# %%
#| export
import hashlib
import json
import multiprocessing
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from skimage.segmentation import random_walker
from torch import Tensor, nn
from tqdm.auto import tqdm

from attenscribble.data.batches import SliceStore, resize_image
from attenscribble.machine import cache_folder, share_of, write_whole
from attenscribble.method.objective import (
    SEGMENTATION,
    Evidence,
    Method,
    Switches,
    Term,
    after,
    dense_loss,
    register,
)
from attenscribble.method.pce import partial_cross_entropy

# %%
from types import SimpleNamespace

import matplotlib.pyplot as plt
from ipywidgets import interact
from scipy.ndimage import distance_transform_edt

from attenscribble.book import class_legend, cost, draw, exercise, panels
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom
from attenscribble.experiment.metrics import dice
from attenscribble.method.network import UNet2d

# %% [markdown]
# ## Can labels be guessed before training?
#
# A slice, its scribble, and two guesses of the rest. The first is made from the image alone: a walker who starts
# at a pixel and dislikes edges, which stroke does he meet first? The second asks a network, again and again, and keeps what it
# says firmly and repeatedly. (Both functions come from the finished module.)

# %%
from attenscribble.rivals.pseudo import walker_labels

data = phantom(patients=5)
case, z = data.read("patient002")[0], 3
NAMES, IGNORE = data.class_names, data.ignore
image, scribble, label = case.image[z], case.scribble[z], case.label[z]


def overlap(found, label):
    "Mean DSC of the organs."
    return np.nanmean([dice(found == c, label == c) for c in range(1, len(NAMES))])


walked = walker_labels(image, scribble, classes=4, ignore=IGNORE)
figure, axes = panels(3)
draw(axes[0], image, scribble=scribble, ignore=IGNORE, title="image and strokes")
draw(axes[1], image, label=walked, outline=label, title=f"random walker: DSC {overlap(walked, label):.2f}")
draw(axes[2], image, label=label, title="truth")
class_legend(figure, NAMES)


# %% [markdown]
# ## One store for all guesses
#
# Guessed labels lie beside the scribbles in the [slice store](../data/17_batches.ipynb), are turned and flipped with
# them, and reach the loss as `batch.pseudo`. What makes them is an object with one duty: `refresh` before each step.

# %%
#| export
class PseudoLabels:
    "Guessed labels for all slices of a store. A subclass fills them in, once or again and again."

    def __init__(self, store: SliceStore) -> None:
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

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        "Go on from a checkpoint."


# %% [markdown]
# ## Random walker
#
# Grady (2006). Let $w_{pq}$ say how easily one steps between neighbours, and $x^c_p$ be the probability that a walk from $p$
# first reaches a stroke of class $c$. It is the average of the neighbours' probabilities, weighted by $w$:
#
# $$w_{pq}=\exp\Big(-\beta\,\frac{(I_p-I_q)^2}{10\,\mathrm{std}(I)}\Big)+10^{-10},\qquad
# x^c_p=\frac{\sum_q w_{pq}\,x^c_q}{\sum_q w_{pq}}\ \ (p\in\Omega_U),\qquad x^c_p=[Y_s[p]=c]\ \ (p\in\Omega_L)$$
#
# A linear system per class. The label is the class that is met first, most probably. β = 100 and the intensities mapped from
# [−0.35, 1.35] to [−1, 1], as in WSL4MIS.

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $\beta$ | `beta` | scalar | – |
# | $I$ | `image` | [H,W] | intensity, mapped as above |
# | $x^c$ | inside `random_walker` | [H,W] a class | probability |
#
# By hand: a row of four pixels, all alike, strokes 0 and 1 at its ends. From the second pixel a walker reaches the left end
# with probability ⅔, so its class is 0; the third pixel's is 1. And the naive way: walk.

# %%
def walk_naive(image, scribble, ignore, beta=100.0, walks=200, seed=0):
    "The share of walks from each pixel that end at each class, [H,W,C]: by walking."
    rng, (height, width) = np.random.default_rng(seed), image.shape
    counts = np.zeros((height, width, int(scribble[scribble != ignore].max()) + 1))
    for start in np.ndindex(height, width):
        for _ in range(walks):
            y, x = start
            while scribble[y, x] == ignore:
                steps = [(v, u) for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
                         if 0 <= v < height and 0 <= u < width]
                ease = [np.exp(-beta * (image[p] - image[y, x]) ** 2 / (10 * image.std() or 1)) + 1e-10 for p in steps]
                y, x = steps[rng.choice(len(steps), p=np.array(ease) / np.sum(ease))]
            counts[(*start, scribble[y, x])] += 1 / walks
    return counts


row = np.array([[0, 4, 4, 1]])
shares = walk_naive(np.zeros((1, 4)), row, 4)
assert abs(shares[0, 1, 0] - 2 / 3) < 0.1 and abs(shares[0, 2, 1] - 2 / 3) < 0.1


# %% [markdown]
# The solver is scikit-image's. Four of its habits would poison labels: seeds with gaps in their numbers are silently
# renumbered, so that {0, 2, 3} come back as {0, 1, 2}, as in the released preparation code; with one class only its
# answer is meaningless; a blank image divides by zero; a pixel that no stroke reaches is −1. We number the classes
# ourselves, give a slice with one class that class, and leave unreached pixels unannotated.

# %%
#| export
def walker_labels(
    image: np.ndarray,  # [H,W] or, with several channels, [K,H,W]; in [0,1]
    scribble: np.ndarray,  # [H,W] class ids, `ignore` where unannotated
    *,
    classes: int,  # number of classes, the background included
    ignore: int,
    beta: float = 100.0,  # how much an edge hinders (WSL4MIS)
    mode: str = "bf",  # scikit-image's solver: "bf" is exact and the fastest for slices of this size
) -> np.ndarray:  # [H,W] uint8: the class first met, most probably; `ignore` where no stroke can be reached
    "The random walker's guess for one slice (Grady, PAMI 2006; β and mapping of WSL4MIS)."
    present = np.unique(scribble[scribble != ignore])
    if present.size < 2:
        return np.full_like(scribble, present[0] if present.size else ignore, dtype=np.uint8)
    table = np.zeros(256, np.int64)
    table[present] = np.arange(1, present.size + 1)  # no gaps: 0 is unannotated
    mapped = (image.astype(np.float64) + 0.35) / 1.7 * 2 - 1
    if mapped.std() == 0:  # 0/0 in β/std: a blank image has no edges
        beta, mapped = 0.0, np.arange(mapped.size, dtype=np.float64).reshape(mapped.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(scikit-umfpack|UMFPACK|The probability range).*")
        found = random_walker(mapped, table[scribble], beta=beta, mode=mode,
                              channel_axis=0 if image.ndim == 3 else None)
    back = np.full(present.size + 2, ignore, np.uint8)  # −1, unreached, is the last entry
    back[1:-1] = present
    return back[found]


def released_walker_labels(
    image: np.ndarray, scribble: np.ndarray, *, classes: int, ignore: int, beta: float = 100.0, mode: str = "bf"
) -> np.ndarray:
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
shares = walk_naive((patch + 0.35) / 1.7 * 2 - 1, marks, 2, beta=20.0, walks=100)
sure = np.abs(shares[..., 0] - 0.5) > 0.15
assert (walker_labels(patch, marks, classes=2, ignore=2, beta=20.0) == shares.argmax(-1))[sure].all() and sure.sum() > 8
print("one slice:", cost(lambda: walker_labels(image, scribble, classes=4, ignore=IGNORE)))


# %% [markdown]
# A training fold has 1,500 slices, a fifth of a second each. They are spread over the processors and kept on disk under a
# key of what they were made from.

# %%
#| export
class WalkerSwitches(Switches):
    "Of the method `random-walker`."

    beta: float = Field(100.0, gt=0, description="how much an edge hinders the walk (WSL4MIS)")
    mode: str = Field("bf", description="scikit-image's solver: bf, cg, cg_j, cg_mg")
    partial: bool = Field(True, description="also slices whose scribble lacks a class; false: they become background")
    released: ClassVar[dict[str, Any]] = {"partial": False}


def _cached(job: tuple[np.ndarray, np.ndarray], make: partial, folder: Path) -> np.ndarray:
    "The guess for one slice, from the cache if it is there; a broken file is made anew."
    image, scribble = job
    recipe = json.dumps([make.func.__name__, make.keywords, image.shape], sort_keys=True).encode()
    path = folder / f"{hashlib.sha256(recipe + image.tobytes() + scribble.tobytes()).hexdigest()[:32]}.npz"
    try:
        with np.load(path) as file:
            return file["labels"]
    except (OSError, ValueError, KeyError, EOFError):
        labels = make(image, scribble)
    write_whole(path, partial(np.savez_compressed, labels=labels))
    return labels


class RandomWalker(PseudoLabels):
    "Labels guessed from the images, once, before training."

    def __init__(
        self,
        store: SliceStore,  # of scribbles
        own: WalkerSwitches,
        size: int,  # of the network's input; not needed
        workers: int | None = None,  # processes; one a processor unless told, and none for few slices
    ) -> None:
        super().__init__(store)
        function = walker_labels if own.partial else released_walker_labels
        make = partial(function, classes=store.classes, ignore=store.ignore, beta=own.beta, mode=own.mode)
        jobs = [tuple(plane.cpu().numpy() for plane in store.native(n)) for n in range(len(store))]
        work = partial(_cached, make=make, folder=cache_folder() / "random-walker")
        workers = workers or (1 if len(jobs) < 200 else os.cpu_count() or 1)
        bar = partial(tqdm, total=len(jobs), desc="random walker", mininterval=1.0)
        if workers == 1:
            found = list(bar(map(work, jobs)))
        else:  # fresh processes: a fork of one that runs torch's threads may hang
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                found = list(bar(pool.map(work, jobs, chunksize=8)))
        store.set_pseudo(torch.from_numpy(np.concatenate([labels.ravel() for labels in found])))


def pseudo_dense_term(evidence: Evidence) -> Tensor:
    "Half cross-entropy, half Dice on guessed labels, as if they were true."
    return dense_loss(evidence.logits, evidence.batch.pseudo, ignore=evidence.batch.ignore)


register(Method("random-walker", "RW", "Grady 2006; WSL4MIS, pseudo labels before training",
                (Term("dense", pseudo_dense_term),), switches=WalkerSwitches, pseudo=RandomWalker))


# %% [markdown]
# ### What the released rule costs
#
# Where the scribble lacks one of the organs, the released labels say "all background". Near the apex that is the rule, not the
# exception, and hearts are erased.

# %%
def plot_walker_rules(case, slices):
    "Scribble, our guess, and the released one, for a few slices of a case."
    figure, axes = panels(3 * len(slices), columns=len(slices), size=2.1)
    for z, column in zip(slices, axes.reshape(3, -1).T, strict=True):
        parts = {"classes": case.image[z], "scribble": case.scribble[z]}
        draw(column[0], parts["classes"], scribble=parts["scribble"], ignore=IGNORE, title=f"slice {z}")
        for axis, (name, rule) in zip(column[1:], (("ours", walker_labels), ("released", released_walker_labels)),
                                      strict=True):
            found = rule(*parts.values(), classes=4, ignore=IGNORE)
            draw(axis, case.image[z], label=found, outline=case.label[z], title=name)
    class_legend(figure, NAMES)


lacking = [z for z in range(len(case.image)) if len(np.unique(case.scribble[z])) in (3, 4)][:2]
plot_walker_rules(case, [z, *lacking])


# %% [markdown]
# ## Scribble2Label
#
# Lee and Jeong (2020). Train with the partial cross-entropy alone for a while. Then, every few steps, ask the network
# about all training slices and keep a running mean of its answers; a class with a mean above 0.8 is taken for a label:
#
# $$m_t = (1-\alpha)\,m_{t-1} + \alpha\, P_t,\qquad \hat Y[p] = c\ \text{ if } m_t^c[p] > \tau \text{ and } p\in\Omega_U,\ \text{else unknown}$$
#
# $$l = l_{seg}(P, Y_s) + \tfrac12\, l_{seg}(P, \hat Y),\qquad m_0=0,\ \alpha=0.2,\ \tau=0.8$$
#
# By hand: a network that is certain from the first update on gives $m = 0.2, 0.36, 0.488, \dots = 1-0.8^n$; above 0.8 after
# **eight** updates. The mean starts at 0, so a hasty answer is not believed.

# %%
#| export
class LabelSwitches(Switches):
    "Of the method `scribble2label`."

    every: int = Field(100, ge=1, description="iterations between two updates of the running mean (WSL4MIS)")
    alpha: float = Field(0.2, gt=0, le=1, description="weight of the newest answer (WSL4MIS)")
    threshold: float = Field(0.8, gt=0, lt=1, description="mean above which a class is taken for a label (WSL4MIS)")
    eval_mode: bool = Field(True, description="ask the network in eval mode; false: dropout and batch statistics on")
    margin: bool = Field(True, description="margins of a rotation stay unannotated; false: they become background")
    released: ClassVar[dict[str, Any]] = {"eval_mode": False, "margin": False}


class RunningMean(PseudoLabels):
    "Labels that the network has given firmly and repeatedly."

    def __init__(
        self,
        store: SliceStore,  # of scribbles
        own: LabelSwitches,
        size: int,  # side of the network's input in pixels
        batch: int = 16,  # slices at a time
    ) -> None:
        super().__init__(store)
        self.own, self.size = own, size
        self.batch = batch if own.eval_mode else 1  # as released: batch norm sees one slice
        self.mean = torch.zeros(store.classes, store.pixels, dtype=torch.float16, device=store.device)
        self.labels = torch.full((store.pixels,), store.ignore, dtype=torch.uint8, device=store.device)
        self.updates = 0
        self._publish()

    def refresh(self, model: nn.Module, step: int, precision: torch.dtype | None) -> None:
        "Every `every` steps: ask about all slices, move the mean, take what is above the threshold."
        if step == 0 or step % self.own.every:
            return
        training = model.training
        model.train(not self.own.eval_mode)
        with torch.no_grad(), torch.autocast(self.store.device.type, precision, enabled=precision is not None):
            for numbers in torch.arange(len(self.store)).split(self.batch):
                self._ask(model, numbers.tolist())
        model.train(training)
        self.updates += 1
        self._publish()

    def _ask(self, model: nn.Module, numbers: list[int]) -> None:
        "Move the mean of some slices towards what the network says now."
        images = [resize_image(self.store.native(n)[0], self.size) for n in numbers]
        said = model(torch.stack(images).view(len(numbers), -1, self.size, self.size)).float().softmax(1)
        for n, probs in zip(numbers, said, strict=True):
            place, shape = self.store.span(n)
            mean = self.mean[:, place]
            mean += self.own.alpha * (resize_image(probs, shape).flatten(1) - mean)
            best = mean.max(0)
            self.labels[place] = torch.where(best.values > self.own.threshold, best.indices, self.store.ignore).byte()

    def _publish(self) -> None:
        "Lay the labels beside the scribbles, except where somebody drew."
        drawn = self.store.drawn()
        self.store.set_pseudo(self.labels.masked_fill(drawn, self.store.ignore),
                              fill=None if self.own.margin else 0)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "labels": self.labels, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.labels, self.updates = (state[name] for name in ("mean", "labels", "updates"))
        self._publish()


def pseudo_term(evidence: Evidence) -> Tensor:
    "Cross-entropy on guessed labels, where there are any; notes their share of the pixels."
    pseudo, ignore = evidence.batch.pseudo, evidence.batch.ignore
    evidence.notes["guessed"] = share_of((pseudo != ignore).sum(), pseudo.numel())
    return partial_cross_entropy(evidence.logits, pseudo, ignore=ignore)


register(Method("scribble2label", "S2L", "Lee and Jeong 2020; WSL4MIS, train_s2l",
                (SEGMENTATION, Term("pseudo", pseudo_term, weight=0.5, ramp=after(0.1))),
                switches=LabelSwitches, pseudo=RunningMean))


# %% [markdown]
# ### Check
#
# A network that is certain of class 1 everywhere: after eight updates, and not before, everything but the stroke is a
# label. The stroke itself stays with eq. 1.

# %%
class Certain(nn.Module):
    "Says class 1 to everything."

    def forward(self, image):
        return torch.stack([torch.zeros_like(image[:, 0]), torch.full_like(image[:, 0], 50.0)], 1)


def small_store():
    "One slice of 8×8 with a stroke of class 0, two classes."
    marks = np.full((1, 8, 8), 2, np.uint8)
    marks[0, 2, 2:6] = 0
    plane = SimpleNamespace(name="square", image=np.zeros((1, 8, 8), np.float32), scribble=marks)
    return SliceStore([plane], classes=2, ignore=2)


store = small_store()
guesses, firm = RunningMean(store, LabelSwitches(every=1), size=16), []
for step in range(1, 10):
    guesses.refresh(Certain(), step, None)
    firm.append(int((store.batch(torch.tensor([0]), 8).pseudo != 2).sum()))
assert firm == [0] * 7 + [60] * 2  # 64 pixels less the stroke's 4


# %% [markdown]
# ### What it looks like
#
# A small network on one phantom slice: 40 steps of the strokes alone, then an update every 10 steps. White in the lower row:
# pixels without a label. What the network once believed comes back to it as truth, right or wrong.

# %%
def grow_labels(case, z, rounds=(8, 12, 20), side=64, **own):
    "Labels after some updates of a network that trains on one slice: [(updates, [H,W])]."
    torch.manual_seed(0)
    one = SimpleNamespace(name=case.name, image=case.image[z:z + 1], scribble=case.scribble[z:z + 1])
    store = SliceStore([one], classes=4, ignore=IGNORE)
    guesses = RunningMean(store, LabelSwitches(every=1, **own), side)
    model = UNet2d(1, 4, channels=(16, 32, 64), dropout=(0.05, 0.1, 0.2))
    optimiser, shown = torch.optim.Adam(model.parameters(), lr=0.01), []
    for turn in range(max(rounds) + 1):
        for _ in range(40 if turn == 0 else 10):
            batch = store.batch(torch.tensor([0]), side)
            logits = model(batch.image)
            loss = (partial_cross_entropy(logits, batch.target, ignore=IGNORE)
                    + 0.5 * partial_cross_entropy(logits, batch.pseudo, ignore=IGNORE))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
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
# Dotted: the border of what is labelled; outside of it nothing is taken for true. (Background labels are drawn transparent.)
#
# The released code asks the network in *training* mode: dropout is on, batch norm takes the statistics of one slice. The same
# network, asked both ways, after eight updates:

# %%
for name, own in (("eval mode", {}), ("training mode, as released", {"eval_mode": False})):
    ((_, found),) = grow_labels(case, z, rounds=(8,), **own)
    known = found != IGNORE
    print(f"{name:27} {known.mean():.0%} labelled, {(found == label)[known].mean():.1%} of them right")

# %% [markdown]
# ## Real data: how good are the walker's guesses?
#
# Every tenth ACDC patient's first frame, three slices each. What this does not show: whether a network makes these errors its own.

# %%
try:
    heart = open_dataset("acdc")
    scores, erased = [], 0
    for patient in heart.patients[::10]:
        real = heart.read(patient)[0]
        for s in np.linspace(1, len(real.image) - 2, 3).round().astype(int):
            found = walker_labels(real.image[s], real.scribble[s], classes=4, ignore=4)
            scores += [overlap(found, real.label[s])] if real.label[s].any() else []
            rule = released_walker_labels(real.image[s], real.scribble[s], classes=4, ignore=4)
            erased += bool(real.label[s].any() and not rule.any())
    print(f"{len(scores)} slices: mean DSC of the guessed labels {np.mean(scores):.3f}; "
          f"the released rule erases the heart on {erased}")
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
# With a small β only the distance counts, and each stroke's realm is what lies nearest to it. A larger one makes edges
# matter. How much is right depends on the noise: this phantom would like 1000, the rivals' papers settled on 100 for ACDC.
#
# ## Exercises
#
# **1. Predict.** After how many updates does a network that is certain from the start pass the threshold, for any α and τ?

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
# Each step has a probability above zero, because of the $10^{-10}$, and a slice is connected: every walk ends.
#
# ## Recap
#
# `PseudoLabels` is the store that both share; `RandomWalker` and `RunningMean` fill it, the methods `random-walker` and
# `scribble2label` use it. Surprising: a fifth of the slices lack a class, and the released rule calls all of them background.
# [Next](31_teachers.ipynb): guesses that are made anew in every step.
