"""Decoding in which every row of the batch is on its own: rows come and go while the others go on.

What a row gives is the same to the last bit whoever else is there. A prompt is read as a batch of one, and a step
always has all rows, idle ones too: kernels choose how to group their sums by the shapes that they meet.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model.context import Context
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.caches import CACHES, VariableStore, assign_entries
from gpt_neo.ops.kernels import uncompiled
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.network import Pass, forward
from gpt_neo.runtime.predict_step import open_session
from gpt_neo.sampling.batches import PICTURE, PREFILL

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
                self.build_copy()
                self.build_picture()
            self.session, self.notes = open_session(self.placement.plan, checkpoint, self.copies)

    def build_step(self) -> None:
        """One token of every row: logits [rows, vocab]."""
        self.tokens, self.position, self.start = (tf.placeholder(tf.int32, [self.rows]) for _ in range(3))
        at = (self.position, self.start, self.length + self.chunk, VariableStore(self.rows))
        (logits,) = self.forward(self.tokens[:, tf.newaxis], Context(), at)
        self.logits = logits[:, 0]

    def build_read(self) -> None:
        """A chunk of one row: logits [vocab] of its last token, and [chunk, vocab] of all."""
        self.fed = tf.placeholder(tf.int32, [self.chunk])
        self.row, self.at, self.begun = (tf.placeholder(tf.int32, []) for _ in range(3))
        self.read_logits = {}
        store = VariableStore(self.rows, self.row)
        at = (self.at, self.begun[tf.newaxis], self.length + self.chunk, store)
        for every in (False, True):
            (logits,) = self.forward(self.fed[tf.newaxis], Context(last_only=not every), at)
            self.read_logits[every] = logits[0] if every else logits[0, 0]

    def build_copy(self) -> None:
        """The first entries of every cache, from one row to another; and a row of zeros."""
        caches = tf.get_collection(CACHES)
        self.source, self.target, self.count = (tf.placeholder(tf.int32, []) for _ in range(3))
        self.copied = tf.group(*(copy_row(cache, self.source, self.target, self.count) for cache in caches))
        self.cleared = tf.group(*(clear_row(cache, self.target) for cache in caches))

    def build_picture(self) -> None:
        """A whole text without caches, of which only what the layers attend with is asked for."""
        self.shown = tf.placeholder(tf.int32, [self.picture])
        context = Context(seen=[])

        def shown(network: Pass) -> list:
            return [mtf.cast(x, tf.float32) for _, tensors in context.seen or [] for x in tensors]

        found = iter(self.forward(self.shown[tf.newaxis], context, after=shown))
        self.seen = {layer: [next(found)[0] for _ in tensors] for layer, tensors in context.seen or []}

    def forward(self, *args: Any, **options: Any) -> list:
        """See `network.forward`."""
        found, lowering = forward(self.placement, self.config, *args, **options)
        self.copies.append(lowering.copy_masters_to_slices())
        return found

    def read(self, row: int, tokens: np.ndarray, position: int, start: int, every: bool = False) -> np.ndarray:
        """Read tokens [chunk] of one row into positions position, position + 1, ...; those before `start` are padding.

        Reading into position 0 begins the row anew.

        Returns:
          float32 logits [vocab] of the last token, or with `every` [chunk, vocab].
        """
        feeds = {self.fed: tokens, self.row: row, self.at: position, self.begun: start}
        return self.session.run(self.read_logits[every], feeds)

    def step(self, tokens: np.ndarray, position: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Feed one token of every row into its position: float32 logits [rows, vocab].

        A row that is idle, or not yet wholly read, has as position the one that it will read into next, and a later
        start: so it keeps nothing of the step.

        Args:
          tokens, position, start: int32 [rows].
        """
        return self.session.run(self.logits, {self.tokens: tokens, self.position: position, self.start: start})

    def copy(self, source: int, target: int, position: int, start: int) -> None:
        """Give a row what another, which has just read positions start .. position - 1, has of them: it may go on from
        there as if it had read them itself."""
        self.session.run(self.copied, {self.source: source, self.target: target, self.count: position})

    def clear(self, row: int) -> None:
        """Forget what a row has computed, where it is no numbers: 0 times what a later text does not see is 0 then."""
        self.session.run(self.cleared, {self.target: row})

    def attention_inputs(self, tokens: list, layer: int) -> list:
        """What a layer attends with when it reads a text of at most `picture` tokens.

        Returns:
          float32 arrays [sequence, heads, some features] as the layer showed them, see `Context.show`
        """
        padded = np.zeros([self.picture], np.int32)
        padded[: len(tokens)] = tokens
        found = self.session.run(self.seen[layer], {self.shown: padded})
        return [x[: len(tokens)] for x in found]

    def close(self) -> None:
        """Free the memory."""
        self.session.close()


def copy_row(variable: tf.Variable, source: tf.Tensor, target: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Give a row the first `count` positions of another's cache, or its whole state."""
    if is_state(variable):
        return put_row(variable, tf.gather(variable, [source]), target)
    held = tf.minimum(count, variable.shape[2])
    return put_row(variable, tf.slice(variable, tf.stack([source, 0, 0, 0]), tf.stack([1, -1, held, -1])), target)


def clear_row(variable: tf.Variable, row: tf.Tensor) -> tf.Tensor:
    """Set a row of a cache to 0."""
    return put_row(variable, tf.zeros([1, *variable.shape[1:]], variable.dtype.base_dtype), row)


def put_row(variable: tf.Variable, values: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """Put values [1, heads, n, columns] at the beginning of a row."""
    if is_state(variable):
        return variable.scatter_update(tf.IndexedSlices(values, [row]))
    return assign_entries(variable, values, tf.constant(0), row)


def is_state(variable: tf.Variable) -> bool:
    """Of those that `VariableStore.variable` makes."""
    return variable.op.type == "VarHandleOp"
