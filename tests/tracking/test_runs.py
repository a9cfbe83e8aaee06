"""The list of runs and their plots, seen in a real browser where there is one."""

import datetime
import html.parser
import json
import os
import re
import shutil
import sqlite3
import subprocess

import numpy as np
import pytest

from gpt_neo.__main__ import main as gpt_neo
from gpt_neo.cli.evaluate import give_up_later
from gpt_neo.tracking.page import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    axis,
    draw_png,
    page_of,
    plot,
    thinned,
)
from gpt_neo.tracking.runs import TrackedRun, load_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture
def runs(tmp_path):
    """Two runs as sacred's FileStorageObserver leaves them, and the folder of a third that was not tracked."""
    place = tmp_path / "experiments"
    for number, (scale, status) in enumerate([(4.0, "COMPLETED"), (8.0, "RUNNING")], 1):
        folder = place / str(number)
        folder.mkdir(parents=True)
        steps = list(range(1, 2001))
        values = [scale / step**0.3 for step in steps]
        entry = {
            "experiment": {"name": "<b>sweep</b>"},
            "host": {"hostname": "box"},
            "status": status,
            "start_time": "2026-01-02T03:04:05",
            "heartbeat": "2026-01-02T04:04:05",
        }
        if status == "COMPLETED":
            entry["stop_time"] = "2026-01-02T05:04:05"
        metrics = {"loss": {"steps": steps, "values": values}, "eval_loss": {"steps": [2000], "values": [scale / 9]}}
        for name, value in (("run", entry), ("metrics", metrics), ("config", {}), ("info", {"folder": "/m"})):
            (folder / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "train_log.jsonl").write_text('{"step": 5, "loss": 2.5}\n{"step": 10, "loss": NaN}\n')
    return tmp_path


def test_the_list(runs, capsys):
    assert gpt_neo(["runs", str(runs / "experiments"), str(runs / "model")]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["run", "status"]
    assert lines[0].split() == [
        "<b>sweep</b>",
        "1",
        "completed",
        "2026-01-02",
        "03:04",
        "2",
        "h",
        "00",
        "min",
        "2,000",
        f"{4 / 2000**0.3:.4f}",
        "0.4444",
        "box",
        "/m",
    ]
    assert "dead" in lines[1] and "nan" in lines[2]


def test_folders_that_a_terminal_has_no_room_for(runs, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "90")
    folder = runs / "model"
    for name in ("m" * 30, "n" * 40):
        (runs / "far" / name).mkdir(parents=True)
        (runs / "far" / name / "train_log.jsonl").write_text((folder / "train_log.jsonl").read_text())
    far = [str(path) for path in sorted((runs / "far").iterdir())]
    assert gpt_neo(["runs", *far]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "step", "loss"] and lines[1::2] == [f"  {path}" for path in far]
    assert all(line.split()[:1] == [os.path.basename(path)] for line, path in zip(lines[::2], far))


def test_a_run_that_went_on_from_an_earlier_checkpoint(tmp_path, capsys):
    # 30 to 50 diverged; their checkpoints were deleted, and the run goes on from 20 with a lower rate.
    losses = [(10, 3.0), (20, 2.5), (30, 8.0), (40, 9.0), (50, 9.5), (30, 2.25), (40, 2.0)]
    rows = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in losses)
    (tmp_path / "train_log.jsonl").write_text(rows)
    (run,) = load_runs(str(tmp_path))
    assert run.metrics == {"loss": [(10, 3.0), (20, 2.5), (30, 2.25), (40, 2.0)]}
    assert gpt_neo(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:3] == ["40", "2.0000"]


def test_evaluations_of_a_course_that_was_given_up(tmp_path):
    log = tmp_path / "eval_a.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": 9 - step / 10}) + "\n" for step in (10, 20, 30)))
    (tmp_path / "eval_b.jsonl").write_text('{"step": 10, "loss": 7}\n')
    before = log.read_text(), (tmp_path / "eval_b.jsonl").read_text()
    give_up_later(str(tmp_path), 30)  # goes on from its newest checkpoint
    assert (log.read_text(), (tmp_path / "eval_b.jsonl").read_text()) == before
    give_up_later(str(tmp_path), 10)
    give_up_later(str(tmp_path), 10)  # again, before anything new is known
    assert log.read_text() == before[0] + '{"step": 10, "taken_back": true}\n'
    assert (tmp_path / "eval_b.jsonl").read_text() == before[1]
    (tmp_path / "train_log.jsonl").write_text('{"step": 25, "loss": 1.0}\n')
    with log.open("a") as file:
        file.write('{"step": 25, "loss": 2}\n')
    (run,) = load_runs(str(tmp_path))
    assert run.metrics["eval_loss"] == [(10, 7.0), (25, 2.0)]


