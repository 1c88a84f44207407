PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

demo: setup
	$(BIN)/python main.py --config=configs/demo.py

test: setup
	$(BIN)/python -m pytest tests -q -n auto --maxprocesses=8 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) runs data .cache .pytest_cache
