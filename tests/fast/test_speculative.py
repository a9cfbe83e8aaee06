"""A smaller model runs ahead: the text, or its distribution, is that of the large one alone."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

pytest.importorskip("gpt_neo.fast.silent")

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.fast.sampler import FastSampler
from gpt_neo.fast.speculative import SpeculativeSampler, accepted, drawn
from gpt_neo.sampling.filters import SampleOptions
from tests.model.tools import save_random

COMMON = {"n_vocab": 48, "n_ctx": 200, "local_attention_radius": 20}
LARGE = ModelConfig(n_head=2, n_embd=32, n_layer=2, attention_types=("global", "local"), **COMMON)
SMALL = ModelConfig(n_head=2, n_embd=16, n_layer=1, attention_types=("global",), **COMMON)
PROMPT = [[3, 1, 4, 1, 5]]


def text(sampler, **options):
    return [token.token for token in sampler.generate(PROMPT, SampleOptions(**options))]


def test_greedy_text_is_the_same(tmp_path):
    (tmp_path / "small").mkdir()
    large, small = save_random(LARGE, str(tmp_path)), save_random(SMALL, str(tmp_path / "small"))
    alone = text(FastSampler(LARGE, large), temperature=0.0)
    assert len(alone) == 195 and len(set(alone)) > 1
    ahead = SpeculativeSampler(LARGE, large, SMALL, small)
    assert text(ahead, temperature=0.0) == alone and ahead.kept < ahead.proposed
    assert text(ahead, temperature=0.0, eos_id=39) == alone[: alone.index(39) + 1]
    itself = SpeculativeSampler(LARGE, large, LARGE, large)  # proposes what is wanted
    assert text(itself, temperature=0.0) == alone and itself.kept == itself.proposed > 150
    drawn_text = text(itself, seed=3, max_tokens=60)
    assert len(drawn_text) == 60 and itself.kept == itself.proposed


def test_distribution_is_that_of_the_large_model():
    """Of two tokens that follow one another, whatever is proposed: within four standard errors."""
    rng, count = np.random.default_rng(0), 20_000
    first = np.array([0.5, 0.3, 0.2, 0.0])
    second = rng.dirichlet(np.ones(4), 4)  # after each first token
    own_first, own_second = np.array([0.1, 0.6, 0.1, 0.2]), rng.dirichlet(np.ones(4), 4)
    found = collections.Counter()
    for _ in range(count):
        a = drawn(own_first, rng)
        b = drawn(own_second[a], rng)
        made = accepted([first, second[a], np.ones(4) / 4], [a, b], [own_first, own_second[a]], rng)
        if len(made) == 1:
            made.append(drawn(second[made[0]], rng))
        found[tuple(made[:2])] += 1
    for pair in itertools.product(range(4), repeat=2):
        wanted = first[pair[0]] * second[pair]
        assert abs(found[pair] / count - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / count)


def test_tables_that_are_filled_up_differently(tmp_path):
    """Models of one tokenizer: rows that it has no text for are drawn from neither."""
    wider = dataclasses.replace(SMALL, n_vocab=64)
    (tmp_path / "small").mkdir()
    large, small = save_random(LARGE, str(tmp_path)), save_random(wider, str(tmp_path / "small"))
    how = {"temperature": 0.0, "max_tokens": 40, "n_ids": 48}
    ahead = SpeculativeSampler(LARGE, large, wider, small, ids=48)
    assert text(ahead, **how) == text(FastSampler(LARGE, large), **how)
    assert len(text(ahead, seed=3, max_tokens=60, n_ids=48)) == 60


def test_pairs_that_cannot_be():
    with pytest.raises(ConfigError, match="n_vocab is 48, of --draft 50"):
        SpeculativeSampler(LARGE, "", ModelConfig(n_head=2, n_embd=16, n_layer=1, n_vocab=50, n_ctx=8), "")
    other = ModelConfig(n_head=2, n_embd=16, n_layer=1, attention_types=("gla",), **COMMON)
    with pytest.raises(ConfigError, match="'gla'"):
        SpeculativeSampler(LARGE, "", other, "")
