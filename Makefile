# The front door. `make` lists the targets.
PRESET ?= release
BUILD := build/$(PRESET)
ADDER := build/release/adder
PYTHON := .venv/bin/python
PREFIX ?= /usr/local
# CUDA=ON fails where there is no nvcc, CUDA=OFF leaves the kernels for GPUs out; empty: as the machine has it.
CUDA ?=
# Which GPUs get machine code, as CMAKE_CUDA_ARCHITECTURES; empty: the machine's own, or where there is none all.
CUDA_ARCHITECTURES ?=
CMAKE_FLAGS := -DADDER_TORCH=$(ADDER_TORCH) $(if $(CUDA),-DADDER_CUDA=$(CUDA)) \
  $(if $(CUDA_ARCHITECTURES),'-DADDER_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)')
# Tests that run at the same time; each uses all processors where it can.
TEST_JOBS ?= 2

.PHONY: help setup build test test-asan test-tsan test-peers fuzz demo install docs bench format format-check lint layers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what the build needs: Debian packages, .venv with LibTorch
	@tools/setup.sh

build: setup ## build the program (build/release/adder), the library and the tests
	@cmake --preset $(PRESET) $(CMAKE_FLAGS) -Wno-dev --log-level=WARNING
	@cmake --build --preset $(PRESET)

test: build ## run all tests
	@ctest --preset $(PRESET) --progress -j $(TEST_JOBS)

test-asan: ## run the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) test PRESET=asan

test-tsan: ## run the tests of host threads under ThreadSanitizer
	@$(MAKE) build PRESET=tsan
	@ctest --preset tsan -L threads

fuzz: setup ## fuzz the readers of files, 10^7 inputs each (hours; docs/fuzzing.md), and show the lines reached
	@tools/fuzz.sh run
	@tools/fuzz.sh coverage

test-peers: build ## compare with other programs: llama.cpp, transformers, the reference's tests (ADDER_PEERS)
	@tests/peers/run.sh

demo: setup ## train with and without selection, draw both curves, train on this project's text
	@cmake --preset release $(CMAKE_FLAGS) -Wno-dev --log-level=WARNING
	@cmake --build --preset release --target adder_program
	@tools/demo.sh

install: build ## install program, library and CMake package: make install PREFIX=/usr/local
	@cmake --install $(BUILD) --prefix $(PREFIX)

docs: ## make the API reference from the public headers (build/docs/html), with Debian's doxygen
	@tools/make_docs.sh

bench: build ## measure speed and memory on this machine
	@tools/bench.sh

format: setup ## format all sources
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs .venv/bin/clang-format -i

format-check: setup ## fail where a source is not formatted
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs .venv/bin/clang-format --dry-run -Werror && echo "format: all files clean"

layers: ## check that includes keep the layers of docs/architecture.md
	@tools/check_layers.py

# What gcc's flags, its precompiled header and its omp.h need before clang reads them.
TIDY_FLAGS := --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-gch \
  '--extra-arg=-D__malloc__(free)=' --extra-arg=-idirafter$(shell dirname $$(gcc -print-file-name=include/omp.h))

lint: build layers ## clang-tidy on the library and the program
	@git ls-files 'adder/**/*.cpp' 'cli/*.cpp' | grep -v 'kernels/.*_cpu.cpp' | \
	  xargs -P $$(nproc) -n 1 .venv/bin/clang-tidy --quiet -p $(BUILD) $(TIDY_FLAGS)

clean: ## remove the builds and the demo's runs
	@rm -rf build runs/demo
