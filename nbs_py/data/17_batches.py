# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Batches
#
# > All slices of a data set in two flat tensors, and one index map that resizes, turns, flips and rotates a batch.
#
# Training takes 60,000 steps, and each wants twelve slices, freshly turned and resized. A loader moves every picture
# three times, on the CPU, one after the other. **Can a whole batch be augmented without moving a picture more than
# once, and come out the same to the last pixel?**

# %%
#| default_exp data.batches

# %%
#| export
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import cosdg, sindg
from torch import Tensor
from torch.nn import functional as F

from attenscribble.data.scans import Case, DataError

# %%
import itertools
from types import SimpleNamespace

from ipywidgets import interact
from scipy import ndimage

from attenscribble.book import class_legend, class_rgba, cost, draw, exercise, panels
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom

heart = phantom(patients=1, seed=0)
case = next(heart.cases())
middle = len(case.image) // 2
image, scribble, label = (volume[middle] for volume in (case.image, case.scribble, case.label))
IGNORE, NAMES = heart.ignore, heart.class_names
image.shape


# %% [markdown]
# ## The slow way moves pictures
#
# The released loader (Yang et al., on top of WSL4MIS) tosses a coin: heads, some quarter turns and then a flip; tails
# and heads, a rotation by a whole number of degrees; else nothing. Then it resizes to a square. Everything is nearest
# neighbour, the image too. In SciPy:

# %%
def augment_slow(plane, turns, flip, angle, size, fill):
    plane = np.rot90(plane, turns)
    plane = np.flip(plane, flip) if flip >= 0 else plane
    plane = ndimage.rotate(plane, angle, order=0, reshape=False, cval=fill) if angle else plane
    return ndimage.zoom(plane, (size / plane.shape[0], size / plane.shape[1]), order=0)


# %% [markdown]
# A rotation brings in pixels from outside the scan. The image gets 0 there. A target that has unannotated pixels gets
# the value for "unannotated", so the loss ignores the margin; a dense label gets 0 and calls it background. Dashed:
# the border of the scan. Light gray: unannotated.

# %%
def plot_draw(axes, turns, flip, angle, size=96):
    inside = augment_slow(np.ones(image.shape), turns, flip, angle, size, 0)
    draw(axes[0], augment_slow(image, turns, flip, angle, size, 0), title=f"turns {turns}, flip {flip}, {angle}°")
    for axis, target, fill in ((axes[1], scribble, IGNORE), (axes[2], label, 0)):
        drawn = augment_slow(target, turns, flip, angle, size, fill)
        axis.imshow(np.full((size, size), 0.8), cmap="gray", vmin=0, vmax=1)
        axis.imshow(class_rgba(drawn, IGNORE, background=True), interpolation="nearest")
        if not inside.all():
            axis.contour(inside, [0.5], colors="black", linestyles="dashed", linewidths=1)


DRAWS = [(0, -1, 0), (1, 0, 0), (2, 1, 0), (0, -1, -20), (0, -1, 12)]
figure, axes = panels(3 * len(DRAWS), columns=len(DRAWS), size=1.9)
for axis, name in zip(axes[::len(DRAWS)], ("image", "scribble", "dense label"), strict=True):
    axis.text(-0.06, 0.5, name, rotation=90, ha="right", va="center", fontsize=9, transform=axis.transAxes)
for column, one in enumerate(DRAWS):
    plot_draw(axes[column::len(DRAWS)], *one)
class_legend(figure, NAMES, background=True)


# %% [markdown]
# ## The equation, backwards
#
# Ask where pixel $(i,j)$ of the result comes from. Undo the resize ($S$ pixels from $n$), undo the rotation about the
# middle $m$, undo turn and flip:
#
# $$y=\left\lfloor\tfrac{i(n-1)}{S-1}+\tfrac12\right\rfloor\qquad
# \binom rc=\left\lfloor m+\begin{pmatrix}\cos\theta&\sin\theta\\-\sin\theta&\cos\theta\end{pmatrix}
# \left(\binom yx-m\right)+\tfrac12\right\rfloor$$
#
# $$\text{position}=\text{start}+\text{down}\cdot r+\text{right}\cdot c$$
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $S$ | `size` | one number | pixels |
# | $n$ | `rows`, `columns` | [N] | pixels, after the quarter turns |
# | $y,x$ | `y`, `x` | [N,S] | pixels of the rotated slice |
# | $\theta$ | `angle` | [N] | degrees |
# | $r,c$ | `row`, `column` | [N,S,S] | pixels before the rotation |
# | – | `inside` | [N,S,S] | yes or no: $0\le r,c\le n-1$ before rounding |
# | start, down, right | the same | [N] | pixels of the native slice |
# | position | `position` | [N,S,S] | pixels from the slice's first one |

# %% [markdown]
# The last line holds the trick. `np.rot90` and `np.flip` move nothing either: they return the same memory with other
# strides. Three numbers per slice say it all. One pixel at a time, with −1 for "outside":

