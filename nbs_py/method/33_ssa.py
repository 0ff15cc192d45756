# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Spatial self-attention
#
# > Attention on any layer of any network: every place is compared with every other, and query and key are kept for the loss.
#
# **How far can a place in a network see?** A convolution sees its neighbours, so a feature of the U-Net's third stage depends on a few dozen pixels,
# though the heart is larger. Attention compares every place with every other one, and the result is used twice: for the features, and in
# [the next chapter](34_asl.ipynb) for the loss.

# %%
#| default_exp method.ssa

# %%
#| export
import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from attenscribble.basics.errors import one_of

# %%
#| export
if TYPE_CHECKING:  # matplotlib takes long to import, and only `plot_attention` needs it
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# %%
import copy
import os
from pathlib import Path

import matplotlib.pyplot as plt
from ipywidgets import interact

from attenscribble.basics.checking import assert_same, cost, exercise
from attenscribble.basics.drawing import draw, panels
from attenscribble.data.batches import resize_image
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import acdc
from attenscribble.method.network import UNet2d, plot_field, receptive_fields

# %% [markdown]
# ## The picture: what one place sees
#
# A heart from the phantom, and a U-Net nobody has trained. Which pixels can move a feature in the middle of its third
# stage? First without attention, then with it on that stage.

# %%
case = phantom(patients=5).read("patient002")[0]
slices = resize_image(torch.tensor(case.image[2:6]), 96)[:, None]  # [4,1,96,96]
torch.manual_seed(0)
untrained = UNet2d(1, 4).eval()


def add_attention(layer, inputs, features):
    "Add to each place a mean over all places, in which similar places have larger weights."
    tokens = features.flatten(2).transpose(1, 2)
    attended = F.scaled_dot_product_attention(tokens, tokens, tokens)
    return features + attended.transpose(1, 2).view_as(features)


# %%
figure, axes = panels(3, size=2.7)
draw(axes[0], slices[1, 0].numpy(), title="image, 96 × 96")
fields = {"third stage": receptive_fields(untrained, slices, ["encoder.2"])["encoder.2"]}
handle = untrained.encoder[2].register_forward_hook(add_attention)
fields["third stage with attention"] = receptive_fields(untrained, slices, ["encoder.2"])["encoder.2"]
handle.remove()
for axis, (title, seen) in zip(axes[1:], fields.items(), strict=True):
    shown = plot_field(axis, seen, title=title)
figure.colorbar(shown, ax=axes, shrink=0.8, label="influence (strongest pixel: 1)")
assert fields["third stage"].min() == 0 < seen.min();


# %% [markdown]
# A feature in the middle of the third stage depends on a square of the image, and on nothing outside of it (black). With attention every pixel
# has some influence. White: the square that holds 90 % of the influence.
#
# ## The equations
#
# $$Q_i = f W_i^Q,\quad K_i = f W_i^K,\quad V_i = f W_i^V,\qquad A_i = \frac{Q_i K_i^T}{\sqrt{d_k}},\qquad a_i = \mathrm{softmax}(A_i)\,V_i$$
#
# $$a = \mathrm{concat}_i(a_i),\qquad a \leftarrow a + \mathrm{MLP}(\mathrm{LN}(a)),\qquad f \leftarrow a \ \text{for the next layer};\qquad \text{at the end}\quad a \leftarrow a\,W + b$$
#
# (§2.3 of the paper, where they carry no number.)
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $f$ | `features`, flattened `tokens` | [N,d,h,w], [N,hw,d] | – |
# | $n$, $L$ | `heads`, `layers` | – | – |
# | $Q$, $K$ | `query`, `key` | [N,L·n,hw,d_q] | – |
# | $d_q = d_k$, $d_v$ | `dim_query`, `dim_value` | – | – |
# | softmax of $A$ | `attention_maps(...)` | [N,L·n,hw,hw] | share, rows sum to 1 |
#
# The paper gives no value for $n$, $L$, $d_q$, $d_v$. The released code has one head, one layer, and all widths 64, that
# of the third stage.

# %% [markdown]
# ## Naive code
#
# The query of a place p is compared with the key of every place q. The softmax turns these matches into shares, and the result at p is the mean of
# all values, weighted by the shares.

# %%
def attend_naive(f, to_query, to_key, to_value):
    "One head: f [hw,d], weights [d_q,d], [d_q,d], [d_v,d]."
    rows = []
    for p in range(len(f)):
        match = torch.stack([(to_query @ f[p]) @ (to_key @ f[q]) / len(to_key) ** 0.5 for q in range(len(f))])
        share = match.exp() / match.exp().sum()
        rows.append(sum(share[q] * (to_value @ f[q]) for q in range(len(f))))
    return torch.stack(rows)


# %% [markdown]
# ## Check by hand
#
# Two places, one channel, all weights 1: $f = (0, x)$ with $x = \sqrt{\ln 3}$. The query of the first place is 0, so its logits are
# (0, 0), both shares are ½, and $a = x/2$. The second has logits $(0, x^2) = (0, \ln 3)$, shares ¼ and ¾, so
# $a = \tfrac34 x$.

