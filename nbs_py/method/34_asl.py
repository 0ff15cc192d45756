# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The attentive similarity loss
#
# > The network's own attention says who looks alike: a loss that learns its kernel, exact without its huge matrix.
#
# Can a network find out by itself which places belong to the same organ? The [masked CRF](32_mcrf.ipynb) compares brightness, which two organs may
# share, while [attention](33_ssa.ipynb) compares features that the network has learnt. This chapter turns attention into a
# similarity, penalises similar neighbours that are predicted differently, and measures what a network learns from that.

# %%
#| default_exp method.asl

# %%
#| export
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attenscribble.basics.distributed import BatchMean, Group, batch_loss, common, ratio
from attenscribble.basics.errors import one_of
from attenscribble.basics.native import LANES, address, native
from attenscribble.method.ssa import chunk_of, row_log_sum

# %%
import itertools
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
from ipywidgets import interact

from attenscribble.basics.checking import assert_same, cost, exercise
from attenscribble.basics.drawing import draw, panels
from attenscribble.data.batches import resize_image, resize_labels
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import acdc
from attenscribble.method.network import UNet2d
from attenscribble.method.ssa import attach, attention_maps, plot_attention

# %% [markdown]
# ## The picture: from attention to similarity
#
# A heart from the phantom on a grid of 24 × 24 cells. In place of learnt queries and keys, two noisy measurements of each cell's brightness, mean and
# standard deviation: the closer two measurements, the larger the attention. The cross is the cell p.

# %%
data = phantom(patients=5)
case = data.read("patient002")[0]
slices = resize_image(torch.tensor(case.image[2:6]), 96)[:, None]
patches = F.unfold(slices[1:2], 4, stride=4)  # [1,16,576]: the pixels of each cell
look = torch.stack((patches.mean(1), 2 * patches.std(1)), -1) * 5  # [1,576,2]
torch.manual_seed(5)
asks, answers = look + 0.3 * torch.randn(1, 576, 2), look + 0.3 * torch.randn(1, 576, 2)


def closeness(asks, answers):  # q·k of [x, 1, |x|²] and [x, −|x|²/2, −1/2] is −|x − x'|²/2: alike = near
    square = lambda v: v.square().sum(-1, keepdim=True)
    one = torch.ones_like(square(asks))
    return (torch.cat((asks, one, square(asks)), -1)[:, None],
            torch.cat((answers, -square(answers) / 2, -one / 2), -1)[:, None])


# %%
cell, grid = 12 * 24 + 13, (24, 24)
A = attention_maps(*closeness(asks, answers), 4.0)[0, 0] * 576
y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
distance = torch.hypot(y.flatten() - 12.0, x.flatten() - 13.0)
decay = torch.exp(-(distance**2) / (2 * 6**2))
S = torch.sigmoid(A + A.T - 3)
near = torch.maximum(abs(y - 12), abs(x - 13)).flatten() <= 5
rows = {"A: p asks": (A[cell], 8), "Ā = A + Aᵀ": ((A + A.T)[cell], 8), "S = σ(w·Ā + b)": (S[cell], 1),
        "M: distance decay": (decay, 1), "M·S in the window": (torch.where(near, decay * S[cell], torch.nan), 1)}
figure, axes = panels(6, 3, size=2.5)
draw(axes[0], slices[1, 0].numpy(), title="image")
for axis, (title, (row, top)) in zip(axes[1:], rows.items(), strict=True):
    shown = plot_attention(axis, row, grid, cell, limits=(0, top), title=title)
    label, extend = ("share × hw", "max") if top == 8 else ("", "neither")
    figure.colorbar(shown, ax=axis, shrink=0.8, ticks=(0, top), label=label, extend=extend)


# %% [markdown]
# A row of A is the attention that p pays to all cells. Queries and keys differ, so A is not symmetric; $\bar A$ is. A weight, a bias and a sigmoid
# make a similarity of it, the distance decay and a window keep it local. The last panel is how much p should agree with each neighbour.
#
# ## The equations
#
# $$A = \mathrm{softmax_{row}}\big(\mathrm{concat}_{n,L}\,Q_iK_i^T/\sqrt{d_k}\big),\quad \bar A = A + A^T,\quad S = \sigma\big(\mathrm{Conv}^{1\times1}_{nL \to 1}(\bar A)\big),\quad \mathcal M_{pq} = e^{-\|p-q\|^2/2\sigma^2}$$
#
# $$l_{atn} = \frac{1}{|\Omega_U|} \sum_{p \in \Omega_U}\ \sum_{q \in \Omega_U,\ 0 < \|q-p\|_\infty < r} \mathcal M_{pq}\, S_{pq} \sum_{i \neq j} \tilde P_p^i \tilde P_q^j \tag{6}$$

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $Q$, $K$ | `query`, `key` | [N,nL,hw,d] | – |
# | $w$, $b$ of the convolution | `weight`, `bias` | nL, 1 | – |
# | $\tilde P$ | `probs`, resized to h × w | [N,C,h,w] | probability |
# | $\Omega_U$ | `unlabelled` | [N,1,H,W] bool | – |
# | $r - 1$ | `radius` | – | cells of the grid |
# | $\sigma$ | `sigma_xy` | – | cells of the grid |
#
# No value of $r$ and $\sigma$ is in the paper; the released code takes 11 × 11 cells and $\sigma$ = 6 on a grid of 64 × 64. On
# another grid the same numbers cover another part of the body.

# %% [markdown]
# ## Naive code
#
# One image. The maps A come from `attention_maps`; the rest is the equation, a loop for each sum.

