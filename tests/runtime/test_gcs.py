"""Records, checkpoints, logs, evaluation and samples at gs://, through TensorFlow's own client, with faults."""

import glob
import json
import os
import re
import signal

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from gpt_neo.checkpoint.hf_folder import HfFolder
from gpt_neo.config import load_config
from gpt_neo.mtf_compat import tf
from tests.fake_gcs import CLIENT, fake_gcs
from tests.forks import forks
from tests.model.options import BASE, make_run
from tests.model.tools import save_random
from tests.namespaces import need_mounts

STEPS = 6
ONE = {"n_layer": 1, "attention_types": "global"}  # a bucket has no part in a model's depth


@pytest.fixture(scope="module")
def place(tmp_path_factory, world):
    """The server with the records of the world, and a way to run main.py against it."""
    need_mounts()
    folder = tmp_path_factory.mktemp("gcs")
    dataset = {"path": "gs://bucket/data/train_*.tfrecords", "eval_path": "gs://bucket/data/held_*.tfrecords"}
    world.dataset_config("bucket", **dataset)
    with fake_gcs(str(folder)) as server, forks(folder, **CLIENT) as runner:

        def fill():
            server.clear()
            for path in glob.glob(os.path.join(world.records, "*.tfrecords")):
                server.put(f"bucket/data/{os.path.basename(path)}", open(path, "rb").read())

        server.fill = fill
        server.start = lambda *argv, before="": runner.start(*argv, before=server.before + before)
        server.run = lambda *argv, before="": runner.run(*argv, before=server.before + before)
        server.local = runner.run
        yield server


@pytest.fixture
def gcs_place(place):
    place.fill()
    return place


@pytest.fixture(scope="module")
def whole(world, place):
    """Weights of the same run on local files, every two steps."""
    path = world.config("on_disk", train_steps=STEPS, **ONE)
    assert place.local("--model", path, "--steps_per_checkpoint", 2)[0] == 0
    folder = os.path.join(world.folder, "runs", "on_disk")
    return {step: weights_of(os.path.join(folder, f"model.ckpt-{step}")) for step in (2, STEPS)}


def weights_of(prefix):
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}


def weights_in(store, run, step, folder):
    for name, (data, _, _) in store.items():
        if name.startswith(f"bucket/runs/{run}/model.ckpt-{step}."):
            (folder / os.path.basename(name)).write_bytes(data)
    return weights_of(str(folder / f"model.ckpt-{step}"))


def gpt_neo(place, *argv):
    """The command in a process of its own: (exit status, what it wrote)."""
    return place.run(
        before="import os, sys\nfrom gpt_neo.__main__ import main as command\n"
        f"status = command({[str(word) for word in argv]})\nsys.stdout.flush()\nos._exit(status)\n"
    )


def names_of(store, run):
    return {name.rpartition("/")[2] for name in store if name.startswith(f"bucket/runs/{run}/")}


def test_a_run_on_a_bucket_with_faults_on_the_way(world, gcs_place, whole, tmp_path):
    path = world.config("short", train_steps=2, datasets=["bucket"], model_path="gs://bucket/runs/short", **ONE)
    gcs_place.fail("create", None, None, "503", None, "503")
    gcs_place.fail("read", None, "truncate", None, "503")
    gcs_place.fail("list", "503")
    status, text = gcs_place.run("--model", path, "--steps_per_checkpoint", 2)
    assert status == 0, text
    assert weights_in(gcs_place.store, "short", 2, tmp_path) == whole[2]
    status, text = gpt_neo(gcs_place, "export-hf", "gs://bucket/runs/short", tmp_path / "out", "--verify", "none")
    assert status == 0 and "exported  step 2 of gs://bucket/runs/short" in text, text  # its config is in its record


