# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tables
#
# > From result files to the paper's Tables 1 and 2, ours beside theirs, and one number for how far the orders agree.
#
# Does our order of the methods agree with the paper's? A shorter schedule or a smaller image moves every number, so what
# can be compared is which method is better than which. This chapter reads result files, sets them beside the paper's
# tables, and measures how far the two orders agree.

# %%
#| default_exp reporting.tables

# %%
#| export
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import combinations, product
from pathlib import Path
from typing import Any

# %%
#| export
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.stats import kendalltau

# %%
#| export
from attenscribble.basics.drawing import for_figure, for_markdown
from attenscribble.basics.errors import DataError, one_of
from attenscribble.basics.files import read_json, without_parts, write_atomic
from attenscribble.basics.notebook import notebook_settings
from attenscribble.method.objective import METHODS
from attenscribble.runs.config import PLACES, current_names, default_settings
from attenscribble.runs.metrics import METRICS, POLICIES, mean_std, summarise

# %%
import tempfile

import matplotlib.pyplot as plt
from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.basics.files import project_root
from attenscribble.reporting.tables import compare, plot_order, read_results

# %% [markdown]
# ## The answer first
#
# The methods by their mean DSC: on the left the paper's Table 1, on the right our result files. Lines that cross are
# pairs whose order we do not reproduce.

# %%
results = read_results(project_root() / "results", dataset="acdc", profile="mini")
frame = compare(results, 1)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for axis, metric in zip(axes, METRICS, strict=True):
    plot_order(axis, frame[frame.index.get_level_values("variant") == ""], metric)

# %% [markdown]
# ## The numbers the paper prints
#
# Both tables ship with the package, under the names that methods have here. Three places in them are doubtful. They
# stay as printed, and `FLAGS` says why they are doubted.

# %%
#| export
TITLES = {  # the paper's rows, in its order: our name of the method → its title
    "fully": "Fully", "pce": "pCE", "random-walker": "RW", "ustm": "USTM", "scribble2label": "S2L",
    "mumford-shah": "MS", "entropy-minimisation": "EM", "gated-crf": "GCRF", "contour": "Contour", "dual-branch": "DBr",
    "ours-without-asl": "Ours w/o ASL", "ours": "Ours"}

# %%
#| export
DATASETS = {"acdc": 1, "chaos": 2, "wsl4mis": 1, "phantom": 1}  # dataset → the table that has its classes
FLAGS = {  # table, method, class → why the printed number is doubted
    (1, "entropy-minimisation", "RV"): "the std of the DSC, .83, repeats the mean, which allows at most .376",
    (1, "scribble2label", "Avg"): "DSC .86, the mean of its classes is .853",
    (2, "random-walker", "every class"): "DSC with three decimals, all other rows have two"}


# %%
#| export
def published(
    table: int,  # 1: ACDC, 40 volumes; 2: CHAOS T1 in-phase, 7 volumes
) -> pd.DataFrame:  # columns method, class, dsc_mean, dsc_std, hd95_mean, hd95_std (mm); a row a method and class
    "A table of the paper as printed, errors included (see `FLAGS`). Raises ValueError for another number."
    one_of("table", str(table), ("1", "2"))
    with (files("attenscribble") / "published" / f"table{table}.csv").open() as file:
        return pd.read_csv(file)


# %%
#| export
def place(
    method: str,  # its name in result files
) -> tuple[int, str]:  # its number in that order and its name, to sort by
    "The place of a method in tables: the paper's rows in its order, then the others as they were registered."
    order = list(dict.fromkeys([*TITLES, *METHODS]))
    return (order.index(method) if method in order else len(order)), method


# %%
wide = published(1).pivot(index="method", columns="class", values="dsc_mean")
wide = wide.loc[list(TITLES), ["RV", "Myo", "LV", "Avg"]]
gap = (wide[["RV", "Myo", "LV"]].mean(axis=1) - wide["Avg"]).abs()
assert len(wide) == 12 and wide.loc["ours", "Avg"] == 0.88
assert list(gap[gap > 0.0051].index) == ["scribble2label"]  # all others are the mean of their classes, rounded
wide

# %% [markdown]
# **By hand.** How large can a standard deviation be? Scores in [0, 1] with mean $m$ spread most when each is 0 or 1:
# then the variance is $m(1-m)$. For $m=0.83$ that is $0.83\cdot0.17=0.1411$, a deviation of 0.376. So the 0.83 that the
# paper prints for EM on the right ventricle cannot be a deviation.

# %%
printed = published(1)
impossible = printed[printed.dsc_std**2 > printed.dsc_mean * (1 - printed.dsc_mean)]
assert impossible[["method", "class"]].values.tolist() == [["entropy-minimisation", "RV"]]

# %% [markdown]
# ## Reading result files
#
# A table is only as good as the files it is made from, so every file is checked and a broken one is named.

# %%
#| export
_FIELDS = {"run": str, "dataset": str, "method": str, "title": str, "fold": int, "seed": int, "profile": str,
           "preset": str, "checkpoint": str, "train_seconds": (int, float), "settings": dict, "cases": list}
_CASE_FIELDS = {"case": str, "class": str, "policy": str, "dsc": (int, float, type(None)),
                "hd95_mm": (int, float, type(None))}


