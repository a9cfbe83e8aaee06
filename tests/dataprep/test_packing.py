"""The layout of output files, against a stream laid out by brute force."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_neo.dataprep.packing import Packing


@settings(max_examples=200)
@given(st.lists(st.integers(0, 30), max_size=15), st.integers(1, 7), st.integers(1, 4))
def test_files_are_consecutive_runs_of_the_stream(extents, record, files_per):
    stream = [(unit, place) for unit, extent in enumerate(extents) for place in range(extent)]
    packing = Packing(record, files_per)
    shards = []
    for number, extent in enumerate(extents):
        shards += packing.add(number, extent)
        needed = packing.first_needed()
        assert needed is None or (needed <= number and extents[needed])
    shards += packing.finish()
    assert packing.finish() == []
    got = [[(p.unit, i) for p in shard.parts for i in range(p.start, p.stop)] for shard in shards]
    size = record * files_per
    assert got == [stream[i : i + size] for i in range(0, len(stream), size)]
    assert [shard.number for shard in shards] == list(range(len(shards)))
    for shard, places in zip(shards, got):
        assert shard.records * record == len(places) + shard.fill and 0 <= shard.fill < record
        assert shard is shards[-1] or (shard.records == files_per and shard.fill == 0)
