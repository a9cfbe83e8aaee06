"""What a run will cost, against variables that were made. Parameter counts: tests/model/test_options.py."""

import math

import pytest

from gpt_neo.config.estimate import (
    HEAD_BYTES,
    count_parameters,
    head_chunks,
    less_memory,
    microbatches,
    sampling_memory,
    slot_bytes,
    step_flops,
    training_memory,
)
from gpt_neo.config.network import Variable, variables_of
from gpt_neo.config.optimizers import slots_of
from gpt_neo.config.schema import MeshConfig, OptimizerConfig
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


def test_flops_of_experts_and_of_what_is_frozen():
    plain = make_run({})
    moe = {"moe_num_experts": 8, "moe_hidden_size": 40, "moe_capacity_factor_train": 1.5}
    d, tokens, mlp = plain.model.n_embd, plain.tokens_per_step, 8 * plain.model.n_embd**2
    # of 8 experts, each with places for 1.5 / 8 of the tokens; and the gates
    mixed = step_flops(make_run({"moe_layers": [1], "moe_params": moe})) - step_flops(plain)
    assert mixed == 6 * tokens * (1.5 * 2 * d * 40 + 8 * d - (mlp + 5 * d))
    two = step_flops(make_run({"moe_layers": [1], "moe_params": {**moe, "moe_capacity_factor_train": 8.0}}))
    assert two - step_flops(plain) - mixed == 6 * tokens * 0.5 * 2 * d * 40  # a token has two choices
    adapted = make_run({"lora_rank": 2})
    base = count_parameters(plain.model) + 1  # and the scale
    more = 4 * base + 6 * (count_parameters(adapted.model) - base) - 6 * count_parameters(plain.model)
    assert step_flops(adapted) - step_flops(plain) == tokens * more
    frozen = make_run({"freeze": ["wte$"]})
    assert step_flops(plain) - step_flops(frozen) == 2 * tokens * plain.model.n_vocab * d


@pytest.mark.parametrize(
    "tokens, batch, count",
    [
        (None, 8, 1),
        (2048, 8, 8),
        (4096, 8, 4),
        (3 * 2048, 8, 4),  # 3 sequences do not divide 8: 2 of them
        (4095, 8, 8),  # one whole sequence
        (100, 8, 8),  # at least one
        (1 << 20, 8, 1),
        (5 * 2048, 9, 3),
        (4096, 7, 7),
    ],
)
def test_microbatches(tokens, batch, count):
    assert microbatches(MeshConfig(tokens_per_mb_per_replica=tokens), 2048, batch) == count


def test_memory_of_a_replica_and_of_what_is_frozen():
    whole = make_run({"train_batch_size": 8, "n_ctx": 64})
    model = whole.model
    alone, half = training_memory(whole), training_memory(whole, 2)
    assert half.activations * 2 == alone.activations and half.logits * 2 == alone.logits
    assert (half.weights, half.slots, half.gradients) == (alone.weights, alone.slots, alone.gradients)
    assert alone.gradients == alone.weights == 4 * count_parameters(model) and alone.slots == 2 * alone.weights
    few = training_memory(make_run({"train_batch_size": 8, "n_ctx": 64, "freeze": ["wte$"]}))
    table = 4 * model.n_vocab * model.n_embd
    assert (few.gradients, few.slots, few.weights) == (alone.gradients - table, alone.slots - 2 * table, alone.weights)


def test_memory_of_the_mlp_is_of_its_widths():
    """Two tensors of its width, and two more where it is gated, of every token and block."""
    sizes = {"train_batch_size": 2, "n_ctx": 64, "n_embd": 32}
    plain, wider, gated = (
        training_memory(make_run({**sizes, **more})).activations
        for more in ({"n_inner": 64}, {"n_inner": 96}, {"n_inner": 64, "mlp_glu": True})
    )
    assert wider - plain == 2 * 64 * 2 * 2 * 32 * 4 and gated - plain == 2 * 64 * 2 * 2 * 64 * 4


@pytest.mark.parametrize("precision, width", [("float32", 4), ("bfloat16", 2)])
def test_memory_of_sampling(precision, width):
    model = make_run({"attention_types": ["global", "local"], "precision": precision, "n_vocab": 100}).model
    found = sampling_memory(model, 3)
    assert found.weights == width * count_parameters(model)
    assert found.activations == 3 * (32 + 4) * 2 * 16 * width  # keys and values of the context, and of the window
    assert found.logits == 3 * 100 * 4
    kinds = {role: 0 for role in ("matrix", "table")}
    for variable in variables_of(model).values():
        if variable.role in kinds:
            kinds[variable.role] += variable.size
    rest = count_parameters(model) - sum(kinds.values())
    for bits in (8, 4):
        expected = kinds["matrix"] * bits // 8 + kinds["table"] + rest * 4
        assert sampling_memory(model, 3, bits).weights == expected


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
