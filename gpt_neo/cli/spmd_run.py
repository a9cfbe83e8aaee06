"""`python -m gpt_neo spmd-run --model CONFIG`: the exported program of one core, on any devices of JAX."""

from __future__ import annotations

import argparse
import math
import time
from typing import Optional

from gpt_neo.cli.args import add_sampling
from gpt_neo.cli.job import Job, count_text, model_folder, model_text, time_text
from gpt_neo.cli.quiet import silence
from gpt_neo.config import load_config
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import ConfigError

PLATFORMS = ("cpu", "gpu", "tpu")


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="python -m gpt_neo spmd-run",
        description="Train on any devices that JAX knows, with the program that a TPU core would run, or evaluate and "
        "sample with it. It reads the records and continues and writes the checkpoints of main.py.",
    )
    p.add_argument("--model", required=True, metavar="CONFIG", help="name in configs/, or path, of a model config")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    p.add_argument("--dtype", choices=("bfloat16", "float32"), help="type of the weights in memory (key precision)")
    p.add_argument("--checkpoint", metavar="WHICH", help="with --predict and --eval: latest (the default), best, or a "
                   "step")  # fmt: skip
    job = p.add_mutually_exclusive_group()
    job.add_argument("--predict", action="store_true", help="sample text from the newest checkpoint")
    job.add_argument("--eval", action="store_true", help="loss, perplexity and bits per byte of held-out records")
    p.add_argument("--sacred_id", metavar="ID", help="names the files that predictions and evaluations go to")
    p.add_argument("--save_program", metavar="PREFIX", help="write the job's program to PREFIX.mlir (StableHLO) and "
                   "its description to PREFIX.json, and run nothing")  # fmt: skip
    p.add_argument("--platform", choices=PLATFORMS, default="cpu", help="kind of device (default: %(default)s, "
                   "as many virtual ones as mesh_shape multiplies to)")  # fmt: skip
    p.add_argument("--steps_per_checkpoint", type=int, default=5000, metavar="N", help="default: %(default)s")
    p.add_argument("-v", "--verbose", action="store_true", help="show what TensorFlow logs")
    add_sampling(p)
    return p


def main(argv: Optional[list] = None) -> int:
    """Do the job, and say what was done."""
    args = build_parser().parse_args(argv)
    if args.steps_per_checkpoint < 1:
        raise ConfigError(f"--steps_per_checkpoint is {args.steps_per_checkpoint}; expected at least 1")
    run = load_config(args.model, [*args.set, *([f"precision={args.dtype}"] if args.dtype else [])])
    folder = model_folder(run, reads_only=args.predict or args.eval)
    if args.save_program:
        silence(args.verbose)
        from gpt_neo.cli.spmd_jobs import save_for

        return save_for(Job(args, run, folder))
    if args.predict or args.eval:
        silence(args.verbose)
        from gpt_neo.cli.spmd_jobs import evaluate_on_devices, predict_on_devices

        do = predict_on_devices if args.predict else evaluate_on_devices
        return do(Job(args, run, folder), f"devices   {mesh_text(run)} on {args.platform}")
    print(model_text(run))
    print(f"devices   {mesh_text(run)} on {args.platform}")
    print(f"folder    {folder}", flush=True)
    silence(args.verbose)
    from gpt_neo.cli.train import ProgressLine
    from gpt_neo.runtime.estimator import current_step
    from gpt_neo.spmd.environment import worker_python
    from gpt_neo.spmd.training import SpmdOptions, train

    def tell(line: str) -> None:
        print(f"note      {line}", flush=True)

    steps = run.training.train_steps
    if current_step(folder) >= steps:
        print(f"nothing to do: the newest checkpoint is at step {current_step(folder):,}, train_steps is {steps:,}")
        return 0
    options = SpmdOptions(worker_python(tell), args.platform, args.steps_per_checkpoint)
    line, start, began = ProgressLine(), current_step(folder), time.monotonic()
    try:
        train(run, folder, options, line.show, tell)
    finally:
        line.finish()
    assert line.latest is not None
    seconds, tokens = time.monotonic() - began, (steps - start) * run.tokens_per_step
    print(f"trained   {steps - start:,} steps, {count_text(tokens)} tokens in {time_text(seconds)}, "
          f"loss {line.first_loss:.4f} to {line.latest.loss:.4f}")  # fmt: skip
    return 0


def mesh_text(run: RunConfig) -> str:
    """Mesh and layout in one line."""
    shape, layout = (",".join(f"{a}:{b}" for a, b in pairs) for pairs in (run.mesh.mesh_shape, run.mesh.layout))
    count = math.prod(size for _, size in run.mesh.mesh_shape)
    return f"mesh {shape or 'of one'} ({count} core{'s' * (count != 1)}), layout {layout or 'none'}"
