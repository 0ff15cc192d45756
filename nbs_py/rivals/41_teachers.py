# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Teachers
#
# > A running average of a network in training, and what it can teach the network that it averages.
#
# From step to step the weights of a network in training jump about, and its predictions with them. The average of many
# steps is steadier, and where it is sure, it may serve as a target for pixels that nobody annotated. This chapter
# builds such a teacher and two methods that use one: the first asks the network to agree with it, the second takes
# labels from it.

# %%
#| default_exp rivals.teachers

# %%
#| export
import copy
import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

# %%
#| export
from attenscribble.basics.distributed import BatchMean, all_reduce, common, ratio, sharded_noise
from attenscribble.method.objective import SEGMENTATION, LossContext, Method, Term, dense_loss, register, rise
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.method.switches import Switches

# %%
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.batches import Batch, SliceStore, resize_image
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom
from attenscribble.method.network import UNet2d
from attenscribble.method.switches import MethodSwitches
from attenscribble.runs.metrics import dice

# %% [markdown]
# ## Is a network's average wiser than the network?
#
# A small network learns from the strokes on four phantom slices, with a large learning rate so that its weights jump
# about. A teacher averages its weights. Every third step both predict the same four slices. (`Ema` comes from the
# finished module; the chapter builds it below.)

# %%
from attenscribble.rivals.teachers import Ema as Average

data = phantom(patients=5)
NAMES, IGNORE, SIDE = data.class_names, data.ignore, 64
cases = [data.read(patient)[0] for patient in data.patients[:4]]
planes = [SimpleNamespace(name=c.name, image=c.image[3:4], scribble=c.scribble[3:4], label=c.label[3:4]) for c in cases]
store = SliceStore(planes, classes=4, ignore=IGNORE)
batch = store.batch(torch.arange(4), SIDE)
truth = SliceStore(planes, classes=4, ignore=IGNORE, target="label").batch(torch.arange(4), SIDE).target


# %%
def mean_dsc(logits):
    "Mean DSC of the organs over the batch."
    found = logits.argmax(1).numpy()
    return np.nanmean([dice(found == c, truth.numpy() == c) for c in range(1, 4)])


# %%
def learn(decay, steps=90, lr=0.02):
    "A network and its teacher after some steps, and the DSC of both every third step."
    torch.manual_seed(0)
    model, scores = UNet2d(1, 4, channels=(8, 16, 32), dropout=(0.0, 0.1, 0.3)), []
    teacher, optimiser = Average(model, decay, training=False), torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        optimiser.zero_grad()
        partial_cross_entropy(model(batch.image), batch.target, ignore=IGNORE).backward()
        optimiser.step()
        teacher.follow(model, step)
        if step % 3 == 0:
            with torch.no_grad():
                scores.append((step, mean_dsc(model.eval()(batch.image)), mean_dsc(teacher(batch.image))))
            model.train()
    return model, teacher, np.array(scores)


# %%
model, teacher, scores = learn(0.9)
figure, axis = plt.subplots(figsize=(5, 2.5), layout="constrained")
axis.plot(scores[:, 0], scores[:, 1], color="#999999", label="network")
axis.plot(scores[:, 0], scores[:, 2], color="#0072B2", label="teacher, α = 0.9")
axis.set(xlabel="step", ylabel="mean DSC (eval mode)")
axis.legend(frameon=False, fontsize=8);

# %%
jumps = np.abs(np.diff(scores[10:, 1:], axis=0)).mean(0)
print(f"mean jump from one look to the next: network {jumps[0]:.3f}, teacher {jumps[1]:.3f}")
assert jumps[1] < jumps[0]


# %% [markdown]
# ## A running average of networks
#
# After each step the teacher's weights move a little towards the network's:
#
# $$\theta'_t = \alpha_t\,\theta'_{t-1} + (1-\alpha_t)\,\theta_t,\qquad \alpha_t=\min\big(1-\tfrac1{t+1},\,\alpha\big)$$
#
# (Tarvainen and Valpola 2017.) In the first step $\alpha_0=0$: the teacher is the network. Then it is the plain mean of
# all networks so far, for the first $1/(1-\alpha)$ steps; from then on older networks count less and less. By hand,
# with weights 0, 1, 5: first 0, then ½·0+½·1=½, then ⅔·½+⅓·5=2, the mean of the three.
#
# Batch norm's running statistics are not weights. In the released code the teacher gathers its own; we copy the
# network's, so that the teacher can also be asked in evaluation mode.