# %%
x, one = math.log(3) ** 0.5, torch.ones(1, 1, dtype=torch.float64)
by_hand = torch.tensor([[x / 2], [3 * x / 4]], dtype=torch.float64)
torch.testing.assert_close(attend_naive(torch.tensor([[0], [x]], dtype=torch.float64), one, one, one), by_hand)

# %% [markdown]
# The naive code fails in two ways. In float32 $e^{89}$ overflows, and a share becomes ∞/∞. And the shares of one head are $(hw)^2$ numbers:

# %%
loud = torch.tensor([[0.0], [10.0]])  # logits 0 and 100
assert attend_naive(loud, one.float(), one.float(), one.float()).isnan().any()
for side in (24, 64, 128):
    print(f"grid {side}×{side}, 12 images, one head: {12 * side**4 * 4 / 2**30:.2f} GiB in float32")


# %% [markdown]
# ## Fast code
#
# `scaled_dot_product_attention` goes over the keys in blocks, keeps a running maximum and a running sum, and never
# stores the shares (Dao et al. 2022): nothing overflows, and memory is linear in $hw$. For pictures and checks, `attention_maps` computes the shares
# as a dense matrix.

# %%
#| export
def attention_maps(
    query: Tensor,  # [N,nL,hw,d_q] float, as `SpatialSelfAttention` leaves it
    key: Tensor,  # [N,nL,hw,d_q]
    scale: float,  # of the logits: 1/√d_q in the paper, 1 in the released code
) -> Tensor:  # [N,nL,hw,hw] float: each row sums to 1; (hw)² numbers a head
    "The attention itself, dense: for pictures and references, too large for training."
    return (query @ key.transpose(-2, -1) * scale).softmax(-1)


# %%
#| export
def plot_attention(
    axis: "Axes",  # where to draw
    row: Tensor,  # [hw] one row of an attention map, or of a map made from it
    grid: tuple[int, int],  # (h,w)
    cell: int,  # whose row: index in reading order, marked by a cross
    *,
    limits: tuple[float | None, float | None] = (None, None),  # of the colours; panels compared share them
    title: str = "",  # above the picture
) -> "AxesImage":  # for a colour bar
    "Draw how one cell attends to all others; NaN is gray."
    from matplotlib import colormaps
    axis.plot(cell % grid[1], cell // grid[1], "x", color="#D55E00", markersize=8, markeredgewidth=2)
    axis.set_title(title, fontsize=9)
    values, colours = row.float().numpy(force=True).reshape(grid), colormaps["viridis"].with_extremes(bad="0.85")
    return axis.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")


# %% [markdown]
# ### One number of each row
#
# The kernel also computes the logarithm of the sum of a row's exponentials, $\ell_p = \log \sum_q e^{A_{pq}}$, as its
# backward pass needs it. From it any single share follows with one product, $e^{A_{pq} - \ell_p}$, and
# [chapter 34](34_asl.ipynb) needs single shares only. PyTorch does not return $\ell$; `attend` does, and its backward pass accepts a gradient for it:
#
# $$\frac{\partial l}{\partial A_{pq}} = S_{pq}\,\Big(g_p \cdot v_q - \underbrace{\big(g_p \cdot a_p - \dot\ell_p\big)}_{\text{one number a row}}\Big),\qquad S = \mathrm{softmax}(A),$$
#
# where $g_p$ is the gradient with respect to $a_p$, and $\dot\ell_p$ the one with respect to $\ell_p$. The kernel computes $g_p \cdot a_p$ from the
# two rows it is given. Two more columns, $(1, 1)$ beside $g_p$, $-\dot\ell_p$ in two parts beside $a_p$ and zeros beside $v_q$, make it
# compute the inner bracket instead: one backward pass then serves both gradients.

# %%
#| export
CHUNK = {"cpu": 2**19, "gpu": 2**26}  # numbers held at a time: about a core's cache; a few large products


def chunk_of(
    tensor: Tensor,  # of any shape
) -> int:  # numbers
    "How many numbers to hold at a time on a tensor's device."
    return CHUNK["cpu" if tensor.device.type == "cpu" else "gpu"]


# %%
#| export
class _Attend(torch.autograd.Function):
    "softmax(QKᵀ·scale)V and the log-sum-exp of each row, both with a gradient, from PyTorch's fused kernels."

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        attended, log_sum, *random_state = _kernel(query, key, value, scale)
        ctx.save_for_backward(query, key, value, attended, log_sum, *random_state)
        ctx.scale = scale
        return attended, log_sum[..., : query.shape[2]].clone()  # a GPU's sums may be padded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_attended: Tensor | None, to_sum: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(to_attended, to_sum, ctx.saved_tensors, ctx.scale), None


# %%
#| export
def _kernel(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, ...]:
    "Attention, the log-sum-exp of each row and, on a GPU, the state of a random generator that is not used."
    aten = torch.ops.aten
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, scale=scale)
    return aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, False, scale=scale)


# %%
#| export
def _kernel_backward(arrays: tuple[Tensor, ...], *saved: Tensor, scale: float) -> tuple[Tensor, ...]:
    """The gradients of query, key and value.

    `arrays`: the gradient of the result, query, key, value, the result; `saved`: what else the forward pass returned.
    """
    aten, (slope, query, key, value, attended) = torch.ops.aten, arrays
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(*arrays, *saved, 0.0, False, scale=scale)
    return aten._scaled_dot_product_efficient_attention_backward(
        slope, query, key, value, None, attended, *saved, 0.0, [True, True, True, False], False, scale=scale)[:3]


