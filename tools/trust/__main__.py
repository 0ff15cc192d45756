"Measure, keep the figures, write the page. `python -m tools.trust` and `make trust` are the same."

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("agg")

from attenscribble.basics.files import write_json
from attenscribble.runs.run import machine_kind, software
from tools.trust.kills import kills
from tools.trust.mutations import mutations
from tools.trust.page import page
from tools.trust.places import places
from tools.trust.soak import soak

PARTS = {"kills": kills, "mutations": mutations, "places": places, "soak": soak}
DOCS = Path(__file__).resolve().parents[2] / "docs"
PARTIAL = ("only", "reader")  # with one of these nothing is kept


def told(words: list[str]) -> dict[str, Any]:
    "name=value words as numbers where they are numbers."
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise SystemExit(f"{word}: found no part of that name, expected one of {', '.join(PARTS)}, or name=value")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def main(words: list[str]) -> int:
    "Run the parts that are named; 1 if there are faults."
    names = [word for word in words if word in PARTS] or [name for name in PARTS if name != "soak"]
    options = told([word for word in words if word not in PARTS])
    path, faulty = DOCS / "trust.json", False
    for name in names:
        began = time.monotonic()
        found = PARTS[name](**options)
        command = " ".join(["python -m tools.trust", name, *(f"{key}={value}" for key, value in options.items())])
        record = {"command": command, "machine": machine_kind(torch.device("cpu")), "software": software(),
                  "minutes": round((time.monotonic() - began) / 60, 1), **found}
        record = json.loads(re.sub(r"/[^ \"]*?/trust-\w+/", "…/", json.dumps(record)))  # no folder of this machine
        faults = found.get("faults") or [row for row in found.get("rows", []) if row["faults"]]
        faulty |= bool(faults)
        for fault in faults:
            print(f"{name}: {json.dumps(fault, ensure_ascii=False)}")
        if not any(option in options for option in PARTIAL):
            kept = json.loads(path.read_text()) if path.is_file() else {}
            write_json(kept | {name: record}, path)
            (DOCS / "trust.md").write_text(page(kept | {name: record}))
            print(f"{name}: {len(faults)} faults; docs/trust.md")
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
