"""A program on devices of JAX, of this machine or of several, as an object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

import numpy as np

from gpt_neo.errors import DeviceError
from gpt_neo.spmd.hosts import Host, Hosts
from gpt_neo.spmd.messages import np_dtype
from gpt_neo.spmd.process import Worker
from gpt_neo.spmd.program import Program
from gpt_neo.spmd.slices import around, cut, holders, part_key, part_of, spans_of
from gpt_neo.storage import tensorflow as files


class Devices:
    """A program on devices of JAX, with its slices. Use it as a context.

    kinds: what the devices are. cached: the program had been compiled before. hosts: that they belong to.

    Args:
      hosts: that have other programs already; otherwise this machine with a new process, which ends with this program.

    Raises:
      DeviceError: there are too few devices, the program does not fit them, or the process died.
    """

    def __init__(
        self, program: Program, python: str = "", platform: str = "cpu", hosts: Optional[Hosts] = None
    ) -> None:
        self.program, self.owns = program, hosts is None
        self.hosts = hosts or Hosts(Host(Worker(python, platform, program.description["cores"])))
        self.number = next(self.hosts.own.worker.numbers)
        text = np.frombuffer(program.stablehlo.encode(), np.uint8)
        try:
            replies = self.ask("load", {"text": text}, description=program.description)
        except BaseException as error:
            # After a signal too: a process that is this program's own has a session of its own, and would live on. One
            # that others have programs in is still at work, and does not answer.
            if self.owns or isinstance(error, DeviceError):
                self.close()
            raise
        self.kinds: list[str] = replies[0][0]["devices"]
        self.cached: bool = replies[0][0]["cached"]
        self.cores: list[list[int]] = [reply["cores"] for reply, _ in replies]  # of each host
        about = program.description
        self.reads = [{name: around(about, name, cores) for name in about["batch"]} for cores in self.cores]

    def beside(self, program: Program) -> Devices:
        """Another program for the same devices, in the same processes."""
        return Devices(program, hosts=self.hosts)

    def ask(self, do: str, arrays: Optional[Mapping[str, Any]] = None, **header: Any) -> list[tuple[dict, dict]]:
        """Send all hosts a message about this program; see `Hosts.ask_each`."""
        return self.hosts.ask_all({"do": do, "program": self.number, **header}, arrays or {})

    def put(self, name: str, whole: np.ndarray) -> None:
        """Give the devices their slices of a variable."""
        about = self.program.description
        parts = [
            {part_key(same[0], name): cut(whole, spans) for spans, same in holders(about, name, cores).items()}
            for cores in self.cores
        ]
        self.hosts.ask_each({"do": "put", "program": self.number}, parts)

    def get(self, name: str) -> np.ndarray:
        """A whole variable."""
        about = self.program.description
        first = {same[0] for same in holders(about, name, range(about["cores"])).values()}
        whole = np.zeros(about["variables"][name]["shape"], np_dtype(about["variables"][name]["dtype"]))
        keys = [[part_key(core, name) for core in cores if core in first] for cores in self.cores]
        for _, parts in self.hosts.ask_each(
            {"do": "get", "program": self.number, "parts": sum(keys, [])}, [{}] * len(keys)
        ):
            for key, part in parts.items():
                cut(whole, spans_of(about, name, part_of(key)[0]))[...] = part
        return whole

    def step(self, given: Mapping[str, Any]) -> dict:
        """Run the program once. Of a batch each host is sent what its cores read.

        Returns:
          its results as each core of the first host has them, [cores, ...].
        """
        return self.ask_step(given, ahead=False)[1]

    def step_ahead(self, given: Mapping[str, Any]) -> tuple[bool, dict]:
        """Begin a step, which is at work when this returns.

        Returns:
          whether the devices were waiting for it, and the results of the step before, none of the first.
        """
        header, results = self.ask_step(given, ahead=True)
        return header["waited"], results

    def settle(self) -> dict:
        """Wait for the step that was begun last: its results, none where there is no such step."""
        return self.ask("settle")[0][1]

    def ask_step(self, given: Mapping[str, Any], ahead: bool) -> tuple[dict, dict]:
        """Have all hosts make a step. Of a batch each is sent what its cores read. Returns the first one's answer."""
        each = [{**given, **{name: cut(given[name], part) for name, part in reads.items()}} for reads in self.reads]
        return self.hosts.ask_each({"do": "step", "program": self.number, "ahead": ahead}, each)[0]

    def restore(self, path: str) -> list[str]:
        """Give the devices their slices of a checkpoint, each host by itself; zeros where it has no optimizer slots,
        or the program keeps something of its own.

        Returns:
          notes on what was done on the way.

        Raises:
          CheckpointError: it does not fit, or is damaged.
        """
        return self.ask("restore", path=path)[0][0]["notes"]

    def write(self, path: str, step: int, beside: bool) -> None:
        """Have each host write its part of a checkpoint.

        Args:
          beside: only take the slices from the devices, and write while these go on.
        """
        self.ask("write", path=path, step=step, beside=beside)

    def written(self) -> Optional[list[str]]:
        """Paths of the parts, to be merged; None while one is being written. Any thread may ask.

        Raises:
          CheckpointError, DeviceError: one cannot be.
        """
        answers = [reply["parts"] for reply, _ in self.ask("written")]
        return None if None in answers else [part for parts in answers for part in parts]

    def trace(self, folder: Optional[str]) -> None:
        """Begin a trace of what the devices of all hosts do, or with None end it."""
        self.ask("trace", folder=folder, perfetto=folder is not None and not files.is_remote(folder))

    def release(self) -> None:
        """Give the memory of the slices back; the program stays."""
        self.ask("release")

    def close(self) -> None:
        """Let go of the program, and end the process if it was made for it."""
        if self.owns:
            self.hosts.close()
            return
        try:
            self.ask("drop")
        except (DeviceError, ValueError):  # the process, or the pipe to it, is gone already
            pass

    def kill(self) -> None:
        """End the process of the devices, which may be stuck."""
        self.hosts.kill()

    def __enter__(self) -> Devices:
        """Nothing more to do."""
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """Let go."""
        self.close()


def save_program(program: Program, prefix: str) -> Sequence[str]:
    """Write a program as PREFIX.mlir and PREFIX.json; returns the paths."""
    paths = [f"{prefix}.mlir", f"{prefix}.json"]
    Path(paths[0]).write_text(program.stablehlo, encoding="utf-8")
    Path(paths[1]).write_text(json.dumps(program.description, indent=1) + "\n", encoding="utf-8")
    return paths
