# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Statistics
#
# > Which differences between methods are real? Seeds, paired tests over patients, intervals, and ranks of many methods.
#
# Is .82 better than .80? Another seed of the same method and another forty volumes give another number, so a difference
# has to be compared with what chance does. This chapter reads result files, tests every method against a reference over
# the same patients, and shows what such a test cannot see.

# %%
#| default_exp reporting.statistics

# %%
#| export
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.stats import friedmanchisquare, norm, rankdata, studentized_range, t, wilcoxon

# %%
#| export
from attenscribble.basics.errors import DataError, one_of
from attenscribble.basics.files import write_atomic
from attenscribble.reporting.tables import _title_of, group_seeds, write_table
from attenscribble.runs.config import PRESETS
from attenscribble.runs.metrics import METRICS, POLICIES

# %%
import importlib.util
import tempfile

import matplotlib.pyplot as plt
from ipywidgets import interact
from scipy.stats import kstest, ttest_1samp

from attenscribble.basics.checking import exercise
from attenscribble.basics.errors import refused
from attenscribble.basics.files import project_root
from attenscribble.reporting.statistics import paired_tests, plot_intervals, volume_scores  # for a first look
from attenscribble.reporting.tables import read_results

# %% [markdown]
# ## Results with a known truth
#
# Statistics can only be checked where the truth is known, so this chapter also needs results that no network made. A
# score is .8, plus how easy the patient is, how well the method suits this patient, the heart's phase, the seed, the
# class, and the method's true effect. All but the last are drawn from normal distributions.

# %%
CLASSES = ("RV", "Myo", "LV")

def pretend(effects, rng, patients=20, seeds=(1,), seed_sd=0.0):
    "Result files of methods with a known effect on the DSC; two volumes a patient, HD95 = 100 (1 − DSC)."
    draw = lambda sd, *shape: sd * rng.standard_normal(shape)
    easy, results = draw(0.05, patients, 1, 1), []
    for method, effect in effects.items():
        suits = easy + draw(0.03, patients, 1, 1)
        for seed in seeds:
            noise = draw(0.01, patients, 2, 1) + draw(0.02, patients, 2, len(CLASSES))
            dsc = 0.8 + effect + suits + draw(seed_sd) + noise
            results.append(pretended_result(method, seed, dsc))
    return results


# %%
def pretended_result(method, seed, dsc):
    "One result file; `dsc` is [patients, frames, classes]."
    rows = [{"case": f"patient{p + 1:03d}_frame{10 * f + 1:02d}", "class": CLASSES[c], "policy": "standard",
             "dsc": float(dsc[p, f, c]), "hd95_mm": float(100 * (1 - dsc[p, f, c]))}
            for p, f, c in np.ndindex(dsc.shape)]
    facts = {"run": f"{method}-seed{seed}", "dataset": "acdc", "method": method, "title": method, "fold": 1}
    return facts | {"seed": seed, "profile": "mini", "preset": "paper", "checkpoint": "last", "train_seconds": 1.0,
                    "settings": {}, "cases": rows}


# %%
def results_or(folder, pretended):
    "The results of a folder of the clone; pretended ones where it has fewer than two."
    root = project_root()
    found = read_results(root / folder, dataset="acdc", profile="mini") if root and [*(root / folder).glob("*")] else []
    if len(found) < 2:
        print(f"no two results in {folder}: what follows is pretended")
    return found if len(found) > 1 else pretended


# %% [markdown]
# ## The answer first
#
# One method, one set of patients, three seeds. On the left each line is a patient and the black line the mean; on the
# right the same seeds tested against one of them, as if they were three methods.

# %%
def seed_of(result):
    return f"seed {result['seed']}"

pretended = pretend({"ours": 0.0}, np.random.default_rng(0), seeds=(1, 2, 2022), seed_sd=0.05)
seeds = [run for run in results_or("results/guard", pretended)
         if run["settings"].get("precision", "float32") == "float32"]
wide = volume_scores(seeds, "dsc", label=seed_of).pivot_table("score", "patient", "setting")
tests = paired_tests(seeds, seed_of(seeds[-1]), "dsc", label=seed_of)

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained", width_ratios=(1, 1.6))
axes[0].plot(range(len(wide.columns)), wide.T, color="#999999", linewidth=0.7)
axes[0].plot(range(len(wide.columns)), wide.mean(), "o-", color="black")
axes[0].set_xticks(range(len(wide.columns)), wide.columns, fontsize=8)
axes[0].set_ylabel("mean DSC of a patient", fontsize=8)
axes[0].tick_params(axis="y", labelsize=8)
plot_intervals(axes[1], tests)
print(wide.mean().round(3).to_dict())

# %% [markdown]
# The means of one method differ by a tenth, and the test calls one of these differences certain. It is: these two
# *trained networks* do differ, on patients like these. But nothing differs between the *methods*, for there is only
# one. **A test over patients does not see the seed.** The rest of this chapter says what it does see, and how to ask
# it.
#
# ## From a result file to a score per volume
#
# The unit of everything below is a volume: the mean of its classes. Results that differ in seed and fold only are one
# *setting*; a label tells it apart from the others.

# %%
#| export
Result = Mapping[str, Any]  # a result file's content, of `read_results`
Labeller = Callable[[Result], str]  # result → name of its setting
UNITS = ("patient", "volume")  # what a test may take for independent
ALPHA = 0.05  # level: an adjusted p below it is called significant
RESAMPLES = 9999  # of a bootstrap
FULLY = "fully"  # the method that learns from dense labels
_DIGITS = 12  # of a difference: what rounding adds stands behind them
_SPREAD = ("mean", "std", "min", "max")  # over seeds
_COLUMNS = ["setting", "dataset", "fold", "seed", "case", "patient", "score"]
HEADINGS = {"dsc": "DSC", "hd95_mm": "HD95 (mm)"}


# %%
#| export
def by_setting(
    results: Iterable[Result],  # of `read_results`
    label: Labeller | None = None,  # names the setting; None: its title, preset and what `group_seeds` finds apart
) -> dict[tuple[str, str], list[Result]]:  # (dataset, setting) → its runs, which differ in seed and fold
    "Put the seeds and folds of a setting together. Only `label` can give different settings one name."
    found: dict[tuple[str, str], list[Result]] = {}
    results = list(results)
    for dataset in dict.fromkeys(result["dataset"] for result in results):
        own = [{**result, "fold": 0, "cases": [], "origin": result} for result in results
               if result["dataset"] == dataset]
        for key, runs in group_seeds(own).items():  # no fold, no cases: folds have other volumes
            for run in runs:
                name = label(run["origin"]) if label else _name_of(*key)
                found.setdefault((dataset, name), []).append(run["origin"])
    return found


# %%
#| export
def _name_of(method: str, preset: str, variant: str) -> str:
    "A setting's name in tables: 'Ours', 'Ours, released', 'Ours, released (asl_radius 3)'."
    shown = f", {preset}" if preset not in ("", "–", next(iter(PRESETS))) else ""
    return f"{_title_of(method)}{shown}" + (f" ({variant})" if variant else "")


# %% [markdown]
# Which volumes are of one patient? The datasets of this package name a volume after patient and frame; a folder of
# one's own has the option `data_patient`, and the result file holds it.

# %%
#| export
_FRAME = re.compile(r"_(frame\d+|t1\w+|t2spir)$")


