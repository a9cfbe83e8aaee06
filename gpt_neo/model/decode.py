"""The network in decoding form: new tokens against caches of the old ones."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model.attention.cached import cached_attention
from gpt_neo.model.dims import Dims
from gpt_neo.model.transformer import block, check_supported, head, tables
from gpt_neo.model.vocab_ops import embed
from gpt_neo.mtf_compat import mtf, tf


def decode(tokens: Any, slot: Any, start: Any, dims: Dims, config: ModelConfig, slots: int, last_only: bool) -> Any:
    """Logits of new tokens, whose keys and values are kept.

    Args:
      tokens: int32 [batch, sequence], in slots slot .. slot + sequence - 1; sequence is a fixed chunk.
      slot: int32 scalar.
      start: int32 [batch], slot of each row's first token; slots before it are padding.
      slots: entries of the caches of global layers.
      last_only: give the logits of the last token alone.

    Returns:
      float32 [batch, sequence or 1, vocab].

    Raises:
      ConfigError: the model sees both ways, so that no token can be drawn after another.
    """
    check_supported(config)
    if not config.causal:
        raise ConfigError("key 'causal' is False (mlm_training): sampling needs a causal model")

    def attention(q: Any, k: Any, v: Any, kind: str) -> Any:
        radius = config.local_attention_radius if kind == "local" else None
        return cached_attention(q, k, v, slot, start, slots, radius)

    with tf.variable_scope("gpt2"):
        wte, wpe = tables(tokens.mesh, dims, config)
        slots_of = mtf.range(tokens.mesh, dims.sequence, tf.int32) + slot
        positions = mtf.sub(slots_of, start, output_shape=dims.tokens)
        positions = mtf.maximum(mtf.minimum(positions, config.n_ctx - 1), 0)
        x = embed(wte, tokens, dims.vocab) + embed(wpe, positions, dims.embed_sequence)
        for layer, kind in enumerate(config.attention_types):
            with tf.variable_scope(f"h{layer}"):
                x = block(x, kind, dims, config, False, attention)
        if last_only:
            x = mtf.slice(x, dims.sequence.size - 1, 1, dims.sequence.name)
        return head(x, wte, dims, config)
