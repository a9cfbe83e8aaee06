"""A model by name: its config, newest checkpoint and tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable, Optional, TypeVar

from gpt_neo.checkpoint.folder import find_checkpoint, read_checkpoint
from gpt_neo.checkpoint.names import step_of
from gpt_neo.config import load_config
from gpt_neo.config.folders import model_folder
from gpt_neo.config.network import merged
from gpt_neo.config.schema import RunConfig
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.tokenizer import Tokenizer

Read = TypeVar("Read")


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """What is needed to score and to sample with a model.

    prefix: id of the end of a document, or None. which: the checkpoint that was asked for, as `find_checkpoint` takes
    it.
    """

    run: RunConfig
    folder: str
    checkpoint: str
    tokenizer: Tokenizer
    prefix: Optional[int]
    notes: tuple
    which: Optional[str] = None

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
    return FoundModel(run, folder, found.path, tokenizer, eos, (*run.notes, *found.notes), which)


def read_model(
    found: FoundModel, read: Callable[[FoundModel], Read], tell: Callable[[str], None], begun: bool
) -> tuple[FoundModel, Read]:
    """(the model, what `read` makes of it): of its checkpoint, or where a training beside has deleted this, of the
    newest one there is.

    Args:
      tell: called with lines for the person.
      begun: something else was read of the checkpoint before; then no other will do.

    Raises:
      CheckpointError: it is damaged, or gone.
    """

    def both(path: str) -> tuple[FoundModel, Read]:
        model = dataclasses.replace(found, checkpoint=path)
        made = read(model)
        if model != found:
            tell(f"the checkpoint of step {model.step:,} is read in place of that of step {found.step:,}")
        return model, made

    return both(found.checkpoint) if begun else read_checkpoint(found.folder, found.which, both, tell, found.checkpoint)
