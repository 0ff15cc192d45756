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
# stands in [chapter 60](reporting/60_tables.ipynb), how methods are tested in [chapter 63](reporting/63_statistics.ipynb).

# %% tags=["parameters"]
results: str = "../results"  # folder of result files
output: str = "../figures"  # folder for the tables: .md, .csv, .tex
dataset: str = ""  # acdc, chaos, wsl4mis, phantom; empty: acdc beside Table 1, chaos beside Table 2
profile: str = ""  # smoke, mini, fast, paper; empty: all
preset: str = ""  # paper, released; empty: both
policy: str = "standard"  # how empty masks count: standard, legacy
reference: str = ""  # method or method:preset that the others are tested against; empty: the best but Fully by DSC

# %%
from attenscribble.basics.notebook import announce, notebook_settings, short_errors

with short_errors():  # a misspelt name is refused before anything large is loaded
    given = notebook_settings(globals())

# %%
from pathlib import Path

from IPython.display import Markdown, display
from matplotlib.pyplot import show, subplots

# %%
from attenscribble.basics.drawing import save_figure
from attenscribble.basics.errors import one_of
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

# %%
with short_errors():
    notebook_parameters(given, results=None, output=None, dataset=("", *DATASETS), profile=("", *PROFILES),
                        preset=("", *PRESETS), policy=POLICIES, reference=None)
found = read_results(results, profile=profile, preset=preset)
chosen = [dataset] if dataset else ["acdc", "chaos"]
with short_errors():
    one_of("reference", reference, {"": 0} | {name: 0 for result in found if result["dataset"] in chosen for name in (
        result["method"], f"{result['method']}:{result['preset']}")})
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


# %%
def presets_run(frame):
    return sorted({*frame.index.get_level_values("preset")} - {""})

[show_order(name, frame, version) for name, frame in frames.items() for version in presets_run(frame)];

# %% [markdown]
# ## Which differences are real?
#
# Every method against one reference, over the patients that both were tested on: spread over seeds, mean difference with
# its interval, signed-rank test. A test over patients tells trained networks apart; what another seed would change shows
# only in the spread over seeds. Without the parameter `reference` the best one is taken, and its lead is flattered by the
# choice: for a claim, name the reference beforehand.

# %%
from attenscribble.reporting.statistics import (
    HEADINGS,
    by_setting,
    comparable,
    describe_statistics,
    plot_critical_difference,
    plot_intervals,
    rank_settings,
    statistics_table,
    statistics_text,
    write_statistics,
)


# %%
def tested(name):
    "The statistics of a dataset, shown and written, with the results that were compared; None where there are none."
    kept, left_out = comparable([result for result in found if result["dataset"] == name], policy)
    if len(by_setting(kept)) < 2:
        return print(f"{name}: nothing to compare, for {len(by_setting(kept))} settings share their volumes")
    try:
        frame = statistics_table(kept, reference, policy)
    except ValueError as error:
        return print(f"{name}: no statistics: {error}")
    caption = describe_statistics(frame, left_out, name)
    display(Markdown(caption), statistics_text(frame))
    announce("\n".join(map(str, write_statistics(frame, caption, f"statistics-{name}", output))))
    return frame, kept

compared = {name: pair for name in chosen if (pair := tested(name))}


# %% [markdown]
# The differences to the reference, with the p values that are adjusted for the number of comparisons; blue: below .05.

# %%
def show_intervals(name, frame):
    "Draw the differences by DSC and by HD95."
    frame = frame.dropna(subset="p")
    metrics = [*frame["metric"].unique()]
    figure, axes = subplots(1, len(metrics), figsize=(5.5 * len(metrics), 1 + 0.23 * frame["setting"].nunique()),
                            layout="constrained", squeeze=False)
    figure.suptitle(name, fontsize=9)
    figure.get_layout_engine().set(wspace=0.05)
    for axis, metric in zip(axes[0], metrics, strict=True):
        plot_intervals(axis, frame[frame["metric"] == metric])
    show()

[show_intervals(name, frame) for name, (frame, _) in compared.items() if frame["p"].notna().any()];


# %% [markdown]
# All against all, where three settings or more share their volumes: mean ranks over patients, and the difference that two
# of them need to be told apart.

# %%
def show_ranks(name, kept):
    "Draw and save the critical difference by DSC and by HD95."
    ranked = rank_settings(kept, policy)
    if not ranked:
        print(f"{name}: no ranks: they need three settings and two patients")
        return
    heights = [one.height for one in ranked.values()]
    figure, axes = subplots(len(ranked), 1, figsize=(8.5, sum(heights)), layout="constrained", squeeze=False,
                            height_ratios=heights)
    for axis, (metric, one) in zip(axes[:, 0], ranked.items(), strict=True):
        plot_critical_difference(axis, one, f"{name}, {HEADINGS[metric]}")
    announce(str(save_figure(figure, Path(output).resolve() / f"cd-{name}")))
    show()

[show_ranks(name, kept) for name, (_, kept) in compared.items()];
