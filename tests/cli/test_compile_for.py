"""The command that --plan --compile_for ends with."""

import pytest

from gpt_neo.cli.compile_for import run_line
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import ModelOptions

FOUND = ["mesh_shape=x:8", "layout=batch:x,slots:x", "tokens_per_mb_per_replica=2048", "recompute_grad=false"]


@pytest.mark.parametrize(
    "slice_, start",
    [
        ("v3-8", "gpt-neo train --tpu NAME --model m.json"),
        ("v5e-8", "gpt-neo train --backend xla --platform tpu --model m.json"),
    ],
)
def test_what_was_overridden_is_kept_unless_it_was_decided(slice_, start):
    overrides = ["train_batch_size=64", "mesh_shape=x:4", "model_path=/runs/a b"]
    model = ModelOptions("m.json", set=tuple(overrides), dtype="float32")
    words = " ".join(f"--set {text}" for text in FOUND)
    wanted = f"{start} --set train_batch_size=64 --set 'model_path=/runs/a b' --set precision=float32 {words}"
    assert run_line(Job(model, None, ""), slice_, FOUND) == wanted
