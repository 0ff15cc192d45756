# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # AttenScribble, the book
#
# > A few strokes of the pen on each slice, one pixel in a hundred: how does a network learn to draw the whole heart?
#
# Each chapter is a notebook that you read, run and change, and at the same time the source of one module of the
# package `attenscribble`. Chapters build on earlier ones only, so the book's order is the package's order.
#
# | chapter | question | module |
# |---|---|---|
# | [00 How this book checks itself](basics/00_checking.ipynb) | when are two functions equal? | `basics.checking` |
# | [01 What an error says](basics/01_errors.ipynb) | what does a message need to be of use? | `basics.errors` |
# | [02 Files that are there or not](basics/02_files.ipynb) | can a file be half written? | `basics.files` |
# | [03 One way to draw](basics/03_drawing.ipynb) | which colour is which class? | `basics.drawing` |
# | [04 Thirty lines of C](basics/04_native.ipynb) | where does the time go? | `basics.native` |
# | [05 Several processes, one batch](basics/05_distributed.ipynb) | what must processes tell each other? | `basics.distributed` |
# | [06 A notebook as a command](basics/06_notebook.ipynb) | what was a notebook given, and who sees what it does? | `basics.notebook` |
# | [07 One launch on a GPU](basics/07_gpu.ipynb) | why is a cheap loss slow on a GPU? | `basics.gpu` |
# | [10 Space](data/10_grid.ipynb) | which voxel is which place in the patient? | `data.grid` |
# | [11 Scans](data/11_scans.ipynb) | what is in a scan, and what can be wrong with it? | `data.scans` |
# | [12 Scribbles](data/12_scribbles.ipynb) | how does an annotator scribble? | `data.scribbles` |
# | [13 The phantom](data/13_phantom.ipynb) | can we have patients that anyone may look at? | `data.phantom` |
# | [14 Simulated scribbles](data/14_simulation.ipynb) | how do you get scribbles where nobody drew any? | `data.simulation` |
# | [15 Wrong strokes](data/15_scribble_errors.ipynb) | what does a wrong stroke cost? | `data.scribble_errors` |
# | [16 CHAOS](data/16_chaos.ipynb) | in which order do slices make a body? | `data.chaos` |
# | [17 A folder of your own](data/17_folder.ipynb) | how does my folder become a dataset? | `data.folder` |
# | [18 Checking a folder](data/18_check.ipynb) | what is wrong with my scans? | `data.check` |
# | [19 Datasets](data/19_datasets.ipynb) | where does the data lie? | `data.datasets` |
# | [20 Batches](data/20_batches.ipynb) | how does a scan become what a network sees? | `data.batches` |
# | [21 Downloads](data/21_download.ipynb) | is it the file they published? | `data.download` |
# | [22 A dataset in one file](data/22_pack.ipynb) | how does a dataset travel to another machine? | `data.pack` |
# | [30 The network](method/30_network.ipynb) | how far can a U-Net see? | `method.network` |
# | [31 Partial cross-entropy](method/31_pce.ipynb) | what can 1 % of the pixels teach? | `method.pce` |
# | [32 Masked CRF](method/32_mcrf.ipynb) | who tells the other 99 % what to be? | `method.mcrf` |
# | [33 Spatial self-attention](method/33_ssa.ipynb) | can each place look at every other? | `method.ssa` |
# | [34 Attentive similarity](method/34_asl.ipynb) | can attention say which places belong together? | `method.asl` |
# | [35 Switches](method/35_switches.ipynb) | what does the paper leave open? | `method.switches` |
# | [36 The objective](method/36_objective.ipynb) | where does each loss pull? | `method.objective` |
# | [37 Other networks](method/37_other_networks.ipynb) | can my own network learn from scribbles? | `method.other_networks` |
# | [40 Guessed labels](rivals/40_pseudo_labels.ipynb) | can labels be guessed before training? | `rivals.pseudo` |
# | [41 Teachers](rivals/41_teachers.ipynb) | is a network's average wiser than the network? | `rivals.teachers` |
# | [42 Two branches](rivals/42_branches.ipynb) | what do two decoders know that one does not? | `rivals.branches` |
# | [43 Regularisers](rivals/43_regularisers.ipynb) | what does a penalty want? | `rivals.regularisers` |
# | [44 A row of your own](rivals/44_your_own.ipynb) | what is the least you must write? | none |
# | [50 The configuration](runs/50_config.ipynb) | which settings does a run have? | `runs.config` |
# | [51 Setup](runs/51_setup.ipynb) | what does a run need before it begins? | `runs.setup` |
# | [52 Many processes](runs/52_launch.ipynb) | can eight devices take the step of one? | `runs.launch` |
# | [53 Training](runs/53_training.ipynb) | what happens in a run? | `runs.training` |
# | [54 Inference](runs/54_inference.ipynb) | how do slices become a scan's mask? | `runs.inference` |
# | [55 Metrics](runs/55_metrics.ipynb) | when is a mask good? | `runs.metrics` |
# | [56 Runs](runs/56_run.ipynb) | what must be kept of a run? | `runs.run` |
# | [57 Grids](runs/57_grid.ipynb) | which of sixty runs are done? | `runs.grid` |
# | [60 Tables](reporting/60_tables.ipynb) | does our order agree with the paper's? | `reporting.tables` |
# | [61 Figures](reporting/61_figures.ipynb) | where does each method go wrong? | `reporting.figures` |
# | [62 nnU-Net](reporting/62_nnunet.ipynb) | how good is ours beside the usual tool? | `reporting.nnunet` |
# | [63 Which differences are real?](reporting/63_statistics.ipynb) | is .82 better than .80? | `reporting.statistics` |
# | [70 One scan](annotation/70_session.ipynb) | how many strokes until one scan is segmented? | `annotation.session` |
# | [71 The annotator](annotation/71_annotator.ipynb) | which byte of a drawing is which voxel? | `annotation.annotator` |
# | [80 The front door](entry/80_front_door.ipynb) | what is the least a program needs? | `entry.front_door` |
# | [81 Commands](entry/81_commands.ipynb) | what can be asked from a terminal? | `entry.commands` |
#
# To train, open [train.ipynb](train.ipynb) or run it from this folder; the second name is that of the executed notebook:
#
# ```bash
# mkdir -p ../runs
# papermill train.ipynb ../runs/acdc.ipynb -p dataset acdc
# ```
#
# To draw on a scan of your own, open [annotate.ipynb](annotate.ipynb). From finished runs, [tables.ipynb](tables.ipynb) makes the paper's tables and [figures.ipynb](figures.ipynb) its figures.

# %% [markdown]
# ## One slice, one page
#
# What the whole book is about: on the left what the annotator gives, on the right what we want back.

# %%
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.datasets import open_dataset

dataset = open_dataset("phantom", patients=5)
case = dataset.read(dataset.patients[0])[0]
z = len(case.image) // 2
figure, (left, middle, right) = panels(3)
draw(left, case.image[z], spacing_mm=case.spacing_mm[1:], title="a slice of a scan")
draw(middle, case.image[z], scribble=case.scribble[z], ignore=dataset.ignore, title="the annotator's scribble")
draw(right, case.image[z], label=case.label[z], title="what we want")
class_legend(figure, dataset.class_names, background=True)
