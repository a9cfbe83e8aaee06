"""The tokenizer of a Hugging Face folder: which ids end and pad a text, and one tokenizer.json of all its files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.checkpoint.hf_folder import copy_tokenizer_files
from gpt_neo.errors import CheckpointError, DataError, brief
from gpt_neo.tokenizer import byte_level_bpe, load_tokenizer, save_tokenizer

# What may name the end of a text besides config.json, in the order in which they are asked.
TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MODEL_FILES = ("config.json", "generation_config.json")  # which may name several
GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")  # they leave tokenizer.json as it is
# What transformers' generate goes by, and the value that changes nothing.
DRAWN: dict[str, Any] = {
    **{"do_sample": False, "temperature": 1, "top_k": 50, "top_p": 1, "min_p": None, "typical_p": 1, "num_beams": 1},
    **{"repetition_penalty": 1, "length_penalty": 1, "no_repeat_ngram_size": 0, "min_length": 0, "max_length": 20},
    **dict.fromkeys(("min_new_tokens", "max_new_tokens", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "sequence_bias", "stop_strings")),
}
TOKENIZER_JSON = ("tokenizer.json", "vocab.json", "merges.txt")  # the first, or the others
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
NO_TOKENIZER = (
    "no tokenizer came along (tokenizer.json, or vocab.json and merges.txt): put the model's own tokenizer.json into "
    "the folder before text is read or written; GPT-2's is never taken in its place"
)


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
    known = [(where, [id_ for id_ in as_ids(value) if is_row(id_, n_vocab)]) for where, value in ends(folder, config)]
    where, ids = next((found for found in known if found[1]), ("", [None]))
    keys["eos_id"] = ids[0]
    if not where:
        notes.append("no file names an id that ends a text: samples end at max_tokens, or at --set eos_id=ID")
    elif where != "config.json":
        notes.append(f"end of text: id {ids[0]}, from {where}, as config.json names none")
    for other, more in known:  # what generates in transformers stops at each of these
        left = [id_ for id_ in more if id_ != ids[0]] if other in MODEL_FILES else []
        if left:
            told = f"ids {', '.join(map(str, left))} of {other} end" if left[1:] else f"id {left[0]} of {other} ends"
            notes.append(f"{told} a text too; {ids[0]} alone is taken (eos_id)")
    padding = config.get("pad_token_id")
    if is_row(padding, n_vocab):
        keys["padding_id"] = padding
    elif padding is not None:
        notes.append(f"pad_token_id {padding!r} is no id of the {n_vocab} that the model has: left out")
    return keys, [*notes, *ways_to_draw(folder)]


def ways_to_draw(folder: str) -> list[str]:
    """A line on how transformers would draw texts by generation_config.json, if that is not as by default."""
    given = optional_json(folder, "generation_config.json")
    left = [
        f"{key} {brief(json.dumps(given[key]), 40)}"
        for key, idle in DRAWN.items()
        if given.get(key, idle) not in (idle, None)
    ]
    if not left:
        return []
    return [
        f"generation_config.json has {', '.join(left)}, by which transformers draws: here flags and requests say how"
    ]


def ends(folder: str, config: dict) -> Iterator[tuple[str, Any]]:
    """(file, what it gives as the end of a text) in the order of preference; None where it gives nothing."""
    yield "config.json", config.get("eos_token_id")
    yield "generation_config.json", optional_json(folder, "generation_config.json").get("eos_token_id")
    yield from named(folder, "eos_token")


def named(folder: str, role: str) -> Iterator[tuple[str, Optional[int]]]:
    """(file, id of the token that it calls so, None where it does not) of each of the tokenizer's files."""
    for name in TOKEN_FILES:
        token = optional_json(folder, name).get(role)
        token = token.get("content") if isinstance(token, dict) else token
        try:
            yield name, token_id(folder, token) if isinstance(token, str) else None
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder}: the tokenizer's files are damaged: {error!r}") from error


def begin_id(folder: str) -> Optional[int]:
    """Id of the token that begins a text, as the tokenizer's files name it; None where they do not."""
    return next((number for _, number in named(folder, "bos_token") if number is not None), None)


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


def has_tokenizer(folder: str) -> bool:
    """Whether a tokenizer that is read lies in a folder."""
    whole, *parts = (os.path.isfile(os.path.join(folder, name)) for name in TOKENIZER_JSON)
    return whole or all(parts)