def test_runs_of_a_database(runs):
    """One that runs has its logs in its folder yet; a run that ended has those that were stored with it."""
    pytest.importorskip("sqlalchemy")
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    old, log = now - datetime.timedelta(days=2), b'{"step": 7, "loss": 1.5, "lr": 0.5}\n'
    rows = {  # id: (status, stop, heartbeat, whether its log is stored)
        "1": ("RUNNING", None, now, False),
        "2": ("RUNNING", None, old, False),
        "3": ("COMPLETED", now, now, True),
        "4": ("FAILED", now, old, False),
    }
    with sqlite3.connect(runs / "runs.db") as database:
        database.execute("create table host (host_id, hostname)")
        database.execute("create table experiment (experiment_id, name)")
        database.execute("create table artifact (artifact_id, run_id, filename, content)")
        names = "id, run_id, status, start_time, stop_time, heartbeat, config, info, host_id, experiment_id"
        database.execute(f"create table run ({names})")
        database.execute("insert into host values (4, 'box')")
        database.execute("insert into experiment values (5, 'night')")
        for name, (status, stop, beat, stored) in rows.items():
            times = [time and time.isoformat(" ") for time in (old, stop, beat)]
            info = json.dumps({"folder": str(runs / "model")})
            given = (int(name), name, status, *times, '{"lr": 0.5}', info, 4, 5)
            database.execute(f"insert into run values ({', '.join('?' * len(given))})", given)
            if stored:
                database.execute("insert into artifact values (1, ?, 'train_log.jsonl', ?)", (name, log))
                held_out = b'{"step": 7, "loss": 1.25}\n'
                database.execute("insert into artifact values (2, ?, 'eval_3.jsonl', ?)", (name, held_out))
    found = {run.identity: run for run in load_runs(f"sqlite:///{runs / 'runs.db'}")}
    assert {name: run.status for name, run in found.items()} == {
        "1": "RUNNING",
        "2": "DEAD",
        "3": "COMPLETED",
        "4": "FAILED",
    }
    assert all(run.metrics["loss"][0] == (5, 2.5) for run in (found["1"], found["2"])), "of the folder"
    assert found["3"].metrics == {"loss": [(7, 1.5)], "learning_rate": [(7, 0.5)], "eval_loss": [(7, 1.25)]}
    assert found["4"].metrics == {}, "what is in the folder now may be another run's"
    third = found["3"]
    assert (third.label, third.host, third.folder, third.config) == ("night 3", "box", str(runs / "model"), {"lr": 0.5})
    assert (third.ended - third.started).days == 2 and third.started.utcoffset().total_seconds() == 0


def test_runs_are_in_the_order_of_their_numbers_and_points_in_that_of_their_steps(runs, tmp_path):
    for number in ("10", "9"):
        shutil.copytree(runs / "experiments" / "1", runs / "experiments" / number)
    assert [run.identity for run in load_runs(str(runs / "experiments"))] == ["1", "2", "9", "10"]
    for log, step in (("eval_a", 20), ("eval_b", 10)):
        (runs / "model" / f"{log}.jsonl").write_text(json.dumps({"step": step, "loss": step / 10}) + "\n")
    (run,) = load_runs(str(runs / "model"))
    assert run.metrics["eval_loss"] == [(10, 1.0), (20, 2.0)] and run.last("eval_loss") == 2.0 and run.step == 20


def test_a_run_of_a_tpu_is_read_from_the_files_of_tensorboard(tmp_path, capsys):
    import tensorflow as tf

    for start, losses in ((100, (3.0, 2.5, 7.0)), (300, (2.0,))):  # begun again from step 200
        place = str(tmp_path / f"events.out.tfevents.{1000 + start}.host")
        with tf.io.TFRecordWriter(place) as writer:
            for step, loss in zip(range(start, 1000, 100), losses):
                values = [("loss", loss), ("global_step/sec", 9.0), ("learning_rate", 0.5)]
                scalars = [tf.compat.v1.Summary.Value(tag=tag, simple_value=value) for tag, value in values]
                event = tf.compat.v1.Event(step=step, summary=tf.compat.v1.Summary(value=scalars))
                writer.write(event.SerializeToString())
    assert gpt_neo(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:3] == ["300", "2.0000"]
    (run,) = load_runs(str(tmp_path))
    assert run.metrics == {
        "loss": [(100, 3.0), (200, 2.5), (300, 2.0)],
        "learning_rate": [(100, 0.5), (200, 0.5), (300, 0.5)],
    }


