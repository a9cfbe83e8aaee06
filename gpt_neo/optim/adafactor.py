"""Adafactor: second moments of matrices kept as a row and a column, steps relative to the size of the weights."""

from __future__ import annotations

from typing import Any, Optional

from gpt_neo.config.optimizers import largest_axes
from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import Dimension, Tensor, mtf, tf
from gpt_neo.ops.trained import Partition
from gpt_neo.optim.slots import scalar, slot, wait

MEMORY_EXPONENT = 0.8
CLIPPING_THRESHOLD = 1.0  # largest root mean square of a step before it is scaled


class Adafactor:
    """Shazeer and Stern 2018, algorithms 4 and 5, with the slots of Mesh-TF's optimizer of that name.

    v <- b v + (1 - b)(g^2 + eps1), or its means over the rows and columns of the two largest dimensions, whose
    product over the mean of the rows stands for v; b = 1 - (step + 1)^-0.8 unless ada_decay_rate gives it.
    u = g / sqrt(v), over max(1, rms(u)); s = max(eps2, rms(w)) rate u;  m <- b1 m + (1 - b1) s, s itself with b1 = 0;
    w <- w - m - rate decay w. Slots: `<variable>_slot_v`, or `_slot_vr` and `_slot_vc`; `_slot_m` with b1.
    """

    def __init__(self, mesh: mtf.Mesh, rate: Tensor, step: Tensor, config: OptimizerConfig) -> None:
        decay: Any = config.ada_decay_rate
        if decay is None:
            decay = 1.0 - tf.pow(tf.cast(step, tf.float32) + 1.0, -MEMORY_EXPONENT)
        self.rate, self.memory, self.config = scalar(mesh, rate), scalar(mesh, decay), config

    def update(
        self, variable: mtf.Variable, role: str, grad: Tensor, decay: float, partition: Partition, after: list
    ) -> list:
        """Operations that update a variable and its slots once `after` is done. grad: float32, as stored."""
        config, grad = self.config, wait(grad, after)
        step, updates = self.normalized(variable, grad)
        step /= mtf.maximum(root_mean_square(step) / CLIPPING_THRESHOLD, 1.0)
        step *= mtf.maximum(root_mean_square(variable.value), config.ada_epsilon2) * self.rate
        if config.beta1:
            m = slot(variable, "_slot_m", grad.shape)
            step = config.beta1 * m + (1 - config.beta1) * step
            updates.append(mtf.assign(m, step))
        fresh = variable.value - step - self.rate * decay * variable.value
        return [mtf.assign(variable, fresh), *updates]

    def normalized(self, variable: mtf.Variable, grad: Tensor) -> tuple[Tensor, list]:
        """The gradient over the root of its second moment, and the operations that update that moment."""
        squares = mtf.square(grad) + self.config.ada_epsilon1
        factored = factored_dimensions(grad.shape)
        if factored is None:
            v, new_v = self.moment(variable, "_slot_v", squares)
            return grad * mtf.rsqrt(new_v), [mtf.assign(v, new_v)]
        largest, second = factored
        rows, new_rows = self.moment(variable, "_slot_vr", mtf.reduce_mean(squares, reduced_dim=largest))
        columns, new_columns = self.moment(variable, "_slot_vc", mtf.reduce_mean(squares, reduced_dim=second))
        share = new_rows / mtf.reduce_mean(new_rows, reduced_dim=second)
        step = grad * mtf.rsqrt(share) * mtf.rsqrt(new_columns)
        return step, [mtf.assign(rows, new_rows), mtf.assign(columns, new_columns)]

    def moment(self, variable: mtf.Variable, suffix: str, squares: Tensor) -> tuple[Tensor, Tensor]:
        """A slot and its next value."""
        old = slot(variable, suffix, squares.shape)
        return old, self.memory * old + (1.0 - self.memory) * squares


def factored_dimensions(shape: mtf.Shape) -> Optional[tuple[Dimension, Dimension]]:
    """The two largest dimensions, or None where the second of them is small."""
    axes = largest_axes(shape.to_integer_list)
    return None if axes is None else (shape.dims[axes[0]], shape.dims[axes[1]])


def root_mean_square(x: Tensor) -> Tensor:
    """Over the whole tensor, however it is split."""
    return mtf.sqrt(mtf.reduce_mean(mtf.square(x)))
