# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Other networks
#
# > The three losses and the attention on a network that somebody else wrote: find the layer, attach, train.
#
# **I have a network that works. Can it learn from scribbles without becoming another one?** Its code stays as it is.
# What has to be found is one name: the layer on which attention sits. This chapter measures the layers of any network,
# puts attention on three of MONAI's and one of torchvision's, and trains them with the loops of their owners.

# %%
#| default_exp method.other_networks

# %%
#| export
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor, nn

from attenscribble.book import class_colour
from attenscribble.method.network import UNet2d
from attenscribble.method.objective import (Method, MethodSwitches, NetSwitches, unet, unet_with_attention,
                                            with_attention)

# %%
import copy
from itertools import islice

import matplotlib.pyplot as plt
from ipywidgets import interact
from monai.networks.nets import BasicUNet, DynUNet
from monai.networks.nets import UNet as MonaiUNet

from attenscribble.book import cost, exercise, panels
from attenscribble.data.batches import SliceStore, batches
from attenscribble.data.phantom import phantom
from attenscribble.method.asl import attentive_similarity_loss
from attenscribble.method.mcrf import masked_crf_loss
from attenscribble.method.network import field_width, plot_field, receptive_fields
from attenscribble.method.objective import METHODS, AslSwitches, Evidence, Objective, SsaSwitches
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.method.ssa import attach
from attenscribble.method.other_networks import layers_of, plot_layers  # the finished functions, for a first look

# %% [markdown]
# ## The picture: where is the third stage?
#
# Four networks, the layers in the order in which they run. Height: cells along a side of the layer's grid. Number: its
# channels. Ringed: the layer that takes the part of the paper's third stage.

# %%
WIDTHS = (16, 32, 64, 128, 256)
MAKE = {
    "UNet2d": (lambda: UNet2d(1, 4, WIDTHS, dropout=(0,) * 5), "encoder.2"),
    "MONAI BasicUNet": (lambda: BasicUNet(2, 1, 4, features=(*WIDTHS, 16)), "down_2"),
    "MONAI DynUNet": (lambda: DynUNet(2, 1, 4, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=WIDTHS), "downsamples.1"),
    "MONAI UNet": (lambda: MonaiUNet(2, 1, 4, WIDTHS[1:], [2] * 3, num_res_units=1), "model.1.submodule.0"),
}
picture = torch.rand(1, 1, 96, 96)


def plot_networks(size=96):
    _, axes = plt.subplots(1, len(MAKE), figsize=(11, 2.6), sharey=True, layout="constrained")
    for axis, (title, (make, name)) in zip(axes, MAKE.items(), strict=True):
        plot_layers(axis, layers_of(make(), torch.zeros(1, 1, size, size)), name, title=title)
    axes[0].set_ylabel("cells a side")

plot_networks()


# %% [markdown]
# Four ways to write the same U. The names on the ring have nothing in common, the places do: on the way down, a quarter
# of the image's side, 64 channels.
#
# ## What a layer must offer
#
# Two quantities decide, and both follow from the grid of $h\times w$ cells over an image of $H\times W$ px:
#
# $$\text{stride}=\sqrt{\frac{HW}{hw}},\qquad r=\max\!\big(1,\ \mathrm{round}(5\,\tfrac{g}{64})\big),\quad \sigma=6\,\tfrac{g}{64},\quad g=\sqrt{hw}$$

# %% [markdown]
# | symbol | variable | unit | why |
# |---|---|---|---|
# | $h, w$ | `grid` | cells | attention costs $(hw)^2$ multiplications: 32² cells are 16 times cheaper than 64² |
# | stride | `stride` | px | a cell must be smaller than what is to be told apart: the heart's wall is 5 to 8 px |
# | $d$ | `channels` | – | a head gets $d/n$ of them; below 16 or so there is little to compare |
# | $r, \sigma$ | `window` | cells | the paper's 5 and 6 belong to 64² cells; a coarser grid needs less to cover the same share |

# %% [markdown]
# ## By hand: reading somebody's code
#
# The obvious way is to copy `forward` and write the attention into it. For `BasicUNet` that is eight lines. They have
# to be written again for each network, and again when its authors change it; here they serve as the truth.

