# Learn2SOFI. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_ARGS ?=
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
ACCURACY_ARGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- run ------------------------------------------------------------------------------------------

NEW_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }

$(VENV)/.setup: pyproject.toml
	@$(NEW_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[device]'
	touch $@

.PHONY: setup
setup: $(VENV)/.setup ## install what the device needs into .venv

.PHONY: run
run: setup ## play the demo stack: live page at http://127.0.0.1:8000 (RUN_ARGS="--camera replay:FILE ...")
	$(BIN)/learn2sofi run $(RUN_ARGS)

# --- develop --------------------------------------------------------------------------------------

$(VENV)/.setup-test: $(VENV)/.setup
	$(BIN)/pip install --quiet --editable '.[device,dev]'
	touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	$(BIN)/pip install --quiet --editable '.[device,training,dev]'
	touch $@ $(VENV)/.setup-test

.PHONY: setup-dev
setup-dev: $(VENV)/.setup-dev ## install training and test tools too

.PHONY: test
test: setup-dev lint ## lint, types and all tests that need pip only
	$(BIN)/pytest -m "not browser and not camera and not deploy and not deploy_arm and not arm"

.PHONY: lint
lint: setup-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy systemd/deploy.py systemd/on_device.py

.PHONY: test-system
test-system: test-browser test-arm test-camera test-deploy ## tests that need Debian's packages (installs them)

.PHONY: test-browser
test-browser: setup-dev ## the live page in headless Chromium
	tests/e2e/install-chromium
	$(BIN)/pytest -m browser

.PHONY: test-arm
test-arm: setup-dev ## the shipped int8 file on 64-bit Arm (emulated), and in both runtimes
	tests/arm/make-roots build/arm $(BIN)/pip
	$(BIN)/pytest -m arm tests/arm

.PHONY: test-camera
test-camera: $(VENV)/.setup-test ## the daemon on libcamera's virtual camera, in a Debian 13 root
	$(BIN)/pytest --noconftest tests/device/test_camera_mutants.py
	tests/camera/run

.PHONY: test-deploy-begins
test-deploy-begins:
	@mkdir -p build && date +%s >build/test-deploy.began

.PHONY: test-deploy
test-deploy: test-deploy-begins $(VENV)/.setup-test ## `make deploy` to a real systemd in a container (needs root or sudo)
	tests/deploy/may-mount
	tests/deploy/build-root build/deploy/root
	$(BIN)/python systemd/deploy.py wheelhouse build/wheelhouse --machine $$(uname -m) \
	  --python $$(tests/deploy/python-of build/deploy/root)
	$(SUDO) env CI=$(CI) $(BIN)/pytest -m deploy --log-cli-level=INFO tests/deploy
	@echo "make test-deploy took $$(($$(date +%s) - $$(cat build/test-deploy.began))) s"

.PHONY: test-deploy-arm
test-deploy-arm: $(VENV)/.setup-test ## the same into emulated 64-bit Arm, up to the first reconstruction (slow)
	tests/deploy/may-mount
	tests/deploy/build-root build/deploy/root-arm64 arm64
	$(BIN)/python systemd/deploy.py wheelhouse build/wheelhouse --machine aarch64 \
	  --python $$(tests/deploy/python-of build/deploy/root-arm64)
	$(SUDO) env CI=$(CI) $(BIN)/pytest -m deploy_arm tests/deploy

# --- deploy ---------------------------------------------------------------------------------------

# HOST is what ssh takes: pi@microscope.local, or a name of ~/.ssh/config, where port, key and
# further options stand. SSH="ssh -F FILE" takes another configuration.
DEPLOY = $(PYTHON) systemd/deploy.py
SSH ?= ssh
WHEELHOUSE ?= build/wheelhouse
DEPLOY_ARGS ?=
HOST_AND_SSH = $(or $(HOST),$(error Say to which device: make $@ HOST=pi@microscope.local)) --ssh '$(SSH)'

.PHONY: new-python
new-python:
	@$(NEW_PYTHON)

.PHONY: deploy
deploy: new-python ## bring this tree into service on a Pi (HOST=pi@microscope.local); twice changes nothing
	$(DEPLOY) deploy $(HOST_AND_SSH) --wheelhouse $(WHEELHOUSE) $(DEPLOY_ARGS)

.PHONY: rollback
rollback: new-python ## back to the release before (HOST=...)
	$(DEPLOY) rollback $(HOST_AND_SSH)

.PHONY: status
status: new-python ## how the service stands (HOST=...)
	$(DEPLOY) status $(HOST_AND_SSH)

.PHONY: logs
logs: new-python ## the service's journal (HOST=..., FOLLOW=1)
	$(DEPLOY) logs $(HOST_AND_SSH) $(if $(FOLLOW),--follow)

.PHONY: listen
listen: new-python ## open the page to a network, behind the token (HOST=..., NETWORK=192.168.1.0/24 or none)
	$(DEPLOY) listen $(HOST_AND_SSH) --network $(or $(NETWORK),any)

.PHONY: undeploy
undeploy: new-python ## remove the service, leave configuration and recordings (HOST=..., PURGE=1: these too)
	$(DEPLOY) undeploy $(HOST_AND_SSH) $(if $(PURGE),--purge)

.PHONY: wheelhouse
wheelhouse: setup ## fetch the packages for a deploy without network (WHEELHOUSE_ARGS="--python 3.13")
	$(BIN)/python systemd/deploy.py wheelhouse $(WHEELHOUSE) $(WHEELHOUSE_ARGS)

.PHONY: lock
lock: setup-dev ## pin the device's packages anew, with hashes
	$(BIN)/pip install --quiet uv
	for python in 3.11 3.12 3.13; do $(BIN)/uv pip compile --quiet --extra device \
	  --python-version $$python --python-platform aarch64-manylinux_2_36 --generate-hashes \
	  --no-header --no-annotate --upgrade pyproject.toml \
	  systemd/requirements/python$$python.in -o systemd/requirements/python$$python.txt; done

# --- train ----------------------------------------------------------------------------------------

.PHONY: simulate
simulate: setup-dev ## write some simulated stacks to out/simulated
	$(BIN)/python -m training simulate --out out/simulated

.PHONY: train
train: setup-dev ## train in two parts, up to runs/base, and what finds the PSF's width; goes on where it was stopped (or TRAIN_ARGS="--settings smoke")
ifdef TRAIN_ARGS
	$(BIN)/python -m training train $(TRAIN_ARGS)
else
	$(BIN)/python -m training train --settings mean
	$(BIN)/python -m training train --settings base --initial runs/mean
	$(BIN)/python -m training psf_width
endif

.PHONY: quantize
quantize: setup-dev ## turn runs/base into a float32 and an int8 step
	$(BIN)/python -m training quantize

COMPARED = $(addprefix --twin ,$(wildcard models/twin/*-float32.tflite)) \
  $(if $(wildcard models/original_network/run.json),--original models/original_network)

.PHONY: evaluate
evaluate: setup-dev ## score every method and model form: frozen stacks, resolution, sweeps, lattice, location, expected errors, speed
	$(BIN)/python -m training evaluate $(COMPARED)
	$(BIN)/python -m training resolution
	$(BIN)/python -m training sweeps
	$(BIN)/python -m training lattice
	$(BIN)/python -m training location
	$(BIN)/python -m training calibration
	$(BIN)/python -m training speed

.PHONY: accuracy
accuracy: setup-dev ## what int8 loses, window and stream, as tables and plots in out/accuracy
	$(BIN)/python -m training accuracy $(ACCURACY_ARGS)

.PHONY: benchmark
benchmark: setup ## time the model's forms on this machine (after `make setup-dev`: the original's architecture too)
	$(BIN)/learn2sofi benchmark
	@test ! -e $(VENV)/.setup-dev || $(BIN)/python -m training speed

.PHONY: clean
clean: ## remove what can be made again (not runs/)
	rm -rf $(VENV) build out *.egg-info .pytest_cache .mypy_cache .ruff_cache