def patient_of(
    result: Result,  # a result file's content; its setting `data_patient` is a regular expression, where there is one
    case: str,  # name of a volume, such as "patient001_frame12"
) -> str:  # such as "patient001"; a name without a known frame is a patient of its own
    "The patient that a volume is of. Raises DataError for a result whose `data_patient` is no regular expression."
    pattern = result["settings"].get("data_patient")
    try:
        match = re.match(pattern, case) if pattern else None
    except (re.error, TypeError):
        raise DataError(f"{result['run']}: data_patient", repr(pattern), "a regular expression, or none") from None
    return match[0] if match else _FRAME.sub("", case)


# %%
assert patient_of({"settings": {}}, "patient001_frame12") == "patient001"
assert patient_of({"settings": {}}, "chaos05_t2spir") == "chaos05" and patient_of({"settings": {}}, "a_1") == "a_1"
assert patient_of({"settings": {"data_patient": "[^_]+"}}, "a_1") == "a"


# %%
#| export
def volume_scores(
    results: Iterable[Result],  # of `read_results`
    metric: str,  # "dsc" or "hd95_mm"
    policy: str = POLICIES[0],  # how empty masks count
    *,
    label: Labeller | None = None,  # names the setting of a result, as in `by_setting`
    patient: Callable[[Result, str], str] = patient_of,  # result, case → patient
) -> pd.DataFrame:  # a row a volume and run: setting, dataset, fold, seed, case, patient, score (DSC in [0,1]; HD95 mm)
    """The mean over classes of every volume. A class that neither mask holds is left out, as in `summarise`; NaN where
    no class has a number. Raises DataError, by name, for a missing class, a fold and seed that is there twice, seeds of
    one setting and fold with other volumes; ValueError for an unknown metric or policy."""
    one_of("metric", metric, METRICS)
    one_of("policy", policy, POLICIES)
    groups = by_setting(results, label)
    classes = _classes(groups, policy)
    rows = [(setting, dataset, run["fold"], run["seed"], case, patient(run, case), score, run["run"])
            for (dataset, setting), runs in groups.items() for run in runs
            for case, score in _scores(run, metric, policy, classes[dataset]).items()]
    frame = pd.DataFrame(rows, columns=[*_COLUMNS, "run"])
    for _, part in frame.groupby(["dataset", "setting", "fold"], sort=False):
        _check_seeds(part)
    return frame[_COLUMNS]


# %% [markdown]
# What is missing is refused by name: a volume without its worst class would have a better mean than with it.

# %%
#| export
def _classes(groups: Mapping[tuple[str, str], list[Result]], policy: str) -> dict[str, list[str]]:
    "Dataset → every class that one of its runs was scored on."
    found: dict[str, dict[str, None]] = {}
    for (dataset, _), runs in groups.items():
        names = {row["class"]: None for run in runs for row in run["cases"] if row["policy"] == policy}
        found.setdefault(dataset, {}).update(names)
    return {dataset: list(names) for dataset, names in found.items()}


# %%
#| export
def _scores(run: Result, metric: str, policy: str, classes: Sequence[str]) -> pd.Series:
    "Volume → mean over its classes. Raises DataError naming run, case and class."
    rows = pd.DataFrame([row for row in run["cases"] if row["policy"] == policy])
    if rows.empty:
        raise DataError(f"{run['run']}: cases", f"no row under the policy {policy!r}", "one a volume and class")
    counts = Counter(zip(rows["case"], rows["class"], strict=True))
    for pair in product(rows["case"].unique(), classes):
        if counts[pair] != 1:
            raise DataError(f"{run['run']}: {': '.join(pair)}", f"{counts[pair]} rows", "one a class of the dataset")
    return rows.astype({metric: float}).groupby("case", sort=False)[metric].mean()


# %%
#| export
def _check_seeds(part: pd.DataFrame) -> None:
    "Raise DataError unless the runs of one setting and fold have seeds of their own and the same volumes."
    where = f"{part['dataset'].iloc[0]}, {part['setting'].iloc[0]}, fold {part['fold'].iloc[0]}"
    for seed, runs in part.groupby("seed")["run"].unique().items():
        if len(runs) > 1:
            raise DataError(f"{where}, seed {seed}", f"the runs {', '.join(runs)}", "one run a fold and seed")
    volumes = part.groupby("seed")["case"].agg(set)
    if missing := {seed: gone for seed, own in volumes.items() if (gone := set.union(*volumes) - own)}:
        sizes = ", ".join(f"seed {seed} has {len(own)}{' volumes' * (not index)}"
                          for index, (seed, own) in enumerate(volumes.items()))
        names = "; ".join(f"{named(gone)} in seed {seed}" for seed, gone in missing.items())
        raise DataError(f"{where}: {sizes}: missing {names}")


# %%
#| export
def named(
    names: Iterable[object],  # any number
    most: int = 5,  # so many are spelled out
) -> str:  # "a, b, c and 9 more"
    "Names in order, for a message."
    listed = sorted(map(str, names))
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


# %% [markdown]
# **By hand.** A volume with .9, .6 and .6 scores .7. Two seeds of one setting stay two rows.

# %%
two = [pretended_result("ours", seed, np.full((2, 2, 3), 0.5)) for seed in (1, 2)]
two[0]["cases"][0] |= {"dsc": 0.9}
two[0]["cases"][1] |= {"dsc": 0.6}
two[0]["cases"][2] |= {"dsc": 0.6}
scores = volume_scores(two, "dsc")
assert len(scores) == 8 and np.isclose(scores["score"].iloc[0], 0.7) and set(scores["setting"]) == {"Ours"}
shorter = {**two[1], "cases": two[1]["cases"][3:]}
print(refused(lambda: volume_scores([two[0], shorter], "dsc"), "seed 1 has 4 volumes, seed 2 has 3", "frame01"))
print(refused(lambda: volume_scores([{**two[0], "cases": two[0]["cases"][1:]}], "dsc"), "ours-seed1", "RV"))


# %% [markdown]
# ## What the seed does
#
# For each setting one number a seed, the mean over all volumes of all folds, and then its spread over seeds. A seed
# that lacks a fold has no such mean: it is named, not filled in. One seed has no spread.

# %%
#| export
def seed_table(
    results: Iterable[Result],  # of `read_results`
    policy: str = POLICIES[0],  # how empty masks count
    *,
    label: Labeller | None = None,  # names the setting of a result, as in `by_setting`
) -> pd.DataFrame:  # a row a dataset and setting; DSC in [0,1], HD95 in mm, NaN where nothing was run or scored
    """Mean, standard deviation (n − 1), least and largest over seeds of the mean over volumes: dsc_mean to hd95_mm_max.

    `seeds` counts those with every fold of the setting; `missing` names what others lack. Raises as `volume_scores`."""
    results = list(results)
    parts = {metric: volume_scores(results, metric, policy, label=label) for metric in METRICS}
    frame = parts[METRICS[0]]
    rows = [{"dataset": dataset, "setting": setting, **_spread(parts, dataset, setting)}
            for dataset in frame["dataset"].unique() for setting in frame["setting"].unique()]
    columns = [f"{metric}_{name}" for metric in METRICS for name in _SPREAD]
    return pd.DataFrame(rows, columns=["dataset", "setting", "seeds", "folds", "volumes", *columns, "missing"])


