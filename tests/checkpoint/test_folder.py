"""Which checkpoint of a folder is taken, after crashes, edits and evaluations."""

import glob
import os
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo.checkpoint.average import average_checkpoints
from gpt_neo.checkpoint.bundle import Bundle, BundleWriter
from gpt_neo.checkpoint.fit import merged_weight
from gpt_neo.checkpoint.folder import (
    find_checkpoint,
    find_latest,
    latest_checkpoint,
    no_checkpoint,
    prefix_of,
    read_checkpoint,
    read_state,
    settle_state,
    strangers,
    write_state,
)
from gpt_neo.checkpoint.tensors import BFLOAT16
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf
from gpt_neo.storage import tensorflow as files
from gpt_neo.storage import write_json
from tests.conftest import ROOT

F32 = np.dtype(np.float32)


def save(folder, step, value=1.0, shape=(4, 4)):
    """A checkpoint of one weight, one slot, one step."""
    path = os.path.join(str(folder), f"model.ckpt-{step}")
    writer = BundleWriter(path)
    writer.add("gpt2/wte", shape, F32, [np.full(shape, value, np.float32)])
    writer.add("gpt2/wte/adam_m", shape, F32, [np.zeros(shape, np.float32)])
    writer.add("global_step", (), np.dtype(np.int64), [np.array(step, np.int64)])
    writer.finish()
    return path


def names(found):
    return os.path.basename(found.path), len(found.notes)


def test_the_state_file_decides_whatever_machine_wrote_it(tmp_path):
    for step in (5, 10, 20):
        save(tmp_path, step)
    assert names(find_latest(str(tmp_path))) == ("model.ckpt-20", 0)
    state = tmp_path / "checkpoint"
    listed = "".join(f'all_model_checkpoint_paths: "gs://away/run/model.ckpt-{s}"\n' for s in (5, 10, 20))
    state.write_text('model_checkpoint_path: "gs://away/run/model.ckpt-10"\n' + listed)
    found = find_latest(str(tmp_path))
    assert names(found) == ("model.ckpt-10", 1)
    assert found.notes == ("passed over model.ckpt-20: the state file names model.ckpt-10",)
    settle_state(str(tmp_path))
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    state.write_text('model_checkpoint_path: "/home/other/model.ckpt-999"\n')
    found = find_latest(str(tmp_path))
    assert names(found) == ("model.ckpt-20", 1)
    assert found.notes == ("the state file names model.ckpt-999, which is not here",)


def state_forms():
    """The state file of one checkpoint, as TensorFlow, its text protos and people's tools write it."""
    from google.protobuf import text_format

    made = tf.train.generate_checkpoint_state_proto(
        "/old", '/old/Läufe "a"/model.ckpt-10', ["/old/model.ckpt-5", '/old/Läufe "a"/model.ckpt-10'], [1.5, 2.5], 1.0
    )
    yield text_format.MessageToString(made)
    yield text_format.MessageToString(made, as_one_line=True)
    yield text_format.MessageToString(made, as_utf8=True).replace("\n", "\r\n")
    for text in (
        "# edited by hand\n  model_checkpoint_path:'model.ckpt-10'\n",
        'all_model_checkpoint_paths: "model.ckpt-20"\nmodel_checkpoint_path : "C:\\\\runs\\\\model.ckpt-10"',
    ):
        assert text_format.Parse(text, type(made)()).model_checkpoint_path.endswith("model.ckpt-10")
        yield text
    yield '\ufeffmodel_checkpoint_path: "model.ckpt-10"'  # with a byte-order mark, as some editors save it
    yield '{"model_checkpoint_path": "/old/model.ckpt-10", "all_model_checkpoint_paths": ["/old/model.ckpt-10"]}'
    yield "model_checkpoint_path: /old/model.ckpt-10\n"
    yield 'model_checkpoint_path: "/old/model.ckpt-10/"'
    yield 'model_checkpoint_path: "gs://b/model.ckpt-10.index"'
    yield "model_checkpoint_path: 'model.ckpt-10.data-00000-of-00001'"


