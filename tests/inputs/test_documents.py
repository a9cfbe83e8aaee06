"""Documents: stitched, cut to windows, filled up; and mixtures of everything, from any step."""

import numpy as np
import pytest

from gpt_neo.config.schema import DatasetRef
from gpt_neo.inputs.sources import training_sources
from gpt_neo.inputs.train_input import evaluation_batches, first_samples, training_batches
from gpt_neo.mtf_compat import tf
from tests.inputs.conftest import EOS, N_CTX, PAD, in_order, make_run, take

LENGTHS = [[3, 1, 12, 0, 5], [2, 30, 4, 1, 1, 1]]


@pytest.fixture(scope="module")
def documents(shelf):
    """(config, documents in order); document i holds the tokens 50 i, 50 i + 1, ..."""
    rows, number = [], 0
    for lengths in LENGTHS:
        rows.append([list(range(50 * (number + i), 50 * (number + i) + size)) for i, size in enumerate(lengths)])
        number += len(lengths)
    return shelf.write("doc", rows), [row for file in rows for row in file]


def stitched(rows):
    joined = []
    for row in rows:
        joined += [*row, EOS]
    return joined[:-1]


def windows(joined):
    """All windows of n_ctx + 1 tokens of a text, filled up where it is shorter, with the labels that count."""
    size = N_CTX + 1
    if len(joined) <= size:
        counted = max(0, len(joined) - 1)
        return [(joined + [PAD] * (size - len(joined)), [1] * counted + [0] * (N_CTX - counted))]
    return [(joined[i : i + size], [1] * N_CTX) for i in range(len(joined) - size + 1)]


@pytest.mark.parametrize("stitch", [1, 3, 14])
def test_fixed_windows_against_brute_force(documents, stitch):
    config, rows = documents
    run = in_order(make_run([(DatasetRef("doc", stitch, "documents_fixed", 1.0), config)]))
    for sample, got in enumerate(first_samples(run, 12)):
        numbers = [(sample * stitch + i) % len(rows) for i in range(stitch)]
        tokens, weights = windows(stitched([rows[i] for i in numbers]))[0]
        assert got["inputs"].tolist() == tokens[:-1] and got["labels"].tolist() == tokens[1:]
        assert got["weights"].tolist() == weights


def test_random_windows_lie_in_the_text_and_reach_all_of_it(documents):
    config, rows = documents
    run = in_order(make_run([(DatasetRef("doc", 11, "documents_random", 1.0), config)]))
    possible = [tokens for tokens, _ in windows(stitched(rows))]
    starts = [possible.index([*got["inputs"], got["labels"][-1]]) for got in first_samples(run, 400)]
    assert set(starts) == set(range(len(possible)))
    counts = np.bincount(starts)
    expected = len(starts) / len(possible)
    assert ((counts - expected) ** 2 / expected).sum() < 2 * len(possible)  # chi-squared


def test_a_document_is_read_once_per_epoch(documents):
    config, rows = documents
    run = make_run([(DatasetRef("doc", 3, "documents_random", 1.0), config)])
    origins = [origin for got in first_samples(run, 33) for origin in got["origin"]]
    for epoch in range(9):
        assert len(set(origins[epoch * 11 : epoch * 11 + 11])) == 11
    assert origins[:11] != origins[11:22]


@pytest.fixture(scope="module")
def mixed_run(documents, shelf):
    """Chunks, documents, and a dataset of fewer records than a batch has rows."""
    chunks = shelf.write("chunk", [[[500 + i] * (N_CTX + 1) for i in range(5)], [[600] * (N_CTX + 1)]])
    tiny = shelf.write("tiny", [[[700 + i] * (N_CTX + 1) for i in range(2)]])
    return make_run(
        [
            (DatasetRef("chunk", None, None, 0.5), chunks),
            (DatasetRef("tiny", None, "chunks", 0.25), tiny),
            (DatasetRef("doc", 2, "documents_random", 0.25), documents[0]),
        ],
        batch_size=6,
    )


def test_mixtures_go_on_from_any_step(mixed_run):
    whole = take(lambda: training_batches(mixed_run, 6, 0), 17)
    for start in (1, 13):  # each dataset is in its first epoch, and in a later one
        part = take(lambda start=start: training_batches(mixed_run, 6, tf.constant(start, tf.int64)), 4)
        for got, wanted in zip(part, whole[start:]):
            assert set(got) == {"inputs", "labels", "weights"}
            for name in wanted:
                np.testing.assert_array_equal(got[name], wanted[name])


def test_each_dataset_of_a_mixture_goes_through_its_own_epochs(mixed_run):
    samples = first_samples(mixed_run, 120)
    for source, share in zip(training_sources(mixed_run), (60, 30, 30)):
        origins = [o for got in samples for o in got["origin"] if o[0] in source.paths]
        assert len(origins) == share * source.stitch
        for first in range(0, len(origins) - source.records + 1, source.records):
            assert len(set(origins[first : first + source.records])) == source.records
    assert first_samples(mixed_run, 6, start_step=19)[5]["origin"] == samples[119]["origin"]


def test_held_out_documents_are_scored_once(documents):
    config, rows = documents
    held_out = type(config)(**{**config.__dict__, "eval_path": config.path})
    run = make_run([(DatasetRef("doc", 2, "documents_fixed", 1.0), held_out)])
    batches = take(lambda: evaluation_batches(run, 4), 2)
    weights = np.concatenate([batch["weight"] for batch in batches])
    assert weights.tolist() == [1] * 6 + [0] * 2
    wanted = [windows(stitched(rows[i : i + 2]))[0] for i in range(0, 11, 2)]
    for row in range(6):
        batch, place = batches[row // 4], row % 4
        assert batch["inputs"][place].tolist() == wanted[row][0][:-1]
        assert batch["weights"][place].tolist() == wanted[row][1]