# %%
#| export
def _spread(parts: Mapping[str, pd.DataFrame], dataset: str, setting: str) -> dict[str, Any]:
    "The cells of one row of `seed_table`."
    own = {metric: part[(part["dataset"] == dataset) & (part["setting"] == setting)] for metric, part in parts.items()}
    first = own[METRICS[0]]
    there, folds = first.groupby("seed")["fold"].agg(set), set(first["fold"])
    gone = {seed: folds - found for seed, found in there.items() if folds - found}
    complete = [seed for seed in there.index if seed not in gone]
    missing = "; ".join(f"seed {seed}: fold {named(lost)}" for seed, lost in gone.items())
    cells = {"seeds": len(complete), "folds": len(folds), "missing": missing if len(first) else "not run",
             "volumes": len(first.drop_duplicates(["fold", "case"]))}
    for metric, part in own.items():
        means = part[part["seed"].isin(complete)].groupby("seed")["score"].mean()
        cells |= {f"{metric}_{name}": getattr(means, name)() for name in _SPREAD}
    return cells


# %%
seed_table(seeds).round(3).T.rename_axis(index="of one method")


# %% [markdown]
# ## Equation: the signed-rank test
#
# One patient, two methods: $d_i$ is the difference of their scores. If the methods are alike, $d_i$ is as likely $+x$
# as $-x$. So rank the $|d_i|$, and add the ranks of positive and of negative differences (Wilcoxon 1945):
#
# $$R^+=\sum_{d_i>0}\operatorname{rank}|d_i|\qquad R^-=\sum_{d_i<0}\operatorname{rank}|d_i|\qquad
# r=\frac{R^+-R^-}{R^++R^-}$$
#
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $d$ | `differences` | [n] | – or mm |
# | $R^+$, $R^-$ | `up`, `down` | scalar | – |
# | $r$ | `effect` | scalar in [−1, 1] | – |
#
# $p$ is the share of all $2^n$ ways to sign the ranks that are at least as uneven. $r$, the matched-pairs rank-biserial
# correlation (Kerby 2014), says how uneven: 1 if every difference is positive.
#
# ## Naive code
#
# Every way to sign the ranks.

# %%
def signed_rank_naive(differences):
    ranks = rankdata(np.abs(differences))
    up, down = (sum(rank for rank, d in zip(ranks, differences, strict=True) if sign * d > 0) for sign in (1, -1))
    ways = [sum(s * rank for s, rank in zip(signs, ranks, strict=True))
            for signs in product((1, -1), repeat=len(ranks))]
    return np.mean([abs(way) >= abs(up - down) for way in ways]), (up - down) / (up + down)


# %% [markdown]
# **By hand.** Differences 1, 2, 3, −4, 5: $R^+=1+2+3+5=11$, $R^-=4$, $r=7/15$. Of the 32 ways to sign the ranks 1 to 5,
# seven have a sum of negative ranks of at most 4 (none, 1, 2, 3, 4, 1+2, 1+3) and seven have such a sum of positive
# ranks: $p=14/32$.
#
# **What breaks.** The ways double with each patient. Twenty patients have a million, forty have $10^{12}$.

# %%
p, effect = signed_rank_naive([1, 2, 3, -4, 5])
assert p == 14 / 32 and np.isclose(effect, 7 / 15)


# %% [markdown]
# ## Fast code
#
# SciPy counts the ways without listing them, up to 50 differences, and takes a normal distribution beyond or where
# ranks tie. Differences that only rounding tells apart are made equal, and zeros are dropped, as Wilcoxon did.

# %%
#| export
def signed_rank(
    differences: np.ndarray | Sequence[float],  # [n] of independent units
) -> tuple[float, float]:  # two-sided p, and the matched-pairs rank-biserial correlation in [−1, 1]
    """Wilcoxon's signed-rank test with zero_method "wilcox": differences of 0 are dropped. Zeros alone give p = 1 and
    effect 0. Raises ValueError for NaN."""
    found = np.round(np.asarray(differences, dtype=float), _DIGITS)
    if np.isnan(found).any():
        raise ValueError(f"differences: found {np.isnan(found).sum()} NaN, expected numbers only")
    found = found[found != 0]
    if not found.size:
        return 1.0, 0.0
    ranks = rankdata(np.abs(found))
    return float(wilcoxon(found).pvalue), float((ranks * np.sign(found)).sum() / ranks.sum())


# %%
rng = np.random.default_rng(0)
for count in (5, 7, 12):
    differences = rng.normal(0.3, 1, count)
    np.testing.assert_allclose(signed_rank(differences), signed_rank_naive(differences), rtol=1e-12)
assert signed_rank([0, 0, 1, 2, 3]) == signed_rank([1, 2, 3]) and signed_rank([0.3 - 0.3]) == (1, 0)


# %% [markdown]
# The smallest $p$ is $2/2^n$, where all differences have one sign. With CHAOS's seven test patients that is .016: then
# no result, however clear, has a smaller one.
#
# ## What is a unit?
#
# The test takes its differences for independent. The slices of a volume are not, nor are the two volumes of a patient:
# a method that fails on a heart fails on both its phases. Here two methods are alike; ten slices in each of two
# volumes of twenty patients; and each way to count is asked two thousand times.

# %%
def null_differences(rng, trials, patients=20, frames=2, slices=10):
    "Differences [trials, patients, frames, slices] of two methods that are alike on average."
    of_patient, of_volume = (rng.standard_normal((trials, patients, count, 1)) for count in (1, frames))
    of_slice = rng.standard_normal((trials, patients, frames, slices))
    return 0.03 * of_patient + 0.01 * of_volume + 0.05 * of_slice

d = null_differences(np.random.default_rng(1), 2000)
found = {"t-test on 400 slices": ttest_1samp(d.reshape(2000, -1), 0, axis=1).pvalue,
         "signed ranks of 40 volumes": wilcoxon(d.mean(3).reshape(2000, -1), axis=1).pvalue,
         "signed ranks of 20 patients": wilcoxon(d.mean((2, 3)), axis=1).pvalue}

# %%
figure, axes = plt.subplots(1, 3, figsize=(8.5, 2.4), sharey=True, layout="constrained")
for axis, (name, p) in zip(axes, found.items(), strict=True):
    axis.hist(p, np.linspace(0, 1, 21), color="#0072B2")
    axis.axhline(100, color="black", linewidth=0.8, linestyle="--")
    axis.set_title(f"{name}\n{(p < 0.05).mean():.0%} below .05", fontsize=9)
    axis.set_xlabel("p where nothing differs", fontsize=8)
axes[0].set_ylabel("of 2000 comparisons", fontsize=8)
alarms = [(p < 0.05).mean() for p in found.values()]
assert alarms[0] > 0.3 and alarms[1] > 0.1 and 0.035 < alarms[2] < 0.065


# %% [markdown]
# A correct $p$ is uniform where nothing differs (dashed): below .05 in 5 % of the comparisons. Counting slices finds a
# "difference" in two of five, counting volumes still in one of eight. The slices are no new evidence about patients. So
# the unit here is the patient: its volumes are averaged first.

# %% [markdown]
# ## Many comparisons: Holm
#
# Fifteen methods against one reference are fifteen chances to be fooled. Holm (1979): sort the $m$ values; multiply the
# smallest by $m$, the next by $m-1$, and so on; none may fall below the one before it, none exceeds 1. Then the chance
# of even one false alarm in the family stays below the level, whatever the tests have in common.

