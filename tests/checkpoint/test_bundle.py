"""The V2 format, both ways, against TensorFlow's own reader and writer."""

import os

import numpy as np
import pytest

from gpt_neo.checkpoint import bundle as module
from gpt_neo.checkpoint import fit
from gpt_neo.checkpoint.bundle import ALIGNMENT, TYPES, Bundle, BundleWriter
from gpt_neo.checkpoint.tensors import BFLOAT16, BLOCK, blocks
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf

ORACLE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "oracle", "neo", "model.ckpt-20")
F32, I64 = np.dtype(np.float32), np.dtype(np.int64)


def test_reads_what_the_legacy_program_wrote():
    bundle, reader = Bundle(ORACLE), tf.train.load_checkpoint(ORACLE)
    shapes = {name: list(bundle.shape(name)) for name in bundle.names()}
    assert bundle.shards == 2 and shapes == reader.get_variable_to_shape_map()
    for name in bundle.names():
        np.testing.assert_array_equal(bundle.read(name), reader.get_tensor(name), err_msg=name)


def test_tensorflow_reads_what_is_written(tmp_path):
    path = str(tmp_path / "model.ckpt-7")
    rng = np.random.RandomState(0)
    tensors = {
        "b/wide": rng.normal(size=(3000, 1500)).astype(np.float32).T,
        "a": np.float32(3.5),
        "empty": np.zeros((0, 4), F32),
        "half": rng.normal(size=(5, 7)).astype(BFLOAT16),
        "global_step": np.array(7, np.int64),
    }
    writer = BundleWriter(path)
    for name, value in tensors.items():
        value = np.asarray(value)
        writer.add(name, value.shape, value.dtype, blocks(value))
    writer.add_zeros("zeros", (3000, 1000), F32)
    writer.finish()
    tensors["zeros"] = np.zeros((3000, 1000), F32)
    reader, bundle = tf.train.load_checkpoint(path), Bundle(path)
    assert set(reader.get_variable_to_shape_map()) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(reader.get_tensor(name), value)
        np.testing.assert_array_equal(bundle.read(name), value)
        assert bundle.entries[name].offset % ALIGNMENT == 0
        assert not (np.asarray(value).size and bundle.read(name).flags.writeable)
    data = path + ".data-00000-of-00001"
    assert os.stat(data).st_blocks * 512 < os.path.getsize(data) - 11_000_000  # zeros take no disk


def test_every_type_is_the_one_of_tensorflow(tmp_path):
    path, values = str(tmp_path / "model.ckpt-1"), {}
    writer = BundleWriter(path)
    for dtype in TYPES.values():
        values[str(dtype)] = np.array([[0, 1, 77], [1, 0, 100]]).astype(dtype)
        writer.add(str(dtype), (2, 3), dtype, [values[str(dtype)]])
    with pytest.raises(ValueError, match=r"tensor short: 12 bytes do not make \(2, 3\) of float32"):
        writer.add("short", (2, 3), F32, [np.ones(3, np.float32)])
    writer.finish()
    bundle, reader = Bundle(path), tf.train.load_checkpoint(path)
    assert len(values) == 13
    for name, value in values.items():
        for found in (bundle.read(name), reader.get_tensor(name)):
            assert found.dtype == value.dtype == bundle.dtype(name)
            np.testing.assert_array_equal(found, value)


def test_all_bytes_are_held_against_their_checksums(tmp_path, monkeypatch):
    """In blocks, in whatever data file they are, of zeros too; nothing is mapped for it."""
    monkeypatch.setattr(module, "BLOCK", 100)
    path = str(tmp_path / "model.ckpt-1")
    writer = BundleWriter(path)
    writer.add("b", (130,), F32, [np.arange(130, dtype=np.float32)])
    writer.add_zeros("a", (7, 9), F32)
    writer.finish()
    Bundle(path).verify()
    Bundle(ORACLE).verify()
    damaged = {}
    for source in (path, ORACLE):
        bundle = Bundle(source)
        for name in bundle.names():
            entry = bundle.entries[name]
            damaged.setdefault((source, entry.shard), (name, entry.offset + entry.size - 1))
    assert [shard for _, shard in damaged] == [0, 0, 1]
    for (source, shard), (name, at) in damaged.items():
        copy = str(tmp_path / f"copy{shard}")
        for end in [".index", *(f".data-{i:05d}-of-{Bundle(source).shards:05d}" for i in range(Bundle(source).shards))]:
            data = bytearray(open(source + end, "rb").read())
            if end.startswith(f".data-{shard:05d}"):
                data[at] ^= 1
            open(copy + end, "wb").write(data)
        with pytest.raises(CheckpointError, match=f"tensor {name} is damaged"):
            Bundle(copy).verify()


