"""From a model of Hugging Face's and texts to a fine-tuned, exported one, in one command."""

import contextlib
import json
import os
import pydoc_data
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt_neo import api
from gpt_neo.__main__ import main
from gpt_neo.checkpoint.best import read_best
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.cli import finetune_data
from gpt_neo.cli.finetune import training_of
from gpt_neo.cli.options import Train
from gpt_neo.cli.parser import parse, words_of
from gpt_neo.cli.tool_options import Finetune
from gpt_neo.config import load_config
from gpt_neo.dataprep import units
from gpt_neo.dataprep.ledger import Ledger
from gpt_neo.dataprep.records import read_records
from gpt_neo.tokenizer import load_tokenizer
from tests.checkpoint.peers import save_tiny
from tests.conftest import ROOT, folder_of
from tests.fake_hub import fake_hub
from tests.model.tools import rates_at, save_random

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    """A random GPT-Neo with the tokenizer of the small world, as transformers saves it."""
    return save_tiny(str(tmp_path_factory.mktemp("hub") / "tiny"), world.tokenizer)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Twenty notes."""
    folder = tmp_path_factory.mktemp("texts")
    text = open(os.path.join(os.path.dirname(pydoc_data.__file__), "topics.py"), encoding="utf-8").read()
    for i in range(20):
        (folder / f"{i:02d}.txt").write_text(text[i * 700 : (i + 1) * 700], encoding="utf-8")
    return str(folder)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)


@pytest.fixture(scope="module")
def tuned(model, texts, tmp_path_factory):
    """A finished fine-tune, and what it printed."""
    import contextlib
    import io

    out, printed = tmp_path_factory.mktemp("tuned") / "run", io.StringIO()
    flags = ["--held_out", "0.1", "--steps", "10", "--lr", "0.02", "--batch_size", "4", "--prompt", "The"]
    flags += ["--steps_per_checkpoint", "5"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
        assert main(["finetune", model, "--data", texts, "--out", str(out), *flags]) == 0
    return str(out), printed.getvalue(), ["finetune", model, "--data", texts, "--out", str(out), *flags]


def rows(out):
    with open(os.path.join(out, "eval_run.jsonl"), encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def test_one_command_trains_evaluates_samples_and_exports(tuned):
    out, printed, _ = tuned
    losses = {row["step"]: row["loss"] for row in rows(out)}
    assert list(losses) == [0, 5, 10], "its own loss, and those of the checkpoints"
    assert losses[10] < losses[0] - 0.5 and read_best(out).loss == min(losses.values())
    assert printed.count("verified  logits differ by at most") == 2 and "weights   those of step 0" in printed
    assert "slots are missing" not in printed, "that the first step has none is nothing to tell"
    assert "tokens read / tokens in the records 1.000" in printed and "sample    step 10: The" in printed
    best = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(out, "hf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(os.path.join(out, "hf"))
    ids = tokenizer("The value of the", return_tensors="pt").input_ids
    assert best(ids).logits.shape == (1, ids.shape[1], 300)


def test_transformers_finds_the_loss_that_was_written(tuned):
    import torch

    out, _, _ = tuned
    best = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(out, "hf"), dtype=torch.float32).eval()
    folder = os.path.join(out, "data")
    records = [
        row for name in sorted(os.listdir(folder)) if name.startswith("held_out_") for row in readable(folder, name)
    ]
    ids = torch.tensor(np.array(records, np.int64))
    fill = json.load(open(os.path.join(folder, "held_out_manifest.json")))["account"]["fill_tokens"]
    with torch.no_grad():
        logits = best(ids[:, :-1]).logits
    labels = ids[:, 1:].reshape(-1)[: -fill or None]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 300)[: len(labels)], labels)
    assert fill and read_best(out).loss == pytest.approx(float(loss), abs=2e-5)
    assert {row["tokens"] for row in rows(out)} == {len(labels)}


def readable(folder, name):
    return list(read_records(os.path.join(folder, name))) if name.endswith(".tfrecords") else []


def test_every_document_is_in_one_set_whole(tuned, texts):
    out, _, _ = tuned
    from gpt_neo.tokenizer import load_tokenizer

    tokenizer, folder = load_tokenizer(os.path.join(out, "tokenizer.json")), os.path.join(out, "data")
    found = []
    for start in ("train_", "held_out_"):
        names = sorted(name for name in os.listdir(folder) if name.startswith(start))
        ids = [int(t) for name in names for row in readable(folder, name) for t in row]
        found.append([tokenizer.decode(part) for part in split_at(ids, 0)])
    whole = [open(os.path.join(texts, name), encoding="utf-8").read() for name in sorted(os.listdir(texts))]
    assert sorted(found[0] + found[1]) == sorted(whole) and len(found[1]) == 2


def split_at(ids, mark):
    parts, part = [], []
    for token in ids:
        if token == mark:
            parts.append(part)
            part = []
        else:
            part.append(token)
    return [part for part in parts if part]


def test_the_same_command_again_does_nothing_more(tuned, capsys):
    out, _, words = tuned
    before = len(rows(out))
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "nothing to do" in printed and "is there already" in printed and len(rows(out)) == before
    assert main([*words, "--seed", "5"]) == 2
    assert "holds a fine-tune with seed 1, not 5" in capsys.readouterr().err


def test_later_commands_need_no_settings(tuned, capsys):
    out, _, _ = tuned
    assert main(["sample", out, "--checkpoint", "best", "--prompt", "The", "--max_tokens", "3", "--seed", "1"]) == 0
    assert main(["eval", out, "--checkpoint", "best"]) == 0
    assert f"held out  step {read_best(out).step}: loss {read_best(out).loss:.4f}" in capsys.readouterr().out


def test_texts_that_are_not_there_are_told_before_a_model_is_made(model, tmp_path, capsys):
    assert main(["finetune", model, "--data", "nowhere", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: --data 'nowhere': no files there\n" and not os.listdir(tmp_path)


def test_texts_beside_dialogs_are_told_before_a_model_is_made(model, texts, tmp_path, capsys):
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out"
    asked.write_text('{"prompt": "a", "completion": " b"}\n', encoding="utf-8")
    assert main(["finetune", model, "--data", str(asked), texts, "--out", str(out)]) == 2
    assert "00.txt: prompts and chats are read from .jsonl, .json and .parquet" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("flags", [(), ("--lora", "2")])
@pytest.mark.parametrize("imported", [False, True])
def test_a_model_without_a_tokenizer_is_not_taken_for_one_of_gpt2s(texts, tmp_path, capsys, untrained, imported, flags):
    """Its table has room for GPT-2's ids, as that of GPT-NeoX has."""
    source, out = str(tmp_path / "hub"), str(tmp_path / "out")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.GPTNeoXConfig(vocab_size=50432, max_position_embeddings=32, eos_token_id=0, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
    if imported:
        assert main(["import-hf", source, str(tmp_path / "run"), "--verify", "none"]) == 0
        source = str(tmp_path / "run")
    words = ["finetune", source, "--data", texts, "--out", out, "--verify", "none", *flags]
    assert main(words) == 2
    what = "its model was imported without a tokenizer" if imported else "has no tokenizer.json, nor vocab.json"
    assert f"error: {source}: {what}" in capsys.readouterr().err and not os.path.exists(out)
    load_tokenizer(None).backend.save(os.path.join(source, "tokenizer.json"))
    assert main(words) == 3, "training begins"


@pytest.mark.slow
def test_a_run_is_tuned_to_the_end(trained, texts, tmp_path, capsys):
    out = str(tmp_path / "more")
    words = ["finetune", folder_of(trained), "--data", texts, "--out", out, "--steps", "1", "--held_out", "0"]
    assert main([*words, "--verify", "none"]) == 0
    printed = capsys.readouterr().out
    assert f"weights of step 20 of {folder_of(trained)}" in printed and "held out" not in printed
    assert os.path.isfile(os.path.join(out, "hf", "model.safetensors"))
    assert main(["finetune", str(tmp_path / "nothing"), "--data", texts, "--out", str(tmp_path / "x")]) == 2


class Killed(BaseException):
    """Ends a run where a signal would."""


@pytest.fixture
def untrained(monkeypatch):
    """A fine-tune ends, with status 3, where training would begin."""
    monkeypatch.setattr("gpt_neo.cli.finetune.train", lambda *words: 3)


def test_a_run_is_tuned_too(trained, texts, tmp_path, capsys, untrained):
    """From the weights of its newest checkpoint."""
    out = str(tmp_path / "more")
    words = ["finetune", folder_of(trained), "--data", texts, "--out", out, "--steps", "1", "--held_out", "0"]
    assert main(words) == 3
    assert f"weights of step 20 of {folder_of(trained)}" in capsys.readouterr().out
    made, source = (Bundle(os.path.join(*at)) for at in ((out, "model.ckpt-0"), (folder_of(trained), "model.ckpt-20")))
    names = [name for name in made.names() if name.startswith("gpt2/")]
    assert len(names) > 20 and all((made.read(name) == source.read(name)).all() for name in names)


def test_the_weights_below_adapters_are_called_what_they_are(trained, texts, tmp_path, capsys, untrained):
    out = tmp_path / "more"
    words = ["finetune", folder_of(trained), "--data", texts, "--out", str(out), "--steps", "1", "--held_out", "0"]
    assert main([*words, "--lora", "2"]) == 3
    assert capsys.readouterr().out.count("note      weights of step") == 1
    record = json.loads((out / "model.ckpt-0.json").read_text(encoding="utf-8"))
    assert record["source"] == f"weights of step 20 of {folder_of(trained)}"
    with open(os.path.join(out, "config.json"), encoding="utf-8") as handle:
        settings = json.load(handle)
    assert (settings["eval_steps"], settings["train_steps"], settings["n_embd"]) == (0, 1, 16)


@pytest.mark.parametrize("lora, what", [([], "variable"), (["--lora", "2"], "adapter")])
def test_nothing_left_to_train_is_told_before_a_model_is_made(trained, model, texts, tmp_path, capsys, lora, what):
    for source in (model, folder_of(trained)):
        for words in (
            ["--freeze", ".*"],
            ["--freeze", "wte|wpe|ln_f", "--freeze", "/h[0-9]+/"],
            ["--set", 'freeze=[""]'],
        ):
            out = tmp_path / "more"
            assert main(["finetune", source, "--data", texts, "--out", str(out), *lora, *words]) == 2
            assert f"matches every {what}: nothing is left to train" in capsys.readouterr().err
            assert list(tmp_path.iterdir()) == []


def test_how_a_run_was_trained_is_not_how_it_is_tuned(world, trained, texts, tmp_path, capsys, untrained):
    """The end of its decay, its optimizer and its adapters are left behind; what the command says is not."""
    legacy = {"opt_name": "adafactor", "weight_decay": 0.99, "beta1": 0.0, "ada_epsilon1": 1e-30, "ada_epsilon2": 1e-3}
    aged = {"lr_decay_end": 300000, "lora_rank": 2, "lora_alpha": 4}
    source = world.config("aged", model_path=folder_of(trained), gradient_clipping=0, **legacy, **aged)
    words = ["finetune", source, "--data", texts, "--held_out", "0", "--steps", "10", "--set", "beta2=0.98"]
    for flags, rank in (([], 0), (["--lora", "3"], 3)):
        out = str(tmp_path / str(rank))
        assert main([*words, "--out", out, *flags]) == 3
        run = load_config(out)
        rates = rates_at([1, 10], run.optimizer, run.training.train_steps)
        assert rates == pytest.approx([run.optimizer.lr * (0.1 + 0.45 * (1 + np.cos(np.pi * at))) for at in (0.1, 1)])
        found = (run.optimizer.opt_name, run.optimizer.weight_decay, run.optimizer.beta1, run.optimizer.beta2)
        assert found == ("adamw", 0.1, 0.9, 0.98) and run.optimizer.gradient_clipping == 1
        assert run.model.lora_rank == rank
        assert any("/lora_a" in name for name in Bundle(os.path.join(out, "model.ckpt-0")).names()) == bool(rank)
    capsys.readouterr()


def test_a_kill_between_records_and_held_out_ones(model, texts, tmp_path, monkeypatch, untrained):
    """The same command goes on from the records that are there."""
    prepare, made = finetune_data.prepare_with_bar, []

    def killed(options, restart):
        if made == ["train"]:
            raise KeyboardInterrupt
        made.append(options.name)
        return prepare(options, restart)

    out = tmp_path / "run"
    words = ["finetune", model, "--data", texts, "--held_out", "0.1", "--steps", "1", "--batch_size", "2"]
    words += ["--prompt", "The", "--verify", "none", "--out", str(out)]
    monkeypatch.setattr(finetune_data, "prepare_with_bar", killed)
    assert main(words) == 130 and made == ["train"]
    before = {path.name: path.stat().st_mtime_ns for path in (out / "data").glob("train_*")}
    made[:] = ["again"]
    assert main(words) == 3 and made == ["again", "held_out"]
    assert {path.name: path.stat().st_mtime_ns for path in (out / "data").glob("train_*")} == before
    for start, documents in (("train", 18), ("held_out", 2)):
        account = json.loads((out / "data" / f"{start}_manifest.json").read_text())["account"]
        rows = [row for path in (out / "data").glob(f"{start}_*.tfrecords") for row in read_records(str(path))]
        assert (account["documents_in"], account["records_written"]) == (documents, len(rows))
    assert json.loads((out / "config.json").read_text())["eval_steps"] > 0


def test_a_kill_while_texts_are_tokenized(model, texts, tmp_path, monkeypatch, untrained):
    """The same command goes on from the units that are done."""
    words = ["finetune", model, "--data", texts, "--held_out", "0.1", "--verify", "none"]
    words += ["--out", str(tmp_path / "run")]
    monkeypatch.setattr(finetune_data, "cores", lambda: 1)
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    append, done = Ledger.add_unit, []

    def killed(self, line):
        if len(done) == 3:
            raise Killed
        done.append(line["unit"])
        append(self, line)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Ledger, "add_unit", killed)
        main(words)
    assert done == [0, 1, 2]
    monkeypatch.setattr(Ledger, "add_unit", lambda self, line: (done.append(line["unit"]), append(self, line)))
    assert main(words) == 3 and done[3] == 3 and done.count(0) == 2  # of the held-out texts, too


