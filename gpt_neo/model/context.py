"""How one pass over the network goes: an argument of every layer, never a config key."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Optional


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Where new tokens go: slots slot .. slot + sequence - 1 of the caches.

    slot: int32 scalar, or [batch] where rows are at slots of their own; such a pass reads one token of each row.
    start: int32 [batch], slot of each row's first token; slots before it are padding.
    slots: entries of the caches of global layers.
    attend: stands in for `cached_attention`, with caches of its own; None takes those in variables.
    advance: stands in for `stateful.StateOperation` likewise.
    rows: rows that the caches have; None where they are those of the batch.
    row: int32 scalar, the row of the caches that a batch of 1 is; None where the batch is all of them.
    """

    slot: Any
    start: Any
    slots: int
    attend: Optional[Callable[..., Any]] = None
    advance: Optional[Callable[..., Any]] = None
    rows: Optional[int] = None
    row: Optional[Any] = None


@dataclasses.dataclass(frozen=True)
class Context:
    """A pass.

    is_training: dropout and recomputation are on.
    decoding: new tokens against caches of the old ones; None reads whole sequences.
    last_only: give the logits of the last token alone.
    spread_loss: logits are [batch, loss_sequence, vocab], see `transformer.spread`.
    auxiliary_losses: float32 scalars that layers add to the loss, filled by the pass.
    in_places: experts have the places of `moe_capacity_factor_eval`, if that is set; what a token gives then depends on
      the rest of the batch.
    seen: (kind, tensors) of each attention layer, what its weights follow from; filled by the pass where it is a list.
    """

    is_training: bool = False
    decoding: Optional[Decoding] = None
    last_only: bool = False
    spread_loss: bool = False
    in_places: bool = False
    auxiliary_losses: list = dataclasses.field(default_factory=list)
    seen: Optional[list] = None

    def show(self, kind: str, *tensors: Any) -> None:
        """Called by an attention layer with [batch, sequence, heads, some features] each."""
        if self.seen is not None:
            self.seen.append((kind, tensors))
