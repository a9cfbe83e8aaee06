"""A run that is stopped, killed or thrown off its session, and goes on: the same batches, and bitwise the same weights.

The run has everything that could remember something: dropout, microbatches, and a mixture of chunks, of documents in
random order and windows, and of a dataset with fewer records than a batch has rows; each goes through several epochs.
"""

import collections
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo.dataprep.records import RecordWriter
from gpt_neo.mtf_compat import tf
from tests.conftest import ROOT

STEPS, BATCH, N_CTX = 16, 8, 12
KEPT, PARTS = 4, ("index", "data-00000-of-00001", "json")
THROWN_AT = 13  # the session is lost after this step; the newest checkpoint is then at step 12
RECORDS = {"chunk": (11, 9), "tiny": (3,), "doc": (7, 6)}  # per file
WEIGHTS = {"chunk": 0.5, "tiny": 0.25, "doc": 0.25}
FIRST = {"chunk": 0, "tiny": 30, "doc": 40}  # token that record 0 is made of; record i is made of the i-th after it

# One process imports TensorFlow; each attempt is a fork of it. `job` is {"config", "log", "kills", "fail_at"}.
SCRIPT = """
import json, os, random, signal, sys, time
from gpt_neo.cli import quiet
from gpt_neo.cli.main import main
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime import model_fn

class Consumed(tf.estimator.SessionRunHook):
    def __init__(self, features, log, fail_at):
        self.features, self.log, self.fail_at = features, log, fail_at
    def begin(self):
        self.step = tf.train.get_global_step()
    def before_run(self, context):
        return tf.estimator.SessionRunArgs(self.features)
    def after_run(self, context, values):
        step = int(context.session.run(self.step))
        with open(self.log, "a") as handle:
            handle.write(json.dumps([step, values.results["inputs"].tolist()]) + "\\n")
        if step == self.fail_at:
            self.fail_at = None
            raise tf.errors.UnavailableError(None, None, "a worker went away")

def attempt(job, steps):
    build = model_fn.train_spec
    def train_spec(features, placement, setup):
        spec = build(features, placement, setup)
        hook = Consumed(features, job["log"], job.get("fail_at"))
        # First, so that a kill between the two loses a checkpoint and not the note of a step that one holds.
        return spec._replace(training_hooks=(hook, *spec.training_hooks))
    model_fn.train_spec = train_spec
    sys.stdout = open(os.devnull, "w")
    quiet.filter_native_stderr = lambda: None
    os._exit(main(["--model", job["config"], "--steps_per_checkpoint", "3", "--set", "train_steps=%d" % steps]))

def lines(path):
    return open(path).read().count("\\n") if os.path.exists(path) else 0

for job in json.load(sys.stdin):
    chance = random.Random(job["config"])
    for stop in [*job["stops"], *["kill"] * job["kills"], job["steps"]]:
        before = lines(job["log"])
        pid = os.fork()
        if not pid:
            attempt(job, job["steps"] if stop == "kill" else stop)
        if stop == "kill":
            wanted = before + chance.randrange(job["steps"])
            while lines(job["log"]) < wanted and os.waitpid(pid, os.WNOHANG) == (0, 0):
                time.sleep(0.002)
            time.sleep(chance.random() * 0.05)
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # it had come to its end
        else:
            assert os.waitpid(pid, 0)[1] == 0, job
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Records, and a way to run jobs in a process of their own."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "dataset_configs").mkdir()
    random = np.random.RandomState(0)
    for name, counts in RECORDS.items():
        numbers = iter(range(FIRST[name], 60))
        for shard, count in enumerate(counts):
            writer = RecordWriter(str(folder), name, shard)
            for _ in range(count):
                size = N_CTX + 1 if name != "doc" else random.randint(3, 2 * N_CTX)
                writer.write([next(numbers)] * size)
            writer.close()
        config = {"path": str(folder / f"{name}_*.tfrecords"), "n_vocab": 60, "eos_id": 58, "padding_id": 59}
        (folder / "dataset_configs" / f"{name}.json").write_text(json.dumps(config))

    def write(name, **changes):
        model = {
            "n_head": 2,
            "n_embd": 16,
            "n_layer": 1,
            "n_vocab": 60,
            "n_ctx": N_CTX,
            "lr": 0.01,
            "lr_decay": "cosine",
            "lr_decay_end": STEPS,
            "embed_dropout": 0.1,
            "attn_dropout": 0.1,
            "res_dropout": 0.2,
            "gradient_clipping": 1.0,
            "seed": 4,
            "train_batch_size": BATCH,
            "train_steps": STEPS,
            "tokens_per_mb_per_replica": BATCH // 2 * N_CTX,
            "datasets": [
                ["chunk", None, None, WEIGHTS["chunk"]],
                ["tiny", None, None, WEIGHTS["tiny"]],
                ["doc", 2, "documents_random", WEIGHTS["doc"]],
            ],
            "model_path": str(folder / "runs" / name),
            "keep_checkpoints": KEPT,
            "padding_id": 59,
            "eos_id": 58,
            **changes,
        }
        (folder / f"{name}.json").write_text(json.dumps(model))
        return {
            "config": str(folder / f"{name}.json"),
            "log": str(folder / f"{name}.log"),
            "stops": [],
            "kills": 0,
            "steps": STEPS,
        }

    def run(jobs):
        env = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps(jobs),
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return {os.path.basename(job["config"])[:-5]: outcome(job) for job in jobs}

    def outcome(job):
        log = [json.loads(line) for line in open(job["log"], encoding="utf-8")]
        run_folder = str(folder / "runs" / os.path.basename(job["config"])[:-5])
        check_no_orphans(run_folder, job["kills"])
        reader = tf.train.load_checkpoint(os.path.join(run_folder, f"model.ckpt-{STEPS}"))
        return log, {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}

    def rows(name):
        with open(folder / "runs" / name / "train_log.jsonl", encoding="utf-8") as handle:
            made = [json.loads(line) for line in handle]
        return [{key: row[key] for key in ("step", "loss", "mean_loss", "lr")} for row in made]

    run.write, run.rows = write, rows
    return run


def check_no_orphans(folder, kills):
    """Whole checkpoints, as many as are kept, and the logs: nothing unfinished, nothing left of what was deleted.

    A kill between the state file, which no longer lists the oldest one, and its deletion leaves it for good.
    """
    names = [name for name in os.listdir(folder) if not name.startswith("events.out.tfevents")]
    steps = {int(name[len("model.ckpt-") : -len(".index")]) for name in names if name.endswith(".index")}
    assert len(steps) <= KEPT + kills
    needed = {f"model.ckpt-{step}.{part}" for step in steps for part in PARTS}
    assert needed | {"checkpoint", "train_log.jsonl"} == set(names)


def halves(place, name, **changes):
    """Outcomes of an undisturbed run, and of one that is stopped halfway and then thrown off its session."""
    whole, stopped = place.write(f"whole{name}", **changes), place.write(f"halves{name}", **changes)
    stopped.update(stops=[STEPS // 2], fail_at=THROWN_AT)
    return dict(zip(("whole", "halves"), place([whole, stopped]).values()))


@pytest.fixture(scope="module")
def outcomes(place):
    # updates that the last bit of bfloat16 does not show, so that a checkpoint of rounded weights would lose them
    return halves(place, " bf16", precision="bfloat16", lr=1e-4)


@pytest.fixture(scope="module")
def exact(place):
    """In float32, which tests/runtime/test_watch.py has too, of a plain run."""
    return halves(place, "")


def check_equal(whole, other):
    (log, weights), (other_log, other_weights) = whole, other
    batches = dict(log)
    assert [step for step, _ in log] == list(range(1, STEPS + 1))
    last = 0
    for step, batch in other_log:
        # an attempt begins at the newest checkpoint, at or before the step it was stopped at
        assert step == last + 1 or step <= last
        assert batch == batches[step], step
        last = step
    assert last == STEPS and {step for step, _ in other_log} == set(batches)
    assert set(weights) == set(other_weights)
    for name, value in weights.items():
        assert value.tobytes() == other_weights[name].tobytes(), name


@pytest.mark.parametrize("runs", ["outcomes", pytest.param("exact", marks=pytest.mark.slow)])
def test_equal_to_the_undisturbed_run_bit_for_bit(request, runs):
    made = request.getfixturevalue(runs)
    check_equal(made["whole"], made["halves"])


def test_a_row_of_the_log_is_that_of_the_undisturbed_run(place, outcomes):
    """Its mean too: it is of steps 11 to 16, and the session was lost after step 13."""
    assert place.rows("whole bf16")[-1] == place.rows("halves bf16")[-1]


def test_every_record_once_per_epoch(outcomes):
    seen = collections.defaultdict(list)
    for _, batch in outcomes["whole"][0]:
        for row in batch:
            name = next(n for n in ("doc", "tiny", "chunk") if row[0] >= FIRST[n])
            seen[name].append(row)
    for name in ("chunk", "tiny"):
        order = [row[0] for row in seen[name]]
        size = sum(RECORDS[name])
        assert len(order) == STEPS * BATCH * WEIGHTS[name] > 2 * size
        for first in range(0, len(order) - size + 1, size):
            assert sorted(order[first : first + size]) == list(range(FIRST[name], FIRST[name] + size))
        assert order[size:] == order[: len(order) - size]  # the same order in every epoch
    assert len(seen["doc"]) == STEPS * BATCH * WEIGHTS["doc"]


def test_the_session_was_made_anew_in_the_second_half(outcomes):
    steps = [step for step, _ in outcomes["halves"][0]]
    assert steps == [*range(1, THROWN_AT + 1), *range(THROWN_AT, STEPS + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_killed_at_many_moments(place, exact, number):
    job = place.write(f"killed_{number}")
    job["kills"] = 10
    check_equal(exact["whole"], place([job])[f"killed_{number}"])
