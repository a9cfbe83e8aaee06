"""--eval with tasks, as a user calls it, against PyTorch on the same weights and texts."""

import glob
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.config.loader import CONFIG_DIR
from gpt_neo.dataprep.cleaning import detokenize_wikitext
from gpt_neo.errors import ConfigError, DataError
from gpt_neo.evaluation.tasks import FORMS, examples_of, load_task
from gpt_neo.mtf_compat import tf
from gpt_neo.tokenizer import load_tokenizer
from tests.conftest import ROOT

PAGES = (
    " \n = First page = \n \n Some words , and a @-@ joined one . \n \n = = Part = = \n \n More of it . \n"
    " \n = Second = \n \n It has ( few ) words . \n"
)


def lines_of(config, name=None):
    run = load_config(config)
    path = os.path.join(run.training.model_path, f"eval_{name or run.name}.jsonl")
    return [json.loads(line) for line in open(path, encoding="utf-8")]


@pytest.fixture
def evaluated(trained, command, capsys):
    """Evaluate tasks; the lines they left, by name, and what was printed."""

    def run(*entries):
        assert command("--model", trained, "--eval", "--sacred_id", "tasks", "--eval_tasks", *entries) == 0
        found = lines_of(trained, "tasks")[-len(entries) :]
        return {line["task"]: line for line in found}, capsys.readouterr().out

    return run


def test_losses_of_texts_and_of_their_sets(evaluated, peer, texts):
    path, rows = texts
    found, shown = evaluated(f"pile={path}")
    line = found["pile"]
    assert line["step"] == 20 and line["documents"] == [path] and line["examples"] == len(rows)
    nats, tokens = np.array([peer.text_nats(row["text"]) for row in rows]).T
    size = np.array([len(row["text"].encode()) for row in rows])
    letters = np.array([len(row["text"]) for row in rows])
    sets = [row.get("meta", {}).get("pile_set_name") for row in rows]
    assert sum(tokens > 32) >= 3 and (size > letters).any()
    for part, chosen in [(line, np.full(len(rows), True))] + [
        (line["sets"][name], np.array([s == name for s in sets])) for name in ("Books3", "Pile-CC")
    ]:
        x, n = nats[chosen].sum(), tokens[chosen].sum()
        wanted = {
            "loss": x / n,
            "perplexity": math.exp(x / n),
            "bits_per_byte": x / size[chosen].sum() / math.log(2),
            "bits_per_character": x / letters[chosen].sum() / math.log(2),
        }
        assert part["tokens"] == n and part["metrics"] == pytest.approx(wanted, rel=1e-5)
        for name, (low, high) in part["intervals"].items():
            assert low < wanted[name] < high
    assert set(line["sets"]) == {"Books3", "Pile-CC"}
    assert f"{line['metrics']['loss']:.4f}" in shown and "pile, Books3" in shown


