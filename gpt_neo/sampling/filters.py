"""From logits to a token: temperature, top-k, softmax or entmax, top-p. Pure NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import numpy as np

from gpt_neo.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How tokens are drawn.

    max_tokens: most new tokens; None fills the context. temperature 0 takes the likeliest token. top_k 0 and top_p 1
    keep every token. eos_id: ends a sample; None for never. entmax_alpha: draw from entmax; None for softmax.
    n_ids: only ids below it are drawn, where the tokenizer has fewer than the table has rows (GPT-J, GPT-NeoX).
    min_p: tokens of less than this share of the likeliest one's probability are left out.
    """

    max_tokens: Optional[int] = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    eos_id: Optional[int] = None
    entmax_alpha: Optional[float] = None
    n_ids: Optional[int] = None
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        rules = (
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        )
        for name, holds, allowed in rules:
            if not holds:
                raise ConfigError(f"--{name} is {getattr(self, name)}; expected {allowed}")


def probabilities(logits: Any, options: SampleOptions) -> np.ndarray:
    """float64 [vocab] distribution after temperature, then top-k, then top-p (Holtzman et al. 2020, section 3.1), then
    min-p (Nguyen et al. 2024).

    Of equally likely tokens at the edge of top-k all stay. top-p keeps the fewest likeliest tokens whose mass
    reaches it.
    """
    logits = np.asarray(logits, np.float64)
    if options.temperature == 0:
        chosen = np.zeros_like(logits)
        chosen[np.argmax(logits)] = 1.0
        return chosen
    scaled = (logits - logits.max()) / options.temperature
    if 0 < options.top_k < len(scaled):
        edge = np.partition(scaled, -options.top_k)[-options.top_k]
        scaled = np.where(scaled >= edge, scaled, -np.inf)
    result = np.exp(scaled) if options.entmax_alpha is None else entmax(scaled, options.entmax_alpha)
    result /= result.sum()
    if options.top_p < 1:
        order = np.argsort(-result, kind="stable")
        mass = np.cumsum(result[order])
        kept = order[: int(np.searchsorted(mass, options.top_p)) + 1]
        result = np.where(np.isin(np.arange(len(result)), kept), result, 0.0)
        result /= result.sum()
    if options.min_p > 0:
        result = np.where(result >= options.min_p * result.max(), result, 0.0)
        result /= result.sum()
    return result


def entmax(logits: np.ndarray, alpha: float) -> np.ndarray:
    """float64 [vocab]: [(alpha - 1) z - tau]_+ ^ (1 / (alpha - 1)), 1 < alpha <= 2 (see gpt_neo/model/entmax.py).

    Newton's method approaches the threshold tau from below and stops when rounding no longer lets it rise.
    """
    scaled = (alpha - 1.0) * (logits - logits.max())
    exponent = 1.0 / (alpha - 1.0)
    tau, before = -1.0, -np.inf
    while tau > before:
        above = scaled[scaled > tau] - tau
        before, tau = tau, tau + ((above**exponent).sum() - 1.0) / (exponent * (above ** (exponent - 1.0)).sum())
    return np.maximum(scaled - before, 0.0) ** exponent


def draw(logits: Any, options: SampleOptions, generator: np.random.Generator) -> int:
    """One token; uses one number of the generator whatever the options, so that rows stay in step."""
    uniform = generator.random()
    logits = logits[: options.n_ids]
    if options.temperature == 0:
        return int(np.argmax(logits))
    mass = np.cumsum(probabilities(logits, options))
    return int(min(np.searchsorted(mass, uniform * mass[-1], side="right"), len(mass) - 1))


def row_generator(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """The random numbers of one row: by seed, prompt and sample, not by who shares its batch."""
    return np.random.default_rng([seed, prompt, sample])