# %%
#| export
def _gradients(
    to_attended: Tensor | None, to_sum: Tensor | None, saved: tuple[Tensor, ...], scale: float
) -> list[Tensor]:
    "The gradients of query, key and value from those of the result and of the log-sum-exp."
    query, key, value, attended, *rest = saved
    slope = torch.zeros_like(attended) if to_attended is None else _in_line(to_attended)
    arrays: tuple[Tensor, ...] = (slope, query, key, value, attended)
    if to_sum is not None:
        arrays = _with_columns(arrays, to_sum)
    found = _kernel_backward(arrays, *rest, scale=scale)
    return [gradient[..., : x.shape[3]] for gradient, x in zip(found, saved[:3], strict=True)]


# %%
#| export
def _with_columns(arrays: tuple[Tensor, ...], to_sum: Tensor) -> tuple[Tensor, ...]:
    "The same five with the columns that bring in the gradient of the log-sum-exp."
    slope, query, key, value, attended = arrays
    first = to_sum.to(value.dtype)
    second = (to_sum - first).to(value.dtype)  # two parts, so that half precision keeps twice its digits
    attended = F.pad(torch.cat((attended, -torch.stack((first, second), -1)), -1), (0, 6))
    slope = F.pad(F.pad(slope, (0, 2), value=1.0), (0, 6))  # eight columns, as GPUs ask for multiples of 8
    width = value.shape[3] + 8
    return slope, _widened(query, width), _widened(key, width), F.pad(value, (0, 8)), attended


# %%
#| export
def _widened(values: Tensor, width: int) -> Tensor:
    "[…,d] with zeros up to `width`: the kernel for the CPU wants queries, keys and values of one width."
    more = width - values.shape[-1]
    return _in_line(F.pad(values, (0, more)) if more and values.device.type == "cpu" else values)


def _in_line(values: Tensor) -> Tensor:
    "The same with neighbours in the last axis side by side in memory, as the kernels expect."
    return values if values.stride(-1) == 1 else values.contiguous()


# %% [markdown]
# These kernels are not part of PyTorch's documented interface. So they are tried once for each device and dtype, on a few numbers, against the
# definition; where they are missing or differ, PyTorch's public function takes over.

# %%
#| export
@cache
def _kernel_works(device: str, dtype: torch.dtype) -> bool:
    "Whether the fused kernels are there and agree with the definition, tried once on a few numbers."
    draw = torch.Generator().manual_seed(0)
    arrays = [torch.randn(1, 2, 9, 8, generator=draw).to(device, dtype) for _ in range(5)]
    near = 1e-4 if dtype.itemsize > 2 else 0.05
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(torch.device(device).type, enabled=False):
            fused = _with_gradients(_Attend.apply, *arrays)
            exact = _with_gradients(_by_definition, *(x.double() for x in arrays))
            pairs = zip(fused, exact, strict=True)
            return all(bool((a.double() - b).abs().max() < near * b.abs().max()) for a, b in pairs)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return False


# %%
#| export
def _by_definition(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    "Attention and the log-sum-exp of each row, dense."
    logits = query @ key.transpose(-2, -1) * scale
    return logits.softmax(-1) @ value, logits.logsumexp(-1)


def _with_gradients(form: Callable, *arrays: Tensor) -> list[Tensor]:
    "A form of attention with a scale of ½: its results and gradients. The arrays: query, key, value, both gradients."
    *inputs, to_attended, to_sum = arrays
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    attended, log_sum = form(*leaves, 0.5)
    total = (attended * to_attended).sum() + (log_sum * to_sum[..., 0]).sum()
    return [attended, log_sum, *torch.autograd.grad(total, leaves)]


# %% [markdown]
# `torch.compile` has nothing to gain in `attend`, as the kernel is compiled already, so the kernel is called between compiled graphs. As a decorator,
# `torch.compiler.disable` would load the compiler whenever this module is imported. So it is applied only while a network is being compiled.

# %%
#| export
def attend(
    query: Tensor,  # [N,n,hw,d_q] float
    key: Tensor,  # [N,n,hw,d_q]
    value: Tensor,  # [N,n,hw,d_v]
    scale: float | None = None,  # of the logits; 1/√d_q unless told
) -> tuple[Tensor, Tensor | None]:  # softmax(QKᵀ·scale)V [N,n,hw,d_v]; log Σ exp of each row of QKᵀ·scale [N,n,hw]
    "Attention and, where the device's kernel returns it, each row's log-sum-exp; else None in its place."
    call = torch.compiler.disable(_attend) if torch.compiler.is_dynamo_compiling() else _attend
    return call(query, key, value, query.shape[3] ** -0.5 if scale is None else scale)


# %%
#| export
def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor | None]:
    "`attend`, outside of compiled graphs."
    if query.device.type in ("cpu", "cuda") and _kernel_works(str(query.device), query.dtype):
        width = max(query.shape[3], value.shape[3])
        attended, log_sum = _Attend.apply(*(_widened(x, width) for x in (query, key, value)), scale)
        return attended[..., : value.shape[3]], log_sum
    return F.scaled_dot_product_attention(query, key, value, scale=scale), None


