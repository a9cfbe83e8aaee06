"""Hugging Face folders to ours and back, tensor by tensor: memory for the largest one, whatever the model."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Callable, Optional

import numpy as np

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import BundleWriter
from gpt_neo.checkpoint.custom import CUSTOM, copy_code, custom_config, listed_pairs, own_pairs
from gpt_neo.checkpoint.families import GPT2, Family, Pair, family_of, is_ignored, pairs_of
from gpt_neo.checkpoint.fit import Fit, fit_checkpoint, mismatch_table
from gpt_neo.checkpoint.folder import BEST, write_state
from gpt_neo.checkpoint.hf_config import read_config, their_config
from gpt_neo.checkpoint.hf_folder import HfFolder, copy_template
from gpt_neo.checkpoint.hf_tokens import begin_id, copy_tokenizer, is_row, special_ids
from gpt_neo.checkpoint.names import PREFIX
from gpt_neo.checkpoint.provenance import make_provenance
from gpt_neo.checkpoint.recast import Recast
from gpt_neo.checkpoint.remote import small_files
from gpt_neo.checkpoint.safetensors import write_safetensors
from gpt_neo.checkpoint.staging import staged_folder
from gpt_neo.checkpoint.tensors import BFLOAT16, FLOATS, blocks, check_finite
from gpt_neo.config import load_config
from gpt_neo.config.loader import build_sections
from gpt_neo.config.network import variables_of
from gpt_neo.config.optimizers import slots_of
from gpt_neo.config.schema import ModelConfig, RunConfig
from gpt_neo.errors import CheckpointError, ConfigError
from gpt_neo.inputs.tokenizers import without_tokenizer
from gpt_neo.tokenizer import load_tokenizer, save_tokenizer

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": BFLOAT16,
    "float16": np.dtype(np.float16),  # on the way out alone: nothing here computes in it
}
GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")  # keys of generation_config.json
SHARD = 5_000_000_000  # bytes of a weight file at most, unless one tensor is larger
# What a config needs besides the model; a fine-tuning run of moderate size.
TRAINING = {
    "lr": 1e-5,
    "lr_decay": "cosine",
    "warmup_steps": 100,
    "beta1": 0.9,
    "beta2": 0.95,
    "weight_decay": 0.1,
    "gradient_clipping": 1.0,
    "train_batch_size": 8,
}
ADDED_STEPS = 1000
Check = Callable[[str], None]  # looks at the finished folder before it is put in its place


def import_hf(
    source: str,
    destination: str,
    dtype: Optional[str] = None,
    step: int = 0,
    zero_slots: bool = False,
    overrides: Optional[dict] = None,
    check: Check = lambda folder: None,
) -> RunConfig:
    """Make a run folder (config.json, model.ckpt-<step>, its record, tokenizer files) of a Hugging Face folder.

    Also of one that `export_hf` wrote with `custom_code`.

    Args:
      dtype: float32 or bfloat16; if absent bfloat16 where every weight of the source has it, else float32, which
        holds each number of the others.
      step: what global_step says; the data position follows from it.
      zero_slots: write the optimizer's slots, as zeros that take no disk; without them they start at 0 all the same.
      overrides: keys of the config that is written.

    Raises:
      CheckpointError: the source is damaged, holds NaN or does not match its config, or the disk is full; the
        destination is as it was then.
    """
    folder = HfFolder(source)
    where = os.path.join(source, "config.json")
    family, keys = read_config(folder.config, where)
    own = family is CUSTOM
    types = weight_types(folder, family)
    precision = dtype or holding(types)
    ids, notes = ({}, []) if own else special_ids(source, folder.config, keys["n_vocab"])
    raw = {
        **keys,
        **ids,
        "precision": precision,
        **TRAINING,
        "train_steps": step + ADDED_STEPS,
        "datasets": [],
        **(overrides or {}),
    }
    with staged_folder(destination) as staging:
        config = os.path.join(staging, "config.json")
        storage.write_json(config, raw)
        run = config_of(config, where)
        pairs = listed_pairs(folder.config, run.model, where) if own else pairs_of(family, run.model)
        prefix = os.path.join(staging, f"{PREFIX}{step}")
        writer = BundleWriter(prefix)
        add_weights(writer, folder, family, pairs, run.model.n_head, DTYPES[precision])
        finish_bundle(writer, run, step, zero_slots)
        notes += [*folder.notes, *copy_tokenizer(source, staging, run.model.n_vocab)]
        record = make_provenance(run, step, tokenizer_of_folder(staging, run), f"Hugging Face {family.name}")
        storage.write_json(prefix + ".json", record)
        write_state(staging, prefix)
        check(staging)
    if dtype is None and BFLOAT16 in types and types != {BFLOAT16}:
        notes.append("some weights are bfloat16, others not: all become float32; --dtype bfloat16 rounds these")
    return dataclasses.replace(run, notes=(*notes, *run.notes))


def config_before(source: str, overrides: dict) -> ModelConfig:
    """The model that an import of a Hugging Face folder would make, by its config alone.

    Args:
      overrides: as of `import_hf`.

    Raises:
      CheckpointError, ConfigError: it is none of ours.
    """
    where = os.path.join(source, "config.json")
    _, keys = read_config(storage.read_json(where, CheckpointError), where)
    return build_sections({**keys, **TRAINING, "train_steps": ADDED_STEPS, **overrides, "datasets": []}, where)["model"]


def add_weights(
    writer: BundleWriter, folder: HfFolder, family: Family, pairs: Sequence[Pair], n_head: int, dtype: np.dtype
) -> None:
    """Add the weights of a Hugging Face folder to a checkpoint, in our arrangement.

    Raises:
      CheckpointError: see `match_names` and `finite_blocks`.
    """
    names = match_names(folder, family, pairs)
    for pair in pairs:
        parts = pair.arrangement.split(folder.read(names[pair.theirs]), n_head)
        for name, part in zip(pair.ours, parts):
            writer.add(name, pair.shape, dtype, finite_blocks(part, dtype, name, folder.path))


def weight_types(folder: HfFolder, family: Family) -> set:
    """The types of a folder's weights; masks and tables that older versions saved are none."""
    names = [name for name in folder.names() if not is_ignored(family, name.removeprefix(family.prefix))]
    return {folder.dtype(name) for name in names}


