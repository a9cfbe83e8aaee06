"""Sums over held-out records against NumPy: several datasets, filled-up batches, labels that do not count."""

import json
import math
import os

import numpy as np
import pytest

from gpt_neo.checkpoint.provenance import tokenizer_reference
from gpt_neo.config import load_config
from gpt_neo.dataprep.records import RecordWriter
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.eval_metrics import NothingCountsError, record_sums, streaming, summarize
from gpt_neo.runtime.intervals import moments, ratio

BATCHES, ROWS, LENGTH, VOCAB = 3, 4, 5, 11


def test_sums_equal_numpy():
    rng = np.random.default_rng(0)
    shape = [BATCHES, ROWS, LENGTH]
    losses, labels = rng.uniform(0, 9, shape).astype(np.float32), rng.integers(0, VOCAB, shape).astype(np.int32)
    weights = rng.integers(0, 2, shape).astype(np.float32)
    source = rng.integers(0, 2, shape[:2]).astype(np.int32)
    real = np.ones(shape[:2], np.float32)
    real[-1, -2:] = 0
    lengths = rng.integers(0, 6, [VOCAB, 2]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        fed = [tf.placeholder(tf.as_dtype(x.dtype), x.shape[1:]) for x in (losses, weights, labels, real, source)]
        made = streaming(record_sums(*fed[:4], tf.constant(lengths)), fed[4], 2)
        session.run(tf.local_variables_initializer())
        for batch in zip(losses, weights, labels, real, source):
            session.run([update for _, update in made.values()], dict(zip(fed, batch)))
        metrics = session.run({name: value for name, (value, _) in made.items()})
    found = summarize({**metrics, "global_step": 7}, ["a", "b"])
    counted = weights * real[..., None]
    x, n = (losses * counted).sum(-1), counted.sum(-1)
    size, letters = (np.moveaxis(lengths[labels], -1, 0) * counted).sum(-1)
    for part, chosen in (
        (found, real > 0),
        *((found["by_dataset"][s], (real > 0) & (source == i)) for i, s in enumerate("ab")),
    ):
        wanted = ratio(moments(x[chosen], n[chosen]))
        assert part["loss"] == pytest.approx(wanted.value, rel=1e-6)
        assert part["intervals"]["loss"] == pytest.approx([wanted.low, wanted.high], rel=1e-5)
        assert part["perplexity"] == pytest.approx(math.exp(wanted.value), rel=1e-5)
        for name, unit in (("bits_per_byte", size), ("bits_per_character", letters)):
            per = ratio(moments(x[chosen], unit[chosen]))
            assert part[name] == pytest.approx(per.value / math.log(2), rel=1e-6)
            ends = [per.low / math.log(2), per.high / math.log(2)]
            assert part["intervals"][name] == pytest.approx(ends, rel=1e-5)
        assert (part["tokens"], part["records"]) == (n[chosen].sum(), chosen.sum())
    assert found["step"] == 7 and metrics["loss_per_token"] == pytest.approx(found["loss"])


def test_an_entmax_loss_has_neither_perplexity_nor_bits():
    sums = np.full([1, 5, 5], 2.0)
    found = summarize({"sums": sums, "global_step": 1}, ["a"], in_nats=False)
    assert found["loss"] == 1.0 and found["perplexity"] is None and found["bits_per_byte"] is None


def test_without_a_label_that_counts_there_is_no_loss(world, trained, command, capsys):
    with pytest.raises(NothingCountsError, match="no label counts in 3 held-out samples of dataset a, b"):
        summarize({"sums": [np.diag([1.0, 0, 0, 0, 0]), np.diag([2.0, 0, 0, 0, 0])], "global_step": 1}, ["a", "b"])
    writer = RecordWriter(world.folder, "short", 0)
    for token in (5, 6, 7):
        writer.write([token])
    writer.close()
    name = world.dataset_config("of_one_token", eval_path=os.path.join(world.folder, "short_*.tfrecords"))
    folder = load_config(trained).training.model_path
    for changes, status in (({"model_path": folder}, 2), ({"train_steps": 2, "eval_steps": 1}, 0)):
        path = world.config("short", datasets=[[name, 1, "documents_random", 1.0]], **changes)
        assert command("--model", path, *(["--eval"] if status else [])) == status
        text = " ".join(capsys.readouterr())
        assert "no label counts in 3 held-out samples of dataset of_one_token" in text and "nan" not in text
    assert not os.path.exists(os.path.join(load_config(path).training.model_path, "eval_short.jsonl"))


def test_each_dataset_by_itself(world, trained, command):
    folder = load_config(trained).training.model_path
    copy = world.dataset_config("copy")
    path = world.config("both_sets", model_path=folder, datasets=[["small", None, None, 1.0], [copy, None, None, 2.0]])
    for config in (trained, path):
        assert command("--model", config, "--eval", "--sacred_id", "sets") == 0
    one, two = [json.loads(line) for line in open(os.path.join(folder, "eval_sets.jsonl"), encoding="utf-8")]
    assert two["datasets"] == ["small", "copy"] and "by_dataset" not in one
    for part in two["by_dataset"].values():
        for name in ("loss", "bits_per_byte", "bits_per_character"):
            assert part[name] == pytest.approx(one[name], rel=1e-6)
        assert (part["tokens"], part["records"]) == (one["tokens"], one["records"])
    assert two["tokens"] == 2 * one["tokens"] and two["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_the_tokenizer_is_that_of_the_dataset_that_names_one(world, trained, command, capsys):
    folder, bare = load_config(trained).training.model_path, world.dataset_config("bare", tokenizer_path=None)
    mixed = [[bare, None, None, 1.0], ["small", None, None, 2.0]]
    path = world.config("bare_first", model_path=folder, datasets=mixed)
    for config in (trained, path):
        assert command("--model", config, "--eval", "--sacred_id", "bare") == 0
    one, two = [json.loads(line) for line in open(os.path.join(folder, "eval_bare.jsonl"), encoding="utf-8")]
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-6)
    assert tokenizer_reference(load_config(path))["path"] == load_config(trained).datasets[0][1].tokenizer_path
    capsys.readouterr()
    shown = []
    for config in (trained, path):
        assert command("--model", config, "--predict", "--prompt", "The", "--max_tokens", 3, "--seed", 1) == 0
        shown.append(capsys.readouterr().out.split("--- sample")[1].split("---")[0])
    assert shown[0] == shown[1]
    assert command("--model", path, "--check_dataset") == 0
