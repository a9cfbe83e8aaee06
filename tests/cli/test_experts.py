"""A mixture of experts with entmax and Adafactor through the whole program: two devices, then one, then text."""

import json
import os
import subprocess
import sys

import pytest

from gpt_neo.config import load_config
from gpt_neo.mtf_compat import tf
from tests.cli.test_main import log_of
from tests.conftest import ROOT

OPTIONS = {
    "moe_layers": [1],
    "moe_params": {"moe_num_experts": 4, "moe_hidden_size": 24, "moe_group_size": 16},
    "entmax_loss": True,
    "opt_name": "Adafactor",
    "lr": 0.1,
    "lr_decay": "cosine",
    "mesh_shape": "x:2",
    "layout": "batch:x,experts:x,slots:x",
}


@pytest.fixture(scope="module")
def spread(world):
    """Trained for 10 steps on two devices."""
    path = world.config("experts", **OPTIONS)
    words = ["--model", path, "--gpu_ids", "cpu:0", "cpu:1", "--set", "train_steps=10"]
    main = [sys.executable, os.path.join(ROOT, "main.py")]
    done = subprocess.run([*main, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.slow
def test_one_device_goes_on_where_two_stopped(spread, command, capsys):
    assert command("--model", spread) == 0
    assert "steps 10 to 20" in capsys.readouterr().out
    folder = load_config(spread).training.model_path
    losses = [row["loss"] for row in log_of(folder)]
    assert len(losses) == 2 and losses[1] < losses[0]
    shapes = tf.train.load_checkpoint(os.path.join(folder, "model.ckpt-20")).get_variable_to_shape_map()
    assert shapes["gpt2/h1/wi/kernel"] == shapes["gpt2/h1/wi/kernel_slot_m"] == [4, 16, 24]
    assert shapes["gpt2/h1/top_2_gating/kernel_slot_v"] == [16, 4]
    assert command("--model", spread, "--eval") == 0
    assert "entmax, which has no perplexity" in capsys.readouterr().out
    row = json.loads(open(os.path.join(folder, "eval_experts.jsonl"), encoding="utf-8").read())
    assert row["perplexity"] is None and row["bits_per_byte"] is None and 0 < row["loss"] < 10
    words = ["--model", spread, "--predict", "--prompt", "def", "--max_tokens", "12", "--seed", "1"]
    assert command(*words, "--entmax_sampling") == 0 and command(*words) == 0


def test_plan_counts_the_experts(world, command, capsys):
    assert command("--model", world.config("planned_experts", **OPTIONS), "--plan") == 0
    out = capsys.readouterr().out
    # tables 300 d + 32 d, two blocks 12 d^2 + 10 d, ln_f 2 d; the second MLP made way for gates and experts
    d, experts, hidden = 16, 4, 24
    count = 332 * d + 2 * (12 * d * d + 10 * d) + 2 * d - (8 * d * d + 5 * d) + d * experts * (1 + 2 * hidden)
    assert f"{count:,}" in out and "optimizer slots over x: 2 parts" in out and "experts over x: 4 / 2 = 2" in out
