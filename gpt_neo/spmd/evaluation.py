"""Evaluation with the exported program: the numbers of `runtime.estimator.evaluate`, on any devices of JAX."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Callable, Optional

import numpy as np

from gpt_neo.checkpoint.best import keep_best
from gpt_neo.checkpoint.folder import read_checkpoint
from gpt_neo.config.schema import RunConfig
from gpt_neo.inputs.sources import Source
from gpt_neo.inputs.train_input import evaluation_batches
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.estimator import batches_to_evaluate, eval_batch_size, reading, text_lengths
from gpt_neo.runtime.eval_metrics import batch_sums
from gpt_neo.runtime.held_out import BatchReport, Evaluation, held_out_identity
from gpt_neo.runtime.tensorboard import write_result
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.program import Program, export_eval_step
from gpt_neo.spmd.sampling import whole_parts


def evaluate(
    run: RunConfig,
    folder: str,
    place: Callable[[Program], Devices],
    sources: list[Source],
    which: Optional[str] = None,
    tell: Callable[[str], None] = lambda line: None,
    limit: Optional[int] = None,
    keep: bool = False,
    progress: BatchReport = lambda done, batches: None,
) -> dict:
    """Token-weighted loss, perplexity and bits per byte of the held-out records.

    Args:
      place: puts a program on devices.
      sources: `evaluation_sources(run)`.
      which: the checkpoint, as `find_checkpoint` takes it.
      tell: called with lines for the person.
      limit: batches; all records when None.
      keep: the checkpoint in `best/`, if it is the best.

    Raises:
      CheckpointError: there is nothing to evaluate.
      ConfigError: the layout does not divide.
    """
    size = whole_parts(run, eval_batch_size(run))
    steps = batches_to_evaluate(run, sources, limit, size)

    def measure(checkpoint: str) -> tuple[str, dict]:
        held_out = DeviceHeldOut(run, place, sources, steps, size, text_lengths(run), tell)
        with contextlib.closing(held_out), reading(run, sources, 0, size):
            return checkpoint, held_out.evaluate(checkpoint, progress)

    checkpoint, result = read_checkpoint(folder, which, measure, tell)
    write_result(folder, result)
    if keep:
        keep_best(folder, checkpoint, result["loss"], held_out_identity(run, sources, steps, size))
    return result


class DeviceHeldOut(Evaluation):
    """Held-out records on devices of JAX. Their memory is taken for an evaluation alone.

    Args:
      place: puts a program on devices.
      lengths: `estimator.text_lengths(run)`.
      tell: called with notes on how the weights were loaded.

    Raises:
      ConfigError: the layout does not divide.
    """

    def __init__(
        self,
        run: RunConfig,
        place: Callable[[Program], Devices],
        sources: Sequence[Source],
        batches: int,
        batch_size: int,
        lengths: Optional[np.ndarray] = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(run, sources, batches)
        self.tell = tell
        self.devices = place(export_eval_step(run, batch_size))
        self.graph = tf.Graph()
        with self.graph.as_default():
            data = tf.data.make_initializable_iterator(evaluation_batches(run, batch_size, batches, sources))
            self.batch, self.rewind = data.get_next(), data.initializer
            self.fed = {name: tf.placeholder(x.dtype, x.shape) for name, x in self.batch.items()}
            self.losses = tf.placeholder(tf.float32, self.batch["labels"].shape)
            self.records = batch_sums(self.fed, self.losses, run.model.n_vocab, lengths)
        self.session = tf.Session(graph=self.graph)

    def load(self, checkpoint: str) -> None:
        """See `Evaluation`."""
        for note in self.devices.restore(checkpoint):
            self.tell(note)
        self.session.run(self.rewind)

    def following(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Evaluation`."""
        batch = self.session.run(self.batch)
        results = self.devices.step({name: batch[name] for name in ("inputs", "labels")})
        given = {self.fed[name]: value for name, value in batch.items()}
        records = self.session.run(self.records, {**given, self.losses: results["losses"][0]})
        return records, batch["source"]

    def evaluate(self, checkpoint: str, progress: BatchReport = lambda done, batches: None) -> dict:
        """See `Evaluation`."""
        try:
            return super().evaluate(checkpoint, progress)
        finally:
            self.devices.release()

    def close(self) -> None:
        """See `Evaluation`."""
        self.session.close()
        self.devices.close()
