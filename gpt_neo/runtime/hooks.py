"""What happens between steps: progress, the log, losses that are spikes or no numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

from gpt_neo.checkpoint.folder import PREFIX
from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.checkpoint.saver import writing_to
from gpt_neo.errors import GptNeoError
from gpt_neo.mtf_compat import loop_length, tf
from gpt_neo.runtime.goodput import KEY as TIME
from gpt_neo.runtime.goodput import Goodput
from gpt_neo.runtime.spikes import IN_A_ROW, SpikeRule
from gpt_neo.runtime.tensorboard import write_progress
from gpt_neo.runtime.watch import Watch
from gpt_neo.storage import tensorflow as files


class Diverged(GptNeoError):
    """The loss is no number. step: the one that ended with it, 1 for the first; None where that is not known. skipping:
    the batches before it were skipped, so that it is the weights that are bad."""

    def __init__(self, message: str, step: Optional[int] = None, skipping: bool = False) -> None:
        super().__init__(message)
        self.step, self.skipping = step, skipping


LOOP_SECONDS = 30.0  # that a TPU goes on by itself before the host hears of it
# Keys of a checkpoint's record: losses that the rule of spikes goes by, and how many batches in a row it has left out;
# losses since the last row of the log.
SPIKE_LOSSES, SPIKES_SKIPPED, LOG_LOSSES = "spike_losses", "spikes_skipped", "log_losses"


@dataclasses.dataclass(frozen=True)
class Progress:
    """State of a run after a step. loss: of its batch. seconds_left is None until it can be told. mean_loss: over the
    steps since the last row of the log, or where none is written over the last 20, that had labels which count."""

    step: int
    train_steps: int
    loss: float
    rate: float
    tokens_per_second: Optional[float]
    seconds_left: Optional[float]
    mean_loss: float = math.nan


class ProgressLog:
    """Tells how far a run is, and appends to `train_log.jsonl` in its folder every `log_every` steps; 0 never does."""

    def __init__(self, train_steps: int, tokens_per_step: int, folder: str, log_every: int = 10) -> None:
        self.train_steps, self.tokens_per_step, self.log_every = train_steps, tokens_per_step, log_every
        self.path = os.path.join(folder, "train_log.jsonl")
        self.window: list[tuple[int, float]] = []
        self.losses: list[float] = []

    def state(self) -> dict:
        """What a checkpoint's record has of it, so that the next row is the one of a run that went on."""
        return {LOG_LOSSES: [loss for loss in self.losses if math.isfinite(loss)]} if self.log_every else {}

    def add(
        self,
        step: int,
        loss: float,
        rate: float,
        spent: Optional[Goodput] = None,
        scalars: Optional[Mapping[str, float]] = None,
    ) -> Progress:
        """The state after a step, by the times of the last ones.

        Args:
          spent: what time went into; that of evaluation and samples is in no speed.
          scalars: of the step, for TensorBoard, where the session does not write them itself.

        Raises:
          CheckpointError: the log cannot be written.
        """
        self.window = [*self.window[-20:], (step, time.monotonic() - (spent.spent["evaluation"] if spent else 0.0))]
        (first, start), (last, now) = self.window[0], self.window[-1]
        speed = (last - first) / (now - start) if last > first and now > start else None
        left = (self.train_steps - step) / speed if speed else None
        tokens = speed * self.tokens_per_step if speed else None
        self.losses = [*(self.losses if self.log_every else self.losses[-19:]), loss]
        # A batch that was skipped may have a loss that is no number, one in which no label counts has 0.
        counted = [x for x in self.losses if math.isfinite(x) and x]
        mean = sum(counted) / len(counted) if counted else loss
        if self.log_every and (step % self.log_every == 0 or step == self.train_steps):
            row: dict[str, Any] = {
                "step": step,
                "loss": loss,
                "mean_loss": mean,
                "lr": rate,
                "tokens_per_second": tokens,
            }
            if spent:
                row.update({"goodput": round(spent.share, 4), TIME: spent.row()})
            self.losses = []
            with writing_to(self.path):
                files.append_text(self.path, json.dumps(row) + "\n")
            shown = {**(scalars or {}), **({"tokens_per_second": tokens} if tokens else {})}
            write_progress(os.path.dirname(self.path), step, shown)
        return Progress(step, self.train_steps, loss, rate, tokens, left, mean)


