"""What is refused before TensorFlow is imported, and how a model may be named."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from gpt_neo.__main__ import main
from gpt_neo.cli import spmd_jobs
from gpt_neo.cli.job import load_job
from gpt_neo.cli.options import ModelOptions, RunOptions
from gpt_neo.config import load_config
from gpt_neo.config.folders import model_folder
from gpt_neo.errors import ConfigError
from gpt_neo.ops.head import ALIGNED
from gpt_neo.spmd.environment import worker_environment
from gpt_neo.spmd.program import ROWS_OF
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "argv, message",
    [
        (["train", "demo", "--backend", "xla", "--tpu", "x"], "--tpu goes with --backend tensorflow"),
        (["sample", "demo", "--backend", "xla", "--gpu_ids", "0"], "--gpu_ids goes with --backend tensorflow"),
        (["train", "demo", "--backend", "xla", "--skip_spikes"], "--skip_spikes goes with --backend tensorflow"),
        (["train", "demo", "--backend", "xla", "--min_p", "0.1"], "--min_p goes with --backend tensorflow"),
        (["train", "demo", "--interactive"], "--interactive goes with gpt-neo sample"),
        (["sample", "demo", "Once", "--interactive"], "--interactive asks for prompts, and takes no --prompt"),
        (["eval", "demo", "--backend", "xla", "--eval_tasks", "pile"], "--eval_tasks goes with --backend tensorflow"),
        (["train", "demo", "--platform", "gpu"], "--platform goes with --backend xla"),
        (["eval", "demo", "--save_program", "p"], "--save_program goes with --backend xla"),
        (["train", "demo", "--attention", "blocks"], "--attention goes with --backend xla"),
        (["train", "demo", "--coordinator", "a:1"], "--coordinator goes with --backend xla"),
        (["sample", "demo", "--tpu", "x"], "leave --tpu out"),
        (["spmd-run", "--model", "demo", "--eval", "--predict"], "--predict and --eval are two jobs"),
        (["plan", "demo", "--json"], "--json goes with --compile_for SLICE"),
        (["layout", "demo", "--json"], "--json goes with --compile_for SLICE"),
    ],
)
def test_flags_of_the_other_backend(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_sampling_on_the_tpu_of_this_machine_is_jaxs(world, command, monkeypatch):
    """TensorFlow, which exports the program, leaves the TPU alone; the worker, which runs it, does not."""
    seen = []
    monkeypatch.delenv("TPU_LOAD_LIBRARY", raising=False)
    monkeypatch.setattr(spmd_jobs, "sample", lambda job, options: seen.append((job.devices, options)) or 0)
    try:
        assert command("--model", world.config("on_tpu"), "--predict", "--tpu", "local", "--prompt", "A") == 0
        assert os.environ["TPU_LOAD_LIBRARY"] == "0" and "TPU_LOAD_LIBRARY" not in worker_environment("tpu", 8)
    finally:
        del os.environ["TPU_LOAD_LIBRARY"]
    ((devices, options),) = seen
    assert devices.tpu is None and (options.backend.backend, options.backend.platform) == ("xla", "tpu")
    assert options.sampling.prompt == "A"


@pytest.mark.parametrize("job", ["train", "eval"])
def test_programs_are_built_for_the_platform_they_run_on(world, monkeypatch, job):
    """A GPU multiplies rows that begin at multiples of 128: the columns of the head are as many."""
    seen = []
    name = {"train": "train", "eval": "evaluate"}[job]
    monkeypatch.setattr(spmd_jobs, name, lambda *args, **options: seen.append(ALIGNED.get()) or 0)
    path = world.config(f"built_for_{job}")
    for platform in ("gpu", "cpu"):
        assert main([job, path, "--backend", "xla", "--platform", platform]) == 0
    assert seen == [ROWS_OF["gpu"], 1] and seen[0] > 1


def test_an_evaluation_without_held_out_records_is_refused_at_once(world):
    """Before TensorFlow is imported, which takes seconds."""
    path = world.config("nothing_held_out", datasets=[world.dataset_config("none_held_out", eval_path=None)])
    code = "import sys\nfrom gpt_neo.__main__ import main\n"
    code += f"print(main(['eval', {path!r}]), 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr == "error: dataset 'none_held_out' has no 'eval_path': evaluation needs held-out records\n"
    assert done.stdout == "2 False\n"


@pytest.mark.parametrize("flag, job", [("--int8", "--export"), ("--keep_best", "--eval")])
def test_flags_of_another_job(command, flag, job, capsys):
    for words in ([], ["--check_dataset"]):
        assert command("--model", "demo", flag, *words) == 2
        assert f"{flag} goes with {job}; give {job} too" in capsys.readouterr().err


@pytest.mark.parametrize("job", [["--compile_for", "v3-8"], ["--eval"], ["--export"], ["--auto_layout"]])
def test_an_experiment_is_a_job(command, job, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("--model", "demo", "--experiment", "night", *job) == 2
    assert f"--experiment goes with training, not with {job[0]}" in capsys.readouterr().err
    assert not os.listdir(tmp_path)  # nothing was recorded


def test_a_plan_of_an_experiment_is_a_plan(command, capsys):
    assert command("--model", "demo", "--experiment", "night", "--plan") == 0
    assert "parameters" in capsys.readouterr().out


def test_keys_that_do_nothing_are_told_once(capsys):
    assert main(["plan", "demo", "--set", "slow_sampling=true", "--set", "predict_max_steps=3"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert [line.split()[3] for line in notes] == ["slow_sampling", "predict_max_steps"]
    assert main(["plan", "demo"]) == 0 and "note" not in capsys.readouterr().out


def test_a_model_is_named_by_config_name_or_folder(trained, tmp_path, monkeypatch):
    folder = load_config(trained).training.model_path
    by_record = load_config(folder, ["datasets=[]"])  # a run that was trained here has no config.json
    assert by_record.name == os.path.basename(folder) and by_record.model == load_config(trained).model
    copy = tmp_path / "mine"
    shutil.copytree(folder, copy)
    shutil.copy(trained, copy / "config.json")
    (copy / "model.ckpt-20.json").write_text("{}")
    monkeypatch.chdir(copy)
    for name in (str(copy), f"{copy}/", str(copy / "config.json"), ".", "config.json"):
        run = load_config(name, ["model_path=null", "datasets=[]"])
        assert run.name == "mine" and os.path.basename(run.source) == "config.json"
        assert model_folder(run) == str(copy)
    options = RunOptions(str(copy), set=("datasets=[]",), sacred_id="7")
    assert load_job(options).identity == "7"
    for wrong in ("night/7", "x" * 201):  # found out at the first evaluation, where that was not looked at
        with pytest.raises(ConfigError, match="files are called after it .*expected at most 200 bytes, without /"):
            load_job(dataclasses.replace(options, sacred_id=wrong))
    assert load_job(ModelOptions(str(copy), set=("datasets=[]",))).identity == "mine"


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["plan", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: no config in folder '{tmp_path}': expected config.json")


def test_a_run_goes_on_where_it_went_under_its_older_name(tmp_path, monkeypatch):
    """A config.json without a model_path trained in runs/config."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("project")
    keys = {**json.load(open(load_config("demo").source, encoding="utf-8")), "datasets": [], "model_path": None}
    with open("project/config.json", "w", encoding="utf-8") as handle:
        json.dump(keys, handle)
    run = load_config("project")
    assert model_folder(run) == str(tmp_path / "runs" / "project")
    os.makedirs("runs/config")
    open("runs/config/model.ckpt-5.index", "w").close()
    assert model_folder(run) == str(tmp_path / "runs" / "config")


def test_predictions_without_their_prompt(trained, command, tmp_path):
    argv = ["--model", trained, "--predict", "--prompt", "The if", "--max_tokens", 4, "--seed", 3]
    folder = load_config(trained).training.model_path
    texts = []
    for more in (["--sacred_id", "whole"], ["--sacred_id", "cut", "--set", "remove_partial_sequences=true"]):
        assert command(*argv, *more) == 0
        path = os.path.join(folder, f"predictions_{more[1]}_20.txt")
        texts.append(open(path, encoding="utf-8").read())
        os.remove(path)
    head = "=== sample 1, seed 3\n"
    assert texts[0] == head + "The if" + texts[1].removeprefix(head) and texts[1].startswith(head)