def test_texts_that_are_not_there_or_change(model, tmp_path, capsys, untrained):
    data, out = tmp_path / "data.jsonl", tmp_path / "run"
    words = ["finetune", model, "--verify", "none", "--held_out", "0", "--out", str(out)]
    for wrong, told in (("nope.jsonl", "--data 'nope.jsonl': no files there"), ("-", "--data -: texts are read twice")):
        assert main([*words, "--data", wrong]) == 2 and told in capsys.readouterr().err
        assert not out.exists()  # nothing was downloaded or converted for it
    data.write_text('{"body": "no text"}\n')
    assert main([*words, "--data", str(data)]) == 2 and not out.exists()
    told = "data.jsonl:1: is no text, no prompt with its completion, and no chat: its keys are 'body'; expected 'text'"
    assert told in capsys.readouterr().err
    data.write_text('{"text": "the first"}\n{"text": "the second"}\n')
    assert main([*words, "--data", str(data)]) == 3
    record = (out / "data" / "train_0_1.tfrecords").read_bytes()
    data.write_text('{"text": "the third"}\n{"text": "the fourth"}\n')
    assert main([*words, "--data", str(data)]) == 2
    assert "its records are of other texts than --data has now" in capsys.readouterr().err
    data.unlink()
    assert main([*words, "--data", str(data)]) == 3 and (out / "data" / "train_0_1.tfrecords").read_bytes() == record
    assert main([*words[:-1], str(tmp_path), "--data", str(out / "config.json")]) == 2
    assert "lies in --out" in capsys.readouterr().err


