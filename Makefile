# Two commands set everything up: `make estimate` and `make test`. Only Python 3.11 or newer and make are needed.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help estimate test test-slow lint format bench bench-short bench-report bench-peers bench-peers-short \
	bench-training bench-training-short \
	soundness clean python

# The first interpreter that is new enough; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install -qq -c constraints.txt

help:
	@echo "make estimate   install, and bound the trained digits network of examples/ on an embedded Ray"
	@echo "make test       install the test tools, then ruff, mypy and the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make bench      the benchmarks, into benchmarks/results (hours); bench-short is a smoke run of minutes"
	@echo "make bench-peers  the same networks by other tools too (hours; goes on where it stopped); bench-peers-short in minutes"
	@echo "make bench-training  certified training on digits, and what each bound adds (an hour); bench-training-short in minutes"
	@echo "make soundness  10,000 random networks bounded, verified and attacked (an hour or two; goes on where it stopped)"
	@echo "make lint       ruff and mypy only"
	@echo "make format     let ruff rewrite"
	@echo "make clean      remove the environment and caches"

estimate: $(VENV)/.installed
	$(BIN)/lipray estimate examples/digits_cnn.py:digits_cnn --weights examples/digits_cnn.safetensors --input-shape 1,8,8

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# The fuzzer is installed where there is a wheel for it; without it its test is skipped.
test-slow: $(VENV)/.installed-test
	-$(PIP) --only-binary=atheris -e ".[fuzz]"
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Interrupted, it goes on where it stopped. Single benchmarks: see the head of benchmarks/*.py.
BENCHMARKS := tightness speed partition compositions frequency sizes depth peak rounds verification service sweep
bench: $(VENV)/.installed-bench
	@failed=; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || failed=1; done; \
	$(MAKE) --no-print-directory bench-report && test -z "$$failed"

# Digits by certified training: three seeds beside plain training in a quarter of an hour, and what each bound adds.
bench-training: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/training.py
	$(MAKE) --no-print-directory bench-report

bench-training-short: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/training.py --short

bench-short: $(VENV)/.installed-bench
	@failed=; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --short || failed=1; done; test -z "$$failed"

soundness: $(VENV)/.installed-test
	$(BIN)/python benchmarks/soundness.py --executor ray

# The README's tables and the plots of docs/img, from benchmarks/results.
bench-report: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/publish.py

# The same networks by solvers and methods of others. A peer that does not install is left out, and its rows say so.
bench-peers: $(VENV)/.installed-bench peers
	cd benchmarks && ../$(BIN)/python -m peers
	$(MAKE) --no-print-directory bench-report

bench-peers-short: $(VENV)/.installed-bench peers
	cd benchmarks && ../$(BIN)/python -m peers --short

.PHONY: peers
peers: $(VENV)/.installed-bench
	-$(PIP) --only-binary=sdpa-python -e ".[peers]"

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Installs happen once, and again when what is to be installed has changed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing lipray and what it needs into $(VENV)"
	$(PIP) torch
	$(PIP) -e ".[report]"
	@touch $@

# Without the server of S3 its tests are skipped.
$(VENV)/.installed-test: pyproject.toml constraints.txt $(VENV)/.installed
	@echo "installing the test tools into $(VENV)"
	$(PIP) -e ".[test]"
	-$(PIP) -e ".[test-s3]"
	-$(PIP) -e ".[test-deploy]"
	@touch $@

$(VENV)/.installed-bench: pyproject.toml constraints.txt $(VENV)/.installed-test
	@echo "installing the benchmark tools into $(VENV)"
	$(PIP) -e ".[bench]"
	@touch $@

$(BIN)/python: | python
	$(PYTHON) -m venv $(VENV)

python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer was found; install one, or run make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; run make PYTHON=/path/to/python" >&2; exit 1; }
