"""The model function of TPUEstimator: dispatch to the steps, checkpoints and summaries around them."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Callable, Optional

from gpt_neo.checkpoint.fit import fit_checkpoint
from gpt_neo.checkpoint.folder import latest_checkpoint
from gpt_neo.checkpoint.provenance import make_provenance, tokenizer_reference
from gpt_neo.checkpoint.saver import RecordListener, RunSaver, keeping
from gpt_neo.config.schema import RunConfig
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import inlined
from gpt_neo.optim.schedules import learning_rate_tensor
from gpt_neo.runtime.eval_metrics import NATS, TOKENS, record_sums, streaming
from gpt_neo.runtime.eval_step import build_eval_step
from gpt_neo.runtime.hooks import SPIKE_LOSSES, LoopHook, Progress, ProgressHook, ProgressLog, SpikeHook
from gpt_neo.runtime.mesh import LocalPlacement, TpuPlacement
from gpt_neo.runtime.train_step import TrainStep, build_train_step
from gpt_neo.runtime.watch import Watch, WatchHook


def model_fn(features: dict, labels: Any, mode: str, params: dict) -> Any:
    """Build one mode's graph.

    Args:
      features: a batch of inputs/train_input.py; for evaluation with {"weight": float32 [batch]}, 0 for rows that
        only fill it up, and "source": int32 [batch], the number of the dataset.
      params: `run` (RunConfig), `plan` (MeshPlan), `folder`, `steps_per_checkpoint`, `steps_per_log`, `report`,
        `text_lengths`, `eval_sources`, `watch`, `origin`, as `make_estimator` puts them; with a TPU also TPUEstimator's
        `context`.
    """
    run: RunConfig = params["run"]
    if params["use_tpu"]:
        placement: Any = TpuPlacement(run.mesh, params["context"])
    else:
        placement = LocalPlacement(params["plan"])
    if mode == tf.estimator.ModeKeys.TRAIN:
        return train_spec(features, run, placement, params)
    return eval_spec(features, run, placement, params)


def train_spec(batch: Any, run: RunConfig, placement: Any, params: dict) -> Any:
    """TPUEstimatorSpec of training."""
    folder: str = params["folder"]
    use_tpu: bool = params["use_tpu"]
    watch: Watch = params["watch"]()
    limit = tf.placeholder_with_default(math.inf, [], name="loss_limit") if watch.skip_spikes else None
    # TPUEstimator compiles the step as a whole: no kernel is compiled by itself.
    with inlined() if use_tpu else contextlib.nullcontext():
        step = build_train_step(batch, run, placement, limit)
    spikes = SpikeHook(step.loss, limit, watch, params["origin"]) if watch.skip_spikes else None
    with mtf.utils.outside_all_rewrites():
        hooks = [mtf.MtfRestoreHook(step.lowering)]
        existing = latest_checkpoint(folder)
        if existing:
            fit_checkpoint(existing, {v.op.name: v.shape.as_list() for v in tf.global_variables()})
        hooks.append(loop_hook(run, params) if use_tpu else progress_hook(step, run, params))
        saver = add_saver(run.training.keep_checkpoints)
        listeners = [mtf.MtfCheckpointSaverListener(step.lowering)]
        # The saver comes last: what the others refuse is not saved.
        hooks += [*([spikes] if spikes else []), WatchHook(watch), saver_hook(run, params, saver, listeners, spikes)]
    if not use_tpu:
        return session_spec(step, hooks)
    with tf.control_dependencies([step.train]):  # the step that ended with this update, as everywhere
        number = tf.train.get_global_step().read_value()
    values = [tf.reshape(value, [1]) for value in (number, step.loss, step.rate)]
    return tf.estimator.tpu.TPUEstimatorSpec(
        mode=tf.estimator.ModeKeys.TRAIN,
        loss=step.loss,
        train_op=step.train,
        training_hooks=hooks,
        host_call=(lambda *tensors: write_summaries(folder, *tensors), values),
    )


def progress_hook(step: TrainStep, run: RunConfig, params: dict) -> ProgressHook:
    """The hook of a session that sees every step: progress, the log, losses that are no numbers."""
    report: Callable[[Progress], None] = params["report"]
    log = ProgressLog(run.training.train_steps, run.tokens_per_step, params["folder"], params["steps_per_log"])
    return ProgressHook(step.loss, step.rate, log, report, params["watch"]())


def loop_hook(run: RunConfig, params: dict) -> LoopHook:
    """The hook of a session that sees the last of many steps. TensorBoard's files have them all, the log none."""
    last = run.training.train_steps
    log = ProgressLog(last, run.tokens_per_step, params["folder"], log_every=0)
    return LoopHook(
        lambda step: learning_rate_tensor(step, run.optimizer, last), log, params["report"], params["watch"]()
    )


