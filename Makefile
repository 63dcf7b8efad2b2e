# bfp: two commands set everything up. Only make and Python 3.11 to 3.13 are needed.
#   make demo    real anatomy, from NIfTI scans to predictions, on the Ray inside this process
#   make test    lint, types, schemas and tests

PYTHON ?= $(shell for v in 3.11 3.12 3.13; do if python$$v -c '' 2>/dev/null; then echo python$$v; exit; fi; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-long lint types schemas lock clean

help:
	@sed -n '1,4s/^# \{0,1\}//p' Makefile

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "bfp needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "==> making the environment in $(VENV) (once; a few minutes and 6 GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	@echo "==> bfp demo: a made cohort on real anatomy, then ingest, pretrain, finetune, infer (at most 10 minutes)"
	@$(BIN)/bfp demo

lint: $(READY)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

types: $(READY)
	@echo "==> mypy"
	@$(BIN)/mypy

# Two processes, each with a Ray of its own: half of the tests' time is waiting. A file stays in one of them.
test: lint types
	@echo "==> pytest"
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

# What takes a minute or more: runs that are killed and go on, the whole chain in a bucket.
test-long: $(READY)
	@echo "==> pytest, long ones"
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long

# The published contracts, from the models, the Arrow schemas and the installed timm; tests hold them in step.
schemas: $(READY)
	@$(BIN)/python -m tests.specs.timm_table
	@$(BIN)/bfp schema --all schemas
	@$(BIN)/python -m bfp.cli.columns schemas

# Exact versions for every machine, from a fresh environment with the newest that pyproject.toml allows.
lock:
	@PYTHON=$(PYTHON) ./.ci/lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
