"""Chat templates: messages to the text that a model answers."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable
from typing import Any, Callable, Optional

from gpt_neo import storage
from gpt_neo.errors import DataError, reason_of
from gpt_neo.system import how_to_install
from gpt_neo.tokenizer import Tokenizer

TEMPLATE = "chat_template.jinja"
# (messages, whether an answer is to follow), of a template's file also tools= with what the model may call -> text
Render = Callable[..., str]
# What a template may run into: it is a program, over messages that anybody may have written.
FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How messages become text. source: the same in Jinja. stop: texts that end an answer."""

    render: Render
    source: str
    stop: tuple = ()

    def ends(self, tokenizer: Tokenizer) -> tuple:
        """The token that ends an answer, where the template marks it by a special one; else none."""
        messages = [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "answered"}]
        try:
            _, found, after = self.render(messages, False).rpartition("answered")
        except DataError:  # it wants other messages than these
            return ()
        ids = tokenizer.encode_special(after) if found else []
        return tuple(token for token in ids if token in tokenizer.special_ids)[:1]


def of_parts(texts: Iterable[str]) -> str:
    """The content of a message that comes as parts of text, in training and at the server: one text."""
    return "\n".join(texts)


def plain_text(messages: list, answer: bool) -> str:
    """A line `Role: content` for each message, and the beginning of the assistant's."""
    lines = [f"{message['role'].capitalize()}: {message['content'].strip()}" for message in messages]
    return "\n".join(lines + ["Assistant:"] * answer)


# The same for clients that fill templates in themselves.
PLAIN_SOURCE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] | trim }}"
    "{{ '' if loop.last and not add_generation_prompt else '\\n' }}{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt else '' }}"
)
PLAIN = ChatTemplate(plain_text, PLAIN_SOURCE, stop=("\nUser:", "\nSystem:"))


def template_of(folder: str, tokenizer: Optional[Tokenizer], given: Optional[str] = None) -> Optional[ChatTemplate]:
    """The chat template of a model's folder, as transformers has it; None without one.

    Args:
      tokenizer: of the model; its end of text is what no file names. None to see whether there is a template.
      given: a file with a template in its place.

    Raises:
      DataError: it cannot be read, is no template, or the package jinja2 is missing.
    """
    about = {**names_in(folder, "special_tokens_map.json"), **names_in(folder, "tokenizer_config.json")}
    path, where = given or storage.join(folder, TEMPLATE), storage.join(folder, "tokenizer_config.json")
    text = about.get("chat_template")
    if isinstance(text, list):  # several by name
        text = next((entry["template"] for entry in text if entry.get("name") == "default"), None)
    if given or storage.exists(path):
        where = path
        try:
            text = storage.read_bytes(path).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    if not isinstance(text, str):
        return None
    try:
        return ChatTemplate(renderer(text, special_tokens(about, tokenizer)), text)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def names_in(folder: str, name: str) -> dict:
    """What a file of a tokenizer says; nothing where there is none."""
    path = storage.join(folder, name)
    return storage.read_json(path) if storage.exists(path) else {}


def special_tokens(about: dict, tokenizer: Optional[Tokenizer]) -> dict:
    """bos_token, eos_token and others that a tokenizer's files name, as texts; where they name neither of these two,
    the end of text is both, as it is in the classes of GPT-2 and GPT-NeoX."""
    found = {name: value for name, value in about.items() if name.endswith("_token")}
    texts = {name: value["content"] if isinstance(value, dict) else value for name, value in found.items() if value}
    end = None
    if tokenizer is not None and tokenizer.eos_id is not None:
        end = tokenizer.backend.id_to_token(tokenizer.eos_id)
    if end is None or "eos_token" in texts or "bos_token" in texts:
        return texts
    return {"bos_token": end, "eos_token": end, **texts}


def as_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson`, with the arguments that it has in transformers."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def renderer(text: str, tokens: dict) -> Render:
    """The function of a template, in a sandbox.

    Raises:
      DataError: it is no template, or jinja2 is missing.
    """
    try:
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise DataError(f"chats need the package jinja2: {how_to_install('chat')}") from error

    class Generation(Extension):
        """`{% generation %}`, with which templates mark answers for transformers: what is inside, as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """The statements inside."""
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def refuse(message: str) -> None:
        raise DataError(f"the chat template says: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = as_json
    try:
        template = environment.from_string(text)
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template is none: {error}") from error

    def render(messages: list, answer: bool, tools: Optional[list] = None) -> str:
        try:
            return template.render(
                messages=messages, add_generation_prompt=answer, tools=tools, documents=None, **tokens
            )
        except (jinja2.TemplateError, *FAULTS) as error:
            raise DataError(f"the chat template cannot be filled in: {error}") from error

    return render
