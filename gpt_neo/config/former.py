"""Keys of other programs that are found in configs: what each does here, or why it cannot be taken.

The last release of the 2021 program ignored every key that it did not know. Here an unknown key is refused, as most are
mistakes; those in this table are not.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Former:
    """A key of another program.

    program: where it comes from.
    why: the rest of the line for the person.
    instead: the key here that it is read as, unless that is given too.
    harmless: values that ask for nothing; any value where it is `ANY`, none where the key is refused.
    """

    program: str
    why: str
    instead: str = ""
    harmless: Any = ()


ANY = object()
BEFORE = "GPT-Neo before its release"
GPT2 = "the GPT-2 program that GPT-Neo grew out of"
VIDEO = "the video and convolution models once in the GPT-Neo repository"
MESH_JAX = "Mesh Transformer JAX"
NEOX = "GPT-NeoX"
HUGGING_FACE = "a Hugging Face config.json"


def ignored(program: str, why: str, *names: str) -> dict[str, Former]:
    """Keys without a meaning here."""
    return {name: Former(program, why, harmless=ANY) for name in names}


def refused(program: str, why: str, *names: str, harmless: tuple = ()) -> dict[str, Former]:
    """Keys whose meaning this program does not have, but for harmless values."""
    return {name: Former(program, why, harmless=harmless) for name in names}


def renamed(program: str, **names: str) -> dict[str, Former]:
    """Keys that have another name here."""
    return {old: Former(program, f"{new} says it here", instead=new, harmless=ANY) for old, new in names.items()}


MICROBATCHES = "tokens_per_mb_per_replica divides the batch, as it did in the 2021 program"
FORMER: dict[str, Former] = {
    **renamed(BEFORE, dataset_ids="datasets"),
    **renamed(GPT2, max_steps="train_steps"),
    **ignored(BEFORE, MICROBATCHES, "num_microbatches", "microbatches_per_batch"),
    **ignored(BEFORE, "beta1 says it, for every optimizer", "beta1_adam"),
    **ignored(BEFORE, "eos_id of the dataset config says it", "stop_at_token"),
    **ignored(BEFORE, "a flag of main.py says it", "use_tpu", "auto_layout", "auto_layout_and_mesh_shape"),
    **ignored(BEFORE, "--steps_per_checkpoint says it", "steps_per_checkpoint"),
    **ignored(BEFORE, "mesh_shape says it", "num_cores"),
    **ignored(BEFORE, "nothing reads it", "autostack", "data_path_", "datasets_"),
    **ignored(GPT2, "tokenizer_path of the dataset config says it; GPT-2's tokenizer needs no file", "encoder_path"),
    **ignored(GPT2, "path of the dataset config says it", "data_path"),
    **ignored(GPT2, "samples go to predictions_<name>_<step>.txt in the run's folder", "predict_path"),
    **ignored(GPT2, "only local attention in fixed blocks read it", "fixed_attn_block_size", "layer_offset"),
    **refused(GPT2, "attention in fixed blocks is not computed here", "local", harmless=(False,)),
    **refused(GPT2, "datasets names dataset configs here", "input"),
    **refused(GPT2, "1 - (step + 1)^-0.8 or ada_decay_rate is what Adafactor has here", "decay_type", "decay_exponent"),
    **refused(GPT2, "lr_decay linear says it here", "linear_decay", harmless=(False,)),
    **refused(
        VIDEO,
        "this program has no such model",
        *"time_patch patch_size token_patch_size frame_width frame_height language_token_per_frame".split(),
        *"use_language use_video three_axes memory_token interleaved_datasets shuffle_buffer buffer_size".split(),
        *"feed_forward_per_attention intermediate_feed_forward_multiplier revblock_pattern residual".split(),
        *"convolution_dimension base_convolution_size lightweight_conv_attention lightweight_conv_heads".split(),
        *"prefix n_blocks block_config model_mode dataset_configs shuffle use_mlp".split(),
    ),
    **refused(
        MESH_JAX,
        "its checkpoints come here by way of their Hugging Face form: python -m gpt_neo import-hf",
        *"d_model cores_per_replica per_replica_batch pe_rotary_dims tpu_size".split(),
    ),
    **refused(
        NEOX,
        "its checkpoints come here by way of their Hugging Face form: python -m gpt_neo import-hf",
        *"num_layers pipe_parallel_size model_parallel_size train_micro_batch_size_per_gpu".split(),
        *"gradient_accumulation_steps zero_optimization optimizer train_iters pos_emb norm attention_config".split(),
        *"pipe-parallel-size model-parallel-size num-layers hidden-size num-attention-heads seq-length".split(),
        *"max-position-embeddings pos-emb train-iters data-path".split(),
    ),
    **refused(
        HUGGING_FACE,
        "python -m gpt_neo import-hf makes a run folder with a config of such a model",
        *"model_type architectures vocab_size hidden_size num_hidden_layers".split(),
        *"num_attention_heads max_position_embeddings n_positions layer_norm_epsilon layer_norm_eps".split(),
        *"initializer_range attn_pdrop embd_pdrop resid_pdrop bos_token_id eos_token_id pad_token_id".split(),
        *"torch_dtype transformers_version use_cache _num_labels id2label label2id output_past".split(),
        *"task_specific_params summary_activation summary_first_dropout summary_proj_to_labels summary_type".split(),
        *"summary_use_proj tokenizer_class gradient_checkpointing".split(),
    ),
}

# Of `moe_params`, where Mesh-TensorFlow's library took any key.
LIBRARY = "Mesh-TensorFlow"
FORMER_MOE: dict[str, Former] = {
    **ignored(
        LIBRARY,
        "only other ways of gating read it",
        *"moe_switch_policy_train moe_switch_policy_eval moe_switch_dropout moe_switch_temperature".split(),
        *"moe_switch_jitter moe_ntlb_top_k moe_top_n_num_experts_per_token".split(),
        *"moe_use_second_place_expert_prob moe_use_second_place_expert_prob_temp".split(),
    ),
    **ignored(LIBRARY, "only mixtures of two levels read it", "moe_capacity_factor_second_level"),
    **ignored(LIBRARY, "the width of the model says it", "moe_output_dim"),
    **refused(LIBRARY, "experts make no queries and keys here", "moe_use_experts_attention", harmless=(0,)),
    **refused(LIBRARY, "this loss of the gates is not computed here", "moe_z_loss", harmless=(0,)),
    **refused(LIBRARY, "gates read the stream alone here", "moe_word_embed_mode"),
}
