"""Attention of a decoding step over keys and values kept from earlier steps.

Row b begins at slot `start[b]`. Either all rows of a batch share one slot counter, their prompts aligned on the right;
or each row is at a slot of its own, so that rows may come and go while others go on. Global layers keep every slot;
local layers a ring of `radius` entries, in which slot s lies at s mod radius.
"""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.model.context import Decoding
from gpt_neo.model.fused_ops import MASKED
from gpt_neo.mtf_compat import mtf, tf, zeros_initializer

CACHES = "caches"  # collection of the cache variables
BLOCK = 128  # slots by which the part of a global cache that is read grows


def cached_attention(
    q: Any, k: Any, v: Any, at: Decoding, radius: Optional[int], memory: Optional[tuple] = None
) -> Any:
    """Attend over the cache and the new tokens, and keep the latter.

    Args:
      q, k, v: [batch, sequence, heads, features_per_head] of the new tokens.
      at: their slots.
      radius: window of a local layer, None for a global one.
      memory: keys and values that every query of a global layer sees, each [mem_kv_sequence, heads,
        features_per_head].

    Returns:
      a tensor of the shape of q.
    """
    row = [] if at.row is None else [at.row]
    return CachedAttentionOperation([q, k, v, at.slot, at.start, *row, *(memory or ())], at, radius).outputs[0]