def test_lambada(evaluated, peer, texts):
    path, rows = texts
    found, _ = evaluated(f"lambada={path}")
    nats, right = [], []
    for row in rows:
        words = row["text"].split(" ")
        context, target = " ".join(words[:-1]), words[-1] if len(words) == 1 else f" {words[-1]}"
        known = len(peer.encode(context))
        ids = peer.encode(context + target) if known else [0, *peer.encode(target)]
        count = len(ids) - (known or 1)
        logprobs, greedy = peer.logprobs(ids[-peer.n_ctx - 1 :], count)
        nats.append(-sum(logprobs))
        right.append(all(greedy))
    metrics, intervals = found["lambada"]["metrics"], found["lambada"]["intervals"]
    assert metrics["target_perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    assert metrics["accuracy"] == np.mean(right)
    margin = 1.959964 * np.std(nats, ddof=1) / math.sqrt(len(nats))
    assert intervals["target_perplexity"] == pytest.approx(
        [math.exp(np.mean(nats) - margin), math.exp(np.mean(nats) + margin)], rel=1e-4
    )


def test_wikitext(evaluated, peer, tmp_path):
    (tmp_path / "wiki.test.raw").write_text(PAGES, encoding="utf-8")
    found, _ = evaluated(f"wikitext={tmp_path}/wiki.test.raw")
    cut = PAGES.index(" = Second")
    pages = [PAGES[:cut].removeprefix(" \n").removesuffix("\n"), PAGES[cut:]]
    nats = sum(peer.text_nats(detokenize_wikitext(page, legacy=True))[0] for page in pages)
    words = sum(len(re.split(r"\s+", page)) for page in pages)
    metrics = found["wikitext"]["metrics"]
    assert found["wikitext"]["examples"] == 2
    assert metrics["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(nats / len("".join(pages).encode()) / math.log(2), rel=1e-5)


def test_wikitext_is_detokenized_as_the_harness_does():
    harness = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    tricky = PAGES + " the dogs ' s N @,@ 1 @.@ 5 \" a \" ' b ' [ c ] { d } /' 3/ 20 \N{DEGREE SIGN} C ; x ! y ? z : 's"
    assert detokenize_wikitext(tricky, legacy=True) == harness.wikitext_detokenizer({"page": tricky})


def test_a_mesh_gives_the_same(evaluated, trained, texts):
    argv = [
        "--model",
        trained,
        "--eval",
        "--sacred_id",
        "mesh",
        "--eval_tasks",
        f"pile={texts[0]}",
        "--gpu_ids",
        "cpu:0",
        "cpu:1",
        "--set",
        "mesh_shape=x:2",
        "--set",
        "layout=heads:x,vocab:x",
    ]
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "main.py"), *argv], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    spread, alone = lines_of(trained, "mesh")[-1], evaluated(f"pile={texts[0]}")[0]["pile"]
    assert spread["metrics"] == pytest.approx(alone["metrics"], rel=1e-5) and spread["tokens"] == alone["tokens"]


def test_tensorboard_holds_what_was_printed(evaluated, trained, texts):
    found, _ = evaluated(f"lambada={texts[0]}")
    seen = {}
    for path in glob.glob(os.path.join(load_config(trained).training.model_path, "eval", "events*")):
        for event in tf.train.summary_iterator(path):
            seen.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
    for name, value in found["lambada"]["metrics"].items():
        assert seen[f"lambada/{name}", 20] == pytest.approx(value, rel=1e-6)


def letters_between_spaces(document):
    """A form of this test: every second word is asked for."""
    words = document.text.split(" ")
    return FORMS["whole"](document._replace(text=" ".join(words[::2])))


def longest(outcomes):
    """A metric of this test."""
    from gpt_neo.runtime.intervals import Interval

    return Interval(max(o.tokens for o in outcomes))


def test_a_task_of_ones_own_needs_no_other_file(world, trained, evaluated, texts, peer):
    folder = os.path.join(world.folder, "eval_tasks")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "mine.json"), "w", encoding="utf-8") as handle:
        json.dump(
            {
                "documents": texts[0],
                "form": f"{__name__}:letters_between_spaces",
                "limit": 3,
                "metrics": ["loss", f"{__name__}:longest"],
            },
            handle,
        )
    found, shown = evaluated("mine", f"pile={texts[0]}")
    cut = [" ".join(row["text"].split(" ")[::2]) for row in texts[1][:3]]
    nats, tokens = np.array([peer.text_nats(text) for text in cut]).T
    assert found["mine"]["metrics"] == pytest.approx({"loss": nats.sum() / tokens.sum(), "longest": tokens.max()})
    assert "mine" in shown


def test_tasks_of_the_config_come_after_held_out_records(trained, command, capsys, texts):
    entry = f'["lambada={texts[0]}"]'
    assert command("--model", trained, "--eval", "--sacred_id", "both", "--set", f"eval_tasks={entry}") == 0
    first, second = lines_of(trained, "both")
    assert first["records"] > 0 and first["intervals"]["loss"][0] < first["loss"] < first["intervals"]["loss"][1]
    assert second["task"] == "lambada"
    assert "held out" in capsys.readouterr().out


