"""What a run will cost, from its config alone: parameters and memory."""

from __future__ import annotations

import dataclasses

from gpt_neo.config.schema import ACTIVATION_VARIABLES, MeshConfig, ModelConfig, OptimizerConfig, RunConfig


def count_parameters(model: ModelConfig) -> int:
    """Exact number of trainable numbers, from the config alone."""
    kinds = [(kind, layer in model.moe_layers) for layer, kind in enumerate(model.attention_types)]
    if model.share_parameters:  # one set of each sort of part
        attention = sum(attention_parameters(model, kind) for kind in shared_kinds(model))
        plain = any(not moe for _, moe in kinds) * feed_forward_parameters(model, moe=False)
        experts = any(moe for _, moe in kinds) * feed_forward_parameters(model, moe=True)
        named = [norm_names(model, kind) for kind, _ in kinds]
        norms = len(set().union(*named)) * norm_parameters(model) + rezero_parameters(model)
        blocks = attention + plain + experts + norms + macaron_parameters(model)
    else:
        blocks = sum(
            attention_parameters(model, kind)
            + feed_forward_parameters(model, moe)
            + macaron_parameters(model)
            + len(norm_names(model, kind)) * norm_parameters(model)
            + rezero_parameters(model)
            for kind, moe in kinds
        )
    return model.n_vocab * model.n_embd + position_parameters(model) + blocks + head_parameters(model)


def shared_kinds(model: ModelConfig) -> list[str]:
    """The attention whose parameters a shared block holds: with memory where any layer has it."""
    kinds = set(model.attention_types) - {"none"}
    return ["global"] if "global" in kinds else sorted(kinds)[:1]


def position_parameters(model: ModelConfig) -> int:
    """Position tables: T d, (A1 + A2) d for axial ones, none for rotary."""
    rows = {"learned": model.n_ctx, "axial": sum(model.axial_pos_emb or ()), "rotary": 0, "none": 0}
    return rows[model.positions] * model.n_embd


def attention_parameters(model: ModelConfig, kind: str) -> int:
    """Attention of one layer: 4 d^2 for q, k, v, o, with d per bias, and 2 d per memory entry of a global layer; in gla
    the low-rank gate, the output gate and the norm of a head."""
    d = model.n_embd
    if kind == "none":
        return 0
    if kind == "gla":
        keys, values, rank = model.gla_key_width, model.gla_value_width, model.gla_params.gate_low_rank_dim
        output_gate = d * values if model.gla_params.use_output_gate else 0
        return 2 * d * (keys + values) + d * rank + (rank + 1) * keys + output_gate + values // model.gla_heads
    memory = 2 * model.num_mem_kv * d if kind == "global" else 0
    return 4 * d * d + 3 * d * model.qkv_bias + d * model.attn_output_bias + memory


def feed_forward_parameters(model: ModelConfig, moe: bool = False) -> int:
    """MLP of one layer of width w inside: two matrices with biases, 2 d w + w + d, or 3 d w + 2 w + d when gated; or
    experts in its place."""
    if moe:
        return mixture_parameters(model)
    d, width = model.n_embd, model.mlp_width
    into = 2 * width if model.mlp_glu else width
    return d * into + into + width * d + d + len(ACTIVATION_VARIABLES.get(model.activation_function, ()))


def macaron_parameters(model: ModelConfig) -> int:
    """The MLP before attention."""
    return feed_forward_parameters(model) if model.macaron else 0


def norm_names(model: ModelConfig, kind: str) -> set[str]:
    """Norms of a block: attention of type none reads the bare stream, and a shared norm feeds both halves."""
    if model.rezero:
        return set()
    if model.shared_norm:
        return {"norm_1"}
    return {"norm_2"} if kind == "none" else {"norm_1", "norm_2"}


def norm_parameters(model: ModelConfig) -> int:
    """One norm of a block."""
    return {"layernorm": 2 * model.n_embd, "rmsnorm": model.n_embd, "scalenorm": 1}[model.norm_type]


def rezero_parameters(model: ModelConfig) -> int:
    """Two scales per block."""
    return 2 if model.rezero else 0


def head_parameters(model: ModelConfig) -> int:
    """Final norm and the head, where it is not the embedding table."""
    final = 0 if model.no_weight_tie else model.n_embd * (1 if model.norm_type == "rmsnorm" else 2)
    bias = model.n_vocab if model.no_weight_tie or model.head_bias else 0
    return final + model.n_vocab * model.n_embd * model.own_head + bias


def mixture_parameters(model: ModelConfig) -> int:
    """Parameters of a mixture of E experts of width H in place of an MLP: gates d E, experts 2 E d H."""
    d, experts = model.n_embd, model.moe_params.moe_num_experts
    return d * experts + 2 * experts * d * model.moe_params.moe_hidden_size


def slot_bytes(optimizer: OptimizerConfig) -> int:
    """Bytes of optimizer slots per parameter: float32 moments; the factored ones of Adafactor hardly count."""
    adafactor = 4 if optimizer.beta1 else 0
    return {"adam": 8, "adamw": 8, "lion": 4, "adafactor": adafactor}[optimizer.opt_name]


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
        slots=parameters * slot_bytes(run.optimizer),
        gradients=parameters * 4,
        activations=int(tokens * kept),
        logits=2 * tokens * model.n_vocab * 4,
    )


def sampling_memory(model: ModelConfig, batch_size: int) -> Memory:
    """Estimate the memory of sampling: weights and caches."""
    width = 2 if model.precision == "bfloat16" else 4
    caches = sum(cache_bytes(model, kind) for kind in model.attention_types) * batch_size
    return Memory(count_parameters(model) * width, 0, 0, caches, batch_size * model.n_vocab * 4)
