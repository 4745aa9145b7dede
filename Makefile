# The only commands: demo, test, check, fmt, bench, gpu. Each sets itself up, but for gpu.
#   VENV=dir           where the environment stands        PYTHON=python3.13   which Python makes it
#   CONSTRAINTS=file   other versions                      PYTEST_ARGS="-k x", DEMO_ARGS="--quick"  passed on
VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
DEMO_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# make gpu: on a machine with torch, transformers and pytest of its own (GPU_PYTHON), where nothing can be installed. What
# else is needed lies in GPU_SITE, made by `make gpu-site` where there is a network, for that machine's Python (docs/gpu.md).
GPU_PYTHON ?= python3
GPU_PYTHON_VERSION ?= 3.12
GPU_SITE ?= .gpu-site
GPU_SHAPES ?= qwen3-0.6b
GPU_FLAGS ?=
GPU_MEMORY ?= --hidden 1024 --layers 28
GPU := PYTHONPATH=src:$(GPU_SITE) $(GPU_PYTHON)

CODE := src tests $(wildcard benchmarks examples)

.PHONY: demo test check fmt bench gpu gpu-site
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

gpu-site:
	python3 -m pip install --quiet --no-compile --disable-pip-version-check --target $(GPU_SITE) --upgrade --no-deps \
		--only-binary=:all: --implementation cp --python-version $(GPU_PYTHON_VERSION) --platform manylinux2014_x86_64 \
		-c $(CONSTRAINTS) pydantic pydantic_core annotated_types typing_inspection typing_extensions tomli_w

gpu:
	$(GPU) -m pytest tests/gpu -rs -W default -p no:cacheprovider $(PYTEST_ARGS)
	@set -e; for shape in $(GPU_SHAPES); do for command in mfu decode longest; do \
		echo "== $$command $$shape"; timeout 600 env $(GPU) benchmarks/gpu.py $$command --shape $$shape $(GPU_FLAGS); \
	done; done
	timeout 600 env $(GPU) benchmarks/memory.py $(GPU_MEMORY)
