"""Training, evaluation and sampling with `--backend xla`: the exported program of one core on devices of JAX."""

from __future__ import annotations

import math
from typing import Any, Callable, Optional

from gpt_neo.cli import predict
from gpt_neo.cli.console import note, say
from gpt_neo.cli.evaluate import show_records
from gpt_neo.cli.job import Job, job_checkpoint
from gpt_neo.cli.options import BackendOptions, Sample, SamplingOptions, Train
from gpt_neo.cli.train import train_in_folder
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import CheckpointError, ConfigError
from gpt_neo.inputs.samples import weighted
from gpt_neo.inputs.sources import evaluation_sources, training_sources
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.runtime.estimator import eval_batch_size
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.spmd import evaluation as spmd_evaluation
from gpt_neo.spmd.decoding import export_predict_step
from gpt_neo.spmd.devices import Devices, save_program
from gpt_neo.spmd.environment import worker_python
from gpt_neo.spmd.program import Program, export_eval_step, export_train_step
from gpt_neo.spmd.sampling import DeviceSampler, whole_parts
from gpt_neo.spmd.training import DeviceTraining


def train(job: Job, options: Train) -> int:
    """As `cli.train.train`."""
    run, training = job.run, options.training
    if run.model.lora_rank or run.optimizer.freeze:
        raise ConfigError("--backend xla trains every variable; lora_rank and freeze go with --backend tensorflow")
    if options.backend.save_program:
        return save(export_train_step(run, weighted(run, training_sources(run))), options.backend.save_program)
    with DeviceTraining(run, place_for(options.backend), note) as devices:
        status = train_in_folder(
            job,
            training,
            devices.plan.replicas(),
            device_text(run, options.backend),
            lambda line, watch: devices.train(
                job.folder,
                line.show,
                watch,
                training.steps_per_checkpoint,
                training.steps_per_log,
                training.save_minutes,
            ),
            here=options.backend.platform in (None, "cpu"),
        )
    evaluates = run.training.eval_steps and any(dataset.eval_path for _, dataset in run.datasets)
    return evaluate(job, options.backend, run.training.eval_steps, keep=True) if evaluates and status == 0 else status


def evaluate(job: Job, backend: BackendOptions, limit: Optional[int] = None, keep: bool = False) -> int:
    """The held-out records, as `cli.evaluate.evaluate` has them."""
    run = job.run
    if backend.save_program:
        return save(export_eval_step(run, whole_parts(run, eval_batch_size(run))), backend.save_program)
    sources = evaluation_sources(run)
    job_checkpoint(job)  # notes on how it was chosen
    say(device_text(run, backend))
    if run.training.eval_tasks:
        note(f"eval_tasks ({', '.join(run.training.eval_tasks)}) are scored with --backend tensorflow")
    result = spmd_evaluation.evaluate(
        run, job.folder, place_for(backend), sources, job.model.checkpoint, note, limit, keep
    )
    show_records(job, result)
    return 0


def sample(job: Job, options: Sample) -> int:
    """As `cli.predict.predict`."""
    run, backend = job.run, options.backend
    if backend.save_program:
        return save(sampling_program(job, options.sampling), backend.save_program)

    def load(checkpoint: str, drawn: SampleOptions, batch: int, length: Optional[int]) -> Any:
        return DeviceSampler(run, checkpoint, place_for(backend), drawn, batch, length)

    return predict.sample(job, options.sampling, device_text(run, backend), load)


def sampling_program(job: Job, sampling: SamplingOptions) -> Program:
    """The program that samples so many rows at once."""
    run = job.run
    tokenizer, _ = run_tokenizer(run, job.folder)
    alpha = run.model.entmax_alpha if sampling.entmax_sampling else None
    rows = whole_parts(run, max(1, min(sampling.num_samples, run.training.predict_batch_size)))
    return export_predict_step(run, rows, n_ids=tokenizer.n_vocab, entmax_alpha=alpha)


def save(program: Program, prefix: str) -> int:
    """Write a program, and what a caller has to know about it.

    Raises:
      CheckpointError: the files cannot be written.
    """
    try:
        paths = save_program(program, prefix)
    except OSError as error:
        raise CheckpointError(f"--save_program {prefix!r}: cannot be written: {error.strerror}") from error
    say(f"written   {' and '.join(paths)}")
    return 0


def place_for(backend: BackendOptions) -> Callable[[Program], Devices]:
    """Puts a program on devices of --platform; the environment of JAX is made then, if it is not there."""
    platform = backend.platform or "cpu"
    return lambda program: Devices(program, worker_python(note, platform), platform)


def device_text(run: RunConfig, backend: BackendOptions) -> str:
    """One line on devices: mesh and layout."""
    shape, layout = (",".join(f"{a}:{b}" for a, b in pairs) for pairs in (run.mesh.mesh_shape, run.mesh.layout))
    count = math.prod(size for _, size in run.mesh.mesh_shape)
    cores = f"{count} core{'s' * (count != 1)}"
    return f"devices   mesh {shape or 'of one'} ({cores}), layout {layout or 'none'} on {backend.platform or 'cpu'}"
