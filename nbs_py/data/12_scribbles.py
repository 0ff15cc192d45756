# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scribbles
#
# > A simulated annotator: from a dense label to the few strokes that a human would draw.
#
# Can a program turn a dense label into the few strokes that a person would draw? Experts drew scribbles for ACDC; for
# most other data sets there are only dense labels, and what we learn about scribbles on them holds for real scribbles
# only if the simulated ones are alike. This chapter builds an annotator from simple steps and compares it with the
# experts.

# %%
#| default_exp data.scribbles

# %%
#| export
from collections.abc import Iterator

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter1d, label as number_components
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.morphology import convex_hull_image, skeletonize

# %%
import os
from itertools import pairwise
from pathlib import Path

from ipywidgets import interact

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.scans import acdc

# %% [markdown]
# ## The answer, as a picture
#
# A toy heart, annotated by three simulated hands. (The finished function comes from the module; the chapter builds it.)
# A ring is followed along its middle, a fat region gets a loop or a spiral, and the background one line around
# everything. No stroke touches a border, where a person is least certain.

# %%
from attenscribble.data.scribbles import simulate_scribble

NAMES, IGNORE = ("background", "RV", "Myo", "LV"), 4

def toy_label(side=96):
    "A short-axis slice: right ventricle, muscle, left ventricle."
    y, x = np.mgrid[:side, :side] / side - 0.5
    left, right = np.hypot(y, x - 0.07), np.hypot(y / 1.3, x + 0.13)
    return np.select([left < 0.13, left < 0.2, right < 0.16], [3, 2, 1], 0).astype(np.uint8)


# %%
def plot_hands(seeds, label=toy_label(), **options):
    "The same label, annotated by several hands."
    figure, axes = panels(len(seeds))
    for axis, seed in zip(axes, seeds, strict=True):
        drawn = simulate_scribble(label, np.random.default_rng(seed), classes=4, ignore=IGNORE, **options)
        draw(axis, np.full(label.shape, 0.45), label=label, scribble=drawn, ignore=IGNORE, title=f"hand {seed}")
    class_legend(figure, NAMES, background=True)

plot_hands([0, 1, 2])


# %% [markdown]
# ## What is a good stroke?
#
# It lies deep inside its region, it follows the region's shape, and it is one movement of the hand. The distance to the
# border measures the first, a skeleton gives the second, a walk along the skeleton the third. For a region $R$ of the
# slice $\Omega$:
#
# $$d(p)=\min_{q\notin R}\lVert p-q\rVert,\qquad
# K=\{p: d(p)>\kappa\,d_{\max}\}\ \text{ if }\ \pi d_{\max}^2>\phi\,|R|,\ \text{else } \varnothing,\qquad
# a_c=\frac{|\{p\in\Omega: Y_s[p]=c\}|}{|\Omega|}$$

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $R$ | `region` | [H,W] | bool |
# | $d$, the depth | `depth_px` | [H,W] | pixels |
# | $K$, the core | `_core` | [H,W] | bool |
# | $\kappa, \phi$ | `_CORE`, `_FAT` | [] | 0.7 and 0.3 |
# | $Y_s$ | `scribble` | [H,W] | class id, or `ignore` |
# | $a_c$, the annotated share | `annotated_share` | [C] | share of all pixels |

# %% [markdown]
# ## Depth, written as it is defined
#
# Loops over all pairs of pixels. The image's border counts as a border of the region: a stroke along it would be cut off.

# %%
def depth_naive(region):
    "Distance to the nearest pixel outside, in float64."
    padded = np.pad(region, 1)
    outside = np.argwhere(~padded)
    depth = np.zeros(padded.shape)
    for p in np.argwhere(padded):
        depth[tuple(p)] = min(np.hypot(*(p - q)) for q in outside)
    return depth[1:-1, 1:-1]


# %% [markdown]
# By hand: in a 2×2 region each pixel has a neighbour outside, so all depths are 1. In a 3×3 region the middle pixel is
# two steps from the outside: 2. In an L of three pixels, each one has a neighbour outside: 1.

