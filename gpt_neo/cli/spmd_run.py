"""`python -m gpt_neo spmd-run --model CONFIG`: the exported program of one core, on any devices of JAX."""

from __future__ import annotations

import argparse
import math
from typing import Optional

from gpt_neo.cli.args import add_sampling, add_training
from gpt_neo.cli.job import Job, check_training, load_run
from gpt_neo.cli.quiet import silence
from gpt_neo.config.folders import model_folder
from gpt_neo.config.schema import RunConfig

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
    p.add_argument(
        "--checkpoint", metavar="WHICH", help="with --predict and --eval: latest (the default), best, or a step"
    )
    jobs = p.add_mutually_exclusive_group()
    jobs.add_argument("--predict", action="store_true", help="sample text from the newest checkpoint")
    jobs.add_argument("--eval", action="store_true", help="loss, perplexity and bits per byte of held-out records")
    p.add_argument("--sacred_id", metavar="ID", help="names the files that predictions and evaluations go to")
    p.add_argument(
        "--save_program",
        metavar="PREFIX",
        help="write the job's program to PREFIX.mlir (StableHLO) and its description to PREFIX.json, and run nothing",
    )
    p.add_argument(
        "--platform",
        choices=PLATFORMS,
        default="cpu",
        help="kind of device (default: %(default)s, as many virtual ones as mesh_shape multiplies to)",
    )
    p.add_argument("-v", "--verbose", action="store_true", help="show what TensorFlow logs")
    p.set_defaults(skip_spikes=False)  # the exported program updates always
    add_training(p)
    add_sampling(p)
    return p


def main(argv: Optional[list] = None) -> int:
    """Do the job as main.py does, with its exit status."""
    args = build_parser().parse_args(argv)
    check_training(args)
    run = load_run(args.model, [*args.set, *([f"precision={args.dtype}"] if args.dtype else [])])
    job = Job(args, run, model_folder(run, reads_only=args.predict or args.eval))
    devices = f"devices   {mesh_text(run)} on {args.platform}"
    silence(args.verbose)
    from gpt_neo.cli import spmd_jobs

    if args.save_program:
        return spmd_jobs.save_for(job)
    if args.predict:
        return spmd_jobs.predict_on_devices(job, devices)
    if args.eval:
        return spmd_jobs.evaluate_on_devices(job, devices)
    return spmd_jobs.train_on_devices(job, devices)


def mesh_text(run: RunConfig) -> str:
    """Mesh and layout in one line."""
    shape, layout = (",".join(f"{a}:{b}" for a, b in pairs) for pairs in (run.mesh.mesh_shape, run.mesh.layout))
    count = math.prod(size for _, size in run.mesh.mesh_shape)
    return f"mesh {shape or 'of one'} ({count} core{'s' * (count != 1)}), layout {layout or 'none'}"
