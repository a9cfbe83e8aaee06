"""What a config meant to the program that it was written for, where this one would read something else.

`restore` is the one place that recognises such settings. It puts them into the words of this program and says so, one
line each; those that cannot mean here what they meant there are refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, Optional

from gpt_neo.config import legacy
from gpt_neo.config.former import ANY, FORMER, FORMER_MOE, Former
from gpt_neo.config.schema import LARGEST_DECAY
from gpt_neo.errors import ConfigError, counted

Notes = list[str]


class OfTraining(str):
    """A line on what training alone does; nobody who samples, evaluates or converts needs it."""


CAPACITY, LEGACY_CAPACITY = "moe_capacity_factor_eval", 2.0


def restore(raw: Mapping[str, Any], where: str, written: Optional[Collection[str]] = None) -> tuple[dict, tuple]:
    """Restore what the settings of other programs meant.

    Args:
      raw: keys and values as the JSON gives them, with what the command line sets.
      where: the file, for errors.
      written: the keys of the file alone, by which a legacy config is recognised; those of raw if absent.

    Returns:
      (keys and values that mean here what they meant there, one line for the person on each that was recognised)

    Raises:
      ConfigError: a setting is recognised, and this program does not compute what it means.
    """
    keys, notes = dict(raw), []
    written = raw if written is None else written
    for step in (restore_keys, restore_experts, restore_adafactor, restore_schedule, restore_datasets, restore_layout):
        notes += step(keys, is_legacy(written), where)
    return keys, tuple(notes)


def restore_overrides(keys: dict, where: str) -> tuple:
    """The same of what the command line sets for a run of this program. keys is changed; lines for the person."""
    return tuple(note for step in (restore_datasets, restore_layout) for note in step(keys, False, where))


def is_legacy(names: Collection[str]) -> bool:
    """Whether every key is one that a config of the 2021 program, or of one before it, may have."""
    return all(name in legacy.KEYS or name in FORMER for name in names)


def restore_keys(keys: dict, legacy_config: bool, where: str) -> Notes:
    """Keys of other programs: another name here, without effect, or refused."""
    notes = []
    for name, former in FORMER.items():
        if former.instead and keys.get(name) is not None and not keys.get(former.instead):
            keys[former.instead] = keys.pop(name)
            notes.append(f"key {name!r} of {former.program} is read as {former.instead!r}")
    return notes + set_aside(keys, FORMER, where)


def set_aside(keys: dict, table: Mapping[str, Former], where: str) -> Notes:
    """Take keys without effect out.

    Returns:
      a line for those of one reason.

    Raises:
      ConfigError: a key is not without effect.
    """
    reasons: dict = {}
    for name in [name for name in keys if name in table]:
        value, former = keys.pop(name), table[name]
        if former.harmless is ANY and value is not None:
            reasons.setdefault((former.program, former.why), []).append(name)
        elif value is not None and value not in former.harmless:
            raise ConfigError(f"{where}: key {name!r} is {value!r}, of {former.program}: {former.why}")
    return [f"ignored: {', '.join(names)} of {program}: {why}" for (program, why), names in reasons.items()]


def restore_experts(keys: dict, legacy_config: bool, where: str) -> Notes:
    """What `moe_layers` and `moe_params` meant to Mesh-TensorFlow's library, which every mixture went through."""
    notes, layers, given = [], keys.get("moe_layers"), keys.get("moe_params")
    count = as_number(keys.get("n_layer"))
    if isinstance(layers, list) and count is not None:
        past = [layer for layer in layers if type(layer) is int and layer >= count]
        if past:
            keys["moe_layers"] = [layer for layer in layers if layer not in past]
            shown = ", ".join(map(str, past))
            notes.append(f"moe_layers: {shown} ignored, as in the 2021 program: layers go from 0 to {count - 1:g}")
    if not isinstance(given, dict):
        return notes
    keys["moe_params"] = moe = dict(given)
    notes += set_aside(moe, FORMER_MOE, f"{where}: moe_params")
    # The library read moe_dropout_rate without a default: no mixture was ever trained without it.
    if legacy_config and keys.get("moe_layers") and "moe_dropout_rate" in moe and CAPACITY not in moe:
        moe[CAPACITY] = LEGACY_CAPACITY
        notes.append(
            f"moe_params of a config of the 2021 program: experts have places for {LEGACY_CAPACITY:g} times their "
            f"share of tokens in --eval, as they had there ({CAPACITY} null drops no token)"
        )
    return notes


