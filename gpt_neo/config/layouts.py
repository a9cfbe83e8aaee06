"""Search for a layout: every assignment of mesh dimensions to tensor dimensions, judged by memory and traffic.

The variables and activations are few and known, so the estimate is a formula and the search is complete; nothing is
built. Mesh-TF splits a tensor over a mesh dimension when one of its dimensions is laid on it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Optional

from gpt_neo.config.estimate import bytes_per_parameter, microbatches, passing_span, weight_bytes
from gpt_neo.config.network import Variable, kinds_of, number_bytes, variables_of
from gpt_neo.config.schema import ModelConfig, RunConfig

# A core of a TPU v3, the device that the released models were trained on: memory, what of its peak a matrix product
# of these models reaches, and the links to its neighbours. The ranking needs their proportions, not their exactness.
DEVICE_BYTES, DEVICE_FLOPS, LINK_BYTES = 16e9, 25e12, 70e9
SLOTS = "slots"  # what a layout calls the dimension that a weight and its slots are split by
CANDIDATES = ("batch", "heads", "intermediate_expanded", "vocab", "embd", "loss_sequence")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A choice. memory: bytes per device; traffic: bytes that a device sends per step; seconds: of a step, roughly."""

    mesh_shape: tuple
    rules: tuple
    memory: float
    traffic: float
    seconds: float

    @property
    def rank(self) -> tuple:
        """Order of preference: those that fit by time, the others by memory."""
        return (0, self.seconds) if self.memory <= DEVICE_BYTES else (1, self.memory)


def dimension_sizes(run: RunConfig) -> dict[str, int]:
    """Sizes of the dimensions that a layout may name."""
    model, moe = run.model, run.model.moe_params
    experts = {"experts": moe.moe_num_experts, "expert_hidden": moe.moe_hidden_size} if model.moe_layers else {}
    heads = math.gcd(model.n_head, *(kind.heads(model) for kind in kinds_of(model)))  # a split divides all
    return {
        "batch": run.training.train_batch_size,
        "sequence": model.n_ctx,
        "loss_sequence": model.n_ctx,
        "memory_length": model.n_ctx + model.num_mem_kv,
        "embed_sequence": model.n_ctx,
        "embd": model.n_embd,
        "heads": heads,
        "vocab": model.n_vocab,
        "intermediate_expanded": model.mlp_width,
        "features_per_head": model.features_per_head,
        **experts,
    }


def multiplied(model: ModelConfig, variable: Variable) -> float:
    """How much of a variable every token is multiplied with: whole matrices, a tied table, a share of the experts."""
    if variable.role == "table":
        return 0.0 if model.own_head else 1.0
    if variable.role == "expert":
        return min(1.0, 2 * model.moe_params.moe_capacity_factor_train / model.moe_params.moe_num_experts)
    return float(variable.role in ("head", "matrix", "gate", "router"))


def variable_sizes(model: ModelConfig) -> dict[tuple, tuple[int, float]]:
    """Dimensions of variables -> (numbers that they hold in all, numbers that a token is multiplied with)."""
    found: dict[tuple, tuple[int, float]] = {}
    for variable in variables_of(model).values():
        size, used = found.get(variable.dims, (0, 0.0))
        found[variable.dims] = size + variable.size, used + variable.size * multiplied(model, variable)
    return found


def spread_dimension(mesh: Mapping[str, int], rules: Mapping[str, str], dims: Sequence[tuple]) -> Optional[str]:
    """The dimension of a variable that the rule `slots` splits: the first that divides and is not split yet; None
    without one, or without the rule.

    A variable that the layout splits over the same mesh dimension already stays as it is: no device holds what another
    one does.
    """
    axis = rules.get(SLOTS)
    if axis is None or any(rules.get(name) == axis for name, _ in dims):
        return None
    return next((name for name, size in dims if name not in rules and size % mesh[axis] == 0), None)


def spread_over(mesh: Mapping[str, int], rules: tuple, dims: tuple) -> int:
    """Parts that the rule `slots` cuts a variable into; 1 where it stays whole."""
    axes = dict(rules)
    return mesh[axes[SLOTS]] if spread_dimension(mesh, axes, dims) else 1


def held_and_summed(
    run: RunConfig, mesh: Mapping[str, int], rules: tuple, sizes: Mapping[tuple, tuple[int, float]], count: int
) -> tuple[float, float]:
    """Of the variables, their gradients and slots: bytes on a device, and bytes that it sends so that the replicas of
    the batch have the same. count: microbatches of a step."""
    axes = dict(rules)
    once, width = run.mesh.gradient_sums == "step", number_bytes(run.model)
    whole, trained = bytes_per_parameter(run), bytes_per_parameter(run) - weight_bytes(run.model)  # gradient and slots
    memory = traffic = 0.0
    for dims, (size, _) in sizes.items():
        stored = size / math.prod(mesh[axes[name]] for name, _ in dims if name in axes)
        parts = spread_over(mesh, rules, dims)
        if parts == 1:
            replicas = mesh[axes["batch"]] if "batch" in axes else 1
            memory += stored * whole
            traffic += 2 * stored * 4 * (replicas - 1) / replicas
        else:  # a part of the float32 weight, gradient and slots; the copy that layers read; perhaps whole gradients
            memory += stored * ((4 + trained) / parts + width + 4 * once)
            traffic += stored * (width + 4 * (1 if once else count)) * (parts - 1) / parts
    return memory, traffic


