"""The network as facts, without TensorFlow: its variables, and what each kind of attention has, keeps and costs.

What needs a shape, a size or a name takes it from here: the layers (model/), parameters and memory (`estimate.py`),
layouts, checkpoints and their conversion, int8, caches of every kind of decoding, plots of attention. A new kind of
attention is an entry of `KINDS`, a new encoding of positions one of `POSITIONS`, each beside its layer in model/.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Callable, Optional

import regex

from gpt_neo.config.activations import ACTIVATIONS
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError

PATIENCE = 1.0  # seconds for a pattern of a config on one name
QUERIES = 256  # queries that softmax attention holds against all keys at once
DOWN, UP, SCALE, RANK = "/lora_a", "/lora_b", "gpt2/lora_scale", "lora_rank"  # adapters, and their common dimension
SCALED = ("table", "head", "matrix")  # roles of the weights that int8 and int4 store with scales
CHUNK = 64  # tokens of a recurrence that attend to each other directly


@dataclasses.dataclass(frozen=True)
class Variable:
    """A weight.

    dims: (name, size) of each dimension; layouts split by these names.
    role: table (rows by token, and the head where tied), head (a product [embd, vocab] of its own), matrix (a product
      [in, out] of a block), bias, gain (of a norm), number (a learned scalar), positions (rows by place), memory (keys
      and values), router and expert (of a mixture), gate (of a decay), adapter (of low rank, beside a matrix). Tables,
      heads and matrices are what int8 stores, matrices what adapters stand beside, matrices and experts what Muon
      makes orthogonal.
    std: standard deviation of the normal distribution that it starts from; None: it starts at `value` everywhere.
    """

    dims: tuple
    role: str
    std: Optional[float] = None
    value: float = 0.0

    @property
    def shape(self) -> tuple:
        """Sizes, as in a checkpoint."""
        return tuple(size for _, size in self.dims)

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


Variables = dict[str, Variable]  # by name, below some scope


@dataclasses.dataclass(frozen=True)
class Cache:
    """What a layer keeps of every row of a batch while it decodes: [heads, rows, columns].

    rows: None for one per position, in the type of activations; a number for a float32 state of constant size.
    """

    name: str
    heads: int
    columns: int
    rows: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """A name in `attention_types`. What the layer computes stands in model/attention/, by the same name.

    doc: what it is, for docs/configs.md.
    variables: its weights, by name below `attn/`.
    caches: what it keeps while it decodes. Caches by position make it attention over keys: it reads them by blocks of
      queries, and a layout may split them (`memory_length`). States make it a recurrence, which reads by chunks.
    heads: attention heads of a layer; 0 for a kind that has no layer.
    window: tokens that a query sees, itself included; None for all before it.
    causal_only: it cannot read in both directions.
    """

    doc: str
    variables: Callable[[ModelConfig], Variables]
    caches: Callable[[ModelConfig], tuple[Cache, ...]]
    heads: Callable[[ModelConfig], int]
    window: Callable[[ModelConfig], Optional[int]] = lambda model: None
    causal_only: bool = False

    def has_keys(self, model: ModelConfig) -> bool:
        """Whether it attends to keys one by one."""
        return any(cache.rows is None for cache in self.caches(model))

    def at_once(self, model: ModelConfig) -> int:
        """Attention weights per token and head that exist at one time."""
        if not self.heads(model):
            return 0
        return min(QUERIES if self.has_keys(model) else CHUNK, model.n_ctx)

    def kept(self, model: ModelConfig) -> int:
        """Attention weights per token and head that the backward pass keeps: none but with dropout on them."""
        if not self.has_keys(model) or not model.attn_dropout:
            return 0
        window = self.window(model)
        return model.n_ctx if window is None else min(2 * window, model.n_ctx)

    def seen(self, model: ModelConfig) -> float:
        """Mean number of tokens that a causal query is held against."""
        if not self.heads(model):
            return 0.0
        if not self.has_keys(model):
            return min(CHUNK, model.n_ctx)
        span = min(self.window(model) or model.n_ctx, model.n_ctx)
        return span * (1 - (span - 1) / (2 * model.n_ctx))

    def positions(self, model: ModelConfig, length: int) -> int:
        """Positions that its caches hold of `length` ones: those of its window, where that is less."""
        return min(self.window(model) or length, length)

    def cache_bytes(self, model: ModelConfig, length: int) -> int:
        """Bytes of its caches for a row of `length` positions."""
        total = 0
        for cache in self.caches(model):
            rows, width = (
                (self.positions(model, length), number_bytes(model)) if cache.rows is None else (cache.rows, 4)
            )
            total += cache.heads * rows * cache.columns * width
        return total


@dataclasses.dataclass(frozen=True)
class PositionEncoding:
    """How the network knows order. What it computes stands in model/positions.py, by the same name.

    variables: its tables, by name below `gpt2/`.
    """

    doc: str
    variables: Callable[[ModelConfig], Variables] = lambda model: {}


def number_bytes(model: ModelConfig) -> int:
    """Bytes of an activation or a weight in the model's precision."""
    return 2 if model.precision == "bfloat16" else 4


