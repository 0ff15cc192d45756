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
# > Equation 7: the terms of the loss, their weights, and a method as a piece of data.
#
# **Question.** Three losses pull at one network. Where does each of them pull, and how hard?

# %%
#| default_exp method.objective

# %%
#| export
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from attenscribble.book import one_of
from attenscribble.data.batches import Batch
from attenscribble.machine import processes, whole
from attenscribble.method.asl import attentive_similarity_loss
from attenscribble.method.mcrf import masked_crf_loss
from attenscribble.method.network import UNet2d
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.method.ssa import SpatialSelfAttention, attach

# %%
from ipywidgets import interact

from attenscribble.book import draw, exercise, panels
from attenscribble.data.batches import SliceStore
from attenscribble.data.phantom import phantom

# %% [markdown]
# ## The answer first
#
# Take a prediction that is roughly right, the true label blurred and moved, and ask each term what it wants changed.
# The arrow of a loss is minus its gradient: red pixels are asked to become more like the myocardium, blue ones less.

# %%
dataset = phantom(patients=1, seed=3)
case = dataset.read(dataset.patients[0])[0]
store = SliceStore([case], classes=dataset.classes, ignore=dataset.ignore)
middle = len(store) // 2
batch = store.batch(torch.tensor([middle]), 96)
label = SliceStore([case], classes=4, ignore=4, target="label").batch(torch.tensor([middle]), 96).target


