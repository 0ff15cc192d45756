# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Partial cross-entropy
#
# > Cross-entropy on the annotated pixels alone: the loss that reads the scribbles.
#
# What can a network learn from 1 % of the pixels? An expert draws a few strokes on a scan, one for each structure, in seconds, while
# outlining everything takes many minutes. This chapter builds the loss that learns from the strokes and ignores all other pixels, and
# shows what it does not teach.

# %%
#| default_exp method.pce

# %%
#| export
import torch
from torch import Tensor
from torch.nn import functional as F

from attenscribble.basics.distributed import BatchMean, Group, batch_loss, common, ratio

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import interact
from torch.testing import assert_close

from attenscribble.basics.checking import assert_same, cost, exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.batches import resize_image, resize_labels
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import acdc
from attenscribble.method.network import UNet2d

# %% [markdown]
# ## The picture: one slice, learnt from its strokes
#
# A small network is trained on a single slice of the phantom, with nothing but the strokes, until it predicts them without a mistake. What does
# it predict for the other 99 % of the pixels? (The loss comes from the finished module; the rest of the chapter builds it.)

# %%
from attenscribble.method.pce import partial_cross_entropy

def phantom_slice(field, side, index):
    "Image [1,1,side,side], scribble and label [1,side,side] of one slice; `field` is the phantom's own side, px."
    case = (data := phantom(patients=1, side=field)).read(data.patients[0])[0]
    scribble, label = (resize_labels(torch.from_numpy(ids[index]), side).long()[None]
                       for ids in (case.scribble, case.label))
    return resize_image(torch.from_numpy(case.image[index]), side)[None, None], scribble, label


# %%
def train(image, scribble, steps=60):
    "Logits of a small network after some steps on one image, with the strokes alone."
    torch.manual_seed(0)
    model = UNet2d(1, 4, channels=(16, 32, 64), dropout=(0, 0, 0))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        partial_cross_entropy(model(image), scribble, ignore=IGNORE).backward()
        optimiser.step()
    return model(image).detach()


# %%
NAMES, IGNORE = phantom(patients=1).class_names, phantom(patients=1).ignore

def dsc(prediction, label, class_id):
    "Overlap of one class, 2|A∩B| / (|A|+|B|): 1 is perfect, 0 is none."
    a, b = prediction == class_id, label == class_id
    return (2 * (a & b).sum() / (a.sum() + b.sum())).item()

def mean_dsc(prediction, label):
    return np.mean([dsc(prediction, label, class_id) for class_id in range(1, len(NAMES))])


# %%
image, scribble, label = phantom_slice(field=224, side=96, index=3)
start = torch.zeros(1, 4, 96, 96, requires_grad=True)  # undecided everywhere
(pull,) = torch.autograd.grad(partial_cross_entropy(start, scribble, ignore=IGNORE), start)
pull = pull.abs().sum(1)[0]
logits = train(image, scribble)
prediction, drawn = logits.argmax(1), scribble != IGNORE
loss = partial_cross_entropy(logits, scribble, ignore=IGNORE)

# %%
figure, axes = panels(4)
gray = image[0, 0].numpy()
draw(axes[0], gray, scribble=scribble[0].numpy(), ignore=IGNORE,
     title=f"strokes: {100 * drawn.float().mean():.1f} % of the pixels")
colours = plt.get_cmap("viridis").with_extremes(bad="black")
axes[1].imshow(pull.where(pull > 0, torch.nan), cmap=colours, vmin=0, interpolation="nearest")
axes[1].set_title("where the loss pulls (black: nowhere)", fontsize=9)
draw(axes[2], gray, label=prediction[0].numpy(),
     title=f"learnt: loss {loss:.4f}, DSC {mean_dsc(prediction, label):.2f}")
draw(axes[3], gray, label=label[0].numpy(), title="the label nobody showed")
class_legend(figure, NAMES)

# %% [markdown]
# The strokes are learnt and the loss is almost zero. Elsewhere nothing holds the network, and organs turn up far from the heart. The loss
# cannot see that: it reads annotated pixels only.

# %%
assert (prediction == scribble)[drawn].float().mean() > 0.99 and loss < 0.01  # the strokes: learnt
assert mean_dsc(prediction, label) < 0.7  # the organs: not
assert pull[drawn[0]].gt(0).all() and pull[~drawn[0]].eq(0).all()


