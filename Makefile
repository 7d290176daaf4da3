# make demo   set up and build a small real data set      make test   set up and run the tests
# make check  lint, format and types                       make lock   renew the exact versions
PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo
# Not in the lock: which build of torch it is, for CUDA or the CPU, is the index's choice.
TORCH := torch==2.13.0
# Compiled bytecode is what makes the second start of a command fast.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lock clean

demo: .venv/.runtime
	$(BIN)/python -m pipelines.build --mixture mixtures/demo.yaml --output $(DEMO)

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Exact versions are listed whole, so nothing is resolved (--no-deps): with uv this takes seconds.
define install
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --seed --python $(PYTHON) .venv && \
	  uv pip install --quiet --python $(BIN)/python --no-deps -r $(1) && \
	  uv pip install --quiet --python $(BIN)/python --no-deps -e .; \
	else \
	  $(PYTHON) -m venv .venv && \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r $(1) && \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .; \
	fi
	@touch $@
endef

.venv/.runtime: requirements.lock pyproject.toml
	@echo "installing into .venv"
	$(call install,requirements.lock)

.venv/.dev: requirements-dev.lock pyproject.toml
	@echo "installing into .venv, with what the tests need"
	$(call install,requirements-dev.lock)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c requirements-dev.lock $(TORCH)
	@touch .venv/.runtime

LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate pyproject.toml
lock:
	$(LOCK) -o requirements.lock
	$(LOCK) --extra train --group dev -c requirements.lock -o requirements-dev.lock
	sed -i -E '/^(torch|triton|nvidia-|cuda-)/d' requirements-dev.lock

clean:
	rm -rf .venv $(DEMO) build/store
