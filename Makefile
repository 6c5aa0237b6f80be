# README's two commands are `make demo` and `make test`. Each sets up what it needs, and only once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test test-fast bench-init lint types check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## virtual environment with pinned packages

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "orthora needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## DAPO with five initialisations on the embedded model; writes runs/demo/report.html
	$(BIN)/orthora demo $(DEMO)

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest -n auto --dist loadgroup $(TESTS)

test-fast: $(STAMP)  ## tests without the slow ones
	$(BIN)/python -m pytest -n auto --dist loadgroup -m 'not slow' $(TESTS)

bench-init: $(STAMP)  ## adapter starts against LAPACK, PEFT and scipy (an hour; BENCH=--quick for minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt scipy
	$(BIN)/python bench/init.py $(BENCH)

lint: $(STAMP)  ## ruff, lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## pyright on src
	$(BIN)/pyright --pythonpath $(BIN)/python src

check: lint types test  ## what a commit must pass

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
