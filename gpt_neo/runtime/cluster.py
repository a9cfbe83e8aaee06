"""Several machines on TensorFlow's own runtime: one mesh over the devices of every task of a TF_CONFIG.

One task, the chief, builds the graph and runs it over gRPC; the others lend their devices. TensorFlow's servers know
neither when a run has ended nor that it never will, so the tasks tell each other: the chief by a queue on each worker,
a worker that is asked to end by a queue on the chief, and everybody sees it when a task's port is closed.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable, Optional

from gpt_neo.config.cluster import Cluster, Task
from gpt_neo.config.schema import MeshConfig
from gpt_neo.errors import AGAIN, LOST, DeviceError, HostLost
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import MeshPlan, plan_mesh, session_config

REFUSED = 3.0  # seconds after which a task whose port is closed is gone
SILENT = 30.0  # seconds after which one is that does not answer at all
LOOK = 1.0  # seconds between looks
REPEAT = 30.0  # seconds between lines about tasks that are waited for
ENDED, ASKED = "gpt_neo_ended", "gpt_neo_asked"  # names of the queues
QUEUE_TIME = 5000  # milliseconds that a message may take


def cluster_spec(cluster: Cluster) -> Any:
    """The tasks as TensorFlow takes them."""
    jobs: dict = {}
    for task in cluster.tasks:
        jobs.setdefault(task.job, []).append(task.address)
    return tf.train.ClusterSpec(jobs)


def start_server(cluster: Cluster, devices: Sequence[str]) -> Any:
    """TensorFlow's server of this task.

    Args:
      devices: of --gpu_ids; as many CPU devices are made as they name.

    Raises:
      DeviceError: it cannot listen.
    """
    own = cluster.own
    config = session_config(MeshPlan(tuple(devices) or ("",)))
    try:
        return tf.train.Server(cluster_spec(cluster), own.job, own.index, protocol="grpc", config=config)
    except tf.errors.OpError as error:
        raise DeviceError(f"{own}: cannot listen on that port: {error.message.splitlines()[0]}") from error


def answers(task: Task, seconds: float = 5.0) -> Optional[bool]:
    """Whether a task's port is open; None where nothing came back at all."""
    host, _, port = task.address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return None
    return True


def wait_for(tasks: Sequence[Task], seconds: float, tell: Callable[[str], None]) -> None:
    """Wait until every task answers.

    Raises:
      HostLost: some did not in time.
    """
    begin = time.monotonic()
    told = begin - REPEAT + 3 * LOOK
    missing = list(tasks)
    while missing := [task for task in missing if not answers(task, 1.0)]:
        now = time.monotonic()
        names = ", ".join(map(str, missing))
        if now - begin > seconds:
            raise HostLost(
                f"no answer from {names} in {seconds:.0f} s: start the same command there, and look "
                "whether the port can be reached (--cluster_wait waits longer)"
            )
        if now - told >= REPEAT:
            told = now
            tell(f"waiting for {names}")
        time.sleep(LOOK / 2)


