"""Time and peak memory of import, load with sampling, and export, of large models with random weights.

`python -m bench.checkpoints [--model gpt3_1-3B] [--dtype float32] [--folder DIR]`. Every measurement runs in a process
of its own; the files (three times the weights) are deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

# Peaks that are wanted, in GB of resident memory while sampling.
WANTED = {("gpt3_1-3B", "float32"): 6.0, ("gpt3_1-3B", "bfloat16"): 3.3, ("gpt3_2-7B", "bfloat16"): 6.2}
PROMPT, NEW_TOKENS = 64, 16
LARGEST = 1 << 22  # numbers of one piece of random weights


def peak_gb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def load_run(name: str, dtype: str):
    """The shipped config at full length."""
    from gpt_neo.config import load_config

    return load_config(name, [f"precision={dtype}"])


def make(name: str, dtype: str, folder: str) -> dict:
    """A Hugging Face folder of random weights, in shards of at most 5 GB."""
    import numpy as np

    from gpt_neo.checkpoint.convert import DTYPES, SHARD
    from gpt_neo.checkpoint.families import family_of, pairs_of
    from gpt_neo.checkpoint.hf_config import their_config
    from gpt_neo.checkpoint.safetensors import write_safetensors

    run, kind = load_run(name, dtype), DTYPES[dtype]
    family, _ = family_of(run.model)
    source = os.path.join(folder, "hf")
    os.makedirs(source)
    rng = np.random.default_rng(0)

    def pieces(shape):
        """Other numbers in every weight: an engine may keep equal ones once, and read them faster than memory."""
        left = int(np.prod(shape))
        while left > 0:
            yield (rng.standard_normal(min(left, LARGEST), np.float32) * 0.02).astype(kind)
            left -= LARGEST

    groups, held = [[]], 0
    for pair in pairs_of(family, run.model):
        size = int(np.prod(pair.their_shape)) * kind.itemsize
        if held + size > SHARD:
            groups.append([])
            held = 0
        groups[-1].append(pair)
        held += size
    places = {}
    for number, group in enumerate(groups):
        file = f"model-{number}.safetensors"
        write_safetensors(
            os.path.join(source, file),
            {p.theirs: (kind, p.their_shape) for p in group},
            {p.theirs: pieces(p.their_shape) for p in group},
        )
        places.update({p.theirs: file for p in group})
    with open(os.path.join(source, "model.safetensors.index.json"), "w", encoding="utf-8") as handle:
        json.dump({"metadata": {}, "weight_map": places}, handle)
    with open(os.path.join(source, "config.json"), "w", encoding="utf-8") as handle:
        json.dump(their_config(family, run.model, 0, dtype), handle)
    return {"weights_gb": sum(os.path.getsize(os.path.join(source, f)) for f in os.listdir(source)) / 1e9}


def bring_in(name: str, dtype: str, folder: str) -> dict:
    """import-hf without the comparison, which loads the whole model."""
    from gpt_neo.checkpoint.convert import import_hf

    start = peak_gb()
    began = time.perf_counter()
    import_hf(os.path.join(folder, "hf"), os.path.join(folder, "run"))
    return {"seconds": time.perf_counter() - began, "peak_gb": peak_gb(), "start_gb": start}


def take_out(name: str, dtype: str, folder: str) -> dict:
    """export-hf, likewise."""
    from gpt_neo.checkpoint.convert import export_hf
    from gpt_neo.config import load_config

    start = peak_gb()
    run = load_config(os.path.join(folder, "run", "config.json"))
    began = time.perf_counter()
    export_hf(run, os.path.join(folder, "run", "model.ckpt-0"), os.path.join(folder, "out"))
    return {"seconds": time.perf_counter() - began, "peak_gb": peak_gb(), "start_gb": start}


def compare(name: str, dtype: str, folder: str) -> dict:
    """The comparison in NumPy, which holds one layer at a time."""
    from gpt_neo.config import load_config
    from gpt_neo.runtime.verify import verify

    run = load_config(os.path.join(folder, "run", "config.json"))
    began = time.perf_counter()
    verdict = verify(os.path.join(folder, "run", "model.ckpt-0"), run.model, os.path.join(folder, "hf"), "numpy")
    assert verdict is not None
    return {"seconds": time.perf_counter() - began, "peak_gb": peak_gb(), "difference": verdict.difference}


def sample(name: str, dtype: str, folder: str) -> dict:
    """Load, and sample greedily; the text is PROMPT + NEW_TOKENS long, and the caches with it."""
    from gpt_neo.cli.quiet import silence

    silence(False, sampling=dtype)
    from gpt_neo.config import load_config
    from gpt_neo.runtime.predict_step import Sampler
    from gpt_neo.sampling.filters import SampleOptions

    run = load_config(os.path.join(folder, "run", "config.json"))
    start = peak_gb()
    began = time.perf_counter()
    sampler = Sampler(run.model, os.path.join(folder, "run", "model.ckpt-0"), length=PROMPT + NEW_TOKENS)
    loaded = time.perf_counter() - began
    times = []
    for _ in sampler.generate([list(range(100, 100 + PROMPT))], SampleOptions(NEW_TOKENS, temperature=0.0)):
        times.append(time.perf_counter())
    return {
        "load_seconds": loaded,
        "tokens_per_second": (len(times) - 1) / (times[-1] - times[0]),
        "peak_gb": peak_gb(),
        "start_gb": start,
    }


STEPS = {"make": make, "import": bring_in, "compare": compare, "sample": sample, "export": take_out}


def main() -> None:
    """Measure and print one line per step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt3_1-3B")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--folder", help="where the files go for the while (default: the system's temporary folder)")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--worker", choices=list(STEPS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(STEPS[args.worker](args.model, args.dtype, args.folder)))
        return
    folder = tempfile.mkdtemp(dir=args.folder)
    try:
        for step in args.steps:
            argv = ["--model", args.model, "--dtype", args.dtype, "--folder", folder, "--worker", step]
            done = subprocess.run(
                [sys.executable, "-m", "bench.checkpoints", *argv], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"{step} failed:\n{done.stderr[-2000:]}")
            figures = json.loads(done.stdout.splitlines()[-1])
            wanted = WANTED.get((args.model, args.dtype)) if step == "sample" else None
            verdict = f"  wanted: under {wanted}" if wanted else ""
            print(
                f"{args.model} {args.dtype} {step:8s} "
                + ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
                + verdict,
                flush=True,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