# %%
#| export
class Ema(nn.Module):
    "A teacher: the exponential moving average of a network in training (Tarvainen and Valpola 2017)."

    def __init__(
        self,
        model: nn.Module,  # the network at its start; a copy of it is made
        decay: float = 0.99,  # α, in [0,1)
        *,
        buffers: bool | str = True,  # batch norm's statistics: copy the network's at each step, or "average" them too
        training: bool = True,  # mode in which it is asked: True with dropout and batch statistics
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(model).requires_grad_(False).train(training)
        self.decay, self.buffers_follow = decay, buffers

    def forward(
        self,
        image: Tensor,  # [N,K,H,W]
    ) -> Tensor:  # [N,C,H,W] logits
        return self.network(image)

    @torch.no_grad()
    def follow(
        self,
        model: nn.Module,  # the network after its step
        step: int,  # iterations done before that step
    ) -> None:
        "Move towards the network."
        ours: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(model.parameters())
        pairs = list(zip(self.network.buffers(), model.buffers(), strict=True)) if self.buffers_follow else []
        for mine, new in pairs:
            if self.buffers_follow == "average" and mine.is_floating_point():
                ours, theirs = [*ours, mine], [*theirs, new]
            else:
                mine.copy_(new)
        torch._foreach_lerp_(ours, theirs, 1 - min(1 - 1 / (step + 1), self.decay))  # all of them in one call


# %%
network, walk = nn.Linear(1, 1, bias=False), [0.0, 1.0, 5.0]
teacher = Ema(network)
for step, value in enumerate(walk):
    nn.init.constant_(network.weight, value)
    teacher.follow(network, step)
assert math.isclose(teacher.network.weight.item(), 2.0, rel_tol=1e-6)


# %% [markdown]
# ## USTM: agree with a teacher who is sure
#
# Liu et al. (2022). Turn the batch by a random number of quarter turns $R$, add noise, and let the teacher predict it.
# The network saw neither turn nor noise; its own prediction $P$, turned, should equal the teacher's $P'$ where the
# teacher is sure. Sure means: over $T=8$ more passes with other noise and dropout, the mean prediction $\bar p$ has a
# low entropy $u$.
#
# $$u=-\sum_c \bar p_c\log\bar p_c,\qquad
# l=\frac{\sum_{p} [u_p<\kappa_t]\,\lVert (R\,P)_p-P'_p\rVert^2}{2\sum_p[u_p<\kappa_t]},\qquad
# \kappa_t=\big(\tfrac34+\tfrac14\rho(t)\big)\,u_{max}$$
#
# with $\rho(t)=e^{-5(1-t)^2}$, where $t$ is the fraction of the run that is done. The term's weight is $\rho(t)$, too.

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $P'$, $\bar p$ | `predicted`, `mean` | [N,C,H,W] | probability |
# | $u$ | `uncertainty(mean)` | [N,1,H,W] | nat |
# | $u_{max}$ | `log C` | scalar | nat; the released code has ln 2, a leftover of a two-class problem |
#
# By hand: four classes, all alike, $u=\ln 4=1.39$; one certain, $u=0$. The released bound begins at $0.75\ln2=0.52$,
# and a pixel undecided between two classes ($u=0.69$) does not count before the very end of the run; ours begins at
# $0.75\ln4=1.04$, and it does.

# %%
#| export
def uncertainty(
    probs: Tensor,  # [N,C,H,W]
) -> Tensor:  # [N,1,H,W] entropy in nat, 0 … ln C
    "How undecided a prediction is."
    return -(probs * (probs + 1e-6).log()).sum(1, keepdim=True)


# %%
#| export
def _noisy(image: Tensor) -> Tensor:
    "With noise of standard deviation 0.1, cut at ±0.2 (released)."
    noise = sharded_noise(lambda count: torch.randn(count, *image.shape[1:], device=image.device), len(image))
    return image + (0.1 * noise).clamp(-0.2, 0.2)


# %%
#| export
class UstmSwitches(Switches):
    "The switches of the method `ustm`."

    passes: int = Field(8, ge=1, description="T, noisy passes behind the uncertainty (WSL4MIS)")
    decay: float = Field(0.99, ge=0, lt=1, description="of the teacher (WSL4MIS)")
    two_classes: bool = Field(False, description="largest uncertainty ln 2 instead of ln C")
    buffers: bool = Field(True, description="the teacher gets the network's batch norm statistics")
    released: ClassVar[dict[str, Any]] = {"two_classes": True, "buffers": False}


# %%
#| export
def _ustm_teacher(model: nn.Module, options: UstmSwitches) -> Ema:
    "A teacher that is asked with dropout on: its passes differ."
    return Ema(model, options.decay, buffers=options.buffers, training=True)


# %%
#| export
def _ask_noisy(context: LossContext, image: Tensor) -> Tensor:
    "The teacher's probabilities [N,C,H,W] for a batch with noise."
    return context.ask(context.teacher, _noisy(image)).softmax(1)


# %%
#| export
def _is_sure(context: LossContext, mean: Tensor) -> Tensor:
    "[N,1,H,W] bool: where a mean prediction is less uncertain than the bound, which rises during the run."
    largest = math.log(2 if context.options.two_classes else mean.shape[1])
    progress = context.step / context.iterations
    return uncertainty(mean) < (0.75 + 0.25 * rise()(progress)) * largest


# %%
#| export
def consistency_term(
    context: LossContext,  # with a teacher; its options are `UstmSwitches`
) -> BatchMean:  # of a loss in 0 … 1
    "USTM's consistency with the teacher where it is sure; notes the fraction of such pixels."
    passes, turns = context.options.passes, int(torch.randint(4, ()))
    image = context.batch.image.rot90(turns, (2, 3))
    predicted = _ask_noisy(context, image)
    mean = torch.zeros_like(predicted)
    for _ in range(passes):
        mean += _ask_noisy(context, image) / passes
    sure = _is_sure(context, mean)
    context.notes["sure"] = ratio(sure.sum(), sure.numel())
    gap = (context.probs.rot90(turns, (2, 3)) - predicted).square()
    return ratio((gap * sure).sum(), 2 * sure.sum())


# %%
#| export
register(Method("ustm", "USTM", "Liu et al. 2022; WSL4MIS, ustm_2D",
                (SEGMENTATION, Term("consistency", consistency_term, ramp=rise())),
                options=UstmSwitches, teacher=_ustm_teacher))


# %% [markdown]
# ### What it looks like
#
# The network of the first picture in place of a teacher: the mean of eight noisy passes with dropout, its entropy, and
# the pixels that count under the two bounds at the start of a run. Black pixels are left out.

# %%
def noisy_mean(network, image, passes=8):
    "The mean prediction of some noisy passes with dropout, [N,C,H,W]."
    torch.manual_seed(0)
    with torch.no_grad():
        return sum(network.train()(_noisy(image)).softmax(1) for _ in range(passes)) / passes


# %%
def plot_sure(image, mean, title):
    "Image, most probable class, its uncertainty, and the pixels below the bounds of ln 4 and of ln 2."
    doubt = uncertainty(mean)[0, 0]
    figure, axes = panels(5, size=2.2)
    draw(axes[0], image[0, 0], title=title)
    draw(axes[1], image[0, 0], label=mean.argmax(1)[0].numpy(), title="mean prediction")
    shown = axes[2].imshow(doubt, cmap="viridis", vmin=0, vmax=math.log(4), interpolation="nearest")
    axes[2].set_title("uncertainty u", fontsize=9)
    figure.colorbar(shown, ax=axes[2], shrink=0.7, label="nat")
    for axis, largest in zip(axes[3:], (4, 2), strict=True):
        sure = doubt < (0.75 + 0.25 * rise()(0)) * math.log(largest)
        axis.imshow(sure, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"sure, bound of ln {largest}: {sure.float().mean():.0%}", fontsize=9)
    class_legend(figure, NAMES)


# %%
plot_sure(batch.image[:1], noisy_mean(model, batch.image)[:1], "phantom")

# %% [markdown]
# The same network has never seen a real scan. How sure is it there?

# %%
try:
    heart = open_dataset("acdc")
except (ValueError, OSError) as error:
    print(f"skipped, no ACDC here: {str(error).splitlines()[0]}")
else:
    real = heart.read(heart.patients[0])[0]
    planes = resize_image(torch.tensor(real.image[3:7]), SIDE)[:, None]
    doubts = [uncertainty(noisy_mean(model, x)).mean().item() for x in (planes, batch.image)]
    print(f"mean uncertainty on {real.name}: {doubts[0]:.2f} nat, on the phantom {doubts[1]:.2f}")
    plot_sure(planes[1:2], noisy_mean(model, planes)[1:2], real.name)


# %% [markdown]
# ## ScribbleVS: learn from the one that fits the strokes better
#
# Wang et al. (2024), a method newer than the paper. Network and teacher both predict the batch. The one with the lower
# partial cross-entropy on its strokes provides labels for all pixels where its probability exceeds $\tau=\frac12$. The
# network learns them with half cross-entropy, half Dice, at a weight that rises over the first fifth of the run:
#
# $$\hat Y=\begin{cases}\arg\max_c P^\star_c & \max_c P^\star_c>\tau\\ \text{unknown}&\text{else}\end{cases},\qquad
# P^\star=\begin{cases}P' & l_{seg}(P')<l_{seg}(P)\\ P&\text{else}\end{cases}$$

# %%
#| export
class CompetitionSwitches(Switches):
    "The switches of the method `scribblevs`."

    threshold: float = Field(0.5, gt=0, lt=1, description="τ: probability above which a class is a label (released)")
    decay: float = Field(0.99, ge=0, lt=1, description="of the teacher (released)")
    eval_mode: bool = Field(True, description="ask the teacher in eval mode; false: dropout and batch statistics on")
    released: ClassVar[dict[str, Any]] = {"eval_mode": False}


# %%
#| export
def _competition_teacher(model: nn.Module, options: CompetitionSwitches) -> Ema:
    "A teacher whose predictions are labels."
    return Ema(model, options.decay, training=not options.eval_mode)


# %%
#| export
def firm_labels(
    probs: Tensor,  # [N,C,H,W]
    threshold: float,  # τ in 0 … 1
    ignore: int,  # value of pixels without a label
) -> Tensor:  # [N,H,W] int64
    "The most probable class where its probability is above the threshold, else `ignore`."
    best = probs.max(1)
    return best.indices.where(best.values > threshold, ignore)


# %%
#| export
def competition_term(
    context: LossContext,  # with a teacher; its options are `CompetitionSwitches`
) -> BatchMean:  # of a loss ≥ 0
    "Labels from network or teacher, from the one with the lower loss on this batch's strokes; notes which one."
    batch, theirs = context.batch, context.ask(context.teacher, context.batch.image)
    losses = [partial_cross_entropy.of_batch(logits, batch.target, ignore=batch.ignore).share()
              for logits in (theirs, context.logits.detach())]
    wins = all_reduce(losses[0] - losses[1]) < 0  # over the whole batch: every process takes the same labels
    context.notes["teacher_wins"] = common(lambda _: wins.float())
    probs = torch.where(wins, theirs.softmax(1), context.probs.detach())
    labels = firm_labels(probs, context.options.threshold, batch.ignore)
    return dense_loss.of_batch(context.logits, labels, ignore=batch.ignore)


# %%
#| export
register(Method("scribblevs", "ScribbleVS", "Wang et al. 2024, arXiv:2411.10237, its released rule",
                (SEGMENTATION, Term("competition", competition_term, ramp=rise(0.2))),
                options=CompetitionSwitches, teacher=_competition_teacher))

# %% [markdown]
# The two losses are compared over the whole batch. Where several processes share it, each holds a share of either loss,
# and the shares are added up first ([chapter 05](../basics/05_distributed.ipynb)).
#
# By hand: probabilities (0.6, 0.4) and τ = ½ give class 0; (0.4, 0.35, 0.25) gives no label. And in a batch where the
# teacher fits the strokes better, its prediction is the label everywhere.

# %%
answers = torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.35, 0.25]]).T.view(1, 3, 1, 2)
assert firm_labels(answers, 0.5, ignore=9).flatten().tolist() == [0, 9]

