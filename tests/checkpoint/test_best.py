"""The best checkpoint: which one it is, and that nothing else replaces it."""

import json
import os

import pytest

from gpt_neo.checkpoint.best import Best, forget_after, keep_best, read_best
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.folder import BEST, find_checkpoint
from gpt_neo.errors import CheckpointError
from tests.checkpoint.test_folder import save


def test_the_best_is_kept_when_the_folder_deletes_it(tmp_path):
    folder = str(tmp_path)
    first, second, third = (save(tmp_path, step, step) for step in (5, 10, 20))
    assert [keep_best(folder, path, loss, "d").step for path, loss in ((first, 2.0), (second, 1.5), (third, 1.7))] == [
        5,
        10,
        10,
    ]
    for name in os.listdir(folder):
        if name.startswith("model.ckpt-10."):
            os.remove(tmp_path / name)
    found = find_checkpoint(folder, "best")
    assert found.path == os.path.join(folder, BEST, "model.ckpt-10")
    assert Bundle(found.path).read("gpt2/wte")[0, 0] == 10
    best = Best("model.ckpt-10", 10, 1.5, "d", (20,))
    assert read_best(folder) == best and best.knows(20, "d") and not best.knows(20, "e") and not best.knows(5, "d")
    assert not [n for n in os.listdir(tmp_path / BEST) if n.startswith("model.ckpt-5.")]
    assert keep_best(folder, third, float("nan"), "d") == best and keep_best(folder, found.path, 0.1, "d") == best
    assert keep_best(folder, third, 1.7, "d") == best, "the same evaluation again counts once"
    assert keep_best(folder, save(tmp_path, 30), 1.5, "d") == Best("model.ckpt-10", 10, 1.5, "d", (20, 30)), "no better"


def test_a_loss_on_other_data_says_nothing_of_it(tmp_path):
    folder = str(tmp_path)
    hard, easy = save(tmp_path, 5, 5), save(tmp_path, 10, 10)
    keep_best(folder, hard, 3.0, "hard text")
    assert keep_best(folder, easy, 1.0, "easy text") == Best("model.ckpt-10", 10, 1.0, "easy text")
    assert Bundle(os.path.join(folder, "best-5", "model.ckpt-5")).read("gpt2/wte")[0, 0] == 5
    assert keep_best(folder, hard, 2.0, "hard text").step == 5  # and back
    assert sorted(n for n in os.listdir(folder) if n.startswith("best")) == ["best", "best-10", "best-5"]


def test_patience_counts_later_steps_alone(tmp_path):
    """A run whose newest checkpoints were lost evaluates the steps before its best one again."""
    for step, loss in ((20, 4.0), (40, 2.0), (20, 4.0), (30, 3.0), (40, 2.0), (50, 2.5)):
        best = keep_best(str(tmp_path), save(tmp_path, step), loss, "d")
    assert (best.step, best.waited) == (40, 1)
    assert all(best.knows(step, "d") for step in (20, 30, 40, 50))


def test_a_damaged_best_is_replaced_when_its_step_comes_again(tmp_path):
    """It is a link to the checkpoint of the folder, so wrong bytes on the disk are those of both."""
    folder = str(tmp_path)
    keep_best(folder, save(tmp_path, 10, 1), 2.0, "d")
    keep_best(folder, save(tmp_path, 20, 1), 3.0, "d")
    data = tmp_path / BEST / "model.ckpt-10.data-00000-of-00001"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(CheckpointError):
        Bundle(str(tmp_path / BEST / "model.ckpt-10")).verify()
    again = keep_best(folder, save(tmp_path, 10, 1), 2.0, "d")
    assert again == read_best(folder) == Best("model.ckpt-10", 10, 2.0, "d", (20,))
    Bundle(str(tmp_path / BEST / "model.ckpt-10")).verify()


def test_what_earlier_versions_wrote_is_read(tmp_path):
    keep_best(str(tmp_path), save(tmp_path, 5), 3.0)
    path = tmp_path / BEST / "best.json"
    path.write_text(json.dumps({"checkpoint": "model.ckpt-5", "step": 5, "loss": 3.0}))
    assert read_best(str(tmp_path)) == Best("model.ckpt-5", 5, 3.0)
    path.write_text(json.dumps({"checkpoint": "model.ckpt-5"}))
    with pytest.raises(CheckpointError, match=r"best\.json: damaged"):
        read_best(str(tmp_path))


def test_what_a_given_up_course_came_to_counts_no_more(tmp_path):
    for step, loss in ((10, 2.0), (20, 3.0), (30, 4.0)):
        keep_best(str(tmp_path), save(tmp_path, step), loss, "d")
    forget_after(str(tmp_path), 30)
    assert read_best(str(tmp_path)).worse == (20, 30)
    forget_after(str(tmp_path), 20)
    assert read_best(str(tmp_path)).worse == (20,)
    forget_after(str(tmp_path), 5)
    assert read_best(str(tmp_path)) == Best("model.ckpt-10", 10, 2.0, "d", ())