def rough_logits(label, shift=4, blur=9, confidence=6.0):
    "Logits of a prediction that is the label, displaced and blurred."
    onehot = F.one_hot(label, 4).movedim(-1, 1).float().roll((shift, -shift), (2, 3))
    kernel = torch.ones(4, 1, blur, blur) / blur**2
    return confidence * F.conv2d(F.pad(onehot, [blur // 2] * 4, mode="replicate"), kernel, groups=4)


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
# | $S$ | from `query`, `key`, `similarity` | window pairs | learned similarity ([chapter 24](24_asl.ipynb)) |
# | $\lambda$ | `lam` | one a term | 0.1 and 0.1 in the paper |

# %% [markdown]
# ## Switches: what the paper says and what its code does
#
# The paper leaves some things open and its released code does some things differently. Each difference is a named
# switch. The defaults are the paper's text; `RELEASED` lists what the code does instead, and nothing else.

# %%
#| export
class Switches(BaseModel):
    "A group of switches: unknown names and values out of range are refused."

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    released: ClassVar[dict[str, Any]] = {}  # of a method's own switches: what its published code does otherwise


class PceSwitches(Switches):
    "Switches of the partial cross-entropy (eq. 1)."

    reduction: Literal["batch", "image"] = Field("batch", description="mean over the annotated pixels of what")


class CrfSwitches(Switches):
    "Switches of the masked CRF (eqs. 4, 5)."

    radius: int = Field(5, ge=1, description="window radius in px; the paper leaves it open, 5 is released")
    window: Literal["inclusive", "strict"] = Field("inclusive", description="offsets up to radius, or below it")
    sigma_xy: float = Field(6.0, gt=0, description="spatial kernel width in px (released)")
    sigma_i: float = Field(0.1, gt=0, description="intensity kernel width (released)")
    kernel_weight: float = Field(1.0, ge=0, description="w of eq. 5 (released)")
    mask: Literal["pq", "p", "none"] = Field("pq", description="who is in the unlabelled set: both, only p, no mask")
    denominator: Literal["image", "batch"] = Field("image", description="1/|Omega_U| of each image, or of the batch")
    count_padding: bool = Field(False, description="add the released code's out-of-image pairs (value only)")


class SsaSwitches(Switches):
    "Switches of the spatial self-attention."

    layer: str = Field("encoder.2", description="the layer it is attached to: the third of the encoder")
    heads: int = Field(1, ge=1, description="attention heads n")
    layers: int = Field(1, ge=1, description="attention layers L")
    block: Literal["paper", "prenorm_mixffn", "residual"] = Field("paper", description="the text's block or the code's")
    to_skip: bool = Field(True, description="attended features also go to the decoder skip")
    separate: bool = Field(False, description="side branch: features pass unchanged, only the loss sees attention")


class AslSwitches(Switches):
    "Switches of the attentive similarity loss (eq. 6)."

    radius: int = Field(5, ge=1, description="window radius in cells of the feature grid (released)")
    window: Literal["inclusive", "strict"] = Field("inclusive", description="offsets up to radius, or below it")
    sigma: float = Field(6.0, gt=0, description="distance decay in cells of the feature grid (released)")
    logit_scale: Literal["sqrt_dk", "none"] = Field("sqrt_dk", description="divide QK by sqrt(d_k) before S")
    similarity_scale: float | Literal["hw"] = Field(1.0, description="factor on the symmetrised attention")
    mask: Literal["omega_u", "none"] = Field("omega_u", description="only unlabelled cells, or all")
    denominator: Literal["omega_u", "grid"] = Field("omega_u", description="1/|Omega_U|, or 1/hw over all images")
    exclude_single_class: bool = Field(False, description="drop slices whose scribble holds at most one class")
    resize: Literal["bilinear", "area", "nearest"] = Field("bilinear", description="how P comes down to the grid")
    grad_p: bool = Field(True, description="the loss moves the prediction")
    grad_s: bool = Field(True, description="the loss moves the attention")


class NetSwitches(Switches):
    "Switches of the network."

    name: str = Field("", description="a network from elsewhere, as package.module:Name; empty: the U-Net")
    options: dict[str, Any] = Field({}, description="its keywords as JSON; without a name, the U-Net's")

    @field_validator("options", mode="before")
    @classmethod
    def from_text(cls, options: Any) -> Any:
        return json.loads(options) if isinstance(options, str) else options


class MethodSwitches(Switches):
    "All switches that touch the method."

    net: NetSwitches = NetSwitches()
    pce: PceSwitches = PceSwitches()
    crf: CrfSwitches = CrfSwitches()
    ssa: SsaSwitches = SsaSwitches()
    asl: AslSwitches = AslSwitches()


# What the released code does otherwise, in flat names (`crf_mask` is the field `mask` of `crf`).
RELEASED = {
    "crf_mask": "p",
    "crf_denominator": "batch",
    "crf_count_padding": True,
    "ssa_block": "prenorm_mixffn",
    "asl_logit_scale": "none",
    "asl_mask": "none",
    "asl_denominator": "grid",
    "asl_exclude_single_class": True,
    "start_atn": 1,
    "lr_off_by_one": True,
    "eval_resize": "nearest",
}

# %%
assert MethodSwitches().asl.logit_scale == "sqrt_dk"
try:
    AslSwitches(radios=3)
    raise RuntimeError("an unknown switch was taken")
except ValueError as error:
    assert "radios" in str(error)


# %% [markdown]
# ## Terms
#
# A term is a name, a function, a weight, and if need be a ramp that lets the weight grow during the run. Every function
# reads the same `Evidence`: what the network said about one batch, what is known about it, who else may be asked. A term
# may leave a note for the log, such as the mean and spread of $S$.

# %%
#| export
@dataclass
class Evidence:
    "What the loss terms may look at after one forward pass."

    logits: Tensor  # [N,C,H,W]
    batch: Batch  # image, target, single_class, ignore, pseudo
    switches: MethodSwitches
    model: nn.Module | None = None  # the network that made the logits; some keep more of this forward pass
    teacher: nn.Module | None = None  # of a method that has one
    step: int = 0  # iterations done so far
    iterations: int = 1  # of the whole run
    precision: torch.dtype | None = None  # autocast type of forward passes; None: plain float32
    own: Switches = field(default_factory=Switches)  # the method's own switches
    notes: dict[str, Tensor] = field(default_factory=dict)  # scalars to log, detached, shares too

    def __post_init__(self) -> None:
        self.logits = self.logits.float()  # losses are summed in float32 also when the network runs in bfloat16
        self.probs = self.logits.softmax(1)
        self.unlabelled = (self.batch.target == self.batch.ignore)[:, None]  # [N,1,H,W]: Omega_U, margins included

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


@dataclass(frozen=True)
class Term:
    "One addend of eq. 7."

    name: str  # the name in the log and in `lam`
    loss: Callable[[Evidence], Tensor]  # [] float32; of several processes, this one's share (see `machine.share_of`)
    weight: float = 1.0  # lambda
    start: int = 0  # first iteration in which it counts
    ramp: Callable[[float], float] | None = None  # share of the run that is done → factor on the weight


def after(
    share: float,  # of the run
) -> Callable[[float], float]:  # share of the run that is done → 0 before, 1 from then on
    "A ramp with one step."
    return lambda progress: float(progress >= share)


def rise(
    share: float = 1.0,  # of the run, after which the weight is full
) -> Callable[[float], float]:  # share of the run that is done → e^{-5} … 1
    "The ramp exp(−5(1−t)²) of Laine and Aila 2017."
    return lambda progress: math.exp(-5 * (1 - min(progress / share, 1)) ** 2)


def scribble_term(evidence: Evidence) -> Tensor:
    "Partial cross-entropy on the scribble (eq. 1)."
    return partial_cross_entropy(evidence.logits, evidence.batch.target, ignore=evidence.batch.ignore,
                                 reduction=evidence.switches.pce.reduction)


def dice_loss(
    probs: Tensor,  # [N,C,H,W]
    target: Tensor,  # [N,H,W] int64, class id or `ignore`
    *,
    ignore: int,  # such pixels are left out
) -> Tensor:  # [] in 0 … 1
    "One minus Dice with squared denominators over the whole batch, mean over classes, background included (WSL4MIS)."
    known = (target != ignore)[:, None]
    onehot = F.one_hot(target.where(known[:, 0], 0), probs.shape[1]).movedim(-1, 1) * known
    overlap = whole((probs * onehot).sum((0, 2, 3)))
    mass = whole((probs.square() * known).sum((0, 2, 3)) + onehot.sum((0, 2, 3)))
    return (1 - (2 * overlap + 1e-5) / (mass + 1e-5)).mean() / processes()


def dense_loss(
    logits: Tensor,  # [N,C,H,W]
    target: Tensor,  # [N,H,W] int64, class id or `ignore`
    *,
    ignore: int,
) -> Tensor:  # []
    "Half cross-entropy, half Dice: for dense labels, true or guessed (WSL4MIS)."
    entropy = partial_cross_entropy(logits, target, ignore=ignore)
    return (entropy + dice_loss(logits.softmax(1), target, ignore=ignore)) / 2


def dense_term(evidence: Evidence) -> Tensor:
    "The upper bound's loss, on dense labels."
    return dense_loss(evidence.logits, evidence.batch.target, ignore=evidence.batch.ignore)


def reach(switches: CrfSwitches | AslSwitches) -> int:
    "Largest offset inside the window, in px: the radius itself, or one less when the window is strict."
    return switches.radius - (switches.window == "strict")


def mcrf_term(evidence: Evidence) -> Tensor:
    "Masked CRF (eqs. 4, 5)."
    crf = evidence.switches.crf
    return masked_crf_loss(evidence.probs, evidence.batch.image, radius=reach(crf),
                           unlabelled=None if crf.mask == "none" else evidence.unlabelled,
                           sigma_xy=crf.sigma_xy, sigma_i=crf.sigma_i, mask_neighbours=crf.mask == "pq",
                           weight=crf.kernel_weight, denominator=crf.denominator, count_padding=crf.count_padding)


def attention_term(evidence: Evidence) -> Tensor:
    "Attentive similarity loss (eq. 6); notes the mean and spread of S and the 1x1 convolution behind it."
    asl, attention = evidence.switches.asl, evidence.attention
    if attention is None or attention.query is None:
        raise ValueError("the attentive similarity loss needs a network with spatial self-attention: none is attached"
                         if attention is None else "spatial self-attention is attached to a layer that never runs")
    loss, notes = attentive_similarity_loss(
        evidence.probs, attention.query, attention.key, attention.similarity.weight, attention.similarity.bias,
        grid=attention.grid, radius=reach(asl), sigma=asl.sigma,
        unlabelled=evidence.unlabelled if asl.mask == "omega_u" else None,
        log_sum=attention.log_sum if asl.logit_scale == "sqrt_dk" else None,
        logit_scale=asl.logit_scale, similarity_scale=asl.similarity_scale, denominator=asl.denominator,
        resize=asl.resize, detach_probs=not asl.grad_p, detach_similarity=not asl.grad_s,
        keep=~evidence.batch.single_class if asl.exclude_single_class else None, return_stats=True)
    evidence.notes.update(notes)
    return loss


# %% [markdown]
# ## A method is data
#
# Which network, which target, which terms: that is all a row of the paper's tables says, so that is all a `Method`
# holds. Some rivals also have a teacher, or guess labels for all pixels; both are made by a function of the entry. The
# training loop never asks for a method's name.

# %%
#| export
def unet(in_channels: int, classes: int, switches: MethodSwitches) -> nn.Module:
    "The plain backbone."
    return UNet2d(in_channels, classes, **switches.net.options)


def unet_with_attention(in_channels: int, classes: int, switches: MethodSwitches) -> nn.Module:
    "The backbone with spatial self-attention on the layer that `switches.ssa` names."
    return with_attention(unet(in_channels, classes, switches), switches.ssa)


def with_attention(model: nn.Module, ssa: SsaSwitches) -> nn.Module:
    "A network, changed in place: spatial self-attention on the layer that the switches name."
    layer, where = ssa.layer, "output"
    if not ssa.to_skip:  # the skip reads a stage's output; the path down reads the next stage's input
        stem, _, number = ssa.layer.rpartition(".")
        if stem != "encoder" or not number.isdigit():
            raise ValueError(f"ssa.to_skip=False needs ssa.layer to be encoder.0, encoder.1, …; found {ssa.layer!r}")
        layer, where = f"{stem}.{int(number) + 1}", "input"
    attach(model, layer, where=where, heads=ssa.heads, layers=ssa.layers, block=ssa.block, separate=ssa.separate)
    return model


def attention_of(
    model: nn.Module,
) -> SpatialSelfAttention | None:  # None where nothing is attached
    "The attention module inside a network. Raises ValueError when there are several."
    found = [module for module in model.modules() if isinstance(module, SpatialSelfAttention)]
    if len(found) > 1:
        raise ValueError(f"the loss reads one attention module, found {len(found)} in {type(model).__name__}")
    return found[0] if found else None


@dataclass(frozen=True)
class Method:
    "One row of the tables."

    name: str  # "ours"
    title: str  # as the paper prints it
    source: str  # where it comes from
    terms: tuple[Term, ...]
    target: Literal["scribble", "label"] = "scribble"  # what the terms learn from
    network: Callable[[int, int, MethodSwitches], nn.Module] = unet
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a run, in place of the defaults: {"lr": 0.03}
    switches: type[Switches] = Switches  # its own; `own_NAME` among the settings of a run
    teacher: Callable[[nn.Module, Switches], nn.Module] | None = None  # from the network; has follow(network, step)
    pseudo: Callable[..., Any] | None = None  # (store, own, size) → guessed labels; `rivals.pseudo.PseudoLabels`


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    "Make a method known by its name; the same entry again replaces it. Raises ValueError when another has the name."
    def entry(m: Method) -> tuple:
        return m.title, m.source, *((t.name, t.loss.__qualname__, t.weight) for t in m.terms)

    known = METHODS.setdefault(method.name, method)
    if entry(known) != entry(method):
        raise ValueError(f"method {method.name!r} is registered already: {known.source}")
    METHODS[method.name] = method
    return method


def method_named(name: str) -> Method:
    "The registered method of that name. Raises ValueError with the nearest match."
    return METHODS[one_of("method", name, METHODS)]


# %% [markdown]
# ### The four that need no rival's chapter
#
# `fully` is the upper bound, `pce` the lower one; the two others are the paper's last rows.

# %%
#| export
SEGMENTATION = Term("seg", scribble_term)
MASKED_CRF = Term("mcrf", mcrf_term, weight=0.1)
ATTENTIVE = Term("atn", attention_term, weight=0.1)

register(Method("fully", "Fully", "upper bound: dense labels, WSL4MIS", (Term("dense", dense_term),), target="label",
                settings={"lr": 0.03}))
register(Method("pce", "pCE", "Lin et al. 2016, eq. 1", (SEGMENTATION,), settings={"lr": 0.03}))
register(Method("ours-without-asl", "Ours w/o ASL", "Tian et al. 2023, ablation", (SEGMENTATION, MASKED_CRF),
                network=unet_with_attention))
register(Method("ours", "Ours", "Tian et al. 2023, eq. 7", (SEGMENTATION, MASKED_CRF, ATTENTIVE),
                network=unet_with_attention))


# %% [markdown]
# ## The sum
#
# Written naively, eq. 7 is one line. The exported form adds three things: each term keeps its name for the log, a term
# waits for its first iteration, and a weight of zero costs nothing because the term is not computed.

# %%
def naive_objective(evidence):
    return scribble_term(evidence) + 0.1 * mcrf_term(evidence) + 0.1 * attention_term(evidence)


# %%
#| export
class Objective:
    "Eq. 7: the weighted sum of a method's terms."

    def __init__(
        self,
        method: Method,
        lam: Mapping[str, float] | None = None,  # term name → weight in place of the method's
        start: Mapping[str, int] | None = None,  # term name → first iteration in place of the method's
        own: Mapping[str, Any] | None = None,  # the method's own switches that differ from their defaults
    ):
        "Raises ValueError when `lam` or `start` names a term, or `own` a switch, that the method does not have."
        names = [term.name for term in method.terms]
        for field_name, given in (("lam", lam or {}), ("start", start or {})):
            for name in given:
                if name not in names:
                    raise ValueError(f"{field_name}_{name}: method {method.name!r} has the terms {', '.join(names)}")
        self.own = method.switches(**(own or {}))
        lam, start = lam or {}, start or {}
        self.terms = tuple(replace(t, weight=lam.get(t.name, t.weight), start=start.get(t.name, t.start))
                           for t in method.terms)

    def __call__(
        self,
        evidence: Evidence,  # of one batch; gets the method's own switches
    ) -> tuple[Tensor, dict[str, Tensor]]:  # the loss with its graph; every term unweighted, and notes, detached
        "The loss of one batch and what to log of it. No value leaves the device."
        evidence.own = self.own
        total, logged = evidence.logits.new_zeros(()), {}
        for term in self.terms:
            factor = term.ramp(evidence.step / evidence.iterations) if term.ramp else 1.0
            if evidence.step >= term.start and term.weight * factor != 0:
                value = term.loss(evidence)
                total = total + term.weight * factor * value
                logged[term.name] = value.detach()
        return total, {"loss": total.detach(), **logged, **evidence.notes}


# %%
torch.manual_seed(0)
switches = MethodSwitches(asl=AslSwitches(radius=2, sigma=2.25))
model = unet_with_attention(1, 4, switches)
evidence = Evidence(model(batch.image), batch, switches, model)
total, logged = Objective(METHODS["ours"])(evidence)
torch.testing.assert_close(total, naive_objective(evidence))
{name: round(value.item(), 4) for name, value in logged.items()}

# %% [markdown]
# By hand: with the numbers above, $l = seg + 0.1\,mcrf + 0.1\,atn$. A term that has not started, or whose weight is
# zero, is absent from the log and from the graph.

# %%
torch.testing.assert_close(logged["loss"], logged["seg"] + 0.1 * logged["mcrf"] + 0.1 * logged["atn"])
late = Objective(METHODS["ours"], lam={"mcrf": 0.0}, start={"atn": 1})
assert set(late(evidence)[1]) - set(evidence.notes) == {"loss", "seg"}
assert {"atn", "similarity_mean", "similarity_std"} <= set(late(replace(evidence, step=1))[1])
try:
    Objective(METHODS["pce"], lam={"mcrf": 0.3})
    raise RuntimeError("a weight for a term that is not there was taken")
except ValueError as error:
    assert "lam_mcrf" in str(error)


# %% [markdown]
# ## Where each term pulls
#
# The question of the first lines. The partial loss speaks only on the strokes. The masked CRF speaks where the
# prediction changes although the image does not. The attentive loss speaks in the coarse cells of the feature grid:
# with an untrained attention it is a blur that dislikes any boundary.

# %%
def pull(term, logits, batch, model, class_id=2):
    "Minus the gradient of one term in the logits of one class: [H,W]."
    leaf = logits.detach().requires_grad_()
    value = term.weight * term.loss(Evidence(leaf, batch, switches, model))
    return -torch.autograd.grad(value, leaf, retain_graph=True)[0][0, class_id]


def plot_pulls(confidence=6.0):
    "Image, prediction, and what each of the three terms asks of the myocardium's logit."
    rough = rough_logits(label, confidence=confidence)
    _, axes = panels(5)
    draw(axes[0], batch.image[0, 0], scribble=batch.target[0], ignore=4, title="image and scribble")
    draw(axes[1], batch.image[0, 0], label=rough.argmax(1)[0], outline=label[0], title="prediction, true outline")
    for axis, term in zip(axes[2:], METHODS["ours"].terms, strict=True):
        arrow = pull(term, rough, batch, model)
        bound = float(arrow.abs().quantile(0.999)) or 1.0
        axis.imshow(arrow, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
        axis.set_title(f"{term.weight:g} · {term.name}, scale ±{bound:.1e}", fontsize=9)


plot_pulls()

# %%
interact(plot_pulls, confidence=(1.0, 15.0, 1.0));


# %% [markdown]
# A confident prediction silences the two regularisers inside the regions, where all neighbours agree, and leaves them
# a thin line along the boundary. That is why they can start in the first iteration without drowning the strokes.

# %% [markdown]
# ## Exercises
#
# **1. Predict.** The pull of `seg` is zero outside the strokes. By how much can it differ on a stroke pixel between
# two images with 100 and 1,000 annotated pixels? Return the ratio of the bounds on the gradient of one logit.

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
    flat = Evidence(torch.zeros(1, 4, 8, 8), Batch(batch.image[..., :8, :8], torch.full((1, 8, 8), 4),
                    torch.tensor([True]), torch.tensor([0]), 4), MethodSwitches())
    torch.testing.assert_close(term(flat), torch.tensor(4.0).log())

def attempt_entropy(evidence):
    ...

def solve_entropy(evidence):
    entropy = -(evidence.probs * evidence.logits.log_softmax(1)).sum(1, keepdim=True)
    return (entropy * evidence.unlabelled).sum() / evidence.unlabelled.sum().clamp(min=1)

exercise(check_entropy, attempt_entropy, solve_entropy)


# %% [markdown]
# **3. Break.** Make a method of your own: pCE plus your entropy term with weight 0.1, under a new name. What happens
# when you register it twice? Return the message.

# %%
def check_message(answer):
    assert "registered already" in answer()

def attempt_message():
    ...

def solve_message():
    METHODS.pop("pce+entropy", None)  # so that the cell can run again
    terms = (SEGMENTATION, Term("entropy", solve_entropy, 0.1))
    register(Method("pce+entropy", "pCE + entropy", "this chapter", terms))
    try:
        register(Method("pce+entropy", "again", "this chapter", (SEGMENTATION,)))
    except ValueError as error:
        return str(error)

exercise(check_message, attempt_message, solve_message)

# %% [markdown]
# ## Recap
#
# Exported: the switches, `Term`, `Method` with its registry, `Objective`. Used next by
# [the configuration](../experiment/40_config.ipynb) and [the training loop](../experiment/41_training.ipynb).
# Surprise: at initialisation the attentive term is a plain blur, see [chapter 24](24_asl.ipynb).
