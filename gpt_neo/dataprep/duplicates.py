"""Finding documents with the same text, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt_neo.dataprep import spill
from gpt_neo.dataprep.account import Account
from gpt_neo.dataprep.options import Job

AT_ONCE = 1 << 23  # documents compared at once: about 500 MB; larger sets are looked through in several passes


def mark_duplicates(job: Job, units: Sequence[int], documents: int) -> Account:
    """Write for each unit which of its documents have the text of an earlier one; return what that changes.

    Two texts are the same if 128-bit hashes of them are.
    """
    dropped = {unit: np.zeros(len(spill.read_index(job, unit)), bool) for unit in units}
    passes = max(1, -(-documents // AT_ONCE))
    for chosen in range(passes):
        for unit, row in copies(job, units, passes, chosen):
            dropped[unit][row] = True
    change = Account()
    end = len(job.separator) if job.options.mode == "chunks" else 0
    for unit in units:
        count, tokens = int(dropped[unit].sum()), int(spill.read_index(job, unit)["length"][dropped[unit]].sum())
        change.add(
            {
                "documents_written": -count,
                "documents_dropped_duplicate": count,
                "separator_tokens": -count * end,
                "tokens_dropped_duplicate": tokens - count * end,
            }
        )
        spill.write_array(spill.spill_path(job, unit, "dropped"), dropped[unit])
    return change


def copies(job: Job, units: Sequence[int], passes: int, chosen: int) -> list[tuple[int, int]]:
    """(unit, row of its index) of the copies among the documents whose hash falls into one pass."""
    digests, places = [], []
    for unit in units:
        index = spill.read_index(job, unit)
        rows = np.flatnonzero(index["digest"][:, 0] % np.uint64(passes) == chosen)
        digests.append(index["digest"][rows])
        places.append(np.stack([np.full(len(rows), unit), index["place"][rows], rows], axis=1))
    digest, place = np.concatenate(digests), np.concatenate(places)
    order = np.lexsort((place[:, 1], place[:, 0], digest[:, 1], digest[:, 0]))  # equal ones together, the first first
    same = (digest[order][1:] == digest[order][:-1]).all(axis=1)
    return [(unit, row) for unit, _, row in place[order[1:][same]].tolist()]