# %% [markdown]
# ## Equation 1
#
# Let $\Omega_L$ be the annotated pixels. The surprise at a pixel is minus the logarithm of the probability that the network gives to
# the annotated class; the loss is its mean over $\Omega_L$:
#
# $$l_{seg}(P, Y_s) = -\frac{1}{|\Omega_L|}\sum_{p\in\Omega_L}\log P_p^{Y_s[p]} \tag{1}$$
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $P_p^c$ | `probs = logits.softmax(1)` | [N,C,H,W] | probability |
# | $Y_s$ | `scribble` | [N,H,W] | class id, or `ignore` ($l_U$ in the paper) |
# | $\Omega_L$ | `labelled = scribble != ignore` | [N,H,W] | true or false |
# | $l_{seg}$ | the result | scalar | nats |

# %% [markdown]
# ## Naive code
#
# Every sum is a loop.

# %%
def naive_pce(probs, scribble, ignore):
    total, count = 0.0, 0
    for n, y, x in np.ndindex(*scribble.shape):
        if scribble[n, y, x] != ignore:
            total = total - probs[n, scribble[n, y, x], y, x].log()
            count = count + 1
    return total / count


# %% [markdown]
# ## Check by hand
#
# Take 2×2 pixels of which three are annotated. The network gives the annotated classes ½, ¼ and ⅛. Their surprises
# are ln 2, 2 ln 2 and 3 ln 2, and the mean is **2 ln 2 ≈ 1.386**. The fourth pixel, 9 to 1 in favour of class 0, does not count.

# %%
first = torch.tensor([[1 / 2, 1 / 4], [1 / 8, 9 / 10]]).double()
by_hand_probs = torch.stack([first, 1 - first])[None]  # two classes: [1,2,2,2]
by_hand_scribble = torch.tensor([[[0, 0], [0, 2]]])  # ignore = 2
assert_close(naive_pce(by_hand_probs, by_hand_scribble, ignore=2), torch.tensor(2 * np.log(2)))

# %% [markdown]
# The naive code fails in two cases. A confident mistake has a probability that rounds to 0, whose logarithm is −∞, and the gradient is no number.
# And a batch without a stroke divides 0 by 0: an error here, NaN in PyTorch's own form.

# %%
confident = torch.tensor([0.0, 200.0]).view(1, 2, 1, 1).requires_grad_()
broken = naive_pce(confident.softmax(1), torch.zeros(1, 1, 1).long(), ignore=2)
assert broken.isinf() and torch.autograd.grad(broken, confident)[0].isnan().any()

unannotated = torch.full((1, 2, 2), 2)
try:
    naive_pce(by_hand_probs, unannotated, ignore=2)
    raise AssertionError("0 / 0 passed")
except ZeroDivisionError:
    pass
assert F.cross_entropy(by_hand_probs, unannotated, ignore_index=2).isnan()


# %% [markdown]
# ## The code
#
# Four decisions. Softmax and logarithm are one function, in float32 or better. Without a stroke the loss is 0 and so is its
# gradient. `reduction="image"` gives each annotated image the same weight, however much was drawn on it. And no value is read
# back from the device, with `.item()` or a boolean index, because a GPU would have to finish all its work first.

# %%
#| export
@batch_loss
def partial_cross_entropy(
    logits: Tensor,  # [N,C,H,W] float, finite
    scribble: Tensor,  # [N,H,W] int64: class id in 0 … C−1, or `ignore`
    *,
    ignore: int,  # value of an unannotated pixel, no class id: the dataset's, never a literal
    reduction: str = "batch",  # mean over Ω_L of the "batch"; of each "image", or each "class" of it, then over these
) -> BatchMean:  # called plainly, a tensor: [] float32, or float64 for float64 logits
    """Cross-entropy averaged over the annotated pixels Ω_L: eq. 1 of the AttenScribble paper.

    Half-precision logits are raised to float32 before the logarithm. Without an annotated pixel the loss is exactly 0
    and so is its gradient. `partial_cross_entropy.of_batch` gives the `BatchMean` that a loss term returns. Never waits
    for the device. Raises TypeError or ValueError for a wrong dtype, shape or option; a class id outside 0 … C−1 is
    found on the CPU only, because looking for one on a GPU would wait for it.
    """
    _check(logits, scribble, ignore, reduction)
    _check_classes(scribble, logits.shape[1], ignore)
    labelled = scribble != ignore  # [N,H,W] bool: Ω_L
    precise = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits.log_softmax(1, dtype=precise)  # [N,C,H,W]
    # reduction "none", then a plain sum: the built-in sum and mean are not deterministic on a GPU
    surprise = F.nll_loss(log_probs, scribble, ignore_index=ignore, reduction="none")  # [N,H,W], 0 outside Ω_L
    if reduction == "batch":
        return ratio(surprise.sum(), labelled.sum())
    if reduction == "class":
        return _mean_of_classes(surprise, scribble, logits.shape[1], labelled)
    pixels = labelled.sum((1, 2))  # [N]
    return ratio((surprise.sum((1, 2)) / pixels.clamp(min=1)).sum(), (pixels > 0).sum())


