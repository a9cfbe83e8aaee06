"""What is printed of others' texts."""

import subprocess
import sys
import tempfile

import numpy as np
import pytest

from gpt_neo.cli.common import run_command
from gpt_neo.cli.console import note
from gpt_neo.errors import LONGEST, DataError, InUseError, printable
from gpt_neo.mtf_compat import graph_reason, tf
from tests.conftest import ROOT

EVIL = "a\x1b]0;title\x07\x1b[2J\r\x9b31mb\ud800\u202ec é"


def fail(error):
    raise error


def test_nothing_in_it_is_a_command_to_a_terminal(capsys):
    assert printable(EVIL) == "a\\x1b]0;title\\x07\\x1b[2J\\r\\x9b31mb\\ud800\\u202ec é"
    assert printable("two\n\tlines") == "two\n\tlines" and len(printable("x" * 10**6)) == LONGEST + 3
    note(EVIL)
    assert run_command(fail, DataError(EVIL)) == 2
    assert run_command(fail, InUseError("in use")) == 73
    assert run_command(fail, OSError(28, "No space left on device", EVIL)) == 2
    out, err = capsys.readouterr()
    assert not set("\x1b\x07\r\x9b") & set(out + err) and "No space left on device" in err


THREAD = """
import resource, threading
from gpt_neo.cli.common import run_command
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
threading.stack_size(1 << 30)
raise SystemExit(run_command(threading.Thread(target=print).start))
"""


def test_a_limit_of_the_machine_is_a_line(capsys):
    """Status 1: it may be tried again, as after a process that the system ended for its memory."""

    def too_much():
        np.ones(1 << 45)

    assert run_command(too_much) == 1 and run_command(fail, MemoryError()) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: no more memory") and "Unable to allocate" in first
    assert second.endswith("(ulimit -v)")
    done = subprocess.run([sys.executable, "-c", THREAD], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("error: no more threads: "), done.stderr


def test_no_place_for_temporary_files_names_the_variable(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert run_command(tempfile.mkdtemp) == 2
    assert capsys.readouterr().err.endswith(f"['{tmp_path}/none']; TMPDIR names another\n")


HTTP = "Error executing an HTTP request: HTTP response code 403 with body '{"
WHERE = "when uploading gs://b/run/model.ckpt-3.index"
STACK = (
    "Graph execution error:\n\nDetected at node 'save/SaveV2' defined at (most recent call last):\n    File \"a.py\"\n"
)


@pytest.mark.parametrize(
    "text, reason",
    [
        (f'{HTTP}\n  "error": "no access"\n}}\'\n\t {WHERE}', f'{HTTP} "error": "no access" }}\''),
        (f"{HTTP}}}'\n\t {WHERE}", f"{HTTP}}}'"),
        (
            f'{STACK}Node: \'save/SaveV2\'\n{HTTP}\n  "error": "no access"\n}}\'\n\t {WHERE}\n\t '
            "[[{{node save/SaveV2}}]]\n\nOriginal stack trace for 'save/SaveV2':\n  File 'b.py'",
            f'{HTTP} "error": "no access" }}\' {WHERE}',
        ),
        (f"{STACK}Node: 'x'\n2 root error(s) found.\n  (0) bad.\n\t [[{{{{node x}}}}]]\n  (1) bad", "(0) bad"),
        (f"{STACK}Node: 'x'\nno route", "no route"),
        ("Restoring failed.\n\nOriginal error: 'x'", "Restoring failed"),
        ("", "OpError"),
    ],
)
def test_what_a_server_answered_to_tensorflow_is_told(text, reason):
    assert graph_reason(tf.errors.OpError(None, None, text, 7)) == reason
    assert graph_reason(OSError(5, "gone", "gs://b/x")) == "gone"
