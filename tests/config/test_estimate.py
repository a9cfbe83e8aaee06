"""What a run will cost, against variables that were made. Parameter counts: tests/model/test_options.py."""

import pytest

from gpt_neo.config.estimate import adafactor_slots, slot_bytes, training_memory
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from tests.model.options import make_run

WIDE = {"n_embd": 128, "n_vocab": 160, "moe_layers": [1], "moe_params": {"moe_num_experts": 4, "moe_hidden_size": 136}}
OTHER = {"n_embd": 128, "mlp_glu": True, "untied_head": True, "num_mem_kv": 3, "qkv_bias": True, "rezero": True}


@pytest.mark.parametrize("options", [WIDE, OTHER, {"attention_types": ["gla", "global"], "macaron": True}])
@pytest.mark.parametrize("optimizer, beta1", [("adafactor", 0.0), ("adafactor", 0.9), ("lion", 0.9), ("adamw", 0.9)])
def test_slots_are_those_of_the_optimizer(options, optimizer, beta1):
    run = make_run({**options, "opt_name": optimizer, "beta1": beta1})
    with tf.Graph().as_default():
        batch = tf.zeros([run.training.train_batch_size, run.model.n_ctx + 1], tf.int32)
        trained = build_train_step(batch, run, LocalPlacement(MeshPlan())).lowering.graph
        weights = {v.name for v in trained.trainable_variables}
        slots = [v for v in trained.all_variables if v.name not in weights]
    assert slot_bytes(run.model, run.optimizer) == sum(4 * v.shape.size for v in slots)
    assert training_memory(run).slots == slot_bytes(run.model, run.optimizer) > 0


def test_adafactor_keeps_a_row_and_a_column_of_large_matrices():
    assert adafactor_slots((50257, 768), momentum=False) == 50257 + 768
    assert adafactor_slots((50257, 768), momentum=True) == 50257 + 768 + 50257 * 768
    assert adafactor_slots((16, 768, 3072), momentum=False) == 16 * 768 + 16 * 3072
    assert adafactor_slots((127, 768), momentum=False) == 127 * 768
    assert (adafactor_slots((768,), momentum=False), adafactor_slots((), momentum=False)) == (768, 1)
