"""What hides behind work, in texts as the TPU compiler writes them, by hand."""

import pytest

from gpt_neo.spmd.hlo import Module
from gpt_neo.spmd.links import Links, Transfer, hide

GROUP = "replica_groups={{0,1,2,3}}"
LINKS = Links(cores=1, link=1.0, cycle=1.0)  # bytes a second, seconds a cycle


def module(entry, *others, trips=1):
    lines = "".join(f"  {line}\n" for line in entry)
    return Module("".join(others) + "ENTRY %main (a: f32[8]) -> f32[8] {\n" + lines + "}\n", trips)


def computation(name, line):
    return f"%{name} (p: f32[8]) -> f32[8] {{\n  %p = f32[8] parameter(0)\n  {line}\n}}\n"


def work(name, cycles, more=""):
    return f'%{name} = f32[8] fusion(%a){more}, backend_config={{"estimated_cycles":"{cycles}"}}'


def test_work_waits_for_a_sum_that_stands_alone():
    """32 bytes, of 4 cores, twice around a ring of two links; half of that along each of two dimensions."""
    alone = ["%a = f32[8] parameter(0)", work("f", 100), f"%s = f32[8] all-reduce(%a), {GROUP}", work("g", 100)]
    assert LINKS.times(module(alone)) == (24.0, 24.0)
    colored = [alone[0], alone[2] + ', backend_config={"debug":"StrategyND{colors:2 phases:2"}']
    assert LINKS.times(module(colored)) == (12.0, 12.0)
    assert Links(2, 1.0, 1.0).times(module(alone)) == (2 * 32 * 0.5 / 2, 16.0)  # two chips of two cores


def test_a_link_has_bytes_a_second_and_a_cycle_has_seconds():
    """A sum that is begun and waited for, with work between that hides a part of it."""
    entry = [
        "%a = f32[8] parameter(0)",
        f"%s = f32[8] all-reduce-start(%a), {GROUP}",
        work("beside", 6),
        "%d = f32[8] all-reduce-done(%s)",
        work("after", 100),
    ]
    assert LINKS.times(module(entry)) == (24.0, 18.0)
    assert Links(cores=1, link=2.0, cycle=0.25).times(module(entry)) == (12.0, 10.5)


def test_a_sum_that_is_made_narrower_is_kept_whole():
    narrow = computation("narrow", f"%r = f32[8] all-reduce(%p), {GROUP}")
    fused = ["%a = f32[8] parameter(0)", "%s = bf16[8] fusion(%a), kind=kCustom, calls=%narrow"]
    assert LINKS.times(module(fused, narrow)) == (24.0, 24.0)


def test_what_comes_and_goes_by_its_kind():
    gathered = ["%a = f32[2] parameter(0)", f"%s = f32[8] all-gather(%a), {GROUP}, dimensions={{0}}"]
    assert LINKS.times(module(gathered)) == (12.0, 12.0)
    sent = ["%a = f32[8] parameter(0)", "%s = f32[8] collective-permute(%a), source_target_pairs={{0,1},{1,1}}"]
    assert LINKS.times(module(sent)) == (8.0, 8.0)
    cut = computation("cut", f"%r = f32[8] all-reduce(%p), {GROUP}")
    fused = ["%a = f32[8] parameter(0)", "%s = f32[2] fusion(%a), kind=kCustom, calls=%cut"]
    assert LINKS.times(module(fused, cut)) == (12.0, 12.0)  # a sum of which a quarter is kept is scattered


def test_a_chain_of_fusions_hides_what_its_work_takes():
    """The gather of a chain counts once; other work is no part of it."""

    def step(name):
        inner = f'  %q = f32[8] all-gather(%p), {GROUP}, frontend_attributes={{chain_id="{name[0]}"}}\n'
        return f"%{name} (p: f32[2]) -> f32[8] {{\n  %p = f32[2] parameter(0)\n{inner}}}\n"

    names = ["1a", "1b", "1c", "2a", "2b"]
    cycles = [0, 4, 0, 0, 50]
    entry = [work(f"f{name}", count, f", calls=%{name}") for name, count in zip(names, cycles)]
    found = module([*entry, work("alone", 100)], *map(step, names))
    assert LINKS.times(found) == (24.0, 8.0)


def test_what_is_begun_hides_behind_what_stands_between():
    """On a SparseCore too, from where it is given its data; work hides one transfer at a time."""
    called = computation("sum", f"%r = f32[2] reduce-scatter(%p), {GROUP}")
    other = computation("elsewhere", "%c = f32[2] custom-call(%p), called_computations={%sum}")
    entry = [
        "%a = f32[8] parameter(0)",
        "%s = ((), s32[2]) async-start(), calls=%elsewhere",
        work("before", 100),
        "%u = ((f32[8]), f32[2], s32[2]) async-update(%s, %a)",
        work("beside", 5),
        "%d = f32[2] async-done(%u)",
        work("after", 100),
    ]
    assert LINKS.times(module(entry, called, other)) == (12.0, 12.0 - 5.0)


def test_loops_wait_as_often_as_they_run():
    body = computation("body", f"%r = f32[8] all-reduce(%p), {GROUP}")
    entry = ["%a = f32[8] parameter(0)", "%w = f32[8] while(%a), condition=%c, body=%body"]
    assert LINKS.times(module(entry, body, trips=3)) == (72.0, 72.0)


def test_work_hides_the_first_transfer_first():
    transfers = [Transfer(3.0), Transfer(4.0)]
    hide(5.0, transfers)
    assert [each.beside for each in transfers] == [3.0, 2.0]
    hide(1.0, transfers)
    assert [each.beside for each in transfers] == [3.0, pytest.approx(3.0)]
