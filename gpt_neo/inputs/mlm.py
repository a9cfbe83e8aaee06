"""Masked language modelling (Devlin et al. 2018, section 3.1): tokens are hidden, the model names them."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import RunConfig
from gpt_neo.inputs.sources import Source
from gpt_neo.mtf_compat import tf


def never_masked(run: RunConfig, padding_id: int) -> list[int]:
    """Ids that are neither hidden nor put in the place of others: padding, mask, class token, and those to ignore."""
    training = run.training
    ids = {run.model.padding_id, padding_id, training.mlm_mask_id, training.mlm_cls_token_id}
    return sorted(i for i in ids | set(training.mlm_mask_ignore_ids) if i is not None)


def mask_tokens(tokens: Any, run: RunConfig, source: Source, sample: Any) -> dict:
    """Choose tokens to predict and hide them.

    A share mlm_mask_prob of the tokens is chosen, each on its own. Of the chosen a share mlm_same_token_prob stays as
    it is, mlm_random_token_prob becomes another token, all that may be masked being equally likely, and the rest
    becomes mlm_mask_id.

    Args:
      tokens: int32 [n_ctx], one fewer with mlm_cls_token_id.
      sample: int64, the number of the sample among those of the source.

    Returns:
      {"inputs": int32 [n_ctx], "labels": int32 [n_ctx]: the hidden tokens, elsewhere padding_id of the model,
      "weights": float32 [n_ctx]: 1 where the label counts, that is, is not padding_id}
    """
    training, padding = run.training, run.model.padding_id
    if training.mlm_cls_token_id is not None:
        tokens = tf.concat([[training.mlm_cls_token_id], tokens], axis=0)
    kept = never_masked(run, source.padding_id)
    draws = tf.random.stateless_uniform([2, run.model.n_ctx], [source.draws("mask"), sample])
    chosen = draws[0] < training.mlm_mask_prob
    for token in kept:
        chosen = tf.logical_and(chosen, tf.not_equal(tokens, token))
    same = draws[1] < training.mlm_same_token_prob
    other = draws[1] < training.mlm_same_token_prob + training.mlm_random_token_prob
    others = random_tokens(run.model.n_ctx, source.n_vocab, kept, [source.draws("other token"), sample])
    hidden = tf.fill([run.model.n_ctx], training.mlm_mask_id)
    hidden = tf.where_v2(same, tokens, tf.where_v2(other, others, hidden))
    labels = tf.where_v2(chosen, tokens, padding)
    return {
        "inputs": tf.where_v2(chosen, hidden, tokens),
        "labels": labels,
        "weights": tf.cast(tf.not_equal(labels, padding), tf.float32),
    }


def random_tokens(length: int, n_vocab: int, kept: list[int], seed: Any) -> Any:
    """int32 [length], uniform over the ids below n_vocab that are not in `kept` (sorted); one at least has to be."""
    kept = [token for token in kept if token < n_vocab]
    count = n_vocab - len(kept)
    ids = tf.random.stateless_uniform([length], seed, 0, count, tf.int32)
    for token in kept:  # the i-th id that is left lies behind every kept one that is not above it
        ids += tf.cast(ids >= token, tf.int32)
    return ids
