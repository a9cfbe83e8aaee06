"""Manifests: which records they tell of, where they are looked for, and what stands in place of none."""

import dataclasses
import json

import pytest

from gpt_neo.dataprep.account import Totals
from gpt_neo.dataprep.manifest import finished, manifests_beside, nothing_written, refuse_several_tokenizers
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.dataprep.prepare import prepare
from gpt_neo.errors import DataError
from tests.dataprep.test_prepare import silent, write_lines


def test_records_are_known_by_what_they_were_made_with(tmp_path, small_tokenizer):
    """By every option that changes them, the tokenizer, and that they are there."""
    write_lines(tmp_path / "in.jsonl", ["a b c d e f g h", "the value of the object"])
    given = {"output_dir": str(tmp_path / "out"), "encoder_path": small_tokenizer, "chunk_size": 16}
    options = PrepareOptions(str(tmp_path / "in.jsonl"), **given)
    assert finished(options) is None
    manifest = prepare(options, silent)
    path = tmp_path / "out" / "data_manifest.json"
    assert finished(options) == manifest == json.loads(path.read_text())
    assert finished(dataclasses.replace(options, processes=3, work_dir=str(tmp_path))) == manifest
    other = {"mode": "documents", "chunk_size": 17, "files_per": 9, "minimum_size": 1, "separator": (5,), "seed": 1}
    other |= dict.fromkeys(("ftfy", "wikitext_detokenize", "deduplicate", "shuffle", "mask_filling"), True)
    other |= {"text_key": "body", "bad": "skip", "encoding": "cp1252", "split_on": "|", "input_dir": "elsewhere"}
    for key, value in other.items():
        assert finished(dataclasses.replace(options, **{key: value})) is None, key
    assert finished(options, legacy=True) is None
    for key in ("fingerprint", "encoding_fingerprint"):
        path.write_text(json.dumps({**manifest, "tokenizer": {**manifest["tokenizer"], key: "of another"}}))
        assert finished(options) is None, key
    older = {key: value for key, value in manifest["tokenizer"].items() if key != "encoding_fingerprint"}
    path.write_text(json.dumps({**manifest, "tokenizer": older}))  # manifests once had none
    assert finished(options)["files"] == manifest["files"]
    assert manifest.pop("mask_filling") is False
    path.write_text(json.dumps(manifest))  # nor this
    assert finished(options)["files"] == manifest["files"]
    assert finished(dataclasses.replace(options, mask_filling=True)) is None
    (tmp_path / "out" / manifest["files"][0]).unlink()
    assert finished(options) is None


def test_why_nothing_was_written_is_told_by_what_became_of_documents():
    totals, options = Totals(), PrepareOptions(("a", "b"), "out", minimum_size=7)
    for number, fate in enumerate(("empty", "short", "tail", "bad"), 2):
        setattr(totals.account, f"documents_dropped_{fate}", number)
    totals.account.documents_in = 14
    assert nothing_written(options, totals) == (
        "a, b: 14 documents gave no record: 2 empty, 3 of fewer than --minimum_size 7 tokens, 4 shorter than a record, "
        "5 not readable"
    )


def test_manifests_of_sets_whose_names_end_in_numbers(tmp_path):
    """And those of --legacy, of up to three numbers; the likeliest comes first."""
    for path, places in {
        "d/web_0_9.tfrecords": ["d/web"],
        "d/web_2020_0_9.tfrecord": ["d/web_2020", "d/web"],
        "d/web.tfrecords": ["d/web"],
        "d/web_7.tfrecords": ["d/web"],
        "d/a.jsonl": ["d/a.jsonl"],
    }.items():
        assert manifests_beside(path) == [f"{place}_manifest.json" for place in places]
    with pytest.raises(DataError, match="these records were made with several tokenizers, as a and b say"):
        refuse_several_tokenizers({"a": {"tokenizer": {"fingerprint": 1}}, "b": {"tokenizer": {}}}, "these records")
    same = {name: {"tokenizer": {"fingerprint": 1}} for name in "abc"}
    refuse_several_tokenizers(same, "these records")