# %% [markdown]
# A stroke through the liver is long, one through a kidney short. With `reduction="class"` each class that was drawn in the batch counts alike.

# %%
#| export
def _mean_of_classes(surprise: Tensor, scribble: Tensor, classes: int, labelled: Tensor) -> BatchMean:
    "The mean over the annotated pixels of each class, then over the classes that the whole batch shows."
    member = F.one_hot(scribble.where(labelled, 0), classes) * labelled[..., None]  # [N,H,W,C]
    totals, pixels = (surprise[..., None] * member).sum((0, 1, 2)), member.sum((0, 1, 2))

    def mean(group: Group) -> Tensor:
        counts = group.sum(pixels)
        return (group.sum(totals) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)

    return common(mean)


# %%
#| export
def _check(logits: Tensor, scribble: Tensor, ignore: int, reduction: str) -> None:
    "Raise TypeError or ValueError for a dtype, shape or option that eq. 1 does not cover."
    if reduction not in ("batch", "image", "class"):
        raise ValueError(f'reduction: found {reduction!r}, expected "batch", "image" or "class"')
    if not logits.is_floating_point():
        raise TypeError(f"logits: found dtype {logits.dtype}, expected floats")
    if logits.ndim != 4:
        raise ValueError(f"logits: found shape {tuple(logits.shape)}, expected [N,C,H,W]")
    if scribble.dtype != torch.int64:
        raise TypeError(f"scribble: found dtype {scribble.dtype}, expected torch.int64")
    count, classes, *sides = logits.shape
    if scribble.shape != (count, *sides):
        raise ValueError(f"scribble: found shape {tuple(scribble.shape)}, expected {(count, *sides)} like the logits")
    if 0 <= ignore < classes:
        raise ValueError(f"ignore: found {ignore}, which is one of the {classes} classes; expected another number")


# %%
#| export
def _check_classes(scribble: Tensor, classes: int, ignore: int) -> None:
    "Raise ValueError for class ids that do not exist; where finding them would wait for a device, nothing is checked."
    if scribble.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = (scribble != ignore) & ((scribble < 0) | (scribble >= classes))
        if wrong.any():
            found = scribble[wrong].unique().tolist()
            raise ValueError(f"scribble: found class ids {found}, expected 0 … {classes - 1} or ignore={ignore}")


# %% [markdown]
# `ignore` has no default and cannot be a class. The number 4 is right for ACDC, which has the classes 0 to 3. In CHAOS class 4 is the spleen,
# and a built-in 4 would leave it out without an error.

# %%
try:
    partial_cross_entropy(torch.zeros(1, 5, 2, 2), torch.full((1, 2, 2), 4), ignore=4)
    raise AssertionError("the spleen was ignored")
except ValueError as error:
    assert "ignore: found 4, which is one of the 5 classes" in str(error)

# %% [markdown]
# ## Equal, and at what cost

# %%
torch.manual_seed(0)
logits8 = torch.randn(2, 4, 8, 8)
scribble8 = torch.randint(4, (2, 8, 8)).masked_fill(torch.rand(2, 8, 8) > 0.2, 4)
assert_same(lambda z: partial_cross_entropy(z, scribble8, ignore=4),
            lambda z: naive_pce(z.softmax(1), scribble8, ignore=4), logits8)
assert_same(lambda z: partial_cross_entropy(z, scribble8, ignore=4, reduction="image"),
            lambda z: sum(naive_pce(z[[n]].softmax(1), scribble8[[n]], ignore=4) for n in (0, 1)) / 2, logits8)
assert_same(lambda z: partial_cross_entropy(z, scribble8, ignore=4, reduction="class"),
            lambda z: sum(naive_pce(z.softmax(1), scribble8.where(scribble8 == c, 4), ignore=4) for c in range(4)) / 4,
            logits8)

