"""Reading a request for a chat: messages to the prompt of a completion."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpt_neo.dataprep.templates import PLAIN, ChatTemplate, of_parts
from gpt_neo.errors import DataError
from gpt_neo.serving.requests import (
    MAX_LOGPROBS,
    UNSUPPORTED,
    Completion,
    RequestError,
    Served,
    check_length,
    check_model,
    checked_text,
    flag,
    how,
    number,
    refuse_unsupported,
    shown,
)

# As in `UNSUPPORTED`, of chats.
UNSUPPORTED_IN_CHATS: dict[str, tuple] = {
    **UNSUPPORTED,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "echo": (False,),
    "best_of": (1,),
}


def with_chat(served: Served, template: ChatTemplate) -> Served:
    """The same model, with a template for chats."""
    ends = tuple(token for token in template.ends(served.tokenizer) if token < served.n_vocab)
    return dataclasses.replace(served, chat=template, turn_ends=ends)


def parse_chat(body: dict, served: Served) -> Completion:
    """Read the body of /v1/chat/completions; fields that change no answer are left alone.

    Raises:
      RequestError: a field is wrong, there is no chat with this model, or the request is too long.
    """
    check_model(body, served)
    refuse_unsupported(body, UNSUPPORTED_IN_CHATS)
    if served.chat is None:
        raise RequestError(f"no chat is possible: {served.no_chat}", "messages")
    try:
        text = served.chat.render(parse_messages(body), True)
    except DataError as error:
        raise RequestError(str(error), "messages") from error
    prompt = served.encode(text, special=served.chat is not PLAIN)
    if not prompt:
        raise RequestError("the chat template makes no text of the messages", "messages")
    field = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    room = max(served.length - len(prompt), 1)
    max_tokens = number(body, field, room, 1, 1e9, whole=True)
    check_length(len(prompt), max_tokens, served)
    n = number(body, "n", 1, 1, served.sequences, whole=True)
    fields = how(body, served, max_tokens)
    fields["stop"] += served.chat.stop
    fields["ends"] += served.turn_ends
    return Completion([prompt], [None], n=n, best_of=n, logprobs=parse_top(body), chat=True, **fields)


def parse_top(body: dict) -> Any:
    """`logprobs` and `top_logprobs`: None, or the number of alternatives."""
    count = number(body, "top_logprobs", 0, 0, MAX_LOGPROBS, whole=True)
    if not flag(body, "logprobs"):
        if count:
            raise RequestError(f"top_logprobs is {count}; it needs logprobs: true", "top_logprobs")
        return None
    return count


def parse_messages(body: dict) -> list:
    """`messages`: a list of {role, content}, whose content is a text or a list of parts of text."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise RequestError(f"messages is {shown(given)}; expected a list of objects with role and content", "messages")
    return [parse_message(message, place) for place, message in enumerate(given)]


def parse_message(message: Any, place: int) -> dict:
    """One of them, with its content as one text; a key that is null is none, as in transformers."""
    where = f"messages[{place}]"
    if not isinstance(message, dict):
        raise RequestError(f"{where} is {shown(message)}; expected an object with role and content", "messages")
    if message.get("tool_calls") or message.get("function_call") or message.get("role") in ("tool", "function"):
        raise RequestError(f"{where}: tools are not supported", "messages")
    role, content = checked_text(message.get("role"), f"{where}.role"), message.get("content")
    if not role:
        raise RequestError(f"{where}.role is empty; expected system, user or assistant", "messages")
    if isinstance(content, list):
        content = of_parts(text_of(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    given = {key: value for key, value in message.items() if value is not None}
    return {**given, "role": role, "content": checked_text(content, f"{where}.content")}


def text_of(part: Any, where: str) -> str:
    """The text of a part of a message; images and sounds are none."""
    if not isinstance(part, dict) or part.get("type", "text") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise RequestError(f"{where} is of type {shown(kind)}; expected text", "messages")
    return checked_text(part.get("text"), f"{where}.text")
