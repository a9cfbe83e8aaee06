"""Prompts with completions, and chats, as records whose mask says which tokens are answers: the loss is of these alone.

A line or an element of JSON, or a row of parquet, is {"prompt": text, "completion": text}, or {"messages":
[{"role": ..., "content": ...}]}, perhaps with "tools", which the template of the tokenizer turns into text; ShareGPT's
{"conversations": [{"from": ..., "value": ...}]} is the same. What stands before an answer is tokenized apart from it,
as it is when the model answers.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, NamedTuple, Optional

from gpt_neo.dataprep.documents import lines_of
from gpt_neo.dataprep.pool import AHEAD, workers
from gpt_neo.dataprep.readers import Bad, find_sources, open_source
from gpt_neo.dataprep.records import RecordWriter
from gpt_neo.dataprep.streams import BROKEN_ARCHIVE, Rules, parquet_file, stream_items
from gpt_neo.dataprep.templates import Render, of_parts, template_of
from gpt_neo.dataprep.values import SHOWN, parsed, under
from gpt_neo.errors import DataError, reason_of
from gpt_neo.tokenizer import Tokenizer, load_tokenizer

CHATS = ("messages", "conversations")
KEYS = ("prompt", "completion"), *((name,) for name in CHATS)
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
KINDS = ("jsonl", "json", "parquet")  # of files that hold them
NO_TEMPLATE = "the tokenizer has no chat template: give one with --template FILE"
ROWS = 256  # of a parquet file read at once
BATCH = 64  # dialogs of a task


class Dialog(NamedTuple):
    """Ids, and for each 1 if it is (a part of) an answer, else 0."""

    ids: list
    mask: list


def are_dialogs(inputs: Sequence[str], text_key: str) -> bool:
    """Whether the first JSON value or row of the inputs is one of these, and no plain text.

    Raises:
      DataError: an input cannot be read, or the value is neither.
    """
    return first_keys(inputs, text_key) is not None


def first_keys(inputs: Sequence[str], text_key: str) -> Optional[tuple]:
    """The keys of `KEYS` that the first value or row of the inputs has, of a chat, which needs a template, one of
    CHATS; None where it is a text. Raises: as `are_dialogs`."""
    for place, value in values_in(inputs):
        found = value if isinstance(value, dict) else {}
        kinds = (keys for keys in KEYS if all(key in found for key in keys))
        keys = None if text_key in found else next(kinds, None)
        if found and keys is None and under(found, text_key) is None:
            there = ", ".join(repr(name[:40]) for name in list(found)[:SHOWN])
            what = "is no text, no prompt with its completion, and no chat"
            ways = f"expected {text_key!r} (--text_key names another), 'prompt' and 'completion', or 'messages'"
            raise DataError(str(Bad(*place, what, f"its keys are {there}; {ways}")))
        return keys
    return None


def values_in(inputs: Sequence[str]) -> Iterator[tuple[tuple[str, str, int], Any]]:
    """((path, noun, number from 1), value) of every line, element or row of the files among the inputs that have them.

    Raises:
      DataError: a file cannot be read, or has what is no JSON.
    """
    for source in find_sources(inputs)[0]:
        if source.kind not in KINDS:
            continue
        try:
            with open_source(source.path) as handle:
                if source.kind == "parquet":
                    yield from rows_of(source.path, handle)
                    continue
                for item in stream_items(source, handle, Rules()):
                    yield from values_of(item)
        except BROKEN_ARCHIVE as error:
            raise DataError(f"{source.path}: cannot be read: {reason_of(error)}") from error


def rows_of(path: str, handle: Any) -> Iterator[tuple[tuple[str, str, int], dict]]:
    """The same of a parquet file."""
    rows = (row for batch in parquet_file(handle).iter_batches(ROWS) for row in batch.to_pylist())
    for number, row in enumerate(rows, 1):
        yield (path, "row", number), without_nulls(row)


def without_nulls(value: Any) -> Any:
    """A value whose objects lack the keys that are null: columns have them in every row, JSON leaves them out."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_nulls(item) for key, item in value.items() if item is not None}


def values_of(item: Any) -> Iterator[tuple[tuple[str, str, int], Any]]:
    """The same of an item of a JSON file. Raises: DataError: one of them is no JSON."""
    if isinstance(item, Bad):
        raise DataError(str(item))
    for place, line in lines_of(item):
        value, reason, detail = parsed(line)
        if reason:
            raise DataError(str(Bad(*place, reason, detail)))
        yield place, value


