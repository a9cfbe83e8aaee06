"""Which ids end and pad a text of a Hugging Face folder: config.json says so, or the files beside it do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.errors import CheckpointError

# What may name the end of a text besides config.json, in the order in which they are asked.
TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def special_ids(folder: str, config: dict, n_vocab: int) -> tuple[dict, list[str]]:
    """`eos_id` and, where there is one, `padding_id` of our config, and lines for the person.

    transformers lets a config leave the end of text out, or name an id that no table row has, and never stops there; so
    eos_id is None where no file names one of the model's ids.

    Args:
      folder: with the files beside config.json.
      config: config.json.

    Raises:
      CheckpointError: a file is damaged.
    """
    keys, notes = {}, []
    places = ends(folder, config)
    found = next(((where, id_) for where, value in places for id_ in as_ids(value) if is_row(id_, n_vocab)), None)
    keys["eos_id"] = found[1] if found else None
    if found is None:
        notes.append("no file names an id that ends a text: samples end at max_tokens, or at --set eos_id=ID")
    elif found[0] != "config.json":
        notes.append(f"end of text: id {found[1]}, from {found[0]}, as config.json names none")
    padding = config.get("pad_token_id")
    if is_row(padding, n_vocab):
        keys["padding_id"] = padding
    elif padding is not None:
        notes.append(f"pad_token_id {padding!r} is no id of the {n_vocab} that the model has: left out")
    return keys, notes


def ends(folder: str, config: dict) -> Iterator[tuple[str, Any]]:
    """(file, what it gives as the end of a text) in the order of preference; None where it gives nothing."""
    yield "config.json", config.get("eos_token_id")
    yield "generation_config.json", optional_json(folder, "generation_config.json").get("eos_token_id")
    for name in TOKEN_FILES:
        token = optional_json(folder, name).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        try:
            yield name, token_id(folder, token) if isinstance(token, str) else None
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder}: the tokenizer's files are damaged: {error!r}") from error


def as_ids(value: Any) -> list:
    """The ids of a value that is one id, or a list of them."""
    return value if isinstance(value, list) else [value]


def is_row(value: Any, n_vocab: int) -> bool:
    """Whether a value is an id that the embedding table has."""
    return type(value) is int and 0 <= value < n_vocab


def token_id(folder: str, token: str) -> Optional[int]:
    """Id of a token as the tokenizer files of a folder write it."""
    fast = optional_json(folder, "tokenizer.json")
    model = fast.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    decoder = optional_json(folder, "tokenizer_config.json").get("added_tokens_decoder") or {}
    tables: list = [
        {entry.get("content"): entry.get("id") for entry in fast.get("added_tokens") or ()},
        {entry.get("content"): int(number) for number, entry in decoder.items()},
        optional_json(folder, "added_tokens.json"),
        vocabulary if isinstance(vocabulary, dict) else {},
        optional_json(folder, "vocab.json"),
    ]
    return next((table[token] for table in tables if token in table), None)


def optional_json(folder: str, name: str) -> dict:
    """The JSON object of a file; empty where there is no such file."""
    path = os.path.join(folder, name)
    return storage.read_json(path, CheckpointError) if os.path.isfile(path) else {}