# %%
#| export
def holm(
    p: Sequence[float] | np.ndarray,  # [m] p values of one family of tests
) -> np.ndarray:  # [m] adjusted, in the same order
    "Holm's step-down adjustment of p values. Raises ValueError for a value outside [0, 1]."
    values = np.asarray(p, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p: found {values.tolist()}, expected numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    steps = (len(values) - np.arange(len(values))) * values[order]  # m, m − 1, …, 1 times
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


# %% [markdown]
# **By hand.** .01, .04, .03: sorted .01·3 = .03, .03·2 = .06, .04·1 = .04, which must not fall below .06.

# %%
np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
p = np.random.default_rng(0).random(15) ** 3
order = np.argsort(p)
assert (np.diff(holm(p)[order]) >= 0).all() and (holm(p) >= p).all() and holm(p).max() <= 1
if importlib.util.find_spec("statsmodels"):  # an independent library, where it is installed
    from statsmodels.stats.multitest import multipletests
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


# %% [markdown]
# ## How large is the difference?
#
# A small $p$ says that there is a difference, not that it matters. So the mean difference gets an interval: draw as
# many patients as there are, with replacement, take their mean difference, do it ten thousand times, and keep the
# middle 95 % (percentile bootstrap). Patients are drawn whole, with all their volumes.
#
# With few patients such an interval is too narrow, for a resample varies by $\sqrt{(n-1)/n}$ less than a sample and has
# lighter tails than a $t$. Hesterberg (2015) moves the two percentiles outward so that it has the width of a $t$
# interval where that one is right.

# %%
#| export
def bootstrap_interval(
    differences: np.ndarray | Sequence[float],  # [n] of patients or of volumes
    patients: Sequence[object],  # [n] whose they are: a patient is drawn with all that is its own
    *,
    level: float = 1 - ALPHA,  # share of such intervals that hold the true mean
    resamples: int = RESAMPLES,  # how often patients are drawn
    seed: int = 0,  # of the drawing
) -> tuple[float, float]:  # of the mean difference; NaN for a single patient
    """Percentile bootstrap of the mean, clustered by patient, with expanded percentiles (Hesterberg 2015, The American
    Statistician 69:371). Below five patients it ends at the extreme differences and covers less."""
    _, index = np.unique([*patients], return_inverse=True)
    sums, counts = np.bincount(index, np.asarray(differences, dtype=float)), np.bincount(index)
    n = len(counts)
    if n < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf((1 + level) / 2, n - 1))
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


# %% [markdown]
# Does it hold the truth as often as it says? A thousand samples whose true mean is 0, plain and expanded.

# %%
def plain_interval(values, resamples=999):
    drawn = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    return np.quantile(values[drawn].mean(1), (0.025, 0.975))

def coverage(interval, patients):
    samples = np.random.default_rng(2).standard_normal((1000, patients))
    return np.mean([low < 0 < high for low, high in map(interval, samples)])

expanded = lambda values: bootstrap_interval(values, range(len(values)), resamples=999)
covered = {n: (coverage(plain_interval, n), coverage(expanded, n)) for n in (7, 20)}
print(*(f"{n} patients: plain {plain:.1%}, expanded {wider:.1%}" for n, (plain, wider) in covered.items()), sep="\n")
assert all(plain < wider and abs(wider - 0.95) < 0.025 for plain, wider in covered.values())


# %% [markdown]
# ## Every setting against a reference
#
# Seeds are averaged volume by volume, volumes are paired by fold and name, volumes of a patient are averaged. What
# cannot be paired is refused by name: a mean over other patients is no comparison.

# %%
#| export
def paired_scores(
    scores: pd.DataFrame,  # of `volume_scores`, one dataset
    unit: str = UNITS[0],  # "patient": its volumes are averaged; "volume"
) -> pd.DataFrame:  # [units, settings]; the index holds the patient, for volumes also fold and case
    """Scores side by side, seeds averaged. Raises DataError, by name, for a volume that a setting lacks or that has no
    score; ValueError for several datasets or an unknown unit."""
    one_of("unit", unit, UNITS)
    if len(datasets := scores["dataset"].unique()) != 1:
        raise ValueError(f"results: found the datasets {', '.join(datasets) or '(none)'}, expected exactly one")
    _check_paired(scores)
    wide = scores.pivot_table("score", ["fold", "case"], "setting", aggfunc="mean")[[*scores["setting"].unique()]]
    owner = scores.drop_duplicates(["fold", "case"]).set_index(["fold", "case"])["patient"]
    wide = wide.set_index(owner.loc[wide.index], append=True)
    return wide.groupby("patient").mean() if unit == "patient" else wide


# %%
#| export
def _check_paired(scores: pd.DataFrame) -> None:
    "Raise DataError for a volume that one setting has and another lacks, and for one without a number."
    volumes = {setting: set(zip(part["fold"], part["case"], strict=True))
               for setting, part in scores.groupby("setting", sort=False)}
    everything = set.union(*volumes.values())
    for setting, own in volumes.items():
        if lost := everything - own:
            names = named(f"{case} (fold {fold})" for fold, case in lost)
            raise DataError(f"{setting}: has {len(own)} of {len(everything)} volumes, lacks {names}: only "
                            "scores of the same volumes can be paired")
    empty = scores[scores["score"].isna()]
    if len(empty):
        names = named(f"{case} (seed {seed})" for case, seed in zip(empty["case"], empty["seed"], strict=True))
        raise DataError(f"{empty['setting'].iloc[0]}: no number for {names}: such a volume cannot be paired")


# %% [markdown]
# The reference is named as on a command line, `ours` or `ours:released`, or as tables show it. Where nothing is named
# it is the best by mean DSC, but not the method that learns from dense labels: to lose to that one is no news.

# %%
#| export
def find_reference(
    results: Iterable[Result],  # of one dataset
    reference: str = "",  # a setting's name, method or method:preset; empty: the best mean DSC that is not Fully's
    policy: str = POLICIES[0],  # how empty masks count
    *,
    label: Labeller | None = None,  # names the setting of a result, as in `by_setting`
) -> str:  # the setting's name
    """The setting that others are tested against. The best is chosen on the scores that are then tested, which flatters
    it: for a claim, name the reference beforehand. Raises ValueError for a name that fits none or several."""
    results = list(results)
    groups = {setting: runs[0] for (_, setting), runs in by_setting(results, label).items()}
    if not reference:
        means = seed_table(results, policy, label=label).set_index("setting")["dsc_mean"]
        learnt = [setting for setting, run in groups.items() if run["method"] != FULLY]
        return str(means.loc[learnt or [*groups]].idxmax())
    known = _names(groups)
    if len(fitting := known.get(reference, [])) > 1:
        raise ValueError(f"reference: {reference!r} is {' and '.join(map(repr, fitting))}; name one of them")
    return fitting[0] if fitting else one_of("reference", reference, sorted(known))


# %%
#| export
def _names(groups: Mapping[str, Result]) -> dict[str, list[str]]:
    "What a setting may be called → the settings that are called so."
    plain = (next(iter(PRESETS)), "–")  # presets that a method's name alone stands for
    known: dict[str, list[str]] = {}
    for setting, run in groups.items():
        short = {run["method"]} if run["preset"] in plain else set()
        for name in {setting, f"{run['method']}:{run['preset']}"} | short:
            known.setdefault(name, []).append(setting)
    return known


