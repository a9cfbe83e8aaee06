"""A small prepared world that many tests share: texts, tokenizer, records, configs, a trained run."""

import gc
import glob
import json
import os
import pydoc_data
import signal
import sys
import time
import types

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "data"))  # behind the standard library, whose `inspect` has a namesake there

N_VOCAB, N_CTX = 300, 32
MODEL = {
    "n_head": 2,
    "n_embd": 16,
    "n_layer": 2,
    "n_vocab": N_VOCAB,
    "n_ctx": N_CTX,
    "attention_types": [[["global", "local"], 1]],
    "local_attention_radius": 8,
    "lr": 0.01,
    "lr_decay": "cosine",
    "lr_decay_end": 20,
    "warmup_steps": 2,
    "beta2": 0.95,
    "gradient_clipping": 1.0,
    "weight_decay": 0.1,
    "train_batch_size": 4,
    "eval_batch_size": 8,
    "train_steps": 20,
    "predict_batch_size": 2,
    "eos_id": 0,
    "padding_id": 1,
    "seed": 3,
    "shuffle_input_filenames": False,
    "datasets": ["small"],
    "mesh_shape": "x:1",
    "layout": "batch:x",
}


class World:
    """Paths of the prepared files, and a way to write variants of the config."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.tokenizer = os.path.join(self.folder, "tokenizer", "tokenizer.json")
        self.records = os.path.join(self.folder, "records")
        self.dataset = os.path.join(self.folder, "dataset_configs", "small.json")

    def config(self, name="model", **changes):
        """Write a model config beside dataset_configs; return its path."""
        path = os.path.join(self.folder, f"{name}.json")
        model = {**MODEL, "model_path": os.path.join(self.folder, "runs", name), **changes}
        with open(path, "w", encoding="utf-8") as handle:
            json.dump(model, handle)
        return path

    def dataset_config(self, name, **changes):
        """Write a variant of the dataset config; return its id."""
        with open(self.dataset, encoding="utf-8") as handle:
            value = {**json.load(handle), **changes}
        with open(os.path.join(self.folder, "dataset_configs", f"{name}.json"), "w", encoding="utf-8") as handle:
            json.dump(value, handle)
        return name


def pytest_configure(config):
    """Signals mean here what they mean at a terminal, also under nohup and in a shell's background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish(session):
    """What is imported by now stays: whoever looks for garbage need not look through it, nor look often, as graphs are
    made of a hundred thousand objects that stay."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 10)


def set_clock(monkeypatch, module, clock):
    """Give one module a clock. The process keeps its own: threads of servers and timers of other tests wait by it."""
    monkeypatch.setattr(module, "time", types.SimpleNamespace(**{**vars(time), "monotonic": clock}))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Texts prepared with the project's own scripts."""
    import create_tfrecords
    import train_tokenizer

    folder = tmp_path_factory.mktemp("world")
    made = World(folder)
    text = open(os.path.join(os.path.dirname(pydoc_data.__file__), "topics.py"), encoding="utf-8").read()
    os.makedirs(folder / "texts")
    for i in range(12):
        (folder / "texts" / f"part_{i}.txt").write_text(text[i * 1500 : (i + 1) * 1500], encoding="utf-8")
    (folder / "held.jsonl").write_text(json.dumps({"text": text[40_000:42_000]}) + "\n", encoding="utf-8")
    assert (
        train_tokenizer.main(
            [
                "--base_dir",
                str(folder / "texts"),
                "--vocab_size",
                str(N_VOCAB),
                "--output_dir",
                str(folder / "tokenizer"),
            ]
        )
        == 0
    )
    common = [
        "--encoder_path",
        made.tokenizer,
        "--chunk_size",
        str(N_CTX + 1),
        "--output_dir",
        made.records,
        "--processes",
        "1",
    ]
    create_tfrecords.main(["--input_dir", str(folder / "held.jsonl"), "--name", "held", *common])
    create_tfrecords.main(
        [
            "--input_dir",
            str(folder / "texts"),
            "--name",
            "train",
            "--files_per",
            "100",
            *common,
            "--write_dataset_config",
            made.dataset,
            "--eval_path",
            os.path.join(made.records, "held_*.tfrecords"),
        ]
    )
    assert len(glob.glob(os.path.join(made.records, "train_*.tfrecords"))) == 3
    return made


@pytest.fixture(autouse=True)
def functions_again():
    """Loops of later tests are functions again, where one has built for a TPU."""
    yield
    compat = sys.modules.get("gpt_neo.mtf_compat")
    if compat:
        compat.tf.enable_control_flow_v2()


def folder_of(path):
    """Where a config's run lives."""
    from gpt_neo.config import load_config

    return load_config(path).training.model_path


@pytest.fixture(scope="session")
def gcs_server():
    """A Google Cloud Storage server on loopback; see tests/gcs.py."""
    from tests.gcs import emulator

    with emulator() as server:
        yield server


@pytest.fixture
def gcs(gcs_server, monkeypatch):
    """The server, empty and without faults; pauses between attempts are short."""
    from gpt_neo import storage
    from tests.gcs import BUCKET, quick_retries

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    monkeypatch.setattr(storage.buckets, "PAUSE", 0.01)
    monkeypatch.setattr(storage.buckets, "retries", quick_retries)
    gcs_server.fail()
    for path in storage.buckets.paths_from(f"gs://{BUCKET}/"):
        storage.buckets.client().bucket(BUCKET).blob(storage.bucket_and_key(path)[1]).delete()
    gcs_server.requests.clear()
    return gcs_server


@pytest.fixture
def command(monkeypatch):
    """main.py in this process: returns the exit status."""
    from gpt_neo.cli import quiet
    from gpt_neo.cli.common import run_command
    from gpt_neo.cli.main import main

    monkeypatch.setattr(quiet, "filter_native_stderr", lambda: None)
    return lambda *argv: run_command(main, [str(word) for word in argv])


@pytest.fixture(scope="session")
def trained(world):
    """The config of a run trained to its end at step 20. Tests share it: whoever changes the run works on a copy."""
    from gpt_neo.cli.main import main

    path = world.config("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
        assert main(["--model", path]) == 0

    def kept():
        return {name for name in os.listdir(folder_of(path)) if name.startswith(("checkpoint", "model.ckpt", "best"))}

    before = kept()
    yield path
    assert kept() == before, "a test has changed the checkpoints of the run that all share"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """main.py in processes of its own: tests/forks.py."""
    from tests.forks import forks

    with forks(tmp_path_factory.mktemp("forks")) as running:
        yield running
