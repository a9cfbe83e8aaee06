"""A new run that starts from the weights of another model."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.initial import write_initial
from gpt_neo.config import load_config
from gpt_neo.errors import CheckpointError
from tests.conftest import folder_of
from tests.dataprep.test_prepare import contents


def weights(prefix):
    bundle = Bundle(prefix)
    return {name: np.array(bundle.read(name)) for name in bundle.names() if name.count("adam") == 0}


def test_from_a_run_by_folder_and_by_checkpoint(trained, world, command, capsys, tmp_path):
    source = folder_of(trained)
    path = world.config("from_run", train_steps=2, model_path=str(tmp_path / "new"))
    assert command("--model", path, "--init_from", source) == 0
    out = capsys.readouterr().out
    assert f"weights of step 20 of {source}: the run starts from them at step 0" in out
    assert f"weights   those of step 0 in the folder (weights of step 20 of {source})" in out
    then, now = (weights(p) for p in (f"{source}/model.ckpt-20", f"{tmp_path}/new/model.ckpt-0"))
    assert now.pop("global_step") == 0 and then.pop("global_step") == 20 and set(then) == set(now)
    assert all((then[name] == now[name]).all() for name in then)
    assert command("--model", path, "--init_from", source, "--set", "train_steps=3") == 0
    assert "weights   those of step 2 in the folder" in capsys.readouterr().out, "it goes on with its own"
    again = str(tmp_path / "again")
    write_initial(f"{source}/model.ckpt-20", again, load_config(path))
    assert weights(f"{again}/model.ckpt-0").keys() == {*now, "global_step"}


def test_a_start_that_cannot_be_leaves_what_new_would_delete(trained, world, command, capsys):
    path, gone = world.config("anew", train_steps=2), world.dataset_config("gone", path="/nowhere/*.tfrecords")
    assert command("--model", path, "--steps_per_checkpoint", "2") == 0
    folder = folder_of(path)
    before = contents(folder)
    capsys.readouterr()
    for flags, word in (
        (["--init_from", folder], "one of the checkpoints that --new deletes"),
        (["--init_from", f"{folder}/model.ckpt-2"], "one of the checkpoints that --new deletes"),
        (["--init_from", f"{folder}/nowhere"], "no checkpoint and no Hugging Face folder"),
        (["--init_from", folder_of(trained), "--set", "rezero=true"], "of a model with other keys"),
        (["--profile", "3:1"], "expected FROM:TO"),
        (["--set", f'datasets=["{gone}"]'], "no records match"),
    ):
        assert command("--model", path, "--new", "--yes", *flags) == 2
        assert word in capsys.readouterr().err and contents(folder) == before, flags
    assert command("--model", path, "--new", "--yes", "--init_from", folder_of(trained)) == 0
    assert "the run starts from them at step 0" in capsys.readouterr().out


def test_random_weights_are_called_so(world, command, capsys, tmp_path):
    one = {"n_layer": 1, "attention_types": [[["global"], 1]]}
    path = world.config("from_nothing", train_steps=1, model_path=str(tmp_path / "new"), **one)
    assert command("--model", path) == 0 and "weights   random, from seed 3" in capsys.readouterr().out


def test_from_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=90, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "hf")
    keys = {"n_vocab": 90, "n_ctx": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "lr": 1e-3, "train_batch_size": 1}
    keys.update(
        train_steps=1, qkv_bias=True, scale_attention=True, embed_dropout=0.1, attn_dropout=0.1, res_dropout=0.1
    )
    path = tmp_path / "run.json"
    path.write_text(json.dumps(keys))
    write_initial(str(tmp_path / "hf"), str(tmp_path / "run"), load_config(str(path)))
    made = Bundle(str(tmp_path / "run" / "model.ckpt-0"))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    np.testing.assert_array_equal(made.read("gpt2/wte"), state["transformer.wte.weight"])
    np.testing.assert_array_equal(made.read("gpt2/h1/attn/k"), state["transformer.h.1.attn.c_attn.weight"][:, 8:16])

    path.write_text(json.dumps({**keys, "scale_attention": False, "n_ctx": 32}))
    wanted = r"other keys; its own are --set n_ctx=16 --set scale_attention=true"
    with pytest.raises(CheckpointError, match=wanted):
        write_initial(str(tmp_path / "hf"), str(tmp_path / "bad"), load_config(str(path)))
    assert not [name for name in os.listdir(tmp_path / "bad") if name.startswith("model.ckpt")]


def test_from_a_model_of_fewer_layers(trained, world, tmp_path):
    run = load_config(world.config("deeper", n_layer=4, attention_types=[[["global", "local"], 2]]))
    wanted = """its own are --set 'attention_types=["global", "local"]' --set n_layer=2"""
    with pytest.raises(CheckpointError, match=re.escape(wanted)):
        write_initial(folder_of(trained), str(tmp_path), run)


def test_what_is_no_model(trained, tmp_path):
    run = load_config(trained)
    with pytest.raises(CheckpointError, match="no checkpoint and no Hugging Face folder"):
        write_initial(str(tmp_path), str(tmp_path / "new"), run)
    source = tmp_path / "cut"
    shutil.copytree(folder_of(trained), source)
    with open(source / "model.ckpt-20.data-00000-of-00001", "r+b") as handle:
        handle.truncate(5000)
    with pytest.raises(CheckpointError):
        write_initial(str(source / "model.ckpt-20"), str(tmp_path / "new"), run)
