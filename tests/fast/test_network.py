"""Rows of a network that come and go: each gives what the uncached network gives, whoever else is there."""

import multiprocessing

import numpy as np
import pytest

pytest.importorskip("gpt_neo.fast.silent")

from gpt_neo.config.schema import GlaParams, ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.fast.network import Network
from tests.fast.hearing import hear_a_signal
from tests.model.tools import save_random, uncached

VOCAB, LENGTH = 48, 1100
KINDS = ("global", "local", "gla", "linear", "none", "global")


def make(kinds, folder, **more):
    config = ModelConfig(
        n_head=2,
        n_embd=more.pop("n_embd", 16),
        n_layer=len(kinds),
        n_vocab=VOCAB,
        n_ctx=LENGTH,
        attention_types=kinds,
        local_attention_radius=40,
        gla_params=GlaParams(num_heads=4),
        **more,
    )
    return config, save_random(config, str(folder), scale=0.3)


@pytest.mark.parametrize(
    "kinds, more", [(("global", "local"), {}), (KINDS, {}), (("local", "global"), {"num_mem_kv": 5})]
)
def test_a_long_text_in_a_ring_equals_uncached(kinds, more, tmp_path):
    config, checkpoint = make(kinds, tmp_path, **more)
    tokens = np.random.RandomState(1).randint(0, VOCAB, [1, LENGTH]).astype(np.int32)
    expected = uncached(config, checkpoint, tokens)[0]
    network = Network(config, checkpoint, rows=2)
    assert network.ring[1] < network.ring[0]  # positions are written over
    with pytest.raises(ValueError, match="at once; at most"):
        network.read([0], [tokens[0]], [0])
    close = {"atol": 1e-5 * np.abs(expected).max(), "rtol": 0}
    read = LENGTH - 46  # then as many one by one: more than the window; learned keys begin a block more
    np.testing.assert_allclose(network.prefill(1, tokens[0, :read], every=True), expected[:read], **close)
    network.copy(1, 0, read)
    for at in range(read, LENGTH):
        logits = network.read([0, 1], [tokens[0, at : at + 1]] * 2, [at, at])
        np.testing.assert_allclose(logits[0], expected[at], **close)
        np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_a_row_does_not_depend_on_its_neighbours(dtype, tmp_path):
    """To the last bit: alone beside idle rows, and among rows that begin, read and end."""
    # In fewer bits from 4,096 numbers a matrix, and 32 inputs.
    config, checkpoint = make(KINDS, tmp_path, **({} if dtype == "float32" else {"n_embd": 128}))
    rng = np.random.RandomState(2)
    network = Network(config, checkpoint, rows=4, dtype=dtype)
    tokens = rng.randint(0, VOCAB, [4, 200])
    alone = [network.prefill(1, tokens[1, :70])]
    for at in range(70, 105):
        fed = [tokens[1, at : at + 1]] + [[0]] * 3
        alone.append(network.read([1, -1, -1, -1], fed, [at, 0, 0, 0])[0])
    among = [network.prefill(1, tokens[1, :70])]
    past = {0: 0, 2: 0, 3: 0}
    for at in range(70, 105):
        going = [row for row in past if rng.rand() < 0.7]
        for row in going:
            if past[row] == 0 or rng.rand() < 0.05:
                past[row] = 3 * row + 1
                network.prefill(row, tokens[row, : past[row]])
        rows = [1, *going, *[-1] * (3 - len(going))]
        fed = [tokens[1, at : at + 1], *(tokens[row, past[row] : past[row] + 1] for row in going)]
        fed += [[0]] * (4 - len(fed))
        among.append(network.read(rows, fed, [at, *(past[row] for row in going), *[0] * (3 - len(going))])[0])
        for row in going:
            past[row] += 1
    np.testing.assert_array_equal(alone, among)


def test_rows_of_any_lengths_are_read_at_once(tmp_path):
    config, checkpoint = make(("global", "local"), tmp_path)
    rng = np.random.RandomState(3)
    texts = [rng.randint(0, VOCAB, n).astype(np.int32) for n in (1, 90, 33, 250)]
    network = Network(config, checkpoint, rows=4)
    together = network.read(range(4), texts, [0] * 4)
    filled = np.array([np.pad(text, (0, 250 - len(text))) for text in texts])  # what follows a token says nothing of it
    expected = uncached(config, checkpoint, filled)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(together[row], expected[row, len(text) - 1], atol=1e-5)
    last = [1, 5, 2, 7]  # of each the last ones, row after row
    several = network.read(range(4), texts, [0] * 4, last)
    wanted = [expected[row, len(text) - count : len(text)] for row, (text, count) in enumerate(zip(texts, last))]
    np.testing.assert_allclose(several, np.concatenate(wanted), atol=1e-5)


def test_a_ring_holds_the_window_wherever_a_text_is_cut(tmp_path):
    """Pieces that begin 6 tokens into a block of 32: with the 39 keys before them they touch 19 blocks."""
    config, checkpoint = make(("local", "global"), tmp_path)
    tokens = np.random.RandomState(5).randint(0, VOCAB, [1, 1094]).astype(np.int32)
    expected = uncached(config, checkpoint, tokens)[0]
    network, found = Network(config, checkpoint), []
    for at, count in ((0, 70), (70, 512), (582, 512)):
        found.append(network.read([0], [tokens[0, at : at + count]], [at], [count]))
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("cache, close", [("f16", 2e-3), ("u8", 0.05)])
def test_smaller_caches_are_near(cache, close, tmp_path):
    config, checkpoint = make(("global", "local"), tmp_path)
    tokens = np.random.RandomState(4).randint(0, VOCAB, 300).astype(np.int32)
    expected = uncached(config, checkpoint, tokens[np.newaxis])[0]
    network = Network(config, checkpoint, cache=cache)
    found = np.concatenate([network.read([0], [tokens[i : i + 20]], [i], [20]) for i in range(0, 300, 20)])
    error = np.abs(found - expected).max() / expected.std()
    assert 0 < error < close


def test_signals_are_heard_after_networks_have_gone(tmp_path):
    """A crash leaves -11 here."""
    child = multiprocessing.get_context("spawn").Process(target=hear_a_signal, args=make(("global",), tmp_path))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_learned_keys_do_not_go_into_caches_of_integers():
    with pytest.raises(ConfigError, match="--cache u8: a model of num_mem_kv 5 needs f32"):
        Network(
            ModelConfig(n_head=2, n_embd=16, n_layer=1, n_vocab=8, n_ctx=16, attention_types=("global",), num_mem_kv=5),
            "none",
            cache="u8",
        )
