# make quickstart   the whole chain on a laptop: raw text -> report
# make ablation     three blends of one corpus compared on a tiny model: a smoke test
# make test         all tests but the long ones;   make test-long: those too
# make test-engine  our settings against a real Transformer Engine, no GPU needed: ENGINE=/path/to/a/python/with/it
# make test-ray     shards on a real Ray cluster of this machine, in an environment of its own: RAY_VENV
# make test-vllm    our vLLM engine and vLLM's server with a real model on a CPU: VLLM=/path/to/a/python/with/vllm
# make lint         ruff and mypy;                 make format: ruff's formatter
#
# A CPU machine with CPython 3.12 is enough. VENV names the environment, WORKERS the test files run at once; RECIPE and
# SET change the run:
#   make quickstart SET="train.train_iters=5"

VENV ?= .venv
RECIPE ?= examples/quickstart/recipe.yaml
SET ?=
ENGINE ?=
RAY_VENV ?= .venv-ray
VLLM ?=
WORKERS ?= 2
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart ablation test test-long test-engine test-ray test-vllm lint format clean

help:
	@sed -n '1,10s/^# \{0,1\}//p' Makefile

quickstart: $(VENV)/.installed
	$(BIN)/ipt run $(RECIPE) $(SET)

ablation: $(VENV)/.installed
	$(BIN)/ipt ablate examples/blend_ablation/study.yaml $(SET)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long"

test-long: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-engine: $(VENV)/.installed
	IPT_ENGINE_PYTHON=$(ENGINE) $(BIN)/python -m pytest tests/engine

test-ray: $(VENV)/.installed
	@test -e $(RAY_VENV)/.installed || { $(BIN)/python -m venv --clear $(RAY_VENV) && \
	$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[prep,ray,dev]" && \
	touch $(RAY_VENV)/.installed; }
	$(RAY_VENV)/bin/python -m pytest tests/on_ray

test-vllm: $(VENV)/.installed
	IPT_VLLM_PYTHON=$(VLLM) $(BIN)/python -m pytest tests/on_vllm

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The interpreter: python3.12 on PATH, which is also the one that pyenv selects by .python-version.
# It is made anew when these change; one that another checkout made is left alone.
$(VENV)/.installed: setup.py constraints-cpu.txt .python-version
	@owner=$$(cat $@ 2>/dev/null); \
	if [ -e $@ ] && [ "$${owner:-$(if $(filter .venv,$(VENV)),$(CURDIR))}" != "$(CURDIR)" ]; then \
	  echo "error: $(VENV) belongs to another checkout ($${owner:-unknown}); give another VENV, or remove it" >&2; \
	  exit 1; \
	fi
	@wanted=$$(cat .python-version); \
	for python in python$$wanted python3 python; do \
	  found=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  if [ "$$found" = "$$wanted" ]; then break; fi; \
	  found=; \
	done; \
	if [ "$$found" != "$$wanted" ]; then \
	  echo "error: no Python $$wanted found; install CPython $$wanted (or 'pyenv install $$wanted') so that python$$wanted answers" >&2; \
	  exit 1; \
	fi; \
	echo "making $(VENV) with $$($$python -c 'import sys; print(sys.executable, sys.version.split()[0])'); this takes a few minutes"; \
	$$python -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e ".[quickstart,dev]"
	@echo "$(CURDIR)" > $@
