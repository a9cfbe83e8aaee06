"""Small record files and runs over them, without a tokenizer."""

import dataclasses
import os

import pytest

from gpt_neo.config.schema import (
    DatasetConfig,
    DatasetRef,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
)
from gpt_neo.dataprep.records import RecordWriter
from gpt_neo.mtf_compat import tf

N_CTX, N_VOCAB, EOS, PAD = 8, 1000, 999, 998


class Shelf:
    """A folder of record files."""

    def __init__(self, folder):
        self.folder = str(folder)

    def write(self, name, files):
        """Write files of records (lists of tokens); return a dataset config."""
        for shard, records in enumerate(files):
            writer = RecordWriter(self.folder, name, shard)
            for tokens in records:
                writer.write(tokens)
            writer.close()
        return DatasetConfig(path=os.path.join(self.folder, f"{name}_*.tfrecords"), eos_id=EOS, padding_id=PAD)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))


def make_run(datasets, batch_size=4, causal=True, **training):
    """A run over (DatasetRef or name, DatasetConfig) pairs."""
    model = ModelConfig(n_head=1, n_embd=4, n_layer=1, n_vocab=N_VOCAB, n_ctx=N_CTX, padding_id=PAD, causal=causal)
    pairs = tuple((DatasetRef(ref) if isinstance(ref, str) else ref, config) for ref, config in datasets)
    training = TrainingConfig(train_batch_size=batch_size, train_steps=100, **{"seed": 7, **training})
    return RunConfig("test.json", "test", model, OptimizerConfig(lr=1e-3), MeshConfig(), training, pairs)


def in_order(run):
    """The run with files and documents in their order."""
    return dataclasses.replace(run, training=dataclasses.replace(run.training, shuffle_input_filenames=False))


def take(make_dataset, count):
    """The first elements of a pipeline, as NumPy arrays."""
    with tf.Graph().as_default(), tf.Session() as session:
        following = tf.data.make_one_shot_iterator(make_dataset()).get_next()
        return [session.run(following) for _ in range(count)]
