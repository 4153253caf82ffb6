# Frontrow: `make` alone lists what there is to do. Everything lives in .venv; nothing needs root or a server.

PYTHON ?= python3
# How many tests run at once; they wait more than they compute, and each process has servers of its own.
JOBS ?= 2
# How long `make storm` lasts.
MINUTES ?= 30
# Handed on: make serve ARGS="--port 9000", make test ARGS="-k seat", make lock ARGS=--upgrade
ARGS ?=
# Where it is set, as in many containers, each of the processes that tests start compiles everything anew.
export PYTHONDONTWRITEBYTECODE :=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := $(BIN)/uv pip compile --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 --quiet

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup serve test storm bench check lint types format lock schema clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: .venv/.ready-to-develop ## Set everything up in .venv, development tools included

serve: .venv/.ready-to-serve ## Set up what serving needs, then serve on 127.0.0.1:8000
	@exec $(BIN)/frontrow serve $(ARGS)

test: setup ## Run all tests
	@$(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

storm: setup ## Kill and cut at random under load for MINUTES, and judge what is left
	@$(BIN)/python -m tests.faults.storm --minutes $(MINUTES) $(ARGS)

bench: setup ## Measure how fast it is, beside others; ARGS=--write-docs writes docs/performance.md
	@$(BIN)/python -m bench $(ARGS)

check: lint types test ## Format, lint, types, tests: what CI runs

lint: setup ## Check format and lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: setup ## Check types
	@$(BIN)/mypy

format: setup ## Format, and mend what the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: setup ## Write the lock files anew from pyproject.toml
	$(LOCK) $(ARGS) pyproject.toml -o requirements/base.txt
	$(LOCK) $(ARGS) --group build -c requirements/base.txt -o requirements/build.txt
	$(LOCK) $(ARGS) pyproject.toml --extra dev --group build -c requirements/base.txt -c requirements/build.txt -o requirements/dev.txt

schema: setup ## Print the schema to schema/schema.graphql
	@$(BIN)/frontrow schema > .venv/schema.graphql
	@mv .venv/schema.graphql schema/schema.graphql

clean: ## Remove .venv and what the tools leave behind, never a database
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

# The stamps make a second run instant and need no network; they are redone when what they were made from changes.
.venv/.ready-to-serve: pyproject.toml requirements/base.txt requirements/build.txt | .venv/bin/python
	@echo "Installing what serving needs (once, about a minute)..."
	@$(PIP) install --quiet --require-hashes -r requirements/base.txt -r requirements/build.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.ready-to-develop: pyproject.toml requirements/dev.txt | .venv/bin/python
	@echo "Installing dependencies and development tools (once, about a minute)..."
	@$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch .venv/.ready-to-serve $@

# --clear mends a .venv whose Python is gone; a half-made one is taken away, or the next run would trust it.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Frontrow needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv"; exit 1; } >&2
