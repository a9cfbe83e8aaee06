"""The model function of TPUEstimator: dispatch to the steps, checkpoints and summaries around them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.checkpoint.fit import fit_checkpoint
from gpt_neo.checkpoint.folder import latest_checkpoint
from gpt_neo.checkpoint.provenance import make_provenance, tokenizer_reference
from gpt_neo.checkpoint.saver import RecordListener, RunSaver, keeping
from gpt_neo.config.schema import RunConfig
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import inlined
from gpt_neo.optim.schedules import learning_rate
from gpt_neo.runtime.eval_metrics import NATS, TOKENS, batch_sums, streaming
from gpt_neo.runtime.eval_step import build_eval_step
from gpt_neo.runtime.hooks import (
    AfterSave,
    LoopHook,
    LoopLength,
    Progress,
    ProgressHook,
    ProgressLog,
    SaveHook,
    SpikeHook,
)
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan, TpuPlacement
from gpt_neo.runtime.network import Placement
from gpt_neo.runtime.profile import Profile, ProfileHook
from gpt_neo.runtime.train_step import TrainStep, build_train_step
from gpt_neo.runtime.watch import Watch, WatchHook


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """What a session trains or evaluates with.

    plan: the local devices; without meaning where `use_tpu`. folder: of checkpoints. report: told of progress.
    origin: the records of the batch whose update ended a step, as text. text_lengths: float32 [n_vocab, 2], see
    `estimator.text_lengths`. eval_sources: number of datasets of evaluation. save_minutes: a checkpoint is written
    after so long, too; 0 by steps alone. at_checkpoint: called with the step of every checkpoint that is there; whether
    training is to end. profile: steps that are traced.
    """

    run: RunConfig
    plan: MeshPlan
    folder: str
    watch: Watch
    use_tpu: bool = False
    steps_per_checkpoint: int = 5000
    steps_per_log: int = 10
    report: Callable[[Progress], None] = lambda progress: None
    origin: Callable[[int], str] = lambda step: "unknown"
    text_lengths: Optional[np.ndarray] = None
    eval_sources: int = 1
    save_minutes: float = 0.0
    at_checkpoint: Optional[Callable[[int], bool]] = None
    profile: Optional[Profile] = None

    def progress_log(self, every: int) -> ProgressLog:
        """The log of the run, with a row every so many steps, or none."""
        return ProgressLog(self.run.training.train_steps, self.run.tokens_per_step, self.folder, every)

    def profile_hooks(self) -> list:
        """What traces."""
        return [ProfileHook(self.profile, self.watch.notice)] if self.profile else []


def make_model_fn(setup: TrainingSetup) -> Callable[[dict, Any, str, dict], Any]:
    """The model function of a setup, which builds one mode's graph.

    It takes features (a batch of inputs/train_input.py; for evaluation with {"weight": float32 [batch]}, 0 for rows
    that only fill it up, and "source": int32 [batch], the number of the dataset) and TPUEstimator's own params.
    """

    def model_fn(features: dict, labels: Any, mode: str, params: dict) -> Any:
        if setup.use_tpu:
            placement: Placement = TpuPlacement(setup.run.mesh, params["context"])
        else:
            placement = LocalPlacement(setup.plan)
        build = train_spec if mode == tf.estimator.ModeKeys.TRAIN else eval_spec
        return build(features, placement, setup)

    return model_fn


def train_spec(batch: Any, placement: Any, setup: TrainingSetup) -> Any:
    """TPUEstimatorSpec of training."""
    run, folder, use_tpu, watch = setup.run, setup.folder, setup.use_tpu, setup.watch
    limit = tf.placeholder_with_default(math.inf, [], name="loss_limit") if watch.skip_spikes else None
    # TPUEstimator compiles the step as a whole: no kernel is compiled by itself.
    with inlined() if use_tpu else contextlib.nullcontext():
        step = build_train_step(batch, run, placement, limit)
    spikes = SpikeHook(step.loss, limit, watch, setup.origin) if watch.skip_spikes else None
    with mtf.utils.outside_all_rewrites():
        hooks = [mtf.MtfRestoreHook(step.lowering), *setup.profile_hooks()]
        existing = latest_checkpoint(folder)
        if existing:
            for note in fit_checkpoint(existing, {v.op.name: v.shape.as_list() for v in tf.global_variables()}).notes:
                watch.notice(note)
        progress = None if use_tpu else progress_hook(step, setup)
        hooks += [progress] if progress else loop_hooks(setup)
        saver = add_saver(run.training.keep_checkpoints)
        listeners = [mtf.MtfCheckpointSaverListener(step.lowering)]
        # The saver comes last: what the others refuse is not saved.
        saves = saver_hook(setup, saver, listeners, progress, spikes)
        hooks += [*([spikes] if spikes else []), WatchHook(watch), saves]
    if not use_tpu:
        return session_spec(step, hooks)
    with tf.control_dependencies([step.train]):  # the step that ended with this update, as everywhere
        number = tf.train.get_global_step().read_value()
    shown = {
        "loss": step.loss,
        "learning_rate": step.rate,
        **({} if step.norm is None else {"gradient_norm": step.norm}),
    }
    values = {name: tf.reshape(value, [1]) for name, value in {"step": number, **shown}.items()}
    return tf.estimator.tpu.TPUEstimatorSpec(
        mode=tf.estimator.ModeKeys.TRAIN,
        loss=step.loss,
        train_op=step.train,
        training_hooks=hooks,
        host_call=(lambda **tensors: write_summaries(folder, **tensors), values),
    )


def progress_hook(step: TrainStep, setup: TrainingSetup) -> ProgressHook:
    """The hook of a session that sees every step: progress, the log, losses that are no numbers."""
    return ProgressHook(step.loss, step.rate, setup.progress_log(setup.steps_per_log), setup.report, setup.watch)


def loop_hooks(setup: TrainingSetup) -> list:
    """Hooks of a session that sees the last of many steps. TensorBoard's files have them all, the log none."""
    run, last = setup.run, setup.run.training.train_steps
    log = setup.progress_log(0)
    return [
        LoopHook(lambda step: learning_rate(step, run.optimizer, last), log, setup.report, setup.watch),
        LoopLength(run.training.iterations, setup.steps_per_checkpoint, last),
    ]


