# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Metrics
#
# > When is a mask good? DSC and HD95 in mm, a named rule for empty masks, and the table's mean(std).
#
# Two masks overlap the truth equally well: can one of them still be worse? Overlap counts wrong voxels and does not ask
# where they lie, so papers also print a distance, and choices that they seldom mention move it by tens of millimetres.
# This chapter computes both numbers, shows each of those choices, and makes the paper's tables from them.

# %%
#| default_exp runs.metrics

# %%
#| export
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from attenscribble.basics.errors import one_of

# %%
import matplotlib.pyplot as plt
from ipywidgets import interact
from scipy.ndimage import binary_dilation

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import class_colour, draw, panels
from attenscribble.basics.errors import DataError
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom


# %% [markdown]
# ## Overlap
#
# The Dice similarity coefficient of two sets of voxels, the prediction $A$ and the reference $B$:
#
# $$\mathrm{DSC} = \frac{2\,|A\cap B|}{|A|+|B|}$$

# %%
#| export
def dice(
    prediction: np.ndarray,  # [Y,X] or [Z,Y,X] bool
    reference: np.ndarray,  # same shape, bool
) -> float:  # in [0,1]; NaN if both are empty
    """Dice similarity coefficient (DSC): twice the overlap over the sum of the two sizes.

    One empty mask gives 0. Two empty masks give 0/0, hence NaN; MedPy says 1 (0 before 0.5). Raises TypeError unless
    both are boolean, ValueError if the shapes differ."""
    _check_pair(prediction, reference)
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(prediction & reference) / total) if total else float("nan")


# %%
#| export
def _check_pair(prediction: np.ndarray, reference: np.ndarray) -> None:
    "Raise unless these are two boolean arrays of one shape."
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if getattr(mask, "dtype", None) != np.bool_:
            raise TypeError(f"{name}: found {getattr(mask, 'dtype', type(mask).__name__)}, expected a boolean array, "
                            f"such as {name} == 1")
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction: found shape {prediction.shape}, expected the reference's {reference.shape}")


# %% [markdown]
# **By hand.** $A$ has 3 pixels, $B$ has 2, they share 2: $2\cdot2/(3+2)=0.8$. Nothing against nothing is $0/0$: no number.

# %%
assert dice(np.array([[1, 1], [1, 0]], bool), np.array([[1, 1], [0, 0]], bool)) == 0.8
assert np.isnan(dice(np.zeros((2, 2), bool), np.zeros((2, 2), bool)))

# %% [markdown]
# ## Three errors, one DSC
#
# A synthetic heart. The left ventricle is predicted three times: moved by one pixel, perfect but for specks far away,
# and perfect but for one forgotten slice. The number of specks is set so that the first two tie.

# %%
heart = phantom(patients=1, seed=0)
case = next(heart.cases())
NAMES, LV = heart.class_names, 3
truth, spacing_mm = case.label == LV, case.spacing_mm
far = ~binary_dilation(truth, iterations=15)
order = np.random.default_rng(0).permutation(np.flatnonzero(far))


def with_specks(count):
    specked = truth.copy()
    specked.flat[order[:count]] = True
    return specked


# %%
moved = np.roll(truth, 1, axis=2)
specks = round(2 * truth.sum() * (1 / dice(moved, truth) - 1))  # DSC = 2|B| / (2|B| + specks)
z = np.abs(truth.sum((1, 2)) - 0.09 * truth.sum()).argmin()  # a slice that holds about 9 % of it
forgotten = truth & (np.arange(len(truth)) != z)[:, None, None]
errors = {"moved by a pixel": moved, f"{specks} specks": with_specks(specks), f"slice {z} forgotten": forgotten}


# %%
def plot_error(axis, prediction, title):
    draw(axis, case.image[z], label=LV * prediction[z], spacing_mm=spacing_mm[1:], title=title)
    axis.contour(truth[z], [0.5], colors="white", linewidths=1.2)
    y, x = np.nonzero(prediction[z] & far[z])
    axis.plot(x, y, ".", color=class_colour(LV), markersize=3.5)

