"""The package from Python: against PyTorch, and every example of docs/python.md."""

import concurrent.futures
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import gpt_neo
from gpt_neo.errors import GptNeoError
from tests.conftest import ROOT, folder_of
from tests.evaluation.conftest import peer, twin  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def model(trained):
    return gpt_neo.load(trained)


def test_greedy_text_is_that_of_transformers(model, peer):  # noqa: F811
    prompts = ["The class", "A string of characters"]
    theirs = []
    for prompt in prompts:
        ids = peer.torch.tensor([peer.encode(prompt)])
        made = peer.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=1, eos_token_id=0)
        theirs.append(peer.tokenizer.decode(made[0, ids.shape[1] :].tolist(), skip_special_tokens=True))
    assert model.generate(prompts, max_tokens=8, temperature=0) == theirs
    assert [model.generate(prompt, max_tokens=8, temperature=0) for prompt in prompts] == theirs


def test_one_device_may_be_given_as_a_text(trained, model):
    """And is not the sequence of its letters."""
    text = gpt_neo.load(trained, gpus="cpu:0").generate("The class", max_tokens=4, temperature=0)
    assert text == model.generate("The class", max_tokens=4, temperature=0)


def test_a_gpu_that_is_not_there_is_told(trained):
    """The model would run on a CPU in its place."""
    with pytest.raises(GptNeoError, match="names /device:GPU:99; TensorFlow sees"):
        gpt_neo.load(trained, gpus=["99"])


@pytest.mark.parametrize("most", [None, 1000])
def test_more_new_tokens_than_fit_leave_the_prompt_whole(model, peer, caplog, most):  # noqa: F811
    """They fill the context with what transformers goes on with; and who asked for more hears of it."""
    ids = peer.torch.tensor([peer.encode("The class has a name")])
    n_ctx = peer.n_ctx
    made = peer.model.generate(ids, max_length=n_ctx, do_sample=False, pad_token_id=1, eos_token_id=0)
    wanted = peer.tokenizer.decode(made[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
    caplog.set_level("INFO", "gpt_neo")
    assert model.generate("The class has a name", max_tokens=most, temperature=0) == wanted
    assert model.generate(["The class has a name"], max_tokens=most, temperature=0) == [wanted]
    told = [text for text in caplog.messages if text.startswith("there is room for ")]
    room = f"there is room for {n_ctx - ids.shape[1]} new tokens, not for {most}: n_ctx is {n_ctx}"
    assert told == ([room] * 2 if most else [])


def test_logprobs_are_those_of_transformers(model, peer):  # noqa: F811
    texts = ["The class has a name.", "naïve € été"]
    for text, found in zip(texts, model.logprobs(texts)):
        ids = peer.encode(text)
        wanted, greedy = peer.logprobs([0, *ids], len(ids))
        np.testing.assert_allclose(found.logprobs, wanted, atol=2e-5)
        assert found.greedy.tolist() == greedy and len(found.tokens) == len(ids)
    assert "".join(found.tokens[:2]) == "na"
    after = model.logprobs(" has a name.", context="The class")
    count = len(after.logprobs)  # here nothing stands before the context: no document begins with it
    wanted, _ = peer.logprobs(peer.encode("The class has a name."), count)
    np.testing.assert_allclose(after.logprobs, wanted, atol=2e-5)
    assert "".join(after.tokens) == " has a name."
    assert after.total == pytest.approx(float(after.logprobs.sum()), abs=1e-4)


def test_streams_seeds_and_stops(model):
    options = {"max_tokens": 25, "seed": 5, "temperature": 1.2}
    whole = model.generate("The class", **options)
    pieces = list(model.stream("The class", **options))
    assert "".join(pieces) == whole and len(pieces) > 5
    assert model.generate("The class", **{**options, "seed": 6}) != whole
    assert model.generate(["The class"], **options) == [whole] == [model.generate("The class", stop=None, **options)]
    stop = whole[7:9]
    assert model.generate("The class", stop=stop, **options) == whole[: whole.index(stop)]
    assert "".join(model.stream("The class", stop=["nowhere in it", stop], **options)) == whole[: whole.index(stop)]
    assert model.generate("", max_tokens=3, seed=1) == model.generate("", max_tokens=3, seed=1)


def test_places_may_be_paths(trained, tmp_path):
    run = pathlib.Path(folder_of(trained))
    assert gpt_neo.load(run).folder == str(run)
    with pytest.raises(GptNeoError, match="no config '.*nowhere'"):
        gpt_neo.train(tmp_path / "nowhere")
    for data in (tmp_path / "no.jsonl", [tmp_path / "no.jsonl"]):
        with pytest.raises(GptNeoError, match="--data '.*no.jsonl': no"):
            gpt_neo.finetune(run, data, tmp_path / "out")


def test_texts_that_grow_at_the_same_time_are_those_alone(model):
    prompts, options = ["The class", "A string of"], {"max_tokens": 12, "temperature": 0}
    alone = [model.generate(prompt, **options) for prompt in prompts]
    streams = [model.stream(prompt, **options) for prompt in prompts]
    pieces = list(itertools.zip_longest(*streams, fillvalue=""))
    assert ["".join(texts) for texts in zip(*pieces)] == alone
    begun = model.stream(prompts[0], **options)
    assert (
        next(begun) + model.generate(prompts[1], **options) + "".join(begun)
        == pieces[0][0] + alone[1] + (alone[0][len(pieces[0][0]) :])
    )
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda prompt: model.generate(prompt, **options), prompts * 3)) == alone * 3
        assert list(threads.map(lambda _: model.generate(prompts, **options), range(3))) == [alone] * 3
    del begun
    assert len(model._samplers) <= 4 and not model._busy  # two of streams, one or two of lists


