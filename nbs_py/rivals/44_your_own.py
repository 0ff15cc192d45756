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
# You have an idea for a loss. What is the least you must write to compare it with the paper's twelve methods? This
# chapter writes it into a file of your own, trains with it, and shows that two processes compute the same as one.

# %%
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from ipywidgets import interact

# %%
from attenscribble.basics.checking import exercise
from attenscribble.basics.distributed import mean_of
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.batches import SliceStore, resize_image
from attenscribble.data.phantom import phantom
from attenscribble.method.network import UNet2d
from attenscribble.method.objective import METHODS, LossContext, Method, Objective, Term, rise
from attenscribble.method.switches import MethodSwitches

# %% [markdown]
# ## The picture: what methods are made of
#
# Each row is a method, each column a part. A method is a selection of parts, and a new one mostly reuses them.

# %%
from attenscribble.rivals import branches, pseudo, regularisers, teachers

FAMILIES = (pseudo, teachers, branches, regularisers)  # to import them is to register their methods
EXTRAS = {"second network": lambda m: m.teacher, "guessed labels": lambda m: m.pseudo,
          "other network": lambda m: m.network is not Method.network, "dense labels": lambda m: m.target == "label"}


# %%
def draw_method(axis, y, method, terms):
    "One row: a dot with its weight for each term, a square for each extra."
    for term in method.terms:
        x = terms.index(term.name)
        axis.plot(x, y, "o", color="#0072B2", markersize=7)
        axis.annotate(f"{term.weight:.3g}", (x, y), (5, 3), textcoords="offset points", fontsize=7)
    for x, brings in enumerate(EXTRAS.values(), len(terms)):
        if brings(method):
            axis.plot(x, y, "s", color="#D55E00", markersize=6)


# %%
def plot_methods():
    "A dot where a method has a term, and what else it brings along."
    rows = list(METHODS.values())
    terms = list(dict.fromkeys(term.name for method in rows for term in method.terms))
    _, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for y, method in enumerate(rows):
        draw_method(axis, y, method, terms)
    axis.set_xticks(range(len(terms) + len(EXTRAS)), [*terms, *EXTRAS], rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), [method.title for method in rows], fontsize=8)
    axis.set_title("terms with their weight (dots), what else a method brings (squares)", fontsize=9)
    axis.grid(alpha=0.3)
    axis.invert_yaxis()


plot_methods()

# %% [markdown]
# ## Ten lines
#
# The idea: organs fill at most a fraction $a$ of a slice. What is above costs its square,
#
# $$l_{size}=\frac1N\sum_n\max\Big(0,\ \frac{1}{|\Omega|}\sum_p\big(1-P_p^0\big)-a\Big)^2,$$
#
# as in the size constraints of Kervadec et al. (2019). The term is added to the strokes' and to the masked CRF, and its
# weight rises over the first half of the run. This is the text of the file:

# %%
IDEA = """
from pydantic import Field

from attenscribble.basics.distributed import mean_of
from attenscribble.method.objective import MASKED_CRF, SEGMENTATION, Method, Term, register, rise
from attenscribble.method.switches import Switches


class SizeSwitches(Switches):
    largest: float = Field(0.2, gt=0, le=1, description="fraction of a slice that the organs may fill")


def size_term(context):
    filled = (1 - context.probs[:, 0]).mean((1, 2))  # [N]
    return mean_of((filled - context.options.largest).clamp(min=0).square())


size = register(Method("size", "pCE + MCRF + size", "chapter 44, after Kervadec et al. 2019",
                       (SEGMENTATION, MASKED_CRF, Term("size", size_term, weight=10.0, ramp=rise(0.5))),
                       options=SizeSwitches))
"""

# %%
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
(folder / "my_idea.py").write_text(IDEA)
sys.path.append(str(folder))
from my_idea import SizeSwitches, size, size_term

# %% [markdown]
# A term returns a `BatchMean`. Here `mean_of(values)` makes one, from one value an image, and not `values.mean()`. With
# one process both give the same number. With two, each process has half of the batch, and only a `BatchMean` lets the
# package find the mean over all of it ([chapter 05](../basics/05_distributed.ipynb)).

# %% [markdown]
# By hand: two slices, organs on all of the first and none of the second, $a=0.2$: $(0.8^2+0)/2=0.32$.

# %%
logits = torch.stack((torch.tensor([-50.0, 50.0]), torch.tensor([50.0, -50.0]))).view(2, 2, 1, 1).expand(2, 2, 8, 8)
blank = SliceStore(phantom(patients=1, side=48, slices=4).read("patient001"), classes=4, ignore=4).batch(
    torch.arange(2), 8)
context = LossContext(logits, blank, MethodSwitches(), options=SizeSwitches())
torch.testing.assert_close(size_term(context).mean().item(), 0.32)
assert [term.name for term in Objective(METHODS["size"], options={"largest": 0.1}).terms] == ["seg", "mcrf", "size"]

# %% [markdown]
# Everything else comes with the entry: `lam_size`, `start_size` and `method_largest` are settings of a run now. Their
# values are checked, and so are their names.

# %%
from attenscribble.runs.config import Config

try:
    Config(method="my_idea:size", method_larges=0.1)
    raise RuntimeError("a typo passed")
except ValueError as error:
    print(error)

# %% [markdown]
# ## Does it do anything?
#
# The training loop itself comes in [chapter 53](../runs/53_training.ipynb); here a short one is enough. It asks an
# `Objective` for the loss of a `LossContext`, and so would yours. First the strokes alone, then with the new term.

# %%
data = phantom(patients=5)
case, z = data.read("patient002")[0], 3
store = SliceStore(data.read("patient002"), classes=4, ignore=data.ignore)
shown = resize_image(torch.tensor(case.image[z:z + 1]), 64)[:, None]


