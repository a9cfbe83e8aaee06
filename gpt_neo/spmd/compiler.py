"""Compiles a program for TPUs or GPUs that are not there. A script for an environment without TensorFlow.

usage: compiler.py MODULE.mlir TARGET.json DEVICES OUT.hlo    prints one JSON object with what the compiler says.

TARGET.json: keywords of `jax.experimental.topologies.get_topology_desc`.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import time
from typing import Any

import jax
from compile_options import compile_options  # beside this script
from jax._src.interpreters import mlir as jax_mlir
from jax._src.lib import xla_client
from jax.experimental import topologies
from jaxlib.mlir import ir
from orphans import end_with_parent  # beside this script

UNPRINTED = ("v5p", "v6e")  # the text of their asynchronous operations is refused; they dump it


def compile_for(path: str, target: dict, count: int, output: str) -> dict:
    """Memory and cost as the compiler has them; the optimised program goes to `output`."""
    devices = topologies.get_topology_desc(**target).devices
    if len(devices) != count:
        return {"error": f"it knows {len(devices)} devices, expected {count}"}
    options = compile_options(devices, "tpu" if target["platform"] == "tpu" else "gpu")
    report: dict = {"kind": devices[0].device_kind, "devices": count}
    started = time.monotonic()
    with open(path, encoding="utf-8") as handle, jax_mlir.make_ir_context():
        module = ir.Module.parse(handle.read())
        program = module if jax.__version_info__ >= (0, 8) else jax_mlir.module_to_bytecode(module)
        try:
            executable = devices[0].client.compile(program, xla_client.DeviceList(tuple(devices)), options)
        except Exception as error:  # the compiler's verdict comes as one type, as do its failures
            return {**report, **refusal(str(error))}
    memory = executable.get_compiled_memory_stats()
    cost = executable.cost_analysis() if target["platform"] == "tpu" else {}  # "not supported" without a GPU
    with open(output, "w", encoding="utf-8") as handle:
        handle.write(text_of(executable, os.path.dirname(output)))
    return {
        **report,
        "fits": True,
        "compile_seconds": round(time.monotonic() - started, 1),
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops_once": cost.get("flops"),
        "bytes_once": cost.get("bytes accessed"),
        "seconds_once": cost.get("optimal_seconds"),
    }


def text_of(executable: Any, folder: str) -> str:
    """The optimised program; from what the compiler dumped into a folder, if it did. Empty if there is neither."""
    for path in glob.glob(os.path.join(folder, "*.after_codegen.txt")):
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    try:
        return executable.hlo_modules()[0].to_string()
    except RuntimeError:
        return ""


def refusal(text: str) -> dict:
    """Out of memory as a verdict with what was used and what there is, anything else as an error."""
    if "RESOURCE_EXHAUSTED" not in text:
        return {"error": text.strip().splitlines()[0]}
    match = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", text)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = (
        {}
        if not match
        else {"used_bytes": float(match[1]) * scale[match[2]], "usable_bytes": float(match[3]) * scale[match[4]]}
    )
    return {"fits": False, **sizes, "reason": text.strip().splitlines()[0][:300]}


if __name__ == "__main__":
    end_with_parent()
    with open(sys.argv[2], encoding="utf-8") as given:
        wanted = json.load(given)
    if wanted.get("topology_name", "").startswith(UNPRINTED):  # read when the compiler is loaded
        dumped = f"--xla_dump_to={os.path.dirname(sys.argv[4])} --xla_dump_hlo_as_text"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dumped}"
    print(json.dumps(compile_for(sys.argv[1], wanted, int(sys.argv[3]), sys.argv[4])))
