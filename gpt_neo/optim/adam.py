"""Adam as the legacy program had it, without bias correction, and with it; decay is decoupled in both."""

from __future__ import annotations

from gpt_neo.config.optimizers import OPTIMIZERS as SLOTS
from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import Tensor, mtf, tf
from gpt_neo.ops.trained import Partition
from gpt_neo.optim.slots import lowered, scalar, slot, wait


class Adam:
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - rate (m / (sqrt(v) + eps) + decay w).

    Kingma and Ba 2015, algorithm 1 without the bias correction; decay as Loshchilov and Hutter 2019. Slots are
    `<variable>/adam_m` and `/adam_v`.
    """

    def __init__(self, mesh: mtf.Mesh, rate: Tensor, step: Tensor, config: OptimizerConfig) -> None:
        self.config = config
        step_rate, epsilon = self.corrected(rate, step)
        self.rate, self.step_rate, self.epsilon = (scalar(mesh, value) for value in (rate, step_rate, epsilon))

    def corrected(self, rate: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Rate and epsilon of the quotient m / (sqrt(v) + epsilon)."""
        return rate, self.config.epsilon

    def update(
        self, variable: mtf.Variable, role: str, grad: Tensor, decay: float, partition: Partition, after: list
    ) -> list:
        """Operations that update a variable and its slots once `after` is done. grad: float32, as stored."""
        m, v = (slot(variable, suffix, variable.shape) for suffix in SLOTS["adam"])
        if partition.in_place:
            return [AdamOperation(self, variable, m, v, grad, decay, after)]
        config, grad = self.config, wait(grad, after)
        new_m = config.beta1 * m + (1 - config.beta1) * grad
        new_v = config.beta2 * v + (1 - config.beta2) * mtf.square(grad)
        change = self.step_rate * (new_m / (mtf.sqrt(new_v) + self.epsilon)) + self.rate * decay * variable.value
        return [mtf.assign(variable, variable.value - change), mtf.assign(m, new_m), mtf.assign(v, new_v)]


class AdamW(Adam):
    """Adam with bias correction: m / (1 - b1^t) and v / (1 - b2^t) in place of m and v, t counting from 1."""

    def corrected(self, rate: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Both corrections, moved out of the quotient: Kingma and Ba 2015, end of section 2."""
        count = tf.cast(step, tf.float32) + 1.0
        root = tf.sqrt(1.0 - tf.pow(self.config.beta2, count))
        return rate * root / (1.0 - tf.pow(self.config.beta1, count)), self.config.epsilon * root


class AdamOperation(mtf.Operation):
    """The update of one variable and its two slots, in place by TensorFlow's kernel."""

    def __init__(
        self, adam: Adam, variable: mtf.Variable, m: Tensor, v: Tensor, grad: Tensor, decay: float, after: list
    ) -> None:
        super().__init__([grad, adam.rate, adam.step_rate, adam.epsilon], name="adam")
        self.variables, self.config = [variable, m.operation, v.operation], adam.config
        self.decay, self.after = decay, after
        self._outputs: list = []

    def lower(self, lowering: mtf.Lowering) -> None:
        """Slices are independent of one another."""
        inputs = [lowering.tensors[x].to_laid_out_tensor().all_slices for x in self.inputs]
        stored = [lowering.variables[v].laid_out_tensor.all_slices for v in self.variables]
        waits, updates = lowered(lowering, self.after), []
        for value, m, v, grad, rate, step_rate, epsilon in zip(*stored, *inputs):
            # the variables of a TPU program have no device of their own
            with tf.device(getattr(value, "device", None)), tf.control_dependencies(waits):
                updates.append(self.update_slice(value, m, v, grad, rate, step_rate, epsilon))
        lowering.operations[self] = tf.group(updates)

    def update_slice(
        self,
        value: tf.Tensor,
        m: tf.Tensor,
        v: tf.Tensor,
        grad: tf.Tensor,
        rate: tf.Tensor,
        step_rate: tf.Tensor,
        epsilon: tf.Tensor,
    ) -> tf.Tensor:
        """Powers of beta of 0 switch the kernel's own bias correction off."""
        before = [tf.assign(value, value * (1.0 - rate * self.decay))] if self.decay else []
        with tf.control_dependencies(before):
            return tf.raw_ops.ResourceApplyAdam(
                var=value.handle,
                m=m.handle,
                v=v.handle,
                grad=tf.cast(grad, tf.float32),
                lr=step_rate,
                beta1_power=0.0,
                beta2_power=0.0,
                beta1=self.config.beta1,
                beta2=self.config.beta2,
                epsilon=epsilon,
            )