# %%
#| export
def row_log_sum(
    query: Tensor,  # [N,n,hw,d] float
    key: Tensor,  # [N,n,hw,d]
    scale: float,  # of the logits
) -> Tensor:  # [N,n,hw]: log Σ_q exp(scale·q_p·k_q) of each row p
    "The log-sum-exp of all rows, exact, in memory linear in hw, on any device."
    _, log_sum = attend(query, key, key, scale)
    if log_sum is not None:
        return log_sum
    rows = max(1, chunk_of(query) // (query.shape[0] * query.shape[1] * query.shape[2]))

    def part(some: Tensor) -> Tensor:
        return (some @ key.transpose(2, 3) * scale).logsumexp(-1)

    return torch.cat([checkpoint(part, some, use_reentrant=False) for some in query.split(rows, 2)], 2)


# %%
torch.manual_seed(0)
q, k, v, g = torch.randn(4, 1, 2, 30, 8)
logits = lambda q, k: q @ k.transpose(2, 3) / 8**0.5
assert_same(lambda q, k, v: (attend(q, k, v)[0] * g).sum() + (attend(q, k, v)[1] * g[..., 0]).sum(),
            lambda q, k, v: ((logits(q, k).softmax(-1) @ v) * g).sum() + (logits(q, k).logsumexp(-1) * g[..., 0]).sum(),
            q, k, v)

# %% [markdown]
# ### Heads
#
# A head is attention with weights of its own. The heads of a layer are computed together.

# %%
#| export
_QueryKey = tuple[Tensor, Tensor, Tensor | None]  # query and key [N,n,hw,d_q], log-sum-exp [N,n,hw] or None


# %%
#| export
class _Attention(nn.Module):
    "Query, key and value of all heads of one layer: linear, without bias."

    def __init__(self, width: int, heads: int, dim_query: int, dim_value: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = (nn.Linear(width, heads * dim_query, bias=False) for _ in range(2))
        self.value = nn.Linear(width, heads * dim_value, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, _QueryKey]:
        "[N,hw,width] → the results of the heads side by side [N,hw,n·d_v], and what they are made of."
        maps = (self.query, self.key, self.value)
        query, key, value = (linear(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in maps)
        attended, log_sum = attend(query, key, value)
        return attended.transpose(1, 2).flatten(2), (query, key, log_sum)


# %% [markdown]
# ### The paper's layer
#
# As the text describes it, without a residual connection around the attention.

# %%
#| export
class _PaperLayer(nn.Module):
    "One layer as the paper writes it: a = concat softmax(QKᵀ/√d)V, then a + MLP(LN(a))."

    def __init__(self, width: int, heads: int, dim_query: int, dim_value: int, mlp_ratio: float) -> None:
        super().__init__()
        self.width = heads * dim_value  # of the result
        self.attention = _Attention(width, heads, dim_query, dim_value)
        hidden = math.ceil(mlp_ratio * self.width)
        self.mlp = nn.Sequential(nn.LayerNorm(self.width), nn.Linear(self.width, hidden), nn.GELU(),
                                 nn.Linear(hidden, self.width))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, _QueryKey]:
        attended, query_key = self.attention(tokens)
        return attended + self.mlp(attended), query_key


# %% [markdown]
# ### The released layer
#
# The published code has another layer, that of SegFormer (Xie et al. 2021): layer norm comes first, residual connections go around both parts, and
# a depthwise 3 × 3 convolution between the two linear maps mixes neighbouring places.

# %%
#| export
class _MixLayer(nn.Module):
    "One layer of the released code: pre-norm attention and a convolving feed-forward, a residual around each."

    def __init__(self, width: int, heads: int, dim_query: int, dim_value: int, mlp_ratio: float) -> None:
        super().__init__()
        self.width, hidden = width, math.ceil(mlp_ratio * width)
        self.norm, self.norm_mix = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads, dim_query, dim_value)
        self.join = nn.Linear(heads * dim_value, width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.neighbours = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, _QueryKey]:
        attended, query_key = self.attention(self.norm(tokens))
        return _feed_forward(self, tokens + self.join(attended), grid), query_key


# %%
#| export
def _feed_forward(layer: _MixLayer, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    "The second part of the released layer, with its residual; [N,hw,width] to the same."
    hidden = layer.widen(layer.norm_mix(tokens)).transpose(1, 2).unflatten(2, grid)  # [N,hidden,h,w]
    mixed = F.gelu(layer.neighbours(hidden)).flatten(2).transpose(1, 2)
    return tokens + layer.narrow(mixed)


# %% [markdown]
# ### The module
#
# `block` chooses the layer. "paper": the text, without a residual; "residual": the same, added to the features; "prenorm_mixffn": the released
# code. L layers follow each other, then a linear map to $d$ channels (in the released code a LayerNorm).

# %%
#| export
def _initialise(module: nn.Module) -> None:
    "Start values of the released code: small linear maps, He-normal for the depthwise convolution, no bias."
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):  # depthwise: 9 weights reach each output
        nn.init.normal_(module.weight, std=math.sqrt(2 / 9))
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)