def session_spec(step: TrainStep, hooks: list) -> Any:
    """TPUEstimatorSpec of training in a session that sees every step; loss and rate go to TensorBoard."""
    tf.summary.scalar("loss", step.loss)
    tf.summary.scalar("learning_rate", step.rate)
    # The Estimator ends a run at NaN by a hook that comes before ours and knows no step.
    loss = tf.where(tf.math.is_nan(step.loss), tf.fill(tf.shape(step.loss), math.inf), step.loss)
    return tf.estimator.tpu.TPUEstimatorSpec(
        mode=tf.estimator.ModeKeys.TRAIN, loss=loss, train_op=step.train, training_hooks=hooks
    )


def write_summaries(folder: str, step: Any, loss: Any, rate: Any) -> Any:
    """Write scalars from the host of a TPU."""
    import tensorflow as tf2

    writer = tf2.summary.create_file_writer(folder)
    with writer.as_default():
        tf2.summary.scalar("loss", loss[0], step=step[0])
        tf2.summary.scalar("learning_rate", rate[0], step=step[0])
        return tf.summary.all_v2_summary_ops()


def add_saver(keep: int) -> Any:
    """Make the saver of the session's variables, where the session looks for one."""
    saver = RunSaver(tf.global_variables(), **keeping(keep))
    tf.add_to_collection(tf.GraphKeys.SAVERS, saver)
    return saver


def saver_hook(
    run: RunConfig, params: dict, saver: RunSaver, listeners: list, spikes: Optional[SpikeHook] = None
) -> Any:
    """A hook that writes checkpoints and their records.

    Args:
      listeners: called around a save, before the record is written.
    """
    tokenizer = tokenizer_reference(run)

    def record(step: int) -> dict:
        made = make_provenance(run, step, tokenizer)
        return {**made, SPIKE_LOSSES: list(spikes.rule.losses)} if spikes else made

    return tf.train.CheckpointSaverHook(
        params["folder"],
        save_steps=params["steps_per_checkpoint"],
        saver=saver,
        listeners=[*listeners, RecordListener(params["folder"], record, saver)],
    )


def eval_spec(features: dict, run: RunConfig, placement: Any, params: dict) -> Any:
    """TPUEstimatorSpec of evaluation: token-weighted means."""
    with inlined() if params["use_tpu"] else contextlib.nullcontext():
        losses, lowering = build_eval_step(features, run, placement)
    weights = features.get("weights", tf.ones_like(losses))
    lengths = params.get("text_lengths")  # None where no tokenizer is known
    table = tf.zeros([run.model.n_vocab, 2]) if lengths is None else tf.constant(lengths, tf.float32)
    records = record_sums(losses, weights, features["labels"], features["weight"], table)
    sources: int = params["eval_sources"]
    total = tf.reduce_sum(records, 0)
    with mtf.utils.outside_all_rewrites():
        restore = mtf.MtfRestoreHook(lowering)
        add_saver(run.training.keep_checkpoints)
    return tf.estimator.tpu.TPUEstimatorSpec(
        mode=tf.estimator.ModeKeys.EVAL,
        loss=total[NATS] / tf.maximum(total[TOKENS], 1.0),
        evaluation_hooks=[restore],
        eval_metrics=(lambda records, source: streaming(records, source, sources), [records, features["source"]]),
    )
