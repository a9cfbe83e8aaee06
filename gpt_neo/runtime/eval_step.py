"""Losses of held-out records as a graph."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import RunConfig
from gpt_neo.model.context import Context
from gpt_neo.model.losses import evaluated_loss, split_batch
from gpt_neo.runtime.network import Pass, Placement, forward


def build_eval_step(batch: Any, run: RunConfig, placement: Placement) -> tuple:
    """Loss of every label, which the caller weighs: cross entropy without z-loss, or the entmax loss.

    Args:
      batch: as `split_batch` takes it.

    Returns:
      (float32 [batch, sequence] nats per token, mtf.Lowering)
    """
    parts = split_batch(batch)

    def losses(network: Pass) -> list:
        return [evaluated_loss(network.head, network.bring(parts["labels"]), run.model)]

    (found,), lowering = forward(placement, run.model, parts["inputs"], Context(in_places=True), after=losses)
    return found, lowering
