"""The flags of main.py: those of the 2021 program, and their successors."""

from __future__ import annotations

import argparse
from typing import Any

DESCRIPTION = "Train, evaluate and sample GPT-Neo models. Without a job flag it trains."


def build_parser() -> argparse.ArgumentParser:
    """The parser of main.py."""
    p = argparse.ArgumentParser(prog="main.py", description=DESCRIPTION)
    p.add_argument("--model", required=True, metavar="CONFIG", help="name in configs/, or path, of a model config")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    p.add_argument("--dtype", choices=("bfloat16", "float32"), help="type of the weights in memory (key precision)")
    p.add_argument("--checkpoint", metavar="WHICH", help="what to read: latest (the default), best, or a step")
    p.add_argument("-v", "--verbose", action="store_true", help="show what TensorFlow logs")
    jobs = p.add_argument_group("jobs")
    jobs.add_argument("--predict", action="store_true", help="sample text from the newest checkpoint")
    jobs.add_argument("--eval", action="store_true", help="loss, perplexity and bits per byte of held-out records")
    jobs.add_argument(
        "--eval_tasks",
        nargs="+",
        default=[],
        metavar="TASK[=FILE]",
        help="with --eval: score these tasks (lambada, wikitext, ...) on FILE, and nothing else",
    )
    jobs.add_argument("--plan", action="store_true", help="parameters, memory, steps per epoch, layout; builds nothing")
    jobs.add_argument("--check_dataset", action="store_true", help="decode samples of the dataset and check its ids")
    jobs.add_argument("--export", metavar="FOLDER", nargs="?", const="export", help="write a SavedModel")
    jobs.add_argument("--int8", action="store_true", help="with --export: weights as int8, a quarter of the size")
    jobs.add_argument(
        "--compile_for",
        metavar="SLICE",
        help="does it fit a TPU such as v3-256, and how fast: asks the TPU compiler, needs no TPU; "
        "with --plan: find mesh, layout and microbatches for it",
    )
    jobs.add_argument(
        "--compile_candidates",
        type=int,
        default=12,
        metavar="N",
        help="with --plan --compile_for: compile no more than N (default: %(default)s)",
    )
    jobs.add_argument(
        "--compile_minutes",
        type=float,
        default=60,
        metavar="N",
        help="with --plan --compile_for: end after N minutes (default: %(default)s)",
    )
    jobs.add_argument("--json", action="store_true", help="with --compile_for: the figures as JSON")
    jobs.add_argument("--auto_layout", action="store_true", help="search a layout for mesh_shape, print it")
    jobs.add_argument("--auto_layout_and_mesh_shape", action="store_true", help="search mesh shape and layout")
    train = p.add_argument_group("training")
    add_training(train)
    train.add_argument(
        "--skip_spikes", action="store_true", help="leave out the update of batches whose loss is a spike or no number"
    )
    train.add_argument("--sacred_id", metavar="ID", help="names the files that predictions and evaluations go to")
    add_tracking(p)
    devices = p.add_argument_group("devices")
    devices.add_argument("--tpu", metavar="NAME", help="TPU name, colab, or local")
    devices.add_argument("--tpu_zone", metavar="ZONE", help="zone of the TPU")
    devices.add_argument("--tpu_project", metavar="PROJECT", help="project of the TPU")
    devices.add_argument("--gpu_ids", nargs="+", default=[], metavar="ID", help="devices such as 0 1, or cpu:0 cpu:1")
    devices.add_argument(
        "--cluster_wait",
        type=float,
        default=600,
        metavar="S",
        help="seconds to wait for the other machines of TF_CONFIG (default: %(default)s)",
    )
    add_sampling(p)
    return p


def add_sampling(p: argparse.ArgumentParser) -> None:
    """The flags of --predict."""
    sample = p.add_argument_group("sampling")
    sample.add_argument("--prompt", metavar="FILE|-|TEXT", help="a file, - for standard input, or the text itself")
    sample.add_argument("--interactive", action="store_true", help="ask for prompts until an empty one")
    sample.add_argument("--num_samples", type=int, default=1, metavar="N", help="samples per prompt")
    sample.add_argument("--max_tokens", type=int, metavar="N", help="most new tokens per sample (default: to n_ctx)")
    sample.add_argument("--temperature", type=float, default=0.9, help="0 takes the likeliest token (default: 0.9)")
    sample.add_argument("--top_k", type=int, default=0, metavar="K", help="keep the K likeliest tokens; 0 keeps all")
    sample.add_argument("--top_p", type=float, default=1.0, metavar="P", help="keep the likeliest of total mass P")
    sample.add_argument(
        "--entmax_sampling",
        action="store_true",
        help="draw from entmax in place of softmax: unlikely tokens get the probability 0",
    )
    sample.add_argument("--seed", type=int, help="seed of the draws (default: a new one each time, printed)")


def add_training(train: Any) -> None:
    """The flags of every command that trains."""
    train.add_argument("--steps_per_checkpoint", type=int, default=5000, metavar="N", help="default: %(default)s")
    train.add_argument("--new", action="store_true", help="delete the checkpoints of model_path first (asks)")
    train.add_argument("--yes", action="store_true", help="answer yes to --new")
    train.add_argument(
        "--stall_minutes",
        type=float,
        default=30.0,
        metavar="N",
        help="end a run that makes no step for so long, with status 75; 0 waits (default: 30)",
    )
    train.add_argument("--steps_per_log", type=int, default=10, metavar="N", help="steps between rows of the log (10)")


def add_tracking(p: argparse.ArgumentParser) -> None:
    """The flags of a supervised, tracked run: docs/experiments.md."""
    track = p.add_argument_group("supervised and tracked training")
    track.add_argument("--experiment", metavar="NAME", help="record the run under this name, restart it when it dies")
    track.add_argument(
        "--observer",
        action="append",
        metavar="WHERE",
        help="folder (default: experiments), an SQL database's URL, or mongodb://HOST/NAME",
    )
    track.add_argument("--recreate_tpu", metavar="COMMAND", help="run this before a restart, until it succeeds")
    track.add_argument(
        "--max_failures",
        type=int,
        default=5,
        metavar="N",
        help="give up after N ends at the same step (default: %(default)s)",
    )
    track.add_argument(
        "--pause",
        type=float,
        default=15,
        metavar="S",
        help="seconds before the first restart; doubles (default: %(default)s)",
    )
