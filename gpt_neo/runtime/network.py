"""One pass over the network as a TensorFlow graph, for whatever reads tokens: evaluation, scores, sampling, export."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple, Optional, Protocol

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims, make_dims
from gpt_neo.model.transformer import up_to_head
from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.caches import Decoding, Store
from gpt_neo.ops.head import Head


class Placement(Protocol):
    """Where a Mesh-TF graph is lowered to: local devices, the cores of a TPU, or one core of an exported program."""

    in_place: bool  # whether kernels of TensorFlow can update variables one by one
    counts: bool  # whether a step counts itself
    replicas: int
    mesh_shape: tuple
    layout: tuple

    def make_mesh(self, graph: mtf.Graph) -> mtf.Mesh:
        """The mesh of a new graph."""

    def lower(self, graph: mtf.Graph, mesh: mtf.Mesh) -> mtf.Lowering:
        """The lowering of a finished graph."""


class Pass(NamedTuple):
    """A pass that is being built. bring: a TensorFlow tensor [batch, sequence] into it."""

    head: Head
    dims: Dims
    bring: Callable[[Any], Any]

    @property
    def logits(self) -> Tensor:
        """float32 mtf tensor [batch, sequence, vocab]."""
        return self.head.logits()


def forward(
    placement: Placement,
    config: ModelConfig,
    tokens: tf.Tensor,
    context: Optional[Context] = None,
    decoding: Optional[tuple] = None,
    after: Callable[[Pass], list] = lambda network: [network.logits],
) -> tuple:
    """Build and lower one pass over the network.

    Args:
      tokens: int32 TensorFlow tensor [batch, sequence].
      decoding: (position, start, length, store) of a pass against caches, position and start as TensorFlow tensors:
        see `Decoding`.
      after: from the pass to the mtf tensors that are wanted of it.

    Returns:
      (TensorFlow tensor of each that is wanted, mtf.Lowering)

    Raises:
      ConfigError: the network does not have an option of the config.
    """
    context = context or Context()
    graph = mtf.Graph()
    mesh = placement.make_mesh(graph)
    dims = make_dims(config, int(tokens.shape[0]), int(tokens.shape[1]))

    def bring(x: tf.Tensor) -> tf.Tensor:
        return mtf.import_tf_tensor(mesh, x, dims.tokens)

    if decoding is not None:
        context = at_positions(context, mesh, dims, *decoding)
    wanted = after(Pass(up_to_head(bring(tokens), dims, config, context), dims, bring))
    lowering = placement.lower(graph, mesh)
    return [lowering.export_to_tf_tensor(x) for x in wanted], lowering


def at_positions(
    context: Context, mesh: mtf.Mesh, dims: Dims, position: tf.Tensor, start: tf.Tensor, length: int, store: Store
) -> Context:
    """The context with new tokens against caches. position: int32 [] or [batch]; start: int32 [batch]."""
    rows = mtf.Shape([dims.batch])
    position = mtf.import_tf_tensor(mesh, position, rows if position.shape.ndims else mtf.Shape([]))
    at = Decoding(position, mtf.import_tf_tensor(mesh, start, rows), length, store)
    return dataclasses.replace(context, decoding=at)
