"""Lion against NumPy; clipping; which variables decay; how slots are split."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.errors import ConfigError
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.ops.trained import Partition
from gpt_neo.optim.build import optimizer_updates, weight_decay
from tests.config.test_loader import write
from tests.optim.common import GRADS, START, train, train_with

LION = OptimizerConfig(lr=0.01, opt_name="lion", beta1=0.9, beta2=0.99, weight_decay=0.5)


def test_lion_equals_numpy():
    value, m = START.astype(np.float64), np.zeros(6)
    for grad in GRADS.astype(np.float64):
        value = value - 0.01 * (np.sign(0.9 * m + 0.1 * grad) + 0.5 * value)
        m = 0.99 * m + 0.01 * grad
    got = train("q", LION)
    np.testing.assert_allclose(got["q"], value, rtol=1e-5)
    np.testing.assert_allclose(got["q/lion_m"], m, rtol=1e-5)
    assert set(got) == {"q", "q/lion_m"}


def test_clipping():
    limit = float(np.linalg.norm(GRADS, axis=1).mean())  # some steps are clipped and others are not
    scaled = np.array([grad * min(1.0, limit / np.linalg.norm(grad)) for grad in GRADS])
    config = dataclasses.replace(LION, opt_name="adam")
    got = train("q", dataclasses.replace(config, gradient_clipping=limit))
    np.testing.assert_allclose(got["q"], train("q", config, grads=scaled)["q"], rtol=1e-6)
    assert np.abs(got["q"] - train("q", config)["q"]).max() > 1e-6


NAMES_OF_OPTIMIZERS = ["adam", "adamw", "adafactor", "lion", "muon"]
MATRICES = np.random.RandomState(3).normal(size=(5, 2, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "opt_name, role, in_place",
    [
        ("adam", "bias", True),
        ("adamw", "bias", False),
        ("adafactor", "bias", False),
        ("lion", "bias", False),
        ("muon", "matrix", False),
    ],
)
def test_the_rate_is_that_of_the_schedule(opt_name, role, in_place):
    """Of steps and of decay alike: `lr` of the config is the peak of the schedule, not the rate of a step."""
    config = dataclasses.replace(LION, opt_name=opt_name, ada_epsilon1=1e-20, lr=0.01)
    start, partition = START.reshape(2, 3), Partition(in_place=in_place)

    def updates(variable, grad, step):
        peak = dataclasses.replace(config, lr=5.0)
        return optimizer_updates([variable], {"q": role}, [grad], tf.constant(0.01), step, peak, partition)

    got = train_with(updates, "q", start, MATRICES)
    expected = train("q", config, start, MATRICES, partition=partition, role=role)
    for variable, value in expected.items():
        np.testing.assert_array_equal(got[variable], value, err_msg=variable)


def of_two(config, factor):
    """Updates of a variable and of a second one, `b`, whose gradient is `factor` times as large."""

    def updates(variable, grad, step):
        other = mtf.get_variable(grad.mesh, "b", variable.shape, initializer=tf.constant_initializer(START))
        both, roles = [variable, other.operation], {"a": "bias", "b": "bias"}
        return optimizer_updates(both, roles, [grad, grad * factor], tf.constant(0.01), step, config, Partition())

    return updates


@pytest.mark.parametrize("opt_name", NAMES_OF_OPTIMIZERS)
def test_clipping_is_to_the_norm_of_all_gradients(opt_name):
    grads = GRADS * 1e-5
    norms = np.linalg.norm(grads.astype(np.float64), axis=1) * np.sqrt(1 + 2.0**2)
    limit = float(norms.mean())
    scaled = (grads * np.minimum(1.0, limit / norms)[:, None]).astype(np.float32)
    config = dataclasses.replace(LION, opt_name=opt_name, ada_epsilon1=1e-20)
    got = train_with(of_two(dataclasses.replace(config, gradient_clipping=limit), 2.0), "a", START, grads)
    expected = train_with(of_two(config, 2.0), "a", START, scaled)
    for variable, value in expected.items():
        np.testing.assert_allclose(got[variable], value, rtol=2e-5, err_msg=variable)
    plain = train_with(of_two(config, 2.0), "a", START, grads)
    assert any(np.abs(plain[v] / expected[v] - 1).max() > 1e-3 for v in expected)


def ancestors(tensors):
    """Every TensorFlow operation that these wait for."""
    found, left = set(), [t if isinstance(t, tf.Operation) else t.op for t in tensors]
    while left:
        op = left.pop()
        if op not in found:
            found.add(op)
            left += [x.op for x in op.inputs] + list(op.control_inputs)
    return found


@pytest.mark.parametrize("opt_name", NAMES_OF_OPTIMIZERS)
def test_no_weight_changes_before_every_gradient_is_there(opt_name):
    """And updates follow one another, so that one at a time has temporary tensors."""
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = mtf.Shape([mtf.Dimension("d", 6)])
        fed = [tf.placeholder(tf.float32, [6], name=f"grad_{name}") for name in "ab"]
        variables = [mtf.get_variable(mesh, name, shape).operation for name in "ab"]
        grads = [mtf.import_tf_tensor(mesh, x, shape) for x in fed]
        config = dataclasses.replace(LION, opt_name=opt_name)
        roles = {"a": "bias", "b": "bias"}
        made = optimizer_updates(variables, roles, grads, tf.constant(0.1), tf.constant(0), config, Partition())
        lowering = lower_locally(graph, mesh)
        writes = [
            {op for op in ancestors([lowering.lowered_operation(update)]) if op.type.startswith(("Assign", "Resource"))}
            for update in made
        ]
        for update in made:
            before = ancestors([lowering.lowered_operation(update)])
            assert {x.op for x in fed} <= before, update
        assert writes[0] <= writes[-1] and len(writes[0]) < len(writes[-1])


NAMES = [
    "gpt2/wte",
    "gpt2/h0/norm_1/g",
    "gpt2/h0/attn/compute_output_bias/o_b",
    "gpt2/ln_f/b",
    "gpt2/h0/mlp/conv1d_main/c_fc/bias",
    "gpt2/h0/wi/kernel",
    "gpt2/h0/norm_rezero_1/g",
]


@pytest.mark.parametrize(
    "rules, expected",
    [
        (None, [0.1, 0, 0, 0.1, 0, 0.1, 0]),  # as the legacy program had it
        ([], [0.1] * 7),
        ([["kernel$", 0.3], ["ln_f|norm|bias", "0"]], [0.1, 0, 0, 0, 0, 0.3, 0]),
        ([["^gpt2/h0/", 0.2], ["bias", 0.0], ["", 0.05]], [0.05, 0.2, 0.2, 0.05, 0.2, 0.2, 0.2]),
    ],
)
def test_the_first_rule_that_matches_counts(rules, expected, tmp_path):
    config = load_config(write(tmp_path, {"weight_decay": 0.1, "weight_decay_rules": rules})).optimizer
    assert [weight_decay(name, config) for name in NAMES] == expected


@pytest.mark.parametrize(
    "rules, message",
    [
        ("bias", "expected a list of [pattern, decay] pairs"),
        ([["bias"]], "entry ['bias']; expected [pattern, decay]"),
        ([["(", 0.1]], "'(', not a regular expression"),
        ([["bias", -1]], "the decay -1.0; expected at least 0"),
        ([["bias", "much"]], "key 'decay of bias' is 'much'; expected a finite number"),
    ],
)
def test_wrong_rules_are_named(rules, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, {"weight_decay_rules": rules}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "dims, expected",
    [
        ([("vocab", 50257), ("embd", 64)], "embd"),  # 50257 does not divide
        ([("embd", 64), ("intermediate_expanded", 256)], "embd"),
        ([("heads", 8), ("embd", 64)], "embd"),  # heads are split over y
        ([("experts", 8), ("embd", 64)], None),  # split over x as it is
        ([("embd", 6)], None),
        ([], None),
    ],
)
def test_which_dimension_of_a_slot_is_split(dims, expected):
    layout = Partition((("x", 4), ("y", 2)), (("batch", "x"), ("slots", "x"), ("heads", "y"), ("experts", "x")))
    shape = mtf.Shape([mtf.Dimension(*pair) for pair in dims])
    dim = layout.dimension(shape)
    assert (dim and dim.name) == expected
    assert [d.name for d in layout.shape(shape).dims] == ["slots" if n == expected else n for n, _ in dims]
    assert Partition().dimension(shape) is None
