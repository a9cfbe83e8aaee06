"""Training in bfloat16 against the legacy program's own, and updates that are less than the last bit of bfloat16."""

import dataclasses
import glob
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.fit import load_variables
from gpt_neo.config import load_config
from gpt_neo.dataprep.records import RecordWriter, read_records
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from tests.conftest import ROOT
from tests.runtime.test_cluster import SCRIPT as CLUSTER
from tests.runtime.test_cluster import tf_configs

ORACLE = os.path.join(ROOT, "tests", "oracle", "bf16")
START = os.path.join(ORACLE, "model.ckpt-0")
MEAN = 3.783  # nats, of the legacy program's last 50 losses


@pytest.fixture(scope="module")
def record():
    with open(os.path.join(ORACLE, "oracle.json"), encoding="utf-8") as handle:
        return json.load(handle)


def batches(count):
    """The legacy run's batches, int [count, 16, 65]."""
    rows = np.array(list(read_records(os.path.join(ORACLE, "data_0_1158.tfrecords"))))
    random = np.random.RandomState(0)
    return np.stack([rows[random.randint(0, len(rows), 16)] for _ in range(count)])


def train(run, given):
    """Losses, and (before, after) of every weight, in float32, from the legacy start on."""
    with tf.Graph().as_default(), tf.Session() as session:
        batch = tf.placeholder(tf.int32, given[0].shape)
        step = build_train_step(batch, run, LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        load_variables(session, START, tf.global_variables())
        weights = {v.name: v.get_master() for v in step.lowering.graph.trainable_variables}
        assert {v.dtype.base_dtype for v in weights.values()} == {tf.float32}
        before = session.run(weights)
        losses = [session.run([step.loss, step.train], {batch: rows})[0] for rows in given]
        after = session.run(weights)
        return losses, {name: (before[name], after[name]) for name in weights}


def moved(pairs, ends=("",)):
    """Share of the numbers that are others than before."""
    changed = [after != before for name, (before, after) in pairs.items() if name.endswith(ends)]
    return np.mean(np.concatenate([each.reshape(-1) for each in changed]))


def oracle_run(folder, record, **changes):
    (folder / "model.json").write_text(json.dumps({**record["config"], "datasets": [], **changes}))
    return load_config(str(folder / "model.json"))


def test_the_first_steps_of_the_legacy_program(tmp_path, record):
    given = batches(200)
    assert np.array_equal(record["order_first"], np.random.RandomState(0).randint(0, 1158, 16))
    losses, weights = train(oracle_run(tmp_path, record), given)
    # within 0.003; weights kept in bfloat16 are off by 0.04, and none of their gains moves
    np.testing.assert_allclose(losses, record["loss_legacy_bfloat16"][:200], atol=0.01, rtol=0)
    assert moved(weights, ("/g",)) >= 0.95


def test_a_fine_tune_at_a_small_rate_moves_every_weight(tmp_path, record):
    run = oracle_run(tmp_path, record, lr=1e-5, warmup_steps=0, weight_decay=0.1, train_steps=100)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, recompute_grad=True))
    _, weights = train(run, batches(20))
    assert moved(weights) >= 0.99 and moved(weights, ("/g",)) == 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory, record):
    """The legacy run as a user would have it: records in the order of its batches, its start, its config."""
    folder = tmp_path_factory.mktemp("bf16")
    (folder / "dataset_configs").mkdir()
    writer = RecordWriter(str(folder), "ordered", 0)
    for row in batches(1500).reshape(-1, 65):
        writer.write(row)
    writer.close()
    dataset = {"path": str(folder / "ordered_*.tfrecords"), "n_vocab": 400, "eos_id": 0, "padding_id": 1}
    (folder / "dataset_configs" / "bf16.json").write_text(json.dumps(dataset))
    return folder


def config_of(folder, record, name, **changes):
    """A config whose run starts from the legacy start."""
    os.makedirs(folder / name)
    for path in glob.glob(START + ".*"):
        shutil.copy(path, folder / name)
    config = {**record["config"], "model_path": str(folder / name), **changes}
    (folder / f"{name}.json").write_text(json.dumps(config))
    return str(folder / f"{name}.json")


def learned(folder, name):
    """Mean of the last 50 losses of a run, and the share of gains that moved."""
    rows = [json.loads(line) for line in open(folder / name / "train_log.jsonl", encoding="utf-8")]
    losses = [row["loss"] for row in rows[-50:]]
    assert [row["step"] for row in rows[-50:]] == list(range(1451, 1501))
    start, end = Bundle(START), Bundle(str(folder / name / "model.ckpt-1500"))
    gains = [gain for gain in start.names() if gain.endswith("/g")]
    return np.mean(losses), moved({gain: (start.read(gain).astype(np.float32), end.read(gain)) for gain in gains})


def check_learned(folder, name):
    mean, share = learned(folder, name)
    assert abs(mean - MEAN) <= 0.02, (name, mean)
    assert share >= 0.95, (name, share)


@pytest.mark.slow
def test_main_py_learns_what_the_legacy_program_learned(folder, record, command):
    assert command("--model", config_of(folder, record, "main"), "--steps_per_log", "1") == 0
    check_learned(folder, "main")


@pytest.mark.slow
@pytest.mark.parametrize("name, layout", [("whole", "batch:x"), ("parts", "batch:x,slots:x")])
def test_the_exported_program_learns_it_on_eight_devices(folder, record, name, layout):
    from gpt_neo.__main__ import main

    path = config_of(folder, record, name, mesh_shape="x:8", layout=layout, tokens_per_mb_per_replica=64)
    assert main(["spmd-run", "--model", path, "--steps_per_log", "1"]) == 0
    check_learned(folder, name)


@pytest.mark.slow
def test_a_cluster_of_two_learns_it(folder, record):
    path = config_of(folder, record, "cluster", mesh_shape="x:2", layout="batch:x")
    job = {
        "argv": ["--model", path, "--steps_per_log", "1"],
        "clusters": tf_configs(2),
        "log": str(folder / "cluster.log"),
    }
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER], input=json.dumps([job]), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[0, 0]", done.stderr[-2000:] + open(job["log"] + ".0", encoding="utf-8").read()
    check_learned(folder, "cluster")