def restore_adafactor(keys: dict, legacy_config: bool, where: str) -> Notes:
    """The legacy program gave Adafactor the bare lr, and weight_decay as the decay rate of its second moments.

    Recognised by the constants of Adafactor, which it could not do without, and by the lack of every later key.
    """
    mine = ("adafactor_legacy_lr", "ada_decay_rate")
    needed = ("ada_epsilon1", "ada_epsilon2")
    if str(keys.get("opt_name")).lower() != "adafactor" or any(keys.get(name) is not None for name in mine):
        return []
    if not legacy_config or any(keys.get(name) is None for name in needed):
        return []
    given, memory = keys.pop("weight_decay", None), "1 - (step + 1)^-0.8, as weight_decay is not given"
    if given is not None:
        rate = as_number(given)
        if rate is None or not 0 <= rate <= LARGEST_DECAY:
            raise ConfigError(
                f"{where}: key 'weight_decay' is {given!r}; in a config of the 2021 program with opt_name adafactor it "
                f"is the decay rate of second moments, between 0 and {LARGEST_DECAY} (adafactor_legacy_lr false reads "
                "it as decay)"
            )
        keys["ada_decay_rate"], memory = rate, f"weight_decay, {rate:g}"
    keys["adafactor_legacy_lr"] = True
    if keys.get("beta1") is None:
        keys["beta1"] = 0.0
    return [
        OfTraining(
            "opt_name adafactor in a config of the 2021 program: lr has no schedule, the decay rate of second moments "
            f"is {memory}, and weights do not decay, as there (--set adafactor_legacy_lr=false reads them as of today)"
        )
    ]


def as_number(value: Any) -> Optional[float]:
    """A number, also one in a string; None for anything else."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def restore_schedule(keys: dict, legacy_config: bool, where: str) -> Notes:
    """Without lr_decay the legacy program kept the rate after warm-up."""
    if keys.get("lr_decay") is not None or is_raw_rate(keys):
        return []
    unused = ", and lr_decay_end does nothing" if keys.get("lr_decay_end") is not None else ""
    return [
        OfTraining(
            f"lr_decay is not given: lr is constant after warm-up, as in the 2021 program{unused} "
            '(--set lr_decay=cosine lowers it; "none" ends this note)'
        )
    ]


def is_raw_rate(keys: Mapping[str, Any]) -> bool:
    """Whether no schedule applies anyway."""
    adafactor = str(keys.get("opt_name")).lower() == "adafactor"
    return adafactor and str(keys.get("adafactor_legacy_lr")).lower() in ("true", "1")


def restore_datasets(keys: dict, legacy_config: bool, where: str) -> Notes:
    """A bare name is a list of one. Read in turn, the first field of an entry is all that counted, however many."""
    value, notes = keys.get("datasets"), []
    if isinstance(value, str):
        keys["datasets"] = value = [value]
    in_turn = keys.get("input_fn") in (None, "sequential_input") and str(keys.get("mlm_training")).lower() != "true"
    if not isinstance(value, list) or not in_turn:
        return []
    entries = []
    for entry in value:
        odd = isinstance(entry, list) and len(entry) not in (0, 4) and isinstance(entry[0], str)
        if odd:
            notes.append(
                f"datasets entry {entry!r} is read as {entry[0]!r}: of an entry of {counted(len(entry), 'field')} the "
                "first counts, as in the 2021 program"
            )
        entries.append(entry[0] if odd else entry)
    keys["datasets"] = entries
    return notes


def restore_layout(keys: dict, legacy_config: bool, where: str) -> Notes:
    """Mesh-TensorFlow leaves out rules whose mesh dimension does not exist."""
    mesh = legacy.parse_pairs(keys.get("mesh_shape"), "mesh_shape", where, sizes=True)
    rules = legacy.parse_pairs(keys.get("layout"), "layout", where, sizes=False)
    names = [name for name, _ in mesh]
    if not names:
        return []
    keys["layout"] = [rule for rule in rules if rule[1] in names]
    return [
        f"layout rule {dim}:{axis} is ignored, as in the 2021 program: mesh_shape has no {axis!r}{nearest(axis, names)}"
        for dim, axis in rules
        if axis not in names
    ]


def nearest(name: str, known: Collection[str]) -> str:
    """What a name may have been meant to be."""
    listed = ", ".join(repr(other) for other in known)
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f", only {listed}"
