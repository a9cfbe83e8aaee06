"""Which dataset of a weighted mixture gives a sample: a pure function of its number, with counts in closed form.

The first dataset takes its share of all samples, spread as evenly as whole numbers allow; the second takes its share
of those that are left, and so on. Of the first i samples a dataset so gives i times its weight, to within the number
of datasets, for every i; and how many it gives is a formula, which is all that resuming needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import ConfigError
from gpt_neo.inputs.seeds import salt
from gpt_neo.inputs.sources import Source

FINEST = 1 << 30  # largest denominator of a share: its square is still an int64


class Mixture:
    """Assignment of samples to datasets.

    Args:
      weights: of the datasets, above 0; only their proportions count.
      seed: moves where in the stream each dataset's samples fall.

    Raises:
      ConfigError: a weight is too small beside the others to be told from 0.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        # The decimal that a person wrote, not its binary neighbour: 0.3 to 0.7 is then 3 to 7 exactly.
        exact = [Fraction(repr(float(weight))) for weight in weights]
        rest = [sum(exact[i:], Fraction(0)) for i in range(len(exact))]
        self.shares = [(w / r).limit_denominator(FINEST) for w, r in zip(exact[:-1], rest)]
        if not all(0 < share < 1 for share in self.shares):
            raise ConfigError(f"weights {list(weights)} of datasets lie too far apart: one would never be read")
        self.phases = [salt(seed, "mixture", i) % share.denominator for i, share in enumerate(self.shares)]

    def taken(self, level: int, count: Any) -> Any:
        """Of `count` samples that datasets level, level + 1, ... share, those that fall to dataset `level`."""
        share = self.shares[level]
        whole, part = count // share.denominator, count % share.denominator
        return whole * share.numerator + (part * share.numerator + self.phases[level]) // share.denominator

    def before(self, sample: Any) -> list:
        """How many of the samples 0 .. sample - 1 each dataset gives: the position of each.

        Args:
          sample: a whole number or an int64 tensor; the results are alike.
        """
        counts, left = [], sample
        for level in range(len(self.shares)):
            counts.append(self.taken(level, left))
            left = left - counts[-1]
        return [*counts, left]

    def choice(self, sample: Any) -> Any:
        """The dataset that gives a sample, as an index."""
        steps = zip(self.before(sample), self.before(sample + 1))
        return sum(index * (after - before) for index, (before, after) in enumerate(steps))


def mixture_of(run: RunConfig, sources: Sequence[Source]) -> Mixture:
    """The assignment of a run's samples to its sources."""
    return Mixture([source.weight for source in sources], run.training.seed or 1)
