"""Who comes next."""

import types
from unittest import mock

import numpy as np

from gpt_neo.errors import CheckpointError
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.serving.engine import Engine, Sequence


def test_requests_of_few_rows_go_first_and_else_who_came_first():
    engine = Engine(None, None, None)
    made = [Sequence(i, [1], 0, 1, SampleOptions(), (), print, request=name) for i, name in enumerate("aaaabbc")]
    engine.waiting.extend(made)
    order = []
    while engine.waiting:
        found = engine.next_waiting()
        engine.rows[found.number] = types.SimpleNamespace(sequence=found)
        order.append(found.request)
    assert "".join(order) == "abcabaa"


def test_a_request_of_many_rows_reads_its_prompts_after_those_of_few():
    read, vocab = [], 4
    decoder = types.SimpleNamespace(
        rows=8, chunk=2, read=lambda row, chunk, at, start, every: read.append(row) or np.zeros([vocab])
    )
    tokenizer = mock.Mock(n_vocab=vocab, byte_level=True, bytes_of=lambda i: b"x", decode_bytes=lambda ids: b"x")
    engine = Engine(decoder, tokenizer, None)
    # a row that asks for 2 tokens has made 1 once its prompt is read, and goes on
    made = [
        Sequence(i, [i], 0, 2, SampleOptions(), (), lambda piece: None, request=name) for i, name in enumerate("aaabb")
    ]
    for group in (made[:3], made[3:]):
        engine.waiting.extend(group)
        engine.admit()
    names = [engine.rows[i].sequence.request for i in range(5)]
    assert "".join(names) == "aaabb"
    while any(row.reading for row in engine.rows.values()):
        engine.read_one()
    assert "".join(names[row] for row in read) == "ababa"


def engine_of(read, rows=8, vocab=4, step=None):
    """An engine whose decoder only notes what it reads, as (row, tokens), and copies, as (source, target)."""
    decoder = types.SimpleNamespace(
        rows=rows,
        chunk=2,
        read=lambda row, chunk, at, start, every: read.append((row, list(chunk))) or np.zeros([vocab]),
        copy=lambda source, target, position, start: read.append((source, target)),
        step=step,
    )
    tokenizer = mock.Mock(n_vocab=vocab, byte_level=True, bytes_of=lambda i: b"x", decode_bytes=lambda ids: b"x")
    return Engine(decoder, tokenizer, None)


def test_a_prompt_of_several_answers_is_read_once():
    read, told = [], []
    engine = engine_of(read)
    greedy = SampleOptions(temperature=0)
    engine.waiting.extend(
        Sequence(i, prompt, i, 2, greedy, (), lambda piece, i=i: told.append(i), request=name)
        for i, (prompt, name) in enumerate([([1, 2, 3], "a"), ([1, 2, 3], "a"), ([1, 2], "a"), ([1, 2, 3], "b")])
    )
    engine.admit()
    number = {row.index: row.sequence.number for row in engine.rows.values()}
    while any(row.reading for row in engine.rows.values()):
        engine.read_one()
    # 1 gets what 0 read; 2 is another prompt, 3 another request
    assert [(number[a], number[b]) for a, b in read if not isinstance(b, list)] == [(0, 1)]
    assert sorted(number[row] for row, tokens in read if isinstance(tokens, list)) == [0, 0, 2, 3, 3]
    assert sorted(told) == [0, 1, 2, 3]
    assert sorted((number[i], row.position) for i, row in engine.rows.items()) == [(0, 4), (1, 4), (2, 2), (3, 4)]


def test_a_row_without_numbers_ends_alone():
    told = []

    def step(tokens, positions, start):
        return np.where(np.arange(8)[:, np.newaxis] == 1, np.nan, np.zeros([8, 4]))

    engine = engine_of([], step=step)
    greedy = SampleOptions(temperature=0)
    engine.waiting.extend(
        Sequence(i, [i + 1], 0, 3, greedy, (), lambda piece, i=i: told.append((i, piece)), request=str(i))
        for i in range(3)
    )
    engine.admit()
    for _ in range(3):
        engine.read_one()
    engine.step()
    assert [i for i, piece in told if isinstance(piece, CheckpointError)] == [1]
    assert sorted(engine.rows) == [0, 2]
