# The two commands of a newcomer are `make train` and `make test`; everything is set up on the way.
#
#   make train        trains the quick preset on 3BPA; ends with an error table and plots
#   make test         the test suite, mace-torch comparisons included
#   make test-all     the slow checks and the comparisons with NequIP as well
#   make lint         ruff, mypy, pyright
#   make wheel        builds a wheel and tries it in a fresh environment
#
# TORCH picks the torch to install, e.g. `make train TORCH=torch` for CUDA wheels.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
PRESET ?= 3bpa-quick

# Data is read from ../shared/data where that exists; elsewhere the data set's own lookup applies.
ifneq ($(wildcard ../shared/data),)
export EQTP_DATA ?= $(abspath ../shared/data)
endif

VENV := .venv
MACE_VENV := .venv-mace
NEQUIP_VENV := .venv-nequip
PIP_FLAGS := --quiet --disable-pip-version-check

.PHONY: train test test-all lint wheel clean

train: $(VENV)/.train
	$(VENV)/bin/eqtp train $(PRESET)

test: $(VENV)/.dev $(MACE_VENV)/.dev
	$(VENV)/bin/python -m pytest -m "not slow and not mace" -n 2 --dist loadfile
	$(MACE_VENV)/bin/python -m pytest -m "mace and not slow" tests/mace

test-all: $(VENV)/.dev $(MACE_VENV)/.dev $(NEQUIP_VENV)/.dev
	$(VENV)/bin/python -m pytest -m "not mace" -n 2 --dist loadfile
	$(MACE_VENV)/bin/python -m pytest -m mace tests/mace
	$(NEQUIP_VENV)/bin/python -m pytest tests/nequip

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy eqtp tests
	$(VENV)/bin/pyright

wheel: $(VENV)/.dev
	$(VENV)/bin/python -m build --wheel --outdir dist .
	.ci/try-wheel dist/*.whl "$(PYTHON)" "$(TORCH)"

# torch comes first and alone: a range would let pip fetch the newest build with CUDA.
$(VENV)/.train: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install $(PIP_FLAGS) "$(TORCH)"
	$(VENV)/bin/pip install $(PIP_FLAGS) --editable .
	touch $@

# Triton interprets and compiles its kernels without a GPU; the pin is that of the table of registers.
$(VENV)/.dev: $(VENV)/.train
	$(VENV)/bin/pip install $(PIP_FLAGS) --editable ".[dev]" "$(TRITON)"
	touch $@

# mace-torch pins e3nn 0.4.4, so its comparisons live in an environment of their own.
$(MACE_VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(MACE_VENV)
	$(MACE_VENV)/bin/pip install $(PIP_FLAGS) "$(TORCH)"
	$(MACE_VENV)/bin/pip install $(PIP_FLAGS) mace-torch==0.3.16 --editable ".[test]"
	touch $@

# NequIP needs e3nn 0.6, the other side of mace-torch's pin.
$(NEQUIP_VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(NEQUIP_VENV)
	$(NEQUIP_VENV)/bin/pip install $(PIP_FLAGS) "$(TORCH)"
	$(NEQUIP_VENV)/bin/pip install $(PIP_FLAGS) nequip==0.19.1 --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(MACE_VENV) $(NEQUIP_VENV) build dist *.egg-info
