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

# What builds images: docker, podman or buildah. The latter two need their own format for health checks.
CONTAINERS ?= docker
TARGET ?= cpu
BASE_IMAGE ?= python:3.12-slim
IMAGE ?= peterrec-serving

.PHONY: image setup demo test test-slow test-ray test-all test-pythons check lint types lock release-check clean

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

# What runs on Ray, which is large and which nothing else needs.
test-ray: $(READY)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable ".[dev,ray]"
	$(BIN)/pytest -q tests/e2e/on_ray

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

# The image of the service; docs/containers.md. IMAGE_OPTIONS are those of the builder, such as --volume.
image:
	$(if $(filter buildah,$(CONTAINERS)),buildah bud --layers,$(CONTAINERS) build) \
		$(if $(filter docker,$(CONTAINERS)),,--format docker) $(IMAGE_OPTIONS) \
		--file docker/Dockerfile --target $(TARGET) --tag $(IMAGE) \
		--build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg TORCH="$(TORCH)" \
		--build-arg VERSION=$$(cat VERSION) --build-arg REVISION=$$(git rev-parse HEAD) .

# Both distributions built, installed in a clean environment in a foreign folder, and tried.
release-check: $(READY)
	$(BIN)/python -m tests.release.check --torch "$(TORCH)"

clean:
	rm -rf .venv .venv-* demo-data build dist *.egg-info src/*.egg-info clients/python/*.egg-info
