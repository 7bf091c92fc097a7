# Two commands: `make demo` and `make test`. Each sets up what it needs, once, and says what it left out and why.
# On Debian 12 as root that includes Debian's packages; otherwise they run with what is there.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
# More for pytest: make test ARGS="-k ledger --long"
ARGS ?=
# Worker processes of the tests. Servers are shared between them; most tests wait for those, so more than one a core.
WORKERS ?= 4

.PHONY: help
help:
	@sed -n 's/^## //p' Makefile

## make demo           the story, from end to end (seconds; under two minutes from nothing)
.PHONY: demo
demo:
	@bash scripts/setup apt-demo venv-demo
	mkdir -p demo
	$(PYTHON) examples/quickstart.py --picture demo/host.svg $(ARGS)

## make test           linters, types, layers, and every test on real servers; ARGS="..." goes to pytest
.PHONY: test
test:
	@bash scripts/setup apt-test venv-test plain cinder guest placement nova clients
	$(MAKE) --no-print-directory check
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup --durations=15 $(ARGS)

## make lint           ruff, mypy --strict, pyright, import-linter
.PHONY: lint
lint:
	@bash scripts/setup apt-demo venv-test
	$(MAKE) --no-print-directory check

.PHONY: check
check:
	@set -x
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	PATH=$(CURDIR)/.venv/bin:$$PATH .venv/bin/pyright --verifytypes cloudcore --ignoreexternal
	PATH=$(CURDIR)/.venv/bin:$$PATH .venv/bin/pyright
	.venv/bin/lint-imports --no-cache

## make bench          the benchmarks beside their peers; AREA=listing runs one
.PHONY: bench
bench:
	@bash scripts/setup apt-test venv-test placement nova served clients
	$(PYTHON) -m bench.run $(AREA)

## make release-check  sdist and wheel in dist/, checked, and tried on bare Pythons and with the oldest dependencies
.PHONY: release-check
release-check:
	scripts/release-check --lowest --sbom $(ARGS)

## make figures        the page of figures, of what make bench has measured
.PHONY: figures
figures:
	$(PYTHON) -m bench.figures

## make docs           the site, in build/site; its code blocks are run by: make test ARGS=tests/test_docs.py
.PHONY: docs
docs:
	@bash scripts/setup apt-demo venv-test
	$(PYTHON) -m sphinx -q -W --keep-going -j auto docs build/site
	echo "open build/site/index.html"

## make placement-api  serve OpenStack's Placement API; DATABASE=url, PORT=8778
.PHONY: placement-api
placement-api:
	@bash scripts/setup apt-demo venv-test
	cd examples
	PLACEMENT_DATABASE=$(or $(DATABASE),sqlite:///placement.db) exec ../$(PYTHON) -m uvicorn --factory \
	  placement_api.app:create_app --port $(or $(PORT),8778)

## make services-up    start PostgreSQL, MariaDB, Ceph, Cinder and two libvirt hosts, and leave them running
.PHONY: services-up
services-up:
	@bash scripts/setup apt-test venv-test cinder guest
	$(PYTHON) -m tests.services up

## make services-down  stop them
.PHONY: services-down
services-down:
	@$(PYTHON) -m tests.services down

## make clean          remove environments, caches and what tools have left
.PHONY: clean
clean:
	@[ ! -x $(PYTHON) ] || $(PYTHON) -m tests.services down
	rm -rf .venv .cache build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
