"""The commands of docs/evaluation.md do what the page says, on files of this test."""

import os
import shlex

import pytest

from gpt_neo.__main__ import main
from gpt_neo.cli import quiet
from gpt_neo.cli.options import Harness
from gpt_neo.cli.parser import parse
from tests.conftest import ROOT


def commands(start):
    with open(os.path.join(ROOT, "docs", "evaluation.md"), encoding="utf-8") as handle:
        lines = [line.strip() for line in handle if line.startswith(f"    {start} ")]
    assert lines
    return [shlex.split(line.removeprefix(start)) for line in lines]


def test_evaluations(trained, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(quiet, "filter_native_stderr", lambda: None)
    wikitext = tmp_path / "wiki.test.raw"
    wikitext.write_text(" = Title = \n \n Some words @-@ joined . \n", encoding="utf-8")
    files = {
        "demo": trained,
        "lambada=lambada_test.jsonl": f"lambada={texts[0]}",
        "wikitext=wiki.test.raw": f"wikitext={wikitext}",
        "pile=val.jsonl.zst": f"pile={texts[0]}",
    }
    for words in commands("gpt-neo eval"):
        assert main(["eval", *[files.get(word, word) for word in words]]) == 0


@pytest.mark.parametrize("words", commands("gpt-neo harness"), ids=" ".join)
def test_the_harness_takes_these_flags(words):
    assert parse(Harness, words, "").model.model == "demo"  # test_harness.py runs them on tasks of its own
