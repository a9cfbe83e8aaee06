"""Normalisation of the residual stream."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model import variables
from gpt_neo.model.layer_norm import scaled_layer_norm
from gpt_neo.mtf_compat import mtf, tf

EPSILON = 1e-5


def layer_norm(x: Any, name: str, embd: Any, config: ModelConfig) -> Any:
    """Layer norm over `embd` (Ba et al. 2016), statistics in float32.

    Args:
      x: [..., embd].
      name: variable scope; makes `g` and `b` of shape [embd].

    Returns:
      a tensor of the shape and type of x.
    """
    with tf.variable_scope(name):
        scale = variables.constant(x.mesh, "g", mtf.Shape([embd]), 1.0, config)
        shift = variables.constant(x.mesh, "b", mtf.Shape([embd]), 0.0, config)
    return scaled_layer_norm(x, scale, shift, EPSILON)
