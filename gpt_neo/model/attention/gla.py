"""Gated Linear Attention (Yang et al. 2023, arXiv 2312.06635, section 4), with the choices of its authors' library fla.

Per head, with q, k, v, z, r linear in x, z of low rank and with a bias:

    log_decay_t = max(logsigmoid(z_t) / gate_logit_normalizer, clamp_min)
    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t
    y_t = rms_norm(features_in^-1/2 q_t S_t) * g * swish(r_t)

The norm is over the features of a head, its weight g is shared by the heads. Heads are joined and projected back.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Optional

from gpt_neo.config.schema import GlaParams, ModelConfig
from gpt_neo.model import variables
from gpt_neo.model.attention.chunkwise import advance
from gpt_neo.model.attention.projections import project
from gpt_neo.model.attention.stateful import attend, only_real
from gpt_neo.model.context import Context
from gpt_neo.model.contract import contract
from gpt_neo.model.dims import Dims
from gpt_neo.model.row_sums import plus, times
from gpt_neo.mtf_compat import mtf, tf

GATE_STD = 0.02  # of the second gate matrix: gates start near sigmoid(0)^(1/16), a half-life of 16 tokens


def gla_layer(x: Any, kind: str, dims: Dims, config: ModelConfig, context: Context) -> Any:
    """Gated linear attention with its projections: [batch, sequence, embd] -> the same.

    Variables: q, k [embd, heads * features_in], v, output_gate [embd, heads * features], gate_down [embd, rank],
    gate_up/kernel [rank, heads * features_in], gate_up/bias, g_norm/g [features], o [heads * features, embd].
    """
    params = config.gla_params
    heads = mtf.Dimension("heads", config.gla_heads)
    features_in = mtf.Dimension("features_per_head_in", config.gla_key_width // heads.size)
    features = mtf.Dimension("features_per_head", config.gla_value_width // heads.size)
    wide_in, wide = (dataclasses.replace(dims, heads=heads, features=f) for f in (features_in, features))
    std = dims.embd.size**-0.5
    q, k = project(x, {"q": std, "k": std}, wide_in, config, bias=False)
    gated = {"output_gate": std} if params.use_output_gate else {}
    v, *gate = project(x, {"v": std, **gated}, wide, config, bias=False)
    tensors = [q, k, v, gate_logits(x, heads, features_in, dims, config), *gate]
    context.show(kind, q, k, tensors[3])
    kernel = functools.partial(gla_kernel, params=params)
    out = attend(kernel, tensors, v, (features_in.size, features.size), dims, context)
    out = times(out, variables.constant(x.mesh, "g_norm/g", mtf.Shape([features]), 1.0, config))
    merged = mtf.Dimension(heads.name, heads.size * features.size)
    weight = variables.normal(x.mesh, "o", mtf.Shape([merged, dims.embd]), merged.size**-0.5, config)
    return contract(out, mtf.replace_dimensions(weight, merged, [heads, features]), [heads, features])


def gate_logits(x: Any, heads: Any, features_in: Any, dims: Dims, config: ModelConfig) -> Any:
    """Logits of the decay through a bottleneck: [..., embd] -> [..., heads, features_in]."""
    rank = mtf.Dimension("gate_low_rank", config.gla_params.gate_low_rank_dim)
    merged = mtf.Dimension(heads.name, heads.size * features_in.size)
    down = variables.normal(x.mesh, "gate_down", mtf.Shape([dims.embd, rank]), dims.embd.size**-0.5, config)
    up = variables.normal(x.mesh, "gate_up/kernel", mtf.Shape([rank, merged]), GATE_STD, config)
    bias = variables.constant(x.mesh, "gate_up/bias", mtf.Shape([merged]), 0.0, config)
    up, bias = (mtf.replace_dimensions(w, merged, [heads, features_in]) for w in (up, bias))
    return plus(contract(contract(x, down, [dims.embd]), up, [rank]), bias)


def gla_kernel(
    q: Any,
    k: Any,
    v: Any,
    logits: Any,
    gate: Optional[Any] = None,
    *,
    params: GlaParams,
    real: Optional[Any],
    state: Optional[Any],
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