# %%
#| export
def read_results(
    folder: Path | str,  # such as results/ of the clone
    **filters: Any,  # field=value, such as dataset="acdc"; None and "" let all pass
) -> list[dict[str, Any]]:  # by dataset, profile, preset, method in the paper's order, seed, fold
    """The result files of a folder, but for runs that were not scored. Raises DataError, naming file and field, for no
    file, a broken one, or a run that is there twice; ValueError for an unknown filter."""
    for name in filters:
        one_of("filter", name, [name for name in _FIELDS if name not in ("settings", "cases")])
    chosen = [result for result in _read_scored(Path(folder))
              if all(value in (None, "", result[name]) for name, value in filters.items())]
    return sorted(chosen, key=lambda r: (r["dataset"], r["profile"], r["preset"], place(r["method"]), r["seed"],
                                         r["fold"]))


# %%
#| export
def _read_scored(folder: Path) -> list[dict[str, Any]]:
    "Every scored result of a folder, in the order of the files' names."
    paths = without_parts(path for path in folder.glob("*.json") if not path.name.startswith("."))  # nor older parts
    if not paths:
        raise DataError(folder, "no result file", "at least one *.json")
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        result = read_result(path)
        if result["run"] in found:
            raise DataError(f"{path}: run", f"{result['run']} a second time", "each run once")
        if result["cases"]:
            found[result["run"]] = result
    return list(found.values())


# %% [markdown]
# A file that is no JSON, or has a field that is missing, of another type or out of range, is an error that names it.

# %%
#| export
def read_result(
    path: Path,  # of a result file
) -> dict[str, Any]:  # what the run wrote, checked
    "One result file. Raises DataError for what is no JSON, and for a missing or impossible field."
    result = read_json(path, "a result file, as a run writes it")
    _check_fields(path, result, _FIELDS)
    newer = {"label_values": [], "content": "", "test_volumes": 0}  # which older files do not have
    _check_fields(path, newer | result, {name: type(value) for name, value in newer.items()})
    if not result["cases"] and result.get("scored", True):
        raise DataError(f"{path}: cases", "none", "a row for each volume, class and policy")
    for index, row in enumerate(result["cases"]):
        _check_case(f"{path}: cases[{index}]", row)
    _check_complete(path, result)
    return result | {"settings": current_names(result["settings"])}


# %%
#| export
def _check_case(where: str, row: Any) -> None:
    "Raise DataError unless this is a row of scores with possible numbers."
    _check_fields(where, row, _CASE_FIELDS)
    for metric, top in zip(METRICS, (1, sys.float_info.max), strict=True):
        if row[metric] is not None and not 0 <= row[metric] <= top:
            raise DataError(f"{where}: {metric}", row[metric], "0 to 1, or null" if top == 1 else "mm, or null")


# %%
#| export
def _check_fields(where: object, found: Any, fields: Mapping[str, Any]) -> None:
    "Raise DataError unless this is a dictionary with these fields of these types."
    if not isinstance(found, dict):
        raise DataError(where, type(found).__name__, f"an object with the fields {', '.join(fields)}")
    for name, kinds in fields.items():
        if name not in found or not isinstance(found[name], kinds) or isinstance(found[name], bool):
            kinds = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            raise DataError(f"{where}: {name}", repr(found.get(name, "nothing")), kinds)


# %% [markdown]
# A row that was lost would raise or lower every mean, and nothing would show it. So each case has each class once under each policy, and there are as
# many volumes and classes as the file says.

# %%
#| export
def _check_complete(path: Path, result: Mapping[str, Any]) -> None:
    "Raise DataError, naming case and class, for a row of scores that is missing or there twice."
    found = Counter((row["case"], row["class"], row["policy"]) for row in result["cases"])
    each = [list(dict.fromkeys(column)) for column in zip(*found, strict=True)] or [[], [], []]
    for case, name, policy in product(*each):
        if (times := found[case, name, policy]) != 1:
            what = f"{name} of {case} twice" if times else f"no row for {name} of {case}"
            raise DataError(f"{path}: cases", f"{what} under the policy {policy!r}", "each class of each case once")
    values = result.get("label_values")  # older files do not have them
    told = {"volumes": (len(each[0]), result.get("test_volumes", len(each[0])), "test_volumes"),
            "classes": (len(each[1]), len(values) - 1 if values else len(each[1]), "label_values")}
    for what, (count, expected, field) in told.items():
        if found and expected != count:
            raise DataError(f"{path}: cases", f"{count} {what}", f"{expected}, as {field} says")


# %%
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "half.json").write_text('{"run": "acdc-ours')
    try:
        read_results(folder)
        raise RuntimeError("half a file passed")
    except DataError as error:
        assert "half.json: found no JSON" in str(error)


# %% [markdown]
# ## The README's table
#
# One row for each run, nothing averaged. A test checks that the README shows exactly this table.

# %%
#| export
def results_table(
    folder: Path | str,  # with result files, such as results/ of the clone
    policy: str = POLICIES[0],  # how empty masks count
    *,
    dataset: str | None = None,  # runs on this one only
) -> str:  # markdown, one row a run, methods in the paper's order
    "DSC per class and mean HD95 of every run in a folder. Raises as `read_results` does."
    results = [result for result in read_results(folder) if dataset in (None, result["dataset"])]
    names = list(dict.fromkeys(row["class"] for result in results for row in result["cases"]))
    variants = {run["run"]: key[2] for key, runs in group_seeds(results).items() for run in runs}
    header = ["method", "preset", *(f"DSC {name}" for name in names), "DSC mean", "HD95 mean (mm)"]
    rows = [_result_row(result, policy, names, variants[result["run"]]) for result in results]
    if len({_tested(result)["volumes"] for result in results}) > 1:  # else the text beside the table says how many
        header, rows = [*header, "n"], [[*row, str(len(_cases(run)))] for row, run in zip(rows, results, strict=True)]
    return _markdown([header, ["---"] * len(header), *rows])


