"""Attention of a decoding step over keys and values kept from earlier steps.

All rows of a batch share one slot counter: prompts are aligned on the right, and row b begins at slot `start[b]`.
Global layers keep every slot; local layers a ring of `radius` entries, in which slot s lies at s mod radius.
"""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.model.fused_ops import MASKED
from gpt_neo.mtf_compat import mtf, tf, zeros_initializer

CACHES = "caches"  # collection of the cache variables
BLOCK = 128  # slots by which the part of a global cache that is read grows


def cached_attention(
    q: Any, k: Any, v: Any, slot: Any, start: Any, slots: int, radius: Optional[int], memory: Optional[tuple] = None
) -> Any:
    """Attend over the cache and the new tokens, and keep the latter.

    Args:
      q, k, v: [batch, sequence, heads, features_per_head] of the new tokens, in slots slot .. slot + sequence - 1.
      slot: int32 scalar.
      start: int32 [batch], the first slot of each row.
      slots: entries of a global cache.
      radius: window of a local layer, None for a global one.
      memory: keys and values that every query of a global layer sees, each [mem_kv_sequence, heads,
        features_per_head].

    Returns:
      a tensor of the shape of q.
    """
    return CachedAttentionOperation([q, k, v, slot, start, *(memory or ())], slots, radius).outputs[0]


