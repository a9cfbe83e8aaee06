"""Confidence intervals of means over examples of unlike size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

Z = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; low and high are None where one example is all there is."""

    value: float
    low: float | None = None
    high: float | None = None

    def through(self, function: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the estimate."""
        low, high = (None if x is None else function(x) for x in (self.low, self.high))
        return Interval(function(self.value), low, high)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over n examples of x (nats), of its weight w (tokens, bytes, ...), and of their squares and product."""

    n: float
    x: float
    w: float
    xx: float
    xw: float
    ww: float


def moments(x: Sequence[float], w: Sequence[float]) -> Moments:
    """The sums of two equally long lists."""
    a, b = np.asarray(x, np.float64), np.asarray(w, np.float64)
    return Moments(len(a), *map(float, (a.sum(), b.sum(), a @ a, a @ b, b @ b)))


def ratio(sums: Moments) -> Interval:
    """Sum of x over sum of w, examples being independent and tokens within one not.

    The variance is that of the ratio estimator, n / (n - 1) sum (x - r w)^2 / (sum w)^2 (Cochran 1977, section 6.3).
    """
    if not sums.w:
        return Interval(math.nan)
    value = sums.x / sums.w
    if sums.n < 2:
        return Interval(value)
    spread = max(0.0, sums.xx - 2 * value * sums.xw + value * value * sums.ww)
    margin = Z * math.sqrt(sums.n / (sums.n - 1) * spread) / sums.w
    return Interval(value, value - margin, value + margin)


def proportion(successes: int, n: int) -> Interval:
    """Share of successes, with Wilson's score interval (1927), which stays within 0 and 1."""
    if not n:
        return Interval(math.nan)
    share = successes / n
    centre = share + Z * Z / (2 * n)
    margin = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    low, high = (centre - margin) / scale, (centre + margin) / scale  # 0 and 1 but for rounding, where all are alike
    return Interval(share, low if successes else 0.0, high if successes < n else 1.0)


def exp(x: float) -> float:
    """e^x, infinite where a float cannot hold it."""
    return math.exp(x) if x < 700 else math.inf
