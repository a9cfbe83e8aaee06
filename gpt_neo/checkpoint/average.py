"""The mean of several checkpoints of one run, which often does better than the last of them (arXiv 1803.05407)."""

from __future__ import annotations

import dataclasses
import glob
import os
import shutil
from collections.abc import Iterator, Sequence

import numpy as np

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import Bundle, BundleWriter
from gpt_neo.checkpoint.fit import STEP, mismatch_table, scale_of
from gpt_neo.checkpoint.folder import write_state
from gpt_neo.checkpoint.hf_folder import copy_tokenizer_files
from gpt_neo.checkpoint.initial import FREE
from gpt_neo.checkpoint.names import PREFIX, is_slot, step_of
from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.checkpoint.remote import small_files
from gpt_neo.checkpoint.staging import staged_folder
from gpt_neo.checkpoint.tensors import blocks, check_finite, is_float
from gpt_neo.config.loader import RUN
from gpt_neo.config.network import SCALE
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError

# Model keys that say what is computed with the weights. Where n_ctx is one, the shape of the positions tells.
COMPUTED = {field.name for field in dataclasses.fields(ModelConfig)} - FREE - {"n_ctx"}
DATASETS = "dataset_configs"  # of a run that finetune made, beside its config


def average_checkpoints(sources: Sequence[str], destination: str) -> str:
    """Write the mean of the weights, taken in float64, as a folder with one checkpoint of the newest step.

    Optimizer slots are left out: they start at 0 when training goes on.

    Returns:
      path of the checkpoint, without suffix.

    Raises:
      CheckpointError: fewer than two, one of them twice, not the same variables, models that compute something else
        with them or were trained on ids of another tokenizer, adapters that began apart, damaged, or the disk is full.
    """
    check_once(sources)
    bundles = sorted((Bundle(path) for path in sources), key=lambda bundle: step_of(bundle.path))
    if len(sources) < 2:
        raise CheckpointError(f"averaging takes at least two checkpoints; given: {', '.join(sources) or 'none'}")
    newest = bundles[-1]
    names = [name for name in newest.names() if not is_slot(name) and name != STEP]
    records = [read_provenance(bundle.path) or {} for bundle in bundles]
    for other, record in zip(bundles[:-1], records):
        check_alike(newest, other, names)
        check_keys(newest, other, records[-1], record)
        check_tokenizers(newest, other, records[-1], record)
        check_adapters(newest, other, records[-1], record)
    step = step_of(newest.path)
    with staged_folder(destination) as staging:
        prefix = os.path.join(staging, f"{PREFIX}{step}")
        writer = BundleWriter(prefix)
        for name in names:
            dtype = newest.dtype(name)
            pieces = mean_blocks(bundles, name) if is_float(dtype) else blocks(newest.read(name))
            writer.add(name, newest.shape(name), dtype, pieces)
        writer.add(STEP, (), np.dtype(np.int64), [np.array(step, np.int64)])
        writer.finish()
        if records[-1]:
            steps = ", ".join(str(step_of(bundle.path)) for bundle in bundles)
            storage.write_json(prefix + ".json", {**records[-1], "source": f"mean of steps {steps}"})
        with small_files(os.path.dirname(newest.path)) as beside:
            copy_beside(beside, staging)
        write_state(staging, prefix)
    return os.path.join(destination, os.path.basename(prefix))


def copy_beside(source: str, destination: str) -> None:
    """Copy what makes a run of a folder: its config, that of its datasets, its tokenizer and chat template.

    The config's model_path is left out: it would lead back to the checkpoints that were averaged.

    Raises:
      CheckpointError: the config is no JSON.
    """
    copy_tokenizer_files(source, destination)
    if os.path.isdir(os.path.join(source, DATASETS)):
        shutil.copytree(os.path.join(source, DATASETS), os.path.join(destination, DATASETS))
        for path in glob.glob(os.path.join(glob.escape(destination), DATASETS, "*.json")):
            keep_records(path, os.path.abspath(source))
    config = os.path.join(source, "config.json")
    if os.path.isfile(config):
        kept = storage.read_json(config, CheckpointError)
        kept.pop("model_path", None)
        storage.write_json(os.path.join(destination, "config.json"), kept)


def keep_records(path: str, folder: str) -> None:
    """Let a copied dataset config name the records where they lie, in the folder of the run that it was copied from.

    Raises:
      CheckpointError: it is no JSON.
    """
    raw = storage.read_json(path, CheckpointError)
    for key in ("path", "eval_path"):
        if str(raw.get(key)).startswith(RUN):
            raw[key] = glob.escape(folder) + raw[key][len(RUN) :]
    storage.write_json(path, raw)


