"""Local paths and a Google Cloud Storage server on loopback, with failures put in."""

import io
import os
import re
import subprocess
import time

import pytest

from gpt_neo import storage
from gpt_neo.errors import CheckpointError, ConfigError, DataError
from gpt_neo.storage import tensorflow as files
from tests.gcs import BUCKET, quick_retries


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    """A folder of each kind."""
    if request.param == "local":
        return str(tmp_path / "folder")
    request.getfixturevalue("gcs")
    return f"gs://{BUCKET}/folder"


def test_links_to_folders_are_followed_once(tmp_path):
    """Texts often lie elsewhere, on a larger disk; a link back, or a second one, is no second text."""
    for place in ("here", "there/deep"):
        os.makedirs(tmp_path / place)
    (tmp_path / "here" / "a.txt").write_text("a")
    (tmp_path / "there" / "deep" / "b.txt").write_text("b")
    os.symlink(tmp_path / "there", tmp_path / "here" / "link")
    os.symlink(tmp_path / "there", tmp_path / "here" / "second")
    os.symlink(tmp_path / "here", tmp_path / "there" / "back")
    os.makedirs(tmp_path / "here" / "own")
    (tmp_path / "here" / "own" / "c.txt").write_text("c")
    os.symlink(tmp_path / "here" / "own", tmp_path / "here" / "alias")
    found = storage.list_files(str(tmp_path / "here"))
    assert [os.path.relpath(path, tmp_path / "here") for path in found] == ["a.txt", "link/deep/b.txt", "own/c.txt"]


def test_write_list_read_delete(folder):
    storage.make_folder(folder)
    assert not storage.exists(storage.join(folder, "a"))
    for name, data in (("a.txt", b"one"), ("b_2.txt", b""), ("b_10.txt", b"ten")):
        storage.write_bytes(storage.join(folder, name), data)
    assert storage.is_folder(folder) and not storage.is_folder(storage.join(folder, "a.txt"))
    assert not storage.exists(storage.join(folder, "a.txt", "config.json"))  # below a file
    names = [path.rsplit("/", 1)[1] for path in storage.list_files(folder)]
    assert names == ["a.txt", "b_10.txt", "b_2.txt"]
    assert [path.rsplit("/", 1)[1] for path in storage.glob(storage.join(folder, "b_?.t[xy]t"))] == ["b_2.txt"]
    assert storage.glob(storage.join(folder, "x*")) == []
    path = storage.join(folder, "a.txt")
    assert storage.read_bytes(path) == b"one" and storage.size(path) == 3
    before = storage.version(path)
    time.sleep(0.01)
    storage.write_bytes(path, b"two!")
    assert storage.read_bytes(path) == b"two!" and storage.version(path) != before
    storage.delete(path, within=folder)
    storage.delete(path, within=folder)
    assert not storage.exists(path)
    with pytest.raises(FileNotFoundError):
        storage.size(path)
    with pytest.raises(FileNotFoundError):
        storage.open_read(path).read()


def test_reading_from_any_place(folder):
    storage.make_folder(folder)
    data = bytes(range(256)) * 40
    path = storage.join(folder, "data")
    storage.write_bytes(path, data)
    with storage.open_read(path) as handle:
        assert handle.read(10) == data[:10] and handle.tell() == 10
        handle.seek(5000)
        assert handle.read(7) == data[5000:5007]
        handle.seek(0)
        assert io.BufferedReader(handle).read() == data
    storage.write_bytes(path, b"a\nb\n")
    with storage.open_read(path) as handle:
        assert list(handle) == [b"a\n", b"b\n"]


def test_a_failed_write_leaves_what_was_there(folder):
    storage.make_folder(folder)
    path = storage.join(folder, "x")
    storage.write_bytes(path, b"old")
    with pytest.raises(RuntimeError):
        with storage.writing(path) as handle:
            handle.write(b"new")
            raise RuntimeError
    assert storage.read_bytes(path) == b"old"
    assert [name.rsplit("/", 1)[1] for name in storage.list_files(folder)] == ["x"]
    if not storage.is_remote(folder):
        assert os.listdir(folder) == ["x"]


