"""Activations by their config names (`config.activations.ACTIVATIONS`)."""

from __future__ import annotations

import math
from typing import Any, Callable

from gpt_neo.config.activations import ACTIVATIONS
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.mtf_compat import Dimension, Tensor, mtf, tf
from gpt_neo.ops.gelu import gelu
from gpt_neo.ops.parameters import Parameters
from gpt_neo.ops.row_sums import widened

# The legacy program drew the slope of rrelu anew for every graph; this is the mean of what it drew from.
RRELU_SCALE = 0.5
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017


def elementwise(kernel: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of Mesh-TF tensors from TensorFlow ones for value and derivative.

    Mesh-TF's own without a written derivative cannot take gradients that are still to be summed over the mesh.
    """

    def gradient(operation: mtf.Operation, dy: Tensor) -> list:
        x = operation.inputs[0]
        return [dy * mtf.slicewise(slope, [x], x.shape, x.dtype, x.shape.dims, grad_function=0)]

    def apply(x: Tensor) -> Tensor:
        return mtf.slicewise(kernel, [x], x.shape, x.dtype, x.shape.dims, grad_function=gradient)

    return apply


def normal_share(x: Tensor) -> Tensor:
    """Normal distribution function at x, float32."""
    return 0.5 * (1.0 + tf.math.erf(tf.cast(x, tf.float32) / math.sqrt(2.0)))


def gelu_erf_slope(x: Tensor) -> Tensor:
    """Derivative of x times the normal distribution function."""
    wide = tf.cast(x, tf.float32)
    return tf.cast(normal_share(x) + wide * tf.exp(-0.5 * tf.square(wide)) / math.sqrt(2.0 * math.pi), x.dtype)


def elu_slope(x: Tensor) -> Tensor:
    """1 above 0, exp(x) below."""
    return tf.exp(tf.minimum(x, 0.0))


def selu_slope(x: Tensor) -> Tensor:
    """SELU_SCALE above 0, SELU_SCALE SELU_ALPHA exp(x) below."""
    return SELU_SCALE * tf.where_v2(x > 0, tf.ones_like(x), SELU_ALPHA * tf.exp(tf.minimum(x, 0.0)))


softplus = elementwise(tf.math.softplus, tf.sigmoid)
absolute = elementwise(tf.abs, tf.sign)
sine = elementwise(tf.sin, tf.cos)
cosine = elementwise(tf.cos, lambda x: -tf.sin(x))
# log(x + sqrt(1 + x^2)) as it is written would take two numbers from one another far below 0, and the logarithm of 0
arcsinh = elementwise(tf.asinh, lambda x: tf.math.rsqrt(1.0 + tf.square(x)))


def elish(x: Tensor) -> Tensor:
    """x sigmoid(x) above 0, (exp(x) - 1) sigmoid(x) below (Basirat and Roth 2018)."""
    above = mtf.cast(mtf.greater(x, 0), x.dtype)
    below = mtf.exp(mtf.minimum(x, 0)) - 1.0  # the exponent of what is not chosen must not overflow
    return (above * x + (1.0 - above) * below) * mtf.sigmoid(x)


def power(x: Tensor, exponent: Tensor) -> Tensor:
    """x^exponent of positive x; exponent is a number or a tensor."""
    return mtf.exp(mtf.log(x) * exponent)


def odd_waves(x: Tensor, wave: Callable[[Tensor], Tensor], power_of: int) -> Tensor:
    """wave(x) - wave(3x)/3^p + wave(5x)/5^p - wave(7x)/7^p: the start of a triangle (p 2) or square (p 1) wave."""
    return wave(x) - wave(x * 3.0) / 3.0**power_of + wave(x * 5.0) / 5.0**power_of - wave(x * 7.0) / 7.0**power_of


def aria(x: Tensor, v: dict) -> Tensor:
    """x (a + k / (c + q exp(b x)^(1/nu))), Richards' curve as a gate (Patel et al. 2018)."""
    c, nu = softplus(v["c"]), softplus(v["nu"]) + 1.0
    exponent = mtf.minimum(v["b"] * x / nu, 40.0)  # the gate is 0 there already, and its gradient stays a number
    return x * (v["a"] + v["k"] / (c + v["q"] * mtf.exp(exponent)))


def prelu(x: Tensor, v: dict) -> Tensor:
    """x above 0, slope x below."""
    return mtf.relu(x) - v["slope"] * mtf.relu(-x)


def parcsinh(x: Tensor, v: dict) -> Tensor:
    """scale arcsinh(x (softplus(stretch) + 1))."""
    return v["scale"] * arcsinh(x * (softplus(v["stretch"]) + 1.0))


def psoftplus(x: Tensor, v: dict) -> Tensor:
    """scale softplus(x stretch) + shift."""
    return v["scale"] * softplus(x * v["stretch"]) + v["shift"]


def proottanh(x: Tensor, v: dict) -> Tensor:
    """(|x|^p + f)^(1/r) tanh(x) with p, f, r = softplus(.) + 2, 1, 3; the legacy program was NaN below 0."""
    p, f, r = (softplus(v[name]) + least for name, least in (("power", 2.0), ("floor", 1.0), ("root", 3.0)))
    tiny = 1e-20  # so that the logarithm at 0 stays finite
    return power(power(absolute(x) + tiny, p) + f, 1.0 / r) * mtf.tanh(x)


PLAIN: dict[str, Callable[[Any], Any]] = {
    "gelu": gelu,  # the tanh approximation, as every released checkpoint was trained
    "gelu_erf": elementwise(lambda x: x * tf.cast(normal_share(x), x.dtype), gelu_erf_slope),
    "relu": mtf.relu,
    "sigmoid": mtf.sigmoid,
    "tanh": mtf.tanh,
    "selu": elementwise(tf.nn.selu, selu_slope),
    "elu": elementwise(tf.nn.elu, elu_slope),
    "swish": mtf.swish,
    "silu": mtf.swish,
    "softplus": softplus,
    "leaky_relu": mtf.leaky_relu,
    "lrelu001": lambda x: mtf.leaky_relu(x, alpha=0.01),
    "lrelu020": lambda x: mtf.leaky_relu(x, alpha=0.20),
    "rrelu": lambda x: (RRELU_SCALE * absolute(x) + x) / (1.0 + RRELU_SCALE),
    "abs": absolute,
    "id": lambda x: x,
    "sin": sine,
    "cos": cosine,
    "sign": elementwise(tf.sign, tf.zeros_like),
    "triangle_relax": lambda x: odd_waves(x, sine, 2),
    "square_relax": lambda x: odd_waves(x, cosine, 1),
    "spike": lambda x: 1.0 / (1.0 + mtf.square(x)),
    "spike2": lambda x: mtf.exp(-mtf.square(x)),
    "tanhshrink": lambda x: x - mtf.tanh(x),
    "softsign": lambda x: x / (absolute(x) + 1.0),
    "bipolarsigmoid": lambda x: mtf.sigmoid(x) * 2.0 - 1.0,
    "elish": elish,
    "arcsinh": arcsinh,
    "maxsig": lambda x: mtf.maximum(x, mtf.sigmoid(x)),
    "cosid": lambda x: cosine(x) - x,
    "minsin": lambda x: mtf.minimum(x, sine(x)),
    "maxtanh": lambda x: mtf.maximum(x, mtf.tanh(x)),
    "mish": lambda x: x * mtf.tanh(softplus(x)),
    # tanh is 1 there already, and the gradient of exp stays a number
    "tanhexp": lambda x: x * mtf.tanh(mtf.exp(mtf.minimum(x, 20.0))),
    "lisht": lambda x: x * mtf.tanh(x),
    "seagull": lambda x: mtf.log(1.0 + mtf.square(x)),
    "snake": lambda x: x + mtf.square(sine(x)),
    "roottanh": lambda x: power(mtf.square(x) + 1.0, 1.0 / 3.0) * mtf.tanh(x),
    "softplusmone": lambda x: softplus(x) - 1.0,
}
# In any type: these round nothing, or are float32 inside. The others round at every step that they are made of.
ROUNDED_ONCE = ("gelu", "relu", "leaky_relu", "abs", "id", "sign")
OVER_WIDTH: dict[str, Callable[[Any, Any], Any]] = {"softmax": mtf.softmax, "logsoftmax": mtf.log_softmax}
LEARNED: dict[str, Callable[[Any, dict], Any]] = {
    "aria": aria,
    "prelu": prelu,
    "parcsinh": parcsinh,
    "psoftplus": psoftplus,
    "proottanh": proottanh,
}


def activate(x: Tensor, p: Parameters, width: Dimension, config: ModelConfig) -> Tensor:
    """The activation of the config, elementwise but for softmax and logsoftmax, which go over `width`; in float32.

    Those with learned numbers have them as scalars under `activation/`.

    Args:
      x: [..., width].

    Returns:
      a tensor of the shape and type of x.
    """
    name = config.activation_function
    if name in ROUNDED_ONCE:
        return PLAIN[name](x)
    return mtf.cast(activate_wide(mtf.cast(x, tf.float32), p, name, width), x.dtype)


def activate_wide(x: Tensor, p: Parameters, name: str, width: Dimension) -> Tensor:
    """`activate` of float32 x [..., width]."""
    if name in OVER_WIDTH:
        return OVER_WIDTH[name](x, width)
    if name not in LEARNED:
        return PLAIN[name](x)
    return LEARNED[name](x, {part: widened(p[f"activation/{part}"]) for part in ACTIVATIONS[name]})


def get_activation(name: str, key: str) -> Callable[[Tensor], Tensor]:
    """The elementwise activation of that name, without learned numbers.

    Args:
      key: the config key that gave the name.

    Raises:
      ConfigError: there is none.
    """
    if name not in PLAIN:
        raise ConfigError(f"{key} is {name!r}; allowed: {', '.join(sorted(PLAIN))}")
    return PLAIN[name]
