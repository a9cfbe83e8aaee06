"""The tanh approximation of gelu as one operation, which keeps its input alone for the backward pass."""

from __future__ import annotations

import math

from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.kernels import afresh, compiled

SCALE, CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation of gelu (Hendrycks and Gimpel 2016, section 2), elementwise."""
    return mtf.slicewise(gelu_kernel, [x], x.shape, x.dtype, x.shape.dims, grad_function=gelu_gradient)


def gelu_gradient(operation: mtf.Operation, dy: Tensor) -> list:
    """Gradient from the input alone."""
    x = operation.inputs[0]
    return [mtf.slicewise(gelu_grad_kernel, [x, dy], x.shape, x.dtype, x.shape.dims)]


@compiled
def gelu_kernel(x: tf.Tensor) -> tf.Tensor:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), rounded once."""
    wide = tf.cast(x, tf.float32)
    return tf.cast(wide * (0.5 + 0.5 * tf.tanh(SCALE * (wide + CUBE * wide * wide * wide))), x.dtype)


@compiled
def gelu_grad_kernel(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    """dy times the derivative of gelu at x, rounded once."""
    wide = tf.cast(afresh(x, dy), tf.float32)
    t = tf.tanh(SCALE * (wide + CUBE * wide * wide * wide))
    slope = 0.5 * wide * (1 - t * t) * SCALE * (1 + 3 * CUBE * wide * wide)
    return tf.cast(tf.cast(dy, tf.float32) * (0.5 * (1 + t) + slope), dy.dtype)
