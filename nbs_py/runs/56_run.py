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
# In a year, someone doubts a number in your table. What must you have kept to answer? A run writes everything into one folder, and its
# `result.json` says with which settings, versions and machine each number was made.

# %%
#| default_exp runs.run

# %%
#| export
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

# %%
#| export
import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm.auto import tqdm

# %%
#| export
from attenscribble import __version__
from attenscribble.basics.distributed import rank, world_size
from attenscribble.basics.drawing import class_legend, draw, for_figure, panels, plain, save_figure
from attenscribble.basics.errors import DataError
from attenscribble.basics.files import project_root, writable_folder, write_atomic, write_json
from attenscribble.basics.native import native
from attenscribble.basics.notebook import terminal_bar
from attenscribble.data.batches import resize_image
from attenscribble.data.datasets import find_dataset
from attenscribble.data.folder import Folder, matching_grid, open_folder, patients_of, said
from attenscribble.data.grid import Grid
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import Case, Dataset, content_id, read_header
from attenscribble.method.objective import attention_of
from attenscribble.method.ssa import SpatialSelfAttention, attention_maps, plot_attention
from attenscribble.runs.config import Config
from attenscribble.runs.inference import TrainedNetwork, save_mask
from attenscribble.runs.launch import process_group
from attenscribble.runs.metrics import POLICIES, format_table, score_case, summarise
from attenscribble.runs.setup import Setup, resolve
from attenscribble.runs.training import (
    Training, Watcher, check_same_data, checkpoint_bytes, continue_training, in_words, raise_all, start_training,
    train_in_processes)

# %%
import tempfile

from attenscribble.basics.checking import exercise


# %% [markdown]
# ## The answer first
#
# A run folder and, in it, a `result.json` of a few kilobytes: all settings, the versions, the kind of machine, the
# rule by which the checkpoint was chosen, and the score of **every** volume and class under each policy for empty
# masks. Tables are made from these files and from nothing else.
#
# ```
# runs/acdc-ours-fold1-seed2022-mini-1a2b3c4d/
#     config.json  log.csv  checkpoint.pt  masks/*.nii.gz  masks.json  prediction.png  attention.png  report.md  result.json
# ```

# %%
#| export
@dataclass
class Outcome:
    "A finished run."

    setup: Setup
    folder: Path
    result: dict[str, Any]  # what result.json holds
    network: TrainedNetwork  # the one that was tested
    log: list[dict[str, float]]
    masks: dict[str, np.ndarray]  # case name → [Z,Y,X] uint8

    @property
    def config(self) -> Config:
        "The settings of the run."
        return self.setup.config

    @property
    def dataset(self) -> Dataset:
        "Its data."
        return self.setup.dataset

    @property
    def model(self) -> nn.Module:
        "The network that was tested, in eval mode."
        return self.network.model

    def summary(
        self,
        policy: str = POLICIES[0],  # for empty masks
    ) -> pd.DataFrame:  # of `summarise`
        "Mean and standard deviation per class under a policy for empty masks."
        rows = pd.DataFrame(self.result["cases"])
        return summarise(rows[rows.policy == policy])

    def report(self) -> str:
        "The table of the run with the line that says what it is."
        return plain(_report(self), keep="\n")

    def files(self) -> str:
        "Where everything was written."
        return plain(_files(self.folder), keep="\n")


# %%
#| export
def _report(outcome: Outcome) -> str:
    "Name, headline, and a table for each policy; where nothing was scored, what to do with the network."
    lines = [outcome.config.run_id, headline(outcome.result), ""]
    if not outcome.result["cases"]:
        return "\n".join([*lines, "Nothing was scored: no dense labels. The masks are in masks/; of new scans:",
                          f"attenscribble predict --checkpoint {os.path.relpath(outcome.folder)} SCANS MASKS", ""])
    for policy in POLICIES:
        lines += [format_table(outcome.summary(policy)).to_string(), ""]
    return "\n".join(lines)


# %%
#| export
def _files(folder: Path) -> str:
    "What lies in a run folder, a line each."
    kept = ["result.json", "log.csv", "checkpoint.pt", "masks", "prediction.png", "attention.png"]
    return "\n".join(f"{name:16}{os.path.relpath(folder / name)}" for name in kept if (folder / name).exists())


