"""JSON of every shape: what is wrong with one value costs that value alone, and the key that may be meant is named."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_neo.dataprep.documents import Document
from gpt_neo.dataprep.readers import Bad
from gpt_neo.dataprep.values import Cutter, advice_on, text_of
from tests.dataprep.test_encodings import found_in, texts_in

BIG = "9" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
WRONG = [BIG, f'{{"text": "x", "id": {BIG}}}', DEEP, '{"text": "x"', '{"text": NaN}', "nul", '{"text": "\\q"}', '"a']


@pytest.mark.parametrize("wrong", WRONG, ids=lambda text: text[:20])
def test_a_wrong_line_costs_itself(tmp_path, wrong):
    lines = [json.dumps({"text": f"document {i}"}) for i in range(6)]
    lines.insert(2, wrong)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = found_in(tmp_path)
    assert [one.text for one in found if isinstance(one, Document)] == [f"document {i}" for i in range(6)]
    assert [one.number for one in found if isinstance(one, Bad)] == [3]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda text: text[:20])
def test_a_wrong_element_costs_itself(tmp_path, wrong, indent):
    texts = [f'document {i}, "quoted", [it] {{is}}' for i in range(6)]
    parts = [json.dumps({"text": text, "more": [1, {"a": "]"}]}, indent=indent) for text in texts]
    parts.insert(2, wrong)
    (tmp_path / "a.json").write_text("[\n" + ",\n".join(parts) + "\n]\n")
    found = found_in(tmp_path)
    assert [one.text for one in found if isinstance(one, Document)] == texts
    assert [one.number for one in found if isinstance(one, Bad)] == [3]


def test_objects_over_several_lines(tmp_path):
    one = json.dumps({"text": "line\nbreak", "meta": {"a": []}}, indent=2)
    for name, data in (
        ("a", one),
        ("b", one + "\n" + one),
        ("c", f"{one},\n{one}\n"),
        ("d", json.dumps({"text": "line\nbreak"})),
        ("e", '{"text": "line\\nbreak"}\n{"text": "line\\nbreak"}\n'),
        ("f", '["line\\nbreak"][{"text": "line\\nbreak"},]'),
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / "a.json").write_text(data)
        assert texts_in(tmp_path / "x") == ["line\nbreak"] * (1 if name in "ad" else 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\[]{},: \n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"]', max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(JSON, max_size=6), st.sampled_from([None, 0, 1]), st.integers(1, 9))
def test_elements_are_those_of_the_library(values, indent, size):
    data = json.dumps(values, indent=indent).encode()
    cutter, found = Cutter(), []
    for start in range(0, len(data), size):
        cutter.buffer += data[start : start + size]
        while (value := cutter.take()) is not None:
            found.append(json.loads(value))
    assert found == values and not cutter.inside and cutter.start is None


def test_texts_under_keys():
    chat = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}
    assert text_of(chat, "text") is None and text_of(chat, "messages") is None
    assert text_of(chat, "messages.content") == "hello\n\ngood day"
    assert text_of({"a": {"b": "x"}, "a.b": "y"}, "a.b") == "y" and text_of({"a": {"b": ["x", "y"]}}, "a.b") == "x\n\ny"
    assert text_of("x", "text") == "x" and text_of(["x", "y"], "text") == "x\n\ny"
    assert text_of({"text": []}, "text") == "" and text_of({"text": ["x", 1]}, "text") is None
    assert text_of({"a": 1}, "a.b") is None and text_of({"a": [{"b": "x"}, {}]}, "a.b") is None


@pytest.mark.parametrize(
    "record, key",
    [
        ({"id": "7", "content": "a long text"}, "content"),
        ({"text": None, "data": {"body": "a long text"}, "url": "http"}, "data.body"),
        ({"conversations": [{"from": "human", "value": "a long question"}]}, "conversations.value"),
        ({"messages": [{"role": "user", "content": "a long question"}]}, "messages.content"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages.content"),
        ({"id": "0-1-2-3", "conversations": [{"from": "human", "value": "hi"}]}, "conversations.value"),
        ({"instruction": "Do it.", "input": "", "output": "It is done.", "source": "a long name of it"}, "output"),
        ({"text": [{"type": "text", "text": "hi"}]}, "text.text"),
        ({"title": "a title"}, "title"),
        ({"meta": {"pile_set_name": "a very long name"}, "raw": ["p1", "p2"]}, "raw"),
    ],
)
def test_the_key_that_may_be_meant(record, key):
    assert f"--text_key {key!r} takes its longest text" in advice_on(record, "text")
    assert text_of(record, key)


def test_objects_without_any_text():
    assert advice_on({"n": 1, "m": None}, "text") == "its keys are 'n', 'm'" and advice_on({}, "text") == "it is empty"
    assert advice_on(3, "text") == "" and advice_on({str(i): i for i in range(99)}, "text").endswith("'7', ...")
