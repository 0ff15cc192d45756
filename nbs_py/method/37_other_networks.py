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
# Can a network that somebody else wrote learn from scribbles, without a change of its code? The losses need only its prediction, so all that must be
# found is one name, the layer that gets attention. This chapter measures the layers of any network,
# puts attention on three of MONAI's and one of torchvision's, and trains one of them in a plain PyTorch loop.

# %%
#| default_exp method.other_networks

# %%
#| export
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor, nn

# %%
#| export
from attenscribble.basics.drawing import class_colour
from attenscribble.method.network import UNet2d
from attenscribble.method.objective import Method, unet, unet_with_attention, with_attention
from attenscribble.method.switches import MethodSwitches, NetSwitches, import_named

# %%
import copy
from itertools import islice

import matplotlib.pyplot as plt
from ipywidgets import interact
from monai.networks.nets import BasicUNet, DynUNet
from monai.networks.nets import UNet as MonaiUNet

# %%
from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import panels
from attenscribble.data.batches import SliceStore, batches
from attenscribble.data.phantom import phantom
from attenscribble.method.asl import attentive_similarity_loss
from attenscribble.method.mcrf import masked_crf_loss
from attenscribble.method.network import field_width, plot_field, receptive_fields
from attenscribble.method.objective import METHODS, LossContext, Objective
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.method.ssa import attach

# %% [markdown]
# ## The picture: where is the third stage?
#
# Four networks, the layers in the order in which they run. Height: cells along a side of the layer's grid. Number: its
# channels. Ringed: the layer that takes the place of the paper's third stage. (The two functions come from the finished module.)

# %%
WIDTHS = (16, 32, 64, 128, 256)
MAKE = {
    "UNet2d": (lambda: UNet2d(1, 4, WIDTHS, dropout=(0,) * 5), "encoder.2"),
    "MONAI BasicUNet": (lambda: BasicUNet(2, 1, 4, features=(*WIDTHS, 16)), "down_2"),
    "MONAI DynUNet": (lambda: DynUNet(2, 1, 4, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=WIDTHS), "downsamples.1"),
    "MONAI UNet": (lambda: MonaiUNet(2, 1, 4, WIDTHS[1:], [2] * 3, num_res_units=1), "model.1.submodule.0"),
}
picture = torch.rand(1, 1, 96, 96)

# %%
from attenscribble.method.other_networks import layers_of, plot_layers

def plot_networks(size=96):
    _, axes = plt.subplots(1, len(MAKE), figsize=(11, 2.6), sharey=True, layout="constrained")
    for axis, (title, (make, name)) in zip(axes, MAKE.items(), strict=True):
        plot_layers(axis, layers_of(make(), torch.zeros(1, 1, size, size)), name, title=title)
    axes[0].set_ylabel("cells a side")

plot_networks()


# %% [markdown]
# Four ways to write the same U. The names of the ringed layers have nothing in common, but their places have: on the way down, a quarter
# of the image's side, 64 channels.
#
# ## What a layer must offer
#
# Two quantities matter, and both follow from the grid of $h\times w$ cells over an image of $H\times W$ px:
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
# ## By hand: a copy of `forward`
#
# The obvious way is to copy `forward` and write the attention into it. For `BasicUNet` that is eight lines. They have
# to be written again for each network, and again when its authors change it; here they are the reference for `attach`.

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
# The names of layers stand in `named_modules()`, their shapes do not: these depend on the image and on what `forward` does. So the network runs
# once, with a hook on every layer. Of layers inside one another that share a grid the outermost is enough: a block, not
# its convolutions.

# %%
#| export
_PAPER_CELLS, _PAPER_RADIUS, _PAPER_SIGMA = 64, 5, 6.0  # side of the grid and window of eq. 6, as released


# %%
#| export
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
        share = (self.grid[0] * self.grid[1]) ** 0.5 / _PAPER_CELLS
        return max(1, round(_PAPER_RADIUS * share)), _PAPER_SIGMA * share


# %%
#| export
def layers_of(
    model: nn.Module,  # any network; runs once, in evaluation mode, without gradient
    image: Tensor,  # [N,K,H,W] as it takes them
    *,
    inner: bool = False,  # also layers inside another of the same grid
) -> list[Layer]:  # in the order in which they were done
    "The layers that attention can be put on: those that give [N,d,h,w]. Modes of all parts are as before."
    names, area = {part: name for name, part in model.named_modules() if name}, image.shape[2] * image.shape[3]
    seen = _one_pass(model, image, names)
    grids = {names[part]: shapes[-1][2:] for part, shapes in seen.items()}
    return [Layer(names[part], type(part).__name__, d, (h, w), (area / (h * w)) ** 0.5, len(shapes))
            for part, shapes in seen.items() for _, d, h, w in shapes[-1:]
            if inner or not any(grids.get(parent) == (h, w) for parent in _parents(names[part]))]


