"""Which config keys a variable comes from, and its sizes: what a checkpoint that does not fit is explained with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from gpt_neo.config.network import KINDS, Variable, variables_of
from gpt_neo.config.schema import GlaParams, ModelConfig

# A small model of one block; every option is tried on it alone.
PLAIN = ModelConfig(n_head=1, n_embd=2, n_layer=1, n_vocab=2, n_ctx=4, gla_params=GlaParams(expand_k=1.0))
# Config keys behind the sizes of dimensions; the others come from n_embd.
SIZES = {
    "vocab": "n_vocab",
    "embd": "n_embd",
    "embed_sequence": "n_ctx",
    "intermediate_expanded": "n_inner",
    "axial_dim_0": "axial_pos_emb",
    "axial_dim_1": "axial_pos_emb",
    "experts": "moe_params",
    "experts_unsplit": "moe_params",
    "expert_hidden": "moe_params",
    "mem_kv_sequence": "num_mem_kv",
    "gate_low_rank": "gla_params",
    "lora_rank": "lora_rank",
}


def options() -> Iterator[tuple[str, Any]]:
    """(key, another value than its default) of every option that changes which variables there are."""
    yield from [("axial_pos_emb", (2, 2)), ("moe_layers", (0,)), ("num_mem_kv", 1), ("lora_rank", 1)]
    yield from (("attention_types", (kind,)) for kind in KINDS)
    for field in dataclasses.fields(ModelConfig):
        if isinstance(field.default, bool):
            yield field.name, not field.default
        yield from ((field.name, choice) for choice in field.metadata["choices"] or () if choice != field.default)


def of_block(name: str) -> str:
    """The name of a variable as it is in block 0."""
    return re.sub(r"/h\d+/", "/h0/", name)


def presence_keys(name: str) -> list[str]:
    """The config keys that decide whether there is a variable of that name; n_layer for those of every plain block."""
    name, plain = of_block(name), variables_of(PLAIN)
    if "/h0/" in name and name in plain:
        return ["n_layer"]
    changed = (key for key, value in options() if (name in variant(key, value)) != (name in plain))
    return list(dict.fromkeys(changed))


def size_keys(name: str) -> list[str]:
    """The config key behind each size of a variable, as far as it is known."""
    name = of_block(name)
    for key, value in [("n_head", 1), *options()]:
        found = variant(key, value).get(name)
        if found is not None:
            return [SIZES.get(dim, "n_embd") for dim, _ in found.dims]
    return []


def variant(key: str, value: Any) -> dict[str, Variable]:
    """The variables of the small model with one option."""
    return variables_of(dataclasses.replace(PLAIN, **{key: value}))
