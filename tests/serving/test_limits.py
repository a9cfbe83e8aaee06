"""What is refused, and how; and that the server answers on."""

import http.client
import json
import os
import random
import shutil
import subprocess
import threading
import time
import types

import pytest

from gpt_neo import serving
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.serving.engine import Sequence
from gpt_neo.serving.requests import INSTEAD
from tests.serving.conftest import running

FINE = {"prompt": "ice", "max_tokens": 2}


@pytest.mark.parametrize(
    "change, word",
    [
        ({"prompt": 5}, "prompt is 5"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]] * 65}, "at most 64"),
        ({"prompt": [1, "x"]}, "prompt has 1"),
        ({"prompt": [10**9]}, "0 to 299"),
        ({"prompt": [True]}, "token id true"),
        ({"prompt": [1, 2.0]}, "token id 2.0"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"prompt": [5], "max_tokens": 5000}, "the prompt has 1 token and max_tokens is 5000, 5001 together"),
        ({"max_tokens": 0}, "echo"),
        ({"max_tokens": "9"}, "whole number"),
        ({"max_tokens": 10**4300 - 1}, "max_tokens is 9999"),
        ({"top_k": 10**4000, "temperature": 10**4000}, "top_k is 1000"),
        ({"max_tokens": 500}, "the model's length is 160"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"n": 0}, "n is 0"),
        ({"n": 3, "best_of": 2}, "at least n"),
        ({"n": 40, "best_of": 65}, "best_of"),
        ({"prompt": ["a"] * 40, "n": 2}, "more than 64"),
        ({"best_of": 2, "stream": True}, "no stream"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a", "\ud800"]}, "stop has a surrogate that is no character"),
        ({"stop": ["x"] * 17}, "at most 16"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": "yes"}, "true or false"),
        ({"stream": 1}, "true or false"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 2**70}, "64 bits"),
        ({"suffix": "x"}, "suffix"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": None, "model": 3}, "model is 3"),
        ({"stream_options": 3}, "stream_options"),
    ],
)
def test_a_wrong_field_is_named(server, change, word):
    status, _, found = server.fetch("/v1/completions", {**FINE, **change})
    assert status == 400 and word in found["error"]["message"], found
    assert found["error"]["type"] == "invalid_request_error"


def test_bodies_that_are_no_request(server):
    for body in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000, b'{"a":' * 50_000):
        assert server.fetch("/v1/completions", body)[0] == 400, body[:20]
    assert server.fetch("/v1/completions", b" " * ((1 << 20) + 1))[0] == 413
    assert server.fetch("/v1/completions")[0] == 405 and server.fetch("/nothing")[0] == 404
    assert server.fetch("/v1/models/other")[0] == 404
    assert server.fetch("/detokenize", {"tokens": [300]})[0] == 400
    assert server.fetch("/tokenize", {"prompt": 3})[0] == 400
    for body in ({"prompt": ""}, {"prompt": "x " * 300}, {"prompt": "a", "layer": 9}, {"prompt": "a", "head": 99}):
        assert server.fetch("/attention", body)[0] == 400


def test_a_client_that_sends_too_much_gets_its_answer(server):
    for size in [(1 << 20) + 1, 4 << 20, 8 << 20] * 8:
        assert server.fetch("/v1/completions", b" " * size)[0] == 413
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_unknown_fields_and_all_of_the_harness_are_taken(server):
    more = {
        "user": "me",
        "do_sample": False,
        "temperature": 0,
        "stop": ["<|endoftext|>"],
        "until": [],
        "seed": 1234,
        "best_of": None,
    }
    assert server.fetch("/v1/completions", {**FINE, **more})[0] == 200


def counted(figures):
    """Values of what a server counts, by name."""
    lines = (line.rpartition(" ") for line in figures.splitlines() if line.startswith("gpt_neo"))
    return {name: float(value) for name, _, value in lines}


