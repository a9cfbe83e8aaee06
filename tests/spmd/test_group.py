"""The hosts of a run without JAX: who belongs together, what each is asked for, what the loss of one ends."""

import importlib.util
import json
import socket
import sys
import threading
import time
import types
from unittest.mock import MagicMock

import numpy as np
import pytest

from gpt_neo.checkpoint import saver
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.config.hosts import Place, place_of
from gpt_neo.errors import LOST, CheckpointError, ConfigError, DeviceError, HostLost
from gpt_neo.mtf_compat import tf
from gpt_neo.spmd import hosts as module
from gpt_neo.spmd import parts as module_of_parts
from gpt_neo.spmd import process
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.hosts import Host, Joined, Lead, accept_all, check_shared, connect, join, lend
from gpt_neo.spmd.parts import groups, spec_of
from gpt_neo.spmd.process import WorkerLost
from gpt_neo.spmd.slices import cut, holders, spans_of, uneven

SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
DESCRIPTION = {
    "kind": "train",
    "mesh": [["x", 2], ["y", 2]],
    "cores": 4,
    "kept": [],
    "variables": {
        "gpt2/wte": {"shape": [4, 6], "dtype": "float32", "axes": ["x", "y"]},
        "gpt2/wte/adam_m": {"shape": [4, 6], "dtype": "float32", "axes": [None, "y"]},
        "gpt2/b": {"shape": [3], "dtype": "float32", "axes": [None]},
    },
    "batch": {
        "inputs": {"shape": [4, 6], "dtype": "int32", "axes": ["x", None]},
        "labels": {"shape": [4, 6], "dtype": "int32", "axes": ["y", "x"]},
    },
}
BATCH = {name: np.arange(24, dtype=np.int32).reshape(4, 6) for name in DESCRIPTION["batch"]}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({**SLURM, "SLURM_STEP_NUM_NODES": "4"}, Place(4, 2)),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "1"}, Place(4, 2, None, whole=False)),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # an allocation, outside of srun
        (MPI, Place(2, 1)),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Place(2, 1, None, whole=False)),
        ({}, None),
    ],
)
def test_where_a_scheduler_puts_a_process(environment, expected):
    assert place_of(None, None, None, "gpu", environment) == expected


def test_where_flags_put_a_process():
    assert place_of("a:12", 2, 1, "cpu", SLURM) == Place(2, 1, "a:12")
    assert place_of("a:12", 2, 1, "cpu", {}).options == {
        "coordinator_address": "a:12",
        "num_processes": 2,
        "process_id": 1,
        "local_device_ids": [],
    }
    assert place_of("a:12", 1, 0, "cpu", {}) is None
    assert place_of(None, None, None, "tpu", {}) == Place()


@pytest.mark.parametrize(
    "flags, text",
    [
        (("a:12", 2, None), "go together; --rank is missing"),
        ((None, 2, 1), "--coordinator is missing"),
        (("a", 2, 1), "--coordinator 'a': expected HOST:PORT"),
        (("a:0", 2, 1), "--coordinator 'a:0': expected HOST:PORT"),
        (("a:1", 2, 2), "--rank 2: with --hosts 2 it is one of 0 to 1"),
    ],
)
def test_flags_that_do_not_fit(flags, text):
    with pytest.raises(ConfigError, match=text):
        place_of(*flags, "cpu", {})


@pytest.mark.parametrize("at_once", [1 << 30, 48, 1])
def test_every_slice_is_written_by_one_core_and_all_hosts_have_a_share(monkeypatch, at_once):
    monkeypatch.setattr(module_of_parts, "AT_ONCE", at_once)
    wholes = {name: np.zeros(about["shape"]) for name, about in DESCRIPTION["variables"].items()}
    share = []
    for cores in ([0, 1], [2, 3]):
        together = list(groups(DESCRIPTION, cores))
        written = [entry for group in together for entry in group]
        for group in together:
            assert len(group) == 1 or sum(4 * cut(wholes[name], spans).size for name, spans, _ in group) <= at_once
        share.append(sum(cut(wholes[name], spans).size for name, spans, _ in written))
        for name, spans, core in written:
            assert core in cores and spans == spans_of(DESCRIPTION, name, core)
            cut(wholes[name], spans)[...] += 1
    assert all((value == 1).all() for value in wholes.values())
    assert max(share) < 2 * min(share)
    assert spec_of(DESCRIPTION, "gpt2/wte", ((2, 4), (0, 3))) == "4 6 2,2:0,3"
    assert spec_of(DESCRIPTION, "gpt2/b", ((0, 3),)) == ""


