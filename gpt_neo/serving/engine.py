"""Continuous batching: one thread runs the model; sequences join a free row, and leave it when they end.

What a sequence gives depends on its own prompt, options and seed alone (see `RowDecoder`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any, Callable, Optional, Protocol

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError, DataError, GptNeoError
from gpt_neo.sampling.filters import SampleOptions, draw, likeliest, row_generator
from gpt_neo.serving.detokenizer import Detokenizer, Piece, Scored
from gpt_neo.serving.mailbox import Mailbox
from gpt_neo.serving.token_choice import PLAIN, Adjustments, score
from gpt_neo.tokenizer import Tokenizer

LOG = logging.getLogger("gpt_neo.serving")
STOPPED = "the server is stopping"
ERRAND_STEPS = 8  # steps between two pictures while answers are made


@dataclasses.dataclass
class Sequence:
    """One prompt and one answer to it.

    number: which choice of its request. sample: which draw for its prompt, part of the seed. logprobs: alternatives to
    report per token; None for no log-probabilities. score_prompt: report those of the prompt's tokens too. ends: ids
    that end it beside the end of text. request: the name of what it is a part of.
    tell: called in the engine's thread with each Piece, or with an exception as the last; what it puts into the
    engine's mailbox is sent after the step.
    """

    number: int
    prompt: list
    sample: int
    max_tokens: int
    options: SampleOptions
    stop: tuple
    tell: Callable[[Any], None]
    adjustments: Adjustments = PLAIN
    ends: tuple = ()
    logprobs: Optional[int] = None
    score_prompt: bool = False
    request: str = ""
    cancelled: bool = False

    def cancel(self) -> None:
        """No more is wanted; its row is free after the step that is under way."""
        self.cancelled = True


class Running:
    """A sequence in its row of the batch.

    tokens: the prompt, filled on the left to whole chunks. position: where the next token goes. next: that token.
    """

    def __init__(self, sequence: Sequence, index: int, chunk: int, tokenizer: Tokenizer, eos_id: Optional[int]) -> None:
        self.sequence, self.index = sequence, index
        length = -(-len(sequence.prompt) // chunk) * chunk
        self.start = length - len(sequence.prompt)
        self.tokens = np.zeros([length], np.int32)
        self.tokens[self.start :] = sequence.prompt
        self.position, self.next, self.made = 0, 0, 0
        self.counts: collections.Counter = collections.Counter()
        self.generator = row_generator(sequence.options.seed, 0, sequence.sample)
        self.ends = {*sequence.ends, *([] if eos_id is None else [eos_id])}
        self.detokenizer = Detokenizer(tokenizer, sequence.stop, sequence.prompt, sequence.adjustments.min_tokens)
        self.scores: list[Scored] = []

    @property
    def reading(self) -> bool:
        """Whether a part of the prompt is still to be read."""
        return self.position < len(self.tokens)


class Rows(Protocol):
    """What `runtime.rows.RowDecoder` is, and `fast.rows.FastRows`: their words hold here."""

    config: ModelConfig
    rows: int
    length: int
    chunk: int
    picture: int

    def read(self, row: int, tokens: np.ndarray, position: int, start: int, every: bool = False) -> np.ndarray:
        """Read tokens of one row."""

    def step(self, tokens: np.ndarray, position: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Feed one token of every row."""

    def copy(self, source: int, target: int, position: int, start: int) -> None:
        """Give a row what another has read so far."""

    def clear(self, row: int) -> None:
        """Forget a row whose numbers are none."""

    def attention_inputs(self, tokens: list, layer: int) -> list:
        """What a layer attends with."""


