"""The mean of several checkpoints."""

from __future__ import annotations

import os

from gpt_neo import storage
from gpt_neo.checkpoint.average import average_checkpoints
from gpt_neo.checkpoint.folder import checkpoints_of, find_checkpoint, no_checkpoint, prefix_of, read_found
from gpt_neo.checkpoint.names import step_of
from gpt_neo.cli import quiet
from gpt_neo.cli.console import note
from gpt_neo.cli.tool_options import Average
from gpt_neo.errors import ConfigError, counted
from gpt_neo.storage.tensorflow import is_folder


def average(options: Average) -> int:
    """Average and say of what.

    Raises:
      ConfigError: --last with anything but one folder.
      CheckpointError: a folder has no checkpoint, or as `average_checkpoints`.
    """
    if any(map(storage.scheme_of, [*options.sources, options.to])):  # which TensorFlow reads and writes
        quiet.silence(False)

    def mean(sources: list[str]) -> tuple[list[str], str]:
        return sources, average_checkpoints(sources, options.to)

    sources, path = read_found(lambda: chosen(options), mean, note)
    alike = len({os.path.dirname(source) for source in sources}) == 1
    names = ", ".join(os.path.basename(source) if alike else source for source in sources)
    print(f"averaged  {counted(len(sources), 'checkpoint')} ({names}) into {path}")
    return 0


def chosen(options: Average) -> tuple[list[str], set[str]]:
    """The checkpoints, and those of them that were looked for in a folder. Raises: as `average`."""
    given = options.sources
    if len(given) == 1 and is_folder(given[0]):
        sources = sorted(checkpoints_of(given[0]), key=step_of)[-(options.last or 0) :]
        if not sources:
            raise no_checkpoint(given[0])
        return sources, set(sources)
    if options.last:
        raise ConfigError(f"--last {options.last}: takes one folder; given: {', '.join(given)}")
    searched = {path: newest(path) for path in given if is_folder(path)}
    return [searched.get(path) or prefix_of(path) for path in given], set(searched.values())


def newest(folder: str) -> str:
    """The newest checkpoint of a folder; says which were passed over. Raises: CheckpointError: it has none."""
    found = find_checkpoint(folder)
    for line in found.notes:
        note(line)
    return found.path
