"""Evaluation with the exported program: the numbers of `runtime.estimator.evaluate`, on any devices of JAX."""

from __future__ import annotations

from typing import Callable, Optional

from gpt_neo.checkpoint.best import keep_best
from gpt_neo.checkpoint.names import step_of
from gpt_neo.config.schema import RunConfig
from gpt_neo.inputs.sources import Source
from gpt_neo.inputs.train_input import evaluation_batches
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.estimator import eval_batch_size, reading, text_lengths, what_to_evaluate
from gpt_neo.runtime.eval_metrics import record_sums, streaming, summarize, write_events
from gpt_neo.runtime.held_out import held_out_identity
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.program import Program, export_eval_step
from gpt_neo.spmd.sampling import whole_parts
from gpt_neo.spmd.weights import put_weights


def evaluate(
    run: RunConfig,
    folder: str,
    place: Callable[[Program], Devices],
    sources: list[Source],
    which: Optional[str] = None,
    tell: Callable[[str], None] = lambda line: None,
    limit: Optional[int] = None,
    keep: bool = False,
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
    found, steps = what_to_evaluate(run, folder, sources, limit, which, size)
    with place(export_eval_step(run, size)) as devices:
        for note in put_weights(devices, found.path):
            tell(note)
        with reading(run, sources, 0, size):
            metrics = summed(run, devices, size, steps, sources)
    step = step_of(found.path)
    # under the names that the Estimator gives them
    write_events(folder, step, {name: value for name, value in metrics.items() if name != "sums"})
    names = [source.name for source in sources]
    result = summarize({**metrics, "global_step": step}, names, in_nats=not run.model.entmax_loss)
    if keep:
        keep_best(folder, found.path, result["loss"], held_out_identity(run, sources, steps, size))
    return result


def summed(run: RunConfig, devices: Devices, size: int, steps: int, sources: list[Source]) -> dict:
    """The metrics of `streaming` after so many batches."""
    lengths = text_lengths(run)
    with tf.Graph().as_default(), tf.Session() as session:
        data = evaluation_batches(run, size, steps, sources)
        following = tf.data.make_one_shot_iterator(data).get_next()
        fed = {name: tf.placeholder(x.dtype, x.shape) for name, x in following.items()}
        losses = tf.placeholder(tf.float32, following["labels"].shape)
        weights = fed.get("weights", tf.ones_like(losses))
        table = tf.zeros([run.model.n_vocab, 2]) if lengths is None else tf.constant(lengths, tf.float32)
        records = record_sums(losses, weights, fed["labels"], fed["weight"], table)
        metrics = streaming(records, fed["source"], len(sources))
        session.run(tf.local_variables_initializer())
        for _ in range(steps):
            batch = session.run(following)
            results = devices.step({name: batch[name] for name in ("inputs", "labels")})
            given = {fed[name]: value for name, value in batch.items()}
            session.run(metrics["sums"][1], {**given, losses: results["losses"][0]})
        return session.run({name: value for name, (value, _) in metrics.items()})
