#!/usr/bin/env bash
# nbdev 3.3.26 in a project of nbdev 2 (settings.ini, no pyproject.toml): `nbdev-clean` refuses with exit status 1, but
# `nbdev-clean --fname nbs` only warns, cleans nothing and ends with 0. A hook or a CI step that names the folder therefore
# passes every notebook as clean. With a [tool.nbdev] table it cleans.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install nbdev==3.3.26 2>/dev/null
bin=$work/venv/bin
mkdir -p "$work/project/nbs"
cd "$work/project"
printf '[DEFAULT]\nlib_name = lib\nlib_path = lib\nnbs_path = nbs\n' > settings.ini
cat > nbs/a.ipynb <<'JSON'
{"cells": [{"cell_type": "code", "execution_count": 3, "id": "a1b2c3d4", "metadata": {"collapsed": true}, "outputs": [],
 "source": ["1 + 1"]}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
JSON

status() { "$@" >"$work/said" 2>&1 && echo 0 || echo $?; }
dirty() { grep -c '"execution_count": 3' nbs/a.ipynb || true; }

bare=$(status "$bin/nbdev-clean")
named=$(status "$bin/nbdev-clean" --fname nbs)
warned=$(grep -c 'Failed to clean notebook' "$work/said" || true)
left=$(dirty)
printf '[project]\nname = "lib"\nversion = "0.1"\n\n[tool.nbdev]\n' > pyproject.toml
after=$(status "$bin/nbdev-clean" --fname nbs)
echo "nbdev $("$bin/python" -c 'from importlib.metadata import version; print(version("nbdev"))')"
echo "settings.ini alone: nbdev-clean ends with $bare, nbdev-clean --fname nbs with $named" \
  "(warnings: $warned, notebooks left dirty: $left)"
echo "with [tool.nbdev]: nbdev-clean --fname nbs ends with $after (notebooks left dirty: $(dirty))"
[ "$bare $named $warned $left $after $(dirty)" = "1 0 1 1 0 0" ] || { echo "this has changed"; exit 1; }
