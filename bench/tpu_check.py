"""Every shipped config compiled for its pod: `make tpu-check`, or `python -m bench.tpu_check [--only WORD] [--again]`.

A compile takes minutes and gigabytes, so they go one at a time. Each result is kept in bench/tpu_check.json; a later
run compiles what is missing (`--again`: all of it) and writes the table of docs/tpu.md from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time

from gpt_neo.errors import counted
from gpt_neo.spmd.topologies import find_slice

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(ROOT, "bench", "tpu_check.json")
PAGE = os.path.join(ROOT, "docs", "tpu.md")
TOP, BOTTOM = "<!-- tpu-check -->", "<!-- /tpu-check -->"
# For chips with more memory than a v3 core: fewer cores per replica, larger microbatches, one sum of gradients a step.
WHOLE, SHARED = "layout=batch:x,slots:x", "layout=batch:x,heads:y,intermediate_expanded:y,loss_sequence:y,slots:x"
ONCE, EACH, KEPT = "gradient_sums=step", "gradient_sums=microbatch", "recompute_grad=false"
USE = "weight_gathers=use"  # with EACH
HALF = "gradient_sums_dtype=bfloat16"
VARIABLE = "GPT_NEO_XLA_OPTIONS="
# A SparseCore adds up and gathers, beside the work of the others.
SPARSE = VARIABLE + ",".join(
    [
        *(
            f"xla_tpu_enable_sparse_core_collective_offload_{kind}=true"
            for kind in ("reduce_scatter", "nd_reduce_scatter", "all_gather", "2d_all_gather")
        ),
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather=false",
        "xla_tpu_prefer_async_allgather_to_allreduce=true",
    ]
)
OPTIONS = {SPARSE: "SparseCores"}  # as the table has them


def tokens(number: int) -> str:
    """Setting of the tokens of a microbatch."""
    return f"tokens_per_mb_per_replica={number}"


# (config, slice, overrides). No override is the config as it is shipped. The layouts that the models were released with
# are there to show what they cost.
CASES = [
    ("gpt3_125M", "v3-8", []),
    ("gpt3_350M", "v3-32", ["mesh_shape=x:32"]),
    ("gpt3_1-3B", "v3-256", []),
    ("gpt3_1-3B", "v3-256", ["layout=batch:x,memory_length:y,embd:y"]),
    ("gpt3_1-3B", "v3-8", ["mesh_shape=x:4,y:2", EACH]),
    ("gpt3_2-7B", "v3-256", []),
    ("gpt3_2-7B", "v3-256", ["layout=batch:x,embd:y", "recompute_keep=inputs"]),
    ("gpt3_2-7B", "v3-8", ["mesh_shape=x:2,y:4", EACH]),
    ("gpt3_6-7B", "v3-256", []),
    ("gpt3_6-7B", "v3-256", [ONCE]),
    ("gpt3_13B", "v3-256", []),
    ("gptj_6B", "v3-256", []),
    ("gptneox_20B", "v3-256", []),
    ("gpt3_1-3B_gla", "v3-256", []),
    ("gpt3_1-3B_local_gla", "v3-256", []),
    ("gpt3_2-7B_gla", "v3-256", []),
    ("gpt3_125M", "v2-8", []),
    ("gpt3_125M", "v4-8", ["mesh_shape=x:4"]),
    ("gpt3_125M", "v5e-8", []),
    ("gpt3_125M", "v5p-8", ["mesh_shape=x:4"]),
    ("gpt3_1-3B", "v4-256", ["mesh_shape=x:128", WHOLE, tokens(8192), KEPT, HALF]),
    ("gpt3_1-3B", "v5e-256", ["mesh_shape=x:256", WHOLE, tokens(4096), KEPT, HALF]),
    ("gpt3_1-3B", "v6e-256", ["mesh_shape=x:256", WHOLE, tokens(4096), KEPT, HALF]),
    ("gpt3_1-3B", "v6e-256", ["mesh_shape=x:256", WHOLE, tokens(4096), KEPT, HALF, SPARSE]),
    ("gpt3_2-7B", "v4-256", ["mesh_shape=x:64,y:2", SHARED, tokens(8192), ONCE, HALF]),
    ("gpt3_2-7B", "v5e-256", ["mesh_shape=x:256", WHOLE, tokens(4096), EACH, USE, HALF, KEPT]),
    ("gpt3_2-7B", "v6e-256", ["mesh_shape=x:256", WHOLE, tokens(4096), KEPT, HALF, SPARSE]),
    ("gpt3_6-7B", "v4-256", ["mesh_shape=x:128", WHOLE, tokens(4096), USE, HALF]),
    ("gpt3_6-7B", "v5e-256", ["mesh_shape=x:256", WHOLE, tokens(4096), USE, HALF]),
    ("gpt3_6-7B", "v6e-256", ["mesh_shape=x:256", WHOLE, tokens(8192), USE, HALF]),
    ("gpt3_6-7B", "v6e-256", ["mesh_shape=x:256", WHOLE, tokens(8192), USE, HALF, SPARSE]),
    ("gptj_6B", "v4-256", ["mesh_shape=x:128", WHOLE, tokens(8192), EACH, USE, HALF]),
    ("gptj_6B", "v5e-256", ["mesh_shape=x:256", WHOLE, tokens(4096), EACH, USE, HALF, KEPT]),
    ("gptj_6B", "v6e-256", ["mesh_shape=x:256", WHOLE, tokens(8192), EACH, USE, HALF, KEPT, SPARSE]),
    ("gptneox_20B", "v4-256", ["mesh_shape=x:16,y:8"]),
    ("gptneox_20B", "v5e-256", ["mesh_shape=x:256", WHOLE, tokens(2048), USE, HALF, "recompute_keep=inputs"]),
    ("gptneox_20B", "v6e-256", ["mesh_shape=x:256", WHOLE, tokens(4096), USE, HALF, SPARSE]),
]


def key_of(case: tuple) -> str:
    """A case as one word."""
    return " ".join([case[0], case[1], *case[2]])


def compile_case(case: tuple) -> dict:
    """Run main.py --compile_for in a process of its own."""
    config, slice_, overrides = case
    words = [sys.executable, "main.py", "--model", f"configs/{config}.json", "--compile_for", slice_, "--json"]
    for text in overrides:
        words += ["--set", text] if text not in OPTIONS else []
    environment = {**os.environ, **dict(text.split("=", 1) for text in overrides if text in OPTIONS)}
    began = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    if done.returncode > 1:
        return {"error": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    return {**json.loads(done.stdout[done.stdout.index("{") :]), "check_seconds": round(time.monotonic() - began)}


def row_of(case: tuple, report: dict) -> str:
    """A line of the table."""
    config, slice_, _ = case
    slice_ += f" ({counted(find_slice(slice_).hosts, 'host')})"
    if "error" in report:
        return f"| {config} | {slice_} | {' '.join(case[2])} | error: {report['error']} | | | | | |"
    mesh, layout = (",".join(f"{a}:{b}" for a, b in report[name]) for name in ("mesh_shape", "layout"))
    more = [OPTIONS.get(text, text) for text in case[2] if text.split("=")[0] not in ("mesh_shape", "layout")]
    place = "; ".join([mesh, layout, *more])
    used = f"{report['used_bytes'] / 1e9:.2f} GB" if "used_bytes" in report else ""
    if not report["fits"]:
        return f"| {config} | {slice_} | {place} | DOES NOT FIT | {used} | | | | |"
    sent = sum(found["bytes"] * (2 if kind == "all_reduce" else 1) for kind, found in report["collectives"].items())
    held = report["weights_bytes"] + report["slots_bytes"]
    seconds, use, links = report["seconds"], report["utilisation"], report["link_seconds"]
    waited = report.get("exposed_seconds", links)  # not in what was compiled before it was told
    pace = f"products at least {report['least_seconds']:.2f} s; compiled before there were estimates |"
    if seconds:
        pace = f"{seconds:.2f} s | {use:.0%}, {use * seconds / (seconds + waited):.0%}"
    sent = f"{sent / 1e9:.1f} GB, {links:.2f} s, {waited:.2f} s"
    return f"| {config} | {slice_} | {place} | FITS | {used} | {held / 1e9:.2f} GB | {pace} | {sent} |"


def write_table(results: dict) -> None:
    """Put the table between its marks on the page."""
    head = [
        "| config | slice | mesh; layout | verdict | memory per core | of it weights and slots | "
        "estimate per step | utilisation, with links | sent per step, time of the links, waited for |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = [
        row_of(case, results[key_of(case)])
        if key_of(case) in results
        else f"| {case[0]} | {case[1]} | {' '.join(case[2]) or 'as shipped'} | not compiled yet | | | | | |"
        for case in CASES
    ]
    with open(PAGE, encoding="utf-8") as handle:
        text = handle.read()
    table = "\n".join([TOP, *head, *rows, BOTTOM])
    text = re.sub(re.escape(TOP) + ".*" + re.escape(BOTTOM), lambda match: table, text, flags=re.DOTALL)
    with open(PAGE, "w", encoding="utf-8") as handle:
        handle.write(text)


def main() -> int:
    """Compile what is missing, one at a time; write the table."""
    p = argparse.ArgumentParser(prog="python -m bench.tpu_check", description=__doc__.splitlines()[0])
    p.add_argument("--only", default="", metavar="WORD", help="cases that have this in them")
    p.add_argument("--again", action="store_true", help="also what has a result")
    args = p.parse_args()
    results = {}
    if os.path.exists(RESULTS):
        with open(RESULTS, encoding="utf-8") as handle:
            stored = json.load(handle)
        results = {key: stored[key] for key in map(key_of, CASES) if key in stored}
    for case in CASES:
        key = key_of(case)
        if args.only in key and (args.again or key not in results):
            results[key] = compile_case(case)
            print(row_of(case, results[key]), flush=True)
            with open(RESULTS, "w", encoding="utf-8") as handle:
                json.dump(results, handle, indent=1)
    write_table(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
