# netinv: `make` shows what can be made.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# Real image data sets, where there are some. Without them everything works on digits and generated images.
ifeq ($(NETINV_DATA),)
  NETINV_DATA := $(realpath ../shared/data)
endif
export NETINV_DATA

# Tests that drive a browser or start kernels by twos, for which two at once would be four.
ALONE := docs notebooks studio widgets

.PHONY: help demo test docs readme clean

help:
	@echo "make demo    set up, then invert and audit classifiers of handwritten digits into runs/demo (two minutes or three)"
	@echo "make test    set up, then pass the tests"
	@echo "make docs    set up, then build the documentation site in _docs"
	@echo "make readme  write README.md from nbs/index.ipynb"
	@echo "make clean   remove what the above made, .venv included"
	@echo
	@echo "PYTHON=python3.12 picks the interpreter for .venv; NETINV_DATA=folder says where real data sets are."

demo: $(VENV)/.runtime
	$(BIN)/netinv run nbs/experiments/fig2_inversion.ipynb --profile cpu -p datasets digits -p n_generators 2 -p steps 150 --out runs/demo
	$(BIN)/netinv audit --demo --budget 1min --out runs/demo/audit || [ $$? = 1 ]  # 1: a threshold is missed, no mishap

test: $(VENV)/.dev
	$(BIN)/python tools/check_notebooks.py
	$(BIN)/python tools/readme.py --check
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing  # two threads of one notebook wait for each other
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -ra --numprocesses 2 --dist loadfile $(ALONE:%=--ignore=tests/test_%.py)
	$(BIN)/python -m pytest -ra $(ALONE:%=tests/test_%.py)

readme: $(VENV)/.dev
	$(BIN)/python tools/readme.py

docs: $(VENV)/.dev
	$(BIN)/python tools/docs.py

clean:
	rm -rf $(VENV) _docs _proc build dist *.egg-info .pytest_cache .hypothesis nbs/nbdev.yml runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is made once. It holds what running takes (.runtime) or that and what development takes (.dev),
# and is brought up to date when a requirement changes.

$(VENV)/.made:
	@command -v $(PYTHON) > /dev/null || { echo "there is no $(PYTHON) here: netinv needs Python 3.10 or newer, which \
	another name may have, such as make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "netinv needs Python 3.10 or newer, and \
	$(PYTHON) is $$($(PYTHON) --version 2>&1): name another one, such as make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install \
	its venv module (python3-venv on Debian and Ubuntu) or name another one, such as make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.runtime: settings.ini setup.py constraints.txt | $(VENV)/.made
	@echo "installing into $(VENV); PyTorch is large, so this takes a minute or more"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: settings.ini setup.py constraints.txt | $(VENV)/.made
	@echo "installing into $(VENV) with the development tools; PyTorch is large, so this takes a minute or more"
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.runtime
