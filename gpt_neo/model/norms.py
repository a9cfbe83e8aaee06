"""Normalisation of the residual stream, and rezero in its place."""

from __future__ import annotations

from gpt_neo.config.schema import ModelConfig
from gpt_neo.mtf_compat import Tensor
from gpt_neo.ops.normalize import normalize
from gpt_neo.ops.parameters import Parameters
from gpt_neo.ops.row_sums import times


def block_norm(x: Tensor, p: Parameters, config: ModelConfig) -> Tensor:
    """The norm before a half of a block, as `norm_type` says; nothing with rezero.

    Layer norm (Ba et al. 2016) has `g` and `b` of shape [embd]. RMS norm (Zhang and Sennrich 2019) has `g` and takes
    no mean off. The legacy program's scalenorm takes mean and variance as a layer norm does, and has one number `g`.

    Args:
      x: [..., embd].

    Returns:
      a tensor of the shape and type of x; statistics are float32.
    """
    if config.rezero:
        return x
    return normalize(x, p["g"], p.get("b"), config.norm_type != "rmsnorm", config.norm_epsilon)


def final_norm(x: Tensor, p: Parameters, config: ModelConfig) -> Tensor:
    """The norm after the blocks: a layer norm, also beside scalenorm and rezero, unless blocks have RMS norms."""
    return normalize(x, p["g"], p.get("b"), config.norm_type != "rmsnorm", config.norm_epsilon)


def rezero(x: Tensor, p: Parameters, config: ModelConfig) -> Tensor:
    """A residual branch times a learned number that starts at 0 (Bachlechner et al. 2020); x without rezero."""
    return times(x, p["g"]) if config.rezero else x