def copy_tokenizer(source: str, destination: str, n_vocab: int) -> list[str]:
    """Copy the tokenizer files that a folder has, with all that they say in one tokenizer.json.

    transformers reads tokenizer.json, or an older folder's vocabulary and merges, and gives that the tokens and the
    prefix space of the files beside; programs that read tokenizer.json alone, as this one, would miss these.

    Args:
      n_vocab: rows of the model's table; tokens that are named without an id get the next ones there.

    Returns:
      lines for the person.

    Raises:
      CheckpointError: a file is damaged, or an id is not the next one, so that the tokenizer would give it another.
    """
    copy_tokenizer_files(source, destination)
    if not has_tokenizer(destination):
        return [NO_TOKENIZER]
    made, *parts = (os.path.join(destination, name) for name in TOKENIZER_JSON)
    whole = os.path.isfile(made)
    try:
        if whole:
            backend = load_tokenizer(made).backend
        else:
            from tokenizers.models import BPE

            backend = byte_level_bpe(*BPE.read_file(*parts))
        before = backend.to_str()
        set_prefix_space(backend, source)
        notes = add_tokens(backend, source, n_vocab)
    except DataError as error:
        raise CheckpointError(str(error).replace(made, os.path.join(source, "tokenizer.json"))) from error
    except CheckpointError:
        raise
    except Exception as error:  # of values that are no tokens; the package raises bare ones
        raise CheckpointError(f"{source}: the tokenizer's files are damaged: {error!r}") from error
    if not whole or backend.to_str() != before:
        save_tokenizer(backend, made)
    return notes


def set_prefix_space(backend: Any, folder: str) -> None:
    """Put a space before each text, or none, as tokenizer_config.json says."""
    from tokenizers.pre_tokenizers import ByteLevel

    about = optional_json(folder, "tokenizer_config.json")
    wanted = None if about.get("tokenizer_class") in GENERAL else about.get("add_prefix_space")
    splitting = json.loads(backend.to_str())["pre_tokenizer"] or {}
    if splitting.get("type") == "ByteLevel" and isinstance(wanted, bool):
        backend.pre_tokenizer = ByteLevel(wanted, splitting["trim_offsets"], splitting["use_regex"])


def add_tokens(backend: Any, folder: str, n_vocab: int) -> list[str]:
    """Give a tokenizer the tokens that the files beside it list with an id, and then those that they only name.

    Returns:
      lines on tokens that are left out.

    Raises:
      CheckpointError: an id is not the next one.
    """
    about = optional_json(folder, "tokenizer_config.json")
    listed = about.get("added_tokens_decoder")
    if listed is None:  # as written before transformers 4.34
        about = {**about, **optional_json(folder, "special_tokens_map.json")}
    extra = about.get("extra_special_tokens") or about.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    entries = [as_entry(token) for token in (*(about.get(name) for name in SPECIAL), *extra) if token]
    named = {entry["content"]: entry for entry in entries}
    if listed is None:
        older = optional_json(folder, "added_tokens.json")
        listed = {number: {"content": token, "special": token in named} for token, number in older.items()}
    for number, entry in sorted((int(number), entry) for number, entry in listed.items()):
        token = entry["content"]
        add_token(backend, entry, entry.get("special", False) or token in named)
        if backend.token_to_id(token) != number:
            raise CheckpointError(
                f"{folder}: the added token {token!r} has id {number}; expected {backend.token_to_id(token)}, the next"
            )
    left = []
    for token, entry in named.items():
        if backend.token_to_id(token) is None:
            if backend.get_vocab_size() < n_vocab:
                add_token(backend, entry, special=True)
            else:
                left.append(repr(token))
    notes = [f"tokens without a row in the model's table, left out: {', '.join(left)}"] if left else []
    if about.get("add_bos_token") is True:
        notes.append("add_bos_token of tokenizer_config.json is left out: here texts begin as they are")
    bare, whole = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    if bare != whole:
        notes.append("the tokens that tokenizer.json puts around each text are left out: here texts are as they are")
    return notes


def add_token(backend: Any, entry: dict, special: bool) -> None:
    """Give a tokenizer one token, with the flags that its entry has."""
    from tokenizers import AddedToken

    flags = {name: entry[name] for name in FLAGS if name in entry}
    backend.add_tokens([AddedToken(entry["content"], special=special, **flags)])


def as_entry(token: Any) -> dict:
    """A token that is written as its text, or as an object with flags."""
    return {"content": token} if isinstance(token, str) else token
