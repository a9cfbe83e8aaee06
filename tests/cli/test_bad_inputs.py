"""A user's mistake is one clear line and exit status 2."""

import glob
import os
import shutil

import pytest

from gpt_neo.dataprep.records import RecordWriter
from tests.conftest import N_CTX


@pytest.fixture(scope="module")
def places(world, trained, tmp_path_factory):
    """Broken things to point at."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "broken.json").write_text('{"n_head": 2,,}')
    (folder / "empty.txt").write_text("\n")
    (folder / "a_file").write_text("")
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("")
    cut = folder / "cut"
    cut.mkdir()
    source = sorted(glob.glob(os.path.join(world.records, "train_*.tfrecords")))[0]
    data = open(source, "rb").read()
    (cut / os.path.basename(source)).write_bytes(data[: len(data) // 2 + 5])
    short = RecordWriter(str(folder), "short", 0)
    short.write([5] * (N_CTX - 3))
    short.close()
    (folder / "binary.json").write_bytes(b"{\x92\xff\xfe\x81}")
    (folder / "dataset.json").write_text('{"path": "x_*.tfrecords", "eval_path": "", "tokenizer_path": "gpt2"}')
    damaged = folder / "damaged"
    shutil.copytree(os.path.join(world.folder, "runs", "trained"), damaged)
    (damaged / "model.ckpt-20.index").write_bytes(b"nothing of the kind")
    (damaged / "model.ckpt-0.index").unlink()
    world.dataset_config("absent", path=str(folder / "none_*.tfrecords"))
    world.dataset_config("cut", path=str(cut / "*.tfrecords"))
    world.dataset_config("short", path=str(folder / "short_*.tfrecords"), tokenizer_path=None)
    world.dataset_config("wrong_tokenizer", tokenizer_path="gpt2", n_vocab=50257)
    world.dataset_config("no_tokenizer", tokenizer_path=str(folder / "nowhere.json"))
    world.dataset_config("no_eval", eval_path=None)
    world.dataset_config("untold", tokenizer_path=None)
    return folder


# (config changes, flags, what the line says); {bad} is the folder of broken things, {runs} that of the runs
BAD = [
    ("config", None, ["--model", "{bad}/absent.json"], "no config"),
    ("json", None, ["--model", "{bad}/broken.json"], "broken.json:1: not valid JSON"),
    ("no text", None, ["--model", "{bad}/binary.json"], "binary.json: not valid JSON: byte 1 belongs to no text"),
    ("a dataset", None, ["--model", "{bad}/dataset.json"], "is a dataset config: it goes into 'datasets' of a model's"),
    ("key", {"n_heads": 2}, [], "unknown key 'n_heads'; nearest known key: 'n_head'"),
    ("type", {"n_layer": "two"}, [], "key 'n_layer' is 'two'; expected a whole number"),
    ("set", {}, ["--set", "train_steps"], "expected key=value"),
    ("dataset", {"datasets": ["nowhere"]}, [], "dataset 'nowhere' has no file"),
    ("mesh", {"mesh_shape": "x:4"}, ["--gpu_ids", "cpu:0", "cpu:1"], "multiplies to 4 devices, --gpu_ids names 2"),
    ("device", {}, ["--gpu_ids", "tpu:0"], "--gpu_ids has 'tpu:0'"),
    ("no_number", {}, ["--gpu_ids", "²"], "--gpu_ids has '²'"),
    ("no_step", {}, ["--checkpoint", "1²"], "--checkpoint is '1²'"),
    ("gpu", {}, ["--gpu_ids", "0"], "TensorFlow sees no GPU"),
    ("tpu", {}, ["--tpu", "colab"], "COLAB_TPU_ADDR is not set"),
    ("layout", {"mesh_shape": "x:3"}, ["--gpu_ids", "cpu:0", "cpu:1", "cpu:2"], "splits batch of 4 into 3 parts"),
    ("records", {"datasets": ["absent"]}, [], "no records match"),
    ("truncated", {"datasets": ["cut"]}, [], "is cut off"),
    ("short", {"datasets": ["short"]}, [], f"tokens; n_ctx + 1 = {N_CTX + 1} are needed"),
    ("id", {"datasets": ["untold"], "n_vocab": 90}, [], "n_vocab is 90"),
    ("vocabulary", {"n_vocab": 299}, [], "has 300 ids, the model n_vocab 299"),
    ("tokenizer", {"datasets": ["wrong_tokenizer"], "n_vocab": 50257}, [], "which differs from tokenizer_path gpt2"),
    (
        "untold predict",
        {"datasets": ["untold"], "model_path": "{runs}/trained"},
        ["--predict"],
        "which differs from GPT-2's: set tokenizer_path",
    ),
    ("untold look", {"datasets": ["untold"]}, ["--check_dataset"], "which differs from GPT-2's: set tokenizer_path"),
    ("no tokenizer", {"datasets": ["no_tokenizer"]}, [], "no tokenizer"),
    ("folder", {"model_path": "{bad}/a_file/run"}, [], "cannot be written"),
    ("shape", {"model_path": "{runs}/trained", "n_embd": 32, "train_steps": 30}, [], "does not fit the config in"),
    ("shape predict", {"model_path": "{runs}/trained", "n_embd": 32}, ["--predict"], "does not fit the config in"),
    ("damaged", {"model_path": "{bad}/damaged"}, ["--predict"], "cannot be read as a checkpoint"),
    ("nothing to predict", {}, ["--predict"], "no checkpoint in"),
    ("nothing to evaluate", {}, ["--eval"], "no checkpoint in"),
    ("nothing to export", {}, ["--export", "{bad}/out"], "no checkpoint in"),
    ("export", {"model_path": "{runs}/trained"}, ["--export", "{bad}/full"], "is not an empty folder"),
    ("held out", {"model_path": "{runs}/trained", "datasets": ["no_eval"]}, ["--eval"], "has no 'eval_path'"),
    ("prompt", {"model_path": "{runs}/trained"}, ["--predict", "--prompt", "{bad}/p.txt"], "no such file"),
    ("prompt unused", {}, ["--prompt", "x"], "--prompt says what a training samples at its checkpoints (predict_steps"),
    ("prompt eval", {}, ["--eval", "--prompt", "x"], "and --eval samples nothing"),
    ("temperature eval", {}, ["--eval", "--temperature", "0.5"], "--temperature says what --predict samples"),
    ("temperature train", {}, ["--temperature", "0.5"], "--temperature says what a training samples"),
    ("observer alone", {}, ["--observer", "x"], "--observer goes with --experiment NAME"),
    ("failures alone", {}, ["--max_failures", "2"], "--max_failures goes with --experiment NAME"),
    ("json alone", {}, ["--plan", "--json"], "--json goes with --compile_for SLICE"),
    ("minutes alone", {}, ["--auto_layout", "--compile_minutes", "5"], "--compile_minutes goes with --compile_for"),
    ("empty", {"model_path": "{runs}/trained"}, ["--predict", "--prompt", "{bad}/empty.txt"], "holds no text"),
    ("temperature", {"model_path": "{runs}/trained"}, ["--predict", "--temperature", "-1"], "--temperature is -1.0"),
    ("top_p", {"model_path": "{runs}/trained"}, ["--predict", "--top_p", "2"], "--top_p is 2.0"),
    ("samples", {"model_path": "{runs}/trained"}, ["--predict", "--num_samples", "0"], "--num_samples is 0"),
    ("jobs", {}, ["--predict", "--eval"], "are two jobs"),
    ("checkpoint steps", {}, ["--steps_per_checkpoint", "0"], "--steps_per_checkpoint is 0"),
    ("optimizer", {"opt_name": "sgd"}, [], "key 'opt_name' is 'sgd'; allowed: adam, adamw, adafactor, lion"),
    ("decay rule", {"weight_decay_rules": [["(", 0]]}, [], "not a regular expression"),
    ("moe layer", {"moe_layers": [-1]}, [], "moe_layers is (-1,); expected whole numbers from 0 to below n_layer (2)"),
    ("moe key", {"moe_params": {"num_experts": 4}}, [], "nearest known key: 'moe_num_experts'"),
    ("moe policy", {"moe_params": {"moe_second_policy_train": "some"}}, [], "allowed: all, none, threshold, random"),
    ("moe activation", {"moe_layers": [0], "moe_activation": "step"}, [], "key 'moe_activation' is 'step'; allowed: "),
    ("moe learned", {"moe_layers": [0], "moe_activation": "aria"}, [], "moe_activation aria is none of experts"),
    (
        "experts",
        {"moe_layers": [0], "moe_params": {"moe_num_experts": 3}, "mesh_shape": "x:2", "layout": "batch:x,experts:x"},
        ["--gpu_ids", "cpu:0", "cpu:1"],
        "splits experts of 3 into 2 parts",
    ),
    (
        "collision",
        {"moe_layers": [0], "mesh_shape": "x:2", "layout": "experts:x,expert_hidden:x"},
        ["--gpu_ids", "cpu:0", "cpu:1"],
        "layout puts experts and expert_hidden on 'x'",
    ),
    ("layouts", {"mesh_shape": "", "layout": ""}, ["--auto_layout"], "a layout needs several devices"),
    (
        "layouts of other devices",
        {"mesh_shape": "x:4,y:2", "layout": ""},
        ["--auto_layout", "--gpu_ids", "cpu:0", "cpu:1"],
        "--gpu_ids names 2 devices, and mesh_shape is of 8: set mesh_shape (--set mesh_shape=x:2)",
    ),
    (
        "not a number",
        {"lr": 1e30, "gradient_clipping": None, "lr_decay_end": 5, "n_layer": 1, "attention_types": "global"},
        [],
        "the loss is",
    ),
]


@pytest.mark.parametrize("name, changes, flags, message", BAD, ids=[row[0].replace(" ", "-") for row in BAD])
def test_one_line_and_exit_status_2(world, places, command, capsys, name, changes, flags, message):
    def fill(value):
        return value.format(bad=places, runs=os.path.join(world.folder, "runs")) if isinstance(value, str) else value

    argv = [fill(flag) for flag in flags]
    if changes is not None:
        config = world.config("bad_" + name.replace(" ", "_"), **{k: fill(v) for k, v in changes.items()})
        argv = ["--model", config, *argv]
    assert command(*argv) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    # a checkpoint that does not fit is told with a table, indented
    assert lines[0].startswith("error: ") and all(line.startswith("  ") for line in lines[1:]), captured.err
    assert len(lines) == 1 or "does not fit" in lines[0]
    assert message in lines[0]
    assert "Traceback" not in captured.out
