"""Checkpoints of a folder: the newest complete one, the best one, and the state file that names them."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
from collections.abc import Collection
from typing import Callable, Optional, TypeVar

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import Bundle, file_size, read_bytes
from gpt_neo.checkpoint.names import PREFIX, step_of
from gpt_neo.config.folders import BEST
from gpt_neo.config.loader import has_their_config
from gpt_neo.dataprep.encodings import mark_of
from gpt_neo.errors import CheckpointError, reason_of
from gpt_neo.storage import tensorflow as files

Read = TypeVar("Read")
Given = TypeVar("Given")
STATE = "checkpoint"
PART = re.compile(r"\.(?:index|meta|data-\d+-of-\d+)$")
NAMED = re.compile(re.escape(PREFIX) + r"\d+")
# TensorFlow's text form of CheckpointState: any order, spaces, either quotes; the key may be quoted too (JSON), and the
# path not (YAML).
ENTRY = re.compile(
    r"""\b(model_checkpoint_path|all_model_checkpoint_paths)["']?\s*:\s*"""
    r"""(?:(["'])((?:(?!\2)[^\\]|\\.)*)\2|([^\s"'\[\]{},]+))"""
)
ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.S)
FILES = f"{PREFIX}*.index"


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint's path without suffix, and lines for the person on how it was chosen."""

    path: str
    notes: tuple = ()


def latest_checkpoint(folder: str) -> Optional[str]:
    """Newest complete checkpoint of a folder, or None where there is none at all.

    Raises:
      CheckpointError: there are checkpoints, and every one is damaged.
    """
    found = find_latest(folder)
    return found.path if found else None


def find_latest(folder: str, verify: bool = False) -> Optional[Found]:
    """The checkpoint that the state file names, else the newest complete one.

    The state file may hold paths of the machine that trained: file names count, not folders. A newer checkpoint that
    it does not list counts if it was written after it, which happens when a run is killed between the two.

    Args:
      verify: hold the bytes of a local one against their checksums too, at the disk's speed; that of a bucket is not
        read twice.

    Raises:
      CheckpointError: there are checkpoints, and every one is damaged, or one is out of reach (`is_out_of_reach`).
    """
    prefixes = sorted(checkpoints_of(folder), key=step_of)
    if not prefixes:
        return None
    problems = strangers(folder)
    stated, listed = read_state(folder)
    order = prefixes[::-1]
    if stated in prefixes:
        newer = [p for p in order if step_of(p) > step_of(stated) and p not in listed and is_later(p, folder)]
        order = [
            *newer,
            stated,
            *[p for p in order if p != stated and p not in newer and step_of(p) < step_of(stated)],
            *[p for p in order if p not in newer and step_of(p) > step_of(stated)],
        ]
    elif stated:
        problems.append(f"the state file names {os.path.basename(stated)}, which is not here")
    elif has_state(folder):
        problems.append("the state file names no checkpoint")
    first: Optional[CheckpointError] = None
    for prefix in order:
        try:
            bundle = Bundle(prefix)
            if verify and not files.is_remote(prefix):
                bundle.verify()
        except CheckpointError as error:
            if is_out_of_reach(error, prefix):
                raise
            first = first or error
            problems.append(f"passed over {os.path.basename(prefix)}: {error}")
            continue
        left = [p for p in order[order.index(prefix) :] if step_of(p) > step_of(prefix)]
        problems += [
            f"passed over {os.path.basename(p)}: the state file names {os.path.basename(stated)}" for p in left
        ]
        return Found(prefix, tuple(problems))
    assert first is not None
    if sorted(checkpoints_of(folder), key=step_of) != prefixes:  # a training beside has made newer ones since
        return find_latest(folder, verify)
    raise first


def is_out_of_reach(error: CheckpointError, prefix: str) -> bool:
    """Whether a bucket did not give what may be a whole checkpoint, or it may not be read, as another user's: to go on
    from an older one would cost its steps."""
    cause = error.__cause__
    if isinstance(cause, PermissionError):
        return True
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError) and files.is_remote(prefix)