assert partial_cross_entropy(confident, torch.zeros(1, 1, 1).long(), ignore=2) == 200
nothing = partial_cross_entropy(confident, torch.full((1, 1, 1), 2), ignore=2)
assert nothing == 0 and torch.autograd.grad(nothing, confident)[0].eq(0).all()


# %%
def step(loss, side):
    z = torch.zeros(12, 4, side, side, requires_grad=True)
    y = torch.zeros(12, side, side, dtype=torch.int64)
    return lambda: torch.autograd.grad(loss(z, y), z)

print("slow, 12×16², gradient included:", cost(step(lambda z, y: naive_pce(z.softmax(1), y, 4), 16)))
print("fast, 12×256², gradient included:", cost(step(lambda z, y: partial_cross_entropy(z, y, ignore=4), 256)))

# %% [markdown]
# ## One vote per pixel or per image?
#
# Two images: one annotated pixel in the first, where the network is wrong, and ninety-nine in the second, where it is right. By pixel
# the mistake weighs 1/100, by image ½. Equation 1 and the released code count pixels, over the whole batch.

# %%
right, wrong = 0.0, 10.0  # surprise, nats
two = torch.zeros(2, 2, 10, 10)
two[0, 1], two[1, 0] = wrong, 30.0
strokes = torch.full((2, 10, 10), 2)
strokes[0, 0, 0], strokes[1].view(-1)[:99] = 0, 0
by_pixel, by_image = (partial_cross_entropy(two, strokes, ignore=2, reduction=name) for name in ("batch", "image"))
assert_close(by_pixel, torch.tensor(wrong / 100), atol=1e-4, rtol=0)
assert_close(by_image, torch.tensor(wrong / 2), atol=1e-4, rtol=0)

# %% [markdown]
# ## On a real scan
#
# Can an absurd prediction have a loss of 0? Take ACDC's first patient and predict the right class on every stroke and
# "left ventricle" everywhere else.

# %%
root = Path(os.environ.get("ATTENSCRIBBLE_DATA", "")) / "acdc"
if root.is_dir():
    case = (dataset := acdc(root)).read("patient001")[0]
    strokes, truth = (torch.from_numpy(ids).long() for ids in (case.scribble, case.label))
    annotated = strokes != dataset.ignore
    absurd = strokes.where(annotated, 3)
    certain = 100 * F.one_hot(absurd, dataset.classes).movedim(-1, 1).float()
    value = partial_cross_entropy(certain, strokes, ignore=dataset.ignore)
    assert value == 0 and dsc(absurd, truth, 3) < 0.2
    print(f"{case.name}: {100 * annotated.float().mean():.2f} % annotated,",
          f"{(strokes != truth)[annotated].sum()} of {annotated.sum()} pixels against the label;",
          f"absurd answer: loss {value:.0f}, DSC of the left ventricle {dsc(absurd, truth, 3):.2f}")
else:
    print("skipped: set ATTENSCRIBBLE_DATA to the folder that holds acdc/")

# %% [markdown]
# This shows what the loss permits, not what training does: a convolutional network generalises from the strokes, but
# not far enough. For this loss alone the paper's Table 1 reports a DSC of 0.62 and an HD95 of 173 mm, for dense labels 0.91 and 5 mm.

# %% [markdown]
# ## Slider: is 1 % too little, or in the wrong place?
#
# The same network on a closer view of the heart. Now the annotated pixels are chosen at random from the dense label, all over the slice.
# For comparison, the last panel below learns from strokes.

# %%
close_image, close_strokes, close_label = phantom_slice(field=96, side=64, index=2)

def scatter(share):
    generator = torch.Generator().manual_seed(0)
    return close_label.masked_fill(torch.rand(close_label.shape, generator=generator) > share, IGNORE)

def plot_learnt(axis, annotated, name):
    prediction = train(close_image, annotated).argmax(1)
    score, share = mean_dsc(prediction, close_label), (annotated != IGNORE).float().mean()
    draw(axis, close_image[0, 0].numpy(), label=prediction[0].numpy(), outline=close_label[0].numpy(),
         title=f"{name}, {100 * share:.1f} %: DSC {score:.2f}")
    return score


# %%
def show_share(percent):
    figure, (axis,) = panels(1, size=3)
    plot_learnt(axis, scatter(percent / 100), "scattered")
    class_legend(figure, NAMES)

interact(show_share, percent=(1, 100, 1));

