"""What fits a terminal of 80 columns, and what stays on it."""

import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from gpt_neo.cli import console
from gpt_neo.cli.prepare import BAR
from tests.conftest import ROOT, set_clock


class Terminal:
    """Keeps what is printed, as lines that a person sees: what renews a line takes its place."""

    def __init__(self):
        self.lines = [""]

    def isatty(self):
        return True

    def write(self, text):
        for part in text.replace("\r\x1b[K", "\r").splitlines(keepends=True):
            head, renewed, tail = part.rpartition("\r")
            self.lines[-1] = tail.rstrip("\n") if renewed else self.lines[-1] + part.rstrip("\n")
            assert len(self.lines[-1]) < 80
            if part.endswith("\n"):
                self.lines.append("")

    def flush(self):
        pass


class Step:
    """Of a long run, with numbers as wide as they get."""

    train_steps, rate, tokens_per_second, seconds_left = 572_300, 6e-4, 1_234_567.0, 3600 * 47 + 59 * 60.0

    def __init__(self, step, loss=10.8249):
        self.step, self.loss = step, loss
        self.mean_loss = self.loss


def test_lines_fold_below_their_text_on_a_terminal_alone(monkeypatch):
    path = "/a/long/path/that/is/not/torn/" + "x" * 40
    line = f"note      the loss of {path} was told in words that do not fit into a line of this terminal"
    assert console.folded(line) == line
    monkeypatch.setattr(console.sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    rows = console.folded(line).split("\n")
    assert len(rows) == 3 and all(len(row) <= 80 for row in rows)
    assert all(row.startswith(" " * console.LABEL) for row in rows[1:]) and path in rows[1]
    assert " ".join(row.strip() for row in rows) == line
    measured = "held out  step 46: loss 6.9273 ± 0.0773 nats/token, perplexity 1019.752, 2.4401 bits/byte"
    assert console.folded(measured).split("\n")[1].strip() == "2.4401 bits/byte"


def test_a_training_fits_and_leaves_lines_to_look_back_at(monkeypatch):
    terminal, now = Terminal(), [0.0]
    monkeypatch.setattr(console.sys, "stdout", terminal)
    set_clock(monkeypatch, console, lambda: now[0])
    monkeypatch.setenv("COLUMNS", "80")
    line = console.ProgressLine()
    for step in range(100, Step.train_steps + 1, 100):
        now[0] += 1
        line.show(Step(step))
    line.finish()
    kept = [text for text in terminal.lines if text]
    assert len(kept) == console.LINES
    assert all(text.startswith("step ") and "loss 10.8249" in text for text in kept)
    shares = [int(text.split("/")[0].split()[1].replace(",", "")) / Step.train_steps for text in kept]
    assert shares == pytest.approx([i / console.LINES for i in range(1, console.LINES + 1)], abs=1e-3)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_evaluation_tells_how_far_it_is(monkeypatch, capsys, terminal):
    """A compiling batch of 100 seconds, and 9 of 20: 180 are left after the first."""
    now = [0.0]
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: terminal)
    set_clock(monkeypatch, console, lambda: now[0])
    show = console.BatchProgress()
    for done in range(1, 11):
        now[0] += 100 if done == 1 else 20
        show(done, 10)
    out = capsys.readouterr().out
    if terminal:
        assert out.split("\r\x1b[K")[1:3] == [
            "held out  2 of 10 batches  2 min 40 s left",
            "held out  3 of 10 batches  2 min 20 s left",
        ]
        assert out.endswith("9 of 10 batches  20 s left\r\x1b[K"), "gone in the end"
    else:
        assert out == "held out  4 of 10 batches  2 min 00 s left\nheld out  7 of 10 batches  1 min 00 s left\n"


def test_an_evaluation_of_one_batch_tells_nothing(monkeypatch, capsys):
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True)
    console.BatchProgress()(1, 1)
    assert capsys.readouterr().out == ""


def test_the_losses_of_a_training_are_those_of_batches_with_labels():
    line = console.ProgressLine()
    for step, loss in enumerate([0.0, 5.0, 4.0, 3.0, 0.0], 1):
        line.show(Step(step, loss))
    assert (line.first_loss, line.last_loss) == (5.0, 3.0)


@pytest.mark.parametrize("total", [123_456_789_012, None])
def test_the_bar_of_a_preparation_fits(total):
    text = tqdm.format_meter(
        98_765_432_109, total, 3600.0, ncols=80, prefix="read", unit="B", unit_scale=True, rate=27e6,
        postfix="12.35 M tokens/s", bar_format=BAR,
    )  # fmt: skip
    assert len(text) <= 80 and text.endswith("tokens/s") and text.count("|") == 2
    assert total is None or len(text.split("|")[1]) > 15


def test_a_reader_that_has_enough_ends_a_command_quietly():
    command = f"{sys.executable} -m gpt_neo plan gpt3_125M | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert (done.stdout, done.stderr) == ("141\n", "")
