"""config.json of Hugging Face <-> model keys of ours."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.checkpoint.custom import CUSTOM, CUSTOM_TYPE, own_keys, refuse_foreign_code
from gpt_neo.checkpoint.families import ACTIVATIONS, FAMILIES, GPT2, GPT_NEO, GPT_NEOX, GPTJ, THEIR_ACTIVATIONS, Family
from gpt_neo.checkpoint.hf_classes import as_class_reads
from gpt_neo.config.legacy import expand_attention_types
from gpt_neo.config.loader import adapters_in
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError, ConfigError


def read_config(theirs: dict, where: str) -> tuple[Family, dict]:
    """The family of a config and our model keys of it, also of one that `custom.custom_config` has written.

    Raises:
      CheckpointError: it is none of ours, or names code of its folder's own.
    """
    refuse_foreign_code(theirs, where)
    if theirs.get("model_type") == CUSTOM_TYPE:
        return CUSTOM, own_keys(theirs, where)
    return model_keys(theirs, where)


def refuse_by_config(folder: str) -> None:
    """Look at what is small in a folder before gigabytes of weights come.

    Raises:
      CheckpointError: the weights are none of ours, or adapters alone.
    """
    if adapters := adapters_in(folder):
        raise CheckpointError(adapters)
    config = os.path.join(folder, "config.json")
    if os.path.isfile(config):
        read_config(storage.read_json(config, CheckpointError), config)


def model_keys(theirs: dict, where: str) -> tuple[Family, dict]:
    """Our model keys of a Hugging Face config, but for the ids of `hf_tokens`.

    Raises:
      CheckpointError: the family is not one of the four, or it sets something that this network does not compute.
    """
    kind = theirs.get("model_type")
    if kind not in FAMILIES:
        raise CheckpointError(f"{where}: model_type is {kind!r}; allowed: {', '.join(FAMILIES)}")
    if theirs.get("quantization_config"):
        raise CheckpointError(
            f"{where}: has quantization_config: the weights are whole numbers, or are made so as transformers loads "
            "them; save the model with floats (dequantize, then save_pretrained), or remove the key if they are floats "
            "that are to be taken as they are"
        )
    family, theirs = FAMILIES[kind], as_class_reads(theirs)
    keys: dict = dict(family.fixed)
    for ours, name in family.sizes.items():
        keys[ours] = number(where, name, theirs[name], whole=True)
    heads = family.sizes["n_head"]
    if keys["n_embd"] % keys["n_head"]:
        raise CheckpointError(
            f"{where}: key {heads!r} is {keys['n_head']}, which does not divide the width of {keys['n_embd']}"
        )
    if theirs[family.inner] is not None and theirs[family.inner] != 4 * keys["n_embd"]:
        keys["n_inner"] = number(where, family.inner, theirs[family.inner], whole=True)
    for name, wanted in family.required.items():
        refuse_unless(where, name, theirs.get(name, wanted), (wanted,))
    refuse_unless(where, family.activation, theirs[family.activation], tuple(ACTIVATIONS))
    keys["activation_function"] = ACTIVATIONS[theirs[family.activation]]
    keys["norm_epsilon"] = number(where, family.epsilon, theirs[family.epsilon], high=None)
    for ours, name in family.dropouts.items():
        keys[ours] = number(where, name, theirs[name])
    refuse_unless(where, "tie_word_embeddings", theirs["tie_word_embeddings"], (True, False))
    # The head of GPT-J has a bias, tied or not: a head of its own here, which starts as the table if they are tied.
    if not theirs["tie_word_embeddings"] or "head_bias" in family.fixed:
        keys["untied_head"] = True
    keys["attention_types"] = attention_types(theirs, family, keys["n_layer"], where)
    if family is GPT_NEOX:
        keys.update(rotary_keys(theirs, keys, where))
        keys["qkv_bias"] = keys["attn_output_bias"] = flag(where, "attention_bias", theirs)
        keys["parallel_residual"] = flag(where, "use_parallel_residual", theirs)
    if family is GPT2:
        keys["scale_attention"] = flag(where, "scale_attn_weights", theirs)
        keys["scale_attention_by_layer"] = flag(where, "scale_attn_by_inverse_layer_idx", theirs)
    if family is GPTJ:
        check_rotary(where, "rotary_dim", keys["rotary_dim"], keys)
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    return family, {name: value for name, value in keys.items() if value != defaults.get(name)}


def number(where: str, name: str, value: Any, whole: bool = False, high: Optional[float] = 1) -> Any:
    """A size (`whole`: from 1), or a number from 0 to `high`.

    Raises:
      CheckpointError: it is none.
    """
    good = isinstance(value, (int,) if whole else (int, float)) and not isinstance(value, bool)
    if not good or value < int(whole) or not (whole or high is None or value <= high):
        wanted = "a whole number of at least 1" if whole else "a number of at least 0"
        wanted += "" if whole or high is None else f" and at most {high}"
        raise CheckpointError(f"{where}: key {name!r} is {value!r}; expected {wanted}")
    return value


def flag(where: str, name: str, theirs: dict) -> bool:
    """True or false.

    Raises:
      CheckpointError: it is something else.
    """
    if not isinstance(theirs[name], bool):
        raise CheckpointError(f"{where}: key {name!r} is {theirs[name]!r}; expected true or false")
    return theirs[name]


def refuse_unless(where: str, name: str, value: Any, allowed: tuple) -> None:
    """Raise CheckpointError for a value that this network does not compute."""
    if value not in allowed:
        shown = ", ".join(map(repr, allowed))
        raise CheckpointError(f"{where}: key {name!r} is {value!r}; this network computes {shown}")


def attention_types(theirs: dict, family: Family, n_layer: int, where: str) -> list:
    """Attention type of every layer."""
    if family is not GPT_NEO:
        return [[["global"], n_layer]]
    name = "attention_layers" if theirs.get("attention_layers") else "attention_types"  # as their class reads them
    given = theirs.get(name) or [[["global", "local"], 12]]
    try:
        names = expand_attention_types(given, n_layer, where)
    except ConfigError as error:
        told = str(error).replace("n_layer", "num_layers").replace("attention_types", name)
        raise CheckpointError(told) from error
    for kind in names:
        refuse_unless(where, name, kind, GPT_NEO.kinds)
    return list(names)


def rotary_keys(theirs: dict, keys: dict, where: str) -> dict:
    """Rotary positions of GPT-NeoX, whose keys were renamed in transformers 5; `rope_scaling` wins there, too."""
    rope = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{where}: key 'rope_parameters' is {rope!r}; expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    refuse_unless(where, "rope_type", kind, ("default", "linear"))
    share = rope.get("partial_rotary_factor", theirs.get("rotary_pct", 0.25))
    share = number(where, "partial_rotary_factor", share)
    features = int(keys["n_embd"] // keys["n_head"] * share)
    check_rotary(where, "partial_rotary_factor", features, keys)
    base = number(where, "rope_theta", rope.get("rope_theta", theirs.get("rotary_emb_base", 10000.0)), high=None)
    found = {"rotary_dim": features, "rotary_base": float(base)}
    if kind == "linear":
        found["rotary_scaling"] = float(number(where, "factor", rope.get("factor"), high=None))
        if found["rotary_scaling"] < 1:
            raise CheckpointError(f"{where}: key 'factor' is {rope['factor']!r}; expected a number of at least 1")
    return found


def check_rotary(where: str, name: str, features: int, keys: dict) -> None:
    """Refuse a number of rotating features that are no pairs within a head."""
    size = keys["n_embd"] // keys["n_head"]
    if features % 2 or not 2 <= features <= size:
        raise CheckpointError(
            f"{where}: key {name!r} makes {features} features of heads of {size} rotate; expected an even number from 2"
        )


def rotary_share(features: int, size: int) -> float:
    """The share of a head's features that rotate, of which transformers takes int(size * share) to be their number."""
    share = features / size
    return share if int(size * share) == features else math.nextafter(share, 1.0)