def read_checkpoint(
    folder: str,
    which: Optional[str],
    read: Callable[[str], Read],
    tell: Callable[[str], None] = lambda line: None,
    first: Optional[str] = None,
) -> Read:
    """What `read` makes of a checkpoint, which a training beside may delete before it is read: then of the newest one.

    Args:
      which: as `find_checkpoint` takes it.
      read: called with its path, once more after a CheckpointError of one that is no longer there.
      tell: called with lines for the person.
      first: the path of one that was found before, and is read if it is still there.

    Raises:
      CheckpointError: there is no such one, or it is damaged.
    """
    known = [] if first is None else [Found(first)]

    def find() -> tuple[str, list[str]]:
        found = known.pop() if known else find_checkpoint(folder, which)
        for line in found.notes:
            tell(line)
        return found.path, [found.path]

    return read_found(find, read, tell)


def read_found(
    find: Callable[[], tuple[Given, Collection[str]]], read: Callable[[Given], Read], tell: Callable[[str], None]
) -> Read:
    """What `read` makes of what `find` gives; of what it gives next where a checkpoint was deleted before it was read.

    Args:
      find: gives what is read, and the paths of checkpoints in it that may be replaced by others.
      read: called once more after a CheckpointError if one of these is no longer there.
      tell: called with lines for the person.
    """
    while True:
        given, paths = find()
        try:
            return read(given)
        except CheckpointError:
            gone = sorted(path for path in paths if path not in checkpoints_of(os.path.dirname(path)))
            if not gone:
                raise
        tell(f"{os.path.basename(gone[0])} was deleted before it was read (keep_checkpoints); looking again")


def find_checkpoint(folder: str, which: Optional[str] = None) -> Found:
    """A checkpoint by wish: None for the newest, `best`, or a step.

    Raises:
      CheckpointError: there is no such one, it is damaged, or the folder cannot be read.
    """
    try:
        return wished(folder, which)
    except OSError as error:
        raise CheckpointError(f"{folder}: its checkpoints cannot be read: {reason_of(error)}") from error


def wished(folder: str, which: Optional[str]) -> Found:
    """As `find_checkpoint`. Raises: CheckpointError, OSError."""
    if which is None or which == "latest":
        found = find_latest(folder)
        if found is None:
            raise no_checkpoint(folder)
        return found
    if which == BEST:
        found = find_latest(os.path.join(folder, BEST))
        if found is None:
            raise CheckpointError(
                f"no best checkpoint in {folder!r}: training keeps one where eval_steps is set, and so does "
                "gpt-neo eval --keep_best"
            )
        return found
    steps = {str(step_of(p)): p for p in checkpoints_of(folder)}
    if which not in steps:
        known = ", ".join(sorted(steps, key=int)) or "none"
        raise CheckpointError(f"no checkpoint of step {which!r} in {folder!r}; there are: {known}")
    Bundle(steps[which])
    return Found(steps[which])


def strangers(folder: str) -> list[str]:
    """Lines on files of a folder that look like a checkpoint, and are none that is taken."""
    try:
        names = files.names(folder)
    except OSError:
        return []
    ours = {name[: -len(".index")] for name in names if name.endswith(".index")}
    lines = []
    for prefix in sorted({name[: part.start()] for name in names if (part := PART.search(name))}):
        if not NAMED.fullmatch(prefix):
            lines.append(f"passed over {prefix}: a checkpoint is called {PREFIX}<step> here; rename its files")
        elif prefix not in ours:
            lines.append(f"passed over {prefix}: its file {prefix}.index is missing")
    old = [name for name in names if NAMED.fullmatch(name)]
    return lines + [f"passed over {name}: TensorFlow wrote such a checkpoint before version 0.12" for name in old]


def no_checkpoint(folder: str) -> CheckpointError:
    """That a folder has none, and what it has that looks like one."""
    deeper = sorted({path.rsplit("/", 2)[-2] for path in files.glob(storage.join(glob.escape(folder), "*", FILES))})
    there = [f"there is one in its folder {name}" for name in deeper if name != BEST]
    with contextlib.suppress(CheckpointError):
        there += ["it is a Hugging Face folder: gpt-neo import-hf makes a run of it"] if is_hf_folder(folder) else []
    return CheckpointError(
        "; ".join([f"no checkpoint in {folder!r}: train first, or set model_path", *strangers(folder), *there])
    )


def is_hf_folder(source: str) -> bool:
    """Whether a folder, local or remote, has a config.json of Hugging Face's."""
    return has_their_config(source, CheckpointError)


