# Both commands of the README set up what they need, in .venv, the first time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Two test processes with one thread each are faster than one with two, and never wait for each other.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test lint bench results clean

demo: $(VENV)/.demo
	OMP_WAIT_POLICY=passive $(BIN)/tangentlora demo --output-dir runs/demo

test: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/linearize_roberta.py --output benchmarks/results/linearize_roberta.json
	$(BIN)/python benchmarks/paper_protocol.py --output benchmarks/results/paper_protocol.json
	$(BIN)/python benchmarks/lambda_path.py --output benchmarks/results/lambda_path_support.json
	$(BIN)/python benchmarks/audit_large.py --output benchmarks/results/audit_large.json
	PYTHONPATH=tests $(BIN)/python benchmarks/landscape.py --output benchmarks/results/landscape.json

# docs/results.md and its figures, from the committed results
results: $(VENV)/.dev
	$(BIN)/python -m tangentlora.report.study results docs/results.md

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