# %%
assert (depth_naive(np.ones((2, 2), bool)) == 1).all()
assert depth_naive(np.ones((3, 3), bool))[1, 1] == 2
assert depth_naive(np.array([[1, 0], [1, 1]], bool)).tolist() == [[1, 0], [1, 1]]

# %% [markdown]
# A 256² slice has 65,536 pixels: $10^9$ pairs if the region takes half of it, most of an hour of this loop. SciPy's exact
# distance transform does it in one pass.
#
# A skeleton alone is no stroke. Here are the two ways in which it fails.

# %%
disc = np.hypot(*(np.mgrid[:41, :41] - 20)) < 15.5
print("skeleton of a disc of", disc.sum(), "pixels:", skeletonize(disc).sum(), "pixels")
empty = np.ones((256, 256), bool)
print("skeleton of a slice of nothing but background:", skeletonize(empty).sum(), "pixels")


# %% [markdown]
# Nobody marks a ventricle with a dot, and the pixels in the middle of an empty slice come from its rectangular shape
# alone. A fat region has room for a loop around its *core*, and the skeleton of the region without its core is that
# loop.

# %%
#| export
def depth_px(
    region: np.ndarray,  # [H,W] bool
) -> np.ndarray:  # [H,W] float64, 1 for a border pixel, 0 outside; the image's border counts as the region's
    "Distance of each pixel of a region from the nearest pixel outside."
    return distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]


# %%
#| export
_FAT = 0.3  # a region is fat if its largest inscribed disc covers this share of it
_CORE = 0.7  # the core of a fat region lies deeper than this share of its largest depth
_THIN_PX = 3  # less deep than this, a region has no core: there is no room for a second line


def _core(region: np.ndarray) -> np.ndarray:
    "[H,W] bool: the middle of a fat region, which a pen goes around; empty for a thin region."
    depth = depth_px(region)
    deepest = depth.max(initial=0)
    fat = deepest >= _THIN_PX and np.pi * deepest**2 > _FAT * region.sum()
    return depth > (_CORE * deepest if fat else np.inf)


# %%
#| export
def centre_line(
    region: np.ndarray,  # [H,W] bool
) -> np.ndarray:  # [H,W] bool, one pixel wide, inside the region; empty only if the region is
    "The line that a stroke follows: a region's skeleton; in a fat region, that of the ring around its core."
    line = skeletonize(region & ~_core(region))
    return line if line.any() else region


# %%
random = np.random.default_rng(0)
blotch = random.random((8, 8)) < 0.7
np.testing.assert_allclose(depth_px(blotch), depth_naive(blotch), rtol=1e-12)
print("naive, 8×8   ", cost(lambda: depth_naive(blotch)))
print("fast, 256×256", cost(lambda: depth_px(empty)))
assert skeletonize(disc).sum() < 5 < 2 * np.pi * 15 * (1 - 0.5) < centre_line(disc).sum()
assert centre_line(np.ones((1, 1), bool)).all() and not centre_line(np.zeros((3, 3), bool)).any()

# %% [markdown]
# ## One walk
#
# A skeleton branches; a stroke does not, and it goes straight on where it can. WSL4MIS walks from the first end of the
# skeleton to a random neighbour until there is none; we take the neighbour that turns least, try a few starts and keep
# the longest walk.

# %%
#| export
_AROUND = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]  # neighbours (dy,dx)


def _straightest(at: tuple[int, int], free: set, heading: tuple[float, float]) -> tuple[int, int] | None:
    "The step (dy,dx) to the free neighbour that turns least; None if there is none."
    step, best = None, -np.inf
    for dy, dx in _AROUND:
        if (at[0] + dy, at[1] + dx) in free:
            size = 1.0 if dy == 0 or dx == 0 else 2**0.5
            ahead = (dy * heading[0] + dx * heading[1]) / size - 0.01 * size  # equal turns: the nearer pixel first
            if ahead > best:
                best, step = ahead, (dy, dx)
    return step


