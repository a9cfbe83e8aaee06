"""Sampling by OpenVINO: the texts that `runtime.predict_step.Sampler` makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.fast.network import Network
from gpt_neo.sampling.batches import BatchSampler


class FastSampler(BatchSampler):
    """A model ready to sample `batch_size` rows at once; its arguments are those of `Network`.

    Raises:
      CheckpointError: the checkpoint is missing, damaged, or does not fit the config.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: str,
        batch_size: int = 1,
        length: Optional[int] = None,
        dtype: Optional[str] = None,
        cache: str = "f32",
    ) -> None:
        super().__init__(config, batch_size, length)
        self.network = Network(config, checkpoint, batch_size, length, dtype, cache)
        self.notes = self.network.notes
        self.past = np.zeros([batch_size], np.int32)

    def begin(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """See `BatchSampler`. A prompt that several rows have is read once."""
        self.past[:] = 0
        found: list[np.ndarray] = []
        for row, prompt in enumerate(prompts):
            before = next((i for i in range(row) if prompts[i] == prompt), None)
            if before is None:
                found.append(self.network.prefill(row, prompt))
            else:
                self.network.copy(before, row, len(prompt))
                found.append(found[before])
            self.past[row] = len(prompt)
        return np.stack(found)

    def advance(self, tokens: np.ndarray, alive: Sequence[int]) -> np.ndarray:
        """See `BatchSampler`."""
        rows = [row if row in alive else -1 for row in range(self.batch_size)]
        past = np.where(np.array(rows) >= 0, self.past, 0)
        logits = self.network.read(rows, list(tokens[:, np.newaxis]), past)
        self.past[list(alive)] += 1
        return logits
