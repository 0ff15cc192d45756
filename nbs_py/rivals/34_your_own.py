# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A row of your own
#
# > Ten lines make a method. It then trains, resumes, is scored and stands in the tables like any other.
#
# **The question.** You have an idea for a loss. What is the least you must write to compare it with twelve methods?

# %%
import matplotlib.pyplot as plt
import torch
from ipywidgets import interact
from pydantic import Field

from attenscribble.book import class_legend, draw, exercise, panels
from attenscribble.data.batches import SliceStore, resize_image
from attenscribble.data.phantom import phantom
from attenscribble.method.network import UNet2d
from attenscribble.method.objective import (
    MASKED_CRF,
    METHODS,
    SEGMENTATION,
    Evidence,
    Method,
    MethodSwitches,
    Objective,
    Switches,
    Term,
    register,
    rise,
)

# %% [markdown]
# ## The picture: who shares what
#
# Each row a method, each column a part. A method is a selection of parts, and a new one mostly reuses them.

# %%
from attenscribble.rivals import branches, pseudo, regularisers, teachers

FAMILIES = (pseudo, teachers, branches, regularisers)  # to import them is to register their methods


def plot_methods():
    "A dot where a method has a term, and what else it brings along."
    rows = list(METHODS.values())
    terms = list(dict.fromkeys(term.name for method in rows for term in method.terms))
    extras = {"second network": lambda m: m.teacher, "guessed labels": lambda m: m.pseudo,
              "other network": lambda m: m.network is not Method.network, "dense labels": lambda m: m.target == "label"}
    _, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for y, method in enumerate(rows):
        has = [{t.name: t.weight for t in method.terms}.get(name) for name in terms]
        for x, weight in enumerate(has):
            if weight is not None:
                axis.plot(x, y, "o", color="#0072B2", markersize=7)
                axis.annotate(f"{weight:.3g}", (x, y), (5, 3), textcoords="offset points", fontsize=7)
        for x, brings in enumerate(extras.values(), len(terms)):
            if brings(method):
                axis.plot(x, y, "s", color="#D55E00", markersize=6)
    axis.set_xticks(range(len(terms) + len(extras)), [*terms, *extras], rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), [method.title for method in rows], fontsize=8)
    axis.set_title("terms with their weight (dots), what else a method brings (squares)", fontsize=9)
    axis.grid(alpha=0.3)
    axis.invert_yaxis()


plot_methods()


# %% [markdown]
# ## Ten lines
#
# The idea: an organ is no larger than it may be. Say the heart fills at most a share $a$ of a slice; what is above costs its square,
#
# $$l_{size}=\frac1N\sum_n\max\Big(0,\ \frac{1}{|\Omega|}\sum_p\big(1-P_p^0\big)-a\Big)^2,$$
#
# as in the size constraints of Kervadec et al. (2019). It joins the strokes and the masked CRF, and grows over the first half of the run.

# %%
class SizeSwitches(Switches):
    largest: float = Field(0.2, gt=0, le=1, description="share of a slice that the organs may fill")


def size_term(evidence: Evidence) -> torch.Tensor:
    filled = (1 - evidence.probs[:, 0]).mean((1, 2))  # [N]
    return (filled - evidence.own.largest).clamp(min=0).square().mean()


register(Method("size", "pCE + MCRF + size", "this chapter, after Kervadec et al. 2019",
                (SEGMENTATION, MASKED_CRF, Term("size", size_term, weight=10.0, ramp=rise(0.5))),
                switches=SizeSwitches))

# %% [markdown]
# By hand: two slices, organs on all of the first and none of the second, $a=0.2$: $(0.8^2+0)/2=0.32$. Everything else comes with the
# entry: `lam_size`, `start_size` and `own_largest` are settings of a run now, with checks and with an answer to a typo.

# %%
logits = torch.stack((torch.tensor([-50.0, 50.0]), torch.tensor([50.0, -50.0]))).view(2, 2, 1, 1).expand(2, 2, 8, 8)
blank = SliceStore(phantom(patients=1, side=48, slices=4).read("patient001"), classes=4, ignore=4).batch(
    torch.arange(2), 8)
evidence = Evidence(logits, blank, MethodSwitches(), own=SizeSwitches())
torch.testing.assert_close(size_term(evidence).item(), 0.32)
assert [term.name for term in Objective(METHODS["size"], own={"largest": 0.1}).terms] == ["seg", "mcrf", "size"]
try:
    Objective(METHODS["size"], own={"larges": 0.1})
    raise RuntimeError("a typo passed")
