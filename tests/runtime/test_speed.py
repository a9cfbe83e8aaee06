"""What a person is told of slow steps before the first one."""

import dataclasses

import pytest

from gpt_neo.cli import train
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import RunOptions, TrainingOptions
from gpt_neo.config import load_config
from gpt_neo.config.estimate import step_flops
from gpt_neo.runtime.speed import SHARE, expected_seconds, processor_speed, slow_step_text


def test_seconds_follow_from_work_and_speed():
    run = load_config("gpt3_125M", ["datasets=[]"])
    assert expected_seconds(run, 1e11) == pytest.approx(step_flops(run) / (SHARE * 1e11))
    assert 1e9 < processor_speed() < 1e14


def test_a_slow_step_is_announced_and_waited_for(capsys, monkeypatch):
    run = load_config("gpt3_125M", ["datasets=[]"])
    monkeypatch.setattr(train, "processor_speed", lambda: 1e11)
    seconds = expected_seconds(run, 1e11)
    assert seconds > 1800, "the shipped batch takes more than --stall_minutes on such a processor"
    job = Job(RunOptions("gpt3_125M"), run, "runs/x")
    assert train.stall_minutes(job, TrainingOptions()) * 60 >= 5 * seconds
    assert train.stall_minutes(job, TrainingOptions(stall_minutes=0)) == 0
    text = capsys.readouterr().out
    batch = int(text.split("train_batch_size=")[1].split()[0])
    smaller = dataclasses.replace(run, training=dataclasses.replace(run.training, train_batch_size=batch))
    assert f"about {seconds:,.0f} seconds" in text and expected_seconds(smaller, 1e11) < 80
    monkeypatch.setattr(train, "processor_speed", lambda: 1e15)
    assert train.stall_minutes(job, TrainingOptions()) == 30.0 and not capsys.readouterr().out
    assert "train_batch_size" not in slow_step_text(smaller, 1e4) or batch > 1