# %%
#| export
def paired_tests(
    results: Iterable[Result],  # of one dataset, of `read_results`
    reference: str,  # the setting the others are tested against, as in `find_reference`
    metric: str,  # "dsc" or "hd95_mm"
    policy: str = POLICIES[0],  # how empty masks count
    *,
    unit: str = UNITS[0],  # what the test takes for independent: "patient", whose volumes are averaged, or "volume"
    label: Labeller | None = None,  # names the setting of a result, as in `by_setting`
    patient: Callable[[Result, str], str] = patient_of,  # result, case → patient
    resamples: int = RESAMPLES,  # of the bootstrap
    seed: int = 0,  # of the bootstrap
) -> pd.DataFrame:  # a row a setting but the reference: differences are the setting's − the reference's, HD95 in mm
    """Wilcoxon's signed-rank test of every setting against a reference, over the same volumes, seeds averaged.

    Volumes of one patient are correlated: as units they give p values that are too small, so the unit is the patient.
    The interval (95 %, `bootstrap_interval`) draws patients with either unit. `p_holm` is adjusted over all rows. The
    test speaks of these trained networks on such patients; how much another seed would change it does not see. Raises
    DataError for what cannot be paired, ValueError for an unknown name."""
    results = list(results)
    reference = find_reference(results, reference, policy, label=label)
    scores = volume_scores(results, metric, policy, label=label, patient=patient)
    wide, seeds = paired_scores(scores, unit), scores.groupby("setting")["seed"].nunique()
    facts = {"reference": reference, "metric": metric, "unit": unit, "units": len(wide),
             "patients": wide.index.get_level_values("patient").nunique()}
    rows = [{"setting": setting, **facts, "seeds": seeds[setting],
             **_compare(wide[setting] - wide[reference], resamples, seed)} for setting in wide.columns.drop(reference)]
    frame = pd.DataFrame(rows, columns=["setting", *facts, "seeds", *_COMPARED])
    return frame.assign(p_holm=holm(frame["p"]))


# %%
#| export
_COMPARED = ("difference", "low", "high", "rank_biserial", "p")


def _compare(differences: pd.Series, resamples: int, seed: int) -> dict[str, float]:
    "The cells of one comparison; the index names the patient."
    p, effect = signed_rank(differences.to_numpy())
    patients = differences.index.get_level_values("patient")
    low, high = bootstrap_interval(differences.to_numpy(), patients, resamples=resamples, seed=seed)
    return dict(zip(_COMPARED, (float(differences.mean()), low, high, effect, p), strict=True))


# %% [markdown]
# **Known truth.** A second method is worth .05 more: the interval holds it. A third is worth nothing. Then two hundred
# pairs that are alike: their $p$ has to be uniform (Kolmogorov and Smirnov's test, coarse), and the truth, 0, in most
# intervals. Of two hundred, the share below .05 is itself uncertain by .015.

# %%
method_of = lambda result: result["method"]
tests = paired_tests(pretend({"a": 0.0, "b": 0.05, "c": 0.0}, np.random.default_rng(3)), "a", "dsc", label=method_of)
assert list(tests["setting"]) == ["b", "c"] and tests["patients"].eq(20).all()
assert tests["low"][0] < 0.05 < tests["high"][0] and tests["p_holm"][0] < 0.05 < tests["p_holm"][1]
tests.round(3)

# %%
rng = np.random.default_rng(99)
alike = pd.concat([paired_tests(pretend({"a": 0.0, "b": 0.0}, rng), "a", "dsc", label=method_of, resamples=499)
                   for _ in range(200)])
held = ((alike["low"] < 0) & (alike["high"] > 0)).mean()
print(f"p below .05: {(alike['p'] < 0.05).mean():.1%}; intervals that hold 0: {held:.1%}")
assert kstest(alike["p"], "uniform").pvalue > 0.01 and (alike["p"] < 0.05).mean() < 0.09 and held > 0.91


# %% [markdown]
# ## A picture of intervals

# %%
#| export
def plot_intervals(
    axis: Axes,  # where to draw
    tests: pd.DataFrame,  # of `paired_tests`
    alpha: float = ALPHA,  # blue below, gray above
) -> None:
    "A forest plot: mean difference to the reference and its interval, a row a setting; the adjusted p on the right."
    for y, row in enumerate(tests.to_dict("records")):
        colour = "#0072B2" if row["p_holm"] < alpha else "#8C8C8C"
        axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
        axis.plot(row["difference"], y, "o", color=colour, markersize=4)
        axis.annotate(p_text(row["p_holm"], "p "), (1, y), xycoords=axis.get_yaxis_transform(), xytext=(5, 0),
                      textcoords="offset points", va="center", fontsize=8, color=colour, annotation_clip=False)
    _style_intervals(axis, tests)