class CachedAttentionOperation(mtf.Operation):
    """See `cached_attention`. Caches are variables that each shard updates in place."""

    def __init__(self, inputs: list, slots: int, radius: Optional[int]) -> None:
        super().__init__(inputs, name="cached_attention")
        q = inputs[0]
        self.scope = tf.get_variable_scope()
        self.slots, self.radius = slots, radius
        self._outputs = [mtf.Tensor(self, q.shape, q.dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Rows and heads are independent, so shards are."""
        mesh_impl = lowering.mesh_impl(self)
        shards = iter(range(mesh_impl.size))

        def attend(q: Any, k: Any, v: Any, slot: Any, start: Any, *memory: Any) -> Any:
            with tf.variable_scope(self.scope, auxiliary_name_scope=False):
                caches = make_caches(k, self.radius or -(-self.slots // BLOCK) * BLOCK, next(shards))
            q, k, v = (tf.transpose(x, [0, 2, 1, 3]) for x in (q, k, v))
            if self.radius is None:
                out = global_step(q, k, v, slot, start, caches, memory)
            else:
                step = ring_step if k.shape[2] == 1 else local_step
                out = step(q, k, v, slot, start, caches, self.radius)
            return tf.transpose(out, [0, 2, 1, 3])

        out = mesh_impl.slicewise(attend, *[lowering.tensors[x] for x in self.inputs])
        lowering.set_tensor_lowering(self.outputs[0], out)


def make_caches(like: Any, entries: int, shard: int) -> list:
    """Two variables [batch, heads, entries, features] for keys and values.

    Reference variables: a slice of them is assigned in place, where a resource variable would be copied first. They
    start at 0, since a masked entry still multiplies by 0.
    """
    batch, _, heads, features = like.shape.as_list()
    shape = [batch, heads, entries, features]
    return [
        tf.get_variable(f"cache_{name}_{shard}", shape, like.dtype, zeros_initializer, trainable=False,
                        use_resource=False, collections=[CACHES])
        for name in ("k", "v")
    ]  # fmt: skip


def write(cache: Any, values: Any, at: Any) -> Any:
    """Put values [batch, heads, n, features] at entries at .. at + n - 1; returns the cache after it."""
    zero = tf.zeros_like(at)
    whole = 0b1011  # all but the third dimension are taken whole
    return tf.raw_ops.StridedSliceAssign(
        ref=cache, begin=tf.stack([zero, zero, at, zero]), end=tf.stack([zero, zero, at + values.shape[2], zero]),
        strides=[1, 1, 1, 1], value=values, begin_mask=whole, end_mask=whole,
    )  # fmt: skip


def ring_step(q: Any, k: Any, v: Any, slot: Any, start: Any, caches: list, radius: int) -> Any:
    """Write one token over the one that leaves the window, then attend over the ring as it lies."""
    keys, values = (write(cache, new, tf.math.floormod(slot, radius)) for cache, new in zip(caches, (k, v)))
    held = slot - tf.math.floormod(slot - tf.range(radius), radius)  # negative where nothing is held yet
    return attend_slots(q, keys, values, visible(1, slot, held, start, radius))


def global_step(q: Any, k: Any, v: Any, slot: Any, start: Any, caches: list, memory: tuple) -> Any:
    """Write, then attend over the memory and every slot up to the query's own, rounded up to whole blocks.

    Kernels are made anew for every shape that they meet, which costs more than a block of masked entries.
    """
    count = k.shape[2]
    held = -(-(slot + count) // BLOCK) * BLOCK
    keys, values = (
        tf.slice(write(cache, new, slot), [0, 0, 0, 0], tf.stack([-1, -1, held, -1]))
        for cache, new in zip(caches, (k, v))
    )
    allowed = visible(count, slot, tf.range(held), start, None)
    if memory:
        keys, values = (tf.concat([rows_of(more, k), x], 2) for more, x in zip(memory, (keys, values)))
        always = tf.ones([k.shape[0], 1, count, memory[0].shape[0]], tf.bool)
        allowed = tf.concat([always, allowed], 3)
    return attend_slots(q, keys, values, allowed)


def rows_of(memory: Any, like: Any) -> Any:
    """[memory, heads, features] -> [batch, heads, memory, features], the batch of `like`."""
    return tf.tile(tf.transpose(memory, [1, 0, 2])[tf.newaxis], [like.shape[0], 1, 1, 1])


def local_step(q: Any, k: Any, v: Any, slot: Any, start: Any, caches: list, radius: int) -> Any:
    """Attend over the ring and the new tokens, then put the newest `radius` of them into the ring."""
    count = k.shape[2]
    entries = tf.range(radius)
    held = slot - 1 - tf.math.floormod(slot - 1 - entries, radius)  # negative where nothing is held yet
    keys, values = (tf.concat([cache, new], 2) for cache, new in zip(caches, (k, v)))
    allowed = visible(count, slot, tf.concat([held, slot + tf.range(count)], 0), start, radius)
    out = attend_slots(q, keys, values, allowed)
    newest = slot + count - 1 - tf.math.floormod(slot + count - 1 - entries, radius)
    source = tf.where_v2(newest >= slot, radius + newest - slot, entries)
    with tf.control_dependencies([keys, values]):
        updates = [tf.assign(c, tf.gather(x, source, axis=2)).op for c, x in zip(caches, (keys, values))]
    with tf.control_dependencies(updates):
        return tf.identity(out)


def visible(count: int, slot: Any, key_slots: Any, start: Any, radius: Optional[int]) -> Any:
    """Which entries the queries of slots slot .. slot + count - 1 may see: boolean [batch, 1, count, entries].

    Args:
      key_slots: int32 [entries].
    """
    distance = (slot + tf.range(count))[:, tf.newaxis] - key_slots
    allowed = distance >= 0
    if radius is not None:
        allowed = tf.logical_and(allowed, distance < radius)
    begun = key_slots >= tf.maximum(start, 0)[:, tf.newaxis]
    return tf.logical_and(allowed, begun[:, tf.newaxis, tf.newaxis, :])


def attend_slots(q: Any, keys: Any, values: Any, allowed: Any) -> Any:
    """Softmax attention, float32, over entries; scores are not divided by sqrt(features).

    Args:
      q: [batch, heads, n, features].
      keys, values: [batch, heads, entries, features].
      allowed: boolean [batch, 1, n, entries].
    """
    scores = tf.linalg.matmul(tf.cast(q, tf.float32), tf.cast(keys, tf.float32), transpose_b=True)
    weights = tf.nn.softmax(tf.where_v2(allowed, scores, MASKED))
    out = tf.linalg.matmul(tf.cast(weights, values.dtype), values)
    out.set_shape(q.shape)  # lost with the number of entries, which only a step knows
    return out
