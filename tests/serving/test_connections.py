"""Clients that do not go on are cut off, and those that do get right answers meanwhile."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import threading
import time
import types

import pytest
import uvicorn
from uvicorn.server import ServerState

from gpt_neo.serving.connections import Connection, Patience, Sparing
from tests.serving.conftest import running

ASKED = {"prompt": "ice", "max_tokens": 20, "temperature": 0}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
LONG = {"prompt": "a", "max_tokens": 150, "temperature": 2, "n": 16, "stop": "none of this", "logprobs": 20}


@pytest.fixture(scope="module")
def hasty(model, rows_of):
    """A server of little patience."""
    patience = Patience(idle=0.6, send=0.6, connections=24)
    with running(model, rows_of("tensorflow"), patience, waiting=0) as found:
        found.port = int(found.url.rpartition(":")[2])
        found.right = found.fetch("/v1/completions", ASKED)[2]["choices"]
        yield found


def connect(port, receive_buffer=None):
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(10)
    client.connect(("127.0.0.1", port))
    return client


def is_cut(client):
    """Whether the server has closed the connection; waits for it."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def request(body):
    data = json.dumps(body).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data


def free_within(server, seconds):
    """Whether no place and no row is taken any more, by then."""
    end = time.monotonic() + seconds
    while (server.app.completions.open or server.engine.rows) and time.monotonic() < end:
        time.sleep(0.01)
    return server.app.completions.open == 0 and not server.engine.rows


def dribble(client):
    """A header that comes a byte at a time, for two minutes."""
    with contextlib.suppress(OSError):
        client.sendall(HEAD)
        for _ in range(2400):
            client.sendall(b"x")
            time.sleep(0.05)


def test_idle_and_dribbling_clients_are_cut_and_honest_ones_answered(hasty):
    began = time.monotonic()
    silent, dribbling, rested = connect(hasty.port), connect(hasty.port), connect(hasty.port)
    rested.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")  # idle after an answer
    thread = threading.Thread(target=dribble, args=(dribbling,))
    thread.start()
    while thread.is_alive():
        assert hasty.fetch("/v1/completions", ASKED)[2]["choices"] == hasty.right
    assert is_cut(silent) and is_cut(dribbling) and is_cut(rested)
    assert 0.5 < time.monotonic() - began < 60


def test_who_answers_within_the_time_stays_connected(hasty):
    client = connect(hasty.port)
    for _ in range(4):
        time.sleep(0.3)
        client.sendall(request(ASKED))
        answer = client.recv(1 << 16)
        while not answer.endswith(b"}"):
            answer += client.recv(1 << 16)
        assert b"200 OK" in answer
    client.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_frees_its_places(hasty, stream):
    client = connect(hasty.port, receive_buffer=4096)
    client.sendall(request({**LONG, "stream": stream}))
    while not hasty.app.completions.open:
        time.sleep(0.01)
    assert hasty.fetch("/v1/completions", ASKED)[0] == 429  # all sixteen places are taken
    assert hasty.fetch("/attention", {"prompt": "ice"})[0] == 429
    assert hasty.fetch("/healthz")[0] == 200
    assert free_within(hasty, 20)
    assert is_cut(client)
    assert hasty.fetch("/v1/completions", ASKED)[2]["choices"] == hasty.right


def test_a_slow_reader_that_goes_on_gets_everything(hasty):
    client = connect(hasty.port, receive_buffer=1 << 16)
    client.sendall(request({**LONG, "stream": True}))
    found = b""
    while not found.endswith(b"0\r\n\r\n"):
        part = client.recv(1 << 16)
        assert part, "cut"
        found += part
        time.sleep(0.002)
    assert found.count(b"[DONE]") == 1 and len(found) > 1 << 20
    client.close()


