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
# Can a batch be augmented with one copy of each pixel, and equal the usual result to the last pixel? Training takes
# 60,000 steps of twelve slices each, freshly turned and resized, and the usual loader copies every slice three times,
# on the CPU, one after the other. This chapter computes for every pixel of a batch where it comes from, and then
# fetches all pixels at once.

# %%
#| default_exp data.batches

# %%
#| export
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import cosdg, sindg
from torch import Tensor
from torch.nn import functional as F

from attenscribble.basics.errors import DataError
from attenscribble.data.scans import Case

# %%
import itertools
from types import SimpleNamespace

from ipywidgets import interact
from scipy import ndimage

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import class_legend, class_rgba, draw, panels
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom

# %%
heart = phantom(patients=1, seed=0)
case = next(heart.cases())
middle = len(case.image) // 2
image, scribble, label = (volume[middle] for volume in (case.image, case.scribble, case.label))
IGNORE, NAMES = heart.ignore, heart.class_names
image.shape


# %% [markdown]
# ## The slow way moves images
#
# The released loader (Yang et al., on top of WSL4MIS) augments at random. In half of the cases it makes some quarter
# turns and then a flip, in a quarter it rotates by a whole number of degrees, and in the last quarter it does nothing.
# Then it resizes to a square. Everything is nearest neighbour, the image too. In SciPy:

# %%
def augment_slow(plane, turns, flip, angle, size, fill):
    plane = np.rot90(plane, turns)
    plane = np.flip(plane, flip) if flip >= 0 else plane
    plane = ndimage.rotate(plane, angle, order=0, reshape=False, cval=fill) if angle else plane
    return ndimage.zoom(plane, (size / plane.shape[0], size / plane.shape[1]), order=0)


# %% [markdown]
# A rotation brings in pixels from outside the scan. The image gets 0 there. A target that has unannotated pixels gets
# the value for "unannotated", so the loss ignores the margin; a dense label gets 0, which is background. Dashed: the
# border of the scan. Light gray: unannotated.

# %%
def plot_target(axis, target, one, size, fill):
    axis.imshow(np.full((size, size), 0.8), cmap="gray", vmin=0, vmax=1)
    drawn = augment_slow(target, *one, size, fill)
    axis.imshow(class_rgba(drawn, IGNORE, background=True), interpolation="nearest")
    inside = augment_slow(np.ones(image.shape), *one, size, 0)
    if not inside.all():
        axis.contour(inside, [0.5], colors="black", linestyles="dashed", linewidths=1)

def plot_draw(axes, one, size=96):
    draw(axes[0], augment_slow(image, *one, size, 0), title="turns {}, flip {}, {}°".format(*one))
    plot_target(axes[1], scribble, one, size, IGNORE)
    plot_target(axes[2], label, one, size, 0)


# %%
DRAWS = [(0, -1, 0), (1, 0, 0), (2, 1, 0), (0, -1, -20), (0, -1, 12)]
figure, axes = panels(3 * len(DRAWS), columns=len(DRAWS), size=1.9)
for axis, name in zip(axes[::len(DRAWS)], ("image", "scribble", "dense label"), strict=True):
    axis.text(-0.06, 0.5, name, rotation=90, ha="right", va="center", fontsize=9, transform=axis.transAxes)
for column, one in enumerate(DRAWS):
    plot_draw(axes[column::len(DRAWS)], one)
class_legend(figure, NAMES, background=True)


# %% [markdown]
# ## The equation, backwards
#
# Ask where pixel $(i,j)$ of the result comes from. Undo the resize ($S$ pixels from $n$), undo the rotation about the
# middle $m$, then undo flip and turn, whose inverse is three numbers:
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
# The last line saves the copies. `np.rot90` and `np.flip` move nothing either: they return the same memory with other
# strides, which are three numbers per slice. One pixel at a time, with −1 for "outside":

# %%
def position_naive(height, width, size, turns, flip, angle):
    number = np.rot90(np.arange(height * width).reshape(height, width), turns)
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
# **What breaks.** The loop visits pixels one by one, which takes seconds for a batch at 256². SciPy can fail too: it
# multiplies in floating point, so the last coordinate may land slightly outside the image, and a whole row is filled
# with 0. With integers this cannot happen.

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
# First the random choices, as data: three numbers per slice.

