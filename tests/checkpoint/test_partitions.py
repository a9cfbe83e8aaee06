"""Checkpoints whose tensors are held in slices, written by TensorFlow."""

import numpy as np
import pytest

from gpt_neo.checkpoint.bundle import Bundle, parse_entry, read_table, write_table
from gpt_neo.checkpoint.fit import fit_checkpoint
from gpt_neo.checkpoint.partitions import overlapping, signed_code, slice_key, spans_of_slice
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf


def write(path, tensors):
    """tensors: (name, slice, array)."""
    names, slices, arrays = zip(*tensors)
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.raw_ops.SaveV2(prefix=path, tensor_names=names, shape_and_slices=slices, tensors=arrays))


@pytest.fixture(scope="module")
def sliced(tmp_path_factory):
    """(prefix, whole arrays): one in a grid, one in rows far from the first, one whole."""
    path = str(tmp_path_factory.mktemp("sliced") / "model.ckpt-3")
    rng = np.random.default_rng(0)
    whole = {
        "gpt2/a": rng.standard_normal([4, 6]).astype(np.float32),
        "gpt2/long": rng.standard_normal([20000, 2]).astype(np.float32),
        "gpt2/b": rng.standard_normal([3]).astype(np.float32),
    }
    tensors = [("gpt2/b", "", whole["gpt2/b"])]
    for low, high in ((0, 2), (2, 4)):
        for first, end in ((0, 3), (3, 6)):
            spec = f"4 6 {low},{high - low}:{first},{end - first}"
            tensors.append(("gpt2/a", spec, whole["gpt2/a"][low:high, first:end]))
    edges = [0, 50, 100, 9000, 20000]
    for low, high in zip(edges, edges[1:]):
        tensors.append(("gpt2/long", f"20000 2 {low},{high - low}:-", whole["gpt2/long"][low:high]))
    write(path, tensors)
    return path, whole


def test_slices_are_put_together(sliced):
    path, whole = sliced
    bundle = Bundle(path)
    assert bundle.names() == sorted(whole) and not bundle.others
    bundle.verify()
    for name, value in whole.items():
        assert bundle.shape(name) == value.shape and bundle.dtype(name) == value.dtype
        np.testing.assert_array_equal(bundle.read(name), value)


@pytest.mark.parametrize("spans", [[(1, 3), (2, 5)], [(0, 2), (0, 3)], [(3, 4), (0, 6)], [(2, 2), (0, 6)]])
def test_a_part_of_a_tensor_in_slices_or_whole(sliced, tmp_path, spans):
    path, whole = sliced
    wanted = whole["gpt2/a"][tuple(slice(*span) for span in spans)]
    np.testing.assert_array_equal(Bundle(path).read_part("gpt2/a", spans), wanted)
    write(str(tmp_path / "plain"), [("gpt2/a", "", whole["gpt2/a"])])
    np.testing.assert_array_equal(Bundle(str(tmp_path / "plain")).read_part("gpt2/a", spans), wanted)


def test_only_the_slices_that_are_touched_are_read(sliced, monkeypatch):
    path, whole = sliced
    bundle, read = Bundle(path), []
    plain = Bundle.read_entry
    monkeypatch.setattr(
        Bundle, "read_entry", lambda self, name, entry: read.append(entry.shape) or plain(self, name, entry)
    )
    np.testing.assert_array_equal(bundle.read_part("gpt2/long", [(60, 90), (0, 2)]), whole["gpt2/long"][60:90])
    assert read == [(50, 2)]


def test_fit_gives_parts(sliced):
    path, whole = sliced
    fit = fit_checkpoint(
        path, {"gpt2/a": [4, 6], "gpt2/a/adam_m": [4, 6], "gpt2/long": [20000, 2], "gpt2/b": [3], "global_step": []}
    )
    spans = [(1, 3), (0, 6)]
    part = fit.part("gpt2/a", np.dtype(np.float16), spans)
    assert part.dtype == np.float16
    np.testing.assert_array_equal(part, whole["gpt2/a"][1:3].astype(np.float16))
    assert not fit.part("gpt2/a/adam_m", np.dtype(np.float32), spans).any()
    assert fit.part("global_step", np.dtype(np.int64), []) == 3


