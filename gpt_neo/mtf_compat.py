"""The one place that touches version-dependent TensorFlow and Mesh-TensorFlow API.

Import `mtf` and `tf` (the v1 graph API) from here: Mesh-TensorFlow 0.1.21 cannot be imported on
TensorFlow 2.15 without the repair below.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any, Callable

from gpt_neo.errors import reason_of
from gpt_neo.system import uncollected


class Later(types.ModuleType):
    """Stands in for a package, in the modules that import it, until an attribute of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            raise AttributeError(f"{self.__name__} is not there yet, and its {name} is asked for")
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def imported_later(*names: str) -> Iterator[None]:
    """What is imported inside gets those of these packages that are installed only when it uses them."""
    names = tuple(name for name in names if name not in sys.modules and importlib.util.find_spec(name))
    sys.modules.update({name: Later(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


# Keras comes with TensorFlow whether or not it is used, and takes these along: 76 MB. Half a million objects are made
# that all stay: to look for garbage among them takes 0.4 s.
with imported_later("pandas", "h5py"), uncollected():
    import tensorflow.compat.v1 as tf
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops
    from tensorflow.compiler.xla import xla_data_pb2
    from tensorflow.python import pywrap_mlir
    from tensorflow.python.framework import ops as _ops
    from tensorflow.python.framework.kernels import get_registered_kernels_for_op

    if not hasattr(_ops, "register_tensor_conversion_function"):
        # The private name is gone from TensorFlow 2.15; the public function is the same one.
        _ops.register_tensor_conversion_function = tf.register_tensor_conversion_function

    import mesh_tensorflow as mtf

    # What annotations call a tensor and a dimension of the whole mesh; `tf.Tensor` is what one shard has of it.
    from mesh_tensorflow import Dimension, Tensor  # noqa: F401

SimdMeshImpl = mtf.simd_mesh_impl.SimdMeshImpl
# A tensor as a mesh implementation lays it out, a slice for each shard: each has a class of its own.
LaidOut = Any


def summed_wide(fn: Callable[..., Any], *xs: Any, dtype: Any = None) -> Any:
    """fn(*xs), which adds elements up, with its sums in float32.

    TensorFlow adds bfloat16 up in bfloat16 in many of its CPU kernels: past 256 equal terms nothing is added any more.

    Args:
      fn: from tensors to one, all of a type.
      dtype: of the result where xs are bfloat16; None rounds it to theirs.
    """
    if xs[0].dtype == tf.bfloat16:
        # Not before all are there: else the copies of the forward pass would stay for the backward pass.
        with tf.control_dependencies(list(xs)):
            wide = [tf.cast(x, tf.float32) for x in xs]
        return tf.cast(fn(*wide), dtype or tf.bfloat16)
    return fn(*xs)


def _wide_sum(x: Any, axes: Any) -> Any:
    """tf.reduce_sum, in float32."""
    return summed_wide(lambda wide: tf.reduce_sum(wide, axes), x)


# All that Mesh-TF itself adds up, among it the gradients of what it broadcasts.
_reduction = mtf.ops.reduction_fn
mtf.ops.reduction_fn = lambda kind: _wide_sum if kind == "SUM" else _reduction(kind)
mtf.ops.MeshImpl.einsum = lambda _, equation, *xs: summed_wide(lambda *wide: tf.einsum(equation, *wide), *xs)

__all__ = [
    "SimdMeshImpl",
    "build_for_tpu",
    "gen_xla_ops",
    "has_kernel",
    "is_one",
    "loop_length",
    "lower_locally",
    "mtf",
    "products_of",
    "pywrap_mlir",
    "graph_reason",
    "summed_wide",
    "tf",
    "xla_data_pb2",
    "zeros_initializer",
]


def has_kernel(name: str) -> bool:
    """Whether this TensorFlow can run an operation, on any kind of device."""
    return bool(get_registered_kernels_for_op(name).kernel)


def is_one(x: Any) -> bool:
    """Whether a Mesh-TF tensor is the constant 1, as the gradient of a loss itself is."""
    return isinstance(x.operation, mtf.ops.Constant) and x.operation._value == 1


def build_for_tpu() -> None:
    """From now on loops of graphs are operations, not functions.

    TPUEstimator builds a training step inside a loop, and Mesh-TF makes the variables of the cores there: a function
    takes none from outside of it.
    """
    tf.disable_control_flow_v2()


@contextlib.contextmanager
def products_of(precision: str) -> Iterator[None]:
    """Context in which what TensorFlow compiles and exports multiplies matrices of float32 as they are, if that is the
    precision of a model: left to themselves TPUs round them to bfloat16, GPUs to TensorFloat-32."""
    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(before and precision != "float32")
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(before)


def loop_length() -> Any:
    """TPUEstimator's variable for how many steps a run of the session makes, of the current graph."""
    (variable,) = tf.get_collection("tpu_estimator_iterations_per_loop")
    return variable


def zeros_initializer(shape: Any, dtype: Any = tf.float32, partition_info: Any = None) -> Any:
    """Zeros for a new variable.

    Not tf.zeros: the graph optimizer turns that into a constant, which lives beside the variable for the whole session.
    """
    return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=True)


def trace_json(path: str) -> bytes:
    """The events of a profile (`.xplane.pb`) as Chrome's and Perfetto's JSON."""
    from tensorflow.python.profiler.internal import _pywrap_profiler

    with tempfile.TemporaryDirectory() as folder:  # a table is written beside what is read
        copy = shutil.copy(path, folder)
        data, done = _pywrap_profiler.xspace_to_tools_data([copy], "trace_viewer@")
    return data if done else b"{}"


ANSWER = "with body '"  # that of a server begins so, and ends with a quote


def graph_reason(error: Exception) -> str:
    """What went wrong, in one line, of an error of TensorFlow or the system.

    A failure inside a graph is told as "Graph execution error", the places in the source that made the node, then the
    reason, then the node as [[{{node ...}}]]. What a server answered is part of the reason, and has lines of its own.
    """
    if isinstance(error, OSError):
        return reason_of(error)
    lines = [line.strip() for line in str(getattr(error, "message", None) or error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    node = next((i for i, line in enumerate(lines) if line.startswith("[[{{node")), 0)
    in_graph = node > 0 or lines[0].startswith("Graph execution error")
    reason = reason_before(lines[: node or None]) if in_graph else reason_at_first(lines)
    return " ".join(reason).rstrip(".")


def reason_before(lines: list[str]) -> list[str]:
    """The reason at the end of lines: the last one; the answer of a server that ends there, from its beginning; and the
    lines after either that say when it was."""
    first = len(lines) - 1
    while first and lines[first].startswith("when "):  # when uploading gs://...
        first -= 1
    answers = [i for i in range(first + 1) if ANSWER in lines[i]]
    return lines[answers[-1] :] if answers and lines[first].endswith("'") else lines[first:]


def reason_at_first(lines: list[str]) -> list[str]:
    """The reason at the beginning of lines: the first one, or the answer of a server to its end."""
    if ANSWER in lines[0]:
        return lines[: next((i + 1 for i, line in enumerate(lines) if line.endswith("'")), 1)]
    return lines[:1]


def lower_locally(graph: Any, mesh: Any) -> Any:
    """Lower a Mesh-TF graph for one local device, keeping one copy of each weight.

    Stacking of small variables is off: a stacked slice would be a second copy beside its masters.

    Returns:
      mtf.Lowering, whose TensorFlow variables are the masters themselves.
    """
    mesh_impl = mtf.placement_mesh_impl.PlacementMeshImpl(shape=[], layout={}, devices=[""])
    return mtf.Lowering(graph, {mesh: mesh_impl}, autostack=False)
