# `make demo` and `make test` need no preparation.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_OUT ?= demo
WHEELS ?= .wheels
GPU_PYTHON ?= python3

# One thread per process while tests share the cores; the demo and the benchmarks choose themselves.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg
# One process per core, one test file at a time, so that its fixtures are created once.
TEST_SPLIT := -n auto --dist loadfile

.PHONY: demo test test-slow check docs format bench gpu gpu-wheels clean help

help:
	@echo "make demo       install into $(VENV), run every stage on a drawn cohort, up to the report"
	@echo "make test       install into $(VENV), run the tests"
	@echo "make test-slow  run the slow tests (end to end, interruptions)"
	@echo "make check      formatting, lint, types, import direction, documentation"
	@echo "make docs       build the documentation as a site in docs/_build/html"
	@echo "make bench      run all benchmarks, results as JSON"
	@echo "make gpu        check and measure on a GPU, in seven minutes, without a network"
	@echo "make gpu-wheels download the packages for 'make gpu' into $(WHEELS)"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/wsi-pipeline demo --out $(DEMO_OUT)

test: $(INSTALLED)
	$(TEST_ENV) $(BIN)/python -m pytest $(TEST_SPLIT) -m "not slow"

test-slow: $(INSTALLED)
	$(TEST_ENV) $(BIN)/python -m pytest $(TEST_SPLIT) -m "slow and not alone"
	$(TEST_ENV) $(BIN)/python -m pytest -m "slow and alone"

check: $(INSTALLED) docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

# Every warning is an error: a broken link, a page in no table of the index, a name in no docstring.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -q -n -W --keep-going docs docs/_build/html

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

# On the GPU machine: its own Python with PyTorch and CUDA, no virtual environment, no network.
gpu:
	$(GPU_PYTHON) benchmarks/gpu/run.py --wheels $(WHEELS)

gpu-wheels:
	$(PYTHON) benchmarks/gpu/wheels.py --out $(WHEELS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
