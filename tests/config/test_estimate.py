"""What a run will cost, against variables that were made. Parameter counts: tests/model/test_options.py."""

import math

import pytest

from gpt_neo.config.estimate import HEAD_BYTES, head_chunks, less_memory, slot_bytes, training_memory
from gpt_neo.config.network import Variable
from gpt_neo.config.optimizers import slots_of
from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.errors import CheckpointError, ConfigError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.estimator import reading
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from tests.model.options import make_run

WIDE = {"n_embd": 128, "n_vocab": 160, "moe_layers": [1], "moe_params": {"moe_num_experts": 4, "moe_hidden_size": 136}}
OTHER = {"n_embd": 128, "mlp_glu": True, "untied_head": True, "num_mem_kv": 3, "qkv_bias": True, "rezero": True}


@pytest.mark.parametrize(
    "optimizer, beta1, options",
    [
        ("adafactor", 0.0, WIDE),
        ("adafactor", 0.9, OTHER),
        # these have slots of their variables' shapes: tests/config/test_network.py builds both
        pytest.param("lion", 0.9, {"attention_types": ["gla", "global"], "macaron": True}, marks=pytest.mark.slow),
        pytest.param("adamw", 0.9, WIDE, marks=pytest.mark.slow),
    ],
)
def test_slots_are_those_of_the_optimizer(optimizer, beta1, options):
    run = make_run({**options, "opt_name": optimizer, "beta1": beta1})
    with tf.Graph().as_default():
        batch = tf.zeros([run.training.train_batch_size, run.model.n_ctx + 1], tf.int32)
        trained = build_train_step(batch, run, LocalPlacement(MeshPlan())).lowering.graph
        weights = {v.name for v in trained.trainable_variables}
        slots = [v for v in trained.all_variables if v.name not in weights]
    assert slot_bytes(run.model, run.optimizer) == sum(4 * v.shape.size for v in slots)
    assert training_memory(run).slots == slot_bytes(run.model, run.optimizer) > 0


@pytest.mark.parametrize(
    "shape, momentum, numbers",
    [
        ((50257, 768), 0.0, 50257 + 768),
        ((50257, 768), 0.9, 50257 + 768 + 50257 * 768),
        ((16, 768, 3072), 0.0, 16 * 768 + 16 * 3072),
        ((127, 768), 0.0, 127 * 768),
        ((768,), 0.0, 768),
        ((), 0.0, 1),
    ],
)
def test_adafactor_keeps_a_row_and_a_column_of_large_matrices(shape, momentum, numbers):
    config = OptimizerConfig(lr=1.0, opt_name="adafactor", beta1=momentum)
    weight = Variable(tuple((f"d{axis}", size) for axis, size in enumerate(shape)), "matrix")
    assert sum(math.prod(sizes) for sizes in slots_of({"w": weight}, config).values()) == numbers


def test_weights_in_training_are_float32_beside_what_layers_read():
    wide, narrow = (training_memory(make_run({"precision": name})).weights for name in ("float32", "bfloat16"))
    assert narrow == wide * 3 / 2


@pytest.mark.parametrize(
    "tokens, columns, width, chunks",
    [
        (1024, 50257, 4, 1),  # 206 MB
        (16384, 50257, 4, 8),  # 6.2 chunks would do, 7 do not divide the tokens
        (32768, 50257, 2, 8),
        (32768, 25129, 2, 4),
        (2671, 50257, 4, 2),  # a prime number: the last one is short
    ],
)
def test_chunks_of_the_head(tokens, columns, width, chunks):
    assert head_chunks(tokens, columns, width) == chunks
    assert -(-tokens // chunks) * columns * width <= HEAD_BYTES


def test_logits_in_memory_are_those_of_a_chunk():
    sizes = {"n_vocab": 50257, "n_ctx": 2048, "n_embd": 64}
    small, large, larger = (
        training_memory(make_run({**sizes, "train_batch_size": size})).logits for size in (1, 8, 16)
    )
    assert small == 2 * 2048 * 50257 * 4
    assert large == larger == small + 50257 * 64 * 4


@pytest.mark.parametrize(
    "options, told",
    [
        ({}, "or set recompute_grad"),
        ({"recompute_grad": True, "recompute_keep": "products"}, "or set recompute_keep to inputs"),
        ({"recompute_grad": True, "recompute_keep": "inputs"}, "lower train_batch_size or tokens_per_mb_per_replica"),
    ],
)
def test_what_takes_less_memory_is_not_there_already(options, told):
    run = make_run(options)
    assert less_memory(run.model).endswith(told)
    with pytest.raises(ConfigError, match=f"out of memory: .*{told} \\("), reading(run, [], 0, 1):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    with pytest.raises(CheckpointError, match="the disk is full"), reading(run, [], 0, 1):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