# %%
#| export
def _one_pass(model: nn.Module, image: Tensor, parts: Iterable[nn.Module]) -> dict[nn.Module, list[tuple[int, ...]]]:
    "The shapes [N,d,h,w] that parts of a network gave in one pass, by part, in the order in which they were done."
    seen: dict[nn.Module, list[tuple[int, ...]]] = {}

    def listen(part: nn.Module, inputs: tuple, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            seen.setdefault(part, []).append(tuple(output.shape))

    with ExitStack() as hooks, _evaluating(model), torch.no_grad():
        for part in parts:
            hooks.callback(part.register_forward_hook(listen).remove)
        model(image)
    return seen


# %%
#| export
@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    "Evaluation mode for all parts of a network; afterwards each part is in its former mode."
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


# %%
#| export
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
    axis: Axes,  # where to draw
    layers: list[Layer],  # of `layers_of`
    chosen: str = "",  # ring this one
    *,
    title: str = "",  # above the picture
) -> None:
    "The shape of a network: its layers in order, the side of their grids, the channels as numbers."
    sides = [(layer.grid[0] * layer.grid[1]) ** 0.5 for layer in layers]
    axis.plot(sides, color="0.75", zorder=1)
    for place, layer in enumerate(layers):
        _mark(axis, place, sides, layer, ringed=layer.name == chosen)
    _scale(axis)
    axis.set_title(title, fontsize=9)


# %%
#| export
def _mark(axis: Axes, place: int, sides: list[float], layer: Layer, ringed: bool) -> None:
    "A dot for a layer, its channels, and a ring with its name if wanted."
    axis.scatter([place], sides[place], s=18, color=class_colour(4), zorder=2)
    below = place > 0 and sides[place - 1] == sides[place]  # two numbers of one height would touch
    axis.annotate(str(layer.channels), (place, sides[place]), (0, -13 if below else 8), textcoords="offset points",
                  ha="center", fontsize=7)
    if ringed:
        axis.scatter([place], sides[place], s=110, facecolor="none", edgecolor=class_colour(3), linewidth=2, zorder=3)
        axis.text(0.5, 0.88, layer.name, transform=axis.transAxes, ha="center", fontsize=8, color=class_colour(3))


# %%
#| export
def _scale(axis: Axes) -> None:
    "Sides in powers of two, no ticks for the layers."
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.margins(y=0.18)
    axis.set_xticks([])
    axis.set_xlabel("layers, as they run", fontsize=8)


# %% [markdown]
# ## What changes: the receptive field
#
# The middle of `down_2`, before and after: which pixels influence it? White: the square with 90 % of the influence. On the left
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
                nn.init.xavier_uniform_(linear.weight, gain=2)  # as if trained: the start values of 0.02 are too small
        field = receptive_fields(net, images, ["down_2"])["down_2"]
        widths.append(field_width(field))
        shown = plot_field(axis, field, title=f"{norm} norm, {state}\n90 % within {widths[-1]:.0f} px")
figure.colorbar(shown, ax=axes, shrink=0.8, label="influence (strongest pixel: 1)")
assert widths[1] > 2 * widths[0] and widths[2] > 2 * widths[0]

# %% [markdown]
# With batch norm a place depends on its neighbours only, until attention is added. With instance norm it depends on all pixels already, a
# little, because mean and variance of each channel are made of all pixels. But these are the same two numbers for every place; with
# attention, each place is compared with all others.

# %% [markdown]
# ## What a layer costs
#
# Attention has $(hw)^2$ shares a head. The fused kernel does not store them, but it computes them: with half the stride it has sixteen times as
# much to do.

# %%
for name in ("down_3", "down_2", "down_1"):
    net = BasicUNet(2, 1, 4, features=(*WIDTHS, 16))
    before = cost(lambda net=net: net(picture).sum().backward())
    attention = attach(net, name, block="residual").attention
    after = cost(lambda net=net: net(picture).sum().backward())
    print(f"{name}: {attention.grid}, (hw)² = {attention.query.shape[2] ** 2:>9,}, {before.seconds:.3f} → {after}")

# %% [markdown]
# ## A training loop of your own
#
# Neither a `Config` nor a `Method` is needed, only the three losses and `attach`. The scribble is an integer map with `ignore` where nobody drew.

# %%
dataset = phantom(patients=4, seed=1)
store = SliceStore(dataset.cases(), classes=4, ignore=dataset.ignore)
order = batches(len(store), 4, torch.Generator().manual_seed(0))
loader = [store.batch(index, 96) for index in islice(order, 24)]

torch.manual_seed(0)
model = BasicUNet(spatial_dims=2, in_channels=1, out_channels=4, features=(8, 16, 32, 64, 64, 8))
attention = attach(model, "down_2", block="residual").attention
optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)


