"""Every command line of README, docs and Makefile, and every one that was there before them, means something."""

import dataclasses
import glob
import itertools
import os
import re
import shlex

import pytest

from gpt_neo.cli.commands import COMMANDS, call
from gpt_neo.cli.main import command_of
from gpt_neo.cli.options import Main
from gpt_neo.cli.parser import parse
from tests.conftest import ROOT

SCRIPTS = {"create_tfrecords": "prepare", "train_tokenizer": "train-tokenizer", "inspect": "inspect-data"}
START = (
    r"(?:[A-Z_]+=\S+ )*(?:gpt-neo |(?:python )?main\.py |python -m gpt_neo |"
    r"python data/(?:create_tfrecords|train_tokenizer|inspect)\.py )"
)
# A line as it was -> what it is now, where there is something to compare.
BEFORE = [
    ("python main.py --model configs/gpt3_2-7B.json --tpu NAME", "gpt-neo train configs/gpt3_2-7B.json --tpu NAME"),
    ("python main.py --model configs/gpt3_125M.json", "gpt-neo train configs/gpt3_125M.json"),
    ("python main.py --model configs/gpt3_125M.json --eval", "gpt-neo eval configs/gpt3_125M.json"),
    (
        'python main.py --model gpt3_125M --predict --prompt "Once upon a time" --num_samples 3',
        'gpt-neo sample gpt3_125M "Once upon a time" --num_samples 3',
    ),
    ("python main.py --model configs/gpt3_2-7B.json --plan", "gpt-neo plan configs/gpt3_2-7B.json"),
    ("main.py --model CONFIG --check_dataset", "gpt-neo check-data CONFIG"),
    ("main.py --model CONFIG --export", "gpt-neo export CONFIG"),
    ("main.py --model configs/demo.json --export FOLDER --int8", "gpt-neo export configs/demo.json FOLDER --int8"),
    ("python main.py --model demo --auto_layout", "gpt-neo layout demo"),
    (
        "python main.py --model demo --auto_layout_and_mesh_shape --gpu_ids 0 1",
        "gpt-neo layout demo --mesh --gpu_ids 0 1",
    ),
    (
        "python main.py --model configs/gpt3_1-3B.json --compile_for v3-8 --set mesh_shape=x:4,y:2",
        "gpt-neo plan configs/gpt3_1-3B.json --compile_for v3-8 --set mesh_shape=x:4,y:2",
    ),
    (
        "python main.py --model configs/gpt3_1-3B.json --compile_for v3-256 --json",
        "gpt-neo plan configs/gpt3_1-3B.json --compile_for v3-256 --json",
    ),
    (
        "python main.py --model configs/gpt3_1-3B.json --plan --compile_for v3-8 --compile_minutes 30",
        "gpt-neo layout configs/gpt3_1-3B.json --compile_for v3-8 --compile_minutes 30",
    ),
    (
        "python main.py --model demo --eval --eval_tasks lambada=lambada_test.jsonl pile=val.jsonl.zst",
        "gpt-neo eval demo --eval_tasks lambada=lambada_test.jsonl pile=val.jsonl.zst",
    ),
    (
        "python main.py --model configs/demo.json --experiment night",
        "gpt-neo train configs/demo.json --experiment night",
    ),
    (
        "python main.py --model CONFIG --tpu local --set model_path=gs://BUCKET/run",
        "gpt-neo train CONFIG --tpu local --set model_path=gs://BUCKET/run",
    ),
    (
        "python main.py --model runs/mine/config.json --predict --prompt Hello",
        "gpt-neo sample --model runs/mine/config.json --prompt Hello",
    ),
    ("python main.py --model CONFIG --predict --checkpoint best", "gpt-neo sample CONFIG --checkpoint best"),
    (
        "python data/create_tfrecords.py --input_dir texts --output_dir records --name train",
        "gpt-neo prepare --input_dir texts --output_dir records --name train",
    ),
    (
        "python data/inspect.py 'records/train_*.tfrecords' --histogram lengths.png",
        "gpt-neo inspect-data 'records/train_*.tfrecords' --histogram lengths.png",
    ),
    ("python -m gpt_neo inspect CKPT --slots --json", "gpt-neo inspect CKPT --slots --json"),
    ("python -m gpt_neo average SRC TOO --to DST --last 2", "gpt-neo average SRC TOO --to DST --last 2"),
    (
        "python -m gpt_neo doctor --model CONFIG --path FOLDER --tpu NAME",
        "gpt-neo doctor CONFIG --path FOLDER --tpu NAME",
    ),
    (
        "python -m gpt_neo harness --model demo --tasks mine --include_path tasks --offline",
        "gpt-neo harness demo --tasks mine --include_path tasks --offline",
    ),
    ("python -m gpt_neo export-hf MODEL DST --custom_code", "gpt-neo export-hf --model MODEL DST --custom_code"),
    ("python -m gpt_neo import-hf SRC DST --step 7 --slots zero", "gpt-neo import-hf SRC DST --step 7 --slots zero"),
    (
        "python -m gpt_neo runs --html runs.html --png runs.png",
        "gpt-neo runs experiments --html runs.html --png runs.png",
    ),
    (
        "python -m gpt_neo serve --model configs/demo.json --host 0.0.0.0",
        "gpt-neo serve configs/demo.json --host 0.0.0.0",
    ),
]
SPMD = "python -m gpt_neo spmd-run --model configs/gpt3_125M.json"
# The flags of the legacy program, each as a person would give it.
LEGACY = [
    "python main.py --tpu colab --model gpt3_XL --steps_per_checkpoint 5000 --new",
    "python main.py --gpu_ids 0 1 --model gpt3_XL.json --predict --prompt example.txt --sacred_id 7 --entmax_sampling",
    "python main.py --model configs/gpt3_XL --auto_layout",
    "python main.py --model gpt3_XL --auto_layout_and_mesh_shape",
    "python main.py --model gpt3_XL --eval",
    "python main.py --model gpt3_XL --check_dataset",
    "python main.py --model gpt3_XL --export",
    "python data/create_tfrecords.py --input_dir a --files_per 100 --name b --output_dir c --encoder_path d "
    "--minimum_size 100 --ftfy --wikitext-detokenize --separator 50256 --chunk_size 2048 --write_dataset_config "
    "--processes 4 --legacy",
    "python data/create_tfrecords.py --input_dir gs://b/pile --output_dir gs://b/r --beam --runner=DataflowRunner",
    "python data/train_tokenizer.py --base_dir a --output_dir b --file_type txt --vocab_size 50257",
]