# %%
def position_naive(height, width, size, turns, flip, angle):
    number = np.arange(height * width).reshape(height, width)
    number = np.rot90(number, turns)
    number = np.flip(number, flip) if flip >= 0 else number
    rows, columns = number.shape
    found = np.full((size, size), -1)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    for i, j in itertools.product(range(size), repeat=2):
        y = np.floor(i * (rows - 1) / (size - 1) + 0.5) - (rows - 1) / 2
        x = np.floor(j * (columns - 1) / (size - 1) + 0.5) - (columns - 1) / 2
        r, c = (rows - 1) / 2 + cos * y + sin * x, (columns - 1) / 2 - sin * y + cos * x
        if 0 <= r <= rows - 1 and 0 <= c <= columns - 1:
            found[i, j] = number[int(r + 0.5), int(c + 0.5)]
    return found


# %% [markdown]
# **By hand.** Number the pixels of a 2×2 slice 0 1 / 2 3. A quarter turn anticlockwise gives 1 3 / 0 2: it starts at 1,
# one step down is −1, one to the right +2. From 3 pixels to 5: $\lfloor i\cdot2/4+\frac12\rfloor=0,1,1,2,2$; the ties
# at ½ and 1½ go up.

# %%
assert position_naive(2, 2, 2, turns=1, flip=-1, angle=0).tolist() == [[1, 3], [0, 2]]
assert position_naive(3, 3, 5, 0, -1, 0)[0].tolist() == [0, 1, 1, 2, 2]
quarter = np.rot90(np.arange(2 * 2, dtype=np.int8).reshape(2, 2))
assert (quarter[0, 0], *quarter.strides) == (1, -1, 2)

# %% [markdown]
# **What breaks.** The loop visits pixels one by one: seconds for a batch at 256². And SciPy itself can slip: it
# multiplies in floating point, so the last coordinate may land a hair outside, and a whole row is filled with 0. Whole
# numbers cannot.

# %%
assert 95 * (209 / 95) > 209
zoomed = ndimage.zoom(np.ones((210, 210)), 96 / 210, order=0)
assert not zoomed[-1].any() and zoomed[:-1, :-1].all()


# %% [markdown]
# The released code resizes to 256, where this does not happen up to a length of 700; at 96 it happens for 38
# lengths below that.
#
# ## The fast way composes maps
#
# First what chance decides, as data: three numbers per slice.

# %%
#| export
@dataclass(eq=False)
class Draw:
    "What chance chose for each slice of a batch: quarter turns, then a flip, then a rotation. Identity is 0, -1, 0."

    turns: Tensor  # [N] int64, 0..3 quarter turns anticlockwise, as `np.rot90`
    flip: Tensor  # [N] int64, the array axis reversed, 0 or 1; -1 for none
    angle: Tensor  # [N] float64, degrees, the sign of `scipy.ndimage.rotate`: positive is anticlockwise

    def __post_init__(self) -> None:
        sizes = [tuple(x.shape) for x in (self.turns, self.flip, self.angle)]
        if len(set(sizes)) != 1 or len(sizes[0]) != 1:
            raise ValueError(f"Draw: turns, flip and angle have shapes {sizes}, expected one shape [N] for all")

    def __len__(self) -> int:
        return len(self.turns)


AUGMENTATIONS = ("acdc", "chaos", "none")


def draw_augmentation(
    count: int,  # slices in the batch
    kind: str,  # "acdc", "chaos" or "none"
    generator: torch.Generator,  # on the CPU, so that a run repeats on any device
) -> Draw:  # `count` independent draws
    """Draw an augmentation per slice, with the probabilities of the released loaders.

    "acdc": ½ random quarter turns, then a flip on a random axis; ¼ a rotation by −20..19 whole degrees; ¼ nothing.
    "chaos": ¼ the rotation, ¾ nothing, because a flip or a quarter turn would swap left and right kidney. "none":
    nothing, and the generator is left alone. The other two kinds consume the same numbers whatever the outcome.
    Raises ValueError on another kind."""
    if kind not in AUGMENTATIONS:
        raise ValueError(f"kind: found {kind!r}, expected one of {', '.join(AUGMENTATIONS)}")
    still = torch.zeros(count, dtype=torch.int64)
    if kind == "none":
        return Draw(turns=still, flip=still - 1, angle=still.double())
    coins = torch.rand(2, count, generator=generator) < 0.5
    turns = torch.randint(4, (count,), generator=generator)
    axis = torch.randint(2, (count,), generator=generator)
    angle = torch.randint(-20, 20, (count,), generator=generator)
    turned, rotated = coins[0], ~coins[0] & coins[1]
    if kind == "chaos":
        turned = torch.zeros_like(turned)
    return Draw(turns.where(turned, 0), axis.where(turned, -1), angle.where(rotated, 0).double())


# %% [markdown]
# How often each? The counts agree with ½, ¼, ¼. One thing may surprise: since a flip always follows the turns, half of
# all slices are mirror images, and none is merely turned. Eight draws, four pictures.

# %%
chance = draw_augmentation(100_000, "acdc", torch.Generator().manual_seed(0))
flipped = (chance.flip >= 0).double().mean()
rotated = (chance.angle != 0).double().mean() * 40 / 39  # one rotation in 40 is by 0 degrees
assert abs(flipped - 0.5) < 0.01 and abs(rotated - 0.25) < 0.01
pictures = {position_naive(3, 3, 3, turns, flip, 0).tobytes() for turns in range(4) for flip in (0, 1)}
turned_only = {position_naive(3, 3, 3, turns, -1, 0).tobytes() for turns in range(4)}
assert len(pictures) == 4 and not pictures & turned_only