# %%
def by_hand(net, attention, image):
    "MONAI's BasicUNet, written out, with attention after its third stage."
    x0 = net.conv_0(image)
    x1 = net.down_1(x0)
    x2 = attention(net.down_2(x1))
    x3 = net.down_3(x2)
    up = net.upcat_4(net.down_4(x3), x3)
    for stage, skip in ((net.upcat_3, x2), (net.upcat_2, x1), (net.upcat_1, x0)):
        up = stage(up, skip)
    return net.final_conv(up)


# %%
torch.manual_seed(0)
plain = BasicUNet(2, 1, 4, features=(*WIDTHS, 16))
attended = copy.deepcopy(plain)
attachment = attach(attended, "down_2", block="residual")
pixels, other = picture.clone().requires_grad_(), picture.clone().requires_grad_()
ours, theirs = attended(pixels), by_hand(plain, attachment.attention, other)
torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
for loss in (ours.square().sum(), theirs.square().sum()):
    loss.backward()
torch.testing.assert_close(pixels.grad, other.grad, rtol=0, atol=0)

# %% [markdown]
# ## A network's layers, measured
#
# Names can be read off `named_modules()`, shapes cannot: they depend on the image and on what `forward` does. So run it
# once, with an ear on every layer. Of layers inside one another that share a grid the outermost is enough: a block, not
# its convolutions.

# %%
#| export
PAPER_CELLS, PAPER_RADIUS, PAPER_SIGMA = 64, 5, 6.0  # a side of the grid for which the window of eq. 6 was released


@dataclass(frozen=True)
class Layer:
    "What one layer gave in one forward pass."

    name: str  # as in `model.named_modules()`: what `attach` takes
    kind: str  # its class
    channels: int  # d of [N,d,h,w]
    grid: tuple[int, int]  # (h,w)
    stride: float  # px of the image between neighbouring cells
    calls: int  # in the pass; of several, attention remembers the last

    @property
    def window(self) -> tuple[int, float]:  # cells
        "Radius and sigma of eq. 6 that cover the share of the image that the released values cover on 64² cells."
        share = (self.grid[0] * self.grid[1]) ** 0.5 / PAPER_CELLS
        return max(1, round(PAPER_RADIUS * share)), PAPER_SIGMA * share