def test_the_small_routes(server, model):
    text = "naïve ½"
    _, _, found = server.fetch("/tokenize", {"prompt": text, "add_special_tokens": False})
    assert found["tokens"] == model.tokenizer.encode(text) and found["count"] == len(found["tokens"])
    assert server.fetch("/detokenize", {"tokens": found["tokens"]})[2] == {"prompt": text}
    end = server.fetch("/tokenizer_info")[2]["eos_token"]
    assert server.fetch("/tokenize", {"prompt": end})[2]["tokens"] == [0] and end == "<|endoftext|>"
    assert server.fetch("/tokenize", {"prompt": "x" + end})[2]["tokens"] == model.tokenizer.encode("x" + end)
    assert server.fetch("/healthz")[::2] == (200, {"status": "ok"})
    before = counted(server.fetch("/metrics")[2])
    usage = server.fetch("/v1/completions", {**FINE, "prompt": text, "temperature": 0})[2]["usage"]
    server.fetch("/v1/models/none")
    figures = server.fetch("/metrics")[2]
    made = {name: value - before.get(name, 0) for name, value in counted(figures).items()}
    assert made["gpt_neo_prompt_tokens_total"] == usage["prompt_tokens"] > 1
    assert made["gpt_neo_new_tokens_total"] == usage["completion_tokens"] == 2
    assert 'gpt_neo_requests_total{path="/v1/completions",status="200"}' in figures
    assert 'gpt_neo_requests_total{path="/v1/models/{name:path}",status="404"}' in figures
    assert "gpt_neo_new_tokens_total" in figures and "gpt_neo_rows_busy 0.0" in figures
    assert "gpt_neo_waiting 0.0" in figures
    busy = types.SimpleNamespace(rows=dict.fromkeys(range(3)), waiting=[None] * 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.app, "engine", busy)
        figures = server.fetch("/metrics")[2]
    assert "gpt_neo_rows_busy 3.0" in figures and "gpt_neo_waiting 5.0" in figures
    assert server.fetch("/tokenizer_info")[2]["vocab_size"] == model.tokenizer.n_vocab
    for status in (200, 400):  # whatever becomes of it, a picture gives its place back
        assert server.fetch("/attention", {"prompt": text, "head": 0 if status == 200 else 99})[0] == status
        assert server.app.completions.open == 0
    for name in ("", "page.css", "page.js", "attention.js"):
        status, headers, _ = server.fetch("/" + name)
        assert status == 200 and "default-src 'self'" in headers["content-security-policy"]


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
@pytest.mark.parametrize("length, asked", [(2, 1), (64, 32), (2048, 64)])
def test_the_page_asks_for_what_fits_the_model(length, asked):
    """Unless somebody has typed another number: then a field keeps it, whatever its default."""
    script = os.path.join(os.path.dirname(serving.__file__), "page", "page.js")
    browser = f"""
        const found = {{}};
        const element = () => ({{ addEventListener() {{}}, dispatchEvent() {{}}, style: {{}} }});
        globalThis.document = {{ ...element(), getElementById: (id) => (found[id] = found[id] || element()) }};
        globalThis.window = element();
        globalThis.CustomEvent = class {{}};
        const model = {{ id: "m", max_model_len: {length}, layers: [] }};
        globalThis.fetch = async () => ({{ ok: true, json: async () => ({{ data: [model] }}) }});
    """
    with open(script, encoding="utf-8") as file:
        code = f"{browser}\n{file.read()}\nloadModel().then(() => console.log(found.max_tokens.defaultValue));"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{asked}\n"


def test_the_token_and_other_sites(server, model):
    status, _, found = server.fetch("/v1/models", headers={"Origin": "http://elsewhere.example"})
    assert status == 403 and "elsewhere" in found["error"]["message"]
    assert server.fetch("/v1/models", headers={"Origin": server.url})[0] == 200
    status, _, found = server.fetch("/v1/models", headers={"Host": "elsewhere.example"})
    assert status == 403 and "elsewhere" in found["error"]["message"]
    assert server.fetch("/v1/models", headers={"Host": "[::1"})[0] == 400
    assert server.fetch("/v1/models", headers={"Origin": "http://[x"})[0] == 400
    with running(model, server.decoder, key="secret") as closed:
        for path in ("/v1/models", "/metrics", "/tokenizer_info"):
            assert closed.fetch(path)[0] == closed.fetch(path, headers={"Authorization": "Bearer wröng"})[0] == 401
            for sent in ("Bearer secret", "bearer secret", "Bearer  secret"):
                assert closed.fetch(path, headers={"Authorization": sent})[0] == 200
            for sent in ("Basic secret", "secret", "Bearer", "Bearer secret more"):
                status, found, _ = closed.fetch(path, headers={"Authorization": sent})
                assert status == 401 and found["WWW-Authenticate"] == "Bearer"
            known = {"Authorization": "Bearer secret", "Host": "elsewhere.example"}
            assert closed.fetch(path, headers=known)[0] == 200, "with a token it may be bound anywhere"
        assert closed.fetch("/healthz")[0] == closed.fetch("/")[0] == 200