def holding(types: set) -> str:
    """The type that holds every number of weights of these."""
    return "bfloat16" if types == {BFLOAT16} else "float32"


def finish_bundle(writer: BundleWriter, run: RunConfig, step: int, zero_slots: bool) -> None:
    """Write what a checkpoint has beside weights: the optimizer's slots, if asked for, and the step."""
    for name, shape in slots_of(variables_of(run.model) if zero_slots else {}, run.optimizer).items():
        writer.add_zeros(name, shape, np.dtype(np.float32))
    writer.add("global_step", (), np.dtype(np.int64), [np.array(step, np.int64)])
    writer.finish()


def finite_blocks(array: np.ndarray, dtype: np.dtype, name: str, path: str) -> Iterator[np.ndarray]:
    """Blocks of a tensor in another type, none of them with NaN.

    Raises:
      CheckpointError: names the tensor that has some, or numbers that the type has no room for.
    """
    for block in blocks(array):
        check_finite(block, name, path)
        with np.errstate(over="ignore"):
            cast = block.astype(dtype, copy=False)
        if not np.isfinite(cast).all():
            raise CheckpointError(
                f"{path}: tensor {name} has numbers beyond {np.finfo(np.float16).max:g}, the largest of float16; "
                "bfloat16 has room for them"
            )
        yield cast


def match_names(folder: HfFolder, family: Family, pairs: Sequence[Pair]) -> dict[str, str]:
    """The source's own name of every tensor, with or without the family's prefix.

    Raises:
      CheckpointError: a table of tensors that are missing, unknown, or of another shape.
    """
    known: dict[str, str] = {}
    for name in folder.names():
        short = name.removeprefix(family.prefix)
        # transformers 5 calls every head lm_head inside, and may save it so.
        known[short.replace("lm_head.", f"{family.head}.") if short.startswith("lm_head.") else short] = name
    result, rows = {}, []
    own_head = any(pair.theirs == f"{family.head}.weight" for pair in pairs)
    if own_head and folder.config.get("tie_word_embeddings", family.tied):
        tie_head(folder, known, pairs[0].theirs.removeprefix(family.prefix), f"{family.head}.weight")
    for pair in pairs:
        held = known.pop(pair.theirs.removeprefix(family.prefix), None)
        if held is None:
            rows.append((pair.theirs, str(list(pair.their_shape)), "missing", ""))
        elif folder.shape(held) != pair.their_shape:
            rows.append((pair.theirs, str(list(pair.their_shape)), str(list(folder.shape(held))), ""))
        elif folder.dtype(held) not in FLOATS:
            rows.append((pair.theirs, "floats", str(folder.dtype(held)), ""))
        else:
            result[pair.theirs] = held
    if f"{family.head}.weight" in known and pairs[0].theirs in result:
        tie_head(folder, known, pairs[0].theirs.removeprefix(family.prefix), f"{family.head}.weight", result)
        del known[f"{family.head}.weight"]
    rows += [
        (name, "nothing", str(list(folder.shape(name))), "")
        for short, name in sorted(known.items())
        if not is_ignored(family, short)
    ]
    if rows:
        raise CheckpointError(mismatch_table(folder.path, rows).replace("nothing was loaded", "nothing was written"))
    return result