figure, axes = panels(3, size=2.6)
for axis, (name, prediction) in zip(axes, errors.items(), strict=True):
    plot_error(axis, prediction, f"{name}\nDSC {dice(prediction, truth):.2f}")
assert all(abs(dice(prediction, truth) - 0.95) < 0.02 for prediction in errors.values())


# %% [markdown]
# One slice of the phantom; prediction filled (specks drawn larger than they are), truth outlined in white. The DSC of
# the three is the same. For planning a treatment they are not.
#
# ## Distance
#
# $\partial A$ is the surface: the voxels of $A$ with a face neighbour outside $A$; beyond the image all is outside.
#
# $$d(p,\partial B)=\min_{q\in\partial B}\big\|\,s\circ(p-q)\,\big\|\qquad
# \mathrm{HD95}=P_{95}\Big(\{d(p,\partial B)\}_{p\in\partial A}\uplus\{d(q,\partial A)\}_{q\in\partial B}\Big)$$
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $A$, $B$ | `prediction`, `reference` | [Z,Y,X] bool | – |
# | $\partial A$, $\partial B$ | `ours`, `theirs` | [Z,Y,X] bool | – |
# | $s$ | `spacing_mm` | (z,y,x) | mm |
# | $p-q$ | – | (z,y,x) | voxels |
# | $P_{95}$ | `np.percentile(…, 95)` | one number | mm |
#
# $\uplus$: both directions go into one pool.

# %% [markdown]
# ## Naive code
#
# Every surface voxel against every other.

# %%
def surface_naive(mask):
    padded, found = np.pad(mask, 1), []
    for p in np.argwhere(padded):
        faces = [tuple(p + sign * step) for step in np.eye(mask.ndim, dtype=int) for sign in (-1, 1)]
        if not all(padded[q] for q in faces):
            found.append(p - 1)
    return found

def hd95_naive(prediction, reference, spacing_mm):
    ours, theirs = surface_naive(prediction), surface_naive(reference)
    def to(p, border):
        return min(np.sqrt(sum((s * (a - b)) ** 2 for s, a, b in zip(spacing_mm, p, q, strict=True))) for q in border)
    return np.percentile([to(p, theirs) for p in ours] + [to(q, ours) for q in theirs], 95)


# %% [markdown]
# **By hand.** One row of pixels, 2 mm wide: $A$ = pixels 0 and 1, $B$ = pixel 4. From $A$: 8 and 6 mm; from $B$: 6 mm.
# The pool is 6, 6, 8. NumPy's percentile sits at position $0.95\cdot(3-1)=1.9$, nine tenths of the way from 6 to 8:
# 7.8 mm.

# %%
row_a, row_b = np.array([[1, 1, 0, 0, 0]], bool), np.array([[0, 0, 0, 0, 1]], bool)
assert np.isclose(hd95_naive(row_a, row_b, (1, 2)), 7.8)


# %% [markdown]
# **What breaks.** The naive form computes the distance of every pair. A ventricle at ACDC's resolution has about 2,000
# surface voxels; a network that fails scatters specks over half the scan and has 200,000. As a table, that is 3 GB of
# distances to find one number.

# %% [markdown]
# ## Fast: cut, then choose
#
# Outside the box around both masks nothing is in either, so the box is enough.

# %%
#| export
def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    "The smallest box that holds a mask which is not empty: a slice per axis."
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


# %%
#| export
def surface(
    mask: np.ndarray,  # [...] bool
) -> np.ndarray:  # [...] bool
    "The voxels of a mask that have a face neighbour outside; beyond the array everything is outside."
    inside = mask.copy()
    for axis in range(mask.ndim):
        ours, theirs = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)  # views
        ours[1:] &= theirs[:-1]
        ours[:-1] &= theirs[1:]
        ours[[0, -1]] = False
    return mask & ~inside


# %% [markdown]
# Inside the box there are two ways to the nearest surface voxel. A distance transform visits every voxel of the box:
# good for one compact blob. A search tree visits surface voxels only: good for specks scattered over an empty scan.

