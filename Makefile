# Everything runs inside .venv, which pip fills from nothing.
PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) || command -v python3)
BIN := .venv/bin
# Two processes of one thread each; files are not torn apart, for what their tests share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: help setup demo test check format docs clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/.ready  ## make .venv with attar and everything its demo and tests need

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed torch torchvision
	$(BIN)/pip install --quiet -e '.[demo,dev]'
	touch $@

demo: setup  ## distil the offline pocket teacher into a small student; writes runs/demo
	$(BIN)/attar demo --out runs/demo

test: setup  ## run the tests
	$(PYTEST)

check: setup  ## what has to pass before a change lands
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

format: setup  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup  ## write docs/cli.md from the code
	$(BIN)/python scripts/make_cli_docs.py

clean:  ## remove the environment and all runs
	rm -rf .venv runs
