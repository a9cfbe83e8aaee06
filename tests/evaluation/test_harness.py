"""lm-evaluation-harness: our adapter, the harness's own Hugging Face model of the same weights, and PyTorch alone."""

import configparser
import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from gpt_neo.config import load_config
from gpt_neo.errors import ConfigError
from tests.conftest import ROOT
from tests.evaluation.conftest import WORDS

lm_eval = pytest.importorskip("lm_eval")
TASKS = {
    "cloze": """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{target}}"
metric_list: [{metric: perplexity, aggregation: perplexity}, {metric: acc, aggregation: mean}]
""",
    "choice": """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: 1
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "generation": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["e ", "xyz"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}
NAMES = list(TASKS)


def write_tasks(folder, docs):
    """TASKS over the documents, as files in a folder."""
    data = folder / "docs.json"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    for name, body in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}{body}{source}", encoding="utf-8")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of local tasks with their data, and the documents."""
    folder = tmp_path_factory.mktemp("tasks")
    docs = []
    for i, (before, after) in enumerate([(1, 1), (4, 2), (30, 2), (0, 3), (60, 1), (7, 2), (2, 3)]):
        words = WORDS[i * 3 : i * 3 + before + after]
        context, target = " ".join(words[:before]), " ".join(words[before:])
        target = f" {target}" if context else target
        docs.append({"context": context, "target": target, "text": context + target, "choices": [" one", target]})
    docs[1]["context"] += "  "  # white space that belongs to the continuation
    write_tasks(folder, docs)
    return str(folder), docs


@pytest.fixture(scope="module")
def evaluate(tasks):
    """simple_evaluate on the local tasks."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=tasks[0], include_defaults=False)
    return lambda model, **more: lm_eval.simple_evaluate(
        model=model, tasks=NAMES, task_manager=manager, bootstrap_iters=0, **more
    )


@pytest.fixture(scope="module")
def ours(trained, evaluate):
    from gpt_neo.evaluation.harness import GptNeoLM

    model = GptNeoLM(model=trained, batch_size=3)
    return model, evaluate(model)


def answers(results, name):
    """What the model answered to each document of a task."""
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


def compare_answers(first, second, name):
    """Two models answer alike: texts equal, log-probabilities to 1e-4, greedy flags equal."""
    for mine, other in zip(answers(first, name), answers(second, name), strict=True):
        if name == "generation":
            assert mine == other
        elif name == "rolling":
            assert mine == pytest.approx(other, abs=1e-4)
        else:
            assert [x for x, _ in mine] == pytest.approx([x for x, _ in other], abs=1e-4)
            assert [bool(flag) for _, flag in mine] == [bool(flag) for _, flag in other]


def test_equals_the_harness_with_hugging_face(ours, evaluate, twin):
    pytest.importorskip("accelerate")
    theirs = evaluate("hf", model_args={"pretrained": twin, "dtype": "float32"}, batch_size=2, device="cpu")
    for name in NAMES:
        compare_answers(ours[1], theirs, name)
        for metric, value in ours[1]["results"][name].items():
            assert value == (
                pytest.approx(theirs["results"][name][metric], rel=1e-4)
                if isinstance(value, float)
                else theirs["results"][name][metric]
            )


def test_equals_a_direct_loss(ours, peer, tasks):
    for (answer,), doc in zip(answers(ours[1], "rolling"), tasks[1], strict=True):
        assert -answer == pytest.approx(peer.text_nats(doc["text"])[0], abs=1e-4)
    for ((total, greedy),), doc in zip(answers(ours[1], "cloze"), tasks[1], strict=True):
        context = doc["context"].rstrip()
        known = len(peer.encode(context))
        ids = peer.encode(doc["context"] + doc["target"]) if known else [0, *peer.encode(doc["target"])]
        logprobs, right = peer.logprobs(ids[-peer.n_ctx - 1 :], len(ids) - (known or 1))
        assert (total, greedy) == (pytest.approx(sum(logprobs), abs=1e-4), all(right))


def test_generation_is_greedy_and_stops(ours, peer, tasks):
    for (text,), doc in zip(answers(ours[1], "generation"), tasks[1], strict=True):
        ids = peer.encode(doc["text"])[-(peer.n_ctx - 12) :]
        new = []
        for _ in range(12):
            with peer.torch.no_grad():
                token = int(peer.model(peer.torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == 0:
                break
            new.append(token)
        whole = peer.tokenizer.decode(new, skip_special_tokens=True)
        assert text == whole.split("e ")[0].split("xyz")[0]


def test_by_name_one_by_one_and_cached(ours, evaluate, trained, tmp_path):
    """The registered name, batches of one row, and the harness's cache give the same answers."""
    model = f"model={trained},checkpoint=20,max_length=32"
    again = evaluate("gpt_neo", model_args=model, batch_size=1, use_cache=str(tmp_path / "answers"))
    for name in NAMES[:3]:
        flat = [
            [x for pair in results for x in (pair if isinstance(pair, (list, tuple)) else [pair])]
            for results in (answers(ours[1], name), answers(again, name))
        ]
        for mine, other in zip(*flat, strict=True):
            assert mine == pytest.approx(other, abs=1e-4)
    assert answers(ours[1], "generation") == answers(again, "generation")
    assert os.path.exists(tmp_path / "answers_rank0.db")


def test_command(trained, tasks, tmp_path, capsys, monkeypatch):
    from gpt_neo.__main__ import main

    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "")  # so that what --offline sets ends with this test
    output = tmp_path / "all.json"
    argv = [
        "harness",
        "--model",
        trained,
        "--tasks",
        "cloze,rolling",
        "--include_path",
        tasks[0],
        "--offline",
        "--limit",
        "3",
        "--output",
        str(output),
    ]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "word_perplexity" in shown and "checkpoint at step 20" in shown
    lines = [
        json.loads(line) for line in open(os.path.join(load_config(trained).training.model_path, "eval_trained.jsonl"))
    ]
    assert {line["task"] for line in lines[-2:]} == {"cloze", "rolling"}
    whole = json.loads(output.read_text())
    assert lines[-1]["metrics"]["bits_per_byte,none"] == whole["results"]["rolling"]["bits_per_byte,none"]
    assert main([*argv[:6], "nowhere"]) == 2 and "--include_path 'nowhere': no such folder" in capsys.readouterr().err
    assert main([*argv[:5], "--output", "no/where.json"]) == 2 and "does not exist" in capsys.readouterr().err


