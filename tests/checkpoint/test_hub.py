"""Models by name, from a hub on loopback."""

import json
import os
import subprocess
import sys
import time

import pytest
from huggingface_hub import constants

from gpt_neo.checkpoint.hub import hub_snapshot, is_hub_name
from gpt_neo.errors import CheckpointError
from tests.conftest import ROOT
from tests.fake_hub import COMMIT, fake_hub

SCRIPT = """
import sys
from gpt_neo.checkpoint.hub import hub_snapshot
from gpt_neo.errors import CheckpointError
for name in sys.argv[1:]:
    try:
        print(hub_snapshot(name))
    except CheckpointError as error:
        print("refused", error)
"""


def snapshots(url, cache, *names):
    """A process of its own: the address of a hub is read when its client is imported."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(cache), "PYTHONPATH": ROOT}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = environment["HF_HUB_DISABLE_XET"] = "1"
    words = [sys.executable, "-c", SCRIPT, *names]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def folders(tmp_path):
    for name in ("good", "pickled"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        (tmp_path / name / "pytorch_model.bin").write_bytes(b"\x80\x04")
        (tmp_path / name / "README.md").write_text("not needed")
    (tmp_path / "good" / "model.safetensors").write_bytes(b"weights")
    return {"org/good": str(tmp_path / "good"), "org/pickled": str(tmp_path / "pickled")}


def test_a_model_by_name(folders, tmp_path):
    with fake_hub(folders) as (url, asked):
        good, pinned, pickled, none = snapshots(
            url, tmp_path / "cache", "org/good", f"org/good@{COMMIT}", "org/pickled", "org/none"
        )
        assert sorted(os.listdir(good)) == ["config.json", "model.safetensors"] and pinned == good
        assert open(os.path.join(good, "model.safetensors"), "rb").read() == b"weights"
        assert "has no safetensors" in pickled and f"no such model on {url}" in none
        assert not [path for path in asked if path.endswith((".bin", ".md"))], "pickles are never fetched"
        before = len(asked)
        assert snapshots(url, tmp_path / "cache", "org/good") == [good]
        fetched = [path for path in asked[before:] if path.endswith("model.safetensors")]
        assert len(fetched) <= 1, "it lies in the cache"
    (refused,) = snapshots("http://127.0.0.1:9", tmp_path / "empty", "org/good")
    assert "cannot be had from http://127.0.0.1:9" in refused


def test_weights_of_what_is_none_of_ours_are_not_fetched(folders, tmp_path):
    """Gigabytes that would come in vain: another family, code of the folder's own, adapters alone."""
    others = {
        "llama": ({"config.json": {"model_type": "llama"}}, "org/llama/config.json: model_type is 'llama'; allowed: "),
        "code": ({"config.json": {"model_type": "gpt2", "auto_map": {"AutoModel": "x.Y"}}}, "auto_map names code of"),
        "lora": ({"adapter_config.json": {}}, "'org/lora' holds adapters of PEFT, not a model"),
    }
    for name, (files, _) in others.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        for file, value in files.items():
            (tmp_path / name / file).write_text(json.dumps(value))
    with fake_hub({f"org/{name}": str(tmp_path / name) for name in others}) as (url, asked):
        told = snapshots(url, tmp_path / "cache", *(f"org/{name}" for name in others))
    told = [line for line in told if line.startswith("refused ")]
    for line, (_, expected) in zip(told, others.values()):
        assert expected in line
    assert len(told) == 3 and not [path for path in asked if path.endswith(".safetensors") and "resolve" in path]


def test_a_user_without_a_home_folder(tmp_path, monkeypatch):
    """The hub's client would make a folder named `~` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(CheckpointError, match="no home folder .*HF_HOME names a folder"):
        hub_snapshot("org/good")
    assert not os.listdir(tmp_path)


def test_why_a_hub_gives_no_model(tmp_path):
    """Its client's first line is `404 Client Error.` where a revision is missing."""
    refused = {
        "org/gated": (403, {"X-Error-Code": "GatedRepo"}),
        "org/tagged": (404, {"X-Error-Code": "RevisionNotFound"}),
        "org/token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        "org/busy": (429, {}),
    }
    with fake_hub({}, refused=refused) as (url, _):
        gated, tagged, token, busy = snapshots(url, tmp_path, "org/gated", "org/tagged@v9", "org/token", "org/busy@v1")
    assert f"{url}/org/gated is open to those alone who have asked" in gated and "HF_TOKEN" in gated
    assert f"org/tagged on {url} has no revision 'v9'" in tagged
    assert "401 Unauthorized" in token and "HF_TOKEN, or the token that is kept, is none" in token
    assert "429 Too Many Requests" in busy and "HF_TOKEN" not in busy


def test_a_hub_that_never_answers(folders, tmp_path, monkeypatch):
    """As behind a firewall that drops what it does not let through: the cache, or an error in time."""
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    with fake_hub(folders) as (url, _):
        (kept,) = snapshots(url, tmp_path / "cache", "org/good")
    with fake_hub(folders, silent=("org/good", "org/pickled")) as (url, _):
        began = time.monotonic()
        again, other = snapshots(url, tmp_path / "cache", "org/good", "org/pickled")
    assert again == kept and time.monotonic() - began < 30
    assert f"cannot be had from {url}: no answer in 1 s (HF_HUB_ETAG_TIMEOUT), and no whole copy in the cache" in other


def test_a_cache_that_cannot_be_written_is_not_the_hub_that_refuses(folders, tmp_path):
    (tmp_path / "file").write_text("")
    with fake_hub(folders) as (url, _):
        (told,) = snapshots(url, tmp_path / "file", "org/good")
    assert "cannot be kept" in told and f"{tmp_path / 'file'}" in told and "HF_HOME names another folder" in told


def test_what_can_be_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").mkdir()
    assert is_hub_name("EleutherAI/gpt-neo-125m") and is_hub_name("a/b@v1.0")
    for other in ("runs/mine", "demo", "gs://bucket/folder", "a/b/c", "./a/b", "a/b@"):
        assert not is_hub_name(other), other


PUSH = """
import sys
from gpt_neo.checkpoint.hub import push_folder
from gpt_neo.errors import CheckpointError
try:
    print(push_folder(*sys.argv[1:]))
except CheckpointError as error:
    print("refused", error)
"""


def push(url, cache, *words):
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(cache), "PYTHONPATH": ROOT, "HF_TOKEN": "hf_x"}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = environment["HF_HUB_DISABLE_XET"] = "1"
    command = [sys.executable, "-c", PUSH, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_is_uploaded(folders, tmp_path):
    with fake_hub({}, str(tmp_path / "made")) as (url, _):
        assert push(url, tmp_path / "cache", folders["org/good"], "me/new").startswith(url)
        (again,) = snapshots(url, tmp_path / "cache", "me/new")
        assert open(os.path.join(again, "model.safetensors"), "rb").read() == b"weights"
    refused = push("http://127.0.0.1:9", tmp_path / "cache", folders["org/good"], "me/new")
    assert "http://127.0.0.1:9 does not take it" in refused and "is there all the same" in refused
