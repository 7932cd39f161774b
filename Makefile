# One command each. The first makes .venv in this checkout; later ones find it made.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLED := $(VENV)/.tooled

# `bench` runs all of them and fails if a bar of one does not hold.
.PHONY: demo test slow lint bench clean

demo: $(INSTALLED)
	$(BIN)/python -m aats.launch examples/healthcare

test: lint
	$(BIN)/python -m pytest -q

slow: $(TOOLED)
	$(BIN)/python -m pytest -q -m slow

lint: $(TOOLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(TOOLED)
	status=0; for bench in benchmarks/bench_*.py; do \
		$(BIN)/python $$bench || status=1; \
	done; exit $$status

clean:
	rm -rf $(VENV) runs dist build

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AATS needs Python 3.11 or newer (make PYTHON=python3.12 ...)")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(TOOLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test,dev,bench,rl]'
	touch $@ $(INSTALLED)
