"""The commands of docs/evaluation.md do what the page says, on files of this test."""

import os
import shlex

import pytest

from gpt_neo.cli.harness import build_parser
from tests.conftest import ROOT


def commands(start):
    with open(os.path.join(ROOT, "docs", "evaluation.md"), encoding="utf-8") as handle:
        lines = [line.strip() for line in handle if line.startswith(f"    {start} ")]
    assert lines
    return [shlex.split(line.removeprefix(start)) for line in lines]


def test_evaluations(command, trained, texts, tmp_path):
    wikitext = tmp_path / "wiki.test.raw"
    wikitext.write_text(" = Title = \n \n Some words @-@ joined . \n", encoding="utf-8")
    files = {
        "demo": trained,
        "lambada=lambada_test.jsonl": f"lambada={texts[0]}",
        "wikitext=wiki.test.raw": f"wikitext={wikitext}",
        "pile=val.jsonl.zst": f"pile={texts[0]}",
    }
    for words in commands("python main.py"):
        assert command(*[files.get(word, word) for word in words]) == 0


@pytest.mark.parametrize("words", commands("python -m gpt_neo harness"), ids=" ".join)
def test_the_harness_takes_these_flags(words):
    assert build_parser().parse_args(words).model == "demo"  # test_harness.py runs them on tasks of its own
