"""What a checkpoint that is being written costs the steps beside it: `python -m bench.saving [--steps 60]`.

The devices' process has one core to itself and the program that reads, logs and writes has the others, as where devices
are no cores of the host. A step counts as beside a checkpoint where the checkpoint's parts are on the disk at its
beginning or at its end and not yet one; the others are its peers, in the same run. What waits for slices to come out of
the devices is taken from its step and told by itself.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import stat
import statistics
import sys
import tempfile
import time
from typing import Optional

N_CTX, N_VOCAB = 256, 2048
INSTANT = 0.01  # seconds that a look at what is over takes at most
DEVICE = 0  # the core of the devices' process


def pinned(folder: str, python: str) -> str:
    """A Python that runs on core DEVICE."""
    path = os.path.join(folder, "python")
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(f'#!/bin/sh\nexec taskset -c {DEVICE} "{python}" "$@"\n')
    os.chmod(path, stat.S_IRWXU)
    return path


def write_model(folder: str, model: str) -> str:
    """A config with random records to train on."""
    import numpy as np

    from gpt_neo.dataprep.records import RecordWriter

    random = np.random.RandomState(0)
    writer = RecordWriter(folder, "random", 0)
    for _ in range(500):
        writer.write(random.randint(3, N_VOCAB, N_CTX + 1))
    writer.close()
    data = os.path.join(folder, "random.json")
    with open(data, "w", encoding="utf-8") as handle:
        json.dump({"path": os.path.join(folder, "random_*.tfrecords"), "eos_id": 0, "padding_id": 1}, handle)
    with open(model, encoding="utf-8") as handle:
        keys = json.load(handle)
    keys.update(
        n_ctx=N_CTX, train_batch_size=1, precision="float32", datasets=[data], mesh_shape="", layout="", eval_steps=0
    )
    keys.update(model_path=os.path.join(folder, "run"), tokens_per_mb_per_replica=None, recompute_grad=False)
    path = os.path.join(folder, "model.json")
    with open(path, "w", encoding="utf-8") as handle:
        json.dump(keys, handle)
    return path


def measure(folder: str, model: str, steps: int, every: int) -> None:
    """Train, and print the seconds of steps."""
    from gpt_neo.config import load_config
    from gpt_neo.runtime.watch import Watch
    from gpt_neo.spmd.devices import Devices
    from gpt_neo.spmd.environment import worker_python
    from gpt_neo.spmd.training import DeviceTraining

    python = pinned(folder, worker_python(print))
    os.sched_setaffinity(0, set(os.sched_getaffinity(0)) - {DEVICE})
    run = load_config(write_model(folder, model), [f"train_steps={steps}"])
    out = os.path.join(folder, "run")
    seen: list[tuple[float, bool, float]] = []
    with DeviceTraining(run, lambda program: Devices(program, python), print) as training, Watch(out) as watch:

        def report(progress: object) -> None:
            beside = bool(glob.glob(os.path.join(out, "*_temp")))
            seen.append((time.monotonic(), beside, watch.time.spent["saves"]))

        training.train(out, report, watch, every, 1)
    took: dict[bool, list[float]] = {False: [], True: []}
    waits = []
    for (began, before, saved), (ended, after, spent) in zip(seen[2:], seen[3:]):
        waited = spent - saved
        if waited > INSTANT:
            waits.append(waited)
        took[before or after].append(ended - began - waited)
    alone, beside = (statistics.median(took[kind]) for kind in (False, True))
    size = sum(map(os.path.getsize, glob.glob(os.path.join(out, f"model.ckpt-{steps}.data*"))))
    print(f"checkpoint        {size / 1e9:.2f} GB every {every} steps")
    print(f"steps alone       {alone:.3f} s, median of {len(took[False])}")
    print(f"steps beside one  {beside:.3f} s, median of {len(took[True])}: {beside / alone - 1:+.1%}")
    print(f"waited for slices {statistics.median(waits):.3f} s, median of {len(waits)}")


def main(argv: Optional[list] = None) -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m bench.saving", description=__doc__.splitlines()[0])
    p.add_argument("--model", default="configs/gpt3_125M.json")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--every", type=int, default=12)
    args = p.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as folder:
        measure(folder, args.model, args.steps, args.every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
