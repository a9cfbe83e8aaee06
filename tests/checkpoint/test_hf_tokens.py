"""Which id ends a text of a Hugging Face folder: found where it is written, and never made up."""

import dataclasses
import itertools
import json
import os
from types import SimpleNamespace

import pytest
from tokenizers.processors import TemplateProcessing

from gpt_neo.checkpoint.convert import export_hf, export_tokenizer, import_hf
from gpt_neo.checkpoint.hf_tokens import copy_tokenizer, special_ids
from gpt_neo.config import load_config
from gpt_neo.errors import CheckpointError
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.tokenizer import load_tokenizer
from tests.checkpoint.peers import make_peer, save_peer

FAST = {"added_tokens": [{"id": 7, "content": "<end>"}], "model": {"vocab": {"a": 2, "</s>": 3}}}
CASES = [  # (files, eos_id, file that the note names)
    ({"config.json": {"eos_token_id": 5}, "generation_config.json": {"eos_token_id": 5}}, 5, None),
    ({"config.json": {"eos_token_id": [50256, 4]}}, 4, None),
    ({"generation_config.json": {"eos_token_id": 6}, "tokenizer_config.json": {"eos_token": "<end>"}}, 6, "generation"),
    ({"config.json": {"eos_token_id": 99}, "generation_config.json": {"eos_token_id": [9, 60]}}, 9, "generation"),
    ({"tokenizer_config.json": {"eos_token": "<end>"}, "tokenizer.json": FAST}, 7, "tokenizer_config"),
    ({"tokenizer_config.json": {"eos_token": {"content": "</s>"}}, "tokenizer.json": FAST}, 3, "tokenizer_config"),
    ({"special_tokens_map.json": {"eos_token": "</s>"}, "vocab.json": {"</s>": 2}}, 2, "special_tokens_map"),
    (
        {"tokenizer_config.json": {"eos_token": "</s>", "added_tokens_decoder": {"8": {"content": "</s>"}}}},
        8,
        "tokenizer_config",
    ),
    ({"special_tokens_map.json": {"eos_token": "<e>"}, "added_tokens.json": {"<e>": 1}}, 1, "special_tokens_map"),
    ({"tokenizer_config.json": {"eos_token": None}, "tokenizer.json": FAST}, None, None),
    ({"tokenizer_config.json": {"eos_token": "<other>"}, "tokenizer.json": FAST}, None, None),
    ({"config.json": {"eos_token_id": -1}}, None, None),
    ({"config.json": {"eos_token_id": True}}, None, None),
    ({}, None, None),
]


@pytest.mark.parametrize("files, eos, named", CASES, ids=range(len(CASES)))
def test_the_end_of_text_is_found(files, eos, named, tmp_path):
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    keys, notes = special_ids(str(tmp_path), files.get("config.json", {}), 10)
    assert keys == {"eos_id": eos}
    if eos is None:
        assert notes == ["no file names an id that ends a text: samples end at max_tokens, or at --set eos_id=ID"]
    else:
        assert notes == ([f"end of text: id {eos}, from {named}.json, as config.json names none"] if named else []) or (
            notes == [f"end of text: id {eos}, from {named}_config.json, as config.json names none"]
        )


@pytest.mark.parametrize("padding, kept", [(-1, None), (10, None), (50257, None), (0, 0), (9, 9), (None, None)])
def test_padding_ids_are_ids_of_the_model(padding, kept, tmp_path):
    keys, notes = special_ids(str(tmp_path), {"eos_token_id": 1, "pad_token_id": padding}, 10)
    assert keys.get("padding_id") == kept
    left_out = kept is None and padding is not None
    assert notes == ([f"pad_token_id {padding} is no id of the 10 that the model has: left out"] if left_out else [])


def test_how_transformers_would_draw_is_told(tmp_path):
    """Nothing of it is taken; what is as by default is not worth a line."""
    path = tmp_path / "generation_config.json"
    idle = {
        "temperature": 1.0,
        "top_k": 50,
        "do_sample": False,
        "max_length": 20,
        "suppress_tokens": None,
        "top_p": None,
        "use_cache": True,
    }
    path.write_text(json.dumps(idle), encoding="utf-8")
    assert special_ids(str(tmp_path), {"eos_token_id": 3}, 10) == ({"eos_id": 3}, [])
    path.write_text(
        json.dumps({**idle, "do_sample": True, "temperature": 0.7, "suppress_tokens": [5, 6]}), encoding="utf-8"
    )
    assert special_ids(str(tmp_path), {"eos_token_id": 3}, 10)[1] == [
        "generation_config.json has do_sample true, temperature 0.7, suppress_tokens [5, 6], by which transformers "
        "draws: here flags and requests say how"
    ]


