"""Which records a step reads, from the start and after a restart."""

import dataclasses
import glob

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.dataprep.readers import natural_key
from gpt_neo.dataprep.records import read_records
from gpt_neo.inputs.sources import evaluation_sources, training_sources
from gpt_neo.inputs.train_input import evaluation_batches, training_batches
from gpt_neo.mtf_compat import tf


def take(dataset, count):
    with tf.Graph().as_default(), tf.Session() as session:
        following = tf.data.make_one_shot_iterator(dataset()).get_next()
        return [session.run(following) for _ in range(count)]


def tokens_of(batches):
    """[rows, n_ctx + 1] of next-token batches."""
    assert all((b["inputs"][:, 1:] == b["labels"][:, :-1]).all() for b in batches)
    return np.concatenate([np.concatenate([b["inputs"], b["labels"][:, -1:]], 1) for b in batches])


@pytest.mark.parametrize("start", [0, 3, 40])
def test_batches_go_on_where_the_step_says(world, start):
    run = load_config(world.config("reading"))
    (source,) = training_sources(run)
    everything = np.array([row for path in source.paths for row in read_records(path)])
    assert len(everything) == source.records
    got = tokens_of(take(lambda: training_batches(run, 4, start), 60))
    wanted = everything.take(np.arange(start * 4, start * 4 + 240), axis=0, mode="wrap")
    np.testing.assert_array_equal(got, wanted)


def test_evaluation_reads_every_record_once(world):
    run = load_config(world.config("reading"))
    rows = np.array([row for path in glob.glob(run.datasets[0][1].eval_path) for row in read_records(path)])
    count = -(-len(rows) // 8)
    assert len(rows) % 8  # so that the last batch is filled up
    batches = take(lambda: evaluation_batches(run, 8), count)
    weights = np.concatenate([batch["weight"] for batch in batches])
    assert weights.sum() == len(rows)
    np.testing.assert_array_equal(tokens_of(batches)[weights > 0], rows)


def test_shuffled_files_keep_their_order_by_seed(world):
    paths = [
        training_sources(load_config(world.config(name, shuffle_input_filenames=shuffled)))[0].paths
        for name, shuffled in (("shuffled", True), ("shuffled", True), ("plain", False))
    ]
    assert paths[0] == paths[1] and sorted(paths[0]) == sorted(paths[2])


def test_held_out_files_stay_in_their_order(world):
    run = load_config(world.config("shuffled", shuffle_input_filenames=True))
    run = dataclasses.replace(
        run, datasets=tuple((ref, dataclasses.replace(data, eval_path=data.path)) for ref, data in run.datasets)
    )
    (training,), (held_out,) = training_sources(run), evaluation_sources(run)
    assert held_out.paths == tuple(sorted(training.paths, key=natural_key)) != training.paths
    assert training.shuffled and not held_out.shuffled
    other = dataclasses.replace(run, training=dataclasses.replace(run.training, seed=run.training.seed + 1))
    assert training_sources(other)[0].paths != training.paths and evaluation_sources(other)[0].paths == held_out.paths
