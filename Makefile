# Each target makes the virtual environment it needs, once, and again when the requirements change; then it does its job.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN = $(VENV)/bin
REQUIREMENTS = setup.cfg pyproject.toml constraints.txt
TESTED = .[test,quantization,deepspeed,semantic-ids]
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

INSTALL_LIMITED = $(BIN)/pip install --quiet --disable-pip-version-check --constraint $(VENV)/constraints.txt
define LIMITED_TESTS
$(BIN)/pip freeze --exclude-editable
OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" tests/test_readme.py
endef

.PHONY: demo test test-long test-newest test-oldest lint bench clean

demo: $(VENV)/.package
	$(BIN)/accelerate launch --config_file recipes/accelerate/cpu.yaml examples/blade.py

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Tests that take minutes each: 1,000 steps of every trainer, many kills, long fuzzing. `-s` shows the figures.
test-long: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -s

# The fast tests and all of the README's with the newest, and with the oldest releases that setup.cfg allows, each in an
# environment of its own. torch is that of constraints.txt in both.
test-newest: VENV = .venv-newest
test-newest:
	$(PYTHON) -m venv $(VENV)
	grep '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(INSTALL_LIMITED) --upgrade --upgrade-strategy eager --editable "$(TESTED)"
	$(LIMITED_TESTS)

test-oldest: VENV = .venv-oldest
test-oldest:
	$(PYTHON) -m venv $(VENV)
	{ grep '^torch==' constraints.txt; $(PYTHON) tests/oldest.py; } > $(VENV)/constraints.txt
	$(INSTALL_LIMITED) --editable "$(TESTED)"
	$(LIMITED_TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# With DATASET (a prepared folder of titles) and MODEL (a language model) given, decoding and BEAR's steps are timed as well.
bench: $(VENV)/.test
	$(BIN)/python benchmarks/trie.py
	$(BIN)/python benchmarks/prepare_scale.py
	$(BIN)/python benchmarks/tokenize_scale.py
	$(BIN)/python benchmarks/shared_prompt.py
	$(BIN)/python benchmarks/softmax_dpo.py
	$(BIN)/python benchmarks/rollouts.py
	$(BIN)/python benchmarks/blade_step.py
ifdef MODEL
	$(BIN)/python benchmarks/decoding.py $(DATASET) --model $(MODEL) --tiny
	$(BIN)/python benchmarks/decoding.py $(DATASET) --model $(MODEL)
	$(BIN)/python benchmarks/bear_step.py $(DATASET) --model $(MODEL) --tiny
	$(BIN)/python benchmarks/bear_step.py $(DATASET) --model $(MODEL) --lora
	$(BIN)/python benchmarks/every_position.py $(DATASET) --model $(MODEL)
endif

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) .
	touch $@

$(VENV)/.test: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) "$(TESTED)"
	touch $@

$(VENV)/.dev: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) ".[dev]"
	touch $@
