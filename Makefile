# Everything a bare machine with Python 3.10 to 3.13 needs: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-quick test-long test-guides test-matrix downstream lint format bench clean

demo: $(STAMP)
	$(BIN)/sdhub demo

# Files side by side, each process on one thread: torch's threads would fight for the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# What needs no built variant: for the way of working.
test-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
		-m 'not slow and not downstream and not matrix and not guides and not long'

# Single files and EDM checkpoints through whole builds, and a LoRA published: minutes each.
test-long: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m long

# Every command and every Python block of README and docs/ as it stands there; `make test` has the quick ones.
test-guides: $(STAMP)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "guides or not guides" tests/test_docs.py

# At the newest and the oldest versions that pyproject.toml allows: the base installation, and the libraries.
test-matrix: $(STAMP)
	$(BIN)/python -m pytest -m matrix tests/matrix

# In an environment of its own, as a user without sdhub has it.
downstream: $(STAMP)
	$(BIN)/python -m pytest -m downstream

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m sdhub.cli.reference | diff docs/cli.md -  # make format writes it anew
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m sdhub.cli.reference > docs/cli.md

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) .venvs

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
