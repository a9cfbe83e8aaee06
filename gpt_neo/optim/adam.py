"""Adam as the legacy program had it: no bias correction, decoupled decay by variable name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import mtf, tf

NO_DECAY = ("norm", "bias")  # substrings of full names; ln_f does decay, as in every released checkpoint


def clip_by_global_norm(grads: Sequence[Any], limit: float) -> list:
    """Scale gradients by limit / max(norm, limit); the norm is taken over all of them in float32."""
    squares = [mtf.reduce_sum(mtf.square(mtf.cast(g, tf.float32))) for g in grads]
    norm = mtf.sqrt(mtf.add_n(squares))
    factor = limit / mtf.maximum(norm, limit)
    return [mtf.cast(g, tf.float32) * factor for g in grads]


def adam_updates(variables: Sequence[Any], grads: Sequence[Any], rate: Any, config: OptimizerConfig) -> list:
    """Return the assign operations of one step.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - rate (m / (sqrt(v) + eps) + decay w)
    (Kingma and Ba 2015, algorithm 1 without the bias correction; decay as Loshchilov and Hutter 2019.)

    Args:
      variables: mtf.Variable operations (graph.trainable_variables).
      grads: one tensor per variable, its shape.
      rate: float32 mtf scalar.
    """
    updates = []
    for variable, grad in zip(variables, grads):
        value = variable.outputs[0]
        grad = mtf.cast(grad, tf.float32)
        m = slot(variable, "adam_m")
        v = slot(variable, "adam_v")
        new_m = config.beta1 * m + (1 - config.beta1) * grad
        new_v = config.beta2 * v + (1 - config.beta2) * mtf.square(grad)
        step = new_m / (mtf.sqrt(new_v) + config.epsilon)
        if config.weight_decay and not any(part in variable.name for part in NO_DECAY):
            step += config.weight_decay * mtf.cast(value, tf.float32)
        updates.append(mtf.assign_sub(variable, mtf.cast(rate * step, value.dtype)))
        updates += [mtf.assign(m.operation, new_m), mtf.assign(v.operation, new_v)]
    return updates


def slot(variable: Any, name: str) -> Any:
    """A float32 optimizer slot `<variable>/<name>`, starting at 0."""
    return mtf.get_variable(
        variable.mesh,
        f"{variable.name}/{name}",
        variable.shape,
        dtype=mtf.VariableDType(tf.float32, tf.float32, tf.float32),
        initializer=tf.zeros_initializer(),
        trainable=False,
    )
