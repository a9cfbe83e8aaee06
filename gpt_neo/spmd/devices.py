"""This side of a worker: a program on devices of JAX, as an object."""

from __future__ import annotations

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
from gpt_neo.spmd.gpus import KEPT
from gpt_neo.spmd.messages import receive, send
from gpt_neo.spmd.program import Program

WORKER = Path(__file__).with_name("worker.py")
PLATFORMS = ("cpu", "gpu", "tpu")


class Devices:
    """A process that holds a program's slices on devices and runs it. Use it as a context.

    kinds: what the devices are.

    Raises:
      DeviceError: there are too few devices, the program does not fit them, or the process died.
    """

    def __init__(self, program: Program, python: str, platform: str = "cpu") -> None:
        self.program, self.folder = program, tempfile.TemporaryDirectory(prefix="gpt_neo_spmd_")
        self.errors = open(os.path.join(self.folder.name, "errors"), "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=worker_environment(platform, program.description["cores"]),
            start_new_session=True,  # a Ctrl-C at the terminal is for this side, which still has something to save
        )
        path = os.path.join(self.folder.name, "program.mlir")
        Path(path).write_text(program.stablehlo, encoding="utf-8")
        try:
            header, _ = self.ask({"do": "load", "path": path, "description": program.description}, {})
        except DeviceError:
            self.close()
            raise
        self.kinds: list[str] = header["devices"]

    def ask(self, header: Mapping, arrays: Mapping[str, Any]) -> tuple[dict, dict]:
        """Send a message, wait for its answer."""
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

    def put(self, name: str, whole: np.ndarray) -> None:
        """Give the devices their slices of a variable."""
        self.ask({"do": "put"}, {name: whole})

    def get(self, name: str) -> np.ndarray:
        """A whole variable."""
        return self.ask({"do": "get", "names": [name]}, {})[1][name]

    def step(self, given: Mapping[str, Any]) -> dict:
        """Run the program once. Returns its results as each core has them, [cores, ...]."""
        return self.ask({"do": "step"}, given)[1]

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

    def __enter__(self) -> Devices:
        """Nothing more to do."""
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """End the process."""
        self.close()


def worker_environment(platform: str, cores: int) -> dict:
    """Environment variables of the worker. CPU devices are made as many as there are cores."""
    # TPU_LOAD_LIBRARY keeps this side's TensorFlow away from the TPU, not the worker.
    others = ("PYTHONPATH", "XLA_FLAGS", "TPU_LOAD_LIBRARY")
    kept = {name: value for name, value in os.environ.items() if name not in others}
    flags = os.environ.get("XLA_FLAGS", "")
    if platform == "cpu":
        flags = f"{flags} --xla_force_host_platform_device_count={cores}"
    if platform != "tpu":  # a TPU asks the cloud's metadata what it is
        kept["TPU_SKIP_MDS_QUERY"] = "1"
    names = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{1 - KEPT:g}"}  # of a GPU; JAX left to itself takes three quarters
    return {**share, **kept, "JAX_PLATFORMS": names[platform], "XLA_FLAGS": flags.strip(), "TF_CPP_MIN_LOG_LEVEL": "3"}


def first_line(text: str) -> str:
    """The first line of an error, without what the runtime adds."""
    return (text.strip().splitlines() or ["no reason given"])[0]


def save_program(program: Program, prefix: str) -> Sequence[str]:
    """Write a program as PREFIX.mlir and PREFIX.json; returns the paths."""
    paths = [f"{prefix}.mlir", f"{prefix}.json"]
    Path(paths[0]).write_text(program.stablehlo, encoding="utf-8")
    Path(paths[1]).write_text(json.dumps(program.description, indent=1) + "\n", encoding="utf-8")
    return paths