except ValueError as error:
    print(str(error).splitlines()[1:3])

# %% [markdown]
# ## Does it do anything?
#
# The training loop proper comes in [chapter 41](../experiment/41_training.ipynb); here a short one is enough. It asks an `Objective` for the loss of an `Evidence`,
# and so would yours. Strokes alone, and with the new term.

# %%
data = phantom(patients=5)
case, z = data.read("patient002")[0], 3
store = SliceStore(data.read("patient002"), classes=4, ignore=data.ignore)
shown = resize_image(torch.tensor(case.image[z:z + 1]), 64)[:, None]


def fit(method, own=None, steps=60):
    "Classes of one slice after some steps on the patient's slices, [64,64]."
    torch.manual_seed(0)
    model, objective = UNet2d(1, 4, channels=(8, 16, 32), dropout=(0, 0, 0)), Objective(METHODS[method], own=own)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        batch = store.batch(torch.randint(len(store), (4,)), 64)
        loss, _ = objective(Evidence(model(batch.image), batch, MethodSwitches(), model, step=step, iterations=steps))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return model(shown).argmax(1)[0].numpy()


# %%
def plot_sizes(sizes):
    "Strokes alone, then the new method for some sizes."
    figure, axes = panels(2 + len(sizes))
    draw(axes[0], case.image[z], scribble=case.scribble[z], outline=case.label[z], ignore=data.ignore,
         title=f"strokes; truth: {(case.label[z] > 0).mean():.0%} filled")
    runs = [("pCE alone", fit("pce")), *((f"a = {size:g}", fit("size", {"largest": size})) for size in sizes)]
    for axis, (name, found) in zip(axes[1:], runs, strict=True):
        draw(axis, shown[0, 0], label=found, title=f"{name}: {(found > 0).mean():.0%} filled")
    class_legend(figure, data.class_names)
    plt.show()


plot_sizes([0.2, 0.05])

# %%
interact(lambda size=0.1: plot_sizes([size]), size=(0.02, 0.3, 0.02));


# %% [markdown]
# Strokes alone leak; either bound ends that. A bound far below the truth eats at the organs, yet the strokes hold their ground.
#
# ## On real data
#
# Put the ten lines into a module of yours, import it in a notebook, and train:
#
# ```python
# import my_idea  # registers "size"
# from attenscribble.experiment.config import Config
# from attenscribble.experiment.runs import run_experiment
#
# outcome = run_experiment(Config.from_flat(dataset="acdc", method="size", own_largest=0.1))
# print(outcome.report())
# ```
#
# The other parts of an entry: `network` for another network, `teacher` for one that is [averaged](31_teachers.ipynb), `pseudo` for
# [guessed labels](30_pseudo_labels.ipynb), `settings` for another learning rate, `target="label"` for dense labels.
#
# ## Exercises
#
# **1. Predict.** The weight of a term with `rise(0.5)` in the middle of the run.

# %%
def check_ramp(answer):
    assert abs(answer() - rise(0.5)(0.5)) < 1e-9

def my_ramp():
    ...  # your number

exercise(check_ramp, my_ramp, solution=lambda: 1.0)


# %% [markdown]
# **2. Implement** a term that asks for a *least* size: the square of what the organs lack to the share `own.largest` (reuse the switch).

# %%
def check_least(term):
    evidence = Evidence(logits, blank, MethodSwitches(), own=SizeSwitches())
    torch.testing.assert_close(term(evidence).item(), 0.2**2 / 2)

def my_least(evidence):
    ...  # your code here

exercise(check_least, my_least,
         solution=lambda e: (e.own.largest - (1 - e.probs[:, 0]).mean((1, 2))).clamp(min=0).square().mean())


# %% [markdown]
# **3. Break.** A term may only read what `Evidence` gives it. Write one that tries to read a dense label of a scribble-supervised batch, and return the
# name of the exception it meets.

# %%
def check_no_label(answer):
    assert answer() == "AttributeError"

def my_no_label():
    ...  # your code here

def no_label():
    try:
        evidence.batch.label
    except AttributeError as error:
        return type(error).__name__

exercise(check_no_label, my_no_label, no_label)

# %% [markdown]
# ## Recap
#
# A `Method` is an entry: terms with weights and ramps, a network, perhaps a teacher or guessed labels. Nothing else in the package knows
# its name. [Next](../experiment/40_config.ipynb): every knob of a run in one object.
