# Every target sets up .venv by itself when needed. Paths are relative, so that a checkout may stand anywhere.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
PIP_FLAGS ?=
NOTEBOOKS ?= notebooks
LAB_FLAGS ?=
BIN := .venv/bin
READY := .venv/.ready

# One thread a process: chapters run side by side, and oversubscribed threads cost a factor of three.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
# A user's own Python path must not decide which library runs.
export PYTHONPATH :=
export PYTHONNOUSERSITE := 1

.PHONY: help venv newest book lab pdf test lint serve bench bench-site browser clean clean-venv

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(READY) ## set up .venv from requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old or missing: Python 3.11 or newer is needed; name one with make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index -e .
	touch $(READY)

# What the site is made with stays as locked: jupyter-book 1 needs Sphinx 7.
newest: $(READY) ## replace what is locked by the newest versions, site tools aside (make clean-venv undoes it)
	sed -nE '/# site/ s/^ *- ([A-Za-z0-9._-]+==[^ ]+).*/\1/p; /# site/! s/^ *- ([A-Za-z0-9._-]+)==.*/\1/p' environment.yml > .venv/newest.txt
	$(BIN)/python -m pip install --quiet --upgrade $(PIP_FLAGS) -r .venv/newest.txt

book: $(READY) ## run the chapters that a change reaches and leave the site in _build/html
	$(BIN)/python -m casestudies_lib.cli build

# Where two kernels have one name, the one of this environment counts.
lab: $(READY) ## open the chapters in JupyterLab (NOTEBOOKS=class opens student copies, LAB_FLAGS is handed on)
	JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyter lab --notebook-dir=$(NOTEBOOKS) $(LAB_FLAGS)

pdf: book ## print the book, and each chapter, into _build/pdf (needs Chromium: make browser)
	$(BIN)/python -m casestudies_lib.cli pdf

test: $(READY) lint ## ruff, unit tests, notebook contract, faults, page tests, and nbval over the committed notebooks
	$(if $(CI),$(MAKE) browser,)
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 10 --nbval-lax --nbval-cell-timeout 600 notebooks tests

lint: $(READY) ## ruff on code and notebooks
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

serve: $(READY) ## serve _build/html on this machine
	$(BIN)/python -m casestudies_lib.cli serve

bench: $(READY) ## measure speed and memory as ratios, each in one run (BENCH_FLAGS=builds measures that group alone, --set-up set-up too)
	$(BIN)/python tests/benchmark $(BENCH_FLAGS)

bench-site: book ## measure the site with Lighthouse, in one table (needs Chromium and npx, which fetches Lighthouse once)
	$(BIN)/python tests/benchmark/site.py

browser: ## install the Debian package that page tests need
	@if command -v chromium >/dev/null; then echo "chromium is installed"; \
	elif command -v apt-get >/dev/null; then \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; \
	  else sudo apt-get update -qq && sudo apt-get install -y -qq --no-install-recommends chromium; fi; \
	else echo "no apt-get here: install Chromium so that 'chromium' is on the PATH" >&2; exit 1; fi

clean: ## delete everything generated
	rm -rf _build

clean-venv: ## delete the virtual environment
	rm -rf .venv
