"""What a person reads while a command runs."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Optional

from gpt_neo import storage
from gpt_neo.config.estimate import Memory, count_parameters
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import counted, printable

if TYPE_CHECKING:  # a command that only plans does without TensorFlow
    from gpt_neo.runtime.hooks import Progress


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit in ("B", "KB") else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def count_text(count: float) -> str:
    """A large count for people: 125.2 M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return f"{count:.0f}"


def figure(value: float, digits: int) -> str:
    """A number with so many decimals; what would be zeros alone has one digit of its own."""
    text = f"{value:.{digits}f}"
    return text if float(text) or not value else f"{value:.1g}"


def time_text(seconds: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def model_text(run: RunConfig) -> str:
    """One line on the model."""
    model = run.model
    kinds = ", ".join(f"{model.attention_types.count(k)} {k}" for k in dict.fromkeys(model.attention_types))
    return (
        f"model     {run.name}: {count_parameters(model):,} parameters, {counted(model.n_layer, 'layer')} ({kinds}), "
        f"n_embd {model.n_embd}, n_ctx {model.n_ctx}, {model.precision}"
    )


def memory_text(memory: Memory) -> str:
    """One line on memory."""
    parts = dataclasses.asdict(memory)
    shown = ", ".join(f"{name} {size_text(value)}" for name, value in parts.items() if value)
    return f"memory    about {size_text(memory.total)} on one device ({shown})"


LABEL = 10  # columns of the word that a line begins with


def folded(line: str, label: int = LABEL) -> str:
    """A line as a terminal has room for it, what follows below its text; elsewhere as it is.

    Args:
      label: columns of the word that it begins with.
    """
    line = printable(line)
    if not sys.stdout.isatty():
        return line
    together = re.sub(r"(?<=\d) (?=[A-Za-z])", "\0", line)  # a number and its unit
    rows = textwrap.fill(
        together,
        shutil.get_terminal_size().columns,
        subsequent_indent=" " * label,
        break_long_words=False,  # a path is not torn
        break_on_hyphens=False,
    )
    return rows.replace("\0", " ")


def say(line: str) -> None:
    """Print a line that begins with a label of LABEL columns, at once."""
    print(folded(line), flush=True)


def note(line: str) -> None:
    """Print a line that a person should know about, at once."""
    say(f"note      {line}")


LINES = 20  # of a training that stay on a terminal, so that the loss can be looked back at


class ProgressLine:
    """One line that renews itself on a terminal, and stays there LINES times; elsewhere a line every 10 seconds."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.last = 0.0
        self.open = False  # whether the cursor stands behind a line that renews itself
        self.part = -1  # of LINES that the run has reached
        self.first_loss = self.last_loss = 0.0  # of the batches with labels that count; 0 until there is one
        self.latest: Optional[Progress] = None

    def show(self, progress: Progress) -> None:
        """Show a step."""
        self.first_loss = self.first_loss or progress.loss
        self.last_loss = progress.loss or self.last_loss
        self.latest = progress
        now, done = time.monotonic(), progress.step >= progress.train_steps
        if not done and now - self.last < (0.2 if self.terminal else 10.0):
            return
        self.last = now
        speed = f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second else "first step"
        left = f"  {time_text(progress.seconds_left)} left" if progress.seconds_left and not done else ""
        text = (
            f"step {progress.step:,}/{progress.train_steps:,}  loss {progress.mean_loss:.4f}  "
            f"lr {progress.rate:.2e}  {speed}{left}"
        )
        if not self.terminal:
            print(text, flush=True)
            return
        part = progress.step * LINES // progress.train_steps
        stays, self.part = part > self.part and self.part >= 0, part
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be renewed
        print(f"\r\x1b[K{text[:width]}", end="\n" if stays else "", flush=True)
        self.open = not stays

    def note(self, line: str) -> None:
        """Print a note between the lines of the steps."""
        self.say(f"note      {line}")

    def say(self, line: str) -> None:
        """Print a line of its own between those of the steps."""
        text = folded(line)
        print(f"{chr(13)}\x1b[K{text}" if self.terminal else text, flush=True)
        self.open = False

    def finish(self) -> None:
        """End the line."""
        if self.open:
            print()
            self.open = False


class BatchProgress:
    """How far an evaluation is, and how long it will take: a line that renews itself on a terminal, and is gone in the
    end; elsewhere a line every minute. The first batch, which builds and compiles, tells nothing of time.
    """

    def __init__(self) -> None:
        self.began = self.last = 0.0

    def __call__(self, done: int, batches: int) -> None:
        """See `runtime.held_out.BatchReport`."""
        now, terminal = time.monotonic(), sys.stdout.isatty()
        if done == 1:
            self.began = self.last = now
        if done == batches:
            print("\r\x1b[K" if terminal and batches > 1 else "", end="", flush=True)
        elif done > 1 and now - self.last >= (0.2 if terminal else 60.0):
            self.last = now
            left = time_text((now - self.began) / (done - 1) * (batches - done))
            text = f"held out  {done:,} of {batches:,} batches  {left} left"
            print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", flush=True)


def task_progress(name: str) -> Callable[[int, int], None]:
    """A callback that renews one line on a terminal, and prints nothing elsewhere."""
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        if sys.stdout.isatty():
            speed = done / max(time.monotonic() - began, 1e-9)
            text = f"{name}: {done:,} of {total:,} tokens, {speed:,.0f} tokens/s"
            print(f"\r\x1b[K{text if done < total else ''}", end="", flush=True)

    return show


def cost_text(tokens: int, exact: float, near: float, dtype: str) -> str:
    """What weights of fewer bits cost in perplexity."""
    return (
        f"perplexity of {tokens:,} held-out tokens: {exact:.4f}, with {dtype} weights {near:.4f} "
        f"({100 * (near / exact - 1):+.3f} %)"
    )


def may_write(folder: str) -> bool:
    """Whether files can be added to a folder, as far as that can be told without trying."""
    return storage.is_remote(folder) or os.access(folder, os.W_OK)


def keeps_results(folder: str) -> bool:
    """Whether results can be added to files of a run's folder. A model that others share may lie where nothing can be
    written: what was asked for is shown all the same, and a note says that it is nowhere else."""
    if may_write(folder):
        return True
    note(f"{folder} cannot be written: the results are shown here alone")
    return False
