"""SavedModels: generated text equals the sampler's, and what int8 weights cost."""

import dataclasses
import os
import re

import numpy as np
import pytest

from gpt_neo.config.network import KINDS
from gpt_neo.config.schema import GlaParams, ModelConfig
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.export import export_saved_model, losses
from gpt_neo.runtime.int8 import quantize
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.sampling.filters import SampleOptions, probabilities
from gpt_neo.sampling.graph import GraphOptions, distribution
from tests.model.tools import save_random, save_weights, uncached

VOCAB, LENGTH, BATCH = 48, 150, 2
COMMON = {"n_head": 2, "n_embd": 64, "n_layer": 2, "n_vocab": VOCAB, "n_ctx": LENGTH, "eos_id": VOCAB}
MODELS = {
    "gpt_neo": ModelConfig(**COMMON, attention_types=("global", "local"), local_attention_radius=7),
    "gptj": ModelConfig(
        **COMMON,
        attention_types=("global", "global"),
        rotary_emb=True,
        rotary_dim=8,
        rotary_interleaved=True,
        parallel_residual=True,
        shared_norm=True,
        scale_attention=True,
        untied_head=True,
        head_bias=True,
        attn_output_bias=False,
    ),
}


class Served:
    """A SavedModel in a session of its own."""

    def __init__(self, folder):
        self.session = tf.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            self.signatures = tf.saved_model.load(self.session, [tf.saved_model.SERVING], folder).signature_def

    def __call__(self, name, **inputs):
        signature = self.signatures[name]
        feeds = {signature.inputs[key].name: value for key, value in inputs.items()}
        return self.session.run({key: value.name for key, value in signature.outputs.items()}, feeds)

    def text(self, prompts, max_tokens, temperature=0.0, seed=0, top_k=0, top_p=1.0):
        tokens = np.zeros([BATCH, max(map(len, prompts))], np.int32)
        for row, prompt in zip(tokens, prompts):
            row[: len(prompt)] = prompt
        return self(
            "serving_default",
            tokens=tokens,
            lengths=[len(p) for p in prompts],
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )


@pytest.fixture(scope="module", params=["gpt_neo", pytest.param("gptj", marks=pytest.mark.slow)])
def served(request, tmp_path_factory):
    config, folder = MODELS[request.param], tmp_path_factory.mktemp(request.param)
    checkpoint = save_random(config, str(folder), scale=0.3)
    assert export_saved_model(config, checkpoint, str(folder / "saved"), BATCH) == []
    return config, checkpoint, Served(str(folder / "saved"))


def test_generated_text_is_the_samplers(served):
    """Both rows, the longer prompt read in two chunks, are as `--predict` samples them."""
    config, checkpoint, model = served
    rng = np.random.RandomState(1)
    prompts = [rng.randint(0, VOCAB, n).tolist() for n in (3, 70)]
    expected = {0: [], 1: []}
    for token in Sampler(config, checkpoint, BATCH).generate(prompts, SampleOptions(max_tokens=40, temperature=0.0)):
        expected[token.prompt].append(token.token)
    for _ in range(2):  # nothing is left over from one call to the next
        got = model.text(prompts, 40)
        assert got["tokens"].tolist() == [expected[0], expected[1]] and got["lengths"].tolist() == [40, 40]
    assert model.text(prompts, 500)["tokens"].shape == (BATCH, LENGTH - 70)
    first, again, other = (model.text(prompts, 20, 1.0, seed)["tokens"].tolist() for seed in (4, 4, 5))
    assert first == again != other


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (3, 1.0), (0, 0.7), (5, 0.6), (99, 0.001)])
def test_what_may_be_drawn_is_what_predict_draws_from(top_k, top_p):
    logits = np.random.RandomState(0).normal(0, 2, [3, VOCAB]).astype(np.float32)
    logits[0, 7] = logits[0, 9] = logits[0].max() + 0.5  # a tie at the edge
    with tf.Graph().as_default(), tf.Session() as session:
        temperature, mass = (tf.constant(x, tf.float64) for x in (0.8, top_p))
        got = session.run(distribution(tf.constant(logits), GraphOptions(temperature, tf.constant(top_k), mass)))
    for row, given in zip(got / got.sum(-1, keepdims=True), logits):
        np.testing.assert_allclose(
            row, probabilities(given, SampleOptions(temperature=0.8, top_k=top_k, top_p=top_p)), atol=1e-6
        )


def test_only_ids_of_the_tokenizer_are_drawn(served, tmp_path):
    config, checkpoint, model = served
    export_saved_model(config, checkpoint, str(tmp_path / "few"), BATCH, n_ids=5)
    few = Served(str(tmp_path / "few"))
    for options in ({}, {"temperature": 2.0}, {"temperature": 2.0, "top_k": 4, "top_p": 0.9}):
        assert few.text([[1, 2], [3]], 60, **options)["tokens"].max() < 5
    prompts = [[1, 2, 3], [4]]  # top_k 1 takes the likeliest, whatever the temperature
    assert model.text(prompts, 20, 1.0, top_k=1)["tokens"].tolist() == model.text(prompts, 20)["tokens"].tolist()