def tie_head(folder: HfFolder, known: dict, table: str, head: str, matched: Optional[dict] = None) -> None:
    """Let a head that config.json ties be the embedding table; one that is stored besides has to equal it.

    Raises:
      CheckpointError: it differs.
    """
    wte = known.get(table) or next(iter((matched or {}).values()), None)
    stored = known.get(head)
    if stored and wte and not np.array_equal(folder.read(stored), folder.read(wte)):
        raise CheckpointError(
            f"{folder.path}: {stored} differs from the embedding table, and config.json says that "
            "they are one; set tie_word_embeddings to false there"
        )
    if wte:
        known[head] = wte


def config_of(path: str, where: str) -> RunConfig:
    """The config that was just written; its mistakes are told of the file that they come from.

    Raises:
      ConfigError: it is none of a run.
    """
    try:
        return load_config(path)
    except ConfigError as error:
        raise ConfigError(str(error).replace(path, where)) from error


def tokenizer_of_folder(folder: str, run: RunConfig) -> Optional[dict]:
    """Reference to the tokenizer.json of a folder, for the record."""
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.isfile(path):
        return None
    tokenizer = load_tokenizer(path, eos_id=run.model.eos_id)
    return {
        "path": "tokenizer.json",
        "fingerprint": tokenizer.fingerprint,
        "n_vocab": tokenizer.n_vocab,
        "eos_id": run.model.eos_id,
    }


def export_hf(
    run: RunConfig,
    checkpoint: str,
    destination: str,
    dtype: Optional[str] = None,
    shard: int = SHARD,
    tokenizer: Optional[str] = None,
    check: Check = lambda folder: None,
    custom_code: bool = False,
    recast: Optional[Recast] = None,
) -> str:
    """Make a folder that AutoModelForCausalLM and AutoTokenizer load, of a checkpoint.

    Args:
      dtype: float32, bfloat16 or float16; if absent bfloat16 where every weight of the checkpoint has it, else
        float32.
      shard: bytes per weight file at most.
      tokenizer: a tokenizer.json; else the files beside the checkpoint, else GPT-2's if the vocabulary is that large.
      custom_code: with a model file of ours for `trust_remote_code`, which knows every option.
      recast: what becomes of the model on the way, see `as_gpt2`.

    Returns:
      the name of the model's class.

    Raises:
      CheckpointError: no family has words for the model (the reasons are listed), the checkpoint does not fit its
        config, holds NaN, or the disk is full; the destination is as it was then.
    """
    recast = recast or Recast(run.model, run.model)
    pairs, describe = in_their_words(recast, custom_code)
    held = variables_of(run.model)  # a recast model may have more
    fit = fit_checkpoint(checkpoint, {name: pair.shape for pair in pairs for name in pair.ours if name in held})
    types = {fit.bundle.dtype(name) for name in fit.shapes}
    stored = dtype or holding(types)
    config = describe(stored)
    with staged_folder(destination) as staging:
        write_weights(staging, pairs, fit, DTYPES[stored], shard, recast)
        if custom_code:
            copy_code(staging)
        folder = os.path.dirname(checkpoint)
        with small_files(os.path.dirname(folder) if os.path.basename(folder) == BEST else folder) as beside:
            export_tokenizer(staging, beside, run, tokenizer)
        begin = begin_id(staging)
        config = {**config, **({"bos_token_id": begin} if is_row(begin, recast.model.n_vocab) else {})}
        padding = recast.model.padding_id  # 0, the default, may mean that nobody named one
        if padding and is_row(padding, recast.model.n_vocab):  # 50257 of 50,257 in configs of the 2021 program
            config["pad_token_id"] = padding
        storage.write_json(os.path.join(staging, "config.json"), config)
        storage.write_json(
            os.path.join(staging, "generation_config.json"),
            {name: config[name] for name in GENERATION if name in config},
        )
        check(staging)
    return config["architectures"][0]


