"""Confidence intervals against resampling and against closed forms."""

import math

import numpy as np
import pytest

from gpt_neo.runtime.intervals import Interval, exp, moments, proportion, ratio


def test_ratio_agrees_with_the_bootstrap():
    rng = np.random.default_rng(0)
    w = rng.integers(5, 400, 300).astype(float)
    x = w * rng.normal(3.0, 0.5, 300) + rng.normal(0, 5, 300)
    found = ratio(moments(x, w))
    picks = rng.integers(0, 300, [4000, 300])
    low, high = np.percentile(x[picks].sum(1) / w[picks].sum(1), [2.5, 97.5])
    assert found.value == pytest.approx(x.sum() / w.sum(), rel=1e-12)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert high - low == pytest.approx(found.high - found.low, rel=0.05)


def test_ratio_of_equal_weights_is_a_mean():
    x = [1.0, 2.0, 4.0, 9.0]
    margin = 1.959964 * np.std(x, ddof=1) / 2
    found = ratio(moments(x, [2.0] * 4))
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0 - margin / 2, 2.0 + margin / 2))


def test_one_example_has_no_interval():
    assert ratio(moments([6.0], [2.0])) == Interval(3.0) and math.isnan(ratio(moments([], [])).value)


@pytest.mark.parametrize("successes, low, high", [(0, 0.0, 0.278), (5, 0.237, 0.763), (10, 0.722, 1.0)])
def test_proportion_of_ten(successes, low, high):
    found = proportion(successes, 10)  # Newcombe 1998 and any table of Wilson's interval
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))


def test_perplexities_are_numbers_as_long_as_floats_hold_them():
    assert exp(2.0) == math.exp(2.0) and exp(600.0) == math.exp(600.0) and exp(1e4) == math.inf
    found = Interval(2.0, 1.0, 800.0).through(exp)
    assert found == Interval(math.exp(2), math.e, math.inf) and Interval(3.0).through(exp) == Interval(math.exp(3))
