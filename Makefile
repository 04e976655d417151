# `make` lists the targets. Another environment: make VENV=path/to/env test
VENV   ?= .venv
PYTHON ?= python3
JOBS   ?= 2
PORT   ?= 8000
ENV    := $(abspath $(VENV))
BIN    := $(ENV)/bin
say     = @printf '== %s\n'
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint sync nbs docs pytest extras export readme serve bench gpu clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(ENV)/.lottery-run ## winning tickets on the digits: environment, install, `lottery run digits`
	$(say) 'lottery run digits'
	@lottery run digits

test: lint sync nbs docs pytest ## every check of this repo but the extras', in its own environment

# Each install is stamped, since torch is large: it runs again only when pyproject.toml changes
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info<(3,10))' || { echo "Python 3.10 or newer is needed; \`$(PYTHON)\` is $$($(PYTHON) -V 2>&1). Try make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(say) 'new environment in $(VENV)'
	@$(PYTHON) -m venv $(ENV)

$(ENV)/.lottery-run: pyproject.toml | $(BIN)/python
	$(say) 'pip install -e . (the first time fetches PyTorch: some minutes)'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(ENV)/.lottery-dev: pyproject.toml | $(BIN)/python
	$(say) "pip install -e '.[dev,docs,bench]' (the first time fetches PyTorch: some minutes)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,docs,bench]'
	@touch $(ENV)/.lottery-run $@

$(ENV)/.lottery-extras: pyproject.toml $(ENV)/.lottery-dev
	$(say) "pip install -e '.[text,loggers,deploy,ray,dask,executors]'"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[text,loggers,deploy,ray,dask,executors]'
	@touch $@

lint: $(ENV)/.lottery-dev ## ruff, for real errors only, and the rules of the house
	$(say) 'ruff check, rules of the house'
	@ruff check --no-cache .
	@python tests/test_house.py

sync: $(ENV)/.lottery-dev ## modules are what the notebooks export, notebooks are clean, README and the list of presets are up to date
	$(say) 'modules, notebooks, README and the list of presets in step'
	@python -m pytest -q -p no:cacheprovider --tb=short tests/test_project.py -k 'step'

nbs: $(ENV)/.lottery-dev ## run every notebook
	$(say) 'nbdev-test'
	@OMP_NUM_THREADS=1 nbdev-test --n-workers $(JOBS)

docs: $(ENV)/.lottery-dev ## the site, into docs/_build/html; warnings and broken links are errors
	$(say) 'site'
	@python docs/build.py

pytest: $(ENV)/.lottery-dev ## the tests in tests/
	$(say) 'pytest'
	@OMP_NUM_THREADS=1 python -m pytest -q -p no:cacheprovider --tb=short --durations=40 --durations-min=5 -n $(JOBS) --dist loadfile

extras: $(ENV)/.lottery-extras ## tests that need packages of the extras, which are large
	$(say) 'pytest, the extras'
	@OMP_NUM_THREADS=1 python -m pytest -q -p no:cacheprovider --tb=short --durations=20 --durations-min=5 -n $(JOBS) --dist loadfile -m extra

export: $(ENV)/.lottery-dev ## after editing a notebook: write the modules, clean the notebooks, list the presets, make the README
	$(say) 'nbdev-export, nbdev-clean, presets.json, README.md'
	@nbdev-export && nbdev-clean && python docs/listing.py && python docs/readme.py

readme: $(ENV)/.lottery-dev ## README.md from nbs/index.ipynb
	@python docs/readme.py

serve: docs ## build the site and show it on localhost
	$(say) 'http://localhost:$(PORT)'
	@python -m http.server --bind 127.0.0.1 --directory docs/_build/html $(PORT)

bench: $(ENV)/.lottery-dev ## the benchmarks in bench/
	$(say) 'benchmarks'
	@python -m pytest -q -s -p no:cacheprovider -o 'python_functions=bench_*' bench

gpu: $(ENV)/.lottery-dev ## what only a GPU can tell, as a table; make gpu ARGS=--cpu runs the same code small
	$(say) 'checks on a GPU'
	@python bench/gpu.py $(ARGS)

clean: ## remove what builds and tests leave, and .venv
	@rm -rf .venv docs/_build build dist *.egg-info .pytest_cache .ruff_cache .benchmarks
	@find fastai_lottery nbs tests docs bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
