"""How a tensor of Hugging Face's holds one or more of ours. Views wherever the numbers allow it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Arrangement:
    """The same numbers in the same order. Subclasses say what differs.

    `heads` is the number of attention heads.
    """

    def split(self, theirs: np.ndarray, heads: int) -> list[np.ndarray]:
        """Our tensors out of theirs."""
        return [theirs]

    def join(self, ours: Sequence[np.ndarray], heads: int) -> np.ndarray:
        """Their tensor out of ours."""
        return ours[0]

    def their_shape(self, shape: Sequence[int]) -> tuple:
        """Sizes of their tensor, from those of each of ours."""
        return tuple(shape)


class Turned(Arrangement):
    """A torch Linear: [out, in], where ours is [in, out]."""

    def split(self, theirs: np.ndarray, heads: int) -> list[np.ndarray]:
        """Our tensor."""
        return [theirs.T]

    def join(self, ours: Sequence[np.ndarray], heads: int) -> np.ndarray:
        """Their tensor."""
        return ours[0].T

    def their_shape(self, shape: Sequence[int]) -> tuple:
        """[out, in]"""
        return tuple(shape[::-1])


class SideBySide(Arrangement):
    """Queries, keys and values next to each other in the last dimension (GPT-2's c_attn, which is not turned)."""

    def split(self, theirs: np.ndarray, heads: int) -> list[np.ndarray]:
        """q, k and v."""
        return np.split(theirs, 3, axis=-1)

    def join(self, ours: Sequence[np.ndarray], heads: int) -> np.ndarray:
        """c_attn."""
        return np.concatenate(ours, axis=-1)

    def their_shape(self, shape: Sequence[int]) -> tuple:
        """[..., 3 out]"""
        return (*shape[:-1], 3 * shape[-1])


class ByHead(Arrangement):
    """Each head's queries, keys and values after one another (GPT-NeoX): [heads, 3, features] rows of a Linear."""

    def split(self, theirs: np.ndarray, heads: int) -> list[np.ndarray]:
        """q, k and v: [in, out] each, or [out] for biases."""
        parts = theirs.reshape(heads, 3, -1, *theirs.shape[1:])
        return [parts[:, i].reshape(-1, *theirs.shape[1:]).T for i in range(3)]

    def join(self, ours: Sequence[np.ndarray], heads: int) -> np.ndarray:
        """query_key_value."""
        parts = [part.T.reshape(heads, -1, *part.T.shape[1:]) for part in ours]
        joined = np.stack(parts, axis=1)
        return joined.reshape(-1, *joined.shape[3:])

    def their_shape(self, shape: Sequence[int]) -> tuple:
        """[3 out, in]"""
        return (3 * shape[-1], *shape[:-1])


SAME, TURNED, SIDE_BY_SIDE, BY_HEAD = Arrangement(), Turned(), SideBySide(), ByHead()