# %%
#| export
def headline(
    result: dict[str, Any],  # the content of a result.json
) -> str:  # one line
    "Profile, checkpoint rule, seed, machine, what was learnt from and the size of the test fold."
    learnt = f"learnt from {in_words(result['trained_on'])}, " if result.get("trained_on") else ""
    return (f"profile {result['profile']}, preset {result['preset']}, seed {result['seed']}, "
            f"checkpoint {result['checkpoint']}, {learnt}{result['test_volumes']} test volumes of fold "
            f"{result['fold']}, {result['machine']}")


# %% [markdown]
# ## What else belongs into the file

# %%
#| export
def machine_kind(
    device: torch.device,  # where the network ran
) -> str:  # "NVIDIA H200" or "2 CPU cores, AVX512"; with fewer threads than cores "1 of 2 CPU cores, AVX512"
    "The kind of machine and how much of it was used, without its name."
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    used = f"{threads} of {cores}" if threads < cores else str(cores)
    return f"{used} CPU cores, {torch.backends.cpu.get_cpu_capability()}"


# %%
#| export
def precision_name(
    precision: torch.dtype | None,  # autocast type
) -> str:  # float32 or bfloat16
    "What `auto` came to."
    return str(precision or torch.float32).removeprefix("torch.")


# %%
#| export
def software() -> dict[str, str]:
    "Versions of what a result depends on."
    packages = ("torch", "numpy", "scipy", "scikit-image", "nibabel", "h5py")
    found = {"python": platform.python_version(), "attenscribble": __version__, **{p: version(p) for p in packages}}
    return found | {"torch": str(torch.__version__)}  # with the kind of build, which its package may not name


# %%
#| export
def run_folder(
    config: Config,  # output, and all that the run is named by
) -> Path:  # runs/ID
    "The folder of a run: under `output`, else under runs/ of the clone or of the current folder."
    base = Path(config.output).expanduser() if config.output else (project_root() or Path.cwd()) / "runs"
    return base / config.run_id


# %% [markdown]
# ## Segment and score a fold
#
# Whole volumes, one after another. A scan that carries no voxel spacing has no HD95 in mm: the run says so before it
# trains, not after.
#
#
# Nor should a day's training end at a test volume that cannot be read. All of them are read beforehand: the 40 of an ACDC fold in a second and a half. Of
# a folder of large scans, what is not read after twenty seconds is checked by its headers and the sizes of its files. If any is at fault, those to train
# on are looked at too, and all faults are told at once.

# %%
#| export
_PATIENCE_S = 20.0  # whole files are read for so long, then headers


def check_scorable(
    setup: Setup,  # of the run
) -> None:
    """Raises DataError, before any training, when test volumes cannot be read, or scored as asked.

    With a line for each fault; then of the training's files too."""
    dataset, config = setup.dataset, setup.config
    train, test = dataset.split(config.fold)
    if getattr(dataset.read, "__module__", "") == phantom.__module__:
        test = test[:1]  # drawn by a formula: all are alike
    look, faults = _Look(setup), list[DataError]()
    for patient in tqdm(test, desc="checking test volumes", delay=2, leave=False):
        faults += look.faults_of(patient, scored=dataset.scored)
    if faults:
        known = {str(fault) for fault in faults}
        faults += [fault for patient in train for fault in look.faults_of(patient, scored=False)
                   if str(fault) not in known]
    raise_all(faults)


# %%
#| export
class _Look:
    "Looks at the files of one patient after another: whole ones at first, then headers where the dataset has some."

    def __init__(self, setup: Setup) -> None:
        self.setup, self.since, self.spacing_told = setup, time.monotonic(), False

    def faults_of(self, patient: str, scored: bool) -> list[DataError]:
        "What is wrong with a patient's files."
        late = time.monotonic() - self.since > _PATIENCE_S
        try:
            if late and self.setup.config.dataset == "folder":
                return [*_header_faults(self.setup, patient)]
            return [fault for case in self.setup.dataset.cases([patient]) if scored for fault in self.unscorable(case)]
        except DataError as error:
            return [error]

    def unscorable(self, case: Case) -> Iterator[DataError]:
        "Why a test volume cannot be scored as asked; of a spacing that all lack, once."
        config = self.setup.config
        if case.label is None:
            yield DataError(f"{case.name}: a test volume needs a dense label to be scored against, found none")
        if case.spacing_mm is None and config.hd95 and not self.spacing_told:
            self.spacing_told = True
            yield DataError(f"{case.name}: HD95 in mm needs the voxel spacing, {config.dataset} holds none; give it "
                            "(data_spacing: a json or a folder of NIfTI scans) or score DSC only (hd95=false)")


