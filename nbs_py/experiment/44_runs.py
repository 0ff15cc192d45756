# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Runs
#
# > From a configuration to masks, scores and one small file that says how they came about.
#
# **Question.** In a year, someone doubts a number in your table. What must you have kept?

# %%
#| default_exp experiment.runs

# %%
#| export
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

from attenscribble import __version__
from attenscribble.book import class_legend, draw, panels, project_root, save_figure
from attenscribble.data.batches import resize_image
from attenscribble.data.datasets import open_dataset
from attenscribble.data.scans import Case, DataError, Dataset
from attenscribble.experiment.config import Config
from attenscribble.experiment.inference import predict_volume, save_mask
from attenscribble.experiment.metrics import POLICIES, format_table, score_case, summarise
from attenscribble.experiment.processes import joined
from attenscribble.experiment.training import Training, choose_device, choose_precision, train, train_in_processes
from attenscribble.machine import native, processes, rank, write_whole
from attenscribble.method.objective import attention_of, method_named
from attenscribble.method.other_networks import build_network
from attenscribble.method.ssa import attention_maps, plot_attention

# %%
import tempfile

from attenscribble.book import exercise


# %% [markdown]
# ## The answer first
#
# A run folder and, in it, a `result.json` of a few kilobytes: all settings, the versions, the kind of machine, the
# rule by which the checkpoint was chosen, and the score of **every** volume and class under each policy for empty
# masks. Tables are made from these files and from nothing else.
#
# ```
# runs/acdc-ours-fold1-seed2022-mini-1a2b3c4d/
#     config.json  log.csv  checkpoint.pt  masks/*.nii.gz  prediction.png  attention.png  report.md  result.json
# ```

# %%
#| export
@dataclass
class Outcome:
    "A finished run."

    config: Config
    dataset: Dataset
    folder: Path
    result: dict[str, Any]  # what result.json holds
    model: nn.Module  # the weights that were tested, in eval mode
    log: list[dict[str, float]]
    masks: dict[str, np.ndarray]  # case name → [Z,Y,X] uint8

    def summary(self, policy: str = POLICIES[0]) -> pd.DataFrame:
        "Mean and standard deviation per class under a policy for empty masks."
        rows = pd.DataFrame(self.result["cases"])
        return summarise(rows[rows.policy == policy])

    def report(self) -> str:
        "The table of the run with the line that says what it is."
        lines = [self.config.run_id, headline(self.result), ""]
        if not self.result["cases"]:
            return "\n".join([*lines, "Nothing was scored: no dense labels. The masks are in masks/; of new scans:",
                              f"attenscribble predict --checkpoint {os.path.relpath(self.folder)} SCANS MASKS", ""])
        for policy in POLICIES:
            lines += [format_table(self.summary(policy)).to_string(), ""]
        return "\n".join(lines)

    def files(self) -> str:
        "Where everything was written."
        kept = ["result.json", "log.csv", "checkpoint.pt", "masks", "prediction.png", "attention.png"]
        return "\n".join(f"{name:16}{os.path.relpath(self.folder / name)}" for name in kept
                         if (self.folder / name).exists())


def headline(result: dict[str, Any]) -> str:
    "Profile, checkpoint rule, seed, machine and size of the test fold, in one line."
    return (f"profile {result['profile']}, preset {result['preset']}, seed {result['seed']}, "
            f"checkpoint {result['checkpoint']}, {result['test_volumes']} test volumes of fold {result['fold']}, "
            f"{result['machine']}")


# %% [markdown]
# ## What else belongs into the file

# %%
#| export
def machine_kind(
    device: torch.device,
) -> str:  # "NVIDIA H200" or "2 CPU cores, AVX512"; with fewer threads than cores "1 of 2 CPU cores, AVX512"
    "The kind of machine and how much of it was used, without its name."
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    used = f"{threads} of {cores}" if threads < cores else str(cores)
    return f"{used} CPU cores, {torch.backends.cpu.get_cpu_capability()}"


def precision_used(config: Config) -> str:
    "What `auto` came to: float32 or bfloat16."
    return str(choose_precision(config.precision, choose_device(config.device)) or torch.float32).removeprefix("torch.")


def software() -> dict[str, str]:
    "Versions of what a result depends on."
    packages = ("torch", "numpy", "scipy", "scikit-image", "nibabel", "h5py")
    return {"python": platform.python_version(), "attenscribble": __version__, **{p: version(p) for p in packages}}


