"""Losses of held-out records as a graph."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import RunConfig
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.losses import loss_per_token, split_batch
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import mtf


def build_eval_step(batch: Any, run: RunConfig, placement: Any) -> tuple:
    """Loss of every label, which the caller weighs: cross entropy without z-loss, or the entmax loss.

    Args:
      batch: as `split_batch` takes it.

    Returns:
      (float32 [batch, sequence] nats per token, mtf.Lowering)
    """
    graph = mtf.Graph()
    mesh = placement.make_mesh(graph)
    parts = split_batch(batch)
    dims = make_dims(run.model, int(parts["inputs"].shape[0]))
    tokens = mtf.import_tf_tensor(mesh, parts["inputs"], dims.tokens)
    labels = mtf.import_tf_tensor(mesh, parts["labels"], dims.tokens)
    logits = transformer(tokens, dims, run.model, Context(in_places=True))
    losses = loss_per_token(logits, labels, dims.vocab, run.model, z_loss=0.0)
    lowering = placement.lower(graph, mesh)
    return lowering.export_to_tf_tensor(losses), lowering