# %% [markdown]
# **Nothing of another run's data.** Two folders of data can give runs of one name, such as ACDC with the scribbles of
# two experts: the hash of the data in a result tells them apart, and the archive never replaces one by the other. A
# training that begins anew removes the masks that the last one left in its folder: those that stand in its list, and no
# other file.

# %%
#| export
def check_archive(
    setup: Setup,  # of the run
) -> None:
    "Raises DataError, before any training, where the archive holds a result of this name from other data."
    if setup.config.archive:
        path = Path(setup.config.archive).expanduser() / f"{setup.config.run_id}.json"
        check_result(path, lambda: content_id(setup.content), "archive")


# %%
#| export
def check_result(
    path: Path,  # of a result file; it need not be there
    now: Callable[[], str],  # the hash of the data that is there; asked for only if the file has one
    place: str,  # archive or output: the setting that decides where it lies
) -> None:
    "Raises DataError for a result of other data. Older files, which do not say of which, pass."
    try:
        kept = json.loads(path.read_text(encoding="utf-8")).get("content", "")
    except (OSError, ValueError, AttributeError):  # none there, or no result
        return
    if kept and kept != (found := now()):
        raise DataError(f"{path}: content", f"{kept}, a result of this name from other data", f"{found}, or another "
                        f"{place}=… for this data")


# %%
#| export
_LIST = "masks.json"  # in a run folder: the names of the masks that it wrote


