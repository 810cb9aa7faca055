# What a newcomer needs: `make demo`. All targets: `make help`.
#
#   PYTHON=python3.12   make .venv with this interpreter (3.11 to 3.13)
#   TORCH_INDEX=URL     take torch from this package index (one of CPU builds, say)
#   SEED=7              another split and other models in the demo
#   TESTS=tests/net     run only these tests

PYTHON ?=
TORCH_INDEX ?=
SEED ?=
TESTS ?= tests
BIN := .venv/bin

.PHONY: help setup demo test check format clean

help:
	@echo "make demo     six daemons on this machine train, find each other and answer a private query"
	@echo "make test     all tests; they need no network"
	@echo "make check    format, lint, types and layers"
	@echo "make format   put the sources in the format that 'make check' wants"
	@echo "make setup    only make .venv (the others do that by themselves)"
	@echo "make clean    remove what the targets made, .venv included"

setup:
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' sh scripts/setup.sh

demo: setup
	@$(BIN)/finode testnet demo $(if $(SEED),--seed $(SEED))

# Two processes, because most of the longer tests wait for daemons; a file's tests stay in one process, so that they
# share the daemons they start.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
