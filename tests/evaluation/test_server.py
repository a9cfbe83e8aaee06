"""The harness against our server: its client of completions gives what the adapter in this process gives."""

import json
import re
import subprocess
import sys
import urllib.request

import pytest

from tests.conftest import ROOT
from tests.evaluation.conftest import WORDS
from tests.evaluation.test_harness import NAMES, TASKS, answers, compare_answers, write_tasks

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")
pytest.importorskip("gpt_neo.serving")


@pytest.fixture(scope="module")
def url(trained):
    """A server of the trained model."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt_neo", "serve", "--model", trained, "--port", "0", "--rows", "4"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = next((m for m in (re.search(r"http://\S+:\d+", line) for line in process.stdout) if m), None)
    assert found, process.wait()
    yield found.group()
    process.terminate()
    process.wait(30)


def test_three_ways(url, trained, peer, tmp_path):
    """Texts that fit the n_ctx of 32 with the room that the client wants: longer ones it cuts into other windows."""
    from lm_eval.tasks import TaskManager

    import gpt_neo.evaluation.harness  # noqa: F401  (it registers the model)

    docs = [
        {"context": a, "target": f" {b}", "text": f"{a} {b}", "choices": [" in", f" {b}"]}
        for a, b in zip(WORDS[:8], WORDS[1:])
    ]
    docs = [doc for doc in docs if len(peer.encode(doc["text"])) < 19]
    assert len(docs) > 4
    write_tasks(tmp_path, docs)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    there = {"model": "trained", "base_url": f"{url}/v1/completions", "tokenizer_backend": "remote", "max_length": 32}
    ours, served = (
        lm_eval.simple_evaluate(model=model, model_args=options, tasks=NAMES, task_manager=manager, bootstrap_iters=0)
        for model, options in (("gpt_neo", {"model": trained}), ("local-completions", there))
    )
    for name in TASKS:
        compare_answers(ours, served, name)
    for (answer,), doc in zip(answers(served, "rolling"), docs, strict=True):
        assert -answer == pytest.approx(peer.text_nats(doc["text"])[0], abs=1e-4)
    assert json.dumps(served["results"]["choice"]["acc,none"]) == json.dumps(ours["results"]["choice"]["acc,none"])


def test_its_client_of_chats(url):
    """Greedy answers, of the messages that the harness makes, are those of a plain request."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion

    asked, place = [[{"role": "user", "content": word}] for word in WORDS[:3]], f"{url}/v1/chat/completions"
    client = LocalChatCompletion(model="trained", base_url=place, tokenizer_backend="remote")
    how = {"until": ["|"], "max_gen_toks": 4, "do_sample": False}
    made = [
        Instance("generate_until", {}, (client.apply_chat_template(messages), dict(how)), i)
        for i, messages in enumerate(asked)
    ]
    answers = client.generate_until(made, disable_tqdm=True)
    for messages, answer in zip(asked, answers, strict=True):
        body = {"messages": messages, "max_tokens": 4, "temperature": 0, "stop": ["|"]}
        with urllib.request.urlopen(place, json.dumps(body).encode(), timeout=60) as response:
            assert answer == json.load(response)["choices"][0]["message"]["content"] != ""
