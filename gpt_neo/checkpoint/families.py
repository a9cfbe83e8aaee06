"""The model families that Hugging Face has words for: names, layouts and config keys, as data.

A rule pairs our variables with one of their tensors; `{}` is the layer. Variables and their sizes are those of
`config/network.py`; the tensors those of transformers.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Optional

from gpt_neo.checkpoint.arrangements import BY_HEAD, SAME, SIDE_BY_SIDE, TURNED, Arrangement
from gpt_neo.config.network import variables_of
from gpt_neo.config.schema import ModelConfig

HEAD = "gpt2/wte_final_linear/conv1d_main/linear_out"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Our variables, of one shape each, and the tensor that holds them."""

    ours: tuple
    theirs: str
    arrangement: Arrangement = SAME


@dataclasses.dataclass(frozen=True)
class Family:
    """One model type.

    sizes: our key -> theirs, for plain numbers. fixed: model keys with another value than their default.
    inner, activation, epsilon: their names of these keys; dropouts: ours -> theirs.
    ignored: tensors that are no weights (masks and tables that older versions saved), as regular expressions.
    required: their keys that have to have one value, which is also taken when they are absent.
    free: model keys that the family has words for, besides sizes; `hf_config` reads and writes them.
    """

    name: str
    architecture: str
    prefix: str
    sizes: dict
    fixed: dict
    rules: tuple
    activation: str
    epsilon: str
    inner: str
    dropouts: dict
    head: str  # their name of an untied head
    tied: bool  # whether the head is the embedding table unless the config says otherwise
    ignored: tuple = ()
    required: dict = dataclasses.field(default_factory=dict)
    kinds: tuple = ("global",)
    free: frozenset = frozenset()


def norms(theirs: dict) -> tuple:
    """Rules of layer norms: our scope -> their module."""
    pairs = (("g", "weight"), ("b", "bias"))
    return tuple(Rule((f"gpt2/{a}/{x}",), f"{b}.{y}") for a, b in theirs.items() for x, y in pairs)


def linear(ours: str, theirs: str, arrangement: Arrangement = TURNED) -> tuple:
    """Rules of a map with bias: our scope `.../conv1d_main/<name>`, their module."""
    return (Rule((f"{ours}/kernel",), f"{theirs}.weight", arrangement), Rule((f"{ours}/bias",), f"{theirs}.bias"))


ATTN = "gpt2/h{}/attn"
QKV = tuple(f"{ATTN}/{x}" for x in "qkv")
QKV_BIAS = tuple(f"{ATTN}/compute_qkv_bias/{x}_b" for x in "qkv")
MLP = "gpt2/h{}/mlp/conv1d_main"


def attention_output(theirs: str, arrangement: Arrangement = TURNED) -> tuple:
    """Rules of attention's output with bias."""
    return (
        Rule((f"{ATTN}/o",), f"{theirs}.weight", arrangement),
        Rule((f"{ATTN}/compute_output_bias/o_b",), f"{theirs}.bias"),
    )


GPT_NEO = Family(
    name="gpt_neo",
    architecture="GPTNeoForCausalLM",
    prefix="transformer.",
    sizes={
        "n_vocab": "vocab_size",
        "n_ctx": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "local_attention_radius": "window_size",
    },
    fixed={},
    kinds=("global", "local"),
    rules=(
        Rule(("gpt2/wte",), "wte.weight"),
        Rule(("gpt2/wpe",), "wpe.weight"),
        *norms({"ln_f": "ln_f", "h{}/norm_1": "h.{}.ln_1", "h{}/norm_2": "h.{}.ln_2"}),
        *(Rule((ours,), f"h.{{}}.attn.attention.{ours[-1]}_proj.weight", TURNED) for ours in QKV),
        *attention_output("h.{}.attn.attention.out_proj"),
        *linear(f"{MLP}/c_fc", "h.{}.mlp.c_fc"),
        *linear(f"{MLP}/c_proj", "h.{}.mlp.c_proj"),
    ),
    activation="activation_function",
    epsilon="layer_norm_epsilon",
    inner="intermediate_size",
    dropouts={"embed_dropout": "embed_dropout", "attn_dropout": "attention_dropout", "res_dropout": "resid_dropout"},
    head="lm_head",
    tied=True,
    ignored=(r"h\.\d+\.attn\.attention\.(bias|masked_bias)",),
)

GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    sizes={
        "n_vocab": "vocab_size",
        "n_ctx": "n_positions",
        "n_embd": "n_embd",
        "n_layer": "n_layer",
        "n_head": "n_head",
    },
    fixed={"qkv_bias": True, "scale_attention": True},
    rules=(
        Rule(("gpt2/wte",), "wte.weight"),
        Rule(("gpt2/wpe",), "wpe.weight"),
        *norms({"ln_f": "ln_f", "h{}/norm_1": "h.{}.ln_1", "h{}/norm_2": "h.{}.ln_2"}),
        Rule(QKV, "h.{}.attn.c_attn.weight", SIDE_BY_SIDE),
        Rule(QKV_BIAS, "h.{}.attn.c_attn.bias", SIDE_BY_SIDE),
        *attention_output("h.{}.attn.c_proj", SAME),
        *linear(f"{MLP}/c_fc", "h.{}.mlp.c_fc", SAME),
        *linear(f"{MLP}/c_proj", "h.{}.mlp.c_proj", SAME),
    ),
    activation="activation_function",
    epsilon="layer_norm_epsilon",
    inner="n_inner",
    dropouts={"embed_dropout": "embd_pdrop", "attn_dropout": "attn_pdrop", "res_dropout": "resid_pdrop"},
    head="lm_head",
    tied=True,
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    required={"add_cross_attention": False},
    free=frozenset({"scale_attention", "scale_attention_by_layer"}),
)

GPTJ = Family(
    name="gptj",
    architecture="GPTJForCausalLM",
    prefix="transformer.",
    sizes={
        "n_vocab": "vocab_size",
        "n_ctx": "n_positions",
        "n_embd": "n_embd",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "rotary_dim": "rotary_dim",
    },
    fixed={
        "scale_attention": True,
        "rotary_emb": True,
        "rotary_interleaved": True,
        "parallel_residual": True,
        "shared_norm": True,
        "attn_output_bias": False,
        "head_bias": True,
    },
    rules=(
        Rule(("gpt2/wte",), "wte.weight"),
        *norms({"ln_f": "ln_f", "h{}/norm_1": "h.{}.ln_1"}),
        *(Rule((ours,), f"h.{{}}.attn.{ours[-1]}_proj.weight", TURNED) for ours in QKV),
        Rule((f"{ATTN}/o",), "h.{}.attn.out_proj.weight", TURNED),
        *linear(f"{MLP}/c_fc", "h.{}.mlp.fc_in"),
        *linear(f"{MLP}/c_proj", "h.{}.mlp.fc_out"),
    ),
    activation="activation_function",
    epsilon="layer_norm_epsilon",
    inner="n_inner",
    dropouts={"embed_dropout": "embd_pdrop", "attn_dropout": "attn_pdrop", "res_dropout": "resid_pdrop"},
    head="lm_head",
    tied=False,
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)",),
)

GPT_NEOX = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    sizes={
        "n_vocab": "vocab_size",
        "n_ctx": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
    },
    fixed={"qkv_bias": True, "scale_attention": True, "rotary_emb": True},
    rules=(
        Rule(("gpt2/wte",), "embed_in.weight"),
        *norms(
            {
                "ln_f": "final_layer_norm",
                "h{}/norm_1": "layers.{}.input_layernorm",
                "h{}/norm_2": "layers.{}.post_attention_layernorm",
            }
        ),
        Rule(QKV, "layers.{}.attention.query_key_value.weight", BY_HEAD),
        Rule(QKV_BIAS, "layers.{}.attention.query_key_value.bias", BY_HEAD),
        *attention_output("layers.{}.attention.dense"),
        *linear(f"{MLP}/c_fc", "layers.{}.mlp.dense_h_to_4h"),
        *linear(f"{MLP}/c_proj", "layers.{}.mlp.dense_4h_to_h"),
    ),
    activation="hidden_act",
    epsilon="layer_norm_eps",
    inner="intermediate_size",
    dropouts={"embed_dropout": "hidden_dropout", "attn_dropout": "attention_dropout", "res_dropout": "hidden_dropout"},
    head="embed_out",
    tied=False,
    ignored=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    free=frozenset(
        {"rotary_dim", "rotary_base", "rotary_scaling", "parallel_residual", "qkv_bias", "attn_output_bias"}
    ),
)

