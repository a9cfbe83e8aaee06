# Targets work from a clean clone: Python 3.9 to 3.11 and make are all they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The whole demo, installation aside, takes about MINUTES on 2 cores; one to two of them are not training.
MINUTES ?= 6
STEPS_PER_MINUTE ?= 150
DEMO := demo_run
STEPS = $(shell echo $$(( ($(MINUTES) > 2 ? $(MINUTES) - 2 : 1) * $(STEPS_PER_MINUTE) )))

.PHONY: setup lint test demo bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gcs,text,parquet,track,plot]'
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q

# Real text, a tokenizer, records, training, evaluation, samples, a plot: the whole chain, nothing downloaded.
demo: setup
	$(BIN)/python data/make_demo_corpus.py --output_dir $(DEMO)/text
	$(BIN)/python data/train_tokenizer.py --base_dir $(DEMO)/text/train.jsonl --vocab_size 8192 --output_dir $(DEMO)/tokenizer
	rm -rf $(DEMO)/records
	$(BIN)/python data/create_tfrecords.py --input_dir $(DEMO)/text/heldout.jsonl --name heldout --chunk_size 257 \
	    --encoder_path $(DEMO)/tokenizer/tokenizer.json --output_dir $(DEMO)/records
	$(BIN)/python data/create_tfrecords.py --input_dir $(DEMO)/text/train.jsonl --name train --chunk_size 257 \
	    --encoder_path $(DEMO)/tokenizer/tokenizer.json --output_dir $(DEMO)/records
	$(BIN)/python main.py --model configs/demo.json --set train_steps=$(STEPS) --new --yes
	$(BIN)/python main.py --model configs/demo.json --eval
	$(BIN)/python main.py --model configs/demo.json --predict --num_samples 3 --max_tokens 120 --temperature 0.7 \
	    --top_p 0.95 --seed 1 --prompt 'Help on function '
	$(BIN)/python data/plot_loss.py $(DEMO)/model --output loss.png

clean:
	rm -rf $(VENV) $(DEMO)
