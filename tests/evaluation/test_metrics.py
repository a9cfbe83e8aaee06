"""Metrics of scored examples, by hand."""

import math

import pytest

from gpt_neo.evaluation.metrics import METRICS, Outcome

OUTCOMES = [Outcome(7.0, 3, 20, 17, 4, True), Outcome(11.0, 6, 31, 29, 5, False), Outcome(2.5, 1, 4, 3, 2, True)]
NATS = 20.5


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("loss", NATS / 10),
        ("perplexity", math.exp(NATS / 10)),
        ("bits_per_byte", NATS / 55 / math.log(2)),
        ("bits_per_character", NATS / 49 / math.log(2)),
        ("byte_perplexity", math.exp(NATS / 55)),
        ("word_perplexity", math.exp(NATS / 11)),
        ("target_perplexity", math.exp(NATS / 3)),
        ("accuracy", 2 / 3),
    ],
)
def test_every_metric(name, wanted):
    found = METRICS[name](OUTCOMES)
    assert found.value == pytest.approx(wanted, rel=1e-12) and found.low < found.value < found.high
    one = METRICS[name](OUTCOMES[1:2])
    assert one.value == (0 if name == "accuracy" else pytest.approx(wanted_of_one(name), rel=1e-12))


def wanted_of_one(name):
    """Of the second alone, whose nats are 11."""
    per = {"loss": 6, "perplexity": 6, "bits_per_byte": 31, "bits_per_character": 29, "byte_perplexity": 31}
    nats = 11 / {**per, "word_perplexity": 5, "target_perplexity": 1}[name]
    return math.exp(nats) if "perplexity" in name else nats / math.log(2) if "bits" in name else nats


def test_there_is_none_beside_these():
    assert len(METRICS) == 8
