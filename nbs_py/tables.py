# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper's tables, ours beside them
#
# From the result files of finished runs. From the folder `nbs`:
#
# ```bash
# mkdir -p ../runs                                                              # for the executed notebook
# papermill tables.ipynb ../runs/tables.ipynb                                   # results/ → figures/table1.*, figures/table2.*
# papermill tables.ipynb ../runs/tables.ipynb -p profile mini -p policy legacy  # one profile, scored as the released code does
# papermill --help-notebook tables.ipynb                                        # what the parameters mean
# ```
#
# A run's file comes into `results/` with `-p archive ../results` of [train.ipynb](train.ipynb). How a table is made
# stands in [chapter 60](reporting/60_tables.ipynb).

# %% tags=["parameters"]
results: str = "../results"  # folder of result files
output: str = "../figures"  # folder for the tables: .md, .csv, .tex
dataset: str = ""  # acdc, chaos, wsl4mis, phantom; empty: acdc beside Table 1, chaos beside Table 2
profile: str = ""  # smoke, mini, fast, paper; empty: all
preset: str = ""  # paper, released; empty: both
policy: str = "standard"  # how empty masks count: standard, legacy

# %%
from attenscribble.basics.notebook import announce, notebook_settings, short_errors

with short_errors():  # a misspelt name is refused before anything large is loaded
    given = notebook_settings(globals())

# %%
from pathlib import Path

from IPython.display import Markdown, display
from matplotlib.pyplot import show, subplots

from attenscribble.basics.drawing import save_figure
from attenscribble.reporting.tables import (
    DATASETS,
    blocks,
    compare,
    describe,
    notebook_parameters,
    order_agreement,
    plot_order,
    read_results,
    write_table,
)
from attenscribble.runs.config import PRESETS, PROFILES
from attenscribble.runs.metrics import METRICS, POLICIES

with short_errors():
    notebook_parameters(given, results=None, output=None, dataset=("", *DATASETS), profile=("", *PROFILES),
                        preset=("", *PRESETS), policy=POLICIES)
found = read_results(results, profile=profile, preset=preset)
chosen = [dataset] if dataset else ["acdc", "chaos"]
print(f"{len(found)} results")


# %% [markdown]
# ## The tables
#
# Every method of the paper has its row, whether it was run or not; Δ = ours − paper.

# %%
def show_table(name):
    "Show and write the table of a dataset."
    table = DATASETS[name]
    frame, caption = (make(found, table, policy, dataset=name) for make in (compare, describe))
    stem = f"table{table}" if name in ("acdc", "chaos") else f"table{table}-{name}"
    display(Markdown(caption), *blocks(frame).values())
    announce("\n".join(map(str, write_table(frame, caption, stem, output))))
    return frame

frames = {name: show_table(name) for name in chosen}


# %% [markdown]
# ## Does the order agree?
#
# Kendall's τ between our order of the methods and the paper's, and the pairs that swap, for each preset that was run.
# Orange: a method in a swapped pair.

# %%
def show_order(name, frame, version):
    "Print and draw how far the order of a preset agrees."
    try:
        agreements = order_agreement(frame, version)
    except ValueError as error:
        print(f"{name}, preset {version}: no order: {error}")
        return
    print(f"{name}, preset {version}", *agreements.values(), sep="\n  ")
    if len(agreements["dsc"].methods) < 2:
        return
    figure, axes = subplots(1, 2, figsize=(8.5, 0.8 + 0.32 * len(agreements["dsc"].methods)), layout="constrained")
    for axis, metric in zip(axes, METRICS, strict=True):
        plot_order(axis, frame, metric, version)
    announce(str(save_figure(figure, Path(output).resolve() / f"order-{name}-{version}")))
    show()

def presets_run(frame):
    return sorted({*frame.index.get_level_values("preset")} - {""})

[show_order(name, frame, version) for name, frame in frames.items() for version in presets_run(frame)];
