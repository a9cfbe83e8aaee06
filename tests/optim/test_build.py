"""Lion against NumPy; clipping; which variables decay; how slots are split."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.errors import ConfigError
from gpt_neo.model.trained import Partition
from gpt_neo.mtf_compat import mtf
from gpt_neo.optim.build import weight_decay
from tests.config.test_loader import write
from tests.optim.common import GRADS, START, train

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
