"""Counting by hand-made texts, slices by their names."""

import pytest

from gpt_neo.errors import ConfigError
from gpt_neo.spmd.compile_check import tpu_pace
from gpt_neo.spmd.figures import Work, all_cycles, work_of
from gpt_neo.spmd.hlo import Module
from gpt_neo.spmd.program import Program
from gpt_neo.spmd.topologies import find_slice

TEXT = """module {
  func.func @main(%arg0: tensor<2x4xf32>) -> tensor<2x4xf32> {
    %0 = stablehlo.dot %arg0, %arg1, precision = [DEFAULT, DEFAULT] : (tensor<2x4xf32>, tensor<4x8xf32>) -> tensor<2x8xf32>
    %1:2 = stablehlo.while(%iterArg = %c, %iterArg_0 = %d) : tensor<i32>, tensor<f32>
     cond {
      stablehlo.return %9 : tensor<i1>
    } do {
      %2 = stablehlo.dot_general %3, %4, batching_dims = [0] x [0], contracting_dims = [2] x [1] : (tensor<3x2x5xbf16>, tensor<3x5x7xbf16>) -> tensor<3x2x7xbf16>
      %5 = "stablehlo.all_gather"(%2) {all_gather_dim = 0 : i64, replica_groups = dense<[[0, 1, 2, 3], [4, 5, 6, 7]]> : tensor<2x4xi64>} : (tensor<3x2x7xbf16>) -> tensor<6x2x7xbf16>
      stablehlo.return %6 : tensor<i32>
    }
    %7 = "stablehlo.all_reduce"(%0) ({ ^bb0(%a: tensor<f32>): stablehlo.return %a : tensor<f32> }) {replica_groups = dense<[[0, 2, 4, 6], [1, 3, 5, 7]]> : tensor<2x4xi64>} : (tensor<2x8xf32>) -> tensor<2x8xf32>
  }
}"""  # noqa: E501


def test_loops_count_in_full():
    work = work_of(TEXT, trips=4)
    assert work.flops == 2 * 2 * 8 * 4 + 4 * (2 * 3 * 2 * 7 * 5)
    assert dict(work.collectives) == {"all_gather": [4, 4 * 6 * 2 * 7 * 2], "all_reduce": [1, 64]}


def test_what_leaves_a_chip():
    """Rings of two chips whose two cores share the way; rings of four, one for each core of a chip, twice around."""
    gathered, reduced = 4 * 168 / 2, 2 * 2 * 64 * 3 / 4
    assert work_of(TEXT, 4, cores=2).crossed == gathered + reduced
    assert work_of(TEXT, 4, cores=1).crossed == 4 * 168 * 3 / 4 + reduced / 2
    assert work_of(TEXT, 4, cores=8).crossed == 0
    sent = '"stablehlo.collective_permute"(%0) {source_target_pairs = dense<[[0, 1], [1, 2]]> : tensor<2x2xi64>}'
    assert work_of(f"{sent} : (tensor<4xf32>) -> tensor<4xf32>", 1, cores=2).crossed == 16
    exchanged = '"stablehlo.all_to_all"(%0) {replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}'
    assert work_of(f"{exchanged} : (tensor<4xf32>) -> tensor<4xf32>", 1, cores=2).crossed == 2 * 16 / 2


def test_kernels_that_the_compiler_does_not_know_count_by_their_name():
    call = "      %5 = func.call @attention_forward_0(%1) : (tensor<4xf32>) -> tensor<4xf32>\n      %5 ="
    text = TEXT.replace("      %5 =", call, 1)
    work = work_of(text, trips=4, kernels={"attention_forward_0": 1000, "attention_backward_0": 7})
    assert (work.attention, work.flops) == (4000, work_of(TEXT, trips=4).flops + 4000)


LOOP = """%body (a: f32[]) -> f32[] {
  %f = f32[] fusion(), calls=%fused, backend_config={"estimated_cycles":"30"}
}
%fused (a: f32[]) -> f32[] {
  %n = f32[] add(), backend_config={"estimated_cycles":"1000"}
}
ENTRY %main (a: f32[]) -> f32[] {
  %g = f32[] fusion(), calls=%fused, backend_config={"estimated_cycles":"10"}
  %w = f32[] while(%g), condition=%c, body=%body
}
"""


