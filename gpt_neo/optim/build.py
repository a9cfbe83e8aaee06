"""From gradients to updates: the table of optimizers, clipping, and which variables decay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.optim.adafactor import Adafactor
from gpt_neo.optim.adam import Adam, AdamW
from gpt_neo.optim.lion import Lion
from gpt_neo.optim.slots import SlotLayout
from gpt_neo.optim.square_sum import SquareSumOperation

OPTIMIZERS: dict[str, Any] = {"adam": Adam, "adamw": AdamW, "adafactor": Adafactor, "lion": Lion}


def optimizer_updates(
    variables: Sequence[Any], grads: Sequence[Any], rate: Any, step: Any, config: OptimizerConfig, slots: SlotLayout
) -> list:
    """Return the mtf operations of one step of the configured optimizer.

    No weight changes while a pass still reads it: the first update waits for every gradient. The others wait for the
    one before, so the temporary tensors of one update at a time are alive.

    Args:
      variables: mtf.Variable operations (graph.trainable_variables).
      grads: one tensor per variable, its shape.
      rate: float32 TensorFlow scalar.
      step: integer TensorFlow scalar, from 0.
      slots: how the slots are split.
    """
    optimizer = OPTIMIZERS[config.opt_name](variables[0].mesh, rate, step, config)
    parts = [mtf.cast(slots.scatter(grad), tf.float32) for grad in grads]
    if config.gradient_clipping:
        parts = clip_by_global_norm(parts, config.gradient_clipping)
    updates, after = [], list(grads)
    for variable, part in zip(variables, parts):
        after = optimizer.update(variable, part, weight_decay(variable.name, config), slots, after)
        updates += after
    return updates


def clip_by_global_norm(grads: Sequence[Any], limit: float) -> list:
    """Scale float32 gradients by limit / max(norm, limit); the norm is taken over all of them."""
    norm = mtf.sqrt(mtf.add_n([SquareSumOperation(grad).outputs[0] for grad in grads]))
    factor = limit / mtf.maximum(norm, limit)
    return [grad * factor for grad in grads]


def weight_decay(name: str, config: OptimizerConfig) -> float:
    """The decay of a variable: that of the first rule that matches anywhere in its full name, else the general one."""
    matching = (decay for pattern, decay in config.weight_decay_rules if re.search(pattern, name))
    return next(matching, config.weight_decay)
