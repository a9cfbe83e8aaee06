"""`python -m gpt_neo runs`: list recorded runs and plot their losses side by side."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from typing import Optional

from gpt_neo import storage
from gpt_neo.cli.job import time_text
from gpt_neo.errors import DataError
from gpt_neo.tracking.experiment import FOLDER
from gpt_neo.tracking.page import draw_png, page_of
from gpt_neo.tracking.runs import TrackedRun, load_runs

HEAD = ("run", "status", "started (UTC)", "time", "step", "loss", "held-out", "host", "folder")


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="python -m gpt_neo runs", description="List recorded runs, and plot them side by side."
    )
    p.add_argument(
        "where",
        nargs="*",
        default=[FOLDER],
        metavar="WHERE",
        help="what --observer was given (default: experiments), or a model_path",
    )
    p.add_argument("--experiment", metavar="NAME", help="only runs of this experiment")
    p.add_argument("--run", action="append", metavar="ID", help="only these runs")
    p.add_argument("--html", metavar="FILE", help="write a page with the table and plots, which needs no other file")
    p.add_argument("--png", metavar="FILE", help="write the plots as a picture")
    return p


def main(argv: Optional[list] = None) -> int:
    """List, and write what was asked for."""
    args = build_parser().parse_args(argv)
    runs = [run for where in args.where for run in load_runs(where)]
    if args.experiment:
        runs = [run for run in runs if run.experiment == args.experiment]
    if args.run:
        missing = sorted(set(args.run) - {run.identity for run in runs})
        if missing:
            known = ", ".join(run.identity for run in runs)
            raise DataError(f"no run {', '.join(missing)}; there are: {known or 'none'}")
        runs = [run for run in runs if run.identity in args.run]
    if not runs:
        raise DataError(f"no runs of experiment {args.experiment!r}")
    rows = [row_of(run) for run in runs]
    for line in aligned([HEAD, *rows]):
        print(line)
    if args.html:
        try:
            storage.write_bytes(args.html, page_of(runs, rows, HEAD).encode())
        except OSError as error:
            raise DataError(f"--html {args.html}: cannot be written: {error}") from error
        print(f"wrote {args.html}")
    if args.png:
        draw_png(runs, args.png)
        print(f"wrote {args.png}")
    return 0


def row_of(run: TrackedRun) -> list[str]:
    """A run as a line of the table."""
    end = run.ended or datetime.datetime.now(datetime.timezone.utc)
    return [
        run.label,
        run.status.lower(),
        f"{run.started:%Y-%m-%d %H:%M}" if run.started else "",
        time_text((end - run.started).total_seconds()) if run.started else "",
        f"{run.step:,}" if run.step else "",
        *map(decimal, (run.last("loss"), run.last("eval_loss"))),
        run.host,
        run.folder,
    ]


def decimal(value: Optional[float]) -> str:
    """A loss."""
    return "" if value is None else f"{value:.4f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in columns; those that are empty throughout are left out."""
    columns = [column for column in zip(*rows) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in zip(*columns)]
