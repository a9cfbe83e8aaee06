"""Products of a single row, as decoding makes them, against NumPy; with and without what made the row inside."""

import numpy as np
import pytest

from gpt_neo.model.fused_ops import gelu_kernel
from gpt_neo.model.layer_norm import layer_norm_kernel
from gpt_neo.mtf_compat import tf
from gpt_neo.ops.kernels import uncompiled
from gpt_neo.ops.row_products import row_times_matrices, row_times_matrix


def layer_norm(x, scale, shift):
    """In float64."""
    centred = x.astype(np.float64) - x.mean()
    return centred / np.sqrt((centred**2).mean() + 1e-5) * scale + shift


def gelu(x):
    """In float64."""
    x = x.astype(np.float64)
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("made_of", ["nothing", "layer norm", "gelu"])
def test_row_products_equal_numpy(made_of):
    draw = np.random.RandomState(0).standard_normal
    x, scale, shift = draw([1, 1, 7]), draw([7]), draw([7])
    matrices, table = [draw([7, 3]), draw([7, 5])], draw([9, 7])
    x, scale, shift, table, *matrices = (np.float32(t) for t in (x, scale, shift, table, *matrices))
    row = {"nothing": x, "layer norm": layer_norm(x, scale, shift), "gelu": gelu(x)}[made_of].reshape(1, 7)

    with tf.Graph().as_default(), uncompiled(), tf.Session() as session:
        made = tf.constant(x)
        if made_of == "layer norm":
            made = layer_norm_kernel(made, tf.constant(scale), tf.constant(shift), 1e-5)
        elif made_of == "gelu":
            made = gelu_kernel(made)
        wide = [tf.constant(matrix) for matrix in matrices]
        outs = session.run(
            [
                *row_times_matrices(made, wide),
                row_times_matrix(made, wide[0], False),
                row_times_matrix(made, tf.constant(table), True),
            ]
        )
    expected = [row @ matrices[0], row @ matrices[1], row @ matrices[0], row @ table.T]
    for out, value in zip(outs, expected):
        np.testing.assert_allclose(out, value, rtol=1e-5, atol=1e-5)


def test_a_row_that_was_changed_since_is_taken_as_it_is():
    with tf.Graph().as_default(), uncompiled(), tf.Session() as session:
        x = tf.constant(np.float32([[0.5, -1.0, 2.0]]))
        (out,) = row_times_matrices(2.0 * gelu_kernel(x), [tf.eye(3)])
        np.testing.assert_allclose(session.run(out), 2 * gelu(np.float32([[0.5, -1.0, 2.0]])), rtol=1e-5)


def test_row_products_in_bfloat16_equal_numpy():
    """To the next of the numbers that 8 bits can say: oneDNN rounds the sum, TensorFlow's own kernel cuts it off."""
    draw = np.random.RandomState(0).standard_normal
    x, first, second, table = (
        draw(s).astype(tf.bfloat16.as_numpy_dtype) for s in ([1, 1, 70], [70, 33], [70, 50], [90, 70])
    )
    with tf.Graph().as_default(), uncompiled(), tf.Session() as session:
        row = tf.constant(x)
        outs = session.run(
            [
                *row_times_matrices(row, [tf.constant(first), tf.constant(second)]),
                row_times_matrix(row, tf.constant(table), True),
            ]
        )
    row, *matrices = (t.astype(np.float64) for t in (x[0], first, second, table.T))
    for out, matrix in zip(outs, matrices):
        exact = row @ matrix
        step = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
        assert (np.abs(out.astype(np.float64) - exact) < 1.001 * step).all()
