"""Chat templates: the text is that of transformers; where a turn ends."""

import json

import pytest

from gpt_neo.dataprep.templates import PLAIN, renderer, special_tokens, template_of
from gpt_neo.tokenizer import Tokenizer, load_tokenizer
from tests.dataprep.test_dialogs import CHAT

# In the manner of ChatML, Llama 2, Mistral and Llama 3.
TEMPLATES = {
    "<|im_end|>": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "<|endoftext|>": "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
    "{% if m.role == 'user' %}[INST] {{ (first ~ ' ' if loop.first and first is defined else '') ~ m.content }} [/INST]"
    "{% else %}{{ ' ' ~ m.content | trim ~ ' ' ~ eos_token }}{% endif %}{% endfor %}",
    "<|end|>": "{%- if tools is not none %}{{ raise_exception('tools') }}{%- endif %}{{ strftime_now('%Y') }}\n"
    "  {%- for m in messages %}\n    {{- m | tojson(indent=1) }}<|end|>"
    "{%- if loop.index > 50 %}{%- break %}{%- endif %}"
    "  {%- endfor %}\n{%- if add_generation_prompt and not documents %}<|assistant|>{% endif %}",
    None: "{% for m in messages %}### {{ m.role.title() }}:\n{{ m.content }}\n\n{% endfor %}",
}
NAMES = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|assistant|>"]


@pytest.fixture(scope="module")
def tokenizer(world):
    transformers = pytest.importorskip("transformers")
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_file=world.tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    made.add_special_tokens({"additional_special_tokens": NAMES})
    return made


@pytest.mark.parametrize("end", TEMPLATES)
@pytest.mark.parametrize("listed", [False, True])
def test_the_text_is_that_of_transformers(tokenizer, tmp_path, end, listed):
    tokenizer.chat_template = TEMPLATES[end]
    tokenizer.save_pretrained(tmp_path)
    if listed:  # inside tokenizer_config.json, several by name, as older versions saved them
        (tmp_path / "chat_template.jinja").unlink()
        about = json.loads((tmp_path / "tokenizer_config.json").read_text())
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATES[end]}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**about, "chat_template": named}))
    ours = load_tokenizer(str(tmp_path / "tokenizer.json"), eos_id=tokenizer.eos_token_id)
    template = template_of(str(tmp_path), ours)
    for messages, answer in ((CHAT[:4], True), (CHAT, False), (CHAT[1:2], True)):
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        assert template.render(messages, answer) == theirs
    assert template.ends(ours) == (() if end is None else (tokenizer.convert_tokens_to_ids(end),))
    assert ours.encode_special(theirs) == tokenizer(theirs, add_special_tokens=False)["input_ids"]


def test_lines_of_blocks_leave_nothing(tokenizer):
    lines = [
        "{% if messages %}",
        "  {% for m in messages %}",
        "    {{ m.content }}",
        "    {# none #}",
        "  {% endfor %}",
    ]
    source = "\n".join([*lines, "{% endif %}\n"])
    tokenizer.chat_template = source
    theirs = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert renderer(source, {})(CHAT, False) == theirs == "".join(f"    {m['content']}\n" for m in CHAT)


@pytest.mark.parametrize(
    "about, wanted",
    [
        ({}, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
        ({"bos_token": "<s>"}, {"bos_token": "<s>"}),  # a file that names one has no other
        ({"eos_token": {"content": "</s>"}, "bos_token": None}, {"eos_token": "</s>"}),
        ({"pad_token": "<p>"}, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<p>"}),
    ],
    ids=str,
)
def test_tokens_that_files_name(world, about, wanted):
    assert special_tokens(about, load_tokenizer(world.tokenizer)) == wanted


@pytest.mark.parametrize("given", ["", "separators=(',', ':')", "sort_keys=True", "ensure_ascii=True", "True, 2"])
def test_json_is_that_of_transformers(tokenizer, given):
    source = "{% for m in messages %}{{ m | tojson(" + given + ") }}{% endfor %}"
    tokenizer.chat_template = source
    messages = [{"role": "user", "content": "na\u00efve", "a": [1, {"c": 2, "b": 3}]}]
    theirs = tokenizer.apply_chat_template(messages, tokenize=False)
    assert renderer(source, {})(messages, False) == theirs


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json", "nowhere"])
def test_the_names_of_special_tokens(tokenizer, tmp_path, where):
    """As transformers finds them: in either file, or, as the class of GPT-2 has it, the end of text is both."""
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    backend = tokenizer.backend_tokenizer
    backend.save(str(tmp_path / "tokenizer.json"))
    end = "<|endoftext|>"
    names = {"bos_token": end, "eos_token": {"content": end}} if where == "tokenizer_config.json" else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, **names}))
    if where == "special_tokens_map.json":
        (tmp_path / where).write_text(json.dumps({"bos_token": end, "eos_token": end}))
    ours = load_tokenizer(str(tmp_path / "tokenizer.json"))
    template = template_of(str(tmp_path), ours)
    assert template.render([{"role": "user", "content": "hi"}], False) == f"{end}hi{end}"
    assert template.ends(ours) == (ours.eos_id,)


def test_the_plain_form_ends_at_no_token(world):
    assert isinstance(load_tokenizer(world.tokenizer), Tokenizer) and PLAIN.ends(load_tokenizer(world.tokenizer)) == ()
