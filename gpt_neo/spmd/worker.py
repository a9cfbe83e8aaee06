"""Runs an exported program on the devices that JAX sees. A script for an environment without TensorFlow.

It reads messages (see `messages.py`) from standard input and answers on standard output: `join` the processes of other
hosts, `load` a program under a number, `put` slices of variables, `step`, `settle` what is at work, `get` slices,
`release` them all, `drop` the program. The slices stay on the devices; a step's new ones take the place of its old.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import jax
import jaxlib
import messages  # beside this script
import numpy as np
from compile_options import compile_options  # beside this script
from jax._src.lib import xla_client
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from kept_programs import KeptPrograms  # beside this script
from orphans import end_with_parent  # beside this script
from slices import around, cut, holders, part_key, part_of, uneven  # beside this script

jax.config.update("jax_enable_x64", True)  # or an input of float64 would arrive as float32
HEARTBEAT = 30  # seconds without a sign of life after which a process is lost
WORDS = 1024  # bytes that process 0 tells the others


class Runner:
    """A program on its devices. state: input name -> array whose shard on a device is that core's own slice.

    cores: numbers of those whose devices are this process's own; all of them where there is no other process.
    """

    def __init__(self, text: str, description: dict) -> None:
        self.description, count = description, description["cores"]
        every = jax.devices()
        if len(every) < count or (len(every) > count and jax.process_count() > 1):
            raise ValueError(f"the program is for {count} devices, there are {len(every)} ({every[0].device_kind})")
        every = every[:count]
        self.kinds = [device.device_kind for device in every]
        self.cores = [core for core, device in enumerate(every) if device.process_index == jax.process_index()]
        self.devices = [every[core] for core in self.cores]
        self.reads = {name: around(description, name, self.cores) for name in description["batch"]}
        options = compile_options(every, every[0].platform)
        self.cached, self.executable = self.built(text, options)
        # Replicated as far as JAX knows: it takes the shards as they are, and they may differ.
        self.sharding = NamedSharding(Mesh(np.array(every), ("core",)), PartitionSpec())
        self.state: dict[str, Any] = {}
        self.pending: dict[str, list] = {}  # results of a step that may be at work still
        self.release()

    def built(self, text: str, options: Any) -> tuple[bool, Any]:
        """The program, and whether it was there already: on all hosts or on none, as compilers may work together."""
        client, kept = self.devices[0].client, KeptPrograms()
        versions = jax.__version__, jaxlib.__version__, client.platform_version
        path = kept.path(text, *versions, *self.kinds, str(self.cores), str(options.env_option_overrides))
        found = kept.load(path, lambda data: restored(data, self.devices, options))
        if jax.process_count() > 1 and not multihost_utils.process_allgather(np.array([found is not None])).all():
            found = None
        if found is not None:
            return True, found
        made = compiled(text, self.devices, options)
        kept.keep(path, lambda: client.serialize_executable(made))
        return False, made

    def release(self) -> None:
        """Keep no variable."""
        self.state = {"core": self.joined([np.int32(core) for core in self.cores])}

    def joined(self, parts: Sequence[Any]) -> Any:
        """One array of a part per device of this process."""
        return self.whole([jax.device_put(part, device) for part, device in zip(parts, self.devices)])

    def whole(self, parts: Sequence[Any]) -> Any:
        """One array of arrays that lie on the devices. Of one device it is that array: nothing to do for every step."""
        if self.description["cores"] == 1:
            return parts[0]
        return jax.make_array_from_single_device_arrays(parts[0].shape, self.sharding, parts)

    def put(self, parts: Mapping[str, np.ndarray]) -> None:
        """Give every device its slices of variables.

        Args:
          parts: by `part_key`; of cores that have the same slice, the first one's.
        """
        for name in {part_of(key)[1] for key in parts}:
            placed = {}
            for same in holders(self.description, name, self.cores).values():
                placed.update(dict.fromkeys(same, parts[part_key(same[0], name)]))
            self.state[name] = self.joined([placed[core] for core in self.cores])

    def get(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Slices by `part_key`, as far as the cores are this process's."""
        found = {}
        for key in keys:
            core, name = part_of(key)
            if core not in self.cores:
                continue
            device = self.devices[self.cores.index(core)]
            (found[key],) = (
                np.asarray(shard.data) for shard in self.state[name].addressable_shards if shard.device == device
            )
        return found

    def widened(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Batches of which the part that these cores read has come, with zeros around it: programs take whole ones."""
        found = dict(given)
        for name, part in self.reads.items():
            shape = self.description["batch"][name]["shape"]
            if list(given[name].shape) != shape:
                found[name] = np.zeros(shape, given[name].dtype)
                cut(found[name], part)[...] = given[name]
        return found

    def step(self, given: Mapping[str, Any]) -> dict:
        """Run the program once: its results, each [cores of this process, ...], once the new slices are in place."""
        return fetched(self.run(given))

    def step_ahead(self, given: Mapping[str, Any]) -> tuple[bool, dict]:
        """Begin a step; it is at work when this returns, so that the devices need not wait for the next batch.

        Returns:
          whether they were waiting for this one, and the results of the step before, none of the first.
        """
        waited = all(part.is_ready() for parts in self.pending.values() for part in parts)
        before, self.pending = self.pending, self.run(given)
        return waited, fetched(before)

    def settle(self) -> dict:
        """Wait for the last step that was begun: its results, none where they were fetched."""
        before, self.pending = self.pending, {}
        return fetched(before)

    def run(self, given: Mapping[str, Any]) -> dict[str, list]:
        """Begin a run of the program: its results on the devices."""
        fed = {name: self.joined([value] * len(self.devices)) for name, value in given.items()}
        inputs = [
            fed[entry["name"]] if entry["name"] in fed else self.state[entry["name"]]
            for entry in self.description["inputs"]
        ]
        outs = self.executable.execute_sharded(inputs).disassemble_into_single_device_arrays()
        results = {}
        for entry, parts in zip(self.description["outputs"], outs):
            if entry["name"] in self.description["variables"]:
                self.state[entry["name"]] = self.whole(parts)
            else:
                results[entry["name"]] = parts
        return results


def fetched(results: Mapping[str, list]) -> dict[str, np.ndarray]:
    """Results from the devices, each [cores of this process, ...], once they are there."""
    return {name: np.stack([np.asarray(part) for part in parts]) for name, parts in results.items()}


def compiled(text: str, devices: Sequence[Any], options: Any) -> Any:
    """A program on devices. Nothing here is public in JAX; jax 0.6.0 to 0.10 have it in one of these two forms."""
    client = devices[0].client
    if hasattr(client, "compile_and_load"):
        return client.compile_and_load(text, xla_client.DeviceList(tuple(devices)), options)
    return client.compile(text, options)


def restored(data: bytes, devices: Sequence[Any], options: Any) -> Any:
    """A program from what `serialize_executable` made of it."""
    client = devices[0].client
    if hasattr(client, "compile_and_load"):
        return client.deserialize_executable(data, xla_client.DeviceList(tuple(devices)), options)
    return client.deserialize_executable(data, options)


def join(header: dict) -> dict:
    """Become one of several processes of one program (`jax.distributed`), or stay alone where none are found.

    Returns:
      rank and hosts of this process; words, those of process 0.
    """
    known = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
    options = {name: header[name] for name in known if name in header}
    options["initialization_timeout"] = header["seconds"]
    if "heartbeat_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters:
        options["heartbeat_timeout_seconds"] = HEARTBEAT
    if header["platform"] == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**options)
    except (ValueError, RuntimeError):
        if not header["alone"]:
            raise
        return {"rank": 0, "hosts": 1, "words": header["words"]}
    problem = uneven([device.process_index for device in jax.devices()])
    if problem:
        raise ValueError(problem)
    words = np.frombuffer(header["words"].encode().ljust(WORDS), np.uint8)
    words = multihost_utils.broadcast_one_to_all(words)
    text = np.asarray(words).astype(np.uint8).tobytes().decode().strip()
    return {"rank": jax.process_index(), "hosts": jax.process_count(), "words": text}


def trace(folder: Optional[str], perfetto: bool) -> None:
    """Begin a trace, or end the one that goes on.

    Args:
      perfetto: write what Perfetto reads as well, which JAX does on local disks alone.
    """
    if folder is None:
        jax.profiler.stop_trace()
    else:
        jax.profiler.start_trace(folder, create_perfetto_trace=perfetto)


def answer(runners: dict[int, Runner], header: dict, arrays: dict) -> tuple[dict, dict]:
    """What one message asks for: header and arrays of the answer.

    Args:
      runners: by number; `load` adds to them, `drop` takes away.
    """
    if header["do"] == "join":
        return join(header), {}
    number = header["program"]
    if header["do"] == "load":
        runner = runners[number] = Runner(arrays["text"].tobytes().decode(), header["description"])
        platform = runner.devices[0].platform
        about = {"devices": runner.kinds, "cores": runner.cores, "cached": runner.cached}
        return {**about, "platform": platform, "jax": jax.__version__}, {}
    if header["do"] == "drop":
        del runners[number]
        return {}, {}
    runner = runners[number]
    if header["do"] == "trace":
        jax.block_until_ready(list(runner.pending.values()))  # a trace has whole steps
        trace(header["folder"], header["perfetto"])
        return {}, {}
    if header["do"] == "release":
        runner.release()
        return {}, {}
    if header["do"] == "put":
        runner.put(arrays)
        return {}, {}
    if header["do"] == "get":
        return {}, runner.get(header["parts"])
    if header["do"] == "settle":
        return {}, runner.settle()
    if header["ahead"]:
        waited, results = runner.step_ahead(runner.widened(arrays))
        return {"waited": waited}, results
    return {}, runner.step(runner.widened(arrays))


def main() -> None:
    """Answer until the other side closes."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not get between the messages
    end_with_parent()
    runners: dict[int, Runner] = {}
    while True:
        try:
            header, arrays = messages.receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply, results = answer(runners, header, arrays)
        except Exception as error:  # whatever the runtime raises is for the other side to tell
            reply, results = {"error": f"{type(error).__name__}: {error}"}, {}
        messages.send(output, reply, results)


if __name__ == "__main__":
    main()
