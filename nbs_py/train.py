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
# mkdir -p ../runs                                                            # for the executed notebooks
# papermill train.ipynb ../runs/acdc.ipynb -p dataset acdc                    # the paper's method on ACDC
# papermill train.ipynb ../runs/acdc-pce.ipynb -p dataset acdc -p method pce  # a rival
# papermill --help-notebook train.ipynb                                       # what the parameters mean
# ```
#
# The second name is that of the executed notebook, with its curves and pictures. The terminal shows the training as it goes, then the
# table and where everything was written.
#
# The parameters are the fields of [`Config`](runs/50_config.ipynb); one that does not exist stops the run at once. Further settings have names
# that depend on the method or the dataset: the weight of a loss term is `lam_…`, its first iteration `start_…`, an option of the method
# `method_…`, one of the dataset `data_…`. They are given together, as `-p extra lam_mcrf=0.3,data_patients=20`. Singly, `-p lam_mcrf 0.3`, or as
# dictionaries of YAML, `-y "{lam: {mcrf: 0.3}, crf: {mask: p}}"`, they work as well, but papermill remarks "Passed unknown parameter", as its list is
# the cell below.

# %% tags=["parameters"]
dataset: str = "phantom"  # phantom, acdc, wsl4mis, chaos, folder; for a folder of your own give root
method: str = "ours"  # fully, pce, gated-crf, ours-without-asl, ours, …; the command `attenscribble methods` lists all
fold: int = 1  # test fold, counted from 1
hold_out: str = ""  # training patients tested instead of the test fold: a, b or a..b
seed: int = 2022  # of weights, batches, augmentation, dropout
profile: str = "auto"  # smoke, mini, fast, paper; auto: smoke for the phantom, else mini on a CPU, fast on a GPU
preset: str = "paper"  # paper: the paper's text; released: its code
root: str = ""  # folder of the data; empty: $ATTENSCRIBBLE_DATA, then the user data folder
output: str = ""  # folder for run folders; empty: runs/ of the clone
archive: str = ""  # folder that also gets the result's JSON, such as ../results
extra: str = ""  # settings named after a term or an option, such as {"lam_mcrf": 0.3, "data_patients": 20}
size: int = None  # side of the network's input in px; None: the profile's
batch: int = None  # slices an iteration; None: the profile's
iterations: int = None  # optimiser steps; None: the profile's
lr: float = None  # first learning rate; None: the profile's or the method's
attention_lr: float = None  # the same for the attention; None: as lr
momentum: float = None  # of SGD; None: 0.9
weight_decay: float = None  # on all weights; None: 1e-4
power: float = None  # of the learning rate's polynomial decay; None: 0.9
lr_off_by_one: bool = None  # the schedule lags one step behind; None: False, released: True
schedule: str = None  # how the learning rate falls: poly (released), cosine; None: poly
warmup: float = None  # share of the run in which the learning rate rises first; None: 0.0
optimiser: str = None  # sgd (released), nesterov, adamw; None: sgd
ema: float = None  # decay of the averaged weights that are tested, 0 tests the last ones; None: 0.0
augment_zoom: float = None  # half of the slices grow or shrink by up to this share; None: 0.0
augment_look: float = None  # strength of random gamma, contrast and brightness; None: 0.0
augmentation: str = None  # what slices go through: dataset, acdc, chaos, none; None: dataset, what the dataset allows
checkpoint: str = "last"  # last, or best_val: lowest loss on held-out training patients' scribbles
validation: float = None  # share of training patients that best_val holds out; None: 0.1
eval_every: int = None  # iterations between checkpoints and validations; None: 200, smoke: 100
eval_resize: str = None  # masks to the scan's grid, nearest (released) shifts them by half a pixel; None: nearest-exact
eval_flips: bool = None  # average over mirror images, where training saw them; None: False
hd95: bool = None  # score HD95 in mm; False where the voxel spacing is unknown; None: True
precision: str = "auto"  # auto, float32, bfloat16
device: str = "auto"  # auto, cpu, cuda, cuda:1
devices: int = 1  # processes that train together, each on a GPU of its own or on a part of the CPU
compile: str = None  # the network by torch.compile: auto, on, off; None: auto, on a GPU
resume: bool = True  # go on from the run folder's checkpoint
log_every: int = None  # iterations between rows of the log; None: 20, smoke: 10
net_name: str = None  # a network from elsewhere, as package.module:Name; None: the U-Net
net_options: dict = None  # its keywords as JSON; without net_name the U-Net's; None: {}
reach: str = None  # what radii and sigmas are in: px as given, or input, of a 256² input and scaled; None: px
pce_reduction: str = None  # partial cross-entropy: mean over the batch's pixels, each image's, or class; None: batch
crf_radius: int = None  # masked CRF: window radius in px; None: 5
crf_window: str = None  # offsets up to the radius, or below it: inclusive, strict; None: inclusive
crf_sigma_xy: float = None  # spatial kernel width in px; None: 6
crf_sigma_i: float = None  # intensity kernel width; None: 0.1
crf_kernel_weight: float = None  # w of eq. 5; None: 1
crf_mask: str = None  # who is in the unlabelled set: both (pq), only p (p), no mask (none); None: pq, released: p
crf_denominator: str = None  # divide by unlabelled pixels of each image, or of the batch; None: image, released: batch
crf_count_padding: bool = None  # add the released code's pairs outside the image; None: False, released: True
ssa_layer: str = None  # attention: the layer it is attached to; None: encoder.2, the third of the encoder
ssa_heads: int = None  # attention heads; None: 1
ssa_layers: int = None  # attention layers; None: 1
ssa_block: str = None  # paper, prenorm_mixffn, residual; None: paper, released: prenorm_mixffn
ssa_to_skip: bool = None  # attended features also go to the decoder's skip connection; None: True
ssa_separate: bool = None  # side branch: features pass unchanged, only the loss sees the attention; None: False
self_threshold: float = None  # self-training: probability above which the average's answer counts; None: 0.9
asl_radius: int = None  # attentive similarity: window radius in cells of the feature grid; None: the profile's, else 5
asl_window: str = None  # offsets up to the radius, or below it: inclusive, strict; None: inclusive
asl_sigma_xy: float = None  # distance decay in cells of the feature grid; None: the profile's, else 6
asl_logit_scale: str = None  # divide QK by sqrt(d_k) before S: sqrt_dk, none; None: sqrt_dk, released: none
asl_similarity_scale: float = None  # factor on the symmetrised attention, or hw; None: 1
asl_mask: str = None  # only unlabelled cells, or all: omega_u, none; None: omega_u, released: none
asl_denominator: str = None  # divide by unlabelled cells, or by the grid: omega_u, grid; None: omega_u, released: grid
asl_exclude_single_class: bool = None  # drop slices with at most one class drawn; None: False, released: True
asl_resize: str = None  # how P comes down to the grid: bilinear, area, nearest; None: bilinear
asl_grad_p: bool = None  # the loss moves the prediction; None: True
asl_grad_s: bool = None  # the loss moves the attention; None: True

# %% [markdown]
# ## What was given
#
# A misspelt name is refused here, before anything large is loaded.

# %%
from attenscribble.basics.notebook import announce, notebook_settings, short_errors

with short_errors():
    given = notebook_settings(globals(), groups=("lam", "start", "ramp", "method", "data"))

# %% [markdown]
# ## The settings
#
# What this run changes from the defaults, after profile and preset have had their say.

# %%
from attenscribble.runs.config import Config
from attenscribble.runs.run import plot_attention_rows, plot_predictions, run_experiment
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import LiveCurves

with short_errors():
    config = resolve(Config(**given)).config
announce(config.run_id)
config.differences()

# %% [markdown]
# ## The run
#
# Training on the fold's training patients, then segmentation and scoring of its test patients. Curves redraw while it
# runs.

# %%
with short_errors():
    outcome = run_experiment(config, watch=LiveCurves())

# %% [markdown]
# ## The table
#
# Mean and standard deviation over the test volumes. The policy says how an empty mask counts: `standard` gives a missed
# structure DSC 0 and the image's diagonal, `legacy` gives it 0 and 0 mm, as the released code does.

# %%
announce(outcome.report())

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
announce(outcome.files())
