"The page of docs that shows the figures: no date, the same figures give the same text."

from collections.abc import Iterable
from typing import Any

HEAD = """# Can it be trusted?

Made by `make trust` from `docs/trust.json`; do not edit. The harness is `tools/trust/`, and its short form runs with
the tests (`tests/test_trust.py`). A fault is a lost or changed result, an error that is another library's, a value
that is silently wrong, or a hang.
"""
KINDS = ("equal", "refused", "wrong", "raw", "hang", "crash")


def page(figures: dict[str, Any]) -> str:
    "Markdown of all parts that were measured."
    parts = [HEAD]
    for name, write in (("kills", _kills), ("mutations", _mutations), ("places", _places), ("soak", _soak)):
        if name in figures:
            parts.append(write(figures[name]) + _how(figures[name]))
    return "\n".join(parts)


def _how(found: dict[str, Any]) -> str:
    "Command, machine and versions of a part."
    versions = ", ".join(f"{name} {version}" for name, version in found["software"].items())
    return f"\n`{found['command']}`; {found['machine']}; {versions}.\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *(list(map(str, row)) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines) + "\n"


def _kills(found: dict[str, Any]) -> str:
    rows = [(name, *row.values()) for name, row in found["kinds"].items()]
    return (f"""## Killed at a random moment

Each run is killed by SIGKILL, every other one at a random event of the file system, the others by the clock; pictures
are on. Then every file under a final name must be whole, the run is resumed, and weights, masks and scores must be
those of a run that nobody killed, to the bit. Seed {found['seed']}; {len(found['faults'])} faults.

""" + _table(("method", "kills", "had a checkpoint", "bit-equal"), rows) + _listed(found["faults"]))


def _mutations(found: dict[str, Any]) -> str:
    rows = [(name, *(kinds.get(kind, 0) for kind in KINDS)) for name, kinds in found["readers"].items()]
    total = [sum(row[number] for row in rows) for number in range(1, len(KINDS) + 1)]
    return (f"""## Mutated input

One random change to one file: bits, bytes, fields of headers, entries of JSON, settings. *Equal*: what was loaded
agrees with nibabel, h5py, pydicom, Pillow, json and PyTorch's own reader, voxel by voxel and in millimetres.
*Refused*: by an error of this package that names the file or the setting. The other columns are faults.
Seed {found['seed']}.

""" + _table(("reader", *KINDS), [*rows, ("all", *total)]) + _listed(found["faults"]))


def _places(found: dict[str, Any]) -> str:
    rows = [(row["what"], row["how"], "; ".join(row["faults"]) or "right") for row in found["rows"]]
    return "## Disk full, read-only, deleted\n\n" + _table(("what", "how", "outcome"), rows)


def _soak(found: dict[str, Any]) -> str:
    names = [name for name in found if name not in ("faults", "command", "machine", "software")]
    return "## A long training\n\n" + _table(("what", "value"), [(name, found[name]) for name in names])


def _listed(faults: list[dict[str, Any]], most: int = 20) -> str:
    "The first faults, each with what is needed to see it again."
    if not faults:
        return ""
    rows = [" · ".join(str(value) for value in fault.values()).replace("\n", " ")[:300] for fault in faults[:most]]
    more = f"\n… and {len(faults) - most} more in docs/trust.json.\n" if len(faults) > most else ""
    return "\n" + "\n".join(f"- `{row.replace('`', '')}`" for row in rows) + "\n" + more
