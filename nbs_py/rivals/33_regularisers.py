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
# > Four penalties that need no label: what each of them likes, and what it likes too much.

# %%
#| default_exp rivals.regularisers

# %%
#| export
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from attenscribble.method.mcrf import masked_crf_loss
from attenscribble.method.objective import (
    SEGMENTATION,
    Evidence,
    Method,
    Switches,
    Term,
    reach,
    register,
)
from attenscribble.rivals.pseudo import RandomWalker, WalkerSwitches

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import interact

from attenscribble.book import assert_same, class_legend, draw, exercise, panels
from attenscribble.data.batches import resize_image, resize_labels
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import acdc
from attenscribble.experiment.metrics import dice

# %% [markdown]
# ## What does a penalty want?
#
# Take the truth, blur it a little, and ask each penalty in which direction it would change the muscle. Red: more of it, blue:
# less. (The functions come from the finished module.)

# %%
data = phantom(patients=5)
case, z = data.read("patient002")[0], 3
NAMES, IGNORE, SIDE = data.class_names, data.ignore, 96
image = resize_image(torch.tensor(case.image[z]), SIDE)[None, None]
label = resize_labels(torch.tensor(case.label[z]).long(), SIDE)[None]


def rough_logits(label, blur=7, confidence=6.0):
    "Logits of a prediction that is the label, blurred."
    onehot = F.pad(F.one_hot(label, 4).movedim(-1, 1).float(), [blur // 2] * 4, mode="replicate")
    return confidence * F.conv2d(onehot, torch.ones(4, 1, blur, blur) / blur**2, groups=4)


def pull(loss, logits, class_id=2):
    "Minus the gradient of a loss in the logits of one class, [H,W]."
    leaf = logits.clone().requires_grad_()
    return -torch.autograd.grad(loss(leaf.softmax(1)), leaf)[0][0, class_id]


def plot_pulls(losses, image, label):
    "Image with true outline, then one map of pulls on the muscle for each loss; red asks for more muscle."
    logits = rough_logits(label)
    _, axes = panels(1 + len(losses), columns=3, size=2.5)
    draw(axes[0], image[0, 0].numpy(), outline=label[0].numpy(), title="image, true outline")
    for axis, (name, loss) in zip(axes[1:], losses.items(), strict=True):
        arrow = pull(loss, logits)
        bound = float(arrow.abs().quantile(0.998)) or 1.0
        axis.imshow(arrow, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
        axis.set_title(f"{name}, ±{bound:.0e}", fontsize=9)


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
# The entropy pushes every pixel to whatever it already is, and so sharpens the blurred rim where it is. The gated CRF moves the rim to the
# edge of the image. Of Mumford–Shah one mostly sees the border sum, which speaks where a rim bends; the contour wants less rim.

# %% [markdown]
# ## Entropy minimisation
#
# Grandvalet and Bengio (2004): be decided. Over all pixels, strokes included,
#
# $$l_{ent}=-\frac{1}{|\Omega|\,\ln K}\sum_p\sum_c P_p^c\log(P_p^c+10^{-6}),\qquad\lambda=0.1$$
#
# By hand: two classes, all alike, $l=1$; certain, $l=0$. The released code divides by ln 4 whatever $K$ is; for the heart that is right.

# %%
#| export
def entropy_loss(
    probs: Tensor,  # [N,C,H,W] probabilities P
) -> Tensor:  # [] in 0 … 1
    "Mean entropy of all pixels over its largest value ln C (Grandvalet and Bengio 2004; WSL4MIS)."
    return -(probs * (probs + 1e-6).log()).sum(1).mean() / math.log(probs.shape[1])


def entropy_term(evidence: Evidence) -> Tensor:
    "Entropy of the prediction."
    return entropy_loss(evidence.probs)


register(Method("entropy-minimisation", "EM", "Grandvalet and Bengio 2004; WSL4MIS, Entropy_Mini_2D",
                (SEGMENTATION, Term("entropy", entropy_term, weight=0.1))))

# %%
undecided, certain = torch.full((1, 2, 3, 3), 0.5), torch.eye(2).view(2, 2, 1, 1)
torch.testing.assert_close(entropy_loss(undecided), torch.tensor(1.0), atol=1e-5, rtol=0)
torch.testing.assert_close(entropy_loss(certain), torch.tensor(0.0), atol=1e-5, rtol=0)


# %% [markdown]
# ## Gated CRF
#
# Obukhov et al. (2019): [chapter 22](../method/22_mcrf.ipynb) without masks. Strokes pull and are pulled; the mean goes over all pixels of the batch;
# λ = 0.1. The same kernel, one switch.

# %%
#| export
def gated_crf_term(evidence: Evidence) -> Tensor:
    "The CRF of eqs. 4 and 5 over all pixels (Obukhov et al. 2019)."
    crf = evidence.switches.crf
    return masked_crf_loss(evidence.probs, evidence.batch.image, unlabelled=None, radius=reach(crf),
                           sigma_xy=crf.sigma_xy, sigma_i=crf.sigma_i, weight=crf.kernel_weight,
                           count_padding=crf.count_padding)


register(Method("gated-crf", "GCRF", "Obukhov et al. 2019; WSL4MIS, GatedCRFLoss_2D",
                (SEGMENTATION, Term("crf", gated_crf_term, weight=0.1))))


# %% [markdown]
# ## Mumford–Shah
#
# Kim and Ye (2020): each class is a region of one intensity $\mu_c$ with a short border,
#
# $$l_{ms}=\sum_c\sum_p (I_p-\mu_c)^2P_p^c+\sum_c\sum_p|\partial_yP_p^c|+|\partial_xP_p^c|,\qquad
# \mu_c=\frac{\sum_pI_pP_p^c}{\sum_pP_p^c}\ \text{of each image}$$
#
# WSL4MIS adds $10^{-6}$ times the sum over a batch of 12 slices of 256². A sum depends on batch and size; we take the mean over
# pixels and a weight of $10^{-6}\cdot12\cdot256^2=0.786$, which is the same there and keeps its meaning elsewhere.

# %% [markdown]
# By hand: a row of pixels 0, 0, 1, 1. If class 0 has the first two and class 1 the others, both regions are constant and each class has one step of height 1:
# $l=0+2$, over 4 pixels ½. If both share all pixels evenly, $\mu=\frac12$, and the first sum is $4\cdot\frac14=1$, the second 0: over 4 pixels ¼. Cheaper!
#
# The released code swaps the arguments: $(P_p^c-\nu_c)^2I_p$ with $\nu_c=\sum P^cI/\sum I$. That asks the *prediction* to be constant where the image is bright.

# %%
#| export
def mumford_shah_loss(
    probs: Tensor,  # [N,C,H,W] probabilities P
    image: Tensor,  # [N,K,H,W] float; of K modalities the first sum is their mean
    *,
    swapped: bool = False,  # exchange image and prediction in the first sum, as released by WSL4MIS and AttenScribble
) -> Tensor:  # [] the sum of the equation over the number of pixels
    "Piecewise constant regions with short borders (Kim and Ye 2020)."
    def level_set(plane: Tensor) -> Tensor:
        values, shares = (probs, plane.expand_as(probs)) if swapped else (plane.expand_as(probs), probs)
        mean = (values * shares).sum((2, 3), keepdim=True) / shares.sum((2, 3), keepdim=True).clamp(min=1e-6)
        return ((values - mean).square() * shares).sum()

    level = sum(map(level_set, image.split(1, 1))) / image.shape[1]
    border = sum(probs.diff(dim=axis).abs().sum() for axis in (2, 3))
    return (level + border) / probs[:, 0].numel()


class MumfordShahSwitches(Switches):
    "Of the method `mumford-shah`."

    swapped: bool = Field(False, description="exchange image and prediction in the level-set sum")
    released: ClassVar[dict[str, Any]] = {"swapped": True}


def mumford_shah_term(evidence: Evidence) -> Tensor:
    "The Mumford–Shah functional of image and prediction."
    return mumford_shah_loss(evidence.probs, evidence.batch.image, swapped=evidence.own.swapped)


register(Method("mumford-shah", "MS", "Kim and Ye 2020; WSL4MIS, MumfordShah_Loss_2D",
                (SEGMENTATION, Term("ms", mumford_shah_term, weight=1e-6 * 12 * 256**2)),
                switches=MumfordShahSwitches))

# %%
row = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64).view(1, 1, 1, 4)
halves = torch.cat((1 - row, row), 1)
assert mumford_shah_loss(halves, row).item() == 2 / 4
assert mumford_shah_loss(torch.full_like(halves, 0.5), row).item() == 1 / 4


# %%
def mumford_shah_naive(probs, image):
    total, (count, classes, height, width) = 0, probs.shape
    for n in range(count):
        for c in range(classes):
            pixels = [(image[n, 0, y, x], probs[n, c, y, x]) for y in range(height) for x in range(width)]
            mu = sum(i * p for i, p in pixels) / sum(p for _, p in pixels)
            total = total + sum((i - mu) ** 2 * p for i, p in pixels)
            for y in range(height):
                for x in range(width):
                    total = total + sum(abs(probs[n, c, v, u] - probs[n, c, y, x])
                                        for v, u in ((y + 1, x), (y, x + 1)) if v < height and u < width)
    return total / (count * height * width)


torch.manual_seed(0)
scan = torch.rand(2, 1, 5, 4)
assert_same(lambda z: mumford_shah_loss(z.softmax(1), scan.double()),
            lambda z: mumford_shah_naive(z.softmax(1), scan.double()), torch.randn(2, 3, 5, 4))


# %% [markdown]
# ## Contour
#
# El Jurdi et al. (2021) compare the *length of the contour* with that of the dense label. A minimum filter shrinks the soft mask by one pixel, a maximum filter
# grows the result, and what the second reaches and the first does not is the inner rim:
#
# $$m=-\mathrm{maxpool}_3(-P),\qquad c(P)=\mathrm{ReLU}\big(\mathrm{maxpool}_3(m)-m\big),\qquad
# l_{per}=\frac{1}{HW}\Big(\sum c(P)-\sum c(Y)\Big)^2$$
#
# By hand: a square of 10×10 pixels has an inner rim of $100-64=36$.

# %% [markdown]
# A scribble has no perimeter, so their loss needs what we do not have. Two things can be had: ask for a *short* contour, the mean of $c(P)$ over
# organs and pixels, weight 0.01 (in WSL4MIS; most likely what the paper's row "Contour" is), or take the perimeter from a
# [random walker](30_pseudo_labels.ipynb). The first is the method `contour`, the second `contour-walker`.
#
# The released code means to leave out the background but cuts the *batch* axis: it drops the first image and keeps the background.

# %%
#| export
def soft_contour(
    probs: Tensor,  # [N,C,H,W] in 0 … 1
) -> Tensor:  # [N,C,H,W] in 0 … 1: high on the inner rim of each class
    "The inner rim of soft masks by a minimum and a maximum filter of 3×3 (El Jurdi et al. 2021)."
    shrunk = -F.max_pool2d(-probs, 3, stride=1, padding=1)
    return (F.max_pool2d(shrunk, 3, stride=1, padding=1) - shrunk).relu()


def contour_length(
    probs: Tensor,  # [N,C,H,W]
    *,
    drop_first: bool = False,  # leave out the first image instead of the background, as released
) -> Tensor:  # [] mean over images, organs and pixels
    "How much contour the organs have."
    contour = soft_contour(probs)
    kept = contour[1:] if drop_first else contour[:, 1:]
    return kept.sum() / max(1, kept.numel())


def perimeter_loss(
    probs: Tensor,  # [N,C,H,W]
    reference: Tensor,  # [N,H,W] int64 class ids, `ignore` where unknown
    *,
    ignore: int,
) -> Tensor:  # [] mean over images and organs
    "Squared difference of perimeters, over the number of pixels (El Jurdi et al. 2021)."
    known = reference != ignore
    onehot = F.one_hot(reference.where(known, 0), probs.shape[1]).movedim(-1, 1).to(probs.dtype)
    lengths = [soft_contour(masks)[:, 1:].sum((2, 3)) for masks in (probs, onehot)]
    return (lengths[0] - lengths[1]).square().mean() / reference[0].numel()


class ContourSwitches(Switches):
    "Of the method `contour`."

    drop_first: bool = Field(False, description="leave out each batch's first image instead of the background")
    released: ClassVar[dict[str, Any]] = {"drop_first": True}


def contour_term(evidence: Evidence) -> Tensor:
    "Length of the organs' contours."
    return contour_length(evidence.probs, drop_first=evidence.own.drop_first)


def perimeter_term(evidence: Evidence) -> Tensor:
    "Perimeters against those of guessed labels."
    return perimeter_loss(evidence.probs, evidence.batch.pseudo, ignore=evidence.batch.ignore)


register(Method("contour", "Contour", "length only, WSL4MIS, pCE_TV_2D; after El Jurdi et al. 2021",
                (SEGMENTATION, Term("contour", contour_term, weight=0.01)), switches=ContourSwitches))
register(Method("contour-walker", "Contour (RW)", "El Jurdi et al. 2021, perimeters of a random walker's labels",
                (SEGMENTATION, Term("perimeter", perimeter_term, weight=0.01)), switches=WalkerSwitches,
                pseudo=RandomWalker))

# %%
square = torch.zeros(1, 1, 16, 16)
square[..., 3:13, 3:13] = 1
assert soft_contour(square).sum() == 36


# %%
def contour_naive(probs):
    "Inner rim, pixel by pixel."
    count, classes, height, width = probs.shape
    around = lambda y, x: [(v, u) for v in range(max(0, y - 1), min(height, y + 2))
                           for u in range(max(0, x - 1), min(width, x + 2))]
    total = 0
    for n, c in np.ndindex(count, classes):
        small = {p: min(probs[n, c, v, u] for v, u in around(*p)) for p in np.ndindex(height, width)}
        for p in np.ndindex(height, width):
            total = total + max(small[q] for q in around(*p)) - small[p]
    return total


assert_same(lambda z: soft_contour(z.softmax(1)).sum(), lambda z: contour_naive(z.softmax(1)), torch.randn(1, 2, 6, 5))
disc = (torch.hypot(*(torch.meshgrid(torch.arange(17.0) - 8, torch.arange(17.0) - 8, indexing="ij"))) < 6).long()[None]
exact = F.one_hot(disc, 2).movedim(-1, 1).float()
assert perimeter_loss(exact, disc, ignore=9) == 0 and perimeter_loss(1 - exact, disc, ignore=9) > 0


# %% [markdown]
# ## What each of them wants in the end
#
# No network: each pixel of the phantom slice owns its logits, starts with the blurred truth, and goes downhill on one penalty alone.

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
# Left alone, each penalty carries its wish too far, and the swapped Mumford–Shah eats the dark muscle. Strokes and network must hold
# a penalty in check. That is what the weights are for.
#
# ## Real data: what does the truth cost?
#
# One slice of an ACDC patient: each penalty for the expert's dense label, and for the same label moved by four pixels. A penalty that helps should
# prefer the first. What this does not show: the pull on a network's soft answers.

# %%
folder = Path(os.environ.get("ATTENSCRIBBLE_DATA", "data")) / "acdc"
if folder.is_dir():
    real = acdc(folder).read("patient001")[0]
    s = int((real.label > 0).sum((1, 2)).argmax())
    plane = torch.tensor(real.image[s])[None, None]
    sure = F.one_hot(torch.tensor(real.label[s]).long(), 4).permute(2, 0, 1)[None].float()
    bills = {"gated CRF": lambda P: masked_crf_loss(P, plane, unlabelled=None),
             "Mumford–Shah": lambda P: mumford_shah_loss(P, plane), "contour length": contour_length,
             "same, as released": lambda P: mumford_shah_loss(P, plane, swapped=True), "entropy": entropy_loss}
    for name, bill in bills.items():
        print(f"{name:18} {bill(sure).abs().item():.4f} in place, {bill(sure.roll(4, 3)).abs().item():.4f} moved")
    plot_pulls(bills, plane, torch.tensor(real.label[s]).long()[None])
else:
    print(f"skipped: no ACDC folder at {folder}; set ATTENSCRIBBLE_DATA")


# %% [markdown]
# The CRF prefers the truth by far, Mumford–Shah by little. Entropy and contour never look at the image and cannot tell the two apart; the
# released Mumford–Shah looks at it the wrong way and prefers the moved label.
#
# ## Slide the blur
#
# The wider the soft rim, the more of the slice a penalty talks about.

# %%
def plot_blur(blur=7, name="gated CRF"):
    "The pull of one penalty on the muscle for a wider or narrower soft rim."
    logits = rough_logits(label, blur=blur)
    _, (left, right) = panels(2, size=2.6)
    draw(left, image[0, 0], label=logits.argmax(1)[0].numpy(), title=f"prediction, blur {blur} px")
    arrow = pull(LOSSES[name], logits)
    bound = float(arrow.abs().quantile(0.998)) or 1.0
    right.imshow(arrow, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
    right.set_title(f"{name}, ±{bound:.0e}", fontsize=9)
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
# **3. Break.** Return a batch [2,3,8,8] of certain predictions that the released contour loss calls perfect (0), although the organs of one image
# have contours.

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
# `entropy_loss`, `mumford_shah_loss`, `contour_length` and `perimeter_loss`; the gated CRF is chapter 22 with one option. Surprising: with its arguments
# swapped, Mumford–Shah eats the dark muscle. [Next](34_your_own.ipynb): a row of your own.
