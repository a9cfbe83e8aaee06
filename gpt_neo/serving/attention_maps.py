"""Attention of one layer and head as numbers to paint: how much of each earlier token a token takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt_neo.config.schema import ModelConfig


def attention_weights(kind: str, tensors: list, head: int, config: ModelConfig) -> np.ndarray:
    """float64 [sequence, sequence], row t the weights with which token t sums the values of the tokens before it.

    Softmax layers: their weights (what goes to learned memory is missing from the sum of 1). linear: the weights of its
    mean. gla: q_t diag(product of the decays from u + 1 to t) k_u / sqrt(features), of either sign, before the norm.

    Args:
      tensors: [sequence, heads, features] each, as the layer showed them (`Context.show`).
    """
    parts = [np.asarray(x[:, head], np.float64) for x in tensors]
    if kind == "gla":
        return gla_weights(parts[0], parts[1], log_decay(parts[2], config))
    if kind == "linear":
        return linear_weights(parts[0], parts[1])
    radius = config.local_attention_radius if kind == "local" else len(parts[0])
    return softmax_weights(parts[0], parts[1], radius)


def log_decay(logits: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Logarithm of the decay, at most 0, of gate logits [sequence, features]."""
    params = config.gla_params
    found = -np.logaddexp(0.0, -logits) / params.gate_logit_normalizer
    return found if params.clamp_min is None else np.maximum(found, params.clamp_min)


def softmax_weights(q: np.ndarray, k: np.ndarray, radius: int) -> np.ndarray:
    """Softmax of q k over the last `radius` tokens."""
    distance = np.subtract.outer(np.arange(len(q)), np.arange(len(q)))
    scores = np.where((distance >= 0) & (distance < radius), q @ k.T, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def linear_weights(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """softmax(q) exp(k), made to sum to 1 over the earlier tokens."""
    queries = np.exp(q - q.max(-1, keepdims=True))
    queries /= queries.sum(-1, keepdims=True)
    weights = np.tril(queries @ np.exp(k).T)
    return weights / (weights.sum(-1, keepdims=True) + 1e-6)


def gla_weights(q: np.ndarray, k: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """Row after row, as exp of a difference of sums: the sums alone would overflow."""
    passed = np.cumsum(decay, 0)
    weights = np.zeros([len(q), len(q)])
    for t in range(len(q)):
        weights[t, : t + 1] = (q[t] * k[: t + 1] * np.exp(passed[t] - passed[: t + 1])).sum(-1)
    return weights / np.sqrt(q.shape[-1])


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
