"""What a checkpoint was made of: `model.ckpt-<step>.json` with config, tokenizer, data position, seed and versions.

The readers of the legacy program look at `.index` and `.data-*` only.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import file_size, read_bytes
from gpt_neo.checkpoint.folder import checkpoints_of
from gpt_neo.config.records import text_dataset
from gpt_neo.config.schema import SECTIONS, GlaParams, MoeConfig, RunConfig
from gpt_neo.errors import CheckpointError
from gpt_neo.storage import tensorflow as files

FORMAT = 1
PACKAGES = ("gpt_neo", "tensorflow", "mesh-tensorflow", "numpy")


def config_keys(run: RunConfig) -> dict:
    """The flat keys of a run, as a config file has them; those at their default are left out."""
    keys: dict = {}
    for name, section in SECTIONS.items():
        values = getattr(run, name)
        for field in dataclasses.fields(section):
            value = getattr(values, field.name)
            if value != field.default:
                keys[field.name] = dataclasses.asdict(value) if isinstance(value, (GlaParams, MoeConfig)) else value
    keys["datasets"] = [dataclasses.astuple(ref) for ref, _ in run.datasets]
    return json.loads(json.dumps(keys))


def make_provenance(run: RunConfig, step: int, tokenizer: Optional[dict] = None, source: Optional[str] = None) -> dict:
    """The record of a checkpoint.

    Args:
      tokenizer: what `tokenizer_reference` gives.
      source: where weights that were not trained here come from.
    """
    batch = run.training.train_batch_size
    return {
        "format": FORMAT,
        "step": step,
        "config": config_keys(run),
        "tokenizer": tokenizer,
        # The data position is a function of the step: see gpt_neo/inputs/position.py.
        "data": {
            "records_read": step * batch,
            "tokens_read": step * run.tokens_per_step,
            "train_batch_size": batch,
            "datasets": {ref.name: data.path for ref, data in run.datasets},
            "eval_paths": {ref.name: data.eval_path for ref, data in run.datasets if data.eval_path},
            "shuffle_input_filenames": run.training.shuffle_input_filenames,
        },
        "random": {"seed": run.training.seed or 1},
        "source": source,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def version(package: str) -> Optional[str]:
    """Installed version of a package, None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def tokenizer_reference(run: RunConfig) -> Optional[dict]:
    """Name, ids and fingerprint of the tokenizer of a run's datasets; None where there is none to tell of."""
    from gpt_neo.tokenizer import load_tokenizer

    found = text_dataset(run)
    if found is None:
        return None
    _, data = found
    if not data.tokenizer_path:
        return {"path": None, "eos_id": data.eos_id}
    tokenizer = load_tokenizer(data.tokenizer_path, eos_id=data.eos_id)
    return {
        "path": data.tokenizer_path,
        "fingerprint": tokenizer.fingerprint,
        "n_vocab": tokenizer.n_vocab,
        "eos_id": data.eos_id,
        "padding_id": data.padding_id,
    }


def write_record(prefix: str, record: dict) -> None:
    """Write the record of a checkpoint."""
    files.write_text(prefix + ".json", json.dumps(record, indent=2) + "\n")


def write_provenance(prefix: str, record: dict) -> None:
    """Write the record of a checkpoint, and drop those whose checkpoint the keep rules have deleted."""
    write_record(prefix, record)
    drop_provenances(os.path.dirname(prefix), os.path.basename(prefix))


def drop_provenances(folder: str, coming: str = "") -> None:
    """Remove records that have no checkpoint. coming: the name of one that is about to be written."""
    kept = {os.path.basename(path) for path in checkpoints_of(folder)} | {coming}
    for name in files.names(folder):
        stem, extension = os.path.splitext(name)
        if extension == ".json" and stem.startswith("model.ckpt-") and stem not in kept:
            files.delete(os.path.join(folder, name))


def read_provenance(prefix: str) -> Optional[dict]:
    """The record of a checkpoint; None for one of the legacy program.

    Raises:
      CheckpointError: it is damaged, or of a later version.
    """
    path = prefix + ".json"
    if file_size(path) is None:
        return None
    try:
        record: Any = storage.parse_json(read_bytes(path), once=False)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    number = record.get("format", 0) if isinstance(record, dict) else None
    if type(number) is not int:
        raise CheckpointError(f"{path}: damaged: expected an object with the number of a format")
    if number > FORMAT:
        raise CheckpointError(f"{path}: format {number} is later than {FORMAT}, the last one known here")
    return record
