"""Temperature, top-k and top-p against their definitions."""

import numpy as np
import pytest

from gpt_neo.errors import ConfigError
from gpt_neo.sampling.filters import SampleOptions, draw, probabilities, row_generator

LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05]))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.4, 0.3, 0.15, 0.1, 0.05]),
        ({"temperature": 0.0}, [1, 0, 0, 0, 0]),
        ({"temperature": 0.5}, np.square([0.4, 0.3, 0.15, 0.1, 0.05]) / 0.285),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"top_k": 99}, [0.4, 0.3, 0.15, 0.1, 0.05]),
        ({"top_p": 0.69}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"top_p": 0.71}, [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]),
        ({"top_p": 1e-9}, [1, 0, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0, 0]),
    ],
)
def test_distribution(options, expected):
    np.testing.assert_allclose(probabilities(LOGITS, SampleOptions(**options)), expected, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 2}, {"entmax_alpha": 1.5}], ids=str)
def test_ids_that_the_tokenizer_lacks_are_not_drawn(options):
    logits, generator = np.array([0.0, 1.0, 9.0, 9.5]), row_generator(0, 0, 0)
    assert {draw(logits, SampleOptions(n_ids=2, **options), generator) for _ in range(50)} <= {0, 1}


def test_equal_logits_at_the_edge_of_top_k_all_stay():
    got = probabilities(np.array([1.0, 0.0, 0.0, -1.0]), SampleOptions(top_k=2))
    assert (got > 0).tolist() == [True, True, True, False]


def test_draws_follow_the_distribution_and_the_seed():
    options = SampleOptions(top_k=3)
    generator = row_generator(1, 0, 0)
    drawn = [draw(LOGITS, options, generator) for _ in range(20_000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, probabilities(LOGITS, options), atol=0.012)
    again = row_generator(1, 0, 0)
    assert drawn[:50] == [draw(LOGITS, options, again) for _ in range(50)]
    other = row_generator(1, 0, 1)
    assert drawn[:50] != [draw(LOGITS, options, other) for _ in range(50)]


@pytest.mark.parametrize(
    "name, value", [("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 1.5), ("max_tokens", 0), ("seed", -1)]
)
def test_values_without_meaning(name, value):
    with pytest.raises(ConfigError, match=f"--{name} is {value}; expected"):
        SampleOptions(**{name: value})