@pytest.mark.parametrize("spare, room", [(0, True), (-1, False)])
def test_memory_takes_what_is_written_with_a_quarter_to_spare(monkeypatch, spare, room):
    size = 4 * sum(
        int(np.prod([end - first for first, end in spans]))
        for group in groups(DESCRIPTION, [0, 1])
        for _, spans, _ in group
    )
    monkeypatch.setattr(module_of_parts, "available_memory", lambda: size * 5 // 4 + 1 + spare)
    assert module_of_parts.has_room(DESCRIPTION, [0, 1]) == room


class FakeWorker:
    """As `Worker`, with the slices of some cores in a dictionary."""

    def __init__(self, cores, act=lambda header: None):
        self.cores, self.held, self.act, self.killed = cores, {}, act, threading.Event()
        self.numbers = iter(range(9))
        self.process = types.SimpleNamespace(kill=self.killed.set, poll=lambda: None)

    def ask(self, header, arrays):
        self.act(header)
        if header["do"] == "load":
            return {"devices": ["fake"] * 4, "cores": self.cores, "cached": False}, {}
        if header["do"] == "put":
            for name in {key.partition("/")[2] for key in arrays}:
                for same in holders(DESCRIPTION, name, self.cores).values():
                    self.held.update({f"{core}/{name}": arrays[f"{same[0]}/{name}"] for core in same})
        if header["do"] == "get":
            return {}, {key: self.held[key] for key in header["parts"] if int(key.split("/")[0]) in self.cores}
        if header["do"] == "step":
            self.given = arrays
            return {}, {"loss": arrays["step"] + np.array(self.cores)}
        return {}, {}

    def close(self):
        """Nothing to end."""


@pytest.fixture
def group():
    """A chief, and a thread for another host: (lead, worker of each, what was told, what the other ended with)."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    workers, told, ended = [FakeWorker([0, 1]), FakeWorker([2, 3])], [], []
    joined = [Joined(rank, 2, (address,), "word") for rank in range(2)]
    other = threading.Thread(target=lambda: ended.append(lend(Host(workers[1]), connect(joined[1], 10), told.append)))
    other.start()
    lead = Lead(Host(workers[0]), joined[0], listener, 10, told.append, lambda: told.append("interrupted"))
    yield lead, workers, told, ended
    lead.close(3)
    other.join(10)
    listener.close()
    assert ended in ([3], [LOST])


def program():
    return types.SimpleNamespace(description=DESCRIPTION, stablehlo="text")


def test_the_chief_gives_each_host_its_slices_and_gets_them_back(group):
    lead, workers, _, _ = group
    devices = Devices(program(), hosts=lead)
    assert devices.cores == [[0, 1], [2, 3]]
    for name, about in DESCRIPTION["variables"].items():
        whole = np.random.default_rng(0).standard_normal(about["shape"]).astype(np.float32)
        devices.put(name, whole)
        np.testing.assert_array_equal(devices.get(name), whole)
    assert workers[0].held["1/gpt2/wte"].shape == workers[1].held["3/gpt2/wte"].shape == (2, 3)
    np.testing.assert_array_equal(devices.step({"step": 0, **BATCH})["loss"], [0, 1])


def test_each_host_is_sent_what_its_cores_read_of_a_batch(group):
    lead, workers, _, _ = group
    Devices(program(), hosts=lead).step({"step": 7, **BATCH})
    for host, worker in enumerate(workers):
        rows, columns = slice(2 * host, 2 * host + 2), slice(3 * host, 3 * host + 3)
        np.testing.assert_array_equal(worker.given["inputs"], BATCH["inputs"][rows])
        np.testing.assert_array_equal(worker.given["labels"], BATCH["labels"][:, columns])
        assert worker.given["step"] == 7


@pytest.mark.parametrize("room", [None, 0, 1 << 40])
def test_a_checkpoint_is_written_and_read_by_all(group, tmp_path, monkeypatch, room):
    """At once, or while the devices go on, where memory takes it.

    Args:
      room: bytes of memory; None writes at once.
    """
    lead, workers, _, _ = group
    devices = Devices(program(), hosts=lead)
    wholes = {}
    for name, about in DESCRIPTION["variables"].items():
        wholes[name] = np.random.default_rng(1).standard_normal(about["shape"]).astype(np.float32)
        devices.put(name, wholes[name])
    path = str(tmp_path / "model.ckpt-7")
    monkeypatch.setattr(module_of_parts, "available_memory", lambda: room)
    devices.write(path, 7, beside=room is not None)
    for name in wholes:
        devices.put(name, wholes[name] + 1)  # the next step
    while (parts := devices.written()) is None:
        time.sleep(0.01)
    assert len(parts) == 2
    if room:
        assert lead.own.written.__self__.held == []  # what is written is not held on to
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=path))
    bundle = Bundle(path)
    bundle.verify()
    assert bundle.shards == 2 and bundle.read("global_step") == 7
    for name, whole in wholes.items():
        np.testing.assert_array_equal(bundle.read(name), whole)
    for worker in workers:
        worker.held.clear()
    assert devices.restore(path) == []
    for name, whole in wholes.items():
        np.testing.assert_array_equal(devices.get(name), whole)
    for worker in workers:
        worker.process.kill = lambda: None
    with pytest.raises(CheckpointError, match="model.ckpt-8.index"):
        devices.restore(str(tmp_path / "model.ckpt-8"))
    np.testing.assert_array_equal(devices.get("gpt2/b"), wholes["gpt2/b"])  # answers are to what was asked


def test_what_another_host_refuses_is_told_with_its_number(group):
    lead, workers, _, _ = group
    devices = Devices(program(), hosts=lead)

    def refuse(header):
        if header["do"] == "step":
            raise DeviceError("out of memory")

    workers[1].act = refuse
    with pytest.raises(DeviceError, match="host 1: out of memory"):
        devices.step({"step": 0, **BATCH})
    assert workers[0].killed.wait(5)  # it could wait for the other in a collective


def test_a_connection_that_ends_ends_the_run(group):
    lead, workers, _, ended = group
    devices = Devices(program(), hosts=lead)

    def wait_for_kill(header):
        if header["do"] == "step":
            lead.links[0].connection.shutdown(socket.SHUT_RDWR)
            assert workers[0].killed.wait(5)
            raise DeviceError("the JAX process ended")

    workers[0].act = wait_for_kill
    with pytest.raises(HostLost, match="host 1 is gone: the run ends. Start the same commands again: a training"):
        devices.step({"step": 0, **BATCH})


def test_all_who_wait_for_a_lost_host_hear_of_it(group):
    """The run, and the thread that has its last checkpoint written."""
    lead, _, _, _ = group
    devices = Devices(program(), hosts=lead)
    lead.links[0].connection.shutdown(socket.SHUT_RDWR)
    assert lead.missed.wait(5)
    heard = []
    asking = [threading.Thread(target=lambda: heard.append(lead.links[0].following())) for _ in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(5)
    assert heard == [None] * 3
    with pytest.raises(HostLost, match="host 1 is gone"):
        devices.settle()


def test_a_signal_of_another_host_interrupts_the_chief(group):
    lead, _, told, _ = group
    lead.links[0].heard({"do": "signal", "signal": 15})
    assert told[-2:] == ["host 1 is asked to end, which ends the run for all", "interrupted"]


def test_a_folder_that_is_not_shared_is_told(group, tmp_path, monkeypatch):
    lead, _, _, _ = group
    path = tmp_path / "seen"
    path.write_text("")
    check_shared(lead, str(path))
    path.unlink()
    with pytest.raises(CheckpointError, match="host 0 does not see .* all hosts need the same folder"):
        check_shared(lead, str(path))


def test_only_who_knows_the_token_is_let_in():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        strangers[0].sendall(b"other 1\n")
        strangers[1].sendall(b"x" * 200)
        friend = socket.create_connection(("127.0.0.1", port))
        friend.sendall(b"word 1\n")
        found = accept_all(listener, Joined(0, 2, (), "word"), 5)
        assert list(found) == [1] and found[1].getpeername() == friend.getsockname()
        for connection in (*strangers, friend, *found.values()):
            connection.close()


def test_a_host_that_does_not_come_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(HostLost, match="no answer from host 2 in 0 s"):
            friend = socket.create_connection(listener.getsockname())
            friend.sendall(b"word 1\n")
            accept_all(listener, Joined(0, 3, (), "word"), 0.3)
        friend.close()


def test_a_host_that_dies_before_it_comes_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(HostLost, match="host 1 is gone before"):
        accept_all(listener, Joined(0, 2, (), "word"), 60, lambda: False)


def test_joining_passes_on_what_is_known(monkeypatch):
    asked = []

    class Joining:
        def ask(self, header, arrays):
            asked.append(header)
            return {"rank": 0, "hosts": 2, "words": header["words"]}, {}

    joined, listener = module.join(Joining(), Place(2, 0, "chief:9").options, "cpu", 30, alone=False)
    with listener:
        port = listener.getsockname()[1]
    assert joined.hosts == 2 and joined.addresses[0] == f"chief:{port}" and len(joined.token) == 32
    assert asked[0]["coordinator_address"] == "chief:9" and asked[0]["process_id"] == 0
    assert len(asked[0]["words"]) < 1024 and json.loads(asked[0]["words"])["token"] == joined.token


def test_a_part_is_tried_again_where_storage_refuses_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "PAUSE", 0.0)
    monkeypatch.setattr(saver, "files", types.SimpleNamespace(is_remote=lambda path: True))
    left, plain = [503, 503], module_of_parts.own_session

    def refusing(graph):
        if left:
            left.pop()
            raise tf.errors.UnavailableError(None, None, "503")
        return plain(graph)

    monkeypatch.setattr(module_of_parts, "own_session", refusing)
    path = str(tmp_path / "part")
    module_of_parts.save_tensors(path, [("a", "", np.ones(3, np.float32))])
    assert not left and (Bundle(path).read("a") == 1).all()
    left += [503] * saver.ATTEMPTS
    with pytest.raises(CheckpointError, match="cannot be written: 503"):
        module_of_parts.save_tensors(path, [("a", "", np.ones(3, np.float32))])
    assert not left


def test_hosts_of_unequal_size_are_told():
    """As where --set mesh_shape is forgotten on one of them."""
    assert uneven([0, 0, 1, 1]) == uneven([0]) == ""
    wanted = "hosts need as many devices each, and the same command (host 0 has 4, host 1 has 2)"
    assert uneven([0, 0, 0, 0, 1, 1]) == wanted


def test_what_is_known_of_the_group_reaches_jax(monkeypatch):
    """Under a scheduler JAX would take one GPU of a machine otherwise, of those that the only process there has."""
    jax, seen = MagicMock(), {}

    def initialize(
        coordinator_address=None, num_processes=None, process_id=None, local_device_ids=None, initialization_timeout=300
    ):
        seen.update(locals())
        raise RuntimeError("no other host")

    jax.distributed.initialize = initialize
    for name in ("jax", "jaxlib", "jax._src", "jax._src.lib", "jax.experimental", "jax.sharding"):
        monkeypatch.setitem(sys.modules, name, jax)
    monkeypatch.syspath_prepend(str(process.WORKER.parent))
    spec = importlib.util.spec_from_file_location("worker_under_test", process.WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    place = place_of(None, None, None, "gpu", {**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_NUM_NODES": "4"})
    fake = types.SimpleNamespace(ask=lambda header, arrays: (worker.join(header), {}))
    joined, listener = module.join(fake, place.options, "gpu", 9.0, alone=True)
    listener.close()
    assert (joined.rank, joined.hosts) == (0, 1)
    wanted = {"num_processes": 4, "process_id": 0, "local_device_ids": [], "initialization_timeout": 9}
    assert {name: seen[name] for name in wanted} == wanted and seen["coordinator_address"] is None


def test_hosts_that_do_not_find_each_other_in_time_may_later():
    """The status is that of a machine lost, which a supervisor takes for a reason to start again."""

    class Waited:
        def ask(self, header, arrays):
            raise WorkerLost("DEADLINE_EXCEEDED", 1)

    with pytest.raises(HostLost, match="do not come together within 5 s .--cluster_wait") as found:
        join(Waited(), {"num_processes": 2}, "cpu", 5, alone=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(HostLost, match="host 0 cannot be reached") as other:
        connect(Joined(1, 2, (f"127.0.0.1:{port}",), "word"), 1)
    assert found.value.status == other.value.status == LOST
