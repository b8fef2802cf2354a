# make demo, make test, make bench: each makes a virtual environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH ?=

.PHONY: demo test bench lint types clean

demo: $(VENV)/installed
	$(BIN)/excise demo --overwrite

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 8 --dist worksteal

# speed and memory; models, texts and rows are options of the script: make bench BENCH="--model bad --train train.parquet" (docs/performance.md)
bench: $(VENV)/installed
	$(BIN)/python benchmarks/speed.py $(BENCH)

types: $(VENV)/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) excise-demo

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed, this is ' + sys.version) if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: the plain name would bring gigabytes of CUDA packages to a machine without a GPU.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
