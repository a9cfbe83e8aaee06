"""Runs side by side: a self-contained HTML page with SVG plots, and the same plots as a PNG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from gpt_neo.errors import DataError
from gpt_neo.plots import picture
from gpt_neo.tracking.runs import TrackedRun

# Metric -> title of its plot. A plot appears when a run has the metric.
PLOTS = {
    "loss": "Training loss, nats per token",
    "eval_loss": "Held-out loss, nats per token",
    "bits_per_byte": "Held-out bits per byte",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens per second",
    "goodput": "Share of all time spent in steps, restarts included",
}
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
WIDTH, HEIGHT = 560, 320  # of a plot, in its own units
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 46  # margins around the axes
MOST_POINTS = 600  # of a line; longer ones are thinned to the least and the largest value of each stretch

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.35rem; } h2 { font-size: 1rem; margin: 0 0 .3rem; font-weight: 600; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1.5rem; margin: 1.5rem 0; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .5em; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: #555; }
"""


def page_of(runs: Sequence[TrackedRun], rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """The page.

    Args:
      rows, head: the table of the runs as text, in the order of `runs`.
    """
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(runs))]
    figures = []
    for name, title in PLOTS.items():
        lines = [(run.label, colour, run.metrics[name]) for run, colour in zip(runs, colours) if run.metrics.get(name)]
        if lines:
            figures.append(f'<figure id="{name}" style="margin:0"><h2>{title}</h2>{plot(lines, title)}</figure>')
    cells = "".join(
        f'<tr><td><span class="key" style="background:{colour}"></span>{html.escape(row[0])}</td>'
        + "".join(f"<td{number_class(cell)}>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for colour, row in zip(colours, rows)
    )
    heads = "".join(f"<th>{html.escape(word)}</th>" for word in head)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Runs</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{len(runs)} run{'s' if len(runs) != 1 else ''}</h1>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table>"
        f'<div class="plots">{"".join(figures)}</div></body></html>\n'
    )


def number_class(cell: str) -> str:
    """Numbers stand on the right."""
    return ' class="number"' if cell.replace(",", "").replace(".", "").isdigit() else ""


def plot(lines: Sequence[tuple], title: str) -> str:
    """An SVG of (label, colour, [(step, value), ...])."""
    points = [point for _, _, line in lines for point in line if math.isfinite(point[1])]
    if not points:
        return "<p>no finite value</p>"
    xs, ys = axis([step for step, _ in points], whole=True), axis([value for _, value in points])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for tick in ys:
        y = place(tick, ys, HEIGHT - BOTTOM, TOP)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:,.6g}</text>')
    for tick in xs:
        x = place(tick, xs, LEFT, WIDTH - RIGHT)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#f2f2f2"/>')
        anchor = "end" if tick == xs[-1] else "middle"
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{tick:,.6g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    for label, colour, line in lines:
        kept = [(place(s, xs, LEFT, WIDTH - RIGHT), place(v, ys, HEIGHT - BOTTOM, TOP)) for s, v in thinned(line)]
        name = f"<title>{html.escape(label)}: {line[-1][1]:.6g} at step {line[-1][0]:,}</title>"
        if len(kept) > 1:
            way = " ".join(f"{x},{y}" for x, y in kept)
            parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.8">{name}</polyline>')
        if len(kept) <= 20:
            parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}">{name}</circle>' for x, y in kept]
    return "".join([*parts, "</svg>"])


def thinned(line: Sequence[tuple]) -> list[tuple]:
    """A line of at most MOST_POINTS points that shows the same peaks. What is not finite is left out."""
    line = [point for point in line if math.isfinite(point[1])]
    if len(line) <= MOST_POINTS:
        return line
    stretch = -(-2 * len(line) // MOST_POINTS)
    kept: list[tuple] = []
    for start in range(0, len(line), stretch):
        part = line[start : start + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def axis(values: Sequence[float], whole: bool = False) -> list[float]:
    """Ticks at round numbers that enclose the values; at whole ones where they are counts."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) / 20, high + (abs(high) or 1) / 20
    unit = 10 ** math.floor(math.log10((high - low) / 4))
    size = unit * next(n for n in (1, 2, 5, 10) if (high - low) / (n * unit) <= 6)
    size = max(size, 1) if whole else size
    first, last = math.floor(low / size), math.ceil(high / size)
    return [float(f"{i * size:.12g}") for i in range(first, last + 1)]


def place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    """Where a value lies between two ends."""
    return round(start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start), 1)


def plain(label: str) -> str:
    """A label that matplotlib shows as it is: it takes what stands between $ for a formula, and hides what begins with
    an underscore."""
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def draw_png(runs: Sequence[TrackedRun], path: str, flag: str = "--png") -> None:
    """The plots as a PNG.

    Args:
      flag: what asked for it, for errors.

    Raises:
      DataError: matplotlib is not installed, there is nothing to draw, or the file cannot be written.
    """
    names = [name for name in PLOTS if any(run.metrics.get(name) for run in runs)]
    if not names:
        raise DataError(f"{flag}: no run has a metric yet")
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    with picture(path, flag, rows, columns, (7 * columns, 4 * rows)) as grid:
        lines: dict = {}  # one of each run: not every run has every metric
        for name, axes in zip(names, grid.flat):
            for i, run in enumerate(runs):
                if run.metrics.get(name):
                    steps, values = zip(*run.metrics[name])
                    look = {"marker": "o" if len(steps) <= 20 else "", "color": COLOURS[i % len(COLOURS)]}
                    (lines[i],) = axes.plot(steps, values, markersize=4, linewidth=1.2, label=plain(run.label), **look)
            axes.set(xlabel="step", title=PLOTS[name])
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.grid(alpha=0.3)
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        grid[0][0].legend(handles=[lines[i] for i in sorted(lines)])
