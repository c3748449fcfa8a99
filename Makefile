# make quickstart   environment, training on the embedded digits, test metrics
# make test         environment, lint, types, tests

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
WORKDIR ?= runs/quickstart

.PHONY: quickstart test lint types unit coverage slow clean

quickstart: $(VENV)/.installed
	$(BIN)/mobilenet train --config=experiments/baselines/digits.py --workdir=$(WORKDIR)
	$(BIN)/mobilenet evaluate --workdir=$(WORKDIR) --split=test

test: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Apart from the tests, which tracing of lines makes slower.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov=mobilenet --cov-report=term:skip-covered

slow: $(VENV)/.installed-dev
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml .ci/constraints.txt
	$(PIP) --constraint .ci/constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint .ci/constraints.txt --editable .[dev]
	touch $@

clean:
	rm -rf $(VENV)
