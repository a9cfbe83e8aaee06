"""The one place that touches version-dependent TensorFlow and Mesh-TensorFlow API.

Import `mtf` and `tf` (the v1 graph API) from here: Mesh-TensorFlow 0.1.21 cannot be imported on
TensorFlow 2.15 without the repair below.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Callable

# Keras comes with TensorFlow whether or not it is used, and takes along what else is installed of these: a third of the
# time that importing takes, and 100 MB. It does without them where they are missing.
_NOT_FOR_KERAS = [name for name in ("pandas", "scipy", "h5py", "PIL") if name not in sys.modules]
sys.modules.update(dict.fromkeys(_NOT_FOR_KERAS))  # type: ignore[arg-type]

import tensorflow.compat.v1 as tf  # noqa: E402  (needs the names above)
from tensorflow import function as _function  # noqa: E402
from tensorflow.python.framework import ops as _ops  # noqa: E402

if not hasattr(_ops, "register_tensor_conversion_function"):
    # The private name is gone from TensorFlow 2.15; the public function is the same one.
    _ops.register_tensor_conversion_function = tf.register_tensor_conversion_function

import mesh_tensorflow as mtf  # noqa: E402  (needs the repair above)

for _name in _NOT_FOR_KERAS:
    del sys.modules[_name]

SimdMeshImpl = mtf.simd_mesh_impl.SimdMeshImpl


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
    "always_compiled",
    "build_for_tpu",
    "compiled",
    "export_mlir",
    "inlined",
    "lower_locally",
    "mtf",
    "named_call",
    "put_slice",
    "reason_of",
    "matrix_product",
    "row_product",
    "row_times_matrices",
    "row_times_matrix",
    "summed_wide",
    "tf",
    "uncompiled",
    "zeros_initializer",
]


WORTH_COMPILING = 1 << 16  # elements; below it, calling a compiled kernel costs more than it saves


COMPILES: contextvars.ContextVar = contextvars.ContextVar("COMPILES", default=True)
INLINES: contextvars.ContextVar = contextvars.ContextVar("INLINES", default=False)
# What plain operations of a `compiled` kernel made, in `uncompiled`: reference of a tensor -> (kernel, arguments).
RECIPES: contextvars.ContextVar = contextvars.ContextVar("RECIPES")


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Graphs built inside have plain operations only: the compiler takes tens of megabytes and seconds when it runs."""
    tokens = COMPILES.set(False), RECIPES.set({})
    try:
        yield
    finally:
        COMPILES.reset(tokens[0])
        RECIPES.reset(tokens[1])


@contextlib.contextmanager
def inlined() -> Iterator[None]:
    """Graphs built inside are compiled as a whole: every kernel is its plain operations, with no call around them."""
    token = INLINES.set(True)
    try:
        with uncompiled():
            yield
    finally:
        INLINES.reset(token)


def always_compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of TensorFlow tensors of so many operations that XLA is to compile it at any size."""
    fused = _function(kernel, jit_compile=True, autograph=False)

    @functools.wraps(kernel)
    def call(*args: Any) -> Any:
        return kernel(*args) if INLINES.get() else fused(*args)

    return call


def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of TensorFlow tensors so that XLA compiles it to one pass, on whatever device runs it.

    Small tensors, such as those of a decoding step, go through the plain operations, as all do in `uncompiled`.
    """
    fused = always_compiled(kernel)

    @functools.wraps(kernel)
    def call(*args: Any) -> Any:
        if not COMPILES.get():
            out = kernel(*args)
            if isinstance(out, tf.Tensor):
                RECIPES.get()[out.ref()] = kernel, args
            return out
        small = args[0].shape.is_fully_defined() and args[0].shape.num_elements() < WORTH_COMPILING
        return kernel(*args) if small else fused(*args)

    return call


def build_for_tpu() -> None:
    """From now on loops of graphs are operations, not functions.

    TPUEstimator builds a training step inside a loop, and Mesh-TF makes the variables of the cores there: a function
    takes none from outside of it.
    """
    tf.disable_control_flow_v2()


def zeros_initializer(shape: Any, dtype: Any = tf.float32, partition_info: Any = None) -> Any:
    """Zeros for a new variable.

    Not tf.zeros: the graph optimizer turns that into a constant, which lives beside the variable for the whole session.
    """
    return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=True)


@always_compiled
def _compiled_products(recipe: Callable[..., Any], ingredients: tuple, first: Any, *pieces: Any) -> list:
    """A row made of its ingredients, from element `first` on, times pieces of matrices."""
    count = int(pieces[0].shape[0])
    row = tf.slice(tf.reshape(recipe(*ingredients), [1, -1]), tf.stack([0, first]), [1, count])
    return [tf.linalg.matmul(row, piece) for piece in pieces]


