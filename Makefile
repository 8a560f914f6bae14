# Open-AutoGLM. `make` alone prints this list.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-lock
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
.DEFAULT_GOAL := help
.PHONY: help setup run test check soak bench bench-quality docs clean

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMP)  ## build .venv from the lock (Python 3.11+, venv and pip are all it needs)

# torch first and alone: with the rest, a resolver may look at every build of it.
$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(STAMP)

run: setup  ## go round the loop twice on real news articles, in ./demo
	$(BIN)/python examples/news/news.py demo

test: setup  ## run every test; prints the seconds per area
	$(BIN)/python tests/run.py

check: setup  ## format, lint, types, imports, architecture: exactly what CI checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest tests/architecture

soak: setup  ## kills and faults by the hundred, seeded (SEED=n, KILLS=n)
	$(BIN)/python -m pytest tests -m soak -s

bench: setup  ## the benchmarks, one after the other
	$(BIN)/python -m benchmarks

bench-quality: setup  ## test accuracy beside transformers.Trainer: hours; stopped, it goes on
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.optimizers
	$(BIN)/python -m benchmarks.long_texts

docs: setup  ## write the generated pages again
	$(BIN)/python docs/generate.py

clean:  ## remove the environment, the demo and caches
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
