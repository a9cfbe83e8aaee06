"""From tokens to text: half characters, stop strings over several tokens, tokenizers that are not of bytes."""

import types

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from gpt_neo.evaluation.generation import Prompt, generate
from gpt_neo.sampling.batches import BatchSampler
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.serving.answers import prompt_offsets
from gpt_neo.serving.detokenizer import Detokenizer, Scored
from gpt_neo.tokenizer import Tokenizer, train_tokenizer

BYTES = Tokenizer("bytes", train_tokenizer(["naïve 小さな ½"], 258), 0)


def write(tokenizer, ids, stop=(), prompt=(), least=0):
    """(pieces, text, tokens) of an answer of these ids."""
    answer, pieces = Detokenizer(tokenizer, stop, prompt, least), []
    for token in ids:
        piece = answer.add(Scored(token), is_end=token == 0)
        pieces += [piece] if piece else []
        if piece and piece.finish:
            break
    else:
        pieces.append(answer.finish("length"))
    return pieces, "".join(p.text for p in pieces), [s.token for p in pieces for s in p.tokens]


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_every_text_and_stop_string(text, stop):
    ids = BYTES.encode(text)
    pieces, shown, tokens = write(BYTES, ids, stop)
    ends = [text.index(s) for s in stop if s in text]
    # The earliest end counts, where one string's end comes before another's is seen.
    firsts = [at for at in ends if at == len(shown)]
    assert text.startswith(shown) and not any(s in shown for s in stop)
    assert shown == text if not ends else firsts
    assert tokens == ids[: len(tokens)]
    offsets = [at for p in pieces for at in p.offsets]
    assert offsets == sorted(offsets) and all(at <= len(shown) for at in offsets)
    assert pieces[-1].finish == ("stop" if ends else "length")
    assert all(p.finish is None for p in pieces[:-1])


@given(st.text("ab½", max_size=12), st.lists(st.text("ab½", min_size=1, max_size=4), max_size=3), st.integers(0, 6))
def test_a_stop_string_counts_that_ends_after_the_least_tokens(text, stop, least):
    """Wherever it begins; of one that ends before, all is shown. Tokens here are bytes."""
    expected = text
    for end in range(1, len(text) + 1):
        found = [end - len(s) for s in stop if text[:end].endswith(s)]
        if found and len(BYTES.encode(text[:end])) > least:
            expected = text[: min(found)]
            break
    pieces, shown, tokens = write(BYTES, BYTES.encode(text), stop, least=least)
    assert shown == expected and pieces[-1].finish == ("stop" if expected != text else "length")
    if text.isascii():  # each token goes with its text
        assert tokens == BYTES.encode(shown) and all(len(p.tokens) == len(p.text) for p in pieces)


def test_half_characters_come_whole_or_as_a_replacement():
    ids = BYTES.encode("a½b")
    assert [p.text for p in write(BYTES, ids)[0]] == ["a", "", "½", "b", ""]
    assert write(BYTES, ids[:2])[1] == "a\ufffd"
    assert write(BYTES, ids[2:], prompt=ids[:2])[1] == "½b"  # the prompt had the first half


def test_the_end_of_text_is_a_token_without_text():
    pieces, text, tokens = write(BYTES, [*BYTES.encode("ab"), 0, 5])
    assert text == "ab" and tokens[-1] == 0 and len(tokens) == 3 and pieces[-1].finish == "stop"


def test_nothing_of_a_stop_string_is_shown_before_it_is_known():
    pieces, text, _ = write(BYTES, BYTES.encode("one. Two. three"), stop=[". t"])
    assert text == "one. Two"
    assert all(len("".join(p.text for p in pieces[: i + 1])) <= len("one. Two") for i in range(len(pieces)))


@pytest.mark.parametrize("text", ["a b", "b  a"])
def test_a_tokenizer_that_joins_words_by_itself(text):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[e]": 0, "a": 1, "b": 2}, unk_token="[e]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words = Tokenizer("words", backend, 0)
    ids = words.encode(text)
    assert write(words, ids)[1] == words.decode(ids)
    assert write(words, ids[1:], prompt=ids[:1])[1] == words.decode(ids)[1:]


def test_a_newline_that_ends_answers_is_text_before_them():
    lines = Tokenizer("lines", train_tokenizer(["a"], 258), BYTES.encode("\n")[0])
    ids = lines.encode("a\nb")
    assert prompt_offsets(ids, lines) == [0, 1, 2] and lines.decode(ids) == "a\nb"
    answer = Detokenizer(lines, (), ids)
    pieces = [answer.add(Scored(token), is_end=token == lines.eos_id) for token in lines.encode("c\n")]
    assert "".join(p.text for p in pieces) == "c" and pieces[-1].finish == "stop"


def test_the_name_of_a_special_token_stops_at_the_token():
    ids = [*BYTES.encode("ab"), BYTES.padding_id, *BYTES.encode("c")]
    pieces, shown, tokens = write(BYTES, ids, ["never", "<|padding|>"])
    assert (shown, tokens, pieces[-1].finish) == ("ab", ids[:3], "stop")
    assert write(BYTES, ids, ["never"])[1] == "abc"
    for least, ended in ((2, "stop"), (3, "length")):  # min_tokens
        pieces, shown, _ = write(BYTES, ids, ["<|padding|>"], least=least)
        assert (shown, pieces[-1].finish) == ("ab" + "c" * (least > 2), ended)


class Scripted(BatchSampler):
    """Draws the ids of a script, whatever the prompt."""

    def __init__(self, script):
        super().__init__(types.SimpleNamespace(n_ctx=64, n_vocab=258), 1)
        self.script = iter(script)

    def begin(self, prompts):
        return self.advance(None, ())

    def advance(self, tokens, alive):
        return np.eye(258)[[next(self.script)]]


@pytest.mark.parametrize("stop, text", [(("<|padding|>",), "ab"), (("x", "c"), "ab"), ((), "abc")])
def test_evaluations_stop_at_special_tokens_too(stop, text):
    script = [*BYTES.encode("ab"), BYTES.padding_id, *BYTES.encode("c"), 0]
    asked = Prompt([5], stop, SampleOptions(temperature=0, eos_id=0))
    assert list(generate(Scripted(script), BYTES, [asked])) == [(0, text)]