@pytest.mark.parametrize("text", list(state_forms()))
def test_the_state_file_in_every_form(tmp_path, text):
    for step in (5, 10, 20):
        save(tmp_path, step)
    (tmp_path / "checkpoint").write_bytes(text.encode())
    os.utime(tmp_path / "checkpoint", (2**31, 2**31))
    stated, listed = read_state(str(tmp_path))
    assert stated == str(tmp_path / "model.ckpt-10") and stated in listed
    assert names(find_latest(str(tmp_path)))[0] == "model.ckpt-10"
    settle_state(str(tmp_path))
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")


def test_what_only_looks_like_a_checkpoint_is_said(tmp_path):
    folder = str(tmp_path)
    for name in ("ckpt-7.index", "ckpt-7.data-00000-of-00001", "model.ckpt-30.data-00000-of-00002", "model.ckpt-3"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "checkpoint").mkdir()  # as other tools call a folder of theirs
    said = (
        "passed over ckpt-7: a checkpoint is called model.ckpt-<step> here; rename its files",
        "passed over model.ckpt-30: its file model.ckpt-30.index is missing",
        "passed over model.ckpt-3: TensorFlow wrote such a checkpoint before version 0.12",
    )
    assert find_latest(folder) is None and all(line in str(no_checkpoint(folder)) for line in said)
    save(tmp_path, 5)
    assert find_latest(folder).notes == said
    assert strangers(str(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("data", [b"model.ckpt-5\n", b"\0\xff", b"model_checkpoint_path:\n", b"{}"])
def test_a_state_file_that_names_nothing_is_said(tmp_path, data):
    save(tmp_path, 5)
    save(tmp_path, 10)
    (tmp_path / "checkpoint").write_bytes(data)
    found = find_latest(str(tmp_path))
    assert names(found) == ("model.ckpt-10", 1) and found.notes == ("the state file names no checkpoint",)


def test_a_state_file_of_another_encoding(tmp_path):
    """As a redirection of Windows' shell writes it."""
    save(tmp_path, 5)
    save(tmp_path, 10)
    (tmp_path / "checkpoint").write_bytes('model_checkpoint_path: "model.ckpt-5"\r\n'.encode("utf-16"))
    assert names(find_latest(str(tmp_path)))[0] == "model.ckpt-5"


@pytest.mark.parametrize(
    "name, said",
    [
        ("model.ckpt-7 (1).index", "passed over model.ckpt-7 (1): a checkpoint is called model.ckpt-<step> here"),
        ("Model.ckpt-7.index", "passed over Model.ckpt-7: a checkpoint is called model.ckpt-<step> here"),
        ("model.ckpt-7.meta", "passed over model.ckpt-7: its file model.ckpt-7.index is missing"),
        ("GPT3_XL/model.ckpt-7.index", "there is one in its folder GPT3_XL"),
    ],
)
def test_a_folder_without_a_checkpoint_says_what_is_in_it(tmp_path, name, said):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert find_latest(str(tmp_path)) is None and said in str(no_checkpoint(str(tmp_path)))


def test_a_hugging_face_folder_is_called_one(tmp_path):
    for text, said in (('{"model_type": "gpt2"}', True), ('{"n_embd": 8}', False), ("{", False)):
        (tmp_path / "config.json").write_text(text)
        assert ("gpt-neo import-hf makes a run of it" in str(no_checkpoint(str(tmp_path)))) == said


@pytest.mark.parametrize("suffix", ["", ".index", ".meta", ".data-00000-of-00001"])
def test_a_checkpoint_by_one_of_its_files(suffix):
    assert prefix_of(f"a.index/model.ckpt-5{suffix}") == "a.index/model.ckpt-5"


def test_a_kill_between_checkpoint_and_state_file_loses_nothing(tmp_path):
    write_state(str(tmp_path), save(tmp_path, 10))
    os.utime(tmp_path / "checkpoint", (1, 1))
    save(tmp_path, 20)
    assert names(find_latest(str(tmp_path))) == ("model.ckpt-20", 0)


def test_wrong_bytes_of_the_right_length_are_passed_over(tmp_path):
    for step in (5, 10, 20):
        last = save(tmp_path, step)
    write_state(str(tmp_path), last)
    data = tmp_path / "model.ckpt-20.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:70] + b"\x55" + data.read_bytes()[71:])
    assert names(find_latest(str(tmp_path))) == ("model.ckpt-20", 0)  # whoever only reads does not wait for the disk
    found = settle_state(str(tmp_path), verify=True)
    assert names(found) == ("model.ckpt-10", 1)
    assert found.notes[0].startswith("passed over model.ckpt-20") and "its checksum is wrong" in found.notes[0]
    # and every later reader, TensorFlow's own too, takes the same one
    assert names(find_latest(str(tmp_path)))[0] == "model.ckpt-10"
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    for step in (5, 10):
        (tmp_path / f"model.ckpt-{step}.data-00000-of-00001").write_bytes(b"\x00" * data.stat().st_size)
    with pytest.raises(CheckpointError, match="model.ckpt-10.*checksum is wrong"):
        settle_state(str(tmp_path), verify=True)


@pytest.mark.parametrize("named", [10, 20])
def test_one_that_was_passed_over_stays_so_where_a_clock_was_set_back(tmp_path, named):
    """Its index is younger than the state file that is written now, as if a kill had come between the two."""
    for step in (10, 20):
        save(tmp_path, step)
    write_state(str(tmp_path), str(tmp_path / f"model.ckpt-{named}"))
    data = tmp_path / "model.ckpt-20.data-00000-of-00001"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    os.utime(tmp_path / "model.ckpt-20.index", (2**31, 2**31))
    assert settle_state(str(tmp_path), verify=True).path.endswith("model.ckpt-10")
    assert latest_checkpoint(str(tmp_path)).endswith("model.ckpt-10"), "whoever does not look at its bytes"
    write_state(str(tmp_path), str(tmp_path / "model.ckpt-10"))
    assert latest_checkpoint(str(tmp_path)).endswith("model.ckpt-10")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "refused"), OSError(5, "no answer"), FileNotFoundError(2, "gone")]
)
def test_what_a_bucket_does_not_give_is_not_passed_over(tmp_path, monkeypatch, error):
    """An older checkpoint in its place would cost the steps between."""
    folder = f"ram://{tmp_path}"
    for step in (1, 2):
        save(tmp_path, step)
    files.make_folder(folder)
    for path in tmp_path.iterdir():
        tf.io.gfile.copy(str(path), f"{folder}/{path.name}")
    assert find_latest(folder).path == f"{folder}/model.ckpt-2"
    read = files.read_bytes

    def refused(path, *place):
        if path.endswith("model.ckpt-2.index"):
            raise error
        return read(path, *place)

    monkeypatch.setattr(files, "read_bytes", refused)
    if isinstance(error, FileNotFoundError):
        assert find_latest(folder).path == f"{folder}/model.ckpt-1"
    else:
        with pytest.raises(CheckpointError, match=f"-2.index: cannot be read as a checkpoint: {error.strerror}"):
            find_latest(folder)


