"""Weights in fewer bits: what OpenVINO computes with is what was stored, and it is kept by content."""

import dataclasses
import os
import re

import numpy as np
import pytest

pytest.importorskip("gpt_neo.fast.silent")

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.convert import import_hf
from gpt_neo.checkpoint.tensors import BFLOAT16
from gpt_neo.config import load_config
from gpt_neo.config.network import variables_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError
from gpt_neo.fast import network, weights
from gpt_neo.fast.network import Network
from gpt_neo.fast.weights import FOLDER, Weights, group_of, quantize_int4, quantize_int8
from tests.checkpoint.peers import VOCAB, make_peer, save_peer
from tests.model.tools import save_random, save_weights, uncached

GROUP = 128
CONFIG = ModelConfig(n_head=4, n_embd=128, n_layer=2, n_vocab=96, n_ctx=64, attention_types=("global", "global"))


def widened(found):
    """int8 or int4 as float32 [rows, width], by NumPy alone."""
    if "int8" in found:
        return found["int8"].astype(np.float32) * found["scale"]
    pairs = np.stack([found["int4"] & 15, found["int4"] >> 4], -1).reshape(*found["scale"].shape[:2], -1)
    return ((pairs.astype(np.float32) - found["zero"]) * found["scale"].astype(np.float32)).reshape(len(pairs), -1)


def test_groups_divide_the_inputs():
    assert [group_of(n) for n in (768, 192, 96, 80)] == [128, 64, 32, None]


@pytest.mark.parametrize("kinds", [("global", "global"), ("local", "linear"), ("gla", "gla")])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_logits_are_those_of_the_rounded_weights(dtype, kinds, tmp_path, monkeypatch):
    """Queries, keys and values are one product there; those of gla are narrower than its values."""
    monkeypatch.setattr(network, "ROUNDED", {})  # features of tokens are not
    config = dataclasses.replace(CONFIG, attention_types=kinds, qkv_bias=True)
    checkpoint = save_random(config, str(tmp_path), scale=0.1)
    tokens = np.random.RandomState(0).randint(0, config.n_vocab, [1, 40]).astype(np.int32)
    fast = Network(config, checkpoint, dtype=dtype)
    assert len(fast.weights.joined) == config.n_layer
    found = fast.prefill(0, tokens[0], every=True)
    bundle, variables = Bundle(checkpoint), variables_of(config)

    def rounded(name, shape):
        weight = np.array(bundle.read(name))
        if variables[name].role == "table":
            return widened(quantize_int8(weight))
        if variables[name].role in ("head", "matrix"):
            return widened((quantize_int8 if dtype == "int8" else quantize_int4)(np.ascontiguousarray(weight.T))).T
        return weight

    os.makedirs(tmp_path / "rounded")
    expected = uncached(config, save_weights(config, str(tmp_path / "rounded"), rounded), tokens)[0]
    np.testing.assert_allclose(found, expected, atol=2e-4 * expected.std(), rtol=0)
    exact = uncached(config, checkpoint, tokens)[0]
    error = np.abs(found - exact).max() / exact.std()
    assert 1e-3 < error < (0.1 if dtype == "int8" else 0.6)


@pytest.mark.parametrize("dtype", weights.DTYPES)
def test_the_size_of_weights_by_hand(dtype, tmp_path):
    def stored(shape, role):
        size = int(np.prod(shape))
        if dtype == "float32" or role not in ("table", "matrix"):
            return 4 * size
        if dtype == "bfloat16":
            return 2 * size
        rows, width = shape if role == "table" else shape[::-1]
        if dtype == "int8" or role == "table":
            return size + 4 * rows
        return size // 2 + 2 * (size // GROUP) + size // GROUP  # a float16 scale and a zero of a byte for each group

    variables = variables_of(CONFIG).values()
    found = Weights(CONFIG, save_random(CONFIG, str(tmp_path)), dtype)
    assert found.size == sum(stored(variable.shape, variable.role) for variable in variables)
    assert found.wide == 4 * sum(int(np.prod(variable.shape)) for variable in variables)


def test_int4_takes_the_best_of_several_scales():
    rows = np.random.RandomState(1).standard_t(3, [64, 2 * GROUP]).astype(np.float32)
    groups = rows.reshape(64, 2, GROUP)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale = (high - low) / 15
    plain = (np.rint((groups - low) / scale) * scale + low).reshape(rows.shape)
    error = np.square(widened(quantize_int4(rows)) - rows).sum()
    assert error < 0.97 * np.square(plain - rows).sum()


