# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper's figures, from our runs
#
# Figure 1 from the network itself, Figures 2 and 3 from the masks of finished runs. From the folder `nbs`:
#
# ```bash
# mkdir -p ../runs                                               # for the executed notebook
# papermill figures.ipynb ../runs/figures.ipynb                  # phantom runs of runs/ → figures/methods-phantom.png
# papermill figures.ipynb ../runs/figures.ipynb -p dataset acdc  # Figure 2; patients' pictures go beside the runs
# papermill --help-notebook figures.ipynb                        # what the parameters mean
# ```
#
# How slice and circles are chosen stands in [chapter 61](reporting/61_figures.ipynb).

# %% tags=["parameters"]
runs: str = ""  # folder of run folders; empty: runs/ of the clone
output: str = "../figures"  # folder for the pictures
dataset: str = "phantom"  # whose runs: phantom, acdc, wsl4mis, chaos
root: str = ""  # folder of the data; empty: where the runs found it
profile: str = ""  # smoke, mini, fast, paper; empty: the one that most methods were run with
preset: str = ""  # paper, released; empty: both side by side
policy: str = "standard"  # how empty masks count in the scores: standard, legacy
fold: int = 1  # test fold, counted from 1

# %%
from attenscribble.basics.notebook import announce, notebook_settings, short_errors

with short_errors():  # a misspelt name is refused before anything large is loaded
    given = notebook_settings(globals())

# %%
from pathlib import Path

from attenscribble.basics.drawing import save_figure
from attenscribble.basics.files import project_root
from attenscribble.method.objective import method_named
from attenscribble.reporting.figures import (
    dataset_of,
    find_runs,
    picture_folder,
    plot_architecture,
    plot_methods,
)
from attenscribble.reporting.tables import DATASETS, notebook_parameters
from attenscribble.runs.config import PRESETS, PROFILES, Config
from attenscribble.runs.metrics import POLICIES

# %%
with short_errors():
    notebook_parameters(given, runs=None, output=None, dataset=DATASETS, root=None, profile=("", *PROFILES),
                        preset=("", *PRESETS), policy=POLICIES, fold=None)
run_folders = Path(runs) if runs else (project_root() or Path.cwd()) / "runs"

# %% [markdown]
# ## Figure 1: the network
#
# Channels over grid; the attention where it is attached; at the right the losses and what they read.

# %%
model = method_named("ours").network(1, 4, Config(profile="paper", preset=preset or None))
announce(str(save_figure(plot_architecture(model, 256), Path(output).resolve() / "figure1")))

# %% [markdown]
# ## Figures 2 and 3: the methods on one slice
#
# Solid circles: claimed and not there. Dashed: there and missed.

# %%
found = find_runs(run_folders, dataset, profile=profile, preset=preset, fold=fold)
if found:
    figure = plot_methods(found, dataset_of(found[0], root), policy=policy)
    target = picture_folder(dataset, output, run_folders)  # where to, and why not to `output`
    picture = save_figure(figure, target[0] / f"methods-{dataset}", dpi=110 if len(found) < 6 else 80)
    announce(f"{target[1]}\n{picture}".lstrip())
else:
    announce(f"no finished run of {dataset}, fold {fold}" + "".join(f", {name}" for name in (profile, preset) if name)
             + f" in {run_folders}; this makes one:\n"
             f"papermill train.ipynb ../runs/{dataset}.ipynb -p dataset {dataset} -p method ours")