@pytest.mark.slow
def test_everything_on_a_bucket(world, gcs_place, whole, tmp_path):
    path = world.config("remote", train_steps=STEPS, datasets=["bucket"], model_path="gs://bucket/runs/remote", **ONE)
    gcs_place.fail("create", None, None, "503", "503", None, "timeout", None, "503")
    gcs_place.fail("read", None, "truncate", None, "503", "truncate")
    gcs_place.fail("list", "503")
    gcs_place.fail("get", None, "503")
    status, text = gcs_place.run("--model", path, "--steps_per_checkpoint", 2)
    assert status == 0, text
    store = gcs_place.store
    assert weights_in(store, "remote", STEPS, tmp_path) == whole[STEPS]
    names = names_of(store, "remote")
    assert {f"model.ckpt-{step}.{part}" for step in (0, 2, 4, 6) for part in ("index", "json")} <= names
    assert not [name for name in names if name.startswith(".writable") or name.endswith(".lock")]
    assert any("tfevents" in name for name in names)

    status, text = gcs_place.run("--model", path, "--eval")
    assert status == 0 and "held out  step 6: loss" in text, text
    assert json.loads(store["bucket/runs/remote/eval_remote.jsonl"][0])["step"] == STEPS
    status, text = gcs_place.run("--model", path, "--predict", "--max_tokens", 2, "--prompt", "The")
    assert status == 0 and b"=== sample 1" in store["bucket/runs/remote/predictions_remote_6.txt"][0], text


def test_records_of_a_bucket_are_looked_at_as_those_of_a_disk(world, gcs_place):
    held = "gs://bucket/data/held_*.tfrecords"  # trained on, too
    name = world.dataset_config("both", path=held, eval_path=held)
    path = world.config("both_there", datasets=[name], model_path="gs://bucket/runs/both", **ONE)
    gcs_place.fail("list", "503", None, "503")
    gcs_place.fail("read", None, "truncate", "503")
    status, text = gcs_place.run("--model", path, "--check_dataset")
    said = "1 file of held-out records is among those trained on, first gs://"
    assert status == 0 and said in text, text


def test_a_bucket_that_refuses_is_an_error_of_the_package(gcs_place, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({**BASE, "datasets": [], "model_path": "gs://bucket/own"}))
    script = f"""
import os, sys
import gpt_neo
from gpt_neo.errors import GptNeoError
try:
    gpt_neo.load("{tmp_path}/own.json")
except GptNeoError as error:
    print("told", error)
sys.stdout.flush()
os._exit(0)
"""
    gcs_place.denied = {"list"}
    assert re.search(r"told gs://bucket/own: its checkpoints cannot be read: .*403", gcs_place.run(before=script)[1])


def test_new_stays_below_its_prefix(world, gcs_place):
    path = world.config("anew_there", train_steps=0, datasets=["bucket"], model_path="gs://bucket/runs/a", **ONE)
    made = ["model.ckpt-3.index", "model.ckpt-3.data-00000-of-00001", "checkpoint", "train_log.jsonl", "best/best.json"]
    kept = [
        "bucket/runs/a/notes.txt",
        "bucket/runs/a/deeper/model.ckpt-3.index",
        "bucket/runs/a2/model.ckpt-3.index",
        "bucket/runs/model.ckpt-3.index",
        "bucket/model.ckpt-3.index",
    ]
    for name in [*kept, *(f"bucket/runs/a/{name}" for name in made)]:
        gcs_place.put(name, b"")
    before = set(gcs_place.store)
    status, text = gcs_place.run("--model", path, "--new", "--yes")
    assert status == 0, text
    assert before - set(gcs_place.store) == {f"bucket/runs/a/{name}" for name in made}
    status, text = gcs_place.run("--model", path, "--new", "--yes", "--set", "model_path=gs://bucket")
    assert status == 2 and "--new: model_path 'gs://bucket' is a whole bucket" in text
    assert set(kept) <= set(gcs_place.store)


BUILT = """
from gpt_neo.runtime import model_fn
def build(*arguments):
    raise AssertionError("a graph is built")
model_fn.build_train_step = build
"""