def test_more_connections_than_the_limit_leave_a_place_for_who_asks(hasty):
    before = len(os.listdir("/proc/self/fd"))
    crowd = [connect(hasty.port) for _ in range(100)]
    assert hasty.fetch("/v1/completions", ASKED)[2]["choices"] == hasty.right
    # Both ends are of this process: the crowd's, and at most the limit of the server's.
    assert len(os.listdir("/proc/self/fd")) <= before + 100 + 24 + 2
    assert all(is_cut(client) for client in crowd[:70])  # those that came first, before their time was over
    for client in crowd:
        client.close()


def test_clients_that_leave_are_no_failures_of_the_server(hasty, caplog):
    for body in ({**LONG, "stream": True}, LONG, None):
        client = connect(hasty.port)
        client.sendall(request(body) if body else HEAD + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.05)
        client.close()
        assert free_within(hasty, 20)
    client = connect(hasty.port)
    client.sendall(b"no request at all\r\n\r\n")
    assert b"400" in client.recv(1000)
    client.close()
    assert not caplog.records


class Loop:
    """What is to be called, and after how long; nothing is."""

    def __init__(self):
        self.asked = []

    def call_later(self, seconds, end):
        self.asked.append((seconds, end))
        return types.SimpleNamespace(cancel=lambda: None)


class Transport(asyncio.Transport):
    """Of a client that has so many bytes to take."""

    def __init__(self, waiting=0):
        super().__init__()
        self.waiting, self.aborted = waiting, False

    def get_write_buffer_size(self):
        return self.waiting

    def pause_reading(self):
        """Nothing is read."""

    def abort(self):
        self.aborted = True


@pytest.fixture
def connected():
    """From (bytes that wait, whether a request is being answered) to a connection; all are of one server of two."""
    config, state, waiting = uvicorn.Config(lambda *given: None), ServerState(), {}

    def make(size=0, busy=False):
        patience = Patience(idle=30.0, send=20.0, share=1 << 20, connections=2)
        made = Connection(config, state, {}, Loop(), patience=patience, waiting=waiting)
        made.cycle = types.SimpleNamespace(response_complete=not busy)
        made.connection_made(Transport(size))
        return made

    return make


def test_a_client_has_twenty_seconds_to_read_and_as_many_for_each_mebibyte(connected):
    for size, seconds in ((1 << 17, 22.5), (3 << 20, 80.0)):
        made = connected(size)
        made.pause_writing()
        told, end = made.loop.asked[-1]
        assert told == seconds and not made.transport.aborted
        end()
        assert made.transport.aborted


def test_an_answer_may_take_longer_than_a_client_may_be_idle(connected):
    for busy in (True, False):
        made = connected(busy=busy)
        seconds, end = made.loop.asked[-1]
        end()
        assert seconds == 30.0 and made.transport.aborted != busy


def test_who_has_been_idle_longest_makes_room_and_nobody_who_waits_for_an_answer(connected):
    busy, first, second = connected(busy=True), connected(), connected()
    assert [made.transport.aborted for made in (busy, first, second)] == [False, True, False]
    busy.cycle.response_complete = True
    busy.wait_for_request()  # it has its answer
    second.wait_for_request()
    third = connected()
    assert [made.transport.aborted for made in (busy, second, third)] == [True, False, False]
    second.wait_for_request()
    third.wait_for_request()
    second.wait_for_request()
    assert connected() and [made.transport.aborted for made in (second, third)] == [False, True]


def test_half_of_the_descriptors_are_for_connections(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (256, 4096))
    assert Patience().most() == 128 and Patience(connections=9).most() == 9
    monkeypatch.setattr("resource.getrlimit", lambda kind: (-1, -1))
    assert Patience().most() == 2000


def test_a_log_of_so_many_lines_a_minute():
    spare = Sparing(3)
    records = [logging.makeLogRecord({"msg": "line %d", "args": (i,), "created": 60.0 + i}) for i in range(50)]
    assert [r.getMessage() for r in records if spare.filter(r)] == ["line 0", "line 1", "line 2"]
    late = logging.makeLogRecord({"msg": "more", "created": 121.0})
    assert spare.filter(late) and late.getMessage() == "more (47 messages before this were left out)"
