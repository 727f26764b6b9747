# `make help` lists the targets. PYTHON chooses the interpreter of the virtual environment (3.11 or newer).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help quickstart test test-all bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1|/' | column -t -s '|'

quickstart: $(VENV)/.installed  ## data, training, evaluation, report in runs/quickstart; DATA=FOLDER for real folders, FRESH=1 to start over
	$(RUN) -m universeg_jax.commands.quickstart --workdir=runs/quickstart $(if $(DATA),--data=$(DATA)) $(if $(FRESH),--fresh)

test: $(VENV)/.installed  ## ruff and every test that is not slow
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest

test-all: $(VENV)/.installed  ## the slow ones too
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest -m "not shared"

bench: $(VENV)/.installed  ## the model against PyTorch on this machine, JSON lines to runs/bench.jsonl; RELEASE=FOLDER for the public code
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@mkdir -p runs
	$(RUN) -m benchmarks.model --out runs/bench.jsonl $(if $(RELEASE),--release=$(RELEASE))

clean:  ## delete the virtual environment and the runs
	rm -rf $(VENV) runs

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
