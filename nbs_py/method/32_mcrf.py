# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The masked CRF
#
# > Pixels that look alike and lie close should agree: the loss that speaks for everything the scribbles leave out.
#
# What can a network learn about the pixels that nobody annotated? Most pixels beside a stroke look like it, and where they no longer do, an
# organ ends. This chapter turns "looks alike and lies close" into a loss that needs no annotation, and makes it fast enough for every
# training step.

# %%
#| default_exp method.mcrf

# %%
#| export
import ctypes
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attenscribble.basics.distributed import BatchMean, batch_loss, ratio
from attenscribble.basics.native import address, native, strides

# %%
#| export
if TYPE_CHECKING:  # matplotlib takes long to import, and only `plot_affinity` needs it
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# %%
import itertools
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch.nn.functional as F
from ipywidgets import interact
from matplotlib.colors import ListedColormap
from scipy import ndimage

from attenscribble.basics.checking import assert_same, cost, exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.scans import acdc

# %% [markdown]
# ## A small heart
#
# Four tissues on 64 × 64 pixels, a little noise, a slow wave in the background, and strokes on 5 % of the pixels: small
# enough to look at single pixels.

# %%
SIDE, IGNORE, NAMES = 64, 4, ("background", "RV", "Myo", "LV")
y, x = np.mgrid[:SIDE, :SIDE] / SIDE
ring, angle = np.hypot(y - 0.52, x - 0.58), np.arctan2(y - 0.52, x - 0.58)
right_ventricle = (np.hypot((y - 0.48) / 1.25, x - 0.36) < 0.15) & (ring > 0.245)
label = np.select([ring < 0.14, ring < 0.23, right_ventricle], [3, 2, 1], 0)
wave = 0.08 * np.sin(9 * x) * (label == 0)
noise = 0.04 * np.random.default_rng(0).standard_normal(label.shape)
heart = np.clip(np.array([0.22, 0.72, 0.42, 0.80])[label] + wave + noise, 0, 1)

scribble = np.full_like(label, IGNORE)
scribble[33, 33:41], scribble[26:38, 20] = 3, 1
scribble[(abs(ring - 0.187) < 0.011) & (abs(angle) < 2.3)] = 2
scribble[8, 10:54], scribble[58, 14:50], scribble[12:54, 5], scribble[12:54, 60] = 0, 0, 0, 0
assert (label == scribble)[scribble != IGNORE].all()


# %% [markdown]
# ## The picture: with which neighbours should a pixel agree?
#
# The kernel has four settings, kept together in one class. The first three have the values of the released code as defaults, the mask has the
# paper's.

# %%
#| export
@dataclass(frozen=True)
class Affinity:
    "The kernel s(p,q) of eq. 5, its window, and which pairs of pixels count."

    radius: int = 5  # the window is 2·radius+1 pixels wide; the paper's strict `< r` is radius = r − 1
    sigma_xy: float = 6.0  # pixels; infinity: distance does not matter
    sigma_i: float = 0.1  # units of intensity; infinity: intensity does not matter
    mask_neighbours: bool = True  # p and q both in Ω_U (the paper), or p alone (the released code)

    def __post_init__(self) -> None:
        if not isinstance(self.radius, int) or self.radius < 1:
            raise ValueError(f"radius: found {self.radius!r}, expected a whole number of pixels, at least 1")
        for name in ("sigma_xy", "sigma_i"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, expected a number above 0")


# %%
#| export
def affinity_map(
    image: np.ndarray,  # [H,W] in [0,1]
    pixel: tuple[int, int],  # p = (y, x)
    kernel: Affinity,  # its settings
    unlabelled: np.ndarray | None = None,  # [H,W] bool: Ω_U; None: every pixel
) -> np.ndarray:  # [H,W] s(p,·) of eq. 5 with w = 1; NaN outside the window, at p, and where q does not count
    "The affinity of one pixel to its neighbours, for pictures."
    dy, dx = np.indices(image.shape) - np.reshape(pixel, (2, 1, 1))
    chebyshev = np.maximum(abs(dy), abs(dx))
    near = (chebyshev > 0) & (chebyshev <= kernel.radius)
    if unlabelled is not None and kernel.mask_neighbours:
        near &= unlabelled
    step = image - image[pixel]
    affinity = np.exp(-(dy**2 + dx**2) / (2 * kernel.sigma_xy**2) - step**2 / (2 * kernel.sigma_i**2))
    return np.where(near, affinity, np.nan)


# %%
#| export
def plot_affinity(
    axis: "Axes",  # where to draw
    image: np.ndarray,  # [H,W] in [0,1]
    pixel: tuple[int, int],  # p = (y, x)
    kernel: Affinity,  # its settings
    unlabelled: np.ndarray | None = None,  # [H,W] bool: Ω_U; None: every pixel
    title: str = "",  # above the picture
) -> "AxesImage":  # for a colour bar; the scale is fixed to [0, 1]
    "Draw s(p,·) in its window: gray where a pixel does not count, p itself a red cross."
    from matplotlib import colormaps
    edge, colours = kernel.radius + 1, colormaps["viridis"].with_extremes(bad="0.75")
    axis.plot(pixel[1], pixel[0], "x", color="#D55E00", markersize=8, markeredgewidth=2)
    axis.set_title(title, fontsize=9)
    axis.set(xlim=(pixel[1] - edge, pixel[1] + edge), ylim=(pixel[0] + edge, pixel[0] - edge))
    return axis.imshow(affinity_map(image, pixel, kernel, unlabelled), cmap=colours, vmin=0, vmax=1)


# %% [markdown]
# Three pixels p of the heart: **A** inside the left ventricle, **B** at the outer edge of the myocardium, **C** next to the
# stroke in the right ventricle. The lighter a pixel, the more it should agree with p.

# %%
pixels = {"A": (28, 38), "B": (47, 38), "C": (32, 21)}
unlabelled = scribble == IGNORE
figure, axes = panels(4, size=2.6)
draw(axes[0], heart, scribble=scribble, ignore=IGNORE, title="image, strokes, three windows")
for axis, (name, (row, column)) in zip(axes[1:], pixels.items(), strict=True):
    axes[0].add_patch(plt.Rectangle((column - 5.5, row - 5.5), 11, 11, fill=False, edgecolor="#56B4E9", linewidth=1.5))
    axes[0].text(column - 5, row - 5, name, color="white", fontsize=8, va="top", bbox=dict(facecolor="black", pad=1))
    shown = plot_affinity(axis, heart, (row, column), Affinity(), unlabelled, f"s({name}, ·)")
figure.colorbar(shown, ax=axes, shrink=0.8, label="affinity s");

# %% [markdown]
# A has similar neighbours on all sides, B only on its side of the edge. C is compared with the ventricle left and right of the stroke,
# but not with the stroke: eq. 4 leaves annotated pixels (gray) to [eq. 1](31_pce.ipynb).
#
# ### What counts as unlabelled
#
# Augmentation turns the slice, and corners appear where there is no scan. They are black, nobody annotated them, and they
# belong to $\Omega_U$: they look alike, so the loss wants one class there. The paper reports fewer false positives near the borders.

# %%
turn = dict(angle=20, order=0, reshape=False)
turned, turned_scribble = ndimage.rotate(heart, cval=0, **turn), ndimage.rotate(scribble, cval=IGNORE, **turn)
margin = ndimage.rotate(np.ones_like(label), cval=0, **turn) == 0
region = np.where(turned_scribble != IGNORE, 0, np.where(margin, 2, 1))
figure, (left, right) = panels(2, size=2.8)
draw(left, turned, scribble=turned_scribble, ignore=IGNORE, title="turned by 20°")
colours = ("black", "#56B4E9", "#0072B2")
right.imshow(region, cmap=ListedColormap(colours), interpolation="nearest")
right.set_title(f"$\\Omega_U$: {(region > 0).mean():.1%} of the pixels", fontsize=9)
names = ("annotated", "unlabelled", "unlabelled: margin of the rotation")
handles = [plt.Rectangle((0, 0), 1, 1, facecolor=c, label=n) for c, n in zip(colours, names, strict=True)]
figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False);


