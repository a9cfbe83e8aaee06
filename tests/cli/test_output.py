"""Standard output that is full, closed or never read."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gpt_neo.cli import output
from gpt_neo.cli.output import Unhindered, tell_of_lost_output, unhindered
from tests.conftest import ROOT

FULL = "/dev/full"


def told_by(stream):
    told = []
    stream.telling(told.append)
    return told


def test_everything_arrives_in_order(tmp_path):
    with open(tmp_path / "out", "w", encoding="utf-8") as behind:
        stream = Unhindered(behind)
        for number in range(5000):
            print("line", number, "é", file=stream)
        stream.flush()
        assert stream.encoding == "utf-8" and not stream.isatty() and stream.fileno() == behind.fileno()
        lines = (tmp_path / "out").read_text(encoding="utf-8").splitlines()
        assert lines == [f"line {number} é" for number in range(5000)]


def test_a_stream_in_memory():
    behind = io.StringIO()
    stream = Unhindered(behind)
    print("text", file=stream, flush=True)
    assert behind.getvalue() == "text\n"


@pytest.mark.skipif(not os.path.exists(FULL), reason="no /dev/full")
def test_a_full_disk_is_said_once():
    with open(FULL, "w", encoding="utf-8") as behind:
        stream = Unhindered(behind)
        told = told_by(stream)
        for _ in range(3):
            print("text", file=stream, flush=True)
        with stream.changed:
            assert stream.changed.wait_for(lambda: not stream.size, 10)  # before the file behind is closed
    assert told == ["No space left on device"]


def test_a_reader_that_leaves():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as behind:
        stream = Unhindered(behind)
        print("text", file=stream, flush=True)
        assert told_by(stream) == ["Broken pipe"]


def test_a_reader_that_does_not_read_and_then_does(monkeypatch):
    monkeypatch.setattr(output, "PATIENCE", 0.1)
    read, write = os.pipe()
    with open(write, "w", encoding="utf-8") as behind:
        stream = Unhindered(behind)
        told = told_by(stream)
        began = time.monotonic()  # with a wait for each print it would be 300 s
        for _ in range(3000):
            print("x" * 999, file=stream, flush=True)
        assert time.monotonic() - began < 60 and told == ["nobody reads it"]
        found = []
        thread = threading.Thread(target=lambda: found.extend(iter(lambda: os.read(read, 1 << 16), b"")))
        thread.start()
        assert stream.changed.wait_for(lambda: not stream.size, 10) if stream.changed.acquire() else None
        stream.changed.release()
        print("the end", file=stream, flush=True)
        assert not stream.reason
    thread.join()
    text = b"".join(found)
    assert text.endswith(b"the end\n") and output.ROOM - 1000 <= len(text) < output.ROOM + 100_000
    os.close(read)


def test_standard_streams_for_as_long_as_it_lasts(capfd):
    before = sys.stdout, sys.stderr
    with unhindered(), unhindered():
        tell_of_lost_output(print)
        print("out")
        print("err", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before and capfd.readouterr() == ("out\n", "err\n")


def run(command, **streams):
    return subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m gpt_neo {command}"], stderr=subprocess.PIPE, **streams
    )


def test_what_the_encoding_of_a_terminal_lacks_is_an_escape():
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = run("plan gpt2_124M --set model_path=/tmp/ü日本", env=latin, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith("folder    /tmp/ü\\u65e5\\u672c\n".encode("latin-1"))


def test_commands_whose_output_is_refused_end_in_one_line():
    assert run("--version | true").returncode == 0
    full = run("plan gpt2_124M > /dev/full")
    assert full.returncode == 2 and full.stderr == b"error: No space left on device\n"
    for words in ("--help", "--version"):
        full = run(f"{words} > /dev/full")
        assert full.returncode == 2 and full.stderr == b"error: No space left on device\n", words
    closed = run("plan gpt2_124M >&-")
    assert closed.returncode == 0 and closed.stderr == b""


@pytest.mark.skipif(not os.path.exists(FULL), reason="no /dev/full")
@pytest.mark.parametrize("words", ["plan no_such_model", "no_such_command", "plan gpt2_124M --no_such_flag"])
def test_a_mistake_that_cannot_be_told_has_its_status(words):
    """Status 2 needs a person: whoever restarts runs by status would try any other again without end."""
    assert run(f"{words} 2> /dev/full").returncode == 2
    assert run(f"{words} 2> /dev/full > /dev/full").returncode == 2


def test_a_working_directory_that_is_gone_is_told(tmp_path):
    """The system says `No such file or directory` of a path that is there."""
    command = f"cd {tmp_path} && rmdir {tmp_path} && {sys.executable} -m gpt_neo plan gpt2_124M"
    done = subprocess.run(
        ["/bin/sh", "-c", command], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert done.stderr.endswith("\nthe working directory is gone: change to a folder that is there\n")


@pytest.mark.skipif(not os.path.exists(FULL), reason="no /dev/full")
def test_a_training_begins_although_its_notes_cannot_be_told(tmp_path):
    """They come before the run's folder is known, which later holds what was lost."""
    config = {"n_head": 2, "n_embd": 8, "n_layer": 1, "n_vocab": 64, "n_ctx": 8, "lr": 0.1, "attention_types": "global"}
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({**config, "train_batch_size": 1, "train_steps": 1}))
    told = run(f"train {path}", stdout=subprocess.PIPE)
    full = run(f"train {path} > /dev/full")
    assert told.stdout.startswith(b"note ") and told.returncode == 2 and b"datasets" in told.stderr
    assert (full.returncode, full.stderr) == (told.returncode, told.stderr)


def test_the_last_words_of_a_command_that_calls_another_arrive():
    """Errors go to the terminal itself, not through what filters the words of native code."""
    script = (
        "import os, sys\nfrom gpt_neo.cli.quiet import silence\nterminal = os.fstat(2)\n"
        "silence(False)\nsilence(False)\nassert os.path.samestat(os.fstat(sys.stderr.fileno()), terminal)\n"
        "print('error: caf\\u00e9', file=sys.stderr)\nos._exit(2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert (done.stderr, done.returncode) == (b"error: caf\\xe9\n", 2)


def test_what_native_code_says_as_it_ends_the_process_arrives():
    script = (
        "import os\nfrom gpt_neo.cli.quiet import silence\nsilence(False)\n"
        "os.write(2, b'gpu_timer: noise\\nCheck failed: \\xff\\n')\nos.abort()\n"
    )
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert (done.stderr, done.returncode) == (b"Check failed: \xff\n", -signal.SIGABRT)


def test_without_grep_the_noise_is_heard():
    script = "import os\nfrom gpt_neo.cli.quiet import silence\nsilence(False)\nos.write(2, b'gpu_timer: noise\\n')\n"
    environment = {**os.environ, "PYTHONPATH": ROOT, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert (done.stderr, done.returncode) == (b"gpu_timer: noise\n", 0)
