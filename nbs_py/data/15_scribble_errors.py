# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Wrong strokes
#
# > An annotator who errs at a rate you choose: in the class of a stroke, or in its place.
#
# How well does a method cope with wrong strokes? ACDC's experts contradict the dense label in only 116 of 1,089,126
# annotated pixels, so no result on their scribbles tells. This chapter makes mistakes on purpose, at a known rate and
# with everything else unchanged, and shows what a wrong stroke costs.

# %%
#| default_exp data.scribble_errors

# %%
#| export
import numpy as np
from scipy.ndimage import label as number_components

from attenscribble.basics.errors import one_of
from attenscribble.data.simulation import _at_least, _stack, _stream

# %%
import os
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
from ipywidgets import interact

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import ACDC_CLASSES, ACDC_IGNORE, acdc
from attenscribble.data.simulation import guess_dsc, simulate

# %% [markdown]
# ## The answer, as a picture
#
# A phantom heart and its strokes, of which more and more are wrong; red boxes mark the wrong ones. (The finished function
# comes from the module; the chapter builds it.) From left to right the rate grows, and a stroke that is wrong at 0.2 is
# wrong in the same way at 0.5.

# %%
from attenscribble.data.scribble_errors import strokes, with_errors, wrong_share

HEART = phantom().read("patient002")[0]
HOW = {"classes": 4, "ignore": ACDC_IGNORE}

def box_wrong_strokes(axis, drawn, right):
    "A red box around each stroke that is not in the right scribble."
    for class_id, mark in strokes(drawn, ACDC_IGNORE):
        if (right[mark] != class_id).any():
            (y, x), (height, width) = np.argwhere(mark).min(0), np.ptp(np.argwhere(mark), 0)
            axis.add_patch(plt.Rectangle((x - 2, y - 2), width + 4, height + 4, fill=False, edgecolor="red"))


# %%
def plot_errors(rates, kinds=("class", "shift"), z=2, seed=34):
    "The same scribble with mistakes at several rates."
    label = HEART.label[z]
    right = simulate(label, "border", **HOW, thickness_px=2, seed=8)
    figure, axes = panels(len(rates) * len(kinds), columns=len(rates), size=2.6)
    for axis, (kind, rate) in zip(axes, product(kinds, rates), strict=True):
        drawn = with_errors(right, label, rate=rate, kind=kind, seed=seed, **HOW)
        draw(axis, HEART.image[z], label=label, scribble=drawn, ignore=ACDC_IGNORE,
             title=f"{kind}, rate {rate:g}: {wrong_share(drawn, label, ACDC_IGNORE):.0%} of the pixels wrong")
        box_wrong_strokes(axis, drawn, right)
    class_legend(figure, ACDC_CLASSES, background=True)

plot_errors([0, 0.2, 0.5])


# %% [markdown]
# ## Mistakes come in strokes
#
# A person does not mislabel pixels one by one. What goes wrong is a stroke: a connected part of one class in one slice.
# Each stroke $k$ draws a number $u_k\sim U(0,1)$ once, and is wrong if $u_k<e$. Of the annotated pixels $\Omega_L$
# then a share $w$ is wrong. If wrong strokes change class, the mean of $w$ is $e$, however unequal the strokes are:
#
# $$w=\frac{|\{p\in\Omega_L:\;Y_s[p]\ne Y[p]\}|}{|\Omega_L|},\qquad
# \mathbb E[w]=\frac{\sum_k|\text{stroke}_k|\,\Pr(u_k<e)}{\sum_k|\text{stroke}_k|}=e$$
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $e$ | `rate` | [] | probability |
# | $Y_s$, $Y$ | `scribble`, `label` | [Z,Y,X] | class id |
# | $w$ | `wrong_share` | [] | share of the annotated pixels |

# %% [markdown]
# In loops: start at a pixel, take all that touch it in the same class, then all that touch those. Pixels that share a
# corner touch too.

# %%
def strokes_naive(scribble, ignore):
    "Flood each stroke from its first pixel."
    seen, found = set(), []
    for start in np.ndindex(scribble.shape):
        if scribble[start] != ignore and start not in seen:
            wet = [start]
            for y, x in wet:  # grows while it is read
                for near in product((y - 1, y, y + 1), (x - 1, x, x + 1)):
                    inside = 0 <= near[0] < scribble.shape[0] and 0 <= near[1] < scribble.shape[1]
                    if inside and near not in wet and scribble[near] == scribble[start]:
                        wet.append(near)
            seen |= set(wet)
            found.append((int(scribble[start]), frozenset(wet)))
    return found


