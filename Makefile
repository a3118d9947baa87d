# Each target makes its own environment in .venv, on a machine that has python3 (>= 3.10) with venv and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

# The compiled rasteriser is kept here, so that only the first run pays for it.
export NUMBA_CACHE_DIR ?= $(CURDIR)/.cache/numba

.PHONY: help demo test test-cuda lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

demo: $(VENV)/.core  ## reconstruct a small made-up scene on the CPU; results in demo/
	$(BIN)/raysplat demo

test: $(VENV)/.full  ## all tests that need no GPU
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -m "not cuda" -n $(JOBS) --dist loadgroup

test-cuda: $(VENV)/.full  ## the tests that need an NVIDIA GPU (adds gsplat to the environment)
	$(BIN)/pip install -q -c constraints.txt -e ".[all,gs]"
	$(BIN)/pytest -m cuda

lint: $(VENV)/.full  ## style, formatting, and the rule of who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "raysplat needs Python 3.10 or newer; '$(PYTHON)' is missing or older. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "'$(PYTHON)' lacks venv. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are older than these files after a change, and pip brings the environment up to date.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.full: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e ".[all]"
	@touch $@ $(VENV)/.core
