"""Making variables with the legacy names, types and initial values."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.trained import TrainingGraph, trained_variable
from gpt_neo.mtf_compat import mtf, tf


def activation_dtype(config: ModelConfig) -> Any:
    """The type of what layers read and write."""
    return tf.bfloat16 if config.precision == "bfloat16" else tf.float32


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
    """A weight, or the one of that name that is there already; see `trained.py` for those that are trained."""
    with weight_scope(config):
        if isinstance(mesh.graph, TrainingGraph):
            return trained_variable(mesh, name, mtf.Shape(shape), activation_dtype(config), initializer)
        return mtf.get_variable(mesh, name, shape, dtype=activation_dtype(config), initializer=initializer)


def normal(mesh: Any, name: str, shape: Any, std: float, config: ModelConfig) -> Any:
    """A variable drawn from a normal distribution of standard deviation `std`."""
    return make(mesh, name, shape, tf.random_normal_initializer(stddev=std), config)


def constant(mesh: Any, name: str, shape: Any, value: float, config: ModelConfig) -> Any:
    """A variable that starts at one value."""
    return make(mesh, name, shape, tf.constant_initializer(value), config)
