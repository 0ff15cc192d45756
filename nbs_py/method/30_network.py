# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The network
#
# > A 2D U-Net: what each stage sees, where its parameters are, and what none of its convolutions can see.
#
# A segmentation network turns an image into a class for every pixel. Its convolutions see a neighbourhood of each pixel and nothing beyond, so the
# size of that neighbourhood decides what the network can learn. This chapter builds the U-Net that the paper trains, measures how far each of its
# stages sees, and counts its parameters and operations.

# %%
#| default_exp method.network

# %%
#| export
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attenscribble.basics.distributed import sharded_noise

if TYPE_CHECKING:  # matplotlib takes long to import, and only `plot_field` needs it
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# %%
import os
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import interact
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from attenscribble.basics.checking import assert_same, cost, exercise
from attenscribble.basics.drawing import panels
from attenscribble.data.scans import acdc

# %% [markdown]
# ## What can this network see?
#
# A feature deep in the network is computed from some pixels of the scan and from no others. Which ones? Take the feature
# in the middle of a stage and ask autograd how much each pixel changes it: that map is the feature's **receptive field**.
# This first picture is drawn by the finished module; the chapter then builds it.

# %%
from attenscribble.method.network import UNet2d, field_width, plot_field, receptive_fields

def fit_batch_norm(model, images):
    "Set batch norm's statistics to those of these images, as training soon would."
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


# %%
torch.manual_seed(0)
images = torch.rand(4, 1, 256, 256)
model, new = fit_batch_norm(UNet2d(in_channels=1, classes=4), images), UNet2d(in_channels=1, classes=4).eval()
stages = [f"encoder.{i}" for i in range(5)] + ["head"]
fields = receptive_fields(model, images, stages)
figure, axes = panels(6, columns=3)
for axis, (name, field) in zip(axes, fields.items(), strict=True):
    mappable = plot_field(axis, field, title=f"{name}: 90 % within {field_width(field):.0f} px")
figure.colorbar(mappable, ax=list(axes), label="|∂ feature / ∂ pixel|, relative", shrink=0.7);

# %% [markdown]
# Each panel is the whole 256² image; black pixels have no influence at all. A feature of the third stage, `encoder.2`, depends on a
# window of 32 px, an eighth of the width. The field of the whole network (`head`) is 220 px wide, yet nine tenths of the influence
# lie within 100 px.
#
# No feature of `encoder.2` depends on two pixels that are 60 px apart, even if they belong to one organ. Attention on that stage connects them.

# %%
assert 85 < field_width(fields["head"]) < 115
assert field_width(receptive_fields(new, images[:1], ["head"])["head"]) < 15


# %% [markdown]
# The second line is a warning. In a new network, whose batch norm has seen no data, the same measurement gives 10 px only: in
# evaluation mode that batch norm does nothing, and the signal fades on its way through the deep stages. After one pass over data the width is
# ten times as large.

# %% [markdown]
# ## Equations: how far, how many, how much work
#
# A 3×3 convolution adds one neighbour on each side; a 2×2 pooling adds one neighbour and doubles the distance
# between neighbours:
#
# $$\text{convolution: } r \leftarrow r + 2j \qquad \text{pooling: } r \leftarrow r + j,\; j \leftarrow 2j$$
#
# Stage $s$ holds $9\,c_{s-1}c_s + 9\,c_s^2 + 6\,c_s$ parameters (two convolutions with bias, two batch norms) and does
# $(9\,c_{s-1}c_s + 9\,c_s^2)\,HW/4^s$ multiplications.
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $r$ | `side` | scalar | px of the image, side of the square field |
# | $j$ | `jump` | scalar | px of the image between neighbouring features |
# | $c_s$ | `channels[s]` | scalar | channels; $c_{-1}$ is `in_channels` |
# | $H, W$ | `image.shape[2:]` | scalars | px |

# %%
def field_sides(stages):
    "The side of the field of each encoder stage, px, from the two rules above."
    side, jump, sides = 1, 1, []
    for stage in range(stages):
        if stage:
            side, jump = side + jump, 2 * jump  # pooling
        side += 2 * (2 * jump)  # two convolutions
        sides.append(side)
    return sides


