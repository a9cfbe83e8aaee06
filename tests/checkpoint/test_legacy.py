"""Release folders of the 2021 program as downloaded, mismatches, and training on from what others wrote."""

import importlib.util
import json
import os
import shutil

import numpy as np
import pytest

from gpt_neo.__main__ import main as run_command
from gpt_neo.checkpoint.bundle import Bundle, BundleWriter
from gpt_neo.checkpoint.fit import fit_checkpoint
from gpt_neo.checkpoint.provenance import config_keys, read_provenance
from gpt_neo.checkpoint.tensors import BFLOAT16
from gpt_neo.cli.job import load_job
from gpt_neo.cli.options import ModelOptions
from gpt_neo.config import load_config
from gpt_neo.config.network import Variable
from gpt_neo.config.optimizers import OPTIMIZERS, slots_of
from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf

ORACLES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "oracle")
FILES = ("model.ckpt-20.index", "model.ckpt-20.data-00000-of-00002", "model.ckpt-20.data-00001-of-00002")
STATE = 'model_checkpoint_path: "gs://neo-d/models/GPT3_XL/model.ckpt-20"\n'


def release(folder, oracle="neo", **changes):
    """A folder as downloaded: config of the machine that trained, state file with its paths."""
    os.makedirs(folder)
    with open(os.path.join(ORACLES, oracle, "oracle.json")) as handle:
        config = json.load(handle)["config"]
    config.update(
        model_path="gs://neo-d/models/GPT3_XL",
        datasets=["pile"],
        mesh_shape="x:128,y:2",
        layout="batch:x,memory_length:y,embd:y",
        **changes,
    )
    with open(os.path.join(folder, "config.json"), "w") as handle:
        json.dump(config, handle)
    with open(os.path.join(folder, "checkpoint"), "w") as handle:
        handle.write(STATE)
    for name in FILES:
        shutil.copyfile(os.path.join(ORACLES, oracle, name), os.path.join(folder, name))
    return str(folder)


def rewrite(folder, keep=lambda name: True, change=lambda name, value: value):
    """Write the checkpoint again with changes, as TensorFlow's own Saver lays it out is of no matter."""
    prefix = os.path.join(folder, "model.ckpt-20")
    bundle = Bundle(prefix)
    values = {n: np.array(change(n, bundle.read(n))) for n in bundle.names() if keep(n)}
    for name in FILES:
        os.remove(os.path.join(folder, name))
    writer = BundleWriter(prefix)
    for name, value in values.items():
        writer.add(name, value.shape, value.dtype, [value])
    writer.finish()


def weight(name):
    return "adam" not in name and name != "global_step"


