"""What a run will cost, from its config alone: parameters and memory."""

from __future__ import annotations

import dataclasses

from gpt_neo.config.schema import MeshConfig, ModelConfig, RunConfig


def count_parameters(model: ModelConfig) -> int:
    """Parameters of a model with a tied head, learned positions and plain blocks.

    V d + T d for the tables (axial ones are smaller), 8 d^2 + 5 d for the MLP of a block and 2 d for its norm, the
    attention of each block and 2 d for its norm, 2 d for ln_f.
    """
    d = model.n_embd
    tables = (model.n_vocab + sum(model.axial_pos_emb or [model.n_ctx])) * d
    norms = sum(2 * d for kind in model.attention_types if kind != "none")
    attention = norms + sum(attention_parameters(model, kind) for kind in model.attention_types)
    return tables + attention + model.n_layer * (8 * d * d + 7 * d) + 2 * d


def attention_parameters(model: ModelConfig, kind: str) -> int:
    """Parameters of the attention of one layer: q, k, v, o and the bias of o; the low-rank gate, the output gate and
    the norm of a head in gla."""
    d = model.n_embd
    if kind == "none":
        return 0
    if kind != "gla":
        return 4 * d * d + d
    keys, values, rank = model.gla_key_width, model.gla_value_width, model.gla_params.gate_low_rank_dim
    output_gate = d * values if model.gla_params.use_output_gate else 0
    return 2 * d * (keys + values) + d * rank + (rank + 1) * keys + output_gate + values // model.gla_heads


def attention_span(model: ModelConfig, kind: str) -> int:
    """Attention weights per token and head that a layer holds at once: linear and gla have chunks of 64 tokens."""
    spans = {"local": 2 * model.local_attention_radius, "linear": 64, "gla": 64, "none": 0}
    return min(spans.get(kind, model.n_ctx), model.n_ctx)


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
    # Per token and block: about 16 n_embd-wide tensors, and float32 attention weights over what a query can see.
    spans = [attention_span(model, kind) for kind in model.attention_types]
    blocks = [16 * model.n_embd * width + span * model.n_head * 4 for span in spans]
    kept = max(blocks) + model.n_layer * model.n_embd * width if model.recompute_grad else sum(blocks)
    return Memory(
        weights=parameters * width,
        slots=parameters * 8,
        gradients=parameters * 4,
        activations=tokens * kept,
        logits=2 * tokens * model.n_vocab * 4,
    )


def sampling_memory(model: ModelConfig, batch_size: int) -> Memory:
    """Estimate the memory of sampling: weights and caches."""
    width = 2 if model.precision == "bfloat16" else 4
    caches = sum(cache_bytes(model, kind) for kind in model.attention_types) * batch_size
    return Memory(count_parameters(model) * width, 0, 0, caches, batch_size * model.n_vocab * 4)
