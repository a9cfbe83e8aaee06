"""The first half of the work: a unit of text becomes ids in a spill, with an account."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np

from gpt_neo.dataprep.account import Totals
from gpt_neo.dataprep.cleaning import detokenize_wikitext, repair
from gpt_neo.dataprep.documents import Document, documents_of
from gpt_neo.dataprep.encoder import BLOCK, Encoder
from gpt_neo.dataprep.encodings import wide_encoding
from gpt_neo.dataprep.options import Job
from gpt_neo.dataprep.readers import Bad
from gpt_neo.dataprep.spill import token_type, write_spill
from gpt_neo.dataprep.units import Unit
from gpt_neo.errors import DataError, reason_of
from gpt_neo.tokenizer import END_OF_TEXT, load_tokenizer

MOST_FAILED = 20  # places of a unit that are named where nothing is to be skipped


@functools.lru_cache(maxsize=1)
def encoder_of(encoder_path: Optional[str], fast: bool) -> Encoder:
    """The encoder of this process, with the words it has learned."""
    return Encoder(load_tokenizer(encoder_path), fast)


def tokenize_unit(job: Job, unit: Unit) -> dict:
    """Write the spill of a unit and return what the ledger keeps of it.

    Returns:
      unit, group, part, last, stored (of the unit); tokens, documents (of the spill); account, sets, bad (places as
      lists), reasons (counts), signs, and seals of the files of the spill; or unit and `failed`, the first places that
      cannot be read, if such are not to be skipped.
    """
    work = UnitWork(job, encoder_of(job.options.encoder_path, job.fast))
    for found in documents_of(unit, job.rules):
        if isinstance(found, Bad):
            work.flush()
            work.refuse(found)
        else:
            work.take(found)
        if len(work.failed) >= MOST_FAILED:
            break
    work.flush()
    if work.failed:
        return {"unit": unit.number, "failed": [list(bad) for bad in work.failed[:MOST_FAILED]]}
    seals = {} if job.options.bad == "report" else write_spill(job, unit.number, work.kept, work.digests)
    return {
        "seals": seals,
        "unit": unit.number,
        "group": unit.group,
        "part": unit.part,
        "last": unit.last,
        "stored": unit.stored,
        "tokens": sum(len(block) for blocks in work.kept for block in blocks),
        "documents": len(work.kept),
        "account": work.account.counts(),
        "sets": work.totals.sets,
        "bad": [list(bad) for bad in work.totals.bad],
        "reasons": work.totals.reasons,
        "signs": work.totals.signs,
    }


class UnitWork:
    """Collects the documents of a unit; encodes them a block at a time."""

    def __init__(self, job: Job, encoder: Encoder) -> None:
        self.job, self.encoder = job, encoder
        self.separator = np.array(job.separator if job.options.mode == "chunks" else (), token_type(job))
        self.totals = Totals()
        self.account = self.totals.account
        self.kept: list[list[np.ndarray]] = []  # blocks of ids of each document, separators included
        self.digests: list[bytes] = []
        self.failed: list[Bad] = []
        self.waiting: list[Document] = []
        self.size = 0

    def take(self, document: Document) -> None:
        """Take the next document."""
        self.look_at(document)
        if self.job.options.cleaned:
            try:
                document = document._replace(text=self.cleaned(document.text))
            except (ValueError, LookupError, RecursionError) as error:  # of ftfy
                self.flush()
                self.refuse(document.bad(f"cannot be cleaned: {reason_of(error)}"))
                return
        if self.waiting and self.size + len(document.text) > BLOCK:
            self.flush()
        self.waiting.append(document)
        self.size += len(document.text)

    def cleaned(self, text: str) -> str:
        """A text with the changes that were asked for."""
        text = repair(text) if self.job.options.ftfy else text
        return detokenize_wikitext(text) if self.job.options.wikitext_detokenize else text

    def look_at(self, document: Document) -> None:
        """Note what is probably not meant to be text."""
        marks = document.text.count(END_OF_TEXT)
        if marks:
            self.totals.add_sign("end_of_text", marks, document.place)
        if "\0" in document.text:
            self.totals.add_sign("nul", 1, document.place)
            encoding = wide_encoding(document.text)
            if encoding:
                self.totals.add_sign(encoding, 1, document.place)

    def flush(self) -> None:
        """Encode what is waiting."""
        waiting, self.waiting, self.size = self.waiting, [], 0
        for document, blocks in self.encoded(waiting):
            if isinstance(blocks, Bad):
                self.refuse(blocks)
            else:
                self.put(document, blocks)

    def encoded(self, waiting: list[Document]) -> Iterator[tuple[Document, Any]]:
        """(document, blocks of ids), or (document, Bad) for one that cannot be encoded."""
        if not waiting:
            return
        try:
            if len(waiting) > 1:
                ids, counts = self.encoder.encode_texts([document.text for document in waiting])
                parts = np.split(ids.astype(self.separator.dtype), np.cumsum(counts)[:-1])
                yield from ((document, [part]) for document, part in zip(waiting, parts))
                return
        except Exception:  # of one of them, whatever `tokenizers` raises; which, the loop below finds
            pass
        for document in waiting:
            try:
                kind = self.separator.dtype
                yield document, [block.astype(kind) for block in self.encoder.blocks(document.text)]
            except DataError as error:
                yield document, document.bad(str(error))
            except Exception as error:  # `tokenizers` has no class of its own for what it cannot do
                yield document, document.bad(f"cannot be encoded: {reason_of(error)}")

    def refuse(self, bad: Bad) -> None:
        """Count a document that cannot be used."""
        if not self.job.options.skip_bad:
            self.failed.append(bad)
            return
        self.totals.add_bad([bad])

    def put(self, document: Document, blocks: list[np.ndarray]) -> None:
        """Keep a document's ids, or drop it."""
        account, size = self.account, sum(map(len, utf8_blocks(document.text)))
        tokens = sum(map(len, blocks))
        account.bytes_in += size
        account.tokens_in += tokens
        account.documents_in += document.closes
        if document.set_name is not None:
            seen = self.totals.sets.setdefault(document.set_name, [0, 0, 0])
            for place, more in enumerate((1, size, tokens)):
                seen[place] += more
        if document.opens and document.closes:
            if not tokens:
                account.documents_dropped_empty += 1
                return
            if tokens < self.job.options.minimum_size:
                account.documents_dropped_short += 1
                account.tokens_dropped_short += tokens
                return
        end = self.separator if document.closes else self.separator[:0]
        account.documents_written += document.closes
        account.separator_tokens += len(end)
        self.kept.append([*blocks, end])
        if self.job.options.deduplicate:
            digest = hashlib.blake2b(digest_size=16)
            for block in utf8_blocks(document.text):
                digest.update(block)
            self.digests.append(digest.digest())


def utf8_blocks(text: str) -> Iterator[bytes]:
    """The bytes of a text, a block at a time."""
    for start in range(0, len(text), BLOCK):
        yield text[start : start + BLOCK].encode("utf-8")