VARIANTS = {
    "as it is": {},
    "no slots": {"keep": lambda n: "adam" not in n},
    "no step": {"keep": weight},
    "bfloat16": {"change": lambda n, v: v.astype(BFLOAT16) if weight(n) else v},
    "padded": {"change": lambda n, v: np.concatenate([v, np.zeros((128, v.shape[1]), v.dtype)]) if "/wte" in n else v},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_release_samples_as_downloaded(tmp_path, command, capsys, variant):
    folder = release(tmp_path / "release")
    if VARIANTS[variant]:
        rewrite(folder, **VARIANTS[variant])
    argv = ["--model", os.path.join(folder, "config.json"), "--predict", "--temperature", 0, "--max_tokens", 4]
    # The oracle's vocabulary is not GPT-2's, which a release without tokenizer is read with.
    shutil.copyfile(tokenizer_of_512(tmp_path), os.path.join(folder, "tokenizer.json"))
    assert command(*argv, "--set", "datasets=[]") == 0
    out = capsys.readouterr().out
    assert os.path.join(folder, "model.ckpt-20") in out
    without_engine = importlib.util.find_spec("openvino") is None  # it lays nothing over devices
    assert ("asks for 256 devices; running on one" in out) == without_engine
    assert ("rows are padding" in out) == (variant == "padded")
    if variant == "bfloat16":
        assert command(*argv, "--set", "datasets=[]", "--dtype", "bfloat16") == 0
        assert ", bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize("opt_name", list(OPTIMIZERS))
@pytest.mark.parametrize("columns, beta1", [(130, 0.9), (900, 0.0)])
def test_slots_of_a_padded_table_are_cut_with_it(tmp_path, opt_name, columns, beta1):
    config = OptimizerConfig(lr=1.0, opt_name=opt_name, beta1=beta1)
    random, path = np.random.RandomState(0), str(tmp_path / "model.ckpt-3")

    def shapes(rows):
        table = {"gpt2/wte": Variable((("vocab", rows), ("embd", columns)), "table")}
        return {"gpt2/wte": (rows, columns), **slots_of(table, config)}

    held, wanted = shapes(640), shapes(600)
    writer, values = BundleWriter(path), {}
    for name, shape in held.items():
        values[name] = random.normal(size=shape).astype(np.float32)
        writer.add(name, shape, values[name].dtype, [values[name]])
    writer.finish()
    fit = fit_checkpoint(path, wanted)
    for name, shape in wanted.items():
        np.testing.assert_array_equal(fit.value(name, np.dtype(np.float32)), values[name][: shape[0]], err_msg=name)
        assert (f"{name}: the last 40 rows are padding and left out" in fit.notes) == (shape != held[name])
    for refused in (shapes(128), {**wanted, "gpt2/wte": (600, columns - 1)}, {**wanted, "gpt2/wte": (640, columns)}):
        with pytest.raises(CheckpointError, match="does not fit the config") as caught:
            fit_checkpoint(path, refused)  # too many rows, other columns, slots of another table
        rows = [line.split() for line in str(caught.value).splitlines() if "_slot_v" in line and line.count(",") == 0]
        assert all(row[3:] == ["n_vocab", "or", "n_embd"] for row in rows)  # of a factored moment, either


def tokenizer_of_512(folder):
    from gpt_neo.tokenizer import train_tokenizer

    path = str(folder / "tok.json")
    train_tokenizer(["The assert statement is a way to insert debugging assertions into a program"] * 3, 300).save(path)
    return path


@pytest.mark.parametrize("oracle", ["neo", "mb"])
def test_logits_of_a_bfloat16_release_without_slots(tmp_path, oracle):
    from gpt_neo.runtime.verify import network_logits

    folder = release(tmp_path / "release", oracle, activation_function="gelu")
    rewrite(folder, keep=weight)
    expected = np.load(os.path.join(ORACLES, oracle, "logits_20.npz"))
    model = load_config(os.path.join(folder, "config.json")).model
    got = network_logits(os.path.join(folder, "model.ckpt-20"), model, expected["inputs"][0])
    np.testing.assert_allclose(got, expected["logits"][0], atol=1e-4, rtol=0)


def test_the_folder_of_a_job(tmp_path):
    folder = release(tmp_path / "release")
    config = os.path.join(folder, "config.json")

    def folder_of(*overrides, reads_only):
        return load_job(ModelOptions(config, set=overrides), reads_only=reads_only).folder

    assert folder_of(reads_only=True) == folder
    assert folder_of(reads_only=False) == "gs://neo-d/models/GPT3_XL"
    assert folder_of("model_path=null", reads_only=True) == folder
    shutil.copytree(folder, tmp_path / "other")
    assert folder_of(f"model_path={tmp_path / 'other'}", reads_only=True) == str(tmp_path / "other")


def test_a_mismatch_is_a_table_with_the_key_that_would_explain_it(tmp_path):
    prefix = os.path.join(ORACLES, "neo", "model.ckpt-20")
    found = Bundle(prefix)
    shapes = {name: found.shape(name) for name in found.names()}
    wanted = {**shapes, "gpt2/wte": (700, 64), "gpt2/wpe": (256, 64), "gpt2/h4/attn/q": (64, 64)}
    wanted["gpt2/h0/mlp/conv1d_main/c_fc/kernel"] = (64, 512)
    wanted["gpt2/h0/mlp/conv1d_main/c_proj/kernel"] = (300, 64)
    wanted["gpt2/h1/mlp/conv1d_main/c_fc/kernel"] = (32, 128)
    wanted["gpt2/h1/mlp/conv1d_main/c_fc/bias"] = (300,)
    del wanted["gpt2/h3/attn/q"]
    wanted |= {f"gpt2/h{block}/attn/o": (32, 64) for block in (0, 1, 3)}
    with pytest.raises(CheckpointError) as caught:
        fit_checkpoint(prefix, wanted)
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert "does not fit the config in 11 tensors; nothing was loaded" in str(caught.value)
    assert ["gpt2/wte", "[700,", "64]", "[512,", "64]", "n_vocab=512"] in lines
    assert ["gpt2/wpe", "[256,", "64]", "[128,", "64]", "n_ctx=128"] in lines
    assert ["gpt2/h4/attn/q", "[64,", "64]", "missing", "n_layer"] in lines
    assert ["gpt2/h3/attn/q", "nothing", "[64,", "64]", "n_layer"] in lines
    assert ["gpt2/h0/mlp/conv1d_main/c_fc/kernel", "[64,", "512]", "[64,", "256]", "mlp_glu"] in lines
    assert ["gpt2/h0/mlp/conv1d_main/c_proj/kernel", "[300,", "64]", "[256,", "64]", "n_inner=256"] in lines
    assert ["gpt2/h1/mlp/conv1d_main/c_fc/kernel", "[32,", "128]", "[64,", "256]", "n_embd=64"] in lines
    assert ["gpt2/h1/mlp/conv1d_main/c_fc/bias", "[300]", "[256]", "n_embd", "or", "n_inner"] in lines
    assert ["gpt2/h{0-1,3}/attn/o", "[32,", "64]", "[64,", "64]", "n_embd=64"] in lines


def test_ours_has_the_names_shapes_and_types_of_the_legacy_program(world, trained):
    run = load_config(trained)
    ours = Bundle(os.path.join(run.training.model_path, "model.ckpt-20"))
    legacy = Bundle(os.path.join(ORACLES, "neo", "model.ckpt-20"))
    assert {n for n in ours.names() if "h1" not in n} == {
        n for n in legacy.names() if not any(f"h{i}" in n for i in (1, 2, 3))
    }
    assert {n: (len(ours.shape(n)), ours.dtype(n)) for n in ours.names()} == {
        n: (len(legacy.shape(n)), legacy.dtype(n)) for n in ours.names()
    }


def test_the_record_travels_along(trained, world):
    run = load_config(trained)
    folder = run.training.model_path
    record = read_provenance(os.path.join(folder, "model.ckpt-20"))
    assert record["step"] == 20 and record["data"]["records_read"] == 80 and record["random"]["seed"] == 3
    assert record["tokenizer"]["path"] == world.tokenizer and len(record["tokenizer"]["fingerprint"]) == 64
    assert record["versions"]["tensorflow"].startswith("2.15") and record["config"] == config_keys(run)
    path = os.path.join(world.folder, "again.json")
    with open(path, "w") as handle:
        json.dump(record["config"], handle)
    again = load_config(path)
    assert (again.model, again.optimizer, again.mesh, again.training) == (
        run.model,
        run.optimizer,
        run.mesh,
        run.training,
    )
    broken = os.path.join(world.folder, "model.ckpt-3")
    with open(broken + ".json", "w") as handle:
        handle.write('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99 is later"):
        read_provenance(broken)


def test_training_goes_on_from_a_checkpoint_without_slots(world, trained, command, capsys):
    source = load_config(trained).training.model_path
    path = world.config("on", train_steps=24)
    folder = load_config(path).training.model_path
    os.makedirs(folder)
    bundle = Bundle(os.path.join(source, "model.ckpt-20"))
    writer = BundleWriter(os.path.join(folder, "model.ckpt-20"))
    for name in bundle.names():
        if "adam" not in name:
            writer.add(name, bundle.shape(name), bundle.dtype(name), [bundle.read(name)])
    writer.finish()
    (open(os.path.join(folder, "checkpoint"), "w")).write('model_checkpoint_path: "/far/away/model.ckpt-20"\n')
    assert command("--model", path) == 0
    assert "steps 20 to 24" in capsys.readouterr().out
    after = Bundle(os.path.join(folder, "model.ckpt-24"))
    assert after.names() == bundle.names() and after.read("global_step") == 24
    assert np.abs(after.read("gpt2/wte") - bundle.read("gpt2/wte")).max() > 0
    assert tf.train.latest_checkpoint(folder) == os.path.join(folder, "model.ckpt-24")


def test_the_best_checkpoint_is_kept_and_read(trained, command, tmp_path, capsys):
    folder = shutil.copytree(load_config(trained).training.model_path, tmp_path / "copy")
    assert run_command(["eval", str(folder), "--keep_best"]) == 0
    assert (folder / "best" / "model.ckpt-20.index").is_file()
    flags = ("--predict", "--checkpoint", "best", "--max_tokens", 2, "--sacred_id", "b")
    assert command("--model", folder, *flags) == 0
    assert os.path.join("best", "model.ckpt-20") in capsys.readouterr().out