def test_the_data_is_on_the_disk_before_the_index_is_there(tmp_path, monkeypatch):
    path, synced = str(tmp_path / "model.ckpt-1"), []
    sync = module.storage.sync

    def noted(*paths):
        synced.extend((one, os.path.exists(path + ".index")) for one in paths)
        sync(*paths)

    monkeypatch.setattr(module.storage, "sync", noted)
    writer = BundleWriter(path)
    writer.add("v", (2,), F32, [np.ones(2, np.float32)])
    writer.finish()
    assert synced[0] == (path + ".data-00000-of-00001", False) and os.path.exists(path + ".index")


def test_a_saver_restores_it(tmp_path):
    path = str(tmp_path / "model.ckpt-3")
    writer = BundleWriter(path)
    writer.add("v", (2, 3), F32, [np.arange(6, dtype=np.float32)])
    writer.add("global_step", (), I64, [np.array(3, np.int64)])
    writer.finish()
    with tf.Graph().as_default(), tf.Session() as session:
        v, step = tf.get_variable("v", [2, 3]), tf.train.get_or_create_global_step()
        tf.train.Saver().restore(session, path)
        assert session.run(step) == 3 and session.run(v).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_blocks_of_views_are_bounded_and_in_order():
    array = np.arange(6_000_000, dtype=np.float32).reshape(2000, 3000)
    for view in (array, array.T, array[:, 5:2005], array.reshape(2, 1000, 3000).transpose(2, 0, 1)):
        parts = list(blocks(view, np.float64))
        assert max(part.nbytes for part in parts) <= BLOCK and len(parts) > 1
        np.testing.assert_array_equal(np.concatenate([part.ravel() for part in parts]), view.ravel())
    wide = np.arange(12_000_000, dtype=np.float32).reshape(2, -1)  # one row is more than a block
    np.testing.assert_array_equal(np.concatenate([p.ravel() for p in blocks(wide)]), wide.ravel())


def damage(path, how):
    """A copy's prefix with one thing wrong."""
    index, data = path + ".index", path + ".data-00000-of-00001"
    if how == "cut":
        os.truncate(data, os.path.getsize(data) - 4)
    elif how == "missing":
        os.remove(data)
    elif how == "bit":
        with open(data, "r+b") as handle:
            handle.seek(3)
            handle.write(b"\x55")
    elif how == "index cut":
        os.truncate(index, os.path.getsize(index) - 60)
    elif how == "index bit":
        with open(index, "r+b") as handle:
            handle.seek(20)
            handle.write(b"\x7f\x7f")


@pytest.mark.parametrize(
    "how, message",
    [
        ("cut", "it is cut off"),
        ("missing", "data-00000-of-00001 is missing"),
        ("bit", "tensor v is damaged"),
        ("index cut", "its end is missing"),
        ("index bit", "a checksum is wrong"),
    ],
)
def test_damage_is_found(tmp_path, how, message):
    path = str(tmp_path / "model.ckpt-1")
    writer = BundleWriter(path)
    writer.add("v", (8, 8), F32, [np.ones((8, 8), np.float32)])
    writer.finish()
    damage(path, how)
    with pytest.raises(CheckpointError, match=message):
        Bundle(path).read("v")


@pytest.mark.parametrize("constant, limit", [(True, 0), (True, 1 << 20), (False, 0)])
def test_weights_are_loaded_the_same_mapped_in_one_block_or_some_at_once(tmp_path, monkeypatch, constant, limit):
    monkeypatch.setattr(fit, "IN_MEMORY", limit)
    monkeypatch.setattr(fit, "AT_ONCE", 50)
    values = {f"v{n}": np.random.RandomState(n).standard_normal([n, 5]).astype(np.float32) for n in (1, 3, 700)}
    writer = BundleWriter(str(tmp_path / "model.ckpt-0"))
    for name, value in sorted(values.items()):
        writer.add(name, value.shape, value.dtype, blocks(value))
    writer.finish()
    with tf.Graph().as_default(), tf.Session() as session:
        variables = [tf.get_variable(name, value.shape, use_resource=True) for name, value in values.items()]
        variables += [tf.get_variable(f"{name}/adam_m", value.shape) for name, value in values.items()]
        fit.load_variables(session, str(tmp_path / "model.ckpt-0"), variables, constant)
        for variable, value in zip(variables, [*values.values(), *map(np.zeros_like, values.values())]):
            np.testing.assert_array_equal(session.run(variable), value)
