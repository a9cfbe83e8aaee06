"""A trained model as a SavedModel: text generation with the loop inside, and logits; weights as they are or in int8."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.checkpoint.staging import staged_folder
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError
from gpt_neo.model.context import Context
from gpt_neo.mtf_compat import tf
from gpt_neo.ops.caches import LoopStore
from gpt_neo.ops.kernels import uncompiled
from gpt_neo.ops.parameters import Storage, plain
from gpt_neo.runtime.int8 import int8_storage, load_int8
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.network import Placement, forward
from gpt_neo.runtime.predict_step import load_weights
from gpt_neo.sampling.batches import PREFILL
from gpt_neo.sampling.graph import choose
from gpt_neo.storage import tensorflow as files


def export_saved_model(
    config: ModelConfig,
    checkpoint: str,
    folder: str,
    batch_size: int = 1,
    int8: bool = False,
    n_ids: Optional[int] = None,
) -> list[str]:
    """Write a SavedModel with two signatures, for batches of batch_size rows.

    serving_default: tokens int32 [batch, longest] (shorter prompts filled on the right), lengths int32 [batch],
    max_tokens int32, temperature float32 (0 takes the likeliest token), top_k int32 (0: all), top_p float32 (1: all),
    seed int32 (what the command line refuses of the last four is an InvalidArgumentError here), to tokens int32
    [batch, new], filled with eos_id after the end, and lengths int32 [batch] of the new tokens.
    logits: tokens int32 [batch, n_ctx], shorter texts filled on the right, as no token sees later ones, to logits
    float32 [batch, n_ctx, vocab].

    Args:
      n_ids: only ids below it are drawn, where the tokenizer has fewer than the table has rows; None for all.

    Returns:
      notes for the person.

    Raises:
      CheckpointError: the folder is in use, cannot be written, or the checkpoint does not fit.
    """
    notes: list[str] = []
    signatures = {}
    with place(folder) as staging, tf.Graph().as_default(), tf.Session() as session:
        storage = int8_storage(config) if int8 else plain
        with tf.variable_scope("", reuse=tf.AUTO_REUSE):
            tokens = tf.placeholder(tf.int32, [batch_size, config.n_ctx], name="tokens")
            logits = build_logits(tokens, config, storage)
            signatures["logits"] = tf.saved_model.predict_signature_def({"tokens": tokens}, {"logits": logits})
            if config.causal:
                signature = serving_signature(config, batch_size, n_ids, storage)
                signatures[tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY] = signature
            else:
                notes.append("no signature for generation: causal is False, so that a token depends on later ones")
        notes += load_int8(session, checkpoint, config) if int8 else load_weights(session, checkpoint)
        try:
            builder = tf.saved_model.Builder(staging)
            builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING], signatures)
            builder.save()
        except tf.errors.OpError as error:
            raise CheckpointError(f"--export {folder!r}: cannot be written: {error.message}") from error
    return notes


@contextlib.contextmanager
def place(folder: str) -> Iterator[str]:
    """Where a SavedModel is written: beside its folder, which it becomes once it is whole; a remote one directly.

    Raises:
      CheckpointError: the folder is in use, or cannot be written.
    """
    if files.is_remote(folder):
        if files.is_folder(folder) and files.names(folder):
            raise CheckpointError(f"{folder}: exists and is not an empty folder; choose another")
        yield folder
        return
    with staged_folder(folder) as staging:
        inside = os.path.join(staging, "model")  # TensorFlow's builder wants to make its folder itself
        yield inside
        for name in os.listdir(inside):
            os.rename(os.path.join(inside, name), os.path.join(staging, name))
        os.rmdir(inside)


def serving_signature(config: ModelConfig, batch_size: int, n_ids: Optional[int], storage: Storage) -> Any:
    """SignatureDef of generation."""
    fed = {
        "tokens": tf.placeholder(tf.int32, [batch_size, None]),
        "lengths": tf.placeholder(tf.int32, [batch_size]),
        "max_tokens": tf.placeholder(tf.int32, []),
        "temperature": tf.placeholder(tf.float32, []),
        "top_k": tf.placeholder(tf.int32, []),
        "top_p": tf.placeholder(tf.float32, []),
        "seed": tf.placeholder(tf.int32, []),
    }
    rules = [
        tf.debugging.assert_greater_equal(fed["temperature"], 0.0, message="temperature: expected at least 0"),
        tf.debugging.assert_less(fed["temperature"], math.inf, message="temperature: expected a finite number"),
        tf.debugging.assert_greater_equal(fed["top_k"], 0, message="top_k: expected at least 0"),
        tf.debugging.assert_greater(fed["top_p"], 0.0, message="top_p: expected more than 0"),
        tf.debugging.assert_less_equal(fed["top_p"], 1.0, message="top_p: expected at most 1"),
        tf.debugging.assert_greater_equal(fed["seed"], 0, message="seed: expected at least 0"),
    ]
    with tf.control_dependencies(rules):
        how = {name: tf.identity(fed[name]) for name in ("temperature", "top_k", "top_p", "seed")}

    def drawn(logits: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        return choose(logits[:, :n_ids], count=count, **how)

    tokens, lengths = generate(fed["tokens"], fed["lengths"], fed["max_tokens"], drawn, config, storage)
    return tf.saved_model.predict_signature_def(fed, {"tokens": tokens, "lengths": lengths})


def build_logits(tokens: tf.Tensor, config: ModelConfig, storage: Storage = plain) -> tf.Tensor:
    """Logits [batch, sequence, vocab] of tokens [batch, sequence] on one device."""
    (logits,), _ = forward(LocalPlacement(MeshPlan()), config, tokens, Context(storage=storage))
    return logits


def losses(config: ModelConfig, checkpoint: str, texts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Nats per token, with the weights as they are and in int8.

    Args:
      texts: int32 [n_ctx + 1] ids and bool [n_ctx], which of all but the first count; see `estimator.held_out_texts`.
    """
    found = []
    for storage in (plain, int8_storage(config)):
        with tf.Graph().as_default(), tf.Session() as session:
            fed = tf.placeholder(tf.int32, [1, config.n_ctx + 1])
            logits = build_logits(fed[:, :-1], config, storage)
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=fed[:, 1:], logits=logits)
            load_weights(session, checkpoint) if storage is plain else load_int8(session, checkpoint, config)
            nats = [session.run(each, {fed: ids[np.newaxis]})[0][counts] for ids, counts in texts]
            found.append(float(np.concatenate(nats).mean(dtype=np.float64)))
    return found[0], found[1]


