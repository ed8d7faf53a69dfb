# One command each; every target creates what it needs in .venv from hashed lock files.
#   make demo  [ARGS="--bars 300 --speed max"]   real or synthetic candles through the whole pipeline
#   make test                                    the test suite
# PYTHON=python3.12 chooses the interpreter that the environment is made from.

VENV := .venv
BIN := $(VENV)/bin
STAMPS := .stamps
ARGS ?=
# Three at a time, also on two cores: half of the suite waits for processes, and each test has its
# own ports and folders.
PYTEST_ARGS ?= -n 3
SLOW_ARGS ?=
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c '$(NEW_ENOUGH)' 2>/dev/null; then echo $$p; break; fi; done)
# Where deploy/openmp.py puts what a slim Linux lacks; the loader ignores it elsewhere.
OPENMP := $(VENV)/lib/openmp
export LD_LIBRARY_PATH := $(CURDIR)/$(OPENMP)$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
# Quiet about itself, not about what it fetches. All of it goes to stderr: stdout is the command's.
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A full environment serves every target; otherwise the smallest that does.
DEMO_READY := $(if $(wildcard $(STAMPS)/dev),$(STAMPS)/dev,$(STAMPS)/demo)

.PHONY: help setup demo explore docker-test audit sbom test test-slow test-browser chaos test-clients check format bench lock docs site vendor \
	clean
.DELETE_ON_ERROR:

help:
	@echo "make demo [ARGS=...]   candles in, signals out, on this machine (itb demo --help)"
	@echo "make setup             only install, into .venv"
	@echo "make test              the test suite; make test-slow: the long tests;"
	@echo "                       make test-browser: pages in headless Chromium;"
	@echo "                       make test-clients: other people's Binance clients against the"
	@echo "                       simulator, each in its own environment"
	@echo "make explore           the property tests, with examples that no run has drawn before"
	@echo "make chaos             CHAOS_MINUTES (10) of random faults, compared with a batch run; then"
	@echo "                       CHAOS_SIGNALS (1000) to a trader that is killed every 20 s"
	@echo "make docker-test       the containers' demo on a Docker engine, killed and counted"
	@echo "make audit             known holes in what is installed; Kubernetes manifests"
	@echo "make sbom              the images' bill of materials (CycloneDX)"
	@echo "make check             format, lint and types; make format mends the format"
	@echo "make bench             the benchmarks"
	@echo "make docs              write the tables that README.md and docs/ take from the code"
	@echo "make site              the documentation as a site, in site/"
	@echo "make vendor            fetch the dashboard's charting library again (needs npm)"
	@echo "make lock              resolve the lock files again (UPGRADE=1: newest versions), all but"
	@echo "                       requirements-audit.lock"
	@echo "make clean             remove .venv, caches and work/: with it the bus and the paper"
	@echo "                       account of itb up"

setup: $(DEMO_READY)
	@echo "Ready: $(BIN)/itb --help"

demo: $(DEMO_READY)
	@$(BIN)/itb demo $(ARGS)

test: $(STAMPS)/dev
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(STAMPS)/dev
	@$(BIN)/python -m pytest -m slow $(SLOW_ARGS)

# The property tests with examples that no run has drawn before.
explore: $(STAMPS)/dev
	@HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -m "hypothesis and not slow" $(PYTEST_ARGS)

# Everything that can break does, at random. CHAOS_SEED=... (and CHAOS_ROUND=...) plays it again;
# CHAOS_MINUTES=480 before a release.
CHAOS_MINUTES ?= 10
chaos: $(STAMPS)/dev
	@CHAOS_MINUTES=$(CHAOS_MINUTES) $(BIN)/python -m pytest -m chaos -s tests/resilience tests/trader

# Tools of their own, which never mix with what is audited.
TOOLS := $(STAMPS)/tools
$(TOOLS)/.ready: requirements-audit.lock $(VENV)/pyvenv.cfg
	@$(BIN)/python -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip --disable-pip-version-check install -q --require-hashes --no-deps \
		-r requirements-audit.lock >&2
	@touch $@

audit: $(STAMPS)/dev $(TOOLS)/.ready
	@$(BIN)/python -m deploy.audit $(TOOLS)/bin

