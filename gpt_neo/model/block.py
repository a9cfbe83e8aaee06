"""One block of the network: attention and feed-forward around the residual stream."""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.attention.layers import LAYERS
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims
from gpt_neo.model.dropout import dropout
from gpt_neo.model.mlp import mlp
from gpt_neo.model.moe import mixture_of_experts
from gpt_neo.model.norms import block_norm, rezero
from gpt_neo.mtf_compat import mtf, tf


def block(x: Any, layer: int, dims: Dims, config: ModelConfig, context: Context) -> Any:
    """Run a block in its variable scope, again in the backward pass when `recompute_grad` asks for it.

    Args:
      x: [batch, sequence, embd].

    Returns:
      a tensor of the shape of x; an auxiliary loss is added to the context.
    """

    def run(inputs: Any) -> Any:
        with tf.variable_scope(f"h{layer}"):
            out, auxiliary = halves(inputs, layer, dims, config, context)
        return (out,) if auxiliary is None else (out, auxiliary)

    # What leaves a recomputed function has to be among its outputs.
    recompute = config.recompute_grad and context.is_training
    out, *auxiliary = mtf.recompute_grad(run, [x]) if recompute else run(x)
    context.auxiliary_losses.extend(auxiliary)
    return out


def halves(x: Any, layer: int, dims: Dims, config: ModelConfig, context: Context) -> tuple[Any, Optional[Any]]:
    """Attention and feed-forward around the stream: (x, auxiliary loss or None).

    Pre-norm, x += attention(norm_1(x)); x += feed_forward(norm_2(x)), with the variations of the config.
    """
    half = 0.5 if config.macaron else 1.0
    if config.macaron:  # on the bare stream, as the legacy program had it
        with tf.variable_scope("mlp_macaron"):
            x += half * residual_dropout(mlp(x, dims, config), config, context)
    reads = config.attention_types[layer] != "none"
    normed = block_norm(x, "norm_1", dims.embd, config) if reads or config.shared_norm else None
    # Type none adds the stream to itself, in legacy checkpoints too.
    attended = attention(normed, layer, dims, config, context) if reads else x
    stream = x + rezero(attended, "norm_rezero_1", config)
    if not config.shared_norm:
        normed = block_norm(x if config.parallel_residual else stream, "norm_2", dims.embd, config)
    out, auxiliary = feed_forward(normed, layer, dims, config, context)
    return stream + rezero(out if half == 1.0 else half * out, "norm_rezero_2", config), auxiliary


def attention(x: Any, layer: int, dims: Dims, config: ModelConfig, context: Context) -> Any:
    """The attention of that layer, with residual dropout: [batch, sequence, embd] -> the same."""
    kind = config.attention_types[layer]
    with tf.variable_scope("attn"):
        return residual_dropout(LAYERS[kind](x, kind, dims, config, context), config, context)


def feed_forward(x: Any, layer: int, dims: Dims, config: ModelConfig, context: Context) -> tuple[Any, Optional[Any]]:
    """The feed-forward part of that layer: ([batch, sequence, embd], auxiliary loss or None)."""
    if layer in config.moe_layers:
        out, auxiliary = mixture_of_experts(x, dims, config, context)
        return residual_dropout(out, config, context), auxiliary
    with tf.variable_scope("mlp"):
        return residual_dropout(mlp(x, dims, config), config, context), None


def residual_dropout(x: Any, config: ModelConfig, context: Context) -> Any:
    """Dropout of a residual branch."""
    if config.res_dropout > 0 and context.is_training:
        return dropout(x, config.res_dropout)
    return x
