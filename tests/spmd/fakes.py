"""Devices that need no JAX: a few variables, updated by rules that a test can follow, from every step and batch."""

import math
import time
import types

import ml_dtypes
import numpy as np

from gpt_neo.cli import hosts
from gpt_neo.spmd import training
from gpt_neo.spmd.parts import fit_program, write_parts

VARIABLES = {
    "gpt2/wte": {"shape": [8, 4], "dtype": "bfloat16", "axes": [None, None]},
    "gpt2/wte/adam_m": {"shape": [8, 4], "dtype": "float32", "axes": [None, None]},
    "gpt2/h0/b": {"shape": [4], "dtype": "float32", "axes": [None]},
}
TYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


class FakeDevices:
    """As `gpt_neo.spmd.devices.Devices`.

    pause: seconds of a step. act: called with the number of a step and the devices before it is done.
    """

    pause, act = 0.0, staticmethod(lambda step, fake: None)
    made: list = []

    def __init__(self, program, python, platform="cpu"):
        self.program, self.kinds, self.held = program, ["fake"] * 2, {}
        self.cached = False
        self.hosts = types.SimpleNamespace(count=1)
        self.closed, self.pending = False, {}
        FakeDevices.made.append(self)

    def put(self, name, whole):
        assert whole.dtype == TYPES[VARIABLES[name]["dtype"]] and list(whole.shape) == VARIABLES[name]["shape"]
        self.held[name] = np.array(whole)

    def restore(self, path):
        fit = fit_program(path, self.program.description)
        for name, about in VARIABLES.items():
            self.put(name, fit.value(name, np.dtype(TYPES[about["dtype"]])))
        return list(fit.notes)

    def write(self, path, step, beside):
        self.path, self.step_held = path, step
        self.values = {f"0/{name}": np.array(self.get(name)) for name in VARIABLES}

    def written(self):
        ask = lambda do, given, parts: {key: self.values[key] for key in parts}  # noqa: E731
        return write_parts(ask, self.program.description, [0], self.path, self.step_held)

    def kill(self):
        print("killed", flush=True)

    def get(self, name):
        return self.held[name]

    def step(self, given):
        step = int(given["step"])
        time.sleep(self.pause)
        self.act(step, self)
        assert given["inputs"].dtype == np.int32 and given["inputs"].ndim == 2
        assert (given["inputs"][:, 1:] == given["labels"][:, :-1]).all()
        mean = float(given["inputs"].mean())
        slot = self.held["gpt2/wte/adam_m"] * np.float32(0.9) + np.float32(mean / 1000 + step)
        self.held["gpt2/wte/adam_m"] = slot
        self.held["gpt2/wte"] = (self.held["gpt2/wte"].astype(np.float32) + slot).astype(ml_dtypes.bfloat16)
        self.held["gpt2/h0/b"] = self.held["gpt2/h0/b"] + np.float32(mean)
        loss = math.nan if np.isnan(slot).any() else mean / 100
        return {"loss": np.full([2], loss, np.float32), "rate": np.full([2], 0.5 / (step + 1), np.float32)}

    def step_ahead(self, given):
        before, self.pending = self.pending, self.step(given)
        return True, before

    def settle(self):
        before, self.pending = self.pending, {}
        return before

    def close(self):
        self.closed = True


def initial_values(program):
    """What a new run starts from."""
    for place, (name, about) in enumerate(VARIABLES.items()):
        yield name, np.full(about["shape"], place, TYPES[about["dtype"]])


def install(patch=setattr):
    """Put them in the place of JAX and of the exported program. patch: setattr, or that of a monkeypatch."""
    program = types.SimpleNamespace(
        description={"variables": VARIABLES, "kept": [], "kind": "train", "mesh": [], "cores": 1}, stablehlo=""
    )
    patch(hosts, "Devices", FakeDevices)
    patch(hosts, "worker_python", lambda tell, platform: "python")
    patch(training, "export_train_step", lambda run, weighted=False, attention=None: program)
    patch(training, "initial_values", initial_values)
    FakeDevices.made.clear()
