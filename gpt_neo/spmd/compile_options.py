"""How a program is compiled, whether its devices are there or not. For scripts of an environment without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax._src.lib import xla_client

# The compiler may leave a rounding to bfloat16 out where it makes a number wide again. On GPUs it then takes the wide
# numbers through memory, in the gradients of activations above all.
OF_PLATFORM = {"gpu": [("xla_allow_excess_precision", False)]}


def compile_options(devices: Sequence[Any], platform: str) -> Any:
    """Of a program with one replica per device, in their order.

    Args:
      platform: tpu, gpu or cpu.
    """
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = len(devices), 1
    ids = np.array([device.id for device in devices]).reshape(len(devices), 1)
    options.device_assignment = xla_client.DeviceAssignment.create(ids)
    options.env_option_overrides = OF_PLATFORM.get(platform, [])
    return options
