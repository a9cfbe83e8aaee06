"""Training losses, and which labels they count."""

from __future__ import annotations

from typing import Optional, Union

from gpt_neo.config.schema import ModelConfig
from gpt_neo.mtf_compat import Dimension, Tensor, mtf, tf
from gpt_neo.ops.entmax import entmax_loss_per_token
from gpt_neo.ops.head import Head
from gpt_neo.ops.vocabulary import log_z_and_target


def cross_entropy_per_token(logits: Tensor, labels: Tensor, vocab: Dimension, z_loss: float) -> Tensor:
    """Cross entropy plus z_loss * log^2 Z, the latter keeping the logits near normalised.

    Of whole logits and with a gradient for each token, for what needs that; `mean_loss` does without them.

    Args:
      logits: float32 [..., vocab].
      labels: int32 [...].

    Returns:
      float32 [...], nats per token.
    """
    log_z, target = log_z_and_target(logits, labels, vocab)
    return log_z - target + z_loss * mtf.square(log_z)


def evaluated_loss(head: Head, labels: Tensor, config: ModelConfig) -> Tensor:
    """The loss of every label without z_loss: cross entropy, which has no gradient here, or the entmax loss.

    Args:
      labels: int32 [...].

    Returns:
      float32 [...], nats per token.
    """
    if config.entmax_loss:
        return entmax_loss_per_token(head.logits(), labels, head.vocab, config.entmax_alpha)
    log_z, target = head.log_z_and_target(labels)
    return log_z - target


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


def mean_loss(head: Head, features: dict, count: Optional[Tensor], splits: int, config: ModelConfig) -> Tensor:
    """The part of the mean loss that a microbatch contributes; over all microbatches they add up to the mean.

    Args:
      head: of one microbatch.
      features: its labels [batch, sequence] and perhaps weights.
      count: labels that count in the whole batch (`count_of`), however they fall on the microbatches.
      splits: number of microbatches.

    Returns:
      float32 scalar.
    """
    labels = features["labels"]
    if count is None:
        weights = mtf.constant(labels.mesh, 1.0 / (labels.shape.size * splits), labels.shape)
    else:
        weights = features["weights"] / count
    if config.entmax_loss:
        return mtf.reduce_sum(evaluated_loss(head, labels, config) * weights)
    return head.cross_entropy(labels, weights, config.z_loss)