# %%
#| export
def transform_distances(
    ours: np.ndarray,  # [...] bool, a surface, not empty
    theirs: np.ndarray,  # [...] bool, the other
    spacing: np.ndarray,  # [axes] mm
) -> tuple[np.ndarray, np.ndarray]:  # [number of our voxels], [number of their voxels] in mm
    "Distance of each surface voxel to the other surface, read off a distance transform of the whole box."
    return (distance_transform_edt(~theirs, sampling=spacing)[ours],
            distance_transform_edt(~ours, sampling=spacing)[theirs])


# %%
#| export
def tree_distances(
    ours: np.ndarray,  # [...] bool, a surface, not empty
    theirs: np.ndarray,  # [...] bool, the other
    spacing: np.ndarray,  # [axes] mm
) -> tuple[np.ndarray, np.ndarray]:  # [number of our voxels], [number of their voxels] in mm
    "The same from two search trees: the cost follows the surfaces, not the box."
    points = [np.column_stack(np.unravel_index(np.flatnonzero(border), border.shape)) * spacing
              for border in (ours, theirs)]
    trees = [cKDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


# %%
#| export
_TREE_FACTOR = 10  # a tree beats the distance transform once the box holds this many voxels per surface voxel


def _surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    "All surface distances in mm, both directions in one pool."
    box = _bounding_box(prediction | reference)  # cutting is exact: outside of it both masks are background
    ours, theirs = surface(prediction[box]), surface(reference[box])
    sparse = ours.size > _TREE_FACTOR * (np.count_nonzero(ours) + np.count_nonzero(theirs))
    return np.concatenate((tree_distances if sparse else transform_distances)(ours, theirs, spacing))


# %%
#| export
def hd95(
    prediction: np.ndarray,  # [Y,X] or [Z,Y,X] bool, not empty
    reference: np.ndarray,  # same shape, bool, not empty
    spacing_mm: Sequence[float] | np.ndarray,  # one positive number per axis, in the order of the axes: (z,y,x)
) -> float:  # mm
    """95 % Hausdorff distance: the 95th percentile of all surface distances, both directions pooled.

    The surface holds the voxels with a face neighbour outside; beyond the array everything is outside. Equal to MedPy's
    `hd95`, faster. Raises TypeError unless both masks are boolean, ValueError for an empty mask (`score_case` has a
    policy for it), for differing shapes and for a spacing that does not fit."""
    _check_pair(prediction, reference)
    spacing = _checked_spacing(spacing_mm, prediction.ndim)
    _check_not_empty(prediction, reference)
    return float(np.percentile(_surface_distances(prediction, reference, spacing), 95))


# %%
#| export
def _check_not_empty(prediction: np.ndarray, reference: np.ndarray) -> None:
    "Raise ValueError for a mask without a voxel."
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if not mask.any():
            raise ValueError(f"{name}: found an empty mask, expected at least one voxel: HD95 is undefined")


def _checked_spacing(spacing_mm: Sequence[float] | np.ndarray, axes: int) -> np.ndarray:
    "The spacing as float64; raise ValueError unless it is a positive number per axis."
    spacing = np.asarray(spacing_mm, dtype=float)
    if spacing.shape != (axes,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm: found {spacing_mm}, expected {axes} positive numbers, one per axis of the mask")
    return spacing


# %% [markdown]
# ## Equal, and what it costs
#
# Random 8³ masks, the naive form against both ways; then the heart with specks, and one that fills half of it.
# (MedPy's `hd95`, which most papers call, is held against this function in the tests.)

# %%
rng = np.random.default_rng(0)
for density in (0.01, 0.1, 0.5):
    a, b = rng.random((2, 8, 8, 8)) < density
    expected = hd95_naive(a, b, (3.0, 1.2, 0.7))
    np.testing.assert_allclose(hd95(a, b, (3.0, 1.2, 0.7)), expected, rtol=1e-12)
    for way in (tree_distances, transform_distances):
        pool = np.concatenate(way(surface(a), surface(b), np.array([3.0, 1.2, 0.7])))
        np.testing.assert_allclose(np.percentile(pool, 95), expected, rtol=1e-12)

# %%
sheet = np.indices(truth.shape).sum(0) % 2 == 0
for name, prediction in (("specks", with_specks(specks)), ("every second voxel", sheet)):
    ours, theirs, mm = surface(prediction), surface(truth), np.array(spacing_mm)
    print(f"{name}: tree {cost(lambda: tree_distances(ours, theirs, mm))}")
    print(f"{name}: transform {cost(lambda: transform_distances(ours, theirs, mm))}")

# %% [markdown]
# ## The three errors again

# %%
figure, axes = panels(3, size=2.6)
for axis, (name, prediction) in zip(axes, errors.items(), strict=True):
    distance = hd95(prediction, truth, spacing_mm)
    plot_error(axis, prediction, f"{name}\nDSC {dice(prediction, truth):.2f}, HD95 {distance:.1f} mm")
found = [hd95(prediction, truth, spacing_mm) for prediction in errors.values()]
assert np.isclose(found[0], spacing_mm[2]) and found[0] < found[2] < 0.5 * found[1]


# %% [markdown]
# The distances are a pixel's width, a third of the image, and the distance between slices. The specks are about a tenth
# of the volume, but every voxel of a speck is *surface*, and so the 95th percentile lies among them.
#
# ## Slide the number of specks
#
# Each pair of panels shows the prediction and all its surface distances in order. HD95 is the height of the curve at
# 95 %: as long as the specks lie right of that line they do not change it, then it jumps. The number of specks is given
# in % of the truth's surface voxels.

# %%
def plot_specks(pair, percent):
    count = round(percent / 100 * surface(truth).sum())
    prediction = with_specks(count)
    pool = np.concatenate(tree_distances(surface(prediction), surface(truth), np.array(spacing_mm)))
    plot_error(pair[0], prediction, f"{count} specks, DSC {dice(prediction, truth):.3f}")
    pair[1].plot(np.linspace(0, 100, pool.size), np.sort(pool), color="#0072B2")
    pair[1].axvline(95, color="#D55E00", linewidth=1)
    pair[1].set_axis_on()
    pair[1].set(xlim=(85, 100), ylim=(-4, 130), xlabel="% of the pooled surface", ylabel="distance (mm)")
    pair[1].set_title(f"HD95 {np.percentile(pool, 95):.1f} mm", fontsize=9)


# %%
def slide_specks(percent=12):
    plot_specks(panels(2, size=2.6)[1], percent)
    plt.show()

interact(slide_specks, percent=(0, 30));

# %%
figure, axes = panels(6, columns=3, size=2.5)
for pair, percent in zip(axes.reshape(2, 3).T, (8, 12, 24), strict=True):
    plot_specks(pair, percent)


# %% [markdown]
# In the paper's Table 1 three methods share an average DSC of 0.88; their HD95 is 14.3, 13.7 and 6.4 mm. A few specks
# more or fewer can make such a difference.
#
# ## Pooled, or the worse of two?
#
# Some tools (MONAI, for one) take the 95th percentile of each direction and return the larger. As a rule that is
# more than the pooled one, and nothing limits the difference.

# %%
def hd95_worse_direction(prediction, reference, spacing_mm):
    both = tree_distances(surface(prediction), surface(reference), np.array(spacing_mm))
    return max(np.percentile(distances, 95) for distances in both)

percents = np.arange(31)
predictions = [with_specks(round(percent / 100 * surface(truth).sum())) for percent in percents]
pooled = [hd95(prediction, truth, spacing_mm) for prediction in predictions]
worse = [hd95_worse_direction(prediction, truth, spacing_mm) for prediction in predictions]

# %%
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.plot(percents, pooled, color="#0072B2", label="both directions pooled (MedPy, the released code, here)")
axis.plot(percents, worse, color="#D55E00", linestyle="--", label="the worse of two directions (MONAI)")
axis.set(xlabel="specks (% of the truth's surface voxels)", ylabel="HD95 (mm)", title="one prediction, two numbers")
axis.set_ylim(-4, 95)
axis.legend(fontsize=8, frameon=False, loc="upper left")
assert pooled[8] == 0 and worse[8] > 20 and all(p <= w + 1e-9 for p, w in zip(pooled, worse, strict=True))

# %% [markdown]
# The truth has $S$ surface voxels. The distances from the prediction are $S+n$ numbers, and $n$ specks fill 5 % of them
# from $n\approx S/19$ on; the pool has $2S+n$ numbers, so it takes twice as many specks. In between, the same mask scores
# 0 mm in one convention and tens of mm in the other. Neither is wrong, but a table must not mix them.
#
# ## The order of the spacing
#
# Arrays are in the order (z,y,x), headers in the order (x,y,z). No check can notice a spacing in the wrong order: it has
# three positive numbers either way.

# %%
along_z, along_x = np.roll(truth, 1, axis=0), np.roll(truth, 4, axis=2)
pd.DataFrame({order: {name: round(hd95(moved, truth, mm), 1)
                      for name, moved in (("moved by a slice", along_z), ("moved by 4 pixels", along_x))}
              for order, mm in (("(z,y,x)", spacing_mm), ("(x,y,z)", spacing_mm[::-1]))})

# %%
step_z, step_x = spacing_mm[0], spacing_mm[2]
assert np.isclose(hd95(along_z, truth, spacing_mm), step_z)
assert np.isclose(hd95(along_z, truth, spacing_mm[::-1]), step_x)
assert hd95(along_x, truth, spacing_mm) < hd95(along_x, truth, spacing_mm[::-1])

# %% [markdown]
# ## When a mask is empty
#
# An empty mask has no surface and so no distance; `hd95` raises, as MedPy does. A table needs a number all the same, and
# the released evaluation writes DSC 0 **and HD95 0**: the best possible distance for the worst possible prediction. The
# policy is therefore an argument, and every row carries its name.

# %%
#| export
POLICIES = ("standard", "legacy")  # what an empty mask scores


# %%
#| export
def score_case(
    prediction: np.ndarray,  # [Z,Y,X] or [Y,X] integer class ids
    reference: np.ndarray,  # same shape, integer class ids
    spacing_mm: Sequence[float] | None,  # one number per axis (z,y,x); None only without HD95
    class_names: Sequence[str],  # index = class id; 0, the background, is not scored
    *,
    policy: str | Sequence[str] = "standard",  # one of POLICIES, or several: the distances are found once
    case: str = "case",  # name, for the rows and for messages
    with_hd95: bool = True,  # False: DSC only, HD95 is NaN
) -> list[dict[str, str | float]]:  # a row per policy and class: case, class, dsc, hd95_mm, policy
    """DSC and HD95 of every class of one volume.

    "standard": a class that both masks lack is left out (NaN); one that a single mask lacks has DSC 0 and, as HD95, the
    image's diagonal. "legacy": either mask empty gives DSC 0 and HD95 0 mm, as in the released code of AttenScribble;
    only for comparing with its tables. Raises ValueError, naming the case, for HD95 without spacing, for differing
    shapes, unknown class ids or an unknown policy; TypeError unless the masks hold integers."""
    policies = [one_of("policy", name, POLICIES) for name in ([policy] if isinstance(policy, str) else policy)]
    _check_classes(case, prediction, reference, len(class_names))
    spacing = _case_spacing(case, spacing_mm, reference.ndim) if with_hd95 else None
    found = {name: _score(prediction == class_id, reference == class_id, spacing, policies)
             for class_id, name in enumerate(class_names) if class_id}
    return [{"case": case, "class": name, "dsc": scores[policy][0], "hd95_mm": scores[policy][1], "policy": policy}
            for policy in policies for name, scores in found.items()]


# %%
#| export
def _case_spacing(case: str, spacing_mm: Sequence[float] | None, axes: int) -> np.ndarray:
    "The spacing as float64; raise ValueError, naming the case, where there is none."
    if spacing_mm is None:
        raise ValueError(f"{case}: spacing_mm: found None, expected the voxel size (z,y,x): HD95 is in mm "
                         "(with_hd95=False scores DSC alone)")
    return _checked_spacing(spacing_mm, axes)


# %%
#| export
def _score(ours: np.ndarray, theirs: np.ndarray, spacing: np.ndarray | None,
           policies: Sequence[str]) -> dict[str, tuple[float, float]]:
    "DSC and HD95 of one class under each policy; HD95 is NaN without a spacing."
    nothing, empty = float("nan"), (not ours.any()) + (not theirs.any())
    if not empty:
        distance = nothing if spacing is None else hd95(ours, theirs, spacing)
        return dict.fromkeys(policies, (dice(ours, theirs), distance))
    missed = 0.0, diagonal_mm(ours.shape, (1,) * ours.ndim if spacing is None else spacing)  # one mask is empty
    scores = {"standard": (nothing, nothing) if empty == 2 else missed, "legacy": (0.0, 0.0)}
    return {policy: (scores[policy][0], nothing if spacing is None else scores[policy][1]) for policy in policies}


# %%
#| export
def diagonal_mm(
    shape: Sequence[int],  # voxels per axis
    spacing_mm: Sequence[float] | np.ndarray,  # mm per axis
) -> float:  # mm
    "From one outer corner of an image to the opposite one: no surface distance in it is larger."
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))


