"""The process of the devices: how its end is told, and what is left of it."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types

import pytest

from gpt_neo.errors import CheckpointError, DeviceError
from gpt_neo.spmd import devices, hosts, orphans, parts, process
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.process import Worker, WorkerLost
from gpt_neo.spmd.saver import DeviceSaves
from tests.conftest import ROOT


def test_a_process_that_is_killed_is_told_with_its_status(monkeypatch, tmp_path):
    """As the system's end of one that takes too much memory: nothing is written, there is the status alone."""
    script = tmp_path / "worker.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(process, "WORKER", script)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    worker = Worker(sys.executable, "cpu", 1)
    assert not list(temporary.iterdir()), "a kill of this side would leave it"
    with pytest.raises(WorkerLost, match="the JAX process ended: status -9") as lost:
        worker.ask({"do": "load"}, {})
    assert lost.value.status == 69, "whoever restarts runs may start this one again"
    worker.close()


def test_a_process_that_cannot_begin_is_a_mistake(monkeypatch, tmp_path):
    """As with a Python that has no JAX."""
    script = tmp_path / "worker.py"
    script.write_text("import nothing_of_this_name\n")
    monkeypatch.setattr(process, "WORKER", script)
    worker = Worker(sys.executable, "cpu", 1)
    with pytest.raises(WorkerLost, match="No module named 'nothing_of_this_name'") as lost:
        worker.ask({"do": "load"}, {})
    assert lost.value.status == 2
    worker.close()


FATAL = """\
[Gloo] Rank 0 is connected to 1 peer ranks.
F1130 07:22:25.810046    2019 client.h:80] Terminating process because the service detected fatal errors.

RPC: /xla.coordination.CoordinationService/RegisterTask
*** Check failure stack trace: ***
    @     0x7f9ee1958ba3  PyObject_Vectorcall
"""


def test_hosts_that_do_not_come_are_told_without_a_stack(monkeypatch, tmp_path):
    """JAX ends the process of a host that has waited for long enough, or two of which have one rank."""
    script = tmp_path / "worker.py"
    script.write_text(f"import os, sys\nsys.stderr.write({FATAL!r})\nsys.stderr.flush()\nos.abort()\n")
    monkeypatch.setattr(process, "WORKER", script)
    worker = Worker(sys.executable, "cpu", 1)
    wanted = (
        r"within 8 s \(--cluster_wait\): each has to .* \(the JAX process ended: Terminating process because the "
        r"service detected fatal errors.\)$"
    )
    with pytest.raises(DeviceError, match=wanted):
        hosts.join(worker, {}, "cpu", 8.0, alone=False)
    worker.close()


def test_a_port_that_another_program_has_is_told():
    with socket.create_server(("", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        wanted = f"--coordinator {address}: this machine cannot listen there: Address already in use"
        with pytest.raises(DeviceError, match=wanted):
            hosts.join(None, {"process_id": 0, "coordinator_address": address}, "cpu", 8.0, alone=False)
    hosts.check_free(address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_processes_along(tmp_path, number):
    """Where nothing else hears it: while a program is compiled, in evaluation and sampling."""
    (tmp_path / "worker.py").write_text("import time\ntime.sleep(60)\n")
    script = """
        import sys, time
        from pathlib import Path
        from gpt_neo.spmd import process
        process.WORKER = Path(sys.argv[1])
        with process.unwinding():
            worker = process.Worker(sys.executable, "cpu", 1)
            try:
                print(worker.process.pid, flush=True)
                worker.ask({"do": "load"}, {})
            finally:
                worker.process.kill()
                worker.close()
    """
    words = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "worker.py")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT}) as running:
        pid = int(running.stdout.readline())
        running.send_signal(number)
        assert running.wait(timeout=30) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_kill_takes_the_process_of_the_devices_along(tmp_path):
    """Also where it is at work, and would see the end of its input much later."""
    begin = f"import sys, time; sys.path.insert(0, {os.path.dirname(orphans.__file__)!r}); import orphans\n"
    (tmp_path / "worker.py").write_text(begin + "orphans.end_with_parent()\nprint('up', flush=True)\ntime.sleep(60)\n")
    script = "import subprocess, sys; subprocess.run([sys.executable, sys.argv[1]])"
    words = [sys.executable, "-c", script, str(tmp_path / "worker.py")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "up\n"
        time.sleep(2 * orphans.LOOK)
        assert running.poll() is None
        running.kill()
        began = time.monotonic()
        assert running.stdout.read() == "" and time.monotonic() - began < 20, "nobody holds its output any more"


def test_what_a_writing_thread_fails_with_is_no_checkpoint(monkeypatch):
    def save(part, tensors):
        if part == "b":
            raise MemoryError("no more")

    monkeypatch.setattr(parts, "parts_of", lambda *given: iter([("a", []), ("b", []), ("c", [])]))
    monkeypatch.setattr(parts, "save_tensors", save)
    writing = parts.Writing(None, {}, [0], "x", 1)
    writing.thread.join()
    with pytest.raises(MemoryError):
        writing.parts()


def test_a_lost_folder_gets_no_checkpoint():
    """Of one that is being written beside the training, too."""
    saves = DeviceSaves.__new__(DeviceSaves)
    saves.failure, saves._save_path = None, "x/model.ckpt"

    def lost():
        raise CheckpointError("the folder is another run's")

    saves.owned, saves._get_saver = lost, lambda: pytest.fail("it is merged")
    saves.finish_beside(3)
    assert isinstance(saves.failure, CheckpointError)


def test_a_stranger_who_says_a_byte_now_and_then_is_left_in_time(monkeypatch):
    monkeypatch.setattr(hosts, "HELLO", 0.5)
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def drip():
        while not over.wait(0.1):
            theirs.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    with pytest.raises(OSError):
        hosts.hello(ours)
    assert time.monotonic() - began < 30  # not as long as the stranger goes on
    over.set()
    thread.join()
    ours.close()
    theirs.close()


def test_devices_that_are_interrupted_at_the_start_end(monkeypatch):
    """Ctrl-C and SIGTERM are no errors of devices; their process has a session of its own and would live on."""
    closed = []

    def ask_all(header, arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(Devices, "close", lambda self: closed.append(self))
    worker = types.SimpleNamespace(numbers=itertools.count(1))
    program = types.SimpleNamespace(stablehlo="", description={"cores": 1})
    group = types.SimpleNamespace(own=types.SimpleNamespace(worker=worker), ask_all=ask_all)
    with pytest.raises(KeyboardInterrupt):
        Devices(program, hosts=group)
    assert not closed, "others have programs in it, and it does not answer while it compiles"
    monkeypatch.setattr(devices, "Hosts", lambda host: group)
    monkeypatch.setattr(devices, "Host", lambda worker: None)
    monkeypatch.setattr(devices, "Worker", lambda *given: None)
    with pytest.raises(KeyboardInterrupt):
        Devices(program)
    assert len(closed) == 1
