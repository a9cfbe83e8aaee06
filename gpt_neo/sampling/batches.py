"""Prompts to rows, and rows in batches, whatever computes the logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import DataError, counted
from gpt_neo.sampling.filters import SampleOptions, draw, row_generator

PREFILL = 64  # tokens of a prompt read at once
PICTURE = 256  # most tokens whose attention is shown
ROOM = 4  # a prompt that fills the context is cut so that a quarter of it stays for new tokens


@dataclasses.dataclass(frozen=True)
class Token:
    """A new token: of which prompt, which of its samples, and whether it is the last."""

    prompt: int
    sample: int
    token: int
    last: bool


@dataclasses.dataclass
class Row:
    """A sample on its way."""

    prompt: int
    sample: int
    tokens: list
    left: int
    generator: Any


def fit_prompt(prompt: Sequence[int], n_ctx: int, max_tokens: Optional[int]) -> tuple[list, int, int]:
    """Cut a prompt on the left so that new tokens have room.

    More new tokens than the context could hold beside any prompt are no reason to cut one: they fill what is left of
    it, as where no number is given.

    Returns:
      (the prompt, tokens cut off, new tokens that fit)
    """
    if max_tokens is None or max_tokens >= n_ctx:
        wanted = max(1, n_ctx // ROOM if len(prompt) >= n_ctx else n_ctx - len(prompt))
    else:
        wanted = max_tokens
    kept = list(prompt[-(n_ctx - wanted) :])
    return kept, len(prompt) - len(kept), min(wanted, n_ctx - len(kept))


def room_notes(prompt: Sequence[int], n_ctx: int, max_tokens: Optional[int]) -> list[str]:
    """Lines for the person where a prompt does not stay whole, or fewer new tokens fit than were asked for."""
    _, cut, room = fit_prompt(prompt, n_ctx, max_tokens)
    notes = []
    if cut:
        notes.append(
            f"the prompt has {len(prompt):,} tokens: its beginning ({counted(cut, 'token')}) is left out, so that "
            f"{counted(room, 'new token')} fit into n_ctx"
        )
    if max_tokens and room < max_tokens:
        notes.append(f"there is room for {counted(room, 'new token')}, not for {max_tokens}: n_ctx is {n_ctx}")
    return notes


class BatchSampler:
    """Prompts to rows, and rows in batches; drawing is left to those that have a model.

    config: ModelConfig. batch_size: rows that are sampled at once. length: tokens of the longest text, prompt included.
    """

    def __init__(self, config: ModelConfig, batch_size: int, length: Optional[int] = None) -> None:
        self.config, self.batch_size = config, batch_size
        self.length = min(length or config.n_ctx, config.n_ctx)

    def generate(
        self, prompts: Sequence[Sequence[int]], options: SampleOptions, num_samples: int = 1
    ) -> Iterator[Token]:
        """Yield the tokens of every sample as they are made, `batch_size` rows at a time.

        A prompt longer than the context allows is cut on the left (see `fit_prompt`).

        Raises:
          DataError: a prompt is empty, or has an id outside the vocabulary.
        """
        rows = []
        for number, prompt in enumerate(prompts):
            check_prompt(prompt, number, self.config.n_vocab)
            kept, _, room = fit_prompt(prompt, self.length, options.max_tokens)
            rows += [
                Row(number, sample, kept, room, row_generator(options.seed, number, sample))
                for sample in range(num_samples)
            ]
        for batch in self.batches(rows):
            yield from self.generate_batch(batch, options)

    def batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The rows in order, `batch_size` at a time."""
        for at in range(0, len(rows), self.batch_size):
            yield rows[at : at + self.batch_size]

    def generate_batch(self, rows: list[Row], options: SampleOptions) -> Iterator[Token]:
        """Sample the rows, `batch_size` at most, together until each has ended."""
        logits = self.begin([row.tokens for row in rows])
        alive = dict(enumerate(rows))
        following = np.zeros([self.batch_size], np.int32)
        while True:
            for index, row in list(alive.items()):
                token = draw(logits[index], options, row.generator)
                row.left -= 1
                last = row.left <= 0 or token == options.eos_id
                following[index] = token
                yield Token(row.prompt, row.sample, token, last)
                if last:
                    del alive[index]
            if not alive:
                return
            logits = self.advance(following, list(alive))

    def begin(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read the prompts of a batch: float32 logits [at least their number, vocab] of what follows each."""
        raise NotImplementedError

    def advance(self, tokens: np.ndarray, alive: Sequence[int]) -> np.ndarray:
        """Feed one token int32 [batch] of each row: logits [batch, vocab], without meaning for rows not alive."""
        raise NotImplementedError


class AlignedSampler(BatchSampler):
    """Rows of a batch are all at one position: their prompts are aligned on the right, in whole chunks.

    chunk: tokens of a prompt that are read at once.
    """

    def __init__(self, config: ModelConfig, batch_size: int, length: Optional[int] = None) -> None:
        super().__init__(config, batch_size, length)
        self.chunk = min(PREFILL, config.n_ctx)

    def batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The rows in order, `batch_size` at a time; fewer where a short prompt that may grow long stands beside a long
        one: all begin to draw at one position, and the caches have length + chunk."""
        batch: list[Row] = []
        for row in rows:
            joined = [*batch, row]
            length = self.padded([row.tokens for row in joined]) + max(row.left for row in joined)
            if batch and (len(joined) > self.batch_size or length > self.length + self.chunk):
                yield batch
                joined = [row]
            batch = joined
        if batch:
            yield batch

    def padded(self, prompts: Sequence[Sequence[int]]) -> int:
        """Positions that the prompts of a batch take: whole chunks."""
        return -(-max(len(prompt) for prompt in prompts) // self.chunk) * self.chunk

    def aligned(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Prompts, aligned on the right: (int32 [batch, whole chunks], int32 [batch], where each begins)."""
        length = self.padded(prompts)
        tokens = np.zeros([self.batch_size, length], np.int32)
        start = np.full([self.batch_size], length - 1, np.int32)
        for row, prompt in enumerate(prompts):
            start[row] = length - len(prompt)
            tokens[row, start[row] :] = prompt
        return tokens, start


def check_prompt(prompt: Sequence[int], number: int, n_vocab: int) -> None:
    """Refuse an empty prompt and ids that the model does not have."""
    if not len(prompt):
        raise DataError(f"prompt {number} is empty; give it at least one token (such as the end-of-text id)")
    wrong = [token for token in prompt if not 0 <= token < n_vocab]
    if wrong:
        raise DataError(f"prompt {number} has token id {wrong[0]}; the model's n_vocab is {n_vocab}")
