"""What killed runs leave beside the place of a folder: of this machine, and of others."""

import os

import pytest

from gpt_neo.checkpoint.staging import machine, staged_folder
from gpt_neo.errors import InUseError


def test_only_what_a_dead_run_of_this_machine_has_left_is_removed(tmp_path):
    dead, alive = 4_000_000, os.getpid()
    mine, others = (
        f".run.{machine()}.{dead}.partial",
        [
            f".run.{machine()}.{alive}1.partial.txt",
            f".run.elsewhere.{dead}.partial",
            f".other.{machine()}.{dead}.partial",
        ],
    )
    for name in (mine, *others):
        (tmp_path / name).mkdir()
    with staged_folder(str(tmp_path / "run")) as staging:
        assert os.path.basename(staging) == f".run.{machine()}.{alive}.partial"
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "run"])


@pytest.mark.parametrize("empty_before", [False, True])
def test_another_command_writes_the_same_folder_meanwhile(tmp_path, empty_before):
    out = tmp_path / "out"
    if empty_before:
        out.mkdir()
    with pytest.raises(InUseError, match="out: another command has written it meanwhile"):
        with staged_folder(str(out)):
            out.mkdir(exist_ok=True)
            (out / "theirs").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]
