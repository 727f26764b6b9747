# `make help` lists the targets. PYTHON chooses the interpreter of the virtual environment (3.11 or newer).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help quickstart test test-all coverage bench docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1|/' | column -t -s '|'

quickstart: $(VENV)/.installed  ## trains and evaluates a small model in runs/quickstart; DATA=FOLDER for real folders, FRESH=1 to start over
	$(RUN) -m universeg_jax.commands.quickstart --workdir=runs/quickstart $(if $(DATA),--data=$(DATA)) $(if $(FRESH),--fresh)

test: $(VENV)/.installed  ## ruff, mypy and every test that is not slow
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(RUN) -m pytest

test-all: $(VENV)/.installed  ## the same with the slow tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(RUN) -m pytest -m "not shared"

coverage: $(VENV)/.installed  ## the tests of `make test` with the floors for lines and branches
	$(RUN) -m pytest --cov --cov-report=json:runs/coverage.json
	$(RUN) tools/coverage_floor.py runs/coverage.json

bench: $(VENV)/.installed  ## the model against PyTorch on this machine, JSON lines in runs/bench.jsonl; RELEASE=FOLDER for the public code
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@mkdir -p runs
	$(RUN) -m benchmarks.model --out runs/bench.jsonl $(if $(RELEASE),--release=$(RELEASE))

docs: $(VENV)/.installed  ## the documentation as a site in site/
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(RUN) -m mkdocs build --strict

clean:  ## delete the virtual environment, the runs and the site
	rm -rf $(VENV) runs site

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
