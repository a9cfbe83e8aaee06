"""`main.py --experiment` as a user calls it: a training that is killed goes on, and is recorded whole."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from gpt_neo.__main__ import main
from gpt_neo.cli import experiment
from gpt_neo.cli.experiment import make_policy, training_words
from gpt_neo.cli.job import load_job
from gpt_neo.cli.options import RunOptions, Train
from gpt_neo.cli.parser import parse
from gpt_neo.tracking.runs import load_runs

STEPS, KILLED_AT = 100, 25


@pytest.fixture
def started(monkeypatch):
    """The supervised runs of a test."""
    found = []
    run = experiment.SupervisedRun.run

    def noted(self, tracked):
        found.append(self)
        return run(self, tracked)

    monkeypatch.setattr(experiment.SupervisedRun, "run", noted)
    return found


def hit_once(started, model, number):
    """Send a signal to the training once it has made some steps."""

    def hit():
        log = model / "train_log.jsonl"
        while not (log.exists() and log.read_text().count("\n") >= KILLED_AT):
            time.sleep(0.005)
        os.kill(started[0].supervisor.child.pid, number)

    threading.Thread(target=hit, daemon=True).start()


def test_a_killed_training_goes_on_and_is_recorded(world, command, started, tmp_path, capsys, monkeypatch):
    model = tmp_path / "model"
    one = {"n_layer": 1, "attention_types": "global"}
    path = world.config("watched", train_steps=STEPS, eval_steps=1, model_path=str(model), **one)

    hit_once(started, model, signal.SIGKILL)
    place, url = str(tmp_path / "experiments"), f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    assert (
        command(
            "--model",
            path,
            "--experiment",
            "night",
            "--observer",
            place,
            "--observer",
            url,
            "--steps_per_log",
            1,
            "--steps_per_checkpoint",
            20,
            "--pause",
            0.1,
            "--new",
            "--yes",
            "--prompt",
            "The if",
            "--max_tokens",
            4,
            "--seed",
            1,
            "--recreate_tpu",
            f"{sys.executable} -S -c 'import os; os.mkdir(os.environ[\"MADE\"])'",
        )
        == 0
    )
    assert os.path.isdir(tmp_path / "made")  # once, before the second attempt
    out = capsys.readouterr().out
    assert "note      the training was ended by SIGKILL at step" in out and "attempt 2 in 0 s" in out
    (run,), (stored,) = load_runs(place), load_runs(url)
    assert run.status == stored.status == "COMPLETED" and run.experiment == "night"
    # Every step once, though some were made twice; the values are those that training wrote.
    written = {}
    for line in open(model / "train_log.jsonl", encoding="utf-8"):
        row = json.loads(line)
        assert written.setdefault(row["step"], row["loss"]) == row["loss"]  # the resumed steps are the same ones
    assert run.metrics["loss"] == stored.metrics["loss"] == sorted(written.items())
    assert [step for step, _ in run.metrics["loss"]] == list(range(1, STEPS + 1))
    evaluated = [step for step, _ in run.metrics["eval_loss"]]  # while it trains, at checkpoints, and at the end
    assert evaluated == sorted(evaluated) and evaluated[0] == 20 and evaluated[-1] == STEPS
    assert run.config["n_embd"] == 16 and run.config["seed"] == 3
    folder = os.path.join(place, run.identity)
    sample = open(os.path.join(folder, f"predictions_1_{STEPS}.txt"), encoding="utf-8").read()
    assert "The if" in sample
    assert {"train_log.jsonl", "eval_1.jsonl", "cout.txt"} <= set(os.listdir(folder))
    assert "attempt 2" in open(os.path.join(folder, "cout.txt"), encoding="utf-8").read()
    assert json.load(open(os.path.join(folder, "info.json"), encoding="utf-8"))["attempts"] == 2


def test_a_mistake_stays_one_line_with_its_status(world, command, capsys, tmp_path):
    path = world.config("mistaken", model_path=str(tmp_path / "model"))
    argv = ["--set", "mesh_shape=x:3", "--gpu_ids", "cpu:0", "cpu:1", "--observer", tmp_path / "experiments"]
    assert command("--model", path, "--experiment", "night", *argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: mesh_shape x:3 multiplies to 3 devices") and shown.err.count("\n") == 1
    assert load_runs(str(tmp_path / "experiments"))[0].status == "FAILED"


@pytest.mark.parametrize(
    "more, message",
    [
        (["--predict"], "--experiment goes with training, not with --predict"),
        (["--new"], "nobody is there to ask; add --yes"),
        (["--prompt", "-"], "nobody is there to type"),
        (["--recreate_tpu", '"'], "--recreate_tpu '\"': No closing quotation"),
        (["--recreate_tpu", ""], "--recreate_tpu is empty"),
        (["--max_failures", "0"], "--max_failures is 0; expected at least 1"),
        (["--pause", "nan"], "--pause is nan"),
    ],
)
def test_flags_that_cannot_be(trained, command, capsys, more, message):
    assert command("--model", trained, "--experiment", "night", *more) == 2
    assert message in capsys.readouterr().err


def test_the_words_of_the_child(trained):
    """What is the supervisor's is left out; only the first attempt may delete checkpoints; samples have one prompt."""
    argv = "--model a --exper night --observer=x --set lr=1 --new --observer y -v --yes --pause 3 --prompt once"
    options = parse(Train, [*argv.split(), "--gpu_ids", "0", "1", "--stall_minutes", "2"], "gpt-neo train")
    job = load_job(RunOptions(trained, set=("predict_steps=1",)))
    kept = ["train", "--model=a", "--set=lr=1", "--verbose"]
    assert training_words(options, job, first=True) == [
        *kept,
        "--new",
        "--yes",
        "--stall_minutes=2.0",
        "--gpu_ids",
        "0",
        "1",
        "--prompt=once",
    ]
    again = training_words(options, job, first=False)
    assert again == [*kept, "--stall_minutes=2.0", "--gpu_ids", "0", "1", "--prompt=once"]
    assert parse(Train, again[1:], "").training.stall_minutes == 2
    assert "--prompt=once" not in training_words(options, load_job(RunOptions(trained)), first=True)  # nor its samples