@always_compiled
def _compiled_transposed_product(recipe: Callable[..., Any], ingredients: tuple, piece: Any) -> Any:
    """A row made of its ingredients times a piece [columns, inner]."""
    return tf.linalg.matmul(tf.reshape(recipe(*ingredients), [1, -1]), piece, transpose_b=True)


def row_times_matrix(row: Any, matrix: Any, transposed: bool) -> Any:
    """One row times a matrix, as fast as memory is read.

    TensorFlow's own kernels take one core for it, or pay for handing out the work. Slices of whole rows share the
    matrix's memory, and their products run side by side. In bfloat16 the compiler would first make a float32 matrix of
    it, at a tenth of the speed, and oneDNN reads it as it is.

    Args:
      row: `inner` elements.
      matrix: [inner, columns], or [columns, inner] when `transposed`.

    Returns:
      [1, columns]
    """
    if row.dtype == tf.bfloat16:
        return tf.linalg.matmul(tf.reshape(row, [1, -1]), matrix, transpose_b=transposed)
    if not transposed:
        return row_times_matrices(row, [matrix])[0]
    recipe, ingredients = recipe_of(row)
    # Whole sums, so a machine of more cores takes more pieces and gets the same; sums over pieces are always of two.
    pieces = [piece for _, _, piece in row_slices(matrix, max(2, os.cpu_count() or 1))]
    return tf.concat([_compiled_transposed_product(recipe, ingredients, piece) for piece in pieces], 1)


def row_times_matrices(row: Any, matrices: list) -> list:
    """One row of `inner` elements times each matrix [inner, columns]: [1, columns] each, in two calls of one kernel."""
    if row.dtype == tf.bfloat16:
        return [row_times_matrix(row, matrix, transposed=False) for matrix in matrices]
    recipe, ingredients = recipe_of(row)
    parts = [
        _compiled_products(recipe, ingredients, pieces[0][0], *(piece for _, _, piece in pieces))
        for pieces in zip(*(row_slices(matrix, 2) for matrix in matrices))
    ]
    return [tf.add_n(list(terms)) for terms in zip(*parts)]


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether a device here has units for products of bfloat16, which TensorFlow's kernels then use."""
    if tf.config.list_physical_devices("GPU"):
        return True
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return bool({"amx_bf16", "avx512_bf16"} & set(file.read().split()))
    except OSError:
        return False


