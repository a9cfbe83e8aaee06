"""Whether a config names records that anyone can have, the command that makes some, and whose tokenizer reads them."""

from __future__ import annotations

import os
import shlex
from typing import Optional

from gpt_neo.config.schema import DatasetConfig, DatasetRef, RunConfig
from gpt_neo.errors import ConfigError

PLACEHOLDER = "YOUR_BUCKET"  # in shipped dataset configs; the name of no bucket can be written so


def require_records(run: RunConfig, key: str = "path") -> None:
    """Refuse a run whose records nobody has made.

    Args:
      key: `path`, or `eval_path` for held-out ones.

    Raises:
      ConfigError: `datasets` names none, or one whose path is a placeholder; with the command that makes records. Or
        none of them has held-out ones.
    """
    if not run.datasets:
        raise ConfigError(f"{run.source}: key 'datasets' names no dataset to read; {how_to_prepare(run)}")
    if not any(getattr(config, key) for _, config in run.datasets):
        names = ", ".join(repr(ref.name) for ref, _ in run.datasets)
        raise ConfigError(f"dataset {names} has no {key!r}: evaluation needs held-out records")
    for ref, config in run.datasets:
        path = getattr(config, key)
        if path and PLACEHOLDER in path:
            raise ConfigError(f"dataset {ref.name!r}: {key} {path} is a placeholder; {how_to_prepare(run)}")


def text_dataset(run: RunConfig) -> Optional[tuple[DatasetRef, DatasetConfig]]:
    """The dataset whose tokenizer makes ids of texts: the first that names one (training refuses two different ones),
    else the first; None where a run has no datasets."""
    return next((pair for pair in run.datasets if pair[1].tokenizer_path), run.datasets[0] if run.datasets else None)


def how_to_prepare(run: RunConfig) -> str:
    """The command that makes records of one's own texts for a model, and how they are named."""
    beside = "" if run.model.n_vocab >= 50257 else " --encoder_path TOKENIZER.json"
    own = os.path.join(os.path.dirname(run.source), "tokenizer.json")
    if os.path.isfile(own):
        beside = f" --encoder_path {shlex.quote(own)}"
    return (
        f"make records of your texts, and name them:\n  gpt-neo prepare --input_dir TEXTS --output_dir records "
        f"--chunk_size {run.model.n_ctx + 1}{beside} --write_dataset_config mine.json\n  --set datasets=mine.json"
    )
