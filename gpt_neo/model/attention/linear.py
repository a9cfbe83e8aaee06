"""Linear attention of the legacy program: softmax of queries over features, exponential of keys.

    o_t = softmax(q_t) sum_{u<=t} exp(k_u)^T v_u / (softmax(q_t) . (1e-6 + sum_{u<=t} exp(k_u)))

a mean of the values, weighted by softmax(q_t) . exp(k_u) (after Katharopoulos et al. 2020, "Transformers are RNNs",
arXiv 2006.16236, section 3, and Shen et al. 2018, "Efficient Attention", arXiv 1812.01243). exp(k) is not bounded.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model.attention.softmax import project_output, project_qkv
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims
from gpt_neo.mtf_compat import Dimension, Tensor, mtf, tf
from gpt_neo.ops.linear_recurrence import advance
from gpt_neo.ops.parameters import Parameters
from gpt_neo.ops.recurrent import only_real, recurrence

EPSILON = 1e-6


def linear_attention(x: Tensor, p: Parameters, layer: int, dims: Dims, config: ModelConfig, context: Context) -> Tensor:
    """Linear attention with the projections of a softmax layer: [batch, sequence, embd] -> the same.

    Raises:
      ConfigError: decoding with `causal` false, where a new token changes every earlier output.
    """
    q, k, v = project_qkv(x, p, dims)
    context.show(layer, q, k)
    if config.causal:
        size = dims.features.size
        out = recurrence(linear_kernel, [q, k, v], v, (size, size + 1), layer, context.decoding)
    elif context.decoding:
        raise ConfigError("key 'causal' is False: such a model cannot be sampled from, token after token")
    else:
        out = bidirectional(q, k, v, dims.sequence)
    return project_output(out, p, [dims.heads, dims.features])


def linear_weights(shown: list, config: ModelConfig, kind: str) -> np.ndarray:
    """The weights of the mean: softmax(q) exp(k), made to sum to 1 over the earlier tokens."""
    q, k = shown
    queries = np.exp(q - q.max(-1, keepdims=True))
    queries /= queries.sum(-1, keepdims=True)
    weights = np.tril(queries @ np.exp(k).T)
    return weights / (weights.sum(-1, keepdims=True) + EPSILON)


def linear_kernel(
    q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, real: Optional[tf.Tensor], state: Optional[tf.Tensor]
) -> tuple:
    """Causal linear attention, in float32 (see `stateful`).

    The denominator is the sum over values of 1, carried as one more feature; softmax(q) sums to 1, so 1e-6 does too.

    Args:
      q, k: [batch, sequence, heads, features_in].
      v: [batch, sequence, heads, features].
      state: [batch, heads, features_in, features] after earlier tokens.
    """
    queries = tf.nn.softmax(tf.cast(q, tf.float32))
    weights = only_real(tf.exp(tf.cast(k, tf.float32)), real)
    values = tf.cast(v, tf.float32)
    values = tf.concat([values, tf.ones_like(values[..., :1])], -1)
    out, state = advance(queries, weights, values, None, state)
    return tf.cast(out[..., :-1] / (out[..., -1:] + EPSILON), v.dtype), state


def bidirectional(q: Tensor, k: Tensor, v: Tensor, sequence: Dimension) -> Tensor:
    """Every token sees every other: softmax(q) over features times sum_u softmax(k)_u v_u, softmax over the sequence.

    q, k, v and the result are [batch, sequence, heads, features_per_head].
    """
    inner = mtf.Dimension("features_per_head_in", q.shape.dims[-1].size)
    shape = v.shape
    q, k = (mtf.rename_dimension(mtf.cast(x, tf.float32), shape.dims[-1].name, inner.name) for x in (q, k))
    q, k = mtf.softmax(q, inner), mtf.softmax(k, sequence)
    outer = [d for d in shape.dims if d not in (sequence, shape.dims[-1])]
    means = mtf.einsum([k, mtf.cast(v, tf.float32)], output_shape=mtf.Shape([*outer, inner, shape.dims[-1]]))
    return mtf.cast(mtf.einsum([q, means], output_shape=shape), v.dtype)
