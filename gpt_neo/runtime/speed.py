"""How long a step may take on this machine's processor, before the first one has shown it."""

from __future__ import annotations

import time

import numpy as np

from gpt_neo.config.estimate import step_flops
from gpt_neo.config.schema import RunConfig
from gpt_neo.mtf_compat import tf

SIZE = 1024  # of the square matrices that are multiplied
SHARE = 0.5  # of that speed which a training step reaches, about
SLOWEST = 1e9  # FLOP/s that every processor reaches: steps that are fast enough at it need no measurement
SLOW = 60.0  # seconds of a step from which a person is warned


def processor_speed() -> float:
    """float32 FLOP/s of matrix products, by TensorFlow on all cores; takes about a tenth of a second."""
    with tf.Graph().as_default(), tf.device("/cpu:0"), tf.Session() as session:
        x = tf.constant(np.ones([SIZE, SIZE], np.float32))
        product = tf.reduce_sum(tf.linalg.matmul(tf.random.uniform([SIZE, SIZE]), x))
        session.run(product)  # threads and memory
        best = min(timed(session, product) for _ in range(3))
    return 2.0 * SIZE**3 / best


def timed(session: tf.Session, fetch: tf.Tensor) -> float:
    """Seconds of a run."""
    began = time.perf_counter()
    session.run(fetch)
    return time.perf_counter() - began


def expected_seconds(run: RunConfig, speed: float) -> float:
    """Seconds of a training step. speed: `processor_speed()`."""
    return step_flops(run) / (SHARE * speed)


def slow_step_text(run: RunConfig, seconds: float) -> str:
    """What a person should know of slow steps, with a batch whose steps are not."""
    batch = run.training.train_batch_size
    fitting = max(1, int(batch * SLOW / seconds))
    most = seconds / batch
    advice = f"; --set train_batch_size={fitting} makes it {max(most * fitting, most):.0f}" if fitting < batch else ""
    return (
        f"a step of {run.tokens_per_step:,} tokens will take about {seconds:,.0f} seconds on this processor{advice}. "
        "That is waited for"
    )
