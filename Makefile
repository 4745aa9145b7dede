# The only commands: demo, test, check, fmt, bench. Each sets itself up.
#   VENV=dir           where the environment stands        PYTHON=python3.13   which Python makes it
#   CONSTRAINTS=file   other versions                      PYTEST_ARGS="-k x", DEMO_ARGS="--quick"  passed on
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

# CONSTRAINTS=/dev/null takes the newest version of everything that pyproject.toml allows.
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
	@long=$$(wc -l $$(git ls-files 'src/*.py' 'tests/*.py' 'benchmarks/*.py' 'examples/*.py') | awk '$$1 > 400 && $$2 != "total"'); \
		if [ -n "$$long" ]; then echo "files over 400 lines, make a room of them:"; echo "$$long"; exit 1; fi

fmt: $(STAMP)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(STAMP)
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script; \
	done
