"""From a row's logits to its next token and to log-probabilities, in float64 NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gpt_neo.sampling.filters import SampleOptions, draw
from gpt_neo.serving.detokenizer import Scored


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """float64 [..., vocab]: log softmax of float32 logits of that shape."""
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def score(logits: np.ndarray, token: int, count: int) -> Scored:
    """A token beside the `count` likeliest, by the model's own probabilities: before temperature, penalties and cuts.

    The chosen token has the very number that it has among the likeliest, so that a reader may compare for equality.
    """
    found = log_probabilities(logits)
    count = min(count, len(found))
    likeliest = np.argpartition(-found, count - 1)[:count] if count else np.zeros(0, int)
    order = likeliest[np.lexsort((likeliest, -found[likeliest]))]
    return Scored(token, float(found[token]), tuple((int(i), float(found[i])) for i in order))


def penalize(logits: np.ndarray, counts: Mapping[int, int], presence: float, frequency: float) -> np.ndarray:
    """Logits [vocab] less `presence` once and `frequency` per occurrence of each token of the answer so far."""
    if not counts or not (presence or frequency):
        return logits
    lowered = np.array(logits, np.float64)
    ids = np.fromiter(counts.keys(), int, len(counts))
    lowered[ids] -= presence + frequency * np.fromiter(counts.values(), float, len(counts))
    return lowered


def choose(
    logits: np.ndarray,
    options: SampleOptions,
    generator: np.random.Generator,
    counts: Mapping[int, int],
    presence: float,
    frequency: float,
) -> int:
    """The next token."""
    return draw(penalize(logits, counts, presence, frequency), options, generator)
