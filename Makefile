# Two commands are all a new user needs: `make demo` and `make test`. Both set up what they need, once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The constraints pin what was tested; pyproject.toml keeps the ranges wide.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check lint bench chaos test-vllm test-ui clean help

demo: $(VENV)/.engine ## Two policies, one workload, a real model: what KV-aware routing saves
	$(BIN)/jevons demo

test: $(VENV)/.dev ## All tests but those that need a real vLLM
	$(BIN)/python -m pytest -q $(ARGS)

lint: $(VENV)/.dev ## Style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint test ## Everything CI holds

bench: $(VENV)/.bench ## Every benchmark beside its peer, one after another; nothing else should run
	for bench in bench/*.py; do echo "== $$bench"; PYTHONPATH=. $(BIN)/python $$bench || exit 1; done

chaos: $(VENV)/.dev ## 20,000 requests, 50 kills, lines of all speeds: a quarter of an hour
	$(BIN)/python -m pytest -q -s -m chaos tests/chaos $(ARGS)

test-vllm: $(VENV)/.dev ## Against a real vLLM on CPU: a 3 GB environment of its own; JEVONS_VLLM=PROGRAM takes yours
	test -n "$$JEVONS_VLLM" || $(BIN)/python tests/vllm/install.py .vllm
	$(BIN)/python -m pytest -q -m vllm tests/vllm $(ARGS)

test-ui: $(VENV)/.dev ## The page in a real browser: needs chromium (Debian: apt install chromium); SCREENSHOTS=DIR keeps pictures
	JEVONS_SCREENSHOTS="$(SCREENSHOTS)" $(BIN)/python -m pytest -q -s -m ui tests/ui $(ARGS)

clean: ## Remove the environment and caches
	rm -rf $(VENV) .vllm build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "jevons needs Python 3.11 or newer"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: the constraint names the exact version, so that no other one is fetched beside it.
$(VENV)/.engine: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (PyTorch is the large part; about a minute) ..."
	$(INSTALL) torch
	$(INSTALL) -e '.[engine]'
	touch $@

$(VENV)/.dev: $(VENV)/.engine
	$(INSTALL) -e '.[engine,object,encrypt,gateway,charts,ui,dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(INSTALL) -e '.[engine,object,encrypt,gateway,charts,ui,dev,bench]'
	touch $@
