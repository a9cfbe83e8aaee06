"""Conversions from a bucket and into one: files as on disk, the telling ones last, nothing left of a failure."""

import os

import pytest

from gpt_neo import storage
from gpt_neo.__main__ import main as run
from gpt_neo.checkpoint.remote import uploaded_folder
from gpt_neo.errors import CheckpointError
from tests.checkpoint.peers import make_peer, save_peer
from tests.gcs import BUCKET

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_peer(make_peer("gpt2", inner=72), tmp_path_factory.mktemp("peer") / "hf", "bfloat16", sharded=True)


def put(folder, remote):
    for name in os.listdir(folder):
        storage.upload(os.path.join(folder, name), f"{remote}/{name}")


def content(folder):
    return {path.rpartition("/")[2]: storage.read_bytes(path) for path in storage.list_files(folder)}


def test_in_and_out_by_way_of_a_bucket(source, tmp_path, gcs, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    order = []
    upload = storage.upload
    monkeypatch.setattr(
        storage, "upload", lambda local, path: (order.append(path.rpartition("/")[2]), upload(local, path))
    )
    put(source, f"gs://{BUCKET}/hf")
    # what lies beside the weights of a release and is not read
    storage.write_bytes(f"gs://{BUCKET}/hf/pytorch_model.bin", b"x" * 100)
    order.clear()
    assert run(["import-hf", f"gs://{BUCKET}/hf/", f"gs://{BUCKET}/run"]) == 0
    assert "verified  logits differ by at most" in capsys.readouterr().out
    assert order[-3:] == ["model.ckpt-0.index", "config.json", "checkpoint"] and "model.ckpt-0.json" in order[:-3]
    assert not any("pytorch_model" in path and method == "GET" and "alt=media" in path for method, path in gcs.requests)
    assert run(["import-hf", source, str(tmp_path / "run"), "--verify", "none"]) == 0
    assert content(f"gs://{BUCKET}/run") == content(str(tmp_path / "run"))
    order.clear()
    for place in (f"gs://{BUCKET}/out", str(tmp_path / "out")):
        assert run(["export-hf", str(tmp_path / "run"), place, "--shard_gb", "0.00003", "--verify", "numpy"]) == 0
    assert order[-2:] == ["model.safetensors.index.json", "config.json"] and len(order) > 6
    assert content(f"gs://{BUCKET}/out") == content(str(tmp_path / "out"))
    capsys.readouterr()
    assert run(["export-hf", str(tmp_path / "run"), f"gs://{BUCKET}/out"]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


def test_mistakes_are_told_with_the_names_of_the_bucket(source, tmp_path, gcs, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    put(source, f"gs://{BUCKET}/hf2")
    shard = next(name for name in os.listdir(source) if name.startswith("model-"))
    storage.delete(f"gs://{BUCKET}/hf2/{shard}", within=f"gs://{BUCKET}/hf2")
    storage.write_bytes(f"gs://{BUCKET}/other/config.json", b'{"model_type": "llama"}')
    storage.write_bytes(f"gs://{BUCKET}/other/model.safetensors", b"gigabytes")
    gcs.requests.clear()
    for place, message in (
        ("hf2", f"gs://{BUCKET}/hf2/model.safetensors.index.json: shard {shard} is missing"),
        ("none", f"gs://{BUCKET}/none: has no config.json"),
        ("other", f"gs://{BUCKET}/other/config.json: model_type is 'llama'; allowed: "),
    ):
        assert run(["import-hf", f"gs://{BUCKET}/{place}", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert not any("other/model" in path or "other%2Fmodel" in path for _, path in gcs.requests), "it was not copied"
    assert run(["import-hf", source, f"gs://{BUCKET}"]) == 2
    assert f"gs://{BUCKET}: a whole bucket" in capsys.readouterr().err


@pytest.mark.parametrize("error, raised", [(OSError(5, "broken"), CheckpointError), (KeyboardInterrupt(),) * 2])
def test_a_failed_copy_leaves_nothing(gcs, monkeypatch, error, raised):
    folder, upload = f"gs://{BUCKET}/failed", storage.upload

    def third_fails(local, path):
        if path.endswith("c"):
            raise error
        upload(local, path)

    monkeypatch.setattr(storage, "upload", third_fails)
    with pytest.raises(raised if isinstance(raised, type) else type(raised)), uploaded_folder(folder) as staging:
        for name in "abc":
            with open(os.path.join(staging, name), "w", encoding="utf-8") as handle:
                handle.write(name)
    assert storage.list_files(folder) == [] and not os.path.exists(staging)
