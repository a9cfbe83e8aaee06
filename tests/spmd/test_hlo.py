"""Kernels of a small program, written as XLA writes them, and what each of them moves, by hand."""

import numpy as np
import pytest

from gpt_neo.errors import DeviceError
from gpt_neo.spmd.hlo import Module, group_of, group_size

TEXT = """HloModule main, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%product (p0: bf16[4,8], p1: f32[8,16]) -> (bf16[4,16], f32[4]) {
  %p0 = bf16[4,8]{1,0} parameter(0), metadata={scheduling_name="p0"}
  %p1 = f32[8,16]{1,0} parameter(1)
  %narrow = bf16[8,16]{1,0} convert(%p1)
  %dot.1 = bf16[4,16]{1,0} dot(%p0, %narrow), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={source_line=3}
  %zero = f32[] constant(0)
  %wide = f32[4,16]{1,0} convert(%dot.1)
  %rows = f32[4]{0} reduce(%wide, %zero), dimensions={1}, to_apply=%add
  ROOT %both = (bf16[4,16]{1,0}, f32[4]{0}) tuple(%dot.1, %rows)
}

%cut (q0: f32[100,4], q1: s32[]) -> f32[2,4] {
  %q0 = f32[100,4]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %nil = s32[] constant(0)
  ROOT %part = f32[2,4]{1,0} dynamic-slice(%q0, %q1, %nil), dynamic_slice_sizes={2,4}
}

%put (r0: f32[100,4], r1: f32[2,4], r2: s32[]) -> f32[100,4] {
  %r0 = f32[100,4]{1,0} parameter(0)
  %r1 = f32[2,4]{1,0} parameter(1)
  %r2 = s32[] parameter(2)
  %nil.1 = s32[] constant(0)
  %new = f32[100,4]{1,0} dynamic-update-slice(%r0, %r1, %r2, %nil.1)
  ROOT %cast = f32[100,4]{1,0} bitcast(%new)
}

%body (state: (s32[], f32[100,4])) -> (s32[], f32[100,4]) {
  %state = (s32[], f32[100,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %table = f32[100,4]{1,0} get-tuple-element(%state), index=1
  %cut_fusion = f32[2,4]{1,0} fusion(%table, %count), kind=kLoop, calls=%cut
  %summed = f32[2,4]{1,0} all-reduce-start(%cut_fusion), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %done = f32[2,4]{1,0} all-reduce-done(%summed)
  %put_fusion = f32[100,4]{1,0} fusion(%table, %done, %count), kind=kLoop, calls=%put
  ROOT %next = (s32[], f32[100,4]{1,0}) tuple(%count, %put_fusion)
}

%condition (given: (s32[], f32[100,4])) -> pred[] {
  %given = (s32[], f32[100,4]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main.7 (x: bf16[4,8], w: f32[8,16], t: f32[100,4], i: s32[3,1]) -> f32[3,4] {
  %x = bf16[4,8]{1,0} parameter(0)
  %w = f32[8,16]{1,0} parameter(1)
  %t = f32[100,4]{1,0} parameter(2)
  %i = s32[3,1]{1,0} parameter(3)
  %gemm_fusion = (bf16[4,16]{1,0}, /*index=1*/f32[4]{0}) fusion(%x, %w), kind=kCustom, calls=%product
  %plain.3 = f32[8,8]{1,0} dot(%w, %w), lhs_contracting_dims={1}, rhs_contracting_dims={1}, operand_precision={highest,highest}
  %rough = f32[8,8]{1,0} dot(%w, %w), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %one = s32[] constant(1)
  %start = (s32[], f32[100,4]{1,0}) tuple(%one, %t)
  %while.2 = (s32[], f32[100,4]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %last = f32[100,4]{1,0} get-tuple-element(%while.2), index=1
  %scattered = ((f32[8,8]{1,0}, f32[8,8]{1,0}), (f32[4,8]{1,0}, f32[4,8]{1,0})) reduce-scatter-start(%plain.3, %rough), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add
  %ended = (f32[4,8]{1,0}, f32[4,8]{1,0}) reduce-scatter-done(%scattered)
  ROOT %rows.1 = f32[3,4]{1,0} gather(%last, %i), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,4}
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def kernels():
    return {kernel.instruction.name: kernel for kernel in Module(TEXT, trips=9).kernels()}


def test_what_runs_and_how_often(kernels):
    times = {name: kernel.times for name, kernel in kernels.items()}
    assert times == {
        "gemm_fusion": 1,
        "plain.3": 1,
        "rough": 1,
        "cut_fusion": 5,
        "summed": 5,
        "put_fusion": 5,
        "scattered": 1,
        "rows.1": 1,
    }
    untold = TEXT.replace('"known_trip_count":{"n":"5"}', "")
    assert sorted(kernel.times for kernel in Module(untold, trips=9).kernels()) == [1] * 5 + [9] * 3


def test_products_by_their_type(kernels):
    found = {name: dict(kernel.flops) for name, kernel in kernels.items() if kernel.flops}
    assert found == {
        "gemm_fusion": {"bf16": 2 * 4 * 16 * 8},
        "plain.3": {"f32": 2 * 8 * 8 * 16},
        "rough": {"tf32": 2 * 8 * 8 * 16},
    }


def test_bytes_that_pass_through_memory(kernels):
    assert {name: kernel.bytes for name, kernel in kernels.items()} == {
        "gemm_fusion": (4 * 8 * 2 + 8 * 16 * 4) + (4 * 16 * 2 + 4 * 4),  # nothing of what lies between
        "plain.3": 8 * 16 * 4 + 8 * 8 * 4,  # one operand, twice
        "rough": 8 * 16 * 4 + 8 * 8 * 4,
        "cut_fusion": (2 * 4 * 4 + 4) + 2 * 4 * 4,  # two rows of the hundred, and which
        "summed": 0,
        "put_fusion": (2 * 4 * 4 + 4) + 2 * 4 * 4,  # in their place
        "scattered": 0,
        "rows.1": (3 * 4 * 4 + 3 * 4) + 3 * 4 * 4,
    }


def test_bytes_that_go_over_the_ring(kernels):
    sent = {name: kernel.sent for name, kernel in kernels.items() if kernel.sent}
    assert sent == {"summed": 32 * 2 * 3 / 4, "scattered": 2 * 256 / 2}


@pytest.mark.parametrize(
    "kind, sent",
    [
        ("all-reduce", 2 * 32 * 3 / 4),
        ("all-gather", 3 * 32),  # each of the other three parts passes by
        ("reduce-scatter", 32 * 3 / 4),
        ("all-to-all", 32 * 3 / 4),
    ],
)
def test_each_collective_has_its_share(kind, sent):
    text = f"""ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %y = f32[8]{{0}} {kind}(%x), replica_groups={{{{0,2,4,6}},{{1,3,5,7}}}}
}}"""
    (kernel,) = Module(text, 1).kernels()
    assert kernel.sent == sent


def test_a_permutation_has_pairs_and_a_scatter_adds_to_what_is_there():
    text = """ENTRY %main (x: f32[100,4], i: s32[3,1], u: f32[3,4]) -> f32[3,4] {
  %x = f32[100,4]{1,0} parameter(0)
  %i = s32[3,1]{1,0} parameter(1)
  %u = f32[3,4]{1,0} parameter(2)
  %s = f32[100,4]{1,0} scatter(%x, %i, %u), to_apply=%add
  ROOT %y = f32[3,4]{1,0} collective-permute(%u), source_target_pairs={{0,1},{1,0}}
}"""
    scatter, permuted = Module(text, 1).kernels()
    assert scatter.bytes == (48 + 12 + 48) + 48 and permuted.sent == 48


@pytest.mark.parametrize("window", [None, 0, 3, 99])
@pytest.mark.parametrize("call, products", [("", 2), ("Backward", 5)])
def test_attention_of_cudnn_computes_what_is_not_masked(call, products, window):
    told = "" if window is None else f', backend_config={{"sliding_window_length":{window}}}'
    text = f"""ENTRY %main (q: bf16[2,8,4,16]) -> bf16[2,8,4,16] {{
  %q = bf16[2,8,4,16]{{3,2,1,0}} parameter(0)
  ROOT %o = bf16[2,8,4,16]{{3,2,1,0}} custom-call(%q, %q), custom_call_target="__cudnn$fmhaSoftmax{call}"{told}
}}"""
    (kernel,) = Module(text, 1).kernels()
    seen = np.tril(np.ones([8, 8])) - (np.tril(np.ones([8, 8]), -window) if window else 0)
    assert kernel.flops == {"bf16": 2 * products * 2 * 4 * 16 * seen.sum()}


def test_all_branches_run_and_products_of_a_higher_precision_are_exact():
    def branch(name, precision):
        dot = "dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
        return f"""%{name} (p: f32[4,4]) -> f32[4,4] {{
  %p = f32[4,4]{{1,0}} parameter(0)
  ROOT %d = f32[4,4]{{1,0}} {dot}, operand_precision={{{precision}}}
}}
"""

    branches = branch("one", "high,high") + branch("two", "default,default")
    for told in ("branch_computations={%one, %two}", "true_computation=%one, false_computation=%two"):
        entry = f"""ENTRY %main (x: f32[4,4], c: pred[]) -> f32[4,4] {{
  %x = f32[4,4]{{1,0}} parameter(0)
  %c = pred[] parameter(1)
  ROOT %y = f32[4,4]{{1,0}} conditional(%c, %x, %x), {told}
}}"""
        assert [kernel.flops for kernel in Module(branches + entry, 1).kernels()] == [{"f32": 128}, {"tf32": 128}]


def test_slices_of_an_array_read_no_more_than_the_whole():
    parts = "".join(f"  %s{i} = s4[2,4] slice(%p), slice={{[{i}:{i + 2}], [0:4]}}\n" for i in range(3))
    text = f"""%parts (p: s4[4,4]) -> (s4[2,4], s4[2,4], s4[2,4]) {{
  %p = s4[4,4] parameter(0)
{parts}  ROOT %t = (s4[2,4], s4[2,4], s4[2,4]) tuple(%s0, %s1, %s2)
}}
ENTRY %main (x: s4[4,4]) -> (s4[2,4], s4[2,4], s4[2,4]) {{
  %x = s4[4,4] parameter(0)
  ROOT %f = (s4[2,4], s4[2,4], s4[2,4]) fusion(%x), kind=kLoop, calls=%parts
}}"""
    (kernel,) = Module(text, 1).kernels()
    assert kernel.bytes == 16 + 24, "a byte each, though it is half of one"


def test_what_cannot_be_counted_is_told():
    with pytest.raises(DeviceError, match="names no groups"):
        group_size("replica_groups={}, to_apply=%add")
    with pytest.raises(DeviceError, match="has no entry"):
        Module("", 1)


def test_groups_are_listed_or_counted():
    assert group_of("replica_groups={{4,1},{0,2}}, to_apply=%add") == [4, 1]
    assert group_of("replica_groups=[2,4]<=[8]") == [0, 1, 2, 3]
    assert group_of("replica_groups=[4,2]<=[2,4]T(1,0)") == [0, 4]
    assert group_size("replica_groups=[4,2]<=[2,2,2]T(2,1,0)") == 2
