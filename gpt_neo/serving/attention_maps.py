"""Attention of one layer and head as numbers to paint: how much of each earlier token a token takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.attention.gla import log_decay
from gpt_neo.model.transformer import ATTENTION


def attention_weights(kind: str, tensors: list, head: int, config: ModelConfig) -> np.ndarray:
    """float64 [sequence, sequence], row t the weights with which token t sums the values of the tokens before it.

    Args:
      tensors: [sequence, heads, features] each, as the layer showed them (`Context.show`).
    """
    return ATTENTION[kind].weights([np.asarray(x[:, head], np.float64) for x in tensors], config, kind)


def picture_json(kind: str, tensors: list, layer: int, head: int, config: ModelConfig, names: list) -> dict[str, Any]:
    """The body of an answer. decay: mean over features of each token's decay, gla only."""
    weights = attention_weights(kind, tensors, head, config)
    body = {
        "layer": layer,
        "head": head,
        "kind": kind,
        "tokens": names,
        "weights": [[round(float(x), 5) for x in row[: t + 1]] for t, row in enumerate(weights)],
    }
    if kind == "local":
        body["radius"] = config.local_attention_radius
    if kind == "gla":
        body["decay"] = [round(float(x), 5) for x in np.exp(log_decay(tensors[2][:, head], config)).mean(-1)]
    return body