# %%
#| export
def _result_row(result: Mapping[str, Any], policy: str, names: list[str], variant: str) -> list[str]:
    "The cells of one run: title, preset, DSC of each class, mean DSC and mean HD95; a dash where a class is missing."
    summary, volumes = summary_of(result, policy), len(_cases(result))
    counts = summary.dsc_n.reindex(names, fill_value=0)
    fewer = [f" [{n}]" if 0 < n < volumes else "" for n in counts]
    means = [f"{summary.dsc_mean[name]:.3f}{mark}" if n else "–"
             for name, n, mark in zip(names, counts, fewer, strict=True)]
    averages = [f"{summary.dsc_mean['Avg']:.3f}", f"{summary.hd95_mm_mean['Avg']:.1f}"] if counts.all() else ["–", "–"]
    preset = ", ".join(part for part in (result["preset"], variant) if part)
    return [result["title"], preset, *means, *averages]


def _markdown(lines: Iterable[list[str]]) -> str:
    "Cells as a Markdown table."
    return "\n".join(f"| {' | '.join(map(for_markdown, line))} |" for line in lines)


# %%
#| export
def summary_of(
    result: Mapping[str, Any],  # a result file's content
    policy: str,  # how empty masks count
) -> pd.DataFrame:  # as `summarise` gives it: a row per class and "Avg"
    "`summarise` of a result file under a policy. Raises DataError when the file was not scored under it."
    one_of("policy", policy, POLICIES)
    rows = [row for row in result["cases"] if row["policy"] == policy]
    if not rows:
        raise DataError(f"{result['run']}: cases", f"no row under the policy {policy!r}", "one a volume and class")
    return summarise(rows)


# %% [markdown]
# ## Ours beside the paper's
#
# One row for each method and preset. Runs that differ in the seed alone are averaged: the mean and the deviation of each
# class, so that the deviation remains what the paper prints, the spread over volumes of *one* training. Runs that
# differ in anything else are never averaged; what they differ in becomes their `variant`. Seeds that were tested on other volumes, such as those of an
# incomplete copy of the data, or that lack a class, differ too.

# %%
#| export
def _select(results: Iterable[Mapping[str, Any]], table: int, dataset: str | None) -> list[Mapping[str, Any]]:
    "The results of one dataset, the table's own unless told."
    names = [name for name, number in DATASETS.items() if number == table]
    name = one_of(f"dataset of table {table}", dataset, names) if dataset else names[0]
    return [result for result in results if result["dataset"] == name]


