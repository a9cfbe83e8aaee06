"""docs/configs.md, written from the dataclasses and the rules: `python -m gpt_neo.config.reference docs/configs.md`."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from collections.abc import Mapping
from typing import Any, Optional

from gpt_neo.config import legacy
from gpt_neo.config.former import ANY, FORMER, FORMER_MOE, Former
from gpt_neo.config.network import KINDS, POSITIONS, AttentionKind
from gpt_neo.config.rules import RULES
from gpt_neo.config.schema import LARGEST, REQUIRED, SECTIONS, DatasetConfig, GlaParams, ModelConfig

HEAD = """# Configuration keys

Written by `python -m gpt_neo.config.reference docs/configs.md` from `gpt_neo/config/`; a test holds it up to date.

A model config is one flat JSON object under `configs/` (or anywhere: `--model` takes a name or a path), a dataset
config one under `configs/dataset_configs/`. `--set key=value` overrides a key. Absent keys and `null` take the default,
but for `eos_id`, where null says that there is none; numbers may be written as strings. An unknown key, a value out of
range and a refused combination end with one line that names the file, the key and what is allowed. Source `legacy` is
the 2021 program, whose files load as they are and mean what they meant: see "What legacy configs mean".
"""
TITLES = {"model": "Model", "optimizer": "Optimizer", "mesh": "Mesh", "training": "Training and input"}
NESTED = {"gla_params": "fla", "moe_params": "Mesh-TensorFlow"}  # whose names the keys of an object are
WHOLE = GlaParams(expand_k=1.0)
TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", tuple: "list", dict: "object"}
FAMILIES = """
## Other models as configs

Each equals the Hugging Face model of its family in logits and in greedy text (`tests/model/test_peers.py`).

- GPT-2 (`gpt2_124M`, `gpt2_355M`, `gpt2_774M`, `gpt2_1558M`): `qkv_bias`, `scale_attention`.
- GPT-J (`gptj_6B`): `rotary_emb` with `rotary_dim` 64 and `rotary_interleaved`; `parallel_residual` with `shared_norm`;
  `attn_output_bias` false; `scale_attention`; `untied_head` with `head_bias`.
- GPT-NeoX (`gptneox_20B`): `rotary_emb` with `rotary_dim` 24, which is rotary_pct times the features of a head;
  `parallel_residual`; `qkv_bias`; `scale_attention`; `untied_head`.

`n_vocab` of the last two is the size of their padded tables (50400 and 50432), more than their tokenizers have. The
exact gelu that some GPT-NeoX models have (hidden_act gelu) is `activation_function` gelu_erf.

Variables beside those of the legacy program: `attn/compute_qkv_bias/{q_b,k_b,v_b}` of `qkv_bias`;
`wte_final_linear/conv1d_main/linear_out/{kernel,bias}` of `untied_head`, as of `no_weight_tie`;
`attn/attention/{mem_k,mem_v}` of `num_mem_kv`; `mlp/activation/<name>` of activations that learn.

## What legacy options compute

- `scalenorm` takes the mean off, as a layer norm does, and has one scale `g`.
- `macaron`: the first MLP reads the stream without a norm, and rezero does not scale it.
- attention type `none` adds the stream to itself, without a norm.
- `num_mem_kv`: memory is not rotated, no mask hides it, and only global layers have it.
- `mlp_glu`: c_fc has twice n_inner (4 n_embd) columns, the first half is h and the second the gate.
- `rrelu` has one fixed slope (the legacy program drew one anew for every graph); `proottanh` takes the absolute value
  of x under its root (it was not a number below 0).
"""
RESTORED = """
## What legacy configs mean

Where a setting meant something else to the program that a config was written for, it is taken in that meaning, and
every command that loads the config says so once, in a line that begins with `note` (`gpt_neo/config/restore.py`).

- `lr_decay` absent or null: lr is constant after warm-up. The word for it is `none`. (Before this was so, it meant
  cosine here.)
- `layout` rules whose mesh dimension is not in `mesh_shape` are ignored.
- `datasets` entries of one field, or five, are read as their first field where files are read in turn (`input_fn`
  absent or `sequential_input`); elsewhere they are refused. A bare name is a list of one.
- `moe_layers`: numbers past the last layer are ignored.

Two settings hang on whether the config is a legacy one: no key in the file (`--set` does not count) is younger than the
2021 program.

- `opt_name` adafactor in a legacy config that has `ada_epsilon1` and `ada_epsilon2`, which Adafactor could not do
  without there: lr has no schedule, `weight_decay` is the decay rate of second moments (absent, 1 - (step + 1)^-0.8),
  weights do not decay, and `beta1` is 0 when absent. It is what `adafactor_legacy_lr` true, `ada_decay_rate` and
  `weight_decay` 0 say; a config that has one of the first two is read as it stands.
- `moe_params` of a legacy config that has `moe_dropout_rate`, which mixtures could not do without there:
  `moe_capacity_factor_eval` is 2 when absent; null drops no token.
"""
FORMER_HEAD = """
## Keys of other programs

Other keys that are found in configs (tests/config/wild lists the configs). Null is as good as absent.