# %% [markdown]
# **Resize** is whole numbers only, once the fraction is multiplied out. **Turn and flip:** a row of `choices` per number of quarter turns; a flip walks the other way from the far end.

# %%
#| export
def resize_index(
    length: Tensor,  # [N] int64, pixels along one axis before the resize
    size: int,  # pixels after it
) -> Tensor:  # [N,size] int64, the source pixel of every pixel
    """Nearest source pixel of a corner-aligned resize, ⌊i(n−1)/(size−1)+½⌋: what `scipy.ndimage.zoom` of order 0 does.

    Whole-number arithmetic, so ties round up and the last pixel is never lost. A size of 1 reads pixel 0."""
    steps = max(size - 1, 1)
    pixel = torch.arange(size, device=length.device)
    return (2 * pixel * (length[:, None] - 1) + steps) // (2 * steps)


def strides(
    turns: Tensor,  # [N] int64, 0..3
    flip: Tensor,  # [N] int64, -1, 0 or 1
    height: Tensor,  # [N] int64, rows of the native slice
    width: Tensor,  # [N] int64, columns of the native slice
) -> tuple[Tensor, Tensor, Tensor]:  # start, down, right: each [N] int64
    """Quarter turns and a flip as strides: pixel (y,x) of the turned slice lies at start + down·y + right·x.

    The position counts from the slice's first pixel in row-major order; no pixel moves."""
    odd = turns % 2 == 1
    down = torch.stack([width, -torch.ones_like(width), -width, torch.ones_like(width)])
    right = torch.stack([torch.ones_like(width), width, -torch.ones_like(width), -width])
    start = torch.stack([torch.zeros_like(width), width - 1, height * width - 1, (height - 1) * width])
    start, down, right = (choices.gather(0, turns[None])[0] for choices in (start, down, right))
    rows, columns = torch.where(odd, width, height), torch.where(odd, height, width)
    start = start + torch.where(flip == 0, (rows - 1) * down, 0) + torch.where(flip == 1, (columns - 1) * right, 0)
    return start, torch.where(flip == 0, -down, down), torch.where(flip == 1, -right, right)


# %% [markdown]
# **Rotation.** The only step with fractions. The sum splits into a part of the row and a part of the column, so sine and
# cosine meet vectors, and each coordinate costs one addition per pixel. Then **all of it**, for slices of different sizes, without a loop.

# %%
#| export
def rotate_back(
    y: Tensor,  # [N,S] int64, rows of the rotated slice to look up
    x: Tensor,  # [N,S] int64, its columns
    angle: Tensor,  # [N] float64, degrees
    rows: Tensor,  # [N] int64, height of the slice
    columns: Tensor,  # [N] int64, its width
) -> tuple[Tensor, Tensor, Tensor]:  # [N,S,S]: row and column before the rotation (int64), and inside (bool)
    """Where the pixels of a rotated slice come from: `scipy.ndimage.rotate` of order 0 with `reshape=False`.

    The sums are those of SciPy, in its order and in float64. A coordinate outside [0, n−1], tested before rounding, is
    not inside; its row and column are meaningless."""
    degrees = angle.cpu().double().numpy()
    cos, sin = (torch.from_numpy(np.asarray(f(degrees))).to(y.device)[:, None] for f in (cosdg, sindg))
    middle_y, middle_x = (rows[:, None] - 1).double() / 2, (columns[:, None] - 1).double() / 2
    shift_y = middle_y - (cos * middle_y + sin * middle_x)
    shift_x = middle_x - (cos * middle_x - sin * middle_y)
    row = (shift_y + cos * y)[:, :, None] + (sin * x)[:, None, :]
    column = (shift_x - sin * y)[:, :, None] + (cos * x)[:, None, :]
    last_row, last_column = (rows - 1)[:, None, None], (columns - 1)[:, None, None]
    inside = (row >= 0) & (row <= last_row) & (column >= 0) & (column <= last_column)
    return (row + 0.5).long(), (column + 0.5).long(), inside


# %%
#| export
def index_map(
    height: Tensor,  # [N] int64, rows of the native slices
    width: Tensor,  # [N] int64, their columns
    size: int,  # side of the result in pixels
    draw: Draw | None = None,  # None: only the resize
) -> tuple[Tensor, Tensor | None]:  # position [N,size,size] int64; inside [N,size,size] bool, None where all are
    """The native pixel behind every pixel of an augmented, resized batch: three maps composed, no image touched.

    Backwards, as a pixel is looked up: resize, rotation, then flip and quarter turns. `position` counts from the
    slice's first pixel; where `inside` is False the value is 0 and the pixel is to be filled."""
    if draw is None:
        draw = draw_augmentation(len(height), "none", torch.default_generator)
    turns, flip = draw.turns.to(height.device), draw.flip.to(height.device)
    odd = turns % 2 == 1
    rows, columns = torch.where(odd, width, height), torch.where(odd, height, width)
    start, down, right = (step[:, None, None] for step in strides(turns, flip, height, width))
    y, x = resize_index(rows, size), resize_index(columns, size)
    position = start + down * y[:, :, None] + right * x[:, None, :]
    some = draw.angle.nonzero()[:, 0].to(height.device)  # the slices that are rotated
    if not len(some):
        return position, None
    row, column, within = rotate_back(y[some], x[some], draw.angle[draw.angle != 0], rows[some], columns[some])
    inside = torch.ones_like(position, dtype=torch.bool)
    inside[some] = within
    position[some] = (start[some] + down[some] * row + right[some] * column).where(within, 0)
    return position, inside