# %%
#| export
def _style_intervals(axis: Axes, tests: pd.DataFrame) -> None:
    "A line at 0, names on the left, the first row on top, what is better below."
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(tests)), tests["setting"], fontsize=8)
    axis.set_ylim(len(tests) - 0.4, -0.6)
    for metric, reference in zip(tests["metric"][:1], tests["reference"][:1], strict=True):
        better = "right" if metric == METRICS[0] else "left"
        axis.set_xlabel(f"{HEADINGS[metric]}: difference to {reference} ({better} of 0: better)", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


# %%
#| export
def p_text(
    p: float,  # in [0, 1], or NaN
    name: str = "",  # before it, such as "p "
) -> str:  # "0.012", "p = 0.012", "< 0.001", "–" for NaN
    "A p value in print: three decimals."
    if np.isnan(p):
        return "–"
    if p < 0.001:
        return f"{name}< 0.001"
    return f"{name}{'= ' if name else ''}{p:.3f}"


# %% [markdown]
# ## Real data
#
# The runs in `results/`, a few minutes of training each, one seed, on twenty patients of ACDC. Each patient has two
# volumes; how alike are their differences to the best scribble method?

# %%
effects = {"ours": 0.03, "gated-crf": 0.03, "ustm": 0.0, "pce": -0.05}
results = results_or("results", pretend(effects, np.random.default_rng(5)))
reference = find_reference(results)
tests = paired_tests(results, reference, "dsc")
figure, axis = plt.subplots(figsize=(7.5, 0.9 + 0.24 * len(tests)), layout="constrained")
plot_intervals(axis, tests)

# %%
volumes = paired_scores(volume_scores(results, "dsc"), "volume")
gaps = volumes.drop(columns=reference).sub(volumes[reference], axis=0)
pairs = gaps.groupby("patient").agg(["first", "last"])
alike = np.mean([pairs[name].corr().iloc[0, 1] for name in gaps])
by_volume = paired_tests(results, reference, "dsc", unit="volume")
print(f"correlation of a patient's two differences, mean over methods: {alike:.2f}")
print(f"p smaller with volumes as units: {(by_volume['p'] < tests['p']).sum()} of {len(tests)}")
spread = gaps.groupby("patient").mean().std()
print(f"std of a difference over patients: {spread.min():.3f} to {spread.max():.3f}")
assert alike > 0.1


# %% [markdown]
# The two volumes are correlated, and counting them as forty units makes $p$ smaller. What the figure does not show is
# the seed: by the first picture of this chapter, differences of a few hundredths, and more, may be the seed's. An
# interval may leave out 0 where $p$ is large, or the reverse: it is about the mean, the test about ranks, and $p$ alone
# is adjusted for the number of methods.
#
# ## All against all: ranks
#
# Where no method is the reference, rank the methods on every patient and average the ranks. Friedman's test asks
# whether the mean ranks differ at all. By Nemenyi's test two methods differ if their mean ranks are at least a
# *critical difference* apart (Demšar 2006), for $k$ methods and $N$ patients
#
# $$\mathrm{CD}=q_\alpha\sqrt{\frac{k(k+1)}{6N}}$$
#
# with $q_\alpha$ from the studentized range, divided by $\sqrt2$.

# %%
#| export
@dataclass(frozen=True)
class CriticalDifference:
    "Mean ranks and what they have to differ by."

    ranks: Mapping[str, float]  # setting → mean rank, the best (smallest) first
    difference: float  # CD: mean ranks this far apart differ
    p: float  # of Friedman's test that all are alike; NaN where every unit ties all
    units: int  # N
    unit: str  # what is ranked on, "patient"
    alpha: float  # level of the critical difference

    @property
    def height(self) -> float:
        "Inches that its picture needs."
        return 1 + 0.2 * ((len(self.ranks) + 1) // 2 + len(self.cliques))

    @property
    def cliques(self) -> tuple[tuple[str, ...], ...]:
        "The largest groups of neighbours that do not differ; a setting that differs from all others is in none."
        names, ranks = [*self.ranks], np.array([*self.ranks.values()])
        ends = [int(np.flatnonzero(ranks - rank < self.difference)[-1]) for rank in ranks]
        return tuple(tuple(names[i:end + 1]) for i, end in enumerate(ends)
                     if end > i and (i == 0 or end > ends[i - 1]))


# %%
#| export
def critical_difference(
    scores: pd.DataFrame,  # [units, settings] without gaps, of `paired_scores`
    *,
    larger_is_better: bool = True,  # True for DSC, False for HD95
    alpha: float = ALPHA,  # level of Nemenyi's test
) -> CriticalDifference:  # ranks, critical difference, Friedman's p
    """Friedman's test and Nemenyi's critical difference (Demšar 2006, section 3.2.2). Ties share their mean rank.

    A mean rank depends on which other methods are there; against a reference use `paired_tests`. Raises ValueError for
    fewer than three settings or two units, and for NaN."""
    units, k = scores.shape
    if k < 3 or units < 2 or scores.isna().any(axis=None):
        raise ValueError(f"scores: found {units} units, {k} settings, {scores.isna().to_numpy().sum()} NaN, expected "
                         "at least 2 units, 3 settings, no NaN")
    values = np.round(scores.to_numpy(float), _DIGITS)
    ranks = pd.Series(rankdata(-values if larger_is_better else values, axis=1).mean(axis=0), scores.columns)
    quantile = studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2)
    tied = (values == values[:, :1]).all()
    p = float("nan") if tied else float(friedmanchisquare(*values.T).pvalue)
    difference = float(quantile * np.sqrt(k * (k + 1) / (6 * units)))
    return CriticalDifference(ranks.sort_values(kind="stable").to_dict(), difference, p, units,
                              str(scores.index.name or "unit"), alpha)


# %% [markdown]
# **By hand.** Four methods, fourteen units: the table of Demšar's paper has $q_{.05}=2.569$, so
# $\mathrm{CD}=2.569\sqrt{4\cdot5/(6\cdot14)}=1.25$. If three units rank a, b, c and one ranks b, a, c, the mean ranks
# are 1.25, 1.75 and 3.

# %%
table = pd.DataFrame(np.random.default_rng(0).random((14, 4)), columns=[*"abcd"])
assert round(critical_difference(table).difference, 2) == 1.25
hand = pd.DataFrame([[0.9, 0.8, 0.1]] * 3 + [[0.8, 0.9, 0.1]], columns=[*"abc"])
assert critical_difference(hand).ranks == {"a": 1.25, "b": 1.75, "c": 3.0}
assert critical_difference(hand, larger_is_better=False).ranks == {"c": 1.0, "b": 2.25, "a": 2.75}


# %% [markdown]
# The picture: mean ranks on a line, the best on the left. A bar joins methods that do not differ.

# %%
#| export
def plot_critical_difference(
    axis: Axes,  # where to draw, about `found.height` inches high
    found: CriticalDifference,  # of `critical_difference`
    title: str = "",  # before N and the p of Friedman's test
) -> None:
    "Mean ranks on a line, the best on the left, bars over settings that do not differ (Demšar 2006, figure 1)."
    names, k = [*found.ranks], len(found.ranks)
    left, bars = names[:(k + 1) // 2], found.cliques
    first = 1 + len(bars)  # line of the first name, below all bars
    for index, name in enumerate(names):
        on_left = index < len(left)
        y = first + (index if on_left else k - 1 - index)
        _draw_name(axis, name, found.ranks[name], y, 1 - 0.05 * k if on_left else k + 0.05 * k, on_left)
    for index, clique in enumerate(bars):
        ends = found.ranks[clique[0]] - 0.015 * k, found.ranks[clique[-1]] + 0.015 * k
        axis.plot(ends, [0.6 + index] * 2, color="#D55E00", linewidth=3, solid_capstyle="butt")
    _draw_ranks(axis, found, first + len(left))
    said = [title] * bool(title) + [f"{found.units} {found.unit}s", f"Friedman {p_text(found.p, 'p ')}"]
    axis.set_title(", ".join(said), fontsize=9)


# %%
#| export
def _draw_name(axis: Axes, name: str, rank: float, y: float, end: float, on_left: bool) -> None:
    "A line from a mean rank down and out to the name."
    axis.plot([rank, rank, end], [0, y, y], color="black", linewidth=0.8)
    text, side = (f"{name}  {rank:.2f}", "right") if on_left else (f"{rank:.2f}  {name}", "left")
    axis.annotate(text, (end, y), xytext=(-4 if on_left else 4, 0), textcoords="offset points", ha=side, va="center",
                  fontsize=8, annotation_clip=False)


# %%
#| export
def _draw_ranks(axis: Axes, found: CriticalDifference, bottom: float) -> None:
    "The line of ranks with its ticks, and the critical difference above it."
    k = len(found.ranks)
    axis.plot([1, k], [0, 0], color="black", linewidth=1)
    for rank in range(1, k + 1):
        axis.plot([rank, rank], [-0.25, 0], color="black", linewidth=0.8)
        axis.text(rank, -0.4, str(rank), ha="center", va="bottom", fontsize=7)
    axis.plot([1, 1 + found.difference], [-2, -2], "|-", color="#D55E00", linewidth=1.2, markersize=6)
    axis.text(1 + found.difference + 0.02 * k, -2, f" CD = {found.difference:.2f} (α = {found.alpha:g})", va="center",
              fontsize=8)
    room = 0.45 * k  # for names on both sides
    axis.set(xlim=(1 - room, k + room), ylim=(bottom, -2.8))
    axis.set_axis_off()


# %%
ranked = critical_difference(paired_scores(volume_scores(results, "dsc")))
figure, axis = plt.subplots(figsize=(8, ranked.height), layout="constrained")
plot_critical_difference(axis, ranked, "DSC on ACDC")
print(ranked.cliques[0])


# %% [markdown]
# With many methods the critical difference is wide: two that a paired test parts may share a bar. And a mean rank depends
# on the company: add three copies of a bad method, and others move together or apart (Benavoli 2016). So the picture is
# a summary; a claim about two methods is a paired test.
#
# ## Power: what twenty patients can show
#
# How often does the test notice a difference that is there? The true mean difference grows along the axis; patients
# vary around it with a standard deviation of .04, within the range printed above.

# %%
def plot_power(axis, patients, sd=0.04, trials=400):
    effects = np.linspace(0, 0.06, 13)
    noise = sd * np.random.default_rng(6).standard_normal((trials, patients))
    power = [(wilcoxon(effect + noise, axis=1).pvalue < 0.05).mean() for effect in effects]
    axis.plot(effects, power, color="#0072B2")
    axis.axhline(0.8, color="#999999", linewidth=0.8, linestyle="--")
    axis.set(xlabel="true difference in DSC", ylim=(0, 1.03))
    axis.set_title(f"{patients} patients: .02 is noticed in {np.interp(0.02, effects, power):.0%}", fontsize=9)
    return power


# %%
def slide_power(patients=20):
    plot_power(plt.subplots(figsize=(3.2, 2.5), layout="constrained")[1], patients)
    plt.show()

interact(slide_power, patients=(6, 60));

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.5), sharey=True, layout="constrained")
powers = [plot_power(axis, patients) for axis, patients in zip(axes, (7, 20, 50), strict=True)]
axes[0].set_ylabel("share of significant tests")
assert powers[0][4] < powers[1][4] < powers[2][4] and all(power[0] < 0.09 for power in powers)


