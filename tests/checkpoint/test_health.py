"""`python -m gpt_neo inspect` and `average` from the command line."""

import json
import os

import numpy as np
import pytest

from gpt_neo.checkpoint import tensors
from gpt_neo.checkpoint.bundle import Bundle, BundleWriter
from gpt_neo.checkpoint.health import examine
from gpt_neo.cli.commands import COMMANDS, main
from gpt_neo.config import load_config
from gpt_neo.config.folders import model_folder
from tests.checkpoint.test_folder import save


def test_inspect_of_a_run(trained, capsys):
    folder = load_config(trained).training.model_path
    assert main(["inspect", folder, "--slots"]) == 0
    out = capsys.readouterr().out
    bundle = Bundle(os.path.join(folder, "model.ckpt-20"))
    assert all(name in out for name in bundle.names())
    assert "step 20, 30 weights (11,808 numbers, 47 KB), 60 optimizer slots" in out and "health     sound" in out
    assert "80 records, 2,560 tokens read; seed 3" in out
    row = next(line for line in out.splitlines() if line.startswith("gpt2/wpe "))
    values = bundle.read("gpt2/wpe").astype(np.float64)
    assert f"mean {values.mean():10.3e}  std {values.std():9.3e}  max {np.abs(values).max():9.3e}" in row
    assert main(["inspect", folder, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["step"] == 20 and len(shown["tensors"]) == len(bundle.names())


@pytest.mark.parametrize("value, trouble", [(np.nan, "16 NaN OR INFINITE"), (0.0, "ALL ZERO")])
def test_inspect_finds_trouble(tmp_path, capsys, value, trouble):
    assert main(["inspect", save(tmp_path, 5, value)]) == 1
    out = capsys.readouterr().out
    assert trouble in out and "health     1 of 3 tensors in trouble" in out
    with open(tmp_path / "model.ckpt-5.data-00000-of-00001", "r+b") as handle:
        handle.write(b"xxxx")
    assert main(["inspect", str(tmp_path)]) == 1
    assert "DAMAGED: " in capsys.readouterr().out


def test_inspect_beside_a_training_that_deletes_what_it_reads(tmp_path, capsys, monkeypatch):
    """It tells of the newest one in place of it, and calls nothing damaged."""
    for step in (5, 3):
        save(tmp_path, step, 1.0)

    def deleted(bundle, name):
        if bundle.path.endswith("-5"):
            for path in tmp_path.glob("model.ckpt-5.*"):
                path.unlink()
        return examine(bundle, name)

    monkeypatch.setattr("gpt_neo.cli.inspect.examine", deleted)
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "note       model.ckpt-5 was deleted before it was read" in out
    assert "model.ckpt-3: step 3" in out and "health     sound" in out


def test_figures_of_a_tensor_in_blocks_are_those_of_its_finite_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "BLOCK", 256)
    values = np.random.default_rng(0).normal(-3.0, 0.5, [50, 8]).astype(np.float32)
    values[[3, 20, 49], [0, 1, 7]] = np.nan, np.inf, -np.inf
    writer = BundleWriter(str(tmp_path / "model.ckpt-1"))
    writer.add("w", values.shape, values.dtype, [values])
    writer.finish()
    found = examine(Bundle(str(tmp_path / "model.ckpt-1")), "w")
    finite = values[np.isfinite(values)].astype(np.float64)
    expected = finite.mean(), finite.std(), np.abs(finite).max()
    assert (found.mean, found.std, found.largest) == pytest.approx(expected, rel=1e-9)
    assert found.trouble == "3 NaN OR INFINITE" and (found.size, found.shape) == (1600, (50, 8))


def test_average_of_a_folder(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    for step, value in ((5, 1.0), (10, 2.0), (20, 6.0)):
        save(tmp_path / "run", step, value)
    assert main(["average", str(tmp_path / "run"), "--last", "2", "--to", str(tmp_path / "mean")]) == 0
    assert "averaged  2 checkpoints (model.ckpt-10, model.ckpt-20)" in capsys.readouterr().out
    assert Bundle(str(tmp_path / "mean" / "model.ckpt-20")).read("gpt2/wte")[0, 0] == 4.0


def test_an_average_is_a_run_of_its_own(tmp_path):
    run, mean = tmp_path / "run", tmp_path / "mean"
    (run / "dataset_configs").mkdir(parents=True)
    for step in (5, 10):
        save(run, step, 1.0)
    sizes = {"n_vocab": 64, "n_ctx": 8, "n_embd": 8, "n_layer": 1, "n_head": 1, "attention_types": [[["global"], 1]]}
    config = {**sizes, "datasets": ["data"], "train_batch_size": 8, "lr": 1e-4, "train_steps": 10}
    (run / "config.json").write_text(json.dumps({**config, "model_path": str(run)}))
    records = {"path": "none_*.tfrecords", "eval_path": "{run}/data/held_*.tfrecords", "n_vocab": 64, "eos_id": 0}
    records["tokenizer_path"] = "{run}/tokenizer.json"
    (run / "dataset_configs" / "data.json").write_text(json.dumps(records))
    for name in ("tokenizer.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json"):
        (run / name).write_text(name)
    assert main(["average", str(run), "--to", str(mean)]) == 0
    made = load_config(str(mean / "config.json"))
    assert made.datasets[0][1].path == "none_*.tfrecords" and made.datasets[0][0].name == "data"
    assert made.datasets[0][1].eval_path == f"{run}/data/held_*.tfrecords", "records stay where they are"
    assert made.datasets[0][1].tokenizer_path == f"{mean}/tokenizer.json"
    assert model_folder(made) == str(mean), "not the folder of what was averaged"
    assert (mean / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert (mean / "added_tokens.json").is_file() and (mean / "special_tokens_map.json").is_file()


def test_average_of_nothing_says_what_is_not_there(tmp_path, capsys):
    """Of one place: not that two are needed."""
    (tmp_path / "empty").mkdir()
    assert main(["average", str(tmp_path / "empty"), "--to", str(tmp_path / "mean")]) == 2
    assert f"no checkpoint in '{tmp_path}/empty'" in capsys.readouterr().err
    assert main(["average", str(tmp_path / "none"), "--to", str(tmp_path / "mean")]) == 2
    assert f"{tmp_path}/none" in (err := capsys.readouterr().err) and "at least two" not in err


def test_average_of_the_newest_of_several_folders(tmp_path, capsys):
    for name, values in (("a", (1.0, 2.0)), ("b", (9.0, 6.0))):
        (tmp_path / name).mkdir()
        for step, value in zip((10, 20), values):
            save(tmp_path / name, step, value)
    (tmp_path / "none").mkdir()
    a, b, mean = (str(tmp_path / name) for name in ("a", "b", "mean"))
    assert main(["average", a, b, "--to", mean]) == 0
    assert f"averaged  2 checkpoints ({a}/model.ckpt-20, {b}/model.ckpt-20)" in capsys.readouterr().out
    assert Bundle(f"{mean}/model.ckpt-20").read("gpt2/wte")[0, 0] == 4.0
    assert main(["average", a, f"{b}/model.ckpt-10.index", "--to", f"{mean}2"]) == 0
    assert Bundle(f"{mean}2/model.ckpt-20").read("gpt2/wte")[0, 0] == 5.5
    capsys.readouterr()
    assert main(["average", a, b, "--last", "2", "--to", f"{mean}3"]) == 2
    assert f"--last 2: takes one folder; given: {a}, {b}" in capsys.readouterr().err
    assert main(["average", a, str(tmp_path / "none"), "--to", f"{mean}3"]) == 2
    assert f"no checkpoint in '{tmp_path}/none'" in capsys.readouterr().err


def test_one_checkpoint_counts_once(tmp_path, capsys):
    one = save(tmp_path, 5)
    (tmp_path / "best").mkdir()
    for name in os.listdir(tmp_path):
        if name.startswith("model.ckpt-5."):
            os.link(tmp_path / name, tmp_path / "best" / name)
    for other in (one, f"{tmp_path}/best/../model.ckpt-5", f"{tmp_path}/best/model.ckpt-5", str(tmp_path)):
        assert main(["average", one, other, "--to", f"{tmp_path}/mean"]) == 2
        assert "one checkpoint, which would count twice in the mean" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_models_of_two_tokenizers_have_no_mean(tmp_path, capsys):
    a, b = save(tmp_path, 5), save(tmp_path, 10)
    for path, mark in ((a, "aa"), (b, "bb")):
        about = {"path": f"{mark}.json", "fingerprint": mark}
        with open(f"{path}.json", "w") as handle:
            json.dump({"format": 1, "step": 5, "config": {}, "tokenizer": about}, handle)
    assert main(["average", a, b, "--to", f"{tmp_path}/mean"]) == 2
    said = capsys.readouterr().err
    assert "another tokenizer" in said and said.endswith("is no model: aa.json, and bb.json\n")
    with open(f"{a}.json", "w") as handle:  # a record that tells of none
        json.dump({"format": 1, "step": 5, "config": {}, "tokenizer": {"path": None, "eos_id": 0}}, handle)
    assert main(["average", a, b, "--to", f"{tmp_path}/mean"]) == 0


def test_every_command_has_help_without_tensorflow(capsys):
    import subprocess
    import sys

    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert main(["nonsense"]) == 2
    code = (
        "import sys\nfrom gpt_neo.__main__ import main\nfor name in sys.argv[1:]:\n    print('<', name, '>')\n"
        "    try:\n        main([name, '--help'])\n    except SystemExit as end:\n        assert not end.code, name\n"
        "    assert 'tensorflow' not in sys.modules and 'numpy' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = done.stdout.split("< ")[1:]
    assert [page.split(" >")[0] for page in pages] == list(COMMANDS)
    assert all("usage: gpt-neo" in page for page in pages), pages


def test_what_is_no_checkpoint_is_called_so(tmp_path, capsys):
    config = str(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{}")
    for path, said in ((config, f"{config} is no checkpoint"), (str(tmp_path / "none"), "no checkpoint")):
        assert main(["inspect", path]) == 2
        assert f"error: {said}" in capsys.readouterr().err