# %%
#| export
def _check_classes(case: str, prediction: np.ndarray, reference: np.ndarray, classes: int) -> None:
    "Raise unless both masks hold class ids and share a shape."
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if getattr(mask, "dtype", np.dtype(float)).kind not in "iu":
            raise TypeError(f"{case}: {name}: found {getattr(mask, 'dtype', type(mask).__name__)}, "
                            "expected an integer array of class ids")
        if mask.size and not 0 <= mask.min() <= mask.max() < classes:
            found = [int(value) for value in np.unique(mask) if not 0 <= value < classes]
            raise ValueError(f"{case}: {name}: found the class ids {found}, expected 0 … {classes - 1}")
    if prediction.shape != reference.shape:
        raise ValueError(f"{case}: prediction: found shape {prediction.shape}, expected the reference's "
                         f"{reference.shape}")


# %%
nothing = np.zeros_like(case.label)
guess = np.where(with_specks(specks), LV, nothing)
found = [{"prediction": name, **row} for policy in POLICIES for name, mask in (("specks", guess), ("nothing", nothing))
         for row in score_case(mask, case.label, spacing_mm, NAMES, policy=policy, case=case.name)
         if row["class"] == "LV"]
pd.DataFrame(found).pivot(index="prediction", columns="policy", values=["dsc", "hd95_mm"]).round(2)

