# Two commands matter: `make demo` shows it working, `make test` proves it. Both set up .venv first.
PYTHON ?= python3
# A CPU build where pip finds one; the project itself admits any newer release.
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?=
ONCE ?=
PYTEST := $(BIN)/pytest -n 3 --dist loadscope
# The interpreters that `make test-pythons` looks for; those that are missing are named and skipped.
PYTHONS ?= python3.11 python3.12 python3.13

.PHONY: setup demo test test-slow test-all test-pythons check lint types lock release-check clean

setup: $(READY)

# Versions come from requirements.lock, so two machines install the same; `make lock` renews it.
$(READY): pyproject.toml clients/python/pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint requirements.lock "$(TORCH)"
	$(BIN)/pip install --quiet --constraint requirements.lock --editable ".[dev]" --editable clients/python
	touch $@

demo: $(READY)
	$(BIN)/peterrec demo $(if $(DATA),--data "$(DATA)") $(if $(ONCE),--once)

# The everyday suite.
test: $(READY)
	$(PYTEST) -m "not gpu and not slow"

# Exhaustive searches, kills and restarts of servers, the documents' commands.
test-slow: $(READY)
	$(PYTEST) -m "not gpu and slow"

# Everything that needs no GPU.
test-all: test test-slow

# The everyday suite on every supported Python that is installed, each in an environment of its own.
test-pythons:
	@for python in $(PYTHONS); do \
		if command -v $$python >/dev/null; then \
			$(MAKE) test PYTHON=$$python VENV=.venv-$$python || exit 1; \
		else echo "$$python is not installed: not tested"; fi; \
	done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy judges the types; pyright must find every import as an editor would.
types: $(READY)
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python --level error

check: lint types test

lock:
	mkdir -p build && printf '%s\n' "$(TORCH)" >build/torch.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --no-header --no-annotate \
		--no-emit-index-url --no-emit-package peterrec-client --upgrade \
		--constraint build/torch.txt --output-file requirements.lock \
		pyproject.toml clients/python/pyproject.toml

# Both distributions built, installed in a clean environment in a foreign folder, and tried.
release-check: $(READY)
	$(BIN)/python tests/release/check.py --torch "$(TORCH)"

clean:
	rm -rf .venv .venv-* demo-data build dist *.egg-info src/*.egg-info clients/python/*.egg-info
