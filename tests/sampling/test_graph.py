"""Drawing as a graph against drawing in NumPy: the same tokens of the same numbers."""

import itertools

import numpy as np
import pytest

from gpt_neo.mtf_compat import tf
from gpt_neo.ops.kernels import inlined
from gpt_neo.sampling.filters import SampleOptions, draw, row_generator
from gpt_neo.sampling.graph import GraphOptions, draw_tokens

ROWS, VOCAB = 8, 50
TEMPERATURES, TOP_K, TOP_P = (0.0, 0.3, 0.9, 2.5), (0, 1, 7, 49, 50, 1000), (1.0, 0.9, 0.3, 1e-9)


@pytest.mark.parametrize("alpha, n_ids", [(None, None), (None, 41), (1.5, None), (1.2, 41), (2.0, None)])
def test_same_tokens_as_numpy(alpha, n_ids):
    rng = np.random.RandomState(0)
    logits = rng.normal(0, 2, [ROWS, VOCAB]).astype(np.float32)
    logits[1] = np.round(logits[1])  # many equal ones
    logits[2] = 0.5  # nothing but equal ones
    logits[3, 7:] = -np.inf
    with tf.Graph().as_default(), inlined(), tf.Session() as session:
        fed = tf.placeholder(tf.float32, [ROWS, VOCAB])
        uniform = tf.placeholder(tf.float64, [ROWS])
        temperature, top_k, top_p = (tf.placeholder(dtype, []) for dtype in (tf.float64, tf.int32, tf.float64))
        token = draw_tokens(fed[:, :n_ids], uniform, GraphOptions(temperature, top_k, top_p, alpha))
        for seed, (t, k, p) in enumerate(itertools.product(TEMPERATURES, TOP_K, TOP_P)):
            options = SampleOptions(temperature=t, top_k=k, top_p=p, entmax_alpha=alpha, n_ids=n_ids)
            numbers = [row_generator(seed, 0, row).random() for row in range(ROWS)]
            got = session.run(token, {fed: logits, uniform: numbers, temperature: t, top_k: k, top_p: p})
            wanted = [draw(logits[row], options, row_generator(seed, 0, row)) for row in range(ROWS)]
            assert got.tolist() == wanted, (t, k, p)


@pytest.mark.parametrize("share", [0.0, np.nextafter(1.0, 0.0)])
def test_ends_of_the_interval_draw_what_has_a_chance(share):
    logits = np.array([[0.0, -1.0, 3.0, 4.0, -2.0, 3.5, -9.0]], np.float32)  # of 7 three stay
    with tf.Graph().as_default(), inlined(), tf.Session() as session:
        temperature, top_k, top_p = tf.constant(1.0, tf.float64), tf.constant(3), tf.constant(1.0, tf.float64)
        uniform = tf.constant([share], tf.float64)
        token = draw_tokens(tf.constant(logits), uniform, GraphOptions(temperature, top_k, top_p))
        assert session.run(token).tolist() == [5 if share else 2]