def run_folder(config: Config) -> Path:
    "The folder of a run: under `output`, else under runs/ of the clone or of the current folder."
    base = Path(config.output) if config.output else (project_root() or Path.cwd()) / "runs"
    return base / config.run_id


def write_json(content: Any, path: Path) -> Path:
    "Write JSON, whole or not at all."
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


# %% [markdown]
# ## Segment and score a fold
#
# Whole volumes, one after another. A scan that carries no voxel spacing has no HD95 in mm: the run says so before it
# trains, not after.

# %%
#| export
def check_scorable(dataset: Dataset, config: Config) -> None:
    "Raises DataError, before any training, when the test fold cannot be scored as asked."
    _, patients = dataset.split(config.fold)
    for case in dataset.read(patients[0]) if dataset.scored else ():
        if case.label is None:
            raise DataError(f"{case.name}: a test volume needs a dense label to be scored against, found none")
        if case.spacing_mm is None and config.hd95:
            raise DataError(f"{case.name}: HD95 in mm needs the voxel spacing, {config.dataset} holds none; give it "
                            "(data_spacing: a json or a folder of NIfTI scans) or score DSC only (hd95=false)")


def segment_fold(
    model: nn.Module,
    dataset: Dataset,
    config: Config,
    folder: Path,  # masks/ is written here
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:  # masks and scores by case
    "Predict and save every test volume; score it, unless the dataset is not scored."
    device = choose_device(config.device)
    masks, rows = {}, []
    for case in tqdm(dataset.cases(dataset.split(config.fold)[1]), desc="test volumes"):
        mask = predict_volume(model, case.image, size=config.size, device=device,
                              autocast=choose_precision(config.precision, device), back=config.eval_resize)
        if case.affine is not None or case.spacing_mm is not None:  # else nothing says where the mask lies
            save_mask(mask, case, folder / "masks" / f"{case.name}.nii.gz", dataset.values)
        masks[case.name] = mask
        if dataset.scored:
            rows += score(mask, case, dataset, config)
    return masks, rows


def score(mask: np.ndarray, case: Case, dataset: Dataset, config: Config) -> list[dict[str, Any]]:
    "Rows of one case under all policies, a lone slice in 2D; NaN becomes None, which JSON can hold."
    label, spacing_mm = case.label, case.spacing_mm
    if len(mask) == 1:  # in 3D every pixel of a lone slice would be surface
        mask, label, spacing_mm = mask[0], label[0], spacing_mm and spacing_mm[1:]
    rows = score_case(mask, label, spacing_mm, dataset.class_names, policy=POLICIES, case=case.name,
                      with_hd95=config.hd95)
    return [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rows]


# %% [markdown]
# ## The whole run

# %%
#| export
def settle(
    config: Config,
) -> tuple[Config, Dataset]:  # the configuration that a run is named by, and its data
    "Open the data and fill in what its loader chose by itself, such as the sequence at hand; what was given stays."
    dataset = open_dataset(config.dataset, config.root or None, **config.data)
    return config.model_copy(update={"data": dataset.options | config.data}), dataset


def run_experiment(
    config: Config,
    watch: Callable[[Training], None] | None = None,  # such as `LiveCurves()`
) -> Outcome | None:  # None only under `torchrun`, in all processes but number 0
    """Train on a fold, segment its test volumes, score them, write the result.

    With `devices` above 1 the training runs in as many fresh processes; under `torchrun`, in those that it started.
    Raises DataError, before anything is written, on data that lacks what the run needs; ValueError for
    settings that make no network; RuntimeError when another process is at work in the run folder.
    """
    config, dataset = settle(config)
    check_scorable(dataset, config)
    build_network(method_named(config.method), dataset.channels, dataset.classes, config)  # refused before any folder
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with joined(config.device):
        if rank():
            train(config, dataset, folder)
            return None
        try:
            with FileLock(folder / "lock", timeout=0):
                return locked_run(config, dataset, folder, watch)
        except Timeout:
            raise RuntimeError(f"{folder}: another process is working on this run") from None


def locked_run(config: Config, dataset: Dataset, folder: Path, watch: Callable | None) -> Outcome:
    "The run itself, inside its folder's lock."
    write_json(config.model_dump(), folder / "config.json")
    apart = config.devices > 1 and processes() == 1
    state = (train_in_processes if apart else train)(config, dataset, folder, watch)
    if state.best:
        state.model.load_state_dict(state.best["model"])
    started = time.perf_counter()
    masks, rows = segment_fold(state.model.eval(), dataset, config, folder)
    result = {
        "run": config.run_id, "dataset": config.dataset, "method": config.method,
        "title": method_named(config.method).title, "fold": config.fold, "seed": config.seed,
        "profile": config.profile, "preset": config.preset, "checkpoint": config.checkpoint,
        "checkpoint_step": state.best.get("step", state.step), "test_volumes": len(masks),
        "machine": machine_kind(state.device), "processes": max(config.devices, processes()),
        "kernels": "C" if state.device.type == "cpu" and native("") else "PyTorch",
        "train_seconds": round(state.seconds, 1),
        "test_seconds": round(time.perf_counter() - started, 1), "precision": precision_used(config),
        "differences": {name: value for name, value in config.differences().items() if name in config.decisive},
        "settings": config.decisive, "data_source": dataset.source, "software": software(), "last_log": state.log[-1],
        "scored": dataset.scored, "label_values": list(dataset.values), "cases": rows}
    outcome = Outcome(config, dataset, folder, result, state.model, state.log, masks)
    for figure, name in ((plot_predictions(outcome), "prediction"), (plot_attention_rows(outcome), "attention")):
        if figure is not None:
            save_figure(figure, folder / name)
            figure.clear()
    write_json(result, folder / "result.json")
    (folder / "report.md").write_text(f"{outcome.report()}\n{outcome.files()}\n")
    if config.archive:
        write_json(result, Path(config.archive) / f"{config.run_id}.json")
    return outcome


# %% [markdown]
# ## The pictures at its end
#
# The slice is chosen by a rule, not by eye: the test volume whose mean DSC is the median of the fold, and of it the
# middle one of the slices that contain an annotated structure.

# %%
#| export
def median_case(
    dataset: Dataset,
    fold: int,
    rows: pd.DataFrame,  # of `score_case`, under one policy, of one method or of several
) -> tuple[Case, int]:
    "The test volume with the median score over classes and methods, and the middle slice that its label fills."
    means = rows.astype({"dsc": float}).groupby("case").dsc.mean().sort_values(kind="stable")
    name = means.index[(len(means) - 1) // 2]
    case = next((case for case in dataset.cases(dataset.split(fold)[1]) if case.name == name), None)
    if case is None:
        raise DataError(f"{dataset.name}: fold {fold}", f"no test volume {name}", "the volumes that were scored")
    filled = np.flatnonzero(case.label.any(axis=(1, 2)))
    return case, int(filled[len(filled) // 2])


def shown_case(outcome: Outcome) -> tuple[Case, int]:
    "The case and slice that a run's own pictures show; without scores the middle test volume, where it has a mask."
    rows = pd.DataFrame(outcome.result["cases"])
    if not len(rows):
        names = list(outcome.masks)
        name = names[len(names) // 2]
        filled = np.flatnonzero(outcome.masks[name].any(axis=(1, 2)))
        tested = outcome.dataset.cases(outcome.dataset.split(outcome.config.fold)[1])
        return next(c for c in tested if c.name == name), int(filled[len(filled) // 2] if len(filled) else 0)
    return median_case(outcome.dataset, outcome.config.fold, rows[rows.policy == POLICIES[0]])


def plot_predictions(outcome: Outcome) -> Figure:
    "Image, scribble, prediction over the true outline, truth; the last two in one where there is no truth."
    case, z = shown_case(outcome)
    image, mask = case.gray[z], outcome.masks[case.name][z]
    spacing = case.spacing_mm[1:] if case.spacing_mm else None
    figure, axes = panels(4 if outcome.dataset.scored else 3)
    draw(axes[0], image, spacing_mm=spacing, title=f"{case.name}, slice {z}")
    if case.scribble is not None:
        draw(axes[1], image, scribble=case.scribble[z], ignore=outcome.dataset.ignore,
             title="scribble (not used here)" if outcome.dataset.scored else "scribble")
    if not outcome.dataset.scored:
        draw(axes[2], image, label=mask, title=f"{outcome.result['title']}: not scored")
        class_legend(figure, outcome.dataset.class_names)
        return figure
    label, scores = case.label[z], pd.DataFrame(outcome.result["cases"])
    scores = scores.query("case == @case.name and policy == @POLICIES[0]")
    draw(axes[2], image, label=mask, outline=label,
         title=f"{outcome.result['title']}: DSC {scores.dsc.mean():.2f}, true outline")
    draw(axes[3], image, label=label, title="truth")
    class_legend(figure, outcome.dataset.class_names)
    return figure


@torch.inference_mode()
def plot_attention_rows(outcome: Outcome) -> Figure | None:
    "What a cell of each class attends to in the slice of `plot_predictions`. None for a network without attention."
    attention = attention_of(outcome.model)
    if attention is None:
        return None
    case, z = shown_case(outcome)
    label = (outcome.masks[case.name] if case.label is None else case.label)[z]  # without truth: what it predicts
    device, size = next(outcome.model.parameters()).device, outcome.config.size
    shown = resize_image(torch.as_tensor(case.image[z], device=device), size).view(1, -1, size, size)
    outcome.model(shown)
    (h, w), query = attention.grid, attention.query.float()
    scale = query.shape[-1] ** -0.5 if outcome.config.asl.logit_scale == "sqrt_dk" else 1.0
    rows = attention_maps(query, attention.key.float(), scale)[0].mean(0) * h * w  # [hw,hw]; 1 = no preference
    figure, axes = panels(1 + outcome.dataset.classes)
    draw(axes[0], shown[0, 0].cpu(), title=f"{case.name}, slice {z}")
    for class_id, axis in enumerate(axes[1:]):
        ys, xs = np.nonzero(label == class_id)
        if len(ys):
            middle = len(ys) // 2  # a pixel of the class by a rule: the middle one in reading order
            y, x = int(ys[middle] * h / label.shape[0]), int(xs[middle] * w / label.shape[1])
            axes[0].plot((x + 0.5) * size / w, (y + 0.5) * size / h, "x", color="#D55E00", markersize=7)
            picture = plot_attention(axis, rows[y * w + x], (h, w), y * w + x, limits=(0, max(2.0, float(rows.max()))),
                                     title=f"attention × hw from {outcome.dataset.class_names[class_id]}")
    figure.colorbar(picture, ax=axes[-1], shrink=0.8)
    return figure


# %% [markdown]
# ## One small run, whole
#
# Thirty iterations on phantom patients: far too few to be good, enough to write every file.

# %%
with tempfile.TemporaryDirectory() as folder:
    small = Config.from_flat(iterations=30, batch=4, size=64, data_patients=5, data_side=64, data_slices=4,
                             asl_radius=1, asl_sigma=1.5, output=folder, archive=f"{folder}/results")
    outcome = run_experiment(small)
    written = {path.name for path in outcome.folder.iterdir()} | {p.name for p in Path(folder, "results").iterdir()}
    kept = json.loads((outcome.folder / "result.json").read_text())
assert {"result.json", "log.csv", "checkpoint.pt", "masks", "prediction.png", "report.md"} <= written
assert f"{small.run_id}.json" in written and kept["settings"]["iterations"] == 30
print(outcome.report())

# %%
plot_predictions(outcome);

# %%
plot_attention_rows(outcome);


# %% [markdown]
# With no training to speak of, the attention rows are flat: each entry is near $1/hw$, the value 1 in these panels.
#
# ## Exercises
#
# **1. Predict.** How many rows does `cases` of a result hold for 40 volumes, three classes, two policies?

# %%
def check_rows(answer):
    assert answer() == 240

def attempt_rows():
    ...

exercise(check_rows, attempt_rows, solution=lambda: 40 * 3 * 2)


# %% [markdown]
# **2. Implement.** From a result's rows, find the worst volume: the name with the lowest mean DSC.

# %%
def check_worst(worst):
    rows = [{"case": "a", "class": "LV", "dsc": 0.9, "policy": "standard"},
            {"case": "b", "class": "LV", "dsc": 0.2, "policy": "standard"}]
    assert worst(rows) == "b"

def attempt_worst(rows):
    ...

exercise(check_worst, attempt_worst, solution=lambda rows: pd.DataFrame(rows).groupby("case").dsc.mean().idxmin())


# %% [markdown]
# **3. Break.** Ask for a run whose settings cannot work on the phantom, and see that nothing is written.

# %%
def check_refused(attempt):
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_experiment(attempt(folder))
        except ValueError:
            assert not any(Path(folder).iterdir())
        else:
            raise AssertionError("it ran")

def attempt_refused(folder):
    return small.model_copy(update={"output": folder})

exercise(check_refused, attempt_refused, solution=lambda folder: Config.from_flat(fold=9, output=folder))

# %% [markdown]
# ## Recap
#
# Exported: `run_experiment`, `Outcome` and the two figures. [`train.ipynb`](../train.ipynb) is this chapter with
# parameters; [the next chapter](45_tables.ipynb) lays result files beside the paper's tables.