def _listed(folder: Path) -> list[str]:
    "Names of the masks that runs wrote into a run folder; of one from 0.1, those of the scored volumes."
    for name in (_LIST, "result.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            names = content if name == _LIST else [row["case"] for row in content["cases"]]
            return [case for case in dict.fromkeys(names) if isinstance(case, str) and Path(case).name == case]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


# %%
#| export
def _list_mask(folder: Path, name: str) -> None:
    "Note a mask's name before it is written."
    if name not in (listed := _listed(folder)) or not (folder / _LIST).is_file():
        write_json([*dict.fromkeys([*listed, name])], folder / _LIST)


# %%
#| export
def clear_masks(
    folder: Path,  # of a run that begins anew
) -> None:
    "Remove the masks that an earlier run of this name wrote, and no other file."
    for name in _listed(folder):
        (folder / "masks" / f"{name}.nii.gz").unlink(missing_ok=True)
    (folder / _LIST).unlink(missing_ok=True)


# %%
#| export
def _header_faults(setup: Setup, patient: str) -> Iterator[DataError]:
    "What the headers and sizes of a patient's files in a folder of the user's own say."
    opened = _opened(str(find_dataset("folder", setup.config.root or None)), json.dumps(setup.config.data))
    for name in patients_of(opened).get(patient, ()):
        files, grid = opened.scans[name], None
        for path in (*files.images, *filter(None, (files.scribble, files.label))):
            try:
                scan = read_header(path)
                grid = grid or Grid.of(scan, opened.options.axis)
                matching_grid(path, scan, grid, opened.options.check_affine)
            except DataError as error:
                yield error


# %%
#| export
@cache
def _opened(root: str, options: str) -> Folder:
    "A folder, listed once a process."
    return open_folder(root, **json.loads(options))


# %%
#| export
def segment_fold(
    network: TrainedNetwork,  # segments each test volume
    setup: Setup,  # the fold, and whether it is scored
    folder: Path,  # masks/ is written here
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:  # masks and scores by case
    "Predict and save every test volume; score it, unless the dataset is not scored."
    dataset, config = setup.dataset, setup.config
    trained, patients = dataset.split(config.fold)
    masks, rows = {}, []
    with terminal_bar(desc="test volumes") as bar:
        for case in tqdm(said(dataset.cases(patients), but=trained), desc="test volumes"):
            masks[case.name] = mask = network.segment(case.image, device=setup.device)
            _list_mask(folder, case.name)
            if case.affine is not None or case.spacing_mm is not None:  # else nothing says where the mask lies
                save_mask(mask, case, folder / "masks" / f"{case.name}.nii.gz", dataset.values)
            if dataset.scored:
                rows += score(mask, case, dataset, config)
            bar.update()
    return masks, rows


# %%
#| export
def _truth(case: Case) -> np.ndarray:
    "The label of a case that is scored. Raises DataError for one without."
    if case.label is None:
        raise DataError(f"{case.name}: label", "none", "a dense label, to be scored against")
    return case.label


# %%
#| export
def score(
    mask: np.ndarray,  # [Z,Y,X] uint8 class ids
    case: Case,  # with its label
    dataset: Dataset,  # the names of the classes
    config: Config,  # hd95
) -> list[dict[str, Any]]:  # of `score_case`
    "Rows of one case under all policies, a lone slice in 2D; NaN becomes None, which JSON can hold."
    label, spacing_mm = _truth(case), cast(Sequence[float] | None, case.spacing_mm)
    if len(mask) == 1:  # in 3D every pixel of a lone slice would be surface
        mask, label, spacing_mm = mask[0], label[0], spacing_mm and spacing_mm[1:]
    rows = score_case(mask, label, spacing_mm, dataset.class_names, policy=POLICIES, case=case.name,
                      with_hd95=config.hd95)
    return [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rows]


# %% [markdown]
# ## The whole run

# %%
#| export
def run_experiment(
    config: Config,  # the settings of the run
    watch: Watcher | None = None,  # such as `LiveCurves()`
) -> Outcome | None:  # None only under `torchrun`, in all processes but number 0
    """Train on a fold, segment its test volumes, score them, write the result.

    With `devices` above 1 the training runs in as many fresh processes; under `torchrun`, in those that it started.
    Raises DataError, before anything is written, on data that lacks what the run needs, for all test files that cannot
    be read, and for a folder that cannot be written to; ValueError for settings that make no network; RuntimeError when
    another process is at work in the run folder.
    """
    with process_group(config.device):
        setup = resolve(config)
        check_scorable(setup)
        check_archive(setup)
        state = start_training(setup)  # settings that make no network are refused before there is a folder
        folder = writable_folder(run_folder(setup.config), room=3 * checkpoint_bytes(state))  # old, new, masks
        if setup.config.archive:
            writable_folder(Path(setup.config.archive).expanduser())
        if rank():
            continue_training(state, folder)
            return None
        try:
            with FileLock(folder / "lock", timeout=0):
                return _locked_run(state, folder, watch)
        except Timeout:
            raise RuntimeError(f"{folder}: another process is working on this run") from None


# %%
#| export
def _locked_run(state: Training, folder: Path, watch: Watcher | None) -> Outcome:
    "The run itself, inside its folder's lock."
    setup, kept = state.setup, folder / "checkpoint.pt"
    if kept.exists() and not kept.is_file():  # before a mask is removed
        raise DataError(kept, "no file", "a checkpoint, or nothing there: move it away")
    if setup.config.resume and kept.is_file():
        check_same_data(state, kept)  # before config.json would name another root
    else:
        clear_masks(folder)
    write_json(setup.config.model_dump(), folder / "config.json")
    apart = setup.config.devices > 1 and world_size() == 1
    (train_in_processes if apart else continue_training)(state, folder, watch)
    started = time.perf_counter()
    network = TrainedNetwork.of(state)
    network.model.eval()
    masks, rows = segment_fold(network, setup, folder)
    result = _result(state, rows, len(masks), time.perf_counter() - started)
    outcome = Outcome(setup, folder, result, network, state.log, masks)
    _write(outcome)
    return outcome


# %% [markdown]
# What a result says of its run: settings and where they differ from the defaults, data, machine, software, then a row for each volume and class.

# %%
#| export
def _result(state: Training, rows: list[dict[str, Any]], volumes: int, seconds: float) -> dict[str, Any]:
    "The content of result.json."
    config, dataset, device = state.config, state.setup.dataset, state.setup.device
    named = ("dataset", "method", "fold", "seed", "profile", "preset", "checkpoint")
    return {
        "run": config.run_id, **{name: getattr(config, name) for name in named}, "title": state.setup.method.title,
        "checkpoint_step": state.best.get("step", state.step), "test_volumes": volumes,
        "machine": machine_kind(device), "processes": max(config.devices, world_size()),
        "kernels": "C" if device.type == "cpu" and native("") else "PyTorch",
        "train_seconds": round(state.seconds, 1), "test_seconds": round(seconds, 1),
        "precision": precision_name(state.setup.precision),
        "differences": {name: value for name, value in config.differences().items() if name in config.decisive},
        "trained_on": state.learnt, "content": content_id(state.setup.content),
        "settings": config.decisive, "data_source": dataset.source, "software": software(), "last_log": state.log[-1],
        "scored": dataset.scored, "label_values": list(dataset.values), "cases": rows}


# %% [markdown]
# The result comes first, pictures last: one that cannot be drawn costs a warning, never the result of a day. In `report.md` every line is indented, which
# Markdown shows as it is.

# %%
#| export
def _write(outcome: Outcome) -> None:
    "Result and report into the run folder, the result into the archive too; then the pictures."
    folder, config = outcome.folder, outcome.config
    write_json(outcome.result, folder / "result.json")
    if config.archive:
        check_archive(outcome.setup)
        write_json(outcome.result, Path(config.archive).expanduser() / f"{config.run_id}.json")
    text = "".join(f"    {line}".rstrip() + "\n" for line in f"{outcome.report()}\n{outcome.files()}".split("\n"))
    write_atomic(folder / "report.md", lambda new: new.write_text(text, encoding="utf-8"))
    for plot, name in ((plot_predictions, "prediction"), (plot_attention_rows, "attention")):
        try:
            if (figure := plot(outcome)) is not None:
                save_figure(figure, folder / name)
                figure.clear()
        except Exception as error:  # whatever it is, the result is there
            warnings.warn(f"{plain(folder / name)}.png: not drawn ({type(error).__name__}: {plain(error)}); the result "
                          "is written", stacklevel=2)


# %% [markdown]
# ## The pictures at its end
#
# The slice is chosen by a rule, not by eye: the test volume whose mean DSC is the median of the fold, and of it the
# middle one of the slices that contain an annotated structure.

# %%
#| export
def median_case(
    dataset: Dataset,  # whose test volumes these are
    fold: int,  # counted from 1
    rows: pd.DataFrame,  # of `score_case`, under one policy, of one method or of several
) -> tuple[Case, int]:  # with the number of a slice
    "The test volume with the median score over classes and methods, and the middle slice that its label fills."
    means = rows.astype({"dsc": float}).groupby("case").dsc.mean().sort_values(kind="stable")
    name = means.index[(len(means) - 1) // 2]
    case = next((case for case in dataset.cases(dataset.split(fold)[1]) if case.name == name), None)
    if case is None:
        raise DataError(f"{dataset.name}: fold {fold}", f"no test volume {name}", "the volumes that were scored")
    return case, _middle_slice(_truth(case))


# %%
#| export
def _middle_slice(mask: np.ndarray) -> int:
    "The middle one of the slices that a mask fills; the first slice if it fills none."
    filled = np.flatnonzero(mask.any(axis=(1, 2)))
    return int(filled[len(filled) // 2]) if len(filled) else 0


# %%
#| export
def shown_case(
    outcome: Outcome,  # a finished run
) -> tuple[Case, int]:  # with the number of a slice
    "The case and slice that a run's own pictures show; without scores the middle test volume, where it has a mask."
    rows = pd.DataFrame(outcome.result["cases"])
    if len(rows):
        return median_case(outcome.dataset, outcome.config.fold, rows[rows.policy == POLICIES[0]])
    name = list(outcome.masks)[len(outcome.masks) // 2]
    tested = outcome.dataset.cases(outcome.dataset.split(outcome.config.fold)[1])
    return next(case for case in tested if case.name == name), _middle_slice(outcome.masks[name])


# %%
#| export
def plot_predictions(
    outcome: Outcome,  # a finished run
) -> Figure:  # three or four panels
    "Image, scribble, prediction over the true outline, truth; the last two in one where there is no truth."
    case, z = shown_case(outcome)
    scored, image, name = outcome.dataset.scored, case.gray[z], for_figure(case.name)
    figure, axes = panels(4 if scored else 3)
    draw(axes[0], image, spacing_mm=case.spacing_mm[1:] if case.spacing_mm else None, title=f"{name}, slice {z}")
    if case.scribble is not None:
        draw(axes[1], image, scribble=case.scribble[z], ignore=outcome.dataset.ignore,
             title="scribble (not used here)" if scored else "scribble")
    _draw_prediction(axes[2:], outcome, case, z)
    class_legend(figure, outcome.dataset.class_names)
    return figure


# %%
#| export
def _draw_prediction(axes: np.ndarray, outcome: Outcome, case: Case, z: int) -> None:
    "A slice's prediction and, where there is one, its truth."
    image, mask, title = case.gray[z], outcome.masks[case.name][z], for_figure(outcome.result["title"])
    if not outcome.dataset.scored:
        draw(axes[0], image, label=mask, title=f"{title}: not scored")
        return
    rows = pd.DataFrame(outcome.result["cases"])
    dsc = rows[(rows["case"] == case.name) & (rows["policy"] == POLICIES[0])]["dsc"].mean()
    draw(axes[0], image, label=mask, outline=_truth(case)[z], title=f"{title}: DSC {dsc:.2f}, true outline")
    draw(axes[1], image, label=_truth(case)[z], title="truth")


# %% [markdown]
# What the attention looks at is asked for one cell of each class: the one in the middle of the class, in reading order.

# %%
#| export
@torch.inference_mode()
def plot_attention_rows(
    outcome: Outcome,  # a finished run
) -> Figure | None:  # None for a network without attention
    "What a cell of each class attends to in the slice of `plot_predictions`."
    attention = attention_of(outcome.model)
    if attention is None:
        return None
    case, z = shown_case(outcome)
    device, size = next(outcome.model.parameters()).device, outcome.config.size
    shown = resize_image(torch.as_tensor(case.image[z], device=device), size).view(1, -1, size, size)
    rows, grid = _attention_in(outcome, attention, shown)
    label = (outcome.masks[case.name] if case.label is None else case.label)[z]  # without truth: what it predicts
    figure, axes = panels(1 + outcome.dataset.classes)
    draw(axes[0], shown[0, 0].numpy(force=True), title=f"{for_figure(case.name)}, slice {z}")
    _draw_attention(figure, axes, rows, grid, label, outcome.dataset.class_names)
    return figure


# %%
#| export
def _attention_in(
    outcome: Outcome, attention: SpatialSelfAttention, image: Tensor
) -> tuple[Tensor, tuple[int, int]]:
    "[hw,hw] attention of one image, mean over heads, in multiples of an even spread; the grid."
    outcome.model(image)
    query, key = cast(Tensor, attention.query).float(), cast(Tensor, attention.key).float()
    h, w = cast(tuple[int, int], attention.grid)
    scale = query.shape[-1] ** -0.5 if outcome.config.asl_logit_scale == "sqrt_dk" else 1.0
    return attention_maps(query, key, scale)[0].mean(0) * h * w, (h, w)


# %%
#| export
def _draw_attention(
    figure: Figure, axes: np.ndarray, rows: Tensor, grid: tuple[int, int], label: np.ndarray, names: Sequence[str]
) -> None:
    "A cross on the image for a cell of each class, and beside it what that cell attends to."
    (h, w), (top, right) = grid, axes[0].images[0].get_array().shape
    limits = (0, max(2.0, float(rows.max())))
    for class_id, axis in enumerate(axes[1:]):
        ys, xs = np.nonzero(label == class_id)
        if not len(ys):
            continue
        y, x = int(ys[len(ys) // 2] * h / label.shape[0]), int(xs[len(xs) // 2] * w / label.shape[1])
        axes[0].plot((x + 0.5) * right / w, (y + 0.5) * top / h, "x", color="#D55E00", markersize=7)
        picture = plot_attention(axis, rows[y * w + x], (h, w), y * w + x, limits=limits,
                                 title=f"attention × hw from {for_figure(names[class_id])}")
    figure.colorbar(picture, ax=axes[-1], shrink=0.8)


# %% [markdown]
# ## One small run, whole
#
# Thirty iterations on phantom patients: far too few to be good, enough to write every file.

# %%
with tempfile.TemporaryDirectory() as folder:
    small = Config(iterations=30, batch=4, size=64, data_patients=5, data_side=64, data_slices=4,
                   asl_radius=1, asl_sigma_xy=1.5, output=folder, archive=f"{folder}/results")
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

exercise(check_refused, attempt_refused, solution=lambda folder: Config(fold=9, output=folder))

# %% [markdown]
# ## Recap
#
# Exported: `run_experiment`, `Outcome` and the two figures. [`train.ipynb`](../train.ipynb) is this chapter with
# parameters; [the next chapter](../reporting/60_tables.ipynb) lays result files beside the paper's tables.
