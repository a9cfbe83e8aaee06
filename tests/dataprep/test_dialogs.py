"""Prompts and chats as masked records, token by token against transformers; older records keep their bytes."""

import gzip
import json
import os

import numpy as np
import pytest

from gpt_neo.dataprep.dialogs import (
    Dialog,
    DialogEncoder,
    are_dialogs,
    count_dialogs,
    encoder,
    first_keys,
    packed,
    read_dialogs,
    write_dialogs,
)
from gpt_neo.dataprep.records import MASK, encode_example, has_mask, parse_example, read_frames
from gpt_neo.dataprep.templates import renderer, template_of
from gpt_neo.errors import DataError
from gpt_neo.mtf_compat import tf
from gpt_neo.tokenizer import load_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Short answers."},
    {"role": "user", "content": "What is a list?"},
    {"role": "assistant", "content": "A row of values."},
    {"role": "user", "content": "And a tuple?"},
    {"role": "assistant", "content": "One that stays as it is."},
]
LINES = [{"prompt": f"What is {i}? ", "completion": f"It is the number {i}."} for i in range(9)]


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """A tokenizer with a chat template, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    made = transformers.PreTrainedTokenizerFast(tokenizer_file=world.tokenizer, eos_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]})
    made.chat_template = TEMPLATE
    place = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(place)
    return str(place)


def write_lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return [str(path)]


def test_a_chat_equals_transformers(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.json"))
    ours = encoder(tokenizer, 0, template_of(folder, tokenizer).render)({"messages": CHAT})
    assert ours.ids == theirs["input_ids"] and ours.mask == theirs["assistant_masks"]
    assert sum(ours.mask) > 10 and ours.mask[-1] == 0, "the line end after the turn is no answer"


def test_a_prompt_equals_transformers(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.json"))
    ours = encoder(tokenizer, 0)(LINES[3])
    before, answer = (theirs(LINES[3][key])["input_ids"] for key in ("prompt", "completion"))
    assert ours.ids == [*before, *answer, theirs.eos_token_id]
    assert ours.mask == [0] * len(before) + [1] * (len(answer) + 1)


def test_templates_without_marks(world):
    tokenizer = load_tokenizer(world.tokenizer)
    render = renderer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", {})
    chat = encoder(tokenizer, 0, render)
    made = chat({"messages": CHAT[1:3]})
    text = tokenizer.decode(t for t, m in zip(made.ids, made.mask) if m)
    assert text.endswith("A row of values.\n") and made.ids[-1] == 0 and made.mask[-1] == 1, (
        "an end of text is put there"
    )
    newline = tokenizer.encode("\n")[0]  # which ends both the turn and the text
    lines = encoder(load_tokenizer(world.tokenizer, eos_id=newline), newline, render)({"messages": CHAT[1:3]})
    assert (lines.ids, lines.mask) == (made.ids[:-1], made.mask[:-1])
    with pytest.raises(DataError, match="no message has the role 'assistant'"):
        chat({"messages": CHAT[:2]})
    turning = renderer("{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}", {})
    with pytest.raises(DataError, match="changes what stands before message 2"):
        encoder(tokenizer, 0, turning)({"messages": CHAT})
    with pytest.raises(DataError, match="the chat template says: no system"):
        renderer("{{ raise_exception('no system') }}", {})(CHAT, False)
    with pytest.raises(DataError, match="no chat template"):
        encoder(tokenizer, 0)({"messages": CHAT})


def test_where_a_turn_ends(folder):
    """At the last special token behind the answer; where there is none, all of the answer counts."""
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.json"))

    def shown(template, chat=CHAT[1:]):
        made = encoder(tokenizer, 0, renderer(template, {}))({"messages": chat})
        assert made.ids[: -1 if made.ids[-1] == 0 else None] == tokenizer.encode_special(
            renderer(template, {})(chat, False)
        )
        names = [tokenizer.backend.decode([t], skip_special_tokens=False) for t, m in zip(made.ids, made.mask) if m]
        return "".join(names)

    turn = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    first, second = CHAT[2]["content"], CHAT[4]["content"]
    # a role that no prompt begins, and no end of a turn: an end of text stands behind the last one alone
    assert shown(turn + "\n{% endfor %}") == f"<|assistant|>{first}\n<|assistant|>{second}\n<|endoftext|>"
    begun = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    assert shown(turn + "\n{% endfor %}" + begun) == f"{first}\n{second}\n<|endoftext|>"
    assert shown(turn + "<|end|>\n{% endfor %}" + begun) == f"{first}<|end|>{second}<|end|>"
    made = encoder(tokenizer, 0, renderer(turn + "<|end|>{% endfor %}", {}))({"messages": CHAT[:4]})
    text = renderer(turn + "<|end|>{% endfor %}", {})(CHAT[:4], False)
    assert made.ids == tokenizer.encode_special(text) and made.mask[-1] == 0  # what nobody has answered stands there
    thought = [*CHAT[1:4], {"role": "assistant", "content": "<|system|>A list.<|user|> One that stays."}]
    assert shown(turn + "<|end|>\n{% endfor %}" + begun, thought).endswith(
        "<|system|>A list.<|user|> One that stays.<|end|>"
    )


def test_what_fits_exactly_is_packed_together():
    dialogs = [Dialog([1] * 5, [1] * 5), Dialog([2] * 3, [0, 1, 1]), Dialog([3] * 8, [1] * 8), Dialog([4], [1])]
    assert [record.ids for record in packed(dialogs, 8, 0)] == [[1] * 5 + [2] * 3, [3] * 8, [4] + [0] * 7]


def test_tools_and_contents_equal_transformers(folder):
    """Null stands for no key, and tools go to the template: it never writes the word None, nor a list in brackets."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = "{% if tools %}{{ tools | tojson }}<|end|>{% endif %}" + TEMPLATE.replace(
        "{{ message['content'] }}",
        "{{ message['content'] }}{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}",
    )
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.json"))
    encode = encoder(tokenizer, 0, renderer(theirs.chat_template, {}))
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    chat = [CHAT[1], called, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "It is 3."}]
    found = theirs.apply_chat_template(chat, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    ours = encode({"messages": chat, "tools": tools})
    assert (ours.ids, ours.mask) == (found["input_ids"], found["assistant_masks"])
    assert "None" not in tokenizer.decode(ours.ids)
    parts = [{**m, "content": [{"type": "text", "text": part} for part in (m["content"], "More.")]} for m in CHAT]
    joined = [{**m, "content": m["content"] + "\nMore."} for m in CHAT]
    assert encode({"messages": parts}) == encode({"messages": joined})


@pytest.mark.parametrize(
    "change, word",
    [
        ({"content": None}, "the content of message 2 is no text"),
        ({"content": 5}, "the content of message 2 is no text"),
        ({"content": [{"type": "image_url"}]}, "message 2 has parts that are no text"),
        ({"content": ["a"]}, "message 2 has parts that are no text"),
        ({"role": None}, "message 2 is no object with a role"),
    ],
)
def test_messages_that_are_none(folder, tmp_path, change, word):
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.json"))
    encode = encoder(tokenizer, 0, template_of(folder, tokenizer).render)
    broken = {"messages": [*CHAT[:2], {**CHAT[2], **change}]}
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{word}"):
        list(read_dialogs(write_lines(tmp_path / "a.jsonl", [{"messages": CHAT}, broken]), encode))
    with pytest.raises(DataError, match="'tools' has to be a list of objects"):
        encode({"messages": CHAT, "tools": "add"})


def test_workers_give_the_dialogs_in_their_order_and_few_are_held(folder, tmp_path):
    """As this process alone gives them; what is not wanted is not made, and a mistake names its line."""
    chats = [{"messages": [CHAT[1], {"role": "assistant", "content": f"Number {i}."}]} for i in range(700)]
    inputs = write_lines(tmp_path / "a.jsonl", chats)
    encode = DialogEncoder(os.path.join(folder, "tokenizer.json"), 0, folder, None)
    alone = list(read_dialogs(inputs, encode))
    assert count_dialogs(inputs) == len(alone) == 700 and len({tuple(dialog.ids) for dialog in alone}) == 700
    odd = read_dialogs(inputs, encode, lambda number: number % 2 == 1, processes=2)
    assert list(odd) == alone[1::2]
    read = []
    some = read_dialogs(inputs, lambda value: read.append(value) or encode(value))
    assert [next(some) for _ in range(3)] == alone[:3] and len(read) < 300, "they come as they are made"
    broken = write_lines(tmp_path / "b.jsonl", [*chats[:100], {"messages": []}])
    with pytest.raises(DataError, match=r"b\.jsonl:101: no message has the role 'assistant'"):
        list(read_dialogs(broken, encode, processes=2))


def test_chats_of_sharegpt_are_those_with_messages(folder, tmp_path):
    """Under other words; a speaker that nobody knows is the template's to take or to refuse."""
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.json"))
    encode = encoder(tokenizer, 0, template_of(folder, tokenizer).render)
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    said = [{"from": names[message["role"]], "value": message["content"]} for message in CHAT]
    assert encode({"conversations": said}) == encode({"messages": CHAT}) == encode({"conversations": CHAT})
    assert CHAT[0]["role"] == "system"
    assert encode({"system": CHAT[0]["content"], "conversations": said[1:]}) == encode({"messages": CHAT})
    inputs = write_lines(tmp_path / "a.jsonl", [{"conversations": said}, {"conversations": [{"from": "gpt"}]}])
    assert first_keys(inputs, "text") == ("conversations",)
    with pytest.raises(DataError, match=r"a\.jsonl:2: is no prompt and completion, and no messages"):
        list(read_dialogs(inputs, encode))
    with pytest.raises(
        DataError, match=r"b\.jsonl:1: is no text, .*: its keys are 'instruction', 'output'; expected '"
    ):
        first_keys(write_lines(tmp_path / "b.jsonl", [{"instruction": "a", "output": "b"}]), "text")
    assert first_keys(write_lines(tmp_path / "c.jsonl", [{"a": {"b": "text"}}]), "a.b") is None


def test_what_files_hold(world, tmp_path):
    tokenizer = load_tokenizer(world.tokenizer)
    inputs = write_lines(tmp_path / "a.jsonl", LINES)
    assert are_dialogs(inputs, "text") and len(list(read_dialogs(inputs, encoder(tokenizer, 0)))) == 9
    packed_file = tmp_path / "b.jsonl.gz"
    packed_file.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert len(list(read_dialogs([str(packed_file)], encoder(tokenizer, 0)))) == 9
    alike = list(read_dialogs(inputs, encoder(tokenizer, 0)))
    values = [json.loads(line) for line in (tmp_path / "a.jsonl").read_bytes().splitlines()]
    for name, text, encoding in (
        ("array.json", json.dumps(values, indent=1), "utf-8"),
        ("wide.jsonl", "\n".join(map(json.dumps, values)), "utf-16"),
    ):
        (tmp_path / name).write_text(text, encoding=encoding)
        assert are_dialogs([str(tmp_path / name)], "text")
        assert list(read_dialogs([str(tmp_path / name)], encoder(tokenizer, 0))) == alike
    (tmp_path / "e.json").write_text(json.dumps([values[0], {"prompt": "alone"}]))
    with pytest.raises(DataError, match=r"e\.json, element 2: is no prompt and completion"):
        list(read_dialogs([str(tmp_path / "e.json")], encoder(tokenizer, 0)))
    assert not are_dialogs(write_lines(tmp_path / "c.jsonl", [{"text": "plain", "messages": []}]), "text")
    assert not are_dialogs([os.path.dirname(world.records) + "/texts"], "text")
    broken = write_lines(tmp_path / "d.jsonl", [LINES[0], {"prompt": "alone"}])
    with pytest.raises(DataError, match=r"d\.jsonl:2: is no prompt and completion"):
        list(read_dialogs(broken, encoder(tokenizer, 0)))
    (tmp_path / "note.txt").write_text("text")
    with pytest.raises(
        DataError, match=r"note\.txt: prompts and chats are read from \.jsonl, \.json and \.parquet files"
    ):
        list(read_dialogs([*inputs, str(tmp_path / "note.txt")], encoder(tokenizer, 0)))


def test_rows_of_parquet_are_what_lines_are(folder, tmp_path):
    """Null where JSON has no key: columns are the same for every row, and keys of messages for each of them."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = [
        {"messages": CHAT},
        {"messages": [*CHAT[:2], {"role": "assistant", "content": "x", "name": "bot"}]},
        LINES[0],
    ]
    parquet.write_table(
        pyarrow.Table.from_pylist([{**lines[0], "prompt": None, "completion": None}, *lines[1:]]),
        tmp_path / "a.parquet",
        row_group_size=2,
    )
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.json"))
    seen, encode = [], encoder(tokenizer, 0, template_of(folder, tokenizer).render)
    found = list(read_dialogs([str(tmp_path)], lambda value: seen.append(value) or encode(value)))
    assert seen == lines and are_dialogs([str(tmp_path)], "text")
    assert found == list(read_dialogs(write_lines(tmp_path.parent / "same.jsonl", lines), encode))
    parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": [{"role": "user", "content": "x"}]}]), tmp_path / "b.parquet"
    )
    with pytest.raises(DataError, match=r"b\.parquet, row 1: no message has the role 'assistant'"):
        list(read_dialogs([str(tmp_path)], encode))
    parquet.write_table(
        pyarrow.Table.from_pylist([{"text": "x", "prompt": "y", "completion": "z"}]), tmp_path / "0.parquet"
    )
    assert not are_dialogs([str(tmp_path)], "text")
    (tmp_path / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"0\.parquet: cannot be read: "):
        are_dialogs([str(tmp_path)], "text")


@pytest.mark.parametrize("length", [4, 7, 30, 100])
def test_packing_keeps_every_answer_as_a_label_once(length):
    random = np.random.RandomState(length)
    dialogs = []
    for i in range(20):
        size, before = random.randint(2, 25), random.randint(1, 4)
        dialogs.append(Dialog([1000 * (i + 1) + t for t in range(size)], [0] * before + [1] * max(0, size - before)))
        dialogs[-1] = Dialog(dialogs[-1].ids, dialogs[-1].mask[:size])
    records = list(packed(dialogs, length, 5))
    assert {len(r.ids) for r in records} == {len(r.mask) for r in records} == {length}
    labels = [token for r in records for token, answer in zip(r.ids[1:], r.mask[1:]) if answer]
    assert labels == [token for d in dialogs for token, answer in zip(d.ids, d.mask) if answer]
    assert all(m == 0 for r in records for t, m in zip(r.ids, r.mask) if t == 5), "padding is no answer"


def test_a_mask_stands_beside_the_tokens(tmp_path):
    assert encode_example([1, 300, 2]) == tf.train.Example(
        features=tf.train.Features(feature={"text": tf.train.Feature(int64_list=tf.train.Int64List(value=[1, 300, 2]))})
    ).SerializeToString(deterministic=True), "without one, the bytes are as they were"
    data = encode_example([1, 300, 2], [0, 1, 1])
    read = tf.train.Example.FromString(data).features.feature
    assert list(read["text"].int64_list.value) == [1, 300, 2] and list(read["mask"].int64_list.value) == [0, 1, 1]
    assert parse_example(data).tolist() == [1, 300, 2] and parse_example(data, MASK).tolist() == [0, 1, 1]
    assert has_mask(data) and not has_mask(encode_example([1, 2]))
    assert write_dialogs(str(tmp_path), "d", [Dialog([1, 2], [0, 1])]) == 1
    ((_, written),) = read_frames(str(tmp_path / "d_0_1.tfrecords"))
    assert parse_example(written, MASK).tolist() == [0, 1]
