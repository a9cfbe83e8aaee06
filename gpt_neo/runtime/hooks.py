"""What happens between steps: progress, the log, and stopping at a loss that is no number."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from typing import Any, Callable, Optional

from gpt_neo.errors import GptNeoError
from gpt_neo.mtf_compat import tf

DIVERGED = ("the loss is {loss}; the checkpoints so far are kept. Lower lr, or raise warmup_steps, or "
            "set gradient_clipping")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Progress:
    """State of a run after a step. seconds_left is None until it can be told."""

    step: int
    train_steps: int
    loss: float
    rate: float
    tokens_per_second: Optional[float]
    seconds_left: Optional[float]


class ProgressHook(tf.estimator.SessionRunHook):
    """Calls `report` after every step, and appends to `train_log.jsonl` every `log_every` steps.

    Raises:
      GptNeoError: the loss is NaN or infinite; the checkpoints so far are kept.
    """

    def __init__(
        self, loss: Any, rate: Any, train_steps: int, tokens_per_step: int, folder: str,
        report: Callable[[Progress], None], log_every: int = 10,
    ) -> None:  # fmt: skip
        self.fetches = {"loss": loss, "rate": rate}
        self.train_steps, self.tokens_per_step = train_steps, tokens_per_step
        self.report, self.log_every = report, log_every
        self.log_path = os.path.join(folder, "train_log.jsonl")
        self.window: list[tuple[int, float]] = []

    def begin(self) -> None:
        """Find the step counter."""
        self.fetches["step"] = tf.train.get_global_step()

    def before_run(self, run_context: Any) -> Any:
        """Fetch loss, rate and step along with the update."""
        return tf.estimator.SessionRunArgs(self.fetches)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Report. The fetched step may be from before or after its own increment; count from the first."""
        values = run_values.results
        step = int(run_context.session.run(self.fetches["step"]))
        loss, rate = float(values["loss"]), float(values["rate"])
        if not math.isfinite(loss):
            raise GptNeoError(DIVERGED.format(loss=loss))
        self.window = [*self.window[-20:], (step, time.monotonic())]
        (first, start), (last, now) = self.window[0], self.window[-1]
        speed = (last - first) / (now - start) if last > first and now > start else None
        left = (self.train_steps - step) / speed if speed else None
        tokens = speed * self.tokens_per_step if speed else None
        if step % self.log_every == 0 or step == self.train_steps:
            row = {"step": step, "loss": loss, "lr": rate, "tokens_per_second": tokens}
            with tf.io.gfile.GFile(self.log_path, "a") as handle:
                handle.write(json.dumps(row) + "\n")
        self.report(Progress(step, self.train_steps, loss, rate, tokens, left))
