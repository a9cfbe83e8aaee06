"""Whether OpenVINO runs a model. Asking imports it only where it is installed."""

from __future__ import annotations

import importlib.util
import os
from typing import Optional

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.system import how_to_install

GPU = "/dev/nvidiactl"  # there where TensorFlow may find a GPU; to ask it would take seconds


def choose(
    model: ModelConfig, backend: str = "auto", integers: Optional[str] = None, devices: bool = False
) -> tuple[bool, Optional[str]]:
    """(whether OpenVINO runs the model, a note for the person or None).

    Args:
      backend: auto, openvino or tensorflow.
      integers: int8 or int4 where the weights are to be that, which OpenVINO alone has.
      devices: whether devices are named, which TensorFlow alone has.

    Raises:
      ConfigError: it is asked for and cannot.
    """
    asked = "--backend openvino" if backend == "openvino" else f"--dtype {integers}" if integers else ""
    if backend == "tensorflow":
        if integers:
            raise ConfigError(f"--dtype {integers} goes with --backend openvino, not with --backend tensorflow")
        return False, None
    reason = lacking(model, devices)
    if reason and asked:
        raise ConfigError(f"{asked}: {reason}")
    if reason:
        return False, f"TensorFlow runs the model, more slowly than OpenVINO would: {reason}" if installed() else None
    return bool(asked) or not has_gpu(), None


def installed() -> bool:
    """Whether OpenVINO is there."""
    return importlib.util.find_spec("openvino") is not None


def lacking(model: ModelConfig, devices: bool) -> Optional[str]:
    """Why OpenVINO cannot run the model; None if it can."""
    if not installed():
        return f"the package openvino is missing: {how_to_install('fast')}"
    if devices:
        return "--gpu_ids names devices of TensorFlow"
    from gpt_neo.fast.layers import unsupported

    found = unsupported(model)
    return f"it does not have {found}" if found else None


def has_gpu() -> bool:
    """Whether there seems to be a GPU that TensorFlow would take."""
    return os.path.exists(GPU) and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")