# The Python packages of the images, in CycloneDX. It checks what it writes against the schema; equal
# lock files give equal bytes.
SBOM := $(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	--validate --output-format JSON
sbom: $(TOOLS)/.ready
	@$(SBOM) requirements-live.lock -o sbom-live.json
	@$(SBOM) requirements-demo.lock -o sbom-trainer.json
	@echo "wrote sbom-live.json and sbom-trainer.json"

# The engine is stopped again if it was started for this; exit 3: no engine can be had here.
docker-test: $(STAMPS)/dev
	@tests/docker/engine.sh start
	@code=0; $(BIN)/python -m pytest -m docker -v -s -x tests/docker || code=$$?; \
	tests/docker/engine.sh stop; exit $$code

test-browser: $(STAMPS)/dev
	@if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then \
	echo "error: no Chromium found; install it (Debian, Ubuntu: apt install chromium)" >&2; exit 1; fi
	@$(BIN)/python -m pytest -m browser

# Each client in an environment of its own: two of them install the same top-level package.
CLIENTS := ccxt python-binance binance-connector binance-sdk-spot
CLIENTS_READY := $(CLIENTS:%=.venv-clients/%/ready)

test-clients: $(STAMPS)/dev $(CLIENTS_READY)
	@$(BIN)/python -m pytest -m clients

$(CLIENTS_READY): .venv-clients/%/ready: tests/clients/locks/%.lock | $(VENV)/pyvenv.cfg
	@echo "Installing $* into .venv-clients/$*" >&2
	@$(BIN)/python -m venv --clear .venv-clients/$*
	@.venv-clients/$*/bin/python -m pip --disable-pip-version-check install -q --require-hashes \
		--no-deps -r $< >&2
	@touch $@

check: $(STAMPS)/dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMPS)/dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMPS)/bench
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(DEMO_READY)
	@$(BIN)/python -m deploy.reference README.md docs/*.md docs/config.schema.json

# The documentation as a site, in an environment of its own.
site: .venv-docs/bin/mkdocs
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict -q
	@echo "The documentation is in site/index.html"

.venv-docs/bin/mkdocs: requirements-docs.lock $(VENV)/pyvenv.cfg
	@$(BIN)/python -m venv .venv-docs
	@.venv-docs/bin/python -m pip --disable-pip-version-check install -q --require-hashes --no-deps \
		-r $< >&2
	@touch $@

vendor: $(DEMO_READY)
	@$(BIN)/python -m deploy.vendor

clean:
	rm -rf $(VENV) .venv-docs site .venv-clients $(STAMPS) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	rm -rf work

$(VENV)/pyvenv.cfg:
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python 3.11 or newer found; install one, or say \
	which: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@if ! $(PYTHON) -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then echo "error: $(PYTHON) is not Python \
	3.11 or newer; say which: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import venv, ensurepip' >/dev/null 2>&1; then echo "error: $(PYTHON) lacks \
	its venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; fi
	@echo "Creating $(VENV) with $$($(PYTHON) --version)" >&2
	@$(PYTHON) -m venv $(VENV)

# $(call install,LOCK): the locked packages with their hashes, then this code in place.
define install
	@echo "Installing from $(1) into $(VENV)" >&2
	@$(PIP) install --require-hashes --no-deps -r $(1) >&2
	@$(PIP) install -q --no-deps --no-build-isolation -e . >&2
	@$(BIN)/python -m deploy.openmp $(OPENMP)
	@mkdir -p $(STAMPS) && touch $@
endef

$(STAMPS)/demo: requirements-demo.lock pyproject.toml $(VENV)/pyvenv.cfg
	$(call install,requirements-demo.lock)

$(STAMPS)/dev: requirements.lock pyproject.toml $(VENV)/pyvenv.cfg
	$(call install,requirements.lock)

$(STAMPS)/bench: requirements-bench.lock pyproject.toml $(VENV)/pyvenv.cfg
	$(call install,requirements-bench.lock)

# Same versions everywhere: requirements.lock is resolved first, the others within it.
# The build backend is locked too: nothing that is installed goes unhashed.
COMPILE = echo 'setuptools>=77' | $(BIN)/uv pip compile pyproject.toml - --generate-hashes --universal \
	--python-version 3.11 --no-header -q $(if $(UPGRADE),--upgrade)
lock: $(VENV)/pyvenv.cfg
	@$(BIN)/uv --version >/dev/null 2>&1 || $(PIP) install -q uv >&2
	$(COMPILE) --extra train --extra dev -o requirements.lock
	$(COMPILE) --extra train -c requirements.lock -o requirements-demo.lock
	$(COMPILE) -c requirements.lock -o requirements-live.lock
	$(COMPILE) --extra train --extra dev --extra bench -c requirements.lock \
		-o requirements-bench.lock
	@set -e; for client in $(CLIENTS); do echo "uv pip compile: $$client"; echo $$client | \
	$(BIN)/uv pip compile - --generate-hashes --universal --python-version 3.11 --no-header -q \
	$(if $(UPGRADE),--upgrade) -o tests/clients/locks/$$client.lock; done
	@echo 'mkdocs-material>=9.7' | $(BIN)/uv pip compile - --generate-hashes --universal \
	--python-version 3.11 --no-header -q $(if $(UPGRADE),--upgrade) -o requirements-docs.lock
