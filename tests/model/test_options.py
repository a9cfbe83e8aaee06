"""Every option, alone and in pairs with every other: trains, restores, counts right, decodes as it reads.

Options stand in `options.OPTIONS`, one line each. A few rows in which every value occurs run always; the set that
covers all pairs, and each option alone, are `slow`.
"""

import dataclasses
import os

import numpy as np
import pytest

from gpt_neo.config.estimate import count_parameters
from gpt_neo.config.network import variables_of
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.runtime.train_step import build_train_step
from tests.model.options import (
    OPTIONS,
    allowed_pairs,
    alone,
    covering_rows,
    covering_values,
    label,
    make_run,
    merged,
    pairs_of,
)
from tests.model.tools import plain_session, set_values, uncached

ROWS = covering_rows()
FEW = covering_values(ROWS)
REST = [row for row in [*ROWS, *alone()] if row not in FEW]


def test_the_set_covers_every_pair_that_is_allowed():
    covered = set().union(*map(pairs_of, ROWS))
    assert covered == allowed_pairs() and len(ROWS) < 40
    assert {value for pair in covered for value in pair} == {
        (place, number) for place, values in enumerate(OPTIONS.values()) for number in range(len(values))
    }


@pytest.mark.parametrize("row", FEW, ids=label)
def test_every_value_trains_restores_and_decodes(row, tmp_path):
    exercise(make_run(merged(row)), str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("row", REST, ids=label)
def test_pairs_and_each_alone(row, tmp_path):
    exercise(make_run(merged(row)), str(tmp_path))


def exercise(run, folder):
    """Train two steps around a restored checkpoint, then decode from it."""
    checkpoint = os.path.join(folder, "model.ckpt-1")
    rng = np.random.RandomState(0)
    batch = rng.randint(0, run.model.n_vocab, [run.training.train_batch_size, run.model.n_ctx + 1])
    with tf.Graph().as_default(), plain_session() as session:
        step = build_train_step(tf.constant(batch, tf.int32), run, LocalPlacement(MeshPlan()))
        variables = tf.trainable_variables()
        table = variables_of(run.model)
        assert {v.op.name: tuple(v.shape.as_list()) for v in variables} == {n: v.shape for n, v in table.items()}
        assert count_parameters(run.model) == sum(v.shape.num_elements() for v in variables)
        saver = tf.train.Saver(tf.global_variables())
        session.run(tf.global_variables_initializer())
        # Large enough that every part matters; rezero would hide the rest at first. What activations learn stays at
        # its start: other values may have poles.
        drawn = [v for v in variables if "/activation/" not in v.op.name]
        set_values(session, [(v, rng.normal(0, 0.3, v.shape.as_list())) for v in drawn])
        first, _ = session.run([step.loss, step.train])
        saver.save(session, checkpoint, write_meta_graph=False)
        second, _ = session.run([step.loss, step.train])
        assert np.isfinite([first, second]).all() and (second < first or run.model.res_dropout)  # masks differ
        trained = session.run(variables)
        saver.restore(session, checkpoint)
        assert session.run(tf.train.get_global_step()) == 1
        assert session.run([step.loss, step.train])[0] == second
        for v, before, again in zip(variables, trained, session.run(variables)):
            np.testing.assert_array_equal(before, again, err_msg=v.op.name)
    # Rounding to bfloat16 would hide small mistakes: its weights are compared in float32.
    config = dataclasses.replace(run.model, precision="float32")
    compare_decoding(config, checkpoint, batch[:2, :10].astype(np.int32), prompt=6)


def compare_decoding(config, checkpoint, tokens, prompt):
    """Steps against caches equal the whole network, in a batch whose rows begin at different slots."""
    shorter = prompt - 2
    rows = [tokens[0, :prompt], tokens[1, :shorter]]
    expected = uncached(config, checkpoint, tokens)
    close = 1e-5 * np.abs(expected).max()
    sampler = Sampler(config, checkpoint, batch_size=2)
    logits, slot, start = sampler.prefill(rows)
    for at in range(prompt, tokens.shape[1]):
        np.testing.assert_allclose(logits[0], expected[0, at - 1], atol=close, rtol=0)
        np.testing.assert_allclose(logits[1], expected[1, at - 3], atol=close, rtol=0)
        logits = sampler.run(np.array([[tokens[0, at]], [tokens[1, at - 2]]]), slot, start)
        slot += 1
