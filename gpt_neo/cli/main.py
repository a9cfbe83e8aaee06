"""The dispatch behind main.py."""

from __future__ import annotations

import sys
from typing import Optional

from gpt_neo.cli import quiet
from gpt_neo.cli.args import build_parser
from gpt_neo.cli.common import run_command
from gpt_neo.cli.job import load_job
from gpt_neo.errors import ConfigError

JOBS = (
    "predict",
    "eval",
    "plan",
    "check_dataset",
    "export",
    "compile_for",
    "auto_layout",
    "auto_layout_and_mesh_shape",
)


def main(argv: Optional[list] = None) -> int:
    """Parse, load the config, call. TensorFlow is imported only by the jobs that need it."""
    args = build_parser().parse_args(argv)
    asked = [job for job in JOBS if getattr(args, job)]
    if asked == ["plan", "compile_for"]:
        from gpt_neo.cli.compile_for import propose_for

        quiet.silence(args.verbose)
        return propose_for(load_job(args))
    if len(asked) > 1:
        raise ConfigError(f"--{asked[0]} and --{asked[1]} are two jobs; give one")
    if args.eval_tasks and not args.eval:
        raise ConfigError("--eval_tasks says what --eval scores; give --eval too")
    job = load_job(args)
    if args.plan:
        from gpt_neo.cli.plan import show_plan

        return show_plan(job)
    if args.experiment:
        from gpt_neo.cli.experiment import run_experiment

        return run_experiment(job, sys.argv[1:] if argv is None else argv)
    quiet.silence(args.verbose, sampling=job.run.model.precision if args.predict else None)
    if args.check_dataset:
        from gpt_neo.cli.check_dataset import check_dataset

        return check_dataset(job)
    if args.predict:
        from gpt_neo.cli.predict import predict

        return predict(job)
    if args.compile_for:
        from gpt_neo.cli.compile_for import compile_for

        return compile_for(job)
    if args.export:
        from gpt_neo.cli.export import export

        return export(job)
    if args.auto_layout or args.auto_layout_and_mesh_shape:
        from gpt_neo.cli.auto_layout import auto_layout

        return auto_layout(job)
    from gpt_neo.cli import evaluate, train
    from gpt_neo.cli.cluster import with_cluster

    return with_cluster(job, evaluate.evaluate if args.eval else train.train)


if __name__ == "__main__":
    sys.exit(run_command(main))
