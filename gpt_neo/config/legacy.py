"""Spellings of the 2021 program: aliases, expansions, and strings that stand for structures."""

from __future__ import annotations

import re
from typing import Any

from gpt_neo.config.network import KINDS, POSITIONS
from gpt_neo.errors import ConfigError, counted

# Precision was spelled in several ways; "bf16" in early files.
PRECISION_ALIASES = {"fp32": "float32", "bf16": "bfloat16"}
# The shipped key was never read by the legacy program, the second one was.
ACTIVATION_KEYS = ("activation_function", "activation_fn")
# Keys that the legacy program knew; docs/configs.md tells them from later ones.
KEYS = frozenset(
    """
    n_head n_vocab n_embd n_ctx n_layer embed_dropout attn_dropout res_dropout lr lr_decay lr_decay_end warmup_steps
    beta1 beta2 epsilon opt_name weight_decay ada_epsilon1 ada_epsilon2 gradient_clipping train_batch_size
    eval_batch_size predict_batch_size train_steps eval_steps predict_steps predict_max_steps iterations datasets
    model_path scale_by_depth scale_by_in attention_types local_attention_radius activation_function activation_fn
    mesh_shape layout recompute_grad tokens_per_mb_per_replica precision model input_fn mlm_training mlm_mask_id
    mlm_cls_token_id mlm_mask_prob mlm_same_token_prob mlm_random_token_prob mlm_mask_ignore_ids moe_layers moe_params
    moe_activation axial_pos_emb rotary_emb mlp_glu scalenorm rezero num_mem_kv macaron share_parameters no_weight_tie
    entmax_loss z_loss padding_id eos_id remove_partial_sequences slow_sampling log_grads eval_tasks
    shuffle_input_filenames seed no_dataset causal path eval_path tokenizer_path tokenizer_is_pretrained
    lambada_tokens_path
""".split()
)
# Keys that are taken and change nothing.
IDLE = {
    "no_dataset": "what needs no records, such as a layout or an export, never reads any",
    "slow_sampling": "sampling with caches gives the same text",
    "predict_max_steps": "sampling ends after the prompts that are there",
}
# Keys that are read, and stand for another one.
SPELLINGS = {
    "activation_fn": "activation_function; two that disagree are refused",
    "scalenorm": "true is norm_type scalenorm; one that disagrees with norm_type is refused",
}


def expand_attention_types(value: Any, n_layer: int, where: str) -> tuple:
    """Expand `[[["global", "local"], 12]]` into one name per layer.

    Raises:
      ConfigError: a name is unknown, the nesting is off, or the count differs from n_layer.
    """
    if isinstance(value, str):
        value = [[[value], n_layer]]
    if not isinstance(value, list):
        raise ConfigError(f"{where}: attention_types is {value!r}; expected [[[name, ...], repeats], ...]")
    parts: list = []  # (names, repeats): nothing is repeated before it is known how often altogether
    for entry in value:
        if isinstance(entry, str):
            parts.append(([entry], 1))
            continue
        pattern = isinstance(entry, list) and len(entry) == 2
        if not (pattern and isinstance(entry[0], list) and type(entry[1]) in (int, str)):
            raise ConfigError(f"{where}: attention_types entry {entry!r}; expected [[name, ...], repeats]")
        block, repeats = entry
        if repeats == "all":
            repeats = n_layer // max(1, len(block))
        if not isinstance(repeats, int) or repeats < 1:
            raise ConfigError(f"{where}: attention_types repeats {repeats!r}; expected a whole number of at least 1")
        parts.append((block, repeats))
    for name in (name for block, _ in parts for name in block):
        if name not in KINDS:
            raise ConfigError(f"{where}: attention_types has {name!r}; allowed: {', '.join(KINDS)}")
    count = sum(len(block) * repeats for block, repeats in parts)
    if count != n_layer:
        raise ConfigError(f"{where}: attention_types names {counted(count, 'layer')}, n_layer is {n_layer}")
    return tuple(name for block, repeats in parts for name in list(block) * repeats)


