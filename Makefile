# make, bash and Python are all that has to be there. Everything is installed into .venv of this folder.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo browser test chapter sync check lab bench trust clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off
PINS := pyproject.toml constraints.txt
LAB := $(VENV)/etc/jupyter/jupyter_server_config.json
KERNEL := $(VENV)/etc/ipython/ipython_kernel_config.json
# Tests run on so many cores, a whole file of tests on one.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu); echo $$((n < 4 ? n : 4)))

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1#\2/p' Makefile | awk -F'#' '{printf "%-16s %s\n", $$1, $$2}'
	@echo "  PYTHON=python3.12 chooses the interpreter that .venv is made with; ARGS='-k mcrf' goes to pytest (in demo: to papermill)"
	@echo "  WORKERS=1 runs the tests on one core; without it, on up to four"

setup: $(VENV)/test-installed ## install all that the book and its tests need (once)
	@echo "ready; for your own commands: source $(BIN)/activate"

demo: $(VENV)/core-installed ## train, segment and score on the phantom: runs/demo.ipynb
	@mkdir -p runs
	$(BIN)/papermill nbs/train.ipynb runs/demo.ipynb -p resume false $(ARGS)
	@echo "notebook        runs/demo.ipynb"

browser: ## install Chromium from Debian's packages where there is none: the annotator's tests move the mouse in it
	@command -v chromium >/dev/null || { apt-get -qq update && apt-get -qq install -y chromium; } >/dev/null 2>&1 \
	  || echo "no Chromium, and none to be had by apt-get as this user: the tests in a browser will be skipped"

test: $(VENV)/test-installed ## everything that is tested, chapters included
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

chapter: $(VENV)/test-installed ## NB=method/32_mcrf: into step, then run; KEEP=twin or KEEP=notebook where both were edited
	@test -n "$(NB)" || { echo "which one? make chapter NB=method/32_mcrf"; exit 2; }
	@$(BIN)/python tools/sync.py "$(NB)" $(if $(KEEP),--keep "$(KEEP)")
	@$(BIN)/ruff check nbs/$(NB).ipynb
	@$(BIN)/python -m pytest -q --durations=1 "tests/test_book.py::test_chapter_runs[$(NB)]"

sync: $(VENV)/test-installed ## all twins, notebooks and modules into step
	@$(BIN)/python tools/sync.py

check: $(VENV)/test-installed ## the quick part of the tests: style, and that notebooks, twins and modules agree
	@$(BIN)/python -m pytest -q --durations=3 -m "not chapter" tests/test_book.py tests/test_project.py

lab: $(VENV)/test-installed ## open the book in JupyterLab
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

bench: $(VENV)/test-installed ## time this code beside its plain forms: benchmarks/results.json, figures/benchmarks.png
	@$(BIN)/python -m benchmarks $(ARGS)

trust: $(VENV)/test-installed ## kill, mutate, fill the disk: docs/trust.md; ARGS="soak minutes=60" for an hour of training
	@$(BIN)/python -m tools.trust $(ARGS)

clean: ## remove caches and build leftovers; .venv and runs/ stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { echo "needs Python 3.10 to 3.13, and '$(PYTHON)' is none; name one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed: install your system's venv package" \
	  "(Debian, Ubuntu: python3-venv) or name another Python: make setup PYTHON=/path/to/python3"; exit 1; }

# The stamps are remade whenever the pins change; `make demo` needs the first only.
$(VENV)/core-installed: $(PINS) | $(VENV)/pyvenv.cfg $(KERNEL)
	@echo "installing the core into $(VENV)"
	@$(PIP) -q -c constraints.txt -e ".[notebook]"
	@touch $@

$(VENV)/test-installed: $(PINS) | $(VENV)/pyvenv.cfg $(LAB) $(KERNEL)
	@echo "installing core, book and test packages into $(VENV)"
	@$(PIP) -q -c constraints.txt -e ".[test]"
	@touch $(VENV)/core-installed $@

# JupyterLab cleans a notebook when it saves it. Jupytext's extension is off: it would write the twin with every notebook
# that is saved, over whatever the twin says by then; tools/sync.py looks first. All of it is set up in .venv, not by
# nbdev-install-hooks, which edits ~/.jupyter and expects the programs on the PATH.
$(LAB): Makefile | $(VENV)/pyvenv.cfg
	@mkdir -p $(@D)
	@echo '{"ContentsManager": {"pre_save_hook": "nbdev.clean.clean_jupyter"},' \
	  '"ServerApp": {"jpserver_extensions": {"jupyterlab_jupytext": false}}}' > $@

# Without it, ipykernel warns at every start that its sockets on this machine are not encrypted.
$(KERNEL): Makefile | $(VENV)/pyvenv.cfg
	@mkdir -p $(@D)
	@echo '{"IPKernelApp": {"log_level": "ERROR"}}' > $@
