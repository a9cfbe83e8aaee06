"""Making variables with the legacy names, types and initial values."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.mtf_compat import mtf, tf


def variable_dtype(config: ModelConfig) -> Any:
    """Masters and activations in the precision of the config."""
    dtype = tf.bfloat16 if config.precision == "bfloat16" else tf.float32
    return mtf.VariableDType(master_dtype=dtype, slice_dtype=dtype, activation_dtype=dtype)


def normal(mesh: Any, name: str, shape: Any, std: float, config: ModelConfig) -> Any:
    """A variable drawn from a normal distribution of standard deviation `std`."""
    initializer = tf.random_normal_initializer(stddev=std)
    return mtf.get_variable(mesh, name, shape, dtype=variable_dtype(config), initializer=initializer)


def constant(mesh: Any, name: str, shape: Any, value: float, config: ModelConfig) -> Any:
    """A variable that starts at one value."""
    initializer = tf.constant_initializer(value)
    return mtf.get_variable(mesh, name, shape, dtype=variable_dtype(config), initializer=initializer)
