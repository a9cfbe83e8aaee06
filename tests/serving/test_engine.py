"""Who comes next."""

import types
from unittest import mock

import numpy as np

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
        Sequence(i, [1], 0, 2, SampleOptions(), (), lambda piece: None, request=name) for i, name in enumerate("aaabb")
    ]
    for group in (made[:3], made[3:]):
        engine.waiting.extend(group)
        engine.admit()
    names = [engine.rows[i].sequence.request for i in range(5)]
    assert "".join(names) == "aaabb"
    while any(row.reading for row in engine.rows.values()):
        engine.read_one()
    assert "".join(names[row] for row in read) == "ababa"
