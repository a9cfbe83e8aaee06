"""Combinations of keys that are refused, and why. docs/configs.md lists them from here."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Callable

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
    Rule("n_embd does not divide by n_head", lambda c: c.n_embd % c.n_head != 0,
         "n_embd ({n_embd}) is not divisible by n_head ({n_head})", "heads share the width equally"),
    Rule("norm_type scalenorm or rmsnorm with rezero", lambda c: c.rezero and c.norm_type != "layernorm",
         "{norm_type} and rezero exclude each other; set one", "rezero blocks have no norms"),
    Rule("axial_pos_emb with rotary_emb", lambda c: c.rotary_emb and c.axial_pos_emb is not None,
         "axial_pos_emb and rotary_emb exclude each other; set one", "rotary positions take the place of tables"),
    Rule("no_pos_emb with axial_pos_emb or rotary_emb",
         lambda c: c.no_pos_emb and (c.rotary_emb or c.axial_pos_emb is not None),
         "no_pos_emb excludes axial_pos_emb and rotary_emb; set one", "these are positions"),
    Rule("axial_pos_emb is not two factors of n_ctx", lambda c: not is_factors(c.axial_pos_emb, c.n_ctx),
         "axial_pos_emb is {axial_pos_emb}; expected two whole numbers whose product is {n_ctx}",
         "every position has one pair of rows"),
    Rule("rotary_dim or rotary_interleaved without rotary_emb",
         lambda c: (c.rotary_dim is not None or c.rotary_interleaved) and not c.rotary_emb,
         "rotary_dim ({rotary_dim}) and rotary_interleaved ({rotary_interleaved}) need rotary_emb",
         "they say how rotary positions go"),
    Rule("rotary features that are odd, or more than a head has",
         lambda c: c.rotary_emb and (c.rotary_features % 2 != 0 or c.rotary_features > c.features_per_head),
         "rotary_emb rotates {rotary_features} features of heads of {features_per_head}; expected an even number, "
         "at most a head's", "rotation is of pairs within a head"),
    Rule("shared_norm without parallel_residual", lambda c: c.shared_norm and not c.parallel_residual,
         "shared_norm needs parallel_residual", "in sequence, attention and MLP read different streams"),
    Rule("shared_norm with rezero", lambda c: c.shared_norm and c.rezero,
         "shared_norm and rezero exclude each other; set one", "rezero blocks have no norms"),
    Rule("no_weight_tie with untied_head", lambda c: c.no_weight_tie and c.untied_head,
         "no_weight_tie and untied_head exclude each other; set one",
         "the first leaves the final norm out, the second keeps it"),
    Rule("head_bias without untied_head", lambda c: c.head_bias and not c.untied_head,
         "head_bias needs untied_head", "a tied head has no bias, and that of no_weight_tie always has one"),
    Rule("causal false with gla attention", lambda c: not c.causal and "gla" in c.attention_types,
         "attention_types has 'gla' and causal is false", "a recurrence reads in one direction"),
    Rule("num_mem_kv without a global layer", lambda c: c.num_mem_kv > 0 and "global" not in c.attention_types,
         "num_mem_kv is {num_mem_kv} and attention_types has no 'global' layer", "only those hold memory"),
    Rule("share_parameters with gla beside other attention",
         lambda c: c.share_parameters and "gla" in c.attention_types
         and len({k for k in c.attention_types if k != "none"}) > 1,
         "share_parameters and attention_types of gla beside others exclude each other",
         "gla has variables of other shapes under the same names"),
)  # fmt: skip


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
    for rule in RULES:
        if rule.broken(view):
            raise ConfigError(f"{path}: {rule.message.format(**values)} ({rule.why})")


def is_factors(factors: Any, n_ctx: int) -> bool:
    """Whether axial_pos_emb is absent, or two positive whole numbers whose product is n_ctx."""
    if factors is None:
        return True
    valid = len(factors) == 2 and all(isinstance(f, int) and f > 0 for f in factors)
    return valid and factors[0] * factors[1] == n_ctx
