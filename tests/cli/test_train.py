"""What a training says at its end."""

import contextlib
import os
import types

import pytest

from gpt_neo.checkpoint.best import Best
from gpt_neo.checkpoint.provenance import config_keys
from gpt_neo.cli import train
from gpt_neo.cli.job import load_job
from gpt_neo.cli.options import ModelOptions
from gpt_neo.cli.train import next_text, order_notes, position_notes
from gpt_neo.config import load_config
from gpt_neo.dataprep.records import RecordWriter


@pytest.mark.parametrize(
    "given, needed",
    [
        ((), ""),
        (("train_steps=3", "eval_steps=8", "lr=0.1", "opt_name=adafactor"), ""),
        (("train_steps=3", "model_path=runs/a b"), "'--set=model_path=runs/a b' "),
        (("n_layer=6", "n_layer=3"), ""),
        (("n_layer=1", "lr=0.1", "attention_types=linear"), "--set=n_layer=1 --set=attention_types=linear "),
    ],
)
def test_the_next_command_names_what_it_needs(given, needed):
    text = next_text(load_job(ModelOptions(model="configs/demo.json", set=given), reads_only=True))
    assert text == f'next      gpt-neo sample configs/demo.json {needed}"Once upon a time"'


def test_new_deletes_what_training_made_and_nothing_else(tmp_path):
    row = '{"step": 20, "loss": 2.5}\n'
    made = {
        "": ["checkpoint", "graph.pbtxt", "train_log.jsonl", "watch_log.jsonl", "stall.txt", "eval_demo.jsonl"]
        + [
            "events.out.tfevents.1.host",
            "model.ckpt-20.index",
            "model.ckpt-20.data-00000-of-00001",
            "model.ckpt-20.json",
        ],
        "best": ["best.json", "checkpoint", "model.ckpt-10.index", "model.ckpt-10.data-00000-of-00001"],
        "eval": ["events.out.tfevents.1.host.2"],
    }
    kept = {
        "": ["config.json", "checkpoint_notes.md", "evaluate.py", "eval_prompts.jsonl", "evaluation.tfrecords"]
        + ["model.ckpt-notes.txt", "predictions_demo_20.txt"],
        "best": ["why.md"],
        "eval": ["texts.jsonl"],
    }
    for names in (made, kept):
        for place in names:
            (tmp_path / place).mkdir(exist_ok=True)
            for name in names[place]:
                (tmp_path / place / name).write_text(row if names is made else '{"text": "theirs"}\n')
    found = {os.path.relpath(path, tmp_path) for path in train.checkpoint_paths(str(tmp_path))}
    assert found == {os.path.join(place, name) for place in made for name in made[place]}


def test_in_turn_evaluates_what_a_kill_left_out(tmp_path, monkeypatch):
    """A TPU trains and evaluates in turn; the process may end between the two."""
    done, seen, step = [], set(), [4]
    monkeypatch.setattr(train.runtime, "current_step", lambda folder: step[0])
    monkeypatch.setattr(train, "evaluate_records", lambda job, limit, keep: done.append(step[0]))

    def steps(estimator, run, plan, folder, tell, watch, until):
        step[0] = until
        return until

    monkeypatch.setattr(train.runtime, "train", steps)
    monkeypatch.setattr(train, "evaluation_sources", lambda run: [])
    monkeypatch.setattr(train, "held_out_identity", lambda run, sources, limit, size: f"{limit} of {size}")
    settings = types.SimpleNamespace(train_steps=10, eval_steps=1, eval_batch_size=6)
    job = types.SimpleNamespace(folder=str(tmp_path), run=types.SimpleNamespace(training=settings))
    watch = types.SimpleNamespace(signal=None, waiting=contextlib.nullcontext)
    line, training = types.SimpleNamespace(finish=lambda: None), types.SimpleNamespace(steps_per_checkpoint=4)
    assert train.in_turn(job, training, None, None, line, watch, seen) == 10
    assert done == [4, 8, 10] and seen == {4, 8, 10}
    step[0], known = 4, Best("model.ckpt-2", 2, 1.0, "1 of 6", (4,))
    monkeypatch.setattr(train, "read_best", lambda folder: known)
    train.in_turn(job, training, None, None, line, watch, seen)
    assert done[3:] == [8, 10]


@pytest.mark.parametrize(
    "step, before, now, told",
    [
        (100, 8, 8, None),
        (0, 8, 16, None),
        (100, 8, 12, "at sample 100 * 12 = 1,200 in place of 800, so that 400 samples are passed over"),
        (100, 8, 2, "at sample 100 * 2 = 200 in place of 800, so that 600 samples are read a second time"),
    ],
)
def test_another_batch_size_moves_the_place_in_the_data(step, before, now, told):
    assert position_notes(step, {}, now) == []  # the 2021 program left no record
    record = {"format": 1, "step": step, "data": {"train_batch_size": before}}
    wanted = [f"train_batch_size was {before} and is {now}: reading goes on {told}"] if told else []
    assert position_notes(step, record, now) == wanted


@pytest.mark.parametrize(
    "step, before, told",
    [
        (100, {}, None),
        (100, {"datasets": [["elsewhere/small.json", None, None, 0.25], ["other", 2, "documents_fixed", None]]}, None),
        (0, {"seed": 4}, None),
        (100, {"seed": 4}, "seed was 4 and is 3"),
        (100, {"shuffle_input_filenames": True}, "shuffle_input_filenames was True and is False"),
        (
            100,
            {"datasets": [["small", None, None, 0.75]]},
            "datasets was small 0.75 and is small 0.25, other 2 documents_fixed",
        ),
    ],
)
def test_another_mixture_or_order_moves_it_too(world, step, before, told):
    entries = [["small", None, None, 0.25], ["other", 2, "documents_fixed", None]]
    world.dataset_config("other")
    run = load_config(world.config("mixed", datasets=entries))
    record = {"format": 1, "step": step, "config": {**config_keys(run), **before}}
    where = "reading goes on at sample 400 of the order of now: some samples are read again, others passed over"
    assert order_notes(step, record, run) == ([f"{told}: {where}"] if told else [])


def test_records_that_were_added_move_it_too(world, command, capsys, tmp_path):
    """The order of the files is drawn anew with them, and where a step is in it."""

    def add(shard):
        writer = RecordWriter(str(tmp_path), "growing", shard)
        for _ in range(9):
            writer.write([5] * 40)
        writer.close()

    add(0)
    dataset = world.dataset_config("growing", path=str(tmp_path / "growing_*"))
    path = world.config("growing", datasets=[dataset], n_layer=1, attention_types="global")
    for steps, told in ((3, False), (4, True), (5, False)):
        if told:
            add(1)
        assert command("--model", path, "--set", f"train_steps={steps}") == 0
        text = capsys.readouterr().out
        where = "growing had 9 records in 1 file at step 3 and has 18 records in 2 files: reading goes on where step 3"
        assert (where in text) == told and ("are read again" in text) == told, text


@pytest.mark.parametrize("tasks", [0, 1])
def test_a_training_of_no_steps_says_so_and_evaluates_nothing(world, command, capsys, tmp_path, tasks):
    words = tmp_path / "words.jsonl"
    words.write_text('{"text": "the class has a name"}\n')
    path = world.config("no_steps", train_steps=0, eval_steps=2, eval_tasks=[f"lambada={words}"][:tasks])
    assert command("--model", path) == 0
    told = capsys.readouterr()
    assert "nothing to do: train_steps is 0, and there is no checkpoint" in told.out and "error" not in told.err
