"""The tokenizer of a run, held against its model and its records."""

from __future__ import annotations

import contextlib
import glob
from typing import Optional

from gpt_neo import storage
from gpt_neo.config.records import text_dataset
from gpt_neo.config.schema import DatasetConfig, RunConfig
from gpt_neo.dataprep.manifest import manifests_of, refuse_several_tokenizers
from gpt_neo.errors import DataError
from gpt_neo.storage import tensorflow as files
from gpt_neo.tokenizer import Tokenizer, load_tokenizer


def dataset_tokenizer(dataset: DatasetConfig) -> Tokenizer:
    """The tokenizer of a dataset; GPT-2's unless it names one."""
    return load_tokenizer(dataset.tokenizer_path, eos_id=dataset.eos_id if dataset.tokenizer_path else None)


def run_tokenizer(run: RunConfig, folder: str) -> tuple[Tokenizer, Optional[int]]:
    """Tokenizer and end-of-text id of a run: of its dataset, else of its folder, else GPT-2's.

    Raises:
      DataError: they do not fit, or the model was imported and brought none.
    """
    found = text_dataset(run)
    if found:
        ref, dataset = found
        check_tokenizer(run, dataset, ref.name, texts=True)
        return dataset_tokenizer(dataset), dataset.eos_id
    with files.local_copy(storage.join(folder, "tokenizer.json")) as own:  # an imported model brings its own
        if not own:
            refuse_guess(folder)
        tokenizer = load_tokenizer(own, eos_id=run.model.eos_id if own else None)
    if own:
        tokenizer.name = storage.join(storage.local(folder), "tokenizer.json")
    return tokenizer, run.model.eos_id if own or run.model.eos_id is None else tokenizer.eos_id


def refuse_guess(folder: str) -> None:
    """Refuse GPT-2's tokenizer for a folder that has none.

    Raises:
      DataError: its model came from Hugging Face without a tokenizer.
    """
    if without_tokenizer(folder):
        raise DataError(
            f"{folder}: its model was imported without a tokenizer; put the model's own tokenizer.json there "
            "(GPT-2's would read and write other ids)"
        )


def without_tokenizer(folder: str) -> bool:
    """Whether the weights of a folder came from Hugging Face without a tokenizer: GPT-2's would be a guess."""
    for path in files.glob(storage.join(glob.escape(folder), "model.ckpt-*.json")):
        try:
            record = storage.parse_json(files.read_bytes(path), once=False)
        except ValueError as error:
            raise DataError(f"{path}: is damaged: {error}") from error
        if str(record.get("source", "")).startswith("Hugging Face") and record.get("tokenizer") is None:
            return True
    return False


def check_tokenizer(
    run: RunConfig, dataset: DatasetConfig, name: str, remote: bool = False, texts: bool = False
) -> None:
    """Hold model, tokenizer and manifest of the records against one another.

    Args:
      remote: also where the records are in a bucket; sampling needs none of it.
      texts: texts are read or written; training alone does without a tokenizer_path.

    Raises:
      DataError: the tokenizer has more ids than the model, or is another than the records were made with.
    """
    paths: list[str] = []
    for pattern in filter(None, (dataset.path, dataset.eval_path)):
        if remote or not storage.scheme_of(pattern):
            with contextlib.suppress(OSError):  # whoever reads them says so
                paths += files.glob(pattern)
    manifests = manifests_of(paths, files)  # not those of other sets in the same folder
    refuse_several_tokenizers(manifests, f"dataset {name!r}: its records")
    if not dataset.tokenizer_path and not texts:
        return
    tokenizer = dataset_tokenizer(dataset)
    if dataset.tokenizer_path and tokenizer.n_vocab > run.model.n_vocab:
        raise DataError(
            f"tokenizer {tokenizer.name} has {tokenizer.n_vocab} ids, the model n_vocab {run.model.n_vocab}: "
            "raise n_vocab or take the tokenizer that belongs to the model"
        )
    for path, found in manifests.items():
        told, how = found["tokenizer"], ""
        if told.get("fingerprint") in (None, tokenizer.fingerprint):
            if told.get("encoding_fingerprint") in (None, tokenizer.encoding_fingerprint):  # manifests once had none
                continue
            how = " in its merges, splitting or normalization"
        raise DataError(
            f"dataset {name!r}: {path} says its records were made with {told.get('path')}, which differs{how} from "
            + (f"tokenizer_path {tokenizer.name}" if dataset.tokenizer_path else "GPT-2's: set tokenizer_path")
        )
