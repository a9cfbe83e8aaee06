"""Texts of any length as windows that a model of n_ctx tokens reads, each token predicted exactly once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Request:
    """Ids of a context and its continuation, of which the last `count` are scored; at least one comes before them."""

    tokens: Sequence[int]
    count: int


@dataclasses.dataclass(frozen=True)
class Window:
    """tokens[start:stop] of a request: all but the last are read, the last `count` are scored."""

    start: int
    stop: int
    count: int


def windows(length: int, count: int, n_ctx: int) -> list[Window]:
    """The windows of a request of `length` ids, the last `count` of which are scored.

    A window reads n_ctx ids and scores at most as many. Where one is enough it is the last n_ctx + 1 ids, so a context
    that does not fit loses its beginning. Otherwise windows follow one another with one id of overlap, the last id
    scored by one being the first that the next reads; the last window reads as far back as it can and scores only
    what is left.
    """
    found = []
    first = length - count
    end = min(length, first + n_ctx)
    while first < length:
        found.append(Window(max(0, end - n_ctx - 1), end, end - first))
        first, end = end, min(length, end + n_ctx)
    return found


def rolling(ids: Sequence[int], prefix: int) -> Request:
    """The request that scores a whole text; its first id is predicted from `prefix`, the end of a document."""
    return Request([prefix, *ids], len(ids))
