"""What the README shows of the measurements."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

MARKS = "<!-- benchmarks -->\n", "<!-- end of benchmarks -->"


def markdown(results: dict) -> str:
    "The rows as a Markdown table."
    lines = ["| item | on | plain form | ours | faster | less memory | target |", "|---|---|---|---|---|---|---|"]
    for row in (row for rows in results["rows"].values() for row in rows):
        reference, ours = row["reference"], row["ours"]
        before = f"{amount(reference['seconds'])}, {reference['peak_mib']:.0f} MiB" if reference else ""
        ratios = [f"{row[name]:.1f}×" if row[name] else "" for name in ("faster", "leaner")]
        if reference and reference["peak_mib"] == ours["peak_mib"]:  # not measured
            before, ratios[1] = before.partition(",")[0], ""
        memory = "" if reference and not ratios[1] else f", {ours['peak_mib']:.0f} MiB"
        met = {True: ": met", False: ": **not met**", None: ""}[row["met"]]
        lines.append(f"| {row['item']} | {row['machine']} | {before} | {amount(ours['seconds'])}{memory} | {ratios[0]} "
                     f"| {ratios[1]} | {row['target']}{met} |")
    return "\n".join(lines) + "\n"


def amount(seconds: float) -> str:
    "Seconds to three digits."
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def write_table(table: str, readme: Path, marks: tuple[str, str] = MARKS) -> None:
    "Put a table between its marks."
    before, _, rest = readme.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    readme.write_text(f"{before}{marks[0]}{table}{marks[1]}{after}")


def draw_ratios(results: dict) -> Figure:
    "How many times faster, and leaner, than the plain form; the target as a tick."
    rows = [row for rows in results["rows"].values() for row in rows
            if row["reference"] and row["met"] is not None and row["reference"]["peak_mib"] != row["ours"]["peak_mib"]]
    figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(rows) + 0.9), layout="constrained")
    place = np.arange(len(rows))
    faster, leaner = ([row[name] for row in rows] for name in ("faster", "leaner"))
    axis.barh(place - 0.2, faster, 0.38, color="#0072B2", label="times faster")
    shown = [ratio if "leaner" in row["target"] else np.nan for row, ratio in zip(rows, leaner, strict=True)]
    axis.barh(place + 0.2, shown, 0.38, color="#E69F00", label="times less memory")
    for y, values in ((place - 0.2, faster), (place + 0.2, shown)):
        for at, value in zip(y, values, strict=True):
            if np.isfinite(value):
                text = f"{value:.0f}×" if value >= 10 else f"{value:.1f}×"
                axis.text(value * 1.06, at, text, va="center", fontsize=8)
    axis.set(xscale="log", xlim=(1, max(max(faster), np.nanmax(shown, initial=1)) * 2), yticks=place,
             xlabel="ratio to the plain form, same process, forward and backward")
    axis.set_yticklabels([f"{row['item']} ({row['device'].upper()})" for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def draw_growth(curves: list[dict]) -> Figure:
    "Time and memory against each size, with the fitted exponent and that of theory."
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.8), layout="constrained")
    for axis, curve in zip(axes.flat, curves, strict=True):
        axis.plot(curve["values"], 1e3 * np.array(curve["seconds"]), "o-", color="#0072B2", label="time (ms)")
        axis.plot(curve["values"], curve["mib"], "s--", color="#E69F00", label="memory (MiB)")
        axis.set(xscale="log", yscale="log", xticks=curve["values"],
                 xlabel={"side": "side of the image (pixels)", "grid": "side of the grid (cells)", "count": "images",
                         "radius": "radius"}[curve["grows"]])
        axis.set_xticklabels(curve["values"], fontsize=8)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_title(f"{curve['loss']}\ntime: exponent {curve['exponent']:.2f}, theory {curve['theory']}", fontsize=9)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure
