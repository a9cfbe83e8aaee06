"""Completions: the API's forms, exact log-probabilities, and answers that do not depend on company."""

import threading

import numpy as np
import openai
import pytest

from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.sampling.filters import SampleOptions
from tests.model.tools import uncached

PROMPT = "The reindeer of"


@pytest.fixture(scope="module")
def sampler(model):
    """What main.py --predict samples with."""
    return Sampler(model.config, model.checkpoint)


@pytest.fixture(scope="module")
def read(model):
    """Prompts, and the network's log-probabilities [prompt, sequence, vocab] after each of their tokens."""
    rng = np.random.RandomState(0)
    prompts = [rng.randint(1, model.config.n_vocab, n).tolist() for n in (159, 64, 65, 2)]
    filled = np.array([ids + [0] * (159 - len(ids)) for ids in prompts], np.int32)
    logits = uncached(model.config, model.checkpoint, filled).astype(np.float64)
    return prompts, logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def complete(server, **body):
    status, _, found = server.fetch("/v1/completions", body)
    assert status == 200, found
    return found


def test_the_official_client_completes_streams_and_gets_log_probabilities(client):
    asked = {"model": "small", "prompt": PROMPT, "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2)
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.tokens) <= 20
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    with client.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        events = list(stream)
    assert "".join(e.choices[0].text for e in events[:-1]) == whole.choices[0].text
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert events[-1].usage == whole.usage and not events[-1].choices
    assert [m.id for m in client.models.list()] == ["small"] == [client.models.retrieve("small").id]
    with pytest.raises(openai.NotFoundError, match="this server has 'small'"):
        client.completions.create(**{**asked, "model": "large"})


def test_tokens_of_a_stop_string_are_drawn_too(server):
    asked = {"prompt": PROMPT, "max_tokens": 20, "temperature": 1, "seed": 3, "return_token_ids": True}
    (whole,) = complete(server, **asked)["choices"]
    tokens = [server.engine.tokenizer.decode([i]) for i in whole["token_ids"]]
    place = next(i for i in range(2, 20) if tokens[i] and tokens[i] not in "".join(tokens[:i]))
    stopped = complete(server, **asked, stop=tokens[place])
    assert stopped["usage"]["completion_tokens"] == place + 1 == len(stopped["choices"][0]["token_ids"]) + 1


def test_a_client_that_leaves_frees_its_row(server, client):
    asked = {"model": "small", "prompt": PROMPT, "max_tokens": 140, "temperature": 1.5, "seed": 3, "n": 10}
    stream = client.completions.create(**asked, stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.02).completions.create(**asked)
    for _ in range(300):
        if not server.engine.rows and not server.engine.waiting:
            break
        threading.Event().wait(0.01)
    assert not server.engine.rows and not server.engine.waiting and server.app.completions.open == 0


def test_every_form_of_prompt(server):
    ids = server.served.tokenizer.encode(PROMPT)
    asked = {"max_tokens": 8, "temperature": 0}
    texts = [
        [choice["text"] for choice in complete(server, prompt=prompt, **asked)["choices"]]
        for prompt in (PROMPT, [PROMPT], ids, [ids], [ids, ids[:2]], [PROMPT, PROMPT[:2]], "", None)
    ]
    assert texts[0] == texts[1] == texts[2] == texts[3] == texts[4][:1] == texts[5][:1]
    assert texts[6] == texts[7] and [len(found) for found in texts] == [1, 1, 1, 1, 2, 2, 1, 1]


def test_greedy_is_one_text_cached_batched_streamed_and_plain(server, model, client, sampler):
    ids = model.tokenizer.encode(PROMPT)
    cached = [t.token for t in sampler.generate([ids], SampleOptions(30, temperature=0.0, eos_id=0))]
    plain, text = uncached(model.config, model.checkpoint, np.array([ids + cached], np.int32))[0], model.tokenizer
    assert cached == np.argmax(plain, -1)[len(ids) - 1 : -1].tolist()
    found = complete(server, prompt=[ids] * 5 + [ids[:3]], max_tokens=30, temperature=0)["choices"]
    assert {choice["text"] for choice in found[:5]} == {text.decode(cached)}
    stream = client.completions.create(model="small", prompt=ids, max_tokens=30, temperature=0, stream=True)
    assert "".join(e.choices[0].text for e in stream) == text.decode(cached)


