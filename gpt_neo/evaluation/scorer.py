"""Exact log-probabilities of given tokens, in batches by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.evaluation.batches import BatchScorer, Piece, Score, put
from gpt_neo.mtf_compat import tf
from gpt_neo.ops.vocabulary import log_z_and_target
from gpt_neo.runtime.memory import release_unused_memory
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan, session_beside
from gpt_neo.runtime.network import Pass, forward
from gpt_neo.runtime.predict_step import load_weights


class Scorer(BatchScorer):
    """A model loaded once, with a graph for each of a few batch lengths, built when it is first needed.

    Rows are filled up on the right with ids that no scored token sees, since the model is causal; batches are filled up
    with rows that nothing is read from. Neither changes a result beyond the rounding of a larger matrix product.

    Its other arguments are those of `BatchScorer`.

    Raises:
      ConfigError: the model has no log-likelihoods.
      CheckpointError: the checkpoint is missing, or does not fit the config.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: str,
        plan: Optional[MeshPlan] = None,
        batch_size: Optional[int] = None,
        max_length: Optional[int] = None,
        top: int = 0,
    ) -> None:
        super().__init__(config, batch_size, max_length, top)
        self.placement = LocalPlacement(plan or MeshPlan())
        self.graph = tf.Graph()
        self.steps: dict[int, tuple] = {}
        with self.graph.as_default():
            copies = self.add_step(self.lengths()[0])
            self.session = session_beside(self.placement.plan, self.graph, plain=True)
            self.notes = load_weights(self.session, checkpoint)
            self.session.run(copies)
        release_unused_memory()

    def rows(self, length: int) -> int:
        """Rows of a batch of that length: a multiple of the parts that a layout splits batches into."""
        return self.placement.plan.whole_parts(super().rows(length))

    def add_step(self, length: int) -> Any:
        """Build the graph for batches of a length; returns the operation that copies weights to the devices."""
        rows = self.rows(length)
        with tf.variable_scope("", reuse=tf.AUTO_REUSE):
            inputs, labels = (tf.placeholder(tf.int32, [rows, length]) for _ in range(2))

            def scored(network: Pass) -> list:
                logits = network.logits
                return [logits, *log_z_and_target(logits, network.bring(labels), network.dims.vocab)]

            (scores, log_z, target), lowering = forward(self.placement, self.config, inputs, after=scored)
            outputs = {
                "logprobs": target - log_z,
                "greedy": tf.equal(tf.argmax(scores, -1, output_type=tf.int32), labels),
            }
            if self.top:
                values, outputs["top_ids"] = tf.math.top_k(scores, self.top)
                outputs["top_logprobs"] = values - log_z[..., tf.newaxis]
            self.steps[length] = (inputs, labels, outputs)
            return lowering.copy_masters_to_slices()

    def step(self, length: int) -> tuple:
        """(inputs, labels, outputs) of the graph for batches of a length."""
        if length not in self.steps:
            with self.graph.as_default():
                self.session.run(self.add_step(length))
        return self.steps[length]

    def run(self, batch: Sequence[Piece], length: int, scores: Sequence[Score]) -> None:
        """Score a batch of windows of at most `length` ids."""
        inputs, labels, outputs = self.step(length)
        fed = np.zeros([2, *inputs.shape.as_list()], np.int32)
        for row, piece in enumerate(batch):
            fed[0, row, : piece.read] = piece.tokens[:-1]
            fed[1, row, : piece.read] = piece.tokens[1:]
        found = self.session.run(outputs, {inputs: fed[0], labels: fed[1]})
        for row, piece in enumerate(batch):
            source = slice(piece.read - piece.window.count, piece.read)
            put(piece, scores, {name: values[row, source] for name, values in found.items()})
