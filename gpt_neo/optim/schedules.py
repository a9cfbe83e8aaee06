"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math

from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import tf

FLOOR = 0.1  # both decays end at a tenth of the peak


def learning_rate(step: tf.Tensor, config: OptimizerConfig, train_steps: int) -> tf.Tensor:
    """The rate before the update of `step` (a scalar, from 0), a float32 scalar: decay to a tenth or none, times
    step / warmup_steps in warm-up."""
    rate = tf.constant(config.lr, tf.float32)
    if is_raw(config):
        return rate
    step = tf.cast(step, tf.float32)
    if config.lr_decay != "none":
        progress = tf.minimum(step / float(decay_steps(config, train_steps)), 1.0)
        shape = 0.5 * (1 + tf.cos(math.pi * progress)) if config.lr_decay == "cosine" else 1 - progress
        rate = config.lr * (FLOOR + (1 - FLOOR) * shape)
    if config.warmup_steps:
        rate *= tf.minimum(step / float(config.warmup_steps), 1.0)
    return rate


def is_raw(config: OptimizerConfig) -> bool:
    """Whether the schedule is left out: the legacy program gave Adafactor the raw rate."""
    return config.opt_name == "adafactor" and config.adafactor_legacy_lr


def decay_steps(config: OptimizerConfig, train_steps: int) -> int:
    """Steps over which the decay runs."""
    return max(1, config.lr_decay_end or train_steps)
