"""How a program is compiled, whether its devices are there or not. For scripts of an environment without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax._src.lib import xla_client

VARIABLE = "GPT_NEO_XLA_OPTIONS"  # NAME=VALUE,... in the place of those below; empty: none
# The compiler may leave a rounding to bfloat16 out where it makes a number wide again. On GPUs it then takes the wide
# numbers through memory, in the gradients of activations above all.
DEFAULTS = {"gpu": {"xla_allow_excess_precision": False}}


def compile_options(devices: Sequence[Any], platform: str) -> Any:
    """Of a program with one replica per device, in their order.

    Args:
      platform: tpu, gpu or cpu.

    Raises:
      ValueError: GPT_NEO_XLA_OPTIONS cannot be read.
    """
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = len(devices), 1
    ids = np.array([device.id for device in devices]).reshape(len(devices), 1)
    options.device_assignment = xla_client.DeviceAssignment.create(ids)
    given = os.environ.get(VARIABLE)
    options.env_option_overrides = list(DEFAULTS.get(platform, {}).items()) if given is None else options_of(given)
    return options


def options_of(text: str) -> list:
    """(name, value) of NAME=VALUE,...; values are true, false, whole numbers or words.

    Raises:
      ValueError: one of them is no such pair.
    """
    found = []
    for pair in filter(None, text.split(",")):
        name, equals, word = pair.strip().removeprefix("--").partition("=")
        if not name or not equals:
            raise ValueError(f"{VARIABLE} has {pair!r}; expected NAME=VALUE,NAME=VALUE")
        value = {"true": True, "false": False}.get(word, int(word) if word.lstrip("-").isdecimal() else word)
        found.append((name, value))
    return found
