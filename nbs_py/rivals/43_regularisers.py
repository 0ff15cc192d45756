# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Regularisers
#
# > Four penalties on a prediction that need no label.
#
# Some things are known without any label: a pixel belongs to one class, and an organ has a short outline, even
# brightness, and edges where the image has them. A penalty puts such knowledge into the loss, so that pixels without a
# label count as well. This chapter builds four penalties and looks at what each asks for, and at what it does alone.

# %%
#| default_exp rivals.regularisers

# %%
#| export
import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

# %%
#| export
from attenscribble.basics.distributed import BatchMean, batch_loss, rank, ratio
from attenscribble.method.mcrf import masked_crf_loss
from attenscribble.method.objective import (
    SEGMENTATION,
    STROKE_DICE,
    LossContext,
    Method,
    Term,
    reach_of,
    register,
    window_radius,
)
from attenscribble.method.switches import Switches
from attenscribble.rivals.pseudo import RandomWalker, WalkerSwitches

# %%
import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import interact

from attenscribble.basics.checking import assert_same, exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.batches import resize_image, resize_labels
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom
from attenscribble.runs.metrics import dice

# %% [markdown]
# ## What does a penalty want?
#
# Take the truth, blur it a little, and see in which direction each penalty would change the muscle. Red: more of it,
# blue: less. (The functions come from the finished module; the chapter builds them below.)

# %%
data = phantom(patients=5)
case, z = data.read("patient002")[0], 3
NAMES, IGNORE, SIDE = data.class_names, data.ignore, 96
image = resize_image(torch.tensor(case.image[z]), SIDE)[None, None]
label = resize_labels(torch.tensor(case.label[z]).long(), SIDE)[None]


