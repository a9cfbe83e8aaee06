"""Functions of TensorFlow tensors that XLA compiles to one pass, and how graphs are built around them."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Callable

from gpt_neo.mtf_compat import gen_xla_ops, summed_wide, tf, xla_data_pb2
from gpt_neo.system import processor_has

WORTH_COMPILING = 1 << 16  # elements; below it, calling a compiled kernel costs more than it saves
SMALL = 1e-30  # times a number: added to one that is not next to 0, it changes no digit

COMPILES: contextvars.ContextVar = contextvars.ContextVar("COMPILES", default=True)
INLINES: contextvars.ContextVar = contextvars.ContextVar("INLINES", default=False)
AFRESH: contextvars.ContextVar = contextvars.ContextVar("AFRESH", default=False)
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


def always_compiled(kernel: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Decorate a function of TensorFlow tensors of so many operations that XLA is to compile it at any size."""
    fused = tf.function(kernel, jit_compile=True, autograph=False)

    @functools.wraps(kernel)
    def call(*args: tf.Tensor) -> tf.Tensor:
        return kernel(*args) if INLINES.get() else fused(*args)

    return call


def compiled(kernel: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Decorate a function of TensorFlow tensors so that XLA compiles it to one pass, on whatever device runs it.

    Small tensors, such as those of a decoding step, go through the plain operations, as all do in `uncompiled`.
    """
    fused = always_compiled(kernel)

    @functools.wraps(kernel)
    def call(*args: tf.Tensor) -> tf.Tensor:
        if not COMPILES.get():
            out = kernel(*args)
            if isinstance(out, tf.Tensor):
                RECIPES.get()[out.ref()] = kernel, args
            return out
        small = args[0].shape.is_fully_defined() and args[0].shape.num_elements() < WORTH_COMPILING
        return kernel(*args) if small else fused(*args)

    return call


def afresh(x: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
    """x for the backward pass of an operation, where it computes again what the forward pass has computed of it.

    A compiler of the whole program would find that, and keep the result in memory from one to the other, often wider
    than x. So, where `AFRESH` says that it pays, x is only there once something is that the backward pass alone has.
    """
    return late(x, later) if AFRESH.get() else x


def late(x: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
    """x, which for a compiler is not there before `later` is, and is another tensor: what is computed of it is not what
    was computed of x before.

    Programs that are compiled as a whole have an operation for that. Elsewhere next to nothing is added, of `later`.
    """
    if INLINES.get():
        return gen_xla_ops.xla_optimization_barrier([x, later])[0]
    nothing = summed_wide(tf.reduce_sum, later * tf.cast(SMALL, later.dtype))
    return x + tf.cast(nothing, x.dtype)


def put_slice(x: tf.Tensor, part: tf.Tensor, begin: Sequence[tf.Tensor]) -> tf.Tensor:
    """x with a part of it, from `begin` on, replaced: the operation that XLA does in place. For `spmd.mlir`."""
    return gen_xla_ops.xla_dynamic_update_slice(x, part, tf.stack([tf.cast(at, tf.int32) for at in begin]))


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether a device here has units for products of bfloat16, which TensorFlow's kernels then use."""
    return bool(tf.config.list_physical_devices("GPU")) or processor_has("amx_bf16", "avx512_bf16")


def matrix_product(
    first: tf.Tensor, second: tf.Tensor, *bias: tf.Tensor, transpose_a: bool = False, transpose_b: bool = False
) -> tf.Tensor:
    """tf.linalg.matmul with sums in float32, in bfloat16 rounded to the nearest; plus a bias [columns], if given.

    Where no unit multiplies bfloat16, TensorFlow's kernel multiplies in float32 as well, and cuts the result off: all
    of it is then too small by a quarter of a percent.
    """

    def product(first: tf.Tensor, second: tf.Tensor, *bias: tf.Tensor) -> tf.Tensor:
        out = tf.linalg.matmul(first, second, transpose_a=transpose_a, transpose_b=transpose_b)
        return tf.nn.bias_add(out, *bias) if bias else out

    narrow = INLINES.get() or multiplies_bfloat16()
    return product(first, second, *bias) if narrow else summed_wide(product, first, second, *bias)


def rows_times_matrix(x: tf.Tensor, matrix: tf.Tensor, *bias: tf.Tensor, transposed: bool) -> tf.Tensor:
    """`matrix_product` of [rows..., inner] and [inner, columns], or [columns, inner]: [rows..., columns].

    In a program that is compiled as a whole rows of bfloat16 stay apart. Attention has the sequence innermost on TPUs;
    to make one dimension of batch and sequence, the compiler would copy what attention gives and takes, twice each.
    """
    if INLINES.get() and x.dtype == tf.bfloat16:
        out = xla_product(x, matrix, [len(x.shape) - 1], [1 if transposed else 0], dtype=x.dtype)
        return tf.nn.bias_add(out, *bias) if bias else out
    out = matrix_product(tf.reshape(x, [-1, x.shape[-1]]), matrix, *bias, transpose_b=transposed)
    return tf.reshape(out, [*x.shape[:-1], out.shape[-1]])


def wide_product(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """float32 product of float32 [..., a, b] and [..., b, c].

    In a program that is compiled as a whole the factors are in the type of the second, as its matrix units want them.
    """
    if INLINES.get() and second.dtype == tf.bfloat16:
        rank = len(second.shape)
        return xla_product(tf.cast(first, second.dtype), second, [rank - 1], [rank - 2], list(range(rank - 2)))
    return tf.linalg.matmul(first, tf.cast(second, tf.float32))


def xla_product(
    first: tf.Tensor,
    second: tf.Tensor,
    sum_first: list,
    sum_second: list,
    batch: Sequence[int] = (),
    dtype: tf.DType = tf.float32,
) -> tf.Tensor:
    """What tf.linalg.matmul has no word for: bfloat16 in, float32 out, or rows of several dimensions.

    Lists of axes; the batch's are those of both.
    """
    numbers = xla_data_pb2.DotDimensionNumbers(
        lhs_contracting_dimensions=sum_first,
        rhs_contracting_dimensions=sum_second,
        lhs_batch_dimensions=batch,
        rhs_batch_dimensions=batch,
    )
    return gen_xla_ops.xla_dot_v2(first, second, numbers.SerializeToString(), "", dtype)


def row_product(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Sum over rows of products: [rows..., a], [rows..., b] -> float32 [a, b]. Rows as in `rows_times_matrix`."""
    if INLINES.get() and first.dtype == tf.bfloat16:
        rows = list(range(len(first.shape) - 1))
        return xla_product(first, second, rows, rows)
    first, second = (tf.reshape(x, [-1, x.shape[-1]]) for x in (first, second))
    if multiplies_bfloat16():
        return tf.cast(tf.linalg.matmul(first, second, transpose_a=True), tf.float32)
    return summed_wide(lambda *xs: tf.linalg.matmul(*xs, transpose_a=True), first, second, dtype=tf.float32)
