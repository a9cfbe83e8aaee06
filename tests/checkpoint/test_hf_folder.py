"""Folders of strangers: links out of them, and indexes that are none."""

import json
import os

import numpy as np
import pytest

from gpt_neo.checkpoint.hf_folder import HfFolder
from gpt_neo.checkpoint.hf_tokens import special_ids
from gpt_neo.checkpoint.safetensors import write_safetensors
from gpt_neo.config import load_config
from gpt_neo.errors import CheckpointError, ConfigError


def make_folder(path):
    os.makedirs(path)
    (path / "config.json").write_text("{}")
    table = np.zeros([2, 3], np.float32)
    write_safetensors(
        str(path / "model.safetensors"), {"wte.weight": (table.dtype, table.shape)}, {"wte.weight": [table]}
    )
    return path


def test_links_out_of_a_folder_are_not_followed(tmp_path):
    folder = make_folder(tmp_path / "model")
    os.symlink("config.json", folder / "tokenizer_config.json")  # inside
    assert HfFolder(str(folder)).names() == ["wte.weight"]
    for name in ("merges.txt", "model.safetensors.index.json", "other"):
        os.symlink("/etc/passwd", folder / name)
        with pytest.raises(CheckpointError, match=f"{name}: a link to /etc/passwd, outside of the folder"):
            HfFolder(str(folder))
        os.remove(folder / name)


def test_adapters_beside_a_model_are_not_left_out(tmp_path):
    """transformers adds them: the weights that lie there are not those of the model that it loads."""
    folder = make_folder(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"}))
    with pytest.raises(CheckpointError, match="holds a model and adapters of PEFT.*take adapter_. out:\n  peft.Auto"):
        HfFolder(str(folder))


def test_one_file_goes_before_the_index_of_older_ones(tmp_path):
    """transformers leaves the index, and perhaps shards, where it saves in one file again; and reads that."""
    folder = make_folder(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": "gone.safetensors"}}))
    found = HfFolder(str(folder))
    assert list(found.files) == ["model.safetensors"]
    assert found.notes == ["weights of model.safetensors; model.safetensors.index.json is there too, and is not read"]


def test_snapshots_of_the_hub_are_links_into_the_same_model(tmp_path):
    model = tmp_path / "models--org--name"
    folder = make_folder(model / "snapshots" / "abc")
    (model / "blobs").mkdir()
    os.rename(folder / "config.json", model / "blobs" / "123")
    os.symlink("../../blobs/123", folder / "config.json")
    assert HfFolder(str(folder)).names() == ["wte.weight"]
    os.symlink("../../../elsewhere", folder / "merges.txt")
    with pytest.raises(CheckpointError, match="outside of the folder"):
        HfFolder(str(folder))


@pytest.mark.parametrize(
    "name, said",
    [
        ("pytorch_model-last.bin", "if pytorch_model-last.bin has the weights, rename it to pytorch_model.bin"),
        ("model-00002-of-00003.safetensors", "-00003.safetensors is a part of several, and the index .* is missing"),
        ("last.ckpt", "if last.ckpt has the weights, rename it to pytorch_model.bin"),
        ("adapter.safetensors", "if adapter.safetensors has the weights, rename it to model.safetensors"),
        ("tf_model.h5", "tf_model.h5 is of another program: save the model with transformers' save_pretrained"),
        ("model-q8.gguf", "model-q8.gguf is of another program"),
        ("checkpoint-500/model.safetensors", "has no config.json; there is one in checkpoint-500"),
    ],
)
def test_weights_under_other_names(tmp_path, name, said):
    folder = make_folder(tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    os.rename(folder / "model.safetensors", folder / name)
    if "/" in name:
        os.rename(folder / "config.json", folder / "checkpoint-500" / "config.json")
    with pytest.raises(CheckpointError, match=said):
        HfFolder(str(folder))


def test_adapters_of_peft_are_no_model(tmp_path):
    torch = pytest.importorskip("torch")
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1, "eos_token_id": 0}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "base")
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    adapters, folder = peft.get_peft_model(base, peft.LoraConfig(r=2, fan_in_fan_out=True)), str(tmp_path / "adapters")
    torch.nn.init.ones_(next(value for name, value in adapters.named_parameters() if "lora_B" in name))
    adapters.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="holds adapters of PEFT, not a model") as refused:
        HfFolder(folder)
    with pytest.raises(ConfigError, match="holds adapters of PEFT, not a model"):
        load_config(folder)
    exec(str(refused.value).splitlines()[1].strip(), {"peft": peft, "DST": str(tmp_path / "made")})
    made = HfFolder(str(tmp_path / "made"))
    wanted = adapters.merge_and_unload().state_dict()["transformer.h.0.attn.c_attn.weight"].numpy()
    np.testing.assert_allclose(made.read("transformer.h.0.attn.c_attn.weight"), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pointers_of_a_clone_without_its_large_files(tmp_path, name):
    folder = make_folder(tmp_path / "model")
    os.remove(folder / "model.safetensors")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 526034112\n")
    with pytest.raises(CheckpointError, match=f"{name}: is a pointer of Git LFS, not the file itself: git lfs pull"):
        HfFolder(str(folder))


@pytest.mark.parametrize("value", [["a"], 5, None, {"x": 1}, "../other.safetensors", "/etc/passwd"])
def test_an_index_names_files_beside_it(tmp_path, value):
    folder = make_folder(tmp_path / "model")
    os.remove(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": value}}))
    with pytest.raises(CheckpointError, match="which is not beside it"):
        HfFolder(str(folder))


@pytest.mark.parametrize(
    "value", [5, [5], {"added_tokens": [5]}, {"added_tokens": 5}, {"added_tokens": [{"content": []}]}]
)
def test_tokenizer_files_that_are_none(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "end"}')
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError):
        special_ids(str(tmp_path), {}, 10)