def under(scope: str, found: Mapping[str, Variable]) -> Variables:
    """The same variables one scope deeper."""
    return {f"{scope}/{name}": variable for name, variable in found.items()}


def variables_of(model: ModelConfig) -> Variables:
    """Every weight of the network by its full name, as in a checkpoint.

    With `share_parameters` all blocks have theirs under gpt2// (the legacy program gave shared blocks an empty name).
    """
    found = {"wte": Variable((("vocab", model.n_vocab), ("embd", model.n_embd)), "table", 0.02)}
    found.update(POSITIONS[model.positions].variables(model))
    for layer in range(model.n_layer):
        found.update(under("" if model.share_parameters else f"h{layer}", block_variables(model, layer)))
    if not model.no_weight_tie:
        # A layer norm also beside scalenorm and rezero.
        norm = "rmsnorm" if model.norm_type == "rmsnorm" else "layernorm"
        found.update(under("ln_f", norm_variables(model, norm)))
    if model.own_head:
        bias = model.no_weight_tie or model.head_bias
        sizes = (("embd", model.n_embd), ("vocab", model.n_vocab))
        found.update(under("wte_final_linear", map_variables(model, "linear_out", *sizes, 0.02, bias, "head")))
    found = under("gpt2", found)
    return {**found, **adapter_variables(found, model)} if model.lora_rank else found


def roles_of(model: ModelConfig) -> dict[str, str]:
    """Role of every weight by name."""
    return {name: variable.role for name, variable in variables_of(model).items()}


def adapter_variables(found: Mapping[str, Variable], model: ModelConfig) -> Variables:
    """Adapters of low rank beside the matrices of blocks (Hu et al. 2021): W + scale * down up, with up of zeros at
    first, and down as PEFT starts it, of the variance of a uniform distribution over +-1/sqrt(in)."""
    rank = (RANK, model.lora_rank)
    made = {SCALE: Variable((), "number", value=model.lora_scale)}  # so that a checkpoint can be merged by itself
    for name, variable in found.items():
        if variable.role == "matrix":
            source, target = variable.dims
            made[name + DOWN] = Variable((source, rank), "adapter", (3 * source[1]) ** -0.5)
            made[name + UP] = Variable((rank, target), "adapter")
    return made


def merged(model: ModelConfig) -> ModelConfig:
    """The model whose matrices have their adapters added: what reads checkpoints adds them (`checkpoint/fit.py`)."""
    return dataclasses.replace(model, lora_rank=0) if model.lora_rank else model


def is_trained(name: str, model: ModelConfig, freeze: Sequence[str] = ()) -> bool:
    """Whether training changes a variable: with adapters these alone, and none that a pattern of `freeze` matches."""
    if model.lora_rank and not name.endswith((DOWN, UP)):
        return False
    return not any(matches(pattern, name) for pattern in freeze)


def matches(pattern: str, name: str) -> bool:
    """Whether a regular expression matches anywhere in a variable's name.

    Raises:
      ConfigError: it takes for ever, as (a+)+b can.
    """
    try:
        return regex.search(pattern, name, timeout=PATIENCE) is not None
    except TimeoutError as error:
        raise ConfigError(
            f"the regular expression {pattern!r} takes more than {PATIENCE:g} s on the name {name!r}: write one "
            "without repetitions inside repetitions"
        ) from error


def block_variables(model: ModelConfig, layer: int) -> Variables:
    """The weights of one block."""
    kind = model.attention_types[layer]
    found = under("mlp_macaron", mlp_variables(model)) if model.macaron else {}
    for norm in norms_of(model, kind):
        found.update(under(norm, norm_variables(model, model.norm_type)))
    found.update(under("attn", KINDS[kind].variables(model)))
    if model.rezero:
        found.update({f"norm_rezero_{half}/g": Variable((), "number") for half in (1, 2)})
    found.update(expert_variables(model) if layer in model.moe_layers else under("mlp", mlp_variables(model)))
    return found


