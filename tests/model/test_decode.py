"""Decoding with caches equals the uncached network."""

import os

import numpy as np
import pytest

from gpt_neo.config.schema import ModelConfig
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.sampling.filters import SampleOptions
from tests.model.tools import save_random, uncached

VOCAB = 48


def make_config(n_ctx, radius, kinds=("global", "local")):
    return ModelConfig(
        n_head=2,
        n_embd=16,
        n_layer=len(kinds),
        n_vocab=VOCAB,
        n_ctx=n_ctx,
        attention_types=kinds,
        local_attention_radius=radius,
    )


# (prompt, length reached): windows that fill up, that are full, and of which only the end is in the prompt
@pytest.mark.parametrize(
    "n_ctx, radius, kinds, spans",
    [
        (520, 256, ("global", "local"), [(255, 258), (510, 516)]),
        (40, 7, ("local", "global", "local"), [(1, 40), (9, 30), (33, 40)]),
        (100, 70, ("local",), [(65, 99)]),
    ],
)
def test_every_step_equals_uncached(tmp_path, n_ctx, radius, kinds, spans):
    config = make_config(n_ctx, radius, kinds)
    checkpoint = save_random(config, str(tmp_path))
    tokens = np.random.RandomState(1).randint(0, VOCAB, [2, spans[-1][1]]).astype(np.int32)
    expected = uncached(config, checkpoint, tokens)
    sampler = Sampler(config, checkpoint, batch_size=2)
    for prompt, total in spans:
        logits, slot, start = sampler.prefill([row[:prompt] for row in tokens])
        np.testing.assert_allclose(logits, expected[:, prompt - 1], atol=1e-4, rtol=1e-4)
        for at in range(prompt, total):
            logits = sampler.run(tokens[:, at : at + 1], slot, start)
            slot += 1
            np.testing.assert_allclose(logits, expected[:, at], atol=1e-4, rtol=1e-4)


def greedy(config, checkpoint, text, count):
    """The last `count` tokens of a text as the whole network would choose them."""
    return np.argmax(uncached(config, checkpoint, np.array([text], np.int32))[0], -1)[-count - 1 : -1].tolist()


def test_ragged_batch_equals_rows_alone(tmp_path):
    config = make_config(90, 8)
    checkpoint = save_random(config, str(tmp_path))
    rng = np.random.RandomState(2)
    prompts = [rng.randint(0, VOCAB, n).tolist() for n in (1, 70, 13)]
    together, alone = Sampler(config, checkpoint, batch_size=3), Sampler(config, checkpoint, batch_size=1)
    options = SampleOptions(max_tokens=15, temperature=0.8, top_k=20, seed=5)
    batch = {i: [] for i in range(3)}
    for token in together.generate(prompts, options):
        batch[token.prompt].append(token.token)
    single = {i: [] for i in range(3)}
    for token in alone.generate(prompts, options):
        single[token.prompt].append(token.token)
    assert batch == single
    assert all(len(row) == 15 for row in batch.values())
    logits, _, _ = together.prefill(prompts)
    for row, prompt in zip(logits, prompts):
        np.testing.assert_allclose(row, alone.prefill([prompt])[0][0], atol=1e-4, rtol=1e-4)


def test_a_short_prompt_beside_a_long_one_may_fill_the_context(tmp_path):
    config = make_config(256, 8)
    checkpoint = save_random(config, str(tmp_path))
    prompts = [np.random.RandomState(3).randint(0, VOCAB, n).tolist() for n in (250, 3)]
    sampler = Sampler(config, checkpoint, batch_size=2)
    text = [t.token for t in sampler.generate(prompts, SampleOptions(temperature=0.0)) if t.prompt == 1]
    assert len(text) == 253 and text == greedy(config, checkpoint, [*prompts[1], *text], 253)


def test_a_used_sampler_gives_what_a_fresh_one_does(tmp_path):
    config = make_config(64, 8)
    checkpoint = save_random(config, str(tmp_path))
    options = SampleOptions(max_tokens=20, temperature=0.0)
    used = Sampler(config, checkpoint)
    operations = len(used.graph.get_operations())
    list(used.generate([[5, 6, 7] * 10], options))
    second = [t.token for t in used.generate([[1, 2]], options)]
    assert len(second) == 20 and second == greedy(config, checkpoint, [1, 2, *second], 20)
    assert len(used.graph.get_operations()) == operations and used.graph.finalized


@pytest.mark.slow
def test_the_oracle_decodes_alike_with_and_without_cache():
    config = ModelConfig(
        n_head=4,
        n_embd=64,
        n_layer=4,
        n_vocab=512,
        n_ctx=128,
        local_attention_radius=32,
        attention_types=("global", "local") * 2,
    )
    checkpoint = os.path.join(os.path.dirname(os.path.dirname(__file__)), "oracle", "neo", "model.ckpt-20")
    prompt = list(range(3, 40))
    sampler = Sampler(config, checkpoint)
    got = prompt + [t.token for t in sampler.generate([prompt], SampleOptions(temperature=0.0))]
    assert len(got) == config.n_ctx
    new = got[len(prompt) :]
    assert new == greedy(config, checkpoint, got, len(new))
