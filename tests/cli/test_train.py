"""What a training says at its end."""

import pytest

from gpt_neo.cli.job import load_job
from gpt_neo.cli.options import ModelOptions
from gpt_neo.cli.train import next_text


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
