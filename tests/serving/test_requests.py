"""Fields of a request's body land where they belong, those that are not there at what the docs say."""

import dataclasses
import math

import pytest

from gpt_neo.dataprep.templates import ChatTemplate
from gpt_neo.serving.answers import Choice
from gpt_neo.serving.chat import parse_chat, with_chat
from gpt_neo.serving.detokenizer import Detokenizer, Piece, Scored
from gpt_neo.serving.requests import RequestError, Served, parse_completion, parse_picture
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
    assert completion(prompt=["a", ""]).texts == ["a", ""] and completion(prompt=[[1, 2]]).texts == [None]


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
        ({"top_k": 1.5}, "top_k is 1.5; expected a whole number from -1 to 2147483647"),
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


@pytest.mark.parametrize(
    "body, message",
    [
        ({"n": 9}, "n is 9; expected a whole number from 1 to 8"),
        ({"max_tokens": 0}, "max_tokens is 0; expected a whole number from 1"),
        ({"echo": True}, "echo is not supported"),
        ({"best_of": 2}, "best_of is not supported"),
        ({"add_generation_prompt": False}, "add_generation_prompt is not supported"),
        ({"continue_final_message": True}, "continue_final_message is not supported"),
        ({"tools": [{}], "tool_choice": "auto"}, "tools is not supported"),
        ({"messages": [{"role": "", "content": "x"}]}, r"messages\[0\].role is empty; expected system, user or assist"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "tools are not supported"),
        ({"messages": [{"role": "user", "content": [{"text": 5}]}]}, r"messages\[0\].content\[0\].text is 5; expected"),
        ({"messages": [{"role": "user", "content": "x" * 100}]}, "the prompt has 101 tokens and max_tokens is 1, 102"),
    ],
    ids=str,
)
def test_what_means_nothing_in_a_chat_is_told(body, message):
    with pytest.raises(RequestError, match=message):
        chat(**body)
    idle = {"echo": False, "best_of": 1, "add_generation_prompt": True, "continue_final_message": False, "tools": []}
    assert chat(**idle, n=8).n == 8 and chat(max_tokens=97).max_tokens == 97, "with hi! that is the length"
    assert TOKENIZER.decode(chat(messages=[{"role": "user", "content": [{"text": "yes"}]}]).prompts[0]) == "yes!"


def test_a_turn_ends_with_ids_that_the_model_has():
    class Ends(ChatTemplate):
        def ends(self, tokenizer):
            return (7, 299, 300)

    assert with_chat(SERVED, Ends(lambda messages, answer: "", "")).turn_ends == (7, 299)


def test_several_prompts_fit_by_the_longest_and_a_float_may_be_whole():
    assert completion(prompt=["a", "b" * 80], max_tokens=20.0).max_tokens == 20
    with pytest.raises(RequestError, match="the prompt has 81 tokens and max_tokens is 20, 101 together"):
        completion(prompt=["a", "b" * 81], max_tokens=20)


def test_ids_that_the_model_lacks_are_neither_read_nor_drawn():
    """Of a tokenizer with more of them than the table has rows."""
    last = max(TOKENIZER.encode("ab"))
    for rows, told in ((last + 1, None), (last, f"the text has token id {last}; the model's n_vocab is {last}")):
        served = dataclasses.replace(SERVED, n_vocab=rows)
        assert served.n_ids == rows < TOKENIZER.n_vocab
        if told is None:
            assert parse_completion({"prompt": "ab"}, served).options.n_ids == rows
        else:
            with pytest.raises(RequestError, match=told):
                parse_completion({"prompt": "ab"}, served)


@pytest.mark.parametrize(
    "body, found",
    [
        ({"tokens": [4, 5, 6]}, ([4, 5, 6], 1, 0)),
        ({"prompt": "ab", "layer": 2, "head": 3}, (TOKENIZER.encode("ab"), 2, 3)),
        ({"tokens": [4], "layer": 1, "head": 2}, "head is 2; expected a whole number from 0 to 1"),
        ({"tokens": [4], "layer": 0}, "layer is 0; the layers that attend are 1, 2"),
        ({"tokens": [4] * 4}, "the text has 4 tokens; expected 1 to 3"),
        ({"tokens": []}, "the text has 0 tokens; expected 1 to 3"),
    ],
    ids=str,
)
def test_a_picture_is_of_a_layer_that_attends_and_a_head_of_it(body, found):
    def parse():
        return parse_picture(body, SERVED, [1, 2], [8, 2, 4], 3)

    if isinstance(found, tuple):
        assert parse() == found
    else:
        with pytest.raises(RequestError, match=found):
            parse()


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