def test_hidden_and_nested_files(folder):
    storage.make_folder(folder)
    for name in ("a/b.txt", ".hidden/c.txt", "a/.d.txt", "e.txt"):
        storage.make_folder(os.path.dirname(storage.join(folder, name)))
        storage.write_bytes(storage.join(folder, name), b"")
    assert [path[len(folder) + 1 :] for path in storage.list_files(folder)] == ["a/b.txt", "e.txt"]
    assert [path[len(folder) + 1 :] for path in storage.glob(storage.join(folder, "*.txt"))] == ["e.txt"]
    found = [path[len(folder) + 1 :] for path in storage.glob(storage.join(folder, "**", "*.txt"))]
    assert [path for path in found if "/." not in f"/{path}"] == ["a/b.txt", "e.txt"]


@pytest.mark.parametrize(
    "path, within",
    [
        ("/tmp/a", "/tmp/b"),
        ("/tmp/a", "/tmp/a"),
        ("/tmp/b/../a", "/tmp/b"),
        ("/etc", "/"),
        ("gs://b/a", "gs://b"),
        ("gs://b/a", "gs://b/"),
        ("gs://b/ab", "gs://b/a"),
        ("gs://b/a/../c", "gs://b/a"),
        ("gs://c/a/x", "gs://b/a"),
        ("gs://b/a", "/tmp"),
        ("/tmp/x", "gs://b/a"),
    ],
)
def test_nothing_is_deleted_outside_the_fence(path, within):
    for delete in (storage.delete, storage.delete_folder):
        with pytest.raises(ValueError, match="refusing to delete"):
            delete(path, within)


def test_a_folder_is_deleted_with_what_is_in_it(folder):
    storage.make_folder(folder)
    for name in ("work/a", "work/b", "kept"):
        storage.make_folder(os.path.dirname(storage.join(folder, name)))
        storage.write_bytes(storage.join(folder, name), b"x")
    storage.delete_folder(storage.join(folder, "work"), within=folder)
    storage.delete_folder(storage.join(folder, "work"), within=folder)
    assert [path.rsplit("/", 1)[1] for path in storage.list_files(folder)] == ["kept"]


def big_file(tmp_path, size):
    path = tmp_path / "big"
    path.write_bytes(os.urandom(size))
    return str(path)


FAULTS = [("503",), ("drop",), ("late drop",), (0.05,), ("503", "drop", "late drop", 0.02)]


@pytest.mark.parametrize("faults", FAULTS, ids=str)
@pytest.mark.parametrize("size", [1000, (9 << 20) + 5])
def test_uploads_survive_faults(gcs, tmp_path, monkeypatch, faults, size):
    monkeypatch.setattr(storage.buckets, "UPLOAD_CHUNK", 4 << 20)
    local, path = big_file(tmp_path, size), f"gs://{BUCKET}/up/file"
    gcs.fail(*faults, every=3)
    storage.upload(local, path)
    gcs.fail()
    with open(local, "rb") as handle:
        assert storage.read_bytes(path) == handle.read()
    assert storage.list_files(f"gs://{BUCKET}/up") == [path]
    assert len(gcs.requests) > 3


@pytest.mark.parametrize("faults", [*FAULTS, ("cut",)], ids=str)
def test_reading_listing_and_deleting_survive_faults(gcs, monkeypatch, faults):
    monkeypatch.setattr(storage.buckets, "READ_CHUNK", 1 << 18)
    data = os.urandom(1 << 20)
    for name in "abc":
        storage.write_bytes(f"gs://{BUCKET}/d/{name}", data)
    gcs.fail(*faults, every=2)
    assert storage.list_files(f"gs://{BUCKET}/d") == [f"gs://{BUCKET}/d/{name}" for name in "abc"]
    with storage.open_read(f"gs://{BUCKET}/d/a") as handle:
        handle.seek(1000)
        assert handle.read() == data[1000:]
    storage.delete(f"gs://{BUCKET}/d/b", within=f"gs://{BUCKET}/d")
    gcs.fail()
    assert storage.list_files(f"gs://{BUCKET}/d") == [f"gs://{BUCKET}/d/a", f"gs://{BUCKET}/d/c"]


def test_a_server_that_never_answers_well(gcs, tmp_path, monkeypatch):
    monkeypatch.setattr(storage.buckets, "UPLOAD_ATTEMPTS", 2)
    monkeypatch.setattr(storage.buckets, "retries", lambda path: quick_retries(path).with_timeout(0.2))
    gcs.fail("503", every=1)
    with pytest.raises(OSError, match="503"):
        storage.upload(big_file(tmp_path, 100), f"gs://{BUCKET}/never")
    gcs.fail()
    assert not storage.exists(f"gs://{BUCKET}/never")


