"""A model by name: its config, newest checkpoint and tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Optional

from gpt_neo.checkpoint.folder import find_checkpoint
from gpt_neo.checkpoint.names import step_of
from gpt_neo.config import load_config
from gpt_neo.config.folders import model_folder
from gpt_neo.config.network import merged
from gpt_neo.config.schema import RunConfig
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """What is needed to score and to sample with a model. prefix: id of the end of a document, or None."""

    run: RunConfig
    folder: str
    checkpoint: str
    tokenizer: Tokenizer
    prefix: Optional[int]
    notes: tuple

    @property
    def step(self) -> int:
        """Training step of the checkpoint."""
        return step_of(self.checkpoint)


def find_model(name: str, which: Optional[str] = None, overrides: Sequence[str] = ()) -> FoundModel:
    """Find a model by its config (name or path), or by a run folder with a config.json.

    Args:
      which: the checkpoint, as `find_checkpoint` takes it.
      overrides: `key=value` in place of what the config says.

    Raises:
      ConfigError, CheckpointError, DataError: a part of it is missing or wrong.
    """
    run = load_config(name, overrides)
    run = dataclasses.replace(run, model=merged(run.model))
    folder = model_folder(run, reads_only=True)
    found = find_checkpoint(folder, which)
    tokenizer, eos = run_tokenizer(run, folder)
    return FoundModel(run, folder, found.path, tokenizer, eos, (*run.notes, *found.notes))
