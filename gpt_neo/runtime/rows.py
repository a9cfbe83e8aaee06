"""Decoding in which every row of the batch is on its own: rows come and go while the others go on.

What a row gives is the same to the last bit whoever else is there. A prompt is read as a batch of one, and a step
always has all rows, idle ones too: kernels choose how to group their sums by the shapes that they meet.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from gpt_neo.config.network import attention_layers
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model.context import Context, Decoding
from gpt_neo.model.dims import make_dims
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import uncompiled
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.predict_step import PREFILL, open_session

PICTURE = 256  # most tokens whose attention is shown
LANES = 16  # numbers of the widest vector register: what is left over at the end goes through other instructions


class RowDecoder:
    """A model with independent rows, of which there are at least as many as asked for.

    length: tokens of the longest text, prompt included; chunk: tokens of a prompt that are read at once.

    Args:
      length: n_ctx when absent.

    Raises:
      CheckpointError: the checkpoint is missing, or does not fit the config.
      ConfigError: the layout splits the batch.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: str,
        rows: int,
        plan: Optional[MeshPlan] = None,
        length: Optional[int] = None,
    ) -> None:
        self.config, self.rows = config, -(-rows // LANES) * LANES
        self.length = min(length or config.n_ctx, config.n_ctx)
        self.chunk = min(PREFILL, config.n_ctx)
        self.picture = min(PICTURE, config.n_ctx)
        self.placement = LocalPlacement(plan or MeshPlan())
        if self.placement.replicas > 1:
            raise ConfigError("layout splits batch; rows that come and go need it whole: give another layout")
        self.copies: list = []
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.variable_scope("", reuse=tf.AUTO_REUSE):
            with uncompiled():
                self.build_step()
                self.build_read()
                self.build_picture()
            self.session, self.notes = open_session(self.placement.plan, checkpoint, self.copies)

    def build_step(self) -> None:
        """One token of every row: logits [rows, vocab]."""
        self.tokens, self.slot, self.start = (tf.placeholder(tf.int32, [self.rows]) for _ in range(3))
        graph, mesh, dims = self.begin(self.rows, 1)
        slot, start = (mtf.import_tf_tensor(mesh, x, mtf.Shape([dims.batch])) for x in (self.slot, self.start))
        at = Decoding(slot, start, slots=self.length + self.chunk, rows=self.rows)
        logits = self.network(mesh, dims, self.tokens[:, tf.newaxis], Context(decoding=at))
        self.logits = self.lower(graph, mesh).export_to_tf_tensor(logits)[:, 0]

    def build_read(self) -> None:
        """A chunk of one row: logits [vocab] of its last token, and [chunk, vocab] of all."""
        self.fed = tf.placeholder(tf.int32, [self.chunk])
        self.row, self.at, self.begun = (tf.placeholder(tf.int32, []) for _ in range(3))
        self.read_logits = {}
        for every in (False, True):
            graph, mesh, dims = self.begin(1, self.chunk)
            row, slot = (mtf.import_tf_tensor(mesh, x, mtf.Shape([])) for x in (self.row, self.at))
            start = mtf.import_tf_tensor(mesh, self.begun[tf.newaxis], mtf.Shape([dims.batch]))
            at = Decoding(slot, start, slots=self.length + self.chunk, rows=self.rows, row=row)
            context = Context(decoding=at, last_only=not every)
            logits = self.network(mesh, dims, self.fed[tf.newaxis], context)
            out = self.lower(graph, mesh).export_to_tf_tensor(logits)[0]
            self.read_logits[every] = out if every else out[0]

    def build_picture(self) -> None:
        """A whole text without caches, of which only what the layers attend with is asked for."""
        self.shown = tf.placeholder(tf.int32, [self.picture])
        graph, mesh, dims = self.begin(1, self.picture)
        context = Context(seen=[])
        self.network(mesh, dims, self.shown[tf.newaxis], context)
        lowering = self.lower(graph, mesh)
        self.seen = {
            layer: (kind, [lowering.export_to_tf_tensor(mtf.cast(x, tf.float32))[0] for x in tensors])
            for layer, (kind, tensors) in zip(attention_layers(self.config), context.seen or [])
        }

    def begin(self, batch: int, length: int) -> tuple:
        """A new mtf.Graph, its mesh and dimensions."""
        graph = mtf.Graph()
        return graph, self.placement.make_mesh(graph), make_dims(self.config, batch, length)

    def network(self, mesh: Any, dims: Any, tokens: Any, context: Context) -> Any:
        """See `transformer`."""
        return transformer(mtf.import_tf_tensor(mesh, tokens, dims.tokens), dims, self.config, context)

    def lower(self, graph: Any, mesh: Any) -> Any:
        """Lower a finished graph."""
        lowering = self.placement.lower(graph, mesh)
        self.copies.append(lowering.copy_masters_to_slices())
        return lowering

    def read(self, row: int, tokens: np.ndarray, slot: int, start: int, every: bool = False) -> np.ndarray:
        """Read tokens [chunk] of one row into slots slot, slot + 1, ...; those before slot `start` are padding.

        Reading into slot 0 begins the row anew.

        Returns:
          float32 logits [vocab] of the last token, or with `every` [chunk, vocab].
        """
        feeds = {self.fed: tokens, self.row: row, self.at: slot, self.begun: start}
        return self.session.run(self.read_logits[every], feeds)

    def step(self, tokens: np.ndarray, slot: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Feed one token of every row into its slot: float32 logits [rows, vocab].

        A row that is idle, or not yet wholly read, has as slot the one that it will read into next, and a later start:
        so it keeps nothing of the step.

        Args:
          tokens, slot, start: int32 [rows].
        """
        return self.session.run(self.logits, {self.tokens: tokens, self.slot: slot, self.start: start})

    def attention_inputs(self, tokens: list, layer: int) -> tuple[str, list]:
        """What a layer attends with when it reads a text of at most `picture` tokens.

        Returns:
          (its kind, float32 arrays [sequence, heads, some features] as the layer showed them, see `Context.show`)
        """
        kind, tensors = self.seen[layer]
        padded = np.zeros([self.picture], np.int32)
        padded[: len(tokens)] = tokens
        found = self.session.run(tensors, {self.shown: padded})
        return kind, [x[: len(tokens)] for x in found]

    def close(self) -> None:
        """Free the memory."""
        self.session.close()