def test_what_is_in_the_way_is_told_while_it_is_tried_again(monkeypatch, caplog):
    """Whose names are not known, as without a network: nobody waits for minutes without a word."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://nowhere.invalid")
    monkeypatch.setattr(storage.buckets, "QUIET", 0.1)
    monkeypatch.setattr(storage.buckets, "DEADLINE", 3)
    with pytest.raises(OSError, match="no answer in 3 seconds: .*nowhere.invalid"):
        storage.list_files("gs://bucket/some/")
    (told,) = caplog.messages
    assert told.startswith("gs://bucket/some/: ") and told.endswith("; it is tried again, 3 seconds in all")
    assert "Failed to resolve 'nowhere.invalid'" in told and "Max retries" not in told


@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_with_nothing_in_it_is_no_end_of_a_file(gcs, monkeypatch, whole):
    monkeypatch.setattr(storage.buckets, "READ_CHUNK", 1 << 16)
    path, data = f"gs://{BUCKET}/e/file", os.urandom(200_000)
    storage.write_bytes(path, data)
    with storage.open_read(path) as handle:
        assert (handle.read() if whole else b"".join(iter(lambda: handle.read(9000), b""))) == data
    gcs.fail(None, None, "empty", "empty")
    with storage.open_read(path) as handle, pytest.raises(OSError, match="nothing came after [0-9,]+ of 200,000 bytes"):
        while handle.read(-1 if whole else 9000):
            pass


def test_an_object_that_came_out_different_is_sent_again(gcs, tmp_path, monkeypatch):
    real, seen = storage.buckets.has_checksum, []

    def wrong_once(path, checksum):
        seen.append(path)
        return real(path, checksum) and len(seen) > 1

    monkeypatch.setattr(storage.buckets, "has_checksum", wrong_once)
    storage.upload(big_file(tmp_path, 100), f"gs://{BUCKET}/twice")
    assert len(seen) == 2 and len([1 for method, path in gcs.requests if method == "POST"]) == 2
    monkeypatch.setattr(storage.buckets, "has_checksum", lambda path, checksum: False)
    with pytest.raises(OSError, match="differs from the file"):
        storage.upload(big_file(tmp_path, 100), f"gs://{BUCKET}/twice")


def test_mistakes_have_names(gcs):
    with pytest.raises(DataError, match="'gs:///x' names no bucket"):
        storage.exists("gs:///x")
    with pytest.raises(FileNotFoundError):
        storage.list_files("gs://no-such-bucket/x")
    assert not storage.exists("gs://no-such-bucket/x") and not storage.is_folder(f"gs://{BUCKET}/nothing")


def test_globs_are_of_names_not_of_paths():
    wanted = {"a*.txt": "ab.txt", "[!b]?.t": "ax.t", "**/x": "a/b/x", "a.b": "a.b", "p/**": "p/q/r"}
    for pattern, path in wanted.items():
        assert re.fullmatch(storage.buckets.glob_expression(pattern), path)
    for pattern, path in (("*.txt", "a/b.txt"), ("a?c", "a/c"), ("a.b", "aXb"), ("[!b]x", "bx")):
        assert not re.fullmatch(storage.buckets.glob_expression(pattern), path)


@pytest.mark.parametrize("path", ["s3://bucket/a", "hdfs://host/a", "abfss://c@host/a", "file:///a"])
def test_schemes_that_nothing_serves_are_refused(path):
    for act in (storage.exists, storage.glob, storage.read_bytes, storage.make_folder, storage.is_folder):
        with pytest.raises(ConfigError, match=rf"nothing here reads or writes {path.partition(':')[0]}://; expected a"):
            act(path)
    if not path.startswith("file"):  # which TensorFlow serves
        for act in (files.exists, files.glob, files.read_bytes, files.make_folder, files.names):
            with pytest.raises(ConfigError, match=f"TensorFlow neither reads nor writes {path.partition(':')[0]}://"):
                act(path)


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    storage.make_folder("~/runs")
    storage.write_bytes("~/runs/a", b"x\n")
    files.append_text("~/runs/a", "y")
    assert (tmp_path / "runs" / "a").read_bytes() == b"x\ny" == storage.read_bytes("~/runs/a")
    assert storage.glob("~/runs/*") == [str(tmp_path / "runs" / "a")] == storage.list_files("~/runs")
    assert storage.absolute("~/runs") == str(tmp_path / "runs") and storage.absolute("gs://b/~") == "gs://b/~"
    storage.delete("~/runs/a", within="~/runs")
    storage.delete_folder("~/runs", within="~")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["local", "ram"])
def test_files_of_a_job(tmp_path, kind):
    """The same through Python and through a file system of TensorFlow's."""
    folder = str(tmp_path / "run") if kind == "local" else f"ram://{tmp_path.name}/run"
    assert files.is_remote(folder) == (kind == "ram")
    files.make_folder(folder)
    path = f"{folder}/a.txt"
    assert not files.exists(path)
    for act in (files.size, files.read_bytes, files.changed, files.delete):
        with pytest.raises(FileNotFoundError):
            act(path)
    files.write_text(path, "one\n")
    first = files.changed(path)
    files.append_text(path, "and ½")
    files.append_text(f"{folder}/b.txt", "new")
    assert files.read_bytes(path).decode() == "one\nand ½" and files.size(path) == len("one\nand ½".encode())
    assert files.read_bytes(path, 4, 3) == b"and" and files.read_bytes(path, 8, 100) == "½".encode()
    assert files.changed(path) >= first >= 0  # TensorFlow keeps no times in memory
    assert files.names(folder) == ["a.txt", "b.txt"] and files.glob(f"{folder}/a*") == [path]
    assert files.is_folder(folder) and not files.is_folder(path)
    if kind == "ram":  # where TensorFlow adds to what is there
        files.delete(path)
    files.write_text(path, "less")
    assert files.read_bytes(path) == b"less" and files.names(folder) == ["a.txt", "b.txt"]
    files.delete(path)
    assert files.names(folder) == ["b.txt"]
    files.delete(folder)
    assert not files.is_folder(folder)


