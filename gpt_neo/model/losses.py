"""Training losses, and which labels they count."""

from __future__ import annotations

from typing import Optional, Union

from gpt_neo.config.schema import ModelConfig
from gpt_neo.mtf_compat import Dimension, Tensor, mtf, tf
from gpt_neo.ops.entmax import entmax_loss_per_token
from gpt_neo.ops.vocabulary import log_z_and_target


def cross_entropy_per_token(logits: Tensor, labels: Tensor, vocab: Dimension, z_loss: float) -> Tensor:
    """Cross entropy plus z_loss * log^2 Z, the latter keeping the logits near normalised.

    Args:
      logits: float32 [..., vocab].
      labels: int32 [...].

    Returns:
      float32 [...], nats per token.
    """
    log_z, target = log_z_and_target(logits, labels, vocab)
    return log_z - target + z_loss * mtf.square(log_z)


def loss_per_token(logits: Tensor, labels: Tensor, vocab: Dimension, config: ModelConfig, z_loss: float) -> Tensor:
    """The loss that the config trains with; entmax has no partition function and so no z_loss. Shapes as above."""
    if config.entmax_loss:
        return entmax_loss_per_token(logits, labels, vocab, config.entmax_alpha)
    return cross_entropy_per_token(logits, labels, vocab, z_loss)


def split_batch(batch: Union[tf.Tensor, dict]) -> dict:
    """Name the parts of a batch.

    Args:
      batch: int32 [batch, n_ctx + 1], whose every token is the label of the one before; or a dictionary of the parts.

    Returns:
      {"inputs": int32 [batch, n_ctx], "labels": the same} and, where not every label counts,
      {"weights": float32 [batch, n_ctx]}, 1 for those that do.
    """
    if isinstance(batch, dict):
        return {name: batch[name] for name in ("inputs", "labels", "weights") if name in batch}
    return {"inputs": batch[:, :-1], "labels": batch[:, 1:]}


def count_of(features: dict) -> Optional[Tensor]:
    """Number of labels that count, a float32 scalar of at least 1; None where all of them do."""
    if "weights" not in features:
        return None
    return mtf.maximum(mtf.reduce_sum(features["weights"]), 1.0)


def mean_loss(losses: Tensor, features: dict, count: Optional[Tensor], splits: int) -> Tensor:
    """The part of the mean loss that a microbatch contributes; over all microbatches they add up to the mean.

    Args:
      losses: float32 [batch, sequence] of one microbatch.
      features: its parts.
      count: labels that count in the whole batch (`count_of`), however they fall on the microbatches.
      splits: number of microbatches.
    """
    if count is None:
        return mtf.reduce_mean(losses) / splits
    return mtf.reduce_sum(losses * features["weights"]) / count
