"""The optimizers' memory as facts, without TensorFlow: which slots a variable has, and their shapes.

What an optimizer computes stands in optim/, by the same name; checkpoints, memory and disk are reckoned from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Callable, Optional, Protocol


class Settings(Protocol):
    """What of `schema.OptimizerConfig` decides on slots; the schema takes the names of optimizers from here."""

    @property
    def opt_name(self) -> str:
        """A key of OPTIMIZERS."""

    @property
    def beta1(self) -> float:
        """Of the first moment."""


FACTORED_FROM = 128  # Adafactor: smaller matrices keep whole second moments, as Mesh-TF has it


def whole(name: str, shape: Sequence[int], config: Settings) -> tuple:
    """A number for each of the variable's."""
    return tuple(shape)


def largest_axes(shape: Sequence[int]) -> Optional[tuple[int, int]]:
    """Adafactor: axes of the two largest dimensions of a shape, or None where the second of them is small."""
    axes = sorted(range(len(shape)), key=lambda axis: -shape[axis])
    return (axes[0], axes[1]) if len(axes) > 1 and shape[axes[1]] >= FACTORED_FROM else None


def without_axis(number: int) -> Callable:
    """Adafactor: means over the largest (0) or second largest (1) dimension, where the moment is factored."""

    def reduced(name: str, shape: Sequence[int], config: Settings) -> Optional[tuple]:
        axes = largest_axes(shape)
        return None if axes is None else tuple(size for axis, size in enumerate(shape) if axis != axes[number])

    return reduced


def unfactored(name: str, shape: Sequence[int], config: Settings) -> Optional[tuple]:
    """Adafactor: the second moment of a variable that is not factored."""
    return tuple(shape) if largest_axes(shape) is None else None


# Matrices of the blocks: those of attention and of the MLP, and each expert's two. Not the table, nor the head.
HIDDEN_MATRIX = re.compile(r"(/attn/(q|k|v|o|output_gate)|/mlp(_macaron)?/conv1d_main/\w+/kernel|/w[io]/kernel)$")


def is_hidden_matrix(name: str) -> bool:
    """Muon: whether a variable is a matrix [..., in, out] of a block, whose momentum is orthogonalised."""
    return HIDDEN_MATRIX.search(name) is not None


def of_matrices(name: str, shape: Sequence[int], config: Settings) -> Optional[tuple]:
    """Muon: the momentum of a matrix."""
    return tuple(shape) if is_hidden_matrix(name) else None


def of_others(name: str, shape: Sequence[int], config: Settings) -> Optional[tuple]:
    """Muon: a moment of Adam for all that is no matrix of a block."""
    return None if is_hidden_matrix(name) else tuple(shape)


# Optimizer -> slots: what is put after a variable's name -> their shape, from the variable's name and shape and the
# config, or None where a variable has none. They are float32 and start at 0.
OPTIMIZERS: dict[str, Mapping[str, Callable[[str, Sequence[int], Settings], Optional[tuple]]]] = {
    "adam": {"/adam_m": whole, "/adam_v": whole},
    "adamw": {"/adam_m": whole, "/adam_v": whole},
    "adafactor": {
        "_slot_v": unfactored,
        "_slot_vr": without_axis(0),
        "_slot_vc": without_axis(1),
        "_slot_m": lambda name, shape, config: tuple(shape) if config.beta1 else None,
    },
    "lion": {"/lion_m": whole},
    "muon": {"/muon_m": of_matrices, "/adam_m": of_others, "/adam_v": of_others},
}


def slots_of(variables: Iterable[tuple[str, Sequence[int]]], config: Settings) -> dict[str, tuple]:
    """Name and shape of every slot of variables, which are given as (name, shape)."""
    found = {}
    for name, shape in variables:
        for suffix, shape_of in OPTIMIZERS[config.opt_name].items():
            sizes = shape_of(name, shape, config)
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