@pytest.mark.parametrize(
    "denied, where, permission",
    [
        ("list", r"model_path 'gs://bucket/runs/denied' cannot be listed", "storage.objects.list"),
        ("get", r"model_path 'gs://bucket/runs/denied' cannot be read", "storage.objects.get"),
        ("read", r"'gs://bucket/\S+' cannot be read", "storage.objects.get"),
        ("create", r"model_path 'gs://bucket/runs/denied' cannot be written", "storage.objects.create"),
        ("delete", r"model_path 'gs://bucket/runs/denied' cannot be (written over|deleted)", "storage.objects.delete"),
    ],
)
def test_a_missing_permission_is_named_before_a_graph_is_built(world, gcs_place, denied, where, permission):
    path = world.config("denied", datasets=["bucket"], model_path="gs://bucket/runs/denied")
    gcs_place.denied = {denied}
    status, text = gcs_place.run("--model", path, before=BUILT)
    assert status == 2, text
    assert re.search(rf"error: .*{where}: .*403.*; this takes the permission {re.escape(permission)}", text), text


def test_a_bucket_that_is_not_there(world, gcs_place):
    path = world.config("nowhere_at_all", datasets=["bucket"], model_path="gs://bucket/runs/x")
    gcs_place.clear()
    status, text = gcs_place.run("--model", path, before=BUILT)
    assert status == 2 and "gs://bucket/data/train_*.tfrecords" in text and "Traceback" not in text


@pytest.mark.slow
def test_kills_and_lost_permissions_cost_nothing(world, gcs_place, whole, tmp_path):
    path = world.config("tried", train_steps=STEPS, datasets=["bucket"], model_path="gs://bucket/runs/tried", **ONE)
    argv = ["--model", path, "--steps_per_checkpoint", 1]
    child = gcs_place.start(*argv)
    child.until(lambda: "bucket/runs/tried/model.ckpt-2.index" in gcs_place.store)
    status, text = gcs_place.run(*argv)
    assert status == 73 and f"is in use: process {child.pid} on " in text
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    # the permission goes once the run has started
    deny = """
from gpt_neo.runtime.hooks import ProgressHook
after_run = ProgressHook.after_run
def tell(self, context, values):
    after_run(self, context, values)
    open({mark!r}, "w")
    while not os.path.exists({go!r}):
        pass
ProgressHook.after_run = tell
""".format(mark=str(tmp_path / "mark"), go=str(tmp_path / "go"))
    child = gcs_place.start(*argv, before=deny)
    child.until(lambda: os.path.exists(tmp_path / "mark"))
    gcs_place.denied = {"create"}
    (tmp_path / "go").write_text("")
    assert child.wait() == 2
    assert "that process is gone" in child.text
    assert re.search(r"error: gs://bucket/runs/tried/\S+: cannot be written: .*403", child.text)
    gcs_place.denied = set()
    status, text = gcs_place.run(*argv)
    assert status == 0, text
    assert weights_in(gcs_place.store, "tried", STEPS, tmp_path) == whole[STEPS]
    names = names_of(gcs_place.store, "tried")
    assert not [name for name in names if "tempstate" in name or name.endswith((".tmp", ".lock"))]


def test_an_imported_model_on_a_bucket_is_read_with_its_own_tokenizer(gcs_place, tmp_path):
    """Without one GPT-2's would be a guess, there as on a disk."""
    (tmp_path / "own.json").write_text(json.dumps({**BASE, "datasets": [], "model_path": "gs://bucket/own"}))
    gcs_place.put(
        "bucket/own/model.ckpt-0.json", json.dumps({"source": "Hugging Face gpt2", "tokenizer": None}).encode()
    )
    script = f"""
import os, sys
from gpt_neo.config import load_config
from gpt_neo.inputs.tokenizers import run_tokenizer
try:
    print("ids", run_tokenizer(load_config("{tmp_path}/own.json"), "gs://bucket/own")[0].n_vocab)
except Exception as error:
    print(type(error).__name__, error)
sys.stdout.flush()
os._exit(0)
"""
    assert "DataError gs://bucket/own: its model was imported without a tokenizer" in gcs_place.run(before=script)[1]
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str()
    gcs_place.put("bucket/own/tokenizer.json", tokenizer.encode())
    assert "ids 2" in gcs_place.run(before=script)[1]


