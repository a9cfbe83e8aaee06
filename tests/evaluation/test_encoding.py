"""Contexts and continuations as the harness cuts them."""

import pytest

from gpt_neo.errors import ConfigError
from gpt_neo.evaluation.encoding import encode_context, encode_pair
from gpt_neo.evaluation.windows import Request
from gpt_neo.tokenizer import load_tokenizer

END = 50256


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.mark.parametrize(
    "context, continuation, before, after",
    [
        ("Hello", " world", ["Hello"], [" world"]),
        ("Hello ", "world", ["Hello"], [" world"]),  # the space goes to the word after it
        ("", "Hello world", [END], ["Hello", " world"]),
        (" ", "world", [END], [" world"]),
        ("Hello", "", ["Hello"], []),
        ("", "", [END], []),
        ("a\n\n", "b", ["a"], ["\n", "\n", "b"]),
        ("so att", "ention span", ["so", " attention"], [" span"]),  # the text as it is, where `hf` reads "so att span"
    ],
)
def test_pairs(gpt2, context, continuation, before, after):
    ids = [[i] if isinstance(i, int) else gpt2.encode(i) for i in before + after]
    assert all(len(one) == 1 for one in ids)
    assert encode_pair(gpt2, context, continuation, END) == Request([i for (i,) in ids], len(after))


def test_a_continuation_inside_the_last_token_of_the_context(gpt2):
    assert len(gpt2.encode("absolut")) == 3 and len(gpt2.encode("absolute")) == 1
    assert encode_pair(gpt2, "absolut", "e", END) == Request([END, *gpt2.encode("absolute")], 1)
    assert encode_pair(gpt2, "so absolut", "e", END) == Request(gpt2.encode("so absolute"), 1)


class Odd:
    """A tokenizer that puts an id before every text, or drops what it does not know."""

    def __init__(self, begin=()):
        self.begin = list(begin)

    def encode(self, text):
        return self.begin + [ord(c) for c in text if c != "?"]


@pytest.mark.parametrize(
    "begin, context, continuation, wanted",
    [
        ((END,), "", "ab", Request([END, 97, 98], 2)),  # begins as a text does: no second one
        ((7,), "", "ab", Request([END, 7, 97, 98], 3)),
        ((END,), "a", "b", Request([END, 97, 98], 1)),
        ((), "ab", "?", Request([97, 98], 1)),  # nothing of it is left: the last id is scored
        ((), "a", "", Request([97], 0)),
    ],
)
def test_tokenizers_that_add_or_drop(begin, context, continuation, wanted):
    assert encode_pair(Odd(begin), context, continuation, END) == wanted


def test_a_model_without_an_end_of_text_needs_a_context(gpt2):
    assert encode_pair(gpt2, "Hello", " world", None) == encode_pair(gpt2, "Hello", " world", END)
    assert encode_context(gpt2, "Hello", None) == gpt2.encode("Hello")
    for ask in (lambda: encode_pair(gpt2, "", "Hello", None), lambda: encode_context(gpt2, "", None)):
        with pytest.raises(ConfigError, match=r"no id is one \(eos_id is null\): set eos_id"):
            ask()
