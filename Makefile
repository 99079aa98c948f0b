# Every target sets up what it needs on a fresh machine: a virtual environment in .venv, torch's pinned build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
EXTRAS := dev,docs,tensorboard,serve,export,pretraining
TABLE ?= druglib:train
BASE ?= google/flan-t5-base
RECIPE ?= druglib
OUT ?= runs/$(RECIPE)

.PHONY: setup test test-docs test-extras torture lock browser lint types imports train demo docs bench reproduce clean

setup: $(SETUP)

# pip, not another installer, so that constraints.txt picks the one torch build everywhere.
$(SETUP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $(SETUP)

lint: setup
	$(BIN)/ruff format --check src tests benchmarks pretraining examples docs/*.py
	$(BIN)/ruff check src tests benchmarks pretraining examples docs/*.py
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

# Every notebook of the tutorial, top to bottom, on the bundled base.
test-docs: setup
	$(BIN)/python tests/docs/run_notebooks.py

# Ray and bitsandbytes are large, and PEFT loads the latter wherever it is: they have an environment of their own.
test-extras:
	$(MAKE) setup VENV=.venv-extras EXTRAS=dev,serve,cluster,quant
	OMP_NUM_THREADS=1 .venv-extras/bin/pytest tests/test_cluster.py tests/serving/test_bulk_cluster.py \
		tests/model/test_quantised.py tests/test_doc_commands.py::test_every_command_for_ray_runs \
		'tests/torture/test_promises.py::test_promise[cluster-faults-short]'

# The promises of docs/reliability.md in their long form: half an hour. SHARE=0.1 makes a tenth of it.
SHARE ?= 1
torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.torture --share $(SHARE) --out torture.json

# The versions that were tested together, with hashes; torch comes first and apart, see constraints.txt.
lock: setup
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --no-header --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --no-emit-options --unsafe-package torch --unsafe-package setuptools \
		--constraint constraints.txt --extra serve --extra export --extra tensorboard \
		--output-file requirements.lock pyproject.toml

# The main job on your table: make train TABLE=reviews.csv BASE=path/or/hub-id
train: setup
	$(BIN)/rxtone train $(RECIPE) --set data.train=$(TABLE) --set data.test=null --set model.base=$(BASE) --out $(OUT)

# The whole story offline, on the bundled base and sample.
demo: setup
	rm -rf runs/demo
	$(BIN)/rxtone demo --out runs/demo

# The documentation, without a network: open docs/_build/html/index.html. Any warning fails, a broken link or a page
# that no other names among them.
docs: setup
	$(BIN)/sphinx-build -E -W -n --keep-going -q -b html docs docs/_build/html

# Full-size quality: both recipes, 5 seeds, the official split; fills docs/quality.md. Needs the hub, or BASE=bundled.
reproduce: setup
	$(BIN)/python -m benchmarks.reproduce --base $(BASE)

# Speed and memory beside the peers, the most important first, on an idle machine. Needs ../shared for shapes and texts.
WINDOW ?= 25m
bench: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks --window $(WINDOW)

clean:
	rm -rf docs/_build $(VENV) .venv-extras .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
