"""Where the checkpoints of a run live."""

from __future__ import annotations

import glob
import os

from gpt_neo import storage
from gpt_neo.config.schema import RunConfig

BEST = "best"  # sub-folder of the checkpoint with the least loss on held-out records


def model_folder(run: RunConfig, reads_only: bool = False) -> str:
    """`model_path`, else the config's own folder if it holds checkpoints (a release), else runs/<name>.

    A release as downloaded names the model_path of the machine that trained it. A job that only reads takes the
    checkpoints beside the config when model_path has none. The folder of a run's best checkpoint is there to be read;
    what trains goes on in that of the run.
    """
    beside = os.path.dirname(os.path.abspath(run.source))
    path = run.training.model_path
    if path and not (reads_only and has_checkpoints(beside) and not has_checkpoints(path)):
        whole, name = os.path.split(storage.absolute(path))
        return whole if name == BEST and not reads_only and has_checkpoints(whole) else storage.absolute(path)
    stem = os.path.splitext(os.path.basename(run.source))[0]  # where a run went before it was called after its folder
    names = [name for name in (stem, run.name) if has_checkpoints(os.path.join("runs", name))] or [run.name]
    return beside if has_checkpoints(beside) else os.path.abspath(os.path.join("runs", names[0]))


def has_checkpoints(folder: str) -> bool:
    """Whether a local folder holds checkpoints."""
    return bool(glob.glob(os.path.join(glob.escape(folder), "model.ckpt-*.index")))
