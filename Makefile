PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
AHEAD ?= .venv-ahead
REQUIREMENTS := requirements.txt requirements-test.txt constraints.txt
XDIST := -n auto --maxprocesses=8 --dist loadfile --no-loadscope-reorder

.PHONY: setup ahead ahead-check demo test check matrix clean

setup: $(VENV)/.ready

$(VENV)/.ready: $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt \
		-c constraints.txt
	@touch $@
	@echo "The packages are installed in $(VENV). $(BIN)/python main.py --help shows the commands."

# The compilers for TPUs and GPUs, for `python -m benchmarks.ahead`. Neither needs a device or a driver. They have an
# environment of their own, because JAX would otherwise look for TPUs and GPUs in every run.
ahead: $(AHEAD)/.ready

$(AHEAD)/.ready: requirements.txt requirements-tpu.txt requirements-cuda.txt constraints.txt
	$(PYTHON) -m venv $(AHEAD)
	$(AHEAD)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
		-r requirements-tpu.txt -r requirements-cuda.txt -c constraints.txt
	@touch $@

# Compiles six training steps again and names those that are worse than the committed estimates, in some 20 minutes.
RECORDED ?= $(lastword $(sort $(wildcard benchmarks/results/ahead-*.jsonl)))

ahead-check: ahead
	$(AHEAD)/bin/python -m benchmarks.ahead --check=$(RECORDED)

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

# All tests and the demo in fresh environments of several Pythons and versions: some two hours. ONLY="NAME NAME" selects
# environments. FRESH=1 also runs those that have passed.
matrix: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/matrix.py $(if $(FRESH),--fresh) $(ONLY)

clean:
	rm -rf $(VENV) $(AHEAD) runs data .cache .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
