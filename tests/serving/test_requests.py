"""Fields of a request's body land where they belong, those that are not there at what the docs say."""

import math

import pytest

from gpt_neo.dataprep.templates import ChatTemplate
from gpt_neo.serving.answers import Choice
from gpt_neo.serving.chat import parse_chat
from gpt_neo.serving.detokenizer import Detokenizer, Piece, Scored
from gpt_neo.serving.requests import RequestError, Served, parse_completion
from gpt_neo.serving.token_choice import Adjustments
from gpt_neo.tokenizer import Tokenizer, train_tokenizer

TOKENIZER = Tokenizer("bytes", train_tokenizer(["a b c"], 258), 0)
SERVED = Served("small", TOKENIZER, 300, 100, 0, sequences=8)
MARKED = ChatTemplate(lambda messages, answer: "".join(m["content"] for m in messages) + "!" * answer, "", ("\n#",))
CHATTING = Served("small", TOKENIZER, 300, 100, 0, sequences=8, chat=MARKED, turn_ends=(5, 6))
ASKED = {
    "max_tokens": 20,
    "temperature": 0.5,
    "top_k": 7,
    "top_p": 0.75,
    "min_p": 0.125,
    "seed": 11,
    "presence_penalty": 0.25,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.5,
    "min_tokens": 3,
    "logit_bias": {"4": 2, "299": -100},
    "stop": ["x", "yz"],
    "stop_token_ids": [8, 9],
    "stream": True,
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
    "n": 3,
}
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}


def completion(**body):
    return parse_completion({"prompt": "ab", **body}, SERVED)


def chat(**body):
    return parse_chat({**MESSAGES, **body}, CHATTING)


@pytest.mark.parametrize("parse", [completion, chat])
def test_every_field_counts(parse):
    found, chats = parse(**ASKED), parse is chat
    options = found.options
    assert (options.temperature, options.top_k, options.top_p, options.min_p, options.seed) == (0.5, 7, 0.75, 0.125, 11)
    assert options.n_ids == 258 and found.max_tokens == 20  # of a table of 300 rows
    assert found.adjustments == Adjustments({4: 2.0, 299: -100.0}, 1.5, 0.25, -0.5, 3)
    assert found.stop == ("x", "yz", *(["\n#"] if chats else [])) and found.ends == (8, 9, *([5, 6] if chats else []))
    assert (found.stream, found.include_usage, found.token_ids, found.echo) == (True, True, True, False)
    assert (found.n, found.best_of, found.chat) == (3, 3, chats)


@pytest.mark.parametrize("parse", [completion, chat])
def test_what_is_left_out(parse):
    found, chats = parse(), parse is chat
    options = found.options
    assert (options.temperature, options.top_k, options.top_p, options.min_p) == (1.0, 0, 1.0, 0.0)
    assert found.adjustments == Adjustments() and found.logprobs is None
    assert found.max_tokens == (100 - len(found.prompts[0]) if chats else 16)
    assert (found.stream, found.include_usage, found.token_ids, found.n, found.best_of) == (False, False, False, 1, 1)
    assert len({parse().options.seed for _ in range(4)}) == 4
    nothing = parse(**dict.fromkeys([*ASKED, "logprobs"]))  # null is left out
    assert (nothing.adjustments, nothing.stop, nothing.ends) == (found.adjustments, found.stop, found.ends)
    assert TOKENIZER.decode(found.prompts[0]) == ("hi!" if chats else "ab")


@pytest.mark.parametrize(
    "body, logprobs",
    [({"logprobs": True}, 1), ({"logprobs": False}, None), ({"logprobs": 0}, 0), ({"logprobs": 4}, 4)],
    ids=str,
)
def test_log_probabilities_of_completions(body, logprobs):
    assert completion(**body).logprobs == logprobs


def test_log_probabilities_of_chats():
    assert chat(logprobs=True).logprobs == 0 and chat(logprobs=True, top_logprobs=4).logprobs == 4
    assert chat(logprobs=False, top_logprobs=0).logprobs is None
    with pytest.raises(RequestError, match="top_logprobs is 2; it needs logprobs: true"):
        chat(top_logprobs=2)


def test_spellings():
    assert completion(top_k=-1).options.top_k == 0 and completion(seed=-3).options.seed == 2**64 - 3
    assert completion(stop="end").stop == ("end",) and completion(best_of=4, n=2).best_of == 4
    assert chat(max_completion_tokens=9, max_tokens=5).max_tokens == 9
    assert completion(max_tokens=0, echo=True).max_tokens == 0
    assert completion(prompt=[[1, 2], [3]]).prompts == [[1, 2], [3]] and completion(prompt="").prompts == [[0]]


@pytest.mark.parametrize(
    "body, message",
    [
        ({"max_tokens": 0}, "max_tokens is 0; expected at least 1"),
        ({"max_tokens": 99}, "the prompt has 2 tokens and max_tokens is 99, 101 together; the model's length is 100"),
        ({"best_of": 1, "n": 2}, "best_of is 1; expected at least n, which is 2"),
        ({"best_of": 2, "n": 1, "stream": True}, "best_of is 2 and n 1"),
        ({"prompt": ["a"] * 5, "n": 2}, "5 prompts times best_of 2 are more than 8 answers"),
        ({"top_p": 0}, "top_p is 0; expected more than 0"),
        ({"min_tokens": 17}, "min_tokens is 17; expected a whole number from 0 to 16"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected more than 0"),
        ({"prompt": [3, 300]}, "prompt has token id 300; expected whole numbers from 0 to 299"),
        ({"prompt": [3, -1]}, "prompt has token id -1; "),
        ({"logit_bias": {"300": 1}}, "logit_bias has the token id"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number of 64 bits"),
    ],
    ids=str,
)
def test_what_means_nothing_is_told(body, message):
    with pytest.raises(RequestError, match=message.replace("(", r"\(")):
        completion(**body)
    assert completion(max_tokens=98).max_tokens == 98


@pytest.mark.parametrize("echo", [False, True])
def test_an_answer_that_a_stop_string_leaves_empty_is_not_the_best(echo):
    """What is drawn first ends three of four answers: its probability is not known any more, and is not 1."""
    asked = completion(prompt=[1, 2], n=1, best_of=4, stop="#", logprobs=0, echo=echo)
    means = []
    for text in ("#", "a#", "bc", "#"):
        choice, answer = Choice(0, [1, 2], "ab", asked), Detokenizer(TOKENIZER, asked.stop, [1, 2])
        if echo:
            choice.add(Piece("", (Scored(1), Scored(2, -9.0))), SERVED)
        for token in TOKENIZER.encode(text):
            piece = answer.add(Scored(token, -0.5 * token))
            if piece is not None:
                choice.add(piece, SERVED)
        means.append(choice.mean_logprob())
    a, b, c = TOKENIZER.encode("abc")
    assert means == [-math.inf, -0.5 * a, -0.25 * (b + c), -math.inf]
