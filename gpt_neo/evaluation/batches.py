"""Requests to windows, and windows in batches by length, whatever computes the scores."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Callable, Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError, DataError
from gpt_neo.evaluation.windows import Request, Window, windows

SHORTEST = 32  # tokens of the shortest batch; longer ones double it, up to n_ctx
MOST_ROWS = 32
LOGITS = 1 << 29  # bytes that the logits of a batch may take


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model says of the last `count` ids of a request.

    logprobs: float32 [count], natural logarithms. greedy: bool [count], whether the id is the likeliest (of equally
    likely ones the lowest). top_ids, top_logprobs: [count, top], the likeliest ids in order, where they were asked for.
    """

    logprobs: np.ndarray
    greedy: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray

    @property
    def total(self) -> float:
        """Log-probability of the continuation, summed in float64."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would give exactly this continuation."""
        return bool(self.greedy.all())


@dataclasses.dataclass(frozen=True)
class Piece:
    """A window of a request: which, the ids that it covers, and where its scores go."""

    request: int
    window: Window
    tokens: Sequence[int]
    at: int

    @property
    def read(self) -> int:
        """Ids that the model reads."""
        return len(self.tokens) - 1


class BatchScorer:
    """Scores of requests of any length; computing a batch is left to those that have a model.

    Args:
      batch_size: rows of every batch; when absent as many as keep the logits within LOGITS bytes, at most MOST_ROWS.
      max_length: ids read at once, at most n_ctx, which it is when absent.
      top: likeliest ids reported per position.

    Raises:
      ConfigError: the model has no log-likelihoods.
    """

    def __init__(
        self, config: ModelConfig, batch_size: Optional[int] = None, max_length: Optional[int] = None, top: int = 0
    ) -> None:
        check_scorable(config)
        self.config, self.batch_size, self.top = config, batch_size, min(top, config.n_vocab)
        self.max_length = min(max_length or config.n_ctx, config.n_ctx)

    def lengths(self) -> list[int]:
        """Batch lengths, ascending."""
        found = []
        length = SHORTEST
        while length < self.max_length:
            found.append(length)
            length *= 2
        return [*found, self.max_length]

    def rows(self, length: int) -> int:
        """Rows of a batch of that length."""
        fitting = LOGITS // (4 * length * self.config.n_vocab)
        return self.batch_size or max(1, min(MOST_ROWS, fitting))

    def score(
        self, requests: Sequence[Request], tell: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Score]:
        """Score requests of any length, in the order they came.

        Args:
          tell: called as requests are done with the ids scored so far, and all that are to be.

        Raises:
          DataError: a request has no context, or an id outside the vocabulary.
        """
        found: dict[int, Score] = {}
        done, total = 0, sum(request.count for request in requests)
        for number, score in self.scored(requests):
            found[number] = score
            done += len(score.logprobs)
            tell(done, total)
        return [found[number] for number in range(len(requests))]

    def scored(self, requests: Sequence[Request]) -> Iterator[tuple[int, Score]]:
        """(number of a request, its score) as requests are done; the longest run first, so that memory ends early.

        Raises:
          DataError: as `score`.
        """
        scores = [self.blank(check_request(request, i, self.config.n_vocab)) for i, request in enumerate(requests)]
        pieces = sorted(self.pieces(requests), key=lambda piece: -piece.read)
        left = collections.Counter(piece.request for piece in pieces)
        yield from ((number, score) for number, score in enumerate(scores) if not left[number])
        while pieces:
            length = next(length for length in self.lengths() if length >= pieces[0].read)
            batch, pieces = pieces[: self.rows(length)], pieces[self.rows(length) :]
            self.run(batch, length, scores)
            for piece in batch:
                left[piece.request] -= 1
                if not left[piece.request]:
                    yield piece.request, scores[piece.request]

    def pieces(self, requests: Sequence[Request]) -> list[Piece]:
        """Every window of every request."""
        found = []
        for number, request in enumerate(requests):
            at = 0
            for window in windows(len(request.tokens), request.count, self.max_length):
                found.append(Piece(number, window, request.tokens[window.start : window.stop], at))
                at += window.count
        return found

    def blank(self, request: Request) -> Score:
        """Room for the scores of a request."""
        count, top = request.count, self.top
        return Score(
            np.zeros(count, np.float32),
            np.zeros(count, bool),
            np.zeros([count, top], np.int32),
            np.zeros([count, top], np.float32),
        )

    def run(self, batch: Sequence[Piece], length: int, scores: Sequence[Score]) -> None:
        """Score a batch of windows of at most `length` ids."""
        raise NotImplementedError


def put(piece: Piece, scores: Sequence[Score], found: dict[str, np.ndarray]) -> None:
    """Enter what was found for the ids that a window covers, [count, ...] by the name of a field of `Score`."""
    for name, values in found.items():
        getattr(scores[piece.request], name)[piece.at : piece.at + piece.window.count] = values


def check_scorable(config: ModelConfig) -> None:
    """Refuse models that give a text no log-likelihood.

    Raises:
      ConfigError: names the key and the reason.
    """
    if not config.causal:
        raise ConfigError("key 'causal' is False: such a model predicts masked tokens and gives a text no likelihood")
    if config.entmax_loss:
        raise ConfigError(
            "key 'entmax_loss' is True: such a model gives tokens the probability 0, whose logarithm is "
            "infinite; its loss on held-out records is all there is"
        )


def check_request(request: Request, number: int, n_vocab: int) -> Request:
    """Refuse a request without context, and ids that the model does not have."""
    if not 0 <= request.count < len(request.tokens):
        raise DataError(
            f"request {number} scores {request.count} of {len(request.tokens)} ids; at least one has to "
            "come before them (such as the end-of-text id)"
        )
    wrong = [token for token in request.tokens if not 0 <= token < n_vocab]
    if wrong:
        raise DataError(f"request {number} has token id {wrong[0]}; the model's n_vocab is {n_vocab}")
    return request
