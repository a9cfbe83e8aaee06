"""The network in OpenVINO's operations gives what the network in TensorFlow's gives, and what transformers gives."""

import dataclasses
import os

import numpy as np
import pytest

pytest.importorskip("gpt_neo.fast.silent")

from gpt_neo.config.activations import ACTIVATIONS
from gpt_neo.config.schema import ModelConfig
from gpt_neo.fast.activations import LEARNED, PLAIN
from gpt_neo.fast.layers import LAYERS, unsupported
from gpt_neo.fast.network import Network
from gpt_neo.fast.sampler import FastSampler
from gpt_neo.model.activations import activate_wide
from gpt_neo.model.transformer import ATTENTION
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.sampling.filters import SampleOptions
from tests.model.options import alone, covering_rows, covering_values, label, make_run, merged
from tests.model.test_peers import PEERS, VOCAB, weights_of
from tests.model.tools import save_random, save_weights, uncached

FEW = covering_values(covering_rows())


def test_both_networks_have_the_same_lists():
    assert LAYERS.keys() == ATTENTION.keys()
    assert {**PLAIN, **LEARNED}.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("row", FEW, ids=label)
def test_every_value_reads_and_decodes_as_tensorflow(row, tmp_path):
    compare(make_run(merged(row)), str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in [*covering_rows(), *alone()] if row not in FEW], ids=label)
def test_pairs_and_each_alone(row, tmp_path):
    compare(make_run(merged(row)), str(tmp_path))


def compare(run, folder):
    """Two rows, of which one is three tokens behind: one token each, after prompts that are read whole."""
    config = dataclasses.replace(run.model, precision="float32")
    checkpoint = save_random(config, folder, scale=0.3)
    tokens = np.random.RandomState(0).randint(0, config.n_vocab, [2, config.n_ctx]).astype(np.int32)
    expected = uncached(config, checkpoint, tokens)

    def check(found, logits):
        """Close; where a model makes much of rounding, as close as it is to itself."""
        atol = 1e-5 * np.abs(expected).max()
        if np.abs(found - logits).max() > atol:
            atol = np.abs(uncached(config, rounded(config, checkpoint, folder), tokens) - expected).max()
        np.testing.assert_allclose(found, logits, atol=atol, rtol=0)

    network = Network(config, checkpoint, rows=2)
    check(network.prefill(0, tokens[0, :6]), expected[0, 5])
    check(network.prefill(1, tokens[1, :3], every=True), expected[1, :3])
    for at in range(6, config.n_ctx):
        logits = network.read([0, 1], [tokens[0, at : at + 1], tokens[1, at - 3 : at - 2]], [at, at - 3])
        check(logits, np.stack([expected[0, at], expected[1, at - 3]]))


def rounded(config, checkpoint, folder):
    """The checkpoint with every weight moved by about one unit in its last place, or not at all."""
    rng, weights = np.random.RandomState(2), tf.train.load_checkpoint(checkpoint)
    return save_weights(
        config,
        os.path.join(folder, "rounded"),
        lambda name, shape: weights.get_tensor(name) * (1 + np.finfo(np.float32).eps / 2 * rng.randint(-1, 2, shape)),
    )


@pytest.mark.parametrize("name", PEERS)
def test_logits_and_greedy_text_equal_hugging_face(name, tmp_path):
    torch = pytest.importorskip("torch")
    peer, config, mapped = PEERS[name]()
    peer.eval()
    weights = weights_of(peer, mapped)
    checkpoint = save_weights(config, str(tmp_path), lambda name, shape: weights[name])
    tokens = np.random.RandomState(1).randint(0, VOCAB, [1, config.n_ctx])
    with torch.no_grad():
        expected = peer(torch.tensor(tokens)).logits.numpy()[0]
        greedy = peer.generate(
            torch.tensor(tokens[:, :8]),
            attention_mask=torch.ones(1, 8),
            max_new_tokens=100,
            do_sample=False,
            pad_token_id=0,
        )[0, 8:].tolist()
    sampler = FastSampler(config, checkpoint)
    np.testing.assert_allclose(sampler.network.prefill(0, tokens[0], every=True), expected, atol=1e-4, rtol=0)
    options = SampleOptions(max_tokens=100, temperature=0.0)
    assert [t.token for t in sampler.generate([tokens[0, :8].tolist()], options)] == greedy


@pytest.mark.parametrize("names", [sorted(ACTIVATIONS)], ids=["all"])
def test_activations_equal_those_of_tensorflow(names):
    """On a grid that no row of options has, poles left out; learned numbers at their start."""
    from gpt_neo.fast.silent import Model, core, op

    grid = np.concatenate([np.linspace(-6, 6, 47), [-30.0, 30.0]]).astype(np.float32)[np.newaxis]
    x = op.parameter([1, grid.size], np.float32)
    outs = []
    for name in names:
        learned = {part: op.constant(np.float32(value)) for part, value in ACTIVATIONS[name].items()}
        outs.append(op.result(LEARNED[name](x, learned) if name in LEARNED else PLAIN[name](x)))
    run = core().compile_model(Model(outs, [x]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = [value for value in run([grid]).values()]
    with tf.Graph().as_default(), tf.Session() as session:
        width, mesh = mtf.Dimension("width", grid.size), mtf.Mesh(mtf.Graph(), "mesh")
        t = mtf.import_tf_tensor(mesh, grid[0], mtf.Shape([width]))
        made = []
        for name in names:
            parts = {
                f"activation/{part}": mtf.constant(mesh, v, dtype=tf.float32) for part, v in ACTIVATIONS[name].items()
            }
            made.append(activate_wide(t, parts, name, width))
        lowering = mtf.Lowering(mesh.graph, {mesh: mtf.placement_mesh_impl.PlacementMeshImpl([], [], [""])})
        expected = session.run([lowering.export_to_tf_tensor(m) for m in made])
    for name, ours, theirs in zip(names, found, expected):
        np.testing.assert_allclose(ours[0], theirs, rtol=2e-5, atol=2e-5, err_msg=name)


def test_what_is_not_built_is_named():
    sizes = {"n_head": 2, "n_embd": 16, "n_layer": 1, "n_vocab": 8, "n_ctx": 8}
    assert unsupported(ModelConfig(**sizes)) is None
    assert "encoders" in unsupported(ModelConfig(**sizes, causal=False))
    assert "heads of 4 features" in unsupported(ModelConfig(**{**sizes, "n_embd": 8}))
