"""Adafactor against Mesh-TF's optimizer of that name and against NumPy."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import mtf, tf
from tests.config.test_loader import write
from tests.model.tools import rates_at
from tests.optim.common import train, train_with

CONFIG = OptimizerConfig(lr=0.02, opt_name="adafactor", beta1=0.0, ada_epsilon1=1e-20, ada_epsilon2=1e-2)
SHAPES = {"vector": (6,), "small matrix": (16, 130), "matrix": (128, 140), "experts": (3, 132, 128)}
SLOTS = {
    "vector": {"_slot_v": (6,)},
    "small matrix": {"_slot_v": (16, 130)},
    "matrix": {"_slot_vr": (128,), "_slot_vc": (140,)},
    "experts": {"_slot_vr": (3, 128), "_slot_vc": (3, 132)},
}


def data(shape):
    rng = np.random.RandomState(0)
    return rng.normal(0, 0.1, shape).astype(np.float32), rng.normal(size=(4, *shape)).astype(np.float32)


def mesh_tf(start, grads, config, decay_rate=None):
    def updates(variable, grad, step):
        memory = 1.0 - (tf.cast(step, tf.float32) + 1.0) ** -0.8 if decay_rate is None else decay_rate
        optimizer = mtf.optimize.AdafactorOptimizer(
            learning_rate=config.lr,
            decay_rate=memory,
            beta1=config.beta1,
            epsilon1=config.ada_epsilon1,
            epsilon2=config.ada_epsilon2,
        )
        return optimizer.apply_grads([grad], [variable])

    return train_with(updates, "w", start, grads)


def numpy_adafactor(value, grads, config, decay=0.0):
    value, grads = value.astype(np.float64), grads.astype(np.float64)
    order = np.argsort([-size for size in value.shape], kind="stable")
    factored = value.ndim > 1 and value.shape[order[1]] >= 128
    moments, m = [0.0, 0.0], 0.0
    for t, grad in enumerate(grads, 1):
        keep = 1 - t**-0.8
        squares = grad**2 + config.ada_epsilon1
        if factored:
            for i in (0, 1):
                moments[i] = keep * moments[i] + (1 - keep) * squares.mean(order[i], keepdims=True)
            v = moments[0] * moments[1] / moments[0].mean(order[1], keepdims=True)
        else:
            moments[0] = keep * moments[0] + (1 - keep) * squares
            v = moments[0]
        step = grad / np.sqrt(v)
        step /= max(1.0, np.sqrt(np.mean(step**2)))
        step *= max(config.ada_epsilon2, np.sqrt(np.mean(value**2))) * config.lr
        m = config.beta1 * m + (1 - config.beta1) * step
        value = value - m - config.lr * decay * value
    return value


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_equals_mesh_tensorflow_and_numpy(name, beta1):
    start, grads = data(SHAPES[name])
    config = dataclasses.replace(CONFIG, beta1=beta1)
    got, expected = train("w", config, start, grads), mesh_tf(start, grads, config)
    assert set(got) == set(expected)
    for variable in expected:
        np.testing.assert_allclose(got[variable], expected[variable], rtol=1e-5, atol=1e-7, err_msg=variable)
    np.testing.assert_allclose(got["w"], numpy_adafactor(start, grads, config), rtol=1e-4, atol=1e-6)
    slots = {f"w{suffix}": shape for suffix, shape in SLOTS[name].items()}
    if beta1:
        slots["w_slot_m"] = SHAPES[name]
    assert {variable: value.shape for variable, value in got.items() if variable != "w"} == slots


@pytest.mark.parametrize("name", ["vector", "matrix"])
def test_both_epsilons_count(name):
    start, grads = data(SHAPES[name])
    config = dataclasses.replace(CONFIG, ada_epsilon1=0.5, ada_epsilon2=0.3)  # more than rms(start)
    expected = numpy_adafactor(start, grads, config)
    np.testing.assert_allclose(mesh_tf(start, grads, config)["w"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(train("w", config, start, grads)["w"], expected, rtol=1e-4, atol=1e-6)


def test_decay_and_a_constant_memory():
    start, grads = data((6,))
    config = dataclasses.replace(CONFIG, weight_decay=0.1)
    expected = numpy_adafactor(start, grads, config, 0.1)
    np.testing.assert_allclose(train("w", config, start, grads)["w"], expected, rtol=1e-5)
    # the legacy program passed its weight_decay here
    got = train("w", dataclasses.replace(CONFIG, ada_decay_rate=0.1), start, grads)
    np.testing.assert_allclose(got["w"], mesh_tf(start, grads, CONFIG, decay_rate=0.1)["w"], rtol=1e-5)


@pytest.mark.parametrize("name", ["small matrix", "matrix"])
def test_a_legacy_config_trains_as_the_legacy_program_did(name, tmp_path):
    """Twenty steps: bit for bit those of the explicit settings, and Mesh-TF's with weight_decay as its decay rate."""
    start, _ = data(SHAPES[name])
    grads = np.random.RandomState(1).normal(size=(20, *start.shape)).astype(np.float32)
    changes = {"opt_name": "adafactor", "lr": 0.02, "weight_decay": 0.8, "ada_epsilon1": 1e-20, "ada_epsilon2": 1e-2}
    legacy = load_config(write(tmp_path, {**changes, "warmup_steps": 5, "lr_decay": "cosine"})).optimizer
    explicit = dataclasses.replace(CONFIG, ada_decay_rate=0.8, adafactor_legacy_lr=True, weight_decay=0.0)
    got, same = train("w", legacy, start, grads), train("w", explicit, start, grads)
    expected = mesh_tf(start, grads, CONFIG, decay_rate=0.8)
    for variable, value in expected.items():
        np.testing.assert_array_equal(got[variable], same[variable])
        np.testing.assert_allclose(got[variable], value, rtol=2e-5, atol=1e-6)
    assert rates_at([0, 50], legacy, 100) == [np.float32(0.02)] * 2


def test_the_schedule_applies_unless_the_legacy_rate_is_asked_for():
    config = dataclasses.replace(CONFIG, lr_decay="cosine", warmup_steps=10, lr_decay_end=100)
    legacy = dataclasses.replace(config, adafactor_legacy_lr=True)
    steps = [0, 5, 50, 100]
    assert rates_at(steps, legacy, 100) == [np.float32(0.02)] * 4
    decayed = [0.02 * (0.55 + 0.45 * np.cos(np.pi * step / 100)) for step in steps]
    assert rates_at(steps, config, 100) == pytest.approx([0, decayed[1] / 2, *decayed[2:]], rel=1e-5)
    # the legacy key is about Adafactor
    assert rates_at([0], dataclasses.replace(legacy, opt_name="adam"), 100) == [0]
