"""Muon: the momentum of a matrix, made orthogonal by Newton-Schulz; AdamW for all that is no matrix of a block."""

from __future__ import annotations

import math

from gpt_neo.config.optimizers import ORTHOGONAL
from gpt_neo.mtf_compat import Tensor, mtf
from gpt_neo.ops.trained import Partition
from gpt_neo.optim.adam import AdamW
from gpt_neo.optim.slots import slot, wait

STEPS = 5
# Of the polynomial a x + b x^3 + c x^5, which moves all singular values near 1: Jordan et al. 2024.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7  # added to the norm
ROWS = "muon_rows"  # a name that no layout splits
RMS = 0.2  # of an update of AdamW, so that both take the same rate and decay


class Muon(AdamW):
    """m <- u m + g;  w <- w - rate (0.2 sqrt(max(in, out)) orthogonal(g + u m) + decay w), for matrices [in, out].

    Jordan et al. 2024 (Muon), with the scale and the decay of Liu et al. 2025 (arXiv 2502.16982, equation 4). The slot
    is `<variable>/muon_m`; other variables have those of AdamW. The products are Mesh-TensorFlow's: a dimension that a
    layout splits, or `slots` does, stays split, and what it contributes to a product is added over the devices.
    """

    def update(
        self, variable: mtf.Variable, role: str, grad: Tensor, decay: float, partition: Partition, after: list
    ) -> list:
        """Operations that update a variable and its slots once `after` is done. grad: float32, as stored. role: as in
        `network.Variable`."""
        if role not in ORTHOGONAL:
            return super().update(variable, role, grad, decay, partition, after)
        m, grad = slot(variable, "/muon_m", variable.shape), wait(grad, after)
        new_m = self.config.muon_momentum * m + grad
        direction = orthogonal(grad + self.config.muon_momentum * new_m)
        scale = RMS * math.sqrt(max(dim.size for dim in variable.shape.dims[-2:]))
        fresh = variable.value - self.rate * (scale * direction + decay * variable.value)
        return [mtf.assign(variable, fresh), mtf.assign(m, new_m)]


def orthogonal(x: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, about: every singular value becomes one near 1.

    Args:
      x: float32 [..., in, out], a matrix for each index of the dimensions before.

    Returns:
      float32 of that shape.
    """
    small, large = sorted(x.shape.dims[-2:], key=lambda dim: dim.size)
    batch = x.shape.dims[:-2]
    rows = mtf.Dimension(ROWS, small.size)
    norm = mtf.sqrt(mtf.reduce_sum(mtf.square(x), output_shape=mtf.Shape(batch)))
    x /= norm + EPSILON
    a, b, c = COEFFICIENTS

    def turned(t: Tensor) -> Tensor:
        return mtf.rename_dimension(t, small.name, ROWS)

    for _ in range(STEPS):
        square = mtf.einsum([x, turned(x)], output_shape=mtf.Shape([*batch, small, rows]))  # x x^T
        # (x x^T)^2: the middle dimension has a name of its own in both
        left = mtf.rename_dimension(square, ROWS, f"{ROWS}_2")
        right = mtf.rename_dimension(square, small.name, f"{ROWS}_2")
        fourth = mtf.einsum([left, right], output_shape=square.shape)
        mixed = b * square + c * fourth
        x = a * x + mtf.einsum([mixed, turned(x)], output_shape=mtf.Shape([*batch, *x.shape.dims[-2:]]))
    return x