def their_config(family: Family, model: ModelConfig, bos_id: Optional[int], dtype: str) -> dict:
    """config.json of a model of a family."""
    theirs: dict = {"model_type": family.name, "architectures": [family.architecture]}
    for ours, name in family.sizes.items():
        theirs[name] = getattr(model, ours)
    theirs[family.activation] = THEIR_ACTIVATIONS[model.activation_function]
    theirs[family.epsilon] = model.norm_epsilon
    theirs[family.inner] = model.mlp_width
    for ours, name in family.dropouts.items():
        theirs[name] = getattr(model, ours)
    theirs.update(family.required)
    theirs["tie_word_embeddings"] = not model.untied_head
    if family is GPT2:
        theirs["scale_attn_weights"] = model.scale_attention
        theirs["scale_attn_by_inverse_layer_idx"] = model.scale_attention_by_layer
        theirs["n_ctx"] = model.n_ctx  # llama.cpp's converter asks for it, as OpenAI's own config has it
    if family is GPT_NEO:
        theirs["attention_types"] = [[[kind], 1] for kind in model.attention_types]
        theirs["attention_layers"] = list(model.attention_types)
    if family is GPT_NEOX:
        share = rotary_share(model.rotary_features, model.features_per_head)
        theirs["use_parallel_residual"] = model.parallel_residual
        theirs["rotary_pct"], theirs["rotary_emb_base"] = share, model.rotary_base  # transformers 4
        theirs["rope_parameters"] = {
            "rope_type": "default" if model.rotary_scaling == 1 else "linear",
            "rope_theta": model.rotary_base,
            "partial_rotary_factor": share,
        }
        theirs["attention_bias"] = model.qkv_bias
        if model.rotary_scaling != 1:
            theirs["rope_parameters"]["factor"] = model.rotary_scaling
            theirs["rope_scaling"] = {"type": "linear", **theirs["rope_parameters"]}  # transformers 4
    if family is GPTJ:
        theirs["rotary_dim"] = model.rotary_features
    return {
        **theirs,
        "bos_token_id": bos_id,
        "eos_token_id": model.eos_id,
        "use_cache": True,
        "initializer_range": 0.02,
        "torch_dtype": dtype,
    }
