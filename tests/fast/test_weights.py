"""Weights in fewer bits: what OpenVINO computes with is what was stored, and it is kept by content."""

import os

import numpy as np
import pytest

pytest.importorskip("gpt_neo.fast.silent")

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.config.network import variables_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.fast import network
from gpt_neo.fast.network import Network
from gpt_neo.fast.weights import FOLDER, group_of, quantize_int4, quantize_int8
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


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_logits_are_those_of_the_rounded_weights(dtype, tmp_path):
    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    tokens = np.random.RandomState(0).randint(0, CONFIG.n_vocab, [1, 40]).astype(np.int32)
    found = Network(CONFIG, checkpoint, dtype=dtype).prefill(0, tokens[0], every=True)
    bundle, variables = Bundle(checkpoint), variables_of(CONFIG)

    def rounded(name, shape):
        weight = np.array(bundle.read(name))
        if variables[name].role == "table":
            return widened(quantize_int8(weight))
        if variables[name].role == "matrix":
            return widened((quantize_int8 if dtype == "int8" else quantize_int4)(np.ascontiguousarray(weight.T))).T
        return weight

    os.makedirs(tmp_path / "rounded")
    expected = uncached(CONFIG, save_weights(CONFIG, str(tmp_path / "rounded"), rounded), tokens)[0]
    np.testing.assert_allclose(found, expected, atol=2e-4 * expected.std(), rtol=0)
    exact = uncached(CONFIG, checkpoint, tokens)[0]
    error = np.abs(found - exact).max() / exact.std()
    assert 1e-3 < error < (0.1 if dtype == "int8" else 0.6)


def test_int4_takes_the_best_of_several_scales():
    rows = np.random.RandomState(1).standard_t(3, [64, 2 * GROUP]).astype(np.float32)
    groups = rows.reshape(64, 2, GROUP)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale = (high - low) / 15
    plain = (np.rint((groups - low) / scale) * scale + low).reshape(rows.shape)
    error = np.square(widened(quantize_int4(rows)) - rows).sum()
    assert error < 0.97 * np.square(plain - rows).sum()


def test_bfloat16_is_rounded_to_the_nearest_where_the_processor_has_it(tmp_path, monkeypatch):
    import ml_dtypes

    checkpoint = save_random(CONFIG, str(tmp_path), scale=0.1)
    tokens = np.random.RandomState(0).randint(0, CONFIG.n_vocab, [1, 40]).astype(np.int32)
    bundle, variables = Bundle(checkpoint), variables_of(CONFIG)

    def rounded(name, shape):
        weight = np.array(bundle.read(name))
        short = variables[name].role in ("table", "matrix")
        return weight.astype(ml_dtypes.bfloat16).astype(np.float32) if short else weight

    os.makedirs(tmp_path / "rounded")
    expected = uncached(CONFIG, save_weights(CONFIG, str(tmp_path / "rounded"), rounded), tokens)[0]
    exact = uncached(CONFIG, checkpoint, tokens)[0]
    for short, wanted in ((True, expected), (False, exact)):
        monkeypatch.setattr(network, "stored_type", lambda dtype, short=short: dtype if short else "float32")
        found = Network(CONFIG, checkpoint, dtype="bfloat16").prefill(0, tokens[0], every=True)
        np.testing.assert_allclose(found, wanted, atol=1e-4 * expected.std(), rtol=0)
    assert np.abs(expected - exact).max() > 1e-3 * exact.std()


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