def prefix_of(path: str) -> str:
    """The path of a checkpoint, without suffix, of that of any of its files."""
    return PART.sub("", path)


def checkpoints_of(folder: str) -> list[str]:
    """Paths, without suffix, of every checkpoint that has an index."""
    paths = files.glob(storage.join(glob.escape(folder), FILES))
    prefixes = [path[: -len(".index")] for path in paths]
    return [prefix for prefix in prefixes if NAMED.fullmatch(prefix.rsplit("/", 1)[-1])]


def read_state(folder: str) -> tuple[str, list[str]]:
    """The checkpoint that the state file names, and all that it lists, as paths in this folder ("" for none)."""
    if not has_state(folder):
        return "", []
    data = read_bytes(os.path.join(folder, STATE))
    mark, encoding = mark_of(data)
    text = re.sub(r"(?m)^\s*#.*$", "", data[len(mark) :].decode(encoding or "utf-8", "replace"))
    found = [
        (key, os.path.join(folder, file_name(unescaped(quoted) if quote else bare)))
        for key, quote, quoted, bare in ENTRY.findall(text)
    ]
    current = [name for key, name in found if key == "model_checkpoint_path"][-1:]
    return (current[0] if current else ""), [*current, *(name for key, name in found if key.startswith("all"))]


def has_state(folder: str) -> bool:
    """Whether there is a state file with something in it."""
    path = os.path.join(folder, STATE)
    return bool(file_size(path)) and not os.path.isdir(path)


def file_name(path: str) -> str:
    """The name of a checkpoint of a path of any system, also that of one of its files."""
    return prefix_of(re.split(r"[/\\]", path.rstrip("/\\"))[-1])


def unescaped(text: str) -> str:
    """What stands between the quotes of a text proto; TensorFlow writes other letters than ASCII's as octal bytes."""

    def plain(found: re.Match) -> bytes:
        return bytes([int(found[1], 8) & 255]) if found[1].isdigit() else found[1]

    return ESCAPE.sub(plain, text.encode("utf-8")).decode("utf-8", "replace")


def write_state(folder: str, prefix: str) -> None:
    """Make the state file name a checkpoint of the folder, by its file name alone."""
    older = [p for p in sorted(checkpoints_of(folder), key=step_of) if step_of(p) < step_of(prefix)]
    lines = [f'model_checkpoint_path: "{os.path.basename(prefix)}"']
    lines += [f'all_model_checkpoint_paths: "{os.path.basename(p)}"' for p in [*older, prefix]]
    files.write_text(os.path.join(folder, STATE), "\n".join(lines) + "\n")
    give_up_newer(folder, prefix)


def give_up_newer(folder: str, prefix: str) -> None:
    """See that no newer checkpoint than that of the state file looks as if it was written after that, as it can where a
    clock was set back: `find_latest` would take it, damaged bytes or not."""
    state = os.path.join(folder, STATE)
    for other in [] if files.is_remote(folder) else checkpoints_of(folder):
        if step_of(other) > step_of(prefix) and is_later(other, folder):
            os.utime(other + ".index", ns=(files.changed(state),) * 2)


def settle_state(folder: str, verify: bool = False) -> Optional[Found]:
    """Before training goes on: let the state file, which TensorFlow reads, name the checkpoint that we would take.

    Args:
      verify: as `find_latest`.

    Returns:
      that checkpoint, with notes for the person; None where there is none at all.

    Raises:
      CheckpointError: there are checkpoints, and every one is damaged.
    """
    found = find_latest(folder, verify)
    if found is None:
        return None
    path = os.path.join(folder, STATE)
    text = read_bytes(path).decode("utf-8", "replace") if file_size(path) is not None else ""
    if f'model_checkpoint_path: "{os.path.basename(found.path)}"' not in text.splitlines():
        write_state(folder, found.path)
    else:
        give_up_newer(folder, found.path)
    return found


def is_later(prefix: str, folder: str) -> bool:
    """Whether a checkpoint's index was written after the state file."""
    return files.changed(prefix + ".index") > files.changed(os.path.join(folder, STATE))


def files_of(prefix: str) -> list[str]:
    """The local files of a checkpoint, its record included."""
    names = glob.glob(glob.escape(prefix) + ".*")
    return sorted(n for n in names if re.fullmatch(r"\.(index|json|meta|data-\d+-of-\d+)", n[len(prefix) :]))
