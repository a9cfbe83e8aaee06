"""A masked language model from the command line: it trains, learns, and is scored on the hidden tokens alone."""

import json
import os

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.dataprep.records import RecordWriter
from gpt_neo.inputs.train_input import evaluation_batches
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.export import build_logits
from gpt_neo.runtime.predict_step import load_weights
from tests.inputs.conftest import take

N_CTX, N_VOCAB, MASK, PAD, KINDS, STEPS = 16, 24, 20, 21, 12, 100


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Records that repeat one token: a hidden token follows from any other, before it or after."""
    folder = tmp_path_factory.mktemp("mlm")
    (folder / "dataset_configs").mkdir()
    random = np.random.RandomState(0)
    for name, count in (("train", 64), ("held", 10)):
        writer = RecordWriter(str(folder), name, 0)
        for token in random.randint(0, KINDS, count):
            writer.write([token] * N_CTX)
        writer.close()
    paths = {"path": str(folder / "train_*.tfrecords"), "eval_path": str(folder / "held_*.tfrecords")}
    (folder / "dataset_configs" / "repeating.json").write_text(json.dumps({**paths, "eos_id": 22, "padding_id": PAD}))
    model = {
        "n_head": 2,
        "n_embd": 32,
        "n_layer": 1,
        "n_vocab": N_VOCAB,
        "n_ctx": N_CTX,
        "lr": 0.01,
        "lr_decay": "cosine",
        "train_steps": STEPS,
        "attention_types": "local",
        "local_attention_radius": 4,
        "train_batch_size": 16,
        "eval_batch_size": 4,
        "mlm_training": True,
        "mlm_mask_id": MASK,
        "datasets": ["repeating"],
        "padding_id": PAD,
        "eos_id": 22,
        "model_path": str(folder / "run"),
        "tokens_per_mb_per_replica": 8 * N_CTX,
        "warmup_steps": 10,
        "gradient_clipping": 1.0,
        "mlm_mask_prob": 0.25,
    }
    (folder / "model.json").write_text(json.dumps(model))
    return str(folder / "model.json")


@pytest.fixture(scope="module")
def trained(config):
    from gpt_neo.cli.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
        assert main(["--model", config]) == 0
    return config


def test_it_learns_to_name_hidden_tokens(trained):
    folder = load_config(trained).training.model_path
    rows = [json.loads(line) for line in open(os.path.join(folder, "train_log.jsonl"), encoding="utf-8")]
    assert rows[-1]["step"] == STEPS and rows[-1]["loss"] < 0.2 < np.log(KINDS) / 10


def test_the_score_is_the_mean_over_hidden_tokens(trained, command):
    assert command("--model", trained, "--eval") == 0
    run = load_config(trained)
    result = json.loads(open(os.path.join(run.training.model_path, "eval_model.jsonl"), encoding="utf-8").readline())
    batches = take(lambda: evaluation_batches(run, 4), 3)
    inputs, labels, weights, rows = (
        np.concatenate([batch[name] for batch in batches]) for name in ("inputs", "labels", "weights", "weight")
    )
    assert rows.tolist() == [1] * 10 + [0] * 2 and (labels[:10][weights[:10] == 0] == PAD).all()
    with tf.Graph().as_default(), tf.Session() as session:
        logits = build_logits(tf.constant(inputs), run.model)
        load_weights(session, os.path.join(run.training.model_path, f"model.ckpt-{STEPS}"))
        logits = session.run(logits).astype(np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    weights = weights * rows[:, None]
    assert result["tokens"] == weights.sum() and result["bits_per_byte"] is None
    assert result["loss"] == pytest.approx((losses * weights).sum() / weights.sum(), abs=1e-5)


def test_check_dataset_shows_what_is_hidden(trained, command, capsys):
    assert command("--model", trained, "--check_dataset") == 0
    out = capsys.readouterr().out
    assert "read as chunks" in out and "[MASK]" in out and out.count("to predict: ") == 3


def test_it_cannot_be_sampled(trained, command, capsys):
    assert command("--model", trained, "--predict", "--prompt", "x") == 2
    assert "such a model cannot be sampled from" in capsys.readouterr().err