# %%
right, wrong = torch.tensor([4.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2), torch.tensor([0.0, 4.0]).view(1, 2, 1, 1)
marks = torch.tensor([[[0, 2], [2, 2]]])
scene = Batch(torch.zeros(1, 1, 2, 2), marks, torch.tensor([True]), torch.tensor([0]), ignore=2)
context = LossContext(wrong.expand(1, 2, 2, 2), scene, MethodSwitches(), teacher=lambda image: right,
                      options=CompetitionSwitches())
taught = dense_loss(context.logits, torch.zeros(1, 2, 2, dtype=torch.long), ignore=2)
torch.testing.assert_close(competition_term(context).mean(), taught)
assert context.notes["teacher_wins"].mean() == 1


# %% [markdown]
# Two things of the released code are left out: it shrinks the network's weights by a further 2·10⁻⁴ a step, and it asks
# the teacher with dropout on (`method_eval_mode=False` brings the second back).
#
# ## How long a memory?

# %%
def plot_memory(decays):
    "The teacher's DSC along the way for some α."
    _, axis = plt.subplots(figsize=(5, 2.5), layout="constrained")
    for decay, colour in zip(decays, ("#E69F00", "#0072B2", "#D55E00", "#009E73"), strict=False):
        scores = learn(decay, steps=60)[2]
        axis.plot(scores[:, 0], scores[:, 2], color=colour, label=f"α = {decay:g}")
    axis.set(xlabel="step", ylabel="mean DSC of the teacher")
    axis.legend(frameon=False, fontsize=8)
    plt.show()


plot_memory((0.0, 0.9, 0.99))

# %%
interact(lambda decay=0.9: plot_memory([decay]), decay=(0.0, 0.99, 0.03));


# %% [markdown]
# With α = 0 the teacher is the network. With α = 0.99 and 60 steps it is the mean of all networks since the start, the
# poor first ones included.
#
# ## Exercises
#
# **1. Predict.** The network's only weight jumps from 0 to 1 and stays there. Where is the teacher's, with a constant
# α, after n more steps?

# %%
def check_distance(f):
    for alpha, steps in ((0.5, 3), (0.99, 69)):
        value = 0.0
        for _ in range(steps):
            value = alpha * value + (1 - alpha)
        assert math.isclose(f(alpha, steps), value)

def my_distance(alpha, steps):
    ...  # your code here

exercise(check_distance, my_distance, solution=lambda alpha, steps: 1 - alpha**steps)


# %% [markdown]
# **2. Implement** the consistency of USTM for two maps and a mask of sure pixels, without the guard against no sure
# pixel.

# %%
def check_gap(f):
    ours, theirs = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    sure = torch.rand(2, 1, 4, 4) < 0.7
    by_loops = sum(((ours[n, :, y, x] - theirs[n, :, y, x]) ** 2).sum()
                   for n in range(2) for y in range(4) for x in range(4) if sure[n, 0, y, x]) / (2 * sure.sum())
    torch.testing.assert_close(f(ours, theirs, sure), by_loops)

def my_gap(ours, theirs, sure):
    return (ours - theirs).square().mean()  # improve this

exercise(check_gap, my_gap, solution=lambda ours, theirs, sure: ((ours - theirs) ** 2 * sure).sum() / (2 * sure.sum()))


# %% [markdown]
# **3. Break.** Return three-class probabilities [1,3,1,1] with an uncertainty above ln 2, so that they never count
# under a bound made for two classes.

# %%
def check_lost(f):
    probs = f()
    assert probs.shape == (1, 3, 1, 1) and math.isclose(probs.sum(), 1, rel_tol=1e-6)
    assert uncertainty(probs).item() > math.log(2)

def my_lost():
    return torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)  # your numbers here

exercise(check_lost, my_lost, solution=lambda: torch.full((1, 3, 1, 1), 1 / 3))

# %% [markdown]
# ## Recap
#
# `Ema` is the teacher of both methods: `ustm` asks for agreement with it, `scribblevs` takes labels from it.
# Surprising: the released bound of USTM leaves out all pixels that are undecided between three classes.
# [Next](42_branches.ipynb): a second prediction without a second network.