# %%
#| export
@dataclass(eq=False)
class Draw:
    "The random choices for each slice of a batch: quarter turns, then a flip, then a rotation. Identity is 0, -1, 0."

    turns: Tensor  # [N] int64, 0..3 quarter turns anticlockwise, as `np.rot90`
    flip: Tensor  # [N] int64, the array axis reversed, 0 or 1; -1 for none
    angle: Tensor  # [N] float64, degrees, the sign of `scipy.ndimage.rotate`: positive is anticlockwise
    zoom: Tensor | None = None  # [N] float64, above 1 the middle grows; None: nothing grows
    look: Tensor | None = None  # [N,3] float32, logarithms of gamma and contrast, and brightness; None: as scanned

    def __post_init__(self) -> None:
        _check_shapes(self)

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, part: slice) -> "Draw":  # some of the slices: their choices
        zoom, look = (None if choice is None else choice[part] for choice in (self.zoom, self.look))
        return Draw(self.turns[part], self.flip[part], self.angle[part], zoom, look)


# %%
#| export
def _check_shapes(draw: Draw) -> None:
    "Raise ValueError unless there is one choice of each kind per slice."
    shapes = [tuple(choice.shape) for choice in (draw.turns, draw.flip, draw.angle)]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"Draw: found the shapes {shapes} of turns, flip and angle, expected one shape [N] for all")


# %% [markdown]
# They are drawn with the probabilities of the released loaders:
#
# | kind | turns and flip | rotation | nothing |
# |---|---|---|---|
# | "acdc" | ½ | ¼ | ¼ |
# | "chaos" | – | ¼ | ¾ |
# | "none" | – | – | 1 |
#
# "chaos" never turns or flips, because that would exchange left and right kidney.

# %%
#| export
_AUGMENTATIONS = ("acdc", "chaos", "none")


def draw_augmentation(
    count: int,  # slices in the batch
    kind: str,  # "acdc": ½ quarter turns and a flip, ¼ a rotation; "chaos": ¼ a rotation; "none"
    generator: torch.Generator,  # on the CPU, so that a run repeats on any device; "none" leaves it alone
    *,
    zoom: float = 0.0,  # half of the slices grow or shrink by a factor of up to 1 + zoom
    look: float = 0.0,  # strength of a random gamma, contrast and brightness; 0: intensities stay
) -> Draw:  # `count` independent draws
    "Draw an augmentation per slice, as the released loaders do, and more if asked. Raises ValueError on another kind."
    if kind not in _AUGMENTATIONS:
        raise ValueError(f"kind: found {kind!r}, expected one of {', '.join(_AUGMENTATIONS)}")
    still = torch.zeros(count, dtype=torch.int64)
    known = Draw(still, still - 1, still.double())
    if kind != "none":
        known = _draw_choices(count, kind == "acdc", generator)
    return Draw(known.turns, known.flip, known.angle, _draw_zoom(count, zoom, generator) if zoom else None,
                _draw_look(count, look, generator) if look else None)


# %%
#| export
def _draw_choices(count: int, turning: bool, generator: torch.Generator) -> Draw:
    """½ random quarter turns, then a flip on a random axis, if `turning`; ¼ a rotation by −20..19 whole degrees.

    As many random numbers are consumed whatever the outcome."""
    coins = torch.rand(2, count, generator=generator) < 0.5
    turns = torch.randint(4, (count,), generator=generator)
    axis = torch.randint(2, (count,), generator=generator)
    angle = torch.randint(-20, 20, (count,), generator=generator)
    turned, rotated = coins[0] & turning, ~coins[0] & coins[1]
    return Draw(turns.where(turned, 0), axis.where(turned, -1), angle.where(rotated, 0).double())


# %% [markdown]
# Two further choices are not in the released code and are off unless a run asks for them: the size of the body, and how bright the scanner made it.

# %%
#| export
def _draw_zoom(count: int, most: float, generator: torch.Generator) -> Tensor:
    "[N] float64: 1 for half of the slices, else a factor between 1/(1 + most) and 1 + most, even in its logarithm."
    coin, factor = torch.rand(2, count, generator=generator, dtype=torch.float64)
    return torch.where(coin < 0.5, 1.0, (1 + most) ** (2 * factor - 1))


def _draw_look(count: int, strength: float, generator: torch.Generator) -> Tensor:
    "[N,3] float32: zeros for a quarter of the slices, else up to ±strength for gamma and contrast, a third of it last."
    drawn = strength * (2 * torch.rand(count, 3, generator=generator) - 1) * torch.tensor([1.0, 1.0, 1 / 3])
    return drawn * (torch.rand(count, 1, generator=generator) < 0.75)


