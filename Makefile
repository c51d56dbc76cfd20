# Learn2SOFI. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_ARGS ?=
TRAIN_ARGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- run ------------------------------------------------------------------------------------------

$(VENV)/.setup: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[device]'
	touch $@

.PHONY: setup
setup: $(VENV)/.setup ## install what the device needs into .venv

.PHONY: run
run: setup ## play the demo stack: live page at http://127.0.0.1:8000 (RUN_ARGS="--camera replay:FILE ...")
	$(BIN)/learn2sofi run $(RUN_ARGS)

# --- develop --------------------------------------------------------------------------------------

$(VENV)/.setup-dev: $(VENV)/.setup
	$(BIN)/pip install --quiet --editable '.[device,training,dev]'
	touch $@

.PHONY: setup-dev
setup-dev: $(VENV)/.setup-dev ## install training and test tools too

.PHONY: test
test: setup-dev lint ## lint, types and all tests that need pip only
	$(BIN)/pytest -m "not browser and not camera"

.PHONY: lint
lint: setup-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: test-system
test-system: test-browser test-camera ## tests that need Debian's packages (installs them)

.PHONY: test-browser
test-browser: setup-dev ## the live page in headless Chromium
	tests/e2e/install-chromium
	$(BIN)/pytest -m browser

.PHONY: test-camera
test-camera: ## the daemon on libcamera's virtual camera, in a Debian 13 root
	tests/camera/run

# --- train ----------------------------------------------------------------------------------------

.PHONY: simulate
simulate: setup-dev ## write some simulated stacks to out/simulated
	$(BIN)/python -m training simulate --out out/simulated

.PHONY: train
train: setup-dev ## train into runs/base; goes on where it was stopped (TRAIN_ARGS="--settings smoke")
	$(BIN)/python -m training train $(TRAIN_ARGS)

.PHONY: quantize
quantize: setup-dev ## turn runs/base into a float32 and an int8 step
	$(BIN)/python -m training quantize

.PHONY: evaluate
evaluate: setup-dev ## score every method and model form on the frozen test stacks
	$(BIN)/python -m training evaluate

.PHONY: benchmark
benchmark: setup ## time the model's forms on this machine
	$(BIN)/learn2sofi benchmark

.PHONY: clean
clean: ## remove what can be made again (not runs/)
	rm -rf $(VENV) build out *.egg-info .pytest_cache .mypy_cache .ruff_cache
