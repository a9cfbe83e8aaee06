"""Nothing is lost on the way from documents to records, whatever the number of workers, and the account says so."""

import glob
import gzip
import hashlib
import json
import os
import re
import shutil
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_neo.dataprep import duplicates, encoder, shards, units
from gpt_neo.dataprep.cleaning import detokenize_wikitext, tight
from gpt_neo.dataprep.manifest import dataset_config
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.dataprep.prepare import prepare, report
from gpt_neo.dataprep.records import parse_example, read_frames, read_records
from gpt_neo.errors import DataError
from gpt_neo.tokenizer import load_tokenizer
from tests.dataprep.test_streams import zip_with

SEPARATOR = 0  # <|endoftext|> of the small tokenizer


def silent(stored, text, tokens, total=None, before=False):
    """Progress that nobody watches."""


def run(source, output, tokenizer, **changes):
    options = PrepareOptions(
        **{"input_dir": str(source), "output_dir": str(output), "encoder_path": tokenizer, "chunk_size": 16, **changes}
    )
    return prepare(options, silent)


def rows_of(folder, manifest):
    return [row.tolist() for name in manifest["files"] for row in read_records(os.path.join(folder, name))]


def contents(folder):
    """Name and hash of every file in a folder, hidden ones too."""
    found = {}
    for top, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(top, name), "rb") as handle:
                found[os.path.relpath(os.path.join(top, name), folder)] = hashlib.sha256(handle.read()).hexdigest()
    return found


