"""Adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors, for the Hugging Face model beside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Optional

import numpy as np

from gpt_neo import storage
from gpt_neo.checkpoint.arrangements import ByHead, Turned
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.families import GPT2, Family, Pair, family_of, pairs_of
from gpt_neo.checkpoint.fit import scale_of
from gpt_neo.checkpoint.hub import is_hub_name
from gpt_neo.checkpoint.safetensors import write_safetensors
from gpt_neo.checkpoint.staging import staged_folder
from gpt_neo.checkpoint.tensors import check_finite
from gpt_neo.config.network import DOWN, UP, merged
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError

PREFIX = "base_model.model."
F32 = np.dtype(np.float32)


def adapted_family(model: ModelConfig, where: str) -> Family:
    """The family of a model with adapters.

    Raises:
      CheckpointError: it has none, or Hugging Face has no such model.
    """
    if not model.lora_rank:
        raise CheckpointError(f"{where}: the run has no adapters (lora_rank is 0)")
    family, reasons = family_of(merged(model))
    if family is None:
        raise CheckpointError(f"Hugging Face has no model for this config: {'; '.join(reasons)}")
    return family


def export_adapters(model: ModelConfig, checkpoint: str, base: Optional[str], destination: str) -> None:
    """Write the adapters of a checkpoint so that `PeftModel.from_pretrained` loads them onto the model they are of.

    Where one of their matrices holds three of ours (GPT-2's c_attn), its adapter has the rank of the three together,
    and the same products: `rank_pattern` and `alpha_pattern` say so.

    Args:
      model: with `lora_rank`.
      checkpoint: its path.
      base: ORG/NAME[@revision] or path of the model that the adapters are of, which they are not merged in; None is not
        known.

    Raises:
      CheckpointError: there are none, or Hugging Face has no such model.
    """
    family = adapted_family(model, checkpoint)
    bundle = Bundle(checkpoint)
    pairs = [pair for pair in pairs_of(family, merged(model)) if pair.ours[0] + DOWN in bundle.entries]
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alpha = float(f"{scale_of(bundle) * model.lora_rank:.7g}")  # as trained, whatever the config says; float32
    for pair in pairs:
        module = pair.theirs.removesuffix(".weight")
        down, up = their_adapter(bundle, pair, model)
        tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = down, up
        ranks[module] = len(down)
    name, _, revision = base.partition("@") if base and is_hub_name(base) else (base, "", "")
    several = {module.split(".", 1)[1]: rank for module, rank in ranks.items() if rank != model.lora_rank}
    with staged_folder(destination) as staging:
        shapes = {name: (F32, array.shape) for name, array in tensors.items()}
        pieces = {
            name: [check_finite(np.ascontiguousarray(array), name, checkpoint)] for name, array in tensors.items()
        }
        write_safetensors(os.path.join(staging, "adapter_model.safetensors"), shapes, pieces)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": name or None,
            "revision": revision or None,
            "r": model.lora_rank,
            "lora_alpha": plain_number(alpha),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": family is GPT2,
            "target_modules": sorted({module.rsplit(".", 1)[1] for module in ranks}),
            "rank_pattern": several,
            "alpha_pattern": {module: plain_number(alpha * rank / model.lora_rank) for module, rank in several.items()},
            "inference_mode": True,
        }
        storage.write_json(os.path.join(staging, "adapter_config.json"), config)


def their_adapter(bundle: Bundle, pair: Pair, model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """A [rank, in] and B [out, rank] of one of their matrices."""
    downs = [bundle.read(name + DOWN).astype(np.float32) for name in pair.ours]
    ups = [bundle.read(name + UP).astype(np.float32) for name in pair.ours]
    rows = isinstance(pair.arrangement, (Turned, ByHead))  # their matrix is [out, in]
    parts = []
    for place, up in enumerate(ups):
        alone: Sequence[np.ndarray] = [up if i == place else np.zeros_like(up) for i in range(len(ups))]
        joined = pair.arrangement.join(alone, model.n_head)  # as if `in` were the rank
        parts.append(joined if rows else joined.T)
    return np.concatenate([down.T for down in downs], 0), np.concatenate(parts, 1)


def plain_number(value: float) -> float:
    """A whole number as one: PEFT calls lora_alpha an int."""
    return int(value) if value == int(value) else value
