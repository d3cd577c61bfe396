# nullpaper: `make paper` runs everything, `make test` checks everything, `make help` lists the rest.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup lock data paper figures book verify sweep report run checkpoint test test-more test-gpu lint bench lab clean

# Kills at random moments that make test-more survives.
KILLS ?= 50
# The profile that fits the machine unless one is given: smoke, cpu, gpu, imagenet, photographs or reference.
PROFILE ?=
# An activated conda environment of this name is used as it is; otherwise .venv is built.
ifeq ($(CONDA_DEFAULT_ENV),nullpaper)
ENV := $(CONDA_PREFIX)
else
ENV := .venv
endif
BIN := $(ENV)/bin
READY := $(ENV)/.nullpaper-ready
BENCH := $(ENV)/.nullpaper-bench
UV := $(shell command -v uv 2>/dev/null || echo build/uv/bin/uv)
NULLPAPER := $(BIN)/nullpaper
LAB := $(ENV)/share/jupyter/lab/settings
PROFILE_FLAG = $(if $(PROFILE),--profile $(PROFILE))

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | awk -F'\t' '{printf "  make %-12s%s\n", $$1, $$2}'

setup: $(READY) ## build .venv from requirements.lock (nothing to do when it is up to date)

$(READY): requirements.lock pyproject.toml | $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --seed $(ENV)
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps \
		--require-hashes --requirement requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@# torchattacks brings a top-level package `robustbench` that would shadow the real one
	@$(UV) pip show --quiet --python $(BIN)/python robustbench 2> /dev/null || rm -rf $(ENV)/lib/python*/site-packages/robustbench
	@touch $@

build/uv/bin/uv:
	python3 -m venv build/uv
	build/uv/bin/python -m pip install --quiet uv

lock: | $(UV) ## resolve pyproject.toml anew into requirements.lock (exact versions, hashes, every platform)
	$(UV) pip compile pyproject.toml --extra test --universal --python-version 3.10 --upgrade --quiet \
		--generate-hashes --no-emit-index-url --no-annotate --no-header --output-file requirements.lock

data: $(READY) ## fetch CIFAR-10 into the cache (make paper does it too)
	$(NULLPAPER) data fetch cifar10

paper: $(READY) ## run every notebook at the profile that fits the machine into build/PROFILE; PROFILE=smoke is the quick one
	$(NULLPAPER) paper $(PROFILE_FLAG) $(ARGS)

figures: $(READY) ## bring the reference (figures/, results/, notebooks/rendered/) up to date: run what changed, and nothing else
	$(NULLPAPER) figures $(ARGS)

book: paper ## run what is not up to date, and build the book: build/book/index.html
	$(BIN)/python book/build.py $(PROFILE_FLAG)

verify: $(READY) ## name figures, tables and pages of the reference that were edited, are missing or are stale
	$(NULLPAPER) verify

sweep: $(READY) ## run a grid of jobs: make sweep GRID=sweeps/seeds.yaml ARGS="--workers 2"
	$(NULLPAPER) sweep $(GRID) $(PROFILE_FLAG) $(ARGS)

report: $(READY) ## one table of a sweep's jobs: make report SWEEP=seeds ARGS="--table 12_effect --over seed"
	$(NULLPAPER) report $(SWEEP) $(ARGS)

run: $(READY) ## run one notebook: make run NOTEBOOK=01_existence ARGS="-p images 500"
	$(NULLPAPER) run $(NOTEBOOK) $(PROFILE_FLAG) $(ARGS)

lab: $(READY) ## open the notebooks in JupyterLab, with the kernel of this environment
	@mkdir -p $(LAB) && echo '{"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"python": "Jupytext Notebook"}}}' \
		> $(LAB)/overrides.json  # a notebook here is a .py file: a click opens it as a notebook
	JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter-lab --notebook-dir notebooks $(ARGS)

checkpoint: $(READY) ## train the shipped checkpoint again (one to two hours on two CPU cores; continues when killed)
	$(BIN)/python -m nullpaper.studies.shipped $(ARGS)

test: $(READY) ## run the tests, and say how long they took
	@# the notebooks first: they take longest, and the rest fills what is left of the workers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n 3 --dist loadfile --no-loadscope-reorder \
		-m "not long and not gpu" --ignore tests/workflow/test_workers.py --ignore tests/workflow/test_kills.py \
		tests/notebooks tests

test-more: $(READY) ## run the long tests: the book in a browser, sweeps on Dask clusters, kills at random moments (KILLS=50)
	OMP_NUM_THREADS=1 NULLPAPER_KILLS=$(KILLS) $(BIN)/python -m pytest -q -rsP -m long tests

test-gpu: $(READY) ## hold every public function on CUDA against the CPU, and run every notebook there: build/test-gpu.xml
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n auto --maxprocesses 8 --dist worksteal \
		--junitxml build/test-gpu.xml tests/devices

lint: $(READY) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BENCH) ## print one table of speed, with references measured in the same run: make bench ARGS="--only PGD"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ARGS)

$(BENCH): $(READY) pyproject.toml requirements.lock | $(UV)
	@$(UV) pip install --quiet --python $(BIN)/python --constraint requirements.lock --editable ".[bench]" && touch $@ \
		|| echo "Not all references could be installed; their rows will say so."

clean: ## remove what can be rebuilt: stored results, executed notebooks, caches of tools
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
