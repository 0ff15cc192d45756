# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One scan
#
# > A scan, a few strokes, a minute: what one scan can teach about itself, and where its strokes are kept.
#
# **The question.** How many strokes until one scan is segmented? Whoever draws on all scans first and trains in the
# evening learns the next morning which stroke was missing. With one scan the answer comes while the pen is still warm.

# %%
#| default_exp experiment.desk

# %%
#| export
import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attenscribble.data.folder import (
    IGNORE,
    Folder,
    FolderOptions,
    Labels,
    matching_grid,
    meaning_of,
    open_folder,
    read_scan,
)
from attenscribble.data.scans import Case, DataError, Dataset, read_nifti
from attenscribble.data.scribbles import largest_parts, stroke
from attenscribble.experiment.config import Config
from attenscribble.experiment.inference import predict_volume, save_mask, save_volume
from attenscribble.experiment.runs import write_json
from attenscribble.experiment.training import Training, choose_precision, train
from attenscribble.machine import write_whole

# %%
import os
import tempfile
from itertools import pairwise

import matplotlib.pyplot as plt
import nibabel as nib
from ipywidgets import interact

from attenscribble.book import class_legend, draw, exercise, panels, project_root
from attenscribble.data.datasets import open_dataset
from attenscribble.data.phantom import phantom
from attenscribble.data.simulation import simulate
from attenscribble.experiment.check import check
from attenscribble.experiment.metrics import dice

# %%
heart = next(phantom(patients=1, seed=0, side=96).cases())
NAMES = ("background", "RV", "Myo", "LV")
work = Path(tempfile.mkdtemp())

def strokes(slices, case=heart, length=0.5):
    "What an annotator draws on these slices; IGNORE elsewhere."
    drawn = simulate(case.label, "hand", classes=4, ignore=IGNORE, case=case.name, length=length)
    drawn[[z for z in range(len(drawn)) if z not in slices]] = IGNORE
    return drawn

def scores(mask, case=heart):
    return [dice(mask == c, case.label == c) for c in (1, 2, 3)]


# %% [markdown]
# ## The answer, as a picture
#
# Five of a phantom's eight slices are drawn on. Left one of them; then a slice nobody drew on, at three moments of one
# training. (The chapter builds `open_desk` and `learn`.)

# %%
from attenscribble.experiment.desk import learn, open_desk

seen = []
desk = open_desk(heart, NAMES, work / "heart")
drawn = strokes((1, 2, 4, 5, 6))
mask, state = learn(desk, drawn, lambda state, mask: seen.append((state.step, state.seconds, mask)), size=96,
                    iterations=100)


# %%
def plot_progress(seen, z=3, count=3):
    "Strokes on the neighbour, then the masks of one slice without strokes, and its truth as outlines."
    moments = [moment for moment in seen if moment[2] is not None]
    chosen = [moments[k] for k in np.linspace(0, len(moments) - 1, count).round().astype(int)]
    figure, axes = panels(count + 1, size=2.3)
    draw(axes[0], heart.image[z - 1], scribble=drawn[z - 1], ignore=IGNORE, title=f"slice {z - 1}: drawn")
    for axis, (step, seconds, now) in zip(axes[1:], chosen, strict=True):
        draw(axis, heart.image[z], label=now[z], outline=heart.label[z],
             title=f"slice {z}: iteration {step}, {seconds:.0f} s\nDSC {np.mean(scores(now)):.2f}")
    class_legend(figure, NAMES, background=True)

plot_progress([*seen, (state.step, state.seconds, mask)])
assert np.mean(scores(mask)) > 0.3

# %% [markdown]
# Filled: the mask; outlined: the truth, which the training never sees. On screen the masks replace one another. The
# first ones are far off, and the last one floods: nobody has yet told the network of the rest of the body.
#
# ## A desk: the scan, its strokes, their file
#
# Save writes what [chapter 15](../data/15_folder.ipynb) reads: the scan in `images/`, the strokes in `scribbles/`, and a
# `dataset.json` that says what values mean. A class's id is its value, as in dense masks, and 255 is "not drawn". Not 0,
# although viewers show 0 as empty: a program that knows nothing of scribbles takes such a file for a mask that is
# nearly all background, and says nothing; of 255 it complains. A folder that has its own convention keeps it.
#
# The strokes lie on the scan's own grid, whatever its axes; a scan with strokes is opened with them.

