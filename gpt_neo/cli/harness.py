"""`python -m gpt_neo harness --model MODEL --tasks ...`: EleutherAI's lm-evaluation-harness on a checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from typing import Any, Optional

from gpt_neo.errors import ConfigError
from gpt_neo.storage import tensorflow as files


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="python -m gpt_neo harness",
        description="Score a checkpoint on tasks of lm-evaluation-harness. Adds a line per task to eval_<name>.jsonl "
        "beside the checkpoints.",
    )
    p.add_argument("--model", required=True, metavar="MODEL", help="config (name or path), or a run folder")
    p.add_argument("--tasks", required=True, nargs="+", metavar="TASK", help="names, separated by spaces or commas")
    p.add_argument("--include_path", metavar="FOLDER", help="folder of YAML files with tasks of your own")
    p.add_argument("--checkpoint", metavar="WHICH", help="latest (the default), best, or a step")
    p.add_argument("--num_fewshot", type=int, metavar="N", help="examples before each question (default: the task's)")
    p.add_argument("--limit", type=float, metavar="N", help="first documents per task, or their share if below 1")
    p.add_argument("--batch_size", default="auto", metavar="N", help="rows at once (default: auto)")
    p.add_argument("--max_length", type=int, metavar="N", help="ids read at once (default: n_ctx)")
    p.add_argument("--gen_kwargs", metavar="K=V,...", help="changes to the generation_kwargs of tasks")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of sampling, where a task asks for it")
    p.add_argument("--output", metavar="FILE", help="write everything the harness returns, as JSON")
    p.add_argument("--log_samples", action="store_true", help="with --output: each document, request and answer too")
    p.add_argument("--use_cache", metavar="FILE", help="keep answers in FILE_rank0.db, and take them from there")
    p.add_argument("--offline", action="store_true", help="never ask a hub: data sets are local files, or cached")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    p.add_argument("-v", "--verbose", action="store_true", help="show what TensorFlow and the harness log")
    return p


def main(argv: Optional[list] = None) -> int:
    """Run the tasks, print their table, keep the results."""
    args = build_parser().parse_args(argv)
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("harness needs lm_eval: pip install 'gpt_neo[harness]' (Python 3.10 or later)")
    if args.log_samples and not args.output:
        raise ConfigError("--log_samples says what --output holds; give --output FILE too")
    if args.output and not os.path.isdir(os.path.dirname(os.path.abspath(args.output))):
        raise ConfigError(f"--output {args.output!r}: its folder does not exist")
    if args.offline:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ[name] = "1"  # read when their packages are imported
    from gpt_neo.cli.quiet import silence

    silence(args.verbose)
    import lm_eval
    from lm_eval.utils import make_table, setup_logging

    from gpt_neo.evaluation.harness import GptNeoLM

    setup_logging("INFO" if args.verbose else "WARNING")
    names = [name for word in args.tasks for name in word.split(",") if name]
    manager = task_manager(names, args.include_path)
    model = GptNeoLM(
        args.model, args.checkpoint, args.batch_size, args.max_length, seed=args.seed, overrides=";".join(args.set)
    )
    for note in model.found.notes:
        print(f"note      {note}")
    print(f"model     {model.found.run.name}, checkpoint at step {model.found.step:,}", flush=True)
    limit = int(args.limit) if args.limit and args.limit >= 1 else args.limit
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=names,
        task_manager=manager,
        num_fewshot=args.num_fewshot,
        limit=limit,
        gen_kwargs=args.gen_kwargs,
        use_cache=args.use_cache,
        log_samples=args.log_samples,
    )
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    keep(model, results, args.output)
    return 0


def task_manager(names: list[str], folder: Optional[str]) -> Any:
    """The harness's index of tasks, with those of a folder.

    Raises:
      ConfigError: the folder is missing, or a task unknown.
    """
    from lm_eval.tasks import TaskManager

    if folder and not os.path.isdir(folder):
        raise ConfigError(f"--include_path {folder!r}: no such folder")
    if folder:  # which may hold them all: the harness's own index takes seconds
        manager = TaskManager(include_path=folder, include_defaults=False)
        if all(manager.match_tasks([name]) for name in names):
            return manager
    manager = TaskManager(include_path=folder)
    for name in names:
        if not manager.match_tasks([name]):
            raise ConfigError(f"--tasks {name}: the harness has no such task; --include_path adds a folder of your own")
    return manager


def keep(model: Any, results: Any, output: Optional[str]) -> None:
    """A line per task in eval_<name>.jsonl, and everything in the file asked for."""
    from importlib.metadata import version

    from lm_eval.utils import handle_non_serializable

    found, lines = model.found, []
    for task, metrics in results["results"].items():
        line = {
            "step": found.step,
            "task": task,
            "harness": version("lm_eval"),
            "version": results["versions"].get(task),
            "num_fewshot": results["n-shot"].get(task),
            "metrics": {name: value for name, value in metrics.items() if name != "alias"},
        }
        lines.append(json.dumps(line, default=handle_non_serializable) + "\n")
    files.append_text(os.path.join(found.folder, f"eval_{found.run.name}.jsonl"), "".join(lines))
    if output:
        with open(output, "w", encoding="utf-8") as handle:
            json.dump(results, handle, default=handle_non_serializable, indent=1)
        print(f"written to {output}")