# %%
#| export
def changed_look(
    image: Tensor,  # [N,K,H,W] float32 in [0,1]
    look: Tensor,  # [N,3] float32, as `draw_augmentation` draws it; zeros leave an image as it is
) -> Tensor:  # [N,K,H,W] float32, around [0,1]
    "The image to the power of e^gamma, spread around its mean by e^contrast, and brighter."
    gamma, contrast, brightness = look[:, :, None, None, None].unbind(1)
    bent = image.clamp(min=1e-6) ** gamma.exp()
    mean = bent.mean((2, 3), keepdim=True)
    return (bent - mean) * contrast.exp() + mean + brightness


# %% [markdown]
# How often does each occur? The counts agree with ½, ¼, ¼. One thing may surprise: since a flip always follows the
# turns, half of all slices are mirror images, and none is turned without being mirrored. Eight draws give four images.

# %%
chance = draw_augmentation(100_000, "acdc", torch.Generator().manual_seed(0))
flipped = (chance.flip >= 0).double().mean()
rotated = (chance.angle != 0).double().mean() * 40 / 39  # one rotation in 40 is by 0 degrees
assert abs(flipped - 0.5) < 0.01 and abs(rotated - 0.25) < 0.01
pictures = {position_naive(3, 3, 3, turns, flip, 0).tobytes() for turns in range(4) for flip in (0, 1)}
turned_only = {position_naive(3, 3, 3, turns, -1, 0).tobytes() for turns in range(4)}
assert len(pictures) == 4 and not pictures & turned_only


# %% [markdown]
# **Resize** needs integers only, once the fraction is multiplied out. **Turn and flip** are a start and two steps; each
# row of `start`, `down` and `right` is for one number of quarter turns, and a flip walks from the far end in the other
# direction.

# %%
#| export
def _resize_index(length: Tensor, size: int) -> Tensor:
    """[N,size] int64: source pixel of every pixel after a corner-aligned resize of [N] lengths, ⌊i(n−1)/(size−1)+½⌋.

    That is `scipy.ndimage.zoom` of order 0 in integers, so ties round up and the last pixel is never lost. A size of 1
    reads pixel 0."""
    steps = max(size - 1, 1)
    pixel = torch.arange(size, device=length.device)
    return (2 * pixel * (length[:, None] - 1) + steps) // (2 * steps)