# %% [markdown]
# By hand: in the picture below the 0s touch by corners and are one stroke; the 1s are two.

# %%
marks = np.array([[0, 4, 0], [4, 0, 4], [1, 4, 1]])
assert sorted((class_id, len(wet)) for class_id, wet in strokes_naive(marks, 4)) == [(0, 3), (1, 1), (1, 1)]


# %% [markdown]
# `near not in wet` looks through the whole stroke for each neighbour: a stroke of $n$ pixels costs $n^2$. SciPy numbers
# all parts in one pass.

# %%
#| export
def strokes(
    scribble: np.ndarray,  # [H,W] class ids, `ignore` where unannotated
    ignore: int,  # value of an unannotated pixel
) -> list[tuple[int, np.ndarray]]:  # class id and [H,W] bool for each connected part (corners connect)
    "The strokes of a scribble, class by class."
    found = []
    for class_id in np.setdiff1d(scribble, [ignore]):
        numbers, count = number_components(scribble == class_id, np.ones((3, 3)))
        found += [(int(class_id), numbers == part) for part in range(1, count + 1)]
    return found


# %%
drawn = simulate(HEART.label[2], "walk", **HOW)
fast = {(class_id, frozenset(map(tuple, np.argwhere(mark).tolist()))) for class_id, mark in strokes(drawn, ACDC_IGNORE)}
assert fast == set(strokes_naive(drawn, ACDC_IGNORE))
print("naive", cost(lambda: strokes_naive(drawn, ACDC_IGNORE)))
print("fast ", cost(lambda: strokes(drawn, ACDC_IGNORE)))


# %% [markdown]
# ## How much is wrong?
#
# By hand: the scribble [[0, 1], [4, 1]] against the label [[0, 0], [1, 1]]: three pixels are annotated, one of them
# wrongly.

# %%
#| export
def wrong_share(
    scribble: np.ndarray,  # [...] class ids, `ignore` where unannotated
    label: np.ndarray,  # [...] class ids, `ignore` where unknown
    ignore: int,  # value of an unannotated or unknown pixel
) -> float:  # in [0,1]; 0 where there is nothing to compare
    "Share of the annotated pixels that the dense label contradicts."
    known = (scribble != ignore) & (label != ignore)
    return float((scribble != label)[known].sum() / max(known.sum(), 1))


# %%
assert wrong_share(np.array([[0, 1], [4, 1]]), np.array([[0, 0], [1, 1]]), 4) == 1 / 3
if (root := Path(os.environ.get("ATTENSCRIBBLE_DATA", "data")) / "acdc").is_dir():
    data = acdc(root)
    shares = [wrong_share(case.scribble, case.label, ACDC_IGNORE) for case in data.cases(data.patients[::10])]
    print(f"experts on {len(shares)} ACDC volumes: {np.mean(shares):.4%} of pixels wrong, {max(shares):.2%} at worst")
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# Of all 200 volumes, 166 hold no wrong pixel at all. Whether nobody erred or mistakes were removed later, the number does
# not show.

# %% [markdown]
# ## Two ways to err
#
# **class**: the stroke gets another class of the slice. **shift**: the stroke is displaced. Where it still lies in its
# own region that is no error, so of 16 directions and distances of 8, 16, … pixels the first is taken at which some of it
# lies where it is wrong. Right strokes are never drawn over, so the mistakes at one rate are a part of those at a higher
# one.

# %%
#| export
def _other_class(ids: np.ndarray, wrong: np.ndarray, class_id: int, classes: int, rng: np.random.Generator) -> int:
    "A random other class of a slice; any other class where the slice has none."
    return rng.choice(np.unique(ids[wrong]) if wrong.any() else np.delete(np.arange(classes), class_id))


def _displace(at: np.ndarray, far: float, angle: float, free: np.ndarray) -> np.ndarray:
    "[N,2]: pixels moved by a distance in a direction, those that are still in view and lie where drawing is free."
    moved = at + np.rint([far * np.sin(angle), far * np.cos(angle)]).astype(int)
    moved = moved[((moved >= 0) & (moved < free.shape)).all(1)]
    return moved[free[tuple(moved.T)]]


