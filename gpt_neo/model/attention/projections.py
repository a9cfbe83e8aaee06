"""Queries, keys, values and the output, in the legacy variables."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model import variables
from gpt_neo.model.context import Context
from gpt_neo.model.contract import contract
from gpt_neo.model.dims import Dims
from gpt_neo.model.positions import rotate, token_numbers
from gpt_neo.mtf_compat import mtf


def project(x: Any, name: str, std: float, dims: Dims, config: ModelConfig) -> Any:
    """Project [..., embd] to [..., heads, features_per_head], with a bias if the config has them.

    The variable is stored as [embd, heads * features_per_head], heads major; its second dimension carries the
    name `heads`, so a layout that splits heads splits it too.
    """
    merged = mtf.Dimension(dims.heads.name, dims.heads.size * dims.features.size)
    weight = variables.normal(x.mesh, name, mtf.Shape([dims.embd, merged]), std, config)
    weight = mtf.replace_dimensions(weight, merged, [dims.heads, dims.features])
    out = contract(x, weight, [dims.embd])
    if config.qkv_bias:
        bias = variables.constant(x.mesh, f"compute_qkv_bias/{name}_b", mtf.Shape([merged]), 0.0, config)
        out += mtf.replace_dimensions(bias, merged, [dims.heads, dims.features])
    return out


def project_qkv(x: Any, dims: Dims, config: ModelConfig, context: Context) -> tuple:
    """Return q, k, v of [batch, sequence, heads, features_per_head], q and k rotated if positions are rotary.

    Keys are rotated before they go into a cache, by their own positions, which never change. Scores are q k alone:
    the 1/sqrt(features) is in q, either as its initial scale or, with `scale_attention`, as a factor.
    """
    scale = dims.features.size**-0.5
    kv_std = dims.embd.size**-0.5
    q_std = kv_std if config.scale_attention else kv_std * scale
    q, k, v = (
        project(x, name, std, dims, config) for name, std in (("q", q_std), ("k", kv_std), ("v", kv_std))
    )
    if config.rotary_emb:
        numbers = token_numbers(x.mesh, dims, context)
        q, k = rotate(q, numbers, config), rotate(k, numbers, config)
    return q * scale if config.scale_attention else q, k, v


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
    out = contract(x, weight, [dims.heads, dims.features])
    if not config.attn_output_bias:
        return out
    return out + variables.constant(x.mesh, "compute_output_bias/o_b", mtf.Shape([dims.embd]), 0.0, config)
