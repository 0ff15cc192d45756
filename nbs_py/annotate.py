# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Draw and segment one scan
#
# Name your scan below, run all cells, and draw: a stroke in each organ, and some in the background, near the organs and
# far from them. **Train** shows its mask while it learns. Where the mask is wrong, draw there and train again. **Save**
# writes scan, strokes, mask and model into one folder: the dataset in which you opened the scan, even where its file is
# a link to another disk. Below the picture stands which strokes were found, and where Save will write.
#
# Without a scan you get a phantom heart to try it on. How it works:
# [chapter 70](annotation/70_session.ipynb), [chapter 71](annotation/71_annotator.ipynb).

# %% tags=["parameters"]
scan: str = ""  # a NIfTI file; several modalities of one scan: files separated by commas; empty: a phantom
classes: str = ""  # names separated by commas, the background first; empty: those of dataset.json beside the scan
folder: str = ""  # where Save writes; empty: the dataset that holds the scan, else annotated/ beside the scan

# %%
from attenscribble.annotation.annotator import Annotator
from attenscribble.data.phantom import phantom

files, names = ([part.strip() for part in text.split(",") if part.strip()] for text in (scan, classes))
if files:
    annotator = Annotator(files, names or None, folder or None)
else:
    heart = phantom(patients=1)
    annotator = Annotator(next(heart.cases()), names or heart.class_names, folder or "../runs/annotated")
annotator

# %% [markdown]
# A folder in which several scans have been drawn on is a dataset:
#
# ```bash
# attenscribble check FOLDER                                            # is anything wrong with it?
# attenscribble train dataset=folder root=FOLDER                        # train on all of it
# attenscribble predict --checkpoint FOLDER/models/NAME.pt SCANS MASKS  # or segment with what one scan taught
# ```
