"""What Hugging Face has no words for: our own names and keys, with a model file that transformers runs; and back.

A folder's model file is never run on the way back: weights and keys are read, and what has to be computed is computed
by the file of this version.
"""

from __future__ import annotations

import dataclasses
import filecmp
import json
import os
import re
import shutil

from gpt_neo.checkpoint.arrangements import SAME
from gpt_neo.checkpoint.families import Family, Pair
from gpt_neo.config.network import variables_of
from gpt_neo.config.schema import GlaParams, ModelConfig, MoeConfig
from gpt_neo.errors import CheckpointError

FOLDER = os.path.join(os.path.dirname(__file__), "custom_code")
CUSTOM_TYPE = "gpt_neo_mtf"
FILE = "modeling_gpt_neo_mtf"
MODEL = "GPTNeoMTFForCausalLM"
AUTO_MAP = {"AutoConfig": f"{FILE}.GPTNeoMTFConfig", "AutoModelForCausalLM": f"{FILE}.{MODEL}"}
KNOWN_KINDS = ("global", "local", "linear", "gla", "none")  # of attention, that the model file computes
KNOWN_POSITIONS = ("learned", "axial", "rotary", "none")
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


def own_pairs(model: ModelConfig) -> list[Pair]:
    """Every weight of a model under its own name.

    Raises:
      CheckpointError: the model file cannot compute this model.
    """
    if not model.causal:
        raise CheckpointError("causal is False: --custom_code exports models that generate, token after token")
    check_known(model)
    found = sorted((name, variable.shape) for name, variable in variables_of(model).items())
    return [Pair((name,), shape, name, shape, SAME) for name, shape in found]


def check_known(model: ModelConfig) -> None:
    """Refuse what the model file has no code for.

    Raises:
      CheckpointError: names the key, its value and what the file knows.
    """
    with open(os.path.join(FOLDER, f"{FILE}.py"), encoding="utf-8") as handle:
        activations = tuple(re.findall(r'^    "(\w+)": ', handle.read(), re.M))
    experts = [("moe_activation", model.moe_activation, activations)] if model.moe_layers else []
    for key, value, known in [
        *(("attention_types", kind, KNOWN_KINDS) for kind in model.attention_types),
        ("position_encoding", model.positions, KNOWN_POSITIONS),
        ("activation_function", model.activation_function, activations),
        *experts,
    ]:
        if value not in known:
            raise CheckpointError(f"{key} is {value!r}; the model file of --custom_code knows {', '.join(known)}")


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
    pairs = own_pairs(model)
    wanted = {pair.theirs: list(pair.shape) for pair in pairs}
    for name, sizes in theirs["variables"].items():
        if name not in wanted:
            raise CheckpointError(f"{where}: variables has {name!r}, and the model of its keys has no such weight")
        if sizes != wanted[name]:
            raise CheckpointError(f"{where}: variables has {name!r}: {sizes!r}; expected {wanted[name]}")
    for name in wanted:
        if name not in theirs["variables"]:
            raise CheckpointError(f"{where}: variables lacks {name!r}, which the model of its keys has")
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