def matrix_product(first: Any, second: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    """tf.linalg.matmul with sums in float32, in bfloat16 rounded to the nearest.

    Where no unit multiplies bfloat16, TensorFlow's kernel multiplies in float32 as well, and cuts the result off: all
    of it is then too small by a quarter of a percent.
    """

    def product(*xs: Any) -> Any:
        return tf.linalg.matmul(*xs, transpose_a=transpose_a, transpose_b=transpose_b)

    return product(first, second) if INLINES.get() or multiplies_bfloat16() else summed_wide(product, first, second)


def row_product(first: Any, second: Any) -> Any:
    """Sum over rows of products: [rows, a], [rows, b] -> float32 [a, b]."""
    if INLINES.get() and first.dtype == tf.bfloat16:
        # What tf.linalg.matmul has no word for: bfloat16 in, float32 out.
        from tensorflow.compiler.tf2xla.ops import gen_xla_ops
        from tensorflow.compiler.xla import xla_data_pb2

        rows = xla_data_pb2.DotDimensionNumbers(lhs_contracting_dimensions=[0], rhs_contracting_dimensions=[0])
        return gen_xla_ops.xla_dot_v2(first, second, rows.SerializeToString(), "", tf.float32)
    if multiplies_bfloat16():
        return tf.cast(tf.linalg.matmul(first, second, transpose_a=True), tf.float32)
    return summed_wide(lambda *xs: tf.linalg.matmul(*xs, transpose_a=True), first, second, dtype=tf.float32)


def recipe_of(row: Any) -> tuple:
    """(kernel, arguments) that a row comes from.

    What a `compiled` kernel made of small tensors is made anew inside of the products, which takes less time than its
    operations do.
    """
    return RECIPES.get({}).get(row.ref(), (tf.identity, (row,)))


def row_slices(matrix: Any, parts: int) -> list[tuple]:
    """(first row, end, those rows) of a matrix in parts."""
    count = int(matrix.shape[0])
    edges = [count * part // parts for part in range(parts + 1)]
    return [(low, high, tf.slice(matrix, [low, 0], [high - low, -1])) for low, high in zip(edges, edges[1:])]


def reason_of(error: Exception) -> str:
    """What went wrong, in one line, of an error of TensorFlow or the system.

    A failure inside a graph is told as "Graph execution error", the places in the source that made the node, then the
    reason, then the node as [[{{node ...}}]].
    """
    lines = [line.strip() for line in str(getattr(error, "message", None) or error).splitlines() if line.strip()]
    marks = [i for i, line in enumerate(lines) if line.startswith("[[{{node")]
    if marks and marks[0]:
        return lines[marks[0] - 1].rstrip(".")
    if not lines:
        return type(error).__name__
    return lines[-1 if lines[0].startswith("Graph execution error") else 0].rstrip(".")


def lower_locally(graph: Any, mesh: Any) -> Any:
    """Lower a Mesh-TF graph for one local device, keeping one copy of each weight.

    Stacking of small variables is off: a stacked slice would be a second copy beside its masters.

    Returns:
      mtf.Lowering, whose TensorFlow variables are the masters themselves.
    """
    mesh_impl = mtf.placement_mesh_impl.PlacementMeshImpl(shape=[], layout={}, devices=[""])
    return mtf.Lowering(graph, {mesh: mesh_impl}, autostack=False)


# From TensorFlow's executor dialect to StableHLO. Not TensorFlow's own `tf-standard-pipeline`: it folds constants, into
# gigabytes of text at long contexts. Not inside `builtin.module(...)`: then it silently does nothing.
# Without `canonicalize`, whose time for a loop grows with the square of what the loop reads: inlining and cse leave the
# same program.
PASSES = (
    "func.func(tf-executor-graph-pruning),func.func(tf-executor-to-functional-conversion),tf-shape-inference,"
    "tf-functional-control-flow-to-regions,func.func(tf-einsum),xla-legalize-tf,cse,inline,symbol-dce,cse,"
    "hlo-legalize-to-stablehlo"
)


TYPE_NAMES = {"float32": "float", "float64": "double"}  # those of TensorFlow's files


def named_call(name: str, x: Any, shape: Sequence[int], options: str) -> Any:
    """A call of something outside of TensorFlow, for graphs that `export_mlir` takes: x -> a tensor of `shape`."""
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    (out,) = gen_xla_ops.xla_custom_call_v2([x], name, options, False, [x.dtype], [shape])
    return out


def put_slice(x: Any, part: Any, begin: Sequence[Any]) -> Any:
    """x with a part of it, from `begin` on, replaced: the operation that XLA does in place. For `export_mlir`."""
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    return gen_xla_ops.xla_dynamic_update_slice(x, part, tf.stack([tf.cast(at, tf.int32) for at in begin]))


def export_mlir(graph: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    """StableHLO text of a graph without variables, its placeholders `inputs` as arguments in that order.

    Calls by name, and `iota` for every range of numbers, are left as operations tf.XlaCustomCallV2.
    """
    from tensorflow.python import pywrap_mlir

    definition = graph.as_graph_def()
    for nodes in [definition.node, *(function.node_def for function in definition.library.function)]:
        purify(nodes)
    dtypes = [f"DT_{TYPE_NAMES.get(x.dtype.name, x.dtype.name).upper()}" for x in inputs]
    shapes = [",".join(map(str, x.shape.as_list())) for x in inputs]
    text = pywrap_mlir.import_graphdef(
        definition, "", False, [x.op.name for x in inputs], dtypes, shapes, [x.name for x in outputs]
    )
    return tf.mlir.experimental.run_pass_pipeline(text, PASSES)


def purify(nodes: Any) -> None:
    """Take order and devices out of the nodes of a graph or function, and name its ranges of numbers."""
    constants = {node.name: node for node in nodes if node.op == "Const"}
    ranges = {node.name for node in nodes if node.op == "Range" and name_range(node, constants)}
    for node in nodes:
        # Order is of no meaning to a pure function, and the importer keeps nothing apart that has it.
        kept = [name for name in node.input if not name.startswith("^")]
        parts = [name.partition(":output:") for name in kept]  # as functions have it, by the name of the output
        kept = [
            f"{name}:results:{number}" if name in ranges and colon else name + colon + number
            for name, colon, number in parts
        ]
        del node.input[:]
        node.input.extend(kept)
        node.device = ""


def name_range(node: Any, constants: dict) -> bool:
    """Make a node 0, 1, ... n - 1 a call of `iota`: TensorFlow would fold it, and masks made of it, into constants."""
    names = [name.split(":")[0] for name in node.input]
    if not all(name in constants for name in names):
        return False
    start, limit, delta = (tf.make_ndarray(constants[name].attr["value"].tensor).item() for name in names)
    if start != 0 or delta != 1:
        return False
    call = tf.NodeDef(name=node.name, op="XlaCustomCallV2")
    call.attr["call_target_name"].s, call.attr["backend_config"].s = b"iota", b"{}"
    call.attr["has_side_effect"].b = False
    call.attr["operand_dtypes"].list.SetInParent()
    call.attr["result_dtypes"].list.type.append(node.attr["Tidx"].type)
    call.attr["result_shapes"].list.shape.append(tf.TensorShape([int(limit)]).as_proto())
    node.CopyFrom(call)
    return True