class Engine:
    """The model, its rows and its queue.

    observe: called with (name, amount) of what happened: prompt_tokens, new_tokens, steps.
    """

    def __init__(
        self,
        decoder: Rows,
        tokenizer: Tokenizer,
        eos_id: Optional[int],
        observe: Callable[[str, float], None] = lambda name, amount: None,
    ) -> None:
        self.decoder, self.tokenizer, self.eos_id, self.observe = decoder, tokenizer, eos_id, observe
        self.mail = Mailbox()
        self.waiting: collections.deque = collections.deque()
        self.errands: collections.deque = collections.deque()
        self.rows: dict[int, Running] = {}
        self.changed = threading.Condition()
        self.stopping, self.ended = False, False
        self.failure: Optional[BaseException] = None
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    def begin(self) -> None:
        """Start the thread."""
        self.thread.start()

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue sequences."""
        with self.changed:
            if not self.ended:
                self.waiting.extend(sequences)
                self.changed.notify()
                return
        for sequence in sequences:
            sequence.tell(self.failure or RuntimeError(STOPPED))
        self.mail.send()

    def call(self, errand: Callable[[], None]) -> None:
        """Run something that needs the model between two steps; at once when no step will follow."""
        with self.changed:
            if not self.ended:
                self.errands.append(errand)
                self.changed.notify()
                return
        errand()

    def close(self) -> None:
        """End the thread after the step under way; what is unanswered gets an error."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        if self.thread.is_alive():
            self.thread.join()

    def run(self) -> None:
        """The thread."""
        try:
            for turn in itertools.count():
                if not self.admit():
                    break
                # A picture takes as long as several steps: answers go before it.
                if self.errands and (not self.rows or turn % ERRAND_STEPS == 0):
                    self.errands.popleft()()
                self.read_one()
                self.mail.send()
                self.step()
                self.mail.send()
        except Exception as error:  # whatever it is, those who wait have to hear of it
            LOG.exception("the engine stopped")
            self.failure = error
        finally:
            self.abandon(self.failure or RuntimeError(STOPPED))

    def abandon(self, error: BaseException) -> None:
        """Tell everybody that no more comes."""
        with self.changed:
            self.ended = True
        while self.errands:
            self.errands.popleft()()
        for sequence in [row.sequence for row in self.rows.values()] + list(self.waiting):
            sequence.tell(error)
        self.mail.send()
        self.rows.clear()
        self.waiting.clear()

    def admit(self) -> bool:
        """Drop who has left, give free rows to who waits, and sleep while there is nothing to do; False to end."""
        with self.changed:
            while True:
                self.rows = {i: row for i, row in self.rows.items() if not row.sequence.cancelled}
                while any(s.cancelled for s in self.waiting):
                    self.waiting = collections.deque(s for s in self.waiting if not s.cancelled)
                if self.stopping:
                    return False
                free = [i for i in range(self.decoder.rows) if i not in self.rows]
                for index in free[: len(self.waiting)]:
                    self.start(self.next_waiting(), index)
                if self.waiting and len(self.rows) < self.decoder.rows:
                    continue  # some could not begin: there is room for others
                if self.rows or self.errands:
                    return True
                self.changed.wait()

    def start(self, sequence: Sequence, index: int) -> None:
        """Put a sequence into a free row; one that cannot begin ends alone."""
        try:
            self.rows[index] = Running(sequence, index, self.decoder.chunk, self.tokenizer, self.eos_id)
        except Exception as error:
            LOG.warning("an answer did not begin: %s", error, exc_info=not isinstance(error, GptNeoError))
            sequence.tell(error)
            self.mail.send()

    def next_waiting(self) -> Sequence:
        """Take who comes next: first come first served among the requests that have the fewest rows.

        So one of many answers does not keep the others waiting.
        """
        held = collections.Counter(row.sequence.request for row in self.rows.values())
        place = min(range(len(self.waiting)), key=lambda i: held[self.waiting[i].request])
        sequence = self.waiting[place]
        del self.waiting[place]
        return sequence

    def read_one(self) -> None:
        """Read one chunk of a prompt, so that a long one holds up the others only a little: of the one that came first
        among the requests that have the fewest rows past theirs. One of many answers waits for those of one."""
        reading = [row for row in self.rows.values() if row.reading]
        if not reading:
            return
        past = collections.Counter(row.sequence.request for row in self.rows.values() if not row.reading)
        row = min(reading, key=lambda row: past[row.sequence.request])
        sequence, at = row.sequence, row.position
        chunk = row.tokens[at : at + self.decoder.chunk]
        logits = self.decoder.read(row.index, chunk, at, row.start, every=sequence.score_prompt)
        self.observe("prompt_tokens", at + len(chunk) - max(at, row.start))
        row.position += len(chunk)
        with self.apart(row):
            if sequence.score_prompt:
                self.score_chunk(row, logits, at)
                logits = logits[-1]
        if row.reading or row.index not in self.rows:
            return
        for each in [row, *self.twins(row)]:
            with self.apart(each):
                if sequence.score_prompt:
                    each.sequence.tell(Piece("", tuple(row.scores)))
                self.take(each, logits)

    def twins(self, row: Running) -> list[Running]:
        """Rows of the same request that still have to read the very prompt that this one has just read: they get it."""
        sequence = row.sequence
        found = [
            other
            for other in self.rows.values()
            if other.reading
            and not other.sequence.cancelled
            and other.sequence.request == sequence.request
            and other.sequence.prompt == sequence.prompt
        ]
        for other in found:
            self.decoder.copy(row.index, other.index, row.position, row.start)
            other.position = row.position
        return found

    @contextlib.contextmanager
    def apart(self, row: Running) -> Iterator[None]:
        """What is wrong with one row's numbers or wishes ends that row, and no other."""
        try:
            yield
        except Exception as error:
            LOG.warning("an answer ended: %s", error, exc_info=not isinstance(error, GptNeoError))
            self.rows.pop(row.index, None)
            self.decoder.clear(row.index)
            row.sequence.tell(error)

    def score_chunk(self, row: Running, logits: np.ndarray, at: int) -> None:
        """Scores of the prompt's tokens that follow those of a chunk; the first token has none."""
        if not row.scores:
            row.scores.append(Scored(row.sequence.prompt[0]))
        for column in range(max(row.start - at, 0), len(logits)):
            following = at + column + 1
            if following < len(row.tokens):
                token = int(row.tokens[following])
                row.scores.append(score(logits[column], token, row.sequence.logprobs or 0))

    def step(self) -> None:
        """One token of every row that has read its prompt."""
        going = [row for row in self.rows.values() if not row.reading]
        if not going:
            return
        tokens = np.zeros([self.decoder.rows], np.int32)
        positions = np.zeros([self.decoder.rows], np.int32)
        for row in self.rows.values():
            positions[row.index] = row.position
        start = positions + 1  # keeps nothing of the step
        for row in going:
            tokens[row.index], start[row.index] = row.next, row.start
            row.position += 1
        logits = self.decoder.step(tokens, positions, start)
        self.observe("steps", 1)
        for row in going:
            if not row.sequence.cancelled:
                with self.apart(row):
                    self.take(row, logits[row.index])

    def take(self, row: Running, logits: np.ndarray) -> None:
        """Choose a row's next token and tell of it; the row is free after the last."""
        sequence = row.sequence
        if sequence.max_tokens == 0:
            self.leave(row, row.detokenizer.finish("length"))
            return
        token = self.drawn(row, logits)
        row.counts[token] += 1
        row.next, row.made = token, row.made + 1
        self.observe("new_tokens", 1)
        count = sequence.logprobs
        scored = Scored(token) if count is None else score(logits, token, count)
        piece = row.detokenizer.advance(scored, token in row.ends, row.made >= sequence.max_tokens)
        if piece is not None and piece.finish is not None:
            self.leave(row, piece)
        elif piece is not None:
            sequence.tell(piece)

    def drawn(self, row: Running, logits: np.ndarray) -> int:
        """A row's next token.

        Raises:
          CheckpointError: the model computes no numbers.
          DataError: what the request does to them leaves none.
        """
        sequence = row.sequence
        adjusted = sequence.adjustments.apply(logits, sequence.prompt, row.counts, row.ends)
        if adjusted is logits:
            return draw(logits, sequence.options, row.generator)
        likeliest(logits)
        try:
            return draw(adjusted, sequence.options, row.generator)
        except CheckpointError as error:
            raise DataError(
                "repetition_penalty, logit_bias, min_tokens and stop_token_ids of the request leave no token to draw"
            ) from error

    def leave(self, row: Running, piece: Piece) -> None:
        """The row's last piece."""
        self.rows.pop(row.index, None)
        row.sequence.tell(dataclasses.replace(piece, drawn=row.made))

    def picture(self, tokens: list, layer: int, tell: Callable[[Any], None], wanted: Callable[[], bool]) -> None:
        """What a layer attends with (see `RowDecoder.attention_inputs`), told between two steps if still wanted."""

        def look() -> None:
            try:
                if wanted():
                    tell(self.decoder.attention_inputs(tokens, layer))
            except Exception as error:  # the one who asked has to hear of it, nobody else
                tell(error)

        self.call(look)