# %%
#| export
def _slip(
    mark: np.ndarray, free: np.ndarray, wrong: np.ndarray, far: float, rng: np.random.Generator
) -> np.ndarray | None:
    "[N,2] pixels of a displaced stroke: at least half of them in view and, if possible, one wrong. None without room."
    at, best = np.argwhere(mark), None
    angles = rng.permutation(16) * np.pi / 8
    while far < max(mark.shape):
        for angle in angles:
            moved = _displace(at, far, angle, free)
            if 2 * len(moved) >= len(at):
                if wrong[tuple(moved.T)].any():
                    return moved
                best = moved if best is None else best
        far *= 2
    return best


# %%
#| export
def _spoil(
    drawn: np.ndarray, ids: np.ndarray, stream: np.random.SeedSequence, rate: float, shift_px: float | None,
    classes: int, ignore: int,
) -> None:
    "Make some strokes of a slice [H,W] wrong, in place; without `shift_px`, or without room, they change class."
    marks, free = strokes(drawn, ignore), drawn == ignore
    for (class_id, mark), rng in zip(marks, map(np.random.default_rng, stream.spawn(len(marks))), strict=True):
        if rng.random() < rate:
            wrong = (ids != class_id) & (ids != ignore)
            moved = None if shift_px is None else _slip(mark, free | mark, wrong, shift_px, rng)
            drawn[mark] = _other_class(ids, wrong, class_id, classes, rng) if moved is None else ignore
            if moved is not None:
                drawn[tuple(moved.T)] = class_id


# %%
#| export
def _check_errors(rate: float, kind: str, shift_px: float, classes: int) -> None:
    "Raise ValueError for a wrong option of `with_errors`."
    one_of("kind", kind, ("class", "shift"))
    _at_least("shift_px", shift_px, 1), _at_least("classes", classes, 2, integer=True)
    if _at_least("rate", rate, 0) > 1:
        raise ValueError(f"rate: found {rate!r}, expected a share in [0, 1]")


# %%
#| export
def with_errors(
    scribble: np.ndarray,  # [H,W] or [Z,Y,X] class ids, `ignore` where unannotated
    label: np.ndarray,  # the same shape, class ids
    *,
    rate: float,  # probability of each stroke to go wrong, in [0,1]; a higher rate spoils the same strokes, and more
    kind: str = "class",  # "class": another class of the slice; "shift": displaced, where there is room
    classes: int,  # number of classes, at least 2
    ignore: int,  # value of an unannotated pixel
    seed: int = 0,  # with case and slice number it decides which strokes go wrong, and how
    case: str = "",  # name of the case
    z: int = 0,  # number of the (first) slice
    shift_px: float = 8,  # how far a stroke slips at least; doubled until a part of it lies where it is wrong
) -> np.ndarray:  # a copy, uint8; right strokes stay as they are
    "A scribble in which some strokes are wrong. Raises ValueError for unfit masks and for a wrong option."
    _check_errors(rate, kind, shift_px, classes)
    truth = _stack("label", label, classes, ignore)
    spoiled = _stack("scribble", scribble, classes, ignore).astype(np.uint8)
    if scribble.shape != label.shape:
        raise ValueError(f"scribble: found shape {scribble.shape}, expected the label's {label.shape}")
    far = shift_px if kind == "shift" else None
    for number, (drawn, ids) in enumerate(zip(spoiled, truth, strict=True), z):
        _spoil(drawn, ids, _stream(seed, case, number), rate, far, classes, ignore)
    return spoiled.reshape(scribble.shape)


# %% [markdown]
# By hand: at rate 0 nothing changes; at rate 1 every stroke does, and of the kind "class" every pixel is wrong. A
# displaced stroke is wrong only where it left its region.

# %%
right = simulate(HEART.label, "border", **HOW)
for kind in ("class", "shift"):
    by_rate = {rate: with_errors(right, HEART.label, rate=rate, kind=kind, **HOW) for rate in (0, 0.3, 1)}
    np.testing.assert_array_equal(by_rate[0], right)
    for before, after in zip(right, by_rate[1], strict=True):
        assert all((after[mark] != class_id).any() for class_id, mark in strokes(before, ACDC_IGNORE))
    spoiled = by_rate[0.3] != right
    assert 0 < spoiled.sum() < (by_rate[1] != right).sum()
    w = {rate: wrong_share(drawn, HEART.label, ACDC_IGNORE) for rate, drawn in by_rate.items()}
    print(kind, {rate: f"{share:.1%}" for rate, share in w.items()})
    assert w[0] == 0 < w[0.3] < w[1] and (w[1] == 1) == (kind == "class")

# %% [markdown]
# ## Move the rate yourself

# %%
interact(lambda rate=0.3, seed=0: plot_errors([rate], seed=seed), rate=(0.0, 1.0, 0.1), seed=(0, 40));


