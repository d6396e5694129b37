# Each target makes the virtual environment it needs, once, and again when the requirements change; then it does its job.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
REQUIREMENTS = setup.cfg pyproject.toml constraints.txt
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test lint bench clean

demo: $(VENV)/.package
	$(BIN)/accelerate launch --config_file recipes/accelerate/cpu.yaml examples/blade.py

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# With DATASET (a prepared folder of titles) and MODEL (a language model) given, decoding and the BEAR step are timed as well.
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
endif

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) .
	touch $@

$(VENV)/.test: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) ".[test,quantization,deepspeed,semantic-ids]"
	touch $@

$(VENV)/.dev: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) ".[dev]"
	touch $@
