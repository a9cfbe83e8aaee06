"""What killed runs leave beside the place of a folder: of this machine, and of others."""

import os
import shutil
import time

import pytest

from gpt_neo.checkpoint.staging import machine, staged_folder
from gpt_neo.errors import InUseError


def test_only_what_a_dead_run_of_this_machine_has_left_is_removed(tmp_path):
    dead, alive = 4_000_000, os.getpid()
    mine, others = (
        f".run.{machine()}.{dead}-0123abcd.partial",
        [
            f".run.{machine()}.{alive}1-0123abcd.partial.txt",
            f".run.elsewhere.{dead}-0123abcd.partial",
            f".other.{machine()}.{dead}-0123abcd.partial",
        ],
    )
    for name in (mine, *others):
        (tmp_path / name).mkdir()
    with staged_folder(str(tmp_path / "run")) as staging:
        assert os.path.basename(staging).startswith(f".run.{machine()}.{alive}-")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "run"])


def test_what_another_machine_has_not_written_to_for_a_day_is_removed(tmp_path):
    """A container that is gone has a name of its own, so nobody else would ever remove what it has left."""
    gone, inside, fresh = (f".run.elsewhere.{pid}-0123abcd.partial" for pid in (4_000_000, 4_000_001, 4_000_002))
    for name in (gone, inside, fresh):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "weights").touch()
    days_ago = time.time() - 2 * 24 * 3600
    for name in (gone, inside):
        for entry in ("deep/weights", "deep", "."):
            os.utime(tmp_path / name / entry, (days_ago, days_ago))
    os.utime(tmp_path / inside / "deep" / "weights")
    with staged_folder(str(tmp_path / "run")):
        pass
    assert sorted(os.listdir(tmp_path)) == [inside, fresh, "run"]


def test_containers_of_one_name_have_processes_of_one_number(tmp_path, monkeypatch):
    """What the process 1 of a container that was killed has left is not in the way of the next one's, and what that of
    another one is at work on stays."""
    number = os.getpid()
    with staged_folder(str(tmp_path / "run")) as killed:
        shutil.copytree(killed, f"{killed}.kept")
    os.rename(f"{killed}.kept", killed)
    os.rmdir(tmp_path / "run")
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[4026530000]")
    monkeypatch.setattr("gpt_neo.checkpoint.staging.is_running", lambda pid: pid != number)
    with staged_folder(str(tmp_path / "run")) as staging:
        assert staging != killed and os.path.isdir(killed)
    assert sorted(os.listdir(tmp_path)) == [os.path.basename(killed), "run"]


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
