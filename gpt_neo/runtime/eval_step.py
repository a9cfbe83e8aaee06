"""Losses of held-out records as a graph."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import RunConfig
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.losses import cross_entropy_per_token
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import mtf


def build_eval_step(batch: Any, run: RunConfig, placement: Any) -> tuple:
    """Cross entropy of every label, without z-loss.

    Args:
      batch: int32 [batch, n_ctx + 1].

    Returns:
      (float32 [batch, sequence] nats per token, mtf.Lowering)
    """
    graph = mtf.Graph()
    mesh = placement.make_mesh(graph)
    dims = make_dims(run.model, int(batch.shape[0]))
    tokens = mtf.import_tf_tensor(mesh, batch[:, :-1], dims.tokens)
    labels = mtf.import_tf_tensor(mesh, batch[:, 1:], dims.tokens)
    logits = transformer(tokens, dims, run.model, Context())
    losses = cross_entropy_per_token(logits, labels, dims.vocab, z_loss=0.0)
    lowering = placement.lower(graph, mesh)
    return lowering.export_to_tf_tensor(losses), lowering
