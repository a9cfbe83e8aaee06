"""What decoding keeps of earlier tokens: where it is kept, and softmax attention over it.

Layers read and write through a `Store`: variables of a session, values that a loop carries, or slices of a core that a
program takes in and gives out. Row b of a batch begins at position `start[b]`. Either all rows are at one position,
their prompts aligned on the right; or each is at a position of its own, so that rows may come and go while others go
on. Layers that see everything keep every position; those with a window keep a ring, in which position s lies at
s mod window.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from gpt_neo.config.network import kinds_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.mtf_compat import Tensor, mtf, tf, zeros_initializer
from gpt_neo.ops.fused import FusedOp
from gpt_neo.ops.kernels import put_slice
from gpt_neo.ops.parameters import activation_dtype
from gpt_neo.ops.softmax import MASKED

CACHES = "caches"  # collection of the variables of a session
BLOCK = 128  # positions by which the part of a cache that is read grows


@dataclasses.dataclass(frozen=True)
class CacheShard:
    """What a shard has of a layer's cache: [rows, heads, entries, columns].

    Entries are positions, or features of a state. shard: of the mesh, of whose rows and heads it is.
    """

    layer: int
    name: str
    shard: int
    shape: tuple
    dtype: Any
    is_state: bool

    @property
    def place(self) -> tuple[int, str]:
        """What it is called in a store of one shard."""
        return self.layer, self.name


class Store:
    """Where caches are kept. Every cache starts at 0.

    rows: of the caches; None where they are those of the batch. row: int32 TensorFlow scalar, the row that a batch of 1
    is; None where the batch is all of them. grows: whether what is read may be of a length that only a step knows.
    """

    grows = True
    rows: Optional[int] = None
    row: Optional[Any] = None

    def entries(self, length: int) -> int:
        """Entries of a cache of `length` positions: whole blocks, where reads are."""
        return -(-length // BLOCK) * BLOCK if self.grows else length

    def read(self, cache: CacheShard) -> tf.Tensor:
        """The tensor [batch, heads, entries, columns] of the rows at hand."""
        raise NotImplementedError

    def write(
        self, cache: CacheShard, values: tf.Tensor, at: Optional[tf.Tensor] = None, held: Optional[tf.Tensor] = None
    ) -> tf.Tensor:
        """Put values [batch, heads, n, columns] at entries at .. at + n - 1, or in the place of all.

        Args:
          at: int32 scalar, or [batch] for one entry (n = 1) of each row.
          held: how many of the first entries to give back; None for all.

        Returns:
          the first entries after that, [batch, heads, held, columns].
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Where new tokens go: positions position .. position + sequence - 1 of the caches.

    position: int32 mtf scalar, or [batch] where rows are at positions of their own; such a pass reads one token of each
      row.
    start: int32 [batch], position of each row's first token; what is before it is padding.
    length: positions that the caches hold.
    store: where the caches are.
    """

    position: Tensor
    start: Tensor
    length: int
    store: Store


class VariableStore(Store):
    """Variables of a session, which each shard updates in place."""

    def __init__(self, rows: Optional[int] = None, row: Optional[tf.Tensor] = None) -> None:
        self.rows, self.row = rows, row

    def variable(self, cache: CacheShard) -> tf.Tensor:
        """Of positions a reference variable: a slice of it is assigned in place, where a resource would be copied.

        They start at 0, since a masked entry still multiplies by 0.
        """
        return tf.get_variable(
            f"gpt2/h{cache.layer}/attn/{cache.name}_{cache.shard}",
            cache.shape,
            cache.dtype,
            zeros_initializer,
            trainable=False,
            use_resource=cache.is_state,
            collections=[CACHES],
        )

    def read(self, cache: CacheShard) -> tf.Tensor:
        """See `Store`."""
        variable = self.variable(cache)
        if self.row is not None:
            return tf.gather(variable, [self.row])
        return variable.read_value() if cache.is_state else variable

    def write(
        self, cache: CacheShard, values: tf.Tensor, at: Optional[tf.Tensor] = None, held: Optional[tf.Tensor] = None
    ) -> tf.Tensor:
        """See `Store`."""
        variable = self.variable(cache)
        if cache.is_state:
            if self.row is None:
                return tf.assign(variable, values)
            return variable.scatter_update(tf.IndexedSlices(values, [self.row]))
        if at is not None and at.shape.ndims:
            after = scatter_entries(variable, values, at)
        else:
            after = assign_entries(variable, values, tf.constant(0) if at is None else at, self.row)
        if held is None:
            return after
        return tf.slice(
            after, [0 if self.row is None else self.row, 0, 0, 0], tf.stack([values.shape[0], -1, held, -1])
        )


def scatter_entries(variable: tf.Variable, values: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """One entry of each row, at [batch]."""
    batch, heads = values.shape.as_list()[:2]
    places = tf.meshgrid(tf.range(batch), tf.range(heads), indexing="ij")
    entries = tf.stack([*places, tf.tile(at[:, tf.newaxis], [1, heads])], 2)
    return tf.raw_ops.ScatterNdUpdate(ref=variable, indices=entries, updates=values[:, :, 0])


def assign_entries(variable: tf.Variable, values: tf.Tensor, at: tf.Tensor, row: Optional[tf.Tensor]) -> tf.Tensor:
    """Entries from `at` on, of all rows or of one."""
    zero = tf.zeros_like(at)
    first, last = (zero, zero) if row is None else (row, row + 1)
    whole = 0b1011 if row is None else 0b1010  # dimensions that are taken whole
    return tf.raw_ops.StridedSliceAssign(
        ref=variable,
        begin=tf.stack([first, zero, at, zero]),
        end=tf.stack([last, zero, at + tf.shape(values)[2], zero]),
        strides=[1, 1, 1, 1],
        value=values,
        begin_mask=whole,
        end_mask=whole,
    )


class LoopStore(Store):
    """Tensors that a loop carries from step to step, so that a graph with the loop inside holds no state of its own.

    Caches of positions are lists of rows, [rows * heads * entries, columns], which TensorFlow updates in place while
    nothing else holds them. Of one shard.

    Args:
      tensors: as `tensors` has them after the step before, or as `empty` makes them.
    """

    def __init__(self, config: ModelConfig, tensors: Sequence[tf.Tensor]) -> None:
        self.held = dict(zip(places_of(config), tensors))

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, length: int) -> list:
        """Caches before the first token."""
        shapes = cache_shapes(config, batch, length, whole=cls(config, ()).entries(length))
        return [
            tf.zeros(shape if is_state else [math.prod(shape[:3]), shape[3]], dtype)
            for shape, dtype, is_state in shapes.values()
        ]

    @property
    def tensors(self) -> list:
        """What the next step starts from."""
        return list(self.held.values())

    def read(self, cache: CacheShard) -> tf.Tensor:
        """See `Store`."""
        return tf.reshape(self.held[cache.place], cache.shape)

    def write(
        self, cache: CacheShard, values: tf.Tensor, at: Optional[tf.Tensor] = None, held: Optional[tf.Tensor] = None
    ) -> tf.Tensor:
        """See `Store`."""
        rows, heads, entries, columns = cache.shape
        old = self.held[cache.place]
        if cache.is_state:
            self.held[cache.place] = tf.ensure_shape(values, old.shape)
        elif at is None:
            self.held[cache.place] = tf.reshape(values, old.shape)
        else:
            places = (tf.range(rows * heads) * entries + at)[:, tf.newaxis] + tf.range(values.shape[2])
            self.held[cache.place] = tf.tensor_scatter_nd_update(
                old, tf.reshape(places, [-1, 1]), tf.reshape(values, [-1, columns])
            )
        after = self.read(cache)
        return after if held is None else after[:, :, :held]


class CoreStore(LoopStore):
    """One core's own slices, in a program that XLA compiles whole, and updates in place: whole caches are read."""

    grows = False

    def read(self, cache: CacheShard) -> tf.Tensor:
        """See `Store`."""
        return self.held[cache.place]

    def write(
        self, cache: CacheShard, values: tf.Tensor, at: Optional[tf.Tensor] = None, held: Optional[tf.Tensor] = None
    ) -> tf.Tensor:
        """See `Store`."""
        old = self.held[cache.place]
        self.held[cache.place] = values if at is None else put_slice(old, values, [0, 0, at, 0])
        return self.held[cache.place]