UNREADABLE = """
import os, sys
from gpt_neo.checkpoint.folder import find_latest
from gpt_neo.errors import CheckpointError
from tests.namespaces import drop_capabilities
drop_capabilities()
for suffix in (".index", ".data-00000-of-00001"):
    os.chmod(sys.argv[1] + suffix, 0)
    try:
        print(find_latest(os.path.dirname(sys.argv[1]), verify=True))
    except CheckpointError as error:
        print(error)
    os.chmod(sys.argv[1] + suffix, 0o600)
"""


def test_what_may_not_be_read_is_not_passed_over(tmp_path):
    """Another user's: a training would go on from an older one, and lose the steps since."""
    save(tmp_path, 5)
    save(tmp_path, 9)
    words = [sys.executable, "-c", UNREADABLE, str(tmp_path / "model.ckpt-9")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    index, data = done.stdout.splitlines()
    assert index.endswith("model.ckpt-9.index: cannot be read as a checkpoint: Permission denied"), done.stderr
    assert data.endswith("model.ckpt-9.data-00000-of-00001: cannot be read: Permission denied")


def test_incomplete_checkpoints_are_passed_over(tmp_path):
    for step in (5, 10, 20):
        last = save(tmp_path, step)
    write_state(str(tmp_path), last)
    os.truncate(last + ".data-00000-of-00001", 10)
    found = find_latest(str(tmp_path))
    assert names(found) == ("model.ckpt-10", 1) and "passed over model.ckpt-20" in found.notes[0]
    os.truncate(tmp_path / "model.ckpt-10.index", 30)
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-5")
    os.remove(tmp_path / "model.ckpt-5.data-00000-of-00001")
    with pytest.raises(CheckpointError, match="model.ckpt-20"):
        find_latest(str(tmp_path))
    assert find_latest(str(tmp_path / "nowhere")) is None


def remove(prefix):
    for path in glob.glob(prefix + ".*"):
        os.remove(path)


def test_a_training_beside_deletes_what_was_chosen(tmp_path):
    lines, read = [], []

    def first_gone(path):
        read.append(os.path.basename(path))
        if len(read) == 1:  # keep_checkpoints=1
            save(tmp_path, 10)
            remove(path)
        return Bundle(path).read("global_step").item()

    save(tmp_path, 5)
    assert read_checkpoint(str(tmp_path), None, first_gone, lines.append) == 10
    assert read == ["model.ckpt-5", "model.ckpt-10"]
    assert lines == ["model.ckpt-5 was deleted before it was read (keep_checkpoints); looking again"]
    read.clear()
    with pytest.raises(CheckpointError, match="no checkpoint of step '10'"):
        read_checkpoint(str(tmp_path), "10", first_gone)
    save(tmp_path, 10)

    def damaged(path):
        raise CheckpointError(f"{path}: does not fit")

    with pytest.raises(CheckpointError, match="does not fit"):
        read_checkpoint(str(tmp_path), None, damaged)


def test_a_training_beside_deletes_while_it_is_chosen(tmp_path, monkeypatch):
    old = save(tmp_path, 5)

    def gone(prefix):
        if prefix == old:
            save(tmp_path, 10)
            remove(old)
        return Bundle(prefix)

    monkeypatch.setattr("gpt_neo.checkpoint.folder.Bundle", gone)
    assert names(find_latest(str(tmp_path))) == ("model.ckpt-10", 0)


def test_a_checkpoint_by_step(tmp_path):
    save(tmp_path, 5)
    assert find_checkpoint(str(tmp_path), "5").path.endswith("model.ckpt-5")
    with pytest.raises(CheckpointError, match="no checkpoint of step '6' in .*; there are: 5"):
        find_checkpoint(str(tmp_path), "6")
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        find_checkpoint(str(tmp_path), "best")


@pytest.mark.parametrize("shape", [(5_000,), (6, 3_000)], ids=str)
def test_averaging_types_that_are_cut_in_blocks_of_other_lengths(tmp_path, shape, monkeypatch):
    """A model imported in bfloat16, and what training in float32 made of it."""
    monkeypatch.setattr("gpt_neo.checkpoint.tensors.BLOCK", 1 << 14)
    paths, values = [], [np.random.RandomState(i).randint(-9, 9, shape).astype(np.float32) for i in range(2)]
    for step, (value, dtype) in enumerate(zip(values, (BFLOAT16, F32))):
        paths.append(os.path.join(str(tmp_path), f"model.ckpt-{step}"))
        writer = BundleWriter(paths[-1])
        writer.add("gpt2/wte", shape, dtype, [value.astype(dtype)])
        writer.add("global_step", (), np.dtype(np.int64), [np.array(step, np.int64)])
        writer.finish()
    made = Bundle(average_checkpoints(paths, str(tmp_path / "mean")))
    np.testing.assert_array_equal(made.read("gpt2/wte"), (values[0] + values[1]) / 2)


@pytest.mark.parametrize(
    "scale, seed, refusal",
    [(1.0, 7, None), (1.0, 8, r"different runs \(seed 7 and 8\)"), (4.0, 7, r"different runs \(lora_scale 1 and 4\)")],
)
def test_averaging_adapters(tmp_path, scale, seed, refusal):
    """Of one beginning: the mean of what they add is near. Of others it is far, and they are refused."""
    random, paths, merged = np.random.RandomState(0), [], []
    weight = "gpt2/h0/attn/q"
    first = random.randn(8, 2)
    for name, factor, number in (("a", 1.0, 7), ("b", scale, seed)):
        (tmp_path / name).mkdir()
        paths.append(str(tmp_path / name / "model.ckpt-5"))
        down = first if number == 7 else random.randn(8, 2)
        values = {"": np.eye(8), "/lora_a": down + random.randn(8, 2) / 100, "/lora_b": random.randn(2, 8)}
        writer = BundleWriter(paths[-1])
        for part, value in {**{weight + k: v for k, v in values.items()}, "gpt2/lora_scale": np.array(factor)}.items():
            writer.add(part, value.shape, F32, [value.astype(np.float32)])
        writer.finish()
        write_json(paths[-1] + ".json", {"format": 1, "random": {"seed": number}})
        merged.append(merged_weight(Bundle(paths[-1]), weight, np.eye(8, dtype=np.float32)))
    if refusal:
        with pytest.raises(CheckpointError, match=refusal):
            average_checkpoints(paths, str(tmp_path / "mean"))
        assert not (tmp_path / "mean").exists()
        return
    made = Bundle(average_checkpoints(paths, str(tmp_path / "mean")))
    np.testing.assert_allclose(merged_weight(made, weight, made.read(weight)), np.mean(merged, 0), atol=0.05)


def test_a_mean_is_taken_in_float64(tmp_path):
    """In float32 the 1 would be lost beside the others."""
    paths = [save(tmp_path, step, value) for step, value in ((1, 1e8), (2, 1.0), (3, -1e8))]
    made = Bundle(average_checkpoints(paths, str(tmp_path / "mean")))
    np.testing.assert_array_equal(made.read("gpt2/wte"), np.full((4, 4), 1 / 3, np.float32))


def test_averaging_models_that_compute_something_else(tmp_path):
    """Their shapes are the same."""
    paths = [save(tmp_path, step, float(step)) for step in (4, 6)]
    ours = {"n_head": 2, "n_embd": 4, "eos_id": 1, "res_dropout": 0.1, "lr": 0.1}
    for other, refused in (
        ({**ours, "eos_id": 2, "res_dropout": 0.0, "lr": 1.0}, False),
        ({**ours, "n_ctx": 8}, False),  # of rotary positions, say: no weight is of its size
        ({**ours, "n_head": 4}, True),
    ):
        for path, config in zip(paths, (ours, other)):
            write_json(path + ".json", {"format": 1, "config": config})
        if refused:
            with pytest.raises(CheckpointError, match="no model: n_head 2, and n_head 4"):
                average_checkpoints(paths, str(tmp_path / "x"))
        else:
            made = average_checkpoints(paths, str(tmp_path / f"mean {len(other)}"))
            assert Bundle(made).read("gpt2/wte")[0, 0] == 5.0
    assert not (tmp_path / "x").exists()


def test_averaging(tmp_path):
    paths = [save(tmp_path, step, value) for step, value in ((5, 1.0), (10, 2.0), (20, 6.0))]
    made = average_checkpoints(paths, str(tmp_path / "mean"))
    bundle = Bundle(made)
    assert bundle.names() == ["global_step", "gpt2/wte"] and made == latest_checkpoint(str(tmp_path / "mean"))
    assert bundle.read("gpt2/wte").tolist() == np.full((4, 4), 3.0).tolist() and bundle.read("global_step") == 20
    with pytest.raises(CheckpointError, match="at least two"):
        average_checkpoints(paths[:1], str(tmp_path / "x"))
    with pytest.raises(CheckpointError, match=r"gpt2/wte +\[4, 5\] +\[4, 4\]"):
        average_checkpoints([paths[0], save(tmp_path, 30, shape=(4, 5))], str(tmp_path / "x"))
    with pytest.raises(CheckpointError, match="holds NaN"):
        average_checkpoints([paths[0], save(tmp_path, 40, np.nan)], str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
