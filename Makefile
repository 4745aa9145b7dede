# The only commands: demo, test, check, fmt, bench. Each sets itself up.
#   VENV=dir           where the environment stands        PYTHON=python3.13   which Python makes it
#   CONSTRAINTS=file   other pinned versions               PYTEST_ARGS="-k x", DEMO_ARGS="--quick"  passed on
VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
DEMO_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := src tests $(wildcard benchmarks examples)

.PHONY: demo test check fmt bench
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/opdlm demo $(DEMO_ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fmt: $(STAMP)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(STAMP)
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script; \
	done
