PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=
# The tests wait more than they compute; each worker has a broker of its own.
WORKERS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help dev demo test check storm bench bench-receiver bench-live bench-readers bench-scale bench-sizes clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

dev: $(INSTALLED) ## a local Kafka with sample orders, read by `dagster dev`, until Ctrl-C
	$(BIN)/kafka-assets dev $(ARGS)

demo: $(INSTALLED) ## the same, finite: 100,000 orders ingested, the table's head, the coverage proof
	$(BIN)/kafka-assets demo $(ARGS)

test: $(INSTALLED) ## all tests, on a real Apache Kafka (ARGS="-k word" for some)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

check: $(INSTALLED) ## lint, format, types and all tests: what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

storm: $(INSTALLED) ## tries to break the promise: 10,000 examples of the model, 1,000 kills (ARGS="--kills 100")
	$(BIN)/python -m kafka_assets_tests.storm $(ARGS)

bench: $(INSTALLED) ## the measurements behind what is claimed about speed
	$(BIN)/python -m benchmarks $(ARGS)

bench-receiver: $(INSTALLED) ## Spark's older Receiver beside the direct way, under 100 kills
	$(BIN)/python -m benchmarks.receiver $(ARGS)

bench-live: $(INSTALLED) ## latency, backlog, idle cost, ticks and memory under `dagster dev`
	$(BIN)/python -m benchmarks.live $(ARGS)

bench-readers: $(INSTALLED) ## how long a dashboard waits while batches are committed
	$(BIN)/python -m benchmarks.readers $(ARGS)

bench-scale: $(INSTALLED) ## commits, plans and proofs with 100 million rows behind them
	$(BIN)/python -m benchmarks.scale $(ARGS)

bench-sizes: $(INSTALLED) ## speed and memory of `ingest` with records from 1 KB to 10 MB
	$(BIN)/python -m benchmarks.sizes $(ARGS)

clean: ## remove the environment, the demo and caches; data/ and .dagster/ stay
	rm -rf $(VENV) .demo dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo '$(PYTHON) is missing or older than Python 3.11: name a newer one, as in make test PYTHON=python3.12' >&2; exit 1; }
	@if command -v uv >/dev/null 2>&1; then set -ex; \
	  [ -x $(BIN)/python ] || uv venv --quiet --python $(PYTHON) $(VENV); \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]' --group dev; \
	else set -ex; \
	  $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'; \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]' --group dev; \
	fi
	@touch $@
