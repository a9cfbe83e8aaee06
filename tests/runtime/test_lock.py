"""The lock of a run's folder: who is let in, what is said, and what an owner does who has lost it."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest

from gpt_neo.errors import CheckpointError, InUseError
from gpt_neo.runtime import lock
from gpt_neo.runtime.lock import BEAT, LOCK_FILE, STALE, FolderLock, start_of, this_machine

NOW = 1_700_000_000.0


def written(folder, **changes):
    """A lock file of another owner."""
    record = {
        **this_machine(),
        "pid": 4_000_000,
        "started": "1",
        "token": "x",
        "since": NOW - 7200,
        "alive": NOW - 30,
        **changes,
    }
    (folder / LOCK_FILE).write_text(json.dumps(record))


def take(folder, now=NOW):
    lines = []
    with FolderLock(str(folder), tell=lines.append, clock=lambda: now, sleep=lambda seconds: None) as held:
        assert held.read()["pid"] == os.getpid()
    assert not os.path.exists(folder / LOCK_FILE)
    return lines


def test_a_free_folder(tmp_path):
    assert take(tmp_path) == [] == take(tmp_path)


def test_two_in_one_folder(tmp_path):
    with FolderLock(str(tmp_path)):
        with pytest.raises(CheckpointError, match=rf"is in use: process {os.getpid()} on \S+ has held it for \d+ sec"):
            FolderLock(str(tmp_path)).__enter__()
    take(tmp_path)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, "that process is gone"),
        ({"pid": os.getpid()}, "that process is gone"),
        ({"pid": os.getppid(), "started": start_of(os.getppid())}, "it has left the folder"),
        ({"boot": "another"}, "it gave no sign of life for 2 minutes"),
        ({"host": "elsewhere", "alive": NOW - STALE - 1}, "it gave no sign of life for 2 minutes"),
    ],
)
def test_stale_locks_are_explained(tmp_path, changes, reason):
    written(tmp_path, **changes)
    *_, line = take(tmp_path)
    assert re.search(r"the lock of process \d+ on \S+, held for \d+ minutes, is taken over: ", line)
    assert reason in line


@pytest.mark.parametrize("hours", [-5, 5])
def test_an_owner_whose_clock_is_hours_off_is_not_taken_for_dead(tmp_path, hours):
    """It renews its lock, by its own clock; one that does not for two beats is gone."""
    written(tmp_path, host="elsewhere", alive=NOW + 3600 * hours)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 15:
            written(tmp_path, host="elsewhere", alive=NOW + 3600 * hours + 15)

    with pytest.raises(InUseError, match="is in use: process"):
        FolderLock(str(tmp_path), clock=lambda: NOW, sleep=sleep).__enter__()
    assert sum(slept) == 15
    slept.clear()
    with FolderLock(str(tmp_path), clock=lambda: NOW, sleep=slept.append):
        assert sum(slept) == (45 if hours < 0 else 120)


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"processes": "pid:[1]"}, {"boot": "of a namesake"}])
def test_an_owner_that_cannot_be_asked_is_given_time(tmp_path, changes):
    written(tmp_path, **changes)
    slept, told = [], []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 20:
            written(tmp_path, **changes, alive=NOW - 10)

    with pytest.raises(InUseError, match=r"held it for 2 hours, last sign of life 10 sec") as error:
        FolderLock(str(tmp_path), told.append, clock=lambda: NOW, sleep=sleep).__enter__()
    assert error.value.status == 73 and sum(slept) == 20 and "waiting up to 90 seconds" in told[0]
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == "x"


def test_a_pod_with_a_new_name_takes_its_own_lock(tmp_path):
    """It is not renewed: whoever wrote it is gone."""
    written(tmp_path, host="pod-1", processes="pid:[1]")
    slept, told = [], []
    with FolderLock(str(tmp_path), told.append, clock=lambda: NOW, sleep=slept.append):
        assert sum(slept) == 90 and told[1].endswith("is taken over: it gave no sign of life for 2 minutes")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("elsewhere", path)])
def test_a_lock_that_is_no_file(tmp_path, make):
    make(tmp_path / LOCK_FILE)
    with pytest.raises(CheckpointError, match="run.lock: a link, a pipe or a folder, not the lock of a run"):
        take(tmp_path)
    assert not os.path.exists(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "text",
    [
        *["", "{", "[]", "{}", '{"pid": 3}', "\x00" * 500, "[" * 90_000, '{"pid": ' + "9" * 5000 + "}"],
        '{"host": "h", "pid": 1, "since": "noon", "alive": 1}',
        '{"host": "h", "pid": 1, "since": NaN, "alive": 1e999}',
        '{"host": 1, "pid": -1, "since": 1, "alive": 1}',
    ],
)
def test_a_lock_that_says_nothing(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text)
    assert take(tmp_path) == []


def test_where_the_kernel_does_not_lock(tmp_path, monkeypatch):
    """As on a bucket: the file alone decides, and the owner of the same machine is looked up."""
    monkeypatch.setattr(FolderLock, "hold", lambda self: None)
    monkeypatch.setattr(FolderLock, "write", lambda self: lock.files.write_text(self.path, json.dumps(self.record)))
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def enter():
        held = FolderLock(str(tmp_path))
        held.remote = True
        return held.__enter__()

    try:
        written(tmp_path, pid=other.pid, started=start_of(other.pid))
        with pytest.raises(CheckpointError, match=f"is in use: process {other.pid}"):
            enter()
    finally:
        other.communicate(b"\n")
    held = enter()
    held.renew()
    held.check()
    written(tmp_path, host="elsewhere")
    held.renew()
    with pytest.raises(CheckpointError, match="no longer this run's: process 4000000 on elsewhere has taken it"):
        held.check()
    held.__exit__()
    assert (tmp_path / LOCK_FILE).exists()  # another's is not removed


def test_a_process_that_is_gone_where_the_system_says_little_of_it(tmp_path, monkeypatch):
    """macOS has no /proc: the number of the process is all there is."""
    monkeypatch.setattr(lock, "this_machine", lambda: {"host": "mac", "boot": "", "processes": ""})
    told = []
    written(tmp_path, host="mac", boot="", processes="", started="")
    with FolderLock(str(tmp_path), told.append, lambda: NOW):
        assert told == ["the lock of process 4000000 on mac, held for 120 minutes, is taken over: that process is gone"]


def test_renewing(tmp_path):
    now = [NOW]
    with FolderLock(str(tmp_path), clock=lambda: now[0]) as held:
        size = os.path.getsize(held.path)
        now[0] += BEAT
        held.renew()
        assert held.read()["alive"] == NOW + BEAT and os.path.getsize(held.path) == size
        os.remove(held.path)
        held.renew()
        with pytest.raises(CheckpointError, match="its lock was deleted"):
            held.check()


def test_the_lock_of_another_is_not_removed_at_the_end(tmp_path):
    """It came between two beats: nobody has noticed yet."""
    with FolderLock(str(tmp_path)) as held:
        written(tmp_path)
        assert not held.lost
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == "x"


def test_a_folder_that_takes_no_file():
    with pytest.raises(CheckpointError, match="/proc/nowhere/run.lock: the lock cannot be written"):
        take(__import__("pathlib").Path("/proc/nowhere"))


def test_a_lock_that_the_disk_does_not_take_is_named(tmp_path):
    """The file is let go of, and the next run has it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="run.lock: the lock cannot be written: File too large"):
            FolderLock(str(tmp_path)).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with FolderLock(str(tmp_path)):
        pass
