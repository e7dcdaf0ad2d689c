# make help lists the targets. Everything runs in .venv, which `make venv` builds.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Where CPU wheels of torch come from on Linux without an NVIDIA GPU; empty takes pip's own sources.
TORCH_INDEX ?= $(shell if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 \
  && ! $(PYTHON) -m pip config list 2>/dev/null | grep -q find-links && [ -z "$$PIP_FIND_LINKS" ]; \
  then echo https://download.pytorch.org/whl/cpu; fi)
TORCH := torch==2.13.0
# Telemetry off, no hub: the tests and the demo need neither.
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
WORKERS ?= 2
PYTEST := $(OFFLINE) OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m pytest
# A base of its own instead of the shipped one, in its own folder, with the settings that made that one.
FULL_TRAIN := --per_method.pretrain.train
FULL := --demo.root runs/demo-full --per_method.pretrain.policy.path null \
  $(FULL_TRAIN).max_steps 3000 $(FULL_TRAIN).learning_rate 1.2e-3 $(FULL_TRAIN).warmup_steps 100 \
  $(FULL_TRAIN).per_device_train_batch_size 24 $(FULL_TRAIN).weight_decay 0.1
SLOW := slow or distributed or parity or learning or faults

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-full demo-short test test-slow test-distributed test-faults test-engines test-nightly lint docs bench bench-full clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

venv: $(STAMP)  ## build .venv and install what the demo and the tests need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "Python 3.10 or newer is needed ($(PYTHON) is $$($(PYTHON) --version 2>&1))."; \
	    echo "Install it:  sudo apt-get install python3 python3-venv   or name one: make venv PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing."; \
	    echo "Install it:  sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch (CPU wheel where there is no GPU) and the packages of pyproject.toml ..."
	@if [ -n "$(TORCH_INDEX)" ]; then \
	  $(PY) -m pip install -q --retries 1 --timeout 30 --extra-index-url "$(TORCH_INDEX)" "$(TORCH)" || \
	  $(PY) -m pip install -q "$(TORCH)"; \
	else $(PY) -m pip install -q "$(TORCH)"; fi
	$(PY) -m pip install -q -c constraints.txt -e '.[demo,dev]'
	@touch $@

demo: $(STAMP)  ## the whole pipeline on embedded data: runs/demo/report.html
	$(OFFLINE) $(PY) recipes/demo.py --config recipes/configs/demo.yaml

demo-full: $(STAMP)  ## the same with the base model trained from nothing (over an hour more)
	$(OFFLINE) $(PY) recipes/demo.py --config recipes/configs/demo.yaml $(FULL)

demo-short: $(STAMP)  ## every stage at smoke size in a temporary folder, checked to the end
	root=$$(mktemp -d) && trap 'rm -rf "$$root"' EXIT && \
	  $(OFFLINE) $(PY) recipes/demo.py --config recipes/configs/smoke.yaml --demo.root "$$root"

test: $(STAMP)  ## the fast tests
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "not ($(SLOW) or engines or nightly)"

test-slow: $(STAMP) compiler  ## several processes, faults, parity with trl, learning: the marked tests
	failed=0; $(PYTEST) -n $(WORKERS) --dist loadfile -m "($(SLOW)) and not (distributed or engines or nightly)" || failed=1; \
	$(PYTEST) -m "distributed and not (engines or nightly)" || failed=1; exit $$failed

test-distributed: $(STAMP) compiler  ## the matrix of launches and recipes: rewrites the table of docs/scaling.md
	ALIGN_TABLES=write $(PYTEST) -m distributed

test-faults: $(STAMP) compiler  ## kills, full disks, lost ranks: rewrites the table of docs/reliability.md
	ALIGN_TABLES=write $(PYTEST) -m "faults and not (engines or nightly)"

ENGINES ?= vllm llama.cpp llmcompressor
test-engines: $(STAMP)  ## servers and quantisers in environments of their own, which are made first: ENGINES="vllm …"
	$(PY) recipes/setup_engine.py $(ENGINES)
	$(PYTEST) -m "engines and not nightly"

test-nightly: $(STAMP) compiler  ## the same at length: 50 kills, 100,000 fuzzed inputs, 500 updates of PPO
	$(PYTEST) --timeout 14400 -m nightly

.PHONY: compiler
compiler:
	@command -v g++ >/dev/null || { echo "DeepSpeed on a CPU builds an extension: sudo apt-get install g++"; exit 1; }

lint: $(STAMP)  ## style, types, layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright -p . --pythonpath $(PY)
	PYTHONPATH=. $(VENV)/bin/lint-imports

docs: $(STAMP)  ## check the links between the pages
	$(PYTEST) -q tests/test_repo_habits.py -k "link or readme or docs"

bench: $(STAMP)  ## side by side with other implementations, a quarter of an hour: runs/bench/table.md
	$(PY) -m pip install -q -c constraints.txt -e '.[bench]'
	PYTHON=$(abspath $(PY)) bash benchmarks/setup_peers.sh trl112
	$(OFFLINE) $(PY) benchmarks/suite.py --quick

bench-full: $(STAMP)  ## all rows of docs/benchmarks.md (hours)
	$(PY) -m pip install -q -c constraints.txt -e '.[bench]'
	PYTHON=$(abspath $(PY)) bash benchmarks/setup_peers.sh trl112
	$(OFFLINE) $(PY) benchmarks/suite.py

clean:  ## remove runs, caches and .venv
	rm -rf runs .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
