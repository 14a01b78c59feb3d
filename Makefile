# `make` lists the targets. Every one of them installs what it needs first.

PYTHON ?= python3
DEMO   ?= --plan partitions/krizhevsky2012.yaml --steps 12 --set training.lr=0.004
TESTS  ?= tests

PY      := .venv/bin/python
STAMP   := .venv/.installed
CHECKED := orchestrator tests $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench constraints clean
MAKEFLAGS += --no-print-directory

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv with everything (PYTHON=python3.11 picks another Python)

# Runs again when a requirement changes; code needs no second run, the install is editable.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "orchestrator needs Python 3.10 or newer; found for '$(PYTHON)':" \
	       "$$($(PYTHON) --version 2>/dev/null || echo nothing). Name another: make install PYTHON=python3.11" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into .venv (minutes the first time: torch and Ray are large) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
	@echo "installed: $$($(PY) --version), $$($(PY) -m pip list --format=freeze --disable-pip-version-check | grep -E '^(torch|ray)==' | tr '\n' ' ')"

demo: install  ## train AlexNet on two ranks, split as in 2012; DEMO=... replaces the arguments
	@$(PY) -m orchestrator.run $(DEMO)

test: install  ## run every test; TESTS='-m "not ray" tests/program' picks some
	@$(PY) -m pytest $(TESTS)

lint: install  ## ruff, ruff format, mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy $(CHECKED)

format: install  ## let ruff rewrite what it can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: install  ## run every file of benchmarks/
	@$(PY) -m benchmarks

# Prints what .venv holds as constraints. A version that has left Python 3.10 behind binds on newer ones only,
# and a local label such as +cpu is dropped, so that any build of that version will do.
define CONSTRAINTS
from importlib.metadata import distributions
head = open("constraints.txt", encoding="utf-8").read().split("\n\n")[0]
pins = {}
for d in distributions():
    if d.name not in ("orchestrator", "pip"):
        old = not any(f">=3.{n}" in (d.metadata["Requires-Python"] or "") for n in range(11, 20))
        marker = "" if old else " ; python_version >= '3.11'"
        pins[d.name.lower()] = f"{d.name}=={d.version.split('+')[0]}{marker}"
print(head, "", *(pins[k] for k in sorted(pins)), sep="\n")
endef
export CONSTRAINTS

constraints:  ## rewrite constraints.txt from what .venv holds now
	@$(PY) -c "$$CONSTRAINTS" > .venv/constraints.txt && mv .venv/constraints.txt constraints.txt

clean:  ## remove caches and build output; .venv and runs/ stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
