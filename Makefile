# `make demo` and `make test` set up by themselves what is missing.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# uv reads none of pip's settings: hand it pip's own list of local wheels, so that a CPU build of torch found there is taken
LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))

# where someone watches, uv shows what it fetches
QUIET := $(shell [ -t 2 ] || echo -q)

.PHONY: setup demo test test-slow lint format docs lock clean

setup: $(VENV)/.ok

# compat: Python finds the package also beside the clone's own folder, which it would take for it otherwise
$(VENV)/.ok: requirements.lock pyproject.toml
	@echo "setup 1 of 3: a virtual environment in $(VENV), with uv"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q uv==0.13.9
	@echo "setup 2 of 3: the packages of requirements.lock, torch the largest"
	@UV_FIND_LINKS="$(LINKS)" $(BIN)/uv pip install $(QUIET) --compile-bytecode -p $(VENV) -r requirements.lock
	@echo "setup 3 of 3: tuwen itself"
	@$(BIN)/uv pip install $(QUIET) -p $(VENV) --no-deps -C editable_mode=compat -e .
	touch $@

demo: setup
	$(BIN)/tuwen compare clip albef r2d2 --corpus scenes:side=64,things=24,objects=3,whole=true --size demo \
		--config recipes/demo.yaml --out runs/demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python docs/tables.py

# the pin of torch goes first: kept, it would mean the CUDA build of the registry with all its packages
lock: setup
	sed -i '/^torch==/d' requirements.lock
	UV_FIND_LINKS="$(LINKS)" $(BIN)/uv pip compile -q requirements.in -p 3.11 -o requirements.lock
	sed -i 's/+cpu$$//' requirements.lock

# leaves runs/ and data/ alone
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
