# Two commands for a fresh machine: `make train` and `make test`. Both make the environment first, if it is not there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 3
TEST_JOBS ?= 2
LOWEST_TESTS := tests/data tests/flow tests/plan tests/training tests/test_cli.py tests/test_config.py tests/test_evaluate.py \
	tests/test_figures.py tests/hostile tests/test_report.py tests/test_sample.py

.PHONY: train test test-lowest lint clean

train: $(VENV)/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/torchrun --standalone --nproc_per_node=$(WORKERS) -m pipeflow.launch $(ARGS)

# Files of tests go to TEST_JOBS processes, in their order: the longest come early, so that all end at about one time.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# The same tests with the lowest versions that pyproject.toml allows, in an environment of their own (about 5 GB).
test-lowest: $(VENV)-lowest/.installed
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest $(or $(ARGS),$(LOWEST_TESTS))

lint: $(VENV)/.installed
	$(BIN)/ruff check pipeflow tests benchmarks launch
	$(BIN)/ruff format --check pipeflow tests benchmarks launch

# torch and torchvision are resolved together: one without the other picks a pair that does not match.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pipeflow needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)-lowest/.installed: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) .ci/lowest.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --editable . pytest pytest-timeout --constraint $(VENV)-lowest/constraints.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest build *.egg-info
