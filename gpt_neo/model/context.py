"""How one pass over the network goes: an argument of every layer, never a config key."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Optional


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Where new tokens go: slots slot .. slot + sequence - 1 of the caches.

    slot: int32 scalar. start: int32 [batch], slot of each row's first token; slots before it are padding.
    slots: entries of the caches of global layers.
    attend: stands in for `cached_attention`, with caches of its own; None takes those in variables.
    """

    slot: Any
    start: Any
    slots: int
    attend: Optional[Callable[..., Any]] = None


@dataclasses.dataclass(frozen=True)
class Context:
    """A pass.

    is_training: dropout and recomputation are on.
    decoding: new tokens against caches of the old ones; None reads whole sequences.
    last_only: give the logits of the last token alone.
    spread_loss: logits are [batch, loss_sequence, vocab], see `transformer.spread`.
    auxiliary_losses: float32 scalars that layers add to the loss, filled by the pass.
    """

    is_training: bool = False
    decoding: Optional[Decoding] = None
    last_only: bool = False
    spread_loss: bool = False
    auxiliary_losses: list = dataclasses.field(default_factory=list)