def places_of(config: ModelConfig) -> Iterator[tuple[int, str]]:
    """(layer, name) of every cache of a network, in order."""
    for layer, kind in enumerate(kinds_of(config)):
        for cache in kind.caches(config):
            yield layer, cache.name


def cache_shapes(
    config: ModelConfig, rows: int, length: int, whole: Optional[int] = None
) -> dict[tuple[int, str], tuple]:
    """(layer, name) of every cache -> ([rows, heads, entries, columns], type, whether it is a state).

    Args:
      whole: entries of a cache of all positions; `length` when absent.
    """
    found = {}
    for layer, kind in enumerate(kinds_of(config)):
        for cache in kind.caches(config):
            is_state, positions = cache.rows is not None, kind.positions(config, length)
            entries = cache.rows or (positions if positions < length else whole or length)
            dtype = tf.float32 if is_state else activation_dtype(config)
            found[layer, cache.name] = [rows, cache.heads, entries, cache.columns], dtype, is_state
    return found


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, at: Decoding, layer: int, window: Optional[int], memory: tuple = ()
) -> Tensor:
    """Attend over the cache and the new tokens, and keep the latter.

    Args:
      q, k, v: [batch, sequence, heads, features_per_head] of the new tokens.
      at: a `Decoding`: their positions, and the store.
      window: that the layer sees, itself included; None for everything.
      memory: keys and values that every query sees, each [mem_kv_sequence, heads, features_per_head]; or nothing.

    Returns:
      a tensor of the shape of q.
    """
    if window is not None and at.length <= window:
        window = None  # a window that no text here outgrows needs no ring of its own
    return CachedAttentionOperation([q, k, v, at.position, at.start, *memory], at, layer, window).outputs[0]