class ProgressHook(tf.estimator.SessionRunHook):
    """Calls `report` with what the log says after every step.

    Raises:
      Diverged: the loss is NaN or infinite; the checkpoints so far are kept.
    """

    def __init__(
        self, loss: tf.Tensor, rate: tf.Tensor, log: ProgressLog, report: Callable[[Progress], None], watch: Watch
    ) -> None:
        self.fetches = {"loss": loss, "rate": rate}
        self.log, self.report, self.watch = log, report, watch

    def begin(self) -> None:
        """Find the step counter, which is to be read once the update is done."""
        self.afterwards = {"step": tf.train.get_global_step()}

    def after_create_session(self, session: tf.Session, coord: tf.train.Coordinator) -> None:
        """Go on with the time of an earlier process of the run, and with the losses that its log has yet to tell."""
        step = int(session.run(self.afterwards["step"]))
        self.log.losses = list(record_of(self.watch.folder, step).get(LOG_LOSSES, ()))
        if not self.watch.time.stepping:
            self.watch.time.resume(self.log.path, step)

    def before_run(self, run_context: tf.train.SessionRunContext) -> tf.train.SessionRunArgs:
        """Fetch loss and rate along with the update."""
        return tf.estimator.SessionRunArgs(self.fetches)

    def after_run(self, run_context: tf.train.SessionRunContext, run_values: tf.train.SessionRunValues) -> None:
        """Report."""
        values = {**run_values.results, **run_context.session.run(self.afterwards)}
        self.tell(int(values["step"]), float(values["loss"]), float(values["rate"]))

    def tell(self, step: int, loss: float, rate: float, scalars: Optional[Mapping[str, float]] = None) -> None:
        """Report a step. Raises: Diverged."""
        self.watch.step = step
        if not math.isfinite(loss) and not self.watch.skip_spikes:
            raise Diverged(f"step {step:,}: the loss is {loss}", step)
        self.watch.time.step_ended()
        self.report(self.log.add(step, loss, rate, self.watch.time, scalars))


def record_of(folder: str, step: int) -> dict:
    """The record of the checkpoint of a step; empty without one."""
    return read_provenance(os.path.join(folder, f"{PREFIX}{step}")) or {}


class LoopHook(ProgressHook):
    """As ProgressHook where a run of the session is many steps, of which it gives the last loss: TPUs.

    Args:
      schedule: from the number of steps before an update, a TensorFlow scalar, to the rate of that update.
    """

    def __init__(
        self,
        schedule: Callable[[tf.Tensor], tf.Tensor],
        log: ProgressLog,
        report: Callable[[Progress], None],
        watch: Watch,
    ) -> None:
        super().__init__(None, None, log, report, watch)
        self.schedule = schedule

    def begin(self) -> None:
        """Find the loss, which TPUEstimator has made by now, and the step counter."""
        super().begin()
        self.fetches = {"loss": tf.get_collection(tf.GraphKeys.LOSSES)[-1]}
        self.afterwards["rate"] = self.schedule(self.afterwards["step"] - 1)


