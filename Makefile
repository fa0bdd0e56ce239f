# Everything runs in .venv, which each target makes and fills by itself: only Python 3.11+ and make are needed.

# the first that runs and is new enough: a name on the path may be a shim that starts nothing
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SHARED ?= ../shared
DEMO := demo/prose-llama-7m-Q5_K_M.gguf
PYTEST := $(BIN)/pytest -q -n auto

.PHONY: help demo test test-oracles test-shared lint format bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

demo: $(VENV)/.demo ## convert the example model to Q5_K_M, inspect it, verify it
	@mkdir -p demo
	$(BIN)/qconv hf-to-gguf examples/prose-llama-7m -o $(DEMO) --type q5_k_m --force
	$(BIN)/qconv inspect $(DEMO)
	$(BIN)/qconv verify $(DEMO)

test: $(VENV)/.test ## tests that need nothing but this folder
	$(PYTEST) -m "not shared and not oracles"
	$(PYTEST) --doctest-modules typings/qconv

test-oracles: $(VENV)/.oracles ## tests against transformers, torch (CPU) and llama.cpp
	$(PYTEST) -m "oracles and not shared"

test-shared: $(VENV)/.oracles ## tests over the folder ../shared; fails where it is missing
	@test -d "$(SHARED)" || { echo "make test-shared needs the folder $(SHARED); set SHARED= to where it lies" >&2; exit 1; }
	QCONV_SHARED="$(abspath $(SHARED))" $(PYTEST) -m shared

lint: $(VENV)/.lint ## ruff, mypy, import contract, packaging
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) tests/test_packaging.py

format: $(VENV)/.lint ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the targets made
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "qconv needs Python 3.11 or newer; set PYTHON= to one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	$(PIP) install --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) install --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) install --group lint
	@touch $@

$(VENV)/.oracles: $(VENV)/.test
	$(PIP) install --group oracles --group llamacpp
	@touch $@
