"""Training losses."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.entmax import entmax_loss_per_token
from gpt_neo.model.vocab_ops import log_z_and_target
from gpt_neo.mtf_compat import mtf


def cross_entropy_per_token(logits: Any, labels: Any, vocab: Any, z_loss: float) -> Any:
    """Cross entropy plus z_loss * log^2 Z, the latter keeping the logits near normalised.

    Args:
      logits: float32 [..., vocab].
      labels: int32 [...].

    Returns:
      float32 [...], nats per token.
    """
    log_z, target = log_z_and_target(logits, labels, vocab)
    return log_z - target + z_loss * mtf.square(log_z)


def loss_per_token(logits: Any, labels: Any, vocab: Any, config: ModelConfig, z_loss: float) -> Any:
    """The loss that the config trains with; entmax has no partition function and so no z_loss. Shapes as above."""
    if config.entmax_loss:
        return entmax_loss_per_token(logits, labels, vocab, config.entmax_alpha)
    return cross_entropy_per_token(logits, labels, vocab, z_loss)
