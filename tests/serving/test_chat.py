"""Chats: the template of the tokenizer against transformers, the plain form, the official client, refusals."""

import dataclasses
import json
import os

import openai
import pytest

from gpt_neo.dataprep.templates import PLAIN, ChatTemplate, renderer, template_of
from gpt_neo.serving.chat import parse_chat, with_chat
from gpt_neo.serving.requests import RequestError, Served
from gpt_neo.tokenizer import load_tokenizer
from tests.dataprep.test_dialogs import CHAT, folder  # noqa: F401  (a fixture)

ASK = [{"role": "user", "content": "The reindeer"}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def served_of(tokenizer, template=None, length=400):
    served = Served("small", tokenizer, tokenizer.n_vocab, length, 0)
    return with_chat(served, template) if template else served


def test_a_prompt_equals_transformers(folder):  # noqa: F811
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.json"))
    served = served_of(tokenizer, template_of(folder, tokenizer))
    found = parse_chat({"messages": CHAT[:4], "stop": "x"}, served)
    assert found.prompts == [theirs.apply_chat_template(CHAT[:4], add_generation_prompt=True)["input_ids"]]
    assert found.ends == (theirs.convert_tokens_to_ids("<|end|>"),) and found.stop == ("x",)
    assert found.max_tokens == 400 - len(found.prompts[0])
    parts = [{"type": "text", "text": part} for part in (CHAT[0]["content"], "More.")]
    prompts = [
        parse_chat({"messages": [{**CHAT[0], "content": content}, *CHAT[1:4]]}, served).prompts
        for content in (parts, CHAT[0]["content"] + "\nMore.")
    ]
    assert prompts[0] == prompts[1] != found.prompts
    # keys that are null, as clients send an answer back that they were given
    asks = "{% if 'tool_calls' in m %}{{ m.tool_calls | length }}{% endif %}"
    theirs.chat_template = "{% for m in messages %}" + asks + "{{ m.content }}{% endfor %}"
    served = served_of(tokenizer, ChatTemplate(renderer(theirs.chat_template, {}), ""))
    back = [*CHAT[:2], {**CHAT[2], "tool_calls": None, "refusal": None, "name": None}, CHAT[3]]
    found = parse_chat({"messages": back}, served)
    assert found.prompts == [theirs.apply_chat_template(back, add_generation_prompt=True)["input_ids"]]


def test_the_plain_form(model):
    served = served_of(model.tokenizer)
    found = parse_chat({"messages": CHAT[:4], "max_tokens": 9, "max_completion_tokens": 5}, served)
    text = "System: Short answers.\nUser: What is a list?\nAssistant: A row of values.\nUser: And a tuple?\nAssistant:"
    assert model.tokenizer.decode(found.prompts[0]) == text
    assert found.stop == ("\nUser:", "\nSystem:") and found.max_tokens == 5
    typed = parse_chat({"messages": [{"role": "user", "content": "<|endoftext|>"}]}, served)
    assert 0 not in typed.prompts[0]  # text, as in training


@pytest.mark.parametrize("answer", [True, False])
def test_the_plain_form_in_jinja_is_the_same(answer):
    chats = [CHAT, CHAT[:1], [{"role": "USER", "content": " two\n\nparagraphs {{ 1 }}\n"}]]
    for messages in chats:
        assert renderer(PLAIN.source, {})(messages, answer) == PLAIN.render(messages, answer)


def test_the_tokenizer_of_the_harness(server, model):
    """What lm_eval's clients ask the server for, by their own class."""
    theirs = pytest.importorskip("lm_eval.utils").RemoteTokenizer(server.url + "/v1/chat/completions")
    assert theirs.eos_token == theirs.bos_token == theirs.pad_token == "<|endoftext|>"
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.eot_token == 0
    for text in ("The reindeer", " na\u00efve \u00bd <|endoftext|>"):
        assert theirs.encode(text) == theirs(text)["input_ids"] == model.tokenizer.encode(text)
        assert theirs.decode(theirs.encode(text)) == text
    prompt = theirs.apply_chat_template(CHAT[:4])
    assert [theirs.encode(prompt)] == parse_chat({"messages": CHAT[:4]}, server.served).prompts


def test_the_official_client_chats(client):
    asked = {"model": "small", "messages": ASK, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert len(choice.logprobs.content) == whole.usage.completion_tokens <= 20
    for token in choice.logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob and len(token.top_logprobs) == 3
    assert b"".join(bytes(token.bytes or []) for token in choice.logprobs.content).decode(errors="replace") in (
        choice.message.content
    )
    with client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        events = list(stream)
    assert events[0].choices[0].delta.role == "assistant" and events[1].choices[0].delta.role is None
    assert "".join(e.choices[0].delta.content for e in events[:-1]) == choice.message.content
    assert events[-2].choices[0].finish_reason == choice.finish_reason and events[-1].usage == whole.usage
    # the same text as a completion of the same prompt
    text = "User: The reindeer\nAssistant:"
    plain = client.completions.create(model="small", prompt=text, max_tokens=20, temperature=0)
    assert plain.choices[0].text == choice.message.content
    several = client.chat.completions.create(**{**asked, "temperature": 1}, n=3)
    assert [c.index for c in several.choices] == [0, 1, 2]


def test_what_steers_an_answer(server):
    def ask(**more):
        status, _, found = server.fetch(
            "/v1/completions", {"prompt": "The", "max_tokens": 12, "temperature": 0, "return_token_ids": True, **more}
        )
        assert status == 200, found
        return found["choices"][0]

    plain = ask()["token_ids"]
    assert ask(logit_bias={str(plain[0]): -100})["token_ids"][0] != plain[0]
    assert ask(logit_bias={"7": 100})["token_ids"] == [7] * 12
    assert ask(logit_bias={"0": 100})["token_ids"] == [0]
    kept = ask(logit_bias={"0": 100}, min_tokens=5)
    assert len(kept["token_ids"]) == 6 and kept["token_ids"][5] == 0 and 0 not in kept["token_ids"][:5]
    stopped = ask(logit_bias={"7": 100}, stop_token_ids=[7])
    assert stopped["finish_reason"] == "stop" and stopped["token_ids"] == [7] and stopped["text"] == ""
    letter = server.served.tokenizer.decode([7])
    assert ask(logit_bias={"7": 100}, stop=letter, min_tokens=4)["text"] == letter * 4
    assert ask(min_p=1, temperature=5)["token_ids"] == plain  # the likeliest alone is left
    assert len(set(ask(repetition_penalty=100)["token_ids"])) == 12


@pytest.mark.parametrize(
    "change, word",
    [
        ({"messages": None}, "messages is null"),
        ({"messages": []}, "messages is []"),
        ({"messages": ["hi"]}, 'messages[0] is "hi"'),
        ({"messages": [{"content": "x"}]}, "messages[0].role is null"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is null"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 'content[0] is of type "image_url"'),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tools are not supported"),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"top_logprobs": 2}, "it needs logprobs"),
        ({"max_tokens": 500}, "the model's length is 160"),
        ({"messages": [{"role": "user", "content": "x" * 400}]}, "the model's length is 160"),
        ({"logit_bias": {"x": 1}}, 'token id "x"'),
        ({"logit_bias": {"300": 1}}, "0 to 299"),
        ({"logit_bias": {"00000000000000000000999999": 1}}, "0 to 299"),
        ({"logit_bias": {"3": 101}}, "-100 to 100"),
        ({"logit_bias": [1]}, "logit_bias is [1]"),
        ({"min_tokens": 9}, "min_tokens is 9"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "more than 0"),
        ({"stop_token_ids": [300]}, "stop_token_ids"),
        ({"model": "other"}, "is not here"),
    ],
)
def test_refusals(server, change, word):
    status, _, found = server.fetch("/v1/chat/completions", {"messages": ASK, "max_tokens": 4, **change})
    assert 400 <= status < 405 and word in found["error"]["message"], found


def test_templates_that_fail(model, tmp_path):
    for text, word in {
        "{{ raise_exception('no system') }}": "the chat template says: no system",
        "{{ messages[0].content + 1 }}": "cannot be filled in",
        "{{ 1 / 0 }}": "cannot be filled in",
        "": "makes no text",
    }.items():
        with pytest.raises(RequestError, match=word):
            parse_chat({"messages": ASK}, served_of(model.tokenizer, ChatTemplate(renderer(text, {}), text)))
    none = dataclasses.replace(served_of(model.tokenizer), chat=None, no_chat="chats need the package jinja2")
    with pytest.raises(RequestError, match="no chat is possible: chats need the package jinja2"):
        parse_chat({"messages": ASK}, none)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% for"}))
    with pytest.raises(Exception, match="the chat template is none"):
        template_of(str(tmp_path), model.tokenizer)
    assert template_of(str(tmp_path / ".."), model.tokenizer) is None and PLAIN.ends(model.tokenizer) == ()
