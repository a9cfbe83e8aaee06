"""Gated Linear Attention (Yang et al. 2023, arXiv 2312.06635, section 4), with the choices of its authors' library fla.

Per head, with q, k, v, z, r linear in x, z of low rank and with a bias:

    log_decay_t = max(logsigmoid(z_t) / gate_logit_normalizer, clamp_min)
    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t
    y_t = rms_norm(features_in^-1/2 q_t S_t) * g * swish(r_t)

The norm is over the features of a head, its weight g is shared by the heads. Heads are joined and projected back.
"""

from __future__ import annotations

import functools
from typing import Optional

import numpy as np

from gpt_neo.config.schema import GlaParams, ModelConfig
from gpt_neo.model.attention.softmax import project, project_output
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims
from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.linear_recurrence import advance
from gpt_neo.ops.matmul import matmul
from gpt_neo.ops.parameters import Parameters
from gpt_neo.ops.recurrent import only_real, recurrence
from gpt_neo.ops.row_sums import plus, times


def gla_attention(x: Tensor, p: Parameters, layer: int, dims: Dims, config: ModelConfig, context: Context) -> Tensor:
    """Gated linear attention with its projections: [batch, sequence, embd] -> the same."""
    heads = mtf.Dimension("heads", config.gla_heads)
    features_in = mtf.Dimension("features_per_head_in", config.gla_key_width // heads.size)
    features = mtf.Dimension("features_per_head", config.gla_value_width // heads.size)
    q, k = project(x, p, "q k", [heads, features_in])
    v, *gate = project(x, p, "v output_gate" if config.gla_params.use_output_gate else "v", [heads, features])
    tensors = [q, k, v, gate_logits(x, p, [heads, features_in]), *gate]
    context.show(layer, q, k, tensors[3])
    kernel = functools.partial(gla_kernel, params=config.gla_params)
    out = recurrence(kernel, tensors, v, (features_in.size, features.size), layer, context.decoding)
    return project_output(times(out, p["g_norm/g"]), p, [heads, features])


def gate_logits(x: Tensor, p: Parameters, apart: list) -> Tensor:
    """Logits of the decay through a bottleneck: [..., embd] -> [..., heads, features_in]."""
    merged = mtf.Dimension(apart[0].name, apart[0].size * apart[1].size)
    low = matmul(x, p["gate_down"], x.shape.dims[-1:])
    up, bias = (mtf.replace_dimensions(p[f"gate_up/{name}"], merged, apart) for name in ("kernel", "bias"))
    return plus(matmul(low, up, low.shape.dims[-1:]), bias)


def log_decay(logits: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Logarithm of the decay, at most 0, of gate logits."""
    params = config.gla_params
    found = -np.logaddexp(0.0, -logits) / params.gate_logit_normalizer
    return found if params.clamp_min is None else np.maximum(found, params.clamp_min)


def gla_weights(shown: list, config: ModelConfig, kind: str) -> np.ndarray:
    """The weights of the recurrence, of either sign, before the norm."""
    q, k, logits = shown
    return decayed_weights(q, k, log_decay(logits, config))


def decayed_weights(q: np.ndarray, k: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """q_t diag(product of the decays from u + 1 to t) k_u / sqrt(features), of logarithms of the decay.

    Row after row, as exp of a difference of sums: the sums alone would overflow.
    """
    passed = np.cumsum(decay, 0)
    weights = np.zeros([len(q), len(q)])
    for t in range(len(q)):
        weights[t, : t + 1] = (q[t] * k[: t + 1] * np.exp(passed[t] - passed[: t + 1])).sum(-1)
    return weights / np.sqrt(q.shape[-1])


def gla_kernel(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    logits: tf.Tensor,
    gate: Optional[tf.Tensor] = None,
    *,
    params: GlaParams,
    real: Optional[tf.Tensor],
    state: Optional[tf.Tensor],
) -> tuple:
    """All between the projections but the weight of the norm, in float32 (see `stateful`).

    Args:
      q, k, logits: [batch, sequence, heads, features_in].
      v, gate: [batch, sequence, heads, features].
      state: [batch, heads, features_in, features] after earlier tokens.
    """
    queries, keys, values, logits = (tf.cast(x, tf.float32) for x in (q, k, v, logits))
    log_decay = tf.math.log_sigmoid(logits) / params.gate_logit_normalizer
    if params.clamp_min is not None:
        log_decay = tf.maximum(log_decay, params.clamp_min)
    keys, log_decay = only_real(keys, real), only_real(log_decay, real)
    queries *= int(q.shape[-1]) ** -0.5
    out, state = advance(queries, keys, values, log_decay, state)
    out *= tf.math.rsqrt(tf.reduce_mean(tf.square(out), -1, keepdims=True) + params.norm_eps)
    if gate is not None:
        out *= tf.nn.silu(tf.cast(gate, tf.float32))
    return tf.cast(out, v.dtype), state
