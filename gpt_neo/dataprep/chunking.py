"""Packing documents into records of equal length. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class Packer:
    """Joins documents, each followed by the separator, and cuts the stream into chunks.

    Nothing is lost: what does not fill a chunk waits for the next document; `rest` hands out the end.
    """

    def __init__(self, chunk_size: int, separator: Sequence[int]) -> None:
        self.chunk_size = chunk_size
        self.separator = np.asarray(separator, np.int32)
        self.waiting: list[np.ndarray] = []
        self.size = 0

    def add(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Take a document; yield the chunks it fills, int32 [chunk_size] each."""
        self.waiting += [np.asarray(tokens, np.int32), self.separator]
        self.size += len(tokens) + len(self.separator)
        if self.size < self.chunk_size:
            return
        joined = np.concatenate(self.waiting)
        whole = len(joined) // self.chunk_size * self.chunk_size
        self.waiting, self.size = [joined[whole:]], len(joined) - whole
        yield from joined[:whole].reshape(-1, self.chunk_size)

    def rest(self) -> np.ndarray:
        """The tokens that fill no chunk."""
        joined = np.concatenate(self.waiting) if self.waiting else np.zeros(0, np.int32)
        self.waiting, self.size = [], 0
        return joined
