"""The rule for spikes against NumPy, and the boundaries that its docs name."""

import math

import numpy as np
import pytest

from gpt_neo.runtime.spikes import SpikeRule


@pytest.mark.parametrize("count, kept", [(16, 16), (17, 17), (64, 64), (100, 64)])
def test_the_limit_is_eight_deviations_above_the_median_of_the_last_64(count, kept):
    losses = np.random.default_rng(count).normal(3.0, 0.5, count)
    last = losses[-kept:]
    median = np.median(last)
    spread = 1.4826 * np.median(np.abs(last - median))
    assert SpikeRule(losses).limit == np.float32(median + 8 * spread)


def test_fewer_than_sixteen_losses_say_nothing():
    assert SpikeRule([2.0] * 15).limit == math.inf


@pytest.mark.parametrize("loss", [2.0, -2.0])
def test_the_least_deviation_is_a_hundredth_of_the_median(loss):
    assert SpikeRule([loss] * 20).limit == np.float32(loss + 8 * 0.02)


def test_skipped_counts_those_in_a_row_and_they_are_not_accepted():
    rule = SpikeRule([2.0] * 16, skipped=3)
    limit = rule.limit
    assert not rule.judge(limit, limit) and rule.skipped == 0, "at the limit is no spike"
    for count, loss in enumerate((float(np.nextafter(np.float32(limit), np.float32(9))), math.nan, -math.inf), 1):
        assert rule.judge(loss, limit) and rule.skipped == count
    assert list(rule.losses) == [2.0] * 16 + [limit]
    assert rule.judge(math.inf, math.inf), "no number is a spike without a limit, too"