FAMILIES = {family.name: family for family in (GPT_NEO, GPT2, GPTJ, GPT_NEOX)}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A rule for one layer of one model: our names and sizes, their name and sizes."""

    ours: tuple
    shape: tuple
    theirs: str
    their_shape: tuple
    arrangement: Arrangement


def pairs_of(family: Family, model: ModelConfig) -> list[Pair]:
    """Every tensor of a model, in the order of the layers."""
    variables = variables_of(model)
    rules = [(rule, family.prefix) for rule in family.rules]
    if model.untied_head:
        rules.append((Rule((f"{HEAD}/kernel",), f"{family.head}.weight", TURNED), ""))
        if model.head_bias:
            rules.append((Rule((f"{HEAD}/bias",), f"{family.head}.bias"), ""))
    pairs = []
    for layer in [None, *range(model.n_layer)]:
        for rule, prefix in rules:
            if ("{}" in rule.theirs) == (layer is not None):
                ours = tuple(name.format(layer) for name in rule.ours)
                if ours[0] not in variables:
                    continue  # a bias that this model is without
                theirs, shape = prefix + rule.theirs.format(layer), variables[ours[0]].shape
                pairs.append(Pair(ours, shape, theirs, rule.arrangement.their_shape(shape), rule.arrangement))
    return pairs


def is_ignored(family: Family, name: str) -> bool:
    """Whether a tensor (without prefix) is no weight."""
    return any(re.fullmatch(pattern, name) for pattern in family.ignored)


# Their activations -> ours. Several of theirs are the tanh approximation, which is our gelu.
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu_accurate": "gelu",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "linear": "id",
    "mish": "mish",
}
THEIR_ACTIVATIONS = {
    "gelu": "gelu_new",
    "gelu_erf": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "id": "linear",
    "mish": "mish",
}

# Model keys that change neither the variables nor what they compute.
WITHOUT_EFFECT = {
    "scale_by_depth",
    "scale_by_in",
    "recompute_grad",
    "recompute_keep",
    "precision",
    "z_loss",
    "padding_id",
    "eos_id",
    "entmax_loss",
    "moe_params",
    "moe_activation",
    "model",
    "lora_alpha",
}
# Model keys that the conversion of configs takes care of by name.
CONVERTED = {
    "attention_types",
    "local_attention_radius",
    "n_inner",
    "activation_function",
    "norm_epsilon",
    "untied_head",
}


def why_not(family: Family, model: ModelConfig) -> list[str]:
    """What a family has no words for, one line each; empty if the model is one of it."""
    reasons = []
    for field in dataclasses.fields(model):
        name, value = field.name, getattr(model, field.name)
        if name in WITHOUT_EFFECT | CONVERTED | family.free or name in family.sizes or name in family.dropouts:
            continue
        wanted = family.fixed.get(name, field.default)
        if value != wanted:
            reasons.append(f"{name} is {value!r}; {family.name} has {wanted!r}")
    for kind in dict.fromkeys(model.attention_types):
        if kind not in family.kinds:
            reasons.append(f"attention_types has {kind!r}; {family.name} has {', '.join(family.kinds)}")
    if model.activation_function not in THEIR_ACTIVATIONS:
        reasons.append(f"activation_function is {model.activation_function!r}, which {family.name} does not have")
    for theirs in set(family.dropouts.values()):
        if len({getattr(model, ours) for ours, name in family.dropouts.items() if name == theirs}) > 1:
            reasons.append(f"two dropout rates differ that {family.name} has as one, {theirs}")
    if family is GPT_NEOX and model.qkv_bias != model.attn_output_bias:
        reasons.append("qkv_bias and attn_output_bias differ, which gpt_neox has as one, attention_bias")
    if "head_bias" in family.fixed and not model.untied_head:
        reasons.append(f"untied_head is False; {family.name} has a head of its own")
    return reasons


def family_of(model: ModelConfig) -> tuple[Optional[Family], list[str]]:
    """The family of a model, or None and the reasons that keep it out of the nearest one."""
    found: list[tuple[Any, list[str]]] = [(family, why_not(family, model)) for family in FAMILIES.values()]
    best, reasons = min(found, key=lambda pair: len(pair[1]))
    return (best, []) if not reasons else (None, reasons)