# %%
def fit(method, options=None, steps=60):
    "Classes of one slice after some steps on the patient's slices, [64,64]."
    torch.manual_seed(0)
    objective = Objective(METHODS[method], options=options)
    model = UNet2d(1, 4, channels=(8, 16, 32), dropout=(0, 0, 0))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        batch = store.batch(torch.randint(len(store), (4,)), 64)
        context = LossContext(model(batch.image), batch, MethodSwitches(), model, step=step, iterations=steps)
        optimiser.zero_grad()
        objective(context)[0].backward()
        optimiser.step()
    with torch.no_grad():
        return model(shown).argmax(1)[0].numpy()


# %%
alone = fit("pce")


def plot_sizes(sizes):
    "Strokes alone, then the new method for some sizes."
    figure, axes = panels(2 + len(sizes))
    draw(axes[0], case.image[z], scribble=case.scribble[z], outline=case.label[z], ignore=data.ignore,
         title=f"strokes; truth: {(case.label[z] > 0).mean():.0%} filled")
    found = {"pCE alone": alone} | {f"a = {size:g}": fit("size", {"largest": size}) for size in sizes}
    for axis, (name, classes) in zip(axes[1:], found.items(), strict=True):
        draw(axis, shown[0, 0], label=classes, title=f"{name}: {(classes > 0).mean():.0%} filled")
    class_legend(figure, data.class_names)
    plt.show()


# %%
plot_sizes([0.2, 0.05])

# %%
interact(lambda size=0.1: plot_sizes([size]), size=(0.02, 0.3, 0.02));

# %% [markdown]
# With the strokes alone the organs spread beyond the heart. With the new method, which has the masked CRF as well, they
# do not. A bound far below the truth makes the organs smaller, but the strokes keep them above it.
#
# ## In a run
#
# The file lies in the folder in which you give the command, and the method is named by its import path. Nothing has to
# be installed:
#
# ```bash
# attenscribble train dataset=acdc method=my_idea:size method_largest=0.1
# attenscribble train dataset=acdc method=my_idea:size devices=2
# ```
#
# In Python it is `attenscribble.train("acdc", method="my_idea:size", method_largest=0.1)`. The checkpoint holds the
# import path. As a checkpoint may come from anybody, it does not decide what is run: from the same folder
# `attenscribble predict --trust my_idea` gives your word for the module, in Python `trust="my_idea"`.
#
# **Check.** Two iterations on small phantoms, in one process and in two: each term has the same value. The batch of
# five is divided into three and two images, so a mean of the processes' means would differ.

# %%
from attenscribble.runs.run import run_experiment

TINY = {"data_patients": 5, "data_side": 48, "data_slices": 4, "size": 48, "batch": 5, "iterations": 2, "log_every": 1,
        "precision": "float32", "device": "cpu", "hd95": False, "lr": 0.001, "method": "my_idea:size", "start_mcrf": 1}


def log_of(devices):
    "The log of a short run with so many processes."
    return run_experiment(Config(**TINY, devices=devices, output=str(folder / f"{devices}"))).log


# %%
here = Path.cwd()
os.chdir(folder)  # as if the command were given there
try:
    logs = log_of(1), log_of(2)
finally:
    os.chdir(here)

# %%
for one, two in zip(*logs, strict=True):
    for name in ("seg", "size", "loss"):
        print(f"iteration {one['step']}, {name:4}: {one[name]:.6f} in one process, {two[name]:.6f} in two")
        assert abs(one[name] - two[name]) < 1e-4 * abs(one[name])

# %% [markdown]
# A term that returns a plain number, such as `values.mean()`, is refused by name, with one process too.

# %%
careless = replace(size, terms=(Term("size", lambda context: size_term(context).mean()),))
try:
    Objective(careless)(context)
    raise RuntimeError("a plain number was taken")
except TypeError as error:
    print(error)


# %% [markdown]
# The other parts of an entry: `network` for another network, `teacher` for one that is [averaged](41_teachers.ipynb),
# `pseudo` for [guessed labels](40_pseudo_labels.ipynb), `settings` for another learning rate, `target="label"` for
# dense labels.
#
# ## Exercises
#
# **1. Predict.** The factor on the weight of a term with `rise(0.5)`, in the middle of the run.

# %%
def check_ramp(answer):
    assert abs(answer() - rise(0.5)(0.5)) < 1e-9

def my_ramp():
    ...  # your number

exercise(check_ramp, my_ramp, solution=lambda: 1.0)


# %% [markdown]
# **2. Implement** a term that asks for a *least* size: the square of what the organs lack of the fraction
# `options.largest` (reuse the switch).

# %%
def check_least(term):
    context = LossContext(logits, blank, MethodSwitches(), options=SizeSwitches())
    torch.testing.assert_close(term(context).mean().item(), 0.2**2 / 2)

def my_least(context):
    ...  # your code here

exercise(check_least, my_least,
         solution=lambda c: mean_of((c.options.largest - (1 - c.probs[:, 0]).mean((1, 2))).clamp(min=0).square()))


# %% [markdown]
# **3. Break.** A term may only read what `LossContext` gives it. Try to read the dense label of a batch with scribbles,
# and return the name of the exception.

# %%
def check_no_label(answer):
    assert answer() == "AttributeError"

def my_no_label():
    ...  # your code here

def no_label():
    try:
        context.batch.label
    except AttributeError as error:
        return type(error).__name__

exercise(check_no_label, my_no_label, no_label)

# %% [markdown]
# ## Recap
#
# A `Method` is an entry: terms with weights and ramps, a network, perhaps a teacher or guessed labels. Nothing else in
# the package knows its name. [Next](../runs/50_config.ipynb): all settings of a run in one object.
