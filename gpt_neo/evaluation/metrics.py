"""From scored examples to numbers with confidence intervals. A metric is a function of a list of `Outcome`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Optional

from gpt_neo.runtime.intervals import Interval, exp, moments, proportion, ratio


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A scored example.

    nats: negative log-likelihood of what was scored. tokens: ids scored. bytes (UTF-8), characters, words: of the text
    that they stand for. greedy: every one of them was the likeliest. set_name: The Pile's name of the set, if the data
    says one.
    """

    nats: float
    tokens: int
    bytes: int
    characters: int
    words: int
    greedy: bool
    set_name: Optional[str] = None


Metric = Callable[[Sequence[Outcome]], Interval]


def nats_per(unit: str) -> Metric:
    """Total nats over the total of a unit; examples count by their size."""
    return lambda outcomes: ratio(moments([o.nats for o in outcomes], [getattr(o, unit) for o in outcomes]))


def bits_per(unit: str) -> Metric:
    """Total bits over the total of a unit."""
    return lambda outcomes: nats_per(unit)(outcomes).through(lambda nats: nats / math.log(2))


def perplexity_per(unit: str) -> Metric:
    """exp of the total nats over the total of a unit."""
    return lambda outcomes: nats_per(unit)(outcomes).through(exp)


def target_perplexity(outcomes: Sequence[Outcome]) -> Interval:
    """exp of the mean nats per example, whatever its tokens: LAMBADA's, per word."""
    return ratio(moments([o.nats for o in outcomes], [1.0] * len(outcomes))).through(exp)


def accuracy(outcomes: Sequence[Outcome]) -> Interval:
    """Share of examples that greedy decoding would give exactly."""
    return proportion(sum(o.greedy for o in outcomes), len(outcomes))


METRICS: dict[str, Metric] = {
    "loss": nats_per("tokens"),
    "perplexity": perplexity_per("tokens"),
    "bits_per_byte": bits_per("bytes"),
    "bits_per_character": bits_per("characters"),
    "byte_perplexity": perplexity_per("bytes"),
    "word_perplexity": perplexity_per("words"),
    "target_perplexity": target_perplexity,
    "accuracy": accuracy,
}
