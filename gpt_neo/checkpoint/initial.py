"""The first checkpoint of a new run, of the weights of another model: another run's, or a Hugging Face folder's."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shlex
from collections.abc import Collection, Iterator
from typing import Any, Optional

import numpy as np

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import BundleWriter
from gpt_neo.checkpoint.convert import match_names
from gpt_neo.checkpoint.custom import CUSTOM, listed_pairs
from gpt_neo.checkpoint.families import WITHOUT_EFFECT, pairs_of
from gpt_neo.checkpoint.fit import fit_checkpoint
from gpt_neo.checkpoint.folder import Found, find_latest, is_hf_folder, prefix_of, write_state
from gpt_neo.checkpoint.hf_config import read_config
from gpt_neo.checkpoint.hf_folder import HfFolder
from gpt_neo.checkpoint.hub import is_hub_name, model_folder_of
from gpt_neo.checkpoint.names import PREFIX, step_of
from gpt_neo.checkpoint.provenance import make_provenance, read_provenance, tokenizer_reference, write_provenance
from gpt_neo.checkpoint.tensors import blocks, check_finite
from gpt_neo.config.legacy import expand_attention_types
from gpt_neo.config.network import merged, variables_of
from gpt_neo.config.schema import ModelConfig, RunConfig
from gpt_neo.errors import CheckpointError
from gpt_neo.inputs.seeds import salt
from gpt_neo.storage import tensorflow as files

F32 = np.dtype(np.float32)
# Model keys in which a run may differ from the model that it starts from.
FREE = WITHOUT_EFFECT | {"embed_dropout", "attn_dropout", "res_dropout", "attention_types", "lora_rank", "lora_alpha"}
Values = Iterator[tuple[str, np.ndarray]]


def write_initial(
    source: str, folder: str, run: RunConfig, name: Optional[str] = None, about: Optional[str] = None
) -> list[str]:
    """Write `model.ckpt-0` of a run, without optimizer slots, which start at 0; new adapters are drawn.

    Args:
      name: what the source is called.
      about: the line on the weights, where theirs is of a model before the source.
      source: a run's folder, a checkpoint or a file of it, or a Hugging Face folder, here, in a bucket or on the hub.
      folder: of the run; it has no checkpoint.

    Returns:
      lines for the person.

    Raises:
      CheckpointError: there is no such model, or it is not one of this config: a table says why.
    """
    if files.is_remote(folder):
        raise CheckpointError(f"--init_from writes to local folders; {folder} is none: gpt-neo import-hf SRC {folder}")
    found = initial_checkpoint(source)
    with initial_values(source, run, name or prefix_of(source), found) as (values, line, notes):
        return [*notes, write_checkpoint(folder, run, values, about or line)]


def check_initial(source: str, run: RunConfig, doomed: Collection[str]) -> None:
    """See that `write_initial` will have a model, before the checkpoints of the run are deleted.

    Args:
      doomed: the files that will be deleted.

    Raises:
      CheckpointError: there is no such model, it is not one of this config, or it is among what is deleted.
    """
    found = initial_checkpoint(source)
    if found and os.path.realpath(found.path + ".index") in map(os.path.realpath, doomed):
        raise CheckpointError(
            f"--init_from {source!r} is one of the checkpoints that --new deletes: set another model_path, or copy it "
            "to another folder first"
        )
    with initial_values(source, run, source, found) as (values, _, _):
        next(values, None)


def initial_checkpoint(source: str) -> Optional[Found]:
    """The checkpoint that a source names, or the newest of its folder; None for a model of Hugging Face's.

    Raises:
      CheckpointError: it is none of them.
    """
    prefix = prefix_of(source)
    if is_checkpoint(prefix):
        return Found(prefix)
    if is_hub_name(prefix) or is_hf_folder(prefix):
        return None
    found = find_latest(prefix)
    if found is None:
        raise CheckpointError(
            f"--init_from {prefix!r}: no checkpoint and no Hugging Face folder; expected one of them, or ORG/NAME on "
            "the hub"
        )
    return found


@contextlib.contextmanager
def initial_values(
    source: str, run: RunConfig, name: str, found: Optional[Found]
) -> Iterator[tuple[Values, str, list[str]]]:
    """The weights that a source has for a run, one line on them, and lines for the person.

    Args:
      found: see `initial_checkpoint`.

    Raises:
      CheckpointError: it is not one of this config.
    """
    prefix = prefix_of(source)
    if found is None:
        with model_folder_of(prefix) as local:
            yield hf_values(local, run.model), f"weights of {name}", []
        return
    step = "" if found.path == prefix else f"step {step_of(found.path)} of "
    yield run_values(found.path, run.model), f"weights of {step}{name}", list(found.notes)


def is_checkpoint(source: str) -> bool:
    """Whether a path is that of a checkpoint, without suffix."""
    return files.exists(source + ".index")


def write_checkpoint(folder: str, run: RunConfig, values: Values, source: str) -> str:
    """Write the checkpoint and its record; a line for the person."""
    storage.make_folder(folder)
    prefix = os.path.join(folder, f"{PREFIX}0")
    writer = BundleWriter(prefix)
    try:
        for name, value in itertools.chain(values, adapters(run)):
            pieces = (check_finite(block, name, source) for block in blocks(value, F32))
            writer.add(name, value.shape, F32, pieces)
        writer.add("global_step", (), np.dtype(np.int64), [np.array(0, np.int64)])
        write_provenance(prefix, make_provenance(run, 0, tokenizer_reference(run), source))
        writer.finish()
    except BaseException:
        for suffix in (".data-00000-of-00001", ".json"):
            if os.path.exists(prefix + suffix):
                os.remove(prefix + suffix)
        raise
    write_state(folder, prefix)
    return f"{source}: the run starts from them at step 0"


def run_values(prefix: str, model: ModelConfig) -> Values:
    """The weights of a checkpoint of this program or of the 2021 one.

    Raises:
      CheckpointError: they are not those of the model, or its record has other keys.
    """
    record: dict = read_provenance(prefix) or {}
    if record:
        refuse_other(record["config"], model, prefix)
    shapes = {name: variable.shape for name, variable in variables_of(merged(model)).items()}
    fit = fit_checkpoint(prefix, shapes)
    return ((name, fit.value(name, F32)) for name in shapes)


def adapters(run: RunConfig) -> Values:
    """New adapters of a run: normally distributed, and zeros, which change nothing yet."""
    variables = variables_of(run.model)
    for name in variables.keys() - variables_of(merged(run.model)).keys():
        variable = variables[name]
        if variable.std is None:
            yield name, np.full(variable.shape, variable.value, np.float32)
        else:
            draws = np.random.default_rng(salt(run.training.seed or 1, name))
            yield name, draws.normal(0, variable.std, variable.shape).astype(np.float32)


def hf_values(source: str, model: ModelConfig) -> Values:
    """The weights of a Hugging Face folder. Raises: CheckpointError."""
    folder, where = HfFolder(source), os.path.join(source, "config.json")
    family, keys = read_config(folder.config, where)
    refuse_other(keys, model, where)
    model = merged(model)
    pairs = listed_pairs(folder.config, model, where) if family is CUSTOM else pairs_of(family, model)
    names = match_names(folder, family, pairs)
    for pair in pairs:
        yield from zip(pair.ours, pair.arrangement.split(folder.read(names[pair.theirs]), model.n_head))


def refuse_other(keys: dict, model: ModelConfig, where: str) -> None:
    """Refuse weights of a model that computes something else with them.

    Args:
      keys: its model keys, those at their default left out.

    Raises:
      CheckpointError: names the keys, with both values.
    """
    kinds, n_layer = keys.get("attention_types"), keys["n_layer"]
    if kinds is not None:
        kinds = expand_attention_types(kinds, n_layer, where) if len(kinds) != n_layer else tuple(kinds)
    differing = [("attention_types", kinds)] if kinds not in (None, model.attention_types) else []
    for field in dataclasses.fields(ModelConfig):
        if field.name in FREE:
            continue
        theirs = plain(keys.get(field.name, None if field.default is dataclasses.MISSING else field.default))
        if theirs != plain(getattr(model, field.name)):
            differing.append((field.name, theirs))
    if differing:
        wanted = " ".join("--set " + shlex.quote(f"{name}={json.dumps(value)}") for name, value in differing)
        raise CheckpointError(f"--init_from: {where} is of a model with other keys; its own are {wanted}")


def plain(value: Any) -> Any:
    """A key's value as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value))
