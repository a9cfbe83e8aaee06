"""Texts to the ids that are scored: a context and its continuation, encoded as one text."""

from __future__ import annotations

from typing import Optional

from gpt_neo.errors import ConfigError
from gpt_neo.evaluation.windows import Request
from gpt_neo.tokenizer import Tokenizer


def needed(prefix: Optional[int]) -> int:
    """The end-of-document id, which a text without context is predicted from.

    Raises:
      ConfigError: there is none.
    """
    if prefix is None:
        raise ConfigError(
            "a text without context is predicted from the end of a document, and no id is one (eos_id is null): set "
            "eos_id in the dataset config, or --set eos_id=ID for a model without datasets"
        )
    return prefix


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str, prefix: Optional[int]) -> Request:
    """The request that scores a continuation after a context.

    Both are encoded as one text, since a token may not end where the context does: what comes after as many ids as the
    context alone has is scored (the convention of lm-evaluation-harness, whose own models put the ids of the context
    alone before it: other ones, where a token reaches over its end). White space at the end of the context belongs to
    the continuation's first word, and is moved there. Without a context `prefix` stands in for it. Where a continuation
    is swallowed by the last token of the context, that token and what differs before it are scored.

    Raises:
      ConfigError: the context is empty, and there is no prefix.
    """
    bare = context.rstrip()
    continuation, context = context[len(bare) :] + continuation, bare
    whole = tokenizer.encode(context + continuation)
    before = tokenizer.encode(context) if context else []
    known = len(before)
    if known >= len(whole) and continuation:
        known = next((i for i, (a, b) in enumerate(zip(before, whole)) if a != b), len(whole) - 1)
    if known == 0 and whole[:1] != [prefix]:
        return Request([needed(prefix), *whole], len(whole))
    known = max(known, min(1, len(whole)))
    return Request(whole, len(whole) - known)


def encode_context(tokenizer: Tokenizer, context: str, prefix: Optional[int]) -> list[int]:
    """Ids of a text to go on from; `prefix` where it is empty. Raises: ConfigError, as `encode_pair`."""
    return tokenizer.encode(context) or [needed(prefix)]
