"""The time of kernels against numbers by hand, and the compiler's own count of what it compiled."""

import json
import math
import subprocess

import pytest

from gpt_neo.spmd.compile_check import check, compile_program, compiler_environment
from gpt_neo.spmd.environment import CONSTRAINTS, CUDA, environment_folder, worker_python
from gpt_neo.spmd.gpus import CARDS, H100
from gpt_neo.spmd.hlo import Module
from gpt_neo.spmd.program import built_for, export_train_step
from gpt_neo.spmd.roofline import roofline
from gpt_neo.spmd.topologies import find_slice
from tests.spmd.tools import make_run

# A product of [4096, 4096] matrices is bound by FLOPs, a sum of them by memory; a float32 one is slower by its type.
TEXT = """ENTRY %main (x: bf16[4096,4096], y: f32[4096,4096]) -> bf16[4096,4096] {
  %x = bf16[4096,4096]{1,0} parameter(0)
  %y = f32[4096,4096]{1,0} parameter(1)
  %dot.1 = bf16[4096,4096]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %dot.2 = f32[4096,4096]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %dot.3 = f32[4096,4096]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={highest,highest}
  %add.1 = bf16[4096,4096]{1,0} add(%x, %dot.1)
  %add.22 = bf16[4096,4096]{1,0} add(%x, %dot.1)
  ROOT %all-reduce.1 = bf16[4096,4096]{1,0} all-reduce(%add.22), replica_groups={{0,1,2,3,4,5,6,7}}
}
"""  # noqa: E501


def test_each_kernel_takes_the_longer_of_its_products_and_its_memory():
    found = roofline(TEXT, 1, H100)
    flops, square = 2 * 4096**3, 4096 * 4096 * 2
    rows = {(row["name"], row["makes"]): row for row in found["longest"]}
    added = rows["add", "bf16[4096,4096]"]
    assert (added["times"], added["bytes"], added["flops"]) == (2, 6 * square, 0)
    assert added["seconds"] == pytest.approx(6 * square / 3.35e12)
    assert rows["dot", "bf16[4096,4096]"]["seconds"] == pytest.approx(flops / 989e12)
    exact_and_rough = rows["dot", "f32[4096,4096]"]
    assert exact_and_rough["seconds"] == pytest.approx(flops / 494e12 + flops / 67e12)
    sent = 2 * 7 / 8 * square
    assert (found["link_bytes"], found["link_seconds"]) == (sent, pytest.approx(sent / 450e9))
    assert found["seconds"] == found["kernel_seconds"] + found["link_seconds"]
    assert (found["flops"], found["bytes"]) == (3 * flops, 2 * square + 2 * 4 * square + 6 * square)


def test_what_a_loop_does_counts_as_often_and_only_the_longest_are_listed():
    many = "".join(f"  %n.{i} = f32[{i + 1}] negate(%one)\n" for i in range(20))
    text = f"""%body (x: f32[64,64]) -> f32[64,64] {{
  %x = f32[64,64] parameter(0)
  %d.1 = f32[64,64] dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, operand_precision={{highest,highest}}
  ROOT %s.1 = f32[64,64] all-reduce(%d.1), replica_groups={{{{0,1}}}}
}}
ENTRY %main (x: f32[64,64], one: f32[1]) -> f32[64,64] {{
  %x = f32[64,64] parameter(0)
  %one = f32[1] parameter(1)
{many}  ROOT %w = f32[64,64] while(%x), condition=%c, body=%body
}}"""  # noqa: E501
    once, found = roofline(text, 1, H100), roofline(text, 7, H100)
    flops, square = 2 * 64**3, 4 * 64 * 64
    small = sum(4 * (i + 2) for i in range(20))
    assert (found["flops"], found["link_bytes"]) == (7 * flops, 7 * square)  # of two cores each gives it all, in halves
    assert found["bytes"] == 7 * 2 * square + small
    assert found["longest"][0] == {**once["longest"][0], "times": 7} | {
        key: pytest.approx(7 * once["longest"][0][key]) for key in ("flops", "bytes", "seconds")
    }
    assert found["longest"][0]["seconds"] == pytest.approx(7 * max(flops / 67e12, 2 * square / 3.35e12))
    assert [row["makes"] for row in found["longest"][1:]] == [f"f32[{i}]" for i in range(20, 13, -1)]
    assert found["kernel_seconds"] == pytest.approx(found["longest"][0]["seconds"] + small / 3.35e12)