# %%
def asl_naive(P, A, weight, bias, free, grid, radius, sigma_xy):
    "Eq. 6: P [C,hw], A [nL,hw,hw], free [hw] bool."
    total, cells = 0, [(p // grid[1], p % grid[1]) for p in range(len(free))]
    for p, q in itertools.product(range(len(free)), repeat=2):
        dy, dx = cells[p][0] - cells[q][0], cells[p][1] - cells[q][1]
        if free[p] and free[q] and 0 < max(abs(dy), abs(dx)) <= radius:
            M = math.exp(-(dy**2 + dx**2) / (2 * sigma_xy**2))
            S = torch.sigmoid(sum(weight[i] * (A[i, p, q] + A[i, q, p]) for i in range(len(A))) + bias)
            total = total + M * S * sum(P[i, p] * P[j, q] for i, j in itertools.permutations(range(len(P)), 2))
    return total / sum(free)


# %% [markdown]
# ## Check by hand
#
# Two cells side by side, predicted with certainty as different classes; queries are 0, so every share is ½ and $\bar A = 1$. With $w = 1$,
# $b = -1$: $S = \sigma(0) = ½$. With $\sigma = 1$: $M = e^{-1/2}$. The pair is counted from both ends and the sum is divided by two cells:
# $\frac{2 \cdot ½\, e^{-1/2}}{2} = ½\,e^{-1/2} = 0.303$.

# %%
even = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
apart = torch.eye(2, dtype=torch.float64)
by_hand = torch.tensor(math.exp(-1 / 2) / 2, dtype=torch.float64)
torch.testing.assert_close(asl_naive(apart, even, [1.0], -1.0, [True, True], (1, 2), 1, 1.0), by_hand)


# %% [markdown]
# Apart from the loops, the size of A is the problem. Here is the dense form in a few lines, and the memory of A for a training batch of 12 images
# on 64 × 64 cells, and on 128 × 128:

# %%
def asl_dense(P, query, key, weight, bias, grid, radius, sigma_xy):
    "Eq. 6 with all cells in Ω_U; P [N,C,h,w]."
    A = attention_maps(query, key, query.shape[-1] ** -0.5)
    S = torch.sigmoid(((A + A.transpose(2, 3)) * weight.view(-1, 1, 1)).sum(1) + bias)
    place = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    step = place[:, None] - place
    near = (step.abs().amax(-1) <= radius) & (step != 0).any(-1)
    M = torch.exp(-step.square().sum(-1).to(P) / (2 * sigma_xy**2)) * near
    rows = P.flatten(2)
    return (M * S * (1 - rows.transpose(1, 2) @ rows)).sum() / rows[:, 0].numel()


print([f"{side}×{side}: {12 * side**4 * 4 / 2**30:.2f} GiB for A, once" for side in (64, 128)])


# %% [markdown]
# Autograd keeps about ten such matrices. But eq. 6 reads only the pairs inside the window, 120 of the 4,096 numbers in a row. The others are needed
# for one number, the sum of the row's exponentials.
#
# ## Fast code
#
# ### The window
#
# M, S and the disagreement are symmetric. So half of the window is enough: the offsets that follow the middle one in reading order, each pair once.

# %%
#| export
@dataclass(frozen=True)
class _Window:
    "The pairs of cells that eq. 6 reads, each once: p and the j-th offset of half the window."

    there: Tensor  # [hw,J] int64: index of q = p + Δ_j; p itself where q is outside the grid
    back: Tensor  # [hw,J] int64: index of p − Δ_j; p itself outside
    inside: Tensor  # [hw,J] bool: q lies on the grid
    behind: Tensor  # [hw,J] bool: p − Δ_j lies on the grid
    decay: Tensor  # [J]: M = exp(−|Δ_j|²/2σ²)


# %%
#| export
def _offsets(grid: tuple[int, int], radius: int, device: torch.device) -> tuple[Tensor, ...]:
    "Δy and Δx of the offsets in half the window that fit into the grid, [J] each."
    rows, columns = (torch.arange(-most, most + 1, device=device) for most in (min(radius, side - 1) for side in grid))
    offsets = torch.cartesian_prod(rows, columns)  # in reading order: those after the middle one are the other half
    return offsets[len(offsets) // 2 + 1:].unbind(1)


# %%
#| export
def _moved(dy: Tensor, dx: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    "The index of the cell at each offset from each cell p, [hw,J], and whether it is on the grid; p itself if not."
    height, width = grid
    place = torch.arange(height * width, device=dy.device)[:, None]
    y, x = place // width + dy, place % width + dx
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return torch.where(inside, y * width + x, place), inside


# %%
#| export
@lru_cache(maxsize=8)  # a training asks for the same one in every step
def _window_on(
    grid: tuple[int, int], radius: int, sigma_xy: float, device: torch.device, dtype: torch.dtype
) -> _Window:
    "Half of the window around each cell of a grid."
    with torch.inference_mode(False):  # it outlives the call, and a training may be the next to ask
        dy, dx = _offsets(grid, radius, device)
        there, inside = _moved(dy, dx, grid)
        back, behind = _moved(-dy, -dx, grid)
        return _Window(there, back, inside, behind, torch.exp(-(dy**2 + dx**2).to(dtype) / (2 * sigma_xy**2)))


def _window(grid: tuple[int, int], radius: int, sigma_xy: float, like: Tensor) -> _Window:
    "The same on the device and in the dtype of `like`."
    return _window_on(grid, radius, sigma_xy, like.device, like.dtype)


# %% [markdown]
# ### A row in one number
#
# $A_{pq} = e^{z_{pq} - \ell_p}$ with $\ell_p = \log \sum_k e^{z_{pk}}$: outside of the window, the row of logits z acts through $\ell_p$ alone.
# The attention of [chapter 33](33_ssa.ipynb) computes $\ell$ and keeps it, so the large matrix is computed once, in pieces, for both. What remains
# to be computed here is one product $q_p \cdot k_q$ for each entry of the window.

# %%
row = 4.0 * (closeness(asks, answers)[0] @ closeness(asks, answers)[1].transpose(2, 3))[0, 0, cell]
read = near & (torch.arange(576) != cell)
share = (row - row.logsumexp(0)).exp()
torch.testing.assert_close(share[read], A[cell][read] / 576)


# %%
def plot_row(axis):
    axis.bar(range(576), share * 576, width=1, color="0.75", label="acts through one number, $\\ell_p$")
    axis.bar(torch.arange(576)[read], (share * 576)[read], width=1, color="#D55E00", label="read by eq. 6")
    axis.set(xlabel="cell q, in reading order", ylabel="share × hw", title="one row of A", xlim=(0, 576))
    axis.legend(frameon=False, fontsize=8)


def plot_memory(axis):
    sides = torch.tensor([16, 32, 64, 128, 256])
    axis.plot(sides, 4 * sides**4 / 2**20, "o-", color="0.5", label="A")
    axis.plot(sides, 4 * 121 * sides**2 / 2**20, "o-", color="#D55E00", label="window and $\\ell$")
    axis.set(xscale="log", yscale="log", xlabel="side of the grid", ylabel="MiB, one image", xticks=sides)
    axis.set_xticklabels(sides.tolist())
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)


# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.5), layout="constrained", width_ratios=(2.4, 1))
plot_row(axes[0])
plot_memory(axes[1])


# %% [markdown]
# The products are one batched multiplication for a few cells at a time. $D_{pj} = a_p \cdot b_{p + \Delta_j}$ with query as $a$ and key as $b$ is one
# direction of a pair, with the roles exchanged it is the other.

# %%
#| export
def _products(a: Tensor, b: Tensor, window: _Window) -> Tensor:
    "D[p,j] = a_p·b_{p+Δ_j} of [B,hw,d], [B,hw,J]; where p + Δ_j is outside the grid, an arbitrary number."
    found = a.new_empty(len(a), *window.there.shape)
    for rows in _parts(a, window):
        found[:, rows] = (b[:, window.there[rows]] @ a[:, rows, :, None])[..., 0]
    return found


# %%
#| export
def _parts(like: Tensor, window: _Window) -> Iterator[slice]:
    "Rows of the window, one for each cell, such that what they gather is one chunk."
    cells, offsets = window.there.shape
    rows = max(1, chunk_of(like) // max(1, len(like) * offsets * like.shape[2]))
    return (slice(start, start + rows) for start in range(0, cells, rows))


# %% [markdown]
# The backward pass gathers too. No two cells add to the same place, so the result does not depend on the order of additions: it is the same in every
# run, on a GPU as well.

# %%
#| export
def _product_slopes(slope: Tensor, a: Tensor, b: Tensor, window: _Window) -> tuple[Tensor, Tensor]:
    "The gradients of a and b from that of their products; products outside the grid have none."
    to_a, to_b = torch.empty_like(a), torch.empty_like(b)
    step = torch.arange(window.there.shape[1], device=a.device)
    for rows in _parts(a, window):
        here = (slope[:, rows] * window.inside[rows])[:, :, None]  # [B,rows,1,J]
        to_a[:, rows] = (here @ b[:, window.there[rows]])[:, :, 0]
        back = (slope[:, window.back[rows], step] * window.behind[rows])[:, :, None]
        to_b[:, rows] = (back @ a[:, window.back[rows]])[:, :, 0]
    return to_a, to_b


# %%
#| export
class _WindowProducts(torch.autograd.Function):
    "`_products` with a gradient."

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, window: _Window) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.window = window
        return _products(a, b, window)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(slope.device.type, enabled=False):
            a, b = ctx.saved_tensors
            return *_product_slopes(slope, a, b, ctx.window), None


# %% [markdown]
# ### Which cells are unlabelled?
#
# The paper defines $\Omega_U$ on pixels and does not say what it is on the grid. Here a cell belongs to it if **none** of its pixels is annotated;
# eq. 1 takes care of the others. The two alternatives in the picture also take cells that a stroke crosses.

# %%
#| export
def annotated_cells(
    unlabelled: Tensor,  # [N,1,H,W] bool: Ω_U of the pixels
    grid: tuple[int, int],  # (h,w)
) -> Tensor:  # [N,h·w] bool
    "Cells of a coarser grid that hold at least one annotated pixel: all others make up Ω_U on the grid."
    return F.adaptive_max_pool2d((~unlabelled).float(), grid).flatten(1) > 0


# %%
scribble = resize_labels(torch.tensor(case.scribble[3:4]).long(), 96)[:, None]  # as the slice in the picture
free = scribble == data.ignore
ways = {"none annotated": ~annotated_cells(free, grid).view(1, 24, 24),
        "the pixel `nearest` picks": F.interpolate(free.float(), grid)[0] > 0,
        "at least one unlabelled": annotated_cells(~free, grid).view(1, 24, 24)}
figure, axes = panels(4, size=2.4)
draw(axes[0], slices[1, 0].numpy(), scribble=scribble[0, 0].numpy(), ignore=data.ignore, title="strokes")
for axis, (name, unlabelled) in zip(axes[1:], ways.items(), strict=True):
    colours = plt.matplotlib.colors.ListedColormap(("black", "#56B4E9"))
    axis.imshow(unlabelled[0], cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(f"{name}\n$\\Omega_U$ (blue): {unlabelled.float().mean():.0%} of the cells", fontsize=9)
shares = [unlabelled.float().mean() for unlabelled in ways.values()]
assert shares == sorted(shares) and (ways["none annotated"] <= ways["the pixel `nearest` picks"]).all()


# %% [markdown]
# ### What the loss is given
#
# $\Omega_U$ comes to the grid; where no grid is given, it follows from the aspect of the image.

# %%
#| export
def _free_cells(probs: Tensor, unlabelled: Tensor | None, keep: Tensor | None, grid: tuple[int, int]) -> Tensor:
    "Ω_U on the grid, without the images to be dropped: [N,hw] bool."
    if unlabelled is None:
        unlabelled = torch.ones_like(probs[:, :1], dtype=torch.bool)
    free = ~annotated_cells(unlabelled, grid)
    return free if keep is None else free & keep[:, None]


# %%
#| export
def _grid_of(probs: Tensor, cells: int) -> tuple[int, int]:
    "The grid of that many cells with the aspect of the image. Raises ValueError where there is none."
    height, width = probs.shape[2:]
    rows = max(1, round((cells * height / width) ** 0.5))
    if cells % rows or abs(rows * width / height - cells // rows) >= 1:
        raise ValueError(f"grid: {cells} cells do not make a grid like {height}×{width} pixels; pass grid=(h, w)")
    return rows, cells // rows


# %% [markdown]
# P comes down to the grid by bilinear interpolation without antialiasing, as in the released code:
# where a cell has four pixels a side, that is the mean of the four in its middle.

# %%
#| export
_RESIZE: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear", "align_corners": False}, "area": {"mode": "area"}, "nearest": {"mode": "nearest"}}


# %% [markdown]
# Everything that can be wrong is named before anything is computed: the tensors, then the options.

# %%
#| export
def _check(probs: Tensor, query: Tensor, key: Tensor, weight: Tensor, bias: Tensor, *masks: Tensor | None) -> None:
    "Raise unless the tensors are those `attentive_similarity_loss` documents."
    for name, value in (("probs", probs), ("query", query), ("key", key)):
        _check_floats(name, value, "[N,C,H,W]" if name == "probs" else "[N,nL,hw,d]")
    if len(query) != len(probs) or query.shape != key.shape:
        raise ValueError(f"query, key: found {list(query.shape)}, {list(key.shape)}, "
                         f"expected [{len(probs)},nL,hw,d] twice")
    if weight.numel() != query.shape[1] or bias.numel() != 1:
        raise ValueError(f"weight, bias: found {weight.numel()} and {bias.numel()} elements, expected {query.shape[1]} "
                         "and 1: one weight for each head of each layer")
    _check_masks(probs, *masks)


# %%
#| export
def _check_floats(name: str, value: Tensor, expected: str) -> None:
    "Raise unless a tensor holds floats along four axes."
    if not value.is_floating_point():
        raise TypeError(f"{name}: found dtype {value.dtype}, expected floats")
    if value.ndim != 4:
        raise ValueError(f"{name}: found {list(value.shape)}, expected {expected}")


# %%
#| export
def _check_masks(probs: Tensor, unlabelled: Tensor | None, keep: Tensor | None) -> None:
    "Raise unless the masks are those `attentive_similarity_loss` documents."
    count, _, *sides = probs.shape
    for name, mask, shape in (("unlabelled", unlabelled, [count, 1, *sides]), ("keep", keep, [count])):
        if mask is not None and (mask.dtype != torch.bool or list(mask.shape) != shape):
            raise ValueError(f"{name}: found {mask.dtype} {list(mask.shape)}, expected torch.bool {shape}")


# %%
#| export
@dataclass(frozen=True)
class _View:
    "The grid, which pairs of its cells count how much, and the scales of the logits and of Ā."

    grid: tuple[int, int]  # (h,w)
    radius: int  # cells
    sigma_xy: float  # cells
    logit_scale: float  # on QKᵀ
    similarity_scale: float  # on Ā = A + Aᵀ


# %%
#| export
def _view(
    query: Tensor, grid: tuple[int, int], radius: int, sigma_xy: float, logit_scale: str, similarity_scale: float | str
) -> _View:
    "What the options mean for this query. Raises ValueError unless there is such a grid and such a window on it."
    cells, dim = query.shape[2:]
    if len(grid) != 2 or grid[0] * grid[1] != cells:
        raise ValueError(f"grid: found {grid}, expected (h, w) of the {cells} cells that query and key have")
    if not isinstance(radius, int) or radius < 1:
        raise ValueError(f"radius: found {radius!r}, expected a whole number of cells, at least 1")
    if not sigma_xy > 0:
        raise ValueError(f"sigma_xy: found {sigma_xy!r}, expected a number of cells above 0")
    scale = dim**-0.5 if logit_scale == "sqrt_dk" else 1.0
    factor = cells if similarity_scale == "hw" else cast(float, similarity_scale)
    return _View((grid[0], grid[1]), min(radius, max(grid)), sigma_xy, scale, factor)


# %%
#| export
def _check_options(query: Tensor, log_sum: Tensor | None, logit_scale: str, similarity_scale: float | str,
                   denominator: str, resize: str) -> None:
    "Raise unless the options are those `attentive_similarity_loss` documents."
    one_of("logit_scale", logit_scale, ("sqrt_dk", "none"))
    if log_sum is not None and (logit_scale != "sqrt_dk" or log_sum.shape != query.shape[:3]):
        raise ValueError(f"log_sum: found {list(log_sum.shape)} with logit_scale={logit_scale!r}, expected "
                         f"{list(query.shape[:3])} and 'sqrt_dk'")
    one_of("denominator", denominator, ("omega_u", "grid"))
    one_of("resize", resize, _RESIZE)
    if isinstance(similarity_scale, str):
        one_of("similarity_scale", similarity_scale, ("hw",))


# %% [markdown]
# ### The pairs
#
# The two factors of a pair, and their product.

# %%
#| export
def _disagreement(rows: Tensor, there: Tensor) -> Tensor:
    "1 − Σ_c P̃_p P̃_q of all pairs in half the window, [N,hw,J], from P̃ [N,C,hw]."
    agree = rows.new_zeros(())
    for classes in rows.unbind(1):  # a class at a time: [N,hw]
        agree = agree + classes[:, :, None] * classes.index_select(1, there.flatten()).unflatten(1, there.shape)
    return 1 - agree


# %%
#| export
def _similarity(query: Tensor, key: Tensor, log_sum: Tensor, window: _Window, weight: Tensor, bias: Tensor) -> Tensor:
    "S = σ(Σ w·Ā + b) of all pairs in half the window, [N,hw,J]; the query holds the scale of the logits."
    a, b, there = query.flatten(0, 1), key.flatten(0, 1), window.there
    forth, back = (_WindowProducts.apply(*pair, window).unflatten(0, query.shape[:2]) for pair in ((a, b), (b, a)))
    symmetric = (forth - log_sum[..., None]).exp() + (back - log_sum[:, :, there]).exp()  # A[p,q] + A[q,p]
    return torch.sigmoid((symmetric * weight[:, None, None]).sum(1) + bias)


# %%
#| export
def _pair_energy(
    rows: Tensor,  # [N,C,hw]: P̃
    query: Tensor,  # [N,nL,hw,d]
    key: Tensor,  # [N,nL,hw,d]
    log_sum: Tensor,  # [N,nL,hw]: of each row of the logits
    weight: Tensor,  # [nL], the scale of Ā included
    bias: Tensor,  # [1]
    free: Tensor,  # [N,hw] bool: Ω_U on the grid
    view: _View,
) -> tuple[Tensor, Tensor]:  # [N] the double sum of eq. 6; [N,3] number of pairs, sums of S − σ(b) and of its square
    "Eq. 6 before it is divided, in PyTorch's own operations."
    window = _window(view.grid, view.radius, view.sigma_xy, query)
    counted = window.inside & free[:, :, None] & free[:, window.there]  # [N,hw,J]
    similarity = _similarity(query * view.logit_scale, key, log_sum, window, weight, bias)
    pairs = (_disagreement(rows, window.there) * window.decay).masked_fill(~counted, 0)
    seen = (similarity.detach() - bias.detach().sigmoid()).masked_fill(~counted, 0)
    notes = torch.stack([counted.sum((1, 2)), seen.sum((1, 2)), seen.square().sum((1, 2))], 1)
    return 2 * (similarity * pairs).sum((1, 2)), notes


# %% [markdown]
# What to log is a mean and a standard deviation over all pairs of the batch, so they are made of the sums of all processes. Both sums count from
# $\sigma(b)$, near which S lies at the start: of numbers that are nearly equal, float32 would lose the differences.

# %%
#| export
def _notes(sums: Tensor, weight: Tensor, bias: Tensor) -> dict[str, BatchMean]:
    "Scalars to log: mean and standard deviation of S over the pairs that count, and the 1×1 convolution."
    def moments(group: Group) -> tuple[Tensor, Tensor]:
        total, first, second = group.sum(sums.sum(0)).unbind()
        more = first / total.clamp(min=1)
        spread = (second / total.clamp(min=1) - more.square()).clamp(min=0).sqrt()
        return (more + bias.squeeze().sigmoid()) * (total > 0), spread

    return {"similarity_mean": common(lambda group: moments(group)[0]),
            "similarity_std": common(lambda group: moments(group)[1]),
            "weight": common(lambda _: weight.mean()), "bias": common(lambda _: bias.squeeze())}


# %% [markdown]
# ### Once more, in C
#
# The PyTorch code above writes and reads a dozen arrays of [N,hw,60]. In [C](../basics/04_native.ipynb) each cell p visits all its neighbours, keeps
# what it computes in the core's cache, and gives the energy and all gradients at once: those in $P_p$, $q_p$, $k_p$, $\ell_p$. Each cell visits the
# whole window and writes only what is its own. Rows of numbers are padded with zeros to whole vectors of `LANES`.

# %%
#| export
_SUMS = 5  # sums that the C code returns besides the slopes of the weights

# %%
#| export
_VISIT = r"""
#define WIDE(n) (((n) + LANES - 1) / LANES * LANES)
enum { D = WIDE(DIM), P = WIDE(CLASSES), J = WIDE((2 * RADIUS + 1) * (2 * RADIUS + 1)) };

static inline float dot(const float *a, const float *b, int n) {
    vec sum = {};
    for (int i = 0; i < n; i += LANES) sum += load(a + i) * load(b + i);
    float total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    return total;
}

static inline void add(float *to, const float *from, float factor, int n) {
    for (int i = 0; i < n; i += LANES) store(to + i, load(to + i) + factor * load(from + i));
}

/* Rows are padded to whole vectors: probs [N,hw,P], query and key [N,LAYERS,hw,D]. Sums of a row of cells
   [N,height,SUMS+LAYERS]: energy, slope of the bias, number of pairs, S - start and its square, slopes of the weights;
   each pair is met twice. */
void visit(const float *probs, const float *query, const float *key, const float *log_sum, const float *weight,
           float bias, const uint8_t *free, int count, int height, int width, float per_area, float scale,
           double *sums, float *to_probs, float *to_query, float *to_key, float *to_log_sum, int threads) {
    const int64_t cells = (int64_t)height * width;
    const float start = 1 / (1 + expf(-bias));  /* S where A is 0 */
    #pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int task = 0; task < count * height; task++) {
        const int n = task / height, y = task % height;
        double *sum = memset(sums + (int64_t)task * (SUMS + LAYERS), 0, (SUMS + LAYERS) * sizeof(double));
        for (int x = 0; x < width; x++) {
            const int64_t p = (int64_t)y * width + x;
            if (!free[n * cells + p]) continue;
            int64_t there[J];
            float pairs[J] = {}, decay[J] = {}, slope[J], forth[LAYERS][J] = {}, back[LAYERS][J] = {};
            int found = 0;
            for (int v = y < RADIUS ? 0 : y - RADIUS; v <= y + RADIUS && v < height; v++)
                for (int u = x < RADIUS ? 0 : x - RADIUS; u <= x + RADIUS && u < width; u++) {
                    const int64_t q = (int64_t)v * width + u;
                    if (q == p || !free[n * cells + q]) continue;
                    const float area = (v - y) * (v - y) + (u - x) * (u - x);
                    decay[found] = -area * per_area;
                    pairs[found] = 1 - dot(probs + (n * cells + p) * P, probs + (n * cells + q) * P, P);
                    for (int l = 0; l < LAYERS; l++) {
                        const int64_t layer = (int64_t)(n * LAYERS + l) * cells;
                        const float *qp = query + (layer + p) * D, *kp = key + (layer + p) * D;
                        const float *qq = query + (layer + q) * D, *kq = key + (layer + q) * D;
                        forth[l][found] = scale * dot(qp, kq, D) - log_sum[layer + p];
                        back[l][found] = scale * dot(qq, kp, D) - log_sum[layer + q];
                    }
                    there[found++] = q;
                }
            for (int j = 0; j < found; j += LANES) {   /* A both ways, S, and the slope in what the sigmoid takes */
                vec z = (vec){} + bias;
                for (int l = 0; l < LAYERS; l++) {
                    const vec a = exp_negative(load(forth[l] + j)), b = exp_negative(load(back[l] + j));
                    store(forth[l] + j, a), store(back[l] + j, b);
                    z += weight[l] * (a + b);
                }
                const ivec low = z < (vec){};
                const vec e = exp_negative((vec)((ivec)z | (int32_t)0x80000000));   /* of -|z| */
                const vec one = (vec){} + 1.0f, top = (vec)(((ivec)e & low) | ((ivec)one & ~low));
                const vec s = top / (one + e), m = exp_negative(load(decay + j)), each = s * load(pairs + j) * m;
                store(decay + j, -2 * s * m), store(slope + j, 2 * each * (one - s));
                const int lanes = found - j < LANES ? found - j : LANES;
                for (int i = 0; i < lanes; i++) {
                    const double more = s[i] - start;
                    sum[0] += each[i], sum[1] += slope[j + i] / 2;
                    sum[2] += 0.5, sum[3] += more / 2, sum[4] += more * more / 2;
                }
            }
            if (!to_probs) continue;
            for (int j = 0; j < found; j++) {
                const int64_t q = there[j];
                add(to_probs + (n * cells + p) * P, probs + (n * cells + q) * P, decay[j], P);
                for (int l = 0; l < LAYERS; l++) {
                    const int64_t layer = (int64_t)(n * LAYERS + l) * cells;
                    sum[SUMS + l] += slope[j] * (forth[l][j] + back[l][j]) / 2;
                    const float a = slope[j] * weight[l] * forth[l][j], b = slope[j] * weight[l] * back[l][j];
                    add(to_query + (layer + p) * D, key + (layer + q) * D, scale * a, D);
                    add(to_key + (layer + p) * D, query + (layer + q) * D, scale * b, D);
                    to_log_sum[layer + p] -= a;
                }
            }
        }
    }
}
"""


# %%
#| export
def _visit(
    rows: Tensor, query: Tensor, key: Tensor, log_sum: Tensor, weight: Tensor, bias: Tensor, free: Tensor, view: _View,
    library: ctypes.CDLL, with_gradient: bool
) -> tuple[Tensor, list[Any]]:
    "The sums of each image, [N,SUMS+nL] float64, and the gradients in the first four arguments, or four times None."
    (count, layers, _, width), classes = query.shape, rows.shape[1]
    probs, query, key = (F.pad(x, (0, -x.shape[-1] % LANES)) for x in (rows.transpose(1, 2), query, key))
    probs, query, key, log_sum, weight, free = (x.contiguous() for x in (probs, query, key, log_sum, weight, free))
    inputs = probs, query, key, log_sum
    grads: list[Any] = [torch.zeros_like(x) if with_gradient else None for x in inputs]
    sums = probs.new_empty(count, view.grid[0], _SUMS + layers, dtype=torch.float64)
    per_area, scale = ctypes.c_float(1 / (2 * view.sigma_xy**2)), ctypes.c_float(view.logit_scale)
    library.visit(*map(address, inputs), address(weight), ctypes.c_float(float(bias)), address(free), count, *view.grid,
                  per_area, scale, address(sums), *map(address, grads), torch.get_num_threads())
    if with_gradient:
        grads = [grads[0][..., :classes].transpose(1, 2), *(x[..., :width] for x in grads[1:3]), grads[3]]
    return sums.sum(1), grads


# %%
#| export
class _PairEnergyInC(torch.autograd.Function):
    "`_pair_energy` for float32 on a CPU: value and all gradients in one visit."

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        sums, grads = _visit(*arguments)
        ctx.save_for_backward(*grads, sums[:, _SUMS:].float(), sums[:, 1:2].float())
        notes = sums[:, 2:_SUMS].float()
        ctx.mark_non_differentiable(notes)
        return sums[:, 0].float(), notes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *each, to_weight, to_bias = ctx.saved_tensors
        spread = (g * upstream.view(-1, *[1] * (g.ndim - 1)) for g in each)
        return *spread, *((g * upstream[:, None]).sum(0) for g in (to_weight, to_bias)), *[None] * 4


# %%
#| export
def _compiled(classes: int, layers: int, dim: int, radius: int) -> ctypes.CDLL | None:
    "The C code for these sizes, or None."
    return native(_VISIT, SUMS=_SUMS, CLASSES=classes, LAYERS=layers, DIM=dim, RADIUS=radius)


# %%
#| export
def _energy(
    rows: Tensor, query: Tensor, key: Tensor, log_sum: Tensor, weight: Tensor, bias: Tensor, free: Tensor, view: _View
) -> tuple[Tensor, Tensor]:
    "`_pair_energy`, in C where that can be."
    arguments, library = (rows, query, key, log_sum, weight, bias, free, view), None
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.numel():
        library = _compiled(rows.shape[1], query.shape[1], query.shape[3], view.radius)
    if library is None:
        return _pair_energy(*arguments)
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in arguments[:6])
    return _PairEnergyInC.apply(*arguments, library, with_gradient)


# %% [markdown]
# ### The loss
#
# All is computed in float32, or in float64 where P or the attention comes in float64, also where the network runs in half precision.

# %%
#| export
def _energy_on_grid(
    probs: Tensor, attention: tuple[Any, ...], free: Tensor, view: _View, resize: str
) -> tuple[Tensor, dict[str, BatchMean]]:
    "The double sum of eq. 6 of each image, [N], and the notes; `attention`: query, key, weight, bias, log_sum or None."
    dtype = torch.float64 if torch.float64 in (probs.dtype, attention[0].dtype) else torch.float32
    given: list[Any] = [x if x is None else x.to(dtype) for x in attention]
    query, key, weight, bias, log_sum = given
    probs = probs.to(dtype)
    with torch.autocast(query.device.type, enabled=False):
        if log_sum is None:
            log_sum = row_log_sum(query, key, view.logit_scale)
        if tuple(probs.shape[2:]) != view.grid:
            probs = F.interpolate(probs, view.grid, **_RESIZE[resize])
        scaled = weight * view.similarity_scale
        energy, sums = _energy(probs.flatten(2), query, key, log_sum, scaled, bias, free, view)
    return energy, _notes(sums, weight.detach(), bias.detach())


# %%
#| export
def _detached(wanted: bool, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    "The same tensors, without their history if wanted."
    return tuple(x.detach() if wanted and x is not None else x for x in tensors)


# %%
#| export
@batch_loss
def attentive_similarity_loss(
    probs: Tensor,  # [N,C,H,W] float: class probabilities P, each pixel's sum to 1
    query: Tensor,  # [N,nL,h·w,d] float: of `SpatialSelfAttention`, all heads of all layers
    key: Tensor,  # [N,nL,h·w,d] float
    weight: Tensor,  # nL elements, any shape: of the 1×1 convolution that makes S
    bias: Tensor,  # 1 element: its bias
    *,
    radius: int = 5,  # cells, ≥ 1: the window is 2·radius+1 wide; the paper's strict `< r` is radius = r − 1
    sigma_xy: float = 6.0,  # cells, > 0: of the distance decay M; infinity: none
    unlabelled: Tensor | None = None,  # [N,1,H,W] bool: Ω_U of the pixels; None: every pixel (the released code)
    grid: tuple[int, int] | None = None,  # (h,w); None: the aspect of probs
    log_sum: Tensor | None = None,  # [N,nL,h·w]: log Σ exp of each row of QKᵀ/√d, where it is at hand; else made here
    logit_scale: str = "sqrt_dk",  # QKᵀ over √d (the paper), or "none" (the released code)
    similarity_scale: float | str = 1.0,  # factor on Ā = A + Aᵀ: a number, or "hw", the number of cells
    denominator: str = "omega_u",  # "omega_u": each image over its |Ω_U|; "grid": over h·w (the released code)
    resize: str = "bilinear",  # how P comes down to the grid: "bilinear" (no antialiasing), "area", "nearest"
    detach_probs: bool = False,  # the loss does not move the prediction
    detach_similarity: bool = False,  # the loss does not move the attention
    keep: Tensor | None = None,  # [N] bool: an image with False adds nothing, in value and gradient; None: keep all
    return_stats: bool = False,  # also return a dict of what is worth logging
) -> BatchMean | tuple[BatchMean, dict[str, BatchMean]]:  # plainly, tensors: [] float32, or float64 if P or query is
    """How much unlabelled cells disagree that the attention finds alike: eq. 6, exact, in memory linear in h·w.

    Unlabelled are the cells without an annotated pixel; both ends of a pair have to be. Every pair counts twice, as in
    eq. 6, and Σ_{i≠j} P_p^i P_q^j is computed as 1 − Σ_c P_p^c P_q^c. The result is the mean over all N images; one
    without unlabelled cells adds 0. It never waits for a GPU and has no second derivative. To log, detached: mean and
    standard deviation of S over the pairs that count, the mean weight, the bias. Raises ValueError or TypeError for a
    wrong shape, type or option. `attentive_similarity_loss.of_batch` gives the BatchMean that a loss term returns.
    """
    _check(probs, query, key, weight, bias, unlabelled, keep)
    grid = grid or _grid_of(probs, query.shape[2])
    view = _view(query, grid, radius, sigma_xy, logit_scale, similarity_scale)
    _check_options(query, log_sum, logit_scale, similarity_scale, denominator, resize)
    free = _free_cells(probs, unlabelled, keep, grid)
    attention = _detached(detach_similarity, query, key, weight.flatten(), bias.flatten(), log_sum)
    energy, notes = _energy_on_grid(probs.detach() if detach_probs else probs, attention, free, view, resize)
    counted = free.sum(1).clamp(min=1) if denominator == "omega_u" else query.shape[2]
    loss = ratio((energy / counted).sum(), len(energy))
    return (loss, notes) if return_stats else loss


# %% [markdown]
# ## Equal, and what it costs
#
# Two heads, 5 × 4 cells, some annotated, against the loops: value and gradient in everything that is learned. And
# against the dense form, with its memory.

# %%
torch.manual_seed(0)
logits = torch.randn(1, 3, 5, 4)
query, key, weight, bias = torch.randn(1, 2, 20, 3), torch.randn(1, 2, 20, 3), torch.randn(1, 2, 1, 1), torch.randn(1)
unlabelled = torch.rand(1, 1, 5, 4) < 0.8
options = {"radius": 2, "sigma_xy": 1.5, "unlabelled": unlabelled}
fast = lambda z, q, k, w, b: attentive_similarity_loss(z.softmax(1), q, k, w, b, **options)
naive = lambda z, q, k, w, b: asl_naive(z.softmax(1)[0].flatten(1), attention_maps(q, k, 3**-0.5)[0], w.flatten(), b[0],
                                        unlabelled.flatten().tolist(), (5, 4), 2, 1.5)
assert_same(fast, naive, logits, query, key, weight, bias)
zero = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
torch.testing.assert_close(by_hand, attentive_similarity_loss(apart.view(1, 2, 1, 2), zero, zero, torch.ones(1),
                                                              -torch.ones(1), radius=1, sigma_xy=1.0))

# %%
probs, weight, bias = torch.randn(2, 4, 48, 48).softmax(1), torch.ones(1), torch.zeros(1)
query, key = torch.randn(2, 1, 48**2, 64, requires_grad=True), torch.randn(2, 1, 48**2, 64)
print("fast :", cost(lambda: attentive_similarity_loss(probs, query, key, weight, bias).backward()))
print("dense:", cost(lambda: asl_dense(probs, query, key, weight, bias, (48, 48), 5, 6.0).backward()))
torch.testing.assert_close(attentive_similarity_loss(probs, query, key, weight, bias),
                           asl_dense(probs, query, key, weight, bias, (48, 48), 5, 6.0))


# %% [markdown]
# ## Where learning starts
#
# A U-Net with the released block, 256 × 256 pixels, nothing trained, the released switches. What is S, and which
# parameter does the loss move?

# %%
def loss_at_start(image, similarity_scale):
    "The loss of an untrained network, its notes, and the attention."
    torch.manual_seed(0)
    model = UNet2d(1, 4)
    attention = attach(model, "encoder.2", block="prenorm_mixffn").attention
    probs = model(image).softmax(1)
    loss, notes = attentive_similarity_loss(
        probs, attention.query, attention.key, attention.similarity.weight, attention.similarity.bias,
        logit_scale="none", denominator="grid", similarity_scale=similarity_scale, return_stats=True)
    return loss, notes, attention


# %%
def start(image, similarity_scale):
    "The loss, its notes and the largest slopes at the start of training."
    loss, notes, attention = loss_at_start(image, similarity_scale)
    loss.backward()
    slopes = {"b": attention.similarity.bias, "w": attention.similarity.weight,
              "Q": attention.layers[0].attention.query.weight}
    return {"loss": loss.item()} | {name: value.item() for name, value in notes.items()} | {
        f"slope of {name}": value.grad.abs().max().item() for name, value in slopes.items()}


large = resize_image(torch.tensor(case.image[3]), 256)[None, None]
starts = {scale: start(large, scale) for scale in (1.0, "hw")}
for scale, found in starts.items():
    print(f"Ā × {scale:<3} " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
flat = starts[1.0]

# %% [markdown]
# Every entry of A is about $1/4096$, so $w\bar A$ is negligible beside b and $S \approx \sigma(b)$ for all pairs: at the start the loss asks for a
# smooth prediction everywhere, with the weights of a Gaussian. The gradient of the bias is thousands of times that of w, and that of Q is smaller
# still. The fastest way to lower the loss is not a better similarity but a smaller b.

# %%
assert math.isclose(flat["similarity_mean"], 1 / (1 + math.exp(-flat["bias"])), rel_tol=1e-3)
assert flat["similarity_std"] < 1e-4 and flat["slope of b"] > 1e3 * flat["slope of w"] > 1e2 * flat["slope of Q"]
assert math.isclose(flat["slope of b"], flat["loss"] * (1 - flat["similarity_mean"]), rel_tol=1e-3)
assert starts["hw"]["slope of Q"] > 500 * flat["slope of Q"]

# %% [markdown]
# The paper expects the softmax to keep S from vanishing: where one entry of a row becomes smaller, others become larger. But b is added *after* the
# softmax, and nothing keeps it up. `similarity_scale="hw"` multiplies $\bar A$ by the number of cells, so that an even share counts 1: the gradients
# of w and Q are then some thousand times larger. The bias is as free as before.

# %% [markdown]
# ## What it learns: a small experiment
#
# Three convolutions with attention, eight slices of the phantom, dense labels and $0.1\, l_{atn}$: once with $\bar A$ as in the
# paper, once multiplied by hw.

# %%
cases = [case for patient in data.patients[:4] for case in data.read(patient)]
images = torch.cat([resize_image(torch.tensor(c.image[4:5]), 64) for c in cases])[:, None]
labels = torch.cat([resize_labels(torch.tensor(c.label[4:5]).long(), 64) for c in cases])


# %%
def convolution(inputs, outputs, stride):
    return torch.nn.Sequential(torch.nn.Conv2d(inputs, outputs, 3, stride, 1), torch.nn.BatchNorm2d(outputs),
                               torch.nn.ReLU())


def small_network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(convolution(1, 16, 2), convolution(16, 16, 2), convolution(16, 16, 1),
                              torch.nn.Conv2d(16, 4, 1), torch.nn.Upsample(scale_factor=4, mode="bilinear"))
    attention = attach(net, "2", block="residual").attention
    torch.nn.init.constant_(attention.similarity.weight, 0.5)
    torch.nn.init.zeros_(attention.similarity.bias)
    return net, attention


# %%
def look_into(net, attention, scale, cell):
    "S of one cell of the second image, [hw], and the share of its attention that a cell gives to its own window."
    with torch.no_grad():
        net(images)
        A = attention_maps(attention.query, attention.key, 0.25)[:, 0]
    place = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    chebyshev = (place[:, None] - place).abs().amax(-1)
    symmetric = scale * (A + A.transpose(1, 2))[1, cell]
    S = torch.sigmoid(symmetric * attention.similarity.weight.item() + attention.similarity.bias.item())
    return S, (A * ((chebyshev > 0) & (chebyshev <= 2))).sum(2).mean().item()


# %%
def train(similarity_scale, cell, steps=60):
    net, attention = small_network()
    optimiser, history = torch.optim.Adam(net.parameters(), 0.01), []
    scale = 256 if similarity_scale == "hw" else 1
    before = look_into(net, attention, scale, cell)
    for _ in range(steps):
        scores = net(images)
        pull, notes = attentive_similarity_loss(
            scores.softmax(1), attention.query, attention.key, attention.similarity.weight, attention.similarity.bias,
            radius=2, sigma_xy=2.0, similarity_scale=similarity_scale, return_stats=True)
        optimiser.zero_grad()
        (F.cross_entropy(scores, labels) + 0.1 * pull).backward()
        optimiser.step()
        history.append([notes[name].item() for name in ("similarity_mean", "similarity_std", "bias")])
    return before, look_into(net, attention, scale, cell), torch.tensor(history)


# %%
heart_cell = 8 * 16 + 8
learned = {scale: train(scale, heart_cell) for scale in (1.0, "hw")}
figure, axes = panels(5, size=2.2)
draw(axes[0], images[1, 0].numpy(), outline=labels[1].numpy(), title="image, labels")
turns = [(f"{when}, Ā × {scale}".replace("1.0", "1"), row) for scale, (before, after, _) in learned.items()
         for when, (row, _) in (("before", before), ("after", after))]
for axis, (title, row) in zip(axes[1:], turns, strict=True):
    shown = plot_attention(axis, row, (16, 16), heart_cell, limits=(0, 1), title=title)
figure.colorbar(shown, ax=axes, shrink=0.8, label="similarity S");

# %%
figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.4), layout="constrained")
for (scale, (_, _, history)), colour in zip(learned.items(), ("#0072B2", "#D55E00"), strict=True):
    for axis, values in zip(axes, history.T, strict=True):
        axis.plot(values, color=colour, label=f"Ā × {scale}".replace("1.0", "1"))
for axis, name in zip(axes, ("mean of S", "standard deviation of S", "bias b"), strict=True):
    axis.set(xlabel="step", title=name)
axes[1].set_yscale("log")
axes[0].legend(frameon=False, fontsize=8)
for scale, (before, after, history) in learned.items():
    print(f"Ā × {scale}: S {history[0, 0]:.3f} ± {history[0, 1]:.1g} → {history[-1, 0]:.3f} ± {history[-1, 1]:.1g}, "
          f"b {history[0, 2]:.2f} → {history[-1, 2]:.2f}, attention inside the window {before[1]:.3f} → {after[1]:.3f}")
assert all(history[-1, 0] < history[0, 0] and history[-1, 2] < -0.1 for _, _, history in learned.values())
assert learned["hw"][2][-1, 1] > learned[1.0][2][-1, 1]
assert learned["hw"][1][1] < 0.5 * learned["hw"][0][1];

# %% [markdown]
# The loss falls in two ways, and neither is a better similarity. In both runs the bias falls, and S with it. Multiplied by hw, attention changes too:
# it moves out of the window, to a few far cells that eq. 6 does not read. A row must sum to 1, but not *inside* the window, so where one entry becomes
# smaller its neighbours need not become larger.
#
# Eight slices and 60 steps show the direction of the gradient, not how a real training ends. There, log the four notes, and compare with a run in
# which S is replaced by its mean.

# %% [markdown]
# ## Real data
#
# One slice of an ACDC patient: how much of the grid is unlabelled, and how much does S differ from pair to pair before training?

# %%
folder = Path(os.environ.get("ATTENSCRIBBLE_DATA", "data")) / "acdc"
if folder.is_dir():
    scan = acdc(folder).read("patient001")[0]
    z = len(scan.image) // 2
    real = resize_image(torch.tensor(scan.image[z]), 256)[None, None]
    strokes = resize_labels(torch.tensor(scan.scribble[z]).long(), 256)[None, None]
    free = strokes == 4
    share = (~annotated_cells(free, (64, 64))).float().mean()
    spreads = [start(real, scale)["similarity_std"] for scale in (1.0, "hw")]
    print(f"{scan.name}, slice {z}: {share:.1%} of 64×64 cells in Ω_U ({free.float().mean():.1%} of the pixels); "
          f"standard deviation of S {spreads[0]:.1e}, times hw {spreads[1]:.1e}")
    assert spreads[0] < 1e-3 < share < free.float().mean()
else:
    print(f"skipped: no ACDC folder at {folder}; set ATTENSCRIBBLE_DATA")


# %% [markdown]
# This is one slice, one seed and no training. A stroke one pixel wide takes a larger share of the grid than of the image.
#
# ## Slide the radius and $\sigma$
#
# Both are in cells. The picture shows M in its window, over the image, for the cell in the ventricle.

# %%
def plot_decay(axis, radius, sigma_xy):
    window = torch.maximum(abs(y - 12), abs(x - 13)).flatten() <= radius
    row = torch.where(window, torch.exp(-(distance**2) / (2 * sigma_xy**2)), torch.nan)
    return plot_attention(axis, row, grid, cell, limits=(0, 1), title=f"radius {radius}, σ = {sigma_xy:g}")


def slide(radius=5, sigma_xy=6.0):
    figure, (left, right) = panels(2, size=2.8)
    draw(left, slices[1, 0].numpy(), title="image")
    figure.colorbar(plot_decay(right, radius, sigma_xy), ax=right, shrink=0.8, label="decay M")
    plt.show()

interact(slide, radius=(1, 12), sigma_xy=(0.5, 12.0, 0.5));

# %%
figure, axes = panels(5, size=2.1)
draw(axes[0], slices[1, 0].numpy(), title="image")
for axis, (radius, sigma_xy) in zip(axes[1:], ((2, 2.25), (2, 6.0), (5, 2.25), (5, 6.0)), strict=True):
    shown = plot_decay(axis, radius, sigma_xy)
figure.colorbar(shown, ax=axes, shrink=0.8, label="decay M");


# %% [markdown]
# On this grid the window with the released values (right) covers all of the left heart: each of its cells is asked to agree with muscle and with
# blood. Scaled from 64 cells to 24, the values are 2 and 2.25 (left).
#
# ## Exercises
#
# **1. Predict.** All queries are 0. What is S between any two of `cells` cells, with weight w and bias b?

# %%
def check_even(f):
    w, b, zero = torch.tensor([0.7]), torch.tensor([-0.4]), torch.zeros(1, 1, 36, 2)
    _, notes = attentive_similarity_loss(torch.full((1, 2, 6, 6), 0.5), zero, zero, w, b, return_stats=True)
    torch.testing.assert_close(torch.tensor(f(36, 0.7, -0.4)), notes["similarity_mean"])

def even_similarity(cells, w, b):
    ...  # your code here

exercise(check_even, even_similarity, solution=lambda cells, w, b: 1 / (1 + math.exp(-2 * w / cells - b)))


# %% [markdown]
# **2. Implement.** The gradient in the logits of one row: `share` [hw] is the softmax, `columns` [K] the window, `g` [K]
# the gradient in `share[columns]`.

# %%
def check_slope(f):
    torch.manual_seed(0)
    z, columns, g = torch.randn(9, requires_grad=True), torch.tensor([1, 4, 6]), torch.randn(3)
    (z.softmax(0)[columns] * g).sum().backward()
    torch.testing.assert_close(f(z.detach().softmax(0), columns, g), z.grad)

def slope(share, columns, g):
    ...  # your code here

def slope_solution(share, columns, g):
    window = g * share[columns]
    return (-share * window.sum()).index_add(0, columns, window)

exercise(check_slope, slope, slope_solution)


# %% [markdown]
# **3. Implement.** Ω_U on the grid for cells of `side` × `side` pixels, without pooling: `unlabelled` [H,W] → [H/side,W/side].

# %%
def check_cells(f):
    unlabelled = torch.rand(1, 1, 12, 20, generator=torch.Generator().manual_seed(0)) < 0.9
    assert torch.equal(f(unlabelled[0, 0], 4).flatten(), ~annotated_cells(unlabelled, (3, 5))[0])

def free_cells(unlabelled, side):
    ...  # your code here

tiles = lambda u, side: u.unfold(0, side, side).unfold(1, side, side)
exercise(check_cells, free_cells, solution=lambda unlabelled, side: tiles(unlabelled, side).all(-1).all(-1))


# %% [markdown]
# **4. Break.** Return a weight and a bias that make the loss smaller than 10⁻⁶ for every prediction, with numbers no larger than 20.

# %%
def check_silent(f):
    weight, bias = f()
    assert max(abs(weight), abs(bias)) <= 20
    torch.manual_seed(0)
    noise = F.one_hot(torch.randint(2, (1, 6, 6)), 2).permute(0, 3, 1, 2).float()
    loss = attentive_similarity_loss(noise, torch.randn(1, 1, 36, 2), torch.randn(1, 1, 36, 2), torch.tensor([weight]),
                                     torch.tensor([bias]))
    assert 0 <= loss < 1e-6

def silent():
    return 1.0, 0.0  # your numbers here

exercise(check_silent, silent, solution=lambda: (0.0, -20.0))

# %% [markdown]
# ## Recap
#
# `attentive_similarity_loss` is eq. 6, exactly, in memory linear in the number of cells; `annotated_cells` brings Ω_U to the grid.
# Surprising: at the start the loss does not depend on how alike cells are; it lowers its bias, or moves attention out of the window. The choices
# that paper and released code make differently are [switches](35_switches.ipynb); [the objective](36_objective.ipynb) adds the loss to the other terms.
