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
# Quiet: what pip still says is an error; the build backend's general advice is none.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install -qq --disable-pip-version-check
# One thread: models this small are slower on two. Tests run one after another: two workers of
# pytest-xdist took twice as long on two busy cores, and some tests watch the clock.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: run test check clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed  ## train: make run ENV=calculator ALGO=grpo ARGS="--seed 1"
	$(BIN)/python -m envs.run --env $(ENV) --algo $(ALGO) $(ARGS)

test: $(VENV)/.installed-dev  ## all tests, or some: make test ARGS="-k losses"
	$(ONE_THREAD) $(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev  ## linter, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove the environment and the caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
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
