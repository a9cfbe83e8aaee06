"""Learning rates against the formulas of the legacy program, in NumPy."""

import numpy as np
import pytest

from gpt_neo.config.schema import OptimizerConfig
from tests.model.tools import rates_at

STEPS = np.array([0, 1, 4, 9, 10, 11, 50, 60, 99, 100, 1000])
LR, END, TRAIN = 6e-4, 60, 100


def numpy_rates(shape, warmup, end):
    progress = np.minimum(STEPS / end, 1)
    base = {
        "cosine": LR * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * progress))),
        "linear": LR - 0.9 * LR * progress,
        "none": np.full(len(STEPS), LR),
    }[shape]
    return np.where(STEPS < warmup, base * STEPS / max(warmup, 1), base)


@pytest.mark.parametrize("shape", ["cosine", "linear", "none"])
@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("end", [None, END])
def test_rates(shape, warmup, end):
    config = OptimizerConfig(lr=LR, lr_decay=shape, lr_decay_end=end, warmup_steps=warmup)
    expected = numpy_rates(shape, warmup, end or TRAIN)
    np.testing.assert_allclose(rates_at(STEPS, config, TRAIN), expected, rtol=1e-6)


def test_constant_is_what_nothing_says():
    config = OptimizerConfig(lr=LR)
    assert config.lr_decay == "none" and rates_at([10**6], config, TRAIN) == [np.float32(LR)]
