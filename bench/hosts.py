"""What each of several hosts reads, writes and holds of a checkpoint, by the number of hosts.

    python -m bench.hosts --model configs/gpt3_125M.json

The slices of a program over all hosts are written, then read, by one process for each host, without devices: a few
thousandths of what it holds differ from a host that has them. Bytes read are those that came from the disk (Linux: the
files are dropped from the system's memory first); memory is the peak of the process above what it had before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

import numpy as np

MESH = {"mesh_shape": "x:8,y:2", "layout": "batch:x,heads:y,vocab:y,slots:x", "n_vocab": 50304}


def in_child(work: Callable[[], Any]) -> Any:
    """The result of some work in a fork of this process, with its seconds, bytes read and peak of memory."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as handle:
            handle.write("5")  # the peak is this child's own from now on
        before, base, began = read_bytes(), peak_bytes(), time.monotonic()
        result = work()
        about = {
            "result": result,
            "seconds": time.monotonic() - began,
            "read": read_bytes() - before,
            "memory": peak_bytes() - base,
        }
        with os.fdopen(write_end, "w") as handle:
            json.dump(about, handle)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as handle:
        text = handle.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def peak_bytes() -> int:
    """The most memory that this process has had at once."""
    with open("/proc/self/status", encoding="ascii") as handle:
        return next(1024 * int(line.split()[1]) for line in handle if line.startswith("VmHWM"))


def read_bytes() -> int:
    """Bytes that this process had the disk read."""
    with open("/proc/self/io", encoding="ascii") as handle:
        return int(dict(line.split(": ") for line in handle)["read_bytes"])


def forget(folder: str) -> None:
    """Have the system drop what it holds of some files."""
    for entry in os.scandir(folder):
        with open(entry.path, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Slices:
    """As the worker of a host: gives numbers for what it is asked, and forgets what it gets."""

    def __init__(self, description: Mapping) -> None:
        self.description, self.taken = description, 0

    def __call__(self, do: str, arrays: Mapping[str, Any], **header: Any) -> dict:
        from gpt_neo.spmd.messages import np_dtype
        from gpt_neo.spmd.slices import part_of, spans_of

        if do == "put":
            self.taken += sum(int(np.ascontiguousarray(array).nbytes) for array in arrays.values())
            return {}
        found = {}
        for key in header["parts"]:
            core, name = part_of(key)
            shape = [end - first for first, end in spans_of(self.description, name, core)]
            found[key] = np.ones(shape, np_dtype(self.description["variables"][name]["dtype"]))
        return found


def merge(parts: list[str], path: str) -> None:
    """One checkpoint of the parts of all hosts. In a child, as TensorFlow's threads do not outlive a fork."""
    from gpt_neo.mtf_compat import tf

    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=path))


def measure(description: Mapping, hosts: int, folder: str) -> dict:
    """Write and read with so many hosts: the largest figure of them, each."""
    from gpt_neo.spmd.parts import restore_parts, write_parts

    count, path = description["cores"] // hosts, os.path.join(folder, "model.ckpt-1")
    shares = [list(range(rank * count, (rank + 1) * count)) for rank in range(hosts)]
    written = [
        in_child(lambda cores=cores: write_parts(Slices(description), description, cores, path, 1)) for cores in shares
    ]
    parts = [part for about in written for part in about["result"]]
    sizes = [sum(os.path.getsize(f"{part}.data-00000-of-00001") for part in about["result"]) for about in written]
    in_child(lambda: merge(parts, path))
    read = []
    for cores in shares:
        forget(folder)
        slices = Slices(description)
        read.append(in_child(lambda cores=cores, slices=slices: restore_parts(slices, description, cores, path)))
    return {
        "written": max(sizes),
        "write_seconds": max(about["seconds"] for about in written),
        "read": max(about["read"] for about in read),
        "read_seconds": max(about["seconds"] for about in read),
        "memory": max(about["memory"] for about in (*written, *read)),
    }


def in_fresh_process(args: argparse.Namespace) -> int:
    """Export the program, and measure in a process that has none of the memory that this took."""
    from gpt_neo.config import load_config
    from gpt_neo.spmd.program import export_train_step

    run = load_config(args.model, [f"{key}={value}" for key, value in MESH.items()])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(export_train_step(run).description, file)
        file.flush()
        words = [*(["--folder", args.folder] if args.folder else []), "--hosts", *map(str, args.hosts)]
        command = [sys.executable, "-m", "bench.hosts", "--description", file.name, *words]
        return subprocess.run(command, check=False).returncode


def main(argv: Optional[list] = None) -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m bench.hosts", description=__doc__.splitlines()[0])
    p.add_argument("--model", default="configs/gpt3_125M.json")
    p.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8])
    p.add_argument("--folder", help="where checkpoints are written (default: a temporary one)")
    p.add_argument("--description", help=argparse.SUPPRESS)  # of the program, for a process that has not made it
    args = p.parse_args(argv)
    if not args.description:
        return in_fresh_process(args)
    with open(args.description, encoding="utf-8") as handle:
        description = json.load(handle)
    print(
        f"{description['model']} on 16 devices, mesh {MESH['mesh_shape']}, layout {MESH['layout']}; of a host at most"
    )
    print("hosts   written       in   read from disk       in    memory")
    for hosts in args.hosts:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            about = measure(description, hosts, folder)
        columns = [
            f"{hosts:5d}",
            f"{about['written'] / 1e9:5.2f} GB",
            f"{about['write_seconds']:5.1f} s",
            f"{about['read'] / 1e9:12.2f} GB",
            f"{about['read_seconds']:5.1f} s",
            f"{about['memory'] / 1e9:5.2f} GB",
        ]
        print("  ".join(columns), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
