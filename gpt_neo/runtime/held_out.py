"""Held-out records evaluated while a run trains: a session of its own, which is given each checkpoint's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.checkpoint.fit import load_variables
from gpt_neo.checkpoint.names import step_of
from gpt_neo.config.schema import RunConfig
from gpt_neo.inputs.sources import Source
from gpt_neo.inputs.train_input import evaluation_batches
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.eval_metrics import batch_sums, summarize
from gpt_neo.runtime.eval_step import build_eval_step
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan, on_chief, session_beside

BatchReport = Callable[[int, int], None]  # called after every batch with those that are done, and all


def held_out_identity(run: RunConfig, sources: Sequence[Source], batches: int, batch_size: int) -> str:
    """Which labels an evaluation covers: losses of equal identities can be compared."""
    parts = [(source.name, source.kind, source.stitch, source.counts) for source in sources]
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
    records = min(batches * batch_size, sum(source.samples for source in sources))
    return f"{records} samples of {run.model.n_ctx} tokens of {', '.join(s.name for s in sources)} ({digest})"


class Evaluation:
    """The evaluation of `runtime.estimator.evaluate`, made once for many checkpoints.

    Args:
      sources: `evaluation_sources(run)`.
      batches: evaluated each time.
    """

    def __init__(self, run: RunConfig, sources: Sequence[Source], batches: int) -> None:
        self.run, self.batches = run, batches
        self.names = [source.name for source in sources]

    def load(self, checkpoint: str) -> None:
        """Take the weights of a checkpoint, and begin with the first batch.

        Raises:
          CheckpointError: it does not fit.
        """
        raise NotImplementedError

    def following(self) -> tuple[np.ndarray, np.ndarray]:
        """What `record_sums` says of the records of the next batch, and the source [batch] of each."""
        raise NotImplementedError

    def evaluate(self, checkpoint: str, progress: BatchReport = lambda done, batches: None) -> dict:
        """What `summarize` says of a checkpoint.

        Args:
          checkpoint: its path.

        Raises:
          CheckpointError: it does not fit.
        """
        self.load(checkpoint)
        sums = np.zeros([len(self.names), 5, 5])
        for done in range(1, self.batches + 1):
            records, source = self.following()
            wide = records.astype(np.float64)
            np.add.at(sums, source, wide[:, :, np.newaxis] * wide[:, np.newaxis, :])
            progress(done, self.batches)
        found: dict[str, Any] = {"sums": sums, "global_step": step_of(checkpoint)}
        return summarize(found, self.names, in_nats=not self.run.model.entmax_loss)

    def close(self) -> None:
        """Give the memory back."""
        raise NotImplementedError


class HeldOut(Evaluation):
    """On the devices of TensorFlow that a run trains on.

    Args:
      lengths: `estimator.text_lengths(run)`.
    """

    def __init__(
        self,
        run: RunConfig,
        plan: MeshPlan,
        sources: Sequence[Source],
        batches: int,
        batch_size: int,
        lengths: Optional[np.ndarray] = None,
    ) -> None:
        super().__init__(run, sources, batches)
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(on_chief(plan)):
            data = tf.data.make_initializable_iterator(evaluation_batches(run, batch_size, batches, sources))
            batch, self.rewind = data.get_next(), data.initializer
            losses, lowering = build_eval_step(batch, run, LocalPlacement(plan))
            self.fetches = (batch_sums(batch, losses, run.model.n_vocab, lengths), batch["source"])
            self.weights, self.copies = tf.global_variables(), lowering.copy_masters_to_slices()
        self.session = session_beside(plan, self.graph)

    def load(self, checkpoint: str) -> None:
        """See `Evaluation`."""
        with self.graph.as_default():
            load_variables(self.session, checkpoint, self.weights)
        self.session.run([self.rewind, self.copies])

    def following(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Evaluation`."""
        return self.session.run(self.fetches)

    def close(self) -> None:
        """See `Evaluation`."""
        self.session.close()
