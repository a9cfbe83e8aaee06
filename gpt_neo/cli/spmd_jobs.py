"""`spmd-run --predict` and `--eval`: the jobs of main.py, with the exported program of one core."""

from __future__ import annotations

from typing import Any, Callable, Optional

from gpt_neo.cli.evaluate import show_records
from gpt_neo.cli.job import Job, job_checkpoint
from gpt_neo.cli.predict import sample
from gpt_neo.cli.train import note
from gpt_neo.inputs.sources import evaluation_sources
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.environment import worker_python
from gpt_neo.spmd.evaluation import evaluate
from gpt_neo.spmd.program import Program
from gpt_neo.spmd.sampling import DeviceSampler


def predict_on_devices(job: Job, devices: str) -> int:
    """As `cli.predict.predict`. devices: the opening line on them."""

    def load(checkpoint: str, options: SampleOptions, batch: int, length: Optional[int]) -> Any:
        return DeviceSampler(job.run, checkpoint, place_for(job), options, batch, length)

    return sample(job, devices, load)


def evaluate_on_devices(job: Job, devices: str) -> int:
    """The held-out records, as `cli.evaluate.evaluate` has them. devices: the opening line on them."""
    sources = evaluation_sources(job.run)
    job_checkpoint(job)  # notes on how it was chosen
    print(devices, flush=True)
    show_records(job, evaluate(job.run, job.folder, place_for(job), sources, job.args.checkpoint, note))
    return 0


def place_for(job: Job) -> Callable[[Program], Devices]:
    """Puts a program on devices of --platform; the environment of JAX is made then, if it is not there."""
    return lambda program: Devices(program, worker_python(note), job.args.platform)