def test_a_cache_has_no_answers_of_another_model(trained, tasks, tmp_path, capsys, monkeypatch):
    from gpt_neo.__main__ import main

    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "")
    argv = ["harness", trained, "--tasks", "rolling", "--include_path", tasks[0], "--offline"]

    def score(*more):
        output = tmp_path / "all.json"
        assert main([*argv, "--output", str(output), *more]) == 0
        return json.loads(output.read_text())["results"]["rolling"]["bits_per_byte,none"]

    cache = ["--use_cache", str(tmp_path / "answers")]
    first, second = score("--checkpoint", "0"), score("--checkpoint", "20")
    assert first != second
    assert [score("--checkpoint", step, *cache) for step in ("0", "20", "0")] == [first, second, first]
    assert score("--max_length", "16", *cache) == score("--max_length", "16") != second
    assert len(list(tmp_path.glob("answers_*_rank0.db"))) == 3


@pytest.mark.slow  # the harness's index of its own tasks
def test_command_with_an_unknown_task(trained, tasks, capsys, monkeypatch):
    from gpt_neo.__main__ import main

    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    assert main(["harness", "--model", trained, "--tasks", "clozes", "--include_path", tasks[0]]) == 2
    assert "--tasks clozes: the harness has no such task" in capsys.readouterr().err


