"""What Hugging Face has no words for: our own names and keys, with a model file that transformers runs; and back.

A folder's model file is never run on the way back: weights and keys are read, and what has to be computed is computed
by the file of this version.
"""

from __future__ import annotations

import dataclasses
import filecmp
import json
import math
import os
import shutil

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.families import Family, Pair
from gpt_neo.checkpoint.layouts import SAME
from gpt_neo.checkpoint.names import is_slot
from gpt_neo.config.estimate import count_parameters
from gpt_neo.config.schema import GlaParams, ModelConfig, MoeConfig
from gpt_neo.errors import CheckpointError

FOLDER = os.path.join(os.path.dirname(__file__), "custom_code")
CUSTOM_TYPE = "gpt_neo_mtf"
FILE = "modeling_gpt_neo_mtf"
MODEL = "GPTNeoMTFForCausalLM"
AUTO_MAP = {"AutoConfig": f"{FILE}.GPTNeoMTFConfig", "AutoModelForCausalLM": f"{FILE}.{MODEL}"}
# As a family: weights keep their names, so that there are no rules.
CUSTOM = Family(
    name=CUSTOM_TYPE,
    architecture=MODEL,
    prefix="",
    sizes={},
    fixed={},
    rules=(),
    activation="",
    epsilon="",
    inner="",
    dropouts={},
    head="lm_head",
    tied=False,
)


def own_pairs(checkpoint: str, model: ModelConfig) -> list[Pair]:
    """Every weight of a checkpoint under its own name, slots left out, padding of the vocabulary cut off.

    Raises:
      CheckpointError: the model reads in both directions, so it generates nothing.
    """
    if not model.causal:
        raise CheckpointError("causal is False: --custom_code exports models that generate, token after token")
    pairs = []
    for name, entry in sorted(Bundle(checkpoint).entries.items()):
        if name.startswith("gpt2/") and not is_slot(name):
            shape = (model.n_vocab, *entry.shape[1:]) if name == "gpt2/wte" else entry.shape
            pairs.append(Pair((name,), shape, name, shape, SAME))
    return pairs


def custom_config(model: ModelConfig, pairs: list[Pair], dtype: str) -> dict:
    """config.json: every model key, the shapes, and what transformers wants to find by its own names."""
    return {
        "model_type": CUSTOM_TYPE,
        "architectures": [MODEL],
        "auto_map": AUTO_MAP,
        "gpt_neo": dataclasses.asdict(model),
        "variables": {pair.theirs: list(pair.their_shape) for pair in pairs},
        "vocab_size": model.n_vocab,
        "max_position_embeddings": model.n_ctx,
        "hidden_size": model.n_embd,
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "tie_word_embeddings": False,
        "bos_token_id": model.eos_id,
        "eos_token_id": model.eos_id,
        "use_cache": False,
        "torch_dtype": dtype,
    }


def copy_code(folder: str) -> None:
    """Put the model file beside the weights."""
    shutil.copyfile(os.path.join(FOLDER, f"{FILE}.py"), os.path.join(folder, f"{FILE}.py"))


def own_keys(theirs: dict, where: str) -> dict:
    """Our model keys of a config that `custom_config` has written.

    Raises:
      CheckpointError: it is not whole, or has keys of a later version.
    """
    keys, variables = theirs.get("gpt_neo"), theirs.get("variables")
    if not isinstance(keys, dict) or not isinstance(variables, dict):
        raise CheckpointError(
            f"{where}: model_type is {CUSTOM_TYPE!r}, and 'gpt_neo' or 'variables' is not an object; "
            "expected a folder of export-hf --custom_code"
        )
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    for name in keys:
        if name not in defaults:
            raise CheckpointError(f"{where}: gpt_neo has the key {name!r}, which this version does not know")
    plain = {
        name: dataclasses.asdict(value) if isinstance(value, (GlaParams, MoeConfig)) else value
        for name, value in defaults.items()
        if value is not dataclasses.MISSING
    }
    plain = json.loads(json.dumps(plain))  # tuples are lists in JSON
    moe = keys.get("moe_params")
    if isinstance(moe, dict) and "moe_dropout_rate" not in moe:
        # Written when the places in evaluation had no effect: what it says of them is no one's choice.
        keys = {**keys, "moe_params": {**moe, "moe_capacity_factor_eval": None, "moe_dropout_rate": 0.0}}
    return {name: value for name, value in keys.items() if name not in plain or value != plain[name]}


def listed_pairs(theirs: dict, model: ModelConfig, where: str) -> list[Pair]:
    """The weights that the config of such a folder lists.

    Raises:
      CheckpointError: they are not those of the model.
    """
    pairs = []
    for name, sizes in theirs["variables"].items():
        if (
            not name.startswith("gpt2/")
            or is_slot(name)
            or not isinstance(sizes, list)
            or not all(type(size) is int and size > 0 for size in sizes)
        ):
            raise CheckpointError(f"{where}: variables has {name!r}: {sizes!r}, which is no weight with its sizes")
        pairs.append(Pair((name,), tuple(sizes), name, tuple(sizes), SAME))
    held, wanted = sum(math.prod(pair.shape) for pair in pairs), count_parameters(model)
    if held != wanted:
        raise CheckpointError(f"{where}: variables hold {held:,} numbers, the model of its keys has {wanted:,}")
    return pairs


def code_note(folder: str) -> list[str]:
    """A line for the person where a folder's model file is not that of this version."""
    path = os.path.join(folder, f"{FILE}.py")
    if not os.path.isfile(path) or filecmp.cmp(path, os.path.join(FOLDER, f"{FILE}.py"), shallow=False):
        return []
    return [f"{path} is not the model file of this version; it was not run, this version's was"]


def refuse_foreign_code(theirs: dict, where: str) -> None:
    """Raise CheckpointError for a folder that brings code of its own."""
    named = theirs.get("auto_map") or {}
    own = theirs.get("model_type") == CUSTOM_TYPE
    for key, value in named.items() if isinstance(named, dict) else [("auto_map", named)]:
        # A folder from a hub says whose file it is: "name/repository--file.class".
        if not (own and isinstance(value, str) and value.rpartition("--")[2] == AUTO_MAP.get(key)):
            raise CheckpointError(
                f"{where}: auto_map names code of the folder's own ({value!r}), which is never run; "
                "what it computes is not known"
            )
