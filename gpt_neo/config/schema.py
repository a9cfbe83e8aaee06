"""Frozen dataclasses that describe a run. One field per configuration key, each with its rule and meaning.

`loader.py` turns JSON into these; nothing past the loader sees a raw dictionary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional


def key(default: Any, doc: str, low: Any = None, high: Any = None, choices: Any = None) -> Any:
    """Declare a configuration key.

    Args:
      default: value when the file leaves the key out; `dataclasses.MISSING` makes it required.
      doc: meaning and unit, one sentence.
      low, high: inclusive bounds of a number.
      choices: allowed values of a string.
    """
    rules = {"doc": doc, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=rules)


REQUIRED = dataclasses.MISSING


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

    path: str = key(REQUIRED, "Glob of the training TFRecords, local or gs://.")
    n_vocab: Optional[int] = key(None, "Number of token ids.", low=1)
    eval_path: Optional[str] = key(None, "Glob of the held-out TFRecords.")
    tokenizer_path: Optional[str] = key(None, "tokenizer.json, or the name of a pretrained tokenizer.")
    tokenizer_is_pretrained: bool = key(False, "tokenizer_path names a pretrained tokenizer (gpt2).")
    eos_id: int = key(1, "Token that ends a document.", low=0)
    padding_id: int = key(0, "Token that fills up short records.", low=0)
    lambada_tokens_path: Optional[str] = key(None, "Glob of LAMBADA records.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything the graph of the network depends on."""

    n_head: int = key(REQUIRED, "Attention heads per layer.", low=1)
    n_embd: int = key(REQUIRED, "Width of the residual stream.", low=1)
    n_layer: int = key(REQUIRED, "Number of blocks.", low=1)
    n_vocab: int = key(REQUIRED, "Rows of the embedding table.", low=1)
    n_ctx: int = key(REQUIRED, "Tokens per sequence.", low=1)
    attention_types: tuple = key(("global",), "Attention type per layer, expanded to n_layer names.")
    local_attention_radius: int = key(256, "Tokens a local layer sees, itself included.", low=1)
    embed_dropout: float = key(0.0, "Dropout rate on embeddings.", low=0.0, high=1.0)
    attn_dropout: float = key(0.0, "Dropout rate on attention weights.", low=0.0, high=1.0)
    res_dropout: float = key(0.0, "Dropout rate on residual branches.", low=0.0, high=1.0)
    activation_function: str = key("gelu", "Activation of the MLP (gelu is the tanh approximation).")
    scale_by_depth: bool = key(False, "Divide the initial std of c_proj by sqrt(n_layer).")
    scale_by_in: bool = key(False, "Divide the initial std by sqrt(fan_in).")
    recompute_grad: bool = key(False, "Recompute each block in the backward pass to save memory.")
    precision: str = key("float32", "Type of activations and stored weights.", choices=("float32", "bfloat16"))
    z_loss: float = key(1e-4, "Weight of log^2 Z in the loss.", low=0.0)
    padding_id: int = key(0, "Padding token.", low=0)
    eos_id: int = key(1, "End-of-document token.", low=0)
    causal: bool = key(True, "A token sees only earlier ones.")
    axial_pos_emb: Optional[tuple] = key(None, "Two factors of n_ctx for axial position tables.")
    rotary_emb: bool = key(False, "Rotary positions on whole heads instead of learned ones.")
    mlp_glu: bool = key(False, "Gated MLP.")
    scalenorm: bool = key(False, "ScaleNorm in place of layer norm inside blocks.")
    rezero: bool = key(False, "ReZero residuals in place of norms.")
    num_mem_kv: int = key(0, "Learned keys and values prepended in global layers.", low=0)
    macaron: bool = key(False, "Half-weighted MLP before and after attention.")
    share_parameters: bool = key(False, "All blocks use one set of weights.")
    no_weight_tie: bool = key(False, "A head of its own instead of the embedding table.")
    entmax_loss: bool = key(False, "Entmax loss instead of cross entropy.")
    moe_layers: tuple = key((), "Layers that hold a mixture of experts.")
    moe_params: Optional[dict] = key(None, "Options of the mixture of experts.")
    moe_activation: str = key("relu", "Activation inside experts.")
    model: str = key("GPT", "Model family of the legacy program.", choices=("GPT", "GPT2"))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    lr: float = key(REQUIRED, "Peak learning rate.", low=0.0)
    opt_name: str = key("adam", "Optimizer.", choices=("adam", "adafactor"))
    lr_decay: str = key("cosine", "Shape of the decay to a tenth of lr.", choices=("cosine", "linear"))
    lr_decay_end: Optional[int] = key(None, "Step at which the decay ends; train_steps when absent.", low=1)
    warmup_steps: int = key(0, "Steps over which the rate grows from 0.", low=0)
    beta1: float = key(0.9, "Decay of the first moment.", low=0.0, high=1.0)
    beta2: float = key(0.999, "Decay of the second moment.", low=0.0, high=1.0)
    epsilon: float = key(1e-8, "Added to the root of the second moment.", low=0.0)
    weight_decay: float = key(0.0, "Decoupled weight decay.", low=0.0)
    ada_epsilon1: float = key(1e-30, "Adafactor: added to squared gradients.", low=0.0)
    ada_epsilon2: float = key(1e-3, "Adafactor: floor of the parameter scale.", low=0.0)
    adafactor_legacy_lr: bool = key(False, "Adafactor takes the raw lr, as the legacy program did.")
    gradient_clipping: Optional[float] = key(None, "Largest global norm of the gradients.", low=0.0)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Hints on how tensors are laid over devices."""

    mesh_shape: tuple = key((), "Mesh dimensions: (name, size) pairs.")
    layout: tuple = key((), "(tensor dimension, mesh dimension) pairs.")
    tokens_per_mb_per_replica: Optional[int] = key(None, "Tokens per microbatch and replica.", low=1)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long, on what and from where a run goes."""

    train_batch_size: int = key(REQUIRED, "Sequences per optimizer step.", low=1)
    train_steps: int = key(REQUIRED, "Step at which training ends.", low=0)
    eval_batch_size: Optional[int] = key(None, "Sequences per evaluation batch; train_batch_size if absent.", low=1)
    predict_batch_size: int = key(1, "Prompts sampled at once.", low=1)
    eval_steps: int = key(0, "Batches per evaluation; 0 leaves evaluation out.", low=0)
    predict_steps: int = key(0, "Legacy key: training steps between samples.", low=0)
    predict_max_steps: Optional[int] = key(None, "Legacy key: most sampling batches.", low=0)
    iterations: int = key(100, "Steps per call of the training loop.", low=1)
    model_path: Optional[str] = key(None, "Folder of checkpoints; that of the config file if absent.")
    datasets: tuple = key((), "Datasets and their weights.")
    input_fn: Optional[str] = key(
        None, "How datasets are read: sequential_input takes the files of all of them in turn, in chunks; generic_text "
        "follows the entries of datasets (documents, weights); mlm_sample_text is generic_text with mlm_training. "
        "Absent, the entries decide.", choices=("sequential_input", "generic_text", "mlm_sample_text"),
    )  # fmt: skip
    shuffle_input_filenames: bool = key(True, "Shuffle the list of files once, and documents in reach, by seed.")
    seed: Optional[int] = key(None, "Seed of every random choice.", low=0)
    no_dataset: bool = key(False, "Run without data (layout search, export).")
    log_grads: bool = key(False, "Summaries of gradient norms.")
    eval_tasks: tuple = key((), "Names of extra evaluation tasks.")
    slow_sampling: bool = key(False, "Sample without the key/value cache.")
    remove_partial_sequences: bool = key(False, "Leave unfinished samples out of the predictions file.")
    mlm_training: bool = key(False, "Masked instead of causal language modelling.")
    mlm_mask_id: Optional[int] = key(None, "Mask token.", low=0)
    mlm_cls_token_id: Optional[int] = key(None, "Token put before every sequence (mlm_training).", low=0)
    mlm_mask_prob: float = key(0.15, "Share of tokens that are predicted.", low=0.0, high=1.0)
    mlm_same_token_prob: float = key(0.10, "Share of those left as they are.", low=0.0, high=1.0)
    mlm_random_token_prob: float = key(0.10, "Share of those replaced by a random token.", low=0.0, high=1.0)
    mlm_mask_ignore_ids: tuple = key((), "Tokens that are never masked.")


SECTIONS = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "training": TrainingConfig,
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A validated run: every section, the datasets it names, and the file it came from."""

    source: str
    name: str
    model: ModelConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    training: TrainingConfig
    datasets: tuple  # of (DatasetRef, DatasetConfig)

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step, over all replicas."""
        return self.training.train_batch_size * self.model.n_ctx
