"""Programs that were compiled are there the next time."""

import os

import numpy as np
import pytest

from gpt_neo.spmd import kept_programs
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.kept_programs import VARIABLE, KeptPrograms
from gpt_neo.spmd.program import export_train_step, initial_values
from tests.spmd.tools import make_batches, make_run


def test_a_file_is_loaded_if_it_is_what_was_written(tmp_path):
    kept = KeptPrograms(str(tmp_path / "programs"))
    path = kept.path("text", "1.0")
    assert kept.load(path, bytes) is None
    kept.keep(path, lambda: b"compiled")
    assert kept.load(path, bytes) == b"compiled" and os.stat(path).st_mode & 0o077 == 0
    assert os.listdir(tmp_path / "programs") == [os.path.basename(path)]
    with open(path, "r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"D")
    assert kept.load(path, bytes) is None


def test_everything_that_decides_makes_another_file(tmp_path, monkeypatch):
    kept = KeptPrograms(str(tmp_path))
    paths = {kept.path("text", "1.0"), kept.path("text", "1.1"), kept.path("text1", ".0")}
    monkeypatch.setenv("XLA_FLAGS", "--some_flag")
    paths.add(kept.path("text", "1.0"))
    assert len(paths) == 4


def test_what_cannot_be_loaded_or_written_is_no_failure(tmp_path, monkeypatch):
    kept = KeptPrograms(str(tmp_path))
    path = kept.path("text")
    kept.keep(path, lambda: 1 / 0)
    assert os.listdir(tmp_path) == []
    kept.keep(path, lambda: b"x")
    assert kept.load(path, lambda data: 1 / 0) is None
    KeptPrograms("/proc/nowhere").keep("/proc/nowhere/x", lambda: b"x")
    monkeypatch.setenv(VARIABLE, "")
    none = KeptPrograms()
    none.keep(none.path("text"), lambda: pytest.fail("nothing is to be kept"))


def test_the_ones_used_longest_ago_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_programs, "ROOM", 3 * (32 + 100))
    kept = KeptPrograms(str(tmp_path))
    paths = [kept.path(str(i)) for i in range(4)]
    for age, path in enumerate(paths):
        kept.keep(path, lambda: b"x" * 100)
        if os.path.exists(path):
            os.utime(path, (age, age))
    kept.load(paths[0], bytes)  # used now
    kept.keep(kept.path("new"), lambda: b"x" * 100)
    assert os.path.exists(kept.path("new")) and len(os.listdir(tmp_path)) == 3


@pytest.mark.slow
def test_a_kept_program_gives_the_same_bits(tmp_path, jax_python, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "programs"))
    run = make_run(tmp_path)
    program, batches = export_train_step(run), make_batches(run, 2)
    values, results = dict(initial_values(program)), []
    for damaged in (False, False, True):
        if damaged:
            (name,) = os.listdir(tmp_path / "programs")
            os.truncate(tmp_path / "programs" / name, 1000)
        with Devices(program, jax_python) as devices:
            for name, value in values.items():
                devices.put(name, value)
            losses = [devices.step({"step": np.int32(i), **batch})["loss"] for i, batch in enumerate(batches)]
            results.append((devices.cached, np.array(losses).tobytes(), devices.get("gpt2/wte").tobytes()))
    assert [cached for cached, *_ in results] == [False, True, False]
    assert len({result[1:] for result in results}) == 1