class Pulse:
    """Tells which of some tasks are gone."""

    def __init__(self, tasks: Sequence[Task], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.alive = {task: clock() for task in tasks}

    def look(self) -> Optional[Task]:
        """Ask every task; one that is gone, or None."""
        for task, last in self.alive.items():
            answer = answers(task)
            if answer:
                self.alive[task] = self.clock()
            elif self.clock() - last > (REFUSED if answer is False else SILENT):
                return task
        return None


class Mailbox:
    """A queue of one number on a task, by name: written by any task, read on its own."""

    def __init__(self, server: Any, own: Task, place: Task, name: str) -> None:
        self.graph = tf.Graph()
        with self.graph.as_default(), self.graph.device(f"{place.device}/device:CPU:0"):
            queue = tf.FIFOQueue(1, tf.int32, [[]], shared_name=name)
            self.fed = tf.placeholder(tf.int32, [])
            self.put, self.count, self.take = queue.enqueue(self.fed), queue.size(), queue.dequeue()
        # Without filters, TensorFlow would wait for tasks that have nothing to do with it.
        filters = sorted({own.device, place.device})
        self.session = tf.Session(server.target, graph=self.graph, config=tf.ConfigProto(device_filters=filters))
        self.limit = tf.RunOptions(timeout_in_ms=QUEUE_TIME)

    def send(self, number: int) -> None:
        """Send a number; a task that is gone needs none."""
        try:
            self.session.run(self.put, {self.fed: number}, options=self.limit)
        except tf.errors.OpError:
            pass

    def read(self) -> Optional[int]:
        """The number that has come, or None; also where a busy machine does not answer in time."""
        try:
            if self.session.run(self.count, options=self.limit):
                return int(self.session.run(self.take, options=self.limit))
        except tf.errors.OpError:
            pass
        return None


def serve(cluster: Cluster, server: Any, seconds: float, tell: Callable[[str], None], asked: threading.Event) -> int:
    """Lend the devices of this task until the run ends. Returns the exit status: the chief's own, or LOST.

    Args:
      seconds: to wait for the chief.
      asked: set when this task is to end: the chief is told, saves, and ends the run for all.

    Raises:
      HostLost: there is no chief.
    """
    ended = Mailbox(server, cluster.own, cluster.own, ENDED)
    wait_for([cluster.chief], seconds, tell)
    pulse, passed_on = Pulse([cluster.chief]), False
    while True:
        status = ended.read()
        if status is not None:
            return status
        if pulse.look():
            tell(f"{cluster.chief} is gone: this task ends too. {AGAIN}")
            return LOST
        if asked.is_set() and not passed_on:
            passed_on = True
            tell(f"asking {cluster.chief} to end the run")
            Mailbox(server, cluster.own, cluster.chief, ASKED).send(cluster.tasks.index(cluster.own))
        time.sleep(LOOK)


class Lead:
    """Context of the chief while it runs: workers are watched, and told of the end.

    Args:
      leave: ends the process with a status. A session whose worker is gone can wait for ever, and cannot be woken.
      interrupt: asks this process to save and end.
    """

    def __init__(
        self,
        cluster: Cluster,
        server: Any,
        tell: Callable[[str], None],
        leave: Callable[[int], object],
        interrupt: Callable[[], None],
    ) -> None:
        self.cluster, self.server, self.tell, self.leave, self.interrupt = cluster, server, tell, leave, interrupt
        self.status = 1  # an exception's, as long as nobody says otherwise
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def tell_at_end(self, status: int) -> None:
        """What the workers are to end with."""
        self.status = status

    def __enter__(self) -> Lead:
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.over.set()
        self.thread.join(2 * LOOK + SILENT)
        self.dismiss(self.cluster.others, self.status)

    def dismiss(self, tasks: Sequence[Task], status: int) -> None:
        """Tell tasks that the run has ended. One that hangs does not keep the others, or us, from ending."""

        def tell(task: Task) -> None:
            if answers(task, 1.0):
                Mailbox(self.server, self.cluster.own, task, ENDED).send(status)

        threads = [threading.Thread(target=tell, args=(task,), daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * QUEUE_TIME / 1000)

    def watch(self) -> None:
        """Look after the workers until the run is over."""
        pulse = Pulse(self.cluster.others)
        asked = Mailbox(self.server, self.cluster.own, self.cluster.own, ASKED)
        while not self.over.wait(LOOK):
            number = asked.read()
            if number is not None:
                self.tell(f"{self.cluster.tasks[number]} is asked to end, which ends the run for all")
                self.interrupt()
            gone = pulse.look()
            if gone and not self.over.is_set():
                self.tell(f"{gone} is gone: the run ends. {AGAIN}")
                self.dismiss([task for task in self.cluster.others if task != gone], LOST)
                self.leave(LOST)
                return


def plan_cluster(config: MeshConfig, cluster: Cluster, server: Any, devices: Sequence[str]) -> MeshPlan:
    """The mesh over the devices of all tasks, in the order of the tasks.

    Args:
      devices: of --gpu_ids, the same on every task; otherwise every GPU, or one CPU device where a task has no GPU.

    Raises:
      DeviceError: a task lacks a device, or mesh_shape asks for another number.
    """
    with tf.Session(server.target) as session:
        found = [device.name for device in session.list_devices()]
    names: list[str] = []
    for task in cluster.tasks:
        prefix = f"/job:{task.job}/replica:0/task:{task.index}"
        there = [name[len(prefix) :] for name in found if name.startswith(prefix + "/device:")]
        missing = [name for name in devices if name not in there]
        if missing:
            raise DeviceError(f"--gpu_ids names {missing[0]}; {task} has {', '.join(there)}")
        names += [task.device + name for name in devices or [n for n in there if ":GPU:" in n] or ["/device:CPU:0"]]
    plan = plan_mesh(config, names, "the machines of TF_CONFIG have")
    return dataclasses.replace(plan, target=server.target, chief=cluster.chief.device)