# %%
by = {(row["policy"], row["prediction"]): row["hd95_mm"] for row in found}
assert by["legacy", "nothing"] == 0 < by["legacy", "specks"] == by["standard", "specks"] < by["standard", "nothing"]
assert by["standard", "nothing"] == diagonal_mm(truth.shape, spacing_mm)

# %% [markdown]
# Under `legacy` an empty mask scores a better distance than one with specks, so a method that predicts nothing lowers
# its mean HD95. Under `standard` an empty mask scores the image's diagonal. A class that neither mask holds says nothing
# about the method: it is left out, and $n$, the number of volumes that count, shows it.
#
# ## From cases to a table
#
# The row "Avg" needs care. Its mean is the mean of the class means. Its deviation is **not** the mean of theirs: each
# volume's classes are averaged first, then the deviation is taken over volumes (population, $1/n$).

# %%
#| export
METRICS = ("dsc", "hd95_mm")  # columns of a row of scores


# %%
#| export
def summarise(
    rows: pd.DataFrame | Iterable[dict[str, str | float]],  # rows of `score_case`, all under one policy
) -> pd.DataFrame:  # a row per class and "Avg"; for each metric its _mean, _std and _n; the policy
    """Mean and population standard deviation over volumes.

    Avg mean is the mean of the class means; Avg std is taken over each volume's mean of its classes, as in the released
    evaluation. NaN is left out and _n says how many volumes remained; none gives NaN and 0. Raises ValueError for no
    rows, a missing column, several policies, or a case that was scored twice."""
    rows = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    _check_rows(rows)
    table = pd.concat([_summarise_metric(rows, metric) for metric in METRICS], axis=1)
    return table.assign(policy=rows["policy"].iloc[0])