@pytest.mark.parametrize("by_training", [True, False])
def test_the_last_checkpoint_is_sampled_once(world, tmp_path, monkeypatch, capsys, by_training):
    """By the training where that samples its checkpoints, otherwise by the supervisor."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "predictions_night_5.txt").write_text("of an earlier run that ended there")
    path = world.config("once", predict_steps=int(by_training), model_path=str(model))
    asked = []

    class Child(experiment.Supervisor):
        def run(self):
            for step in (5, 20):
                (model / f"model.ckpt-{step}.index").write_text("")
                if by_training:
                    (model / f"predictions_night_{step}.txt").write_text("new")
            return 0

        def one_attempt(self):
            asked.append(self.command(1)[3:])
            return 0, False

    monkeypatch.setattr(experiment, "Supervisor", Child)
    words = ["train", path, "--experiment", "x", "--sacred_id", "night", "--observer", str(tmp_path / "records")]
    assert main([*words, "--prompt", "The if"]) == 0
    assert len(asked) == (0 if by_training else 1)
    assert all(words[0] == "sample" and "--prompt=The if" in words for words in asked)


def test_new_holds_until_the_old_run_is_deleted(world, tmp_path, monkeypatch, capsys):
    """The first attempt may find the folder in use, or be killed before; what a later one has made stays."""
    model = tmp_path / "model"
    model.mkdir()
    path = world.config("old", model_path=str(model))
    index, log = model / "model.ckpt-5.index", model / "train_log.jsonl"
    for file in (index, log, model / "model.ckpt-5-of-mine.index"):
        file.write_text("old")
    asked = []

    class Child(experiment.Supervisor):
        def run(self):
            for attempt in (1, 2, 3, 4, 5):
                asked.append("--new" in self.command(attempt))
                if attempt == 2:
                    index.unlink()
                if attempt == 3:
                    log.unlink()
                    index.write_text("new one")
            return 75

    monkeypatch.setattr(experiment, "Supervisor", Child)
    words = ["train", path, "--experiment", "x", "--observer", str(tmp_path / "records"), "--new", "--yes"]
    assert main(words) == 75 and asked == [True, True, True, False, False]


def test_limits(trained):
    def policy(*argv):
        options = parse(Train, ["--model", trained, *argv], "gpt-neo train")
        return make_policy(load_job(options.model), options)

    assert policy("--stall_minutes", "10").stall == 720 and policy("--stall_minutes", "0.5").stall == 60
    assert policy("--stall_minutes", "0").stall == float("inf")


@pytest.mark.slow
def test_a_training_that_stands_still_is_started_again(world, command, started, tmp_path, capsys):
    model = tmp_path / "model"
    path = world.config("still", train_steps=1000, model_path=str(model))

    hit_once(started, model, signal.SIGSTOP)
    started_at = time.monotonic()
    assert (
        command(
            "--model",
            path,
            "--experiment",
            "night",
            "--observer",
            tmp_path / "experiments",
            "--steps_per_log",
            1,
            "--steps_per_checkpoint",
            20,
            "--pause",
            0.1,
            "--stall_minutes",
            0.5,
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "no sign of life for 1 min" in out and "the training stood still at step" in out
    assert time.monotonic() - started_at < 300


def test_a_task_that_lends_its_devices_is_restarted_and_not_recorded(trained, command, monkeypatch, tmp_path, capsys):
    jobs = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": jobs, "task": {"type": "worker", "index": 1}}))
    mark = str(tmp_path / "mark")  # left by the first attempt
    script = f"import os, sys; sys.exit(0) if os.path.exists({mark!r}) else open({mark!r}, 'w'); sys.exit(69)"
    monkeypatch.setattr(experiment, "COMMAND", (sys.executable, "-S", "-c", script))
    place = tmp_path / "experiments"
    assert command("--model", trained, "--experiment", "night", "--observer", place, "--pause", 0.1) == 0
    out = capsys.readouterr().out
    assert out == "note      the training has lost a machine or its devices; attempt 2 in 0 s\n" and not place.exists()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("by_training", [True, False])
def test_hosts_sample_together_after_their_training(world, tmp_path, monkeypatch, capsys, rank, by_training):
    """One that waits for another which does not come would wait for ten minutes, and fail."""
    path = world.config("together", predict_steps=int(by_training), model_path=str(tmp_path / "model"))
    heard = tmp_path / "heard"
    script = f"import sys; open({str(heard)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    monkeypatch.setattr(experiment, "COMMAND", (sys.executable, "-S", "-c", script))
    place = ["--backend", "xla", "--hosts", "2", "--rank", str(rank), "--coordinator", "127.0.0.1:9"]
    words = ["--experiment", "x", "--prompt", "The if", "--observer", str(tmp_path / "records")]
    assert main(["train", path, *place, *words]) == 0
    asked = [line.split() for line in heard.read_text().splitlines()]
    assert [line[0] for line in asked] == (["train"] if by_training else ["train", "sample"])
    assert all(f"--rank={rank}" in line and "--hosts=2" in line for line in asked)
