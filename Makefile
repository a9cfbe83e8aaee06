# Targets work from a clean clone: Python 3.9 to 3.11 and make are all they need, or uv, which brings such a Python.
FITS = import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))
PYTHON ?= $(shell for python in python3 python3.11 python3.10 python3.9; do \
    $$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
PIP = $(INSTALL) -c constraints.txt

# Google's TPU VMs carry the TensorFlow that has kernels for TPUs; that of the package index has none.
TPU_WHEEL ?= $(lastword $(sort $(wildcard /usr/share/tpu/tensorflow-2.15*.whl)))

comma := ,
HASHED ?= $(if $(TPU_WHEEL),,$(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)))

# The whole demo, installation aside, takes about MINUTES on 2 fast cores, more than twice as long on slow ones; two of
# them are not training.
MINUTES ?= 6
STEPS_PER_MINUTE ?= 140
STEPS = $(shell echo $$(( ($(MINUTES) > 2 ? $(MINUTES) - 2 : 1) * $(STEPS_PER_MINUTE) )))
EVERY = $(shell echo $$(( $(STEPS) / 12 )))
DEMO := demo_run
RECORDS = $(BIN)/gpt-neo prepare --chunk_size 257 --encoder_path $(DEMO)/tokenizer/tokenizer.json \
    --output_dir $(DEMO)/records

.PHONY: setup lock setup-test lint test slow power-test docs test-pythons transformers4 demo bench spmd-check tpu-check clean

setup: $(VENV)/.installed

# Of what the main job needs, every file's hash is checked on Linux on x86-64. A TPU VM's own TensorFlow has none to
# compare with, and elsewhere TensorFlow is put together from other packages.
$(VENV)/.installed: setup.py constraints.txt requirements.txt
	@[ -n "$(PYTHON)" ] || command -v uv >/dev/null || { \
	    echo "error: Python 3.9, 3.10 or 3.11 is needed (TensorFlow 2.15 has no build for others), and none is here:"; \
	    echo "  pip install uv      brings one, then make again"; exit 2; }
	$(if $(PYTHON),$(PYTHON) -m venv,uv venv --quiet --seed --python 3.11) $(VENV)
ifneq ($(HASHED),)
	$(INSTALL) --require-hashes --only-binary :all: -r requirements.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
else
	$(PIP) $(TPU_WHEEL) -e '.[plot,fast$(if $(TPU_WHEEL),$(comma)tpu)]'
endif
	touch $@

# requirements.txt: the files, by their hashes, of the versions in constraints.txt that `make setup` installs.
HEAD = \# What make setup installs, with the hashes of its files, for Python 3.9 to 3.11: made by make lock.
lock:
	uv pip compile --quiet --universal --python-version 3.9 --generate-hashes --no-annotate --no-header \
	    --extra plot --extra fast --constraint constraints.txt setup.py --output-file requirements.txt
	printf '%s\n' '$(HEAD)' | cat - requirements.txt > requirements.new
	mv requirements.new requirements.txt

setup-test: $(VENV)/.installed-test

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[dev,gcs,tpu,text,parquet,track,plot,bench,beam,harness,serve,fast,chat,completion]'
	touch $@

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes, a file to each at a time: files share what they build. In the order of folders, as files with few tests
# are not the quick ones: at the end one process would wait for the other.
test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Every pair of options, large inputs, many kills: minutes each.
slow: setup-test $(VENV)/.installed-docs
	$(BIN)/python -m pytest -q -m slow --timeout 5400

# The package with all its extras, and the commands of a first hour, on each Python that README promises and that is
# here; PYTHONS names others.
PYTHONS ?= 3.9 3.10 3.11
test-pythons:
	for version in $(PYTHONS); do \
	    echo "Python $$version" && rm -rf $(VENV)-$$version && python$$version -m venv $(VENV)-$$version \
	    && $(VENV)-$$version/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	        -e '.[gcs,tpu,text,parquet,track,wandb,mlflow,trackio,plot,beam,harness,serve,fast,chat,completion]' \
	    && $(VENV)-$$version/bin/python -m pip check && $(VENV)-$$version/bin/python tests/smoke.py || exit 1; \
	done

# The pages, in site/: docs/ by mkdocs.
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --quiet

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	touch $@

# Power cuts on a mounted file system, as root; skipped with the reason elsewhere. GPT_NEO_POWER_CUTS says how many.
power-test: setup-test
	$(BIN)/python -m pytest -q -rs -m slow --timeout 5400 tests/test_power.py

# The reader of legacy checkpoints in transformers 4, which 5 has dropped, on the legacy program's files and on ours.
transformers4: setup-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/transformers4 \
	    transformers==4.57.1 huggingface_hub==0.36.0 tokenizers==0.22.1
	GPT_NEO_TRANSFORMERS4=$(VENV)/transformers4 $(BIN)/python -m pytest -q -m slow --timeout 5400 tests/checkpoint/test_transformers4.py

# Real text, a tokenizer, records, training, evaluation, samples, a plot: the whole chain, nothing downloaded.
demo: setup
	rm -rf $(DEMO)
	$(BIN)/python data/make_demo_corpus.py --output_dir $(DEMO)/text
	$(BIN)/gpt-neo train-tokenizer --base_dir $(DEMO)/text/train.jsonl --vocab_size 12288 \
	    --output_dir $(DEMO)/tokenizer
	$(RECORDS) --input_dir $(DEMO)/text/heldout.jsonl --name heldout
	$(RECORDS) --input_dir $(DEMO)/text/train.jsonl --name train
	$(BIN)/gpt-neo train configs/demo.json --set train_steps=$(STEPS) --set eval_steps=8 \
	    --steps_per_checkpoint $(EVERY)
	$(BIN)/gpt-neo eval configs/demo.json
	$(BIN)/gpt-neo sample configs/demo.json --num_samples 3 --max_tokens 120 --temperature 0.8 \
	    --top_p 0.9 --seed 1 --prompt 'Help on class'
	$(BIN)/python data/plot_loss.py $(DEMO)/model --output loss.png
	@echo
	@echo "That was a model of your own. Its losses are in loss.png; to go on:"
	@echo "  . $(BIN)/activate"
	@echo "  gpt-neo sample configs/demo.json --interactive"
	@echo "  pip install -c constraints.txt -e '.[serve]'"
	@echo "  gpt-neo serve configs/demo.json                 # a page to play with"

# Speed and memory against the stock Hugging Face model, in one run: docs/performance.md.
bench: setup-test
	$(BIN)/python -m bench

# The exported program on eight virtual devices: makes the JAX environment on first use.
spmd-check: setup-test
	$(BIN)/python -m pytest -q -m slow --timeout 5400 tests/spmd

# Every shipped config by the TPU compiler, one after the other (minutes each); writes the table of docs/tpu.md.
tpu-check: setup
	$(BIN)/python -m bench.tpu_check

clean:
	rm -rf $(VENV) $(addprefix $(VENV)-,$(PYTHONS)) $(DEMO)
