"""Unfinished files are removed; everything else stays."""

from gpt_neo.checkpoint.leftovers import remove_leftovers

GONE = [
    "model.ckpt-7.data-00000-of-00001.tempstate12345678901234567890",
    "model.ckpt-7.index.tempstate123",
    "model.ckpt-7.data-00000-of-00001",
    "model.ckpt-7.json",
    "model.ckpt-7.meta",
    "checkpoint.tmp0a1b",
    ".writable.0a1b2c3d",
    "checkpoint.4711.tmp",
    "model.ckpt-6.json.4711.tmp",
    "model.ckpt-6.meta.tmp0a1b",
    "graph.pbtxt.tmp0a1b",
]
KEPT = [
    "model.ckpt-6.data-00000-of-00001",
    "model.ckpt-6.index",
    "model.ckpt-6.json",
    "model.ckpt-6.meta",
    "checkpoint",
    "events.out.tfevents.1.host",
    "graph.pbtxt",
    "train_log.jsonl",
    "notes.tmp",
    "mine.tempstate",
    "run.lock",
    "model.ckpt-x.json",
    "my_model.ckpt-7.json",
]


def test_only_what_is_unfinished_is_removed(tmp_path):
    for name in GONE + KEPT:
        (tmp_path / name).write_text("")
    for folder in ("model.ckpt-7_temp", "best", "eval"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.ckpt-7.json").write_text("")
    assert sorted(remove_leftovers(str(tmp_path))) == sorted([*GONE, "model.ckpt-7_temp"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*KEPT, "best", "eval"])
    assert (tmp_path / "best" / "model.ckpt-7.json").exists()