def norms_of(model: ModelConfig, kind: str) -> tuple:
    """Norms of a block: a kind without a layer reads the bare stream, and a shared norm feeds both halves."""
    if model.rezero:
        return ()
    if model.shared_norm:
        return ("norm_1",)
    return ("norm_1", "norm_2") if KINDS[kind].heads(model) else ("norm_2",)


def norm_variables(model: ModelConfig, norm: str) -> Variables:
    """Scale and shift: of every feature in a layer norm, without a shift in an RMS norm, one number in scalenorm."""
    width = () if norm == "scalenorm" else (("embd", model.n_embd),)
    found = {"g": Variable(width, "gain", value=1.0)}
    return {**found, "b": Variable(width, "bias")} if norm == "layernorm" else found


def map_variables(
    model: ModelConfig, name: str, source: tuple, target: tuple, std: float, bias: bool = True, role: str = "matrix"
) -> Variables:
    """A map from one dimension to another, with the option that its start depends on its inputs."""
    if model.scale_by_in:
        std /= source[1] ** 0.5
    found = {"kernel": Variable((source, target), role, std)}
    return under(f"conv1d_main/{name}", {**found, "bias": Variable((target,), "bias")} if bias else found)


def mlp_variables(model: ModelConfig) -> Variables:
    """Two maps with an activation between, and what that learns. Both halves of a gated one are side by side."""
    embd, hidden = ("embd", model.n_embd), ("intermediate_expanded", model.mlp_width)
    into = (hidden[0], 2 * hidden[1]) if model.mlp_glu else hidden
    depth = model.n_layer**-0.5 if model.scale_by_depth else 1.0
    learned = ACTIVATIONS[model.activation_function]
    return {
        **map_variables(model, "c_fc", embd, into, 0.02),
        **map_variables(model, "c_proj", hidden, embd, 0.02 * depth),
        **{f"activation/{part}": Variable((), "number", value=value) for part, value in learned.items()},
    }


def expert_variables(model: ModelConfig) -> Variables:
    """A mixture in place of an MLP: its gates, and both maps of every expert, of standard deviation fan_in^-1/2."""
    count, embd = model.moe_params.moe_num_experts, ("embd", model.n_embd)
    experts, hidden = ("experts", count), ("expert_hidden", model.moe_params.moe_hidden_size)
    return {
        "top_2_gating/kernel": Variable((embd, ("experts_unsplit", count)), "router", embd[1] ** -0.5),
        "wi/kernel": Variable((experts, embd, hidden), "expert", embd[1] ** -0.5),
        "wo/kernel": Variable((experts, hidden, embd), "expert", hidden[1] ** -0.5),
    }


def projection_variables(model: ModelConfig) -> Variables:
    """Queries, keys, values and the output of softmax and linear attention, heads major.

    The start of q holds the 1/sqrt(features) that scores are not divided by without `scale_attention`.
    """
    embd, merged = ("embd", model.n_embd), ("heads", model.n_head * model.features_per_head)
    std = model.n_embd**-0.5
    q_std = std if model.scale_attention else std * model.features_per_head**-0.5
    found = {name: Variable((embd, merged), "matrix", q_std if name == "q" else std) for name in "qkv"}
    if model.qkv_bias:
        found.update({f"compute_qkv_bias/{name}_b": Variable((merged,), "bias") for name in "qkv"})
    found["o"] = Variable((merged, embd), "matrix", merged[1] ** -0.5)
    if model.attn_output_bias:
        found["compute_output_bias/o_b"] = Variable((embd,), "bias")
    return found


def global_variables(model: ModelConfig) -> Variables:
    """Projections, and learned keys and values that every query sees."""
    found = projection_variables(model)
    if model.num_mem_kv:
        dims = (
            ("mem_kv_sequence", model.num_mem_kv),
            ("heads", model.n_head),
            ("features_per_head", model.features_per_head),
        )
        std = model.features_per_head**-0.5
        found.update({f"attention/mem_{name}": Variable(dims, "memory", std) for name in "kv"})
    return found