def run_process(words, environment, seconds=None):
    """The command in a process of its own, killed after some seconds. Returns (status, output)."""
    command = [sys.executable, "-m", "gpt_neo", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        return process.wait(seconds), process.stdout.read()
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return None, process.stdout.read()


@pytest.mark.slow
def test_kills_from_the_hub_to_the_export(model, texts, tmp_path):
    """In an empty folder, by name from a hub, killed at three random moments: the same files in the end."""
    flags = ["--data", texts, "--steps", "30", "--lr", "0.01", "--batch_size", "4", "--prompt", "The"]
    with fake_hub({"org/tiny": model}) as (url, _):
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": ROOT}
        environment["HF_HUB_DISABLE_XET"] = "1"
        whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
        began = time.monotonic()
        status, text = run_process(["finetune", "org/tiny", *flags, "--out", whole], environment)
        assert status == 0, text
        seconds = time.monotonic() - began
        for _ in range(3):
            run_process(["finetune", "org/tiny", *flags, "--out", killed], environment, random.uniform(5, seconds))
        status, text = run_process(["finetune", "org/tiny", *flags, "--out", killed], environment)
        assert status == 0, text
    one, other = (open(os.path.join(out, "hf", "model.safetensors"), "rb").read() for out in (whole, killed))
    assert one == other


def test_adapters_of_a_chat_set(model, tmp_path, capsys):
    """LoRA on chats: only answers count, adapters load with PEFT, and merged they are the exported model."""
    peft = pytest.importorskip("peft")
    import torch

    from gpt_neo.dataprep.records import MASK, parse_example, read_frames

    lines = [{"prompt": f"Number {i}? ", "completion": f"It is {i}, {i} and {i}."} for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = str(tmp_path / "run")
    words = ["finetune", model, "--data", str(tmp_path / "chats.jsonl"), "--out", out, "--steps", "20", "--lora", "4"]
    assert main([*words, "--lr", "0.03", "--batch_size", "4", "--steps_per_checkpoint", "20"]) == 0
    losses = {row["step"]: row["loss"] for row in rows(out)}
    assert losses[max(losses)] < losses[0] - 0.1

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    wanted, found = {}, {}
    for line in lines:
        ids = [tokenizer(line[key])["input_ids"] for key in ("prompt", "completion")]
        wanted[tuple([*ids[0], *ids[1], 0])] = [0] * len(ids[0]) + [1] * (len(ids[1]) + 1)
    for name in sorted(os.listdir(os.path.join(out, "data"))):
        for _, data in read_frames(os.path.join(out, "data", name)) if name.endswith(".tfrecords") else ():
            ids, mask = parse_example(data).tolist(), parse_example(data, MASK).tolist()
            while (size := next((n for n in range(1, len(ids) + 1) if tuple(ids[:n]) in wanted), 0)) > 0:
                found[tuple(ids[:size])] = mask[:size]
                ids, mask = ids[size:], mask[size:]
            assert not any(mask), "what is left over is filling"
    assert found == wanted

    ids = torch.tensor([tokenizer("Number 7? It is")["input_ids"]])
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, os.path.join(out, "adapters")).eval()
    exported = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(out, "hf"), dtype=torch.float32).eval()
    with torch.no_grad():
        np.testing.assert_allclose(exported(ids).logits, adapted(ids).logits, atol=1e-5)
    assert main(["sample", out, "--prompt", "Number 7? ", "--max_tokens", "3", "--seed", "1"]) == 0
    assert not os.path.exists(f"{out}.base")
    capsys.readouterr()


