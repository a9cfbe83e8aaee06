"""Greedy decoding of one row by every engine: tokens per second, share of the memory's speed, memory, first token.

`python -m bench.sampling [--model gpt2_124M] [--ways ours-int8 ...] [--rounds 3] [--peers PYTHON]`. Weights are random;
the ways alternate, each time in a process of its own, and medians are printed. A step reads every weight once, so its
speed is held against how fast all cores read memory in the same run. CTranslate2 and llama.cpp (`bench/llama.py`) have
GPT-2, not GPT-Neo; they and transformers run in the interpreter --peers, as they may not fit beside TensorFlow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from bench.checkpoints import bring_in, make
from bench.worker import token_clock

PROMPT, NEW_TOKENS = 64, 64
WAYS = {
    "ours-float32": ("ours", "float32"),
    "ours-bfloat16": ("ours", "bfloat16"),
    "ours-int8": ("ours", "int8"),
    "ours-int4": ("ours", "int4"),
    "tensorflow-float32": ("tensorflow", "float32"),
    "transformers-float32": ("transformers", "float32"),
    "transformers-bfloat16": ("transformers", "bfloat16"),
    "ctranslate2-float32": ("ctranslate2", "float32"),
    "ctranslate2-int8": ("ctranslate2", "int8"),
    "llama.cpp-float32": ("llama.cpp", "float32"),
    "llama.cpp-bfloat16": ("llama.cpp", "bfloat16"),
    "llama.cpp-int8": ("llama.cpp", "int8"),
    "llama.cpp-int4": ("llama.cpp", "int4"),
}
MADE_FIRST = ("ctranslate2", "llama.cpp")  # have files of their own: made in a run that does not count
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
ROOM = 1 << 29  # bytes that are read to measure the memory


def peak_gb() -> float:
    """Largest resident size of this program so far; what `getrusage` tells begins with that of its parent."""
    with open("/proc/self/status", encoding="ascii") as handle:
        return int(next(line for line in handle if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


def memory_gb_per_second() -> float:
    """How fast all cores read memory that no cache holds, the best of several times."""
    import numpy as np

    cores = len(os.sched_getaffinity(0))
    part = np.random.default_rng(0).random(ROOM // 8 // cores)
    parts = [part.copy() for _ in range(cores)]
    best = 0.0
    for _ in range(7):
        threads = [threading.Thread(target=np.dot, args=(x, x)) for x in parts]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, part.nbytes * cores / (time.perf_counter() - began) / 1e9)
    return best


def figures(times: list, began: float) -> dict:
    """Of the times of new tokens, the first NEW_TOKENS of which are of a text that warms up."""
    second = times[NEW_TOKENS:]
    return {
        "tokens_per_second": (len(second) - 1) / (second[-1] - second[0]),
        "first_token": times[0] - began,
        "peak_gb": peak_gb(),
    }


def ours(folder: str, dtype: str, engine: str, began: float) -> dict:
    """Our samplers."""
    from gpt_neo.cli.quiet import silence
    from gpt_neo.config import load_config
    from gpt_neo.sampling.filters import SampleOptions

    floats = dtype if dtype in ("float32", "bfloat16") else "float32"
    silence(False, sampling=floats)
    run = load_config(os.path.join(folder, "run", "config.json"), [f"precision={floats}"])
    checkpoint = os.path.join(folder, "run", "model.ckpt-0")
    if engine == "ours":
        from gpt_neo.fast.sampler import FastSampler

        sampler = FastSampler(run.model, checkpoint, length=PROMPT + NEW_TOKENS, dtype=dtype)
    else:
        from gpt_neo.runtime.predict_step import Sampler

        sampler = Sampler(run.model, checkpoint, length=PROMPT + NEW_TOKENS)
    times = []
    for _ in range(2):
        for _ in sampler.generate([list(range(100, 100 + PROMPT))], SampleOptions(NEW_TOKENS, temperature=0.0)):
            times.append(time.perf_counter())
    return figures(times, began)


def transformers(folder: str, dtype: str, began: float) -> dict:
    """Hugging Face's `generate`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(os.path.join(folder, "hf"), dtype=getattr(torch, dtype)).eval()
    times: list = []
    prompt = torch.arange(100, 100 + PROMPT)[None]
    how = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    with torch.no_grad():
        for _ in range(2):
            model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=token_clock(times), **how)
    return figures(times, began)


