"""A Hugging Face folder, or a name on its hub, where a run is read: one command, nothing made by hand."""

import contextlib
import io
import os
import shutil
import subprocess
import sys

import pytest

import gpt_neo
from gpt_neo.__main__ import main
from gpt_neo.cli import imported
from gpt_neo.errors import ConfigError, GptNeoError
from tests.checkpoint.peers import save_tiny
from tests.conftest import ROOT
from tests.fake_hub import fake_hub

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
PROMPT, NEW = "The reindeer", 12


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    return save_tiny(str(tmp_path_factory.mktemp("hub") / "tiny"), world.tokenizer)


@pytest.fixture(scope="module")
def continued(model):
    """What transformers goes on with."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model)
    how = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 1}
    return tokenizer.decode(theirs.generate(ids, attention_mask=torch.ones_like(ids), **how)[0, ids.shape[1] :])


def command(words, folder, **environment):
    """A command in an empty folder: (exit status, standard output, standard error)."""
    environment = {**os.environ, "PYTHONPATH": ROOT, imported.FOLDER: str(folder / "kept"), **environment}
    environment["HF_HOME"], environment["HF_HUB_DISABLE_XET"] = str(folder / "cache"), "1"
    (folder / "here").mkdir(exist_ok=True)
    words = [sys.executable, "-m", "gpt_neo", *words]
    done = subprocess.run(
        words, cwd=folder / "here", env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_name_on_the_hub_is_sampled(model, continued, tmp_path):
    words = ["sample", "org/tiny", PROMPT, "--max_tokens", str(NEW), "--temperature", "0"]
    with fake_hub({"org/tiny": model}) as (url, _):
        status, out, error = command(words, tmp_path, HF_ENDPOINT=url)
        assert status == 0, error
        assert "org/tiny becomes a run first, once" in out and "logits differ by at most" in out
        assert PROMPT + continued in out and "tiny:" in out, "named after the model"
        status, again, error = command(words, tmp_path, HF_ENDPOINT=url)
        assert status == 0 and "becomes a run" not in again and PROMPT + continued in again, error
    assert os.listdir(tmp_path / "here") == [], "nothing where it was asked"
    status, _, error = command(["sample", "org/tiny", "x"], tmp_path / "cache", HF_ENDPOINT="http://127.0.0.1:9")
    assert status == 2 and error.startswith("error: 'org/tiny': no such folder here, and it cannot be had from http")
    assert len(error.strip().splitlines()) == 1


def convert_here(source, folder):
    """As `imported.convert`, whose process has everything to import once more."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["import-hf", source, folder]) == 0
    return []


def test_a_folder_is_loaded_and_followed(model, continued, tmp_path, monkeypatch, capfd):
    """From Python, silently; another model under the same path is another run."""
    monkeypatch.setenv(imported.FOLDER, str(tmp_path / "kept"))
    folder = shutil.copytree(model, tmp_path / "tiny")
    first = gpt_neo.load(str(folder))
    assert first.name == "tiny"
    assert first.generate(PROMPT, max_tokens=NEW, temperature=0.0) == continued
    assert gpt_neo.load(str(folder)).folder == first.folder
    assert capfd.readouterr() == ("", "")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        theirs.transformer.wte.weight.add_(torch.randn(theirs.transformer.wte.weight.shape))
    theirs.save_pretrained(folder)
    capfd.readouterr()  # their progress
    monkeypatch.setattr(imported, "convert", convert_here)
    second = gpt_neo.load(str(folder))
    assert second.folder != first.folder
    assert second.logprobs(PROMPT).total != pytest.approx(first.logprobs(PROMPT).total, rel=1e-3)
    assert capfd.readouterr() == ("", "")


def test_a_home_that_cannot_be_written_names_what_moves_the_folder(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(imported.FOLDER, str(tmp_path / "file" / "kept"))
    with pytest.raises(GptNeoError, match=r"file/kept, which cannot be written: .*; GPT_NEO_IMPORTED names"):
        imported.run_of(model)


def test_a_link_that_leads_nowhere(model, tmp_path, monkeypatch):
    """As an interrupted download leaves them in a cache: told where the file is needed, passed over elsewhere."""
    monkeypatch.setenv(imported.FOLDER, str(tmp_path / "kept"))
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "README.md").symlink_to("nowhere.md")
    with monkeypatch.context() as patch:
        patch.setattr(imported, "convert", convert_here)
        assert gpt_neo.load(str(tmp_path / "model")).step == 0
    os.remove(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").symlink_to("nowhere.safetensors")
    with pytest.raises(GptNeoError, match="model.safetensors"):
        gpt_neo.load(str(tmp_path / "model"))


def test_what_cannot_be_converted_says_why_and_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setenv(imported.FOLDER, str(tmp_path / "kept"))
    folder = shutil.copytree(model, tmp_path / "tiny")
    os.truncate(os.path.join(folder, "model.safetensors"), 1000)
    for _ in range(2):
        with pytest.raises(GptNeoError, match="cut off"):
            gpt_neo.load(str(folder))


@pytest.mark.parametrize("name", ["configs/nothing", "nothing.json", "nothing", "a/b.json"])
def test_other_names_are_mistakes(name):
    assert imported.run_of(name) == name
    with pytest.raises(ConfigError, match="no config"):
        gpt_neo.load(name)
