"""Entmax: softmax's sparse relative, and the loss that goes with it.

entmax_alpha(z) is the distribution p of the largest <p, z> + H_alpha(p), with H_alpha(p) = sum(p - p^alpha) /
(alpha (alpha - 1)): p = [(alpha - 1) z - tau]_+ ^ (1 / (alpha - 1)) for the threshold tau at which it sums to one
(Peters, Niculae and Martins 2019, section 3). alpha -> 1 is softmax, 2 is sparsemax; tokens far below the threshold
get exactly 0.

The logarithm of such a probability is no loss: it is infinite where the label got 0. The Fenchel-Young loss is finite
and convex, 0 exactly where all mass is on the label, and its gradient is entmax(z) - onehot(label) (Blondel, Martins
and Niculae 2020, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

from gpt_neo.mtf_compat import Dimension, Tensor, mtf, tf
from gpt_neo.ops.fused import FusedOp
from gpt_neo.ops.kernels import compiled
from gpt_neo.ops.vocabulary import shard_offset

# Newton's method starts left of the root of a convex decreasing function, so it never passes it. A step cuts the sum
# of 50,000 equal probabilities to about a third, so a dozen reach the quadratic phase.
NEWTON_STEPS = 20


def entmax_loss_per_token(logits: Tensor, labels: Tensor, vocab: Dimension, alpha: float) -> Tensor:
    """The Fenchel-Young loss of entmax: <p, z> + H_alpha(p) - z[label] with p = entmax_alpha(z).

    Args:
      logits: float32 [..., vocab].
      labels: int32 [...].
      alpha: more than 1, at most 2.

    Returns:
      float32 [...].
    """
    return EntmaxLossOperation(logits, labels, vocab, alpha).outputs[0]


class EntmaxLossOperation(FusedOp):
    """Loss, and what its gradient needs beside the logits: threshold and largest logit."""

    def __init__(self, logits: Tensor, labels: Tensor, vocab: Dimension, alpha: float) -> None:
        super().__init__("entmax_loss", [logits, labels], [(labels.shape, logits.dtype)] * 3)
        self.vocab, self.alpha = vocab, alpha
        if logits.shape.dims[-1] != vocab:
            raise ValueError(f"the last dimension of the logits {logits.shape} has to be {vocab}")

    def gradient(self, grad_ys: Sequence[Tensor]) -> list:
        """Gradients with respect to logits and labels."""
        return [EntmaxGradOperation(self, grad_ys[0]).outputs[0], None]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Whole logits in one kernel; of split ones every sum and maximum goes over the shards."""
        mesh_impl = lowering.mesh_impl(self)
        axis, _, offset = shard_offset(mesh_impl, self.vocab)
        logits, labels = (lowering.tensors[x] for x in self.inputs)
        alpha = self.alpha
        if axis is None:
            results = mesh_impl.slicewise(lambda z, ids: entmax_loss_kernel(z, ids, alpha), logits, labels)
        else:

            def total(fn: Callable[..., tf.Tensor], *xs: tf.Tensor, kind: str = "SUM") -> tf.Tensor:
                return mesh_impl.allreduce(mesh_impl.slicewise(fn, *xs), [axis], kind)

            peak = total(lambda z: tf.reduce_max(z, -1), logits, kind="MAX")
            scaled = mesh_impl.slicewise(lambda z, top: scale(z, top, alpha), logits, peak)
            tau = mesh_impl.slicewise(lambda top: -tf.ones_like(top), peak)
            for _ in range(NEWTON_STEPS):
                sums = total(lambda x, t: newton_sums(x, t, alpha), scaled, tau)
                tau = mesh_impl.slicewise(lambda t, s: newton_step(t, s, alpha), tau, sums)
            loss = total(lambda x, t, ids, first: loss_part(x, t, ids - first, alpha), scaled, tau, labels, offset)
            results = loss, tau, peak
        for output, result in zip(self.outputs, results):
            lowering.set_tensor_lowering(output, result.to_laid_out_tensor())