# %% [markdown]
# **Is .82 better than .80?** With twenty patients and one comparison such a difference is noticed about every second
# time; with seven, seldom; after Holm's factor less often still. "Not significant" here means "not seen".

# %% [markdown]
# ## What may be compared
#
# A test is fair only between settings of one profile on the same folds and volumes. `comparable` keeps the largest such
# group and says of every other setting why it is left out.

# %%
#| export
class _Makeup(NamedTuple):
    "What settings must share to be compared."

    profile: str
    folds: tuple[int, ...]
    classes: frozenset[str]
    volumes: frozenset[tuple[int, str]]  # (fold, case)


# %%
#| export
def comparable(
    results: Iterable[Result],  # of one dataset
    policy: str = POLICIES[0],  # how empty masks count
) -> tuple[list[Result], dict[str, str]]:  # results that can be compared; setting → why it is left out
    "The largest group of settings that share profile, folds, classes and volumes; of two that with more volumes."
    groups = {setting: runs for (_, setting), runs in by_setting(results).items()}
    makeups = {setting: _makeup(runs, policy) for setting, runs in groups.items()}
    counts = Counter(makeup for makeup in makeups.values() if makeup.volumes)
    if not counts:
        return [], {setting: f"no row under the policy {policy}" for setting in groups}
    chosen = max(counts, key=lambda makeup: (counts[makeup], len(makeup.volumes)))
    return ([run for setting, runs in groups.items() if makeups[setting] == chosen for run in runs],
            {setting: _why_not(makeup, chosen, policy) for setting, makeup in makeups.items() if makeup != chosen})


# %%
#| export
def _makeup(runs: Sequence[Result], policy: str) -> _Makeup:
    "Of all runs of a setting."
    rows = [(run["fold"], row) for run in runs for row in run["cases"] if row["policy"] == policy]
    return _Makeup(runs[0]["profile"], tuple(sorted({run["fold"] for run in runs})),
                   frozenset(row["class"] for _, row in rows), frozenset((fold, row["case"]) for fold, row in rows))


# %%
#| export
def _why_not(own: _Makeup, chosen: _Makeup, policy: str) -> str:
    "The first thing that sets a setting apart."
    if not own.volumes:
        return f"no row under the policy {policy}"
    if own.profile != chosen.profile:
        return f"profile {own.profile}, not {chosen.profile}"
    for name, ours, theirs in (("fold", own.folds, chosen.folds), ("classes", own.classes, chosen.classes)):
        if ours != theirs:
            return f"{name} {named(ours)}, not {named(theirs)}"
    lost, more = chosen.volumes - own.volumes, own.volumes - chosen.volumes
    parts = [f"{word} {named(case for _, case in part)}" for word, part in (("lacks", lost), ("has", more)) if part]
    return f"other volumes: {'; '.join(parts)}"


# %%
other = [{**run, "profile": "smoke", "run": f"{run['run']}-smoke"} for run in results[:1]]
kept, left_out = comparable([*results, *other])
assert len(kept) == len(results) and list(left_out.values()) == ["profile smoke, not mini"]
print(left_out)


# %% [markdown]
# ## The table
#
# Spread over seeds and test against the reference side by side, a row a metric and setting. The caption says what was
# tested, and what the test cannot show: with few patients no $p$ can be small, and with one seed a method is one
# training. With $s$ seeds each, two means differ by up to about $2\,\mathrm{std}\sqrt{2/s}$ by the seeds alone.

# %%
#| export
def statistics_table(
    results: Iterable[Result],  # of `comparable`
    reference: str,  # as in `find_reference`
    policy: str = POLICIES[0],  # how empty masks count
    *,
    unit: str = UNITS[0],  # as in `paired_tests`
) -> pd.DataFrame:  # a row a metric and setting: of `seed_table` and `paired_tests`; NaN where nothing was scored
    "Means, spread over seeds, and tests against the reference. Raises as `paired_tests`."
    results = list(results)
    reference = find_reference(results, reference, policy)
    table = seed_table(results, policy).set_index("setting")
    parts = []
    for metric in METRICS:
        own = table[["seeds", "folds", "volumes", *(f"{metric}_{name}" for name in _SPREAD), "missing"]]
        own = own.rename(columns={f"{metric}_{name}": name for name in _SPREAD}).assign(reference=reference)
        tests = _tests_or_none(*_scored_by(results, metric), reference, metric, policy, unit)
        own = own.join(tests.set_index("setting")[["units", *_COMPARED, "p_holm"]])
        parts.append(own.reset_index().assign(metric=metric))
    return pd.concat(parts, ignore_index=True)[["metric", "setting", *parts[0].columns.drop(["metric", "setting"])]]


# %%
#| export
def _scored_by(results: Sequence[Result], metric: str) -> tuple[list[Result], Labeller]:
    "Results with a number of the metric (a run without `hd95` has no distance), and the names they have among all."
    names = {run["run"]: setting for (_, setting), runs in by_setting(results).items() for run in runs}
    scored = [run for run in results if any(row[metric] is not None for row in run["cases"])]
    return scored, lambda run: names[run["run"]]


def _tests_or_none(results: Sequence[Result], label: Labeller, reference: str, metric: str, policy: str,
                   unit: str) -> pd.DataFrame:
    "The tests of a metric; none where the reference was not scored by it."
    if reference not in map(label, results):
        return pd.DataFrame(columns=["setting", "units", *_COMPARED, "p_holm"], dtype=float)
    return paired_tests(results, reference, metric, policy, unit=unit, label=label)


# %%
#| export
def rank_settings(
    results: Iterable[Result],  # of `comparable`
    policy: str = POLICIES[0],  # how empty masks count
) -> dict[str, CriticalDifference]:  # metric → mean ranks over patients, where three settings or more were scored by it
    "Critical differences by DSC and by HD95, where there are enough settings and patients. Raises as `paired_scores`."
    results, found = list(results), {}
    for metric in METRICS:
        scored, label = _scored_by(results, metric)
        if len(set(map(label, scored))) > 2:
            scores = paired_scores(volume_scores(scored, metric, policy, label=label))
            if len(scores) > 1:
                found[metric] = critical_difference(scores, larger_is_better=metric == METRICS[0])
    return found


