"""Making variables with the legacy names, types and initial values."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.mtf_compat import mtf, tf


def variable_dtype(config: ModelConfig) -> Any:
    """Masters and activations in the precision of the config."""
    dtype = tf.bfloat16 if config.precision == "bfloat16" else tf.float32
    return mtf.VariableDType(master_dtype=dtype, slice_dtype=dtype, activation_dtype=dtype)


def weight_scope(config: ModelConfig) -> Any:
    """The variable scope of a weight: the current one, or with `share_parameters` that of all blocks.

    The legacy program gave shared blocks an empty name, so that theirs have a double slash: gpt2//attn/q. What a block
    keeps while it decodes is its own and stays in gpt2/hL.
    """
    scope = tf.get_variable_scope()
    if not config.share_parameters:
        return contextlib.nullcontext()
    name = re.sub(r"^gpt2/h\d+", "gpt2/", scope.name)
    shared = tf.VariableScope(scope.reuse, name=name, custom_getter=scope.custom_getter)
    return tf.variable_scope(shared, auxiliary_name_scope=False)


def make(mesh: Any, name: str, shape: Any, initializer: Any, config: ModelConfig) -> Any:
    """A weight, or the one of that name that is there already."""
    with weight_scope(config):
        return mtf.get_variable(mesh, name, shape, dtype=variable_dtype(config), initializer=initializer)


def normal(mesh: Any, name: str, shape: Any, std: float, config: ModelConfig) -> Any:
    """A variable drawn from a normal distribution of standard deviation `std`."""
    return make(mesh, name, shape, tf.random_normal_initializer(stddev=std), config)


def constant(mesh: Any, name: str, shape: Any, value: float, config: ModelConfig) -> Any:
    """A variable that starts at one value."""
    return make(mesh, name, shape, tf.constant_initializer(value), config)