def ctranslate2(folder: str, dtype: str, began: float) -> dict:
    """CTranslate2's generator. A model is converted when it is first asked for."""
    import ctranslate2 as engine

    where = os.path.join(folder, f"ct2-{dtype}")
    if not os.path.isdir(where):
        convert(os.path.join(folder, "hf"), where, dtype)
    generator = engine.Generator(where, intra_threads=len(os.sched_getaffinity(0)), compute_type=dtype)
    times: list = []
    for _ in range(2):
        prompt = [f"t{i}" for i in range(100, 100 + PROMPT)]
        for _ in generator.generate_tokens(prompt, max_length=NEW_TOKENS, min_length=NEW_TOKENS, sampling_topk=1):
            times.append(time.perf_counter())
    return figures(times, began)


def llama_cpp(folder: str, dtype: str, began: float) -> dict:
    """llama.cpp's greedy decoding; int8 is its Q8_0, int4 its Q4_0. A file is made when it is first asked for."""
    from bench.llama import decode, model_file

    return figures(decode(model_file(folder, dtype), list(range(100, 100 + PROMPT)), NEW_TOKENS), began)


def convert(source: str, target: str, dtype: str) -> None:
    """Hugging Face's folder as one of CTranslate2; tokens are called t0, t1, ..., as there is no tokenizer."""
    from ctranslate2.converters import transformers as theirs

    class Loader(type(theirs._MODEL_LOADERS["GPT2Config"])):  # type: ignore[misc]
        """The one for GPT-2, without a tokenizer."""

        def get_vocabulary(self, model, tokenizer) -> list:
            """Names of the ids."""
            return [f"t{i}" for i in range(model.config.vocab_size)]

        def set_config(self, config, model, tokenizer) -> None:
            """Ids that end a text."""
            config.bos_token, config.eos_token, config.unk_token = "t0", "t1", "t2"

    class Converter(theirs.TransformersConverter):
        """The one that reads no tokenizer."""

        def load_tokenizer(self, tokenizer_class, model_name_or_path, **more) -> None:
            """None."""

    theirs._MODEL_LOADERS["GPT2Config"] = Loader()
    Converter(source).convert(target, quantization=dtype)


def measure(folder: str, way: str) -> dict:
    """One way, in this process."""
    began = time.perf_counter()
    engine, dtype = WAYS[way]
    if engine in ("ours", "tensorflow"):
        return ours(folder, dtype, engine, began)
    peers = {"transformers": transformers, "ctranslate2": ctranslate2, "llama.cpp": llama_cpp}
    return peers[engine](folder, dtype, began)


def run_apart(args: argparse.Namespace, folder: str, way: str) -> dict:
    """One way, in a process of its own."""
    python = sys.executable if WAYS[way][0] in ("ours", "tensorflow") else args.peers
    argv = [python, "-m", "bench.sampling", "--folder", folder, "--worker", way]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print a row per way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt2_124M")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--stored", default="float32", choices=("float32", "bfloat16"), help="type of the checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, help="interpreter that has the packages of the other ways")
    parser.add_argument("--folder", help="where the models are kept (default: a temporary folder)")
    parser.add_argument("--worker", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.folder, args.worker)))
        return
    folder = args.folder or tempfile.mkdtemp()
    try:
        if not os.path.isdir(os.path.join(folder, "run")):
            make(args.model, args.stored, folder)
            bring_in(args.model, args.stored, folder)
        for way in (way for way in args.ways if WAYS[way][0] in MADE_FIRST):
            run_apart(args, folder, way)
        found: dict = {way: [] for way in args.ways}
        speeds = []
        for _ in range(args.rounds):
            speeds.append(memory_gb_per_second())
            for way in args.ways:
                found[way].append(run_apart(args, folder, way))
                print(f"{way:22s} {json.dumps(found[way][-1])}", flush=True)
        report(args.model, found, statistics.median(speeds))
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)


def report(model: str, found: dict, speed: float) -> None:
    """A row per way: medians."""
    from gpt_neo.config import load_config
    from gpt_neo.config.estimate import count_parameters

    parameters = count_parameters(load_config(model).model)
    print(f"{model}: {parameters:,} parameters; memory {speed:.1f} GB/s; {len(next(iter(found.values())))} rounds")
    for way, rounds in found.items():
        middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        limit = speed * 1e9 / (parameters * BYTES[WAYS[way][1]])
        print(
            f"{way:22s} {middle['tokens_per_second']:7.1f} tokens/s, {middle['tokens_per_second'] / limit:5.2f} of the "
            f"limit, first token {middle['first_token']:5.2f} s, peak {middle['peak_gb']:5.2f} GB"
        )


if __name__ == "__main__":
    main()
