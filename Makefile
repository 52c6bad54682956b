.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench clean

BIN := .venv/bin
export FIFTYONE_DO_NOT_TRACK ?= true

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## environment with everything for development, in .venv
	@bash scripts/setup.sh test

demo: ## set up what is missing, then label scenes in FiftyOne; or PHOTOS=... CONCEPTS=... MODEL=...
	@bash scripts/setup.sh demo
	@$(BIN)/python demo/demo.py $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(CONCEPTS),--concepts "$(CONCEPTS)") $(if $(MODEL),--model "$(MODEL)") $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

test: setup ## set up what is missing, then linter, types and all tests
	@$(MAKE) --no-print-directory lint
	@echo "==> pytest: everything but what needs a GPU or released weights"
	@$(BIN)/pytest -m "not gpu and not weights"

lint: ## ruff and mypy
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy

format: ## let ruff write
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## milliseconds and memory of each part; MODEL=... for another row
	@$(BIN)/python benchmarks/image.py $(or $(MODEL),efficientsam3-tinyvit-11m)

clean: ## remove results and caches, but not .venv
	@rm -rf out build dist .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
