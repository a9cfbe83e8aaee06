"""Queries, keys, values and the output, in the legacy variables."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model import variables
from gpt_neo.model.context import Context
from gpt_neo.model.contract import contract, contract_each
from gpt_neo.model.dims import Dims
from gpt_neo.model.positions import rotate, token_numbers
from gpt_neo.mtf_compat import mtf


def project(x: Any, scales: dict[str, float], dims: Dims, config: ModelConfig, bias: bool) -> list:
    """Project [..., embd] to [..., heads, features_per_head], once for each name.

    The variables are stored as [embd, heads * features_per_head], heads major; their second dimension carries the
    name `heads`, so a layout that splits heads splits it too.

    Args:
      scales: standard deviation of the initial values, by name of the variable.
    """
    merged = mtf.Dimension(dims.heads.name, dims.heads.size * dims.features.size)
    apart = [dims.heads, dims.features]
    shape = mtf.Shape([dims.embd, merged])
    weights = [
        mtf.replace_dimensions(variables.normal(x.mesh, name, shape, std, config), merged, apart)
        for name, std in scales.items()
    ]
    if not bias:
        return contract_each(x, weights, [dims.embd])
    biases = [
        variables.constant(x.mesh, f"compute_qkv_bias/{name}_b", mtf.Shape([merged]), 0.0, config) for name in scales
    ]
    return [
        contract(x, weight, [dims.embd], mtf.replace_dimensions(bias, merged, apart))
        for weight, bias in zip(weights, biases)
    ]


def project_qkv(x: Any, dims: Dims, config: ModelConfig) -> list:
    """Return q, k, v of [batch, sequence, heads, features_per_head].

    The initial scale of q holds the 1/sqrt(features) that scores are not divided by without `scale_attention`.
    """
    kv_std = dims.embd.size**-0.5
    q_std = kv_std if config.scale_attention else kv_std * dims.features.size**-0.5
    return project(x, {"q": q_std, "k": kv_std, "v": kv_std}, dims, config, config.qkv_bias)


def rotate_and_scale(q: Any, k: Any, dims: Dims, config: ModelConfig, context: Context) -> tuple:
    """q and k of softmax attention, rotated if positions are rotary, q times 1/sqrt(features) with `scale_attention`.

    Keys are rotated before they go into a cache, by their own positions, which never change.
    """
    if config.rotary_emb:
        numbers = token_numbers(q.mesh, dims, context)
        q, k = rotate(q, numbers, config), rotate(k, numbers, config)
    return q * dims.features.size**-0.5 if config.scale_attention else q, k


def memory_kv(mesh: Any, dims: Dims, config: ModelConfig) -> tuple:
    """Learned keys and values of a global layer: two of [mem_kv_sequence, heads, features_per_head]."""
    shape = mtf.Shape([mtf.Dimension("mem_kv_sequence", config.num_mem_kv), dims.heads, dims.features])
    std = dims.features.size**-0.5
    return tuple(variables.normal(mesh, f"attention/mem_{name}", shape, std, config) for name in ("k", "v"))


def project_output(x: Any, dims: Dims, config: ModelConfig) -> Any:
    """Project [..., heads, features_per_head] back to [..., embd] and add the bias if there is one."""
    merged = mtf.Dimension(dims.heads.name, dims.heads.size * dims.features.size)
    std = merged.size**-0.5
    weight = variables.normal(x.mesh, "o", mtf.Shape([merged, dims.embd]), std, config)
    weight = mtf.replace_dimensions(weight, merged, [dims.heads, dims.features])
    if not config.attn_output_bias:
        return contract(x, weight, [dims.heads, dims.features])
    bias = variables.constant(x.mesh, "compute_output_bias/o_b", mtf.Shape([dims.embd]), 0.0, config)
    return contract(x, weight, [dims.heads, dims.features], bias)