# %%
#| export
def _head_sizes(
    channels: int, heads: int, layers: int, dim_query: int | None, dim_value: int | None, mlp_ratio: float
) -> tuple[int, int]:
    "Width of query and value of a head. Raises ValueError for sizes that make no module."
    share = channels // heads if isinstance(heads, int) and heads > 0 else 0
    dim_query, dim_value = (share if size is None else size for size in (dim_query, dim_value))
    sizes = {"channels": channels, "heads": heads, "layers": layers, "dim_query": dim_query, "dim_value": dim_value}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: found {size!r}, expected a whole number, at least 1")
    if not mlp_ratio > 0:
        raise ValueError(f"mlp_ratio: found {mlp_ratio!r}, expected a number above 0")
    return dim_query, dim_value


# %%
#| export
def _layers(
    block: str, channels: int, heads: int, layers: int, dim_query: int | None, dim_value: int | None, mlp_ratio: float
) -> nn.ModuleList:
    "Layers that follow each other. Raises ValueError for an unknown block and for sizes that make no module."
    one_of("block", block, ("paper", "residual", "prenorm_mixffn"))
    sizes = _head_sizes(channels, heads, layers, dim_query, dim_value, mlp_ratio)
    make, made, width = _MixLayer if block == "prenorm_mixffn" else _PaperLayer, nn.ModuleList(), channels
    for _ in range(layers):
        made.append(make(width, heads, *sizes, mlp_ratio))
        width = cast(int, made[-1].width)
    return made


# %%
#| export
def _through(layers: nn.ModuleList, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, _QueryKey]:
    "Tokens [N,hw,width] after all layers, and query, key and log-sum-exp of all heads, layer by layer."
    found = []
    for layer in layers:
        tokens, query_key = layer(tokens, grid)
        found.append(query_key)
    queries, keys, sums = zip(*found, strict=True)
    return tokens, (torch.cat(queries, 1), torch.cat(keys, 1), None if None in sums else torch.cat(sums, 1))


# %%
#| export
def _check_features(features: Tensor, channels: int) -> None:
    "Raise ValueError for features that are not [N,d,h,w] with d = `channels`."
    if features.ndim != 4 or features.shape[1] != channels:
        raise ValueError(f"features: found {list(features.shape)}, expected [N,{channels},h,w]")


# %% [markdown]
# After a forward pass the module keeps, with their graph, `query` and `key` [N,L·n,h·w,d_q] and `log_sum` [N,L·n,h·w] (None where the device's
# kernel does not return it), and `grid` (h,w). The 1×1 convolution `similarity`, which the [attentive similarity loss](34_asl.ipynb) applies to
# them, is here because its two numbers are parameters of the network. PyTorch draws their start values: half of the seeds start with a negative weight.

# %%
#| export
class SpatialSelfAttention(nn.Module):
    """Spatial self-attention over a feature map (§2.3 of the paper).

    Raises ValueError for an unknown block, unusable sizes, and features that are not [N,d,h,w].
    """

    def __init__(
        self,
        channels: int,  # d, width of the features
        heads: int = 1,  # n, of each layer
        layers: int = 1,  # L
        *,
        block: str = "paper",  # the text's; "residual": the same, added to the features; "prenorm_mixffn": the code's
        dim_query: int | None = None,  # d_q = d_k of a head; channels // heads unless told
        dim_value: int | None = None,  # d_v of a head; channels // heads unless told
        mlp_ratio: float = 4,  # hidden width of the MLP over its width
    ) -> None:
        super().__init__()
        self.channels, self.block = channels, block
        self.layers = _layers(block, channels, heads, layers, dim_query, dim_value, mlp_ratio)
        width = cast(int, self.layers[-1].width)
        self.last = nn.LayerNorm(channels) if block == "prenorm_mixffn" else nn.Linear(width, channels)
        self.apply(_initialise)
        self.similarity = nn.Conv2d(layers * heads, 1, 1)
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.log_sum: Tensor | None = None
        self.grid: tuple[int, int] | None = None

    def forward(
        self,
        features: Tensor,  # [N,d,h,w] float
    ) -> Tensor:  # [N,d,h,w]
        "Attended features; keeps `query` and `key` [N,L·n,hw,d_q], `log_sum` [N,L·n,hw] or None, and `grid` (h,w)."
        _check_features(features, self.channels)
        grid = (features.shape[2], features.shape[3])
        tokens, query_key = _through(self.layers, features.flatten(2).transpose(1, 2), grid)
        (self.query, self.key, self.log_sum), self.grid = query_key, grid
        attended = self.last(tokens).transpose(1, 2).unflatten(2, grid)
        return features + attended if self.block == "residual" else attended

    def __getstate__(self) -> dict:
        "What a copy or a pickle takes along: query and key belong to one forward pass, and their graph cannot go."
        return {**self.__dict__, "query": None, "key": None, "log_sum": None, "grid": None}


# %% [markdown]
# ## Equal, and what it costs
#
# Two heads of the fast form against the loops, on 16 places, in value and in the gradient of features and weights.

# %%
f = torch.randn(1, 16, 6)
weights = [torch.randn(6, 6) for _ in range(3)]
fast_heads = _Attention(6, 2, 3, 3).double()
names = ("query.weight", "key.weight", "value.weight")
fast = lambda f, *w: torch.func.functional_call(fast_heads, dict(zip(names, w, strict=True)), f)[0].sin().sum()
halves = lambda w: (w[:3], w[3:])
naive = lambda f, *w: torch.cat([attend_naive(f[0], *one) for one in zip(*map(halves, w), strict=True)], 1).sin().sum()
assert_same(fast, naive, f, *weights)

