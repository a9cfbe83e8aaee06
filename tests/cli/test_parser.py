"""Parsers made of dataclasses."""

import argparse
import dataclasses
from typing import Optional

import pytest

from gpt_neo.cli.options import Sample, Train
from gpt_neo.cli.parser import HIDDEN, REQUIRED, Options, Parser, flag, group, parse, words_of
from gpt_neo.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner(Options):
    """A group."""

    rate: float = flag(0.5, "a rate", above=0)
    names: tuple = flag((), "names", action="append", metavar="NAME")
    text: Optional[str] = flag(None, "a text", word="also", metavar="TEXT")


@dataclasses.dataclass(frozen=True)
class Outer(Options):
    """What the toy does."""

    model: str = flag(REQUIRED, "a model", word="also", metavar="MODEL")
    loud: bool = flag(False, "be loud", short="-l")
    count: Optional[int] = flag(None, "a count", low=1, high=9)
    ids: tuple = flag((), "ids", nargs="+")
    maybe: Optional[bool] = flag(None, "perhaps", action=argparse.BooleanOptionalAction)
    inner: Inner = group(Inner, "inside")


@dataclasses.dataclass(frozen=True)
class Copy(Options):
    """Words only, but for the first."""

    model: str = flag(REQUIRED, "a model", word="also", metavar="MODEL")
    to: str = flag(REQUIRED, "where to", word="only", metavar="DST")
    more: tuple = flag(("all",), "what", word="only", nargs="*", metavar="WHAT")


def test_every_kind_of_field():
    argv = "--model m -l --count 3 --ids 1 2 --no-maybe --rate 2 --names a --names b --text t".split()
    assert parse(Outer, argv, "toy") == Outer("m", True, 3, ("1", "2"), False, Inner(2.0, ("a", "b"), "t"))
    assert parse(Outer, ["--model", "m"], "toy") == Outer("m")


@pytest.mark.parametrize(
    "argv, model, text",
    [
        (["m"], "m", None),
        (["--loud", "m", "--names", "a", "some text"], "m", "some text"),
        (["--model", "m", "t"], "m", "t"),
        (["--text", "t", "m"], "m", "t"),
    ],
)
def test_words_stand_for_flags_in_order(argv, model, text):
    found = parse(Outer, argv, "toy")
    assert (found.model, found.inner.text) == (model, text)


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "the following arguments are required: --model"),
        (["m", "t", "u"], "unrecognized arguments: u"),
        (["m", "--nam", "x", "--laud"], "unrecognized arguments: --laud; did you mean --loud?"),
        (["m", "--count", "x"], "argument --count: invalid int value: 'x'"),
    ],
)
def test_mistakes_in_words_end_with_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Outer, argv, "toy")
    assert ended.value.code == 2 and f"toy: error: {message}" in capsys.readouterr().err


def test_words_only_where_they_are_asked_for(capsys):
    with pytest.raises(SystemExit):
        parse(Outer, ["m"], "toy", words=False)
    assert "the following arguments are required: --model" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # the prompt of a training is what is sampled when it is done
        parse(Train, ["demo", "Once upon a time"], "gpt-neo train")
    assert parse(Sample, ["demo", "Once"], "gpt-neo sample").sampling.prompt == "Once"


def test_a_word_without_a_flag_takes_what_is_left():
    assert parse(Copy, ["m", "d"], "toy") == Copy("m", "d")
    assert parse(Copy, ["--model", "m", "d"], "toy") == Copy("m", "d")
    assert parse(Copy, ["m", "d", "x", "y"], "toy").more == ("x", "y")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["m", "--count", "0"], "--count is 0; expected 1 to 9"),
        (["m", "--rate", "0"], "--rate is 0.0; expected more than 0"),
        (["m", "--rate", "nan"], "--rate is nan; expected more than 0"),
        (["m", "--rate", "inf"], "--rate is inf; expected more than 0"),
    ],
)
def test_numbers_out_of_bounds_are_refused(argv, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        parse(Outer, argv, "toy")
    with pytest.raises(ConfigError):
        Inner(rate=-1.0)


def test_help_names_flags_groups_and_defaults():
    text = Parser(Outer, "toy").format_help()
    assert "What the toy does." in text and "\ninside:\n" in text and "a rate (default: 0.5)" in text
    assert all(f"--{name}" in text for name in ("model", "loud", "count", "ids", "no-maybe", "rate", "names", "text"))


def test_a_group_may_say_other_things_of_its_flags():
    @dataclasses.dataclass(frozen=True)
    class Other(Options):
        """Takes names only to refuse them."""

        inner: Inner = group(Inner, "inside", docs={"rate": "of what is left (default: a tenth)", "names": HIDDEN})

    text = Parser(Other, "toy").format_help()
    assert "of what is left (default: a tenth)\n" in text and "--names" not in text
    assert parse(Other, ["--names", "a"], "toy").inner == Inner(names=("a",))


def test_words_of_options_say_them_again():
    argv = "demo --set lr=1 --set n_ctx=8 -v --temperature 0 --top_p 0.5 --gpu_ids cpu:0 cpu:1 --prompt=-x".split()
    options = parse(Sample, argv, "gpt-neo sample")
    words = words_of(options)
    assert "--prompt=-x" in words and parse(Sample, words, "gpt-neo sample") == options
    assert words_of(parse(Sample, ["demo"], "")) == ["--model=demo"]
