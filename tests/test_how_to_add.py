"""docs/architecture.md, "How to add": a toy of every sort, told to two tables and used wherever its sort is."""

import dataclasses
import os
import sys

import numpy as np
import pytest

from gpt_neo.checkpoint.convert import in_their_words
from gpt_neo.checkpoint.custom import own_pairs
from gpt_neo.checkpoint.families import family_of
from gpt_neo.checkpoint.fit import fit_checkpoint
from gpt_neo.checkpoint.names import is_slot
from gpt_neo.checkpoint.recast import Recast
from gpt_neo.config import activations as names
from gpt_neo.config import network, optimizers
from gpt_neo.config.estimate import count_parameters, sampling_memory, slot_bytes, training_memory
from gpt_neo.config.layouts import dimension_sizes
from gpt_neo.config.network import Cache, Variable, variables_of
from gpt_neo.config.origins import presence_keys
from gpt_neo.config.reference import reference_page
from gpt_neo.dataprep import readers, streams
from gpt_neo.dataprep.documents import read_documents
from gpt_neo.errors import CheckpointError
from gpt_neo.model import activations, positions, transformer
from gpt_neo.model.attention.softmax import project, project_output
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.dropout import RandomSource
from gpt_neo.ops.recurrent import only_real, recurrence
from gpt_neo.optim import build
from gpt_neo.optim.slots import scalar, slot, wait
from gpt_neo.runtime.export import export_saved_model
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.runtime.rows import RowDecoder
from gpt_neo.runtime.train_step import build_train_step
from gpt_neo.serving.attention_maps import attention_weights
from gpt_neo.spmd.decoding import export_predict_step
from tests.model.options import BASE, make_run
from tests.model.tools import plain_session, save_random, save_weights, uncached

TOKENS = np.random.RandomState(0).randint(0, BASE["n_vocab"], [2, 10]).astype(np.int32)


# A kind of attention: every token gets the mean of the values so far.


def mean_variables(model):
    embd, width = ("embd", model.n_embd), ("heads", model.n_embd)
    return {"mixed": Variable((embd, width), "matrix", 0.1), "o": Variable((width, embd), "matrix", 0.1)}


def mean_kernel(v, real, state):
    """state: [batch, heads, 1, features + 1], the sum of the values and their number."""
    values = only_real(tf.concat([v, tf.ones_like(v[..., :1])], -1), real)
    sums = tf.cumsum(values, 1)
    if state is not None:
        sums += tf.transpose(state, [0, 2, 1, 3])
    return sums[..., :-1] / tf.maximum(sums[..., -1:], 1.0), tf.transpose(sums[:, -1:], [0, 2, 1, 3])


def mean_attention(x, p, layer, dims, config, context):
    apart = [dims.heads, dims.features]
    (v,) = project(x, p, "mixed", apart)
    context.show(layer, v)
    out = recurrence(mean_kernel, [v], v, (1, dims.features.size + 1), layer, context.decoding)
    return project_output(out, p, apart)


def mean_weights(shown, config, kind):
    count = len(shown[0])
    return np.tril(np.ones([count, count])) / np.arange(1, count + 1)[:, None]


@pytest.fixture
def mean_kind(monkeypatch):
    kind = network.AttentionKind(
        doc="the mean of the values so far",
        variables=mean_variables,
        caches=lambda model: (Cache("state", model.n_head, model.features_per_head + 1, 1),),
        heads=lambda model: model.n_head,
        causal_only=True,
    )
    monkeypatch.setitem(network.KINDS, "mean", kind)
    monkeypatch.setitem(transformer.ATTENTION, "mean", transformer.Attention(mean_attention, mean_weights))


