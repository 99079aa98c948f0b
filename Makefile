# Every target sets up what it needs on a fresh machine: a virtual environment in .venv, torch's pinned build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
TABLE ?= druglib:train
BASE ?= google/flan-t5-base
RECIPE ?= druglib
OUT ?= runs/$(RECIPE)

.PHONY: setup test browser lint types imports train demo bench clean

setup: $(SETUP)

# pip, not another installer, so that constraints.txt picks the one torch build everywhere.
$(SETUP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,tensorboard,serve,export,pretraining]'
	touch $(SETUP)

lint: setup
	$(BIN)/ruff format --check src tests benchmarks pretraining
	$(BIN)/ruff check src tests benchmarks pretraining
	$(BIN)/pydoclint --quiet src

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

# The page is tested in a real browser: Debian's Chromium, installed where we may.
browser:
	test -x /usr/bin/chromium || test "$$(id -u)" != 0 || { apt-get update -qq && apt-get install -y -qq chromium; }

# One thread a process: the models of the tests are tiny, and two processes share the machine.
test: lint types imports browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# The main job on your table: make train TABLE=reviews.csv BASE=path/or/hub-id
train: setup
	$(BIN)/rxtone train $(RECIPE) --set data.train=$(TABLE) --set data.test=null --set model.base=$(BASE) --out $(OUT)

# The whole story offline, on the bundled base and sample.
demo: setup
	rm -rf runs/demo
	$(BIN)/rxtone demo --out runs/demo

# Speed and memory beside the peers, the most important first, on an idle machine. Needs ../shared for shapes and texts.
WINDOW ?= 25m
bench: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks --window $(WINDOW)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