class CachedAttentionOperation(mtf.Operation):
    """See `cached_attention`. Caches are variables that each shard updates in place."""

    def __init__(self, inputs: list, at: Decoding, radius: Optional[int]) -> None:
        super().__init__(inputs, name="cached_attention")
        q = inputs[0]
        self.scope = tf.get_variable_scope()
        self.at, self.radius = at, radius
        self._outputs = [mtf.Tensor(self, q.shape, q.dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Rows and heads are independent, so shards are."""
        mesh_impl = lowering.mesh_impl(self)
        shards = iter(range(mesh_impl.size))

        def attend(q: Any, k: Any, v: Any, slot: Any, start: Any, *others: Any) -> Any:
            row, memory = (None, others) if self.at.row is None else (others[0], others[1:])
            with tf.variable_scope(self.scope, auxiliary_name_scope=False):
                entries = self.radius or -(-self.at.slots // BLOCK) * BLOCK
                caches = make_caches(k, self.at.rows or k.shape[0], entries, next(shards))
            q, k, v = (tf.transpose(x, [0, 2, 1, 3]) for x in (q, k, v))
            if self.radius is not None:
                alone = k.shape[2] == 1 and row is None
                step, extra = (ring_step, ()) if alone else (local_step, (row,))
                out = step(q, k, v, slot, start, caches, self.radius, *extra)
            elif slot.shape.ndims:
                out = own_slots_step(q, k, v, slot, start, caches, memory)
            else:
                out = global_step(q, k, v, slot, start, caches, memory, row)
            return tf.transpose(out, [0, 2, 1, 3])

        out = mesh_impl.slicewise(attend, *[lowering.tensors[x] for x in self.inputs])
        lowering.set_tensor_lowering(self.outputs[0], out)


def make_caches(like: Any, rows: int, entries: int, shard: int) -> list:
    """Two variables [rows, heads, entries, features] for keys and values.

    Reference variables: a slice of them is assigned in place, where a resource variable would be copied first. They
    start at 0, since a masked entry still multiplies by 0.
    """
    _, _, heads, features = like.shape.as_list()
    shape = [rows, heads, entries, features]
    return [
        tf.get_variable(
            f"cache_{name}_{shard}",
            shape,
            like.dtype,
            zeros_initializer,
            trainable=False,
            use_resource=False,
            collections=[CACHES],
        )
        for name in ("k", "v")
    ]


def write(cache: Any, values: Any, at: Any, row: Optional[Any] = None) -> Any:
    """Put values [batch, heads, n, features] at entries at .. at + n - 1 of all rows, or of one.

    Args:
      at: int32 scalar, or [batch] for one entry (n = 1) of each row.

    Returns:
      the cache after it.
    """
    if at.shape.ndims:
        batch, heads = values.shape.as_list()[:2]
        places = tf.meshgrid(tf.range(batch), tf.range(heads), indexing="ij")
        entries = tf.stack([*places, tf.tile(at[:, tf.newaxis], [1, heads])], 2)
        return tf.raw_ops.ScatterNdUpdate(ref=cache, indices=entries, updates=values[:, :, 0])
    zero = tf.zeros_like(at)
    first, last = (zero, zero) if row is None else (row, row + 1)
    whole = 0b1011 if row is None else 0b1010  # dimensions that are taken whole
    return tf.raw_ops.StridedSliceAssign(
        ref=cache,
        begin=tf.stack([first, zero, at, zero]),
        end=tf.stack([last, zero, at + values.shape[2], zero]),
        strides=[1, 1, 1, 1],
        value=values,
        begin_mask=whole,
        end_mask=whole,
    )


def ring_step(q: Any, k: Any, v: Any, slot: Any, start: Any, caches: list, radius: int) -> Any:
    """Write one token over the one that leaves the window, then attend over the ring as it lies."""
    keys, values = (write(cache, new, tf.math.floormod(slot, radius)) for cache, new in zip(caches, (k, v)))
    return attend_ring(q, keys, values, slot, start, radius)


def attend_ring(q: Any, keys: Any, values: Any, slot: Any, start: Any, radius: int) -> Any:
    """Attention of one token over the ring [batch, heads, radius, features] that has its own keys and values too."""
    newest = slot[:, tf.newaxis] if slot.shape.ndims else slot
    held = newest - tf.math.floormod(newest - tf.range(radius), radius)  # negative where nothing is held yet
    return attend_slots(q, keys, values, visible(1, slot, held, start, radius))


def global_step(
    q: Any, k: Any, v: Any, slot: Any, start: Any, caches: list, memory: tuple, row: Optional[Any] = None
) -> Any:
    """Write, then attend over the memory and every slot up to the query's own, rounded up to whole blocks.

    Kernels are made anew for every shape that they meet, which costs more than a block of masked entries.
    """
    count = k.shape[2]
    held = -(-(slot + count) // BLOCK) * BLOCK
    begin, size = [0 if row is None else row, 0, 0, 0], tf.stack([k.shape[0], -1, held, -1])
    keys, values = (tf.slice(write(cache, new, slot, row), begin, size) for cache, new in zip(caches, (k, v)))
    allowed = visible(count, slot, tf.range(held), start, None)
    return attend_slots(q, *with_memory(memory, keys, values, allowed))


def with_memory(memory: tuple, keys: Any, values: Any, allowed: Any) -> tuple:
    """Keys, values and mask, as `attend_slots` takes them, with the memory, if any, that every query sees before."""
    if not memory:
        return keys, values, allowed
    batch, _, count, _ = allowed.shape.as_list()
    always = tf.ones([batch, 1, count, memory[0].shape[0]], tf.bool)
    keys, values = (tf.concat([rows_of(more, batch), x], 2) for more, x in zip(memory, (keys, values)))
    return keys, values, tf.concat([always, allowed], 3)


def own_slots_step(q: Any, k: Any, v: Any, slot: Any, start: Any, caches: list, memory: tuple) -> Any:
    """One token of each row, each at its own slot [batch]: write, then attend block by block.

    A sum over all entries up to the longest row's end could be grouped by its length, and so give a short row other
    last digits than it gets alone. Here every kernel sees one block, of one size, and a row adds exactly 0 past its
    own end.
    """
    # A loop takes no reference; the identity of one shares its memory.
    caches = [tf.identity(write(cache, new, slot)) for cache, new in zip(caches, (k, v))]
    batch, heads, _, features = q.shape.as_list()
    wide = tf.cast(q, tf.float32)

    def fold(keys: Any, values: Any, allowed: Any, highest: Any, total: Any, out: Any) -> tuple:
        scores = tf.linalg.matmul(wide, tf.cast(keys, tf.float32), transpose_b=True)
        scores = tf.where_v2(allowed, scores, MASKED)
        top = tf.maximum(highest, tf.reduce_max(scores, -1, keepdims=True))
        weights = tf.where_v2(allowed, tf.exp(scores - top), 0.0)
        kept = tf.exp(highest - top)
        total = total * kept + tf.reduce_sum(weights, -1, keepdims=True)
        return top, total, out * kept + tf.linalg.matmul(weights, tf.cast(values, tf.float32))

    def body(block: Any, *sums: Any) -> tuple:
        first = block * BLOCK
        begin, size = tf.stack([0, 0, first, 0]), [batch, heads, BLOCK, features]
        keys, values = (tf.slice(cache, begin, size) for cache in caches)
        return (block + 1, *fold(keys, values, visible(1, slot, first + tf.range(BLOCK), start, None), *sums))

    sums: tuple = (tf.fill([batch, heads, 1, 1], MASKED), tf.zeros([batch, heads, 1, 1]), tf.zeros(wide.shape))
    if memory:
        always = tf.ones([1, 1, 1, memory[0].shape[0]], tf.bool)
        sums = fold(rows_of(memory[0], batch), rows_of(memory[1], batch), always, *sums)
    blocks = tf.reduce_max(slot) // BLOCK + 1
    _, _, total, out = tf.while_loop(
        lambda block, *_: block < blocks, body, (tf.constant(0), *sums), parallel_iterations=1, back_prop=False
    )
    # The highest score adds 1 to the total, unless a row sees nothing at all: idle rows.
    return tf.cast(out / tf.maximum(total, 1.0), v.dtype)


def rows_of(memory: Any, batch: int) -> Any:
    """[memory, heads, features] -> [batch, heads, memory, features]."""
    return tf.tile(tf.transpose(memory, [1, 0, 2])[tf.newaxis], [batch, 1, 1, 1])


def local_step(
    q: Any, k: Any, v: Any, slot: Any, start: Any, caches: list, radius: int, row: Optional[Any] = None
) -> Any:
    """Attend over the ring and the new tokens, then put the newest `radius` of them into the ring."""
    rings = caches if row is None else [tf.gather(cache, [row]) for cache in caches]
    keys, values = (tf.concat([ring, new], 2) for ring, new in zip(rings, (k, v)))
    out = attend_window(q, keys, values, slot, start, radius)
    with tf.control_dependencies([keys, values]):
        moved = [newest_ring(x, slot, radius) for x in (keys, values)]
        updates = [write(cache, x, tf.constant(0), row).op for cache, x in zip(caches, moved)]
    with tf.control_dependencies(updates):
        return tf.identity(out)


def attend_window(q: Any, keys: Any, values: Any, slot: Any, start: Any, radius: int) -> Any:
    """Attention of new tokens [batch, heads, n, features] over [batch, heads, radius + n, features]: the ring before
    them, then theirs."""
    count = q.shape[2]
    held = slot - 1 - tf.math.floormod(slot - 1 - tf.range(radius), radius)  # negative where nothing is held yet
    allowed = visible(count, slot, tf.concat([held, slot + tf.range(count)], 0), start, radius)
    return attend_slots(q, keys, values, allowed)


def newest_ring(x: Any, slot: Any, radius: int) -> Any:
    """The ring after new tokens: of [batch, heads, radius + n, features], as above, the newest `radius` ones."""
    count, entries = x.shape[2] - radius, tf.range(radius)
    newest = slot + count - 1 - tf.math.floormod(slot + count - 1 - entries, radius)
    return tf.gather(x, tf.where_v2(newest >= slot, radius + newest - slot, entries), axis=2)


def visible(count: int, slot: Any, key_slots: Any, start: Any, radius: Optional[int]) -> Any:
    """Which entries the queries of slots slot .. slot + count - 1 may see: boolean [batch, 1, count, entries].

    Args:
      slot: int32 scalar or [batch].
      key_slots: int32 [entries] or [batch, entries].
    """
    # One slot for all rows keeps the mask as small as it can be: a step of one row is made of many small operations.
    queries = (slot[:, tf.newaxis] if slot.shape.ndims else slot) + tf.range(count)
    distance = queries[..., tf.newaxis] - (key_slots if key_slots.shape.ndims == 1 else key_slots[:, tf.newaxis])
    allowed = distance >= 0
    if radius is not None:
        allowed = tf.logical_and(allowed, distance < radius)
    begun = key_slots >= tf.maximum(start, 0)[:, tf.newaxis]
    if slot.shape.ndims:
        allowed = allowed[:, tf.newaxis]
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
