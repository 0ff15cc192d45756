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
# | [00 How to read this book](00_book.ipynb) | what do all chapters share? | `book` |
# | [01 The machine](01_machine.ipynb) | where does the time go, and how do several processes agree? | `machine` |
# | [09 Space](data/09_grid.ipynb) | which voxel is which place in the patient? | `data.grid` |
# | [10 Scans](data/10_scans.ipynb) | what is in a scan, and what can be wrong with it? | `data.scans` |
# | [11 Scribbles](data/11_scribbles.ipynb) | how does an annotator scribble? | `data.scribbles` |
# | [12 The phantom](data/12_phantom.ipynb) | can we have patients that anyone may look at? | `data.phantom` |
# | [13 Simulated scribbles](data/13_simulation.ipynb) | how do you get scribbles where nobody drew any? | `data.simulation` |
# | [14 CHAOS](data/14_chaos.ipynb) | in which order do slices make a body? | `data.chaos` |
# | [15 A folder of your own](data/15_folder.ipynb) | how does my folder become a dataset? | `data.folder` |
# | [16 Datasets](data/16_datasets.ipynb) | where does the data lie? | `data.datasets` |
# | [17 Batches](data/17_batches.ipynb) | how does a scan become what a network sees? | `data.batches` |
# | [18 Wrong strokes](data/18_errors.ipynb) | what does a wrong stroke cost? | `data.errors` |
# | [19 Downloads](data/19_download.ipynb) | is it the file they published? | `data.download` |
# | [20 The network](method/20_network.ipynb) | how far can a U-Net see? | `method.network` |
# | [21 Partial cross-entropy](method/21_pce.ipynb) | what can 1 % of the pixels teach? | `method.pce` |
# | [22 Masked CRF](method/22_mcrf.ipynb) | who tells the other 99 % what to be? | `method.mcrf` |
# | [23 Spatial self-attention](method/23_ssa.ipynb) | can each place look at every other? | `method.ssa` |
# | [24 Attentive similarity](method/24_asl.ipynb) | can attention say which places belong together? | `method.asl` |
# | [25 The objective](method/25_objective.ipynb) | where does each loss pull? | `method.objective` |
# | [26 Other networks](method/26_other_networks.ipynb) | can my own network learn from scribbles? | `method.other_networks` |
# | [30 Guessed labels](rivals/30_pseudo_labels.ipynb) | can labels be guessed before training? | `rivals.pseudo` |
# | [31 Teachers](rivals/31_teachers.ipynb) | is a network's average wiser than the network? | `rivals.teachers` |
# | [32 Two branches](rivals/32_branches.ipynb) | what do two decoders know that one does not? | `rivals.branches` |
# | [33 Regularisers](rivals/33_regularisers.ipynb) | what does a penalty want? | `rivals.regularisers` |
# | [34 A row of your own](rivals/34_your_own.ipynb) | what is the least you must write? | none |
# | [38 Check](experiment/38_check.ipynb) | what is wrong with my scans? | `experiment.check` |
# | [39 Many processes](experiment/39_processes.ipynb) | can eight devices take the step of one? | `experiment.processes` |
# | [40 The configuration](experiment/40_config.ipynb) | which knobs does a run have? | `experiment.config` |
# | [41 Training](experiment/41_training.ipynb) | what happens in a run? | `experiment.training` |
# | [42 Inference](experiment/42_inference.ipynb) | how do slices become a scan's mask? | `experiment.inference` |
# | [43 Metrics](experiment/43_metrics.ipynb) | when is a mask good? | `experiment.metrics` |
# | [44 Runs](experiment/44_runs.ipynb) | what must be kept of a run? | `experiment.runs` |
# | [45 Tables](experiment/45_tables.ipynb) | does our order agree with the paper's? | `experiment.tables` |
# | [46 Figures](experiment/46_figures.ipynb) | where does each method go wrong? | `experiment.figures` |
# | [47 One scan](experiment/47_desk.ipynb) | how many strokes until one scan is segmented? | `experiment.desk` |
# | [48 The annotator](experiment/48_annotator.ipynb) | which byte of a drawing is which voxel? | `experiment.annotator` |
# | [49 nnU-Net](experiment/49_nnunet.ipynb) | how good is ours beside the usual tool? | `experiment.nnunet` |
# | [50 Commands](experiment/50_commands.ipynb) | what can be asked from a terminal? | `experiment.commands` |
#
# To train, open [train.ipynb](train.ipynb) or run it from this folder:
#
# ```bash
# papermill train.ipynb -p dataset acdc
# ```
#
# To draw on a scan of your own, open [annotate.ipynb](annotate.ipynb). From finished runs, [tables.ipynb](tables.ipynb) makes the paper's tables and [figures.ipynb](figures.ipynb) its figures.

# %% [markdown]
# ## One slice, one page
#
# What the whole book is about: on the left what the annotator gives, on the right what we want back.

# %%
from attenscribble.book import class_legend, draw, panels
from attenscribble.data.datasets import open_dataset

dataset = open_dataset("phantom", patients=5)
case = dataset.read(dataset.patients[0])[0]
z = len(case.image) // 2
figure, (left, middle, right) = panels(3)
draw(left, case.image[z], spacing_mm=case.spacing_mm[1:], title="a slice of a scan")
draw(middle, case.image[z], scribble=case.scribble[z], ignore=dataset.ignore, title="the annotator's scribble")
draw(right, case.image[z], label=case.label[z], title="what we want")
class_legend(figure, dataset.class_names, background=True)
