# make demo       see it work: trains, ranks and condenses a small network
# make test       the tests, but for the slow ones
# make test-slow  the slow ones too
# make check      lint, formatting and types
# make format     put the formatting right
# make bench      measure against other libraries' estimators; writes docs/benchmarks.md
# make bench-vgg16  the same for a large network; takes an hour or two, and goes on if interrupted
# make bench-condensing  condense trained networks beside torch-pruning; writes docs/condensing.md
#
# Each sets up .venv first, once, and again when pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Compiled kernels are kept with the environment that compiled them.
export NUMBA_CACHE_DIR ?= $(CURDIR)/$(VENV)/numba-cache

# Tests find the real data sets here.
ifndef NEURANK_DATA
ifneq ($(wildcard ../shared/data/.),)
export NEURANK_DATA := $(abspath ../shared/data)
endif
endif

# Two processes of one thread each are faster than one of two: most tests are small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench bench-vgg16 bench-condensing clean

help:
	@sed -n 's/^# make /make /p' Makefile

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/neurank demo

test: setup
	$(PYTEST) -m 'not slow'

test-slow: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.against_peers
	$(BIN)/python -m benchmarks.page

bench-vgg16: setup
	$(BIN)/python -m benchmarks.vgg16 --resume
	$(BIN)/python -m benchmarks.page

bench-condensing: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.condensing --resume
	$(BIN)/python -m benchmarks.condensing_page

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
