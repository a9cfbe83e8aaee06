"""What sampling prints: the text that the tokenizer makes of the whole, sample after sample."""

import os
import pty
import select
import sys
import types

import pytest

from gpt_neo.cli.options import SamplingOptions
from gpt_neo.cli.predict import answer, prompt_ids, read_prompt, sample_options
from gpt_neo.errors import DataError
from gpt_neo.sampling.batches import Token
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.conftest import ROOT
from tests.made_tokenizers import metaspace


@pytest.mark.parametrize("count", [1, 3])
def test_words_keep_their_spaces(tmp_path, capsys, count):
    tokenizer, prompt, end = Tokenizer("words", metaspace(), 0), "the reindeer", 0
    texts = [" had learned the herd", " to read", " learned"][:count]
    rows = [tokenizer.encode(prompt + text)[len(tokenizer.encode(prompt)) :] + [end] for text in texts]

    def generate(prompts, options, samples):
        assert prompts == [tokenizer.encode(prompt)] and samples == count
        for place in range(max(map(len, rows))):
            for sample in reversed(range(count)):  # the last ones are ahead
                if place < len(rows[sample]):
                    yield Token(0, sample, rows[sample][place], place + 1 == len(rows[sample]))

    sampler = types.SimpleNamespace(config=types.SimpleNamespace(n_ctx=100), generate=generate)
    options = SampleOptions(20, 1.0, 0, 1.0, 7, end, None, tokenizer.n_vocab)
    path = str(tmp_path / "predictions.txt")
    answer(sampler, tokenizer, prompt, tokenizer.encode(prompt), options, count, path)
    heads = ["sample"] if count == 1 else [f"sample {i + 1} of {count}" for i in range(count)]
    shown = "".join(f"--- {head}\n{prompt}{text}\n" for head, text in zip(heads, texts))
    assert capsys.readouterr().out.startswith(f"{shown}---\n{sum(map(len, rows))} tokens in ")
    with open(path, encoding="utf-8") as handle:
        assert handle.read() == "".join(f"=== sample {i + 1}, seed 7\n{prompt}{t}\n" for i, t in enumerate(texts))


@pytest.mark.parametrize("stop, shown", [((), ["and so on", "so and so"]), ((" on",), ["and so", "so and so"])])
def test_a_stop_string_ends_its_sample_alone(tmp_path, capsys, stop, shown):
    """And none of its text is shown, also where it comes in two tokens; a limit that does not fit is told."""
    tokenizer = train_tokenizer(["and so on so and so"], 258)
    tokenizer = Tokenizer("bytes", tokenizer, 0)
    rows = [tokenizer.encode(text) for text in ("and so on", "so and so")]

    def generate(prompts, options, samples):
        for place in range(9):
            for sample in range(2):
                yield Token(0, sample, rows[sample][place], place == 8)

    sampler = types.SimpleNamespace(config=types.SimpleNamespace(n_ctx=10), generate=generate)
    options = SampleOptions(20, 1.0, 0, 1.0, 7, 0, None, tokenizer.n_vocab)
    path = str(tmp_path / "out.txt")
    answer(sampler, tokenizer, "x", tokenizer.encode("x"), options, 2, path, whole=False, stop=stop)
    out = capsys.readouterr().out
    assert out.startswith("note      there is room for 9 new tokens, not for 20: n_ctx is 10\n")
    assert "".join(f"--- sample {i + 1} of 2\nx{text}\n" for i, text in enumerate(shown)) in out
    assert (tmp_path / "out.txt").read_text() == "".join(
        f"=== sample {i + 1}, seed 7\n{t}\n" for i, t in enumerate(shown)
    )


def test_every_flag_of_sampling_reaches_the_draws():
    given = SamplingOptions(max_tokens=3, temperature=0.5, top_k=4, top_p=0.6, min_p=0.2, seed=9, entmax_sampling=True)
    job = types.SimpleNamespace(run=types.SimpleNamespace(model=types.SimpleNamespace(entmax_alpha=1.5)))
    assert sample_options(job, given, 7, 100) == SampleOptions(3, 0.5, 4, 0.6, 9, 7, 1.5, 100, 0.2)


def test_an_empty_prompt_is_the_end_of_a_text():
    tokenizer = load_tokenizer()
    assert read_prompt("") == "" and prompt_ids(tokenizer, "", False, 50256) == [50256]
    with pytest.raises(DataError, match="no end-of-text token"):
        prompt_ids(tokenizer, "", False, None)


def test_special_tokens_are_typed_where_that_is_asked_for(world):
    for tokenizer, end in ((load_tokenizer(), 50256), (load_tokenizer(world.tokenizer), 0)):
        typed = "the end<|endoftext|>a new one"
        assert prompt_ids(tokenizer, typed, True, end) == [
            *tokenizer.encode("the end"),
            end,
            *tokenizer.encode("a new one"),
        ]
        assert prompt_ids(tokenizer, typed, False, end) == tokenizer.encode(typed) and end not in tokenizer.encode(
            typed
        )


def test_a_terminal_shows_what_it_asks_before_the_answer():
    """Also where what native code writes is passed on by lines."""
    code = (
        "from gpt_neo.cli.predict import read_interactive\nfrom gpt_neo.cli.quiet import filter_native_stderr\n"
        "filter_native_stderr()\nprint(read_interactive(), flush=True)\nprint(read_interactive(), flush=True)"
    )
    process, terminal = pty.fork()
    if not process:
        os.execve(sys.executable, [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": ROOT})
    shown = b""
    again = b"asked\r\nasked\r\n\r\nprompt> "
    for awaited, typed in ((b"prompt> ", b"asked\n"), (again, b"\x04"), (again + b"\r\nNone\r\n", b"")):
        while awaited not in shown:
            assert select.select([terminal], [], [], 60)[0], shown
            shown += os.read(terminal, 1000)
        os.write(terminal, typed)
    assert os.waitpid(process, 0)[1] == 0
    os.close(terminal)
