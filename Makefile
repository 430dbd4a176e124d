# `make demo`, `make test`, `make test-all` and `make docs`: each sets up .venv from the lock file when it is missing or older than it.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

# Two spinning OpenMP threads on busy cores are many times slower than one.
export OMP_NUM_THREADS ?= 1
# Without compiled files every process that a test starts would compile PyTorch's and Lightning's
# sources anew: six seconds each.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-fast test-all check docs clean

demo: $(INSTALLED)
	$(VENV)/bin/python scripts/demo.py

# Every fact, most of them once and small.
test: $(INSTALLED)
	$(PYTEST) -m "not proof"

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow"

# The long tests too: every adapter compiled, long chains, Ray, all launchers, and the GPU kernels
# compiled. These need Triton; 3.7.1 is the version that PyTorch 2.13 for CUDA installs.
test-all: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --no-compile 'triton==3.7.1; sys_platform == "linux"'
	$(PYTEST)

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

# The pages of docs/ as a site in site/; a warning is an error.
docs: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --no-compile 'mkdocs-material==9.8.2' 'mkdocstrings[python]==1.0.8' \
		'mkdocs-jupyter==0.26.3'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

# Python compiles what is used when it is used; all of it beforehand takes half a minute.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]} (make PYTHON=...)")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) runs site