def test_calls_without_cost_do_not_count_a_second_less():
    """As v5e's compiler gave it for 1.3B: 591 calls, and 0.08 s for all that has a cost."""
    text = "".join(f'  %a{i} = f32[] custom-call(), custom_call_target="ConcatBitcast"\n' for i in range(591))
    text = LOOP.replace("  %g =", text + '  %b = f32[] custom-call(), custom_call_target="AllocateBuffer"\n  %g =')
    slice_, sent = find_slice("v3-8"), {"link_bytes": 0.0, "link_seconds": 0.0, "exposed_seconds": 0.0}
    report, program = {"seconds_once": -590.9197, "bytes_once": 8.0}, Program(TEXT, {}, {})
    found = tpu_pace(program, Work(flops=5.0), report, text, 5, slice_)
    assert found == {"flops": 5.0, "bytes": 32.0, "seconds": pytest.approx(4 * 0.0803), **sent}
    # Without a text, loops count by their products, and all that is sent takes its time: a link each way.
    report = {"seconds_once": -0.75, "bytes_once": 1.0}
    found = tpu_pace(program, Work(flops=work_of(TEXT, 4).flops, crossed=82e9), report, "", 4, slice_)
    assert found["seconds"] == 0.25 * work_of(TEXT, 4).flops / work_of(TEXT, 1).flops
    assert found["link_seconds"] == found["exposed_seconds"] == 0.5


def test_a_unit_for_products_is_filled_by_heads_of_its_width():
    filled = {name: find_slice(name).generation.filled for name in ("v5e-8", "v6e-8")}
    assert [filled["v5e-8"](features) for features in (64, 96, 128, 256)] == [0.5, 0.75, 1.0, 1.0]
    assert [filled["v6e-8"](features) for features in (64, 128, 256)] == [0.25, 0.5, 1.0]


def test_loops_repeat_their_share_of_the_cycles():
    """Of what runs by itself; what is within a fusion runs with it."""
    assert all_cycles(Module(LOOP, 1)) == (40, 40)
    assert all_cycles(Module(LOOP, 9)) == (40, 10 + 9 * 30)
    known = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert all_cycles(Module(known, 9)) == (40, 100)
    assert all_cycles(Module("ENTRY %main (a: f32[]) -> f32[] {\n}\n", 9)) == (0, 0)


@pytest.mark.parametrize(
    "name, topology, devices",
    [
        ("v2-8", "v2:2x2", 8),
        ("v3-8", "v3:2x2", 8),
        ("v3-32", "v3:4x4", 32),
        ("v3-256", "v3:8x16", 256),
        ("v4-8", "v4:2x2x1", 4),
        ("v4-128", "v4:4x4x4", 64),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-8", "v5e:2x4", 8),
        ("v6e-4", "v6e:2x2", 4),
        ("h100", "1x1x1", 1),
        ("A100-8", "1x1x8", 8),
    ],
)
def test_slices(name, topology, devices):
    found = find_slice(name)
    assert (found.topology, found.devices) == (topology, devices)


def test_what_a_compiler_is_told_of_its_devices():
    assert find_slice("v3-8").target == {"platform": "tpu", "topology_name": "v3:2x2"}
    assert find_slice("v4-8").target == {
        "platform": "tpu",
        "topology_name": "v4:2x2x1",
        "chip_config_name": "megacore",  # or it takes the cores of a chip for two devices
    }
    gpus = find_slice("h200-4").target
    assert (gpus["platform"], gpus["topology"]) == ("cuda", "1x1x4")
    assert "device_memory_size: 151397597184\n" in gpus["target_config"]
    assert 'device_description_str: "NVIDIA H200 141GB HBM3e"' in gpus["target_config"]
    assert [find_slice(name).name for name in ("h100", "h100-1", "H100-8")] == ["h100", "h100", "h100-8"]


@pytest.mark.parametrize(
    "name, told",
    [
        ("v3-12", "v3-8, v3-32"),
        ("gpu-8", "v2, v3, v4.* a100, h100, h200 "),
        ("v9-8", "v2, v3, v4"),
        ("h100-3", "there are h100, h100-2, h100-4, h100-8"),
        ("h100-16", "the GPUs of one machine"),
        ("h100-0", "there are h100, "),
    ],
)
def test_unknown_slices_are_refused(name, told):
    with pytest.raises(ConfigError, match=told):
        find_slice(name)
