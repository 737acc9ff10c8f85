# Every target works in .venv, which is made here, and renewed when pyproject.toml or constraints.txt is newer.
# A bare machine needs Python 3.11 or newer, with pip and venv, and nothing else.

PYTHON ?= python3
ARGS ?=
TEST_ARGS ?= -n auto
VENV := .venv
STAMP := $(VENV)/.installed
FRESH := build/constraints
# Twice quiet: no progress and no warnings of pip's, but every error.
INSTALL := -m pip install -qq --disable-pip-version-check
PACKAGE := --editable . --group dev

REQUIRE_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "ulmfit needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1). Pass one: make PYTHON=python3.11" >&2; \
	exit 1; }

.PHONY: help test check format demo bench constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

test: $(STAMP) ## run the tests; ARGS="-k tokenizer -x" goes to pytest
	@$(VENV)/bin/python -m pytest $(TEST_ARGS) $(ARGS)

check: $(STAMP) ## formatting, lint and types, changing nothing
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

format: $(STAMP) ## format the code and mend what lint can mend
	@$(VENV)/bin/ruff check --fix-only .
	@$(VENV)/bin/ruff format .

demo: $(STAMP) ## see ulmfit at work; ARGS go to `ulmfit demo`
	@$(VENV)/bin/ulmfit demo $(ARGS)

bench: $(STAMP) ## measure speed and memory beside peers, half an hour; ARGS="--only cpu-predict" for a part
	@$(VENV)/bin/python -m benchmarks cpu $(ARGS)

# torch comes first and by itself: it is by far the largest, and a failure there should say so. The group needs a
# newer pip than the one Python brings along, so pip itself is pinned with the rest.
$(STAMP): pyproject.toml constraints.txt
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { $(REQUIRE_PYTHON); $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing ulmfit and its tools into $(VENV): minutes the first time, seconds later."
	@$(VENV)/bin/python $(INSTALL) --constraint constraints.txt --upgrade pip
	@$(VENV)/bin/python $(INSTALL) --constraint constraints.txt torch
	@$(VENV)/bin/python $(INSTALL) --constraint constraints.txt $(PACKAGE)
	@touch $@

# Only torch keeps its line, since a new torch is a decision; the local tag of its build (+cpu) is no version of ours.
constraints: ## renew constraints.txt from a fresh environment; run it with the oldest Python supported
	@$(REQUIRE_PYTHON)
	@mkdir -p build
	@grep '^torch==' constraints.txt > $(FRESH).torch
	@$(PYTHON) -m venv --clear $(FRESH)
	@$(FRESH)/bin/python $(INSTALL) --upgrade pip
	@$(FRESH)/bin/python $(INSTALL) --constraint $(FRESH).torch torch
	@$(FRESH)/bin/python $(INSTALL) --constraint $(FRESH).torch $(PACKAGE)
	@echo '# What an environment of this project holds, to the version. `make constraints` renews all lines but torch,' > $(FRESH).txt
	@echo '# whose version is raised here by hand.' >> $(FRESH).txt
	@$(FRESH)/bin/python -m pip freeze --all --exclude-editable > $(FRESH).frozen
	@sed 's/^\(torch==[^+]*\)+.*/\1/' $(FRESH).frozen >> $(FRESH).txt
	@mv $(FRESH).txt constraints.txt
	@rm -rf $(FRESH) $(FRESH).torch $(FRESH).frozen

# .venv and runs/ stay: the one is slow to make, the other holds results.
clean: ## remove caches and built files
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
