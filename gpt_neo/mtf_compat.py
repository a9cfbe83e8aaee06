"""The one place that touches version-dependent TensorFlow and Mesh-TensorFlow API.

Import `mtf` and `tf` (the v1 graph API) from here: Mesh-TensorFlow 0.1.21 cannot be imported on
TensorFlow 2.15 without the repair below.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any, Callable

import tensorflow.compat.v1 as tf
from tensorflow import function as _function
from tensorflow.python.framework import ops as _ops

if not hasattr(_ops, "register_tensor_conversion_function"):
    # The private name is gone from TensorFlow 2.15; the public function is the same one.
    _ops.register_tensor_conversion_function = tf.register_tensor_conversion_function

import mesh_tensorflow as mtf  # noqa: E402  (needs the repair above)

__all__ = ["compiled", "lower_locally", "mtf", "tf", "uncompiled"]


WORTH_COMPILING = 1 << 16  # elements; below it, calling a compiled kernel costs more than it saves


COMPILES: contextvars.ContextVar = contextvars.ContextVar("COMPILES", default=True)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Graphs built inside have plain operations only: the compiler takes tens of megabytes and seconds when it runs."""
    token = COMPILES.set(False)
    try:
        yield
    finally:
        COMPILES.reset(token)


def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of TensorFlow tensors so that XLA compiles it to one pass, on whatever device runs it.

    Small tensors, such as those of a decoding step, go through the plain operations, as all do in `uncompiled`.
    """
    fused = _function(kernel, jit_compile=True, autograph=False)

    @functools.wraps(kernel)
    def call(*args: Any) -> Any:
        if not COMPILES.get():
            return kernel(*args)
        small = args[0].shape.is_fully_defined() and args[0].shape.num_elements() < WORTH_COMPILING
        return kernel(*args) if small else fused(*args)

    return call


def lower_locally(graph: Any, mesh: Any) -> Any:
    """Lower a Mesh-TF graph for one local device, keeping one copy of each weight.

    Stacking of small variables is off: a stacked slice would be a second copy beside its masters.

    Returns:
      mtf.Lowering, whose TensorFlow variables are the masters themselves.
    """
    mesh_impl = mtf.placement_mesh_impl.PlacementMeshImpl(shape=[], layout={}, devices=[""])
    return mtf.Lowering(graph, {mesh: mesh_impl}, autostack=False)
