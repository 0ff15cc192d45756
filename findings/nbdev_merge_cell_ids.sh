#!/usr/bin/env bash
# nbdev 3.3.26, merge driver `nbdev-merge`: two people edit the same cell of a notebook of format 4.5, in which every cell
# has an id of its own. The driver reports the conflict and writes JSON that Jupyter opens, but its three marker cells have
# no id and both versions of the cell keep the same one. nbformat 5.10.4 warns of both faults ("will become a hard error")
# and changes the second id when it reads the file, so what is saved next differs in more than the solved conflict.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install nbdev==3.3.26 nbformat==5.10.4 2>/dev/null
bin=$work/venv/bin
mkdir -p "$work/project/nbs"
cd "$work/project"
git init --quiet .
git config user.email reader@example.org
git config user.name Reader
git config merge.nbdev.driver "$bin/nbdev-merge %O %A %B %P"
printf '*.ipynb merge=nbdev\n' > .gitattributes
printf '[project]\nname = "lib"\nversion = "0.1"\n\n[tool.nbdev]\n' > pyproject.toml

write() {  # $1: the factor in the second cell
  cat > nbs/a.ipynb <<JSON
{
 "cells": [
  {"cell_type": "code", "execution_count": null, "id": "aaaaaaaa", "metadata": {}, "outputs": [], "source": ["import math"]},
  {"cell_type": "code", "execution_count": null, "id": "bbbbbbbb", "metadata": {}, "outputs": [],
   "source": ["def dice(overlap, mass):\n", "    return $1 * overlap / mass"]}
 ],
 "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}},
 "nbformat": 4,
 "nbformat_minor": 5
}
JSON
  git add .
  git commit --quiet -m "$1"
}

write 2
git checkout --quiet -b theirs
write 'float(2)'
git checkout --quiet -
write 2.0
merged=$(git merge --quiet theirs >/dev/null 2>&1 && echo 0 || echo $?)
found=$("$bin/python" - <<'PYTHON'
import json
import warnings

import nbformat

notebook = json.load(open("nbs/a.ipynb"))
ids = [cell.get("id") for cell in notebook["cells"]]
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    nbformat.validate(notebook)
kinds = sorted({warning.category.__name__ for warning in said})
print(f"{len(ids)} cells, {ids.count(None)} without an id, {ids.count('bbbbbbbb')} with the id bbbbbbbb; {', '.join(kinds)}")
PYTHON
)
echo "nbdev $("$bin/python" -c 'from importlib.metadata import version; print(version("nbdev"))')"
echo "git merge ends with $merged: $found"
expected="6 cells, 3 without an id, 2 with the id bbbbbbbb; DuplicateCellId, MissingIDFieldWarning"
[ "$merged: $found" = "1: $expected" ] || { echo "this has changed; expected 1: $expected"; exit 1; }
