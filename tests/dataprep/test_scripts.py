"""The scripts of data/, as a user calls them."""

import glob
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt_neo.cli.common import run_command
from gpt_neo.dataprep.manifest import manifests_of
from gpt_neo.dataprep.records import RecordWriter, example_of, frame
from gpt_neo.dataprep.survey import Lengths, survey
from gpt_neo.tokenizer import load_tokenizer
from tests.conftest import ROOT
from tests.dataprep.test_prepare import contents, write_lines

SCRIPTS = sorted(glob.glob(os.path.join(ROOT, "data", "*.py")))


def manifest_of(path):
    """The manifest of a file of records."""
    (found,) = manifests_of([path]).values()
    return found


def call(name, *arguments, **options):
    """A script in a process of its own."""
    path = os.path.join(ROOT, "data", f"{name}.py")
    return subprocess.run(
        [sys.executable, path, *map(str, arguments)], capture_output=True, cwd=ROOT, check=False, **options
    )


def load(name):
    """A script as a module of another name, as `inspect` would stand in for the standard library's."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", os.path.join(ROOT, "data", f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: run_command(module.main, [str(word) for word in arguments])


@pytest.mark.parametrize("path", SCRIPTS, ids=os.path.basename)
def test_help(path):
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and not done.stderr


def test_inspect_stands_in_for_no_module():
    """Every script has its own folder first on the search path, and many modules import `inspect`."""
    code = (
        "import sys; sys.path.insert(0, 'data'); import inspect, dataclasses; from inspect import signature; "
        "print(inspect.__file__, inspect.isfunction(signature), sys.modules['inspect'] is inspect)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    place, *right = done.stdout.split()
    assert os.path.dirname(place) == os.path.dirname(json.__file__.replace("/json/", "/")) and right == ["True", "True"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, small_tokenizer):
    """Records of three documents."""
    folder = tmp_path_factory.mktemp("prepared")
    write_lines(folder / "in.jsonl", ["one two three", "x", "some more words " * 9])
    arguments = [
        "--input_dir",
        folder / "in.jsonl",
        "--output_dir",
        folder / "out",
        "--encoder_path",
        small_tokenizer,
        "--chunk_size",
        16,
        "--files_per",
        2,
        "--processes",
        1,
    ]
    assert load("create_tfrecords")(*arguments) == 0
    return folder


def test_inspect(prepared, small_tokenizer, capsys):
    picture = prepared / "lengths.png"
    pattern = prepared / "out" / "data_*.tfrecords"
    assert load("inspect")(pattern, "--samples", 1, "--histogram", picture) == 0
    out = capsys.readouterr().out
    assert out.startswith("--- record 0 of ") and "one two three" in out
    found = survey([str(pattern)])
    assert f"documents  3, of 1 to {found.documents.max()} tokens" in out
    assert "(tokenizer " in out and f"{small_tokenizer}: 400 ids)" in out and "WARNING" not in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert found.records == sum(manifest_of(glob.glob(str(pattern))[0])["records"]) and found.shortest == 16
    account = manifest_of(glob.glob(str(pattern))[0])["account"]
    assert found.documents.sum() == account["tokens_in"] and found.tokens == account["tokens_written"]


def test_inspect_warns_and_refuses(prepared, tmp_path, capsys):
    writer = RecordWriter(str(tmp_path), "x", 0)
    writer.write([1, 2, 60_000])
    os.rename(writer.close(), tmp_path / "x_0_7.tfrecords")
    assert load("inspect")(tmp_path / "x_0_7.tfrecords", "--samples", 0) == 1
    out = capsys.readouterr().out
    assert "its name promises 7 records, it holds 1" in out and "id 60000 reaches the 50257 ids" in out
    (tmp_path / "y.tfrecords").write_bytes(frame(example_of(b"\xfd" + b"\xff" * 8 + b"\x01")))  # -3, as protobuf has it
    assert load("inspect")(tmp_path / "y.tfrecords", "--samples", 0) == 1
    assert "id -3 is below 0" in capsys.readouterr().out
    assert load("inspect")(tmp_path / "none*") == 2
    assert "no such file, and no file matches it" in capsys.readouterr().err


def test_survey_of_several_files(tmp_path):
    """Ids from the least to the greatest of all records, and where each sample stands."""
    for number, records in enumerate(([[9, 400], [30, 7]], [[5], [8, 50_256]])):
        writer = RecordWriter(str(tmp_path), "x", number)
        for ids in records:
            writer.write(ids)
        writer.close()
    first, second = sorted(map(str, tmp_path.glob("*.tfrecords")))
    found = survey([str(tmp_path)], samples=3)
    assert (found.smallest, found.largest, found.records, found.tokens, found.files) == (5, 50_256, 4, 7, 2)
    assert [place for place, _ in found.samples] == [
        f"record 0 of {first}, 2 tokens",
        f"record 1 of {first}, 2 tokens",
        f"record 0 of {second}, 1 token",
    ]
    assert found.warnings == []
    writer = RecordWriter(str(tmp_path), "y", 0)
    writer.write([50_257])
    assert survey([writer.close()]).warnings == ["id 50257 reaches the 50257 ids of tokenizer gpt2"]


def test_inspect_of_a_folder_of_shuffled_records(tmp_path, small_tokenizer, capsys, prose):
    texts = [prose[i * 50 : i * 50 + 7 * i] for i in range(1, 200)] + ["again"] * 2
    write_lines(tmp_path / "in.jsonl", texts)
    arguments = ["--input_dir", tmp_path / "in.jsonl", "--output_dir", tmp_path / "out", "--deduplicate", "--shuffle"]
    arguments += ["--encoder_path", small_tokenizer, "--chunk_size", 64, "--processes", 1]
    assert load("create_tfrecords")(*arguments) == 0
    tokenizer = load_tokenizer(small_tokenizer)
    lengths = sorted(len(tokenizer.encode(text)) for text in texts[:-1])
    for where in (tmp_path / "out", tmp_path / "out" / "data_*"):
        capsys.readouterr()
        assert load("inspect")(where) == 0
        out = capsys.readouterr().out
        expected = (
            f"documents  200, of {lengths[0]:,} to {lengths[-1]:,} tokens, half of them up to {lengths[99]:,} (of"
        )
        assert expected in out
    manifest = manifest_of(glob.glob(str(tmp_path / "out" / "*.tfrecords"))[0])
    del manifest["document_tokens"]
    (tmp_path / "out" / "data_manifest.json").write_text(json.dumps(manifest))
    assert load("inspect")(tmp_path / "out") == 0 and "lengths are not known" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    assert load("inspect")(tmp_path / "none") == 2 and "no .tfrecords in this folder" in capsys.readouterr().err


def test_inspect_from_another_folder(tmp_path, small_tokenizer, monkeypatch, capsys):
    shutil.copy(small_tokenizer, tmp_path / "tokenizer.json")
    write_lines(tmp_path / "a.jsonl", ["one two three"])
    monkeypatch.chdir(tmp_path)
    made = ["--input_dir", "a.jsonl", "--output_dir", "out", "--encoder_path", "tokenizer.json", "--processes", 1]
    assert load("create_tfrecords")(*made) == 0
    monkeypatch.chdir("/")
    capsys.readouterr()
    assert load("inspect")(tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: no tokenizer 'tokenizer.json'") and told.endswith("made: say --encoder_path\n")
    assert load("inspect")(tmp_path / "out", "--encoder_path", tmp_path / "tokenizer.json") == 0


def test_inspect_of_several_sets_in_a_folder(tmp_path, small_tokenizer, capsys, prose):
    lengths = []
    for name, tokenizer, more in (("b", small_tokenizer, ["--shuffle"]), ("a", small_tokenizer, []), ("c", "gpt2", [])):
        texts = [prose[i * 50 : i * 50 + 7 * i] for i in range(1, 40 + len(more) + 20 * len(lengths[:1]))]
        write_lines(tmp_path / f"{name}.jsonl", texts)
        arguments = ["--input_dir", tmp_path / f"{name}.jsonl", "--output_dir", tmp_path / "out", "--name", name]
        arguments += ["--encoder_path", tokenizer, "--chunk_size", 64, "--processes", 1, *more]
        assert load("create_tfrecords")(*arguments) == 0
        if tokenizer == small_tokenizer:
            lengths += [len(load_tokenizer(tokenizer).encode(text)) for text in texts]
            found = survey([str(tmp_path / "out")])
            assert sorted(found.documents.tolist()) == sorted(lengths) and found.shuffled
    capsys.readouterr()
    assert load("inspect")(tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "these records were made with several tokenizers, as " in told and "c_manifest.json say: ids would" in told
    assert load("inspect")(tmp_path / "out" / "c_*") == 0


def test_a_name_that_ends_in_a_number_keeps_its_manifest(prepared, tmp_path, small_tokenizer, capsys):
    for name in ("wiki_2020", "wiki"):
        arguments = ["--input_dir", prepared / "in.jsonl", "--output_dir", tmp_path / name, "--name", name]
        arguments += ["--encoder_path", small_tokenizer, "--chunk_size", 16, "--processes", 1]
        assert load("create_tfrecords")(*arguments) == 0
    (plain,) = (tmp_path / "wiki").glob("wiki_0_*.tfrecords")
    shutil.copy(plain, tmp_path / "wiki_2020")
    shutil.copy(tmp_path / "wiki" / "wiki_manifest.json", tmp_path / "wiki_2020")
    (numbered,) = (tmp_path / "wiki_2020").glob("wiki_2020_0_*.tfrecords")
    found = survey([str(tmp_path / "wiki_2020" / "*.tfrecords")])
    alone = survey([str(numbered)])
    assert found.tokenizer == alone.tokenizer == small_tokenizer
    assert found.documents.tolist() == 2 * alone.documents.tolist() and len(alone.documents) > 1
    for path, name in ((numbered, "wiki_2020"), (plain, "wiki"), (tmp_path / "wiki" / "wiki_7_0_9.tfrecords", "wiki")):
        assert [os.path.basename(place) for place in manifests_of([str(path)])] == [f"{name}_manifest.json"]


def test_lengths_of_documents_across_records():
    stream = [1, 2, 0, 3, 0, 0, 4, 5, 6, 7, 0, 8]
    for size in (1, 3, 4, 12):
        lengths = Lengths(0)
        for start in range(0, len(stream), size):
            lengths.add(np.array(stream[start : start + size]))
        assert lengths.all().tolist() == [2, 1, 4, 1]
    whole = Lengths(None)
    whole.add(np.array([1, 0, 2]))
    assert whole.all().tolist() == [3]


def test_train_tokenizer_from_any_reader(tmp_path, prose, capsys):
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in" / "a.jsonl", [prose[:20_000]])
    (tmp_path / "in" / "b.txt").write_text(prose[20_000:30_000], encoding="utf-8")
    train = load("train_tokenizer")
    assert train("--base_dir", tmp_path / "in", "--vocab_size", 300, "--output_dir", tmp_path / "t1") == 0
    assert "300 ids from 2 files" in capsys.readouterr().out
    assert (
        train(
            "--base_dir",
            tmp_path / "in" / "a.jsonl",
            tmp_path / "in" / "b.txt",
            "--vocab_size",
            300,
            "--output_dir",
            tmp_path / "t2",
        )
        == 0
    )
    assert (tmp_path / "t1" / "tokenizer.json").read_bytes() == (tmp_path / "t2" / "tokenizer.json").read_bytes()
    assert train("--base_dir", tmp_path / "in", "--file_type", "docx", "--vocab_size", 300, "--output_dir", "x") == 2
    assert train("--base_dir", tmp_path / "in", "--vocab_size", 30, "--output_dir", "x") == 2
    errors = capsys.readouterr().err
    assert "no files of --file_type docx" in errors and "--vocab_size is 30; expected at least 258" in errors
    assert train("--base_dir", "nowhere", "--vocab_size", 300, "--output_dir", "x") == 2
    assert capsys.readouterr().err == "error: --base_dir 'nowhere': no files there\n"


def test_a_tokenizer_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("words and more words, of which some are words")
    options = ["--base_dir", tmp_path / "a.txt", "--vocab_size", 300, "--output_dir", tmp_path / "made"]
    assert call("train_tokenizer", *options).returncode == 0
    before = (tmp_path / "made" / "tokenizer.json").read_bytes()

    def no_room():  # as on a full disk, after so many bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = call("train_tokenizer", *options, preexec_fn=no_room)
    assert done.returncode == 2 and done.stderr.decode().startswith("error: --output_dir"), done.stderr
    assert (tmp_path / "made" / "tokenizer.json").read_bytes() == before


def test_standard_input(prepared, tmp_path, small_tokenizer):
    common = ["--encoder_path", small_tokenizer, "--chunk_size", 16, "--processes", 1, "--files_per", 2]
    text = (prepared / "in.jsonl").read_bytes()
    done = call("create_tfrecords", "--input_dir", "-", "--output_dir", tmp_path / "out", *common, input=text)
    assert done.returncode == 0, done.stderr
    ours, theirs = contents(tmp_path / "out"), contents(prepared / "out")
    ours.pop("data_manifest.json"), theirs.pop("data_manifest.json")
    assert ours == theirs
    bad = b'{"text": 1}\n'
    done = call("create_tfrecords", "--input_dir", "-", "--output_dir", tmp_path / "o2", *common, input=bad)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard input:1: expected an object with a string under 'text'")


def test_separators_dataset_config_and_mistakes(prepared, tmp_path, small_tokenizer, capsys, monkeypatch):
    create = load("create_tfrecords")
    common = [
        "--input_dir",
        prepared / "in.jsonl",
        "--encoder_path",
        small_tokenizer,
        "--chunk_size",
        16,
        "--processes",
        1,
    ]
    made = []
    for number, words in enumerate((["0"], ["[0]"], ["0", "1"], ["0,1"])):
        assert create(*common, "--output_dir", tmp_path / str(number), "--separator", *words) == 0
        made.append(manifest_of(str(tmp_path / str(number) / "data_0_1.tfrecords"))["separator"])
    assert made == [[0], [0], [0, 1], [0, 1]]
    monkeypatch.chdir(tmp_path)
    assert create(*common, "--output_dir", "out", "--name", "mine", "--write_dataset_config") == 0
    with open("configs/dataset_configs/mine.json", encoding="utf-8") as handle:
        assert json.load(handle)["path"] == str(tmp_path / "out" / "mine_*.tfrecords")
    capsys.readouterr()
    made_file = os.path.join("configs", "dataset_configs", "mine.json", "x.json")
    for arguments, message in (
        (["--separator", "x"], "--separator is 'x'"),
        (["--chunk_size", "1"], "--chunk_size is 1"),
        (["--output_dir", "out", "--name", "mine"], "already holds mine_0_"),
        (["--legacy"], "--legacy: the old program crashed with --encoder_path"),
        (["--input_dir", "nowhere"], "--input_dir 'nowhere': no files there"),
        (["--write_dataset_config", "out"], "--write_dataset_config out: cannot be written: Is a directory"),
        (["--write_dataset_config", made_file], f"--write_dataset_config {made_file}: cannot be written: "),
        (["--seed", "0"], "--seed 0 is that of --shuffle; give --shuffle too, or leave it out"),
        (["--eval_path", "held_*"], "--eval_path goes into the dataset config; give --write_dataset_config too"),
    ):
        assert create(*common, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not os.path.exists("tfrecords")  # the default folder: nothing was made first


def test_a_dataset_config_without_a_place_is_told_before_the_work(prepared, tmp_path, small_tokenizer, capsys):
    create = load("create_tfrecords")
    common = ["--input_dir", prepared / "in.jsonl", "--encoder_path", small_tokenizer, "--output_dir", tmp_path / "out"]
    (tmp_path / "file").write_text("")
    for place, reason in ((tmp_path / "file" / "mine.json", "File exists"), (tmp_path, "Is a directory")):
        assert create(*common, "--write_dataset_config", place) == 2
        assert f"--write_dataset_config {place}: cannot be written: {reason}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # so the mended command is not refused as a second one
    assert create(*common, "--write_dataset_config", tmp_path / "new" / "mine.json") == 0


def test_a_dataset_config_of_records_that_are_there(prepared, tmp_path, small_tokenizer, capsys, monkeypatch):
    """The finished command with the flag, or with another one of the config, writes it; other records are refused."""
    create = load("create_tfrecords")
    monkeypatch.chdir(tmp_path)
    shutil.copy(prepared / "in.jsonl", "in.jsonl")
    common = ["--input_dir", "in.jsonl", "--encoder_path", small_tokenizer, "--output_dir", "out"]
    assert create(*common, "--chunk_size", 16, "--processes", 1) == 0
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in os.listdir("out")}
    capsys.readouterr()
    for words, held_out in (([], None), (["--eval_path", "gs://held/*"], "gs://held/*")):
        assert create(*common, "--chunk_size", 16, "--write_dataset_config", "mine.json", *words) == 0
        printed = capsys.readouterr()
        assert "has made its records before" in printed.out + printed.err and "wrote mine.json" in printed.out
        config = json.loads((tmp_path / "mine.json").read_text())
        assert config["path"] == str(tmp_path / "out" / "data_*.tfrecords") and config["eval_path"] == held_out
        assert config["tokenizer_path"] == str(small_tokenizer)
    for words in (["--chunk_size", 17], ["--chunk_size", 16, "--separator", 1], ["--chunk_size", 16, "--shuffle"]):
        assert create(*common, "--write_dataset_config", "other.json", *words) == 2
        assert "already holds data_0_" in capsys.readouterr().err
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in os.listdir("out")} == before
    assert not os.path.exists("other.json")
    os.utime("in.jsonl", (time.time() + 60, time.time() + 60))  # an input that was changed since
    assert create(*common, "--chunk_size", 16, "--write_dataset_config", "other.json") == 2
    assert "already holds data_0_" in capsys.readouterr().err and not os.path.exists("other.json")
    os.remove(next(os.path.join("out", name) for name in before if name.endswith(".tfrecords")))
    assert create(*common, "--chunk_size", 16, "--write_dataset_config", "mine.json") == 0
    assert "out: " in capsys.readouterr().out  # made anew


def test_legacy_takes_the_old_defaults(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("it 's a \u00c3\u00a9 , " * 40)
    create = load("create_tfrecords")
    arguments = ["--legacy", "--input_dir", tmp_path / "in", "--chunk_size", 31, "--processes", 1]
    assert create(*arguments, "--output_dir", tmp_path / "a") == 0
    manifest = manifest_of(glob.glob(str(tmp_path / "a" / "*.tfrecords"))[0])
    assert (manifest["chunk_size"], manifest["minimum_size"]) == (32, 100)
    assert manifest["ftfy"] and manifest["wikitext_detokenize"]
    assert "it's a \u00e9, it's" in survey([str(tmp_path / "a" / "*.tfrecords")]).samples[0][1]
    assert "dropped: " in capsys.readouterr().out
    assert create(*arguments, "--no-ftfy", "--minimum_size", 1, "--output_dir", tmp_path / "b") == 0
    assert "it's a \u00c3\u00a9" in survey([str(tmp_path / "b" / "*.tfrecords")]).samples[0][1]


def test_a_model_says_length_tokenizer_and_end_of_text(world, trained, tmp_path, capsys):
    from gpt_neo.__main__ import main

    (tmp_path / "text.txt").write_text("Some text for a model that is there. " * 30)
    words = ["prepare", "--input_dir", str(tmp_path / "text.txt"), "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--model", trained, "--processes", "1"]) == 0
    about = json.loads((tmp_path / "out" / "data_manifest.json").read_text())
    assert about["chunk_size"] == 33 and about["tokenizer"]["path"] == world.tokenizer and about["separator"] == [0]
    assert main([*words, "--model", trained, "--chunk_size", "9", "--separator", "7", "--name", "b"]) == 0
    about = json.loads((tmp_path / "out" / "b_manifest.json").read_text())
    assert about["chunk_size"] == 9 and about["separator"] == [7]
    assert main([*words, "--model", trained, "--legacy"]) == 2
    assert "--model and --legacy exclude each other" in capsys.readouterr().err


def test_a_script_without_a_guard_is_run_once(tmp_path):
    """Workers do not run the caller's program again, which would call for workers, too."""
    script = tmp_path / "script.py"
    script.write_text(
        "from gpt_neo.dataprep.pool import workers\n\nprint('begun')\nwith workers(2) as pool:\n"
        "    print(pool.submit(abs, -3).result())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert (done.stdout, done.returncode) == ("begun\n3\n", 0), done.stderr


@pytest.mark.parametrize("moment", ["pool.submit(abs, -1); time.sleep(0.1)", "pool.submit(abs, -1).result()"])
def test_workers_end_without_a_word_when_a_terminal_interrupts_all(moment):
    script = f"""
import os, signal, time
from gpt_neo.dataprep.pool import workers
try:
    with workers(2) as pool:
        {moment}
        os.killpg(0, signal.SIGINT)
        pool.submit(abs, -2).result()
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
        start_new_session=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