def check_once(sources: Sequence[str]) -> None:
    """Refuse a checkpoint that is given twice: it would count twice in the mean.

    Raises:
      CheckpointError: names it.
    """
    seen: dict[object, str] = {}
    for path in sources:
        file: object = path
        if os.path.exists(f"{path}.index"):  # best/ has hard links
            about = os.stat(f"{path}.index")
            file = about.st_dev, about.st_ino
        if file in seen:
            raise CheckpointError(f"{seen[file]}, {path}: one checkpoint, which would count twice in the mean")
        seen[file] = path


def check_alike(one: Bundle, other: Bundle, names: Sequence[str]) -> None:
    """Raise CheckpointError with a table of what differs."""
    rows = [
        (name, str(list(one.shape(name))), str(list(other.shape(name))) if name in other.entries else "missing", "")
        for name in names
        if name not in other.entries or other.shape(name) != one.shape(name)
    ]
    rows += [
        (name, "nothing", str(list(other.shape(name))), "")
        for name in other.names()
        if name not in one.entries and not is_slot(name) and name != STEP
    ]
    if rows:
        text = mismatch_table(other.path, rows).replace("the config", one.path)
        raise CheckpointError(text.replace("nothing was loaded", "nothing was written"))


def check_keys(one: Bundle, other: Bundle, *records: dict) -> None:
    """Refuse models of the same shapes that compute something else with them, as far as both have a record.

    Args:
      records: of one and of the other, empty where there is none.

    Raises:
      CheckpointError: names the keys, with both values.
    """
    ours, theirs = [record.get("config") or {} for record in records]
    keys = sorted(key for key in COMPUTED if ours.get(key) != theirs.get(key)) if all(records) else []
    if keys:
        told = [", ".join(f"{key} {config.get(key, 'at its default')}" for key in keys) for config in (theirs, ours)]
        raise CheckpointError(
            f"{other.path} is of a model with other keys than {one.path}, whose mean with it is no model: {told[0]}, "
            f"and {told[1]}"
        )


def check_tokenizers(one: Bundle, other: Bundle, *records: dict) -> None:
    """Refuse models whose ids stand for other texts, as far as both have a record of their tokenizer. Arguments as
    `check_keys`.

    Raises:
      CheckpointError: names both tokenizers.
    """
    ours, theirs = [record.get("tokenizer") or {} for record in records]
    if None not in (marks := [about.get("fingerprint") for about in (ours, theirs)]) and marks[0] != marks[1]:
        raise CheckpointError(
            f"{other.path} is of a model with another tokenizer than {one.path}, whose mean with it is no model: "
            f"{theirs.get('path')}, and {ours.get('path')}"
        )


def check_adapters(one: Bundle, other: Bundle, *records: dict) -> None:
    """Refuse adapters of runs that began apart: many pairs of factors have one product, so that the mean of factors
    says something of the mean of products only where the factors have come from the same ones. Arguments as
    `check_keys`.

    Raises:
      CheckpointError: names what differs.
    """
    if SCALE not in one.entries:
        return
    values = {"lora_scale": [scale_of(bundle) for bundle in (one, other)]}
    if os.path.dirname(one.path) != os.path.dirname(other.path):  # else a run that went on with another seed
        values["seed"] = [(record.get("random") or {}).get("seed") or 0 for record in records]
    different = [f"{key} {b:g} and {a:g}" for key, (a, b) in values.items() if a != b]
    if different:
        raise CheckpointError(
            f"{other.path}, {one.path}: their adapters are of different runs ({', '.join(different)}), and the mean of "
            "factors is not that of what they add: average checkpoints of one run, or merge the adapters of each first "
            "(gpt-neo export-hf, then gpt-neo import-hf)"
        )


def mean_blocks(bundles: Sequence[Bundle], name: str) -> Iterator[np.ndarray]:
    """Blocks of the mean of a tensor."""
    dtype = bundles[-1].dtype(name)
    arrays = [bundle.read(name) for bundle in bundles]
    for parts in zip(*(blocks(array, np.float64) for array in arrays)):  # of one type, so cut alike
        for part, bundle in zip(parts, bundles):
            check_finite(part, name, bundle.path)
        yield (np.add.reduce(parts) / len(parts)).astype(np.float32).astype(dtype)
