"""Mixture of experts against NumPy, and decoding against whole sequences. Meshes: tests/optim/test_spread.py."""

import numpy as np
import pytest

from gpt_neo.config.network import expert_variables
from gpt_neo.config.schema import ModelConfig, MoeConfig
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.moe import group_size, mixture_of_experts
from gpt_neo.mtf_compat import lower_locally, mtf, tf
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
                    threshold = moe.moe_second_threshold_train
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


def run(config, training, monkeypatch, grad_of=None):
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
        out, loss = mixture_of_experts(x, p, dims, config, Context(is_training=training, randomness="drawn above"))
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
        "moe_second_threshold_eval": 0.3,
        "moe_second_policy_eval": "threshold",
    },
    {"moe_second_policy_train": "none", "moe_min_expert_capacity": 3},
    {
        "moe_second_policy_train": "random",
        "moe_second_threshold_train": 0.5,
        "moe_second_threshold_eval": 0.5,
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
