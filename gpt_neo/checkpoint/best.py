"""The checkpoint with the least loss on held-out records, kept in `best/`, and how long there was none better."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Optional

from gpt_neo import storage
from gpt_neo.checkpoint.folder import BEST, checkpoints_of, files_of, write_state
from gpt_neo.checkpoint.names import PREFIX, step_of
from gpt_neo.errors import CheckpointError
from gpt_neo.storage import tensorflow as files

BEST_FILE = "best.json"


@dataclasses.dataclass(frozen=True)
class Best:
    """What best.json says.

    checkpoint: file name. data: the evaluation that it was the best of; losses of others cannot be compared ("" where
    that was not noted). worse: steps that were evaluated since on the same data, none of which was better.
    """

    checkpoint: str
    step: int
    loss: float
    data: str = ""
    worse: tuple = ()

    @property
    def waited(self) -> int:
        """How many evaluations since brought nothing better, as patience counts them: those of later steps, and not of
        earlier ones that are evaluated again, or by hand."""
        return sum(step > self.step for step in self.worse)

    def knows(self, step: int, data: str) -> bool:
        """Whether that step was evaluated on that data."""
        return self.data == data and (step == self.step or step in self.worse)


def read_best(folder: str) -> Optional[Best]:
    """The best checkpoint of a run's folder; None without one.

    Raises:
      CheckpointError: best.json is damaged.
    """
    place = os.path.join(folder, BEST)
    path = os.path.join(place, BEST_FILE)
    if files.is_remote(folder) or not os.path.isfile(path):
        return None
    known = storage.read_json(path, CheckpointError)
    try:
        best = Best(**{**known, "worse": tuple(known.get("worse", ()))})
    except TypeError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    numbers = (best.loss, best.step, *best.worse)
    named = re.fullmatch(re.escape(PREFIX) + r"\d+", str(best.checkpoint))  # nothing outside of the folder
    if not named or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise CheckpointError(
            f"{path}: damaged: expected the keys loss and step, numbers, and checkpoint, such as {PREFIX}100. Without "
            "this file the next evaluation counts as the best so far"
        )
    return best if os.path.isfile(os.path.join(place, best.checkpoint + ".index")) else None


def write_best(folder: str, best: Best) -> None:
    """Write best.json, at once or not at all."""
    path = os.path.join(folder, BEST, BEST_FILE)
    storage.write_bytes(path, (json.dumps(dataclasses.asdict(best)) + "\n").encode())


def forget_after(folder: str, step: int) -> None:
    """Of a run that goes on from a step: evaluations of later ones were of another course, and count as worse no more.

    Raises:
      CheckpointError: best.json is damaged.
    """
    best = read_best(folder)
    if best and any(later > step for later in best.worse):
        write_best(folder, dataclasses.replace(best, worse=tuple(known for known in best.worse if known <= step)))


def keep_best(folder: str, prefix: str, loss: float, data: str = "") -> Optional[Best]:
    """Keep a checkpoint in `best/` if its loss is the least so far. The rules of the folder do not delete it there.

    Files are linked where the file system can, so that it takes no space while both exist. A best checkpoint of other
    data is put aside, as `best-<step>`: the two losses say nothing of each other.

    Args:
      prefix: the checkpoint's path.
      loss: NaN changes nothing.
      data: what was evaluated; see `held_out_identity`.

    Returns:
      the best one now; None where none is kept, as in a bucket.
    """
    place = os.path.join(folder, BEST)
    if files.is_remote(folder) or loss != loss or os.path.dirname(prefix) == place:
        return read_best(folder)
    best, name, step = read_best(folder), os.path.basename(prefix), step_of(prefix)
    if best and best.data != data:
        put_aside(folder, best)
        best = None
    again = best if best and (best.checkpoint, best.loss) == (name, loss) else None  # the link may have been damaged
    if best and best.loss <= loss and not again:
        if best.checkpoint != name and step not in best.worse:
            best = dataclasses.replace(best, worse=(*best.worse, step))
            write_best(folder, best)
        return best
    storage.make_folder(place)
    # The index last: without it the rest is no checkpoint.
    parts = sorted(files_of(prefix), key=lambda path: path.endswith(".index"))
    kept = [os.path.join(place, os.path.basename(source)) for source in parts]
    for source, target in zip(parts, kept):
        link(source, target)
    storage.sync(*kept)
    best = again or Best(name, step, loss, data)
    write_best(folder, best)
    write_state(place, os.path.join(place, name))
    for old in checkpoints_of(place):
        if os.path.basename(old) != name:
            for path in sorted(files_of(old), key=lambda path: not path.endswith(".index")):
                os.remove(path)
    return best


def put_aside(folder: str, best: Best) -> None:
    """Give `best/` another name, of the form best-<step>."""
    place, number = os.path.join(folder, f"{BEST}-{best.step}"), 1
    while os.path.exists(place):
        number += 1
        place = os.path.join(folder, f"{BEST}-{best.step}-{number}")
    os.rename(os.path.join(folder, BEST), place)


def link(source: str, target: str) -> None:
    """A hard link, or a copy where there can be none."""
    import shutil

    temporary = target + ".tmp"
    if os.path.exists(temporary):
        os.remove(temporary)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
