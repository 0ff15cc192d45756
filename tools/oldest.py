"""Print the lowest version that pyproject.toml allows of each library of the core: a constraints file for pip.

    python tools/oldest.py > oldest.txt && pip install -c oldest.txt .
"""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


def oldest(requirements: list[str]) -> list[str]:  # such as "torch>=2.11" → "torch==2.11"
    "Each requirement at its lower bound. Raises ValueError for one without."
    found = []
    for line in requirements:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9.]+)(?:,<[0-9.]+)?", line.replace(" ", ""))
        if match is None:
            raise ValueError(f"pyproject.toml: found {line!r}, expected NAME>=VERSION")
        found.append(f"{match[1]}=={match[2]}")
    return found


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(oldest(project["dependencies"])))
