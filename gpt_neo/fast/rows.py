"""Rows that come and go, by OpenVINO: what `runtime.rows.RowDecoder` is by TensorFlow."""

from __future__ import annotations

from typing import Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.fast.network import Network
from gpt_neo.sampling.batches import PICTURE, PREFILL


class FastRows:
    """A model with independent rows; see `RowDecoder`, and for the other arguments `Network`.

    A step has all rows, idle ones too: kernels are chosen by shape, and so a row's numbers do not depend on the others.

    Raises:
      CheckpointError: the checkpoint is missing, damaged, or does not fit the config.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: str,
        rows: int,
        length: Optional[int] = None,
        dtype: Optional[str] = None,
        cache: str = "f32",
    ) -> None:
        self.config, self.rows = config, rows
        self.length = min(length or config.n_ctx, config.n_ctx)
        self.chunk = min(PREFILL, config.n_ctx)
        self.picture = min(PICTURE, self.length)
        # one row more, in which pictures are read
        self.network = Network(config, checkpoint, rows + 1, self.length, dtype, cache, shows=True)
        self.notes = self.network.notes

    def read(self, row: int, tokens: np.ndarray, position: int, start: int, every: bool = False) -> np.ndarray:
        """See `RowDecoder`. Of padding nothing is read; its logits are 0."""
        padding = max(0, start - position)
        past, real = max(position, start) - start, tokens[padding:]
        logits = self.network.read([row], [real], [past], [len(real)] if every else None)
        return np.pad(logits, [(padding, 0), (0, 0)]) if every else logits[0]

    def step(self, tokens: np.ndarray, position: np.ndarray, start: np.ndarray) -> np.ndarray:
        """See `RowDecoder`."""
        idle = start > position
        rows = np.where(idle, -1, np.arange(self.rows)).tolist()
        return self.network.read(rows, list(tokens[:, np.newaxis]), np.where(idle, 0, position - start))

    def copy(self, source: int, target: int, position: int, start: int) -> None:
        """See `RowDecoder`."""
        self.network.copy(source, target, position - start)

    def clear(self, row: int) -> None:
        """See `RowDecoder`: attention does not touch what it does not see, and states begin at 0."""

    def attention_inputs(self, tokens: list, layer: int) -> list:
        """See `RowDecoder`."""
        parts = []
        for at in range(0, len(tokens), self.network.chunk):
            self.network.read([self.rows], [tokens[at : at + self.network.chunk]], [at])
            parts.append(self.network.seen(layer))
        return [np.concatenate(found) for found in zip(*parts)]

    def close(self) -> None:
        """Free the memory."""
        del self.network