# %%
#| export
_READ = {"axis", "clip", "robust", "check_affine"}  # options that decide how a scan is read
_MASK = re.compile(r".*[_-](scribbles?|labels?|gt|seg|segmentation|mask)")


@dataclass(frozen=True, eq=False)
class Desk:
    "A scan to draw on, and where the drawing goes."

    case: Case  # its scribble is what was drawn before, IGNORE where nothing was
    labels: Labels
    root: Path  # a folder in the layout of chapter 15
    name: str
    images: tuple[Path, ...]  # the scan's files; none for a case from memory
    scribble: Path  # the strokes' file
    reading: dict[str, Any]  # options of `read_scan`


def open_desk(
    scan: Case | Path | str | Sequence[Path | str],  # a NIfTI file, one file a modality, or a case
    classes: Sequence[str] | None = None,  # names, the background first; None: as the folder's dataset.json has them
    folder: Path | str | None = None,  # None: the folder whose images/ holds the scan, else annotated/ beside it
) -> Desk:
    "Find a scan, what was drawn on it before, and what values mean. Raises DataError."
    files = () if isinstance(scan, Case) else (scan,) if isinstance(scan, (str, Path)) else tuple(scan)
    files = tuple(Path(path).expanduser().resolve() for path in files)
    home = files[0].parent if files else Path.cwd()
    own = home.name in ("images", "imagesTr")
    root = Path(folder).expanduser().resolve() if folder else home.parent if own else home / "annotated"
    held = open_folder(root) if any(root.glob("images*/*.nii*")) else None
    if held is None and (root / "dataset.json").is_file():
        raise DataError(root / "dataset.json", "no scan beside it", f"the scan in {root / 'images'}, opened from there")
    name = scan.name if isinstance(scan, Case) else re.sub(r"(_0000)?\.nii(\.gz)?$", "", files[0].name)
    if _MASK.fullmatch(name):
        raise DataError(files[0] if files else name, "a name that ends like a mask's", "a scan")
    known = held.scans if held else {}
    name = next((n for n, there in known.items() if {*files} & {*(p.resolve() for p in there.images)}), name)
    files = known[name].images if name in known and home == root / home.name else files
    place = (known[name].scribble if name in known else None) or root / f"scribbles/{name}.nii.gz"
    reading = (held.options if held else FolderOptions()).model_dump(include=_READ)
    case = scan if isinstance(scan, Case) else read_scan(files, patient=name, **reading)
    desk = Desk(case, _labels(held, classes, root), root, name, files, place, reading)
    return replace(desk, case=replace(case, scribble=_drawn_before(desk), label=None))


def _labels(held: Folder | None, classes: Sequence[str] | None, root: Path) -> Labels:
    "What values mean: as the folder says, else each class's number."
    masks = held and {**held.masks("scribble"), **held.masks("label")}
    if held and (held.named or masks):
        labels = held.labels() if masks else meaning_of(
            held.named, Counter(), (), ignore=held.ignore, background=held.options.background, where=root)
        if not held.named and classes and len(classes) == len(labels.names):
            return replace(labels, names=tuple(classes))
        if classes and tuple(classes) != labels.names:
            raise DataError("classes", list(classes), f"those of {root}: {list(labels.names)}")
        return labels
    names = tuple(classes or ())
    if len(names) < 2 or names[0].lower() != "background" or len({*names}) < len(names):
        raise DataError("classes", list(names), 'the background and at least one more, as in ["background", "liver"]')
    return Labels(names, tuple(range(len(names))), IGNORE)


def _drawn_before(desk: Desk) -> np.ndarray:
    "The strokes that lie in the folder."
    if not desk.scribble.is_file():
        return np.full(desk.case.gray.shape, IGNORE, np.uint8)
    volume, scan = read_nifti(desk.scribble, flat=True)
    ids = desk.labels.read(volume, desk.scribble)
    if desk.case.grid:
        ids = matching_grid(desk.scribble, scan, desk.case.grid, desk.reading["check_affine"]).take(ids.T)
    if ids.shape != desk.case.gray.shape:
        raise DataError(desk.scribble, f"strokes on {ids.shape} voxels", f"the scan's {desk.case.gray.shape}")
    return np.ascontiguousarray(ids)


