"""Which documents are held out, and that none is lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_neo.dataprep.split import cut, held_out_numbers, split_texts
from gpt_neo.errors import DataError


@given(st.integers(0, 300), st.floats(0, 0.9), st.integers(0, 9))
def test_a_share_of_the_documents(count, share, seed):
    numbers = held_out_numbers(count, share, seed)
    assert numbers == held_out_numbers(count, share, seed) and numbers <= set(range(count))
    if share == 0 or count < 2:
        assert not numbers
    else:
        assert 1 <= len(numbers) <= count - 1
        assert abs(len(numbers) - min(max(count * share, 1), count - 1)) <= 0.5  # the nearest


def test_seeds_hold_out_others():
    assert len({held_out_numbers(100, 0.1, seed) for seed in range(5)}) == 5


@given(st.text(max_size=400), st.floats(0.01, 0.9))
def test_a_cut_loses_nothing(text, share):
    assert "".join(cut(text, share)) == text


def test_a_cut_is_between_paragraphs():
    text = "word " * 20 + "\n\n" + "other " * 20
    assert cut(text, 0.55) == ("word " * 20 + "\n\n", "other " * 20)


def test_a_cut_is_near_the_share():
    assert cut("a" * 90 + " " + "b" * 9, 0.5) == ("a" * 50, "a" * 40 + " " + "b" * 9)  # the space is too far
    assert cut("a" * 70 + " " + "b" * 29, 0.5) == ("a" * 70 + " ", "b" * 29)
    assert cut("ab", 0.9) == ("a", "b")


def test_documents_go_to_two_files_in_their_order(tmp_path):
    (tmp_path / "notes").mkdir()
    for i in range(4):
        (tmp_path / "notes" / f"{i}.txt").write_text(f"note {i}")
    lines = [json.dumps({"body": f"line {i}"}) for i in range(16)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    paths = [str(tmp_path / name) for name in ("train", "held")]
    inputs = [str(tmp_path / "notes"), str(tmp_path / "lines.jsonl")]
    assert split_texts(inputs, 0.25, 3, "body", *paths) == (15, 5)
    kept, held = ([json.loads(line)["text"] for line in open(path)] for path in paths)
    everything = [f"note {i}" for i in range(4)] + [f"line {i}" for i in range(16)]
    assert sorted(kept + held) == sorted(everything)
    assert kept == [text for text in everything if text in kept], "in the order of the inputs"
    with pytest.raises(DataError, match="expected an object with a string under 'text'"):
        split_texts(inputs, 0.25, 3, "text", *paths)


def test_one_document_gives_its_end(tmp_path):
    (tmp_path / "book.txt").write_text("a chapter. " * 100)
    paths = [str(tmp_path / name) for name in ("train", "held")]
    assert split_texts([str(tmp_path / "book.txt")], 0.1, 0, "text", *paths) == (1, 1)
    kept, held = (json.loads(open(path).read())["text"] for path in paths)
    assert kept + held == "a chapter. " * 100 and 60 < len(held) <= 110
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(DataError, match="no text"):
        split_texts([str(tmp_path / "empty.txt")], 0.1, 0, "text", *paths)
