# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two branches
#
# > One encoder, two decoders. A mixture of their predictions is a label for every pixel.
#
# Two decoders that learn from the same strokes agree there and may differ elsewhere. Where they differ at least one of
# them is wrong, so a mixture of both predictions may be a better label than either. This chapter gives the U-Net a
# second decoder and builds two methods that learn from the mixture, one with hard labels and one with soft ones.

# %%
#| default_exp rivals.branches

# %%
#| export
import copy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from attenscribble.basics.distributed import BatchMean, ratio
from attenscribble.method.network import UNet2d, climb, drop
from attenscribble.method.objective import LossContext, Method, Term, dice_loss, register
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.method.switches import MethodSwitches, Switches

# %%
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import interact

from attenscribble.basics.checking import assert_same, exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.batches import SliceStore
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom

# %% [markdown]
# ## What do two decoders know that one does not?
#
# Two decoders on one encoder learn the strokes of four phantom slices. One of them sees only half of the features at a
# time. They agree on the strokes; where do they differ elsewhere? (The network comes from the finished module; the
# chapter builds it below.)

# %%
data = phantom(patients=5)
NAMES, IGNORE, SIDE = data.class_names, data.ignore, 64


def planes_of(cases):
    "Image, scribble and label of slice 3 of each case, as the store takes them."
    return [SimpleNamespace(name=case.name, image=case.image[3:4], scribble=case.scribble[3:4], label=case.label[3:4])
            for case in cases]


planes = planes_of(data.read(patient)[0] for patient in data.patients[:4])
batch = SliceStore(planes, classes=4, ignore=IGNORE).batch(torch.arange(4), SIDE)
label = SliceStore(planes, classes=4, ignore=IGNORE, target="label").batch(torch.arange(4), SIDE).target

# %%
from attenscribble.rivals.branches import DualBranchUNet as TwoDecoders


def learn(steps=80):
    "Two decoders after some steps of the partial cross-entropy."
    torch.manual_seed(0)
    model = TwoDecoders(1, 4, channels=(8, 16, 32), dropout=(0, 0, 0))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        both = model(batch.image), model.auxiliary
        optimiser.zero_grad()
        sum(partial_cross_entropy(logits, batch.target, ignore=IGNORE) for logits in both).backward()
        optimiser.step()
    return model


# %%
def predict_both(model, image):
    "Probabilities of both branches, [N,C,H,W] each."
    with torch.no_grad():
        return model.train()(image).softmax(1), model.auxiliary.softmax(1)


# %%
model = learn()
ours, theirs = predict_both(model, batch.image)
differ = (ours.argmax(1) != theirs.argmax(1)).numpy()
figure, axes = panels(4)
draw(axes[0], batch.image[0, 0], scribble=batch.target[0].numpy(), ignore=IGNORE, title="strokes")
for axis, probs, name in ((axes[1], ours, "first"), (axes[2], theirs, "second")):
    draw(axis, batch.image[0, 0], label=probs.argmax(1)[0].numpy(), outline=label[0].numpy(), title=f"{name} branch")
axes[3].imshow(differ[0], cmap="gray_r", interpolation="nearest")
axes[3].set_title(f"they differ on {differ[0].mean():.0%} (black)", fontsize=9)
class_legend(figure, NAMES)

# %%
drawn = (batch.target != IGNORE).numpy()
wrong = (ours.argmax(1) != label).numpy()
print(f"differ on {differ[drawn].mean():.1%} of the strokes, {differ[~drawn].mean():.1%} elsewhere")
print(f"where they differ the first is wrong on {wrong[differ].mean():.0%}, else on {wrong[~differ].mean():.0%}")
assert differ[drawn].mean() < differ[~drawn].mean() and wrong[differ].mean() > wrong[~differ].mean()


# %% [markdown]
# Where they differ the first is wrong more often than elsewhere. So a label on which both agree is the more reliable
# one, and a mixture of the two predictions is undecided where they differ.

# %% [markdown]
# ## The network
#
# Luo et al. (2022). The U-Net's encoder serves two decoders of the same form. For the second one, half of the channels
# of each stage are dropped at random. Only the first is used after training.

