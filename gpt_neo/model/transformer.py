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
from gpt_neo.model.norms import layer_norm
from gpt_neo.model.vocab_ops import embed
from gpt_neo.mtf_compat import mtf, tf

# Keys of the legacy program that this network does not build; a run that sets one is refused, never ignored.
NOT_BUILT = (
    "rotary_emb", "mlp_glu", "scalenorm", "rezero", "num_mem_kv", "macaron", "share_parameters",
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
        if not config.causal and kind in ("global", "local", "gla"):
            raise ConfigError(f"key 'causal' is False: this version builds that of linear layers only, not of {kind!r}")
        if kind not in (*LAYERS, "none"):
            raise ConfigError(f"attention_types has {kind!r}: this version builds {', '.join(LAYERS)}, none")


def transformer(tokens: Any, dims: Dims, config: ModelConfig, context: Context) -> Any:
    """The network, in variables under `gpt2/`: whole sequences, or new tokens against caches (`context.decoding`).

    Args:
      tokens: int32 [batch, sequence].

    Returns:
      float32 logits [batch, sequence or 1, vocab].
    """
    check_supported(config)
    with tf.variable_scope("gpt2"):
        wte = variables.normal(tokens.mesh, "wte", mtf.Shape([dims.vocab, dims.embd]), 0.02, config)
        x = embed(wte, tokens, dims.vocab) + positions(tokens, dims, config, context)
        if config.embed_dropout > 0 and context.is_training:
            x = mtf.dropout(x, context.is_training, rate=config.embed_dropout)
        for layer in range(config.n_layer):
            x = block(x, layer, dims, config, context)
        if context.last_only:
            x = mtf.slice(x, dims.sequence.size - 1, 1, dims.sequence.name)
        x = layer_norm(x, "ln_f", dims.embd, config)
        return mtf.cast(contract(x, wte, [dims.embd]), tf.float32)


def positions(tokens: Any, dims: Dims, config: ModelConfig, context: Context) -> Any:
    """Learned positions: [sequence, embd] of whole sequences, [batch, sequence, embd] of new tokens."""
    wpe = position_table(tokens.mesh, dims, config)
    if context.decoding is None:
        if dims.sequence.size < dims.embed_sequence.size:
            wpe = mtf.slice(wpe, 0, dims.sequence.size, dims.embed_sequence.name)
        return mtf.rename_dimension(wpe, dims.embed_sequence.name, dims.sequence.name)
    slots = mtf.range(tokens.mesh, dims.sequence, tf.int32) + context.decoding.slot
    numbers = mtf.sub(slots, context.decoding.start, output_shape=dims.tokens)
    numbers = mtf.maximum(mtf.minimum(numbers, config.n_ctx - 1), 0)  # of padding, or past the end: never read
    return embed(wpe, numbers, dims.embed_sequence)


def position_table(mesh: Any, dims: Dims, config: ModelConfig) -> Any:
    """[embed_sequence, embd]: learned, or the mean of two axial tables, row a * A2 + b of rows a and b."""
    if config.axial_pos_emb is None:
        return variables.normal(mesh, "wpe", mtf.Shape([dims.embed_sequence, dims.embd]), 0.01, config)
    axes = [mtf.Dimension(f"axial_dim_{i}", size) for i, size in enumerate(config.axial_pos_emb)]
    first, second = (
        variables.normal(mesh, f"axial_wpe_{i + 1}", mtf.Shape([axis, dims.embd]), 0.01, config)
        for i, axis in enumerate(axes)
    )
    mean = mtf.add(first, second, output_shape=mtf.Shape([*axes, dims.embd])) / 2
    return mtf.reshape(mean, mtf.Shape([dims.embed_sequence, dims.embd]))
