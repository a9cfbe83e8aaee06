"""The tanh approximation of gelu as one operation, which keeps its input alone for the backward pass."""

from __future__ import annotations

import math
from typing import Any

from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import compiled

SCALE, CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu(x: Any) -> Any:
    """The tanh approximation of gelu (Hendrycks and Gimpel 2016, section 2), elementwise."""
    return mtf.slicewise(gelu_kernel, [x], x.shape, x.dtype, x.shape.dims, grad_function=gelu_gradient)


def gelu_gradient(operation: Any, dy: Any) -> list:
    """Gradient from the input alone."""
    x = operation.inputs[0]
    return [mtf.slicewise(gelu_grad_kernel, [x, dy], x.shape, x.dtype, x.shape.dims)]


@compiled
def gelu_kernel(x: Any) -> Any:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return x * (0.5 + 0.5 * tf.tanh(SCALE * (x + CUBE * x * x * x)))


@compiled
def gelu_grad_kernel(x: Any, dy: Any) -> Any:
    """dy times the derivative of gelu at x."""
    t = tf.tanh(SCALE * (x + CUBE * x * x * x))
    slope = 0.5 * x * (1 - t * t) * SCALE * (1 + 3 * CUBE * x * x)
    return dy * (0.5 * (1 + t) + slope)