def aligned_prompts(tokens: tf.Tensor, lengths: tf.Tensor, chunk: int) -> tuple:
    """Prompts that end in the same column, in whole chunks.

    Returns:
      (int32 [batch, columns], int32 [batch]: the column of each row's first token, the number of columns)
    """
    length = -(-tf.reduce_max(lengths) // chunk) * chunk
    start = length - lengths
    columns = tf.range(length)[tf.newaxis] - start[:, tf.newaxis]  # place of each aligned column in its row
    return tf.gather(tokens, tf.maximum(columns, 0), batch_dims=1), start, length


def generate(
    tokens: tf.Tensor,
    lengths: tf.Tensor,
    max_tokens: tf.Tensor,
    drawn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    config: ModelConfig,
    storage: Storage = plain,
) -> tuple:
    """New tokens as a graph: the prompts are read in chunks, then one token follows another.

    Args:
      tokens, lengths, max_tokens: see `export_saved_model`.
      drawn: of logits [batch, vocab] and the number of a token, the tokens int32 [batch].

    Returns:
      (int32 [batch, new], int32 [batch])
    """
    batch, chunk = int(tokens.shape[0]), min(PREFILL, config.n_ctx)
    room = room_beside(lengths, max_tokens, config.n_ctx)
    aligned, start, length = aligned_prompts(tokens, lengths, chunk)
    room_for = config.n_ctx + chunk
    placement = LocalPlacement(MeshPlan())

    def step(fed: tf.Tensor, position: tf.Tensor, caches: list) -> tuple:
        store = LoopStore(config, caches)
        logits = decoding_step(fed, position, start, store, room_for, config, placement, storage)
        return logits, store.tensors

    def read(position: tf.Tensor, logits: tf.Tensor, *caches: tf.Tensor) -> tuple:
        fed = tf.slice(aligned, tf.stack([0, position]), [batch, chunk])
        logits, updated = step(fed, position, list(caches))
        return (position + chunk, logits, *updated)

    def draw(
        count: tf.Tensor, alive: tf.Tensor, made: tf.Tensor, ends: tf.Tensor, logits: tf.Tensor, *caches: tf.Tensor
    ) -> tuple:
        token = tf.where_v2(alive, drawn(logits, count), 0 if config.eos_id is None else config.eos_id)
        logits, updated = step(token[:, tf.newaxis], length + count, list(caches))
        ends = tf.where_v2(alive, count + 1, ends)
        return (
            count + 1,
            alive if config.eos_id is None else tf.logical_and(alive, tf.not_equal(token, config.eos_id)),
            made.write(count, token),
            ends,
            logits,
            *updated,
        )

    logits = tf.zeros([batch, config.n_vocab])
    caches = LoopStore.empty(config, batch, room_for)
    state = tf.while_loop(
        lambda position, *_: position < length, read, (tf.constant(0), logits, *caches), parallel_iterations=1
    )
    made = tf.TensorArray(tf.int32, room, element_shape=[batch])
    first = (tf.constant(0), tf.fill([batch], True), made, tf.zeros([batch], tf.int32), *state[1:])
    state = tf.while_loop(
        lambda count, alive, *_: tf.logical_and(count < room, tf.reduce_any(alive)), draw, first, parallel_iterations=1
    )
    new = tf.transpose(state[2].stack())[:, : state[0]]
    return new, state[3]


def room_beside(lengths: tf.Tensor, max_tokens: tf.Tensor, n_ctx: int) -> tf.Tensor:
    """How many of `max_tokens` new tokens fit beside the longest prompt; the graph fails where a prompt is empty or
    leaves no room."""
    longest = tf.reduce_max(lengths)
    fits = tf.debugging.assert_less(longest, n_ctx, message="a prompt leaves no room in n_ctx for a new token")
    with tf.control_dependencies([fits, tf.debugging.assert_positive(lengths, message="a prompt is empty")]):
        return tf.minimum(max_tokens, n_ctx - longest)


def decoding_step(
    tokens: tf.Tensor,
    position: tf.Tensor,
    start: tf.Tensor,
    store: LoopStore,
    length: int,
    config: ModelConfig,
    placement: Placement,
    storage: Storage = plain,
) -> tf.Tensor:
    """Logits float32 [batch, vocab] of the last of `tokens` [batch, sequence]; the store is after it then."""
    with uncompiled():
        context, at = Context(last_only=True, storage=storage), (position, start, length, store)
        (logits,), _ = forward(placement, config, tokens, context, at)
        return logits[:, 0]
