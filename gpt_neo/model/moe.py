"""Mixture of experts: every token goes to the two feed-forward networks that its gates rate highest.

Routing follows GShard (Lepikhin et al. 2020, section 2.2 and algorithm 1) with the options and variable names of the
legacy program. In training an expert has a fixed number of places per group of tokens and drops what exceeds it;
elsewhere nothing is dropped, so that a token's result depends on no other token and decoding gives what reading the
whole sequence gives. Evaluation of held-out records can be told to drop as the legacy program did.

A layout rule `experts:x` spreads the experts. Beside `batch:x` tokens then travel to their experts and back in two
all-to-alls; on an axis of its own each device computes the share of its experts and the shares are added up.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from gpt_neo.config.schema import ModelConfig, MoeConfig
from gpt_neo.model.activations import get_activation
from gpt_neo.model.context import Context
from gpt_neo.model.dims import Dims
from gpt_neo.mtf_compat import Dimension, Tensor, mtf, tf
from gpt_neo.ops.dropout import uniform_like
from gpt_neo.ops.parameters import Parameters
from gpt_neo.ops.row_sums import weighted, widened

TINY = 1e-9  # keeps quotients of gates finite


@dataclasses.dataclass(frozen=True)
class ExpertDims:
    """Dimensions of one mixture. The names are public: layout strings use them.

    gates: experts_unsplit, the experts as a token sees them, never split. batch: expert_batch, the batch as an expert
    sees it; it is split as `batch` is, unless the experts are on that axis of the mesh.
    """

    gates: Dimension
    experts: Dimension
    batch: Dimension
    hidden: Dimension

    @classmethod
    def of(cls, moe: MoeConfig, dims: Dims) -> ExpertDims:
        """The dimensions for a config and a batch."""
        return cls(
            gates=mtf.Dimension("experts_unsplit", moe.moe_num_experts),
            experts=mtf.Dimension("experts", moe.moe_num_experts),
            batch=mtf.Dimension("expert_batch", dims.batch.size),
            hidden=mtf.Dimension("expert_hidden", moe.moe_hidden_size),
        )


@dataclasses.dataclass
class Choice:
    """One choice of every token: its gate [tokens], and which expert it is, one-hot [tokens, experts_unsplit]."""

    gate: Any
    mask: Any


def mixture_of_experts(
    x: Tensor, p: Parameters, dims: Dims, config: ModelConfig, context: Context
) -> tuple[Tensor, Optional[Tensor]]:
    """The mixture, in the weights `top_2_gating/kernel` [embd, experts_unsplit], `wi/kernel` [experts, embd,
    expert_hidden] and `wo/kernel` [experts, expert_hidden, embd].

    Args:
      x: [batch, sequence, embd].

    Returns:
      ([batch, sequence, embd], float32 scalar load-balancing loss; None unless training)
    """
    moe, names = config.moe_params, ExpertDims.of(config.moe_params, dims)
    if context.in_places and moe.moe_capacity_factor_eval is not None:
        return whole_batch(x, p, dims, config, context), None
    if not context.is_training:
        first, second, _ = gating(x, p, names, dims, config, None)
        second.gate *= share_of_second(second.gate, moe.moe_second_policy_eval, moe.moe_second_threshold_eval, None)
        return every_expert(x, p, first, second, names, dims, config), None
    size = group_size(dims.sequence.size, moe.moe_group_size)
    groups, group = mtf.Dimension("groups", dims.sequence.size // size), mtf.Dimension("group", size)
    tokens = mtf.reshape(x, mtf.Shape([dims.batch, groups, group, dims.embd]))
    first, second, loss = gating(tokens, p, names, dims, config, group)
    policy, threshold = moe.moe_second_policy_train, moe.moe_second_threshold_train
    draws = uniform_like(second.gate, context.source()) if policy == "random" else None
    second.mask *= share_of_second(second.gate, policy, threshold, draws)
    size = capacity(group.size, moe.moe_capacity_factor_train, moe)
    dispatch, combine = assign_places(first, second, group, names, size)
    out = chosen_experts(tokens, p, dispatch, combine, groups, names, dims, config, context)
    return mtf.reshape(out, x.shape), loss * moe.moe_loss_coef


def whole_batch(x: Tensor, p: Parameters, dims: Dims, config: ModelConfig, context: Context) -> Tensor:
    """The mixture as the legacy program evaluated it, without its draws: x [batch, sequence, embd] -> the same.

    The tokens of the whole batch stand in one row, cut evenly into groups (Mesh-TensorFlow's `_split_into_groups`), and
    an expert has places for `moe_capacity_factor_eval` times its share of a group. Every device sees the whole batch,
    so that the mesh does not matter.
    """
    moe, tokens = config.moe_params, dims.batch.size * dims.sequence.size
    count = group_count(tokens, moe.moe_group_size)
    groups, group = mtf.Dimension("groups", count), mtf.Dimension("group", tokens // count)
    # under names that no layout splits
    dims = dataclasses.replace(dims, batch=mtf.Dimension("whole_batch", 1))
    names = dataclasses.replace(ExpertDims.of(moe, dims), batch=mtf.Dimension("whole_expert_batch", 1))
    row = mtf.reshape(x, mtf.Shape([dims.batch, groups, group, dims.embd]))
    first, second, _ = gating(row, p, names, dims, config, None)
    share = share_of_second(second.gate, moe.moe_second_policy_eval, moe.moe_second_threshold_eval, None)
    second.gate *= share
    second.mask *= mtf.cast(mtf.greater(share, 0.0), second.mask.dtype)  # the others take no place
    size = capacity(group.size, moe.moe_capacity_factor_eval, moe)
    dispatch, combine = assign_places(first, second, group, names, size)
    return mtf.reshape(chosen_experts(row, p, dispatch, combine, groups, names, dims, config, context), x.shape)


def capacity(group: int, factor: Any, moe: MoeConfig) -> int:
    """Places of an expert for a group of so many tokens: its share times a factor, at least the configured fewest."""
    return max(min(group, int(group * factor / moe.moe_num_experts)), moe.moe_min_expert_capacity)


def group_count(tokens: int, largest: int) -> int:
    """The first divisor of a number of tokens from tokens // largest on: groups of about `largest` tokens."""
    return next(count for count in range(max(1, tokens // largest), tokens + 1) if tokens % count == 0)


def group_size(length: int, largest: int) -> int:
    """The largest divisor of a sequence length that is at most `largest`.

    Groups lie within sequences: routing depends neither on what else is in the batch nor on the mesh.
    """
    return max(size for size in range(1, min(length, largest) + 1) if length % size == 0)


def gating(
    tokens: Tensor, p: Parameters, names: ExpertDims, dims: Dims, config: ModelConfig, group: Optional[Dimension]
) -> tuple[Choice, Choice, Tensor]:
    """The two highest gates of each token, normalised to sum to one.

    Args:
      tokens: [..., embd].
      group: the dimension over which the load is to be balanced; without it there is no loss.

    Returns:
      (first choice, second choice, float32 scalar loss or None)
    """
    kernel = p["top_2_gating/kernel"]
    # in float32 whatever the precision: near ties decide where a token goes
    wide, shape = mtf.cast(tokens, tf.float32), tokens.shape - dims.embd + names.gates
    probabilities = mtf.softmax(mtf.einsum([wide, widened(kernel)], output_shape=shape), names.gates)
    first = top_choice(probabilities, names.gates)
    others = probabilities * (1.0 - first.mask)
    second = top_choice(others, names.gates)
    loss: Any = None
    if group is not None:
        loss = balance_loss(first.mask, probabilities, group, names.gates)
        if config.moe_params.moe_use_second_place_loss:
            others /= mtf.reduce_sum(others, reduced_dim=names.gates) + TINY
            loss += 0.5 * balance_loss(second.mask, others, group, names.gates)
    total = first.gate + second.gate + TINY
    first.gate, second.gate = first.gate / total, second.gate / total
    return first, second, loss


def top_choice(gates: Tensor, experts: Dimension) -> Choice:
    """The expert of the highest gate."""
    value, index = mtf.top_1(gates, experts)
    return Choice(value, mtf.one_hot(index, experts, dtype=gates.dtype))


def balance_loss(mask: Tensor, gates: Tensor, group: Dimension, experts: Dimension) -> Tensor:
    """E times the sum over E experts of (share of the group's tokens) * (mean gate), averaged over the groups.

    It is 1 when both are even, and its gradient moves gates away from crowded experts (Lepikhin et al. 2020,
    equation 4, and Shazeer et al. 2017, section 4).
    """
    share = mtf.reduce_mean(mask, reduced_dim=group)
    return mtf.reduce_mean(share * mtf.reduce_mean(gates, reduced_dim=group)) * float(experts.size**2)


def share_of_second(gate: Tensor, policy: str, threshold: float, draws: Optional[Tensor]) -> Tensor:
    """How much of a second choice counts, between 0 and 1.

    `random` lets it count with probability min(1, gate / threshold). Without draws it is that probability: the
    expectation over the draws that training sees, as evaluation has to be repeatable.

    Args:
      gate: float32 [tokens].
      draws: float32 [tokens], uniform in [0, 1).
    """
    if policy == "all":
        return mtf.ones_like(gate)
    if policy == "none":
        return mtf.zeros_like(gate)
    if policy == "threshold":
        return mtf.cast(mtf.greater(gate, threshold), gate.dtype)
    chance = mtf.minimum(gate / max(threshold, TINY), 1.0)
    return mtf.cast(mtf.less(draws, chance), gate.dtype) if draws is not None else chance


def assign_places(
    first: Choice, second: Choice, group: Dimension, names: ExpertDims, size: int
) -> tuple[Tensor, Tensor]:
    """Give tokens the `size` places of their experts, first choices before second ones, each in order of the sequence.

    Returns:
      (dispatch, combine), float32 [batch, groups, group, experts_unsplit, expert_capacity]: 1 and the gate where a
      token has a place.
    """
    places_of_expert = mtf.Dimension("expert_capacity", size)
    taken, dispatch, combine = None, [], []
    for choice in (first, second):
        place = mtf.cumsum(choice.mask, group, exclusive=True)
        place = place if taken is None else place + taken
        mask = choice.mask * mtf.cast(mtf.less(place, float(size)), choice.mask.dtype)
        if taken is None:
            taken = mtf.reduce_sum(mask, reduced_dim=group)
        # the place within its expert; a token without one has an empty mask
        place = mtf.reduce_sum(place * mask, reduced_dim=names.gates)
        places = mtf.one_hot(mtf.cast(place, tf.int32), places_of_expert)
        shape = mask.shape + places_of_expert
        dispatch.append(mtf.einsum([mask, places], output_shape=shape))
        combine.append(mtf.einsum([choice.gate, mask, places], output_shape=shape))
    return mtf.add_n(dispatch), mtf.add_n(combine)


def chosen_experts(
    tokens: Tensor,
    p: Parameters,
    dispatch: Tensor,
    combine: Tensor,
    groups: Dimension,
    names: ExpertDims,
    dims: Dims,
    config: ModelConfig,
    context: Context,
) -> Tensor:
    """Send tokens to the places they have, through the experts and back: [batch, groups, group, embd] -> the same.

    Dropout is of what is inside an expert, [experts, expert_batch, groups, expert_capacity, expert_hidden].
    """
    places = dispatch.shape.dims[-1]
    there = mtf.Shape([names.experts, names.batch, groups, places, dims.embd])
    here = mtf.Shape([names.gates, dims.batch, groups, places, dims.embd])
    # to bring a tensor from `here` to `there` is the all-to-all
    sent = mtf.reshape(mtf.einsum([tokens, mtf.cast(dispatch, tokens.dtype)], output_shape=here), there)
    wi, wo = p["wi/kernel"], p["wo/kernel"]
    hidden = weighted(sent, wi, there - dims.embd + names.hidden)
    hidden = get_activation(config.moe_activation, "moe_activation")(hidden)
    hidden = context.dropout(hidden, config.moe_params.moe_dropout_rate)
    back = mtf.reshape(weighted(hidden, wo, there), here)
    return mtf.einsum([back, mtf.cast(combine, tokens.dtype)], output_shape=tokens.shape)


def every_expert(
    x: Tensor, p: Parameters, first: Choice, second: Choice, names: ExpertDims, dims: Dims, config: ModelConfig
) -> Tensor:
    """Weigh what every expert makes of every token by the gates, which are zero but for two: x -> its shape.

    It needs no places, so none can run out.
    """
    gates = mtf.cast(first.gate * first.mask + second.gate * second.mask, x.dtype)
    moved, copies = mtf.Shape([names.batch, dims.sequence, dims.embd]), mtf.Shape([names.experts])
    gates = mtf.reshape(gates, moved - dims.embd + names.experts)
    wi, wo = p["wi/kernel"], p["wo/kernel"]
    # A product for every expert; one over all of them at once would bring the weights into another order first.
    tokens = mtf.broadcast(mtf.reshape(x, moved), copies + moved)
    hidden = mtf.einsum([tokens, wi], output_shape=copies + moved - dims.embd + names.hidden)
    hidden = get_activation(config.moe_activation, "moe_activation")(hidden)
    hidden = mtf.einsum([hidden, gates], output_shape=hidden.shape)
    return mtf.reshape(mtf.einsum([hidden, wo], output_shape=moved), x.shape)
