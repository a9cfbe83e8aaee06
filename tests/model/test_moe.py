"""Mixture of experts against NumPy, and decoding against whole sequences. Meshes: tests/optim/test_spread.py."""

import dataclasses
import importlib.util
import itertools
import os
import sys
import types

import numpy as np
import pytest

from gpt_neo.config.network import expert_variables
from gpt_neo.config.schema import ModelConfig, MoeConfig
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.moe import ExpertDims, gating, group_count, group_size, mixture_of_experts
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.ops.dropout import RandomSource
from gpt_neo.runtime.predict_step import Sampler
from tests.model.tools import forward, parameters, save_random, uncached

WIDTH, EXPERTS, HIDDEN, LENGTH, BATCH = 6, 4, 5, 12, 2
X = np.random.RandomState(0).normal(size=(BATCH, LENGTH, WIDTH))
WEIGHTS = {
    "top_2_gating/kernel": np.random.RandomState(1).normal(size=(WIDTH, EXPERTS)),
    "wi/kernel": np.random.RandomState(2).normal(size=(EXPERTS, WIDTH, HIDDEN)),
    "wo/kernel": np.random.RandomState(3).normal(size=(EXPERTS, HIDDEN, WIDTH)),
}
DRAWS = np.random.RandomState(4).uniform(size=(BATCH, 3, 4))


def make_config(**options):
    moe = MoeConfig(**{"moe_num_experts": EXPERTS, "moe_hidden_size": HIDDEN, "moe_group_size": 4, **options})
    return ModelConfig(n_head=2, n_embd=WIDTH, n_layer=1, n_vocab=8, n_ctx=LENGTH, moe_layers=(0,), moe_params=moe)


def reference(x, weights, moe, training):
    """Token by token in float64: outputs, loss, and how many choices found no place."""
    groups = x.reshape(-1, moe.moe_group_size, WIDTH)
    places = max(
        moe.moe_min_expert_capacity,
        min(moe.moe_group_size, int(moe.moe_group_size * moe.moe_capacity_factor_train / EXPERTS)),
    )
    out, losses, dropped = np.zeros_like(groups), [], 0
    for g, tokens in enumerate(groups):
        logits = tokens @ weights["top_2_gating/kernel"]
        gates = np.exp(logits - logits.max(-1, keepdims=True))
        gates /= gates.sum(-1, keepdims=True)
        order = np.argsort(-gates, axis=-1)
        first = np.bincount(order[:, 0], minlength=EXPERTS) / len(tokens)
        loss = EXPERTS * (first * gates.mean(0)).sum()
        if moe.moe_use_second_place_loss:
            rest = gates * (np.arange(EXPERTS) != order[:, :1])
            second = np.bincount(order[:, 1], minlength=EXPERTS) / len(tokens)
            loss += 0.5 * EXPERTS * (second * (rest / rest.sum(-1, keepdims=True)).mean(0)).sum()
        losses.append(loss)
        used = [0] * EXPERTS
        for rank in (0, 1):
            counted = list(used)
            for t, token in enumerate(tokens):
                expert, pair = order[t, rank], gates[t, order[t, :2]]
                gate = pair[rank] / pair.sum()
                weight = 1.0
                if rank == 1:
                    policy = moe.moe_second_policy_train if training else moe.moe_second_policy_eval
                    threshold = moe.moe_second_threshold_train if training else moe.moe_second_threshold_eval
                    chance = min(1.0, gate / threshold)
                    if policy == "random":
                        weight = float(DRAWS.reshape(-1, moe.moe_group_size)[g, t] < chance) if training else chance
                    else:
                        weight = {"all": 1.0, "none": 0.0, "threshold": float(gate > threshold)}[policy]
                    if weight == 0:
                        continue
                counted[expert] += 1
                if training and counted[expert] > places:
                    dropped += 1
                    continue
                used[expert] += 1
                hidden = np.maximum(token @ weights["wi/kernel"][expert], 0)
                out[g, t] += weight * gate * (hidden @ weights["wo/kernel"][expert])
    return out.reshape(x.shape), np.mean(losses) * moe.moe_loss_coef, dropped


