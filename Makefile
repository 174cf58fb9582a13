# `make run` and `make test` set up what they need; every other file is found by `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := test,heic,azure,azure-scoring,export,mlflow,tensorboard,joblib,optuna,parquet

.DEFAULT_GOAL := help
.PHONY: help install run stop test test-all lint format bench golden clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## .venv with everything

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $(STAMP)

run: $(STAMP)  ## the five steps on the embedded sample: accuracy, report, endpoint
	$(BIN)/python -m objrec.pipeline $(ARGS)

stop: $(STAMP)  ## stop the endpoint that `make run` left serving
	$(BIN)/python -m objrec.serve action=stop

test: $(STAMP)  ## the test suite
	$(BIN)/python -m pytest $(ARGS)

test-all: $(STAMP)  ## the test suite with the slow tests
	$(BIN)/python -m pytest -m "not gpu and not network" $(ARGS)

lint: $(STAMP)  ## ruff, mypy and the floors of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the benchmarks that need nothing but this machine
	$(BIN)/python -m benchmarks $(ARGS)

golden: $(STAMP)  ## write the golden files anew; read the diff
	$(BIN)/python -m pytest tests/test_golden.py tests/submit/test_job.py --update-golden

clean:  ## remove the cache and the environment; models, runs and sweeps stay
	rm -rf .objrec/cache $(VENV)
	@echo 'kept: .objrec/registry (the models in production) and runs (trainings, sweeps, reports)'
