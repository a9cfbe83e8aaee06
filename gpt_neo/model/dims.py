"""Every `mtf.Dimension` of the model. The names are public: layout strings in configs use them."""

from __future__ import annotations

import dataclasses

from gpt_neo.config.schema import ModelConfig
from gpt_neo.mtf_compat import Dimension, mtf


@dataclasses.dataclass(frozen=True)
class Dims:
    """Dimensions of one model at one batch size."""

    batch: Dimension
    sequence: Dimension
    embd: Dimension
    vocab: Dimension
    heads: Dimension
    features: Dimension  # features_per_head
    hidden: Dimension  # intermediate_expanded, the width inside the MLP
    embed_sequence: Dimension  # rows of the position table

    @property
    def tokens(self) -> mtf.Shape:
        """[batch, sequence]"""
        return mtf.Shape([self.batch, self.sequence])


def make_dims(config: ModelConfig, batch_size: int, length: int | None = None) -> Dims:
    """Make the dimensions for `batch_size` sequences of `length` tokens (n_ctx when absent)."""
    return Dims(
        batch=mtf.Dimension("batch", batch_size),
        sequence=mtf.Dimension("sequence", length or config.n_ctx),
        embd=mtf.Dimension("embd", config.n_embd),
        vocab=mtf.Dimension("vocab", config.n_vocab),
        heads=mtf.Dimension("heads", config.n_head),
        features=mtf.Dimension("features_per_head", config.n_embd // config.n_head),
        hidden=mtf.Dimension("intermediate_expanded", config.mlp_width),
        embed_sequence=mtf.Dimension("embed_sequence", config.n_ctx),
    )
