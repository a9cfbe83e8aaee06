"""A table with more rows than the tokenizer has ids: --predict, server and harness draw the tokenizer's alone."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.evaluation.generation import Prompt, generate
from gpt_neo.sampling.filters import SampleOptions, draw
from gpt_neo.serving.requests import Served, parse_completion

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
    assert asked.n_ids == tokenizer.n_vocab
    logits = np.arange(config.n_vocab, dtype=np.float32)
    assert draw(logits, asked, np.random.default_rng(0)) < tokenizer.n_vocab
    sampler = Recorded(config)
    options = SampleOptions(max_tokens=1, temperature=temperature, eos_id=0)
    prompt = Prompt(tokenizer.encode("the"), (), options)
    assert [text for _, text in generate(sampler, tokenizer, [prompt])] != [""]
    assert sampler.drawn and max(sampler.drawn) < tokenizer.n_vocab


def test_a_smaller_table_than_the_tokenizer_bounds_too(model):
    served = Served("small", model.tokenizer, 290, 64, 0)
    assert served.n_ids == 290 < model.tokenizer.n_vocab