# %% [markdown]
# ## The equations
#
# $$l_{mcrf} = \frac{1}{|\Omega_U|} \sum_{p \in \Omega_U}\ \sum_{q \in \Omega_U,\ 0 < \|q-p\|_\infty < r} s(p,q) \sum_{i \neq j} P_p^i P_q^j \tag{4}$$
#
# $$s(p,q) = w\, \exp\Big(-\frac{\|p-q\|^2}{2\sigma_{xy}^2} - \frac{\|I_p - I_q\|^2}{2\sigma_I^2}\Big) \tag{5}$$
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $P$ | `probs` | [N,C,H,W] | probability |
# | $I$ | `image` | [N,K,H,W] | [0, 1] |
# | $\Omega_U$ | `unlabelled` | [N,1,H,W] bool | – |
# | $r - 1$ | `radius` | – | pixels |
# | $\sigma_{xy}$, $\sigma_I$ | `sigma_xy`, `sigma_i` | – | pixels, intensity |
# | $w$ | `weight` | – | – |

# %% [markdown]
# The inner sum is the probability that p and q get *different* classes when each draws its class at random from its $P$. It is weighted by how
# much p and q look alike. The paper gives no values for $r$, $\sigma$ and $w$; the released
# code takes a window of 11 × 11, $\sigma_{xy}$ = 6, $\sigma_I$ = 0.1, $w$ = 1. Distances in eq. 4 are below $r$, here they may equal `radius`: 5 means 11 × 11.
#
# ## Naive code
#
# One line for each sum, one image at a time.

# %%
def mcrf_naive(probs, image, unlabelled, radius, sigma_xy, sigma_i):
    "Eq. 4 and 5 for one image: probs [C,H,W], image and unlabelled [H,W]."
    total = 0
    pixels = unlabelled.nonzero().tolist()
    for (y, x), (v, u) in itertools.product(pixels, pixels):  # p = (y, x), q = (v, u)
        dy, dx = v - y, u - x
        if 0 < max(abs(dy), abs(dx)) <= radius:
            step = image[y, x] - image[v, u]
            s = torch.exp(-(dy**2 + dx**2) / (2 * sigma_xy**2) - step**2 / (2 * sigma_i**2))
            for i, j in itertools.permutations(range(len(probs)), 2):
                total = total + s * probs[i, y, x] * probs[j, v, u]
    return total / unlabelled.sum()


# %% [markdown]
# ## Check by hand
#
# A flat 2 × 2 image, all unlabelled, $\sigma_{xy} = 1$; the left column is predicted as class 0, the right one as class 1, with certainty. Two pairs
# side by side differ, with $s = e^{-1/2}$, and two pairs across the diagonals, with $s = e^{-1}$. Each pair is counted from
# both ends, and the sum is divided by four pixels: $\frac{2(2e^{-1/2} + 2e^{-1})}{4} = e^{-1/2} + e^{-1} = 0.974$.

# %%
columns_differ = torch.tensor([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]]], dtype=torch.float64)
flat, everywhere = torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.bool)
by_hand = math.exp(-1 / 2) + math.exp(-1)
assert math.isclose(mcrf_naive(columns_differ, flat, everywhere, 1, 1.0, 0.1), by_hand)

# %% [markdown]
# How long does it take? A training batch has 12 images of 256 × 256 pixels, 120 neighbours and 12 pairs
# of classes. The usual remedy is to unfold P, one copy for each neighbour, which takes gigabytes of memory.

# %%
torch.manual_seed(0)
probs = torch.randn(1, 3, 8, 8, dtype=torch.float64).softmax(1)
image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
free = torch.rand(1, 1, 8, 8) < 0.8
started = time.perf_counter()
naive_value = mcrf_naive(probs[0], image[0, 0], free[0, 0], 2, 6.0, 0.1)
rows, columns = free[0, 0].nonzero().T
chebyshev = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
terms = int(((chebyshev > 0) & (chebyshev <= 2)).sum()) * 3 * 2
seconds = (time.perf_counter() - started) / terms * 12 * 256**2 * 120 * 12
print(f"naive, a batch: about {seconds / 3600:.0f} hours; unfolded P: {12 * 4 * 121 * 256**2 * 4 / 2**30:.1f} GiB")

