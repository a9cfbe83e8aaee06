"""Attention of a decoding step over caches that are tensors, which a loop carries from step to step.

What `cached.py` and `stateful.py` keep in variables is passed in and out here, so that a graph with the loop inside
holds no state of its own and may answer several requests at once. Local layers keep every slot too, and look at their
window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional

from gpt_neo.config.network import kinds_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.attention.cached import attend_slots, visible, with_memory
from gpt_neo.model.attention.stateful import StateOperation
from gpt_neo.model.context import Decoding
from gpt_neo.mtf_compat import mtf, tf


class CarriedCaches:
    """The caches of one pass: functions that stand in for `cached_attention` and for `StateOperation`.

    tensors: of each layer in turn, see `empty_caches`; after the pass is lowered, what the next one starts from.
    """

    def __init__(self, tensors: list) -> None:
        self.tensors = tensors
        self.taken = 0

    def take(self, count: int) -> int:
        """The place of the next layer's tensors, of which it has so many."""
        self.taken += count
        return self.taken - count

    def attend(
        self, q: Any, k: Any, v: Any, at: Decoding, radius: Optional[int], memory: Optional[tuple] = None
    ) -> Any:
        """See `cached_attention`."""
        inputs = [q, k, v, at.slot, at.start, *(memory or ())]
        return CarriedAttentionOperation(inputs, at.slots, radius, self, self.take(2)).outputs[0]

    def advance(
        self, kernel: Callable[..., tuple], tensors: list, shape: Any, dtype: Any, state: Sequence[int], at: Decoding
    ) -> Any:
        """See `StateOperation`."""
        return CarriedStateOperation(kernel, tensors, shape, dtype, state, at, self, self.take(1))


def empty_caches(batch: int, slots: int, config: ModelConfig) -> list:
    """Caches before the first token.

    Softmax layers have two, keys and values, [batch * heads * slots, features_per_head] in the type of activations;
    linear and gla layers one, the state, float32 [batch, heads, features_in, features].
    """
    dtype = tf.bfloat16 if config.precision == "bfloat16" else tf.float32
    tensors = []
    for cache in (cache for kind in kinds_of(config) for cache in kind.caches(config)):
        if cache.rows is None:
            tensors.append(tf.zeros([batch * cache.heads * slots, cache.columns], dtype))
        else:
            tensors.append(tf.zeros([batch, cache.heads, cache.rows, cache.columns]))
    return tensors


class CarriedStateOperation(StateOperation):
    """See `CarriedCaches`; on one device."""

    def __init__(self, *given: Any) -> None:
        *whole, self.caches, self.place = given
        super().__init__(*whole)

    def held(self, shape: list, row: list, shard: int) -> tuple[Any, Callable[[Any], list]]:
        """The state is a tensor, and so is the next."""

        def keep(state: Any) -> list:
            self.caches.tensors[self.place] = tf.ensure_shape(state, shape)
            return []

        return self.caches.tensors[self.place], keep


class CarriedAttentionOperation(mtf.Operation):
    """See `CarriedCaches`; on one device."""

    def __init__(self, inputs: list, slots: int, radius: Optional[int], caches: CarriedCaches, place: int) -> None:
        super().__init__(inputs, name="carried_attention")
        self.slots, self.radius, self.caches, self.place = slots, radius, caches, place
        self._outputs = [mtf.Tensor(self, inputs[0].shape, inputs[0].dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Write keys and values at their slots, then attend over all up to the newest."""

        def attend(q: Any, k: Any, v: Any, slot: Any, start: Any, *memory: Any) -> Any:
            q, k, v = (tf.transpose(x, [0, 2, 1, 3]) for x in (q, k, v))
            count = k.shape[2]
            keys, values = (self.update(self.place + i, new, slot) for i, new in enumerate((k, v)))
            allowed = visible(count, slot, tf.range(slot + count), start, self.radius)
            return tf.transpose(attend_slots(q, *with_memory(memory, keys, values, allowed)), [0, 2, 1, 3])

        mesh_impl = lowering.mesh_impl(self)
        out = mesh_impl.slicewise(attend, *[lowering.tensors[x] for x in self.inputs])
        lowering.set_tensor_lowering(self.outputs[0], out)

    def update(self, place: int, new: Any, slot: Any) -> Any:
        """Put new [batch, heads, n, features] into a cache; return its entries so far.

        The cache is a list of rows, which TensorFlow updates in place while nothing else holds it.
        """
        batch, heads, count, features = new.shape.as_list()
        rows = (tf.range(batch * heads) * self.slots + slot)[:, tf.newaxis] + tf.range(count)
        cache = tf.tensor_scatter_nd_update(
            self.caches.tensors[place], tf.reshape(rows, [-1, 1]), tf.reshape(new, [-1, features])
        )
        self.caches.tensors[place] = cache
        entries = tf.reshape(cache, [batch, heads, self.slots, features])
        return entries[:, :, : slot + count]
