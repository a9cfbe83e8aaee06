"""The command as a person runs it: what it says, refuses, how it ends; and the commands of the documentation."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from gpt_neo.__main__ import main
from gpt_neo.errors import ConfigError
from gpt_neo.serving.run import bind
from tests.model.tools import save_random
from tests.serving.conftest import fetch, model, rows_of, server  # noqa: F401  (fixtures)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def test_it_serves_drains_on_sigterm_and_exits_with_0(model, tmp_path):  # noqa: F811
    model.tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    keys = {
        "n_head": 2,
        "n_embd": 16,
        "n_layer": 1,
        "n_vocab": 300,
        "n_ctx": 600,
        "attention_types": [[["global"], 1]],
        "eos_id": 0,
        "model_path": str(tmp_path),
        "train_batch_size": 1,
        "train_steps": 1,
        "lr": 0.001,
        "datasets": [],
    }
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(keys))
    from gpt_neo.config import load_config

    save_random(load_config(str(config), []).model, str(tmp_path))
    command = [sys.executable, "-m", "gpt_neo", "serve", "--model", str(config), "--port", "0", "--rows", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("serving"):
                break
        assert lines, process.stderr.read()
        url = re.search(r"http://127.0.0.1:\d+", lines[-1]).group(0)
        answers = []
        body = {"prompt": "The ice", "max_tokens": 590, "temperature": 0, "presence_penalty": 2, "echo": True}
        thread = threading.Thread(target=lambda: answers.append(fetch(url, "/v1/completions", body)))
        thread.start()
        while "gpt_neo_rows_busy 1.0" not in fetch(url, "/metrics")[2]:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        thread.join()
        assert answers[0][0] == 200 and answers[0][2]["usage"]["completion_tokens"] >= 1
        assert process.wait(30) == 0
        assert process.stdout.read() == "stopped\n" and not process.stderr.read()
    rows = 2 if importlib.util.find_spec("openvino") else 16  # TensorFlow's step has no fewer
    assert any(re.match(rf"loaded .* {rows} rows of 600 tokens", line) for line in lines)
    with pytest.raises(OSError):
        urllib.request.urlopen(url + "/healthz", timeout=5)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--host", "0.0.0.0"], "GPT_NEO_API_KEY"),
        (["--rows", "0"], "--rows is 0"),
        (["--port", "70000"], "--port"),
        (["--timeout", "-1"], "--timeout"),
        (["--max_waiting", "-1"], "--max_waiting"),
        (["--model", "nothing"], "nothing"),
    ],
)
def test_flags_that_are_refused(flags, words, monkeypatch, capsys):
    monkeypatch.delenv("GPT_NEO_API_KEY", raising=False)
    assert main(["serve", "--model", "configs/demo.json", *flags]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("key", ["schlüssel", "secret\n", " secret", "  ", "a\tb"])
def test_a_token_that_no_client_could_send(key, monkeypatch, capsys):
    monkeypatch.setenv("GPT_NEO_API_KEY", key)
    assert main(["serve", "--model", "configs/demo.json", "--host", "0.0.0.0"]) == 2
    assert "GPT_NEO_API_KEY has spaces around it, or other characters" in capsys.readouterr().err


def test_an_address_that_is_taken():
    with bind("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="cannot listen on --host 127.0.0.1"):
        bind("127.0.0.1", taken.getsockname()[1])


def test_the_commands_of_the_documentation(server):  # noqa: F811
    with open(os.path.join(ROOT, "docs", "serving.md"), encoding="utf-8") as handle:
        commands = [shlex.split(line) for line in handle if line.startswith("curl ")]
    assert len(commands) > 5
    for _, url, *rest in commands:
        body = json.loads(rest[1]) if rest else None
        status, _, found = server.fetch(url.removeprefix("http://127.0.0.1:8000"), body)
        assert status == 200, (url, found)