# %% [markdown]
# For print the numbers become text.

# %%
#| export
def statistics_text(
    frame: pd.DataFrame,  # of `statistics_table`
) -> pd.DataFrame:  # cells as text, a dash where there is no number
    "The table as it is printed: DSC with three decimals, HD95 with one."
    return pd.DataFrame([_text_cells(row) for row in frame.to_dict("records")])


# %%
#| export
def _text_cells(row: Mapping[str, Any]) -> dict[str, str]:
    "A row of the table as text."
    def show(name: str, sign: str = "") -> str:
        return "–" if np.isnan(row[name]) else f"{row[name]:{sign}.{3 if row['metric'] == METRICS[0] else 1}f}"

    cells = {"metric": HEADINGS[row["metric"]], "setting": row["setting"], "seeds": str(row["seeds"]),
             "volumes": str(row["volumes"]), "mean": show("mean"), "std over seeds": show("std"), "least": show("min"),
             "largest": show("max")}
    if np.isnan(row["p"]):
        gap, effect = "reference" if row["setting"] == row["reference"] else "–", "–"
    else:
        gap = f"{show('difference', '+')} [{show('low', '+')}, {show('high', '+')}]".replace("-", "−")
        effect = f"{row['rank_biserial']:+.2f}".replace("-", "−")
    return cells | {"difference [95 %]": gap, "r": effect, "p": p_text(row["p"]), "p (Holm)": p_text(row["p_holm"])}


# %%
#| export
def describe_statistics(
    frame: pd.DataFrame,  # of `statistics_table`
    left_out: Mapping[str, str],  # of `comparable`
    dataset: str,  # its name
    unit: str = UNITS[0],  # as in `paired_tests`
) -> str:  # one line
    "The caption of the table: what was tested and how, what it cannot show, and what is left out."
    units, tests = frame["units"].max(), int(frame.groupby("metric")["p"].count().max())
    missing = {f"{row['setting']}: {row['missing']}": None for row in frame.to_dict("records") if row["missing"]}
    out = [f"{setting}: {why}" for setting, why in left_out.items()]
    notes = _method_note(units, tests, unit) + seed_note(frame) + power_note(units, tests, unit) if tests else ""
    return (f"{dataset}: every setting against {frame['reference'].iloc[0]}. Mean, std, least and largest are over "
            f"seeds, of the mean over volumes. {notes}" + (f"Missing: {', '.join(missing)}. " if missing else "")
            + (f"Left out: {'; '.join(out)}." if out else "")).strip()


# %%
#| export
def _method_note(units: float, tests: int, unit: str) -> str:
    "How differences were tested."
    return (f"Difference: setting − reference over {int(units)} {unit}s, with its 95 % interval (percentile bootstrap "
            f"of patients, {RESAMPLES} resamples, expanded percentiles). r: matched-pairs rank-biserial correlation. "
            f"p: Wilcoxon's signed-rank test, two-sided; Holm: adjusted for {tests} comparisons. ")


# %%
#| export
def seed_note(
    frame: pd.DataFrame,  # with the columns setting and seeds
) -> str:  # one sentence, or "" where every setting has several seeds
    "What cannot be said of settings that were trained once."
    single = [*dict.fromkeys(frame.loc[frame["seeds"] < 2, "setting"])]
    if not single:
        return ""
    who = "One seed each" if len(single) == frame["setting"].nunique() else f"One seed of {', '.join(single)}"
    return f"{who}: p tells these trainings apart, not the methods; another seed may move a mean by more. "


# %%
#| export
def power_note(
    units: float,  # of the test
    comparisons: int,  # of one family
    unit: str = UNITS[0],  # what they are called
) -> str:  # one sentence, or "" where a difference can be significant
    "Whether so few units can give a significant result at all: the smallest p of signed ranks is 2 / 2**units."
    least = min(1.0, comparisons * 2.0 ** (1 - units))
    if least < ALPHA:
        return ""
    return (f"With {int(units)} {unit}s and {comparisons} comparisons no adjusted p is below {least:.3f}: nothing can "
            "be significant, whatever the scores. ")


# %%
#| export
def write_statistics(
    frame: pd.DataFrame,  # of `statistics_table`
    caption: str,  # of `describe_statistics`
    stem: str,  # "statistics-acdc"
    folder: Path | str,  # made if it is not there
) -> list[Path]:  # stem.md, stem.csv, stem.tex
    "Write the table three ways: text in Markdown and LaTeX, all digits in CSV."
    paths = write_table(statistics_text(frame), caption, stem, folder)
    write_atomic(paths[1], lambda part: part.write_text(frame.to_csv(index=False), encoding="utf-8"))
    return paths


# %%
frame = statistics_table(kept, reference)
print(describe_statistics(frame, left_out, "acdc"))
with tempfile.TemporaryDirectory() as folder:
    assert [p.name for p in write_statistics(frame, "", "s", folder)] == ["s.md", "s.csv", "s.tex"]
statistics_text(frame).query("metric == 'DSC'").drop(columns="metric")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** Seven patients, five methods against a reference. What is the smallest $p$ after Holm that any scores
# could give?

# %%
def check_smallest(f):
    clear = {"a": np.arange(7.0), **{name: np.arange(7.0) * (index + 2) + 1 for index, name in enumerate("bcdef")}}
    p = [signed_rank(clear[name] - clear["a"])[0] for name in "bcdef"]
    assert np.isclose(f(), holm(p).min())

def attempt_smallest():
    ...  # your code here

exercise(check_smallest, attempt_smallest, solution=lambda: 5 * 2 / 2**7)


# %% [markdown]
# **2. Implement.** The sign-flip test: the share of all ways to sign the differences whose mean is at least as far from
# 0 as the observed one. It is Wilcoxon's test without ranks.

# %%
def check_flip(f):
    assert f(np.array([1.0, 1.0, 1.0])) == 2 / 8 and f(np.array([3.0, -1.0])) == 1
    values = np.random.default_rng(7).standard_normal(9)
    assert np.isclose(f(values), f(-5 * values)) and f(values + 9) == 2 / 2**9

def attempt_flip(differences):
    ...  # your code here

def solve_flip(differences):
    signs = np.array([*product((1, -1), repeat=len(differences))])
    return np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)

exercise(check_flip, attempt_flip, solve_flip)


# %% [markdown]
# **3. Break.** Find differences of ten patients with a positive mean and a negative rank-biserial correlation: the
# interval and the test then point in different directions.

# %%
def check_contrary(f):
    differences = np.asarray(f(), dtype=float)
    assert differences.shape == (10,) and differences.mean() > 0 > signed_rank(differences)[1]

def attempt_contrary():
    ...  # your code here

exercise(check_contrary, attempt_contrary, solution=lambda: [100] + [-1, -2, -3, -4, -5, -6, -7, -8, -9])

# %% [markdown]
# ## Recap
#
# `volume_scores` and `seed_table` read result files, `paired_tests` compares with a reference, `critical_difference`
# all with all, `plot_intervals` and `plot_critical_difference` draw; `comparable` and `statistics_table` put it
# together for [tables.ipynb](../tables.ipynb). Surprising: two seeds of one method can differ "significantly", and
# with seven patients and five comparisons no result can be significant.
