"""Options under a mesh, with recomputation and microbatches: as one device without, in loss and every gradient."""

import json
import os
import subprocess
import sys

import pytest

# Each holds options that do not stand in each other's way, so that three configs show most of them.
CONFIGS = {
    "gptj": {
        "n_layer": 1,
        "attention_types": ["global"],
        "rotary_emb": True,
        "rotary_dim": 4,
        "rotary_interleaved": True,
        "parallel_residual": True,
        "shared_norm": True,
        "attn_output_bias": False,
        "scale_attention": True,
        "untied_head": True,
        "head_bias": True,
        "recompute_grad": True,
        "recompute_keep": "products",
        "tokens_per_mb_per_replica": 32,
        "num_mem_kv": 4,
    },
    "glu": {
        "axial_pos_emb": [4, 8],
        "norm_type": "rmsnorm",
        "mlp_glu": True,
        "num_mem_kv": 4,
        "qkv_bias": True,
        "activation_function": "softmax",
        "share_parameters": True,
        "attention_types": ["global", "local"],
        "recompute_grad": True,
    },
    "rezero": {
        "rotary_emb": True,
        "rezero": True,
        "macaron": True,
        "no_weight_tie": True,
        "mlm_training": True,
        "mlm_mask_id": 3,
        "activation_function": "aria",
        "n_layer": 1,
        "attention_types": ["global"],
        "tokens_per_mb_per_replica": 64,
    },
    "scalenorm": {
        "n_layer": 1,
        "attention_types": ["global"],
        "norm_type": "scalenorm",
        "no_pos_emb": True,
        "parallel_residual": True,
    },
}
CASES = [
    ("gptj", [2, 2], "batch,heads"),
    ("gptj", [2], "vocab"),
    ("glu", [2], "intermediate_expanded"),
    ("glu", [2], "memory_length"),
    ("glu", [2], "embd"),
    ("rezero", [2], "batch"),
    ("rezero", [2], "intermediate_expanded"),
    ("scalenorm", [2], "embd"),
]


@pytest.fixture(scope="module")
def errors():
    asked = [[CONFIGS[name], sizes, names.split(",")] for name, sizes, names in CASES]
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.mesh_worker", json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{n}-{d}-{s}" for n, s, d in CASES])
def test_loss_and_gradients_equal_one_plain_device(errors, number):
    loss, worst, scale = errors[number]
    assert loss < 1e-5 and worst < 1e-4 and scale > 1e-3, errors[number]