# %%
figure, axes = panels(5)
shares = (0.002, 0.01, (close_strokes != IGNORE).float().mean(), 1)  # the third: as many as the strokes have
scores = [plot_learnt(axis, scatter(share), "scattered") for axis, share in zip(axes[:4], shares, strict=True)]
stroke_score = plot_learnt(axes[4], close_strokes, "strokes")
class_legend(figure, NAMES)
assert scores == sorted(scores) and scores[2] > stroke_score + 0.1


# %% [markdown]
# The outlines are the label. The same number of pixels teaches far more when they are scattered: some lie beside a border, some far from the
# heart. Strokes lie in the middle of organs and near the heart, so the loss never learns where an organ ends, nor
# that the chest wall is not heart. The image itself shows borders, and [the masked CRF](32_mcrf.ipynb) uses them.

# %% [markdown]
# ## Exercises
#
# 1. *Predict.* What is the loss of a network that is undecided between `classes` classes, whatever was drawn?

# %%
def check_undecided(predict):
    for classes in (2, 4, 5):
        z, y = torch.zeros(1, classes, 3, 3).double(), torch.randint(classes, (1, 3, 3))
        assert np.isclose(predict(classes), partial_cross_entropy(z, y, ignore=classes).item())

def attempt_undecided(classes):
    return 0.0  # your prediction here

exercise(check_undecided, attempt_undecided, solution=np.log)


# %% [markdown]
# 2. *Implement.* The gradient in the logits has a closed form: on an annotated pixel $(P_p^c - [c = Y_s[p]])/|\Omega_L|$,
#    elsewhere 0. Write it without autograd.

# %%
def check_gradient(gradient):
    z = logits8.double().requires_grad_()
    (expected,) = torch.autograd.grad(partial_cross_entropy(z, scribble8, ignore=4), z)
    assert_close(gradient(z.detach(), scribble8, 4), expected)

def attempt_gradient(logits, scribble, ignore):
    return torch.zeros_like(logits)  # your code here

def solve_gradient(logits, scribble, ignore):
    labelled = scribble != ignore
    target = F.one_hot(scribble.where(labelled, 0), logits.shape[1]).movedim(-1, 1)
    return (logits.softmax(1) - target) * labelled[:, None] / labelled.sum()

exercise(check_gradient, attempt_gradient, solve_gradient)


# %% [markdown]
# 3. *Break.* Find logits for the phantom slice above with a loss below 0.001 and a DSC of 0 for the left ventricle (class 3)
#    outside of the strokes.

# %%
def check_blind_spot(answer):
    z = answer(scribble, 4)
    assert partial_cross_entropy(z, scribble, ignore=IGNORE) < 0.001, "the loss notices"
    assert dsc(z.argmax(1)[~drawn], label[~drawn], 3) == 0, "some of the ventricle is found"

def attempt_blind_spot(scribble, classes):
    return torch.zeros(1, classes, *scribble.shape[1:])  # your code here

def solve_blind_spot(scribble, classes):
    painted = scribble.where(scribble < classes, 0)
    return 20 * F.one_hot(painted, classes).movedim(-1, 1).float()

exercise(check_blind_spot, attempt_blind_spot, solve_blind_spot)


# %% [markdown]
# 4. *Implement.* The background's strokes are the longest, so they dominate the mean. Give each class that was drawn the same weight:
#    take the mean surprise of each of these classes, then the mean over the classes. Use `partial_cross_entropy` itself.

# %%
def check_class_votes(loss):
    ids = scribble8[scribble8 != 4]
    surprise = F.cross_entropy(logits8.movedim(1, -1)[scribble8 != 4], ids, reduction="none")
    expected = torch.stack([surprise[ids == c].mean() for c in ids.unique()]).mean()
    assert_close(loss(logits8, scribble8, 4), expected)

def attempt_class_votes(logits, scribble, ignore):
    return partial_cross_entropy(logits, scribble, ignore=ignore)  # change this

def solve_class_votes(logits, scribble, ignore):
    present = scribble[scribble != ignore].unique()
    return sum(partial_cross_entropy(logits, scribble.where(scribble == c, ignore), ignore=ignore)
               for c in present) / len(present)

exercise(check_class_votes, attempt_class_votes, solve_class_votes)

# %% [markdown]
# ## Recap
#
# Exported: `partial_cross_entropy`, the only term of the method pCE and the first of most others.
#
# Surprising: a loss of zero says next to nothing about the pixels nobody drew on; and what strokes lack is not so much the number of
# pixels as the right places, beside borders and far from the heart.
#
# Next: [the masked CRF](32_mcrf.ipynb), which uses the image where there are no strokes.
