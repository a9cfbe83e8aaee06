"""Activations by their config names."""

from __future__ import annotations

from typing import Any, Callable

from gpt_neo.errors import ConfigError
from gpt_neo.model.fused_ops import gelu
from gpt_neo.mtf_compat import mtf

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": gelu,  # the tanh approximation, as every released checkpoint was trained
    "relu": mtf.relu,
    "sigmoid": mtf.sigmoid,
    "tanh": mtf.tanh,
    "selu": mtf.selu,
    "elu": mtf.elu,
    "swish": mtf.swish,
    "silu": mtf.swish,
    "softplus": mtf.softplus,
    "leaky_relu": mtf.leaky_relu,
    "abs": mtf.abs,
    "id": mtf.identity,
    "sin": mtf.sin,
    "cos": mtf.cos,
    "sign": mtf.sign,
}


def get_activation(name: str, key: str = "activation_function") -> Callable[[Any], Any]:
    """Return the activation of that name.

    Args:
      key: the config key that gave the name.

    Raises:
      ConfigError: there is none.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"{key} is {name!r}; allowed: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]