# %%
#| export
def group_seeds(
    results: Iterable[Mapping[str, Any]],  # of `read_results`
) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:  # method, preset, variant → results that differ in the seed
    """Put the seeds of a setting together, and say what sets it apart from others of its method and preset.

    Raises DataError, naming both, for two results of one setting, fold and seed, and for those of different data."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(json.dumps(_setting(result), sort_keys=True), []).append(result)
    for runs in groups.values():
        _check_alike([run.get("origin", run) for run in runs])
    settings: dict[str, dict[str, Any]] = {key: json.loads(key) for key in groups}
    named: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for key, setting in settings.items():
        name = setting["method"], setting["preset"], _variant(setting, settings.values())
        if name in named:
            raise DataError(f"{groups[key][0]['run']}: settings", f"the row {', '.join(name)} for other settings than "
                            f"those of {named[name][0]['run']}", "settings that a table can tell apart")
        named[name] = groups[key]
    return named


# %% [markdown]
# To score masks, correct them and score them again gives two results of one setting, fold and seed: not two seeds. Nor are results seeds of one
# setting if the data was changed between them. The hash `content` tells, within a fold, as another fold trains on and tests other patients; older
# results and those of masks from elsewhere have none.

# %%
#| export
def _check_alike(runs: Iterable[Mapping[str, Any]]) -> None:
    "Raise DataError unless results of one setting have a fold and seed of their own, and in each fold the same data."
    seeds: dict[tuple[int, int], str] = {}
    data: dict[int, tuple[str, str]] = {}
    for run in runs:
        name, fold, content = run["run"], run["fold"], run.get("content")
        if (other := seeds.setdefault((fold, run["seed"]), name)) != name:
            where = f"{run['dataset']}, {_title_of(run['method'])}, fold {fold}, seed {run['seed']}"
            raise DataError(where, f"the runs {other}, {name}",
                            "one result a setting, fold and seed: leave out one of the two files")
        if content and (kept := data.setdefault(fold, (content, name)))[0] != content:
            raise DataError(f"{name}: content", f"{content}, other data than that of {kept[1]} ({kept[0]})",
                            "results of one setting and fold from the same data: leave out one of the two files")


# %%
#| export
def _differs(setting: Mapping[str, Any], name: str, value: Any) -> bool:
    "Whether a setting lacks a name, or has another value under it; 1 is no true, and no name is no null."
    return name not in setting or json.dumps(setting[name]) != json.dumps(value)


# %%
#| export
def _variant(setting: Mapping[str, Any], settings: Iterable[Mapping[str, Any]]) -> str:
    "What sets a setting apart from others of its method and preset, such as 'profile mini, asl_radius 3'."
    alike = [other for other in settings if all(other[n] == setting[n] for n in ("method", "preset"))]
    peers = [other for other in alike if other["profile"] == setting["profile"]]
    network = ("net_name", "net_options")  # named always: a row's method is known with the U-Net
    apart = [f"{n} {value}" for n, value in setting.items() if n not in _TESTED and (
        any(_differs(other, n, value) for other in peers) or (n in network and value))]
    same = [other for other in peers if not any(
        _differs(other, n, value) for n, value in setting.items() if n not in _TESTED)]
    apart += [f"{n} {setting[n]}" for n in _TESTED if any(other[n] != setting[n] for other in same)]
    if len(peers) < len(alike):  # a profile stands for the many settings it fills in
        apart.insert(0, f"profile {setting['profile']}")
    return ", ".join(apart)


# %%
#| export
_TESTED = ("volumes", "classes")  # what sets results of one setting apart


def _cases(result: Mapping[str, Any]) -> list[str]:
    "The names of the volumes of a result."
    return sorted({row["case"] for row in result["cases"]})


def _tested(result: Mapping[str, Any]) -> dict[str, str]:
    "On what a result was scored: how many volumes, with a short name of their set, and the classes that have a number."
    cases = _cases(result)
    digest = hashlib.sha256("\n".join(cases).encode()).hexdigest()[:4]
    strict = [row for row in result["cases"] if row["policy"] == POLICIES[0]] or result["cases"]
    counted = dict.fromkeys(row["class"] for row in strict if row["dsc"] is not None)
    return {"volumes": f"{len(cases)} (set {digest})", "classes": ", ".join(counted)}


# %%
#| export
def _setting(result: Mapping[str, Any]) -> dict[str, Any]:
    "All that decides a result but the seed. What an older file does not know yet had what is now the default."
    known = default_settings() | result["settings"]
    known |= {name: result[name] for name in ("dataset", "method", "preset", "profile", "fold", "checkpoint")}
    return {name: value for name, value in known.items() if name not in (*PLACES, "seed")} | _tested(result)


# %% [markdown]
# The frame holds numbers, not text: three levels of columns (metric, class, quantity), a row for every method of the
# paper whether it was run or not, and after them the methods that the paper does not have. `ours_n` is the number of volumes that a cell stands for: a
# class that neither mask holds counts in none. Where a class has no number at all, there is no average over the classes.

# %%
#| export
_INDEX = ["method", "preset", "variant", "seeds", "n"]  # n: test volumes
_QUANTITIES = ("ours_mean", "ours_std", "ours_n", "paper_mean", "paper_std", "difference")


# %%
#| export
def compare(
    results: Iterable[Mapping[str, Any]],  # of `read_results`
    table: int,  # of the paper: 1 or 2
    policy: str = POLICIES[0],  # how empty masks count
    *,
    dataset: str | None = None,  # whose results stand beside the table; the table's own unless told
) -> pd.DataFrame:  # see above; HD95 in mm, difference = ours − paper's, NaN where there is nothing
    """A table of the paper with our results beside it. Raises DataError for results with other classes or without rows
    under the policy; ValueError for an unknown table, policy or dataset."""
    one_of("policy", policy, POLICIES)
    printed = published(table).rename(columns=lambda name: name.replace("hd95_", "hd95_mm_"))
    papers = {method: rows.set_index("class") for method, rows in printed.groupby("method")}
    classes, groups = list(printed["class"].unique()), group_seeds(_select(results, table, dataset))
    groups |= {(method, "", ""): [] for method in papers if method not in {key[0] for key in groups}}
    lines = {}
    for key, runs in sorted(groups.items(), key=lambda item: (place(item[0][0]), item[0][1:])):
        summaries = [_checked_summary(result, policy, classes) for result in runs]
        volumes = min((summary.attrs["volumes"] for summary in summaries), default=0)
        lines[(*key, len(runs), volumes)] = _line(summaries, papers.get(key[0]), classes)
    frame = pd.DataFrame(list(lines.values()), index=pd.MultiIndex.from_tuples(lines, names=_INDEX))
    return frame.rename_axis(columns=["metric", "class", "quantity"])


# %% [markdown]
# A row is made of the summaries of its seeds; a result with other classes than the table's is refused.

# %%
#| export
def _checked_summary(result: Mapping[str, Any], policy: str, classes: list[str]) -> pd.DataFrame:
    "The summary of a result, once its classes are the table's; with the number of volumes."
    summary = summary_of(result, policy)
    if set(summary.index) != set(classes):
        raise DataError(f"{result['run']}: cases", f"the classes {', '.join(summary.index[:-1])}",
                        ", ".join(classes[:-1]))
    summary.attrs["volumes"] = len({row["case"] for row in result["cases"]})
    return summary


# %%
#| export
def _line(summaries: list[pd.DataFrame], paper: pd.DataFrame | None, classes: list[str]) -> pd.Series:
    "A row of the frame: seeds averaged, the paper's numbers, the difference."
    cells: dict[tuple[str, str, str], float] = {}
    for metric in METRICS:
        for name in classes:
            ours = _over_seeds(summaries, metric, name)
            theirs = [np.nan if paper is None else paper.loc[name, f"{metric}_{stat}"] for stat in ("mean", "std")]
            values = (*ours, *theirs, ours[0] - theirs[0])
            cells |= {(metric, name, quantity): value for quantity, value in zip(_QUANTITIES, values, strict=True)}
    return pd.Series(cells)


# %%
#| export
def _over_seeds(summaries: list[pd.DataFrame], metric: str, name: str) -> tuple[float, float, float]:
    "Mean, std and the least number of volumes of a cell; no number for the average where a class has none."
    if not summaries:
        return np.nan, np.nan, 0
    mean, std = (float(np.mean([summary.loc[name, f"{metric}_{stat}"] for summary in summaries]))
                 for stat in ("mean", "std"))
    count = min(int(summary.loc[name, f"{metric}_n"]) for summary in summaries)
    whole = name != "Avg" or all((summary[f"{metric}_n"] > 0).all() for summary in summaries)
    return (mean, std, count) if whole else (np.nan, np.nan, count)


# %%
frame = compare(results, 1)
assert list(frame.index.unique("method"))[:12] == list(TITLES) and frame.shape[1] == 2 * 4 * 6
assert frame.xs("gated-crf").iloc[0][("dsc", "Avg", "paper_mean")] == 0.88


# %% [markdown]
# For print the numbers become text: one block for each metric, with mean and deviation as in the paper. `[38]` behind a cell says that only 38 of the
# row's volumes count in it.

# %%
#| export
def _title_of(method: str) -> str:
    "As the paper prints it; the registered title of a method that the paper does not have."
    return METHODS[method].title if method in METHODS else TITLES.get(method, method)


# %%
#| export
def blocks(
    frame: pd.DataFrame,  # of `compare`; any other frame is one block
) -> dict[str, pd.DataFrame]:  # heading → cells as text, one column a class and source
    "What is printed of a comparison: a block for DSC and one for HD95, `Δ` = ours − paper's."
    if frame.columns.nlevels != 3:
        return {"": frame.map(lambda value: f"{value:.3f}" if isinstance(value, float) else str(value))}
    found = {}
    for metric, heading in zip(METRICS, ("DSC", "HD95 (mm)"), strict=True):
        lines = [{"method": _title_of(key[0]) + (f" ({key[2]})" if key[2] else ""), "preset": key[1] or "–",
                  "seeds": str(key[3]), "n": str(key[4]), **_cells(row, metric, key[4] if key[3] else None)}
                 for key, row in frame.iterrows()]
        found[heading] = pd.DataFrame(lines)
    return found


# %%
#| export
def _cells(row: pd.Series, metric: str, volumes: int | None) -> dict[str, str]:
    "The text of one row of a comparison, a class after another; no volumes: it was not run."
    cells, wide, small = {}, row.unstack("quantity"), 3 if metric == "dsc" else 2
    for name in row.index.unique("class"):
        found = wide.loc[(metric, name)]
        fewer = f" [{found['ours_n']:.0f}]" if volumes and 0 < found["ours_n"] < volumes else ""
        ours = mean_std(found["ours_mean"], found["ours_std"], small) + fewer
        cells[f"{name} ours"] = "not run" if volumes is None else ours
        cells[f"{name} paper"] = mean_std(found["paper_mean"], found["paper_std"], small)
        cells[f"{name} Δ"] = "–" if np.isnan(found["difference"]) else f"{found['difference']:+.2f}"
    return cells


# %%
blocks(frame)["DSC"]

# %%
blocks(frame)["HD95 (mm)"]

# %% [markdown]
# ## A caption that says what is compared
#
# A reader can compare two rows only if the caption says how each was made. This caption is made from the same files as
# the numbers, and it warns where rows should not be compared.

# %%
#| export
_VOLUMES = {1: "ACDC, 40 volumes", 2: "CHAOS T1 in-phase, 7 volumes"}
_EMPTY_MASKS = {"standard": "a missed structure scores DSC 0 and the image's diagonal",
                "legacy": "an empty mask scores DSC 0 and HD95 0 mm, as in the released code"}


# %%
#| export
def describe(
    results: Iterable[Mapping[str, Any]],  # of `read_results`
    table: int,  # of the paper: 1 or 2
    policy: str = POLICIES[0],  # how empty masks count
    *,
    dataset: str | None = None,  # whose results stand beside the table; the table's own unless told
) -> str:  # one line
    "The caption of a comparison: what was run, how it was scored, and what to beware of. Raises as `compare` does."
    one_of("policy", policy, POLICIES)
    chosen = _select(results, table, dataset)
    head = f"Ours beside Table {table} of the paper ({_VOLUMES[table]}, one seed). "
    notes = [f"{_title_of(method)} {name}: {why}" for (number, method, name), why in FLAGS.items() if number == table]
    tail = f"Δ = ours − paper. In the paper's numbers: {'; '.join(notes)}."
    if not chosen:
        return f"{head}None of ours was run on {dataset or next(d for d, t in DATASETS.items() if t == table)}. {tail}"
    facts = _facts(chosen)
    listed = ", ".join(f"{name} {' and '.join(values)}" for name, values in facts.items())
    return (f"{head}Ours: {listed}. Policy {policy}: {_EMPTY_MASKS[policy]}. "
            f"Mean(std over volumes), both averaged over seeds. {_fewer(chosen, policy)}{_warning(facts, table)}{tail}")


# %%
#| export
def _facts(chosen: list[Mapping[str, Any]]) -> dict[str, list[str]]:
    "What was run: each field with its values, in the order of the results."
    chosen = [{**result, "n": len({row["case"] for row in result["cases"]})} for result in chosen]
    facts = {name: list(dict.fromkeys(str(result[name]) for result in chosen))
             for name in ("dataset", "profile", "preset", "fold", "seed", "checkpoint", "n")}
    if any(images := list(dict.fromkeys(_images(result) for result in chosen))):
        facts["images"] = images
    if len({_tested(result)["volumes"] for result in chosen}) > len(facts["n"]):  # as many, and others
        facts["volumes"] = list(dict.fromkeys(_tested(result)["volumes"] for result in chosen))
    contents = {(result["fold"], result["content"]) for result in chosen if result.get("content")}
    if len(contents) > len({fold for fold, _ in contents}):
        facts["data"] = sorted(content[:8] for _, content in contents)
    return facts


# %%
#| export
def _fewer(chosen: list[Mapping[str, Any]], policy: str) -> str:
    "What a number in brackets means, where some class has no number in some volume."
    lacking = any(row["dsc"] is None and row["policy"] == policy for result in chosen for row in result["cases"])
    return "[k]: only k volumes count, as in the others neither mask holds the class. " if lacking else ""


def _images(result: Mapping[str, Any]) -> str:
    "Which images of a patient were used, where the dataset has several: 't1dual in', 't2spir'."
    chosen = (result["settings"].get(f"data_{name}") for name in ("sequence", "phase"))
    return " ".join(str(value) for value in chosen if value is not None)


# %%
#| export
def _warning(facts: Mapping[str, list[str]], table: int) -> str:
    "A sentence on what should not be compared; empty if there is nothing."
    apart = ("profile", "fold", "checkpoint", "n", "volumes", "data")
    warnings = [f"rows differ in {name}" for name in apart if len(facts.get(name, ())) > 1]
    if table == 2 and facts.get("images") != ["t1dual in"]:
        warnings.append("other images than the paper's, which are T1-DUAL in phase")
    if facts["profile"] != ["paper"]:
        warnings.append("the profile is not the paper's: compare rows with each other, not with its numbers")
    return f"Warning: {'; '.join(warnings)}. " if warnings else ""


# %%
print(describe(results, 1))


# %% [markdown]
# ## Equation: how far do two orders agree?
#
# Take every pair of the $m$ methods. It is *concordant* if both orders rank it alike, *discordant* if they contradict
# each other; $C$ and $D$ count such pairs. A tie is neither: $T_x$ pairs tie in our numbers alone, $T_y$ in the paper's
# alone. Kendall's
#
# $$\tau_b=\frac{C-D}{\sqrt{(C+D+T_x)(C+D+T_y)}}$$
#
# is 1 for the same order, −1 for the reverse, about 0 for unrelated ones.
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $x$, $y$ | `ours`, `paper` | [m] | – or mm |
# | $\tau_b$ | `tau` | scalar | – |

# %% [markdown]
# ## Naive code
#
# One pair at a time.

# %%
def tau_naive(x, y):
    concordant = discordant = only_x = only_y = 0
    for i in range(len(x)):
        for j in range(i):
            a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
            concordant += a * b > 0
            discordant += a * b < 0
            only_x += a == 0 and b != 0
            only_y += b == 0 and a != 0
    pairs = concordant + discordant
    return (concordant - discordant) / np.sqrt((pairs + only_x) * (pairs + only_y))


# %% [markdown]
# **By hand.** Three methods, ours .9, .7, .8, the paper's .9, .8, .7: of three pairs two agree, one does not:
# $\tau=(2-1)/3$. If the paper prints .9, .8, .8, the last pair is tied there: $2/\sqrt{3\cdot2}=0.816$.
#
# **What breaks.** With every value tied it divides by zero. Then there is no order to agree with, so the answer is NaN.

# %%
assert np.isclose(tau_naive([0.9, 0.7, 0.8], [0.9, 0.8, 0.7]), 1 / 3)
assert np.isclose(tau_naive([0.9, 0.7, 0.8], [0.9, 0.8, 0.8]), 2 / np.sqrt(6))
rng = np.random.default_rng(0)
for _ in range(20):
    x, y = rng.integers(0, 6, (2, 9))
    np.testing.assert_allclose(tau_naive(x, y), kendalltau(x, y).statistic)


# %%
#| export
@dataclass(frozen=True)
class Agreement:
    "How far two orders of the same methods agree in one metric."

    metric: str  # "dsc" or "hd95_mm"
    methods: tuple[str, ...]  # which both have, our best first
    tau: float  # Kendall's tau-b in [-1, 1]; NaN for fewer than two methods or where all tie
    swaps: tuple[tuple[str, str], ...]  # (better here, better in the paper), the largest swap first

    def __str__(self) -> str:
        pairs = ", ".join(f"{_title_of(ours)} over {_title_of(theirs)}" for ours, theirs in self.swaps)
        return (f"{self.metric}: tau {self.tau:+.2f} over {len(self.methods)} methods; "
                + (f"here, unlike in the paper: {pairs}" if pairs else "no pair swaps"))


# %%
#| export
def order_agreement(
    frame: pd.DataFrame,  # of `compare`
    preset: str = "paper",  # rows of this preset only
) -> dict[str, Agreement]:  # by metric
    """Our order of the methods against the paper's, by mean DSC and by mean HD95.

    A pair swaps when the two disagree; the size of a swap is our gap plus the paper's. Raises ValueError for a method
    with several variants."""
    rows = frame[frame.index.get_level_values("preset") == preset]
    names = rows.index.get_level_values("method")
    if (twice := names[names.duplicated()]).size:
        raise ValueError(f"{twice[0]}: found several rows of the preset {preset!r}, expected one; filter the results")
    return {metric: _agreement(metric, rows.set_axis(names)[metric]["Avg"]) for metric in METRICS}


# %%
#| export
def _agreement(metric: str, averages: pd.DataFrame) -> Agreement:
    "Compare the orders of `ours_mean` and `paper_mean`, a row a method."
    means = averages[["ours_mean", "paper_mean"]].dropna() * (1 if metric == "dsc" else -1)  # more is better
    ours, paper = means["ours_mean"].sort_values(ascending=False, kind="stable"), means["paper_mean"]
    swaps = [(ours[a] - ours[b] + paper[b] - paper[a], a, b) for a, b in combinations(ours.index, 2)
             if ours[a] > ours[b] and paper[a] < paper[b]]
    tau = kendalltau(ours, paper[ours.index]).statistic if len(ours) > 1 else np.nan
    pairs = tuple((a, b) for _, a, b in sorted(swaps, key=lambda swap: -swap[0]))
    return Agreement(metric, tuple(ours.index), float(tau), pairs)


# %%
#| export
def plot_order(
    axis: Axes,  # where to draw
    frame: pd.DataFrame,  # of `compare`
    metric: str,  # "dsc" or "hd95_mm"
    preset: str = "paper",  # rows of this preset only
) -> None:
    "Ranks, the best on top: the paper's on the left, where ties share a place, ours on the right; swaps stand out."
    agreement = order_agreement(frame, preset)[metric]
    rows = frame[frame.index.get_level_values("preset") == preset]
    means = rows.set_axis(rows.index.get_level_values("method"))[metric]["Avg"].loc[list(agreement.methods)]
    ranks = means["paper_mean"].rank(ascending=metric != "dsc")
    swapped, digits = {method for pair in agreement.swaps for method in pair}, 2 if metric == "dsc" else 1
    for rank, (method, row) in enumerate(means.iterrows(), 1):
        axis.plot([0, 1], [ranks[method], rank], "o-", color="#D55E00" if method in swapped else "#0072B2",
                  markersize=4, linewidth=1.2)
        scores = f"{row['ours_mean']:.{digits}f} (paper {row['paper_mean']:.{digits}f})"
        axis.annotate(f"{for_figure(_title_of(method))}  {scores}", (1, rank), xytext=(7, 0),
                      textcoords="offset points", va="center", fontsize=8)
    axis.set_title(f"{'mean DSC' if metric == 'dsc' else 'mean HD95 (mm)'}: τ = {agreement.tau:.2f}", fontsize=9)
    _style_ranks(axis, len(means))


# %%
#| export
def _style_ranks(axis: Axes, count: int) -> None:
    "Two columns, the first rank on top, room for names on the right."
    axis.set_xticks([0, 1], ["the paper", "here"], fontsize=8)
    axis.set_yticks(range(1, count + 1))
    axis.set(xlim=(-0.1, 2.4), ylim=(count + 0.5, 0.5))
    axis.spines[["top", "right", "bottom"]].set_visible(False)


# %%
for agreement in order_agreement(frame[frame.index.get_level_values("variant") == ""]).values():
    print(agreement)

# %% [markdown]
# That is the answer for the runs in `results/` on real data, a few minutes of training each. Twelve methods make 66
# pairs, so one pair that swaps moves $\tau$ by about .03; close pairs depend on the seed. It says nothing about the
# paper's long schedule.

# %% [markdown]
# ## Slide the noise
#
# How much agreement can one expect? Add noise to the paper's mean DSC and compare the result with the printed numbers.
# Printed to two decimals, several rows tie; noise of .02 in each mean already changes the order in the upper half.

# %%
avg = published(1).query("`class` == 'Avg'").set_index("method")["dsc_mean"]


def plot_noise(axis, sigma):
    noisy = avg + sigma * np.random.default_rng(0).standard_normal(len(avg))
    for method in avg.index:
        axis.plot([0, 1], [avg[method], noisy[method]], "o-", markersize=3, linewidth=1, color="#0072B2")
    axis.set_xticks([0, 1], ["printed", "with noise"], fontsize=8)
    axis.set(ylim=(0.5, 1), title=f"σ = {sigma:.3f}: τ = {kendalltau(avg, noisy).statistic:.2f}")
    axis.title.set_fontsize(9)


# %%
def slide_noise(sigma=0.02):
    axis = plt.subplots(figsize=(2.6, 2.8), layout="constrained")[1]
    plot_noise(axis, sigma)
    plt.show()

interact(slide_noise, sigma=(0.0, 0.1, 0.005));

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2.8), sharey=True, layout="constrained")
for axis, sigma in zip(axes, (0, 0.01, 0.02, 0.05), strict=True):
    plot_noise(axis, sigma)
axes[0].set_ylabel("mean DSC of Table 1");


# %% [markdown]
# ## Written three ways
#
# Markdown for the web, CSV for a program (all digits, nothing rounded), LaTeX with booktabs for a paper.

# %%
#| export
def write_table(
    frame: pd.DataFrame,  # of `compare`, or any other
    caption: str,  # plain text, above the table
    stem: str,  # "table1"
    folder: Path | str,  # made if it is not there
) -> list[Path]:  # stem.md, stem.csv, stem.tex
    "Write a table three ways; each file appears whole or not at all."
    parts, levels = blocks(frame), frame.columns.nlevels
    flat = frame if levels == 1 else frame.set_axis(["_".join(c) for c in frame.columns], axis=1)
    texts = {"md": _markdown_text(parts, caption), "csv": flat.to_csv(index=levels > 1),
             "tex": latex_table(parts, caption, stem)}
    paths = {suffix: Path(folder) / f"{stem}.{suffix}" for suffix in texts}
    for suffix, path in paths.items():
        write_atomic(path, partial(Path.write_text, data=texts[suffix], encoding="utf-8"))
    return [*paths.values()]


# %%
#| export
def _markdown_text(parts: Mapping[str, pd.DataFrame], caption: str) -> str:
    "The caption, then each block below its heading."
    tables = [part for heading, cells in parts.items()
              for part in ([f"**{heading}**"] if heading else []) + [_markdown(_lines(cells, "---"))]]
    return "\n\n".join([caption, *tables]) + "\n"


def _lines(part: pd.DataFrame, rule: str = "") -> list[list[str]]:
    "Header, a rule if there is one, and rows of a block."
    return [list(map(str, part.columns)), *([[rule] * part.shape[1]] if rule else []), *part.values.tolist()]


# %%
#| export
def latex_table(
    parts: Mapping[str, pd.DataFrame],  # of `blocks`
    caption: str,  # plain text
    label: str,  # of the table: \ref{tab:label}
) -> str:  # needs the package booktabs
    "A table environment with a tabular for each block."
    lines = [r"\begin{table}", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
             rf"\caption{{{_latex_text(caption)}}}\label{{tab:{label}}}"]
    for heading, part in parts.items():
        header, *rows = ([_latex_text(cell) for cell in line] for line in _lines(part))
        lines += [rf"\par\medskip {_latex_text(heading)}\par\smallskip"] if heading else []
        lines += [rf"\begin{{tabular}}{{{'l' * part.shape[1]}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule",
                  *(" & ".join(row) + r" \\" for row in rows), r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


# %%
#| export
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "Δ": r"$\Delta$",
          "τ": r"$\tau$", "σ": r"$\sigma$", "λ": r"$\lambda$", "±": r"$\pm$", "²": r"\textsuperscript{2}",
          "–": "--", "−": "$-$", "<": r"\textless{}", ">": r"\textgreater{}", **{c: f"\\{c}" for c in "&%$#_{}"}}


def _latex_text(text: str) -> str:
    "Text that LaTeX prints as it stands; a signed number gets a minus, not a hyphen."
    if re.fullmatch(r"[+-][\d.]+", text):
        return f"${text}$"
    return "".join(_LATEX.get(letter, letter) for letter in text)


# %%
assert _latex_text("50 % of a_b & −0.1") == r"50 \% of a\_b \& $-$0.1" and _latex_text("-0.07") == "$-0.07$"
with tempfile.TemporaryDirectory() as folder:
    written = write_table(frame, describe(results, 1), "table1", folder)
    assert [path.name for path in written] == ["table1.md", "table1.csv", "table1.tex"]
    print(written[0].read_text()[:2000])


# %% [markdown]
# ## Parameters of a notebook
#
# papermill accepts any name for a parameter. A notebook that reads its parameters through this function refuses a name
# it does not know.

# %%
#| export
def notebook_parameters(
    namespace: Mapping[str, Any],  # `globals()` of a notebook, right after its parameters
    **choices: Iterable[str] | None,  # parameter=values it may have; None: any
) -> dict[str, Any]:  # name → value of those that the notebook has
    "The parameters by name. Raises ValueError for a name or a value that is none of the choices, with the nearest."
    given = notebook_settings(namespace)
    for name, value in given.items():
        one_of("parameter", name, choices)
        if (allowed := choices[name]) is not None:
            one_of(name, value, allowed)
    return given


# %%
try:
    notebook_parameters({"polcy": "legacy"}, policy=POLICIES)
    raise RuntimeError("a misspelt parameter passed")
except ValueError as error:
    print(error)


# %% [markdown]
# ## Exercises
#
# **1. Predict.** In an order of 12 methods two neighbours swap, no ties. By how much does $\tau$ drop?

# %%
def check_drop(f):
    order = np.arange(12)
    swapped = order.copy()
    swapped[[4, 5]] = swapped[[5, 4]]
    assert np.isclose(f(), 1 - kendalltau(order, swapped).statistic)

def attempt_drop():
    ...  # your code here

exercise(check_drop, attempt_drop, solution=lambda: 2 / 66)


# %% [markdown]
# **2. Implement.** Two means are printed with two decimals. Is the order of the unrounded means certain?

# %%
def check_certain(f):
    assert f(0.88, 0.87) is True and f(0.88, 0.88) is False and f(0.62, 0.91) is True

def attempt_certain(a, b):
    ...  # your code here

exercise(check_certain, attempt_certain, solution=lambda a, b: round(abs(a - b), 2) >= 0.01)


# %% [markdown]
# **3. Break.** Change one published mean so that "ours" loses the first place by HD95 among the scribble methods of
# Table 1. Return method and new value.

# %%
def check_dethroned(f):
    method, value = f()
    rows = published(1).query("`class` == 'Avg' and method != 'fully'").set_index("method")["hd95_mean"]
    rows[method] = value
    assert rows.idxmin() != "ours"

def attempt_dethroned():
    ...  # your code here

exercise(check_dethroned, attempt_dethroned, solution=lambda: ("gated-crf", 6.0))

# %% [markdown]
# ## Recap
#
# `read_results` reads result files, `compare` sets them beside a table of the paper, `describe` writes the caption,
# `order_agreement` compares the orders and `write_table` writes the files; [tables.ipynb](../tables.ipynb) runs them.
# Surprising: a printed deviation can be checked without any data. [The next chapter](61_figures.ipynb) draws the paper's
# figures.