@pytest.mark.parametrize("quantize, levels", [(quantize_int8, 254), (quantize_int4, 15)])
def test_rows_of_any_sign_are_near_and_0_stays_0(quantize, levels):
    """The range of a group has 0 in it: of int8 on both sides alike."""
    random = np.random.RandomState(2)
    rows = random.uniform(1, 2, [6, 2 * GROUP]).astype(np.float32)
    rows[1] *= -1
    rows[2, ::2] *= -1
    rows[3] = 0
    rows[4, GROUP:] = 0
    rows[5] = 0.5
    with np.errstate(all="raise", under="ignore"):  # what a 0 divided by 0 becomes depends on the processor
        found = widened(quantize(rows))
    groups = rows.reshape(6, -1, 2 * GROUP if levels == 254 else GROUP)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    width = 2 * np.maximum(-low, high) if levels == 254 else high - low
    error = np.square(found - rows).reshape(groups.shape).mean(-1)
    assert (np.sqrt(error) <= 0.6 * width / levels).all(), "that of rounding is 0.29 of a step, a half at most"
    assert not found[3].any() and not found[4, GROUP:].any()


def test_what_is_compressed_in_pieces_is_what_is_compressed_at_once(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, n_embd=96, n_inner=400)  # groups of 32, and matrices of int8 beside them
    checkpoint = save_random(config, str(tmp_path), scale=0.1)
    kept = []
    for count in (1 << 22, 7 * 96):
        monkeypatch.setattr(weights, "AT_ONCE", count)
        monkeypatch.setattr(weights, "VERSION", count)
        made = Weights(config, checkpoint, "int4")
        kept.append({name: made.kept.read(name) for name in made.kept.names()})
    assert len(os.listdir(tmp_path / FOLDER)) == 2
    several = Weights(
        dataclasses.replace(config, n_inner=256),
        save_random(dataclasses.replace(config, n_inner=256), str(tmp_path / "b")),
        "int4",
    )
    assert made.group == several.group == 32, "of groups of 32 and of 128 the fewer"
    assert made.stored["gpt2/h0/mlp/conv1d_main/c_fc/kernel"] == "int4"
    assert made.stored["gpt2/h0/mlp/conv1d_main/c_proj/kernel"] == "int8", "400 inputs are no groups"
    assert kept[0].keys() == kept[1].keys()
    for name, value in kept[0].items():
        np.testing.assert_array_equal(value, kept[1][name], err_msg=name)


@pytest.mark.parametrize("dtype, more", [("int8", 1.5), ("int4", 1.1)])
def test_rounding_features_costs_little_beside_rounding_weights(dtype, more, tmp_path, monkeypatch):
    """Also where some features are 40 times the others, as in large models."""
    rng = np.random.RandomState(0)
    config = dataclasses.replace(CONFIG, n_embd=512)

    def choose(name, shape):
        gain = name.endswith("norm_1/g") or name.endswith("norm_2/g")
        return np.where(rng.rand(*shape) < 0.01, 40.0, 1.0) if gain else rng.normal(0, 0.05, shape)

    checkpoint = save_weights(config, str(tmp_path), choose)
    tokens = rng.randint(0, config.n_vocab, 40)

    def logits(dtype):
        return Network(config, checkpoint, dtype=dtype).prefill(0, tokens, every=True)

    exact, found = logits("float32"), logits(dtype)
    monkeypatch.setattr(network, "ROUNDED", {})
    assert np.std(found - exact) < more * np.std(logits(dtype) - exact)


def test_bfloat16_is_rounded_to_the_nearest(tmp_path):
    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    weights, bundle = Weights(CONFIG, checkpoint, "bfloat16"), Bundle(checkpoint)
    for name, variable in variables_of(CONFIG).items():
        if variable.role in ("table", "head", "matrix"):
            found, exact = weights.array(name, BFLOAT16), np.array(bundle.read(name))
            np.testing.assert_array_equal(found, exact.astype(BFLOAT16).astype(np.float32))


def test_where_bfloat16_cannot_be_read_all_is_float32(tmp_path, monkeypatch):
    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    tokens = np.random.RandomState(0).randint(0, CONFIG.n_vocab, [1, 40]).astype(np.int32)
    exact = uncached(CONFIG, checkpoint, tokens)[0]
    monkeypatch.setattr(network, "stored_type", lambda dtype: "float32")
    found = Network(CONFIG, checkpoint, dtype="bfloat16").prefill(0, tokens[0], every=True)
    np.testing.assert_allclose(found, exact, atol=1e-4 * exact.std(), rtol=0)


def test_weights_are_read_in_bfloat16_and_nothing_else_is(tmp_path):
    """The plugin may widen weights to float32, at twice the bytes, without a word."""
    if network.stored_type("bfloat16") == "float32":
        pytest.skip("a processor that can neither multiply nor widen bfloat16")
    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    compiled = Network(CONFIG, checkpoint, dtype="bfloat16").request.get_compiled_model()
    about = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    made = [(node["layerType"].value, node["runtimePrecision"].value) for node in about]
    assert [dtype for kind, dtype in made if kind == "FullyConnected"] == ["bf16"] * (6 * CONFIG.n_layer + 1)
    assert {dtype for kind, dtype in made if kind in ("MVN", "Eltwise", "PagedAttention")} == {"f32"}
    assert ("Gather", "bf16") in made  # rows of the table


