"""Export with a model file of ours: every option against our network, on PyTorch; text, padding, activations."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from gpt_neo.__main__ import main as run_command
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.convert import export_hf, import_hf
from gpt_neo.checkpoint.custom import FILE, FOLDER
from gpt_neo.checkpoint.initial import hf_values
from gpt_neo.checkpoint.names import is_slot
from gpt_neo.config import load_config
from gpt_neo.config.activations import ACTIVATIONS
from gpt_neo.config.network import mlp_variables
from gpt_neo.errors import CheckpointError
from gpt_neo.model.activations import activate
from gpt_neo.mtf_compat import lower_locally, mtf, tf
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.runtime.verify import network_logits, verify
from gpt_neo.sampling.filters import SampleOptions
from tests.model.options import BASE, covering_rows, covering_values, label, make_run, merged
from tests.model.tools import parameters, save_random

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
GLA = {**BASE, "attention_types": ["gla", "local"], "n_ctx": 80, "untied_head": True}


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom")
    run = make_run(GLA)
    checkpoint = save_random(run.model, str(folder), scale=0.6)
    assert export_hf(run, checkpoint, str(folder / "out"), custom_code=True) == "GPTNeoMTFForCausalLM"
    return run, checkpoint, str(folder / "out")


@pytest.mark.parametrize("row", covering_values(covering_rows()), ids=label)
def test_every_option_gives_our_logits(row, tmp_path):
    run = make_run({**merged(row), "precision": "float32"})
    checkpoint = save_random(run.model, str(tmp_path), scale=0.3)
    export_hf(run, checkpoint, str(tmp_path / "out"), custom_code=True)
    verdict = verify(checkpoint, run.model, str(tmp_path / "out"))
    assert verdict.length == run.model.n_ctx and "transformers" in verdict.ways
    # and back: the same weights and keys, and the same bytes the next time
    back = import_hf(str(tmp_path / "out"), str(tmp_path / "back"))
    path = str(tmp_path / "back" / "model.ckpt-0")
    assert back.model == run.model
    compare_weights(checkpoint, path)
    export_hf(back, path, str(tmp_path / "again"), custom_code=True)
    for name in ("config.json", "model.safetensors", f"{FILE}.py"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def compare_weights(first, second):
    first, second = Bundle(first), Bundle(second)
    names = [name for name in first.names() if name != "global_step" and not is_slot(name)]
    assert set(names) | {"global_step"} == set(second.names()) and len(names) > 5
    for name in names:
        assert first.dtype(name) == second.dtype(name)
        np.testing.assert_array_equal(first.read(name), second.read(name), err_msg=name)


@pytest.mark.parametrize("policy", ["all", "none", "threshold", "random"])
def test_policies_of_the_second_expert(policy, tmp_path):
    moe = {"moe_second_policy_eval": policy, "moe_second_threshold_eval": 0.4, "moe_num_experts": 3}
    run = make_run({"moe_layers": [0, 1], "moe_params": moe, "moe_activation": "gelu"})
    checkpoint = save_random(run.model, str(tmp_path), scale=0.3)
    export_hf(run, checkpoint, str(tmp_path / "out"), custom_code=True)
    verify(checkpoint, run.model, str(tmp_path / "out"))


def test_greedy_text_is_ours(exported):
    run, checkpoint, folder = exported
    prompt = [5, 3, 8, 1, 30]
    ours = [t.token for t in Sampler(run.model, checkpoint).generate([prompt], SampleOptions(60, temperature=0.0))]
    with torch.no_grad():
        out = load(folder).generate(
            torch.tensor([prompt]), max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert out[0, len(prompt) :].tolist() == ours and len(set(ours)) > 5


def test_padding_changes_nothing(exported):
    run, checkpoint, folder = exported
    tokens = np.random.RandomState(0).randint(0, 48, 40)
    expected = network_logits(checkpoint, run.model, tokens)
    none, ones = np.zeros(9, int), np.ones(40, int)
    padded = torch.tensor(np.stack([np.r_[none, tokens], np.r_[tokens, none]]))
    mask = torch.tensor(np.stack([np.r_[none, ones], np.r_[ones, none]]))
    with torch.no_grad():
        logits = load(folder)(padded, attention_mask=mask, labels=padded)
    np.testing.assert_allclose(logits.logits[0, 9:], expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits.logits[1, :40], expected, atol=1e-4, rtol=0)
    assert np.isfinite(float(logits.loss))


def test_every_activation(tmp_path):
    """Ours on the left, the model file's on the right, learned numbers at their start."""
    space: dict = {"__name__": "custom"}
    with open(os.path.join(FOLDER, f"{FILE}.py"), encoding="utf-8") as handle:
        exec(compile(handle.read(), FILE, "exec"), space)  # noqa: S102  (as transformers does it)
    x = np.linspace(-4, 4, 81, dtype=np.float32)
    base = make_run({}).model
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh, width = mtf.Mesh(graph, "mesh"), mtf.Dimension("width", len(x))
        fed = mtf.import_tf_tensor(mesh, tf.constant(x), mtf.Shape([width]))
        outs = {}
        for name in ACTIVATIONS:
            config = dataclasses.replace(base, activation_function=name)
            outs[name] = activate(fed, parameters(mesh, mlp_variables(config), name), width, config)
        lowering = lower_locally(graph, mesh)
        outs = {name: lowering.export_to_tf_tensor(out) for name, out in outs.items()}
        session.run(tf.global_variables_initializer())
        values = session.run(outs)
    assert set(space["ACTIVATIONS"]) | set(space["LEARNED"]) == set(ACTIVATIONS)
    for name, value in values.items():
        if name in space["LEARNED"]:
            parts, apply = space["LEARNED"][name]
            numbers = {part: torch.tensor(v) for part, v in ACTIVATIONS[name].items()}
            assert set(parts) == set(numbers)
            theirs = apply(torch.tensor(x), type("Numbers", (), numbers))
        else:
            theirs = space["ACTIVATIONS"][name](torch.tensor(x))
        np.testing.assert_allclose(value, theirs.numpy(), atol=2e-6, rtol=2e-5, err_msg=name)


