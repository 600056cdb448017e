# Every target sets up what it needs in a virtual environment in .venv, and installs again when pyproject.toml changes.
#   make demo       the demo, with the core dependencies and the packages of the emoji suite only
#   make test       all tests but the longest
#   make test-all   all tests, as in CI
#   make test-fast  the tests that are quick, need no GPU and start neither processes, Ray nor a browser
#   make check      the linter, the formatter and the type checker
#   make bench      the benchmark of throughput
#   make check-oldest  test-fast with the lowest versions that pyproject.toml allows, in .venv-oldest
# Every other target installs every extra.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
DEMO_STAMP := $(VENV)/.installed-demo
DEV_STAMP := $(VENV)/.installed-dev
OLDEST_STAMP := $(OLDEST)/.installed
TESTING := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := $(TESTING) $(BIN)/pytest $(PARALLEL)
LONGEST := long or multiprocess or ray
FAST := not (slow or $(LONGEST) or gpu or browser)

.PHONY: demo test test-all test-fast check check-oldest bench clean

demo: $(DEMO_STAMP)
	$(BIN)/shiftproof demo --seed 0 --out runs/demo --overwrite

test: $(DEV_STAMP)
	$(PYTEST) -m 'not ($(LONGEST))'

test-all: $(DEV_STAMP)
	$(PYTEST)

test-fast: $(DEV_STAMP)
	$(PYTEST) -m '$(FAST)'

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-oldest: $(OLDEST_STAMP)
	$(TESTING) $(OLDEST)/bin/pytest $(PARALLEL) -m '$(FAST)'

bench: $(DEV_STAMP)
	$(BIN)/python benchmarks/bench_throughput.py --out benchmarks/results/throughput.json

$(DEMO_STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

# The dev extra includes what the demo needs, so that `make demo` after it installs nothing.
$(DEV_STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(DEMO_STAMP) $@

$(OLDEST_STAMP): pyproject.toml tools/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) tools/oldest.py --constraints > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check --no-cache-dir \
		--constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist src/*.egg-info
