"""The mean of several checkpoints."""

from __future__ import annotations

import os

from gpt_neo.checkpoint.average import average_checkpoints
from gpt_neo.checkpoint.folder import checkpoints_of, prefix_of
from gpt_neo.checkpoint.names import step_of
from gpt_neo.cli.tool_options import Average
from gpt_neo.errors import counted


def average(options: Average) -> int:
    """Average and say of what."""
    sources = [prefix_of(path) for path in options.sources]
    if len(sources) == 1 and os.path.isdir(sources[0]):
        sources = sorted(checkpoints_of(sources[0]), key=step_of)[-(options.last or 0) :]
    path = average_checkpoints(sources, options.to)
    names = ", ".join(os.path.basename(source) for source in sources)
    print(f"averaged  {counted(len(sources), 'checkpoint')} ({names}) into {path}")
    return 0
