# make, bash and Python are all that has to be there. Everything is installed into .venv of this folder.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo browser test chapter book check lab bench clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off
PINS := pyproject.toml constraints.txt
NOTEBOOKS = $(shell find nbs -name '*.ipynb' -not -path '*/.*')
TWINS = $(shell find nbs_py -name '*.py' -not -path '*/.*')

# What `make demo` ends with: the table and the files, as the executed notebook printed them.
define SAY
import json
for cell in json.load(open("runs/demo.ipynb"))["cells"]:
    if "".join(cell["source"]).startswith("print(outcome."):
        print("".join(line for out in cell["outputs"] for line in out.get("text", [])).replace("../runs/", "runs/"))
print("notebook        runs/demo.ipynb")
endef
export SAY

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1#\2/p' Makefile | awk -F'#' '{printf "%-16s %s\n", $$1, $$2}'
	@echo "  PYTHON=python3.12 chooses the interpreter that .venv is made with; ARGS='-k mcrf' goes to pytest (in demo: to papermill)"

setup: $(VENV)/test-installed ## install all that the book and its tests need (once)
	@echo "ready; for your own commands: source $(BIN)/activate"

demo: $(VENV)/core-installed ## train, segment and score on the phantom: runs/demo.ipynb
	@mkdir -p runs
	cd nbs && ../$(BIN)/papermill train.ipynb ../runs/demo.ipynb -p resume false --no-progress-bar --log-output $(ARGS) 2>&1 \
	  | grep --line-buffered -Ev '^(Executing|Ending) Cell|IPKernelApp|^$$|^<Figure'
	@$(BIN)/python -c "$$SAY"

browser: ## install Chromium from Debian's packages where there is none: the annotator's tests move the mouse in it
	@command -v chromium >/dev/null || { apt-get -qq update && apt-get -qq install -y chromium; } >/dev/null 2>&1 \
	  || echo "no Chromium, and none to be had by apt-get as this user: the tests in a browser will be skipped"

test: $(VENV)/test-installed ## everything that is tested, chapters included
	@$(BIN)/python -m pytest $(ARGS)

chapter: $(VENV)/test-installed ## NB=method/22_mcrf: twin and notebook into step, export the module, run it
	@test -n "$(NB)" || { echo "which one? make chapter NB=method/22_mcrf"; exit 2; }
	@test -e nbs/$(NB).ipynb || test -e nbs_py/$(NB).py || { echo "neither nbs/$(NB).ipynb nor nbs_py/$(NB).py"; exit 2; }
	@$(call tidy,$(wildcard nbs/$(NB).ipynb nbs_py/$(NB).py),nbs/$(NB).ipynb)
	@$(BIN)/nbdev_export --path nbs/$(NB).ipynb
	@$(BIN)/ruff check nbs/$(NB).ipynb
	@$(BIN)/python -m pytest -q --durations=1 "tests/test_book.py::test_chapter_runs[$(NB)]"

book: $(VENV)/test-installed ## all twins and notebooks into step, cleaned, all modules exported
	@$(call tidy,$(NOTEBOOKS) $(TWINS),nbs)
	@$(BIN)/nbdev_export
	@echo "notebooks, twins and modules agree"

check: $(VENV)/test-installed ## the quick part of the tests: style, and that notebooks, twins and modules agree
	@$(BIN)/python -m pytest -q --durations=3 -m "not chapter" tests/test_book.py tests/test_project.py

lab: $(VENV)/test-installed ## open the book in JupyterLab
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

bench: $(VENV)/test-installed ## time this code beside its plain forms: benchmarks/results.json, figures/benchmarks.png
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove caches and build leftovers; .venv and runs/ stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The newer of notebook and twin rewrites the other, and a missing one is made; then outputs and stray metadata go,
# and the twin is written anew, so that its blank lines are jupytext's and a second call changes nothing.
tidy = $(BIN)/jupytext --quiet --sync $(1); \
  $(BIN)/python -m nbconvert --log-level=WARN --clear-output --inplace $$(find $(2) -name '*.ipynb' -not -path '*/.*'); \
  $(BIN)/nbdev_clean --fname $(2); \
  $(BIN)/jupytext --quiet --sync $$(find $(2) -name '*.ipynb' -not -path '*/.*')

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { echo "needs Python 3.10 to 3.13, and '$(PYTHON)' is none; name one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed: install your system's venv package" \
	  "(Debian, Ubuntu: python3-venv) or name another Python: make setup PYTHON=/path/to/python3"; exit 1; }

# Nothing outside this folder is touched: JupyterLab's cleaning on save and git's merge driver for notebooks are set up
# here, not by nbdev_install_hooks, which edits ~/.jupyter and expects the programs on the PATH.
# The stamps are remade whenever the pins change; `make demo` needs the first only.
$(VENV)/core-installed: $(PINS) | $(VENV)/pyvenv.cfg
	@echo "installing the core into $(VENV)"
	@$(PIP) -q -c constraints.txt -e .
	@touch $@

$(VENV)/test-installed: $(PINS) | $(VENV)/pyvenv.cfg
	@echo "installing core, book and test packages into $(VENV)"
	@$(PIP) -q -c constraints.txt -e ".[test]"
	@mkdir -p $(VENV)/etc/jupyter
	@echo '{"ContentsManager": {"pre_save_hook": "nbdev.clean.clean_jupyter"}}' > $(VENV)/etc/jupyter/jupyter_server_config.json
	@if [ "$$(git rev-parse --show-toplevel 2>/dev/null)" = "$$(pwd -P)" ]; then \
	  git config merge.nbdev-merge.name "merge notebooks cell by cell"; \
	  git config merge.nbdev-merge.driver "$(BIN)/nbdev_merge %O %A %B %P"; fi
	@touch $(VENV)/core-installed $@
