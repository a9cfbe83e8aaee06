"""The jobs of main.py, as a user calls them."""

import glob
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo import storage
from gpt_neo.config import load_config
from gpt_neo.dataprep.records import read_records
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.export import build_logits
from gpt_neo.runtime.predict_step import load_weights
from gpt_neo.tokenizer import load_tokenizer
from tests.conftest import N_CTX, N_VOCAB, ROOT
from tests.gcs import quick_retries

ONE = {"n_layer": 1, "attention_types": "global"}


def weights_of(folder, step):
    reader = tf.train.load_checkpoint(os.path.join(folder, f"model.ckpt-{step}"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def log_of(folder):
    return [json.loads(line) for line in open(os.path.join(folder, "train_log.jsonl"), encoding="utf-8")]


def logits_of(path, tokens, step=20):
    run = load_config(path)
    with tf.Graph().as_default(), tf.Session() as session:
        logits = build_logits(tf.constant(tokens, tf.int32), run.model)
        load_weights(session, os.path.join(run.training.model_path, f"model.ckpt-{step}"))
        return session.run(logits)


def test_training_learns_and_ends(trained, command, capsys):
    run = load_config(trained)
    rows = log_of(run.training.model_path)
    assert [row["step"] for row in rows] == [10, 20] and rows[-1]["loss"] < math.log(N_VOCAB) - 0.3
    assert glob.glob(os.path.join(run.training.model_path, "events.out.tfevents*"))
    assert command("--model", trained) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_evaluation_against_numpy(trained, world, command, capsys):
    assert command("--model", trained, "--eval") == 0
    run = load_config(trained)
    shown = capsys.readouterr().out
    result = json.loads(open(os.path.join(run.training.model_path, "eval_trained.jsonl")).readlines()[-1])
    rows = np.array([r for p in glob.glob(run.datasets[0][1].eval_path) for r in read_records(p)])
    logits = logits_of(trained, rows[:, :-1]).astype(np.float64)
    labels = rows[:, 1:]
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    losses = log_z - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    tokenizer = load_tokenizer(world.tokenizer)
    size = sum(len(tokenizer.decode_bytes(row)) for row in labels)
    assert result["tokens"] == labels.size
    assert result["loss"] == pytest.approx(losses.mean(), abs=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(losses.sum() / math.log(2) / size, rel=1e-5)
    assert f"{result['bits_per_byte']:.4f} bits/byte" in shown


def test_sampling_is_seeded_streamed_and_kept(trained, command, capsys, tmp_path):
    run = load_config(trained)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("The assert statement\n")
    argv = ["--model", trained, "--predict", "--prompt", prompt, "--num_samples", 3, "--max_tokens", 6, "--seed", 5]
    path = os.path.join(run.training.model_path, "predictions_trained_20.txt")
    before = open(path, encoding="utf-8").read() if os.path.exists(path) else ""
    texts = []
    for _ in range(2):
        assert command(*argv) == 0
        out = capsys.readouterr().out
        texts.append([part.partition("\n---\n")[0] for part in out.split("--- sample ")[1:]])
    assert len(texts[0]) == 3 and texts[0] == texts[1]
    assert all("The assert statement" in text for text in texts[0])
    kept = open(path, encoding="utf-8").read()
    assert kept.startswith(before) and kept[len(before) :].count("=== sample") == 6


def test_long_prompts_are_cut_on_the_left_with_a_note(trained, command, capsys):
    assert command("--model", trained, "--predict", "--prompt", "word " * 200, "--max_tokens", 4, "--seed", 1) == 0
    assert "its beginning (" in capsys.readouterr().out


def test_interactive_answers_until_an_empty_line(trained, command, capsys, monkeypatch):
    lines = iter(["The if statement", "A class", ""])
    monkeypatch.setattr("builtins.input", lambda: next(lines))
    assert command("--model", trained, "--predict", "--interactive", "--max_tokens", 3, "--seed", 2) == 0
    out = capsys.readouterr().out
    assert out.count("tokens/s, first after") == 2 and out.count("loaded") == 1


def test_check_dataset(trained, command, capsys):
    assert command("--model", trained, "--check_dataset") == 0
    out = capsys.readouterr().out
    assert f"lengths   {N_CTX + 1} to {N_CTX + 1} tokens" in out and "--- record 0 of train_0_" in out


def test_exported_model_gives_the_same_logits(trained, command, capsys, tmp_path):
    folder = str(tmp_path / "saved")
    assert command("--model", trained, "--export", folder) == 0
    tokens = np.random.RandomState(0).randint(0, N_VOCAB, [2, N_CTX]).astype(np.int32)
    with tf.Graph().as_default(), tf.Session() as session:
        meta = tf.saved_model.load(session, [tf.saved_model.SERVING], folder)
        signature = meta.signature_def["logits"]
        got = session.run(signature.outputs["logits"].name, {signature.inputs["tokens"].name: tokens})
    np.testing.assert_allclose(got, logits_of(trained, tokens), atol=1e-5)
    assert command("--model", trained, "--export", tmp_path / "small", "--int8") == 0
    out = capsys.readouterr().out
    exact, near = re.search(r"held-out tokens: ([\d.]+), with int8 weights ([\d.]+)", out).groups()
    assert float(near) == pytest.approx(float(exact), rel=0.02)


@pytest.mark.parametrize(
    "name, parameters", [("gpt3_125M", "125,198,592"), ("gpt3_1-3B", "1,315,575,808"), ("gpt3_2-7B", "2,651,307,520")]
)
def test_plan_states_parameters(command, capsys, name, parameters):
    assert command("--model", name, "--plan") == 0
    out = capsys.readouterr().out
    assert f"{parameters} parameters" in out and "memory    about" in out and "tokens: " in out


def test_plan_of_records_and_layout(trained, world, command, capsys):
    assert command("--model", trained, "--plan", "--set", "mesh_shape=x:3", "--set", "layout=batch:x,heads:x") == 0
    out = capsys.readouterr().out
    records = sum(len(list(read_records(p))) for p in glob.glob(os.path.join(world.records, "train_*.tfrecords")))
    assert f"{records:,} records, {records / 4:,.1f} steps per epoch" in out
    assert "batch over x: 4 does NOT divide by 3; nearest 3 or 6" in out
    assert "layout    batch and heads are both over x: some tensors have BOTH; training refuses" in out
    assert command("--model", trained, "--plan", "--set", "mesh_shape=x:2,y:2", "--set", "layout=batch:x,heads:y") == 0
    assert "BOTH" not in capsys.readouterr().out


def test_plan_counts_records_of_a_bucket_by_their_names(trained, world, command, capsys, gcs, monkeypatch):
    assert command("--model", trained, "--plan") == 0
    (here,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    paths = glob.glob(os.path.join(world.records, "train_*.tfrecords"))
    for path in paths:
        storage.write_bytes(f"gs://bucket/there/{os.path.basename(path)}", storage.read_bytes(path))
    words = ["--model", trained, "--plan", "--set", "datasets=there"]
    world.dataset_config("there", path="gs://bucket/there/train_*.tfrecords")
    assert command(*words) == 0 and here.replace("small: ", "there: ") in capsys.readouterr().out.splitlines()
    storage.write_bytes("gs://bucket/there/train_x.tfrecords", storage.read_bytes(paths[0]))
    assert command(*words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no records that tell their number match gs://bucket/there/train_*.tfrecords, so the steps" in said
    monkeypatch.setattr(storage.buckets, "retries", lambda path: quick_retries(path).with_timeout(0.2))
    gcs.fail("503", every=1)
    assert command(*words) == 0 and "epoch     unknown: " in capsys.readouterr().out


def test_layout_search(command, capsys):
    assert command("--model", "gpt3_125M", "--auto_layout") == 0
    assert '"layout": "batch:x"' in capsys.readouterr().out
    assert command("--model", "gpt3_2-7B", "--auto_layout_and_mesh_shape", "--set", "mesh_shape=x:32") == 0
    out = capsys.readouterr().out
    assert 'for the config: "mesh_shape":' in out and "the best, the fastest that fit a TPU v3 core:" in out
    assert command("--model", "gptneox_20B", "--auto_layout", "--set", "mesh_shape=x:8") == 0
    assert "NONE fits a TPU v3 core: those of least memory:" in capsys.readouterr().out


def test_layouts_of_a_small_model_on_a_terminal(world, command, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    assert command("--model", world.config("narrow", layout=None), "--auto_layout", "--set", "mesh_shape=x:2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.strip() and len(line) <= 80 for line in lines), lines
    assert "              none" in lines and not any(" 0.0 s " in line for line in lines)


def test_new_deletes_checkpoints_and_nothing_else(trained, world, command, capsys, tmp_path):
    folder = str(tmp_path / "run")
    shutil.copytree(load_config(trained).training.model_path, folder)
    path = world.config("anew", train_steps=2, model_path=folder, **ONE)
    keep = os.path.join(folder, "notes.txt")
    open(keep, "w").write("mine")
    assert command("--model", path, "--new") == 2
    assert "add --yes" in capsys.readouterr().err and glob.glob(os.path.join(folder, "model.ckpt-20.index"))
    assert command("--model", path, "--new", "--yes") == 0
    assert "steps 0 to 2" in capsys.readouterr().out and os.path.exists(keep)
    assert not glob.glob(os.path.join(folder, "model.ckpt-20.*"))


def test_one_of_a_kind_is_called_one(world, command, capsys):
    assert command("--model", world.config("single", train_batch_size=1, train_steps=1), "--plan") == 0
    assert "32 tokens: 1 sequence of 32, in 1 microbatch per replica; 1 step, 32 tokens" in capsys.readouterr().out


# Ctrl-C while the program is imported.
EARLY = """
import runpy, sys
class Finder:
    def find_spec(name, *given):
        if name == "gpt_neo.cli.parser":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder)
run = runpy.run_path if sys.argv[1].endswith(".py") else runpy.run_module
run(sys.argv[1], run_name="__main__")
"""


NAMES = "create_tfrecords inspect make_demo_corpus plot_loss train_tokenizer".split()


@pytest.mark.parametrize("program", ["main.py", "gpt_neo", *(f"data/{name}.py" for name in NAMES)])
def test_ctrl_c_at_the_very_beginning(program):
    done = subprocess.run([sys.executable, "-c", EARLY, program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("error", ["SystemError", "ImportError", "DataError"])
def test_ctrl_c_that_compiled_code_makes_another_error_of(error):
    script = f"""
import os, signal, sys
from gpt_neo.cli.common import run_command
from gpt_neo.errors import DataError
def command():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise {error}("something else") from None
sys.exit(run_command(command))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


# main.py twice in one process of two devices: to train, and to sample with the model split over them.
TWICE = """
import runpy, sys
at = sys.argv.index("then")
for words in (sys.argv[1:at], sys.argv[at + 1 :]):
    sys.argv = ["main.py", *words]
    try:
        runpy.run_path("main.py", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def test_two_devices_equal_one(world, command, capsys):
    paths = [
        world.config("spread", mesh_shape="x:2", train_steps=6, **ONE),
        world.config("alone", train_steps=6, **ONE),
    ]
    assert command("--model", paths[1]) == 0
    devices = ["--gpu_ids", "cpu:0", "cpu:1"]
    argv = ["--model", paths[1], "--predict", "--temperature", "0", "--max_tokens", "8", "--prompt", "The if"]
    split = ["--set", "mesh_shape=x:2", "--set", "layout=heads:x"]
    words = ["--model", paths[0], *devices, "then", *argv, *split, *devices]
    done = subprocess.run([sys.executable, "-c", TWICE, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "/device:CPU:0, /device:CPU:1" in done.stdout
    spread, alone = (weights_of(load_config(path).training.model_path, 6) for path in paths)
    assert set(spread) == set(alone)
    for name in alone:
        np.testing.assert_allclose(spread[name], alone[name], atol=1e-4, err_msg=name)
    # saved on two devices and read on one, and the other way round
    tokens = np.random.RandomState(0).randint(0, N_VOCAB, [2, N_CTX]).astype(np.int32)
    one, other = (logits_of(path, tokens, 6) for path in paths)
    np.testing.assert_allclose(one, other, atol=1e-3)
    capsys.readouterr()
    assert command(*argv) == 0
    texts = [text_of(out) for out in (done.stdout, capsys.readouterr().out)]
    assert texts[0] == texts[1] and texts[0].startswith("The if") and len(texts[0]) > len("The if")


def text_of(out):
    """The only sample that was printed."""
    return out.partition("--- sample")[2].partition("\n")[2].partition("\n---\n")[0]


def test_help_is_instant_and_imports_no_tensorflow():
    code = """
import sys
sys.argv = ["main.py", "--help"]
try:
    import gpt_neo.cli.main
    gpt_neo.cli.main.main()
except SystemExit:
    pass
assert "tensorflow" not in sys.modules and "numpy" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--steps_per_checkpoint" in done.stdout


def test_a_model_that_others_share_is_read_where_nothing_can_be_written(trained, command, capsys, monkeypatch):
    folder = load_config(trained).training.model_path
    before = os.listdir(folder)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and not (path == folder and mode == os.W_OK)
    )
    assert command("--model", trained, "--eval", "--sacred_id", "shared", "--set", "eval_steps=1") == 0
    words = ("--predict", "--prompt", "the reindeer", "--max_tokens", 4, "--sacred_id", "shared")
    assert command("--model", trained, *words) == 0
    out = capsys.readouterr().out
    assert out.count(f"note      {folder} cannot be written: the results are shown here alone\n") == 2
    assert "held out  step 20: loss" in out and "4 tokens in" in out and "written to" not in out
    left = set(os.listdir(folder)) - set(before)
    assert left <= {"eval"}, "of the Estimator, which goes without it where it cannot make it"


def test_a_folder_whose_name_is_a_pattern(trained, command, capsys, tmp_path):
    """TensorFlow finds no checkpoints in it, neither to read nor to delete: such a run is read, and not trained."""
    folder = str(tmp_path / "runs[1]")
    shutil.copytree(load_config(trained).training.model_path, folder)
    given = ("--model", trained, "--set", f"model_path={folder}")
    assert command(*given, "--set", "train_steps=30") == 2
    assert f"model_path {folder!r}: TensorFlow takes *, ?, [ and " in capsys.readouterr().err
    assert command(*given, "--eval") == 0
    assert "held out  step 20: loss" in capsys.readouterr().out


def test_slots_that_start_anew_are_told(world, command, capsys):
    """As --backend xla does, where a run goes on with another optimizer."""
    path = world.config("another", train_steps=1, opt_name="adam", **ONE)
    assert command("--model", path) == 0
    assert "slots" not in capsys.readouterr().out.split("weights   random")[1]
    assert command("--model", path, "--set", "opt_name=lion", "--set", "train_steps=2") == 0
    out = capsys.readouterr().out
    assert "steps 1 to 2" in out  # that it is the same run, tests/runtime/test_resume.py shows
    assert re.search(r"note      \d+ optimizer slots are missing: they start at 0\n", out)
