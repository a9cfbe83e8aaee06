"""Attention as a platform has it, in the place of the blocks: numbers, gradients, and what is left of scores."""

import json
import re

import numpy as np
import pytest

from gpt_neo.cli import spmd_jobs
from gpt_neo.cli.options import TrainingBackendOptions
from gpt_neo.errors import DeviceError
from gpt_neo.mtf_compat import tf
from gpt_neo.ops import flash_attention as blockwise
from gpt_neo.spmd.attention import PlatformAttention, attention_for, attention_here, function_text
from gpt_neo.spmd.compile_check import compile_program
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.environment import CONSTRAINTS, CUDA, environment_folder, worker_python
from gpt_neo.spmd.hlo import Module
from gpt_neo.spmd.program import export_train_step, initial_values
from gpt_neo.spmd.topologies import find_slice
from tests.spmd.tools import make_batches, make_run, steps_on_one_device

THREE = {"n_layer": 3, "attention_types": [[["global", "local", "global"], 1]]}
MODULE = """module @jit_forward attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 1 : i32} {
  func.func public @main(%arg0: tensor<2xf32>) -> (tensor<2xf32> {jax.result_info = "result[0]"}) {
    %0 = call @_where(%arg0) : (tensor<2xf32>) -> tensor<2xf32>
    %1 = stablehlo.custom_call @__cudnn$fmhaSoftmax(%0) : (tensor<2xf32>) -> tensor<2xf32>
    return %1 : tensor<2xf32>
  }
  func.func private @_where(%arg0: tensor<2xf32>) -> tensor<2xf32> {
    return %arg0 : tensor<2xf32>
  }
}
"""


def test_functions_get_names_of_their_own():
    assert function_text(MODULE, "attention_forward_3").splitlines() == [
        "  func.func private @attention_forward_3(%arg0: tensor<2xf32>) -> (tensor<2xf32>) {",
        "    %0 = call @attention_forward_3__where(%arg0) : (tensor<2xf32>) -> tensor<2xf32>",
        "    %1 = stablehlo.custom_call @__cudnn$fmhaSoftmax(%0) : (tensor<2xf32>) -> tensor<2xf32>",
        "    return %1 : tensor<2xf32>",
        "  }",
        "  func.func private @attention_forward_3__where(%arg0: tensor<2xf32>) -> tensor<2xf32> {",
        "    return %arg0 : tensor<2xf32>",
        "  }",
    ]


