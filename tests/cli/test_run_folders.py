"""A run's folder in the place of a config: that folder is meant, wherever it has come to lie."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from gpt_neo.__main__ import main
from gpt_neo.config import load_config
from gpt_neo.config.folders import model_folder
from gpt_neo.errors import ConfigError
from tests.conftest import ROOT, folder_of

ONE = {"n_layer": 1, "attention_types": "global"}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of a finished run, whose records name the place of the first one."""
    return shutil.copytree(folder_of(trained), tmp_path / "copy")


def test_a_copy_is_worked_on_and_the_original_is_left_alone(trained, copy, capsys):
    before = sorted(os.listdir(folder_of(trained)))
    assert main(["train", str(copy), "--new", "--yes", "--set", "train_steps=2"]) == 0
    printed = capsys.readouterr().out
    assert f"folder    {copy}" in printed and "weights   random" in printed
    assert sorted(os.listdir(folder_of(trained))) == before and "model.ckpt-20.index" in before
    assert not os.path.exists(copy / "model.ckpt-20.index") and os.path.exists(copy / "model.ckpt-2.index")


def test_a_copy_is_read_where_it_lies(trained, copy, capsys):
    """Also where the first one has other checkpoints by now."""
    for name in os.listdir(copy):
        if name.startswith("model.ckpt-20"):
            os.rename(copy / name, copy / name.replace("-20", "-7"))
    (copy / "checkpoint").unlink()
    assert main(["sample", str(copy), "The", "--max_tokens", "1"]) == 0
    assert f"loaded    {copy}/model.ckpt-7 " in capsys.readouterr().out
    assert model_folder(load_config(str(copy), ["model_path=elsewhere"])) == os.path.abspath("elsewhere")
    assert main(["plan", str(copy)]) == 0
    assert f"folder    {copy}\n" in capsys.readouterr().out


def test_a_moved_run_goes_on(world, tmp_path, monkeypatch, capsys):
    """Its model_path may have been relative to another working directory, too."""
    monkeypatch.chdir(tmp_path)
    path = world.config("moving", model_path="runs/here", train_steps=2, **ONE)
    assert main(["train", path]) == 0
    shutil.move("runs/here", "there")
    os.makedirs("other")
    monkeypatch.chdir("other")
    capsys.readouterr()
    assert main(["train", str(tmp_path / "there"), "--set", "train_steps=3"]) == 0
    assert "weights   those of step 2 in the folder" in capsys.readouterr().out
    assert os.path.exists(tmp_path / "there" / "model.ckpt-3.index") and not os.listdir(".")


def test_the_folder_of_the_best_checkpoint_is_read_and_that_of_its_run_is_trained(copy):
    shutil.copytree(copy, copy / "best")
    run = load_config(str(copy / "best"))
    assert model_folder(run) == str(copy) and model_folder(run, reads_only=True) == str(copy / "best")


def test_a_record_alone_names_the_place_of_its_run(trained, copy, tmp_path):
    """As of a run in a bucket, of which somebody has fetched what a checkpoint was trained with."""
    shutil.copy(copy / "model.ckpt-20.json", tmp_path)
    assert model_folder(load_config(str(tmp_path / "model.ckpt-20.json"))) == folder_of(trained)


def test_what_a_run_was_trained_with_stays(world, capsys):
    """Keys at their defaults are left out of records; none may be read as what the 2021 program took in their place."""
    keys = {"ada_epsilon1": 1e-20, "ada_epsilon2": 1e-2, "weight_decay": 0.1, "adafactor_legacy_lr": False}
    path = world.config("defaults", train_steps=1, opt_name="adafactor", lr_decay="none", **keys, **ONE)
    assert main(["train", path]) == 0
    capsys.readouterr()
    first, again = load_config(path), load_config(folder_of(path))
    assert again.optimizer == first.optimizer and again.notes == ()


def test_a_plan_is_made_without_tensorflow(world):
    script = (
        "import sys; from gpt_neo.__main__ import main; main(['plan', sys.argv[1]]); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, world.config("planned")], capture_output=True, text=True, cwd=ROOT
    )
    assert "steps per epoch" in done.stdout and done.stdout.endswith("False\n"), done.stderr


@pytest.mark.parametrize("ending", ["", ".index", ".data-00000-of-00001"])
def test_a_checkpoint_is_no_config(copy, ending):
    with pytest.raises(ConfigError, match=rf"it is a checkpoint, for which there is --model {copy} --checkpoint 20"):
        load_config(f"{copy}/model.ckpt-20{ending}")


def test_training_goes_on_from_the_newest_alone(copy, capsys):
    assert main(["train", str(copy), "--checkpoint", "20"]) == 2
    assert "--checkpoint 20: training goes on from the newest checkpoint" in capsys.readouterr().err
    assert main(["train", str(copy), "--checkpoint", "latest"]) == 0


def test_settings_of_a_folder_are_read_as_those_of_a_config(copy, world, capsys):
    """A dataset by its bare name, and a layout of a dimension that the mesh does not have."""
    assert load_config(str(copy), ["datasets=small"]).datasets[0][0].name == "small"
    words = ["--set", "mesh_shape=x:2", "--set", "layout=foo:z"]
    assert main(["plan", str(copy), *words]) == 0
    assert "layout rule foo:z is ignored" in capsys.readouterr().out


def test_held_out_records_are_remembered(copy, world, monkeypatch, tmp_path, capsys):
    """As those of training are, where the dataset's config is not found any more."""
    record = copy / "model.ckpt-20.json"
    about = json.loads(record.read_text())
    assert about["data"]["eval_paths"] == {"small": json.load(open(world.dataset))["eval_path"]}
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(copy), "--set", "eval_steps=1"]) == 0
    assert "loss" in capsys.readouterr().out


def test_what_does_nothing_is_told(world, capsys):
    world.dataset_config("bare", eval_path=None)
    path = world.config("idle", train_steps=1, eval_steps=2, datasets=["bare"], freeze=["nomatch", "wpe"], **ONE)
    assert main(["train", path]) == 0
    printed = capsys.readouterr()
    assert "no dataset has an eval_path: nothing is evaluated" in printed.out + printed.err
    assert "freeze: 'nomatch' matches no variable" in printed.out + printed.err
    assert "'wpe' matches" not in printed.out + printed.err


def test_epochs_of_a_plan_are_those_of_training(world, capsys):
    """Records that are cut into several samples, and shares of a mixture."""
    path = world.config("halves", n_ctx=16)
    assert main(["plan", path]) == 0
    whole = capsys.readouterr().out
    assert main(["plan", world.config("whole")]) == 0
    plain = capsys.readouterr().out
    steps = [float(text.split(" steps per epoch")[0].split()[-1].replace(",", "")) for text in (whole, plain)]
    assert steps[0] == pytest.approx(2 * steps[1]) and "samples)" in whole and "samples)" not in plain
    world.dataset_config("again")
    mixed = world.config("mixed", datasets=[["small", None, None, 0.25], ["again", None, None, 0.75]])
    assert main(["plan", mixed]) == 0
    printed = capsys.readouterr().out
    assert f"{4 * steps[1]:,.1f} steps per epoch at 25.0% of the samples" in printed
    assert f"{4 / 3 * steps[1]:,.1f} steps per epoch at 75.0% of the samples" in printed
