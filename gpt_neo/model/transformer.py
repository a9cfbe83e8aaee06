"""Tokens to logits."""

from __future__ import annotations

from typing import Any, Callable

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model import variables
from gpt_neo.model.attention.projections import project_output, project_qkv
from gpt_neo.model.attention.softmax import global_attention, local_attention
from gpt_neo.model.contract import contract
from gpt_neo.model.dims import Dims
from gpt_neo.model.dropout import dropout
from gpt_neo.model.mlp import mlp
from gpt_neo.model.norms import layer_norm
from gpt_neo.model.vocab_ops import embed
from gpt_neo.mtf_compat import mtf, tf

Attention = Callable[[Any, Any, Any, str], Any]

# Keys of the legacy program that this network does not build; a run that sets one is refused, never ignored.
NOT_BUILT = (
    "axial_pos_emb", "rotary_emb", "mlp_glu", "scalenorm", "rezero", "num_mem_kv", "macaron", "share_parameters",
    "no_weight_tie", "entmax_loss", "moe_layers",
)  # fmt: skip


def check_supported(config: ModelConfig) -> None:
    """Refuse options that the network does not have.

    Raises:
      ConfigError: names the key and its value.
    """
    for name in NOT_BUILT:
        if getattr(config, name):
            raise ConfigError(f"key {name!r} is {getattr(config, name)!r}: this version does not build it")
    for kind in config.attention_types:
        if kind not in ("global", "local"):
            raise ConfigError(f"attention_types has {kind!r}: this version builds global and local")


def transformer(tokens: Any, dims: Dims, config: ModelConfig, is_training: bool) -> Any:
    """The network, in variables under `gpt2/`.

    Args:
      tokens: int32 [batch, sequence].

    Returns:
      float32 logits [batch, sequence, vocab].
    """
    check_supported(config)

    def attention(q: Any, k: Any, v: Any, kind: str) -> Any:
        rate, causal = config.attn_dropout, config.causal
        if kind == "local":
            return local_attention(q, k, v, dims.sequence, config.local_attention_radius, rate, is_training, causal)
        return global_attention(q, k, v, dims.sequence, rate, is_training, causal)

    with tf.variable_scope("gpt2"):
        wte, wpe = tables(tokens.mesh, dims, config)
        x = embed(wte, tokens, dims.vocab) + position_rows(wpe, dims)
        if config.embed_dropout > 0 and is_training:
            x = dropout(x, config.embed_dropout)
        for layer, kind in enumerate(config.attention_types):
            x = recomputed_block(x, f"h{layer}", kind, dims, config, is_training, attention)
        return head(x, wte, dims, config)


def tables(mesh: Any, dims: Dims, config: ModelConfig) -> tuple:
    """The embedding [vocab, embd] and position [embed_sequence, embd] tables."""
    wte = variables.normal(mesh, "wte", mtf.Shape([dims.vocab, dims.embd]), 0.02, config)
    wpe = variables.normal(mesh, "wpe", mtf.Shape([dims.embed_sequence, dims.embd]), 0.01, config)
    return wte, wpe


def head(x: Any, wte: Any, dims: Dims, config: ModelConfig) -> Any:
    """Final norm and tied head: [..., embd] -> float32 [..., vocab]."""
    x = layer_norm(x, "ln_f", dims.embd, config)
    return mtf.cast(contract(x, wte, [dims.embd]), tf.float32)


def position_rows(wpe: Any, dims: Dims) -> Any:
    """The rows of the position table for positions 0 .. sequence - 1: [sequence, embd]."""
    rows = wpe
    if dims.sequence.size < dims.embed_sequence.size:
        rows = mtf.slice(rows, 0, dims.sequence.size, dims.embed_sequence.name)
    return mtf.rename_dimension(rows, dims.embed_sequence.name, dims.sequence.name)


def recomputed_block(
    x: Any, name: str, kind: str, dims: Dims, config: ModelConfig, is_training: bool, attention: Attention
) -> Any:
    """A block, run again in the backward pass when `recompute_grad` asks for it."""

    def run(inputs: Any) -> Any:
        with tf.variable_scope(name):
            return block(inputs, kind, dims, config, is_training, attention)

    return mtf.recompute_grad(run, [x]) if config.recompute_grad and is_training else run(x)


def block(
    x: Any, kind: str, dims: Dims, config: ModelConfig, is_training: bool, attention: Attention
) -> Any:
    """Pre-norm block: x += attention(norm_1(x)); x += mlp(norm_2(x)).

    Args:
      x: [batch, sequence, embd].
      attention: from q, k, v [batch, sequence, heads, features_per_head] and the layer's kind to the shape of q.
    """
    normed = layer_norm(x, "norm_1", dims.embd, config)
    with tf.variable_scope("attn"):
        q, k, v = project_qkv(normed, dims, config)
        out = attention(q, k, v, kind)
        out = project_output(out, dims, config)
    if config.res_dropout > 0 and is_training:
        out = dropout(out, config.res_dropout)
    x += out
    normed = layer_norm(x, "norm_2", dims.embd, config)
    with tf.variable_scope("mlp"):
        return x + mlp(normed, dims, config, is_training)
