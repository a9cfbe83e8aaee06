"""Runs an exported program on the devices that JAX sees. A script for an environment without TensorFlow.

It reads messages (see `messages.py`) from standard input and answers on standard output: `load` a program under a
number, `put` whole variables, `step`, `get` whole variables, `release` them all, `drop` the program. The slices stay on
the devices; a step's new ones take the place of its old.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import messages  # beside this script
import numpy as np
from jax._src.lib import xla_client
from jax.sharding import Mesh, NamedSharding, PartitionSpec

jax.config.update("jax_enable_x64", True)  # or an input of float64 would arrive as float32


class Runner:
    """A program on its devices. state: input name -> array whose shard on a device is that core's own slice."""

    def __init__(self, path: str, description: dict) -> None:
        self.description, cores = description, description["cores"]
        devices = jax.devices()
        if len(devices) < cores:
            raise ValueError(f"the program is for {cores} devices, there are {len(devices)} ({devices[0].device_kind})")
        self.devices = devices[:cores]
        options = xla_client.CompileOptions()
        options.num_replicas, options.num_partitions = cores, 1
        ids = np.array([device.id for device in self.devices]).reshape(cores, 1)
        options.device_assignment = xla_client.DeviceAssignment.create(ids)
        with open(path, encoding="utf-8") as handle:
            self.executable = compiled(handle.read(), self.devices, options)
        # Replicated as far as JAX knows: it takes the shards as they are, and they may differ.
        self.sharding = NamedSharding(Mesh(np.array(self.devices), ("core",)), PartitionSpec())
        self.state: dict[str, Any] = {}
        self.release()

    def release(self) -> None:
        """Keep no variable."""
        self.state = {"core": self.joined([np.int32(core) for core in range(len(self.devices))])}

    def joined(self, parts: Sequence[Any]) -> Any:
        """One array of a part per device."""
        return self.whole([jax.device_put(part, device) for part, device in zip(parts, self.devices)])

    def whole(self, parts: Sequence[Any]) -> Any:
        """One array of arrays that lie on the devices. Of one device it is that array: nothing to do for every step."""
        if len(parts) == 1:
            return parts[0]
        return jax.make_array_from_single_device_arrays(parts[0].shape, self.sharding, parts)

    def slice_of(self, name: str, core: int) -> tuple:
        """Where a core's slice lies in a variable."""
        about, place, rest = self.description["variables"][name], {}, core
        for axis, size in reversed(self.description["mesh"]):
            place[axis], rest = rest % size, rest // size
        sizes = dict(self.description["mesh"])
        spans = []
        for length, axis in zip(about["shape"], about["axes"]):
            count = length // sizes[axis] if axis else length
            first = place[axis] * count if axis else 0
            spans.append(slice(first, first + count))
        return tuple(spans)

    def put(self, name: str, whole: np.ndarray) -> None:
        """Give every device its slice of a variable."""
        self.state[name] = self.joined([whole[self.slice_of(name, core)] for core in range(len(self.devices))])

    def get(self, name: str) -> np.ndarray:
        """A whole variable."""
        parts = [shard.data for shard in self.state[name].addressable_shards]
        by_device = {next(iter(part.devices())): part for part in parts}
        whole = np.zeros(self.description["variables"][name]["shape"], parts[0].dtype)
        done: set = set()
        for core, device in enumerate(self.devices):
            spans = self.slice_of(name, core)
            key = str(spans)
            if key not in done:
                whole[spans] = np.asarray(by_device[device])
                done.add(key)
        return whole

    def step(self, given: Mapping[str, Any]) -> dict:
        """Run the program once: its results, each [cores, ...], once the new slices are in place."""
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
                results[entry["name"]] = np.stack([np.asarray(part) for part in parts])
        return results


def compiled(text: str, devices: Sequence[Any], options: Any) -> Any:
    """A program on devices. Nothing here is public in JAX; jax 0.6.0 to 0.10 have it in one of these two forms."""
    client = devices[0].client
    if hasattr(client, "compile_and_load"):
        return client.compile_and_load(text, xla_client.DeviceList(tuple(devices)), options)
    return client.compile(text, options)


def answer(runners: dict[int, Runner], header: dict, arrays: dict) -> tuple[dict, dict]:
    """What one message asks for: header and arrays of the answer.

    Args:
      runners: by number; `load` adds to them, `drop` takes away.
    """
    number = header["program"]
    if header["do"] == "load":
        runner = runners[number] = Runner(header["path"], header["description"])
        kinds = [device.device_kind for device in runner.devices]
        return {"devices": kinds, "platform": runner.devices[0].platform, "jax": jax.__version__}, {}
    if header["do"] == "drop":
        del runners[number]
        return {}, {}
    runner = runners[number]
    if header["do"] == "release":
        runner.release()
        return {}, {}
    if header["do"] == "put":
        for name, whole in arrays.items():
            runner.put(name, whole)
        return {}, {}
    if header["do"] == "get":
        return {}, {name: runner.get(name) for name in header["names"]}
    return {}, runner.step(arrays)


def main() -> None:
    """Answer until the other side closes."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not get between the messages
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