def gla_variables(model: ModelConfig) -> Variables:
    """Projections of their own widths, the decay's gates of low rank, the output's gate, and the norm of a head."""
    params, embd, std = model.gla_params, ("embd", model.n_embd), model.n_embd**-0.5
    keys, values = ("heads", model.gla_key_width), ("heads", model.gla_value_width)
    rank = ("gate_low_rank", params.gate_low_rank_dim)
    features = ("features_per_head", model.gla_value_width // model.gla_heads)
    found = {name: Variable((embd, keys), "matrix", std) for name in "qk"}
    found["v"] = Variable((embd, values), "matrix", std)
    if params.use_output_gate:
        found["output_gate"] = Variable((embd, values), "matrix", std)
    return {
        **found,
        "gate_down": Variable((embd, rank), "gate", std),
        # Gates start near sigmoid(0)^(1/16), a half-life of 16 tokens.
        "gate_up/kernel": Variable((rank, keys), "gate", 0.02),
        "gate_up/bias": Variable((keys,), "bias"),
        "g_norm/g": Variable((features,), "gain", value=1.0),
        "o": Variable((values, embd), "matrix", values[1] ** -0.5 if values[1] else 0.0),
    }


def key_caches(model: ModelConfig) -> tuple[Cache, ...]:
    """Keys and values of every position."""
    return tuple(Cache(f"cache_{name}", model.n_head, model.features_per_head) for name in "kv")


def linear_state(model: ModelConfig) -> tuple[Cache, ...]:
    """Sums over tokens of what values weigh, and of the weights, which are one more feature."""
    size = model.features_per_head
    return (Cache("state", model.n_head, size + 1, size),)


def gla_state(model: ModelConfig) -> tuple[Cache, ...]:
    """A matrix per head."""
    heads = model.gla_heads
    return (Cache("state", heads, model.gla_value_width // heads, model.gla_key_width // heads),)


def learned_table(model: ModelConfig) -> Variables:
    """One row per position."""
    return {"wpe": Variable((("embed_sequence", model.n_ctx), ("embd", model.n_embd)), "positions", 0.01)}


def axial_tables(model: ModelConfig) -> Variables:
    """A table for each factor of n_ctx."""
    return {
        f"axial_wpe_{i + 1}": Variable(((f"axial_dim_{i}", size), ("embd", model.n_embd)), "positions", 0.01)
        for i, size in enumerate(model.axial_pos_emb or ())
    }


KINDS: dict[str, AttentionKind] = {
    "global": AttentionKind(
        doc="softmax over all earlier tokens",
        variables=global_variables,
        caches=key_caches,
        heads=lambda model: model.n_head,
    ),
    "local": AttentionKind(
        doc="softmax over the last `local_attention_radius` tokens",
        variables=projection_variables,
        caches=key_caches,
        heads=lambda model: model.n_head,
        window=lambda model: model.local_attention_radius,
    ),
    "linear": AttentionKind(
        doc="a mean of the values, weighted by softmax(q) exp(k), from a state of constant size",
        variables=projection_variables,
        caches=linear_state,
        heads=lambda model: model.n_head,
    ),
    "gla": AttentionKind(
        doc="gated linear attention, a state of constant size that decays (`gla_params`)",
        variables=gla_variables,
        caches=gla_state,
        heads=lambda model: model.gla_heads,
        causal_only=True,
    ),
    "none": AttentionKind(
        doc="no attention: the stream is added to itself",
        variables=lambda model: {},
        caches=lambda model: (),
        heads=lambda model: 0,
    ),
}

POSITIONS: dict[str, PositionEncoding] = {
    "learned": PositionEncoding("a learned row per position, added to the embedding", learned_table),
    "axial": PositionEncoding("the mean of two learned rows (`axial_pos_emb`)", axial_tables),
    "rotary": PositionEncoding("queries and keys turned by their positions (`rotary_emb`)"),
    "none": PositionEncoding("no positions (`no_pos_emb`)"),
}


def kinds_of(model: ModelConfig) -> list[AttentionKind]:
    """The kind of every layer."""
    return [KINDS[name] for name in model.attention_types]


def attention_layers(model: ModelConfig) -> list[int]:
    """Numbers of the layers that attend."""
    return [layer for layer, kind in enumerate(kinds_of(model)) if kind.heads(model)]


def clashing_kinds(model: ModelConfig) -> bool:
    """Whether two kinds of a model have variables of one name and of different shapes, so that they share none."""
    shapes: dict[str, tuple] = {}
    for kind in dict.fromkeys(kinds_of(model)):
        for name, variable in kind.variables(model).items():
            if shapes.setdefault(name, variable.shape) != variable.shape:
                return True
    return False