# %% [markdown]
# ## Three steps to a fast form
#
# ### 1. The classes: one product instead of C(C−1)
#
# A pixel's probabilities sum to 1, hence
# $1 = \big(\sum_i P_p^i\big)\big(\sum_j P_q^j\big) = \sum_c P_p^c P_q^c + \sum_{i \neq j} P_p^i P_q^j$, and the inner sum is
# $1 - \sum_c P_p^c P_q^c$: one minus the probability of agreement. The gradients in $P$ differ by a constant over the classes, which a softmax
# removes. For numbers that do not sum to 1 the identity is wrong.

# %%
P, Q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.6, 0.3])
disagree = lambda P, Q: sum(P[i] * Q[j] for i, j in itertools.permutations(range(3), 2))
torch.testing.assert_close(disagree(P, Q), 1 - P @ Q)
torch.testing.assert_close(disagree(2 * P, Q), 2 - 2 * P @ Q)  # the product of the two sums, here 2·1, in place of 1


# %% [markdown]
# ### 2. The pairs: half the window
#
# $s(p,q) = s(q,p)$: the exponential for an offset $\Delta$ is that for $-\Delta$ too. So only the offsets that follow the
# centre in reading order are visited, 60 instead of 120.

# %%
#| export
def _margins(radius: int, height: int, width: int) -> tuple[int, int]:
    "The largest offsets, down and to the right, that a window can have in an image."
    return min(radius, height - 1), min(radius, width - 1)


# %%
#| export
def _half_window(radius: int, height: int, width: int) -> list[tuple[int, int]]:
    """One offset (Δy, Δx) of every pair ±Δ in the (2·radius+1)² window, its centre left out.

    Those that follow (0, 0) in reading order and fit into the image.
    """
    rows, columns = _margins(radius, height, width)
    return [(dy, dx) for dy in range(rows + 1) for dx in range(-columns, columns + 1) if (dy, dx) > (0, 0)]


# %%
window = np.zeros((11, 11), int)
for dy, dx in _half_window(5, SIDE, SIDE):
    window[5 + dy, 5 + dx], window[5 - dy, 5 - dx] = 1, 2


def plot_window(axis):
    colours, ticks = ListedColormap(("white", "#0072B2", "#BBD7EA")), range(-5, 6, 5)
    axis.pcolormesh(np.arange(-5, 6), np.arange(-5, 6), window, cmap=colours, edgecolors="white")
    axis.plot(0, 0, "x", color="#D55E00", markeredgewidth=2)
    axis.set(aspect="equal", xlabel="Δx (pixels)", ylabel="Δy (pixels)", xticks=ticks, yticks=ticks)
    axis.set_title("dark: the 60 offsets visited", fontsize=9)
    axis.invert_yaxis()


# %%
def plot_end_to_end(axis):
    rows = np.zeros((5, 8), int)
    rows[:3, :6] = 1
    axis.pcolormesh(rows, cmap=ListedColormap(("0.85", "#BBD7EA")), edgecolors="white")
    for cell, (row, column) in enumerate(np.ndindex(5, 8)):
        axis.text(column + 0.5, row + 0.5, cell, ha="center", va="center", fontsize=8)
    axis.annotate("", (2.5, 1.72), (4.5, 0.72), arrowprops=dict(arrowstyle="->", color="#D55E00", lw=2))
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.set_title("radius 2: 3 × 6 pixels in rows of 8; offset (+1, −2) is 6 places on", fontsize=9)
    axis.invert_yaxis()


figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.8), layout="constrained", width_ratios=(1, 1.6))
plot_window(axes[0])
plot_end_to_end(axes[1])


# %% [markdown]
# ### 3. The neighbours: a shift
#
# All images of the batch are laid end to end, each row followed by a margin of zeros (gray, right). A neighbour at
# (Δy, Δx) then lies a fixed number of places further on: p and q are two slices of one array, nothing is copied, and neighbours outside of the
# image are zeros.
#
# The mask is one more class $m$, and $P$ is set to 0 outside $\Omega_U$. The sum over masked pairs is then
# $\sum_q s\,(m_p m_q - \sum_c P_p^c P_q^c)$, and $s$ needs no mask.

# %%
#| export
def _end_to_end(
    values: Tensor,  # [N,C,H,W], any strides
    radius: int,  # the zero margin right of each row and below each image is as wide as the largest offset
    dtype: torch.dtype,
) -> Tensor:  # [C,N·(H+margin)·(W+margin)]: the neighbour at (Δy,Δx) lies Δy·(W+margin)+Δx further on
    "All images of a batch end to end, a row for each channel, so that an offset of the window is one shift."
    count, channels, height, width = values.shape
    below, right = _margins(radius, height, width)
    flat = torch.zeros((channels, count, height + below, width + right), dtype=dtype, device=values.device)
    flat[..., :height, :width].copy_(values.transpose(0, 1))
    return flat.flatten(1)