# %%
def loss_of(image, scribble):
    logits = model(image)
    probs, unlabelled = logits.softmax(1), (scribble == dataset.ignore)[:, None]
    similar = (attention.query, attention.key, attention.similarity.weight, attention.similarity.bias)
    return (partial_cross_entropy(logits, scribble, ignore=dataset.ignore)
            + 0.1 * masked_crf_loss(probs, image, unlabelled=unlabelled, radius=5, sigma_xy=6, sigma_i=0.1)
            + 0.1 * attentive_similarity_loss(probs, *similar, grid=attention.grid, radius=2, sigma_xy=2.25,
                                              unlabelled=unlabelled, log_sum=attention.log_sum))


# %%
history = []
for batch in loader:
    loss = loss_of(batch.image, batch.target)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    history.append(loss.item())

# %%
assert sum(history[-6:]) < 0.9 * sum(history[:6])
assert all(parameter.grad is not None and parameter.grad.any() for parameter in attention.parameters())
print(f"mean loss of the first six steps {sum(history[:6]) / 6:.2f}, of the last six {sum(history[-6:]) / 6:.2f}")

# %% [markdown]
# This loss is the one that the method `ours` has in this book, term by term:

# %%
batch, switches = loader[0], MethodSwitches(asl_radius=2, asl_sigma_xy=2.25)
context = LossContext(model(batch.image), batch, switches, model)
expected = (partial_cross_entropy(context.logits, batch.target, ignore=4)
            + 0.1 * masked_crf_loss(context.probs, batch.image, unlabelled=context.unlabelled)
            + 0.1 * attentive_similarity_loss(
                context.probs, attention.query, attention.key, attention.similarity.weight, attention.similarity.bias,
                grid=attention.grid, radius=2, sigma_xy=2.25, unlabelled=context.unlabelled))
torch.testing.assert_close(Objective(METHODS["ours"])(context)[0], expected)


# %% [markdown]
# ## Networks with another output
#
# torchvision's segmentation networks take three channels and give a dictionary; others give a list, or logits at a
# quarter of the size. The losses need [N,C,H,W]. An `Adapter` translates.

# %%
#| export
class Adapter(nn.Module):
    """A network from elsewhere, as the losses and the training loop want it.

    Of a mapping it takes `out` or `logits` (or the only entry), of a list or tuple the first; logits of another size
    are interpolated to that of the image. Raises TypeError for an answer that is none of these.
    """

    def __init__(
        self,
        network: nn.Module,  # from elsewhere
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
        logits = _main_answer(self.network(image))
        if logits.shape[2:] != image.shape[2:]:
            logits = F.interpolate(logits, image.shape[2:], mode="bilinear")
        return logits


# %%
#| export
def _main_answer(answer: Any) -> Tensor:
    "The logits [N,C,h,w] among what a network gives. Raises TypeError for anything else."
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


# %%
quarter = Adapter(Quarter(), channels=3)
assert quarter(picture).shape == (1, 4, 96, 96)
try:
    Adapter(nn.Flatten())(picture)
    raise RuntimeError("a vector passed")
except TypeError as error:
    print(error)

# %% [markdown]
# ## A real network for photographs
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
# papermill train.ipynb ../runs/basic-unet.ipynb -p dataset acdc -p net_name monai.networks.nets:BasicUNet \
#     -p ssa_layer down_2 -p ssa_block residual
# attenscribble train net_name=torchvision.models.segmentation:lraspp_mobilenet_v3_large ssa_layer=backbone.3
# ```
#
# Its keywords are given as JSON, `net_options='{"features": [16, 32, 64, 128, 256, 16]}'`; channels and classes are filled in where
# its signature asks for them, and pretrained weights are left out unless they are named. Without a name they are keywords of the
# [U-Net](30_network.ipynb): `net_options='{"dropout": [0, 0, 0, 0, 0]}'`.

# %% [markdown]
# A checkpoint names its network too, and a checkpoint may come from somebody unknown. So only what *declares* itself a network is called: a
# class of networks, or a function annotated to return one.

# %%
#| export
def _network_named(name: str) -> Callable[..., nn.Module]:
    "What makes a network. Raises ValueError for anything that cannot be found or does not declare that it does."
    make = import_named("net_name", name)
    try:
        kind = make if isinstance(make, type) else get_type_hints(make).get("return")
    except (NameError, TypeError):
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"net_name: found {name!r}, expected a class of networks, or a function annotated with one")
    return make


# %% [markdown]
# Channels and classes come from the dataset, under the names that the constructor has for them. Nothing is downloaded unless it is asked for.

# %%
#| export
_CLASSES = ("out_channels", "num_classes", "classes", "n_classes")  # how constructors call the number of classes
_NO_DOWNLOAD = ("weights", "weights_backbone", "encoder_weights")  # None unless named: nothing is fetched