def test_every_type_of_attention_generates(tmp_path):
    """Without an end of text, which ends nothing; both rows are what the network likes best without its caches."""
    kinds = ("global", "gla", "none", "linear", "local")
    config = ModelConfig(
        **{**COMMON, "n_embd": 16, "n_layer": 5, "eos_id": None},
        attention_types=kinds,
        local_attention_radius=7,
        num_mem_kv=2,
        gla_params=GlaParams(num_heads=4),
    )
    assert {*kinds} == {*KINDS}
    checkpoint = save_random(config, str(tmp_path), scale=0.5)
    assert export_saved_model(config, checkpoint, str(tmp_path / "saved"), BATCH) == []
    model, rng = Served(str(tmp_path / "saved")), np.random.RandomState(1)
    prompts = [rng.randint(0, VOCAB, n).tolist() for n in (3, 70)]
    got = model.text(prompts, 40)
    assert got["lengths"].tolist() == [40, 40] and model.text(prompts, 40)["tokens"].tolist() == got["tokens"].tolist()
    any_ids = model.text(prompts, 80, temperature=100.0, seed=1)
    assert 0 in any_ids["tokens"][:, :-1] and any_ids["lengths"].tolist() == [80, 80]
    tokens = np.zeros([BATCH, LENGTH], np.int32)
    for row, prompt, text in zip(tokens, prompts, got["tokens"].tolist()):
        row[: len(prompt) + 40] = prompt + text
    best = uncached(config, checkpoint, tokens).argmax(-1)
    for row, prompt, text in zip(best, prompts, got["tokens"].tolist()):
        assert row[len(prompt) - 1 : len(prompt) + 39].tolist() == text


def test_rows_end_at_the_end_of_text(served, tmp_path):
    config, checkpoint, model = served
    prompts = [[5, 6, 7], [9, 3]]
    tokens = model.text(prompts, 30)["tokens"].tolist()  # as the sampler's, and its end of text is no token's id
    end = tokens[0][9]
    export_saved_model(dataclasses.replace(config, eos_id=end), checkpoint, str(tmp_path / "saved"), BATCH)
    got = Served(str(tmp_path / "saved")).text(prompts, 30)
    for row, count, wanted in zip(got["tokens"].tolist(), got["lengths"], tokens):
        size = wanted.index(end) + 1 if end in wanted else 30
        assert count == size and row[:size] == wanted[:size] and set(row[size:]) <= {end}


@pytest.mark.parametrize(
    "how, message",
    [
        ({"temperature": -1.0}, "temperature: expected at least 0"),
        ({"temperature": float("nan")}, "temperature: expected"),  # both, in any order
        ({"temperature": float("inf")}, "temperature: expected a finite number"),
        ({"temperature": 1.0, "top_k": -1}, "top_k: expected at least 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p: expected more than 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p: expected at most 1"),
        ({"temperature": 1.0, "seed": -1}, "seed: expected at least 0"),
    ],
)
def test_what_the_command_line_refuses_is_refused(served, how, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served[2].text([[1], [2]], 3, **how)


def test_a_prompt_without_room_is_refused(served):
    _, _, model = served
    with pytest.raises(tf.errors.InvalidArgumentError, match="leaves no room in n_ctx"):
        model.text([[1] * LENGTH, [1]], 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a prompt is empty"):
        model.text([[1], []], 3)


MATRICES = re.compile(r".*/(wte|attn/([qkvo]|output_gate)|conv1d_main/(c_fc|c_proj|linear_out)/kernel)")


def test_int8_is_a_quarter_of_the_size_and_close(served, tmp_path):
    config, checkpoint, model = served
    folder = str(tmp_path / "int8")
    export_saved_model(config, checkpoint, folder, BATCH, int8=True)
    small = Served(folder)
    tokens = np.random.RandomState(2).randint(0, VOCAB, [BATCH, LENGTH]).astype(np.int32)
    exact, near = model("logits", tokens=tokens)["logits"], small("logits", tokens=tokens)["logits"]
    # What the quantized weights, put back into a float checkpoint, compute.
    reader = tf.train.load_checkpoint(checkpoint)

    def rounded(name, shape):
        value = reader.get_tensor(name)
        if not MATRICES.fullmatch(name) or value.size < 4096:
            return value
        axis = 1 if name.endswith("wte") else 0
        q, scale = quantize(value, axis)
        return q * (scale[:, None] if axis else scale)

    os.makedirs(tmp_path / "rounded")
    expected = uncached(config, save_weights(config, str(tmp_path / "rounded"), rounded), tokens)
    np.testing.assert_allclose(near, expected, atol=2e-4, rtol=0)
    assert 0 < np.abs(near - exact).mean() < 0.05 * exact.std()
    sizes = [
        os.path.getsize(os.path.join(f, "variables", "variables.data-00000-of-00001"))
        for f in (folder, os.path.join(os.path.dirname(checkpoint), "saved"))
    ]
    assert sizes[0] < 0.4 * sizes[1]  # a quarter, and what stays as it is
    assert small.text([[1, 2, 3], [4]], 10)["tokens"].shape == (BATCH, 10)


def test_int8_weights_that_blocks_share(tmp_path):
    config = ModelConfig(**COMMON, attention_types=("gla", "gla"), share_parameters=True)
    checkpoint = save_random(config, str(tmp_path), scale=0.1)
    rows = np.random.RandomState(3).randint(0, VOCAB, [2, LENGTH + 1])
    exact, near = losses(config, checkpoint, [(row, np.ones(LENGTH, bool)) for row in rows])
    assert 0 < abs(near - exact) < 0.01 * exact


def test_quantizing():
    weight = np.array([[1.0, 0.0, -254.0], [0.5, 0.0, 127.0]], np.float32)
    q, scale = quantize(weight, 0)
    assert q.tolist() == [[127, 0, -127], [64, 0, 64]] and scale.tolist() == pytest.approx([1 / 127, 1, 2])
    q, scale = quantize(weight, 1)
    assert scale.tolist() == pytest.approx([2, 1]) and q.tolist() == [[0, 0, -127], [0, 0, 127]]


def test_a_folder_in_use_is_refused(served, tmp_path):
    config, checkpoint, _ = served
    (tmp_path / "x").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        export_saved_model(config, checkpoint, str(tmp_path))
    assert (tmp_path / "x").read_text() == "mine" and len(os.listdir(tmp_path)) == 1
