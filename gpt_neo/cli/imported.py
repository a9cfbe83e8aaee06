"""Models as Hugging Face has them, where a run is read: a run is made of one once, and kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Callable

from gpt_neo.cli.console import note
from gpt_neo.config.loader import FOLDER_CONFIG, folder_name, is_hugging_face
from gpt_neo.errors import CheckpointError, reason_of
from gpt_neo.system import cache_folder, python_path

FOLDER = "GPT_NEO_IMPORTED"  # where such runs are kept; default ~/.cache/gpt_neo/imported
SHOWN = ("note", "verified")  # labels of lines of import-hf that are told


def run_of(name: str, tell: Callable[[str], None] = note) -> str:
    """The folder of a run, of what may be a Hugging Face folder or a name on its hub; other names as they are.

    A folder whose files have changed, or a name whose revision has moved, is another model: a run of its own.

    Args:
      tell: called with each line that a person should see.

    Raises:
      CheckpointError: there is no such model, no way to the hub, or it cannot be converted.
    """
    if not is_hugging_face(name):
        return name
    from gpt_neo.checkpoint.hub import model_folder_of  # only such names pay for it

    with model_folder_of(name) as source:
        stem = folder_name(name.partition("@")[0] if not os.path.isdir(name) else os.path.abspath(name))
        folder = os.path.join(kept_in(), fingerprint(source), stem)
        if not os.path.isfile(os.path.join(folder, FOLDER_CONFIG)):
            try:
                os.makedirs(os.path.dirname(folder), exist_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"{name} becomes a run first, in {kept_in()}, which cannot be written: {reason_of(error)}; "
                    f"{FOLDER} names another folder"
                ) from error
            tell(f"{name} becomes a run first, once, in {folder}")
            for line in convert(source, folder):
                tell(line)
    return folder


def kept_in() -> str:
    """The folder of all such runs.

    Raises:
      CheckpointError: no folder is named, and there is no home folder.
    """
    folder = os.environ.get(FOLDER) or cache_folder("imported")
    if not folder:
        raise CheckpointError(
            "a model of Hugging Face becomes a run first, and there is no home folder to keep it in (HOME is not set); "
            f"{FOLDER} names a folder"
        )
    return folder


def fingerprint(source: str) -> str:
    """12 hexadecimal digits: the folder's path and its files' names, sizes and times."""
    entries = sorted((entry.name, entry.stat(follow_symlinks=os.path.exists(entry))) for entry in os.scandir(source))
    facts = [os.path.abspath(source), *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in entries)]
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def convert(source: str, folder: str) -> list[str]:
    """`import-hf`, in a process of its own: its memory goes back. Returns what it notes, and its comparison.

    Raises:
      CheckpointError: its own words.
    """
    done = subprocess.run(
        [sys.executable, "-m", "gpt_neo", "import-hf", source, folder],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and not os.path.isfile(os.path.join(folder, FOLDER_CONFIG)):  # else another one was faster
        words = done.stderr.rpartition("error: ")[2].strip() or f"import-hf ended with {done.returncode}"
        raise CheckpointError(words)
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    return [(rest if label == "note" else f"{label} {rest}").strip() for label, _, rest in lines if label in SHOWN]
