PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements.txt requirements-test.txt constraints.txt
XDIST := -n auto --maxprocesses=8 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test check clean

setup: $(VENV)/.ready

$(VENV)/.ready: $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt \
		-c constraints.txt
	@touch $@

demo: setup
	$(BIN)/python main.py --config=configs/demo.py

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests -q $(XDIST)

# Lint, types and the quick tests: what to run before a commit.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests -q -m quick $(XDIST)

clean:
	rm -rf $(VENV) runs data .cache .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