def test_of_several_ends_the_first_is_taken(tmp_path):
    keys, notes = special_ids(str(tmp_path), {"eos_token_id": [3, 50256, 5]}, 10)
    assert keys == {"eos_id": 3} and notes == ["id 5 of config.json ends a text too; 3 alone is taken (eos_id)"]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 7, 8]}')
    keys, notes = special_ids(str(tmp_path), {"eos_token_id": 3}, 10)
    assert keys == {"eos_id": 3}
    assert notes == ["ids 7, 8 of generation_config.json end a text too; 3 alone is taken (eos_id)"]


GPT2 = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
FLAGGED = {"content": "<|sep|>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
TYPED = ["the end <|sep|> of", "an end<|pad|>", "a  <|x|> b", "<|endoftext|>x", " the"]
BESIDE = {  # what stands beside a tokenizer of 300 ids
    "nothing": {},
    "tokens with ids": {"added_tokens.json": {"<|pad|>": 300, "<|sep|>": 301}, "tokenizer_config.json": GPT2},
    "one of them special": {
        "added_tokens.json": {"<|pad|>": 300, "<|sep|>": 301},
        "tokenizer_config.json": {**GPT2, "pad_token": "<|pad|>"},
    },
    "tokens with flags": {
        "tokenizer_config.json": {**GPT2, "added_tokens_decoder": {"300": {**FLAGGED, "special": True}}}
    },
    "a name of one that is listed as plain": {
        "tokenizer_config.json": {
            **GPT2,
            "pad_token": "<|pad|>",
            "added_tokens_decoder": {"300": {"content": "<|pad|>", "special": False}},
        }
    },
    "a name alone": {"tokenizer_config.json": {**GPT2, "pad_token": "<|pad|>"}},
    "more names": {"tokenizer_config.json": {**GPT2, "additional_special_tokens": ["<|sep|>"]}},
    "an older map": {"special_tokens_map.json": {"mask_token": FLAGGED}, "tokenizer_config.json": GPT2},
    "a space before": {"tokenizer_config.json": {**GPT2, "add_prefix_space": True}},
    "a space before, of a class that takes tokenizer.json as it is": {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}
    },
}