def judge(
    run: RunConfig, mesh: Mapping[str, int], rules: tuple, sizes: Mapping[tuple, tuple[int, float]]
) -> tuple[float, float, float]:
    """Memory, traffic and seconds of a layout, per device and step.

    Args:
      sizes: `variable_sizes` of the model.
    """
    model = run.model
    parts = {name: mesh[axis] for name, axis in rules}
    width = number_bytes(model)
    inner = model.mlp_width / model.n_embd

    def split(*names: str) -> int:
        return math.prod(parts.get(name, 1) for name in names)

    def ring(size: float, count: int) -> float:
        return 2 * size * (count - 1) / count  # an all-reduce as reduce-scatter and all-gather

    batch = run.training.train_batch_size // split("batch")
    step_tokens = batch * model.n_ctx
    count = microbatches(run.mesh, model.n_ctx, max(1, batch))
    tokens = step_tokens // count
    memory, traffic = held_and_summed(run, mesh, rules, sizes, count)
    # Blocks of which all is there at once, those of which the input is, and those of which the products are.
    layers = 1 if model.recompute_grad else model.n_layer
    kept = model.n_layer if model.recompute_grad else 0
    made = kept if model.kept_of_blocks == "products" else 0
    held = [kind.kept(model) for kind in kinds_of(model)]
    spans = (max(held) if model.kept_of_blocks == "inputs" else sum(held)) + passing_span(model)
    residual = tokens * model.n_embd * width
    memory += residual / split("embd") * (6 * layers + kept + made)
    memory += residual * 4 / split("heads") * (layers + made)
    memory += residual * inner / split("intermediate_expanded") * (2 * layers + made)
    memory += tokens * spans * model.n_head * 4 / split("heads")
    memory += 2 * tokens * model.n_vocab * 4 / split("vocab", "loss_sequence")
    everything = step_tokens * model.n_embd * width
    # Forward and backward of a block: a sum per projection whose contracted dimension is split.
    traffic += 4 * model.n_layer * (ring(everything, split("heads")) + ring(everything, split("intermediate_expanded")))
    products = 3 / split("heads") + inner / split("intermediate_expanded") + 4
    traffic += 2 * model.n_layer * products * ring(everything, split("embd"))
    traffic += ring(step_tokens * model.n_vocab * 4 / split("vocab"), split("embd"))
    traffic += 3 * ring(everything, split("vocab"))
    # A head split by tokens: its cores give one another the gradient of its input, and add up that of its matrix, of
    # which each holds a part by then.
    sums, head = 1 if run.mesh.gradient_sums == "step" else count, ("vocab", model.n_vocab)
    matrix = sum(4 * used / spread_over(mesh, rules, dims) for dims, (_, used) in sizes.items() if head in dims)
    traffic += ring(everything / 2 + sums * matrix, split("loss_sequence"))
    work = [
        2 * used / split("batch", *(name for name, _ in dims), *(("loss_sequence",) if head in dims else ()))
        for dims, (_, used) in sizes.items()
    ]
    flops = (4 if model.kept_of_blocks == "inputs" else 3) * run.tokens_per_step * sum(work)
    return memory, traffic, flops / DEVICE_FLOPS + traffic / LINK_BYTES


def search_layout(run: RunConfig, mesh_shape: tuple) -> list[Layout]:
    """Layouts of a mesh that divide every dimension, the fastest that fit a device first."""
    mesh, sizes, weights, found = dict(mesh_shape), dimension_sizes(run), variable_sizes(run.model), []
    # A tensor dimension goes to one mesh dimension; one mesh dimension takes dimensions that no tensor has both of.
    for choice in itertools.product((None, *mesh), repeat=len(CANDIDATES)):
        rules = tuple((name, axis) for name, axis in zip(CANDIDATES, choice) if axis)
        if all(sizes[name] % mesh[axis] == 0 for name, axis in rules) and not collides(rules):
            # Replicas of the batch may share out weights and slots, as the shipped configs have it.
            shared = tuple((SLOTS, axis) for name, axis in rules if name == "batch")
            for each in dict.fromkeys((rules, rules + shared)):
                found.append(Layout(mesh_shape, each, *judge(run, mesh, each, weights)))
    return sorted(found, key=lambda layout: layout.rank)


# Pairs of dimensions that some tensor has both of; experts and batch never meet unsplit.
TOGETHER = (
    ("batch", "embd"),
    ("batch", "heads"),
    ("batch", "intermediate_expanded"),
    ("batch", "vocab"),
    ("embd", "heads"),
    ("embd", "intermediate_expanded"),
    ("embd", "vocab"),
    ("experts", "embd"),
    ("experts", "expert_hidden"),
    ("expert_hidden", "embd"),
    ("batch", "expert_hidden"),
    ("batch", "loss_sequence"),
    ("loss_sequence", "embd"),
    ("loss_sequence", "vocab"),
    ("memory_length", "batch"),
    ("memory_length", "heads"),
    ("memory_length", "sequence"),
    ("batch", "sequence"),
    ("heads", "sequence"),
    ("embd", "sequence"),
)


def collides(rules: tuple) -> bool:
    """Whether some tensor would be split twice over one mesh dimension."""
    return collision(rules) is not None


def collision(rules: tuple) -> Optional[tuple[str, str]]:
    """Two dimensions of one tensor that the rules put on one mesh dimension."""
    axes = dict(rules)
    return next(((a, b) for a, b in TOGETHER if a in axes and axes.get(b) == axes[a]), None)


def mesh_shapes(devices: int) -> Iterator[tuple]:
    """Meshes of one and two dimensions over a number of devices."""
    yield (("all", devices),)
    for first in range(2, devices):
        if devices % first == 0:
            yield (("x", first), ("y", devices // first))


def search_mesh_and_layout(run: RunConfig, devices: int) -> list[Layout]:
    """The best layouts over all meshes of a number of devices."""
    found = [layout for shape in mesh_shapes(devices) for layout in search_layout(run, shape)]
    return sorted(found, key=lambda layout: layout.rank)