def legacy_evaluation(x, weights, moe):
    """What the legacy program evaluated, in float64: groups over the whole batch, and choices without a place."""
    tokens = x.reshape(-1, WIDTH)
    count = max(1, len(tokens) // moe.moe_group_size)
    while len(tokens) % count:
        count += 1
    size = len(tokens) // count
    places = max(moe.moe_min_expert_capacity, min(size, int(size * moe.moe_capacity_factor_eval / EXPERTS)))
    out, dropped = np.zeros_like(tokens), 0
    for begin in range(0, len(tokens), size):
        logits = tokens[begin : begin + size] @ weights["top_2_gating/kernel"]
        gates = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        order = np.argsort(-gates, axis=-1)[:, :2]
        pair = np.take_along_axis(gates, order, -1)
        pair /= pair.sum(-1, keepdims=True)
        chance = np.minimum(1.0, pair[:, 1] / moe.moe_second_threshold_eval)
        above = (pair[:, 1] > moe.moe_second_threshold_eval).astype(float)
        ones = np.ones(size)
        share = {"all": ones, "none": 0 * ones, "threshold": above, "random": chance}[moe.moe_second_policy_eval]
        kept = np.zeros(EXPERTS, int)
        for rank, weight in ((0, ones), (1, share)):
            queue = kept.copy()  # second choices stand behind the first ones that have a place
            for t in range(size):
                expert = order[t, rank]
                if weight[t] == 0:
                    continue
                queue[expert] += 1
                if queue[expert] > places:
                    dropped += 1
                    continue
                kept[expert] += 1
                hidden = np.maximum(tokens[begin + t] @ weights["wi/kernel"][expert], 0)
                out[begin + t] += pair[t, rank] * weight[t] * (hidden @ weights["wo/kernel"][expert])
    return out.reshape(x.shape), dropped


@pytest.fixture(scope="module")
def library():
    """Mesh-TensorFlow's module of mixtures, without the packages that others beside it need."""
    above, beside = (types.ModuleType(name) for name in ("transformer", "transformer.transformer"))
    above.transformer, beside.TransformerLayer = beside, object
    path = os.path.join(os.path.dirname(mtf.__file__), "transformer", "moe.py")
    spec = importlib.util.spec_from_file_location("library_moe", path)
    library = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mesh_tensorflow.transformer", above)
        spec.loader.exec_module(library)
    return library


def library_evaluation(moe, library):
    """The same by Mesh-TensorFlow's own layer, which the legacy program called."""
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = [mtf.Dimension("batch", BATCH), mtf.Dimension("sequence", LENGTH), mtf.Dimension("embd", WIDTH)]
        x = mtf.import_tf_tensor(mesh, tf.constant(X, tf.float32), mtf.Shape(shape))
        params = library.HParams()
        library.set_default_moe_hparams(params)
        for name, value in {**vars(moe), "moe_word_embed_mode": None, "moe_use_experts_attention": False}.items():
            params.add_hparam(name, value)
        out, _ = library.transformer_moe_layer_v1(
            x, shape[-1], params, train=False, variable_dtype=mtf.VariableDType(tf.float32), layout="", mesh_shape=""
        )
        lowering = lower_locally(graph, mesh)
        session.run(tf.global_variables_initializer())
        for variable in tf.global_variables():
            if variable.op.name in WEIGHTS:
                variable.load(WEIGHTS[variable.op.name], session)
        return session.run(lowering.export_to_tf_tensor(out))


def run(config, training, monkeypatch, grad_of=None, in_places=False):
    """Output, loss and gradients of sum(output * grad_of) + loss with respect to x and the weights."""
    monkeypatch.setattr(
        "gpt_neo.model.moe.uniform_like",
        lambda x, source: mtf.import_tf_tensor(x.mesh, tf.constant(DRAWS, tf.float32), x.shape),
    )
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(config, BATCH, LENGTH)
        shape = mtf.Shape([dims.batch, dims.sequence, dims.embd])
        x = mtf.import_tf_tensor(mesh, tf.constant(X, tf.float32), shape)
        p = parameters(mesh, expert_variables(config), "moe")
        step = mtf.import_tf_tensor(mesh, tf.constant(3), mtf.Shape([]))
        source = RandomSource(1, step, mtf.import_tf_tensor(mesh, tf.range(BATCH), mtf.Shape([dims.batch])))
        context = Context(is_training=training, randomness=source, in_places=in_places)
        out, loss = mixture_of_experts(x, p, dims, config, context)
        wanted = [out] if loss is None else [out, loss]
        if grad_of is not None:
            direction = mtf.import_tf_tensor(mesh, tf.constant(grad_of, tf.float32), shape)
            total = mtf.reduce_sum(out * direction) + loss
            wanted += mtf.gradients([total], [x] + [v.outputs[0] for v in graph.trainable_variables])
        lowering = lower_locally(graph, mesh)
        names = [v.name.removeprefix("moe/") for v in graph.trainable_variables]
        assert sorted(names) == sorted(WEIGHTS)
        session.run(tf.global_variables_initializer())
        for variable in tf.global_variables():
            name = variable.op.name.removeprefix("moe/")
            if name in WEIGHTS:
                variable.load(WEIGHTS[name], session)
        return session.run([lowering.export_to_tf_tensor(t) for t in wanted]), names


CASES = [
    {"moe_second_policy_train": "all", "moe_second_policy_eval": "all"},
    {"moe_second_policy_train": "all", "moe_capacity_factor_train": 4.0, "moe_second_policy_eval": "none"},
    {
        "moe_second_policy_train": "threshold",
        "moe_second_threshold_train": 0.3,
        "moe_second_threshold_eval": 0.4,
        "moe_second_policy_eval": "threshold",
    },
    {"moe_second_policy_train": "none", "moe_min_expert_capacity": 3},
    {
        "moe_second_policy_train": "random",
        "moe_second_threshold_train": 0.5,
        "moe_second_threshold_eval": 0.6,
        "moe_capacity_factor_train": 2.0,
    },
    {"moe_use_second_place_loss": True, "moe_loss_coef": 0.3, "moe_capacity_factor_train": 2.0},
]


@pytest.mark.parametrize("options", CASES, ids=range(len(CASES)))
def test_equals_numpy(options, monkeypatch):
    config = make_config(**options)
    expected, expected_loss, dropped = reference(X, WEIGHTS, config.moe_params, True)
    (out, loss), _ = run(config, True, monkeypatch)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert (dropped > 0) == (
        options.get("moe_capacity_factor_train", 0) < 4 and "moe_min_expert_capacity" not in options
    )
    (out,), _ = run(config, False, monkeypatch)
    expected, _, dropped = reference(X, WEIGHTS, config.moe_params, False)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert dropped == 0


EVALUATED = [
    {"moe_second_policy_eval": "all"},
    {"moe_second_policy_eval": "all", "moe_group_size": 1024},
    {"moe_second_policy_eval": "threshold", "moe_second_threshold_eval": 0.3, "moe_group_size": 1024},
    {"moe_second_policy_eval": "none", "moe_group_size": 7, "moe_capacity_factor_eval": 1.0},
    {
        "moe_second_policy_eval": "all",
        "moe_group_size": 12,
        "moe_min_expert_capacity": 2,
        "moe_capacity_factor_eval": 0,
    },
    {"moe_second_policy_eval": "random", "moe_second_threshold_eval": 0.5, "moe_group_size": 1024},
]


@pytest.mark.parametrize("options", EVALUATED, ids=range(len(EVALUATED)))
def test_evaluation_in_places_equals_numpy_and_the_library(options, library, monkeypatch):
    config = make_config(**{"moe_capacity_factor_eval": 1.25, **options})
    expected, dropped = legacy_evaluation(X, WEIGHTS, config.moe_params)
    (out,), _ = run(config, False, monkeypatch, in_places=True)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert dropped > 0
    if options["moe_second_policy_eval"] != "random":  # the library draws there
        np.testing.assert_allclose(out, library_evaluation(config.moe_params, library), atol=1e-5)


def test_places_in_evaluation_are_for_those_who_ask(monkeypatch):
    plain, asking = make_config(), make_config(moe_capacity_factor_eval=1.0)
    (whole,), _ = run(plain, False, monkeypatch)
    for config, in_places in ((plain, True), (asking, False)):
        (out,), _ = run(config, False, monkeypatch, in_places=in_places)
        np.testing.assert_array_equal(out, whole)
    (out,), _ = run(asking, False, monkeypatch, in_places=True)
    assert np.abs(out - whole).max() > 0.1
    assert [group_count(*pair) for pair in ((24, 1024), (4096, 1024), (24, 7), (7, 4))] == [1, 4, 3, 1]


def test_dropout_inside_experts(monkeypatch):
    """An output is a sum over what is kept inside the expert, scaled; which it is decides a draw per token and unit."""
    rate, options = 0.4, {"moe_second_policy_train": "none", "moe_capacity_factor_train": 4.0}
    (out, loss), _ = run(make_config(**options, moe_dropout_rate=rate), True, monkeypatch)
    (plain, same_loss), _ = run(make_config(**options), True, monkeypatch)
    np.testing.assert_array_equal(loss, same_loss)
    gates = np.exp(X @ WEIGHTS["top_2_gating/kernel"])
    kept = []
    for at in np.ndindex(BATCH, LENGTH):
        ends = np.sort(gates[at])[-2:]
        expert, gate = gates[at].argmax(), ends[1] / ends.sum()
        parts = gate * np.maximum(X[at] @ WEIGHTS["wi/kernel"][expert], 0)[:, None] * WEIGHTS["wo/kernel"][expert]
        np.testing.assert_allclose(plain[at], parts.sum(0), atol=1e-5)
        active = [unit for unit in range(HIDDEN) if np.abs(parts[unit]).max() > 0]
        masks = itertools.product((0, 1), repeat=len(active))
        errors = {mask: np.abs(np.dot(mask, parts[active]) / (1 - rate) - out[at]).max() for mask in masks}
        best = min(errors, key=errors.get)
        assert errors[best] < 1e-5
        kept += best
    assert len(kept) > 40 and 0.4 < np.mean(kept) < 0.8
    (again,), _ = run(make_config(**options, moe_dropout_rate=rate), False, monkeypatch)
    (nothing,), _ = run(make_config(**options), False, monkeypatch)
    np.testing.assert_array_equal(again, nothing)


def test_gradients_equal_differences(monkeypatch):
    config = make_config(**CASES[-1], moe_second_policy_train="all")
    direction = np.random.RandomState(5).normal(size=X.shape)
    (_, _, *grads), names = run(config, True, monkeypatch, direction)
    values = {"x": X, **{name: WEIGHTS[name] for name in names}}

    def total(changed):
        out, loss, _ = reference(changed["x"], changed, config.moe_params, True)
        return (out * direction).sum() + loss

    for name, grad in zip(values, grads):
        rng = np.random.RandomState(6)
        for _ in range(12):
            at = tuple(rng.randint(size) for size in grad.shape)
            ends = []
            for step in (1e-6, -1e-6):
                moved = {key: np.array(value) for key, value in values.items()}
                moved[name][at] += step
                ends.append(total(moved))
            np.testing.assert_allclose(grad[at], (ends[0] - ends[1]) / 2e-6, atol=2e-4, rtol=1e-3, err_msg=name)


def test_near_ties_are_told_apart_whatever_the_precision():
    """Logits of 8 and 8 + 2^-7, which are one number in bfloat16."""
    config = dataclasses.replace(make_config(), precision="bfloat16")
    token = [8.0, 2.0**-4, *[0.0] * (WIDTH - 2)]
    kernel = np.zeros([WIDTH, EXPERTS])
    kernel[0], kernel[1] = [1.0, 1.0, 0.0, 0.0], [0.0, 2.0**-3, 0.0, 0.0]
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = make_dims(config, 1, 1)
        shape = mtf.Shape([dims.batch, dims.sequence, dims.embd])
        x = mtf.import_tf_tensor(mesh, tf.constant([[token]], tf.bfloat16), shape)
        p = dataclasses.replace(parameters(mesh, expert_variables(config), "moe"), dtype=tf.bfloat16)
        first, second, _ = gating(x, p, ExpertDims.of(config.moe_params, dims), dims, config, None)
        lowering = lower_locally(graph, mesh)
        session.run(tf.global_variables_initializer())
        (variable,) = tf.global_variables()
        variable.load(tf.constant(kernel, tf.bfloat16).eval(session=session), session)
        chosen, *gates = session.run([lowering.export_to_tf_tensor(t) for t in (first.mask, first.gate, second.gate)])
    assert chosen.ravel().tolist() == [0, 1, 0, 0]
    share = 1 / (1 + np.exp(-(2.0**-7)))
    np.testing.assert_allclose(np.ravel(gates), [share, 1 - share], rtol=1e-6)


def test_groups_divide_a_sequence():
    assert [group_size(*pair) for pair in ((2048, 1024), (512, 1024), (12, 5), (7, 4))] == [1024, 512, 4, 1]


def model(**changes):
    moe = MoeConfig(moe_num_experts=4, moe_hidden_size=24, **changes)
    return ModelConfig(
        n_head=2,
        n_embd=16,
        n_layer=2,
        n_vocab=48,
        n_ctx=40,
        attention_types=("global", "local"),
        local_attention_radius=8,
        moe_layers=(1,),
        moe_params=moe,
    )


def test_legacy_names_and_shapes():
    with tf.Graph().as_default():
        forward(tf.zeros([1, 40], tf.int32), model())
        found = {v.op.name: v.shape.as_list() for v in tf.global_variables() if "/h1/" in v.op.name}
    norms = {f"gpt2/h1/norm_{i}/{name}": [16] for i in (1, 2) for name in "gb"}
    attention = {f"gpt2/h1/attn/{name}": [16, 16] for name in "qkvo"}
    assert found == {
        **norms,
        **attention,
        "gpt2/h1/attn/compute_output_bias/o_b": [16],
        "gpt2/h1/top_2_gating/kernel": [16, 4],
        "gpt2/h1/wi/kernel": [4, 16, 24],
        "gpt2/h1/wo/kernel": [4, 24, 16],
    }


def test_decoding_equals_teacher_forcing(tmp_path):
    config = model(moe_second_threshold_eval=0.4)
    checkpoint = save_random(config, str(tmp_path))
    tokens = np.random.RandomState(1).randint(0, 48, [2, 40]).astype(np.int32)
    expected = uncached(config, checkpoint, tokens)
    sampler = Sampler(config, checkpoint, batch_size=2)
    logits, slot, start = sampler.prefill([row[:9] for row in tokens])
    np.testing.assert_allclose(logits, expected[:, 8], atol=1e-4, rtol=1e-4)
    for at in range(9, 40):
        logits = sampler.run(tokens[:, at : at + 1], slot + at - 9, start)
        np.testing.assert_allclose(logits, expected[:, at], atol=1e-4, rtol=1e-4)