def _turned_size(turns: Tensor, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    "Rows and columns, each [N], after the quarter turns."
    odd = turns % 2 == 1
    return torch.where(odd, width, height), torch.where(odd, height, width)


# %%
#| export
def _turn_and_flip(turns: Tensor, flip: Tensor, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Start, down and right, each [N] int64: pixel (y,x) of the turned slice lies at start + down·y + right·x.

    The position counts from the native slice's first pixel in row-major order; no pixel moves."""
    one, none = torch.ones_like(width), torch.zeros_like(width)
    down = torch.stack([width, -one, -width, one])
    right = torch.stack([one, width, -one, -width])
    start = torch.stack([none, width - 1, height * width - 1, (height - 1) * width])
    start, down, right = (choices.gather(0, turns[None])[0] for choices in (start, down, right))
    rows, columns = _turned_size(turns, height, width)
    start = start + torch.where(flip == 0, (rows - 1) * down, 0) + torch.where(flip == 1, (columns - 1) * right, 0)
    return start, torch.where(flip == 0, -down, down), torch.where(flip == 1, -right, right)


# %% [markdown]
# **Rotation** is the only step with fractions: `scipy.ndimage.rotate` of order 0 with `reshape=False`, with SciPy's
# sums in its order and in float64. Each sum is a part that depends on the row plus a part that depends on the column,
# so it costs one addition per pixel. A coordinate outside $[0,n-1]$, tested before rounding, is not inside; its row and
# column mean nothing.

# %%
#| export
def _rotate_back(
    y: Tensor, x: Tensor, turn: tuple[Tensor, Tensor], rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    "Row and column before the rotation, [N,S,S] int64, and inside, [N,S,S] bool, of pixels (y,x) after it."
    cos, sin = (factor[:, None] for factor in turn)
    middle_y, middle_x = (rows[:, None] - 1).double() / 2, (columns[:, None] - 1).double() / 2
    shift_y = middle_y - (cos * middle_y + sin * middle_x)
    shift_x = middle_x - (cos * middle_x - sin * middle_y)
    row = (shift_y + cos * y)[:, :, None] + (sin * x)[:, None, :]
    column = (shift_x - sin * y)[:, :, None] + (cos * x)[:, None, :]
    last_row, last_column = (rows - 1)[:, None, None], (columns - 1)[:, None, None]
    inside = (row >= 0) & (row <= last_row) & (column >= 0) & (column <= last_column)
    return (row + 0.5).long(), (column + 0.5).long(), inside


# %% [markdown]
# **All of it**, for slices of different sizes, without a loop: backwards, as a pixel is looked up, which means resize,
# rotation, then flip and quarter turns. The rotation is computed only for those slices that are rotated.

# %% [markdown]
# The choices are made on the CPU. A GPU gets them in one go, from memory that it can read while the CPU goes on, and rotates all slices, because to pick
# some it would have to be asked how many. A slice that grows is looked up in smaller steps: cosine and sine over its zoom.

# %%
#| export
def _sent(draw: Draw, device: torch.device) -> tuple[Tensor, ...]:
    "Turns and flip, [N] int64, cosine and sine over zoom, [N] float64, on a device."
    degrees = draw.angle.cpu().double().numpy()
    turn = [torch.from_numpy(np.asarray(f(degrees))) for f in (cosdg, sindg)]
    if draw.zoom is not None:
        turn = [factor / draw.zoom for factor in turn]
    if device.type != "cuda":
        return (draw.turns.to(device), draw.flip.to(device), *(factor.to(device) for factor in turn))
    table = send(torch.stack([draw.turns.double(), draw.flip.double(), *turn]), device)
    return table[0].long(), table[1].long(), table[2], table[3]


# %%
#| export
def _moved(draw: Draw, device: torch.device) -> Tensor | slice:
    "Which slices are rotated or grow; on a GPU all of them."
    moved = draw.angle != 0 if draw.zoom is None else (draw.angle != 0) | (draw.zoom != 1)
    return slice(None) if device.type == "cuda" else moved.nonzero()[:, 0].to(device)


# %%
#| export
def send(
    values: Tensor,  # a small tensor on the CPU
    device: torch.device,  # where it goes
) -> Tensor:  # there
    "To another device, and on to the next line at once: a GPU copies when it gets there."
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


# %%
#| export
def index_map(
    height: Tensor,  # [N] int64, rows of the native slices
    width: Tensor,  # [N] int64, their columns
    size: int,  # S, side of the result in pixels
    draw: Draw | None = None,  # None: only the resize
) -> tuple[Tensor, Tensor | None]:  # position [N,S,S] int64, 0 where not inside; inside [N,S,S] bool, None: all are
    "The native pixel, counted from its slice's first one, behind every pixel of an augmented and resized batch."
    draw = draw_augmentation(len(height), "none", torch.default_generator) if draw is None else draw
    turns, flip, *turn = _sent(draw, height.device)
    rows, columns = _turned_size(turns, height, width)
    y, x = _resize_index(rows, size), _resize_index(columns, size)
    steps = [step[:, None, None] for step in _turn_and_flip(turns, flip, height, width)]
    position = steps[0] + steps[1] * y[:, :, None] + steps[2] * x[:, None, :]
    return _rotate(position, steps, y, x, rows, columns, turn, _moved(draw, height.device))


# %%
#| export
def _rotate(position: Tensor, steps: list[Tensor], y: Tensor, x: Tensor, rows: Tensor, columns: Tensor,
            turn: list[Tensor], some: Tensor | slice) -> tuple[Tensor, Tensor | None]:
    "Positions where some slices are rotated or grow, and inside: None if no slice is."
    if isinstance(some, Tensor) and not len(some):
        return position, None
    cos, sin = (factor[some] for factor in turn)
    row, column, within = _rotate_back(y[some], x[some], (cos, sin), rows[some], columns[some])
    start, down, right = (step[some] for step in steps)
    position[some] = (start + down * row + right * column).where(within, 0)
    inside = torch.ones_like(position, dtype=torch.bool)
    inside[some] = within
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
# The steps compose maps, not images. Colour says where a pixel comes from: red grows with its row, blue with its
# column, gray is outside. Each step rearranges a map; only the last panel reads the image.

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
# Sizes differ from patient to patient, so slices cannot be stacked. They need not be, because an index map leads to a
# position in a flat tensor just as well. A slice is then a start, a height and a width.

# %%
#| export
@dataclass(eq=False)
class Batch:
    "Slices ready for a training step, on the store's device."

    image: Tensor  # [N,K,S,S] float32 in [0,1]; K = 1 channel for most scans
    target: Tensor  # [N,S,S] int64, class id or `ignore`
    single_class: Tensor  # [N] bool, whether the unaugmented target holds at most one class
    index: Tensor  # [N] int64, the slice's number in the store
    ignore: int  # value of a pixel without target
    pseudo: Tensor | None = None  # [N,S,S] int64, class id or `ignore`: guessed labels, if there are any
    look: Tensor | None = None  # [N,3] float32: how the network sees the image, while the losses see it as scanned

    @property
    def seen(self) -> Tensor:
        "[N,K,S,S]: the image for the network."
        return self.image if self.look is None else changed_look(self.image, self.look)


# %% [markdown]
# First the cases are read, one at a time, into two byte arrays. They grow in place, so there is never a second copy. Of
# a case only the target asked for is read.

# %%
#| export
@dataclass(eq=False)
class _Flat:
    "Slices as they are read, side by side."

    images: bytearray = field(default_factory=bytearray)  # float32, slice after slice, row by row
    targets: bytearray = field(default_factory=bytearray)  # uint8
    names: list[str] = field(default_factory=list)  # of the slices
    shapes: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of each slice
    present: list[np.ndarray] = field(default_factory=list)  # per case [Z,256] bool: values of each slice's target


# %%
#| export
def _flatten(cases: Iterable[Case], target: str, classes: int, ignore: int, channels: int) -> _Flat:
    "All slices of some cases, which are not kept."
    flat = _Flat()
    for case in cases:
        _append(flat, case, target, classes, ignore, channels)
    if not flat.names:
        raise ValueError("cases: found none, expected at least one")
    return flat


# %%
#| export
def _append(flat: _Flat, case: Case, target: str, classes: int, ignore: int, channels: int) -> None:
    "Add a case's slices. Raises DataError, naming the case, if it does not fit."
    volume = getattr(case, target)  # the other one is not touched
    if volume is None:
        raise DataError(f"{case.name}: {target}", "none", "one in every case")
    flat.present.append(_present(volume, f"{case.name}: {target}", classes, ignore))
    if (found := case.image.shape[1] if case.image.ndim == 4 else 1) != channels:
        raise DataError(f"{case.name}: image", f"{found} channels", f"{channels}, as the dataset says")
    flat.images += case.image.tobytes()
    flat.targets += volume.tobytes()
    flat.names += [f"{case.name}_slice_{z}" for z in range(len(case.image))]
    flat.shapes += [case.image.shape[-2:]] * len(case.image)


# %%
#| export
def _present(volume: np.ndarray, where: str, classes: int, ignore: int) -> np.ndarray:
    "[Z,256] bool: the values each slice of a target holds. Raises DataError on one that means nothing."
    present = np.stack([np.bincount(plane.ravel(), minlength=256) > 0 for plane in volume])
    values = np.flatnonzero(present.any(0))
    unknown = values[(values >= classes) & (values != ignore)]
    if unknown.size:
        raise DataError(where, f"the values {unknown.tolist()}", f"0..{classes - 1}, or {ignore} where there is none")
    return present


# %% [markdown]
# Then a table with a row per slice says where it lies; to look at one slice copies nothing.

# %%
#| export
class _Slices:
    "Slices of different sizes side by side in two flat tensors, and where each of them lies."

    def __init__(self, flat: _Flat, channels: int, ignore: int, device: torch.device) -> None:
        self.names, self.channels, self.ignore, self.device = tuple(flat.names), channels, ignore, device
        self._images = torch.frombuffer(flat.images, dtype=torch.float32).to(device)
        self._targets = torch.frombuffer(flat.targets, dtype=torch.uint8).to(device)
        self._start, self._height, self._width = _table(flat.shapes, device)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def nbytes(self) -> int:
        "Bytes of all images and targets."
        return self._images.nbytes + self._targets.nbytes

    @property
    def pixels(self) -> int:
        "Pixels of all slices together: the length of what `set_pseudo` takes."
        return self._targets.numel()

    @property
    def side(self) -> int:
        "The largest height or width of a slice."
        return int(torch.maximum(self._height, self._width).max())

    def drawn(self) -> Tensor:  # [pixels] bool
        "Where the target holds a class."
        return self._targets != self.ignore

    def span(self, number: int) -> tuple[slice, tuple[int, int]]:  # of a slice: place among all pixels; height, width
        "Where a slice lies in a flat tensor over all pixels, row by row."
        start, height, width = (int(table[number]) for table in (self._start, self._height, self._width))
        return slice(start, start + height * width), (height, width)

    def native(self, number: int) -> tuple[Tensor, Tensor]:  # image [Y,X] or [K,Y,X] float32; target [Y,X] uint8
        "One slice as it was read: two views, on the store's device."
        place, shape = self.span(number)
        image = self._images[self.channels * place.start:self.channels * place.stop]
        return image.view(shape if self.channels == 1 else (-1, *shape)), self._targets[place].view(shape)


# %%
#| export
def _table(shapes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    "Number of pixels before each slice, its height and its width: [slices] int64 each."
    # Apple's GPUs have no float64, so there the maps are made on the CPU
    maps = torch.device("cpu") if device.type == "mps" else device
    height, width = torch.from_numpy(np.array(shapes).T.astype(np.int64)).to(maps)
    return (height * width).cumsum(0) - height * width, height, width


# %% [markdown]
# The store itself reads the cases, takes pseudo labels, and makes batches. With the target "scribble" a case's dense
# label is never looked at; with "label" no scribble is needed. Pseudo labels go through the same augmentation as the
# targets.

# %%
#| export
class SliceStore(_Slices):
    """All 2D slices of some cases, native sizes kept, side by side in two flat tensors on the training device.

    Five bytes a pixel, four more for each further channel, one more for pseudo labels."""

    def __init__(
        self,
        cases: Iterable[Case],  # read one at a time and not kept; an iterator will do
        *,
        classes: int,  # the background included
        ignore: int,  # value of a pixel without target, 0..255, no class id
        target: str = "scribble",  # "scribble" or "label"; the other one is not looked at
        channels: int = 1,  # K of every case's image
        device: torch.device | str = "cpu",  # of the tensors and of the batches
    ) -> None:
        "Raises ValueError on a wrong argument or no case; DataError, naming the case, on one that does not fit."
        _check_target(target, classes, ignore)
        flat = _flatten(cases, target, classes, ignore, channels)
        super().__init__(flat, channels, ignore, torch.device(device))
        self.classes, self.target = classes, target
        self.single_class, self._fill = _describe(flat.present, classes, ignore, self.device)
        self.shown = np.concatenate(flat.present)[:, :classes]  # [slices, classes] bool: what the targets show
        self._pseudo: Tensor | None = None
        self._pseudo_fill = self._fill

    def set_pseudo(
        self,
        labels: Tensor,  # [pixels] uint8, class id or `ignore`, slice after slice, row by row
        fill: int | None = None,  # what a rotation brings in; None: `ignore` where the slice's labels have one, else 0
    ) -> None:
        "Lay pseudo labels beside the targets; batches carry them from now on. Raises ValueError on another shape."
        self._pseudo, self._pseudo_fill = _checked_pseudo(self, labels, fill)

    def shown_at(
        self,
        size: int,  # S, side of a batch in pixels
    ) -> np.ndarray:  # [slices, classes] bool
        "Which classes target or pseudo labels of each slice still show in a batch of this size, not augmented."
        return _shown_at(self, size)

    def batch(
        self,
        index: Tensor,  # [N] int64, slices by number
        size: int,  # S, side of the result in pixels; the aspect ratio is not kept
        draw: Draw | None = None,  # one draw per slice; None: no augmentation
    ) -> Batch:  # new tensors; what a rotation brings in is 0, in the target `ignore` if the slice has any
        "Augmented, then resized to S×S, both nearest neighbour. Raises ValueError on a wrong index or number of draws."
        return _gather(self, _checked(self, index, size, draw), size, draw)


# %% [markdown]
# What the store's methods do, one function each. First the checks and what is known about each slice.

# %%
#| export
def _check_target(target: str, classes: int, ignore: int) -> None:
    "Raise ValueError for another kind of target, and for an `ignore` that is a class id or no uint8."
    if target not in ("scribble", "label"):
        raise ValueError(f"target: found {target!r}, expected 'scribble' or 'label'")
    if not classes <= ignore <= 255:
        raise ValueError(f"ignore: found {ignore}, expected a value in {classes}..255, above the class ids")


def _describe(present: list[np.ndarray], classes: int, ignore: int, device: torch.device) -> tuple[Tensor, Tensor]:
    "Whether a slice holds at most one class, and what a rotation brings into its target: [slices] bool and uint8."
    values = np.concatenate(present)
    fill = np.where(values[:, ignore], ignore, 0).astype(np.uint8)
    return torch.from_numpy(values[:, :classes].sum(1) <= 1).to(device), torch.from_numpy(fill).to(device)


# %%
#| export
def _checked(store: SliceStore, index: Tensor, size: int, draw: Draw | None) -> Tensor:
    "The index as an int64 vector, once all arguments of `batch` are known to fit."
    index = torch.as_tensor(index)
    if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool or not len(index):
        raise ValueError(f"index: found {index.dtype} {tuple(index.shape)}, expected int64 [N] with N ≥ 1")
    if index.min() < 0 or index.max() >= len(store):
        raise ValueError(f"index: found {int(index.min())}..{int(index.max())}, expected 0..{len(store) - 1}")
    if size < 1:
        raise ValueError(f"size: found {size}, expected at least 1")
    if draw is not None and len(draw) != len(index):
        raise ValueError(f"draw: found {len(draw)} draws, expected {len(index)}, one per slice")
    return index.long()


# %%
#| export
def _checked_pseudo(store: SliceStore, labels: Tensor, fill: int | None) -> tuple[Tensor, Tensor]:
    "Pseudo labels on the store's device, and what a rotation brings into those of each slice."
    if labels.shape != store._targets.shape or labels.dtype != torch.uint8:
        raise ValueError(f"labels: found {labels.dtype} {tuple(labels.shape)}, expected uint8 ({store.pixels},)")
    labels = labels.to(store.device)
    if fill is not None:
        return labels, torch.full_like(store._fill, fill)
    unsure = (labels == store.ignore).cumsum(0, dtype=torch.int32)
    last = (store._start + store._height * store._width - 1).to(store.device)
    ends = unsure[last]
    some = torch.diff(ends, prepend=ends.new_zeros(1)) > 0
    return labels, torch.where(some, store.ignore, 0).to(torch.uint8)


# %% [markdown]
# A resize to fewer pixels skips rows and columns, and a stroke of one pixel may lie in a row that is skipped. A slice that is not larger than a batch
# loses none: every row and column of it is looked up.

# %%
#| export
def _shown_at(store: SliceStore, size: int) -> np.ndarray:
    "`SliceStore.shown_at`: target and pseudo labels of larger slices in the rows and columns that a batch looks up."
    shown, kept = store.shown.copy(), [part for part in (store._targets, store._pseudo) if part is not None]
    lengths = torch.cat((store._height, store._width)).unique()
    seen = dict(zip(lengths.tolist(), _resize_index(lengths, size).to(store.device), strict=True))
    for number in range(len(store)):
        place, (height, width) = store.span(number)
        if max(height, width) > size:
            small = [part[place].view(height, width)[seen[height]][:, seen[width]].flatten() for part in kept]
            values = torch.cat(small).cpu().numpy()
            shown[number] = [(values == class_id).any() for class_id in range(store.classes)]
    return shown


# %% [markdown]
# Then the batch. Image, target and pseudo labels are looked up at the same positions. The channels of a slice follow
# each other in the flat tensor, so before a slice lie all channels of those before it.

# %%
#| export
def _gather(store: SliceStore, index: Tensor, size: int, draw: Draw | None) -> Batch:
    "Some slices, augmented and resized, in one look-up each for image, target and pseudo labels."
    rows = send(index, store._start.device)
    position, inside = index_map(store._height[rows], store._width[rows], size, draw)
    position += store._start[rows, None, None]
    index, inside = rows.to(store.device), None if inside is None else inside.to(store.device)
    image = torch.stack([_look_up(store._images, plane, inside, 0) for plane in _planes(store, rows, position)], 1)
    position, pseudo = position.to(store.device), None
    target = _look_up(store._targets, position, inside, store._fill[index, None, None]).long()
    if store._pseudo is not None:
        pseudo = _look_up(store._pseudo, position, inside, store._pseudo_fill[index, None, None]).long()
    look = None if draw is None or draw.look is None else send(draw.look, store.device)
    return Batch(image, target, store.single_class[index], index, store.ignore, pseudo, look)


# %%
#| export
def _planes(store: SliceStore, rows: Tensor, position: Tensor) -> Iterator[Tensor]:
    "Positions [N,S,S] of each channel's pixels, on the store's device."
    if store.channels == 1:
        yield position.to(store.device)
        return
    start, area = (table[rows, None, None] for table in (store._start, store._height * store._width))
    for channel in range(store.channels):
        yield (position + (store.channels - 1) * start + channel * area).to(store.device)


def _look_up(flat: Tensor, position: Tensor, inside: Tensor | None, fill: Tensor | int) -> Tensor:
    "[N,S,S] values of a flat tensor, `fill` where they are not inside."
    # index_select on flat tensors is several times faster than indexing with [N,S,S]
    found = flat.index_select(0, position.flatten()).view(position.shape)
    return found if inside is None else found.where(inside, fill)


# %% [markdown]
# The store reads one kind of target only. A store of scribbles is given cases whose dense labels are nonsense, and
# gives the right batches; a store of labels refuses a case without one.

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
    raise RuntimeError("a case without a label was accepted")
except DataError as error:
    print(error)

# %% [markdown]
# `single_class` marks slices whose target shows at most one class; the attention loss later leaves them out. The
# released code takes it from the dense label, which a scribble-supervised method does not have; here it comes from the
# target itself.
#
# **What does it cost?** Memory: 5 bytes a pixel. All of ACDC has 102 million pixels in 1902 slices: 510 MB, on the
# training device, once. Time, for a batch of 12 at 256² on one core; on a GPU the map is made there too, and no loader
# process is needed:

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
# Which slices, in which order? Each epoch is a new permutation, and its last batch may be smaller. A run that was
# stopped continues by skipping the batches it has had.

# %%
#| export
def batches(
    count: int,  # slices in the store
    batch_size: int,  # slices in a batch
    generator: torch.Generator,  # on the CPU, and used for nothing else if the run is to be resumed
) -> Iterator[Tensor]:  # int64 [≤ batch_size] slice numbers, without end
    """Slice numbers for training, epoch after epoch, each in a fresh random order.

    The last batch of an epoch is kept although it may be smaller, as in the released code: 1512 slices in batches of 12
    are 126 steps. With a generator of its own, `islice(batches(…), step, None)` continues a run after `step` steps.
    Raises ValueError on a count or size below 1."""
    if count < 1 or batch_size < 1:
        raise ValueError(f"count, batch_size: found {count}, {batch_size}, expected at least 1 for both")
    return _epochs(count, batch_size, generator)


# %%
#| export
def _epochs(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    "One permutation after another, in batches."
    while True:
        yield from torch.randperm(count, generator=generator).split(batch_size)


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
# At test time the released code does it differently: the image is resized with **bilinear** interpolation, pixel
# centres aligned, and the mask is resized back by nearest neighbour.

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
    resized = F.interpolate(planes, _sides(size), mode="bilinear", align_corners=False)
    return resized.reshape(*image.shape[:-2], *resized.shape[-2:])


# %%
#| export
def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    "Rows and columns of a size that may be one number."
    return (size, size) if isinstance(size, int) else size


# %%
#| export
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
    centre, device = int(mode == "nearest-exact"), labels.device
    rows, columns = ((2 * torch.arange(after, device=device) + centre) * before // (2 * after)
                     for before, after in zip(labels.shape[-2:], _sides(size), strict=True))
    return labels[..., rows[:, None], columns]


# %% [markdown]
# So the network is tested on images that are smoother than those it was trained on, and shifted by up to half a pixel,
# because training aligns corners and testing aligns centres. Right: test minus train, zero is white.

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
# The way back shifts too. "nearest" in PyTorch reads source pixel $\lfloor i\,n/S\rfloor$, the one under the pixel's
# *corner*; the centre is at $\lfloor(i+\frac12)n/S\rfloor$, which PyTorch calls "nearest-exact". The corner moves a
# mask by half a pixel down and right. Below, a perfect prediction is resized back by each of the two.

# %%
def there_and_back(labels, mode, size=256):
    one_hot = F.one_hot(torch.from_numpy(labels).long(), len(NAMES)).movedim(-1, -3).float()
    perfect = resize_image(one_hot, size).argmax(-3)
    return resize_labels(perfect, labels.shape[-2:], mode).numpy()

def overlap(one, other, class_id):
    return 2 * ((one == class_id) & (other == class_id)).sum() / ((one == class_id).sum() + (other == class_id).sum())


# %%
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
# Resizing back as the released code does costs the thin myocardium about four points of DSC before the network has made
# a single error. This is a ceiling for masks that are right: a network whose mistakes lean the other way would lose
# less.
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
# **2. Implement.** A transpose, too, only needs other strides. Give start, down and right for `plane.T`.

# %%
def check_transpose(steps):
    start, down, right = steps(5, 7)
    y, x = np.mgrid[:7, :5]
    np.testing.assert_array_equal(start + down * y + right * x, np.arange(35).reshape(5, 7).T)

def attempt_transpose(height, width):
    return 0, width, 1  # your code here

exercise(check_transpose, attempt_transpose, solution=lambda height, width: (0, 1, width))


# %% [markdown]
# **3. Undo.** Which draw takes a slice that was turned and then flipped back to where it was? Try it on paper: what is
# a mirror image of a mirror image?

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
# **4. Break.** What goes wrong if the margin of a scribble is filled with 0? Count the pixels that a loss would then
# mistake for annotated background.

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
# `SliceStore` holds a data set flat, `batches` says which slices come next, `draw_augmentation` how they are augmented,
# and `batch` does it in one look-up, equal to SciPy. `resize_image` and `resize_labels` serve testing. Two surprises:
# the released augmentation never turns a slice without mirroring it, and its way back to native pixels costs DSC. Next:
# [the network](../method/30_network.ipynb).
