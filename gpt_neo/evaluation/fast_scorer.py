"""Exact log-probabilities by OpenVINO: what `Scorer` gives by TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from gpt_neo.config.network import kinds_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.evaluation.batches import MOST_ROWS, BatchScorer, Piece, Score, put
from gpt_neo.fast.network import Network

CACHED = 1 << 30  # bytes that the caches of all rows may take


class FastScorer(BatchScorer):
    """A model loaded once. Windows of a batch have their own lengths; its other arguments are those of `BatchScorer`.

    Raises:
      ConfigError: the model has no log-likelihoods.
      CheckpointError: the checkpoint is missing, or does not fit the config.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: str,
        dtype: Optional[str] = None,
        batch_size: Optional[int] = None,
        max_length: Optional[int] = None,
        top: int = 0,
    ) -> None:
        super().__init__(config, batch_size, max_length, top)
        each = sum(kind.cache_bytes(config, self.max_length) for kind in kinds_of(config))
        self.most = max(1, min(MOST_ROWS, batch_size or MOST_ROWS, CACHED // max(each, 1)))
        self.network = Network(config, checkpoint, self.most, self.max_length, dtype, chunk=self.max_length)
        self.notes = self.network.notes

    def rows(self, length: int) -> int:
        """See `BatchScorer`; a network with states reads one row at a time, in chunks."""
        return 1 if self.network.states else min(self.most, super().rows(length))

    def run(self, batch: Sequence[Piece], length: int, scores: Sequence[Score]) -> None:
        """See `BatchScorer`."""
        texts = [np.asarray(piece.tokens[:-1], np.int32) for piece in batch]
        counts = [piece.window.count for piece in batch]
        if self.network.states:
            logits = self.network.prefill(0, texts[0], every=True)[-counts[0] :]
        else:
            logits = self.network.read(range(len(batch)), texts, [0] * len(batch), counts)
        begin = 0
        for piece, count in zip(batch, counts):
            labels = np.asarray(piece.tokens[len(piece.tokens) - count :])
            put(piece, scores, scores_of(logits[begin : begin + count], labels, self.top))
            begin += count


def scores_of(logits: np.ndarray, labels: np.ndarray, top: int) -> dict[str, np.ndarray]:
    """Fields of `Score` for float32 logits [count, vocab] and the ids int32 [count] that came."""
    highest = logits.max(-1)
    log_z = highest + np.log(np.exp(logits - highest[:, np.newaxis]).sum(-1))
    found = {"logprobs": logits[np.arange(len(labels)), labels] - log_z, "greedy": logits.argmax(-1) == labels}
    if top:
        found["top_ids"] = np.argsort(-logits, -1, kind="stable")[:, :top]
        found["top_logprobs"] = np.take_along_axis(logits, found["top_ids"], -1) - log_z[:, np.newaxis]
    return found
