# make demo   set everything up and build the images of examples/banger.toml: no network registry needed
# make test   set everything up and run every check: style, types, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml hatch_build.py $(wildcard reconciler/guest/src/*)
WORKERS ?= 2

.PHONY: demo test bench bench-noop lint clean

demo: $(VENV)/.installed
	@contrib/install-packages run
	@$(BIN)/banger-reconcile --state-dir .demo/state --cache-dir .demo/cache examples/banger.toml

test: $(VENV)/.installed-dev lint
	@contrib/install-packages test
	$(BIN)/pytest -n $(WORKERS)

# how long images take, beside other ways: docs/performance.md; ARGS="--runs 1 --images many" for less
bench: $(VENV)/.installed-dev
	@contrib/install-packages test
	$(BIN)/python tests/bench/bench.py $(ARGS)

# what a pass costs that finds nothing to do
bench-noop: $(VENV)/.installed-dev
	@contrib/install-packages test
	$(BIN)/python tests/bench/noop.py $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "banger-reconcile needs Python 3.11 or newer; try: make PYTHON=python3.12" >&2; exit 1; }
	@# some distributions ship python3 without the venv module's pip: virtualenv does not need it
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m pip install --target $(VENV)/.bootstrap virtualenv \
	  && PYTHONPATH=$(VENV)/.bootstrap $(PYTHON) -m virtualenv $(VENV); }

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .demo dist