class LoopLength(tf.estimator.SessionRunHook):
    """Sets how many steps a TPU makes in a run of the session: what fits into LOOP_SECONDS by the time of the last run,
    so that a signal is heard and a stall is one, and none past a checkpoint. The first two runs, of which one compiles,
    are a step each. TPUEstimator has a hook for this, too, which sets `iterations`; this one comes after it.

    Args:
      longest: steps; key `iterations`.
      every: steps from one checkpoint to the next.
      last: step.
    """

    def __init__(self, longest: int, every: int, last: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.longest, self.every, self.last, self.clock = longest, every, last, clock
        self.length, self.compiled, self.began = 1, False, 0.0

    def begin(self) -> None:
        """Find the variable that TPUEstimator's loop reads, and the step counter."""
        self.variable, self.counter = loop_length(), tf.train.get_global_step()

    def after_create_session(self, session: tf.Session, coord: tf.train.Coordinator) -> None:
        """A step, which compiles."""
        self.compiled = False
        self.set(1, session)

    def before_run(self, run_context: tf.train.SessionRunContext) -> None:
        """Begin to measure."""
        self.began = self.clock()

    def after_run(self, run_context: tf.train.SessionRunContext, run_values: tf.train.SessionRunValues) -> None:
        """Set the length of the next run."""
        seconds = (self.clock() - self.began) / self.length
        step = int(run_context.session.run(self.counter))
        fits = int(LOOP_SECONDS / max(seconds, 1e-6)) if self.compiled else 1
        self.compiled = True
        until = min(self.every - step % self.every, self.last - step)
        self.set(max(1, min(fits, self.longest, until)), run_context.session)

    def set(self, length: int, session: tf.Session) -> None:
        """Have the next run make so many steps."""
        self.length = length
        self.variable.load(length, session)


class BatchHook(tf.estimator.SessionRunHook):
    """Counts the batches of an evaluation. On a TPU they are one run of the session, which is not counted.

    Args:
      progress: see `held_out.BatchReport`.
    """

    def __init__(self, progress: Callable[[int, int], None], batches: int) -> None:
        self.progress, self.batches, self.done = progress, batches, 0

    def after_run(self, run_context: tf.train.SessionRunContext, run_values: tf.train.SessionRunValues) -> None:
        """One more."""
        self.done += 1
        self.progress(self.done, self.batches)


class SpikeHook(tf.estimator.SessionRunHook):
    """Feeds the greatest loss that the next update may have, and tells of those that were left out.

    Args:
      limit: the placeholder that the updates are guarded with.
      origin: the files and records of the batch that ended a step.
    """

    def __init__(self, loss: tf.Tensor, limit: tf.Tensor, watch: Watch, origin: Callable[[int], str]) -> None:
        self.loss, self.limit, self.watch, self.origin = loss, limit, watch, origin
        self.rule, self.fed = SpikeRule(), math.inf

    def begin(self) -> None:
        """Find the step counter."""
        self.counter = tf.train.get_global_step()

    def after_create_session(self, session: tf.Session, coord: tf.train.Coordinator) -> None:
        """Take up the losses that the checkpoint was written with."""
        record = record_of(self.watch.folder, int(session.run(self.counter)))
        self.rule = SpikeRule(record.get(SPIKE_LOSSES, ()), record.get(SPIKES_SKIPPED, 0))

    def state(self) -> dict:
        """What a checkpoint's record has of it."""
        return {SPIKE_LOSSES: list(self.rule.losses), SPIKES_SKIPPED: self.rule.skipped}

    def before_run(self, run_context: tf.train.SessionRunContext) -> tf.train.SessionRunArgs:
        """Feed the limit."""
        self.fed = self.rule.limit
        return tf.estimator.SessionRunArgs(self.loss, feed_dict={self.limit: self.fed})

    def after_run(self, run_context: tf.train.SessionRunContext, run_values: tf.train.SessionRunValues) -> None:
        """Tell of a batch that was skipped.

        Raises:
          Diverged: too many in a row.
        """
        loss, step = float(run_values.results), self.watch.step
        if not self.rule.judge(loss, self.fed) or step is None:
            return
        if self.rule.skipped >= IN_A_ROW:
            told = f"step {step:,}: the loss is {loss}, and {IN_A_ROW} batches in a row were skipped"
            raise Diverged(told, step, skipping=True)
        records = self.origin(step)
        self.watch.notice(f"step {step:,}: loss {loss:.4f}, limit {self.fed:.4f}: batch skipped ({records})")
        self.watch.log("skipped", step=step, loss=repr(loss), limit=repr(self.fed), records=records)


class SaveTimer(tf.estimator.SecondOrStepTimer):
    """Every so many steps, counted from the first step of the run and not from where it was resumed, so that a resumed
    run saves at the same steps; and where seconds are given, after so long without."""

    def __init__(self, steps: int, seconds: float) -> None:
        super().__init__(every_steps=steps)
        self.steps, self.seconds, self.began = steps, seconds, time.monotonic()

    def should_trigger_for_step(self, step: int) -> bool:
        """Whether it is time."""
        last = self.last_triggered_step()
        if last is None or step == last:
            return last is None
        late = bool(self.seconds) and time.monotonic() - self.began >= self.seconds
        return late or step // self.steps > last // self.steps

    def update_last_triggered_step(self, step: int) -> tuple:
        """Begin to count anew."""
        self.began = time.monotonic()
        return super().update_last_triggered_step(step)


class SaveHook(tf.train.CheckpointSaverHook):
    """Writes checkpoints by steps and by time. minutes: 0 saves by steps alone. spent: told of the time that takes.
    take_state: called before a step is saved: takes what its record has of losses, which the next step may change.

    The graph is not written beside them, nor into TensorBoard's file: nothing reads it, and as text it took a sixth of
    the start of a small run; a pod's has hundreds of megabytes.
    """

    def __init__(
        self,
        folder: str,
        saver: tf.train.Saver,
        listeners: list,
        steps: int,
        minutes: float,
        spent: Goodput,
        take_state: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(folder, save_steps=steps, saver=saver, listeners=listeners, save_graph_def=False)
        self.spent, self.take_state = spent, take_state
        self._timer = SaveTimer(steps, 60 * minutes)

    def after_create_session(self, session: tf.Session, coord: tf.train.Coordinator) -> None:
        """Save what the session starts from."""
        step = session.run(self._global_step_tensor)
        self._save(session, step)
        self._timer.update_last_triggered_step(step)

    def _save(self, session: tf.Session, step: int) -> Optional[bool]:
        """Save; the base class does so at the end, too."""
        self.take_state()
        with self.spent.spending("saves"):
            return super()._save(session, step)


class AfterSave(tf.estimator.CheckpointSaverListener):
    """Acts on every checkpoint once it is written, the one that a session starts from too.

    Args:
      act: from the step to whether training is to end.
    """

    def __init__(self, act: Callable[[int], bool]) -> None:
        self.act = act

    def after_save(self, session: tf.Session, global_step_value: int) -> bool:
        """Act."""
        return self.act(int(global_step_value))
