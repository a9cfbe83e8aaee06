"""Giving memory back to the system: what is held here is not there for weights."""

from __future__ import annotations

import ctypes
import gc

DONTNEED = 4  # MADV_DONTNEED of madvise(2)
MAPS = "/proc/self/smaps"


def release_unused_memory() -> None:
    """Give back what building and loading have freed, which the C library would keep, and parts of libraries
    that were needed once.

    Does nothing where the system is none of Linux, or its C library none of GNU's.
    """
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    if hasattr(library, "madvise"):
        for low, high in unwritten_parts():
            library.madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), DONTNEED)


def unwritten_parts() -> list[tuple[int, int]]:
    """Where code and constants of libraries lie, as (first byte, end): mapped from files, and never written to.

    Importing TensorFlow reads 280 MB of them, most of it only then. Such pages come back from the file when they are
    needed again. What the loader has written (relocations) counts as anonymous, and stays.
    """
    spans = []
    where, rights, path = "", "", ""
    try:
        with open(MAPS, encoding="utf-8") as lines:
            for line in lines:
                head, *rest = line.split()
                if "-" in head and len(rest) >= 4:
                    where, rights, path = head, rest[0], rest[-1]
                elif head == "Anonymous:" and rest[0] == "0" and rights in ("r-xp", "r--p") and path.startswith("/"):
                    low, high = where.split("-")
                    spans.append((int(low, 16), int(high, 16)))
    except OSError:
        return []
    return spans
