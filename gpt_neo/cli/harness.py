"""EleutherAI's lm-evaluation-harness on a checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from typing import Any, Optional

from gpt_neo.cli import quiet
from gpt_neo.cli.console import keeps_results, note
from gpt_neo.cli.imported import run_of
from gpt_neo.cli.options import Harness
from gpt_neo.errors import ConfigError, DataError
from gpt_neo.storage import tensorflow as files
from gpt_neo.system import how_to_install


def harness(options: Harness) -> int:
    """Run the tasks, print their table, keep the results.

    Raises:
      ConfigError: the package is missing, or a flag or task is wrong.
      DataError: --offline, and the data of a task are not here.
    """
    check_flags(options)
    if options.offline:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ[name] = "1"  # read when their packages are imported
    quiet.silence(options.model.verbose)
    import lm_eval
    from lm_eval.utils import make_table, setup_logging

    from gpt_neo.evaluation.harness import GptNeoLM

    setup_logging("INFO" if options.model.verbose else "WARNING")
    names = [name for word in options.tasks for name in word.split(",") if name]
    manager = task_manager(names, options.include_path)
    model = GptNeoLM(
        run_of(options.model.model),
        options.model.checkpoint,
        options.batch_size,
        options.max_length,
        seed=options.seed,
        overrides=";".join(options.model.overrides),
        backend=options.backend,
        dtype=options.model.integers,
    )
    for line in model.found.notes:
        note(line)
    engine = "OpenVINO" if model.openvino else "TensorFlow"
    print(f"model     {model.found.run.name}, checkpoint at step {model.found.step:,}, by {engine}", flush=True)
    limit = int(options.limit) if options.limit and options.limit >= 1 else options.limit
    try:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=names,
            task_manager=manager,
            num_fewshot=options.num_fewshot,
            limit=limit,
            gen_kwargs=options.gen_kwargs,
            # The harness itself would give one model the answers of another.
            use_cache=options.use_cache and f"{options.use_cache}_{model.identity}",
            log_samples=options.log_samples,
        )
    except (ConnectionError, FileNotFoundError, ValueError) as error:  # what `datasets` raises for data it cannot have
        if not (options.offline and re.search("Couldn't|offline", str(error))):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(f"--offline: the data of {' '.join(names)} are not on this machine: {reason}") from error
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    keep(model, results, options.output)
    return 0


def check_flags(options: Harness) -> None:
    """Raises: ConfigError: the package is missing, or a flag is wrong."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(f"harness needs lm_eval: {how_to_install('harness')}")
    if options.log_samples and not options.output:
        raise ConfigError("--log_samples says what --output holds; give --output FILE too")
    if options.output and not os.path.isdir(os.path.dirname(os.path.abspath(options.output))):
        raise ConfigError(f"--output {options.output!r}: its folder does not exist")


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
    if keeps_results(found.folder):
        files.append_text(os.path.join(found.folder, f"eval_{found.run.name}.jsonl"), "".join(lines))
    if output:
        with open(output, "w", encoding="utf-8") as handle:
            json.dump(results, handle, default=handle_non_serializable, indent=1)
        print(f"written to {output}")