# %%
block = SpatialSelfAttention(64)
places = torch.randn(4, 64, 48, 48)
print("fast :", cost(lambda: block(places).sum().backward()))
dense = lambda: attention_maps(block.query, block.key, 64**-0.5) @ block.query
print("dense, attention alone:", cost(lambda: (block(places), dense().sum().backward())))

# %%
count = lambda module: sum(p.numel() for p in module.parameters())
released = SpatialSelfAttention(64, block="prenorm_mixffn")
assert count(released.layers) == 52_352 and count(released.last) == 128 and count(released.similarity) == 2
print({name: count(SpatialSelfAttention(64, block=name)) for name in ("paper", "residual", "prenorm_mixffn")})


# %% [markdown]
# ## On any layer of any network
#
# `attach` puts the module on a layer by name. With `where="output"` all that read the layer's output, in a U-Net the next stage *and* the decoder,
# get attended features; with `where="input"` only the layer itself does. With `separate=True` features pass
# unchanged, and query and key are computed beside them.

# %%
#| export
class AttendedLayer(nn.Module):
    "A layer of a network with spatial self-attention behind it, before it, or beside it."

    def __init__(
        self,
        layer: nn.Module,  # the layer that stood here
        attention: SpatialSelfAttention,  # for the width of the attended side
        *,
        name: str,  # of the layer, for messages
        where: str,  # "output" or "input": which side of the layer is attended
        separate: bool,  # pass the features on as they are
    ) -> None:
        super().__init__()
        self.layer, self.attention = layer, attention
        self.name, self.where, self.separate = name, where, separate

    def forward(
        self,
        *inputs: Any,  # of the layer; the first one is attended with `where="input"`
        **options: Any,  # of the layer
    ) -> Tensor:  # what the layer returns, attended with `where="output"`
        if self.where == "output":
            return self._attend(self.layer(*inputs, **options))
        return self.layer(self._attend(inputs[0] if inputs else None), *inputs[1:], **options)

    def _attend(self, features: Tensor | None) -> Tensor:
        if not isinstance(features, Tensor) or features.ndim != 4:
            found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(f"{self.where} of layer {self.name!r}: found {found}, expected a tensor [N,d,h,w]")
        attended = self.attention(features)
        return features.clone() if self.separate else attended  # the next layer may write over what it is given


# %% [markdown]
# An `Attachment` undoes what `attach` did.

# %%
#| export
@dataclass(frozen=True, eq=False)
class Attachment:
    "Spatial self-attention on a layer of a network."

    model: nn.Module  # the network
    layer_name: str  # where the attention stands
    attention: SpatialSelfAttention  # its `query`, `key` and `log_sum` are those of the last forward pass

    def detach(self) -> None:
        "Put the layer back as it was. Raises ValueError where this attention no longer stands."
        holder = self.model.get_submodule(self.layer_name)
        if not isinstance(holder, AttendedLayer) or holder.attention is not self.attention:
            raise ValueError(f"layer_name: found another module at {self.layer_name!r}, expected this attention")
        _exchange(self.model, holder, holder.layer)


# %%
#| export
def _exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    "Put a layer in the place of another, under every name it has: some networks keep a layer twice and use the second."
    for name in [name for name, layer in model.named_modules(remove_duplicate=False) if layer is old]:
        model.set_submodule(name, new)


# %%
#| export
def _layer_named(model: nn.Module, name: str) -> nn.Module:
    "The layer. Raises ValueError with the nearest names."
    layers = dict(model.named_modules(remove_duplicate=False))
    if not name or name not in layers:
        near = get_close_matches(name, list(layers)[1:], n=3, cutoff=0.4)
        raise ValueError(f"layer_name: found {name!r}, expected a layer of {type(model).__name__}"
                         + (f"; the nearest are {', '.join(map(repr, near))}" if near else ""))
    if isinstance(layers[name], AttendedLayer):
        raise ValueError(f"layer_name: found spatial self-attention at {name!r} already, expected a layer without it")
    return layers[name]


# %%
#| export
def _width_of(layer: nn.Module, where: str) -> int | None:
    "Channels of a layer's input or output, read from the first or last module inside that has them; None without one."
    fields = ("in_channels", "num_features") if where == "input" else ("out_channels", "num_features")
    widths = [getattr(part, field) for part in layer.modules() for field in fields
              if isinstance(getattr(part, field, None), int)]
    return widths[0 if where == "input" else -1] if widths else None