def test_a_part_of_what_is_made_on_the_way_is_that_of_the_whole(tmp_path):
    """A matrix with its adapter, a table without its padding."""
    path, random = str(tmp_path / "model.ckpt-3"), np.random.default_rng(0)
    matrix, down, up, table = (random.standard_normal(s, np.float32) for s in ([6, 4], [6, 2], [2, 4], [518, 4]))
    scale = np.array(1.5, np.float32)
    held = {"gpt2/h0/attn/q": matrix, "gpt2/h0/attn/q/lora_a": down, "gpt2/h0/attn/q/lora_b": up}
    write(path, [(n, "", v) for n, v in {**held, "gpt2/lora_scale": scale, "gpt2/wte": table}.items()])
    fit = fit_checkpoint(path, {"gpt2/h0/attn/q": [6, 4], "gpt2/wte": [7, 4]})
    types = {name: np.dtype(np.float32) for name in fit.shapes}
    assert not fit.as_stored(types)
    spans = [(2, 5), (1, 4)]
    for name, whole in (("gpt2/h0/attn/q", matrix + 1.5 * (down @ up)), ("gpt2/wte", table[:7])):
        np.testing.assert_allclose(fit.value(name, types[name]), whole, rtol=1e-6)
        np.testing.assert_array_equal(fit.part(name, types[name], spans), fit.value(name, types[name])[2:5, 1:4])
        alone = fit_checkpoint(path, {"gpt2/h0/attn/q": [6, 4], "gpt2/wte": [518, 4]})
        assert not alone.as_stored({"gpt2/h0/attn/q": np.dtype(np.float32)}), "an adapter is still to be added"
        assert alone.as_stored({"gpt2/wte": np.dtype(np.float32)})
    with pytest.raises(CheckpointError, match="n_vocab=518"):  # 512 rows are no padding
        fit_checkpoint(path, {"gpt2/h0/attn/q": [6, 4], "gpt2/wte": [6, 4]})


def test_weights_are_floats_and_a_step_is_any_number(tmp_path):
    path = str(tmp_path / "model.ckpt-3")
    write(path, [("gpt2/wte", "", np.zeros([2, 3], np.int32)), ("global_step", "", np.array(3, np.int32))])
    with pytest.raises(CheckpointError, match=r"in 1 tensor; nothing was loaded\n.*\n +gpt2/wte +floats +int32"):
        fit_checkpoint(path, {"gpt2/wte": [2, 3], "global_step": []})


def test_slices_that_do_not_make_a_tensor_are_refused(sliced, tmp_path):
    path, _ = sliced
    table = read_table(open(path + ".index", "rb").read())
    grid = [((0, 2), (0, 3)), ((0, 2), (3, 3)), ((2, 2), (0, 3)), ((2, 2), (3, 3))]
    keys = [slice_key("gpt2/a", extents) for extents in grid]
    assert set(keys) <= set(table)
    target = tmp_path / "x.index"
    for number, change in enumerate(
        [
            lambda items: items.pop(keys[0]),
            lambda items: items.update({keys[0]: items[slice_key("gpt2/long", ((0, 50), (0, -1)))]}),
            lambda items: items.update({keys[0]: items[b"gpt2/a"]}),
        ]
    ):
        items = dict(table)
        change(items)
        target.write_bytes(write_table(items))
        with pytest.raises(CheckpointError, match="a slice of gpt2/a is missing, or is not what the tensor says"):
            Bundle(str(target)[: -len(".index")])
        assert number < 3
    entry = table[b"gpt2/a"]
    with pytest.raises(ValueError, match="the slices of gpt2/a do not make the whole of it"):
        parse_entry(entry[: entry.rindex(b"\x3a")], "gpt2/a", table)  # without the last slice


def test_a_flipped_bit_of_a_slice_is_found(sliced, tmp_path):
    path, _ = sliced
    for end in (".index", ".data-00000-of-00001"):
        data = bytearray(open(path + end, "rb").read())
        if end != ".index":
            data[Bundle(path).entries["gpt2/a"].slices[2][1].offset] ^= 1
        (tmp_path / f"x{end}").write_bytes(data)
    for act in (Bundle.verify, lambda bundle: bundle.read("gpt2/a")):
        with pytest.raises(CheckpointError, match="tensor gpt2/a is damaged: its checksum is wrong"):
            act(Bundle(str(tmp_path / "x")))


@pytest.mark.parametrize(
    "value, code",  # by ordered_code.cc
    [
        (0, b"\x80"),
        (-1, b"\x7f"),
        (63, b"\xbf"),
        (64, b"\xc0\x40"),
        (-64, b"\x40"),
        (-65, b"\x3f\xbf"),
        (8192, b"\xe0\x20\x00"),
    ],
)
def test_signed_numbers_in_order(value, code):
    assert signed_code(value) == code


def test_codes_are_in_the_order_of_their_numbers():
    values = sorted({sign * ((1 << bits) + more) for bits in range(63) for more in (-1, 0, 1) for sign in (1, -1)})
    codes = [signed_code(value) for value in values]
    assert codes == sorted(codes)


def test_slices_that_overlap_or_reach_out():
    assert not overlapping([((0, 2), (0, 3)), ((0, 2), (3, 6)), ((2, 4), (0, 6))])
    assert overlapping([((0, 3), (0, 3)), ((2, 4), (2, 6))])
    assert not overlapping([()])
    with pytest.raises(ValueError, match="reaches out"):
        spans_of_slice(((3, 2),), [4])
    with pytest.raises(ValueError, match="not as many dimensions"):
        spans_of_slice(((3, 2),), [4, 4])