# %%
#| export
def _lay_out(
    probs: Tensor, image: Tensor, unlabelled: Tensor, kernel: Affinity
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows for `_gather`: the field [C+1,M], the intensities over √2·sigma_i [K,M], and the pixels p [M].

    The mask of the pixels that take part is the last class of the field: its pair sum is the 1 of 1 − Σ_c P_p P_q.
    """
    dtype = torch.float64 if probs.dtype == torch.float64 else torch.float32
    in_rows = partial(_end_to_end, radius=kernel.radius, dtype=dtype)
    members, sources = in_rows(unlabelled), None
    if not kernel.mask_neighbours:
        sources, members = members[0], in_rows(torch.ones_like(unlabelled))
    outside = members == 0
    field = torch.cat((in_rows(probs), members)).masked_fill_(outside, 0)
    return field, in_rows(image).masked_fill_(outside, 0).div_(math.sqrt(2) * kernel.sigma_i), sources


# %% [markdown]
# ### The gradient
#
# The pair sum is quadratic in $P$, and $s$ is symmetric, so
#
# $$\frac{\partial l}{\partial P_p^c} = -\frac{2}{|\Omega_U|} \sum_{q} s(p,q)\, P_q^c, \qquad p, q \in \Omega_U.$$
#
# Every neighbour that looks alike pushes p towards its own prediction. The same sum gives the value,
# $\sum_p \big(m_p \sum_q s\,m_q - \sum_c P_p^c \sum_q s\,P_q^c\big)$. One pass over the window gives both, and the backward pass only multiplies.

# %%
#| export
_BLOCK = 2**17  # pixels at a time on a CPU, to stay in its cache (measured best of 2^12 … 2^20); a GPU takes all


# %%
#| export
def _gather(
    field: Tensor,  # [C,M] what every pixel hands to its neighbours, zero in the margins
    features: Tensor,  # [K,M] intensities over √2·sigma_i
    sources: Tensor | None,  # [M] 1 where a pixel may be p; None: all that are not zero in `field`
    shifts: list[tuple[int, float]],  # of each offset: its shift, and the logarithm of its spatial factor
    both_ways: bool,  # q to p and p to q (the whole window), or only q to p (half of it)
) -> Tensor:  # [C,M] Σ_q s(p,q)·field(q)
    "Sum over the window: one offset and one block of pixels at a time, in two reused buffers."
    gathered, length = torch.zeros_like(field), field.shape[1]
    block = max(1, min(_BLOCK, length) if field.device.type == "cpu" else length)
    buffers = features.new_empty(2, block)
    for start in range(0, length, block):
        for shift, log_decay in shifts:
            stop = max(start, min(start + block, length - shift))
            here, there = slice(start, stop), slice(start + shift, stop + shift)
            affinity = _affinity(features, sources, here, there, log_decay, buffers[:, : stop - start])
            gathered[:, here].addcmul_(affinity, field[:, there])
            if both_ways:
                gathered[:, there].addcmul_(affinity, field[:, here])
    return gathered


# %%
#| export
def _affinity(
    features: Tensor, sources: Tensor | None, here: slice, there: slice, log_decay: float, buffers: Tensor
) -> Tensor:
    "s(p,q) for the pixels p `here` and q `there`, once for each of the two that may be p; stands in the first buffer."
    affinity, scratch = buffers
    affinity.fill_(log_decay)
    for feature in features:
        torch.sub(feature[here], feature[there], out=scratch)
        affinity.addcmul_(scratch, scratch, value=-1)
    affinity.exp_()
    if sources is not None:
        affinity.mul_(torch.add(sources[here], sources[there], out=scratch))
    return affinity


# %% [markdown]
# Eq. 4 counts each pair twice, from p and from q. With a mask for both ends this is a factor of 2; with a mask for p alone, `_affinity` has counted
# the ends that may be p.

# %%
#| export
def _walk(
    probs: Tensor, image: Tensor, unlabelled: Tensor, kernel: Affinity, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:  # [N] the pair sums; [N,C,H,W] their gradient in `probs`
    "The pair sum of each image and its gradient, in PyTorch's own operations."
    count, _, height, width = probs.shape
    below, right = _margins(kernel.radius, height, width)
    lines, line = height + below, width + right
    shifts = [(dy * line + dx, -(dy * dy + dx * dx) / (2 * kernel.sigma_xy**2))
              for dy, dx in _half_window(kernel.radius, height, width)]
    field, features, sources = _lay_out(probs, image, unlabelled, kernel)
    gathered = _gather(field, features, sources, shifts, with_gradient)
    gradient = _gradient(gathered, probs, unlabelled, kernel) if with_gradient else None
    pairs = field.mul_(gathered)
    energy = (pairs[-1] - pairs[:-1].sum(0)).view(count, lines * line).sum(1)
    return energy.mul_(_ends(kernel) / (2 if with_gradient else 1)), gradient


# %%
#| export
def _gradient(gathered: Tensor, probs: Tensor, unlabelled: Tensor, kernel: Affinity) -> Tensor:
    "The gradient of the pair sums in `probs`, [N,C,H,W], from what the whole window was gathered to."
    count, classes, height, width = probs.shape
    below, right = _margins(kernel.radius, height, width)
    inside = gathered[:-1].view(classes, count, height + below, width + right)[..., :height, :width]
    gradient = torch.empty_like(probs, dtype=gathered.dtype).copy_(inside.transpose(0, 1)).mul_(-_ends(kernel))
    return gradient.masked_fill_(~unlabelled, 0) if kernel.mask_neighbours else gradient


# %%
#| export
def _ends(kernel: Affinity) -> int:
    "By what a pair that was visited once is multiplied: 2 for its two ends, 1 where `_affinity` counted the ends."
    return 2 if kernel.mask_neighbours else 1


# %% [markdown]
# ## Once more, in C
#
# The PyTorch code writes and reads arrays of the size of the batch for each offset. Nothing in the equations asks for that: the sums of one pixel fit
# into registers. So here is the same sum [in C](../basics/04_native.ipynb), for `LANES` pixels of a row at a time and `ROWS` rows a thread. Memory
# traffic is no longer what costs, so half a window is not worth its bookkeeping: each pixel visits the whole window and writes to no other pixel, and
# no thread waits for another.

# %%
#| export
_ROWS = 32  # of the band of an image that one thread works on: with its margins it stays in the cache of a core

# %%
#| export
_WALK = r"""
void pair_energy(const float *probs, const int64_t *probs_step, const float *image, const int64_t *image_step,
                 const uint8_t *unlabelled, int both, int count, int height, int width, int radius, float per_area,
                 float per_step, double *energy, float *gradient, int threads) {
    const int bands = (height + ROWS - 1) / ROWS, line = (width + LANES - 1) / LANES * LANES + 2 * radius + LANES;
    const int64_t plane = (int64_t)(ROWS + 2 * radius) * line;
    #pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int task = 0; task < count * bands; task++) {
        /* planes of a band, zero in the margins: the pixels p, the pixels q, P of each class, the intensities */
        float *source = calloc(plane * (2 + CLASSES + MODALITIES), sizeof(float));
        float *field = source + plane, *features = field + plane * (1 + CLASSES);
        const int n = task / bands, first = task % bands * ROWS, last = first + ROWS < height ? first + ROWS : height;
        for (int y = first < radius ? 0 : first - radius; y < last + radius && y < height; y++) {
            const int64_t to = (int64_t)(y - first + radius) * line + radius;
            const uint8_t *free = unlabelled + ((int64_t)n * height + y) * width;
            for (int x = 0; x < width; x++) source[to + x] = free[x], field[to + x] = both ? free[x] : 1;
            for (int c = 0; c < CLASSES; c++) {
                const float *from = probs + n * probs_step[0] + c * probs_step[1] + y * probs_step[2];
                for (int x = 0; x < width; x++)
                    field[(c + 1) * plane + to + x] = field[to + x] ? from[x * probs_step[3]] : 0;
            }
            for (int k = 0; k < MODALITIES; k++) {
                const float *from = image + n * image_step[0] + k * image_step[1] + y * image_step[2];
                for (int x = 0; x < width; x++) features[k * plane + to + x] = from[x * image_step[3]] * per_step;
            }
        }
        double total = 0;
        for (int y = first; y < last; y++)
            for (int x = 0; x < width; x += LANES) {
                const int64_t here = (int64_t)(y - first + radius) * line + radius + x;
                const vec mine = load(source + here);
                vec centre[MODALITIES], sum[CLASSES + 1] = {};
                for (int k = 0; k < MODALITIES; k++) centre[k] = load(features + k * plane + here);
                for (int dy = -radius; dy <= radius; dy++)
                    for (int dx = -radius; dx <= radius; dx++) {
                        const int64_t there = here + dy * line + dx;
                        vec exponent = (vec){} - (dy * dy + dx * dx) * per_area;
                        for (int k = 0; k < MODALITIES; k++) {
                            const vec step = centre[k] - load(features + k * plane + there);
                            exponent -= step * step;
                        }
                        vec s = exp_negative(exponent) * (mine + load(source + there));
                        if (dy == 0 && dx == 0) s = (vec){};
                        for (int c = 0; c <= CLASSES; c++) sum[c] += s * load(field + c * plane + there);
                    }
                vec pairs = load(field + here) * sum[0];
                for (int c = 1; c <= CLASSES; c++) pairs -= load(field + c * plane + here) * sum[c];
                const int lanes = width - x < LANES ? width - x : LANES;
                for (int i = 0; i < lanes; i++) total += pairs[i] / 2;
                for (int c = 0; gradient && c < CLASSES; c++) {
                    float *to = gradient + n * probs_step[0] + c * probs_step[1] + y * probs_step[2]
                                + x * probs_step[3];
                    for (int i = 0; i < lanes; i++) to[i * probs_step[3]] = field[here + i] ? -sum[c + 1][i] : 0;
                }
            }
        energy[task] = total;
        free(source);
    }
}
"""


# %%
#| export
def _walk_in_c(
    probs: Tensor, image: Tensor, unlabelled: Tensor, kernel: Affinity, with_gradient: bool
) -> tuple[Tensor, Tensor | None] | None:  # as `_walk`; None: not for these tensors, or no compiler
    "The same in C, for float32 on a CPU."
    if probs.device.type != "cpu" or probs.dtype != torch.float32 or not probs.numel():
        return None
    (count, classes, height, width), image = probs.shape, image.float()
    library = native(_WALK, ROWS=_ROWS, CLASSES=classes, MODALITIES=image.shape[1])
    if library is None:
        return None
    energy = probs.new_empty(count, -(-height // _ROWS), dtype=torch.float64)  # of each band
    gradient = torch.empty_strided(probs.shape, probs.stride()) if with_gradient else None
    free = unlabelled.contiguous()
    library.pair_energy(
        address(probs), strides(probs), address(image), strides(image), address(free), int(kernel.mask_neighbours),
        count, height, width, kernel.radius, ctypes.c_float(1 / (2 * kernel.sigma_xy**2)),
        ctypes.c_float(1 / (math.sqrt(2) * kernel.sigma_i)), address(energy), address(gradient),
        torch.get_num_threads())
    return energy.sum(1).float(), gradient


# %% [markdown]
# On a GPU the walk is [one program in Triton](../basics/07_gpu.ipynb). Where that does not run, PyTorch's operations do, and a warning says so once.

# %%
#| export
_WITHOUT_TRITON: set[str] = set()  # devices on which it failed


def _walk_in_triton(
    probs: Tensor, image: Tensor, unlabelled: Tensor, kernel: Affinity, with_gradient: bool
) -> tuple[Tensor, Tensor | None] | None:  # as `_walk`; None: not for these tensors, or no Triton
    "The same in one launch, for float32 on a CUDA device."
    device = str(probs.device)
    if probs.device.type != "cuda" or probs.dtype != torch.float32 or not probs.numel() or device in _WITHOUT_TRITON:
        return None
    try:
        from attenscribble.basics.gpu import walk_on_gpu  # Triton takes long to import
        return walk_on_gpu(probs, image, unlabelled, kernel.radius, 1 / (2 * kernel.sigma_xy**2),
                           1 / (math.sqrt(2) * kernel.sigma_i), kernel.mask_neighbours)
    except Exception as error:
        _WITHOUT_TRITON.add(device)
        warnings.warn(f"masked CRF: no Triton on {device}, a slower form runs: {str(error)[:300]}", stacklevel=2)
        return None


# %%
#| export
class _PairEnergy(torch.autograd.Function):
    "Σ_p Σ_q s(p,q)·(1 − Σ_c P_p P_q) of each image, [N]; its gradient in `probs` is found on the way."

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:  # those of `_walk`
        energy, gradient = _walk_in_c(*arguments) or _walk_in_triton(*arguments) or _walk(*arguments)
        ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what is saved has no graph: a second derivative would silently be 0
            raise RuntimeError("masked_crf_loss: found create_graph=True, expected one derivative, no second")
        return ctx.saved_tensors[0] * upstream.view(-1, 1, 1, 1), None, None, None, None


# %% [markdown]
# The released code unfolds with zeros, so a neighbour outside of the image counts as a pixel at position (0, 0), of intensity 0 and no
# class. Such a pixel never agrees and has no prediction: it raises the logged value and does not change the gradient. A switch adds it, for
# comparisons with logs of that code.

# %%
#| export
def _padding_energy(image: Tensor, unlabelled: Tensor, kernel: Affinity, dtype: torch.dtype) -> Tensor:
    "What zero-padding adds, [N]: a neighbour outside the image has intensity 0, position (0, 0) and no class."
    height, width = image.shape[-2:]
    y = torch.arange(height, device=image.device).view(-1, 1)
    x = torch.arange(width, device=image.device)
    inside = _within(y, height, kernel.radius) * _within(x, width, kernel.radius)
    outside = (2 * kernel.radius + 1) ** 2 - inside
    place = (y * y + x * x).to(dtype) / kernel.sigma_xy**2
    intensity = image.to(dtype).square().sum(1) / kernel.sigma_i**2
    affinity = torch.exp(-(place + intensity) / 2)
    return (affinity * outside).masked_fill(~unlabelled[:, 0], 0).sum((1, 2))


# %%
#| export
def _within(place: Tensor, side: int, radius: int) -> Tensor:
    "How many places of a side, 0 … side−1, lie in the window around each place."
    return place.clamp(max=radius) + (side - 1 - place).clamp(max=radius) + 1


# %% [markdown]
# The loss itself: what it is given is checked, then the pair sums are divided by the number of pixels.

# %%
#| export
def _check(probs: Tensor, image: Tensor, unlabelled: Tensor, denominator: str) -> None:
    "Raise unless shapes, types and options are those `masked_crf_loss` documents."
    if not probs.is_floating_point():
        raise TypeError(f"probs: found dtype {probs.dtype}, expected floats")
    if probs.ndim != 4:
        raise ValueError(f"probs: found {list(probs.shape)}, expected [N,C,H,W]")
    (count, _, *sides), size = probs.shape, ",".join(map(str, probs.shape[2:]))
    if image.ndim != 4 or [len(image), *image.shape[2:]] != [count, *sides]:
        raise ValueError(f"image: found {list(image.shape)}, expected [{count},K,{size}] like probs")
    if list(unlabelled.shape) != [count, 1, *sides]:
        raise ValueError(f"unlabelled: found {list(unlabelled.shape)}, expected [{count},1,{size}] like probs")
    if unlabelled.dtype != torch.bool:
        raise TypeError(f"unlabelled: found {unlabelled.dtype}, expected torch.bool, True in Ω_U")
    if denominator not in ("image", "batch"):
        raise ValueError(f"denominator: found {denominator!r}, expected 'image' or 'batch'")


# %%
#| export
@batch_loss
def masked_crf_loss(
    probs: Tensor,  # [N,C,H,W] float: class probabilities P, each pixel's sum to 1
    image: Tensor,  # [N,K,H,W] float: K modalities in [0,1]; gets no gradient
    *,
    unlabelled: Tensor | None,  # [N,1,H,W] bool: Ω_U, margins of a rotation included; None: every pixel
    radius: int = 5,  # pixels, ≥ 1: the window is 2·radius+1 wide; the paper's strict `< r` is radius = r − 1
    sigma_xy: float = 6.0,  # pixels, > 0
    sigma_i: float = 0.1,  # units of intensity, > 0; squared differences are summed over the modalities
    mask_neighbours: bool = True,  # True: p and q in Ω_U (eq. 4); False: p alone (the released code)
    weight: float = 1.0,  # w of eq. 5
    denominator: str = "image",  # "image": each image over its |Ω_U|, then the mean; "batch": sum over Σ|Ω_U|
    count_padding: bool = False,  # add the released code's zero-padded neighbours: changes the value, not the gradient
) -> BatchMean:  # called plainly, a tensor: [] float64 for float64 probs, float32 for every other type
    """How much look-alike unlabelled neighbours disagree (eqs. 4 and 5 of the paper; Obukhov et al. 2019).

    Every unordered pair counts twice, as in eq. 4. Σ_{i≠j} P_p^i P_q^j is taken as 1 − Σ_c P_p^c P_q^c, which
    presumes that the probabilities of a pixel sum to 1. An image without unlabelled pixels adds 0. Only `probs` gets a
    gradient, and there is no second derivative: create_graph=True raises RuntimeError. A wrong shape, type or option
    raises ValueError or TypeError. Never waits for the device, never unfolds. `masked_crf_loss.of_batch` gives the
    `BatchMean` that a loss term returns. Under torch.compile, wrap the loss in `torch.compiler.disable`: a compiler
    would unroll the loop over the window.
    """
    if unlabelled is None:
        unlabelled = torch.ones_like(probs[:, :1] if probs.ndim == 4 else probs, dtype=torch.bool)
    _check(probs, image, unlabelled, denominator)
    kernel = Affinity(radius, sigma_xy, sigma_i, mask_neighbours)
    with_gradient = probs.requires_grad and torch.is_grad_enabled()
    energy = _PairEnergy.apply(probs, image.detach(), unlabelled, kernel, with_gradient)
    if count_padding:
        energy = energy + _padding_energy(image.detach(), unlabelled, kernel, energy.dtype)
    pixels = unlabelled.sum((1, 2, 3))
    if denominator == "batch":
        return weight * ratio(energy.sum(), pixels.sum())
    return weight * ratio((energy / pixels.clamp(min=1)).sum(), len(energy))


# %% [markdown]
# ## Equal, and what it costs
#
# The naive sum and the fast form agree in value and, behind a softmax, in the gradient. The sum derived above equals the
# gradient to rounding, and it is zero outside $\Omega_U$.

# %%
fast = lambda z: masked_crf_loss(z.softmax(1), image, unlabelled=free, radius=2, sigma_xy=2.0, sigma_i=0.3)
naive = lambda z: mcrf_naive(z.softmax(1)[0], image[0, 0], free[0, 0], 2, 2.0, 0.3)
assert_same(fast, naive, probs.log())
hand_made = masked_crf_loss(columns_differ[None], flat[None, None], unlabelled=None, radius=1, sigma_xy=1.0)
torch.testing.assert_close(hand_made.item(), by_hand)

# %%
leaf = probs.clone().requires_grad_()
masked_crf_loss(leaf, image, unlabelled=free, radius=2).backward()
expected = torch.zeros(3, 8, 8, dtype=torch.float64)
for y, x in free[0, 0].nonzero().tolist():
    s = affinity_map(image[0, 0].numpy(), (y, x), Affinity(radius=2), free[0, 0].numpy())
    expected[:, y, x] = (torch.tensor(s).nan_to_num() * probs[0]).sum((1, 2))
torch.testing.assert_close(leaf.grad[0], -2 * expected / free.sum())

# %%
batch = torch.randn(12, 4, 256, 256).softmax(1).requires_grad_()
scans, gaps = torch.rand(12, 1, 256, 256), torch.rand(12, 1, 256, 256) < 0.99
price = cost(lambda: masked_crf_loss(batch, scans, unlabelled=gaps).backward())
print(f"value and gradient, 12×4×256²: {price}; the gradient alone is {batch.nbytes / 2**20:.0f} MiB")
arguments = batch.detach(), scans, gaps, Affinity(), True
print("without C:", cost(lambda: _walk(*arguments)))
if found := _walk_in_c(*arguments):
    torch.testing.assert_close(found, _walk(*arguments), rtol=1e-4, atol=1e-5)

# %% [markdown]
# ## What the loss does alone, and with strokes
#
# Without a network: each pixel has four logits, which start as faint noise and follow the gradient. Partial cross-entropy alone teaches the strokes
# and nothing else. The CRF alone finds regions of one class that end at edges, but cannot know which class; its minimum, 0, is
# *any* constant. Both together should find the heart.

# %%
scan, context = torch.tensor(heart, dtype=torch.float32)[None, None], torch.tensor(scribble)[None].long()
omega_u = (context == IGNORE)[:, None]


def mean_dice(classes):  # of the three tissues, against the truth
    masks = [(classes == c, label == c) for c in (1, 2, 3)]
    return np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in masks])


# %%
def descend(pce, crf, mask_neighbours=False, steps=200):
    torch.manual_seed(0)
    logits = (0.01 * torch.randn(1, 4, SIDE, SIDE)).requires_grad_()
    optimiser = torch.optim.SGD([logits], lr=30)  # the mean over 4096 pixels leaves each a small slope
    for _ in range(steps):
        pull = masked_crf_loss(logits.softmax(1), scan, unlabelled=omega_u, mask_neighbours=mask_neighbours)
        loss = pce * F.cross_entropy(logits, context, ignore_index=IGNORE) + crf * pull
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return logits.argmax(1)[0].numpy()


# %%
found = {"pCE alone": descend(1, 0), "CRF alone": descend(0, 1), "pCE + CRF, strokes pull": descend(1, 1),
         "pCE + CRF as in eq. 4": descend(1, 1, mask_neighbours=True)}
figure, axes = panels(6, 3, size=2.5)
draw(axes[0], heart, scribble=scribble, ignore=IGNORE, title="image and strokes")
draw(axes[1], label=label, outline=label, title="truth")
for axis, (name, classes) in zip(axes[2:], found.items(), strict=True):
    draw(axis, label=classes, outline=label, title=f"{name}: DSC {mean_dice(classes):.2f}")
class_legend(figure, NAMES, background=True)
assert mean_dice(found["pCE + CRF, strokes pull"]) > 0.95 and mean_dice(found["CRF alone"]) < 0.6

# %% [markdown]
# The last panel is a surprise. In eq. 4 both p *and* q are unlabelled, so a stroke does not act on its neighbours: with free logits the
# two losses have no pixel in common. In training it is the **network** that brings a stroke's class to the pixels beside it, because all pixels share
# its weights. The released code masks p alone (`mask_neighbours=False`): there strokes act directly.
#
# ### With a network
#
# Three convolutions that see image and position, with eq. 4 at three weights.

# %%
y_x = torch.stack(torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij"))[None]


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 5, padding=2), torch.nn.ReLU(),
                               torch.nn.Conv2d(16, 16, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 1))


# %%
def fit_network(crf, steps=150):
    network = small_network()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        logits = network(torch.cat((scan, y_x), 1))
        pull = masked_crf_loss(logits.softmax(1), scan, unlabelled=omega_u)
        loss = F.cross_entropy(logits, context, ignore_index=IGNORE) + crf * pull
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return logits.argmax(1)[0].numpy()


# %%
carried = {weight: fit_network(weight) for weight in (0, 0.01, 0.1)}
figure, axes = panels(3, size=2.5)
for axis, (weight, classes) in zip(axes, carried.items(), strict=True):
    draw(axis, label=classes, outline=label, title=f"λ = {weight}: DSC {mean_dice(classes):.2f}")
class_legend(figure, NAMES, background=True)
assert mean_dice(carried[0.01]) > max(mean_dice(carried[0]), mean_dice(carried[0.1]))

# %% [markdown]
# Without the CRF, everything near a stroke gets its class. A small weight moves the borders to the edges of the image. With too large a weight, one
# class nearly everywhere, which makes eq. 4 small, costs less than the strokes it contradicts. The paper's
# $\lambda_{mcrf} = 0.1$ is meant for a U-Net on 256 × 256 pixels, not for this example.

# %% [markdown]
# ## Real data: does the true outline cost less?
#
# One slice of an ACDC patient. The expert's dense label is taken as a certain prediction, whose loss is eq. 4; then it is moved along x, a pixel at a
# time.

# %%
folder = Path(os.environ.get("ATTENSCRIBBLE_DATA", "data")) / "acdc"
shifts = range(-6, 7)
if folder.is_dir():
    case = acdc(folder).read("patient001")[0]
    z = int((case.label > 0).sum((1, 2)).argmax())
    slice_image = torch.tensor(case.image[z])[None, None]
    certain = F.one_hot(torch.tensor(case.label[z]).long(), 4).permute(2, 0, 1)[None].float()
    slice_free = torch.tensor(case.scribble[z] != IGNORE).logical_not()[None, None]
    losses = [masked_crf_loss(certain.roll(k, 3), slice_image, unlabelled=slice_free).item() for k in shifts]
    there, aside = losses[shifts.index(0)], losses[shifts.index(4)]
    print(f"{case.name}, slice {z}: {there:.3f} at the expert's outline, {aside:.3f} moved by 4 pixels")
else:
    losses = None
    print(f"skipped: no ACDC folder at {folder}; set ATTENSCRIBBLE_DATA")

# %%
if losses:
    figure, axis = plt.subplots(figsize=(4.2, 2.6), layout="constrained")
    axis.plot(shifts, losses, "o-", color="#0072B2")
    axis.axhline(0, color="0.6", linestyle=":")
    axis.text(-6, 0.01 * max(losses), "all background", va="bottom", fontsize=8, color="0.4")
    axis.set(xlabel="label moved along x (pixels)", ylabel="$l_{mcrf}$", ylim=(-0.05 * max(losses), None),
             title=f"ACDC {case.name}, slice {z}")
    assert min(losses) == losses[shifts.index(0)] > 0


# %% [markdown]
# The expert's outline has a smaller loss than any displaced one. This does not show that the truth is the minimum: all background
# has loss 0, and one kind of error was tried on one slice. The CRF is of use only together with strokes.

# %% [markdown]
# ## Slide $\sigma_I$
#
# The setting that matters most: how large a step in intensity is an edge? The picture shows pixel B, at the outer
# edge of the myocardium.

# %%
def plot_sigma_i(sigma_i=0.1):
    figure, (left, right) = panels(2, size=2.8)
    draw(left, heart, scribble=scribble, ignore=IGNORE, title="pixel B")
    left.plot(*pixels["B"][::-1], "x", color="#D55E00", markeredgewidth=2)
    title = f"$\\sigma_I$ = {sigma_i:g}"
    shown = plot_affinity(right, heart, pixels["B"], Affinity(sigma_i=sigma_i), unlabelled, title)
    figure.colorbar(shown, ax=right, shrink=0.8, label="affinity s")
    plt.show()

interact(plot_sigma_i, sigma_i=(0.02, 0.6, 0.02));

# %%
figure, axes = panels(4, size=2.3)
for axis, sigma_i in zip(axes, (0.02, 0.1, 0.3, math.inf), strict=True):
    title = f"$\\sigma_I$ = {sigma_i:g}".replace("inf", "∞")
    shown = plot_affinity(axis, heart, pixels["B"], Affinity(sigma_i=sigma_i), unlabelled, title)
figure.colorbar(shown, ax=axes, shrink=0.8, label="affinity s");


# %% [markdown]
# Below the noise (0.04), almost no neighbour is similar and the loss vanishes; from the step between two tissues on (here 0.2), nearly
# all are similar and the loss makes organs shrink. 0.1 lies between the two, for images scaled to [0, 1] with edges like these.
#
# ## Exercises
#
# **1. Predict.** All pixels are undecided, $P = 1/C$. The mean over p of $\sum_q s(p,q)$ is `total`. What is the loss?

# %%
def check_undecided(f):
    for classes in (2, 4):
        undecided = torch.full((1, classes, 8, 8), 1 / classes, dtype=torch.float64)
        total = 2 * masked_crf_loss(torch.full((1, 2, 8, 8), 0.5).double(), image, unlabelled=free)
        torch.testing.assert_close(f(classes, total), masked_crf_loss(undecided, image, unlabelled=free))

def undecided_loss(classes, total):
    ...  # your code here

exercise(check_undecided, undecided_loss, solution=lambda classes, total: total * (1 - 1 / classes))


# %% [markdown]
# **2. Implement.** How many neighbours has the pixel (y, x) of an image of height × width?

# %%
def check_neighbours(f):
    counts = [[f(y, x, 4, 9, 2) for x in range(9)] for y in range(4)]
    assert counts[0][0] == 8 and counts[1][4] == 19
    assert sum(map(sum, counts)) == 2 * sum((4 - dy) * (9 - abs(dx)) for dy, dx in _half_window(2, 4, 9))

def neighbours(y, x, height, width, radius):
    ...  # your code here

def neighbours_solution(y, x, height, width, radius):
    rows = min(y, radius) + min(height - 1 - y, radius) + 1
    columns = min(x, radius) + min(width - 1 - x, radius) + 1
    return rows * columns - 1

exercise(check_neighbours, neighbours, neighbours_solution)


# %% [markdown]
# **3. Implement.** Eq. 4 for all pixels as a matrix: `affinity` [M,M] holds s(p,q), zero on the diagonal, `rows` [M,C]
# the probabilities. One expression.

# %%
def check_matrix(f):
    kernel, picture = Affinity(radius=8), image[0, 0].numpy()
    maps = [affinity_map(picture, p, kernel).ravel() for p in np.ndindex(8, 8)]
    affinity, rows = torch.tensor(np.stack(maps)).nan_to_num(), probs.flatten(2)[0].T
    torch.testing.assert_close(f(affinity, rows), masked_crf_loss(probs, image, unlabelled=None, radius=8))

def dense_loss(affinity, rows):
    ...  # your code here

exercise(check_matrix, dense_loss, solution=lambda affinity, rows: (affinity * (1 - rows @ rows.T)).sum() / len(rows))


# %% [markdown]
# **4. Break.** For which image of 8 × 8 pixels is the loss of *any* certain prediction below 10⁻⁶ with the default kernel? Return it, [8,8]; its
# values need not lie in [0, 1].

# %%
def check_blind(f):
    blind = torch.as_tensor(f()).double().expand(1, 1, 8, 8)
    classes = torch.randint(3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    certain = F.one_hot(classes, 3).permute(0, 3, 1, 2).double()
    assert 0 <= masked_crf_loss(certain, blind, unlabelled=None) < 1e-6

def blind_image():
    return torch.zeros(8, 8)  # your image here

exercise(check_blind, blind_image, solution=lambda: torch.arange(64.0).view(8, 8))

# %% [markdown]
# ## Recap
#
# `masked_crf_loss` is eqs. 4 and 5, exactly, without an unfolded tensor: one pass over half the window gives value and gradient. Its value is
# large where neighbours that look alike disagree, and it does not say *which* class is right. Surprising: with both ends
# masked, strokes act only through the network, and too large a weight empties the image.
#
# `Affinity`, `affinity_map` and `plot_affinity` draw the kernel. In [the next chapter](33_ssa.ipynb) the network learns which places are
# alike; [the objective](36_objective.ipynb) adds the terms up.