class CachedAttentionOperation(FusedOp):
    """See `cached_attention`."""

    def __init__(self, inputs: list, at: Decoding, layer: int, window: Optional[int]) -> None:
        super().__init__("cached_attention", inputs, [(inputs[0].shape, inputs[0].dtype)])
        self.store, self.layer, self.window = at.store, layer, window
        self.entries = window or at.store.entries(at.length)

    def lower(self, lowering: mtf.Lowering) -> None:
        """Rows and heads are independent, so shards are."""
        mesh_impl = lowering.mesh_impl(self)
        shards = iter(range(mesh_impl.size))

        def attend(
            q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, position: tf.Tensor, start: tf.Tensor, *memory: tf.Tensor
        ) -> tf.Tensor:
            shard = next(shards)
            q, k, v = (tf.transpose(x, [0, 2, 1, 3]) for x in (q, k, v))
            batch, heads, _, features = k.shape.as_list()
            shape = (self.store.rows or batch, heads, self.entries, features)
            caches = [CacheShard(self.layer, f"cache_{x}", shard, shape, k.dtype, is_state=False) for x in "kv"]
            if self.window is not None:
                out = window_step(q, k, v, position, start, caches, self.store, self.window)
            elif position.shape.ndims:
                out = own_positions_step(q, k, v, position, start, caches, self.store, memory)
            else:
                out = whole_step(q, k, v, position, start, caches, self.store, memory)
            return tf.transpose(out, [0, 2, 1, 3])

        out = mesh_impl.slicewise(attend, *[lowering.tensors[x] for x in self.inputs])
        lowering.set_tensor_lowering(self.outputs[0], out)


