"""Masked language modelling: which tokens are hidden, by what, and which labels count."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.inputs.train_input import first_samples, training_batches
from tests.inputs.conftest import N_CTX, N_VOCAB, PAD, make_run, take

MASK, CLS, IGNORED = 900, 901, [5, 6]
ROWS = 64


@pytest.fixture(scope="module")
def chunks(shelf):
    """Records of n_ctx + 1 tokens; one in eight is to be ignored, some are padding."""
    random = np.random.RandomState(0)
    rows = random.randint(10, 890, (ROWS, N_CTX + 1))
    rows[:, 3], rows[::2, 6] = 5, PAD
    return shelf.write("mlm", [rows.tolist()]), rows


def masked_run(chunks, **changes):
    keys = {"mlm_training": True, "mlm_mask_id": MASK, "mlm_mask_ignore_ids": tuple(IGNORED), **changes}
    return make_run([("mlm", chunks[0])], causal=False, **keys)


def samples(run, count):
    """[count, n_ctx] inputs, labels and weights."""
    found = first_samples(run, count)
    return [np.array([sample[name] for sample in found]) for name in ("inputs", "labels", "weights")]


def text_of(rows, count):
    return rows[np.arange(count) % ROWS, :N_CTX]


def test_labels_are_the_hidden_tokens_and_nothing_else_changes(chunks):
    count = 600
    inputs, labels, weights = samples(masked_run(chunks), count)
    text = text_of(chunks[1], count)
    chosen = weights > 0
    np.testing.assert_array_equal(labels[chosen], text[chosen])
    assert (labels[~chosen] == PAD).all()
    np.testing.assert_array_equal(inputs[~chosen], text[~chosen])
    assert not chosen[np.isin(text, [PAD, *IGNORED])].any()


def test_shares(chunks):
    count, prob, same, other = 3000, 0.3, 0.2, 0.25
    run = masked_run(chunks, mlm_mask_prob=prob, mlm_same_token_prob=same, mlm_random_token_prob=other)
    inputs, labels, weights = samples(run, count)
    text = text_of(chunks[1], count)
    maskable = ~np.isin(text, [PAD, *IGNORED])
    chosen = weights > 0

    def check(share, wanted, of):
        assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / of), (share, wanted)

    check(chosen.sum() / maskable.sum(), prob, maskable.sum())
    shown, hidden = inputs[chosen], text[chosen]
    check((shown == MASK).mean(), 1 - same - other, chosen.sum())
    check((shown == hidden).mean(), same, chosen.sum())
    replaced = shown[(shown != MASK) & (shown != hidden)]
    # uniform over the ids that may stand there
    assert not np.isin(replaced, [PAD, MASK, *IGNORED]).any() and replaced.max() > N_VOCAB - 10 > replaced.min()
    assert abs(replaced.mean() - N_VOCAB / 2) < 4 * N_VOCAB / np.sqrt(12 * len(replaced))


def test_class_token_comes_first_and_is_never_predicted(chunks):
    run = masked_run(chunks, mlm_cls_token_id=CLS, mlm_mask_prob=1.0)
    inputs, labels, weights = samples(run, ROWS)
    assert (inputs[:, 0] == CLS).all() and (labels[:, 0] == PAD).all() and not weights[:, 0].any()
    text = chunks[1][:, : N_CTX - 1]
    hidden = ~np.isin(text, [PAD, *IGNORED])
    np.testing.assert_array_equal(weights[:, 1:] > 0, hidden)
    np.testing.assert_array_equal(labels[:, 1:][hidden], text[hidden])


def test_all_masked_none_masked(chunks):
    inputs, _, weights = samples(
        masked_run(chunks, mlm_mask_prob=1.0, mlm_same_token_prob=0.0, mlm_random_token_prob=0.0), ROWS
    )
    assert (inputs[weights > 0] == MASK).all() and weights.sum() == (~np.isin(chunks[1][:, :8], [PAD, 5])).sum()
    inputs, labels, weights = samples(masked_run(chunks, mlm_mask_prob=0.0), ROWS)
    assert not weights.any() and (labels == PAD).all()
    np.testing.assert_array_equal(inputs, chunks[1][:, :N_CTX])


def test_masks_are_those_of_seed_and_sample(chunks):
    run = masked_run(chunks)
    whole = take(lambda: training_batches(run, 4, 0), 40)
    part = take(lambda: training_batches(run, 4, 33), 4)
    for got, wanted in zip(part, whole[33:]):
        for name in wanted:
            np.testing.assert_array_equal(got[name], wanted[name])
    epoch = ROWS // 4
    assert (whole[0]["weights"] != whole[epoch]["weights"]).any()  # a new draw in the next epoch
    other = dataclasses.replace(run, training=dataclasses.replace(run.training, seed=8))
    assert (take(lambda: training_batches(other, 4, 0), 1)[0]["weights"] != whole[0]["weights"]).any()