| key | of | here |
|---|---|---|
"""


def reference_page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        parts.append(f"\n## {TITLES[name]}\n\n{(section.__doc__ or '').strip()}\n\n{table(section)}")
        parts += [
            f"\n### {field.name}\n\n{(type(field.default).__doc__ or '').strip()}\n\n"
            f"{table(type(field.default), NESTED[field.name])}"
            for field in dataclasses.fields(section)
            if dataclasses.is_dataclass(field.default)
        ]
    parts.append(f"\n## Dataset\n\n{(DatasetConfig.__doc__ or '').strip()}\n\n{table(DatasetConfig)}")
    parts.append("\n## Other spellings\n\n| key | stands for |\n|---|---|\n")
    parts += [f"| `{name}` | {text} |\n" for name, text in legacy.SPELLINGS.items()]
    parts += [f"| `precision` {short} | {full} |\n" for short, full in legacy.PRECISION_ALIASES.items()]
    parts.append("\n## Kinds of attention\n\n`attention_types` names one of these for every layer.\n\n")
    parts.append("| name | what it is | keeps while decoding |\n|---|---|---|\n")
    parts += [f"| `{name}` | {kind.doc} | {caches_text(kind)} |\n" for name, kind in KINDS.items()]
    parts.append("\n## Positions\n\n| `position_encoding` | what it is |\n|---|---|\n")
    parts += [f"| `{name}` | {encoding.doc} |\n" for name, encoding in POSITIONS.items()]
    parts.append("\n## Refused combinations\n\n| refused | why |\n|---|---|\n")
    parts += [f"| {rule.when} | {rule.why} |\n" for rule in RULES]
    parts.append(RESTORED + FORMER_HEAD + former_rows("", FORMER) + former_rows("moe_params.", FORMER_MOE))
    return "".join([*parts, FAMILIES])


def former_rows(prefix: str, keys: Mapping[str, Former]) -> str:
    """One row for the keys of each reason."""
    groups: dict = {}
    for name, former in keys.items():
        groups.setdefault(former, []).append(f"`{prefix}{name}`")
    rows = []
    for former, names in groups.items():
        taken = f"read as `{former.instead}` where that is absent" if former.instead else "ignored with a note"
        allowed = " or ".join(str(value).lower() for value in former.harmless) if former.harmless is not ANY else ""
        unless = f" unless {allowed}" if allowed else ""
        here = taken if former.harmless is ANY else f"refused{unless}"
        rows.append(f"| {', '.join(names)} | {former.program} | {here}: {former.why} |\n")
    return "".join(rows)


def caches_text(kind: AttentionKind) -> str:
    """What a kind keeps of a text, in words."""
    model = ModelConfig(n_head=1, n_embd=1, n_layer=1, n_vocab=1, n_ctx=2, local_attention_radius=1, gla_params=WHOLE)
    caches = kind.caches(model)
    if not caches:
        return "nothing"
    if any(cache.rows is not None for cache in caches):
        return "a float32 state"
    return "keys and values of its window" if kind.window(model) else "keys and values of every token"


def table(section: Any, source: str = "this project") -> str:
    """One row per key of a dataclass; `source` is that of the keys which tell none."""
    hints = typing.get_type_hints(section)
    rows = ["| key | meaning | type | default | allowed | source |\n|---|---|---|---|---|---|\n"]
    for field in dataclasses.fields(section):
        rules = field.metadata
        sources = ["legacy"] if field.name in legacy.KEYS else []
        sources += [rules["source"]] if rules["source"] else []
        cells = [
            f"`{field.name}`",
            rules["doc"],
            type_text(hints[field.name]) + (f", {rules['unit']}" if rules["unit"] else ""),
            default_text(field),
            allowed_text(rules),
            ", ".join(sources) or source,
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(rows)


def type_text(hint: Any) -> str:
    """A declared type in words."""
    hint = next((arg for arg in typing.get_args(hint) if arg is not type(None)), hint)
    return "object" if dataclasses.is_dataclass(hint) else TYPES[hint]


def default_text(field: dataclasses.Field) -> str:
    """The default as it would stand in a file."""
    if field.default is REQUIRED:
        return "required"
    if field.default in (None, ()):
        return "none"
    if dataclasses.is_dataclass(field.default):
        return "its own keys' defaults"
    named = isinstance(field.default, tuple) and len(field.default) == 1 and isinstance(field.default[0], str)
    value = field.default[0] if named else field.default  # a list of one name may be the name
    return value if isinstance(value, str) else json.dumps(value)


def allowed_text(rules: Any) -> str:
    """Choices or bounds."""
    if rules["choices"]:
        return ", ".join(rules["choices"])
    low, high = (bound_text(rules[end]) for end in ("low", "high"))
    if low is not None and high is not None:
        return f"{low} to {high}"
    if high is not None:
        return f"at most {high}"
    return f"at least {low}" if low is not None else ""


def bound_text(bound: Any) -> Any:
    """A bound as a person would write it; None where there is none."""
    if bound == LARGEST:
        return "2^31 - 1"
    return f"{bound:g}" if isinstance(bound, float) else bound


def main(argv: Optional[list] = None) -> int:
    """Write the page to the path given."""
    (path,) = argv if argv is not None else sys.argv[1:]
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(reference_page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
