"""Sampling and evaluation with the exported program on virtual devices: what main.py gives on one device."""

import json
import os

import numpy as np
import pytest

from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.sampling import DeviceSampler
from tests.conftest import folder_of
from tests.model.tools import save_random
from tests.spmd.tools import MOE, make_run

pytestmark = pytest.mark.slow
SPLIT = "batch:x,heads:y,vocab:y,intermediate_expanded:y"
N_CTX = 150  # a prompt of three chunks; rings that go round; texts longer than a piece

MODELS = [
    ("x:1", "", ["global", "local"], {}),
    ("x:2,y:4", SPLIT, ["global", "local"], {"rotary_emb": True, "num_mem_kv": 2}),
    ("x:2,y:4", SPLIT, ["linear", "gla"], {}),
    ("x:2,y:4", "batch:x,embd:y", ["global", "none"], {}),
    ("x:4", "experts:x", ["local", "global"], MOE),
]
OPTIONS = [
    {"temperature": 0.0},
    {"seed": 3, "max_tokens": 40, "eos_id": 5},
    {"seed": 6, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
]
ENTMAX = [{"seed": 5, "temperature": 1.5, "entmax_alpha": 1.5, "top_p": 0.95, "max_tokens": 33}]


@pytest.mark.parametrize("mesh, layout, kinds, changes", MODELS)
def test_the_same_tokens_as_on_one_device(tmp_path, jax_python, mesh, layout, kinds, changes):
    run = make_run(tmp_path, mesh_shape=mesh, layout=layout, n_ctx=N_CTX, attention_types=[[kinds, 1]], **changes)
    checkpoint = save_random(run.model, str(tmp_path))
    rng = np.random.RandomState(0)
    prompts = [rng.randint(0, run.model.n_vocab, n).tolist() for n in (140, 70, 1)]
    alone = Sampler(run.model, checkpoint, 4)
    for group in (OPTIONS, ENTMAX) if mesh == "x:1" else (OPTIONS,):  # one program each
        plain = [SampleOptions(n_ids=60, **options) for options in group]
        with DeviceSampler(run, checkpoint, lambda program: Devices(program, jax_python), plain[0], 4) as sampler:
            for options in plain:
                got, wanted = (list(one.generate(prompts, options, 2)) for one in (sampler, alone))
                assert got == wanted


SPLIT_RUN = ["--set", "mesh_shape=x:2,y:2", "--set", "layout=batch:x,heads:y,vocab:y"]


@pytest.fixture
def spmd_run(jax_python, monkeypatch):
    from gpt_neo.__main__ import main
    from gpt_neo.cli import quiet

    monkeypatch.setattr(quiet, "silence", lambda *flags, **options: None)
    return lambda *argv: main(["spmd-run", *map(str, argv)])


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperature", "0"],
        ["--num_samples", "3", "--max_tokens", "20", "--top_p", "0.9", "--top_k", "30", "--entmax_sampling"],
    ],
)
def test_the_text_of_main_py(trained, command, spmd_run, capsys, flags):
    folder = os.path.join(os.path.dirname(trained), "runs", "trained")
    path = os.path.join(folder, "predictions_together_20.txt")
    flags = [
        "--model",
        trained,
        "--predict",
        "--prompt",
        "The first of ",
        "--seed",
        "7",
        "--sacred_id",
        "together",
        *flags,
    ]
    texts = []
    for run in (lambda: command(*flags), lambda: spmd_run(*flags, *SPLIT_RUN)):
        assert run() == 0, capsys.readouterr().err
        texts.append(open(path, encoding="utf-8").read())
        os.remove(path)
    assert texts[0] == texts[1] and texts[0].startswith("=== sample 1, seed 7\nThe first of ")
    assert "mesh x:2,y:2 (4 cores), layout batch:x,heads:y,vocab:y on cpu" in capsys.readouterr().out


def test_prompts_one_after_another(trained, spmd_run, capsys, monkeypatch):
    asked = iter(["one", "two", ""])
    monkeypatch.setattr("builtins.input", lambda: next(asked))
    assert (
        spmd_run(
            "--model",
            trained,
            "--predict",
            "--interactive",
            "--max_tokens",
            "5",
            "--seed",
            "1",
            "--sacred_id",
            "asked",
            *SPLIT_RUN,
        )
        == 0
    )
    assert capsys.readouterr().out.count("5 tokens in") == 2


def test_the_evaluation_of_main_py(trained, command, spmd_run, capsys):
    folder = os.path.join(os.path.dirname(trained), "runs", "trained")
    flags = ["--model", trained, "--eval", "--sacred_id", "held"]
    assert command(*flags) == 0, capsys.readouterr().err
    # an odd batch is filled up to what the replicas can share
    assert spmd_run(*flags, *SPLIT_RUN, "--set", "eval_batch_size=5") == 0
    wanted, got = (json.loads(line) for line in open(os.path.join(folder, "eval_held.jsonl"), encoding="utf-8"))
    assert set(wanted) == set(got)
    for name in ("step", "tokens", "records", "datasets"):
        assert got[name] == wanted[name]
    for name in ("loss", "bits_per_byte", "bits_per_character"):
        assert abs(got[name] - wanted[name]) < 1e-5, name
        np.testing.assert_allclose(got["intervals"][name], wanted["intervals"][name], atol=1e-5)
    assert abs(got["perplexity"] / wanted["perplexity"] - 1) < 1e-5


def test_a_curve_and_samples_while_it_trains(world, command, spmd_run, capsys):
    """Those of main.py on one device: programs beside the training's, on four devices of the same process."""
    flags = ["--steps_per_checkpoint", 2, "--patience", 9]
    curves, samples = [], []
    for name, run, more in (("curve", command, []), ("curve_split", spmd_run, SPLIT_RUN)):
        path = world.config(name, eval_steps=2, predict_steps=1, train_steps=4)
        assert run("--model", path, *flags, *more) == 0
        told = capsys.readouterr().out.splitlines()
        samples.append([line for line in told if line.startswith("sample ")])
        with open(os.path.join(folder_of(path), f"eval_{name}.jsonl"), encoding="utf-8") as handle:
            curves.append([(row["step"], row["loss"], row["bits_per_byte"]) for row in map(json.loads, handle)])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)
    assert [step for step, *_ in curves[0]] == [2, 4] and len(samples[0]) == 2 and samples[0] == samples[1]
    os.remove(os.path.join(folder_of(path), "predictions_curve_split_4.txt"))  # as after a kill just before it
    assert spmd_run("--model", path, *flags, *SPLIT_RUN) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("sample ")] == samples[0][1:]
