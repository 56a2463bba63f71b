# Every target sets up what it needs in a fresh clone: a virtual environment in .venv, with the versions of constraints.txt.
.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint format bench clean setup

# The pins resolve on Python 3.11 and later; CI runs 3.11.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
export OMP_NUM_THREADS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python reads the name of this folder, which the environment keeps in a .pth, in the locale's encoding.
ifeq ($(shell locale charmap 2>/dev/null),ANSI_X3.4-1968)
export LC_ALL := C.UTF-8
endif

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(READY) ## the virtual environment in .venv

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.14 found; set PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version); the first time takes some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[export,rtx,dev]' 2>.venv/pip.err \
		|| { cat .venv/pip.err >&2; exit 1; }
	@touch $@

demo: $(READY) ## digits: spec -> int8 bundle -> TensorRT-RTX engines -> answers, in ./demo/
	@$(BIN)/python examples/demo.py demo

lint: $(READY) ## ruff, mypy, import contracts, Dockerfile
	@$(BIN)/ruff check --output-format concise .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo >.venv/imports.log || { cat .venv/imports.log; exit 1; }
	@$(BIN)/hadolint Dockerfile

test: lint ## lint, then every test
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -q

format: $(READY) ## rewrite the sources in house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY) ## the CPU figures of benchmarks/RESULTS.md, measured again on this machine
	@for name in cli_startup session_overhead vit_cpu export; do \
		echo "== benchmarks/bench_$$name.py"; $(BIN)/python benchmarks/bench_$$name.py || exit 1; done

test-gpu: ## on a GPU host: engines built, checked and timed, in ./gpu/; PYTHON has torch, TRT_PYTHON tensorrt
	@benchmarks/gpu_host.sh gpu

clean: ## everything that can be made again
	rm -rf .venv demo gpu build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
