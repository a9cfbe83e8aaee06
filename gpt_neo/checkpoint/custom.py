"""Export of what Hugging Face has no words for: our own names and keys, with a model file that transformers runs."""

from __future__ import annotations

import dataclasses
import os
import shutil

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.families import Pair
from gpt_neo.checkpoint.layouts import SAME
from gpt_neo.checkpoint.names import is_slot
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError

FOLDER = os.path.join(os.path.dirname(__file__), "custom_code")
CUSTOM_TYPE = "gpt_neo_mtf"
FILE = "modeling_gpt_neo_mtf"
MODEL = "GPTNeoMTFForCausalLM"


def own_pairs(checkpoint: str, model: ModelConfig) -> list[Pair]:
    """Every weight of a checkpoint under its own name, slots left out, padding of the vocabulary cut off.

    Raises:
      CheckpointError: the model reads in both directions, so it generates nothing.
    """
    if not model.causal:
        raise CheckpointError("causal is False: --custom_code exports models that generate, token after token")
    pairs = []
    for name, entry in sorted(Bundle(checkpoint).entries.items()):
        if name.startswith("gpt2/") and not is_slot(name):
            shape = (model.n_vocab, *entry.shape[1:]) if name == "gpt2/wte" else entry.shape
            pairs.append(Pair((name,), shape, name, shape, SAME))
    return pairs


def custom_config(model: ModelConfig, pairs: list[Pair], dtype: str) -> dict:
    """config.json: every model key, the shapes, and what transformers wants to find by its own names."""
    return {
        "model_type": CUSTOM_TYPE, "architectures": [MODEL],
        "auto_map": {"AutoConfig": f"{FILE}.GPTNeoMTFConfig", "AutoModelForCausalLM": f"{FILE}.{MODEL}"},
        "gpt_neo": dataclasses.asdict(model), "variables": {pair.theirs: list(pair.their_shape) for pair in pairs},
        "vocab_size": model.n_vocab, "max_position_embeddings": model.n_ctx, "hidden_size": model.n_embd,
        "num_hidden_layers": model.n_layer, "num_attention_heads": model.n_head, "tie_word_embeddings": False,
        "bos_token_id": model.eos_id, "eos_token_id": model.eos_id, "use_cache": False, "torch_dtype": dtype,
    }  # fmt: skip


def copy_code(folder: str) -> None:
    """Put the model file beside the weights."""
    shutil.copyfile(os.path.join(FOLDER, f"{FILE}.py"), os.path.join(folder, f"{FILE}.py"))
