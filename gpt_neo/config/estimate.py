"""What a run will cost, from its config alone: parameters and memory."""

from __future__ import annotations

import dataclasses

from gpt_neo.config.schema import MeshConfig, ModelConfig, OptimizerConfig, RunConfig


def count_parameters(model: ModelConfig) -> int:
    """Parameters of a model with a tied head, learned positions and plain blocks.

    V d + T d for the tables, 12 d^2 + 10 d per block (norms 4 d, attention 4 d^2 + d, MLP 8 d^2 + 5 d), 2 d for ln_f.
    """
    d = model.n_embd
    experts = len(set(model.moe_layers)) * (mixture_parameters(model) - (8 * d * d + 5 * d))
    return (model.n_vocab + model.n_ctx) * d + model.n_layer * (12 * d * d + 10 * d) + 2 * d + experts


def mixture_parameters(model: ModelConfig) -> int:
    """Parameters of a mixture of E experts of width H in place of an MLP: gates d E, experts 2 E d H."""
    d, experts = model.n_embd, model.moe_params.moe_num_experts
    return d * experts + 2 * experts * d * model.moe_params.moe_hidden_size


def slot_bytes(optimizer: OptimizerConfig) -> int:
    """Bytes of optimizer slots per parameter: float32 moments; the factored ones of Adafactor hardly count."""
    adafactor = 4 if optimizer.beta1 else 0
    return {"adam": 8, "adamw": 8, "lion": 4, "adafactor": adafactor}[optimizer.opt_name]


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
    seen = [2 * model.local_attention_radius if kind == "local" else model.n_ctx for kind in model.attention_types]
    blocks = [16 * model.n_embd * width + min(span, model.n_ctx) * model.n_head * 4 for span in seen]
    kept = max(blocks) + model.n_layer * model.n_embd * width if model.recompute_grad else sum(blocks)
    return Memory(
        weights=parameters * width,
        slots=parameters * slot_bytes(run.optimizer),
        gradients=parameters * 4,
        activations=tokens * kept,
        logits=2 * tokens * model.n_vocab * 4,
    )


def sampling_memory(model: ModelConfig, batch_size: int) -> Memory:
    """Estimate the memory of sampling: weights and caches."""
    width = 2 if model.precision == "bfloat16" else 4
    slots = [min(model.local_attention_radius, model.n_ctx) if k == "local" else model.n_ctx
             for k in model.attention_types]
    caches = sum(slots) * 2 * model.n_embd * width * batch_size
    return Memory(count_parameters(model) * width, 0, 0, caches, batch_size * model.n_vocab * 4)