def test_of_several_arrays_the_first_names_a_kernel():
    text = """ENTRY %main (x: f32[4,2]) -> f32[4] {
  %x = f32[4,2] parameter(0)
  ROOT %sort.12.remat.3 = (f32[4], s32[4], f32[2]) custom-call(%x), custom_call_target="x"
}"""
    (row,) = roofline(text, 1, H100)["longest"]
    assert (row["name"], row["makes"]) == ("sort.12.remat", "f32[4] and 2 more")


def test_another_card_is_slower_where_it_is():
    times = {name: roofline(TEXT, 1, card) for name, card in CARDS.items()}
    assert times["a100"]["link_seconds"] == 1.5 * times["h100"]["link_seconds"]
    products = [row["seconds"] for row in times["h200"]["longest"][:2]]
    assert products == [row["seconds"] for row in times["h100"]["longest"][:2]]  # the same chip, faster memory
    assert times["h200"]["kernel_seconds"] < times["h100"]["kernel_seconds"] < times["a100"]["kernel_seconds"]


# XLA's own analysis of the text of a compiled program, each loop counted once.
ANALYSIS = """
import json, sys
import jax
from jaxlib import _hlo, _jax
module = _hlo.hlo_module_from_text(open(sys.argv[1]).read())
print(json.dumps(_jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)))
"""


@pytest.mark.slow
def test_a_small_model_compiled_for_a_gpu_that_is_not_there(tmp_path):
    if not (environment_folder((CONSTRAINTS, CUDA)) / ".complete").exists():
        pytest.skip("the environment with CUDA, 6 GB, is not there: the first --compile_for h100 makes it")
    run = make_run(tmp_path, mesh_shape="x:1", layout="batch:x", precision="bfloat16", n_embd=64, n_ctx=64)
    report = check(run, "h100")
    assert report["fits"] and report["kind"] == H100.name and report["platform"] == "gpu"
    assert report["usable_bytes"] == 0.9 * H100.memory and 0 < report["seconds"] and 0 < report["utilisation"] < 1
    python, program, text = worker_python(platform="gpu", present=False), export_train_step(run), tmp_path / "out.hlo"
    compile_program(program, find_slice("h100"), python, str(tmp_path), str(text))
    command = [python, "-c", ANALYSIS, str(text)]
    said = subprocess.run(command, capture_output=True, text=True, env=compiler_environment(), check=True).stdout
    theirs, ours = json.loads(said.splitlines()[-1]), list(Module(text.read_text(), 1).kernels())
    assert sum(kernel.bytes for kernel in ours) == pytest.approx(theirs["bytes accessed"], rel=0.01)
    # Theirs has what is added, divided and so on beside the products.
    assert 0.8 * theirs["flops"] < sum(sum(kernel.flops.values()) for kernel in ours) < theirs["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("again", [{}, {"recompute_grad": True, "recompute_keep": "products"}])
def test_on_an_h100_activations_are_in_memory_in_bfloat16(tmp_path, again):
    """Of [rows, sequence, intermediate]; in float32 their gradients, or what the activation computed, would be twice as
    much."""
    if not (environment_folder((CONSTRAINTS, CUDA)) / ".complete").exists():
        pytest.skip("the environment with CUDA, 6 GB, is not there: the first --compile_for h100 makes it")
    sizes = {"n_ctx": 512, "n_embd": 192, "n_head": 3, "train_batch_size": 2}
    run = make_run(tmp_path, mesh_shape="x:1", layout="batch:x", precision="bfloat16", **sizes, **again)
    python, output, types = worker_python(platform="gpu", present=False), tmp_path / "out.hlo", {}
    for platform in ("gpu", None):
        with built_for(platform):
            program = export_train_step(run)
        compile_program(program, find_slice("h100"), python, str(tmp_path), str(output))
        made = [array for kernel in Module(output.read_text(), 1).kernels() for array in kernel.instruction.arrays]
        types[platform] = {kind for kind, dims in made if dims[-1:] == (768,) and math.prod(dims[:-1]) == 1024}
    assert types["gpu"] == {"bf16"}
    assert again or "f32" in types[None]  # a block that is run again has both sides of it at once
