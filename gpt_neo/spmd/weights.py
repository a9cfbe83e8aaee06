"""A checkpoint's weights on the devices of a program that does not train."""

from __future__ import annotations

import numpy as np

from gpt_neo.checkpoint.fit import fit_checkpoint
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.messages import np_dtype


def put_weights(devices: Devices, path: str) -> list[str]:
    """Give the devices their slices of a checkpoint, and zeros where the program keeps something of its own.

    Returns:
      notes on what was done on the way.

    Raises:
      CheckpointError: it does not fit; nothing is loaded then.
    """
    description = devices.program.description
    kept = set(description["kept"])
    variables = description["variables"]
    fit = fit_checkpoint(path, {name: about["shape"] for name, about in variables.items() if name not in kept})
    for name, about in variables.items():
        dtype = np_dtype(about["dtype"])
        devices.put(name, np.zeros(about["shape"], dtype) if name in kept else fit.value(name, dtype))
    return list(fit.notes)
