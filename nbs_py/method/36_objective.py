# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The objective
#
# > Equation 7: the terms of a loss, their weights and their sum, and a method as the data that says which terms it has.
#
# Three losses train one network: where does each of them pull, and how hard? To compare methods, everything but their terms must be the same for
# all of them. This chapter writes a method down as data, a network and a few weighted terms, so that one training loop serves every method.

# %%
#| default_exp method.objective

# %%
#| export
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %%
#| export
from attenscribble.basics.distributed import BatchMean, batch_loss, common, mean_of
from attenscribble.basics.errors import did_you_mean, one_of
from attenscribble.data.batches import Batch
from attenscribble.method.asl import attentive_similarity_loss
from attenscribble.method.mcrf import masked_crf_loss
from attenscribble.method.network import UNet2d
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.method.ssa import SpatialSelfAttention, attach
from attenscribble.method.switches import MethodSwitches, Switches, import_named

# %%
from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.basics.distributed import ratio
from attenscribble.basics.drawing import draw, panels
from attenscribble.data.batches import SliceStore
from attenscribble.data.phantom import phantom

# %% [markdown]
# ## The picture: where each term pulls
#
# Take a prediction that is roughly right, the true label blurred and moved, and ask each of the paper's three terms what it wants changed in the
# logits of the myocardium: minus its gradient. Red pixels should become more like the myocardium, blue ones less. (The terms come from the
# finished module; the rest of the chapter builds it.)

# %%
dataset = phantom(patients=1, seed=3)
case = dataset.read(dataset.patients[0])[0]
store = SliceStore([case], classes=dataset.classes, ignore=dataset.ignore)
middle = len(store) // 2
batch = store.batch(torch.tensor([middle]), 96)
label = SliceStore([case], classes=4, ignore=4, target="label").batch(torch.tensor([middle]), 96).target


