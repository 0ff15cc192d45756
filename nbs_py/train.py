# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train, segment, score
#
# One run = dataset × method × fold × seed × profile. From the folder `nbs`:
#
# ```bash
# papermill train.ipynb -p dataset acdc                      # the paper's method on ACDC
# papermill train.ipynb -p dataset acdc -p method pce        # a rival
# papermill --help-notebook train.ipynb                      # what the parameters mean
# ```
#
# Any field of [`Config`](experiment/40_config.ipynb) can be given with `-p`, those of its groups by a flat name such as
# `-p asl_radius 3` or `-p lam_mcrf 0.3`, a method's own options as in `-p method ustm -p own_passes 4`, a dataset's as in
# `-p dataset chaos -p data_sequence t2spir`; a name that does not exist stops the run at once.

# %% tags=["parameters"]
dataset: str = "phantom"  # phantom, acdc, wsl4mis, chaos, folder; for a folder of your own give root
method: str = "ours"  # fully, pce, gated-crf, ours-without-asl, ours, …; the command `attenscribble methods` lists all
fold: int = 1  # test fold, counted from 1
seed: int = 2022  # of weights, batches, augmentation, dropout
profile: str = "auto"  # smoke, mini, fast, paper; auto: smoke for the phantom, else mini on a CPU, fast on a GPU
preset: str = "paper"  # paper: the paper's text; released: its code
root: str = ""  # folder of the data; empty: $ATTENSCRIBBLE_DATA, then the user data folder
output: str = ""  # folder for run folders; empty: runs/ of the clone
archive: str = ""  # folder that also gets the result's JSON, such as ../results
size: int = None  # side of the network's input in px; None: the profile's
batch: int = None  # slices an iteration; None: the profile's
iterations: int = None  # optimiser steps; None: the profile's
lr: float = None  # first learning rate; None: the profile's or the method's
checkpoint: str = "last"  # last, or best_val: lowest loss on held-out training patients' scribbles
precision: str = "auto"  # auto, float32, bfloat16
device: str = "auto"  # auto, cpu, cuda, cuda:1
devices: int = 1  # processes that train together, each on a GPU of its own or on a part of the CPU
resume: bool = True  # go on from the run folder's checkpoint

# %% [markdown]
# ## The settings
#
# What this run changes from the defaults, after profile and preset have had their say.

# %%
from attenscribble.experiment.config import Config, notebook_settings
from attenscribble.experiment.runs import plot_attention_rows, plot_predictions, run_experiment, settle
from attenscribble.experiment.training import LiveCurves

config, _ = settle(Config.from_flat(**notebook_settings(globals())))
print(config.run_id)
config.differences()

# %% [markdown]
# ## The run
#
# Training on the fold's training patients, then segmentation and scoring of its test patients. Curves redraw while it
# runs.

# %%
outcome = run_experiment(config, watch=LiveCurves())

# %% [markdown]
# ## The table
#
# Mean and standard deviation over the test volumes. The policy says how an empty mask counts: `standard` gives a missed
# structure DSC 0 and the image's diagonal, `legacy` gives it 0 and 0 mm, as the released code does.

# %%
print(outcome.report())

# %% [markdown]
# ## The pictures
#
# The test volume with the median score: its middle heart slice, image, scribble, prediction and truth.

# %%
plot_predictions(outcome);

# %% [markdown]
# What the attention looks at: its row for one pixel of each class (cross), in multiples of an even spread. Methods
# without attention have nothing to show.

# %%
plot_attention_rows(outcome);

# %% [markdown]
# ## The result file
#
# Settings, versions, machine kind and the score of every volume and class: enough to run it again.

# %%
print(outcome.files())