class EntmaxGradOperation(FusedOp):
    """(entmax(logits) - onehot(label)) * grad: [..., vocab]."""

    def __init__(self, loss: EntmaxLossOperation, grad: Tensor) -> None:
        logits, labels = loss.inputs
        inputs = [logits, labels, *loss.outputs[1:], grad]
        super().__init__("entmax_loss_grad", inputs, [(logits.shape, logits.dtype)])
        self.vocab, self.alpha = loss.vocab, loss.alpha

    def lower(self, lowering: mtf.Lowering) -> None:
        """Shards are independent: the threshold is known already."""
        mesh_impl = lowering.mesh_impl(self)
        _, _, offset = shard_offset(mesh_impl, self.vocab)
        alpha, tensors = self.alpha, [lowering.tensors[x] for x in self.inputs]
        out = mesh_impl.slicewise(lambda *xs: entmax_grad_kernel(*xs, alpha), *tensors, offset)
        lowering.set_tensor_lowering(self.outputs[0], out)


def scale(logits: tf.Tensor, peak: tf.Tensor, alpha: float) -> tf.Tensor:
    """(alpha - 1)(z - max z), whose threshold lies in [-1, 0)."""
    return (alpha - 1.0) * (logits - peak[..., tf.newaxis])


def powers(scaled: tf.Tensor, tau: tf.Tensor, alpha: float) -> tuple[tf.Tensor, tf.Tensor]:
    """p = [x - tau]_+ ^ k and p' = [x - tau]_+ ^ (k - 1), k = 1 / (alpha - 1): [..., vocab] each."""
    above = tf.nn.relu(scaled - tau[..., tf.newaxis])
    exponent = 1.0 / (alpha - 1.0) - 1.0
    # 0 to the power 0 has to be 0 here
    lower = tf.where_v2(above > 0, above if exponent == 1.0 else tf.pow(above, exponent), 0.0)
    return above * lower, lower


def newton_sums(scaled: tf.Tensor, tau: tf.Tensor, alpha: float) -> tf.Tensor:
    """Sums of p and p': [..., 2]."""
    return tf.stack([tf.reduce_sum(p, -1) for p in powers(scaled, tau, alpha)], -1)


def newton_step(tau: tf.Tensor, sums: tf.Tensor, alpha: float) -> tf.Tensor:
    """The next approximation of the threshold at which p sums to 1: the derivative of its sum is -k sum(p')."""
    return tau + (alpha - 1.0) * (sums[..., 0] - 1.0) / sums[..., 1]


def loss_part(scaled: tf.Tensor, tau: tf.Tensor, column: tf.Tensor, alpha: float) -> tf.Tensor:
    """<p, z> + H(p) - z[column], z less its maximum, over the columns at hand; the label's need not be among them."""
    p, _ = powers(scaled, tau, alpha)
    z = scaled / (alpha - 1.0)
    # p^alpha = p (x - tau)_+
    entropy = (p - p * tf.nn.relu(scaled - tau[..., tf.newaxis])) / (alpha * (alpha - 1.0))
    label = tf.equal(column[..., tf.newaxis], tf.range(scaled.shape[-1]))
    return tf.reduce_sum(p * z + entropy - tf.where_v2(label, z, 0.0), -1)


@compiled
def entmax_loss_kernel(logits: tf.Tensor, labels: tf.Tensor, alpha: float) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Loss, threshold and largest logit of whole rows: three of [...]."""
    peak = tf.reduce_max(logits, -1)
    scaled, tau = scale(logits, peak, alpha), -tf.ones_like(peak)
    for _ in range(NEWTON_STEPS):
        tau = newton_step(tau, newton_sums(scaled, tau, alpha), alpha)
    return loss_part(scaled, tau, labels, alpha), tau, peak


@compiled
def entmax_grad_kernel(
    logits: tf.Tensor,
    labels: tf.Tensor,
    tau: tf.Tensor,
    peak: tf.Tensor,
    grad: tf.Tensor,
    first: tf.Tensor,
    alpha: float,
) -> tf.Tensor:
    """See `EntmaxGradOperation`; `first` is the number of the shard's first column."""
    p, _ = powers(scale(logits, peak, alpha), tau, alpha)
    label = tf.equal(labels[..., tf.newaxis], tf.range(logits.shape[-1]) + first)
    return (p - tf.where_v2(label, 1.0, 0.0)) * grad[..., tf.newaxis]
