"""Lion: steps of one size, by the sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.optim.slots import SlotLayout, scalar, slot, wait


class Lion:
    """w <- w - rate (sign(b1 m + (1 - b1) g) + decay w);  m <- b2 m + (1 - b2) g.

    Chen et al. 2023, algorithm 2. The slot is `<variable>/lion_m`.
    """

    def __init__(self, mesh: Any, rate: Any, step: Any, config: OptimizerConfig) -> None:
        self.rate, self.config = scalar(mesh, rate), config

    def update(self, variable: Any, grad: Any, decay: float, slots: SlotLayout, after: list) -> list:
        """Operations that update a variable and its slot once `after` is done. grad: float32, in the slot's shape."""
        m, grad = slot(variable, "/lion_m", slots.shape(variable.shape)), wait(grad, after)
        direction = mtf.sign(self.config.beta1 * m + (1 - self.config.beta1) * grad)
        value = mtf.cast(slots.scatter(variable.value), tf.float32)
        fresh = mtf.cast(value - self.rate * (direction + decay * value), variable.slice_dtype)
        new_m = self.config.beta2 * m + (1 - self.config.beta2) * grad
        return [mtf.assign(variable, slots.gather(fresh, variable.shape)), mtf.assign(m, new_m)]
