"""The order of records against counting, over epochs and from any position."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_neo.inputs import streams
from gpt_neo.inputs.position import locate
from gpt_neo.inputs.sources import Source
from gpt_neo.mtf_compat import tf
from tests.inputs.conftest import N_CTX

COUNTS = [(3, 0, 2, 7), (1,), pytest.param((5, 5, 5), marks=pytest.mark.slow)]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(sum), st.integers(0, 10**15))
def test_locate_equals_counting(counts, far):
    flat = [(file, record) for file, count in enumerate(counts) for record in range(count)]
    for record in [*range(2 * len(flat)), far]:
        assert locate(record, counts) == flat[record % len(flat)]


def test_no_records_at_all():
    with pytest.raises(ValueError, match="hold no records"):
        locate(0, [0])


@pytest.fixture(scope="module", params=COUNTS, ids=str)
def source(request, shelf):
    """Files whose records hold their own number."""
    name = "s" + "_".join(map(str, request.param)) + "x"
    numbers = iter(range(100))
    config = shelf.write(name, [[[next(numbers)] * (N_CTX + 1) for _ in range(count)] for count in request.param])
    paths = tuple(config.path.replace("*", f"{i}_{count}") for i, count in enumerate(request.param) if count)
    counts = tuple(count for count in request.param if count)
    return Source("s", "chunks", 1, 1.0, paths, counts, 1000, 0, 1, 5, shuffled=False)


def read(source, positions, count):
    """[position][count] numbers of the records from each position, one pipeline started anew at each."""
    with tf.Graph().as_default(), tf.Session() as session:
        position = tf.placeholder(tf.int64, [])
        records = streams.endless_records(source, position)
        iterator = tf.data.make_initializable_iterator(records)
        following, found = iterator.get_next(), []
        for value in positions:
            session.run(iterator.initializer, {position: value})
            found.append([place(source, *session.run(following)[:2]) for _ in range(count)])
    return np.array(found)


def place(source, path, number):
    """The number of a record among those of all files."""
    return sum(source.counts[: source.paths.index(path.decode())]) + int(number)


def test_records_in_turn_from_any_position(source):
    first = np.cumsum(source.counts)  # of each file but one, and of the next epoch
    positions = sorted({0, *(first - 1), *first, source.records + 1, 2 * source.records, 10**12})
    for position, got in zip(positions, read(source, positions, 2 * source.records + 1)):
        assert got.tolist() == [(position + i) % source.records for i in range(len(got))]


@pytest.mark.parametrize("shuffled", [False, True])
def test_files_before_the_position_are_left_unread(source, shuffled, monkeypatch):
    """A run that goes on late in a large dataset would wait for them."""
    monkeypatch.setattr(streams, "SHUFFLED_SAMPLES", 1)
    for first in range(1, len(source.counts)):
        paths = ("nowhere",) * first + source.paths[first:]
        late = dataclasses.replace(source, kind="documents_fixed", shuffled=shuffled, paths=paths)
        position, count = sum(source.counts[:first]), sum(source.counts[first:])
        assert read(late, [position], count)[0].tolist() == list(range(position, source.records))


@pytest.mark.parametrize("block", [2, 100])
def test_shuffled_records_come_once_per_epoch_and_the_same_from_any_position(source, block, monkeypatch):
    monkeypatch.setattr(streams, "SHUFFLED_SAMPLES", block)
    shuffled = dataclasses.replace(source, kind="documents_fixed", shuffled=True)
    epochs, size = 3, source.records
    whole = read(shuffled, [0], epochs * size + 5)[0]
    for epoch in range(epochs):
        order = whole[epoch * size : (epoch + 1) * size]
        assert sorted(order) == list(range(size))
        # a block is a permutation of the records that stand there
        assert [i // block for i in order] == [i // block for i in range(size)]
    starts = list(range(0, epochs * size, 5))  # where a block begins, and within one
    for start, got in zip(starts, read(shuffled, starts, 5)):
        assert got.tolist() == whole[start : start + 5].tolist()


def test_epochs_and_seeds_have_orders_of_their_own(source):
    if source.records < 10:
        pytest.skip("too few records for orders to differ for certain")
    shuffled = dataclasses.replace(source, kind="documents_fixed", shuffled=True)
    other = dataclasses.replace(shuffled, seed=6)
    size = source.records
    orders = [tuple(o) for o in read(shuffled, [0, size, 2 * size], size)] + [tuple(read(other, [0], size)[0])]
    assert len(set(orders)) == 4


def test_every_block_of_every_epoch_has_an_order_of_its_own(source, monkeypatch):
    if source.records != 12:
        pytest.skip("two blocks of six")
    monkeypatch.setattr(streams, "SHUFFLED_SAMPLES", 3)  # of two documents each
    shuffled = dataclasses.replace(source, kind="documents_fixed", stitch=2, shuffled=True)
    orders = read(shuffled, [0], 4 * 12)[0].reshape(8, 6) % 6
    assert len({tuple(order) for order in orders.tolist()}) == 8
    assert (np.sort(orders) == range(6)).all() and orders[:, :3].max() > 2
