"""Lion: steps of one size, by the sign of an interpolated momentum."""

from __future__ import annotations

from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import Tensor, mtf
from gpt_neo.ops.trained import Partition
from gpt_neo.optim.slots import scalar, slot, wait


class Lion:
    """w <- w - rate (sign(b1 m + (1 - b1) g) + decay w);  m <- b2 m + (1 - b2) g.

    Chen et al. 2023, algorithm 2. The slot is `<variable>/lion_m`.
    """

    def __init__(self, mesh: mtf.Mesh, rate: Tensor, step: Tensor, config: OptimizerConfig) -> None:
        self.rate, self.config = scalar(mesh, rate), config

    def update(
        self, variable: mtf.Variable, role: str, grad: Tensor, decay: float, partition: Partition, after: list
    ) -> list:
        """Operations that update a variable and its slot once `after` is done. grad: float32, as stored."""
        m, grad = slot(variable, "/lion_m", variable.shape), wait(grad, after)
        direction = mtf.sign(self.config.beta1 * m + (1 - self.config.beta1) * grad)
        fresh = variable.value - self.rate * (direction + decay * variable.value)
        new_m = self.config.beta2 * m + (1 - self.config.beta2) * grad
        return [mtf.assign(variable, fresh), mtf.assign(m, new_m)]