@pytest.mark.parametrize(
    "form, beside", [*itertools.product(["tokenizer.json", "vocab.json"], BESIDE)][:-1]
)  # that class reads no vocab.json
def test_tokenizers_are_those_of_transformers(tmp_path, world, form, beside):
    transformers = pytest.importorskip("transformers")
    source, made = tmp_path / "hf", tmp_path / "run"
    source.mkdir()
    made.mkdir()
    if form == "tokenizer.json":
        (source / form).write_bytes(open(world.tokenizer, "rb").read())
    else:
        load_tokenizer(world.tokenizer).backend.model.save(str(source))
    for name, value in {"config.json": {"model_type": "gpt_neo"}, **BESIDE[beside]}.items():
        (source / name).write_text(json.dumps(value))
    assert copy_tokenizer(str(source), str(made), 304) == []
    ours = load_tokenizer(str(made / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(str(source))
    assert [ours.encode_special(text) for text in TYPED] == [theirs(text)["input_ids"] for text in TYPED]
    theirs.backend_tokenizer.encode_special_tokens = True
    assert [ours.encode(text) for text in TYPED] == [theirs.backend_tokenizer.encode(text).ids for text in TYPED]
    assert ours.n_vocab == len(theirs)


DAMAGED = {  # file: what it holds
    "merges.txt": ["a b c\n", "#version: 0.2\nzz qq\n"],
    "vocab.json": ["{", "[1]", '{"a": "x"}', '{"a": -1}'],
    "tokenizer.json": ["{", "[]", "null"],
    "tokenizer_config.json": [
        *("5", '{"added_tokens_decoder": 5}', '{"added_tokens_decoder": {"x": {}}}', '{"pad_token": 5}'),
        *('{"added_tokens_decoder": {"300": {"content": 5}}}', '{"pad_token": {"x": 1}}'),
        *('{"additional_special_tokens": 5}', '{"added_tokens_decoder": {"1e9": {"content": "x"}}}'),
    ],
    "added_tokens.json": ["5", '{"a": "x"}', '{"a": null}', '{"a": [1]}', '{"<|far|>": 1000}'],
}


@pytest.mark.parametrize("name, text", [(name, text) for name, texts in DAMAGED.items() for text in texts])
def test_damaged_tokenizer_files_are_one_line(tmp_path, world, name, text):
    load_tokenizer(world.tokenizer).backend.model.save(str(tmp_path))
    (tmp_path / name).write_text(text)
    (tmp_path / "made").mkdir()
    with pytest.raises(CheckpointError) as told:
        copy_tokenizer(str(tmp_path), str(tmp_path / "made"), 304)
    assert str(tmp_path) in str(told.value) and "\n" not in str(told.value) and "made" not in str(told.value)


def test_what_of_a_tokenizer_is_left_out_is_said(tmp_path, world):
    (tmp_path / "tokenizer.json").write_bytes(open(world.tokenizer, "rb").read())
    about = {**GPT2, "pad_token": "<|pad|>", "extra_special_tokens": {"a": "<|sep|>"}, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    (tmp_path / "made").mkdir()
    notes = copy_tokenizer(str(tmp_path), str(tmp_path / "made"), 301)
    assert notes == [
        "tokens without a row in the model's table, left out: '<|sep|>'",
        "add_bos_token of tokenizer_config.json is left out: here texts begin as they are",
    ]
    assert load_tokenizer(str(tmp_path / "made")).n_vocab == 301


def test_tokens_around_each_text_are_left_out_and_said(tmp_path, world):
    """As Llama's tokenizer.json has them: not in tokenizer_config.json, but in its post-processor."""
    backend = load_tokenizer(world.tokenizer).backend
    end = "<|endoftext|>"
    backend.post_processor = TemplateProcessing(f"{end} $A", None, [(end, backend.token_to_id(end))])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "made").mkdir()
    assert copy_tokenizer(str(tmp_path), str(tmp_path / "made"), 300) == [
        "the tokens that tokenizer.json puts around each text are left out: here texts are as they are"
    ]


@pytest.mark.parametrize("end", ["\n", "<|endoftext|>"])
def test_a_newline_that_ends_texts_stays_text_in_transformers(tmp_path, world, end):
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(world.tokenizer)
    eos = ours.backend.token_to_id("Ċ" if end == "\n" else end)
    run = SimpleNamespace(model=SimpleNamespace(n_vocab=300, n_ctx=32, eos_id=eos), datasets=[])
    export_tokenizer(str(tmp_path), "", run, world.tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = "a\n\n  b\n"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text), skip_special_tokens=True) == text
    assert theirs.eos_token == (None if end == "\n" else end)


def test_the_chat_template_of_a_run_is_exported(tmp_path, world):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "run").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "run" / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    run = SimpleNamespace(model=SimpleNamespace(n_vocab=300, n_ctx=32, eos_id=0), datasets=[])
    export_tokenizer(str(tmp_path / "out"), str(tmp_path / "run"), run, world.tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert theirs.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "[a]"


@pytest.fixture
def endless(tmp_path, world):
    """An imported model that ends at no id, and its source."""
    model = make_peer("gpt_neo")
    source = save_peer(model, tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "hf" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None, "pad_token_id": -1}))
    return source, import_hf(source, str(tmp_path / "run"))


def test_a_model_that_ends_at_no_id(endless, tmp_path, world):
    transformers = pytest.importorskip("transformers")
    source, made = endless
    told = ["no file names an id ", "pad_token_id -1 is n", "no tokenizer came al"]
    assert [note[:20] for note in made.notes] == told
    run = load_config(str(tmp_path / "run" / "config.json"))
    assert run.model.eos_id is None and dataclasses.replace(made, source=run.source, name=run.name) == run
    # samples go on, whatever is drawn; what was the end of text before is text
    (tmp_path / "run" / "tokenizer.json").write_bytes(open(world.tokenizer, "rb").read())
    tokenizer, eos = run_tokenizer(run, str(tmp_path / "run"))
    assert eos is None and len(tokenizer.decode([2, 3])) == 2
    sampler = Sampler(run.model, str(tmp_path / "run" / "model.ckpt-0"), 1)
    drawn = [token.token for token in sampler.generate([[1, 2]], SampleOptions(300, 1.0, seed=1, eos_id=eos))]
    assert len(drawn) == 300 and 1 in drawn[:-1]
    # and back: no id is made up on the way out
    export_hf(run, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "out"), tokenizer=world.tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    assert theirs.config.eos_token_id is theirs.config.bos_token_id is theirs.generation_config.eos_token_id is None
    assert transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out")).eos_token is None
    again = import_hf(str(tmp_path / "out"), str(tmp_path / "again"))
    assert again.model == run.model
    with pytest.raises(CheckpointError, match="has 300 ids, the model 96"):  # the one in the folder, which nobody named
        export_hf(run, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "own"), custom_code=True)
    os.remove(tmp_path / "run" / "tokenizer.json")
    export_hf(run, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "own"), custom_code=True)
    assert import_hf(str(tmp_path / "own"), str(tmp_path / "back")).model == run.model