# %%
#| export
def _keywords(make: Callable, switches: NetSwitches, in_channels: int, classes: int) -> dict[str, Any]:
    "What a constructor is called with, the options included. Raises ValueError where the two do not fit."
    asked = inspect.signature(make).parameters
    if not set(_CLASSES) & set(asked):
        raise ValueError(f"net_name: {switches.net_name} takes {', '.join(asked) or 'nothing'}, "
                         f"expected {' or '.join(_CLASSES)}")
    if reserved := [name for name in ("in_channels", *_CLASSES) if name in switches.net_options]:
        raise ValueError(f"net_options: {reserved[0]} comes from the dataset, expected other keywords")
    known = {"spatial_dims": 2, "in_channels": in_channels, **dict.fromkeys(_CLASSES, classes),
             **dict.fromkeys(_NO_DOWNLOAD)}
    return {name: value for name, value in known.items() if name in asked} | switches.net_options


# %%
#| export
def _foreign_network(switches: NetSwitches, in_channels: int, classes: int) -> Adapter:
    "A network by its name, with as many channels and classes. Raises ValueError for options that do not fit."
    name, make = switches.net_name, _network_named(switches.net_name)
    keywords = _keywords(make, switches, in_channels, classes)
    try:
        network = make(**keywords)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"net_options: {name} refuses {json.dumps(switches.net_options)}: {error}") from error
    wanted = next((part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d)), in_channels)
    if wanted != in_channels != 1:
        raise ValueError(f"net_name: {name} takes {wanted} channels, the dataset has {in_channels}")
    return Adapter(network, wanted if wanted != in_channels else None)


# %% [markdown]
# Training and prediction build their networks with one function. What can be checked without weights is checked when the settings are made.

# %%
#| export
def build_network(
    method: Method,  # whose network it is
    in_channels: int,  # K of the images
    classes: int,  # C of the logits
    switches: MethodSwitches,  # which may name another network, and where attention goes
) -> nn.Module:  # [N,K,H,W] → logits [N,C,H,W]
    "A method's network, or the one that the switches name in its place. Raises ValueError where that cannot be."
    check_network(method, switches)
    if not switches.net_name:
        return method.network(in_channels, classes, switches)
    adapter = _foreign_network(switches, in_channels, classes)
    if method.network is unet_with_attention:
        with_attention(adapter.network, switches)
    return adapter


# %%
#| export
def check_network(
    method: Method,  # whose network it is
    switches: MethodSwitches,  # which may name another one, and options
) -> None:
    "Raises ValueError for a network that cannot be found, options it does not have, or a method with its own network."
    name, options = switches.net_name, switches.net_options
    if name:
        _network_named(name)
    if (name or options) and method.network not in (unet, unet_with_attention):
        raise ValueError(f"{'net_name' if name else 'net_options'}: method {method.name!r} has a network of its own, "
                         "expected none for it")
    if options and not name:
        _check_unet_options(options)


# %%
#| export
def _check_unet_options(options: dict[str, Any]) -> None:
    "Raises ValueError for keywords that the U-Net does not take."
    try:
        with torch.device("meta"):  # no weights are drawn
            UNet2d(1, 2, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"net_options: the U-Net refuses {json.dumps(options)}: {error}") from None


# %%
named = MethodSwitches(net_name="monai.networks.nets:BasicUNet", net_options={"features": [8, 8, 16, 16, 16, 8]},
                       ssa_layer="down_2", ssa_block="residual")
built = build_network(METHODS["ours"], 1, 4, named)
assert built(picture).shape == (1, 4, 96, 96) and built.network.down_2.attention.grid == (24, 24)
for wrong in ("os:system", "monai.networks.nets:Nothing", "subprocess:run", "BasicUNet"):
    try:
        _network_named(wrong)
        raise RuntimeError(f"{wrong} passed")
    except ValueError as error:
        print(error)

# %% [markdown]
# ## Slide the image
#
# The grid of a layer depends on the size of the image. At 96 px the ringed layer has 24 cells a side; at 256 px, as in the paper, 64.

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
# **2. Implement.** Choose the layer by a rule: the first whose cells are at least 4 px wide and
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
# **3. Break.** `DynUNet` keeps each stage twice, in `downsamples` and in the recursive `skip_layers`, and only the second one runs.
# Replace the first by hand, and return whether the new layer ever ran. (`attach` replaces both.)

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
# `layers_of` and `plot_layers` find the layer, `attach` of [chapter 33](33_ssa.ipynb) puts attention on it, `Adapter` translates
# outputs, and `build_network` makes a network from its name. Surprising: a network may keep a layer twice and run the one you did not replace.
# [The configuration](../runs/50_config.ipynb) makes `net_name` a setting of every run.