def rough_logits(label, shift=4, blur=9, confidence=6.0):
    "Logits of a prediction that is the label, moved and blurred."
    onehot = F.one_hot(label, 4).movedim(-1, 1).float().roll((shift, -shift), (2, 3))
    kernel = torch.ones(4, 1, blur, blur) / blur**2
    return confidence * F.conv2d(F.pad(onehot, [blur // 2] * 4, mode="replicate"), kernel, groups=4)


# %%
from attenscribble.method.objective import METHODS, LossContext, unet_with_attention

torch.manual_seed(0)
switches = MethodSwitches(asl_radius=2, asl_sigma_xy=2.25)
model = unet_with_attention(1, 4, switches)
model(batch.image)  # leaves query and key for the attentive term


def pull(term, logits, class_id=2):
    "Minus the gradient of one term in the logits of one class: [H,W]."
    leaf = logits.detach().requires_grad_()
    value = term.weight * term.loss(LossContext(leaf, batch, switches, model)).mean()
    return -torch.autograd.grad(value, leaf, retain_graph=True)[0][0, class_id]


# %%
def plot_pulls(confidence=6.0):
    "Image, prediction, and what each of the three terms asks of the myocardium's logit."
    rough = rough_logits(label, confidence=confidence)
    _, axes = panels(5)
    draw(axes[0], batch.image[0, 0], scribble=batch.target[0], ignore=4, title="image and scribble")
    draw(axes[1], batch.image[0, 0], label=rough.argmax(1)[0], outline=label[0], title="prediction, true outline")
    for axis, term in zip(axes[2:], METHODS["ours"].terms, strict=False):
        arrow = pull(term, rough)
        bound = float(arrow.abs().quantile(0.999)) or 1.0
        axis.imshow(arrow, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
        axis.set_title(f"{term.weight:g} · {term.name}, scale ±{bound:.1e}", fontsize=9)


plot_pulls()

# %% [markdown]
# The partial cross-entropy (`seg`) pulls on the strokes only. The masked CRF (`mcrf`) pulls where the prediction changes and the image does not. The
# attentive similarity loss (`atn`) pulls in the cells of the coarse feature grid, on the four middle pixels that stand for a cell: while the attention
# is untrained, it wants a smooth prediction everywhere. Both leave the strokes to `seg`.

# %%
drawn = batch.target[0] != batch.ignore
seg, mcrf, atn = (pull(term, rough_logits(label)) for term in METHODS["ours"].terms[:3])
assert seg[drawn].ne(0).all() and seg[~drawn].eq(0).all()
assert mcrf[drawn].eq(0).all() and atn[drawn].eq(0).all() and mcrf[~drawn].any() and atn[~drawn].any()


# %% [markdown]
# ## Equation 7
#
# $$l = l_{seg}(P, Y_s) + \lambda_{mcrf}\, l_{mcrf}(P, I) + \lambda_{atn}\, l_{atn}(P, S)$$
#
# | symbol | variable | shape | what |
# |---|---|---|---|
# | $P$ | `probs` | [N,C,H,W] | softmax of the logits |
# | $Y_s$ | `target` | [N,H,W] | scribble, `ignore` where nobody drew |
# | $I$ | `image` | [N,K,H,W] | intensities in [0,1] |
# | $S$ | from `query`, `key`, `similarity` | window pairs | learned similarity ([chapter 34](34_asl.ipynb)) |
# | $\lambda$ | `lam` | one a term | 0.1 and 0.1 in the paper |

# %% [markdown]
# ## What a term is given
#
# Every term reads the same `LossContext`: what the network predicted for one batch, what is known of that batch, how far the run is, and other
# networks that may be asked. The attentive term also needs the attention inside of the network.

# %%
#| export
def attention_of(
    model: nn.Module,  # any network
) -> SpatialSelfAttention | None:  # None where nothing is attached
    "The attention module inside a network. Raises ValueError when there are several."
    found = [module for module in model.modules() if isinstance(module, SpatialSelfAttention)]
    if len(found) > 1:
        raise ValueError(f"network: found {len(found)} attention modules in {type(model).__name__}, expected no second")
    return found[0] if found else None


# %%
#| export
@dataclass
class LossContext:
    "What the loss terms may look at after one forward pass."

    logits: Tensor  # [N,C,H,W]
    batch: Batch  # image, target, single_class, ignore, pseudo
    switches: MethodSwitches  # of the run
    model: nn.Module | None = None  # the network that made the logits; some keep more of this forward pass
    teacher: Any = None  # an nn.Module, of a method that has one
    average: Any = None  # an nn.Module: the network's running average, with ema above 0
    step: int = 0  # iterations done so far
    iterations: int = 1  # of the whole run
    precision: torch.dtype | None = None  # autocast type of forward passes; None: plain float32
    options: Any = field(default_factory=Switches)  # the method's own switches
    notes: dict[str, BatchMean] = field(default_factory=dict)  # a term may add what is worth logging, detached

    def __post_init__(self) -> None:
        self.logits = self.logits.float()  # losses are summed in float32 also when the network runs in bfloat16
        self.probs = self.logits.softmax(1)
        self.unlabelled = (self.batch.target == self.batch.ignore)[:, None]  # [N,1,H,W]: Omega_U, margins included

    @property
    def guessed(self) -> Tensor:
        "[N,H,W] int64, the guessed labels. Raises ValueError for a method without any."
        if self.batch.pseudo is None:
            raise ValueError("batch: found no guessed labels, expected them: a Method needs pseudo=… for this term")
        return self.batch.pseudo

    @cached_property
    def attention(self) -> SpatialSelfAttention | None:
        "The attention inside the network: it holds query and key of this forward pass."
        return None if self.model is None else attention_of(self.model)

    def ask(
        self,
        network: nn.Module,  # the teacher, say
        image: Tensor,  # [N,K,H,W]
    ) -> Tensor:  # [N,C,H,W] float32 logits
        "Another forward pass without gradient, in the precision of the run."
        reduced = torch.autocast(image.device.type, self.precision, enabled=self.precision is not None)
        with torch.no_grad(), reduced:
            return network(image).float()


# %% [markdown]
# ## What a term returns
#
# The loss of a term is a mean: of values, one for each image or each pixel. But a term returns **`mean_of(values)` in place of `values.mean()`**. The
# reason: several processes may share a batch, each with some of its images. From the mean over some images nobody can compute the mean over
# all of them without knowing how many values went into it. `mean_of(values)` is a `BatchMean`, which keeps sum and count apart until the mean over
# the batch is asked for ([chapter 05](../basics/05_distributed.ipynb)). With a single process both give the same number.
#
# Where a term divides a sum by a count of its own, such as the number of annotated pixels, it returns `ratio(total, count)`. BatchMeans can be
# added, and multiplied or divided by numbers.

# %%
values = torch.tensor([1.0, 2.0, 6.0])
assert mean_of(values).mean() == values.mean() == 3
assert ratio(values.sum(), 2).mean() == 4.5 and (mean_of(values) + 2 * mean_of(values)).mean() == 9


# %%
#| export
@dataclass(frozen=True)
class Term:
    """One addend of eq. 7: a name, a function, a weight and when it counts.

    The function returns a `BatchMean`, that is `mean_of(values)` in place of `values.mean()` and `ratio(total, count)`
    in place of a quotient: from these the mean over a batch is right also where several processes share the batch.
    """

    name: str  # the name in the log and in `lam`
    loss: Callable[[LossContext], BatchMean]  # context → `mean_of(values)` or `ratio(total, count)`, float32
    weight: float = 1.0  # lambda
    start: int = 0  # first iteration in which it counts
    ramp: Callable[[float], float] | None = None  # share of the run that is done → factor on the weight


# %% [markdown]
# A term of two lines, by hand: the mean over the batch of the share of a slice that is predicted as an organ. For undecided logits of four classes it
# is ¾.

# %%
def organ_share(context):
    return mean_of(1 - context.probs[:, 0])


undecided = LossContext(torch.zeros(1, 4, 96, 96), batch, switches)
torch.testing.assert_close(organ_share(undecided).mean(), torch.tensor(0.75))


# %% [markdown]
# A ramp lets a weight grow during the run. Two are used by the [rivals](../rivals/40_pseudo_labels.ipynb).

# %%
#| export
def after(
    share: float,  # of the run
) -> Callable[[float], float]:  # share of the run that is done → 0 before, 1 from then on
    "A ramp with one step."
    return lambda progress: float(progress >= share)


# %%
#| export
def rise(
    share: float = 1.0,  # of the run, after which the weight is full
) -> Callable[[float], float]:  # share of the run that is done → e^{-5} … 1
    "The ramp exp(−5(1−t)²) of Laine and Aila 2017."
    return lambda progress: math.exp(-5 * (1 - min(progress / share, 1)) ** 2)


# %%
#| export
def linear(
    share: float,  # of the run, after which the weight is full; 0: from the first iteration
) -> Callable[[float], float]:  # share of the run that is done → 0 … 1
    "A ramp that rises evenly from 0."
    return lambda progress: min(progress / share, 1.0) if share else 1.0


# %% [markdown]
# ## The paper's terms
#
# The losses of chapters [31](31_pce.ipynb), [32](32_mcrf.ipynb) and [34](34_asl.ipynb), with the [switches](35_switches.ipynb) of the run. As plain
# functions they return tensors; their `of_batch` returns the BatchMean.

# %%
#| export
def scribble_term(
    context: LossContext,  # of one batch
) -> BatchMean:  # of a float32 number
    "Partial cross-entropy on the scribble (eq. 1)."
    return partial_cross_entropy.of_batch(context.logits, context.batch.target, ignore=context.batch.ignore,
                                          reduction=context.switches.pce_reduction)


# %%
#| export
def window_radius(
    radius: int,  # as the switch has it
    window: str,  # "inclusive" or "strict"
    share: float = 1.0,  # of `reach_of`
) -> int:  # of the same unit, at least 1 unless the window is strict
    "Largest offset inside the window: the radius itself, or one less when the window is strict."
    return max(1, round(radius * share)) - (window == "strict")


# %%
#| export
def reach_of(
    context: LossContext,  # of one batch
) -> float:  # by what radii and sigmas are multiplied
    "1, or with `reach=input` the side of the input over the paper's 256 px."
    return 1.0 if context.switches.reach == "px" else context.batch.image.shape[-1] / 256


# %%
#| export
def mcrf_term(
    context: LossContext,  # of one batch
) -> BatchMean:  # of a float32 number
    "Masked CRF (eqs. 4, 5)."
    switches, share = context.switches, reach_of(context)
    return masked_crf_loss.of_batch(
        context.probs, context.batch.image, radius=window_radius(switches.crf_radius, switches.crf_window, share),
        unlabelled=None if switches.crf_mask == "none" else context.unlabelled,
        sigma_xy=switches.crf_sigma_xy * share, sigma_i=switches.crf_sigma_i, mask_neighbours=switches.crf_mask == "pq",
        weight=switches.crf_kernel_weight, denominator=switches.crf_denominator,
        count_padding=switches.crf_count_padding)


# %% [markdown]
# The attentive term reads query and key of the attention, and leaves four notes for the log: mean and standard deviation of $S$, the weight and the
# bias that make it.

# %%
#| export
def attention_term(
    context: LossContext,  # of one batch, with a network that has attention; gets the notes
) -> BatchMean:  # of a float32 number
    "Attentive similarity loss (eq. 6). Raises ValueError where there is no attention, or where it has not run."
    attention: Any = _attention_that_ran(context)  # what it holds is there after a forward pass
    loss, notes = attentive_similarity_loss.of_batch(
        context.probs, attention.query, attention.key, attention.similarity.weight, attention.similarity.bias,
        grid=attention.grid, log_sum=attention.log_sum if context.switches.asl_logit_scale == "sqrt_dk" else None,
        **_similarity_options(context), return_stats=True)
    context.notes.update(notes)
    return loss


# %%
#| export
def _attention_that_ran(context: LossContext) -> SpatialSelfAttention:
    "The attention inside the network, with query and key of this forward pass. Raises ValueError without one."
    if context.attention is None:
        raise ValueError("network: found no spatial self-attention, expected it for the attentive similarity loss")
    if context.attention.query is None:
        raise ValueError("ssa_layer: found attention attached to a layer that never runs, expected a layer in use")
    return context.attention


# %%
#| export
def _similarity_options(context: LossContext) -> dict[str, Any]:
    "The options of the attentive similarity loss that do not depend on the attention."
    switches, share = context.switches, reach_of(context)
    return {"radius": window_radius(switches.asl_radius, switches.asl_window, share),
            "sigma_xy": switches.asl_sigma_xy * share,
            "logit_scale": switches.asl_logit_scale, "similarity_scale": switches.asl_similarity_scale,
            "denominator": switches.asl_denominator, "resize": switches.asl_resize,
            "unlabelled": context.unlabelled if switches.asl_mask == "omega_u" else None,
            "keep": ~context.batch.single_class if switches.asl_exclude_single_class else None,
            "detach_probs": not switches.asl_grad_p, "detach_similarity": not switches.asl_grad_s}


# %% [markdown]
# ## Dense labels
#
# The upper bound of all comparisons learns from dense labels, with half cross-entropy and half Dice. Rivals use the same loss for labels that
# were guessed. A Dice over the batch is no mean of values: it is one number that every process computes alike from sums over all of them, which is
# what `common` is for.

# %%
#| export
@batch_loss
def dice_loss(
    probs: Tensor,  # [N,C,H,W]
    target: Tensor,  # [N,H,W] int64, class id or `ignore`
    *,
    ignore: int,  # such pixels are left out
) -> BatchMean:  # called plainly, a tensor: [] in 0 … 1
    "One minus Dice with squared denominators over the whole batch, mean over classes, background included (WSL4MIS)."
    known = (target != ignore)[:, None]
    onehot = F.one_hot(target.where(known[:, 0], 0), probs.shape[1]).movedim(-1, 1) * known
    overlap = (probs * onehot).sum((0, 2, 3))
    mass = (probs.square() * known).sum((0, 2, 3)) + onehot.sum((0, 2, 3))
    return common(lambda group: (1 - (2 * group.sum(overlap) + 1e-5) / (group.sum(mass) + 1e-5)).mean())


# %%
#| export
@batch_loss
def dense_loss(
    logits: Tensor,  # [N,C,H,W]
    target: Tensor,  # [N,H,W] int64, class id or `ignore`
    *,
    ignore: int,  # such pixels are left out
) -> BatchMean:  # called plainly, a tensor: []
    "Half cross-entropy, half Dice: for dense labels, true or guessed (WSL4MIS)."
    entropy = partial_cross_entropy.of_batch(logits, target, ignore=ignore)
    return (entropy + dice_loss.of_batch(logits.softmax(1), target, ignore=ignore)) / 2


# %%
#| export
def dense_term(
    context: LossContext,  # of one batch of dense labels
) -> BatchMean:  # of a float32 number
    "The upper bound's loss, on dense labels."
    return dense_loss.of_batch(context.logits, context.batch.target, ignore=context.batch.ignore)


# %% [markdown]
# ## Two terms that the paper does not have
#
# They weigh nothing unless a preset or a setting says otherwise, and a term of weight 0 is not computed. The first is Dice on the strokes alone. It counts
# each class once, so a short stroke through a kidney is worth as much as a long one through the liver.

# %%
#| export
def stroke_dice_term(
    context: LossContext,  # of one batch
) -> BatchMean:  # of a float32 number
    "Dice on the annotated pixels."
    return dice_loss.of_batch(context.probs, context.batch.target, ignore=context.batch.ignore)


# %% [markdown]
# The second is self-training. A running average of the network's weights makes fewer mistakes than the network of the moment. Where the average is sure,
# its answer becomes a label for the pixels without a stroke.

# %%
#| export
def self_term(
    context: LossContext,  # of one batch, with the network's average
) -> BatchMean:  # of a float32 number
    "Cross-entropy and Dice with strokes and with what the averaged network is sure of. Raises ValueError without one."
    if context.average is None:
        raise ValueError("ema: found 0, expected a decay such as 0.99: self-training asks the averaged network")
    batch, best = context.batch, context.ask(context.average, context.batch.image).softmax(1).max(1)
    sure = best.indices.where(best.values > context.switches.self_threshold, batch.ignore)
    context.notes["sure"] = mean_of((sure != batch.ignore).float())
    labels = torch.where(batch.target == batch.ignore, sure, batch.target)
    return dense_loss.of_batch(context.logits, labels, ignore=batch.ignore)


# %% [markdown]
# ## The network
#
# The U-Net of [chapter 30](30_network.ipynb), alone or with [attention](33_ssa.ipynb) on the layer that the switches name.

# %%
#| export
def unet(
    in_channels: int,  # K of the images
    classes: int,  # C of the logits
    switches: MethodSwitches,  # of which net_options are the U-Net's keywords
) -> nn.Module:  # [N,K,H,W] → logits [N,C,H,W]
    "The plain U-Net."
    return UNet2d(in_channels, classes, **switches.net_options)


# %%
#| export
def unet_with_attention(
    in_channels: int,  # K of the images
    classes: int,  # C of the logits
    switches: MethodSwitches,  # those of the U-Net and of the attention
) -> nn.Module:  # [N,K,H,W] → logits [N,C,H,W]
    "The U-Net with spatial self-attention on the layer that `ssa_layer` names."
    return with_attention(unet(in_channels, classes, switches), switches)


# %%
#| export
def with_attention(
    model: nn.Module,  # any network that has the layer; changed in place
    switches: MethodSwitches,  # those that begin with ssa_
) -> nn.Module:  # the same network
    "Spatial self-attention on the layer that the switches name. Raises ValueError where there is no such layer."
    layer, where = switches.ssa_layer, "output"
    if not switches.ssa_to_skip:  # the skip reads a stage's output; the path down reads the next stage's input
        layer, where = _stage_after(layer), "input"
    try:
        attach(model, layer, where=where, heads=switches.ssa_heads, layers=switches.ssa_layers,
               block=switches.ssa_block, separate=switches.ssa_separate)
    except ValueError as error:  # of the layer, by the name of the setting
        raise ValueError(str(error).replace("layer_name:", "ssa_layer:")) from None
    return model


# %%
#| export
def _stage_after(layer: str) -> str:
    "The name of the encoder stage below another. Raises ValueError for a layer that is none."
    stem, _, number = layer.rpartition(".")
    if stem != "encoder" or not number.isdigit():
        raise ValueError(f"ssa_layer: found {layer!r}, expected encoder.0, encoder.1, … with ssa_to_skip=False")
    return f"{stem}.{int(number) + 1}"


# %% [markdown]
# ## A method is data
#
# Which network, which target, which terms: a row of the paper's tables says no more, and a `Method` holds no more. Some rivals also have a
# teacher, or guess labels for all pixels; both are made by a function of the entry. The training loop never asks for a method's name.

# %%
#| export
@dataclass(frozen=True)
class Method:
    "One row of the tables."

    name: str  # "ours"
    title: str  # as the paper prints it
    source: str  # where it comes from
    terms: tuple[Term, ...]  # whose weighted sum is the loss
    target: Literal["scribble", "label"] = "scribble"  # what the terms learn from
    network: Callable[[int, int, MethodSwitches], nn.Module] = unet  # of K, C and the switches
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a run, in place of the defaults: {"lr": 0.03}
    options: type[Switches] = Switches  # its own switches; `method_NAME` among the settings of a run
    teacher: Callable[[nn.Module, Any], nn.Module] | None = None  # from the network; has follow(network, step)
    pseudo: Callable[..., Any] | None = None  # (store, options, size) → guessed labels; `rivals.pseudo.PseudoLabels`


# %% [markdown]
# A method becomes known by its name when it is registered. A cell that is run again registers the same entry again, which is no error; another entry
# under the same name is.

# %%
#| export
METHODS: dict[str, Method] = {}


# %%
#| export
def register(
    method: Method,  # with a name that is free, or the same entry again
) -> Method:  # the same
    "Make a method known by its name. Raises ValueError when another one has the name."
    known = METHODS.setdefault(method.name, method)
    if _identity(known) != _identity(method):
        raise ValueError(f"method {method.name!r} is registered already: {known.source}")
    METHODS[method.name] = method
    return method


# %%
#| export
def _identity(method: Method) -> tuple:
    "What makes two entries the same method, though a cell that ran twice made new functions for it."
    return method.title, method.source, *((t.name, t.loss.__qualname__, t.weight) for t in method.terms)


# %%
#| export
def method_named(
    name: str,  # of a registered method, or the import path of one: "my_idea:size"
) -> Method:  # that one
    "A method by its name or import path. Raises ValueError with the nearest match, or where the path leads nowhere."
    if ":" not in name:
        return METHODS[one_of("method", name, METHODS)]
    found = import_named("method", name)
    if not isinstance(found, Method):
        raise ValueError(f"method: found {name!r}, a {type(found).__name__}, expected a Method")
    return found


# %% [markdown]
# Four methods need nothing from the chapters on rivals: `fully`, the upper bound, `pce`, the lower bound, and the paper's last two rows.

# %%
#| export
SEGMENTATION = Term("seg", scribble_term)
MASKED_CRF = Term("mcrf", mcrf_term, weight=0.1)
ATTENTIVE = Term("atn", attention_term, weight=0.1)
STROKE_DICE = Term("dice", stroke_dice_term, weight=0.0)
SELF = Term("self", self_term, weight=0.0, ramp=after(0.5))

# %%
#| export
register(Method("fully", "Fully", "upper bound: dense labels, WSL4MIS", (Term("dense", dense_term),), target="label",
                settings={"lr": 0.03}))
register(Method("pce", "pCE", "Lin et al. 2016, eq. 1", (SEGMENTATION,), settings={"lr": 0.03}))
register(Method("ours-without-asl", "Ours w/o ASL", "Tian et al. 2023, ablation", (SEGMENTATION, MASKED_CRF),
                network=unet_with_attention))
register(Method("ours", "Ours", "Tian et al. 2023, eq. 7", (SEGMENTATION, MASKED_CRF, ATTENTIVE, STROKE_DICE, SELF),
                network=unet_with_attention))

# %%
assert method_named("pce") is METHODS["pce"] and register(METHODS["ours"]) is METHODS["ours"]
try:
    method_named("our")
    raise RuntimeError("a method that is not there was found")
except ValueError as error:
    print(error)


# %% [markdown]
# ## The sum
#
# Written naively, eq. 7 is one line. The exported form adds three things: each term keeps its name for the log, a term
# waits for its first iteration, and a weight of zero costs nothing because the term is not computed.

# %%
def naive_objective(context):
    return scribble_term(context) + 0.1 * mcrf_term(context) + 0.1 * attention_term(context)


# %%
#| export
class Objective:
    "Eq. 7: the weighted sum of a method's terms."

    def __init__(
        self,
        method: Method,  # whose terms are added up
        lam: Mapping[str, float] | None = None,  # term name → weight in place of the method's
        start: Mapping[str, int] | None = None,  # term name → first iteration in place of the method's
        options: Mapping[str, Any] | None = None,  # the method's own switches that differ from their defaults
        ramp: Mapping[str, float] | None = None,  # term name → share of the run over which its weight rises evenly
    ) -> None:
        "Raises ValueError for a term in `lam`, `start` or `ramp`, or a switch in `options`, that the method lacks."
        given = {"weight": _of_terms(method, "lam", lam), "start": _of_terms(method, "start", start),
                 "ramp": {name: linear(share) for name, share in _of_terms(method, "ramp", ramp).items()}}
        self.options = method.options(**(options or {}))
        self.terms = tuple(replace(t, **{what: own[t.name] for what, own in given.items() if t.name in own})
                           for t in method.terms)

    def __call__(
        self,
        context: LossContext,  # of one batch; gets the method's own switches
    ) -> tuple[Tensor, dict[str, Tensor]]:  # the loss with its graph; every term unweighted, and notes, detached
        "The loss of one batch and what to log of it. No value leaves the device."
        context.options = self.options
        total, logged = context.logits.new_zeros(()), {}
        for term in self.terms:
            if weight := _weight_of(term, context):
                value = _value_of(term, context).share()
                total, logged[term.name] = total + weight * value, value.detach()
        notes = {name: note.share() for name, note in context.notes.items()}
        return total, {"loss": total.detach(), **logged, **notes}


# %%
#| export
def _of_terms(method: Method, name: str, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    "What is given for some terms. Raises ValueError for a term that the method does not have."
    terms = [term.name for term in method.terms]
    for term in given or {}:
        if term not in terms:
            raise ValueError(f"{name}_{term}: method {method.name!r} has the terms {', '.join(terms)}"
                             + did_you_mean(term, terms))
    return given or {}


# %%
#| export
def _weight_of(term: Term, context: LossContext) -> float:
    "The weight of a term in this iteration; 0 before its first."
    if context.step < term.start:
        return 0.0
    return term.weight * (term.ramp(context.step / context.iterations) if term.ramp else 1.0)


# %% [markdown]
# A term that returns a plain tensor is refused by name, also in a single process, where its number would be right: with two processes it would be
# counted twice, and no error would say so.

# %%
#| export
def _value_of(term: Term, context: LossContext) -> BatchMean:
    "What a term returns. Raises TypeError, naming the term, unless it is a BatchMean."
    value = term.loss(context)
    if not isinstance(value, BatchMean):
        raise TypeError(f"term {term.name!r}: found a {type(value).__name__}, expected a BatchMean: "
                        "mean_of(values) in place of values.mean(), so that several processes can share a batch")
    return value


# %%
context = LossContext(model(batch.image), batch, switches, model)
total, logged = Objective(METHODS["ours"])(context)
torch.testing.assert_close(total, naive_objective(context).mean())
{name: round(value.item(), 4) for name, value in logged.items()}

# %% [markdown]
# By hand, with the numbers above: $l = seg + 0.1\,mcrf + 0.1\,atn$. A term that has not started, or whose weight is
# zero, is absent from the log and from the graph.

# %%
torch.testing.assert_close(logged["loss"], logged["seg"] + 0.1 * logged["mcrf"] + 0.1 * logged["atn"])
late = Objective(METHODS["ours"], lam={"mcrf": 0.0}, start={"atn": 1})
assert set(late(context)[1]) - set(context.notes) == {"loss", "seg"}
assert {"atn", "similarity_mean", "similarity_std"} <= set(late(replace(context, step=1))[1])

# %%
for method, lam, message in ((METHODS["pce"], {"mcrf": 0.3}, "lam_mcrf: method 'pce' has the terms seg"),
                             (replace(METHODS["pce"], terms=(Term("size", lambda c: c.probs.mean()),)), {}, "'size'")):
    try:
        Objective(method, lam=lam)(context)
        raise RuntimeError("a wrong weight or term was taken")
    except (ValueError, TypeError) as error:
        assert message in str(error)

# %% [markdown]
# ## Slide the confidence
#
# The picture of the first section again. How do the three pulls change when the prediction becomes more certain?

# %%
interact(plot_pulls, confidence=(1.0, 15.0, 1.0));

# %%
for confidence in (1.0, 15.0):
    plot_pulls(confidence)


# %% [markdown]
# Where a prediction is certain and all neighbours agree, the masked CRF and the attentive term no longer pull; a thin line along the
# boundary remains. That is why they can start in the first iteration: they do not outweigh the strokes.

# %% [markdown]
# ## Exercises
#
# **1. Predict.** The pull of `seg` on a pixel with a stroke depends on how much was drawn. Take one image with 100 and one with 1,000 annotated pixels:
# what is the ratio of the largest pulls that are possible on one logit?

# %%
def check_ratio(answer):
    assert abs(answer() - 10) < 1e-6

def attempt_ratio():
    ...

exercise(check_ratio, attempt_ratio, solution=lambda: (1 / 100) / (1 / 1000))


# %% [markdown]
# **2. Implement.** Write a term that asks for confident predictions: the mean entropy of `probs` over Ω_U.

# %%
def check_entropy(term):
    flat = LossContext(torch.zeros(1, 4, 8, 8), Batch(batch.image[..., :8, :8], torch.full((1, 8, 8), 4),
                    torch.tensor([True]), torch.tensor([0]), 4), MethodSwitches())
    torch.testing.assert_close(term(flat).mean(), torch.tensor(4.0).log())

def attempt_entropy(context):
    ...

def solve_entropy(context):
    entropy = -(context.probs * context.logits.log_softmax(1)).sum(1, keepdim=True)
    return ratio((entropy * context.unlabelled).sum(), context.unlabelled.sum())

exercise(check_entropy, attempt_entropy, solve_entropy)


# %% [markdown]
# **3. Break.** Register a method with the terms pCE and, at weight 0.1, your entropy under the name "pce+entropy". Then register another one under the
# same name, and return the message.

# %%
def check_message(answer):
    METHODS.pop("pce+entropy", None)  # so that the cell can run again
    assert "registered already" in answer()

def attempt_message():
    ...

def solve_message():
    register(Method("pce+entropy", "pCE + entropy", "here", (SEGMENTATION, Term("entropy", solve_entropy, 0.1))))
    try:
        register(Method("pce+entropy", "again", "here", (SEGMENTATION,)))
    except ValueError as error:
        return str(error)

exercise(check_message, attempt_message, solve_message)

# %% [markdown]
# ## Recap
#
# Exported: `LossContext` and `Term`, the paper's terms, `Method` with its registry, and `Objective`, their weighted sum. Used next by
# [the configuration](../runs/50_config.ipynb) and [the training loop](../runs/53_training.ipynb).
# Surprising: the mean that a term returns is not a number yet, because a batch may lie in several processes.