def layers_of(
    model: nn.Module,  # any network; runs once, in evaluation mode, without gradient
    image: Tensor,  # [N,K,H,W] as it takes them
    *,
    inner: bool = False,  # also layers inside another of the same grid
) -> list[Layer]:  # in the order in which they were done
    "The layers that attention can be put on: those that give [N,d,h,w]. Modes of all parts are as before."
    names, found, calls = {part: name for name, part in model.named_modules() if name}, {}, {}

    def listen(part: nn.Module, inputs: tuple, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            found[part], calls[part] = tuple(output.shape), calls.get(part, 0) + 1

    hooks = [part.register_forward_hook(listen) for part in names]
    training = [part for part in model.modules() if part.training]
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
        for part in training:
            part.training = True
    grids = {names[part]: shape[2:] for part, shape in found.items()}
    area = image.shape[2] * image.shape[3]
    return [Layer(names[part], type(part).__name__, d, (h, w), (area / (h * w)) ** 0.5, calls[part])
            for part, (_, d, h, w) in found.items()
            if inner or not any(grids.get(parent) == (h, w) for parent in _parents(names[part]))]


def _parents(name: str) -> list[str]:
    "a.b.c → a, a.b"
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


# %%
for layer in layers_of(plain, picture):
    print(f"{layer.name:12} {layer.kind:8} {layer.channels:4} channels, {layer.grid[0]:2}×{layer.grid[1]:<2} cells "
          f"of {layer.stride:.0f} px, window r, σ = {layer.window}")
(third,) = [layer for layer in layers_of(plain, picture) if layer.name == "down_2"]
assert (third.channels, third.grid, third.stride, third.window) == (64, (24, 24), 4, (2, 2.25))
assert len(layers_of(plain, picture, inner=True)) > 3 * len(layers_of(plain, picture))


# %%
#| export
def plot_layers(
    axis: Axes,
    layers: list[Layer],  # of `layers_of`
    chosen: str = "",  # ring this one
    *,
    title: str = "",
) -> None:
    "The shape of a network: its layers in order, the side of their grids, the channels as numbers."
    sides = [(layer.grid[0] * layer.grid[1]) ** 0.5 for layer in layers]
    axis.plot(sides, color="0.75", zorder=1)
    axis.scatter(range(len(sides)), sides, s=18, color=class_colour(4), zorder=2)
    for place, (layer, side) in enumerate(zip(layers, sides, strict=True)):
        below = place > 0 and sides[place - 1] == side  # two numbers of one height would touch
        axis.annotate(str(layer.channels), (place, side), (0, -13 if below else 8), textcoords="offset points",
                      ha="center", fontsize=7)
        if layer.name == chosen:
            axis.scatter([place], [side], s=110, facecolor="none", edgecolor=class_colour(3), linewidth=2, zorder=3)
            axis.text(0.5, 0.88, chosen, transform=axis.transAxes, ha="center", fontsize=8, color=class_colour(3))
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.margins(y=0.18)
    axis.set_xticks([])
    axis.set_xlabel("layers, as they run", fontsize=8)
    axis.set_title(title, fontsize=9)


# %% [markdown]
# ## What changes: the reach
#
# The middle of `down_2`, before and after: which pixels move it? White: the square with 90 % of the influence. On the left
# with batch norm, on the right with instance norm, which is MONAI's default.

# %%
torch.manual_seed(0)
figure, axes = panels(4, size=2.5)
images, widths = torch.rand(2, 1, 96, 96), []
for norm, pair in (("batch", axes[:2]), ("instance", axes[2:])):
    net = BasicUNet(2, 1, 4, features=(*WIDTHS, 16), norm=norm).eval()
    for axis, state in zip(pair, ("plain", "attended"), strict=True):
        if state == "attended":
            attention = attach(net, "down_2", block="residual").attention
            for linear in (attention.layers[0].attention.value, attention.last):
                nn.init.xavier_uniform_(linear.weight, gain=2)  # as if trained: the start values of 0.02 whisper
        field = receptive_fields(net, images, ["down_2"])["down_2"]
        widths.append(field_width(field))
        shown = plot_field(axis, field, title=f"{norm} norm, {state}\n90 % within {widths[-1]:.0f} px")
figure.colorbar(shown, ax=axes, shrink=0.8, label="influence (strongest pixel: 1)")
assert widths[1] > 2 * widths[0] and widths[2] > 2 * widths[0]

# %% [markdown]
# Batch norm leaves a place alone with its neighbours until attention opens the window. Instance norm has opened it already, a
# little: mean and variance of each channel are made of all pixels. But these are the same two numbers for every place; with
# attention, each place asks its own question.

# %% [markdown]
# ## What a layer costs
#
# The whole attention would hold $(hw)^2$ shares a head. The fused kernel never writes them down, but its work still grows
# with them: with half the stride it is sixteen times as much.

# %%
for name in ("down_3", "down_2", "down_1"):
    net = BasicUNet(2, 1, 4, features=(*WIDTHS, 16))
    before = cost(lambda net=net: net(picture).sum().backward())
    attention = attach(net, name, block="residual").attention
    after = cost(lambda net=net: net(picture).sum().backward())
    print(f"{name}: {attention.grid}, (hw)² = {attention.query.shape[2] ** 2:>9,}, {before.seconds:.3f} → {after}")

# %% [markdown]
# ## Fifteen lines of your own
#
# No `Config`, no `Method`: three functions and one call. The scribble is an integer map with `ignore` where nobody drew.

# %%
dataset = phantom(patients=4, seed=1)
store = SliceStore(dataset.cases(), classes=4, ignore=dataset.ignore)
order = batches(len(store), 4, torch.Generator().manual_seed(0))
loader = [store.batch(index, 96) for index in islice(order, 24)]

torch.manual_seed(0)
model = BasicUNet(spatial_dims=2, in_channels=1, out_channels=4, features=(8, 16, 32, 64, 64, 8))
attention = attach(model, "down_2", block="residual").attention
optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
history = []
for image, scribble in [(batch.image, batch.target) for batch in loader]:
    logits = model(image)
    probs, unlabelled = logits.softmax(1), (scribble == dataset.ignore)[:, None]
    similar = (attention.query, attention.key, attention.similarity.weight, attention.similarity.bias)
    loss = (partial_cross_entropy(logits, scribble, ignore=dataset.ignore)
            + 0.1 * masked_crf_loss(probs, image, unlabelled=unlabelled, radius=5, sigma_xy=6, sigma_i=0.1)
            + 0.1 * attentive_similarity_loss(probs, *similar, grid=attention.grid, radius=2, sigma=2.25,
                                              unlabelled=unlabelled, log_sum=attention.log_sum))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    history.append(loss.item())

# %%
assert sum(history[-6:]) < 0.9 * sum(history[:6])
assert all(parameter.grad is not None and parameter.grad.any() for parameter in attention.parameters())
print(f"mean loss of the first six steps {sum(history[:6]) / 6:.2f}, of the last six {sum(history[-6:]) / 6:.2f}")

# %% [markdown]
# It is the book's own objective, term by term:

# %%
batch, switches = loader[0], MethodSwitches(asl=AslSwitches(radius=2, sigma=2.25))
evidence = Evidence(model(batch.image), batch, switches, model)
expected = (partial_cross_entropy(evidence.logits, batch.target, ignore=4)
            + 0.1 * masked_crf_loss(evidence.probs, batch.image, unlabelled=evidence.unlabelled)
            + 0.1 * attentive_similarity_loss(
                evidence.probs, attention.query, attention.key, attention.similarity.weight, attention.similarity.bias,
                grid=attention.grid, radius=2, sigma=2.25, unlabelled=evidence.unlabelled))
torch.testing.assert_close(Objective(METHODS["ours"])(evidence)[0], expected)


# %% [markdown]
# ## Networks that answer otherwise
#
# torchvision's segmentation networks want three channels and give a dictionary; others give a list, or logits at a
# quarter of the size. The losses want [N,C,H,W]. `Adapter` stands between.

# %%
#| export
class Adapter(nn.Module):
    """A network from elsewhere, as the losses and the training loop want it.

    Of a mapping it takes `out` or `logits` (or the only entry), of a list or tuple the first; logits of another size
    are interpolated to that of the image. Raises TypeError for an answer that is none of these.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: int | None = None,  # repeat a gray image to as many; None: images are passed as they are
    ) -> None:
        super().__init__()
        self.network, self.channels = network, channels

    def forward(
        self,
        image: Tensor,  # [N,K,H,W]
    ) -> Tensor:  # [N,C,H,W] logits
        "The network's main answer at the size of the image."
        if self.channels and image.shape[1] == 1:
            image = image.expand(-1, self.channels, -1, -1)
        logits = main_answer(self.network(image))
        if logits.shape[2:] != image.shape[2:]:
            logits = F.interpolate(logits, image.shape[2:], mode="bilinear")
        return logits


def main_answer(
    answer: Any,  # of a network
) -> Tensor:  # [N,C,h,w]
    "The logits among what a network gives. Raises TypeError for anything else."
    found = answer
    if isinstance(answer, Mapping):
        names = [name for name in ("out", "logits", *answer) if name in answer]
        found = answer[names[0]] if names and (names[0] in ("out", "logits") or len(answer) == 1) else None
    elif isinstance(answer, (list, tuple)) and answer:
        found = answer[0]
    if not isinstance(found, Tensor) or found.ndim != 4:
        more = answer.shape if isinstance(answer, Tensor) else answer if isinstance(answer, Mapping) else ()
        raise TypeError(f"network: found {type(answer).__name__} {[*more] or ''}, expected logits [N,C,h,w], alone, "
                        "first in a list, or under 'out' or 'logits'")
    return found


# %%
class Quarter(nn.Module):
    "Three channels in, a dictionary out, at a quarter of the size: like a network for photographs."

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU(inplace=True))
        self.classifier, self.aux = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 4, 1)

    def forward(self, image):
        features = self.backbone(image)
        return {"aux": self.aux(features), "out": self.classifier(features)}


quarter = Adapter(Quarter(), channels=3)
assert quarter(picture).shape == (1, 4, 96, 96)
try:
    Adapter(nn.Flatten())(picture)
    raise RuntimeError("a vector passed")
except TypeError as error:
    print(error)

# %% [markdown]
# ## Real networks for photographs
#
# torchvision's LR-ASPP on MobileNetV3, untrained (`weights_backbone=None`: nothing is fetched). Its third grid, a quarter of the
# side, has 24 channels.

# %%
try:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    photo = Adapter(lraspp_mobilenet_v3_large(num_classes=4, weights_backbone=None), channels=3)
    figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
    plot_layers(axis, layers_of(photo, picture), "network.backbone.3", title="torchvision lraspp_mobilenet_v3_large")
    axis.set_ylabel("cells a side")
    attention = attach(photo.network, "backbone.3", block="residual").attention
    assert photo(loader[0].image).shape == (4, 4, 96, 96) and attention.grid == (24, 24)
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
    print(f"skipped: no torchvision that works here ({error})")

# %% [markdown]
# ## By name, from the command line
#
# So that no training script has to be written, a run can name its network:
#
# ```bash
# papermill train.ipynb -p dataset acdc -p net_name monai.networks.nets:BasicUNet -p ssa_layer down_2 -p ssa_block residual
# attenscribble train net_name=torchvision.models.segmentation:lraspp_mobilenet_v3_large ssa_layer=backbone.3
# ```
#
# Its keywords are given as JSON, `net_options='{"features": [16, 32, 64, 128, 256, 16]}'`; channels and classes are filled in where
# its signature asks for them, and pretrained weights are left out unless they are named. Without a name they are keywords of the
# [U-Net](20_network.ipynb): `net_options='{"dropout": [0, 0, 0, 0, 0]}'`.

# %% [markdown]
# A checkpoint names its network too, and a checkpoint may come from a stranger. So only what *declares* itself a network is called: a
# class of them, or a function annotated to return one.

# %%
#| export
CLASSES = ("out_channels", "num_classes", "classes", "n_classes")  # how constructors call the number of classes
NO_DOWNLOAD = ("weights", "weights_backbone", "encoder_weights")  # None unless named: nothing is fetched


def network_named(
    name: str,  # "package.module:Name"
) -> Callable[..., nn.Module]:  # a class, or a function annotated to return a network
    "What makes a network. Raises ValueError for anything that cannot be found or does not declare that it does."
    module, _, attribute = name.partition(":")
    try:
        make = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"net_name: found {name!r} ({error}), expected package.module:Name of something installed"
                         ) from None
    try:
        kind = make if isinstance(make, type) else get_type_hints(make).get("return")
    except (NameError, TypeError):
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"net_name: found {name!r}, expected a class of networks, or a function annotated with one")
    return make


def foreign_network(
    net: NetSwitches,
    in_channels: int,  # K of the images
    classes: int,  # C of the logits
) -> Adapter:
    "A network by its name, with as many channels and classes. Raises ValueError for options that do not fit."
    make, options = network_named(net.name), dict(net.options)
    asked = inspect.signature(make).parameters
    known = {"spatial_dims": 2, "in_channels": in_channels, **dict.fromkeys(CLASSES, classes),
             **dict.fromkeys(NO_DOWNLOAD)}
    if not set(CLASSES) & set(asked):
        raise ValueError(f"net_name: {net.name} takes {', '.join(asked) or 'nothing'}, expected {' or '.join(CLASSES)}")
    if reserved := [name for name in ("in_channels", *CLASSES) if name in options]:
        raise ValueError(f"net_options: {reserved[0]} comes from the dataset, expected other keywords")
    try:
        network = make(**{name: value for name, value in known.items() if name in asked} | options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"net_options: {net.name} refuses {json.dumps(options)}: {error}") from error
    wanted = next((part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d)), in_channels)
    if wanted != in_channels != 1:
        raise ValueError(f"net_name: {net.name} takes {wanted} channels, the dataset has {in_channels}")
    return Adapter(network, wanted if wanted != in_channels else None)


def build_network(
    method: Method,
    in_channels: int,
    classes: int,
    switches: MethodSwitches,
) -> nn.Module:
    "A method's network, or the one that the switches name in its place. Raises ValueError where that cannot be."
    check_network(method, switches)
    if not switches.net.name:
        return method.network(in_channels, classes, switches)
    adapter = foreign_network(switches.net, in_channels, classes)
    if method.network is unet_with_attention:
        with_attention(adapter.network, switches.ssa)
    return adapter


def check_network(method: Method, switches: MethodSwitches) -> None:
    "Raises ValueError for a network that cannot be found, options it does not have, or a method that needs its own."
    name, options = switches.net.name, switches.net.options
    if name:
        network_named(name)
    if (name or options) and method.network not in (unet, unet_with_attention):
        raise ValueError(f"{'net_name' if name else 'net_options'}: method {method.name!r} has a network of its own, "
                         "expected none for it")
    if options and not name:
        try:
            with torch.device("meta"):  # no weights are drawn
                UNet2d(1, 2, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"net_options: the U-Net refuses {json.dumps(options)}: {error}") from None


# %%
small = NetSwitches(name="monai.networks.nets:BasicUNet", options={"features": [8, 8, 16, 16, 16, 8]})
named = MethodSwitches(net=small, ssa=SsaSwitches(layer="down_2", block="residual"))
built = build_network(METHODS["ours"], 1, 4, named)
assert built(picture).shape == (1, 4, 96, 96) and built.network.down_2.attention.grid == (24, 24)
for wrong in ("os:system", "monai.networks.nets:Nothing", "subprocess:run", "BasicUNet"):
    try:
        network_named(wrong)
        raise RuntimeError(f"{wrong} passed")
    except ValueError as error:
        print(error)

# %% [markdown]
# ## Slide the image
#
# A network has no grid of its own, the image gives it one. At 96 px the ring stands at 24 cells; at 256 px, where the paper
# is, at 64.

# %%
interact(lambda size=96: (plot_networks(size), plt.show())[1], size=(32, 256, 32));

# %%
plot_networks(256)


# %% [markdown]
# ## Exercises
#
# **1. Predict.** An image of 512 × 512 px, a layer with stride 8: what window does eq. 6 get?

# %%
def check_window(answer):
    assert answer() == Layer("", "", 64, (64, 64), 8, 1).window

def attempt_window():
    ...  # your code here

exercise(check_window, attempt_window, solution=lambda: (5, 6.0))


# %% [markdown]
# **2. Implement.** Choose the layer without looking: the first on the way down whose cells are at least 4 px wide and
# that has at least 32 channels; return its name.

# %%
def check_choice(choose):
    for make, name in MAKE.values():
        assert choose(layers_of(make(), picture)) == name

def attempt_choice(layers):
    ...  # your code here

exercise(check_choice, attempt_choice,
         solution=lambda layers: next(one.name for one in layers if one.stride >= 4 and one.channels >= 32))


# %% [markdown]
# **3. Break.** `DynUNet` keeps each stage twice, in `downsamples` and in the recursive `skip_layers` that it really runs.
# Replace only the first by hand, with `setattr`. Return whether the new layer ever ran. (`attach` exchanges both.)

# %%
def check_twice(f):
    assert f(MAKE["MONAI DynUNet"][0]()) is False

def attempt_twice(net):
    ...  # your code here

def solve_twice(net):
    ran = []
    net.downsamples[1] = nn.Sequential(net.downsamples[1])
    net.downsamples[1].register_forward_hook(lambda *_: ran.append(True))
    net(picture)
    return bool(ran)

exercise(check_twice, attempt_twice, solve_twice)

# %% [markdown]
# ## Recap
#
# `layers_of` and `plot_layers` find the place, `attach` of [chapter 23](23_ssa.ipynb) takes it, `Adapter` translates
# answers, `build_network` takes a name. Surprising: a network may keep a layer twice and run the copy you did not touch.
# [The configuration](../experiment/40_config.ipynb) makes `net_name` a setting of every run.
