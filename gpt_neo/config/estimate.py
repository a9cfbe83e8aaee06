"""What a run will cost, from its config alone: parameters and memory."""

from __future__ import annotations

import dataclasses
import math

from gpt_neo.config.schema import MeshConfig, ModelConfig, OptimizerConfig, RunConfig
from gpt_neo.config.shapes import count, variable_shapes

FACTORED_FROM = 128  # Adafactor keeps whole second moments of smaller matrices, as Mesh-TF has it


def count_parameters(model: ModelConfig) -> int:
    """Exact number of trainable numbers, from the config alone."""
    return count(variable_shapes(model))


def slot_bytes(model: ModelConfig, optimizer: OptimizerConfig) -> int:
    """Bytes of the optimizer's slots, float32: two moments of every number, or one; see `adafactor_slots`."""
    if optimizer.opt_name == "adafactor":
        return 4 * sum(adafactor_slots(shape, bool(optimizer.beta1)) for shape in variable_shapes(model))
    return 4 * count_parameters(model) * {"adam": 2, "adamw": 2, "lion": 1}[optimizer.opt_name]


def adafactor_slots(shape: tuple, momentum: bool) -> int:
    """Numbers in Adafactor's slots of a variable: its second moments, whole or as a row and a column of its two
    largest dimensions, and a first one where there is momentum."""
    size, dims = math.prod(shape), sorted(shape, reverse=True)
    factored = len(dims) > 1 and dims[1] >= FACTORED_FROM
    return (size // dims[0] + size // dims[1] if factored else size) + size * momentum


def kept_span(model: ModelConfig, kind: str) -> int:
    """Attention weights per token and head that a layer keeps for the backward pass: none but with dropout on them."""
    if kind not in ("global", "local") or not model.attn_dropout:
        return 0
    return min(2 * model.local_attention_radius if kind == "local" else model.n_ctx, model.n_ctx)


def passing_span(model: ModelConfig) -> int:
    """Attention weights per token and head that exist at once: 256 queries over all keys, or chunks of 64 tokens."""
    spans = {"global": 256, "local": 256, "linear": 64, "gla": 64, "none": 0}
    return max(min(spans[kind], model.n_ctx) for kind in model.attention_types)


def cache_bytes(model: ModelConfig, kind: str) -> int:
    """What a layer keeps per row while it decodes: keys and values, or a float32 state of constant size."""
    if kind == "none":
        return 0
    if kind == "linear":
        return model.n_embd * (model.n_embd // model.n_head + 1) * 4
    if kind == "gla":
        return model.gla_key_width * (model.gla_value_width // model.gla_heads) * 4
    slots = min(model.local_attention_radius, model.n_ctx) if kind == "local" else model.n_ctx
    return slots * 2 * model.n_embd * (2 if model.precision == "bfloat16" else 4)


def microbatches(mesh: MeshConfig, n_ctx: int, batch_per_replica: int) -> int:
    """Microbatches per step: each holds tokens_per_mb_per_replica // n_ctx sequences (at least 1), lowered to the
    nearest divisor of the batch of a replica."""
    if not mesh.tokens_per_mb_per_replica:
        return 1
    sequences = min(batch_per_replica, max(1, mesh.tokens_per_mb_per_replica // n_ctx))
    while batch_per_replica % sequences:
        sequences -= 1
    return batch_per_replica // sequences


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
    parameters, width = count_parameters(model), 2 if model.precision == "bfloat16" else 4
    batch = max(1, run.training.train_batch_size // replicas)
    rows = batch // microbatches(run.mesh, model.n_ctx, batch)
    tokens = rows * model.n_ctx
    # Per token and block: about 8 n_embd-wide tensors, 2 of the width inside the MLP (4 when gated), and what there is
    # of float32 attention weights.
    inside = 8 + (4 if model.mlp_glu else 2) * model.mlp_width / model.n_embd
    spans = [kept_span(model, kind) for kind in model.attention_types]
    blocks = [inside * model.n_embd * width + span * model.n_head * 4 for span in spans]
    kept = max(blocks) + model.n_layer * model.n_embd * width if model.recompute_grad else sum(blocks)
    kept += passing_span(model) * model.n_head * 4
    return Memory(
        weights=parameters * width,
        slots=slot_bytes(model, run.optimizer),
        gradients=parameters * 4,
        activations=int(tokens * kept),
        logits=2 * tokens * model.n_vocab * 4,
    )


def sampling_memory(model: ModelConfig, batch_size: int) -> Memory:
    """Estimate the memory of sampling: weights and caches."""
    width = 2 if model.precision == "bfloat16" else 4
    caches = sum(cache_bytes(model, kind) for kind in model.attention_types) * batch_size
    return Memory(count_parameters(model) * width, 0, 0, caches, batch_size * model.n_vocab * 4)
