"""Caches of a decoding step as one core's own tensors, passed in and out of a program that XLA compiles whole.

Laid out as in `cached.py`: global layers keep every slot, local layers a ring. XLA updates them in place.
"""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.config.network import kinds_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.attention.cached import attend_ring, attend_slots, attend_window, newest_ring, visible, with_memory
from gpt_neo.model.attention.carried import CarriedCaches
from gpt_neo.model.context import Decoding
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import put_slice


def cache_shapes(config: ModelConfig, batch: Any, slots: int) -> dict:
    """What a decoding step keeps: name -> (mtf.Shape, type), layer after layer. All of it starts at 0.

    Softmax layers have keys and values [batch, heads, entries, features], linear and gla layers a state [batch, heads,
    features_in, features]; only batch and heads can be split.

    Args:
      batch: mtf.Dimension.
    """
    found = {}
    for layer, kind in enumerate(kinds_of(config)):
        for cache in kind.caches(config):
            rows, dtype = cache.rows, tf.float32
            if rows is None:
                rows = kind.positions(config, slots)
                dtype = tf.bfloat16 if config.precision == "bfloat16" else tf.float32
            found[f"gpt2/h{layer}/attn/{cache.name}"] = cache_shape(batch, cache.heads, rows, cache.columns), dtype
    return found


def cache_shape(batch: Any, heads: int, rows: int, columns: int) -> Any:
    """mtf.Shape of one: names that no layout knows for what has to be whole."""
    sizes = {"heads": heads, "cache_rows": rows, "cache_columns": columns}
    return mtf.Shape([batch, *(mtf.Dimension(name, size) for name, size in sizes.items())])


class CoreCaches(CarriedCaches):
    """See `CarriedCaches`; tensors are a core's parts of `cache_shapes`, in that order."""

    def attend(
        self, q: Any, k: Any, v: Any, at: Decoding, radius: Optional[int], memory: Optional[tuple] = None
    ) -> Any:
        """See `cached_attention`."""
        inputs = [q, k, v, at.slot, at.start, *(memory or ())]
        return CoreAttentionOperation(inputs, radius, self, self.take(2)).outputs[0]


class CoreAttentionOperation(mtf.Operation):
    """See `CoreCaches`. Every row is at the same slot."""

    def __init__(self, inputs: list, radius: Optional[int], caches: CoreCaches, place: int) -> None:
        super().__init__(inputs, name="core_attention")
        self.radius, self.caches, self.place = radius, caches, place
        self._outputs = [mtf.Tensor(self, inputs[0].shape, inputs[0].dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Rows and heads are independent, so cores are."""
        mesh_impl = lowering.mesh_impl(self)
        out = mesh_impl.slicewise(self.attend, *[lowering.tensors[x] for x in self.inputs])
        lowering.set_tensor_lowering(self.outputs[0], out)

    def attend(self, q: Any, k: Any, v: Any, slot: Any, start: Any, *memory: Any) -> Any:
        """Attend and keep keys and values."""
        q, k, v = (tf.transpose(x, [0, 2, 1, 3]) for x in (q, k, v))
        held, new = self.caches.tensors[self.place : self.place + 2], (k, v)
        count, radius = int(k.shape[2]), self.radius
        if radius is None:
            keys, values = (put_slice(cache, x, [0, 0, slot, 0]) for cache, x in zip(held, new))
            allowed = visible(count, slot, tf.range(keys.shape[2]), start, None)
            out = attend_slots(q, *with_memory(memory, keys, values, allowed))
        elif count == 1:
            place = [0, 0, tf.math.floormod(slot, radius), 0]
            keys, values = (put_slice(cache, x, place) for cache, x in zip(held, new))
            out = attend_ring(q, keys, values, slot, start, radius)
        else:
            keys, values = (tf.concat([cache, x], 2) for cache, x in zip(held, new))
            out = attend_window(q, keys, values, slot, start, radius)
            keys, values = (newest_ring(x, slot, radius) for x in (keys, values))
        self.caches.tensors[self.place : self.place + 2] = keys, values
        return tf.transpose(out, [0, 2, 1, 3])