# %% [markdown]
# ## What does a wrong stroke cost?
#
# The guess of [chapter 14](14_simulation.ipynb) answers without training: each pixel takes the class of the nearest
# annotated one. It trusts every stroke, which is the worst case of a learner.

# %%
def error_curve(cases, rates, kinds=("class", "shift"), seeds=(0, 1, 2)):
    "Kind → mean DSC of the nearest-stroke guess for each rate."
    return {kind: [np.mean([guess_dsc(with_errors(case.scribble, case.label, rate=rate, kind=kind, seed=seed,
                                                  case=case.name, **HOW), case.label, ACDC_IGNORE)
                            for case in cases for seed in seeds]) for rate in rates] for kind in kinds}

RATES = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1)
curves = error_curve([HEART, *phantom().read("patient003")], RATES)
axis = plt.figure(figsize=(5, 3), layout="constrained").add_subplot(xlabel="rate: probability that a stroke is wrong",
                                                                  ylabel="DSC of the guess", ylim=(0, 1))
for (kind, dsc), style in zip(curves.items(), ("o-", "s--"), strict=True):
    axis.plot(RATES, dsc, style, color="black", markersize=4, label=kind)
axis.legend(frameon=False)
print({kind: dict(zip(RATES, np.round(dsc, 2).tolist(), strict=True)) for kind, dsc in curves.items()})


# %% [markdown]
# A wrong class costs more than its share: the pixels around a wrong stroke are guessed wrongly too. Displaced strokes
# cost far less, since most of each is still right. A network sees each structure in many slices with many strokes, so
# that right ones can outweigh a wrong one; the guess cannot do that. How much of the loss a method avoids is a question
# for `with_errors` and a training run.

# %% [markdown]
# ## Exercises
#
# **1. Predict.** Strokes have very different lengths. At rate $e$, if wrong strokes change class, which share of the
# annotated pixels is wrong on average?

# %%
def check_expected(f):
    drawn, label = simulate(HEART.label[2], "border", **HOW), HEART.label[2]
    for rate in (0.2, 0.7):
        shares = [wrong_share(with_errors(drawn, label, rate=rate, seed=seed, **HOW), label, ACDC_IGNORE)
                  for seed in range(200)]
        assert abs(np.mean(shares) - f(rate)) < 0.06

def my_expected(rate):
    return rate**2  # your prediction

exercise(check_expected, my_expected, solution=lambda rate: rate)


# %% [markdown]
# **2. Implement** a third kind of error: a forgotten stroke. Each stroke is left out with probability `rate`.

# %%
def check_forget(f):
    drawn = simulate(HEART.label[2], "border", **HOW)
    few = [f(drawn, 0.4, ACDC_IGNORE, np.random.default_rng(seed)) for seed in range(60)]
    assert all((one[one != ACDC_IGNORE] == drawn[one != ACDC_IGNORE]).all() for one in few)
    left = np.mean([len(strokes(one, ACDC_IGNORE)) for one in few]) / len(strokes(drawn, ACDC_IGNORE))
    assert 0.5 < left < 0.7


# %%
def my_forget(scribble, rate, ignore, rng):
    return np.where(rng.random(scribble.shape) < rate, ignore, scribble)  # forgets pixels, not strokes

def solution_forget(scribble, rate, ignore, rng):
    kept = scribble.copy()
    for _, mark in strokes(scribble, ignore):
        if rng.random() < rate:
            kept[mark] = ignore
    return kept

exercise(check_forget, my_forget, solution_forget)


# %% [markdown]
# **3. Break** it: give a label on which displaced strokes can never be wrong, so that `wrong_share` stays 0 at rate 1.

# %%
def check_safe(f):
    label = f()
    assert label.shape == (20, 20) and set(np.unique(label)) <= {0, 1, 2, 3}
    drawn = simulate(label, **HOW)
    assert wrong_share(with_errors(drawn, label, rate=1, kind="shift", **HOW), label, ACDC_IGNORE) == 0

def my_safe():
    return np.eye(20, dtype=np.uint8)  # your label

exercise(check_safe, my_safe, solution=lambda: np.zeros((20, 20), np.uint8))

# %% [markdown]
# ## Recap
#
# Exported: `with_errors`, the only function of the book that labels a pixel wrongly; `strokes` and `wrong_share`, its
# measures. The surprise: the benchmark's experts make next to no mistakes, so nothing in it tells how a method would cope
# with one. [The next chapter](16_chaos.ipynb) reads CHAOS, a data set without scribbles.
