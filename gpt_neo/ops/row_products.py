"""One row times matrices, as a step of decoding does: as fast as memory is read."""

from __future__ import annotations

import os
from typing import Callable

from gpt_neo.mtf_compat import tf
from gpt_neo.ops.kernels import RECIPES, always_compiled

__all__ = ["row_times_matrices", "row_times_matrix"]


@always_compiled
def _compiled_products(
    recipe: Callable[..., tf.Tensor], ingredients: tuple, first: tf.Tensor, *pieces: tf.Tensor
) -> list:
    """A row made of its ingredients, from element `first` on, times pieces of matrices."""
    count = int(pieces[0].shape[0])
    row = tf.slice(tf.reshape(recipe(*ingredients), [1, -1]), tf.stack([0, first]), [1, count])
    return [tf.linalg.matmul(row, piece) for piece in pieces]


@always_compiled
def _compiled_transposed_product(recipe: Callable[..., tf.Tensor], ingredients: tuple, piece: tf.Tensor) -> tf.Tensor:
    """A row made of its ingredients times a piece [columns, inner]."""
    return tf.linalg.matmul(tf.reshape(recipe(*ingredients), [1, -1]), piece, transpose_b=True)


def row_times_matrix(row: tf.Tensor, matrix: tf.Tensor, transposed: bool) -> tf.Tensor:
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


def row_times_matrices(row: tf.Tensor, matrices: list) -> list:
    """One row of `inner` elements times each matrix [inner, columns]: [1, columns] each, in two calls of one kernel."""
    if row.dtype == tf.bfloat16:
        return [row_times_matrix(row, matrix, transposed=False) for matrix in matrices]
    recipe, ingredients = recipe_of(row)
    parts = [
        _compiled_products(recipe, ingredients, pieces[0][0], *(piece for _, _, piece in pieces))
        for pieces in zip(*(row_slices(matrix, 2) for matrix in matrices))
    ]
    return [tf.add_n(list(terms)) for terms in zip(*parts)]


def recipe_of(row: tf.Tensor) -> tuple:
    """(kernel, arguments) that a row comes from.

    What a `compiled` kernel made of small tensors is made anew inside of the products, which takes less time than its
    operations do.
    """
    return RECIPES.get({}).get(row.ref(), (tf.identity, (row,)))


def row_slices(matrix: tf.Tensor, parts: int) -> list[tuple]:
    """(first row, end, those rows) of a matrix in parts."""
    count = int(matrix.shape[0])
    edges = [count * part // parts for part in range(parts + 1)]
    return [(low, high, tf.slice(matrix, [low, 0], [high - low, -1])) for low, high in zip(edges, edges[1:])]