def check_kinds(inputs: Sequence[str]) -> None:
    """Raises: DataError: one of the inputs, which hold dialogs, is a file of another kind."""
    sources, bad = find_sources(inputs)
    for path in [source.path for source in sources if source.kind not in KINDS] + [str(found) for found in bad]:
        raise DataError(
            f"{path}: prompts and chats are read from .jsonl, .json and .parquet files; give other texts to a run of "
            "their own"
        )


def count_dialogs(inputs: Sequence[str]) -> int:
    """How many there are. Raises: DataError: as `read_dialogs`, of what is no JSON."""
    check_kinds(inputs)
    return sum(1 for _ in values_in(inputs))


def read_dialogs(
    inputs: Sequence[str],
    encode: Callable[[dict], Dialog],
    wanted: Callable[[int], bool] = lambda number: True,
    processes: int = 1,
) -> Iterator[Dialog]:
    """The dialogs of the inputs, in order; not more of them lie in memory than the workers are busy with.

    Args:
      wanted: which of them, by their numbers from 0.
      processes: workers, to which `encode` is sent; 1 is this process.

    Raises:
      DataError: names the file and line, element or row of what is none, and files of other kinds.
    """
    check_kinds(inputs)
    values = (found for number, found in enumerate(values_in(inputs)) if wanted(number))
    pending: collections.deque = collections.deque()
    with workers(processes, flag="") as pool:
        while batch := list(itertools.islice(values, BATCH)):
            pending.append(pool.submit(encode_values, encode, batch))
            if len(pending) > AHEAD * processes:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def encode_values(encode: Callable[[dict], Dialog], values: list) -> list[Dialog]:
    """Dialogs of ((path, noun, number), value). Raises: DataError: see `read_dialogs`."""
    made = []
    for (path, noun, number), value in values:
        try:
            made.append(encode(value))
        except (DataError, TypeError, KeyError, AttributeError) as error:
            what = str(error) if isinstance(error, DataError) else "is no prompt and completion, and no messages"
            raise DataError(str(Bad(path, noun, number, what))) from error
    return made


@dataclasses.dataclass(frozen=True)
class DialogEncoder:
    """`encoder` of files, which can be sent to another process.

    tokenizer: path of a tokenizer.json; None is GPT-2's.
    eos_id: see `encoder`.
    folder, template: see `template_of`.
    """

    tokenizer: Optional[str]
    eos_id: int
    folder: str
    template: Optional[str]

    def __call__(self, value: dict) -> Dialog:
        return encoder_of_files(self)(value)


@functools.lru_cache(maxsize=1)
def encoder_of_files(files: DialogEncoder) -> Callable[[dict], Dialog]:
    """The encoder of what lies in files now."""
    tokenizer = load_tokenizer(files.tokenizer, eos_id=files.eos_id)
    template = template_of(files.folder, tokenizer, files.template)
    return encoder(tokenizer, files.eos_id, template.render if template else None)


def encoder(tokenizer: Tokenizer, eos_id: int, render: Optional[Render] = None) -> Callable[[dict], Dialog]:
    """The function that makes a `Dialog` of a JSON value.

    Args:
      render: the template of chats; None refuses them.
    """

    def encode(value: dict) -> Dialog:
        if not any(name in value for name in CHATS):
            prompt, completion = value["prompt"], value["completion"]
            if not isinstance(prompt, str) or not isinstance(completion, str):
                raise DataError("'prompt' and 'completion' have to be texts")
            before, answer = tokenizer.encode(prompt), [*tokenizer.encode(completion), eos_id]
            return Dialog([*before, *answer], [0] * len(before) + [1] * len(answer))
        if render is None:
            raise DataError(NO_TEMPLATE)
        said = [as_told(message, f"message {place}") for place, message in enumerate(messages_of(value))]
        return of_messages(said, tokenizer, eos_id, functools.partial(render, **tools_of(value)))

    return encode


def messages_of(value: dict) -> list:
    """The messages of a chat, with the words of `messages` where it is one of ShareGPT's."""
    if "messages" in value:
        return value["messages"]
    said = [
        {"role": SPEAKERS.get(turn["from"], turn["from"]), "content": turn["value"]} if "from" in turn else turn
        for turn in value["conversations"]
    ]
    return [{"role": "system", "content": value["system"]}, *said] if value.get("system") else said


