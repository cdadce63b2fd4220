# Two commands do everything on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What CI runs. torch comes first and by exact version. Where the package index has CUDA builds only, a CPU machine
# saves gigabytes with an index of CPU builds: make PIP_ARGS='--index-url ...' TORCH=torch==2.13.0 install
TORCH ?= torch==2.13.0
# GPU kernels are tested on CPUs in Triton's interpreter
TRITON ?= triton==3.6.0
PIP_ARGS ?=
MODEL ?=
ARGS ?=

.PHONY: help install serve test test-slow check format clean

help:
	@echo "make serve [MODEL=path] [ARGS='--port 8001']   set up and start the server (default: the bundled demo model)"
	@echo "make test                                      set up and run the tests"
	@echo "make test-slow                                 the longer ones"
	@echo "make check                                     ruff, mypy --strict, import directions"
	@echo "make format                                    ruff format and fixes"

$(STAMP): pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "albireo needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(TORCH) $(TRITON)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .[dev]
	@touch $(STAMP)

install: $(STAMP)

serve: $(STAMP)
	@$(BIN)/albireo-run serve $(MODEL) $(ARGS)

# those that start servers want both cores for themselves
WITH_SERVERS := $(addprefix tests/,bench chat doctor e2e supervisor tune)
test: $(STAMP)
	$(BIN)/pytest -n 2 --dist loadfile $(addprefix --ignore=,$(WITH_SERVERS))
	$(BIN)/pytest $(WITH_SERVERS)

test-slow: $(STAMP)
	$(BIN)/pytest -m "slow and not gpu"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_imports.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find albireo tests tools -name __pycache__ -type d -exec rm -rf {} +
