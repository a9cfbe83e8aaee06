"""The jobs of `spmd-run`: those of main.py with the exported program of one core, and `--save_program`."""

from __future__ import annotations

from typing import Any, Callable, Optional

from gpt_neo.cli.evaluate import show_records
from gpt_neo.cli.job import Job, job_checkpoint, note
from gpt_neo.cli.predict import sample
from gpt_neo.cli.train import train_in_folder
from gpt_neo.errors import CheckpointError
from gpt_neo.inputs import preflight
from gpt_neo.inputs.samples import weighted
from gpt_neo.inputs.sources import evaluation_sources, training_sources
from gpt_neo.runtime.estimator import eval_batch_size
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.spmd.decoding import export_predict_step
from gpt_neo.spmd.devices import Devices, save_program
from gpt_neo.spmd.environment import worker_python
from gpt_neo.spmd.evaluation import evaluate
from gpt_neo.spmd.program import Program, export_eval_step, export_train_step
from gpt_neo.spmd.sampling import DeviceSampler, whole_parts
from gpt_neo.spmd.training import DeviceTraining


def train_on_devices(job: Job, devices: str) -> int:
    """As `cli.train.train`. devices: the opening line on them."""
    run, args = job.run, job.args
    with DeviceTraining(run, place_for(job), note) as training:
        status = train_in_folder(
            job,
            training.plan.replicas(),
            devices,
            lambda line, watch: training.train(
                job.folder, line.show, watch, args.steps_per_checkpoint, args.steps_per_log
            ),
        )
    evaluates = run.training.eval_steps and any(dataset.eval_path for _, dataset in run.datasets)
    return evaluate_on_devices(job, devices, run.training.eval_steps) if evaluates and status == 0 else status


def predict_on_devices(job: Job, devices: str) -> int:
    """As `cli.predict.predict`. devices: the opening line on them."""

    def load(checkpoint: str, options: SampleOptions, batch: int, length: Optional[int]) -> Any:
        return DeviceSampler(job.run, checkpoint, place_for(job), options, batch, length)

    return sample(job, devices, load)


def evaluate_on_devices(job: Job, devices: str, limit: Optional[int] = None) -> int:
    """The held-out records, as `cli.evaluate.evaluate` has them. devices: the opening line on them."""
    sources = evaluation_sources(job.run)
    job_checkpoint(job)  # notes on how it was chosen
    print(devices, flush=True)
    if job.run.training.eval_tasks:
        note(f"eval_tasks ({', '.join(job.run.training.eval_tasks)}) are scored by main.py --eval")
    show_records(job, evaluate(job.run, job.folder, place_for(job), sources, job.args.checkpoint, note, limit))
    return 0


def save_for(job: Job) -> int:
    """Write the program of a job, and what a caller has to know about it.

    Raises:
      CheckpointError: the files cannot be written.
    """
    args, run = job.args, job.run
    if args.predict:
        tokenizer, _ = preflight.run_tokenizer(run, job.folder)
        alpha = run.model.entmax_alpha if args.entmax_sampling else None
        rows = whole_parts(run, max(1, min(args.num_samples, run.training.predict_batch_size)))
        program = export_predict_step(run, rows, n_ids=tokenizer.n_vocab, entmax_alpha=alpha)
    elif args.eval:
        program = export_eval_step(run, whole_parts(run, eval_batch_size(run)))
    else:
        program = export_train_step(run, weighted(run, training_sources(run)))
    try:
        paths = save_program(program, args.save_program)
    except OSError as error:
        raise CheckpointError(f"--save_program {args.save_program!r}: cannot be written: {error.strerror}") from error
    print(f"written   {' and '.join(paths)}")
    return 0


def place_for(job: Job) -> Callable[[Program], Devices]:
    """Puts a program on devices of --platform; the environment of JAX is made then, if it is not there."""
    return lambda program: Devices(program, worker_python(note), job.args.platform)
