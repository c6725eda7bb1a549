# make test   everything that has to hold: linters, types, tests
# make demo   calibrates and profiles the embedded model, on a laptop
# Both set up .venv first; it is set up again only after pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
# Without compiling every module of every package, of which few are imported.
INSTALL := $(PY) -m pip install --disable-pip-version-check --no-compile -c constraints.txt

# One thread of XLA and of torch a test worker, since the workers share the cores.
TEST_ENV := NPROC=1 OMP_NUM_THREADS=1
# No question to a registry about newer releases.
LINT_ENV := PYRIGHT_PYTHON_IGNORE_WARNINGS=1

.PHONY: help demo test lint clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## calibrate and profile the embedded model into runs/demo
	$(PY) scripts/calibrate.py --config=configs/embedded.py --workdir=runs/demo
	$(PY) scripts/measure.py --config=configs/embedded.py --workdir=runs/demo

test: lint  ## lint, then the tests on WORKERS=2 processes
	$(TEST_ENV) $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test  ## ruff and pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(LINT_ENV) $(PY) -m pyright

clean:  ## remove .venv, caches, build leftovers and runs/demo
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) found; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python test" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is no Python 3.11 or newer ($$($(PYTHON) --version 2>&1 | head -n 1)); name one: make PYTHON=/path/to/python test" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/.created
	$(INSTALL) -e '.[test]'
	@touch $(VENV)/.installed $@