def whole_step(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    position: tf.Tensor,
    start: tf.Tensor,
    caches: list,
    store: Store,
    memory: Sequence[tf.Tensor],
) -> tf.Tensor:
    """Write, then attend over the memory and every position up to the query's own, rounded up to whole blocks.

    Kernels are made anew for every shape that they meet, which costs more than a block of masked entries.
    """
    count = k.shape[2]
    held = -(-(position + count) // BLOCK) * BLOCK if store.grows else caches[0].shape[2]
    keys, values = (store.write(cache, new, position, held) for cache, new in zip(caches, (k, v)))
    allowed = visible(count, position, tf.range(held), start, None)
    return attend_entries(q, *with_memory(memory, keys, values, allowed))


def with_memory(memory: Sequence[tf.Tensor], keys: tf.Tensor, values: tf.Tensor, allowed: tf.Tensor) -> tuple:
    """Keys, values and mask, as `attend_entries` takes them, with the memory, if any, that every query sees before."""
    if not memory:
        return keys, values, allowed
    batch, _, count, _ = allowed.shape.as_list()
    always = tf.ones([batch, 1, count, memory[0].shape[0]], tf.bool)
    keys, values = (tf.concat([rows_of(more, batch), x], 2) for more, x in zip(memory, (keys, values)))
    return keys, values, tf.concat([always, allowed], 3)


def own_positions_step(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    position: tf.Tensor,
    start: tf.Tensor,
    caches: list,
    store: Store,
    memory: Sequence[tf.Tensor],
) -> tf.Tensor:
    """One token of each row, each at its own position [batch]: write, then attend block by block.

    A sum over all entries up to the longest row's end could be grouped by its length, and so give a short row other
    last digits than it gets alone. Here every kernel sees one block, of one size, and a row adds exactly 0 past its
    own end.
    """
    # A loop takes no reference; the identity of one shares its memory.
    held = [tf.identity(store.write(cache, new, position)) for cache, new in zip(caches, (k, v))]
    batch, heads, _, features = q.shape.as_list()
    wide = tf.cast(q, tf.float32)

    def fold(
        keys: tf.Tensor, values: tf.Tensor, allowed: tf.Tensor, highest: tf.Tensor, total: tf.Tensor, out: tf.Tensor
    ) -> tuple:
        scores = tf.linalg.matmul(wide, tf.cast(keys, tf.float32), transpose_b=True)
        scores = tf.where_v2(allowed, scores, MASKED)
        top = tf.maximum(highest, tf.reduce_max(scores, -1, keepdims=True))
        weights = tf.where_v2(allowed, tf.exp(scores - top), 0.0)
        kept = tf.exp(highest - top)
        total = total * kept + tf.reduce_sum(weights, -1, keepdims=True)
        return top, total, out * kept + tf.linalg.matmul(weights, tf.cast(values, tf.float32))

    def body(block: tf.Tensor, *sums: tf.Tensor) -> tuple:
        first = block * BLOCK
        begin, size = tf.stack([0, 0, first, 0]), [batch, heads, BLOCK, features]
        keys, values = (tf.slice(cache, begin, size) for cache in held)
        return (block + 1, *fold(keys, values, visible(1, position, first + tf.range(BLOCK), start, None), *sums))

    sums: tuple = (tf.fill([batch, heads, 1, 1], MASKED), tf.zeros([batch, heads, 1, 1]), tf.zeros(wide.shape))
    if memory:
        always = tf.ones([1, 1, 1, memory[0].shape[0]], tf.bool)
        sums = fold(rows_of(memory[0], batch), rows_of(memory[1], batch), always, *sums)
    blocks = tf.reduce_max(position) // BLOCK + 1
    _, _, total, out = tf.while_loop(
        lambda block, *_: block < blocks, body, (tf.constant(0), *sums), parallel_iterations=1, back_prop=False
    )
    # The highest score adds 1 to the total, unless a row sees nothing at all: idle rows.
    return tf.cast(out / tf.maximum(total, 1.0), v.dtype)


def rows_of(memory: tf.Tensor, batch: int) -> tf.Tensor:
    """[memory, heads, features] -> [batch, heads, memory, features]."""
    return tf.tile(tf.transpose(memory, [1, 0, 2])[tf.newaxis], [batch, 1, 1, 1])


def window_step(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    position: tf.Tensor,
    start: tf.Tensor,
    caches: list,
    store: Store,
    window: int,
) -> tf.Tensor:
    """One token is written over the one that leaves the window, and attends to the ring as it lies. Several attend to
    the ring and to each other; then the newest of both make the ring."""
    if k.shape[2] == 1 and store.row is None:
        at = tf.math.floormod(position, window)
        keys, values = (store.write(cache, new, at) for cache, new in zip(caches, (k, v)))
        return attend_ring(q, keys, values, position, start, window)
    joined = [tf.concat([store.read(cache), new], 2) for cache, new in zip(caches, (k, v))]
    out = attend_window(q, joined[0], joined[1], position, start, window)
    with tf.control_dependencies(joined):
        written = [store.write(cache, newest_ring(x, position, window)) for cache, x in zip(caches, joined)]
    with tf.control_dependencies(written):
        return tf.identity(out)


def attend_ring(
    q: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, position: tf.Tensor, start: tf.Tensor, window: int
) -> tf.Tensor:
    """Attention of one token over the ring [batch, heads, window, features] that has its own keys and values too."""
    newest = position[:, tf.newaxis] if position.shape.ndims else position
    held = newest - tf.math.floormod(newest - tf.range(window), window)  # negative where nothing is held yet
    return attend_entries(q, keys, values, visible(1, position, held, start, window))


def attend_window(
    q: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, position: tf.Tensor, start: tf.Tensor, window: int
) -> tf.Tensor:
    """Attention of new tokens [batch, heads, n, features] over [batch, heads, window + n, features]: the ring before
    them, then theirs."""
    count, last = q.shape[2], position - 1
    held = last - tf.math.floormod(last - tf.range(window), window)  # negative where nothing is held yet
    allowed = visible(count, position, tf.concat([held, position + tf.range(count)], 0), start, window)
    return attend_entries(q, keys, values, allowed)


def newest_ring(x: tf.Tensor, position: tf.Tensor, window: int) -> tf.Tensor:
    """The ring after new tokens: of [batch, heads, window + n, features], as above, the newest `window` ones."""
    count, entries = x.shape[2] - window, tf.range(window)
    last = position + count - 1
    newest = last - tf.math.floormod(last - entries, window)
    return tf.gather(x, tf.where_v2(newest >= position, window + newest - position, entries), axis=2)


def visible(
    count: int, position: tf.Tensor, key_positions: tf.Tensor, start: tf.Tensor, window: Optional[int]
) -> tf.Tensor:
    """Which entries the queries of positions position .. position + count - 1 may see: bool [batch, 1, count, entries].

    Args:
      position: int32 scalar or [batch].
      key_positions: int32 [entries] or [batch, entries].
    """
    # One position for all rows keeps the mask small: a step of one row is made of many small operations.
    queries = (position[:, tf.newaxis] if position.shape.ndims else position) + tf.range(count)
    keys = key_positions if key_positions.shape.ndims == 1 else key_positions[:, tf.newaxis]
    distance = queries[..., tf.newaxis] - keys
    allowed = distance >= 0
    if window is not None:
        allowed = tf.logical_and(allowed, distance < window)
    begun = key_positions >= tf.maximum(start, 0)[:, tf.newaxis]
    if position.shape.ndims:
        allowed = allowed[:, tf.newaxis]
    return tf.logical_and(allowed, begun[:, tf.newaxis, tf.newaxis, :])


def attend_entries(q: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, allowed: tf.Tensor) -> tf.Tensor:
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
