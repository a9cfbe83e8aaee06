"""Which losses are spikes: a rule over the losses before, kept with the checkpoint, so that a resumed run decides
alike."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

import numpy as np

WINDOW = 64  # accepted losses that the rule looks at
ENOUGH = 16  # of them, before a finite loss can be a spike
DEVIATIONS = 8.0  # above the median
FLOOR = 0.01  # of the median: the least deviation, so that a plateau is not a hair trigger
IN_A_ROW = 20  # skipped batches after which it is the weights that are bad


class SpikeRule:
    """A loss above median + 8 deviations of the last 64 accepted ones is a spike; so is one that is no number.

    The deviation is 1.4826 times the median distance from the median (that of a normal distribution whose quartiles
    are as far), at least 1% of the median.
    """

    def __init__(self, losses: Iterable[float] = (), skipped: int = 0) -> None:
        self.losses = deque(losses, WINDOW)
        self.skipped = skipped  # in a row

    @property
    def limit(self) -> float:
        """The greatest loss that is none, as float32, in which the device compares."""
        if len(self.losses) < ENOUGH:
            return math.inf
        median = statistics.median(self.losses)
        spread = statistics.median(abs(loss - median) for loss in self.losses)
        return float(np.float32(median + DEVIATIONS * max(1.4826 * spread, FLOOR * abs(median))))

    def judge(self, loss: float, limit: float) -> bool:
        """Take a step's loss into account. Returns: whether its update was skipped under that limit."""
        if math.isfinite(loss) and loss <= limit:
            if loss:  # 0 is that of a batch in which no label counts
                self.losses.append(loss)
            self.skipped = 0
            return False
        self.skipped += 1
        return True
