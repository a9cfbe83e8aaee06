"""How one pass over the network goes: an argument of every layer, never a config key."""

from __future__ import annotations

import dataclasses
from typing import Optional

from gpt_neo.mtf_compat import Tensor
from gpt_neo.ops.caches import Decoding
from gpt_neo.ops.dropout import RandomSource, dropout
from gpt_neo.ops.parameters import Storage, plain


@dataclasses.dataclass(frozen=True)
class Context:
    """A pass.

    is_training: dropout and recomputation are on.
    decoding: new tokens against caches of the old ones; None reads whole sequences.
    last_only: give the logits of the last token alone.
    spread_loss: logits are [batch, loss_sequence, vocab], see `transformer.spread`.
    storage: how weights are stored, see `ops/parameters.py`.
    gathers: it gathers a weight where it is read: blocks do so again in the backward pass.
    randomness: where dropout takes its masks from; needed where a pass in training draws any.
    auxiliary_losses: float32 scalars that layers add to the loss, filled by the pass.
    in_places: experts have the places of `moe_capacity_factor_eval`, if that is set; what a token gives then depends on
      the rest of the batch.
    seen: (layer, tensors) of each attention layer, what its weights follow from; filled where it is a list.
    """

    is_training: bool = False
    decoding: Optional[Decoding] = None
    last_only: bool = False
    spread_loss: bool = False
    storage: Storage = plain
    gathers: bool = False
    randomness: Optional[RandomSource] = None
    in_places: bool = False
    auxiliary_losses: list = dataclasses.field(default_factory=list)
    seen: Optional[list] = None

    def drops(self, rate: float) -> bool:
        """Whether dropout at that rate does anything."""
        return rate > 0 and self.is_training

    def source(self) -> RandomSource:
        """Where random numbers come from.

        Raises:
          ValueError: the pass was given none.
        """
        if self.randomness is None:
            raise ValueError("this pass draws random numbers: give its Context randomness, a dropout.RandomSource")
        return self.randomness

    def dropout(self, x: Tensor, rate: float) -> Tensor:
        """x, or in training x with a share of its elements dropped."""
        return dropout(x, rate, self.source()) if self.drops(rate) else x

    def show(self, layer: int, *tensors: Tensor) -> None:
        """Called by an attention layer with [batch, sequence, heads, some features] each."""
        if self.seen is not None:
            self.seen.append((layer, tensors))
