# The front door for people; everything is done by CMake and by scripts/.
#
# As root on Debian 12 or Ubuntu 24.04, `make run` and `make test` install what is missing first.
# Elsewhere they say what is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build run test bench fuzz lint format clean

BUILD ?= build
JOBS ?= $(shell nproc)
# More for scripts/run_tests.py, for example TEST_ARGS="--label unit".
TEST_ARGS ?=
FUZZ_SECONDS ?= 60
PYTHON := .venv/bin/python

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

build: ## release build: build/bin/zbccl and build/lib/libzbccl.so
	@scripts/install_dependencies.sh build
	@scripts/build.sh "$(BUILD)" "$(JOBS)"

run: build ## the main job: a language model served over four ranks, then the benchmark beside gloo
	@scripts/main_job.sh "$(BUILD)"

test: ## build and run every test; ends with "N passed, M failed, K skipped"
	@scripts/install_dependencies.sh build test
	@scripts/build.sh "$(BUILD)" "$(JOBS)" --python
	@$(PYTHON) scripts/run_tests.py --build "$(BUILD)" $(TEST_ARGS)

bench: ## the host benchmark beside gloo and Open MPI: JSON under bench/results/, plots under docs/
	@bench/host.sh --build "$(BUILD)"

fuzz: ## every fuzz target for FUZZ_SECONDS (60), two at a time (Clang)
	@scripts/install_dependencies.sh build fuzz
	@scripts/fuzz.sh build-fuzz "$(FUZZ_SECONDS)"

lint: ## format, layers, clang-tidy, ruff, mypy, shellcheck, words, generated pages
	@scripts/install_dependencies.sh build lint
	@scripts/build.sh "$(BUILD)" "$(JOBS)" --python
	@$(PYTHON) scripts/lint.py --build "$(BUILD)"

format: ## rewrite all C, C++ and Python files in the project's format
	@scripts/install_dependencies.sh lint
	@$(PYTHON) scripts/lint.py --fix

clean: ## remove everything that was built
	rm -rf "$(BUILD)" build-* dist
