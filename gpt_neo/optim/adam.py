"""Adam as the legacy program had it: no bias correction, decoupled decay by variable name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import mtf, tf, zeros_initializer

NO_DECAY = ("norm", "bias")  # substrings of full names; ln_f does decay, as in every released checkpoint


def clip_by_global_norm(grads: Sequence[Any], limit: float) -> list:
    """Scale gradients by limit / max(norm, limit); the norm is taken over all of them in float32."""
    norm = mtf.sqrt(mtf.add_n([SquareSumOperation(g).outputs[0] for g in grads]))
    factor = limit / mtf.maximum(norm, limit)
    return [mtf.cast(g, tf.float32) * factor for g in grads]


class SquareSumOperation(mtf.Operation):
    """Sum of squares, float32, without a tensor of squares: that of an embedding table is as large as the table."""

    def __init__(self, x: Any) -> None:
        super().__init__([x], name="square_sum")
        self._outputs = [mtf.Tensor(self, mtf.Shape([]), tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: Any) -> None:
        """Shards that hold different parts add up."""
        mesh_impl = lowering.mesh_impl(self)
        (x,) = self.inputs
        total = mesh_impl.slicewise(lambda t: 2 * tf.nn.l2_loss(tf.cast(t, tf.float32)), lowering.tensors[x])
        axes = [a for a in mesh_impl.tensor_layout(x.shape).tensor_axis_to_mesh_axis if a is not None]
        if axes:
            total = mtf.ops.LazyAllreduceSum(mesh_impl, total, axes)
        lowering.set_tensor_lowering(self.outputs[0], total)


def adam_updates(variables: Sequence[Any], grads: Sequence[Any], rate: Any, config: OptimizerConfig) -> list:
    """Return the assign operations of one step.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - rate (m / (sqrt(v) + eps) + decay w)
    (Kingma and Ba 2015, algorithm 1 without the bias correction; decay as Loshchilov and Hutter 2019.)

    Args:
      variables: mtf.Variable operations (graph.trainable_variables).
      grads: one tensor per variable, its shape.
      rate: float32 mtf scalar.
    """
    updates: list = []
    for variable, grad in zip(variables, grads):
        updates.append(AdamOperation(variable, grad, rate, config, updates[-1] if updates else grads))
    return updates


class AdamOperation(mtf.Operation):
    """The update of one variable and its two slots, in place where TensorFlow has a kernel.

    It waits for `after`, the update before it or all gradients: no weight changes while a pass still reads it, and the
    temporary tensors of one update at a time are alive.
    """

    def __init__(self, variable: Any, grad: Any, rate: Any, config: OptimizerConfig, after: Any) -> None:
        # Operations are lowered in the order they are made, so the slots come first.
        self.variables = [variable, slot(variable, "adam_m").operation, slot(variable, "adam_v").operation]
        super().__init__([grad, rate], name="adam")
        self.config, self.after = config, after
        decays = not any(part in variable.name for part in NO_DECAY)
        self.decay = config.weight_decay if decays else 0.0
        self._outputs: list = []

    def lower(self, lowering: Any) -> None:
        """Slices are independent of one another."""
        grads, rates = (lowering.tensors[x].to_laid_out_tensor().all_slices for x in self.inputs)
        stored = [lowering.variables[v].laid_out_tensor.all_slices for v in self.variables]
        if isinstance(self.after, AdamOperation):
            waits = [lowering.operations[self.after]]
        else:
            waits = [s for g in self.after for s in lowering.tensors[g].to_laid_out_tensor().all_slices]
        updates = []
        for value, m, v, grad, rate in zip(*stored, grads, rates):
            with tf.device(value.device), tf.control_dependencies(waits):
                in_place = value.dtype.base_dtype == tf.float32 and hasattr(value, "handle")
                update = self.update_in_place if in_place else self.update_by_assigning
                updates.append(update(value, m, v, tf.cast(grad, tf.float32), rate))
        lowering.operations[self] = tf.group(updates)

    def update_in_place(self, value: Any, m: Any, v: Any, grad: Any, rate: Any) -> Any:
        """TensorFlow's Adam kernel; powers of beta of 0 switch its bias correction off."""
        before = [tf.assign(value, value * (1.0 - rate * self.decay))] if self.decay else []
        with tf.control_dependencies(before):
            return tf.raw_ops.ResourceApplyAdam(
                var=value.handle, m=m.handle, v=v.handle, grad=grad, lr=rate, beta1_power=0.0, beta2_power=0.0,
                beta1=self.config.beta1, beta2=self.config.beta2, epsilon=self.config.epsilon,
            )  # fmt: skip

    def update_by_assigning(self, value: Any, m: Any, v: Any, grad: Any, rate: Any) -> Any:
        """The same in plain arithmetic, for weights of another type than the slots."""
        config = self.config
        new_m = config.beta1 * m + (1 - config.beta1) * grad
        new_v = config.beta2 * v + (1 - config.beta2) * tf.square(grad)
        step = new_m / (tf.sqrt(new_v) + config.epsilon)
        wide = tf.cast(value, tf.float32)
        fresh = tf.cast(wide - rate * (step + self.decay * wide), value.dtype)
        return tf.group([tf.assign(old, new) for old, new in ((value, fresh), (m, new_m), (v, new_v))])


def slot(variable: Any, name: str) -> Any:
    """A float32 optimizer slot `<variable>/<name>`, starting at 0."""
    return mtf.get_variable(
        variable.mesh,
        f"{variable.name}/{name}",
        variable.shape,
        dtype=mtf.VariableDType(tf.float32, tf.float32, tf.float32),
        initializer=zeros_initializer,
        trainable=False,
    )