# %%
#| export
def save_desk(
    desk: Desk,
    scribble: np.ndarray,  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
) -> Path:  # the strokes' file
    """Write scan, strokes and dataset.json: a folder for `attenscribble check` and for `-p dataset folder -p root …`.

    A scan that lies in the folder stays as it is, and so does what dataset.json says. Raises DataError if nothing is
    drawn, or if another scan of that name is there; ValueError for a case that does not know its voxels' size."""
    if (scribble == IGNORE).all():
        raise DataError(desk.name, "nothing drawn", "a stroke")
    images = desk.case.image if desk.case.image.ndim == 4 else desk.case.image[:, None]
    for number in range(images.shape[1]):
        target = desk.root / f"images/{desk.name}{f'_{number:04d}' * (images.shape[1] > 1)}.nii.gz"
        if not desk.images:
            save_volume(images[:, number], desk.case, target)
        elif desk.images[number].parent.parent != desk.root:
            _copy(desk.images[number], target)
    meaning = np.full(256, desk.labels.ignore, np.uint8)
    meaning[:len(desk.labels.drawn)] = desk.labels.drawn
    save_volume(meaning[scribble], desk.case, desk.scribble)
    path = desk.root / "dataset.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = {"labels": dict(zip(desk.labels.names, desk.labels.drawn, strict=True)), "ignore": desk.labels.ignore}
    if known.keys() - said.keys():
        write_json(said | known | said, path)
    return desk.scribble


def _copy(source: Path, target: Path) -> None:
    "Copy a scan, unless it is there already."
    target = target.with_suffix("") if source.suffix == ".nii" else target
    if not target.is_file():
        write_whole(target, lambda new: shutil.copyfile(source, new))
    elif target.read_bytes() != source.read_bytes():
        raise DataError(target, "another scan of this name", f"a copy of {source}, or another folder")


def save_learnt(
    desk: Desk,
    mask: np.ndarray,  # [Z,Y,X] uint8 class ids
    state: Training,  # the weights it comes from
) -> tuple[Path, Path]:  # masks/NAME.nii.gz, models/NAME.pt
    "Write mask and weights beside the strokes; the weights are a checkpoint for `attenscribble predict`."
    path = save_mask(mask, desk.case, desk.root / f"masks/{desk.name}.nii.gz", desk.labels.values)
    model = desk.root / f"models/{desk.name}.pt"
    state.save(model)
    return path, model


# %%
lies = nib.Nifti1Image((1000 * heart.image).astype(np.int16).T, np.diag([-1.8, -1.8, 9.8, 1]))
nib.save(lies.as_reoriented(np.array([[1, -1], [2, 1], [0, 1]])), work / "scan.nii.gz")
desk = open_desk(work / "scan.nii.gz", NAMES)
print(save_desk(desk, drawn).relative_to(work))
print((desk.root / "dataset.json").read_text())
(case,) = open_dataset("folder", desk.root).cases()
np.testing.assert_array_equal(case.scribble, drawn)
np.testing.assert_array_equal(open_desk(desk.root / "images/scan.nii.gz").case.scribble, drawn)
assert check(desk.root).fine

