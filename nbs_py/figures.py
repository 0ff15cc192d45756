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
# papermill figures.ipynb -                    # phantom runs of runs/ → figures/methods-phantom.png
# papermill figures.ipynb - -p dataset acdc    # Figure 2; pictures of patients go beside the runs, not into the clone
# papermill --help-notebook figures.ipynb      # what the parameters mean
# ```
#
# How slice and circles are chosen stands in [chapter 46](experiment/46_figures.ipynb).

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
from pathlib import Path

from attenscribble.book import project_root, save_figure
from attenscribble.experiment.config import PRESETS, PROFILES, Config
from attenscribble.experiment.figures import dataset_of, find_runs, picture_folder, plot_architecture, plot_methods
from attenscribble.experiment.metrics import POLICIES
from attenscribble.experiment.tables import DATASETS, notebook_parameters
from attenscribble.method.objective import method_named

notebook_parameters(globals(), runs=None, output=None, dataset=DATASETS, root=None, profile=("", *PROFILES),
                    preset=("", *PRESETS), policy=POLICIES, fold=None)
run_folders = Path(runs) if runs else (project_root() or Path.cwd()) / "runs"

# %% [markdown]
# ## Figure 1: the network
#
# Channels over grid; the attention where it is attached; at the right the losses and what they read.

# %%
model = method_named("ours").network(1, 4, Config.from_flat(profile="paper", preset=preset or None))
print(save_figure(plot_architecture(model, 256), Path(output).resolve() / "figure1"))

# %% [markdown]
# ## Figures 2 and 3: the methods on one slice
#
# Solid circles: claimed and not there. Dashed: there and missed.

# %%
found = find_runs(run_folders, dataset, profile=profile, preset=preset, fold=fold)
if found:
    figure = plot_methods(found, dataset_of(found[0], root), policy=policy)
    target = picture_folder(dataset, output, run_folders)  # where to, and why not to `output`
    print(target[1], save_figure(figure, target[0] / f"methods-{dataset}", dpi=110 if len(found) < 6 else 80), sep="\n")
else:
    print(f"no finished run of {dataset}, fold {fold}" + "".join(f", {name}" for name in (profile, preset) if name)
          + f" in {run_folders}; this makes one: papermill train.ipynb - -p dataset {dataset} -p method ours")