def losses_of(run, steps=3):
    """Losses of a run on one batch, and the variables of its graph."""
    shape = [run.training.train_batch_size, run.model.n_ctx + 1]
    batch = np.random.RandomState(1).randint(0, run.model.n_vocab, shape)
    with tf.Graph().as_default(), plain_session() as session:
        tf.set_random_seed(1)
        step = build_train_step(tf.constant(batch, tf.int32), run, LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        losses = [session.run([step.loss, step.train])[0] for _ in range(steps)]
        return losses, {v.op.name: v.shape.as_list() for v in tf.global_variables()}


def test_attention(mean_kind, tmp_path):
    run = make_run({"attention_types": ["mean", "local"], "lr": 0.01, "opt_name": "muon"})
    model, d = run.model, run.model.n_embd
    # plan, memory, layouts, words for the docs and for checkpoints that do not fit
    assert {n for n in variables_of(model) if "h0/attn" in n} == {"gpt2/h0/attn/mixed", "gpt2/h0/attn/o"}
    plain = make_run({"attention_types": ["local", "local"]}).model
    assert count_parameters(plain) - count_parameters(model) == 2 * d * d + d
    ring = 2 * 4 * d * 4
    assert sampling_memory(model, 3).activations == 3 * (ring + (d + model.n_head) * 4)
    assert training_memory(run).total > 0 and dimension_sizes(run)["heads"] == model.n_head
    assert "| `mean` | the mean of the values so far | a float32 state |" in reference_page()
    assert presence_keys("gpt2/h3/attn/compute_output_bias/o_b") == ["n_layer"]
    # training
    losses, built = losses_of(run)
    assert losses[2] < losses[1] < losses[0]
    assert {n: v.shape for n, v in variables_of(model).items()} == {n: tuple(built[n]) for n in variables_of(model)}
    # its matrices are Muon's, and have adapters
    assert "gpt2/h0/attn/mixed/muon_m" in built and "gpt2/h0/attn/mixed/adam_m" not in built
    losses, built = losses_of(make_run({"attention_types": ["mean", "local"], "lora_rank": 2, "lr": 0.01}))
    assert losses[2] < losses[0] and built["gpt2/h0/attn/mixed/lora_b"] == [2, d]
    check_decoding(model, str(tmp_path))
    # plots
    v = np.random.RandomState(0).normal(size=[7, model.n_head, 3])
    weights = attention_weights("mean", [v], 1, model)
    np.testing.assert_allclose(weights @ v[:, 1], np.cumsum(v[:, 1], 0) / np.arange(1, 8)[:, None])
    # Hugging Face has no word for it, and the model file of --custom_code says that it does not know it
    assert family_of(model)[0] is None
    with pytest.raises(
        CheckpointError, match="attention_types is 'mean'; the model file of --custom_code knows global"
    ):
        own_pairs(model)


def check_decoding(model, folder):
    """Caches in variables, of rows that come and go, carried by a loop, and of a core's program, against none."""
    checkpoint = save_random(model, folder, scale=0.3)
    expected = uncached(model, checkpoint, TOKENS)
    sampler = Sampler(model, checkpoint, 2)
    logits, at, start = sampler.prefill([TOKENS[0, :6], TOKENS[1, :6]])
    found = [logits, *(sampler.run(TOKENS[:, 6 + i : 7 + i], at + i, start) for i in range(4))]
    np.testing.assert_allclose(np.stack(found, 1), expected[:, 5:], atol=1e-4)
    rows = RowDecoder(model, checkpoint, 2)
    padded = np.zeros(rows.chunk, np.int32)
    padded[-6:] = TOKENS[1, :6]
    read = rows.read(3, padded, 0, rows.chunk - 6)
    np.testing.assert_allclose(read, expected[1, 5], atol=1e-4)
    fed, position = np.full(rows.rows, TOKENS[1, 6], np.int32), np.full(rows.rows, rows.chunk, np.int32)
    start = np.full(rows.rows, rows.chunk - 6, np.int32)
    np.testing.assert_allclose(rows.step(fed, position, start)[3], expected[1, 6], atol=1e-4)
    assert all(len(rows.attention_inputs([1, 2, 3], layer)[0]) == 3 for layer in network.attention_layers(model))
    saved = os.path.join(folder, "saved")
    assert export_saved_model(model, checkpoint, saved, 2) == []
    with tf.Graph().as_default(), tf.Session() as session:
        signature = tf.saved_model.load(session, ["serve"], saved).signature_def["serving_default"]
        given = {"tokens": TOKENS[:, :6], "lengths": [6, 6], "max_tokens": 1, "temperature": 0, "top_k": 0}
        given |= {"top_p": 1, "seed": 1}
        feeds = {signature.inputs[name].name: value for name, value in given.items()}
        new = session.run(signature.outputs["tokens"].name, feeds)
    np.testing.assert_array_equal(new[:, 0], expected[:, 5].argmax(-1))
    kept = export_predict_step(dataclasses.replace(make_run({}), model=model), 2).description["kept"]
    shapes = [f"gpt2/h{i}/attn/{c.name}" for i, kind in enumerate(network.kinds_of(model)) for c in kind.caches(model)]
    assert kept == ["logits", *shapes]


# An activation with a learned number.


def test_activation(monkeypatch, tmp_path):
    monkeypatch.setitem(names.ACTIVATIONS, "cube", {"scale": 0.5})
    monkeypatch.setitem(activations.LEARNED, "cube", lambda x, v: v["scale"] * x * x * x)
    run = make_run({"activation_function": "cube", "lr": 0.01})
    learned = variables_of(run.model)["gpt2/h1/mlp/activation/scale"]
    assert learned.shape == () and learned.value == 0.5
    losses, built = losses_of(run)
    assert losses[2] < losses[0] and built["gpt2/h0/mlp/activation/scale"] == []
    assert presence_keys("gpt2/h0/mlp/activation/scale") == ["activation_function"]
    with pytest.raises(CheckpointError, match="activation_function is 'cube'; the model file of --custom_code knows"):
        own_pairs(run.model)
    with pytest.raises(CheckpointError, match="no model for this config: activation_.*; nor has --custom_code: a"):
        in_their_words(Recast(run.model, run.model), custom_code=False)
    monkeypatch.setitem(names.ACTIVATIONS, "flat", {})
    monkeypatch.setitem(activations.PLAIN, "flat", lambda x: x * 0.0)
    flat = make_run({"activation_function": "flat"}).model
    checkpoint = save_random(flat, str(tmp_path))
    logits = uncached(flat, checkpoint, TOKENS[:1])
    assert np.isfinite(logits).all()


# An optimizer with a slot of its own.


class Momentum:
    """m <- b1 m + g;  w <- w - rate m."""

    def __init__(self, mesh, rate, step, config):
        self.rate, self.config = scalar(mesh, rate), config

    def update(self, variable, role, grad, decay, partition, after):
        m, grad = slot(variable, "/momentum_m", variable.shape), wait(grad, after)
        new = self.config.beta1 * m + grad
        return [mtf.assign(variable, variable.value - self.rate * new), mtf.assign(m, new)]


def renamed_checkpoint(path, other):
    """The same under another name: of another step. Returns that."""
    for suffix in (".index", ".data-00000-of-00001"):
        os.rename(path + suffix, other + suffix)
    return other


def test_optimizer(monkeypatch, tmp_path):
    monkeypatch.setitem(optimizers.OPTIMIZERS, "momentum", {"/momentum_m": optimizers.whole})
    monkeypatch.setitem(build.OPTIMIZERS, "momentum", Momentum)
    run = make_run({"opt_name": "momentum", "lr": 0.01, "gradient_clipping": None, "weight_decay": 0.0})
    assert is_slot("gpt2/wte/momentum_m") and not is_slot("gpt2/wte")
    assert slot_bytes(run.model, run.optimizer) == training_memory(run).slots == 4 * count_parameters(run.model)
    losses, built = losses_of(run)
    assert losses[2] < losses[1] < losses[0]
    assert {n for n in built if is_slot(n)} == {f"{n}/momentum_m" for n in variables_of(run.model)}
    # a checkpoint without them is one to go on from, with a note
    checkpoint = renamed_checkpoint(save_random(run.model, str(tmp_path)), str(tmp_path / "model.ckpt-5"))
    notes = fit_checkpoint(checkpoint, {n: s for n, s in built.items() if n != "global_step"}).notes
    assert notes == (f"{len(variables_of(run.model))} optimizer slots are missing: they start at 0",)


# An encoding of positions: sines that are added to the embedding, without a variable.


def sine_table(n_ctx, width):
    angles = np.arange(n_ctx)[:, None] / 100.0 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def sine_rows(numbers, p, dims, config):
    shape = mtf.Shape([dims.embed_sequence, dims.embd])
    table = mtf.import_tf_tensor(p.mesh, tf.constant(sine_table(config.n_ctx, config.n_embd)), shape)
    if numbers is None:
        return positions.first_rows(table, dims)
    return mtf.gather(table, numbers, dims.embed_sequence)


def test_positions(monkeypatch, tmp_path):
    monkeypatch.setitem(network.POSITIONS, "sine", network.PositionEncoding("sines of the position"))
    monkeypatch.setitem(positions.ENCODINGS, "sine", positions.Encoding(rows=sine_rows))
    layer = {"n_layer": 1, "attention_types": ["global"]}
    run = make_run({**layer, "position_encoding": "sine", "lr": 0.01})
    model = run.model
    assert model.positions == "sine" and "gpt2/wpe" not in variables_of(model)
    losses, _ = losses_of(run)
    assert losses[2] < losses[0]
    # against a model that learned the very table
    learned = make_run(layer).model
    os.makedirs(tmp_path / "sine"), os.makedirs(tmp_path / "learned")
    values = {}

    def choose(name, shape):
        values.setdefault(name, np.random.RandomState(len(values)).normal(0, 0.3, shape))
        return sine_table(model.n_ctx, model.n_embd) if name == "gpt2/wpe" else values[name]

    ours = save_weights(model, str(tmp_path / "sine"), choose)
    theirs = save_weights(learned, str(tmp_path / "learned"), choose)
    np.testing.assert_allclose(uncached(model, ours, TOKENS), uncached(learned, theirs, TOKENS), atol=1e-5)
    check_decoding(model, str(tmp_path))
    assert family_of(model)[0] is None
    with pytest.raises(CheckpointError, match="position_encoding is 'sine'; the model file of --custom_code knows"):
        own_pairs(model)


# A reader of documents: one between every two lines of dashes.


def test_reader(monkeypatch, tmp_path):
    def dashed_items(path, stream, rules):
        for number, text in enumerate(stream.read().decode().split("---\n"), 1):
            yield streams.Item(path, text, number, "part")

    monkeypatch.setitem(readers.SUFFIXES, "dashed", (".dash",))
    monkeypatch.setitem(streams.STREAMED, "dashed", dashed_items)
    path = tmp_path / "x.dash"
    path.write_text("one\n---\ntwo\n")
    assert readers.kind_of(str(path)) == ("dashed", "") and ".dash" in readers.supported()
    assert list(read_documents([str(path)])) == ["one\n", "two\n"]


def test_a_forward_pass_runs_through_eight_files():
    model, files = make_run({"res_dropout": 0.1}).model, set()

    def note(frame, event, arg):
        path = frame.f_code.co_filename
        if os.path.dirname(transformer.__file__) in path:
            files.add(os.path.relpath(path, os.path.dirname(transformer.__file__)))

    with tf.Graph().as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        dims = make_dims(model, 2)
        step, rows = mtf.constant(mesh, 0, dtype=tf.int32), mtf.range(mesh, dims.batch, tf.int32)
        context = Context(is_training=True, randomness=RandomSource(1, step, rows))
        tokens = mtf.import_tf_tensor(mesh, tf.zeros([2, model.n_ctx], tf.int32), dims.tokens)
        sys.setprofile(note)
        try:
            transformer.transformer(tokens, dims, model, context)
        finally:
            sys.setprofile(None)
    assert len(files | {"dims.py"}) <= 8, files
