"""config.json of Hugging Face <-> model keys of ours."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from gpt_neo.checkpoint.families import ACTIVATIONS, FAMILIES, GPT_NEO, GPT_NEOX, GPTJ, THEIR_ACTIVATIONS, Family
from gpt_neo.config.legacy import expand_attention_types
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError, ConfigError


def model_keys(theirs: dict, where: str) -> tuple[Family, dict]:
    """Our model keys of a Hugging Face config, but for the ids of `hf_tokens`.

    Raises:
      CheckpointError: the family is not one of the four, or it sets something that this network does not compute.
    """
    kind = theirs.get("model_type")
    if kind not in FAMILIES:
        raise CheckpointError(f"{where}: model_type is {kind!r}; allowed: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    keys: dict = dict(family.fixed)
    for ours, name in family.sizes.items():
        if theirs.get(name) is None and name != "window_size":
            raise CheckpointError(f"{where}: key {name!r} is missing")
        keys[ours] = theirs.get(name, 256)
    if theirs.get(family.inner) not in (None, 4 * keys["n_embd"]):
        keys["n_inner"] = theirs[family.inner]
    for name, wanted in family.required.items():
        refuse_unless(where, name, theirs.get(name, wanted), (wanted,))
    activation = theirs.get(family.activation, "gelu" if family is GPT_NEOX else "gelu_new")
    refuse_unless(where, family.activation, activation, tuple(ACTIVATIONS))
    keys["activation_function"] = ACTIVATIONS[activation]
    epsilon = theirs.get(family.epsilon, 1e-5)
    if epsilon != 1e-5:
        keys["norm_epsilon"] = epsilon
    for ours, name in family.dropouts.items():
        keys[ours] = theirs.get(name, 0.0)
    if not theirs.get("tie_word_embeddings", family.tied):
        keys["untied_head"] = True
    elif not family.tied:
        keys["untied_head"] = keys["head_bias"] = False
    keys["attention_types"] = attention_types(theirs, family, keys["n_layer"], where)
    if family is GPT_NEOX:
        keys.update(rotary_keys(theirs, keys, where))
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    return family, {name: value for name, value in keys.items() if value != defaults.get(name)}


def refuse_unless(where: str, name: str, value: Any, allowed: tuple) -> None:
    """Raise CheckpointError for a value that this network does not compute."""
    if value not in allowed:
        shown = ", ".join(map(repr, allowed))
        raise CheckpointError(f"{where}: key {name!r} is {value!r}; this network computes {shown}")


def attention_types(theirs: dict, family: Family, n_layer: int, where: str) -> list:
    """Attention type of every layer."""
    if family is not GPT_NEO:
        return [[["global"], n_layer]]
    given = theirs.get("attention_types") or theirs.get("attention_layers") or [[["global", "local"], 12]]
    try:
        names = expand_attention_types(given, n_layer, where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    for name in names:
        refuse_unless(where, "attention_types", name, GPT_NEO.kinds)
    return list(names)


def rotary_keys(theirs: dict, keys: dict, where: str) -> dict:
    """Rotary positions and residual of GPT-NeoX, whose keys were renamed in transformers 5."""
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    refuse_unless(where, "rope_type", rope.get("rope_type", rope.get("type", "default")), ("default",))
    share = rope.get("partial_rotary_factor", theirs.get("rotary_pct", 0.25))
    return {
        "rotary_dim": int(keys["n_embd"] // keys["n_head"] * share),
        "rotary_base": rope.get("rope_theta", theirs.get("rotary_emb_base", 10000.0)),
        "parallel_residual": theirs.get("use_parallel_residual", True),
    }


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
    if family is GPT_NEO:
        theirs["attention_types"] = [[[kind], 1] for kind in model.attention_types]
        theirs["attention_layers"] = list(model.attention_types)
    if family is GPT_NEOX:
        share = model.rotary_features / model.features_per_head
        theirs["use_parallel_residual"] = model.parallel_residual
        theirs["rotary_pct"], theirs["rotary_emb_base"] = share, model.rotary_base  # transformers 4
        theirs["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": model.rotary_base,
            "partial_rotary_factor": share,
        }
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
