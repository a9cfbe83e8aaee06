"""Records with masks: which labels count, alone, in pieces, and beside records without."""

import dataclasses
import os

import numpy as np
import pytest

from gpt_neo.config.schema import DatasetConfig, DatasetRef
from gpt_neo.dataprep.records import RecordWriter
from gpt_neo.errors import ConfigError
from gpt_neo.inputs.sources import training_sources
from gpt_neo.inputs.train_input import training_batches
from gpt_neo.mtf_compat import tf
from tests.inputs.conftest import EOS, N_CTX, PAD, in_order, make_run, take


def masked(folder, name, records):
    writer = RecordWriter(str(folder), name, 0)
    for ids, mask in records:
        writer.write(ids, mask)
    writer.close()
    return DatasetConfig(path=os.path.join(str(folder), f"{name}_*.tfrecords"), eos_id=EOS, padding_id=PAD)


def test_labels_that_count(tmp_path):
    masks = [[0, 0, 0, 1, 1, 0, 0, 1, 1], [1] * 9]
    config = masked(tmp_path, "m", [(list(range(9)), masks[0]), (list(range(20, 29)), masks[1])])
    batches = take(lambda: training_batches(in_order(make_run([("m", config)])), 1, 0), 2)
    assert [batch["weights"][0].tolist() for batch in batches] == [mask[1:] for mask in masks]
    assert batches[0]["labels"][0].tolist() == list(range(1, 9))


def test_in_pieces(tmp_path):
    mask = (np.arange(20) % 3 == 0).astype(int)
    config = masked(tmp_path, "long", [(list(range(20)), mask)])
    run = in_order(make_run([("long", config)]))
    batches = take(lambda: training_batches(run, 1, 0), 3)
    labels = [int(t) for b in batches for t, w in zip(b["labels"][0], b["weights"][0]) if w]
    assert labels == [t for t in range(1, 20) if mask[t]]


def test_beside_plain_records(tmp_path, shelf):
    config = masked(tmp_path, "m", [(list(range(9)), [0] * 8 + [1])])
    plain = shelf.write("beside", [[list(range(100, 109))]])
    run = in_order(make_run([(DatasetRef("m", 1, "chunks", 0.5), config), (DatasetRef("p", 1, "chunks", 0.5), plain)]))
    found = {int(b["inputs"][0, 0]): b["weights"].sum() for b in take(lambda: training_batches(run, 1, 0), 2)}
    assert found == {0: 1, 100: N_CTX}


@pytest.mark.parametrize("stitch, kind", [(1, "chunks"), (2, "documents_fixed")])
def test_a_mask_behind_records_without_is_not_passed_over(tmp_path, stitch, kind):
    for name, mask in (("a", None), ("b", None), ("c", [0] * 8 + [1])):
        config = masked(tmp_path, name, [(list(range(9)), mask)])
    both = dataclasses.replace(config, path=str(tmp_path / "*.tfrecords"))
    run = in_order(make_run([(DatasetRef("both", stitch, kind, 1.0), both)]))
    assert not training_sources(run)[0].masked
    with pytest.raises(tf.errors.InvalidArgumentError, match="c_0.*record 0 has a mask, and the first record"):
        take(lambda: training_batches(run, 1, 0), 4)


def test_what_cannot_be(tmp_path):
    config = masked(tmp_path, "bad", [(list(range(9)), [1] * 9), (list(range(9)), [1] * 5)])
    with pytest.raises(tf.errors.InvalidArgumentError, match="record 1 has a mask of 5 numbers"):
        take(lambda: training_batches(in_order(make_run([("bad", config)])), 1, 0), 2)
    config = masked(tmp_path, "half", [(list(range(9)), [1] * 9), (list(range(9)), None)])
    with pytest.raises(tf.errors.InvalidArgumentError, match="record 1 has no mask, and the first record"):
        take(lambda: training_batches(in_order(make_run([("half", config)])), 1, 0), 2)
    with pytest.raises(ConfigError, match="its records have masks"):
        training_sources(make_run([(DatasetRef("bad", 1, "documents_fixed", 1.0), config)]))
