"""Temperature, top-k and top-p against their definitions."""

import numpy as np
import pytest

from gpt_neo.errors import CheckpointError, ConfigError
from gpt_neo.sampling.filters import BLOCK, SampleOptions, draw, place_of, probabilities, row_generator

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


@pytest.mark.parametrize(
    "logits, options, expected",
    [
        ([1.0, 1.0, 0.0], {"min_p": 1.0}, [1 / 2, 1 / 2, 0]),  # a share that is reached is no smaller one
        ([0.0, 0.0, 0.0, 0.0], {"top_p": 0.5}, [1 / 2, 1 / 2, 0, 0]),  # a mass that is reached is enough
        ([0.0, 1.0, 1.0], {"entmax_alpha": 2.0}, [0, 1 / 2, 1 / 2]),
        ([0.0, 1.0, 1.0], {"entmax_alpha": 2.0, "temperature": 4.0}, [1 / 6, 5 / 12, 5 / 12]),
        ([0.0, 1.0, 1.0], {"entmax_alpha": 2.0, "temperature": 4.0, "min_p": 0.5}, [0, 1 / 2, 1 / 2]),
    ],
)
def test_edges(logits, options, expected):
    np.testing.assert_allclose(probabilities(np.array(logits), SampleOptions(**options)), expected, atol=1e-12)


def test_draws_follow_the_distribution_and_the_seed():
    options = SampleOptions(top_k=3)
    generator = row_generator(1, 0, 0)
    drawn = [draw(LOGITS, options, generator) for _ in range(20_000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, probabilities(LOGITS, options), atol=0.012)
    again = row_generator(1, 0, 0)
    assert drawn[:50] == [draw(LOGITS, options, again) for _ in range(50)]
    other = row_generator(1, 0, 1)
    assert drawn[:50] != [draw(LOGITS, options, other) for _ in range(50)]


def test_every_row_has_numbers_of_its_own():
    """By seed, prompt and sample; these numbers give texts that are to stay those of a seed."""
    places = [(seed, prompt, sample) for seed in range(3) for prompt in range(3) for sample in range(3)]
    found = [row_generator(*place).random() for place in places]
    assert len(set(found)) == len(places)
    assert found == [np.random.default_rng(list(place)).random() for place in places]


def by_definition(logits, options):
    """Every token is put in order, nothing is left out beforehand."""
    chances = np.exp((logits.astype(np.float64) - logits.max()) / options.temperature)
    order = np.argsort(-logits, kind="stable")
    if options.top_k:
        chances[logits < logits[order[options.top_k - 1]]] = 0
    chances /= chances.sum()
    reached = np.cumsum(chances[order]) >= options.top_p
    if options.top_p < 1:
        chances[order[1:][reached[:-1]]] = 0
    chances /= chances.sum()
    chances[chances < options.min_p * chances.max()] = 0
    return chances / chances.sum()


@pytest.mark.parametrize("heat, noise", [(1.0, 3.0), (0.2, 0.01), (5.0, 1.0), (0.7, 30.0)])
@pytest.mark.parametrize(
    "cuts",
    [
        {},
        {"top_k": 40},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"top_k": 3000, "top_p": 0.5},
        {"top_p": 0.95, "min_p": 0.02},
    ],
    ids=str,
)
def test_many_tokens_equal_the_definition(cuts, heat, noise):
    rng = np.random.default_rng(7)
    logits = np.round(rng.normal(size=5003) * noise, 2).astype(np.float32)  # rounded: many are equal
    options = SampleOptions(temperature=heat, **cuts)
    expected = by_definition(logits, options)
    found = probabilities(logits, options)
    assert ((found > 0) == (expected > 0)).all()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    mass, generator, twin = np.cumsum(expected), row_generator(3, 0, 0), row_generator(3, 0, 0)
    for _ in range(200):
        wanted = twin.random() * mass[-1]
        token = draw(logits, options, generator)
        assert mass[token] - expected[token] - 1e-12 <= wanted <= mass[token] + 1e-12 and expected[token] > 0


@pytest.mark.parametrize("length", [1, 255, 256, 257, 1000])
def test_a_draw_at_the_end_has_a_chance(length):
    """What rounding makes of a share of almost 1 never leads to a token without weight."""
    weights = np.zeros(length)
    weights[length // 2] = 1e-300
    assert {place_of(weights, share) for share in (0.0, 0.5, np.nextafter(1, 0))} == {length // 2}


def test_a_draw_at_the_end_of_a_block_has_a_chance():
    """The sum of a block and its running sums are added up in other orders."""
    for seed in range(20):
        weights = np.random.default_rng(seed).random(1000) ** 4
        weights[::BLOCK] = 0  # what follows a block has no weight
        ends = np.cumsum([weights[at : at + BLOCK].sum() for at in range(0, 1000, BLOCK)])
        for end in ends:
            for share in (np.nextafter(end / ends[-1], 0) * (1 - k * 2.0**-53) for k in range(8)):
                place = place_of(weights, share)
                assert place < 1000 and weights[place] > 0


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 2, "min_p": 0.1}], ids=str)
def test_every_draw_takes_one_number(options):
    generator, twin = row_generator(5, 0, 0), row_generator(5, 0, 0)
    draw(LOGITS, SampleOptions(**options), generator)
    assert generator.random() == twin.random(2)[1]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_a_model_without_numbers_is_no_sample(options):
    for bad in ([0.0, np.nan, 1.0], [np.nan] * 3, [-np.inf] * 3, [0.0, np.inf, 1.0]):
        with pytest.raises(CheckpointError, match="in place of numbers"):
            draw(np.array(bad, np.float32), SampleOptions(**options), row_generator(0, 0, 0))


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("max_tokens", 0),
        ("seed", -1),
    ],
)
def test_values_without_meaning(name, value):
    with pytest.raises(ConfigError, match=f"--{name} is {value}; expected"):
        SampleOptions(**{name: value})