def in_their_words(recast: Recast, custom_code: bool) -> tuple[list[Pair], Callable[[str], dict]]:
    """The tensors of a model, and its config.json as a function of their type.

    Raises:
      CheckpointError: no family has words for it, and our own file is not asked for, or cannot compute it.
    """
    model = recast.model
    if custom_code:
        pairs = own_pairs(model)
        return pairs, functools.partial(custom_config, model, pairs)
    family, reasons = family_of(model) if model == recast.source else (GPT2, [])
    if family is None:
        nowhere = f"Hugging Face has no model for this config: {'; '.join(reasons)}"
        try:
            own_pairs(model)
        except CheckpointError as error:
            raise CheckpointError(f"{nowhere}; nor has --custom_code: {error}") from error
        raise CheckpointError(f"{nowhere}. --custom_code exports it with a model file of its own")
    return pairs_of(family, model), functools.partial(their_config, family, model, model.eos_id)


def write_weights(folder: str, pairs: Sequence[Pair], fit: Fit, dtype: np.dtype, shard: int, recast: Recast) -> None:
    """Write model.safetensors, or several files and their index."""
    by_name = {pair.theirs: pair for pair in pairs}
    groups: list[dict] = [{}]
    held = total = 0
    for name, pair in by_name.items():
        size = int(np.prod(pair.their_shape, dtype=np.int64)) * dtype.itemsize
        if groups[-1] and held + size > shard:
            groups.append({})
            held = 0
        groups[-1][name] = (dtype, pair.their_shape)
        held, total = held + size, total + size
    count = len(groups)
    places = {}
    for number, group in enumerate(groups, 1):
        file = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        pieces = {name: their_blocks(by_name[name], fit, dtype, recast) for name in group}
        write_safetensors(os.path.join(folder, file), group, pieces)
        places.update(dict.fromkeys(group, file))
    if count > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        storage.write_json(os.path.join(folder, "model.safetensors.index.json"), index)


def their_blocks(pair: Pair, fit: Fit, dtype: np.dtype, recast: Recast) -> Iterator[np.ndarray]:
    """Blocks of one of their tensors; ours are read when the first is asked for."""
    ours = [recast.value(fit, name, pair.shape) for name in pair.ours]
    yield from finite_blocks(pair.arrangement.join(ours, recast.model.n_head), dtype, pair.ours[0], fit.bundle.path)


def export_tokenizer(staging: str, beside: str, run: RunConfig, given: Optional[str]) -> None:
    """Write tokenizer files: those beside the checkpoint as they are, else ones made from a tokenizer.json; the chat
    template that lies beside it in any case."""
    if given is None and os.path.isfile(os.path.join(beside, "tokenizer_config.json")):
        copy_tokenizer(beside, staging, run.model.n_vocab)
        return
    path = given or next((data.tokenizer_path for _, data in run.datasets), None)
    if path is None and os.path.isfile(os.path.join(beside, "tokenizer.json")):
        path = os.path.join(beside, "tokenizer.json")
    if path is None and (run.model.n_vocab < 50257 or without_tokenizer(beside)):
        return  # a model of another tokenizer, which nothing names
    tokenizer = load_tokenizer(path, eos_id=run.model.eos_id if path else None)
    if given is None and tokenizer.n_vocab > run.model.n_vocab:
        raise CheckpointError(
            f"tokenizer {tokenizer.name} has {tokenizer.n_vocab} ids, the model {run.model.n_vocab}: "
            "--tokenizer names the tokenizer.json that belongs to it"
        )
    backend = tokenizer.backend
    # A token of texts that ends one (a newline) is named by config.json alone: as a special one it would be no text.
    special = run.model.eos_id in tokenizer.special_ids
    end = backend.id_to_token(run.model.eos_id) if special else None
    if end is not None:
        backend.add_special_tokens([end])
    save_tokenizer(backend, os.path.join(staging, "tokenizer.json"))
    copy_template(beside, staging)
    storage.write_json(
        os.path.join(staging, "tokenizer_config.json"),
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **({} if end is None else {"bos_token": end, "eos_token": end, "unk_token": end}),
            "model_max_length": run.model.n_ctx,
            "clean_up_tokenization_spaces": False,
        },
    )
