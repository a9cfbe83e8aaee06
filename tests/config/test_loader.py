"""Every shipped config and legacy spelling parses; every mistake gets one clear line."""

import dataclasses
import glob
import json
import os
import re
import subprocess
import sys

import pytest

from gpt_neo.config import load_config
from gpt_neo.config.loader import CONFIG_DIR, find_config
from gpt_neo.config.records import require_records
from gpt_neo.errors import ConfigError

SHIPPED = sorted(glob.glob(os.path.join(CONFIG_DIR, "*.json")))
TINY = {
    "n_head": 2,
    "n_embd": 8,
    "n_layer": 2,
    "n_vocab": 16,
    "n_ctx": 8,
    "lr": 1e-3,
    "train_batch_size": 2,
    "train_steps": 3,
}


def write(folder, changes=None, text=None):
    path = folder / "model.json"
    path.write_text(text if text is not None else json.dumps({**TINY, **(changes or {})}))
    return str(path)


@pytest.mark.parametrize("path", SHIPPED, ids=os.path.basename)
def test_shipped_configs_parse(path):
    run = load_config(path)
    assert len(run.model.attention_types) == run.model.n_layer
    assert run.datasets[0][1].eos_id == run.model.eos_id
    assert run.notes == () and run.optimizer.lr_decay == "cosine"
    assert run.datasets[0][1].n_vocab <= run.model.n_vocab < run.datasets[0][1].n_vocab + 256  # padded tables


