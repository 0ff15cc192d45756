# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The front door
#
# > Two calls from scans to masks, and the parts of the method for a training of your own.
#
# Which of all these chapters does somebody need who has scans, a few scribbles and five minutes? If the answer is long, the method is never
# tried. This chapter writes the calls `train` and `predict`, uses them on the phantom, and then takes a loss and the attention into plain
# PyTorch.

# %% [markdown]
# ## The answer first
#
# ```python
# import attenscribble
#
# attenscribble.check("my-scans")                              # what is wrong with the folder?
# outcome = attenscribble.train("my-scans")                    # learn, segment, score
# print(outcome.report())
# attenscribble.predict(outcome.folder, "new-scans", "masks")  # a mask for every new scan
# ```
#
# `check` is that of [chapter 18](../data/18_check.ipynb). The same from a terminal stands in [the next chapter](81_commands.ipynb).

# %%
#| default_exp entry.front_door

# %%
#| export
import os
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

from attenscribble.basics.errors import DataError, named_place, one_of
from attenscribble.data.datasets import SOURCES
from attenscribble.runs.config import Config, _of_known_home
from attenscribble.runs.inference import predict_files
from attenscribble.runs.run import Outcome, run_experiment
from attenscribble.runs.training import Watcher

# %%
import tempfile

import torch

import attenscribble
from attenscribble.basics.checking import exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.phantom import phantom
from attenscribble.runs.inference import load_mask, save_volume
from attenscribble.runs.run import plot_predictions


# %% [markdown]
# ## What a source may be
#
# | source | what is trained on |
# |---|---|
# | `"acdc"`, the name of a dataset | that dataset |
# | `"my-scans"`, `"./acdc"` or a `Path` | the folder |
# | `Config(…)` | what it says |
# | nothing | the dataset among the settings, else the phantom |
#
# A name means the dataset, whatever lies in the current folder: `train("acdc", root=".")` may be called beside the data. Only where a folder of
# that name holds `images/`, as [a folder of your own](../data/17_folder.ipynb) does, either could be meant, and the call is refused.

# %%
#| export
def _located(source: Path | str) -> dict[str, str]:
    "The settings that a source stands for. Raises DataError where it could be both, dataset and folder, or is neither."
    folder = Path(named_place("SOURCE", source)).expanduser()
    if isinstance(source, str) and source in SOURCES:
        if (folder / "images").is_dir():
            raise DataError("source", f"{source!r}, the name of a dataset and of a folder with images/",
                            f"'./{source}' for the folder, dataset={source!r} for the dataset")
        return {"dataset": source}
    if not folder.is_dir():
        raise DataError("source", repr(str(source)), _choices(folder))
    return {"dataset": "folder", "root": str(folder)}


# %%
#| export
def _choices(folder: Path) -> str:
    "What could have been meant by a folder that is not there, the nearest name last."
    names = [name for name in SOURCES if name != "folder"]  # to be had by the folder itself
    beside = {path.name: path for path in folder.parent.glob("*") if path.is_dir()}
    near = get_close_matches(folder.name, [*beside, *(names if folder.parent == Path() else [])], n=1)
    return (f"a folder or one of {', '.join(names)}"
            + (f"; did you mean {str(beside.get(near[0], near[0]))!r}?" if near else ""))


# %%
#| export
def configure(
    source: Path | str | Config | None = None,  # a folder, the name of a dataset, or all settings; None: see above
    **settings: Any,  # of `Config`, by their flat names
) -> Config:  # with all settings filled in
    """The settings of a run. Nothing is read.

    Raises DataError for a source that is not there, ValueError with a line for each wrong setting."""
    if isinstance(source, Config):
        _refuse_twice(settings, "a Config")
        return source
    meant = {} if source is None else _located(source)
    _refuse_twice({name: settings[name] for name in meant if name in settings}, f"the source {str(source)!r}")
    return Config(**meant, **settings)


# %%
#| export
def _refuse_twice(settings: dict[str, Any], beside: str) -> None:
    "Raise ValueError for a setting that something else says already."
    for name, value in settings.items():
        raise ValueError(f"{name}: found {value!r} beside {beside}, expected one of the two")


# %%
def refusal(call, *given, **settings):
    "The message of the error that a call raises."
    try:
        return f"nothing was refused: {call(*given, **settings)}"
    except ValueError as error:
        return str(error)