def session_spec(step: TrainStep, hooks: list) -> Any:
    """TPUEstimatorSpec of training in a session that sees every step; loss and rate go to TensorBoard."""
    tf.summary.scalar("loss", step.loss)
    tf.summary.scalar("learning_rate", step.rate)
    if step.norm is not None:
        tf.summary.scalar("gradient_norm", step.norm)
    # The Estimator ends a run at NaN by a hook that comes before ours and knows no step.
    loss = tf.where(tf.math.is_nan(step.loss), tf.fill(tf.shape(step.loss), math.inf), step.loss)
    return tf.estimator.tpu.TPUEstimatorSpec(
        mode=tf.estimator.ModeKeys.TRAIN, loss=loss, train_op=step.train, training_hooks=hooks
    )


def write_summaries(folder: str, step: Any, **scalars: Any) -> Any:
    """Write scalars, of shape [1], from the host of a TPU."""
    import tensorflow as tf2

    writer = tf2.summary.create_file_writer(folder)
    with writer.as_default():
        for name, value in scalars.items():
            tf2.summary.scalar(name, value[0], step=step[0])
        return tf.summary.all_v2_summary_ops()


def add_saver(keep: int) -> Any:
    """Make the saver of the session's variables, where the session looks for one."""
    saver = RunSaver(tf.global_variables(), **keeping(keep))
    tf.add_to_collection(tf.GraphKeys.SAVERS, saver)
    return saver


def saver_hook(
    setup: TrainingSetup,
    saver: RunSaver,
    listeners: list,
    progress: Optional[ProgressHook] = None,
    spikes: Optional[SpikeHook] = None,
    kind: Callable[..., SaveHook] = SaveHook,
) -> Any:
    """A hook that writes checkpoints and their records.

    Args:
      listeners: called around a save, before the record is written. kind: makes the hook.
      progress, spikes: what goes on with losses of earlier steps.
    """
    run, tokenizer = setup.run, tokenizer_reference(setup.run)
    state: dict = {}

    def take_state() -> None:
        state.update(progress.log.state() if progress else {}, **(spikes.state() if spikes else {}))

    def record(step: int) -> dict:
        made = make_provenance(run, step, tokenizer)
        made["data"]["records"] = setup.watch.records
        return {**made, **state}

    listeners = [*listeners, RecordListener(setup.folder, record, saver)]
    if setup.at_checkpoint is not None:
        listeners.append(AfterSave(setup.at_checkpoint))
    every, spent = (setup.steps_per_checkpoint, setup.save_minutes), setup.watch.time
    return kind(setup.folder, saver, listeners, *every, spent, take_state)


def eval_spec(features: dict, placement: Any, setup: TrainingSetup) -> Any:
    """TPUEstimatorSpec of evaluation: token-weighted means."""
    run = setup.run
    with inlined() if setup.use_tpu else contextlib.nullcontext():
        losses, lowering = build_eval_step(features, run, placement)
    records = batch_sums(features, losses, run.model.n_vocab, setup.text_lengths)
    total = tf.reduce_sum(records, 0)
    with mtf.utils.outside_all_rewrites():
        restore = mtf.MtfRestoreHook(lowering)
        add_saver(run.training.keep_checkpoints)
    return tf.estimator.tpu.TPUEstimatorSpec(
        mode=tf.estimator.ModeKeys.EVAL,
        loss=total[NATS] / tf.maximum(total[TOKENS], 1.0),
        evaluation_hooks=[restore],
        eval_metrics=(
            lambda records, source: streaming(records, source, setup.eval_sources),
            [records, features["source"]],
        ),
    )
