# README's two commands are `make demo` and `make test`. Each sets up what it needs, and only once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test test-slow bench-init bench-step lint types check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## virtual environment with pinned packages

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "orthora needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	@touch $(STAMP)

demo: $(STAMP)  ## DAPO with five initialisations on the embedded model; writes runs/demo/report.html
	$(BIN)/orthora demo $(DEMO)

PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup

test: $(STAMP)  ## the tests (a quarter of an hour on two cores)
	$(PYTEST) -m 'not slow' $(TESTS)

test-slow: $(STAMP)  ## the rest of them: every composition, more kills (as long again)
	$(PYTEST) -m slow $(TESTS)

bench-init: $(STAMP)  ## adapter starts against LAPACK, PEFT and scipy (an hour; BENCH=--quick for minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt scipy
	$(BIN)/python bench/init.py $(BENCH)

bench-step: $(STAMP)  ## a training step against TRL and PEFT (a quarter of an hour; BENCH=--quick for a minute)
	$(BIN)/python bench/step.py $(BENCH)

lint: $(STAMP)  ## ruff, lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## pyright on src
	$(BIN)/pyright --pythonpath $(BIN)/python src

check: lint types test test-slow  ## what a commit must pass

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