def scripted(folder, answer, told):
    """Attention whose JAX gives this answer, and notes what it was asked."""
    fake = folder / "python"
    fake.write_text(f"#!/bin/sh\nshift\necho \"$@\" >> {folder}/asked\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    fake.chmod(0o755)
    return PlatformAttention(lambda: str(fake), told.append, "cudnn", "cuda")


def test_each_shape_is_asked_for_once_and_its_functions_are_in_the_program(tmp_path):
    attention, told = scripted(tmp_path, {"forward": MODULE, "backward": MODULE}, []), []
    run = make_run(tmp_path, mesh_shape="x:4,y:2", layout="batch:x,heads:y", **THREE)
    text = export_train_step(run, attention=attention).stablehlo
    assert (tmp_path / "asked").read_text().splitlines() == [  # of one core: 8 / 4 rows, 4 / 2 heads
        "2,32,2,8 float32 0 cudnn cuda",
        "2,32,2,8 float32 8 cudnn cuda",
    ]
    for name, layers in {"forward_0": 2, "forward_1": 1, "backward_0": 2, "backward_1": 1}.items():
        assert text.count(f"call @attention_{name}(") == layers
        assert text.count(f"func.func private @attention_{name}(") == 1
    assert not told and "XlaCustomCall" not in text


@pytest.mark.parametrize("kept, times", [("inputs", 2), ("products", 1)])
def test_a_recomputed_block_that_keeps_its_products_runs_attention_once(tmp_path, kept, times):
    attention = scripted(tmp_path, {"forward": MODULE, "backward": MODULE}, [])
    again = {"recompute_grad": True, "recompute_keep": kept, "tokens_per_mb_per_replica": 32}
    run = make_run(tmp_path, mesh_shape="x:4", layout="batch:x", precision="bfloat16", **again)
    text = export_train_step(run, attention=attention).stablehlo
    for kind in (0, 1):
        made = re.findall(rf"(%\w+):2 = func.call @attention_forward_{kind}\(", text)
        assert len(made) == times
        assert text.count(f"call @attention_backward_{kind}(") == 1
        assert not any(f"stablehlo.convert {name}#0 " in text for name in made)  # the output is not kept in float32


def test_what_a_platform_has_nothing_for_goes_by_blocks(tmp_path):
    told = []
    run = make_run(tmp_path, mesh_shape="x:2", layout="batch:x")
    attention = scripted(tmp_path, {"error": "TypeError: q must be fp16 or bf16\nand so on"}, told)
    assert export_train_step(run, attention=attention).stablehlo == export_train_step(run).stablehlo
    assert told == [
        f"attention of [4, 32, 4, 8] float32{window} goes block by block: TypeError: q must be fp16 or bf16"
        for window in ("", ", window 8,")
    ]


def test_keys_that_a_layout_splits_go_by_blocks(tmp_path):
    run = make_run(tmp_path, mesh_shape="x:2,y:2", layout="batch:x,memory_length:y")
    export_train_step(run, attention=scripted(tmp_path, {}, []))
    assert not (tmp_path / "asked").exists()


def test_gpus_and_tpus_since_v4_have_their_own():
    assert attention_here("cpu", str, print) is attention_for(None, str, print) is None
    assert attention_here("gpu", str, print).implementation == "cudnn"
    kinds = {"v2-8": None, "v3-256": None, "v4-8": "splash", "v5e-8": "splash", "v6e-8": "splash", "h100": "cudnn"}
    assert {name: find_slice(name).attention for name in kinds} == kinds


def test_the_tpu_is_asked_as_the_worker_sees_it(tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\n[ "$JAX_PLATFORMS" = tpu ] && [ -z "$PYTHONPATH" ] && echo TPU v4\n')
    fake.chmod(0o755)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert attention_here("tpu", lambda: str(fake), pytest.fail).implementation == "splash"


@pytest.mark.parametrize("kind, found", [("TPU v3", None), ("TPU v4", "splash"), ("TPU v5 lite", "splash")])
def test_the_tpu_of_this_machine_is_asked(tmp_path, kind, found):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho noise\necho {kind}\n")
    fake.chmod(0o755)
    own = attention_here("tpu", lambda: str(fake), pytest.fail)
    assert (own and own.implementation) == found
    fake.write_text("#!/bin/sh\necho 'RuntimeError: no TPU' >&2\nexit 1\n")
    with pytest.raises(DeviceError, match="--platform tpu: JAX finds no TPU: RuntimeError: no TPU"):
        attention_here("tpu", lambda: str(fake), pytest.fail)


def test_the_blocks_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(spmd_jobs, "worker_python", lambda *_: pytest.fail("no JAX is needed"))
    assert spmd_jobs.attention_of(TrainingBackendOptions(platform="tpu", backend="xla", attention="blocks")) is None
    assert (
        spmd_jobs.attention_of(
            TrainingBackendOptions(platform="tpu", save_program="program", backend="xla"), present=False
        )
        is None
    )
    assert spmd_jobs.attention_of(TrainingBackendOptions(platform="gpu", backend="xla")).implementation == "cudnn"


LONG = {"n_ctx": 640, "local_attention_radius": 40}  # the blocks of splash have 128 keys at least
AGAIN = {"recompute_grad": True, "recompute_keep": "products"}


@pytest.mark.slow
@pytest.mark.parametrize("implementation, changes", [("xla", {}), ("splash", LONG), ("splash", {**LONG, **AGAIN})])
def test_numbers_and_gradients_are_those_of_the_blocks(tmp_path, jax_python, monkeypatch, implementation, changes):
    """With JAX's plain attention in the place of cuDNN's, and the kernels for TPUs interpreted: the same calls, on a
    mesh, in a loop over microbatches. In bfloat16 they are as far from float32 as the blocks are."""
    monkeypatch.setattr(blockwise, "BLOCK", 16)
    changes = {"n_layer": 2, **changes}
    whole = make_run(tmp_path, **changes, mesh_shape="", layout="")
    split = {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y", "tokens_per_mb_per_replica": 2 * whole.model.n_ctx}
    batch, rng = make_batches(whole, 1)[0], np.random.RandomState(1)
    values, losses, slots = {}, {}, {}
    for precision in ("float32", "bfloat16"):
        run = make_run(tmp_path, **changes, **split, precision=precision)
        own = PlatformAttention(lambda: jax_python, pytest.fail, implementation, "cpu")
        for way, attention in (("blocks", None), ("called", own)):
            program = export_train_step(run, attention=attention)
            for part in ("forward", "backward"):
                assert len(re.findall(rf"call @attention_{part}_\d\(", program.stablehlo)) == (2 if attention else 0)
            values = values or {
                name: value + (rng.normal(0, 0.05, value.shape) * ("adam" not in name)).astype(value.dtype)
                for name, value in initial_values(program)
            }
            with Devices(program, jax_python) as devices:
                for name, value in values.items():
                    devices.put(name, value)
                losses[way, precision] = devices.step({"step": np.int32(0), **batch})["loss"]
                # multiples of gradients
                slots[way, precision] = {name: devices.get(name) for name in values if name.endswith("_m")}
    alone, _ = steps_on_one_device(whole, values, [batch])
    np.testing.assert_allclose(losses["called", "float32"], alone * 4, atol=1e-5)
    np.testing.assert_allclose(losses["called", "bfloat16"], losses["blocks", "bfloat16"], rtol=2**-9)
    exact = slots["blocks", "float32"]
    assert len(exact) > 20
    for name in exact:
        assert relative(slots["called", "float32"][name], exact[name]) < 2e-5, name
        ours, theirs = (relative(slots[way, "bfloat16"][name], exact[name]) for way in ("called", "blocks"))
        assert ours <= 1.25 * theirs, (name, ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 256])
def test_the_work_of_kernels_is_that_of_the_blocks_they_visit(jax_python, window):
    """Of blocks of 512 queries and keys, each of which some query of its rows sees."""
    batch, length, heads, features, block = 3, 2048, 4, 64, 512
    own = PlatformAttention(lambda: jax_python, pytest.fail, "splash", "tpu")
    with tf.Graph().as_default():
        own(window, *(tf.zeros([batch, length, heads, features], tf.bfloat16) for _ in range(3)))
    query, key = np.indices((length, length))
    seen = (key <= query) & (key > query - (window or length))
    parts = length // block
    blocks = seen.reshape(parts, block, parts, block).any((1, 3)).sum()
    product = 2 * batch * heads * features * block**2 * blocks
    assert own.flops == {"attention_forward_0": 2 * product, "attention_backward_0": 7 * product}


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("again", [{}, AGAIN])
def test_on_an_h100_no_scores_are_in_memory(tmp_path, again):
    """Scores of a block are [rows, heads, 256, keys], or with rows and heads as one dimension."""
    if not (environment_folder((CONSTRAINTS, CUDA)) / ".complete").exists():
        pytest.skip("the environment with CUDA, 6 GB, is not there: the first --compile_for h100 makes it")
    sizes = {"n_ctx": 512, "n_embd": 192, "n_head": 3, "local_attention_radius": 256, "train_batch_size": 2}
    run = make_run(tmp_path, mesh_shape="x:1", layout="batch:x", precision="bfloat16", **sizes, **again)
    python = worker_python(platform="gpu", present=False)
    scores, memory = {}, {}
    for way, attention in (("called", attention_for("cudnn", lambda: python, pytest.fail)), ("blocks", None)):
        output = tmp_path / f"{way}.hlo"
        program = export_train_step(run, attention=attention)
        memory[way] = compile_program(program, find_slice("h100"), python, str(tmp_path), str(output))
        module = Module(output.read_text(), 1)
        arrays = [dims for kernel in module.kernels() for _, dims in kernel.instruction.arrays]
        scores[way] = [dims for dims in arrays if len(dims) > 2 and set(dims[-2:]) <= {256, 512}]
        calls = [kernel.instruction for kernel in module.kernels() if kernel.instruction.opcode == "custom-call"]
        if way == "called":  # one forward and one backward of each layer
            names = [call.attributes.split('"')[1] for call in calls]
            assert sorted(names) == ["__cudnn$fmhaSoftmax"] * 2 + ["__cudnn$fmhaSoftmaxBackward"] * 2
            flops = [sum(kernel.flops.values()) for kernel in module.kernels() if kernel.instruction in calls]
            everything, window = 512 * 513 // 2, 256 * 257 // 2 + 256 * 256
            assert sorted(flops) == sorted(
                products * 2 * 2 * 3 * 64 * pairs for products in (2, 5) for pairs in (everything, window)
            )
    assert scores["blocks"] and not scores["called"]
    assert memory["called"]["temporary_bytes"] < memory["blocks"]["temporary_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("again", [{}, AGAIN])
def test_on_a_v4_no_scores_are_in_memory(tmp_path, jax_python, again):
    sizes = {"n_ctx": 512, "n_embd": 192, "n_head": 3, "local_attention_radius": 256, "train_batch_size": 8}
    run = make_run(tmp_path, mesh_shape="x:4", layout="batch:x", precision="bfloat16", **sizes, **again)
    place, scores, kernels = find_slice("v4-8"), {}, {}
    for way, attention in (
        ("called", attention_for(place.attention, lambda: jax_python, pytest.fail)),
        ("blocks", None),
    ):
        output = tmp_path / f"{way}.hlo"
        program = export_train_step(run, attention=attention)
        assert compile_program(program, place, jax_python, str(tmp_path), str(output))["fits"]
        text = output.read_text()
        kernels[way] = text.count('custom_call_target="tpu_custom_call"')
        arrays = [tuple(map(int, dims.split(","))) for dims in re.findall(r"f(?:32|16)\[([\d,]+)\]", text)]
        scores[way] = [dims for dims in arrays if len(dims) > 2 and set(dims[-2:]) <= {256, 512}]
    assert scores["blocks"] and not scores["called"]
    assert kernels == {"called": 2 * 3, "blocks": 0}  # forward, and gradients of q and of k and v, of each layer
