"""Frozen dataclasses that describe a run. One field per configuration key, each with its rule and meaning.

`loader.py` turns JSON into these; nothing past the loader sees a raw dictionary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from gpt_neo.config.activations import ACTIVATIONS
from gpt_neo.config.optimizers import OPTIMIZERS


def key(
    default: Any,
    doc: str,
    low: Any = None,
    high: Any = None,
    choices: Any = None,
    unit: str = "",
    source: str = "",
    null: bool = False,
) -> Any:
    """Declare a configuration key; docs/configs.md is written from these.

    Args:
      default: value when the file leaves the key out; `dataclasses.MISSING` makes it required.
      doc: meaning, one sentence.
      low, high: inclusive bounds of a number.
      choices: allowed values of a string.
      unit: what a number counts.
      source: paper or program that the key comes from, where that says more than its age.
      null: null in a file is a value, None; elsewhere it stands for the default.
    """
    rules = {"doc": doc, "low": low, "high": high, "choices": choices, "unit": unit, "source": source, "null": null}
    return dataclasses.field(default=default, metadata=rules)


REQUIRED = dataclasses.MISSING
LARGEST = 2**31 - 1  # size of a dimension in TensorFlow and Mesh-TensorFlow, and of its numbers of files
# What float32 computes with: 1 - decay of a larger one is 0 or has no digit right, and what is smaller added to a root
# or a square is lost where these are 0, so that 0 / 0 follows.
LARGEST_DECAY, SMALLEST_ROOT, SMALLEST_SQUARE = 0.999999, 1e-20, 1e-30


@dataclasses.dataclass(frozen=True)
class DatasetRef:
    """One entry of `datasets`: an id and how its records are read.

    stitch: documents joined to one sample. datatype: `chunks`, `documents_fixed` or `documents_random`. weight: its
    share of the samples, relative to the others'. None is "not said".
    """

    name: str
    stitch: Optional[int] = None
    datatype: Optional[str] = None
    weight: Optional[float] = None


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """A file of `configs/dataset_configs/`."""

    path: str = key(
        REQUIRED,
        "Glob of the training TFRecords, local or gs://. Here and below, {run} at its beginning is the folder "
        "that holds dataset_configs/.",
    )
    n_vocab: Optional[int] = key(None, "Number of token ids; a note tells where the model has fewer.", low=1)
    eval_path: Optional[str] = key(None, "Glob of the held-out TFRecords.")
    tokenizer_path: Optional[str] = key(
        None, "tokenizer.json, or the name of a pretrained tokenizer; texts go by GPT-2's without."
    )
    tokenizer_is_pretrained: bool = key(False, "tokenizer_path names a pretrained tokenizer (gpt2).")
    eos_id: Optional[int] = key(1, "Token that ends a document; null: none does.", low=0, null=True)
    padding_id: int = key(0, "Token that fills up short records.", low=0)
    lambada_tokens_path: Optional[str] = key(None, "Glob of LAMBADA records.")


SECOND_POLICIES = ("all", "none", "threshold", "random")


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """The object `moe_params`: mixture-of-experts layers, under the legacy names."""

    moe_num_experts: int = key(16, "Experts per layer.", low=2, high=LARGEST)
    moe_hidden_size: int = key(4096, "Width inside an expert.", low=1, high=LARGEST)
    moe_loss_coef: float = key(1e-2, "Weight of the load-balancing loss.", low=0.0)
    moe_group_size: int = key(1024, "Most tokens that are routed together; a sequence is cut evenly.", low=1)
    moe_capacity_factor_train: float = key(1.25, "Places per expert in training, times tokens / experts.", low=0.0)
    moe_capacity_factor_eval: Optional[float] = key(
        None, "The same in --eval, over the whole batch; none drops no token. Decoding and tasks never do.", low=0.0
    )
    moe_dropout_rate: float = key(0.0, "Dropout rate inside experts.", low=0.0, high=1.0)
    moe_min_expert_capacity: int = key(1, "Fewest places per expert and group.", low=1)
    moe_gating: str = key("top_2", "How experts are chosen.", choices=("top_2",))
    moe_use_second_place_loss: bool = key(False, "Balance the second choices as well, with half the weight.")
    moe_second_policy_train: str = key("random", "Which second choices count in training.", choices=SECOND_POLICIES)
    moe_second_policy_eval: str = key(
        "random", "The same in evaluation and decoding, where random means its expectation.", choices=SECOND_POLICIES
    )
    moe_second_threshold_train: float = key(0.2, "Gate value from which a second choice surely counts.", low=0.0)
    moe_second_threshold_eval: float = key(0.2, "The same in evaluation and decoding.", low=0.0)


@dataclasses.dataclass(frozen=True)
class GlaParams:
    """Options of gated linear attention (`gla_params`), named as in its authors' library fla."""

    num_heads: Optional[int] = key(None, "Heads of gla layers; n_head if absent.", low=1, high=LARGEST)
    expand_k: float = key(0.5, "Width of keys over all heads, as a share of n_embd.", low=0.0)
    expand_v: float = key(1.0, "Width of values over all heads, as a share of n_embd.", low=0.0)
    gate_low_rank_dim: int = key(16, "Rank of the map from a token to its decay.", low=1, high=LARGEST)
    gate_logit_normalizer: float = key(16.0, "Divides the logarithm of the decay; more of it forgets less.", low=1.0)
    clamp_min: Optional[float] = key(None, "Least logarithm of the decay per token.", high=0.0)
    use_output_gate: bool = key(True, "Multiply the normed output by swish of a map of the token.")
    norm_eps: float = key(1e-5, "Added to the mean square inside the norm of a head.", low=SMALLEST_SQUARE)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything the graph of the network depends on."""

    n_head: int = key(REQUIRED, "Attention heads per layer.", low=1, high=LARGEST)
    n_embd: int = key(REQUIRED, "Width of the residual stream.", low=1, high=LARGEST)
    n_layer: int = key(REQUIRED, "Number of blocks.", low=1, high=10_000)
    n_vocab: int = key(REQUIRED, "Rows of the embedding table.", low=1, high=LARGEST, unit="token ids")
    n_ctx: int = key(REQUIRED, "Length of a sequence.", low=1, high=LARGEST, unit="tokens")
    attention_types: tuple = key(("global",), "Attention type per layer: [[[name, ...], repeats], ...] or one name.")
    local_attention_radius: int = key(256, "What a local layer sees, itself included.", low=1, unit="tokens")
    gla_params: GlaParams = key(GlaParams(), "Options of gla layers.", source="Yang et al. 2023")
    embed_dropout: float = key(0.0, "Dropout rate on embeddings.", low=0.0, high=1.0)
    attn_dropout: float = key(0.0, "Dropout rate on attention weights.", low=0.0, high=1.0)
    res_dropout: float = key(0.0, "Dropout rate on residual branches.", low=0.0, high=1.0)
    activation_function: str = key(
        "gelu", "Activation of the MLP; gelu is the tanh approximation, gelu_erf the exact one.", choices=ACTIVATIONS
    )
    n_inner: Optional[int] = key(
        None, "Width inside the MLP; 4 n_embd if absent.", low=1, high=LARGEST, unit="features", source="GPT-2"
    )
    scale_by_depth: bool = key(False, "Divide the initial std of c_proj by sqrt(n_layer).")
    scale_by_in: bool = key(False, "Divide the initial std of the MLP and of a head by sqrt(fan_in).")
    recompute_grad: bool = key(False, "Recompute each block in the backward pass to save memory.")
    recompute_keep: str = key(
        "inputs",
        "What recompute_grad keeps of a block: what goes into it, or the results of its matrix products as well, which "
        "are then not made again. Without recompute_grad all is kept.",
        choices=("inputs", "products"),
    )
    precision: str = key(
        "float32",
        "Type of what layers read and write. Weights are trained, and saved, in float32.",
        choices=("float32", "bfloat16"),
    )
    z_loss: float = key(1e-4, "Weight of log^2 Z in the loss.", low=0.0)
    padding_id: int = key(0, "Padding token.", low=0, unit="token id")
    eos_id: Optional[int] = key(
        1,
        "End-of-document token; null: none, so that only lengths and stop strings end a text.",
        low=0,
        unit="token id",
        null=True,
    )
    causal: bool = key(True, "A token sees only earlier ones; false makes an encoder, which cannot sample.")
    axial_pos_emb: Optional[tuple] = key(None, "Two factors of n_ctx: learned positions as the mean of two tables.")
    rotary_emb: bool = key(False, "Rotary positions in place of learned ones.", source="arXiv 2104.09864")
    rotary_dim: Optional[int] = key(
        None,
        "Leading features of each head that rotate; whole heads when absent.",
        low=2,
        unit="features",
        source="GPT-J, GPT-NeoX",
    )
    rotary_interleaved: bool = key(False, "Rotate pairs (2i, 2i + 1) instead of halves.", source="GPT-J")
    rotary_base: float = key(10000.0, "Base of the rotary frequencies.", low=1.0, source="arXiv 2104.09864")
    rotary_scaling: float = key(
        1.0,
        "Positions are divided by this before they rotate: linear interpolation of a model of shorter texts.",
        low=1.0,
        source="arXiv 2306.15595",
    )
    no_pos_emb: bool = key(False, "No positions: order comes from the causal mask or the recurrence alone.")
    position_encoding: Optional[str] = key(
        None, "How the network knows order, by name: the keys above say the same of learned, axial, rotary and none."
    )
    norm_type: str = key(
        "layernorm",
        "Norm of the blocks; scalenorm is a layer norm with one scale and no shift, and the final norm "
        "stays a layer norm with it.",
        choices=("layernorm", "rmsnorm", "scalenorm"),
        source="arXiv 1910.07467 (RMS)",
    )
    norm_epsilon: float = key(1e-5, "Added to the variance under the root of a norm.", low=SMALLEST_SQUARE)
    rezero: bool = key(
        False,
        "Residual branches scaled by a learned number that starts at 0, in place of norms in blocks.",
        source="arXiv 2003.04887",
    )
    parallel_residual: bool = key(
        False, "Attention and MLP read the same input: x + attn(norm_1(x)) + mlp(norm_2(x)).", source="GPT-J, GPT-NeoX"
    )
    shared_norm: bool = key(False, "With parallel_residual: norm_1 feeds the MLP as well.", source="GPT-J")
    mlp_glu: bool = key(
        False,
        "Gated MLP: twice the width inside, split into h and gate, h * activation(gate).",
        source="arXiv 2002.05202",
    )
    macaron: bool = key(
        False, "An MLP before attention too, on the bare stream, both MLPs at half weight.", source="arXiv 1906.02762"
    )
    num_mem_kv: int = key(
        0, "Learned keys and values that every query of global layers sees.", 0, LARGEST, source="arXiv 1907.01470"
    )
    qkv_bias: bool = key(False, "Biases on queries, keys and values; gla layers have none.", source="GPT-2, GPT-NeoX")
    attn_output_bias: bool = key(True, "Bias on the output of attention; GPT-J has none.")
    scale_attention: bool = key(
        False,
        "Divide attention scores by sqrt(features per head), in place of an initial scale of q that holds it.",
        source="GPT-2, GPT-J, GPT-NeoX",
    )
    scale_attention_by_layer: bool = key(
        False, "Divide attention scores by the number of the layer as well, counted from 1.", source="GPT-2 of Mistral"
    )
    share_parameters: bool = key(False, "All blocks use one set of weights.")
    no_weight_tie: bool = key(False, "A head of its own, with bias, and no final norm, as in the legacy program.")
    untied_head: bool = key(False, "A head of its own after the final norm.", source="GPT-J, GPT-NeoX")
    head_bias: bool = key(False, "Bias on the head of untied_head.", source="GPT-J")
    entmax_loss: bool = key(False, "Entmax loss instead of cross entropy.")
    entmax_alpha: float = key(1.3, "Alpha of entmax in loss and sampling; 2 is sparsemax.", low=1.01, high=2.0)
    moe_layers: tuple = key((), "Layers that hold a mixture of experts.")
    moe_params: MoeConfig = key(MoeConfig(), "Options of the mixture of experts.")
    moe_activation: str = key("relu", "Activation inside experts.", choices=ACTIVATIONS)
    lora_rank: int = key(
        0,
        "Rank of adapters on the matrices of blocks; they alone are trained. 0: none.",
        0,
        LARGEST,
        source="arXiv 2106.09685",
    )
    lora_alpha: float = key(
        16.0,
        "What adapters add is multiplied by lora_alpha / lora_rank; that of a checkpoint goes with it, and stays.",
        low=0.0,
        source="PEFT",
    )
    model: str = key("GPT", "Model family of the legacy program.", choices=("GPT", "GPT2"))

    @property
    def features_per_head(self) -> int:
        """Width of a head."""
        return self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        """Width inside the MLP, of each half of a gated one."""
        return self.n_inner or 4 * self.n_embd

    @property
    def kept_of_blocks(self) -> str:
        """What the backward pass finds of a block: `all`, or what `recompute_keep` says."""
        return self.recompute_keep if self.recompute_grad else "all"

    @property
    def positions(self) -> str:
        """How the network knows order, a name in `network.POSITIONS`."""
        if self.position_encoding is not None:
            return self.position_encoding
        if self.rotary_emb:
            return "rotary"
        if self.axial_pos_emb is not None:
            return "axial"
        return "none" if self.no_pos_emb else "learned"

    @property
    def rotary_features(self) -> int:
        """Leading features of each head that rotate."""
        return self.rotary_dim or self.features_per_head

    def attention_scale(self, layer: int) -> float:
        """What the scores of softmax attention are multiplied by in a layer, counted from 0."""
        scale = self.features_per_head**-0.5 if self.scale_attention else 1.0
        return scale / (layer + 1) if self.scale_attention_by_layer else scale

    @property
    def lora_scale(self) -> float:
        """What the products of adapters are multiplied by."""
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0

    @property
    def own_head(self) -> bool:
        """Whether logits come from a matrix of their own."""
        return self.no_weight_tie or self.untied_head

    @property
    def gla_heads(self) -> int:
        """Heads of a gla layer."""
        return self.gla_params.num_heads or self.n_head

    @property
    def gla_key_width(self) -> int:
        """Features of the keys of a gla layer, over all heads."""
        return int(self.n_embd * self.gla_params.expand_k)

    @property
    def gla_value_width(self) -> int:
        """Features of the values of a gla layer, over all heads."""
        return int(self.n_embd * self.gla_params.expand_v)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    lr: float = key(REQUIRED, "Peak learning rate.", low=0.0)
    opt_name: str = key(
        "adam",
        "Optimizer; adam is the legacy one without bias correction, adamw has it; muon is adamw but for matrices of "
        "the blocks.",
        choices=OPTIMIZERS,
    )
    lr_decay: str = key(
        "none",
        "Shape of the decay to a tenth of lr; none keeps lr after warm-up.",
        choices=("cosine", "linear", "none"),
    )
    lr_decay_end: Optional[int] = key(
        None, "Step at which the decay ends; train_steps when absent.", low=1, unit="steps"
    )
    warmup_steps: int = key(0, "Steps over which the rate grows from 0.", low=0, unit="steps")
    beta1: float = key(0.9, "Decay of the first moment.", low=0.0, high=LARGEST_DECAY)
    muon_momentum: float = key(0.95, "Muon: decay of the momentum of matrices.", low=0.0, high=LARGEST_DECAY)
    beta2: float = key(0.999, "Decay of the second moment.", low=0.0, high=LARGEST_DECAY)
    epsilon: float = key(1e-8, "Added to the root of the second moment.", low=SMALLEST_ROOT)
    weight_decay: float = key(0.0, "Decoupled weight decay of the variables that no rule names.", low=0.0)
    weight_decay_rules: tuple = key(
        (("norm|bias", 0.0),), "[regular expression, decay] pairs; the first that matches a variable's name counts."
    )
    ada_epsilon1: float = key(1e-30, "Adafactor: added to squared gradients.", low=SMALLEST_SQUARE)
    ada_epsilon2: float = key(1e-3, "Adafactor: floor of the parameter scale.", low=0.0)
    ada_decay_rate: Optional[float] = key(
        None, "Adafactor: decay of the second moment; 1 - (step + 1)^-0.8 if absent.", low=0.0, high=LARGEST_DECAY
    )
    adafactor_legacy_lr: bool = key(False, "Adafactor takes the raw lr, as the legacy program did.")
    freeze: tuple = key((), "Regular expressions; a variable whose full name one of them matches is not trained.")
    gradient_clipping: Optional[float] = key(None, "Largest global norm of the gradients; 0 or absent: any.", low=0.0)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Hints on how tensors are laid over devices."""

    mesh_shape: tuple = key((), "Mesh dimensions: (name, size) pairs.")
    layout: tuple = key((), "(tensor dimension, mesh dimension) pairs.")
    tokens_per_mb_per_replica: Optional[int] = key(None, "Tokens per microbatch and replica.", low=1, unit="tokens")
    gradient_sums: str = key(
        "microbatch",
        "When gradients are added up over the devices that slots splits weights over: after each microbatch, or once a "
        "step, which sends less and takes 4 bytes per parameter more.",
        choices=("microbatch", "step"),
    )
    gradient_sums_dtype: str = key(
        "float32",
        "What gradients are sent in when they are added up over the devices that slots splits weights over: bfloat16 "
        "is half of the bytes, and each sum is rounded on its way. Only --backend xla sends less.",
        choices=("float32", "bfloat16"),
    )
    weight_gathers: str = key(
        "step",
        "When weights that slots splits are gathered: once a step, or at each use, by every block in its forward pass "
        "and again in its backward pass: no device holds a whole model, and every microbatch sends it.",
        choices=("step", "use"),
    )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long, on what and from where a run goes."""

    train_batch_size: int = key(REQUIRED, "Sequences per optimizer step.", low=1, high=LARGEST, unit="sequences")
    train_steps: int = key(REQUIRED, "Step at which training ends.", low=0, unit="steps")
    eval_batch_size: Optional[int] = key(
        None, "Sequences per evaluation batch; train_batch_size if absent.", low=1, high=LARGEST, unit="sequences"
    )
    predict_batch_size: int = key(1, "Prompts sampled at once.", low=1, unit="prompts")
    eval_steps: int = key(0, "Batches per evaluation; 0 leaves evaluation out.", low=0, unit="batches")
    predict_steps: int = key(
        0, "Above 0, whatever the number: training samples at each checkpoint, where eval_steps evaluates.", low=0
    )
    predict_max_steps: Optional[int] = key(None, "Legacy key: does nothing.", low=0, unit="batches")
    iterations: int = key(
        100,
        "Most steps that a TPU makes before the host hears of them; fewer where they take half a minute.",
        low=1,
        unit="steps",
    )
    keep_checkpoints: int = key(
        10, "Newest checkpoints that are kept; the best one is kept besides.", 1, LARGEST, unit="checkpoints"
    )
    model_path: Optional[str] = key(None, "Folder of checkpoints; absent, the config's if it has some, else runs/NAME.")
    datasets: tuple = key((), "Datasets and their weights.")
    input_fn: Optional[str] = key(
        None,
        "How datasets are read: sequential_input takes the files of all of them in turn, in chunks; generic_text "
        "follows the entries of datasets (documents, weights); mlm_sample_text is generic_text with mlm_training. "
        "Absent, the entries decide.",
        choices=("sequential_input", "generic_text", "mlm_sample_text"),
    )
    shuffle_input_filenames: bool = key(True, "Shuffle the list of files once, and documents in reach, by seed.")
    seed: Optional[int] = key(
        None, "Seed of every random choice; 0 is the same as 1, as in the 2021 program, and so is absent.", low=0
    )
    no_dataset: bool = key(False, "Legacy key: does nothing; jobs that need no records read none.")
    log_grads: bool = key(False, "TensorBoard shows the norm of the gradients, before they are clipped.")
    eval_tasks: tuple = key((), "Evaluation tasks: names in eval_tasks/, or paths, with =FILE for other documents.")
    slow_sampling: bool = key(False, "Legacy key: does nothing; sampling with caches gives the same text.")
    remove_partial_sequences: bool = key(False, "Leave the prompt out of the predictions file.")
    mlm_training: bool = key(False, "Masked instead of causal language modelling.")
    mlm_mask_id: Optional[int] = key(None, "Mask token.", low=0)
    mlm_cls_token_id: Optional[int] = key(None, "Token put before every sequence (mlm_training).", low=0)
    mlm_mask_prob: float = key(0.15, "Share of tokens that are predicted.", low=0.0, high=1.0)
    mlm_same_token_prob: float = key(0.10, "Share of those left as they are.", low=0.0, high=1.0)
    mlm_random_token_prob: float = key(0.10, "Share of those replaced by a random token.", low=0.0, high=1.0)
    mlm_mask_ignore_ids: tuple = key((), "Tokens that are never masked.")


SECTIONS = {"model": ModelConfig, "optimizer": OptimizerConfig, "mesh": MeshConfig, "training": TrainingConfig}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A validated run: every section, the datasets it names, and the file it came from.

    notes: lines for the person on settings that were recognised as another program's; see `restore.py`.
    """

    source: str
    name: str
    model: ModelConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    training: TrainingConfig
    datasets: tuple  # of (DatasetRef, DatasetConfig)
    notes: tuple = dataclasses.field(default=(), compare=False)

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step, over all replicas."""
        return self.training.train_batch_size * self.model.n_ctx