def parse_pairs(value: Any, name: str, where: str, sizes: bool) -> tuple:
    """Parse `"x:4,y:2"` or `"batch:x;embd:y"` (or a list of pairs) into a tuple of pairs.

    Args:
      sizes: the second half of each pair is a positive whole number (mesh_shape).

    Raises:
      ConfigError: a pair is malformed or a name stands twice.
    """
    if value in (None, "", []):
        return ()
    if isinstance(value, str):
        items = [part.split(":") for part in re.split(r"[,;]", value.strip()) if part.strip()]
    elif isinstance(value, list):
        items = [list(part) if isinstance(part, (list, tuple)) else [part] for part in value]
    else:
        raise ConfigError(f"{where}: {name} is {value!r}; expected a string such as 'x:4,y:2'")
    pairs = []
    for item in items:
        if len(item) != 2 or not all(str(half).strip() for half in item):
            raise ConfigError(f"{where}: {name} has {':'.join(map(str, item))!r}; expected name:value")
        left, right = (str(half).strip() for half in item)
        if sizes and (not right.isdecimal() or int(right) < 1):
            raise ConfigError(f"{where}: {name} gives {left!r} the size {right!r}; expected a positive whole number")
        pairs.append((left, int(right) if sizes else right))
    names = [left for left, _ in pairs]
    if len(set(names)) != len(names):
        raise ConfigError(f"{where}: {name} names a dimension twice: {value!r}")
    return tuple(pairs)


def resolve_activation(raw: dict, where: str) -> Any:
    """Return the activation under either legacy key.

    Raises:
      ConfigError: both keys are set and disagree.
    """
    given = [(k, raw[k]) for k in ACTIVATION_KEYS if raw.get(k) is not None]
    if len(given) == 2 and given[0][1] != given[1][1]:
        raise ConfigError(
            f"{where}: activation_function is {given[0][1]!r} and activation_fn is {given[1][1]!r}; "
            "set one of them, or both alike"
        )
    return given[0][1] if given else None


def merge_scalenorm(norm_type: Any, where: str) -> str:
    """Return what the legacy switch `scalenorm` means for norm_type.

    Raises:
      ConfigError: norm_type is set to something else.
    """
    if norm_type not in (None, "scalenorm"):
        raise ConfigError(f"{where}: scalenorm is set and norm_type is {norm_type!r}; set one of them, or both alike")
    return "scalenorm"


def resolve_positions(raw: dict, where: str) -> None:
    """Settle `position_encoding` in place: the names that keys of the legacy program have become those keys.

    Raises:
      ConfigError: there is no such encoding, or it and a key disagree.
    """
    name = raw.get("position_encoding")
    if name is None:
        return
    if not isinstance(name, str) or name not in POSITIONS:
        raise ConfigError(f"{where}: position_encoding is {name!r}; allowed: {', '.join(POSITIONS)}")
    keys = {"axial": "axial_pos_emb", "rotary": "rotary_emb", "none": "no_pos_emb"}
    for other, key in keys.items():
        if other != name and str(raw.get(key)).lower() not in ("none", "false", "0"):
            raise ConfigError(
                f"{where}: position_encoding is {name!r} and {key} is set; set one of them, or both alike"
            )
    if name == "axial" and raw.get("axial_pos_emb") is None:
        raise ConfigError(f"{where}: position_encoding is 'axial' and axial_pos_emb is not set; give it two factors")
    if name in ("rotary", "none"):
        raw[keys[name]] = True
    if name == "learned" or name in keys:
        raw["position_encoding"] = None


def resolve_objective(raw: dict, where: str) -> None:
    """Settle `mlm_training` and `causal` in place: the legacy program had attention in both directions with MLM.

    Raises:
      ConfigError: input_fn and mlm_training, or causal and mlm_training, contradict each other.
    """
    masked, causal = (str(raw.get(name)).lower() for name in ("mlm_training", "causal"))
    if raw.get("input_fn") == "mlm_sample_text":
        if masked == "false":
            raise ConfigError(f"{where}: input_fn is 'mlm_sample_text' and mlm_training is false; set one of them")
        raw["mlm_training"], masked = True, "true"
    if masked == "true":
        if causal == "true":
            raise ConfigError(f"{where}: mlm_training is true, so tokens see both ways; causal true contradicts it")
        raw["causal"] = False
