"""The attention that is shown is the one that the layers compute."""

import numpy as np
import pytest

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.attention.chunkwise import recurrent
from gpt_neo.mtf_compat import tf
from gpt_neo.serving.attention_maps import attention_weights, gla_weights, linear_weights

RNG = np.random.RandomState(0)
LENGTH, WIDTH = 9, 4


def test_gla_weights_are_those_of_the_recurrence():
    q, k = RNG.normal(size=[2, LENGTH, WIDTH])
    decay = -RNG.exponential(size=[LENGTH, WIDTH])
    with tf.Graph().as_default(), tf.Session() as session:
        # With the unit matrix as values, the output of a token is its weights.
        tensors = [tf.constant(x[None, :, None]) for x in (q / np.sqrt(WIDTH), k, np.eye(LENGTH), decay)]
        expected = session.run(recurrent(*tensors)[0])[0, :, 0]
    np.testing.assert_allclose(gla_weights(q, k, decay), expected, atol=1e-12)
    assert np.isfinite(gla_weights(q, k, decay * 1e4)).all()


def test_linear_weights_are_a_mean_over_earlier_tokens():
    q, k = RNG.normal(size=[2, LENGTH, WIDTH])
    found, soft = linear_weights(q, k), np.exp(q) / np.exp(q).sum(-1, keepdims=True)
    for t in range(LENGTH):
        scores = [soft[t] @ np.exp(k[u]) for u in range(t + 1)]
        np.testing.assert_allclose(found[t, : t + 1], scores / (np.sum(scores) + 1e-6), rtol=1e-10)
        assert not found[t, t + 1 :].any()


@pytest.mark.parametrize("kind, radius", [("global", LENGTH), ("local", 3)])
def test_softmax_weights_of_one_head(kind, radius):
    config = ModelConfig(n_head=2, n_embd=8, n_layer=1, n_vocab=8, n_ctx=16, local_attention_radius=3)
    q, k = RNG.normal(size=[2, LENGTH, 2, WIDTH])
    found = attention_weights(kind, [q, k], 1, config)
    for t in range(LENGTH):
        first = max(0, t - radius + 1)
        scores = np.exp([q[t, 1] @ k[u, 1] for u in range(first, t + 1)])
        np.testing.assert_allclose(found[t, first : t + 1], scores / scores.sum(), rtol=1e-10)
        assert found[t].sum() == pytest.approx(1)


def test_the_server_shows_what_each_kind_of_layer_attends_with(server, model):
    text = "The reindeer of the far"
    count = len(model.tokenizer.encode(text))
    for layer, kind in enumerate(("global", "local", "gla")):
        status, _, found = server.fetch("/attention", {"prompt": text, "layer": layer, "head": 1})
        assert status == 200 and found["kind"] == kind and len(found["tokens"]) == count
        assert [len(row) for row in found["weights"]] == list(range(1, count + 1))
        if kind != "gla":
            assert all(abs(sum(row) - 1) < 1e-3 for row in found["weights"])
        else:
            assert len(found["decay"]) == count and all(0 < x < 1 for x in found["decay"])
    # The same tensors as the layers get in decoding: the first layer's weights from a second way to q and k.
    kind, (q, k) = server.decoder.attention_inputs(model.tokenizer.encode(text), 0)
    rows = attention_weights(kind, [q, k], 1, model.config)
    shown = server.fetch("/attention", {"prompt": text, "layer": 0, "head": 1})[2]["weights"]
    np.testing.assert_allclose([x for row in shown for x in row], rows[np.tril_indices(count)], atol=1e-5)