# %%
#| export
def _check_rows(rows: pd.DataFrame) -> None:
    "Raise ValueError unless these are scores under one policy, each class of a case once."
    if absent := [name for name in ("case", "class", "policy", *METRICS) if name not in rows]:
        raise ValueError(f"rows: found no column {', '.join(absent)}, expected rows of score_case")
    if len(policies := rows["policy"].unique()) != 1:
        raise ValueError(f"rows: found the policies {sorted(policies)}, expected rows under exactly one")
    if (twice := rows.duplicated(["case", "class"])).any():
        first = rows[twice].iloc[0]
        raise ValueError(f"rows: found {first['class']} of {first['case']} twice, expected each class of a case once")


# %%
#| export
def _summarise_metric(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    "Mean, std and n of one metric, classes in the order of the rows, then Avg."
    values = rows.astype({metric: float}).pivot(index="case", columns="class", values=metric)
    values = values[rows["class"].unique()]  # [cases, classes]
    per_volume = values.mean(axis=1)
    table = pd.DataFrame({"mean": values.mean(), "std": values.std(ddof=0), "n": values.count()})
    table.loc["Avg"] = [table["mean"].mean(), per_volume.std(ddof=0), per_volume.count()]
    return table.astype({"n": int}).add_prefix(f"{metric}_")


# %% [markdown]
# **By hand.** Two volumes, two classes: RV 0.9 and 0.5, LV 0.7 and 0.9. The means are 0.7 and 0.8, so Avg is 0.75. The
# deviations are 0.2 and 0.1; but the volumes average 0.8 and 0.7, so Avg deviates by 0.05.

# %%
hand = [{"case": case_name, "class": name, "dsc": dsc, "hd95_mm": 100 * (1 - dsc), "policy": "standard"}
        for case_name, scores in (("a", (0.9, 0.7)), ("b", (0.5, 0.9)))
        for name, dsc in zip(("RV", "LV"), scores, strict=True)]
summary = summarise(hand)
np.testing.assert_allclose(summary["dsc_mean"], [0.7, 0.8, 0.75])
np.testing.assert_allclose(summary["dsc_std"], [0.2, 0.1, 0.05])
summary


# %%
#| export
def format_table(
    summary: pd.DataFrame,  # of `summarise`
) -> pd.DataFrame:  # a row per class and "Avg"; the columns "DSC", "HD95 (mm)", "n"; named after the policy
    "A summary as the paper prints it: 0.87(0.079) and 10.72(19.34); a dash where no volume counts."
    table = pd.DataFrame(index=summary.index)
    table["DSC"] = [mean_std(*pair, small=3) for pair in zip(summary["dsc_mean"], summary["dsc_std"], strict=True)]
    table["HD95 (mm)"] = [mean_std(*pair) for pair in zip(summary["hd95_mm_mean"], summary["hd95_mm_std"],
                                                           strict=True)]
    table["n"] = summary["dsc_n"]
    return table.rename_axis(index=None, columns=f"policy: {summary['policy'].iloc[0]}")


# %%
#| export
def mean_std(
    mean: float,  # NaN where no volume counts
    std: float,  # in the same unit
    small: int = 2,  # decimals of a standard deviation below 0.1
) -> str:  # such as 0.87(0.079); a dash for NaN
    "Mean and standard deviation in one cell of a table, two decimals each."
    if np.isnan(mean):
        return "–"
    return f"{mean:.2f}({std:.{small if round(std, 3) < 0.1 else 2}f})"


# %% [markdown]
# The paper's layout, a method per row: eight phantom volumes, moved by a pixel and by two.

# %%
volumes = list(phantom(patients=4, seed=1).cases())
tables = {}
for shift in (1, 2):
    rows = [row for volume in volumes for row in score_case(
        np.roll(volume.label, shift, axis=2), volume.label, volume.spacing_mm, NAMES, case=volume.name)]
    tables[f"moved by {shift}"] = format_table(summarise(rows)).drop(columns="n")
pd.concat(tables).unstack().swaplevel(axis=1)[["RV", "Myo", "LV", "Avg"]]

# %% [markdown]
# ## Real data: what is a pixel worth?
#
# An expert's label of one ACDC patient, moved by one pixel, about 1.5 mm, and scored against itself.

# %%
try:
    scan = open_dataset("acdc").read("patient001")[0]
except DataError as error:
    print(f"skipped: {error}")
else:
    rows = score_case(np.roll(scan.label, 1, axis=2), scan.label, scan.spacing_mm, NAMES, case=scan.name)
    print(scan.name, *(f"{row['class']}: DSC {row['dsc']:.3f}, HD95 {row['hd95_mm']:.2f} mm" for row in rows), sep="\n")


# %% [markdown]
# All are one pixel off, and HD95 says so. DSC does not: the thin myocardium loses four times as much as the left
# ventricle. So never compare DSC across classes. This does not show how a network errs: its errors are not shifts.
#
# ## Exercises
#
# **1. Predict.** The truth has `size` surface voxels; a prediction adds isolated specks far away. How many leave HD95 at
# exactly 0? (NumPy reads position $0.95(N-1)$ of $N$ values.)

# %%
def check_hidden(f):
    for size in (50, 137, 1373):
        pool = lambda n: np.repeat([0.0, 100.0], [2 * size, n])
        n = f(size)
        assert np.percentile(pool(n), 95) == 0 < np.percentile(pool(n + 1), 95)

def hidden_specks(size):
    ...  # your code here

exercise(check_hidden, hidden_specks, solution=lambda size: int((2 * size - 1) / 0.95 - (2 * size - 1) + 1e-9))


# %% [markdown]
# **2. Implement.** The normalised surface distance at a tolerance: the share of the pooled surface that lies within
# `tolerance_mm` of the other surface. It has no jumps. Use what this chapter exports.

# %%
def check_surface_dice(f):
    assert f(truth, truth, spacing_mm, 0.1) == 1 and f(moved, truth, spacing_mm, 1.01 * spacing_mm[2]) == 1
    shares = [f(with_specks(n), truth, spacing_mm, 2.0) for n in (0, 100, 200)]
    border = surface(truth).sum()
    np.testing.assert_allclose(shares, [2 * border / (2 * border + n) for n in (0, 100, 200)])

def surface_dice(prediction, reference, spacing_mm, tolerance_mm):
    ...  # your code here

def surface_dice_solution(prediction, reference, spacing_mm, tolerance_mm):
    pool = np.concatenate(tree_distances(surface(prediction), surface(reference), np.array(spacing_mm)))
    return (pool <= tolerance_mm).mean()

exercise(check_surface_dice, surface_dice, surface_dice_solution)


# %% [markdown]
# **3. Break.** Return two boolean masks of 64 × 64 pixels, 1 mm each, with DSC above 0.9 and HD95 above 40 mm.

# %%
def check_deceived(f):
    prediction, reference = f()
    assert prediction.shape == reference.shape == (64, 64)
    assert dice(prediction, reference) > 0.9 and hd95(prediction, reference, (1, 1)) > 40

def deceive():
    return np.ones((64, 64), bool), np.ones((64, 64), bool)  # your masks here

def deceive_solution():
    prediction, reference = np.zeros((2, 64, 64), bool)
    prediction[:20, :20] = reference[:20, :20] = True
    prediction[60, ::4] = True
    return prediction, reference

exercise(check_deceived, deceive, deceive_solution)


# %% [markdown]
# **4. Implement.** `scores` is [volumes, classes]. Return mean and standard deviation of the Avg column.

# %%
def check_average(f):
    scores = np.array([[0.9, 0.7], [0.5, 0.9]])
    np.testing.assert_allclose(f(scores), (0.75, 0.05))

def average(scores):
    ...  # your code here

exercise(check_average, average, solution=lambda scores: (scores.mean(), scores.mean(axis=1).std()))

# %% [markdown]
# ## Recap
#
# `dice` and `hd95` score two boolean masks, `score_case` the classes of a volume under a named policy for empty masks;
# `summarise` and `format_table` make the table. Surprising: a speck counts by its surface, HD95 jumps where one would
# expect it to grow, and a difference of a hundred millimetres may come from a convention alone.
# [The next chapter](56_run.ipynb) runs a whole experiment and scores it.
