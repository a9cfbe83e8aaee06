"""The table of commands."""

import os
import re
import subprocess
import sys

import pytest

from gpt_neo.cli import commands
from gpt_neo.cli.commands import COMMANDS, Command, main, usage
from gpt_neo.cli.parser import Parser, parse
from tests.conftest import ROOT

TOY = '''
"""A toy."""

import dataclasses

from gpt_neo.cli.options import ModelOptions
from gpt_neo.cli.job import load_job
from gpt_neo.cli.parser import Options, flag


@dataclasses.dataclass(frozen=True)
class CountLayers(Options):
    """Count layers."""

    model: ModelOptions
    times: int = flag(1, "multiply by N", low=1, metavar="N")


def count_layers(options):
    print(load_job(options.model).run.model.n_layer * options.times)
    return 3
'''


def test_a_command_is_a_file_and_a_row(tmp_path, monkeypatch, capsys):
    (tmp_path / "toy_command.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    import toy_command

    monkeypatch.setitem(
        COMMANDS, "count-layers", Command(toy_command.CountLayers, "toy_command:count_layers", "layers")
    )
    assert main(["count-layers", "gpt3_125M", "--set", "lr=1", "--times", "2"]) == 3
    assert capsys.readouterr().out == "24\n"
    assert main(["count-layers", "gpt3_125M", "--times", "0"]) == 2
    assert capsys.readouterr().err == "error: --times is 0; expected at least 1\n"
    assert main(["count-layer"]) == 2
    assert "did you mean count-layers?" in capsys.readouterr().err and "count-layers" in usage()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_row_is_whole(name):
    command = COMMANDS[name]
    told = " ".join(Parser(command.options, f"gpt-neo {name}").format_help().split())
    assert not re.search(r"\(default: [^()]*\) \(default:", told), "one default a flag"
    module, _, function = command.function.partition(":")
    place = os.path.join(ROOT, *module.split(".")) + ".py"
    assert f"def {function}(options" in open(place, encoding="utf-8").read()


def test_help_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, command in COMMANDS.items():
        lines = Parser(command.options, f"gpt-neo {name}").format_help().splitlines()
        assert [line for line in lines if len(line) > 80] == [], name


@pytest.mark.parametrize("spelling", ["wikitext-detokenize", "wikitext_detokenize"])
def test_both_spellings_of_a_flag(spelling):
    told = Parser(COMMANDS["prepare"].options, "gpt-neo prepare").format_help()
    assert "--no-wikitext-detokenize" in told and "wikitext_detokenize" not in told
    for word, value in (("", True), ("no-", False)):
        words = ["--input_dir", "texts", f"--{word}{spelling}"]
        assert parse(COMMANDS["prepare"].options, words, "gpt-neo prepare").wikitext_detokenize is value


@pytest.mark.parametrize("typed, meant", [("trian", "train"), ("evaluate", "eval"), ("check_data", "check-data")])
def test_a_mistyped_command(typed, meant, capsys):
    assert main([typed]) == 2
    assert capsys.readouterr().err == f"error: no command {typed!r}; did you mean {meant}?\n"


LIGHT = """
import sys, time
from gpt_neo.cli import commands, main as legacy
from gpt_neo.cli.commands import main
from gpt_neo.cli.common import run_command

def status(call, *given):
    try:
        return call(*given)
    except SystemExit as end:
        return end.code

assert status(main, ["--help"]) == 0 and status(main, ["nonsense"]) == 2
for name in commands.COMMANDS:
    assert status(main, [name, "--help"]) == 0 and status(main, [name, "--no_such_flag"]) == 2, name
for flags in ("--num_samples 0", "--temperature -1", "--top_p 2", "--gpu_ids tpu:0", "--checkpoint x", "--seed -1"):
    assert status(main, ["sample", "demo", *flags.split()]) == 2, flags
assert status(main, ["--version"]) == 0
assert status(run_command, legacy.main, ["--model", "demo", "--prompt", "x"]) == 2
assert status(legacy.main, ["--help"]) == 0 and status(legacy.main, ["--modle", "x"]) == 2
assert status(run_command, legacy.main, ["--model", "demo", "--plan", "--eval"]) == 2
assert not {"tensorflow", "mesh_tensorflow", "numpy"} & set(sys.modules)
for name in ("train", "eval", "sample", "plan", "layout", "check-data", "export", "serve"):
    assert status(main, [name, "no_such_model"]) == 2
assert status(main, ["train", "gpt3_125M"]) == 2 and status(main, ["eval", "gpt3_125M"]) == 2  # placeholders
assert status(main, ["sample", "demo", "--prompt", "nowhere.txt"]) == 2
assert not {"tensorflow", "mesh_tensorflow"} & set(sys.modules)
"""


def test_help_and_mistakes_need_no_tensorflow():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


INSTANT = ("--help", "train --help", "sample demo --temprature 1", "sample demo --temperature -1")


@pytest.mark.parametrize("words", [line.split() for line in INSTANT])
def test_answers_are_instant(words):
    """Modules are counted, as a time depends on what runs beside: 155 take a quarter of a second."""
    code = (
        "import sys, atexit\nfrom gpt_neo.__main__ import main\n"
        "atexit.register(lambda: print('modules', len(sys.modules)))\nsys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert 50 < int(done.stdout.rsplit("modules ")[-1]) < 200, done.stdout


def test_python_m_gpt_neo_and_the_console_script_are_one():
    setup = open(os.path.join(ROOT, "setup.py"), encoding="utf-8").read()
    assert '"gpt-neo = gpt_neo.__main__:main"' in setup
    from gpt_neo.__main__ import main as console

    assert console is commands.main
