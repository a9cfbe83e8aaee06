"""Activations by their config names, in OpenVINO's operations; `model/activations.py` has the same list."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from gpt_neo.fast.silent import op

RRELU_SCALE = 0.5
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
LEAKY = 0.2  # Mesh-TensorFlow's slope


def number(value: float) -> Any:
    """A float32 scalar."""
    return op.constant(np.float32(value))


def leaky(slope: float) -> Callable[[Any], Any]:
    """x above 0, slope x below."""
    return lambda x: op.prelu(x, op.constant(np.array([slope], np.float32)))


def elish(x: Any) -> Any:
    """x sigmoid(x) above 0, (exp(x) - 1) sigmoid(x) below."""
    below = op.exp(op.minimum(x, number(0.0))) - number(1.0)
    return op.select(op.greater(x, number(0.0)), x, below) * op.sigmoid(x)


def odd_waves(x: Any, wave: Callable[[Any], Any], power: int) -> Any:
    """wave(x) - wave(3x)/3^p + wave(5x)/5^p - wave(7x)/7^p."""
    signs = {1: 1.0, 3: -1.0, 5: 1.0, 7: -1.0}
    first, *rest = (wave(x * number(float(n))) * number(sign / n**power) for n, sign in signs.items())
    return first + rest[0] + rest[1] + rest[2]


def power(x: Any, exponent: Any) -> Any:
    """x^exponent of positive x."""
    return op.exp(op.log(x) * exponent)


def aria(x: Any, v: dict) -> Any:
    """See `model.activations.aria`."""
    c, nu = op.softplus(v["c"]), op.softplus(v["nu"]) + number(1.0)
    exponent = op.minimum(v["b"] * x / nu, number(40.0))
    return x * (v["a"] + v["k"] / (c + v["q"] * op.exp(exponent)))


def proottanh(x: Any, v: dict) -> Any:
    """See `model.activations.proottanh`."""
    p, f, r = (op.softplus(v[name]) + number(least) for name, least in (("power", 2.0), ("floor", 1.0), ("root", 3.0)))
    return power(power(op.abs(x) + number(1e-20), p) + f, number(1.0) / r) * op.tanh(x)


PLAIN: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: op.gelu(x, "tanh"),
    "gelu_erf": lambda x: op.gelu(x, "erf"),
    "relu": op.relu,
    "sigmoid": op.sigmoid,
    "tanh": op.tanh,
    "selu": lambda x: op.selu(x, number(SELU_ALPHA), number(SELU_SCALE)),
    "elu": lambda x: op.elu(x, 1.0),
    "swish": op.swish,
    "silu": op.swish,
    "softplus": op.softplus,
    "leaky_relu": leaky(LEAKY),
    "lrelu001": leaky(0.01),
    "lrelu020": leaky(0.20),
    "rrelu": lambda x: (op.abs(x) * number(RRELU_SCALE) + x) * number(1.0 / (1.0 + RRELU_SCALE)),
    "abs": op.abs,
    "id": lambda x: x,
    "sin": op.sin,
    "cos": op.cos,
    "sign": op.sign,
    "triangle_relax": lambda x: odd_waves(x, op.sin, 2),
    "square_relax": lambda x: odd_waves(x, op.cos, 1),
    "spike": lambda x: number(1.0) / (x * x + number(1.0)),
    "spike2": lambda x: op.exp(op.negative(x * x)),
    "tanhshrink": lambda x: x - op.tanh(x),
    "softsign": lambda x: x / (op.abs(x) + number(1.0)),
    "bipolarsigmoid": lambda x: op.sigmoid(x) * number(2.0) - number(1.0),
    "elish": elish,
    "arcsinh": op.asinh,
    "maxsig": lambda x: op.maximum(x, op.sigmoid(x)),
    "cosid": lambda x: op.cos(x) - x,
    "minsin": lambda x: op.minimum(x, op.sin(x)),
    "maxtanh": lambda x: op.maximum(x, op.tanh(x)),
    "mish": lambda x: x * op.tanh(op.softplus(x)),
    "tanhexp": lambda x: x * op.tanh(op.exp(x)),
    "lisht": lambda x: x * op.tanh(x),
    "seagull": lambda x: op.log(x * x + number(1.0)),
    "snake": lambda x: x + op.sin(x) * op.sin(x),
    "roottanh": lambda x: power(x * x + number(1.0), number(1.0 / 3.0)) * op.tanh(x),
    "softplusmone": lambda x: op.softplus(x) - number(1.0),
    "softmax": lambda x: op.softmax(x, -1),
    "logsoftmax": lambda x: op.log_softmax(x, -1),
}
LEARNED: dict[str, Callable[[Any, dict], Any]] = {
    "aria": aria,
    "prelu": lambda x, v: op.relu(x) - v["slope"] * op.relu(op.negative(x)),
    "parcsinh": lambda x, v: v["scale"] * op.asinh(x * (op.softplus(v["stretch"]) + number(1.0))),
    "psoftplus": lambda x, v: v["scale"] * op.softplus(x * v["stretch"]) + v["shift"],
    "proottanh": proottanh,
}
