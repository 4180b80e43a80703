# The one task runner. `make test` is what the README names and what .ci/run calls.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: test check unit bench-third-party bench-seed clean

test: check unit

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/installed
	$(BIN)/python -m pytest

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

bench-third-party: $(VENV)/installed
	$(BIN)/python benchmarks/third_party.py

bench-seed: $(VENV)/installed
	$(BIN)/python benchmarks/seed.py mnist
	$(BIN)/python benchmarks/seed.py gtsrb

clean:
	rm -rf $(VENV) build dist *.egg-info kdaudit-demo kdaudit-run