def test_the_most_tokens_that_a_task_may_ask_for_leave_the_context_whole(ours, peer, caplog):
    """256 where a task does not say, which a short context does not have; and contexts that are cut are counted."""
    from lm_eval.api.instance import Instance

    model, context = ours[0], "assert is a statement"
    ids = peer.torch.tensor([peer.encode(context)])
    made = peer.model.generate(ids, max_length=peer.n_ctx, do_sample=False, pad_token_id=1, eos_token_id=0)
    wanted = peer.tokenizer.decode(made[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
    assert model.max_gen_toks >= model.max_length == peer.n_ctx
    caplog.set_level("WARNING", "gpt_neo")
    assert model.generate_until([Instance("generate_until", {}, (context, {"until": []}), 0)], True) == [wanted]
    assert not caplog.messages
    options = {"until": [], "max_gen_toks": peer.n_ctx - ids.shape[1] + 1}
    requests = [Instance("generate_until", {}, (text, options), i) for i, text in enumerate([context, "a"])]
    model.generate_until(requests, True)
    assert caplog.messages == ["1 of 2 contexts lose their beginnings: new tokens need the room"]


def test_sampling_is_of_the_seed_and_not_of_the_batch(ours):
    from lm_eval.api.instance import Instance

    options = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 6, "until": []}
    requests = [Instance("generate_until", {}, (text, options), i) for i, text in enumerate(["The if", "a", "for x"])]
    alone = ours[0].generate_until(requests[:1], disable_tqdm=True)
    assert ours[0].generate_until(requests, disable_tqdm=True)[:1] == alone


@pytest.mark.parametrize(
    "options, temperature",
    [
        ({}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0}, 0.0),
        ({"temperature": 0.5}, 0.5),
        ({"do_sample": False, "temperature": 0.5}, 0.0),
    ],
    ids=str,
)
def test_temperature_of_generation(ours, options, temperature):
    assert ours[0].prompt("The", options).options.temperature == temperature


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({}, {"seed": 7, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 256}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": None, "top_p": None}, {"seed": 7, "top_p": 1.0}),
        ({"seed": 3, "top_k": 5, "top_p": 0.5, "min_p": 0.1}, {"seed": 3, "top_k": 5, "top_p": 0.5, "min_p": 0.1}),
    ],
    ids=str,
)
def test_what_a_task_says_of_sampling_is_taken(ours, monkeypatch, options, wanted):
    monkeypatch.setattr(ours[0], "seed", 7)
    found = ours[0].prompt("The", {"do_sample": True, **options}).options
    assert {name: getattr(found, name) for name in wanted} == wanted and found.eos_id == ours[0].prefix


def test_a_top_p_that_means_nothing_is_refused(ours):
    with pytest.raises(ConfigError, match="--top_p is 0.0; expected more than 0"):
        ours[0].prompt("The", {"do_sample": True, "top_p": 0})


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"batch_size": "0"}, "batch_size is '0'"),
        ({"overrides": "n_layers=3"}, "unknown key 'n_layers'"),
    ],
)
def test_arguments_that_mean_nothing(trained, changes, text):
    from gpt_neo.evaluation.harness import GptNeoLM

    with pytest.raises(ConfigError, match=text):
        GptNeoLM(model=trained, **changes)


def test_unknown_generation_options_are_refused(ours):
    with pytest.raises(ConfigError, match="generation_kwargs has 'num_beams': 2; this model has 1 alone"):
        ours[0].prompt("a", {"until": [], "num_beams": 2})
    with pytest.raises(ConfigError, match="generation_kwargs has 'typical_p'; allowed: until"):
        ours[0].prompt("a", {"typical_p": 0.9})
    # as nine groups of the harness's own tasks have it
    given = {"until": ["\n"], "do_sample": False, "num_beams": 1, "max_new_tokens": 7}
    asked = ours[0].prompt("a", given)
    assert (asked.options.max_tokens, asked.options.temperature, asked.stop) == (7, 0.0, ("\n",))
    assert ours[0].prompt("a", {"do_sample": True, "min_p": 0.1}).options.min_p == 0.1


def test_the_entry_point_names_the_adapter(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    found = configparser.ConfigParser()
    found.read(tmp_path / "gpt_neo.egg-info" / "entry_points.txt")
    ((name, value),) = found["lm_eval.models"].items()
    from gpt_neo.evaluation.harness import NAME, GptNeoLM

    assert importlib.metadata.EntryPoint(name, value, "lm_eval.models").load() is GptNeoLM and name == NAME