# %%
def rough_logits(label, blur=7, confidence=6.0):
    "Logits of a prediction that is the label, blurred."
    onehot = F.pad(F.one_hot(label, 4).movedim(-1, 1).float(), [blur // 2] * 4, mode="replicate")
    return confidence * F.conv2d(onehot, torch.ones(4, 1, blur, blur) / blur**2, groups=4)


def pull(loss, logits, class_id=2):
    "Minus the gradient of a loss in the logits of one class, [H,W]."
    leaf = logits.clone().requires_grad_()
    return -torch.autograd.grad(loss(leaf.softmax(1)), leaf)[0][0, class_id]


# %%
def draw_pull(axis, name, loss, logits):
    "A map of the pull on the muscle; red asks for more muscle."
    change = pull(loss, logits)
    bound = float(change.abs().quantile(0.998)) or 1.0
    axis.imshow(change, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
    axis.set_title(f"{name}, ±{bound:.0e}", fontsize=9)


def plot_pulls(losses, image, label):
    "Image with true outline, then one map of pulls for each loss."
    _, axes = panels(1 + len(losses), columns=3, size=2.5)
    draw(axes[0], image[0, 0].numpy(), outline=label[0].numpy(), title="image, true outline")
    for axis, (name, loss) in zip(axes[1:], losses.items(), strict=True):
        draw_pull(axis, name, loss, rough_logits(label))


# %%
from attenscribble.rivals import regularisers as finished

LOSSES = {
    "entropy": finished.entropy_loss,
    "gated CRF": lambda probs: masked_crf_loss(probs, image, unlabelled=None),
    "Mumford–Shah": lambda probs: finished.mumford_shah_loss(probs, image),
    "same, as released": lambda probs: finished.mumford_shah_loss(probs, image, swapped=True),
    "contour length": finished.contour_length,
}
plot_pulls(LOSSES, image, label)


# %% [markdown]
# The entropy pushes every pixel towards the class that is already most probable, and so sharpens the blurred rim
# without moving it. The gated CRF moves the rim to the edge in the image. Of Mumford–Shah one mostly sees the border
# sum, which acts where a rim bends. The contour asks for less rim.

# %% [markdown]
# ## Entropy minimisation
#
# Grandvalet and Bengio (2004): predictions should be certain. Over all pixels, strokes included,
#
# $$l_{ent}=-\frac{1}{|\Omega|\,\ln K}\sum_p\sum_c P_p^c\log(P_p^c+10^{-6}),\qquad\lambda=0.1$$
#
# By hand: two classes with ½ each, $l=1$; certain, $l=0$. The released code divides by ln 4 for any number of classes
# $K$, which is right for the heart's four.

# %%
#| export
@batch_loss
def entropy_loss(
    probs: Tensor,  # [N,C,H,W] probabilities P
) -> BatchMean:  # called plainly, a tensor: [] in 0 … 1
    "Mean entropy of all pixels over its largest value ln C (Grandvalet and Bengio 2004; WSL4MIS)."
    entropy = -(probs * (probs + 1e-6).log()).sum()
    return ratio(entropy, probs[:, 0].numel()) / math.log(probs.shape[1])


# %%
#| export
def entropy_term(
    context: LossContext,  # of the batch
) -> BatchMean:  # of a loss in 0 … 1
    "Entropy of the prediction."
    return entropy_loss.of_batch(context.probs)


register(Method("entropy-minimisation", "EM", "Grandvalet and Bengio 2004; WSL4MIS, Entropy_Mini_2D",
                (SEGMENTATION, Term("entropy", entropy_term, weight=0.1))))

# %%
undecided, certain = torch.full((1, 2, 3, 3), 0.5), torch.eye(2).view(2, 2, 1, 1)
torch.testing.assert_close(entropy_loss(undecided), torch.tensor(1.0), atol=1e-5, rtol=0)
torch.testing.assert_close(entropy_loss(certain), torch.tensor(0.0), atol=1e-5, rtol=0)

# %% [markdown]
# ## None at all
#
# The benchmark ScribbleBench (Gotkowski et al. 2024) found that on seven datasets no penalty beats a plain loss on the strokes, if the rest of the training
# is as careful as nnU-Net's: cross-entropy and Dice on the annotated pixels, and slices that grow, shrink and change their look. This is its row.

# %%
#| export
register(Method("partial-loss", "CE + Dice", "Gotkowski et al. 2024, arXiv:2403.12834: a partial loss, augmented",
                (SEGMENTATION, replace(STROKE_DICE, weight=1.0)),
                settings={"augment_zoom": 0.25, "augment_look": 0.3, "optimiser": "nesterov"}))


# %% [markdown]
# ## Gated CRF
#
# Obukhov et al. (2019): the CRF of [chapter 32](../method/32_mcrf.ipynb) without masks. Annotated pixels take part like
# all others, and the mean goes over all pixels of the batch; λ = 0.1.

# %%
#| export
def gated_crf_term(
    context: LossContext,  # of the batch; its switches that begin with crf_
) -> BatchMean:  # of a loss
    "The CRF of eqs. 4 and 5 over all pixels (Obukhov et al. 2019)."
    switches, share = context.switches, reach_of(context)
    return masked_crf_loss.of_batch(
        context.probs, context.batch.image, unlabelled=None,
        radius=window_radius(switches.crf_radius, switches.crf_window, share), sigma_xy=switches.crf_sigma_xy * share,
        sigma_i=switches.crf_sigma_i, weight=switches.crf_kernel_weight, count_padding=switches.crf_count_padding)


# %%
#| export
register(Method("gated-crf", "GCRF", "Obukhov et al. 2019; WSL4MIS, GatedCRFLoss_2D",
                (SEGMENTATION, Term("crf", gated_crf_term, weight=0.1))))


# %% [markdown]
# ## Mumford–Shah
#
# Kim and Ye (2020): each class should be a region of one intensity $\mu_c$ with a short border,
#
# $$l_{ms}=\sum_c\sum_p (I_p-\mu_c)^2P_p^c+\sum_c\sum_p|\partial_yP_p^c|+|\partial_xP_p^c|,\qquad
# \mu_c=\frac{\sum_pI_pP_p^c}{\sum_pP_p^c}\ \text{of each image}$$
#
# WSL4MIS adds $10^{-6}$ times the sum over a batch of 12 slices of 256². A sum depends on batch and size; we take the
# mean over pixels and a weight of $10^{-6}\cdot12\cdot256^2=0.786$, which is the same there and keeps its meaning
# elsewhere.

# %% [markdown]
# By hand: a row of pixels 0, 0, 1, 1. If class 0 has the first two and class 1 the others, both regions are constant
# and each class has one step of height 1: $l=0+2$, over 4 pixels ½. If both classes have probability ½ everywhere,
# $\mu=\frac12$, the first sum is $4\cdot\frac14=1$ and the second 0: over 4 pixels ¼, which is less than for the right
# answer.
#
# The released code swaps the arguments: $(P_p^c-\nu_c)^2I_p$ with $\nu_c=\sum P^cI/\sum I$. That asks the *prediction*
# to be constant where the image is bright.

# %%
#| export
@batch_loss
def mumford_shah_loss(
    probs: Tensor,  # [N,C,H,W] probabilities P
    image: Tensor,  # [N,K,H,W] float; the first sum is averaged over channels
    *,
    swapped: bool = False,  # exchange image and prediction in the first sum, as released by WSL4MIS and AttenScribble
) -> BatchMean:  # called plainly, a tensor: [] the sum of the equation over the number of pixels
    "Piecewise constant regions with short borders (Kim and Ye 2020)."
    level = probs.new_zeros(())
    for channel in image.split(1, 1):
        values, weights = (probs, channel.expand_as(probs)) if swapped else (channel.expand_as(probs), probs)
        mean = (values * weights).sum((2, 3), keepdim=True) / weights.sum((2, 3), keepdim=True).clamp(min=1e-6)
        level = level + ((values - mean).square() * weights).sum() / image.shape[1]
    border = probs.diff(dim=2).abs().sum() + probs.diff(dim=3).abs().sum()
    return ratio(level + border, probs[:, 0].numel())


# %%
#| export
class MumfordShahSwitches(Switches):
    "The switches of the method `mumford-shah`."

    swapped: bool = Field(False, description="exchange image and prediction in the level-set sum")
    released: ClassVar[dict[str, Any]] = {"swapped": True}


# %%
#| export
def mumford_shah_term(
    context: LossContext,  # of the batch; its options are `MumfordShahSwitches`
) -> BatchMean:  # of a loss ≥ 0
    "The Mumford–Shah functional of image and prediction."
    return mumford_shah_loss.of_batch(context.probs, context.batch.image, swapped=context.options.swapped)


# %%
#| export
register(Method("mumford-shah", "MS", "Kim and Ye 2020; WSL4MIS, MumfordShah_Loss_2D",
                (SEGMENTATION, Term("ms", mumford_shah_term, weight=1e-6 * 12 * 256**2)),
                options=MumfordShahSwitches))

# %%
row = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64).view(1, 1, 1, 4)
halves = torch.cat((1 - row, row), 1)
assert mumford_shah_loss(halves, row).item() == 2 / 4
assert mumford_shah_loss(torch.full_like(halves, 0.5), row).item() == 1 / 4


# %%
def level_naive(image, probs):
    "The first sum for one image and one class."
    pixels = list(np.ndindex(*image.shape))
    mu = sum(image[p] * probs[p] for p in pixels) / sum(probs[p] for p in pixels)
    return sum((image[p] - mu) ** 2 * probs[p] for p in pixels)


def border_naive(probs):
    "The second sum for one image and one class."
    height, width = probs.shape
    return sum(abs(probs[v, u] - probs[y, x]) for y, x in np.ndindex(height, width)
               for v, u in ((y + 1, x), (y, x + 1)) if v < height and u < width)


# %%
def mumford_shah_naive(probs, image):
    total = sum(level_naive(image[n, 0], probs[n, c]) + border_naive(probs[n, c])
                for n, c in np.ndindex(*probs.shape[:2]))
    return total / probs[:, 0].numel()


torch.manual_seed(0)
scan = torch.rand(2, 1, 5, 4)
assert_same(lambda z: mumford_shah_loss(z.softmax(1), scan.double()),
            lambda z: mumford_shah_naive(z.softmax(1), scan.double()), torch.randn(2, 3, 5, 4))


# %% [markdown]
# ## Contour
#
# El Jurdi et al. (2021) compare the *length of the contour* with that of the dense label. A minimum filter shrinks the
# soft mask by one pixel, a maximum filter grows the result again, and the difference of the two is the inner rim:
#
# $$m=-\mathrm{maxpool}_3(-P),\qquad c(P)=\mathrm{ReLU}\big(\mathrm{maxpool}_3(m)-m\big),\qquad
# l_{per}=\frac{1}{HW}\Big(\sum c(P)-\sum c(Y)\Big)^2$$
#
# By hand: a square of 10×10 pixels has an inner rim of $100-64=36$.

# %% [markdown]
# A scribble has no perimeter to compare with. Two things are possible: ask for a *short* contour, the mean of $c(P)$
# over organs and pixels, weight 0.01 (as in WSL4MIS; most likely what the paper's row "Contour" is), or take the
# perimeter from the labels of a [random walker](40_pseudo_labels.ipynb). The first is the method `contour`, the second
# `contour-walker`.
#
# The released code means to leave out the background but cuts the *batch* axis: it drops the first image and keeps the
# background.

# %%
#| export
def soft_contour(
    probs: Tensor,  # [N,C,H,W] in 0 … 1
) -> Tensor:  # [N,C,H,W] in 0 … 1: high on the inner rim of each class
    "The inner rim of soft masks by a minimum and a maximum filter of 3×3 (El Jurdi et al. 2021)."
    shrunk = -F.max_pool2d(-probs, 3, stride=1, padding=1)
    return (F.max_pool2d(shrunk, 3, stride=1, padding=1) - shrunk).relu()


# %%
#| export
@batch_loss
def contour_length(
    probs: Tensor,  # [N,C,H,W]
    *,
    drop_first: bool = False,  # leave out the first image instead of the background, as released
) -> BatchMean:  # called plainly, a tensor: [] mean over images, organs and pixels
    "How much contour the organs have."
    contour = soft_contour(probs)
    kept = contour[int(rank() == 0):] if drop_first else contour[:, 1:]  # process 0 has the batch's first image
    return ratio(kept.sum(), kept.numel())


# %%
#| export
@batch_loss
def perimeter_loss(
    probs: Tensor,  # [N,C,H,W]
    reference: Tensor,  # [N,H,W] int64 class ids, `ignore` where unknown
    *,
    ignore: int,  # such pixels count as background
) -> BatchMean:  # called plainly, a tensor: [] mean over images and organs
    "Squared difference of perimeters, over the number of pixels (El Jurdi et al. 2021)."
    known = reference != ignore
    onehot = F.one_hot(reference.where(known, 0), probs.shape[1]).movedim(-1, 1).to(probs.dtype)
    lengths = [soft_contour(masks)[:, 1:].sum((2, 3)) for masks in (probs, onehot)]
    return ratio((lengths[0] - lengths[1]).square().sum(), lengths[0].numel()) / reference.shape[1:].numel()


# %%
#| export
class ContourSwitches(Switches):
    "The switches of the method `contour`."

    drop_first: bool = Field(False, description="leave out each batch's first image instead of the background")
    released: ClassVar[dict[str, Any]] = {"drop_first": True}


# %%
#| export
def contour_term(
    context: LossContext,  # of the batch; its options are `ContourSwitches`
) -> BatchMean:  # of a loss in 0 … 1
    "Length of the organs' contours."
    return contour_length.of_batch(context.probs, drop_first=context.options.drop_first)


# %%
#| export
def perimeter_term(
    context: LossContext,  # of a batch with guessed labels
) -> BatchMean:  # of a loss ≥ 0
    "Perimeters against those of guessed labels."
    return perimeter_loss.of_batch(context.probs, context.guessed, ignore=context.batch.ignore)


# %%
#| export
register(Method("contour", "Contour", "length only, WSL4MIS, pCE_TV_2D; after El Jurdi et al. 2021",
                (SEGMENTATION, Term("contour", contour_term, weight=0.01)), options=ContourSwitches))
register(Method("contour-walker", "Contour (RW)", "El Jurdi et al. 2021, perimeters of a random walker's labels",
                (SEGMENTATION, Term("perimeter", perimeter_term, weight=0.01)), options=WalkerSwitches,
                pseudo=RandomWalker))

# %%
square = torch.zeros(1, 1, 16, 16)
square[..., 3:13, 3:13] = 1
assert soft_contour(square).sum() == 36


# %%
def around(p, shape):
    "A pixel and its neighbours, up to eight."
    rows, columns = (range(max(0, at - 1), min(size, at + 2)) for at, size in zip(p, shape, strict=True))
    return [(y, x) for y in rows for x in columns]


def contour_naive(probs):
    "The sum of the inner rims, pixel by pixel."
    total, pixels = 0, list(np.ndindex(*probs.shape[2:]))
    for n, c in np.ndindex(*probs.shape[:2]):
        shrunk = {p: min(probs[(n, c, *q)] for q in around(p, probs.shape[2:])) for p in pixels}
        total = total + sum(max(shrunk[q] for q in around(p, probs.shape[2:])) - shrunk[p] for p in pixels)
    return total


# %%
assert_same(lambda z: soft_contour(z.softmax(1)).sum(), lambda z: contour_naive(z.softmax(1)), torch.randn(1, 2, 6, 5))

# %%
disc = (torch.hypot(*(torch.meshgrid(torch.arange(17.0) - 8, torch.arange(17.0) - 8, indexing="ij"))) < 6).long()[None]
exact = F.one_hot(disc, 2).movedim(-1, 1).float()
assert perimeter_loss(exact, disc, ignore=9) == 0 and perimeter_loss(1 - exact, disc, ignore=9) > 0


# %% [markdown]
# ## What each of them wants in the end
#
# There is no network here: each pixel of the phantom slice has logits of its own. They start as the blurred truth and
# follow the gradient of one penalty alone.

# %%
def descend(loss, steps=60, rate=2000.0):
    "Classes after some steps on one penalty, from the blurred truth; a step moves no logit by more than ½."
    logits = rough_logits(label).clone().requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss(logits.softmax(1)), logits)
        logits = (logits - (rate * slope).clamp(-0.5, 0.5)).detach().requires_grad_()
    return logits.argmax(1)[0].numpy()


def mean_dsc(found):
    return np.nanmean([dice(found == c, label[0].numpy() == c) for c in range(1, 4)])


# %%
start = rough_logits(label).argmax(1)[0].numpy()
figure, axes = panels(1 + len(LOSSES), columns=3, size=2.5)
draw(axes[0], image[0, 0], label=start, outline=label[0].numpy(), title=f"start: DSC {mean_dsc(start):.2f}")
for axis, (name, loss) in zip(axes[1:], LOSSES.items(), strict=True):
    found = descend(loss)
    draw(axis, image[0, 0], label=found, outline=label[0].numpy(), title=f"{name}: DSC {mean_dsc(found):.2f}")
class_legend(figure, NAMES)


# %% [markdown]
# Left alone, each penalty goes too far, and under the swapped Mumford–Shah the dark muscle disappears. So a penalty
# gets a small weight beside the loss on the strokes.
#
# ## Real data: what does the truth cost?
#
# One slice of an ACDC patient: each penalty for the expert's dense label, and for the same label moved by four pixels.
# A penalty that helps should be lower for the first. What this does not show: the pull on a network's soft predictions.

# %%
def plot_real(case, z):
    "The penalties for the dense label of a slice, in place and moved, then their pulls."
    plane, dense = torch.tensor(case.image[z])[None, None], torch.tensor(case.label[z]).long()[None]
    sure = F.one_hot(dense, 4).movedim(-1, 1).float()
    penalties = {"gated CRF": lambda P: masked_crf_loss(P, plane, unlabelled=None),
                 "Mumford–Shah": lambda P: mumford_shah_loss(P, plane), "contour length": contour_length,
                 "same, as released": lambda P: mumford_shah_loss(P, plane, swapped=True), "entropy": entropy_loss}
    for name, penalty in penalties.items():
        print(f"{name:18} {penalty(sure).abs().item():.4f} in place, {penalty(sure.roll(4, 3)).abs().item():.4f} moved")
    plot_pulls(penalties, plane, dense)


# %%
try:
    real = open_dataset("acdc").read("patient001")[0]
except (ValueError, OSError) as error:
    print(f"skipped, no ACDC here: {str(error).splitlines()[0]}")
else:
    plot_real(real, int((real.label > 0).sum((1, 2)).argmax()))


# %% [markdown]
# The CRF is far lower for the truth, Mumford–Shah a little. Entropy and contour do not depend on the image and cannot
# tell the two apart. The released Mumford–Shah is lower for the moved label.
#
# ## Slide the blur
#
# The wider the soft rim, the larger the part of the slice on which a penalty acts.

# %%
def plot_blur(blur=7, name="gated CRF"):
    "The pull of one penalty on the muscle for a wider or narrower soft rim."
    logits = rough_logits(label, blur=blur)
    _, (left, right) = panels(2, size=2.6)
    draw(left, image[0, 0], label=logits.argmax(1)[0].numpy(), title=f"prediction, blur {blur} px")
    draw_pull(right, name, LOSSES[name], logits)
    plt.show()

for blur in (3, 11):
    plot_blur(blur)

# %%
interact(plot_blur, blur=(3, 15, 2), name=list(LOSSES));


# %% [markdown]
# ## Exercises
#
# **1. Predict.** The entropy loss of K classes when two of them have ½ each and the others nothing.

# %%
def check_tie(f):
    for classes in (2, 4, 5):
        probs = torch.zeros(1, classes, 2, 2)
        probs[:, :2] = 0.5
        assert abs(f(classes) - entropy_loss(probs).item()) < 1e-4

def my_tie(classes):
    ...  # your code here

exercise(check_tie, my_tie, solution=lambda classes: math.log(2) / math.log(classes))


# %% [markdown]
# **2. Implement** the total variation $\sum|\partial_yP|+|\partial_xP|$ of a batch.

# %%
def check_variation(f):
    flat = torch.rand(1, 1, 6, 6).expand(1, 2, 6, 6)
    blank = torch.zeros(1, 1, 6, 6)
    level = mumford_shah_loss(flat, blank) * 36  # on a blank image the first sum is zero
    torch.testing.assert_close(f(flat), level)

def my_variation(probs):
    return probs.sum()  # your code here

exercise(check_variation, my_variation,
         solution=lambda probs: (probs[:, :, 1:] - probs[:, :, :-1]).abs().sum()
         + (probs[..., 1:] - probs[..., :-1]).abs().sum())


# %% [markdown]
# **3. Break.** Return a batch [2,3,8,8] of certain predictions for which the released contour loss is 0, although the
# organs of one image have contours.

# %%
def check_blind(f):
    probs = f()
    assert probs.shape == (2, 3, 8, 8) and ((probs == 0) | (probs == 1)).all() and (probs.sum(1) == 1).all()
    assert contour_length(probs, drop_first=True) == 0 < contour_length(probs)

def my_blind():
    return torch.zeros(2, 3, 8, 8)  # your batch here

def blind():
    probs = torch.zeros(2, 3, 8, 8)
    probs[:, 0] = 1
    probs[0, 0, 2:6, 2:6], probs[0, 1, 2:6, 2:6] = 0, 1
    return probs

exercise(check_blind, my_blind, blind)

# %% [markdown]
# ## Recap
#
# Exported: `entropy_loss`, `mumford_shah_loss`, `contour_length` and `perimeter_loss`; the gated CRF is the loss of
# chapter 32 with one option. Surprising: with its arguments swapped, Mumford–Shah removes the dark muscle.
# [Next](44_your_own.ipynb): a row of your own.
