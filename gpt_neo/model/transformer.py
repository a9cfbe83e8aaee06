"""Tokens to logits."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model import variables
from gpt_neo.model.attention.layers import LAYERS
from gpt_neo.model.block import block
from gpt_neo.model.context import Context
from gpt_neo.model.contract import contract
from gpt_neo.model.dims import Dims
from gpt_neo.model.dropout import dropout
from gpt_neo.model.mlp import linear
from gpt_neo.model.norms import final_norm
from gpt_neo.model.positions import position_embedding
from gpt_neo.model.row_sums import plus
from gpt_neo.model.vocab_ops import embed
from gpt_neo.mtf_compat import mtf, tf

LOSS_SEQUENCE = "loss_sequence"


def check_supported(config: ModelConfig, context: Context) -> None:
    """Refuse options that the network does not have.

    Raises:
      ConfigError: names the key and its value.
    """
    for kind in config.attention_types:
        if kind not in LAYERS and kind != "none":
            raise ConfigError(f"attention_types has {kind!r}: this version builds {', '.join(LAYERS)} and none")
    if context.decoding and not config.causal:
        raise ConfigError("key 'causal' is False: such a model cannot be sampled from, its tokens depend on later ones")


def transformer(tokens: Any, dims: Dims, config: ModelConfig, context: Context) -> Any:
    """The network, in variables under `gpt2/`: whole sequences, or new tokens against caches (`context.decoding`).

    Args:
      tokens: int32 [batch, sequence].

    Returns:
      float32 logits [batch, sequence or 1, vocab]; [batch, loss_sequence, vocab] with `spread_loss`.
    """
    check_supported(config, context)
    with tf.variable_scope("gpt2"):
        wte = variables.normal(tokens.mesh, "wte", mtf.Shape([dims.vocab, dims.embd]), 0.02, config)
        x = spread(embed(wte, spread(tokens, context), dims.vocab), context, back=True)
        places = position_embedding(tokens, dims, config, context)
        x = x if places is None else plus(x, places)
        if config.embed_dropout > 0 and context.is_training:
            x = dropout(x, config.embed_dropout)
        for layer in range(config.n_layer):
            x = block(x, layer, dims, config, context)
        if context.last_only:
            x = mtf.slice(x, dims.sequence.size - 1, 1, dims.sequence.name)
        return head(spread(x, context), wte, dims, config)


def spread(x: Any, context: Context, back: bool = False) -> Any:
    """Where the context asks for it, call `sequence` by another name around the table and the head, or undo that.

    A layout rule `loss_sequence:y` then splits the head, the logits and the loss over cores that would all compute the
    same, where `vocab` does not divide.
    """
    if not context.spread_loss:
        return x
    return mtf.rename_dimension(x, *((LOSS_SEQUENCE, "sequence") if back else ("sequence", LOSS_SEQUENCE)))


def head(x: Any, wte: Any, dims: Dims, config: ModelConfig) -> Any:
    """Stream to float32 logits: [..., embd] -> [..., vocab]."""
    if not config.no_weight_tie:
        x = final_norm(x, "ln_f", dims.embd, config)
    if not config.own_head:
        return mtf.cast(contract(x, wte, [dims.embd]), tf.float32)
    with tf.variable_scope("wte_final_linear"):
        bias = config.no_weight_tie or config.head_bias
        return mtf.cast(linear(x, "linear_out", dims.embd, dims.vocab, 0.02, config, bias=bias), tf.float32)