def meaning(line):
    """(command, options) of a line; synopses lose their brackets and dots, and N is a number."""
    words = [word.strip("[]").replace("...", "") for word in shlex.split(line, comments=True)]
    words = ["2" if word == "N" else word for word in words if word]
    while "=" in words[0]:
        words.pop(0)
    while words[0] in ("python", "-m"):
        words.pop(0)
    door, *rest = words
    if door == "main.py":
        return command_of(parse(Main, rest, "main.py", words=False))
    script = SCRIPTS.get(os.path.basename(door).removesuffix(".py"))
    if script:
        return script, parse(COMMANDS[script].options, rest, door, words=False)
    assert door in ("gpt-neo", "gpt_neo"), line
    return rest[0], parse(COMMANDS[rest[0]].options, rest[1:], "gpt-neo")


def named(options):
    """The flags that name a model; main.py has --sacred_id for every job."""
    model = options.get("model")
    return {key: value for key, value in model.items() if key != "sacred_id"} if isinstance(model, dict) else model


def documented():
    """Lines of commands, and those in backquotes that have more than the command's name."""
    for path in [os.path.join(ROOT, "README.md"), *sorted(glob.glob(os.path.join(ROOT, "docs", "*.md")))]:
        text = open(path, encoding="utf-8").read().replace("\\\n", " ")
        for found in re.finditer(rf"^ *({START}.*)$|`({START}[^`]*)`", text, re.M):
            line = found[1] or found[2]
            if len(line.split()) > 2 and not line.endswith((" --help", " ...")):
                yield pytest.param(line, id=f"{os.path.basename(path)}: {line[:60]}")


@pytest.mark.parametrize("line", list(documented()))
def test_what_the_documentation_shows_is_understood(line):
    name, options = meaning(line)
    assert name in COMMANDS and isinstance(options, COMMANDS[name].options)


def test_there_is_a_lot_documented():
    lines = [str(param.values[0]) for param in documented()]
    assert len(lines) > 45
    shown = {meaning(line)[0] for line in lines}
    assert shown >= set(COMMANDS) - {"spmd-run"}, set(COMMANDS) - shown


@pytest.mark.parametrize("old, new", BEFORE)
def test_an_older_line_means_the_newer_one(old, new):
    (name, options), (newer, wanted) = meaning(old), meaning(new)
    assert name == newer and isinstance(options, type(wanted))
    given, wanted = dataclasses.asdict(options), dataclasses.asdict(wanted)
    assert {**given, "model": named(given)} == {**wanted, "model": named(wanted)}


@pytest.mark.parametrize("line", LEGACY)
def test_lines_of_the_legacy_program(line):
    meaning(line)


def test_flags_of_the_legacy_program_arrive():
    name, train = meaning(LEGACY[0])
    assert (name, train.devices.tpu, train.model.model) == ("train", "colab", "gpt3_XL")
    assert (train.training.steps_per_checkpoint, train.training.new) == (5000, True)
    name, sample = meaning(LEGACY[1])
    assert (name, sample.devices.gpu_ids, sample.model.sacred_id) == ("sample", ("0", "1"), "7")
    assert (sample.sampling.prompt, sample.sampling.entmax_sampling) == ("example.txt", True)
    name, prepare = meaning(LEGACY[7])
    assert prepare.ftfy and prepare.wikitext_detokenize and prepare.legacy and prepare.write_dataset_config == ""
    assert (prepare.separator, prepare.chunk_size, prepare.minimum_size) == (("50256",), 2048, 100)
    assert meaning(LEGACY[8])[1].beam == ("--runner=DataflowRunner",)


@pytest.mark.parametrize("more", [[], ["--eval"], ["--predict", "--prompt", "x"], ["--save_program", "p"]])
def test_spmd_run_is_the_other_backend(more, monkeypatch):
    from gpt_neo.cli import jobs

    asked = []
    for name in ("train", "evaluate", "sample"):
        monkeypatch.setattr(jobs, name, lambda options: asked.append(options) or 0)
    assert call(*meaning(shlex.join([*SPMD.split(), "--platform", "gpu", *more]))) == 0
    name = {"--eval": "eval", "--predict": "sample"}.get(more[0] if more else "", "train")
    rest = [word for word in more if word not in ("--eval", "--predict")]
    newer = ["gpt-neo", name, "configs/gpt3_125M.json", "--backend", "xla", "--platform", "gpu", *rest]
    assert asked == [meaning(shlex.join(newer))[1]]


CHEAP = [line for line in [*itertools.chain(*BEFORE), *LEGACY] if re.search(r"plan|layout", line)]


@pytest.mark.parametrize("line", [line for line in CHEAP if "compile_for" not in line])
def test_the_cheap_ones_run(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert call(*meaning(line.replace(" demo", " gpt3_125M"))) == 0
    assert " parameters, " in capsys.readouterr().out
