"""Documents held out of training: a share of them, drawn by seed; of a single document its end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from gpt_neo import storage
from gpt_neo.dataprep.documents import read_documents
from gpt_neo.errors import DataError

BREAKS = ("\n\n", "\n", ". ", " ")  # where a single document may be cut, the best first


def held_out_numbers(count: int, share: float, seed: int) -> frozenset:
    """Which of `count` documents are held out: the nearest whole number of them, one at least where any are asked for,
    and never all. Equal for equal arguments."""
    if share <= 0 or count < 2:
        return frozenset()
    wanted = min(count - 1, max(1, round(count * share)))
    order = sorted(range(count), key=lambda i: hashlib.blake2b(f"{seed} {i}".encode(), digest_size=8).digest())
    return frozenset(order[:wanted])


def cut(text: str, share: float) -> tuple[str, str]:
    """A text as its beginning and its end, the last `share` of it, cut between paragraphs, lines, sentences or words
    where such a place is near. Together they are the text."""
    at = max(1, round(len(text) * (1 - share)))
    for mark in BREAKS:
        place = text.find(mark, at)
        if 0 <= place < at + (len(text) - at) // 2:
            return text[: place + len(mark)], text[place + len(mark) :]
    return text[:at], text[at:]


def split_texts(
    inputs: Sequence[str], share: float, seed: int, text_key: str, train: str, held_out: str
) -> tuple[int, int]:
    """Write the documents of the inputs as JSON lines to two files, each in the order of the inputs.

    `held_out` appears last: where it is there, both are there as a whole.

    Args:
      share: of the documents, 0 to 1, that go to `held_out`.
      text_key: key of the text in JSON.
      train, held_out: paths.

    Returns:
      documents in each; a single document that is cut counts in both.

    Raises:
      DataError: an input cannot be read, or there is no text.
    """
    count = sum(1 for text in read_documents(inputs, text_key, split=False) if text.strip())
    if not count:
        raise DataError(f"{', '.join(inputs)}: no text")
    numbers, written = held_out_numbers(count, share, seed), [0, 0]
    with storage.writing(held_out) as held, storage.writing(train) as kept:
        texts = (text for text in read_documents(inputs, text_key, split=False) if text.strip())
        for number, text in enumerate(texts):
            parts = cut(text, share) if count == 1 and share > 0 else (text,)
            for place, part in enumerate(parts):
                place = int(number in numbers) if len(parts) == 1 else place
                (kept, held)[place].write(json.dumps({"text": part}, ensure_ascii=False).encode() + b"\n")
                written[place] += 1
    return written[0], written[1]
