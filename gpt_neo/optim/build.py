"""From gradients to updates: the table of optimizers, clipping, and which variables decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from gpt_neo.config.network import matches
from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import Tensor, mtf
from gpt_neo.ops.trained import Partition
from gpt_neo.optim.adafactor import Adafactor
from gpt_neo.optim.adam import Adam, AdamW
from gpt_neo.optim.lion import Lion
from gpt_neo.optim.muon import Muon
from gpt_neo.optim.square_sum import SquareSumOperation

# Their slots stand in config/optimizers.py, by the same names.
OPTIMIZERS: dict[str, Any] = {"adam": Adam, "adamw": AdamW, "adafactor": Adafactor, "lion": Lion, "muon": Muon}


def optimizer_updates(
    variables: Sequence[mtf.Variable],
    roles: Mapping[str, str],
    grads: Sequence[Tensor],
    rate: Tensor,
    step: Tensor,
    config: OptimizerConfig,
    partition: Partition,
    norm: Optional[Tensor] = None,
) -> list:
    """Return the mtf operations of one step of the configured optimizer.

    No weight changes while a pass still reads it: the first update waits for every gradient. The others wait for the
    one before, so the temporary tensors of one update at a time are alive.

    Args:
      variables: mtf.Variable operations (graph.trainable_variables).
      roles: by name, as in `network.Variable`.
      grads: one tensor per variable, as `stored_part` makes them.
      rate: float32 TensorFlow scalar.
      step: integer TensorFlow scalar, from 0.
      partition: how the weights are stored.
      norm: `global_norm` of the gradients, where it is there already.
    """
    optimizer = OPTIMIZERS[config.opt_name](variables[0].mesh, rate, step, config)
    updates, after = [], list(grads)
    if config.gradient_clipping:
        grads = clipped(grads, norm or global_norm(grads), config.gradient_clipping)
    for variable, grad in zip(variables, grads):
        name = variable.name
        after = optimizer.update(variable, roles[name], grad, weight_decay(name, config), partition, after)
        updates += after
    return updates


def global_norm(grads: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients as one vector, a float32 scalar."""
    return mtf.sqrt(mtf.add_n([SquareSumOperation(grad).outputs[0] for grad in grads]))


def clipped(grads: Sequence[Tensor], norm: Tensor, limit: float) -> list:
    """Gradients of that norm times limit / max(norm, limit)."""
    factor = limit / mtf.maximum(norm, limit)
    return [grad * factor for grad in grads]


def weight_decay(name: str, config: OptimizerConfig) -> float:
    """The decay of a variable: that of the first rule that matches anywhere in its full name, else the general one."""
    matching = (decay for pattern, decay in config.weight_decay_rules if matches(pattern, name))
    return next(matching, config.weight_decay)
