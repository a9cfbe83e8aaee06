"""Where a sample's records are. Pure arithmetic: a resumed run reads on exactly where it stopped."""

from __future__ import annotations

from collections.abc import Sequence


def locate(record: int, counts: Sequence[int]) -> tuple[int, int]:
    """File and record within it of the `record`-th record of an endless repetition of the files.

    Args:
      record: 0, 1, ...; for the first of a step, step * train_batch_size.
      counts: records per file, at least one of them above 0.

    Returns:
      (index of the file, records to skip in it)

    Raises:
      ValueError: there are no records.
    """
    if not sum(counts):
        raise ValueError(f"counts {counts} hold no records")
    rest = record % sum(counts)
    for index, count in enumerate(counts):
        if rest < count:
            return index, rest
        rest -= count
    raise AssertionError("a rest below the sum lies in some file")