def test_a_seed_is_one_text_whatever_the_batch(server, model, sampler):
    ids = model.tokenizer.encode(PROMPT)
    asked = {"prompt": ids, "max_tokens": 60, "temperature": 1.0, "top_k": 50, "seed": 7, "logprobs": 0}
    alone = complete(server, **asked)["choices"][0]
    options = SampleOptions(60, temperature=1.0, top_k=50, seed=7, eos_id=0)
    sampled = [t.token for t in sampler.generate([ids], options)]
    assert alone["text"] == model.tokenizer.decode(sampled)  # what main.py --predict --seed 7 gives
    answers: dict = {}

    def ask(number):
        if number % 5:
            other = {"prompt": "x" * number, "max_tokens": 10 + number, "seed": number, "top_p": 0.9}
            answers[number] = complete(server, **other, n=2)["choices"]
        else:
            answers[number] = complete(server, **asked)["choices"][0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(25)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(answers) == 25
    assert all(answers[number] == alone for number in range(0, 25, 5))  # text and log-probabilities, to the last bit


def test_log_probabilities_are_those_of_the_network(server, model, read):
    """As the evaluation harness asks for them: prompt_len + 1 entries, the first of them null."""
    prompts, every = read
    found = complete(server, prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    for ids, expected, choice in zip(prompts, every, found["choices"]):
        given = choice["logprobs"]
        assert len(given["token_logprobs"]) == len(given["top_logprobs"]) == len(given["tokens"]) == len(ids) + 1
        assert given["token_logprobs"][0] is None is given["top_logprobs"][0]
        for at in range(1, len(ids)):
            assert abs(given["token_logprobs"][at] - expected[at - 1, ids[at]]) < 1e-4
            greedy = given["token_logprobs"][at] == max(given["top_logprobs"][at].values())
            assert greedy == (expected[at - 1].argmax() == ids[at])
        assert given["token_logprobs"][-1] == max(given["top_logprobs"][-1].values())
        assert given["text_offset"] == sorted(given["text_offset"]) and given["text_offset"][0] == 0
        assert choice["text"].startswith(model.tokenizer.decode(ids))


def test_echo_of_a_text_lines_up_with_its_tokens(server):
    prompt = "naïve 小さな ½"
    choice = complete(server, prompt=prompt, max_tokens=0, echo=True, logprobs=3)["choices"][0]
    assert choice["text"] == prompt and choice["finish_reason"] == "length"
    given = choice["logprobs"]
    for name, at, top in zip(given["tokens"], given["text_offset"], given["top_logprobs"]):
        assert name.startswith("bytes:") or prompt.startswith(name, at)
        assert top is None or 3 <= len(top) <= 4 and name in top


def test_stop_strings_are_neither_shown_nor_begun(server):
    asked = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0.9, "seed": 5}
    text = complete(server, **asked)["choices"][0]["text"]
    assert len(text) > 12
    for stop in (text[5:8], text[9:11]):
        choice = complete(server, **asked, stop=[stop, "never seen"], logprobs=0)["choices"][0]
        assert choice["text"] == text[: text.index(stop)] and choice["finish_reason"] == "stop"
        offsets = choice["logprobs"]["text_offset"]
        assert all(at < len(choice["text"]) for at in offsets)


def test_n_and_best_of(server):
    asked = {"prompt": [PROMPT, "ice"], "max_tokens": 10, "seed": 11, "logprobs": 0}
    every = complete(server, **asked, n=4)["choices"]
    assert [choice["index"] for choice in every] == list(range(8))
    assert len({choice["text"] for choice in every[:4]}) > 1
    best = complete(server, **asked, n=1, best_of=4)["choices"]

    def mean(choice):
        return np.mean(choice["logprobs"]["token_logprobs"])

    for group, chosen in zip((every[:4], every[4:]), best):
        assert chosen["text"] == max(group, key=mean)["text"]


def test_penalties_keep_tokens_from_coming_back(server):
    asked = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0, "logprobs": 0}
    plain = complete(server, **asked)["choices"][0]["logprobs"]["tokens"]
    varied = complete(server, **asked, frequency_penalty=2, presence_penalty=2)["choices"][0]["logprobs"]["tokens"]
    assert len(set(varied)) / len(varied) > len(set(plain)) / len(plain)
