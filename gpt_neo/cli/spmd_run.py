"""`python -m gpt_neo spmd-run --model CONFIG`: the exported program of one core, on any devices of JAX."""

from __future__ import annotations

import argparse
import math
from typing import Optional

from gpt_neo.cli.args import add_sampling, add_training
from gpt_neo.cli.job import Job, check_training
from gpt_neo.cli.quiet import silence
from gpt_neo.config import load_config
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
    p.add_argument("-v", "--verbose", action="store_true", help="show what TensorFlow logs")
    p.set_defaults(skip_spikes=False)  # the exported program updates always
    add_training(p)
    add_sampling(p)
    return p


def main(argv: Optional[list] = None) -> int:
    """Train as main.py does, or sample or evaluate, with its exit status."""
    args = build_parser().parse_args(argv)
    check_training(args)
    run = load_config(args.model, [*args.set, *([f"precision={args.dtype}"] if args.dtype else [])])
    job = Job(args, run, model_folder(run, reads_only=args.predict or args.eval))
    if args.save_program:
        silence(args.verbose)
        from gpt_neo.cli.spmd_jobs import save_for

        return save_for(job)
    silence(args.verbose)
    from gpt_neo.cli.spmd_jobs import evaluate_on_devices, predict_on_devices

    devices = f"devices   {mesh_text(run)} on {args.platform}"
    if args.predict or args.eval:
        return (predict_on_devices if args.predict else evaluate_on_devices)(job, devices)
    from gpt_neo.cli.train import note, train_in_folder
    from gpt_neo.spmd.devices import Devices
    from gpt_neo.spmd.environment import worker_python
    from gpt_neo.spmd.training import DeviceTraining

    with DeviceTraining(run, lambda program: Devices(program, worker_python(note), args.platform), note) as training:
        status = train_in_folder(
            job, training.plan.replicas(), devices,
            lambda line, watch: training.train(job.folder, line.show, watch, args.steps_per_checkpoint,
                                               args.steps_per_log),
        )  # fmt: skip
    held_out = any(dataset.eval_path for _, dataset in run.datasets)
    evaluates = status == 0 and run.training.eval_steps and held_out
    return evaluate_on_devices(job, devices, run.training.eval_steps) if evaluates else status


def mesh_text(run: RunConfig) -> str:
    """Mesh and layout in one line."""
    shape, layout = (",".join(f"{a}:{b}" for a, b in pairs) for pairs in (run.mesh.mesh_shape, run.mesh.layout))
    count = math.prod(size for _, size in run.mesh.mesh_shape)
    return f"mesh {shape or 'of one'} ({count} core{'s' * (count != 1)}), layout {layout or 'none'}"
