"""Held-out losses, samples, the best checkpoint and patience while a run trains; what an evaluation leaves alone."""

import contextlib
import glob
import io
import json
import os
import shutil
import signal

import numpy as np
import pytest

from gpt_neo.checkpoint.best import read_best
from gpt_neo.checkpoint.folder import checkpoints_of
from gpt_neo.checkpoint.names import step_of
from gpt_neo.cli import train
from gpt_neo.cli.during import DuringTraining
from gpt_neo.config import load_config
from gpt_neo.dataprep.records import RecordWriter
from gpt_neo.inputs.sources import evaluation_sources
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.estimator import current_step, eval_batch_size, text_lengths
from gpt_neo.runtime.held_out import HeldOut
from gpt_neo.runtime.mesh import MeshPlan
from gpt_neo.serving.detokenizer import Detokenizer
from tests.conftest import folder_of

ROUGH = {"lr": 1.0, "lr_decay": "none", "warmup_steps": 6, "gradient_clipping": None}  # it does not get better for long
ONE = {"n_layer": 1, "attention_types": "global"}  # what is evaluated is no matter here


def rows_of(path, name):
    with open(os.path.join(folder_of(path), name), encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


@pytest.fixture(scope="module")
def watched(world):
    """A run with an evaluation and a sample every 4 steps, whatever the number in predict_steps."""
    from gpt_neo.cli.main import main

    path = world.config("during", eval_steps=2, predict_steps=1000, train_steps=12, **ONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
        assert main(["--model", path, "--steps_per_checkpoint", "4", "--steps_per_log", "3"]) == 0
    return path


def test_a_validation_curve_grows_as_the_run_trains(watched, command, capsys, monkeypatch):
    rows = rows_of(watched, "eval_during.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 12]
    shown = []
    monkeypatch.setattr("gpt_neo.cli.evaluate.BatchProgress", lambda: lambda *batches: shown.append(batches))
    assert command("--model", watched, "--eval", "--sacred_id", "again", "--set", "eval_steps=2") == 0
    capsys.readouterr()
    whole = rows_of(watched, "eval_again.jsonl")[0]
    run = load_config(watched)
    held_out = HeldOut(run, MeshPlan(), evaluation_sources(run), 99, eval_batch_size(run), text_lengths(run))
    held_out.batches = -(-evaluation_sources(run)[0].samples // eval_batch_size(run))
    told = []
    found = held_out.evaluate(os.path.join(folder_of(watched), "model.ckpt-12"), lambda *batches: told.append(batches))
    assert told == shown == [(i, held_out.batches) for i in range(1, held_out.batches + 1)] and len(told) > 1
    for name in ("loss", "perplexity", "bits_per_byte", "bits_per_character"):
        assert found[name] == pytest.approx(whole[name], rel=1e-6), "the Estimator's evaluation says the same"
    assert {**found, **dict.fromkeys(found, 0)} == dict.fromkeys(whole, 0)


def test_on_a_tpu_training_and_evaluation_take_turns(watched, world, command, monkeypatch, capsys):
    """TPUEstimator does both, here on this machine: the losses are those of a run that evaluates beside its session. A
    signal that comes in an evaluation ends the run there, and the same command goes on."""
    for module in ("train", "evaluate"):
        monkeypatch.setattr(f"gpt_neo.cli.{module}.tpu_options", lambda job: None)
    real, evaluated = train.evaluate_records, []

    def evaluate(job, limit, keep):
        if not evaluated:
            os.kill(os.getpid(), signal.SIGTERM)
        evaluated.append(current_step(job.folder))
        real(job, limit, keep)

    monkeypatch.setattr(train, "evaluate_records", evaluate)
    path = world.config("in_turn", eval_steps=2, train_steps=12, **ONE)
    words = ("--model", path, "--tpu", "mine", "--steps_per_checkpoint", 4)
    assert command(*words) == 143 and evaluated == [4]
    assert "stopped   by SIGTERM: step 4 is saved" in capsys.readouterr().out
    assert command(*words) == 0 and evaluated == [4, 8, 12]
    assert capsys.readouterr().out.count("held out") == 2  # none once more at the end
    wanted, rows = rows_of(watched, "eval_during.jsonl"), rows_of(path, "eval_in_turn.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 12]
    for row, other in zip(rows, wanted):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-6)
    assert read_best(folder_of(path)).step == read_best(folder_of(watched)).step


def test_a_signal_just_as_a_checkpoint_is_written_ends_the_run_there(watched, world, command, monkeypatch, capsys):
    """It is evaluated by the command that goes on, also where it is the one that a session began with. The log's means
    are those of a run that was not stopped between its rows."""
    real = DuringTraining.__call__

    def signalled(self, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step)

    path = world.config("asked", eval_steps=2, train_steps=8, **ONE)
    words = ("--model", path, "--steps_per_checkpoint", 4, "--steps_per_log", 3)
    with monkeypatch.context() as patch:
        patch.setattr(DuringTraining, "__call__", signalled)
        assert command(*words) == 130
        assert "stopped   by SIGINT: step 4 is saved" in capsys.readouterr().out
        assert command(*words) == 130, "again, before the first step of the session"
    assert current_step(folder_of(path)) == 4
    assert command(*words) == 0
    assert [row["step"] for row in rows_of(path, "eval_asked.jsonl")] == [4, 8]
    (_, row, _), (_, wanted, *_) = rows_of(path, "train_log.jsonl"), rows_of(watched, "train_log.jsonl")
    assert [row[key] for key in ("step", "loss", "mean_loss")] == [6, wanted["loss"], wanted["mean_loss"]]


@pytest.mark.parametrize("where", ["held_out", "sample"])
def test_a_signal_in_the_middle_of_an_evaluation_or_a_sample_is_heard(watched, world, command, monkeypatch, where):
    """They take up to an hour of a large model on a CPU. The command that goes on makes them as a whole."""
    asked, real_step, real_piece = [], HeldOut.following, Detokenizer.advance

    def following(self):
        if where == "held_out" and not asked:
            os.kill(os.getpid(), signal.SIGTERM)
        asked.append("batch")
        return real_step(self)

    def advance(self, *given):
        if where == "sample" and "token" not in asked:
            os.kill(os.getpid(), signal.SIGTERM)
        asked.append("token")
        return real_piece(self, *given)

    name = f"asked_in_{where}"
    path = world.config(name, eval_steps=2, predict_steps=1, train_steps=12, **ONE)
    words = ("--model", path, "--steps_per_checkpoint", 4)
    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "following", following)
        patch.setattr(Detokenizer, "advance", advance)
        assert command(*words) == 143
    assert (asked.count("batch"), asked.count("token")) == ((1, 0) if where == "held_out" else (2, 1))
    folder = folder_of(path)
    assert current_step(folder) == 4 and not os.path.exists(os.path.join(folder, f"predictions_{name}_4.txt"))
    assert command(*words) == 0
    rows, wanted = rows_of(path, f"eval_{name}.jsonl"), rows_of(watched, "eval_during.jsonl")
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in wanted], rel=1e-6)
    assert os.path.exists(os.path.join(folder, f"predictions_{name}_4.txt"))


def test_a_kill_before_the_best_is_known_leaves_one_row(world, command, monkeypatch):
    """The command that goes on evaluates the step again, which is then in the log already."""
    path = world.config("unknown", eval_steps=2, train_steps=3, **ONE)
    words = ("--model", path, "--steps_per_checkpoint", 2)

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gpt_neo.cli.during.keep_best", killed)
        assert command(*words) == 130 and read_best(folder_of(path)) is None
    assert [row["step"] for row in rows_of(path, "eval_unknown.jsonl")] == [2]
    assert command(*words) == 0
    assert [row["step"] for row in rows_of(path, "eval_unknown.jsonl")] == [2, 3]


def test_a_random_start_is_not_evaluated_by_the_command_that_goes_on(world, command, monkeypatch):
    """A kill before the first checkpoint leaves the one of step 0, whose weights nobody has given."""
    path = world.config("from_nothing", eval_steps=2, train_steps=4, **ONE)

    def killed(self, step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DuringTraining, "__call__", killed)
        assert command("--model", path, "--steps_per_checkpoint", 4) == 130
    assert current_step(folder_of(path)) == 0 and len(checkpoints_of(folder_of(path))) == 1
    assert command("--model", path, "--steps_per_checkpoint", 4) == 0
    assert [row["step"] for row in rows_of(path, "eval_from_nothing.jsonl")] == [4]


def test_a_step_that_a_run_goes_on_from_is_sampled_once(world, command, monkeypatch):
    """Killed after its samples; another prompt is sampled, and so is a checkpoint that is younger than the file."""
    real = DuringTraining.__call__

    def killed(self, step):
        real(self, step)
        if step == 2:
            raise KeyboardInterrupt

    def count(prompt):
        with open(os.path.join(folder_of(path), "predictions_cut_2.txt"), encoding="utf-8") as handle:
            return handle.read().count(f"=== sample 1, seed 1\n{prompt}")

    path = world.config("cut", predict_steps=1, train_steps=3, **ONE)
    words = ("--model", path, "--steps_per_checkpoint", 2, "--max_tokens", 2, "--prompt")
    with monkeypatch.context() as patch:
        patch.setattr(DuringTraining, "__call__", killed)
        for prompt, made in (("one", 1), ("one", 1), ("two", 1)):
            assert command(*words, prompt) == 130 and count(prompt) == made
        os.utime(os.path.join(folder_of(path), "predictions_cut_2.txt"), (1, 1))
        assert command(*words, "two") == 130 and count("two") == 2
    assert command(*words, "one") == 0 and count("one") == 1


def test_a_kill_before_the_last_sample_leaves_it_to_the_same_command(world, command, monkeypatch, capsys):
    """There is nothing to train any more; the sample is the one of a run that was not killed, and is made once. Of a
    step that training samples alone."""
    path = world.config("unsampled_end", predict_steps=1, train_steps=3, **ONE)
    words = ("--model", path, "--steps_per_checkpoint", 2, "--max_tokens", 8, "--prompt", "one")
    name = os.path.join(folder_of(path), "predictions_unsampled_end_3.txt")

    def killed(self, step):
        raise KeyboardInterrupt

    assert command(*words) == 0
    with open(name, encoding="utf-8") as handle:
        wanted = handle.read()
    os.remove(name)
    assert command(*words) == 0 and "nothing to do" in capsys.readouterr().out
    for _ in range(2):
        with open(name, encoding="utf-8") as handle:
            assert handle.read() == wanted
        assert command(*words) == 0
    assert "sample    step" not in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(DuringTraining, "sample", killed)
        assert command(*words, "--set", "train_steps=5") == 130
    assert command(*words, "--set", "train_steps=5") == 0
    told = capsys.readouterr().out
    assert "nothing to do: the newest checkpoint is at step 5" not in told and "sample    step 4" in told


def test_the_log_has_means(watched):
    rows = rows_of(watched, "train_log.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert all(np.isfinite(row["mean_loss"]) and row["mean_loss"] != row["loss"] for row in rows)


def test_tensorboard_has_the_curve_and_the_samples(watched):
    tags = {}
    for path in glob.glob(os.path.join(folder_of(watched), "eval", "events*")):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                tags.setdefault(value.tag, set()).add(event.step)
                if value.tag == "samples":
                    assert value.metadata.plugin_data.plugin_name == "text"
                    assert "reindeer" in tf.make_ndarray(value.tensor)[0].decode()
    for tag in ("loss", "perplexity", "bits_per_byte", "samples"):
        assert tags[tag] >= {4, 8, 12}
    assert glob.glob(os.path.join(folder_of(watched), "predictions_during_*.txt")).__len__() == 3


def test_a_finished_run_evaluates_nothing_twice(watched, command, capsys):
    assert command("--model", watched, "--steps_per_checkpoint", 4) == 0
    assert [row["step"] for row in rows_of(watched, "eval_during.jsonl")] == [4, 8, 12]
    assert "nothing to do" in capsys.readouterr().out


def test_a_finished_run_is_evaluated_on_other_records(watched, world, command, tmp_path):
    folder = shutil.copytree(folder_of(watched), tmp_path / "run")
    other = world.dataset_config("other_text", eval_path=os.path.join(world.records, "train_0_*.tfrecords"))
    flags = ["--model", watched, "--set", f"model_path={folder}", "--set", f'datasets=["{other}"]']
    name = folder / "eval_during.jsonl"
    for _ in range(2):  # the second time it is known
        assert command(*flags) == 0
        assert [json.loads(line)["step"] for line in name.read_text().splitlines()] == [4, 8, 12, 12]
    assert "other_text" in read_best(str(folder)).data


def test_a_read_only_evaluation_leaves_the_best_as_it_was(watched, world, command):
    folder = folder_of(watched)
    before = {name: os.stat(os.path.join(folder, "best", name)).st_mtime_ns for name in os.listdir(folder + "/best")}
    easy = world.dataset_config("easy_text", eval_path=os.path.join(world.records, "train_0_*.tfrecords"))
    flags = ["--model", watched, "--eval", "--checkpoint", "4", "--set", f'datasets=["{easy}"]']
    assert command(*flags) == 0
    after = {name: os.stat(os.path.join(folder, "best", name)).st_mtime_ns for name in os.listdir(folder + "/best")}
    assert before == after and "best-12" not in os.listdir(folder)
    assert command(*flags, "--keep_best") == 0
    assert read_best(folder).step == 4 and os.path.isfile(os.path.join(folder, "best-12", "model.ckpt-12.index"))


@pytest.fixture(scope="module")
def impatient(world):
    """(config, flags, what was printed) of a run that --patience ended."""
    from gpt_neo.cli.main import main

    path = world.config("rough", eval_steps=1, train_steps=40, seed=1, **ROUGH, **ONE)
    flags = ["--model", path, "--steps_per_checkpoint", "2", "--patience", "3"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
        assert main(flags) == 0
    return path, flags, printed.getvalue()


def test_patience(impatient, command, capsys):
    path, flags, out = impatient
    best, losses = read_best(folder_of(path)), {row["step"]: row["loss"] for row in rows_of(path, "eval_rough.jsonl")}
    assert best.loss == min(losses.values()) and len(best.worse) == 3 and len(losses) >= 4
    last = max(losses)
    assert best.step == last - 6 < 34, "three evaluations of two steps each after the best"
    assert max(map(step_of, checkpoints_of(folder_of(path)))) == last
    assert f"training ends at step {last}" in out and f"trained   {last} steps" in out
    assert command(*flags) == 0 and "--patience 3 ended the run" in capsys.readouterr().out
    assert command("--model", path, "--patience", "3", "--set", "eval_steps=0") == 2
    assert "--patience needs eval_steps" in capsys.readouterr().err


def test_a_run_that_is_taken_back_evaluates_its_new_course(impatient, command, capsys, tmp_path):
    """With the later checkpoints deleted and a lower rate, the same steps come again, of other weights."""
    path, flags, _ = impatient
    rows, folder = rows_of(path, "eval_rough.jsonl"), shutil.copytree(folder_of(path), tmp_path / "back")
    best = read_best(str(folder))
    again = [best.step + 2, best.step + 4, best.step + 6]
    assert list(best.worse) == again, "it became worse at once"
    for step in again:
        for later in glob.glob(os.path.join(folder, f"model.ckpt-{step}.*")):
            os.remove(later)
    assert max(map(step_of, checkpoints_of(str(folder)))) == best.step
    assert (
        command(*flags, "--set", f"model_path={folder}", "--set", "lr=0.001", "--set", f"train_steps={again[2]}") == 0
    )
    assert "nothing to do" not in capsys.readouterr().out
    with open(folder / "eval_rough.jsonl", encoding="utf-8") as handle:
        marked, *new = [json.loads(line) for line in handle][len(rows) :]
    assert marked == {"step": best.step, "taken_back": True}
    assert [row["step"] for row in new] == again
    assert all(row["loss"] < old["loss"] for row, old in zip(new[:2], rows[-3:]))


def test_held_out_records_are_looked_at_before_the_first_step(world, command, capsys, tmp_path):
    writer = RecordWriter(str(tmp_path), "short", 0)
    writer.write([2, 3])
    writer.close()
    other = world.dataset_config("short_eval", eval_path=str(tmp_path / "short_*.tfrecords"))
    path = world.config("unsound", eval_steps=1, train_steps=1, datasets=[other], **ONE)
    assert command("--model", path) == 2
    told = capsys.readouterr()
    assert "short_0_1.tfrecords: record 0 has 2 tokens; n_ctx + 1 = 33 are needed" in told.err
    assert "step 1/1" not in told.out and not glob.glob(os.path.join(folder_of(path), "model.ckpt-1.*"))


def test_a_run_that_cannot_sample_trains_all_the_same(world, command, capsys):
    other = world.dataset_config("of_gpt2", tokenizer_path=None)
    path = world.config("wordless", predict_steps=1, train_steps=1, datasets=[other], **ONE)
    assert command("--model", path) == 0
    assert "no samples during training: dataset 'of_gpt2'" in capsys.readouterr().out


def test_samples_are_those_of_sample_and_a_prompt_is_read_once(world, command, capsys, monkeypatch):
    """Standard input has it no second time; the first seed is 0, and stop strings stop."""
    path = world.config("asked_once", predict_steps=1, train_steps=2, **ONE)
    how = ("--num_samples", 2, "--max_tokens", 12, "--seed", 0, "--stop", "e", "--stop", "a")
    monkeypatch.setattr("sys.stdin", io.StringIO("The class\n"))
    assert command("--model", path, "--prompt", "-", "--steps_per_checkpoint", 1, *how) == 0
    assert "no samples" not in capsys.readouterr().out
    for step in ("1", "2"):
        name = os.path.join(folder_of(path), f"predictions_asked_once_{step}.txt")
        with open(name, encoding="utf-8") as handle:
            made = handle.read()
        os.remove(name)
        texts = made.split("=== sample ")[1:]
        assert [text.split("\n", 1)[0] for text in texts] == ["1, seed 0", "2, seed 0"]
        assert not any(set(text.split("The class", 1)[1]) & {"e", "a"} for text in texts)
        assert command("--model", path, "--predict", "--prompt", "The class", "--checkpoint", step, *how) == 0
        with open(name, encoding="utf-8") as handle:
            assert handle.read() == made


def test_on_a_tpu_it_is_told_that_there_are_no_samples(world, command, monkeypatch, capsys):
    monkeypatch.setattr("gpt_neo.cli.train.tpu_options", lambda job: None)
    path = world.config("unsampled", predict_steps=1, train_steps=1, **ONE)
    assert command("--model", path, "--tpu", "mine", "--prompt", "The class") == 0
    assert "no samples during training: the TPU runs one program at a time" in capsys.readouterr().out
