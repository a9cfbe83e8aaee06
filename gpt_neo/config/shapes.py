"""Shapes of every variable of a model, from its config alone. A test holds them against the network."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpt_neo.config.schema import ACTIVATION_VARIABLES, ModelConfig

Shapes = list[tuple]


def count(shapes: Iterable[tuple]) -> int:
    """Numbers in variables of these shapes."""
    return sum(map(math.prod, shapes))


def variable_shapes(model: ModelConfig) -> Shapes:
    """Every trainable variable, as checkpoints hold it."""
    d = model.n_embd
    kinds = [(kind, layer in model.moe_layers) for layer, kind in enumerate(model.attention_types)]
    if model.share_parameters:  # one set of each sort of part
        blocks = [shape for kind in shared_kinds(model) for shape in attention_shapes(model, kind)]
        for moe in sorted({moe for _, moe in kinds}):
            blocks += feed_forward_shapes(model, moe)
        names = set().union(*(norm_names(model, kind) for kind, _ in kinds))
        blocks += norm_shapes(model) * len(names) + rezero_shapes(model) + macaron_shapes(model)
    else:
        blocks = [shape for kind, moe in kinds for shape in block_shapes(model, kind, moe)]
    return [(model.n_vocab, d), *position_shapes(model), *blocks, *head_shapes(model)]


def block_shapes(model: ModelConfig, kind: str, moe: bool) -> Shapes:
    """One block with weights of its own."""
    norms = norm_shapes(model) * len(norm_names(model, kind))
    parts = attention_shapes(model, kind) + feed_forward_shapes(model, moe) + macaron_shapes(model)
    return parts + norms + rezero_shapes(model)


def shared_kinds(model: ModelConfig) -> list[str]:
    """The attention whose parameters a shared block holds: with memory where any layer has it."""
    kinds = set(model.attention_types) - {"none"}
    return ["global"] if "global" in kinds else sorted(kinds)[:1]


def position_shapes(model: ModelConfig) -> Shapes:
    """Position tables: one, two axial ones, none for rotary positions."""
    rows = {"learned": (model.n_ctx,), "axial": model.axial_pos_emb or (), "rotary": (), "none": ()}
    return [(size, model.n_embd) for size in rows[model.positions]]


def attention_shapes(model: ModelConfig, kind: str) -> Shapes:
    """Attention of one layer: q, k, v, o and the biases, with memory in a global layer; in gla the low-rank gate, the
    output gate and the norm of a head."""
    d = model.n_embd
    if kind == "none":
        return []
    if kind == "gla":
        keys, values, rank = model.gla_key_width, model.gla_value_width, model.gla_params.gate_low_rank_dim
        gates = [(d, values)] if model.gla_params.use_output_gate else []
        projections = [(d, keys), (d, keys), (d, values), (values, d)]
        return [*projections, (d, rank), (rank, keys), (keys,), *gates, (values // model.gla_heads,)]
    memory = [(model.num_mem_kv, model.n_head, model.features_per_head)] * 2
    biases = [(d,)] * (3 * model.qkv_bias + model.attn_output_bias)
    return [(d, d)] * 4 + biases + (memory if kind == "global" and model.num_mem_kv else [])


def feed_forward_shapes(model: ModelConfig, moe: bool = False) -> Shapes:
    """MLP of one layer: two matrices with biases, the first twice as wide when gated, and what its activation learns;
    or experts in its place."""
    d, width = model.n_embd, model.mlp_width
    if moe:
        experts, inside = model.moe_params.moe_num_experts, model.moe_params.moe_hidden_size
        return [(d, experts), (experts, d, inside), (experts, inside, d)]
    into = 2 * width if model.mlp_glu else width
    learned = [()] * len(ACTIVATION_VARIABLES.get(model.activation_function, ()))
    return [(d, into), (into,), (width, d), (d,), *learned]


def macaron_shapes(model: ModelConfig) -> Shapes:
    """The MLP before attention."""
    return feed_forward_shapes(model) if model.macaron else []


def norm_names(model: ModelConfig, kind: str) -> set[str]:
    """Norms of a block: attention of type none reads the bare stream, and a shared norm feeds both halves."""
    if model.rezero:
        return set()
    if model.shared_norm:
        return {"norm_1"}
    return {"norm_2"} if kind == "none" else {"norm_1", "norm_2"}


def norm_shapes(model: ModelConfig) -> Shapes:
    """One norm of a block."""
    gain = (model.n_embd,)
    shapes: dict[str, Shapes] = {"layernorm": [gain, gain], "rmsnorm": [gain], "scalenorm": [()]}
    return shapes[model.norm_type]


def rezero_shapes(model: ModelConfig) -> Shapes:
    """Two scales per block."""
    return [(), ()] if model.rezero else []


def head_shapes(model: ModelConfig) -> Shapes:
    """Final norm and the head, where it is not the embedding table."""
    d = model.n_embd
    final = [] if model.no_weight_tie else [(d,)] * (1 if model.norm_type == "rmsnorm" else 2)
    head = [(d, model.n_vocab)] if model.own_head else []
    bias = [(model.n_vocab,)] if model.no_weight_tie or model.head_bias else []
    return [*final, *head, *bias]
