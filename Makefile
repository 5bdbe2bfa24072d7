# Two commands for a fresh machine: `make train` and `make test`. Both make the environment first, if it is not there:
# training installs what it needs, and the tests, `make lint` and `make dist` add the rest to the same environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 3
TEST_JOBS ?= 2
LOWEST := $(VENV)-lowest/bin/python

.PHONY: train test test-slow test-lowest lint dist docs notebook clean

train: $(VENV)/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/torchrun --standalone --local-addr 127.0.0.1 --nproc_per_node=$(WORKERS) -m pipeflow.launch $(ARGS)

# Files of tests go to TEST_JOBS processes, so that the runs that several tests of a file look at are made once.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile

# Whatever the README promises, in minutes.
test: $(VENV)/.tests
	$(PYTEST) -m 'not slow' $(ARGS)

# The rest: faults of every kind, Ray's loss of a node, several machines, the benchmarks' own tests. Files keep
# their order: sorted by their numbers of tests, long ones with few tests came last, and the other processes were idle.
test-slow: $(VENV)/.tests
	$(PYTEST) -m slow --no-loadscope-reorder --timeout=600 $(ARGS)

# The tests with the lowest versions that pyproject.toml allows, in an environment of their own (about 5 GB).
test-lowest: $(VENV)-lowest/.installed
	OMP_NUM_THREADS=1 $(LOWEST) -m pytest $(or $(ARGS),-m 'not slow and not ray' --ignore tests/benchmarks)

lint: $(VENV)/.tests
	$(BIN)/ruff check pipeflow tests benchmarks launch docs
	$(BIN)/ruff format --check pipeflow tests benchmarks launch docs
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# The source distribution, and the wheel that is built from it, in dist/.
dist: $(VENV)/.tests
	rm -rf dist
	$(BIN)/python -m build --no-isolation

# The site, in build/site; a link that leads nowhere is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m docs.generate.pages build/pages
	$(BIN)/zensical build --strict

# Executes the notebook, and keeps what it shows.
notebook: $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace docs/first_flow.ipynb
	rm -rf docs/runs

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# torch and torchvision are resolved together: one without the other picks a pair that does not match.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pipeflow needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.tests: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(LOWEST) -m pip install --quiet uv
	$(LOWEST) -m uv pip compile --quiet --resolution lowest-direct pyproject.toml --output-file $(VENV)-lowest/lowest.txt
	$(LOWEST) -m pip install --quiet --editable '.[flows]' pytest pytest-timeout --constraint $(VENV)-lowest/lowest.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist *.egg-info