# %%
#| export
def _walk_from(start: tuple[int, int], line: frozenset) -> list[tuple[int, int]]:
    "Walk to the free neighbour that turns least, until there is none."
    path, free, heading = [start], set(line) - {start}, (0.0, 0.0)
    while step := _straightest(path[-1], free, heading):
        heading = 0.7 * heading[0] + step[0], 0.7 * heading[1] + step[1]  # the direction of the last few steps
        path.append((path[-1][0] + step[0], path[-1][1] + step[1]))
        free.discard(path[-1])
    return path


# %%
#| export
_STARTS = 6  # tried for the longest walk


def walk(
    line: np.ndarray,  # [H,W] bool, a thin line with at least one pixel
    rng: np.random.Generator,  # where to start
) -> np.ndarray:  # [N,2] int64, pixels (y,x) in the order they are visited, each once; neighbours touch
    "Follow a line in one movement, as straight as it goes; the longest of a few walks. Raises ValueError if empty."
    pixels = list(map(tuple, np.argwhere(line).tolist()))
    if not pixels:
        raise ValueError("line: found no pixel, expected at least one to walk along")
    free = frozenset(pixels)
    starts = [p for p in pixels if sum((p[0] + dy, p[1] + dx) in free for dy, dx in _AROUND) == 1] or pixels  # ends
    chosen = rng.permutation(len(starts))[:_STARTS]
    return np.array(max((_walk_from(starts[i], free) for i in chosen), key=len))


# %%
cross = np.zeros((9, 9), bool)
cross[4, :], cross[:, 4] = True, True
path = walk(cross, random)
assert len(path) == 9 and sorted(np.ptp(path, axis=0)) == [0, 8]  # straight across the other line
ring = centre_line(disc)
around = walk(ring, random)
assert np.abs(np.diff(around, axis=0)).max() == 1 and len(around) > 0.8 * ring.sum()


# %% [markdown]
# ## The pen
#
# ACDC's expert scribbles have 1.4 pixels for each pixel of their skeletons. So has a line whose pixels share edges: along
# a row it is one pixel wide, along a diagonal it takes two pixels a step. Between angles of 0 and 45° the mean of
# $1+\tan\alpha$ is $1+\tfrac{4}{\pi}\cdot\tfrac{\ln 2}{2}=1.44$.

# %%
def draw_naive(path, shape):
    "Go along the path in quarter pixels; where a step moves both ways, fill the corner."
    drawn, last = np.zeros(shape, bool), np.rint(path[0]).astype(int)
    drawn[tuple(last)] = True
    for begin, end in pairwise(path):
        steps = max(1, int(np.ceil(4 * np.abs(end - begin).max())))
        for k in range(1, steps + 1):
            here = np.rint(begin + (end - begin) * k / steps).astype(int)
            drawn[here[0], last[1]] = drawn[tuple(here)] = True
            last = here
    return drawn


# %% [markdown]
# By hand: from (0, 0) to (1, 1) in a 2×2 image the step moves both ways, so the corner (1, 0) is filled: three pixels.

# %%
diagonal = np.array([[0.0, 0.0], [1.0, 1.0]])
assert draw_naive(diagonal, (2, 2)).tolist() == [[True, False], [True, True]]


# %%
#| export
def draw_path(
    path: np.ndarray,  # [N,2] float (y,x) in pixels; N ≥ 1
    shape: tuple[int, int],  # (H,W); what lies outside is cut off
) -> np.ndarray:  # [H,W] bool
    "The pixels a pen touches: an unbroken line in which each pixel shares an edge with the next, as in ACDC."
    steps = np.ceil(4 * np.abs(np.diff(path, axis=0)).max(1, initial=0)).astype(int)
    at = np.concatenate([[0], np.cumsum(np.maximum(steps, 1))])
    fine = np.arange(at[-1] + 1)
    y, x = (np.rint(np.interp(fine, at, path[:, axis])).astype(int) for axis in (0, 1))
    y, x = np.concatenate([y, y[1:]]), np.concatenate([x, x[:-1]])  # the corner between two pixels that touch by one
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    drawn = np.zeros(shape, bool)
    drawn[y[inside], x[inside]] = True
    return drawn