def test_the_2021_program_kept_lambada_as_ids(world, trained, texts, tmp_path):
    tokenizer = load_tokenizer(world.tokenizer)
    path = tmp_path / "lambada.json"
    path.write_text(json.dumps([tokenizer.encode(row["text"]) for row in texts[1]]))
    name = world.dataset_config("with_lambada", lambada_tokens_path=str(path))
    run = load_config(world.config("legacy_tasks", datasets=[name], eval_tasks=["lambada"]))
    found = examples_of(load_task("lambada", run), tokenizer)
    plain = examples_of(load_task(f"lambada={texts[0]}", run), tokenizer)
    assert [(e.context, e.continuation) for e in found] == [(e.context, e.continuation) for e in plain]


@pytest.mark.parametrize("form", ["lambada", "pile", "wikitext_documents"])
def test_empty_documents_are_no_examples(world, trained, tmp_path, form):
    """They would be predicted without fail: accuracy 1, perplexity 1."""
    key, tokenizer = "page" if form == "wikitext_documents" else "text", load_tokenizer(world.tokenizer)
    lines = [json.dumps({key: text}) for text in ("the last word", "", "one more")]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    found = examples_of(load_task(f"{form}={tmp_path}/some.jsonl", load_config(trained)), tokenizer)
    assert [example.context + example.continuation for example in found] == ["the last word", "one more"]
    (tmp_path / "none.json").write_text("[[], []]")  # ids of the 2021 program
    with pytest.raises(DataError, match="nothing to score in"):
        examples_of(load_task(f"lambada={tmp_path}/none.json", load_config(trained)), tokenizer)


@pytest.mark.parametrize(
    "entry, error, text",
    [
        ("lambda=x.jsonl", ConfigError, "no eval task 'lambda'; there are lambada, "),
        ("lambada", ConfigError, "names no documents; give lambada=FILE"),
        ("wrong", ConfigError, "unknown key 'metric'; nearest known key: 'metrics'"),
        ("odd", ConfigError, "metric 'losses' is unknown; there are loss, perplexity"),
        ("lambada=nowhere.jsonl", DataError, "eval task 'lambada', documents 'nowhere.jsonl': no files there"),
        ("lambada={empty}", DataError, "nothing to score in"),
        ("lambada={bad}", DataError, "bad.jsonl:2: "),
        ("pile={half}", DataError, "half.jsonl:2: a lone surrogate"),
    ],
)
def test_mistakes(world, trained, tmp_path, entry, error, text):
    folder = os.path.join(world.folder, "eval_tasks")
    os.makedirs(folder, exist_ok=True)
    for name, value in (("wrong", {"metric": "loss"}), ("odd", {"documents": "x", "metrics": ["losses"]})):
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as handle:
            json.dump(value, handle)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "a b"}\n{"text": 3}\n')
    (tmp_path / "half.jsonl").write_text('{"text": "a b"}\n{"text": "a \\ud800 b"}\n')
    entry = entry.format(**{name: tmp_path / f"{name}.jsonl" for name in ("empty", "bad", "half")})
    with pytest.raises(error, match=re.escape(text)):
        examples_of(load_task(entry, load_config(trained)), load_tokenizer(world.tokenizer))


def test_a_task_without_documents_is_refused_before_training(world, command, capsys):
    path = world.config("refused", eval_tasks=["lambada"], eval_steps=1)
    assert command("--model", path) == 2
    assert "names no documents" in capsys.readouterr().err
    assert not os.path.exists(load_config(path).training.model_path)


def test_shipped_tasks_load(trained):
    paths = glob.glob(os.path.join(CONFIG_DIR, "eval_tasks", "*.json"))
    assert len(paths) >= 4
    for path in paths:
        assert load_task(f"{path}=some.jsonl", load_config(trained)).documents == ("some.jsonl",)
