"""Preparation from and to Google Cloud Storage, a server on loopback, with failures put in."""

import gzip
import json
import os

import pytest

from gpt_neo import storage
from gpt_neo.cli.commands import main
from gpt_neo.dataprep import ledger, units
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.dataprep.prepare import prepare
from gpt_neo.dataprep.survey import survey
from gpt_neo.errors import DataError
from tests.dataprep.test_prepare import silent, write_lines
from tests.gcs import BUCKET

SOURCE, TARGET = f"gs://{BUCKET}/in", f"gs://{BUCKET}/out/set"


@pytest.fixture
def texts(tmp_path, gcs, prose):
    """The same inputs in a folder and in the bucket."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [prose[i * 1000 : i * 1010] for i in range(20)])
    (folder / "b.txt").write_text(prose[:9000], encoding="utf-8")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": prose[:3000]}).encode()))
    for name in os.listdir(folder):
        storage.write_bytes(f"{SOURCE}/{name}", (folder / name).read_bytes())
    return str(folder)


def run(source, target, tokenizer, work, **changes):
    options = PrepareOptions(
        source, target, encoder_path=tokenizer, chunk_size=16, files_per=100, work_dir=str(work), **changes
    )
    return prepare(options, silent)


def objects():
    return {path.rsplit("/", 1)[1]: storage.read_bytes(path) for path in storage.list_files(TARGET)}


@pytest.mark.parametrize("faults", [(), ("503", "drop", "late drop", 0.01)], ids=["calm", "faults"])
def test_same_objects_as_files(texts, tmp_path, small_tokenizer, gcs, monkeypatch, faults):
    monkeypatch.setattr(units, "UNIT_BYTES", 4000)
    local = run(texts, str(tmp_path / "out"), small_tokenizer, tmp_path / "work1")
    if faults:
        gcs.fail(*faults, every=4)
    remote = run(SOURCE, TARGET, small_tokenizer, tmp_path / "work2")
    gcs.fail()
    assert remote["account"] == local["account"] and len(remote["files"]) > 3
    found = objects()
    assert set(found) == {*remote["files"], "data_manifest.json"}
    for name in remote["files"]:
        assert found[name] == (tmp_path / "out" / name).read_bytes()
    assert not list((tmp_path / "work2").iterdir())
    assert survey([f"{TARGET}/data_*.tfrecords"]).records == local["account"]["records_written"]
    with pytest.raises(DataError, match="already holds data_0_100.tfrecords"):
        run(SOURCE, TARGET, small_tokenizer, tmp_path / "work2")


def test_a_run_that_ends_between_upload_and_ledger_is_resumed(texts, tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 4000)
    whole = run(SOURCE, TARGET, small_tokenizer, tmp_path / "work")
    expected = objects()
    storage.delete_folder(TARGET, within=f"gs://{BUCKET}/out")
    with monkeypatch.context() as patch:

        def ended(self, value):
            raise KeyboardInterrupt

        patch.setattr(ledger.Ledger, "add_shard", ended)
        with pytest.raises(KeyboardInterrupt):
            run(SOURCE, TARGET, small_tokenizer, tmp_path / "work")
    assert list(objects()) == [whole["files"][0]]
    run(SOURCE, TARGET, small_tokenizer, tmp_path / "work")
    assert objects() == expected


@pytest.mark.parametrize("bad", ["stop", "skip"])
@pytest.mark.parametrize("name", ["a.jsonl", "b.txt", "c.jsonl.gz"])
def test_a_bucket_that_fails_costs_no_documents(texts, tmp_path, small_tokenizer, gcs, monkeypatch, bad, name):
    """Whoever skips bad documents does not want those that come after a lost permission to be skipped."""
    whole = run(SOURCE, f"{TARGET}/whole", small_tokenizer, tmp_path / "work", bad=bad)
    monkeypatch.setattr(gcs, "denied", name)
    with pytest.raises(DataError, match=rf"^{SOURCE}/{name}: cannot be read: no access: 403"):
        run(SOURCE, f"{TARGET}/part", small_tokenizer, tmp_path / "work", bad=bad)
    gcs.denied = ""
    assert run(SOURCE, f"{TARGET}/part", small_tokenizer, tmp_path / "work", bad=bad) == whole


def test_mistakes(texts, tmp_path, small_tokenizer):
    with pytest.raises(DataError, match=f"--input_dir 'gs://{BUCKET}/none': no files there"):
        run(f"gs://{BUCKET}/none", TARGET, small_tokenizer, tmp_path / "work")
    with pytest.raises(DataError, match="--input_dir 'gs://absent/x': cannot be listed: no such object or bucket"):
        run("gs://absent/x", TARGET, small_tokenizer, tmp_path / "work")
    with pytest.raises(DataError, match="--output_dir 'gs://absent/x': cannot be written: no such object or bucket"):
        run(texts, "gs://absent/x", small_tokenizer, tmp_path / "work")


def test_a_tokenizer_goes_to_a_bucket_and_to_the_home_folder(texts, tmp_path, gcs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = []
    for folder in ("here", "~/there", f"gs://{BUCKET}/made"):
        assert main(["train-tokenizer", "--base_dir", texts, "--vocab_size", "300", "--output_dir", folder]) == 0
        made.append(storage.read_bytes(storage.local(storage.join(folder, "tokenizer.json"))))
    assert made[0] == made[1] == made[2] and json.loads(made[0])["model"]["type"] == "BPE"
    assert sorted(os.listdir(tmp_path)) == ["here", "home", "in"]
