# Both commands of the README set up what they need, in .venv, the first time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Two test processes with one thread each are faster than one with two, and never wait for each other.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# One after the other, also where make is asked for more at once: they are timed.
BENCHMARKS := linearize_roberta linearize_peers store_size two_processes published_epoch certified_peers \
	certified_scaling larger_than_memory paper_protocol lambda_path audit_large landscape profile_jobs
IN_PARTS := linearize_peers certified_peers certified_scaling

.PHONY: demo test lint campaign bench $(addprefix bench-,$(BENCHMARKS)) results clean
.NOTPARALLEL:

demo: $(VENV)/.demo
	OMP_WAIT_POLICY=passive $(BIN)/tangentlora demo --output-dir runs/demo

test: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# About 20 minutes on 2 cores: random problems and forged run folders, held against extended precision.
campaign: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python campaign/random_certificates.py
	$(TEST_ENV) PYTHONPATH=tests $(BIN)/python campaign/forgeries.py

# Takes hours, alone on the machine; each result is written as soon as it is there.
bench: $(addprefix bench-,$(BENCHMARKS))
	$(BIN)/python benchmarks/pages.py
	$(BIN)/python benchmarks/profile_page.py

RUN = PYTHONPATH=tests $(BIN)/python benchmarks
RESULTS := benchmarks/results

$(addprefix bench-,$(filter-out $(IN_PARTS),$(BENCHMARKS))): bench-%: $(VENV)/.bench
	$(RUN)/$*.py --output $(RESULTS)/$*.json

# These take long: each of their parts has a result of its own.
bench-linearize_peers: $(VENV)/.bench
	for case in last all natural; do \
	  $(RUN)/linearize_peers.py --cases $$case --output $(RESULTS)/linearize_peers_$$case.json || exit; done

bench-certified_peers: $(VENV)/.bench
	$(RUN)/certified_peers.py --peers fista --output $(RESULTS)/certified_peers_fista.json
	$(RUN)/certified_peers.py --peers scs clarabel --output $(RESULTS)/certified_peers_cones.json

bench-certified_scaling: $(VENV)/.bench
	for scan in N K T; do \
	  $(RUN)/certified_scaling.py --scans $$scan --output $(RESULTS)/certified_scaling_$$scan.json || exit; done

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

$(VENV)/.bench: benchmarks/requirements.txt $(VENV)/.dev
	$(PIP) --no-deps --requirement benchmarks/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
