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
