# Two commands matter: `make demo` shows it working, `make test` proves it. Both set up .venv first.
PYTHON ?= python3
# A CPU build where pip finds one; the project itself admits any newer release.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?=
ONCE ?=

.PHONY: setup demo test check lint types clean

setup: $(READY)

$(READY): pyproject.toml clients/python/pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]" --editable clients/python
	touch $@

demo: $(READY)
	$(BIN)/peterrec demo $(if $(DATA),--data "$(DATA)") $(if $(ONCE),--once)

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile -m "not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) demo-data build dist *.egg-info
