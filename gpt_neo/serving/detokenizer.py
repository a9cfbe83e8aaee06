"""From tokens to the text that may be shown: whole characters, nothing of a stop string, tokens beside their text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Optional

from gpt_neo.tokenizer import TextStream, Tokenizer


@dataclasses.dataclass(frozen=True)
class Scored:
    """A token with the natural logarithm of its probability, and the likeliest tokens (id, logarithm) at its place."""

    token: int
    logprob: Optional[float] = None
    top: tuple = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is added to an answer: text, tokens with the place in the answer's text where each begins, and the end.

    finish: None while it goes on, `stop` after the end-of-text token or a stop string, `length` at max_tokens.
    drawn: with the last piece, tokens that were drawn for the answer, those of a stop string among them.
    """

    text: str
    tokens: tuple[Scored, ...] = ()
    offsets: tuple[int, ...] = ()
    finish: Optional[str] = None
    drawn: int = 0


class Detokenizer:
    """The answer to one prompt.

    Args:
      stop: strings that end it, of which nothing is shown; of a special token, which has no text, the name.
      prompt: what the answer follows on.
      least: tokens after which the stop strings begin to count: of one that ends later nothing is shown, either.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], prompt: Sequence[int], least: int = 0) -> None:
        self.stream = TextStream(tokenizer, prompt)
        self.stop, self.least = tuple(stop), least
        self.ends = tokenizer.specials_named(stop) if stop else set()
        self.text, self.sent = "", 0
        self.waiting: list[tuple[Scored, int]] = []

    def add(self, scored: Scored, is_end: bool = False) -> Optional[Piece]:
        """Take a token; return what it makes certain. A piece with `finish` is the last.

        Args:
          is_end: the end-of-text token, which has no text.
        """
        self.waiting.append((scored, len(self.text)))
        if is_end or (self.least <= 0 and scored.token in self.ends):
            return self.finish("stop")
        if self.extend(self.stream.add(scored.token)):
            return self.piece(len(self.text), "stop")
        piece = self.piece(len(self.text) - self.held(), None)
        self.least -= 1
        return piece if piece.text or piece.tokens else None

    def advance(self, scored: Scored, is_end: bool, last: bool) -> Optional[Piece]:
        """`add`, and with the last token of all `finish`, where the answer has not ended by itself."""
        piece = self.add(scored, is_end)
        if not last or (piece is not None and piece.finish is not None):
            return piece
        rest = self.finish("length")
        return rest if piece is None else joined(piece, rest)

    def finish(self, reason: str) -> Piece:
        """The last piece, when no token follows."""
        reason = "stop" if self.extend(self.stream.end()) else reason
        return self.piece(len(self.text), reason)

    def extend(self, text: str) -> bool:
        """Add text; cut before the first stop string that ends in it and counts, and drop the tokens from there on."""
        known = len(self.text)
        self.text += text
        if self.least > 0:
            return False
        # One that ends before `known` was there when none counted.
        found = (self.text.find(stop, max(0, known + 1 - len(stop))) for stop in self.stop)
        places = [at for at in found if at >= 0]
        if not places:
            return False
        self.text = self.text[: min(places)]
        self.waiting = [(scored, at) for scored, at in self.waiting if at < len(self.text)]
        return True

    def held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = 0
        for stop in self.stop:
            for size in range(min(len(stop) - 1, len(self.text) - self.sent), longest, -1):
                if self.text.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def piece(self, end: int, finish: Optional[str]) -> Piece:
        """Everything up to `end` that is not sent yet."""
        # A token goes with its first character, one without text (half a character, the end) with what is before it.
        whole = finish is not None or end == len(self.text)
        ready = [pair for pair in self.waiting if whole or pair[1] < end]
        self.waiting = self.waiting[len(ready) :]
        text, self.sent = self.text[self.sent : end], end
        return Piece(text, tuple(s for s, _ in ready), tuple(at for _, at in ready), finish)


def joined(first: Piece, second: Piece) -> Piece:
    """Two pieces as one."""
    return Piece(first.text + second.text, first.tokens + second.tokens, first.offsets + second.offsets, second.finish)
