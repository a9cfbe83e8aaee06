"""Queries, keys, values and the output, in the legacy variables."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model import variables
from gpt_neo.model.contract import contract
from gpt_neo.model.dims import Dims
from gpt_neo.mtf_compat import mtf


def project(x: Any, name: str, std: float, dims: Dims, config: ModelConfig) -> Any:
    """Project [..., embd] to [..., heads, features_per_head].

    The variable is stored as [embd, heads * features_per_head], heads major; its second dimension carries the
    name `heads`, so a layout that splits heads splits it too.
    """
    merged = mtf.Dimension(dims.heads.name, dims.heads.size * dims.features.size)
    weight = variables.normal(x.mesh, name, mtf.Shape([dims.embd, merged]), std, config)
    weight = mtf.replace_dimensions(weight, merged, [dims.heads, dims.features])
    return contract(x, weight, [dims.embd])


def project_qkv(x: Any, dims: Dims, config: ModelConfig) -> tuple:
    """Return q, k, v of [batch, sequence, heads, features_per_head].

    The initial scale of q holds the 1/sqrt(features) that scores are not divided by.
    """
    q_std = (dims.embd.size * dims.features.size) ** -0.5
    kv_std = dims.embd.size**-0.5
    return tuple(
        project(x, name, std, dims, config) for name, std in (("q", q_std), ("k", kv_std), ("v", kv_std))
    )


def project_output(x: Any, dims: Dims, config: ModelConfig) -> Any:
    """Project [..., heads, features_per_head] back to [..., embd] and add the bias."""
    merged = mtf.Dimension(dims.heads.name, dims.heads.size * dims.features.size)
    std = merged.size**-0.5
    weight = variables.normal(x.mesh, "o", mtf.Shape([merged, dims.embd]), std, config)
    weight = mtf.replace_dimensions(weight, merged, [dims.heads, dims.features])
    bias = variables.constant(x.mesh, "compute_output_bias/o_b", mtf.Shape([dims.embd]), 0.0, config)
    return contract(x, weight, [dims.heads, dims.features], bias)
