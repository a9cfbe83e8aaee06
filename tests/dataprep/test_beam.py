"""The Apache Beam pipeline writes the bytes that one machine writes."""

import os
import tempfile

import pytest

from gpt_neo.dataprep import prepare as engine
from gpt_neo.dataprep import shards, units
from gpt_neo.dataprep.beam import prepare_on_beam, user_mistake
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.errors import DataError
from tests.dataprep.test_prepare import contents, corpus, run, silent  # noqa: F401
from tests.gcs import BUCKET


@pytest.fixture
def beam():
    return pytest.importorskip("apache_beam", reason="the extra beam is not installed")


@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "documents", "files_per": 20}, {"shuffle": True, "seed": 5, "deduplicate": True}, {"bad": "skip"}],
    ids=str,
)
def test_same_bytes_as_on_one_machine(beam, corpus, tmp_path, small_tokenizer, monkeypatch, changes):  # noqa: F811
    monkeypatch.setattr(units, "UNIT_BYTES", 30_000)
    monkeypatch.setattr(shards, "BUCKET_EXTENT", 20_000)
    values = {"files_per": 999, **changes}
    alone = run(corpus, tmp_path / "alone", small_tokenizer, **values)
    options = PrepareOptions(str(corpus), str(tmp_path / "beam"), encoder_path=small_tokenizer, chunk_size=16, **values)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert prepare_on_beam(options) == alone
    assert contents(tmp_path / "beam") == contents(tmp_path / "alone")
    assert not os.listdir(tmp_path / "temporary"), "nothing is fetched, nothing is left"


def test_in_a_bucket(beam, corpus, tmp_path, small_tokenizer, gcs):  # noqa: F811
    from gpt_neo import storage

    alone = run(corpus, tmp_path / "alone", small_tokenizer, files_per=999)
    target = f"gs://{BUCKET}/beam"
    options = PrepareOptions(str(corpus), target, encoder_path=small_tokenizer, chunk_size=16, files_per=999)
    prepare_on_beam(options)
    found = {path.rsplit("/", 1)[1] for path in storage.buckets.paths_from(f"{target}/")}
    assert found == {*alone["files"], "data_manifest.json"}
    for name in alone["files"]:
        assert storage.read_bytes(f"{target}/{name}") == (tmp_path / "alone" / name).read_bytes()


def test_mistakes_come_as_one_line(beam, tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 20)
    (tmp_path / "in.jsonl").write_text('"one"\n"two"\n{bad}\n"three"\n[]\n')
    options = PrepareOptions(str(tmp_path / "in.jsonl"), str(tmp_path / "out"), encoder_path=small_tokenizer)
    with pytest.raises(DataError, match=r"in\.jsonl:3: not valid JSON") as caught:
        prepare_on_beam(options)
    assert "while running" not in str(caught.value)
    with pytest.raises(DataError, match="not standard input"):
        prepare_on_beam(PrepareOptions("-", str(tmp_path / "out")))


def test_without_beam(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(DataError, match=r"pip install -c \S+ -e '\S+\[beam\]'"):
        prepare_on_beam(PrepareOptions(str(tmp_path), str(tmp_path / "out")))
    assert user_mistake(ValueError("x")) is None and engine.prepare and silent