@pytest.mark.parametrize("name", ["_hidden", r"a$\frac$b", "two\nlines", "esc\x1b[31m", os.fsdecode(b"no\xffutf8")])
def test_any_name_of_a_folder_can_be_shown(tmp_path, capsys, name):
    place = tmp_path / name
    place.mkdir()
    (place / "train_log.jsonl").write_text('{"step": 5, "loss": 2.5}\n')
    page, png = tmp_path / "page.html", tmp_path / "runs.png"
    assert gpt_neo(["runs", str(place), "--html", str(page), "--png", str(png)]) == 0
    shown = ascii(name)[1:-1].replace("\\\\", "\\")
    assert capsys.readouterr().out.splitlines()[1].startswith(f"{shown}  5")
    assert shown in page.read_text(encoding="utf-8")


def test_every_run_is_in_the_legend(monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    seen, legend = [], Axes.legend

    def noted(axes, **given):
        made = legend(axes, **given)
        seen.extend(text.get_text() for text in made.get_texts())
        return made

    monkeypatch.setattr(Axes, "legend", noted)
    metrics = {"loss": [(1, 2.0)], "eval_loss": [(1, 2.0)]}
    labels = ["_hidden", "$x", "plain"]
    runs = [TrackedRun(label, "", "", None, None, "", "", {}, dict(metrics)) for label in labels]
    del runs[0].metrics["loss"], runs[1].metrics["eval_loss"]
    draw_png(runs, str(tmp_path / "x.png"))
    assert seen == [" _hidden", r"\$x", "plain"]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nowhere"], "nowhere: no runs; expected what --observer was given, or a model_path"),
        (["sqlite:///nowhere.db"], "no such file"),
        (["{}", "--run", "7"], "no run 7; there are: 1, 2"),
        (["{}", "--experiment", "x"], "no runs of experiment 'x'"),
        (["{}", "--html", "/nowhere/x.html"], "--html /nowhere/x.html: cannot be written"),
        (["{}", "--png", "/nowhere/x.png"], "--png /nowhere/x.png: cannot be written"),
    ],
)
def test_mistakes_are_one_line(runs, capsys, argv, message):
    words = [word.format(runs / "experiments") for word in argv]
    assert gpt_neo(["runs", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_the_page_needs_nothing_else_and_escapes_names(runs):
    assert gpt_neo(["runs", str(runs / "experiments"), "--html", str(runs / "page.html")]) == 0
    text = (runs / "page.html").read_text(encoding="utf-8")
    assert "<b>sweep" not in text and "&lt;b&gt;sweep" in text
    tags = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(text)
    assert not [a for _, a in tags if {"src", "href"} & set(a)] and "@import" not in text
    assert [tag for tag, _ in tags].count("svg") == 2 and [tag for tag, _ in tags].count("polyline") == 2


def colour_counts(path):
    """Pixels of a picture that have the colours of the first and second run."""
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS[:2]]
    return [(np.abs(pixels - rgb).max(-1) < 40).sum() for rgb in wanted]


def test_the_png_shows_both_runs(runs):
    assert gpt_neo(["runs", str(runs / "experiments"), "--png", str(runs / "runs.png")]) == 0
    assert min(colour_counts(runs / "runs.png")) > 500


def test_the_page_in_a_real_browser(runs):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    assert gpt_neo(["runs", str(runs / "experiments"), "--html", str(runs / "page.html")]) == 0
    common = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,800",
        f"--user-data-dir={runs / 'profile'}",
    ]
    # The plots' boxes as the browser lays them out, and the number of points that each line has for it.
    script = """<script>document.title = JSON.stringify([...document.querySelectorAll("svg")].map(s => ({
        id: s.parentNode.id, width: s.getBoundingClientRect().width, height: s.getBoundingClientRect().height,
        lines: [...s.querySelectorAll("polyline")].map(p => p.points.length), lengths:
        [...s.querySelectorAll("polyline")].map(p => p.getTotalLength()),
        dots: s.querySelectorAll("circle").length})))</script></body>"""
    seen = runs / "measured.html"
    seen.write_text((runs / "page.html").read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    argv = [*common, "--dump-dom", seen.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    title = html.unescape(done.stdout.partition("<title>")[2].partition("</title>")[0])
    loss, held_out = json.loads(title)
    assert loss["id"] == "loss" and min(loss["width"], loss["height"]) > 150
    assert len(loss["lines"]) == 2 and min(loss["lines"]) > 400 and min(loss["lengths"]) > 400
    assert held_out["id"] == "eval_loss" and held_out["dots"] == 2
    picture = runs / "page.png"
    subprocess.run(
        [*common, f"--screenshot={picture}", (runs / "page.html").as_uri()], capture_output=True, timeout=60, check=True
    )
    assert min(colour_counts(picture)) > 300


@pytest.mark.parametrize("values", [[1, 2], [0.1], [-3, 7.5], [0, 0], [1e-9, 3e-9], [12345, 99999]])
def test_axes_enclose_their_values(values):
    ticks = axis(values)
    assert ticks[0] <= min(values) and ticks[-1] >= max(values) and 2 <= len(ticks) <= 9
    assert len({round(b - a, 12) for a, b in zip(ticks, ticks[1:])}) == 1


def test_a_point_lies_where_its_numbers_are_on_the_axes():
    """By the labels of the plot itself."""
    points = [(3, 0.25), (40, 1.75), (90, 0.9), (100, 0.0)]
    svg = plot([("a", "#123456", points)], "title")
    label = re.compile(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([\d.,]+)</text>')
    left, below = {}, {}
    for x, y, anchor, text in label.findall(svg):
        side = left if anchor == "end" and float(x) < 100 else below
        side[float(text.replace(",", ""))] = float(y) - 4 if side is left else float(x)
    assert min(left) <= 0 < 1.75 <= max(left) and min(below) <= 3 < 100 <= max(below)
    (x, y), (shown_x, shown_y) = (
        [np.array(sorted(side)) for side in (below, left)],
        [np.array([side[tick] for tick in sorted(side)]) for side in (below, left)],
    )
    assert (np.diff(shown_x) > 0).all() and (np.diff(shown_y) < 0).all(), "up is more"
    assert (shown_x[0], shown_x[-1]) == (LEFT, WIDTH - RIGHT) and (shown_y[0], shown_y[-1]) == (HEIGHT - BOTTOM, TOP)
    (drawn,) = re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    drawn = [tuple(map(float, pair.split(","))) for pair in drawn.split()]
    wanted = [(np.interp(step, x, shown_x), np.interp(value, y, shown_y)) for step, value in points]
    np.testing.assert_allclose(drawn, wanted, atol=0.1)


def test_a_row_of_the_table_has_the_colour_of_its_line():
    runs = [TrackedRun(str(i), "x", "", None, None, "", "", {}, {"loss": [(1, 2.0)]}) for i in range(12)]
    page = page_of(runs, [(f"x {i}", "1,234.5", "dead") for i in range(12)], ["run", "step", "status"])
    keys = re.findall(r'class="key" style="background:(#\w+)"></span>x (\d+)</td>', page)
    lines = re.findall(r'<circle[^>]* fill="(#\w+)"><title>x (\d+)', page)
    assert [(*pair,) for pair in keys] == [(COLOURS[i % len(COLOURS)], str(i)) for i in range(12)] == lines
    assert page.count('<td class="number">1,234.5</td>') == 12 and page.count("<td>dead</td>") == 12


def test_long_lines_keep_their_peaks():
    line = [(step, 1.0 + step % 2 / 10) for step in range(50_000)]
    line[31_234], line[40_001] = (31_234, 9.0), (40_001, 0.5)
    kept = thinned(line)
    assert len(kept) <= MOST_POINTS and {line[31_234], line[40_001]} < set(kept) and kept == sorted(kept)
    assert thinned([(1, float("nan")), (2, 1.0)]) == [(2, 1.0)]


@pytest.mark.parametrize("steps", [(10, 12), (1, 1), (0, 3), (0, 572_300)])
def test_steps_are_whole_on_every_picture(tmp_path, monkeypatch, steps):
    from matplotlib.axis import XAxis

    ticks = axis(steps, whole=True)
    assert len(ticks) <= 8 and ticks[0] <= steps[0] <= steps[1] <= ticks[-1] and all(t == int(t) for t in ticks)
    drawn, update = [], XAxis._update_ticks
    monkeypatch.setattr(XAxis, "_update_ticks", lambda self: drawn.extend(self.get_majorticklocs()) or update(self))
    points = [(step, 1.0) for step in sorted(set(steps))]
    draw_png([TrackedRun("1", "x", "", None, None, "", "", {}, {"loss": points})], str(tmp_path / "x.png"))
    assert drawn and all(tick == int(tick) for tick in drawn)


def test_a_page_of_runs_without_metrics():
    assert "0 runs" in page_of([], [], ["run"])


@pytest.mark.parametrize(
    "name, text",
    [
        ("run.json", '{"experiment": {"na'),
        ("run.json", "{}"),
        ("run.json", '{"experiment": 5, "status": 1, "host": []}'),
        ("metrics.json", '{"loss": 3}'),
        ("info.json", "[" * 100_000),
        ("config.json", '{"lr": ' + "9" * 5000 + "}"),
    ],
)
def test_a_damaged_record_hides_no_other(runs, capsys, name, text):
    place = runs / "experiments" / "1"
    (place / name).write_text(text)
    (runs / "experiments" / "²").mkdir()
    assert gpt_neo(["runs", str(runs / "experiments")]) == 0
    note, _, line = capsys.readouterr().out.splitlines()
    assert note.startswith("note      run 1 is left out: ") and str(place) in note
    assert line.split()[:2] == ["<b>sweep</b>", "2"]
