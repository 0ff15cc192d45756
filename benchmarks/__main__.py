"""Measure everything, or the items named: benchmarks/results.json, the README's table, figures/benchmarks.png.

    python -m benchmarks                     all of it, about ten minutes on two cores
    python -m benchmarks masked_crf hd95     some items; the others keep their rows
"""

import argparse
import importlib
import json
import os
from pathlib import Path

import matplotlib
import torch

from attenscribble.basics.drawing import save_figure
from attenscribble.basics.files import project_root, write_json
from attenscribble.runs.run import machine_kind, software
from benchmarks import growth
from benchmarks.measure import Row, devices
from benchmarks.pictures import draw_growth, draw_ratios, markdown, write_table

ITEMS = ("masked_crf", "attentive_similarity", "step", "processes", "hd95", "loading", "imports")


def line(row: dict) -> str:
    "A row of the printed table."
    reference = row["reference"]
    mark = {True: "met", False: "NOT MET", None: ""}[row["met"]]
    faster, leaner = (f"{row[name]:.1f}×" if row[name] else "" for name in ("faster", "leaner"))
    before, memory = (f"{1e3 * reference['seconds']:.1f}", f"{reference['peak_mib']:.0f}") if reference else ("", "")
    error = "" if row["error"] is None else f"{row['error']:.0e}"
    return (f"{row['item']:<48} {row['device']:<5} {before:>10} {1e3 * row['ours']['seconds']:>10.1f} {faster:>8} "
            f"{memory:>8} {row['ours']['peak_mib']:>7.0f} {leaner:>8} {error:>7}  {mark:<8} {row['target']}"
            + (f"\n{'':<54} floor {row['floor']}" if row["floor"] else ""))


HEAD = (f"{'item':<48} {'on':<5} {'reference':>10} {'ours, ms':>10} {'faster':>8} {'MiB':>8} {'ours':>7} {'leaner':>8} "
        f"{'error':>7}  {'':<8} target")


def measured(names: list[str], path: Path) -> dict:
    "Old results with the rows of the items named made anew."
    kept = json.loads(path.read_text()) if path.is_file() else {"rows": {}, "growth": []}
    print(HEAD)
    for name in names:
        if name == "growth":
            kept["growth"] = list(growth.curves())
            continue
        item = importlib.import_module(f"benchmarks.{name}")
        rows: list[Row] = [row for device in devices() for row in item.rows(device)]
        others = [row for row in kept["rows"].get(name, []) if row["device"] not in devices()]
        kept["rows"][name] = others + [
            row.record() | {"machine": machine_kind(torch.device(row.device)), "software": software()} for row in rows]
        for row in kept["rows"][name]:
            print(line(row), flush=True)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("items", nargs="*", metavar="ITEM", help=f"of {', '.join((*ITEMS, 'growth'))}; all unless told")
    names = parser.parse_args().items or [*ITEMS, "growth"]
    for name in names:
        if name not in (*ITEMS, "growth"):
            parser.error(f"item {name!r}: expected one of {', '.join((*ITEMS, 'growth'))}")
    matplotlib.use("Agg")
    root = project_root() or Path.cwd()
    path = root / "benchmarks" / "results.json"
    results = measured(names, path)
    write_json(results, path)
    write_table(markdown(results), root / "README.md")
    save_figure(draw_ratios(results), root / "figures" / "benchmarks.png")
    if results["growth"]:
        save_figure(draw_growth(results["growth"]), root / "figures" / "growth.png")
        for curve in results["growth"]:
            print(f"{curve['loss']}: time ~ ({curve['unit']})^{curve['exponent']:.2f}, in theory ≤ {curve['theory']}")
    if not torch.cuda.is_available():
        print("GPU: unmeasured, there is none here")
    print(f"{os.path.relpath(path)}, figures/benchmarks.png, figures/growth.png")


if __name__ == "__main__":

    main()
