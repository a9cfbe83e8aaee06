"""A table with more rows than the tokenizer has ids: --predict, server and harness draw the tokenizer's alone."""

import dataclasses
import json
import types

import numpy as np
import pytest

from gpt_neo.cli.options import SamplingOptions
from gpt_neo.cli.predict import sample_options
from gpt_neo.evaluation.generation import Prompt, generate
from gpt_neo.sampling.filters import SampleOptions, draw
from gpt_neo.serving.requests import Served, decode, parse_completion
from gpt_neo.tokenizer import load_tokenizer

PADDING = 3  # rows past the tokenizer's ids, the likeliest of all


class Recorded:
    """Would take the likeliest row of the table; it keeps the options that it was given."""

    batch_size = 2

    def __init__(self, config):
        self.config, self.length, self.drawn = config, config.n_ctx, []

    def generate_batch(self, rows, options):
        from gpt_neo.sampling.batches import Token

        logits = np.arange(self.config.n_vocab, dtype=np.float32)
        for row in rows:
            token = draw(logits, options, np.random.default_rng(0))
            self.drawn.append(token)
            yield Token(row.prompt, row.sample, token, True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_server_and_harness_draw_what_the_tokenizer_has(model, temperature):
    tokenizer = model.tokenizer
    config = dataclasses.replace(model.config, n_vocab=tokenizer.n_vocab + PADDING)
    served = Served("padded", tokenizer, config.n_vocab, config.n_ctx, 0)
    asked = parse_completion({"prompt": "the", "temperature": temperature, "seed": 1}, served).options
    job = types.SimpleNamespace(run=types.SimpleNamespace(model=config))
    predicted = sample_options(job, SamplingOptions(), 0, tokenizer.n_vocab)
    assert asked.n_ids == predicted.n_ids == tokenizer.n_vocab
    logits = np.arange(config.n_vocab, dtype=np.float32)
    assert draw(logits, asked, np.random.default_rng(0)) < tokenizer.n_vocab
    sampler = Recorded(config)
    options = SampleOptions(max_tokens=1, temperature=temperature, eos_id=0)
    prompt = Prompt(tokenizer.encode("the"), (), options)
    assert [text for _, text in generate(sampler, tokenizer, [prompt])] != [""]
    assert sampler.drawn and max(sampler.drawn) < tokenizer.n_vocab


def test_ids_that_a_vocabulary_leaves_out_have_no_text(model, tmp_path):
    spec = json.loads(model.tokenizer.backend.to_str())
    last = max(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    spec["model"]["vocab"][last] = 320
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(str(tmp_path))
    served = Served("holes", tokenizer, 400, 64, 0)
    assert served.n_ids == 321 and decode([320, 310, 320], served) == 2 * model.tokenizer.decode([299])


def test_a_smaller_table_than_the_tokenizer_bounds_too(model):
    served = Served("small", model.tokenizer, 290, 64, 0)
    assert served.n_ids == 290 < model.tokenizer.n_vocab
