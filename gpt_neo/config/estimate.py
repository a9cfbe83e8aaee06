"""What a run will cost, from its config alone: parameters and memory."""

from __future__ import annotations

import dataclasses
import math
from typing import Optional

from gpt_neo.config.network import SCALED, Variables, is_trained, kinds_of, number_bytes, variables_of
from gpt_neo.config.optimizers import slots_of
from gpt_neo.config.schema import MeshConfig, ModelConfig, OptimizerConfig, RunConfig

# Of the logits of a chunk. The gradient of the head's weight is added up over chunks in float32: 12 to 16 bytes moved
# for each of its elements and 6 FLOPs for each element and token. At 50,257 columns chunks have 2,000 to 5,000 tokens,
# so that the products take ten times as long or longer, on CPUs and on GPUs.
HEAD_BYTES = 1 << 29


def count_parameters(model: ModelConfig) -> int:
    """Exact number of trainable numbers, from the config alone."""
    return sum(variable.size for variable in variables_of(model).values())


def step_flops(run: RunConfig) -> float:
    """FLOPs that one step takes at least, forward and backward: 6 for each parameter and token, and 12 n_embd for each
    pair of tokens that attend to each other.

    A parameter that is not trained has 4, and those of an expert count for the tokens that it has places for.
    """
    model, tokens = run.model, run.tokens_per_step
    trained, experts = trained_variables(model, run.optimizer), model.moe_params
    places = min(2.0, experts.moe_capacity_factor_train) / experts.moe_num_experts if model.moe_layers else 0.0
    of_token = sum(
        (6.0 if name in trained else 4.0) * variable.size * (places if variable.role == "expert" else 1.0)
        for name, variable in variables_of(model).items()
    )
    seen = sum(kind.seen(model) for kind in kinds_of(model))
    return tokens * (of_token + 12.0 * model.n_embd * seen)


def trained_variables(model: ModelConfig, optimizer: OptimizerConfig) -> Variables:
    """What training changes."""
    found = variables_of(model).items()
    return {name: variable for name, variable in found if is_trained(name, model, optimizer.freeze)}


def slot_bytes(model: ModelConfig, optimizer: OptimizerConfig) -> int:
    """Bytes of the optimizer's float32 slots, exact."""
    trained = trained_variables(model, optimizer)
    return sum(math.prod(shape) * 4 for shape in slots_of(trained, optimizer).values())


def weight_bytes(model: ModelConfig) -> int:
    """Bytes of a parameter in training: float32, which is trained, and what layers read where that differs."""
    width = number_bytes(model)
    return 4 if width == 4 else 4 + width


def bytes_per_parameter(run: RunConfig) -> float:
    """Bytes of a parameter in training on a device that holds it whole: weights, gradient and the optimizer's slots."""
    return weight_bytes(run.model) + 4 + slot_bytes(run.model, run.optimizer) / count_parameters(run.model)


def passing_span(model: ModelConfig) -> int:
    """Attention weights per token and head that exist at once, in the layer that has the most."""
    return max(kind.at_once(model) for kind in kinds_of(model))


def microbatches(mesh: MeshConfig, n_ctx: int, batch_per_replica: int) -> int:
    """Microbatches per step: each holds tokens_per_mb_per_replica // n_ctx sequences (at least 1), lowered to the
    nearest divisor of the batch of a replica."""
    if not mesh.tokens_per_mb_per_replica:
        return 1
    sequences = min(batch_per_replica, max(1, mesh.tokens_per_mb_per_replica // n_ctx))
    while batch_per_replica % sequences:
        sequences -= 1
    return batch_per_replica // sequences


def head_chunks(tokens: int, columns: int, width: int) -> int:
    """Chunks of tokens in which the head and its loss are computed: a number that divides the tokens, if one is near.

    Args:
      columns: of the logits, on the device.
      width: bytes of a number of an activation.
    """
    least = -(-tokens * columns * width // HEAD_BYTES)
    return next((count for count in range(least, 2 * least) if tokens % count == 0), least)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a training step on one device that holds the whole model."""

    weights: int
    slots: int
    gradients: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.slots + self.gradients + self.activations + self.logits


def training_memory(run: RunConfig, replicas: int = 1) -> Memory:
    """Estimate the memory of one step: what has to be alive at the end of the forward pass and for the update."""
    model = run.model
    parameters, width = count_parameters(model), number_bytes(model)
    batch = max(1, run.training.train_batch_size // replicas)
    rows = batch // microbatches(run.mesh, model.n_ctx, batch)
    tokens = rows * model.n_ctx
    kept = block_bytes(model, model.kept_of_blocks) + passing_span(model) * model.n_head * 4
    chunks = head_chunks(tokens, model.n_vocab, width)
    of_chunk = -(-tokens // chunks) * model.n_vocab
    return Memory(
        weights=parameters * weight_bytes(model),
        slots=slot_bytes(model, run.optimizer),
        gradients=sum(variable.size for variable in trained_variables(model, run.optimizer).values()) * 4,
        activations=int(tokens * kept),
        # Logits and their gradient; where there are several chunks, what one adds to the gradient of the table.
        logits=4 * (2 * of_chunk + (model.n_vocab * model.n_embd if chunks > 1 else 0)),
    )


def less_memory(model: ModelConfig) -> str:
    """What takes less memory in training, for a message."""
    more = {"all": ", or set recompute_grad", "products": ", or set recompute_keep to inputs"}
    return "lower train_batch_size or tokens_per_mb_per_replica" + more.get(model.kept_of_blocks, "")


def block_bytes(model: ModelConfig, kept: str) -> float:
    """Bytes per token of what is kept of the blocks, and of what one that is run again makes anew.

    Args:
      kept: as `ModelConfig.kept_of_blocks`.
    """
    # About 8 n_embd-wide tensors, 2 of the width inside the MLP (4 when gated), and what there is of float32 attention
    # weights. Products are q, k, v, the result of attention and what its gradient needs of it, two projections, and
    # what goes into the activation.
    wide = model.mlp_width / model.n_embd * (2 if model.mlp_glu else 1)
    numbers = {"all": 8 + 2 * wide, "products": 7 + wide, "inputs": 1}
    width = model.n_embd * number_bytes(model)
    spans = [kind.kept(model) * model.n_head * 4 for kind in kinds_of(model)]
    anew = {"all": 0, "products": numbers["all"] - numbers["products"], "inputs": numbers["all"] + max(spans) / width}
    return sum(numbers[kept] * width + (0 if kept == "inputs" else span) for span in spans) + anew[kept] * width


def sampling_memory(model: ModelConfig, batch_size: int, bits: Optional[int] = None) -> Memory:
    """Estimate the memory of sampling: weights and caches.

    Args:
      bits: of a number of a matrix, 8 or 4, where that is fewer than the model's precision has; tables have 8 then.
    """
    caches = sum(kind.cache_bytes(model, model.n_ctx) for kind in kinds_of(model)) * batch_size
    weights = count_parameters(model) * number_bytes(model)
    if bits:
        width = {**dict.fromkeys(SCALED, bits), "table": 8}
        weights = sum(v.size * width.get(v.role, 32) // 8 for v in variables_of(model).values())
    return Memory(weights, 0, 0, caches, batch_size * model.n_vocab * 4)
