"""The optimizers' memory as facts, without TensorFlow: which slots a variable has, and their shapes.

What an optimizer computes stands in optim/, by the same name; checkpoints, memory and disk are reckoned from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable, Optional, Protocol


class Settings(Protocol):
    """What of `schema.OptimizerConfig` decides on slots; the schema takes the names of optimizers from here."""

    @property
    def opt_name(self) -> str:
        """A key of OPTIMIZERS."""

    @property
    def beta1(self) -> float:
        """Of the first moment."""


class Weight(Protocol):
    """What of `network.Variable` decides on slots; the network's table imports the schema, which imports this."""

    @property
    def shape(self) -> tuple:
        """Sizes, as in a checkpoint."""

    @property
    def role(self) -> Optional[str]:
        """What it is in the network."""


FACTORED_FROM = 128  # Adafactor: smaller matrices keep whole second moments, as Mesh-TF has it


def whole(weight: Weight, config: Settings) -> tuple:
    """A number for each of the variable's."""
    return weight.shape


def largest_axes(shape: Sequence[int]) -> Optional[tuple[int, int]]:
    """Adafactor: axes of the two largest dimensions of a shape, or None where the second of them is small."""
    axes = sorted(range(len(shape)), key=lambda axis: -shape[axis])
    return (axes[0], axes[1]) if len(axes) > 1 and shape[axes[1]] >= FACTORED_FROM else None


def without_axis(number: int) -> Callable:
    """Adafactor: means over the largest (0) or second largest (1) dimension, where the moment is factored."""

    def reduced(weight: Weight, config: Settings) -> Optional[tuple]:
        axes = largest_axes(weight.shape)
        return None if axes is None else tuple(size for axis, size in enumerate(weight.shape) if axis != axes[number])

    return reduced


def unfactored(weight: Weight, config: Settings) -> Optional[tuple]:
    """Adafactor: the second moment of a variable that is not factored."""
    return weight.shape if largest_axes(weight.shape) is None else None


def momentum(weight: Weight, config: Settings) -> Optional[tuple]:
    """Adafactor: the first moment, where the config has one."""
    return weight.shape if config.beta1 else None


# Muon: roles of the matrices [..., in, out] of blocks, whose momentum is orthogonalised. Not the table, nor the head.
ORTHOGONAL = ("matrix", "expert")


def of_matrices(weight: Weight, config: Settings) -> Optional[tuple]:
    """Muon: the momentum of a matrix of a block."""
    return weight.shape if weight.role in ORTHOGONAL else None


def of_others(weight: Weight, config: Settings) -> Optional[tuple]:
    """Muon: a moment of Adam for all that is no matrix of a block."""
    return None if weight.role in ORTHOGONAL else weight.shape


# Optimizer -> slots: what is put after a variable's name -> their shape, from the variable and the config, or None
# where a variable has none. They are float32 and start at 0.
OPTIMIZERS: dict[str, Mapping[str, Callable[[Weight, Settings], Optional[tuple]]]] = {
    "adam": {"/adam_m": whole, "/adam_v": whole},
    "adamw": {"/adam_m": whole, "/adam_v": whole},
    "adafactor": {"_slot_v": unfactored, "_slot_vr": without_axis(0), "_slot_vc": without_axis(1), "_slot_m": momentum},
    "lion": {"/lion_m": whole},
    "muon": {"/muon_m": of_matrices, "/adam_m": of_others, "/adam_v": of_others},
}


def slots_of(variables: Mapping[str, Weight], config: Settings) -> dict[str, tuple]:
    """Name and shape of every slot of variables, given by name."""
    found = {}
    for name, weight in variables.items():
        for suffix, shape_of in OPTIMIZERS[config.opt_name].items():
            sizes = shape_of(weight, config)
            if sizes is not None:
                found[name + suffix] = sizes
    return found


def owner_of(name: str) -> Optional[str]:
    """The variable that a slot of any optimizer belongs to; None for what is no slot."""
    for slots in OPTIMIZERS.values():
        for suffix in slots:
            if name.endswith(suffix):
                return name[: -len(suffix)]
    return None
