# Both commands of the README set up what they need, in .venv, the first time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL) --constraint constraints.txt
# Two test processes with one thread each are faster than one with two, and never wait for each other.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# One after the other, also where make is asked for more at once: they are timed.
BENCHMARKS := linearize_roberta linearize_peers store_size two_processes published_epoch certified_peers \
	certified_scaling larger_than_memory paper_protocol lambda_path audit_large landscape profile_jobs
IN_PARTS := linearize_peers certified_peers certified_scaling

# Representative tests of what every run goes through: rows of networks, problems, solvers, certificates, adapters,
# opening checkpoints, one fit from the command line. 3 to 4 minutes of processor time; long paths are left out.
CORE := tests/tangent/test_jacobian.py tests/tangent/test_linearize.py tests/tangent/test_plan.py tests/problem \
	tests/solvers/test_core.py tests/solvers/test_factored.py tests/solvers/test_partial_svd.py \
	tests/solvers/test_proximal.py tests/solvers/test_certified.py::test_the_tolerance_is_met \
	tests/theory/test_certificate.py tests/theory/test_gap_bounds.py tests/theory/test_rank_bound.py \
	tests/theory/test_verify.py tests/adapters/test_read.py tests/adapters/test_write.py \
	tests/adapters/test_live.py tests/adapters/test_fit.py tests/models/test_load.py \
	tests/test_cli.py::test_the_same_seed_gives_the_same_files
PYTHONS ?= 3.12

.PHONY: demo test test-oldest test-pythons lint campaign bench $(addprefix bench-,$(BENCHMARKS)) results clean
.NOTPARALLEL:

demo: $(VENV)/.demo
	OMP_WAIT_POLICY=passive $(BIN)/tangentlora demo --output-dir runs/demo

test: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

# With the lowest versions that pyproject.toml allows; the first time downloads 3 GB, a CUDA build of torch.
test-oldest: .venv-oldest/.dev
	$(TEST_ENV) .venv-oldest/bin/python -m pytest -n 2 $(CORE)

.venv-oldest/.dev: pyproject.toml constraints-oldest.txt
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(INSTALL) --constraint constraints-oldest.txt --editable '.[test]'
	touch $@

# With other interpreters: `pythonX.Y` on PATH, one of pyenv's, or one that uv knows; what is missing is said.
# Where pip finds no other build of the pinned torch, the first time downloads 3 GB for each, a CUDA build.
test-pythons:
	@ran=0; for v in $(PYTHONS); do \
	  python=$$(for p in python$$v $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$v.*/bin/python \
	      "$$(uv python find --no-python-downloads $$v 2>/dev/null)"; do \
	    "$$p" -c 'import venv' 2>/dev/null && { echo "$$p"; break; }; done); \
	  if test -z "$$python"; then echo "Python $$v is not here: not tested."; continue; fi; \
	  ran=1; echo "Python $$v: $$python"; env=.venv-$$v; \
	  test -x $$env/bin/python || "$$python" -m venv $$env || exit; \
	  $$env/bin/python $(INSTALL) --constraint constraints.txt --editable '.[test]' || exit; \
	  $(TEST_ENV) $$env/bin/python -m pytest -n 2 $(CORE) || exit; \
	done; test $$ran = 1 || { echo "None of Python $(PYTHONS) is here."; exit 1; }

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
	rm -rf $(VENV) .venv-* build dist .pytest_cache .mypy_cache .ruff_cache