# %% [markdown]
# ## Learn from one scan
#
# Nothing new is trained here: one scan is a dataset of one patient, and [the loop](41_training.ipynb) trains on its
# strokes, on the slices that were drawn on. `QUICK` says how much is computed: 300 iterations with the
# [gated CRF](../rivals/33_regularisers.ipynb), which spreads strokes to where the image looks alike.
#
# **What breaks: fresh weights.** Strokes on a few slices leave open what the rest of the body is, and chance decides. Weights
# drawn anew after each correction flood somewhere else each time. So a training goes on from the last one's weights, and what
# was right stays right. Unless a stroke was erased or drawn over: then all is learnt anew, and a mistake leaves no trace.
#
# **What breaks: the same rate.** A correction lies where the network is wrong and sure of it: its first gradients are large. On
# a heart of ACDC, ten iterations at a rate of 0.02 were enough to forget all strokes of two classes, and one of the two did
# not come back in 290 more. `ONWARD` goes on at 0.004.
#
# `QUICK` also does without the [U-Net](../method/20_network.ipynb)'s dropout, which is meant for 60 000 iterations over many
# patients. [Below](#How-much-is-luck?) is what fresh weights and dropout do.
#
# **A mask on the way costs time.** If segmenting takes $t$ and the next mask begins $t/\lambda$ after this one began, it
# takes a share of $t\,/\,(t/\lambda)=\lambda$. By hand: half a second for a mask and $\lambda=0.2$ give a mask every 2.5 s. A
# mask at every look at the loss, the naive form, costs more than the training where the scan has many slices.

# %%
#| export
QUICK: dict[str, Any] = {"method": "gated-crf", "profile": "mini", "size": 96, "batch": 4, "iterations": 300,
                         "lr": 0.05, "log_every": 10, "net_options": {"dropout": [0, 0, 0, 0, 0]}}
ONWARD: dict[str, Any] = {"lr": 0.004}  # over QUICK, to go on from weights: larger first steps would wreck them
LIVE = 0.2  # λ: share of the time that masks on the way may take


def only_more(
    before: np.ndarray,  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
    now: np.ndarray,  # the same, later
) -> bool:
    "Whether all that was drawn is still there: nothing erased, nothing drawn over."
    return bool((now == before)[before != IGNORE].all())


class Stopped(Exception):
    "Somebody pressed Stop; its argument is the training so far."


def one_scan(
    desk: Desk,
    scribble: np.ndarray,  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
) -> Dataset:
    "One scan to train on and to segment. Raises DataError if there is too little to learn from."
    names = desk.labels.names
    drawn = [name for class_id, name in enumerate(names) if (scribble == class_id).any()]
    if names[0] not in drawn or len(drawn) < 2:
        found = f"only {' and '.join(drawn)} drawn" if drawn else "nothing drawn"
        raise DataError(desk.name, found, f"strokes of the {names[0]} and of one class more")
    case, patient = replace(desk.case, scribble=scribble), (desk.case.patient,)
    return Dataset(desk.root.name, names, IGNORE, patient, lambda name: [case], {1: patient}, "chaos",
                   channels=1 if case.image.ndim == 3 else case.image.shape[1], trains={1: patient}, scored=False,
                   values=desk.labels.values, reading=desk.reading)


def learn(
    desk: Desk,
    scribble: np.ndarray,  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
    show: Callable[[Training, np.ndarray | None], object] = lambda *_: None,  # each few steps; a mask now and then
    stop: threading.Event | None = None,  # once it is set, what has been learnt so far segments
    before: Training | None = None,  # of `learn`: go on from its weights; None: from fresh ones
    **settings: Any,  # of `Config`, over QUICK
) -> tuple[np.ndarray, Training]:  # mask [Z,Y,X] uint8 class ids, and the weights
    "Train on the strokes of one scan; segment it meanwhile, and at the end."
    settings = QUICK | (ONWARD if before else {}) | settings
    config = Config.from_flat(**settings | {"dataset": "folder", "root": str(desk.root)})
    due = 0.0

    def segment(state: Training) -> np.ndarray:
        return predict_volume(state.model, desk.case.image, size=config.size, back=config.eval_resize,
                              autocast=choose_precision(config.precision, state.device))

    def watch(state: Training) -> None:
        nonlocal due
        mask, began = None, time.monotonic()
        if stop is not None and stop.is_set():
            raise Stopped(state)
        if began >= due:
            mask = segment(state)
            due = began + max(2.0, (time.monotonic() - began) / LIVE)
        show(state, mask)

    try:
        state = train(config, one_scan(desk, scribble), watch=watch, weights=before and before.model.state_dict())
    except Stopped as stopped:
        (state,) = stopped.args
    return segment(state), state