# %%
#| export
def attach(
    model: nn.Module,  # any network; changed in place
    layer_name: str,  # "encoder.2", as in `model.named_modules()`
    channels: int | None = None,  # d of the features; read from the layer unless told
    *,
    where: str = "output",  # "output": all that read the layer get attended features; "input": the layer alone does
    separate: bool = False,  # features pass unchanged, query and key are computed beside them
    **ssa: Any,  # options of `SpatialSelfAttention`
) -> Attachment:  # `detach()` takes the attention away again
    """Put spatial self-attention on a layer of a network.

    The layer moves to `<layer_name>.layer`, the attention to `<layer_name>.attention`, under every name that the
    layer has in the network, with the layer's device, dtype and mode: attach before the optimiser is made and before
    weights are loaded. Raises ValueError for an unknown or already attended layer and where the width cannot be read;
    in `forward`, TypeError for features that are no [N,d,h,w] and ValueError for another width.
    """
    layer = _layer_named(model, layer_name)
    one_of("where", where, ("output", "input"))
    channels = channels or _width_of(layer, where)
    if channels is None:
        kind = type(layer).__name__
        raise ValueError(f"channels: found no width in {layer_name!r}, a {kind}, expected it as channels=")
    attention = SpatialSelfAttention(channels, **ssa).train(layer.training)
    weights = next(layer.parameters(), next(model.parameters(), None))
    if weights is not None:
        attention.to(weights.device, weights.dtype)
    holder = AttendedLayer(layer, attention, name=layer_name, where=where, separate=separate)
    holder.training = layer.training  # not train(), which would change the mode of modules inside the layer
    _exchange(model, layer, holder)
    return Attachment(model, layer_name, attention)


# %%
model = untrained
before = model(slices)
changed, ways = {}, (("encoder.2", "output", False), ("encoder.3", "input", False), ("encoder.2", "output", True))
for layer, where, separate in ways:
    attachment = attach(model, layer, where=where, separate=separate, block="prenorm_mixffn")
    changed[layer, where, separate] = not torch.equal(model(slices), before)
    assert attachment.attention.grid == (24, 24)
    attachment.detach()
    assert torch.equal(model(slices), before)
assert list(changed.values()) == [True, True, False]

# %% [markdown]
# The same call on another network, and the message for a misspelt layer. Attach *before* the optimiser is made, since the
# module has parameters.

# %%
small = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
attach(small, "0", heads=2, layers=2)
assert small(slices).shape == (4, 4, 47, 47) and small[0].attention.query.shape == (4, 4, 47 * 47, 4)
assert copy.deepcopy(small)[0].attention.query is None  # a copy does not hold the last forward pass
try:
    attach(model, "encoder2")
    raise RuntimeError("a wrong name passed")
except ValueError as error:
    print(error)


# %% [markdown]
# ## What happens at the start
#
# The released start values are small: linear weights have a standard deviation of 0.02. Logits are then near 0, every share is near $1/hw$, and
# every place gets nearly the same result: the mean of all values. How much do the features still vary over the places?

# %%
def network(block=None, seed=0):
    torch.manual_seed(seed)
    model = UNet2d(1, 4, dropout=(0,) * 5)
    return model, attach(model, "encoder.2", block=block) if block else None


# %%
def at_start(block):
    model, attachment = network(block)
    features = {}
    for name, layer in (("stage", model.encoder[2]), ("next", model.encoder[3][1])):
        layer.register_forward_hook(lambda _, inputs, output, name=name: features.update({name: output.detach()}))
    model(slices)
    return features["stage"], features["next"], attachment


# %%
figure, axes = panels(4, size=2.4)
for axis, block in zip(axes, (None, "paper", "residual", "prenorm_mixffn"), strict=True):
    stage, following, attachment = at_start(block)
    spread = stage.std((2, 3)).mean().item()
    print(f"{block or 'no attention':15} spread over places {spread:.1e}, variance after the next convolution "
          f"{following.var((0, 2, 3)).mean():.1e}")
    shown = axis.imshow(stage[1, 2], cmap="viridis", vmin=-1, vmax=3, interpolation="nearest")
    axis.set_title(f"{block or 'no attention'}\nspread {spread:.0e}", fontsize=9)
figure.colorbar(shown, ax=axes, shrink=0.8, label="one feature of the third stage");

# %% [markdown]
# The paper's layer, as it is written, removes nearly all differences between places: the spread is four orders of magnitude below that of the
# features it replaces. The next stage begins with a convolution and batch norm; the variance that arrives there is smaller than the $10^{-5}$ that
# batch norm adds under its root, and nearly all of it comes from the zeros around the border. The two forms with a residual keep the features.

# %%
map_spread = {block: at_start(block)[0].std((2, 3)).mean() for block in ("paper", "residual", "prenorm_mixffn")}
plain, flat = at_start(None)[0].std((2, 3)).mean(), at_start("paper")
assert map_spread["paper"] < 1e-3 * plain and map_spread["residual"] > 0.9 * plain
variance = lambda x: x.var((2, 3)).mean()
assert flat[1].var((0, 2, 3)).mean() < 1e-5  # eps of batch norm
assert variance(flat[1][..., 1:-1, 1:-1]) < 1e-3 * variance(flat[1])  # without the border
shares = attention_maps(flat[2].attention.query, flat[2].attention.key, 64**-0.5) * 24 * 24
print(f"share of a place, times hw: {shares.min():.2f} to {shares.max():.2f}")

# %% [markdown]
# So with "paper" the deeper stages of the U-Net start without information about places, and the attention has to learn to bring it back from shares
# that are all alike. In 1,500 iterations on ACDC (profile `mini`, fold 1, one seed) it does not get there: `ours` ends at a mean DSC of 0.66 with this
# block and at 0.80 with `block="residual"`, all else equal.
#
# ## Real data: how even are the shares?
#
# One slice of an ACDC patient through the same untrained network.

