"""What only reads a model beside a training that deletes checkpoints: the next newest one is read."""

import glob
import os
import shutil

import pytest

import gpt_neo
from gpt_neo.__main__ import main
from gpt_neo.checkpoint import fit
from gpt_neo.config import load_config
from gpt_neo.errors import CheckpointError
from tests.conftest import folder_of
from tests.model.tools import save_random

TINY = {"n_layer": 1, "attention_types": "global", "n_embd": 16, "n_head": 2, "n_ctx": 16, "keep_checkpoints": 1}


def replace(folder, before, after):
    """What a training does to its only checkpoint."""
    for path in glob.glob(os.path.join(glob.escape(folder), f"model.ckpt-{before}.*")):
        os.rename(path, path.replace(f"-{before}.", f"-{after}."))


@pytest.fixture
def deleted(world, monkeypatch):
    """The config of a run whose checkpoint 3 is deleted just when it is to be read, after 9 was written."""
    path = world.config("beside", **TINY)
    folder = folder_of(path)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    save_random(load_config(path).model, folder)
    replace(folder, 0, 3)
    real = fit.Bundle

    def bundle(prefix):
        replace(folder, 3, 9)
        return real(prefix)

    monkeypatch.setattr(fit, "Bundle", bundle)
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    return path


GONE = "model.ckpt-3 was deleted before it was read (keep_checkpoints); looking again"


@pytest.mark.parametrize("backend", ["openvino", "tensorflow"])
def test_sample(deleted, backend, capsys):
    words = ["sample", deleted, "The class", "--max_tokens", "3", "--temperature", "0", "--backend", backend]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert GONE in out and f"loaded    {folder_of(deleted)}/model.ckpt-9 in" in out
    assert os.path.exists(os.path.join(folder_of(deleted), "predictions_beside_9.txt"))


def test_a_model_that_runs_ahead(deleted, world, capsys):
    """Of --draft, whose checkpoint may be one of a run that trains, too."""
    pytest.importorskip("openvino")
    large = world.config("large", **TINY)
    os.makedirs(folder_of(large), exist_ok=True)
    save_random(load_config(large).model, folder_of(large))
    assert main(["sample", large, "The class", "--draft", deleted, "--max_tokens", "3"]) == 0
    assert GONE in capsys.readouterr().out


def test_quantize(deleted, capsys):
    """What is deleted between the weights and what they are compared with."""
    pytest.importorskip("openvino")
    text = os.path.join(folder_of(deleted), "beside.txt")
    with open(text, "w", encoding="utf-8") as handle:
        handle.write("The class of a class. " * 4)
    assert main(["quantize", deleted, "--dtype", "int8", "--text", text]) == 0
    out = capsys.readouterr().out
    assert GONE in out and "perplexity" in out


def test_average(deleted, capsys, tmp_path, monkeypatch):
    """The checkpoints of one folder, and the newest of several; one that was named is not replaced."""
    run = folder_of(deleted)
    for path in glob.glob(os.path.join(glob.escape(run), "model.ckpt-3.*")):
        shutil.copy(path, path.replace("-3.", "-20."))
    monkeypatch.setattr("gpt_neo.checkpoint.average.Bundle", fit.Bundle)
    assert main(["average", f"{run}/model.ckpt-3", f"{run}/model.ckpt-20", "--to", str(tmp_path / "mean")]) == 2
    assert GONE not in capsys.readouterr().out and not (tmp_path / "mean").exists()
    replace(run, 9, 3)
    assert main(["average", run, "--to", str(tmp_path / "mean")]) == 0
    out = capsys.readouterr().out
    assert GONE in out and "averaged  2 checkpoints (model.ckpt-9, model.ckpt-20)" in out


def test_serve(deleted, capsys, monkeypatch):
    pytest.importorskip("starlette")
    served = []
    monkeypatch.setattr("gpt_neo.serving.run.run_server", lambda app, listener, drain: served.append(listener.close()))
    assert main(["serve", deleted, "--port", "0", "--rows", "1"]) == 0 and served
    out = capsys.readouterr().out
    assert GONE in out and f"loaded    {folder_of(deleted)}/model.ckpt-9 in" in out


def test_export(deleted, capsys, tmp_path, monkeypatch):
    """Whose graph takes long to write: here its weights are looked for, and no more."""
    monkeypatch.setattr("gpt_neo.cli.export.export_saved_model", lambda model, path, *rest: fit.Bundle(path).others)
    assert main(["export", deleted, str(tmp_path / "saved")]) == 0
    out = capsys.readouterr().out
    assert GONE in out and f"exported  {folder_of(deleted)}/model.ckpt-9 to {tmp_path}/saved" in out


def test_export_hf(deleted, capsys, tmp_path):
    assert main(["export-hf", deleted, str(tmp_path / "hf"), "--verify", "none"]) == 0
    out = capsys.readouterr().out
    assert GONE in out and "exported  step 9 of " in out


def test_from_python(deleted, caplog):
    """The step is that of what was read; and what is read later of the same model is of no other one."""
    caplog.set_level("INFO", "gpt_neo")
    model = gpt_neo.load(deleted)
    assert model.step == 3
    model.generate("The class", max_tokens=1)
    assert model.step == 9 and GONE in caplog.messages
    assert "the checkpoint of step 9 is read in place of that of step 3" in caplog.messages
    replace(folder_of(deleted), 9, 12)
    with pytest.raises(CheckpointError, match=r"model.ckpt-9"):
        model.logprobs("The class")


def test_the_harness(deleted, caplog):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from gpt_neo.evaluation.harness import GptNeoLM

    model = GptNeoLM(model=deleted)
    found = model.loglikelihood([Instance("loglikelihood", {}, ("The", " class"), 0)], True)
    assert model.get_model_info()["model_step"] == 9 and GONE in caplog.messages
    assert found[0][0] < 0