# %% [markdown]
# ## Equal, pixel for pixel
#
# Against the loop above on small slices, and against SciPy for every angle and random sizes, none of them square.

# %%
def as_batch(draws):
    turns, flip, angle = (torch.tensor(column) for column in zip(*draws, strict=True))
    return Draw(turns, flip, angle.double())


every = [(turns, flip, angle) for turns in range(4) for flip in (-1, 0, 1) for angle in (0, -20, 7)]
position, inside = index_map(torch.full((36,), 5), torch.full((36,), 8), 8, as_batch(every))
for ours, known, one in zip(position, inside, every, strict=True):
    np.testing.assert_array_equal(np.where(known, ours, -1), position_naive(5, 8, 8, *one))

# %%
rng = np.random.default_rng(0)
wrong = pixels = 0
for angle in range(-20, 20):
    height, width = rng.integers(20, 300, 2)
    noise, turns, flip = rng.random((height, width)), int(rng.integers(4)), int(rng.integers(-1, 2))
    position, inside = index_map(*torch.tensor([[height], [width]]), 128, as_batch([(turns, flip, angle)]))
    ours = noise.ravel()[position[0]] * (True if inside is None else inside[0].numpy())
    wrong += (ours != augment_slow(noise, turns, flip, angle, 128, 0)).sum()
    pixels += ours.size
assert wrong == 0, f"{wrong} of {pixels} pixels"
print(f"{pixels} pixels, {wrong} differ")


# %% [markdown]
# What is composed are maps. Colour says where a pixel comes from: red grows with its row, blue with its
# column, gray is outside. Each step rearranges a map; only the last panel touches the image.

# %%
def plot_map(axis, position, inside, shape, title):
    row, column = np.divmod(np.asarray(position), shape[1])
    colour = np.stack([row / (shape[0] - 1), np.full(row.shape, 0.35), column / (shape[1] - 1)], -1)
    axis.imshow(np.where(np.asarray(inside)[..., None], colour, 0.75), interpolation="nearest")
    axis.set_title(title, fontsize=9)


def map_of(size, one):
    position, inside = index_map(*torch.tensor([[image.shape[0]], [image.shape[1]]]), size, as_batch([one]))
    return position[0].numpy(), np.ones((size, size), bool) if inside is None else inside[0].numpy()


# %%
figure, axes = panels(5, size=2.1)
native = np.arange(image.size).reshape(image.shape)
steps = [(native, np.ones(image.shape, bool)), *(map_of(40, one) for one in ((0, -1, 0), (3, 0, 0), (3, 0, -20)))]
titles = ["native {}×{}".format(*image.shape), "resized to 40×40", "after 3 turns, 1 flip", "and −20° of rotation"]
for axis, one, title in zip(axes, steps, titles, strict=False):
    plot_map(axis, *one, image.shape, title)
position, inside = steps[-1]
_ = draw(axes[-1], np.where(inside, image.ravel()[position], 0), title="one look-up in the image")


# %% [markdown]
# ## A store of slices
#
# Sizes differ from patient to patient, so slices cannot be stacked. They need not be: an index map leads to a position in
# a flat tensor just as well. A slice is where it starts, its height and its width.

# %%
#| export
@dataclass(eq=False)
class Batch:
    "Slices ready for a training step, on the store's device."

    image: Tensor  # [N,K,S,S] float32 in [0,1], K modalities, mostly one
    target: Tensor  # [N,S,S] int64, class id or `ignore`
    single_class: Tensor  # [N] bool, whether the unaugmented target holds at most one class
    index: Tensor  # [N] int64, the slice's number in the store
    ignore: int  # value of a pixel without target
    pseudo: Tensor | None = None  # [N,S,S] int64, class id or `ignore`: labels that somebody guessed, if any