# %%
folder = Path(os.environ.get("ATTENSCRIBBLE_DATA", "data")) / "acdc"
if folder.is_dir():
    scan = acdc(folder).read("patient001")[0]
    real = resize_image(torch.tensor(scan.image[len(scan.image) // 2]), 256)[None, None]
    model, attachment = network("prenorm_mixffn")
    with torch.no_grad():
        model.eval()(real)
        shares = attention_maps(attachment.attention.query, attachment.attention.key, 64**-0.5)[0, 0]
    effective = (-shares * shares.log()).sum(1).mean().exp().item()
    assert 1 <= effective <= len(shares)
    print(f"{scan.name}: a place attends to {effective:.1f} of {len(shares)} places; largest share {shares.max():.2e}, "
          f"1/hw = {1 / len(shares):.2e}")
else:
    print(f"skipped: no ACDC folder at {folder}; set ATTENSCRIBBLE_DATA")

# %% [markdown]
# The number is the exponential of a row's mean entropy: the number of places that a place effectively attends to. Here it is practically all of
# them. One slice, one seed, no training: it says where learning starts, not where it ends.

# %% [markdown]
# ## Slide the sharpness
#
# How would trained attention look? In place of learned queries and keys, take the normalised features of the third stage
# themselves, so that similar places match. The factor multiplies the logits; the released code makes its
# similarity from logits that are not divided by $\sqrt{d_k}$: a factor of 8.

# %%
stage = at_start(None)[0][1:2].flatten(2).transpose(1, 2)  # [1,576,64]
unit = F.layer_norm(stage, (64,))[:, None].detach()
place = 12 * 24 + 13  # in the left ventricle


def plot_sharpness(axis, factor):
    row = attention_maps(unit, unit, factor / 64)[0, 0, place] * 24 * 24
    return plot_attention(axis, row, (24, 24), place, limits=(0, 4), title=f"logits × {factor:g}")


# %%
def slide(factor=8.0):
    figure, (axis,) = panels(1, size=3)
    figure.colorbar(plot_sharpness(axis, factor), ax=axis, shrink=0.8, label="share × hw", extend="max")
    plt.show()

interact(slide, factor=(0.0, 40.0, 0.5));

# %%
figure, axes = panels(5, size=2.1)
draw(axes[0], slices[1, 0].numpy(), title="image")
for axis, factor in zip(axes[1:], (0.02, 1, 4, 12), strict=True):
    shown = plot_sharpness(axis, factor)
figure.colorbar(shown, ax=axes, shrink=0.8, label="share × hw (1: even)", extend="max");


# %% [markdown]
# At 0.02, about where training starts, all shares are alike and the heart is invisible. With a larger factor, places that are similar to the cross
# have larger shares, near and far: attention compares features, not positions. With a factor of 12, a few places have nearly all of the share.
#
# ## Exercises
#
# **1. Predict.** How many parameters does the paper's block have with one head and one layer, all widths d and `mlp_ratio=4`? (The
# 1×1 convolution counts.)

# %%
def check_count(f):
    for d in (4, 64):
        assert f(d) == count(SpatialSelfAttention(d))

def parameters(d):
    ...  # your code here

exercise(check_count, parameters, solution=lambda d: 3 * d * d + 2 * d + 8 * d * d + 5 * d + d * d + d + 2)


# %% [markdown]
# **2. Implement.** From `query` and `key` [hw,d], the share that every place *receives*, summed over all queries, [hw].

# %%
def check_received(f):
    torch.manual_seed(0)
    query, key = torch.randn(2, 9, 4).double()
    received = f(query, key)
    torch.testing.assert_close(received, attention_maps(query[None, None], key[None, None], 0.5)[0, 0].sum(0))
    assert math.isclose(received.sum(), 9)

def received(query, key):
    ...  # your code here

exercise(check_received, received, solution=lambda q, k: (q @ k.T / len(q[0]) ** 0.5).softmax(1).sum(0))


# %% [markdown]
# **3. Break.** Shuffle the places, attend, and undo the shuffle. For which of the three blocks does the result change? Return their names.

# %%
def check_position(f):
    features, order = torch.randn(1, 8, 5, 5), torch.randperm(25)
    shuffle = lambda x, order: x.flatten(2)[..., order].view_as(x)
    found = set()
    for block in ("paper", "residual", "prenorm_mixffn"):
        module = SpatialSelfAttention(8, block=block)
        again = shuffle(module(shuffle(features, order)), order.argsort())
        if not torch.allclose(again, module(features), atol=1e-5):
            found.add(block)
    assert set(f()) == found

def knows_positions():
    ...  # your code here

exercise(check_position, knows_positions, solution=lambda: ["prenorm_mixffn"])

# %% [markdown]
# Only the depthwise convolution of the released block depends on which places are neighbours. Attention does not, as the paper notes too; this is why
# its loss has a factor for the distance.
#
# ## Recap
#
# `SpatialSelfAttention` in three forms; `attach` for any layer of any network; `attention_maps` and `plot_attention` for pictures. Surprising:
# the paper's block, without a residual, starts by removing nearly all differences between places. [The next chapter](34_asl.ipynb) turns query and
# key into a loss.
