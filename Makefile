.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long lint docs format fuzz bench clean

BIN := .venv/bin
export FIFTYONE_DO_NOT_TRACK ?= true
# OpenMP's threads sleep while they wait, so that two processes on few cores do not slow each other.
export OMP_WAIT_POLICY ?= passive

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## make the development environment in .venv
	@bash scripts/setup.sh test

demo: ## label scenes in FiftyOne and measure them; or PHOTOS=... CONCEPTS=... MODEL=...
	@bash scripts/setup.sh demo
	@$(BIN)/python demo/demo.py $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(CONCEPTS),--concepts "$(CONCEPTS)") $(if $(MODEL),--model "$(MODEL)") $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

test: setup ## run linters, types, documentation and the tests that take less than minutes each
	@$(MAKE) --no-print-directory lint docs
	@echo "==> pytest: tests that need no GPU and no released weights; make test-long has further ones"
	@$(BIN)/pytest -m "not long and not gpu and not weights"

test-long: setup ## run the tests that take minutes each: random stops, many random inputs, whole exports
	@$(BIN)/pytest -m "long and not gpu and not weights"

lint: ## run ruff, mypy and import-linter
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> import-linter"
	@$(BIN)/lint-imports --no-logo
	@echo "==> mypy"
	@$(BIN)/mypy

docs: ## build the documentation into out/site
	@echo "==> mkdocs"
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

format: ## let ruff rewrite the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

fuzz: setup ## feed damaged files and wrong values to everything that reads; SECONDS=60, KIND=coco
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60) $(if $(KIND),--kind $(KIND)) --seed $(or $(SEED),0)

bench: setup ## measure milliseconds and memory of each part; MODEL=... for another model
	@$(BIN)/python benchmarks/image.py $(or $(MODEL),efficientsam3-tinyvit-11m)

clean: ## remove results and caches, but not .venv
	@rm -rf out build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