class SliceStore:
    """All 2D slices of some cases, side by side on the training device: a flat tensor a modality, and one of targets.

    Five bytes a pixel, four more for each further modality; native sizes kept. With the target "scribble" a case's
    dense label is never looked at; with "label" no scribble is needed. Cases are read one at a time and not kept.
    Pseudo labels, one byte more, lie beside the targets once `set_pseudo` was called, and go through the same
    augmentation."""

    def __init__(
        self,
        cases: Iterable[Case],  # an iterator will do
        *,
        classes: int,  # K, the background included
        ignore: int,  # value of a pixel without target, 0..255, no class id
        target: str = "scribble",  # "scribble" or "label"
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises ValueError on another `target`, an `ignore` that is a class id or no uint8, and on no case at all;
        DataError, naming the case, on one without the target, with a value that is neither a class nor `ignore`, or
        with another number of modalities than the first."""
        if target not in ("scribble", "label"):
            raise ValueError(f"target: found {target!r}, expected 'scribble' or 'label'")
        if not classes <= ignore <= 255:
            raise ValueError(f"ignore: found {ignore}, expected a value in {classes}..255, above the class ids")
        self.classes, self.ignore, self.target = classes, ignore, target
        self.device = torch.device(device)
        images, targets = [], bytearray()  # they grow in place: no second copy, even for a moment
        names, shapes, present = [], [], []
        for case in cases:
            volume = getattr(case, target)  # the other one is not touched
            if volume is None:
                raise DataError(f"{case.name}: {target}", "none", "one in every case")
            present.append(_present(volume, f"{case.name}: {target}", classes, ignore))
            planes = case.image.swapaxes(0, 1) if case.image.ndim == 4 else case.image[None]  # [K,Z,Y,X]
            images = images or [bytearray() for _ in planes]
            if len(planes) != len(images):
                raise DataError(f"{case.name}: image", f"{len(planes)} modalities", f"{len(images)}, as in {names[0]}")
            for flat, plane in zip(images, planes, strict=True):
                flat += plane.tobytes()
            targets += volume.tobytes()
            names += [f"{case.name}_slice_{z}" for z in range(len(case.image))]
            shapes += [case.image.shape[-2:]] * len(case.image)
        if not names:
            raise ValueError("cases: found none, expected at least one")
        self.names = tuple(names)
        self._images = [torch.frombuffer(flat, dtype=torch.float32).to(self.device) for flat in images]
        self._targets = torch.frombuffer(targets, dtype=torch.uint8).to(self.device)
        self._describe(np.array(shapes), np.concatenate(present))

    def _describe(self, shapes: np.ndarray, present: np.ndarray) -> None:
        "Tables with a row per slice: where it starts, its size, its fill value, and whether it holds one class only."
        # Apple's GPUs have no float64, so there the maps are made on the CPU
        maps = torch.device("cpu") if self.device.type == "mps" else self.device
        height, width = torch.from_numpy(shapes.T.astype(np.int64)).to(maps)
        self._height, self._width = height, width
        self._start = (height * width).cumsum(0) - height * width
        self.single_class = torch.from_numpy(present[:, : self.classes].sum(1) <= 1).to(self.device)
        fill = np.where(present[:, self.ignore], self.ignore, 0).astype(np.uint8)
        self._fill = torch.from_numpy(fill).to(self.device)
        self._pseudo: Tensor | None = None
        self._pseudo_fill = self._fill

    def __len__(self) -> int:
        return len(self.names)

    @property
    def nbytes(self) -> int:
        "Bytes of all images and targets."
        return sum(flat.nbytes for flat in (*self._images, self._targets))

    @property
    def pixels(self) -> int:
        "Pixels of all slices together: the length of what `set_pseudo` takes."
        return self._targets.numel()

    def span(
        self,
        number: int,  # of a slice
    ) -> tuple[slice, tuple[int, int]]:  # its place among all pixels, and its (height, width)
        "Where a slice lies in a flat tensor over all pixels, row by row."
        start, height, width = (int(table[number]) for table in (self._start, self._height, self._width))
        return slice(start, start + height * width), (height, width)

    def native(
        self,
        number: int,  # of a slice
    ) -> tuple[Tensor, Tensor]:  # image [Y,X] float32, of several modalities [K,Y,X]; target [Y,X] uint8
        "One slice as it was read, on the store's device."
        place, shape = self.span(number)
        planes = [flat[place].view(shape) for flat in self._images]
        return planes[0] if len(planes) == 1 else torch.stack(planes), self._targets[place].view(shape)

    def drawn(self) -> Tensor:
        "[pixels] bool: where the target holds a class."
        return self._targets != self.ignore

    def set_pseudo(
        self,
        labels: Tensor,  # [pixels] uint8, class id or `ignore`, slice after slice, row by row
        fill: int | None = None,  # what a rotation brings in; None: `ignore` where the slice's labels have one, else 0
    ) -> None:
        "Lay pseudo labels beside the targets; batches carry them from now on. Raises ValueError for another shape."
        if labels.shape != self._targets.shape or labels.dtype != torch.uint8:
            raise ValueError(f"labels: found {labels.dtype} {tuple(labels.shape)}, expected uint8 ({self.pixels},)")
        self._pseudo = labels.to(self.device)
        if fill is not None:
            self._pseudo_fill = torch.full_like(self._fill, fill)
            return
        unsure = (self._pseudo == self.ignore).cumsum(0, dtype=torch.int32)
        last = (self._start + self._height * self._width - 1).to(self.device)
        ends = unsure[last]
        some = torch.diff(ends, prepend=ends.new_zeros(1)) > 0
        self._pseudo_fill = torch.where(some, self.ignore, 0).to(torch.uint8)

    def batch(
        self,
        index: Tensor,  # [N] int64, slices by number
        size: int,  # S, side of the result in pixels; the aspect ratio is not kept
        draw: Draw | None = None,  # one draw per slice; None: no augmentation
    ) -> Batch:  # new tensors on the store's device
        """Some slices, augmented and then resized to S×S, both by nearest neighbour, in one gather.

        Pixels that a rotation brings in from outside are 0 in the image, and in the target `ignore` where the slice
        has any unannotated pixel, else 0. Raises ValueError on an index out of range or a draw of another length."""
        index = self._checked(index, size, draw)
        rows = index.to(self._start.device)
        position, inside = index_map(self._height[rows], self._width[rows], size, draw)
        position += self._start[rows, None, None]
        pixels = position.flatten().to(self.device)
        index = index.to(self.device)
        inside = None if inside is None else inside.to(self.device)

        def gather(flat: Tensor, fill: Tensor | int) -> Tensor:
            # index_select on flat tensors is several times faster than indexing with [N,S,S]
            found = flat.index_select(0, pixels).view(position.shape)
            return found if inside is None else found.where(inside, fill)

        planes = [gather(flat, 0) for flat in self._images]
        target = gather(self._targets, self._fill[index, None, None])
        pseudo = None
        if self._pseudo is not None:
            pseudo = gather(self._pseudo, self._pseudo_fill[index, None, None]).long()
        image = planes[0][:, None] if len(planes) == 1 else torch.stack(planes, 1)
        return Batch(image, target.long(), self.single_class[index], index, self.ignore, pseudo)

    def _checked(self, index: Tensor, size: int, draw: Draw | None) -> Tensor:
        "The index as an int64 vector, once all arguments of `batch` are known to fit."
        index = torch.as_tensor(index)
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool or not len(index):
            raise ValueError(f"index: found {index.dtype} {tuple(index.shape)}, expected int64 [N] with N ≥ 1")
        if index.min() < 0 or index.max() >= len(self):
            raise ValueError(f"index: found {int(index.min())}..{int(index.max())}, expected 0..{len(self) - 1}")
        if size < 1:
            raise ValueError(f"size: found {size}, expected at least 1")
        if draw is not None and len(draw) != len(index):
            raise ValueError(f"draw: found {len(draw)} draws, expected {len(index)}, one per slice")
        return index.long()


def _present(volume: np.ndarray, where: str, classes: int, ignore: int) -> np.ndarray:
    "[Z,256] bool: the values each slice of a target holds. Raises DataError on one that means nothing."
    present = np.stack([np.bincount(plane.ravel(), minlength=256) > 0 for plane in volume])
    values = np.flatnonzero(present.any(0))
    unknown = values[(values >= classes) & (values != ignore)]
    if unknown.size:
        raise DataError(where, f"the values {unknown.tolist()}", f"0..{classes - 1}, or {ignore} where there is none")
    return present


# %% [markdown]
# The store looks at one kind of target only. A store of scribbles is given cases whose dense labels are nonsense, and
# never notices; a store of labels refuses a case without one.

# %%
poisoned = [SimpleNamespace(name=c.name, image=c.image, scribble=c.scribble, label="never read") for c in heart.cases()]
store = SliceStore(poisoned, classes=len(NAMES), ignore=IGNORE)
assert store.nbytes == 5 * sum(c.image.size for c in poisoned)
batch = store.batch(torch.tensor([middle, 0]), 64, as_batch([(3, 0, -20), (0, -1, 0)]))
expected = augment_slow(case.scribble[middle], 3, 0, -20, 64, IGNORE)
np.testing.assert_array_equal(batch.target[0], expected)
try:
    SliceStore([SimpleNamespace(name="patient007_frame01", image=image[None], label=None)], classes=4, ignore=4,
               target="label")
    raise RuntimeError("a case without a label went through")
except DataError as error:
    print(error)

# %% [markdown]
# `single_class` marks slices whose target shows at most one class; the attention loss later leaves them out. The
# released code reads it off the dense label, which a scribble-supervised method does not have; here it comes from the
# target itself.
#
# **What does it cost?** Memory: 5 bytes a pixel. All of ACDC has 102 million pixels in 1902 slices: 510 MB, on the
# training device, once. Time, for a batch of 12 at 256² on one core; on a GPU the map is made there too, and no worker is needed:

# %%
noise = rng.random((12, 240, 210), np.float32), rng.integers(0, 5, (12, 240, 210)).astype(np.uint8)
twelve = draw_augmentation(12, "acdc", torch.Generator().manual_seed(0))
draws = list(zip(twelve.turns.tolist(), twelve.flip.tolist(), twelve.angle.tolist(), strict=True))
twelve_slices = SliceStore([SimpleNamespace(name="noise", image=noise[0], scribble=noise[1])], classes=4, ignore=4)


def all_slow():
    return [augment_slow(volume[n], *draws[n], 256, fill) for volume, fill in zip(noise, (0, 4), strict=True)
            for n in range(12)]


fast, slow = cost(lambda: twelve_slices.batch(torch.arange(12), 256, twelve)), cost(all_slow)
print(f"one map: {fast}\nSciPy:   {slow}\nratio {slow.seconds / fast.seconds:.1f}")


# %% [markdown]
# ## Epochs
#
# Which slices, in which order? Each epoch is a new permutation, and the last batch may be smaller. A run that was
# stopped continues by skipping what it has had.

# %%
#| export
def batches(
    count: int,  # slices in the store
    batch_size: int,
    generator: torch.Generator,  # on the CPU, and used for nothing else if the run is to be resumed
) -> Iterator[Tensor]:  # int64 [≤ batch_size] slice numbers, without end
    """Slice numbers for training, epoch after epoch, each in a fresh random order.

    The last batch of an epoch is kept although it may be smaller, as in the released code: 1512 slices in batches of 12
    are 126 steps. With a generator of its own, `islice(batches(…), step, None)` continues a run after `step` steps.
    Raises ValueError on a count or size below 1."""
    if count < 1 or batch_size < 1:
        raise ValueError(f"count, batch_size: found {count}, {batch_size}, expected at least 1 for both")

    def epochs() -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(count, generator=generator).split(batch_size)

    return epochs()


# %%
stream = batches(1512, 12, torch.Generator().manual_seed(2022))
epoch = list(itertools.islice(stream, 126))
assert torch.equal(torch.cat(epoch).sort().values, torch.arange(1512))
resumed = itertools.islice(batches(1512, 12, torch.Generator().manual_seed(2022)), 126, None)
assert torch.equal(next(resumed), next(stream))
assert [len(index) for index in itertools.islice(batches(10, 4, torch.Generator()), 4)] == [4, 4, 2, 4]


# %% [markdown]
# ## There and back at test time
#
# At test time the released code does otherwise: the image goes in **bilinear**, pixel centres aligned, and the mask comes
# back by nearest neighbour.

# %%
#| export
def resize_image(
    image: Tensor,  # [...,Y,X] floating point
    size: int | tuple[int, int],  # side of the result, or (rows, columns)
) -> Tensor:  # [...,*size], same dtype
    """Resize for testing: bilinear, pixel centres aligned (`align_corners=False`), as the released evaluation.

    Raises TypeError on integers."""
    if not image.is_floating_point():
        raise TypeError(f"image: found {image.dtype}, expected a floating-point tensor")
    planes = image.reshape(-1, 1, *image.shape[-2:])
    shape = (size, size) if isinstance(size, int) else size
    resized = F.interpolate(planes, shape, mode="bilinear", align_corners=False)
    return resized.reshape(*image.shape[:-2], *resized.shape[-2:])


def resize_labels(
    labels: Tensor,  # [...,Y,X] class ids, any dtype
    size: int | tuple[int, int],  # (rows, columns) of the native slice, or a side
    mode: str = "nearest-exact",  # "nearest-exact" or, as in the released evaluation, "nearest"
) -> Tensor:  # [...,*size], same dtype
    """Resize class ids by nearest neighbour, to bring a prediction back to the slice's own pixels.

    "nearest-exact" reads the pixel under the centre, ⌊(i+½)n/size⌋, the inverse of `resize_image`. "nearest" reads
    ⌊i·n/size⌋, which moves a mask by about half a pixel down and right. Raises ValueError on another mode."""
    if mode not in ("nearest-exact", "nearest"):
        raise ValueError(f"mode: found {mode!r}, expected 'nearest-exact' or 'nearest'")
    centre = 1 if mode == "nearest-exact" else 0
    rows, columns = (
        (2 * torch.arange(after, device=labels.device) + centre) * before // (2 * after)
        for before, after in zip(labels.shape[-2:], (size, size) if isinstance(size, int) else size, strict=True)
    )
    return labels[..., rows[:, None], columns]


# %% [markdown]
# So the network is tested on pictures smoother than those it was trained on, and up to half a pixel shifted: corners
# aligned there, centres here. Right: test minus train, zero is white.

# %%
train = store.batch(torch.tensor([middle]), 256).image[0, 0].numpy()
test = resize_image(torch.from_numpy(case.image[middle]), 256).numpy()
zoom = np.s_[96:160, 60:124]
figure, (left, centre, right) = panels(3)
draw(left, train[zoom], title="training: nearest")
draw(centre, test[zoom], title="test: bilinear")
shown = right.imshow((test - train)[zoom], cmap="RdBu_r", vmin=-0.5, vmax=0.5)
right.set_title("difference", fontsize=9)
_ = figure.colorbar(shown, ax=right, shrink=0.8, label="intensity, range [0, 1]")


# %% [markdown]
# The way back has a trap of its own. "nearest" in PyTorch reads source pixel $\lfloor i\,n/S\rfloor$, the one under the
# pixel's *corner*; the centre is at $\lfloor(i+\frac12)n/S\rfloor$, which PyTorch calls "nearest-exact". The corner moves
# a mask half a pixel down and right. Feed back a perfect prediction, and see what each makes of it.

# %%
def there_and_back(labels, mode, size=256):
    one_hot = F.one_hot(torch.from_numpy(labels).long(), len(NAMES)).movedim(-1, -3).float()
    perfect = resize_image(one_hot, size).argmax(-3)
    return resize_labels(perfect, labels.shape[-2:], mode).numpy()


def overlap(one, other, class_id):
    return 2 * ((one == class_id) & (other == class_id)).sum() / ((one == class_id).sum() + (other == class_id).sum())


figure, axes = panels(2, size=2.8)
for axis, mode in zip(axes, ("nearest", "nearest-exact"), strict=True):
    back = there_and_back(label, mode)
    shares = ", ".join(f"{name} {overlap(back, label, k):.2f}" for k, name in enumerate(NAMES) if k)
    error = np.where(back != label, 0, 1.0)
    draw(axis, 0.1 + 0.7 * error, outline=label, title=f"{mode}: DSC\n{shares}")
    axis.set_xlim(*(np.flatnonzero(label.any(0))[[0, -1]] + (-4, 4)))
    axis.set_ylim(*(np.flatnonzero(label.any(1))[[-1, 0]] + (4, -4)))
class_legend(figure, NAMES)

# %% [markdown]
# Dark: pixels that came back wrong. Our default is therefore "nearest-exact"; "nearest" is there to repeat the
# released evaluation.
#
# ## On real scans
#
# ACDC, the first five patients, all frames and slices: the DSC that a *perfect* prediction at 256² can reach.

# %%
try:
    acdc = open_dataset("acdc")
    labels = [c.label for c in acdc.cases(acdc.patients[:5])]
except (ValueError, OSError) as error:
    print(f"skipped, no ACDC here: {error}")
else:
    for mode in ("nearest", "nearest-exact"):
        scores = np.array([[overlap(there_and_back(one, mode), one, k) for k in (1, 2, 3)] for one in labels])
        print(f"{mode:14}", dict(zip(NAMES[1:], scores.mean(0).round(3).tolist(), strict=True)))


# %% [markdown]
# The released way back costs the thin myocardium about four points of DSC before the network has made a single error.
# This is a ceiling for masks that are right: a network whose mistakes lean the other way would lose less.
#
# ## Turn it yourself
#
# `plot_angle` rotates the phantom and counts the pixels that became unannotated. First four angles, then yours.

# %%
def plot_angle(axis, angle, size=96):
    position, inside = map_of(size, (0, -1, angle))
    picture = np.where(inside, image.ravel()[position], 0)
    drawn = np.where(inside, scribble.ravel()[position], IGNORE)
    draw(axis, picture, scribble=drawn, ignore=IGNORE, title=f"{angle}°: {1 - inside.mean():.1%} outside")
    axis.imshow(np.where(inside[..., None], (0, 0, 0, 0), (0.8, 0.8, 0.8, 1)), interpolation="nearest")


figure, axes = panels(4, size=2.1)
for axis, angle in zip(axes, (-20, -7, 0, 19), strict=True):
    plot_angle(axis, angle)
interact(lambda angle=12: plot_angle(panels(1, size=3)[1][0], angle), angle=(-20, 19, 1));


# %% [markdown]
# ## Exercises
#
# **1. Predict.** How many steps has an epoch?

# %%
def check_steps(steps):
    assert steps(1512, 12) == 126 and steps(10, 4) == 3 and steps(3, 8) == 1

def attempt_steps(count, batch_size):
    return count // batch_size  # your code here

exercise(check_steps, attempt_steps, solution=lambda count, batch_size: -(-count // batch_size))


# %% [markdown]
# **2. Implement.** A transpose is a stride trick too. Give start, down and right for `plane.T`.

# %%
def check_transpose(steps):
    start, down, right = steps(5, 7)
    y, x = np.mgrid[:7, :5]
    np.testing.assert_array_equal(start + down * y + right * x, np.arange(35).reshape(5, 7).T)

def attempt_transpose(height, width):
    return 0, width, 1  # your code here

exercise(check_transpose, attempt_transpose, solution=lambda height, width: (0, 1, width))


# %% [markdown]
# **3. Undo.** Which draw takes a slice that was turned and then flipped back to where it was? Try it on paper: what is a
# mirror image of a mirror image?

# %%
def check_undo(undo):
    plane = np.arange(9).reshape(3, 3)
    for turns, flip in itertools.product(range(4), (0, 1)):
        there = np.flip(np.rot90(plane, turns), flip)
        back_turns, back_flip = undo(turns, flip)
        np.testing.assert_array_equal(np.flip(np.rot90(there, back_turns), back_flip), plane)

def attempt_undo(turns, flip):
    return -turns % 4, flip  # your code here

exercise(check_undo, attempt_undo, solution=lambda turns, flip: (turns, flip))


# %% [markdown]
# **4. Break.** What goes wrong if the margin of a scribble is filled with 0? Count the pixels that a loss would then take
# for annotated background.

# %%
def check_margin(false_background):
    inside = ndimage.rotate(np.ones(scribble.shape), 12, order=0, reshape=False) > 0
    assert false_background(scribble, 12) == (~inside).sum() > 200

def attempt_margin(target, angle):
    return (ndimage.rotate(target, angle, order=0, reshape=False, cval=0) == 0).sum()  # your code here

def solve_margin(target, angle):
    zero, unknown = (ndimage.rotate(target, angle, order=0, reshape=False, cval=fill) for fill in (0, IGNORE))
    return (zero != unknown).sum()

exercise(check_margin, attempt_margin, solve_margin)

# %% [markdown]
# ## Recap
#
# `SliceStore` holds a data set flat, `batches` says which slices, `draw_augmentation` what happens to them, `batch` does it
# in one gather, equal to SciPy. `resize_image` and `resize_labels` serve testing. Two surprises: the released augmentation
# never turns without mirroring, and its way back costs DSC. Next: [the network](../method/20_network.ipynb).
