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
    ".best.json.24284-6be27687.writing",
    "model.ckpt-6.index.tmp",
    "model.ckpt-6.data-00000-of-00001.tmp",
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
    for place in (tmp_path, tmp_path / "best", tmp_path / "eval"):
        place.mkdir(exist_ok=True)
        for name in GONE + KEPT:
            (place / name).write_text("")
    (tmp_path / "model.ckpt-7_temp").mkdir()
    (tmp_path / "model.ckpt-7_temp" / "part").write_text("")
    removed = [*GONE, "model.ckpt-7_temp", *(f"best/{name}" for name in GONE)]
    assert sorted(remove_leftovers(str(tmp_path))) == sorted(removed)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*KEPT, "best", "eval"])
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == sorted(KEPT)
    assert len(list((tmp_path / "eval").iterdir())) == len(GONE + KEPT)