@pytest.mark.parametrize("family", ["gpt_neo", "gptj", "gpt_neox"])
def test_bfloat16_is_nearer_to_float64_than_transformers(family, tmp_path):
    """Products alone are in bfloat16 here, and all of the network there. Without such units weights alone are."""
    import torch

    model = make_peer(family)
    source = save_peer(model, tmp_path / "hf")
    import_hf(source, str(tmp_path / "run"))
    run = load_config(str(tmp_path / "run" / "config.json"))
    tokens = torch.randint(0, VOCAB, (1, 300), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = model.double()(tokens).logits[0].numpy()
        theirs = model.bfloat16()(tokens).logits[0].float().numpy()
    network = Network(run.model, str(tmp_path / "run" / "model.ckpt-0"), dtype="bfloat16")
    ours = network.prefill(0, tokens[0].numpy(), every=True)
    assert 0 < np.std(ours - exact) < np.std(theirs - exact) < 0.1 * np.std(exact)


def test_two_processes_make_them_at_once(tmp_path, monkeypatch):
    """The second one to end finds what the first has made."""
    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    write = weights.write_compressed

    def beaten(fit, stored, folder):
        write(fit, stored, folder)
        write(fit, stored, folder)

    monkeypatch.setattr(weights, "write_compressed", beaten)
    found = Network(CONFIG, checkpoint, dtype="int8")
    assert "are kept in" in found.notes[-1]
    text = np.arange(5)
    np.testing.assert_array_equal(found.prefill(0, text), Network(CONFIG, checkpoint, dtype="int8").prefill(0, text))


def test_kept_by_content_and_made_once(tmp_path):
    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    first = Network(CONFIG, checkpoint, dtype="int8")
    (kept,) = os.listdir(tmp_path / FOLDER)
    made = os.stat(tmp_path / FOLDER / kept / "weights.index").st_mtime_ns
    again = Network(CONFIG, checkpoint, dtype="int8")
    assert "are kept in" in first.notes[-1] and again.notes == []
    assert os.stat(tmp_path / FOLDER / kept / "weights.index").st_mtime_ns == made
    os.remove(checkpoint + ".index")
    save_random(CONFIG, str(tmp_path), seed=1, scale=0.1)  # other weights under the same name
    other = Network(CONFIG, checkpoint, dtype="int8")
    assert len(os.listdir(tmp_path / FOLDER)) == 2
    text = np.arange(5)
    assert np.abs(other.prefill(0, text) - again.prefill(0, text)).max() > 0.1
    fewer = Network(dataclasses.replace(CONFIG, n_vocab=90), checkpoint, dtype="int8")  # the last rows are padding
    np.testing.assert_allclose(fewer.prefill(0, text), other.prefill(0, text)[:90], rtol=1e-5)
    assert len(os.listdir(tmp_path / FOLDER)) == 3


def test_no_place_to_keep_them(tmp_path, monkeypatch):
    """A run that may only be read, of a user without a home folder; and with a cache that is named."""
    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    may_write, run = os.access, str(tmp_path / FOLDER)
    monkeypatch.setattr(weights.os, "access", lambda path, how: path != run and may_write(path, how))
    monkeypatch.setattr(weights, "cache_folder", lambda name: "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(CheckpointError, match=f"{run} cannot be written to; XDG_CACHE_HOME names a folder"):
        Network(CONFIG, checkpoint, dtype="int8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Network(CONFIG, checkpoint, dtype="int8")
    assert len(os.listdir(tmp_path / "cache" / "gpt_neo" / FOLDER)) == 1


@pytest.mark.parametrize("harm", ["cut off", "without its data", "without its index", "an empty index"])
def test_what_is_left_of_kept_weights_is_made_anew(harm, tmp_path):
    """As a copy of a run that broke off has it: the checkpoint itself is whole."""
    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    wanted = Network(CONFIG, checkpoint, dtype="int8").prefill(0, np.arange(5))
    (kept,) = (tmp_path / FOLDER).iterdir()
    index, data = kept / "weights.index", kept / "weights.data-00000-of-00001"
    if harm == "cut off":
        os.truncate(data, 100)
    elif harm == "an empty index":
        index.write_bytes(b"")
    else:
        (data if harm == "without its data" else index).unlink()
    again = Network(CONFIG, checkpoint, dtype="int8")
    assert "it is removed, and made anew" in again.notes[0] and str(kept) in again.notes[1]
    np.testing.assert_array_equal(again.prefill(0, np.arange(5)), wanted)


def test_kept_weights_with_a_wrong_byte_are_told_from_the_checkpoint(tmp_path):
    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    Weights(CONFIG, checkpoint, "int8")
    (kept,) = (tmp_path / FOLDER).iterdir()
    path = kept / "weights.data-00000-of-00001"
    path.write_bytes(bytes(256) + path.read_bytes()[256:])
    with pytest.raises(CheckpointError, match=f"checksum is wrong; remove {re.escape(str(kept))}: it is made anew"):
        Network(CONFIG, checkpoint, dtype="int8")
