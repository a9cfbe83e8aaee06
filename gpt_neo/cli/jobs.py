"""The commands that need TensorFlow and a run: the config is read and checked before TensorFlow is imported."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Union

from gpt_neo.cli import quiet
from gpt_neo.cli.job import Job, load_job
from gpt_neo.cli.options import CheckData, DeviceOptions, Evaluate, Export, Sample, Train
from gpt_neo.cli.output import unhindered
from gpt_neo.config.records import require_records
from gpt_neo.errors import ConfigError
from gpt_neo.tracking.supervisor import end_with_parent


def train(options: Train) -> int:
    """Train, under supervision if a name to record it under is given."""
    check_backend(options, skip_spikes=options.training.skip_spikes, min_p=bool(options.sampling.min_p))
    if options.sampling.interactive:
        raise ConfigError("--interactive goes with gpt-neo sample, or main.py --predict: a training asks for nothing")
    if options.model.checkpoint not in (None, "latest"):
        raise ConfigError(
            f"--checkpoint {options.model.checkpoint}: training goes on from the newest checkpoint of its folder; "
            "--init_from RUN/model.ckpt-STEP begins another run from an older one"
        )
    # the training itself, a process of its own, tells what was recognised in the config
    with unhindered():  # a full disk behind standard output takes no notes, and ends no training
        job = load_job(options.model, options.devices, quiet=bool(options.tracking.experiment))
    check_sampling(job, options)
    require_records(job.run)
    end_with_parent()
    from gpt_neo.cli.experiment import run_experiment, told_to_trackers  # what samples does without

    if options.tracking.experiment:
        with unhindered():
            return run_experiment(job, options)
    quiet.silence(options.model.verbose)
    quiet.spare_tpu(options.devices.tpu)
    with unhindered():
        return told_to_trackers(job, options, job.identity, lambda: train_here(job, options))


def check_sampling(job: Job, options: Train) -> None:
    """Refuse a prompt, or another flag of sampling, where nothing is sampled. Raises: ConfigError."""
    given = options.sampling.given()
    if not given or job.run.training.predict_steps or options.tracking.experiment:
        return
    raise ConfigError(
        f"--{given[0]} says what a training samples at its checkpoints (predict_steps above 0: --set predict_steps=1) "
        "and at the end of a recorded run (--experiment), and neither is asked for; `gpt-neo sample`, or main.py "
        "--predict, samples a trained model"
    )


def train_here(job: Job, options: Train) -> int:
    """Train in this process."""
    if options.backend.backend == "xla":
        from gpt_neo.cli import spmd_jobs
        from gpt_neo.spmd.program import built_for

        with built_for(options.backend.platform):
            return spmd_jobs.train(job, options)
    from gpt_neo.cli.cluster import with_cluster
    from gpt_neo.cli.train import train as work

    return with_cluster(job, functools.partial(work, training=options.training, sampling=options.sampling))


def evaluate(options: Evaluate) -> int:
    """Evaluate a checkpoint."""
    check_backend(options, eval_tasks=bool(options.scoring.eval_tasks))
    job = load_job(options.model, options.devices, reads_only=True)
    if not (options.scoring.eval_tasks or job.run.training.eval_tasks):
        require_records(job.run, "eval_path")
    quiet.silence(options.model.verbose)
    quiet.spare_tpu(options.devices.tpu)
    if options.backend.backend == "xla":
        from gpt_neo.cli import spmd_jobs
        from gpt_neo.spmd.program import built_for

        with built_for(options.backend.platform):
            return spmd_jobs.evaluate(job, options.backend, keep=options.scoring.keep_best)
    from gpt_neo.cli.cluster import with_cluster
    from gpt_neo.cli.evaluate import evaluate as work

    return with_cluster(job, functools.partial(work, tasks=options.scoring.eval_tasks, keep=options.scoring.keep_best))


def sample(options: Sample) -> int:
    """Sample from a checkpoint."""
    check_backend(options, min_p=bool(options.sampling.min_p))
    if options.devices.tpu:
        options = on_own_tpu(options)
    prompt = options.sampling.prompt
    if prompt and prompt.endswith(".txt") and not os.path.isfile(prompt):
        raise ConfigError(f"--prompt {prompt!r}: no such file")
    job = load_job(options.model, options.devices, reads_only=True)
    quiet.silence(options.model.verbose, sampling=job.run.model.precision)
    if options.backend.backend == "xla":
        from gpt_neo.cli import engine, spmd_jobs

        engine.refuse_own("xla", options.backend, options.model.integers)
        return spmd_jobs.sample(job, options)
    from gpt_neo.cli.predict import predict

    return predict(job, options)


def on_own_tpu(options: Sample) -> Sample:
    """Sampling on the TPU of this machine, which JAX's program does: TensorFlow leaves the TPU to it.

    Raises:
      ConfigError: it is another one.
    """
    if options.devices.tpu != "local":
        raise ConfigError(
            f"--tpu {options.devices.tpu}: sampling takes the TPU of the machine that it runs on: --tpu local on a TPU "
            "VM (checkpoints in gs:// are read), or leave --tpu out"
        )
    quiet.spare_tpu("for JAX")
    backend = dataclasses.replace(options.backend, backend="xla", platform="tpu")
    return dataclasses.replace(options, backend=backend, devices=DeviceOptions())


def check_backend(options: Union[Train, Evaluate, Sample], **only_tensorflow: bool) -> None:
    """Refuse flags that the other backend has.

    Raises:
      ConfigError: names the flag.
    """
    devices, backend = options.devices, options.backend
    xla = backend.backend == "xla"
    flags = {"tpu": devices.tpu, "gpu_ids": devices.gpu_ids, **only_tensorflow}
    if not xla:
        names = "platform", "save_program", "attention", "coordinator", "hosts", "rank"
        flags = {name: getattr(backend, name, None) for name in names}
    for name, value in flags.items():
        if value:
            other = "tensorflow" if xla else "xla"
            raise ConfigError(f"--{name} goes with --backend {other}, not with --backend {backend.backend}")


def check_data(options: CheckData) -> int:
    """Look at the records of a run."""
    job = load_job(options.model, reads_checkpoint=False)
    require_records(job.run)
    quiet.silence(options.model.verbose)
    from gpt_neo.cli.check_dataset import check_dataset

    return check_dataset(job)


def export(options: Export) -> int:
    """Write a SavedModel."""
    job = load_job(options.model, reads_only=True)
    quiet.silence(options.model.verbose)
    from gpt_neo.cli.export import export as work

    return work(job, options)
