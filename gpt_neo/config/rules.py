"""Combinations of keys that are refused, and why. docs/configs.md lists them from here."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Callable

from gpt_neo.config.activations import ACTIVATIONS
from gpt_neo.config.network import KINDS, clashing_kinds, kinds_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Rule:
    """One refusal.

    when: the combination in words, for the documentation.
    broken: whether the values (attributes named as the keys) are such a combination.
    message: what the error says, with {key} for values.
    why: the reason, for error and documentation.
    """

    when: str
    broken: Callable[[Any], bool]
    message: str
    why: str


RULES: tuple = (
    Rule(
        "n_embd does not divide by n_head",
        lambda c: c.n_embd % c.n_head != 0,
        "n_embd ({n_embd}) is not divisible by n_head ({n_head})",
        "heads share the width equally",
    ),
    Rule(
        "norm_type scalenorm or rmsnorm with rezero",
        lambda c: c.rezero and c.norm_type != "layernorm",
        "{norm_type} and rezero exclude each other; set one",
        "rezero blocks have no norms",
    ),
    Rule(
        "axial_pos_emb with rotary_emb",
        lambda c: c.rotary_emb and c.axial_pos_emb is not None,
        "axial_pos_emb and rotary_emb exclude each other; set one",
        "rotary positions take the place of tables",
    ),
    Rule(
        "moe_layers with a moe_activation that has learned numbers, or is softmax or logsoftmax",
        lambda c: bool(c.moe_layers) and (bool(ACTIVATIONS[c.moe_activation]) or "softmax" in c.moe_activation),
        "moe_activation {moe_activation} is none of experts: it learns numbers, or goes over the width",
        "experts have activations that take each number by itself, such as relu, gelu and silu",
    ),
    Rule(
        "no_pos_emb with axial_pos_emb or rotary_emb",
        lambda c: c.no_pos_emb and (c.rotary_emb or c.axial_pos_emb is not None),
        "no_pos_emb excludes axial_pos_emb and rotary_emb; set one",
        "these are positions",
    ),
    Rule(
        "axial_pos_emb is not two factors of n_ctx",
        lambda c: not is_factors(c.axial_pos_emb, c.n_ctx),
        "axial_pos_emb is {axial_pos_emb}; expected two whole numbers whose product is {n_ctx}",
        "every position has one pair of rows",
    ),
    Rule(
        "rotary_dim or rotary_interleaved without rotary_emb",
        lambda c: (c.rotary_dim is not None or c.rotary_interleaved) and not c.rotary_emb,
        "rotary_dim ({rotary_dim}) and rotary_interleaved ({rotary_interleaved}) need rotary_emb",
        "they say how rotary positions go",
    ),
    Rule(
        "rotary_base or rotary_scaling without rotary positions",
        lambda c: (c.rotary_base != ModelConfig.rotary_base or c.rotary_scaling != 1) and c.positions != "rotary",
        "rotary_base ({rotary_base:g}) and rotary_scaling ({rotary_scaling:g}) need rotary_emb",
        "they say how rotary positions go",
    ),
    Rule(
        "rotary features that are odd, or more than a head has",
        lambda c: c.rotary_emb and (c.rotary_features % 2 != 0 or c.rotary_features > c.features_per_head),
        "rotary_emb rotates {rotary_features} features of heads of {features_per_head}; expected an even number, "
        "at most a head's",
        "rotation is of pairs within a head",
    ),
    Rule(
        "shared_norm without parallel_residual",
        lambda c: c.shared_norm and not c.parallel_residual,
        "shared_norm needs parallel_residual",
        "in sequence, attention and MLP read different streams",
    ),
    Rule(
        "shared_norm with rezero",
        lambda c: c.shared_norm and c.rezero,
        "shared_norm and rezero exclude each other; set one",
        "rezero blocks have no norms",
    ),
    Rule(
        "no_weight_tie with untied_head",
        lambda c: c.no_weight_tie and c.untied_head,
        "no_weight_tie and untied_head exclude each other; set one",
        "the first leaves the final norm out, the second keeps it",
    ),
    Rule(
        "head_bias without untied_head",
        lambda c: c.head_bias and not c.untied_head,
        "head_bias needs untied_head",
        "a tied head has no bias, and that of no_weight_tie always has one",
    ),
    Rule(
        "causal false with gla attention",
        lambda c: not c.causal and any(kind.causal_only for kind in kinds_of(c)),
        "attention_types has {one_way!r} and causal is false",
        "a recurrence reads in one direction",
    ),
    Rule(
        "num_mem_kv without a global layer",
        lambda c: c.num_mem_kv > 0 and "global" not in c.attention_types,
        "num_mem_kv is {num_mem_kv} and attention_types has no 'global' layer",
        "only those hold memory",
    ),
    Rule(
        "share_parameters with gla beside other attention",
        lambda c: c.share_parameters and clashing_kinds(c),
        "share_parameters and attention_types of gla beside others exclude each other",
        "gla has variables of other shapes under the same names",
    ),
    Rule(
        "gla layers, and gla_params.expand_k of n_embd does not split over their heads",
        lambda c: "gla" in c.attention_types and not splits(c.n_embd * c.gla_params.expand_k, c.gla_heads),
        "gla_params: expand_k is {gla_params.expand_k}; expected a share of n_embd ({n_embd}) that is a multiple of "
        "the {gla_heads} heads of gla layers",
        "heads share the width of keys equally",
    ),
    Rule(
        "gla layers, and gla_params.expand_v of n_embd does not split over their heads",
        lambda c: "gla" in c.attention_types and not splits(c.n_embd * c.gla_params.expand_v, c.gla_heads),
        "gla_params: expand_v is {gla_params.expand_v}; expected a share of n_embd ({n_embd}) that is a multiple of "
        "the {gla_heads} heads of gla layers",
        "heads share the width of values equally",
    ),
    Rule(
        "moe_layers that are not numbers of layers",
        lambda c: not all(is_id(layer, c.n_layer) for layer in c.moe_layers),
        "moe_layers is {moe_layers}; expected whole numbers from 0 to below n_layer ({n_layer})",
        "layers are counted from 0",
    ),
    Rule(
        "causal false without mlm_training",
        lambda c: not c.causal and not c.mlm_training,
        "causal is false without mlm_training",
        "a token would see the one to predict",
    ),
    Rule(
        "mlm_training without mlm_mask_id",
        lambda c: c.mlm_training and c.mlm_mask_id is None,
        "mlm_training needs key 'mlm_mask_id'",
        "a token has to stand for the masked ones",
    ),
    Rule(
        "mlm_mask_prob 0 with mlm_training",
        lambda c: c.mlm_training and not c.mlm_mask_prob,
        "mlm_mask_prob is 0 with mlm_training; expected more than 0, to 1",
        "no label would count, so the loss would be 0 and nothing be learned",
    ),
    Rule(
        "mlm_same_token_prob + mlm_random_token_prob above 1",
        lambda c: c.mlm_training and c.mlm_same_token_prob + c.mlm_random_token_prob > 1 + 1e-9,
        "mlm_same_token_prob ({mlm_same_token_prob}) + mlm_random_token_prob ({mlm_random_token_prob}) is above 1",
        "they are shares of the masked tokens",
    ),
    Rule(
        "mlm_mask_id, mlm_cls_token_id or mlm_mask_ignore_ids outside the vocabulary",
        lambda c: c.mlm_training and not all(is_id(value, c.n_vocab) for value in mlm_ids(c)),
        "mlm_mask_id is {mlm_mask_id}, mlm_cls_token_id {mlm_cls_token_id}, mlm_mask_ignore_ids "
        "{mlm_mask_ignore_ids!r}; expected ids from 0 to below n_vocab ({n_vocab})",
        "the model knows ids from 0 to n_vocab - 1",
    ),
    Rule(
        "mlm_cls_token_id with n_ctx 1",
        lambda c: c.mlm_training and c.mlm_cls_token_id is not None and c.n_ctx < 2,
        "mlm_cls_token_id is set and n_ctx is {n_ctx}",
        "it takes one of the n_ctx tokens",
    ),
    Rule(
        "weight_gathers use with gradient_sums step",
        lambda c: c.weight_gathers == "use" and c.gradient_sums == "step",
        "weight_gathers is 'use' and gradient_sums is 'step'; set weight_gathers step or gradient_sums microbatch",
        "whole gradients take twice the memory of the whole weights that are not to be held",
    ),
)


def check_rules(sections: Mapping[str, Any], path: str) -> None:
    """Hold a config against every rule.

    Args:
      sections: the section dataclasses by name.

    Raises:
      ConfigError: the first rule that is broken, with the values and the reason.
    """
    values: dict = {}
    for section in sections.values():
        values.update({field.name: getattr(section, field.name) for field in dataclasses.fields(section)})
        derived = [name for name, member in vars(type(section)).items() if isinstance(member, property)]
        values.update({name: getattr(section, name) for name in derived})
    view = types.SimpleNamespace(**values)
    values["one_way"] = next((name for name in view.attention_types if KINDS[name].causal_only), None)
    for rule in RULES:
        if rule.broken(view):
            raise ConfigError(f"{path}: {rule.message.format(**values)} ({rule.why})")


def is_factors(factors: Any, n_ctx: int) -> bool:
    """Whether axial_pos_emb is absent, or two positive whole numbers whose product is n_ctx."""
    if factors is None:
        return True
    valid = len(factors) == 2 and all(isinstance(f, int) and f > 0 for f in factors)
    return valid and factors[0] * factors[1] == n_ctx


def splits(width: float, parts: int) -> bool:
    """Whether a width is a whole number above 0 that divides by the parts."""
    return width > 0 and width == int(width) and int(width) % parts == 0


def is_id(value: Any, count: int) -> bool:
    """Whether a value is a whole number from 0 to count - 1."""
    return type(value) is int and 0 <= value < count


def mlm_ids(config: Any) -> list:
    """The token ids that masked language modelling is given."""
    optional = [config.mlm_mask_id, config.mlm_cls_token_id]
    return [value for value in optional if value is not None] + list(config.mlm_mask_ignore_ids)
