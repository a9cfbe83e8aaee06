"""OpenVINO, without the package through which it tells its makers that it was imported, and by whom.

That package is hidden only while OpenVINO is imported, which then takes a stand-in of its own for it.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

HIDDEN = "openvino_telemetry"
modules: dict[str, Any] = sys.modules

if "openvino" not in modules and HIDDEN not in modules:
    modules[HIDDEN] = None
    try:
        import openvino  # noqa: F401
    finally:
        del modules[HIDDEN]

from openvino import Core, Model, PartialShape, Shape, Tensor, Type  # noqa: E402
from openvino import opset13 as op  # noqa: E402
from openvino.op import _PagedAttentionExtension as PagedAttention  # noqa: E402

__all__ = ["Core", "Model", "PagedAttention", "PartialShape", "Shape", "Tensor", "Type", "core", "op"]


@functools.cache
def core() -> Core:
    """The one of this process.

    Each gives the thread that asks it first a stack for signals, and takes it away when it goes. Where one has gone
    that was not the last to come, the next signal ends the process.
    """
    return Core()