def test_from_the_command_line(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    run, checkpoint, _ = exported
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**GLA, "datasets": []}))
    for name in os.listdir(os.path.dirname(checkpoint)):
        if name.startswith("model.ckpt"):
            os.link(os.path.join(os.path.dirname(checkpoint), name), folder / name)
    assert run_command(["export-hf", str(folder), str(tmp_path / "out")]) == 2
    assert "--custom_code" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run_command(["export-hf", str(folder), str(tmp_path / "out"), "--custom_code", "--verify", "numpy"]) == 2
    assert "running our model file" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run_command(["export-hf", str(folder), str(tmp_path / "out"), "--custom_code"]) == 0
    assert "GPTNeoMTFForCausalLM" in capsys.readouterr().out
    model = load(str(tmp_path / "out"))
    assert model.config.gpt_neo["attention_types"] == ["gla", "local"]
    # back, as it is and as transformers saves it again
    model.save_pretrained(str(tmp_path / "saved"))
    for source, back in (("out", "run2"), ("saved", "run3")):
        assert run_command(["import-hf", str(tmp_path / source), str(tmp_path / back)]) == 0
        out = capsys.readouterr().out
        assert "verified  logits differ by at most" in out and "transformers on PyTorch" in out
        assert [line[:25] for line in out.splitlines() if line.startswith("note")] == ["note      no tokenizer ca"]
        assert load_config(str(tmp_path / back / "config.json")).model == run.model
        compare_weights(checkpoint, str(tmp_path / back / "model.ckpt-0"))


def test_code_of_a_folder_never_runs(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    monkeypatch.setenv("MARK", str(tmp_path / "ran"))
    _, checkpoint, folder = exported
    evil = 'import os\nopen(os.environ["MARK"], "w").close()\n'
    shutil.copytree(folder, tmp_path / "src")
    code, config = (tmp_path / "src" / name for name in (f"{FILE}.py", "config.json"))
    code.write_text(evil + code.read_text())
    assert run_command(["import-hf", str(tmp_path / "src"), str(tmp_path / "altered")]) == 0
    assert "is not the model file of this version; it was not run" in capsys.readouterr().out
    compare_weights(checkpoint, str(tmp_path / "altered" / "model.ckpt-0"))
    ours = json.loads(config.read_text())
    (tmp_path / "src" / "other.py").write_text(evil + code.read_text())
    foreign = {key: f"other.{value.partition('.')[2]}" for key, value in ours["auto_map"].items()}
    for changes in (
        {"auto_map": foreign},
        {"model_type": "other"},
        {"model_type": "other", "auto_map": foreign},
        {"model_type": "gpt2", "auto_map": foreign},
    ):
        config.write_text(json.dumps({**ours, **changes}))
        assert run_command(["import-hf", str(tmp_path / "src"), str(tmp_path / "foreign")]) == 2
        error = capsys.readouterr().err
        assert "auto_map names code of the folder's own" in error and error.count("\n") == 1
        with pytest.raises(CheckpointError, match="auto_map names code of the folder's own"):  # as of --init_from
            next(hf_values(str(tmp_path / "src"), load_config(str(tmp_path / "altered")).model))
    assert not (tmp_path / "ran").exists() and not (tmp_path / "foreign").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gpt_neo": None}, "expected a folder of export-hf --custom_code"),
        ({"gpt_neo": {"later": 1}}, "gpt_neo has the key 'later', which this version does not know"),
        ({"variables": {"gpt2/wte": [48, -1]}}, r"variables has 'gpt2/wte': \[48, -1\]; expected \[48, 16\]"),
        ({"variables": {"gpt2/adam_m": [1]}}, "variables has 'gpt2/adam_m', and the model of its keys has no such"),
        ({"variables": {"gpt2/wte": [48, 16]}}, "variables lacks 'gpt2/h0/attn/"),
    ],
)
def test_configs_that_are_not_whole_are_refused(exported, tmp_path, changes, message):
    _, _, folder = exported
    shutil.copytree(folder, tmp_path / "src")
    path = tmp_path / "src" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        import_hf(str(tmp_path / "src"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
