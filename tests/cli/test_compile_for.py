"""The command that --plan --compile_for ends with, and what it says of GPUs."""

import pytest

from gpt_neo.cli.compile_for import report_lines, run_line
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import ModelOptions

FOUND = ["mesh_shape=x:8", "layout=batch:x,slots:x", "tokens_per_mb_per_replica=2048", "recompute_grad=false"]


@pytest.mark.parametrize(
    "slice_, start",
    [
        ("v3-8", "gpt-neo train --tpu NAME --model m.json"),
        ("v5e-8", "gpt-neo train --backend xla --platform tpu --model m.json"),
        ("h100-8", "gpt-neo train --backend xla --platform gpu --model m.json"),
    ],
)
def test_what_was_overridden_is_kept_unless_it_was_decided(slice_, start):
    overrides = ["train_batch_size=64", "mesh_shape=x:4", "model_path=/runs/a b"]
    model = ModelOptions("m.json", set=tuple(overrides), dtype="float32")
    words = " ".join(f"--set {text}" for text in FOUND)
    wanted = f"{start} --set train_batch_size=64 --set 'model_path=/runs/a b' --set precision=float32 {words}"
    assert run_line(Job(model, None, ""), slice_, FOUND) == wanted


def test_gpus_have_links_and_kernels():
    row = {"name": "dot", "makes": "f32[4]", "times": 12, "flops": 3e12, "bytes": 2e9, "seconds": 0.0035}
    report = {
        **{"model": "m", "parameters": 5, "train_batch_size": 8, "microbatches": 1, "slice": "h100-8", "kind": "H100"},
        **{"fits": True, "platform": "gpu", "used_bytes": 2**31, "usable_bytes": 2**36, "devices": 8, "hosts": 1},
        **{"mesh_shape": [["x", 8]], "layout": [], "weights_bytes": 1, "slots_bytes": 1, "batch_bytes": 1},
        **{"temporary_bytes": 1, "peak_flops": 989e12, "flops": 3e12, "bytes": 2e9, "collectives": {}},
        **{"seconds": 0.25, "tokens_per_second": 1e6, "utilisation": 0.25, "model_flops": 1e15},
        **{"link_bytes": 9e9, "link_seconds": 0.02, "exposed_seconds": 0.01, "longest": [row]},
    }
    lines = report_lines(report)
    assert lines[0] == "FITS: 2.00 GiB of 64.00 GiB per GPU"
    assert lines[2] == "slice     h100-8 (H100, 8 devices on 1 host), mesh x:8, layout none"
    assert lines[4:] == [
        "step      0.250 s at best, by the roofline of its kernels, 1,000,000 tokens/s on the slice",
        "use       25.0% of the peak of 989.0 TFLOP/s per GPU by the model's own 1.000 PFLOP per step",
        "work      3.00 TFLOP in matrix products and 2.00 GB of memory traffic per GPU and step",
        "links     9.00 GB over NVLink per GPU and step, 0.020 s of the step",
        "kernels   3.50 ms: dot, 12 times, makes f32[4], 3.00 TFLOP, 2.00 GB",
    ]
    over = {**report, "fits": False, "used_bytes": 2**37, "reason": "the program takes too much"}
    assert report_lines(over)[0] == "DOES NOT FIT: 128.00 GiB of 64.00 GiB per GPU"
    once = {**row, "times": 1, "flops": 0.0, "seconds": 4e-8}
    small = report_lines({**report, "used_bytes": 5e6, "seconds": 1e-5, "model_flops": 2e7, "longest": [once]})
    assert small[0] == "FITS: 0.005 GiB of 64.00 GiB per GPU" and small[4].startswith("step      1e-05 s at best")
    assert small[5].endswith("the model's own 2e-08 PFLOP per step")
    assert small[-1] == "kernels   4e-05 ms: dot, 1 time, makes f32[4], 0.00 TFLOP, 2.00 GB"