assert configure() == Config() and configure("acdc", fold=2) == Config(dataset="acdc", fold=2)
print(refusal(configure, "acdd"))
print(refusal(configure, "acdc", methd="pce"))
print(refusal(configure, "acdc", dataset="chaos"))


# %% [markdown]
# ## Train
#
# A run of [chapter 56](../runs/56_run.ipynb), with its settings in one line.

# %%
#| export
def train(
    source: Path | str | Config | None = None,  # a folder, the name of a dataset, or all settings; None: the phantom
    *,
    watch: Watcher | None = None,  # called after each row of the log, such as `LiveCurves()` in a notebook
    **settings: Any,  # of `Config`: method="pce", iterations=400, lam_mcrf=0.3, …
) -> Outcome:  # its `report()` is the table; `folder`, `masks`, `network` and `log` are the rest
    """Train a network, segment the test scans and score them. A bar shows the losses and the time left.

    A run that was stopped goes on from its last checkpoint. Raises ValueError with a line for each wrong setting, and
    DataError for a source that is not there, before anything is read; what `run_experiment` raises; RuntimeError in a
    script that torchrun started."""
    config = configure(source, **settings)
    _refuse_torchrun()
    outcome = run_experiment(config, watch)
    assert outcome is not None, "without one are only processes of torchrun"
    return outcome


# %%
#| export
def _refuse_torchrun() -> None:
    "Raise RuntimeError in one of several processes of torchrun: all but the first would have no outcome."
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RuntimeError("train: found a script under torchrun, expected one that runs alone: devices=N starts N "
                           "processes, and under torchrun there is `attenscribble train`")


# %% [markdown]
# ## Predict
#
# The masks of [chapter 54](../runs/54_inference.ipynb), by the words that one looks for.

# %%
#| export
def _at_home(place: Path | str) -> Path | str:
    "A path in which a ~ at its start is a home folder, as in a terminal. Raises ValueError for one of nobody."
    return Path(_of_known_home(str(place))).expanduser() if str(place).startswith("~") else place


