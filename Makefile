# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := test,heic,azure,azure-scoring,export,mlflow,tensorboard,joblib,optuna,parquet

.DEFAULT_GOAL := help
.PHONY: help install run stop test test-all lint format bench golden clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## create .venv with objrec and all extras

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $(STAMP)

run: $(STAMP)  ## run the five steps on the built-in sample and start an endpoint
	$(BIN)/python -m objrec.pipeline $(ARGS)

stop: $(STAMP)  ## stop the endpoint of `make run`
	$(BIN)/python -m objrec.serve action=stop

test: $(STAMP)  ## run the fast tests
	$(BIN)/python -m pytest $(ARGS)

test-all: $(STAMP)  ## run all tests, slow ones too
	$(BIN)/python -m pytest -m "not gpu and not network" $(ARGS)

lint: $(STAMP)  ## check with ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP)  ## auto-fix with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## run the benchmarks that need only this machine
	$(BIN)/python -m benchmarks $(ARGS)

golden: $(STAMP)  ## update the golden files; then read the diff
	$(BIN)/python -m pytest tests/test_golden.py tests/submit/test_job.py --update-golden

clean:  ## remove the cache and .venv; keep models, runs and sweeps
	rm -rf .objrec/cache $(VENV)
	@echo 'kept: .objrec/registry (the models in production) and runs (trainings, sweeps, reports)'
