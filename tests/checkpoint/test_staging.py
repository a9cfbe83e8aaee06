"""What killed runs leave beside the place of a folder: of this machine, and of others."""

import os

from gpt_neo.checkpoint.staging import machine, staged_folder


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
