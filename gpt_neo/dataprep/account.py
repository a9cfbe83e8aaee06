"""Where documents and tokens went."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from gpt_neo.dataprep.readers import Bad

MOST_BAD = 100  # places named in the manifest; all are counted


@dataclasses.dataclass
class Account:
    """Counts of a run, or of a part of one. A finished run has no `imbalance`.

    Documents are written, or dropped because they are empty, too short, a copy of an earlier one, or bad (not
    readable; their tokens are not known and count nowhere). `tail` and `overwritten` is what --legacy loses.
    """

    documents_in: int = 0
    documents_written: int = 0
    documents_dropped_empty: int = 0
    documents_dropped_short: int = 0
    documents_dropped_duplicate: int = 0
    documents_dropped_bad: int = 0
    documents_dropped_tail: int = 0
    bytes_in: int = 0
    tokens_in: int = 0
    tokens_dropped_short: int = 0
    tokens_dropped_duplicate: int = 0
    tokens_dropped_tail: int = 0
    tokens_dropped_overwritten: int = 0
    separator_tokens: int = 0
    fill_tokens: int = 0
    tokens_written: int = 0
    records_written: int = 0

    def add(self, other: Mapping[str, int]) -> None:
        """Add counts, by name."""
        for name, count in other.items():
            setattr(self, name, getattr(self, name) + count)

    def counts(self) -> dict[str, int]:
        """The counts that are not 0, by name."""
        return {name: count for name, count in dataclasses.asdict(self).items() if count}

    def imbalance(self) -> str:
        """What does not add up; empty if everything does.

        Documents in = written + dropped. Tokens in + separators + filling = written + dropped.
        """
        values = dataclasses.asdict(self)
        dropped = {
            unit: sum(n for name, n in values.items() if name.startswith(f"{unit}_dropped_"))
            for unit in ("documents", "tokens")
        }
        documents = self.documents_in - self.documents_written - dropped["documents"]
        gained = self.tokens_in + self.separator_tokens + self.fill_tokens
        tokens = gained - self.tokens_written - dropped["tokens"]
        return f"{documents} documents and {tokens} tokens are unaccounted for: {self}" if documents or tokens else ""


class Totals:
    """What the units have to say, added up.

    Attributes:
      sets: documents, bytes and tokens read of each of The Pile's sets.
      bad: the first places that could not be read.
      reasons: documents that could not be read, by reason.
      lengths: documents by tokens, of a shuffled set, whose records no longer tell them.
      signs: what a person should know of texts that were taken as they are: how often, and the first place.
    """

    def __init__(self) -> None:
        self.account = Account()
        self.sets: dict[str, list[int]] = {}
        self.bad: list[Bad] = []
        self.reasons: dict[str, int] = {}
        self.signs: dict[str, list] = {}
        self.lengths: dict[int, int] = {}

    def add(self, line: Mapping) -> None:
        """Add a unit's line of the ledger."""
        self.account.add(line["account"])
        for name, counts in line["sets"].items():
            self.sets[name] = [a + b for a, b in zip(self.sets.get(name, [0, 0, 0]), counts)]
        self.bad = [*self.bad, *(Bad(*bad) for bad in line["bad"])][:MOST_BAD]
        for reason, count in line["reasons"].items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        for sign, (count, place) in line.get("signs", {}).items():
            self.add_sign(sign, count, place)

    def add_sign(self, sign: str, count: int, place: str) -> None:
        """Note a sign, and the place of the first one."""
        seen = self.signs.setdefault(sign, [0, place])
        seen[0] += count

    def add_bad(self, bad: Iterable[Bad]) -> None:
        """Count documents, or files, that cannot be read."""
        for found in bad:
            counts = {"documents_in": 1, "documents_dropped_bad": 1}
            self.add({"account": counts, "sets": {}, "bad": [found], "reasons": {found.reason: 1}})
