# Everything happens in .venv; no other tool than Python (>= 3.11) and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.vlascope-installed
JOBS ?= 2
# On Linux the default torch wheel brings CUDA. Without a GPU:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP_EXTRA := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup venv demo test check format docs clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install vlascope with the versions of constraints.txt

venv: setup

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"vlascope needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_EXTRA) -c constraints.txt -e '.[sim,data,measure,eval,app,notebook,rerun,ray,dev]'
	@touch $@

demo: $(STAMP) ## run the whole pipeline on two embedded robot episodes (about a minute)
	@OMP_NUM_THREADS=$$(nproc 2>/dev/null || echo 2) $(BIN)/vlascope demo

test: $(STAMP) ## run every test
	$(BIN)/python -m pytest -n $(JOBS) --durations=10

check: $(STAMP) ## format, lint and types, exactly as in CI
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(STAMP) ## format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## build the documentation into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean: ## remove the environment and everything that is built
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache .hypothesis
