"""Answers in the words of OpenAI's APIs of completions and of chats."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Optional

from gpt_neo.serving.detokenizer import Piece, Scored
from gpt_neo.serving.requests import Completion, Served
from gpt_neo.tokenizer import END_OF_TEXT, TextStream, Tokenizer


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token as text, half a character as `bytes:\\xe2\\x82`, a token without text by its name."""
    if token in tokenizer.special_ids:
        return tokenizer.backend.id_to_token(token) or END_OF_TEXT
    raw = tokenizer.bytes_of(token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@functools.lru_cache(maxsize=1 << 17)
def safe_name(tokenizer: Tokenizer, token: int) -> str:
    """The same; ids that the model has and the tokenizer lacks by their number."""
    return token_name(tokenizer, token) if token < tokenizer.n_vocab else f"id:{token}"


def logprobs_object(tokenizer: Tokenizer, tokens: Sequence[Scored], offsets: Sequence[int]) -> dict:
    """`logprobs` of a choice: one entry per token.

    The chosen token is among its `top_logprobs`. Where two tokens have one name, the likelier one's number stays.
    """
    tops: list[Optional[dict]] = []
    for scored in tokens:
        if scored.logprob is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for token, logprob in (*scored.top, (scored.token, scored.logprob)):
            top.setdefault(safe_name(tokenizer, token), logprob)
        tops.append(top)
    return {
        "tokens": [safe_name(tokenizer, s.token) for s in tokens],
        "token_logprobs": [s.logprob for s in tokens],
        "top_logprobs": tops,
        "text_offset": list(offsets),
    }


@dataclasses.dataclass
class Choice:
    """One answer as it grows.

    index: its place among those of the request. made: tokens that it reports, those of the prompt left out; drawn: that
    were drawn, known at its end.
    """

    index: int
    prompt: list
    prompt_text: str
    request: Completion
    text: str = ""
    tokens: list = dataclasses.field(default_factory=list)
    offsets: list = dataclasses.field(default_factory=list)
    finish: Optional[str] = None
    made: int = 0
    drawn: int = 0
    begun: bool = False

    def add(self, piece: Piece, served: Served) -> tuple[str, list, list]:
        """Take a piece from the engine; return the text, tokens and offsets that it adds, the prompt's first."""
        text, tokens, offsets = piece.text, list(piece.tokens), list(piece.offsets)
        before = len(self.prompt_text) if self.request.echo else 0
        if not offsets and tokens:  # the scored prompt, which comes in one piece
            offsets = prompt_offsets(self.prompt, served.tokenizer)
        else:
            self.made += len(tokens)
            offsets = [before + at for at in offsets]
        if self.request.echo and not self.begun:
            text = self.prompt_text + text
        self.begun = True
        self.text += text
        self.tokens += tokens
        self.offsets += offsets
        self.finish, self.drawn = piece.finish, piece.drawn
        return text, tokens, offsets

    def mean_logprob(self) -> float:
        """Of the new tokens; an answer of which a stop string leaves none is the last that is chosen."""
        if not self.made:
            return -math.inf
        return sum(scored.logprob for scored in self.tokens[-self.made :]) / self.made

    def json(self, served: Served) -> dict:
        """The choice as it is in a whole answer."""
        return self.part(self.text, self.tokens, self.offsets, served)

    def part(self, text: str, tokens: Sequence[Scored], offsets: Sequence[int], served: Served) -> dict:
        """The choice as it is in an event of a stream, which adds these to it."""
        found = None if self.request.logprobs is None else logprobs_object(served.tokenizer, tokens, offsets)
        body = {"index": self.index, "text": text, "logprobs": found, "finish_reason": self.finish}
        return {**body, "token_ids": [s.token for s in tokens]} if self.request.token_ids else body


@dataclasses.dataclass
class ChatChoice(Choice):
    """The same of a chat. told: whether an event of the stream has named the role."""

    told: bool = False

    def json(self, served: Served) -> dict:
        """The choice as it is in a whole answer."""
        return self.chat_json("message", {"role": "assistant", "content": self.text}, self.tokens, served)

    def part(self, text: str, tokens: Sequence[Scored], offsets: Sequence[int], served: Served) -> dict:
        """The choice as it is in an event of a stream, whose first one names the role."""
        role: dict = {} if self.told else {"role": "assistant"}
        self.told = True
        return self.chat_json("delta", {**role, "content": text}, tokens, served)

    def chat_json(self, key: str, message: dict, tokens: Sequence[Scored], served: Served) -> dict:
        """The choice with a message, whole or a part of it."""
        asked = self.request
        found = None if asked.logprobs is None else chat_logprobs(served.tokenizer, tokens, asked.logprobs)
        body = {"index": self.index, key: message, "logprobs": found, "finish_reason": self.finish}
        return {**body, "token_ids": [s.token for s in tokens]} if asked.token_ids else body


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Scored], count: int) -> dict:
    """`logprobs` of a choice of a chat: one entry per token, each with the `count` likeliest."""

    def entry(token: int, logprob: Optional[float]) -> dict:
        raw = tokenizer.bytes_of(token) if token < tokenizer.n_vocab else b""
        return {"token": safe_name(tokenizer, token), "logprob": logprob, "bytes": list(raw) or None}

    return {
        "content": [
            {**entry(s.token, s.logprob), "top_logprobs": [entry(*pair) for pair in s.top[:count]]} for s in tokens
        ]
    }


def prompt_offsets(prompt: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Where each token of a prompt begins in its text."""
    stream, length, offsets = TextStream(tokenizer), 0, []
    for token in prompt:
        offsets.append(length)
        length += len(stream.add(token))
    return offsets


def answer_json(
    kind: str, number: str, created: int, served: Served, choices: list, usage: Optional[dict]
) -> dict[str, Any]:
    """The body of an answer, or of one event of a stream."""
    body = {"id": number, "object": kind, "created": created, "model": served.name, "choices": choices}
    return body if usage is None else {**body, "usage": usage}


def usage_json(request: Completion, made: int) -> dict:
    """Tokens that a request took."""
    prompt = sum(map(len, request.prompts))
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def error_json(message: str, status: int, field: Optional[str] = None, code: Optional[str] = None) -> dict:
    """The body of a refusal."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}