# %%
#| export
class DualBranchUNet(UNet2d):
    """`UNet2d` with a second decoder for training (Luo et al. 2022; `UNet_CCT` of WSL4MIS).

    In training mode `auxiliary` holds the second decoder's logits [N,classes,H,W] of the last forward pass, with their
    graph; in evaluation mode it is None and the second decoder does not run. Copies and pickles do not hold it.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the image
        classes: int,  # channels of the logits, the background included
        drop: float = 0.5,  # probability that the second decoder does not see a channel
        **options: Any,  # of `UNet2d`
    ) -> None:
        super().__init__(in_channels, classes, **options)
        twin = UNet2d(in_channels, classes, **options)
        self.second_decoder, self.second_head, self.drop = twin.decoder, twin.head, drop
        self.auxiliary: Tensor | None = None

    def forward(
        self,
        image: Tensor,  # [N,in_channels,H,W] float
    ) -> Tensor:  # [N,classes,H,W] logits of the first decoder
        "Logits of the first decoder; in training those of the second are left in `auxiliary`."
        stages = self.encode(image)
        self.auxiliary = None
        if self.training:
            seen = [drop(features, self.drop, channels=True) for features in stages]
            self.auxiliary = self.second_head(climb(self.second_decoder, seen))
        return self.head(climb(self.decoder, stages))

    def __getstate__(self) -> dict:
        "What a copy or a pickle takes along."
        return {**self.__dict__, "auxiliary": None}


# %%
#| export
def dual_branch_unet(
    in_channels: int,  # channels of the image
    classes: int,  # channels of the logits, the background included
    switches: MethodSwitches,  # of the run; not needed
) -> DualBranchUNet:  # with fresh weights
    "The backbone with a second decoder, as a `Method` takes it."
    return DualBranchUNet(in_channels, classes)


# %%
#| export
def second_logits(
    context: LossContext,  # of a `DualBranchUNet` in training mode
) -> Tensor:  # [N,C,H,W] float32
    "Logits of the second branch. Raises ValueError where the network has none or did not run in training mode."
    logits = getattr(context.model, "auxiliary", None)
    if logits is None:
        raise ValueError(f"model: found a {type(context.model).__name__} without logits of a second branch, expected a "
                         "DualBranchUNet in training mode")
    return logits.float()


# %%
assert sum(p.numel() for p in DualBranchUNet(1, 4).parameters()) == 2_447_064
assert sum(p.numel() for p in DualBranchUNet(1, 5).parameters()) == 2_447_354
two = DualBranchUNet(1, 4)
picture = torch.rand(2, 1, 32, 32)
assert two(picture).shape == two.auxiliary.shape and copy.deepcopy(two).auxiliary is None
assert two.eval()(picture).shape == (2, 4, 32, 32) and two.auxiliary is None


# %% [markdown]
# ## Dual branch: hard labels
#
# Both branches learn the strokes. In each step their predictions are mixed with a random weight $\beta$, the most
# probable class of the mixture is the label $\hat y$ of every pixel, and both learn it with Dice:
#
# $$l=\tfrac12\big(l_{seg}(P_1)+l_{seg}(P_2)\big)+\tfrac12\cdot\tfrac12\big(\mathrm{Dice}(P_1,\hat y)
# +\mathrm{Dice}(P_2,\hat y)\big),\qquad
# \hat y=\arg\max_c\,\big(\beta P_1+(1-\beta)P_2\big)_c,\ \ \beta\sim U(0,1)$$
#
# By hand: $P_1=(0.6,0.4)$, $P_2=(0.1,0.9)$. The mixture favours class 0 if $0.6\beta+0.1(1-\beta)>\frac12$, that is
# $\beta>0.8$: once in five steps.

# %%
#| export
def mixed_probs(
    first: Tensor,  # [N,C,H,W]
    second: Tensor,  # [N,C,H,W]
    weight: float | Tensor,  # β in [0,1], of the first
) -> Tensor:  # [N,C,H,W], without gradient
    "The weighted mean of two predictions."
    return (weight * first + (1 - weight) * second).detach()


# %%
#| export
def branch_term(
    context: LossContext,  # of a `DualBranchUNet`
) -> BatchMean:  # of a loss ≥ 0
    "Partial cross-entropy on the scribble, mean of both branches."
    batch = context.batch
    first, second = (partial_cross_entropy.of_batch(logits, batch.target, ignore=batch.ignore)
                     for logits in (context.logits, second_logits(context)))
    return (first + second) / 2


# %%
#| export
def hard_label_term(
    context: LossContext,  # of a `DualBranchUNet`
) -> BatchMean:  # of a loss in 0 … 1
    "Dice of both branches with the most probable class of their mixture."
    both = context.probs, second_logits(context).softmax(1)
    labels = mixed_probs(*both, torch.rand(()).to(both[0].device)).argmax(1)
    first, second = (dice_loss.of_batch(probs, labels, ignore=context.batch.ignore) for probs in both)
    return (first + second) / 2


# %%
#| export
BRANCHES = Term("seg", branch_term)
register(Method("dual-branch", "DBr", "Luo et al. 2022; WSL4MIS, ours_proposed",
                (BRANCHES, Term("hard", hard_label_term, weight=0.5)), network=dual_branch_unet))

# %%
weights = torch.rand(100_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
first, second = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1), torch.tensor([0.1, 0.9]).view(1, 2, 1, 1)
assert abs((mixed_probs(first, second, weights).argmax(1) == 0).float().mean() - 0.2) < 0.01


# %% [markdown]
# ## DMSPS: soft labels
#
# Han et al. (2024), newer than the paper. The $\arg\max$ makes an uncertain guess look certain. So keep the mixture
# itself as the label, and use the cross-entropy with it, at a weight of 8:
#
# $$l=\tfrac12\big(l_{seg}(P_1)+l_{seg}(P_2)\big)+8\cdot\tfrac12\sum_{k=1,2}\Big(-\frac1{|\Omega|}\sum_p\sum_c\hat y_p^c
# \log P_{k,p}^c\Big),\qquad
# \hat y=\beta P_1+(1-\beta)P_2$$
#
# The gradient in the first branch's logits is $P_1-\hat y=(1-\beta)(P_1-P_2)$: zero where the two agree, however
# uncertain they are. Hard labels move the prediction there too.
#
# The released code hands *probabilities* to a cross-entropy that expects logits, and so takes the softmax twice. That
# loss can no longer be small, and its gradients are several times weaker, which its weight of 8 makes up for.
# `method_double_softmax=True` brings it back.

# %%
#| export
class SoftSwitches(Switches):
    "The switches of the method `dmsps`."

    double_softmax: bool = Field(False, description="take the softmax of probabilities, as released")
    released: ClassVar[dict[str, Any]] = {"double_softmax": True}


# %%
#| export
def soft_label_term(
    context: LossContext,  # of a `DualBranchUNet`; its options are `SoftSwitches`
) -> BatchMean:  # of a loss ≥ 0
    "Cross-entropy of both branches with their mixture."
    first, second = context.logits, second_logits(context)
    probs = first.softmax(1), second.softmax(1)
    target = mixed_probs(probs[0], probs[1], torch.rand(()).to(first.device))
    if context.options.double_softmax:
        first, second = probs
    total = F.cross_entropy(first, target, reduction="sum") + F.cross_entropy(second, target, reduction="sum")
    return ratio(total, 2 * target[:, 0].numel())


# %%
#| export
register(Method("dmsps", "DMSPS", "Han et al. 2024, Medical Image Analysis; first stage",
                (BRANCHES, Term("soft", soft_label_term, weight=8.0)), network=dual_branch_unet,
                options=SoftSwitches))

# %% [markdown]
# ### Check
#
# For one branch the gradient is $(1-\beta)(P_1-P_2)/|\Omega|$, as stated above.

# %%
torch.manual_seed(0)
leaf, other, beta = torch.randn(1, 3, 4, 5, requires_grad=True), torch.randn(1, 3, 4, 5).softmax(1), 0.3
target = mixed_probs(leaf.softmax(1), other, beta)
F.cross_entropy(leaf, target).backward()
torch.testing.assert_close(leaf.grad, (1 - beta) * (leaf.detach().softmax(1) - other) / 20)


# %%
def soft_naive(logits, target):
    total = 0
    for n, y, x in np.ndindex(len(logits), *logits.shape[2:]):
        scores = logits[n, :, y, x]
        total = total - sum(target[n, c, y, x] * (scores[c] - scores.exp().sum().log()) for c in range(len(scores)))
    return total / (len(logits) * logits[0, 0].numel())


assert_same(lambda z: F.cross_entropy(z, target.double()), lambda z: soft_naive(z, target.double()), leaf)


# %% [markdown]
# ## Hard and soft, side by side
#
# The mixture of the two branches above for three weights. Upper row: the hard label. Lower row: the probability of that
# class in the soft label; black means that all four classes are equally probable.

# %%
def plot_mixtures(weights, ours=ours, theirs=theirs, image=batch.image):
    "Hard label and the largest probability of the soft one, for some weights of the first branch."
    figure, axes = panels(2 * len(weights), columns=len(weights), size=2.3)
    for weight, top, below in zip(weights, axes, axes[len(weights):], strict=False):
        soft = mixed_probs(ours, theirs, weight)[0]
        draw(top, image[0, 0], label=soft.argmax(0).numpy(), title=f"β = {weight:g}: hard label")
        shown = below.imshow(soft.amax(0), cmap="gray", vmin=0.25, vmax=1, interpolation="nearest")
        below.set_title("soft label's largest probability", fontsize=9)
    figure.colorbar(shown, ax=list(axes[len(weights):]), shrink=0.7)
    class_legend(figure, NAMES)
    plt.show()


# %%
plot_mixtures((0.0, 0.5, 1.0))

# %%
interact(lambda weight=0.5: plot_mixtures([weight]), weight=(0.0, 1.0, 0.1));

# %% [markdown]
# ## Real data: where do the branches differ?
#
# One slice each of four ACDC patients, strokes by an expert, trained as above. What this does not show: whether
# learning from the mixture helps.

# %%
try:
    heart = open_dataset("acdc")
except (ValueError, OSError) as error:
    print(f"skipped, no ACDC here: {str(error).splitlines()[0]}")
else:
    planes = planes_of(heart.read(patient)[0] for patient in heart.patients[:4])
    batch = SliceStore(planes, classes=4, ignore=4).batch(torch.arange(4), SIDE)
    real = SliceStore(planes, classes=4, ignore=4, target="label").batch(torch.arange(4), SIDE).target
    both = predict_both(learn(), batch.image)
    first, second = (probs.argmax(1) for probs in both)
    differ, wrong = first != second, first != real
    plot_mixtures((0.0, 0.5, 1.0), *both, batch.image)
    print(f"wrong where they differ ({differ.float().mean():.0%} of the pixels): {wrong[differ].float().mean():.0%}; "
          f"wrong where they agree: {wrong[~differ].float().mean():.0%}")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** Two classes; the branches give class 0 the probabilities a > ½ and b < ½. With which probability, over
# β, is the hard label 0?

# %%
def check_first(f):
    assert abs(f(0.6, 0.1) - 0.2) < 1e-9 and abs(f(0.9, 0.1) - 0.5) < 1e-9

def my_first(a, b):
    ...  # your code here

exercise(check_first, my_first, solution=lambda a, b: 1 - (0.5 - b) / (a - b))


# %% [markdown]
# **2. Implement** dropout of whole channels for features [N,C,h,w]: kept with probability 1 − p and then divided by it.

# %%
def check_dropout(f):
    torch.manual_seed(0)
    seen = f(torch.ones(64, 32, 3, 3), 0.5).flatten(2)
    assert ((seen == 0).all(2) | (seen == 2).all(2)).all() and abs(seen.mean() - 1) < 0.1

def my_dropout(features, p):
    return features  # your code here

def drop_channels(features, p):
    return features * (torch.rand(*features.shape[:2], 1, 1) >= p) / (1 - p)

exercise(check_dropout, my_dropout, drop_channels)


# %% [markdown]
# **3. Break.** For which second prediction do soft labels leave the first branch as it is, whatever β? Return it for
# the given first one.

# %%
def check_nothing(f):
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    first = logits.detach().softmax(1)
    F.cross_entropy(logits, mixed_probs(first, f(first), 0.3)).backward()
    assert logits.grad.abs().max() < 1e-6

def my_nothing(first):
    return torch.full_like(first, 0.25)  # your code here

exercise(check_nothing, my_nothing, solution=lambda first: first)

# %% [markdown]
# ## Recap
#
# `DualBranchUNet` leaves the logits of its second branch in `auxiliary`; `dual-branch` turns the mixture into hard
# labels, `dmsps` into soft ones. Surprising: soft labels change nothing where the two branches agree.
# [Next](43_regularisers.ipynb): penalties that need no labels at all.
