"""From logits to a token: temperature, top-k, softmax or entmax, top-p. Pure NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import numpy as np

from gpt_neo.errors import CheckpointError, ConfigError, check_number

BLOCK = 256  # weights that are summed at once
GROUP = 64  # logits of which one is looked at first


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
        if self.max_tokens is not None:
            check_number("max_tokens", self.max_tokens, int)
        kinds = {"top_k": int, "seed": int, "temperature": float, "top_p": float, "min_p": float}
        for name, kind in kinds.items():
            check_number(name, getattr(self, name), kind)
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


def weights(logits: Any, options: SampleOptions) -> tuple[Optional[np.ndarray], np.ndarray]:
    """What may be drawn after temperature, then top-k, then top-p (Holtzman et al. 2020, section 3.1), then min-p
    (Nguyen et al. 2024), from logits [vocab] and at a temperature above 0.

    Of equally likely tokens at the edge of top-k all stay. top-p keeps the fewest likeliest tokens whose mass
    reaches it.

    Returns:
      ids: in rising order; None for all of them. weights: float64 [ids], whose sum need not be 1.

    Raises:
      CheckpointError: the logits are no numbers.
    """
    logits = np.asarray(logits)
    ids: Optional[np.ndarray] = None
    if 0 < options.top_k < len(logits):
        ids = top(logits, options.top_k)
        logits = logits[ids]
    scaled = np.subtract(logits, logits[likeliest(logits)], dtype=np.float64)
    scaled /= options.temperature
    found = np.exp(scaled, out=scaled) if options.entmax_alpha is None else entmax(scaled, options.entmax_alpha)
    if options.top_p < 1:
        kept = nucleus(found, options.top_p)
        ids, found = kept if ids is None else ids[kept], found[kept]
    if options.min_p > 0:
        kept = np.flatnonzero(found >= options.min_p * found.max())
        ids, found = kept if ids is None else ids[kept], found[kept]
    return ids, found


def top(logits: np.ndarray, count: int) -> np.ndarray:
    """Ids, in rising order, of the `count` largest logits, and of all that equal the last of them; NaN stays.

    Where few of many are wanted, the maxima of groups give a first bound, which leaves little to look through.
    """
    groups = len(logits) // GROUP
    if count <= groups:
        maxima = logits[: groups * GROUP].reshape([GROUP, groups]).max(0)
        ids = np.flatnonzero(~(logits < np.partition(maxima, -count)[-count]))
        logits = logits[ids]
    else:
        ids = np.arange(len(logits))
    return ids[~(logits < np.partition(logits, -count)[-count])]


def likeliest(logits: np.ndarray) -> int:
    """Place of the largest logit.

    Raises:
      CheckpointError: it is no number, since NumPy counts NaN as larger than any.
    """
    place = int(np.argmax(logits))
    if not np.isfinite(logits[place]):
        raise CheckpointError(
            f"the model computes {logits[place]} in place of numbers: its weights are damaged, its training diverged, "
            "or its numbers do not fit into the precision"
        )
    return place


def nucleus(found: np.ndarray, top_p: float) -> np.ndarray:
    """Places, in rising order, of the fewest likeliest whose share of the sum reaches top_p; of equals the first.

    Only a few are put in order: those of less than half of (1 - top_p) / vocab have together less than half of
    1 - top_p.
    """
    found = found / found.sum()
    likely = np.flatnonzero(found >= 0.5 * (1 - top_p) / len(found))
    order = likely[np.argsort(-found[likely], kind="stable")]
    return np.sort(order[: int(np.searchsorted(np.cumsum(found[order]), top_p)) + 1])


def probabilities(logits: Any, options: SampleOptions) -> np.ndarray:
    """float64 [vocab]: the distribution that is drawn from; see `weights`.

    Raises:
      CheckpointError: the logits are no numbers.
    """
    result = np.zeros(len(logits))
    if options.temperature == 0:
        result[likeliest(logits)] = 1.0
        return result
    ids, found = weights(logits, options)
    result[slice(None) if ids is None else ids] = found / found.sum()
    return result


def entmax(logits: np.ndarray, alpha: float) -> np.ndarray:
    """float64 [vocab]: [(alpha - 1) z - tau]_+ ^ (1 / (alpha - 1)), 1 < alpha <= 2 (see ops/entmax.py).

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
    """One token; uses one number of the generator whatever the options, so that rows stay in step.

    Raises:
      CheckpointError: the logits are no numbers.
    """
    uniform = generator.random()
    logits = logits[: options.n_ids]
    if options.temperature == 0:
        return likeliest(logits)
    ids, found = weights(logits, options)
    place = place_of(found, uniform)
    return int(place if ids is None else ids[place])


def place_of(found: np.ndarray, share: float) -> int:
    """The first place where the running sum of weights is more than this share, below 1, of the whole: by blocks first,
    since a running sum takes six times as long as a sum."""
    blocks = np.cumsum(np.add.reduceat(found, np.arange(0, len(found), BLOCK)))
    wanted = share * blocks[-1]
    block = crossing(blocks, wanted)
    within = np.cumsum(found[block * BLOCK : (block + 1) * BLOCK])
    return block * BLOCK + crossing(within, wanted - (blocks[block - 1] if block else 0.0))


def crossing(sums: np.ndarray, wanted: float) -> int:
    """The first place whose running sum is more than wanted, or, where rounding leaves none, that reaches the last."""
    return int(np.searchsorted(sums, min(wanted, np.nextafter(sums[-1], 0.0)), side="right"))


def row_generator(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """The random numbers of one row: by seed, prompt and sample, not by who shares its batch."""
    return np.random.default_rng([seed, prompt, sample])
