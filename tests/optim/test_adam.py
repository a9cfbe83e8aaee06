"""Adam with and without bias correction against NumPy, and its in-place kernel against plain operations."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.ops.trained import Partition
from tests.optim.common import GRADS, START, train

EPSILON = 0.05  # far from 0, so that where it is added shows
CONFIG = OptimizerConfig(lr=0.1, beta1=0.9, beta2=0.95, epsilon=EPSILON, weight_decay=0.1)


def numpy_adam(value, grads, decay, corrected):
    value, m, v = value.astype(np.float64), 0.0, 0.0
    for t, grad in enumerate(grads.astype(np.float64), 1):
        m = 0.9 * m + 0.1 * grad
        v = 0.95 * v + 0.05 * grad**2
        unbiased_m, unbiased_v = (m / (1 - 0.9**t), v / (1 - 0.95**t)) if corrected else (m, v)
        value = value - 0.1 * (unbiased_m / (np.sqrt(unbiased_v) + EPSILON) + decay * value)
    return value


@pytest.mark.parametrize("name, decay", [("q", 0.1), ("wte", 0.1), ("norm_1_g", 0.0), ("bias", 0.0)])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("opt_name", ["adam", "adamw"])
def test_equals_numpy(opt_name, name, decay, in_place):
    got = train(name, dataclasses.replace(CONFIG, opt_name=opt_name), partition=Partition(in_place=in_place))
    np.testing.assert_allclose(got[name], numpy_adam(START, GRADS, decay, opt_name == "adamw"), rtol=1e-5)
    assert set(got) == {name, f"{name}/adam_m", f"{name}/adam_v"}


def test_no_decay_without_the_key():
    got = train("q", dataclasses.replace(CONFIG, weight_decay=0.0))
    np.testing.assert_allclose(got["q"], numpy_adam(START, GRADS, 0.0, False), rtol=1e-5)
