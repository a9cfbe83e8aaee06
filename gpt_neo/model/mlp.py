"""The feed-forward half of a block."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model import variables
from gpt_neo.model.activations import get_activation
from gpt_neo.model.contract import contract
from gpt_neo.model.dims import Dims
from gpt_neo.model.dropout import dropout
from gpt_neo.mtf_compat import mtf, tf


def linear(x: Any, name: str, source: Any, target: Any, std: float, config: ModelConfig) -> Any:
    """x W + b from dimension `source` to `target`, in variables `conv1d_main/<name>/{kernel,bias}`."""
    if config.scale_by_in:
        std /= source.size**0.5
    with tf.variable_scope(f"conv1d_main/{name}"):
        kernel = variables.normal(x.mesh, "kernel", mtf.Shape([source, target]), std, config)
        bias = variables.constant(x.mesh, "bias", mtf.Shape([target]), 0.0, config)
    return contract(x, kernel, [source]) + bias


def mlp(x: Any, dims: Dims, config: ModelConfig, is_training: bool) -> Any:
    """Two linear maps with an activation between. x and the result are [batch, sequence, embd]."""
    depth = config.n_layer**-0.5 if config.scale_by_depth else 1.0
    hidden = linear(x, "c_fc", dims.embd, dims.hidden, 0.02, config)
    hidden = get_activation(config.activation_function)(hidden)
    out = linear(hidden, "c_proj", dims.hidden, dims.embd, 0.02 * depth, config)
    if config.res_dropout > 0 and is_training:
        out = dropout(out, config.res_dropout)
    return out
