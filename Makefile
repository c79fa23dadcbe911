# Two commands to know: `make run` serves, `make test` tests. Each sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := ov_models/florence-2-tiny
SERVING := $(VENV)/serving.installed
DEVELOPMENT := $(VENV)/development.installed

.PHONY: run test test-long check format model train evaluate configuration setup setup-dev browser image-check gpu-check \
	gpu-compile lock clean

run: setup  ## serve the bundled model on port 5011; the FLORENCE_* variables are obeyed
	@exec $(BIN)/python -m florence_tagger serve

test: setup-dev browser  ## the fast tests
	$(BIN)/python -m pytest

test-long: setup-dev  ## the tests of large models, and on OpenVINO's GPU plugin
	$(BIN)/python -m pytest -m long

check: setup-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup-dev  ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

model: setup-dev  ## convert the bundled model anew from its checkpoint
	$(BIN)/python -m convert --model training/florence-2-tiny --output $(MODEL)

train: setup-dev  ## train a model as the bundled one was, or go on with it; 100 minutes a run, until all steps are taken
	$(BIN)/python -m training.train

evaluate: setup-dev  ## the table of how well the trained model counts, or the bundled one where none was trained
	$(BIN)/python -m training.evaluate

configuration: setup  ## make the table of settings in docs/configuration.md anew
	$(BIN)/python -m florence_tagger settings --update docs/configuration.md

image-check:  ## build the image with and without the GPU driver by buildah, run and measure it; as root, on Debian
	$(PYTHON) -m deploy.image_check $(IMAGE_CHECK)

gpu-check: setup-dev  ## the product on OpenVINO's GPU plugin, beside the CPU, without a GPU; the first run builds kernels
	$(BIN)/python -m gpu.check $(GPU_CHECK)

gpu-compile: setup-dev  ## compile all graphs with Intel's driver for chips that are not here; writes the tables of docs/gpu.md
	$(BIN)/python -m gpu.compile --update docs/gpu.md

setup: $(SERVING)  ## install what serves into .venv

setup-dev: $(DEVELOPMENT)  ## install what converts, trains and tests, too

browser:  ## install Chromium, for the tests of the page, where there is none and packages may be installed
	@tests/chromium.sh --version > /dev/null 2>&1 && exit; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "Installing Chromium for the tests of the page"; \
		apt-get -qq update && apt-get -qq install --no-install-recommends chromium > /dev/null; \
	else \
		echo "The tests of the page need Chromium: sudo apt-get install chromium"; \
	fi

$(SERVING): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: set PYTHON."; exit 1; }
	@echo "Setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	@touch $@

$(DEVELOPMENT): $(SERVING) convert/requirements.txt training/requirements.txt tests/requirements.txt
	@echo "Adding PyTorch, optimum-intel and the test tools to $(VENV) (once; several GB, minutes)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r requirements.txt -r convert/requirements.txt -r training/requirements.txt -r tests/requirements.txt
	@touch $@

lock: setup-dev  ## write the versions at hand to constraints.txt
	$(BIN)/pip freeze | grep -viE '^(cuda|nvidia|triton|-e )' > constraints.txt

clean:  ## remove what set-up, tests and checks made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
