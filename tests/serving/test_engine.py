"""Who comes next."""

import asyncio
import collections
import functools
import threading
import time
import types
from unittest import mock

import numpy as np
import pytest

from gpt_neo.errors import CheckpointError, DataError
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.serving.completions import Completions, Exchange
from gpt_neo.serving.engine import Engine, Sequence
from gpt_neo.serving.mailbox import Mailbox
from gpt_neo.serving.requests import RequestError
from gpt_neo.serving.token_choice import Adjustments


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
        clear=lambda row: read.append(("cleared", [row])),
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


def test_what_is_counted_are_tokens_and_steps():
    """Not what fills a prompt to whole chunks, nor the prompt that a second answer gets from the first."""
    counted = collections.Counter()
    engine = engine_of([], step=lambda tokens, positions, start: np.zeros([8, 4]))
    engine.observe = lambda name, amount: counted.update({name: amount})
    for name, prompt in (("a", [1, 2, 3]), ("a", [1, 2, 3]), ("b", [1])):
        engine.waiting.append(
            Sequence(0, prompt, 0, 3, SampleOptions(temperature=0), (), lambda piece: None, request=name)
        )
    engine.admit()
    while engine.rows:
        engine.read_one()
        engine.step()
    assert counted["prompt_tokens"] == 3 + 1 and counted["new_tokens"] == 3 * 3 and counted["steps"] == 3


def test_who_may_not_wait_hears_when_a_row_is_free():
    """In half of the time of those ahead; the time of an answer is a mean in which the last counts a tenth."""
    engine = types.SimpleNamespace(decoder=types.SimpleNamespace(rows=4))
    owner = Completions(engine, None, mock.Mock(), 60.0, 8)
    with pytest.raises(RequestError, match="0 answers are on their way"):
        owner.take_places(13)
    owner.take_places(12)
    owner.pace = 5.0
    assert owner.retry_after() == 5  # two rounds wait, of 5 s each
    owner.open, owner.pace = 4, 0.1
    assert owner.retry_after() == 1
    owner.open, owner.pace = 12, 500.0
    assert owner.retry_after() == 60
    owner.pace = 5.0
    exchange = Exchange.__new__(Exchange)
    exchange.owner, exchange.sequences = owner, []
    exchange.choices, exchange.began = [types.SimpleNamespace(finish="stop")], time.monotonic() - 15
    exchange.end()
    assert 5.99 < owner.pace < 6.1 and exchange.began is None


def test_a_row_without_numbers_ends_alone():
    told, read = [], []

    def step(tokens, positions, start):
        return np.where(np.arange(8)[:, np.newaxis] == 1, np.nan, np.zeros([8, 4]))

    engine = engine_of(read, step=step)
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
    assert read[-1] == ("cleared", [1])


def test_a_wish_that_cannot_be_met_ends_its_row_alone():
    told = []
    engine = engine_of([], step=lambda tokens, positions, start: np.zeros([8, 4]))
    engine.waiting.extend(
        Sequence(i, [i + 1], 0, 3, SampleOptions(temperature=0), (), functools.partial(told.append), request=str(i))
        for i in range(2)
    )
    engine.waiting[0].adjustments = Adjustments({9: 1.0})  # there are four ids
    engine.admit()
    for _ in range(2):
        engine.read_one()
    engine.step()
    assert [type(piece) for piece in told if isinstance(piece, Exception)] == [IndexError]
    assert list(engine.rows) == [1] and engine.failure is None


def test_what_cannot_begin_ends_alone():
    """A stop string that the tokenizer cannot look up ended the engine, and with it every answer."""
    told = []
    engine = engine_of([])
    rows = engine.decoder.rows
    engine.tokenizer.specials_named = mock.Mock(side_effect=DataError("no UTF-8"))
    stops = [("\ud800",)] * (rows + 1) + [()]
    engine.waiting.extend(
        Sequence(i, [i + 1], 0, 3, SampleOptions(), stop, functools.partial(told.append), request=str(i))
        for i, stop in enumerate(stops)
    )
    assert engine.admit()
    assert [str(piece) for piece in told] == ["no UTF-8"] * (rows + 1)
    assert [row.sequence.number for row in engine.rows.values()] == [rows + 1] and not engine.waiting


def test_what_a_request_does_to_the_numbers_is_not_the_model():
    told = []
    engine = engine_of([], vocab=4)
    adjustments = Adjustments(min_tokens=2)
    engine.waiting.append(
        Sequence(0, [1], 0, 3, SampleOptions(), (), told.append, adjustments=adjustments, ends=(0, 1, 2, 3))
    )
    engine.admit()
    engine.read_one()
    assert isinstance(told[0], DataError) and "stop_token_ids of the request" in str(told[0]) and not engine.rows


def test_mail_of_two_threads_arrives_and_none_goes_to_a_loop_that_has_ended():
    mail, items = Mailbox(), []
    loop = mock.Mock(call_soon_threadsafe=lambda call, found: items.extend(found))

    def send(first):
        for i in range(2000):
            mail.put(loop, None, first + i)
            mail.send()

    threads = [threading.Thread(target=send, args=(first,)) for first in (0, 10_000)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(items) == 4000
    ended = asyncio.new_event_loop()
    ended.close()
    mail.put(ended, None, 1)
    mail.send()
    assert not mail.told
