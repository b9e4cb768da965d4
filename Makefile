PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help quickstart test lint format lock clean

help:
	@echo "make quickstart   set up .venv, draw a small camera-trap world and run the whole path on it"
	@echo "make test         set up .venv with the test tools, check style and types, run every test"
	@echo "make lint         style and types only"
	@echo "make format       rewrite the code in the project's style"
	@echo "make lock         resolve the versions in constraints.txt anew"
	@echo "make clean        remove .venv and what the quickstart made"

$(VENV)/.quickstart: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[quickstart]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.quickstart

quickstart: $(VENV)/.quickstart
	$(BIN)/datas3 quickstart

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:
	$(PYTHON) -m pip install --quiet uv
	$(PYTHON) -m uv pip compile --universal --python-version 3.10 --all-extras --no-header --no-annotate \
		--upgrade pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) quickstart
