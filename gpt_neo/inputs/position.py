"""Where a sample's records are. Pure arithmetic: a resumed run reads on exactly where it stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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


def places_text(places: Iterable[tuple[str, int]], most: int = 8) -> str:
    """Records for people: `records 4-7, 9 of a.tfrecords and 0 of b.tfrecords`.

    Args:
      places: (path, number of the record in it), in any order.
      most: files that are named.
    """
    files: dict[str, list] = {}
    for path, number in places:
        ranges = files.setdefault(path, [])
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [
        ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges) + f" of {path}"
        for path, ranges in files.items()
    ]
    more = [f"more of {len(texts) - most} other files"] if len(texts) > most else []
    return "records " + " and ".join(texts[:most] + more)
