"""This side of a worker: a program on devices of JAX, as an object."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

import numpy as np

from gpt_neo.errors import DeviceError
from gpt_neo.spmd.environment import worker_environment
from gpt_neo.spmd.messages import receive, send
from gpt_neo.spmd.program import Program

WORKER = Path(__file__).with_name("worker.py")
PLATFORMS = ("cpu", "gpu", "tpu")


class Worker:
    """A process with devices of JAX, which holds programs under numbers.

    cores: devices that its programs ask for.
    """

    def __init__(self, python: str, platform: str, cores: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="gpt_neo_spmd_")
        self.numbers = itertools.count()
        self.errors = open(os.path.join(self.folder.name, "errors"), "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=worker_environment(platform, cores),
            start_new_session=True,  # a Ctrl-C at the terminal is for this side, which still has something to save
        )

    def ask(self, header: Mapping, arrays: Mapping[str, Any]) -> tuple[dict, dict]:
        """Send a message, wait for its answer.

        Raises:
          DeviceError: the devices refuse, or the process died.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            send(self.process.stdin, header, arrays)  # type: ignore[arg-type]
            reply, results = receive(self.process.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError) as error:
            raise DeviceError(f"the JAX process ended: {self.last_words()}") from error
        if "error" in reply:
            raise DeviceError(f"the devices refuse: {first_line(reply['error'])}")
        return reply, results

    def last_words(self) -> str:
        """What the process wrote last."""
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        return lines[-1] if lines else f"status {self.process.poll()}"

    def close(self) -> None:
        """End the process."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                try:
                    stream.close()
                except OSError:
                    pass  # a pipe to a process that is gone
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()
        self.folder.cleanup()


class Devices:
    """A program on devices of JAX, with its slices. Use it as a context.

    kinds: what the devices are.

    Args:
      worker: that has other programs already; otherwise a new one, which ends with this program.

    Raises:
      DeviceError: there are too few devices, the program does not fit them, or the process died.
    """

    def __init__(
        self, program: Program, python: str = "", platform: str = "cpu", worker: Optional[Worker] = None
    ) -> None:
        self.program, self.owns = program, worker is None
        self.worker = worker or Worker(python, platform, program.description["cores"])
        self.number = next(self.worker.numbers)
        path = os.path.join(self.worker.folder.name, f"program_{self.number}.mlir")
        Path(path).write_text(program.stablehlo, encoding="utf-8")
        try:
            header, _ = self.ask("load", path=path, description=program.description)
        except DeviceError:
            self.close()
            raise
        finally:
            Path(path).unlink(missing_ok=True)
        self.kinds: list[str] = header["devices"]

    def beside(self, program: Program) -> Devices:
        """Another program for the same devices, in the same process."""
        return Devices(program, worker=self.worker)

    def ask(self, do: str, arrays: Optional[Mapping[str, Any]] = None, **header: Any) -> tuple[dict, dict]:
        """Send the worker a message about this program; see `Worker.ask`."""
        return self.worker.ask({"do": do, "program": self.number, **header}, arrays or {})

    def put(self, name: str, whole: np.ndarray) -> None:
        """Give the devices their slices of a variable."""
        self.ask("put", {name: whole})

    def get(self, name: str) -> np.ndarray:
        """A whole variable."""
        return self.ask("get", names=[name])[1][name]

    def step(self, given: Mapping[str, Any]) -> dict:
        """Run the program once. Returns its results as each core has them, [cores, ...]."""
        return self.ask("step", given)[1]

    def release(self) -> None:
        """Give the memory of the slices back; the program stays."""
        self.ask("release")

    def close(self) -> None:
        """Let go of the program, and end the process if it was made for it."""
        if self.owns:
            self.worker.close()
            return
        try:
            self.ask("drop")
        except (DeviceError, ValueError):  # the process, or the pipe to it, is gone already
            pass

    def __enter__(self) -> Devices:
        """Nothing more to do."""
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """Let go."""
        self.close()


def first_line(text: str) -> str:
    """The first line of an error, without what the runtime adds."""
    return (text.strip().splitlines() or ["no reason given"])[0]


def save_program(program: Program, prefix: str) -> Sequence[str]:
    """Write a program as PREFIX.mlir and PREFIX.json; returns the paths."""
    paths = [f"{prefix}.mlir", f"{prefix}.json"]
    Path(paths[0]).write_text(program.stablehlo, encoding="utf-8")
    Path(paths[1]).write_text(json.dumps(program.description, indent=1) + "\n", encoding="utf-8")
    return paths
