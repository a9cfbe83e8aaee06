"""Sampling: a model loaded once, its graphs built once, for any number of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from gpt_neo.checkpoint.fit import aligned_zeros, load_variables
from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.context import Context
from gpt_neo.mtf_compat import tf
from gpt_neo.ops.caches import CACHES, VariableStore
from gpt_neo.ops.kernels import uncompiled
from gpt_neo.runtime.memory import release_unused_memory
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan, on_chief, session_beside
from gpt_neo.runtime.network import forward
from gpt_neo.sampling.batches import AlignedSampler


class Sampler(AlignedSampler):
    """A model ready to sample `batch_size` rows at once, or a few more where the layout splits the batch.

    Args:
      length: tokens of the longest text, prompt included, for which the caches have room; n_ctx when absent.

    Raises:
      CheckpointError: the checkpoint is missing, or does not fit the config.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: str,
        batch_size: int = 1,
        plan: Optional[MeshPlan] = None,
        length: Optional[int] = None,
    ) -> None:
        placement = LocalPlacement(plan or MeshPlan())
        batch_size = placement.plan.whole_parts(batch_size)
        super().__init__(config, batch_size, length)
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(on_chief(placement.plan)):
            self.position = tf.placeholder(tf.int32, [])
            self.start = tf.placeholder(tf.int32, [batch_size])
            self.fed = {size: tf.placeholder(tf.int32, [batch_size, size]) for size in (self.chunk, 1)}
            self.logits: dict[int, Any] = {}
            copies = []
            with tf.variable_scope("", reuse=tf.AUTO_REUSE), uncompiled():
                for size, tokens in self.fed.items():
                    self.logits[size], lowering = self.build(tokens, placement)
                    copies.append(lowering.copy_masters_to_slices())
            self.session, self.notes = open_session(placement.plan, checkpoint, copies)
        self.at: list = []  # next position, and start, of the batch under way

    def build(self, tokens: tf.Tensor, placement: LocalPlacement) -> tuple:
        """Lower one step for `tokens` [batch, chunk]: logits [batch, vocab] of the last one, and the lowering."""
        at = (self.position, self.start, self.length + self.chunk, VariableStore())
        (logits,), lowering = forward(placement, self.config, tokens, Context(last_only=True), at)
        return logits[:, 0], lowering

    def run(self, tokens: np.ndarray, position: int, start: np.ndarray) -> np.ndarray:
        """Feed tokens [batch, chunk or 1] from a position on; float32 logits [batch, vocab] of the last."""
        size = tokens.shape[1]
        return self.session.run(self.logits[size], {self.fed[size]: tokens, self.position: position, self.start: start})

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, int, np.ndarray]:
        """Read the prompts, aligned on the right.

        Returns:
          (logits [batch, vocab], next position, start [batch])
        """
        tokens, start = self.aligned(prompts)
        logits = np.zeros(0)
        for at in range(0, tokens.shape[1], self.chunk):
            logits = self.run(tokens[:, at : at + self.chunk], at, start)
        return logits, tokens.shape[1], start

    def begin(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """See `BatchSampler`."""
        logits, *self.at = self.prefill(prompts)
        return logits

    def advance(self, tokens: np.ndarray, alive: Sequence[int]) -> np.ndarray:
        """See `BatchSampler`."""
        position, start = self.at
        self.at[0] += 1
        return self.run(tokens[:, np.newaxis], position, start)

    def close(self) -> None:
        """Give the memory back."""
        self.session.close()


def open_session(plan: MeshPlan, checkpoint: str, copies: list) -> tuple[tf.Tensor, list[str]]:
    """Load the weights and empty caches of the default graph, which is finished by that.

    Args:
      copies: operations that hand the weights to the shards, one of each lowering.

    Returns:
      (session, notes on what was done on the way)
    """
    session = session_beside(plan, tf.get_default_graph(), plain=True)
    notes = load_weights(session, checkpoint)
    zero_caches(session)
    session.run(copies)
    tf.get_default_graph().finalize()
    release_unused_memory()
    return session, notes


def zero_caches(session: tf.Session) -> None:
    """Set the caches to 0, from one array: TensorFlow would make and keep zeros of its own for each."""
    caches = tf.get_collection(CACHES)
    feeds = {
        v.initializer.inputs[1]: aligned_zeros(v.shape.as_list(), v.dtype.base_dtype.as_numpy_dtype) for v in caches
    }
    session.run([v.initializer for v in caches], feeds)


def load_weights(session: tf.Session, checkpoint: str) -> list[str]:
    """Load the graph's weights, cast where the checkpoint holds another float type.

    Returns:
      notes on what was done on the way.

    Raises:
      CheckpointError: a variable is missing or of another shape; nothing is loaded then.
    """
    return load_variables(session, checkpoint, tf.global_variables(), constant=True)
