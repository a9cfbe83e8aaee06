"""A small model behind a server on loopback, shared by the tests of this folder."""

import contextlib
import functools
import json
import threading
import time
import types
import urllib.error
import urllib.request

import pytest

from gpt_neo.config.schema import GlaParams, ModelConfig
from gpt_neo.runtime.rows import RowDecoder
from gpt_neo.serving.app import Limits, Server
from gpt_neo.serving.connections import Patience
from gpt_neo.serving.engine import Engine
from gpt_neo.serving.metrics import Metrics
from gpt_neo.serving.requests import Served
from gpt_neo.serving.run import bind, make_server
from gpt_neo.tokenizer import Tokenizer, train_tokenizer
from tests.model.tools import save_random

ENGINES = ("tensorflow", "openvino")
TEXTS = ["The reindeer of the far north — naïve, 小さな, and ½ as old as the ice — learned to read. "] * 20


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Config, checkpoint and tokenizer."""
    tokenizer = Tokenizer("small", train_tokenizer(TEXTS, 300), 0)
    config = ModelConfig(
        n_head=2,
        n_embd=16,
        n_layer=3,
        n_vocab=tokenizer.n_vocab,
        n_ctx=160,
        eos_id=0,
        attention_types=("global", "local", "gla"),
        local_attention_radius=24,
        gla_params=GlaParams(num_heads=4),
    )
    checkpoint = save_random(config, str(tmp_path_factory.mktemp("served")), scale=0.3)
    return types.SimpleNamespace(config=config, checkpoint=checkpoint, tokenizer=tokenizer)


def make_rows(model, engine):
    """Sixteen rows, by an engine of ENGINES."""
    if engine == "tensorflow":
        return RowDecoder(model.config, model.checkpoint, 16)
    pytest.importorskip("gpt_neo.fast.silent")
    from gpt_neo.fast.rows import FastRows

    return FastRows(model.config, model.checkpoint, 16)


@pytest.fixture(scope="session")
def rows_of(model):
    """Rows by engine, made once."""
    return functools.lru_cache(lambda engine: make_rows(model, engine))


@contextlib.contextmanager
def running(model, decoder=None, patience=None, **limits):
    """A server; `.url`, `.engine` and `.fetch`."""
    decoder = decoder or make_rows(model, "tensorflow")
    metrics = Metrics()
    engine = Engine(decoder, model.tokenizer, model.tokenizer.eos_id, metrics.observe)
    served = Served("small", model.tokenizer, model.config.n_vocab, decoder.length, model.tokenizer.eos_id)
    app = Server(engine, served, Limits(**limits), metrics, 0)
    engine.begin()
    listener = bind("127.0.0.1", 0)
    server = make_server(app.app(), 5, patience or Patience())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield types.SimpleNamespace(
            url=url,
            engine=engine,
            app=app,
            served=served,
            decoder=decoder,
            fetch=lambda *args, **more: fetch(url, *args, **more),
        )
    finally:
        server.should_exit = True
        thread.join()
        engine.close()


def fetch(url, path, body=None, headers=None):
    """(status, headers, JSON or text); `body` an object, or bytes as they are."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, found, text = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        status, found, text = error.code, error.headers, error.read()
    return status, found, json.loads(text) if "json" in found.get("content-type", "") else text.decode()


@pytest.fixture(scope="session", params=ENGINES)
def server(model, rows_of, request):
    with running(model, rows_of(request.param)) as found:
        yield found
