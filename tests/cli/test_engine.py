"""Sampling by OpenVINO from the command line: the same texts, without TensorFlow, and what it falls back for."""

import glob
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("gpt_neo.fast.silent")

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.cli.commands import main
from gpt_neo.config import load_config
from gpt_neo.dataprep.records import RecordWriter, read_records
from gpt_neo.evaluation.scorer import Scorer
from gpt_neo.evaluation.windows import Request
from gpt_neo.fast import choice
from gpt_neo.system import how_to_install
from gpt_neo.tokenizer import load_tokenizer
from tests.conftest import ROOT

WITHOUT = """
import sys
from gpt_neo.__main__ import main
status = main(sys.argv[1:])
heavy = {"tensorflow", "mesh_tensorflow", "torch", "openvino_telemetry"} & set(sys.modules)
assert status == 0 and not heavy, (status, heavy)
"""


@pytest.fixture
def sample(trained, capsys, monkeypatch):
    """`gpt-neo sample`: (status, what it printed)."""
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)

    def run(*words):
        status = main(["sample", trained, "The if statement", "--max_tokens", "20", *words])
        return status, "".join(capsys.readouterr())

    return run


def texts(out):
    return re.findall(r"--- sample.*?\n(.*?)(?=\n---|\Z)", out, re.S)


@pytest.mark.parametrize("how", [["--temperature", "0"], ["--seed", "4", "--num_samples", "3", "--top_k", "30"]])
def test_both_engines_make_the_same_texts(sample, how):
    status, fast = sample(*how)
    assert status == 0 and "by OpenVINO" in fast
    status, slow = sample(*how, "--backend", "tensorflow")
    assert status == 0 and "OpenVINO" not in slow
    assert texts(fast) == texts(slow) and len(texts(fast)) == (3 if "--seed" in how else 1)
    assert len(set(texts(fast))) == len(texts(fast)) and len(texts(fast)[0]) > len("The if statement")


def test_a_model_may_run_ahead_of_itself(sample, trained):
    _, alone = sample("--temperature", "0")
    status, out = sample("--temperature", "0", "--draft", trained)
    assert status == 0 and texts(out) == texts(alone)


def test_neither_tensorflow_nor_telemetry_is_imported(trained):
    words = ["sample", trained, "--prompt", "The if", "--max_tokens", "3", "--dtype", "int8"]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    subprocess.run([sys.executable, "-c", WITHOUT, *words], env=environment, check=True, stdout=subprocess.DEVNULL)


def test_what_it_cannot_do_is_told_once(sample, monkeypatch):
    status, out = sample("--gpu_ids", "cpu:0")
    assert status == 0 and out.count("more slowly than OpenVINO would: --gpu_ids names devices") == 1
    monkeypatch.setattr(choice, "installed", lambda: False)
    status, out = sample()
    assert status == 0 and "OpenVINO" not in out
    for words in (["--backend", "openvino"], ["--dtype", "int4"]):
        status, out = sample(*words)
        assert status == 2 and f"{' '.join(words)}: the package openvino is missing: {how_to_install('fast')}" in out


@pytest.mark.parametrize("backend", ["tensorflow", "xla"])
@pytest.mark.parametrize("flag, value", [("dtype", "int8"), ("cache", "u8"), ("draft", "configs/demo.json")])
def test_what_openvino_alone_has_is_refused_elsewhere(sample, backend, flag, value):
    status, out = sample("--backend", backend, f"--{flag}", value)
    assert status == 2 and f"--{flag} {value} goes with --backend openvino, not with --backend {backend}" in out


def test_a_server_refuses_them_too(trained, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    assert main(["serve", trained, "--backend", "tensorflow", "--cache", "u8", "--port", "0"]) == 2
    assert "--cache u8 goes with --backend openvino, not with --backend tensorflow" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "check-data", "layout"])
def test_commands_that_read_no_checkpoint_refuse_to_be_told_one(trained, command, capsys):
    assert main([command, trained, "--checkpoint", "best"]) == 2
    assert "--checkpoint best: this command reads no checkpoint" in capsys.readouterr().err


def test_the_place_of_no_tpu_is_refused(sample):
    status, out = sample("--tpu_zone", "europe-west4-a")
    assert status == 2 and "--tpu_zone europe-west4-a says where a TPU is, and none is named" in out


def test_whole_numbers_are_of_sampling(trained, command, capsys):
    assert command("--model", trained, "--eval", "--dtype", "int8") == 2
    assert "--dtype int8 goes with --predict" in capsys.readouterr().err