def test_a_run_folder_on_a_bucket_is_exported(gcs_place, tmp_path):
    keys = {"n_layer": 1, "attention_types": "global"}
    checkpoint = save_random(make_run(keys).model, str(tmp_path))
    for name in os.listdir(tmp_path):
        if name.startswith("model.ckpt"):
            gcs_place.put(f"bucket/conv/{name}", (tmp_path / name).read_bytes())
    gcs_place.put("bucket/conv/config.json", json.dumps({**BASE, **keys, "datasets": []}).encode())
    gcs_place.put("bucket/conv/tokenizer_config.json", b"{}")
    out = tmp_path / "out"
    status, text = gpt_neo(gcs_place, "export-hf", "gs://bucket/conv", out, "--verify", "none")
    assert status == 0, text
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= set(os.listdir(out))
    table = HfFolder(str(out)).read("transformer.wte.weight")
    assert table.tobytes() == tf.train.load_checkpoint(checkpoint).get_tensor("gpt2/wte").tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4"])
def test_openvino_samples_what_lies_in_a_bucket(world, gcs_place, tmp_path, dtype):
    pytest.importorskip("gpt_neo.fast.silent")
    made = tmp_path / "run"
    path = world.config("sampled_there", model_path=str(made))
    save_random(load_config(path).model, str(made))
    for name in os.listdir(made):
        gcs_place.put(f"bucket/runs/sampled/{name}", (made / name).read_bytes())
    for folder in (made, "gs://bucket/runs/sampled"):
        argv = ["sample", path, "The", "--max_tokens", 8, "--seed", 1, "--dtype", dtype]
        status, text = gpt_neo(gcs_place, *argv, "--set", f"model_path={folder}", "--backend", "openvino")
        assert status == 0, text
    (name,) = (name for name in os.listdir(made) if name.startswith("predictions"))
    assert gcs_place.store[f"bucket/runs/sampled/{name}"][0] == (made / name).read_bytes()


def test_a_folder_in_a_bucket_is_averaged_and_inspected_as_one_on_a_disk(world, gcs_place, tmp_path):
    made = tmp_path / "run"
    model = load_config(world.config("averaged", **ONE)).model
    for step in (1, 2):
        save_random(model, str(made), seed=step)
        for name in os.listdir(made):
            if name.startswith("model.ckpt-0.") and step == 1:
                os.rename(made / name, made / name.replace("-0.", "-5."))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (made / name).write_text("{}")
    for name in os.listdir(made):
        gcs_place.put(f"bucket/runs/averaged/{name}", (made / name).read_bytes())
    for source, out in ((made, "here"), ("gs://bucket/runs/averaged/", "there")):
        status, text = gpt_neo(gcs_place, "average", source, "--to", tmp_path / out, "--last", 2)
        assert status == 0 and text.startswith("averaged  2 checkpoints (model.ckpt-0, model.ckpt-5)"), text
    assert sorted(os.listdir(tmp_path / "there")) == sorted(os.listdir(tmp_path / "here"))
    for name in os.listdir(tmp_path / "here"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    status, text = gpt_neo(gcs_place, "inspect", "gs://bucket/runs/averaged")
    assert status == 0 and "checkpoint gs://bucket/runs/averaged/model.ckpt-" in text and "Warning" not in text, text


def test_events_that_a_bucket_refuses_are_told_in_a_line(world, gcs_place):
    path = world.config("events", train_steps=1, datasets=["bucket"], model_path="gs://bucket/runs/events", **ONE)
    gcs_place.refused = "tfevents"
    status, text = gcs_place.run("--model", path)
    gcs_place.refused = ""
    said = r"error: gs://bucket/runs/events/events.out.tfevents\S+: cannot be written: .*403.* Nothing is lost"
    assert status == 2 and re.search(said, text.splitlines()[-1]), text