def test_an_engine_that_fails_tells_everybody(server, model):
    with running(model, server.decoder) as broken:
        broken.engine.call(lambda: 1 / 0)
        assert broken.engine.thread.join(10) is None and not broken.engine.thread.is_alive()
        assert broken.fetch("/healthz")[0] == 503 == broken.fetch("/v1/completions", FINE)[0]
        told = []
        broken.engine.submit([Sequence(0, [1], 0, 1, SampleOptions(), (), told.append)])
        assert isinstance(told[0], ZeroDivisionError)


def test_overload_time_and_slow_bodies(server, model):
    long = {"prompt": "a", "max_tokens": 150, "temperature": 2, "n": 16, "stop": "none of this"}
    with running(model, server.decoder, waiting=16, body_seconds=0.2) as tight:
        statuses = []

        def ask():
            status, headers, _ = tight.fetch("/v1/completions", long)
            statuses.append((status, headers.get("Retry-After")))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        refused = [after for status, after in statuses if status == 429]
        assert 1 <= len(refused) <= 4 and all(1 <= int(after) <= 60 for after in refused)
        assert {status for status, _ in statuses} == {200, 429}
        connection = http.client.HTTPConnection(tight.url.removeprefix("http://"), timeout=10)
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        assert connection.getresponse().status == 408
        connection.close()
    with running(model, server.decoder, seconds=0.01) as hasty:
        assert hasty.fetch("/v1/completions", long)[0] == 504
        assert "within 0.01 s" in hasty.fetch("/v1/completions", {**long, "stream": True})[2]
        for _ in range(300):
            if not hasty.engine.rows:
                break
            time.sleep(0.01)
        assert not hasty.engine.rows and hasty.app.completions.open == 0


def test_malformed_requests_get_4xx_and_the_server_answers_on(server):
    malformed(server, 150)


@pytest.mark.slow
def test_two_thousand_malformed_requests(server):
    malformed(server, 2000)


def malformed(server, count):
    """Requests with something broken at random; every answer is 4xx, and sound ones still get theirs."""
    rng = random.Random(0)
    junk = [None, -1, 1e308, "x", [], {}, [[[]]], True, "\ud800", [None], {"a": 1}, 10**30, [-1], [["a"]]]
    fields = ["max_tokens", "n", "temperature", "stop", "logprobs", "echo", "stream", "seed", "top_p", "prompt"]
    paths = ["/v1/completions", "/tokenize", "/detokenize", "/attention"]
    for number in range(count):
        raw = json.dumps(FINE).encode()
        kind = number % 4
        if kind == 0:  # a body cut short
            body = raw[: rng.randrange(len(raw))]
        elif kind == 1:  # random bytes
            body = rng.randbytes(rng.randrange(1, 400))
        elif kind == 2:  # one field of a wrong type beside one that is surely wrong
            wrong = {rng.choice(fields): rng.choice(junk), "model": rng.choice([5, [], "other"])}
            body = json.dumps({**FINE, **wrong}).encode()
        else:
            body = b"[" * rng.randrange(1, 5000)
        path = "/v1/completions" if kind == 2 else rng.choice(paths)
        status = server.fetch(path, body)[0]
        assert 400 <= status < 500, (status, body[:80])
    assert server.fetch("/v1/completions", FINE)[0] == 200
    assert server.fetch("/healthz")[0] == 200


def test_sampling_fields_that_are_not_honoured_are_refused_by_name(server):
    for field, value in {
        "guided_regex": "a",
        "repeat_penalty": 1.2,
        "mirostat": 2,
        "bad_words": ["a"],
        "skip_special_tokens": False,
        "num_beams": 4,
        "do_sample": False,
        "max_new_tokens": 9,
        "max_completion_tokens": 9,
        "dynatemp_range": 0.5,
        "json_schema": {"type": "object"},
    }.items():
        status, _, answer = server.fetch("/v1/completions", {**FINE, field: value})
        assert status == 400 and answer["error"]["param"] == field and field in answer["error"]["message"]
        if field in INSTEAD:
            assert answer["error"]["message"].endswith(f"; {INSTEAD[field]} says it here")
    idle = {"num_beams": 1, "do_sample": True, "no_repeat_ngram_size": 0, "typical_p": 1.0, "top_n_sigma": -1}
    assert server.fetch("/v1/completions", {**FINE, **idle})[0] == 200
    idle = {"min_p": 0, "repetition_penalty": 1.0, "logit_bias": {}, "min_tokens": 0, "response_format": None}
    assert server.fetch("/v1/completions", {**FINE, **idle})[0] == 200
    assert server.fetch("/health")[0] == 200
