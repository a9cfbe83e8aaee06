"""What is printed of others' texts."""

from gpt_neo.cli.common import run_command
from gpt_neo.cli.console import note
from gpt_neo.errors import LONGEST, DataError, InUseError, printable

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