# %%
#| export
def predict(
    checkpoint: Path | str,  # checkpoint.pt, or the run folder that holds it: `outcome.folder`
    scans: Path | str,  # a NIfTI file, or a folder of them
    masks: Path | str,  # the mask's file for a single scan, or a folder
    **options: Any,  # batch_size, probabilities, uncertainty, flips, overwrite, skip_existing, trust, device
) -> list[Path]:  # the masks' files
    """Segment scans with a trained network: a mask for each, in its scan's geometry.

    A scan that cannot be segmented does not stop the others; called again, it goes on with what has no mask. Raises
    ValueError for an unknown option, and what `predict_files` raises: at the end `ScansFailed`, with the reasons."""
    known = [name for name, parameter in signature(predict_files).parameters.items()
             if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        one_of("option", name, known)
    return predict_files(*map(_at_home, (checkpoint, scans, masks)), **options)


# %%
print(refusal(predict, "runs", "scans", "masks", overwite=True))

# %% [markdown]
# ## Five minutes on the phantom
#
# First, a run: hearts that a formula draws, at a small size and for few iterations. It takes seconds, and its masks only begin to be right.

# %%
place = tempfile.TemporaryDirectory()
home = Path(place.name)
outcome = train("phantom", method="gated-crf", iterations=40, batch=4, size=64, data_patients=5, data_side=64,
                data_slices=4, output=str(home / "runs"))
print(outcome.report())
plot_predictions(outcome);

# %% [markdown]
# Then a scan that the network never saw, as a file, and its mask.

# %%
heart = phantom(patients=6, side=64, slices=4).read("patient006")[0]
save_volume(heart.image, heart, home / "new-scans" / "heart.nii.gz")
(path,) = predict(outcome.folder, home / "new-scans", home / "masks")
mask, z = load_mask(path, heart), 2
assert mask.shape == heart.shape

figure, (left, right) = panels(2)
draw(left, heart.image[z], outline=heart.label[z], title="a new scan, true outline")
draw(right, heart.image[z], label=mask[z], title=f"{path.name}, after {outcome.config.iterations} iterations")
class_legend(figure, outcome.dataset.class_names)

# %% [markdown]
# ## A loss alone
#
# Nothing above is needed to use a loss. Here is a plain training loop of PyTorch, with one line that knows of scribbles. The images of one
# patient are [N,1,H,W] in [0, 1], the scribbles [N,H,W] hold a class or the value `ignore` where nobody drew.

# %%
image, scribble = torch.tensor(heart.image)[:, None], torch.tensor(heart.scribble).long()
ignore = outcome.dataset.ignore


def small_unet():
    "A U-Net of three stages, its weights always the same."
    torch.manual_seed(0)
    return attenscribble.UNet2d(in_channels=1, classes=4, channels=(8, 16, 32), dropout=(0, 0, 0))


# %%
def fit(loss_of, steps=100):
    "Train a network by a loss of its logits; the classes that it finds, [N,H,W]."
    model = small_unet()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss = loss_of(model(image))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model(image).argmax(1)


# %%
def strokes(logits):
    return attenscribble.partial_cross_entropy(logits, scribble, ignore=ignore)


def strokes_and_neighbours(logits):
    crf = attenscribble.masked_crf_loss(logits.softmax(1), image, unlabelled=(scribble == ignore)[:, None])
    return strokes(logits) + 0.1 * crf


results = {"partial cross-entropy": fit(strokes), "… + masked CRF": fit(strokes_and_neighbours)}

# %%
figure, axes = panels(3)
draw(axes[0], image[z, 0], scribble=scribble[z], outline=heart.label[z], ignore=ignore,
     title="strokes, true outline")
for axis, (name, found) in zip(axes[1:], results.items(), strict=True):
    draw(axis, image[z, 0], label=found[z], title=name)
class_legend(figure, outcome.dataset.class_names)

# %% [markdown]
# Strokes alone leak into whatever looks like an organ. The masked CRF holds most of that back, by looking at the image.
#
# ## The attention on a network of yours
#
# `attach` puts attention behind a layer that is named as in `model.named_modules()`. After a forward pass it holds the query and the key that the
# attentive similarity loss reads ([chapter 34](../method/34_asl.ipynb)).

# %%
model = small_unet()
attention = attenscribble.attach(model, "encoder.2").attention
probs = model(image).softmax(1)
loss = attenscribble.attentive_similarity_loss(
    probs, attention.query, attention.key, attention.similarity.weight, attention.similarity.bias,
    unlabelled=(scribble == ignore)[:, None], radius=2, sigma_xy=3.0)
loss.backward()
assert all(parameter.grad is not None for parameter in attention.parameters())
print(f"{loss.item():.3f}")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** What is trained on by each of the three calls, if the current folder holds a folder `acdc` with ACDC's own files
# (`acdc/training/…`)? Answer with `"dataset"`, `"folder"` or `"refused"` each.

# %%
def check_sources(answer):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "acdc" / "training").mkdir(parents=True)
        before = os.getcwd()
        try:
            os.chdir(folder)
            found = [configure(source).dataset for source in ("acdc", "./acdc", Path("acdc"))]
        finally:
            os.chdir(before)
    assert list(answer()) == [name if name == "folder" else "dataset" for name in found]

def my_sources():
    return "refused", "refused", "refused"  # "acdc", "./acdc", Path("acdc")

exercise(check_sources, my_sources, solution=lambda: ("dataset", "folder", "folder"))


# %% [markdown]
# **2. Implement** a loop of `train` over methods: for each name the mean DSC of the run, as `summary()` of its outcome has it.

# %%
def check_compared(f):
    small = {"iterations": 2, "batch": 4, "size": 48, "data_patients": 5, "data_side": 48, "data_slices": 2}
    scores = f(["pce", "gated-crf"], output=str(home / "compared"), **small)
    assert set(scores) == {"pce", "gated-crf"} and all(0 <= score <= 1 for score in scores.values())

def compared(methods, **settings):
    ...  # your code here

def compared_solution(methods, **settings):
    outcomes = {name: train("phantom", method=name, **settings) for name in methods}
    return {name: outcome.summary().loc["Avg", "dsc_mean"] for name, outcome in outcomes.items()}

exercise(check_compared, compared, compared_solution)

# %%
place.cleanup()

# %% [markdown]
# ## Recap
#
# `train` and `predict` are two of the names that `import attenscribble` offers; `help(attenscribble)` shows all, and each is loaded when it is
# first used. `configure` turns a source into settings. [The next chapter](81_commands.ipynb) makes commands of them.
