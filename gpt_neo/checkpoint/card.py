"""The model card of an exported model: README.md with what hubs read of it, and what is known of the run."""

from __future__ import annotations

import json
import os
from typing import Optional

from gpt_neo.checkpoint.best import Best
from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.config.estimate import count_parameters
from gpt_neo.config.schema import RunConfig

CARD = "README.md"


def write_card(
    folder: str, run: RunConfig, checkpoint: str, base: Optional[str] = None, best: Optional[Best] = None
) -> None:
    """Write the card, where the folder has none.

    Args:
      folder: with the exported model.
      checkpoint: the one that was exported.
      base: name of the model that it was fine-tuned from.
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
    about += [f"base_model: {json.dumps(base)}"] if base else []
    table = "\n".join(f"| {name} | {value} |" for name, value in facts)
    title = f"Fine-tuned from {base}" if base else run.name
    text = "---\n" + "\n".join(about) + f"\n---\n\n# {title}\n\n| | |\n|---|---|\n{table}\n"
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text)


def adapted(record: dict) -> bool:
    """Whether a checkpoint's record is of a run with adapters."""
    return bool(record.get("config", {}).get("lora_rank"))