# %% [markdown]
# ## Draw, train, correct, train
#
# The first strokes go around the organs, and the network has never heard of the rest of the body: it floods. A
# simulated annotator looks at the mask and puts one stroke into the largest wrong region of each slice, with the pen of
# the class that belongs there; then the training goes on.

# %%
#| export
def correct(
    label: np.ndarray,  # [Z,Y,X] uint8 class ids: the truth
    scribble: np.ndarray,  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
    mask: np.ndarray,  # [Z,Y,X] uint8 class ids: what came of it
    *,
    seed: int = 0,
    least: int = 20,  # pixels of a region that is not worth a stroke
) -> np.ndarray:  # [Z,Y,X] the scribble with more strokes
    "A simulated annotator: one more stroke in the largest wrong region of each slice, in the class that belongs there."
    rng, better = np.random.default_rng(seed), scribble.copy()
    for z, (truth, found) in enumerate(zip(label, mask, strict=True)):
        wrong = ((class_id, part) for class_id in np.unique(truth)
                 for part in largest_parts((truth == class_id) & (found != class_id)))
        class_id, part = max(wrong, key=lambda pair: pair[1].sum(), default=(0, np.zeros_like(truth, bool)))
        if part.sum() > least:
            better[z][stroke(part, rng)] = class_id
    return better


# %%
rounds, drawn, state = [], strokes((1, 2, 4, 5, 6)), None
for _ in range(3):
    mask, state = learn(open_desk(heart, NAMES, work / "heart"), drawn, before=state, size=64, iterations=100)
    rounds.append((drawn, mask))
    drawn = correct(heart.label, drawn, mask)


# %%
def plot_rounds(rounds, z=2):
    "One slice, training after training: strokes, mask, truth as outlines."
    figure, axes = panels(len(rounds), size=2.6)
    for axis, (drawn, mask) in zip(axes, rounds, strict=True):
        draw(axis, heart.image[z], label=mask[z], outline=heart.label[z], scribble=drawn[z], ignore=IGNORE,
             title=f"slice {z}, {(drawn != IGNORE).mean():.1%} drawn\nDSC {np.mean(scores(mask)):.2f}")
    class_legend(figure, NAMES, background=True)

plot_rounds(rounds)
print("mean DSC:", ", ".join(f"{np.mean(scores(mask)):.2f}" for _, mask in rounds))
assert all(only_more(a, b) and not only_more(b, a) for (a, _), (b, _) in pairwise(rounds))

# %%
interact(lambda training=1, z=2: plot_rounds([rounds[training - 1]], z), training=(1, 3), z=(0, 7));


# %% [markdown]
# DSC is the mean of three classes over the whole volume. A stroke in the right place is worth more than many where the
# mask is right already: that is why the mask is shown while one draws.

# %% [markdown]
# ## How much is luck?
#
# Seeds decide what floods; so does the number of threads, which changes the last digits of every sum. Four scans by which none
# of this was chosen, three seeds each, strokes on every second slice, then the annotator from above, twice. This chapter only
# draws what `python -m benchmarks.annotator` measured.

# %%
def plot_luck(study):
    "Mean DSC after each training, a line for each scan and seed; a cross where a class lost half of its own strokes."
    kinds, scans = ([*dict.fromkeys(row[name] for row in study)] for name in ("kind", "scan"))
    _, axes = plt.subplots(1, len(kinds), figsize=(8.4, 2.8), sharey=True, layout="constrained")
    for row in study:
        axis, score = axes[kinds.index(row["kind"])], [np.mean(done["dsc"]) for done in row["rounds"]]
        axis.plot((1, 2, 3), score, "o-", color=COLOURS[scans.index(row["scan"])], linewidth=1, markersize=4,
                  label=row["scan"] if row["seed"] == study[0]["seed"] else None)
        lost = [k for k, done in enumerate(row["rounds"]) if min(done["kept"]) < 0.5]
        axis.plot([k + 1 for k in lost], [score[k] for k in lost], "kx", markersize=9)
    for axis, kind in zip(axes, kinds, strict=True):
        axis.set(title=kind, xticks=(1, 2, 3), xlabel="training", ylim=(0, 1))
    axes[0].set_ylabel("mean DSC")
    axes[-1].legend(frameon=False, fontsize=8, loc="lower right")

COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00")
plot_luck(json.loads((project_root() / "benchmarks/annotator.json").read_text())["rows"])

# %% [markdown]
# Left to right: with dropout and fresh weights, with fresh weights, as here; crosses mark masks that contradict more than half
# of the strokes of a class. After two corrections the worst of twelve has a DSC of 0.20, 0.28 and 0.69. Dropout alone changes
# little. Going on may fall back once too (a phantom, from 0.58 to 0.43), but it lost no class.

# %% [markdown]
# ## Real data: a heart of ACDC
#
# An expert's strokes on every second slice, as if drawn here; the score on the slices in between. One patient, one
# frame: it shows that the loop works on a scanner's image, not how well it works on average.

# %%
path = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set")) / "acdc/training/patient001/patient001_frame01.nii.gz"
if path.is_file():
    desk = open_desk(path, NAMES, work / "acdc")
    truth, expert = (np.ascontiguousarray(desk.case.grid.take(np.asarray(nib.load(
        str(path).replace(".nii", f"_{kind}.nii")).dataobj))).astype(np.uint8) for kind in ("gt", "scribble"))
    expert = np.where(expert == 4, IGNORE, expert).astype(np.uint8)
    expert[1::2] = IGNORE
    mask, state = learn(desk, expert, size=96, iterations=100)
    between = [dice(mask[1::2] == c, truth[1::2] == c) for c in (1, 2, 3)]
    print(f"{state.seconds:.0f} s; DSC on the slices nobody drew on: "
          + ", ".join(f"{name} {score:.2f}" for name, score in zip(NAMES[1:], between, strict=True)))
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** Segmenting a large scan takes 4 s, `LIVE` is 0.2 and a training without masks takes 40 s. How many
# masks does one see on the way, if the first comes at once?

# %%
def check_masks(answer):
    clock, masks, due, trained = 0.0, 0, 0.0, 0.0
    while trained < 40:
        if clock >= due:
            masks, due, clock = masks + 1, clock + 4 / LIVE, clock + 4
        trained, clock = trained + 0.5, clock + 0.5
    assert answer() == masks

def my_masks():
    ...  # your number here

exercise(check_masks, my_masks, solution=lambda: 3)


# %% [markdown]
# **2. Implement** a guide: the slice that lies furthest from all slices drawn on, the lowest of them if there are
# several; slice 0 if nothing is drawn.

# %%
def check_guide(guide):
    drawn = np.full((9, 2, 2), IGNORE, np.uint8)
    assert guide(drawn) == 0
    drawn[2, 0, 0] = 1
    assert guide(drawn) == 8
    drawn[7] = 0
    assert guide(drawn) == 0

def my_guide(scribble):
    return 0  # improve this

def solve_guide(scribble):
    drawn = np.flatnonzero((scribble != IGNORE).any((1, 2)))
    away = np.abs(np.arange(len(scribble))[:, None] - drawn[None])
    return int(away.min(1, initial=len(scribble)).argmax())

exercise(check_guide, my_guide, solve_guide)


# %% [markdown]
# **3. Break.** Return strokes that are right in every voxel, show all three organs, and that `learn` refuses.

# %%
def check_refused(make):
    drawn = make()
    told = drawn != IGNORE
    assert np.array_equal(drawn[told], heart.label[told]) and {1, 2, 3} <= {*drawn[told]}
    try:
        learn(open_desk(heart, NAMES, work / "heart"), drawn, size=32, iterations=1)
    except DataError as error:
        print(error)
    else:
        raise AssertionError("it learns")

def my_refused():
    return strokes((2, 3))  # improve this

exercise(check_refused, my_refused, solution=lambda: np.where(strokes((2, 3)) == 0, IGNORE, strokes((2, 3))))

# %% [markdown]
# ## Recap
#
# Exported: `open_desk`, `save_desk`, `save_learnt` for the files, `learn` for mask and weights. What may surprise: the
# first mask is worth showing although it is wrong, because it says where to draw next.
# [The annotator](48_annotator.ipynb) puts a pen in front of it.