# %%
curve = random.uniform(0.0, 63.0, (40, 2))
np.testing.assert_array_equal(draw_path(curve, (64, 64)), draw_naive(curve, (64, 64)))
print("naive", cost(lambda: draw_naive(curve, (64, 64))))
print("fast ", cost(lambda: draw_path(curve, (64, 64))))
turn = np.linspace(0, 2 * np.pi, 400)
circle = draw_path(30 + 25 * np.stack([np.sin(turn), np.cos(turn)], 1), (61, 61))
print(f"a circle: {circle.sum() / skeletonize(circle).sum():.2f} pixels for each pixel of its skeleton")


# %% [markdown]
# ## The hand
#
# In a fat region the course goes on with a turn around the core of the core, and so on: a spiral. The hand then draws a
# part of this course, rounds its corners and strays slowly from it, less where the region is narrow. What would lie
# outside the region is not drawn: the simulated annotator makes no mistakes.

# %%
#| export
def _course(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    "[N,2] int64, pixels (y,x): a walk along the centre line; in a fat region it jumps on to one around the inner core."
    path = walk(centre_line(region), rng)
    inner = _core(region)
    while inner.any():
        turn = walk(centre_line(inner), rng)
        near = np.abs(turn - path[-1]).sum(1).argmin()
        path = np.concatenate([path, turn[near:], turn[:near]])
        inner = _core(inner)
    return path


# %%
#| export
def _piece(path: np.ndarray, share: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    "A random piece of a path; its share of the path is uniform in a range."
    count = max(1, round(len(path) * rng.uniform(*share)))
    start = rng.integers(len(path) - count + 1)
    return path[start:start + count]


# %%
#| export
_SMOOTH_PX = 1.5  # σ along the course: takes the pixel steps out of a walk
_WAVES = 12  # σ of the hand's deviation is the stroke's length over this: long strokes wander slowly


def _tremble(count: int, rng: np.random.Generator) -> np.ndarray:
    "[count,2] smooth noise with standard deviation 1."
    sigma = max(2.0, count / _WAVES)
    noise = gaussian_filter1d(rng.normal(size=(count, 2)), sigma, axis=0)
    return noise * np.sqrt(2 * np.sqrt(np.pi) * sigma)


# %%
#| export
def _unsteady(path: np.ndarray, region: np.ndarray, wobble: float, rng: np.random.Generator) -> np.ndarray:
    "[N,2] float: a path in a region with rounded corners, from which a hand strays by a share of the room it has."
    room = depth_px(region)[tuple(path.T)][:, None] - 1
    hand = np.clip(wobble * _tremble(len(path), rng), -0.7, 0.7) * room  # 0.7: also a diagonal step stays inside
    return gaussian_filter1d(path.astype(float), _SMOOTH_PX, axis=0, mode="nearest") + hand


# %%
#| export
def stroke(
    region: np.ndarray,  # [H,W] bool with at least one pixel
    rng: np.random.Generator,  # one generator, one hand: the same state gives the same stroke
    *, drawn_share: tuple[float, float] = (0.45, 0.95),  # of the course, uniform in this range
    wobble: float = 0.2,  # standard deviation of the hand from its course, share of the distance to the region's border
) -> np.ndarray:  # [H,W] bool, inside the region, never empty
    "One human-like stroke in a region. Raises ValueError if the region is empty."
    if not region.any():
        raise ValueError("region: found no pixel, expected at least one to draw on")
    inner = region[box := find_objects(region.astype(np.uint8))[0]]
    path = _piece(_course(inner, rng), drawn_share, rng)
    drawn, ink = np.zeros_like(region, dtype=bool), draw_path(_unsteady(path, inner, wobble, rng), inner.shape) & inner
    drawn[box] = ink if ink.any() else draw_path(path, inner.shape) & inner  # smoothed, a sharp bend may leave it
    return drawn


# %%
def plot_wobble(wobbles):
    "The same course, drawn by steadier and shakier hands."
    regions = toy_label() == 3, toy_label() == 2
    _, axes = panels(len(wobbles))
    for axis, wobble in zip(axes, wobbles, strict=True):
        marks = np.full(regions[0].shape, IGNORE)
        for class_id, region in zip((3, 2), regions, strict=True):
            marks[stroke(region, np.random.default_rng(3), wobble=wobble)] = class_id
        draw(axis, np.full(marks.shape, 0.45), label=toy_label(), scribble=marks, ignore=IGNORE,
             title=f"wobble {wobble}")
        axis.set(xlim=(30, 78), ylim=(74, 22))

plot_wobble([0.0, 0.2, 0.5])


# %% [markdown]
# ## The background
#
# Most of a slice is background, so where its stroke runs decides what a network learns about it. Experts go around the
# heart once, at a few millimetres: the line shows where the organs end and nothing about the rest. We follow the middle
# of a belt around the organs' convex hull.

# %%
#| export
def largest_parts(
    region: np.ndarray,  # [H,W] bool
    above_px: float = np.inf,  # besides the largest, all with more pixels than this
) -> Iterator[np.ndarray]:  # [H,W] bool each; none if the region is empty
    "The largest connected part of a region (pixels that share a corner are connected), and further large ones."
    numbers, count = number_components(region, np.ones((3, 3)))
    sizes = np.bincount(numbers.ravel())[1:]
    for part in range(count):
        if part == sizes.argmax() or sizes[part] > above_px:
            yield numbers == part + 1


# %%
#| export
_MARGIN = (0.035, 0.1)  # distance of the background stroke from the organs' hull, share of the image's longer side


def _around_organs(organs: np.ndarray, background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    "[H,W] bool: a connected belt of background around the organs' convex hull; all background where there is no room."
    margin = max(1.5, rng.uniform(*_MARGIN) * max(organs.shape))
    distance = distance_transform_edt(~convex_hull_image(organs))
    belt = background & (distance > 0) & (distance < 2 * margin)
    return next(largest_parts(belt), background)


# %% [markdown]
# A slice without an organ has nothing to go around. 61 of ACDC's 1,902 slices are like that, and the expert drew a
# zigzag.

# %%
#| export
def _zigzag(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    "[H,W] bool: a smooth zigzag down the middle of an image, an annotator's sign for a slice without organs."
    turns = np.arange(6)
    side = rng.choice([-1, 1]) * (-1.0) ** turns
    x = 0.5 + rng.uniform(-0.1, 0.1) + side * rng.uniform(0.08, 0.18, turns.size)
    y = 0.5 + rng.uniform(-0.1, 0.1) + np.linspace(-0.2, 0.2, turns.size) + rng.uniform(-0.04, 0.04, turns.size)
    curve = make_interp_spline(turns, np.stack([y, x], 1), k=2)(np.linspace(0, turns[-1], 60))
    return draw_path(curve * (np.array(shape) - 1), shape)


# %% [markdown]
# ## All together
#
# Each class of the slice gets a stroke; so does each further part of it that is large enough to be seen.

# %%
#| export
def _background_stroke(
    label: np.ndarray, rng: np.random.Generator, ignore: int, drawn_share: tuple[float, float], wobble: float
) -> np.ndarray:
    "[H,W] bool: the stroke of a background that is there, around the organs; without any, a zigzag."
    background, organs = label == 0, (label != 0) & (label != ignore)
    if not organs.any():
        blank = _zigzag(label.shape, rng) & background
        return blank if blank.any() else stroke(background, rng, drawn_share=drawn_share, wobble=wobble)
    belt = _around_organs(organs, background, rng)
    longer = ((1 + drawn_share[0]) / 2, (1 + drawn_share[1]) / 2)  # a line around things nearly comes back to its start
    return stroke(belt, rng, drawn_share=longer, wobble=wobble)


# %%
#| export
def _check_values(name: str, ids: np.ndarray, classes: int, ignore: int) -> None:
    "Raise ValueError if any value is neither a class id nor `ignore`."
    wrong = np.setdiff1d(ids, [*range(classes), ignore])
    if wrong.size:
        raise ValueError(f"{name}: found the values {wrong[:5].tolist()}, expected 0 to {classes - 1}, or {ignore}")


def _check_label(label: np.ndarray, classes: int, ignore: int) -> None:
    "Raise ValueError unless this is a 2D array of class ids or `ignore`."
    if not isinstance(label, np.ndarray) or label.ndim != 2 or label.dtype.kind not in "biu":
        found = f"{label.dtype} {label.shape}" if isinstance(label, np.ndarray) else type(label).__name__
        raise ValueError(f"label: found {found}, expected an integer array [H,W]")
    if not classes <= ignore <= 255:
        raise ValueError(f"ignore: found {ignore}, expected {classes} (the number of classes) to 255")
    _check_values("label", label, classes, ignore)


# %%
#| export
SPECK_PX = 15  # further parts of a class get a stroke above this size, as in WSL4MIS


def simulate_scribble(
    label: np.ndarray,  # [H,W] integer class ids, `ignore` where unknown
    rng: np.random.Generator,  # one generator, one hand: the same state gives the same scribble
    *,
    classes: int,  # number of classes, the background included
    ignore: int,  # value of an unannotated pixel, not a class id
    drawn_share: tuple[float, float] = (0.45, 0.95),  # of an organ's course, 0 < low ≤ high ≤ 1
    wobble: float = 0.2,  # standard deviation of the hand from its course, share of the distance to the region's border
) -> np.ndarray:  # [H,W] uint8: right wherever it is annotated, with a stroke for every class that is present
    "The simulated annotator. Raises ValueError for a label that is not [H,W] class ids, a wrong `ignore` or share."
    _check_label(label, classes, ignore)
    if not 0 < drawn_share[0] <= drawn_share[1] <= 1:
        raise ValueError(f"drawn_share: found {drawn_share}, expected 0 < low ≤ high ≤ 1")
    scribble = np.full(label.shape, ignore, np.uint8)
    if (label == 0).any():
        scribble[_background_stroke(label, rng, ignore, drawn_share, wobble)] = 0
    for class_id in range(1, classes):
        for part in largest_parts(label == class_id, SPECK_PX):
            scribble[stroke(part, rng, drawn_share=drawn_share, wobble=wobble)] = class_id
    return scribble


# %%
label = toy_label()
scribble = simulate_scribble(label, np.random.default_rng(0), classes=4, ignore=IGNORE)
marked = scribble != IGNORE
assert (scribble[marked] == label[marked]).all() and set(np.unique(scribble[marked])) == {0, 1, 2, 3}
lone = np.zeros((24, 24), int)
lone[0, 23], lone[12, 12] = 1, 2
few = simulate_scribble(lone, random, classes=3, ignore=255)
assert few[0, 23] == 1 and few[12, 12] == 2
print("one slice of 256²:", cost(lambda: simulate_scribble(toy_label(256), random, classes=4, ignore=IGNORE)))


# %% [markdown]
# ## How much is annotated?
#
# By hand: in the scribble [[0, 1], [4, 1]] with `ignore` 4, one of four pixels is background and two are class 1. The
# shares are ¼ and ½, and ¾ of the slice is annotated.

# %%
#| export
def annotated_share(
    scribble: np.ndarray,  # [...] integer class ids, `ignore` where unannotated
    classes: int,  # number of classes, the background included
    ignore: int,  # value of an unannotated pixel
) -> np.ndarray:  # [classes] float64 in [0,1]; their sum is the share of the pixels that is annotated at all
    "Share of all pixels that a scribble gives to each class. Raises ValueError without a pixel, or for another value."
    if scribble.size == 0:
        raise ValueError(f"scribble: found shape {scribble.shape}, expected at least one pixel")
    _check_values("scribble", scribble, classes, ignore)
    return np.array([(scribble == class_id).mean() for class_id in range(classes)])


# %%
assert annotated_share(np.array([[0, 1], [4, 1]]), classes=2, ignore=4).tolist() == [0.25, 0.5]


# %% [markdown]
# ## How many strokes?
#
# A *stroke* is a connected part of one value within a slice; pixels that share a corner are connected. A run says how
# many it learns from. Only drawn pixels are looked at, one in a hundred, and each is linked to those of its neighbours
# that have the same value and come later in the file; the parts of that graph are the strokes.

# %%
def strokes_naive(scribble, ignore):
    "Slice by slice, class by class."
    return sum(number_components(plane == value, np.ones((3, 3)))[1]
               for plane in scribble for value in np.unique(plane) if value != ignore)


# %%
#| export
def count_strokes(
    scribble: np.ndarray,  # [Z,Y,X] class ids, `ignore` where unannotated
    ignore: int,  # value of an unannotated pixel
) -> int:  # over all slices and values
    "Number of connected parts of one value within a slice; pixels that share a corner are connected."
    padded = np.pad(scribble, ((0, 0), (0, 1), (1, 1)), constant_values=ignore)  # no neighbour beyond a border
    flat, width = padded.ravel(), padded.shape[-1]
    drawn = np.flatnonzero(flat != ignore)
    number = np.zeros(flat.size, np.int64)
    number[drawn] = np.arange(len(drawn))
    pairs = [drawn[flat[drawn] == flat[drawn + step]] + np.array([[0], [step]])
             for step in (1, width - 1, width, width + 1)]
    one, other = number[np.concatenate(pairs, 1)]
    graph = coo_array((np.ones(len(one), bool), (one, other)), (len(drawn), len(drawn)))
    return int(connected_components(graph, directed=False, return_labels=False)) if len(drawn) else 0


# %%
marks = np.random.default_rng(0).choice([0, 1, 4], (5, 12, 12), p=[0.1, 0.1, 0.8])
assert count_strokes(marks, 4) == strokes_naive(marks, 4) and count_strokes(np.full((1, 2, 2), 4), 4) == 0
ten = np.stack([scribble] * 10)
print("part by part:", cost(lambda: strokes_naive(ten, IGNORE)))
print("one graph:   ", cost(lambda: count_strokes(ten, IGNORE)))


# %% [markdown]
# ## Against real experts
#
# A simulated annotator is measured on slices that a person has annotated too. Ten ACDC patients, both frames, share of
# the pixels in percent.

# %%
def share_table(cases, seed=0):
    "Mean share of the pixels, in percent, that an expert and the simulation give to each class; one row each."
    rng = np.random.default_rng(seed)
    expert, ours = [], []
    for case in cases:
        for drawn, label in zip(case.scribble, case.label, strict=True):
            expert.append(annotated_share(drawn, 4, IGNORE))
            ours.append(annotated_share(simulate_scribble(label, rng, classes=4, ignore=IGNORE), 4, IGNORE))
    return 100 * np.mean(expert, 0), 100 * np.mean(ours, 0), len(ours)


# %%
root = Path(os.environ.get("ATTENSCRIBBLE_DATA", "data")) / "acdc"
if root.is_dir():
    data = acdc(root)
    expert, ours, count = share_table(data.cases(data.patients[4::10]))
    print(f"{count} slices  " + "".join(f"{name:>12}" for name in (*NAMES, "all")))
    for name, row in (("expert", expert), ("simulated", ours)):
        print(f"{name:<11}" + "".join(f"{share:12.3f}" for share in (*row, row.sum())))
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# Over all of ACDC the experts' means are 0.655 % background, 0.131 % right ventricle, 0.186 % muscle and 0.127 % left
# ventricle: 1.10 % in all. Equal shares do not make equal scribbles. People differ from each other, draw the same shape
# on neighbouring slices, and sometimes cross a border; the simulation does none of that.

# %% [markdown]
# ## Draw less
#
# `drawn_share` is the share of each organ's course that is drawn; of the background's line, half as much is left out as
# of an organ's. It is the setting for the question "how few strokes are enough?".

# %%
def plot_shares(shares, label=toy_label()):
    "The same hand, stopping earlier or later."
    _, axes = panels(len(shares))
    for axis, share in zip(axes, shares, strict=True):
        drawn = simulate_scribble(label, np.random.default_rng(5), classes=4, ignore=IGNORE, drawn_share=(share, share))
        annotated = annotated_share(drawn, 4, IGNORE).sum()
        draw(axis, np.full(label.shape, 0.45), label=label, scribble=drawn, ignore=IGNORE,
             title=f"drawn_share {share:g}: {annotated:.1%} annotated")

plot_shares([0.1, 0.4, 0.7, 1.0])

# %%
interact(lambda drawn_share=0.5: plot_shares([drawn_share]), drawn_share=(0.05, 1.0, 0.05));


# %% [markdown]
# ## Exercises
#
# **1. Predict.** A disc has a radius of 20 pixels. How deep are the pixels of its core, at least? Give the threshold.

# %%
def check_threshold(f):
    big = np.hypot(*(np.mgrid[:51, :51] - 25)) < 20
    assert abs(f(20) - depth_px(big)[_core(big)].min()) < 1.5

def my_threshold(radius):
    ...  # a depth in pixels

exercise(check_threshold, my_threshold, solution=lambda radius: _CORE * radius)


# %% [markdown]
# **2. Implement** a simpler annotator: label every pixel of the dense label with a probability of 1 %, nothing else. Why
# does a network learn more from it than from a stroke with as many pixels?

# %%
def check_sprinkle(f):
    dots = f(toy_label(), np.random.default_rng(0), IGNORE)
    marked = dots != IGNORE
    assert (dots[marked] == toy_label()[marked]).all() and 0.006 < marked.mean() < 0.014

def my_sprinkle(label, rng, ignore):
    return np.full(label.shape, ignore)  # your code here

exercise(check_sprinkle, my_sprinkle,
         solution=lambda label, rng, ignore: np.where(rng.random(label.shape) < 0.01, label, ignore))


# %% [markdown]
# The dots lie far apart, some of them at a border; the pixels of a stroke are neighbours and say nearly the same.
#
# **3. Break** it. Find a region in which the plain walk, drawn with the pen, leaves the region, so that the cut at the
# end of `stroke` is needed. Two pixels are enough.

# %%
def check_leak(f):
    region = f()
    drawn = draw_path(walk(region, np.random.default_rng(0)), region.shape)
    assert region.any() and (drawn & ~region).any()

def my_leak():
    return np.ones((2, 2), bool)  # your region here

exercise(check_leak, my_leak, solution=lambda: np.eye(2, dtype=bool))


# %% [markdown]
# **4. Implement** the number of strokes of one class in a scribble: connected parts; pixels that share a corner belong
# together.

# %%
def check_strokes(f):
    marks = np.array([[0, 4, 0], [4, 0, 4], [1, 4, 1]])
    assert f(marks, 0) == 1 and f(marks, 1) == 2

def my_strokes(scribble, class_id):
    ...  # your code here

exercise(check_strokes, my_strokes,
         solution=lambda scribble, class_id: len(list(largest_parts(scribble == class_id, 0))))

# %% [markdown]
# ## Recap
#
# Exported: `simulate_scribble`, the annotator, `annotated_share`, its measure, and `count_strokes`; below them `depth_px`, `centre_line`,
# `walk`, `draw_path`, `stroke` and `largest_parts`, from which other annotators can be built. The surprise: a skeleton,
# the textbook choice, marks a ventricle with a dot, and experts draw spirals.
# [The next chapter](13_phantom.ipynb) lets this annotator work on drawn hearts.
