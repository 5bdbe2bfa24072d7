# Two commands for a fresh machine: `make train` and `make test`. Both make the environment first, if it is not there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 3

.PHONY: train test lint clean

train: $(VENV)/.installed
	$(BIN)/torchrun --standalone --nproc_per_node=$(WORKERS) -m pipeflow.launch $(ARGS)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check pipeflow tests benchmarks launch
	$(BIN)/ruff format --check pipeflow tests benchmarks launch

# torch and torchvision are resolved together: one without the other picks a pair that does not match.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pipeflow needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