def test_mistakes_are_raised_with_the_text_of_the_commands(model, trained):
    with pytest.raises(GptNeoError, match="no config 'nowhere'"):
        gpt_neo.load("nowhere")
    with pytest.raises(GptNeoError, match="--temperature is -1; expected at least 0"):
        model.generate("x", temperature=-1)
    with pytest.raises(GptNeoError, match="unknown key 'train_stepz'; nearest known key: 'train_steps'"):
        gpt_neo.train(trained, train_stepz=3)
    for name, value, wanted in (
        ("max_tokens", 2.5, "2.5; expected a whole number"),
        ("max_tokens", "3", "'3'; expected a whole number"),
        ("temperature", "hot", "'hot'; expected a number"),
        ("top_p", None, "None; expected a number"),
    ):
        with pytest.raises(GptNeoError, match=f"--{name} is {wanted}"):
            model.generate("x", **{name: value})
    with pytest.raises(GptNeoError, match=r"stop is \[3\]; expected strings that end a text"):
        model.generate("x", stop=[3])
    with pytest.raises(GptNeoError, match="--steps_per_checkpoint is 2.5; expected a whole number"):
        gpt_neo.train(trained, steps_per_checkpoint=2.5)
    assert model.generate("x", max_tokens=np.int64(2), temperature=np.float32(0)) == model.generate(
        "x", max_tokens=2, temperature=0
    )
    with pytest.raises(TypeError, match="temprature"):
        model.generate("x", temprature=1)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        gpt_neo.lode  # noqa: B018


@pytest.mark.slow  # the page by itself; what it calls has tests above
def test_examples_of_the_page_run(world, trained, tmp_path, monkeypatch, capfd):
    """In order and together, in a folder with a run and a config of the names that the page uses."""
    os.makedirs(tmp_path / "runs")
    os.symlink(folder_of(trained), tmp_path / "runs" / "mine")
    os.symlink(os.path.join(world.folder, "dataset_configs"), tmp_path / "dataset_configs")
    os.rename(world.config("mine", model_path="run", train_steps=5), tmp_path / "mine.json")
    sentences = [{"text": f"The class has {number} names, and a string of characters. " * 3} for number in range(8)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, sentences)))
    monkeypatch.chdir(tmp_path)
    page = open(os.path.join(ROOT, "docs", "python.md"), encoding="utf-8").read()
    examples = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(examples) == 5
    names = {}
    for example in examples:
        exec(compile(example, "docs/python.md", "exec"), names)
    out = capfd.readouterr()
    assert names["trained"].step == 30 and os.path.exists("run/model.ckpt-30.index")
    assert names["tuned"].folder.endswith("runs/tuned") and os.path.exists("runs/tuned/hf/model.safetensors")
    steps = [int(line.split()[0]) for line in out.out.splitlines() if re.fullmatch(r"\d+ \d\.\d+", line)]
    assert steps == list(range(1, 31)) and "tokens/s" not in out.out
    assert names["scores"].total < 0 and isinstance(names["first"], str) and "." not in names["short"]


def test_importing_is_quick_and_loading_silent(trained, tmp_path):
    """What TensorFlow would say goes nowhere, and handlers, filters and stderr stay the program's own."""
    code = (
        "import sys; before = set(sys.modules); import gpt_neo; print(len(set(sys.modules) - before))\n"
        "assert 'load' in dir(gpt_neo)\n"
        "import logging, warnings; before = (list(warnings.filters), logging.getLogger().handlers[:], sys.stderr)\n"
        f"m = gpt_neo.load({trained!r}); m.generate('x', max_tokens=2); m.logprobs('a b')\n"
        "assert before[1:] == (logging.getLogger().handlers, sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == "" and int(done.stdout) < 20, (done.stdout, done.stderr)


def test_at_a_prompt_of_python_nothing_is_printed_either(trained):
    """There, as in a notebook, TensorFlow has its INFO lines on standard output."""
    typed = f"import gpt_neo\nm = gpt_neo.load({trained!r})\n_ = m.generate('x', max_tokens=2)\nprint('end')\n"
    command = [sys.executable, "-q", "-i"]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout == "end\n", done.stdout
    assert not done.stderr.replace(">>>", "").strip(), done.stderr
