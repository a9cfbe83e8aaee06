"""The attention half of a block, by its name in `attention_types`."""

from __future__ import annotations

from typing import Any, Callable

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.attention.cached import cached_attention
from gpt_neo.model.attention.gla import gla_layer
from gpt_neo.model.attention.linear import linear_layer
from gpt_neo.model.attention.projections import memory_kv, project_output, project_qkv, rotate_and_scale
from gpt_neo.model.attention.softmax import global_attention, local_attention
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims


def softmax_layer(x: Any, kind: str, dims: Dims, config: ModelConfig, context: Context) -> Any:
    """Global or local softmax attention with its projections: [batch, sequence, embd] -> the same."""
    q, k, v = project_qkv(x, dims, config)
    q, k = rotate_and_scale(q, k, dims, config, context)
    context.show(kind, q, k)
    radius = config.local_attention_radius if kind == "local" else None
    memory = memory_kv(x.mesh, dims, config) if kind == "global" and config.num_mem_kv else None
    if context.decoding:
        at = context.decoding
        if radius is not None and at.slots <= radius:
            radius = None  # a window that no text here outgrows needs no ring of its own
        out = (at.attend or cached_attention)(q, k, v, at, radius, memory)
    elif radius is None:
        out = global_attention(q, k, v, dims.sequence, config.attn_dropout, context.is_training, config.causal, memory)
    else:
        rate = config.attn_dropout
        out = local_attention(q, k, v, dims.sequence, radius, rate, context.is_training, config.causal)
    return project_output(out, dims, config)


# From the normed input [batch, sequence, embd] to what is added to the residual stream. "none" has no layer: its block
# adds the residual stream to itself.
LAYERS: dict[str, Callable[[Any, str, Dims, ModelConfig, Context], Any]] = {
    "global": softmax_layer,
    "local": softmax_layer,
    "linear": linear_layer,
    "gla": gla_layer,
}
