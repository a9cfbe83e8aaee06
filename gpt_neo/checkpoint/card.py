"""The model card of an exported model: README.md with what hubs read of it, and what is known of the run."""

from __future__ import annotations

import json
import os
from typing import Optional

from gpt_neo.checkpoint.best import Best
from gpt_neo.checkpoint.hub import is_hub_name
from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.config.estimate import count_parameters
from gpt_neo.config.loader import folder_name
from gpt_neo.config.schema import RunConfig

CARD = "README.md"


def write_card(
    folder: str, run: RunConfig, checkpoint: str, base: Optional[str] = None, best: Optional[Best] = None
) -> None:
    """Write the card, where the folder has none.

    Args:
      folder: with the exported model.
      checkpoint: the one that was exported.
      base: what it was fine-tuned from. Of a model on the hub the hub is told its name; others lie on this machine
        alone: the hub would take a path for the name of somebody's model, or refuse the card.
      best: its evaluation.
    """
    path = os.path.join(folder, CARD)
    if os.path.exists(path):
        return
    record = read_provenance(checkpoint) or {}
    data = record.get("data", {})
    facts = [
        ("parameters", f"{count_parameters(run.model):,}"),
        ("context", f"{run.model.n_ctx:,} tokens"),
        ("step", f"{record.get('step', 0):,}"),
        ("tokens read", f"{data.get('tokens_read', 0):,}"),
        ("optimizer", f"{run.optimizer.opt_name}, lr {run.optimizer.lr:g}"),
        *([("adapters", f"rank {record['config']['lora_rank']}, merged")] if adapted(record) else []),
        *([("held-out loss", f"{best.loss:.4f} nats per token, {best.data}")] if best else []),
    ]
    about = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [gpt-neo]"]
    if base and is_hub_name(base):
        about.append(f"base_model: {json.dumps(base.partition('@')[0])}")
    elif base:
        base = folder_name(base)
    table = "\n".join(f"| {name} | {value} |" for name, value in facts)
    title = f"Fine-tuned from {base}" if base else run.name
    text = "---\n" + "\n".join(about) + f"\n---\n\n# {title}\n\n| | |\n|---|---|\n{table}\n"
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text)


def adapted(record: dict) -> bool:
    """Whether a checkpoint's record is of a run with adapters."""
    return bool(record.get("config", {}).get("lora_rank"))