def test_chats_without_a_template_are_told_before_a_model_is_made(trained, model, tmp_path, capsys, untrained):
    """And a run brings its template along, also where its records were made with a tokenizer by path."""
    out, chats, template = tmp_path / "out", tmp_path / "chats.jsonl", tmp_path / "mine.jinja"
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A list."}]
    chats.write_text((json.dumps({"messages": turns}) + "\n") * 4)
    template.write_text("{% for m in messages %}<{{ m.role")
    for source in (model, folder_of(trained)):
        words = ["finetune", source, "--data", str(chats), "--out", str(out), "--held_out", "0"]
        for given, told in (
            ([], f"{source}: the tokenizer has no chat template: give one with --template FILE"),
            (["--template", "none.jinja"], "none.jinja: cannot be read: No such file or directory"),
            (["--template", str(template)], f"{template}: the chat template is none: "),
        ):
            assert main([*words, *given]) == 2
            assert f"error: {told}" in capsys.readouterr().err and not out.exists()
    (tmp_path / "a.txt").write_text("A list is a row of values.")
    assert main(["finetune", model, "--data", f"{tmp_path}/a.txt", "--out", str(out), "--template", "t"]) == 2
    assert "error: --template t: --data has texts, which go through none" in capsys.readouterr().err
    run = tmp_path / "run"
    shutil.copytree(folder_of(trained), run)
    (run / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    words[1] = str(run)
    assert main(words) == 3
    assert (out / "chat_template.jinja").is_file() and (out / "tokenizer.json").is_file()


def test_of_a_model_on_the_hub_mistakes_are_told_before_its_weights_come(model, tmp_path, capsys, monkeypatch):
    """What its small files show, as in a folder."""
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A list."}]
    chats.write_text((json.dumps({"messages": turns}) + "\n") * 4)
    (tmp_path / "a.txt").write_text("A list is a row of values.")
    small = shutil.copytree(model, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr("gpt_neo.checkpoint.hub.download", lambda source, patterns: str(small))
    out = str(tmp_path / "out")
    for data, flags, told in (
        (chats, [], "org/tiny: the tokenizer has no chat template: give one with --template FILE"),
        (tmp_path / "a.txt", ["--freeze", ".*"], "--freeze .* matches every variable: nothing is left to train"),
    ):
        assert main(["finetune", "org/tiny", "--data", str(data), "--out", out, *flags]) == 2
        assert f"error: {told}" in capsys.readouterr().err and not os.path.exists(out)


def test_a_template_that_is_given_becomes_the_models_own(world, tmp_path):
    from gpt_neo.cli.finetune_data import FOLDER, dialog_records
    from gpt_neo.cli.tool_options import Finetune
    from gpt_neo.config import load_config
    from gpt_neo.dataprep.templates import template_of

    out, chats, template = tmp_path / "out", tmp_path / "chats.jsonl", tmp_path / "mine.jinja"
    os.makedirs(out / FOLDER)
    shutil.copy(world.tokenizer, out / "tokenizer.json")
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A list."}]
    chats.write_text((json.dumps({"messages": turns}) + "\n") * 4)
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    run = load_config(world.config("chatty", eos_id=0))
    dialog_records(Finetune("x", (str(chats),), str(out), template=str(template)), run, str(out))
    assert (
        template_of(str(out), load_tokenizer(os.path.join(out, "tokenizer.json"))).render(turns, False)
        == "[user] What is it?\n[assistant] A list.\n"
    )


def test_a_model_that_hugging_face_has_not_is_exported_with_code(world, tmp_path, capsys, monkeypatch):
    """Its adapters are in it; one that our file cannot compute either is refused before training."""
    monkeypatch.setattr("gpt_neo.cli.finetune.train", lambda *words: 0)
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text("It is a list of words, and of what they mean. " * 9)
    words = ["--data", str(text), "--held_out", "0", "--lora", "2", "--verify", "none"]
    source = world.config("gated", mlp_glu=True, model_path=str(tmp_path / "gated"))
    os.makedirs(tmp_path / "gated")
    save_random(load_config(source).model, str(tmp_path / "gated"))
    assert main(["finetune", source, "--out", str(out), *words]) == 0
    printed = capsys.readouterr().out
    assert "adapters for PEFT are left out" in printed and printed.endswith(" DST --custom_code\n")
    assert not (out / "adapters").exists() and (out / "hf" / "modeling_gpt_neo_mtf.py").exists()
    assert json.loads((out / "hf" / "config.json").read_text())["gpt_neo"]["mlp_glu"] is True
    bidirectional = [*words, "--set", "causal=false", "--set", "mlm_training=true", "--set", "mlm_mask_id=2"]
    assert main(["finetune", source, "--out", str(tmp_path / "mlm"), *bidirectional]) == 2
    told = capsys.readouterr().err
    assert "there is none of this model: causal is False" in told and not (tmp_path / "mlm" / "data").exists()


@pytest.mark.parametrize("padding, filled", [(1, 1), (300, 0)])
def test_records_are_filled_up_with_an_id_of_the_model(world, tmp_path, padding, filled):
    """Configs of the 2021 program name 50257 of 50,257 as padding_id."""
    out, chats = tmp_path / "out", tmp_path / "chats.jsonl"
    os.makedirs(out / finetune_data.FOLDER)
    shutil.copy(world.tokenizer, out / "tokenizer.json")
    chats.write_text((json.dumps({"prompt": "One? ", "completion": "Two."}) + "\n") * 2)
    run = load_config(world.config("padded", padding_id=padding))
    made = finetune_data.dialog_records(Finetune("x", (str(chats),), str(out), held_out=0.0), run, str(out))
    assert (made["config"]["padding_id"], made["samples"]) == (filled, 1)
    (ids,) = readable(str(out / finetune_data.FOLDER), "train_0_1.tfrecords")
    assert len(ids) == 33 and list(ids[-5:]) == [filled] * 5


@pytest.mark.parametrize("given, every", [([], 2000), (["--steps_per_checkpoint", "5000"], 5000)])
def test_steps_between_checkpoints(trained, given, every):
    """A tenth of all, unless they are given: also where they are those that `train` takes by itself."""
    options = parse(Finetune, ["SRC", "--data", "x", "--out", "o", "--prompt", "x", *given], "gpt-neo finetune")
    run = load_config(trained, ["train_steps=20000", "predict_steps=1"])
    made = training_of(options, run, "o")
    assert made.training.steps_per_checkpoint == every and made.training.patience == 0
    assert parse(Train, words_of(made), "gpt-neo train") == made


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"steps_per_checkpoint": 5000, "patience": 3},
        {"freeze": "wte"},  # not its letters
        {"verify": "none", "bound": 1e-3, "lora": 2},
    ],
)
def test_from_python_the_flags_are_those_of_the_command(monkeypatch, given):
    asked = []
    monkeypatch.setattr(api, "finetune_command", lambda options: asked.append(options) or 0)
    monkeypatch.setattr(api, "load", lambda out, checkpoint: out)
    assert api.finetune("SRC", data="x", out="o", **given) == "o"
    words = [f"--{name}={value}" for name, value in given.items()]
    assert asked == [parse(Finetune, ["SRC", "--data", "x", "--out", "o", *words], "gpt-neo finetune")]
