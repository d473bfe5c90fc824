# `make demo` and `make test` need Python 3.10 or newer and the package index, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo street test lint bench cards clean

demo: .venv/ready-demo
	$(BIN)/python examples/street/demo.py --output demo

# Trains the small world's models into street/, about half an hour on one core, and prints its tables.
street: .venv/ready-demo
	$(BIN)/python examples/street/workbench.py --output street
	$(BIN)/python examples/street/tables.py --models street

test: .venv/ready-test lint
	$(BIN)/python -m pytest -n 2 -q

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Measures whole processes against a ten-line script; takes minutes and several GB of /tmp.
bench: .venv/ready-test
	$(BIN)/python tests/bench/run.py
	$(BIN)/python tests/bench/metrics.py

# Renders the cards of the examples again; the tests compare them.
cards: .venv/ready-test
	$(BIN)/python tests/render_cards.py

clean:
	rm -rf .venv demo street merged .mypy_cache .ruff_cache .hypothesis build dist

# torch first and pinned: the index's newest one is a CUDA build of several GB.
.venv/torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "lwmm-hub needs Python 3.10 or newer; pass PYTHON=python3.12 or so")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	touch $@

.venv/ready-demo: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# cityscapesScripts, whose scores the tests compare ours with, without what its tools need: among
# that are programs for the terminal and a copy of `typing` for Python 3.4.
.venv/ready-test: .venv/ready-demo
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps cityscapesScripts==2.3.0 pyquaternion==0.9.9
	touch $@
