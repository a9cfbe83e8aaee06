"""Records longer than a sample are cut into several: every label of the text is read once, from any position."""

import dataclasses

import numpy as np
import pytest

from gpt_neo.errors import DataError
from gpt_neo.inputs import preflight
from gpt_neo.inputs.sources import training_sources
from gpt_neo.inputs.train_input import evaluation_batches, first_samples, training_batches
from gpt_neo.mtf_compat import tf
from tests.inputs.conftest import N_CTX, in_order, make_run, take

RECORDS = 5
LENGTHS = {9: 1, 10: 2, 25: 3, 17: 2, 20: 3, 33: 4}  # tokens of a record -> samples of 8 labels
QUICK = (9, 10, 25)  # one sample, one label too many for one, and samples that are full


def records_of(length):
    return [[100 * r + t for t in range(length)] for r in range(RECORDS)]


@pytest.fixture(params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LENGTHS])
def run(request, shelf):
    config = shelf.write(f"long{request.param}_", [records_of(request.param)[:3], records_of(request.param)[3:]])
    return in_order(make_run([("long", dataclasses.replace(config, eval_path=config.path))], batch_size=2))


def labels(batches):
    """The labels that count, in order, and what each follows."""
    pairs = []
    for batch in batches:
        weights = batch.get("weights", np.ones_like(batch["labels"]))
        rows = batch.get("weight", np.ones(len(weights)))
        pairs += [
            (before, label)
            for row in range(len(rows))
            for before, label, counts in zip(batch["inputs"][row], batch["labels"][row], weights[row])
            if counts and rows[row]
        ]
    return pairs


def test_an_epoch_has_every_label_once(run, request):
    length = request.node.callspec.params["run"]
    (source,) = training_sources(run)
    assert (source.length, source.pieces, source.samples) == (length, LENGTHS[length], RECORDS * LENGTHS[length])
    wanted = [pair for row in records_of(length) for pair in zip(row[:-1], row[1:])]
    batches = take(lambda: training_batches(run, 1, 0), source.samples)
    assert labels(batches) == wanted
    assert ("weights" in batches[0]) == ((length - 1) % N_CTX != 0), "where pieces divide, nothing is weighed"
    evaluated = take(lambda: evaluation_batches(run, 4), -(-source.samples // 4))
    assert evaluation_batches(run, 4).options().autotune.enabled is False  # which would be waited for, now and then
    assert labels(evaluated) == wanted
    (line,) = preflight.account(run, [source])
    assert "tokens read / tokens in the records 1.000" in line


def test_a_resumed_run_goes_on_between_pieces(run):
    (source,) = training_sources(run)
    whole = take(lambda: training_batches(run, 1, 0), source.samples + 6)
    for start in {1, source.pieces, source.samples - 1, source.samples + 2}:
        for got, wanted in zip(take(lambda s=start: training_batches(run, 1, s), 4), whole[start:]):
            for name in wanted:
                np.testing.assert_array_equal(got[name], wanted[name])


def test_the_origin_of_a_piece_is_its_record(run):
    (source,) = training_sources(run)
    origins = [sample["origin"][0] for sample in first_samples(run, source.pieces * 4)]
    places = [(source.paths[0], 0), (source.paths[0], 1), (source.paths[0], 2), (source.paths[1], 0)]
    assert origins == [place for place in places for _ in range(source.pieces)]


def test_masked_models_read_all_of_a_record_too(shelf):
    config = shelf.write("masked_long", [records_of(20)])
    run = make_run([("m", config)], mlm_training=True, mlm_mask_id=997, mlm_mask_prob=0.0, causal=False)
    run = in_order(run)
    (source,) = training_sources(run)
    assert source.pieces == 3
    seen = {int(t) for sample in first_samples(run, source.samples) for t in sample["inputs"]}
    assert seen == {token for row in records_of(20) for token in row}


def test_a_record_of_another_length_is_named(shelf):
    config = shelf.write("uneven", [[*records_of(17), list(range(26))]])
    run = in_order(make_run([("uneven", config)]))
    sources = training_sources(run)
    with pytest.raises(DataError, match="record 5 has 26 tokens; the first record has 17, and records read in chunks"):
        preflight.check_records(run, sources)
    with pytest.raises(tf.errors.InvalidArgumentError, match="record 5 has 26 tokens; the first record has 17"):
        take(lambda: training_batches(run, 1, 0), 11)


def test_an_account_of_documents_that_are_cut(shelf):
    from gpt_neo.config.schema import DatasetRef

    config = shelf.write("documents", [[list(range(4)), list(range(18))]])
    for kind, share in (("documents_fixed", (4 + 9) / 22), ("documents_random", 1.0)):
        run = make_run([(DatasetRef("d", 1, kind, 1.0), config)])
        assert preflight.share_read(run, training_sources(run)[0]) == pytest.approx(share)