# %%
def measured_side(field):
    "Rows of the image that have any influence."
    rows = field.sum(1).nonzero()
    return (rows.max() - rows.min() + 1).item()

assert field_sides(5) == [5, 14, 32, 68, 140]
assert [measured_side(fields[f"encoder.{i}"]) for i in range(5)] == field_sides(5)


# %% [markdown]
# By hand: stage 0 has two convolutions, 1 + 2 + 2 = **5**. Stage 1 pools, 5 + 1 = 6, its neighbours are 2 px apart, two
# convolutions add 4 each: **14**. The gradients agree to the pixel. The rules say how far a feature *can* see; the gradient
# also says how much each pixel counts, and towards the rim that is very little.

# %% [markdown]
# ## The code
#
# A stage is two convolutions. Batch norm after each keeps the scale; dropout between them grows with depth, because
# that is where the parameters are. PyTorch draws a random number for each pixel and channel, which on a CPU takes a third of the time of a forward
# pass in bfloat16. `drop` takes four numbers of 16 bits from each draw of 64.

# %%
#| export
def drop(
    features: Tensor,  # [N,C,H,W] float
    probability: float,  # that a number is dropped, in [0,1); rounded to a multiple of 2⁻¹⁶
    *,
    channels: bool = False,  # drop whole channels of an image
) -> Tensor:  # [N,C,H,W]: the others grow, so that the mean stays
    "Dropout. Several processes that share a batch draw the same noise as one process would."
    count, depth, height, width = features.shape
    numbers = (1, 1, depth) if channels else (height, width, depth)  # in the order of the convolutions' memory
    drawn = _draw(count, -(-math.prod(numbers) // 4), features.device).view(torch.int16)
    noise = drawn[:, : math.prod(numbers)].view(count, *numbers).permute(0, 3, 1, 2)
    level = round(probability * 2**16)
    return features * ((noise >= level - 2**15).to(features.dtype) * (2**16 / (2**16 - level)))


# %%
#| export
def _draw(images: int, numbers: int, device: torch.device) -> Tensor:
    "Random bits for each image, [images,numbers] int64. A compiled function could not return them viewed as int16."
    def draw(count: int) -> Tensor:
        return torch.empty(count, numbers, dtype=torch.int64, device=device).random_(-(2**63), None)

    return sharded_noise(draw, images)


# %%
#| export
class Dropout(nn.Dropout):
    "`drop` in training; in evaluation it changes nothing."

    def forward(
        self,
        features: Tensor,  # [N,C,H,W] float
    ) -> Tensor:  # [N,C,H,W]
        return drop(features, self.p) if self.training and self.p else features


# %%
#| export
def _convolutions(
    in_channels: int,  # channels in
    out_channels: int,  # channels out
    dropout: float,  # probability between the two convolutions; 0 adds no layer
) -> list[nn.Module]:
    "Two 3×3 convolutions, each with batch norm and leaky ReLU (slope 0.01); the side stays."
    noise = [Dropout(dropout)] if dropout else []
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.LeakyReLU(), *noise,
        nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.LeakyReLU(),
    ]


# %% [markdown]
# In the decoder a 1×1 convolution reduces the channels, bilinear interpolation doubles the side (corners stay corners), and the
# encoder's features of that side are concatenated with the result.

# %%
#| export
class UpStage(nn.Module):
    "A stage of the decoder: fewer channels, double the side, join the encoder's features of that side, convolve twice."

    def __init__(
        self,
        in_channels: int,  # of the coarser features
        skip_channels: int,  # of the encoder's features at the finer side, and of the result
    ) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(in_channels, skip_channels, 1)
        self.grow = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.convolutions = nn.Sequential(*_convolutions(2 * skip_channels, skip_channels, dropout=0))

    def forward(
        self,
        coarse: Tensor,  # [N,in_channels,h,w]
        skip: Tensor,  # [N,skip_channels,2h,2w]
    ) -> Tensor:  # [N,skip_channels,2h,2w]
        return self.convolutions(torch.cat([skip, self.grow(self.narrow(coarse))], 1))


# %% [markdown]
# By hand: doubling the row (0, 3) keeps its ends and puts two values between them: (0, 1, 2, 3).
# Doubling 2×2 does so in both directions.

# %%
two_by_two = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
by_hand = torch.tensor([[0.0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]])
assert_close(UpStage(1, 1).grow(two_by_two)[0, 0], by_hand)


# %%
#| export
class UNet2d(nn.Module):
    """A 2D U-Net with `encoder.0` … `encoder.4`, `decoder.0` … `decoder.3` and `head`.

    Weights start as PyTorch draws them, in the released network's order: the same seed gives both the same weights.
    Raises ValueError or TypeError for unusable options and, in `forward`, for an input that is not [N,in_channels,H,W]
    of floats with sides divisible by `side_multiple`.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the image: 1 for a grayscale scan
        classes: int,  # channels of the logits, the background included
        channels: Sequence[int] = (16, 32, 64, 128, 256),  # width of each encoder stage; each but the first halves
        dropout: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),  # probability within each encoder stage
    ) -> None:
        super().__init__()
        _check_options(in_channels, classes, channels, dropout)
        self.in_channels, self.classes = in_channels, classes
        self.side_multiple = 2 ** (len(channels) - 1)  # both sides of an image are multiples of this
        self.encoder = _encoder((in_channels, *channels), dropout)
        self.decoder = nn.ModuleList(map(UpStage, channels[:0:-1], channels[-2::-1]))
        self.head = nn.Conv2d(channels[0], classes, 3, padding=1)

    def forward(
        self,
        image: Tensor,  # [N,in_channels,H,W] float, sides divisible by `side_multiple`
    ) -> Tensor:  # [N,classes,H,W] logits, in the dtype and memory format the convolutions give
        "Logits for every pixel."
        return self.head(climb(self.decoder, self.encode(image)))

    def encode(
        self,
        image: Tensor,  # [N,in_channels,H,W] float, sides divisible by `side_multiple`
    ) -> list[Tensor]:  # [N,channels[s],H/2^s,W/2^s] for each stage s
        "The features of every encoder stage."
        _check_image(image, self.in_channels, self.side_multiple)
        stages = []
        for stage in self.encoder:
            stages.append(image := stage(image))
        return stages


# %% [markdown]
# What a module named `encoder.i` returns goes to the next stage and to the decoder, so a module attached to it by name changes both.

# %%
#| export
def _encoder(channels: Sequence[int], dropout: Sequence[float]) -> nn.ModuleList:
    "Stages from `channels[i]` to `channels[i + 1]` channels; each but the first begins by halving the side."
    return nn.ModuleList(
        nn.Sequential(*([nn.MaxPool2d(2)] if i else []), *_convolutions(channels[i], channels[i + 1], probability))
        for i, probability in enumerate(dropout)
    )


# %%
#| export
def climb(
    decoder: nn.ModuleList,  # of `UpStage`, the coarsest first
    stages: Sequence[Tensor],  # what `UNet2d.encode` gives
) -> Tensor:  # [N,channels[0],H,W]
    "The decoder: from the deepest features up to full size, joining each encoder stage on the way."
    *skips, features = stages
    for stage in decoder:
        features = stage(features, skips.pop())
    return features


# %%
#| export
def _check_options(in_channels: int, classes: int, channels: Sequence[int], dropout: Sequence[float]) -> None:
    "Raise ValueError for options that make no U-Net."
    for name, count in (("in_channels", in_channels), ("classes", classes)):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}: found {count!r}, expected a whole number, at least 1")
    if not channels or any(not isinstance(width, int) or width < 1 for width in channels):
        raise ValueError(f"channels: found {channels!r}, expected one whole number, at least 1, for each stage")
    if len(dropout) != len(channels) or not all(0 <= p < 1 for p in dropout):
        raise ValueError(f"dropout: found {dropout!r}, expected {len(channels)} numbers in [0, 1), one a stage")


# %%
#| export
def _check_image(image: Tensor, in_channels: int, multiple: int) -> None:
    "Raise for an input the network cannot halve and double back."
    if not image.is_floating_point():
        raise TypeError(f"image: found dtype {image.dtype}, expected floats; scale the scan to [0, 1] first")
    if image.ndim != 4 or image.shape[1] != in_channels:
        raise ValueError(f"image: found shape {tuple(image.shape)}, expected [N,{in_channels},H,W]")
    for name, side in (("height", image.shape[2]), ("width", image.shape[3])):
        if side % multiple or not side:
            larger = (side // multiple + 1) * multiple
            raise ValueError(f"image: found {name} {side}, expected a multiple of {multiple}; the next one is {larger}")


# %% [markdown]
# This is the form of Ronneberger et al. (2015) in the released code of WSL4MIS and AttenScribble. That code says `bilinear=False`, which stands for
# transposed convolutions, but never hands the flag to the blocks that would use it. The number of parameters, 1,813,764, confirms the 1×1 form:
# four transposed 2×2 convolutions would hold $3\sum c_s c_{s+1} = 130\,560$ more.

# %%
def parameters(module):
    return sum(weight.numel() for weight in module.parameters())

channels = (16, 32, 64, 128, 256)
assert parameters(UNet2d(1, 4)) == 1_813_764
assert parameters(UNet2d(1, 5)) == 1_813_909
assert 3 * sum(a * b for a, b in pairwise(channels)) == 130_560

# %% [markdown]
# ## Where parameters live and where the work is
#
# Halving the side quarters the pixels; doubling the channels quadruples the weights. So every stage does about the same
# work, while each holds four times the parameters of the one before.

# %%
side, sources = 256, (1, *channels)
weights = [9 * sources[s] * c + 9 * c * c for s, c in enumerate(channels)]
stage_parameters = [w + 6 * c for w, c in zip(weights, channels, strict=True)]
stage_work = [w * side**2 / 4**s for s, w in enumerate(weights)]
assert stage_parameters == [parameters(stage) for stage in model.encoder]

with FlopCounterMode(display=False) as counter, torch.no_grad():
    model(torch.rand(1, 1, side, side))
operations = counter.get_flop_counts()  # two for each multiplication
assert stage_work == [sum(operations[f"UNet2d.encoder.{s}"].values()) / 2 for s in range(5)]
assert counter.get_total_flops() / 2 == 2_949_644_288

# %%
names = [f"encoder.{i}" for i in range(5)] + [f"decoder.{i}" for i in range(4)] + ["head"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3), sharey=True, layout="constrained")
left.barh(names, [parameters(model.get_submodule(name)) / 1e3 for name in names], color="#0072B2")
left.set_xlabel("parameters, thousands")
right.barh(names, [sum(operations[f"UNet2d.{name}"].values()) / 2e6 for name in names], color="#D55E00")
right.set_xlabel("multiplications for one 256² image, millions")
left.invert_yaxis()
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# `encoder.4` and `decoder.0`, which work on 16² and 32² grids, hold three quarters of all parameters. Attention on
# `encoder.2` (64 channels, 64² = 4096 positions) needs few weights, but a matrix of 4096² in memory if it is written down.

# %%
deep = parameters(model.encoder[4]) + parameters(model.decoder[0])
assert 0.74 < deep / parameters(model) < 0.76


# %% [markdown]
# ## The same network, written slowly
#
# Is the wiring right? Here is every layer as its definition, one pixel at a time, on 8×8 pixels in float64.

# %%
def convolve(features, layer):
    "out[o,y,x] = b[o] + Σ_i Σ_dy Σ_dx w[o,i,dy,dx] · features[i, y+dy, x+dx], zeros outside."
    channels, height, width = features.shape
    size, margin = layer.kernel_size[0], layer.kernel_size[0] // 2
    padded = features.new_zeros(channels, height + 2 * margin, width + 2 * margin)
    padded[:, margin : margin + height, margin : margin + width] = features
    out = [layer.bias + (layer.weight * padded[:, y : y + size, x : x + size]).sum((1, 2, 3))
           for y in range(height) for x in range(width)]
    return torch.stack(out, 1).reshape(-1, height, width)


# %%
def normalise(features, layer):
    mean, variance = features.mean((1, 2)), features.var((1, 2), correction=0)
    scale = layer.weight / (variance + layer.eps).sqrt()
    return (features - mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]

def leak(features, layer):
    return torch.where(features > 0, features, 0.01 * features)

def pool(features, layer):
    return torch.stack([features[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]).amax(0)


# %%
def grow(features):
    "Output row y of 2n reads at y·(n−1)/(2n−1), between two input rows; columns alike."
    def weights(n):
        at = torch.arange(2 * n).double() * (n - 1) / (2 * n - 1)
        return (1 - (at[:, None] - torch.arange(n)).abs()).clamp(min=0)
    return weights(features.shape[1]) @ features @ weights(features.shape[2]).T

SLOW = {nn.Conv2d: convolve, nn.BatchNorm2d: normalise, nn.LeakyReLU: leak, nn.MaxPool2d: pool}


# %%
def naive_unet(image, model):  # [1,K,H,W] → [1,C,H,W]
    features, skips = image[0], []
    for stage in model.encoder:
        for layer in stage:
            features = SLOW[type(layer)](features, layer)
        skips.append(features)
    features = skips.pop()
    for stage in model.decoder:
        features = torch.cat([skips.pop(), grow(convolve(features, stage.narrow))])
        for layer in stage.convolutions:
            features = SLOW[type(layer)](features, layer)
    return convolve(features, model.head)[None]


# %%
torch.manual_seed(1)
small = UNet2d(1, 2, channels=(2, 3, 4), dropout=(0, 0, 0)).double()
image, target = torch.rand(1, 1, 8, 8), torch.rand(1, 2, 8, 8).double()
assert_same(lambda x: (small(x) * target).sum(), lambda x: (naive_unet(x, small) * target).sum(), image)
print("one 8×8 image, slow:", cost(lambda: naive_unet(image.double(), small)))
print("one 8×8 image, fast:", cost(lambda: small(image.double())))
print("one 256² image through the whole network:", cost(lambda: model(torch.rand(1, 1, 256, 256))))

# %% [markdown]
# Now break the slow form: a height of 18 halves to 9, and 9 does not halve. Its error comes from a tensor operation deep inside; the exported form
# checks the image first and says which side would fit.

# %%
for form, complaint in ((partial(naive_unet, model=small), "expects each tensor to be equal size"),
                        (small, "found height 18, expected a multiple of 4; the next one is 20")):
    try:
        form(torch.rand(1, 1, 18, 20).double())
        raise AssertionError("a side that cannot be halved twice passed")
    except (RuntimeError, ValueError) as error:
        assert complaint in str(error), error

# %% [markdown]
# Nothing in `forward` names a device, a dtype or a memory layout, so bfloat16 under autocast works, and so do features with their channels last in
# memory, which are faster on GPUs.

# %%
batch = torch.rand(2, 1, 32, 48)
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    assert model(batch).dtype == torch.bfloat16
with torch.no_grad():
    last = UNet2d(1, 4).eval().to(memory_format=torch.channels_last)
    last.load_state_dict(model.state_dict())
    assert_close(last(batch), model(batch), rtol=1e-4, atol=1e-5)


# %% [markdown]
# ## Measuring what a feature sees
#
# The functions behind the first picture (after Luo et al. 2016). They work for any network and any layer that has a name,
# trained or not. A network in training mode is an error: there batch norm mixes all pixels, and every field is the whole image.

# %%
#| export
def receptive_fields(
    model: nn.Module,  # in evaluation mode
    image: Tensor,  # [N,K,H,W] float; more images give smoother fields
    layer_names: Sequence[str],  # of layers that return [N,d,h,w], as in `model.named_modules()`
) -> dict[str, Tensor]:  # name → [H,W] float, at least 0, sum 1
    """How much each pixel moves the feature in the middle of a layer: mean |∂ Σ_d feature / ∂ pixel| over the images.

    Raises ValueError for a model in training mode, AttributeError for a name the model does not have.
    """
    if model.training:
        raise ValueError("model: found training mode, where batch norm mixes all pixels, expected model.eval()")
    image = image.detach().requires_grad_()
    features = _features(model, image, layer_names)
    return {name: _influence(features[name], image) for name in layer_names}


# %%
#| export
def _features(model: nn.Module, image: Tensor, layer_names: Sequence[str]) -> dict[str, Tensor]:
    "What each of these layers returns for an image; no hook stays behind."
    layers, features = {name: model.get_submodule(name) for name in layer_names}, {}

    def keep(name: str, layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        features[name] = output

    hooks = [layer.register_forward_hook(partial(keep, name)) for name, layer in layers.items()]
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return features


# %%
#| export
def _influence(feature: Tensor, image: Tensor) -> Tensor:
    "The share of each pixel in the gradient of a layer's middle feature."
    middle = feature[..., feature.shape[-2] // 2, feature.shape[-1] // 2]
    (slope,) = torch.autograd.grad(middle.sum(), image, retain_graph=True)
    field = slope.abs().sum((0, 1))
    return field / field.sum()


# %% [markdown]
# A field is summed up by the square that holds most of it.

# %%
#| export
def field_square(
    field: Tensor,  # [H,W] at least 0, not all 0
    share: float = 0.9,  # of the field's sum, above 0, at most 1
) -> tuple[float, float, float]:  # row and column of the centre of gravity, half the side; px
    "The square around a field's centre of gravity that holds this share of it."
    field = field.double() / field.sum()
    rows, columns = (torch.arange(n, dtype=field.dtype, device=field.device) for n in field.shape)
    row, column = field.sum(1) @ rows, field.sum(0) @ columns
    distance = torch.maximum((rows - row).abs()[:, None], (columns - column).abs()).flatten()
    distance, order = distance.sort()
    inside = field.flatten()[order].cumsum(0)
    last = torch.searchsorted(inside, share * inside[-1]).clamp(max=len(inside) - 1)
    return row.item(), column.item(), distance[last].item() + 0.5


# %%
#| export
def field_width(
    field: Tensor,  # [H,W] at least 0, not all 0
    share: float = 0.9,  # of the field's sum, above 0, at most 1
) -> float:  # px
    "The side of the square that holds this share of a field."
    return 2 * field_square(field, share)[2]


# %%
#| export
def plot_field(
    axis: "Axes",  # where to draw
    field: Tensor,  # [H,W] at least 0, not all 0
    share: float = 0.9,  # of the field inside the square that is drawn
    title: str = "",  # above the picture
) -> "AxesImage":  # for a colour bar
    "Draw a receptive field, relative to its strongest pixel, on a fixed logarithmic scale; black is no influence."
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle
    colours, relative = plt.get_cmap("viridis").with_extremes(bad="black"), (field / field.max()).numpy(force=True)
    picture = axis.imshow(relative, cmap=colours, norm="log", vmin=1e-5, vmax=1, interpolation="nearest")
    row, column, half = field_square(field, share)
    axis.add_patch(Rectangle((column - half, row - half), 2 * half, 2 * half, fill=False, edgecolor="white"))
    axis.set_title(title, fontsize=9)
    return picture


# %% [markdown]
# By hand: a field with ½ in its middle pixel and 1/16 in each of the eight around it. Half of it lies within 1 px, all
# of it within 3 px.

# %%
ring = torch.full((3, 3), 1 / 16)
ring[1, 1] = 1 / 2
assert field_width(ring, share=0.5) == 1 and field_width(ring, share=1) == 3

# %% [markdown]
# ## In millimetres, on a heart
#
# Is 32 px much? Take the first ACDC patient at end-diastole, resized to 256² as in training, and compare the field of
# `encoder.2` with the heart it has to recognise.

# %%
root = Path(os.environ.get("ATTENSCRIBBLE_DATA", "")) / "acdc"
if root.is_dir():
    case = acdc(root).read("patient001")[0]
    pixel_mm = case.spacing_mm[2] * case.image.shape[2] / 256
    columns = np.flatnonzero((case.label > 0).any((0, 1)))
    heart_mm = (columns[-1] - columns[0] + 1) * case.spacing_mm[2]
    seen_mm = field_width(fields["encoder.2"]) * pixel_mm
    assert seen_mm < heart_mm
    print(f"{case.name}: heart {heart_mm:.0f} mm wide; 90 % of the influence on encoder.2 within {seen_mm:.0f} mm")
else:
    print("skipped: set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# What this number does not show: training moves the fields, and the deeper stages do see the whole heart; they see it on
# a grid of 16², one feature for every 16 px.

# %% [markdown]
# ## Slider: where does the influence end?
#
# The square holds a share of the influence on `encoder.2`. How large must the share be before the square is 32 px wide?
# (At 100 % it is 33: its centre is the field's centre of gravity, not the middle of the field.)

# %%
def show_share(share):
    _, (axis,) = panels(1, size=3)
    window = fields["encoder.2"][100:156, 100:156]
    plot_field(axis, window, share, title=f"{100 * share:.0f} % within {field_width(window, share):.0f} px")

interact(show_share, share=(0.1, 1.0, 0.05));

# %%
figure, axes = panels(4)
window = fields["encoder.2"][100:156, 100:156]
for axis, share in zip(axes, (0.25, 0.5, 0.9, 1.0), strict=True):
    plot_field(axis, window, share, title=f"{100 * share:.0f} % within {field_width(window, share):.0f} px")


# %% [markdown]
# ## Exercises
#
# 1. *Predict.* How many parameters does a fifth class add? Return the number, without building a network.

# %%
def check_fifth_class(count):
    assert count() == parameters(UNet2d(1, 5)) - parameters(UNet2d(1, 4)), "look at the head: 3×3, 16 channels in"

def attempt_fifth_class():
    ...  # your code here

exercise(check_fifth_class, attempt_fifth_class, solution=lambda: 9 * 16 + 1)


# %% [markdown]
# 2. *Implement.* To what side must an image be padded so that a network with this many stages takes it?

# %%
def check_fitting_side(fit):
    for side, stages in ((216, 5), (256, 5), (1, 3), (17, 5)):
        network = UNet2d(1, 2, channels=(1,) * stages, dropout=(0,) * stages).eval()
        assert side <= fit(side, stages) < side + 2 ** (stages - 1), "the nearest one, not smaller"
        network(torch.rand(1, 1, fit(side, stages), fit(side, stages)))

def attempt_fitting_side(side, stages):
    ...  # your code here

def solve_fitting_side(side, stages):
    multiple = 2 ** (stages - 1)
    return -(-side // multiple) * multiple

exercise(check_fitting_side, attempt_fitting_side, solve_fitting_side)


# %% [markdown]
# 3. *Implement.* A hook can change what a stage returns. Make a stage, given by name, return zeros, and return the hook's handle. Both the next
#    stage and the decoder must be given zeros; removing the handle must undo it.

# %%
def check_silence(silence):
    before, seen = model(batch), {}
    handle = silence(model, "encoder.2")
    spies = [model.get_submodule(name).register_forward_pre_hook(lambda m, x, n=name: seen.update({n: x}))
             for name in ("encoder.3", "decoder.1")]
    changed = model(batch)
    for spy in (*spies, handle):
        spy.remove()
    silent = seen["encoder.3"][0].eq(0).all() and seen["decoder.1"][1].eq(0).all()
    assert silent and not changed.equal(before), "not silent"
    assert model(batch).equal(before), "the handle does not undo it"


# %%
def attempt_silence(model, layer_name):
    return model.get_submodule(layer_name).register_forward_hook(lambda module, inputs, output: None)

def solve_silence(model, layer_name):
    return model.get_submodule(layer_name).register_forward_hook(lambda m, x, output: torch.zeros_like(output))

exercise(check_silence, attempt_silence, solve_silence)


# %% [markdown]
# 4. *Break.* Find a mode of the network in which a change of one corner pixel moves the feature in the opposite corner of
#    `encoder.0`. Return a model in that mode.

# %%
def check_far_sight(prepare):
    network = prepare(UNet2d(1, 2, dropout=(0,) * 5).eval())
    image = torch.rand(1, 1, 64, 64)
    other = image.clone()
    other[0, 0, 0, 0] += 5
    first, second = network.encoder[0](image), network.encoder[0](other)
    assert not first[..., -1, -1].equal(second[..., -1, -1]), "the feature in the far corner stays the same"

exercise(check_far_sight, lambda network: network, solution=lambda network: network.train())

# %% [markdown]
# ## Recap
#
# Exported: `UNet2d` and `UpStage`; `receptive_fields`, `field_width`, `field_square`, `plot_field` to look into any network.
#
# Surprising: three quarters of the parameters are in two stages; the released network is not the one that its options
# describe; one pass over data widens the measured field of the output from 10 px to 100 px.
#
# Next: [what to train it with](31_pce.ipynb). Attention on `encoder.2` comes in [chapter 33](33_ssa.ipynb).
