"""What a request does to a row's logits, and log-probabilities, in float64 NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from gpt_neo.sampling.filters import likeliest, top
from gpt_neo.serving.detokenizer import Scored


def score(logits: np.ndarray, token: int, count: int) -> Scored:
    """A token beside the `count` likeliest, by the model's own probabilities: before temperature, penalties and cuts.

    The chosen token has the very number that it has among the likeliest, so that a reader may compare for equality. Of
    equally likely tokens the first come first.

    Raises:
      CheckpointError: the logits are no numbers.
    """
    most = logits[likeliest(logits)]
    wide = np.subtract(logits, most, dtype=np.float64)
    total = np.log(np.exp(wide, out=wide).sum())

    def logarithm(i: int) -> float:
        return float(np.float64(logits[i]) - np.float64(most) - total)

    count = min(count, len(logits))
    found = top(logits, count) if count else np.zeros(0, int)
    order = found[np.argsort(-logits[found], kind="stable")][:count]
    return Scored(token, logarithm(token), tuple((int(i), logarithm(i)) for i in order))


@dataclasses.dataclass(frozen=True)
class Adjustments:
    """What is done to the logits before a token is drawn, in this order.

    bias: {id: what is added to its logit}. repetition: positive logits of the ids of prompt and answer are divided by
    it, negative ones multiplied (Keskar et al. 2019, section 4.1, with the signs of transformers). presence is taken
    once from the ids of the answer, frequency per occurrence. min_tokens: before as many the answer does not end.
    """

    bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    min_tokens: int = 0

    def apply(
        self, logits: np.ndarray, prompt: Sequence[int], counts: Mapping[int, int], ends: Collection[int]
    ) -> np.ndarray:
        """Logits [vocab] as a new array, or the same where nothing changes.

        Args:
          counts: how often each id is in the answer so far. ends: ids that end it.
        """
        if self == PLAIN:
            return logits
        changed = np.array(logits, np.float64)
        if self.bias:
            changed[list(self.bias)] += list(self.bias.values())
        if self.repetition != 1:
            seen = [*{*prompt, *counts}]
            found = changed[seen]
            changed[seen] = np.where(found > 0, found / self.repetition, found * self.repetition)
        if counts and (self.presence or self.frequency):
            changed[list(counts)] -= self.presence + self.frequency * np.array(list(counts.values()))
        if sum(counts.values()) < self.min_tokens:
            changed[list(ends)] = -np.inf
        return changed


PLAIN = Adjustments()
