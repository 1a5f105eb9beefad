# A fresh machine needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# The kit for adapters is tried with Node's `ws`, where there is npm.
NODE := $(if $(shell command -v npm),tests/node/node_modules)
MINUTES ?= 30
DATABASE ?= sqlite
# A worker for each processor, four at most; of the tests of one file, one runs at a time, and the
# files are in the order of tests/conftest.py.
WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Each worker of pytest, and each clarad that a test starts, would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install run quick test test-systemd deb image lint format bench bench-sandbox generate \
    engines engines-stop soak lock clean

help: ## Say what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 15

install: $(INSTALLED) $(NODE) ## Make the environment in .venv, with the versions in requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clarad needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

tests/node/node_modules: tests/node/package-lock.json
	npm ci --prefix tests/node --silent --no-audit --no-fund
	@touch $@

run: $(INSTALLED) ## Start the daemon in the foreground, with the echo responder
	@exec $(BIN)/clarad run

quick: lint ## Lint, and run the tests that need no engine, PostgreSQL, soak or process of clarad's
	$(BIN)/pytest $(WORKERS) --hypothesis-profile quick \
	    -m 'not (engine or postgres or soak or process or systemd)'

test: $(INSTALLED) $(NODE) ## Run every test; those of the sandboxes on each engine that answers
	$(BIN)/pytest $(WORKERS)

test-systemd: $(INSTALLED) ## Run the tests of the package under a real systemd (as root, Debian 12)
	@.ci/engines/machines
	$(BIN)/pytest -m systemd tests/on_systemd

deb: $(INSTALLED) ## Build the Debian package in dist/
	@packaging/deb

engines: ## Install, start and provide Docker and Incus for the tests (as root, Debian 12)
	@.ci/engines/start

engines-stop: ## End those engines, and all that runs in them
	@.ci/engines/stop

image: $(INSTALLED) ## Build the Docker image `clarad`, which compose.yaml runs
	docker build --tag clarad --build-arg CLARAD_VERSION="$$($(BIN)/python -m hatchling version)" .

lint: $(INSTALLED) ## Check style and types, and that generated files are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/generate.py --check

format: $(INSTALLED) ## Put the code into the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## Measure, beside a bare server
	$(BIN)/python -m bench

bench-sandbox: $(INSTALLED) ## Measure the sandboxes, on each engine that answers
	$(BIN)/python -m bench.sandbox

soak: $(INSTALLED) ## Run a daemon for MINUTES=30, with all that can go wrong (DATABASE=postgresql: two)
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --database $(DATABASE)

generate: $(INSTALLED) ## Write the files that are made from code: docs/bounds.md, systemd/clarad.catalog
	$(BIN)/python .ci/generate.py

lock: ## Resolve requirements.lock anew, and what of it is packaged (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-annotate --extra postgres --group dev --group build pyproject.toml \
	    --output-file requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-annotate --extra postgres --constraint requirements.lock pyproject.toml \
	    --output-file packaging/requirements.lock

clean: ## Remove the environment and what the tools have left
	rm -rf .venv tests/node/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
