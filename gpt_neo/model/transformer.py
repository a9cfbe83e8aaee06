"""Tokens to logits: the table, blocks of attention and feed-forward around the residual stream, the head.

`p` is the weights of a scope: `p["q"]` is one of them, as config/network.py describes it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Optional

from gpt_neo.config.network import KINDS, variables_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model.attention.gla import gla_attention, gla_weights
from gpt_neo.model.attention.linear import linear_attention, linear_weights
from gpt_neo.model.attention.softmax import softmax_attention, softmax_weights
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims
from gpt_neo.model.mlp import mlp
from gpt_neo.model.moe import mixture_of_experts
from gpt_neo.model.norms import block_norm, final_norm, rezero
from gpt_neo.model.positions import position_embedding
from gpt_neo.mtf_compat import Tensor, mtf
from gpt_neo.ops.head import Head
from gpt_neo.ops.parameters import Parameters, activation_dtype
from gpt_neo.ops.recompute import recomputed
from gpt_neo.ops.row_sums import plus
from gpt_neo.ops.vocabulary import embed

LOSS_SEQUENCE = "loss_sequence"


@dataclasses.dataclass(frozen=True)
class Attention:
    """What a kind of attention computes; its variables and caches stand in `config.network.KINDS`, by the same name.

    layer: (x, p, number of the layer, dims, config, context) to what is added to the residual stream, x and the result
      [batch, sequence, embd].
    weights: of what the layer showed (`Context.show`), of one text and head, float64 arrays [sequence, features] each,
      and the config, to float64 [sequence, sequence]: row t has the weights with which token t sums the values.
    """

    layer: Callable[[Any, Parameters, int, Dims, ModelConfig, Context], Any]
    weights: Callable[[list, ModelConfig, str], Any]


# "none" has no layer: its block adds the residual stream to itself.
ATTENTION: dict[str, Attention] = {
    "global": Attention(softmax_attention, softmax_weights),
    "local": Attention(softmax_attention, softmax_weights),
    "linear": Attention(linear_attention, linear_weights),
    "gla": Attention(gla_attention, gla_weights),
}


def check_supported(config: ModelConfig, context: Context) -> None:
    """Refuse options that the network does not have.

    Raises:
      ConfigError: names the key and its value.
    """
    for kind in config.attention_types:
        if KINDS[kind].heads(config) and kind not in ATTENTION:
            raise ConfigError(f"attention_types has {kind!r}: this version builds {', '.join(ATTENTION)} and none")
    if context.decoding and not config.causal:
        raise ConfigError("key 'causal' is False: such a model cannot be sampled from, its tokens depend on later ones")


def transformer(tokens: Tensor, dims: Dims, config: ModelConfig, context: Context) -> Tensor:
    """The network, in variables under `gpt2/`: whole sequences, or new tokens against caches (`context.decoding`).

    Args:
      tokens: int32 [batch, sequence].

    Returns:
      float32 logits [batch, sequence or 1, vocab]; [batch, loss_sequence, vocab] with `spread_loss`.

    Raises:
      ConfigError: the network does not have an option of the config.
    """
    return up_to_head(tokens, dims, config, context).logits()


def up_to_head(tokens: Tensor, dims: Dims, config: ModelConfig, context: Context) -> Head:
    """`transformer`, but for the last product, of which a loss needs no whole logits."""
    check_supported(config, context)
    p = Parameters(
        tokens.mesh, variables_of(config), activation_dtype(config), context.storage, scale=config.lora_scale
    )
    p.get("lora_scale")  # in checkpoints, for those that merge
    wte = p["wte"]
    x = spread(embed(wte, spread(tokens, context), dims.vocab), context, back=True)
    places = position_embedding(tokens, p, dims, config, context)
    x = context.dropout(x if places is None else plus(x, places), config.embed_dropout)
    for layer in range(config.n_layer):
        x = block(x, p, layer, dims, config, context)
    if context.last_only:
        x = mtf.slice(x, dims.sequence.size - 1, 1, dims.sequence.name)
    return head(spread(x, context), wte, p, dims, config)


def spread(x: Tensor, context: Context, back: bool = False) -> Tensor:
    """Where the context asks for it, call `sequence` by another name around the table and the head, or undo that.

    A layout rule `loss_sequence:y` then splits the head, the logits and the loss over cores that would all compute the
    same, where `vocab` does not divide.
    """
    if not context.spread_loss:
        return x
    return mtf.rename_dimension(x, *((LOSS_SEQUENCE, "sequence") if back else ("sequence", LOSS_SEQUENCE)))


def head(x: Tensor, wte: Tensor, p: Parameters, dims: Dims, config: ModelConfig) -> Head:
    """The head of a stream [..., embd]."""
    if not config.no_weight_tie:
        x = final_norm(x, p.under("ln_f"), config)
    own = p.under("wte_final_linear/conv1d_main/linear_out")
    return Head(x, own["kernel"], own.get("bias"), dims.vocab) if config.own_head else Head(x, wte, None, dims.vocab)


def block(x: Tensor, p: Parameters, layer: int, dims: Dims, config: ModelConfig, context: Context) -> Tensor:
    """Run a block, again in the backward pass when `recompute_grad` asks for it.

    Args:
      x: [batch, sequence, embd].
      p: weights of the network.

    Returns:
      a tensor of the shape of x; an auxiliary loss is added to the context.
    """
    # The legacy program gave blocks that share weights an empty name: theirs have a double slash, gpt2//attn/q.
    p = p.under("" if config.share_parameters else f"h{layer}")

    def run(inputs: Tensor) -> Tensor:
        out, auxiliary = halves(inputs, p, layer, dims, config, context)
        return (out,) if auxiliary is None else (out, auxiliary)

    # What leaves a recomputed function has to be among its outputs.
    kept = config.kept_of_blocks if context.is_training else "all"
    out, *auxiliary = recomputed(run, x, kept) if kept != "all" or context.gathers else run(x)
    context.auxiliary_losses.extend(auxiliary)
    return out


def halves(
    x: Tensor, p: Parameters, layer: int, dims: Dims, config: ModelConfig, context: Context
) -> tuple[Tensor, Optional[Tensor]]:
    """Attention and feed-forward around the stream: (x, auxiliary loss or None).

    Pre-norm, x += attention(norm_1(x)); x += feed_forward(norm_2(x)), with the variations of the config.
    """
    half = 0.5 if config.macaron else 1.0
    if config.macaron:  # on the bare stream, as the legacy program had it
        x += half * context.dropout(mlp(x, p.under("mlp_macaron"), dims, config), config.res_dropout)
    kind = ATTENTION.get(config.attention_types[layer])
    normed = block_norm(x, p.under("norm_1"), config) if kind or config.shared_norm else None
    attended = x  # Type none adds the stream to itself, in legacy checkpoints too.
    if kind:
        attended = context.dropout(
            kind.layer(normed, p.under("attn"), layer, dims, config, context), config.res_dropout
        )
    stream = x + rezero(attended, p.under("norm_rezero_1"), config)
    if not config.shared_norm:
        normed = block_norm(x if config.parallel_residual else stream, p.under("norm_2"), config)
    out, auxiliary = feed_forward(normed, p, layer, dims, config, context)
    return stream + rezero(out if half == 1.0 else half * out, p.under("norm_rezero_2"), config), auxiliary


def feed_forward(
    x: Tensor, p: Parameters, layer: int, dims: Dims, config: ModelConfig, context: Context
) -> tuple[Tensor, Optional[Tensor]]:
    """The feed-forward part of that layer: ([batch, sequence, embd], auxiliary loss or None)."""
    if layer in config.moe_layers:
        out, auxiliary = mixture_of_experts(x, p, dims, config, context)
        return context.dropout(out, config.res_dropout), auxiliary
    return context.dropout(mlp(x, p.under("mlp"), dims, config), config.res_dropout), None
