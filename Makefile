# Each target makes the virtual environment it needs, once, and again when the requirements change; then it does its job.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
REQUIREMENTS = setup.cfg pyproject.toml constraints.txt
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test lint bench clean

demo: $(VENV)/.package
	$(BIN)/python examples/floors.py

test: $(VENV)/.test
	$(BIN)/python -m pytest -m ""

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python benchmarks/trie.py
	$(BIN)/python benchmarks/prepare_scale.py

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) .
	touch $@

$(VENV)/.test: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) ".[test]"
	touch $@

$(VENV)/.dev: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) ".[dev]"
	touch $@
