"""Which records a step reads, from the start and after a restart."""

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.dataprep.records import read_records
from gpt_neo.inputs.position import locate
from gpt_neo.inputs.train_input import evaluation_batches, training_batches, training_records
from gpt_neo.mtf_compat import tf


def test_locate():
    counts = [3, 0, 2]
    assert [locate(i, counts) for i in range(7)] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (0, 0), (0, 1)]
    with pytest.raises(ValueError, match="hold no records"):
        locate(0, [0])


def take(dataset, count):
    with tf.Graph().as_default(), tf.Session() as session:
        following = tf.data.make_one_shot_iterator(dataset()).get_next()
        return [session.run(following) for _ in range(count)]


@pytest.mark.parametrize("start", [0, 3, 40])
def test_batches_go_on_where_the_step_says(world, start):
    run = load_config(world.config("reading"))
    paths, counts = training_records(run)
    everything = np.array([row for path in paths for row in read_records(path)])
    assert len(everything) == sum(counts)
    got = np.concatenate(take(lambda: training_batches(run, 4, start), 60))
    wanted = everything.take(np.arange(start * 4, start * 4 + 240), axis=0, mode="wrap")
    np.testing.assert_array_equal(got, wanted)


def test_evaluation_reads_every_record_once(world):
    run = load_config(world.config("reading"))
    rows = np.array([row for path in [p for p in __import__("glob").glob(run.datasets[0][1].eval_path)]
                     for row in read_records(path)])  # fmt: skip
    count = -(-len(rows) // 8)
    assert len(rows) % 8  # so that the last batch is filled up
    batches = take(lambda: evaluation_batches(run, 8), count)
    weights = np.concatenate([batch["weight"] for batch in batches])
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    assert weights.sum() == len(rows)
    np.testing.assert_array_equal(tokens[weights > 0], rows)


def test_shuffled_files_keep_their_order_by_seed(world):
    first = training_records(load_config(world.config("shuffled", shuffle_input_filenames=True)))[0]
    assert first == training_records(load_config(world.config("shuffled", shuffle_input_filenames=True)))[0]
    assert sorted(first) == sorted(training_records(load_config(world.config("plain")))[0])
