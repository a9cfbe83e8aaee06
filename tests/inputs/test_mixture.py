"""Shares of a mixture: a pure function of the sample's number, checked against counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_neo.errors import ConfigError
from gpt_neo.inputs.mixture import Mixture
from gpt_neo.mtf_compat import tf

WEIGHTS = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_positions_are_the_counts_of_the_choices(weights, start, seed, length):
    mixture = Mixture(weights, seed)
    counts = list(mixture.before(start))
    assert sum(counts) == start
    for sample in range(start, start + length):
        assert mixture.before(sample) == counts
        chosen = mixture.choice(sample)
        assert 0 <= chosen < len(weights)
        counts[chosen] += 1


@given(WEIGHTS, st.integers(0, 10**12), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_shares_hold_at_every_length(weights, count, seed):
    for given_by, weight in zip(Mixture(weights, seed).before(count), weights):
        # within the number of datasets; and shares are kept to 2**-30
        assert abs(given_by - count * weight / sum(weights)) <= len(weights) + count * 2.0**-28


def test_decimal_shares_are_exact():
    assert Mixture([0.3, 0.7], 1).before(10**9) == [3 * 10**8, 7 * 10**8]
    assert Mixture([1, 1, 2], 5).before(4 * 10**10) == [10**10, 10**10, 2 * 10**10]


def test_tensors_count_as_whole_numbers_do():
    mixture = Mixture([0.123, 3.0, 0.77, 1e-3], 3)
    samples = [0, 1, 17, 10**6, 10**12, 2**45 + 1]
    with tf.Graph().as_default(), tf.Session() as session:
        sample = tf.placeholder(tf.int64, [])
        wanted = [mixture.before(sample), mixture.choice(sample)]
        for value in samples:
            before, choice = session.run(wanted, {sample: value})
            assert list(map(int, before)) == mixture.before(value) and choice == mixture.choice(value)


def test_the_seed_moves_the_samples_and_nothing_else():
    runs = [[Mixture([0.37, 0.63], seed).choice(i) for i in range(500)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert [np.bincount(run).tolist() for run in runs] == [[185, 315]] * 3


def test_weights_too_far_apart_are_refused():
    with pytest.raises(ConfigError, match="too far apart"):
        Mixture([1e-12, 1.0], 1)