def write_lines(path, texts):
    with open(path, "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def plain_records(texts, tokenizer, size):
    """What packing gives, by the plainest code there is."""
    backend = load_tokenizer(tokenizer)
    stream = [i for text in texts if text for i in [*backend.encode(text), SEPARATOR]]
    stream += [SEPARATOR] * (-len(stream) % size)
    return [stream[i : i + size] for i in range(0, len(stream), size)]


TEXT = st.text("ab \n'\u00e9", max_size=40)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(TEXT, min_size=1, max_size=12),
    st.integers(2, 9),
    st.integers(1, 5),
    st.integers(1, 200),
    st.integers(0, 12),
)
def test_packing_loses_nothing_and_the_account_balances(
    tmp_path_factory, small_tokenizer, monkeypatch, texts, size, files_per, unit, least
):
    folder = tmp_path_factory.mktemp("packing")
    write_lines(folder / "in.jsonl", texts)
    backend = load_tokenizer(small_tokenizer)
    kept = [text for text in texts if text and len(backend.encode(text)) >= least]
    monkeypatch.setattr(units, "UNIT_BYTES", unit)
    changes = {"chunk_size": size, "files_per": files_per, "minimum_size": least}
    if not kept:
        with pytest.raises(DataError, match="gave no record"):
            run(folder / "in.jsonl", folder / "out", small_tokenizer, **changes)
        return
    manifest = run(folder / "in.jsonl", folder / "out", small_tokenizer, **changes)
    expected = plain_records(kept, small_tokenizer, size)
    assert rows_of(folder / "out", manifest) == expected
    assert manifest["records"] == [len(expected[i : i + files_per]) for i in range(0, len(expected), files_per)]
    account = manifest["account"]
    assert account["documents_in"] == len(texts) and account["documents_written"] == len(kept)
    assert account["documents_dropped_empty"] == texts.count("")
    assert account["documents_dropped_short"] == len(texts) - len(kept) - texts.count("")
    assert account["bytes_in"] == sum(len(text.encode()) for text in texts)
    assert account["tokens_in"] == sum(len(backend.encode(text)) for text in texts)
    assert account["tokens_dropped_short"] == account["tokens_in"] - sum(len(backend.encode(text)) for text in kept)
    assert account["separator_tokens"] == len(kept)
    assert account["tokens_written"] == size * len(expected)
    assert account["tokens_in"] + account["separator_tokens"] + account["fill_tokens"] == (
        account["tokens_written"] + account["tokens_dropped_short"]
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, prose):
    """Small files, a large one of lines, a large text, compressed ones."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(64):
        (folder / f"a_{i}.txt").write_text(prose[i * 100 : i * 120 + 30], encoding="utf-8", newline="")
    write_lines(folder / "b.jsonl", [prose[i * 700 : i * 800] for i in range(40)])
    (folder / "c.txt").write_text(prose[:60_000] + "Z\u00e4hne\u2003\u4e2d " * 2000, encoding="utf-8", newline="")
    with gzip.open(folder / "d.jsonl.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(
            json.dumps({"text": prose[i : i + 3000], "meta": {"pile_set_name": f"S{i % 2}"}}) + "\n"
            for i in range(50_000, 90_000, 1001)
        )
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "documents", "files_per": 20},
        {"shuffle": True, "seed": 5},
        {"deduplicate": True},
        {"mode": "documents", "shuffle": True, "deduplicate": True, "files_per": 33},
    ],
    ids=str,
)
def test_same_bytes_for_any_number_of_workers(corpus, tmp_path, small_tokenizer, monkeypatch, changes):
    monkeypatch.setattr(units, "UNIT_BYTES", 10_000)
    monkeypatch.setattr(shards, "BUCKET_EXTENT", 20_000 if changes.get("mode") != "documents" else 40)
    monkeypatch.setattr(shards, "WINDOW_TOKENS", 16 * 100)
    changes = {"files_per": 999, **changes}
    alone = run(corpus, tmp_path / "alone", small_tokenizer, processes=1, **changes)
    # Patches do not reach other processes: only the number of units may differ there, and it must not matter.
    if not changes.get("shuffle"):
        run(corpus, tmp_path / "two", small_tokenizer, processes=2, **changes)
        assert contents(tmp_path / "two") == contents(tmp_path / "alone")
        monkeypatch.setattr(units, "UNIT_BYTES", 1 << 20)
        monkeypatch.setattr(shards, "BLOCK", 999)
        monkeypatch.setattr(encoder, "BLOCK", 1500)
        run(corpus, tmp_path / "other", small_tokenizer, **changes)
        assert contents(tmp_path / "other") == contents(tmp_path / "alone")
    assert set(contents(tmp_path / "alone")) == {*alone["files"], "data_manifest.json"}


def test_records_give_the_documents_back(corpus, tmp_path, small_tokenizer):
    from gpt_neo.dataprep.documents import read_documents

    manifest = run(corpus, tmp_path, small_tokenizer, files_per=2000)
    stream = [i for row in rows_of(tmp_path, manifest) for i in row]
    stream = stream[: len(stream) - manifest["account"]["fill_tokens"]]
    tokenizer, texts, current = load_tokenizer(small_tokenizer), [], []
    for i in stream:
        if i == SEPARATOR:
            texts.append(tokenizer.decode(current))
            current = []
        else:
            current.append(i)
    expected = [text for text in read_documents([str(corpus)]) if text]
    assert texts == expected and not current
    assert manifest["account"]["bytes_in"] == sum(len(text.encode()) for text in expected)
    assert {name: found["documents"] for name, found in manifest["sets"].items()} == {"S0": 20, "S1": 20}


def documents_of(manifest, folder):
    """Documents of chunk records, ids."""
    stream = [i for row in rows_of(folder, manifest) for i in row]
    text = ",".join(map(str, stream))
    return [part for part in f",{text},".replace(f",{SEPARATOR},", ",|,").split("|") if part.strip(",")]


def test_shuffling_is_a_seeded_permutation(tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 300)
    monkeypatch.setattr(shards, "BUCKET_EXTENT", 50)
    write_lines(tmp_path / "in.jsonl", [f"{i} " * (1 + i % 7) for i in range(200)])
    common = {"mode": "documents", "files_per": 64}
    straight = rows_of(tmp_path / "a", run(tmp_path / "in.jsonl", tmp_path / "a", small_tokenizer, **common))
    seen = []
    for name, seed in (("b", 1), ("c", 1), ("d", 2)):
        manifest = run(tmp_path / "in.jsonl", tmp_path / name, small_tokenizer, shuffle=True, seed=seed, **common)
        seen.append(rows_of(tmp_path / name, manifest))
        assert sorted(seen[-1]) == sorted(straight) and seen[-1] != straight
        assert manifest["records"] == [64, 64, 64, 8]
    assert seen[0] == seen[1] != seen[2]
    order = [straight.index(row) for row in seen[0]]
    assert abs(np.corrcoef(order, np.arange(200))[0, 1]) < 0.2
    # The order does not depend on how many documents are shuffled at a time.
    monkeypatch.setattr(shards, "BUCKET_EXTENT", 1 << 20)
    again = run(tmp_path / "in.jsonl", tmp_path / "e", small_tokenizer, shuffle=True, seed=1, **common)
    assert rows_of(tmp_path / "e", again) == seen[0]


def test_shuffled_chunks_are_the_chunks_of_the_shuffled_documents(tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 500)
    monkeypatch.setattr(shards, "BUCKET_EXTENT", 100)
    monkeypatch.setattr(shards, "WINDOW_TOKENS", 16 * 7)
    write_lines(tmp_path / "in.jsonl", [f"{i} " * (1 + i % 9) for i in range(300)])
    changes = {"shuffle": True, "seed": 3, "files_per": 20}
    mixed = rows_of(tmp_path / "a", run(tmp_path / "in.jsonl", tmp_path / "a", small_tokenizer, **changes))
    monkeypatch.setattr(shards, "ordered", lambda job, shard, window, rows: rows)
    unmixed = rows_of(tmp_path / "b", run(tmp_path / "in.jsonl", tmp_path / "b", small_tokenizer, **changes))
    documents = rows_of(
        tmp_path / "c",
        run(tmp_path / "in.jsonl", tmp_path / "c", small_tokenizer, mode="documents", **{**changes, "files_per": 999}),
    )
    stream = [i for document in documents for i in [*document, SEPARATOR]]
    stream += [SEPARATOR] * (-len(stream) % 16)
    assert unmixed == [stream[i : i + 16] for i in range(0, len(stream), 16)]
    assert mixed != unmixed
    for start in range(0, len(mixed), 20):
        for window in range(start, min(start + 20, len(mixed)), 7):
            end = min(window + 7, start + 20)
            assert sorted(mixed[window:end]) == sorted(unmixed[window:end])


@pytest.mark.parametrize("at_once", [3, 1 << 23])
def test_exact_copies_are_dropped(tmp_path, small_tokenizer, monkeypatch, at_once):
    monkeypatch.setattr(units, "UNIT_BYTES", 40)
    monkeypatch.setattr(duplicates, "AT_ONCE", at_once)
    texts = ["one", "two ", "one", "", "three" * 9, "two ", "two", "one", "three" * 9, ""]
    write_lines(tmp_path / "in.jsonl", texts)
    manifest = run(tmp_path / "in.jsonl", tmp_path / "out", small_tokenizer, deduplicate=True, chunk_size=5)
    expected = plain_records(["one", "two ", "three" * 9, "two"], small_tokenizer, 5)
    assert rows_of(tmp_path / "out", manifest) == expected
    account = manifest["account"]
    assert account["documents_dropped_duplicate"] == 4 and account["documents_dropped_empty"] == 2
    tokenizer = load_tokenizer(small_tokenizer)
    lost = sum(len(tokenizer.encode(text)) for text in ["one", "two ", "one", "three" * 9])
    assert account["tokens_dropped_duplicate"] == lost


def test_small_and_strange_inputs(tmp_path, small_tokenizer, prose):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty.txt").write_bytes(b"")
    (tmp_path / "in" / "newline.txt").write_bytes(b"\n")
    (tmp_path / "in" / "empty.jsonl").write_bytes(b"")
    manifest = run(tmp_path / "in", tmp_path / "out", small_tokenizer, processes=3)
    assert rows_of(tmp_path / "out", manifest) == plain_records(["\n"], small_tokenizer, 16)
    assert manifest["account"]["documents_dropped_empty"] == 1
    (tmp_path / "in" / "newline.txt").unlink()
    with pytest.raises(DataError, match="1 document gave no record"):
        run(tmp_path / "in", tmp_path / "out2", small_tokenizer)
    assert not os.listdir(tmp_path / "out2")
    with pytest.raises(DataError, match="no files there"):
        run(tmp_path / "absent", tmp_path / "out2", small_tokenizer)


def test_bad_documents_stop_or_are_counted(tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 30)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": 3}\n"\\ud800 alone"\n"fine too"\n{\n')
    (folder / "b.txt").write_bytes(b"good until here " * 9 + b"\xff")
    (folder / "c.docx").write_bytes(b"")
    with pytest.raises(DataError, match=r"c\.docx: unknown extension: take the text out of it first"):
        run(folder, tmp_path / "o1", small_tokenizer)
    (folder / "c.docx").rename(tmp_path / "c.docx")
    with pytest.raises(DataError, match=r"a\.jsonl:2: expected an object with a string under 'text'"):
        run(folder, tmp_path / "o2", small_tokenizer)
    (tmp_path / "c.docx").rename(folder / "c.docx")
    manifest = run(folder, tmp_path / "o3", small_tokenizer, bad="skip", chunk_size=4)
    assert rows_of(tmp_path / "o3", manifest) == plain_records(["fine", "fine too"], small_tokenizer, 4)
    account = manifest["account"]
    assert (account["documents_in"], account["documents_written"], account["documents_dropped_bad"]) == (7, 2, 5)
    assert manifest["bad_documents"]["reasons"] == {
        "unknown extension": 1,
        "expected an object with a string under 'text'": 1,
        "not valid JSON": 1,
        "not UTF-8": 1,
        "a lone surrogate, which no UTF-8 text holds": 1,
    }
    places = [place.rsplit("/", 1)[1] for place in manifest["bad_documents"]["first"]]
    assert [place.split(": ")[0] for place in places] == ["c.docx", "a.jsonl:2", "a.jsonl:3", "a.jsonl:5", "b.txt"]


@pytest.mark.parametrize(
    "name, data, changes, told",
    [
        ("a.txt", b"abc \xff", {"bad": "skip"}, r"1 not readable, the first of them \S+a\.txt: not UTF-8: inv"),
        ("a.jsonl", b'{"text": 5}', {"bad": "skip"}, r"1 not readable, .* \S+:1: expected an .*'text': it is 5"),
        ("a.jsonl", b'""\n"x"', {"minimum_size": 9}, "1 empty, 1 of fewer than --minimum_size 9 tok"),
    ],
)
def test_nothing_written_is_told_with_the_reasons(tmp_path, small_tokenizer, name, data, changes, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"gave no record: {told}"):
        run(tmp_path / name, tmp_path / "out", small_tokenizer, **changes)


BAD_LINES = [b"{oops", b'"\xff"', b'{"x": "text"}', b'"\\ud800"', b"9" * 4400, b"[" * 9999, b'{"text": 1}', b"null"]
PIECE = st.one_of(st.sampled_from(BAD_LINES), st.sampled_from([b"", b" "]), TEXT.map(lambda t: json.dumps(t).encode()))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECE, max_size=30), st.integers(1, 300))
def test_whatever_a_line_holds_the_account_is_that_of_the_lines(
    tmp_path_factory, small_tokenizer, monkeypatch, lines, unit
):
    folder = tmp_path_factory.mktemp("account")
    monkeypatch.setattr(units, "UNIT_BYTES", unit)
    data = b"\n".join([*lines, b'"last"'])
    (folder / "a.jsonl").write_bytes(data)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(data))
    (folder / "c.zip").write_bytes(zip_with([("x.jsonl", data), ("y.txt", b"text")]))
    account = run(folder, folder / "out", small_tokenizer, bad="skip")["account"]
    there = [line for line in [*lines, b'"last"'] if line.strip()]
    wrong, empty = sum(line in BAD_LINES for line in there), there.count(b'""')
    assert account["documents_in"] == 3 * len(there) + 1 and account["documents_dropped_bad"] == 3 * wrong
    assert account["documents_dropped_empty"] == 3 * empty
    assert account["documents_written"] == 3 * (len(there) - wrong - empty) + 1


@pytest.mark.parametrize("bad", [b"x" * 4_000_000 + b"\xff", b"x" * 9_000_000, b" " * 9_000_000])
def test_a_large_text_that_cannot_be_written_is_dropped_whole(tmp_path, small_tokenizer, prose, bad):
    text = prose.encode() * 13
    (tmp_path / "a.txt").write_bytes(text + bad + b" " + text[: 1 << 20])
    write_lines(tmp_path / "b.jsonl", ["fine"])
    manifest = run(tmp_path, tmp_path / "o", small_tokenizer, bad="skip")
    assert rows_of(tmp_path / "o", manifest) == plain_records(["fine"], small_tokenizer, 16)
    account = manifest["account"]
    assert (account["documents_in"], account["documents_dropped_bad"]) == (2, 1)


def test_all_bad_inputs_at_once(tmp_path, small_tokenizer):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.csv", "b.html", "c.docx"):
        (folder / name).write_bytes(b"")
    (folder / "d.jsonl").write_bytes(b'{"text": "fine"}\n{"text": 3}\n"\\ud800 alone"\n"fine too"\n{\n')
    (folder / "e.txt").write_bytes(b"\xff")
    with pytest.raises(DataError) as caught:
        run(folder, tmp_path / "o", small_tokenizer)
    message = str(caught.value)
    assert message.startswith("3 inputs cannot be read:\n  ") and "--bad skip leaves them out" in message
    assert "--text_key" in message and "take the text out of it first" in message
    for name in ("a.csv", "b.html", "c.docx"):
        (folder / name).unlink()
    with pytest.raises(DataError) as caught:
        run(folder, tmp_path / "o", small_tokenizer)
    listed = [line.rsplit("/", 1)[1].split(": ")[0] for line in str(caught.value).split("\n")[1:-1]]
    assert listed == ["d.jsonl:2", "d.jsonl:3", "d.jsonl:5", "e.txt"]
    (folder / "f.csv").write_bytes(b"")
    options = PrepareOptions(str(folder), str(tmp_path / "r"), encoder_path=small_tokenizer, bad="report")
    totals = report(options, silent)
    assert [totals.account.documents_in, totals.account.documents_dropped_bad] == [7, 5] and len(totals.bad) == 5
    assert not (tmp_path / "r").exists()


def test_signs_of_what_is_not_meant_as_text(tmp_path, small_tokenizer):
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo<|endoftext|>")
    (tmp_path / "b.txt").write_bytes("plain text".encode("utf-16-le"))
    (tmp_path / "c.txt").write_bytes("plain text".encode("utf-16-be"))
    (tmp_path / "d.txt").write_bytes("plain text".encode("utf-32-le"))
    (tmp_path / "e.jsonl").write_text('{"text": "a\\u0000b"}')
    manifest = run(tmp_path, tmp_path / "o", small_tokenizer)
    found = {sign: (count, place.rsplit("/", 1)[1]) for sign, (count, place) in manifest["signs"].items()}
    assert found == {
        "end_of_text": (2, "a.txt"),
        "nul": (4, "b.txt"),
        "utf-16-le": (1, "b.txt"),
        "utf-16-be": (1, "c.txt"),
        "utf-32-le": (1, "d.txt"),
    }
    manifest = run(tmp_path / "a.txt", tmp_path / "o2", small_tokenizer, split_on="<|endoftext|>")
    assert rows_of(tmp_path / "o2", manifest) == plain_records(["one", "two"], small_tokenizer, 16)
    assert manifest["signs"] == {} and manifest["account"]["documents_in"] == 2


def test_mistakes(corpus, tmp_path, small_tokenizer):
    def fails(message, **changes):
        with pytest.raises(DataError, match=message):
            run(corpus, tmp_path / "out", small_tokenizer, **changes)

    fails("--separator has id 60000", separator=(60_000,))
    fails("--chunk_size is 1; expected at least 2", chunk_size=1)
    fails("--mode is 'x'; expected one of chunks, documents", mode="x")
    fails("--name is 'a/b'", name="a/b")
    fails("--name is '.a'; expected the first part of a file name, that is not hidden", name=".a")
    fails("cannot be written", output_dir="/proc/nowhere")
    run(corpus, tmp_path / "out", small_tokenizer)
    fails("already holds data_0_")


@pytest.mark.parametrize("first, second", [("data", "data_held"), ("data_held", "data"), ("data", "data_2")])
def test_no_set_is_in_the_pattern_of_another(corpus, tmp_path, small_tokenizer, first, second):
    """What is held out under such a name would be trained on."""
    out = tmp_path / "out[1]"
    manifest = run(corpus, out, small_tokenizer, name=first)
    with pytest.raises(DataError, match=r"out\[1\]' .* pattern data_\*\.tfrecords .*: choose another name or folder"):
        run(corpus, out, small_tokenizer, name=second)
    with pytest.raises(DataError, match=f"already holds {first}_0_"):
        run(corpus, out, small_tokenizer, name=first)
    assert {*manifest["files"], f"{first}_manifest.json"} == set(contents(out))
    run(corpus, out, small_tokenizer, name="database")


def test_cleaning_is_off_unless_asked_for(tmp_path, small_tokenizer):
    write_lines(tmp_path / "in.jsonl", ["a @-@ b , c", "sch\u00c3\u00b6n"])
    for changes, texts in (
        ({}, ["a @-@ b , c", "sch\u00c3\u00b6n"]),
        ({"wikitext_detokenize": True}, ["a-b, c", "sch\u00c3\u00b6n"]),
        ({"ftfy": True}, ["a @-@ b , c", "sch\u00f6n"]),
    ):
        folder = tmp_path / "-".join(["out", *changes])
        manifest = run(tmp_path / "in.jsonl", folder, small_tokenizer, **changes)
        assert rows_of(folder, manifest) == plain_records(texts, small_tokenizer, 16)


def test_wikitext_spacing():
    spaced = 'The " quoted " word ( here ) costs 3 @,@ 000 @.@ 5 $ ; it \'s fine . \n = = Title = = \n Next , N lines'
    plain = 'The "quoted" word (here) costs 3,000.5 $; it\'s fine.\n== Title ==\nNext, N lines'
    assert detokenize_wikitext(spaced) == plain
    assert detokenize_wikitext("a N b /' 5/", legacy=True) == "a 1 b /'[0-9]/"


@settings(max_examples=300, deadline=None)
@given(st.text("()[]\"' a\n\u2003", max_size=30), st.sampled_from(["()", "[]", '""', "''"]))
def test_white_space_inside_brackets_as_the_expression_takes_it(text, pair):
    left, right = pair
    inside = rf"{re.escape(left)}\s*([^{re.escape(right)}]*?)\s*{re.escape(right)}"
    assert tight(text, left, right) == re.sub(inside, rf"{left}\1{right}", text)


def test_brackets_that_never_close_take_no_time():
    began = time.monotonic()
    assert detokenize_wikitext("( " * 100_000) == ("( " * 100_000)
    assert time.monotonic() - began < 30  # an expression would take minutes


def test_dataset_config_for_training(corpus, tmp_path, small_tokenizer):
    manifest = run(corpus, tmp_path / "out", small_tokenizer)
    config = dataset_config(manifest, str(tmp_path / "out"), "held/*.tfrecords")
    assert config == {
        "n_vocab": 400,
        "path": str(tmp_path / "out" / "data_*.tfrecords"),
        "eval_path": os.path.abspath("held/*.tfrecords"),  # as far as the config is from where it was made
        "tokenizer_path": small_tokenizer,
        "tokenizer_is_pretrained": False,
        "eos_id": 0,
        "padding_id": 1,
    }
    nameless = {**manifest["tokenizer"], "eos_id": None, "padding_id": None}
    config = dataset_config({**manifest, "separator": [7], "tokenizer": nameless}, "gs://b/p")
    assert (config["eos_id"], config["padding_id"]) == (7, 7)
    assert dataset_config(manifest, "gs://b/p")["path"] == "gs://b/p/data_*.tfrecords"
    first = {**manifest["tokenizer"], "eos_id": 5, "padding_id": 0}
    config = dataset_config({**manifest, "separator": [], "tokenizer": first}, "gs://b/p")
    assert (config["eos_id"], config["padding_id"]) == (5, 0), "0 is an id"
    os.makedirs(tmp_path / "x[1]")
    made = [shutil.copy(path, tmp_path / "x[1]") for path in glob.glob(str(tmp_path / "out" / "data_*.tfrecords"))]
    assert sorted(glob.glob(dataset_config(manifest, str(tmp_path / "x[1]"))["path"])) == sorted(made) and made


@pytest.mark.parametrize("files_per", [1, 2, 100])
def test_masks_leave_out_what_fills_up_the_last_record(tmp_path, small_tokenizer, files_per):
    write_lines(tmp_path / "in.jsonl", ["a b c d e f g h", "the value of the object", "x" * 30])
    plain = run(tmp_path / "in.jsonl", tmp_path / "plain", small_tokenizer, files_per=files_per)
    masked = run(tmp_path / "in.jsonl", tmp_path / "masked", small_tokenizer, files_per=files_per, mask_filling=True)
    assert rows_of(tmp_path / "masked", masked) == rows_of(tmp_path / "plain", plain)
    fill, mask = masked["account"]["fill_tokens"], []
    for name in masked["files"]:
        for _, record in read_frames(str(tmp_path / "masked" / name)):
            mask += parse_example(record, "mask").tolist()
    assert 0 < fill < 16 and mask == [1] * (len(mask) - fill) + [0] * fill
    assert len(mask) == masked["account"]["tokens_written"]