def test_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, "½"]}', encoding="utf-8")
    assert storage.read_json(str(path)) == {"a": [1, "½"]}
    path.write_text("{")
    with pytest.raises(CheckpointError, match="a.json:1: not valid JSON: Expecting[^;]*$"):
        storage.read_json(str(path), CheckpointError)
    with pytest.raises(DataError, match="b.json: cannot be read: No such file"):
        storage.read_json(str(tmp_path / "b.json"))


@pytest.mark.parametrize(
    "text, line, told",
    [
        ('{"a": 1, // one\n"b": 2}', 1, "; JSON has no comments"),
        ('# a\n{"a": 1}', 1, "; JSON has no comments"),
        ('{"a": 1\n/* two */}', 2, "; JSON has no comments"),
        ('{"a": [1,\n2,\n]}', 3, "; no comma may stand before ]"),
        ('{"a": 1,\n}', 2, "; no comma may stand before }"),
        ("{'a': 1}", 1, "; quotes have to be double"),
        ('{"a": \n True}', 2, "; it is true, false, null in JSON"),
    ],
)
def test_what_other_languages_have_and_json_has_not(text, line, told, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError) as caught:
        storage.read_json(str(tmp_path / "a.json"))
    assert f"a.json:{line}: not valid JSON" in str(caught.value) and str(caught.value).endswith(told)


def test_a_line_that_was_cut_off_swallows_no_other(tmp_path):
    path = tmp_path / "train_log.jsonl"
    for before, after in (("", ""), ('{"step": 1}\n', '{"step": 1}\n'), ('{"step": 1}\n{"st', '{"step": 1}\n{"st\n')):
        path.write_text(before)
        files.append_text(str(path), '{"step": 2}\n')
        files.append_text(str(path), "½\n")
        assert path.read_text() == after + '{"step": 2}\n½\n'


def test_a_copy_of_hard_links_has_logs_of_its_own(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    run.mkdir()
    (run / "train_log.jsonl").write_text("1\n")
    subprocess.run(["cp", "-al", str(run), str(copy)], check=True)
    files.append_text(str(copy / "train_log.jsonl"), "2\n")
    files.append_text(str(run / "train_log.jsonl"), "3\n")
    files.append_text(str(copy / "train_log.jsonl"), "4\n")
    assert (run / "train_log.jsonl").read_text() == "1\n3\n"
    assert (copy / "train_log.jsonl").read_text() == "1\n2\n4\n"
    assert sorted(path.name for path in copy.iterdir()) == ["train_log.jsonl"]
