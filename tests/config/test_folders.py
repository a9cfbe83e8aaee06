"""Where the checkpoints of a run live: the home folder, and other schemes than ours."""

import pytest

from gpt_neo.config import load_config
from gpt_neo.config.folders import model_folder
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.errors import ConfigError
from gpt_neo.runtime.access import check_writable


def test_the_home_folder(world, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_folder(load_config(world.config("home", model_path="~/runs/a"))) == str(tmp_path / "runs" / "a")
    options = PrepareOptions("~/in", "~/out", work_dir="~/work")
    assert (options.output_dir, options.work_dir) == (str(tmp_path / "out"), str(tmp_path / "work"))


def test_a_scheme_that_nothing_serves_is_no_local_folder(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = model_folder(load_config(world.config("far", model_path="s3://bucket/a")))
    with pytest.raises(ConfigError, match="'s3://bucket/a': TensorFlow neither reads nor writes s3://"):
        check_writable(folder)
    assert not list(tmp_path.iterdir())
