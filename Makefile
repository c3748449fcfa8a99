# make quickstart   environment, training on the embedded digits, test metrics
# make test         environment, lint, types, tests
# make slow         the tests that take minutes
# make newest       fast tests with the newest Python and the newest dependencies at hand

VENV ?= .venv
PYTHON ?= python3
# Versions to install; empty installs the newest ones.
CONSTRAINTS ?= .ci/constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PINS := $(addprefix --constraint ,$(CONSTRAINTS))
WORKDIR ?= runs/quickstart
NEWEST ?= .venv-newest
NEWEST_TESTS ?= tests/models tests/data tests/train tests/test_config.py

.PHONY: quickstart test lint types unit coverage slow newest clean

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

# In an environment of its own: what works with newer releases than the pinned ones.
newest:
	$(shell .ci/newest-python) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade \
		--upgrade-strategy eager --editable '.[dev]'
	$(NEWEST)/bin/python -m pip list | grep -iE '^(flax|jax|numpy|pandas) '
	$(NEWEST)/bin/python -m pytest -n 2 --dist loadfile $(NEWEST_TESTS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) $(PINS) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) $(PINS) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST)
