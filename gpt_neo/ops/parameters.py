"""The weights of one pass over a network, by name: made from the table of its variables, stored as the pass needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Callable, Optional

from gpt_neo.config.network import DOWN, UP, Variable
from gpt_neo.config.schema import ModelConfig
from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.quantized import AdaptedWeight, Int8Weight
from gpt_neo.ops.trained import Partition, trained_variable

# How a weight is stored: (mesh, full name, its entry of the table, type that layers read) -> what layers get.
Storage = Callable[[Any, str, Variable, Any], Any]


@dataclasses.dataclass(frozen=True)
class Parameters:
    """`p["q"]` is the weight of that name in this scope, made when it is first asked for; `p.under("attn")` is the
    scope below; `p.get("bias")` is None where the model has no such weight.

    variables: every weight of the network by full name.
    dtype: of what layers read.
    scale: of adapters, where there are some.
    """

    mesh: mtf.Mesh
    variables: Mapping[str, Variable]
    dtype: tf.DType
    storage: Storage
    scope: str = "gpt2"
    scale: float = 0.0

    def under(self, scope: str) -> Parameters:
        """The weights one scope deeper."""
        return dataclasses.replace(self, scope=f"{self.scope}/{scope}")

    def __getitem__(self, name: str) -> Any:
        """An mtf.Tensor; for a matrix an Int8Weight if it is stored so, an AdaptedWeight if it has an adapter.

        Raises:
          KeyError: the network has no such weight.
        """
        full = f"{self.scope}/{name}"
        weight = self.stored(full)
        if full + DOWN not in self.variables:
            return weight
        return AdaptedWeight(weight, self.stored(full + DOWN), self.stored(full + UP), self.scale)

    def stored(self, full: str) -> Any:
        """A weight by its full name, without its adapter."""
        return self.storage(self.mesh, full, self.variables[full], self.dtype)

    def get(self, name: str) -> Optional[Tensor]:
        """The weight, or None."""
        return self[name] if f"{self.scope}/{name}" in self.variables else None


def activation_dtype(config: ModelConfig) -> tf.DType:
    """The type of what layers read and write."""
    return tf.bfloat16 if config.precision == "bfloat16" else tf.float32


def shape_of(variable: Variable) -> mtf.Shape:
    """mtf.Shape of a weight."""
    return mtf.Shape([mtf.Dimension(name, size) for name, size in variable.dims])


def initializer_of(variable: Variable) -> Callable[..., tf.Tensor]:
    """What a weight starts from."""
    if variable.std is None:
        return tf.constant_initializer(variable.value)
    return tf.random_normal_initializer(stddev=variable.std)


def plain(mesh: mtf.Mesh, name: str, variable: Variable, dtype: tf.DType) -> Tensor:
    """Stored as it is read."""
    return mtf.get_variable(mesh, name, shape_of(variable), dtype=dtype, initializer=initializer_of(variable))


def trained(partition: Partition, changes: Callable[[str], bool] = lambda name: True, at_use: bool = False) -> Storage:
    """Float32, perhaps in parts over replicas: see `trained.py`.

    Args:
      changes: whether training does that to a variable.
      at_use: parts are gathered each time that the weight is asked for, in place of once a step.
    """

    def make(mesh: Any, name: str, variable: Variable, dtype: Any) -> Any:
        start, frozen = initializer_of(variable), not changes(name)
        return trained_variable(mesh, name, shape_of(variable), dtype, start, partition, frozen, at_use)

    return make


def int8(axes: Mapping[str, int]) -> Storage:
    """Some matrices as whole numbers of 8 bits with scales.

    Args:
      axes: name of a matrix -> the axis that shares a scale.
    """

    def make(mesh: mtf.Mesh, name: str, variable: Variable, dtype: tf.DType) -> Tensor:
        if name not in axes:
            return plain(mesh, name, variable, dtype)
        shape = shape_of(variable)
        kept = mtf.Shape([dim for axis, dim in enumerate(shape.dims) if axis != axes[name]])
        zeros = {"initializer": tf.zeros_initializer(), "trainable": False}
        values = mtf.get_variable(mesh, f"{name}/int8", shape, dtype=tf.int8, **zeros)
        return Int8Weight(values, mtf.get_variable(mesh, f"{name}/scale", kept, dtype=tf.float32, **zeros), dtype)

    return make
