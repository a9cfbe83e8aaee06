"""`--legacy` against files that the 2021 program itself wrote (legacy_golden.json: SHA-256 of each).

They were made by running that program on the corpus below, with Python 3.11, TensorFlow 2.15.1, lm_dataformat 0.0.20,
ftfy 6.3.1 and GPT-2's tokenizer of transformers 5.23.
"""

import io
import json
import os
import random
import tarfile

import pytest
import zstandard

from gpt_neo.dataprep.legacy import legacy_documents, prepare_legacy
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.errors import DataError
from tests.dataprep.test_prepare import contents

GOLDEN = os.path.join(os.path.dirname(__file__), "legacy_golden.json")
WORDS = [
    "the",
    "cat",
    " @-@ ",
    " , ",
    " . \n",
    "it 's",
    "<|endoftext|>",
    "sch\u00c3\u00b6n",
    "\u2026",
    "( x )",
    '" q "',
    "\ufb01ne",
    "= = H = =",
    " N ",
    "/' 5/",
    "\u4e2d\u6587",
    "\U0001f600",
    "12 @,@ 000",
    "\t",
    "caf\u00e9",
]


def documents(seed, count, longest):
    """Texts with everything that the old program's cleaning changed."""
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randrange(longest))) for _ in range(count)]


def make_corpus(folder):
    """One file of each kind that the old program read, so that the order of files is known."""
    os.makedirs(folder)
    lines = [json.dumps({"text": text}) for text in documents(1, 30, 90)]
    lines += [json.dumps("only a string"), json.dumps({"text": ["two", "paragraphs"]})]
    with open(os.path.join(folder, "a.jsonl.zst"), "wb") as handle:
        handle.write(zstandard.ZstdCompressor().compress("\n".join(lines).encode()))
    with open(os.path.join(folder, "b.txt"), "wb") as handle:
        handle.write("\r\n".join(documents(2, 9, 40)).encode() + b"\rend")
    for name, mode, seed in (("urlsf_subset00-1_data.xz", "w:xz", 3), ("d.tar.gz", "w:gz", 4)):
        with tarfile.open(os.path.join(folder, name), mode) as archive:
            for number, text in enumerate(["", *documents(seed, 20, 60)]):
                member = tarfile.TarInfo(f"{number}.txt")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))


def options_of(case, source, target):
    return PrepareOptions(str(source), str(target), "old", **case)


with open(GOLDEN, encoding="utf-8") as stored:
    CASES = json.load(stored)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_same_bytes_as_the_old_program(tmp_path, number):
    make_corpus(tmp_path / "in")
    case = CASES[number]
    manifest = prepare_legacy(options_of(case["options"], tmp_path / "in", tmp_path / "out"))
    found = contents(tmp_path / "out")
    found.pop("old_manifest.json")
    assert found == case["files"]
    account = manifest["account"]
    assert account["documents_in"] == 30 + 2 + 1 + 21 + 21 and account["tokens_dropped_tail"] > 0
    assert account["tokens_in"] + account["separator_tokens"] == (
        account["tokens_written"] + account["tokens_dropped_tail"] + account["tokens_dropped_overwritten"]
    )


def test_what_the_old_program_could_not_do(tmp_path):
    make_corpus(tmp_path / "in")
    defaults = {"chunk_size": 9, "minimum_size": 2}

    def fails(message, source=tmp_path / "in", **changes):
        with pytest.raises(DataError, match=message):
            prepare_legacy(options_of({**defaults, **changes}, source, tmp_path / "out"))

    fails("had no --shuffle True", shuffle=True)
    fails("crashed with --encoder_path", encoder_path="x.json")
    fails("takes one --separator", separator=(1, 2))
    fails("reads one local folder", source=tmp_path / "in" / "b.txt")
    (tmp_path / "empty").mkdir()
    fails("no file ends in jsonl.zst, .txt, .xz, .tar.gz", source=tmp_path / "empty")
    (tmp_path / "in" / "other.xz").write_bytes(b"")
    fails("crashed on .xz files other than OpenWebText's")
    (tmp_path / "in" / "other.xz").rename(tmp_path / "in" / "other_data.xz")
    manifest = prepare_legacy(options_of({**defaults, "processes": 99}, tmp_path / "in", tmp_path / "out"))
    assert manifest["bad_documents"]["reasons"] == {"passed over by the old program": 1} and manifest["legacy"]
    fails("already holds old_0_")


def test_a_file_written_over_is_in_the_account(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.txt").write_text(f"{name} " * 10)
    case = {"chunk_size": 4, "minimum_size": 0, "processes": 2}
    manifest = prepare_legacy(options_of(case, tmp_path / "in", tmp_path / "out"))
    account = manifest["account"]
    assert len(manifest["files"]) == 1 and account["tokens_dropped_overwritten"] == account["tokens_written"] > 0


def test_a_mark_stays_text_as_it_did(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert list(legacy_documents(str(tmp_path / "a.txt"))) == ["\ufeffone\ntwo"]