def as_told(message: Any, where: str) -> dict:
    """A message for a template: a text as its content, or none beside calls of tools, and no key that is null.

    Raises:
      DataError: it is none; templates would write Python's name of a value into the text.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DataError(f"{where} is no object with a role")
    found = {key: value for key, value in message.items() if value is not None}
    content = found.get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) and part.get("type", "text") == "text" else {} for part in content]
        if not all(isinstance(part.get("text"), str) for part in parts):
            raise DataError(f"the content of {where} has parts that are no text")
        found["content"] = of_parts(part["text"] for part in parts)
    elif not isinstance(content, str) and (content is not None or not found.get("tool_calls")):
        raise DataError(f"the content of {where} is no text")
    return found


def tools_of(value: dict) -> dict:
    """{"tools": those that a chat names}, {} where it names none.

    Raises:
      DataError: they are no list of objects.
    """
    tools = value.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError("'tools' has to be a list of objects")
    return {"tools": tools} if tools else {}


def of_messages(messages: list, tokenizer: Tokenizer, eos_id: int, render: Render) -> Dialog:
    """A chat: each message of the assistant is an answer, to the token that ends its turn.

    Raises:
      DataError: there is no answer, or the template says something else of a message once others follow.
    """
    dialog, done = Dialog([], []), ""

    def add(text: str, answer: Optional[dict] = None, ends: bool = False) -> None:
        ids = tokenizer.encode_special(text)
        counted = end_of_turn(text, ids, answer, tokenizer) if answer else 0
        if answer and counted == 0:  # the template marks no end of a turn
            ids = [*ids, eos_id] if ends and ids[-1:] != [eos_id] else ids
            counted = len(ids)
        dialog.ids.extend(ids)
        dialog.mask.extend([1] * counted + [0] * (len(ids) - counted))

    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = render(messages[:i], True), render(messages[: i + 1], False)
        if not before.startswith(done) or not after.startswith(before):
            raise DataError(f"the chat template changes what stands before message {i}; answers cannot be told from it")
        add(before[len(done) :])
        add(after[len(before) :], message, ends=i + 1 == len(messages))
        done = after
    if not any(dialog.mask):
        raise DataError("no message has the role 'assistant': there is nothing to learn")
    whole = render(messages, False)
    if whole.startswith(done):
        add(whole[len(done) :])
    return dialog


def end_of_turn(text: str, ids: Sequence[int], message: dict, tokenizer: Tokenizer) -> int:
    """Ids of a message's text up to the special token that ends its turn; 0 where none stands behind its content: one
    before it is of the role, in templates that do not begin the answer themselves."""
    content = (message.get("content") or "").strip()
    behind = text.rpartition(content)[2] if content else text
    return last_special(ids, tokenizer) if last_special(tokenizer.encode_special(behind), tokenizer) else 0


def last_special(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Ids up to the last special one, that included; 0 without one."""
    places = [place for place, token in enumerate(ids, 1) if token in tokenizer.special_ids]
    return places[-1] if places else 0


def packed(dialogs: Iterable[Dialog], length: int, padding_id: int) -> Iterator[Dialog]:
    """Records of `length` tokens: as many whole dialogs as fit, filled up with padding that is no answer.

    One that is too long is cut: each piece begins with the last token of the one before, so that every answer token is
    a label once.
    """
    ids: list = []
    mask: list = []

    def filled() -> Dialog:
        room = length - len(ids)
        return Dialog([*ids, *[padding_id] * room], [*mask, *[0] * room])

    for dialog in dialogs:
        start = 0
        if ids and len(ids) + len(dialog.ids) > length:
            yield filled()
            ids, mask = [], []
        while len(dialog.ids) - start > length:
            end = start + length
            yield Dialog(dialog.ids[start:end], dialog.mask[start:end])
            start = end - 1
        ids, mask = [*ids, *dialog.ids[start:]], [*mask, *dialog.mask[start:]]
    if ids:
        yield filled()


def write_dialogs(folder: str, name: str, records: Iterable[Dialog]) -> int:
    """Write one file of records with masks; how many there are."""
    writer = RecordWriter(folder, name, 0)
    for record in records:
        writer.write(record.ids, record.mask)
    writer.close()
    return writer.count
