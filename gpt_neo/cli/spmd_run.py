"""`spmd-run`, the older name of train, eval and sample with `--backend xla`."""

from __future__ import annotations

import dataclasses
import sys

from gpt_neo.cli import jobs
from gpt_neo.cli.options import BackendOptions, Evaluate, Sample, SpmdRun, Train, TrainingBackendOptions
from gpt_neo.errors import ConfigError


def spmd_run(options: SpmdRun) -> int:
    """Do the job with the newer command.

    Raises:
      ConfigError: two jobs are asked for.
    """
    if options.predict and options.eval:
        raise ConfigError("--predict and --eval are two jobs; give one")
    name = "sample" if options.predict else "eval" if options.eval else "train"
    print(f"note      spmd-run goes with the next release: gpt-neo {name} --backend xla does this", file=sys.stderr)
    given = {**dataclasses.asdict(options.xla), "backend": "xla"}
    backend = TrainingBackendOptions(**given)
    if options.predict:
        return jobs.sample(Sample.after(Train(options.model, backend=backend), options.sampling))
    if options.eval:
        return jobs.evaluate(Evaluate(options.model, backend=BackendOptions(**given)))
    return jobs.train(Train(options.model, options.training, backend=backend, sampling=options.sampling))
