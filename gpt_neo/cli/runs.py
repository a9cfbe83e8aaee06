"""List recorded runs and plot their losses side by side."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Sequence
from typing import Optional

from gpt_neo import storage
from gpt_neo.cli.console import note, time_text
from gpt_neo.cli.tool_options import Runs
from gpt_neo.errors import DataError, brief, reason_of
from gpt_neo.tracking.page import draw_png, page_of
from gpt_neo.tracking.runs import LONGEST, TrackedRun, load_runs

HEAD = ("run", "status", "started (UTC)", "time", "step", "loss", "held-out", "host", "folder")


def list_runs(options: Runs) -> int:
    """List, and write what was asked for."""
    runs = [run for where in options.where for run in load_runs(where, note)]
    if options.experiment:
        runs = [run for run in runs if run.experiment == options.experiment]
    if options.run:
        missing = sorted(set(options.run) - {run.identity for run in runs})
        if missing:
            known = ", ".join(run.identity for run in runs)
            raise DataError(f"no run {', '.join(missing)}; there are: {known or 'none'}")
        runs = [run for run in runs if run.identity in options.run]
    if not runs:
        raise DataError(f"no runs of experiment {options.experiment!r}")
    rows = [row_of(run) for run in runs]
    print(*table([HEAD, *rows]), sep="\n")
    if options.html:
        try:
            storage.write_bytes(options.html, page_of(runs, rows, HEAD).encode())
        except OSError as error:
            raise DataError(f"--html {options.html}: cannot be written: {reason_of(error)}") from error
        print(f"wrote {options.html}")
    if options.png:
        draw_png(runs, options.png)
        print(f"wrote {options.png}")
    return 0


def row_of(run: TrackedRun) -> list[str]:
    """A run as a line of the table, which can be shown anywhere."""
    end = run.ended or datetime.datetime.now(datetime.timezone.utc)
    cells = [
        run.label,
        run.status.lower(),
        f"{run.started:%Y-%m-%d %H:%M}" if run.started else "",
        time_text((end - run.started).total_seconds()) if run.started else "",
        f"{run.step:,}" if run.step else "",
        *map(decimal, (run.last("loss"), run.last("eval_loss"))),
        run.host,
        run.folder,
    ]
    return [brief(cell, LONGEST) for cell in cells]


def decimal(value: Optional[float]) -> str:
    """A loss."""
    return "" if value is None else f"{value:.4f}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as a terminal has room for them, where folders that are too long get a line each; elsewhere aligned."""
    lines = aligned(rows)
    if not sys.stdout.isatty() or max(map(len, lines)) <= shutil.get_terminal_size().columns:
        return lines
    head, *lines = aligned([row[:-1] for row in rows])
    return [head, *(part for line, row in zip(lines, rows[1:]) for part in (line, f"  {row[-1]}"))]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in columns; those that are empty throughout are left out."""
    columns = [column for column in zip(*rows) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in zip(*columns)]
