"""Normalisation of the residual stream, and rezero in its place."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model import variables
from gpt_neo.model.fused_ops import normalize
from gpt_neo.model.layer_norm import scaled_layer_norm
from gpt_neo.model.rms_norm import rms_normalize
from gpt_neo.model.row_sums import times
from gpt_neo.mtf_compat import mtf, tf


def block_norm(x: Any, name: str, embd: Any, config: ModelConfig) -> Any:
    """The norm before a half of a block, as `norm_type` says; nothing with rezero.

    Args:
      x: [..., embd].
      name: variable scope.

    Returns:
      a tensor of the shape and type of x.
    """
    if config.rezero:
        return x
    return {"layernorm": layer_norm, "rmsnorm": rms_norm, "scalenorm": scale_norm}[config.norm_type](
        x, name, embd, config
    )


def final_norm(x: Any, name: str, embd: Any, config: ModelConfig) -> Any:
    """The norm after the blocks: a layer norm, also beside scalenorm and rezero, unless blocks have RMS norms."""
    return (rms_norm if config.norm_type == "rmsnorm" else layer_norm)(x, name, embd, config)


def layer_norm(x: Any, name: str, embd: Any, config: ModelConfig) -> Any:
    """Layer norm over `embd` (Ba et al. 2016), statistics in float32, with `g` and `b` of shape [embd]."""
    with tf.variable_scope(name):
        scale = variables.constant(x.mesh, "g", mtf.Shape([embd]), 1.0, config)
        shift = variables.constant(x.mesh, "b", mtf.Shape([embd]), 0.0, config)
    return scaled_layer_norm(x, scale, shift, config.norm_epsilon)


def rms_norm(x: Any, name: str, embd: Any, config: ModelConfig) -> Any:
    """RMS norm over `embd` (Zhang and Sennrich 2019), statistics in float32, with `g` of shape [embd]."""
    with tf.variable_scope(name):
        scale = variables.constant(x.mesh, "g", mtf.Shape([embd]), 1.0, config)
    return times(rms_normalize(x, embd, config.norm_epsilon), scale)


def scale_norm(x: Any, name: str, embd: Any, config: ModelConfig) -> Any:
    """The legacy program's scalenorm: mean and variance as in a layer norm, one scale `g`, no shift."""
    with tf.variable_scope(name):
        scale = variables.constant(x.mesh, "g", mtf.Shape([]), 1.0, config)
    return times(normalize(x, embd, config.norm_epsilon), scale)


def rezero(x: Any, name: str, config: ModelConfig) -> Any:
    """A residual branch times a learned number that starts at 0 (Bachlechner et al. 2020); x without rezero."""
    if not config.rezero:
        return x
    with tf.variable_scope(name):
        return times(x, variables.constant(x.mesh, "g", mtf.Shape([]), 0.0, config))