def test_a_folder_with_a_config_comes_before_a_file_of_its_name(tmp_path, monkeypatch):
    """As hf/ and hf.json of a fine-tune do, or a folder that is called like a shipped config."""
    for name in ("hf", "demo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / f"{name}.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_config("hf", CONFIG_DIR) == "hf/config.json" and find_config("hf.json", CONFIG_DIR) == "hf.json"
    assert find_config("demo/", CONFIG_DIR) == "demo/config.json"
    (tmp_path / "hf" / "config.json").unlink()
    assert find_config("hf", CONFIG_DIR) == "hf.json", "of a run whose checkpoints lie in the folder"


@pytest.mark.parametrize(
    "name, layers, heads, width",
    [("gpt3_125M", 12, 12, 768), ("gpt3_1-3B", 24, 16, 2048), ("configs/gpt3_2-7B.json", 32, 20, 2560)],
)
def test_released_hyper_parameters_by_name_from_any_folder(name, layers, heads, width, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load_config(name).model
    assert (model.n_layer, model.n_head, model.n_embd, model.n_ctx) == (layers, heads, width, 2048)
    assert model.attention_types[:4] == ("global", "local", "global", "local")


def test_xl_is_an_alias():
    xl, named = load_config("gpt3_XL"), load_config("gpt3_1-3B")
    assert dataclasses.replace(xl, source=named.source, name=named.name) == named


def test_legacy_spellings(tmp_path):
    changes = {
        "ada_epsilon1": "1e-30",
        "n_layer": "2",
        "weight_decay": None,
        "mesh_shape": "x:4,y:2",
        "layout": "batch:x;embd:y",
        "activation_fn": "relu",
        "scale_by_depth": "true",
        "lr": "6e-4",
        "attention_types": [[["global", "local"], 1]],
        "precision": "bf16",
    }
    run = load_config(write(tmp_path, changes))
    assert run.optimizer.ada_epsilon1 == 1e-30 and run.optimizer.weight_decay == 0.0
    assert run.mesh.mesh_shape == (("x", 4), ("y", 2)) and run.mesh.layout == (("batch", "x"), ("embd", "y"))
    assert run.model.activation_function == "relu" and run.model.scale_by_depth is True
    assert run.model.attention_types == ("global", "local") and run.model.precision == "bfloat16"
    assert run.optimizer.lr == 6e-4 and run.tokens_per_step == 16


def test_datasets_beside_the_model_config(tmp_path):
    (tmp_path / "dataset_configs").mkdir()
    (tmp_path / "dataset_configs" / "mine.json").write_text('{"path": "a_*.tfrecords", "n_vocab": "16"}')
    run = load_config(write(tmp_path, {"datasets": ["mine", ["mine", 3, "documents_random", "0.5"]]}))
    assert [ref.weight for ref, _ in run.datasets] == [None, 0.5]
    assert run.datasets[1][0].stitch == 3 and run.datasets[0][1].n_vocab == 16


def test_a_models_config_is_no_dataset(tmp_path):
    mine, other = write(tmp_path), str(tmp_path / "other.json")
    (tmp_path / "other.json").write_text((tmp_path / os.path.basename(mine)).read_text())
    with pytest.raises(ConfigError, match=f"has no file.*; {re.escape(mine)} is the model's own config"):
        load_config(mine, [f"datasets={mine}"])
    with pytest.raises(ConfigError, match=f"{re.escape(other)} is a model's config; 'datasets' names dataset configs"):
        load_config(mine, [f"datasets={other}"])


def test_null_is_an_end_of_text_that_there_is_not(tmp_path):
    (tmp_path / "dataset_configs").mkdir()
    (tmp_path / "dataset_configs" / "mine.json").write_text('{"path": "a_*.tfrecords", "eos_id": null}')
    run = load_config(write(tmp_path, {"datasets": ["mine"], "eos_id": None}))
    assert run.model.eos_id is None and run.datasets[0][1].eos_id is None
    assert load_config(write(tmp_path)).model.eos_id == 1
    assert load_config(write(tmp_path, {"eos_id": None}), ["eos_id=3"]).model.eos_id == 3
    assert load_config(write(tmp_path), ["eos_id=null", "padding_id=null"]).model.eos_id is None


def test_options_of_gla(tmp_path):
    model = load_config(write(tmp_path, {"attention_types": "gla", "gla_params": {"num_heads": "4"}})).model
    assert (model.gla_heads, model.gla_key_width, model.gla_value_width) == (4, 4, 8)
    assert load_config("gpt3_2-7B_gla").model.attention_types == ("global", "gla") * 16
    assert load_config("gpt3_1-3B_gla").model.attention_types == ("global", "gla") * 12
    assert load_config("gpt3_1-3B_local_gla").model.attention_types == ("local", "gla") * 12


def test_overrides(tmp_path):
    run = load_config(write(tmp_path), ["train_steps=7", "lr_decay=linear", "attention_types=local"])
    assert run.training.train_steps == 7 and run.optimizer.lr_decay == "linear"
    assert run.model.attention_types == ("local", "local")


def test_an_id_is_not_any_file_of_that_name(tmp_path, monkeypatch):
    """A fine-tune's dataset is called data, as many a file of texts is."""
    (tmp_path / "run" / "dataset_configs").mkdir(parents=True)
    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps({**TINY, "datasets": ["data"]}))
    (tmp_path / "run" / "dataset_configs" / "data.json").write_text('{"path": "own"}')
    for name, text in (("data.json", '[{"text": "x"}]'), ("data", "text")):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert load_config(str(config)).datasets[0][1].path == "own"
    (tmp_path / "data.json").write_text('{"path": "here"}')
    assert load_config(str(config), ["datasets=data.json"]).datasets[0][1].path == "here"
    (tmp_path / "pile.json").write_text('{"path": "here"}')
    assert load_config("gpt3_125M", ["datasets=pile"]).datasets[0][1].path == "here"  # in the place of the shipped one


def test_paths_of_a_run_that_is_moved(tmp_path):
    paths = {"path": "{run}/data/a_*.tfrecords", "eval_path": "{run}/b", "tokenizer_path": "{run}/tokenizer.json"}
    for name in ("one", "o[2]"):
        (tmp_path / name / "dataset_configs").mkdir(parents=True)
        (tmp_path / name / "data").mkdir()
        (tmp_path / name / "data" / "a_0_1.tfrecords").touch()
        (tmp_path / name / "dataset_configs" / "data.json").write_text(json.dumps(paths))
        (tmp_path / name / "config.json").write_text(json.dumps({**TINY, "datasets": ["data"]}))
        ((_, found),) = load_config(str(tmp_path / name / "config.json")).datasets
        assert glob.glob(found.path) == [str(tmp_path / name / "data" / "a_0_1.tfrecords")]
        assert found.tokenizer_path == str(tmp_path / name / "tokenizer.json")
        assert found.eval_path == glob.escape(str(tmp_path / name)) + "/b"


MASKED = {"mlm_training": True, "mlm_mask_id": 3}


@pytest.mark.parametrize(
    "changes",
    [
        MASKED,
        {"input_fn": "mlm_sample_text", "mlm_mask_id": 3},
        {**MASKED, "causal": False, "input_fn": "generic_text"},
    ],
)
def test_masked_models_see_both_ways(changes, tmp_path):
    run = load_config(write(tmp_path, changes))
    assert run.training.mlm_training and not run.model.causal
    assert load_config(write(tmp_path)).model.causal


SIZES = ("n_inner", "num_mem_kv", "lora_rank", "train_batch_size", "eval_batch_size", "keep_checkpoints")
MISTAKES = [
    ({"n_heads": 2}, "unknown key 'n_heads'; nearest known key: 'n_head'"),
    ({"n_head": None}, "key 'n_head' is required"),
    ({"n_head": "two"}, "key 'n_head' is 'two'; expected a whole number"),
    ({"n_head": True}, "key 'n_head' is True; expected a whole number"),
    ({"n_ctx": 0}, "key 'n_ctx' is 0; expected between 1 and 2147483647"),
    ({"lr": "NaN"}, "key 'lr' is 'NaN'; expected a finite number"),
    ({"attn_dropout": 1.5}, "between 0.0 and 1.0"),
    ({"beta1": 1}, "key 'beta1' is 1.0; expected between 0.0 and 0.999999"),
    ({"beta2": 0.99999999}, "key 'beta2' is 0.99999999; expected between 0.0 and 0.999999"),  # 1 in float32
    ({"muon_momentum": 1.0}, "key 'muon_momentum' is 1.0; expected between 0.0 and 0.999999"),
    ({"ada_decay_rate": 1.0}, "key 'ada_decay_rate' is 1.0; expected between 0.0 and 0.999999"),
    ({"epsilon": 0}, "key 'epsilon' is 0.0; expected at least 1e-20"),
    ({"epsilon": 1e-50}, "key 'epsilon' is 1e-50; expected at least 1e-20"),  # 0 in float32
    ({"ada_epsilon1": 1e-46}, "key 'ada_epsilon1' is 1e-46; expected at least 1e-30"),
    ({"norm_epsilon": 0}, "key 'norm_epsilon' is 0.0; expected at least 1e-30"),
    ({"gla_params": {"norm_eps": 0}}, "gla_params: key 'norm_eps' is 0.0; expected at least 1e-30"),
    ({"rezero": 2}, "key 'rezero' is 2; expected true or false"),
    ({"opt_name": "sgd"}, "allowed: adam, adamw, adafactor, lion"),
    ({"n_head": 3}, "n_embd (8) is not divisible by n_head (3)"),
    ({"attention_types": [[["global"], 3]]}, "attention_types names 3 layers, n_layer is 2"),
    ({"attention_types": [[["global"], 10**12]]}, "attention_types names 1,000,000,000,000 layers, n_layer is 2"),
    ({"n_layer": 10**9}, "key 'n_layer' is 1000000000; expected between 1 and 10000"),
    ({"n_vocab": 10**12}, "key 'n_vocab' is 1000000000000; expected between 1 and 2147483647"),
    *(
        ({name: 2**31}, f"key {name!r} is 2147483648; expected between {low} and 2147483647")
        for name, low in zip(SIZES, (1, 0, 0, 1, 1, 1))
    ),
    ({"moe_params": {"moe_hidden_size": 2**31}}, "'moe_hidden_size' is 2147483648; expected between 1 and 2147483647"),
    ({"moe_params": {"moe_num_experts": 2**31}}, "'moe_num_experts' is 2147483648; expected between 2 and 2147483647"),
    ({"gla_params": {"gate_low_rank_dim": 2**31}}, "is 2147483648; expected between 1 and 2147483647"),
    ({"gla_params": {"num_heads": 2**31}}, "key 'num_heads' is 2147483648; expected between 1 and 2147483647"),
    ({"n_layer": 10**4000}, "0...; expected a whole number of at most 64 bits"),
    ({"train_steps": 10**4000}, "0...; expected a whole number of at most 64 bits"),
    ({"warmup_steps": 1e300}, "key 'warmup_steps' is 1e+300; expected a whole number of at most 64 bits"),
    ({"freeze": ["("]}, "freeze has '(', not a regular expression: missing )"),
    ({"freeze": [5]}, "freeze has 5; expected a regular expression"),
    ({"attention_types": [[["flash"], 2]]}, "attention_types has 'flash'; allowed: global, local"),
    ({"activation_fn": "relu", "activation_function": "gelu"}, "set one of them, or both alike"),
    ({"mesh_shape": "x:two"}, "mesh_shape gives 'x' the size 'two'"),
    ({"mesh_shape": "x:2²"}, "mesh_shape gives 'x' the size '2²'"),
    ({"scalenorm": True, "rezero": True}, "scalenorm and rezero exclude each other"),
    ({"axial_pos_emb": [3, 3]}, "whose product is 8"),
    ({"scalenorm": True, "norm_type": "rmsnorm"}, "scalenorm is set and norm_type is 'rmsnorm'"),
    ({"norm_type": "batchnorm"}, "allowed: layernorm, rmsnorm, scalenorm"),
    ({"activation_function": "swoosh"}, "key 'activation_function' is 'swoosh'; allowed: gelu, relu"),
    ({"rotary_emb": True, "axial_pos_emb": [2, 4]}, "axial_pos_emb and rotary_emb exclude each other"),
    ({"rotary_emb": True, "no_pos_emb": True}, "no_pos_emb excludes axial_pos_emb and rotary_emb"),
    ({"rotary_dim": 2}, "rotary_dim (2) and rotary_interleaved (False) need rotary_emb"),
    ({"rotary_base": 5e5}, "rotary_base (500000) and rotary_scaling (1) need rotary_emb"),
    ({"rotary_emb": True, "rotary_dim": 6}, "rotates 6 features of heads of 4; expected an even number"),
    ({"rotary_emb": True, "rotary_dim": 3}, "rotates 3 features of heads of 4"),
    ({"shared_norm": True}, "shared_norm needs parallel_residual"),
    ({"shared_norm": True, "parallel_residual": True, "rezero": True}, "shared_norm and rezero exclude each other"),
    ({"no_weight_tie": True, "untied_head": True}, "no_weight_tie and untied_head exclude each other"),
    ({"head_bias": True}, "head_bias needs untied_head"),
    ({"num_mem_kv": 2, "attention_types": "local"}, "num_mem_kv is 2 and attention_types has no 'global' layer"),
    ({"gla_params": {"expnd_k": 1}}, "gla_params: unknown key 'expnd_k'; nearest known key: 'expand_k'"),
    (
        {"gla_params": {"gate_low_rank_dim": 0}},
        "gla_params: key 'gate_low_rank_dim' is 0; expected between 1 and 2147483647",
    ),
    ({"gla_params": {"clamp_min": 0.5}}, "key 'clamp_min' is 0.5; expected at most 0.0"),
    ({"gla_params": 4}, "key 'gla_params' is 4; expected an object"),
    ({"gla_params": {"expand_k": 0.3}, "attention_types": "gla"}, "expand_k is 0.3; expected a share of n_embd (8)"),
    ({"datasets": ["absent"]}, "dataset 'absent' has no file"),
    ({"datasets": [["pile", None, "books", 1]]}, "allowed: chunks, documents_fixed"),
    ({"input_fn": "openwebtext"}, "allowed: sequential_input, generic_text, mlm_sample_text"),
    ({"mlm_training": True}, "mlm_training needs key 'mlm_mask_id'"),
    ({"mlm_training": True, "causal": True}, "causal true contradicts it"),
    ({"input_fn": "mlm_sample_text", "mlm_training": False}, "input_fn is 'mlm_sample_text' and mlm_training is false"),
    ({"causal": False}, "causal is false without mlm_training"),
    ({**MASKED, "mlm_random_token_prob": 0.95}, "mlm_random_token_prob (0.95) is above 1"),
    ({**MASKED, "mlm_mask_prob": 0}, "mlm_mask_prob is 0 with mlm_training; expected more than 0"),
    ({**MASKED, "mlm_mask_id": 16}, "mlm_mask_id is 16"),
    ({**MASKED, "mlm_mask_ignore_ids": [3, "x"]}, "mlm_mask_ignore_ids (3, 'x'); expected ids from 0"),
]


@pytest.mark.parametrize("changes, message", MISTAKES, ids=[m[:40] for _, m in MISTAKES])
def test_mistakes_name_file_key_and_remedy(changes, message, tmp_path):
    path = write(tmp_path, changes)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value) and str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_broken_files(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.json:2: not valid JSON"):
        load_config(write(tmp_path, text='{"n_head": 2,\n oops}'))
    with pytest.raises(ConfigError, match="key 'n_head' stands twice"):
        load_config(write(tmp_path, text='{"n_head": 2, "n_head": 4}'))
    assert load_config(write(tmp_path), ["seed=7"]).training.seed == 7
    with pytest.raises(ConfigError, match="key 'seed' is '9999"):
        load_config(write(tmp_path), ["seed=" + "9" * 5000])
    with pytest.raises(ConfigError, match="not one of demo, gpt2_124M"):
        load_config("gpt3_999B")
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(write(tmp_path), ["train_steps"])


def test_config_is_frozen_and_light(tmp_path):
    run = load_config(write(tmp_path))
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.model.n_head = 4
    code = "import sys, gpt_neo.config; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_positions_by_name_are_the_keys_of_the_legacy_program(tmp_path):
    def model(**changes):
        return load_config(write(tmp_path, changes)).model

    assert model(position_encoding="rotary") == model(rotary_emb=True)
    assert model(position_encoding="none") == model(no_pos_emb=True)
    assert model(position_encoding="learned") == model()
    assert model().positions == "learned" and model(position_encoding="rotary").positions == "rotary"
    for changes, message in [
        ({"position_encoding": "alibi"}, "position_encoding is 'alibi'; allowed: learned, axial, rotary, none"),
        ({"position_encoding": "learned", "rotary_emb": True}, "is 'learned' and rotary_emb is set"),
        ({"position_encoding": "axial"}, "axial_pos_emb is not set"),
    ]:
        with pytest.raises(ConfigError, match=message):
            model(**changes)


def test_forms_of_a_model_that_are_no_config_name_the_command_that_takes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("hf", "h f", "saved", "bare", "runs"):
        (tmp_path / folder).mkdir()
    for folder in ("hf", "h f"):
        (tmp_path / folder / "config.json").write_text('{"model_type": "gpt_neo", "num_layers": 2}')
    (tmp_path / "saved" / "saved_model.pb").touch()
    (tmp_path / "bare" / "model.ckpt-7.index").touch()
    for name, says in (
        ("hf", "gpt-neo import-hf hf runs/hf"),
        ("hf/config.json", "gpt-neo import-hf hf runs/hf"),
        ("h f", "gpt-neo import-hf 'h f' 'runs/h f'"),
        ("EleutherAI/gpt-neo-125m", "gpt-neo import-hf EleutherAI/gpt-neo-125m runs/gpt-neo-125m"),
        ("saved", "is a SavedModel"),
        ("bare", "--set model_path=bare"),
        ("runs/mine/model.ckpt-7", "--model runs/mine --checkpoint 7"),
        ("runs/mine/model.ckpt-7.index", "--model runs/mine --checkpoint 7"),
        ("configs/gpt3_small_256.json", "of that size is gpt3_125M"),
        ("gpt3_2-7B_256", "of that size is gpt3_2-7B"),
        ("runs/mine", "no config 'runs/mine': not a file"),
        (
            "gs://b/run",
            "no config 'gs://b/run': a config is read from a local file; its model_path may lie in a bucket",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            load_config(name)
        assert says in str(error.value), name


def test_a_plan_needs_no_records(tmp_path):
    raw = {**json.load(open(os.path.join(CONFIG_DIR, "demo.json"))), "datasets": ["nowhere"]}
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="dataset 'nowhere' has no file"):
        load_config(str(tmp_path / "plan.json"))
    run = load_config(str(tmp_path / "plan.json"), needs_data=False)
    assert run.datasets == () and "dataset 'nowhere' has no file" in run.notes[-1]


def test_placeholders_and_absent_records_are_told_the_command_that_makes_some(tmp_path):
    for name, length, more in (("gpt3_125M", 2049, ""), ("gptj_6B", 2049, "")):
        with pytest.raises(ConfigError) as error:
            require_records(load_config(name))
        assert "is a placeholder" in str(error.value) and f"--chunk_size {length}{more}" in str(error.value)
    run = load_config("demo", ["datasets=[]"])
    with pytest.raises(ConfigError, match=r"names no dataset(.|\n)*--chunk_size 257 --encoder_path TOKENIZER.json"):
        require_records(run)
    require_records(load_config("demo"))
    raw = {**json.load(open(os.path.join(CONFIG_DIR, "demo.json"))), "datasets": []}  # of an imported model
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"--encoder_path {tmp_path}/tokenizer.json"):
        require_records(load_config(str(tmp_path)))