def test_a_machine_with_a_gpu_keeps_it(trained, monkeypatch, tmp_path):
    model = load_config(trained).model
    monkeypatch.setattr(choice, "GPU", str(tmp_path))  # which is there
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choice.choose(model) == (False, None) and choice.choose(model, "openvino") == (True, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert choice.choose(model) == (True, None)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_quantize_tells_the_cost_in_perplexity(trained, dtype, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    assert main(["quantize", trained, "--dtype", dtype]) == 0
    out = capsys.readouterr().out
    told = rf"perplexity of ([\d,]+) .*: ([\d.]+), with {dtype} weights ([\d.]+)"
    count, exact, near = re.search(told, out).groups()
    run = load_config(trained)
    folder = run.training.model_path
    paths = sorted(glob.glob(run.datasets[0][1].eval_path))
    rows = [row.tolist() for path in paths for row in read_records(path)]
    requests = [Request(row, len(row) - 1) for row in rows]
    scores = Scorer(run.model, os.path.join(folder, "model.ckpt-20")).score(requests)
    expected = math.exp(-np.concatenate([score.logprobs for score in scores]).mean(dtype=np.float64))
    assert int(count.replace(",", "")) == sum(request.count for request in requests)
    assert float(exact) == pytest.approx(expected, rel=1e-4)
    assert float(near) == pytest.approx(expected, rel=5e-3) and near != exact
    (kept,) = [name for name in os.listdir(os.path.join(folder, "compressed")) if name.startswith(dtype)]
    assert Bundle(os.path.join(folder, "compressed", kept, "weights")).names()
    assert main(["quantize", trained, "--text", "nowhere.txt"]) == 2
    assert "--text 'nowhere.txt': no files there" in capsys.readouterr().err
    assert main(["quantize", trained, "--dtype", "float32"]) == 2
    assert "--dtype float32 has no fewer bits; expected bfloat16, int8 or int4" in capsys.readouterr().err


@pytest.fixture
def masked_pieces(trained, world, tmp_path):
    """`datasets` of two, of which the second alone has held-out records: with masks, and longer than n_ctx; and of its
    labels how many count, and their perplexity as the scorer of tasks has it."""
    run, rng = load_config(trained), np.random.default_rng(0)
    n_ctx, length = run.model.n_ctx, 2 * run.model.n_ctx + 7
    texts = rng.integers(2, run.model.n_vocab, (3, length))
    masks = rng.integers(0, 2, texts.shape)
    masks[1, : n_ctx + 1] = 0  # a piece of a long prompt
    writer = RecordWriter(str(tmp_path), "held", 0)
    for row, mask in zip(texts, masks):
        writer.write(row, mask)
    writer.close()
    plain = world.dataset_config("plain", eval_path=None)
    answers = world.dataset_config("answers", eval_path=f"{tmp_path}/held_*.tfrecords")
    starts, nats = (0, n_ctx, length - n_ctx - 1), []
    requests = [Request(row[at : at + n_ctx + 1].tolist(), n_ctx) for row in texts for at in starts]
    scores = iter(Scorer(run.model, os.path.join(run.training.model_path, "model.ckpt-20")).score(requests))
    for mask in masks:
        for at, first in zip(starts, (0, 0, 3 * n_ctx + 1 - length)):
            counts = mask[at + 1 : at + n_ctx + 1] > 0
            counts[:first] = False  # labels of the piece before
            nats.append(-next(scores).logprobs[counts])
    assert sum(map(len, nats)) == masks[:, 1:].sum()
    return f'datasets=["{plain}", "{answers}"]', int(masks[:, 1:].sum()), math.exp(np.concatenate(nats).mean())


def test_quantize_counts_the_labels_that_an_evaluation_counts(trained, masked_pieces, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    datasets, count, perplexity = masked_pieces
    assert main(["quantize", trained, "--dtype", "int8", "--set", datasets]) == 0
    told = re.search(r"perplexity of (\d+) held-out tokens: ([\d.]+)", capsys.readouterr().out).groups()
    assert int(told[0]) == count and float(told[1]) == pytest.approx(perplexity, rel=1e-4)


def test_an_int8_export_counts_them_too(trained, masked_pieces, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    datasets, count, perplexity = masked_pieces
    assert main(["export", trained, str(tmp_path / "saved"), "--int8", "--set", datasets]) == 0
    told = re.search(r"perplexity of (\d+) held-out tokens: ([\d.]+)", capsys.readouterr().out).groups()
    assert int(told[0]) == count and float(told[1]) == pytest.approx(perplexity, rel=1e-4)


@pytest.mark.parametrize("words", [["quantize"], ["export", "--int8"]])
def test_a_model_without_likelihood_has_no_perplexity(trained, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    place = [str(tmp_path / "saved")] if "export" in words else []
    assert main([words[0], trained, *place, *words[1:], "--set", "entmax_loss=true"]) == 0
    assert "perplexity not compared: key 'entmax_loss' is True" in capsys.readouterr().out


def test_quantize_compares_on_texts_of_a_pattern(trained, tmp_path, capsys, gcs, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    tokens = []
    for name, text in (("a", "The first text. " * 9), ("b", "Another one, of more words. " * 9)):
        tokens.append(len(load_tokenizer(load_config(trained).datasets[0][1].tokenizer_path).encode(text)) - 1)
        (tmp_path / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        storage.write_bytes(f"gs://bucket/texts/{name}.txt", text.encode())
    told = []
    for place in (f"{tmp_path}/*.txt", "gs://bucket/texts/?.txt", f"{tmp_path}/a.txt"):
        assert main(["quantize", trained, "--dtype", "int8", "--text", place]) == 0
        told.append(capsys.readouterr().out.splitlines()[-1])
        count = tokens[0] if place.endswith("a.txt") else sum(tokens)
        assert told[-1].startswith(f"perplexity of {count:,} held-out tokens: ")
    assert told[0] == told[1] != told[2]
